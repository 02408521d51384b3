from __future__ import annotations

from registry import METHODS, Term


@METHODS.register("pckd_without_kd", paper="Ding et al., arXiv 2410.14143", year=2024)
def pckd_without_kd(
    ce: float = 1.0,
    feature: float = 20.0,
    alpha: float = 1.0,
    beta: float = 0.05,
    center: str = "center_alignment",
    contrast: str = "category_contrast",
) -> list[Term]:
    """PCKD without its KD term (the paper's row "PCKD without L_KD"; delta = 0)."""
    return [
        Term("cross_entropy", ce),
        Term("feature_alignment", feature, views="all"),
        Term(center, alpha, optional=True),
        Term(contrast, beta, views="all", previewed=True),
    ]

from __future__ import annotations

from registry import METHODS, Term


@METHODS.register("pckd", paper="Ding et al., arXiv 2410.14143", year=2024)
def pckd(
    ce: float = 1.0,
    delta: float = 1.0,
    feature: float = 20.0,
    alpha: float = 1.0,
    beta: float = 0.05,
    temperature: float = 4.0,
    center: str = "center_alignment",
    contrast: str = "category_contrast",
) -> list[Term]:
    """Preview-based category contrastive learning (Ding et al. 2024): the full method.

    Args:
        ce: weight of the cross entropy on the upright view.
        delta: weight of previewed KD on the upright view.
        feature: weight of feature alignment on all views.
        alpha: weight of center alignment; dropped, with a line in the log, where the embedding widths differ.
            ``center="center_relation"`` works for any widths.
        beta: weight of previewed category contrast on all views.
        temperature: of KD.
        center: the loss that aligns the centers.
        contrast: the contrast: ``category_contrast`` as released, ``center_infonce`` as the paper's figure draws it.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", delta, previewed=True, options={"temperature": temperature}),
        Term("feature_alignment", feature, views="all"),
        Term(center, alpha, optional=True),
        Term(contrast, beta, views="all", previewed=True),
    ]


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
    terms = pckd(ce, feature=feature, alpha=alpha, beta=beta, center=center, contrast=contrast)
    return [term for term in terms if term.loss != "kd"]


@METHODS.register("pckd_plus", paper="ours, after Ding et al., arXiv 2410.14143", year=2026)
def pckd_plus(
    ce: float = 1.0, delta: float = 1.0, feature: float = 20.0, temperature: float = 4.0, inherit: str = "layers"
) -> list[Term]:
    """PCKD for short schedules (ours): the student inherits from the teacher and aligns its embedding directly.

    One view, no projection, no contrast and no preview.

    Args:
        ce: weight of the cross entropy.
        delta: weight of KD.
        feature: weight of the alignment of the embedding, which has no projection.
        temperature: of KD.
        inherit: what the student starts with: the teacher's ``"layers"`` of the same name and shape and its centers,
            its ``"blocks"`` evenly spread over those of a deeper teacher, its ``"centers"`` alone, or ``"nothing"``.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", delta, options={"temperature": temperature}),
        Term("direct_alignment", feature, options={"inherit": inherit}),
    ]

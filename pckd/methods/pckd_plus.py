from __future__ import annotations

from registry import METHODS, Term


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
            its ``"centers"`` alone, or ``"nothing"``.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", delta, options={"temperature": temperature}),
        Term("direct_alignment", feature, options={"inherit": inherit}),
    ]

"""Losses of methods that judge the student's features by the teacher's classifier."""

from __future__ import annotations

from torch import Tensor

from pckd.functional.numerics import full
from registry import Output, Shapes


def read_shape(shapes: Shapes) -> tuple[int, int, int] | None:
    """(C, H, W) of the map that the classifier reads after pooling; None where it is not among the maps.

    Some networks put further layers between the last map and the pooling, and some have no maps at all.
    """
    last = [*shapes.maps[-1:], *shapes.preacts[-1:]]
    return last[-1] if last and last[-1][0] == shapes.embedding else None


def read_map(output: Output) -> Tensor | None:
    """The map of :func:`read_shape`, [N, C, H, W]: the last one, activated; its mean over space is the embedding."""
    if read_shape(Shapes.of(output)) is None:
        return None
    return output.preacts[-1].relu() if output.preacts else output.maps[-1]


def _mean_square(student: Tensor, teacher: Tensor, name: str) -> Tensor:
    if student.shape != teacher.shape:
        raise ValueError(f"{name} needs two equal shapes, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return (full(student) - full(teacher.detach())).square().flatten(1).mean(1)


def feature_statistic(adapted_map: Tensor, teacher_embedding: Tensor) -> Tensor:
    """L_FM of SRRL: mean squared difference of the features' means over space (Yang et al., ICLR 2021).

    Args:
        adapted_map: [N, Dt, H, W], the student's last map after the adapter.
        teacher_embedding: [N, Dt], the teacher's last map averaged over space; constant.

    Returns:
        [N].

    Raises:
        ValueError: the widths differ.
    """
    return _mean_square(full(adapted_map).mean((2, 3)), teacher_embedding, "feature_statistic")


def softmax_regression(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """L_SR of SRRL as released: mean squared difference of the teacher's classifier on both features (ICLR 2021).

    Args:
        student_logits: [N, K], the teacher's classifier on the student's adapted feature.
        teacher_logits: [N, K]; constant.

    Returns:
        [N].

    Raises:
        ValueError: the shapes differ.
    """
    return _mean_square(student_logits, teacher_logits, "softmax_regression")


def reused_feature(projected_map: Tensor, teacher_map: Tensor) -> Tensor:
    """L_SimKD: mean squared difference of the projected and the teacher's last map (Chen et al., arXiv 2203.14001).

    Args:
        projected_map: [N, Ct, H, W], the student's last map after the projector.
        teacher_map: [N, Ct, H, W]; constant.

    Returns:
        [N].

    Raises:
        ValueError: the shapes differ.
    """
    return _mean_square(projected_map, teacher_map, "reused_feature")

"""Feature maps of two networks: which pair up, at which size they are compared, and which one the classifier reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.ops import full
from registry import NotApplicable, Output, Shapes

T = TypeVar("T")
Shape = tuple[int, int, int]
"""(C, H, W)."""


def paired(student: Sequence[T], teacher: Sequence[T]) -> list[tuple[T, T]]:
    """Pairs of a student's and a teacher's maps (or of their shapes), from the last stage backwards.

    Where one network has more, its first ones are left over: networks differ in how they start, and the last stages
    are those that the classifier reads. Published pairs have as many maps on both sides.
    """
    count = min(len(student), len(teacher))
    return list(zip(student[len(student) - count :], teacher[len(teacher) - count :], strict=True))


def paired_shapes(
    loss: str, student: Sequence[Shape], teacher: Sequence[Shape], *, least: int = 1, same_widths: bool = False
) -> list[tuple[Shape, Shape]]:
    """The shapes of :func:`paired` maps, for a loss's constructor.

    Args:
        loss: its name, for the message. least: how many pairs it needs. same_widths: whether a pair must have as
            many channels on both sides.

    Raises:
        NotApplicable: there are fewer pairs, or the widths differ.
    """
    pairs = paired(student, teacher)
    if len(pairs) < least:
        raise NotApplicable(
            f"{loss} needs {least} pair{'s' * (least > 1)} of feature maps, but the networks give {len(pairs)} "
            "(after the stem, or before an activation, where it asks for that); kd and crd need no maps"
        )
    if same_widths and any(s[0] != t[0] for s, t in pairs):
        widths = (", ".join(str(shape[0]) for shape in side) for side in zip(*pairs, strict=True))
        raise NotApplicable(
            f"{loss} needs maps of equal widths, but the student's have {next(widths)} channels and the teacher's "
            f"{next(widths)}; at, nst and vid work for any widths"
        )
    return pairs


def matched(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps in at least float32 and at the smaller size: the larger is average pooled; the teacher's is a constant.

    Args:
        student_map: [N, Cs, Hs, Ws]; teacher_map: [N, Ct, Ht, Wt].
    """
    size = smaller_size(student_map, teacher_map)
    return resized(student_map, size), resized(teacher_map.detach(), size)


def smaller_size(a: Tensor, b: Tensor) -> tuple[int, int]:
    """(H, W) to which two maps [N, C, H, W] are pooled: the smaller of each."""
    return min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])


def resized(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [N, C, H, W] in at least float32, average pooled to ``size`` (H', W') where it has another."""
    feature_map = full(feature_map)
    return feature_map if feature_map.shape[2:] == size else F.adaptive_avg_pool2d(feature_map, size)


def regressor(student: Shape, teacher: Shape, *, relu: bool) -> nn.Sequential:
    """Convolution and batch norm from a student's map to a teacher's shape, as FitNets' regressor in CRD's benchmark.

    One convolution changes width and size: stride 2 for a student of twice the size, transposed for half of it, else
    a kernel without padding that leaves the teacher's size. A student of less than half the teacher's size is beyond
    the published one: its map keeps its size, and the loss pools the teacher's.

    Args:
        student: (C, H, W). teacher: (C, H, W). relu: whether a ReLU follows the norm.
    """
    (channels, *size), (width, *wanted) = student, teacher
    convolution: nn.Module
    if size == [2 * side for side in wanted]:
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1)
    elif wanted == [2 * side for side in size]:
        convolution = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
    else:
        kernel = [1 + max(0, side - other) for side, other in zip(size, wanted, strict=True)]
        convolution = nn.Conv2d(channels, width, (kernel[0], kernel[1]))
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU() if relu else nn.Identity())


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


def read_shape_at(loss: str, role: str, shapes: Shapes, path: str | None = None) -> tuple[int, int, int]:
    """As :func:`read_shape`, where a module may be named that gives the map, before its ReLU.

    Args:
        loss: its name, and role: "student" or "teacher", the option that names the module, for the message.
        path: of the module; "" for the last map, and None for it where no module can be named.

    Raises:
        NotApplicable: that is not the map whose mean the classifier reads.
    """
    shape = dict(shapes.layers).get(path) if path else read_shape(shapes)
    if shape is None or len(shape) != 3 or shape[0] != shapes.embedding:
        found = f"{path!r} gives {list(shape or [])}" if path else "it is not among its maps"
        instead = "srrl works for any network" if path is None else f"name its module: {loss}({role}='...')"
        raise NotApplicable(
            f"{loss} needs the map whose mean the {role}'s classifier reads, [{shapes.embedding}, H, W] an image, and "
            f"{found}; {instead}"
        )
    return shape[0], shape[1], shape[2]


def read_map_at(output: Output, path: str | None = None) -> Tensor:
    """The map of :func:`read_shape_at`, activated."""
    if path and isinstance(output.layers, Mapping):
        return output.layers[path].relu()
    found = read_map(output)
    assert found is not None
    return found

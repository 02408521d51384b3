"""Layers that losses put between a student's map and a teacher's."""

from __future__ import annotations

from torch import nn

from pckd.functional.maps import Shape


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

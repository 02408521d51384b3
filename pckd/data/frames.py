"""What part of an image file's picture is shown, and in how many pixels: cut before it is resized, by torch.

Bilinear with antialiasing; a value differs from Pillow's by 1 of 255 at most, as each rounds in its own way.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Center", "Cut", "Cutting", "Frame", "RandomPart", "Square", "resized"]

TRIES = 10
"""Boxes that are drawn before the center is taken, as in torchvision."""


class Frame(Protocol):
    """Makes of pixels uint8 [h, w, 3] those of an item, [H, W, 3]."""

    draws: int
    """Random numbers that it takes."""

    def __call__(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Tensor:
        """
        Args:
            drawn: its random numbers, each in [0, 1).
        """
        ...


class Cut(NamedTuple):
    """A part of an image that is still to be resized: by whoever has the time, which a process that decodes has not."""

    pixels: Tensor
    """uint8 [h, w, 3]."""
    size: tuple[int, int]
    """(H, W) that it is to have."""
    mode: str = "bilinear"

    def resized(self) -> Tensor:
        """uint8 [H, W, 3]."""
        return resized(self.pixels, self.size, self.mode)


def resized(pixels: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Pixels uint8 [h, w, 3] in another ``size`` (H, W)."""
    if tuple(pixels.shape[:2]) == size:
        return pixels
    # Of whole rows of pixels, without gaps, the kernel is half as slow again.
    images, smooth = pixels.contiguous().permute(2, 0, 1)[None], mode != "nearest"
    if pixels.device.type != "cpu":
        images = images.float()  # Accelerators have no kernel for bytes.
    found = F.interpolate(images, size, mode=mode if smooth else "nearest-exact", antialias=smooth)[0].permute(1, 2, 0)
    return found if found.dtype == torch.uint8 else found.round().clamp(0, 255).to(torch.uint8)


class Cutting(ABC):
    """A frame that cuts first and resizes then, so that the second can be left to another."""

    draws = 0

    @abstractmethod
    def cut(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Cut:
        """The part that is shown."""

    def __call__(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Tensor:
        return self.cut(pixels, drawn).resized()


class Square(Cutting):
    """Resizes the shorter side to ``size`` and cuts out the center, from a whole pixel on.

    Args:
        size: pixels a side; or (H, W). mode: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
    """

    def __init__(self, size: int | tuple[int, int], mode: str = "bilinear") -> None:
        self.size, self.mode = size, mode

    def __repr__(self) -> str:
        return f"Square({self.size})"

    def cut(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Cut:
        height, width = pixels.shape[:2]
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        tall, wide = min(height, round(width * size[0] / size[1])), min(width, round(height * size[1] / size[0]))
        tall, wide = max(tall, 1), max(wide, 1)
        top, left = (height - tall) // 2, (width - wide) // 2
        return Cut(pixels[top : top + tall, left : left + wide], size, self.mode)


class Center:
    """Resizes the shorter side to ``resize`` and cuts a square of ``size`` pixels out of the center."""

    draws = 0

    def __init__(self, size: int, resize: int) -> None:
        self.size, self.resize = size, resize

    def __repr__(self) -> str:
        return f"Center({self.size}, {self.resize})"

    def __call__(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Tensor:
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        height, width = (int(self.resize * side / shorter) for side in (height, width))
        top, left = (round((side - self.size) / 2) for side in (height, width))
        return resized(pixels, (height, width))[top : top + self.size, left : left + self.size]


class RandomPart(Cutting):
    """Resizes a random part to ``size`` pixels a side, with the boxes of torchvision's RandomResizedCrop.

    Args:
        least: share of the area that is left, at the least. ratio: most that width is above height, or the other way.
    """

    draws = 2 * TRIES + 2

    def __init__(self, size: int, least: float = 0.08, ratio: float = 4 / 3) -> None:
        self.size, self.least, self.ratio = size, least, ratio

    def __repr__(self) -> str:
        return f"RandomPart({self.size}, {self.least}, {self.ratio})"

    def cut(self, pixels: Tensor, drawn: Sequence[float] = ()) -> Cut:
        top, left, tall, wide = self.box(pixels.shape[0], pixels.shape[1], drawn)
        return Cut(pixels[top : top + tall, left : left + wide], (self.size, self.size))

    def box(self, height: int, width: int, drawn: Sequence[float]) -> tuple[int, int, int, int]:
        """Top, left, height and width of the part of an image of this size."""
        for share, stretch in zip(drawn[:TRIES], drawn[TRIES : 2 * TRIES], strict=True):
            area = height * width * (self.least + (1 - self.least) * share)
            aspect = math.exp(math.log(self.ratio) * (2 * stretch - 1))
            tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < tall <= height and 0 < wide <= width:
                return int(drawn[-2] * (height - tall + 1)), int(drawn[-1] * (width - wide + 1)), tall, wide
        tall, wide = min(height, round(width * self.ratio)), min(width, round(height * self.ratio))
        return (height - tall) // 2, (width - wide) // 2, tall, wide

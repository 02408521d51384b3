"""Augmentations by name, one after the other: ``"crop+flip+rand_augment(n=2, m=9)+mixup(alpha=0.8)"``.

Shapes: B images, V views of each, R random numbers an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from registry import AUGMENTATIONS, PluginError, UserError, ask, build, parse, split_specs

__all__ = ["USUAL", "Augmentations", "augmentations"]

USUAL = "crop+flip"
_WHICH, _PARTNER, _ENTRY, _OWN = range(4)
"""Columns of the numbers for mixing: which of the mixes, the other image, the entry of its pool, and the mixes' own."""
_AT_ONCE = 2**18
"""Values that are changed together on a CPU."""

Step = tuple[Callable[..., Any], int]
"""A function and how many random numbers it takes."""


@dataclass(frozen=True)
class Augmentations:
    """What is done to training images, in this order; made by :func:`augmentations`.

    Args:
        pixels: changes of the images themselves. crop: the random crop with padding. flip: mirror half of them.
        mixes: ways to mix an image with another one, of which each image has one.
    """

    pixels: tuple[Step, ...] = ()
    crop: bool = True
    flip: bool = True
    mixes: tuple[Step, ...] = ()

    @property
    def numbers(self) -> int:
        """R, beside those of crop and flip."""
        return self._pixel_numbers + (_OWN + sum(count for _, count in self.mixes) if self.mixes else 0)

    @property
    def _pixel_numbers(self) -> int:
        return sum(count for _, count in self.pixels)

    def change(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images after all changes of their pixels.

        Args:
            images: uint8 [B, C, H, W]. drawn: float64 [B, R], on the CPU.
        """
        # On the CPU a few at a time, which stay in its cache from one operation to the next.
        few = max(1, _AT_ONCE // images[0].numel()) if images.device.type == "cpu" else len(images)
        first = 0
        for function, count in self.pixels:
            pieces = zip(images.split(few), drawn[:, first : first + count].split(few), strict=True)
            asked = f"augmentation {_name(function)!r}"
            images = torch.cat([ask(asked, function, piece, numbers) for piece, numbers in pieces])
            first += count
        return images

    def partners(self, drawn: Tensor, images: int, pool: int) -> tuple[Tensor, Tensor]:
        """[B] images of a data set of ``images`` that these are mixed with, and entries of their pools."""
        first = self._pixel_numbers
        return (drawn[:, first + _PARTNER] * images).long(), (drawn[:, first + _ENTRY] * pool).long()

    def mix(self, views: Tensor, others: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed views [B, V, C, H, W], and the weight [B] of each one's own label, on the CPU.

        Args:
            views, others: normalized. drawn: float64 [B, R], on the CPU.
        """
        first = self._pixel_numbers
        if len(self.mixes) == 1:
            ((function, _),) = self.mixes
            mixed = ask(f"augmentation {_name(function)!r}", function, views, others, drawn[:, first + _OWN :])
            return mixed[0], mixed[1]
        which = (drawn[:, first + _WHICH] * len(self.mixes)).long()
        first += _OWN
        result, share = views.clone(), torch.ones(len(views), dtype=torch.float64)
        for kind, (function, count) in enumerate(self.mixes):
            rows = (which == kind).nonzero()[:, 0]
            there = rows.to(views.device, non_blocking=True)
            given = views[there], others[there], drawn[rows, first : first + count]
            mixed = ask(f"augmentation {_name(function)!r}", function, *given)
            result[there], share[rows] = mixed[0], mixed[1]
            first += count
        return result, share


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def augmentations(text: str | None, *, flip: bool = True) -> Augmentations:
    """From names with options, joined by ``+``; None is :data:`USUAL`.

    ``crop`` and ``flip`` come after the changes of pixels, and mixes at the end, in whatever order they are written.

    Args:
        flip: whether ``flip`` counts.

    Raises:
        UserError: an unknown name or option, or one name twice.
    """
    names = split_specs(USUAL if text is None else text)
    plain = [parse(name)[0] if name else "" for name in names]
    if "" in plain or len(set(plain)) < len(plain):
        raise UserError(f"augment {text!r}: {'a name is missing' if '' in plain else 'a name is there twice'}")
    pixels: list[Step] = []
    mixes: list[Step] = []
    for name, spec in zip(plain, names, strict=True):
        if name in ("crop", "flip"):
            if spec != name:
                raise UserError(f"augment {text!r}: {name} has no options")
            continue
        function = build(AUGMENTATIONS, spec)
        facts = AUGMENTATIONS.facts(name)
        if not isinstance(facts.get("draws"), int):
            raise PluginError(f"augmentation {name!r} is registered without draws=R, its random numbers an image")
        (mixes if facts.get("mixes") else pixels).append((function, facts["draws"]))
    return Augmentations(tuple(pixels), "crop" in plain, flip and "flip" in plain, tuple(mixes))

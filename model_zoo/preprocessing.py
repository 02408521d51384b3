"""How images were prepared for a network in its training: a record that stays with the network and with its files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

__all__ = ["INTERPOLATIONS", "Preprocessing", "preprocessing_of", "set_preprocessing"]

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")

_SAME = 1e-4
"""Means and standard deviations that differ by less count as the same: it is a fortieth of a pixel's step of 1/255."""


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for a network, and what its classes are called.

    What is not known is empty, or (0, 0); there the data's is taken.

    Args:
        mean: per channel, of images scaled to [0, 1]. std: likewise.
        image_size: (height, width) in pixels.
        classes: names of the classes, in the order of the logits.
        interpolation: how images are brought to this size, one of :data:`INTERPOLATIONS`.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    classes: tuple[str, ...] = ()
    interpolation: str = "bilinear"

    @property
    def whole(self) -> bool:
        """Whether everything is known."""
        return bool(self.mean and self.classes and all(self.image_size))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Preprocessing | None:
        """The record in a file's metadata; None where there is none, as in the files of other programs."""
        try:
            found = metadata["preprocessing"]
            # The metadata of .safetensors are strings.
            found = json.loads(found) if isinstance(found, str) else found
            height, width = map(int, found["image_size"])
            mean, std = (tuple(map(float, found[name])) for name in ("mean", "std"))
            # Files of before do not say how they were resized.
            how = str(found.get("interpolation", "bilinear"))
            record = cls(mean, std, (height, width), tuple(map(str, found["classes"])), how)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        sound = len(mean) == len(std) and all(map(math.isfinite, mean)) and all(0 < s < math.inf for s in std)
        return record if sound and how in INTERPOLATIONS else None

    def as_metadata(self) -> dict[str, Any]:
        """What a file holds: numbers, strings and tuples of them."""
        return asdict(self)

    def normalizes_as(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether images normalized with these statistics are what the network was shown."""
        if len(mean) != len(self.mean):
            return False
        pairs = zip((*self.mean, *self.std), (*mean, *std), strict=True)
        return all(abs(own - other) < _SAME for own, other in pairs)

    def renormalization(self, mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
        """Scale and shift per channel that bring images normalized with ``mean`` and ``std`` to this normalization.

        (x - mean) / std * scale + shift is (x - self.mean) / self.std. A crop pads with black pixels before it
        normalizes, so that this holds for the padding, too.
        """
        scale = [other / own for other, own in zip(std, self.std, strict=True)]
        shift = [(other - own) / s for other, own, s in zip(mean, self.mean, self.std, strict=True)]
        return scale, shift


def preprocessing_of(network: nn.Module) -> Preprocessing | None:
    """The record that a network carries as its attribute ``preprocessing``; None where it has none."""
    record = getattr(network, "preprocessing", None)
    return record if isinstance(record, Preprocessing) else None


def set_preprocessing(network: nn.Module, record: Preprocessing | None) -> None:
    """Let a network carry a record, or no longer carry one.

    It is a plain attribute: not in the state dict, kept by ``copy.deepcopy`` and by pickling. A network with another
    attribute of this name keeps that one.
    """
    own = getattr(network, "preprocessing", None)
    if (own is None or isinstance(own, Preprocessing)) and own != record:
        network.preprocessing = record  # type: ignore[assignment]

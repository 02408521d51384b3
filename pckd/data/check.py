"""Checks of what a data set returns, before anything is trained on it, and warnings that are given once."""

from __future__ import annotations

import logging
import math
import os
from typing import Any, NoReturn

import torch
from torch import Tensor

from pckd.data.views import SCALES
from registry import Absent, BadImages, DataSplit, UserError, ask

__all__ = ["check_alike", "check_item", "check_on_bad_image", "check_split", "first_item", "name_of", "say_once"]

log = logging.getLogger("pckd")
_SAID: set[str] = set()

PIXELS = "uint8, uint16, float32 or float16"
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def name_of(split: Any) -> str:
    """What messages call a split."""
    return split.name or "the data set"


def check_split(split: DataSplit) -> None:
    """Refuse a split that is empty, or whose labels, images in memory, mean or std do not fit together."""
    label, labels, images = name_of(split), split.labels, split.images
    _check_targets(label, split)
    if isinstance(labels, Tensor) and labels.shape == (0,):
        _refuse(label, "the split has no images")
    if isinstance(labels, Absent) and split.targets is not None:
        _check_images(label, split)
        return
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype not in _WHOLE:
        _refuse(label, f"labels must be whole numbers [M], not {_kind(labels)}")
    if len(images) != len(labels):
        _refuse(label, f"{len(images)} images but {len(labels)} labels; give one label an image")
    low, high = int(labels.min()), int(labels.max())
    if split.labeled and (low < 0 or high >= split.num_classes):
        count, none = split.num_classes, "; where no image has a label, all must be -1" if low == -1 else ""
        allowed = f"each must be 0 to {count - 1}{none}"
        _refuse(label, f"labels run from {low} to {high}, and there are {count} classes: {allowed}")
    _check_images(label, split)


def _check_targets(label: str, split: DataSplit) -> None:
    targets, size = split.targets, (len(split.images), split.num_classes)
    if targets is None:
        return
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.shape != size:
        _refuse(label, f"targets must be float {list(size)}, a row an image, not {_kind(targets)}")
    if isinstance(split.labels, Absent):
        if not bool(((targets == 0) | (targets == 1)).all()):
            _refuse(label, "targets without labels must be 0 or 1, whether the image shows the class")
    elif not bool((targets >= 0).all()) or not torch.allclose(
        targets.double().sum(1), targets.new_ones(1).double(), atol=1e-3
    ):
        _refuse(label, "targets beside labels are probabilities: each row must sum to 1, with no entry below 0")


def _check_images(label: str, split: DataSplit) -> None:
    images = split.images
    check_on_bad_image(split.on_bad_image)
    if isinstance(images, Tensor):
        if images.dtype not in SCALES or images.ndim != 4:
            _refuse(label, f"images must be {PIXELS} [M, C, H, W], not {_kind(images)}")
        _check_statistics(label, split, images.shape[1])


def check_item(split: DataSplit) -> tuple[int, int, int]:
    """(C, H, W) of the first image, checked; of a streamed split it is read."""
    label, item = name_of(split), first_item(split)
    _check_image(label, item)
    channels, height, width = item.shape
    if min(item.shape) < 1:
        _refuse(label, f"its images are {height}x{width} with {channels} channels: there is nothing to see")
    _check_statistics(label, split, channels)
    return channels, height, width


def first_item(split: DataSplit) -> Tensor:
    """The first image of a split; where images that cannot be read are skipped, the first that can."""
    reasons: list[str] = []
    for position in range(len(split)):
        try:
            return ask(f"{name_of(split)}: image {position}", split.images.__getitem__, position)
        except BadImages as error:
            if split.on_bad_image != "skip":
                raise
            reasons += error.reasons
    raise UserError(f"{name_of(split)}: none of its images can be read ({BadImages(*reasons).listed()})")


def check_on_bad_image(value: object) -> None:
    """Refuse an unknown policy for images that cannot be read."""
    if value not in ("stop", "skip"):
        raise UserError(f"on_bad_image must be stop or skip, not {value!r}")


def say_once(text: str) -> None:
    """Log a warning, once a process; of several that train together, in the first one, since all see the same files."""
    if text not in _SAID and int(os.environ.get("RANK", "0")) == 0:
        _SAID.add(text)
        log.warning("%s", text)


def check_alike(item: Tensor, first: Tensor, position: int) -> None:
    """Refuse the image at a position if no batch can hold it together with the first one."""
    label = f"image {position} of the data set"
    _check_image(label, item, "it")
    if item.dtype != first.dtype:
        _refuse(label, f"its pixels are {_kind(item)}, and another one's {_kind(first)}; all must be of one type")
    if item.shape != first.shape:
        shapes = f"{list(item.shape)}, and another one {list(first.shape)}"
        _refuse(label, f"its shape is {shapes}; all must have the same")


def _check_image(label: str, item: object, what: str = "an image") -> None:
    if not isinstance(item, Tensor) or item.dtype not in SCALES or item.ndim != 3:
        _refuse(label, f"{what} must be {PIXELS} [C, H, W], not {_kind(item)}")


def _check_statistics(label: str, split: DataSplit, channels: int) -> None:
    for option, values in (("mean", split.mean), ("std", split.std)):
        try:
            numbers = [float(x) for x in values]
        except (TypeError, ValueError):
            _refuse(label, f"{option} must be numbers, one a channel, not {values!r}")
        if len(numbers) != channels:
            _refuse(label, f"{option} has {len(numbers)} numbers, the images have {channels} channels; give one each")
        if not all(math.isfinite(x) and (option == "mean" or x > 0) for x in numbers):
            _refuse(label, f"{option} must be {'finite' if option == 'mean' else 'above 0'}, not {values!r}")
    if not isinstance(split.padding, int) or split.padding < 0:
        _refuse(label, f"padding must be a whole number of pixels of at least 0, not {split.padding!r}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def _refuse(label: str, text: str) -> NoReturn:
    raise UserError(f"{label}: {text}")

"""A split of image files that are listed with their labels: in memory or streamed, and how it is normalized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal

import torch

from pckd.data import folder
from pckd.data.check import check_on_bad_image, say_once
from pckd.data.folder import IMAGENET_MEAN, IMAGENET_STD, Files, ImageFiles
from pckd.data.frames import Frame, RandomPart, Square
from pckd.data.vision import crop_padding
from registry import BadImages, DataSplit, UserError

_SMALL_SIDE = 64
_SMALL_TOTAL = 2 * 2**30


@dataclass(frozen=True)
class ImageOptions:
    """How images are read: the options of the data set ``name``, explained at ``imagefolder``."""

    name: str
    image_size: int | None
    memory: bool | Literal["auto"]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    white: float | None
    on_bad_image: Literal["stop", "skip"]
    min_area: float | None = None

    def __post_init__(self) -> None:
        name, size, white = self.name, self.image_size, self.white
        if size is not None and size < 1:
            raise UserError(f"{name}: image_size={size}: it must be at least 1")
        if self.memory not in (True, False, "auto"):
            raise UserError(f'{name}: memory={self.memory!r}: it must be True, False or "auto"')
        if self.min_area is not None:
            if not 0 < self.min_area <= 1:
                raise UserError(f"{name}: min_area={self.min_area}: it must be above 0 and at most 1")
            if size is None or self.memory is True:
                raise UserError(
                    f"{name}: min_area cuts images as they are read: give image_size, too, and no memory=True"
                )
        check_on_bad_image(self.on_bad_image)
        if white is not None and not (isinstance(white, Real) and 0 < white < math.inf):
            raise UserError(f"{name}: white={white!r}: it must be a finite number above 0")
        if (self.mean is None) != (self.std is None):
            raise UserError(f"{name}: give both mean and std, or neither")
        for option, value in (("mean", self.mean), ("std", self.std)):
            numbers = len(value) if isinstance(value, (list, tuple)) else 1
            if value is not None and numbers != 3:
                raise UserError(f"{name}: {option} has {numbers} numbers; give 3, for red, green and blue")

    @property
    def skip(self) -> bool:
        return self.on_bad_image == "skip"


def image_split(source: Files, files: Files, name: str, options: ImageOptions) -> DataSplit:
    """The split of ``files``.

    Args:
        source: the training images, which decide how both splits are prepared; for their own split the same object.
        files: the images of the split. name: of the split.
    """
    side, memory, mean, std = options.image_size, options.memory, options.mean, options.std
    size, unreadable = ((side, side), []) if side else _common_size(source)
    arrange: Frame | None = Square(side) if side else None
    shown = arrange
    if side and options.min_area is not None:
        memory = False
        shown = RandomPart(side, options.min_area) if source is files else arrange
    elif memory == "auto":
        memory = max(size) <= _SMALL_SIDE and len(source.paths) * size[0] * size[1] * 3 < _SMALL_TOTAL
    images: Any
    labels = files.labels
    if memory:
        decode = partial(folder.decode_all, size=size, arrange=arrange, white=options.white, skip=options.skip)
        images, bad = decode(files.paths)
        kept = torch.tensor([i not in bad for i in range(len(labels))])
        labels = labels[kept]
        if bad:
            _say_left_out(name, files, bad, labels)
        if mean is None or std is None:
            some = torch.tensor(folder.spread(len(source.paths), 10_000))
            if source is files:
                sample = images[(kept.cumsum(0) - 1)[some[kept[some]]]]
            else:
                sample, _ = decode([source.paths[i] for i in some.tolist()])
            mean, std = folder.image_statistics(sample)
    else:
        if unreadable and not options.skip:
            raise BadImages(*unreadable)
        images = ImageFiles(files.paths, size, shown, arrange, white=options.white)
        if mean is None or std is None:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
    others: dict[str, Any] = {
        "padding": 0 if options.min_area is not None else crop_padding(min(size)),
        "name": name,
        "on_bad_image": options.on_bad_image,
    }
    return DataSplit(images, labels, files.classes, tuple(mean), tuple(std), **others)


def _say_left_out(name: str, files: Files, bad: dict[int, str], labels: torch.Tensor) -> None:
    """Warn of files that could not be decoded; ``labels`` are those of the others, which each class must have."""
    left = set(labels.tolist())
    for position, reason in bad.items():
        label = int(files.labels[position])
        if label not in left:
            of = f" of {files.classes[label]}" if files.classes else ""
            raise BadImages(f"{name}: no image{of} can be read, as {reason}")
    shown = BadImages(*bad.values()).listed()
    say_once(f"{name}: {len(bad):,} of {len(files.paths):,} images cannot be read, and are left out: {shown}")


def _common_size(files: Files) -> tuple[tuple[int, int], list[str]]:
    """(H, W) shared by a sample of the files, and the reasons of those of them that cannot be read.

    The others are checked as they are decoded.
    """
    sizes: dict[tuple[int, int], str] = {}
    bad: list[str] = []
    for position in folder.spread(len(files.paths), 100):
        path = files.paths[position]
        try:
            sizes.setdefault(folder.image_size_of(path), path)
        except BadImages as error:
            bad += error.reasons
    if not sizes:
        raise BadImages(*bad)
    (size, first), *others = sizes.items()
    for (height, width), path in others:
        raise UserError(f"{path} is {width}x{height} and {first} is {size[1]}x{size[0]}; give image_size to resize all")
    return size, bad

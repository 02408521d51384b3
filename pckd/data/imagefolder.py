"""Any folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pckd.data.folder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Files,
    ImageFiles,
    Square,
    decode_all,
    find_split,
    image_size_of,
    image_statistics,
    list_files,
    same_classes,
    spread,
)
from pckd.data.vision import crop_padding
from registry import DATASETS, DataSplit, UserError

_SMALL_SIDE = 64
_SMALL_TOTAL = 2 * 2**30


@DATASETS.register
def imagefolder(
    root: str | None = None,
    train: bool = True,
    *,
    image_size: int | None = None,
    memory: bool | Literal["auto"] = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> DataSplit:
    """A folder with ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), any usual image format.

    Args:
        root: the folder.
        train: the training split, or else the test split.
        image_size: pixels per side: the shorter side is resized to it and the center cropped. Not needed where all
            images have one size.
        memory: decode everything once into memory (True), or read the files as they are needed (False); ``"auto"``
            decodes where images have at most 64 pixels a side and the training split takes less than 2 GiB.
        mean: per-channel mean of images scaled to [0, 1]. By default that of (10,000 of) the training images in
            memory, ImageNet's where files are read as needed.
        std: per-channel standard deviation, likewise.

    Raises:
        UserError: no such folder, a class without images, classes that differ between the splits, images of mixed
            sizes without ``image_size``, or a file that is no image; with its name.
    """
    if not root:
        raise UserError("imagefolder: give the root folder that holds train/ and test/ or val/")
    if image_size is not None and image_size < 1:
        raise UserError(f"imagefolder: image_size={image_size}: it must be at least 1")
    if memory not in (True, False, "auto"):
        raise UserError(f'imagefolder: memory={memory!r}: it must be True, False or "auto"')
    if (mean is None) != (std is None):
        raise UserError("imagefolder: give both mean and std, or neither")
    for option, value in (("mean", mean), ("std", std)):
        numbers = len(value) if isinstance(value, (list, tuple)) else 1
        if value is not None and numbers != 3:
            raise UserError(f"imagefolder: {option} has {numbers} numbers; give 3, for red, green and blue")
    training = find_split(root, ("train",))
    split = training
    try:
        testing = find_split(root, ("test", "val"))
    except UserError:
        if not train:
            raise
    else:
        same_classes(training, testing)
        split = training if train else testing
    # What the training images are like decides for both splits, so that they are prepared alike.
    source = list_files(training)
    files = source if train else list_files(split)
    size = (image_size, image_size) if image_size else _common_size(source)
    arrange = Square(image_size) if image_size else None
    if memory == "auto":
        memory = max(size) <= _SMALL_SIDE and len(source.paths) * size[0] * size[1] * 3 < _SMALL_TOTAL
    images: Any = decode_all(files.paths, size, arrange) if memory else ImageFiles(files.paths, size, arrange)
    if mean is None or std is None:
        if memory:
            some = spread(len(source.paths), 10_000)
            sample = images[some] if train else decode_all([source.paths[i] for i in some], size, arrange)
            mean, std = image_statistics(sample)
        else:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
    name = f"imagefolder {split.parent.name}/{split.name}"
    padding = crop_padding(min(size))
    return DataSplit(images, files.labels, files.classes, tuple(mean), tuple(std), padding=padding, name=name)


def _common_size(files: Files) -> tuple[int, int]:
    """(H, W) shared by a sample of the files; the others are checked as they are decoded."""
    sample = [files.paths[i] for i in spread(len(files.paths), 100)]
    size = image_size_of(sample[0])
    for path in sample[1:]:
        height, width = image_size_of(path)
        if (height, width) != size:
            raise UserError(
                f"{path} is {width}x{height} and {sample[0]} is {size[1]}x{size[0]}; give image_size to resize all"
            )
    return size

"""Any folder of images, one folder a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch

from pckd.data import folder
from pckd.data.check import check_on_bad_image, say_once
from pckd.data.folder import IMAGENET_MEAN, IMAGENET_STD, Files, ImageFiles, Square
from pckd.data.vision import crop_padding
from registry import DATASETS, BadImages, DataSplit, UserError

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
    white: float | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    unlabeled: bool = False,
) -> DataSplit:
    """A folder with ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), any usual image format.

    Images are read as a viewer shows them on a white page: upright by their EXIF orientation, transparent ones laid on
    white, the first of several frames or pages. Color profiles are not applied. Hidden folders, links that lead back
    into the data set, images beside the class folders and files of other kinds are left out, and a warning counts them.
    Names of class folders are compared and given in Unicode's form NFC, however the disk spells them.

    Images of up to 8 bits a channel, and TIFF of 12 bits, say which value is white. In gray images of 16 bits 65535 is
    taken for it, in those of 32-bit integers 255, in those of floating-point numbers 1. An image is refused where that
    may be wrong: where a value is below 0 or above white, and where no value of 16 bits is above 16383, because images
    of 10, 12 and 14 bits are stored so. ``white`` is then to be given. It holds for all images: none is stretched by
    its own darkest and brightest value.

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
        white: the value that is white in gray images of more than 8 bits. 65535 also accepts dark color images of 16
            bits.
        on_bad_image: what is done about files that cannot be read: ``"stop"`` refuses them, in memory all at once;
            ``"skip"`` leaves them out, and a warning names them (of streamed ones see :class:`registry.DataSplit`).
        unlabeled: train on images without labels: all below ``unlabeled/``, or else below ``train/``, or else below the
            root itself but for ``test/`` and ``val/``. Test images in class folders have labels, others have none; of
            the first, those in class folders of ``train/`` are the ``neighbors``. Without test images give
            ``val_fraction``.

    Raises:
        BadImages: files that are no images; with their names.
        UserError: no such folder, a class without images, classes that differ between the splits, images of mixed
            sizes without ``image_size``, or an image of which it is not known which value is white; with its name.
    """
    if not root:
        raise UserError("imagefolder: give the root folder that holds train/ and test/ or val/")
    if image_size is not None and image_size < 1:
        raise UserError(f"imagefolder: image_size={image_size}: it must be at least 1")
    if memory not in (True, False, "auto"):
        raise UserError(f'imagefolder: memory={memory!r}: it must be True, False or "auto"')
    check_on_bad_image(on_bad_image)
    if white is not None and not (isinstance(white, Real) and 0 < white < math.inf):
        raise UserError(f"imagefolder: white={white!r}: it must be a finite number above 0")
    if (mean is None) != (std is None):
        raise UserError("imagefolder: give both mean and std, or neither")
    for option, value in (("mean", mean), ("std", std)):
        numbers = len(value) if isinstance(value, (list, tuple)) else 1
        if value is not None and numbers != 3:
            raise UserError(f"imagefolder: {option} has {numbers} numbers; give 3, for red, green and blue")
    training = folder.find_unlabeled(root) if unlabeled else folder.find_split(root, ("train",))
    split = training
    try:
        testing = folder.find_split(root, ("test", "val"))
    except UserError as error:
        if not train and unlabeled:
            raise UserError(f"{error}; or hold out some of the training images (val_fraction)") from error
        if not train:
            raise
    else:
        if not unlabeled:
            folder.same_classes(training, testing)
        split = training if train else testing
    # What the training images are like decides for both splits, so that they are prepared alike.
    if unlabeled:
        source = folder.list_unlabeled(training, ("test", "val") if training == Path(root).expanduser() else ())
    else:
        source = folder.list_files(training)
    files = source
    if not train:
        files = folder.list_files(split) if not unlabeled or _has_classes(split) else folder.list_unlabeled(split)
    name = f"imagefolder {split.parent.name}/{split.name}"
    size, unreadable = ((image_size, image_size), []) if image_size else _common_size(source)
    arrange = Square(image_size) if image_size else None
    if memory == "auto":
        memory = max(size) <= _SMALL_SIDE and len(source.paths) * size[0] * size[1] * 3 < _SMALL_TOTAL
    images: Any
    labels = files.labels
    if memory:
        decode = partial(folder.decode_all, size=size, arrange=arrange, white=white, skip=on_bad_image == "skip")
        images, bad = decode(files.paths)
        kept = torch.tensor([i not in bad for i in range(len(labels))])
        labels = labels[kept]
        if bad:
            _say_left_out(name, files, bad, labels)
        if mean is None or std is None:
            some = torch.tensor(folder.spread(len(source.paths), 10_000))
            if train:
                sample = images[(kept.cumsum(0) - 1)[some[kept[some]]]]
            else:
                sample, _ = decode([source.paths[i] for i in some.tolist()])
            mean, std = folder.image_statistics(sample)
    else:
        if unreadable and on_bad_image == "stop":
            raise BadImages(*unreadable)
        images = ImageFiles(files.paths, size, arrange, white=white)
        if mean is None or std is None:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
    options: dict[str, Any] = {"padding": crop_padding(min(size)), "name": name, "on_bad_image": on_bad_image}
    if unlabeled and files.classes and _has_classes(split.parent / "train"):
        alike: dict[str, Any] = {"image_size": image_size, "memory": memory, "mean": mean, "std": std, "white": white}
        options["neighbors"] = imagefolder(root, True, **alike, on_bad_image=on_bad_image)
    return DataSplit(images, labels, files.classes, tuple(mean), tuple(std), **options)


def _has_classes(split: Path) -> bool:
    return split.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in split.iterdir())


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

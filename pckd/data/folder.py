"""Folders of image files, one folder a class: listing, decoding, and reading as they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from registry import UserError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Files",
    "ImageFiles",
    "Square",
    "decode_all",
    "find_split",
    "image_size_of",
    "image_statistics",
    "list_files",
    "read_image",
    "same_classes",
    "spread",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class Files(NamedTuple):
    """The image files of one split."""

    paths: list[str]
    """Sorted within each class."""
    labels: Tensor
    """[M], int64."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted."""


def find_split(root: str | Path, names: Sequence[str]) -> Path:
    """The first of ``root/names`` that is a folder.

    Raises:
        UserError: the root or all of them are missing; says what is there.
    """
    base = Path(root).expanduser()
    # Unlike Path.is_dir, os.path.isdir takes a name that no file can have for one that none has.
    if not os.path.isdir(base):
        raise UserError(f"no folder {base}: give the root that holds train/ and test/ or val/")
    for name in names:
        if (base / name).is_dir():
            return base / name
    there = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in base.iterdir())
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    raise UserError(f"no folder {' or '.join(f'{n}/' for n in names)} in {base}; there is: {shown or 'nothing'}")


def list_files(split: Path) -> Files:
    """All image files below ``split/<class>/``, in a fixed order.

    Raises:
        UserError: no class folder, or one without an image.
    """
    classes = sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(f"no class folders in {split}: it must have one folder of images a class")
    paths: list[str] = []
    counts: list[int] = []
    for name in classes:
        found = [
            os.path.join(folder, file)
            for folder, _, files in os.walk(split / name, followlinks=True)
            for file in files
            if file.lower().endswith(_SUFFIXES) and not file.startswith(".")
        ]
        if not found:
            raise UserError(f"no images in {split / name}: each class folder must have one ({', '.join(_SUFFIXES)})")
        paths += sorted(found)
        counts.append(len(found))
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return Files(paths, labels, tuple(classes))


def same_classes(one: Path, other: Path) -> None:
    """Refuse two splits whose class folders differ, since labels are positions in the sorted list of these."""
    first, second = (
        {entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith(".")}
        for split in (one, other)
    )
    for split, missing in ((other, first - second), (one, second - first)):
        if missing:
            shown = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
            raise UserError(f"{one} and {other} must have the same class folders; {split} lacks {shown}")


def read_image(path: str, arrange: Callable[[Any], Any] | None = None) -> np.ndarray:
    """Decode a file to uint8 [H, W, 3], read-only: grey, palette, CMYK, 16-bit and transparent images become plain RGB.

    Args:
        path: the file.
        arrange: maps the decoded ``PIL.Image`` to another (a resize, a crop).

    Raises:
        UserError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture: Any = image
            if picture.mode.startswith("I"):
                # 16 bits a pixel, of which PIL's own conversion would clip all but the darkest 256 values.
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
            elif picture.mode == "P" and "transparency" in picture.info:
                picture = picture.convert("RGBA")
            if picture.mode != "RGB":
                picture = picture.convert("RGB")
            if arrange is not None:
                picture = arrange(picture)
            return np.asarray(picture)
    except UserError:
        raise
    except Exception as error:
        reason = "the file is empty" if _is_empty(path) else " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable image ({reason}); repair or remove it") from error


def _is_empty(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) == 0


def image_size_of(path: str) -> tuple[int, int]:
    """(height, width), read from the file's head.

    Raises:
        UserError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:
        shape = read_image(path).shape
        return shape[0], shape[1]


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the positions 0 to ``count`` - 1, evenly spaced, so that every class has its share."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


class Square:
    """Resizes the shorter side of a ``PIL.Image`` to ``size`` and crops the center."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"Square({self.size})"

    def __call__(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        if image.size == (self.size, self.size):
            return image
        return ImageOps.fit(image, (self.size, self.size), method=Image.Resampling.BILINEAR)


def decode_all(paths: Sequence[str], size: tuple[int, int], arrange: Callable[[Any], Any] | None = None) -> Tensor:
    """Decode files with a few threads into uint8 [M, 3, H, W] (in memory [M, H, W, 3]).

    Raises:
        UserError: a file that is no image, or of another size than ``size`` = (H, W) after ``arrange``.
    """
    out = np.empty((len(paths), *size, 3), dtype=np.uint8)

    def work(rows: range) -> None:
        for row in rows:
            out[row] = _sized(paths[row], size, arrange)

    # Several pieces a thread, so that one of large files does not hold up the rest.
    pieces = [range(start, min(start + 256, len(paths))) for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, pieces):
            pass
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def _sized(path: str, size: tuple[int, int], arrange: Callable[[Any], Any] | None) -> np.ndarray:
    pixels = read_image(path, arrange)
    if pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise UserError(f"{path} is {width}x{height} and others are {size[1]}x{size[0]}; give image_size to resize all")
    return pixels


def image_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images [M, C, H, W] scaled to [0, 1]."""
    pixels = images.transpose(0, 1).flatten(1)
    # By way of the 256 possible values: exact, and no copy in floating point.
    value = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in pixels:
        share = torch.bincount(channel, minlength=256).double() / channel.numel()
        center = float((share * value).sum())
        mean.append(center)
        std.append(max(float((share * (value - center) ** 2).sum()) ** 0.5, 1e-3))
    return tuple(mean), tuple(std)


class ImageFiles(Dataset):
    """Reads one file an item: a uint8 tensor [3, H, W].

    Args:
        paths: the files.
        size: (H, W) of every item.
        arrange: brings a decoded ``PIL.Image`` to that size; may be random, from torch's global generator.
        plain: the same without randomness, for :meth:`evaluation`; ``arrange`` by default.
    """

    def __init__(
        self,
        paths: Sequence[str],
        size: tuple[int, int],
        arrange: Callable[[Any], Any] | None,
        plain: Callable[[Any], Any] | None = None,
    ) -> None:
        self.paths = list(paths)
        self.size = size
        self.arrange = arrange
        self.plain = plain or arrange

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor(_sized(self.paths[i], self.size, self.arrange)).permute(2, 0, 1)

    def evaluation(self) -> ImageFiles:
        """The same files, read without augmentation."""
        return ImageFiles(self.paths, self.size, self.plain)

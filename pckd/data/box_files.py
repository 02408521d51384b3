"""What data sets of annotated image files share: reading images, masks and boxes, and naming what is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pckd.data.annotated import FROM_FILES, AnnotatedSplit, Annotation
from pckd.data.check import say_once
from pckd.data.folder import ImageFiles, image_size_of, read_image
from registry import BadImages, UserError

__all__ = ["UNKNOWN", "Found", "MaskFiles", "Objects"]
__all__ += ["chosen", "folder_of", "numbers", "read_json", "read_text", "size_of", "split_of"]

UNKNOWN = 254
"""In a table of mask values: one that means nothing."""


class Found(NamedTuple):
    """An object as its file has it."""

    box: Sequence[float]
    """Left, top, right, bottom in pixels; of any order, and anywhere."""
    name: str
    place: Callable[[], str]
    """Where it is written, for messages."""
    crowd: bool = False
    area: float | None = None


class Objects:
    """Makes annotations of what files have, and counts what is left out.

    Args:
        label: of the split, for messages. classes: by their position. others: known ones that are not wanted.
    """

    def __init__(self, label: str, classes: Sequence[str], others: Iterable[str] = ()) -> None:
        self.label, self.others = label, frozenset(others)
        self.numbers = {name: k for k, name in enumerate(classes, 1)}
        self.left: dict[str, list[str]] = {}
        self.unknown: set[str] = set()

    def of(self, found: Iterable[Found], height: float, width: float) -> Annotation:
        """The annotation of an image of this size. Boxes that reach beyond it are cut."""
        boxes, labels, crowd, areas = [], [], [], []
        for each in found:
            left, top, right, bottom = each.box
            box = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
            if each.name in self.others:
                continue
            if each.name not in self.numbers:
                self.unknown.add(each.name)
                self.leave("of unknown classes", each.place)
            elif not (all(map(math.isfinite, each.box)) and right > left and bottom > top):
                self.leave("without area", each.place)
            elif not (box[2] > box[0] and box[3] > box[1]):
                self.leave("outside their image", each.place)
            else:
                boxes.append(box)
                labels.append(self.numbers[each.name])
                crowd.append(each.crowd)
                areas.append(each.area or (box[2] - box[0]) * (box[3] - box[1]))
        others = {"crowd": torch.tensor(crowd, dtype=torch.bool), "area": torch.tensor(areas).float()}
        return Annotation.of(boxes, labels, **others)

    def leave(self, reason: str, place: Callable[[], str]) -> None:
        """Count a box that is left out."""
        places = self.left.setdefault(reason, [])
        places.append("" if places else place())

    def say(self) -> None:
        """Log what has been left out: one line."""
        parts = []
        for reason, places in self.left.items():
            names = sorted(self.unknown) if "unknown" in reason else []
            shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; " if names else ""
            parts.append(f"{len(places):,} {reason} ({shown}the first: {places[0]})")
        if parts:
            say_once(f"{self.label}: {sum(map(len, self.left.values())):,} boxes are left out: {'; '.join(parts)}")


class MaskFiles(ImageFiles):
    """Item i: uint8 [h, w], the class of each pixel, read from a file of whole numbers (a palette's, or gray values).

    Args:
        paths: the files. table: from the value in a file to a class, to ``IGNORED``, or to ``UNKNOWN``.
    """

    def __init__(self, paths: Sequence[str], table: Sequence[int]) -> None:
        # As what is done to an image, the table is a part of the fingerprint.
        super().__init__(paths, (0, 0), tuple(table))  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self.paths[i]) as image:
                values = np.asarray(image)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImages(f"{self.paths[i]}: not a readable mask ({reason})") from error
        if values.ndim != 2:
            raise UserError(f"{self.paths[i]}: a mask must have one value a pixel, the number of its class")
        classes = np.asarray(self.arrange, dtype=np.uint8)[values.clip(0, 255).astype(np.uint8)]
        if (classes == UNKNOWN).any() or values.max() > 255:
            value = int(values[(classes == UNKNOWN) | (values > 255)].max())
            raise UserError(f"{self.paths[i]}: a pixel has the value {value}, which is no class of this data set")
        return torch.from_numpy(classes)


class _Files(ImageFiles):
    """Item i: uint8 [3, h, w] of any size, as it is; refused where it is not of the size that its annotation says."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[tuple[int, int]] | None) -> None:
        super().__init__(paths, (0, 0), None)
        self.sizes = sizes

    def __getitem__(self, i: int) -> Tensor:
        image = read_image(self.paths[i]).permute(2, 0, 1)
        if self.sizes is not None and tuple(image.shape[1:]) != tuple(self.sizes[i]):
            height, width = self.sizes[i]
            seen = f"it is {image.shape[2]}x{image.shape[1]}, and its annotation says {width}x{height}"
            raise BadImages(f"{self.paths[i]}: {seen}")
        return image


def split_of(
    name: str,
    paths: Sequence[str],
    annotations: Sequence[Annotation],
    classes: Sequence[str],
    image_size: int | Sequence[int],
    *,
    masks: Any = None,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> AnnotatedSplit:
    """A split of image files.

    Args:
        image_size: see :class:`pckd.data.annotated.AnnotatedSplit`; one number stands for a square.
        sizes: (height, width) of each image, as its annotation says.

    Raises:
        UserError: there are no images, the first one is missing, or the size is none.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(x, int) and x >= 1 for x in size):
        raise UserError(f"{name}: image_size={image_size}: it must be a number of pixels, or (height, width)")
    for what, files in (("image", paths), ("mask", getattr(masks, "paths", paths))):
        if not files:
            raise UserError(f"{name}: there are no images")
        if not Path(files[0]).is_file():
            raise UserError(f"{name}: the {what} {files[0]} is missing; give the root and the folders that hold them")
    images = _Files(paths, sizes)
    return AnnotatedSplit(
        images, tuple(annotations), tuple(classes), masks, (size[0], size[1]), name=name, augment=FROM_FILES
    )


def chosen(label: str, known: Sequence[str], wanted: Sequence[str] | str | None) -> tuple[str, ...]:
    """The wanted ones of the classes, in the order in which they are wanted; all by default.

    Raises:
        UserError: one is not among them.
    """
    names = (wanted,) if isinstance(wanted, str) else tuple(known if wanted is None else wanted)
    for name in names:
        if name not in known:
            shown = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
            raise UserError(f"{label}: there is no class {name!r}; there are: {shown}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{label}: classes={names}: give one or more, each once")
    return names


def folder_of(label: str, root: str | None, holds: str) -> Path:
    """The root as a path.

    Raises:
        UserError: none is given, or there is no such folder.
    """
    if not root or not Path(root).expanduser().is_dir():
        seen = f"there is no folder {root}" if root else "no root is given"
        raise UserError(f"{label}: {seen}; give the folder that holds {holds}")
    return Path(root).expanduser()


def size_of(path: str) -> tuple[int, int]:
    """(height, width) of an image; (1, 1) where it cannot be read, which is said when it is shown."""
    try:
        return image_size_of(path)
    except BadImages:
        return 1, 1


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); restore the file") from error


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON file of one object with these lists.

    Raises:
        UserError: it cannot be read, or lacks one.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not readable as JSON ({error}); fetch or write the file again") from error
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path}: it has no list {key!r}; give a file with {', '.join(keys)}")
    return content


def numbers(values: Any, count: int, place: str) -> list[float]:
    """So many numbers.

    Raises:
        UserError: they are others; with their place.
    """
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != count:
        raise UserError(f"{place}: there must be {count} numbers, not {values!r}; repair the file")
    return found

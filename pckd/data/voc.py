"""Pascal VOC and data sets in its format: an XML file of objects, or a mask, for each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from torchvision.datasets import VOCDetection

from pckd.data.annotated import IGNORED, AnnotatedSplit
from pckd.data.box_files import (
    UNKNOWN,
    Found,
    MaskFiles,
    Objects,
    chosen,
    folder_of,
    numbers,
    read_text,
    size_of,
    split_of,
)
from registry import DATASETS, UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@DATASETS.register("voc", task="detection")
def voc(
    root: str | None = None,
    train: bool = True,
    *,
    train_set: str | None = None,
    test_set: str | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | Sequence[int] = 512,
    first_pixel: int = 1,
) -> AnnotatedSplit:
    """VOC's format: ``JPEGImages``, ``Annotations`` (one XML file an image) and ``ImageSets/Main``.

    Objects that are marked as difficult are never trained on, and ignored where a detector is measured. Boxes without
    area, outside their image or of unknown classes are left out, and a warning counts them.

    Args:
        root: the folder that holds these three, or a ``VOCdevkit`` around one.
        train: the training split, or else the test split.
        train_set: name of the list of training images; by default ``trainval`` where there is a test set, else
            ``train``.
        test_set: name of the list of test images; by default ``test``, or ``val``.
        classes: names of the classes to keep, in this order; by default all of the training set, sorted.
        image_size: what networks are shown: a square of so many pixels, or (height, width).
        first_pixel: what files call the first pixel of a row: 1 as VOC's own do, or 0.

    Raises:
        UserError: files that are missing or broken, or a class that does not exist.
    """
    label, base = f"voc {'train' if train else 'test'}", _base(root)
    lists = _lists(base / "ImageSets" / "Main", train_set, test_set)
    training = [_objects(base, name, first_pixel) for name in _names(lists[0])]
    known = sorted({each.name for found, _ in training for each in found})
    names = chosen("voc", known, classes)
    stems = _names(lists[0] if train else lists[1])
    there = training if train else [_objects(base, name, first_pixel) for name in stems]
    paths = _images(base, stems)
    collected = Objects(label, names, set(known) - set(names))
    sizes = [size or size_of(path) for (_, size), path in zip(there, paths, strict=True)]
    annotations = [collected.of(found, *size) for (found, _), size in zip(there, sizes, strict=True)]
    collected.say()
    return split_of(label, paths, annotations, names, image_size, sizes=sizes)


@DATASETS.register("voc_segmentation", task="segmentation")
def voc_segmentation(
    root: str | None = None,
    train: bool = True,
    *,
    train_set: str = "train",
    test_set: str = "val",
    classes: Sequence[str] = CLASSES,
    image_size: int | Sequence[int] = 512,
) -> AnnotatedSplit:
    """VOC's format with masks: ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation``.

    Args:
        root: the folder that holds these three, or a ``VOCdevkit`` around one.
        train: the training split, or else the test split.
        train_set: name of the list of training images.
        test_set: name of the list of test images.
        classes: names of the values 1, 2, ... in the masks; 0 is the background, and 255 counts for nothing.
        image_size: what networks are shown: a square of so many pixels, or (height, width).

    Raises:
        UserError: files that are missing or broken.
    """
    label, base = f"voc_segmentation {'train' if train else 'test'}", _base(root)
    stems = _names(_lists(base / "ImageSets" / "Segmentation", train_set, test_set)[0 if train else 1])
    table = [k if k <= len(classes) else UNKNOWN for k in range(255)] + [IGNORED]
    masks = MaskFiles([str(base / "SegmentationClass" / f"{stem}.png") for stem in stems], table)
    return split_of(label, _images(base, stems), (), tuple(classes), image_size, masks=masks)


def _base(root: str | None) -> Path:
    holds = "JPEGImages/, Annotations/ and ImageSets/"
    base = folder_of("voc", root, holds)
    places = (base, *sorted(base.glob("VOC*")), *sorted(base.glob("VOCdevkit/VOC*")))
    found = [place for place in places if (place / "JPEGImages").is_dir()]
    if len(found) != 1:
        several = f"several of them: {', '.join(map(str, found))}" if found else "no JPEGImages/"
        raise UserError(f"voc: in {base} there is {several}; give the folder with {holds}")
    return found[0]


def _lists(folder: Path, train_set: str | None, test_set: str | None) -> tuple[Path, Path]:
    whole = all((folder / f"{name}.txt").is_file() for name in ("trainval", "test"))
    usual = ("trainval", "test") if whole else ("train", "val")
    return folder / f"{train_set or usual[0]}.txt", folder / f"{test_set or usual[1]}.txt"


def _names(path: Path) -> list[str]:
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def _images(base: Path, stems: Sequence[str]) -> list[str]:
    files = {file.stem: str(file) for file in sorted((base / "JPEGImages").iterdir(), reverse=True)}
    return [files.get(stem, str(base / "JPEGImages" / f"{stem}.jpg")) for stem in stems]


def _objects(base: Path, stem: str, first_pixel: int) -> tuple[list[Found], tuple[int, int] | None]:
    """The objects of an image; and its (height, width), where that is said."""
    path = base / "Annotations" / f"{stem}.xml"
    text = read_text(path)
    try:
        content: Any = VOCDetection.parse_voc_xml(ElementTree.fromstring(text))["annotation"]
        found = [_found(path, text, k, each, first_pixel) for k, each in enumerate(content["object"])]
        size = [int(float(content.get("size", {}).get(side, 0))) for side in ("height", "width")]
    except (ElementTree.ParseError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not readable as an annotation of VOC ({error}); repair or remove it") from error
    return found, (size[0], size[1]) if min(size) > 0 else None


def _found(path: Path, text: str, k: int, each: dict[str, Any], first_pixel: int) -> Found:
    def place() -> str:
        starts = [match.start() for match in re.finditer(r"<object\b", text)]
        return f"{path.name}, line {text.count(chr(10), 0, starts[k]) + 1}"

    corners = [each["bndbox"].get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
    left, top, right, bottom = numbers(corners, 4, f"{path}, bndbox of object {k + 1}")
    if right > left and bottom > top:
        left, top = left - first_pixel, top - first_pixel
    return Found((left, top, right, bottom), each["name"], place, each.get("difficult", "0") == "1")

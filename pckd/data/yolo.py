"""Data sets in the format of YOLO: a text file of boxes beside each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pckd.data.annotated import AnnotatedSplit
from pckd.data.box_files import Found, Objects, chosen, folder_of, numbers, read_text, size_of, split_of
from registry import DATASETS, UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@DATASETS.register("yolo", task="detection")
def yolo(
    root: str | None = None,
    train: bool = True,
    *,
    data: str = "data.yaml",
    classes: Sequence[str] | None = None,
    image_size: int | Sequence[int] = 512,
) -> AnnotatedSplit:
    """YOLO's format: ``images/train/a.jpg`` with ``labels/train/a.txt``, and the names of the classes.

    A line of a text file is a class, from 0 on, and center, width and height in shares of the image, or the points of
    an outline. An image without a text file has no object. Boxes without area, outside their image or of unknown
    classes are left out, and a warning counts them.

    Args:
        root: the folder that holds all of it.
        train: the training split, or else the test split.
        data: a YAML file with ``names``, and where the images are: ``train``, and ``test`` or ``val``. Where there is
            none, ``classes.txt`` has one name a line, and ``images/`` holds ``train``, and ``test`` or ``val``.
        classes: names of the classes to keep, in this order; by default all.
        image_size: what networks are shown: a square of so many pixels, or (height, width).

    Raises:
        UserError: files that are missing or broken, or a class that does not exist.
    """
    label = f"yolo {'train' if train else 'test'}"
    base = folder_of("yolo", root, "images/, labels/ and data.yaml or classes.txt")
    known, places = _described(base, base / data)
    names = chosen("yolo", known, classes)
    wanted = ("train",) if train else ("test", "val")
    where = next((places[key] for key in wanted if places.get(key)), None)
    if where is None:
        raise UserError(f"yolo: {base} has no {' or '.join(wanted)} images; say in {data} where they are")
    paths = [str(path) for place in where for path in _images(base, place)]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(size_of, paths))
    collected = Objects(label, names, set(known) - set(names))
    annotations = [collected.of(_found(p, known, *size), *size) for p, size in zip(paths, sizes, strict=True)]
    collected.say()
    return split_of(label, paths, annotations, names, image_size)


def _described(base: Path, path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Names of the classes, and where the images of each split are."""
    if not path.is_file():
        splits = [key for key in ("train", "test", "val") if (base / "images" / key).is_dir()]
        lines = read_text(base / "classes.txt").splitlines()
        return [line.strip() for line in lines if line.strip()], {key: [f"images/{key}"] for key in splits}
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(read_text(path))
        names = content["names"]
        listed = [str(names[k]) for k in sorted(names)] if isinstance(names, dict) else list(map(str, names))
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: it must be YAML with names, and train and val ({reason}); repair it") from error
    # Often it is where the files were on another machine.
    within = str(content.get("path") or "")
    within = within if (base / within).is_dir() else ""
    places = {}
    for key in ("train", "test", "val"):
        given = content.get(key) or []
        listing = given if isinstance(given, list) else [given]
        places[key] = [os.path.join(within, str(each)) for each in listing]
    return listed, places


def _images(base: Path, place: str) -> list[Path]:
    # A path that begins with ../ means a folder of the data set, as in the files of some exporters.
    found = next((p for p in (base / place, base / place.removeprefix("../")) if p.exists()), None)
    if found is None:
        raise UserError(f"yolo: there is no {base / place}; say where the images are")
    if found.is_dir():
        return sorted(path for path in found.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return [found.parent / line.strip() for line in read_text(found).splitlines() if line.strip()]


def _found(image: str, names: Sequence[str], height: int, width: int) -> Iterator[Found]:
    """The objects of an image."""
    parent, name = os.path.split(os.path.splitext(image)[0])
    head, images, tail = f"{parent}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
    path = Path(head, "labels", tail, f"{name}.txt") if images else Path(parent, f"{name}.txt")
    for number, line in enumerate(read_text(path).splitlines() if path.exists() else [], 1):
        if not line.strip():
            continue
        kind, *values = numbers(line.split(), max(5, len(line.split())), f"{path}, line {number}")
        if len(values) == 4:
            x, y, wide, tall = values
            corners = (x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2)
        elif len(values) < 6 or len(values) % 2:
            expected = "4 numbers, or the points of an outline"
            raise UserError(f"{path}, line {number}: after the class there must be {expected}; repair the file")
        else:
            across, down = values[0::2], values[1::2]
            corners = (min(across), min(down), max(across), max(down))
        box = [share * side for share, side in zip(corners, (width, height, width, height), strict=True)]
        label = names[int(kind)] if kind in range(len(names)) else f"class {kind:g}"
        yield Found(box, label, lambda number=number: f"{path.name}, line {number}")  # type: ignore[misc]

"""COCO and data sets in its format: folders of images, and JSON files of their objects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pckd.data.annotated import AnnotatedSplit
from pckd.data.box_files import Found, Objects, chosen, folder_of, numbers, read_json, size_of, split_of
from registry import DATASETS, UserError


@DATASETS.register("coco", task="detection")
def coco(
    root: str | None = None,
    train: bool = True,
    *,
    train_images: str = "train2017",
    test_images: str = "val2017",
    train_json: str = "annotations/instances_train2017.json",
    test_json: str = "annotations/instances_val2017.json",
    classes: Sequence[str] | None = None,
    image_size: int | Sequence[int] = 512,
    empty: bool = True,
    masks: bool = False,
) -> AnnotatedSplit:
    """COCO's format: JSON files with ``images``, ``annotations`` and ``categories``, beside folders of images.

    Crowds are never trained on. Boxes without area, outside their image or of unknown categories are left out, and a
    warning counts them.

    Args:
        root: the folder that holds those below.
        train: the training split, or else the test split.
        train_images: folder of the training images.
        test_images: folder of the test images.
        train_json: objects of the training images.
        test_json: objects of the test images.
        classes: names of the categories to keep, in this order; by default all, by their id.
        image_size: what networks are shown: a square of so many pixels, or (height, width).
        empty: keep training images without an object.
        masks: make masks of the objects' outlines, for segmentation; needs pycocotools.

    Raises:
        UserError: files that are missing or broken, or a class that does not exist.
    """
    label = f"coco {'train' if train else 'test'}"
    base = folder_of("coco", root, f"{train_images} and {train_json}")
    path = base / (train_json if train else test_json)
    content = read_json(path, ("images", "annotations", "categories"))
    try:
        listed = {each["id"]: str(each["name"]) for each in sorted(content["categories"], key=lambda each: each["id"])}
        images = sorted(content["images"], key=lambda each: each["id"])
        files = [str(base / (train_images if train else test_images) / each["file_name"]) for each in images]
        objects = defaultdict(list)
        for each in content["annotations"]:
            objects[each["image_id"]].append(each)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: an entry has no {error}; fetch or write the file again") from error
    known = tuple(dict.fromkeys(listed.values()))
    names = chosen("coco", known, classes)
    collected = Objects(label, names, set(known) - set(names))
    kept, annotations, sizes, outlines = [], [], [], []
    for file, image in zip(files, images, strict=True):
        size = (image.get("height"), image.get("width"))
        height, width = size if all(isinstance(x, int) and x > 0 for x in size) else size_of(file)
        here = objects.pop(image["id"], [])
        annotation = collected.of([_found(path, each, listed) for each in here], height, width)
        if len(annotation) or empty or not train:
            kept.append(file)
            annotations.append(annotation)
            sizes.append((height, width))
            numbered = [(collected.numbers.get(listed.get(each["category_id"], "")), each) for each in here]
            # As text, because the numbers of all outlines as objects would fill the memory.
            outlines.append(json.dumps([(k, each.get("segmentation")) for k, each in numbered if k]) if masks else "")
    for each in (each for rest in objects.values() for each in rest):
        collected.leave("of images that are not listed", lambda each=each: f"{path.name}, annotation {each.get('id')}")  # type: ignore[misc]
    collected.say()
    painted = _Outlines(outlines, sizes) if masks else None
    return split_of(label, kept, annotations, names, image_size, masks=painted, sizes=sizes)


def _found(path: Any, each: dict[str, Any], names: dict[Any, str]) -> Found:
    def place() -> str:
        return f"{path.name}, annotation {each.get('id')}"

    left, top, width, height = numbers(each.get("bbox"), 4, f"{path}, annotation {each.get('id')}, bbox")
    category, area = each.get("category_id"), each.get("area")
    area = area if isinstance(area, (int, float)) and area > 0 else None
    name = names.get(category, f"category {category}")
    return Found((left, top, left + width, top + height), name, place, bool(each.get("iscrowd")), area)


class _Outlines:
    """Item i: uint8 [h, w], painted with the outlines of image i, smaller objects over larger ones."""

    def __init__(self, outlines: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError as error:
            raise UserError(
                "coco: masks need pycocotools: pip install 'pckd[detection]', or leave out masks=True"
            ) from error
        self.outlines, self.sizes = list(outlines), list(sizes)

    def __len__(self) -> int:
        return len(self.outlines)

    def __getitem__(self, i: int) -> Tensor:
        from pycocotools import mask as api

        height, width = self.sizes[i]
        found = []
        for label, outline in json.loads(self.outlines[i]):
            if outline:
                packed = isinstance(outline, dict) and isinstance(outline["counts"], str)
                parts = outline if packed else api.frPyObjects(outline, height, width)
                found.append((label, api.decode(api.merge(parts) if isinstance(parts, list) else parts).astype(bool)))
        painted = np.zeros((height, width), dtype=np.uint8)
        for label, inside in sorted(found, key=lambda each: -int(each[1].sum())):
            painted[inside] = label
        return torch.from_numpy(painted)

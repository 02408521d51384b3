"""Does a data set keep the contract of ``registry.DATASETS``?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pckd.data import Loader
from pckd.data.annotated import IGNORED, AnnotatedLoader, AnnotatedSplit, check_annotated
from pckd.data.check import first_item
from pckd.testing.contract import Contract
from registry import DATASETS, BadImages, DataSplit

LOOKED_AT = 64
"""Images of streamed data that are read, spread evenly."""


def check_dataset(dataset: str | Callable[..., Any], *, root: str | None = None) -> None:
    """Hold a data set to its contract: both of its splits, and that they belong together.

    Of streamed data 64 images a split are read.

    Clauses: builds, DataSplit, not empty, length, uint8, one size, labels, classes, mean and std, difficulty, padding,
    loads, stable, splits agree. Of a data set of detection or segmentation: builds, DataSplit, consistent, images,
    boxes, masks, classes, loads, stable, splits agree.

    Args:
        dataset: a registered name, with options or without, or the function ``(root, train, **options) -> DataSplit``.
        root: where its files are.
    """
    contract = Contract("data set", DATASETS, dataset)
    splits = []
    for train in (True, False):
        with contract.trial(f"train={train}"):
            with contract.clause("builds"):
                split = contract.make(root, train)
            with contract.clause("DataSplit") as expect:
                known = isinstance(split, (DataSplit, AnnotatedSplit))
                expected = "registry.DataSplit, or pckd.data.annotated.AnnotatedSplit"
                expect(known, f"returned {type(split).__name__}", expected)
            splits.append(split)
            if isinstance(split, AnnotatedSplit):
                _annotated(contract, split, root, train)
                continue
            _images(contract, split)
            _labels(contract, split)
            _scaling(contract, split)
            _loads(contract, split, train)
            _stable(contract, split, root, train)
    _agree(contract, *splits)


def _some(split: Any) -> dict[int, Any]:
    """Images that are looked at one by one, by position; where the split skips those that cannot be read, without
    them."""
    items = {}
    for position in sorted({round(i * (len(split) - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}):
        try:
            items[position] = split.images[position]
        except BadImages:
            if split.on_bad_image != "skip":
                raise
    return items


def _annotated(contract: Contract, split: AnnotatedSplit, root: str | None, train: bool) -> None:
    with contract.clause("consistent"):
        check_annotated(split)
    with contract.clause("images") as expect:
        items = _some(split)
        wrong = {f"{x.dtype} {tuple(x.shape)}" for x in items.values() if x.dtype != torch.uint8 or len(x) != 3}
        expect(not wrong, f"images are {', '.join(sorted(wrong))}", "uint8 (3, height, width)")
    with contract.clause("boxes") as expect:
        for i, item in items.items() if split.annotations else ():
            boxes, most = split.annotations[i].boxes, torch.tensor([item.shape[2], item.shape[1]] * 2)
            expect(((boxes >= 0) & (boxes <= most)).all(), f"boxes of image {i} reach beyond it", "boxes within it")
            expect((boxes[:, 2:] > boxes[:, :2]).all(), f"a box of image {i} has no area", "boxes with some")
    with contract.clause("masks") as expect:
        for i, item in items.items() if split.masks is not None else ():
            mask = split.masks[i]
            expect(mask.shape == item.shape[1:], f"mask {i} is {tuple(mask.shape)}", f"{tuple(item.shape[1:])}")
            highest = int(torch.where(mask == IGNORED, 0, mask).max())
            between = f"classes from 0 to {split.num_classes}, or {IGNORED}"
            expect(highest <= split.num_classes, f"mask {i} has a class {highest}", between)
    with contract.clause("classes") as expect:
        names = split.classes
        named = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
        expect(named and len(set(names)) == len(names), f"classes are {names!r}", "a tuple of names, one each")
    with contract.clause("loads") as expect:
        batch: Any = next(iter(AnnotatedLoader(split, 4, train=train).epoch(1)))
        expect(batch.images.isfinite().all(), "a batch is not finite", "finite images")
    with contract.clause("stable") as expect:
        again = contract.make(root, train)
        same = again.objects.boxes.equal(split.objects.boxes) and again.first_object.equal(split.first_object)
        expect(same, "built again, it has other boxes or another order", "the same")
        expect(again.classes == split.classes, "built again, it has other classes", "the same")


def _images(contract: Contract, split: DataSplit) -> None:
    with contract.clause("not empty") as expect:
        expect(len(split) > 0, "the split has no labels", "one image at least")
    with contract.clause("length") as expect:
        size = len(split.images)
        expect(size == len(split), f"{size} images and {len(split)} labels", "one label an image")
    with contract.clause("uint8") as expect:
        in_memory = isinstance(split.images, Tensor)
        items = [split.images] if in_memory else list(_some(split).values())
        others = {type(item).__name__ for item in items if not isinstance(item, Tensor)}
        expect(not others, f"images are {', '.join(others)}", "tensors")
        wrong = {f"{item.dtype} {tuple(item.shape)}" for item in items if item.dtype != torch.uint8}
        expect(not wrong, f"images are {', '.join(sorted(wrong))}", "uint8")
    with contract.clause("one size") as expect:
        shapes = {tuple(item.shape[1:] if in_memory else item.shape) for item in items}
        shown = " and ".join(map(str, sorted(shapes)))
        expect(len(shapes) == 1 and len(next(iter(shapes))) == 3, f"images of shape {shown}", "one (C, H, W)")


def _labels(contract: Contract, split: DataSplit) -> None:
    labels, classes = split.labels, len(split.classes)
    with contract.clause("labels") as expect:
        expect(labels.ndim == 1, f"labels of shape {tuple(labels.shape)}", f"({len(split)},)")
        expect(labels.dtype == torch.int64, f"labels are {labels.dtype}", "torch.int64")
        low, high = int(labels.min()), int(labels.max())
        inside = f"0 to {classes - 1}, for {classes} classes"
        expect(low >= 0 and high < classes, f"labels from {low} to {high}", inside)
    with contract.clause("classes") as expect:
        names = split.classes
        expect(isinstance(names, tuple), f"classes are a {type(names).__name__}", "a tuple of names")
        expect(all(isinstance(name, str) for name in names), "some class names are no text", "a tuple of names")
        expect(len(set(names)) == classes, "two classes have one name", "a name for each")
    if split.difficulty is not None:
        with contract.clause("difficulty") as expect:
            shape, dtype = tuple(split.difficulty.shape), split.difficulty.dtype
            expect(shape == (len(split),), f"difficulty of shape {shape}", f"({len(split)},)")
            expect(split.difficulty.is_floating_point(), f"difficulty is {dtype}", "floating point")
            expect(split.difficulty.isfinite().all(), "difficulty is not finite", "finite numbers")


def _scaling(contract: Contract, split: DataSplit) -> None:
    with contract.clause("mean and std") as expect:
        channels, mean, std = first_item(split).shape[0], split.mean, split.std
        sizes = f"{len(mean)} and {len(std)} numbers"
        expect(len(mean) == len(std) == channels, f"mean and std have {sizes}", f"{channels}, one a channel")
        expect(all(0 <= m <= 1 for m in mean), f"mean is {mean}", "numbers in [0, 1], as of images scaled to it")
        expect(all(0 < s <= 1 for s in std), f"std is {std}", "numbers above 0 and up to 1, as of images scaled to it")
    with contract.clause("padding") as expect:
        padding = split.padding
        expect(isinstance(padding, int) and padding >= 0, f"padding is {padding!r}", "a number of pixels from 0")


def _loads(contract: Contract, split: DataSplit, train: bool) -> None:
    with contract.clause("loads") as expect:
        batch = next(iter(Loader(split, 4, train=train, views=4 if train else 1).epoch(1)))
        expect(batch.views.isfinite().all(), "a batch is not finite", "finite images")


def _stable(contract: Contract, split: DataSplit, root: str | None, train: bool) -> None:
    """A position means one image, in this run and in the one that resumes it."""
    with contract.clause("stable") as expect:
        again = contract.make(root, train)
        expect(again.labels.equal(split.labels), "built again, it has other labels or another order", "the same")
        expect(again.classes == split.classes, "built again, it has other classes", "the same")


def _agree(contract: Contract, train: Any, test: Any) -> None:
    contract.case = "train and test"
    with contract.clause("splits agree") as expect:
        classes = f"{train.num_classes} and {test.num_classes} classes"
        expect(train.classes == test.classes, f"{classes}, or other names", "the same in both splits")
        channels = [first_item(split).shape[0] for split in (train, test)]
        expect(channels[0] == channels[1], f"images of {channels[0]} and {channels[1]} channels", "as many in both")
        same = (train.mean, train.std) == (test.mean, test.std)
        expect(same, "each split is normalized its own way", "the training split's mean and std in both")

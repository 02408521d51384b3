"""Does a data set keep the contract of ``registry.DATASETS``?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pckd.data import Loader
from pckd.data.annotated import AnnotatedSplit
from pckd.data.check import PIXELS, first_item
from pckd.data.views import SCALES
from pckd.testing.annotated import hold_annotated, some_images
from pckd.testing.contract import Contract
from registry import DATASETS, Absent, DataSplit


def check_dataset(dataset: str | Callable[..., Any], *, root: str | None = None, test: bool = True) -> None:
    """Hold a data set to its contract: both of its splits, and that they belong together.

    Of streamed data 64 images a split are read.

    Clauses: builds, DataSplit, not empty, length, pixels, one size, labels, classes, mean and std, difficulty, padding,
    loads, stable, splits agree.

    A data set of detection or segmentation is held to the clauses of :mod:`pckd.testing.annotated` instead.

    Args:
        dataset: a registered name, with options or without, or the function ``(root, train, **options) -> DataSplit``.
        root: where its files are. test: whether its test split is looked at; it may have none with ``val_fraction``.
    """
    contract = Contract("data set", DATASETS, dataset)
    splits = []
    for train in (True, False) if test else (True,):
        with contract.trial(f"train={train}"):
            with contract.clause("builds"):
                split = contract.make(root, train)
            with contract.clause("DataSplit") as expect:
                known = isinstance(split, (DataSplit, AnnotatedSplit))
                expected = "registry.DataSplit, or pckd.data.annotated.AnnotatedSplit"
                expect(known, f"returned {type(split).__name__}", expected)
            splits.append(split)
            if isinstance(split, AnnotatedSplit):
                hold_annotated(contract, split, root, train)
                continue
            _images(contract, split)
            _labels(contract, split)
            _scaling(contract, split)
            _loads(contract, split, train)
            _stable(contract, split, root, train)
    if test:
        _agree(contract, *splits)


def _images(contract: Contract, split: DataSplit) -> None:
    with contract.clause("not empty") as expect:
        expect(len(split) > 0, "the split has no labels", "one image at least")
    with contract.clause("length") as expect:
        size = len(split.images)
        expect(size == len(split), f"{size} images and {len(split)} labels", "one label an image")
    with contract.clause("pixels") as expect:
        in_memory = isinstance(split.images, Tensor)
        items = [split.images] if in_memory else list(some_images(split).values())
        others = {type(item).__name__ for item in items if not isinstance(item, Tensor)}
        expect(not others, f"images are {', '.join(others)}", "tensors")
        wrong = {f"{item.dtype} {tuple(item.shape)}" for item in items if item.dtype not in SCALES}
        expect(not wrong, f"images are {', '.join(sorted(wrong))}", PIXELS)
    with contract.clause("one size") as expect:
        shapes = {tuple(item.shape[1:] if in_memory else item.shape) for item in items}
        shown = " and ".join(map(str, sorted(shapes)))
        expect(len(shapes) == 1 and len(next(iter(shapes))) == 3, f"images of shape {shown}", "one (C, H, W)")


def _labels(contract: Contract, split: DataSplit) -> None:
    labels, classes = split.labels, len(split.classes)
    with contract.clause("labels") as expect:
        if isinstance(labels, Absent):
            # Of several labels an image the loader has checked the targets.
            labels = torch.zeros(len(split), dtype=torch.int64)
        expect(labels.ndim == 1, f"labels of shape {tuple(labels.shape)}", f"({len(split)},)")
        expect(labels.dtype == torch.int64, f"labels are {labels.dtype}", "torch.int64")
        low, high = int(labels.min()), int(labels.max())
        inside = f"0 to {classes - 1}, for {classes} classes"
        inside += ", or all -1, where there are none"
        expect(not split.labeled or (low >= 0 and high < classes), f"labels from {low} to {high}", inside)
    with contract.clause("classes") as expect:
        names = split.classes
        expect(isinstance(names, tuple), f"classes are a {type(names).__name__}", "a tuple of names")
        expect(all(isinstance(name, str) for name in names), "some class names are no text", "a tuple of names")
        named = [name for name in names if name]
        expect(len(set(named)) == len(named), "two classes have one name", "a name for each")
    if split.difficulty is not None:
        with contract.clause("difficulty") as expect:
            shape, dtype = tuple(split.difficulty.shape), split.difficulty.dtype
            expect(shape == (len(split),), f"difficulty of shape {shape}", f"({len(split)},)")
            expect(split.difficulty.is_floating_point(), f"difficulty is {dtype}", "floating point")
            expect(split.difficulty.isfinite().all(), "difficulty is not finite", "finite numbers")


def _scaling(contract: Contract, split: DataSplit) -> None:
    with contract.clause("mean and std") as expect:
        first, mean, std = first_item(split), split.mean, split.std
        channels = len(first)
        sizes = f"{len(mean)} and {len(std)} numbers"
        expect(len(mean) == len(std) == channels, f"mean and std have {sizes}", f"{channels}, one a channel")
        if first.is_floating_point():
            return  # in units of its own
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
        facts = [[x for x in (of.labels, of.targets) if isinstance(x, Tensor)] for of in (again, split)]
        expect(all(map(torch.equal, *facts)), "built again, it has other labels or another order", "the same")
        expect(again.classes == split.classes, "built again, it has other classes", "the same")


def _agree(contract: Contract, train: Any, test: Any) -> None:
    contract.case = "train and test"
    with contract.clause("splits agree") as expect:
        classes = f"{train.num_classes} and {test.num_classes} classes"
        unlabeled = isinstance(train, DataSplit) and not train.labeled
        same = unlabeled or train.classes == test.classes
        expect(same, f"{classes}, or other names", "the same in both splits")
        channels = [first_item(split).shape[0] for split in (train, test)]
        expect(channels[0] == channels[1], f"images of {channels[0]} and {channels[1]} channels", "as many in both")
        same = (train.mean, train.std) == (test.mean, test.std)
        expect(same, "each split is normalized its own way", "the training split's mean and std in both")

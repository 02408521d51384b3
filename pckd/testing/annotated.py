"""Does a data set of detection or segmentation keep the contract? What its splits are held to."""

from __future__ import annotations

from typing import Any

import torch

from pckd.data.annotated import IGNORED, AnnotatedLoader, AnnotatedSplit, check_annotated
from pckd.testing.contract import Contract
from registry import BadImages

__all__ = ["hold_annotated", "some_images"]

LOOKED_AT = 64
"""Images of streamed data that are read, spread evenly."""


def some_images(split: Any) -> dict[int, Any]:
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


def hold_annotated(contract: Contract, split: AnnotatedSplit, root: str | None, train: bool) -> None:
    """Hold one split to the clauses that are not those of any data set.

    Clauses: consistent, images, boxes, masks, classes, loads, stable.
    """
    with contract.clause("consistent"):
        check_annotated(split)
    with contract.clause("images") as expect:
        items = some_images(split)
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

"""Parts of a split: the first so many of a seeded order, or a share held out for validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pckd.data.check import name_of
from pckd.data.views import as_bits
from registry import Absent, DataSplit, UserError

__all__ = ["Part", "hold_out", "limit"]


def limit(split: DataSplit, n: int, seed: int = 0) -> DataSplit:
    """``n`` images of the split, in its own order: of a seeded permutation the first of each class, then the rest.

    Each class has an image where ``n`` is large enough for all. For one seed, a smaller part lies within each larger
    one. Works for data in memory and streamed data.

    Raises:
        UserError: ``n`` is below 1 or above the split's size.
    """
    if not 1 <= n <= len(split):
        raise UserError(f"cannot take {n} images of {name_of(split)}: it has {len(split)}; give 1 to {len(split)}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    if not isinstance(split, DataSplit):
        return split.part(order[:n].sort().values, split.name)
    leads = torch.zeros(len(split), dtype=torch.bool)
    if not isinstance(split.labels, Absent):
        leads[np.unique(split.labels[order].numpy(), return_index=True)[1]] = True
    order = torch.cat([order[leads], order[~leads]])
    return _part(split, order[:n].sort().values, split.name)


def hold_out(split: DataSplit, fraction: float, seed: int = 0) -> tuple[DataSplit, DataSplit]:
    """Divide a training split into (train, validation), the same share of each class held out.

    Streamed data that is augmented as it is read is shown to the validation part without augmentation, where its
    data set has a method ``evaluation()`` that returns itself so.

    Args:
        split: what to divide.
        fraction: share held out, above 0 and below 1; per class it is rounded to whole images.
        seed: which images.

    Raises:
        UserError: ``fraction`` is not between 0 and 1, or so close to one of them that a part would be empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"cannot hold out the fraction {fraction}: it must be above 0 and below 1")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(split), dtype=torch.bool)
    if isinstance(split, DataSplit) and split.labeled and not isinstance(split.labels, Absent):
        labels = split.labels[order]
        for k in range(split.num_classes):
            of_class = order[labels == k]
            held[of_class[: round(fraction * len(of_class))]] = True
    else:
        held[order[: round(fraction * len(split))]] = True
    if not held.any() or held.all():
        raise UserError(
            f"cannot hold out the fraction {fraction} of {name_of(split)}: "
            f"with {len(split)} images in {split.num_classes} classes one part would be empty"
        )
    train, validation = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    name = split.name and f"{split.name} "
    return _part(split, train, f"{name}train part"), _part(split, validation, f"{name}held out", evaluation=True)


def _part(split: Any, index: Tensor, name: str, evaluation: bool = False) -> Any:
    if not isinstance(split, DataSplit):
        return split.part(index, name, evaluation)
    images: Any
    if isinstance(split.images, Tensor):
        # Indexed as [M, H, W, C], so that the memory keeps that layout where it has it.
        images = as_bits(split.images).permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2).view(split.images.dtype)
    else:
        images = Part(split.images, index)
        images = images.evaluation() if evaluation else images
    difficulty = None if split.difficulty is None else split.difficulty[index]
    labels = split.labels if isinstance(split.labels, Absent) else split.labels[index]
    targets = None if split.targets is None else split.targets[index]
    parts = {"images": images, "labels": labels, "difficulty": difficulty, "targets": targets}
    return dataclasses.replace(split, name=name, **parts)


class Part(Dataset):
    """Some items of a data set; it can be asked for them without augmentation, or by given random numbers.

    Args:
        dataset: the whole. indices: int64, a tensor, which the processes that read share.
    """

    def __init__(self, dataset: Any, indices: Tensor) -> None:
        self.dataset, self.indices = dataset, indices
        if hasattr(dataset, "drawn"):
            self.draws, self.drawn = dataset.draws, self._drawn
        self.cuts = getattr(dataset, "cuts", False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[int(self.indices[i])]

    def _drawn(self, i: int, numbers: Sequence[float]) -> Any:
        return self.dataset.drawn(int(self.indices[i]), numbers)

    def cut(self, i: int, numbers: Sequence[float]) -> Any:
        return self.dataset.cut(int(self.indices[i]), numbers)

    def evaluation(self) -> Part:
        whole = self.dataset
        return Part(whole.evaluation() if hasattr(whole, "evaluation") else whole, self.indices)

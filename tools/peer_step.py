"""The training loop of RepDistiller (github.com/HobbitLong/RepDistiller), as it stands in a checkout of the user's.

Its networks, losses, loader and loop are imported from there; only its data set is replaced, by random images of
CIFAR-100's shape. ``benchmark_speed.py --peer DIR`` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision import datasets

from registry import UserError

METHODS: dict[str, tuple[str, tuple[str, str], dict[str, float]]] = {
    "kd": ("kd", ("KD", "DistillKL"), {"gamma": 0.1, "alpha": 0.9, "beta": 0.0}),
    "at": ("attention", ("AT", "Attention"), {"gamma": 1.0, "alpha": 0.0, "beta": 1000.0}),
    "rkd": ("rkd", ("RKD", "RKDLoss"), {"gamma": 1.0, "alpha": 0.0, "beta": 1.0}),
    "sp": ("similarity", ("SP", "Similarity"), {"gamma": 1.0, "alpha": 0.0, "beta": 3000.0}),
}
"""This library's name of a method to theirs, the class of its loss, and the weights of their scripts."""
MOMENTUM, WEIGHT_DECAY, TEMPERATURE = 0.9, 5e-4, 4
IMAGES = 50_000


class Drawn(datasets.CIFAR100):
    """Random images in the place of CIFAR-100's, read as they are."""

    def __init__(
        self, root: Any, train: bool = True, transform: Any = None, target_transform: Any = None, **_: Any
    ) -> None:
        super(datasets.CIFAR10, self).__init__(root, transform=transform, target_transform=target_transform)
        draw = np.random.default_rng(0)
        self.data = draw.integers(0, 256, (IMAGES if train else 100, 32, 32, 3), dtype=np.uint8)
        self.targets = draw.integers(0, 100, len(self.data)).tolist()


class Peer:
    """An epoch of so many steps at a time of their loop.

    Args:
        checkout: the folder. pair: ``"resnet56>resnet20"``. method: of :data:`METHODS`.

    Raises:
        UserError: the folder is no such checkout, or it has no such network.
    """

    def __init__(self, checkout: str, pair: str, method: str, batch_size: int, lr: float, workers: int = 2) -> None:
        folder = Path(checkout).expanduser().resolve()
        if not (folder / "helper" / "loops.py").is_file():
            raise UserError(f"--peer {checkout}: no helper/loops.py there; give a checkout of RepDistiller")
        sys.path.insert(0, str(folder))
        datasets.CIFAR100 = Drawn  # before theirs is derived from it
        import distiller_zoo  # type: ignore[import-not-found]
        from dataset.cifar100 import get_cifar100_dataloaders  # type: ignore[import-not-found]
        from helper.loops import train_distill  # type: ignore[import-not-found]
        from models import model_dict  # type: ignore[import-not-found]

        names = pair.split(">")
        if unknown := [name for name in names if name not in model_dict]:
            raise UserError(f"--peer: RepDistiller has no network {unknown[0]}; it has {', '.join(model_dict)}")
        theirs, (_, loss), weights = METHODS[method]
        self.teacher, self.student = (model_dict[name](num_classes=100) for name in names)
        self.options = argparse.Namespace(distill=theirs, print_freq=10**9, **weights)
        divergence = distiller_zoo.DistillKL(TEMPERATURE)
        criterion = divergence if theirs == "kd" else getattr(distiller_zoo, loss)()
        self.losses = nn.ModuleList([nn.CrossEntropyLoss(), divergence, criterion])
        self.networks = nn.ModuleList([self.student, self.teacher])
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
        if torch.cuda.is_available():
            self.networks.cuda()
            self.losses.cuda()
        self._train = train_distill
        self._batches = self._endless(get_cifar100_dataloaders(batch_size, workers, is_instance=True)[0])
        self.steps = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return islice(self._batches, self.steps)

    def epoch(self, number: int, steps: int) -> None:
        """Train so many steps."""
        self.steps = steps
        with contextlib.redirect_stdout(io.StringIO()):
            self._train(number, self, self.networks, self.losses, self.optimizer, self.options)

    @staticmethod
    def _endless(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

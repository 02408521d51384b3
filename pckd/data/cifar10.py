"""CIFAR-10 (Krizhevsky, 2009)."""

from __future__ import annotations

from pckd.data.vision import read_cifar
from registry import DATASETS, DataSplit

_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


@DATASETS.register
def cifar10(root: str | None = None, train: bool = True, *, download: bool = True) -> DataSplit:
    """CIFAR-10: 50,000 + 10,000 images, 10 classes, 32x32 color.

    Args:
        root: folder of the downloaded files; ``data`` by default.
        train: the training split, or else the test split.
        download: fetch the files where they are not there.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
    return read_cifar("CIFAR10", root, train, mean=_MEAN, std=_STD, download=download)

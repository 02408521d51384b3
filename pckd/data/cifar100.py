"""CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

from pckd.data.vision import read_cifar
from registry import DATASETS, DataSplit

_MEAN = (0.5071, 0.4867, 0.4408)
_STD = (0.2675, 0.2565, 0.2761)


@DATASETS.register
def cifar100(root: str | None = None, train: bool = True, *, download: bool = True) -> DataSplit:
    """CIFAR-100: 50,000 + 10,000 images, 100 classes, 32x32 color.

    Args:
        root: folder of the downloaded files; ``data`` by default.
        train: the training split, or else the test split.
        download: fetch the files where they are not there.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
    return read_cifar("CIFAR100", root, train, mean=_MEAN, std=_STD, download=download)

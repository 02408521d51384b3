"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

import torch

from pckd.data.vision import DEFAULT_ROOT, find_or_download
from registry import DATASETS, DataSplit


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
    return _read("CIFAR10", root, train, download, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


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
    return _read("CIFAR100", root, train, download, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def _read(
    variant: str, root: str | None, train: bool, download: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> DataSplit:
    from torchvision import datasets

    dataset, name, folder = getattr(datasets, variant), variant.lower(), root or DEFAULT_ROOT
    data = find_or_download(
        lambda fetch: dataset(folder, train, download=fetch),
        name=name,
        root=folder,
        address=dataset.url,
        into=folder,
        download=download,
    )
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    return DataSplit(images, torch.tensor(data.targets), tuple(data.classes), mean, std, name=name)

"""CIFAR-10 (Krizhevsky, 2009)."""

from __future__ import annotations

import torch

from pckd.data.vision import DEFAULT_ROOT, find_or_download
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
    from torchvision import datasets

    folder = root or DEFAULT_ROOT
    data = find_or_download(
        lambda fetch: datasets.CIFAR10(folder, train, download=fetch),
        name="cifar10",
        root=folder,
        address=datasets.CIFAR10.url,
        into=folder,
        download=download,
    )
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    return DataSplit(images, torch.tensor(data.targets), tuple(data.classes), _MEAN, _STD, name="cifar10")

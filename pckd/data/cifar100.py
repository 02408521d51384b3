"""CIFAR-100 (Krizhevsky, 2009)."""

from __future__ import annotations

import torch

from pckd.data.vision import DEFAULT_ROOT, find_or_download
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
    from torchvision import datasets

    folder = root or DEFAULT_ROOT
    data = find_or_download(
        lambda fetch: datasets.CIFAR100(folder, train, download=fetch),
        name="cifar100",
        root=folder,
        address=datasets.CIFAR100.url,
        into=folder,
        download=download,
    )
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)
    return DataSplit(images, torch.tensor(data.targets), tuple(data.classes), _MEAN, _STD, name="cifar100")

"""STL-10 (Coates, Lee and Ng, 2011)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from pckd.data.vision import DEFAULT_ROOT, crop_padding, find_or_download
from registry import DATASETS, DataSplit, UserError

_MEAN = (0.4467, 0.4398, 0.4066)
_STD = (0.2603, 0.2566, 0.2713)
_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@DATASETS.register
def stl10(
    root: str | None = None,
    train: bool = True,
    *,
    download: bool = True,
    image_size: int = 96,
    unlabeled: bool = False,
) -> DataSplit:
    """STL-10: 5,000 + 8,000 labeled images, 10 classes, 96x96 color; and 100,000 without labels.

    Args:
        root: folder of the downloaded files; ``data`` by default.
        train: the training split, or else the test split.
        download: fetch the files (2.6 GB) where they are not there.
        image_size: pixels per side; 32 for transfer from networks trained on CIFAR.
        unlabeled: train on the 100,000 images without labels, of these and other classes (2.8 GB of memory at 96
            pixels); the labeled training images are then the test split's ``neighbors``.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
    from torchvision import datasets

    if image_size < 1:
        raise UserError(f"image_size={image_size}: it must be at least 1")
    folder, size = root or DEFAULT_ROOT, (image_size, image_size)
    part = ("unlabeled" if unlabeled else "train") if train else "test"
    data = find_or_download(
        lambda fetch: datasets.STL10(folder, part, download=fetch),
        name="stl10",
        root=folder,
        address=datasets.STL10.url,
        into=folder,
        download=download,
    )
    images = torch.from_numpy(data.data)
    if images.shape[-2:] != size:
        # In pieces, to keep memory small.
        pieces = (F.interpolate(piece.float(), size, mode="bilinear", antialias=True) for piece in images.split(512))
        images = torch.cat([piece.round_().clamp_(0, 255).byte() for piece in pieces])
    labels = torch.from_numpy(data.labels).long()
    classes = () if part == "unlabeled" else _CLASSES
    split = DataSplit(images, labels, classes, _MEAN, _STD, padding=crop_padding(image_size), name="stl10")
    if train or not unlabeled:
        return split
    return replace(split, neighbors=stl10(root, download=download, image_size=image_size))

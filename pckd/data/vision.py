"""What the data sets that torchvision reads have in common: find or download, and say plainly when neither works."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from registry import DataSplit, UserError

__all__ = ["DEFAULT_ROOT", "crop_padding", "find_or_download", "read_cifar", "resize"]

DEFAULT_ROOT = "data"

# Seconds without an answer after which a download counts as failed.
_TIMEOUT = 30.0


def find_or_download(
    build: Callable[[bool], Any], *, name: str, root: str | Path, address: str, into: str | Path, download: bool
) -> Any:
    """``build(False)``, or ``build(True)`` where the files are not there (or not whole) and ``download`` allows it.

    torchvision writes a download under its final name, so that an interrupted one leaves a part there; it checks the
    md5 of the archive before it unpacks it, and of the unpacked files before it reads them, and begins again where
    they differ (of FashionMNIST's unpacked files it does not: see ``fashion_mnist``).

    Args:
        build: makes the torchvision data set, given its ``download`` argument.
        name: of the data set, for messages.
        root: the folder looked in.
        address: what to fetch by hand where there is no network.
        into: the folder in which torchvision expects what was fetched.
        download: whether the network may be used.

    Raises:
        UserError: not there and not to be had; with the folder and the address.
    """
    try:
        return build(False)
    except (RuntimeError, OSError):
        pass
    advice = f"fetch {address} into {into} by hand, then run again with download=True, which will find it there"
    if not download:
        raise UserError(f"{name}: not found, or not whole, in {root}, and download=False; {advice}")
    try:
        with _patience(_TIMEOUT), _contained():
            return build(True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name}: not found in {root}, and the download failed ({reason}); {advice}") from error


def read_cifar(
    variant: str, root: str | None, train: bool, *, mean: tuple[float, ...], std: tuple[float, ...], download: bool
) -> DataSplit:
    """One of torchvision's ``CIFAR10`` and ``CIFAR100`` in memory.

    Raises:
        UserError: the files are not there and cannot be downloaded.
    """
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


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    # torchvision opens its addresses without a time limit and would wait forever behind a silent firewall.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _contained() -> Iterator[None]:
    # torchvision unpacks an archive of the right md5 with tarfile's own default, which before Python 3.14 writes
    # wherever the names in the archive say; and md5 is no protection against one made to have the same.
    strict = getattr(tarfile, "data_filter", None)
    before = getattr(tarfile.TarFile, "extraction_filter", None)
    if strict is not None:
        tarfile.TarFile.extraction_filter = staticmethod(strict)
    try:
        yield
    finally:
        if strict is not None:
            tarfile.TarFile.extraction_filter = before


def resize(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images [M, C, H, W] to [M, C, size, size]: bilinear, antialiased, in pieces to keep memory small."""
    if size < 1:
        raise UserError(f"image_size={size}: it must be at least 1")
    if images.shape[-2:] == (size, size):
        return images
    pieces = [
        F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
        for piece in images.split(512)
    ]
    return torch.cat(pieces)


def crop_padding(size: int) -> int:
    """Padding of the random crop for images of ``size`` pixels: 4 at the usual 32, in proportion elsewhere."""
    return max(1, round(size / 8))

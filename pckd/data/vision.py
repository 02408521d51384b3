"""What the data sets that torchvision reads have in common: find or download, or say why neither works."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry import UserError

__all__ = ["DEFAULT_ROOT", "crop_padding", "find_or_download"]

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
        build: makes the torchvision data set, given its ``download`` argument. root: the folder looked in.
        name, address, into: for messages: the data set, what to fetch by hand, and where torchvision expects it.
    """
    try:
        return build(False)
    except (RuntimeError, OSError):
        pass
    advice = f"fetch {address} into {into} by hand, then run again with download=True, which will find it there"
    if not download:
        raise UserError(f"{name}: not found, or not whole, in {root}, and download=False; {advice}")
    try:
        with _careful():
            return build(True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name}: not found in {root}, and the download failed ({reason}); {advice}") from error


@contextmanager
def _careful() -> Iterator[None]:
    """Inside, a silent server is given up, and an archive writes only into its own folder."""
    timeout, unpacks = socket.getdefaulttimeout(), getattr(tarfile.TarFile, "extraction_filter", None)
    # torchvision opens its addresses without a time limit and would wait forever behind a silent firewall.
    socket.setdefaulttimeout(_TIMEOUT)
    # It unpacks with tarfile's own default, which before Python 3.14 writes wherever the names in the archive say; and
    # md5 is no protection against an archive made to have the same. Pythons without filters do not look at this.
    strict = getattr(tarfile, "data_filter", None)
    tarfile.TarFile.extraction_filter = strict and staticmethod(strict)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        tarfile.TarFile.extraction_filter = unpacks


def crop_padding(size: int) -> int:
    """Padding of the random crop for images of ``size`` pixels: 4 at the usual 32, in proportion elsewhere."""
    return max(1, round(size / 8))

"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017)."""

from __future__ import annotations

from math import prod
from pathlib import Path

from pckd.data.vision import DEFAULT_ROOT, find_or_download
from registry import DATASETS, DataSplit, UserError

_MEAN, _STD = 0.2860, 0.3530


@DATASETS.register
def fashion_mnist(
    root: str | None = None, train: bool = True, *, download: bool = True, channels: int = 1
) -> DataSplit:
    """Fashion-MNIST: 60,000 + 10,000 images, 10 classes, 28x28 grey.

    Args:
        root: folder of the downloaded files; ``data`` by default.
        train: the training split, or else the test split.
        download: fetch the files where they are not there.
        channels: 1, or 3 to repeat the grey channel for networks that take color.

    Raises:
        UserError: the files are not there and cannot be downloaded, or a file is cut short.
    """
    from torchvision import datasets

    if channels not in (1, 3):
        raise UserError(f"fashion_mnist: channels={channels}: it must be 1 (grey) or 3 (grey repeated)")
    folder = Path(root or DEFAULT_ROOT)
    raw = folder / "FashionMNIST" / "raw"
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        _check_whole(raw / f"{'train' if train else 't10k'}-{kind}")
    source = datasets.FashionMNIST
    data = find_or_download(
        lambda fetch: source(folder, train, download=fetch),
        name="fashion_mnist",
        root=folder,
        address=f"{source.mirrors[0]}{{{','.join(file for file, _ in source.resources)}}}",
        into=raw,
        download=download,
    )
    images, mean, std = data.data.unsqueeze(1).repeat(1, channels, 1, 1), (_MEAN,) * channels, (_STD,) * channels
    return DataSplit(images, data.targets.long(), tuple(data.classes), mean, std, name="fashion_mnist")


def _check_whole(file: Path) -> None:
    """Refuse an IDX file of another length than its header says: torchvision only checks that it is there."""
    if not file.is_file():
        return
    with file.open("rb") as stream:
        head = stream.read(16)
    dims, size = head[3] if len(head) > 3 else 3, file.stat().st_size
    shape = [int.from_bytes(head[4 + 4 * d : 8 + 4 * d], "big") for d in range(dims)]
    if len(head) < min(16, 4 + 4 * dims) or size != 4 + 4 * dims + prod(shape):
        raise UserError(
            f"fashion_mnist: {file} is damaged ({size:,} bytes); delete it and run again with download=True"
        )

"""How fast images are read: this library's loader beside torchvision's data sets with Pillow, worker by worker.

``benchmark_speed.py --data`` runs it. Reference: ImageFolder, a random crop, a flip, ToTensor and Normalize for each
image in torch's DataLoader. Ours gives the same: normalized float batches, of random crops and flips.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from pckd.data import Loader
from pckd.data.folder import ImageFiles
from pckd.data.frames import RandomPart
from pckd.engine.memory import keep_freed
from pckd.profiling.measure import interleaved
from pckd.tables import Table
from registry import DATASETS, DataSplit, build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 64
DRAWN, COPIES = 256, 4
"""Images that are drawn where none are given, and files of each."""
LARGE, SMALL = (375, 500), (64, 64)
"""Height and width of these."""
IMAGENET = 1_281_167
"""Files of a set whose first batch is waited for."""


def draw_images(folder: Path, size: tuple[int, int], seed: int = 0) -> None:
    """JPEG files of noise whose amplitude falls with the frequency, as photographs' does, in two classes."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def plane() -> np.ndarray:
        noise = draw.normal(size=(2, *frequency.shape)) / frequency
        values = np.fft.irfft2(noise[0] + 1j * noise[1], s=size)
        return values / values.std()

    for split, count in (("train", DRAWN), ("val", 2)):
        for number in range(count):
            light = plane()
            pixels = np.stack([50 * (light + 0.4 * plane()) + 118 for _ in range(3)], -1).clip(0, 255).astype(np.uint8)
            place = folder / split / f"class{number % 2}" / f"{number:04}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place, quality=90)
            for copy in range(1, COPIES if split == "train" else 1):
                os.link(place, place.with_name(f"{number:04}-{copy}.jpg"))


def pack(folder: Path, shard: Path) -> None:
    """The training images as a shard of WebDataset, ``train-000000.tar``, and two to measure on."""
    shard.mkdir()
    for split in ("train", "val"):
        with tarfile.open(shard / f"{split}-000000.tar", "w") as file:
            for path in sorted(folder.glob(f"{split}/*/*.jpg")):
                for suffix, data in (("jpg", path.read_bytes()), ("cls", path.parent.name[-1].encode())):
                    entry = tarfile.TarInfo(f"{path.stem}.{suffix}")
                    entry.size = len(data)
                    file.addfile(entry, io.BytesIO(data))


def reference(folder: Path, size: int, padding: int = 0) -> Dataset:
    """What programs of the field read."""
    crop = T.RandomCrop(size, padding=padding) if padding else T.RandomResizedCrop(size)
    steps = [crop, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
    return ImageFolder(str(folder / "train"), T.Compose(steps))


def rate(epochs: Iterator[Iterable[Any]]) -> Callable[[], float]:
    """A measurement: images a second of an epoch, from its second batch on."""

    def measured() -> float:
        read = iter(next(epochs))
        next(read)
        started = time.perf_counter()
        count = sum(1 for _ in read)
        return BATCH * count / (time.perf_counter() - started)

    return measured


def cases(data_root: str | None, temporary: Path) -> Iterator[tuple[str, Dataset, DataSplit]]:
    """Name, the reference's data set and ours."""
    root, shards, small = Path(data_root or temporary / "photos"), temporary / "shards", temporary / "small"
    if data_root is None:
        draw_images(root, LARGE)
        pack(root, shards)
        draw_images(small, SMALL)
    yield "JPEG files to 224 pixels", reference(root, 224), build(DATASETS, "imagenet", str(root), True)
    if data_root is None:
        split = build(DATASETS, "filelist(image_size=224, min_area=0.08)", str(shards), True)
        yield "the same in tar shards", reference(root, 224), split
        split = build(DATASETS, "imagefolder(memory=False)", str(small), True)
        yield "64-pixel JPEG files", reference(small, 64, padding=8), split


def epochs_of(loader: Any) -> Iterator[Iterable[Any]]:
    epoch = 0
    while True:
        epoch += 1
        yield loader.epoch(epoch) if isinstance(loader, Loader) else loader


def measure(data_root: str | None, workers: list[int], rounds: int, device: torch.device) -> Iterator[Table]:
    """Tables of images a second, and of the wait for a large set's first batch."""
    keep_freed(device.type == "cpu")  # as in a training
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, theirs, split in cases(data_root, Path(folder)):
            for count in workers:
                usual = DataLoader(
                    theirs, BATCH, shuffle=True, drop_last=True, num_workers=count, persistent_workers=count > 0
                )
                own = Loader(split, BATCH, train=True, num_workers=count, device=device)
                found = interleaved({"reference": rate(epochs_of(usual)), "ours": rate(epochs_of(own))}, rounds)
                ratios = [one / other for one, other in zip(found["ours"], found["reference"], strict=True)]
                shown = [f"{median(found[kind]):.0f}" for kind in ("reference", "ours")]
                rows.append(
                    [name, str(count), *shown, f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"]
                )
        header = ["images", "workers", "reference, images/s", "ours", "ours / reference, median (range)"]
        yield Table(f"Reading images: batches of {BATCH}, {rounds} rounds in turns", header, rows)
        yield first_batches(Path(folder), data_root, device)


class Listed(Dataset):
    """As ImageFolder is once it has listed its files: a Python list."""

    def __init__(self, paths: list[str], transform: Callable[[Any], Any]) -> None:
        self.samples, self.transform = [(path, 0) for path in paths], transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        from PIL import Image

        path, label = self.samples[i]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def first_batches(temporary: Path, data_root: str | None, device: torch.device) -> Table:
    """The wait for the first batch of an epoch of as many files as ImageNet has, which are few files many times."""
    root = Path(data_root or temporary / "photos")
    some = [str(path) for path in sorted(root.glob("train/*/*"))]
    paths = (some * (IMAGENET // len(some) + 1))[:IMAGENET]
    steps = T.Compose([T.RandomResizedCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)])
    split = DataSplit(
        ImageFiles(paths, (224, 224), RandomPart(224)),
        torch.zeros(IMAGENET, dtype=torch.int64),
        ("a", "b"),
        MEAN,
        STD,
        padding=0,
    )

    def wait(loader: Any, epoch: int) -> tuple[float, int]:
        started = time.perf_counter()
        batches: Any = iter(loader.epoch(epoch) if isinstance(loader, Loader) else loader)
        next(batches)
        seconds = time.perf_counter() - started
        for _ in range(50):
            next(batches)
        iterator = batches if not isinstance(loader, Loader) else loader._workers._iterator
        (worker,) = iterator._workers
        return seconds, own_memory(worker.pid)

    rows = []
    for name, loader in (
        ("reference", DataLoader(Listed(paths, steps), BATCH, shuffle=True, num_workers=1)),
        ("ours", Loader(split, BATCH, train=True, num_workers=1, device=device)),
    ):
        seconds, memory = wait(loader, 1)
        rows.append([name, f"{seconds:.2f} s", f"{memory / 2**20:.0f} MiB" if memory else "not known here"])
    title = f"An epoch of {IMAGENET:,} files, one worker"
    return Table(title, ["loader", "first batch after", "memory of the worker's own after 50 batches"], rows)


def own_memory(process: int) -> int:
    """Bytes that a process shares with no other; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))

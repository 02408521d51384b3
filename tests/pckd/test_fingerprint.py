"""Fingerprints: another one for everything that a result follows from, and the same one wherever the files lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import pckd
from model_zoo import Preprocessing, set_preprocessing
from pckd.data import limit
from pckd.data.frames import Square
from pckd.engine.fingerprint import SAMPLE, code_fingerprint, network_fingerprint, split_fingerprint
from registry import BACKBONES, DATASETS, DataSplit, UserError, build, load_plugin


def write_images(root: Path, count: int = 3) -> Path:
    """``train`` and ``test`` with two classes of BMP files, whose size does not depend on what they show."""
    for split in ("train", "test"):
        for k, name in enumerate(("car", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10, 10), (90 * k, 10 * i, 5)).save(root / split / name / f"{i}.bmp")
    return root


def streamed(root: Path, **options: Any) -> DataSplit:
    split: DataSplit = build(DATASETS, "imagefolder", str(root), True, memory=False, **options)
    return split


def with_pixel(split: DataSplit) -> DataSplit:
    images = split.images.clone()
    images[7, 1, 2, 3] ^= 1
    return replace(split, images=images)


IN_MEMORY: dict[str, tuple[Callable[[DataSplit], DataSplit], str]] = {
    "a pixel": (with_pixel, "images"),
    "an image less": (lambda split: limit(split, len(split) - 1), "images labels"),
    "a label": (lambda split: replace(split, labels=split.labels.where(torch.arange(48) != 5, 2)), "labels"),
    "order of classes": (lambda split: replace(split, classes=split.classes[::-1]), "classes"),
    "mean": (lambda split: replace(split, mean=(0.5, 0.5, 0.4)), "mean"),
    "std": (lambda split: replace(split, std=(0.25, 0.25, 0.2)), "std"),
    "padding": (lambda split: replace(split, padding=2), "padding"),
    "name": (lambda split: replace(split, name="moved"), ""),
    "type of labels": (lambda split: replace(split, labels=split.labels.to(torch.uint8)), ""),
    "layout": (lambda split: replace(split, images=split.images.to(memory_format=torch.channels_last)), ""),
}


@pytest.mark.parametrize(("change", "parts"), IN_MEMORY.values(), ids=IN_MEMORY)
def test_data_in_memory_count_with_all_that_is_learned_from(
    change: Callable[[DataSplit], DataSplit], parts: str, tiny_data: pckd.Data
) -> None:
    before, now = split_fingerprint(tiny_data.train), split_fingerprint(change(tiny_data.train))
    assert " ".join(key for key in before if before[key] != now[key]) == parts


FILES: dict[str, Callable[[Path], object]] = {
    "one is gone": lambda folder: (folder / "cat" / "1.bmp").unlink(),
    "one has another name": lambda folder: (folder / "cat" / "1.bmp").rename(folder / "cat" / "9.bmp"),
    "one is in another class": lambda folder: (folder / "cat" / "1.bmp").rename(folder / "car" / "7.bmp"),
    "one has another size": lambda folder: Image.new("RGB", (10, 12)).save(folder / "car" / "0.bmp"),
    "one shows something else": lambda folder: Image.new("RGB", (10, 10)).save(folder / "cat" / "2.bmp"),
}


@pytest.mark.parametrize("change", FILES.values(), ids=FILES)
def test_files_count_with_names_sizes_and_content(change: Callable[[Path], object], tmp_path: Path) -> None:
    before = split_fingerprint(streamed(write_images(tmp_path), image_size=8))
    change(tmp_path / "train")
    assert split_fingerprint(streamed(tmp_path, image_size=8))["images"] != before["images"]


def test_files_may_lie_elsewhere_and_be_newer(tmp_path: Path) -> None:
    whole = streamed(write_images(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    os.utime(tmp_path / "elsewhere" / "b" / "train" / "cat" / "0.bmp", (1, 1))
    moved = streamed(tmp_path / "elsewhere" / "b")
    assert split_fingerprint(moved) == split_fingerprint(whole)
    assert split_fingerprint(limit(moved, 4)) == split_fingerprint(limit(whole, 4))
    assert split_fingerprint(limit(moved, 4)) != split_fingerprint(limit(whole, 5))
    assert split_fingerprint(streamed(tmp_path / "a", image_size=8))["images"] != split_fingerprint(whole)["images"]
    assert repr(Square(8)) == "Square(8)"


def test_of_many_files_a_fixed_sample_is_read(tmp_path: Path) -> None:
    split = streamed(write_images(tmp_path, count=SAMPLE))
    before = split_fingerprint(split)
    # Of 128 files every second one is read, beginning with the first.
    for number in (1, 0):
        Image.new("RGB", (10, 10), (1, 1, 1)).save(tmp_path / "train" / "car" / f"{number}.bmp")
        assert (split_fingerprint(split) == before) == (number == 1)
    (tmp_path / "train" / "cat" / "1.bmp").unlink()
    with pytest.raises(UserError, match=r"cat/1\.bmp: cannot be read \(No such file or directory\); restore the file"):
        split_fingerprint(split)


class Noisy(Dataset):
    """Images that are augmented as they are read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return self.images[position] ^ torch.randint(0, 2, self.images[position].shape, dtype=torch.uint8)


def test_other_streamed_images_are_read_with_random_numbers_that_are_always_the_same(tiny_data: pckd.Data) -> None:
    split = replace(tiny_data.train, images=Noisy(tiny_data.train.images))
    torch.manual_seed(3)
    first = split_fingerprint(split)
    drawn = torch.rand(())
    assert split_fingerprint(split) == first
    torch.manual_seed(3)
    assert torch.equal(torch.rand(()), drawn)
    other = replace(split, images=Noisy(with_pixel(tiny_data.train).images))
    assert split_fingerprint(other)["images"] != first["images"]
    part = replace(split, images=Subset(split.images, range(48)))
    assert split_fingerprint(part)["images"] != first["images"]


def test_a_network_counts_with_its_weights_and_its_normalization() -> None:
    torch.manual_seed(0)
    network: nn.Module = BACKBONES.get("resnet8")(3)
    before = network_fingerprint(network)
    set_preprocessing(network, Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), ("a", "b", "c")))
    assert network_fingerprint(network) == {**before, "mean": [0.5] * 3, "std": [0.25] * 3}
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).running_mean[0] += 1e-6
    assert network_fingerprint(network)["weights"] != before["weights"]


PLUGIN = """
import torch
from registry import BACKBONES, Output

class Mine(torch.nn.Module):
    def __init__(self, num_classes, in_channels=3):
        super().__init__()
        self.classifier = torch.nn.Linear(in_channels, num_classes)

    def forward(self, x):
        embedding = x.{reduction}((2, 3))
        return Output(self.classifier(embedding), embedding)

BACKBONES.register("mine{number}")(Mine)
"""


@pytest.mark.usefixtures("registries")
def test_code_counts_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for number, reduction in enumerate(("mean", "mean", "amax")):
        path = tmp_path / f"{number}" / "mine.py"
        path.parent.mkdir()
        path.write_text(PLUGIN.format(number=number, reduction=reduction))
        load_plugin(str(path))
        found.append(code_fingerprint(build(BACKBONES, f"mine{number}", 3)))
    assert found[0] == found[1] != found[2]

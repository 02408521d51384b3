"""Small data and networks for tests that train for real, in a second or two."""

from __future__ import annotations

import pytest
import torch

from pckd import Data
from registry import DataSplit


def _split(size: int, seed: int, classes: int = 3, side: int = 8) -> DataSplit:
    """Images whose class is the channel that is bright, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (size,), generator=generator)
    images = torch.randint(0, 120, (size, 3, side, side), generator=generator)
    images[torch.arange(size), labels % 3] += 100
    names = tuple(f"class {k}" for k in range(classes))
    return DataSplit(images.to(torch.uint8), labels, names, (0.5,) * 3, (0.25,) * 3, padding=1, name="tiny")


@pytest.fixture
def tiny_data() -> Data:
    """48 training and 30 test images of 8 x 8 pixels in 3 classes."""
    return Data(_split(48, 0), _split(30, 1), name="tiny")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)

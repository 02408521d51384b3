"""Fixtures of all tests: one thread, registries that forget, and the golden numbers of the published step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from registry import REGISTRIES, Centers, Context, Output, Setup, Shapes

# The tensors of these tests are small: more threads only cost time, and one thread sums in one order.
torch.set_num_threads(1)

# A job that a shell starts in the background ignores the interrupt that some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "pckd" / "golden"


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget after the test what it registered."""
    before = [(registry, registry._snapshot()) for registry in REGISTRIES]
    yield
    for registry, state in before:
        registry._restore(state)


class Golden(SimpleNamespace):
    """Arrays of one file as tensors, and what the losses need made of them."""

    arrays: dict[str, torch.Tensor]
    name: str

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def near(self, key: str) -> Any:
        """What a test compares with: the published number, rtol 1e-4, atol 1e-5."""
        return pytest.approx(self.arrays[f"expected_{key}"].numpy(), rel=1e-4, abs=1e-5)

    @property
    def student(self) -> Output:
        return Output(self["student_logits"], self["student_embedding"])

    @property
    def teacher(self) -> Output:
        return Output(self["teacher_logits"], self["teacher_embedding"])

    @property
    def setup(self) -> Setup:
        return Setup(Shapes.of(self.student), Shapes.of(self.teacher))

    @property
    def views(self) -> int:
        return int(self["views"])

    @property
    def centers(self) -> Centers:
        names = ("student_weight", "teacher_weight", "student_bias", "teacher_bias")
        return Centers(*(self[name] for name in names))

    def context(self, epoch: int = 1, epochs: int = 240) -> Context:
        return Context(
            labels=self["labels"].repeat_interleave(self.views),
            index=torch.arange(len(self["labels"])).repeat_interleave(self.views),
            centers=self.centers,
            views=self.views,
            epoch=epoch,
            epochs=epochs,
        )

    def fill(self, layer: nn.Module, name: str) -> None:
        """Fill a layer with the published weight and bias; a batch norm keeps its fresh running statistics."""
        state = {**layer.state_dict(), "weight": self[f"{name}_weight"], "bias": self[f"{name}_bias"]}
        layer.load_state_dict(state)


@pytest.fixture(scope="session", params=["same", "other"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Published inputs and outputs, for embeddings of one width and of two."""
    with np.load(GOLDEN / f"losses_{request.param}_width.npz") as file:
        arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    return Golden(arrays=arrays, name=request.param)

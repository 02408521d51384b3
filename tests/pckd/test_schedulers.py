"""From difficulty to weight: every scheduler by hand, and how it moves over the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from registry import DIFFICULTY_SCHEDULERS, Centers, Context, Instances, UserError, build

NAMES = DIFFICULTY_SCHEDULERS.names()
GRID = torch.linspace(0, 5, 101)


def context(epoch: int = 1, epochs: int = 240, progress: float | None = None) -> Context:
    progress = (epoch - 1) / epochs if progress is None else progress
    rows, centers = torch.zeros(1, dtype=torch.int64), Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    return Context(Instances(rows), centers, epoch=epoch, epochs=epochs, progress=progress)


def weigh(spec: str, difficulty: Tensor | list[float], **when: Any) -> Tensor:
    values: Tensor = build(DIFFICULTY_SCHEDULERS, spec)(torch.as_tensor(difficulty), context(**when))
    return values


def test_constant() -> None:
    assert weigh("constant", [0.0, 1.0, 50.0]).tolist() == [1, 1, 1]


def test_focal_by_hand() -> None:
    assert weigh("focal", [0.0, 1.0, 2.0]).tolist() == pytest.approx(
        [0, (1 - math.exp(-1)) ** 2, (1 - math.exp(-2)) ** 2]
    )
    assert weigh("focal(gamma=0.5)", [1.0]).item() == pytest.approx(math.sqrt(1 - math.exp(-1)))
    assert weigh("focal(gamma=0)", [0.3, 7.0]).tolist() == [1, 1]


def test_preview_by_hand() -> None:
    bar = 1.005**60
    expected = [1, 1, math.exp(-((bar + 1e-3) ** 2)), math.exp(-4)]
    difficulty = [0.2, bar - 1e-3, bar + 1e-3, 2.0]
    assert weigh("preview", difficulty, epoch=60).tolist() == pytest.approx(expected)


def test_hard_curriculum_by_hand() -> None:
    bar = 1.005**60
    assert weigh("hard_curriculum", [0.2, bar - 1e-3, bar + 1e-3, 2.0], epoch=60).tolist() == [1, 1, 0, 0]


def test_self_paced_by_hand() -> None:
    # The pace is halfway between 1 and 4.
    assert weigh("self_paced", [0.0, 1.0, 2.5, 3.0], progress=0.5).tolist() == pytest.approx([1, 0.6, 0, 0])
    assert weigh("self_paced(start=2, end=10)", [1.0], progress=0.0).item() == pytest.approx(0.5)
    assert weigh("self_paced(start=2, end=10)", [1.0], progress=1.0).item() == pytest.approx(0.9)


@pytest.mark.parametrize("spec", ["self_paced(start=0)", "self_paced(end=-1)"])
def test_self_paced_refuses_a_pace_of_zero(spec: str) -> None:
    with pytest.raises(UserError, match="above 0"):
        weigh(spec, [1.0])


@pytest.mark.parametrize("name", ["preview", "hard_curriculum"])
def test_the_bar_is_rescaled_to_the_length_of_the_run(name: str) -> None:
    difficulty = torch.linspace(0.9, 3.5, 500)
    published = weigh(name, difficulty, epoch=60, epochs=240)
    assert weigh(name, difficulty, epoch=5, epochs=20).equal(published)
    assert weigh(f"{name}(reference_epochs=None)", difficulty, epoch=60, epochs=500).equal(published)
    assert weigh(f"{name}(reference_epochs=120)", difficulty, epoch=10, epochs=20).equal(published)
    assert not weigh(name, difficulty, epoch=5, epochs=240).equal(published)


@pytest.mark.parametrize("name", ["preview", "hard_curriculum"])
def test_the_bar_rises_with_growth(name: str) -> None:
    slow, fast = (weigh(f"{name}(growth={growth})", GRID, epoch=60) for growth in (1.005, 1.015))
    assert (fast >= slow).all()
    assert (fast > slow).any()


@pytest.mark.parametrize("name", ["preview", "hard_curriculum", "self_paced"])
def test_weights_of_hard_samples_grow_over_the_run(name: str) -> None:
    table = torch.stack([weigh(name, GRID, epoch=epoch) for epoch in range(1, 241, 10)])
    assert (table.diff(dim=0) >= 0).all()
    assert (table[-1] > table[0]).any()


@pytest.mark.parametrize("name", ["preview", "hard_curriculum", "self_paced"])
def test_easy_samples_first(name: str) -> None:
    assert (weigh(name, GRID, epoch=30).diff() <= 0).all()


def test_focal_puts_hard_samples_first() -> None:
    assert (weigh("focal", GRID).diff() > 0).all()


@pytest.mark.parametrize("epoch", [1, 120, 240])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_in_0_to_1_and_pure(name: str, epoch: int) -> None:
    difficulty = torch.cat([GRID, torch.tensor([1e4, 1e30])])
    kept = difficulty.clone()
    first, second = (weigh(name, difficulty, epoch=epoch) for _ in range(2))
    assert first.shape == difficulty.shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.equal(second)
    assert difficulty.equal(kept)

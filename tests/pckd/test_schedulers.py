"""From difficulty to weight: every scheduler by hand, and how its bar follows the run.

What any scheduler promises is in test_contracts.py and test_properties.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from registry import DIFFICULTY_SCHEDULERS, Centers, Context, Instances, UserError, build

BAR, FASTER = 1.005**60, 1.015**60


def weigh(spec: str, difficulty: Tensor, epoch: int = 60, epochs: int = 240, progress: float = 0.0) -> Tensor:
    centers = Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    context = Context(Instances(torch.zeros(1)), centers, epoch=epoch, epochs=epochs, progress=progress)
    values: Tensor = build(DIFFICULTY_SCHEDULERS, spec)(difficulty, context)
    return values


@pytest.mark.parametrize(
    ("spec", "difficulty", "progress", "expected"),
    [
        ("constant", [0.0, 1.0, 50.0], 0, [1, 1, 1]),
        ("proportional", [0.0, 1.0, 50.0], 0, [0, 1, 50]),
        ("focal", [0.0, 1.0, 2.0], 0, [0, (1 - math.exp(-1)) ** 2, (1 - math.exp(-2)) ** 2]),
        ("focal(gamma=0.5)", [1.0], 0, [math.sqrt(1 - math.exp(-1))]),
        ("focal(gamma=0)", [0.3, 7.0], 0, [1, 1]),
        ("preview", [0.2, BAR - 1e-3, BAR + 1e-3, 2.0], 0, [1, 1, math.exp(-((BAR + 1e-3) ** 2)), math.exp(-4)]),
        ("preview(growth=1)", [1.0], 0, [1]),
        ("preview(growth=1.015)", [FASTER - 1e-3, FASTER + 1e-3], 0, [1, math.exp(-((FASTER + 1e-3) ** 2))]),
        ("hard_curriculum", [0.2, BAR - 1e-3, BAR + 1e-3, 2.0], 0, [1, 1, 0, 0]),
        ("hard_curriculum(growth=1)", [1.0], 0, [1]),
        ("hard_curriculum(growth=1.015)", [FASTER - 1e-3, FASTER + 1e-3], 0, [1, 0]),
        # The pace is halfway between 1 and 4.
        ("self_paced", [0.0, 1.0, 2.5, 3.0], 0.5, [1, 0.6, 0, 0]),
        ("self_paced(start=2, end=10)", [1.0], 0, [0.5]),
        ("self_paced(start=2, end=10)", [1.0], 1, [0.9]),
    ],
)
def test_by_hand(spec: str, difficulty: list[float], progress: float, expected: list[float]) -> None:
    assert weigh(spec, torch.tensor(difficulty), progress=progress).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("spec", ["self_paced(start=0)", "self_paced(end=-1)"])
def test_self_paced_refuses_a_pace_of_zero(spec: str) -> None:
    with pytest.raises(UserError, match="above 0"):
        weigh(spec, torch.ones(1))


@pytest.mark.parametrize("name", ["preview", "hard_curriculum"])
def test_the_bar_is_rescaled_to_the_length_of_the_run(name: str) -> None:
    difficulty = torch.linspace(0.9, 3.5, 500)
    published = weigh(name, difficulty)
    assert weigh(name, difficulty, epoch=5, epochs=20).equal(published)
    assert weigh(f"{name}(reference_epochs=None)", difficulty, epochs=500).equal(published)
    assert weigh(f"{name}(reference_epochs=120)", difficulty, epoch=10, epochs=20).equal(published)
    assert not weigh(name, difficulty, epoch=5).equal(published)

"""Feature and relation methods of 2021 to 2026: cases by hand, numbers of the released code, and their parts.

The released code ran on the inputs written here, in float64; only its numbers are here. What holds for every function
is in test_functional.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pckd import functional as pf
from registry import LOSSES, Centers, Context, Instances, Output, Setup, Shapes, build

T = torch.tensor
DOUBLE = torch.float64


def table(*shape: int, step: float = 0.7) -> Tensor:
    """Numbers that code run elsewhere can make, too: sin(step * n)."""
    return (step * torch.arange(math.prod(shape), dtype=DOUBLE)).sin().reshape(shape)


def make_context(labels: Tensor, centers: Centers | None = None, stage: Any = "main", views: int = 1) -> Context:
    centers = centers or Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    return Context(Instances(labels, torch.arange(len(labels)), views=views), centers, stage=stage)


# ND


def test_norm_and_direction_is_as_released() -> None:
    student = T([[1.0, -2.0, 0.5], [3.0, 1.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    teacher = T([[2.0, 2.0, -1.0], [0.5, 0.5, 1.0]], dtype=DOUBLE)
    centers = T([[1.0, 0.0, 1.0], [0.5, 2.0, -1.0], [3.0, 1.0, 1.0]], dtype=DOUBLE)
    value = pf.norm_and_direction(student, teacher, T([1, 2]), centers)
    # The first is shorter than its teacher (3), the second is longer (sqrt(14)): by hand.
    assert value.tolist() == pytest.approx([1 + 4 / 5.25**0.5 / 3, 1 - 12 / (11 * 14) ** 0.5])
    value.mean().backward()
    assert value.mean().item() == pytest.approx(0.807463408566095, rel=1e-12)
    expected = [-0.036369648372665396, -0.14547859349066158, 0.07273929674533079]
    expected += [-0.017267634943401, -0.005755878314467, 0.028779391572335014]
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_nd_has_the_class_means_of_all_it_has_seen() -> None:
    loss = build(LOSSES, "nd", Setup(Shapes(3, 2), Shapes(3, 2)))
    student = Output(torch.zeros(2, 3), T([[1.0, 0.0], [0.0, 1.0]]))
    rows = [T([[1.0, 0.0], [3.0, 0.0]]), T([[2.0, 6.0], [5.0, 5.0]])]
    for labels, teacher in zip((T([0, 0]), T([0, 2])), rows, strict=True):
        value = loss(student, Output(torch.zeros(2, 3), teacher), make_context(labels))
    assert loss.means.tolist() == [[2, 2], [0, 0], [5, 5]]
    assert loss.counts.tolist() == [3, 0, 1]
    assert value.tolist() == pytest.approx([1 - 0.5**0.5 / 40**0.5, 1 - 0.5**0.5 / 50**0.5])
    # In evaluation it keeps nothing; and by the center rule it needs nothing.
    loss.eval()(student, Output(torch.zeros(2, 3), rows[0]), make_context(T([1, 1])))
    assert loss.counts.tolist() == [3, 0, 1]
    rule = build(LOSSES, "nd(rule=True)", Setup(Shapes(3, 2), Shapes(3, 2)))
    centers = Centers(torch.zeros(3, 2), T([[0.0, 2.0]] * 3))
    value = rule(student, Output(torch.zeros(2, 3), rows[0]), make_context(T([0, 1]), centers))
    assert value.tolist() == pytest.approx([1, 1 - 1 / 3])

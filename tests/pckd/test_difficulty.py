"""How hard is each image: every metric by hand, and what all of them promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from registry import DIFFICULTY_METRICS, Centers, Context, Instances, Output, build

NAMES = DIFFICULTY_METRICS.names()


def output(*rows: tuple[float, ...]) -> Output:
    return Output(torch.tensor(rows), torch.zeros(len(rows), 2))


def context(*labels: int) -> Context:
    rows = torch.tensor(labels)
    return Context(Instances(rows), Centers(torch.zeros(2, 2), torch.zeros(2, 2)))


def measure(name: str, student: Output, teacher: Output, *labels: int) -> Tensor:
    values: Tensor = build(DIFFICULTY_METRICS, name)(student, teacher, context(*labels))
    return values


def probabilities(*logits: float) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def over_mean(values: list[float]) -> Any:
    return pytest.approx([v * len(values) / sum(values) for v in values], rel=1e-4)


STUDENT, TEACHER = output((2.0, 0.0, 1.0), (0.5, 0.0, -1.0)), output((3.0, -1.0, 0.0), (0.0, 2.0, 0.0))
P = [probabilities(*row) for row in STUDENT.logits.tolist()]
Q = [probabilities(*row) for row in TEACHER.logits.tolist()]
LABELS = (0, 1)


def test_cross_entropy_by_hand() -> None:
    expected = [-math.log(P[0][0]), -math.log(P[1][1])]
    assert measure("cross_entropy", STUDENT, TEACHER, *LABELS).tolist() == over_mean(expected)


def test_teacher_cross_entropy_by_hand() -> None:
    expected = [-math.log(Q[0][0]), -math.log(Q[1][1])]
    assert measure("teacher_cross_entropy", STUDENT, TEACHER, *LABELS).tolist() == over_mean(expected)


def test_entropy_by_hand() -> None:
    expected = [-sum(p * math.log(p) for p in row) for row in P]
    assert measure("entropy", STUDENT, TEACHER, *LABELS).tolist() == over_mean(expected)


def test_margin_by_hand() -> None:
    expected = [1 + P[0][2] - P[0][0], 1 + P[1][0] - P[1][1]]
    assert measure("margin", STUDENT, TEACHER, *LABELS).tolist() == over_mean(expected)


def test_teacher_student_gap_by_hand() -> None:
    expected = [sum(t * math.log(t / s) for s, t in zip(p, q, strict=True)) for p, q in zip(P, Q, strict=True)]
    assert measure("teacher_student_gap", STUDENT, TEACHER, *LABELS).tolist() == over_mean(expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_easy_sample_is_easier_than_a_hard_one(name: str) -> None:
    # Row 0: right and certain, as the teacher is. Row 2: undecided between wrong classes, as the teacher is not.
    student = output((9.0, 0.0, 0.0), (1.0, 0.0, 0.0), (-4.0, 0.0, 0.0))
    teacher = output((9.0, 0.0, 0.0), (5.0, 0.0, 0.0), (2.0, 0.0, 0.0))
    values = measure(name, student, teacher, 0, 0, 0)
    assert values[0] < values[1]
    assert values[0] < values[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_finite_not_negative_and_of_mean_1(name: str, scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    student, teacher = (Output((torch.randn(16, 5) * scale).to(dtype), torch.zeros(16, 2)) for _ in range(2))
    values = measure(name, student, teacher, *(n % 5 for n in range(16)))
    assert values.shape == (16,)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert (values >= 0).all()
    assert values.mean().item() == pytest.approx(1, rel=1e-4) or not values.any()


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_as_hard_as_its_batch(name: str) -> None:
    values = measure(name, output((1.0, 0.0)), output((0.0, 2.0)), 0)
    assert values.tolist() == pytest.approx([1])

"""How hard is each image: every metric by hand. What any metric promises: test_contracts.py, test_properties.py."""

from __future__ import annotations

import math

import pytest
import torch

from registry import DIFFICULTY_METRICS, Centers, Context, Instances, Output, build

STUDENT, TEACHER = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.0, -1.0]]), torch.tensor([[3.0, -1.0, 0.0], [0.0, 2.0, 0.0]])
P, Q = STUDENT.softmax(1).tolist(), TEACHER.softmax(1).tolist()
LABELS = torch.tensor([0, 1])


def entropies(logits: torch.Tensor, temperature: float = 1.0) -> list[float]:
    return [-sum(p * math.log(p) for p in row) for row in (logits / temperature).softmax(1).tolist()]


BY_HAND = {
    "cross_entropy": [-math.log(P[0][0]), -math.log(P[1][1])],
    # Where a task has no groups.
    "group_cross_entropy": [-math.log(P[0][0]), -math.log(P[1][1])],
    "teacher_cross_entropy": [-math.log(Q[0][0]), -math.log(Q[1][1])],
    "entropy": entropies(STUDENT),
    "ea_kd": [(t + t * s / math.log(3)) / 2 for s, t in zip(entropies(STUDENT, 3), entropies(TEACHER, 3), strict=True)],
    "wttm": [sum(q**0.1 for q in row) for row in Q],
    "margin": [1 + P[0][2] - P[0][0], 1 + P[1][0] - P[1][1]],
    "teacher_student_gap": [
        sum(t * math.log(t / s) for s, t in zip(p, q, strict=True)) for p, q in zip(P, Q, strict=True)
    ],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    outputs = (Output(logits, torch.zeros(2, 2)) for logits in (STUDENT, TEACHER))
    context = Context(Instances(LABELS), Centers(torch.zeros(2, 2), torch.zeros(2, 2)))
    expected = [value * 2 / sum(BY_HAND[name]) for value in BY_HAND[name]]
    assert build(DIFFICULTY_METRICS, name)(*outputs, context).tolist() == pytest.approx(expected, rel=1e-4)


def test_every_metric_has_a_case() -> None:
    assert set(BY_HAND) == set(DIFFICULTY_METRICS.names())


def test_ea_kd_has_the_released_weights() -> None:
    """EA-KD 6fb4c06, mdistiller/distillers/KD.py, with H_ub = log K."""
    student = [[1.2, -0.3, 0.8, 2.1, -1.0], [0.1, 0.4, -0.7, 1.5, 0.9], [-0.2, 2.2, 0.3, -1.1, 0.6]]
    teacher = [[2.5, 0.1, 1.3, 3.0, -0.8], [-0.6, 1.7, 0.2, 2.4, 0.3], [0.4, 1.1, 2.8, -0.9, 0.0]]
    weights = torch.tensor([1.4800867589304902, 1.5283015344477937, 1.4814143798515382], dtype=torch.float64)
    outputs = (Output(torch.tensor(rows, dtype=torch.float64), torch.zeros(3, 2)) for rows in (student, teacher))
    context = Context(Instances(LABELS), Centers(torch.zeros(2, 2), torch.zeros(2, 2)))
    difficulty = build(DIFFICULTY_METRICS, "ea_kd")(*outputs, context)
    torch.testing.assert_close(difficulty, weights / weights.mean(), rtol=1e-9, atol=0)

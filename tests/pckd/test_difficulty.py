"""How hard is each image: every metric by hand. What any metric promises: test_contracts.py, test_properties.py."""

from __future__ import annotations

import math

import pytest
import torch

from registry import DIFFICULTY_METRICS, Centers, Context, Instances, Output, build

STUDENT, TEACHER = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.0, -1.0]]), torch.tensor([[3.0, -1.0, 0.0], [0.0, 2.0, 0.0]])
P, Q = STUDENT.softmax(1).tolist(), TEACHER.softmax(1).tolist()
LABELS = torch.tensor([0, 1])

BY_HAND = {
    "cross_entropy": [-math.log(P[0][0]), -math.log(P[1][1])],
    # Where a task has no groups.
    "group_cross_entropy": [-math.log(P[0][0]), -math.log(P[1][1])],
    "teacher_cross_entropy": [-math.log(Q[0][0]), -math.log(Q[1][1])],
    "entropy": [-sum(p * math.log(p) for p in row) for row in P],
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

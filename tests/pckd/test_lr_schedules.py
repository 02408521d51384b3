"""Learning-rate schedules by hand. What any schedule promises is in test_contracts.py."""

from __future__ import annotations

import math

import pytest

from registry import LR_SCHEDULES, UserError, build


@pytest.mark.parametrize(
    ("spec", "progress", "expected"),
    [
        ("constant", 0.7, 1),
        ("linear", 0.25, 0.75),
        ("linear(least=0.2)", 0.25, 0.8),
        ("cosine", 0, 1),
        ("cosine", 0.25, 0.5 + math.sqrt(0.5) / 2),
        ("cosine(least=0.2)", 0.5, 0.6),
        ("cosine", 1, 0),
        # Two of ten epochs of warm-up; a quarter of it is done, all of it, and half of what comes then.
        ("constant(warmup=2)", 0.05, 0.25),
        ("linear(warmup=2)", 0.2, 1),
        ("cosine(warmup=2)", 0.6, 0.5),
        ("cosine(warmup=2)", 0, 1e-3),
    ],
)
def test_by_hand(spec: str, progress: float, expected: float) -> None:
    assert build(LR_SCHEDULES, spec)(progress, 10) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [10, -1])
def test_a_warm_up_of_the_whole_run_is_refused(name: str, warmup: int) -> None:
    with pytest.raises(UserError, match=rf"{name}: warmup={warmup}: it must be at least 0 .* run \(10\)"):
        build(LR_SCHEDULES, f"{name}(warmup={warmup})")(0.0, 10)

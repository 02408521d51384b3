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
        # Of ten epochs the third is the newest that is whole, whatever is done of the fourth.
        ("linear(by_epoch=True)", 0.39, 0.7),
        ("cosine(by_epoch=True)", 0.59, 0.5),
        ("step(every=3)", 0.59, 0.1),
        ("step(every=3, decay=0.5)", 0.6, 0.25),
        ("multistep(milestones=(0.5, 0.75))", 0.49, 1),
        ("multistep(milestones=(0.5, 0.75))", 0.75, 0.01),
        ("multistep(warmup=2)", 0.1, 0.5),
        ("one_cycle(start=0.2)", 0, 0.2),
        ("one_cycle(start=0.2)", 0.15, 0.6),
        ("one_cycle", 0.3, 1),
        ("one_cycle(least=0)", 0.65, 0.5),
        ("one_cycle(least=0.01)", 1, 0.01),
    ],
)
def test_by_hand(spec: str, progress: float, expected: float) -> None:
    assert build(LR_SCHEDULES, spec)(progress, 10) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [10, -1])
def test_a_warm_up_of_the_whole_run_is_refused(name: str, warmup: int) -> None:
    with pytest.raises(UserError, match=rf"{name}: warmup={warmup}: it must be at least 0 .* run \(10\)"):
        build(LR_SCHEDULES, f"{name}(warmup={warmup})")(0.0, 10)


@pytest.mark.parametrize("spec", ["step(every=0)", "multistep(milestones=(0.5, 2))", "one_cycle(rise=1)"])
def test_an_option_out_of_range_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match=r"^\w+: \w+=.*: (it|each) must be"):
        build(LR_SCHEDULES, spec)(0.0, 10)

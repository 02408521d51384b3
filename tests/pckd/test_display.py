"""What a run says: all values of an epoch on any terminal, plain lines without one."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pckd.display import Plain, Rich, Silent, make_display, watch

ROW: dict[str, Any] = {
    "epoch": 2,
    "lr": 0.05,
    "cross_entropy": 1.2345,
    "feature_alignment": 2.5,
    "category_contrast": 35.64,
    "preview_weight": 0.91,
    "previewed": 0.125,
    "top1": 61.5,
    "top5": 99.0,
    "seconds": 3.2,
}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_rich_epoch_shows_every_value_whole_at_any_width(width: int) -> None:
    stream = io.StringIO()
    display = Rich(Console(file=stream, width=width, force_terminal=False))
    display.begin("resnet8 by pckd", 12, 5, 0)
    display.advance(2, 5)
    display.epoch(ROW)
    display.end()
    text = stream.getvalue()
    for value in ("2/12", "0.05", "1.234", "2.5", "35.64", "0.91", "0.125", "61.5", "3.2"):
        assert value in text
    for word in ("category", "contrast", "preview", "weight"):
        assert word in text
    assert "…" not in text


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_watched_passes_and_has_a_bar_on_a_terminal_alone(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal)
    display = Rich(console) if terminal else Silent()
    assert list(watch(iter("abc"), "reading [red]{x}", 3, display)) == list("abc")
    assert ("reading [red]{x}" in stream.getvalue()) == terminal
    assert ("3/3" in stream.getvalue()) == terminal


def test_plain_line_has_names_values_and_time_left() -> None:
    stream = io.StringIO()
    display = make_display(stream)
    assert isinstance(display, Plain)
    display.begin("resnet8 by pckd", 2, 5, 0)
    display.epoch(ROW)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "resnet8 by pckd: 2 epochs of 5 steps"
    assert lines[1].startswith("epoch 2/2  lr 0.05  cross_entropy 1.234")
    assert lines[1].endswith("left 0:00")


def test_plain_counts_the_time_left_from_the_epochs_of_this_process() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    display.begin("resumed", 4, 5, 2)
    display.started -= 30
    display.epoch({"epoch": 3})
    assert stream.getvalue().splitlines()[1].endswith("left 0:30")


def test_small_and_large_values_stay_readable() -> None:
    stream = io.StringIO()
    display = Plain(stream)
    display.begin("x", 1, 1, 0)
    display.epoch({"epoch": 1, "tiny": 1.5e-7, "huge": 2.5e8, "zero": 0.0, "broken": float("inf")})
    assert "tiny 1.50e-07  huge 2.50e+08  zero 0  broken inf" in stream.getvalue()

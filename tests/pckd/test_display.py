"""What a run says: a table on any terminal, plain lines without one, and nothing where nobody looks."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import pckd
from pckd import display as module
from pckd.display import Plain, Rich, Silent, choose_display, make_display, watch
from registry import UserError

ROW: dict[str, Any] = {
    "epoch": 2,
    "lr": 0.05,
    "cross_entropy": 1.2345,
    "feature_alignment": 2.5,
    "category_contrast": 35.64,
    "loss": 39.37,
    "preview_weight": 0.91,
    "previewed": 0.125,
    "train_top1": 58.0,
    "top1": 61.5,
    "top5": 99.0,
    "test_loss": 1.5,
    "difficulty_report": {"edges": [0.0]},
    "seconds": 3.25,
}


def lines_of(width: int, *, verbose: bool = False) -> list[str]:
    """What two epochs print below the title."""
    stream = io.StringIO()
    display = Rich(Console(file=stream, width=width, force_terminal=False), verbose=verbose)
    display.begin("resnet8 by pckd", 12, 5, 0)
    for epoch in (2, 3):
        display.advance(epoch, 5)
        display.epoch({**ROW, "epoch": epoch})
    display.end()
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line for line in lines[1:] if line.strip()]


@pytest.mark.parametrize("width", [80, 150])
def test_a_terminal_has_one_header_and_a_row_an_epoch(width: int) -> None:
    assert lines_of(width) == [
        "epoch      loss  train top1      top1        lr   seconds",
        " 2/12     39.37       58.00     61.50      0.05       3.2",
        " 3/12     39.37       58.00     61.50      0.05       3.2",
    ]


@pytest.mark.parametrize("width", [40, 80, 150, 250])
def test_verbose_shows_every_number_at_any_width(width: int) -> None:
    header, *rows = lines_of(width, verbose=True)
    first, second = (" ".join(rows[at : at + len(rows) // 2]) for at in (0, len(rows) // 2))
    for epoch, text in (("2/12", first), ("3/12", second)):
        for value in (epoch, "0.05", "1.234", "2.500", "35.64", "39.37", "0.9100", "0.1250", "58.00", "61.50", "99.00"):
            assert value in text
        for name in ("cross entropy", "feature alignment", "test loss", "seconds"):
            assert (name in header) != (f"{name.replace(' ', '_')}=" in text)
    assert ("test loss" in header) == (width == 250)


def test_columns_are_those_of_each_training() -> None:
    stream = io.StringIO()
    display = Rich(Console(file=stream, width=80, force_terminal=False))
    for row in ({"epoch": 1, "loss": 1.0}, {"epoch": 1, "top1": 2.0}):
        display.begin("title", 1, 5, 0)
        display.epoch(row)
        display.end()
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip() and "─" not in line]
    assert lines == [["epoch", "loss"], ["1/1", "1.000"], ["epoch", "top1"], ["1/1", "2.00"]]


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
    display.begin("resnet8 by pckd", 4, 5, 1)
    # The time left is counted from the epochs of this process.
    display.started -= 30
    display.epoch(ROW)
    assert stream.getvalue().splitlines() == [
        "resnet8 by pckd: 4 epochs of 5 steps",
        "epoch 2/4  lr 0.05  cross_entropy 1.234  feature_alignment 2.5  category_contrast 35.64  loss 39.37  "
        "preview_weight 0.91  previewed 0.125  train_top1 58  top1 61.5  seconds 3.25  left 1:00",
    ]


# Which one


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_by_default_someone_who_looks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_display("auto"), Silent)
    monkeypatch.setattr(module, "Console", lambda: SimpleNamespace(is_jupyter=True))
    assert isinstance(choose_display("auto"), Plain)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(choose_display("auto"), Rich)
    assert isinstance(choose_display(None), Silent)
    own = Plain()
    assert choose_display(own) is own
    with pytest.raises(UserError, match="display must be auto, None or a display"):
        choose_display("rich")  # type: ignore[arg-type]


@pytest.mark.parametrize("silent", [False, True])
def test_a_run_from_python_shows_its_progress_unless_told_not_to(
    silent: bool, tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    options: dict[str, Any] = {"display": None} if silent else {}
    pckd.train(student="resnet8", data=tiny_data, epochs=1, batch_size=16, precision="fp32", device="cpu", **options)
    assert ("1/1" in screen.getvalue()) != silent
    assert bool(screen.getvalue()) != silent

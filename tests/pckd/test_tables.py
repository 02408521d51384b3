"""Numbers and tables as people read them."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from rich.console import Console

from pckd.tables import (
    Table,
    amount,
    clock,
    csv_text,
    difference,
    duration,
    fixed,
    markdown,
    markdown_rows,
    memory,
    print_tables,
    ratio,
    renderable,
    share,
    short,
    spread,
)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (amount, 999, "999"),
        (amount, 1085629440, "1.09 G"),
        (amount, 12345, "12.3 k"),
        (amount, 999_900, "1.00 M"),
        (amount, None, "-"),
        (memory, 512, "512 B"),
        (memory, 3 * 2**20, "3.00 MiB"),
        (duration, 0.0123, "12.3 ms"),
        (duration, -0.002, "-2.00 ms"),
        (duration, 123.4, "123 s"),
        (ratio, 1.0042, "1.004 x"),
        (ratio, 2.1049, "2.10 x"),
        (share, 0.012, "1.2 %"),
        (share, 0.34, "34 %"),
        (clock, 125.4, "2:05"),
        (short, 1.23456, "1.235"),
        (short, 1.5e-7, "1.50e-07"),
        (short, 2.5e8, "2.50e+08"),
        (short, 0.0, "0"),
        (short, float("inf"), "inf"),
        (short, 64, "64"),
        (fixed, None, "-"),
    ],
)
def test_numbers_are_short(function: Any, value: float | None, text: str) -> None:
    assert function(value) == text


def test_figures_of_several_numbers() -> None:
    assert spread(0.0123, 0.0121, 0.0129) == "12.3 ms (12.1 to 12.9)"
    assert spread(2.0, 0.5, 3.0) == "2.00 s (0.500 to 3.00)"
    assert spread(None, None, None) == "-"
    assert fixed(68.594, 0.651) == "68.59 ± 0.65"
    assert [short(value, zeros=True) for value in (2.3, 1234.0, 1e-7, 3)] == ["2.300", "1234", "1.00e-07", "3"]
    assert difference(0.54, -0.1, 1.18) == "+0.54 (-0.10 to +1.18)"
    assert difference(-1, None, None) == "-1.00 (-)"


TABLE = Table("Cost", ["method", "time"], [["kd", "1 s"], ["a|b", "[2]"]], ["A note.", ""])


def test_markdown_which_a_pipe_gets() -> None:
    rows = ["| method | time |", "| --- | ---: |", "| kd | 1 s |", "| a\\|b | [2] |"]
    assert markdown([TABLE, TABLE]).splitlines() == [*["**Cost**", "", *rows, "", "A note.", ""] * 2][:-1]
    assert markdown([Table("", ["x"], [["1"]])]) == "| x |\n| --- |\n| 1 |\n"
    assert markdown_rows(["x", "y"], [["1", "2"]])[1] == "| --- | --- |"
    stream = io.StringIO()
    print_tables([TABLE], stream)
    assert stream.getvalue() == markdown([TABLE]) + "\n"


def test_csv() -> None:
    assert csv_text(["a", "b"], [[1.5, "x,y"], [None, "z"]]) == 'a,b\n1.5,"x,y"\n,z\n'


@pytest.mark.parametrize("width", [20, 200])
def test_a_terminal_shows_every_cell_whole(width: int) -> None:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable([TABLE]))
    for text in ("Cost", "method", "a|b", "[2]", "A note."):
        assert text in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        print_tables([TABLE], stream)
        print("more", file=stream)

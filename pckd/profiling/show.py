"""Tables of texts, and how numbers are written in them: for a rich console, or in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pckd.profiling.report import Timing

NONE = "-"


@dataclass(frozen=True)
class Sheet:
    """A table of texts. The first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


# How numbers are written


def amount(value: float | None) -> str:
    """``1.23 M``: three digits and a power of a thousand."""
    if value is None:
        return NONE
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{digits(value / size)} {unit}"
    return f"{value:.0f}"


def memory(value: float | None) -> str:
    """``12.3 MiB``."""
    if value is None:
        return NONE
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{digits(value / size)} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """``12.3 ms``."""
    if seconds is None:
        return NONE
    if abs(seconds) >= 1:
        return f"{digits(seconds)} s"
    return f"{digits(seconds * 1e3)} ms"


def spread(timing: Timing) -> str:
    """Median and quartiles: ``12.3 ms (12.1 to 12.9)``."""
    if timing.seconds is None or timing.seconds_low is None or timing.seconds_high is None:
        return NONE
    unit, scale = ("s", 1.0) if abs(timing.seconds) >= 1 else ("ms", 1e3)
    middle, low, high = (digits(v * scale) for v in (timing.seconds, timing.seconds_low, timing.seconds_high))
    return f"{middle} {unit} ({low} to {high})"


def ratio(value: float | None) -> str:
    """``1.53 x``; a ratio near 1 has a digit more, ``1.004 x``."""
    return NONE if value is None else f"{times(value)} x"


def times(value: float) -> str:
    return f"{value:.3f}" if 0.95 < value < 1.05 else digits(value)


def share(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{100 * value:.0f} %" if value >= 0.095 or not value else f"{100 * value:.1f} %"


def plural(number: int | str, thing: str) -> str:
    return f"{number} {thing}{'' if str(number) == '1' else 's'}"


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{decimals}f}"


# From sheets to text


def markdown(sheets: Sequence[Sheet]) -> str:
    """Tables for a README."""
    return "\n".join(_markdown(sheet) for sheet in sheets)


def _markdown(sheet: Sheet) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    align = ["---", *("---:" for _ in sheet.header[1:])]
    lines = [f"**{sheet.title}**", "", line(sheet.header), "| " + " | ".join(align) + " |"]
    lines += [line(row) for row in sheet.rows]
    for note in filter(None, sheet.notes):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def tables(sheets: Sequence[Sheet]) -> Group:
    """For a rich console."""
    parts: list[Any] = []
    for sheet in sheets:
        table = Table(title=escape(sheet.title), title_justify="left", title_style="bold", header_style="bold")
        for number, name in enumerate(sheet.header):
            table.add_column(escape(name), justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        parts += [table, *(Text(note, style="dim") for note in sheet.notes if note), Text()]
    return Group(*parts)


def print_sheets(sheets: Sequence[Sheet], stream: TextIO | None = None) -> None:
    """Tables on a terminal; Markdown in a file or a pipe."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(tables(sheets))
    else:
        print(markdown(sheets), file=stream)

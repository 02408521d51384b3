"""Numbers as people read them, and tables of texts: on a terminal, in Markdown, as CSV."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column names the row."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: bool = True
    """Whether the other columns are numbers, which stand at the right."""


# Numbers


def amount(value: float | None) -> str:
    """``1.23 M``: three digits and a power of a thousand."""
    # From 999.5 on, which three digits would round to 1000.
    return _scaled(value, {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}, 0.9995)


def memory(value: float | None) -> str:
    """``12.3 MiB``."""
    return _scaled(value, {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}, 1, " B")


def _scaled(value: float | None, units: Mapping[str, float], least: float, plain: str = "") -> str:
    """In the first unit of which it is at least ``least``, or else as a whole number."""
    if value is None:
        return NONE
    for unit, size in units.items():
        if abs(value) >= least * size:
            return f"{digits(value / size)} {unit}"
    return f"{value:.0f}{plain}"


def duration(seconds: float | None) -> str:
    """``12.3 ms``."""
    if seconds is None:
        return NONE
    return f"{digits(seconds)} s" if abs(seconds) >= 1 else f"{digits(seconds * 1e3)} ms"


def clock(seconds: float) -> str:
    """``2:05``, in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def spread(seconds: float | None, low: float | None, high: float | None) -> str:
    """Median and quartiles: ``12.3 ms (12.1 to 12.9)``."""
    if seconds is None or low is None or high is None:
        return NONE
    unit, scale = ("s", 1.0) if abs(seconds) >= 1 else ("ms", 1e3)
    return f"{digits(seconds * scale)} {unit} ({digits(low * scale)} to {digits(high * scale)})"


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


def short(value: Any, *, zeros: bool = False) -> str:
    """Four significant digits of a float; an exponent only where it is very small or large. Anything else as it is.

    ``zeros`` keeps those at the end, so that numbers below each other are as long.
    """
    if not isinstance(value, float):
        return str(value)
    if math.isfinite(value) and value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:#.4g}".rstrip(".") if zeros else f"{value:.4g}"


def fixed(value: float | None, deviation: float | None = None) -> str:
    """Two decimals: ``68.59 ± 0.65``, a mean over seeds and its standard deviation, or ``68.59``."""
    if value is None:
        return NONE
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"


def difference(mean: float, low: float | None, high: float | None) -> str:
    """``+0.54 (-0.10 to +1.18)``; a dash for the interval where one seed gives none."""
    return f"{mean:+.2f} ({NONE if low is None or high is None else f'{low:+.2f} to {high:+.2f}'})"


# Tables


def markdown(tables: Iterable[Table]) -> str:
    """Tables for a README, with their titles and notes."""
    return "\n".join(_section(table) for table in tables)


def _section(table: Table) -> str:
    title = [f"**{table.title}**", ""] if table.title else []
    rows = markdown_rows(table.header, table.rows, numbers=table.numbers)
    notes = [line for note in table.notes if note for line in ("", note)]
    return "\n".join([*title, *rows, *notes]) + "\n"


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """The lines of a Markdown table alone; for ``numbers`` see :class:`Table`."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return [line(header), line(rule), *map(line, rows)]


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file's content; its lines end as POSIX has them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def renderable(tables: Iterable[Table]) -> Group:
    """For a rich console."""
    parts: list[Any] = []
    for table in tables:
        title = escape(table.title) or None
        drawn = RichTable(title=title, title_justify="left", title_style="bold", show_lines=not table.numbers)
        for number, name in enumerate(table.header):
            drawn.add_column(
                escape(name),
                header_style="bold",
                justify="right" if number and table.numbers else "left",
                overflow="fold",
            )
        for row in table.rows:
            drawn.add_row(*map(escape, row))
        parts += [drawn, *(Text(note, style="dim") for note in table.notes if note), Text()]
    return Group(*parts)


def print_columns(header: Sequence[str], rows: Iterable[Sequence[str]], stream: TextIO | None = None) -> None:
    """Columns without lines around them, their texts wrapped: as wide as a terminal, or 100 characters in a pipe.

    A pipe gets no header; a row begins at the left edge, and what is wrapped further in.
    """
    stream = stream or sys.stdout
    terminal = stream.isatty()
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=terminal, header_style="bold")
    for number, name in enumerate(header):
        drawn.add_column(name, no_wrap=not number)
    for row in rows:
        drawn.add_row(*map(Text, row))
    console = Console(file=stream, width=None if terminal else 100)
    with console.capture() as capture:
        console.print(drawn)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=stream)


def print_tables(tables: Sequence[Table], stream: TextIO | None = None) -> None:
    """Tables on a terminal; Markdown in a file or a pipe, whose reader, such as head, may leave early."""
    stream = stream or sys.stdout
    if stream.isatty():
        Console(file=stream).print(renderable(tables))
        return
    try:
        print(markdown(tables), file=stream, flush=True)
    except BrokenPipeError:
        # At its end Python would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""What a run says while it runs: rows of a table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pckd.runs import ENTRIES, METRIC, is_number
from pckd.tables import clock, fixed, short
from registry import TASKS, UserError

T = TypeVar("T")

__all__ = ["Display", "Plain", "Rich", "Silent", "choose_display", "make_display", "tell", "watch"]

ACCURACIES = {name for name, tag in ENTRIES.items() if tag.startswith("accuracy/")} - {"test_loss"}
UNSAID = {"epoch", "test_loss", *ACCURACIES} - {METRIC, f"train_{METRIC}"}
"""Entries that a plain line leaves to metrics.jsonl, with all that are no numbers."""
_WIDTH = 8


class Display:
    """What a run tells while it runs: what a subclass does not write does nothing."""

    def note(self, text: str) -> None: ...

    def arguments(self, values: dict[str, Any]) -> None:
        """Of the training that begins next, as result.json has them."""

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None: ...
    def advance(self, epoch: int, step: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def end(self) -> None: ...

    def result(self, record: dict[str, Any]) -> None:
        """What result.json says of a training that has come to its end."""


def tell(display: Any, what: str, value: dict[str, Any]) -> None:
    """Tell a display its arguments or its result; one that does not derive from :class:`Display` may not take them."""
    getattr(display, what, lambda _: None)(value)


class Silent(Display):
    """Says nothing."""


class Plain(Display):
    """A line per epoch, for logs, pipes and notebooks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.epochs = 0
        self.done = 0
        self.started = 0.0

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.done, self.started = epochs, done, time.monotonic()
        self.note(f"{title}: {epochs} epochs of {steps} steps")

    def epoch(self, row: dict[str, Any]) -> None:
        spent = time.monotonic() - self.started
        left = spent / (row["epoch"] - self.done) * (self.epochs - row["epoch"])
        values = "  ".join(f"{name} {short(value)}" for name, value in _numbers(row).items() if name not in UNSAID)
        self.note(f"epoch {row['epoch']}/{self.epochs}  {values}  left {clock(left)}")


class Rich(Display):
    """A progress bar with the time left, and a table that grows by a row an epoch.

    Args:
        verbose: show every number of a row: as many columns as there is room for, the others by their names below.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self.console = console or Console()
        self.verbose = verbose
        self.progress: Progress | None = None
        self.epochs = 0
        self.steps = 0
        self.columns: dict[str, int] = {}
        """Of the table: its entries, and how wide they are."""

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.end()
        self.epochs, self.steps, self.columns = epochs, steps, {}
        self.console.rule(Text(title), align="left")
        self.progress = Progress(
            *("{task.description}", BarColumn(), MofNCompleteColumn(), "elapsed", TimeElapsedColumn(), "left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
        )
        self.progress.add_task("training", total=epochs * steps, completed=done * steps)
        self.progress.start()

    def advance(self, epoch: int, step: int) -> None:
        if self.progress is not None:
            self.progress.update(
                self.progress.task_ids[0],
                completed=(epoch - 1) * self.steps + step,
                description=f"epoch {epoch}/{self.epochs}",
            )

    def epoch(self, row: dict[str, Any]) -> None:
        values = {name: _cell(name, value) for name, value in _numbers(row).items()}
        values["epoch"] = f"{row['epoch']}/{self.epochs}"
        # The columns in their order; the other entries of a row are shown where they are asked for.
        metrics = [task.metric for _, task in TASKS if hasattr(task, "metric")]
        others = [metric for _, task in TASKS for metric in getattr(task, "other_metrics", ())]
        first = ("loss", *(f"train_{metric}" for metric in metrics), *metrics, *others, "lr", "seconds")
        names = ["epoch", *(name for name in first if name in values)]
        if self.verbose:
            names += [name for name in values if name not in names]
        if not self.columns:
            self.columns = self._fitting(names)
            self._line({name: name.replace("_", " ") for name in self.columns}, "bold")
        self._line(values)
        below = "  ".join(f"{name}={values[name]}" for name in names if name not in self.columns)
        indent = " " * (2 + self.columns["epoch"])
        for line in textwrap.wrap(below, self.console.width, initial_indent=indent, subsequent_indent=indent):
            self.console.print(Text(line, style="dim"))

    def _fitting(self, names: list[str]) -> dict[str, int]:
        """The first names that have room beside each other, and the widths of their columns."""
        columns = {"epoch": max(len("epoch"), len(f"{self.epochs}/{self.epochs}"))}
        for name in names[1:]:
            width = max(len(name), _WIDTH)
            if sum(columns.values()) + 2 * len(columns) + width > self.console.width:
                break
            columns[name] = width
        return columns

    def _line(self, cells: Mapping[str, str], style: str = "") -> None:
        line = "  ".join(cells.get(name, "").rjust(width) for name, width in self.columns.items())
        self.console.print(Text(line, style=style))

    def end(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def watch(items: Iterable[T], title: str, total: int, display: object) -> Iterator[T]:
    """The items, with a progress bar where the display is a terminal's."""
    if not isinstance(display, Rich):
        yield from items
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=display.console,
        transient=True,
    ) as progress:
        yield from progress.track(items, total=total, description=title)


def make_display(stream: TextIO | None = None, *, verbose: bool = False) -> Plain | Rich:
    """A table on a terminal, plain lines otherwise; for ``verbose`` see :class:`Rich`."""
    stream = stream or sys.stdout
    return Rich(Console(file=stream), verbose=verbose) if stream.isatty() else Plain(stream)


def choose_display(display: Display | Literal["auto"] | None) -> Display:
    """The display that an argument stands for.

    Args:
        display: one; or ``"auto"``: what :func:`make_display` gives where someone looks, on a terminal or in a
            notebook, and silence elsewhere; or None: silence.

    Raises:
        UserError: another word.
    """
    if display == "auto":
        looked_at = sys.stdout is not None and (sys.stdout.isatty() or Console().is_jupyter)
        return make_display() if looked_at else Silent()
    if isinstance(display, str):
        raise UserError(f"display must be auto, None or a display (pckd.display), not {display!r}")
    return Silent() if display is None else display


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if is_number(value)}


def _cell(name: str, value: Any) -> str:
    if name in ACCURACIES:
        return fixed(value)
    return f"{value:.1f}" if name == "seconds" else short(value, zeros=name != "lr")

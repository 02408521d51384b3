"""What a run says while it runs: a rich display on a terminal, plain lines elsewhere, silence from Python."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from model_zoo import METHOD_OPTIONS, method_recipe
from model_zoo.recipes import LEFT_OUT
from registry import METHODS, Registry, Term, build, options_of

T = TypeVar("T")

HIDDEN = frozenset({"epoch", "top5", "test_loss", "difficulty_report", "gradient_report"})
"""Columns of an epoch's row that the display leaves to metrics.jsonl."""


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None: ...
    def begin(self, title: str, epochs: int, steps: int, done: int) -> None: ...
    def advance(self, epoch: int, step: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


class Plain(Silent):
    """A line per epoch, for logs and pipes."""

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
        values = "  ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in HIDDEN)
        self.note(f"epoch {row['epoch']}/{self.epochs}  {values}  left {_clock(left)}")


class Rich(Silent):
    """A progress bar with the time left, and a table row per epoch."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.progress: Progress | None = None
        self.epochs = 0
        self.steps = 0

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.end()
        self.epochs, self.steps = epochs, steps
        self.console.rule(title, align="left")
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
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
        shown = {name: _short(value) for name, value in row.items() if name not in HIDDEN}
        shown = {"epoch": f"{row['epoch']}/{self.epochs}", **shown}
        # As many columns beside each other as the terminal has room for; the rest goes below them.
        names, room = list(shown), max(1, self.console.width // 11)
        for start in range(0, len(names), room):
            table = Table(show_header=True, header_style="bold", box=None, padding=(0, 1))
            for name in names[start : start + room]:
                table.add_column(name.replace("_", "\n"), justify="right", vertical="bottom", min_width=9)
            table.add_row(*(shown[name] for name in names[start : start + room]))
            self.console.print(table)

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


def make_display(stream: TextIO | None = None) -> Plain | Rich:
    """Rich on a terminal, plain lines otherwise."""
    stream = stream or sys.stdout
    return Rich(Console(file=stream)) if stream.isatty() else Plain(stream)


def _short(value: Any) -> str:
    if isinstance(value, float):
        if math.isfinite(value) and value and not 1e-3 <= abs(value) < 1e5:
            return f"{value:.2e}"
        return f"{value:.4g}"
    return str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def print_registry(registry: Registry, stream: TextIO | None = None) -> None:
    """A table of the names of a registry, what they are and their options; of a method also its paper, its terms
    and what is published for some pairs of networks."""
    stream = stream or sys.stdout
    columns = ["name", "what it is", "options"]
    rows = [[name, registry.summary(name), _options(registry.get(name))] for name in registry.names()]
    if registry is METHODS:
        columns[2:2] = ["paper", "year", "terms and weights"]
        columns.append("published per pair")
        for row in rows:
            facts = registry.facts(row[0])
            row[2:2] = [str(facts.get("paper", "")), str(facts.get("year", "")), _terms(build(METHODS, row[0]))]
            row.append(_published(row[0]))
    print_table(columns, rows, stream)
    if registry is METHODS:
        for name, reason in LEFT_OUT.items():
            print(f"# {name} is left out: {reason}", file=stream)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO | None = None, *, header: bool = False
) -> None:
    """A table on a terminal; elsewhere a line a row: the name, then what is not empty, after a ``header`` if asked."""
    stream = stream or sys.stdout
    if not stream.isatty():
        for name, *rest in [columns, *rows] if header else rows:
            print(f"{name:<24} {'  |  '.join(text for text in rest if text)}", file=stream)
        return
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=stream).print(table)


def _terms(terms: list[Term]) -> str:
    def describe(term: Term) -> str:
        details = _listed({**term.options, **term.particulars})
        return f"{term.weight:g} {term.label}{' (previewed)' * term.previewed}{f' [{details}]' if details else ''}"

    return " + ".join(describe(term) for term in terms)


def _published(method: str) -> str:
    """What the literature sets for a method: ``lr=0.025; beta=8 for resnet32x4>resnet8x4, ...; beta=6 for ...``."""
    groups: dict[str, list[str]] = {}
    for pair, options in METHOD_OPTIONS[method].pairs.items() if method in METHOD_OPTIONS else ():
        groups.setdefault(_listed(options), []).append(pair)
    recipe = _listed(method_recipe(method))
    return "; ".join([recipe] * bool(recipe) + [f"{values} for {', '.join(pairs)}" for values, pairs in groups.items()])


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items()
    )


def _options(obj: Any) -> str:
    defaults = {name: default for name, default in options_of(obj).items() if default is not inspect.Parameter.empty}
    return ", ".join(f"{name}={default!r}" for name, default in defaults.items())

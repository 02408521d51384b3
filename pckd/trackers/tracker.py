"""What all trackers have in common: what they are told, and what happens where one of them fails."""

from __future__ import annotations

import hashlib
import importlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from pckd.display import Display, choose_display, tell
from pckd.runs import BY_TRUTH, ENTRIES
from registry import TRACKERS, UserError, build, parse

__all__ = ["Tracker", "installed", "safe_name", "scalars", "track"]

THIRDS = {f"difficulty/{BY_TRUTH}": ("easy", "middle", "hard")}
"""The lists that are written: their tags, and the names of what is in them."""


class Tracker(Display):
    """Tells another display everything, and keeps every number of each epoch in a folder.

    A subclass gives :meth:`open` and :meth:`write`, and where it has a place for them :meth:`record` and :meth:`close`.
    What :meth:`open` raises ends the run in one line, before its first step. What fails later is said in a line, and
    the run goes on without the tracker.

    Args:
        folder: made when the first training begins. display: what is told, as for :func:`pckd.distill`; it may be
            another tracker.
    """

    def __init__(self, folder: str | os.PathLike[str], display: Display | Literal["auto"] | None = "auto") -> None:
        self.folder = Path(folder).expanduser()
        self.display = choose_display(display)
        self.settings: dict[str, Any] = {}
        """Arguments of the training."""
        self.done = self.epochs = 0
        self._is_open = False

    def open(self, title: str, done: int) -> None:
        """Begin a training, or go on with it after ``done`` epochs: what is there of later ones will be done again."""
        raise NotImplementedError

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Keep an epoch's numbers by their tags (:func:`scalars`), so that a kill afterwards does not lose them."""
        raise NotImplementedError

    def record(self, record: dict[str, Any]) -> None:
        """Keep what result.json says of a whole training."""

    def close(self) -> None:
        """End the training; :attr:`whole` says whether all of it was done."""

    @property
    def whole(self) -> bool:
        """Whether the last epoch is done."""
        return self.done >= self.epochs

    def key(self, title: str) -> str:
        """The same for a training that is resumed, another for any other one that has the folder for its numbers."""
        output = self.settings.get("output")
        place = uuid.uuid4().hex if output is None else os.path.relpath(os.path.expanduser(output), self.folder)
        # In a folder of the run's own, trainings differ by their titles.
        told_apart = "" if place == os.pardir else f"-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        return f"{safe_name(title)}{told_apart}"

    def say_missing(self, kept: int, done: int) -> None:
        """Say that epochs were done without this tracker."""
        if kept < done:
            self.note(f"{self.folder}: has {kept} of the {done} epochs that are done; the others were not tracked")

    def note(self, text: str) -> None:
        self.display.note(text)

    def arguments(self, values: dict[str, Any]) -> None:
        self.settings = values
        tell(self.display, "arguments", values)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self._end()
        self.done, self.epochs = done, epochs
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.open(title, done)
        except UserError:
            raise
        except Exception as error:  # of a library, in any type
            raise UserError(f"cannot track the run in {self.folder}: {_reason(error)}") from error
        self._is_open = True
        self.display.begin(title, epochs, steps, done)

    def advance(self, epoch: int, step: int) -> None:
        self.display.advance(epoch, step)

    def epoch(self, row: dict[str, Any]) -> None:
        self.done = row["epoch"]
        self._try(lambda: self.write(row["epoch"], dict(scalars(row))))
        self.display.epoch(row)

    def end(self) -> None:
        if not self.whole:  # else the record is still to come
            self._end()
        self.display.end()

    def result(self, record: dict[str, Any]) -> None:
        self._try(lambda: self.record(record))
        self._end()
        tell(self.display, "result", record)

    def _end(self) -> None:
        self._try(self.close)
        self._is_open = False

    def _try(self, do: Callable[[], object]) -> None:
        if not self._is_open:
            return
        try:
            do()
        except Exception as error:  # hours of training are worth more than their picture
            self._is_open = False
            self.note(f"warning: tracking in {self.folder} has ended, the run goes on without it: {_reason(error)}")


def track(spec: str, output: str | os.PathLike[str] | None, display: Display) -> Tracker:
    """The tracker of a name with options, around a display; ``folder`` among the options is in ``output`` by default.

    Raises:
        UserError: an unknown name or option, no folder, or a library that is missing.
    """
    name, options = parse(spec)
    folder = options.pop("folder", None)
    if not (folder or output):
        raise UserError(f"--track {name} needs the --output folder to write to, or '{name}(folder=\"DIR\")'")
    if folder is not None and not isinstance(folder, str):
        raise UserError(f"--track {spec}: folder must be a path, not {folder!r}")
    left = ", ".join(f"{key}={value!r}" for key, value in options.items())
    made: Tracker = build(TRACKERS, f"{name}({left})", folder or Path(output or "") / name, display)
    return made


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in an epoch's row, also in dictionaries within it. Lists are left out, but for
    the accuracies by thirds of the true difficulty."""
    for name, value in row.items():
        if name != "epoch":
            kind = "accuracy" if name.startswith("ema_") else "loss"
            yield from _numbers(ENTRIES.get(name, name if isinstance(value, Mapping) else f"{kind}/{name}"), value)


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if tag in THIRDS:
        value = dict(zip(THIRDS[tag], value, strict=True))
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(f"{tag}/{name}", inner)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield tag, float(value)


def safe_name(title: str) -> str:
    """A title as the name of a file."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in title)[:100]


def installed(module: str, extra: str) -> Any:
    """An optional module.

    Raises:
        UserError: it is not installed.
    """
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise _missing(extra) from error
    if found.__file__ is None:  # a folder of that name, which the library itself has written
        raise _missing(extra)
    return found


def _missing(extra: str) -> UserError:
    return UserError(f"the tracker {extra} needs {extra}, which is not installed: pip install 'pckd[{extra}]'")


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error)).split())[:300] or type(error).__name__

"""What a run says, also for TensorBoard: every number of each epoch's row as a scalar."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from pckd.display import Display, choose_display
from pckd.runs import BY_TRUTH, ENTRIES
from registry import UserError

__all__ = ["TensorBoard", "scalars"]

THIRDS = {f"difficulty/{BY_TRUTH}": ("easy", "middle", "hard")}
"""The lists that are written: their tags, and the names of what is in them."""


class TensorBoard(Display):
    """Tells another display everything, and writes events that ``tensorboard --logdir FOLDER`` shows.

    Each training has a folder of its own below, named by its title: a teacher that is trained first does not mix with
    its student. After each epoch the events are handed to the system, so that a killed process loses none of them.
    What a resumed run does again hides what was written of it before.

    Args:
        folder: made when the first training begins. display: what is told, as for :func:`pckd.distill`.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], display: Display | Literal["auto"] | None = "auto") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "TensorBoard's events need tensorboard, which is not installed: pip install 'pckd[tensorboard]'"
            ) from error
        self._make_writer = SummaryWriter
        self.folder = Path(folder).expanduser()
        self.display = choose_display(display)
        self._writer: Any = None

    def note(self, text: str) -> None:
        self.display.note(text)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self._close()
        name = "".join(c if c.isalnum() or c in "-_.=" else "_" for c in title)[:100]
        # Steps are epochs: what is there of those after the ``done`` ones belongs to what will be done again.
        self._writer = self._make_writer(str(self.folder / name), purge_step=done + 1)
        self.display.begin(title, epochs, steps, done)

    def advance(self, epoch: int, step: int) -> None:
        self.display.advance(epoch, step)

    def epoch(self, row: dict[str, Any]) -> None:
        if self._writer is not None:
            for tag, value in scalars(row):
                self._writer.add_scalar(tag, value, row["epoch"])
            self._writer.flush()
        self.display.epoch(row)

    def end(self) -> None:
        self._close()
        self.display.end()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number in an epoch's row, also in dictionaries within it. Lists are left out, but for
    the accuracies by thirds of the true difficulty."""
    for name, value in row.items():
        if name != "epoch":
            yield from _numbers(ENTRIES.get(name, name if isinstance(value, Mapping) else f"loss/{name}"), value)


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    if tag in THIRDS:
        value = dict(zip(THIRDS[tag], value, strict=True))
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(f"{tag}/{name}", inner)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield tag, float(value)

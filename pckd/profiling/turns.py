"""Runs that take turns in one process, so that what drifts on a machine drifts for all of them alike."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pckd.display import Silent

__all__ = ["Epochs", "Turn", "Turns", "Watcher", "give_back_threads"]


@dataclass(frozen=True)
class Turn:
    """What a run did in its turn."""

    seconds: float
    """Of its steps together, with their data."""
    steps: int
    first: float
    """Seconds of the first step."""


class Watcher(Protocol):
    """Is told in the run's own thread where a turn is."""

    def begin(self) -> None: ...
    def stepped(self) -> None: ...
    def end(self) -> None: ...


class Stop(BaseException):
    """Raised in a run whose turns are over."""


class Turns:
    """A run in a thread of its own that goes on only while it has a turn.

    Where everything waits for its turn, one thread runs at a time. Between two turns the thread has no OpenMP workers,
    and the device has nothing to do.

    Args:
        run: called in the thread, with this object. It calls :meth:`wait` when it is ready for its first turn and after
            each turn, and :meth:`stepped` after each step. device: what it runs on.

    Attributes:
        watcher: told of what the run does, while there is one.
    """

    def __init__(self, run: Callable[[Turns], object], device: torch.device) -> None:
        self.watcher: Watcher | None = None
        self._run, self._device = run, device
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._begun = 0.0
        self._stamps: list[float] = []
        self._error: BaseException | None = None
        self._over = False
        self._thread = threading.Thread(target=self._work, name="turns", daemon=True)
        self._thread.takes_turns = True  # type: ignore[attr-defined]  # see pckd.engine.progress.own_random_state

    # Called by whoever gives the turns

    def start(self) -> float:
        """Let the run make itself ready; the seconds that took."""
        begun = time.perf_counter()
        self._thread.start()
        self._pass()
        return time.perf_counter() - begun

    def turn(self) -> Turn:
        """Let the run take a turn. Raises what the run raises."""
        self._stamps = []
        self._pass()
        if not self._stamps:
            raise RuntimeError("the run has ended, or its turn had no step")
        return Turn(self._stamps[-1] - self._begun, len(self._stamps), self._stamps[0] - self._begun)

    def close(self) -> None:
        """End the run where it waits."""
        if self._thread.is_alive() and not self._over:
            self._over = True
            self._go.release()
            self._thread.join()

    def _pass(self) -> None:
        if self._over:
            raise RuntimeError("the run has ended")
        self._go.release()
        self._waits.acquire()
        if self._error is not None:
            raise self._error

    # Called in the run's thread

    def wait(self) -> None:
        """End the turn, and begin the next one when it comes."""
        if self.watcher is not None and self._stamps:
            self.watcher.end()
        self._synchronize()
        give_back_threads()
        self._waits.release()
        self._go.acquire()
        if self._over:
            raise Stop
        self.begin()

    def begin(self) -> None:
        """Let the turn's time begin here; :meth:`wait` does so itself."""
        self._begun = time.perf_counter()
        if self.watcher is not None:
            self.watcher.begin()

    def stepped(self, *, waited_for: bool = False) -> None:
        """A step is done.

        Args:
            waited_for: whether the device is waited for first: after the last step of a turn.
        """
        if self.watcher is not None:
            self.watcher.stepped()
        if waited_for:
            self._synchronize()
        self._stamps.append(time.perf_counter())

    def _work(self) -> None:
        try:
            self._go.acquire()
            self._run(self)
        except Stop:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._over = True
            self._waits.release()

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


class Epochs(Silent):
    """What :func:`pckd.distill` is given as its display, to train an epoch in each turn; evaluation is not timed.

    Attributes:
        notes: what the run has said.
    """

    def __init__(self, turns: Turns) -> None:
        self.notes: list[str] = []
        self._turns, self._steps, self._first = turns, 0, True

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self._steps = steps
        self._turns.wait()

    def advance(self, epoch: int, step: int) -> None:
        # The very first step is known by itself: in it things are made ready.
        self._turns.stepped(waited_for=self._first or step == self._steps)
        self._first = False

    def epoch(self, row: dict[str, Any]) -> None:
        self._turns.wait()


def give_back_threads() -> bool:
    """End the OpenMP workers of the calling thread, which are made anew when they are next needed.

    OpenMP lets its workers wait for the next loop only briefly where there are more of them in a process than cores:
    with the pools of several runs side by side, each would be slower than the same run alone.

    Returns:
        Whether they have ended: not where OpenMP is older than its version 5, as in PyTorch 2.6 from pip.
    """
    with contextlib.suppress(TypeError, OSError, AttributeError):
        soft = 1
        return bool(ctypes.CDLL(None).omp_pause_resource_all(soft) == 0)
    return False

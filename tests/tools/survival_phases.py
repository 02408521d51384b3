"""A plug-in that changes nothing, shows in shared memory what a run is doing, and holds it; see test_survival.py.

The board is a file of 64-bit numbers: the phase, how often each phase was entered, the nanoseconds spent in each, and a
gate: how often the run has looked at it while it waits there, a phase, and how often that may be entered before the
next step of training waits until the gate is opened (0).
Beside the board lie the numbers of the processes that read the data. Of processes that train together each has a board,
with its rank at the end of the name.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pckd.api
from pckd.engine import trainer
from pckd.engine.record import RunFolder

PHASES = ("start-up", "training", "evaluation", "checkpoint", "end")

GATE = 1 + 2 * len(PHASES)
LONGEST = 600.0
"""Seconds at the gate, should nobody be left to open it."""

BOARD = os.environ["SURVIVAL_BOARD"] + os.environ.get("RANK", "")

with open(BOARD, "r+b") as file:
    board = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


def show(owner: Any, name: str, phase: str, *, stays: bool = False) -> None:
    """Show ``phase`` while the function runs, and afterwards too if it ``stays``."""
    original, number = getattr(owner, name), PHASES.index(phase)

    def shown(*args: Any, **options: Any) -> Any:
        before, started = board[0], time.monotonic_ns()
        board[0] = number
        board[1 + number] += 1
        try:
            return original(*args, **options)
        finally:
            board[1 + len(PHASES) + number] += time.monotonic_ns() - started
            board[0] = number if stays else before

    setattr(owner, name, shown)


def tell_readers() -> None:
    told, new = (Path(BOARD + end) for end in (".readers", ".new"))
    new.write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
    new.replace(told)


def pass_gate() -> None:
    longest = time.monotonic() + LONGEST
    while board[GATE + 2] and board[1 + board[GATE + 1]] >= board[GATE + 2] and time.monotonic() < longest:
        board[GATE] += 1
        time.sleep(0.001)
    board[GATE] = 0


def gated(step: Any) -> Any:
    def held(*args: Any, **options: Any) -> Any:
        tell_readers()
        pass_gate()
        return step(*args, **options)

    return held


show(trainer, "train_step", "training", stays=True)
trainer.train_step = gated(trainer.train_step)
show(trainer.Trainer, "_measure", "evaluation")
show(RunFolder, "append_metrics", "checkpoint")
show(RunFolder, "save_checkpoint", "checkpoint")
show(RunFolder, "write_result", "end")
show(pckd.api, "save_weights", "end", stays=True)

"""A run that trains in turns with others, each in a process of its own, so that their speeds can be compared."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pckd.display import Silent
from pckd.profiling.measure import recorder, spent


class Served(Silent):
    """The display of a run that trains an epoch for each line that it is given, and answers with what that took.

    The first answer has ``ready``, the seconds until the first step could begin, and ``peak``, the most bytes in use
    until then. After ``go`` it has the ``seconds`` of an epoch's steps and their data, the ``images`` they trained on,
    and the ``peak`` meanwhile; evaluation is in neither. After ``watch`` torch.profiler records the epoch, and the
    answer also has ``parts``, what :func:`pckd.profiling.measure.spent` finds.

    Args:
        read: the next line, ``""`` at the end, which ends the run. answer: takes what is said.
    """

    def __init__(
        self,
        device: torch.device,
        batch_size: int,
        read: Callable[[], str],
        answer: Callable[[dict[str, Any]], object],
    ) -> None:
        self._device, self._batch_size, self._read, self._answer = device, batch_size, read, answer
        self._profiler: torch.profiler.profile | None = None
        self._begun, self._steps = time.perf_counter(), 0
        self._said: dict[str, Any] = {}

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
        self._steps = steps
        self._said = {"ready": time.perf_counter() - self._begun, "peak": peak(self._device)}
        self._read()
        self.epoch({})

    def epoch(self, row: dict[str, Any]) -> None:
        """Answer, and wait for the next line."""
        self._answer(self._said)
        order = self._read().strip()
        if not order:
            raise SystemExit(0)
        forget_peak(self._device)
        self._profiler = recorder(self._device) if order == "watch" else None
        if self._profiler is not None:
            self._profiler.start()
        self.restart()

    def restart(self) -> None:
        """Let the epoch's time begin here."""
        self._begun = time.perf_counter()

    def advance(self, epoch: int, step: int) -> None:
        if step < self._steps:
            return
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        seconds = time.perf_counter() - self._begun
        self._said = {"seconds": seconds, "images": step * self._batch_size, "peak": peak(self._device)}
        if self._profiler is not None:
            self._profiler.stop()
            parts = spent(self._profiler.events(), self._device)
            self._said["parts"] = {part: asdict(times) for part, times in parts.items()}


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak` count from what is in use now; where the system cannot, it goes on from the old peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Most bytes in use so far: of tensors on a CUDA device, else of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where getrusage would give a new process the peak of the one that started it
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""How many threads a training on the CPU has: as many as there are cores that nothing else uses.

The threads of an operation wait for the last of them, and where that one has no core, all do: beside one busy process
on two cores, two threads train at a tenth of their speed alone, and one thread at two thirds of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Pace", "Threads", "cores", "threads_for"]

LOOK = 0.3
"""Seconds for which a run looks at the cores before it starts."""
SET_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user, or torchrun, has chosen a number."""
SLOWER = 3.0
"""By how much steps must slow down before the log says so."""
STEPS, SECONDS = 20, 5.0
"""Of steps whose mean duration is compared: at least so many, for at least so long."""


@dataclass(eq=False)
class Threads:
    """The number of threads of a run. It is a part with state: sums by another number of threads may round otherwise.

    Args:
        count: by default as many as there are. note: what the log says of it. settled: a user has chosen the number, so
            that no checkpoint changes it.
    """

    count: int = field(default_factory=torch.get_num_threads)
    note: str = ""
    settled: bool = False

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        before, there = state.get("count", self.count), cores()
        if before == self.count:
            return
        wrote = f"the checkpoint was written with {_threads(before)}"
        if self.settled or before > there:
            also = "" if self.settled else f", and there are {there} cores"
            self.note = f"{_threads(self.count)}: {wrote}{also}, so numbers may differ by rounding"
            return
        self.note = f"{_threads(before)}, as before the interruption; --threads {self.count} suits the free cores now"
        self.count = before
        _set(before)


_running: list[Threads] = []
"""Those of the trainings that run, one inside another: a teacher is trained inside its student's run."""


@contextlib.contextmanager
def threads_for(device: torch.device, asked: int | None, processes: int = 1) -> Iterator[Threads]:
    """Inside, PyTorch has the number of threads that suits this machine now; afterwards the one that it had.

    Only on the CPU. A number in the environment (:data:`SET_BY`), or one that the caller has set, stays: that is, one
    that is not what PyTorch takes by itself.

    Args:
        asked: the number that the user asks for. processes: that share the cores of this machine.
    """
    own = torch.get_num_threads()
    if asked is not None:
        threads = Threads(asked, settled=True)
    elif _running:
        threads = Threads(own, _running[-1].note, _running[-1].settled)
    elif device.type != "cpu" or any(os.environ.get(name) for name in SET_BY) or own not in _usual():
        threads = Threads(own, settled=True)
    else:
        threads = _free(own, processes)
    _set(threads.count)
    _running.append(threads)
    try:
        yield threads
    finally:
        _running.pop()
        _set(own)


def _set(count: int) -> None:
    # Also the same number would change what MKL does: it would no longer take fewer threads for small matrices.
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def _free(most: int, processes: int) -> Threads:
    """As many threads as there are free cores, for each of the processes, and at most so many."""
    used, there = _in_use(), cores()
    # What uses less than half a core leaves it to others most of the time.
    count = max(1, min(most, (there if used is None else min(there, len(_allowed()) - round(used))) // processes))
    if used is None or not round(used):
        return Threads(count, f"{_threads(count)} on {there} core{'s' * (there > 1)}")
    beside = f"other programs use {used:.1f} of {len(_allowed())} cores now"
    return Threads(count, f"{_threads(count)}: {beside} (--threads N sets it)")


def cores() -> int:
    """How many cores this process may use: by its affinity, and by the time that its control groups have."""
    return max(1, int(min(len(_allowed()), _quota())))


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _usual() -> set[int]:
    """The numbers of threads that PyTorch takes by itself: a thread for each core, or for each that is no twin."""
    places = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {len(_allowed()), len({_text(places.format(number)) for number in _allowed()})}


def _text(path: str | Path) -> str:
    """The content of a file of the system; "" where there is none."""
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def _quota(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """Cores' worth of time that a container or a service has; infinite without a limit, or without control groups."""
    limits = [math.inf]
    for line in _text(groups).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        at = Path(root, "cpu" if kinds else "")
        # The path may be one that only the host sees: then the limit stands at the root.
        for folder in (at / path.strip("/"), *(at / parent for parent in Path(path.strip("/")).parents)):
            if kinds:
                text = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
            else:
                text = _text(folder / "cpu.max")
            quota, _, period = text.strip().partition(" ")
            if quota.isdecimal() and period.strip().isdecimal():
                limits.append(int(quota) / int(period))
    return min(limits)


def _worked() -> float | None:
    """Seconds that the cores of this process have worked, for anyone; None where the system does not say."""
    wanted = {f"cpu{number}" for number in _allowed()}
    rows = [row for row in map(str.split, _text("/proc/stat").splitlines()) if row and row[0] in wanted]
    # User, nice, system; interrupts, and what other guests of the host have taken.
    ticks = sum(int(number) for row in rows for number in row[1:4] + row[6:9])
    return ticks / os.sysconf("SC_CLK_TCK") if rows else None


def _in_use() -> float | None:
    """How many cores others use now."""
    look = _Look()
    time.sleep(LOOK)
    return look.others()


class _Look:
    """What others do on the cores of this process, from when it is made."""

    def __init__(self) -> None:
        self.started, self.own, self.all = time.perf_counter(), time.process_time(), _worked()

    def others(self) -> float | None:
        """Cores that they have used on average."""
        now = _worked()
        if now is None or self.all is None:
            return None
        theirs = now - self.all - (time.process_time() - self.own)
        return max(0.0, theirs / (time.perf_counter() - self.started))


class Pace:
    """Says once that steps have become :data:`SLOWER` times slower while others use the cores.

    Args:
        say: is told; None where there is nobody to tell.
    """

    def __init__(self, say: Callable[[str], Any] | None) -> None:
        self.say = say
        self.best = math.inf
        self.begin()

    def begin(self, anew: bool = False) -> None:
        """Between two steps there was something else; ``anew``: the steps that come are of another kind."""
        self.best = math.inf if anew else self.best
        self._look, self._steps = _Look(), 0

    def step(self) -> None:
        """A step is done."""
        self._steps += 1
        if self.say is None or self._steps < STEPS:
            return
        seconds = time.perf_counter() - self._look.started
        if seconds < SECONDS:
            return
        each = seconds / self._steps
        if each > SLOWER * self.best and (others := self._look.others()) is not None and others >= 0.5:
            self.say(
                f"warning: a step takes {each:.2g} s, and took {self.best:.2g} s: other programs use {others:.1f} of "
                f"{len(_allowed())} cores; stopped and continued with --resume --threads N, with as many threads as "
                "there are free cores, the run is faster, but may round otherwise"
            )
            self.say = None
        self.best = min(self.best, each)
        self.begin()


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"

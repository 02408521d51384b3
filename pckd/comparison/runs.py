"""Running the runs: one after the other in this process, or several at once, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pckd.api import TEACHER_OPTIONS, distill, train_teacher
from pckd.comparison.plan import Run
from pckd.display import make_display
from pckd.engine.fingerprint import network_fingerprint, split_fingerprint
from pckd.engine.guard import Interrupted, Signals
from pckd.engine.record import MAY_CHANGE, METRICS, RESULT, find_changes
from pckd.engine.sources import Data, load_trained
from pckd.engine.train import Display
from registry import UserError
from registry.errors import is_out_of_memory

__all__ = ["LOG", "Ended", "fingerprints_of", "obtain_teachers", "read_finished", "run_all", "run_one_for_parent"]

LOG = "log.txt"
"""In a run's folder: what it printed, where it ran in a process of its own."""
POLL_SECONDS = 0.1
READ = ("last_top1", "best_top1", "images_per_second", "loss_parameters", "terms")
"""What is taken of a run's result.json, whichever version wrote it."""
EASY = frozenset({"output", "resume", "device", "num_workers", "data_root", "compile", "teacher_epochs"})
"""Arguments that may be others in a finished run, and the teacher's length, which is none where there is no teacher."""

Ended = Callable[[Run, str | None, float], None]
"""Told of a run that has ended: the reason, where it failed, and the seconds that it took."""


def fingerprints_of(runs: Sequence[Run], data: Data) -> dict[str, dict[str, Any]]:
    """Of each teacher the fingerprints of a run under it: of the data, and of the teacher where its weights are given.

    Raises:
        UserError: weights that cannot be read.
    """
    splits = {"train": split_fingerprint(data.train), "test": split_fingerprint(data.test)}
    found: dict[str, dict[str, Any]] = {}
    for teacher, run in {run.teacher: run for run in runs}.items():
        weights = run.arguments["teacher_weights"]
        of_teacher = {} if weights is None else {"teacher": network_fingerprint(load_trained(teacher, data, weights))}
        found[teacher] = {**splits, **of_teacher}
    return found


def read_finished(run: Run, data: Data, fingerprints: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The record of a finished run; None where it is not finished.

    Args:
        fingerprints: what the data and the teacher are now (:func:`fingerprints_of`).

    Raises:
        UserError: the files cannot be read, or are of a run with other arguments, data or teacher; says which.
    """
    if not (run.path / RESULT).exists():
        return None
    advice = "choose another --output, or remove the folder"
    try:
        done = json.loads((run.path / RESULT).read_text(encoding="utf-8"))
        there = {**done["arguments"], **{key: done[key] for key in ("train_images", "measured_on", *READ)}}
        rows = [json.loads(line) for line in (run.path / METRICS).read_text(encoding="utf-8").splitlines()]
        rows[-1]["top1"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{run.path}: not the folder of a finished run ({type(error).__name__}: {error}); {advice}"
        ) from error
    asked = {key: value for key, value in run.arguments.items() if key == "epochs" or key not in MAY_CHANGE | EASY}
    if run.arguments["teacher_weights"] is None and done["teacher"] is not None:
        asked["teacher_epochs"] = run.arguments["teacher_epochs"]
    asked.update(train_images=len(data.train), measured_on=data.measured_on)
    other = find_changes(there, asked, done.get("fingerprints"), fingerprints)
    if other:
        raise UserError(f"{run.path} holds a run with other arguments ({'; '.join(other)}); {advice}")
    return {**done, "history": rows}


def obtain_teachers(
    runs: Sequence[Run], data: Data, display: Display, fingerprints: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, str]:
    """Train the teachers that have no weights, or find them in the cache, as each of the runs then does.

    Args:
        fingerprints: of :func:`fingerprints_of`; those of the teachers are added.

    Returns:
        Of teachers whose training failed: name to reason.
    """
    failed = {}
    for teacher, run in {run.teacher: run for run in runs if run.arguments["teacher_weights"] is None}.items():
        options = {key: run.arguments[key] for key in TEACHER_OPTIONS if key in run.arguments}
        epochs, lr = run.arguments["teacher_epochs"], run.arguments["teacher_lr"]
        try:
            network = train_teacher(teacher=teacher, data=data, epochs=epochs, lr=lr, display=display, **options)
        except (UserError, RuntimeError, MemoryError) as error:
            failed[teacher] = f"its teacher: {_reason(error)}"
        else:
            if fingerprints is not None:
                fingerprints[teacher]["teacher"] = network_fingerprint(network)
    return failed


def run_all(runs: Sequence[Run], ended: Ended, *, jobs: int, command: Sequence[str], display: Display) -> None:
    """Run what is not finished; a run that fails does not keep the others from it.

    Args:
        jobs: how many at once; 1: one after the other, in this process.
        command: the program that runs one, given its arguments in JSON (:func:`run_one_for_parent`).

    Raises:
        Interrupted: a signal came. Every run has written a checkpoint, and none is left running.
    """
    if jobs > 1:
        _Several(runs, ended, jobs, command, display).work()
        return
    for position, run in enumerate(runs, start=1):
        display.note(f"[{position}/{len(runs)}] {run.title}")
        started = time.monotonic()
        reason = None
        try:
            distill(**run.arguments, display=display)
        except (UserError, RuntimeError, MemoryError) as error:
            reason = _reason(error)
        ended(run, reason, time.monotonic() - started)


def _reason(error: Exception) -> str:
    """In one line.

    Raises:
        Exception: an error that is neither the user's nor the machine's.
    """
    if is_out_of_memory(error):
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        return f"out of memory ({' '.join(str(error).split())[:200]})"
    if not isinstance(error, UserError):
        raise error
    return " ".join(str(error).split())


def run_one_for_parent(text: str) -> int:
    """Run one with the arguments in ``text``, in a process that ends, with a checkpoint, when its parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    distill(**json.loads(text), display=make_display())
    return 0


def _end_with_parent() -> None:
    # The other end of standard input is the parent's, which writes nothing: reading ends when it is gone.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    slot: int
    started: float


class _Several:
    """Several runs at once, each a child with a share of the cores and, where there are several, an accelerator."""

    def __init__(self, runs: Sequence[Run], ended: Ended, jobs: int, command: Sequence[str], display: Display) -> None:
        self.waiting = deque(runs)
        self.ended, self.command, self.display = ended, command, display
        self.free = list(range(jobs))
        self.children: list[_Child] = []
        self.accelerators = accelerators()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}

    def work(self) -> None:
        with Signals() as signals:
            try:
                while (self.waiting or self.children) and not signals.number:
                    while self.waiting and self.free:
                        self.start(self.waiting.popleft(), self.free.pop(0))
                    time.sleep(POLL_SECONDS)
                    for child in [child for child in self.children if child.process.poll() is not None]:
                        self.finish(child)
            finally:
                self.stop(signals.number or signal.SIGTERM)
            if signals.number:
                raise Interrupted(signals.number, "stopped, as were the runs")

    def start(self, run: Run, slot: int) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        arguments = {**run.arguments, "device": dealt(run.arguments["device"], slot, self.accelerators)}
        with open(run.path / LOG, "ab") as log:
            process = subprocess.Popen(
                [*self.command, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
                # A terminal sends its interrupts to a whole session; a second one would end a run without a checkpoint.
                start_new_session=True,
            )
        self.children.append(_Child(run, process, slot, time.monotonic()))
        self.display.note(f"started {run.title}, {run.path / LOG}")

    def finish(self, child: _Child) -> None:
        self.children.remove(child)
        self.free.append(child.slot)
        if child.process.stdin is not None:
            child.process.stdin.close()
        code = child.process.returncode
        self.ended(child.run, failure(code, child.run.path / LOG) if code else None, time.monotonic() - child.started)

    def stop(self, number: int) -> None:
        """Tell all that run to stop, and wait until they have; a second signal does not wait."""
        try:
            for child in self.children:
                child.process.send_signal(number)
            for child in self.children:
                child.process.wait()
        except BaseException:
            for child in self.children:
                child.process.kill()
                child.process.wait()
            raise


def accelerators() -> list[str]:
    """``["cuda:0", "cuda:1"]``; none where there is one only, which is anyone's."""
    if not torch.accelerator.is_available() or (count := torch.accelerator.device_count()) < 2:
        return []
    kind = torch.accelerator.current_accelerator()
    return [f"{kind.type}:{index}" for index in range(count)] if kind is not None else []


def dealt(device: str | None, slot: int, devices: Sequence[str]) -> str | None:
    """The device of the job in ``slot``: one of ``devices`` in turn, unless one was asked for by number."""
    if not devices or device not in (None, devices[0].partition(":")[0]):
        return device
    return devices[slot % len(devices)]


def failure(code: int, log: Path) -> str:
    """Why a child ended with ``code``: the last line that it printed."""
    if code < 0:
        # So the system ends what has taken too much memory.
        hint = "; out of memory, perhaps" if -code == signal.SIGKILL else ""
        return f"ended by signal {-code}{hint} (see {log})"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].partition(": error: ")[2] or lines[-1] if lines else f"exit code {code}"

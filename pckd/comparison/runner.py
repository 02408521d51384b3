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
from pckd.arguments import may_change
from pckd.comparison.jobs import Job
from pckd.data.load import Data
from pckd.display import Display, make_display
from pckd.engine.fingerprint import network_fingerprint, split_fingerprint
from pckd.engine.guard import Interrupted, Signals
from pckd.engine.record import find_changes
from pckd.engine.teacher import FrozenTeacher
from pckd.plan import class_list, load_trained, make_task, start_from
from pckd.runs import METRICS, RESULT, Run, read_finished
from registry import UserError
from registry.errors import is_out_of_memory

LOG = "log.txt"
"""In a run's folder: what it printed, where it ran in a process of its own."""
POLL_SECONDS = 0.1
Ended = Callable[[Job, str | None, float], None]
"""Told of a run that has ended: the reason, where it failed, and the seconds that it took."""


def fingerprints_of(jobs: Sequence[Job], data: Data) -> dict[str, dict[str, Any]]:
    """Of each teacher the fingerprints of a run under it: of the data and, where its weights are given, its own."""
    splits = {"train": split_fingerprint(data.train), "test": split_fingerprint(data.test)}
    found: dict[str, dict[str, Any]] = {}
    for teacher, job in {job.teacher: job for job in jobs}.items():
        weights = job.arguments["teacher_weights"]
        found[teacher] = dict(splits)
        if weights is not None:
            task = make_task(job.arguments["task"], data)
            classes = class_list(job.arguments.get("teacher_classes"))
            network = load_trained(task, teacher, data, weights, classes)
            resizing = task.resizing("the teacher", network, data.train)
            shown = FrozenTeacher(network, resizing=resizing).resizing_facts
            found[teacher]["teacher"] = {**network_fingerprint(network), **shown}
    return found


def finished(job: Job, data: Data, fingerprints: Mapping[str, Any] | None = None) -> Run | None:
    """What a finished job has left; None where it is not finished.

    Args:
        fingerprints: what the data and the teacher are now (:func:`fingerprints_of`).

    Raises:
        UserError: the files cannot be read, or are of a run with other arguments, data or teacher; says which.
    """
    if not (job.path / RESULT).exists():
        return None
    advice = "choose another --output, or remove the folder"
    if (weights := job.arguments["student_weights"]) is not None:
        task = make_task(job.arguments["task"], data)
        teacher = [job.teacher], [job.arguments["teacher_weights"]]
        settled = task.settled(data, job.student, *teacher)[0]
        start = start_from(task, task.make_network(job.student, settled), settled, weights)
        fingerprints = {**(fingerprints or {}), "student": start[2]}
    run = read_finished(job.path)
    if not run.rows or run.metric not in run.rows[-1]:
        raise UserError(f"{job.path}: not the folder of a finished run: {METRICS} has no {run.metric}; {advice}")
    there = {**run.arguments, **{name: run.result.get(name) for name in ("train_images", "measured_on")}}
    # The length of a teacher's training counts where there is a teacher.
    free = (may_change() - {"epochs"}) | {"teacher_epochs"}
    asked = {name: value for name, value in job.arguments.items() if name not in free}
    if job.arguments["teacher_weights"] is None and run.result.get("teacher") is not None:
        asked["teacher_epochs"] = job.arguments["teacher_epochs"]
    asked.update(train_images=len(data.train), measured_on=data.measured_on)
    other = find_changes(there, asked, run.result.get("fingerprints"), fingerprints)
    if other:
        raise UserError(f"{job.path} holds a run with other arguments ({'; '.join(other)}); {advice}")
    return run


def obtain_teachers(
    jobs: Sequence[Job], data: Data, display: Display, fingerprints: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, str]:
    """Train the teachers that have no weights, or find them in the cache, as each of the runs then does.

    Their fingerprints are added to ``fingerprints``; returned is, of those whose training failed, name to reason.
    """
    failed = {}
    for teacher, job in {job.teacher: job for job in jobs if job.arguments["teacher_weights"] is None}.items():
        options = {key: job.arguments[key] for key in TEACHER_OPTIONS if key in job.arguments}
        epochs, lr = job.arguments["teacher_epochs"], job.arguments["teacher_lr"]
        try:
            about: dict[str, Any] = {"teacher": teacher, "task": job.arguments["task"], "data": data}
            network = train_teacher(epochs=epochs, lr=lr, display=display, **about, **options)
        except (UserError, RuntimeError, MemoryError) as error:
            failed[teacher] = f"its teacher: {_reason(error)}"
        else:
            if fingerprints is not None:
                fingerprints[teacher]["teacher"] = network_fingerprint(network)
    return failed


def run_all(jobs: Sequence[Job], ended: Ended, *, at_once: int, command: Sequence[str], display: Display) -> None:
    """Run what is not finished; a run that fails does not keep the others from it.

    Args:
        at_once: how many; 1: one after the other, in this process.
        command: the program that runs one, given its arguments in JSON (:func:`run_one_for_parent`).

    Raises:
        Interrupted: a signal came. Every run has written a checkpoint, and none is left running.
    """
    if at_once > 1:
        _Several(jobs, ended, at_once, command, display).work()
        return
    for position, job in enumerate(jobs, start=1):
        display.note(f"[{position}/{len(jobs)}] {job.title}")
        started = time.monotonic()
        reason = None
        try:
            distill(**job.arguments, display=display)
        except (UserError, RuntimeError, MemoryError) as error:
            reason = _reason(error)
        ended(job, reason, time.monotonic() - started)


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
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    started: float


class _Several:
    """Several runs at once, each a child with a share of the cores and, where there are several, an accelerator."""

    def __init__(
        self, jobs: Sequence[Job], ended: Ended, at_once: int, command: Sequence[str], display: Display
    ) -> None:
        self.waiting = deque(jobs)
        self.ended, self.command, self.display = ended, command, display
        self.free = list(range(at_once))
        self.children: list[_Child] = []
        self.accelerators = accelerators()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), **os.environ}

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

    def start(self, job: Job, slot: int) -> None:
        job.path.mkdir(parents=True, exist_ok=True)
        arguments = {**job.arguments, "device": dealt(job.arguments["device"], slot, self.accelerators)}
        with open(job.path / LOG, "ab") as log:
            process = subprocess.Popen(
                [*self.command, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
                # A terminal sends its interrupts to a whole session; a second one would end a run without a checkpoint.
                start_new_session=True,
            )
        self.children.append(_Child(job, process, slot, time.monotonic()))
        self.display.note(f"started {job.title}, {job.path / LOG}")

    def finish(self, child: _Child) -> None:
        self.children.remove(child)
        self.free.append(child.slot)
        if child.process.stdin is not None:
            child.process.stdin.close()
        code = child.process.returncode
        self.ended(child.job, failure(code, child.job.path / LOG) if code else None, time.monotonic() - child.started)

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

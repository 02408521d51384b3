"""The training loop, top to bottom; and every part of a run that has state, declared once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

from torch import nn
from torch._functorch import config as functorch

from model_zoo.probe import copied
from pckd.data import prefetch
from pckd.device import Device
from pckd.display import Display, tell
from pckd.engine.compiling import prepare, resolve_compile
from pckd.engine.guard import FiniteGuard, Interrupted, NonFinite, Signals, dead_readers_named
from pckd.engine.memory import kept_for
from pckd.engine.optimization import SCALE, Optimization, RunningAverage, reset_momentum, set_rate
from pckd.engine.progress import History, Meter, OwnBuffers, RandomState, seed_everything
from pckd.engine.ranks import these
from pckd.engine.record import RunFolder
from pckd.engine.step import train_step
from pckd.engine.teacher import FrozenTeacher
from pckd.engine.threads import Pace, Threads
from pckd.tasks import DistillationTask
from pckd.tasks.task import BatchLoader
from registry import Progress, UserError, ask

__all__ = ["History", "NonFinite", "Report", "Stateful", "Trainer"]


class Stateful(Protocol):
    """A part of a run whose state belongs in its checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dictionaries of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Report(Protocol):
    """A look at the networks after an epoch, that changes nothing; its answer is an entry of metrics.jsonl."""

    def __call__(
        self, model: DistillationTask, teachers: Sequence[FrozenTeacher], progress: Progress
    ) -> dict[str, Any]: ...


@dataclass(eq=False)
class Trainer:
    """Trains a student in place.

    Everything random in an epoch follows from ``seed`` and the epoch's number, or is in the checkpoint, so that a
    resumed run repeats the uninterrupted one. Every process of a group makes one alike; the first one alone has a
    ``folder``, and the ``fingerprints`` of data and teacher, which a resumed run must have, too. See
    :func:`pckd.distill` for the other arguments.

    Attributes:
        parts: every part with state, by the name that its state has in the checkpoint.
        own_parts: likewise, of those that differ from process to process.
    """

    model: DistillationTask
    teachers: Sequence[FrozenTeacher]
    train_loader: BatchLoader
    test_loader: BatchLoader
    _: KW_ONLY
    optimization: Optimization
    device: Device
    seed: int
    arguments: dict[str, Any]
    fingerprints: Mapping[str, Any]
    folder: RunFolder | None
    display: Display
    title: str
    threads: Threads = field(default_factory=Threads)
    resume: InitVar[bool] = False
    compile: bool | Literal["reduce-overhead"] | None = None
    checkpoint_every: int | Literal["epoch"] = "epoch"
    on_nonfinite: InitVar[Literal["stop", "skip"]] = "stop"
    reports: Mapping[str, Report] = field(default_factory=dict)
    decay: float | None = None
    """Of the running average of the student's weights, where there is one."""
    patience: int | None = None
    on_best: Callable[[nn.Module], None] | None = None
    """Told the network after each epoch that is the best so far."""

    def __post_init__(self, resume: bool, on_nonfinite: Literal["stop", "skip"]) -> None:
        device, target = self.device, self.device.target
        student, objective = self.model.student, self.model.objective
        self.ranks, batches = these(), len(self.train_loader)
        self.steps = batches // self.optimization.accumulate
        if not self.steps:
            raise UserError(
                f"accumulate={self.optimization.accumulate}: an epoch has {batches} batches only; take smaller batches"
            )
        device.place(student)
        objective.to(target)
        self.ranks.synchronize_statistics(objective, target)
        self.optimizer = self.optimization.optimizer(student, objective, target)
        self.history, self.meter, self.guard = History(), Meter(target), FiniteGuard(target, on_nonfinite)
        self.parts: dict[str, Stateful] = {
            "student": student,
            "objective": objective,
            "optimizer": self.optimizer,
            "guard": self.guard,
            "history": self.history,
        }
        self.network = objective.predictor(student)
        """What is measured and kept: the student, or the student with the head of a loss."""
        self.ema: RunningAverage | None = None
        if self.decay is not None:
            self.parts["ema"] = self.ema = RunningAverage(copied(self.network), self.decay)
        self.own_parts: dict[str, Stateful] = {
            "meter": self.meter,
            "buffers": OwnBuffers(objective, self.ranks.size),
            "random": RandomState(target),
            "threads": self.threads,
        }
        self._resume(resume)
        self.pace = Pace(self.display.note if target.type == "cpu" else None)
        if self.threads.note and target.type == "cpu":
            self.display.note(self.threads.note)

    def fit(self) -> History:
        """Train to the end.

        Raises:
            NonFinite: a term is not finite; the optimizer step is not taken and the last checkpoint stays.
            UserError: more epochs are done than asked for, or a process that reads the data has died.
            Interrupted: a signal came; a checkpoint has been written, where there is a folder.
        """
        history, optimization = self.history, self.optimization
        running = self._prepare()
        if optimization.initial:
            self.display.note(
                f"the method asks for {optimization.initial} initial epochs before its schedule of "
                f"{optimization.epochs}"
            )
        tell(self.display, "arguments", self.arguments)
        self.display.begin(self.title, optimization.all_epochs, self.steps, history.epoch - 1)
        with contextlib.ExitStack() as ends:
            # Whatever ends the loop, a terminal is left as it was.
            ends.callback(self.display.end)
            ends.enter_context(kept_for(self.device.target))
            # Where the first process writes a checkpoint, a signal stops all of them after the same step.
            signals = ends.enter_context(Signals(enabled=self.ranks.same(self.folder is not None)))
            ends.enter_context(dead_readers_named(signals))
            for epoch in range(history.epoch, optimization.all_epochs + 1):
                if self._rests():
                    self.display.note(f"stopped after epoch {epoch - 1}: {self.patience} epochs without a better one")
                    break
                progress, seconds = self._train_epoch(epoch, running, signals)
                self._measure(epoch, progress, seconds)
                history.epoch, history.step = epoch + 1, 0
                self._checkpoint()
                if stop := signals.pending(self.device.target, 0):
                    raise Interrupted(stop, f"stopped after epoch {epoch} of {optimization.all_epochs}")
        # The caller, whose network this is, would add its own gradients to the last step's.
        self.optimizer.zero_grad(set_to_none=True)
        if int(self.guard.skipped):
            self.display.note(f"steps left out because a term was not finite: {int(self.guard.skipped)}")
        return history

    def _train_epoch(self, epoch: int, running: nn.Module, signals: Signals) -> tuple[Progress, float]:
        """The rest of an epoch's steps; where it ends, and the seconds that it took."""
        history, device, guard = self.history, self.device, self.guard
        if history.step == 0:
            self.meter.reset()
            seed_everything((self.seed * 1_000_003 + epoch) % 2**63, self.ranks.rank)
            if epoch == self.optimization.initial + 1:
                # The momentum of the initial stage points where its own terms went.
                reset_momentum(self.optimizer)
        self.model.train()
        # Of the last step, where a resumed run has none left in this epoch.
        progress, _ = self.optimization.at(epoch, self.steps - 1, self.steps)
        self.pace.begin(anew=epoch == self.optimization.initial + 1)
        started = time.perf_counter()
        together = self.optimization.accumulate
        read = prefetch(self.train_loader, epoch, history.step * together)
        # What is left at an epoch's end, fewer than make a step, is dropped, as an incomplete batch is.
        for number, batches in enumerate(zip(*[read] * together, strict=False), history.step):
            progress, rate = self.optimization.at(epoch, number, self.steps)
            set_rate(self.optimizer, rate)
            guard.before(running)
            steps = train_step(
                *batches,
                model=running,
                teachers=self.teachers,
                optimizer=self.optimizer,
                device=device,
                progress=progress,
                clip_grad=self.optimization.clip_grad,
                check=partial(guard.check, optimizer=self.optimizer, epoch=epoch, step=number),
            )
            guard.after(running)
            if self.ema is not None:
                self.ema.update_parameters(self.network)
            for batch, step in zip(batches, steps, strict=True):
                with device.autocast():
                    observed = self.model.task.observe(batch, step.student.detach(), self.model.objective)
                self.meter.add({**step.values, **observed}, guard.valid)
                history.images += len(batch) * self.ranks.size
            history.step = number + 1
            self.pace.step()
            self.display.advance(epoch, number + 1)
            stop = signals.pending(device.target, number)
            due = self.checkpoint_every != "epoch" and history.step % self.checkpoint_every == 0
            if stop or (due and history.step < self.steps):
                guard.look_before_saving(self.model, epoch, history.step)
                self._checkpoint(time.perf_counter() - started)
            if stop:
                raise Interrupted(stop, f"stopped in epoch {epoch} after step {history.step} of {self.steps}")
        self.train_loader.say_bad()
        guard.look_before_saving(self.model, epoch, self.steps)
        return progress, time.perf_counter() - started

    def _measure(self, epoch: int, progress: Progress, seconds: float) -> None:
        """Close an epoch: its means, what the student reaches, and the reports."""
        model, history = self.model, self.history
        # Nothing in a row depends on the clock: the same seed gives the same line.
        first = self.optimizer.param_groups[0]
        row = {"epoch": epoch, "lr": first["lr"] / first.get(SCALE, 1.0), **self.meter.means()}
        history.seconds += seconds
        row.update(model.task.evaluate(self.network, self.test_loader, self.device))
        if self.ema is not None:
            averaged = model.task.evaluate(self.ema.module, self.test_loader, self.device)
            row.update({f"ema_{name}": averaged[name] for name in (model.task.metric, *model.task.columns)})
        for name, report in self.reports.items():
            row[name] = report(model, self.teachers, progress)
        history.rows.append(row)
        if self.on_best is not None and history.best(model.task.metric) == len(history.rows):
            self.on_best(self.network)
        self.display.epoch({**row, "seconds": seconds})
        if self.folder is not None:
            self.folder.append_metrics(row)

    def _rests(self) -> bool:
        """Whether so many epochs were no better than one before that the run ends."""
        rows = self.history.rows
        if self.patience is None or not rows:
            return False
        return len(rows) - self.history.best(self.model.task.metric) >= self.patience

    def _prepare(self) -> nn.Module:
        """Make the networks ready; returns the module that runs, with the same weights as ``model``."""
        model, device = self.model, self.device
        # By the whole run and its first images, so that a resumed run decides as the uninterrupted one did.
        left = self.history.epoch <= self.optimization.all_epochs
        steps = self.optimization.all_epochs * self.steps if left else 0
        if self.compile and not model.task.prepares:
            raise UserError(f"compile serves classification, and not the task {model.task.name!r}; leave it out")
        asked = self.compile if model.task.prepares else False
        compiled, reason = resolve_compile(asked, steps, device.target, teacher=bool(self.teachers))
        if compiled and hasattr(self.optimizer, "take_gradients"):
            # It goes back through one graph twice, and what a compiled pass reuses would be gone the second time.
            functorch.donated_buffer = False
        if reason:
            self.display.note(reason)
        student = model.student
        if left:
            for teacher in self.teachers:
                teacher.to(device.target)
            student = prepare(
                model,
                self.teachers,
                next(iter(self.train_loader.epoch(1))),
                compile_teacher=compiled,
                # Left to itself a CPU runs the student as it is: compiled, its backward pass takes longer there.
                compile_student=compiled if self.compile or device.type != "cpu" else False,
                device=device,
            )
        running = model if student is model.student else DistillationTask(model.task, student, model.objective)
        wrapped = self.ranks.wrap(running, device.target)
        # Only now: preparing draws random numbers, and wrapping gives all processes the buffers of the first.
        if self._own:
            _load(self.own_parts, self._own)
        return wrapped

    def _checkpoint(self, seconds: float = 0.0) -> None:
        """Keep all that the run needs to go on from here, ``seconds`` into its epoch."""
        processes = self.ranks.everyone({name: part.state_dict() for name, part in self.own_parts.items()})
        if self.folder is not None:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state["history"]["seconds"] += seconds
            about = {"arguments": self.arguments, "fingerprints": dict(self.fingerprints)}
            self.folder.save_checkpoint({**about, "parts": state, "processes": processes})

    def _resume(self, resume: bool) -> None:
        """Go on from the folder's checkpoint, where there is one."""
        self._own: dict[str, Any] = {}
        """The states of this process's own parts, until they are loaded."""
        folder = self.folder if resume else None
        with self.ranks.alike():
            state = None if folder is None else folder.load_checkpoint(self.arguments, self.fingerprints)
        state = self.ranks.same(state)
        if state is not None:
            processes = state["processes"]
            self._own = processes[self.ranks.rank if len(processes) == self.ranks.size else 0]
            # At once, because preparing the networks computes, too. Earlier versions did not keep it.
            _load({"threads": self.threads}, {"threads": self._own.setdefault("threads", {})})
            _load(self.parts, state["parts"])
            history, epochs = self.history, self.optimization.all_epochs
            if (history.epoch, history.step) > (epochs + 1, 0):
                done = f"{history.epoch - 1} epochs" + (f" and {history.step} steps" if history.step else "")
                raise UserError(
                    f"cannot resume: {done} are done, and {epochs} epochs are asked for; "
                    "give at least as many --epochs as before or another --output"
                )
            where = f"step {history.step} of " if history.step else ""
            self.display.note(f"resuming after {where}epoch {history.epoch - (not history.step)} of {epochs}")
        if folder is not None:
            folder.keep_metrics(len(self.history.rows))


def _load(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        # The same names may stand for other plug-ins than when the checkpoint was written.
        another = f"the {name} is another than before (give the same plug-ins, or another --output)"
        ask(f"cannot resume: {another}: it", part.load_state_dict, states[name])

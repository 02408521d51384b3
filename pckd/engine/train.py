"""The training loop, top to bottom: loader, views, networks, difficulty, weights, losses, step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import nn

from pckd.data import Loader, ahead
from pckd.engine.cache import TeacherCache
from pckd.engine.compiling import prepare, resolve_compile
from pckd.engine.evaluate import Scores, evaluate_network
from pckd.engine.guard import FiniteGuard, Interrupted, NonFinite, Signals, dead_readers_named
from pckd.engine.memory import kept_for
from pckd.engine.optimizer import make_optimizer, reset_momentum
from pckd.engine.precision import autocast
from pckd.engine.progress import History, Meter, random_state, seed_everything, set_random_state
from pckd.engine.ranks import these
from pckd.engine.record import RunFolder
from pckd.engine.schedule import Schedule
from pckd.engine.step import Moment, Trainee, ViewStatistics, train_step
from pckd.engine.teacher import FrozenTeacher, channels_last
from pckd.objective import Objective
from registry import UserError, ask

__all__ = ["Display", "History", "NonFinite", "Report", "fit", "place"]


class Display(Protocol):
    """What the loop tells while it runs; see ``pckd.display``."""

    def note(self, text: str) -> None: ...
    def begin(self, title: str, epochs: int, steps: int, done: int) -> None: ...
    def advance(self, epoch: int, step: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


class Report(Protocol):
    """A look at the networks after an epoch, that changes nothing; its answer is an entry of metrics.jsonl."""

    def __call__(
        self, student: nn.Module, teacher: FrozenTeacher | None, objective: Objective, moment: Moment
    ) -> dict[str, Any]: ...


def fit(
    *,
    student: nn.Module,
    teacher: FrozenTeacher | None,
    objective: Objective,
    train_loader: Loader,
    test_loader: Loader,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    milestones: Sequence[float],
    lr_decay: float,
    device: torch.device,
    precision: str,
    compile: bool | None,
    seed: int,
    arguments: dict[str, Any],
    folder: RunFolder | None,
    resume: bool,
    display: Display,
    title: str,
    cache: TeacherCache | None = None,
    checkpoint_every: int | Literal["epoch"] = "epoch",
    on_nonfinite: Literal["stop", "skip"] = "stop",
    reports: Mapping[str, Report] | None = None,
    view_statistics: ViewStatistics = "joint",
    fingerprints: Mapping[str, Any] | None = None,
) -> History:
    """Train ``student`` in place and return the history.

    Everything random in an epoch follows from ``seed`` and the epoch's number, or is in the checkpoint, so that a
    resumed run repeats the uninterrupted one. See :func:`pckd.distill` for the arguments; every process of a group
    calls this alike, and the first one alone has a ``folder``, and the ``fingerprints`` of data and teacher, which a
    resumed run must have, too.

    Raises:
        NonFinite: a term is not finite; the optimizer step is not taken and the last checkpoint stays.
        UserError: more epochs are done than asked for, or a process that reads the data has died.
        Interrupted: a signal came; a checkpoint has been written, where there is a folder.
    """
    ranks = these()
    place(student, device)
    objective.to(device)
    ranks.synchronize_statistics(objective, device)
    optimizer = make_optimizer(student, objective, device, lr=lr, momentum=momentum, weight_decay=weight_decay)
    initial = objective.initial_epochs(epochs)
    schedule = Schedule(initial, epochs, len(train_loader), lr, milestones, lr_decay)
    history, meter, first, start = History(), Meter(), 1, 0
    with ranks.alike():
        state = folder.load_checkpoint(arguments, fingerprints) if folder is not None and resume else None
    state = ranks.same(state)
    if state is not None:
        # The same names may stand for other plug-ins than when the checkpoint was written.
        for part, module in (("student", student), ("objective", objective), ("optimizer", optimizer)):
            what = f"cannot resume: the {part} is another than before (give the same plug-ins, or another --output): it"
            ask(what, module.load_state_dict, state[part])
        history.rows, first, start = state["history"], state["epoch"], state["step"]
        # Checkpoints of earlier versions have no times.
        history.seconds, history.images = state.get("seconds", 0.0), state.get("images", 0)
        own = state["processes"][ranks.rank if len(state["processes"]) == ranks.size else 0]
        meter.load_state_dict(own["meter"], device)
        if (first, start) > (schedule.epochs + 1, 0):
            done = f"{first - 1} epochs" + (f" and {start} steps" if start else "")
            raise UserError(
                f"cannot resume: {done} are done, and {schedule.epochs} epochs are asked for; "
                "give at least as many --epochs as before or another --output"
            )
        display.note(
            f"resuming after {f'step {start} of ' if start else ''}epoch {first - (not start)} of {schedule.epochs}"
        )
    if folder is not None and resume:
        folder.keep_metrics(len(history.rows))

    # By the whole run and its first images, so that a resumed run decides as the uninterrupted one did.
    left = first <= schedule.epochs
    steps = schedule.epochs * schedule.steps if left else 0
    compiled, reason = resolve_compile(compile, steps, device, teacher=teacher is not None)
    if reason:
        display.note(reason)
    run_student = student
    if left:
        if teacher is not None:
            teacher.to(device)
        run_student = prepare(
            student,
            teacher,
            objective,
            next(iter(train_loader.epoch(1))),
            compile_teacher=compiled,
            # Left to itself a CPU runs the student as it is: compiled, its backward pass takes longer there.
            compile_student=compiled and (bool(compile) or device.type != "cpu"),
            precision=precision,
            device=device,
            strong=train_loader.strong,
        )
    trainee = ranks.wrap(Trainee(run_student, objective, view_statistics=view_statistics), device)
    guard = FiniteGuard(device, on_nonfinite)
    if state is not None:
        guard.skipped = state["skipped"]
        # Each process has memories of its own, and wrapping has copied those of the first to all.
        objective.load_state_dict(own.get("buffers", {}), strict=False)
        set_random_state(own["random"], device)

    def checkpoint(epoch: int, step: int, seconds: float = 0.0) -> None:
        """Keep all that a run needs to go on in ``epoch`` after ``step`` of its steps, ``seconds`` into them."""
        buffers = {name: buffer.cpu() for name, buffer in objective.named_buffers()} if ranks.size > 1 else {}
        own = {"random": random_state(device), "meter": meter.state_dict(), "buffers": buffers}
        processes = ranks.everyone(own)
        if folder is not None:
            folder.save_checkpoint(
                {
                    "student": student.state_dict(),
                    "objective": objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "step": step,
                    "skipped": int(guard.skipped),
                    "processes": processes,
                    "history": history.rows,
                    "seconds": history.seconds + seconds,
                    "images": history.images,
                    "arguments": arguments,
                    "fingerprints": dict(fingerprints or {}),
                }
            )

    if initial:
        display.note(f"the method asks for {initial} initial epochs before its schedule of {epochs}")
    predictor = objective.predictor(student)
    display.begin(title, schedule.epochs, schedule.steps, first - 1)
    with contextlib.ExitStack() as ends:
        # Whatever ends the loop, a terminal is left as it was.
        ends.callback(display.end)
        ends.enter_context(kept_for(device))
        # Where the first process writes a checkpoint, a signal stops all of them after the same step.
        signals = ends.enter_context(Signals(enabled=ranks.same(folder is not None)))
        ends.enter_context(dead_readers_named(signals))
        for epoch in range(first, schedule.epochs + 1):
            if start == 0:
                meter = Meter()
                seed_everything((seed * 1_000_003 + epoch) % 2**63, ranks.rank)
                if epoch == initial + 1:
                    # The momentum of the initial stage points where its own terms went.
                    reset_momentum(optimizer)
            student.train()
            objective.train()
            started = time.perf_counter()
            for step, batch in enumerate(ahead(train_loader, epoch, start), start):
                moment, rate = schedule.at(epoch, step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                guard.before(trainee)
                values, student_output = train_step(
                    batch,
                    trainee=trainee,
                    teacher=teacher,
                    optimizer=optimizer,
                    device=device,
                    precision=precision,
                    moment=moment,
                    strong=train_loader.strong,
                    check=partial(guard.check, optimizer=optimizer, epoch=epoch, step=step),
                    keep=None if cache is None else cache.keep,
                )
                guard.after(trainee)
                with autocast(precision, device):
                    upright = objective.predict(student_output.upright(batch.views.shape[1]).detach())
                top1 = 100 * (upright.argmax(1) == batch.labels).float().mean()
                meter.add({**values, "train_top1": top1}, guard.valid)
                history.images += len(batch.labels) * ranks.size
                display.advance(epoch, step + 1)
                stop = signals.pending(device, step)
                last = step + 1 == schedule.steps
                if stop or (checkpoint_every != "epoch" and (step + 1) % checkpoint_every == 0 and not last):
                    guard.look_before_saving(trainee, epoch, step + 1)
                    checkpoint(epoch, step + 1, time.perf_counter() - started)
                if stop:
                    raise Interrupted(stop, f"stopped in epoch {epoch} after step {step + 1} of {schedule.steps}")
            start = 0
            train_loader.say_bad()
            guard.look_before_saving(trainee, epoch, schedule.steps)
            means = meter.means()
            seconds = time.perf_counter() - started
            history.seconds += seconds

            scores = evaluate_network(predictor, test_loader, device=device, precision=precision)
            history.rows.append(epoch_row(epoch, optimizer.param_groups[0]["lr"], means, scores))
            row = history.rows[-1]
            for name, report in (reports or {}).items():
                row[name] = report(student, teacher, objective, moment)
            display.epoch({**row, "seconds": seconds})
            if folder is not None:
                folder.append_metrics(row)
            checkpoint(epoch + 1, 0)
            stop = signals.pending(device, 0)
            if stop:
                raise Interrupted(stop, f"stopped after epoch {epoch} of {schedule.epochs}")
    # The caller, whose network this is, would add its own gradients to the last step's.
    optimizer.zero_grad(set_to_none=True)
    if int(guard.skipped):
        display.note(f"steps left out because a term was not finite: {int(guard.skipped)}")
    return history


def place(network: nn.Module, device: torch.device) -> None:
    """Move to the device, in the memory layout that convolutions are fastest in."""
    network.to(device)
    channels_last(network)


def epoch_row(epoch: int, lr: float, means: dict[str, float], scores: Scores) -> dict[str, Any]:
    """One line of metrics.jsonl. Nothing in it depends on the clock: the same seed gives the same line."""
    return {
        "epoch": epoch,
        "lr": lr,
        **means,
        "top1": scores.top1,
        "top5": scores.top5,
        "test_loss": scores.loss,
    }

"""The training loop, top to bottom: loader, views, networks, difficulty, weights, losses, step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pckd.data import Loader
from pckd.engine.evaluate import Scores, evaluate_network
from pckd.engine.precision import autocast
from pckd.engine.record import RunFolder
from pckd.engine.schedule import learning_rate
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from registry import Batch, Context, Output, UserError

CHECK_EVERY = 50
"""Steps between two looks at the device from the host, where a look costs a synchronization."""


class Display(Protocol):
    """What the loop tells while it runs; see ``pckd.display``."""

    def note(self, text: str) -> None: ...
    def begin(self, title: str, epochs: int, steps: int, done: int) -> None: ...
    def advance(self, epoch: int, step: int) -> None: ...
    def epoch(self, row: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


@dataclass
class History:
    """What a finished run knows of itself."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary an epoch, as written to metrics.jsonl."""
    seconds: float = 0.0
    """Of training alone, evaluation excluded; of this process, where the run was resumed."""
    images: int = 0
    """Images trained on in that time; an image shown in four views counts once."""


class Meter:
    """Means over an epoch of scalars that stay on the device, so that the step never waits for the host."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        row = torch.stack([v.detach().float() for v in values.values()]).double()
        self.names = list(values)
        self.total = row if self.total is None else self.total + row
        self.count += 1

    def means(self) -> dict[str, float]:
        if self.total is None:
            return {}
        return dict(zip(self.names, (self.total / self.count).tolist(), strict=True))


class NonFinite(UserError):
    """A term of the objective became infinite or not a number."""


def train_step(
    batch: Batch,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    precision: str,
    epoch: int,
    epochs: int,
    progress: float,
    stage: Literal["initial", "main"] = "main",
    strong: bool = False,
    check: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[dict[str, Tensor], Output]:
    """One step: networks, objective, backward, optimizer, centers. What the profiler measures is this function.

    Args:
        teacher: frozen; where there is none, the student stands in its place. epoch, epochs, progress, stage, strong:
            of the :class:`registry.Context`. check: called with the values before the optimizer steps.

    Returns:
        the objective's values, and the student's output for all rows.
    """
    views = batch.views.shape[1]
    images = batch.views.flatten(0, 1)
    with autocast(precision, device):
        student_output: Output = student(images)
        teacher_output = student_output.detach() if teacher is None else teacher(images)
        context = Context(
            labels=batch.labels.repeat_interleave(views),
            index=batch.index.repeat_interleave(views),
            centers=objective.centers(student, student if teacher is None else teacher),
            views=views,
            epoch=epoch,
            epochs=epochs,
            progress=progress,
            stage=stage,
            strong=strong,
        )
        values = objective(student_output, teacher_output, context)

    optimizer.zero_grad(set_to_none=True)
    values["loss"].backward()
    if check is not None:
        check(values)
    optimizer.step()
    objective.centers.update(student_output.detach(), teacher_output, context.labels)
    return values, student_output


def make_optimizer(
    student: nn.Module, objective: Objective, device: torch.device, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD of the student and, beside it, the projections: left out, they would stay frozen at their random start."""
    parameters = [*student.parameters(), *objective.parameters()]
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    reset_momentum(optimizer)
    return optimizer


def reset_momentum(optimizer: torch.optim.SGD) -> None:
    """Start from zero momentum, for every parameter.

    Left to itself, fused SGD makes the buffers at the first gradient, and fails where some parameters have their first
    gradient later than others, as in methods with initial epochs. From zero the first step is the same.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


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
    compile: bool,
    seed: int,
    arguments: dict[str, Any],
    folder: RunFolder | None,
    resume: bool,
    display: Display,
    title: str,
) -> History:
    """Train ``student`` in place and return the history.

    Everything random in an epoch follows from ``seed`` and the epoch's number, so that a resumed run repeats the
    uninterrupted one. See :func:`pckd.distill` for the arguments.

    Raises:
        NonFinite: a term is not finite; the optimizer step is not taken and the last checkpoint stays.
    """
    place(student, device)
    objective.to(device)
    if teacher is not None:
        place(teacher, device)
    run_student: Any = torch.compile(student) if compile else student
    run_teacher: Any = torch.compile(teacher) if compile and teacher is not None else teacher
    optimizer = make_optimizer(student, objective, device, lr=lr, momentum=momentum, weight_decay=weight_decay)
    history, first = History(), 1
    state = folder.load_checkpoint(arguments) if folder is not None and resume else None
    if state is not None:
        student.load_state_dict(state["student"])
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        history.rows = state["history"]
        first = state["epoch"] + 1
        display.note(f"resuming after epoch {state['epoch']} of {epochs}")
    if folder is not None:
        folder.keep_metrics(first - 1)

    steps = len(train_loader)
    initial = objective.initial_epochs(epochs)
    if initial:
        display.note(f"the method asks for {initial} initial epochs before its schedule of {epochs}")
    predictor = objective.predictor(student)
    display.begin(title, initial + epochs, steps, first - 1)
    for epoch in range(first, initial + epochs + 1):
        main = epoch > initial
        if epoch == initial + 1:
            # The momentum of the initial stage points where its own terms went.
            reset_momentum(optimizer)
        torch.manual_seed((seed * 1_000_003 + epoch) % 2**63)
        student.train()
        objective.train()
        meter = Meter()
        started = time.perf_counter()
        for step, batch in enumerate(train_loader.epoch(epoch)):
            passed = epoch - 1 - initial if main else epoch - 1
            progress = (passed + step / steps) / (epochs if main else initial)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(progress, lr, milestones, lr_decay) if main else lr

            check = device.type == "cpu" or step % CHECK_EVERY == 0
            values, student_output = train_step(
                batch,
                student=run_student,
                teacher=run_teacher,
                objective=objective,
                optimizer=optimizer,
                device=device,
                precision=precision,
                epoch=passed + 1,
                epochs=epochs if main else initial,
                progress=progress,
                stage="main" if main else "initial",
                strong=train_loader.strong,
                check=partial(refuse_non_finite, epoch=epoch, step=step) if check else None,
            )
            with autocast(precision, device):
                upright = objective.predict(student_output.upright(batch.views.shape[1]).detach())
            meter.add({**values, "train_top1": 100 * (upright.argmax(1) == batch.labels).float().mean()})
            history.images += len(batch.labels)
            display.advance(epoch, step + 1)
        means = meter.means()
        seconds = time.perf_counter() - started
        history.seconds += seconds
        broken = [name for name, value in means.items() if value - value != 0]
        if broken:
            raise NonFinite(
                f"epoch {epoch}: {', '.join(broken)} is not finite; lower the learning rate or that term's weight"
            )

        scores = evaluate_network(predictor, test_loader, device=device, precision=precision)
        history.rows.append(epoch_row(epoch, optimizer.param_groups[0]["lr"], means, scores))
        row = history.rows[-1]
        display.epoch({**row, "seconds": seconds})
        if folder is not None:
            folder.append_metrics(row)
            folder.save_checkpoint(
                {
                    "student": student.state_dict(),
                    "objective": objective.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                    "history": history.rows,
                    "arguments": arguments,
                }
            )
    display.end()
    return history


def place(network: nn.Module, device: torch.device) -> None:
    """Move to the device, in the memory layout that convolutions are fastest in."""
    network.to(device)
    network.to(memory_format=torch.channels_last)


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


def refuse_non_finite(values: dict[str, Tensor], epoch: int, step: int) -> None:
    """Stop before the optimizer step if a term is not finite.

    Raises:
        NonFinite: names the terms, the epoch and the step (both counted from 1).
    """
    if not bool(torch.isfinite(values["loss"].detach())):
        broken = [name for name, value in values.items() if name != "loss" and not bool(torch.isfinite(value))]
        raise NonFinite(
            f"epoch {epoch}, step {step + 1}: {', '.join(broken) or 'loss'} is not finite; "
            "lower the learning rate or that term's weight"
        )

"""What a step of training costs, part by part. The step is the engine's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pckd.device import Device
from pckd.engine.step import train_step
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from pckd.profiling.measure import (
    Clock,
    Spent,
    held_for_backward,
    is_recorded,
    peak_of,
    recorder,
    spent,
    storages,
)
from pckd.profiling.operators import Counting
from pckd.profiling.report import PartCost
from pckd.tasks import DistillationTask
from registry import Progress, UserError

# A term is measured where the published schedule is half done.
HALFWAY = Progress(epoch=120, epochs=240, progress=0.5)


@dataclass(eq=False)
class Workload:
    """All that a step needs, on the device, as the engine has it."""

    model: DistillationTask
    teachers: list[FrozenTeacher]
    optimizer: torch.optim.Optimizer
    batch: Any
    device: Device
    rows: int = 0
    """Of the newest step."""

    @property
    def objective(self) -> Objective:
        """The sum of the terms."""
        return self.model.objective

    def step(self, stage: Literal["initial", "main"] = "main") -> None:
        """The engine's step, finite check included: on the CPU the engine looks at every step."""
        (step,) = train_step(
            self.batch,
            model=self.model,
            teachers=self.teachers,
            optimizer=self.optimizer,
            device=self.device,
            progress=HALFWAY._replace(stage=stage),
            check=_look if self.device.type == "cpu" else None,
        )
        self.rows = len(step.instances)

    def first_step(self) -> None:
        """Take a step, with any failure as one line."""
        self.model.train()
        try:
            self.step()
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"a training step fails on this batch: {reason}") from error

    @property
    def known(self) -> list[Any]:
        """Tensors that stay from step to step."""
        networks = [self.model, *self.teachers]
        return [[*network.parameters(), *network.buffers()] for network in networks]

    def peak_bytes(self) -> int | None:
        """Most that is alive at one time: weights, the optimizer's state, the batch, and what a step adds to them."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = [value for value in vars(self.batch).values() if isinstance(value, Tensor)]
        resident = storages([self.known, list(self.optimizer.state.values()), batch])
        peak = peak_of(self.step, self.device.target, self._renew_memory)
        return None if peak is None else sum(resident.values()) + peak

    def _renew_memory(self) -> list[Tensor]:
        """Copies in place of the losses' buffers, which a step may replace; returns the old ones."""
        old = []
        for module in self.objective.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                old.append(buffer)
                setattr(module, name, buffer.clone())
        return old


def _look(values: dict[str, Tensor]) -> bool:
    return bool(torch.isfinite(values["loss"].detach()))


@dataclass(frozen=True)
class Times:
    """Seconds of one step."""

    whole: float
    parts: dict[str, float]
    """Of the step, as :func:`part_names` has them; empty where the device's kernels cannot be timed one by one."""
    terms: dict[str, float]
    """Of each term, forward and backward."""
    objective: float | None
    """Of all terms and the weights by difficulty, forward and backward."""


def timed_step(work: Workload, clock: Clock) -> Times:
    """Take two steps: one for the time of the whole, and one that torch.profiler records for its parts.

    Recording takes time for each operator, so that on the CPU the parts are scaled to the step without it.
    """
    whole = clock.timed(work.step)
    if not is_recorded(work.device.target):
        return Times(whole, {}, {}, None)
    with recorder(work.device.target) as profiler:
        recorded = clock.timed(work.step)
    found = spent(profiler.events(), work.device.target)
    scale = whole / recorded if work.device.type == "cpu" else 1.0
    parts = {part: scale * found.get(part, Spent()).here for part in part_names(work)}
    parts["other"] = whole - sum(parts.values())
    both = {part: scale * (times.here + times.backward) for part, times in found.items()}
    terms = {label: both[f"term:{label}"] for label in work.objective.terms if f"term:{label}" in both}
    return Times(whole, parts, terms, both.get("preview", 0.0) + sum(terms.values()))


def part_names(work: Workload) -> list[str]:
    """The parts in the order of the step."""
    preview = ["preview"] if work.objective.previews else []
    teacher = ["teacher"] if work.teachers else []
    terms = [f"term:{label}" for label in work.objective.terms]
    return [*teacher, "student", *preview, *terms, "backward", "optimizer", "other"]


def counted_step(work: Workload) -> tuple[dict[str, PartCost], Counter[str]]:
    """Multiply-adds and element-wise work of each part, and the operators in none of the counts."""
    with Counting() as counting:
        work.step()
    held = {
        "student": _student_holds(work),
        "optimizer": sum(storages([list(work.optimizer.state.values())]).values()),
    }
    macs, elementwise = (
        {part: count[part] for part in part_names(work)} for count in (counting.macs, counting.elementwise)
    )
    macs["other"] += counting.macs.total() - sum(macs.values())
    elementwise["other"] += counting.elementwise.total() - sum(elementwise.values())
    costs = {part: PartCost(macs=macs[part], elementwise=elementwise[part], bytes=held.get(part)) for part in macs}
    return costs, counting.uncounted


def run_module(work: Workload, module: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module as it is called in the step, under autocast."""
    with work.device.autocast():
        return module(*args, **kwargs)


def _student_holds(work: Workload) -> int:
    task, student = work.model.task, work.model.student
    images = task.images(work.batch)
    # A network that is called with more than images is asked by its task.
    call: tuple[Any, ...] = (student, images) if task.prepares else (task.pair, work.batch, student, [])
    return held_for_backward(partial(run_module, work, *call), [work.known, images])

"""What a step of training costs, part by part. The step is the engine's own."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pckd.engine.precision import autocast
from pckd.engine.step import Moment, Trainee, train_step
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from pckd.profiling.measure import Clock, held_for_backward, peak_of, storages
from pckd.profiling.operators import Counting
from pckd.profiling.report import PartCost
from registry import Batch, Setup, UserError

# A term is measured where the published schedule is half done.
MOMENT = Moment(epoch=120, epochs=240, progress=0.5)


@dataclass(eq=False)
class Workload:
    """All that a step needs, on the device, as the engine has it."""

    student: nn.Module
    teacher: FrozenTeacher | None
    objective: Objective
    setup: Setup
    optimizer: torch.optim.Optimizer
    batch: Batch
    strong: bool
    device: torch.device
    precision: str

    def step(self, stage: Literal["initial", "main"] = "main") -> None:
        """The engine's step, finite check included: on the CPU the engine looks at every step."""
        train_step(
            self.batch,
            trainee=Trainee(self.student, self.objective),
            teacher=self.teacher,
            optimizer=self.optimizer,
            device=self.device,
            precision=self.precision,
            moment=MOMENT._replace(stage=stage),
            strong=self.strong,
            check=_look if self.device.type == "cpu" else None,
        )

    def first_step(self) -> None:
        """Take a step, with any failure as one line.

        Raises:
            UserError: a step of this method fails on this batch.
        """
        self.student.train()
        self.objective.train()
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
        networks = [self.student, self.objective, *([] if self.teacher is None else [self.teacher])]
        return [[*network.parameters(), *network.buffers()] for network in networks]

    def peak_bytes(self) -> int | None:
        """Most that is alive at one time: weights, the optimizer's state, the batch, and what a step adds to them."""
        self.optimizer.zero_grad(set_to_none=True)
        batch = [self.batch.views, self.batch.labels, self.batch.index]
        resident = storages([self.known, list(self.optimizer.state.values()), batch])
        peak = peak_of(self.step, self.device, self._renew_memory)
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


# Where a step is: hooks at the seams of the engine's step read a gauge (a clock, a counter).


@contextlib.contextmanager
def seams(work: Workload, read: Callable[[], Any]) -> Iterator[list[tuple[str, Any]]]:
    """While entered, a step appends (what has just ended, the gauge's reading) at each seam between its parts."""
    seen: list[tuple[str, Any]] = []

    def mark(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seen.append((part, read()))

        return hook

    def weights(*shown: Any) -> Tensor:
        mark("other")()
        result = Objective.weights(work.objective, *shown)
        mark("preview")()
        return result

    called = {"student": work.student, **{f"term:{label}": loss for label, loss in work.objective.losses.items()}}
    if work.teacher is not None:
        called["teacher"] = work.teacher
    handles: list[Any] = [work.objective.register_forward_hook(mark("other"))]
    for part, module in called.items():
        handles += [module.register_forward_pre_hook(mark("other")), module.register_forward_hook(mark(part))]
    assert isinstance(work.optimizer, torch.optim.Optimizer)
    handles += [
        work.optimizer.register_step_pre_hook(mark("backward")),
        work.optimizer.register_step_post_hook(mark("optimizer")),
    ]
    object.__setattr__(work.objective, "weights", weights)
    try:
        yield seen
    finally:
        object.__delattr__(work.objective, "weights")
        for handle in handles:
            handle.remove()


def timed_step(work: Workload, clock: Clock) -> dict[str, float]:
    """Seconds of each part of one step, and of the ``whole``."""
    with seams(work, clock.read) as seen:
        start = clock.read()
        work.step()
        end = clock.read()
    parts = dict.fromkeys(part_names(work), 0.0)
    previous = start
    for part, reading in [*seen, ("other", end)]:
        parts[part] += clock.seconds(previous, reading)
        previous = reading
    return {**parts, "whole": clock.seconds(start, end)}


def part_names(work: Workload) -> list[str]:
    """The parts in the order of the step."""
    preview = ["preview"] if work.objective.previews else []
    teacher = ["teacher"] if work.teacher is not None else []
    terms = [f"term:{label}" for label in work.objective.terms]
    return [*teacher, "student", *preview, *terms, "backward", "optimizer", "other"]


def counted_step(work: Workload) -> tuple[dict[str, PartCost], Counter[str]]:
    """Multiply-adds and element-wise work of each part, and the operators in none of the counts."""
    with Counting() as counting, seams(work, lambda: (counting.macs, counting.elementwise)) as seen:
        work.step()
        seen.append(("other", (counting.macs, counting.elementwise)))
    macs, elementwise = (dict.fromkeys(part_names(work), 0) for _ in range(2))
    previous = (0, 0)
    for part, reading in seen:
        macs[part] += reading[0] - previous[0]
        elementwise[part] += reading[1] - previous[1]
        previous = reading
    held = {
        "student": _student_holds(work),
        "optimizer": sum(storages([list(work.optimizer.state.values())]).values()),
    }
    costs = {part: PartCost(macs=macs[part], elementwise=elementwise[part], bytes=held.get(part)) for part in macs}
    return costs, counting.uncounted


def run_module(work: Workload, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a module as it is called in the step, under autocast."""
    with autocast(work.precision, work.device):
        return module(*args, **kwargs)


def _student_holds(work: Workload) -> int:
    images = work.batch.views.flatten(0, 1)

    return held_for_backward(partial(run_module, work, work.student, images), [work.known, images])

"""One step of training: networks, centers, difficulty, weights, losses, backward, optimizer, centers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from pckd.device import Device
from pckd.distributed import gather_output, gather_rows, uneven_rows
from pckd.engine.teacher import FrozenTeacher
from pckd.tasks import Step
from registry import Progress

__all__ = ["train_step"]


def train_step(
    *batches: Any,
    model: nn.Module,
    teachers: Sequence[FrozenTeacher],
    optimizer: torch.optim.Optimizer,
    device: Device,
    progress: Progress,
    clip_grad: float | None = None,
    check: Callable[[dict[str, Tensor]], bool] | None = None,
) -> list[Step]:
    """One step: what the loop repeats and what the profiler measures. Returns what each batch has shown.

    Its parts are marked for torch.profiler: ``pckd.teacher``, ``pckd.student``, ``pckd.centers``, ``pckd.preview``
    (difficulty and weights), ``pckd.term:<label>``, ``pckd.backward``, ``pckd.optimizer``; in the loop ``pckd.data``.

    Args:
        batches: one; or several, seen one after the other, whose mean gradient the step is taken by.
        model: a :class:`DistillationTask`, or data parallelism around one.
        clip_grad: largest norm of the gradient of all parameters together; the values then have the norm before it is
            scaled down, as ``grad_norm``.
        check: looks at the values before the optimizer steps, and may refuse the step.
    """
    steps: list[Step] = []
    inner: Any = getattr(model, "module", model)
    take_gradients = getattr(optimizer, "take_gradients", None)
    for batch in batches:
        last = len(steps) + 1 == len(batches)
        # Processes exchange their gradients once a step; an optimizer that takes them apart does so itself.
        synchronizes = last and take_gradients is None
        with contextlib.nullcontext() if synchronizes or not hasattr(model, "no_sync") else model.no_sync():  # type: ignore[operator]
            with device.autocast():
                step: Step = model(batch, teachers, progress)
            if not steps:
                optimizer.zero_grad(set_to_none=True)
            loss = step.values["loss"] if len(batches) == 1 else step.values["loss"] / len(batches)
            with record_function("pckd.backward"):
                if take_gradients is None:
                    loss.backward()
                else:
                    take_gradients(*inner.objective.apart(step.values, len(batches)))
        steps.append(step._replace(values={name: value.detach() for name, value in step.values.items()}))
    if clip_grad is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, clip_grad).detach()
        if take_gradients is not None:
            optimizer.scale_gradients((clip_grad / (norm + 1e-6)).clamp_max(1))  # type: ignore[attr-defined]
        for step in steps:
            step.values["grad_norm"] = norm
    seen = steps[0].values
    if len(steps) > 1:
        seen = {name: torch.stack([step.values[name].float() for step in steps]).mean() for name in seen}
    if check is None or check(seen):
        with record_function("pckd.optimizer"):
            optimizer.step()
        with record_function("pckd.centers"):
            for step in steps if inner.objective.updates_centers else ():
                with uneven_rows(step.instances.uneven):
                    rows = gather_output(step.student.detach()), gather_output(step.teacher)
                    labels = gather_rows(step.instances.labels)
                inner.objective.update_centers(*rows, labels)
    return steps

"""How the terms of an objective pull at the student, epoch by epoch: together, past, or against one another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.probe import copied
from pckd.device import Device
from pckd.engine.progress import own_random_state
from pckd.engine.teacher import FrozenTeacher
from pckd.tasks import DistillationTask
from pckd.tasks.task import BatchLoader
from registry import Progress

__all__ = ["BATCHES", "GradientReport"]

BATCHES = 8
"""Training batches, always the same ones, over which the gradients are averaged."""


class GradientReport:
    """Norms and cosines of the terms' gradients with respect to the student's parameters.

    Taken on copies of student and objective in train mode, so that no statistic, memory or random generator of the
    training changes. Each gradient is that of the term as it enters the sum, weight and preview included; where
    several processes train, of the first one's share of the batches.

    Args:
        loader: of the training. device: of the networks.
    """

    def __init__(self, loader: BatchLoader, device: Device) -> None:
        self._loader, self._device = loader, device

    def __call__(
        self, model: DistillationTask, teachers: Sequence[FrozenTeacher], progress: Progress
    ) -> dict[str, Any]:
        """The entry ``gradient_report`` of a row of metrics.jsonl.

        Returns:
            ``norms``: of each term's gradient; ``cosines``: ``{term: {other: cosine}}``, each pair once, without terms
            whose gradient is 0.
        """
        model = copied(model).train()
        sums: dict[str, Tensor] = {}
        count = 0
        with own_random_state(self._device.target):
            for batch in islice(self._loader.epoch(1), BATCHES):
                with self._device.autocast():
                    values = model(batch, teachers, progress).values
                for label in model.objective.terms:
                    if label in values and values[label].requires_grad:
                        gradient = _gradient(values[label], model.student)
                        sums[label] = sums[label] + gradient if label in sums else gradient
                count += 1
        norms = {label: float(total.norm()) / count for label, total in sums.items()}
        cosines: dict[str, dict[str, float]] = {}
        for one, other in combinations([label for label, norm in norms.items() if norm], 2):
            cosine = torch.dot(sums[one], sums[other]) / (sums[one].norm() * sums[other].norm())
            cosines.setdefault(one, {})[other] = float(cosine)
        return {"norms": norms, "cosines": cosines}


def _gradient(value: Tensor, student: nn.Module) -> Tensor:
    """Of a scalar with respect to all parameters of the student that are trained, as one float64 vector."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten().double() for gradient in gradients])

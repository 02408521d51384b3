"""What the difficulty metrics say of the training images, epoch by epoch, and whether that is true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor, nn

from pckd.data import Loader, limit
from pckd.device import Device
from pckd.engine.teacher import FrozenTeacher, SeveralTeachers
from pckd.ops import rank_correlation
from pckd.tasks import DistillationTask
from pckd.tasks.classification import answers
from registry import (
    DIFFICULTY_METRICS,
    Absent,
    Context,
    DataSplit,
    Instances,
    NotApplicable,
    Output,
    Progress,
    ask,
    build,
)

__all__ = ["EDGES", "DifficultyReport"]

EDGES = tuple(round(0.2 * i, 1) for i in range(21))
"""Lower edges of the histogram's bins; the last bin has no upper edge."""
IMAGES = 2000
"""At most so many of the training images are asked about, always the same ones."""


class DifficultyReport:
    """Asks every registered metric about the training images as they are, without augmentation, in eval mode.

    Difficulties are relative to the mean over all of these images. Where the data set knows how difficult its images
    are, also how well each metric agrees with that, and the accuracy on easy, middle and hard test images.

    Args:
        train, test: the two splits. device: of the networks. batch_size: images a pass.
    """

    def __init__(self, train: DataSplit, test: DataSplit, device: Device, *, batch_size: int = 256) -> None:
        self._train = limit(train, min(IMAGES, len(train)))
        self._test = test
        loader = partial(Loader, batch_size=batch_size, train=False, device=device.target)
        self._loaders = loader(self._train), (loader(test) if test.difficulty is not None else None)
        self._device = device
        self._metrics = {name: build(DIFFICULTY_METRICS, name) for name in DIFFICULTY_METRICS.names()}

    @torch.no_grad()
    def __call__(self, model: DistillationTask, teachers: Sequence[nn.Module], progress: Progress) -> dict[str, Any]:
        """The entry ``difficulty_report`` of a row of metrics.jsonl.

        Args:
            model: its student is asked as it answers when it is measured. teachers: where there is none, metrics that
                look at it are left out. progress: as the epoch has left it.

        Returns:
            ``edges`` and ``metrics``: for each metric its ``histogram`` over :data:`EDGES`, and ``truth``, the rank
            correlation with the true difficulty, where that is known and the metric is not constant. Where it is known
            also ``top1_by_truth``: accuracy in percent on the easy, middle and hard third of the test images.
        """
        objective, teacher = model.objective, next(iter(teachers), None)
        centers = objective.find_centers(model.student, *(teachers or [model.student]))
        if len(teachers) > 1:
            teacher = SeveralTeachers(cast("Sequence[FrozenTeacher]", teachers))
        student = objective.predictor(model.student)
        outputs, labels = self._answers(student, self._loaders[0])
        theirs = NoTeacher() if teacher is None else self._answers(teacher, self._loaders[0])[0]
        context = Context(Instances(labels, torch.arange(len(labels), device=labels.device)), centers, *progress)
        metrics = {}
        for name, metric in self._metrics.items():
            try:
                values = ask(f"difficulty metric {name!r}", metric, outputs, cast(Output, theirs), context)
            except NotApplicable:
                continue
            difficulty = values.float().cpu().numpy()
            edges = np.array([*EDGES, np.inf])
            metrics[name] = {"histogram": np.histogram(difficulty.clip(min=0), edges)[0].tolist()}
            if self._train.difficulty is not None:
                truth = rank_correlation(values, self._train.difficulty)
                if not math.isnan(truth):
                    metrics[name]["truth"] = truth
        report: dict[str, Any] = {"edges": list(EDGES), "metrics": metrics}
        if self._loaders[1] is not None and self._test.difficulty is not None:
            outputs, labels = self._answers(student, self._loaders[1])
            right = (outputs.logits.argmax(1) == labels).double().cpu()
            thirds = right[self._test.difficulty.argsort(stable=True)].tensor_split(3)
            report["top1_by_truth"] = [100 * float(third.mean()) for third in thirds]
        return report

    def _answers(self, network: nn.Module, loader: Loader) -> tuple[Output, Tensor]:
        """Logits and embedding of every image, in the split's order, and the labels."""
        logits, embeddings, labels = [], [], []
        for output, batch in answers(network, loader, self._device):
            logits.append(output.logits.float())
            embeddings.append(output.embedding)
            labels.append(batch.labels)
        absent = isinstance(embeddings[0], Absent)
        embedding = embeddings[0] if absent else torch.cat([found.float() for found in embeddings])
        return Output(torch.cat(logits), embedding), torch.cat(labels)


class NoTeacher:
    """Stands for the answer of a teacher that is not there."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotApplicable("there is no teacher")

"""Where the time of a training goes, from hooks at the seams of the loop's own steps, networks compiled or not."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pckd.engine import train
from pckd.engine.precision import autocast
from pckd.engine.step import train_step
from pckd.profiling.measure import Clock
from pckd.profiling.step import Workload, part_names, seams
from pckd.profiling.terms import fresh
from registry import Batch, Output, Setup, Shapes

__all__ = ["Stages", "watched"]

ALONE = 3
"""Repetitions of what is measured by itself; the median counts."""


class Stages:
    """Watches a run's turn (:class:`pckd.profiling.turns.Watcher`); :func:`watched` puts it into the loop."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.work: Workload | None = None
        """What the loop trains, from its last step."""
        self.terms_backward = self.student_backward = 0.0
        """Seconds of the backward pass of the objective down to the networks' outputs, and of the student from there,
        each by itself."""
        self._readings: list[tuple[str, Any]] = []
        self._shown: tuple[Any, ...] = ()
        self._hooks = contextlib.ExitStack()
        self._steps = 0

    def begin(self) -> None:
        self._readings, self._steps = [("begin", self.clock.read())], 0

    def stepped(self) -> None:
        self._mark("metrics")
        self._steps += 1

    def end(self) -> None:
        self._hooks.close()
        assert self.work is not None
        terms = [self._terms_alone(self.work) for _ in range(ALONE)]
        self.terms_backward = statistics.median(seconds for seconds, _ in terms)
        gradients = terms[-1][1]
        self.student_backward = statistics.median(self._student_alone(self.work, gradients) for _ in range(ALONE))
        # The last step's outputs, which would otherwise be alive beside the next one's.
        self._shown = ()

    def parts(self) -> dict[str, float]:
        """Mean seconds a step of each part, in the order of the step; with ``data`` and ``metrics``."""
        assert self.work is not None
        seconds = dict.fromkeys(("data", *part_names(self.work), "metrics"), 0.0)
        for (_, before), (part, reading) in zip(self._readings, self._readings[1:], strict=False):
            seconds[part] += self.clock.seconds(before, reading)
        return {part: total / self._steps for part, total in seconds.items()}

    def step(self, batch: Batch, **options: Any) -> Any:
        """The engine's step in the loop, with hooks at its seams."""
        self._mark("data")
        if not self._steps:
            self._hook(batch, **options)
        assert self.work is not None
        self.work.batch = batch
        result = train_step(batch, **options)
        self._mark("other")
        return result

    def _mark(self, part: str) -> None:
        self._readings.append((part, self.clock.read()))

    def _hook(self, batch: Batch, *, trainee: Any, teacher: Any, **options: Any) -> None:
        student, objective = trainee.student, trainee.objective
        own = Shapes(student.classifier.out_features, student.classifier.in_features)
        other = own if teacher is None else Shapes(teacher.classifier.out_features, teacher.classifier.in_features)
        self.work = Workload(
            student=student,
            teacher=teacher,
            objective=objective,
            setup=Setup(own, other),
            optimizer=options["optimizer"],
            batch=batch,
            strong=options["strong"],
            device=options["device"],
            precision=options["precision"],
        )
        before = self._readings
        self._readings = self._hooks.enter_context(seams(self.work, self.clock.read))
        self._readings += before

        def keep(_: Any, shown: tuple[Any, ...]) -> None:
            self._shown = shown

        self._hooks.callback(objective.register_forward_pre_hook(keep).remove)

    def _terms_alone(self, work: Workload) -> tuple[float, list[Tensor | None]]:
        """Seconds of the backward pass, and its gradients of the student's outputs."""
        for parameter in work.objective.parameters():
            parameter.grad = None
        student, teacher, context = fresh(self._shown)
        with autocast(work.precision, work.device):
            values = work.objective(student, teacher, context)
        seconds = self._timed(values["loss"].backward)
        return seconds, [output.grad for output in tensors(student)]

    def _student_alone(self, work: Workload, gradients: list[Tensor | None]) -> float:
        for parameter in work.student.parameters():
            parameter.grad = None
        with autocast(work.precision, work.device):
            outputs = tensors(work.student(work.batch.views.flatten(0, 1)))
        used = [(output, given) for output, given in zip(outputs, gradients, strict=True) if given is not None]
        ends, starts = [output for output, _ in used], [given for _, given in used]
        return self._timed(lambda: torch.autograd.backward(ends, starts))

    def _timed(self, run: Callable[[], object]) -> float:
        start = self.clock.read()
        run()
        return self.clock.seconds(start, self.clock.read())


def tensors(output: Output) -> list[Tensor]:
    """Those of an output, without maps that are absent."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def watched(stages: Stages) -> Iterator[None]:
    """While entered, the steps of the training loop are ``stages``'s to watch; of one run at a time."""
    usual = train.train_step
    train.train_step = stages.step
    try:
        yield
    finally:
        train.train_step = usual

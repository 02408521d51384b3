"""How the networks run: the teacher prepared, without feature maps where nobody reads them, compiled where it pays."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from model_zoo.probe import copied, evaluating
from pckd.engine.lean import Head, WithoutMaps, without_maps
from pckd.engine.precision import autocast
from pckd.engine.step import Moment, Trainee
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from registry import Batch, NotApplicable, Output, UserError

WORTH_IT = 1000
"""Steps from which on compiling saves more time than it takes; see the README for the measurement."""


def resolve_compile(
    compile: bool | None, steps: int, device: torch.device, *, teacher: bool = True
) -> tuple[bool, str]:
    """Decide, and say why where that is not what was asked for or expected.

    Args:
        compile: yes, no, or None: where the run is long enough to repay the compilation, and it works here.
        steps: of the run.
        teacher: whether there is one: left to itself a CPU compiles nothing else (:func:`prepare`).

    Raises:
        UserError: compiling was asked for and does not work here.
    """
    worth_it = steps >= WORTH_IT and (device.type == "cuda" or (device.type == "cpu" and teacher))
    if compile is False or (compile is None and not worth_it):
        return False, ""
    try:
        # A trial, because the compiler itself is looked for only now.
        torch.compile(torch.negative)(torch.ones(8, device=device))
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        if compile:
            raise UserError(f"torch.compile does not work here: {reason}; leave out --compile") from None
        return False, f"not compiled: torch.compile does not work here ({reason})"
    return True, "" if compile else f"compiling: {steps} steps repay it (--no-compile leaves it out)"


def prepare(
    student: nn.Module,
    teacher: FrozenTeacher | None,
    objective: Objective,
    batch: Batch,
    *,
    compile_teacher: bool,
    compile_student: bool,
    precision: str,
    device: torch.device,
    strong: bool,
) -> nn.Module:
    """Make the networks ready for the loop; returns what runs in the student's place, with the same weights.

    Args:
        teacher: answers from here on through a faster copy (:meth:`FrozenTeacher.prepare`). batch: any one.
    """
    if teacher is None and not compile_student:
        return student
    maps = reads_maps(student, teacher, objective, batch, precision=precision, device=device, strong=strong)
    if teacher is not None:
        teacher.prepare(batch.views.flatten(0, 1), precision, maps=maps, compile=compile_teacher)
    if not compile_student:
        return student
    # A map that is returned must be written, and its gradient, which is zero where nobody reads it, added up.
    compiled: Any = torch.compile(student if maps else Head(student))
    return compiled if maps else WithoutMaps(compiled, student)


@torch.no_grad()
def reads_maps(
    student: nn.Module,
    teacher: FrozenTeacher | None,
    objective: Objective,
    batch: Batch,
    *,
    precision: str,
    device: torch.device,
    strong: bool,
) -> bool:
    """Whether anything in the objective looks at feature maps: a copy of it is shown outputs whose maps refuse that."""
    images = batch.views.flatten(0, 1)
    try:
        trial = Trainee(student, copied(objective))
    # What a loss holds may refuse to be copied in any way.
    except Exception:
        return True
    with autocast(precision, device):
        with evaluating(student):
            seen = Recorded(without_maps(student(images)).detach(), student)
        answer = None if teacher is None else batch.recalled or without_maps(teacher(images))
        trial.student = seen
        try:
            stages: list[Literal["initial", "main"]] = ["initial", "main"]
            for stage in stages:
                if stage == "main" or any(term.initial for term in objective.terms.values()):
                    moment = Moment(1, 1, 0.0, stage)
                    _, output, answers = trial(batch, answer, teacher, moment, strong)
            trial.objective.predict(output)
            trial.objective.centers.update(output, answers, batch.labels.repeat_interleave(batch.views.shape[1]))
        except NotApplicable:
            return True
    return False


class Recorded(nn.Module):
    """Answers what a network has answered before."""

    def __init__(self, output: Output, network: nn.Module) -> None:
        super().__init__()
        self.output = output
        self.classifier = network.classifier

    def forward(self, x: Tensor) -> Output:
        return self.output

"""How the networks run: the teacher prepared, without feature maps where nobody reads them, compiled where it pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pckd.arguments import GRAPHS
from pckd.device import Device
from pckd.engine.lean import compiled
from pckd.engine.teacher import FrozenTeacher
from pckd.tasks import DistillationTask
from registry import UserError

WORTH_IT = 1000
"""Steps from which on compiling saves more time than it takes; measured in pckd/profiling/README.md."""


def resolve_compile(
    compile: bool | str | None, steps: int, device: torch.device, *, teacher: bool = True
) -> tuple[bool | str, str]:
    """Decide, and say why where that is not what was asked for or expected.

    Args:
        compile: yes, no, CUDA graphs, or None: where the run is long enough to repay the compilation, and it works
            here.
        steps: of the run.
        teacher: whether there is one: left to itself a CPU compiles nothing else (:func:`prepare`).

    Raises:
        UserError: compiling was asked for and does not work here.
    """
    if compile == GRAPHS and device.type != "cuda":
        raise UserError(f"compile={GRAPHS} replays CUDA graphs, which {device.type} does not have; use --compile")
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
    return compile or True, "" if compile else f"compiling: {steps} steps repay it (--no-compile leaves it out)"


def prepare(
    model: DistillationTask,
    teachers: Sequence[FrozenTeacher],
    batch: Any,
    *,
    compile_teacher: bool | str,
    compile_student: bool | str,
    device: Device,
) -> nn.Module:
    """Prepare the teachers (:meth:`FrozenTeacher.prepare`) on any batch; returns what runs in the student's place."""
    images, maps = model.task.images(batch), model.objective.reads_maps
    if images is None or not model.task.prepares:
        return model.student
    for teacher in teachers:
        teacher.prepare(images, device, maps=maps, compile=compile_teacher)
    return compiled(model.student, model.student, compile_student, maps=maps) if compile_student else model.student

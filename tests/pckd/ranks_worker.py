"""First-step gradients of every loss, and calls one after the other, in as many processes as torchrun has started.

The first process writes what it found to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import pckd
from model_zoo import probe
from pckd import api
from pckd.device import Device
from pckd.engine.optimization import Optimization
from pckd.engine.ranks import joined, launched
from pckd.engine.record import FolderInUse, RunFolder
from pckd.engine.step import train_step
from pckd.engine.teacher import FrozenTeacher
from pckd.plan import make_objective, make_task
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from pckd.testing.cases import losses_of_views
from registry import BACKBONES, LOSSES, Batch, Progress, Setup, Term, UserError, function_loss

IMAGES, VIEWS, CLASSES, SIDE, SAMPLES = 8, 4, 5, 16, 64
TERMS = [*losses_of_views(), "category_contrast(gather=True)"]
CPU = torch.device("cpu")


def gradients(loss: str, size: int, rank: int, wrap: Any = None, prepare: Any = None) -> dict[str, Any]:
    """Gradients, values and the center rule's state after one step on this process's part of one fixed batch."""
    torch.manual_seed(0)
    teacher = FrozenTeacher(BACKBONES.get("resnet14")(CLASSES))
    student = BACKBONES.get("resnet8")(CLASSES)
    setup = Setup(probe(student, 3, SIDE), probe(teacher, 3, SIDE), SAMPLES, teacher.classifier)
    previewed = bool(getattr(LOSSES.get(loss.partition("(")[0]), "per_sample", True))
    terms = [Term("cross_entropy", 1e-3), Term(loss, views="all", previewed=previewed, name="probed")]
    # Where a loss trains the centers, they are the classifier's rows; elsewhere those that are updated after the step.
    centers = "classifier" if loss.startswith(("center", "category")) else "ema(momentum=0.5)"
    objective = make_objective(
        terms, setup, difficulty="cross_entropy", scheduler="preview(growth=1.0)", centers=centers
    )
    for module in (student, objective):
        if prepare is not None:
            prepare(module, CPU)
    optimizer = Optimization(1, IMAGES, 0.0, momentum=0.0, weight_decay=0.0).optimizer(student, objective, CPU)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, VIEWS, 3, SIDE, SIDE, generator=generator)
    labels, index = torch.tensor([0, 1, 2, 0, 1, 3, 4, 0]), torch.arange(IMAGES)
    own = slice(rank * IMAGES // size, (rank + 1) * IMAGES // size)
    student.train()
    objective.train()
    model: nn.Module = DistillationTask(Classification(), student, objective)
    if wrap is not None:
        model = wrap(model, CPU)
    torch.manual_seed(2)
    (step,) = train_step(
        Batch(images[own], labels[own], index[own]),
        model=model,
        teachers=[teacher],
        optimizer=optimizer,
        device=Device(CPU),
        progress=Progress(120, 240, 0.5),
    )
    values = step.values
    named = [*student.named_parameters(), *objective.named_parameters()]
    return {
        "gradients": {name: p.grad.clone() for name, p in named if p.grad is not None},
        "centers": objective.centers.state_dict(),
        "statistics": {name: b.clone() for name, b in student.named_buffers()},
        "preview_weight": values.get("preview_weight", torch.zeros(())).detach(),
    }


def fails_in_the_last() -> Callable[..., Any]:
    """A loss that breaks in the third step of the last process."""
    steps = count(1)

    def loss(student: Any, teacher: Any, context: Any) -> torch.Tensor:
        mine = launched()
        if next(steps) == 3 and mine.rank == mine.size - 1:
            raise UserError("broken")
        zero: torch.Tensor = student.logits.sum(1) * 0
        return zero

    return function_loss(loss, needs_teacher=False)


def trained() -> list[dict[str, Any]]:
    """The rows of a training whose terms are all means over the images."""
    torch.manual_seed(0)
    return pckd.distill(
        student="resnet8",
        teacher=BACKBONES.get("resnet8")(4),
        method="pckd(beta=0)",
        difficulty="cross_entropy",
        data="shapes(num_classes=4, image_size=12)",
        limit_train=64,
        limit_test=33,
        epochs=2,
        batch_size=16,
        precision="fp32",
        device="cpu",
        flip=False,
        compile=False,
    ).history


DENSE = {"detection": "faster_rcnn_r10w16", "segmentation": "fcn_r10w16"}


def trained_densely(task: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The row and the student's weights after two steps of a task whose processes may have unequal rows."""
    data = pckd.load_data("scenes(train_size=8, test_size=3, image_size=64)")
    torch.manual_seed(0)
    result = pckd.distill(
        student=DENSE[task],
        teacher=make_task(task, data).make_network(DENSE[task], data),
        method=[Term("cross_entropy"), Term("kd", previewed=True), Term("feature_alignment", rows="upright")],
        difficulty="group_cross_entropy",
        centers="ema",
        task=task,
        data=data,
        epochs=1,
        batch_size=4,
        lr=0.01,
        precision="fp32",
        device="cpu",
        compile=False,
    )
    return result.history, {name: value.clone() for name, value in result.student.state_dict().items()}


def calls() -> dict[str, Any]:
    """What comes of a script's calls."""
    data = pckd.load_data("shapes(num_classes=4, image_size=8)", limit_train=64, limit_test=9)
    training: dict[str, Any] = {"data": data, "epochs": 1, "batch_size": 16, "precision": "fp32"}
    free = RunFolder.lock

    def busy(folder: RunFolder) -> Any:
        RunFolder.lock = free  # type: ignore[method-assign]
        raise FolderInUse("another process trains there")

    # The first process meets another one that trains the same teacher, and all wait for it.
    RunFolder.lock, api.POLL_SECONDS = busy, 0.01  # type: ignore[method-assign]
    teacher = pckd.train_teacher(teacher="resnet8", **training)
    groups = [dist.group.WORLD]
    result = pckd.distill(student="resnet8", teacher=teacher, **training)
    groups.append(dist.group.WORLD)
    first = launched().first
    # The first process alone measures; the others do not come.
    alone = pckd.evaluate(result.student, data) if first else None
    cost = pckd.profile(student="resnet8", teacher="resnet8", batch_size=4, image_size=8, rounds=0) if first else None
    errors = []
    for broken in ({"batch_size": 7}, {"method": [Term("cross_entropy"), Term(fails_in_the_last())]}):
        try:
            pckd.distill(student="resnet8", **{**training, **broken})
        except UserError as error:
            errors.append(str(error))
    again = pckd.distill(student="resnet8", teacher=pckd.train_teacher(teacher="resnet8", **training), **training)
    return {
        "groups": [group is groups[0] and group is not None for group in groups],
        "histories": [result.history, again.history],
        "top1": [result.last_top1, None if alone is None else alone.top1],
        "samples": None if alone is None else alone.samples,
        "profiled": cost is not None,
        "errors": errors,
        "trained": trained(),
        "densely": {task: trained_densely(task) for task in DENSE},
    }


def main(path: str) -> None:
    came = calls()
    with joined(CPU) as (ranks, _):
        found = {
            loss: gradients(loss, ranks.size, ranks.rank, ranks.wrap, ranks.synchronize_statistics) for loss in TERMS
        }
        if ranks.first:
            torch.save({**found, "calls": came}, path)
        ranks.wait()


if __name__ == "__main__":
    main(sys.argv[1])

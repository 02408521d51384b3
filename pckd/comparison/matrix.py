"""Which method works on which pair of families of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pckd.comparison.jobs import unlogged
from pckd.comparison.variants import Variant
from pckd.data.load import Data
from pckd.plan import make_task, plan
from pckd.runs import TASK
from pckd.tasks import Task
from registry import NotApplicable, UserError, parse

WORKS = "works"

FAMILIES = {
    "resnet-resnet": ("resnet20", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "vgg-vgg": ("vgg11", "vgg8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
"""Columns: a teacher and a student of each pair of families."""
OTHERS = {
    "detection": {
        "Faster R-CNN": ("faster_rcnn_r18w48", "faster_rcnn_r10w16"),
        "FCOS": ("fcos_r18w48", "fcos_r10w16"),
    },
    "segmentation": {"FCN": ("fcn_r18w48", "fcn_r10w16")},
}
"""Likewise, of other tasks than classification."""


def families_of(task: str) -> dict[str, tuple[str, str]]:
    """The columns for a task.

    Raises:
        UserError: no pairs of this task are known.
    """
    name = parse(task)[0]
    if name not in (TASK, *OTHERS):
        raise UserError(
            f"--matrix: no families of networks are known for the task {name!r}; give --methods and --pairs"
        )
    return OTHERS.get(name, FAMILIES)


def matrix(variants: Sequence[Variant], task: str = TASK) -> list[list[str]]:
    """A row per method: whether its objective can be built for each pair of families of the task, else the reason."""
    with torch.random.fork_rng(devices=[]):
        made, pairs = make_task(task, None), families_of(task).values()
        data = made.random_data(64, 10, (3, 32, 32) if task == TASK else (3, 64, 64))
        return [[variant.label, *(_works(made, data, variant, *pair) for pair in pairs)] for variant in variants]


def _works(task: Task, data: Data, variant: Variant, teacher: str, student: str) -> str:
    try:
        run = plan(task=task, data=data, student=student, teacher=teacher, method=variant.method)
        with unlogged():
            run.objective(run.untrained_teacher())
    except NotApplicable as error:
        return str(error)
    return WORKS

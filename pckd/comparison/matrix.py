"""Which method works on which pair of families of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pckd.comparison.jobs import unlogged
from pckd.comparison.variants import Variant
from pckd.data.load import Data
from pckd.plan import make_task, plan
from pckd.tasks import Task
from registry import NotApplicable

FAMILIES = {
    "resnet-resnet": ("resnet20", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "vgg-vgg": ("vgg11", "vgg8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
"""Columns: a teacher and a student of each pair of families."""


def matrix(variants: Sequence[Variant]) -> list[list[str]]:
    """A row per method: whether its objective can be built for each pair of families, else the reason."""
    with torch.random.fork_rng(devices=[]):
        task = make_task("classification", None)
        data = task.random_data(64, 10, (3, 32, 32))
        return [
            [variant.label, *(_works(task, data, variant, *pair) for pair in FAMILIES.values())] for variant in variants
        ]


def _works(task: Task, data: Data, variant: Variant, teacher: str, student: str) -> str:
    try:
        run = plan(task=task, data=data, student=student, teacher=teacher, method=variant.method)
        with unlogged():
            run.objective(run.untrained_teacher())
    except NotApplicable as error:
        return str(error)
    return "works"

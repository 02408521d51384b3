"""Which method works on which pair of families of networks."""

from __future__ import annotations

from collections.abc import Sequence

from model_zoo import probe
from pckd.comparison.cases import Case
from pckd.engine.sources import make_objective, method_terms
from pckd.engine.teacher import FrozenTeacher
from registry import BACKBONES, NotApplicable, Setup

__all__ = ["FAMILIES", "matrix"]

FAMILIES = {
    "resnet-resnet": ("resnet20", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "vgg-vgg": ("vgg11", "vgg8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
"""Columns: a teacher and a student of each pair of families."""


def matrix(cases: Sequence[Case]) -> list[list[str]]:
    """A row per method: whether its objective can be built for each pair of families, else the reason."""
    setups = {}
    for label, names in FAMILIES.items():
        teacher, student = (BACKBONES.get(name)(10) for name in names)
        frozen = FrozenTeacher(teacher)
        setups[label] = Setup(probe(student, 3, 32), probe(frozen, 3, 32), 1000, frozen.classifier)
    rows = []
    for case in cases:
        row = [case.label]
        for label, (teacher_name, student_name) in FAMILIES.items():
            try:
                terms = method_terms(case.method, student_name, teacher_name)
                parts = {"difficulty": "cross_entropy", "scheduler": "preview", "centers": "classifier"}
                make_objective(terms, setups[label], **parts)
                row.append("works")
            except NotApplicable as error:
                row.append(str(error))
        rows.append(row)
    return rows

"""Does a difficulty metric keep the contract of ``registry.DIFFICULTY_METRICS``?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pckd.testing.cases import IMAGES, ORDER, PAIRS, Case, make_case, near, same, tensors_of
from pckd.testing.contract import Contract
from registry import DIFFICULTY_METRICS, Instances

EASY, HARD = (9.0, 0, 0, 0, 0, 0, 0), (-4.0, 0, 0, 0, 0, 0, 0)
SURE, UNSURE = (9.0, 0, 0, 0, 0, 0, 0), (2.0, 0, 0, 0, 0, 0, 0)

HALF_TOLERANCE = 0.05
"""In half precision, relative to the largest value: a metric may compute in it."""


def check_difficulty(difficulty: str | Callable[..., Tensor]) -> None:
    """Hold a difficulty metric to its contract, with teachers of the student's width and of another.

    Clauses: builds, runs, shape, float32, finite, not negative, mean 1, no gradient, deterministic, inputs untouched,
    reads_maps, half precision, order, higher is harder.

    "Higher is harder" compares two images that differ in nothing but the logits: of one, both networks are right and
    sure; of the other, the student is wrong and the teacher less sure. A metric that does not look at the logits
    may call them equal.

    Args:
        difficulty: a registered name, with options or without, or the function
            ``(student, teacher, context) -> difficulty [B]``.
    """
    contract = Contract("difficulty metric", DIFFICULTY_METRICS, difficulty)
    with contract.clause("builds") as expect:
        measure = contract.make()
        expect(callable(measure), f"it is {type(measure).__name__}", "a function")
    for views, width in PAIRS:
        case = make_case(views, width, grad=False)
        for images in (range(IMAGES), range(1)):
            some = case.images(images)
            with contract.trial(f"{some}, {len(images)} images"), torch.no_grad():
                _check(contract, measure, some)
        with contract.trial(case), torch.no_grad():
            _compare(contract, measure, case)


def _check(contract: Contract, measure: Callable[..., Tensor], case: Case) -> None:
    student, teacher, context = case.upright
    shown = [*tensors_of(student), *tensors_of(teacher), context.labels, context.index]
    before = [tensor.clone() for tensor in shown]
    values = contract.vector(lambda: measure(student, teacher, context), context.labels.shape)
    contract.holds("not negative", (values >= 0).all(), f"returned {values.tolist()}", "nothing below 0")
    mean = float(values.mean())
    is_relative = abs(mean - 1) < 1e-4 or not values.any()
    contract.holds("mean 1", is_relative, f"the batch has mean {mean:.4g}", "1, or 0 everywhere")
    contract.holds("no gradient", not values.requires_grad, "the values ask for gradient", "constants")
    with contract.clause("deterministic") as expect:
        values = values.clone()
        expect(measure(*case.upright).equal(values), "the same arguments gave other values", "the same")
    contract.holds("inputs untouched", same(before, shown), "wrote into what it was shown", "no change")
    if not getattr(measure, "reads_maps", True):
        with contract.clause("reads_maps") as expect:
            bare = measure(*case.without_maps().upright)
            expect(bare.equal(values), "without feature maps it gave other values", "the same")
    with contract.clause("half precision") as expect:
        half = case.to(torch.bfloat16)
        wanted = measure(*half.to(torch.float32).upright)
        with torch.autocast("cpu", torch.bfloat16):
            found = measure(*half.upright)
        expect(near(found.float(), wanted, HALF_TOLERANCE), f"other values for bfloat16 outputs: {found}", f"{wanted}")


def _compare(contract: Contract, measure: Callable[..., Tensor], case: Case) -> None:
    with contract.clause("order") as expect:
        values, moved = (measure(*each.upright) for each in (case, case.images(ORDER)))
        expect(near(moved, values[list(ORDER)]), "another order of the images gave other values", "the same, reordered")
    with contract.clause("higher is harder") as expect:
        twice = case.images((0, 0))
        student, teacher, context = twice.upright
        student = student._replace(logits=torch.tensor((EASY, HARD)))
        teacher = teacher._replace(logits=torch.tensor((SURE, UNSURE)))
        easy, hard = measure(
            student, teacher, replace(context, instances=Instances(torch.zeros_like(context.labels)))
        ).tolist()
        expect(hard >= easy, f"{easy:.3g} for an image that is easy and {hard:.3g} for a hard one", "more for the hard")

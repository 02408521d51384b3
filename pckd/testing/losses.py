"""Does a loss keep the contract of ``registry.LOSSES``?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product

import torch
from torch import Tensor, nn

from pckd.testing.cases import (
    IMAGES,
    TEACHER_WIDTHS,
    VIEWS,
    Case,
    enough_views,
    make_case,
    objective_of,
    reached,
    tensors_of,
)
from pckd.testing.contract import Contract
from pckd.testing.loss_claims import (
    call,
    check_claims,
    check_independent,
    check_order,
    check_precision,
    check_repeats,
    check_state,
    make,
)
from registry import LOSSES, NotApplicable, Term

__all__ = ["check_loss"]


def check_loss(loss: str | Callable[..., nn.Module], *, independent_rows: bool = False) -> None:
    """Hold a loss to its contract, in 1 and 4 views (or as many as it needs), with teachers of its width and another.

    A loss that says ``needs`` is shown whole images with boxes and pixels, which have no logits and no embedding.

    A pair of networks may be refused with :class:`registry.NotApplicable` in the constructor, but not every pair. What
    the order of the images has an effect on says so with ``order_matters = True`` in the class, and "order" is not
    asked of it; nor is it of a loss that draws random numbers.

    Clauses: builds, applicable, runs, unreduced, per_sample, float32, finite, inputs untouched, gradient to the
    student, finite gradient, trained parameters, teacher is constant, deterministic, registered state, state,
    half precision, needs_teacher, reads_maps, predict, start, order, independent rows.

    Args:
        loss: a registered name, with options or without, or the factory ``(setup, **options) -> nn.Module``.
        independent_rows: claim that an image's value does not depend on the other images of the batch.

    Raises:
        ContractError: it breaks a clause; the message says which, what was seen, and what is expected.
        UserError: there is no loss of that name.
    """
    contract = Contract("loss", LOSSES, loss)
    checks = [_values, _gradients, _teacher, check_repeats, check_state, check_precision, check_claims, check_order]
    checks += [check_independent] if independent_rows else []
    accepted = False
    of_images = bool(contract.says("needs", default=False))
    for views, width in product(VIEWS, TEACHER_WIDTHS):
        case = make_case(views, width, of_images=of_images)
        with contract.trial(case):
            made = _built(contract, case)
        if made is None:
            continue
        accepted = True
        for check in checks:
            case = make_case(enough_views(views, [made]), width, of_images=of_images)
            with contract.trial(case):
                check(contract, case)
    with contract.clause("applicable") as expect:
        expect(accepted, "refused every pair of networks", "one that it works for")


def _built(contract: Contract, case: Case) -> nn.Module | None:
    loss: nn.Module | None = None
    with contract.clause("builds") as expect, suppress(NotApplicable):
        loss = contract.make(case.setup)
        expect(isinstance(loss, nn.Module), f"the factory made {type(loss).__name__}", "an nn.Module")
    return loss


def _values(contract: Contract, case: Case) -> None:
    loss = make(contract, case)
    context = case.context
    shown = [*tensors_of(case.student), *tensors_of(case.teacher), *filter(torch.is_tensor, context.centers)]
    shown += [context.labels, context.index]
    before = [tensor.detach().clone() for tensor in shown]
    rows, per_sample = IMAGES * context.views, contract.says("per_sample")
    for stage in ("main", "initial"):
        with contract.clause("runs") as expect:
            value = call(loss, case, stage=stage)
            expect(isinstance(value, Tensor), f"returned {type(value).__name__}", "a tensor")
        with contract.clause("unreduced") as expect:
            expect(value.shape in ((rows,), ()), f"returned shape {tuple(value.shape)}", f"({rows},) or ()")
        with contract.clause("per_sample") as expect:
            shape = f"({rows},)" if per_sample else "()"
            expect(value.ndim == per_sample, f"returned shape {tuple(value.shape)}", f"{shape}, as per_sample says")
        with contract.clause("float32") as expect:
            expect(value.dtype == torch.float32, f"returned {value.dtype}", "torch.float32")
        with contract.clause("finite") as expect:
            expect(value.isfinite().all(), f"returned {value.detach().tolist()}", "finite values")
    with contract.clause("inputs untouched") as expect:
        same = all(a.equal(b.detach()) for a, b in zip(before, shown, strict=True))
        expect(same, "wrote into what it was shown", "no change")


def _gradients(contract: Contract, case: Case) -> None:
    loss = make(contract, case)
    centers = case.context.centers
    student = [*tensors_of(case.student), centers.student, centers.student_bias]
    with contract.clause("gradient to the student") as expect:
        # What is trained only in the epochs before the schedule is trained there.
        for stage in ("main", "initial"):
            call(loss, case, stage=stage).mean().backward()
        expect(reached(student), "none came", "some in the outputs or the student's centers")
    with contract.clause("finite gradient") as expect:
        trained = [*filter(torch.is_tensor, student), *loss.parameters()]
        expect(all(t.grad is None or t.grad.isfinite().all() for t in trained), "some is not", "finite numbers")
    with contract.clause("trained parameters") as expect:
        left = [key for key, parameter in loss.named_parameters() if parameter.requires_grad and parameter.grad is None]
        expect(not left, f"{', '.join(left)} got no gradient", "some for every parameter")


def _teacher(contract: Contract, case: Case) -> None:
    """Within the objective, which shows the teacher's output as a constant."""
    rows = "images" if case.of_images else "all"
    if case.of_images:
        case = make_case(1, case.setup.teacher.embedding)
    centers, classifier = case.context.centers, case.setup.teacher_classifier
    assert classifier is not None
    with contract.clause("teacher is constant") as expect:
        objective = objective_of([Term(contract.plugin, rows=rows)], case.setup)
        ids = {id(parameter) for parameter in classifier.parameters()}
        held = [key for key, parameter in objective.losses.named_parameters() if id(parameter) in ids]
        expect(not held, "holds the teacher's own classifier as a submodule", "a setup.frozen_classifier()")
        objective(case.student, case.teacher, case.context)["loss"].backward()
        teacher = [*tensors_of(case.teacher), centers.teacher, centers.teacher_bias, *classifier.parameters()]
        expect(not reached(teacher), "gradient reached the teacher", "none")

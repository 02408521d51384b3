"""Does a loss keep the contract of ``registry.LOSSES``?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from pckd.testing.cases import (
    IMAGES,
    OF_IMAGES,
    PAIRS,
    Case,
    enough_views,
    make_case,
    objective_of,
    reached,
    same,
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


def check_loss(loss: str | Callable[..., nn.Module], *, independent_rows: bool = False) -> None:
    """Hold a loss to its contract, in 1 and 4 views (or as many as it needs), with teachers of its width and another.

    A loss that says that it needs boxes, pixels or a head is shown whole images, which have no logits and no embedding.

    A pair of networks may be refused with :class:`registry.NotApplicable` in the constructor, but not every pair. What
    the order of the images has an effect on says so with ``order_matters = True`` in the class, and "order" is not
    asked of it; nor is it of a loss that draws random numbers.

    Clauses: builds, applicable, runs, unreduced, per_sample, float32, finite, inputs untouched, gradient to the
    student, finite gradient, trained parameters, teacher is constant, deterministic, registered state, state,
    half precision, needs_teacher, reads_maps, predict, start, order, independent rows.

    Args:
        loss: a registered name, with options or without, or the factory ``(setup, **options) -> nn.Module``.
        independent_rows: claim that an image's value does not depend on the other images of the batch.
    """
    contract = Contract("loss", LOSSES, loss)
    checks = [_values, _gradients, _teacher, check_repeats, check_state, check_precision, check_claims, check_order]
    checks += [check_independent] if independent_rows else []
    accepted = False
    of_images = bool(OF_IMAGES & contract.needs())
    for views, width in PAIRS:
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
    contract.holds("applicable", accepted, "refused every pair of networks", "one that it works for")


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
        returned, wanted = f"returned shape {tuple(value.shape)}", f"({rows},)" if per_sample else "()"
        contract.holds("unreduced", value.shape in ((rows,), ()), returned, f"({rows},) or ()")
        contract.holds("per_sample", value.ndim == per_sample, returned, f"{wanted}, as per_sample says")
        contract.holds("float32", value.dtype == torch.float32, f"returned {value.dtype}", "torch.float32")
        contract.holds("finite", value.isfinite().all(), f"returned {value.detach().tolist()}", "finite values")
    contract.holds("inputs untouched", same(before, shown), "wrote into what it was shown", "no change")


def _gradients(contract: Contract, case: Case) -> None:
    loss = make(contract, case)
    centers = case.context.centers
    student = [*tensors_of(case.student), centers.student, centers.student_bias]
    with contract.clause("gradient to the student") as expect:
        # What is trained only in the epochs before the schedule is trained there.
        for stage in ("main", "initial"):
            call(loss, case, stage=stage).mean().backward()
        expect(reached(student), "none came", "some in the outputs or the student's centers")
    trained = [*filter(torch.is_tensor, student), *loss.parameters()]
    finite = all(t.grad is None or t.grad.isfinite().all() for t in trained)
    contract.holds("finite gradient", finite, "some is not", "finite numbers")
    left = ", ".join(key for key, p in loss.named_parameters() if p.requires_grad and p.grad is None)
    contract.holds("trained parameters", not left, f"{left} got no gradient", "some for every parameter")


def _teacher(contract: Contract, case: Case) -> None:
    """Within the objective, which shows the teacher's output as a constant."""
    rows = "images" if case.of_images else "all"
    if case.of_images:
        case = make_case(1, case.setup.teacher.embedding)
    with contract.clause("teacher is constant") as expect:
        objective = objective_of([Term(contract.plugin, rows=rows)], case.setup)
        ids = set(map(id, case.constants))
        held = any(id(parameter) in ids for parameter in objective.losses.parameters())
        expect(not held, "holds the teacher's own classifier as a submodule", "a setup.frozen_classifier()")
        objective(case.student, case.teacher, case.context)["loss"].backward()
        expect(not reached(case.constants), "gradient reached the teacher", "none")

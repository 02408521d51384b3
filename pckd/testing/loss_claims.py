"""What a loss promises beyond one value and its gradient: to repeat itself, and what it says about itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pckd.testing.cases import CLASSES, IMAGES, ORDER, Bare, Case, hidden_parts, near, same, saved
from pckd.testing.contract import SEED, Contract, seed_cpu

TOLERANCE, LAYERS_TOLERANCE = 1e-4, 0.05
"""In half precision, relative to the largest value: of a loss without layers, and of one whose own layers run in it."""


def make(contract: Contract, case: Case, seed: int = SEED) -> Any:
    """The loss, initialized from one seed."""
    seed_cpu(seed)
    with contract.clause("builds"):
        return contract.make(case.setup)


def call(loss: nn.Module, case: Case, *, stage: Any = "main", seed: int = 1) -> Tensor:
    """The loss's value, as the objective would get it: the teacher's output is a constant."""
    seed_cpu(seed)
    value: Tensor = loss(case.student, case.teacher.detach(), replace(case.context, stage=stage))
    return value


def check_repeats(contract: Contract, case: Case) -> None:
    with contract.clause("deterministic") as expect:
        one, other = (make(contract, case) for _ in range(2))
        values = [call(loss, case) for loss in (one, other)]
        expect(values[0].equal(values[1]), "the same state and seed gave another value", "the same")
        states = [loss.state_dict().values() for loss in (one, other)]
        expect(same(*states), "the same state and seed gave another state", "the same")


def check_state(contract: Contract, case: Case) -> None:
    """What a loss remembers and trains is all in its state: a resumed run goes on as the other would have."""
    loss, resumed = make(contract, case), make(contract, case, seed=2)
    with contract.clause("registered state") as expect:
        call(loss, case)
        hidden = hidden_parts(loss)
        expect(not hidden, hidden, "nothing hidden")
    with contract.clause("state") as expect:
        resumed.load_state_dict(saved(loss.state_dict()))
        later = case.another(seed=1)
        wanted, value = (call(each, later) for each in (loss, resumed))
        expect(value.equal(wanted), "resumed from its saved state it gave another value", "the same")


def check_precision(contract: Contract, case: Case) -> None:
    """Under autocast a loss takes what the networks give then, and computes in float32 all the same."""
    half = case.to(torch.bfloat16)
    with contract.clause("half precision") as expect:
        loss, exact = make(contract, case), make(contract, case)
        with torch.autocast("cpu", torch.bfloat16):
            value = call(loss, half)
        expect(value.dtype == torch.float32, f"returned {value.dtype} for bfloat16 outputs", "torch.float32")
        wanted = call(exact, half.to(torch.float32))
        tolerance = LAYERS_TOLERANCE if any(True for _ in loss.parameters()) else TOLERANCE
        error = float((value - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-30))
        expect(near(value, wanted, tolerance), f"off by {error:.1e} for bfloat16 outputs", f"at most {tolerance:.0e}")
        value.mean().backward()


def check_claims(contract: Contract, case: Case) -> None:
    """What a loss says about itself is so."""
    loss = make(contract, case)
    if not contract.says("needs_teacher"):
        with contract.clause("needs_teacher") as expect:
            other = case._replace(teacher=case.another(seed=1).teacher)
            value, wanted = (call(make(contract, case), each) for each in (other, case))
            expect(value.equal(wanted), "another teacher changed the value", "none, as needs_teacher is False")
    if not getattr(loss, "reads_maps", True):
        with contract.clause("reads_maps") as expect:
            bare = case.without_maps()
            for stage in ("main", "initial"):
                value, wanted = (call(make(contract, case), each, stage=stage) for each in (bare, case))
                expect(value.equal(wanted), "without feature maps it gave another value", "the same")
            if hasattr(loss, "predict"):
                loss.predict(bare.student)
    if hasattr(loss, "predict"):
        with contract.clause("predict") as expect, torch.no_grad():
            logits = loss.eval().predict(case.student)
            shape = (IMAGES * case.context.views, CLASSES)
            expect(logits.shape == shape, f"predict returned shape {tuple(logits.shape)}", f"{shape}")
            expect(logits.isfinite().all(), "predict is not finite", "finite logits")
    if hasattr(loss, "start"):
        check_start(contract, loss, case)


def check_start(contract: Contract, loss: Any, case: Case) -> None:
    """What a loss does before the first step it does to the student alone."""
    student, teacher = (Bare(shapes.embedding) for shapes in case.setup[:2])
    before, theirs = saved(student.state_dict()), saved(teacher.state_dict())
    with contract.clause("start") as expect:
        with torch.no_grad():
            loss.start(student, teacher)
        after = student.state_dict()
        shapes = [{name: value.shape for name, value in state.items()} for state in (after, before)]
        expect(shapes[0] == shapes[1], "start left the student with weights of other shapes", "the same shapes")
        expect(all(value.isfinite().all() for value in after.values()), "start set weights not finite", "finite ones")
        kept = same(teacher.state_dict().values(), theirs.values())
        expect(kept, "start changed the teacher", "the student alone changed")


def check_order(contract: Contract, case: Case) -> None:
    """Not of a loss that says otherwise, nor of one that draws random numbers: it draws them row by row."""
    if contract.says("order_matters", default=False):
        return
    with contract.clause("order") as expect:
        value, again = (call(make(contract, case), case, seed=seed) for seed in (1, 2))
        if not value.equal(again):
            return
        moved = call(make(contract, case), case.images(ORDER))
        wanted = value.unflatten(0, (IMAGES, -1))[list(ORDER)].flatten() if value.ndim else value
        expect(near(moved, wanted), "another order of the images gave other values", "the same ones, reordered")


def check_independent(contract: Contract, case: Case) -> None:
    some = (0, 1, 4)
    with contract.clause("independent rows") as expect:
        alone, wanted = (call(make(contract, case), each) for each in (case.images(some), case))
        expect(wanted.ndim == 1, "returned a scalar", "one value a row")
        wanted = wanted.unflatten(0, (IMAGES, -1))[list(some)].flatten()
        expect(near(alone, wanted), "leaving out other images changed the values", "no change, as claimed")

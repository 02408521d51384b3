"""Does a center rule keep the contract of ``registry.CENTER_RULES``?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import nn

from pckd.testing.cases import CLASSES, PAIRS, WIDTH, Bare, Case, hidden_parts, make_case, same, saved, tensors_of
from pckd.testing.contract import Contract
from registry import CENTER_RULES, Centers, NotApplicable

STEPS = 3


def check_center_rule(rule: str | Callable[..., nn.Module]) -> None:
    """Hold a center rule to its contract over three steps, with teachers of the student's width and of another.

    A pair of networks may be refused with :class:`registry.NotApplicable` in the constructor, but not every pair.

    Clauses: builds, applicable, runs, shape, finite, teacher is constant, looking changes nothing, update,
    reads_maps, half precision, inputs untouched, backward after update, holds no network, registered state, state.

    Args:
        rule: a registered name, with options or without, or the factory ``(setup, **options) -> CenterRule``.
    """
    contract = Contract("center rule", CENTER_RULES, rule)
    accepted = False
    for (views, width), bias in product(PAIRS, (True, False)):
        case = make_case(views, width, grad=False)
        with contract.trial(f"{case}, classifiers with{'' if bias else 'out'} bias"):
            nets = Bare(WIDTH, bias), Bare(width, bias)
            made = _built(contract, case)
            if made is None:
                continue
            accepted = True
            for step in range(STEPS):
                _look(contract, made, nets, width, f"{case}, after {step} updates")
                _update(contract, made, nets, case, half=step == STEPS - 1)
            _state(contract, made, nets, case)
    contract.holds("applicable", accepted, "refused every pair of networks", "one that it works for")


def _built(contract: Contract, case: Case) -> Any:
    made = None
    with contract.clause("builds") as expect, suppress(NotApplicable):
        made = contract.make(case.setup)
        expect(isinstance(made, nn.Module), f"the factory made {type(made).__name__}", "an nn.Module")
        expect(callable(getattr(made, "update", None)), "it has no method update", "one, as CenterRule has")
    return made


def _look(contract: Contract, rule: Any, nets: tuple[Bare, Bare], width: int, case: str) -> None:
    contract.case = case
    with contract.clause("runs") as expect:
        centers = rule(*nets)
        expect(isinstance(centers, Centers), f"returned {type(centers).__name__}", "registry.Centers")
    wanted = ((CLASSES, WIDTH), (CLASSES, width), (CLASSES,), (CLASSES,))
    for (name, tensor), shape in zip(centers._asdict().items(), wanted, strict=True):
        if tensor is None and name.endswith("bias"):
            continue
        with contract.clause("shape") as expect:
            expect(tensor.shape == shape, f"{name} has shape {tuple(tensor.shape)}", f"{shape}")
        contract.holds("finite", tensor.isfinite().all(), f"{name} is not finite", "valid centers from step 0 on")
        constant = name.startswith("student") or not tensor.requires_grad
        contract.holds("teacher is constant", constant, f"{name} asks for gradient", "a constant")
    with contract.clause("looking changes nothing") as expect:
        expect(_same(centers, rule(*nets)), "a second look gave other centers", "the same")


def _update(contract: Contract, rule: Any, nets: tuple[Bare, Bare], case: Case, half: bool) -> None:
    shown = [*tensors_of(case.student), *tensors_of(case.teacher), case.context.labels]
    shown += [parameter for net in nets for parameter in net.parameters()]
    before = [tensor.detach().clone() for tensor in shown]
    query = torch.ones(WIDTH, requires_grad=True)
    with contract.clause("update") as expect:
        value = (rule(*nets).student @ query).sum()
        answer = rule.update(case.student, case.teacher, case.context.labels)
        expect(answer is None, f"update returned {type(answer).__name__}", "None")
    untouched = same(before, shown)
    contract.holds("inputs untouched", untouched, "update wrote into the networks or their outputs", "no change")
    with contract.clause("backward after update"):
        # What the forward pass saved must not be what the update writes into.
        value.backward()
    if not getattr(rule, "reads_maps", True):
        with contract.clause("reads_maps") as expect:
            one, other = copy.deepcopy(rule), copy.deepcopy(rule)
            for each, shows in ((one, case), (other, case.without_maps())):
                each.update(shows.student, shows.teacher, case.context.labels)
            expect(_same(one(*nets), other(*nets)), "without feature maps it updates to other centers", "the same")
    if half:
        with contract.clause("half precision") as expect:
            there = case.to(torch.bfloat16)
            rule.update(there.student, there.teacher, case.context.labels)
            dtypes = {tensor.dtype for tensor in rule(*nets) if tensor is not None}
            expect(dtypes == {torch.float32}, f"centers are {dtypes} after bfloat16 outputs", "torch.float32")


def _state(contract: Contract, rule: Any, nets: tuple[Bare, Bare], case: Case) -> None:
    theirs = {id(parameter) for net in nets for parameter in net.parameters()} | set(map(id, case.constants))
    held = ", ".join(key for key, tensor in rule.named_parameters() if id(tensor) in theirs)
    contract.holds("holds no network", not held, f"{held} is a network's", "a rule that reads them and keeps nothing")
    hidden = hidden_parts(rule)
    contract.holds("registered state", not hidden, hidden, "nothing hidden")
    with contract.clause("state") as expect:
        resumed = contract.make(case.setup)
        resumed.load_state_dict(saved(rule.state_dict()))
        expect(_same(rule(*nets), resumed(*nets)), "resumed from its saved state it gave other centers", "the same")
        for each in (rule, resumed):
            each.update(case.student, case.teacher, case.context.labels)
        expect(_same(rule(*nets), resumed(*nets)), "resumed, it updates to other centers", "the same")


def _same(one: Centers, other: Centers) -> bool:
    kept = [[tensor for tensor in centers if tensor is not None] for centers in (one, other)]
    return [t is None for t in one] == [t is None for t in other] and same(*kept)

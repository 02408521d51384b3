"""Losses and metrics that are plain functions: their inputs, options and claims, and how factories are told apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd.objective import needs_teacher
from registry import (
    DIFFICULTY_METRICS,
    LOSSES,
    Centers,
    Context,
    Instances,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
    function_loss,
    options_of,
)

SETUP = Setup(Shapes(3, 4), Shapes(3, 4))


def output(sign: float) -> Output:
    logits, embedding, *maps = (torch.tensor([sign * n]) for n in range(10, 18))
    return Output(logits, embedding, tuple(maps[:3]), tuple(maps[3:]))


STUDENT, TEACHER = output(1.0), output(-1.0)
CENTERS = Centers(*(torch.tensor([number]) for number in (3.0, -3.0, 4.0, -4.0)))
CONTEXT = Context(Instances(torch.tensor([1]), torch.tensor([2]), views=5), CENTERS)
SHOWN = (STUDENT, TEACHER, CONTEXT)


def of(side: str, shown: Output, centers: Tensor, bias: Tensor | None) -> dict[str, Any]:
    fields = {"": shown, "_logits": shown.logits, "_embedding": shown.embedding, "_centers": centers, "_bias": bias}
    maps = {"_maps": shown.maps, "_preacts": shown.preacts, "_map": shown.maps[2], "_stages": shown.maps[1:]}
    return {f"{side}{name}": value for name, value in {**fields, **maps}.items()}


EXPECTED = {
    **of("student", STUDENT, CENTERS.student, CENTERS.student_bias),
    **of("teacher", TEACHER, CENTERS.teacher, CENTERS.teacher_bias),
    "context": CONTEXT,
    "labels": CONTEXT.labels,
    "index": CONTEXT.index,
    "views": 5,
    "centers": CENTERS,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_a_name_chooses_an_input(name: str, expected: Any) -> None:
    assert function_loss(lambda x: x, inputs=[name])(SETUP)(*SHOWN) == expected


def distance(teacher_logits: Tensor, student_logits: Tensor, power: int = 1, *, scale: float = 2.0) -> Tensor:
    """Difference of the logits."""
    return scale * (student_logits - teacher_logits) ** power


def labeled(student_logits: Tensor, labels: Tensor) -> Tensor:
    return student_logits * labels


def whole(student: Output, teacher: Output, context: Context, *, sign: int = 1) -> Tensor:
    return sign * (student.logits - teacher.logits) * context.views


class Module(nn.Module):
    def __init__(self, setup: Setup, *, views: int = 1) -> None:
        super().__init__()
        self.setup = setup


def makes_a_module(setup: Setup, views: int) -> nn.Module:
    return Module(setup, views=views)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("function", "spec", "value"),
    [
        (distance, "mine", 40.0),
        (distance, "mine(power=2, scale=1.5)", 600.0),
        (labeled, "mine", 10.0),
        (whole, "mine(sign=-1)", -100.0),
    ],
)
def test_a_function_is_a_loss(function: Callable[..., Tensor], spec: str, value: float) -> None:
    # It stays a function of tensors.
    assert LOSSES.register("mine")(function) is function
    loss = build(LOSSES, spec, SETUP)
    assert isinstance(loss, nn.Module)
    assert loss(*SHOWN).item() == value
    assert loss.state_dict() == {}
    assert LOSSES.summary("mine") == (function.__doc__ or "")
    assert LOSSES.origin("mine").endswith(f"test_functions.py:{function.__code__.co_firstlineno}")


@pytest.mark.usefixtures("registries")
def test_its_options_are_checked_as_those_of_a_class() -> None:
    LOSSES.register("mine")(distance)
    assert list(options_of(LOSSES.get("mine")).items())[1:] == [("power", 1), ("scale", 2.0)]
    for spec, message in (
        ("mine(powr=2)", "mine has no option 'powr'; did you mean 'power'"),
        ("mine(power=0.5)", "option 'power' must be int, not 0.5"),
        ("mine(student_logits=1)", "mine has no option 'student_logits'"),
    ):
        with pytest.raises(UserError, match=message):
            build(LOSSES, spec, SETUP)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("factory", [Module, makes_a_module, functools.partial(Module, views=2)])
def test_a_class_and_a_factory_are_kept_as_they_are(factory: Any) -> None:
    assert LOSSES.register("mine")(factory) is factory
    assert LOSSES.get("mine") is factory


@pytest.mark.usefixtures("registries")
def test_its_claims_are_those_registered() -> None:
    claims = {"per_sample": False, "needs_views": 2, "needs_rows": 3, "order_matters": True}
    LOSSES.register("mine", paper="Doe", year=2030, **claims)(distance)
    for holder in (LOSSES.get("mine"), build(LOSSES, "mine", SETUP)):
        assert {claim: getattr(holder, claim) for claim in claims} == claims
    assert LOSSES.facts("mine")["paper"] == "Doe"


@pytest.mark.parametrize(
    ("function", "expected"),
    [(distance, True), (labeled, False), (whole, True), (function_loss(whole, needs_teacher=False), False)],
)
def test_whether_it_needs_a_teacher_follows_from_its_inputs(function: Any, expected: bool) -> None:
    assert needs_teacher([Term(function)]) == expected


def test_a_check_sees_the_pair_and_every_option_when_the_loss_is_built() -> None:
    seen = []

    def check(setup: Setup, **options: Any) -> None:
        seen.append((setup, options))
        if options["power"] > 2:
            raise NotApplicable("too much")

    factory = function_loss(distance, check=check)
    factory(SETUP, scale=3.0)
    assert seen == [(SETUP, {"power": 1, "scale": 3.0})]
    with pytest.raises(NotApplicable, match="too much"):
        factory(SETUP, power=3)


def by_position(student: Output, teacher: Output, more: Context, *, scale: float = 1.0) -> Tensor:
    return scale * (student.logits - teacher.logits) * more.views


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("metric", "value"), [(distance, 60.0), (whole, 100.0), (by_position, 300.0), (functools.partial(labeled), None)]
)
def test_a_metric_may_name_its_inputs(metric: Any, value: float | None) -> None:
    DIFFICULTY_METRICS.register("mine")(metric)
    if value is None:
        assert DIFFICULTY_METRICS.get("mine") is metric
    else:
        spec = "mine" if metric is whole else "mine(scale=3.0)"
        assert build(DIFFICULTY_METRICS, spec)(*SHOWN).item() == value


def test_a_metric_with_an_unknown_input_is_refused() -> None:
    with pytest.raises(UserError, match="unknown input 'label'; did you mean 'labels'"):
        DIFFICULTY_METRICS.register("mine")(lambda student_logits, label: 0)


@pytest.mark.parametrize(
    ("loss", "facts", "message"),
    [
        (lambda student_logits, label: 0, {}, "unknown input 'label'; did you mean 'labels'"),
        (distance, {"per_sampel": False}, "unknown claim 'per_sampel'; did you mean 'per_sample'"),
        (distance, {"inputs": ["student_logits"]}, "1 names for its inputs teacher_logits, student_logits"),
        (Module, {"per_sample": False}, "Module is a class or makes a module: give it per_sample as attributes"),
        (makes_a_module, {"check": print}, "give it check as attributes"),
    ],
)
def test_a_registration_that_makes_no_sense(loss: Any, facts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LOSSES.register("mine", **facts)(loss)
    assert "mine" not in LOSSES

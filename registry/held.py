"""What plug-ins return, held to their contracts while a run asks them: one line that names the one that broke its own.

Only shapes and kinds are looked at, so that nothing here waits for an accelerator.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor, nn

from registry.contracts import CenterRule, Centers, Context, Network, Output, Setup, Term
from registry.errors import PluginError, UserError, ask

__all__ = ["check_per_image", "check_term", "check_values", "hold_rule", "name_of"]


def name_of(plugin: object) -> str:
    """What messages call a function or an object: the name it was built by, or its own; in quotes."""
    return repr(getattr(plugin, "__name__", type(plugin).__name__))


def check_term(label: str, term: Term) -> None:
    """Refuse a term that no objective can hold.

    Raises:
        UserError: unknown views, or a weight that is not a finite number.
    """
    if term.views not in ("upright", "all", "strong"):
        raise UserError(f"term {label}: views must be upright, all or strong, not {term.views!r}")
    for weight in (term.weight, term.initial_weight or 0.0):
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise UserError(f"term {label}: its weight must be a finite number, not {weight!r}")


def check_values(label: str, value: object, rows: int) -> Tensor:
    """What the loss ``label`` has returned for ``rows`` rows.

    Raises:
        PluginError: neither [rows] nor a scalar, or not in floating point.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise PluginError(
            f"{label} returned {kind}: it must return a floating-point tensor, one value a row or a scalar"
        )
    if value.ndim and value.shape != (rows,):
        raise PluginError(
            f"{label} returned values of shape {tuple(value.shape)} for {rows} rows: it must return one value a row, "
            "or a scalar"
        )
    return value


def check_per_image(what: str, kind: str, values: object, context: Context) -> Tensor:
    """What a metric or a scheduler has returned, in floating point (a mask of true and false becomes 1 and 0).

    Args:
        what: "scheduler 'preview'". kind: what it gives each image: "weight".

    Raises:
        PluginError: not one number an image.
    """
    if not isinstance(values, Tensor) or values.shape != context.labels.shape:
        seen = f"values of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"{what} returned {seen} for {len(context.labels)} images: it must return one {kind} an image"
        )
    return values if values.is_floating_point() else values.float()


class _Rule(CenterRule):
    """A center rule whose errors are said to be its own."""

    def __init__(self, rule: nn.Module, setup: Setup) -> None:
        super().__init__()
        self.rule = rule
        self.what = f"center rule {type(rule).__name__!r}"
        classes = setup.student.num_classes
        self.shapes = (classes, setup.student.embedding), (classes, setup.teacher.embedding)

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        centers = ask(self.what, self.rule, student_net, teacher_net)
        if not isinstance(centers, Centers):
            raise PluginError(f"{self.what} returned {type(centers).__name__}: it must return registry.Centers")
        for role, shape, found in zip(("student", "teacher"), self.shapes, centers[:2], strict=True):
            if not isinstance(found, Tensor) or found.shape != shape:
                seen = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise PluginError(
                    f"{self.what} returned {seen} as the {role}'s centers: they must be {list(shape)}, one row a class"
                )
        return centers


class _UpdatedRule(_Rule):
    """One that looks at what each step has seen: only such a rule has an ``update`` of its own."""

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        ask(self.what, self.rule.update, student, teacher, labels)  # type: ignore[arg-type]


def hold_rule(rule: nn.Module, setup: Setup) -> CenterRule:
    """A center rule that asks ``rule`` and holds what it returns to the contract; its state stays the rule's.

    Raises:
        PluginError: ``rule`` is no center rule.
    """
    if not isinstance(rule, nn.Module) or not callable(getattr(rule, "update", None)):
        raise PluginError(f"center rule: a {type(rule).__name__} is none; derive it from registry.CenterRule")
    updated = getattr(type(rule), "update", None) is not CenterRule.update
    return (_UpdatedRule if updated else _Rule)(rule, setup)

"""What plug-ins return, checked against their contracts: one line that names the one that broke its own.

Only shapes and kinds are looked at, so that nothing here waits for an accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from torch import Tensor, nn

from registry.contracts import Absent, Centers, Context, Term
from registry.errors import NotApplicable, PluginError, UserError

__all__ = ["check_centers", "check_per_row", "check_rule", "check_term", "check_values", "name_of"]


def name_of(plugin: object) -> str:
    """What messages call a function or an object: the name it was built by, or its own; in quotes."""
    return repr(getattr(plugin, "__name__", type(plugin).__name__))


def check_term(label: str, term: Term, rows: Sequence[str]) -> None:
    """Refuse a term that no objective can hold.

    Args:
        rows: the task's sets of rows.

    Raises:
        NotApplicable: a set of rows that the task does not have.
        UserError: a weight that is not a finite number.
    """
    if term.rows not in rows:
        raise NotApplicable(f"term {label}: rows must be {', '.join(rows[:-1])} or {rows[-1]}, not {term.rows!r}")
    for weight in (term.weight, term.initial_weight or 0.0):
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise UserError(f"term {label}: its weight must be a finite number, not {weight!r}")


def check_values(label: str, value: object, rows: int, *, previewed: bool) -> None:
    """Refuse what the loss ``label`` has returned for ``rows`` rows where it is none of a loss.

    Raises:
        PluginError: neither [rows] nor a scalar, or not in floating point.
        UserError: a scalar of a loss that is to be previewed.
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
    if previewed and value.ndim == 0:
        raise UserError(f"{label} is about the whole batch: it has no samples to preview")


def check_per_row(what: str, kind: str, values: object, context: Context) -> Tensor:
    """What a metric or a scheduler has returned, in floating point (a mask of true and false becomes 1 and 0).

    Args:
        what: "scheduler 'preview'". kind: what it gives each row: "weight".

    Raises:
        PluginError: not one number a row.
    """
    if not isinstance(values, Tensor) or values.shape != context.index.shape:
        seen = f"values of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(f"{what} returned {seen} for {len(context.index)} images: it must return one {kind} an image")
    return values if values.is_floating_point() else values.float()


def check_centers(what: str, centers: object, shapes: Sequence[tuple[int, int]]) -> None:
    """Refuse what a center rule has returned where it is no centers.

    Args:
        shapes: [K, D] of the student's and of the teacher's.

    Raises:
        PluginError: another type or shape.
    """
    if not isinstance(centers, Centers):
        raise PluginError(f"{what} returned {type(centers).__name__}: it must return registry.Centers")
    for role, shape, found in zip(("student", "teacher"), shapes, centers[:2], strict=True):
        if isinstance(found, Absent):
            continue
        if not isinstance(found, Tensor) or found.shape != shape:
            seen = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PluginError(
                f"{what} returned {seen} as the {role}'s centers: they must be {list(shape)}, one row a class"
            )


def check_rule(rule: object) -> None:
    """Refuse an object that is no center rule.

    Raises:
        PluginError: it is no module, or has no ``update``.
    """
    if not isinstance(rule, nn.Module) or not callable(getattr(rule, "update", None)):
        raise PluginError(f"center rule: a {type(rule).__name__} is none; derive it from registry.CenterRule")

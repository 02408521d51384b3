"""Losses and difficulty metrics that are plain functions.

The names of a function's parameters without a default choose its inputs (:data:`INPUTS`); its other parameters are
its options. So ``kd(student_logits, teacher_logits, temperature=4.0)`` works on two tensors, and is a loss.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from registry.contracts import Context, Output, Setup
from registry.errors import UserError, closest

__all__ = ["INPUTS", "FunctionLoss", "by_name", "function_loss", "loss_factory", "metric_function"]

T = TypeVar("T")


class Shown(NamedTuple):
    """The arguments of every loss and metric."""

    student: Output
    teacher: Output
    context: Context


def _part(path: str) -> Callable[[Shown], Any]:
    """An attribute, or one of an attribute: as operator.attrgetter, which torch.compile does not follow."""
    names = path.split(".")

    def read(shown: Any) -> Any:
        for name in names:
            shown = getattr(shown, name)
        return shown

    return read


def _maps(side: str, part: int | slice) -> Callable[[Shown], Any]:
    return lambda shown: getattr(shown, side).maps[part]


_SIDES = ("student", "teacher")
_MAPS = ("_maps", "_preacts", "_map", "_stages", "_layers")
_CONTEXT = ("labels", "targets", "sample_weights", "index", "views", "centers", "group", "boxes", "pixels", "locations")
INPUTS: dict[str, Callable[[Shown], Any]] = {
    **{name: _part(name) for name in Shown._fields},
    **{
        f"{side}_{field}": _part(f"{side}.{field}") for side in _SIDES for field in Output._fields if field != "members"
    },
    **{f"{side}_map": _maps(side, -1) for side in _SIDES},
    **{f"{side}_stages": _maps(side, slice(1, None)) for side in _SIDES},
    **{f"{side}_centers": _part(f"context.centers.{side}") for side in _SIDES},
    **{f"{side}_bias": _part(f"context.centers.{side}_bias") for side in _SIDES},
    **{name: _part(f"context.{name}") for name in _CONTEXT},
}
"""The inputs that a function may name.

- ``student_logits``, ``student_embedding``, ``student_maps``, ``student_preacts``, ...: fields of the output;
- ``student_map``: the last map; ``student_stages``: the maps after the stem;
- ``student_centers``, ``student_bias``: the category centers and their bias; all these of the teacher likewise;
- ``labels``, ``targets``, ``sample_weights``, ``index``, ``views``, ``centers``, ``group``, ``boxes``, ``pixels``,
  ``locations``: of the context;
- ``student``, ``teacher``, ``context``: the whole of each."""

CLAIMS = (
    "needs_teacher",
    "reads_maps",
    "per_sample",
    "needs_views",
    "needs_rows",
    "order_matters",
    "softmax",
    "reads_rows",
    "compares_rows",
    "needs_index",
    "reads_layers",
    "needs",
)
"""See :class:`registry.Loss`."""


def _name(function: object) -> str:
    return str(getattr(function, "__name__", repr(function)))


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the positional parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in positional and p.default is p.empty]


def _signature(function: Callable[..., Any], *first: str) -> inspect.Signature:
    """Parameters ``first``, then the options of ``function`` by keyword."""
    options = list(inspect.signature(function).parameters.values())[len(_required(function)) :]
    by_keyword = [p.replace(kind=p.KEYWORD_ONLY) if p.kind is p.POSITIONAL_OR_KEYWORD else p for p in options]
    return inspect.Signature([*(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in first), *by_keyword])


def _refuse_unknown(function: Callable[..., Any], kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            hint = closest(name, known)
            raise UserError(f"{_name(function)}: unknown {kind} {name!r}{hint} Known: {', '.join(known)}")


def by_name(function: Callable[..., T], inputs: Sequence[str] | None = None) -> Callable[..., T]:
    """Turn a function that names its inputs into ``fn(student, teacher, context, **options)``.

    The result has the claims ``needs_teacher`` and ``reads_maps`` that follow from its inputs.

    Args:
        function: its parameters without a default are its inputs, the others its options.
        inputs: names in :data:`INPUTS`, one for each of its inputs; by default the names of the parameters.

    Raises:
        UserError: an input is unknown, or there are more or fewer names than inputs.
    """
    required = _required(function)
    inputs = required if inputs is None else inputs
    _refuse_unknown(function, "input", inputs, INPUTS)
    if len(inputs) != len(required):
        raise UserError(f"{_name(function)}: {len(inputs)} names for its inputs {', '.join(required)}")

    @functools.wraps(function)
    def called(student: Output, teacher: Output, context: Context, **options: Any) -> T:
        shown = Shown(student, teacher, context)
        return function(*(INPUTS[name](shown) for name in inputs), **options)

    called.__signature__ = _signature(function, *Shown._fields)  # type: ignore[attr-defined]
    vars(called).update(
        needs_teacher=any(name in ("context", "centers") or name.startswith("teacher") for name in inputs),
        reads_maps=any(name in _SIDES or name.endswith(_MAPS) for name in inputs),
    )
    return called


class FunctionLoss(nn.Module):
    """A loss without state: a function of ``(student, teacher, context, **options)``, its options and its claims."""

    def __init__(self, function: Callable[..., Tensor], options: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, dict(options)
        for claim, value in claims.items():
            setattr(self, claim, value)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return self.function(student, teacher, context, **self.options)

    def extra_repr(self) -> str:
        return ", ".join([_name(self.function), *(f"{name}={value!r}" for name, value in self.options.items())])


def function_loss(
    function: Callable[..., Tensor],
    *,
    inputs: Sequence[str] | None = None,
    check: Callable[..., None] | None = None,
    paper: str = "",
    year: int = 0,
    shared: bool = False,
    **claims: Any,
) -> Callable[..., FunctionLoss]:
    """Make the factory ``(setup, **options) -> nn.Module`` of a loss that is a function.

    Args:
        function, inputs: as for :func:`by_name`.
        check: called with ``(setup, **options)`` when the loss is built; raises :class:`registry.NotApplicable` for a
            pair of networks that cannot work, and UserError for an option out of range.
        paper, year: for lists. shared: methods that are added up have one term of this loss between them.
        claims: see :class:`registry.Loss`; ``needs_teacher`` and ``reads_maps`` follow from the inputs.

    Raises:
        UserError: an input or a claim is unknown.
    """
    _refuse_unknown(function, "claim", claims, CLAIMS)
    called = by_name(function, inputs)
    claims = {**{claim: value for claim, value in vars(called).items() if claim in CLAIMS}, **claims}
    signature = _signature(function, "setup")

    @functools.wraps(function)
    def factory(setup: Setup, **options: Any) -> FunctionLoss:
        bound = signature.bind(setup, **options)
        bound.apply_defaults()
        if check is not None:
            check(*bound.args, **bound.kwargs)
        return FunctionLoss(called, options, claims)

    factory.__signature__ = signature  # type: ignore[attr-defined]
    vars(factory).update(claims)
    return factory


def loss_factory(loss: Callable[..., Any], **facts: Any) -> Callable[..., Any]:
    """Return the factory of a loss: ``loss`` itself, or :func:`function_loss` where it is a function with inputs.

    A function is one with inputs if a parameter has a name in :data:`INPUTS` and the first is not ``setup``.

    Raises:
        UserError: as :func:`function_loss` does; or ``facts`` hold claims of a class, which are its attributes.
    """
    names = _required(loss) if inspect.isfunction(loss) else []
    if names[:1] != ["setup"] and ("inputs" in facts or any(name in INPUTS for name in names)):
        return function_loss(loss, **facts)
    if claims := [fact for fact in facts if fact in ("inputs", "check", *CLAIMS)]:
        raise UserError(f"{_name(loss)} is a class or makes a module: give it {', '.join(claims)} as attributes")
    return loss


def metric_function(metric: Any, *, reads_maps: bool | None = None, **facts: Any) -> Any:
    """Return a difficulty metric as ``fn(student, teacher, context, **options)``: itself, or :func:`by_name`.

    Args:
        reads_maps: whether it looks at feature maps; by default this follows from its inputs.

    Raises:
        UserError: as :func:`by_name` does.
    """
    names = _required(metric) if inspect.isfunction(metric) else []
    # Student, teacher and context are given by position: those three parameters may have any name.
    named = any(name in INPUTS and name not in Shown._fields for name in names)
    if reads_maps is None:
        return by_name(metric) if named else metric
    function = by_name(metric, None if named else Shown._fields)
    vars(function).update(reads_maps=reads_maps)
    return function

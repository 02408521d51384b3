"""``build(REGISTRY, "name(key=value)")``: from the text of a command line to an object, literals only."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import types
from collections.abc import Collection, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from registry.errors import UserError, closest
from registry.registry import Registry

_SPEC = re.compile(r"\s*(?P<name>[A-Za-z_][\w.:/-]*)\s*(?:\((?P<options>.*)\))?\s*", re.DOTALL)


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``"name(key=value, ...)"`` into the name and its options.

    Values are Python literals (numbers, strings, True, None, tuples, lists, dictionaries); nothing is evaluated.

    Raises:
        UserError: the text has another form.
    """
    if not isinstance(spec, str):
        raise UserError(f"cannot read {spec!r}: expected text, as in 'name' or 'name(key=value, ...)'")
    shown = repr(spec if len(spec) <= 120 else spec[:120] + "...")
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"cannot read {shown}: expected name or name(key=value, ...)")
    try:
        call: ast.expr | None = ast.parse(f"f({match['options'] or ''})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise UserError(f"cannot read {shown}: expected name(key=value, ...) with Python literals")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise UserError(f"cannot read {shown}: options are given by name, as in {match['name']}(key=value)")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        if keyword.arg in options:
            raise UserError(f"cannot read {shown}: {keyword.arg!r} is given twice")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise UserError(
                f"cannot read {shown}: the value of {keyword.arg!r} must be a literal "
                "(a number, a quoted string, True, None, a tuple, ...)"
            ) from None
    return match["name"], options


def split_specs(text: str, separator: str = "+") -> list[str]:
    """``"dkd(beta=2)+crd"`` to ``["dkd(beta=2)", "crd"]``: split at each separator outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def options_of(obj: Any) -> dict[str, Any]:
    """The named options of a registered object and their defaults (``inspect.Parameter.empty`` where there is none)."""
    parameters = inspect.signature(obj).parameters.values()
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def check_options(label: str, obj: Any, options: Mapping[str, Any], taken: Collection[str] = ()) -> None:
    """Refuse options that ``obj`` does not take.

    Args:
        taken: parameters of ``obj`` that are no options, because the caller gives them.

    Raises:
        UserError: an unknown option, with the closest one and all of them, or a value of the wrong type.
    """
    parameters = inspect.signature(obj).parameters.values()
    hints = _hints(obj)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [
        p.name
        for p in parameters
        if p.name not in taken
        and (p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty))
    ]
    for option, value in options.items():
        if option in known or (anything and option not in taken):
            if not _fits(value, hints.get(option, Any)):
                kind = getattr(hints[option], "__name__", str(hints[option]))
                raise UserError(f"{label}: option {option!r} must be {kind}, not {value!r}")
            continue
        listed = ", ".join(known) or "(none)"
        raise UserError(f"{label} has no option {option!r}{closest(option, known)} Options: {listed}")


def _hints(obj: Any) -> dict[str, Any]:
    try:
        return get_type_hints(obj.__init__ if inspect.isclass(obj) else inspect.unwrap(obj))
    except Exception:  # a plug-in's annotations may name what only a type checker imports
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a literal may be given where ``hint`` is asked for; only plain types and unions of them are judged."""
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return any(_fits(value, part) for part in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        numbers = (int,) if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    return True


def build(registry: Registry, spec: str, *args: Any, **options: Any) -> Any:
    """Build the plug-in that ``spec`` names: ``build(LOSSES, "kd(temperature=2)", setup)``.

    In a registry of factories (backbones, losses, methods, center rules, data sets) the object is called with
    ``args`` and the options; in a registry of functions (difficulty metrics and schedulers) the function itself
    is returned with its options bound.

    Args:
        registry: where to look.
        spec: ``"name"`` or ``"name(key=value, ...)"`` with literal values.
        args: positional arguments for a factory.
        options: further options; those of ``spec`` win.

    Raises:
        UnknownName: no such name. UserError: malformed text or unknown option.
    """
    name, given = parse(spec)
    obj = registry.get(name)
    options = {**options, **given}
    label, signature = f"{registry.name}: {name}", inspect.signature(obj)
    if registry.kind == "function":
        if args:
            raise TypeError(f"{registry.name} holds functions: build() binds options only")
        check_options(label, obj, options)
        bound = functools.partial(obj, **options)
        # For messages about it.
        bound.__name__ = name  # type: ignore[attr-defined]
        bound.reads_maps = getattr(obj, "reads_maps", True)  # type: ignore[attr-defined]
        return bound
    try:
        taken = signature.bind_partial(*args).arguments
        check_options(label, obj, options, taken)
        signature.bind(*args, **options)
    except TypeError as error:
        raise UserError(f"{label}: {error}") from None
    return obj(*args, **options)

"""From the name of a method to its terms, with what the literature sets for a pair of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model_zoo import method_options, method_recipe
from model_zoo.recipes import LEFT_OUT
from pckd.data.load import Data
from pckd.objective import Scheduler, is_shared, preview_all
from registry import METHODS, PluginError, Term, UserError, ask, build, parse

__all__ = ["describe", "method_lr", "method_terms", "pair_options", "schedule_terms", "split_methods"]

DEFAULT_SCHEDULER = "preview"


def method_terms(
    method: str | Sequence[Term],
    student: str | nn.Module | None = None,
    teacher: str | nn.Module | None = None,
) -> list[Term]:
    """The terms of a method by name (``"pckd(beta=0.1)"``), of several together (``"dkd+crd"``), or the given ones.

    Several methods have one supervised term between them: the first one's. Where student and teacher have names, a
    method takes the pair's published options; those given in ``method`` win.
    """
    if not isinstance(method, str):
        return list(method)
    options = pair_options(method, student, teacher)
    terms: list[Term] = []
    for part in split_methods(method):
        if not part:
            raise UserError(f"method {method!r}: a name is missing; see --list methods")
        name = parse(part)[0]
        if name in LEFT_OUT and name not in METHODS:
            raise UserError(f"method {name!r} is left out: {LEFT_OUT[name]}")
        built = ask(f"method {name!r}", build, METHODS, part, **options.get(name, {}))
        if not isinstance(built, (list, tuple)) or not all(isinstance(term, Term) for term in built):
            raise PluginError(f"method {name!r} returned {built!r:.100}: it must return a list of registry.Term")
        for term in built:
            if not (is_shared(term) and any(term.loss == other.loss for other in terms)):
                terms.append(term)
    return terms


def pair_options(
    method: str | Sequence[Term], student: str | nn.Module | None, teacher: str | nn.Module | None
) -> dict[str, dict[str, Any]]:
    """For each named method the options that follow from the pair (:func:`model_zoo.method_options`), less those given.

    Methods without any are left out.
    """
    if not (isinstance(method, str) and isinstance(student, str) and isinstance(teacher, str)):
        return {}
    found = {}
    for name, given in map(parse, split_methods(method)):
        options = {k: v for k, v in method_options(name, student, teacher).items() if k not in given}
        if options:
            found[name] = options
    return found


def method_lr(method: str | Sequence[Term], student: str | nn.Module) -> float | None:
    """The learning rate that a named method asks for (the first that does, of several together); None: the usual."""
    name = student if isinstance(student, str) else None
    for part in split_methods(method) if isinstance(method, str) else ():
        if "lr" in (changes := method_recipe(parse(part)[0], name)):
            return float(changes["lr"])
    return None


def split_methods(method: str, separator: str = "+") -> list[str]:
    """``"dkd(beta=2)+crd"`` to ``["dkd(beta=2)", "crd"]``: split at each separator outside parentheses."""
    parts, depth = [""], 0
    for character in method:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def schedule_terms(terms: Sequence[Term], scheduler: str | Scheduler | None) -> tuple[list[Term], str | Scheduler]:
    """The terms with what is previewed, and the scheduler: one that is given weights every method's losses."""
    if scheduler is None:
        return list(terms), DEFAULT_SCHEDULER
    return list(terms) if any(term.previewed for term in terms) else preview_all(terms), scheduler


def describe(thing: Any) -> Any:
    """What result.json says of an argument that may be an object: its name."""
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, Data):
        return thing.name
    if isinstance(thing, torch.device):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, Term):
        return f"{thing.weight} * {thing.label}"
    return str(getattr(thing, "__name__", type(thing).__name__))

"""From the name of a method to its terms, with what the literature sets for a pair of networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import nn

from model_zoo import method_options, method_recipe
from model_zoo.recipes import LEFT_OUT
from pckd.data.load import Data
from pckd.objective import Scheduler, is_shared, preview_all, says
from registry import METHODS, PluginError, Term, UserError, ask, build, parse, split_specs

__all__ = [
    "Teachers",
    "Weights",
    "describe",
    "method_terms",
    "pair_options",
    "paired",
    "placed",
    "recipe_changes",
    "schedule_terms",
    "teachers_of",
]

DEFAULT_SCHEDULER = "preview"

Teachers: TypeAlias = "str | nn.Module | Sequence[str | nn.Module] | None"
"""A teacher by name or as it is, several of them, or none."""
Weights: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str] | None] | None"
"""Of one teacher its file; of several a list with None for those that are trained first."""


def method_terms(
    method: str | Sequence[Term],
    student: str | nn.Module | None = None,
    teacher: Teachers = None,
) -> list[Term]:
    """The terms of a method by name (``"pckd(beta=0.1)"``), of several together (``"dkd+crd"``), or the given ones.

    Several methods have one supervised term between them: the first one's. Where student and teacher have names, a
    method takes the pair's published options; those given in ``method`` win. The other terms of ``"crd@resnet20"`` or
    ``"crd@2"`` name this one of several teachers.
    """
    if not isinstance(method, str):
        return list(method)
    options = pair_options(method, student, teacher)
    terms: list[Term] = []
    for part in split_specs(method):
        if not part:
            raise UserError(f"method {method!r}: a name is missing; see --list methods")
        spec, at = _split_teacher(part)
        name = parse(spec)[0]
        if name in LEFT_OUT and name not in METHODS:
            raise UserError(f"method {name!r} is left out: {LEFT_OUT[name]}")
        built = ask(f"method {name!r}", build, METHODS, spec, **options.get(_labeled(name, at), {}))
        if not isinstance(built, (list, tuple)) or not all(isinstance(term, Term) for term in built):
            raise PluginError(f"method {name!r} returned {built!r:.100}: it must return a list of registry.Term")
        for term in built:
            if not is_shared(term):
                terms.append(term if at is None or term.teacher is not None else replace(term, teacher=at))
            elif not any(term.loss == other.loss for other in terms):
                terms.append(term)
    return terms


def pair_options(
    method: str | Sequence[Term], student: str | nn.Module | None, teacher: Teachers
) -> dict[str, dict[str, Any]]:
    """For each named method the options that follow from the pair (:func:`model_zoo.method_options`), less those given.

    Methods without any are left out, and those that look at several teachers together.
    """
    teachers = teachers_of(teacher)
    if not (isinstance(method, str) and isinstance(student, str) and teachers):
        return {}
    found = {}
    for spec, at in map(_split_teacher, split_specs(method)):
        own = teachers[0] if len(teachers) == 1 else None if at is None else teachers[_position(at, teachers) - 1]
        name, given = parse(spec)
        if isinstance(own, str):
            named = f"{name}(standardize=True)" if given.get("standardize") else name
            options = {k: v for k, v in method_options(named, student, own).items() if k not in given}
            if options:
                found[_labeled(name, at)] = options
    return found


def teachers_of(teacher: Teachers) -> list[str | nn.Module]:
    """All teachers, in their order."""
    if teacher is None:
        return []
    return list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]  # type: ignore[list-item]


def paired(teacher: Teachers, weights: Weights) -> tuple[Any, Any]:
    """Teacher and weights as they count: lists of one are what is in them, and several have a list of weights or None.

    Raises:
        UserError: not as many weights as teachers, no teacher in a list, or one twice.
    """
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    files: list[Any] = list(weights) if isinstance(weights, (list, tuple)) else [weights]
    if not teachers:
        raise UserError("teacher is an empty list: name a teacher, or leave it out")
    if len(teachers) == 1:
        if len(files) != 1:
            raise UserError(f"there are {len(files)} teacher_weights, and one teacher: give one file")
        return teachers[0], files[0]
    if weights is None:
        files = [None] * len(teachers)
    if len(files) != len(teachers):
        raise UserError(
            f"there are {len(files)} teacher_weights for {len(teachers)} teachers: give one for each, in their order, "
            "and None (on the command line '-') for one that is trained first"
        )
    files = [os.fspath(file) if isinstance(file, os.PathLike) else file for file in files]
    known = [(one if isinstance(one, str) else id(one), file) for one, file in zip(teachers, files, strict=True)]
    for at, one in enumerate(known):
        if one in known[:at]:
            raise UserError(
                f"teachers {known.index(one) + 1} and {at + 1} ({describe(teachers[at])}) are the same: leave one out"
            )
    return teachers, None if files == [None] * len(files) else files


def placed(terms: Sequence[Term], teacher: Teachers) -> list[Term]:
    """The terms with the position of their teacher among several; None where there is one, or they look at none.

    Raises:
        UserError: a term names a teacher that is not there.
    """
    teachers = teachers_of(teacher)
    found = []
    for term in terms:
        at = None if term.teacher is None else _position(term.teacher, teachers)
        found.append(replace(term, teacher=at if len(teachers) > 1 and says(term, "needs_teacher") else None))
    return found


def _position(named: str | int, teachers: Sequence[str | nn.Module]) -> int:
    """Of the teacher that a term names, counted from 1."""
    names = [str(describe(teacher)) for teacher in teachers]
    known = ", ".join(f"{position} {name}" for position, name in enumerate(names, 1))
    if isinstance(named, int) or named.isdecimal():
        if isinstance(named, bool) or not 1 <= int(named) <= len(names):
            raise UserError(f"there is no teacher {named} (known: {known or 'none'}); they are counted from 1")
        return int(named)
    found = [at for at, name in enumerate(names, 1) if name == named] or [
        at for at, name in enumerate(names, 1) if name.partition("(")[0] == named
    ]
    if len(found) == 1:
        return found[0]
    problem = f"teachers {', '.join(map(str, found))} are all" if found else "no teacher is"
    raise UserError(f"{problem} named {named!r} (known: {known or 'none'}); give a name or a position, as in 'crd@2'")


def _split_teacher(part: str) -> tuple[str, str | None]:
    """``"crd(nce_k=5)@resnet20"`` to the method and the teacher that its terms look at."""
    spec, *named = split_specs(part, "@")
    if named and (len(named) > 1 or not named[0]):
        raise UserError(f"method {part!r}: after the @ stands one teacher, its name or its position, as in 'crd@2'")
    return spec, named[0] if named else None


def _labeled(name: str, at: str | None) -> str:
    return name if at is None else f"{name}@{at}"


def recipe_changes(method: str | Sequence[Term], student: str | nn.Module, teacher: Teachers = None) -> dict[str, Any]:
    """What named methods change of the usual recipe (:func:`model_zoo.method_recipe`); of several the first wins."""
    names = [one if isinstance(one, str) else None for one in (student, teacher)]
    found: dict[str, Any] = {}
    for part in split_specs(method) if isinstance(method, str) else ():
        found = {**method_recipe(parse(_split_teacher(part)[0])[0], *names), **found}
    return found


def schedule_terms(terms: Sequence[Term], scheduler: str | Scheduler | None) -> tuple[list[Term], str | Scheduler]:
    """The terms with what is previewed, and the scheduler: one that is given weights every method's losses."""
    if scheduler is None:
        return list(terms), DEFAULT_SCHEDULER
    return list(terms) if any(term.previewed for term in terms) else preview_all(terms), scheduler


def describe(thing: Any) -> Any:
    """What result.json says of an argument that may be an object: its name."""
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, os.PathLike):
        return os.fspath(thing)
    if isinstance(thing, Data):
        return thing.name
    if isinstance(thing, torch.device):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, Term):
        return f"{thing.weight} * {thing.label}"
    return str(getattr(thing, "__name__", type(thing).__name__))

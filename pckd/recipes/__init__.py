"""Recipes: how networks are trained, as the literature does it; every module here is found by the registry RECIPES."""

from __future__ import annotations

from typing import Any

from registry import RECIPES, PluginError, UserError, ask, build

__all__ = ["recipe"]


def recipe(name: str) -> dict[str, Any]:
    """What a recipe sets: ``pckd.distill(student=..., **{**pckd.recipe("deit"), "epochs": 30})``.

    Args:
        name: of ``RECIPES``.

    Raises:
        UserError: there is no such recipe, or it sets what :func:`pckd.distill` does not have.
    """
    from pckd.arguments import ARGUMENTS

    settings = ask(f"recipe {name!r}", build, RECIPES, name)
    if not isinstance(settings, dict):
        raise PluginError(f"recipe {name!r} returned {type(settings).__name__}: it must return a dictionary")
    if unknown := ", ".join(map(repr, settings.keys() - ARGUMENTS.keys())):
        raise UserError(f"recipe {name!r} sets {unknown}, which is no argument of pckd.distill")
    return settings

"""Every registered plug-in but networks and data sets, held to the contract of its kind.

Whoever registers something is tested: the names are read from the registries, and what is asked of them is in
``pckd.testing``. Networks are held to theirs in model_zoo/test_networks.py, data sets in pckd/data/test_contract.py.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from pckd.testing import (
    check_augmentation,
    check_center_rule,
    check_difficulty,
    check_loss,
    check_lr_schedule,
    check_method,
    check_optimizer,
    check_scheduler,
)
from registry import (
    AUGMENTATIONS,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    LR_SCHEDULES,
    METHODS,
    OPTIMIZERS,
    Registry,
)

LONGEST_PLUGIN = 100
"""Lines of code: a plug-in is one short file, with its mathematics."""

CHECKS: dict[Registry, Callable[..., None]] = {
    LOSSES: check_loss,
    METHODS: check_method,
    DIFFICULTY_METRICS: check_difficulty,
    DIFFICULTY_SCHEDULERS: check_scheduler,
    LR_SCHEDULES: check_lr_schedule,
    OPTIMIZERS: check_optimizer,
    AUGMENTATIONS: check_augmentation,
    CENTER_RULES: check_center_rule,
}
each = pytest.mark.parametrize(
    ("registry", "name"),
    [pytest.param(registry, name, id=f"{registry.name}-{name}") for registry in CHECKS for name in registry.names()],
)
INDEPENDENT = (
    *("at", "center_infonce", "cross_entropy", "cwd", "dist_inter", "dkd", "fgd", "fsp", "ifvd", "kd", "kdsvd", "lskd"),
    *("nst", "skd", "transformed_kd", "vid", "ofa", "abkd", "ctkd", "wkd", "sdd", "rld", "ttm", "wttm", "nkd"),
)
"""Losses without batch norms, memories and relations between images: an image's value is its own."""


@each
def test_contract(registry: Registry, name: str) -> None:
    if library := registry.facts(name).get("library"):
        pytest.importorskip(library)
    claims = {"independent_rows": True} if registry is LOSSES and name in INDEPENDENT else {}
    CHECKS[registry](name, **claims)


@each
def test_it_is_documented(registry: Registry, name: str) -> None:
    summary = registry.summary(name)
    assert summary.endswith((".", ":")), f"the first line of {name} is no sentence: {summary!r}"
    assert summary != inspect.getdoc(nn.Module), f"{name} has nn.Module's docstring"


@each
def test_its_file_is_short(registry: Registry, name: str) -> None:
    """Blank lines, comments and docstrings are free."""
    text = Path(registry.origin(name).rpartition(":")[0]).read_text()
    lines = {n for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    assert len(lines) <= LONGEST_PLUGIN


def test_every_kind_has_plugins_and_every_claim_a_loss() -> None:
    assert all(len(registry) >= 3 for registry in CHECKS)
    assert set(INDEPENDENT) <= set(LOSSES.names())

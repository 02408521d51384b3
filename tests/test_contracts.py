"""Every registered loss, method, metric, scheduler and center rule against the contract of its kind.

Whoever registers something is tested: the names are read from the registries, and what is asked of them is in
``pckd.testing``. Networks are held to theirs in model_zoo/test_networks.py, data sets in pckd/data/test_contract.py.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from pckd.testing import ContractError, check_center_rule, check_difficulty, check_loss, check_method, check_scheduler
from pckd.testing.cases import make_case, objective_of
from registry import (
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    NotApplicable,
    Registry,
    build,
    load_plugin,
)

LONGEST_PLUGIN = 100
"""Lines of code: a plug-in is one short file, with its mathematics."""

CHECKS: dict[Registry, Callable[..., None]] = {
    LOSSES: check_loss,
    METHODS: check_method,
    DIFFICULTY_METRICS: check_difficulty,
    DIFFICULTY_SCHEDULERS: check_scheduler,
    CENTER_RULES: check_center_rule,
}
EVERYTHING = [
    pytest.param(registry, name, id=f"{registry.name}-{name}") for registry in CHECKS for name in registry.names()
]
INDEPENDENT = (
    *("at", "center_infonce", "cross_entropy", "cwd", "dist_inter", "dkd", "fgd", "fsp", "ifvd", "kd", "kdsvd", "lskd"),
    *("nst", "skd", "transformed_kd", "vid"),
)
"""Losses without batch norms, memories and relations between images: an image's value is its own."""


def check_documented(registry: Registry, name: str) -> None:
    obj = registry.get(name)
    assert inspect.getdoc(obj), f"{registry.name}: {name} has no docstring"
    summary = registry.summary(name)
    assert summary.endswith((".", ":")), f"the first line of {name} is no sentence: {summary!r}"
    assert summary != inspect.getdoc(nn.Module), f"{name} has nn.Module's docstring"


def check_short(registry: Registry, name: str) -> None:
    """A plug-in is one file of few lines; blank lines, comments and docstrings are free."""
    path = Path(registry.origin(name).rpartition(":")[0])
    lines = code_lines(path.read_text())
    assert lines <= LONGEST_PLUGIN, f"{path.name} has {lines} lines of code"


def code_lines(text: str) -> int:
    lines = {n for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("name", LOSSES.names())
def test_loss(name: str) -> None:
    check_loss(name, independent_rows=name in INDEPENDENT)


@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str) -> None:
    check_method(name)


@pytest.mark.parametrize("name", DIFFICULTY_METRICS.names())
def test_metric(name: str) -> None:
    check_difficulty(name)


@pytest.mark.parametrize("name", DIFFICULTY_SCHEDULERS.names())
def test_scheduler(name: str) -> None:
    check_scheduler(name)


@pytest.mark.parametrize("name", CENTER_RULES.names())
def test_center_rule(name: str) -> None:
    check_center_rule(name)


@pytest.mark.parametrize(("registry", "name"), EVERYTHING)
def test_it_is_documented(registry: Registry, name: str) -> None:
    check_documented(registry, name)


@pytest.mark.parametrize(("registry", "name"), EVERYTHING)
def test_its_file_is_short(registry: Registry, name: str) -> None:
    check_short(registry, name)


def test_every_kind_has_plugins() -> None:
    for registry in CHECKS:
        assert len(registry) >= 3, registry.name


def test_what_is_said_of_losses_is_said_of_registered_ones() -> None:
    assert set(INDEPENDENT) <= set(LOSSES.names())


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("teacher_width", [12, 20])
@pytest.mark.parametrize("name", METHODS.names())
def test_the_objective_is_the_sum_of_a_methods_terms(name: str, views: int, teacher_width: int) -> None:
    case = make_case(views, teacher_width)
    try:
        objective = objective_of(build(METHODS, name), case.setup)
    except NotApplicable:
        return
    case = make_case(views, teacher_width, strong="strong" in objective.row_sets)
    values = objective(case.student, case.teacher, case.context)
    acting = [label for label, term in objective.terms.items() if term.main]
    assert acting == [label for label in values if label in objective.terms]
    total = sum(values[label].item() for label in acting)
    assert math.isclose(values["loss"].item(), total, rel_tol=1e-4)


# A user's own

PLUGIN = '''
import torch
from torch import nn

from pckd.functional import full
from registry import (
    CENTER_RULES, DIFFICULTY_METRICS, DIFFICULTY_SCHEDULERS, LOSSES, METHODS, CenterRule, Centers, NotApplicable, Term
)


@LOSSES.register("embedding_l1")
class EmbeddingL1(nn.Module):
    """Mean absolute difference of the embeddings; [N]."""

    def __init__(self, setup, *, power=1.0):
        super().__init__()
        self.power = power
        self.projection = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student, teacher, context):
        projected = self.projection(student.embedding)
        return (full(projected) - full(teacher.embedding)).abs().pow(self.power).mean(1)


@METHODS.register
def l1(weight=1.0):
    """Cross entropy and the distance of the embeddings."""
    return [Term("cross_entropy"), Term("embedding_l1", weight, previewed=True, views="all")]


@DIFFICULTY_METRICS.register
def norm(student, teacher, context):
    """Length of the embedding over its batch mean."""
    length = student.embedding.norm(dim=1)
    return length / length.mean()


@DIFFICULTY_SCHEDULERS.register
def soft(difficulty, context, *, scale=1.0):
    """exp(-difficulty / scale)."""
    return torch.exp(-difficulty / scale)


@CENTER_RULES.register
class first_seen(CenterRule):
    """The classifiers' rows, as they are."""

    def __init__(self, setup):
        super().__init__()

    def forward(self, student_net, teacher_net):
        return Centers(student_net.classifier.weight, teacher_net.classifier.weight.detach())
'''


BROKEN = '''
from torch import nn
from registry import LOSSES

@LOSSES.register("broken")
class Broken(nn.Module):
    """A loss that reduces over the classes only."""

    def __init__(self, setup):
        super().__init__()

    def forward(self, student, teacher, context):
        return (student.logits - teacher.logits).square().mean(0)
'''


@pytest.mark.usefixtures("registries")
def test_a_users_plugin_is_held_to_the_same_contracts(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    names = ("embedding_l1", "l1", "norm", "soft", "first_seen")
    for (registry, check), name in zip(CHECKS.items(), names, strict=True):
        assert name in registry.names()
        check(name)
        check_documented(registry, name)
        check_short(registry, name)


@pytest.mark.usefixtures("registries")
def test_a_users_fault_is_found(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN)
    load_plugin(path)
    with pytest.raises(
        ContractError, match=r"^loss broken: clause 'unreduced': returned shape \(7,\), expected \(6,\)"
    ):
        check_loss("broken")


def test_lines_of_code_are_counted_without_docstrings() -> None:
    assert code_lines('"""Doc.\n\nMore.\n"""\n\n# comment\nx = 1\ny = """a\nb"""\n') == 3

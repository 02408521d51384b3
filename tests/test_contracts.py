"""Every registered loss, method, metric, scheduler and center rule against the contract of its kind.

Whoever registers something is tested: the names are read from the registries. The checks are plain functions, so that
they can be run on a plug-in of one's own; the last test does so.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pckd.objective import Objective
from registry import (
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    Centers,
    Context,
    NotApplicable,
    Output,
    Registry,
    Setup,
    Shapes,
    Term,
    build,
    load_plugin,
)

IMAGES, CLASSES, SAMPLES, WIDTH = 6, 7, 50, 12
SIZES = (16, 16, 8, 4)
VIEWS = (1, 4)
TEACHER_WIDTHS = (12, 20)
LONGEST_PLUGIN = 60
"""Lines of code: a plug-in is one short file."""


class Case(NamedTuple):
    """A pair of networks' outputs, all of it leaves of the graph."""

    student: Output
    teacher: Output
    context: Context
    setup: Setup


def make_output(generator: torch.Generator, rows: int, width: int, grad: bool) -> Output:
    """Random outputs shaped as those of a small residual network with a last stage of ``width`` channels."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels = (width // 3, width // 3, width // 2, width)
    preacts = tuple(normal(rows, c, size, size) for c, size in zip(channels, SIZES, strict=True))
    maps = tuple(preact.relu() for preact in preacts)
    output = Output(normal(rows, CLASSES), normal(rows, width).relu(), maps, preacts)
    for tensor in tensors_of(output):
        tensor.requires_grad_(grad)
    return output


def make_case(views: int, teacher_width: int, grad: bool = True, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    rows = IMAGES * views
    student = make_output(generator, rows, WIDTH, grad)
    teacher = make_output(generator, rows, teacher_width, grad)

    def centers(width: int) -> Tensor:
        return torch.randn(CLASSES, width, generator=generator)

    context = Context(
        # Two pairs of images share a class, two images are alone in theirs.
        labels=torch.tensor([0, 3, 0, 6, 3, 1]).repeat_interleave(views),
        index=torch.tensor([4, 49, 0, 7, 21, 8]).repeat_interleave(views),
        centers=Centers(
            centers(WIDTH).requires_grad_(grad),
            centers(teacher_width),
            torch.randn(CLASSES, generator=generator).requires_grad_(grad),
            torch.randn(CLASSES, generator=generator),
        ),
        views=views,
        epoch=3,
        epochs=10,
        progress=0.25,
    )
    classifier = nn.Linear(teacher_width, CLASSES).requires_grad_(False)
    return Case(student, teacher, context, Setup(Shapes.of(student), Shapes.of(teacher), SAMPLES, classifier))


def tensors_of(output: Output) -> list[Tensor]:
    return [output.logits, output.embedding, *output.maps, *output.preacts]


def reached(tensors: list[Tensor | None]) -> bool:
    return any(t is not None and t.grad is not None and bool(t.grad.any()) for t in tensors)


def make_terms(spec: str | Callable[..., nn.Module] | list[Term], case: Case) -> Objective:
    """An objective of these terms, with what is published as the rest."""
    terms = spec if isinstance(spec, list) else [Term(spec, views="all")]
    return Objective(
        terms,
        case.setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=build(DIFFICULTY_SCHEDULERS, "preview"),
        centers=build(CENTER_RULES, "classifier", case.setup),
    )


# Checks


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


def check_loss(name: str, views: int, teacher_width: int) -> None:
    """A loss either refuses the pair with NotApplicable or keeps every promise of the contract."""
    case = make_case(views, teacher_width)
    torch.manual_seed(0)
    try:
        loss = build(LOSSES, name, case.setup)
    except NotApplicable:
        return
    assert isinstance(loss, nn.Module)
    twin = copy.deepcopy(loss)

    torch.manual_seed(1)
    value = loss(case.student, case.teacher, case.context)
    assert value.shape in ((), (IMAGES * views,)), f"{name} gave {tuple(value.shape)}"
    assert (value.ndim == 1) == getattr(type(loss), "per_sample", True), f"{name}: per_sample says otherwise"
    assert value.dtype == torch.float32
    assert value.isfinite().all()

    value.mean().backward()
    # What is trained only in the epochs before the schedule is trained there.
    first = loss(case.student, case.teacher, dataclasses.replace(case.context, stage="initial"))
    assert first.isfinite().all()
    first.mean().backward()
    centers = case.context.centers
    student_side = [*tensors_of(case.student), centers.student, centers.student_bias]
    assert reached([*student_side]), f"{name}: no gradient reaches the student"
    for tensor in student_side:
        assert tensor is None or tensor.grad is None or tensor.grad.isfinite().all()
    for key, parameter in loss.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name}: {key} is never trained"

    torch.manual_seed(1)
    repeat = twin(case.student, case.teacher, case.context)
    twin(case.student, case.teacher, dataclasses.replace(case.context, stage="initial"))
    assert repeat.equal(value), f"{name}: the same state and seed gave another value"
    assert all(a.equal(b) for a, b in zip(twin.state_dict().values(), loss.state_dict().values(), strict=True))


def check_loss_leaves_the_teacher_alone(loss: str | Callable[..., nn.Module], views: int, teacher_width: int) -> None:
    """No gradient into the teacher, and no writing into what the loss is shown."""
    case = make_case(views, teacher_width)
    before = [t.detach().clone() for output in case[:2] for t in tensors_of(output)]
    try:
        objective = make_terms(loss, case)
        objective(case.student, case.teacher, case.context)["loss"].backward()
    except NotApplicable:
        return
    assert not reached([*tensors_of(case.teacher)])
    assert not reached([case.context.centers.teacher, case.context.centers.teacher_bias])
    after = [t.detach() for output in case[:2] for t in tensors_of(output)]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True)), "the loss writes into its inputs"


def check_loss_keeps_its_state(name: str) -> None:
    """What a loss remembers and trains is all in its state: a resumed run goes on as the other would have."""
    case = make_case(4, WIDTH)
    try:
        torch.manual_seed(0)
        loss = build(LOSSES, name, case.setup)
        torch.manual_seed(1)
        resumed = build(LOSSES, name, case.setup)
    except NotApplicable:
        return
    loss(case.student, case.teacher, case.context)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    later = make_case(4, WIDTH, seed=1)
    torch.manual_seed(2)
    expected = loss(later.student, later.teacher, later.context)
    torch.manual_seed(2)
    assert resumed(later.student, later.teacher, later.context).equal(expected)
    hidden = [key for key, held in vars(loss).items() if isinstance(held, Tensor) or is_list_of_parts(held)]
    assert not hidden, f"{name}: {hidden} is neither a submodule, nor a parameter, nor a buffer"


def is_list_of_parts(held: Any) -> bool:
    return isinstance(held, (list, tuple)) and any(isinstance(part, (nn.Module, Tensor)) for part in held)


def check_method(name: str, views: int, teacher_width: int) -> None:
    """Every default of a method gives terms that build, sum up and train, or that are refused with NotApplicable."""
    case = make_case(views, teacher_width)
    terms = build(METHODS, name)
    assert isinstance(terms, list)
    assert all(isinstance(term, Term) for term in terms)
    try:
        objective = make_terms(terms, case)
        values = objective(case.student, case.teacher, case.context)
    except NotApplicable:
        return
    acting = [label for label, term in objective.terms.items() if term.main]
    assert acting == [label for label in values if label in objective.terms]
    assert all(value.ndim == 0 and value.isfinite() for value in values.values())
    assert values["loss"].item() == pytest.approx(sum(values[label].item() for label in acting), rel=1e-4)
    values["loss"].backward()
    assert reached([*tensors_of(case.student)])
    assert not reached([*tensors_of(case.teacher)])


def check_metric(name: str, views: int, teacher_width: int) -> None:
    case = make_case(views, teacher_width, grad=False)
    shown = case.student.upright(views), case.teacher.upright(views), case.context.upright()
    metric = build(DIFFICULTY_METRICS, name)
    with torch.no_grad():
        difficulty = metric(*shown)
        assert metric(*shown).equal(difficulty), f"{name} is not deterministic"
    assert difficulty.shape == (IMAGES,)
    assert difficulty.dtype == torch.float32
    assert difficulty.isfinite().all()
    assert (difficulty >= 0).all()
    assert difficulty.mean().item() == pytest.approx(1, rel=1e-4)
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    context = case.context.upright()
    permuted = Context(context.labels[order], context.index[order], context.centers)
    pick = [
        Output(o.logits[order], o.embedding[order], tuple(m[order] for m in o.maps), tuple(m[order] for m in o.preacts))
        for o in shown[:2]
    ]
    torch.testing.assert_close(metric(*pick, permuted), difficulty[order], msg=f"{name} depends on the order")


def check_scheduler(name: str, views: int) -> None:
    case = make_case(views, WIDTH, grad=False)
    scheduler = build(DIFFICULTY_SCHEDULERS, name)
    for difficulty in (
        torch.tensor([0.0, 0.2, 0.9, 1.0, 1.1, 2.8]),
        torch.zeros(6),
        torch.ones(6),
        torch.full((6,), 1e6),
    ):
        kept = difficulty.clone()
        weights = scheduler(difficulty, case.context.upright())
        assert weights.shape == (IMAGES,)
        assert weights.is_floating_point()
        assert weights.isfinite().all()
        assert weights.min() >= 0
        assert weights.max() <= 1
        assert not weights.requires_grad
        assert scheduler(difficulty, case.context.upright()).equal(weights), f"{name} is not pure"
        assert difficulty.equal(kept), f"{name} writes into the difficulty"


class Classifier(nn.Module):
    """As much of a network as a center rule looks at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, CLASSES)


def check_center_rule(name: str, views: int, teacher_width: int) -> None:
    case = make_case(views, teacher_width, grad=False)
    nets = Classifier(WIDTH), Classifier(teacher_width)
    rule = build(CENTER_RULES, name, case.setup)
    assert isinstance(rule, nn.Module)
    for _ in range(3):
        centers = rule(*nets)
        assert centers.student.shape == (CLASSES, WIDTH)
        assert centers.teacher.shape == (CLASSES, teacher_width)
        for bias in (centers.student_bias, centers.teacher_bias):
            assert bias is None or bias.shape == (CLASSES,)
        for tensor in centers:
            assert tensor is None or tensor.isfinite().all()
        assert not centers.teacher.requires_grad
        assert centers.teacher_bias is None or not centers.teacher_bias.requires_grad
        assert rule(*nets).student.equal(centers.student), f"{name}: looking at the centers changes them"
        assert rule.update(case.student, case.teacher, case.context.labels) is None
    twin = build(CENTER_RULES, name, case.setup)
    twin.load_state_dict(rule.state_dict())
    for ours, theirs in zip(rule(*nets), twin(*nets), strict=True):
        assert (ours is None and theirs is None) or ours.equal(theirs), f"{name}: state outside of the state_dict"


# The registered ones

views_of = pytest.mark.parametrize("views", VIEWS)
width_of = pytest.mark.parametrize("teacher_width", TEACHER_WIDTHS)


@views_of
@width_of
@pytest.mark.parametrize("name", LOSSES.names())
def test_loss(name: str, views: int, teacher_width: int) -> None:
    check_loss(name, views, teacher_width)


@views_of
@width_of
@pytest.mark.parametrize("name", LOSSES.names())
def test_loss_leaves_the_teacher_alone(name: str, views: int, teacher_width: int) -> None:
    check_loss_leaves_the_teacher_alone(name, views, teacher_width)


@pytest.mark.parametrize("name", LOSSES.names())
def test_loss_keeps_its_state(name: str) -> None:
    check_loss_keeps_its_state(name)


@pytest.mark.parametrize("name", LOSSES.names())
def test_loss_works_for_some_pair(name: str) -> None:
    """Refusing everything is no way to pass the checks above."""
    build(LOSSES, name, make_case(4, WIDTH).setup)


@views_of
@width_of
@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str, views: int, teacher_width: int) -> None:
    check_method(name, views, teacher_width)


@views_of
@width_of
@pytest.mark.parametrize("name", DIFFICULTY_METRICS.names())
def test_metric(name: str, views: int, teacher_width: int) -> None:
    check_metric(name, views, teacher_width)


@views_of
@pytest.mark.parametrize("name", DIFFICULTY_SCHEDULERS.names())
def test_scheduler(name: str, views: int) -> None:
    check_scheduler(name, views)


@views_of
@width_of
@pytest.mark.parametrize("name", CENTER_RULES.names())
def test_center_rule(name: str, views: int, teacher_width: int) -> None:
    check_center_rule(name, views, teacher_width)


KINDS = (LOSSES, METHODS, DIFFICULTY_METRICS, DIFFICULTY_SCHEDULERS, CENTER_RULES)
EVERYTHING = [
    pytest.param(registry, name, id=f"{registry.name}-{name}") for registry in KINDS for name in registry.names()
]


@pytest.mark.parametrize(("registry", "name"), EVERYTHING)
def test_it_is_documented(registry: Registry, name: str) -> None:
    check_documented(registry, name)


@pytest.mark.parametrize(("registry", "name"), EVERYTHING)
def test_its_file_is_short(registry: Registry, name: str) -> None:
    check_short(registry, name)


def test_every_kind_has_plugins() -> None:
    for registry in KINDS:
        assert len(registry) >= 3, registry.name


# A user's own

PLUGIN = '''
import torch
from torch import nn

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
        return (self.projection(student.embedding) - teacher.embedding).abs().pow(self.power).mean(1)


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

BROKEN = {
    "reduces": "return (student.logits - teacher.logits.detach()).square().mean(0)",
    "ignores_student": "return teacher.logits.detach().mean(1).requires_grad_()",
    "counts": "self.count = getattr(self, 'count', 0) + 1; return student.logits.mean(1) * self.count",
    "random_state": "return student.logits.mean(1) * torch.rand(1, generator=GENERATOR)",
    "not_finite": "return student.logits.mean(1) / 0",
    "half": "return student.logits.mean(1).bfloat16()",
}
BROKEN_LOSS = '''
import torch
from torch import nn
from registry import LOSSES

GENERATOR = torch.Generator()


@LOSSES.register("broken")
class Broken(nn.Module):
    """A loss with a fault."""

    def __init__(self, setup):
        super().__init__()

    def forward(self, student, teacher, context):
        {body}
'''


@pytest.mark.usefixtures("registries")
def test_a_users_plugin_is_held_to_the_same_contracts(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    names = zip(KINDS, ("embedding_l1", "l1", "norm", "soft", "first_seen"), strict=True)
    for registry, name in names:
        assert name in registry.names()
        check_documented(registry, name)
        check_short(registry, name)
    for views in VIEWS:
        check_scheduler("soft", views)
        for teacher_width in TEACHER_WIDTHS:
            check_loss("embedding_l1", views, teacher_width)
            check_loss_leaves_the_teacher_alone("embedding_l1", views, teacher_width)
            check_method("l1", views, teacher_width)
            check_metric("norm", views, teacher_width)
            check_center_rule("first_seen", views, teacher_width)
    check_loss_keeps_its_state("embedding_l1")


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("fault", BROKEN)
def test_the_checks_find_faults(tmp_path: Path, fault: str) -> None:
    path = tmp_path / f"{fault}.py"
    path.write_text(BROKEN_LOSS.format(body=BROKEN[fault]))
    load_plugin(path)
    with pytest.raises(AssertionError):  # noqa: PT012 - either check may find it
        check_loss("broken", 4, WIDTH)
        check_loss_keeps_its_state("broken")


def test_lines_of_code_are_counted_without_docstrings() -> None:
    assert code_lines('"""Doc.\n\nMore.\n"""\n\n# comment\nx = 1\ny = """a\nb"""\n') == 3

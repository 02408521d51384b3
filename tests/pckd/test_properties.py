"""What holds for any input: of every registered loss, scheduler and metric, on inputs that hypothesis makes up.

Names are read from the registries. Where a property is not meant for a plug-in, a table says why. What is exact in
the mathematics is tested in double precision, what is about overflow in single precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd import functional
from pckd.tasks.classification import image_views
from pckd.testing.cases import Case, losses_of_views, tensors_of
from registry import (
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    Centers,
    Context,
    Instances,
    Output,
    Setup,
    Shapes,
    build,
)

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given = hypothesis.given

LOSS_NAMES = losses_of_views()
METRICS, SCHEDULERS = DIFFICULTY_METRICS.names(), DIFFICULTY_SCHEDULERS.names()
WIDTH, SAMPLES = 6, 40
STAGES = ((2, 8), (2, 8), (4, 4), (WIDTH, 2))
"""Channels and height of the maps."""
DOUBLE, SINGLE = torch.float64, torch.float32


def examples(count: int) -> Callable[..., Any]:
    """Few examples, and the same ones in every run."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
    )


def for_each(names: Sequence[str], exceptions: Mapping[str, str] | None = None) -> pytest.MarkDecorator:
    """Every name but the exceptions, each of which must be a name and have a reason."""
    exceptions = exceptions or {}
    assert set(exceptions) <= set(names), f"no such name: {set(exceptions) - set(names)}"
    return pytest.mark.parametrize("name", [name for name in names if name not in exceptions])


# Inputs


def make_case(
    seed: int, student: Tensor, teacher: Tensor, labels: Tensor, scales: Sequence[float], views: int, dtype: torch.dtype
) -> Case:
    """Two networks' outputs with these logits [N, K], and features drawn from a seed.

    Args:
        labels: [B]. scales: of the student's logits, the teacher's, the student's features, and the teacher's.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, classes = student.shape

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE).mul(scale).to(dtype)

    def output(logits: Tensor, logit_scale: float, scale: float) -> Output:
        preacts = tuple(normal(rows, channels, height, height, scale=scale) for channels, height in STAGES)
        maps = tuple(preact.relu() for preact in preacts)
        made = Output((logits.double() * logit_scale).to(dtype), maps[-1].mean((2, 3)), maps, preacts)
        return made.apply(lambda x: x.requires_grad_())

    outputs = output(student, scales[0], scales[2]), output(teacher, scales[1], scales[3])
    centers = Centers(normal(classes, WIDTH), normal(classes, WIDTH), normal(classes), normal(classes))
    for center in (centers.student, centers.student_bias):
        center.requires_grad_()
    index = torch.randperm(SAMPLES, generator=generator)[: len(labels)]
    context = Context(image_views(labels, index, views), centers)
    classifier = nn.utils.skip_init(nn.Linear, WIDTH, classes, dtype=dtype).requires_grad_(False)
    classifier.weight.copy_(normal(classes, WIDTH))
    classifier.bias.copy_(normal(classes))
    return Drawn(*outputs, context, Setup(*map(Shapes.of, outputs), SAMPLES, classifier))


class Drawn(Case):
    """A case that hypothesis can show in a few lines."""

    def __repr__(self) -> str:
        shown = {"student": self.student.logits.tolist(), "teacher": self.teacher.logits.tolist()}
        features = [float(output.maps[0].detach().abs().max()) for output in (self.student, self.teacher)]
        return (
            f"logits {shown}, labels {self.context.labels.tolist()}, views {self.context.views}, maps up to {features}"
        )


ONE = st.just(0)


@st.composite
def cases(draw: Any, views: int = 1, powers: Any = ONE, dtype: torch.dtype = DOUBLE) -> Case:
    """A case whose logits hypothesis chooses, equal rows, ties and zeros among them, at scales of 10^n or 0."""
    images, classes = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    count = images * views * classes
    chosen = [draw(st.lists(st.floats(-4, 4, width=32), min_size=count, max_size=count)) for _ in range(2)]
    student, teacher = (torch.tensor(numbers, dtype=DOUBLE).view(-1, classes) for numbers in chosen)
    labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images)))
    scales = [10.0 ** draw(powers) for _ in range(4)]
    for dead in (2, 3):
        scales[dead] *= draw(st.sampled_from((1, 1, 1, 0)))
    return make_case(draw(st.integers(0, 10**6)), student, teacher, labels, scales, views, dtype)


def views_of(name: str) -> int:
    return int(getattr(LOSSES.get(name), "needs_views", 1))


def made(name: str, case: Case) -> Any:
    torch.manual_seed(0)
    return build(LOSSES, name, case.setup).to(case.student.logits.dtype)


def value_of(name: str, case: Case) -> Tensor:
    """The value of a loss that is built and called from one seed."""
    loss = made(name, case)
    torch.manual_seed(1)
    value: Tensor = loss(*case.shown)
    return value


@functools.cache
def facts(name: str) -> frozenset[str]:
    """What the gradient of a loss reaches ("logits", "embedding", "maps", "preacts", "centers"), and "parameters"."""
    generator = torch.Generator().manual_seed(0)
    views = views_of(name)
    student, teacher = (torch.randn(4 * views, 3, generator=generator) for _ in range(2))
    case = make_case(0, student, teacher, torch.tensor([0, 1, 1, 2]), (1, 1, 1, 1), views, DOUBLE)
    loss = made(name, case)
    loss(*case.shown).mean().backward()
    fields = {"centers": (case.context.centers.student,), "parameters": tuple(loss.parameters())}
    for field, value in case.student._asdict().items():
        fields[field] = value if isinstance(value, tuple) else (value,)
    return frozenset(field for field, tensors in fields.items() if any(t.grad is not None for t in tensors))


def says(name: str, fact: str) -> bool:
    return bool(getattr(LOSSES.get(name), fact, True))


WITHOUT_LAYERS = [name for name in LOSS_NAMES if "parameters" not in facts(name) and says(name, "needs_teacher")]
"""Losses that compare the two networks directly, where their shapes agree."""


# Losses


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_a_loss_says_whether_it_reads_maps(name: str) -> None:
    """One that reads none and does not say so would slow down every run with it."""
    assert says(name, "reads_maps") == bool(facts(name) & {"maps", "preacts"})


NOT_BLIND_TO_SHIFTS = {
    "srrl": "compares the logits themselves, as released",
    "ckd": "compares the directions of the logits, as released",
    **dict.fromkeys(("binary_cross_entropy", "binary_kd"), "each class has a probability of its own"),
}


@for_each(LOSS_NAMES, NOT_BLIND_TO_SHIFTS)
@examples(6)
@given(data=st.data())
def test_a_constant_added_to_a_rows_logits_changes_nothing(name: str, data: Any) -> None:
    case = data.draw(cases(views_of(name)))
    shifts = st.lists(st.floats(-50, 50), min_size=len(case.student.logits), max_size=len(case.student.logits))
    one, other = (torch.tensor(data.draw(shifts), dtype=DOUBLE)[:, None] for _ in range(2))
    moved = case._replace(
        student=case.student._replace(logits=case.student.logits + one),
        teacher=case.teacher._replace(logits=case.teacher.logits + other),
    )
    assert torch.allclose(value_of(name, moved), value_of(name, case), rtol=1e-6, atol=1e-9)


@for_each(LOSS_NAMES)
@examples(8)
@given(data=st.data())
def test_values_and_gradients_are_finite_at_any_scale(name: str, data: Any) -> None:
    case = data.draw(cases(views_of(name), st.integers(-4, 4), SINGLE))
    loss = made(name, case)
    for stage in ("initial", "main"):
        value = loss(case.student, case.teacher.detach(), replace(case.context, stage=stage))
        assert value.isfinite().all()
        value.mean().backward()
    leaves = [*tensors_of(case.student), case.context.centers.student, *loss.parameters()]
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


MAY_BE_NEGATIVE = {
    "vid": "a negative log-likelihood, whose density is above 1 where the variance is small",
    **dict.fromkeys(("itrd", "srd"), "the logarithm of a sum"),
}


@for_each(LOSS_NAMES, MAY_BE_NEGATIVE)
@examples(6)
@given(data=st.data())
def test_no_value_is_negative(name: str, data: Any) -> None:
    case = data.draw(cases(views_of(name), st.integers(-2, 2)))
    assert (value_of(name, case) >= -1e-6).all()


CONSTANTS = "the correlation with a constant counts as 0"
NOT_ZERO_FOR_EQUALS = {
    "ab": "asks for a margin, which the teacher itself does not keep",
    "direct_alignment": "an embedding of zeros has no direction, so that nothing is aligned with it",
    "dist_inter": CONSTANTS,
    "dist_intra": CONSTANTS,
    **dict.fromkeys(("nkd", "ofa", "wkd"), "a cross entropy, which is as large as the teacher is unsure"),
    **dict.fromkeys(("ttm", "wttm"), "the student has no temperature, and the teacher has one"),
    "rld": "the student is to be as sure of the label as the teacher is of the class it names, which may be another",
    "ckd": "tells images apart that the teacher finds alike",
    "hard_kd": "asks for certainty, which the teacher itself has not",
    "nd": "asks for the direction of the class, which the teacher's own rows do not have",
}


@for_each(WITHOUT_LAYERS, NOT_ZERO_FOR_EQUALS)
@examples(6)
@given(data=st.data())
def test_a_student_that_answers_as_its_teacher_has_no_loss(name: str, data: Any) -> None:
    case = data.draw(cases(views_of(name), st.integers(-2, 2)))
    student, bias = case.context.centers.student, case.context.centers.student_bias
    assert bias is not None
    centers = Centers(student, student.detach(), bias, bias.detach())
    same = case._replace(teacher=case.student, context=replace(case.context, centers=centers))
    assert torch.allclose(value_of(name, same), torch.zeros((), dtype=DOUBLE), atol=1e-9)


SCALE_FREE = ("at", "ckd", "kdsvd", "lskd", "nst", "pkd", "pkt", "rkd", "skd", "sp")
"""They compare directions, relative lengths or standardized logits."""


@for_each(SCALE_FREE)
@examples(6)
@given(case=cases(), factor=st.floats(0.5, 100))
def test_a_larger_student_is_the_same_student(name: str, case: Case, factor: float) -> None:
    larger = case._replace(student=case.student.apply(lambda x: x.detach() * factor))
    assert torch.allclose(value_of(name, larger), value_of(name, case), rtol=1e-5, atol=1e-7)


# Schedulers

difficulties = st.lists(st.floats(0, 10, width=32) | st.floats(0, 2.0**100, width=32), min_size=1, max_size=8)
moments = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(sorted)
"""An epoch, and of how many."""


def weigh(name: str, difficulty: Sequence[float], epoch: float, epochs: int) -> Tensor:
    rows = torch.arange(len(difficulty))
    centers = Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    context = Context(Instances(rows), centers, epoch=int(epoch), epochs=epochs, progress=(epoch - 1) / epochs)
    weights: Tensor = build(DIFFICULTY_SCHEDULERS, name)(torch.tensor(difficulty, dtype=SINGLE), context)
    return weights


@for_each(SCHEDULERS)
@examples(20)
@given(difficulty=difficulties, moment=moments)
def test_an_image_is_weighed_by_its_own_difficulty(name: str, difficulty: list[float], moment: list[int]) -> None:
    alone = torch.cat([weigh(name, [one], *moment) for one in difficulty])
    assert torch.allclose(weigh(name, difficulty, *moment), alone)


@for_each(SCHEDULERS)
@examples(40)
@given(difficulty=difficulties, epochs=st.integers(2, 300), data=st.data())
def test_a_weight_never_falls_as_the_run_goes_on(name: str, difficulty: list[float], epochs: int, data: Any) -> None:
    earlier, later = sorted(data.draw(st.lists(st.integers(1, epochs), min_size=2, max_size=2)))
    assert (weigh(name, difficulty, later, epochs) >= weigh(name, difficulty, earlier, epochs)).all()


HARD_FIRST = dict.fromkeys(("focal", "proportional"), "the opposite of a preview")


@for_each(SCHEDULERS, HARD_FIRST)
@examples(20)
@given(difficulty=difficulties, moment=moments)
def test_a_harder_image_never_has_the_larger_weight(name: str, difficulty: list[float], moment: list[int]) -> None:
    assert (weigh(name, sorted(difficulty), *moment).diff() <= 0).all()


# Difficulty metrics


def measure(name: str, case: Case) -> Tensor:
    with torch.no_grad():
        values: Tensor = build(DIFFICULTY_METRICS, name)(*case.upright)
    return values


@for_each(METRICS)
@examples(25)
@given(case=cases(powers=st.integers(-4, 4), dtype=SINGLE))
def test_difficulty_is_finite_and_not_negative(name: str, case: Case) -> None:
    values = measure(name, case)
    assert values.isfinite().all()
    assert (values >= 0).all()


# Of larger logits the entropy is no normal number any more, and functional.relative leaves such values at that.
@for_each(METRICS)
@examples(25)
@given(case=cases(powers=st.integers(-4, 1), dtype=SINGLE))
def test_difficulty_has_mean_1_over_the_batch(name: str, case: Case) -> None:
    values = measure(name, case)
    assert not values.any() or values.mean().item() == pytest.approx(1, rel=1e-4)


@for_each(METRICS)
@examples(15)
@given(case=cases(), shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_difficulty_is_blind_to_a_shift_of_the_logits(name: str, case: Case, shifts: tuple[float, float]) -> None:
    # Where the networks agree, their gap over its mean is rounding over rounding.
    hypothesis.assume(functional.kd(case.student.logits, case.teacher.logits).mean() > 1e-6)
    student, teacher = (
        output._replace(logits=output.logits + shift)
        for output, shift in zip((case.student, case.teacher), shifts, strict=True)
    )
    moved = case._replace(student=student, teacher=teacher)
    assert torch.allclose(measure(name, moved), measure(name, case), rtol=1e-5, atol=1e-7)

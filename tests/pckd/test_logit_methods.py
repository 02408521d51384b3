"""DKD, MLD, LSKD, DIST, SRRL and SimKD: published numbers, cases computed by hand, invariances, degenerate batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from pckd import functional as pf
from pckd.objective import Objective
from pckd.tasks.classification import image_views
from registry import (
    BACKBONES,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    Centers,
    Context,
    Instances,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    UserError,
    build,
)

T = torch.tensor
Matrix = Sequence[Sequence[float]]


# Plain python, to compare with


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def divergence(teacher: Sequence[float], student: Sequence[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def kd(student: Sequence[float], teacher: Sequence[float], temperature: float) -> float:
    return temperature**2 * divergence(softmax(teacher, temperature), softmax(student, temperature))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def pearson(first: Sequence[float], second: Sequence[float]) -> float:
    x, y = ([value - mean(values) for value in values] for values in (first, second))
    product = sum(a * b for a, b in zip(x, y, strict=True))
    return product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def columns(rows: Matrix) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def gram(rows: Matrix) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]


def squared_difference(first: Matrix, second: Matrix) -> list[float]:
    """Per row of two matrices."""
    pairs = zip(first, second, strict=True)
    return [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in pairs]


STUDENT = [[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]
TEACHER = [[3.0, 0.0, 1.0], [-1.0, 1.0, 0.5]]


# DKD


def test_golden_dkd(golden: Any) -> None:
    student, teacher = golden.student.upright(golden.views), golden.teacher.upright(golden.views)
    value = pf.dkd(student.logits, teacher.logits, golden["labels"])
    assert value.shape == golden["labels"].shape
    assert value.mean().item() == golden.near("dkd_alpha1_beta8_T4")
    loss = build(LOSSES, "dkd", golden.setup)
    assert loss(student, teacher, golden.context().upright()).equal(value)


def test_dkd_by_hand() -> None:
    alpha, beta, temperature, labels = 0.5, 3.0, 2.0, [0, 2]
    expected = []
    for student, teacher, label in zip(STUDENT, TEACHER, labels, strict=True):
        s, t = softmax(student, temperature), softmax(teacher, temperature)
        target = divergence([t[label], 1 - t[label]], [s[label], 1 - s[label]])
        others = [
            softmax([z for k, z in enumerate(logits) if k != label], temperature) for logits in (teacher, student)
        ]
        expected.append(temperature**2 * (alpha * target + beta * divergence(*others)))
    value = pf.dkd(T(STUDENT), T(TEACHER), T(labels), alpha, beta, temperature)
    assert value.tolist() == pytest.approx(expected, rel=1e-5)


def test_dkd_is_kd_where_the_other_classes_count_by_their_probability() -> None:
    """KD = TCKD + (1 - p_t) NCKD, which is where DKD comes from."""
    s, t, labels = T(STUDENT), T(TEACHER), T([1, 0])
    other = 1 - (t / 4).softmax(-1)[T([0, 1]), labels]
    whole = pf.dkd(s, t, labels, 1, 0) + other * pf.dkd(s, t, labels, 0, 1)
    torch.testing.assert_close(whole, pf.kd(s, t, 4.0))


def test_dkd_with_two_classes_is_kd() -> None:
    student, teacher = T([[1.0, 0.0], [500.0, -500.0]], requires_grad=True), T([[0.0, 2.0], [-600.0, 600.0]])
    labels = T([0, 1])
    value = pf.dkd(student, teacher, labels)
    torch.testing.assert_close(value, pf.kd(student, teacher, 4.0))
    assert pf.dkd(student, teacher, labels, alpha=0.0, beta=8.0).tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_dkd_sees_the_label_when_it_drowns_everything() -> None:
    """The published mask of -1000 is too small for such logits."""
    student, teacher = T([[4000.0, 0.0, -4000.0]]), T([[8000.0, 0.0, 0.0]])
    # All is on the label in both: no TCKD. Of the others the teacher gives half each, the student (1, e^-1000).
    expected = 16 * 8 * (0.5 * 1000 + math.log(0.5))
    assert pf.dkd(student, teacher, T([0])).item() == pytest.approx(expected, rel=1e-5)


# LSKD


def z_scores(row: Sequence[float]) -> list[float]:
    deviation = math.sqrt(sum((x - mean(row)) ** 2 for x in row) / (len(row) - 1))
    return [(x - mean(row)) / deviation for x in row]


def test_lskd_by_hand() -> None:
    expected = [kd(z_scores(s), z_scores(t), 2.0) for s, t in zip(STUDENT, TEACHER, strict=True)]
    assert pf.lskd(T(STUDENT), T(TEACHER)).tolist() == pytest.approx(expected, rel=1e-5)
    third = [kd(z_scores(s), z_scores(t), 3.0) for s, t in zip(STUDENT, TEACHER, strict=True)]
    assert pf.lskd(T(STUDENT), T(TEACHER), 3.0).tolist() == pytest.approx(third, rel=1e-5)


def test_standardized_rows_have_mean_0_and_deviation_1() -> None:
    rows = pf.standardize(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 7 + 3)
    torch.testing.assert_close(rows.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(5))
    assert pf.standardize(T([[3.0, 3.0, 3.0]])).tolist() == [[0, 0, 0]]
    assert pf.standardize(T([[3.0]])).tolist() == [[0]]


def test_lskd_is_blind_to_shift_and_scale_of_each_row() -> None:
    inputs = make_inputs()
    s, t = inputs["student_logits"], inputs["teacher_logits"]
    scale, shift = T([[0.1], [1.0], [2.0], [5.0], [30.0], [0.5]]), T([[1.0], [-9.0], [0.0], [3.0], [50.0], [7.0]])
    torch.testing.assert_close(pf.lskd(s * scale + shift, t), pf.lskd(s, t), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pf.lskd(s, t * scale + shift), pf.lskd(s, t), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pf.lskd(2 * t - 5, t), torch.zeros(6), atol=1e-5, rtol=0)


# DIST


def test_dist_by_hand() -> None:
    temperature = 2.0
    s, t = ([softmax(row, temperature) for row in rows] for rows in (STUDENT, TEACHER))
    inter = [temperature**2 * (1 - pearson(x, y)) for x, y in zip(s, t, strict=True)]
    intra = [temperature**2 * (1 - pearson(x, y)) for x, y in zip(columns(s), columns(t), strict=True)]
    value = pf.inter_class_relation(T(STUDENT), T(TEACHER), temperature)
    assert value.tolist() == pytest.approx(inter, rel=1e-4)
    value = pf.intra_class_relation(T(STUDENT), T(TEACHER), temperature)
    assert value.tolist() == pytest.approx(intra, rel=1e-4, abs=1e-5)


def test_dist_is_zero_for_perfect_correlation() -> None:
    inputs = make_inputs()
    t = inputs["teacher_logits"].softmax(-1)
    # Predictions mixed with the uniform one are a linear function of them, and correlate perfectly.
    s = 0.3 * t + 0.7 / t.shape[1]
    for relation in (pf.inter_class_relation, pf.intra_class_relation):
        torch.testing.assert_close(relation(s.log(), t.log()), torch.zeros(relation(s, t).shape), atol=1e-5, rtol=0)
    opposite = (2 / t.shape[1] - t).clamp_min(0)
    assert (pf.inter_class_relation(opposite.log(), t.log()) > 1).all()


def test_dist_of_predictions_without_relation_is_one() -> None:
    flat = torch.zeros(4, 3)
    assert pf.inter_class_relation(flat, torch.randn(4, 3)).tolist() == [1, 1, 1, 1]
    assert pf.intra_class_relation(flat, torch.randn(4, 3)).tolist() == [1, 1, 1]


# MLD


def test_mld_levels_by_hand() -> None:
    temperatures = (2.0, 5.0)
    expected_instance = [sum(kd(s, t, T) for T in temperatures) for s, t in zip(STUDENT, TEACHER, strict=True)]
    value = pf.instance_alignment(T(STUDENT), T(TEACHER), temperatures)
    assert value.tolist() == pytest.approx(expected_instance, rel=1e-5)
    batch, classes = [0.0] * 2, [0.0] * 3
    for temperature in temperatures:
        s, t = ([softmax(row, temperature) for row in rows] for rows in (STUDENT, TEACHER))
        batch = [a + b for a, b in zip(batch, squared_difference(gram(s), gram(t)), strict=True)]
        by_class = squared_difference(gram(columns(s)), gram(columns(t)))
        classes = [a + b for a, b in zip(classes, by_class, strict=True)]
    assert pf.batch_alignment(T(STUDENT), T(TEACHER), temperatures).tolist() == pytest.approx(batch, rel=1e-4)
    assert pf.class_alignment(T(STUDENT), T(TEACHER), temperatures).tolist() == pytest.approx(classes, rel=1e-4)


def test_mld_takes_the_published_temperatures() -> None:
    for level in (pf.instance_alignment, pf.batch_alignment, pf.class_alignment):
        whole = level(T(STUDENT), T(TEACHER))
        torch.testing.assert_close(whole, level(T(STUDENT), T(TEACHER), (2, 3, 4, 5, 6)))


def test_share_of_the_unsure() -> None:
    # Highest probabilities in the order of the highest logit; the median lies between the second and the third.
    logits = torch.diag(T([4.0, 1.0, 3.0, 2.0]))
    assert pf.unsure_share(logits).item() == 0.5
    assert pf.unsure_share(logits[:3]).item() == pytest.approx(2 / 3)
    assert pf.unsure_share(torch.zeros(4, 3)).item() == 1
    # Three of the five columns are at most as likely as the median one.
    assert pf.unsure_share(T([[9.0, 1.0, 2.0, 3.0, 4.0]]), per_class=True).item() == pytest.approx(3 / 5)


def published_mld(student: Tensor, teacher: Tensor, labels: Tensor, ce: float, weight: float) -> float:
    """The objective as the released training step sums it, from rows [B, (weak, strong), K]."""
    (weak_s, strong_s), (weak_t, strong_t) = student.unbind(1), teacher.unbind(1)
    cross_entropy = nn.functional.cross_entropy(weak_s, labels) + nn.functional.cross_entropy(strong_s, labels)
    sure = weak_t.softmax(1).amax(1)
    mask = (sure <= sure.median() if len(sure) % 2 else sure <= sure.sort().values[: len(sure) // 2].max()).float()
    class_sure = weak_t.softmax(1).sum(0)
    class_mask = (class_sure <= class_sure.median()).float()
    assert len(class_sure) % 2
    total = torch.zeros(())
    for temperature in (4.0, 3.0, 5.0, 2.0, 6.0):
        p, q = (weak_s / temperature).softmax(1), (weak_t / temperature).softmax(1)
        total = total + (pf.kd(weak_s, weak_t, temperature).mean() * mask).mean()
        total = total + (((q.T @ q - p.T @ p) ** 2).sum() / p.shape[1] * class_mask).mean()
        total = total + (((q @ q.T - p @ p.T) ** 2).sum() / p.shape[0] * mask).mean()
        again = (strong_s, strong_t) if temperature in (4.0, 3.0, 5.0) else (weak_s, weak_t)
        total = total + pf.kd(*again, temperature).mean()
    return float(ce * cross_entropy + weight * total)


@pytest.mark.parametrize("images", [5, 8])
def test_mld_sums_to_the_released_objective(images: int) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (2 * torch.randn(images, 2, 7, generator=generator) for _ in range(2))
    labels = torch.randint(0, 7, (images,), generator=generator)
    setup = Setup(Shapes(7, 4), Shapes(7, 4))
    objective = make_objective("mld", setup)
    instances = image_views(labels, torch.arange(images), 2, strong=True)
    context = dataclasses.replace(make_context(labels, 7), instances=instances)
    rows = [Output(x.flatten(0, 1), torch.zeros(2 * images, 4)) for x in (student, teacher)]
    values = objective(*rows, context)
    assert "strong" in objective.row_sets
    assert values["loss"].item() == pytest.approx(published_mld(student, teacher, labels, 0.1, 0.9), rel=1e-5)


# SRRL and SimKD


def test_srrl_by_hand() -> None:
    adapted = T([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    # Means over space 2 and 0, the teacher's 1 and 4: (1 + 16) / 2.
    assert pf.feature_statistic(adapted, T([[1.0, 4.0]])).tolist() == [8.5]
    assert pf.softmax_regression(T([[1.0, 2.0, 0.0]]), T([[0.0, 0.0, 5.0]])).tolist() == [10]


def test_simkd_by_hand() -> None:
    student, teacher = T([[[[1.0, 3.0]], [[0.0, 0.0]]]]), T([[[[1.0, 1.0]], [[2.0, 4.0]]]])
    assert pf.reused_feature(student, teacher).tolist() == [(4 + 4 + 16) / 4]


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (pf.feature_statistic, ((2, 3, 4, 4), (2, 5))),
        (pf.softmax_regression, ((2, 3), (2, 5))),
        (pf.reused_feature, ((2, 3, 4, 4), (2, 3, 2, 2))),
    ],
)
def test_shapes_that_differ_are_refused(loss: Callable[..., Tensor], shapes: Any) -> None:
    with pytest.raises(ValueError, match=f"{loss.__name__} needs two equal shapes"):
        loss(*map(torch.zeros, shapes))


def make_output(rows: int, channels: int, side: int, classes: int = 3, seed: int = 0) -> Output:
    preact = torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(seed))
    embedding = preact.relu().mean((2, 3))
    return Output(torch.zeros(rows, classes), embedding, (preact.relu(),), (preact,))


def make_pair(widths: tuple[int, int] = (4, 6), sides: tuple[int, int] = (4, 4)) -> tuple[Output, Output, Setup]:
    student, teacher = (make_output(5, w, s, seed=w + s) for w, s in zip(widths, sides, strict=True))
    torch.manual_seed(0)
    classifier = nn.Linear(widths[1], 3)
    teacher = teacher._replace(logits=classifier(teacher.embedding))
    return student, teacher, Setup(Shapes.of(student), Shapes.of(teacher), teacher_classifier=classifier)


def make_context(labels: Tensor, classes: int) -> Context:
    centers = Centers(torch.zeros(classes, 4), torch.zeros(classes, 4))
    return Context(Instances(labels, torch.arange(len(labels))), centers)


def make_objective(method: str, setup: Setup) -> Objective:
    return Objective(
        build(METHODS, method),
        setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=build(DIFFICULTY_SCHEDULERS, "constant"),
        centers=build(CENTER_RULES, "classifier", setup),
    )


CONTEXT = make_context(T([0, 1, 2, 0, 1]), 3)


def test_srrl_is_zero_when_the_student_equals_the_teacher() -> None:
    _, teacher, setup = make_pair()
    loss = build(LOSSES, "srrl", setup._replace(student=setup.teacher)).eval()
    with torch.no_grad():
        loss.adapter[0].weight.copy_(torch.eye(6)[:, :, None, None])
    # The fresh batch norm divides by sqrt(1 + 1e-5).
    torch.testing.assert_close(loss(teacher, teacher, CONTEXT), torch.zeros(5), atol=1e-6, rtol=0)
    other = teacher._replace(preacts=(teacher.preacts[0] + 1,))
    assert (loss(other, teacher, CONTEXT) > 1e-3).all()


def test_srrl_weighs_its_two_parts() -> None:
    student, teacher, setup = make_pair()
    values = []
    for options in ("feature=2.0, regression=0.0", "feature=0.0, regression=3.0", "feature=2.0, regression=3.0"):
        torch.manual_seed(0)
        values.append(build(LOSSES, f"srrl({options})", setup)(student, teacher, CONTEXT))
    torch.testing.assert_close(values[0] + values[1], values[2])
    assert (values[0] != values[1]).all()


def test_srrl_reads_the_embedding_where_no_map_leads_to_it() -> None:
    student, teacher, setup = make_pair()
    without = student._replace(maps=(), preacts=())
    loss = build(LOSSES, "srrl", setup._replace(student=Shapes.of(without)))
    assert loss(without, teacher, CONTEXT).shape == (5,)


@pytest.mark.parametrize("sides", [(4, 4), (8, 4), (4, 8)])
def test_simkd_answers_with_the_teachers_classifier_on_the_projected_feature(sides: tuple[int, int]) -> None:
    student, teacher, setup = make_pair(sides=sides)
    loss = build(LOSSES, "simkd", setup).eval()
    small = student.maps[0]
    if sides[0] > sides[1]:
        small = nn.functional.avg_pool2d(small, 2)
    target = teacher.maps[0]
    if sides[1] > sides[0]:
        target = nn.functional.avg_pool2d(target, 2)
    projected = loss.projector(small)
    expected = (projected - target).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(student, teacher, CONTEXT), expected)
    assert setup.teacher_classifier is not None
    torch.testing.assert_close(loss.predict(student), setup.teacher_classifier(projected.mean((2, 3))))


def test_simkd_has_the_published_projector() -> None:
    _, _, setup = make_pair((4, 6))
    loss = build(LOSSES, "simkd(factor=3)", setup)
    shapes = [tuple(layer.weight.shape) for layer in loss.projector if isinstance(layer, nn.Conv2d)]
    assert shapes == [(2, 4, 1, 1), (2, 2, 3, 3), (6, 2, 1, 1)]
    assert [type(layer).__name__ for layer in loss.projector] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert all(layer.bias is None for layer in loss.projector if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("name", ["srrl", "simkd"])
def test_the_teachers_classifier_is_kept_frozen(name: str) -> None:
    student, teacher, setup = make_pair()
    loss = build(LOSSES, name, setup)
    assert setup.teacher_classifier is not None
    assert {"classifier.weight", "classifier.bias"} <= set(loss.state_dict())
    assert not any(key.startswith("classifier") for key, _ in loss.named_parameters())
    loss(student, teacher, CONTEXT).sum().backward()
    assert setup.teacher_classifier.weight.grad is None
    assert all(p.grad is not None for p in loss.parameters())
    with torch.no_grad():
        setup.teacher_classifier.weight.zero_()
    assert loss.classifier.weight.any()
    with pytest.raises(NotApplicable, match="the teacher's classifier"):
        build(LOSSES, name, setup._replace(teacher_classifier=None))


def test_simkd_refuses_what_it_cannot_read() -> None:
    _, _, setup = make_pair()
    for role in ("student", "teacher"):
        shapes = getattr(setup, role)
        with pytest.raises(NotApplicable, match=f"the {role} does not return it; srrl works"):
            build(LOSSES, "simkd", setup._replace(**{role: shapes._replace(embedding=9)}))
    for factor in (0, -1, 7):
        with pytest.raises(UserError, match=f"between 1 and the teacher's 6 channels, not {factor}"):
            build(LOSSES, f"simkd(factor={factor})", setup)


def test_read_map_pools_to_the_embedding() -> None:
    for name in ("resnet8", "wrn_16_1", "vgg8", "ShuffleV1"):
        net = BACKBONES.get(name)(3).eval()
        output = net(torch.randn(2, 3, 32, 32))
        read = pf.read_map(output)
        assert read is not None
        torch.testing.assert_close(read.mean((2, 3)), output.embedding, msg=name)
    output = BACKBONES.get("MobileNetV2")(3).eval()(torch.randn(2, 3, 32, 32))
    assert pf.read_map(output) is None
    assert pf.read_shape(Shapes.of(output)) is None


@pytest.mark.parametrize("pair", [("resnet8", "wrn_16_1"), ("ShuffleV1", "vgg8")])
def test_simkd_from_start_to_end(pair: tuple[str, str], tiny_data: pckd.Data, tmp_path: Path) -> None:
    """The student is measured, saved and handed back with the teacher's classifier; previewing looks at it too."""
    torch.manual_seed(0)
    teacher = BACKBONES.get(pair[1])(3)
    options: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 1}
    result = pckd.distill(
        student=pair[0],
        teacher=teacher,
        method="simkd",
        data=tiny_data,
        scheduler="preview",
        output=tmp_path,
        **options,
    )
    assert "cross_entropy" not in result.history[0]
    assert 0 <= result.history[0]["preview_weight"] <= 1
    assert pckd.evaluate(result.student, tiny_data).top1 == result.last_top1
    assert result.student.classifier.weight.equal(teacher.classifier.weight)


def test_previewing_judges_the_answer_of_the_head() -> None:
    student, teacher, setup = make_pair()
    seen = []

    def difficulty(student: Output, teacher: Output, context: Context) -> Tensor:
        seen.append(student.logits)
        return torch.ones(len(context.labels))

    objective = make_objective("simkd", setup).eval()
    objective.difficulty = difficulty
    objective.weights(student, teacher, CONTEXT)
    torch.testing.assert_close(seen[0], objective.predict(student))


# Every function of named tensors

LABELS = T([0, 1, 0, 2, 1, 0])
Inputs = dict[str, Tensor]
LOGITS = ("student_logits", "teacher_logits")
MAPS = ("student_map", "teacher_map")
FUNCTIONS: dict[str, Callable[[Inputs, Tensor], Tensor]] = {
    "dkd": lambda x, y: pf.dkd(x["student_logits"], x["teacher_logits"], y),
    "lskd": lambda x, y: pf.lskd(x["student_logits"], x["teacher_logits"]),
    "inter": lambda x, y: pf.inter_class_relation(x["student_logits"], x["teacher_logits"], 4.0),
    "intra": lambda x, y: pf.intra_class_relation(x["student_logits"], x["teacher_logits"], 4.0),
    "instance": lambda x, y: pf.instance_alignment(x["student_logits"], x["teacher_logits"]),
    "batch": lambda x, y: pf.batch_alignment(x["student_logits"], x["teacher_logits"]),
    "class": lambda x, y: pf.class_alignment(x["student_logits"], x["teacher_logits"]),
    "statistic": lambda x, y: pf.feature_statistic(x["student_map"], x["teacher_map"].mean((2, 3))),
    "regression": lambda x, y: pf.softmax_regression(x["student_logits"], x["teacher_logits"]),
    "reused": lambda x, y: pf.reused_feature(x["student_map"], x["teacher_map"]),
}
PER_CLASS = ("intra", "class")


def reads(name: str) -> str:
    return "student_map" if name in ("statistic", "reused") else "student_logits"


def make_inputs(rows: int = 6, classes: int = 3, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(LOGITS, (rows, classes)) | dict.fromkeys(MAPS, (rows, 3, 2, 2))
    return {
        key: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for key, shape in shapes.items()
    }


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_derivative(name: str, classes: int) -> None:
    inputs, labels = make_inputs(classes=classes, dtype=torch.float64), LABELS % classes

    def loss(x: Tensor) -> Tensor:
        return FUNCTIONS[name]({**inputs, reads(name): x}, labels)

    x = inputs[reads(name)].requires_grad_()
    # Two standardized logits are always the same two: nothing but their order matters.
    assert torch.autograd.gradcheck(loss, x, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_teacher_is_a_constant(name: str) -> None:
    inputs = {key: tensor.requires_grad_() for key, tensor in make_inputs().items()}
    FUNCTIONS[name](inputs, LABELS).sum().backward()
    reached = {key for key, tensor in inputs.items() if tensor.grad is not None and tensor.grad.any()}
    assert reached == {reads(name)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    inputs = make_inputs()
    same = {key: inputs[key.replace("student", "teacher")] for key in inputs}
    value = FUNCTIONS[name](same, LABELS)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-5, rtol=0)
    assert (FUNCTIONS[name](inputs, LABELS) > 0).all()


def scaled(factor: float) -> Callable[[Inputs], Inputs]:
    return lambda inputs: {key: tensor * factor for key, tensor in inputs.items()}


BATCHES: dict[str, Callable[[Inputs], Inputs]] = {
    "plain": scaled(1),
    "zeros": scaled(0),
    "tiny": scaled(1e-30),
    "huge": lambda inputs: {key: tensor.sign() * 1e4 for key, tensor in inputs.items()},
    "identical rows": lambda inputs: {key: tensor[:1].expand_as(tensor).clone() for key, tensor in inputs.items()},
    "half": lambda inputs: {key: tensor.bfloat16() for key, tensor in inputs.items()},
    "huge half": lambda inputs: {key: (tensor.sign() * 1e4).bfloat16() for key, tensor in inputs.items()},
    "half as fp16": lambda inputs: {key: tensor.half() * 100 for key, tensor in inputs.items()},
}


@pytest.mark.parametrize("autocast", [False, True], ids=["exact", "autocast"])
@pytest.mark.parametrize("size", [(6, 3), (6, 2), (6, 1), (1, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_degenerate_batches_are_finite(name: str, batch: str, size: tuple[int, int], autocast: bool) -> None:
    rows, classes = size
    inputs = {key: tensor.requires_grad_() for key, tensor in BATCHES[batch](make_inputs(rows, classes)).items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = FUNCTIONS[name](inputs, LABELS[:rows] % classes)
    assert value.dtype == torch.float32
    assert value.shape == ((classes,) if name in PER_CLASS else (rows,))
    assert value.isfinite().all()
    assert (value > -1e-3).all()
    value.mean().backward()
    gradient = inputs[reads(name)].grad
    assert gradient is not None
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_does_not_cost_precision(name: str) -> None:
    inputs = make_inputs()
    exact = FUNCTIONS[name](inputs, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(FUNCTIONS[name](inputs, LABELS), exact)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in PER_CLASS])
def test_permuting_the_batch_permutes_the_values(name: str) -> None:
    inputs, order = make_inputs(), T([3, 1, 5, 0, 2, 4])
    value = FUNCTIONS[name](inputs, LABELS)
    permuted = FUNCTIONS[name]({key: tensor[order] for key, tensor in inputs.items()}, LABELS[order])
    torch.testing.assert_close(permuted, value[order])
    assert not torch.allclose(permuted, value)


# The losses and methods


@pytest.mark.parametrize("name", ["dkd", "lskd", "dist_inter", "dist_intra", "mld_instance", "mld_batch", "mld_class"])
def test_temperatures_must_be_above_zero(name: str) -> None:
    setup = Setup(Shapes(3, 4), Shapes(3, 4))
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="temperature must be above 0"):
            LOSSES.get(name)(setup, temperature=temperature)


def test_methods_have_the_published_terms() -> None:
    terms = {name: [(t.label, t.weight) for t in build(METHODS, name)] for name in ("lskd", "dist", "srrl", "simkd")}
    assert terms == {
        "lskd": [("cross_entropy", 0.1), ("lskd", 9)],
        "dist": [("cross_entropy", 1), ("dist_inter", 2), ("dist_intra", 2)],
        "srrl": [("cross_entropy", 1), ("srrl", 1)],
        "simkd": [("cross_entropy", 0), ("simkd", 1)],
    }
    _, term = build(METHODS, "dkd")
    assert (term.warmup, term.options) == (20, {"alpha": 1, "beta": 8, "temperature": 4})
    assert [t.rows for t in build(METHODS, "mld")] == ["strong", "strong", "upright", "upright"]


@pytest.mark.parametrize("method", ["dkd", "lskd", "dist", "mld", "srrl", "simkd"])
def test_any_of_them_can_be_previewed(method: str, tiny_data: pckd.Data) -> None:
    torch.manual_seed(0)
    result = pckd.distill(
        student="resnet8",
        teacher=BACKBONES.get("resnet8")(3),
        method=method,
        data=tiny_data,
        scheduler="preview(reference_epochs=None)",
        epochs=1,
        batch_size=16,
        precision="fp32",
        device="cpu",
    )
    assert 0 < result.history[0]["previewed"] < 1
    previewed = [label for label, facts in result.record["terms"].items() if facts["previewed"]]
    assert previewed == {"dist": ["dist_inter"], "mld": ["mld_instance", "mld_batch"]}.get(method, [method])

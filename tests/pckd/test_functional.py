"""The losses as pure functions: published numbers, cases computed by hand, gradients, degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd import functional as pf
from registry import Centers, Context, Instances

T = torch.tensor


# Published numbers


def test_golden_difficulty_and_preview(golden: Any) -> None:
    upright = golden.student.upright(golden.views)
    difficulty = pf.cross_entropy_difficulty(upright.logits, golden["labels"])
    assert difficulty.numpy() == golden.near("difficulty")
    for epoch in (1, 60, 120, 240):
        assert pf.preview_weights(difficulty, epoch).numpy() == golden.near(f"preview_weight_epoch{epoch}")


def test_golden_kd(golden: Any) -> None:
    student, teacher = golden.student.upright(golden.views), golden.teacher.upright(golden.views)
    assert pf.kd(student.logits, teacher.logits, 4.0).numpy() == golden.near("kd")
    assert pf.kd(student.logits, teacher.logits).numpy() == golden.near("kd")


def test_golden_feature_alignment(golden: Any) -> None:
    hidden = nn.functional.linear(golden["student_embedding"], golden["fa_fc1_weight"], golden["fa_fc1_bias"])
    hidden = nn.functional.batch_norm(hidden, None, None, golden["fa_bn_weight"], golden["fa_bn_bias"], training=True)
    projected = nn.functional.linear(hidden.relu(), golden["fa_fc2_weight"], golden["fa_fc2_bias"])
    assert pf.feature_alignment(projected, golden["teacher_embedding"]).mean().item() == golden.near(
        "feature_alignment"
    )


def test_golden_center_alignment(golden: Any) -> None:
    centers = golden.centers
    arguments = (centers.student, centers.student_bias, centers.teacher, centers.teacher_bias)
    if golden.name == "same":
        assert pf.center_alignment(*arguments).item() == golden.near("center_alignment")
    else:
        with pytest.raises(ValueError, match="center_relation"):
            pf.center_alignment(*arguments)


def test_golden_category_contrast(golden: Any) -> None:
    queries = [
        nn.functional.linear(golden["student_embedding"], golden[f"{name}_weight"], golden[f"{name}_bias"])
        for name in ("cc_proj_student", "cc_proj_teacher")
    ]
    value = pf.category_contrast(*queries, golden.context().labels, golden.centers.student, golden.centers.teacher)
    assert value.numpy() == golden.near("category_contrast")


# Cases computed by hand, with two classes


def softmax(*logits: float) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def test_kd_by_hand() -> None:
    student, teacher = softmax(1 / 2, 0 / 2), softmax(-1 / 2, 3 / 2)
    divergence = sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True))
    value = pf.kd(T([[1.0, 0.0]]), T([[-1.0, 3.0]]), temperature=2.0)
    assert value.tolist() == pytest.approx([4 * divergence])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ((3.0, 0.0), (0.5, 0.0), 0.0),
        ((1.0, 0.0), (-2.0, 0.0), 4.0),
        ((0.0, 2.0), (3.0, 0.0), 2.0),
        ((1.0, 1.0), (1.0, 0.0), 2 - math.sqrt(2)),
        ((0.0, 0.0), (1.0, 0.0), 2.0),
    ],
)
def test_feature_alignment_by_hand(student: tuple[float], teacher: tuple[float], expected: float) -> None:
    assert pf.feature_alignment(T([student]), T([teacher])).tolist() == pytest.approx([expected], abs=1e-6)


def test_center_alignment_by_hand() -> None:
    student, teacher = T([[1.0, 2.0], [0.0, 0.0]]), T([[1.0, 0.0], [0.0, 3.0]])
    # Squared differences 0, 4, 0, 9 of the weights; 1, 16 of the biases.
    assert pf.center_alignment(student, None, teacher, None).item() == pytest.approx(13 / 4)
    biases = T([0.0, 1.0]), T([1.0, 5.0])
    assert pf.center_alignment(student, biases[0], teacher, biases[1]).item() == pytest.approx(30 / 6)
    assert pf.center_alignment(student, biases[0], teacher, None).item() == pytest.approx(13 / 4)
    assert pf.center_alignment(student, None, teacher, biases[1]).item() == pytest.approx(13 / 4)


def test_center_relation_by_hand() -> None:
    # The student's two centers are at 45 degrees, the teacher's (three wide) at 90.
    student, teacher = T([[2.0, 0.0], [1.0, 1.0]]), T([[0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    expected = 2 * (math.cos(math.pi / 4) - 0) ** 2 / 4
    assert pf.center_relation(student, teacher).item() == pytest.approx(expected)
    assert pf.center_relation(student, student * 7).item() == pytest.approx(0, abs=1e-12)


def test_center_infonce_by_hand() -> None:
    # The cosines of the first row are 0.6 and 0.8, of the second 0 and -1.
    embedding, centers = T([[3.0, 4.0], [0.0, -9.0]]), T([[2.0, 0.0], [0.0, 0.5]])
    expected = [-math.log(softmax(0.6 / 0.5, 0.8 / 0.5)[0]), -math.log(softmax(0, -1 / 0.5)[1])]
    value = pf.center_infonce(embedding, T([0, 1]), centers, temperature=0.5)
    assert value.tolist() == pytest.approx(expected)
    default = -math.log(softmax(0.6 / 0.07, 0.8 / 0.07)[0])
    assert pf.center_infonce(embedding, T([0, 1]), centers)[0].item() == pytest.approx(default)


def test_category_contrast_by_hand() -> None:
    """Two rows of two classes: every anchor has one positive, its other half."""
    tau, base = 2.0, 0.5
    student_centers = [[1.0, 0.0], [0.0, 2.0]]
    teacher_centers = [[1.0, 1.0], [0.0, 1.0]]
    # Unit queries, so that u can be read off: u = q W^T.
    student_query, teacher_query = [[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [1.0, 0.0]]
    u = [
        [sum(a * b for a, b in zip(query, center, strict=True)) for center in centers]
        for queries, centers in ((student_query, student_centers), (teacher_query, teacher_centers))
        for query in queries
    ]
    assert u == [pytest.approx(row) for row in ([1, 0], [0, 2], [1.4, 0.8], [1, 0])]

    def anchor(a: int) -> float:
        logits = {b: sum(x * y for x, y in zip(u[a], u[b], strict=True)) / tau for b in range(4) if b != a}
        positive = (a + 2) % 4
        return -(tau / base) * (logits[positive] - math.log(sum(math.exp(z) for z in logits.values())))

    value = pf.category_contrast(
        5 * T(student_query), 0.1 * T(teacher_query), T([0, 1]), T(student_centers), T(teacher_centers), tau, base
    )
    assert value.tolist() == pytest.approx([anchor(0) + anchor(2), anchor(1) + anchor(3)], rel=1e-5)


def test_difficulty_by_hand() -> None:
    losses = [-math.log(softmax(2, 0)[0]), -math.log(softmax(2, 0)[1])]
    value = pf.cross_entropy_difficulty(T([[2.0, 0.0], [2.0, 0.0]]), T([0, 1]))
    assert value.tolist() == pytest.approx([2 * loss / sum(losses) for loss in losses])


def test_relative_by_hand() -> None:
    assert pf.relative(T([1.0, 2.0, 6.0])).tolist() == pytest.approx([1 / 3, 2 / 3, 2])
    assert pf.relative(T([0.0, 0.0])).tolist() == [0, 0]


def test_preview_weights_by_hand() -> None:
    difficulty = T([0.0, 1.0, 1.21, 1.22, 3.0])
    expected = [1, 1, 1, math.exp(-(1.22**2)), math.exp(-9)]
    assert pf.preview_weights(difficulty, 2, growth=1.1).tolist() == pytest.approx(expected)
    assert pf.preview_weights(T([1.0051, 1.0049]), 1).tolist() == pytest.approx([math.exp(-(1.0051**2)), 1])


def test_preview_is_monotone_in_epoch_and_difficulty() -> None:
    difficulty = torch.linspace(0, 4, 41)
    table = torch.stack([pf.preview_weights(difficulty, epoch) for epoch in range(0, 300, 5)])
    assert (table.diff(dim=0) >= 0).all()
    assert (table.diff(dim=1) <= 0).all()
    assert (table[-1] > table[0]).any()
    assert table.min() >= 0
    assert table.max() == 1


def test_published_epoch_by_hand() -> None:
    centers = Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    context = Context(Instances(torch.zeros(1)), centers, epoch=15, epochs=60)
    assert pf.published_epoch(context) == 60
    assert pf.published_epoch(context, 100) == 25
    assert pf.published_epoch(context, None) == 15


def test_class_means_by_hand() -> None:
    means, counts = pf.class_means(T([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]), T([2, 2, 0]), 3)
    assert means.tolist() == [[5, 5], [0, 0], [2, 4]]
    assert counts.tolist() == [1, 0, 2]


def test_blend_class_means_by_hand() -> None:
    centers, seen = T([[1.0], [10.0], [7.0]]), T([True, False, True])
    pf.blend_class_means(centers, seen, T([[2.0], [4.0], [8.0]]), T([0, 0, 1]), momentum=0.75)
    # Class 0: 0.75 * 1 + 0.25 * 3; class 1 is new and takes its mean whole; class 2 is absent and stays.
    assert centers.tolist() == [[1.5], [8.0], [7.0]]
    assert seen.tolist() == [True, True, True]


def test_full_and_unit() -> None:
    assert pf.full(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert pf.full(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert pf.full(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    torch.testing.assert_close(pf.unit(T([[3.0, 4.0], [0.0, 0.0]])), T([[0.6, 0.8], [0.0, 0.0]]))


# Every per-sample loss and every loss of centers, as a function of named tensors

LABELS = T([0, 1, 0, 2, 1, 0])
Inputs = dict[str, Tensor]
LOSSES: dict[str, Callable[[Inputs, Tensor], Tensor]] = {
    "kd": lambda x, labels: pf.kd(x["student_logits"], x["teacher_logits"]),
    "feature_alignment": lambda x, labels: pf.feature_alignment(x["student"], x["teacher"]),
    "category_contrast": lambda x, labels: pf.category_contrast(
        x["student"], x["query"], labels, x["student_centers"], x["teacher_centers"]
    ),
    "center_infonce": lambda x, labels: pf.center_infonce(x["student"], labels, x["student_centers"]),
    "center_alignment": lambda x, labels: pf.center_alignment(
        x["student_centers"], x["student_bias"], x["teacher_centers"], x["teacher_bias"]
    ),
    "center_relation": lambda x, labels: pf.center_relation(x["student_centers"], x["teacher_centers"]),
}
PER_SAMPLE = ("kd", "feature_alignment", "category_contrast", "center_infonce")
STUDENT = {
    "kd": ("student_logits",),
    "feature_alignment": ("student",),
    "category_contrast": ("student", "query", "student_centers"),
    "center_infonce": ("student", "student_centers"),
    "center_alignment": ("student_centers", "student_bias"),
    "center_relation": ("student_centers",),
}


def make_inputs(rows: int = 6, classes: int = 3, width: int = 4, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {name: normal(rows, width) for name in ("student", "teacher", "query")}
    inputs.update({f"{side}_logits": normal(rows, classes) for side in ("student", "teacher")})
    inputs.update({f"{side}_centers": normal(classes, width) for side in ("student", "teacher")})
    inputs.update({f"{side}_bias": normal(classes) for side in ("student", "teacher")})
    return inputs


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative(name: str) -> None:
    inputs = make_inputs(dtype=torch.float64)
    wanted = STUDENT[name]

    def loss(*tensors: Tensor) -> Tensor:
        return LOSSES[name]({**inputs, **dict(zip(wanted, tensors, strict=True))}, LABELS)

    assert torch.autograd.gradcheck(loss, [inputs[key].requires_grad_() for key in wanted])


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_is_a_constant(name: str) -> None:
    inputs = {key: tensor.requires_grad_() for key, tensor in make_inputs().items()}
    LOSSES[name](inputs, LABELS).sum().backward()
    reached = {key for key, tensor in inputs.items() if tensor.grad is not None and tensor.grad.abs().sum() > 0}
    assert reached == set(STUDENT[name])


def plain(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return inputs, labels


def one_image(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: v if "centers" in k or "bias" in k else v[:1] for k, v in inputs.items()}, labels[:1]


def one_class(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return make_inputs(classes=1), torch.zeros_like(labels)


def one_image_one_class(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return one_image(*one_class(inputs, labels))


def no_positive_pair(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return make_inputs(classes=6), torch.arange(6)


def identical_rows(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: v[:1].expand_as(v).clone() for k, v in inputs.items()}, labels


def student_equals_teacher(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: inputs[k.replace("teacher", "student")].clone() for k in inputs}, labels


def zeros(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: torch.zeros_like(v) for k, v in inputs.items()}, labels


def huge(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: v.sign() * 1e4 for k, v in inputs.items()}, labels


def tiny(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: v * 1e-30 for k, v in inputs.items()}, labels


def half(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return {k: v.bfloat16() for k, v in inputs.items()}, labels


def huge_half(inputs: Inputs, labels: Tensor) -> tuple[Inputs, Tensor]:
    return half(*huge(inputs, labels))


BATCHES = (
    plain,
    one_image,
    one_class,
    one_image_one_class,
    no_positive_pair,
    identical_rows,
    student_equals_teacher,
    zeros,
    huge,
    tiny,
    half,
    huge_half,
)


@pytest.mark.parametrize("autocast", [False, True], ids=["exact", "autocast"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_batches_are_finite(name: str, batch: Callable[..., Any], autocast: bool) -> None:
    inputs, labels = batch(make_inputs(), LABELS)
    inputs = {key: tensor.requires_grad_() for key, tensor in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = LOSSES[name](inputs, labels)
    assert value.dtype == torch.float32
    assert value.shape == (labels.shape if name in PER_SAMPLE else ())
    assert value.isfinite().all()
    assert (value > -1e-3).all()
    value.mean().backward()
    for key in STUDENT[name]:
        assert inputs[key].grad is not None
        assert inputs[key].grad.isfinite().all(), f"gradient of {key}"


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_cost_precision(name: str) -> None:
    inputs = make_inputs()
    exact = LOSSES[name](inputs, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(LOSSES[name](inputs, LABELS), exact)


@pytest.mark.parametrize("batch", BATCHES)
def test_degenerate_batches_have_difficulties_and_weights(batch: Callable[..., Any]) -> None:
    inputs, labels = batch(make_inputs(), LABELS)
    logits = inputs["student_logits"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        difficulty = pf.cross_entropy_difficulty(logits, labels)
        weights = pf.preview_weights(difficulty.clone().requires_grad_(), epoch=1)
    for values in (difficulty, weights):
        assert values.dtype == torch.float32
        assert values.shape == labels.shape
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert not values.requires_grad
    assert weights.max() <= 1
    assert difficulty.mean().item() == pytest.approx(1, rel=1e-5) or not difficulty.any()


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_permuting_the_batch_permutes_the_values(name: str) -> None:
    inputs, order = make_inputs(), T([3, 1, 5, 0, 2, 4])
    permuted = {k: v if "centers" in k or "bias" in k else v[order] for k, v in inputs.items()}
    value = LOSSES[name](inputs, LABELS)
    torch.testing.assert_close(LOSSES[name](permuted, LABELS[order]), value[order])
    assert not torch.allclose(value[order], value)


def test_permuting_the_batch_permutes_difficulty() -> None:
    logits, order = make_inputs()["student_logits"], T([3, 1, 5, 0, 2, 4])
    value = pf.cross_entropy_difficulty(logits, LABELS)
    torch.testing.assert_close(pf.cross_entropy_difficulty(logits[order], LABELS[order]), value[order])


def test_kd_is_zero_at_equality_and_blind_to_a_constant() -> None:
    inputs = make_inputs()
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    torch.testing.assert_close(pf.kd(teacher, teacher), torch.zeros(6))
    torch.testing.assert_close(pf.kd(student + 5, teacher - 3), pf.kd(student, teacher), rtol=1e-4, atol=1e-5)
    assert (pf.kd(student, teacher) > 0).all()


def test_kd_of_confident_logits_keeps_its_size() -> None:
    # The student is certain of class 1, the teacher of class 0: T^2 * (difference of logits) / T.
    value = pf.kd(T([[0.0, 1e4]]), T([[1e4, 0.0]]), temperature=4.0)
    assert value.item() == pytest.approx(16 * 1e4 / 4)


def test_category_contrast_of_an_anchor_that_drowns_the_others() -> None:
    """As published: the maximum is the anchor's own logit, so the sum over the others underflows to 1e-7."""
    # u of the student's half is (100, 0), of the teacher's (0, 1): logits 2500 and 0 for the first, 0.25 and 0.
    query = T([[1.0, 0.0]])
    value = pf.category_contrast(query, query, T([0]), T([[100.0, 0.0], [0.0, 0.0]]), T([[0.0, 0.0], [1.0, 0.0]]))
    student = -2500 - math.log(1e-7)
    teacher = -0.25 - math.log(math.exp(-0.25) + 1e-7)
    assert value.item() == pytest.approx(-(4 / 0.07) * (student + teacher), rel=1e-6)


def test_category_contrast_counts_all_views_and_both_halves_as_positives() -> None:
    inputs = make_inputs()
    same, different = T([0, 0, 0, 0, 0, 0]), torch.arange(6)
    arguments = [inputs[k] for k in ("student", "query")], [inputs[f"{s}_centers"] for s in ("student", "teacher")]

    def mean_over(positives: Callable[[int, int], bool]) -> list[float]:
        """The definition, anchor by anchor, in float64."""
        sides = zip(*arguments, strict=True)
        u = torch.cat([pf.unit(q.double()) @ c.double().T for q, c in sides])
        values = []
        for a in range(12):
            logits = [u[a].dot(u[b]).item() / 4 for b in range(12)]
            partition = math.log(sum(math.exp(logits[b]) for b in range(12) if b != a))
            chosen = [logits[b] - partition for b in range(12) if b != a and positives(a, b)]
            values.append(-(4 / 0.07) * sum(chosen) / len(chosen))
        return [values[n] + values[n + 6] for n in range(6)]

    value = pf.category_contrast(*arguments[0], same, *arguments[1])
    assert value.tolist() == pytest.approx(mean_over(lambda a, b: True), rel=1e-4)
    value = pf.category_contrast(*arguments[0], different, *arguments[1])
    assert value.tolist() == pytest.approx(mean_over(lambda a, b: a % 6 == b % 6), rel=1e-4)

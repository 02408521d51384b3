"""DKD, MLD, LSKD, DIST, SRRL and SimKD: cases computed by hand, and the classifier that SRRL and SimKD borrow.

Published numbers and what holds for every function are in test_functional.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pckd
from pckd import functional as pf
from pckd.tasks.classification import image_views
from pckd.testing.cases import objective_of
from registry import (
    BACKBONES,
    LOSSES,
    METHODS,
    Centers,
    Context,
    Instances,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    build,
)

T = torch.tensor
Array = np.ndarray


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


def divergence(teacher: Array, student: Array) -> Array:
    return (teacher * np.log(teacher / student)).sum(-1)


def kd(student: Array, teacher: Array, temperature: float) -> Array:
    return temperature**2 * divergence(softmax(teacher, temperature), softmax(student, temperature))


STUDENT = np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]])
TEACHER = np.array([[3.0, 0.0, 1.0], [-1.0, 1.0, 0.5]])
BOTH = T(STUDENT), T(TEACHER)


# Released code: the mean over the rows, and the gradient of the first logit, in double precision

ROWS = T(
    [[1.2, -0.3, 0.8, 2.1, -1.0], [0.1, 0.4, -0.7, 1.5, 0.9], [-0.2, 2.2, 0.3, -1.1, 0.6], [1.0, 0.5, 0.2, -0.4, 1.9]],
    dtype=torch.float64,
)
BY = T(
    [[2.5, 0.1, 1.3, 3.0, -0.8], [-0.6, 1.7, 0.2, 2.4, 0.3], [0.4, 1.1, 2.8, -0.9, 0.0], [3.1, -0.2, 0.9, 0.6, 1.4]],
    dtype=torch.float64,
)
LABELS = T([3, 1, 1, 0])
CENTERS = T(
    [[1.0, 0.2, -0.5], [0.3, 1.1, 0.4], [-0.7, 0.5, 0.9], [0.8, -0.6, 0.1], [-0.2, -1.0, 0.6]], dtype=torch.float64
)
"""Logits of student and teacher, labels, and the rows of a classifier."""


def wkd(student: Tensor, epoch: int, *options: float) -> Tensor:
    context = Context(Instances(LABELS), Centers(CENTERS, CENTERS), epoch=epoch)
    return pf.wkd(student, BY, LABELS, CENTERS, context, *options)


RELEASED: list[tuple[Callable[[Tensor], Tensor], float, float]] = [
    # cls_KD 1e5d48f, mmcls/models/dis_losses/nkd.py
    (lambda s: pf.nkd(s, BY, LABELS), 2.211984633396371, -0.04535294587242263),
    (lambda s: pf.nkd(s, BY, LABELS, 1.0, 2.0), 5.739164404166352, -0.024296395818023495),
    # TTM fe457b3, distiller_zoo/ttm.py and wttm.py
    (lambda s: pf.ttm(s, BY), 0.3620483213435519, -0.00025349255571453094),
    (lambda s: pf.wttm(s, BY, 0.2), 1.009166401763551, -0.019520786249861616),
    # RLD d54578f, mdistiller/distillers/RLD.py
    (lambda s: pf.rld(s, BY, LABELS), 1.768460000482054, -0.4102069660516989),
    (lambda s: pf.rld(s, BY, LABELS, 0.5, 3.0, 2.0, 2.0), 0.6767827629302663, -0.16176190096739906),
    # WKD 214cf88, mdistiller/distillers/WKD.py, with the cost fc; in double precision throughout
    (lambda s: wkd(s, 1), 0.6872347247295988, 0.028036763040668943),
    (lambda s: wkd(s, 1, 30.0, 2.0, 2.0), 0.9740387624015487, 0.02983723155691362),
    # CKD f16a145, mdistiller/distillers/CKD.py
    (lambda s: pf.ckd(s, BY), 0.9759725115451452, 0.00031574553201444734),
    (lambda s: pf.ckd(s, BY, 2.0), 1.1651474203588998, -0.0007427258544410583),
    # abkd df81318, standard_classification/distiller_zoo/abkl.py, times T^2
    (lambda s: pf.abkd(s, BY), 0.41744854302821605, -0.027737198859982003),
    (lambda s: pf.abkd(s, BY, 1.3, -0.3), 0.495747329095991, -0.033205181948198374),
    (lambda s: pf.abkd(s, BY, 1.0, 0.0), 0.4889815605624409, -0.032826621465242976),
    (lambda s: pf.abkd(s, BY, 0.0, 1.0), 0.47462234625591737, -0.03169002480371191),
    # OFAKD f7bb896, distillers/ofa.py
    (lambda s: pf.ofa(s, BY, LABELS), 1.5342225329977173, -0.025228945330139325),
    (lambda s: pf.ofa(s, BY, LABELS, 1.5, 2.0), 1.2021683492632766, 0.006371501106660354),
]


@pytest.mark.parametrize(("loss", "value", "gradient"), RELEASED)
def test_released_figures(loss: Callable[[Tensor], Tensor], value: float, gradient: float) -> None:
    student = ROWS.clone().requires_grad_()
    mean = loss(student).mean()
    assert mean.item() == pytest.approx(value, rel=1e-12)
    assert torch.autograd.grad(mean, student)[0][0, 0].item() == pytest.approx(gradient, rel=1e-10)


# DKD


def test_dkd_by_hand() -> None:
    alpha, beta, temperature, labels = 0.5, 3.0, 2.0, [0, 2]
    expected = []
    for student, teacher, label in zip(STUDENT, TEACHER, labels, strict=True):
        s, t = softmax(student, temperature), softmax(teacher, temperature)
        target = divergence(*(np.array([p[label], 1 - p[label]]) for p in (t, s)))
        others = divergence(*(softmax(np.delete(logits, label), temperature) for logits in (teacher, student)))
        expected.append(temperature**2 * (alpha * target + beta * others))
    assert pf.dkd(*BOTH, T(labels), alpha, beta, temperature).tolist() == pytest.approx(expected)


def test_dkd_is_kd_where_the_other_classes_count_by_their_probability() -> None:
    """KD = TCKD + (1 - p_t) NCKD, which is where DKD comes from."""
    labels = T([1, 0])
    other = 1 - (BOTH[1] / 4).softmax(-1)[T([0, 1]), labels]
    whole = pf.dkd(*BOTH, labels, 1, 0) + other * pf.dkd(*BOTH, labels, 0, 1)
    torch.testing.assert_close(whole, pf.kd(*BOTH, 4.0))


def test_dkd_with_two_classes_is_kd() -> None:
    student, teacher = T([[1.0, 0.0], [500.0, -500.0]], requires_grad=True), T([[0.0, 2.0], [-600.0, 600.0]])
    value = pf.dkd(student, teacher, T([0, 1]))
    torch.testing.assert_close(value, pf.kd(student, teacher, 4.0))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient.isfinite().all()


def test_dkd_sees_the_label_when_it_drowns_everything() -> None:
    """The published mask of -1000 is too small for such logits."""
    student, teacher = T([[4000.0, 0.0, -4000.0]]), T([[8000.0, 0.0, 0.0]])
    # All is on the label in both: no TCKD. Of the others the teacher gives half each, the student (1, e^-1000).
    expected = 16 * 8 * (0.5 * 1000 + math.log(0.5))
    assert pf.dkd(student, teacher, T([0])).item() == pytest.approx(expected, rel=1e-5)


# LSKD, DIST and MLD


@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_lskd_by_hand(temperature: float) -> None:
    scores = [(x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) for x in (STUDENT, TEACHER)]
    assert pf.lskd(*BOTH, temperature).tolist() == pytest.approx(kd(*scores, temperature))
    if temperature == 2:
        assert pf.lskd(*BOTH).equal(pf.lskd(*BOTH, temperature))
    assert pf.standardize(T([[3.0, 3.0, 3.0]])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("method", "standardized"), [("kd", ["kd"]), ("dkd", ["dkd"]), ("mld", ["mld_instance"])])
def test_a_method_compares_standardized_logits(method: str, standardized: list[str]) -> None:
    """Its losses of single rows, as if both networks had answered with z-scores; the others as before."""
    scores = [pf.standardize(x) for x in BOTH]
    setup = Setup(Shapes(3, 1), Shapes(3, 1))
    instances = image_views(T([1]), T([0]), 2, strong=True)
    context = dataclasses.replace(make_context(T([1]), 3), instances=instances)
    plain, changed = (build(METHODS, method, standardize=on, temperature=2.0) for on in (False, True))
    assert [term.label for term in changed if term.standardize] == standardized
    shown = {on: [Output(x, torch.zeros(2, 1)) for x in (scores if on else BOTH)] for on in (False, True)}
    for term, other in zip(plain, changed, strict=True):
        expected = objective_of([term], setup)(*shown[other.standardize], context)
        assert objective_of([other], setup)(*shown[False], context) == expected
    if method == "kd":
        assert expected["kd"].item() == pytest.approx(pf.lskd(*BOTH)[0].item())


def test_only_distributions_over_the_classes_are_standardized() -> None:
    with pytest.raises(NotApplicable, match="rkd compares no distributions over the classes: leave out"):
        objective_of([Term("rkd", standardize=True)], Setup(Shapes(3, 4), Shapes(3, 4)))


def test_nkd_by_hand() -> None:
    gamma, temperature, labels = 2.0, 3.0, [0, 2]
    expected = []
    for student, teacher, label in zip(STUDENT, TEACHER, labels, strict=True):
        q, p = (softmax(np.delete(logits, label), temperature) for logits in (student, teacher))
        target = -softmax(teacher)[label] * np.log(softmax(student)[label])
        expected.append(target - gamma * temperature**2 * (p * np.log(q)).sum())
    assert pf.nkd(*BOTH, T(labels), gamma, temperature).tolist() == pytest.approx(expected)


def test_ttm_and_wttm_by_hand() -> None:
    powers = softmax(TEACHER) ** 0.3
    sums = powers.sum(1)
    expected = divergence(powers / sums[:, None], softmax(STUDENT))
    assert pf.power_sum(BOTH[1], 0.3).tolist() == pytest.approx(sums)
    assert pf.ttm(*BOTH, 0.3).tolist() == pytest.approx(expected)
    assert pf.wttm(*BOTH, 0.3).tolist() == pytest.approx(sums * expected)


@pytest.mark.parametrize("labels", [[0, 2], [1, 0]])
def test_rld_by_hand(labels: list[int]) -> None:
    """The teacher is right of the first row with label 0, and ranks no class below its label in the others but one."""
    alpha, beta, hot, cold = 0.5, 3.0, 2.0, 1.5
    expected = []
    for student, teacher, label in zip(STUDENT, TEACHER, labels, strict=True):
        sure, own = softmax(teacher, cold).max(), softmax(student, cold)[label]
        confidence = divergence(np.array([sure, 1 - sure]), np.array([own, 1 - own]))
        below = teacher < teacher[label]
        correlation = divergence(softmax(teacher[below], hot), softmax(student[below], hot)) if below.any() else 0.0
        expected.append(alpha * cold**2 * confidence + beta * hot**2 * correlation)
    assert pf.rld(*BOTH, T(labels), alpha, beta, hot, cold).tolist() == pytest.approx(expected)


def test_regions_are_classified_by_hand() -> None:
    cells = T([[1.0, 2.0], [3.0, 6.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
    logits = pf.region_logits(cells, T([[1.0], [-1.0]]), T([0.0, 0.5]), (1, 2))
    assert logits.tolist() == [[[3, -2.5], [1, -0.5], [2, -1.5], [3, -2.5], [6, -5.5]]]
    # Right of the whole alone, of a region alone, of both, of none.
    teacher = T([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2])
    assert pf.ambiguity(teacher, T([0, 0, 0, 0])).tolist() == [[1, 2], [1, 2], [1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("scales", "value", "gradient"),
    # SDD-CVPR2024 e412036, mdistiller/distillers/SDD_DKD.py, with SPP of mdistiller/models/cifar/utils.py
    [((1, 2, 4), 19.197373256575432, -0.023758002679380292), ((1, 2), 5.342403285738499, -0.018124510259778345)],
)
def test_sdd_has_the_released_figures(scales: tuple[int, ...], value: float, gradient: float) -> None:
    angles = torch.arange(4 * 3 * 64, dtype=torch.float64).view(4, 3, 8, 8)
    maps = (angles.sin().requires_grad_(), (0.7 * angles).cos())
    student, teacher = (Output(ROWS, m.mean((2, 3)), (m,)) for m in maps)
    context = Context(Instances(LABELS), Centers(CENTERS, 3 * CENTERS))
    loss = build(LOSSES, "sdd", Setup(Shapes.of(student), Shapes.of(teacher)), scales=scales)
    mean = loss(student, teacher, context).mean()
    assert mean.item() == pytest.approx(value, rel=1e-12)
    assert torch.autograd.grad(mean, maps[0])[0][0, 0, 0, 0].item() == pytest.approx(gradient, rel=1e-10)


def test_moving_probability_between_two_classes_by_hand() -> None:
    """Of three classes the label takes no part: x moves from one of the others to the other, and x - d back.

    Of the regularized plan, what stays, (p - x)(1 - p - x + d), is exp(2 cost / 0.05) times what moves, x (x - d).
    """
    cost, expected = 0.05, []
    for student, teacher, label in zip(STUDENT, TEACHER, [0, 2], strict=True):
        p, q = (softmax(np.delete(logits, label), 2.0)[0] for logits in (student, teacher))
        d, ratio = p - q, math.exp(2 * cost / 0.05)
        x = max(np.roots([1 - ratio, ratio * d - 1 - d, p * (1 - p + d)]))
        expected.append(cost * (2 * x - d))
    moved = pf.wasserstein(*BOTH, T([0, 2]), cost * (1 - torch.eye(3)), 2.0)
    assert moved.tolist() == pytest.approx(expected, rel=1e-4)
    # Orthogonal and opposite centers.
    assert pf.class_costs(T([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), 0.5)[0].tolist() == pytest.approx(
        [0, 1 - math.exp(-0.5), 1 - math.exp(-1)], abs=1e-6
    )


def test_the_distance_of_wkd_is_left_out_in_the_end() -> None:
    first, half, last = (wkd(ROWS, epoch).mean() for epoch in (150, 195, 240))
    torch.testing.assert_close(half, (first + last) / 2)
    torch.testing.assert_close(last, pf.target_cross_entropy(ROWS, BY, LABELS).mean())
    torch.testing.assert_close(wkd(ROWS, 1).mean(), first)


@pytest.mark.parametrize(("epoch", "strength"), [(5, 0.5), (10, 1.0), (200, 1.0)])
def test_ctkd_raises_the_loss_with_its_temperature(epoch: int, strength: float) -> None:
    level = torch.ones(1, dtype=torch.float64, requires_grad=True)
    expected = pf.kd(*BOTH, 1 + 20 * level.sigmoid())
    (upwards,) = torch.autograd.grad(expected.sum(), level)
    loss = build(LOSSES, "ctkd", Setup(Shapes(3, 1), Shapes(3, 1))).double()
    context = dataclasses.replace(make_context(T([0, 2]), 3), epoch=epoch)
    value = loss(*(Output(x, torch.zeros(2, 1)) for x in BOTH), context)
    value.sum().backward()
    assert value.tolist() == expected.tolist()
    assert loss.level.grad.item() == pytest.approx(-strength * upwards.item())


def test_ckd_by_hand() -> None:
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (STUDENT, TEACHER))
    assert pf.ckd(*BOTH, 0.5).tolist() == pytest.approx(-np.log(np.diag(softmax(t @ s.T, 0.5))))


def test_abkd_by_hand() -> None:
    s, t = softmax(STUDENT, 2.0), softmax(TEACHER, 2.0)
    for a, b in ((0.8, 0.3), (0.5, 0.5), (1.2, -0.2)):
        parts = t**a * s**b - a / (a + b) * t ** (a + b) - b / (a + b) * s ** (a + b)
        assert pf.abkd(*BOTH, a, b, 2.0).tolist() == pytest.approx(-4 * parts.sum(1) / (a * b))
    assert pf.abkd(*BOTH, 1.0, 0.0, 2.0).tolist() == pytest.approx(kd(STUDENT, TEACHER, 2.0))
    assert pf.abkd(*BOTH, 0.0, 1.0, 2.0).tolist() == pytest.approx(kd(TEACHER, STUDENT, 2.0))
    for limit, near in (((0.7, 0.0), (0.7, 1e-5)), ((0.0, 0.7), (1e-5, 0.7))):
        doubles = [x.double() for x in BOTH]
        assert pf.abkd(*doubles, *limit).tolist() == pytest.approx(pf.abkd(*doubles, *near).tolist(), rel=1e-4)


def test_ofa_by_hand() -> None:
    s, t = softmax(STUDENT), softmax(TEACHER)
    is_label = np.eye(3)[[0, 2]]
    assert pf.ofa(*BOTH, T([0, 2])).tolist() == pytest.approx((-t * np.log(s)).sum(1))
    enhanced = (t + is_label) ** 1.5 - is_label
    assert pf.ofa(*BOTH, T([0, 2]), 1.5).tolist() == pytest.approx((-enhanced * np.log(s)).sum(1))


def test_each_stage_answers_by_a_branch_of_its_own() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, channels, side, side) for channels, side in ((3, 8), (4, 8), (6, 4), (8, 2))]
    student, teacher = Output(BOTH[0], torch.zeros(2, 8), tuple(maps)), Output(BOTH[1], torch.zeros(2, 10))
    setup = Setup(Shapes.of(student), Shapes.of(teacher))
    loss = build(LOSSES, "ofa_stages", setup, eps=1.5)
    widths = [[layer.out_channels for layer in b if isinstance(layer, nn.Conv2d)] for b in loss.branches]
    # After the stem; a branch ends as wide as the wider embedding.
    assert widths == [[4, 4, 4, 8, 8, 8, 8, 10], [6, 6, 6, 10], [10]]
    expected = sum(
        pf.ofa(branch(m), BOTH[1], T([0, 2]), 1.5) for branch, m in zip(loss.branches, maps[1:], strict=True)
    )
    torch.testing.assert_close(loss(student, teacher, make_context(T([0, 2]), 3)), expected)
    for student_shapes in (Shapes(3, 8), setup.student._replace(embedding=0)):
        with pytest.raises(NotApplicable, match=r"ofa_stages needs .* maps .*ofa\(stages=0\)"):
            build(LOSSES, "ofa_stages", setup._replace(student=student_shapes, teacher=Shapes(3, 0)))


def test_hard_kd_by_hand() -> None:
    likely = np.log(softmax(STUDENT))[[0, 1], [0, 1]]  # The teacher's classes.
    assert pf.hard_kd(*BOTH).tolist() == pytest.approx((-likely).tolist())


def test_deit_teaches_each_head_its_own() -> None:
    """The class token's head learns the labels, the distillation token's what the teacher says."""
    heads = {"a": T([[0.0, 2.0, 0.0]]), "b": T([[1.0, 0.0, 0.0]])}
    student = Output(T([[0.5, 1.0, 0.0]]), T([[0.0]]), layers=heads)
    teacher = Output(T([[0.0, 0.0, 3.0]]), T([[0.0]]))
    context = make_context(T([1]), 3)
    setup = Setup(Shapes.of(student), Shapes.of(teacher), 1, None)
    of_labels = -math.log(math.e**2 / (math.e**2 + 2))
    for temperature, of_teacher in (
        (0, math.log(math.e + 2)),
        (2, kd(heads["b"].numpy(), teacher.logits.numpy(), 2)[0]),
    ):
        terms = build(METHODS, "deit", head="a", token="b", temperature=temperature)
        values = objective_of(terms, setup)(student, teacher, context)
        assert [float(v) for v in values.values()][:2] == pytest.approx([of_labels / 2, float(of_teacher) / 2])
    for head, reason in (
        ("c", "the student's output has no layer 'c'"),
        ("a", r"'a' returns \[3\] an image, and a head \[2\]"),
    ):
        few = setup._replace(student=setup.student._replace(num_classes=2)) if head == "a" else setup
        with pytest.raises(NotApplicable, match=reason):
            objective_of(build(METHODS, "deit", head=head), few)


def test_dist_by_hand() -> None:
    temperature = 2.0
    s, t = (softmax(x, temperature) for x in (STUDENT, TEACHER))
    inter = [4 * (1 - np.corrcoef(x, y)[0, 1]) for x, y in zip(s, t, strict=True)]
    intra = [4 * (1 - np.corrcoef(x, y)[0, 1]) for x, y in zip(s.T, t.T, strict=True)]
    assert pf.inter_class_relation(*BOTH, temperature).tolist() == pytest.approx(inter)
    assert pf.intra_class_relation(*BOTH, temperature).tolist() == pytest.approx(intra, abs=1e-12)


def test_dist_is_zero_for_perfect_correlation_and_one_without_any() -> None:
    t = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    # Predictions mixed with the uniform one are a linear function of them, and correlate perfectly.
    s = 0.3 * t + 0.7 / 3
    for relation, rows in ((pf.inter_class_relation, 6), (pf.intra_class_relation, 3)):
        torch.testing.assert_close(relation(s.log(), t.log()), torch.zeros(rows), atol=1e-5, rtol=0)
        assert relation(torch.zeros(6, 3), t).tolist() == [1] * rows


def test_mld_levels_by_hand() -> None:
    temperatures = (2.0, 5.0)
    instance, batch, classes = np.zeros(2), np.zeros(2), np.zeros(3)
    for temperature in temperatures:
        s, t = (softmax(x, temperature) for x in (STUDENT, TEACHER))
        instance += kd(STUDENT, TEACHER, temperature)
        batch += ((s @ s.T - t @ t.T) ** 2).sum(1)
        classes += ((s.T @ s - t.T @ t) ** 2).sum(1)
    levels = (pf.instance_alignment, instance), (pf.batch_alignment, batch), (pf.class_alignment, classes)
    for level, expected in levels:
        assert level(*BOTH, temperatures).tolist() == pytest.approx(expected)
        # By default the published temperatures.
        torch.testing.assert_close(level(*BOTH), level(*BOTH, (2, 3, 4, 5, 6)))


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
    objective = objective_of(build(METHODS, "mld"), setup)
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


def make_output(channels: int, side: int) -> Output:
    preact = torch.randn(5, channels, side, side, generator=torch.Generator().manual_seed(channels + side))
    return Output(torch.zeros(5, 3), preact.relu().mean((2, 3)), (preact.relu(),), (preact,))


def make_pair(sides: tuple[int, int] = (4, 4)) -> tuple[Output, Output, Setup]:
    student, teacher = make_output(4, sides[0]), make_output(6, sides[1])
    torch.manual_seed(0)
    classifier = nn.Linear(6, 3)
    teacher = teacher._replace(logits=classifier(teacher.embedding))
    return student, teacher, Setup(Shapes.of(student), Shapes.of(teacher), teacher_classifier=classifier)


def make_context(labels: Tensor, classes: int) -> Context:
    centers = Centers(torch.zeros(classes, 4), torch.zeros(classes, 4))
    return Context(Instances(labels, torch.arange(len(labels))), centers)


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
    student, teacher, setup = make_pair(sides)
    loss = build(LOSSES, "simkd", setup).eval()
    small, target = (nn.functional.adaptive_avg_pool2d(output.maps[0], 4) for output in (student, teacher))
    projected = loss.projector(small)
    expected = (projected - target).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(student, teacher, CONTEXT), expected)
    assert setup.teacher_classifier is not None
    torch.testing.assert_close(loss.predict(student), setup.teacher_classifier(projected.mean((2, 3))))


def test_simkd_has_the_published_projector() -> None:
    loss = build(LOSSES, "simkd(factor=3)", make_pair()[2])
    shapes = [tuple(layer.weight.shape) for layer in loss.projector if isinstance(layer, nn.Conv2d)]
    assert shapes == [(2, 4, 1, 1), (2, 2, 3, 3), (6, 2, 1, 1)]
    assert [type(layer).__name__ for layer in loss.projector] == ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    assert all(layer.bias is None for layer in loss.projector if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("name", ["srrl", "simkd"])
def test_the_teachers_classifier_is_kept_frozen(name: str) -> None:
    _, _, setup = make_pair()
    loss = build(LOSSES, name, setup)
    assert setup.teacher_classifier is not None
    assert not any(key.startswith("classifier") for key, _ in loss.named_parameters())
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


def test_simkd_from_start_to_end(tiny_data: pckd.Data) -> None:
    """The student is measured and handed back with the teacher's classifier; previewing looks at it too."""
    torch.manual_seed(0)
    teacher = BACKBONES.get("wrn_16_1")(3)
    options: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 1}
    result = pckd.distill(
        student="resnet8", teacher=teacher, method="simkd", data=tiny_data, scheduler="preview", **options
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

    objective = objective_of(build(METHODS, "simkd"), setup).eval()
    objective.difficulty = difficulty
    objective.weights(student, teacher, CONTEXT)
    torch.testing.assert_close(seen[0], objective.predict(student))

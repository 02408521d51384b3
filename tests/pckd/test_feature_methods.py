"""Feature and relation methods of 2021 to 2026: cases by hand, numbers of the released code, and their parts.

The released code ran on the inputs written here, in float64; only its numbers are here. What holds for every function
is in test_functional.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pckd import functional as pf
from registry import (
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
DOUBLE = torch.float64


def table(*shape: int, step: float = 0.7) -> Tensor:
    """Numbers that code run elsewhere can make, too: sin(step * n)."""
    return (step * torch.arange(math.prod(shape), dtype=DOUBLE)).sin().reshape(shape)


def make_context(labels: Tensor, centers: Centers | None = None, stage: Any = "main", views: int = 1) -> Context:
    centers = centers or Centers(torch.zeros(1, 1), torch.zeros(1, 1))
    return Context(Instances(labels, torch.arange(len(labels)), views=views), centers, stage=stage)


# ND


def test_norm_and_direction_is_as_released() -> None:
    student = T([[1.0, -2.0, 0.5], [3.0, 1.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    teacher = T([[2.0, 2.0, -1.0], [0.5, 0.5, 1.0]], dtype=DOUBLE)
    centers = T([[1.0, 0.0, 1.0], [0.5, 2.0, -1.0], [3.0, 1.0, 1.0]], dtype=DOUBLE)
    value = pf.norm_and_direction(student, teacher, T([1, 2]), centers)
    # The first is shorter than its teacher (3), the second is longer (sqrt(14)): by hand.
    assert value.tolist() == pytest.approx([1 + 4 / 5.25**0.5 / 3, 1 - 12 / (11 * 14) ** 0.5])
    value.mean().backward()
    assert value.mean().item() == pytest.approx(0.807463408566095, rel=1e-12)
    expected = [-0.036369648372665396, -0.14547859349066158, 0.07273929674533079]
    expected += [-0.017267634943401, -0.005755878314467, 0.028779391572335014]
    assert student.grad is not None
    assert student.grad.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_nd_has_the_class_means_of_all_it_has_seen() -> None:
    loss = build(LOSSES, "nd", Setup(Shapes(3, 2), Shapes(3, 2)))
    student = Output(torch.zeros(2, 3), T([[1.0, 0.0], [0.0, 1.0]]))
    rows = [T([[1.0, 0.0], [3.0, 0.0]]), T([[2.0, 6.0], [5.0, 5.0]])]
    for labels, teacher in zip((T([0, 0]), T([0, 2])), rows, strict=True):
        value = loss(student, Output(torch.zeros(2, 3), teacher), make_context(labels))
    assert loss.means.tolist() == [[2, 2], [0, 0], [5, 5]]
    assert loss.counts.tolist() == [3, 0, 1]
    assert value.tolist() == pytest.approx([1 - 0.5**0.5 / 40**0.5, 1 - 0.5**0.5 / 50**0.5])
    # In evaluation it keeps nothing; and by the center rule it needs nothing.
    loss.eval()(student, Output(torch.zeros(2, 3), rows[0]), make_context(T([1, 1])))
    assert loss.counts.tolist() == [3, 0, 1]
    rule = build(LOSSES, "nd(rule=True)", Setup(Shapes(3, 2), Shapes(3, 2)))
    centers = Centers(torch.zeros(3, 2), T([[0.0, 2.0]] * 3))
    value = rule(student, Output(torch.zeros(2, 3), rows[0]), make_context(T([0, 1]), centers))
    assert value.tolist() == pytest.approx([1, 1 - 1 / 3])


# CAT-KD


def test_class_attention_by_hand() -> None:
    feature_map = T([[[[1.0, 3.0], [5.0, 7.0]], [[2.0, 0.0], [0.0, 2.0]]]])
    centers = T([[1.0, 0.0], [0.5, -1.0]])
    assert pf.class_attention(feature_map, centers).tolist() == [[[[1, 3], [5, 7]], [[-1.5, 1.5], [2.5, 1.5]]]]
    # Averaged to one cell, it is the logits without their bias.
    assert pf.class_attention(feature_map, centers, 1).flatten().tolist() == [4, 1]
    assert pf.class_attention(feature_map, centers, 1, normalized=True).flatten().tolist() == [1, 1]


@pytest.mark.parametrize(
    ("resolution", "normalized", "value", "gradients"),
    [
        (2, False, 0.4569061925884731, (0.07247135489493088, 0.027531023166328487)),
        (3, True, 0.2385159030455378, (0.07549762981492522, 0.008472688454041227)),
    ],
)
def test_class_attention_transfer_is_as_released(
    resolution: int, normalized: bool, value: float, gradients: tuple[float, float]
) -> None:
    maps = table(2, 3, 4, 4).requires_grad_(), table(2, 4, 6, 6, step=0.9)
    centers = table(5, 3, step=1.1).requires_grad_(), table(5, 4, step=1.3)
    found = pf.class_attention_transfer(*maps, *centers, resolution, normalized).mean()
    found.backward()
    assert found.item() == pytest.approx(value, rel=1e-12)
    for tensor, expected in zip((maps[0], centers[0]), gradients, strict=True):
        assert tensor.grad is not None
        assert tensor.grad.norm().item() == pytest.approx(expected, rel=1e-12)


# ITRD, SRD


def test_channel_agreement_by_hand() -> None:
    student, teacher = T([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]]), T([[5.0, 1.0], [7.0, 2.0], [9.0, 3.0]])
    # The first channels correlate fully, the second not at all: |1 - 2/3|^2 and 1.
    assert pf.channel_agreement(student, teacher, 1.0).item() == pytest.approx(math.log2(1 / 9 + 1))


def test_similarity_agreement_by_hand() -> None:
    student, teacher = T([[1.0, 0.0], [3.0, 3.0]]), T([[1.0, 0.0], [1.0, 3.0**0.5]])
    # The student's rows are at 45 degrees, the teacher's at 60: 2 * 1/2 * (1 - 1/4), over 4.
    assert pf.similarity_agreement(student, teacher).item() == pytest.approx(0.75 / 4)


@pytest.mark.parametrize(
    ("loss", "width", "value", "gradient"),
    [
        ("itrd(correlation=1, mutual=0)", 3, 3.2941077466910675, 0.8177555443854473),
        ("itrd(correlation=0, mutual=1)", 3, 0.35029193665650693, 0.08813052458537952),
        ("itrd(correlation=1, mutual=0)", 4, 0.775414253976703, 1.4686450926958872),
        ("itrd(correlation=0, mutual=1)", 4, 0.17434163825413881, 0.18470184956199914),
        ("srd", 3, 5.710206342037888, 0.42252129169396635),
    ],
)
def test_losses_of_projected_embeddings_are_as_released(loss: str, width: int, value: float, gradient: float) -> None:
    made = build(LOSSES, loss, Setup(Shapes(5, width), Shapes(5, 4))).double()
    made.load_state_dict({"embed.weight": table(4, width, step=0.3), "embed.bias": table(4, step=0.5)})
    student, teacher = table(5, width).requires_grad_(), table(5, 4, step=0.9)
    found = made(Output(student, student), Output(teacher, teacher), make_context(torch.arange(5)))
    found.backward()
    assert student.grad is not None
    assert found.item() == pytest.approx(value, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(gradient, rel=1e-12)


def test_log_sum_distance_by_hand() -> None:
    student, teacher = T([[1.0], [3.0]], dtype=DOUBLE), T([[9.0], [5.0]], dtype=DOUBLE)
    # Each is -1 and 1 after normalization, but for the epsilon, and the other way round.
    one, other = 1 / 1.0001**0.5, 2 / 4.0001**0.5
    assert pf.log_sum_distance(student, teacher, 3).item() == pytest.approx(math.log(2 * (one + other) ** 3))


def test_catkd_reads_a_map_by_the_path_of_its_module() -> None:
    feature_map, seen = torch.ones(2, 3, 2, 2), torch.ones(2, 4, 2, 2)
    student = Output(torch.zeros(2, 5), torch.zeros(2, 3), (), (), layers={"bn2": feature_map - 2})
    teacher = Output(torch.zeros(2, 5), torch.ones(2, 4), (seen,), ())
    setup = Setup(Shapes.of(student), Shapes.of(teacher))
    loss = build(LOSSES, "catkd(student='bn2')", setup)
    centers = Centers(torch.ones(5, 3), torch.ones(5, 4))
    # The student's map is below 0, and nothing after its ReLU; the teacher's cells say 4 of each class.
    assert loss(student, teacher, make_context(T([0, 1]), centers)).tolist() == [16, 16]
    for name in ("catkd", "catkd(student='bn3')", "catkd(student='bn2', teacher='bn2')"):
        with pytest.raises(NotApplicable, match=r"^catkd needs the map whose mean the .* name its module"):
            build(LOSSES, name, setup)


# NORM


def test_n_to_one_by_hand() -> None:
    teacher = T([[[[1.0, 2.0], [3.0, 4.0]]]])
    student = T([[[[4.0]], [[1.0]]]])
    # The teacher's largest cell is 4: the two groups are off by 0 and 3.
    assert pf.n_to_one(student, teacher).tolist() == [9]
    assert pf.n_to_one(teacher.repeat(1, 3, 1, 1) - 2, T([[[[1.0]]]])).tolist() == [3]


@pytest.mark.parametrize(
    ("epoch", "value", "gradient"),
    [(20, 8.520457449521395, 0.6664320423806535), (180, 5.004702277439353, 0.6281981412069783)],
)
def test_norm_is_as_released(epoch: int, value: float, gradient: float) -> None:
    feature_map, target = table(3, 3, 2, 2).requires_grad_(), table(3, 2, 4, 4, step=0.9)
    student = Output(torch.zeros(3, 5), feature_map.mean((2, 3)), (feature_map,))
    teacher = Output(table(3, 5, step=1.7), target.mean((2, 3)), (target,))
    loss = build(LOSSES, "norm(groups=4, kd=0.3)", Setup(Shapes.of(student), Shapes.of(teacher))).double()
    weights = {"expand.0.weight": table(8, 3, 1, 1, step=0.3), "reduce.0.weight": table(3, 8, 1, 1, step=0.5)}
    weights |= {"classifier.weight": table(5, 3, step=1.1), "classifier.bias": table(5, step=0.2)}
    loss.load_state_dict({**loss.state_dict(), **weights})
    found = loss(student, teacher, replace(make_context(T([0, 3, 4])), epoch=epoch)).mean()
    found.backward()
    assert feature_map.grad is not None
    assert found.item() == pytest.approx(value, rel=1e-12)
    assert feature_map.grad.norm().item() == pytest.approx(gradient, rel=1e-11)
    # Its head answers, with the statistics that it has kept.
    answer = loss.eval().predict(student)
    assert answer.mean(1).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert answer.std(1, unbiased=False).tolist() == pytest.approx([2.5] * 3, rel=1e-5)


# SemCKD


def test_calibrated_difference_by_hand() -> None:
    def cell(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value)

    pairs = [[(cell(1.0), cell(3.0)), (cell(0.0), cell(1.0))], [(cell(2.0), cell(2.0)), (cell(5.0), cell(2.0))]]
    attention = T([[[0.25, 0.75], [0.5, 0.5]]])
    assert pf.calibrated_difference(pairs, attention).tolist() == [(0.25 * 4 + 0.75 * 1 + 0.5 * 9) / 2]


@pytest.mark.parametrize("rows", [8, 16])
def test_semckd_is_as_released(rows: int) -> None:
    """In steps of as many images as it is made for; of two such steps each is looked at alone."""
    stem = torch.zeros(8, 1, 1, 1, dtype=DOUBLE)
    student = (stem, table(8, 2, 4, 4).requires_grad_(), table(8, 3, 2, 2, step=0.8).requires_grad_())
    teacher = (stem, table(8, 3, 4, 4, step=0.9), table(8, 2, 2, 2, step=1.1))
    flat = torch.zeros(8, 1)
    outputs = Output(flat, flat, student), Output(flat, flat, teacher)
    loss = build(LOSSES, "semckd(rows=8)", Setup(*map(Shapes.of, outputs))).double()
    for position, (name, parameter) in enumerate(loss.named_parameters()):
        if parameter.ndim > 1 or name.startswith(("keys", "queries")):
            parameter.data = table(*parameter.shape, step=0.3 + 0.01 * position)
    double = [output.apply(lambda x: x.repeat(rows // 8, *[1] * (x.ndim - 1))) for output in outputs]
    value = loss(*double, make_context(torch.arange(rows))).mean()
    value.backward()
    assert value.item() == pytest.approx(2.441093637367259, rel=1e-12)
    for feature_map, expected in zip(student[1:], (0.32693110851423995, 0.3817928765150125), strict=True):
        assert feature_map.grad is not None
        assert feature_map.grad.norm().item() == pytest.approx(expected, rel=1e-9)


def test_semckd_fills_up_a_smaller_step() -> None:
    outputs = [Output(torch.zeros(4, 1), torch.zeros(4, 1), (torch.ones(4, 2, 2, 2),) * 2) for _ in range(2)]
    loss = build(LOSSES, "semckd(rows=8)", Setup(*map(Shapes.of, outputs)))
    # A row is as like as 8 to each of the four, and as 0 to those that are not there.
    seen: list[Tensor] = []
    loss.queries[0].register_forward_pre_hook(lambda _, given: seen.extend(given))
    assert loss(*outputs, make_context(torch.arange(4))).shape == (4,)
    assert seen[0].tolist() == [[8.0] * 4 + [0.0] * 4] * 4


# ViTKD


def of_patches(student: Tensor, teacher: Tensor) -> tuple[Output, Output]:
    absent = torch.zeros(len(student), 1)
    return tuple(Output(absent, absent, (), (), layers={"norm": m}) for m in (student, teacher))  # type: ignore


def test_vitkd_is_as_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two layers that are mimicked and one that is generated, with the released mask."""
    paths = {"student": "norm", "teacher": "norm"}
    values, gradients = [], []
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: table(*shape, step=2.1))
    for layer in range(3):
        own = table(2, 3, 2, 2, step=0.7 + 0.1 * layer).requires_grad_()
        outputs = of_patches(own, table(2, 4, 2, 2, step=0.9 + 0.1 * layer))
        loss = build(
            LOSSES, ("vitkd_mimicking", "vitkd_generation")[layer // 2], Setup(*map(Shapes.of, outputs)), **paths
        )
        loss = loss.double()
        step, bias = (0.5 + layer, 0.6 + layer) if layer < 2 else (0.3, 0.4)
        loss.align.weight.data, loss.align.bias.data = table(4, 3, 1, 1, step=step), table(4, step=bias)
        if layer == 2:
            loss.token.data = table(1, 4, 1, 1, step=1.3)
            for k in (0, 2):
                loss.generate[k].weight.data = table(4, 4, 3, 3, step=0.2 + k)
                loss.generate[k].bias.data = table(4, step=0.25 + k)
        value = loss(*outputs, make_context(T([0, 1]))).mean()
        value.backward()
        assert own.grad is not None
        values.append(value.item())
        gradients.append(own.grad.norm().item())
    assert [values[0] + values[1], values[2]] == pytest.approx([43.0976068063921, 38.08335818800075], rel=1e-12)
    assert gradients == pytest.approx([5.503254744724919, 11.707875123868641, 40.93267817400376], rel=1e-12)


def test_as_many_cells_of_each_image_are_masked() -> None:
    masked = pf.masked_cells(torch.Size((5, 9, 3, 3)), 0.5, torch.device("cpu"))
    assert masked.shape == (5, 1, 3, 3)
    assert masked.sum((1, 2, 3)).tolist() == [5] * 5


def test_vitkd_names_layers_of_both_networks() -> None:
    terms = build(METHODS, "vitkd(student='blocks.0, blocks.1,norm', teacher='b.1,b.2,ln')")
    named = [(term.options["student"], term.options["teacher"]) for term in terms[1:]]
    assert named == [("blocks.0", "b.1"), ("blocks.1", "b.2"), ("norm", "ln")]
    assert [term.loss for term in terms] == ["cross_entropy", *["vitkd_mimicking"] * 2, "vitkd_generation"]
    for wrong in ("vitkd(student='norm')", "vitkd(teacher='a,b')"):
        with pytest.raises(UserError, match=r"^vitkd: \d layers of the student and \d of the teacher"):
            build(METHODS, wrong)
    # Named by nobody, as where all methods are compared.
    with pytest.raises(NotApplicable, match=r"^vitkd is for vision transformers.*'blocks\.0,blocks\.1,norm'"):
        build(LOSSES, "vitkd_mimicking", Setup(Shapes(2, 2), Shapes(2, 2)), **build(METHODS, "vitkd")[1].options)
    outputs = of_patches(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4))
    with pytest.raises(
        NotApplicable, match=r"the student's 'norm' gives \[2, 3, 3\] an image, the teacher's 'norm' \["
    ):
        build(LOSSES, "vitkd_mimicking(student='norm', teacher='norm')", Setup(*map(Shapes.of, outputs)))


# HSAKD


def test_joint_labels_by_hand() -> None:
    assert pf.joint_labels(T([2, 2, 2, 2, 0, 0, 0, 0]), 4).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]


def test_hsakd_is_as_released() -> None:
    """The heads of a resnet8: first the teacher's learn, then it is they that are learned from."""
    stem, labels = torch.zeros(8, 1, 1, 1, dtype=DOUBLE), T([0, 0, 0, 0, 1, 1, 1, 1])
    shapes = ((2, 8), (3, 4), (4, 2))
    own = [table(8, c, h, h, step=0.7 + 0.1 * i).requires_grad_() for i, (c, h) in enumerate(shapes)]
    theirs = [table(8, c + 1, h, h, step=1.7 + 0.1 * i) for i, (c, h) in enumerate(shapes)]
    student, teacher = (Output(torch.zeros(8, 2), torch.zeros(8, 1), (stem, *maps)) for maps in (own, theirs))
    loss = build(LOSSES, "hsakd", Setup(Shapes.of(student), Shapes.of(teacher))).double()
    for heads, step in ((loss.student_heads, 0.3), (loss.teacher_heads, 0.5)):
        for i, head in enumerate(heads, 1):
            for j, parameter in enumerate(head.parameters()):
                if parameter.ndim > 1:
                    parameter.data = table(*parameter.shape, step=step + 0.01 * j + 0.1 * i)
    value = loss(student, teacher, make_context(labels, stage="initial", views=4)).mean()
    assert value.item() == pytest.approx(7.331269914178715, rel=1e-12)
    value.backward()
    assert all((p.grad is None) == name.startswith("student") for name, p in loss.named_parameters())
    kept = {name: buffer.clone() for name, buffer in loss.teacher_heads.named_buffers()}
    loss.zero_grad()
    value = loss(student, teacher, make_context(labels, views=4)).mean()
    assert value.item() == pytest.approx(10.229873945285231, rel=1e-12)
    value.backward()
    assert all((p.grad is None) == name.startswith("teacher") for name, p in loss.named_parameters())
    assert all(torch.equal(buffer, kept[name]) for name, buffer in loss.teacher_heads.named_buffers())
    for feature_map, expected in zip(own, (1.7808120658710618, 1.9376653301130933, 0.3913378091213386), strict=True):
        assert feature_map.grad is not None
        assert feature_map.grad.norm().item() == pytest.approx(expected, rel=1e-10)

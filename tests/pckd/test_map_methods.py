"""Methods that compare feature maps: published numbers, cases computed by hand, degenerate maps, stages, pairings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pckd
from model_zoo import probe
from pckd import functional as pf
from pckd.losses.maps import regressor
from pckd.objective import Objective
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

Maps = Sequence[Tensor]
METHOD_NAMES = ("fitnet", "at", "sp", "nst", "fsp", "ft", "ab", "kdsvd", "vid", "ofd", "reviewkd")

# The functions, all of them as f(student_maps, teacher_maps, margins); the maps have equal widths.

FUNCTIONS: dict[str, Callable[[Maps, Maps, Maps], Tensor]] = {
    "attention_transfer": lambda s, t, m: pf.attention_transfer(s, t),
    "attention_transfer_p1": lambda s, t, m: pf.attention_transfer(s, t, p=1),
    "similarity_preserving": lambda s, t, m: pf.similarity_preserving(s[-1], t[-1]),
    "nst": lambda s, t, m: pf.nst(s, t),
    "factor_transfer": lambda s, t, m: pf.factor_transfer(s[-1], t[-1]),
    "fsp": lambda s, t, m: pf.fsp(s, t),
    "kdsvd": lambda s, t, m: pf.kdsvd(s, t),
    "kdsvd_k2": lambda s, t, m: pf.kdsvd(s, t, k=2),
    "activation_boundary": lambda s, t, m: pf.activation_boundary(s, t),
    "ofd": lambda s, t, m: pf.ofd(s, t, m),
    "hint": lambda s, t, m: pf.hint(s[0], t[0]),
    "hierarchical_context": lambda s, t, m: pf.hierarchical_context(s, t),
    "vid": lambda s, t, m: pf.vid(s[0], t[0], m[0].detach()),
}
ANY_WIDTHS = ("attention_transfer", "attention_transfer_p1", "similarity_preserving", "nst", "factor_transfer")
LAST_ONLY = ("similarity_preserving", "factor_transfer")
SHAPES = ((3, 6, 6), (4, 6, 6), (5, 3, 3))


def make_maps(
    rows: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def make_margins(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [-torch.linspace(0.2, 0.9, shape[0], dtype=dtype) for shape in SHAPES]


# Published numbers


def golden_maps(golden: Any, name: str) -> list[Tensor]:
    return [golden[f"{name}{i}"] for i in range(3)]


GOLDEN: dict[str, Callable[[Any], Tensor]] = {
    "attention_transfer_p2_sum": lambda g: pf.attention_transfer(
        golden_maps(g, "student_map"), golden_maps(g, "teacher_map")
    ),
    "nst_sum": lambda g: pf.nst(golden_maps(g, "student_map"), golden_maps(g, "teacher_map")),
    "similarity_preserving_lastmap": lambda g: pf.similarity_preserving(g["student_map2"], g["teacher_map2"]),
    "factor_transfer_lastmap": lambda g: pf.factor_transfer(g["student_map2"], g["teacher_map2"]),
    "fsp_sum": lambda g: pf.fsp(golden_maps(g, "student_map"), golden_maps(g, "teacher_map_samewidth")),
    "kdsvd_sum_samewidth": lambda g: pf.kdsvd(golden_maps(g, "student_map"), golden_maps(g, "teacher_map_samewidth")),
    "reviewkd_hcl": lambda g: pf.hierarchical_context(
        golden_maps(g, "student_map"), golden_maps(g, "teacher_map_samewidth")
    ),
    "ab_sum": lambda g: pf.activation_boundary(golden_maps(g, "student_preact"), golden_maps(g, "teacher_preact")),
    "hint_mse": lambda g: pf.hint(g["student_map1"], g["teacher_map_samewidth1"]),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_golden(golden: Any, key: str) -> None:
    value = GOLDEN[key](golden)
    assert value.shape == golden["labels"].shape
    # The published numbers are as small as 1e-3: an absolute tolerance of 1e-5 would be a wide one.
    assert value.mean().item() == pytest.approx(golden[f"expected_{key}"].item(), rel=1e-4)


def test_golden_vid(golden: Any) -> None:
    """Through the loss, with the published regressor in the place of its own."""
    stem = torch.zeros(len(golden["labels"]), 1, 1, 1)
    student = golden.student._replace(maps=(stem, golden["student_map1"]))
    teacher = golden.teacher._replace(maps=(stem, golden["teacher_map1"]))
    loss = build(LOSSES, "vid", Setup(Shapes.of(student), Shapes.of(teacher)))
    convolutions = {f"regressors.0.{2 * i}.weight": golden[f"vid_conv{i}"] for i in range(3)}
    loss.load_state_dict({**convolutions, "log_scales.0": golden["vid_log_scale"]})
    value = loss(student, teacher, golden.context())
    assert value.mean().item() == pytest.approx(golden["expected_vid_map1"].item(), rel=1e-4)


# Cases computed by hand, in float64 with plain loops


def test_attention_transfer_by_hand() -> None:
    student, teacher = make_maps(seed=1), make_maps(seed=2)

    def attention(feature_map: Tensor, p: float) -> list[float]:
        channels, height, width = feature_map.shape
        values = [
            sum(abs(feature_map[c, y, x].item()) ** p for c in range(channels)) / channels
            for y, x in product(range(height), range(width))
        ]
        length = math.sqrt(sum(v * v for v in values))
        return [v / length for v in values]

    for p in (1, 2, 3):
        expected = [0.0] * 4
        for s, t in zip(student, teacher, strict=True):
            for n in range(4):
                pairs = zip(attention(s[n], p), attention(t[n], p), strict=True)
                differences = [(a - b) ** 2 for a, b in pairs]
                expected[n] += sum(differences) / len(differences)
        assert pf.attention_transfer(student, teacher, p).tolist() == pytest.approx(expected, rel=1e-4)
    expected = [
        np.mean([abs(a - b) for a, b in zip(attention(s, 2), attention(t, 2), strict=True)])
        for s, t in zip(student[2], teacher[2], strict=True)
    ]
    assert pf.factor_transfer(student[2], teacher[2]).tolist() == pytest.approx(expected, rel=1e-4)


def test_similarity_preserving_by_hand() -> None:
    student, teacher = make_maps(seed=1)[1], make_maps(seed=2)[2]

    def rows(feature_map: Tensor) -> np.ndarray:
        flat = feature_map.flatten(1).double().numpy()
        gram = np.array([[float(np.dot(a, b)) for b in flat] for a in flat])
        return gram / np.sqrt((gram**2).sum(1, keepdims=True))

    difference = rows(teacher) - rows(student)
    value = pf.similarity_preserving(student, teacher)
    assert value.mean().item() == pytest.approx((difference**2).sum() / 16, rel=1e-4)
    assert value.tolist() == pytest.approx(((difference**2).sum(1) / 4).tolist(), rel=1e-4)


def test_nst_by_hand() -> None:
    student, teacher = make_maps(seed=1)[:2], make_maps(seed=2)[:2]
    teacher[0] = make_maps(seed=3)[1]

    def kernel(a: Tensor, b: Tensor) -> float:
        left, right = (m.flatten(1).double().numpy() for m in (a, b))
        values = [
            (np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)) ** 2 for x, y in product(list(left), list(right))
        ]
        return sum(values) / len(values)

    expected = [
        sum(
            kernel(t[n], t[n]) + kernel(s[n], s[n]) - 2 * kernel(s[n], t[n])
            for s, t in zip(student, teacher, strict=True)
        )
        for n in range(4)
    ]
    assert pf.nst(student, teacher).tolist() == pytest.approx(expected, rel=1e-4)


def test_fsp_by_hand() -> None:
    student, teacher = make_maps(seed=1), make_maps(seed=2)

    def flow(first: Tensor, second: Tensor) -> np.ndarray:
        bottom, top = first.double().numpy(), second.double().numpy()
        if bottom.shape[1] > top.shape[1]:
            bottom = bottom.reshape(bottom.shape[0], 3, 2, 3, 2).mean((2, 4))
        height, width = top.shape[1:]
        return np.array(
            [
                [
                    sum(a[y, x] * b[y, x] for y, x in product(range(height), range(width))) / (height * width)
                    for b in top
                ]
                for a in bottom
            ]
        )

    expected = [
        sum(
            ((flow(student[i][n], student[i + 1][n]) - flow(teacher[i][n], teacher[i + 1][n])) ** 2).mean()
            for i in range(2)
        )
        for n in range(4)
    ]
    assert pf.fsp(student, teacher).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd_by_hand(k: int) -> None:
    student, teacher = make_maps(seed=1), make_maps(seed=2)

    def vectors(feature_map: Tensor) -> tuple[np.ndarray, np.ndarray]:
        matrix = feature_map.double().flatten(1).numpy().T
        _, values, rows = np.linalg.svd(matrix, full_matrices=False)
        return values, rows

    def layer(s: Tensor, t: Tensor) -> tuple[np.ndarray, np.ndarray]:
        values, wanted = vectors(t)
        scale = values[:k] / np.linalg.norm(values[:k])
        candidates = vectors(s)[1][: k + 3]
        chosen = []
        for vector in wanted[:k]:
            cosines = [float(np.dot(c, vector)) for c in candidates]
            best = max(range(len(cosines)), key=lambda i: abs(cosines[i]))
            chosen.append(candidates[best] * np.sign(cosines[best]))
        return scale[:, None] * np.array(chosen), scale[:, None] * wanted[:k]

    def relation(now: np.ndarray, before: np.ndarray) -> np.ndarray:
        pairs = zip(now, before, strict=True)
        return np.array([[[math.exp(-((a - b) ** 2) / 8) for b in w] for a in v] for v, w in pairs])

    for n, value in enumerate(pf.kdsvd(student, teacher, k).tolist()):
        layers = [layer(s[n], t[n]) for s, t in zip(student, teacher, strict=True)]
        expected = 0.0
        for before, now in pairwise(layers):
            expected += ((relation(now[0], before[0]) - relation(now[1], before[1])) ** 2).sum()
        assert value == pytest.approx(expected, rel=1e-3)


def test_activation_boundary_by_hand() -> None:
    student, teacher = make_maps(seed=1), make_maps(seed=2)
    teacher[0][0, 0, 0, 0] = 0.0  # counts as off
    for margin in (1.0, 0.3):
        expected = [0.0] * 4
        for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
            for n in range(4):
                total = 0.0
                for a, b in zip(s[n].flatten().tolist(), t[n].flatten().tolist(), strict=True):
                    if b <= 0 and a > -margin:
                        total += (a + margin) ** 2
                    if b > 0 and a <= margin:
                        total += (a - margin) ** 2
                expected[n] += total * 2 ** (i - 2) * 3 / 1000
        assert pf.activation_boundary(student, teacher, margin).tolist() == pytest.approx(expected, rel=1e-4)


def test_ofd_by_hand() -> None:
    student, teacher, margins = make_maps(seed=1), make_maps(seed=2), make_margins()
    expected = [0.0] * 4
    for i, (s, t, m) in enumerate(zip(student, teacher, margins, strict=True)):
        for n, c, y, x in product(*map(range, s.shape)):
            a, b, low = s[n, c, y, x].item(), t[n, c, y, x].item(), m[c].item()
            if b > 0:
                error = a - b
            elif b > low:
                error = max(0.0, a - b)
            else:
                error = max(0.0, a - low)
            expected[n] += error**2 * 2 ** (i - 2)
    assert pf.ofd(student, teacher, margins).tolist() == pytest.approx(expected, rel=1e-4)


def test_negative_means_by_hand() -> None:
    preact = torch.tensor([[[[-1.0, 2.0]], [[0.0, 5.0]]], [[[-4.0, 3.0]], [[1.0, 0.0]]]])
    means, counts = pf.negative_means(preact)
    assert means.tolist() == [-2.5, 0]
    assert counts.tolist() == [2, 0]


def test_hint_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[3.0, 2.0]]], [[[1.0, -3.0]]]])
    assert pf.hint(student, teacher).tolist() == [2.0, 5.0]


def test_vid_by_hand() -> None:
    mean, target = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]]), torch.tensor([[[[2.0, 3.0]], [[2.0, -1.0]]]])
    log_scale = torch.tensor([0.0, 1.5])
    variances = [math.log(1 + math.exp(v)) + 1e-5 for v in (0.0, 1.5)]
    squares = [(1, 0), (4, 1)]
    expected = sum((sq / v + math.log(v)) / 2 for v, pair in zip(variances, squares, strict=True) for sq in pair) / 4
    assert pf.vid(mean, target, log_scale).tolist() == pytest.approx([expected])


def test_hierarchical_context_by_hand() -> None:
    student, teacher = (
        make_maps(seed=1, shapes=((2, 8, 8), (3, 2, 2))),
        make_maps(seed=2, shapes=((2, 8, 8), (3, 2, 2))),
    )

    def error(n: int, i: int, size: int) -> float:
        grids = []
        for side in (student, teacher):
            array = side[i][n].double().numpy()
            step = array.shape[1] // size
            grids.append(array.reshape(array.shape[0], size, step, size, step).mean((2, 4)))
        return float(((grids[0] - grids[1]) ** 2).mean())

    expected = [
        (error(n, 0, 8) + error(n, 0, 4) / 2 + error(n, 0, 2) / 4 + error(n, 0, 1) / 8) / 1.875
        + (error(n, 1, 2) + error(n, 1, 1) / 2) / 1.5
        for n in range(4)
    ]
    assert pf.hierarchical_context(student, teacher).tolist() == pytest.approx(expected, rel=1e-4)


# Sizes and counts


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(("fsp", "kdsvd", "similarity"))])
def test_the_larger_map_is_pooled(name: str) -> None:
    small, large = make_maps(seed=1), [F.interpolate(m, scale_factor=2.0) for m in make_maps(seed=2)]
    pooled = make_maps(seed=2)
    margins = make_margins()
    torch.testing.assert_close(FUNCTIONS[name](small, large, margins), FUNCTIONS[name](small, pooled, margins))
    if name != "vid":
        torch.testing.assert_close(FUNCTIONS[name](large, small, margins), FUNCTIONS[name](pooled, small, margins))


def test_maps_that_are_larger_along_one_axis_only_are_pooled_along_it() -> None:
    a, b = pf.matched(torch.rand(2, 3, 4, 2), torch.rand(2, 5, 2, 6))
    assert a.shape == (2, 3, 2, 2)
    assert b.shape == (2, 5, 2, 2)


def test_maps_are_paired_from_the_last() -> None:
    assert pf.paired("abcd", "vwxyz") == [("a", "w"), ("b", "x"), ("c", "y"), ("d", "z")]
    assert pf.paired("abc", "z") == [("c", "z")]
    assert pf.paired("abc", "") == []
    student, teacher = make_maps(seed=1), make_maps(seed=2)
    for function in (pf.attention_transfer, pf.nst, pf.fsp, pf.kdsvd, pf.activation_boundary, pf.hierarchical_context):
        torch.testing.assert_close(function([torch.ones(4, 9, 2, 2), *student], teacher), function(student, teacher))
        torch.testing.assert_close(function(student, [torch.ones(4, 9, 2, 2), *teacher]), function(student, teacher))


@pytest.mark.parametrize("name", ANY_WIDTHS)
def test_widths_may_differ(name: str) -> None:
    wider = make_maps(seed=3, shapes=[(c + 2, h, w) for c, h, w in SHAPES])
    value = FUNCTIONS[name](make_maps(), wider, make_margins())
    assert value.shape == (4,)
    assert value.isfinite().all()


# Gradients


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_derivative(name: str) -> None:
    double = torch.float64
    student, teacher = (make_maps(2, seed, double) for seed in (1, 2))
    margins = make_margins(double)

    def loss(*maps: Tensor) -> Tensor:
        return FUNCTIONS[name](maps, teacher, margins)

    assert torch.autograd.gradcheck(loss, [m.requires_grad_() for m in student], rtol=1e-3, atol=1e-6)


def test_gradient_of_vid_reaches_the_scale() -> None:
    mean, target = (make_maps(2, seed, torch.float64)[0] for seed in (1, 2))
    scale = torch.linspace(-1, 2, 3, dtype=torch.float64)
    inputs = (mean.requires_grad_(), scale.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: pf.vid(m, target, s), inputs)


def test_gradient_of_kdsvd_where_there_are_more_channels_than_positions() -> None:
    shapes = ((3, 5, 5), (9, 2, 2))
    student, teacher = (make_maps(2, seed, torch.float64, shapes) for seed in (1, 2))
    inputs = [m.requires_grad_() for m in student]
    assert torch.autograd.gradcheck(lambda *maps: pf.kdsvd(maps, teacher), inputs, rtol=1e-3, atol=1e-6)


def degenerate_zeros(maps: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(m) for m in maps]


def degenerate_identical_rows(maps: list[Tensor]) -> list[Tensor]:
    return [m[:1].expand_as(m).clone() for m in maps]


def degenerate_identical_channels(maps: list[Tensor]) -> list[Tensor]:
    return [m[:, :1].expand_as(m).clone() for m in maps]


def degenerate_orthogonal_channels(maps: list[Tensor]) -> list[Tensor]:
    """Equal singular values."""
    return [torch.eye(m.shape[1], m[0, 0].numel()).view(1, m.shape[1], *m.shape[2:]).expand_as(m).clone() for m in maps]


def degenerate_one_dead_channel(maps: list[Tensor]) -> list[Tensor]:
    return [torch.cat([torch.zeros_like(m[:, :1]), m[:, 1:]], 1) for m in maps]


def degenerate_one_image(maps: list[Tensor]) -> list[Tensor]:
    return [m[:1] for m in maps]


def degenerate_huge(maps: list[Tensor]) -> list[Tensor]:
    return [m.sign() * 1e4 for m in maps]


def degenerate_tiny(maps: list[Tensor]) -> list[Tensor]:
    return [m * 1e-30 for m in maps]


def degenerate_half(maps: list[Tensor]) -> list[Tensor]:
    return [m.bfloat16() for m in maps]


def degenerate_one_pixel(maps: list[Tensor]) -> list[Tensor]:
    return [m[:, :, :1, :1].clone() for m in maps]


DEGENERATE = [value for key, value in list(globals().items()) if key.startswith("degenerate_")]


@pytest.mark.parametrize("autocast", [False, True], ids=["exact", "autocast"])
@pytest.mark.parametrize("teacher_too", [False, True], ids=["student", "both"])
@pytest.mark.parametrize("batch", DEGENERATE)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_degenerate_maps_are_finite(
    name: str, batch: Callable[[list[Tensor]], list[Tensor]], teacher_too: bool, autocast: bool
) -> None:
    student, teacher = batch(make_maps(seed=1)), make_maps(seed=2)
    teacher = batch(teacher) if teacher_too or batch is degenerate_one_image else teacher
    student = [m.requires_grad_() for m in student]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = FUNCTIONS[name](student, teacher, make_margins())
        value.mean().backward()
    assert value.dtype == torch.float32
    assert value.shape == (len(student[0]),)
    assert value.isfinite().all()
    assert all(m.grad is None or m.grad.isfinite().all() for m in student)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_student_equal_to_teacher_has_a_finite_gradient(name: str) -> None:
    student, teacher = [m.requires_grad_() for m in make_maps()], make_maps()
    FUNCTIONS[name](student, teacher, make_margins()).mean().backward()
    assert all(m.grad is None or m.grad.isfinite().all() for m in student)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_does_not_cost_precision(name: str) -> None:
    arguments = make_maps(seed=1), make_maps(seed=2), make_margins()
    exact = FUNCTIONS[name](*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(FUNCTIONS[name](*arguments), exact)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_teacher_is_a_constant(name: str) -> None:
    student, teacher = ([m.requires_grad_() for m in make_maps(seed=seed)] for seed in (1, 2))
    margins = [m.requires_grad_() for m in make_margins()]
    FUNCTIONS[name](student, teacher, margins).mean().backward()
    assert all(m.grad is None for m in (*teacher, *margins))
    assert any(m.grad is not None and m.grad.any() for m in student)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_permuting_the_batch_permutes_the_values(name: str) -> None:
    student, teacher, margins = make_maps(seed=1), make_maps(seed=2), make_margins()
    order = torch.tensor([2, 0, 3, 1])
    value = FUNCTIONS[name](student, teacher, margins)
    permuted = FUNCTIONS[name]([m[order] for m in student], [m[order] for m in teacher], margins)
    torch.testing.assert_close(permuted, value[order], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(value[order], value)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not n.startswith(("vid", "activation", "ofd"))])
def test_zero_at_equality(name: str) -> None:
    maps = make_maps()
    torch.testing.assert_close(FUNCTIONS[name](maps, maps, make_margins()), torch.zeros(4), rtol=0, atol=1e-6)


def test_zero_on_the_right_side_of_the_boundary() -> None:
    teacher, margins = make_maps(), make_margins()
    beyond = [torch.where(t > 0, 1.5, -1.5) for t in teacher]
    assert pf.activation_boundary(beyond, teacher).tolist() == [0] * 4
    assert (pf.activation_boundary(teacher, teacher) > 0).all()
    target = [torch.maximum(t, m[:, None, None]) for t, m in zip(teacher, margins, strict=True)]
    # What is off may be as far off as it likes.
    lower = [torch.where(t > 0, t, t - 3) for t in target]
    assert pf.ofd(target, teacher, margins).tolist() == [0] * 4
    assert pf.ofd(lower, teacher, margins).tolist() == [0] * 4


# Plug-ins


def make_output(maps: Maps, preacts: Maps | None = None, seed: int = 0) -> Output:
    generator = torch.Generator().manual_seed(seed)
    rows = len(maps[0])
    embedding = torch.randn(rows, maps[-1].shape[1], generator=generator)
    return Output(
        torch.randn(rows, 3, generator=generator), embedding, tuple(maps), tuple(maps if preacts is None else preacts)
    )


def make_context(rows: int, stage: Any = "main", epoch: int = 1, epochs: int = 240) -> Context:
    centers = Centers(torch.zeros(3, 5), torch.zeros(3, 5))
    return Context(
        Instances(torch.arange(rows) % 3, torch.arange(rows)), centers, stage=stage, epoch=epoch, epochs=epochs
    )


NETWORK_SHAPES: dict[str, Shapes] = {}


def shapes_of(name: str) -> Shapes:
    if name not in NETWORK_SHAPES:
        NETWORK_SHAPES[name] = probe(BACKBONES.get(name)(10), 3, (32, 32), name=name)
    return NETWORK_SHAPES[name]


def fake(shapes: Shapes, rows: int = 2, seed: int = 0, grad: bool = False) -> Output:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(grad)

    maps, preacts = (tuple(normal(rows, *shape) for shape in side) for side in (shapes.maps, shapes.preacts))
    return Output(normal(rows, shapes.num_classes), normal(rows, shapes.embedding), maps, preacts)


# Thin stand-ins of the families: the counts, sizes and whether widths agree are the networks', the widths are smaller.
FAMILIES: dict[str, Shapes] = {
    "resnet": Shapes(3, 8, *2 * (((4, 16, 16), (4, 16, 16), (6, 8, 8), (8, 4, 4)),)),
    "resnet_x4": Shapes(3, 12, *2 * (((5, 16, 16), (8, 16, 16), (10, 8, 8), (12, 4, 4)),)),
    "vgg": Shapes(3, 10, *2 * (((6, 16, 16), (7, 8, 8), (8, 4, 4), (10, 2, 2), (10, 2, 2)),)),
    "MobileNetV2": Shapes(3, 16, *2 * (((4, 8, 8), (3, 8, 8), (4, 4, 4), (6, 2, 2), (9, 1, 1)),)),
    "ShuffleV2": Shapes(3, 14, *2 * (((4, 16, 16), (6, 8, 8), (8, 4, 4), (10, 2, 2)),)),
}
SAME_WIDTHS_ONLY = ("fsp", "kdsvd")


@pytest.mark.parametrize(("teacher", "student"), [(t, s) for t in FAMILIES for s in FAMILIES])
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_method_works_for_every_pair_of_families_or_says_why_not(name: str, teacher: str, student: str) -> None:
    setup = Setup(FAMILIES[student], FAMILIES[teacher])
    if name in SAME_WIDTHS_ONLY and student != teacher:
        with pytest.raises(NotApplicable, match=f"^{name} needs maps of equal widths.*work for any widths$"):
            build(LOSSES, name, setup)
        return
    torch.manual_seed(0)
    objective = make_objective(name, setup)
    stages = ("initial", "main") if any(term.initial for term in objective.terms.values()) else ("main",)
    for stage in stages:
        outputs = fake(FAMILIES[student], seed=1, grad=True), fake(FAMILIES[teacher], seed=2)
        values = objective(*outputs, make_context(2, stage, epoch=20))
        assert all(value.isfinite() for value in values.values())
        values["loss"].backward()
        reached = [t.grad for t in (*outputs[0].maps, *outputs[0].preacts, outputs[0].logits) if t.grad is not None]
        assert all(grad.isfinite().all() for grad in reached)
        assert bool(reached) != (name == "ft" and stage == "initial")
    for key, parameter in objective.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def make_objective(method: str, setup: Setup) -> Objective:
    return Objective(
        build(METHODS, method),
        setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=build(DIFFICULTY_SCHEDULERS, "preview"),
        centers=build(CENTER_RULES, "classifier", setup),
    )


PUBLISHED = {
    "fitnet": {"weight": 100, "options": {"hint_layer": 2}},
    "at": {"weight": 1000, "options": {"p": 2}},
    "sp": {"weight": 3000},
    "nst": {"weight": 50},
    "fsp": {"weight": 50, "initial": 30, "main": False, "initial_weight": 1},
    "ft": {"weight": 200, "initial": 30, "main": True},
    "ab": {"weight": 1, "initial": 30, "main": False},
    "kdsvd": {"weight": 1, "options": {"k": 1}},
    "vid": {"weight": 1, "options": {"init_variance": 5}},
    "ofd": {"weight": 1e-3},
    "reviewkd": {"weight": 5, "warmup": 20},
}


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_recipe(name: str) -> None:
    ce, term = build(METHODS, name)
    assert (ce.loss, ce.weight, term.loss) == ("cross_entropy", 1, name)
    assert {key: getattr(term, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert getattr(LOSSES.get(name), "per_sample", True)


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        # Positions in ("maps", "preacts") of the teacher; none looks at a stem but fsp and a hint that is told to.
        ("fitnet", {"map2"}),
        ("fitnet(hint_layer=0)", {"map0"}),
        ("at", {"map1", "map2", "map3"}),
        ("sp", {"map3"}),
        ("nst", {"map1", "map2", "map3"}),
        ("fsp", {"map0", "map1", "map2", "map3"}),
        ("ft", {"map3"}),
        ("kdsvd", {"map1", "map2", "map3"}),
        ("vid", {"map1", "map2", "map3"}),
        ("ab", {"preact1", "preact2", "preact3"}),
        ("ofd", {"preact1", "preact2", "preact3"}),
        ("reviewkd", {"preact1", "preact2", "preact3", "embedding"}),
    ],
)
def test_which_maps_are_looked_at(name: str, looked_at: set[str]) -> None:
    shapes = FAMILIES["resnet"]
    torch.manual_seed(0)
    loss = build(LOSSES, name, Setup(shapes, shapes))
    loss.eval()
    student, teacher, context = fake(shapes, seed=1), fake(shapes, seed=2), make_context(2)
    before = loss(student, teacher, context)
    found = set()
    for kind, field in (("map", "maps"), ("preact", "preacts")):
        for i in range(4):
            changed = list(getattr(teacher, field))
            changed[i] = changed[i].flip(3) * 1.5
            if not loss(student, teacher._replace(**{field: tuple(changed)}), context).equal(before):
                found.add(f"{kind}{i}")
    if not loss(student, teacher._replace(embedding=teacher.embedding + 1), context).equal(before):
        found.add("embedding")
    assert found == looked_at


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_networks_without_maps_are_refused(name: str) -> None:
    bare, full = Shapes(3, 8), FAMILIES["resnet"]
    for setup in (Setup(bare, full), Setup(full, bare)):
        with pytest.raises(NotApplicable, match=f"^{name} needs") as error:
            build(LOSSES, name, setup)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ab", "ofd"])
def test_networks_without_preactivations_are_refused(name: str) -> None:
    full = FAMILIES["resnet"]
    with pytest.raises(NotApplicable, match="before an activation"):
        build(LOSSES, name, Setup(full, full._replace(preacts=())))


def test_reviewkd_takes_the_maps_of_a_teacher_without_preactivations() -> None:
    shapes = FAMILIES["vgg"]._replace(preacts=())
    loss = build(LOSSES, "reviewkd", Setup(FAMILIES["resnet"], shapes))
    assert loss(fake(FAMILIES["resnet"]), fake(shapes), make_context(2)).isfinite().all()


def test_options_are_checked() -> None:
    setup = Setup(FAMILIES["resnet"], FAMILIES["resnet"])
    with pytest.raises(NotApplicable, match="hint_layer=4, but this pair has layers 0 to 3"):
        build(LOSSES, "fitnet(hint_layer=4)", setup)
    with pytest.raises(NotApplicable, match=r"rate=0\.01 of 8 channels"):
        build(LOSSES, "ft(rate=0.01)", setup)
    for spec in ("at(p=0.5)", "kdsvd(k=0)", "ab(margin=0)", "vid(init_variance=0)"):
        with pytest.raises(UserError, match="must be"):
            build(LOSSES, spec, setup)


@pytest.mark.parametrize("student", [(3, 8, 8), (3, 4, 4), (3, 2, 2), (3, 7, 7), (3, 12, 12)])
def test_the_regressor_reaches_the_teachers_shape(student: tuple[int, int, int]) -> None:
    layers = regressor(student, (5, 4, 4), relu=True)
    assert layers(torch.randn(2, *student)).shape == (2, 5, 4, 4)
    assert (layers(torch.randn(2, *student)) >= 0).all()
    assert (regressor(student, (5, 4, 4), relu=False)(torch.randn(2, *student)) < 0).any()


def test_the_regressor_keeps_a_size_that_is_far_too_small() -> None:
    assert regressor((3, 2, 2), (5, 16, 16), relu=True)(torch.randn(2, 3, 2, 2)).shape == (2, 5, 2, 2)


def test_hints_of_unequal_families_count_from_the_last_stage() -> None:
    """Layer 2 of a ResNet's four maps is the last but one, and so is the VGG's map that belongs to it."""
    student, teacher = FAMILIES["resnet"], FAMILIES["vgg"]
    torch.manual_seed(0)
    loss = build(LOSSES, "fitnet", Setup(student, teacher))
    outputs = fake(student, seed=1), fake(teacher, seed=2)
    expected = pf.hint(loss.regressor(outputs[0].maps[2]), outputs[1].maps[3])
    torch.testing.assert_close(loss(*outputs, make_context(2)), expected)


def test_the_boundaries_of_equal_shapes_need_no_connector() -> None:
    shapes = FAMILIES["resnet"]
    assert not list(build(LOSSES, "ab", Setup(shapes, shapes)).parameters())
    outputs = fake(shapes, seed=1), fake(shapes, seed=2)
    value = build(LOSSES, "ab(margin=0.5)", Setup(shapes, shapes))(*outputs, make_context(2))
    torch.testing.assert_close(value, pf.activation_boundary(outputs[0].preacts[1:], outputs[1].preacts[1:], 0.5))


@pytest.mark.parametrize("variance", [5.0, 0.01, 1000.0])
def test_vid_starts_at_its_initial_variance(variance: float) -> None:
    loss = build(LOSSES, f"vid(init_variance={variance})", Setup(FAMILIES["resnet"], FAMILIES["vgg"]))
    assert len(loss.log_scales) == len(loss.regressors) == 3
    for scale in loss.log_scales:
        torch.testing.assert_close(F.softplus(scale.detach()) + 1e-5, torch.full_like(scale, variance))
    if variance == 5:
        assert loss.log_scales[0][0].item() == pytest.approx(math.log(math.exp(5 - 1e-5) - 1))


def gradients(module: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name, p in module.named_parameters() if p.grad is not None}


def test_ft_trains_the_paraphraser_first_and_freezes_it_then() -> None:
    shapes = FAMILIES["resnet"]
    torch.manual_seed(0)
    objective = make_objective("ft", Setup(shapes, shapes))
    loss = objective.losses["ft"]
    student, teacher = fake(shapes, seed=1, grad=True), fake(shapes, seed=2)
    values = objective(student, teacher, make_context(2, "initial"))
    assert "cross_entropy" not in values
    rebuilt = loss.rebuilder(loss.paraphraser(teacher.maps[-1]))
    # The initial epochs have a weight of their own.
    assert values["ft"].item() == pytest.approx(0.2 * F.mse_loss(rebuilt, teacher.maps[-1]).item())
    values["loss"].backward()
    assert gradients(loss) == {"paraphraser", "rebuilder"}
    assert all(m.grad is None for m in student.maps)

    objective.zero_grad()
    values = objective(student, teacher, make_context(2))
    factor = loss.paraphraser(teacher.maps[-1])
    expected = 200 * pf.factor_transfer(loss.translator(student.maps[-1]), factor).mean()
    assert values["ft"].item() == pytest.approx(expected.item())
    assert {*values} == {"cross_entropy", "ft", "loss"}
    values["loss"].backward()
    assert gradients(loss) == {"translator"}
    assert student.maps[-1].grad is not None


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_terms_of_the_initial_epochs_are_gone_in_the_schedule(name: str) -> None:
    shapes = FAMILIES["resnet"]
    objective = make_objective(name, Setup(shapes, shapes))
    student, teacher = fake(shapes, seed=1), fake(shapes, seed=2)
    early = objective(student, teacher, make_context(2, "initial"))
    assert {*early} == {name, "loss"}
    # Neither is weighted in the published initial epochs.
    expected = objective.losses[name](student, teacher, make_context(2, "initial")).mean()
    assert early["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert {*objective(student, teacher, make_context(2))} == {"cross_entropy", "loss"}
    assert objective.initial_epochs(240) == 30


def test_reviewkd_warms_up() -> None:
    shapes = FAMILIES["resnet"]
    torch.manual_seed(0)
    objective = make_objective("reviewkd", Setup(shapes, shapes))
    student, teacher = fake(shapes, seed=1), fake(shapes, seed=2)
    values = [objective(student, teacher, make_context(2, epoch=e))["reviewkd"].item() for e in (1, 10, 20, 200)]
    assert values == pytest.approx([values[2] / 20, values[2] / 2, values[2], values[2]])


def test_reviewkd_of_unequal_families_level_by_level() -> None:
    """Five maps review into four: three stages and the embedding, fused from the last level down."""
    student_shapes, teacher_shapes = FAMILIES["vgg"], FAMILIES["resnet_x4"]
    torch.manual_seed(0)
    loss = build(LOSSES, "reviewkd", Setup(student_shapes, teacher_shapes))
    student, teacher = fake(student_shapes, rows=3, seed=1), fake(teacher_shapes, rows=3, seed=2)
    assert [fusion.attend is None for fusion in loss.fusions] == [False, False, False, True]

    own = [*student.maps[2:], student.embedding.view(3, -1, 1, 1)]
    targets = [*teacher.preacts[1:], teacher.embedding.view(3, -1, 1, 1)]
    expected, handed_down = torch.zeros(3), None
    for level in (3, 2, 1, 0):
        fusion = loss.fusions[level]
        fused = fusion.enter(own[level])
        if handed_down is not None:
            handed_down = F.interpolate(handed_down, fused.shape[2:], mode="nearest")
            gates = fusion.attend[0](torch.cat([fused, handed_down], 1)).sigmoid()
            fused = fused * gates[:, 0, None] + handed_down * gates[:, 1, None]
        handed_down = F.interpolate(fused, targets[level].shape[2:], mode="nearest")
        result = fusion.leave(handed_down)
        assert result.shape == targets[level].shape
        expected = expected + pf.hierarchical_context([result], [targets[level]])
    torch.testing.assert_close(loss(student, teacher, make_context(3)), expected)


def test_ofd_margins_are_the_means_of_all_negative_values_seen() -> None:
    shapes = FAMILIES["resnet"]
    loss = build(LOSSES, "ofd", Setup(shapes, shapes))
    seen: list[Output] = []
    for seed in range(3):
        teacher = fake(shapes, rows=2 + seed, seed=seed)
        # A channel that is never negative has no margin, and needs none.
        teacher.preacts[1][:, 0].abs_()
        seen.append(teacher)
        loss(fake(shapes, rows=2 + seed, seed=10 + seed), teacher, make_context(2 + seed))
        for stage in range(3):
            for channel in range(shapes.preacts[stage + 1][0]):
                values = [v for o in seen for v in o.preacts[stage + 1][:, channel].flatten().tolist() if v < 0]
                expected = sum(values) / max(1, len(values))
                assert loss.get_buffer(f"margin{stage}")[channel].item() == pytest.approx(expected, rel=1e-4)
                assert loss.get_buffer(f"count{stage}")[channel].item() == len(values)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.eval()
    loss(fake(shapes, seed=3), fake(shapes, seed=4), make_context(2))
    assert all(before[key].equal(value) for key, value in loss.state_dict().items())


def test_ofd_uses_the_margins_of_the_batch_from_the_first_step_on() -> None:
    shapes = FAMILIES["resnet"]
    torch.manual_seed(0)
    loss = build(LOSSES, "ofd", Setup(shapes, shapes))
    student, teacher = fake(shapes, seed=1), fake(shapes, seed=2)
    value = loss(student, teacher, make_context(2))
    margins = [pf.negative_means(t)[0] for t in teacher.preacts[1:]]
    connected = [connect(s) for connect, s in zip(loss.connectors, student.preacts[1:], strict=True)]
    torch.testing.assert_close(value, pf.ofd(connected, teacher.preacts[1:], margins))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_any_of_them_can_be_previewed(name: str) -> None:
    shapes = FAMILIES["resnet"]
    terms = [dataclasses.replace(t, previewed=t.loss == name, main=True) for t in build(METHODS, name)]
    setup = Setup(shapes, shapes)
    objective = Objective(
        terms,
        setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=build(DIFFICULTY_SCHEDULERS, "preview"),
        centers=build(CENTER_RULES, "classifier", setup),
    )
    student, teacher, context = fake(shapes, rows=4, seed=1), fake(shapes, rows=4, seed=2), make_context(4, epoch=20)
    objective.losses[name].eval()
    values = objective(student, teacher, context)
    each = objective.losses[name](student, teacher, context)
    weights = objective.weights(student, teacher, context)
    assert weights.min() < 1
    term = objective.terms[name]
    assert values[name].item() == pytest.approx((term.weight * weights * each).mean().item(), rel=1e-5)


# Real networks


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_one_epoch_of_a_real_pair(name: str, tiny_data: pckd.Data) -> None:
    torch.manual_seed(5)
    teacher = BACKBONES.get("resnet14")(3)
    result = pckd.distill(
        student="resnet8", teacher=teacher, method=name, data=tiny_data, epochs=1, batch_size=16, device="cpu",
        precision="fp32",
    )  # fmt: skip
    rows = [{*row} & {"cross_entropy", name} for row in result.history]
    expected = {"fsp": [{"fsp"}, {"cross_entropy"}], "ab": [{"ab"}, {"cross_entropy"}]}
    expected["ft"] = [{"ft"}, {"cross_entropy", "ft"}]
    assert rows == expected.get(name, [{"cross_entropy", name}])
    assert all(math.isfinite(row["loss"]) for row in result.history)


def test_published_pairs_are_checked_before_the_first_step() -> None:
    """The real shapes: what is refused is refused by the constructor."""
    for teacher, student in (("resnet20", "resnet8"), ("wrn_40_2", "ShuffleV1"), ("vgg8", "MobileNetV2")):
        setup = Setup(shapes_of(student), shapes_of(teacher))
        for name in ("at", "nst", "sp", "kdsvd", "fsp"):
            if name in SAME_WIDTHS_ONLY and student != "resnet8":
                with pytest.raises(NotApplicable, match=f"{name} needs maps of equal widths"):
                    build(LOSSES, name, setup)
            else:
                build(LOSSES, name, setup)

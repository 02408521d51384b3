"""The losses as pure functions: published numbers; PCKD's by hand; of every one gradients and degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd import functional as pf
from registry import Centers, Context, Instances

T = torch.tensor
Inputs = dict[str, Tensor]


# Published numbers


def upright(g: Any, field: str) -> list[Tensor]:
    return [getattr(side.upright(g.views), field) for side in (g.student, g.teacher)]


def maps(g: Any, student: str = "student_map", teacher: str = "teacher_map") -> list[list[Tensor]]:
    return [[g[f"{side}{i}"] for i in range(3)] for side in (student, teacher)]


def projected(g: Any) -> Tensor:
    hidden = nn.functional.linear(g["student_embedding"], g["fa_fc1_weight"], g["fa_fc1_bias"])
    hidden = nn.functional.batch_norm(hidden, None, None, g["fa_bn_weight"], g["fa_bn_bias"], training=True)
    return nn.functional.linear(hidden.relu(), g["fa_fc2_weight"], g["fa_fc2_bias"])


def contrast(g: Any) -> Tensor:
    names = [f"cc_proj_{side}" for side in ("student", "teacher")]
    queries = [nn.functional.linear(g["student_embedding"], g[f"{name}_weight"], g[f"{name}_bias"]) for name in names]
    return pf.category_contrast(*queries, g.context().labels, g.centers.student, g.centers.teacher)


def difficulty(g: Any) -> Tensor:
    return pf.cross_entropy_difficulty(upright(g, "logits")[0], g["labels"])


SAME_WIDTH = "teacher_map_samewidth"
GOLDEN: dict[str, Callable[[Any], Tensor]] = {
    "difficulty": difficulty,
    **{
        f"preview_weight_epoch{epoch}": lambda g, epoch=epoch: pf.preview_weights(difficulty(g), epoch)
        for epoch in (1, 60, 120, 240)
    },
    "kd": lambda g: pf.kd(*upright(g, "logits")),
    "feature_alignment": lambda g: pf.feature_alignment(projected(g), g["teacher_embedding"]),
    "category_contrast": contrast,
    "dkd_alpha1_beta8_T4": lambda g: pf.dkd(*upright(g, "logits"), g["labels"]),
    "rkd_wd25_wa50": lambda g: pf.rkd(*upright(g, "embedding")),
    "pkt": lambda g: pf.pkt(*upright(g, "embedding")),
    "correlation_congruence": lambda g: pf.correlation_congruence(g["cc_embed_student"], g["cc_embed_teacher"]),
    "attention_transfer_p2_sum": lambda g: pf.attention_transfer(*maps(g)),
    "nst_sum": lambda g: pf.nst(*maps(g)),
    "similarity_preserving_lastmap": lambda g: pf.similarity_preserving(g["student_map2"], g["teacher_map2"]),
    "factor_transfer_lastmap": lambda g: pf.factor_transfer(g["student_map2"], g["teacher_map2"]),
    "fsp_sum": lambda g: pf.fsp(*maps(g, teacher=SAME_WIDTH)),
    "kdsvd_sum_samewidth": lambda g: pf.kdsvd(*maps(g, teacher=SAME_WIDTH)),
    "reviewkd_hcl": lambda g: pf.hierarchical_context(*maps(g, teacher=SAME_WIDTH)),
    "ab_sum": lambda g: pf.activation_boundary(*maps(g, "student_preact", "teacher_preact")),
    "hint_mse": lambda g: pf.hint(g["student_map1"], g[f"{SAME_WIDTH}1"]),
}


@pytest.mark.parametrize("key", GOLDEN)
def test_golden(golden: Any, key: str) -> None:
    value, expected = GOLDEN[key](golden), golden[f"expected_{key}"]
    torch.testing.assert_close(value if expected.ndim else value.mean(), expected, rtol=1e-4, atol=0, check_dtype=False)


def test_golden_center_alignment(golden: Any) -> None:
    centers = golden.centers
    arguments = (centers.student, centers.student_bias, centers.teacher, centers.teacher_bias)
    if golden.name == "same":
        assert pf.center_alignment(*arguments).item() == golden.near("center_alignment")
    else:
        with pytest.raises(ValueError, match="center_relation"):
            pf.center_alignment(*arguments)


# PCKD's, computed by hand with two classes


def softmax(*logits: float) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def test_kd_by_hand() -> None:
    student, teacher = softmax(1 / 2, 0 / 2), softmax(-1 / 2, 3 / 2)
    divergence = sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True))
    value = pf.kd(T([[1.0, 0.0]]), T([[-1.0, 3.0]]), temperature=2.0)
    assert value.tolist() == pytest.approx([4 * divergence])


def test_kd_of_confident_logits_keeps_its_size() -> None:
    # The student is certain of class 1, the teacher of class 0: T^2 * (difference of logits) / T.
    value = pf.kd(T([[0.0, 1e4]]), T([[1e4, 0.0]]), temperature=4.0)
    assert value.item() == pytest.approx(16 * 1e4 / 4)


def test_feature_alignment_by_hand() -> None:
    student = T([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    teacher = T([[0.5, 0.0], [-2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    expected = [0, 4, 2, 2 - math.sqrt(2), 2]
    assert pf.feature_alignment(student, teacher).tolist() == pytest.approx(expected, abs=1e-6)


def test_center_alignment_by_hand() -> None:
    student, teacher = T([[1.0, 2.0], [0.0, 0.0]]), T([[1.0, 0.0], [0.0, 3.0]])
    # Squared differences 0, 4, 0, 9 of the weights; 1, 16 of the biases, where both have one.
    ours, theirs = T([0.0, 1.0]), T([1.0, 5.0])
    for biases, expected in (((ours, theirs), 30 / 6), ((ours, None), 13 / 4), ((None, theirs), 13 / 4)):
        assert pf.center_alignment(student, biases[0], teacher, biases[1]).item() == pytest.approx(expected)


def test_center_relation_by_hand() -> None:
    # The student's two centers are at 45 degrees, the teacher's (three wide) at 90.
    student, teacher = T([[2.0, 0.0], [1.0, 1.0]]), T([[0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    assert pf.center_relation(student, teacher).item() == pytest.approx(2 * math.cos(math.pi / 4) ** 2 / 4)


def test_center_infonce_by_hand() -> None:
    # The cosines of the first row are 0.6 and 0.8, of the second 0 and -1.
    embedding, centers = T([[3.0, 4.0], [0.0, -9.0]]), T([[2.0, 0.0], [0.0, 0.5]])
    for temperature in (0.5, 0.07):
        expected = [-math.log(softmax(0.6 / temperature, 0.8 / temperature)[0]), math.log1p(math.exp(1 / temperature))]
        value = pf.center_infonce(embedding, T([0, 1]), centers, temperature)
        assert value.tolist() == pytest.approx(expected)
    assert pf.center_infonce(embedding, T([0, 1]), centers).equal(value)


@pytest.mark.parametrize("labels", [[0, 1, 0], [0, 1, 2]], ids=["pairs of one class", "no pairs"])
def test_category_contrast_by_hand(labels: list[int]) -> None:
    """The definition, anchor by anchor: all rows and halves of a label attract each other."""
    tau, base = 2.0, 0.5
    queries, centers = make(3, 4, "student", "query"), make(2, 4, "student", "teacher")
    u = torch.cat([q / q.norm(dim=1, keepdim=True) @ c.T for q, c in zip(queries, centers, strict=True)]).double()
    values = []
    for a in range(6):
        logits = {b: u[a].dot(u[b]).item() / tau for b in range(6) if b != a}
        partition = math.log(sum(math.exp(z) for z in logits.values()))
        positives = [logits[b] - partition for b in logits if labels[b % 3] == labels[a % 3]]
        values.append(-(tau / base) * sum(positives) / len(positives))
    value = pf.category_contrast(5 * queries[0], 0.1 * queries[1], T(labels), *centers, tau, base)
    assert value.tolist() == pytest.approx([values[n] + values[n + 3] for n in range(3)], rel=1e-4)


def test_category_contrast_of_an_anchor_that_drowns_the_others() -> None:
    """As published: the maximum is the anchor's own logit, so the sum over the others underflows to 1e-7."""
    # u of the student's half is (100, 0), of the teacher's (0, 1): logits 2500 and 0 for the first, 0.25 and 0.
    query = T([[1.0, 0.0]])
    value = pf.category_contrast(query, query, T([0]), T([[100.0, 0.0], [0.0, 0.0]]), T([[0.0, 0.0], [1.0, 0.0]]))
    student = -2500 - math.log(1e-7)
    teacher = -0.25 - math.log(math.exp(-0.25) + 1e-7)
    assert value.item() == pytest.approx(-(4 / 0.07) * (student + teacher), rel=1e-6)


def test_relative_by_hand() -> None:
    assert pf.relative(T([1.0, 2.0, 6.0])).tolist() == pytest.approx([1 / 3, 2 / 3, 2])
    assert pf.relative(T([0.0, 0.0])).tolist() == [0, 0]


def test_preview_weights_by_hand() -> None:
    difficulty = T([0.0, 1.0, 1.21, 1.22, 3.0])
    expected = [1, 1, 1, math.exp(-(1.22**2)), math.exp(-9)]
    assert pf.preview_weights(difficulty, 2, growth=1.1).tolist() == pytest.approx(expected)
    assert pf.preview_weights(T([1.0051, 1.0049]), 1).tolist() == pytest.approx([math.exp(-(1.0051**2)), 1])


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


def test_full_and_unit() -> None:
    dtypes = torch.bfloat16, torch.float16, torch.float64
    assert [pf.full(torch.ones(1, dtype=dtype)).dtype for dtype in dtypes] == [torch.float32] * 2 + [torch.float64]
    torch.testing.assert_close(pf.unit(T([[3.0, 4.0], [0.0, 0.0]])), T([[0.6, 0.8], [0.0, 0.0]]))


# Every function of tensors

SHAPES = ((3, 4, 4), (4, 4, 4), (6, 2, 2))
"""Of the maps; the last has more channels than positions."""
VIEWS = 4


def make(rows: int, width: int, *names: str) -> list[Tensor]:
    """A matrix for each name, always the same."""
    return [torch.randn(rows, width, generator=torch.Generator().manual_seed(len(name))) for name in names]


def make_inputs(rows: int = 8, classes: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for side in ("student", "teacher"):
        shapes = {"logits": (rows, classes), "embedding": (rows, 4), "query": (rows, 4), "centers": (classes, 4)}
        shapes |= {"bias": (classes,), **{f"map{i}": (rows, *shape) for i, shape in enumerate(SHAPES)}}
        inputs |= {f"{side}_{name}": torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return inputs


def labels_of(x: Inputs) -> Tensor:
    rows, classes = x["student_logits"].shape
    return torch.arange(rows) % classes


def views_of(x: Inputs) -> int:
    return VIEWS if len(x["student_logits"]) % VIEWS == 0 else 1


def both(function: Callable[..., Tensor], field: str) -> Callable[[Inputs], Tensor]:
    return lambda x: function(x[f"student_{field}"], x[f"teacher_{field}"])


def stages(x: Inputs, side: str) -> list[Tensor]:
    return [x[f"{side}_map{i}"] for i in range(3)]


def of_maps(function: Callable[..., Tensor], **options: Any) -> Callable[[Inputs], Tensor]:
    return lambda x: function(stages(x, "student"), stages(x, "teacher"), **options)


def noise_contrast(x: Inputs) -> Tensor:
    counts = nn.functional.one_hot(T([[1, 1, 3]]).repeat(len(x["student_logits"]), 1), 5).sum(1).float()
    bank = pf.unit(make(5, 4, "bank")[0]).to(x["student_embedding"])
    scores = pf.bank_scores(pf.unit(x["student_embedding"]), pf.unit(x["teacher_embedding"]), bank)
    return pf.noise_contrast(*scores, counts, 3, T(1.0))


def ofd(x: Inputs) -> Tensor:
    margins = [-teacher.abs().mean((0, 2, 3)) for teacher in stages(x, "teacher")]
    return pf.ofd(stages(x, "student"), stages(x, "teacher"), margins)


OF_LOGITS = (
    pf.kd,
    pf.lskd,
    pf.abkd,
    pf.ckd,
    pf.ttm,
    pf.wttm,
    pf.inter_class_relation,
    pf.intra_class_relation,
    pf.softmax_regression,
)
LEVELS = (pf.instance_alignment, pf.batch_alignment, pf.class_alignment)
OF_ONE_MAP = (pf.hint, pf.factor_transfer, pf.similarity_preserving, pf.channel_correlation)
OF_MAPS = (pf.attention_transfer, pf.nst, pf.fsp, pf.kdsvd, pf.activation_boundary, pf.hierarchical_context)
FUNCTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    **{function.__name__: both(function, "logits") for function in OF_LOGITS + LEVELS},
    **{function.__name__: both(function, "embedding") for function in (pf.rkd, pf.pkt, pf.feature_alignment)},
    **{function.__name__: both(function, "map0") for function in OF_ONE_MAP},
    **{function.__name__: of_maps(function) for function in OF_MAPS},
    "attention_transfer_p1": of_maps(pf.attention_transfer, p=1),
    "kdsvd_k2": of_maps(pf.kdsvd, k=2),
    "ofd": ofd,
    "vid": lambda x: pf.vid(x["student_map0"], x["teacher_map0"], torch.linspace(-1, 2, 3)),
    "reused_feature": lambda x: pf.reused_feature(*pf.matched(x["student_map0"], x["teacher_map0"])),
    "feature_statistic": lambda x: pf.feature_statistic(x["student_map0"], x["teacher_map0"].mean((2, 3))),
    "dkd": lambda x: pf.dkd(x["student_logits"], x["teacher_logits"], labels_of(x)),
    "nkd": lambda x: pf.nkd(x["student_logits"], x["teacher_logits"], labels_of(x)),
    "rld": lambda x: pf.rld(x["student_logits"], x["teacher_logits"], labels_of(x)),
    "wasserstein": lambda x: pf.wasserstein(
        x["student_logits"], x["teacher_logits"], labels_of(x), pf.class_costs(x["teacher_centers"])
    ),
    "ofa": lambda x: pf.ofa(x["student_logits"], x["teacher_logits"], labels_of(x), 1.5),
    "category_contrast": lambda x: pf.category_contrast(
        x["student_embedding"], x["student_query"], labels_of(x), x["student_centers"], x["teacher_centers"]
    ),
    "center_infonce": lambda x: pf.center_infonce(x["student_embedding"], labels_of(x), x["student_centers"]),
    "center_alignment": lambda x: pf.center_alignment(
        x["student_centers"], x["student_bias"], x["teacher_centers"], x["teacher_bias"]
    ),
    "center_relation": both(pf.center_relation, "centers"),
    # Both of its arguments are projections that are learned.
    "correlation_congruence": lambda x: pf.correlation_congruence(
        x["student_embedding"], x["teacher_embedding"].detach()
    ),
    **{f.__name__: both(f, "embedding") for f in (pf.channel_agreement, pf.similarity_agreement, pf.log_sum_distance)},
    "class_attention_transfer": lambda x: pf.class_attention_transfer(
        x["student_map1"], x["teacher_map1"], x["student_centers"], x["teacher_centers"], normalized=True
    ),
    "calibrated_difference": lambda x: pf.calibrated_difference(
        [[pf.matched(x["student_map2"], x["teacher_map2"])] * 2],
        x["teacher_embedding"][:, None, :2].detach().float().softmax(2),
    ),
    "squared_distance": lambda x: pf.squared_distance(*pf.matched(x["student_map0"], x["teacher_map0"])),
    "n_to_one": lambda x: pf.n_to_one(x["student_map0"].repeat(1, 2, 1, 1), x["teacher_map0"]),
    "noise_contrast": noise_contrast,
    "norm_and_direction": lambda x: pf.norm_and_direction(
        x["student_embedding"], x["teacher_embedding"], labels_of(x), x["teacher_centers"]
    ),
    "transformed_kd": lambda x: pf.transformed_kd(x["student_logits"], x["teacher_logits"], labels_of(x), views_of(x)),
    "view_contrast": lambda x: pf.view_contrast(x["student_embedding"], views_of(x)),
    "similarity_transfer": lambda x: pf.similarity_transfer(
        x["student_embedding"], x["teacher_embedding"], views_of(x)
    ),
}
LOGARITHMS = ("channel_agreement", "log_sum_distance")
SCALAR = ("center_alignment", "center_relation", "correlation_congruence", "similarity_agreement", *LOGARITHMS)
PER_CLASS = ("intra_class_relation", "class_alignment")
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def students(inputs: Inputs) -> list[Tensor]:
    return [tensor for key, tensor in inputs.items() if key.startswith("student")]


@each_function
def test_gradient_is_the_derivative(name: str) -> None:
    inputs = {key: tensor.double() for key, tensor in make_inputs().items()}
    keys = [key for key in inputs if key.startswith("student")]

    def loss(*tensors: Tensor) -> Tensor:
        return FUNCTIONS[name]({**inputs, **dict(zip(keys, tensors, strict=True))})

    leaves = [inputs[key].requires_grad_() for key in keys]
    assert torch.autograd.gradcheck(loss, leaves, rtol=1e-3, atol=1e-5, fast_mode=True)


@each_function
def test_the_teacher_is_a_constant(name: str) -> None:
    inputs = {key: tensor.requires_grad_() for key, tensor in make_inputs().items()}
    FUNCTIONS[name](inputs).sum().backward()
    reached = [key for key, tensor in inputs.items() if tensor.grad is not None and tensor.grad.any()]
    assert reached
    assert all(key.startswith("student") for key in reached)


def in_columns(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: change(x) if x.ndim > 1 else x


def in_maps(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: change(x) if x.ndim == 4 else x


BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "zeros": torch.zeros_like,
    "tiny": lambda x: x * 1e-30,
    "huge": lambda x: x.sign() * 1e4,
    "half": lambda x: x.bfloat16(),
    "huge half": lambda x: (x.sign() * 1e4).bfloat16(),
    "half as fp16": lambda x: x.half() * 100,
    "identical rows": lambda x: x[:1].expand_as(x).clone(),
    "opposite rows": in_columns(lambda x: torch.cat([x[:1], -x[:1]]).repeat(len(x), *[1] * (x.ndim - 1))[: len(x)]),
    "identical channels": in_columns(lambda x: x[:, :1].expand_as(x).clone()),
    "one dead channel": in_columns(lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)),
    # Equal singular values.
    "orthogonal channels": in_maps(lambda x: torch.eye(x.shape[1], x[0, 0].numel()).view(x[:1].shape).expand_as(x)),
    "one pixel": in_maps(lambda x: x[:, :, :1, :1]),
}
SIZES = [(8, 3), (4, 3), (1, 3), (8, 2), (8, 1), (1, 1), (6, 6)]
"""Rows and classes. With (6, 6) no row has another of its class, and as with 1 the rows are no groups of four views."""


@pytest.mark.parametrize("batch", BATCHES)
@each_function
def test_degenerate_batches_are_finite(name: str, batch: str) -> None:
    for (rows, classes), others, autocast in product(SIZES, ("plain", batch), (False, True)):
        inputs = make_inputs(rows, classes)
        changes = {"student": BATCHES[batch], "teacher": BATCHES[others]}
        inputs = {k: changes[k.partition("_")[0]](v).detach().requires_grad_() for k, v in inputs.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = FUNCTIONS[name](inputs)
        assert value.dtype == torch.float32
        assert value.shape == (() if name in SCALAR else (classes,) if name in PER_CLASS else (rows,))
        assert value.isfinite().all()
        assert (value > -1e-3).all() or name in ("vid", *LOGARITHMS)
        value.mean().backward()
        assert all(x.grad is None or x.grad.isfinite().all() for x in inputs.values())


@each_function
def test_autocast_does_not_cost_precision(name: str) -> None:
    exact = FUNCTIONS[name](make_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(FUNCTIONS[name](make_inputs()), exact)


ABOUT_OTHERS = (
    *("ckd", "center_infonce", "category_contrast", "noise_contrast", "norm_and_direction", "view_contrast"),
)
"""They compare rows with others or with centers, however alike the two networks are."""
NOT_ZERO = ("activation_boundary", "ofa", "wasserstein", "rld", "ttm", "wttm", "nkd", "ofd", "vid")
NOT_ZERO += ("similarity_agreement", *LOGARITHMS)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in (*ABOUT_OTHERS, *NOT_ZERO)])
def test_zero_at_equality_with_a_finite_gradient(name: str) -> None:
    inputs = make_inputs()
    same = {key: inputs[key.replace("teacher", "student")].clone().requires_grad_() for key in inputs}
    value = FUNCTIONS[name](same)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-5)
    value.mean().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in students(same))

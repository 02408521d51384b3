"""Methods that compare feature maps: cases computed by hand, stages, pairings.

Published numbers and what holds for every function are in test_functional.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd import functional as pf
from pckd.losses.maps import regressor
from pckd.objective import layers_of, says
from pckd.testing.cases import objective_of
from registry import LOSSES, METHODS, Centers, Context, Instances, NotApplicable, Output, Setup, Shapes, Term, build

METHOD_NAMES = ("fitnet", "at", "sp", "nst", "fsp", "ft", "ab", "kdsvd", "vid", "ofd", "reviewkd")
Maps = Sequence[Tensor]


def make_maps(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, *shape, generator=generator) for shape in ((3, 6, 6), (4, 6, 6), (5, 3, 3))]


T = torch.tensor
STUDENT, TEACHER = make_maps(1), make_maps(2)


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


# Cases computed by hand, in float64


def test_attention_transfer_by_hand() -> None:
    def attention(feature_map: Tensor, p: float) -> np.ndarray:
        values = (np.abs(feature_map.double().numpy()) ** p).sum(1).reshape(4, -1)
        return values / np.sqrt((values**2).sum(1, keepdims=True))

    for p in (1, 3):
        pairs = zip(STUDENT, TEACHER, strict=True)
        expected = sum(((attention(s, p) - attention(t, p)) ** 2).mean(1) for s, t in pairs)
        assert pf.attention_transfer(STUDENT, TEACHER, p).tolist() == pytest.approx(expected, rel=1e-4)


def test_similarity_preserving_by_hand() -> None:
    def rows(feature_map: Tensor) -> np.ndarray:
        flat = feature_map.flatten(1).double().numpy()
        gram = flat @ flat.T
        return gram / np.sqrt((gram**2).sum(1, keepdims=True))

    expected = ((rows(TEACHER[2]) - rows(STUDENT[1])) ** 2).sum(1) / 4
    assert pf.similarity_preserving(STUDENT[1], TEACHER[2]).tolist() == pytest.approx(expected, rel=1e-4)


def test_kdsvd_with_two_vectors_by_hand() -> None:
    def vectors(feature_map: Tensor) -> tuple[np.ndarray, np.ndarray]:
        # By the same routine: the signs of its vectors are arbitrary.
        _, values, rows = torch.linalg.svd(feature_map.flatten(1).T, full_matrices=False)
        return values.numpy(), rows.numpy()

    def layer(s: Tensor, t: Tensor) -> tuple[np.ndarray, np.ndarray]:
        (values, wanted), candidates = vectors(t), vectors(s)[1][:5]
        scale = values[:2] / np.linalg.norm(values[:2])
        cosines = candidates @ wanted[:2].T
        nearest = np.abs(cosines).argmax(0)
        signs = np.sign(cosines[nearest, [0, 1]])
        return (scale * signs)[:, None] * candidates[nearest], scale[:, None] * wanted[:2]

    def relation(now: np.ndarray, before: np.ndarray) -> np.ndarray:
        return np.exp(-((now[:, :, None] - before[:, None, :]) ** 2) / 8)

    for n, value in enumerate(pf.kdsvd(STUDENT, TEACHER, 2).tolist()):
        layers = [layer(s[n], t[n]) for s, t in zip(STUDENT, TEACHER, strict=True)]
        pairs = [[relation(now[side], before[side]) for side in (0, 1)] for before, now in pairwise(layers)]
        assert value == pytest.approx(sum(((s - t) ** 2).sum() for s, t in pairs), rel=1e-3)


def test_activation_boundary_by_hand() -> None:
    student, teacher = T([[[[2.0, 0.2, -0.5]]]]), T([[[[1.0, 1.0, 1.0]]]])
    off = torch.zeros_like(teacher)
    # With a margin of 0.3 it falls short by 0, 0.1 and 0.8; on the other side by 2.3, 0.5 and 0.
    later, earlier = 0.1**2 + 0.8**2, 2.3**2 + 0.5**2
    value = pf.activation_boundary([student, student], [off, teacher], 0.3)
    assert value.tolist() == pytest.approx([3 / 1000 * (later + earlier / 2)], rel=1e-5)


def test_ofd_by_hand() -> None:
    student, teacher = T([[[[-0.5, 2.0, 0.5, -2.0]]]]), T([[[[1.0, 1.0, -0.2, -5.0]]]])
    # Targets 1, 1, -0.2 and the margin; what is off may be as far off as it likes.
    one = 1.5**2 + 1 + 0.7**2
    value = pf.ofd([student, student], [teacher, teacher], [T([-0.9]), T([-3.0])])
    # Below the second margin, -2 is too high for the last target.
    assert value.tolist() == pytest.approx([one / 2 + one + 1], rel=1e-5)


def test_negative_means_by_hand() -> None:
    preact = T([[[[-1.0, 2.0]], [[0.0, 5.0]]], [[[-4.0, 3.0]], [[1.0, 0.0]]]])
    means, counts = pf.negative_means(preact)
    assert means.tolist() == [-2.5, 0]
    assert counts.tolist() == [2, 0]


# Sizes and counts

OF_MAPS = (pf.attention_transfer, pf.nst, pf.activation_boundary, pf.hierarchical_context)


def each_map(function: Callable[..., Tensor], *more: Tensor) -> Callable[[Maps, Maps], Tensor]:
    return lambda s, t: function(s[0], t[0], *more)


@pytest.mark.parametrize(
    "function",
    [
        *(*OF_MAPS, each_map(pf.factor_transfer), each_map(pf.hint), each_map(pf.vid, torch.zeros(3))),
        lambda s, t: pf.ofd(s, t, [torch.zeros(m.shape[1]) for m in s]),
    ],
)
def test_the_larger_map_is_pooled(function: Callable[[Maps, Maps], Tensor]) -> None:
    large_student, large_teacher = ([F.interpolate(m, scale_factor=2.0) for m in side] for side in (STUDENT, TEACHER))
    expected = function(STUDENT, TEACHER)
    torch.testing.assert_close(function(STUDENT, large_teacher), expected)
    torch.testing.assert_close(function(large_student, TEACHER), expected)


def test_maps_that_are_larger_along_one_axis_only_are_pooled_along_it() -> None:
    a, b = pf.matched(torch.rand(2, 3, 4, 2), torch.rand(2, 5, 2, 6))
    assert a.shape == (2, 3, 2, 2)
    assert b.shape == (2, 5, 2, 2)


def test_maps_are_paired_from_the_last() -> None:
    assert pf.paired("abcd", "vwxyz") == [("a", "w"), ("b", "x"), ("c", "y"), ("d", "z")]
    assert pf.paired("abc", "z") == [("c", "z")]
    assert pf.paired("abc", "") == []
    for function in (*OF_MAPS, pf.fsp, pf.kdsvd):
        expected = function(STUDENT, TEACHER)
        torch.testing.assert_close(function([torch.ones(4, 9, 2, 2), *STUDENT], TEACHER), expected)
        torch.testing.assert_close(function(STUDENT, [torch.ones(4, 9, 2, 2), *TEACHER]), expected)


@pytest.mark.parametrize("student", [(3, 8, 8), (3, 4, 4), (3, 2, 2), (3, 7, 7), (3, 12, 12)])
def test_the_regressor_reaches_the_teachers_shape(student: tuple[int, int, int]) -> None:
    layers = regressor(student, (5, 4, 4), relu=True)
    assert layers(torch.randn(2, *student)).shape == (2, 5, 4, 4)
    assert (layers(torch.randn(2, *student)) >= 0).all()
    assert (regressor(student, (5, 4, 4), relu=False)(torch.randn(2, *student)) < 0).any()


def test_the_regressor_keeps_a_size_that_is_far_too_small() -> None:
    assert regressor((3, 2, 2), (5, 16, 16), relu=True)(torch.randn(2, 3, 2, 2)).shape == (2, 5, 2, 2)


# The losses, on thin stand-ins of the families: the counts and sizes of maps are the networks', the widths are smaller

RESNET = Shapes(3, 8, *2 * (((4, 16, 16), (4, 16, 16), (6, 8, 8), (8, 4, 4)),))
RESNET_X4 = Shapes(3, 12, *2 * (((5, 16, 16), (8, 16, 16), (10, 8, 8), (12, 4, 4)),))
VGG = Shapes(3, 10, *2 * (((6, 16, 16), (7, 8, 8), (8, 4, 4), (10, 2, 2), (10, 2, 2)),))
MOBILENET = Shapes(3, 16, *2 * (((4, 8, 8), (3, 8, 8), (4, 4, 4), (6, 2, 2), (9, 1, 1)),))
SAME = Setup(RESNET, RESNET)


def fake(shapes: Shapes, rows: int = 2, seed: int = 0, grad: bool = False) -> Output:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(grad)

    maps, preacts = (tuple(normal(rows, *shape) for shape in side) for side in (shapes.maps, shapes.preacts))
    return Output(normal(rows, shapes.num_classes), normal(rows, shapes.embedding), maps, preacts)


def make_context(rows: int = 2, stage: Any = "main") -> Context:
    return Context(Instances(torch.arange(rows) % 3), Centers(torch.zeros(3, 5), torch.zeros(3, 5)), stage=stage)


def loss_of(spec: str, setup: Setup = SAME) -> Any:
    torch.manual_seed(0)
    return build(LOSSES, spec, setup)


@pytest.mark.parametrize("setup", [Setup(RESNET, VGG), Setup(RESNET, MOBILENET)], ids=["vgg", "MobileNetV2"])
@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if name not in ("fsp", "kdsvd")])
def test_a_teacher_of_more_and_smaller_maps(name: str, setup: Setup) -> None:
    """The pairs of test_methods.py have teachers of larger maps, and as many or fewer."""
    loss = loss_of(name, setup)
    for stage in ("initial", "main"):
        loss(fake(setup.student, grad=True), fake(setup.teacher), make_context(stage=stage)).sum().backward()
    for key, parameter in loss.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    ("name", "looked_at"),
    [
        # Of the teacher; none looks at a stem but fsp and a hint that is told to.
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
    loss = loss_of(name).eval()
    teacher = fake(RESNET, seed=2, grad=True)
    tensors = {f"map{i}": m for i, m in enumerate(teacher.maps)} | {
        f"preact{i}": m for i, m in enumerate(teacher.preacts)
    }
    before = loss(fake(RESNET, seed=1), teacher, make_context())
    found = set()
    for key, tensor in {**tensors, "embedding": teacher.embedding}.items():
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(kept.flip(-1) * 1.5)
            if not loss(fake(RESNET, seed=1), teacher, make_context()).equal(before):
                found.add(key)
            tensor.copy_(kept)
    assert found == looked_at


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_networks_without_maps_are_refused(name: str) -> None:
    bare = Shapes(3, 8)
    for setup in (Setup(bare, RESNET), Setup(RESNET, bare)):
        with pytest.raises(NotApplicable, match=f"^{name} needs.*$"):
            loss_of(name, setup)


@pytest.mark.parametrize("name", ["ab", "ofd"])
def test_networks_without_preactivations_are_refused(name: str) -> None:
    with pytest.raises(NotApplicable, match="before an activation"):
        loss_of(name, Setup(RESNET, RESNET._replace(preacts=())))


def test_reviewkd_takes_the_maps_of_a_teacher_without_preactivations() -> None:
    shapes = VGG._replace(preacts=())
    loss = loss_of("reviewkd", Setup(RESNET, shapes))
    assert loss(fake(RESNET), fake(shapes), make_context()).isfinite().all()


def test_hints_of_unequal_families_count_from_the_last_stage() -> None:
    """Layer 2 of a ResNet's four maps is the last but one, and so is the VGG's map that belongs to it."""
    loss = loss_of("fitnet", Setup(RESNET, VGG))
    student, teacher = fake(RESNET, seed=1), fake(VGG, seed=2)
    expected = pf.hint(loss.regressor(student.maps[2]), teacher.maps[3])
    torch.testing.assert_close(loss(student, teacher, make_context()), expected)


def test_the_boundaries_of_equal_shapes_need_no_connector() -> None:
    loss = loss_of("ab(margin=0.5)")
    assert not list(loss.parameters())
    student, teacher = fake(RESNET, seed=1), fake(RESNET, seed=2)
    expected = pf.activation_boundary(student.preacts[1:], teacher.preacts[1:], 0.5)
    torch.testing.assert_close(loss(student, teacher, make_context()), expected)


@pytest.mark.parametrize("variance", [5.0, 0.01, 1000.0])
def test_vid_starts_at_its_initial_variance(variance: float) -> None:
    loss = loss_of(f"vid(init_variance={variance})", Setup(RESNET, VGG))
    assert len(loss.log_scales) == len(loss.regressors) == 3
    for scale in loss.log_scales:
        torch.testing.assert_close(F.softplus(scale.detach()) + 1e-5, torch.full_like(scale, variance))


def trained(module: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name, p in module.named_parameters() if p.grad is not None}


def test_ft_trains_the_paraphraser_first_and_freezes_it_then() -> None:
    torch.manual_seed(0)
    objective = objective_of(build(METHODS, "ft"), SAME)
    loss = objective.losses["ft"]
    student, teacher = fake(RESNET, seed=1, grad=True), fake(RESNET, seed=2)
    values = objective(student, teacher, make_context(stage="initial"))
    rebuilt = loss.rebuilder(loss.paraphraser(teacher.maps[-1]))
    # The initial epochs have a weight of their own.
    assert values["ft"].item() == pytest.approx(F.mse_loss(rebuilt, teacher.maps[-1]).item())
    values["loss"].backward()
    assert trained(loss) == {"paraphraser", "rebuilder"}
    assert all(m.grad is None for m in student.maps)

    objective.zero_grad()
    values = objective(student, teacher, make_context())
    factor = loss.paraphraser(teacher.maps[-1])
    expected = 200 * pf.factor_transfer(loss.translator(student.maps[-1]), factor).mean()
    assert values["ft"].item() == pytest.approx(expected.item())
    values["loss"].backward()
    assert trained(loss) == {"translator"}
    assert student.maps[-1].grad is not None


@pytest.mark.parametrize("name", ["fsp", "ab"])
def test_terms_of_the_initial_epochs_are_gone_in_the_schedule(name: str) -> None:
    objective = objective_of(build(METHODS, name), SAME)
    outputs = fake(RESNET, seed=1), fake(RESNET, seed=2)
    early = objective(*outputs, make_context(stage="initial"))
    assert {*early} == {name, "loss"}
    # Neither is weighted in the published initial epochs.
    expected = objective.losses[name](*outputs, make_context(stage="initial")).mean()
    assert early["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert {*objective(*outputs, make_context())} == {"cross_entropy", "loss"}
    assert objective.initial_epochs(240) == 30


def test_reviewkd_of_unequal_families_level_by_level() -> None:
    """Five maps review into four: three stages and the embedding, fused from the last level down."""
    loss = loss_of("reviewkd", Setup(VGG, RESNET_X4))
    student, teacher = fake(VGG, rows=3, seed=1), fake(RESNET_X4, rows=3, seed=2)
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
        expected = expected + pf.hierarchical_context([fusion.leave(handed_down)], [targets[level]])
    torch.testing.assert_close(loss(student, teacher, make_context(3)), expected)


def test_ofd_margins_are_the_means_of_all_negative_values_seen() -> None:
    loss = loss_of("ofd")
    seen: list[Output] = []
    for rows in (2, 3):
        student, teacher = fake(RESNET, rows, seed=10), fake(RESNET, rows, seed=rows)
        # A channel that is never negative has no margin, and needs none.
        teacher.preacts[1][:, 0].abs_()
        seen.append(teacher)
        value = loss(student, teacher, make_context(rows))
        for stage, channels in enumerate((4, 6, 8)):
            for channel in range(channels):
                shown = torch.cat([output.preacts[stage + 1][:, channel].flatten() for output in seen])
                negative = shown[shown < 0]
                assert loss.get_buffer(f"count{stage}")[channel].item() == len(negative)
                margin = loss.get_buffer(f"margin{stage}")[channel].item()
                assert margin == pytest.approx(negative.mean().item() if len(negative) else 0, rel=1e-4)
        # This step's values count already in this step.
        connected = [connect(s) for connect, s in zip(loss.connectors, student.preacts[1:], strict=True)]
        margins = [loss.get_buffer(f"margin{stage}") for stage in range(3)]
        torch.testing.assert_close(value, pf.ofd(connected, teacher.preacts[1:], margins))
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss.eval()(fake(RESNET, seed=3), fake(RESNET, seed=4), make_context())
    assert all(before[key].equal(value) for key, value in loss.state_dict().items())


# Pairs of layers: a loss inside, shown these layers alone

MAP, WIDER, ROW, LONGER = (6, 8, 8), (8, 4, 4), (6,), (8,)


def of_layers(loss: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[Any, Tensor, Tensor, Any]:
    """The loss ``layers`` between layers of these shapes, the two layers, and what it says of them."""
    generator = torch.Generator().manual_seed(0)
    own, theirs = (torch.randn(4, *shape, generator=generator) for shape in (student, teacher))
    outputs = fake(RESNET, 4)._replace(layers={"a.b": own}), fake(RESNET, 4)._replace(layers={"c": theirs})
    setup = Setup(*map(Shapes.of, outputs), num_samples=9, teacher_classifier=nn.Linear(8, 3))
    made = build(LOSSES, "layers", setup, student="a.b", teacher="c", loss=loss)
    return made, own, theirs, made(*outputs, make_context(4))


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"),
    [
        ("fitnet", MAP, WIDER, lambda made, s, t: pf.hint(made.regressor(s), t)),
        ("at(p=3)", MAP, WIDER, lambda made, s, t: pf.attention_transfer([s], [t], 3)),
        ("sp", MAP, WIDER, lambda made, s, t: pf.similarity_preserving(s, t)),
        ("ab", MAP, WIDER, lambda made, s, t: pf.activation_boundary([made.connectors[0](s)], [t])),
        ("rkd(angle_weight=2)", MAP, LONGER, lambda made, s, t: pf.rkd(s.mean((2, 3)), t, angle_weight=2)),
        ("feature_alignment", ROW, WIDER, lambda made, s, t: pf.feature_alignment(made.projection(s), t.mean((2, 3)))),
    ],
)
def test_a_pair_of_layers_is_what_the_loss_inside_says_of_them(
    loss: str, student: tuple[int, ...], teacher: tuple[int, ...], expected: Any
) -> None:
    made, own, theirs, value = of_layers(loss, student, teacher)
    torch.testing.assert_close(value, expected(made.loss, own, theirs))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        ("kd", "it looks at logits, embeddings or centers"),
        ("srrl", "it looks at logits, embeddings or centers"),
        ("center_infonce", "it looks at logits, embeddings or centers"),
        ("fsp", "fsp needs 2 pairs of feature maps, but the networks give 1"),
        ("skd", "skd: level=-2, but this pair has 1"),
        ("ft", "it trains a part of itself in epochs of its own"),
        ("direct_alignment", "it is about the whole student"),
        ("fgfi", "fgfi needs boxes"),
        ("network_losses", "network_losses: the student computes no losses"),
    ],
)
def test_losses_that_serve_no_pair_of_layers(loss: str, reason: str) -> None:
    with pytest.raises(NotApplicable, match=f"^layers: {loss} serves no pair of layers: {reason}"):
        of_layers(loss, MAP, MAP)


def test_a_loss_of_maps_is_shown_no_vector() -> None:
    with pytest.raises(NotApplicable, match=r"^layers: at compares maps, and 'c' returns vectors of width 8"):
        of_layers("at", MAP, LONGER)


@pytest.mark.parametrize("loss", ["correlation_congruence", "at"])
def test_a_pair_of_layers_claims_what_the_loss_inside_claims(loss: str) -> None:
    """As a whole, and as the term that is not built yet."""
    made, inside = of_layers(loss, MAP, MAP)[0], LOSSES.get(loss)
    term = Term("layers", options={"student": "a.b", "teacher": "c", "loss": loss})
    for fact in ("per_sample", "order_matters", "compares_rows"):
        usual = fact == "per_sample"
        assert says(term, fact, usual) == getattr(made, fact, usual) == getattr(inside, fact, usual)
    assert says(term, "reads_maps")
    assert layers_of([term, Term("kd"), replace(term, weight=0, options={"student": "z"})], "student") == ["a.b"]

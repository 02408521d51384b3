"""RKD, PKT, CC, CRD, SSKD and ICKD: published numbers, cases computed by hand, gradients, degenerate batches, state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pckd
from pckd import functional as pf
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
    UserError,
    build,
)

T = torch.tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (teacher * np.log(teacher / student)).sum(-1)


def make_setup(student: int = 6, teacher: int = 8, classes: int = 5, samples: int = 20) -> Setup:
    maps = (((3, 4, 4), (student, 2, 2)), ((3, 4, 4), (teacher, 2, 2)))
    shapes = [Shapes(classes, width, of) for width, of in zip((student, teacher), maps, strict=True)]
    return Setup(*shapes, samples)


def make_context(index: Tensor, labels: Tensor, views: int = 1, stage: Any = "main") -> Context:
    centers = Centers(torch.zeros(5, 6), torch.zeros(5, 8))
    index, labels = index.repeat_interleave(views), labels.repeat_interleave(views)
    return Context(Instances(labels, index, views=views), centers, stage=stage)


def make_output(rows: int, width: int, seed: int) -> Output:
    embedding = normal(rows, width, seed=seed).requires_grad_()
    maps = (normal(rows, 3, 4, 4, seed=seed + 1), normal(rows, width, 2, 2, seed=seed + 2).requires_grad_())
    return Output(normal(rows, 5, seed=seed + 3).requires_grad_(), embedding, maps)


# Published numbers


def test_golden(golden: Any) -> None:
    student = golden.student.upright(golden.views).embedding
    teacher = golden.teacher.upright(golden.views).embedding
    assert pf.rkd(student, teacher).mean().item() == golden.near("rkd_wd25_wa50")
    assert pf.rkd(student, teacher, 25, 50).mean().item() == golden.near("rkd_wd25_wa50")
    assert pf.pkt(student, teacher).mean().item() == pytest.approx(golden["expected_pkt"].item(), rel=1e-4)
    congruence = pf.correlation_congruence(golden["cc_embed_student"], golden["cc_embed_teacher"])
    assert congruence.item() == golden.near("correlation_congruence")


# By hand: relations


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


@pytest.mark.parametrize("weights", [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_rkd_is_huber_of_distances_and_angles(weights: tuple[float, float]) -> None:
    student, teacher = normal(4, 3).numpy(), normal(4, 5, seed=1).numpy()

    def distances(x: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / (d.sum() / (len(x) * (len(x) - 1)))

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths else 0.0

    rows = range(4)
    expected = [
        weights[0] * np.mean([huber(distances(student)[i, j], distances(teacher)[i, j]) for j in rows])
        + weights[1] * np.mean([huber(angle(student, i, j, k), angle(teacher, i, j, k)) for j in rows for k in rows])
        for i in rows
    ]
    assert pf.rkd(T(student), T(teacher), *weights).tolist() == pytest.approx(expected, rel=1e-4)


def test_pkt_is_the_divergence_of_neighborhoods() -> None:
    student, teacher = normal(4, 3).double(), normal(4, 5, seed=1).double()

    def neighbors(x: np.ndarray) -> np.ndarray:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (x @ x.T + 1) / 2
        return kernel / kernel.sum(1, keepdims=True)

    expected = divergence(neighbors(teacher.numpy()), neighbors(student.numpy())) / 4
    assert pf.pkt(student, teacher).tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-7)


def test_correlation_congruence_by_hand() -> None:
    student, teacher = T([[1.0, 0.0], [2.0, 5.0], [0.0, 0.0]]), T([[0.0, 2.0], [5.0, 4.0], [1.0, 1.0]])
    # |differences|: (1, 2), (3, 1), (1, 1); products of neighbors: 3 + 2 and 3 + 1.
    assert pf.correlation_congruence(student, teacher).item() == pytest.approx((5 + 4) / 2)
    assert pf.correlation_congruence(student[:1], teacher[:1]).item() == 0


def test_channel_correlation_by_hand() -> None:
    # One image, two channels of two pixels: G_s = [[1, 0], [0, 4]], G_t = [[2, 2], [2, 2]] with one row of 2 pixels.
    student, teacher = T([[[[1.0, 0.0]], [[0.0, 2.0]]]]), T([[[[1.0], [1.0]], [[1.0], [1.0]]]])
    root = math.sqrt(0.5)
    expected = (2 * (1 - root) ** 2 + 2 * root**2) / 2
    assert pf.channel_correlation(student, teacher).tolist() == pytest.approx([expected])
    with pytest.raises(ValueError, match="as many channels"):
        pf.channel_correlation(student, teacher[:, :1])


def test_channel_correlation_takes_another_resolution() -> None:
    student, teacher = normal(3, 4, 2, 2), normal(3, 4, 5, 5, seed=1)

    def correlation(x: np.ndarray) -> np.ndarray:
        x = x.reshape(4, -1)
        return x @ x.T / np.linalg.norm(x @ x.T, axis=1, keepdims=True)

    pairs = zip(student.numpy(), teacher.numpy(), strict=True)
    expected = [((correlation(s) - correlation(t)) ** 2).sum() / 4 for s, t in pairs]
    assert pf.channel_correlation(student, teacher).tolist() == pytest.approx(expected, rel=1e-4)


# By hand: contrast with a memory


def test_noise_contrast_is_the_published_sum_over_draws() -> None:
    """P / (P + m Pn) for the positive, m Pn / (P + m Pn) for each negative, as the released code has it."""
    slots, draws, temperature, log_z = 7, 5, 0.07, 3.0
    query, bank = pf.unit(normal(3, 4)).double(), pf.unit(normal(slots, 4, seed=1)).double()
    own = T([0, 3, 6])
    drawn = T([[1, 1, 2, 5, 6], [0, 1, 2, 4, 6], [0, 0, 0, 0, 5]])
    counts = nn.functional.one_hot(drawn, slots).sum(1).double()
    scores = np.exp((query @ bank.T).numpy() / temperature - log_z)
    noise = draws / slots
    expected = [
        -np.log(scores[n, own[n]] / (scores[n, own[n]] + noise))
        - sum(np.log(noise / (scores[n, k] + noise)) for k in drawn[n].tolist())
        for n in range(3)
    ]
    positive, negatives = pf.bank_scores(query, bank[own], bank, temperature)
    value = pf.noise_contrast(positive, negatives, counts, draws, T(log_z))
    assert value.tolist() == pytest.approx(expected, rel=1e-6)


def test_log_normalizer_is_the_mean_over_positives_and_draws() -> None:
    positive, negatives = T([[1.0, 2.0]]), T([[[0.0, 1.0, 3.0], [2.0, 0.0, 1.0]]])
    counts = T([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    drawn = [1.0, 2.0, 1.0, 1.0, 3.0, 2.0, 2.0, 2.0]
    expected = math.log(3 * sum(math.exp(score) for score in drawn) / len(drawn))
    assert pf.log_normalizer(positive, negatives, counts).tolist() == pytest.approx([expected])


def test_own_sample_is_never_a_negative_and_the_others_are_drawn_alike() -> None:
    torch.manual_seed(0)
    own, slots, draws = T([0, 3, 9, 9]), 10, 90000
    counts = pf.draw_negatives(own, slots, draws)
    assert counts[torch.arange(4), own].tolist() == [0, 0, 0, 0]
    assert counts.sum(1).tolist() == [draws] * 4
    others = counts[counts > 0].view(4, slots - 1)
    # Standard deviation of each count is 94.
    assert (others - draws / (slots - 1)).abs().max() < 5 * 95
    assert not counts[2].equal(counts[3])


def test_two_slots_leave_one_choice() -> None:
    assert pf.draw_negatives(T([0, 1]), 2, 8).tolist() == [[0, 8], [8, 0]]


def test_keep_other_classes_by_hand() -> None:
    counts = T([[2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 3.0], [0.0, 2.0, 0.0, 2.0]])
    kept = pf.keep_other_classes(counts, T([0, 5, 1]), T([0, 1, -1, 1]))
    assert kept.tolist() == [[0, 2, 2, 0], [0, 0, 1, 3], [0, 0, 0, 0]]


def test_first_rows_and_renewed_by_hand() -> None:
    assert pf.first_rows(T([4, 2, 4, 4, 2])).tolist() == [0, 1, 0, 0, 1]
    old, new = T([[1.0, 0.0], [1.0, 0.0]]), T([[0.0, 1.0], [0.0, 1.0]])
    expected = [0.25 / math.hypot(0.25, 0.75), 0.75 / math.hypot(0.25, 0.75)]
    assert pf.renewed(old, new, T([0.25, 0.0]))[0].tolist() == pytest.approx(expected)
    assert pf.renewed(old, new, T([0.25, 0.0]))[1].tolist() == [0, 1]


# By hand: transformations


def test_reliable_by_hand() -> None:
    scores = T([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 5.0, 0.0], [3.0, 2.0, 1.0]])
    targets = T([2, 0, 1, 1, 1])  # ranks 2, 0, 1, 0, 1: three are wrong
    assert pf.reliable(scores, targets, 0.0).tolist() == [False, True, False, True, False]
    assert pf.reliable(scores, targets, 0.34).tolist() == [False, True, True, True, False]
    assert pf.reliable(scores, targets, 0.75).tolist() == [False, True, True, True, True]
    assert pf.reliable(scores, targets, 1.0).all()


@pytest.mark.parametrize("wrong", range(1, 40))
def test_reliable_rounds_down(wrong: int) -> None:
    scores = T([[1.0, 0.0]]).repeat(wrong + 3, 1)
    targets = T([0] * 3 + [1] * wrong)
    for tenths in range(11):
        assert pf.reliable(scores, targets, tenths / 10).sum().item() == 3 + wrong * tenths // 10


def test_similarities_and_contrast_by_hand() -> None:
    images, views = 3, 4
    embedding = normal(images * views, 5, dtype=torch.float64)
    x = embedding.numpy().reshape(images, views, 5)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    similarity = np.array([[x[i, v] @ x[j, 0] for j in range(images)] for i in range(images) for v in range(1, views)])
    np.testing.assert_allclose(pf.view_similarity(embedding, views).numpy(), similarity)

    losses = [-math.log(softmax(similarity[r])[r // 3]) for r in range(9)]
    value = pf.view_contrast(embedding, views)
    assert value.shape == (12,)
    assert value.view(3, 4)[:, 0].tolist() == [0, 0, 0]
    assert value.mean().item() == pytest.approx(sum(losses) / 9)

    other = normal(images * views, 7, seed=1, dtype=torch.float64)
    teacher = pf.view_similarity(other, views).numpy()
    kept = pf.reliable(T(teacher), T([0, 0, 0, 1, 1, 1, 2, 2, 2]), 0.75).numpy()
    assert 0 < kept.sum() < 9
    expected = 0.25 * divergence(softmax(teacher / 0.5), softmax(similarity / 0.5))[kept].mean()
    assert pf.similarity_transfer(embedding, other, views).mean().item() == pytest.approx(expected)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_transformed_kd_by_hand(ratio: float) -> None:
    student, teacher, labels = normal(12, 5), normal(12, 5, seed=1), T([0, 1, 2]).repeat_interleave(4)
    rotated = [n for n in range(12) if n % 4]
    ranks = [(teacher[n] > teacher[n, labels[n]]).sum().item() for n in rotated]
    wrong = sum(rank > 0 for rank in ranks)
    order = sorted(range(9), key=lambda r: ranks[r])[: 9 - wrong + int(wrong * ratio)]
    losses = [
        16 * divergence(softmax(teacher[n].numpy() / 4), softmax(student[n].numpy() / 4))
        for n in (rotated[r] for r in order)
    ]
    value = pf.transformed_kd(student, teacher, labels, 4, ratio=ratio)
    assert value.mean().item() == pytest.approx(np.mean(losses) if losses else 0, rel=1e-4)
    assert (value.view(3, 4)[:, 0] == 0).all()
    assert (value > 0).sum().item() == len(order)


def test_one_view_stands_for_its_own_transformation() -> None:
    student, teacher, labels = normal(3, 5), normal(3, 5, seed=1), T([0, 1, 2])
    torch.testing.assert_close(pf.transformed_kd(student, teacher, labels, 1), pf.kd(student, teacher))
    assert pf.view_similarity(student, 1).diagonal().tolist() == pytest.approx([1, 1, 1])


# Gradients and degenerate batches


def counts_of(rows: int) -> Tensor:
    return nn.functional.one_hot(T([[1, 1, 3]]).repeat(rows, 1), 5).sum(1).float()


def contrast(student: Tensor, teacher: Tensor, views: int) -> Tensor:
    scores = pf.bank_scores(
        pf.unit(student), pf.unit(teacher)[:, : student.shape[1]], pf.unit(normal(5, 4)).to(student)
    )
    return pf.noise_contrast(*scores, counts_of(len(student)), 3, T(1.0))


def as_map(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 2, -1))


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "rkd": lambda s, t, v: pf.rkd(s, t),
    "pkt": lambda s, t, v: pf.pkt(s, t),
    "correlation_congruence": lambda s, t, v: pf.correlation_congruence(s, t.detach()),
    "channel_correlation": lambda s, t, v: pf.channel_correlation(as_map(s), as_map(t)),
    "noise_contrast": contrast,
    "transformed_kd": lambda s, t, v: pf.transformed_kd(s, t, T([0, 1]).repeat(len(s))[: len(s)], v),
    "view_contrast": lambda s, t, v: pf.view_contrast(s, v),
    "similarity_transfer": lambda s, t, v: pf.similarity_transfer(s, t, v),
}
SCALAR = ("correlation_congruence",)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_derivative(name: str) -> None:
    student = normal(8, 4, dtype=torch.float64).requires_grad_()
    teacher = normal(8, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, teacher, 4), [student])


BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "one_image": lambda x: x[:4],
    "one_row": lambda x: x[:1],
    "identical": lambda x: x[:1].repeat(8, 1),
    "zeros": torch.zeros_like,
    "huge": lambda x: x.sign() * 1e4,
    "opposite": lambda x: x[:1] * T([1.0, -1.0]).repeat(4)[:, None],
    "tiny": lambda x: x * 1e-30,
    "half": lambda x: x.bfloat16(),
}


@pytest.mark.parametrize("autocast", [False, True], ids=["exact", "autocast"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_degenerate_batches_are_finite(name: str, batch: str, autocast: bool) -> None:
    for others in (batch, "plain"):
        student = BATCHES[batch](normal(8, 4)).requires_grad_()
        teacher = BATCHES[others](normal(8, 4, seed=1))[: len(student)].requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = FUNCTIONS[name](student, teacher, 4 if len(student) > 1 else 1)
        assert value.dtype == torch.float32
        assert value.shape == (() if name in SCALAR else (len(student),))
        assert value.isfinite().all()
        assert (value > -1e-3).all()
        value.mean().backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert teacher.grad is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_does_not_cost_precision(name: str) -> None:
    student, teacher = normal(8, 4), normal(8, 4, seed=1)
    exact = FUNCTIONS[name](student, teacher, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(FUNCTIONS[name](student, teacher, 4), exact)


@pytest.mark.parametrize(
    "name", ["rkd", "pkt", "correlation_congruence", "channel_correlation", "transformed_kd", "similarity_transfer"]
)
def test_zero_when_the_student_equals_the_teacher(name: str) -> None:
    teacher = normal(8, 4)
    assert FUNCTIONS[name](teacher.clone(), teacher, 4).abs().max().item() == pytest.approx(0, abs=1e-5)
    assert FUNCTIONS[name](normal(8, 4, seed=1), teacher, 4).mean() > 1e-3


def test_relations_do_not_see_what_they_should_not() -> None:
    student, teacher = normal(5, 4), normal(5, 3, seed=1)
    turned = torch.linalg.qr(normal(4, 4, seed=2))[0]
    torch.testing.assert_close(
        pf.rkd(3 * student @ turned + 1, teacher), pf.rkd(student, teacher), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(pf.pkt(3 * student @ turned, teacher), pf.pkt(student, teacher), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["rkd", "pkt", "channel_correlation"])
def test_permuting_the_batch_permutes_the_values(name: str) -> None:
    student, teacher, order = normal(6, 4), normal(6, 4, seed=1), T([3, 1, 5, 0, 2, 4])
    value = FUNCTIONS[name](student, teacher, 1)
    torch.testing.assert_close(FUNCTIONS[name](student[order], teacher[order], 1), value[order])


# CRD: the memory


def make_crd(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    loss = build(LOSSES, "crd", make_setup(), **{"negatives": 64, "width": 4, **options})
    assert isinstance(loss, nn.Module)
    return loss


def step(loss: nn.Module, index: Tensor, seed: int = 1, labels: Tensor | None = None) -> Tensor:
    rows = len(index)
    torch.manual_seed(seed)
    context = make_context(index, index % 5 if labels is None else labels)
    value: Tensor = loss(make_output(rows, 6, seed), make_output(rows, 8, seed + 50), context)
    return value


def embedded(loss: nn.Module, rows: int, seed: int = 1) -> Tensor:
    """What the step with this seed embeds: [2, rows, width]."""
    student = loss.embed_student(make_output(rows, 6, seed).embedding)
    return pf.unit(torch.stack([student, loss.embed_teacher(make_output(rows, 8, seed + 50).embedding)])).detach()


def test_crd_is_the_sum_of_both_directions() -> None:
    loss = make_crd()
    before = loss.banks.clone()
    index = T([3, 17, 0])
    value = step(loss, index)
    student, teacher = embedded(loss, 3)
    torch.manual_seed(1)
    counts = pf.draw_negatives(index, 20, 19)
    expected = torch.zeros(3)
    for query, bank in ((student, before[1]), (teacher, before[0])):
        scores = torch.exp(query @ bank.T / 0.07).double()
        positive = scores[torch.arange(3), index]
        z = 20 * (positive.sum() + (scores * counts).sum()) / (3 * 20)
        noise = 19 / 20
        expected -= torch.log(positive / z / (positive / z + noise))
        expected -= (counts * torch.log(noise / (scores / z + noise))).sum(1)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_crd_memory_moves_by_momentum_and_keeps_length_one() -> None:
    loss = make_crd(momentum=0.25)
    before = loss.banks.clone()
    step(loss, T([3, 17]))
    moved = 0.25 * before[:, [3, 17]] + 0.75 * embedded(loss, 2)
    torch.testing.assert_close(loss.banks[:, [3, 17]], moved / moved.norm(dim=-1, keepdim=True))
    rest = [slot for slot in range(20) if slot not in (3, 17)]
    assert loss.banks[:, rest].equal(before[:, rest])
    assert loss.label.tolist() == [3 if slot == 3 else 2 if slot == 17 else -1 for slot in range(20)]


def test_crd_estimates_z_once() -> None:
    loss = make_crd()
    assert loss.log_z.isinf().all()
    step(loss, T([3, 17]))
    first = loss.log_z.clone()
    assert first.isfinite().all()
    step(loss, T([5, 6]), seed=2)
    assert loss.log_z.equal(first)


def test_crd_remembers_only_in_training_and_leaves_the_graph_alone() -> None:
    loss = make_crd().eval()
    state = copy.deepcopy(loss.state_dict())
    first = step(loss, T([3, 17]))
    assert all(value.equal(state[key]) for key, value in loss.state_dict().items())
    loss.train()
    assert step(loss, T([3, 17])).equal(first)
    assert not loss.banks.equal(state["banks"])
    values = [step(loss, T([3, 17]), seed) for seed in (2, 3)]
    torch.stack(values).sum().backward()
    assert not loss.banks.requires_grad


def test_crd_memory_is_bounded_and_settable() -> None:
    assert make_crd().banks.shape == (2, 20, 4)
    assert make_crd(memory=7).banks.shape == (2, 7, 4)
    assert make_crd(memory=1000).banks.shape == (2, 20, 4)
    assert make_crd(memory=7).negatives == 6
    assert make_crd(memory=7, negatives=3).negatives == 3
    loss = make_crd(memory=7, momentum=0.5)
    step(loss, T([10, 2]))  # slots 3 and 2
    queries = embedded(loss, 2)
    # Sample 10 did not own slot 3: it takes it whole. Sample 2 owned slot 2 from the start.
    torch.testing.assert_close(loss.banks[:, 3], queries[:, 0])
    assert not torch.allclose(loss.banks[:, 2], queries[:, 1])
    assert loss.owner.tolist() == [0, 1, 2, 10, 4, 5, 6]


def test_crd_of_a_row_that_lost_its_slot_contrasts_with_this_step() -> None:
    loss = make_crd(memory=2, negatives=1)
    loss.log_z.fill_(0.5)
    value = step(loss, T([11]))  # slot 1 belongs to sample 1
    student, teacher = embedded(loss, 1)
    start = make_crd(memory=2).banks
    positive = (student * teacher).sum() / 0.07
    noise = math.log(1 / 2) + 0.5
    other = [(student @ start[1, 0]).item() / 0.07, (teacher @ start[0, 0]).item() / 0.07]
    expected = 2 * nn.functional.softplus(noise - positive) + sum(math.log1p(math.exp(x - noise)) for x in other)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_crd_rows_that_share_a_slot_write_the_first() -> None:
    loss = make_crd(memory=4)
    step(loss, T([9, 5, 1]))  # all in slot 1
    torch.testing.assert_close(loss.banks[:, 1], embedded(loss, 3)[:, 0])
    assert loss.owner[1].item() == 9


def test_crd_leaves_out_its_own_class_once_it_knows_it() -> None:
    """With all samples of one class, nothing is left to contrast with but the positive."""
    loss = make_crd()
    everything, same = torch.arange(20), torch.zeros(20, dtype=torch.int64)
    step(loss, everything, labels=same)
    banks, log_z = loss.banks.clone(), loss.log_z.clone()
    value = step(loss, everything, seed=2, labels=same)
    positive = (embedded(loss, 20, seed=2) * banks.flip(0)).sum(-1) / 0.07
    expected = nn.functional.softplus(math.log(19 / 20) + log_z[:, None] - positive).sum(0)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_crd_continues_identically() -> None:
    loss = make_crd(memory=9)
    step(loss, T([3, 17]))
    torch.manual_seed(99)
    resumed = build(LOSSES, "crd", make_setup(), negatives=64, width=4, memory=9)
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    for seed, index in ((2, T([3, 12])), (3, T([8, 17]))):
        assert step(resumed, index, seed).equal(step(loss, index, seed))
    assert all(a.equal(b) for a, b in zip(resumed.state_dict().values(), loss.state_dict().values(), strict=True))


def test_crd_refuses_what_cannot_work() -> None:
    for samples in (0, 1):
        with pytest.raises(NotApplicable, match="no sample index; it works with") as refusal:
            build(LOSSES, "crd", make_setup(samples=samples))
        assert "\n" not in str(refusal.value)
    for options in ({"memory": 1}, {"momentum": 1.0}, {"temperature": 0.0}, {"negatives": 0}, {"width": 0}):
        with pytest.raises(UserError, match="crd"):
            make_crd(**options)


# SSKD: its two stages


def test_sskd_trains_the_teachers_head_first_and_freezes_it_then() -> None:
    loss = build(LOSSES, "self_supervision", make_setup())
    index = T([0, 1, 2])
    student, teacher = make_output(12, 6, 0), make_output(12, 8, 1)
    value = loss(student, teacher, make_context(index, index, 4, "initial"))
    torch.testing.assert_close(value, pf.view_contrast(loss.teacher_head(teacher.embedding), 4))
    value.mean().backward()
    assert all(p.grad is not None for p in loss.teacher_head.parameters())
    assert all(p.grad is None for p in loss.student_head.parameters())
    assert student.embedding.grad is None
    assert teacher.embedding.grad is None

    loss.zero_grad(set_to_none=True)
    loss(student, teacher, make_context(index, index, 4)).mean().backward()
    assert all(p.grad is None for p in loss.teacher_head.parameters())
    assert all(p.grad is not None for p in loss.student_head.parameters())
    assert student.embedding.grad is not None
    assert teacher.embedding.grad is None


def test_sskd_terms() -> None:
    terms = {term.label: term for term in build(METHODS, "sskd")}
    weights = {label: term.weight for label, term in terms.items()}
    assert weights == {"cross_entropy": 0.1, "kd": 0.9, "transformed_kd": 2.7, "self_supervision": 10}
    head = terms["self_supervision"]
    assert (head.initial, head.initial_weight, head.main, head.rows) == (60, 1, True, "all")
    assert [term.label for term in terms.values() if term.initial] == ["self_supervision"]
    build(METHODS, "sskd(similarity=0)")


# The methods


def test_recipes() -> None:
    weights = {name: build(METHODS, name)[-1].weight for name in ("rkd", "pkt", "cc", "crd", "ickd")}
    assert weights == {"rkd": 1, "pkt": 30000, "cc": 0.02, "crd": 0.8, "ickd": 2.5}
    crd = build(LOSSES, "crd", make_setup(samples=50000))
    assert (crd.negatives, crd.temperature, crd.momentum, crd.embed_student.out_features) == (16384, 0.07, 0.5, 128)
    congruence = build(LOSSES, "correlation_congruence", make_setup())
    assert congruence.embed_teacher.out_features == 128
    with pytest.raises(NotApplicable, match="feature maps"):
        build(LOSSES, "channel_correlation", Setup(Shapes(5, 6), Shapes(5, 8)))


@pytest.mark.parametrize("method", ["rkd", "pkt", "cc", "crd(negatives=32)", "crd(memory=5)", "ickd", "sskd"])
def test_a_short_run(method: str) -> None:
    result = pckd.distill(
        student="resnet8",
        teacher=build_teacher(),
        method=method,
        data="shapes",
        limit_train=16,
        limit_test=8,
        epochs=1,
        batch_size=8,
        device="cpu",
    )
    assert len(result.history) == (2 if method == "sskd" else 1)
    assert all(math.isfinite(value) for row in result.history for value in row.values())


def build_teacher() -> nn.Module:
    torch.manual_seed(0)
    teacher = build(BACKBONES, "resnet14", 10)
    assert isinstance(teacher, nn.Module)
    return teacher

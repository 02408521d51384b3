"""RKD, PKT, CC, CRD, SSKD and ICKD: cases computed by hand, CRD's memory, SSKD's two stages.

Published numbers and what holds for every function are in test_functional.py.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pckd import functional as pf
from pckd import ops
from pckd.losses import banks
from registry import LOSSES, METHODS, Centers, Context, Instances, NotApplicable, Output, Setup, Shapes, build

T = torch.tensor


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    return (teacher * np.log(teacher / student)).sum(-1)


def make_setup(samples: int = 20) -> Setup:
    return Setup(Shapes(5, 6), Shapes(5, 8), samples)


def make_context(index: Tensor, labels: Tensor, views: int = 1, stage: Any = "main") -> Context:
    centers = Centers(torch.zeros(5, 6), torch.zeros(5, 8))
    index, labels = index.repeat_interleave(views), labels.repeat_interleave(views)
    return Context(Instances(labels, index, views=views), centers, stage=stage)


def make_output(rows: int, width: int, seed: int) -> Output:
    return Output(normal(rows, 5, seed=seed + 3), normal(rows, width, seed=seed).requires_grad_())


# By hand: relations


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def test_rkd_is_huber_of_distances_and_angles() -> None:
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
        3 * np.mean([huber(distances(student)[i, j], distances(teacher)[i, j]) for j in rows])
        + 5 * np.mean([huber(angle(student, i, j, k), angle(teacher, i, j, k)) for j in rows for k in rows])
        for i in rows
    ]
    assert pf.rkd(T(student), T(teacher), 3, 5).tolist() == pytest.approx(expected, rel=1e-4)


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


def test_reliable_rounds_down() -> None:
    for wrong, tenths in product(range(1, 40), range(11)):
        scores = T([[1.0, 0.0]]).repeat(wrong + 3, 1)
        targets = T([0] * 3 + [1] * wrong)
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


@pytest.mark.parametrize("half", [False, True])
def test_crd_without_a_copy_of_a_large_memory_is_the_same(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a step has written into the memory before the backward pass of the one before reads it."""

    def run() -> list[Tensor]:
        loss = make_crd(half=half)
        first = torch.stack([step(loss, T([3, 17, 3]), seed) for seed in (2, 3)]).sum()
        loss.eval()
        last = step(loss, T([3, 5])).sum()
        (first + last).backward()
        return [
            first.detach(),
            last.detach(),
            loss.embed_student.weight.grad,
            loss.embed_teacher.weight.grad,
            loss.banks,
        ]

    copied = run()
    monkeypatch.setattr(banks, "LARGE", 0)
    monkeypatch.setattr(banks, "PIECE", 7)
    for value, expected in zip(run(), copied, strict=True):
        # In half precision the memory is read piece by piece.
        torch.testing.assert_close(
            value, expected, **({"rtol": 1e-4, "atol": 1e-5} if half else {"rtol": 0, "atol": 0})
        )


def test_crd_in_half_precision_has_the_same_scores() -> None:
    whole, half = make_crd(), make_crd(half=True)
    assert (half.banks.dtype, half.banks.shape) == (torch.float16, whole.banks.shape)
    half.load_state_dict(whole.state_dict())
    for seed in (1, 2):
        torch.testing.assert_close(step(half, T([3, 17]), seed), step(whole, T([3, 17]), seed), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(half.banks.float(), whole.banks, rtol=1e-3, atol=1e-3)
    assert build(METHODS, "crd(half=True)")[2].options["half"]


def test_large_memory_is_said_before_it_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_crd()
    assert not caplog.messages
    monkeypatch.setattr(ops, "LARGE", 0)
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype: pytest.fail("taken") if not caplog.messages else None)
    with pytest.raises(AttributeError):
        make_crd(half=True)
    assert caplog.messages == [
        "crd: its memory takes 0.00 GiB on the device of the training, and in each checkpoint: 2 x 20 x 4 numbers of "
        "2 bytes; crd(memory=N) has N slots"
    ]


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


def test_crd_needs_two_samples() -> None:
    for samples in (0, 1):
        with pytest.raises(NotApplicable, match="no sample index; it works with"):
            build(LOSSES, "crd", make_setup(samples=samples))


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

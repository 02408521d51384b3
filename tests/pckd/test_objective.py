"""The whole objective: the published total, which rows a term sees, weights, and what is logged or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd.objective import Objective, labels_of, needs_teacher
from pckd.tasks.classification import image_views
from registry import (
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    CenterRule,
    Centers,
    Context,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    UnknownName,
    UserError,
    build,
    function_loss,
)

B, V, K, DS, DT = 5, 4, 3, 6, 8


def make_objective(
    terms: list[Term],
    setup: Setup | None = None,
    difficulty: str | Callable[..., Tensor] = "cross_entropy",
    scheduler: str | Callable[..., Tensor] = "preview",
    centers: str | CenterRule = "classifier",
) -> Objective:
    setup = setup or Setup(Shapes(K, DS), Shapes(K, DT), num_samples=B)
    return Objective(
        terms,
        setup,
        difficulty=build(DIFFICULTY_METRICS, difficulty) if isinstance(difficulty, str) else difficulty,
        scheduler=build(DIFFICULTY_SCHEDULERS, scheduler) if isinstance(scheduler, str) else scheduler,
        centers=build(CENTER_RULES, centers, setup) if isinstance(centers, str) else centers,
    )


def make_batch(views: int = V, grad: bool = False) -> tuple[Output, Output, Context]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(grad)

    rows = B * views
    instances = image_views(torch.tensor([0, 1, 2, 0, 1]), torch.arange(B), views)
    context = Context(instances, Centers(normal(K, DS), normal(K, DT).detach()))
    return Output(normal(rows, K), normal(rows, DS)), Output(normal(rows, K), normal(rows, DT)), context


class Recorder(nn.Module):
    """A loss that keeps what it was shown; its value for a row is 1 plus the number of the row's image."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.shown: tuple[Output, Output, Context]

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        self.shown = student, teacher, context
        return 1.0 + context.index + 0 * student.logits.sum()


whole_batch = function_loss(lambda student, teacher, context: student.logits.square().mean())


# The published step


def published(golden: Any, method: str, epoch: int, epochs: int) -> dict[str, Tensor]:
    objective = make_objective(build(METHODS, method), golden.setup)
    losses: Any = objective.losses
    golden.fill(losses["category_contrast"].student_query, "cc_proj_student")
    golden.fill(losses["category_contrast"].teacher_query, "cc_proj_teacher")
    first, norm, _, last = losses["feature_alignment"].projection
    for layer, name in ((first, "fa_fc1"), (norm, "fa_bn"), (last, "fa_fc2")):
        golden.fill(layer, name)
    values: dict[str, Tensor] = objective(golden.student, golden.teacher, golden.context(epoch, epochs))
    return values


@pytest.mark.parametrize(("epoch", "epochs"), [(60, 240), (5, 20)])
def test_the_published_total(golden: Any, epoch: int, epochs: int) -> None:
    values = published(golden, "pckd", epoch, epochs)
    assert values["loss"].item() == golden.near("pckd_total_epoch60_alpha1_beta0.05_delta1_ff20")
    cross_entropy = golden["expected_cross_entropy"].mean().item()
    assert values["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-4, abs=1e-5)
    assert values["feature_alignment"].item() / 20 == golden.near("feature_alignment")
    if golden.name == "same":
        assert values["center_alignment"].item() == golden.near("center_alignment")
    weights = golden["expected_preview_weight_epoch60"]
    assert values["kd"].item() == pytest.approx((weights * golden["expected_kd"]).mean().item(), rel=1e-4)
    assert values["preview_weight"].item() == pytest.approx(weights.mean().item(), rel=1e-4)
    assert values["previewed"].item() == pytest.approx((weights < 1).float().mean().item())


@pytest.mark.parametrize("method", ["pckd_without_kd", "pckd(delta=0)"])
def test_the_published_total_without_kd(method: str, golden: Any, caplog: pytest.LogCaptureFixture) -> None:
    values = published(golden, method, 60, 240)
    assert "kd" not in values
    assert values["loss"].item() == golden.near("pckd_total_epoch60_without_kd")
    # Center alignment is left out where widths differ.
    assert ("center_alignment" in values) == (golden.name == "same")
    lines = [record.getMessage() for record in caplog.records if "center_alignment" in record.getMessage()]
    assert len(lines) == (golden.name == "other")
    assert all("center_relation" in line and "12" in line and "20" in line for line in lines)


# Rows


class Updated(CenterRule):
    def forward(self, student_net: Any, teacher_net: Any) -> Centers:
        raise AssertionError

    def update(self, student: Output, teacher: Output, labels: Tensor) -> None: ...


class UpdatedWithoutMaps(Updated):
    reads_maps = False


def of_anything(student: Output, teacher: Output, context: Context) -> Tensor:
    return student.logits.sum(1)


@pytest.mark.parametrize(
    ("terms", "parts", "expected"),
    [
        ([Term("kd")], {}, False),
        ([Term("kd"), Term("sp")], {}, True),
        ([Term("kd"), Term("sp", 0.0)], {}, False),
        ([Term("kd"), Term(Recorder)], {}, True),
        ([Term("kd"), Term("ft", initial=3, main=False)], {}, True),
        # A metric counts where something is previewed, a center rule where it is shown what each step has seen.
        ([Term("kd", previewed=True)], {}, False),
        ([Term("kd", previewed=True)], {"difficulty": of_anything}, True),
        ([Term("kd")], {"difficulty": of_anything}, False),
        ([Term("kd", previewed=True)], {"difficulty": lambda student_maps: student_maps[0].mean((1, 2, 3))}, True),
        ([Term("kd", previewed=True)], {"difficulty": DIFFICULTY_METRICS.adapt(of_anything, reads_maps=False)}, False),
        ([Term("kd")], {"centers": "ema"}, False),
        ([Term("kd")], {"centers": Updated()}, True),
        ([Term("kd")], {"centers": UpdatedWithoutMaps()}, False),
        ([Term("kd")], {"centers": CenterRule()}, False),
    ],
)
def test_whether_maps_are_read(terms: list[Term], parts: dict[str, Any], expected: bool) -> None:
    shapes = Shapes(K, DS, ((4, 2, 2),) * 2, ((4, 2, 2),) * 2)
    assert make_objective(terms, Setup(shapes, shapes), **parts).reads_maps == expected


def test_a_term_sees_the_rows_it_asks_for() -> None:
    student, teacher, context = make_batch()
    maps = (torch.arange(B * V).float().reshape(-1, 1, 1, 1),)
    student, teacher = student._replace(maps=maps, preacts=maps), teacher._replace(maps=maps, preacts=maps)
    objective = make_objective([Term(Recorder, name="up"), Term(Recorder, views="all", name="every")])
    objective(student, teacher, context)
    losses: Any = objective.losses
    rows = torch.arange(0, B * V, V)
    *outputs, seen = losses["up"].shown
    for shown, whole in zip(outputs, (student, teacher), strict=True):
        assert shown.logits.equal(whole.logits[rows])
        assert shown.embedding.equal(whole.embedding[rows])
        assert shown.maps[0].flatten().tolist() == shown.preacts[0].flatten().tolist() == rows.tolist()
    assert (seen.labels.tolist(), seen.index.tolist(), seen.views) == ([0, 1, 2, 0, 1], [0, 1, 2, 3, 4], 1)
    assert seen.centers is context.centers
    own, _, seen = losses["every"].shown
    assert own.logits.equal(student.logits)
    assert seen.labels.equal(context.labels)
    assert seen.views == V


def test_metric_and_scheduler_see_upright_rows_without_gradient() -> None:
    student, teacher, context = make_batch(grad=True)
    seen: dict[str, Any] = {}

    def metric(student: Output, teacher: Output, context: Context) -> Tensor:
        seen.update(student=student, teacher=teacher, labels=context.labels, grad=torch.is_grad_enabled())
        return student.logits[:, 0].exp()

    def scheduler(difficulty: Tensor, context: Context) -> Tensor:
        seen.update(difficulty=difficulty, views=context.views)
        return difficulty / (1 + difficulty)

    objective = make_objective([Term("kd", previewed=True)], difficulty=metric, scheduler=scheduler)
    values = objective(student, teacher, context)
    assert seen["student"].logits.equal(student.logits[::V])
    assert seen["teacher"].logits.equal(teacher.logits[::V])
    assert seen["labels"].equal(context.labels[::V])
    assert (seen["views"], seen["grad"]) == (1, False)
    constants = seen["difficulty"], values["preview_weight"], values["previewed"]
    assert not any(constant.requires_grad for constant in constants)


@pytest.mark.parametrize("views", [1, V])
def test_previewed_terms_are_weighted_by_their_image(views: int) -> None:
    student, teacher, context = make_batch(views)
    weights = torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0])
    terms = [
        Term(Recorder, 2.0, previewed=True, name="up"),
        Term(Recorder, 3.0, previewed=True, views="all", name="every"),
        Term(Recorder, 1.0, views="all", name="plain"),
    ]
    values = make_objective(terms, scheduler=lambda difficulty, context: weights)(student, teacher, context)
    weighted = (weights * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).mean().item()
    assert values["up"].item() == pytest.approx(2 * weighted)
    assert values["every"].item() == pytest.approx(3 * weighted)
    assert values["plain"].item() == pytest.approx(3)
    assert values["preview_weight"].item() == pytest.approx(0.55)
    assert values["previewed"].item() == pytest.approx(0.6)


def test_weights_are_constants_of_the_step() -> None:
    """The gradient of a previewed term is the gradient with the weights written down as numbers."""
    student, teacher, context = make_batch(grad=True)
    objective = make_objective([Term("kd", previewed=True)], scheduler="focal")
    objective(student, teacher, context)["loss"].backward()
    got = student.logits.grad
    student.logits.grad = None
    weights = objective.weights(student.upright(V), teacher.upright(V), context.upright())
    numbers = torch.tensor(weights.tolist())
    fixed = make_objective([Term("kd", previewed=True)], scheduler=lambda difficulty, context: numbers)
    fixed(student, teacher, context)["loss"].backward()
    assert got is not None
    torch.testing.assert_close(got, student.logits.grad)
    assert not got.view(B, V, K)[:, 1:].any()


def test_without_a_previewed_term_there_are_no_weights() -> None:
    def never(*arguments: Any) -> Tensor:
        raise AssertionError("asked for")

    objective = make_objective([Term("kd")], difficulty=never, scheduler=never)
    assert set(objective(*make_batch())) == {"kd", "loss"}


# Sum


def test_the_loss_is_the_sum_of_the_terms() -> None:
    student, teacher, context = make_batch()
    values = make_objective(build(METHODS, "pckd(center='center_relation')"))(student, teacher, context)
    names = ["cross_entropy", "kd", "feature_alignment", "center_relation", "category_contrast"]
    assert list(values) == [*names, "loss", "preview_weight", "previewed"]
    assert values["loss"].item() == pytest.approx(sum(values[name].item() for name in names))
    assert all(value.ndim == 0 for value in values.values())


def test_options_reach_the_loss() -> None:
    terms = Term("kd", options={"temperature": 2.0}), Term("kd(temperature=2.0)"), Term("kd")
    by_options, by_name, default = (make_objective([term])(*make_batch())["loss"].item() for term in terms)
    assert by_options == by_name != default


def test_a_term_of_weight_0_is_left_out() -> None:
    objective = make_objective([Term("cross_entropy"), Term("category_contrast", 0.0, previewed=True, views="all")])
    assert (list(objective.terms), objective.row_sets, objective.previews) == (["cross_entropy"], ("upright",), False)
    assert not list(objective.parameters())
    assert set(objective(*make_batch())) == {"cross_entropy", "loss"}


def test_the_teacher_is_a_constant() -> None:
    """Also in a user's loss that does not detach anything."""

    def distance(student: Output, teacher: Output, context: Context) -> Tensor:
        return (student.logits - teacher.logits).square().mean(1) + teacher.embedding.mean(1)

    student, teacher, context = make_batch(grad=True)
    loss = function_loss(distance)
    objective = make_objective([Term(loss), Term(loss, views="all"), Term("kd", previewed=True)])
    objective(student, teacher, context)["loss"].backward()
    assert student.logits.grad is not None
    assert teacher.logits.grad is None
    assert teacher.embedding.grad is None


def test_values_stay_in_full_precision_under_autocast() -> None:
    student, teacher, context = make_batch()
    objective = make_objective(build(METHODS, "pckd(center='center_relation')"))
    with torch.autocast("cpu", torch.bfloat16):
        values = objective(student, teacher, context)
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert values["loss"].item() == pytest.approx(objective(student, teacher, context)["loss"].item(), rel=0.05)


# State


@pytest.mark.parametrize("name", LOSSES.names())
def test_parameters_and_buffers_of_a_loss_are_the_objectives(name: str) -> None:
    torch.manual_seed(0)
    maps = ((4, 8, 8), (4, 8, 8), (6, 4, 4), (DS, 2, 2))
    known = ("boxes", "pixels")
    setup = Setup(Shapes(K, DS, maps, maps), Shapes(K, DS, maps, maps), num_samples=B, knows=known)
    try:
        loss: nn.Module = build(LOSSES, name, setup)
    except NotApplicable as refusal:
        pytest.skip(str(refusal))
    objective = make_objective([Term(name)], setup)
    shapes = sorted(tuple(p.shape) for p in loss.parameters())
    assert sorted(tuple(p.shape) for p in objective.parameters()) == shapes
    assert all(p.requires_grad for p in objective.parameters())
    kept = {f"losses.{name}.{key}" for key in loss.state_dict()}
    assert kept == set(objective.state_dict())
    assert {f"losses.{name}.{key}" for key, _ in loss.named_parameters()} <= kept


def test_learnable_centers_are_parameters_and_memories_are_state() -> None:
    assert "centers.student" in dict(make_objective([Term("kd")], centers="learnable").named_parameters())
    assert "centers.seen" in make_objective([Term("kd")], centers="ema").state_dict()


def test_terms_of_one_loss_are_kept_apart() -> None:
    cold = Term("kd", 1.0, options={"temperature": 1.0})
    objective = make_objective([cold, Term("cross_entropy"), Term("kd", 2.0), Term("kd", name="z")])
    values = objective(*make_batch())
    assert list(objective.terms) == ["kd_0", "cross_entropy", "kd_2", "z"]
    assert values["kd_2"].item() == pytest.approx(2 * values["z"].item())
    assert values["kd_0"].item() != values["z"].item()
    assert values["loss"].item() == pytest.approx(sum(values[label].item() for label in objective.terms))


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a", "a", "a_0", "a_1"],
        ["a_1", "a", "a"],
        ["loss", "previewed", "preview_weight"],
        ["keys", "training", "forward", "_modules"],
        ["my.loss", "my_loss", "."],
    ],
)
def test_labels_never_collide(names: list[str]) -> None:
    terms = [Term(Recorder, float(n + 1), name=name) for n, name in enumerate(names)]
    labels = labels_of(terms)
    assert len(set(labels)) == len(names)
    assert not {"loss", "previewed", "preview_weight"} & set(labels)
    values = make_objective(terms)(*make_batch())
    assert values["loss"].item() == pytest.approx(3 * sum(n + 1 for n in range(len(names))))


# Refusals


def not_here(setup: Setup) -> nn.Module:
    raise NotApplicable("this loss needs a network on paper")


def test_an_optional_term_that_cannot_work_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    objective = make_objective([Term("kd"), Term(not_here, optional=True)])
    for _ in range(3):
        assert set(objective(*make_batch())) == {"kd", "loss"}
    (record,) = caplog.records
    assert record.getMessage() == "term not_here is left out: this loss needs a network on paper"


@pytest.mark.parametrize(
    ("terms", "error", "said"),
    [
        ([Term("kd"), Term(not_here)], NotApplicable, "on paper"),
        ([Term("center_alignment")], NotApplicable, "center_relation"),
        # Other errors are not taken for one that an optional term may have.
        ([Term("kd"), Term("kdd", optional=True)], UnknownName, "kdd"),
        ([Term("kd"), Term("kd(temperature=0)", optional=True)], UserError, "temperature"),
        ([], UserError, "no term"),
        ([Term("kd", 0.0)], UserError, "no term"),
        ([Term(not_here, optional=True)], UserError, "no term"),
        ([Term("kd", main=False, initial=1)], UserError, "only terms for initial epochs"),
    ],
)
def test_terms_that_cannot_work_are_refused(terms: list[Term], error: type[UserError], said: str) -> None:
    with pytest.raises(error, match=said):
        make_objective(terms)


def test_a_scalar_cannot_be_previewed() -> None:
    assert make_objective([Term(whole_batch, name="whole")])(*make_batch())["loss"].ndim == 0
    with pytest.raises(UserError, match="whole is about the whole batch"):
        make_objective([Term(whole_batch, name="whole", previewed=True)])(*make_batch())


@pytest.mark.parametrize("shape", [(), (1,), (B, 1), (B * V,)])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    objective = make_objective([Term("kd", previewed=True)], scheduler=lambda difficulty, context: torch.ones(shape))
    with pytest.raises(UserError, match="one weight an image"):
        objective(*make_batch())


@pytest.mark.parametrize("shape", [(1,), (B, 1), (B * V,), (B, K)])
@pytest.mark.parametrize("previewed", [False, True])
def test_values_of_another_shape_are_refused(shape: tuple[int, ...], previewed: bool) -> None:
    wrong = function_loss(lambda student, teacher, context: torch.ones(shape))
    with pytest.raises(UserError, match=r"wrong returned values of shape .* for 5 rows"):
        make_objective([Term(wrong, name="wrong", previewed=previewed)])(*make_batch())


# What a run needs


@pytest.mark.parametrize(
    ("terms", "needed"),
    [
        ([Term("cross_entropy")], False),
        ([Term("cross_entropy"), Term("kd", 0.0)], False),
        ([Term("cross_entropy"), Term("kd(temperature=2)")], True),
        ([Term("cross_entropy", previewed=True)], True),
        ([Term(Recorder)], True),
    ],
)
def test_who_needs_a_teacher(terms: list[Term], needed: bool) -> None:
    assert needs_teacher(terms) == make_objective(terms).needs_teacher == needed


def test_sets_of_rows_that_terms_ask_for() -> None:
    assert make_objective(build(METHODS, "pckd(center='center_relation')")).row_sets == ("upright", "all")
    assert make_objective(build(METHODS, "kd")).row_sets == ("upright",)


def test_loss_with_a_large_memory_is_tried_with_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Bank(nn.Module):
        needs_index = True

        def __init__(self, setup: Setup) -> None:
            super().__init__()
            sizes.append(setup.num_samples)
            self.register_buffer("bank", torch.zeros(setup.num_samples))

        def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
            self.bank[context.index] = 1.0  # type: ignore[index,operator]
            return student.logits.sum(1)

    student, teacher, context = make_batch(grad=True)
    setup = Setup(Shapes.of(student), Shapes.of(teacher), 50_000)
    objective = make_objective([Term(Bank, name="bank"), Term("kd")], setup)
    for large, expected in ((2**28, [50_000]), (0, [50_000, 4096])):
        monkeypatch.setattr("pckd.objective.LARGE", large)
        assert objective.check_reads(student, teacher, context.instances)
        assert sizes == expected
    assert not objective.losses["bank"].bank.any()  # type: ignore[operator,union-attr]

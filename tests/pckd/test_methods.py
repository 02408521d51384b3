"""Every registered method on one pair of each combination of families, for a real step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from model_zoo import probe
from pckd.device import Device
from pckd.engine.optimization import Optimization
from pckd.engine.step import train_step
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Objective
from pckd.plan import make_objective
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from pckd.terms import method_terms, schedule_terms
from pckd.testing.cases import methods_of_views
from registry import BACKBONES, Batch, NotApplicable, Progress, Setup, Term, UserError

PAIRS = {
    "resnet-resnet": ("resnet14", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "vgg-vgg": ("vgg11", "vgg8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
CLASSES, IMAGES, SIDE, SAMPLES = 4, 4, 16, 20
CPU = torch.device("cpu")

# What cannot work, and the reason; every other method works on every pair.
REFUSED = {
    ("fsp", "wrn-resnet"): "channels",
    ("fsp", "resnet-vgg"): "channels",
    ("fsp", "resnet-MobileNetV2"): "channels",
    ("fsp", "resnet-ShuffleV2"): "channels",
    ("kdsvd", "wrn-resnet"): "channels",
    ("kdsvd", "resnet-vgg"): "channels",
    ("kdsvd", "resnet-MobileNetV2"): "channels",
    ("kdsvd", "resnet-ShuffleV2"): "channels",
    ("simkd", "resnet-MobileNetV2"): "srrl",
    ("simkd", "resnet-ShuffleV2"): "srrl",
}


class Run:
    """A method on a pair, ready to step."""

    def __init__(
        self, method: str, pair: str, seed: int = 0, terms: list[Term] | None = None, scheduler: Any = "preview"
    ) -> None:
        teacher_name, student_name = PAIRS[pair]
        # The teacher is the same for every seed: it is in no checkpoint.
        torch.manual_seed(0)
        self.teacher = FrozenTeacher(BACKBONES.get(teacher_name)(CLASSES))
        torch.manual_seed(seed)
        self.student = BACKBONES.get(student_name)(CLASSES)
        student, teacher = (probe(net, 3, SIDE) for net in (self.student, self.teacher))
        setup = Setup(student, teacher, SAMPLES, self.teacher.classifier)
        terms = method_terms(method, student_name, teacher_name) if terms is None else terms
        self.objective: Objective = make_objective(
            terms, setup, difficulty="cross_entropy", scheduler=scheduler, centers="classifier"
        )
        self.optimizer = Optimization(1, IMAGES, 1e-3, weight_decay=0.0).optimizer((self.student, self.objective), CPU)

    def batch(self, number: int) -> Batch:
        generator = torch.Generator().manual_seed(100 + number)
        strong = "strong" in self.objective.row_sets
        views = (4 if "all" in self.objective.row_sets else 1) + strong
        return Batch(
            torch.randn(IMAGES, views, 3, SIDE, SIDE, generator=generator),
            torch.tensor([0, 1, 0, 3]),
            torch.randperm(SAMPLES, generator=generator)[:IMAGES],
            strong=strong,
        )

    def step(self, number: int, stage: Any = "main", precision: str = "fp32") -> dict[str, float]:
        self.student.train()
        self.objective.train()
        torch.manual_seed(number)
        step = train_step(
            self.batch(number),
            model=DistillationTask(Classification(), self.student, self.objective),
            teachers=[self.teacher],
            optimizer=self.optimizer,
            device=Device(CPU, precision),
            progress=Progress(120, 240, 0.5, stage),
        )
        return {name: value.item() for name, value in step.values.items()}

    def state(self) -> dict[str, Any]:
        parts = {"student": self.student, "objective": self.objective, "optimizer": self.optimizer}
        return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", methods_of_views())
def test_method_on_pair(method: str, pair: str) -> None:
    if (method, pair) in REFUSED:
        with pytest.raises(NotApplicable, match=REFUSED[method, pair]) as refusal:
            Run(method, pair)
        assert "\n" not in str(refusal.value)
        return
    run = Run(method, pair)
    student, teacher = snapshot(run.student), snapshot(run.teacher)
    trained: set[str] = set()
    stages = ["initial"] if run.objective.initial_epochs(240) else []
    for number, stage in enumerate([*stages, "main"]):
        values = run.step(number, stage)
        assert all(torch.tensor(value).isfinite() for value in values.values()), values
        acting = {name for name, t in run.objective.terms.items() if (t.initial if stage == "initial" else t.main)}
        assert acting <= values.keys()
        assert values["loss"] == pytest.approx(sum(values[name] for name in acting), rel=1e-4, abs=1e-6)
        trained |= {name for name, p in run.objective.named_parameters() if p.grad is not None}
    # The gradient reaches the student, and every parameter of the losses (or it would stay at its random start).
    assert moved(run.student, student)
    assert trained == {name for name, _ in run.objective.named_parameters()}
    optimized = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in [*run.student.parameters(), *run.objective.parameters()]} == optimized
    # The teacher has no gradient, and neither its weights nor its batch statistics have moved.
    assert all(p.grad is None for p in run.teacher.parameters())
    assert all(torch.equal(teacher[name], tensor) for name, tensor in run.teacher.state_dict().items())


@pytest.mark.parametrize("method", methods_of_views())
def test_method_in_bf16(method: str) -> None:
    run = Run(method, "resnet-resnet")
    stages = ["initial"] if run.objective.initial_epochs(240) else []
    for number, stage in enumerate([*stages, "main"]):
        half = run.step(number, stage, precision="bf16")
        assert all(torch.tensor(value).isfinite() for value in half.values()), half


@pytest.mark.parametrize("method", methods_of_views())
def test_saved_and_reloaded_method_continues_identically(method: str) -> None:
    first = Run(method, "resnet-resnet")
    if first.objective.initial_epochs(240):
        first.step(0, "initial")
    first.step(1)
    again = Run(method, "resnet-resnet", seed=99)
    again.load(first.state())
    assert [first.step(n) for n in (2, 3)] == [again.step(n) for n in (2, 3)]
    for a, b in zip(first.student.state_dict().values(), again.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["dkd+crd", "pckd+dkd", "rkd+at+vid", "mld+pckd"])
def test_methods_act_together(method: str) -> None:
    run = Run(method, "resnet-resnet")
    values = run.step(0)
    parts = [Run(part, "resnet-resnet").objective.terms for part in method.split("+")]
    expected = {label for terms in parts for label in terms}
    assert expected <= values.keys()
    assert torch.tensor(list(values.values())).isfinite().all()


WHOLE_BATCH = ["cc"]
"""Methods whose only loss is about the batch as a whole: it has no samples to weigh."""


@pytest.mark.parametrize("method", [m for m in methods_of_views() if m not in ("vanilla", *WHOLE_BATCH)])
def test_per_sample_losses_of_any_method_can_be_previewed(method: str) -> None:
    terms, scheduler = schedule_terms(method_terms(method), "constant")
    run = Run(method, "resnet-resnet", terms=terms, scheduler=scheduler)
    assert run.step(0)["preview_weight"] == 1
    assert any(term.previewed for term in run.objective.terms.values())


@pytest.mark.parametrize("method", WHOLE_BATCH)
def test_losses_about_the_whole_batch_cannot_be_previewed(method: str) -> None:
    with pytest.raises(UserError, match="nothing to schedule by difficulty"):
        schedule_terms(method_terms(method), "preview")

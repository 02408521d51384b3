"""Every registered method on one pair of each combination of families, for a real step."""

from __future__ import annotations

import copy
import math
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
from registry import (
    BACKBONES,
    LOSSES,
    METHODS,
    Batch,
    NotApplicable,
    Progress,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
)

PAIRS = {
    "resnet-resnet": ("resnet14", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
CLASSES, IMAGES, SIDE, SAMPLES = 4, 4, 16, 20
CPU = torch.device("cpu")

# What cannot work, and the reason; every other method works on every pair.
REFUSED = {(name, pair): "equal widths.*any widths" for name in ("fsp", "kdsvd") for pair in PAIRS}
del REFUSED["fsp", "resnet-resnet"], REFUSED["kdsvd", "resnet-resnet"]
REFUSED |= {("simkd", "resnet-MobileNetV2"): "srrl", ("simkd", "resnet-ShuffleV2"): "srrl"}
REFUSED |= {("sdd", pair): "dkd works" for pair in ("resnet-MobileNetV2", "resnet-ShuffleV2")}


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
        self.optimizer = Optimization(1, IMAGES, 1e-3, weight_decay=0.0).optimizer(self.student, self.objective, CPU)

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
        (step,) = train_step(
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
        with pytest.raises(NotApplicable, match=f"^.*{REFUSED[method, pair]}.*$"):
            Run(method, pair)
        return
    run = Run(method, pair)
    student, teacher = snapshot(run.student), snapshot(run.teacher)
    trained: set[str] = set()
    stages = ["initial"] if run.objective.initial_epochs(240) else []
    for number, stage in enumerate([*stages, "main"]):
        values = run.step(number, stage)
        assert all(math.isfinite(value) for value in values.values()), values
        acting = {name for name, t in run.objective.terms.items() if (t.initial if stage == "initial" else t.main)}
        assert acting == values.keys() & run.objective.terms.keys()
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
def test_saved_and_reloaded_method_continues_identically_in_bf16(method: str) -> None:
    first = Run(method, "resnet-resnet")
    if first.objective.initial_epochs(240):
        first.step(0, "initial", "bf16")
    first.step(1, precision="bf16")
    again = Run(method, "resnet-resnet", seed=99)
    again.load(first.state())
    for number in (2, 3):
        values = first.step(number, precision="bf16")
        assert all(math.isfinite(value) for value in values.values())
        assert again.step(number, precision="bf16") == values
    for a, b in zip(first.student.state_dict().values(), again.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["dkd+crd", "pckd+dkd", "rkd+at+vid", "mld+pckd"])
def test_methods_act_together(method: str) -> None:
    run = Run(method, "resnet-resnet")
    values = run.step(0)
    parts = [Run(part, "resnet-resnet").objective.terms for part in method.split("+")]
    expected = {label for terms in parts for label in terms}
    assert expected <= values.keys()


@pytest.mark.parametrize("method", [name for name in methods_of_views() if name not in ("vanilla", "cc")])
def test_per_sample_losses_of_any_method_can_be_previewed(method: str) -> None:
    terms, scheduler = schedule_terms(method_terms(method), "constant")
    run = Run(method, "resnet-resnet", terms=terms, scheduler=scheduler)
    assert run.step(0)["preview_weight"] == 1
    chosen = {term.label for term in method_terms(method) if term.previewed}
    per_sample = {term.label for term in terms if getattr(LOSSES.get(term.label), "per_sample", True) and term.weight}
    previewed = {term.label for term in run.objective.terms.values() if term.previewed}
    assert previewed == (chosen or per_sample - {"cross_entropy"})


def test_losses_about_the_whole_batch_cannot_be_previewed() -> None:
    with pytest.raises(UserError, match="nothing to schedule by difficulty"):
        schedule_terms(method_terms("cc"), "preview")


PUBLISHED: dict[str, dict[str, tuple[float, dict[str, Any]]]] = {
    "ab": {"ab": (1, {"margin": 1, "initial": 30, "main": False})},
    "abkd": {"abkd": (4, {"alpha": 0.8, "beta": 0.3, "temperature": 4})},
    "at": {"at": (1000, {"p": 2})},
    "cc": {"correlation_congruence": (0.02, {"width": 128})},
    "ckd": {"ckd": (100, {"temperature": 1})},
    "crd": {"kd": (0, {}), "crd": (0.8, {"negatives": 16384, "memory": None})},
    "ctkd": {"cross_entropy": (0.1, {}), "ctkd": (0.9, {"least": 1, "span": 20, "ramp": 10})},
    "dist": {"dist_inter": (2, {"temperature": 4}), "dist_intra": (2, {"temperature": 4})},
    "dkd": {"dkd": (1, {"alpha": 1, "beta": 8, "temperature": 4, "warmup": 20})},
    "fitnet": {"fitnet": (100, {"hint_layer": None})},
    "fsp": {"fsp": (50, {"initial": 30, "initial_weight": 1, "main": False})},
    "ft": {"ft": (200, {"rate": 0.5, "initial": 30, "initial_weight": 0.2})},
    "ickd": {"kd": (0, {"temperature": 4}), "channel_correlation": (2.5, {})},
    "kd": {"kd": (1, {"temperature": 4})},
    "kdsvd": {"kdsvd": (1, {"k": 1})},
    "lskd": {"cross_entropy": (0.1, {}), "lskd": (9, {"temperature": 2})},
    "mld": {
        "cross_entropy": (0.2, {"rows": "strong"}),
        "mld_instance": (1.8, {"temperature": 4, "rows": "strong"}),
        "mld_batch": (0.9, {"temperature": 4}),
        "mld_class": (0.9, {"temperature": 4}),
    },
    "nkd": {"nkd": (1, {"gamma": 1.5, "temperature": 1})},
    "nst": {"nst": (50, {})},
    "ofd": {"ofd": (1e-3, {})},
    "ofa": {"ofa": (1, {"eps": 1, "temperature": 1}), "ofa_stages": (1, {"eps": 1, "temperature": 1})},
    "pkt": {"pkt": (30000, {})},
    "reviewkd": {"reviewkd": (5, {"warmup": 20})},
    "rkd": {"rkd": (1, {"distance_weight": 25, "angle_weight": 50})},
    "rld": {"rld": (1, {"alpha": 1, "beta": 8, "temperature": 4, "confidence_temperature": 1, "warmup": 20})},
    "sdd": {"sdd": (1, {"alpha": 1, "beta": 8, "temperature": 4, "scales": (1, 2, 4), "warmup": 20})},
    "simkd": {"cross_entropy": (0, {}), "simkd": (1, {"factor": 2})},
    "sp": {"sp": (3000, {})},
    "srrl": {"srrl": (1, {"feature": 1, "regression": 1})},
    "sskd": {
        "cross_entropy": (0.1, {}),
        "kd": (0.9, {"temperature": 4}),
        "transformed_kd": (2.7, {"temperature": 4, "rows": "all"}),
        "self_supervision": (
            10,
            {"temperature": 0.5, "ratio": 0.75, "rows": "all", "initial": 60, "initial_weight": 1},
        ),
    },
    "ttm": {"ttm": (45, {"gamma": 0.1})},
    "wkd": {"wkd": (1, {"gamma": 600, "temperature": 8, "sharpness": 1, "decay": 150})},
    "wttm": {"wttm": (4, {"gamma": 0.2})},
    "vid": {"vid": (1, {"init_variance": 5})},
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_terms(method: str) -> None:
    """Of PCKD's own, test_objective.py has the published total."""
    terms = {term.label: (term.weight, {**term.options, **term.particulars}) for term in build(METHODS, method)}
    assert terms == {"cross_entropy": (1, {}), **PUBLISHED[method]}


def test_crd_has_the_published_contrast() -> None:
    crd = build(LOSSES, "crd", Setup(Shapes(5, 6), Shapes(5, 8), 50000))
    assert (crd.negatives, crd.temperature, crd.momentum, crd.embed_student.out_features) == (16384, 0.07, 0.5, 128)


NOT_ABOVE_0 = (0, -1, float("nan"))
OF_TEMPERATURE = (
    *("kd", "dkd", "lskd", "dist_inter", "dist_intra", "mld_instance", "mld_batch", "mld_class"),
    *("nkd", "rld", "sdd", "wkd", "ckd", "abkd", "ofa", "ofa_stages"),
    *("center_infonce", "category_contrast", "crd", "transformed_kd", "self_supervision"),
)


@pytest.mark.parametrize(
    ("loss", "option", "values"),
    [
        *((loss, "temperature", NOT_ABOVE_0) for loss in OF_TEMPERATURE),
        ("category_contrast", "base_temperature", NOT_ABOVE_0),
        ("crd", "memory", (1,)),
        ("crd", "momentum", (-0.1, 1.0)),
        ("crd", "negatives", (0,)),
        ("crd", "width", (0,)),
        ("correlation_congruence", "width", (0,)),
        ("direct_alignment", "inherit", ("all",)),
        ("transformed_kd", "ratio", (-0.1, 1.1)),
        ("self_supervision", "ratio", (-0.1, 1.1)),
        ("simkd", "factor", (0, -1, 9)),
        ("at", "p", (0.5,)),
        ("kdsvd", "k", (0,)),
        ("ab", "margin", NOT_ABOVE_0),
        ("vid", "init_variance", (0, 1e-5)),
        *((loss, "eps", NOT_ABOVE_0) for loss in ("ofa", "ofa_stages")),
        ("abkd", "alpha", (-0.3, -1.0)),
        *(("ctkd", option, (0, -1)) for option in ("least", "span", "ramp")),
        ("wkd", "sharpness", NOT_ABOVE_0),
        ("wkd", "decay", (-1, 240)),
        ("sdd", "scales", ((), (2,), (1, 5), (1, 2.0))),
        ("rld", "confidence_temperature", NOT_ABOVE_0),
        *((loss, "gamma", NOT_ABOVE_0) for loss in ("ttm", "wttm")),
    ],
)
def test_options_out_of_range_are_refused(loss: str, option: str, values: tuple[Any, ...]) -> None:
    shapes = Shapes(3, 8, *2 * (((4, 8, 8), (6, 8, 8), (8, 4, 4)),))
    for value in values:
        with pytest.raises(UserError, match=f"^{loss.partition('_')[0]}.*: .*{option}"):
            build(LOSSES, loss, Setup(shapes, shapes, SAMPLES), **{option: value})


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("fitnet(hint_layer=3)", "hint_layer=3, but this pair has layers 0 to 2"),
        ("ft(rate=0.01)", r"rate=0\.01 of 8 channels"),
    ],
)
def test_options_that_leave_nothing_are_refused(loss: str, said: str) -> None:
    shapes = Shapes(3, 8, ((4, 8, 8), (6, 8, 8), (8, 4, 4)))
    with pytest.raises(NotApplicable, match=said):
        build(LOSSES, loss, Setup(shapes, shapes))

"""Several teachers: their mean, the one that a term names, and the caches, records and refusals of runs under them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from model_zoo import save_weights
from pckd.commands.train_net import main
from pckd.display import Display
from pckd.engine.teacher import FrozenTeacher
from pckd.ops import SEVERAL, mean_answer
from pckd.plan import make_objective
from pckd.runs import group_runs, read_runs
from pckd.tasks.classification import image_views
from registry import BACKBONES, Absent, Context, NotApplicable, Output, Setup, Shapes, Term, UserError

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 1, "display": None}
SHAPES = "shapes(image_size=8, train_size=24, test_size=12, num_classes=3)"


def network(name: str = "resnet8", seed: int = 5, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = BACKBONES.get(name)(classes)
    return made


def run(data: pckd.Data, teacher: Any, **options: Any) -> pckd.Result:
    return pckd.distill(**{"student": "resnet8", "teacher": teacher, "data": data, **SMALL, **options})


def unnamed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the terms called as under one teacher."""
    return [{name.partition("@")[0]: value for name, value in row.items()} for row in history]


class Notes(Display):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Headless(nn.Module):
    """An extractor: what it returns is an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


# The mean


def test_the_mean_is_of_probabilities() -> None:
    one = Output(torch.tensor([[0.0, math.log(3)]]), torch.ones(1, 4))  # 1/4 and 3/4
    other = Output(torch.tensor([[5.0, 5.0]]), torch.ones(1, 2))  # 1/2 and 1/2
    blind = Output(Absent("no logits"), torch.ones(1, 7))  # type: ignore[arg-type]
    for answers in ([one, other], [one, blind, other]):
        mean = mean_answer(answers)
        torch.testing.assert_close(mean.logits.exp(), torch.tensor([[3 / 8, 5 / 8]]))
        assert mean.members == tuple(answers)
        assert [x is SEVERAL for x in (mean.embedding, mean.maps, mean.preacts)] == [True] * 3
    assert mean_answer([one]) is one
    assert mean_answer([blind, blind]).logits is blind.logits
    half = mean.rows(slice(0, 0)).detach()
    assert [len(member.embedding) for member in half.members] == [0, 0, 0]


def test_a_list_of_one_is_this_teacher(tiny_data: pckd.Data) -> None:
    plain = run(tiny_data, network(), method="kd")
    for options in ({"method": "kd@1"}, {"method": "kd@ResNet"}, {"method": "kd", "teacher_weights": [None]}):
        other = run(tiny_data, [network()], **options)
        assert other.history == plain.history
        free = ("method", "images_per_second", "train_seconds")
        kept = [{k: v for k, v in r.record.items() if k not in free} for r in (plain, other)]
        for record in kept:
            record["arguments"] = {k: v for k, v in record["arguments"].items() if k != "method"}
        assert kept[0] == kept[1]


def test_twice_the_same_teacher_teaches_what_it_teaches_alone(tiny_data: pckd.Data) -> None:
    one, twice = (run(tiny_data, t, method="kd") for t in (network(), [network(), network()]))
    assert twice.history[0]["kd"] == pytest.approx(one.history[0]["kd"], rel=1e-4)
    assert twice.record["teacher_top1"] == one.record["teacher_top1"]
    assert twice.record["teachers"] == [{"name": "ResNet", "top1": one.record["teacher_top1"]}] * 2
    assert twice.record["teacher"] == ["ResNet", "ResNet"]


def test_a_teacher_without_a_classifier_does_not_count_in_the_mean(tiny_data: pckd.Data) -> None:
    headless = pckd.adapt(Headless(), classifier=False, image_size=8)
    notes = Notes()
    both = run(tiny_data, [network(), headless], method="kd+rkd@2", display=notes)
    alone = run(tiny_data, network(), method="kd")
    assert both.record["teachers"] == [
        {"name": "ResNet", "top1": alone.record["teacher_top1"]},
        {"name": "Headless", "top1": None},
    ]
    assert both.record["teacher_top1"] == alone.record["teacher_top1"]
    assert any("the mean of the teachers that have a classifier" in note for note in notes.said)
    assert both.history[0]["rkd@2"] > 0
    with pytest.raises(NotApplicable, match="'rkd': there are several teachers"):
        run(tiny_data, [network(), headless], method="rkd")
    with pytest.raises(NotApplicable, match="has no classifier"):
        run(tiny_data, [network(), headless], method="kd@2")


# The teacher that a term names


class Recorder(nn.Module):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        self.teacher, self.context = teacher, context
        return student.logits.square().mean(1)


def test_a_term_is_shown_the_teacher_that_it_names() -> None:
    shapes = Shapes(3, 6), Shapes(3, 4), Shapes(3, 5)
    members = tuple(Setup(shapes[0], shape, 2) for shape in shapes[1:])
    setup = Setup(shapes[0], Shapes(3, 0, SEVERAL, SEVERAL), 2, SEVERAL, members=members)
    names = [None, 2, 1]
    terms = [Term(Recorder, name="all"), Term(Recorder, name="one", teacher=2), Term(Recorder, name="one", teacher=1)]
    objective = make_objective(terms, setup, difficulty="cross_entropy", scheduler="preview", centers="ema")
    assert list(objective.terms) == ["all", "one@2", "one@1"]
    assert set(objective.state_dict()) == {f"centers.{at}.{x}" for at in "12" for x in ("student", "teacher", "seen")}
    nets = [nn.Module() for _ in range(3)]
    for net, width in zip(nets, (6, 4, 5), strict=True):
        net.classifier = nn.Linear(width, 3)
    student, *answers = (Output(torch.randn(2, 3), torch.randn(2, width)) for width in (6, 4, 5))
    centers = objective.find_centers(*nets)
    instances = image_views(torch.tensor([0, 1]), torch.arange(2))
    objective(student, mean_answer(answers), Context(instances, centers))
    for loss, name in zip(objective.losses.values(), names, strict=True):
        own: Any = loss
        if name is None:
            assert own.setup is setup
            assert own.teacher.members == ()
            assert own.teacher.embedding is own.context.centers.teacher is SEVERAL
        else:
            assert own.setup is members[name - 1]
            assert own.teacher.embedding.equal(answers[name - 1].embedding)
            assert own.context.centers.teacher.equal(nets[name].classifier.weight)
    objective.update_centers(student, mean_answer(answers), instances.labels)
    rules: Any = objective.centers
    assert rules.rules[2].teacher[:2].equal(answers[1].embedding)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kd", {}),
        ("pckd", {}),
        ("pckd", {"centers": "ema"}),
        ("pckd", {"centers": "learnable"}),
        ("crd", {}),
        ("fitnet", {}),
        ("simkd", {}),
        ("pckd_plus", {}),
    ],
    ids=str,
)
def test_a_method_of_one_of_two_teachers_trains_as_under_this_one(
    method: str, options: dict[str, Any], tiny_data: pckd.Data
) -> None:
    small, large = network(), network("resnet14", 6)
    alone = run(tiny_data, large, method=method, **options)
    named = run(tiny_data, [small, large], method=f"{method}@2", **options)
    assert unnamed(named.history) == alone.history
    assert {term.get("teacher") for term in named.record["terms"].values()} <= {None, 2}
    assert all(value.equal(alone.student.state_dict()[key]) for key, value in named.student.state_dict().items())


def test_several_methods_and_teachers_at_once(tiny_data: pckd.Data) -> None:
    terms = [Term("cross_entropy"), Term("kd", teacher=1), Term("kd", teacher=2), Term("kd", 0.5)]
    reports = {"report_difficulty": True, "report_gradients": True, "difficulty": "teacher_cross_entropy"}
    result = run(tiny_data, [network(), network("resnet14")], method=terms, scheduler="preview", **reports)
    assert list(result.record["terms"]) == ["cross_entropy", "kd@1", "kd@2", "kd"]
    assert {"teacher_cross_entropy", "cross_entropy"} <= set(result.history[0]["difficulty_report"]["metrics"])


def test_a_head_of_one_of_the_teachers_is_saved_and_loaded(tmp_path: Path) -> None:
    files = [save_weights(network(name), tmp_path / f"{name}.pth") for name in ("resnet14", "wrn_16_2")]
    teachers = {"teacher": ["resnet14", "wrn_16_2"], "teacher_weights": files}
    result = pckd.distill(
        student="resnet8", data=SHAPES, method="simkd@2", output=tmp_path / "run", **teachers, **SMALL
    )
    loaded = pckd.load(tmp_path / "run" / "model_final.pth")
    assert loaded.classifier.in_features == 128  # type: ignore[union-attr]
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images).logits, result.student(images).logits)


def test_detectors_and_segmenters_have_several_teachers() -> None:
    data = "scenes(train_size=4, test_size=2, image_size=64, num_classes=3)"
    teachers = [network("fcn_r18w48", seed) for seed in (1, 2)]
    options = {"batch_size": 2, "task": "segmentation", "method": "kd+at@2", "student": "fcn_r10w16"}
    result = run(data, teachers, **options)  # type: ignore[arg-type]
    assert list(result.record["terms"]) == ["kd", "at@2", "network_losses"]
    assert result.record["teacher_miou"] is None
    assert [set(teacher) for teacher in result.record["teachers"]] == [{"name", "miou"}] * 2
    with pytest.raises(NotApplicable, match="loss 'at': there are several teachers"):
        run(data, teachers, **{**options, "method": "at"})  # type: ignore[arg-type]


# Caches and resuming


def test_each_teacher_has_its_cache_and_a_resumed_run_is_the_whole_one(
    tiny_data: pckd.Data, tmp_path: Path, stop_after: Callable[[int], Display], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [network(), network("resnet14")]
    options = {"method": "kd+rkd@2", "epochs": 2, "teacher_cache": tmp_path / "cache", "view_pool": 1}
    for teacher in teachers:
        run(tiny_data, teacher, **{**options, "method": "kd", "teacher_cache": tmp_path / "alone"})
    whole = run(tiny_data, teachers, output=tmp_path / "whole", **options)
    names = [{folder.name for folder in (tmp_path / cache).iterdir()} for cache in ("cache", "alone")]
    assert names[0] == names[1]
    assert len(names[0]) == 2

    asked: list[int] = []
    forward = FrozenTeacher.forward

    def spy(self: FrozenTeacher, x: Tensor) -> Output:
        if len(x) == 16 and self.cache is not None:
            asked.append(self.position or 0)
        return forward(self, x)

    monkeypatch.setattr(FrozenTeacher, "forward", spy)
    cut = {**options, "teacher_cache": tmp_path / "alone", "output": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_data, teachers, **{**cut, "checkpoint_every": 1, "display": stop_after(4)})
    resumed = run(tiny_data, teachers, **cut, resume=True)
    assert asked == []
    assert resumed.history == whole.history
    weights = [(tmp_path / name / "model_final.pth").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    with pytest.raises(UserError, match=r"the teacher has other weights \(teacher 2\) than before"):
        run(tiny_data, [teachers[0], network("resnet14", 9)], **cut, resume=True)


# From the command line


def test_the_command_line_names_several_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    save_weights(network(), tmp_path / "own.pth")
    argv = ["--student", "resnet8", "--teacher", "resnet8", "--teacher", "resnet14", "--dataset", SHAPES]
    argv += ["--teacher-weights", str(tmp_path / "own.pth"), "--teacher-weights", "-", "--teacher-epochs", "1"]
    argv += ["--epochs", "1", "--batch-size", "8", "--device", "cpu", "--precision", "fp32"]
    argv += ["--method", "kd+rkd@resnet14"]
    assert main([*argv, "--check"]) == 0
    assert not (tmp_path / "teachers").exists()
    assert main([*argv, "--output", str(tmp_path / "a")]) == 0
    record = json.loads((tmp_path / "a" / "result.json").read_text())
    assert record["teacher"] == ["resnet8", "resnet14"]
    assert record["arguments"]["teacher_weights"] == [str(tmp_path / "own.pth"), None]
    assert record["terms"]["rkd@2"]["teacher"] == 2
    assert f"(teacher resnet8 + resnet14: {record['teacher_top1']:.2f} %)" in capsys.readouterr().out
    runs, _ = read_runs([tmp_path / "a"])
    assert [group.label for group in group_runs([*runs, *runs])] == ["kd+rkd@resnet14"]
    assert runs[0].pair == "resnet8+resnet14 > resnet8"


# Costs


def test_a_profile_has_the_cost_of_each_teacher_and_of_all() -> None:
    found = pckd.profile(
        student="resnet8",
        teacher=["resnet8", "resnet14"],
        method="kd+rkd@2",
        batch_size=2,
        precision="fp32",
        image_size=8,
        num_classes=3,
        rounds=0,
        device="cpu",
    )
    assert [cost.name for cost in found.teachers] == ["resnet8", "resnet14"]
    assert found.teacher is not None
    for count in ("parameters", "macs", "activations"):
        assert getattr(found.teacher, count) == sum(getattr(cost, count) for cost in found.teachers)
    # A step asks both about its two images.
    assert found.step.parts["teacher"].macs > 2 * (found.teachers[1].macs or 0) > 2 * (found.teachers[0].macs or 0)
    tables = pckd.profiling.render(found)
    assert all(f"| {name} (" in tables for name in ("resnet8", "resnet14", "resnet8 + resnet14"))


# What is refused

ONE = network()
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teacher": []}, "teacher is an empty list"),
    ({"teacher": [ONE, ONE]}, "teachers 1 and 2 (ResNet) are the same: leave one out"),
    ({"teacher": ["resnet8", "resnet8"]}, "teachers 1 and 2 (resnet8) are the same"),
    ({"teacher_weights": ["a.pth"]}, "there are 1 teacher_weights for 2 teachers: give one for each"),
    ({"teacher_weights": "a.pth"}, "there are 1 teacher_weights for 2 teachers: give one for each"),
    ({"teacher": "resnet8", "teacher_weights": ["a", "b"]}, "there are 2 teacher_weights, and one teacher"),
    ({"teacher": ["resnet8"], "teacher_weights": ["a", "b"]}, "there are 2 teacher_weights, and one teacher"),
    ({"teacher_weights": [5, None]}, "teacher_weights must be a path, not [5, None]"),
    ({"teacher_weights": [None, ""]}, "teacher_weights must be a path, not [None, '']"),
    ({"teacher_weights": [None, "no.pth"]}, "teacher 2, resnet14: no.pth: no such file"),
    ({"teacher": [network(), network(classes=7)]}, "teacher 2, ResNet: the teacher has 7 classes"),
    ({"teacher": [network(), len]}, "teacher 2, len: the teacher must be an nn.Module"),
    ({"method": "kd@3"}, "there is no teacher 3 (known: 1 resnet8, 2 resnet14); they are counted from 1"),
    ({"method": "kd@0"}, "there is no teacher 0"),
    ({"method": [Term("kd", teacher=True)]}, "there is no teacher True"),
    ({"method": "kd@resnet"}, "no teacher is named 'resnet' (known: 1 resnet8, 2 resnet14); give a name or a position"),
    ({"method": "kd@"}, "method 'kd@': after the @ stands one teacher"),
    ({"method": "kd@1@2"}, "method 'kd@1@2': after the @ stands one teacher"),
    ({"teacher": "resnet14", "method": "kd@resnet8"}, "no teacher is named 'resnet8' (known: 1 resnet14)"),
    ({"teacher": [ONE, network()], "method": "kd@ResNet"}, "teachers 1, 2 are all named 'ResNet'"),
    *(
        (
            {"teacher": [ONE, network()], "method": method},
            "there are several teachers, whose mean has logits alone: name",
        )
        for method in ("pckd", "crd", "fitnet", "at", "rkd", "simkd", "pckd_plus")
    ),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[str(case[0].get("method", case[1])) for case in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(
    options: dict[str, Any], said: str, tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        run(tiny_data, **{"teacher": ["resnet8", "resnet14"], "method": "kd", **options})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_no_term_looks_at_is_said(tiny_data: pckd.Data) -> None:
    notes = Notes()
    run(tiny_data, [network(), copy.deepcopy(ONE)], method="kd@2", display=notes)
    assert "warning: no term looks at teacher 1, ResNet: leave it out" in notes.said

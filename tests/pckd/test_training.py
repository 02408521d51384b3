"""The loop, the API and the run folder, on real (if tiny) trainings."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pckd
from model_zoo import load_weights, save_weights
from pckd.display import Display
from pckd.engine import trainer as loop
from pckd.engine.optimization import MILESTONES, learning_rate
from pckd.engine.record import RunFolder
from pckd.engine.teacher import FrozenTeacher
from pckd.testing.cases import losses_of_views
from registry import BACKBONES, BadImages, Context, Output, Setup, Term, UserError, build, function_loss

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 2}


def teacher_net(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return BACKBONES.get("resnet8")(3)


def run(data: pckd.Data, **options: Any) -> pckd.Result:
    if "teacher" not in options:
        options["teacher"] = teacher_net()
    return pckd.distill(**{"student": "resnet8", "data": data, **SMALL, **options})


class Recorder(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.steps = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, epoch: int, step: int) -> None:
        self.steps += 1

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


class Interrupted(Exception):
    pass


class StopAt(Recorder):
    """Ends the run, as a kill does, after a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.place = epoch, step

    def advance(self, epoch: int, step: int) -> None:
        super().advance(epoch, step)
        if (epoch, step) == self.place:
            raise Interrupted


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """The objective of each training, with a copy of it from before its first step."""
    seen: list[tuple[Any, Any]] = []
    fit = loop.Trainer.fit

    def spy(trainer: loop.Trainer) -> Any:
        seen.append((trainer.model.objective, copy.deepcopy(trainer.model.objective)))
        return fit(trainer)

    monkeypatch.setattr(loop.Trainer, "fit", spy)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_run(first: pckd.Result, second: pckd.Result) -> bool:
    """Whether two runs are the same, bit by bit."""
    weights = (result.student.state_dict().values() for result in (first, second))
    return first.history == second.history and all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_learning_rate_drops_at_each_milestone() -> None:
    rates = [learning_rate(p, 0.05, (0.5, 0.75), 0.1) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])
    # Of 240 epochs the first drop is after 150; of 16 epochs after 10.
    assert learning_rate(10 / 16 - 1e-9, 0.05, MILESTONES) == 0.05
    assert learning_rate(10 / 16, 0.05, MILESTONES) == pytest.approx(0.005)


def test_student_learns(tiny_data: pckd.Data) -> None:
    result = pckd.train(student="resnet8", data=tiny_data, **{**SMALL, "epochs": 12})
    assert result.last_top1 > 80
    assert result.teacher_top1 is None
    assert not result.student.training


def test_every_method_lists_all_its_terms_in_every_row(tiny_data: pckd.Data) -> None:
    display = Recorder()
    rows = run(tiny_data, method="pckd", display=display).history
    assert [row["epoch"] for row in rows] == [1, 2]
    terms = ("cross_entropy", "kd", "feature_alignment", "center_alignment", "category_contrast")
    for row in rows:
        assert row["loss"] == pytest.approx(sum(row[name] for name in terms), rel=1e-5)
        assert 0 <= row["preview_weight"] <= 1
        assert 0 <= row["previewed"] <= 1
    assert any("growth^(e * 120)" in note for note in display.notes)
    assert display.steps == 2 * 3


def test_frozen_teacher_ignores_train_of_its_owner() -> None:
    owner = nn.Module()
    owner.teacher = FrozenTeacher(teacher_net().train())
    owner.train()
    assert not any(module.training for module in owner.teacher.modules())
    assert not owner.teacher(torch.zeros(2, 3, 8, 8)).logits.requires_grad


@pytest.mark.parametrize("loss", losses_of_views())
def test_every_loss_parameter_is_trained(loss: str, tiny_data: pckd.Data, objectives: list[Any]) -> None:
    run(tiny_data, method=[Term("cross_entropy"), Term(loss, 1e-4, views="all", name="probed", initial=1)], epochs=1)
    (objective, start) = objectives[0]
    before = dict(start.named_parameters())
    # A bias in front of a batch norm has no effect and so no gradient, but weight decay still moves it.
    assert not [name for name, p in objective.named_parameters() if torch.equal(before[name], p)]


def test_same_seed_same_metrics_and_weights(tiny_data: pckd.Data) -> None:
    first = run(tiny_data, seed=3)
    assert same_run(first, run(tiny_data, seed=3))
    assert run(tiny_data, seed=4).history != first.history


def drawn(student: Output, teacher: Output, context: Context) -> Tensor:
    """Random numbers of every global generator, normal ones too, of which NumPy and Python keep a second half."""
    numbers = np.random.randn() + random.gauss(0, 1) + float(torch.randn(())) + np.random.rand() + random.random()
    return student.logits.square().mean(1) * numbers


STATEFUL: dict[str, Any] = {
    "projections and centers": "pckd",
    "momentum and a memory": "crd(negatives=8)",
    "initial epochs": "ft",
    "initial epochs alone": "fsp",
    "global generators": [Term("cross_entropy"), Term(function_loss(drawn), name="draws")],
    "mixed images": {"method": "pckd", "augment": "crop+flip+trivial_augment+mixup+cutmix"},
    "moments and averages": {
        "method": "pckd",
        "optimizer": "adamw(layer_decay=0.9, decay_norms=False)",
        "lr": 1e-3,
        "ema": 0.9,
        "batch_size": 8,
        "accumulate": 2,
    },
}


@pytest.mark.parametrize("method", STATEFUL.values(), ids=STATEFUL)
def test_a_run_cut_anywhere_goes_on_bit_by_bit(method: Any, tiny_data: pckd.Data, tmp_path: Path) -> None:
    """Three times: in the middle of an epoch, at the border of two (of the two stages, where there are), and beyond."""
    options: dict[str, Any] = {"epochs": 3, "centers": "ema", "checkpoint_every": 2, "views": 1}
    options |= method if isinstance(method, dict) else {"method": method}
    whole = run(tiny_data, output=tmp_path / "whole", **options)
    for place in ((1, 3), (2, 1), (2, 3)):
        with pytest.raises(Interrupted):
            run(tiny_data, output=tmp_path / "cut", resume=True, display=StopAt(*place), **options)
        # As if the kill had come after the epoch's row, and before its checkpoint.
        RunFolder(tmp_path / "cut").append_metrics({"epoch": place[0]})
    display = Recorder()
    resumed = run(tiny_data, output=tmp_path / "cut", resume=True, display=display, **options)
    assert f"resuming after step 2 of epoch 2 of {len(whole.history)}" in display.notes
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert same_run(whole, resumed)
    if whole.ema is not None and resumed.ema is not None:
        assert same_run(replace(whole, student=whole.ema), replace(resumed, student=resumed.ema))


class Ticking(StopAt):
    """And a clock, on which every step takes a second."""

    def perf_counter(self) -> float:
        return float(self.steps)


def test_a_resumed_run_counts_its_time_and_images_from_the_start(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on(epoch: int, step: int) -> pckd.Result:
        clock = Ticking(epoch, step)
        monkeypatch.setattr(loop, "time", clock)
        options: dict[str, Any] = {"epochs": 3, "checkpoint_every": 2, "views": 1, "display": clock}
        return run(tiny_data, output=tmp_path, resume=True, **options)

    for place in ((1, 3), (2, 1), (2, 3)):
        with pytest.raises(Interrupted):
            go_on(*place)
    beyond = 4, 1
    resumed = go_on(*beyond)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["train_seconds"] == 3 * (len(tiny_data.train) // 16)
    assert record["images_per_second"] == resumed.images_per_second == 16
    # Once more: nothing is left to do.
    metrics = (tmp_path / "metrics.jsonl").read_text()
    again = go_on(1, 1)
    assert (again.last_top1, again.images_per_second) == (resumed.last_top1, 16)
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_a_resumed_run_decides_as_the_whole_one_did(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On compiling by the run's whole length, on the prepared teacher by the same images."""
    lengths: list[int] = []
    samples: list[Tensor] = []
    prepare = FrozenTeacher.prepare

    def decide(compile: bool | None, steps: int, device: torch.device, *, teacher: bool) -> tuple[bool, str]:
        lengths.append(steps)
        return False, ""

    def spy(self: FrozenTeacher, images: Tensor, *args: Any, **options: Any) -> bool:
        samples.append(images)
        return prepare(self, images, *args, **options)

    monkeypatch.setattr(loop, "resolve_compile", decide)
    monkeypatch.setattr(FrozenTeacher, "prepare", spy)
    with pytest.raises(Interrupted):
        run(tiny_data, output=tmp_path, epochs=3, display=StopAt(3, 1))
    run(tiny_data, output=tmp_path, epochs=3, resume=True)
    run(tiny_data, output=tmp_path, epochs=3, resume=True)
    # Three steps an epoch; the last time there was nothing left to do.
    assert lengths == [9, 9, 0]
    assert len(samples) == 2
    assert torch.equal(samples[0], samples[1])


def test_resume_with_fewer_epochs_than_are_done_is_refused(tiny_data: pckd.Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output": tmp_path, "checkpoint_every": 1, "method": "vanilla"}
    with pytest.raises(Interrupted):
        run(tiny_data, epochs=3, display=StopAt(2, 2), **options)
    with pytest.raises(UserError, match="1 epochs and 1 steps are done, and 1 epochs are asked for; give at least"):
        run(tiny_data, epochs=1, resume=True, **options)
    assert len(run(tiny_data, epochs=2, resume=True, **options).history) == 2
    with pytest.raises(UserError, match="2 epochs are done, and 1 epochs are asked for"):
        run(tiny_data, epochs=1, resume=True, **options)


def other_labels(data: pckd.Data) -> pckd.Data:
    return replace(data, test=replace(data.test, labels=data.test.labels.roll(1)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: {"data": with_split(data, images=brighter)}, "the training split has other images than before"),
        (lambda data: {"data": with_split(data, mean=lambda m: (0.5, 0.5, 0.4))}, "training split has other mean"),
        (lambda data: {"data": other_labels(data)}, "the split that is measured on has other labels than before"),
        (lambda data: {"teacher": teacher_net(seed=6)}, "the teacher has other weights than before"),
    ],
)
def test_resume_refuses_other_data_and_another_teacher(
    change: Any, said: str, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": tiny_data, "teacher": teacher_net(), "method": "kd", "output": tmp_path}
    run(**options, epochs=1)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{said}.*give the same ones or another --output"):
        run(**{**options, **change(tiny_data)}, epochs=2, resume=True)
    assert contents(tmp_path) == before
    assert len(run(**options, epochs=2, resume=True).history) == 2


def test_other_data_is_refused_before_a_teacher_is_trained_on_it(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"teacher": "resnet8", "method": "kd", "teacher_epochs": 1, "output": tmp_path / "run"}
    run(tiny_data, epochs=1, **options)
    display = Recorder()
    with pytest.raises(UserError, match="the training split has other images than before"):
        run(with_split(tiny_data, images=brighter), epochs=2, resume=True, display=display, **options)
    assert display.notes == []


def test_a_checkpoint_without_fingerprints_goes_on_as_ever(tiny_data: pckd.Data, tmp_path: Path) -> None:
    run(tiny_data, method="kd", output=tmp_path, epochs=1)
    folder = RunFolder(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    del state["fingerprints"]
    folder.save_checkpoint(state)
    other = with_split(tiny_data, images=brighter)
    assert len(run(other, method="kd", output=tmp_path, epochs=2, resume=True).history) == 2


def write_pictures(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for k in range(3):
            (root / split / f"class {k}").mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class {k}" / f"{i}.png")


@pytest.mark.parametrize("memory", [True, False])
def test_a_run_goes_on_where_its_data_and_its_teacher_were_copied_to(memory: bool, tmp_path: Path) -> None:
    """But not where a picture is gone, or the teacher's file is another one."""
    write_pictures(tmp_path / "here" / "pictures")
    save_weights(teacher_net(), tmp_path / "here" / "teacher.pth")

    def started(place: str, output: str, **options: Any) -> pckd.Result:
        return pckd.distill(
            student="resnet8",
            teacher="resnet8",
            teacher_weights=tmp_path / place / "teacher.pth",
            method="kd",
            data=f"imagefolder(memory={memory})",
            data_root=str(tmp_path / place / "pictures"),
            output=tmp_path / output,
            **{**SMALL, "batch_size": 8, **options},
        )

    whole = started("here", "whole")
    with pytest.raises(Interrupted):
        started("here", "cut", display=StopAt(2, 1))
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    assert started("there", "moved", resume=True).history == whole.history
    (tmp_path / "there" / "pictures" / "train" / "class 1" / "3.png").unlink()
    with pytest.raises(UserError, match="the training split has other images, labels"):
        started("there", "cut", resume=True)
    save_weights(teacher_net(seed=6), tmp_path / "here" / "teacher.pth")
    with pytest.raises(UserError, match="the teacher has other weights than before"):
        started("here", "cut", resume=True)


def test_run_folder_has_everything_but_the_teacher(
    tiny_data: pckd.Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    wide: nn.Module = BACKBONES.get("wrn_16_2")(3)
    result = run(tiny_data, teacher=wide, output=tmp_path, method="pckd", seed=1)
    files = {"metrics.jsonl", "result.json", "checkpoint.pth", "checkpoint.previous.pth", "model_final.pth", ".lock"}
    assert contents(tmp_path).keys() == files
    record = json.loads((tmp_path / "result.json").read_text())
    expected = {"student": "resnet8", "method": "pckd", "dataset": "tiny", "epochs": 2, "seed": 1, "views": 4}
    assert expected.items() <= record.items()
    assert record["last_top1"] == result.history[-1]["top1"]
    assert record["best_top1"] == max(row["top1"] for row in result.history)
    assert record["last_top5"] == 100
    assert record["teacher_top1"] == pytest.approx(pckd.evaluate(wide, tiny_data).top1)
    assert record["images_per_second"] > 0
    assert {"pckd", "torch", "python"} <= record["versions"].keys()
    assert record["arguments"]["batch_size"] == 16
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    again = BACKBONES.get("resnet8")(3)
    load_weights(again, tmp_path / "model_final.pth")
    assert pckd.evaluate(again, tiny_data).top1 == result.last_top1
    # A shape that the teacher has and neither the student nor any projection.
    parts = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["parts"]
    held = {tuple(t.shape) for part in ("student", "objective") for t in parts[part].values()}
    assert (128, 128, 3, 3) in {tuple(t.shape) for t in wide.state_dict().values()} - held
    # What cannot work for the two is left out, and that is said once.
    assert "center_alignment" not in rows[0]
    assert [r.getMessage() for r in caplog.records if "center_alignment" in r.getMessage()] == [
        "term center_alignment is left out: center_alignment needs embeddings of one width, but the student's has 64 "
        "and the teacher's 128; center_relation works for any two widths"
    ]


def test_views_default_to_what_the_method_looks_at(tiny_data: pckd.Data) -> None:
    asked: list[dict[str, Any]] = [{"method": "kd"}, {"method": "pckd"}, {"method": "pckd", "views": 1}]
    assert [run(tiny_data, epochs=1, **options).record["views"] for options in asked] == [1, 4, 1]


def test_validation_split_leaves_the_test_split_alone(tiny_data: pckd.Data) -> None:
    held = pckd.load_data(tiny_data, val_fraction=0.25)
    assert held.measured_on == "val"
    assert len(held.train) + len(held.test) == len(tiny_data.train)
    result = run(tiny_data, val_fraction=0.25, epochs=1)
    assert result.record["measured_on"] == "val"
    assert result.record["train_images"] == len(held.train)


class Damaged:
    """Streamed images, of which some cannot be read."""

    def __init__(self, images: Tensor, bad: set[int]) -> None:
        self.images, self.bad = images, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        if position in self.bad:
            raise BadImages(f"{position}.png: not a readable image")
        return self.images[position]


def test_a_run_skips_what_cannot_be_read_in_the_teachers_training_in_its_own_and_in_evaluation(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))

    def having(train: set[int], test: set[int], on_bad_image: Literal["stop", "skip"] = "skip") -> pckd.Data:
        parts = (tiny_data.train, train), (tiny_data.test, test)
        options: dict[str, Any] = {"padding": 0, "on_bad_image": on_bad_image}
        splits = [replace(split, images=Damaged(split.images, bad), **options) for split, bad in parts]
        return pckd.Data(*splits, name="damaged")

    # Not the first ones, which are looked at when the data is loaded.
    options = {"teacher": "resnet8", "teacher_epochs": 1, "epochs": 1, "report_difficulty": True}
    with pytest.raises(BadImages, match="not a readable image"):
        run(having({5, 6}, {3}, "stop"), **options)
    result = run(having({5, 6}, {3}, "stop"), on_bad_image="skip", **options)
    assert result.record["arguments"]["on_bad_image"] == "skip"
    assert pckd.evaluate(result.student, having({5, 6}, {3}), device="cpu").samples == 29
    said = [record.getMessage() for record in caplog.records]
    others = "tiny: 2 of 48 images cannot be read, and others take their place: 5.png"
    assert any(text.startswith(others) for text in said)
    assert "tiny: 1 of 30 images cannot be read, and they are not counted: 3.png: not a readable image" in said
    gone = having(set(), set())
    gone.test.images.bad = set(range(30))
    with pytest.raises(UserError, match="tiny: none of its images can be read"):
        pckd.evaluate(result.student, gone, device="cpu")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_limit_below_the_number_of_classes_says_how_many_have_no_image(
    split: str, caplog: pytest.LogCaptureFixture
) -> None:
    for n in (5, 2):
        options: dict[str, Any] = {f"limit_{split}": n}
        data = pckd.load_data("shapes(num_classes=5, image_size=8, train_size=200, test_size=200)", **options)
        assert len(getattr(data, split).labels.unique()) == n
    (said,) = {record.getMessage() for record in caplog.records}
    assert said.startswith(f"shapes {split}")
    assert said.endswith("2 images are fewer than it has classes: 3 of these are left without an image")


def test_teacher_is_trained_once_and_then_taken_from_the_cache(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    first, second = Recorder(), Recorder()
    a = run(tiny_data, teacher="resnet8", teacher_epochs=1, epochs=1, display=first)
    b = run(tiny_data, teacher="resnet8", teacher_epochs=1, epochs=1, display=second)
    assert any("trained first" in note for note in first.notes)
    assert any("from the cache" in note for note in second.notes)
    assert len(first.rows) == 2
    assert len(second.rows) == 1
    assert a.teacher_top1 == b.teacher_top1
    # The projections and the student start alike whether or not a teacher was trained just before.
    assert a.history == b.history


def with_split(data: pckd.Data, **changes: Any) -> pckd.Data:
    """The same data, with other images, labels, mean, ... in both splits."""
    train = replace(data.train, **{key: change(getattr(data.train, key)) for key, change in changes.items()})
    shared = {key: getattr(train, key) for key in changes if key not in ("images", "labels")}
    return replace(data, train=train, test=replace(data.test, **shared))


def brighter(images: Tensor) -> Tensor:
    images = images.clone()
    images[17, 2, 4, 4] += 1
    return images


OTHER_TEACHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"images": brighter}, {}),
    ({"labels": lambda labels: labels.roll(1)}, {}),
    ({"classes": lambda classes: classes[::-1]}, {}),
    ({"mean": lambda mean: (0.5, 0.5, 0.4)}, {}),
    ({"std": lambda std: (0.25, 0.25, 0.2)}, {}),
    ({"padding": lambda padding: 2}, {}),
    ({}, {"flip": False}),
    ({}, {"momentum": 0.8}),
    ({}, {"weight_decay": 1e-4}),
    ({}, {"milestones": (0.5,)}),
    ({}, {"lr_decay": 0.2}),
    ({}, {"lr": 0.04}),
    ({}, {"on_nonfinite": "skip"}),
    ({}, {"batch_size": 12}),
    ({}, {"seed": 1}),
]


def test_every_thing_that_a_teacher_follows_from_makes_another_one(tiny_data: pckd.Data, tmp_path: Path) -> None:
    """And what it does not follow from, none."""

    def obtained(data: pckd.Data, **options: Any) -> bool:
        """Whether it was trained."""
        display = Recorder()
        options = {**SMALL, "epochs": 1, **options}
        pckd.train_teacher(teacher="resnet8", data=data, cache=tmp_path, display=display, **options)
        return any("trained first" in note for note in display.notes)

    assert obtained(tiny_data)
    for split, options in OTHER_TEACHERS:
        assert obtained(with_split(tiny_data, **split), **options), (split, options)
    assert len(list((tmp_path / "teachers").iterdir())) == 1 + len(OTHER_TEACHERS)
    other_test = replace(tiny_data, test=replace(tiny_data.test, images=brighter(tiny_data.test.images)))
    assert not obtained(other_test, num_workers=1, compile=False)


def test_the_teachers_training_takes_the_runs_options_but_its_seed(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    options: dict[str, Any] = {"momentum": 0.5, "weight_decay": 0.1, "milestones": (0.5,), "lr_decay": 0.5}
    options |= {"flip": False, "batch_size": 12}
    for seed in (3, 4):
        run(tiny_data, teacher="resnet8", method="kd", teacher_lr=0.05, teacher_epochs=2, seed=seed, **options)
    (path,) = (tmp_path / "teachers").iterdir()
    expected = pckd.train(student="resnet8", data=tiny_data, **{**SMALL, "lr": 0.05, "seed": 0, **options}).student
    kept = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(value, kept[key]) for key, value in expected.state_dict().items())


def test_an_interrupted_teacher_goes_on_whatever_it_is_measured_on(tiny_data: pckd.Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher": "resnet8", "cache": tmp_path, **SMALL}
    with pytest.raises(Interrupted):
        pckd.train_teacher(data=tiny_data, display=StopAt(2, 1), **options)
    other_test = replace(tiny_data, test=replace(tiny_data.test, images=brighter(tiny_data.test.images)))
    display = Recorder()
    pckd.train_teacher(data=other_test, display=display, **options)
    assert not any("resuming" in note for note in display.notes)
    pckd.train_teacher(data=tiny_data, display=display, **options)
    assert any("from the cache" in note for note in display.notes)


def test_bf16_gives_finite_metrics_close_to_fp32(tiny_data: pckd.Data) -> None:
    half, exact = (run(tiny_data, precision=p, epochs=1).history[0] for p in ("bf16", "fp32"))
    assert half["loss"] == pytest.approx(exact["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kd(temperature=0)"}, "temperature must be above 0"),
        ({"method": "simkd", "student": "MobileNetV2"}, "does not return"),
        ({"method": "sskd", "views": 1}, "compares 2 or more views of an image, but views=1"),
        ({"method": "crd(negatives=0)"}, "negatives"),
        ({"method": "fitnet", "teacher_cache": "answers"}, "not feature maps"),
    ],
    ids=str,
)
def test_what_is_refused_is_refused_before_the_teacher_is_trained(
    options: dict[str, Any],
    message: str,
    tiny_data: pckd.Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    display = Recorder()
    with pytest.raises(UserError, match=message):
        run(tiny_data, teacher="resnet14", epochs=1, display=display, **options)
    assert not any("trained first" in note for note in display.notes)


class Marker(nn.Module):
    """Counts the stages and epochs it is called in; its parameter is trained in the initial stage only."""

    seen: list[tuple[str, int, int, float]]

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.seen = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        self.seen.append((context.stage, context.epoch, context.epochs, context.progress))
        return self.weight * student.embedding.mean(1)


def test_initial_epochs_come_first_with_their_own_terms(tiny_data: pckd.Data, objectives: list[Any]) -> None:
    # 60 of 240 epochs, scaled to a schedule of 4: one.
    terms = [Term("cross_entropy"), Term(Marker, initial=60, main=False, name="marker")]
    rows = run(tiny_data, method=terms, epochs=4).history
    assert [("marker" in row, "cross_entropy" in row) for row in rows] == [(True, False)] + 4 * [(False, True)]
    assert {moment[:3] for moment in objectives[0][0].losses["marker"].seen} == {("initial", 1, 1)}
    assert [row["lr"] for row in rows] == pytest.approx([0.05, 0.05, 0.05, 0.005, 5e-5])
    # Those of ft have a rate of their own for this student.
    assert run(tiny_data, method="ft", epochs=1).history[0]["lr"] == 0.01


def test_term_of_both_stages_counts_epochs_within_each(tiny_data: pckd.Data, objectives: list[Any]) -> None:
    run(tiny_data, method=[Term("cross_entropy"), Term(Marker, initial=240, name="marker")], epochs=2)
    seen = objectives[0][0].losses["marker"].seen
    assert [moment[:2] for moment in seen[::3]] == [("initial", 1), ("initial", 2), ("main", 1), ("main", 2)]
    assert [progress for *_, progress in seen] == pytest.approx(2 * [k / 6 for k in range(6)])


def test_the_schedule_begins_without_the_momentum_of_the_initial_stage(
    tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    still: list[bool] = []
    step = loop.train_step

    def spy(*args: Any, optimizer: torch.optim.SGD, **options: Any) -> Any:
        still.append(not any(state["momentum_buffer"].any() for state in optimizer.state.values()))
        return step(*args, optimizer=optimizer, **options)

    monkeypatch.setattr(loop, "train_step", spy)
    run(tiny_data, method=[Term("cross_entropy", initial=240)], epochs=1)
    assert still == [True, False, False, True, False, False]


def test_warm_up_raises_the_weight_linearly(tiny_data: pckd.Data) -> None:
    one = function_loss(lambda student, teacher, context: 1 + 0 * student.logits.sum(1))
    # 120 of 240 epochs, scaled to 4: the full weight is reached at epoch 2.
    terms = [Term("cross_entropy"), Term(one, weight=3.0, warmup=120, name="one")]
    rows = run(tiny_data, method=terms, epochs=4).history
    assert [row["one"] for row in rows] == pytest.approx([1.5, 3.0, 3.0, 3.0])


def test_strong_view_is_shown_to_the_terms_that_ask_for_it(tiny_data: pckd.Data) -> None:
    shown: dict[str, Context] = {}

    def look(student: Output, teacher: Output, context: Context, *, name: str) -> Tensor:
        assert len(student.logits) == len(context.labels) == 16 * context.views
        shown[name] = context
        return student.logits.sum(1)

    loss = function_loss(look)
    terms = [Term(loss, views=v, name=v, options={"name": v}) for v in ("upright", "all", "strong")]
    run(tiny_data, method=terms, epochs=1)
    assert {name: (c.views, c.strong) for name, c in shown.items()} == {
        "upright": (1, False),
        "all": (4, False),
        "strong": (2, True),
    }


def test_methods_compose_with_one_cross_entropy(tiny_data: pckd.Data) -> None:
    rows = run(tiny_data, method="kd(ce=0.5)+pckd_without_kd", epochs=1).history
    together = {"cross_entropy", "kd", "feature_alignment", "center_alignment", "category_contrast"}
    assert together <= rows[0].keys()
    assert not {name for name in rows[0] if name.startswith("cross_entropy_")}


def test_any_per_sample_loss_can_be_previewed(tiny_data: pckd.Data) -> None:
    plain = run(tiny_data, method="kd", epochs=1).history[0]
    previewed = run(tiny_data, method="kd", scheduler="preview(reference_epochs=None)", epochs=1).history[0]
    assert "preview_weight" not in plain
    assert 0 < previewed["previewed"] < 1
    constant = run(tiny_data, method="kd", scheduler="constant", epochs=1).history[0]
    assert constant["kd"] == pytest.approx(plain["kd"])


def test_a_teacher_of_another_width_may_stand_beside_a_method_that_does_not_ask_it(tmp_path: Path) -> None:
    """It is measured, and that is all."""
    data = pckd.load_data("shapes(num_classes=3, image_size=8, train_size=16, test_size=8)")
    save_weights(build(BACKBONES, "vgg8", 3), tmp_path / "teacher.pth")
    options: dict[str, Any] = {"student": "resnet8", "data": data, "epochs": 1, "batch_size": 8, "device": "cpu"}
    alone = pckd.distill(**options, method="vanilla")
    beside = pckd.distill(**options, method="vanilla", teacher="vgg8", teacher_weights=tmp_path / "teacher.pth")
    assert beside.teacher_top1 is not None
    assert beside.history == alone.history


def test_head_that_answers_runs_in_bf16_and_counts_each_row_once(tiny_data: pckd.Data, objectives: list[Any]) -> None:
    result = run(tiny_data, method="simkd", precision="bf16", epochs=2)
    assert 0 <= result.history[-1]["train_top1"] <= 100
    norms = [m for m in objectives[0][0].losses["simkd"].modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert {int(m.num_batches_tracked) for m in norms} == {2 * 3}


def test_student_may_answer_with_the_head_of_a_loss(tiny_data: pckd.Data, tmp_path: Path) -> None:
    class Head(nn.Module):
        """Learns a classifier of its own on a frozen copy of nothing: the student's own classifier stays random."""

        def __init__(self, setup: Setup) -> None:
            super().__init__()
            assert setup.teacher_classifier is not None
            self.classifier = nn.Linear(setup.student.embedding, setup.student.num_classes)

        def predict(self, student: Output) -> Tensor:
            return self.classifier(student.embedding)

        def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
            return nn.functional.cross_entropy(self.predict(student), context.labels, reduction="none")

    result = run(tiny_data, method=[Term(Head, name="head")], epochs=12, output=tmp_path)
    assert result.last_top1 > 80
    assert pckd.evaluate(result.student, tiny_data).top1 == result.last_top1
    assert result.history[-1]["train_top1"] > 60

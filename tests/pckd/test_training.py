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
from model_zoo import save_weights
from pckd.engine import trainer as loop
from pckd.engine.optimization import MILESTONES, learning_rate
from pckd.engine.record import RunFolder
from pckd.engine.teacher import FrozenTeacher
from pckd.testing.cases import losses_of_views
from registry import BACKBONES, BadImages, Context, Output, Setup, Term, UserError, build

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 2}


def teacher_net(seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return BACKBONES.get("resnet8")(3)


def run(data: pckd.Data, **options: Any) -> pckd.Result:
    if "teacher" not in options:
        options["teacher"] = teacher_net()
    return pckd.distill(**{"student": "resnet8", "data": data, **SMALL, **options})


class Recorder:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.steps = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, title: str, epochs: int, steps: int, done: int) -> None: ...

    def advance(self, epoch: int, step: int) -> None:
        self.steps += 1

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def end(self) -> None: ...


def test_learning_rate_drops_at_each_milestone() -> None:
    rates = [learning_rate(p, 0.05, (0.5, 0.75), 0.1) for p in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_milestones_scale_with_epochs() -> None:
    # Of 240 epochs the first drop is after 150; of 16 epochs after 10.
    assert learning_rate(10 / 16 - 1e-9, 0.05, MILESTONES) == 0.05
    assert learning_rate(10 / 16, 0.05, MILESTONES) == pytest.approx(0.005)


def test_student_learns(tiny_data: pckd.Data) -> None:
    result = pckd.train(student="resnet8", data=tiny_data, **{**SMALL, "epochs": 12})
    assert result.last_top1 > 80
    assert result.teacher_top1 is None
    assert not result.student.training


def test_every_method_lists_all_its_terms_in_every_row(tiny_data: pckd.Data) -> None:
    rows = run(tiny_data, method="pckd").history
    assert [row["epoch"] for row in rows] == [1, 2]
    terms = ("cross_entropy", "kd", "feature_alignment", "center_alignment", "category_contrast")
    for row in rows:
        assert row["loss"] == pytest.approx(sum(row[name] for name in terms), rel=1e-5)
        assert 0 <= row["preview_weight"] <= 1
        assert 0 <= row["previewed"] <= 1


def test_frozen_teacher_ignores_train_of_its_owner() -> None:
    owner = nn.Module()
    owner.teacher = FrozenTeacher(teacher_net().train())
    owner.train()
    assert not any(module.training for module in owner.teacher.modules())
    assert not owner.teacher(torch.zeros(2, 3, 8, 8)).logits.requires_grad


@pytest.mark.parametrize("loss", losses_of_views())
def test_every_loss_parameter_is_trained(loss: str, tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[str, Tensor] = {}
    seen: list[nn.Module] = []
    original = loop.Trainer.fit

    def spy(trainer: loop.Trainer) -> Any:
        seen.append(trainer.model.objective)
        before.update({name: p.detach().clone() for name, p in seen[0].named_parameters()})
        return original(trainer)

    monkeypatch.setattr(loop.Trainer, "fit", spy)
    run(tiny_data, method=[Term("cross_entropy"), Term(loss, 1e-4, views="all", name="probed", initial=1)], epochs=1)
    frozen = [name for name, p in seen[0].named_parameters() if torch.equal(before[name], p)]
    # A bias in front of a batch norm has no effect and so no gradient, but weight decay still moves it.
    assert not frozen


def test_same_seed_same_metrics_and_weights(tiny_data: pckd.Data) -> None:
    first, second = run(tiny_data, seed=3), run(tiny_data, seed=3)
    assert first.history == second.history
    for a, b in zip(first.student.state_dict().values(), second.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert run(tiny_data, seed=4).history != first.history


def test_caller_random_state_is_left_alone(tiny_data: pckd.Data) -> None:
    teacher = teacher_net()

    def draws() -> list[float]:
        return [float(torch.rand(())), np.random.randn(), np.random.rand(), random.gauss(0, 1), random.random()]

    def seed() -> None:
        torch.manual_seed(11)
        np.random.seed(11)
        random.seed(11)
        # An odd number of normal draws: a second one is kept for the next call.
        np.random.randn(), random.gauss(0, 1)

    seed()
    expected = draws()
    seed()
    run(tiny_data, teacher=teacher, epochs=1, method=STATEFUL["global generators"])
    assert draws() == expected


class Interrupted(Exception):
    pass


def test_resumed_run_equals_the_uninterrupted_one(tiny_data: pckd.Data, tmp_path: Path) -> None:
    class Stop(Recorder):
        def advance(self, epoch: int, step: int) -> None:
            if (epoch, step) == (3, 2):
                raise Interrupted

    options: dict[str, Any] = {"epochs": 4, "method": "pckd", "centers": "ema"}
    whole = run(tiny_data, output=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        run(tiny_data, output=tmp_path / "cut", display=Stop(), **options)
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2
    resumed = run(tiny_data, output=tmp_path / "cut", resume=True, **options)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class StopAt(Recorder):
    """Ends the run, as a kill does, after a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.place = epoch, step

    def advance(self, epoch: int, step: int) -> None:
        super().advance(epoch, step)
        if (epoch, step) == self.place:
            raise Interrupted


class Draws(nn.Module):
    """Random numbers of every global generator, normal ones too, of which NumPy and Python keep a second half."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        drawn = np.random.randn() + random.gauss(0, 1) + float(torch.randn(())) + np.random.rand() + random.random()
        return student.logits.square().mean(1) * drawn


STATEFUL: dict[str, Any] = {
    "momentum and a memory": "crd(negatives=8)",
    "initial epochs": "ft",
    "initial epochs alone": "fsp",
    "global generators": [Term("cross_entropy"), Term(Draws, name="draws")],
}


@pytest.mark.parametrize("method", STATEFUL.values(), ids=STATEFUL)
def test_a_run_cut_anywhere_goes_on_bit_by_bit(method: Any, tiny_data: pckd.Data, tmp_path: Path) -> None:
    """Three times: in the middle of an epoch, at the border of two (of the two stages, where there are), and beyond."""
    options: dict[str, Any] = {"epochs": 3, "method": method, "centers": "ema", "checkpoint_every": 2, "views": 1}
    whole = run(tiny_data, output=tmp_path / "whole", **options)
    for place in ((1, 3), (2, 1), (2, 3)):
        with pytest.raises(Interrupted):
            run(tiny_data, output=tmp_path / "cut", resume=True, display=StopAt(*place), **options)
    display = Recorder()
    resumed = run(tiny_data, output=tmp_path / "cut", resume=True, display=display, **options)
    assert f"resuming after step 2 of epoch 2 of {len(whole.history)}" in display.notes
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Ticking(StopAt):
    """And a clock, on which every step takes a second."""

    def perf_counter(self) -> float:
        return float(self.steps)


def test_a_resumed_run_counts_its_time_and_images_from_the_start(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"output": tmp_path, "epochs": 3, "checkpoint_every": 2, "views": 1}
    for place in ((1, 3), (2, 1), (2, 3)):
        clock = Ticking(*place)
        monkeypatch.setattr(loop, "time", clock)
        with pytest.raises(Interrupted):
            run(tiny_data, resume=True, display=clock, **options)
    clock = Ticking(4, 1)  # beyond the last epoch
    monkeypatch.setattr(loop, "time", clock)
    resumed = run(tiny_data, resume=True, display=clock, **options)
    record = json.loads((tmp_path / "result.json").read_text())
    steps = len(tiny_data.train) // 16
    assert record["train_seconds"] == 3 * steps
    assert record["images_per_second"] == resumed.images_per_second == 16


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


def test_resume_refuses_other_arguments(tiny_data: pckd.Data, tmp_path: Path) -> None:
    run(tiny_data, output=tmp_path, epochs=1)
    with pytest.raises(UserError, match=r"batch_size was 16, is 8"):
        run(tiny_data, output=tmp_path, epochs=2, batch_size=8, resume=True)
    run(tiny_data, output=tmp_path, epochs=2, resume=True)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def with_weight(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(network.parameters()).view(-1)[5] += 1e-3
    return network


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o.update(data=with_split(o["data"], images=brighter)), "the training split has other images than"),
        (
            lambda o: o.update(data=with_split(o["data"], mean=lambda m: (0.5, 0.5, 0.4))),
            "training split has other mean",
        ),
        (
            lambda o: o.update(
                data=replace(o["data"], test=replace(o["data"].test, labels=o["data"].test.labels.roll(1)))
            ),
            "the split that is measured on has other labels than before",
        ),
        (lambda o: o.update(teacher=with_weight(teacher_net())), "the teacher has other weights than before"),
    ],
)
def test_resume_refuses_other_data_and_another_teacher(
    change: Any, said: str, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": tiny_data, "teacher": teacher_net(), "method": "kd", "output": tmp_path}
    run(**options, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {**options}
    change(changed)
    with pytest.raises(UserError, match=said) as caught:
        run(**changed, epochs=2, resume=True)
    assert "give the same ones or another --output" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
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


def test_finished_run_is_not_overwritten(tiny_data: pckd.Data, tmp_path: Path) -> None:
    run(tiny_data, output=tmp_path, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"already holds a run .*--resume"):
        run(tiny_data, output=tmp_path, epochs=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_of_a_finished_run_trains_nothing(tiny_data: pckd.Data, tmp_path: Path) -> None:
    first = run(tiny_data, output=tmp_path, epochs=1)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    again = run(tiny_data, output=tmp_path, epochs=1, resume=True)
    assert again.last_top1 == first.last_top1
    assert again.images_per_second == first.images_per_second
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_resume_of_a_damaged_checkpoint_is_one_line(tiny_data: pckd.Data, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"cannot resume from .*checkpoint\.pth"):
        run(tiny_data, output=tmp_path, resume=True)


def test_run_folder_has_everything(tiny_data: pckd.Data, tmp_path: Path) -> None:
    result = run(tiny_data, output=tmp_path, method="pckd", seed=1)
    files = {path.name for path in tmp_path.iterdir()}
    written = {"metrics.jsonl", "result.json", "checkpoint.pth", "checkpoint.previous.pth", "model_final.pth"}
    assert files == {*written, ".lock"}
    written = json.loads((tmp_path / "result.json").read_text())
    expected = {"student": "resnet8", "method": "pckd", "dataset": "tiny", "epochs": 2, "seed": 1, "views": 4}
    assert expected.items() <= written.items()
    assert written["last_top1"] == result.history[-1]["top1"]
    assert written["best_top1"] == max(row["top1"] for row in result.history)
    assert written["last_top5"] == 100
    assert written["teacher_top1"] == pytest.approx(pckd.evaluate(teacher_net(), tiny_data).top1)
    assert written["images_per_second"] > 0
    assert {"pckd", "torch", "python"} <= written["versions"].keys()
    assert written["arguments"]["batch_size"] == 16
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history


def test_no_file_holds_the_teacher(tiny_data: pckd.Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = BACKBONES.get("wrn_16_2")(3)
    run(tiny_data, teacher=wide, output=tmp_path, epochs=1)
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    held = {tuple(t.shape) for part in ("student", "objective") for t in checkpoint["parts"][part].values()}
    # A shape that the teacher has and neither the student nor any projection.
    assert (128, 128, 3, 3) in {tuple(t.shape) for t in wide.state_dict().values()}
    assert (128, 128, 3, 3) not in held


def test_final_model_is_the_student_alone(tiny_data: pckd.Data, tmp_path: Path) -> None:
    from model_zoo import load_weights

    result = run(tiny_data, output=tmp_path)
    again = BACKBONES.get("resnet8")(3)
    load_weights(again, tmp_path / "model_final.pth")
    assert pckd.evaluate(again, tiny_data).top1 == result.last_top1


def test_non_finite_term_stops_before_the_step_and_is_named(tiny_data: pckd.Data) -> None:
    class Broken(nn.Module):
        def __init__(self, setup: Setup) -> None:
            super().__init__()

        def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
            return student.logits.sum(1) * float("nan")

    torch.manual_seed(0)
    student = BACKBONES.get("resnet8")(3)
    before = copy.deepcopy(dict(student.named_parameters()))
    with pytest.raises(UserError, match=r"epoch 1, step 1: broken is not finite"):
        run(tiny_data, student=student, method=[Term("cross_entropy"), Term(Broken, name="broken")])
    assert all(torch.equal(before[name], p) for name, p in student.named_parameters())


def test_preview_scaling_is_said_in_the_log(tiny_data: pckd.Data) -> None:
    display = Recorder()
    run(tiny_data, display=display)
    assert any("growth^(e * 120)" in note for note in display.notes)
    assert display.steps == 2 * 3


def test_center_alignment_left_out_is_said_once(tiny_data: pckd.Data, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    wide = BACKBONES.get("wrn_16_2")(3)
    rows = run(tiny_data, teacher=wide).history
    assert "center_alignment" not in rows[0]
    assert [r.getMessage() for r in caplog.records if "center_alignment" in r.getMessage()] == [
        "term center_alignment is left out: center_alignment needs embeddings of one width, but the student's has 64 "
        "and the teacher's 128; center_relation works for any two widths"
    ]


def test_views_default_to_what_the_method_looks_at(tiny_data: pckd.Data) -> None:
    assert run(tiny_data, method="kd", epochs=1).record["views"] == 1
    assert run(tiny_data, method="pckd", epochs=1).record["views"] == 4
    assert run(tiny_data, method="pckd", epochs=1, views=1).record["views"] == 1


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
        splits = [
            replace(split, images=Damaged(split.images, bad), padding=0, on_bad_image=on_bad_image)
            for split, bad in ((tiny_data.train, train), (tiny_data.test, test))
        ]
        return pckd.Data(splits[0], splits[1], name="damaged")

    # Not the first ones, which are looked at when the data is loaded.
    options = {"teacher": "resnet8", "teacher_epochs": 1, "epochs": 1, "report_difficulty": True}
    with pytest.raises(BadImages, match="not a readable image"):
        run(having({5, 6}, {3}, "stop"), **options)
    result = run(having({5, 6}, {3}, "stop"), on_bad_image="skip", **options)
    assert result.record["arguments"]["on_bad_image"] == "skip"
    assert pckd.evaluate(result.student, having({5, 6}, {3}), device="cpu").samples == 29
    said = [record.getMessage() for record in caplog.records]
    assert any(
        text.startswith("tiny: 2 of 48 images cannot be read, and others take their place: 5.png") for text in said
    )
    assert "tiny: 1 of 30 images cannot be read, and they are not counted: 3.png: not a readable image" in said
    gone = having(set(), set())
    gone.test.images.bad = set(range(30))
    with pytest.raises(UserError, match="tiny: none of its images can be read"):
        pckd.evaluate(result.student, gone, device="cpu")


@pytest.mark.parametrize("limit", ["limit_train", "limit_test"])
def test_a_limit_below_the_number_of_classes_says_how_many_have_no_image(
    limit: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = "shapes(num_classes=5, image_size=8, train_size=200, test_size=200)"
    for n in (5, 2):
        loaded = pckd.load_data(data, **{limit: n})
        part = loaded.train if limit == "limit_train" else loaded.test
        assert len(part.labels.unique()) == n
    (said,) = {record.getMessage() for record in caplog.records}
    split = "train" if limit == "limit_train" else "test"
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


OTHER_TEACHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a pixel": ({"images": brighter}, {}),
    "a label": ({"labels": lambda labels: labels.roll(1)}, {}),
    "names of classes": ({"classes": lambda classes: classes[::-1]}, {}),
    "mean": ({"mean": lambda mean: (0.5, 0.5, 0.4)}, {}),
    "std": ({"std": lambda std: (0.25, 0.25, 0.2)}, {}),
    "padding": ({"padding": lambda padding: 2}, {}),
    **{
        next(iter(option)): ({}, option)
        for option in (
            {"flip": False},
            {"momentum": 0.8},
            {"weight_decay": 1e-4},
            {"milestones": (0.5,)},
            {"lr_decay": 0.2},
            {"lr": 0.04},
            {"on_nonfinite": "skip"},
            {"batch_size": 12},
            {"seed": 1},
        )
    },
}


def test_every_thing_that_a_teacher_follows_from_makes_another_one(tiny_data: pckd.Data, tmp_path: Path) -> None:
    """And what it does not follow from, none."""

    def obtained(data: pckd.Data, **options: Any) -> bool:
        """Whether it was trained."""
        display = Recorder()
        options = {**SMALL, "epochs": 1, **options}
        pckd.train_teacher(teacher="resnet8", data=data, cache=tmp_path, display=display, **options)
        return any("trained first" in note for note in display.notes)

    assert obtained(tiny_data)
    again = {
        name: obtained(with_split(tiny_data, **split), **options) for name, (split, options) in OTHER_TEACHERS.items()
    }
    assert [name for name, trained in again.items() if not trained] == []
    assert len(list((tmp_path / "teachers").iterdir())) == 1 + len(OTHER_TEACHERS)
    other_test = replace(tiny_data, test=replace(tiny_data.test, images=brighter(tiny_data.test.images)))
    assert not obtained(other_test, num_workers=1, compile=False)


def test_the_teachers_training_takes_the_runs_options_but_its_seed(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    options: dict[str, Any] = {
        "momentum": 0.5,
        "weight_decay": 0.1,
        "milestones": (0.5,),
        "lr_decay": 0.5,
        "flip": False,
        "batch_size": 12,
    }
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
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"method": "pcdk"}, "did you mean 'pckd'"),
        ({"method": "pckd(betta=1)"}, "did you mean 'beta'"),
        ({"scheduler": "previw"}, "did you mean 'preview'"),
        ({"difficulty": "nothing"}, "DIFFICULTY_METRICS"),
        ({"centers": "clasifier"}, "did you mean 'classifier'"),
        ({"student": "resnet9"}, "did you mean"),
        ({"precision": "fp8"}, "precision must be auto, fp32 or bf16"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"views": 5}, "views"),
        ({"limit_train": 1000}, "48"),
        ({"val_fraction": 1.5}, "fraction"),
        ({"teacher": nn.Linear(3, 3)}, "teacher"),
        ({"method": "kd(temperature=0)"}, "temperature must be above 0"),
        ({"method": "sskd", "views": 1}, "compares 2 or more views of an image, but views=1"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], message: str, tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError) as caught:
        run(tiny_data, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_teacher_of_another_class_count_is_refused(tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match=r"the teacher has 10 classes, the data set tiny 3"):
        run(tiny_data, teacher=BACKBONES.get("resnet8")(10))


def test_student_as_its_own_teacher_is_refused(tiny_data: pckd.Data) -> None:
    network = teacher_net()
    with pytest.raises(UserError, match="same object"):
        run(tiny_data, student=network, teacher=network)


def test_method_that_needs_a_teacher_says_so_for_an_unnamed_student(tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        run(tiny_data, student=teacher_net(), teacher=None)


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


def spied_objective(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    original = loop.Trainer.fit

    def spy(trainer: loop.Trainer) -> Any:
        seen.append(trainer.model.objective)
        return original(trainer)

    monkeypatch.setattr(loop.Trainer, "fit", spy)
    return seen


def test_initial_epochs_come_first_with_their_own_terms(tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = spied_objective(monkeypatch)
    # 60 of 240 epochs, scaled to a schedule of 4: one.
    terms = [Term("cross_entropy"), Term(Marker, initial=60, main=False, name="marker")]
    result = run(tiny_data, method=terms, epochs=4)
    assert [("marker" in row, "cross_entropy" in row) for row in result.history] == [(True, False)] + 4 * [
        (False, True)
    ]
    assert {(stage, epoch, epochs) for stage, epoch, epochs, _ in objectives[0].losses["marker"].seen} == {
        ("initial", 1, 1)
    }
    assert [row["lr"] for row in result.history] == pytest.approx([0.05, 0.05, 0.05, 0.005, 5e-5])


def test_term_of_both_stages_counts_epochs_within_each(tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = spied_objective(monkeypatch)
    run(tiny_data, method=[Term("cross_entropy"), Term(Marker, initial=240, name="marker")], epochs=2)
    seen = objectives[0].losses["marker"].seen
    assert [(stage, epoch) for stage, epoch, _, _ in seen[::3]] == [
        ("initial", 1),
        ("initial", 2),
        ("main", 1),
        ("main", 2),
    ]
    assert [progress for *_, progress in seen] == pytest.approx(2 * [k / 6 for k in range(6)])


def test_warm_up_raises_the_weight_linearly(tiny_data: pckd.Data) -> None:
    class One(nn.Module):
        def __init__(self, setup: Setup) -> None:
            super().__init__()

        def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
            return torch.ones_like(student.logits[:, 0]) + 0 * student.logits.sum(1)

    # 120 of 240 epochs, scaled to 4: the full weight is reached at epoch 2.
    terms = [Term("cross_entropy"), Term(One, weight=3.0, warmup=120, name="one")]
    rows = run(tiny_data, method=terms, epochs=4).history
    assert [row["one"] for row in rows] == pytest.approx([1.5, 3.0, 3.0, 3.0])


def test_strong_view_is_shown_to_the_terms_that_ask_for_it(
    tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Context] = {}

    class Look(nn.Module):
        def __init__(self, setup: Setup, *, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
            assert len(student.logits) == len(context.labels) == 16 * context.views
            shown[self.name] = context
            return student.logits.sum(1)

    terms = [Term(Look, views=v, name=v, options={"name": v}) for v in ("upright", "all", "strong")]
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


def test_scheduler_without_anything_to_schedule_is_refused(tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match="nothing to schedule by difficulty"):
        run(tiny_data, method="vanilla", scheduler="preview")


@pytest.mark.parametrize("teacher", ["resnet8x4", "vgg8"])
def test_a_teacher_of_another_width_may_stand_beside_a_method_that_does_not_ask_it(
    teacher: str, tmp_path: Path
) -> None:
    """It is measured, and that is all."""
    data = pckd.load_data("shapes(num_classes=3, image_size=8, train_size=16, test_size=8)")
    network = build(BACKBONES, teacher, 3)
    save_weights(network, tmp_path / "teacher.pth")
    options: dict[str, Any] = {"student": "resnet8", "data": data, "epochs": 1, "batch_size": 8, "device": "cpu"}
    alone = pckd.distill(**options, method="vanilla")
    beside = pckd.distill(**options, method="vanilla", teacher=teacher, teacher_weights=tmp_path / "teacher.pth")
    assert beside.teacher_top1 is not None
    assert beside.history == alone.history


def test_head_that_answers_runs_in_bf16_and_counts_each_row_once(
    tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = spied_objective(monkeypatch)
    result = run(tiny_data, method="simkd", precision="bf16", epochs=2)
    assert 0 <= result.history[-1]["train_top1"] <= 100
    norms = [m for m in objectives[0].losses["simkd"].modules() if isinstance(m, nn.BatchNorm2d)]
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

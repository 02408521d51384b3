"""tools/benchmark_speed.py and the plain step beside it; nothing here asserts on how long anything takes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_zoo import probe
from pckd.data import make_views
from pckd.engine.sources import make_objective, method_terms
from pckd.engine.step import Moment, Trainee
from pckd.engine.teacher import FrozenTeacher
from pckd.profiling.speed import case_figures, compiling_figures, describe_machine
from pckd.profiling.speed_sheets import ranged
from pckd.profiling.turns import Epochs, Turn, Turns, give_back_threads
from registry import BACKBONES, Batch, Setup

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")
QUICK = ["--pairs", "resnet8>resnet8", "--batch-size", "8", "--image-size", "16", "--classes", "5", "--steps", "2"]
QUICK += ["--product", "32", "--device", "cpu"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, with a run so short that default does not compile."""
    monkeypatch.syspath_prepend(TOOLS)
    module = load_tool("benchmark_speed")
    monkeypatch.setattr(module, "RUN", 400)
    return module


@pytest.fixture
def plain(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("plain_step")


# The plain step


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("teacher_name", "terms"), [("resnet20", 5), ("resnet8x4", 4)])
def test_plain_step_is_the_objective(plain: ModuleType, teacher_name: str, terms: int) -> None:
    """Two programs that share only the networks: every term, their sum and the student's gradients agree."""
    torch.manual_seed(0)
    student, teacher = BACKBONES.get("resnet8")(6), FrozenTeacher(BACKBONES.get(teacher_name)(6))
    setup = Setup(probe(student, 3, 16), probe(teacher, 3, 16), 12, teacher.classifier)
    objective = make_objective(
        method_terms("pckd"), setup, difficulty="cross_entropy", scheduler="preview", centers="classifier"
    )
    with torch.no_grad():
        # So sure of themselves that some images are hard, and previewed.
        student.classifier.weight.mul_(20)
    student.train()
    objective.train()
    losses = plain.PlainLosses(setup.student.embedding, setup.teacher.embedding)
    losses.project.load_state_dict(objective.losses["feature_alignment"].projection.state_dict())
    for name in ("student_query", "teacher_query"):
        getattr(losses, name).load_state_dict(getattr(objective.losses["category_contrast"], name).state_dict())

    views, labels = torch.randn(12, 4, 3, 16, 16), torch.randint(0, 6, (12,))
    epoch = 30
    output, answer = student(views.flatten(0, 1)), teacher(views.flatten(0, 1))
    found = losses(output, answer, student, teacher, labels, epoch)
    found["loss"].backward()
    theirs = gradients(student)
    student.zero_grad()
    batch = Batch(views, labels, torch.arange(12))
    values, _, _ = Trainee(student, objective)(batch, answer, teacher, Moment(epoch, 240, 0.1), False)
    values["loss"].backward()
    ours = gradients(student)

    assert 0 < float(values["previewed"]) < 1
    assert len(found) == terms + 1
    assert set(found) == set(values) - {"preview_weight", "previewed"}
    for name, value in found.items():
        torch.testing.assert_close(value, values[name], rtol=1e-4, atol=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, ours[name], rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_plain_views_are_those_of_the_library(plain: ModuleType) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8)).to(torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    data = plain.FourViews(images, torch.tensor([3, 1]), mean, std)
    data.flip = lambda image: image
    crop = data.finish.transforms.pop(0)
    assert crop.size == (8, 8)
    assert crop.padding == 4
    views, label = data[1]
    assert label == 1
    expected = make_views(images, views=4, mean=mean, std=std, train=False)[1]
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-5)
    ((batch, labels),) = plain.make_loader(data, 2, workers=0)
    assert batch.shape == (2, 4, 3, 8, 8)
    assert sorted(labels.tolist()) == [1, 3]


def test_plain_trainer_trains_the_student_and_leaves_the_teacher(plain: ModuleType) -> None:
    torch.manual_seed(0)
    student, teacher = BACKBONES.get("resnet8")(4), BACKBONES.get("resnet8")(4)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = plain.PlainTrainer(student, teacher, CPU, 0.01)
    views, labels = torch.randn(6, 4, 3, 8, 8), torch.randint(0, 4, (6,))
    trainer.start_epoch()
    losses = [trainer.step(views, labels, 1) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert trainer.meters["loss"].average == pytest.approx(sum(losses) / 6)
    assert trainer.meters["top5"].average == 100
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_accuracy_by_hand(plain: ModuleType) -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5, 6], [0.0, 1, 2, 3, 4, 5, 6]])
    top1, top5 = plain.accuracy(logits, torch.tensor([0, 2, 1]))
    assert top1 == pytest.approx(100 / 3)
    assert top5 == pytest.approx(200 / 3)


# Turns


def test_one_run_at_a_time_and_only_in_its_turn() -> None:
    log: list[str] = []

    def run(name: str, turns: Turns) -> None:
        log.append(f"{name} ready")
        while True:
            turns.wait()
            for step in range(2):
                log.append(f"{name}{step}")
                turns.stepped()

    runs = {name: Turns(lambda turns, name=name: run(name, turns), CPU) for name in "ab"}
    assert runs["a"].start() >= 0
    runs["b"].start()
    for name in "abb":
        turn = runs[name].turn()
        assert turn.steps == 2
        assert 0 <= turn.first <= turn.seconds
    assert log == ["a ready", "b ready", "a0", "a1", "b0", "b1", "b0", "b1"]
    for each in runs.values():
        each.close()
        each.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "turns"]


def test_what_a_run_raises_is_raised_to_whoever_gave_the_turn() -> None:
    def run(turns: Turns) -> None:
        turns.wait()
        raise ValueError("broken")

    turns = Turns(run, CPU)
    turns.start()
    with pytest.raises(ValueError, match="broken"):
        turns.turn()
    with pytest.raises(RuntimeError, match="ended"):
        turns.turn()
    turns.close()


def test_a_run_that_ends_has_no_further_turn() -> None:
    turns = Turns(lambda turns: turns.wait(), CPU)
    turns.start()
    with pytest.raises(RuntimeError, match="ended, or its turn had no step"):
        turns.turn()


def test_a_turn_is_an_epoch() -> None:
    def run(turns: Turns) -> None:
        display = Epochs(turns)
        display.note("said")
        display.begin("title", 3, 2, 0)
        for epoch in (1, 2, 3):
            display.advance(epoch, 1)
            display.advance(epoch, 2)
            display.epoch({})

    turns = Turns(run, CPU)
    turns.start()
    assert [turns.turn().steps for _ in range(3)] == [2, 2, 2]
    turns.close()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's way")
def test_a_run_that_waits_has_no_workers() -> None:
    counts = []

    def run(turns: Turns) -> None:
        while True:
            turns.wait()
            torch.ones(1 << 20).add(1.0)
            counts.append(threads())
            turns.stepped()

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.ones(1 << 20).add(1.0)
        if not give_back_threads():
            pytest.skip("this OpenMP keeps its workers")
        runs = [Turns(run, CPU) for _ in range(3)]
        for each in runs:
            each.start()
        waiting = threads()
        for each in (*runs, *runs):
            each.turn()
        assert counts == [waiting + 2] * 6
        assert threads() == waiting
        for each in runs:
            each.close()
    finally:
        torch.set_num_threads(before)


# Figures


def test_figures_by_hand() -> None:
    warm_up = [Turn(10.0, 2, 8.0), Turn(2.0, 2, 1.0)]
    turns = [Turn(2.0, 2, 1.0), Turn(4.0, 2, 2.0), Turn(1.0, 2, 0.5)]
    figures = case_figures(5.0, warm_up, turns, images=8, macs=100, peak_flops=400.0)
    assert figures["samples"] == [1.0, 2.0, 0.5]
    assert figures["step"] == {"seconds": 1.0, "seconds_low": 0.75, "seconds_high": 1.5}
    assert figures["images_per_second"] == 8
    assert figures["of_peak"] == 0.5
    assert figures["first_step_seconds"] == 8
    assert figures["start_seconds"] == 5 + (10 - 2) + (2 - 2)
    slower = case_figures(1.0, warm_up[1:], [Turn(3.0, 2, 1.0)], images=8, macs=100, peak_flops=400.0)
    assert slower["start_seconds"] == 1 + (2 - 3)
    assert compiling_figures(figures, slower) == {"seconds": 13, "repaid_after_steps": 13 / 0.5}
    assert compiling_figures(slower, figures)["repaid_after_steps"] is None
    assert ranged([4.0, 1.0, 2.0]) == "2.00 x (1.00 to 4.00)"


PEAK = """
import torch
from pckd.profiling.speed import forget_peak, peak_now

cpu = torch.device("cpu")
forget_peak(cpu)
before = peak_now(cpu)
held = torch.ones(64 << 18)
print(peak_now(cpu) - before > 48 << 20)
del held
print(peak_now(cpu) - before > 48 << 20)
"""


def test_peak_is_of_what_was_in_use_since() -> None:
    # In a process of its own: one that has freed much takes it from there.
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_machine_is_described_by_kind() -> None:
    text = describe_machine(CPU)
    assert "cores with " in text
    assert torch.__version__.partition("+")[0] in text


# The tool


def test_table_and_json(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    arguments = [*QUICK, "--pairs", "resnet8>resnet8,resnet20>resnet8", "--rounds", "1", "--precision", "bf16"]
    assert tool.main([*arguments, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "| uncompiled | bf16 |" in out
    assert "| fp32 | fp32 |" in out
    assert "| resnet20>resnet8 |" in out
    assert "default does not compile the networks here" in out
    data = json.loads(output.read_text())
    assert list(data["pairs"]) == ["resnet8>resnet8", "resnet20>resnet8"]
    for found in data["pairs"].values():
        cases = found["cases"]
        assert list(cases) == ["plain", "default", "cache", "fp32", "uncompiled"]
        assert set(found["peak_flops"]) == {"fp32", "bf16"}
        for case in cases.values():
            assert case["faster"] == [cases["plain"]["samples"][0] / case["samples"][0]]
            assert case["images_per_second"] == pytest.approx(8 / case["samples"][0])
        whole = sum(found["macs"].values())
        assert cases["default"]["macs"] == whole
        assert cases["cache"]["macs"] == whole - found["macs"]["teacher"]

        stages = {part: figures["seconds"] for part, figures in found["stages"].items()}
        inside = {"terms_backward", "student_backward", "outside", "whole"}
        assert sum(stages[part] for part in stages if part not in inside) == pytest.approx(stages["whole"])
        assert {"data", "teacher", "student", "preview", "term:category_contrast", "metrics"} <= set(stages)
        assert all(seconds > 0 for seconds in stages.values())
        left = stages["teacher"] + stages["student"] + max(0, stages["backward"] - stages["terms_backward"])
        assert stages["outside"] == pytest.approx(stages["whole"] - left)
    first, second = data["pairs"].values()
    assert first["macs"]["teacher"] == first["macs"]["student"]
    assert second["macs"]["teacher"] > 2 * first["macs"]["teacher"]


def test_cache_is_full_before_the_first_turn_that_counts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    forward = FrozenTeacher.forward

    def counting(self: FrozenTeacher, x: Tensor) -> Any:
        nonlocal asked
        asked += len(x)
        return forward(self, x)

    monkeypatch.setattr(FrozenTeacher, "forward", counting)
    args = tool.make_parser().parse_args(QUICK)
    data = tool.random_data(args, 16)
    turns = tool.make_turns("cache", args, tool.make_pair("resnet8", "resnet8", data), data, CPU)
    turns.start()
    before = asked
    for _ in range(tool.WARM_UP):
        turns.turn()
    assert asked - before == 16 * 4
    turns.turn()
    assert asked - before == 16 * 4
    turns.close()


def test_other_methods_go_without_plain(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*QUICK, "--method", "kd", "--rounds", "2", "--cases", "default", "--precision", "fp32"]
    assert tool.main([*arguments, "--output", str(tmp_path / "speed.json")]) == 0
    assert "| kd forward |" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "speed.json").read_text())["pairs"].values()
    assert len(found["cases"]["default"]["samples"]) == 2
    assert "faster" not in found["cases"]["default"]
    assert list(found["peak_flops"]) == ["fp32"]


def test_memory_of_a_process_of_its_own(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*QUICK, "--rounds", "1", "--cases", "plain", "--memory", "16"]
    assert tool.main([*arguments, "--output", str(tmp_path / "speed.json")]) == 0
    assert "| images a step | plain: before | steps add |" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "speed.json").read_text())["pairs"].values()
    assert list(found["memory"]) == ["16"]
    assert 50 << 20 < found["memory"]["16"]["plain"]["before"] < found["memory"]["16"]["plain"]["later"]


def test_memory_of_a_default_step(tool: ModuleType) -> None:
    args = tool.make_parser().parse_args(QUICK)
    found = tool.peak(args, "resnet8", "resnet8", "default", CPU)
    assert set(found) == {"before", "first", "later"}
    assert found["first"] >= found["before"]


@pytest.mark.slow
def test_compiled_networks_are_timed_part_by_part(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "RUN", 4000)
    arguments = [*QUICK, "--rounds", "1", "--cases", "default,uncompiled", "--precision", "fp32"]
    assert tool.main([*arguments, "--output", str(tmp_path / "speed.json")]) == 0
    assert "Compiling takes" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "speed.json").read_text())["pairs"].values()
    assert found["compiled"]
    for part in ("teacher", "student", "backward", "term:kd"):
        assert found["stages"][part]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "resnet8"], "--pairs are written teacher>student"),
        (["--pairs", "resnet9>resnet8"], "did you mean"),
        (["--cases", "plain,fast"], "unknown case 'fast'; known: plain, default, cache"),
        (["--method", "kd"], "the plain step is written for pckd alone"),
        (["--method", "nothing"], "METHODS: unknown name 'nothing'"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--memory", "8,x"], "--memory takes batch sizes"),
        (["--memory", "1"], "--memory: a batch size must be at least 2"),
        (["--output", "/does/not/exist/x.json"], "there is no folder /does/not/exist"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--steps", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*QUICK, *arguments])

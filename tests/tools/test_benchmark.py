"""tools/benchmark.py: methods, pairs and seeds side by side, each run once, whatever comes between."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from model_zoo import Preprocessing, load_weights, save_weights
from pckd.comparison.variants import Variant
from pckd.data import limit
from pckd.engine.record import FolderInUse, Lock
from registry import BACKBONES, DATASETS, build

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
DATA = "shapes(image_size=8, train_size=40, test_size=20)"
QUICK = ["--dataset", DATA, "--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--device", "cpu"]
SMALL = [*QUICK, "--teacher", "resnet8"]
PAIR = "resnet8_resnet8"


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("benchmark")


def content(output: Path) -> dict[str, Any]:
    found = json.loads((output / "benchmark.json").read_text())
    assert isinstance(found, dict)
    return found


def result_of(output: Path, name: str) -> dict[str, Any]:
    found = json.loads((output / PAIR / name / "result.json").read_text())
    assert isinstance(found, dict)
    return found


def stamps(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("*/*/result.json")}


def test_runs_every_method_and_seed_once(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs"
    arguments = ["--methods", "kd,dkd(beta=2, alpha=1)+rkd", "--seeds", "0,1", "--output", str(output), *SMALL]
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.count("trained first") == 1
    folders = sorted(path.name for path in (output / PAIR).iterdir())
    assert len(folders) == 4
    assert folders[2:] == ["kd-seed0", "kd-seed1"]
    last = [result_of(output, folder)["last_top1"] for folder in folders[2:]]
    table = (output / "benchmark.md").read_text()
    assert f"| kd | {statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} |" in table
    assert "| dkd(beta=2, alpha=1)+rkd |" in table
    assert "4 of 4 runs" in table
    row, other = content(output)["rows"]
    assert (row["label"], row["last_top1"], row["seeds"]) == ("kd", last, [0, 1])
    assert other["difference"]["values"] == [a - b for a, b in zip(other["last_top1"], last, strict=True)]
    assert content(output)["protocol"]["dataset"] == DATA
    with open(output / "benchmark.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["last_top1"]) for line in lines if line["label"] == "kd"] == last
    assert all((output / line["folder"] / "model_final.pth").exists() for line in lines)

    before = stamps(output)
    assert tool.main(arguments) == 0
    assert stamps(output) == before
    assert (output / "benchmark.md").read_text() == table
    # A run whose result is gone is run again from its checkpoint, and the others are not.
    gone, result = output / PAIR / "kd-seed0" / "result.json", result_of(output, "kd-seed0")
    gone.unlink()
    assert tool.main(arguments) == 0
    again = result_of(output, "kd-seed0")
    assert (again["last_top1"], again["best_top1"]) == (result["last_top1"], result["best_top1"])
    assert {path for path, stamp in stamps(output).items() if before[path] != stamp} == {gone}


def test_runs_under_another_teacher_or_on_other_data_are_not_mixed(
    tool: ModuleType, tmp_path: Path, registries: None, refusal: Callable[[list[str]], str]
) -> None:
    weights = save_weights(BACKBONES.get("resnet8")(10), tmp_path / "teacher.pth")
    drawn = build(DATASETS, DATA, None, True)
    splits = {True: drawn, False: limit(drawn, 20)}
    DATASETS.register("mine")(lambda root, train: splits[train])
    common = ["--methods", "kd", "--teacher", "resnet8", *QUICK, "--dataset", "mine", "--output"]
    trained = [*common, str(tmp_path / "trained"), "--seeds"]
    given = [*common, str(tmp_path / "given"), "--teacher-weights", str(weights)]
    assert tool.main([*trained, "0"]) == 0
    assert tool.main(given) == 0
    # The same weights at another place are the same teacher.
    shutil.copy(weights, tmp_path / "moved.pth")
    assert tool.main([*given[:-1], str(tmp_path / "moved.pth")]) == 0
    save_weights(BACKBONES.get("resnet8")(10), weights)
    said = "kd-seed0 holds a run with other arguments (the teacher has other weights than before); choose another --out"
    assert said in refusal(given)
    # The cache's, for a second seed.
    (cached,) = (tmp_path / "cache" / "teachers").iterdir()
    network = BACKBONES.get("resnet8")(10)
    load_weights(network, cached)
    torch.nn.init.zeros_(network.classifier.bias)
    save_weights(network, cached)
    assert said in refusal([*trained, "0,1"])
    splits[True] = replace(drawn, images=drawn.images.flip(3))
    assert "other arguments (the training split has other images than before)" in refusal([*trained, "0"])


def test_the_teacher_is_trained_as_its_runs_are_told(tool: ModuleType, tmp_path: Path) -> None:
    for flip in ([], ["--no-flip"]):
        assert tool.main(["--methods", "kd", "--output", str(tmp_path / f"runs{len(flip)}"), *SMALL, *flip]) == 0
    found = [torch.load(path, weights_only=True)["meta"] for path in (tmp_path / "cache" / "teachers").iterdir()]
    assert sorted(meta["flip"] for meta in found) == [False, True]


def test_several_pairs_have_a_table_each(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs"
    weights = save_weights(BACKBONES.get("resnet14")(10), tmp_path / "resnet14.pth")
    arguments = ["--methods", "kd,vanilla", "--pairs", "resnet8>resnet8,resnet14>resnet8", "--output", str(output)]
    assert tool.main([*arguments, "--teacher-weights", f"resnet14={weights}", "--reference", "vanilla", *QUICK]) == 0
    said = capsys.readouterr().out
    assert said.count("trained first") == 1
    assert "teacher resnet8: no weights given" in said
    rows = content(output)["rows"]
    assert [row["pair"] for row in rows] == ["resnet8>resnet8"] * 2 + ["resnet14>resnet8"] * 2
    assert [row["difference"] and row["difference"]["to"] for row in rows] == ["vanilla", None] * 2
    # The teacher is not asked by a method that needs none, and is the same.
    assert rows[0]["teacher_top1"] == rows[1]["teacher_top1"]
    text = (output / "benchmark.md").read_text()
    assert text.index("## resnet8>resnet8") < text.index("## resnet14>resnet8")


def test_method_that_cannot_work_is_said_and_the_rest_goes_on(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs"
    arguments = ["--teacher", "resnet8x4", "--output", str(output), *QUICK]
    assert tool.main([*arguments, "--methods", "fsp,kd,kd(weight=1e39)"]) == 1
    said = capsys.readouterr().out
    assert said.index("fsp: fsp needs maps of equal widths") < said.index("trained first")
    text = (output / "benchmark.md").read_text()
    for part in ("1 of 2 runs", "| kd |", "fsp needs maps of equal widths"):
        assert part in text
    refused = [(one["method"], one["seed"]) for one in content(output)["refused"]]
    assert refused == [("fsp", None), ("kd(weight=1e39)", 0)]
    assert "epoch 1, step 1: kd is not finite" in content(output)["refused"][1]["reason"]
    # What cannot work at all is no failure.
    assert tool.main([*arguments, "--methods", "fsp,kd"]) == 0


def test_an_ablation_runs_its_cases_beside_the_references(tool: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    arguments = ["--preset", "quick", "--ablation", "pckd", "--report-difficulty", "--pairs", "resnet8>resnet8"]
    assert tool.main([*arguments, "--seeds", "0", *QUICK, "--output", str(output)]) == 0
    rows = {row["label"]: row for row in content(output)["rows"]}
    assert list(rows)[:4] == ["kd", "vanilla", "pckd", "pckd-without-feature"]
    assert len(rows) == 15
    # Cross entropy and KD without a preview is what kd is.
    assert rows["ce+kd"]["last_top1"] == rows["kd"]["last_top1"]
    result = result_of(output, "pckd-1-view-4x-epochs-seed0")
    assert (result["views"], result["epochs"], result["arguments"]["teacher_epochs"]) == (1, 4, 1)
    assert rows["pckd-1-view-4x-epochs"]["options"] == {"views": 1, "epochs": 4}
    text = (output / "benchmark.md").read_text()
    assert "Rank correlation of each metric" in text
    assert "easy, over no preview" in text


def test_scheduler_difficulty_and_centers_are_those_of_all_that_ask(tool: ModuleType, tmp_path: Path) -> None:
    given = ["--difficulty", "margin", "--scheduler", "focal", "--centers", "ema"]
    arguments = ["--methods", "kd,pckd", "--pairs", "resnet8>resnet8", *given]
    assert tool.main([*arguments, *QUICK, "--output", str(tmp_path)]) == 0
    found = [result_of(tmp_path, f"{name}-seed0")["arguments"] for name in ("kd", "pckd")]
    assert [[each[name] for name in ("difficulty", "scheduler", "centers")] for each in found] == [
        ["margin", None, "ema"],
        ["margin", "focal", "ema"],
    ]
    text = (tmp_path / "benchmark.md").read_text()
    assert "difficulty margin; scheduler focal; centers ema;" in text
    assert "view statistics" not in text


def test_several_at_once_find_what_one_after_the_other_find(
    tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = one, two = tmp_path / "one", tmp_path / "two"
    arguments = ["--methods", "kd,kd(weight=1e39)", *SMALL]
    assert tool.main([*arguments, "--output", str(one)]) == 1
    capfd.readouterr()
    assert tool.main([*arguments, "--output", str(two), "--jobs", "2"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith("started ") for line in lines) == 2
    assert sum(" % top-1 (best " in line for line in lines) == 1
    assert not any(line.startswith("epoch ") for line in lines)
    assert content(two)["refused"] == content(one)["refused"]
    metrics = [(output / PAIR / "kd-seed0" / "metrics.jsonl").read_text() for output in outputs]
    assert metrics[0] == metrics[1]
    assert "epoch 1/1" in (two / PAIR / "kd-seed0" / "log.txt").read_text()


def wait_for(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 300  # far more than it takes, even on a busy machine
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def free(folder: Path) -> bool:
    """Whether no process is at work in a folder."""
    try:
        Lock(folder).release()
    except FolderInUse:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_goes_on_after_signals_and_leaves_nothing_running(tool: ModuleType, tmp_path: Path) -> None:
    output, whole = tmp_path / "runs", tmp_path / "whole"
    arguments = ["--methods", "kd", "--seeds", "0,1", *SMALL, "--epochs", "30", "--teacher-epochs", "1"]
    assert tool.main([*arguments, "--output", str(whole)]) == 0
    folders = [output / PAIR / f"kd-seed{seed}" for seed in (0, 1)]

    def epochs() -> list[int]:
        files = [folder / "metrics.jsonl" for folder in folders]
        return [len(path.read_bytes().splitlines()) if path.exists() else 0 for path in files]

    command = [sys.executable, str(TOOL), *arguments, "--output", str(output), "--jobs", "2"]
    before = [0, 0]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: max(now - was for now, was in zip(epochs(), before, strict=True)) > 0)  # noqa: B023
            process.send_signal(number)
            said = process.communicate()[1]
        assert process.returncode == code
        if number == signal.SIGKILL:
            # Nobody told the children, which notice that their parent is gone.
            wait_for(lambda: all(map(free, folders)))
        else:
            assert said == "benchmark.py: stopped, as were the runs; the same command goes on from there\n"
        assert all(map(free, folders))
        assert not all((folder / "result.json").exists() for folder in folders)
        assert (output / "benchmark.md").exists()
        before = epochs()
    assert sum(before) > 0
    assert tool.main([*arguments, "--output", str(output)]) == 0
    assert "2 of 2 runs" in (output / "benchmark.md").read_text()
    for folder in folders:
        assert (folder / "metrics.jsonl").read_text() == (whole / PAIR / folder.name / "metrics.jsonl").read_text()


def test_matrix_names_works_and_reasons(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--matrix", "--methods", "kd,fsp,pckd"]) == 0
    header, _, kd, fsp, pckd = capsys.readouterr().out.strip().splitlines()
    assert header.endswith("| resnet-ShuffleV2 |")
    assert (kd.count("works"), fsp.count("needs maps of equal widths"), pckd.count("works")) == (6, 4, 6)


def test_matrix_of_all_methods_leaves_out_those_of_other_tasks(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pckd.commands.benchmark.method_variants", lambda _: [Variant(m, m) for m in ("kd", "ld")])
    assert tool.main(["--matrix"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.strip().splitlines()[2:]] == ["kd"]
    assert tool.main(["--matrix", "--methods", "ld"]) == 0
    assert "not 'foreground'" in capsys.readouterr().out


def test_a_teacher_of_other_classes_and_size_is_the_same_the_second_time(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Preprocessing((0.5,) * 3, (0.25,) * 3, (12, 12), tuple("abcde")).as_metadata()
    weights = save_weights(build(BACKBONES, "resnet8", 5), tmp_path / "teacher.pth", preprocessing=known)
    (tmp_path / "classes.txt").write_text("d\na\nb\n")
    data = ["--dataset", "shapes(num_classes=3, image_size=8, train_size=40, test_size=20)", *SMALL[2:]]
    which = ["--teacher-classes", str(tmp_path / "classes.txt"), "--methods", "kd,ld", "--output", str(tmp_path / "o")]
    command = [*data, *which, "--teacher-weights", str(weights)]
    assert (tool.main(command), tool.main(command)) == (0, 0)
    assert "1 runs, 1 of them done" in capsys.readouterr().out
    assert tool.main([*data, *which]) == 2
    assert "give --teacher-weights" in capsys.readouterr().err


def test_what_the_command_line_gives_wins_over_the_preset(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("pckd.commands.benchmark.run", lambda args: seen.append(args) or 0)
    assert tool.main(["--preset", "quick", "--epochs", "2", "--seeds", "5"]) == 0
    assert tool.main(["--preset", "paper-cifar100", "--ablation", "pckd", "--batch-size", "128"]) == 0
    quick, paper = seen
    assert (quick.epochs, quick.seeds, quick.pairs) == (2, "5", "resnet20>resnet8")
    assert "pckd_without_kd" in quick.methods
    assert (paper.epochs, paper.batch_size, paper.dataset) == (240, 128, "cifar100")
    assert paper.methods is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--jobs 0", "--jobs must be at least 1"),
        ("--confidence 95", "confidence must be above 0 and below 1"),
        ("--reference pckd", "--reference 'pckd' is no row of the table: kd"),
        ("--preset slow", "argument --preset: invalid choice"),
        ("--scheduler slow", "DIFFICULTY_SCHEDULERS: unknown name 'slow'"),
        ("--centers far", "CENTER_RULES: unknown name 'far'"),
        ("--difficulty hard", "DIFFICULTY_METRICS: unknown name 'hard'"),
        ("--pairs vgg8>vgg8,vgg13>vgg8 --teacher-weights y.pth", "several teachers (vgg8, vgg13)"),
        ("--pairs vgg8>vgg8,vgg8>resnet8 --student-weights y.pth", "several students (vgg8, resnet8)"),
        ("--teacher-cache y --view-pool 0", "needs a finite view_pool"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str,
    message: str,
    refusal: Callable[[list[str]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal([*QUICK, "--methods", "kd", "--output", "x", *arguments.split()])
    assert list(tmp_path.iterdir()) == []


def test_one_benchmark_at_a_time_is_at_work_in_a_folder(refusal: Callable[[list[str]], str], tmp_path: Path) -> None:
    with Lock(tmp_path):
        assert "is in use by" in refusal(["--methods", "kd", "--output", str(tmp_path), *SMALL])

"""tools/transfer.py as a user meets it: run folders in, a table and a JSON file out."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pckd
from pckd.transfer import Inputs, load_network
from registry import BACKBONES

SOURCE = "shapes(num_classes=3, image_size=8, train_size=24, test_size=12)"
TARGET = "shapes(num_classes=5, image_size=10, train_size=40, test_size=20, seed=7)"
SHOWN = Inputs((0.5,) * 3, (0.16,) * 3, (8, 8))
"""How the students of ``SOURCE`` are shown images."""
RUN: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu", "precision": "fp32"}
QUICK = ["--epochs", "2", "--batch-size", "16", "--device", "cpu", "--precision", "fp32"]
COMMAND = ["--dataset", TARGET, *QUICK]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("transfer")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: vanilla with two seeds, kd, kd with another learning rate, and simkd."""
    root = tmp_path_factory.mktemp("runs")
    torch.manual_seed(9)
    teacher = BACKBONES.get("resnet8")(3)
    options: dict[str, Any] = {"student": "resnet8", "data": SOURCE, **RUN}
    for seed in (0, 1):
        pckd.train(seed=seed, output=root / f"vanilla-seed{seed}", **options)
    pckd.distill(teacher=teacher, method="kd", output=root / "kd", **options)
    pckd.distill(teacher=teacher, method="kd", lr=0.01, output=root / "kd-slow", **options)
    pckd.distill(teacher=teacher, method="simkd", output=root / "simkd", **options)
    return root


def probed(folder: Path) -> pckd.Transfer:
    network = load_network("resnet8", folder / "model_final.pth", channels=3)
    return pckd.transfer(network, TARGET, source=SHOWN, **{**RUN, "epochs": 2, "batch_size": 16})


def table(out: str) -> list[list[str]]:
    lines = [line for line in out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_seeds_of_a_method_are_one_row(
    tool: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(runs / name) for name in ("vanilla-seed0", "vanilla-seed1", "simkd")]
    output = tmp_path / "transfer.json"
    assert tool.main([*folders, *COMMAND, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    vanilla, simkd = written["rows"]
    expected = [probed(runs / f"vanilla-seed{seed}") for seed in (0, 1)]
    last, best = [result.last_top1 for result in expected], [result.best_top1 for result in expected]
    assert (vanilla["label"], vanilla["student"], vanilla["source"]) == ("vanilla", "resnet8", SOURCE)
    assert (vanilla["seeds"], vanilla["folders"]) == ([0, 1], folders[:2])
    assert (vanilla["last_top1"], vanilla["best_top1"]) == (last, best)
    assert vanilla["mean"] == pytest.approx(statistics.mean(last))
    assert vanilla["std"] == pytest.approx(statistics.stdev(last))
    assert vanilla["best_std"] == pytest.approx(statistics.stdev(best))
    assert vanilla["history"] == [result.history for result in expected]
    # Of simkd the student's own embedding, not the projected one that its teacher's classifier reads.
    assert simkd["last_top1"] == [probed(runs / "simkd").last_top1]
    assert simkd["std"] is None
    assert written["protocol"]["epochs"] == 2
    assert written["protocol"]["milestones"] == [0.3, 0.6, 0.9]

    header, rule, first, second = table(capsys.readouterr().out)
    assert header[0] == "network"
    assert set(rule) == {"---"}
    own = [json.loads((runs / f"vanilla-seed{seed}" / "result.json").read_text())["last_top1"] for seed in (0, 1)]
    assert first[:4] == ["vanilla", "resnet8", SOURCE, "2"]
    assert first[4] == f"{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}"
    assert first[5] == f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}"
    assert first[6] == f"{statistics.mean(best):.2f} ± {statistics.stdev(best):.2f}"
    assert second[5] == f"{simkd['mean']:.2f}"


def test_runs_of_a_method_that_differ_in_more_than_the_seed_are_not_averaged(
    tool: ModuleType, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(runs / "kd"), str(runs / "kd-slow"), *COMMAND]) == 0
    assert [row[0] for row in table(capsys.readouterr().out)[2:]] == ["kd", "kd, lr=0.01"]


def test_given_weights_and_untrained_networks_are_rows_too(
    tool: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = runs / "kd" / "model_final.pth", tmp_path / "transfer.json"
    folders = [str(runs / f"vanilla-seed{seed}") for seed in (0, 1)]
    more = ["--weights", str(weights), "--student", "resnet8", "--random", "--output", str(output)]
    assert tool.main([*folders, *COMMAND, *more]) == 0
    assert [row[0] for row in table(capsys.readouterr().out)[2:]] == ["vanilla", "model_final.pth", "untrained"]
    _, given, untrained = json.loads(output.read_text())["rows"]
    assert given["last_top1"] == [probed(runs / "kd").last_top1]
    assert (given["seeds"], given["own_top1"]) == ([None], [None])
    assert untrained["seeds"] == [0, 1]
    for seed, result in zip((0, 1), untrained["history"], strict=True):
        torch.manual_seed(seed)
        network = BACKBONES.get("resnet8")(10)
        options = {**RUN, "epochs": 2, "batch_size": 16}
        assert result == pckd.transfer(network, TARGET, source=SHOWN, **options).history


def test_a_runs_own_file_says_how_images_are_shown(
    tool: ModuleType, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever lies where its data set was."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "kd", folder)
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**record, "dataset": "imagefolder"}))
    assert tool.main([str(folder), *COMMAND]) == 0
    assert table(capsys.readouterr().out)[2][5] == f"{probed(runs / 'kd').last_top1:.2f}"


def test_without_run_folders_the_source_is_named(
    tool: ModuleType, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = runs / "kd" / "model_final.pth"
    alone = ["--weights", str(weights), "--student", "resnet8", *COMMAND]
    assert tool.main([*alone, "--source", SOURCE]) == 0
    named = table(capsys.readouterr().out)
    assert named[2][5] == f"{probed(runs / 'kd').last_top1:.2f}"
    numbers = ["--mean", "0.5,0.5,0.5", "--std", "0.16,0.16,0.16", "--image-size", "8"]
    assert tool.main([*alone, *numbers]) == 0
    assert table(capsys.readouterr().out)[2][5] == named[2][5]
    # The file itself says how, and on what; where it does not, it is asked.
    assert tool.main(alone) == 0
    row = table(capsys.readouterr().out)[2]
    assert (row[2], row[5]) == (SOURCE, named[2][5])
    assert tool.main(["--random", "--student", "resnet8", "--source", SOURCE, *COMMAND]) == 0
    assert table(capsys.readouterr().out)[2][0] == "untrained"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{runs}/kd", "--dataset is missing"),
        ("--dataset shapes", "nothing to look at: give run folders"),
        ("{runs}/none --dataset shapes", "none: not the folder of a finished run: it has no result.json"),
        ("{runs}/kd --dataset cifar11", "did you mean 'cifar10'"),
        ("{runs}/kd --dataset shapes --weights x.pth", "--weights needs --student"),
        ("{runs}/kd --dataset shapes --weights none.pth --student resnet8", "none.pth: no such file"),
        ("{runs}/kd --dataset shapes --student resnet8", "--student goes with --weights or --random"),
        ("--random --dataset shapes", "--random needs run folders, or --student"),
        ("--random --student resnet8 --dataset shapes", "--source is missing"),
        ("{runs}/kd --dataset shapes --mean 0.5,0.5,0.5", "--mean and --std go together"),
        ("{runs}/kd --dataset shapes --mean 0.5 --std 1,1 --image-size 8", "--mean and --std go together"),
        ("{runs}/kd --dataset shapes --mean 0.5 --std 1", "give --image-size"),
        ("{runs}/kd --dataset shapes --mean 0.5 --std 0 --image-size 8", "--std must be above 0"),
        ("{runs}/kd --dataset shapes --mean 0.5,x", "must be numbers with commas between"),
        ("{runs}/kd --dataset shapes --mean 0.5 --std 1 --image-size 8", "weights of another network than resnet8"),
        ("{runs}/kd --dataset shapes --epochs 0", "epochs must be a whole number of at least 1"),
        ("{runs}/kd --dataset shapes --lr -1", "lr must be a finite number"),
        ("{runs}/kd --dataset shapes --image-size 0", "image_size must be pixels per side"),
        ("{runs}/kd --dataset shapes --output {runs}", "is a folder; give the name of a file"),
        ("{runs}/kd --dataset shapes --output {runs}/none/x.json", "there is no folder"),
        ("{runs}/unreadable --dataset shapes", "result.json: cannot be read"),
        ("{runs}/other --dataset shapes", "not a run's: it has no student, method"),
        ("{runs}/without --dataset shapes", "model_final.pth: no such file"),
        ("{runs}/elsewhere --dataset shapes", "say with --source and --source-root where it is"),
        ("--weights {runs}/elsewhere/model_final.pth --student resnet8 --dataset shapes", "--source is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str, message: str, runs: Path, refusal: Callable[[list[str]], str]
) -> None:
    for name in ("unreadable", "other", "without", "elsewhere"):
        (runs / name).mkdir(exist_ok=True)
    (runs / "unreadable" / "result.json").write_text("{")
    (runs / "other" / "result.json").write_text("{}")
    record = json.loads((runs / "kd" / "result.json").read_text())
    (runs / "without" / "result.json").write_text(json.dumps(record))
    (runs / "elsewhere" / "result.json").write_text(json.dumps({**record, "dataset": "custom"}))
    # Of an earlier version, which kept no record of the normalization.
    weights = torch.load(runs / "kd" / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": weights, "meta": {}}, runs / "elsewhere" / "model_final.pth")
    # Where an option is given twice, the last one counts.
    assert message in refusal([*QUICK, *arguments.format(runs=runs).split()])

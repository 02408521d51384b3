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
from torch import nn

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
Table = Callable[..., list[list[str]]]


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
    for name, more in {"kd": {}, "kd-slow": {"lr": 0.01}, "simkd": {}}.items():
        pckd.distill(teacher=teacher, method=name.partition("-")[0], output=root / name, **options, **more)
    return root


def probe(network: nn.Module) -> pckd.Transfer:
    return pckd.transfer(network, TARGET, source=SHOWN, **{**RUN, "epochs": 2, "batch_size": 16})


def probed(folder: Path) -> pckd.Transfer:
    return probe(load_network("resnet8", folder / "model_final.pth", channels=3))


@pytest.fixture
def table(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> Table:
    """Runs the tool, which must succeed: the rows of its table, without the header."""

    def run(*arguments: object) -> list[list[str]]:
        assert tool.main([*map(str, arguments), *COMMAND]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert (header[0], set(rule)) == ("network", {"---"})
        return rows

    return run


def shown(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def test_seeds_of_a_method_are_one_row(table: Table, runs: Path, tmp_path: Path) -> None:
    folders = [str(runs / name) for name in ("vanilla-seed0", "vanilla-seed1", "simkd")]
    output = tmp_path / "transfer.json"
    first, second = table(*folders, "--output", output)
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
    assert (simkd["last_top1"], simkd["std"]) == ([probed(runs / "simkd").last_top1], None)
    assert (written["protocol"]["epochs"], written["protocol"]["milestones"]) == (2, [0.3, 0.6, 0.9])
    own = [json.loads((runs / f"vanilla-seed{seed}" / "result.json").read_text())["last_top1"] for seed in (0, 1)]
    assert first == ["vanilla", "resnet8", SOURCE, "2", shown(own), shown(last), shown(best)]
    assert second[5] == f"{simkd['mean']:.2f}"


def test_runs_of_a_method_that_differ_in_more_than_the_seed_are_not_averaged(table: Table, runs: Path) -> None:
    assert [row[0] for row in table(runs / "kd", runs / "kd-slow")] == ["kd", "kd, lr=0.01"]


def test_given_weights_and_untrained_networks_are_rows_too(table: Table, runs: Path, tmp_path: Path) -> None:
    weights, output = runs / "kd" / "model_final.pth", tmp_path / "transfer.json"
    more = ["--weights", weights, "--student", "resnet8", "--random", "--output", output]
    rows = table(runs / "vanilla-seed0", runs / "vanilla-seed1", *more)
    assert [row[0] for row in rows] == ["vanilla", "model_final.pth", "untrained"]
    _, given, untrained = json.loads(output.read_text())["rows"]
    assert given["last_top1"] == [probed(runs / "kd").last_top1]
    assert (given["seeds"], given["own_top1"]) == ([None], [None])
    assert untrained["seeds"] == [0, 1]
    for seed, result in zip((0, 1), untrained["history"], strict=True):
        torch.manual_seed(seed)
        assert result == probe(BACKBONES.get("resnet8")(10)).history


def test_a_runs_own_file_says_how_images_are_shown(table: Table, runs: Path, tmp_path: Path) -> None:
    """Whatever lies where its data set was."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "kd", folder)
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**record, "dataset": "imagefolder"}))
    ((*_, last, _),) = table(folder)
    assert last == f"{probed(runs / 'kd').last_top1:.2f}"


def test_without_run_folders_the_source_is_named(table: Table, runs: Path) -> None:
    alone = ["--weights", runs / "kd" / "model_final.pth", "--student", "resnet8"]
    numbers = ["--mean", "0.5,0.5,0.5", "--std", "0.16,0.16,0.16", "--image-size", "8"]
    # By name, by its numbers, and by what the file itself says.
    for how, source in ((["--source", SOURCE], SOURCE), (numbers, ""), ([], SOURCE)):
        (row,) = table(*alone, *how)
        assert (row[2], row[5]) == (source, f"{probed(runs / 'kd').last_top1:.2f}")
    assert [row[0] for row in table("--random", "--student", "resnet8", "--source", SOURCE)] == ["untrained"]


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
        ("{runs}/kd --dataset shapes --output {runs}", "is a folder; give the name of a file"),
        ("{runs}/kd --dataset shapes --output {runs}/none/x.json", "there is no folder"),
        ("{runs}/without --dataset shapes", "model_final.pth: no such file"),
        ("{runs}/elsewhere --dataset shapes", "say with --source and --source-root where it is"),
        ("--weights {runs}/elsewhere/model_final.pth --student resnet8 --dataset shapes", "--source is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str, message: str, runs: Path, refusal: Callable[[list[str]], str]
) -> None:
    for name in ("without", "elsewhere"):
        (runs / name).mkdir(exist_ok=True)
    record = json.loads((runs / "kd" / "result.json").read_text())
    (runs / "without" / "result.json").write_text(json.dumps(record))
    (runs / "elsewhere" / "result.json").write_text(json.dumps({**record, "dataset": "custom"}))
    # Of an earlier version, which kept no record of the normalization.
    weights = torch.load(runs / "kd" / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": weights, "meta": {}}, runs / "elsewhere" / "model_final.pth")
    # Where an option is given twice, the last one counts.
    assert message in refusal([*QUICK, *arguments.format(runs=runs).split()])

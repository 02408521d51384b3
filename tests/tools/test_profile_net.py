"""tools/profile_net.py as a user meets it, and --profile of tools/train_net.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from model_zoo import Pair, Recipe
from pckd.profiling import side_by_side

QUICK = ["--batch-size", "4", "--image-size", "8", "--num-classes", "5", "--num-samples", "40", "--rounds", "1"]
QUICK += ["--precision", "fp32", "--device", "cpu"]
PLUGIN = """
import torch
from torch import nn
from registry import BACKBONES, LOSSES, METHODS, Output, Term


class Plain(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Conv2d(in_channels, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        embedding = self.body(x).relu().mean((2, 3))
        return Output(self.classifier(embedding), embedding)


@BACKBONES.register("plain")
def plain(num_classes: int, in_channels: int = 3):
    return Plain(num_classes, in_channels)


@LOSSES.register("projected")
class Projected(nn.Module):
    def __init__(self, setup):
        super().__init__()
        self.projection = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student, teacher, context):
        return (self.projection(student.embedding) - teacher.embedding).square().mean(1)


@METHODS.register("projecting")
def projecting(weight: float = 1.0):
    return [Term("cross_entropy"), Term("projected", weight)]
"""


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("profile_net")


def test_tables_json_markdown_and_picture(tool: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {option: tmp_path / f"cost.{option}" for option in ("json", "markdown", "plot")}
    files["plot"] = tmp_path / "cost.png"
    options = [text for option, file in files.items() for text in (f"--{option}", str(file))]
    assert tool.main(["--student", "resnet8", "--teacher", "resnet20", "--depth", "2", *QUICK, *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert files["markdown"].read_text().strip() in out
    data = json.loads(files["json"].read_text())
    assert (data["settings"]["method"], data["settings"]["views"]) == ("pckd", 4)
    assert data["step"]["seconds"] > 0
    assert any(module["name"] == "layer1.0" for module in data["student"]["modules"])
    assert files["plot"].stat().st_size > 10_000


def test_methods_side_by_side(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--student", "resnet8", "--compare", "dkd(beta=2,temperature=3),kd@4"]
    assert tool.main([*arguments, *QUICK, "--json", str(tmp_path / "cost.json")]) == 0
    out = capsys.readouterr().out
    assert "dkd(beta=2,temperature=3) with one view takes" in out
    data = json.loads((tmp_path / "cost.json").read_text())
    assert list(data["methods"]) == ["vanilla", "kd", "dkd(beta=2,temperature=3)", "kd@4"]
    assert data["relative"]["kd@4"]["kd"]["macs"] == pytest.approx(4, rel=0.01)


def test_pairs_of_the_paper(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair("resnet8", "resnet20", Recipe(), {"PCKD": 1.0}), Pair("resnet20", "resnet8", Recipe(), {"KD": 1.0})]
    monkeypatch.setattr(side_by_side, "PAIRS", pairs)
    assert tool.main(["--pairs", "paper", *QUICK, "--json", str(tmp_path / "pairs.json")]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("| resnet")]
    assert row.startswith("| resnet20 > resnet8 | 272 k parameters, ")
    assert "pckd with 4 views takes 4." in out
    assert "views: kd 1, pckd 4, pckd@1 1" in out
    data = json.loads((tmp_path / "pairs.json").read_text())
    assert list(data["pairs"]["resnet20>resnet8"]["methods"]) == ["kd", "pckd", "pckd@1"]


def test_plugins_are_profiled_like_built_ins(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], registries: None
) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    arguments = ["--student", "plain", "--teacher", "resnet8", "--method", "projecting", "--plugin", str(plugin)]
    assert tool.main([*arguments, *QUICK, "--json", str(tmp_path / "cost.json")]) == 0
    data = json.loads((tmp_path / "cost.json").read_text())
    assert data["student"]["macs"] == 36 * 27 * 8 + 8 * 5
    assert data["terms"]["projected"]["macs"] == 4 * 8 * 64
    assert data["terms"]["projected"]["projections"]["projection"]["parameters"] == 8 * 64 + 64
    assert "projected forward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "resnet8", "--pairs", "paper"], "give either --student"),
        (["--student", "resnet8", "--rounds", "0", "--plot", "x.png"], "--plot needs timings"),
        (["--student", "resnet8", "--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--pairs", "paper", "--teacher", "resnet8"], "--pairs goes without --teacher"),
        (["--student", "resnet8", "--plugin", "missing.py"], "plug-in missing.py: no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal(arguments)


def test_train_net_profiles_first(load_tool: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--student", "resnet8", "--dataset", "shapes(image_size=8, train_size=40, test_size=20)"]
    arguments += ["--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--profile"]
    assert load_tool("train_net").main(arguments) == 0
    out = capsys.readouterr().out
    assert out.index("profile: resnet8 by pckd, teacher resnet20: 8 images x 4 views") < out.index("trained first")

"""tools/profile_net.py as a user meets it, and --profile of tools/train_net.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from model_zoo import PAIRS, Pair, Recipe
from pckd.profiling import side_by_side

TOOL = Path(__file__).parents[2] / "tools" / "profile_net.py"
QUICK = ["--batch-size", "4", "--image-size", "8", "--num-classes", "5", "--num-samples", "40", "--rounds", "1"]
QUICK += ["--precision", "fp32", "--device", "cpu"]
PLUGIN = '''
import torch
from torch import nn
from registry import BACKBONES, LOSSES, METHODS, Output, Term


class Plain(nn.Module):
    """One convolution."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Conv2d(in_channels, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, x):
        embedding = self.body(x).relu().mean((2, 3))
        return Output(self.classifier(embedding), embedding)


@BACKBONES.register("plain")
def plain(num_classes: int, in_channels: int = 3):
    """One convolution."""
    return Plain(num_classes, in_channels)


@LOSSES.register("projected")
class Projected(nn.Module):
    """Squared error of the projected embedding."""

    def __init__(self, setup):
        super().__init__()
        self.projection = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student, teacher, context):
        return (self.projection(student.embedding) - teacher.embedding).square().mean(1)


@METHODS.register("projecting")
def projecting(weight: float = 1.0):
    """Squared error of the projected embedding."""
    return [Term("cross_entropy"), Term("projected", weight)]
'''


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("profile_net")


def test_tables_json_markdown_and_picture(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("cost.json", "cost.md", "cost.png")]
    options = [
        text
        for option, file in zip(("json", "markdown", "plot"), files, strict=True)
        for text in (f"--{option}", str(file))
    ]
    assert tool.main(["--student", "resnet8", "--teacher", "resnet20", "--depth", "2", *QUICK, *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert files[1].read_text().strip() in out
    data = json.loads(files[0].read_text())
    assert data["settings"]["method"] == "pckd"
    assert data["settings"]["views"] == 4
    assert data["step"]["seconds"] > 0
    assert any(module["name"] == "layer1.0" for module in data["student"]["modules"])
    assert files[2].stat().st_size > 10_000


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
    assert len([pair for pair in PAIRS if "PCKD" in pair.paper]) == 7
    pairs = [Pair("resnet8", "resnet20", Recipe(), {"PCKD": 1.0}), Pair("resnet20", "resnet8", Recipe(), {"KD": 1.0})]
    monkeypatch.setattr(side_by_side, "PAIRS", pairs)
    assert tool.main(["--pairs", "paper", *QUICK, "--json", str(tmp_path / "pairs.json")]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| resnet")]
    assert len(rows) == 1
    assert rows[0].startswith("| resnet20 > resnet8 | 272 k parameters, ")
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
        (["--student", "resnet9"], "did you mean"),
        (["--student", "resnet8", "--method", "nothing"], "METHODS: unknown name 'nothing'"),
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


def test_runs_as_a_script_and_is_silent_beside_its_output() -> None:
    command = [sys.executable, str(TOOL), "--student", "resnet8", "--method", "kd", *QUICK]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "| whole step |" in done.stdout


def test_train_net_profiles_first(
    load_tool: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "shapes(image_size=8, train_size=40, test_size=20)"
    arguments = ["--student", "resnet8", "--dataset", data, "--epochs", "1", "--teacher-epochs", "1"]
    arguments += ["--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert load_tool("train_net").main([*arguments, "--profile"]) == 0
    out = capsys.readouterr().out
    assert out.index("profile: resnet8 by pckd, teacher resnet20: 8 images x 4 views") < out.index("trained first")
    kept = json.loads((tmp_path / "run" / "result.json").read_text())["profile"]
    assert kept["student"]["macs"] > 0
    assert kept["terms"]["kd"]["bytes"] > 0
    assert kept["settings"]["num_samples"] == 40

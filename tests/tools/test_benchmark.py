"""tools/benchmark.py: methods and seeds side by side, each run once."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
DATA = "shapes(image_size=8, train_size=40, test_size=20)"
QUICK = ["--dataset", DATA, "--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("benchmark")


def test_runs_every_method_and_seed_once(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs"
    arguments = ["--methods", "kd,dkd(beta=2, alpha=1)+rkd", "--seeds", "0,1", "--output", str(output), *QUICK]
    assert tool.main([*arguments, "--teacher", "resnet8"]) == 0
    assert capsys.readouterr().out.count("trained first") == 1
    folders = sorted(path.name for path in output.iterdir() if path.is_dir())
    assert len(folders) == 4
    assert folders[2:] == ["kd-seed0", "kd-seed1"]
    table = (output / "table.md").read_text()
    last = [json.loads((output / f"kd-seed{seed}" / "result.json").read_text())["last_top1"] for seed in (0, 1)]
    assert f"| kd | {statistics.mean(last):.2f} ± {statistics.stdev(last):.2f} |" in table
    assert "| dkd(beta=2, alpha=1)+rkd |" in table
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")}
    assert tool.main([*arguments, "--teacher", "resnet8"]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/result.json")} == stamps
    assert (output / "table.md").read_text() == table


def test_method_that_cannot_work_is_said_and_the_rest_goes_on(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--methods", "fsp,kd", "--teacher", "resnet8x4", "--output", str(tmp_path / "runs"), *QUICK]
    assert tool.main(arguments) == 0
    assert "fsp: fsp needs maps of equal widths" in capsys.readouterr().out
    table = (tmp_path / "runs" / "table.md").read_text()
    assert "| kd |" in table
    assert "fsp needs maps of equal widths" in table


def test_matrix_names_works_and_reasons(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--matrix", "--methods", "kd,fsp"]) == 0
    header, kd, fsp = [
        line for line in capsys.readouterr().out.splitlines() if line.split()[0] in ("method", "kd", "fsp")
    ]
    assert [cell.strip() for cell in header.split("|")][-1] == "resnet-ShuffleV2"
    assert kd.count("works") == 6
    assert fsp.count("needs maps of equal widths") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "kd,nothing"], "METHODS: unknown name 'nothing'"),
        (["--methods", "kd"], "--output is missing"),
        (["--methods", "kd", "--output", "x", "--seeds", "0,one"], "--seeds must be whole numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([*arguments, *QUICK]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1

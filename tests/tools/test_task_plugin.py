"""A task from a file outside the tree, through the command lines: tests/plugins/regions.py."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pckd
from pckd.plan import make_task
from registry import NotApplicable, Term, load_plugin

pytestmark = pytest.mark.usefixtures("registries")

PLUGIN = Path(__file__).parents[1] / "plugins" / "regions.py"
PAIR = ["--plugin", str(PLUGIN), "--student", "half_net", "--teacher", "half_net(width=16)", "--batch-size", "8"]
SHORT = ["--dataset", "halves", "--lr", "0.05", "--teacher-lr", "0.05", "--device", "cpu", "--precision", "fp32"]
TRAINED = [*PAIR, *SHORT, "--epochs", "2", "--teacher-epochs", "2", "--method"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("train_net")


@pytest.mark.parametrize("method", ["kd", "pckd"])
def test_a_task_of_a_users_own_is_trained(
    method: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([*TRAINED, method, "--output", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["task"], result["metric"]) == ("regions", "score")
    assert result["last_score"] == rows[-1]["score"]
    assert result["best_score"] == max(row["score"] for row in rows)
    assert {"network_losses", "train_score", "cross_entropy"} <= set(rows[0])
    assert not any("top1" in name for name in (*rows[0], *result))
    assert ("preview_weight" in rows[0]) == (method == "pckd")
    assert f"{result['last_score']:.2f} % score after the last epoch" in capsys.readouterr().out


def test_a_network_that_gives_distributions_of_its_sides_is_trained_by_them(tmp_path: Path) -> None:
    load_plugin(PLUGIN)
    options: dict[str, Any] = {"data": "halves", "epochs": 1, "batch_size": 8, "device": "cpu", "display": None}
    torch.manual_seed(0)
    teacher = make_task("regions", None).make_network("half_net(width=16, bins=5)", pckd.load_data("halves"))
    before = make_task("regions", None).make_network("half_net(bins=5)", pckd.load_data("halves"))
    student = copy.deepcopy(before)
    run = pckd.distill(student=student, teacher=teacher, method="ld(weight=1.0)", output=tmp_path / "run", **options)
    assert run.history[-1]["ld"] > 0
    # Nothing else has a gradient for this layer.
    assert not torch.equal(student.sides.weight, before.sides.weight)
    with pytest.raises(
        NotApplicable, match=r"^ld needs two networks whose Output.sides have as many bins, not 0 and 5"
    ):
        pckd.distill(student="half_net", teacher=teacher, method="ld", output=tmp_path / "refused", **options)


def test_a_method_that_needs_lasting_samples_is_refused(refusal: Callable[[list[str]], str]) -> None:
    assert "crd: a row has no place in its memory" in refusal([*TRAINED, "crd"])


def test_an_interrupted_run_goes_on_byte_for_byte(tmp_path: Path, stop_after: Callable[[int], Any]) -> None:
    load_plugin(PLUGIN)
    # Foreground rows alone, whose number differs from batch to batch; and what a rule of centers has seen.
    terms = [Term("cross_entropy"), Term("kd", rows="foreground", previewed=True)]
    options: dict[str, Any] = {"data": "halves", "method": terms, "batch_size": 8, "epochs": 3, "lr": 0.05}
    options |= {"centers": "ema", "precision": "fp32", "device": "cpu", "checkpoint_every": 2, "display": None}
    torch.manual_seed(0)
    teacher = make_task("regions", None).make_network("half_net(width=16)", pckd.load_data("halves"))
    options |= {"student": "half_net", "teacher": teacher}
    whole = pckd.distill(output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(output=tmp_path / "stopped", **{**options, "display": stop_after(9)})
    again = pckd.distill(output=tmp_path / "stopped", resume=True, **options)
    assert again.history == whole.history
    for name in ("metrics.jsonl", "model_final.pth"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_is_profiled_and_checked(
    load_tool: Callable[[str], ModuleType], tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    arguments = [*PAIR, "--dataset", "halves", "--method", "pckd", "--rounds", "0", "--json", str(file)]
    assert load_tool("profile_net").main(arguments) == 0
    assert json.loads(file.read_text())["terms"]["network_losses"]["parameters"] == 0
    assert tool.main([*TRAINED, "pckd", "--check"]) == 0
    assert "nothing was trained or written" in capsys.readouterr().out


def test_it_is_benchmarked(load_tool: Callable[[str], ModuleType], tmp_path: Path) -> None:
    arguments = [*PAIR, *SHORT, "--methods", "vanilla,kd,crd", "--seeds", "0,1", "--epochs", "1"]
    assert load_tool("benchmark").main([*arguments, "--output", str(tmp_path)]) == 0
    table = (tmp_path / "benchmark.md").read_text()
    assert "last score" in table
    assert "crd: a row has no place in its memory" in table
    assert len(list(tmp_path.glob("*/*/*/result.json"))) + len(list(tmp_path.glob("*/*/result.json"))) > 0

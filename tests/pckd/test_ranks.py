"""Training in two processes, started by torchrun as users do, against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pckd.functional.ranks import BatchNormOverRanks, gather_output, gather_rows, own_rows
from registry import Output

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("ranks_worker", Path(__file__).with_name("ranks_worker.py"))
assert _spec is not None
assert _spec.loader is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

OF_THE_BATCH = {
    "category_contrast": "contrasts with the rows of its own process, unless gather=True",
    "correlation_congruence": "relations between rows",
    "crd": "draws its negatives at random",
    "dist_intra": "relations over the rows of the batch",
    "mld_batch": "relations between rows",
    "mld_class": "relations over the rows of the batch",
    "ofd": "its margins are means over the rows of the batch",
    "pkt": "relations between rows",
    "rkd": "relations between rows",
    "self_supervision": "tells the images of its own batch apart",
    "sp": "relations between rows",
}
"""Losses that are no mean over samples, so that half the batch is another question."""


def torchrun(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("ranks") / "gradients.pt"
    done = torchrun(str(Path(worker.__file__)), str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("loss", worker.TERMS)
def test_two_processes_with_half_the_batch_have_the_gradient_of_one_with_all(
    loss: str, together: dict[str, Any]
) -> None:
    alone, shared = worker.gradients(loss, 1, 0), together[loss]
    assert shared["gradients"].keys() == alone["gradients"].keys()
    # Batch statistics, the difficulty that is relative to the batch, and the centers' update are those of all rows.
    for part in ("statistics", "centers"):
        for name, value in alone[part].items():
            torch.testing.assert_close(shared[part][name], value, rtol=1e-4, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in alone["gradients"].values())
    assert scale > 0
    worst = max(
        float((shared["gradients"][name] - gradient).abs().max()) for name, gradient in alone["gradients"].items()
    )
    if loss in OF_THE_BATCH:
        assert worst > 1e-5 * scale, f"{loss} is a mean over samples after all: take it off the list"
    else:
        assert worst <= 1e-5 * scale


def test_training_in_two_processes_is_training_in_one(tmp_path: Path) -> None:
    given = (
        "--student resnet8 --teacher resnet8 --method pckd(beta=0) --difficulty cross_entropy --precision fp32 "
        "--epochs 2 --teacher-epochs 1 --batch-size 16 --limit-train 64 --limit-test 33 --no-flip --no-compile"
    )
    options = given.split()
    command = ["tools/train_net.py", "--dataset", "shapes(num_classes=4, image_size=12)", *options]
    rows, notes = {}, {}
    for name in ("one", "two"):
        output = tmp_path / name
        run = [str(ROOT / command[0]), *command[1:], "--output", str(output)]
        if name == "one":
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PCKD_CACHE": str(tmp_path / f"cache-{name}")}
            done = subprocess.run([sys.executable, *run], capture_output=True, text=True, env=environment, check=False)
        else:
            done = torchrun(*run, PCKD_CACHE=str(tmp_path / f"cache-{name}"))
        assert done.returncode == 0, done.stderr[-3000:]
        rows[name] = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        notes[name] = done.stdout
    assert len(rows["two"]) == 2
    for alone, shared in zip(rows["one"], rows["two"], strict=True):
        assert shared.keys() == alone.keys()
        for key, value in alone.items():
            # Each epoch amplifies the rounding of sums in another order.
            assert shared[key] == pytest.approx(value, rel=0.02, abs=3.1 if "top" in key else 0.02), key
    # The second process is silent.
    assert notes["two"].count("top-1 after the last epoch") == 1
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2


def test_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = torchrun(
        str(ROOT / "tools" / "train_net.py"), "--student", "resnet8", "--method", "vanilla", "--batch-size", "7"
    )
    assert done.returncode != 0
    assert "batch_size=7 cannot be shared by 2 processes; try 8" in done.stderr


def test_alone_everything_is_as_it_was() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    output = Output(rows, rows, (torch.ones(3, 1, 2, 2),))
    assert gather_rows(rows) is rows
    assert own_rows(rows) is rows
    assert gather_output(output) is output


def test_converted_batch_norm_keeps_names_statistics_and_answers() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(64))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(5, 3, 4, 4)
    parameters = list(network.parameters())
    converted = BatchNormOverRanks.convert(network)
    assert [type(m) for m in converted][1::2] == [BatchNormOverRanks] * 2
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    assert converted.state_dict().keys() == before.keys()
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(64))
    assert torch.equal(converted(images), usual(images))
    for name, value in usual.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)

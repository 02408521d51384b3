"""What trackers keep, read back by the programs that it is for: every number of a row once, whatever stops the run."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import pckd
from pckd import trackers
from pckd.display import Display, Silent
from pckd.tensorboard import scalars
from pckd.trackers import Tracker
from registry import TRACKERS, UserError

SMALL: dict[str, Any] = {"student": "resnet8", "batch_size": 16, "precision": "fp32", "device": "cpu"}
ROW: dict[str, Any] = {
    "epoch": 2,
    "lr": 0.05,
    "cross_entropy": 1.25,
    "category_contrast": 35.5,
    "loss": 36.75,
    "preview_weight": 0.5,
    "previewed": 0.125,
    "train_top1": 40.0,
    "top1": 61.5,
    "top5": 99.0,
    "test_loss": 1.5,
    "difficulty_report": {
        "edges": [0.0, 0.2],
        "metrics": {"margin": {"histogram": [3, 4], "truth": 0.75}, "entropy": {"histogram": [7, 0]}},
        "top1_by_truth": [90.0, 60.0, 30.0],
    },
    "seconds": 3.25,
}
TITLE = "resnet8 by kd on shapes(seed=1)"
SAFE = "resnet8_by_kd_on_shapes_seed=1_"
Numbers = dict[str, list[tuple[int, float]]]
"""Step and value of every scalar, by its tag."""

each = pytest.mark.parametrize("kind", ["tensorboard", "csv", "wandb", pytest.param("mlflow", marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads the files of one second by their numbers, as text: after 9 would come 10."""
    if "torch.utils.tensorboard" in sys.modules:
        writer = sys.modules["tensorboard.summary.writer.event_file_writer"]
        monkeypatch.setattr(writer, "_global_uid", type(writer._global_uid)(0))


class Recorder(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        for name in ("note", "arguments", "begin", "advance", "epoch", "end", "result"):
            setattr(self, name, lambda *what, name=name: self.told.append((name, *what)))


def make(kind: str, folder: Path, display: Display | None = None, **options: Any) -> Tracker:
    pytest.importorskip(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        made: Tracker = TRACKERS.get(kind)(folder, display or Silent(), **options)
    return made


def read(kind: str, folder: Path) -> Numbers:
    """What there is in the one training in ``folder``."""
    return {"tensorboard": events, "csv": table, "wandb": offline_run, "mlflow": database}[kind](folder)


def events(folder: Path) -> Numbers:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (run,) = folder.iterdir()
    found = accumulator.EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def table(folder: Path) -> Numbers:
    (path,) = folder.iterdir()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    tags = [tag for tag in (rows[0] if rows else ()) if tag != "epoch"]
    return {tag: [(int(row["epoch"]), float(row[tag])) for row in rows if row[tag]] for tag in tags}


def entries(folder: Path) -> list[Any]:
    """The library's own messages in the file of the one offline run; another process writes it, and ends later."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(300):
        if (found := messages(path)) and found[-1].HasField("exit"):
            break
        time.sleep(0.1)
    return found


def messages(path: Path) -> list[Any]:
    """They are framed as in a log of LevelDB."""
    library = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, data, found = path.read_bytes(), 7, b"", []
    while at + 7 < len(content):
        if (left := 32768 - at % 32768) < 7:  # a block's end has no room for a header
            at += left
            continue
        _, size, part = struct.unpack_from("<IHB", content, at)
        data += content[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # whole, or the last of several
            found.append(library.Record.FromString(data))
            data = b""
    return found


def offline_run(folder: Path) -> Numbers:
    found: Numbers = {}
    for entry in entries(folder):
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in entry.history.item}
        for tag, value in items.items():
            if not tag.startswith("_"):
                found.setdefault(tag, []).append((items["_step"], value))
    return found


def database(folder: Path) -> Numbers:
    client, run = mlflow_run(folder)
    metrics = {tag: client.get_metric_history(run.info.run_id, tag) for tag in run.data.metrics}
    return {tag: [(m.step, m.value) for m in history] for tag, history in metrics.items()}


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("pckd").experiment_id])
    return client, run


def test_numbers_of_a_row_in_groups_and_no_lists() -> None:
    assert dict(scalars(ROW)) == {
        "lr": 0.05,
        "loss/cross_entropy": 1.25,
        "loss/category_contrast": 35.5,
        "loss/loss": 36.75,
        "preview/weight": 0.5,
        "preview/previewed": 0.125,
        "accuracy/train_top1": 40.0,
        "accuracy/top1": 61.5,
        "accuracy/top5": 99.0,
        "accuracy/test_loss": 1.5,
        "difficulty/metrics/margin/truth": 0.75,
        "difficulty/top1_by_truth/easy": 90.0,
        "difficulty/top1_by_truth/middle": 60.0,
        "difficulty/top1_by_truth/hard": 30.0,
        "time/seconds": 3.25,
    }
    others = {"epoch": 1, "note": "text", "flag": True, "list": [1.0], "none": None, "more": {"a": {"b": 2}, "c": []}}
    assert dict(scalars(others)) == {"more/a/b": 2.0}


@each
def test_rows_are_read_back_and_everything_is_told_on(kind: str, tmp_path: Path) -> None:
    display = Recorder()
    tracker = make(kind, tmp_path, display)
    first = {**ROW, "epoch": 1, "top1": 50.0}
    arguments = {"student": "resnet8", "lr": 0.05, "output": None}
    told: list[tuple[Any, ...]] = [("note", "first"), ("arguments", arguments), ("begin", TITLE, 2, 5, 0)]
    told += [("advance", 1, 5), ("epoch", first), ("epoch", ROW), ("end",), ("result", {"last_top1": 61.5})]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for name, *what in told:
        getattr(tracker, name)(*what)
    # A resumed run has its random numbers from its checkpoint when a tracker begins.
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    found = read(kind, tmp_path)
    assert found["accuracy/top1"] == [(1, 50.0), (2, 61.5)]
    assert found["loss/category_contrast"] == [(1, 35.5), (2, 35.5)]
    assert set(found) == dict(scalars(ROW)).keys()
    assert display.told == told
    if kind == "wandb":
        config = {i.key: json.loads(i.value_json) for e in entries(tmp_path) for i in e.run.config.update}
        summary = {i.key: json.loads(i.value_json) for e in entries(tmp_path) for i in e.summary.update}
        assert {**config, **summary}.items() >= {"student": "resnet8", "lr": 0.05, "last_top1": 61.5}.items()
    elif kind == "mlflow":
        client, run = mlflow_run(tmp_path)
        assert run.data.params == {"student": "resnet8", "lr": "0.05", "output": "None"}
        assert run.info.status == "FINISHED"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["result.json"]


def show(tracker: Tracker, output: Path, done: int, *losses: float, title: str = TITLE, epochs: int = 3) -> None:
    tracker.arguments({"output": str(output), "epochs": epochs})
    tracker.begin(title, epochs, 5, done)
    for epoch, loss in enumerate(losses, done + 1):
        tracker.epoch({"epoch": epoch, "loss": loss})


@each
@pytest.mark.parametrize(
    ("done", "losses", "expected"),
    [
        (2, (30.0,), [(1, 1.0), (2, 2.0), (3, 30.0)]),
        (1, (20.0, 30.0), [(1, 1.0), (2, 20.0), (3, 30.0)]),
        (0, (4.0,), [(1, 4.0)]),
    ],
    ids=["resumed", "done again", "begun anew"],
)
def test_an_epoch_that_is_done_again_is_there_once(
    done: int, losses: tuple[float, ...], expected: list[tuple[int, float]], kind: str, tmp_path: Path
) -> None:
    # Killed after epoch 2: it is not closed, but for wandb, whose other process outlives it here.
    killed = make(kind, tmp_path / "kept")
    show(killed, tmp_path, 0, 1.0, 2.0)
    if kind == "wandb":
        killed.end()
    display = Recorder()
    again = make(kind, tmp_path / "kept", display)
    show(again, tmp_path, done, *losses)
    again.end()
    again.result({})
    assert read(kind, tmp_path / "kept") == {"loss/loss": expected}
    assert not [what for what in display.told if what[0] == "note"]


@each
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills of POSIX")
def test_a_killed_process_loses_nothing_of_the_epochs_that_were_done(kind: str, tmp_path: Path) -> None:
    if kind == "wandb":
        pytest.skip("its own process, which a fork shares, outlives the kill")
    child = os.fork()
    if child == 0:
        try:
            show(make(kind, tmp_path / "kept"), tmp_path, 0, 0.5, 1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read(kind, tmp_path / "kept") == {"loss/loss": [(1, 0.5), (2, 1.0)]}


def test_trainings_that_share_a_folder(tmp_path: Path) -> None:
    """A teacher that is trained first, and runs of one title whose outputs differ."""
    for title in ("resnet20 by vanilla on shapes(seed=1)", TITLE):
        show(make("tensorboard", tmp_path / "board"), tmp_path, 0, 1.0, title=title)
    names = sorted(path.name for path in (tmp_path / "board").iterdir())
    assert names == ["resnet20_by_vanilla_on_shapes_seed=1_", SAFE]
    for output in (tmp_path, tmp_path / "one", tmp_path / "two", tmp_path / "one"):
        show(make("csv", tmp_path / "csv"), output, 0, 1.0)
    names = sorted(path.name for path in (tmp_path / "csv").iterdir())
    assert len(names) == 3
    assert names[-1] == f"{SAFE}.csv"


def test_epochs_that_were_not_tracked_are_said(tmp_path: Path) -> None:
    display = Recorder()
    show(make("csv", tmp_path, display), tmp_path, 2, 3.0)
    assert ("note", f"{tmp_path}: has 0 of the 2 epochs that are done; the others were not tracked") in display.told


@each
def test_a_resumed_training_has_every_epoch_once_and_as_in_metrics(
    kind: str, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    for epochs in (2, 3):
        tracker = make(kind, tmp_path / "kept")
        pckd.train(data=tiny_data, epochs=epochs, output=tmp_path / "run", resume=True, display=tracker, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    found = read(kind, tmp_path / "kept")
    for tag, name in (("accuracy/top1", "top1"), ("loss/cross_entropy", "cross_entropy"), ("lr", "lr")):
        assert found[tag] == [(row["epoch"], pytest.approx(row[name])) for row in rows]


def test_what_fails_in_the_middle_is_said_once_and_the_run_goes_on(
    tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: object, data: bytes) -> None:
        if data.count(b"\n") > 2:
            raise UserError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(trackers.builtin, "write_atomically", full)
    display = Recorder()
    tracker = trackers.CSV(tmp_path, display)
    result = pckd.train(data=tiny_data, epochs=3, display=tracker, **SMALL)
    assert len(result.history) == 3
    (note,) = [what[1] for what in display.told if what[0] == "note" and "warning" in what[1]]
    assert note.startswith(f"warning: tracking in {tmp_path} has ended, the run goes on without it: cannot write ")
    assert note.endswith("No space left on device")


def test_what_fails_at_the_start_ends_the_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot track the run in .*: Not a directory") as error:
        show(make("csv", tmp_path / "file" / "below"), tmp_path, 0, 1.0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="mode must be offline or online, not 'on'"):
        trackers.WandB(tmp_path, Silent(), mode="on")


@pytest.mark.parametrize(
    ("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_without_the_package_one_line_says_what_to_install(
    kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = TRACKERS.get(kind)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'pckd\[{kind}\]'") as error:
        factory(tmp_path, Silent())
    assert "\n" not in str(error.value)
    # A folder of this name, as the library itself leaves it behind, is no library.
    folder = ModuleType(module)
    folder.__file__ = None
    monkeypatch.setitem(sys.modules, module, folder)
    with pytest.raises(UserError, match=rf"pip install 'pckd\[{kind}\]'"):
        factory(tmp_path, Silent())

"""Events for TensorBoard, written and read back: every number of a row once, whatever stops the run."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import pckd
from pckd.display import Display, Silent
from pckd.tensorboard import TensorBoard, scalars
from registry import UserError

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


class Recorder(Display):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        for name in ("note", "begin", "advance", "epoch", "end"):
            setattr(self, name, lambda *what, name=name: self.told.append((name, *what)))


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar in the one training below ``folder``."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (run,) = folder.iterdir()
    events = accumulator.EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def board(tmp_path: Path) -> TensorBoard:
    pytest.importorskip("tensorboard")
    return TensorBoard(tmp_path / "board", Recorder())


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


def test_rows_are_read_back_and_everything_is_told_on(board: TensorBoard) -> None:
    first = {**ROW, "epoch": 1, "top1": 50.0}
    told: list[tuple[Any, ...]] = [("note", "first"), ("begin", "resnet8 by pckd", 2, 5, 0), ("advance", 1, 5)]
    told += [("epoch", first), ("epoch", ROW), ("end",)]
    for name, *what in told:
        getattr(board, name)(*what)
    found = read(board.folder)
    assert found["accuracy/top1"] == [(1, 50.0), (2, 61.5)]
    assert found["loss/category_contrast"] == [(1, 35.5), (2, 35.5)]
    assert set(found) == dict(scalars(ROW)).keys()
    assert board.display.told == told  # type: ignore[attr-defined]


def show(board: TensorBoard, done: int, *losses: float, title: str = "run") -> None:
    board.begin(title, 3, 5, done)
    for epoch, loss in enumerate(losses, done + 1):
        board.epoch({"epoch": epoch, "loss": loss})


@pytest.mark.parametrize(
    ("done", "losses", "expected"),
    [(1, (20.0, 30.0), [(1, 1.0), (2, 20.0), (3, 30.0)]), (0, (4.0,), [(1, 4.0)])],
    ids=["resumed", "begun anew"],
)
def test_an_epoch_that_is_done_again_is_there_once(
    done: int, losses: tuple[float, ...], expected: list[tuple[int, float]], board: TensorBoard
) -> None:
    # Killed before the checkpoint of epoch 2: it is not closed.
    show(board, 0, 1.0, 2.0)
    again = TensorBoard(board.folder, Silent())
    show(again, done, *losses)
    again.end()
    assert read(board.folder) == {"loss/loss": expected}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills of POSIX")
def test_a_killed_process_loses_nothing_of_the_epochs_that_were_done(board: TensorBoard) -> None:
    child = os.fork()
    if child == 0:
        try:
            show(board, 0, 0.5, 1.0)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read(board.folder) == {"loss/loss": [(1, 0.5), (2, 1.0)]}


def test_a_teacher_that_is_trained_first_has_a_folder_of_its_own(board: TensorBoard) -> None:
    for title in ("resnet20 by vanilla on shapes(seed=1)", "resnet8 by kd on shapes(seed=1)"):
        show(board, 0, 1.0, title=title)
    names = sorted(path.name for path in board.folder.iterdir())
    assert names == ["resnet20_by_vanilla_on_shapes_seed=1_", "resnet8_by_kd_on_shapes_seed=1_"]


def test_a_resumed_training_has_every_epoch_once_and_as_in_metrics(tiny_data: pckd.Data, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for epochs in (2, 3):
        board = TensorBoard(tmp_path / "board", Silent())
        pckd.train(data=tiny_data, epochs=epochs, output=tmp_path / "run", resume=True, display=board, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    found = read(tmp_path / "board")
    for tag, name in (("accuracy/top1", "top1"), ("loss/cross_entropy", "cross_entropy"), ("lr", "lr")):
        assert found[tag] == [(row["epoch"], pytest.approx(row[name])) for row in rows]


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'pckd\[tensorboard\]'") as error:
        TensorBoard(tmp_path, Silent())
    assert "\n" not in str(error.value)

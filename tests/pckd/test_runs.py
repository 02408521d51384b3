"""Run folders read back: what is in them, which belong together, what they are called, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pckd.runs import group_runs, grouped, mean_and_deviation, metric_of, read_finished, read_runs, title_of
from registry import UserError

WriteRun = Callable[..., Path]


def labels(folders: list[Path]) -> dict[str, list[str]]:
    return {group.label: [run.path.name for run in group.runs] for group in group_runs(read_runs(folders)[0])}


# Groups


def test_seeds_are_one_group_and_other_arguments_another(write_run: WriteRun) -> None:
    folders = [
        write_run("kd-0"),
        write_run("kd-1", seed=1),
        write_run("pckd", "pckd"),
        write_run("short", arguments={"views": 1}),
        write_run("fast", seed=2, arguments={"compile": True, "output": "there", "report_difficulty": True}),
    ]
    assert labels(folders) == {"kd": ["kd-0", "kd-1", "fast"], "pckd": ["pckd"], "kd, views=1": ["short"]}


def test_a_teacher_cache_tells_runs_apart_by_its_pool_and_not_by_its_place(write_run: WriteRun) -> None:
    folders = [
        write_run("plain", view_pool=0),
        write_run("here", view_pool=16, arguments={"teacher_cache": "here"}),
        write_run("there", view_pool=16, arguments={"teacher_cache": "there"}, seed=1),
    ]
    assert labels(folders) == {"kd": ["plain"], "kd, view_pool=16": ["here", "there"]}


def test_pairs_are_named_where_there_are_several(write_run: WriteRun) -> None:
    folders = [write_run("a"), write_run("b", "vanilla", teacher=None)]
    # A method without a teacher belongs to the pair.
    assert list(labels(folders)) == ["kd", "vanilla"]
    folders += [write_run("c", teacher="vgg13")]
    assert list(labels(folders)) == ["kd: resnet20 > resnet8", "vanilla: resnet8", "kd: vgg13 > resnet8"]


def test_long_values_are_cut_in_labels(write_run: WriteRun) -> None:
    folders = [write_run(f"{k}", arguments={"teacher_weights": f"{'folder/' * 9}{k}.pth"}) for k in (1, 2)]
    assert list(labels(folders)) == [f"kd, teacher_weights=...r/folder/folder/folder/{k}.pth" for k in (1, 2)]


def test_items_of_a_key_in_the_order_of_the_first() -> None:
    assert grouped([3, 1, 4, 6, 5], lambda number: number % 2) == {1: [3, 1, 5], 0: [4, 6]}


def test_mean_and_deviation_by_hand() -> None:
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))
    assert mean_and_deviation([4.0]) == (4.0, None)


# Reading


def test_a_last_line_cut_short_is_left_out_with_a_note(write_run: WriteRun) -> None:
    folder = write_run("run", finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "lr": 0.')
    runs, notes = read_runs([folder])
    assert [row["epoch"] for row in runs[0].rows] == [1, 2]
    assert len(notes) == 1
    assert "the last line of metrics.jsonl is cut short" in notes[0]
    assert list(labels([folder])) == ["run"]


@pytest.mark.parametrize("finished", [True, False])
def test_terms_are_those_of_the_result_or_what_is_left_of_a_row(write_run: WriteRun, finished: bool) -> None:
    rows = {"kd": [2.0, 1.0], "preview_weight": [0.7, 0.9], "previewed": [0.3, 0.1], "difficulty_report": [{}, {}]}
    (run,), _ = read_runs([write_run("run", rows=rows, finished=finished)])
    assert run.terms == ["cross_entropy", "kd"]


def test_the_metric_is_what_the_result_names(write_run: WriteRun) -> None:
    usual = read_finished(write_run("usual", tops=(30.0, 20.0)))
    assert (usual.metric, usual.last, usual.best) == ("top1", 20.0, 30.0)
    other = read_finished(write_run("other", metric="miou", last_miou=41.0, best_miou=42.0))
    assert (other.metric, other.last, other.best) == ("miou", 41.0, 42.0)
    assert [title_of(run.metric) for run in (usual, other)] == ["top-1", "mIoU"]
    assert metric_of([other, replace(usual, result={})]) == "miou"
    with pytest.raises(UserError, match="judged by top-1 and mIoU; show them one by one"):
        metric_of([usual, other])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not the folder of a finished run: it has no result.json"),
        ("{", "result.json: cannot be read: it is no JSON"),
        ("[]", "result.json: holds no JSON object"),
        (("method", "last_top1"), "not a run's: it has no method, last_top1; give"),
        (("arguments",), "not a run's: it has no arguments; give"),
    ],
)
def test_what_is_no_finished_run_is_refused(write_run: WriteRun, content: Any, message: str) -> None:
    folder = write_run("run")
    path = folder / "result.json"
    if isinstance(content, tuple):
        content = json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in content})
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        read_finished(folder)
    assert str(error.value).startswith(str(folder))
    assert message in str(error.value)

"""What is in the folders: runs by their metrics.jsonl and result.json, comparisons by their benchmark.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from pckd.engine.record import LATER, MAY_CHANGE, METRICS, RESULT
from registry import UserError

BENCHMARK = "benchmark.json"

PARTICULAR = (MAY_CHANGE - {"epochs"}) | {
    "seed",
    "teacher_cache",
    "report_difficulty",
    "report_gradients",
    "student",
    "teacher",
    "method",
}
"""Arguments in which runs of one group may differ, or that its name has already."""
_LONGEST = 28


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    path: Path
    rows: list[dict[str, Any]]
    """One an epoch."""
    result: dict[str, Any]
    """Empty while the run is going on."""

    @property
    def arguments(self) -> dict[str, Any]:
        arguments = self.result.get("arguments")
        return arguments if isinstance(arguments, dict) else {}

    @property
    def pair(self) -> str:
        """``"resnet20 > resnet8"``, or the student alone."""
        teacher, student = self.result.get("teacher"), self.result.get("student")
        return f"{teacher} > {student}" if teacher else str(student or self.path.name)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Benchmark:
    """A folder of tools/benchmark.py."""

    path: Path
    protocol: dict[str, Any]
    rows: list[dict[str, Any]]
    """One a pair and case."""
    pairs: list[str] = field(default_factory=list)
    """In the order of the rows."""

    @property
    def title(self) -> str:
        """The data set and the epochs, as far as the protocol says them."""
        data = self.protocol.get("dataset", self.protocol.get("data"))
        epochs = self.protocol.get("epochs")
        return ", ".join([*([str(data)] if data else []), *([f"{epochs} epochs"] if epochs else [])])


def kind_of(folder: str | os.PathLike[str]) -> str:
    """``"run"`` or ``"benchmark"``.

    Raises:
        UserError: there is no such folder, or it is neither.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "not a folder; give the folder that it is in" if path.exists() else "there is no such folder"
        raise UserError(f"{path}: {what}")
    if (path / METRICS).is_file():
        return "run"
    if (path / BENCHMARK).is_file():
        return "benchmark"
    raise UserError(
        f"{path}: neither a run's folder (it has no {METRICS}: train with --output {path}) "
        f"nor one of benchmark.py (it has no {BENCHMARK})"
    )


def read_runs(folders: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[str]]:
    """The runs of these folders, and what is to be said of them.

    Raises:
        UserError: a folder is not a run's, or its files are damaged; an unfinished last line is not.
    """
    runs, notes = [], []
    for folder in folders:
        path = Path(folder).expanduser()
        if kind_of(path) == "benchmark":
            raise UserError(f"{path}: a folder of benchmark.py; give the folders of its runs, which lie in it")
        rows, cut = _rows(path / METRICS)
        if cut:
            notes.append(f"{path}: the last line of {METRICS} is cut short and left out: the run is still going on")
        if not rows:
            raise UserError(f"{path}: {METRICS} has no whole line yet; wait for the run's first epoch to end")
        result = _object(path / RESULT) if (path / RESULT).is_file() else {}
        if not result and not cut:
            notes.append(f"{path}: no {RESULT}: the run is still going on, or was interrupted")
        runs.append(Run(path, rows, result))
    return runs, notes


def read_benchmarks(folders: Iterable[str | os.PathLike[str]]) -> list[Benchmark]:
    """The comparisons of these folders.

    Raises:
        UserError: a folder has no benchmark.json, or a damaged one.
    """
    found = []
    for folder in folders:
        path = Path(folder).expanduser()
        if kind_of(path) == "run":
            raise UserError(f"{path}: a single run's folder; give the folder that tools/benchmark.py --output wrote")
        content = _object(path / BENCHMARK)
        protocol, rows = content.get("protocol"), content.get("rows")
        if not isinstance(rows, list) or not all(map(_is_row, rows)):
            raise UserError(f"{path / BENCHMARK}: not what tools/benchmark.py writes; run it again")
        if not rows:
            raise UserError(f"{path / BENCHMARK}: no rows in it; see its 'refused' for the reasons")
        pairs = list(dict.fromkeys(row["pair"] for row in rows))
        found.append(Benchmark(path, protocol if isinstance(protocol, dict) else {}, rows, pairs))
    return found


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one method, student and teacher together, if their other arguments are the same but for the seed.

    A group is called by its method, by its pair where there are several, and by what tells it from another group of
    the same method and pair. A run without a result is a group of its own, called by its folder.
    """
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_identity(run), []).append(run)
    groups = list(grouped.values())
    several = len({run.pair for run in runs if run.result}) > 1
    return [Group(_label(group[0], [other[0] for other in groups], several), group) for group in groups]


def _identity(run: Run) -> str:
    if not run.result:
        return str(run.path)
    return json.dumps([_name(run), run.pair, _others(run)], sort_keys=True, default=str)


def _name(run: Run) -> str:
    method = run.result.get("method")
    return "+".join(map(str, method)) if isinstance(method, list) else str(method)


def _others(run: Run) -> dict[str, Any]:
    """Arguments beside method, pair and seed; those that are not given and those that are not known are one."""
    arguments = {**LATER, **run.arguments}
    return {key: value for key, value in arguments.items() if key not in PARTICULAR and value is not None}


def _label(run: Run, all_runs: Sequence[Run], several: bool) -> str:
    if not run.result:
        return run.path.name or str(run.path)
    like = [_others(r) for r in all_runs if r.result and (_name(r), r.pair) == (_name(run), run.pair)]
    own = _others(run)
    different = sorted(key for key in own if any(other.get(key) != own[key] for other in like))
    return ", ".join([_name(run) + (f": {run.pair}" if several else ""), *(f"{k}={_short(own[k])}" for k in different)])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else "..." + text[-_LONGEST:]


def _rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows, one an epoch, and whether the last line was cut short."""
    lines = _text(path).splitlines()
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                return [by_epoch[epoch] for epoch in sorted(by_epoch)], True
            raise UserError(f"{path}: line {number} is damaged; remove it, or give another folder") from None
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise UserError(f"{path}: line {number} is not an epoch's row of a run; give another folder")
        by_epoch[row["epoch"]] = row
    return [by_epoch[epoch] for epoch in sorted(by_epoch)], False


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError:
        raise UserError(f"{path}: is no JSON, or damaged; run again what wrote it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; run again what wrote it")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from None


def _is_row(row: Any) -> bool:
    """Whether it has what every picture of a comparison needs: a pair, a label, and an accuracy a seed."""
    if not isinstance(row, dict) or not isinstance(row.get("pair"), str) or not isinstance(row.get("label"), str):
        return False
    tops = row.get("last_top1")
    return isinstance(tops, list) and len(tops) > 0 and all(is_number(top) for top in tops)


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

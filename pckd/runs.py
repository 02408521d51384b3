"""The folders that runs write, read back: their rows and results, which runs belong together, and what they are called.

It lies below the engine, which writes the folders under the names that stand here.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from pckd.arguments import alike, before
from registry import TASKS, UserError

METRICS, RESULT, BENCHMARK = "metrics.jsonl", "result.json", "benchmark.json"

TASK = "classification"
"""The task of a run whose result does not name it."""
OF_IMAGES = (TASK, "unlabeled", "multilabel")
"""Tasks whose networks answer about whole images."""
METRIC = "top1"
"""What a run is judged by, where its result does not name it: a percentage, and higher is better."""
BY_TRUTH = "top1_by_truth"
"""In a difficulty report: the accuracy on the easy, the middle and the hard third of the test images."""

ENTRIES: Mapping[str, str] = {
    "epoch": "epoch",
    "lr": "lr",
    "seconds": "time/seconds",
    "loss": "loss/loss",
    "preview_weight": "preview/weight",
    "previewed": "preview/previewed",
    **{name: f"accuracy/{name}" for name in (f"train_{METRIC}", METRIC, "top5", "test_loss")},
    "difficulty_report": "difficulty",
    "gradient_report": "gradients",
}
"""What an epoch's row holds beside the terms of the objective, and the tag that TensorBoard shows it under."""

NEEDED = ("student", "method", "last_{}", "best_{}", "dataset", "epochs", "terms", "arguments")
"""What the result of a finished run has, whichever version wrote it; {} stands for the metric."""

_LONGEST = 28

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def title_of(metric: str) -> str:
    """How people write a metric: ``"top-1"``."""
    titles = {name: title for _, task in TASKS for name, title in getattr(task, "titles", {}).items()}
    return titles.get(metric, metric.replace("_", " "))


def metric_of(runs: Iterable[Run]) -> str:
    """What finished runs are judged by.

    Raises:
        UserError: not all by the same.
    """
    metrics = list(dict.fromkeys(run.metric for run in runs if run.result))
    if len(metrics) > 1:
        raise UserError(f"these runs are judged by {' and '.join(map(title_of, metrics))}; show them one by one")
    return metrics[0] if metrics else METRIC


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
    def method(self) -> str:
        method = self.result.get("method")
        return "+".join(map(str, method)) if isinstance(method, list) else str(method)

    @property
    def teacher(self) -> str | None:
        """Its name, or all names of several."""
        teacher = self.result.get("teacher")
        return "+".join(map(str, teacher)) if isinstance(teacher, list) else teacher

    @property
    def pair(self) -> str:
        """``"resnet20 > resnet8"``, or the student alone."""
        teacher, student = self.teacher, self.result.get("student")
        return f"{teacher} > {student}" if teacher else str(student or self.path.name)

    @property
    def task(self) -> str:
        return str(self.result.get("task") or TASK)

    @property
    def metric(self) -> str:
        """The name of what it is judged by."""
        return str(self.result.get("metric", METRIC))

    @property
    def last(self) -> Any:
        """The metric after the last epoch; None where it is not known."""
        return self.result.get(f"last_{self.metric}")

    @property
    def best(self) -> Any:
        """The best one over the epochs; None where it is not known."""
        return self.result.get(f"best_{self.metric}")

    @property
    def terms(self) -> list[str]:
        """The terms of the objective that its rows have, in their order."""
        known = self.result.get("terms")
        names = dict.fromkeys(name for row in self.rows for name in row if is_number(row[name]))
        return [name for name in names if (name in known if isinstance(known, dict) else name not in ENTRIES)]

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that tell it from other runs of its method and pair. One that is not given, and one that its
        version did not know, are the same."""
        named = {"method", "student", "teacher", *alike()}
        # Where a teacher cache lies does not matter; that it makes the augmentations finitely many does.
        pool = self.result.get("view_pool", self.arguments.get("view_pool"))
        settings = {**before(), **self.arguments, "view_pool": pool or None}
        return {key: value for key, value in settings.items() if key not in named and value is not None}


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
    """One a pair and method."""
    metric: str = METRIC

    @property
    def pairs(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row["pair"] for row in self.rows))

    @property
    def title(self) -> str:
        """The data set and the epochs, as far as the protocol says them."""
        data = self.protocol.get("dataset", self.protocol.get("data"))
        epochs = self.protocol.get("epochs")
        return ", ".join([*([str(data)] if data else []), *([f"{epochs} epochs"] if epochs else [])])


# Reading


def kind_of(folder: str | os.PathLike[str]) -> str:
    """``"run"`` or ``"benchmark"``."""
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
    """The runs of these folders, finished or not, and what is to be said of them.

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


def read_finished(folder: str | os.PathLike[str]) -> Run:
    """A finished run; its rows are empty where ``metrics.jsonl`` is not there."""
    path = Path(folder).expanduser()
    if not (path / RESULT).is_file():
        raise UserError(f"{path}: not the folder of a finished run: it has no {RESULT}")
    result = _object(path / RESULT)
    rows = _rows(path / METRICS)[0] if (path / METRICS).is_file() else []
    run = Run(path, rows, result)
    missing = [name for name in (entry.format(run.metric) for entry in NEEDED) if name not in result]
    if missing or not run.arguments:
        raise UserError(
            f"{path / RESULT}: not a run's: it has no {', '.join(missing or ['arguments'])}; give another folder"
        )
    return run


def read_benchmarks(folders: Iterable[str | os.PathLike[str]]) -> list[Benchmark]:
    """The comparisons of these folders."""
    found = []
    for folder in folders:
        path = Path(folder).expanduser()
        if kind_of(path) == "run":
            raise UserError(f"{path}: a single run's folder; give the folder that tools/benchmark.py --output wrote")
        content = _object(path / BENCHMARK)
        protocol, rows, metric = content.get("protocol"), content.get("rows"), str(content.get("metric", METRIC))
        if not isinstance(rows, list) or not all(_is_row(row, metric) for row in rows):
            raise UserError(f"{path / BENCHMARK}: not what tools/benchmark.py writes; run it again")
        if not rows:
            raise UserError(f"{path / BENCHMARK}: no rows in it; see its 'refused' for the reasons")
        found.append(Benchmark(path, protocol if isinstance(protocol, dict) else {}, rows, metric))
    return found


def _rows(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows, one an epoch, and whether the last line was cut short."""
    lines, cut = _text(path).splitlines(), False
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if cut := number == len(lines):
                break
            raise UserError(f"{path}: line {number} is damaged; remove it, or give another folder") from None
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise UserError(f"{path}: line {number} is not an epoch's row of a run; give another folder")
        by_epoch[row["epoch"]] = row
    return [by_epoch[epoch] for epoch in sorted(by_epoch)], cut


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError:
        raise UserError(
            f"{path}: cannot be read: it is no JSON, or damaged; remove it, and run again what wrote it"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; run again what wrote it")
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from None


def _is_row(row: Any, metric: str) -> bool:
    """Whether it has what every picture of a comparison needs: a pair, a label, and the metric of each seed."""
    if not isinstance(row, dict) or not isinstance(row.get("pair"), str) or not isinstance(row.get("label"), str):
        return False
    values = row.get(f"last_{metric}")
    return isinstance(values, list) and len(values) > 0 and all(map(is_number, values))


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# Grouping


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items of each key, in the order of the first of each."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs of one method, student and teacher together, if their other arguments are the same but for the seed.

    A group is called by its method, by its pair where there are several, and by what tells it from another group of
    the same method and pair. A run without a result is a group of its own, called by its folder.
    """
    groups = list(grouped(runs, _identity).values())
    # A method without a teacher belongs to every pair of its student.
    named = ({run.teacher for run in runs}, {run.result.get("student") for run in runs})
    several = any(len(names - {None}) > 1 for names in named)
    return [Group(_label(group[0], [other[0] for other in groups], several), group) for group in groups]


def _identity(run: Run) -> str:
    if not run.result:
        return str(run.path)
    return json.dumps([run.method, run.pair, run.settings], sort_keys=True, default=str)


def _label(run: Run, all_runs: Sequence[Run], several: bool) -> str:
    if not run.result:
        return run.path.name or str(run.path)
    own = run.settings
    like = [r.settings for r in all_runs if r.result and (r.method, r.pair) == (run.method, run.pair)]
    different = sorted(key for key in own if any(other.get(key) != own[key] for other in like))
    name = run.method + (f": {run.pair}" if several else "")
    return ", ".join([name, *(f"{key}={_short(own[key])}" for key in different)])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else "..." + text[-_LONGEST:]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (over n - 1); one value has none."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

"""From a kind of picture and some folders to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pckd.distributed import alone
from pckd.plots.ablation import draw_ablation
from pckd.plots.centers import draw_centers
from pckd.plots.cost import draw_cost, points_of_benchmark, points_of_runs
from pckd.plots.curves import draw_curves, draw_gradients, draw_preview
from pckd.plots.detections import draw_detections
from pckd.plots.difficulty import draw_difficulty
from pckd.plots.embedding import draw_embedding
from pckd.plots.networks import Workshop
from pckd.plots.precision_recall import draw_precision_recall
from pckd.plots.segments import draw_segments
from pckd.plots.style import check_target, styled, write
from pckd.runs import Benchmark, Run, group_runs, grouped, kind_of, metric_of, read_benchmarks, read_runs
from registry import UserError
from registry.files import cannot_write

Folder = str | os.PathLike[str]

KINDS = {
    "curves": "accuracy and every term of the loss over epochs; one or more run folders",
    "preview": "mean preview weight and share previewed over epochs; one or more run folders",
    "gradients": "cosines and norms of the terms' gradients over epochs; run folders",
    "difficulty": "how hard the metrics find the images, early and late, and the truth; run folders",
    "ablation": "accuracy of each method with its spread over seeds; a folder of benchmark.py",
    "cost": "accuracy against training time; a folder of benchmark.py, or run folders",
    "centers": "similarity of the category centers, student and teacher; finished run folders",
    "embedding": "test images and category centers in a plane, student and teacher; finished run folders",
    "detections": "test images with what is in them and what student and teacher detect; finished run folders",
    "precision_recall": "precision against recall, class by class, student and teacher; finished run folders",
    "segments": "test images, the class of each pixel, and what student and teacher say; finished run folders",
}
"""What there is to draw, and from what."""

_OF_ROWS = {"curves": draw_curves, "preview": draw_preview, "gradients": draw_gradients, "difficulty": draw_difficulty}
_OF_NETWORKS = {
    "centers": draw_centers,
    "embedding": draw_embedding,
    "detections": draw_detections,
    "precision_recall": draw_precision_recall,
    "segments": draw_segments,
}
_OF_TASK = {"detections": "detection", "precision_recall": "detection", "segments": "segmentation"}
_OF_BENCHMARK = ("ablation",)
_OF_EITHER = ("cost",)
_FIGURES = "mean and standard deviation over seeds; gray, the Pareto front"


class Picture(NamedTuple):
    """A drawn picture that is not written yet."""

    figure: Any
    """A matplotlib Figure."""
    notes: list[str]
    """What is to be said of it: what was left out, and why."""


def draw(kind: str, folders: Sequence[Folder], **options: Any) -> Picture:
    """Draw a picture of what runs have written, without writing it.

    Args:
        kind: one of :data:`KINDS`.
        folders: of runs, or of ``tools/benchmark.py``; seeds of one method are shown together.
        options: those of :class:`pckd.plots.networks.Workshop`, for the kinds that show networks.

    Raises:
        UserError: matplotlib is missing, or the folders do not allow this kind; says what is missing and how to get it.
    """
    with styled():
        return _draw(kind, folders, Workshop(**options))


def plot(kind: str, folders: Sequence[Folder], path: Folder, **options: Any) -> list[str]:
    """Draw a picture and write it.

    Args:
        path: the file, in the format that its name ends with (.png, .svg, .pdf, ...); replaced as a whole.
        kind, folders, options: see :func:`draw`.

    Returns:
        What is to be said of it: what was left out, and why.

    Raises:
        UserError: see :func:`draw`; or the file cannot be written. In one line, and an earlier file is as it was.
    """
    check_target(path)
    with styled():
        picture = draw(kind, folders, **options)
        write(picture.figure, path)
    return picture.notes


def plot_all(
    folders: Sequence[Folder], directory: Folder, *, say: Callable[[str], None] = lambda text: None, **options: Any
) -> list[Path]:
    """Write every picture that the folders allow as ``directory/KIND.png``.

    Args:
        folders: of runs and of ``tools/benchmark.py``, mixed. directory: made if missing.
        say: told of each picture, and of each that is left out, why. options: see :func:`draw`.

    Returns:
        The files.

    Raises:
        UserError: none can be drawn, or one cannot be written.
    """
    target = Path(directory).expanduser()
    if not os.fspath(directory) or (target.exists() and not target.is_dir()):
        raise UserError(f"{directory or 'the output'}: not a folder; give one for the pictures")
    folders = _distinct(folders)
    by_kind: dict[str, list[Folder]] = {"run": [], "benchmark": []}
    for folder in folders:
        by_kind[kind_of(folder)].append(folder)
    workshop, written, left_out = Workshop(**options), [], []
    with styled():
        for kind in KINDS:
            suited = by_kind["benchmark"] if kind in _OF_BENCHMARK else by_kind["run"]
            if kind in _OF_EITHER:
                suited = by_kind["benchmark"] or by_kind["run"]
            try:
                picture = _draw(kind, suited, workshop)
            except UserError as error:
                left_out.append(f"{kind}: left out: {error}")
                say(left_out[-1])
                continue
            try:
                target.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(target, error) from error
            written.append(write(picture.figure, target / f"{kind}.png"))
            for note in picture.notes:
                say(f"{kind}: {note}")
            say(f"{kind}: {written[-1]}")
    if not written:
        raise UserError(f"none of the pictures can be drawn from these folders ({left_out[0]})")
    return written


@alone()
def _draw(kind: str, folders: Sequence[Folder], workshop: Workshop) -> Picture:
    if kind not in KINDS:
        raise UserError(f"unknown kind of picture {kind!r}; there are {', '.join(KINDS)}")
    folders = _distinct(folders)
    if not folders:
        source = "folder of benchmark.py" if kind in _OF_BENCHMARK else "run's folder"
        raise UserError(f"no {source} is given, and {kind} is drawn from one")
    if kind in _OF_BENCHMARK or (kind in _OF_EITHER and kind_of(folders[0]) == "benchmark"):
        benchmark, *others = read_benchmarks(folders)
        if others:
            raise UserError(f"{len(folders)} folders of benchmark.py are given; give one of them")
        return Picture(draw_ablation(benchmark) if kind == "ablation" else _cost_of_benchmark(benchmark), [])
    runs, notes = read_runs(folders)
    if kind == "cost":
        return Picture(_cost_of_runs(runs), notes)
    for run in runs:
        if run.result and run.task != _OF_TASK.get(kind, run.task):
            raise UserError(f"{kind} is of the task {_OF_TASK[kind]}, and {run.path} a run of {run.task}")
    groups = group_runs(runs)
    figure, more = _OF_NETWORKS[kind](groups, workshop) if kind in _OF_NETWORKS else _OF_ROWS[kind](groups)
    return Picture(figure, [*notes, *more])


def _cost_of_benchmark(benchmark: Benchmark) -> Any:
    panels = [(pair.replace(">", " > "), points_of_benchmark(benchmark, pair)) for pair in benchmark.pairs]
    about = f" ({benchmark.title})" if benchmark.title else ""
    return draw_cost(panels, f"Accuracy and cost{about}: {_FIGURES}", benchmark.metric)


def _cost_of_runs(runs: Sequence[Run]) -> Any:
    finished = [run for run in runs if run.result]
    # A method without a teacher belongs to the pairs of its student.
    students = grouped(finished, lambda run: str(run.result.get("student")))
    panels = [(student, points_of_runs(own)) for student, own in students.items()]
    return draw_cost(panels, f"Accuracy and cost: {_FIGURES}", metric_of(finished))


def _distinct(folders: Sequence[Folder]) -> list[Folder]:
    """A folder that is named twice is no second seed."""
    if isinstance(folders, (str, os.PathLike)):
        folders = [folders]
    return list({os.path.realpath(Path(folder).expanduser()): folder for folder in folders}.values())

"""From a kind of picture and some folders to a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pckd.plots.ablation import draw_ablation
from pckd.plots.centers import draw_centers
from pckd.plots.cost import draw_cost, points_of_benchmark, points_of_runs
from pckd.plots.curves import draw_curves, draw_gradients, draw_preview
from pckd.plots.difficulty import draw_difficulty
from pckd.plots.embedding import draw_embedding
from pckd.plots.folders import Benchmark, Run, group_runs, kind_of, read_benchmarks, read_runs
from pckd.plots.networks import Workshop
from pckd.plots.style import check_target, styled, write
from registry import UserError
from registry.files import cannot_write

Folder = str | os.PathLike[str]

KINDS = {
    "curves": "accuracy and every term of the loss over epochs; one or more run folders",
    "preview": "mean preview weight and share previewed over epochs; one or more run folders",
    "gradients": "cosines and norms of the terms' gradients over epochs; run folders",
    "difficulty": "how hard the metrics find the images, early and late, and the truth; run folders",
    "ablation": "accuracy of each case with its spread over seeds; a folder of benchmark.py",
    "cost": "accuracy against training time; a folder of benchmark.py, or run folders",
    "centers": "similarity of the category centers, student and teacher; finished run folders",
    "embedding": "test images and category centers in a plane, student and teacher; finished run folders",
}
"""What there is to draw, and from what."""

_OF_BENCHMARK = ("ablation",)
_OF_EITHER = ("cost",)


class Picture(NamedTuple):
    """A drawn picture that is not written yet."""

    figure: Any
    """A matplotlib Figure."""
    notes: list[str]
    """What is to be said of it: what was left out, and why."""


def draw(
    kind: str,
    folders: Sequence[Folder],
    *,
    teacher_weights: Folder | None = None,
    data_root: Folder | None = None,
    images: int = 1000,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Picture:
    """Draw a picture without writing it; the arguments are those of :func:`plot`."""
    with styled():
        return _draw(kind, folders, Workshop(teacher_weights, data_root), images, device, precision)


def plot(
    kind: str,
    folders: Sequence[Folder],
    path: Folder,
    *,
    teacher_weights: Folder | None = None,
    data_root: Folder | None = None,
    images: int = 1000,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> list[str]:
    """Draw a picture of what runs have written.

    Args:
        kind: one of :data:`KINDS`.
        folders: of runs, or of ``tools/benchmark.py``; seeds of one method are shown together.
        path: the file, in the format that its name ends with (.png, .svg, .pdf, ...); replaced as a whole.
        teacher_weights: for ``centers`` and ``embedding``: the teacher's weights, where the run does not say where they
            are. data_root: for the same: where the data set's files are now.
        images: for ``embedding``: at most so many test images. device, precision: likewise, of the networks.

    Returns:
        What is to be said of it: what was left out, and why.

    Raises:
        UserError: matplotlib is missing, the folders do not allow this kind (says what is missing and how to get it),
            or the file cannot be written; in one line, and an earlier file is as it was.
    """
    check_target(path)
    with styled():
        picture = _draw(kind, folders, Workshop(teacher_weights, data_root), images, device, precision)
        write(picture.figure, path)
    return picture.notes


def plot_all(
    folders: Sequence[Folder],
    directory: Folder,
    *,
    teacher_weights: Folder | None = None,
    data_root: Folder | None = None,
    images: int = 1000,
    device: str | torch.device | None = None,
    precision: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write every picture that the folders allow as ``directory/KIND.png``.

    Args:
        directory: made if missing. say: told of each picture, and of each that is left out, why.
        folders, teacher_weights, data_root, images, device, precision: see :func:`plot`; folders of runs and of
            ``tools/benchmark.py`` may be mixed.

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
    workshop, written, left_out = Workshop(teacher_weights, data_root), [], []
    with styled():
        for kind in KINDS:
            suited = by_kind["benchmark"] if kind in _OF_BENCHMARK else by_kind["run"]
            if kind in _OF_EITHER:
                suited = by_kind["benchmark"] or by_kind["run"]
            try:
                picture = _draw(kind, suited, workshop, images, device, precision)
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


def _draw(
    kind: str,
    folders: Sequence[Folder],
    workshop: Workshop,
    images: int,
    device: str | torch.device | None,
    precision: str,
) -> Picture:
    if kind not in KINDS:
        raise UserError(f"unknown kind of picture {kind!r}; there are {', '.join(KINDS)}")
    folders = _distinct(folders)
    if not folders:
        source = "folder of benchmark.py" if kind in _OF_BENCHMARK else "run's folder"
        raise UserError(f"no {source} is given, and {kind} is drawn from one")
    if kind in _OF_BENCHMARK or (kind in _OF_EITHER and kind_of(folders[0]) == "benchmark"):
        benchmark = _only(read_benchmarks(folders))
        return Picture(draw_ablation(benchmark) if kind == "ablation" else _cost_of_benchmark(benchmark), [])
    runs, notes = read_runs(folders)
    if kind == "cost":
        return Picture(_cost_of_runs(runs), notes)
    groups = group_runs(runs)
    more: list[str] = []
    if kind == "curves":
        figure = draw_curves(groups)
    elif kind == "preview":
        figure, more = draw_preview(groups)
    elif kind == "gradients":
        figure, more = draw_gradients(groups)
    elif kind == "difficulty":
        figure, more = draw_difficulty(groups)
    elif kind == "centers":
        figure, more = draw_centers(groups, workshop)
    else:
        figure, more = draw_embedding(groups, workshop, images=images, device=device, precision=precision)
    return Picture(figure, [*notes, *more])


def _cost_of_benchmark(benchmark: Benchmark) -> Any:
    panels = [(pair.replace(">", " > "), points_of_benchmark(benchmark, pair)) for pair in benchmark.pairs]
    about = f" ({benchmark.title})" if benchmark.title else ""
    return draw_cost(
        panels, f"Accuracy and cost{about}: mean and standard deviation over seeds; gray, the Pareto front"
    )


def _cost_of_runs(runs: Sequence[Run]) -> Any:
    finished = [run for run in runs if run.result]
    # A method without a teacher belongs to the pairs of its student.
    students = list(dict.fromkeys(str(run.result.get("student")) for run in finished))
    panels = [(s, points_of_runs([run for run in finished if str(run.result.get("student")) == s])) for s in students]
    return draw_cost(panels, "Accuracy and cost: mean and standard deviation over seeds; gray, the Pareto front")


def _only(benchmarks: Sequence[Benchmark]) -> Benchmark:
    if len(benchmarks) > 1:
        raise UserError(f"{len(benchmarks)} folders of benchmark.py are given; give one of them")
    return benchmarks[0]


def _distinct(folders: Sequence[Folder]) -> list[Folder]:
    """A folder that is named twice is no second seed."""
    if isinstance(folders, (str, os.PathLike)):
        folders = [folders]
    return list({os.path.realpath(Path(folder).expanduser()): folder for folder in folders}.values())

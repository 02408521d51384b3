"""How similar a network's category centers are to each other: the cosines between the rows of its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from model_zoo import preprocessing_of
from pckd.plots.networks import Workshop
from pckd.plots.style import grid_shape, headline, new_figure, panel_title, panels_of
from pckd.runs import Group
from registry import UserError

MOST_NAMES = 20
"""Above so many classes the axes count them."""
MOST_NUMBERS = 10
"""Above so many classes the cells hold no numbers."""


class Matrix(NamedTuple):
    """The similarities of a network, [K, K]."""

    title: str
    values: np.ndarray


def similarities(weight: Any) -> np.ndarray:
    """[K, K] cosines between the rows of ``weight`` [K, D]; a row of zeros is similar to none."""
    rows = np.asarray(weight, dtype=float)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return np.asarray(unit @ unit.T)


def off_diagonal_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation of the entries above the diagonals; None where that is not defined."""
    if one.shape != other.shape:
        raise UserError(f"the student has {len(one)} classes and the teacher {len(other)}: they must be the same")
    above = np.triu_indices(len(one), 1)
    x, y = one[above], other[above]
    if len(x) < 2 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def classifier_rows(network: nn.Module) -> np.ndarray:
    """[K, D] the centers of a network."""
    classifier: Any = network.classifier
    return np.asarray(classifier.weight.detach().float().cpu().numpy())


def matrices(groups: Sequence[Group], workshop: Workshop) -> tuple[list[Matrix], tuple[str, ...], list[str]]:
    """The students' similarities and the teacher's, last; the classes' names where they are few; notes."""
    chosen, notes = workshop.students(groups)
    networks = [workshop.student(run) for _, run in chosen]
    runs = [run for _, run in chosen]
    name, teacher, more = workshop.teacher(runs, networks[0])
    reference = None if teacher is None else similarities(classifier_rows(teacher))
    found = []
    for (label, run), network in zip(chosen, networks, strict=True):
        record = preprocessing_of(network)
        if record is not None and record.mean and not record.classes:
            raise UserError(f"{run.path}: the student's classifier was never trained, so that it has no centers")
        own = similarities(classifier_rows(network))
        title = f"{run.result['student']}, {label}"
        if reference is not None and len(chosen) > 1:
            title += f"; correlation {_shown(off_diagonal_correlation(own, reference))}"
        found.append(Matrix(title, own))
    if reference is not None:
        found.append(Matrix(f"teacher {name}", reference))
    record = preprocessing_of(networks[0])
    names: tuple[str, ...] = () if record is None else record.classes
    if not names and len(found[0].values) <= MOST_NAMES:
        try:
            names = workshop.split(runs[0]).classes
        except UserError as error:
            more.append(f"the classes are numbered: {error}")
    if len(names) + 1 == len(found[0].values):
        names = ("background", *names)
    return found, names if len(names) == len(found[0].values) <= MOST_NAMES else (), [*notes, *more]


def draw_centers(groups: Sequence[Group], workshop: Workshop) -> tuple[Any, list[str]]:
    """The matrices side by side with one color bar."""
    shown, names, notes = matrices(groups, workshop)
    rows, columns = grid_shape(len(shown), most=2)
    figure = new_figure(0.5 + (4.6 if columns == 2 else 6.0) * rows)
    places = panels_of(figure, len(shown), rows, columns)
    most = max(max(np.abs(_off_diagonal(matrix.values)).max(initial=0.0) for matrix in shown), 0.05)
    image = None
    for axes, matrix in zip(places, shown, strict=True):
        image = axes.imshow(matrix.values, cmap="PuOr_r", vmin=-most, vmax=most)
        _panel(axes, matrix, names, most, columns)
    figure.colorbar(
        image,
        ax=places,
        location="bottom",
        shrink=0.5,
        aspect=40,
        extend="max",
        label="cosine of two centers (the diagonal is 1)",
    )
    title = "Similarity of category centers"
    if len(groups) == 1 and len(shown) == 2:
        correlation = _shown(off_diagonal_correlation(shown[0].values, shown[1].values))
        title += f": correlation of the two networks' off-diagonals {correlation}"
    elif len(shown) > len(groups):
        title += ", with the correlation of the off-diagonals to the teacher's"
    headline(figure, title)
    return figure, notes


def _panel(axes: Any, matrix: Matrix, names: Sequence[str], most: float, columns: int) -> None:
    classes = len(matrix.values)
    panel_title(axes, matrix.title, columns)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if names:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
    else:
        axes.set_xlabel("class")
        axes.set_ylabel("class")
    if classes <= MOST_NUMBERS:
        for i in range(classes):
            for j in range(classes):
                value = matrix.values[i, j]
                color = "white" if abs(value) > 0.65 * most else "black"
                if i != j:
                    axes.text(j, i, _digits(value), ha="center", va="center", fontsize=6.5, color=color)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix[~np.eye(len(matrix), dtype=bool)])


def _digits(value: float) -> str:
    """``"-.31"``: cells are narrow."""
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".")


def _shown(correlation: float | None) -> str:
    return "undefined" if correlation is None else f"{correlation:.2f}"

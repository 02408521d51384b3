"""How hard the metrics say the training images are, early and late, and whether it is true where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pckd.plots.curves import Read, draw_line, series
from pckd.plots.style import COLORS, grid_shape, headline, new_figure, panel_title, panels_of, whole_numbers
from pckd.runs import BY_TRUTH, Group, Run, is_number, title_of
from registry import UserError

REPORT = "difficulty_report"
HOW = "train again with --report-difficulty"
THIRDS = ("easy third", "middle third", "hard third")
MOST_GROUPS = 3


def reports(run: Run) -> list[dict[str, Any]]:
    """The rows that have a report."""
    return [row for row in run.rows if isinstance(row.get(REPORT), dict)]


def shares(runs: Sequence[Run], metric: str, late: bool) -> np.ndarray:
    """Percent of the images in each bin, in the first epoch reported or the last, over all the runs together."""
    total: np.ndarray | None = None
    for run in runs:
        report = reports(run)[-1 if late else 0][REPORT]
        counts = np.asarray(report["metrics"].get(metric, {}).get("histogram", ()), dtype=float)
        if not counts.size:
            continue
        if counts.shape != np.shape(report["edges"]) or (total is not None and counts.shape != total.shape):
            raise UserError(f"{run.path}: {metric}'s histogram does not fit its edges, or another run's; {HOW}")
        total = counts if total is None else total + counts
    if total is None:
        raise UserError(f"{runs[0].path}: no histogram of {metric}; {HOW}")
    return np.asarray(100 * total / max(total.sum(), 1))


def truth_of(metric: str) -> Read:
    """A function of a row: the metric's rank correlation with the true difficulty, or None."""
    return lambda row: row.get(REPORT, {}).get("metrics", {}).get(metric, {}).get("truth")


def third_of(number: int) -> Read:
    """A function of a row: the accuracy in percent on a third of the test images, or None."""

    def read(row: dict[str, Any]) -> Any:
        thirds = row.get(REPORT, {}).get(BY_TRUTH)
        return thirds[number] if isinstance(thirds, list) and number < len(thirds) else None

    return read


def draw_difficulty(groups: Sequence[Group]) -> tuple[Any, list[str]]:
    """For each group a histogram a metric, and below two panels of the truth; and what is left out."""
    keep, notes = _reported(groups)
    blocks = [_block(group.runs) for group in keep]
    heights = [0.4 + 2.15 * grid_shape(len(metrics))[0] + 2.3 * truth for metrics, truth in blocks]
    figure = new_figure(sum(heights))
    parts = figure.subfigures(len(keep), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, group, (metrics, truth) in zip(parts, keep, blocks, strict=True):
        _draw_block(part, group, metrics, truth)
    return figure, notes


def _draw_block(part: Any, group: Group, metrics: Sequence[str], truth: bool) -> None:
    rows, columns = grid_shape(len(metrics))
    heights = [0.4 + 2.15 * rows, *([2.3] if truth else [])]
    upper, *lower = part.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, metric in zip(panels_of(upper, len(metrics), rows, columns), metrics, strict=True):
        _histogram(axes, group.runs, metric)
    for below in lower:
        left, right = below.subplots(1, 2)
        truths = {metric: truth_of(metric) for metric in metrics}
        thirds = {name: third_of(number) for number, name in enumerate(THIRDS)}
        _lines(left, group.runs, truths, "agreement with the true difficulty", "rank correlation")
        _lines(right, group.runs, thirds, "accuracy by true difficulty", f"{title_of(group.runs[0].metric)} (%)")
    runs = f", {len(group.runs)} runs together" if len(group.runs) > 1 else ""
    first, last = (reports(group.runs[0])[at]["epoch"] for at in (0, -1))
    what = f"Difficulty of the training images, {group.label}{runs}"
    headline(upper, f"{what}: filled, epoch {first}; line, epoch {last}")


def _reported(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    keep = [Group(g.label, runs) for g in groups if (runs := [run for run in g.runs if reports(run)])]
    if not keep:
        raise UserError(f"none of these runs has a report of difficulties; {HOW}")
    if len(keep) > MOST_GROUPS:
        raise UserError(f"{len(keep)} groups of runs are too many for one picture; give {MOST_GROUPS}")
    left = [run for group in groups for run in group.runs if not reports(run)]
    for group in keep:
        for run in group.runs:
            for row in reports(run):
                report = row[REPORT]
                if not _are_numbers(report.get("edges")) or not _are_metrics(report.get("metrics")):
                    raise UserError(f"{run.path}: the {REPORT} of epoch {row['epoch']} is damaged; {HOW}")
    return keep, [f"{run.path}: has no report of difficulties, and is left out; {HOW}" for run in left]


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(is_number, values))


def _are_metrics(metrics: Any) -> bool:
    if not isinstance(metrics, dict) or not metrics:
        return False
    return all(isinstance(metric, dict) and _are_numbers(metric.get("histogram")) for metric in metrics.values())


def _block(runs: Sequence[Run]) -> tuple[list[str], bool]:
    """The metrics of a group, and whether the truth is known."""
    metrics = list(dict.fromkeys(name for run in runs for row in reports(run) for name in row[REPORT]["metrics"]))
    truth = any(series(runs, truth_of(metric)).epochs for metric in metrics) or bool(series(runs, third_of(0)).epochs)
    return metrics, truth


def _histogram(axes: Any, runs: Sequence[Run], metric: str) -> None:
    edges = [float(edge) for edge in reports(runs[0])[0][REPORT]["edges"]]
    # The last bin has no end; it is drawn as wide as the others, and its tick says so.
    ends = [*edges, 2 * edges[-1] - edges[-2]] if len(edges) > 1 else [*edges, edges[0] + 1]
    early, late = (shares(runs, metric, late) for late in (False, True))
    axes.stairs(early, ends, fill=True, color=COLORS[5], hatch="///", edgecolor="white", label="early")
    axes.stairs(late, ends, color=COLORS[6], linewidth=1.6, label="late")
    panel_title(axes, metric, 3)
    axes.set_xlabel("difficulty (1: the mean)")
    axes.set_ylabel("images (%)")
    axes.set_xlim(ends[0], ends[-1])
    whole = [edge for edge in edges[:-1] if edge == round(edge)]
    axes.set_xticks([*whole, edges[-1]], [*(f"{edge:g}" for edge in whole), f"≥{edges[-1]:g}"])
    axes.grid(False, axis="x")


def _lines(axes: Any, runs: Sequence[Run], reads: Mapping[str, Read], title: str, unit: str) -> None:
    """A line for each name, where the runs have what is read."""
    for number, (name, read) in enumerate(reads.items()):
        if (line := series(runs, read)).epochs:
            draw_line(axes, line, number, name)
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("epoch")
    whole_numbers(axes.xaxis)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=2.8)

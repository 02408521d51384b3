"""Accuracy against what it costs: a point a method, and the front that no other method beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from pckd.plots.ablation import REFERENCE
from pckd.plots.style import grid_shape, headline, marker_style, new_figure, panels_of
from pckd.runs import METRIC, Benchmark, Run, group_runs, is_number, mean_and_deviation, title_of
from registry import UserError


@dataclass(frozen=True)
class Point:
    """A method: its accuracies in percent and the seconds of its trainings."""

    label: str
    accuracies: list[float]
    seconds: list[float]

    @property
    def accuracy(self) -> float:
        return fmean(self.accuracies)

    @property
    def cost(self) -> float:
        return fmean(self.seconds)


def points_of_benchmark(benchmark: Benchmark, pair: str) -> list[Point]:
    """The methods on a pair whose trainings' times are known."""
    found = []
    for row in benchmark.rows:
        seconds = [float(s) for s in row.get("seconds") or () if is_number(s) and s > 0]
        if row["pair"] == pair and seconds:
            values = [float(value) for value in row[f"last_{benchmark.metric}"]]
            found.append(Point(row["label"], values, seconds))
    return found


def points_of_runs(runs: Sequence[Run]) -> list[Point]:
    """The groups of finished runs whose trainings' times are known."""
    found = []
    for group in group_runs(runs):
        timed = [(run.last, seconds_of(run)) for run in group.runs]
        known = [(float(last), seconds) for last, seconds in timed if is_number(last) and seconds is not None]
        if known:
            found.append(Point(group.label, [last for last, _ in known], [seconds for _, seconds in known]))
    return found


def seconds_of(run: Run) -> float | None:
    """How long a run has trained; of a run that did not note it, from its speed; None where neither is known."""
    noted, speed = run.result.get("train_seconds"), run.result.get("images_per_second")
    if is_number(noted) and noted > 0:
        return float(noted)
    images, epochs = run.result.get("train_images"), run.result.get("epochs")
    if is_number(speed) and speed > 0 and is_number(images) and is_number(epochs):
        return images * epochs / speed
    return None


def relative(points: Sequence[Point]) -> tuple[list[Point], bool]:
    """The costs as multiples of kd's mean where that is there, and whether it is."""
    bases = [point.cost for point in points if point.label == REFERENCE]
    if not bases:
        return list(points), False
    return [Point(p.label, p.accuracies, [s / bases[0] for s in p.seconds]) for p in points], True


def pareto(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Which points no other beats, by rising cost: none is as cheap and more accurate, or cheaper and as accurate."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i]))
    front: list[int] = []
    for i in order:
        if not front or accuracies[i] > accuracies[front[-1]]:
            front.append(i)
    return front


def draw_cost(panels: Sequence[tuple[str, Sequence[Point]]], title: str, metric: str = METRIC) -> Any:
    """A panel for each pair and its methods, whose accuracies are of ``metric``."""
    panels = [(name, points) for name, points in panels if points]
    if not panels:
        raise UserError("no training times are known; train again (result.json then has train_seconds)")
    labels = list(dict.fromkeys(point.label for _, points in panels for point in points))
    # So many labels beside one another as the figure is wide.
    beside = max(1, min(len(labels), 120 // (6 + max(map(len, labels)))))
    rows, columns = grid_shape(len(panels), most=2)
    figure = new_figure(0.4 + (5.0 if columns == 1 else 3.6) * rows + 0.22 * -(-len(labels) // beside))
    places = panels_of(figure, len(panels), rows, columns)
    handles: dict[str, Any] = {}
    for axes, (name, points) in zip(places, panels, strict=True):
        _panel(axes, name, points, labels)
        axes.set_ylabel(f"{title_of(metric)} after the last epoch (%)")
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend([handles[label] for label in labels], labels, loc="outside lower left", ncols=beside)
    headline(figure, title)
    return figure


def _panel(axes: Any, name: str, points: Sequence[Point], labels: Sequence[str]) -> None:
    shown, is_relative = relative(points)
    # The front as level and upright lines.
    front = [shown[i] for i in pareto([point.cost for point in shown], [point.accuracy for point in shown])]
    for one, other in pairwise(front):
        axes.plot([one.cost, other.cost], [one.accuracy] * 2, color="#C8C8C8", linewidth=2, zorder=1)
        axes.plot([other.cost] * 2, [one.accuracy, other.accuracy], color="#C8C8C8", linewidth=2, zorder=1)
    for point in shown:
        axes.errorbar(
            point.cost,
            point.accuracy,
            xerr=spread(point.seconds) or None,
            yerr=spread(point.accuracies) or None,
            markersize=6,
            capsize=2.5,
            elinewidth=0.9,
            linestyle="none",
            markeredgecolor="black",
            markeredgewidth=0.6,
            zorder=3,
            label=point.label,
            **marker_style(labels.index(point.label)),
        )
    axes.margins(0.14)
    costs = [point.cost for point in shown]
    if max(costs) > 6 * min(costs):
        _logarithmic(axes)
    axes.set_title(name)
    axes.set_xlabel("training time (kd: 1)" if is_relative else "training time (s)")


def spread(values: Sequence[float]) -> float:
    """The standard deviation; 0 for one value."""
    return mean_and_deviation(values)[1] or 0.0


def _logarithmic(axes: Any) -> None:
    """With ticks at 1, 2 and 5 times powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

"""Bars of a comparison: the mean accuracy of each method, its spread over seeds, and each seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pckd.plots.style import COLORS, headline, new_figure, panels_of
from pckd.runs import Benchmark, is_number, mean_and_deviation, title_of
from pckd.tables import fixed

REFERENCE = "kd"
"""What the others are held against, where it is there."""


class Bar(NamedTuple):
    """A method, or a variant of one, on one pair."""

    label: str
    mean: float
    std: float | None
    """Over seeds; None for one."""
    seeds: list[float]


def bars(benchmark: Benchmark, pair: str) -> list[Bar]:
    """The methods on a pair, the best one first."""
    found = []
    for row in benchmark.rows:
        if row["pair"] == pair:
            values = [float(value) for value in row[f"last_{benchmark.metric}"]]
            found.append(Bar(row["label"], *mean_and_deviation(values), values))
    return sorted(found, key=lambda bar: -bar.mean)


def draw_ablation(benchmark: Benchmark) -> Any:
    """A panel for each pair."""
    panels = [bars(benchmark, pair) for pair in benchmark.pairs]
    columns = 1 if len(panels) == 1 else 2
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [0.75 + 0.27 * max(map(len, row)) for row in rows]
    figure = new_figure(0.55 + sum(heights))
    places = panels_of(figure, len(panels), len(rows), columns, height_ratios=heights)
    for axes, pair, panel in zip(places, benchmark.pairs, panels, strict=True):
        _panel(axes, pair, panel, benchmark)
    about = f" ({benchmark.title})" if benchmark.title else ""
    headline(figure, f"Accuracy after the last epoch{about}: mean, standard deviation, every seed")
    return figure


def _panel(axes: Any, pair: str, panel: Sequence[Bar], benchmark: Benchmark) -> None:
    low, high = limits(panel)
    for place, bar in enumerate(panel):
        reference = bar.label == REFERENCE
        axes.barh(
            place,
            bar.mean - low,
            left=low,
            height=0.72,
            color="#DDDDDD" if reference else COLORS[5],
            hatch="///" if reference else "",
            edgecolor="white",
        )
        if bar.std is not None:
            axes.errorbar(bar.mean, place, xerr=bar.std, color="black", capsize=3, linewidth=1.2)
        # One below the other, so that equal ones are all seen.
        spread = np.linspace(-0.18, 0.18, len(bar.seeds)) if len(bar.seeds) > 1 else np.zeros(1)
        axes.plot(bar.seeds, place + spread, "o", color="white", markeredgecolor="black", markersize=4)
        axes.annotate(
            fixed(bar.mean, bar.std), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5
        )
        if reference:
            axes.axvline(bar.mean, color="black", linestyle="--", linewidth=1, zorder=1.5)
    of_pair = [row.get(f"teacher_{benchmark.metric}") for row in benchmark.rows if row["pair"] == pair]
    teachers = [value for value in of_pair if is_number(value)]
    axes.set_title(pair.replace(">", " > ") + (f", teacher {teachers[0]:.2f} %" if teachers else ""))
    axes.set_yticks(range(len(panel)), [bar.label for bar in panel])
    axes.set_xlim(low, high)
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.set_xlabel(f"{title_of(benchmark.metric)} (%)" + ("" if low == 0 else "; the axis does not begin at 0"))
    axes.grid(False, axis="y")


def limits(panel: Sequence[Bar]) -> tuple[float, float]:
    """The part of the axis in which the methods differ: bars from 0 on would all look the same."""
    ends = [value for bar in panel for value in (*bar.seeds, bar.mean - (bar.std or 0), bar.mean + (bar.std or 0))]
    lowest, highest = min(ends), max(ends)
    margin = max(0.35 * (highest - lowest), 0.5)
    return max(0.0, lowest - margin), min(100.0, highest + margin / 4) if highest < 100 else 100.5

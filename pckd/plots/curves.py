"""Lines over epochs: accuracies and terms of the objective; preview."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from pckd.plots.style import grid_shape, headline, line_style, new_figure, panel_title, panels_of, whole_numbers
from pckd.runs import Group, Run, is_number, metric_of, title_of
from registry import UserError

Read = str | Callable[[dict[str, Any]], Any]
"""An entry of a row: its name, or a function of the row."""

GRADIENTS = "gradient_report"


class Series(NamedTuple):
    """One entry of the rows of several runs, epoch by epoch."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int
    """How many have the entry."""


def series(runs: Sequence[Run], read: Read) -> Series:
    """Mean, lowest and highest value over the runs in each epoch that one of them has; only numbers count."""
    value = (lambda row: row.get(read)) if isinstance(read, str) else read
    found: dict[int, list[float]] = {}
    counted = 0
    for run in runs:
        numbers = {row["epoch"]: float(value(row)) for row in run.rows if is_number(value(row))}
        counted += bool(numbers)
        for epoch, number in numbers.items():
            found.setdefault(epoch, []).append(number)
    epochs = sorted(found)
    values = [found[epoch] for epoch in epochs]
    return Series(epochs, [fmean(v) for v in values], [min(v) for v in values], [max(v) for v in values], counted)


def draw_line(axes: Any, line: Series, number: int, label: str = "") -> None:
    """The mean as the so-manieth line, and around it a band from the lowest to the highest."""
    style = line_style(number)
    every = max(1, len(line.epochs) // 8)
    axes.plot(line.epochs, line.mean, label=label, markevery=every, **style)
    if line.runs > 1:
        axes.fill_between(line.epochs, line.low, line.high, color=style["color"], alpha=0.18, linewidth=0)


def draw_curves(groups: Sequence[Group]) -> tuple[Any, list[str]]:
    """A panel for each accuracy and each term, a line for each group; and no notes."""
    runs = [run for group in groups for run in group.runs]
    measured = {str(run.result.get("measured_on", "test")) for run in runs if run.result} or {"test"}
    metric = metric_of(runs)
    title = title_of(metric)
    panels = [
        (metric, f"{title} on {' and '.join(sorted(measured))} (%)"),
        (f"train_{metric}", f"{title} in training (%)"),
        *((term, f"{term} (weighted)") for term in dict.fromkeys(term for run in runs for term in run.terms)),
        ("loss", "loss (their sum)"),
    ]
    shown = [(key, title) for key, title in panels if series(runs, key).epochs]
    if not any(key == metric for key, _ in shown):
        raise UserError(f"{runs[0].path}: its metrics have no {metric}; is it the folder of a run?")
    return _panels(groups, shown, "Accuracy and loss"), []


def draw_preview(groups: Sequence[Group]) -> tuple[Any, list[str]]:
    """Mean weight and share previewed, and which groups are left out because they preview nothing."""
    keep = [group for group in groups if series(group.runs, "preview_weight").epochs]
    if not keep:
        raise UserError("none of these runs previews; train one that does, with --method pckd or --scheduler preview")
    notes = [f"{group.label}: previews nothing, and is left out" for group in groups if group not in keep]
    panels: list[tuple[Read, str]] = [
        ("preview_weight", "mean preview weight"),
        (previewed_percent, "samples with a weight below 1 (%)"),
    ]
    return _panels(keep, panels, "Preview"), notes


def previewed_percent(row: dict[str, Any]) -> Any:
    """Of the samples, those with a weight below 1."""
    share = row.get("previewed")
    return 100 * share if is_number(share) else None


def draw_gradients(groups: Sequence[Group]) -> tuple[Any, list[str]]:
    """A panel for the cosine of each two terms' gradients and for each gradient's norm, and what is left out."""
    keep = [group for group in groups if any(GRADIENTS in row for run in group.runs for row in run.rows)]
    if not keep:
        raise UserError("none of these runs knows its terms' gradients; train with --report-gradients")
    notes = [f"{group.label}: without --report-gradients, and left out" for group in groups if group not in keep]
    reports = [_object(row.get(GRADIENTS)) for group in keep for run in group.runs for row in run.rows]
    kinds = (("cosine", _cosines), ("norm", lambda report: _object(report.get("norms"))))
    panels: list[tuple[Read, str]] = [
        (_entry(kind, name), f"{word}: {name}")
        for word, kind in kinds
        for name in dict.fromkeys(name for report in reports for name in kind(report))
    ]
    if not any(series(group.runs, read).epochs for group in keep for read, _ in panels):
        raise UserError(f"{keep[0].runs[0].path}: its gradient reports are damaged or empty; train again")
    return _panels(keep, panels, "Gradients of the terms"), notes


def _entry(kind: Callable[[dict[str, Any]], dict[str, Any]], name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: kind(_object(row.get(GRADIENTS))).get(name)


def _cosines(report: dict[str, Any]) -> dict[str, Any]:
    """``"kd, crd"`` to the cosine of their gradients."""
    pairs = _object(report.get("cosines")).items()
    return {f"{one}, {other}": cosine for one, found in pairs for other, cosine in _object(found).items()}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _panels(groups: Sequence[Group], panels: Sequence[tuple[Read, str]], title: str) -> Any:
    rows, columns = grid_shape(len(panels))
    legend_rows = -(-len(groups) // legend_columns([group.label for group in groups]))
    figure = new_figure(0.75 + 2.2 * rows + (0.9 if rows == 1 else 0) + 0.22 * legend_rows)
    places = panels_of(figure, len(panels), rows, columns)
    for axes, (read, name) in zip(places, panels, strict=True):
        for number, group in enumerate(groups):
            draw_line(axes, series(group.runs, read), number, group.label)
        panel_title(axes, name, columns)
        axes.set_xlabel("epoch")
        whole_numbers(axes.xaxis)
    headline(figure, title + _of(groups))
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns(labels), handlelength=3.2)
    return figure


def _of(groups: Sequence[Group]) -> str:
    pairs = {run.pair for group in groups for run in group.runs if run.result}
    counts = sorted({len(group.runs) for group in groups})
    named = f", {' and '.join(sorted(pairs))}" if 0 < len(pairs) <= 2 else ""
    if counts == [1]:
        return named
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{named}: mean of {seeds} seeds, band from lowest to highest"


def legend_columns(labels: Sequence[str]) -> int:
    """How many of these labels stand side by side."""
    return max(1, min(len(labels), 6, int(112 / (9 + max(map(len, labels), default=0)))))

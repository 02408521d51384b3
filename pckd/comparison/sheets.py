"""A comparison's rows as Markdown, and as lines of a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pckd.comparison.paper import USUAL, paper_figure
from pckd.comparison.truth import TERCILES, gains, without_preview

__all__ = ["COLUMNS", "figures", "markdown", "overview"]

NONE = "-"
COLUMNS = ("label", "last top-1", "seeds", "best top-1", "difference", "seconds", "images/s", "paper")
SHOWN = (
    *("dataset", "epochs", "batch_size", "limit_train", "limit_test", "val_fraction", "lr", "views", "view_pool"),
    *("scheduler", *USUAL),
)
"""Options that the head of the tables says, where they are set and not as usual."""

Row = Mapping[str, Any]


def overview(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table of all pairs, for a terminal."""
    several = len({row["pair"] for row in content["rows"]}) > 1
    header, rows = ["method", *COLUMNS[1:-1]], []
    for row in content["rows"]:
        label, *cells = figures(row)
        rows.append([f"{row['pair']} {label}" if several else label, *cells[:-1]])
        if row["paper"] is not None:
            rows[-1][-1] += f" (paper: {cells[-1]})"
    return header, rows


def markdown(content: Mapping[str, Any]) -> str:
    """The whole of benchmark.md.

    Args:
        content: of benchmark.json.
    """
    protocol, rows = content["protocol"], content["rows"]
    lines = ["# Benchmark", "", f"{content['done']} of {content['runs']} runs. {_setting(protocol, rows)}"]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        of_pair = [row for row in rows if row["pair"] == pair]
        lines += ["", f"## {pair}", "", *_teacher(protocol, of_pair[0]), *_accuracies(protocol, of_pair)]
        known = [row for row in of_pair if row["truth"] is not None]
        if known:
            lines += ["", *_correlations(known), "", *_thirds(known, protocol["confidence"])]
    if content["refused"]:
        lines += ["", "## Not done", ""]
        for one in content["refused"]:
            seed = "" if one["seed"] is None else f" seed {one['seed']}"
            lines.append(f"- {one['pair']} {one['label']}{seed}: {one['reason']}")
    if content["notes"]:
        lines += ["", *(f"- {note}" for note in content["notes"])]
    return "\n".join(lines) + "\n"


def figures(row: Row) -> list[str]:
    """A row's cells, in the order of :data:`COLUMNS`."""
    speeds = [speed for speed in row["images_per_second"] if speed]
    return [
        row["label"],
        _spread(row["mean"], row["std"]),
        ", ".join(f"{value:.2f}" for value in row["last_top1"]),
        _spread(row["best_mean"], row["best_std"]),
        NONE if row["difference"] is None else _difference(**_ends(row["difference"])),
        _mean(row["seconds"]),
        f"{statistics.median(speeds):.0f}" if speeds else NONE,
        NONE if row["paper"] is None else f"{row['paper']:.2f}",
    ]


def _setting(protocol: Mapping[str, Any], rows: Sequence[Row]) -> str:
    shown = [name for name in SHOWN if protocol.get(name) and protocol[name] != USUAL.get(name)]
    said = [f"{name.replace('_', ' ')} {protocol[name]}" for name in shown]
    said += sorted({f"{row['precision']} on {row['device']}" for row in rows if row["precision"]})
    if protocol.get("jobs", 1) > 1:
        said.append(f"{protocol['jobs']} runs at once")
    return "; ".join(said)


def _teacher(protocol: Mapping[str, Any], row: Row) -> list[str]:
    if row["teacher_top1"] is None:
        return []
    reported = paper_figure(protocol, row["teacher"], row["student"], "teacher")
    beside = "" if reported is None else f" (paper: {reported:.2f} %)"
    return [f"Teacher: {row['teacher_top1']:.2f} %{beside}.", ""]


def _accuracies(protocol: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    first = next((row["difference"] for row in rows if row["difference"] is not None), None)
    header = list(COLUMNS)
    longest: list[int] = max((row["seeds"] for row in rows), key=lambda seeds: len(seeds))
    header[2] = f"seeds {', '.join(map(str, longest))}"
    if first is not None:
        header[4] = f"difference to {first['to']} ({100 * first['confidence']:g} % interval)"
    cells = [figures(row) for row in rows]
    # A column that says nothing of any row.
    for column in (7, 4):
        if all(line[column] == NONE for line in cells):
            for line in [header, *cells]:
                del line[column]
    return [
        *_table(header, cells),
        "",
        "Top-1 in percent: mean ± standard deviation over seeds, after the last epoch and the best. A difference is of "
        "the same seeds, its interval that of the paired t-test. Seconds are of training alone."
        + (" The paper's figures are the paper's, not measured here." if "paper" in header else ""),
    ]


def _correlations(rows: Sequence[Row]) -> list[str]:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["truth"]["correlation"]))
    cells = []
    for row in rows:
        found = row["truth"]["correlation"]
        told = [
            " / ".join(NONE if v is None else f"{v:.2f}" for v in found[m]) if m in found else NONE for m in metrics
        ]
        cells.append([row["label"], " / ".join(map(str, row["truth"]["epochs"])), *told])
    return [
        "Rank correlation of each metric with the true difficulty:",
        "",
        *_table(["label", "epochs", *metrics], cells),
    ]


def _thirds(rows: Sequence[Row], confidence: float) -> list[str]:
    cells, gained = [], False
    for row in rows:
        means = [f"{statistics.mean(third):.2f}" for third in zip(*row["truth"]["top1"], strict=True)]
        plain = without_preview(row, rows)
        over = [] if plain is None else gains(row, plain, confidence)
        gained = gained or bool(over)
        cells.append([row["label"], *means, *([_difference(*gain) for gain in over] or [NONE] * len(TERCILES))])
    header = ["label", *TERCILES, *(f"{third}, over no preview" for third in TERCILES)]
    if not gained:
        header, cells = header[:4], [line[:4] for line in cells]
    return ["Top-1 by true difficulty, after the last epoch:", "", *_table(header, cells)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _ends(difference: Mapping[str, Any]) -> dict[str, Any]:
    return {key: difference[key] for key in ("mean", "low", "high")}


def _difference(mean: float, low: float | None, high: float | None) -> str:
    """``+0.54 (-0.10 to +1.18)``; a dash for the interval where one seed gives none."""
    return f"{mean:+.2f} ({NONE if low is None or high is None else f'{low:+.2f} to {high:+.2f}'})"


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.0f}" if known else NONE

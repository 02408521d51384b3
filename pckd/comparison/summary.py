"""A comparison as a table of a terminal, and as the whole of benchmark.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pckd.comparison.jobs import unusual
from pckd.comparison.paper import other_figures, other_sources, paper_figure
from pckd.comparison.truth import TERCILES, gains, without_preview
from pckd.runs import title_of
from pckd.tables import NONE, Table, difference, fixed, markdown_rows

COLUMNS = ("label", "last {}", "seeds", "best {}", "difference", "seconds", "images/s", "paper")
"""{} stands for the metric."""
Row = Mapping[str, Any]


def overview(content: Mapping[str, Any]) -> Table:
    """One table of all pairs."""
    several = len({row["pair"] for row in content["rows"]}) > 1
    rows = []
    for row in content["rows"]:
        label, *cells = figures(row, content["metric"])
        rows.append([f"{row['pair']} {label}" if several else label, *cells[:-1]])
        if row["paper"] is not None:
            rows[-1][-1] += f" (paper: {cells[-1]})"
    return Table("", ["method", *header(content)[1:-1]], rows)


def markdown(content: Mapping[str, Any]) -> str:
    """The whole of benchmark.md, from the content of benchmark.json."""
    protocol, rows = content["protocol"], content["rows"]
    others = other_figures(protocol, {(row["teacher"], row["student"]) for row in rows})
    lines = ["# Benchmark", "", f"{content['done']} of {content['runs']} runs. {_setting(protocol, rows)}"]
    for pair in dict.fromkeys(row["pair"] for row in rows):
        of_pair = [row for row in rows if row["pair"] == pair]
        lines += ["", f"## {pair}", "", *_teacher(content, of_pair[0]), *_accuracies(content, of_pair)]
        if reported := others.get((of_pair[0]["teacher"], of_pair[0]["student"])):
            lines += ["", f"By other papers, not measured here: {reported}."]
        known = [row for row in of_pair if row["truth"] is not None]
        if known:
            lines += ["", *_correlations(known), "", *_thirds(content, known)]
    if others:
        lines += ["", "## Figures of other papers", "", *(f"- {source}." for source in other_sources(protocol, others))]
    if content["refused"]:
        lines += ["", "## Not done", ""]
        for one in content["refused"]:
            seed = "" if one["seed"] is None else f" seed {one['seed']}"
            lines.append(f"- {one['pair']} {one['label']}{seed}: {one['reason']}")
    if content["notes"]:
        lines += ["", *(f"- {note}" for note in content["notes"])]
    return "\n".join(lines) + "\n"


def header(content: Mapping[str, Any]) -> list[str]:
    return [column.format(title_of(content["metric"])) for column in COLUMNS]


def figures(row: Row, metric: str) -> list[str]:
    """A row's cells, in the order of :data:`COLUMNS`."""
    speeds = [speed for speed in row["images_per_second"] if speed]
    return [
        row["label"],
        fixed(row["mean"], row["std"]),
        ", ".join(map(fixed, row[f"last_{metric}"])),
        fixed(row["best_mean"], row["best_std"]),
        NONE if row["difference"] is None else difference(*(row["difference"][key] for key in ("mean", "low", "high"))),
        _mean(row["seconds"]),
        f"{statistics.median(speeds):.0f}" if speeds else NONE,
        fixed(row["paper"]),
    ]


def _setting(protocol: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The data set and the length, and what is not as usual; the precision is that of the runs."""
    shown = {name: protocol.get(name) for name in ("dataset", "epochs", "batch_size")} | unusual(protocol)
    said = [f"{name.replace('_', ' ')} {value}" for name, value in shown.items() if name != "precision"]
    said += sorted({f"{row['precision']} on {row['device']}" for row in rows if row["precision"]})
    if protocol.get("jobs", 1) > 1:
        said.append(f"{protocol['jobs']} runs at once")
    return "; ".join(said)


def _teacher(content: Mapping[str, Any], row: Row) -> list[str]:
    if (own := row[f"teacher_{content['metric']}"]) is None:
        return []
    reported = paper_figure(content["protocol"], row["teacher"], row["student"], "teacher")
    beside = "" if reported is None else f" (paper: {reported:.2f} %)"
    return [f"Teacher: {own:.2f} %{beside}.", ""]


def _accuracies(content: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    first = next((row["difference"] for row in rows if row["difference"] is not None), None)
    heads = header(content)
    longest: list[int] = max((row["seeds"] for row in rows), key=lambda seeds: len(seeds))
    heads[2] = f"seeds {', '.join(map(str, longest))}"
    if first is not None:
        heads[4] = f"difference to {first['to']} ({100 * first['confidence']:g} % interval)"
    cells = [figures(row, content["metric"]) for row in rows]
    # A column that says nothing of any row.
    for column in (7, 4):
        if all(line[column] == NONE for line in cells):
            for line in [heads, *cells]:
                del line[column]
    return [
        *markdown_rows(heads, cells),
        "",
        f"{_capital(content)} in percent: mean ± standard deviation over seeds, after the last epoch and the best. A "
        "difference is of the same seeds, its interval that of the paired t-test. Seconds are of training alone."
        + (" The paper's figures are the paper's, not measured here." if "paper" in heads else ""),
    ]


def _correlations(rows: Sequence[Row]) -> list[str]:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["truth"]["correlation"]))
    cells = []
    for row in rows:
        found = row["truth"]["correlation"]
        told = [" / ".join(map(fixed, found[metric])) if metric in found else NONE for metric in metrics]
        cells.append([row["label"], " / ".join(map(str, row["truth"]["epochs"])), *told])
    return [
        "Rank correlation of each metric with the true difficulty:",
        "",
        *markdown_rows(["label", "epochs", *metrics], cells),
    ]


def _thirds(content: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    cells, gained = [], False
    for row in rows:
        means = [f"{statistics.mean(third):.2f}" for third in zip(*row["truth"]["top1"], strict=True)]
        plain = without_preview(row, rows)
        over = [] if plain is None else gains(row, plain, content["protocol"]["confidence"])
        gained = gained or bool(over)
        cells.append([row["label"], *means, *([difference(*gain) for gain in over] or [NONE] * len(TERCILES))])
    header = ["label", *TERCILES, *(f"{third}, over no preview" for third in TERCILES)]
    if not gained:
        header, cells = header[:4], [line[:4] for line in cells]
    return [f"{_capital(content)} by true difficulty, after the last epoch:", "", *markdown_rows(header, cells)]


def _capital(content: Mapping[str, Any]) -> str:
    return title_of(content["metric"]).capitalize()


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.0f}" if known else NONE

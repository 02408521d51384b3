"""The results of a comparison so far: kept in memory, and written anew after every run that ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from pckd.comparison.jobs import Job
from pckd.comparison.paper import paper_figure
from pckd.comparison.statistics import difference_by_seed
from pckd.comparison.summary import markdown
from pckd.comparison.truth import truth_of
from pckd.runs import BENCHMARK, METRIC, Run, grouped, mean_and_deviation
from pckd.tables import csv_text
from registry.files import write_atomically

CSV, MARKDOWN = "benchmark.csv", "benchmark.md"


class Results:
    """The finished runs, and why others did not finish.

    Args:
        root: the folder that the files are written to. protocol: the options of the comparison, as JSON has them.
        jobs: all, in the order of the tables. reference: label of the variant that others are compared with.
        confidence: of the intervals. notes: lines for the end of the tables.
    """

    def __init__(
        self,
        root: Path,
        protocol: Mapping[str, Any],
        jobs: Sequence[Job],
        *,
        reference: str,
        confidence: float,
        notes: Sequence[str] = (),
    ) -> None:
        self.root, self.protocol, self.jobs = root, protocol, list(jobs)
        self.reference, self.confidence = reference, confidence
        self.notes = list(notes)
        self.done: dict[Job, Run] = {}
        self.refused: list[dict[str, Any]] = []

    @property
    def metric(self) -> str:
        """The name of what the runs are judged by."""
        return next((run.metric for run in self.done.values()), METRIC)

    def add(self, job: Job, run: Run) -> None:
        """A finished run; of its rows the first, the middle and the last are kept."""
        self.done[job] = replace(run, rows=[run.rows[0], run.rows[(len(run.rows) - 1) // 2], run.rows[-1]])

    def refuse(self, job: Job, reason: str, *, failed: bool) -> None:
        """A run that was not tried (for any seed), or that failed."""
        what = {"pair": job.pair, "label": job.variant.label, "method": job.variant.method}
        self.refused.append({**what, "seed": job.seed if failed else None, "reason": reason})

    @property
    def failures(self) -> int:
        """Runs that failed while they ran."""
        return sum(one["seed"] is not None for one in self.refused)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pair and variant of which a run is done, pair by pair."""
        order, teacher = list(dict.fromkeys(job.row for job in self.jobs)), f"teacher_{self.metric}"
        done = grouped((job for job in self.jobs if job in self.done), lambda job: job.row)
        rows = {at: self._row(done[at]) for at in sorted(done, key=order.index)}
        known = {row["pair"]: row[teacher] for row in reversed(rows.values()) if row[teacher] is not None}
        for row in rows.values():
            # A method without a teacher does not ask for it.
            row[teacher] = known.get(row["pair"])
            row["difference"] = self._difference(row, rows.get((row["pair"], self.reference)))
        return list(rows.values())

    def _row(self, jobs: Sequence[Job]) -> dict[str, Any]:
        metric, first, results = self.metric, jobs[0], [self.done[job].result for job in jobs]
        last, best = ([result[f"{which}_{metric}"] for result in results] for which in ("last", "best"))
        teacher, histories = f"teacher_{metric}", [self.done[job].rows for job in jobs]
        return {
            "pair": first.pair,
            "teacher": first.teacher,
            "student": first.student,
            "label": first.variant.label,
            "method": first.variant.method,
            "options": dict(first.variant.options),
            "seeds": [job.seed for job in jobs],
            f"last_{metric}": last,
            f"best_{metric}": best,
            **dict(zip(("mean", "std"), mean_and_deviation(last), strict=True)),
            **dict(zip(("best_mean", "best_std"), mean_and_deviation(best), strict=True)),
            teacher: next((result[teacher] for result in results if result.get(teacher) is not None), None),
            "difference": None,
            "seconds": [result.get("train_seconds") for result in results],
            "images_per_second": [result.get("images_per_second") for result in results],
            "paper": paper_figure(self.protocol, first.teacher, first.student, first.variant),
            "folders": [job.folder for job in jobs],
            "terms": {term: histories[0][-1][term] for term in results[0]["terms"] if term in histories[0][-1]},
            **{key: results[0].get(key) for key in ("loss_parameters", "precision", "device")},
            "truth": truth_of(histories),
        }

    def _difference(self, row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if reference is None or row["label"] == reference["label"]:
            return None
        found = difference_by_seed(row, reference, itemgetter(f"last_{self.metric}"), self.confidence)
        return found and {"to": reference["label"], **found._asdict(), "confidence": self.confidence}

    def write(self) -> dict[str, Any]:
        """Write the three files, each whole or not at all; what benchmark.json holds."""
        content = {
            "protocol": dict(self.protocol),
            "metric": self.metric,
            "done": len(self.done),
            "runs": len(self.jobs),
            "rows": self.rows(),
            "refused": self.refused,
            "notes": self.notes,
        }
        files = {BENCHMARK: json.dumps(content, indent=2) + "\n", CSV: self._csv(), MARKDOWN: markdown(content)}
        for name, text in files.items():
            write_atomically(self.root / name, text.encode())
        return content

    def _csv(self) -> str:
        figures = (f"last_{self.metric}", f"best_{self.metric}", "train_seconds", "images_per_second")
        rows = [
            [*job.row, job.variant.method, job.seed, *map(self.done[job].result.get, figures), job.folder]
            for job in self.jobs
            if job in self.done
        ]
        return csv_text(["pair", "label", "method", "seed", *figures[:2], "seconds", figures[3], "folder"], rows)

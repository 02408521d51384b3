"""What is done of a comparison so far: kept in memory, and written anew after every run that ends."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pckd.comparison.paper import paper_figure
from pckd.comparison.plan import Run
from pckd.comparison.sheets import markdown
from pckd.comparison.statistics import mean_and_deviation, paired_difference
from pckd.comparison.truth import truth_of
from registry.files import write_atomically

__all__ = ["CSV", "JSON", "MARKDOWN", "Ledger"]

JSON, CSV, MARKDOWN = "benchmark.json", "benchmark.csv", "benchmark.md"
COLUMNS = ("pair", "label", "method", "seed", "last_top1", "best_top1", "seconds", "images_per_second", "folder")


class Ledger:
    """The records of the finished runs, and why others did not finish.

    Args:
        root: the folder that the files are written to. protocol: the options of the comparison, as JSON has them.
        runs: all, in the order of the tables. reference: label of the case that others are compared with.
        confidence: of the intervals. notes: lines for the end of the tables.
    """

    def __init__(
        self,
        root: Path,
        protocol: Mapping[str, Any],
        runs: Sequence[Run],
        *,
        reference: str,
        confidence: float,
        notes: Sequence[str] = (),
    ) -> None:
        self.root, self.protocol, self.runs = root, protocol, list(runs)
        self.reference, self.confidence = reference, confidence
        self.notes = list(notes)
        self.records: dict[Run, Mapping[str, Any]] = {}
        self.refused: list[dict[str, Any]] = []

    def add(self, run: Run, record: Mapping[str, Any]) -> None:
        """A finished run: its result.json, and the rows of its metrics.jsonl as ``history``."""
        history = record["history"]
        looked_at = [history[0], history[(len(history) - 1) // 2], history[-1]]
        self.records[run] = {**record, "history": looked_at}

    def refuse(self, run: Run, reason: str, *, failed: bool) -> None:
        """A run that was not tried (for any seed), or that failed."""
        self.refused.append(
            {
                "pair": run.pair,
                "label": run.case.label,
                "method": run.case.method,
                "seed": run.seed if failed else None,
                "reason": reason,
            }
        )

    @property
    def failures(self) -> int:
        """Runs that failed while they ran."""
        return sum(one["seed"] is not None for one in self.refused)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pair and case of which a run is done."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run in self.records:
                groups.setdefault((run.pair, run.case.label), []).append(run)
        rows = []
        for pair in dict.fromkeys(run.pair for run in self.runs):
            of_pair = [self._row(runs) for (name, _), runs in groups.items() if name == pair]
            by_label = {row["label"]: row for row in of_pair}
            known = [row["teacher_top1"] for row in of_pair if row["teacher_top1"] is not None]
            order = list(dict.fromkeys(run.case.label for run in self.runs))
            for row in sorted(of_pair, key=lambda row: order.index(row["label"])):
                # A method without a teacher does not ask for it.
                row["teacher_top1"] = known[0] if known else None
                row["difference"] = self._difference(row, by_label.get(self.reference))
                rows.append(row)
        return rows

    def _row(self, runs: Sequence[Run]) -> dict[str, Any]:
        first, records = runs[0], [self.records[run] for run in runs]
        last, best = ([record[key] for record in records] for key in ("last_top1", "best_top1"))
        at_end = records[0]["history"][-1]
        mean, deviation = mean_and_deviation(last)
        best_mean, best_deviation = mean_and_deviation(best)
        return {
            "pair": first.pair,
            "teacher": first.teacher,
            "student": first.student,
            "label": first.case.label,
            "method": first.case.method,
            "options": dict(first.case.options),
            "seeds": [run.seed for run in runs],
            "last_top1": last,
            "best_top1": best,
            "mean": mean,
            "std": deviation,
            "best_mean": best_mean,
            "best_std": best_deviation,
            "teacher_top1": next((r["teacher_top1"] for r in records if r.get("teacher_top1") is not None), None),
            "difference": None,
            "seconds": [record.get("train_seconds") for record in records],
            "images_per_second": [record["images_per_second"] for record in records],
            "paper": paper_figure(self.protocol, first.teacher, first.student, first.case),
            "folders": [run.folder for run in runs],
            "terms": {term: at_end[term] for term in records[0]["terms"] if term in at_end},
            "loss_parameters": records[0]["loss_parameters"],
            "precision": records[0].get("precision"),
            "device": records[0].get("device"),
            "truth": truth_of([record["history"] for record in records]),
        }

    def _difference(self, row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if reference is None or row["label"] == reference["label"]:
            return None
        theirs = dict(zip(reference["seeds"], reference["last_top1"], strict=True))
        own = {seed: value for seed, value in zip(row["seeds"], row["last_top1"], strict=True) if seed in theirs}
        if not own:
            return None
        found = paired_difference(list(own.values()), [theirs[seed] for seed in own], self.confidence)
        return {"to": reference["label"], **found._asdict(), "confidence": self.confidence}

    def content(self) -> dict[str, Any]:
        """What benchmark.json holds."""
        return {
            "protocol": dict(self.protocol),
            "done": len(self.records),
            "runs": len(self.runs),
            "rows": self.rows(),
            "refused": self.refused,
            "notes": self.notes,
        }

    def write(self) -> dict[str, Any]:
        """Write the three files, each whole or not at all; their content."""
        content = self.content()
        files = {JSON: json.dumps(content, indent=2) + "\n", CSV: self._csv(), MARKDOWN: markdown(content)}
        for name, text in files.items():
            write_atomically(self.root / name, text.encode())
        return content

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in self.runs:
            if (record := self.records.get(run)) is not None:
                figures = (record["last_top1"], record["best_top1"])
                speed = (record.get("train_seconds"), record["images_per_second"])
                writer.writerow([run.pair, run.case.label, run.case.method, run.seed, *figures, *speed, run.folder])
        return text.getvalue()

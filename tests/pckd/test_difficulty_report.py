"""The difficulty report: ranks by hand, and what a run writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pckd
from pckd.engine.difficulty_report import EDGES
from pckd.functional import rank_correlation
from registry import DIFFICULTY_METRICS

SHAPES = "shapes(num_classes=3, image_size=8, train_size=48, test_size=31)"


def test_rank_correlation_by_hand() -> None:
    rising = torch.tensor([1.0, 5.0, 6.0, 100.0])
    assert rank_correlation(rising, rising.log()) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 beside 2, 1, 3, 4: the deviations' products add up to 3, their squares to 4.5 and 5.
    assert rank_correlation(torch.tensor([0.0, 2, 2, 9]), torch.tensor([2.0, 1, 3, 4])) == pytest.approx(
        3 / math.sqrt(4.5 * 5)
    )
    assert math.isnan(rank_correlation(torch.ones(4), rising))


OPTIONS: dict[str, Any] = {"student": "resnet8", "data": SHAPES, "epochs": 2, "batch_size": 16, "device": "cpu"}


def test_every_metric_is_reported_each_epoch_and_nothing_else_changes(tmp_path: Path) -> None:
    options = {**OPTIONS, "teacher": pckd.train(**OPTIONS).student, "method": "pckd"}
    result = pckd.distill(report_difficulty=True, output=tmp_path, **options)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.history == rows
    reports = [row.pop("difficulty_report") for row in rows]
    assert rows == pckd.distill(**options).history
    for row, report in zip(rows, reports, strict=True):
        assert report["edges"] == list(EDGES)
        assert set(report["metrics"]) == set(DIFFICULTY_METRICS.names())
        for metric in report["metrics"].values():
            assert len(metric["histogram"]) == len(EDGES)
            assert sum(metric["histogram"]) == 48
            assert -1 <= metric["truth"] <= 1
        # Thirds of 31 images, easy first: 11, 10 and 10 of them. Together they are the accuracy on all.
        easy, middle, hard = report["top1_by_truth"]
        assert (11 * easy + 10 * middle + 10 * hard) / 31 == pytest.approx(row["top1"])
    # The teacher does not change, and its images are shown without augmentation.
    first, last = (report["metrics"] for report in reports)
    assert first["teacher_cross_entropy"] == last["teacher_cross_entropy"]
    assert first["entropy"] != last["entropy"]


def test_without_a_teacher_its_metrics_are_left_out() -> None:
    report = pckd.distill(method="vanilla", report_difficulty=True, **OPTIONS).history[-1]["difficulty_report"]
    assert {"cross_entropy", "entropy", "margin"} <= set(report["metrics"])
    assert not {"teacher_cross_entropy", "teacher_student_gap"} & set(report["metrics"])

"""The gradient report: norms and cosines by hand, and that a run is the same with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pckd
from pckd.data.load import load_data
from pckd.engine.gradient_report import BATCHES
from registry import Context, Output, Setup, Term, function_loss

SHAPES = "shapes(num_classes=3, image_size=8, train_size=48, test_size=31)"
SMALL: dict[str, Any] = {"student": "resnet8", "batch_size": 16, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return pckd.train(data=SHAPES, epochs=1, **SMALL).student


class Still(torch.nn.Module):
    """Has a parameter of its own, and no gradient for the student."""

    needs_teacher = False

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.ones(()))

    def forward(self, student: Output, teacher: Output, context: Context) -> torch.Tensor:
        return self.own * torch.ones(len(context.labels))


def logit(number: int, sign: float = 1.0) -> Any:
    """A loss: one of the logits."""
    return function_loss(lambda student, teacher, context: sign * student.logits[:, number], needs_teacher=False)


def test_by_hand() -> None:
    """Of a linear layer, the gradient of a mean logit is the mean image, in that logit's row."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.nn.Linear(3 * 8 * 8, 3, bias=False)

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.classifier(x.flatten(1)), x.flatten(1))

    data, options = load_data(SHAPES), {**SMALL, "student": Linear(), "lr": 0.01, "report_gradients": True}
    terms = [Term(logit(0), 2.0, name="twice"), Term(logit(0, -1.0), name="against"), Term(logit(1), name="other")]
    result = pckd.distill(method=[*terms, Term(Still, name="still")], data=data, epochs=1, **options)
    report = result.history[0]["gradient_report"]
    seen = [batch.views.flatten(0, 1).flatten(1) for batch in pckd.data.Loader(data.train, 16, train=True).epoch(1)]
    norm = float(torch.stack([rows.mean(0) for rows in seen]).mean(0).norm())
    assert len(seen) == 3 < BATCHES
    assert report["norms"] == pytest.approx({"twice": 2 * norm, "against": norm, "other": norm, "still": 0.0}, rel=1e-4)
    assert report["cosines"].keys() == {"twice", "against"}
    assert report["cosines"]["twice"] == pytest.approx({"against": -1.0, "other": 0.0}, abs=1e-6)
    assert report["cosines"]["against"] == pytest.approx({"other": 0.0}, abs=1e-6)


def test_only_terms_of_the_stage_are_asked(teacher: torch.nn.Module) -> None:
    result = pckd.distill(teacher=teacher, method="ft", data=SHAPES, epochs=1, report_gradients=True, **SMALL)
    initial, main = (row["gradient_report"] for row in result.history)
    assert set(initial["norms"]) < set(main["norms"])


@pytest.mark.parametrize("method", ["pckd", "crd"])
def test_reporting_changes_nothing_else(method: str, teacher: torch.nn.Module, tmp_path: Path) -> None:
    """crd draws at random and has a memory; pckd has batch norms in a projection."""
    options: dict[str, Any] = {"teacher": teacher, "data": SHAPES, "method": method, "epochs": 2, **SMALL}
    rows = pckd.distill(report_gradients=True, output=tmp_path, **options).history
    assert "gradient_report" in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    for row, other in zip(rows, pckd.distill(**options).history, strict=True):
        report = row.pop("gradient_report")
        assert row == other
        assert {"cross_entropy"} < set(report["norms"])
        assert all(-1.0001 <= cosine <= 1.0001 for pairs in report["cosines"].values() for cosine in pairs.values())

"""The gradient report: norms and cosines by hand, and that a run is the same with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pckd
from pckd.data.load import load_data
from pckd.engine.gradient_report import BATCHES
from registry import Context, Output, Setup, Term

SHAPES = "shapes(num_classes=3, image_size=8, train_size=48, test_size=31)"


class Logit(torch.nn.Module):
    """The first logit, times ``sign``."""

    needs_teacher = False

    def __init__(self, setup: Setup, *, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, student: Output, teacher: Output, context: Context) -> torch.Tensor:
        return self.sign * student.logits[:, 0]


class Other(Logit):
    """The second logit: another row of the classifier."""

    def forward(self, student: Output, teacher: Output, context: Context) -> torch.Tensor:
        return student.logits[:, 1]


class Still(Logit):
    """Has a parameter of its own, and no gradient for the student."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.own = torch.nn.Parameter(torch.ones(()))

    def forward(self, student: Output, teacher: Output, context: Context) -> torch.Tensor:
        return self.own * torch.ones(len(context.labels))


def test_by_hand() -> None:
    """Of a linear layer, the gradient of a mean logit is the mean image, in that logit's row."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.nn.Linear(3 * 8 * 8, 3, bias=False)

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.classifier(x.flatten(1)), x.flatten(1))

    data, student = load_data(SHAPES), Linear()
    terms = [
        Term(Logit, 2.0, name="twice"),
        Term(Logit, 1.0, name="against", options={"sign": -1.0}),
        Term(Other, 1.0, name="other"),
        Term(Still, 1.0, name="still"),
    ]
    result = pckd.distill(
        student=student,
        method=terms,
        data=data,
        epochs=1,
        batch_size=16,
        lr=0.01,
        precision="fp32",
        device="cpu",
        report_gradients=True,
    )
    report = result.history[0]["gradient_report"]
    loader = pckd.data.Loader(data.train, 16, train=True)
    seen = [batch.views.flatten(0, 1).flatten(1) for batch in loader.epoch(1)]
    mean = torch.stack([rows.mean(0) for rows in seen]).mean(0)
    assert len(seen) == 3 < BATCHES
    assert report["norms"] == pytest.approx(
        {"twice": 2 * float(mean.norm()), "against": float(mean.norm()), "other": float(mean.norm()), "still": 0.0},
        rel=1e-4,
    )
    assert report["cosines"]["twice"] == pytest.approx({"against": -1.0, "other": 0.0}, abs=1e-6)
    assert report["cosines"]["against"] == pytest.approx({"other": 0.0}, abs=1e-6)
    assert set(report["cosines"]) == {"twice", "against"}


def test_only_terms_of_the_stage_are_asked() -> None:
    data = load_data(SHAPES)
    teacher = pckd.train(student="resnet8", data=data, epochs=1, batch_size=16, device="cpu").student
    result = pckd.distill(
        student="resnet8",
        teacher=teacher,
        method="ft",
        data=data,
        epochs=1,
        batch_size=16,
        device="cpu",
        report_gradients=True,
    )
    initial, main = (row["gradient_report"] for row in result.history)
    assert set(initial["norms"]) < set(main["norms"])


@pytest.mark.parametrize("method", ["pckd", "crd"])
def test_reporting_changes_nothing_else(method: str, tmp_path: Path) -> None:
    """crd draws at random and has a memory; pckd has batch norms in a projection."""
    data = load_data(SHAPES)
    teacher = pckd.train(student="resnet8", data=data, epochs=1, batch_size=16, device="cpu").student
    histories = [
        pckd.distill(
            student="resnet8",
            teacher=teacher,
            data=data,
            method=method,
            epochs=2,
            batch_size=16,
            precision="fp32",
            device="cpu",
            report_gradients=reported,
            output=tmp_path / str(reported),
        ).history
        for reported in (True, False)
    ]
    for row, other in zip(*histories, strict=True):
        report = row.pop("gradient_report")
        assert row == other
        assert {"cross_entropy"} < set(report["norms"])
        assert all(-1.0001 <= cosine <= 1.0001 for pairs in report["cosines"].values() for cosine in pairs.values())
    lines = (tmp_path / "True" / "metrics.jsonl").read_text().splitlines()
    assert "gradient_report" in json.loads(lines[0])

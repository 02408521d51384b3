"""Batch norms of the student: all views of a batch together, or each by itself."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn

import pckd
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from registry import BACKBONES, Batch, Centers, Output, Progress, UserError, build


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=0.5)
        self.classifier = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> Output:
        preact = self.norm(x)
        embedding = preact.mean((2, 3))
        return Output(self.classifier(embedding), embedding, (preact.relu(),), (preact,))


class Seen(nn.Module):
    """Keeps the student's output."""

    find_centers: Any = staticmethod(lambda *_: Centers(torch.ones(2, 1), torch.ones(2, 1)))

    def forward(self, student: Output, teacher: Output, context: Any) -> dict[str, torch.Tensor]:
        self.output = student
        return {"loss": student.logits.sum()}


def answered(how: Literal["joint", "own"], views: torch.Tensor, strong: bool = False) -> tuple[Output, Net]:
    torch.manual_seed(0)
    net, objective = Net(), Seen()
    batch = Batch(views, torch.zeros(len(views), dtype=torch.long), torch.arange(len(views)), strong=strong)
    DistillationTask(Classification(view_statistics=how), net, objective)(batch, [], Progress())  # type: ignore[arg-type]
    return objective.output, net


# Two images, two views, four pixels. View 0 has mean 2 and variance 1; view 1 has mean 20 and variance 100.
VIEWS = torch.tensor([[[1.0, 3, 1, 3], [10, 30, 10, 30]], [[3, 1, 3, 1], [30, 10, 30, 10]]]).reshape(2, 2, 1, 2, 2)


def test_each_view_by_its_own_statistics() -> None:
    output, net = answered("own", VIEWS)
    signs = torch.tensor([[-1.0, 1, -1, 1]]).reshape(1, 1, 2, 2)
    # Image-major, as the rows of the batch are: both views of an image are the same once normalized.
    expected = torch.cat([signs, signs, -signs, -signs])
    assert torch.allclose(output.preacts[0], expected, atol=1e-3)
    assert torch.allclose(output.maps[0], expected.relu(), atol=1e-3)
    assert output.logits.shape == (4, 2)
    assert output.embedding.shape == (4, 1)
    # Evaluation goes by the upright view: half of 0 and 2; half of 1 and the unbiased variance 8 / 7.
    assert net.norm.running_mean.item() == pytest.approx(1.0)  # type: ignore[union-attr]
    assert net.norm.running_var.item() == pytest.approx(0.5 + 0.5 * 8 / 7)  # type: ignore[union-attr]
    assert net.norm.momentum == 0.5


def test_joint_statistics_mix_the_views() -> None:
    output, net = answered("joint", VIEWS)
    rows = VIEWS.flatten(0, 1)
    expected = (rows - 11) / (rows - 11).square().mean().sqrt()
    assert torch.allclose(output.preacts[0], expected, atol=1e-3)
    assert net.norm.running_mean.item() == pytest.approx(5.5)  # type: ignore[union-attr]


def test_a_strong_view_is_a_pass_of_its_own_and_counts() -> None:
    output, net = answered("joint", VIEWS, strong=True)
    assert torch.equal(output.preacts[0], answered("own", VIEWS)[0].preacts[0])
    # Half of what was there and half of each view, one after the other; the unbiased variances are 8 / 7 and 800 / 7.
    assert net.norm.running_mean.item() == pytest.approx((0 / 2 + 2 / 2) / 2 + 20 / 2)  # type: ignore[union-attr]
    assert net.norm.running_var.item() == pytest.approx((1 + 8 / 7) / 4 + 800 / 7 / 2)  # type: ignore[union-attr]
    assert net.norm.num_batches_tracked == 2


def test_rotations_beside_a_strong_view_stay_together() -> None:
    views = torch.cat([VIEWS, VIEWS[:, :1]], 1)
    output, net = answered("joint", views, strong=True)
    rows = output.preacts[0].unflatten(0, (2, 3))
    assert torch.equal(rows[:, :2].flatten(0, 1), answered("joint", VIEWS)[0].preacts[0])
    assert torch.equal(rows[:, 2], answered("own", VIEWS[:, :1])[0].preacts[0])
    assert net.norm.running_mean.item() == pytest.approx(11 / 4 + 2 / 2)  # type: ignore[union-attr]


def test_one_view_is_the_same_either_way() -> None:
    (one, _), (other, _) = (answered(how, VIEWS[:, :1]) for how in ("joint", "own"))
    assert torch.equal(one.logits, other.logits)


def test_a_run_takes_it(tiny_data: pckd.Data) -> None:
    options: dict[str, Any] = {"student": "resnet8", "teacher": build(BACKBONES, "resnet8", 3), "data": tiny_data}
    options |= {"device": "cpu", "precision": "fp32", "method": "pckd", "epochs": 1, "batch_size": 16}
    joint, own = (pckd.distill(**options, view_statistics=how) for how in ("joint", "own"))
    assert joint.history[0]["category_contrast"] != own.history[0]["category_contrast"]
    assert own.record["arguments"]["view_statistics"] == "own"
    with pytest.raises(UserError, match="view_statistics must be joint or own, not 'each'"):
        pckd.distill(**options, view_statistics="each")

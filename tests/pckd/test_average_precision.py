"""Scores of detections against numbers by hand, whatever the order of images and the number of processes."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, tensor

from pckd.data.annotated import AnnotatedLoader, AnnotatedSplit, Annotation
from pckd.device import Device
from pckd.tasks import average_precision
from pckd.tasks.average_precision import RECALLS, AveragePrecision, DetectionScores, detection_scores
from registry import UserError

pytest.importorskip("pycocotools")

Box = tuple[float, float, float, float]
A, B, FAR = (10, 10, 60, 60), (100, 100, 150, 150), (160, 10, 190, 40)
SMALL, LARGE = (0, 0, 20, 20), (300, 0, 400, 100)


def detected(*rows: tuple[Box, int, float]) -> dict[str, Tensor]:
    boxes = tensor([row[0] for row in rows], dtype=torch.float32).view(-1, 4)
    return {"boxes": boxes, "labels": tensor([row[1] for row in rows]).long(), "scores": tensor([r[2] for r in rows])}


def measured(found: dict[str, Tensor], truth: Annotation, classes: str = "a") -> DetectionScores:
    precision = AveragePrecision(tuple(classes))
    precision.add(0, found, truth.boxes, truth.labels, truth.crowd, truth.area)
    return precision.result()


def test_the_case_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # Found exactly; a miss; and an overlap of exactly 0.6. So all are found up to a threshold of 0.6, half above it.
    found = detected((A, 1, 0.9), (FAR, 1, 0.8), ((100, 100, 150, 130), 1, 0.7))
    precision = AveragePrecision(("a",))
    precision.add(7, found, tensor([A, B]).float(), tensor([1, 1]))
    result = precision.result()
    half, all_found = 51 / 101, (51 + 50 * 2 / 3) / 101
    expected = {"map": 0.3 * all_found + 0.7 * half, "ap50": all_found, "ap75": half, "ar": 0.3 + 0.7 * 0.5}
    # The miss has 900 pixels, so that among objects of middle size it is neither right nor wrong.
    expected["ap_medium"] = 0.3 + 0.7 * half
    assert result.scores == pytest.approx({name: 100 * value for name, value in expected.items()})
    assert [round(result.scores[name], 3) for name in ("ap50", "ap75", "map")] == [83.498, 50.495, 60.396]
    assert result.curves["a"] == pytest.approx(np.where(RECALLS <= 0.5, 100, 200 / 3))
    assert result.by_class == {"a": result.scores["map"]}
    assert result.images == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("found", "truth", "scores", "by_class"),
    [
        pytest.param(
            detected(),
            Annotation.of([A], [1]),
            {"map": 0, "ap50": 0, "ap75": 0, "ap_medium": 0, "ar": 0},
            {"a": 0},
            id="no detections",
        ),
        pytest.param(
            detected((A, 1, 0.9), (B, 2, 0.95), (FAR, 3, 0.99)),
            Annotation.of([A, B], [1, 1]),
            {"map": 5100 / 101, "ap50": 5100 / 101, "ap75": 5100 / 101, "ap_medium": 5100 / 101, "ar": 50},
            {"a": 5100 / 101},
            id="a class without objects, and a label that is none of the classes",
        ),
        pytest.param(
            detected((A, 1, 0.7), ((110, 110, 120, 120), 1, 0.9), ((120, 120, 150, 150), 1, 0.8)),
            Annotation.of([B, A], [1, 1], crowd=tensor([True, False])),
            {"map": 100, "ap50": 100, "ap75": 100, "ap_medium": 100, "ar": 100},
            {"a": 100},
            id="detections in a crowd are not wrong, and it is not missed",
        ),
        pytest.param(
            detected((A, 1, 0.9), (SMALL, 1, 0.8)),
            Annotation.of([A, SMALL, LARGE], [1, 1, 1], area=tensor([1000.0, 400.0, 10000.0])),
            {"map": 6700 / 101, "ap50": 6700 / 101, "ap75": 6700 / 101, "ap_small": 100, "ap_large": 0, "ar": 200 / 3},
            {"a": 6700 / 101},
            id="areas of the objects, not of their boxes",
        ),
    ],
)
def test_cases(
    found: dict[str, Tensor], truth: Annotation, scores: dict[str, float], by_class: dict[str, float]
) -> None:
    result = measured(found, truth, "ab")
    assert result.scores == pytest.approx(scores)
    assert result.by_class == pytest.approx(by_class)
    assert list(result.curves) == list(by_class)


@pytest.mark.parametrize("crowd", [False, True])
def test_nothing_to_find(crowd: bool) -> None:
    truth = Annotation.of([A], [1], crowd=tensor([True])) if crowd else Annotation.of([], [])
    with pytest.raises(UserError, match="none of the 1 images measured has an object to find"):
        measured(detected((A, 1, 0.9)), truth)


def images() -> list[tuple[Any, ...]]:
    """Forty with many equal scores, whose order matters to pycocotools."""
    generator = torch.Generator().manual_seed(0)

    def boxes(count: int) -> Tensor:
        corner = 10 * torch.randint(0, 6, (count, 2), generator=generator).float()
        return torch.cat([corner, corner + 20], 1)

    def labels(count: int) -> Tensor:
        return torch.randint(1, 3, (count,), generator=generator)

    made = []
    for i in range(40):
        scores = torch.randint(1, 4, (8,), generator=generator) / 4
        made.append((i, {"boxes": boxes(8), "labels": labels(8), "scores": scores}, boxes(3), labels(3)))
    return made


def of_images(rows: list[tuple[Any, ...]]) -> AveragePrecision:
    precision = AveragePrecision(("a", "b"))
    for row in rows:
        precision.add(*row)
    return precision


def in_process(rank: int, path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=2)
    # The last image is measured by both.
    result = of_images(images()[rank::2] + images()[-1:]).result()
    torch.save((result.scores, result.by_class, result.images), path / f"{rank}.pt")


def test_neither_the_order_of_images_nor_the_number_of_processes_matters(tmp_path: Path) -> None:
    rows = images()
    expected = of_images(rows).result()
    shuffled = [rows[i] for i in torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()]
    again = of_images(shuffled).result()
    assert (again.scores, again.by_class) == (expected.scores, expected.by_class)
    assert 1 < expected.scores["map"] < 99
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=in_process, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == (expected.scores, expected.by_class, 40)


class Brightest(nn.Module):
    """Detects the box around what is white."""

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        found = []
        for image in images:
            y, x = (image.mean(0) > 0.5).nonzero().unbind(1)
            found.append(detected(((int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1), 1, 0.9)))
        return found


def test_a_network_is_measured_in_pixels_of_the_images_as_read() -> None:
    streamed, annotations = [], []
    for side in (400, 200):
        image = torch.zeros(3, side, 400, dtype=torch.uint8)
        image[:, 40:160, 80:200] = 255
        streamed.append(image)
        annotations.append(Annotation.of([(80, 40, 200, 160)], [1]))
    split = AnnotatedSplit(streamed, tuple(annotations), ("white", "black"), image_size=(100, 100))
    network = Brightest().train()
    result = detection_scores(network, AnnotatedLoader(split, 2, train=False), Device.resolve("cpu", "fp32"))
    assert result.scores == pytest.approx({"map": 100, "ap50": 100, "ap75": 100, "ap_large": 100, "ar": 100})
    assert result.images == 2
    assert network.training


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"^detections are measured by pycocotools: pip install 'pckd\[detection\]'$"):
        average_precision.AveragePrecision(("a",))

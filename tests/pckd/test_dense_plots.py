"""Pictures of detections, of precision and recall, and of segments: what they say, and of what they are drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, tensor

from model_zoo import save_weights
from pckd import plots
from pckd.data.annotated import IGNORED, AnnotatedLoader, AnnotatedSplit, Annotation
from pckd.plots import networks
from pckd.plots.detections import judge, pixels
from pckd.plots.segments import innermost
from pckd.plots.style import class_color, evenly, text_color
from pckd.tasks.detection import Detection
from registry import BACKBONES, DATASETS, Output, UserError

pytest.importorskip("matplotlib")
pytest.importorskip("pycocotools")

CLASSES = ("red", "green", "blue")
IMAGES = 6
OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def blocks(root: str | None = None, train: bool = True) -> AnnotatedSplit:
    """Image i has a red block, and beside it one that is green or blue; the last has none."""
    images = torch.zeros(IMAGES, 3, 32, 32, dtype=torch.uint8)
    masks = torch.zeros(IMAGES, 32, 32, dtype=torch.uint8)
    masks[:, :2] = IGNORED
    annotations = []
    for i in range(IMAGES - 1):
        boxes, labels = [(2, 4 + i, 12, 14 + i), (16, 8, 28, 20)], [1, 2 + i % 2]
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            images[i, label - 1, top:bottom, left:right] = 255
            masks[i, top:bottom, left:right] = label
        annotations.append(Annotation.of(boxes, labels))
    return AnnotatedSplit(images, (*annotations, Annotation.of([], [])), CLASSES, masks, name="blocks")


class Blocks(nn.Module):
    """Finds the blocks of each color, as far as its weights do not move them or take their color away."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, num_classes + 1)
        self.move, self.sees = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(num_classes))

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for image in images * self.sees[:, None, None]:
            boxes, labels, scores = [], [], []
            for label, channel in enumerate(image, 1):
                if (channel > 0.5).any():
                    y, x = (channel > 0.5).nonzero().unbind(1)
                    move = float(self.move) if label == 1 else 0.0
                    boxes.append([x.min() + move, y.min(), x.max() + 1 + move, y.max() + 1])
                    labels.append(label)
                    scores.append(1 - 0.15 * label)
            found.append({"boxes": tensor(boxes).view(-1, 4), "labels": tensor(labels), "scores": tensor(scores)})
        return found

    def forward(self, images: Tensor) -> Output:
        logits = nn.functional.avg_pool2d(images * self.sees[:, None, None], 2)
        logits = torch.cat([torch.full_like(logits[:, :1], 0.4), logits], 1)
        return Output(logits, logits, (images, logits))


@pytest.fixture
def run(registries: None, write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a run whose student moves red blocks and sees no blue ones, and whose teacher is right."""
    BACKBONES.register("blocks")(Blocks)
    for task in ("detection", "segmentation"):
        DATASETS.register(f"{task}_blocks", task=task)(blocks)

    def write(task: str = "detection", teacher: str | None = "blocks") -> Path:
        weights = save_weights(Blocks(3), tmp_path / "teacher.pth")
        arguments = {"data": f"{task}_blocks", "teacher_weights": str(weights)}
        folder = write_run("run", arguments=arguments, student="blocks", teacher=teacher, task=task, metric="map")
        student = Blocks(3)
        with torch.no_grad():
            student.move += 8
            student.sees[2] = 0
        save_weights(student, folder / "model_final.pth")
        return folder

    return write


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_judging_by_hand() -> None:
    boxes = tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    found = {
        # Of the first object: half of it, then all of it; its class is another one's; below the score.
        "boxes": tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [40, 40, 50, 50]]),
        "labels": tensor([1, 1, 2, 1]),
        "scores": tensor([0.8, 0.9, 0.7, 0.4]),
    }
    judged = judge(found, boxes, tensor([1, 1, 1]), 0.5)
    assert judged.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert judged.right.tolist() == [True, False, False]
    assert judged.missed.tolist() == [False, True, True]
    nothing = judge(found, boxes[:0], tensor([]).long(), 0.3)
    assert (nothing.right.tolist(), nothing.missed.tolist()) == ([False] * 4, [])


@pytest.mark.parametrize("taught", [True, False])
def test_detections_are_shown_beside_the_truth(taught: bool, run: Callable[..., Path]) -> None:
    picture = plots.draw("detections", [run(teacher="blocks" if taught else None)], **OPTIONS)
    axes = np.array(picture.figure.axes).reshape(2 + taught, 4)
    # Of the five images with objects the first, the last, and two between.
    assert [texts(one) for one in axes[0]] == [["red", other] for other in ("green", "blue", "blue", "green")]
    assert [texts(one) for one in axes[1]] == [["green 70", "red 85"], ["red 85"], ["red 85"], ["green 70", "red 85"]]
    # First what was missed: the red block is moved too far, and the blue one is not seen.
    lines = [[patch.get_linestyle() for patch in one.patches] for one in axes[1]]
    assert lines[:2] == [[":", "-", "--"], [":", ":", "--"]]
    assert [patch.get_xy() for patch in axes[1, 0].patches] == [(1.5, 3.5), (15.5, 7.5), (9.5, 3.5)]
    titles = [one.get_ylabel() for one in axes[:, 0]]
    assert titles[:2] == ["truth:\n8 objects", "blocks, kd:\n2 of 8 found, 4 wrong"]
    if taught:
        assert titles[2] == "teacher blocks:\n8 of 8 found, 0 wrong"
        assert texts(axes[2, 1]) == ["blue 55", "red 85"]
    assert ["has no teacher" in note for note in picture.notes] == [True] * (not taught)


def test_detections_with_a_score(run: Callable[..., Path]) -> None:
    figure = plots.draw("detections", [run()], score=0.8, **OPTIONS).figure
    assert {text for one in figure.axes[4:] for text in texts(one)} == {"red 85"}
    assert figure.get_suptitle().startswith("Detections of 80 % and more in 4 unseen images; solid: right, ")


def test_precision_and_recall_class_by_class(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run()
    picture = plots.draw("precision_recall", [folder], **OPTIONS)
    student, teacher = picture.figure.axes
    assert student.get_title("left") == "blocks, kd: AP50 33.3, mAP 33.3"
    assert teacher.get_title("left") == "teacher blocks: AP50 100.0, mAP 100.0"
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == [*CLASSES, "mean of all classes"]
    assert [line.get_ydata()[-1] for line in student.lines] == pytest.approx([0, 100, 0, 100 / 3])
    assert picture.notes == []
    fewer = plots.draw("precision_recall", [folder], images=4, **OPTIONS)
    assert fewer.notes == ["measured on 4 of 6 images (--images)"]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="are measured by pycocotools"):
        plots.draw("precision_recall", [folder], **OPTIONS)


def test_segments_are_painted_over_gray_images(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # The loader is that of detection.
    monkeypatch.setattr(networks, "make_task", lambda *_: Detection())
    figure = plots.draw("segments", [run("segmentation")], **OPTIONS).figure
    axes = np.array(figure.axes).reshape(4, 4)
    # The student misses the 144 blue pixels, so that the mean is of 3108 / 3252, 1, 1 and 0.
    titles = ["image", "truth", "blocks, kd:\nmIoU here 74", "teacher blocks:\nmIoU here 100"]
    assert [one.get_ylabel() for one in axes[:, 0]] == titles
    for row, other in ((1, ["blue"]), (2, []), (3, ["blue"])):
        assert [texts(one) for one in axes[row]] == [["red", "green"], ["red", "green"], ["red", *other], []]
    painted = axes[1, 0].get_images()[0].get_array().data
    assert painted[0, 0] == pytest.approx([0, 0, 0])
    assert painted[31, 31] == pytest.approx([0.25] * 3)
    assert painted[5, 5] == pytest.approx(0.25 * (0.25 + 0.5 / 3) + 0.75 * np.array(class_color(0)))
    assert axes[0, 0].get_images()[0].get_array().data[5, 5] == pytest.approx([1, 0, 0])


def test_centers_of_a_detector_have_the_background_first(run: Callable[..., Path]) -> None:
    axes = plots.draw("centers", [run()]).figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["background", *CLASSES]


def test_kinds_of_another_task(run: Callable[..., Path], write_run: Callable[..., Path]) -> None:
    classified = write_run("classified", classes=4)
    for kind, task in (("detections", "detection"), ("precision_recall", "detection"), ("segments", "segmentation")):
        with pytest.raises(UserError, match=f"{kind} is of the task {task}, and .*classified a run of classification"):
            plots.draw(kind, [classified])
    with pytest.raises(UserError, match="one point an image, and in the task detection"):
        plots.draw("embedding", [run()])


def test_padding_is_not_shown() -> None:
    split = AnnotatedSplit(
        [torch.zeros(3, 40, 80, dtype=torch.uint8)], (Annotation.of([], []),), CLASSES, None, (32, 32)
    )
    batch = next(iter(AnnotatedLoader(split, 1, train=False).epoch(1)))
    assert [image.shape for image in pixels(split, batch)] == [(16, 32, 3)]


def test_the_innermost_pixel_of_the_thickest_part() -> None:
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[0, :], mask[3:8, 6:11] = True, True
    assert divmod(innermost(mask), 12) == (5, 8)
    assert divmod(innermost(torch.ones(5, 5, dtype=torch.bool)), 5) == (2, 2)


def test_colors_and_positions() -> None:
    assert len({class_color(number) for number in range(30)}) == 30
    assert [text_color(class_color(number)) for number in (0, 6)] == ["white", "black"]
    assert [evenly(9, 3), evenly(2, 3), evenly(1, 3)] == [[0, 4, 8], [0, 1], [0]]

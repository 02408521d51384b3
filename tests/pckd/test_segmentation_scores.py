"""Intersections over unions by hand, and those of a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn, tensor

from pckd.data.annotated import IGNORED, AnnotatedLoader, AnnotatedSplit
from pckd.device import Device
from pckd.tasks.segmentation_scores import Confusion, pixel_classes, segmentation_scores
from registry import Output, UserError


def test_by_hand() -> None:
    counted = Confusion(("a", "b", "never"), torch.device("cpu"))
    counted.add(tensor([[[0, 1, 1], [1, 0, 2]]]), tensor([[[0, 0, 1], [1, 2, -1]]]))
    assert counted.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    result = counted.result()
    # The answer "b" stands where the truth is not known.
    assert result.by_class == pytest.approx({"background": 100 / 3, "a": 200 / 3, "b": 0})
    assert result.scores == pytest.approx({"miou": 100 / 3, "pixel_accuracy": 60})
    counted.add(tensor([3]), tensor([0]))
    assert counted.result().by_class["never"] == 0


def test_nothing_to_measure() -> None:
    counted = Confusion(("a",), torch.device("cpu"), "mine")
    counted.add(tensor([[0, 1]]), tensor([[-1, -1]]))
    with pytest.raises(UserError, match="mine: none of its pixels has a class"):
        counted.result()


def test_logits_are_interpolated_before_they_are_compared() -> None:
    # The second class has 0, 0.75, 2.25, 3.
    logits = tensor([[[[0.5, 0.5]], [[0.0, 3.0]]]]).bfloat16()
    assert pixel_classes(logits, (1, 4)).tolist() == [[[0, 1, 1, 1]]]


class Channels(nn.Module):
    """Takes the brighter of three channels for the class, at half the resolution."""

    def forward(self, images: Tensor) -> Output:
        assert not self.training
        logits = nn.functional.avg_pool2d(images, 2)
        return Output(logits, logits, (images, logits))


def test_a_network_is_measured_on_the_pixels_that_count() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    masks[0, :, 4:], masks[1, 4:], masks[2, :4] = 1, 2, IGNORED
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for k in range(3):
        images[:, k][masks == k] = 200
    # Half of the ignored pixels look like class 2, and so do two rows of the background.
    images[2, 2, :2], images[2, 2, 6:], images[2, 0, 6:] = 250, 250, 0
    split = AnnotatedSplit(images, (), ("a", "b"), masks)
    network = Channels().train()
    result = segmentation_scores(network, AnnotatedLoader(split, 2, train=False), Device.resolve("cpu", "fp32"))
    wrong = 16
    assert result.by_class == pytest.approx(
        {"background": 100 * (96 - wrong) / 96, "a": 100, "b": 100 * 32 / (32 + wrong)}
    )
    assert result.scores["pixel_accuracy"] == pytest.approx(100 * (160 - wrong) / 160)
    assert network.training

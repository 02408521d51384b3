"""Multi-label classification and soft labels: losses and average precision by hand, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pckd
from model_zoo import Preprocessing, set_preprocessing
from pckd.losses.cross_entropy import cross_entropy
from pckd.losses.multilabel import binary_cross_entropy, binary_kd
from pckd.predict import predict
from pckd.tasks.classification import Classification, image_views
from pckd.tasks.multilabel import MultiLabel, average_precision
from registry import BACKBONES, UserError, build

T = torch.tensor


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_losses_by_hand() -> None:
    student = T([[logit(0.8), logit(0.4)], [logit(0.5), 200.0]])
    teacher = T([[logit(0.9), logit(0.4)], [logit(0.25), 200.0]])
    # The label is a class of its own: the targets count in its place.
    expected = [-(math.log(0.8) + math.log(0.6)) / 2, -math.log(0.5) / 2]
    found = binary_cross_entropy(student, T([0, 0]), T([[1.0, 0.0], [0.0, 1.0]]))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert binary_cross_entropy(student, T([0, 1]), None).tolist() == pytest.approx(expected, abs=1e-6)
    divergences = [0.9 * math.log(9 / 8) + 0.1 * math.log(1 / 2), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)]
    assert binary_kd(student, teacher).tolist() == pytest.approx([d / 2 for d in divergences], abs=1e-6)
    assert binary_kd(student * 2, teacher * 2, temperature=2).tolist() == pytest.approx(
        [4 * d / 2 for d in divergences]
    )


def test_cross_entropy_takes_soft_labels_and_weights() -> None:
    logits, soft = T([[0.8, 0.2], [0.5, 0.5]]).log(), T([[0.25, 0.75], [1.0, 0.0]])
    hard = [-math.log(0.2), -math.log(0.5)]
    expected = [-(0.25 * math.log(0.8) + 0.75 * math.log(0.2)), -math.log(0.5)]
    assert cross_entropy(logits, T([1, 0]), None, None).tolist() == pytest.approx(hard)
    assert cross_entropy(logits, T([1, 0]), soft, None).tolist() == pytest.approx(expected)
    weighted = cross_entropy(logits, T([1, 0]), None, T([2.0, 0.5]))
    assert weighted.tolist() == pytest.approx([2 * hard[0], 0.5 * hard[1]])


def test_targets_and_weights_follow_the_views() -> None:
    targets, weights = T([[0.0, 1.0], [1.0, 0.0]]), T([2.0, 0.5])
    instances = image_views(T([1, 0]), T([4, 5]), 3, strong=True, targets=targets, sample_weights=weights)
    assert instances.targets is not None
    assert instances.targets.tolist() == [[0, 1]] * 3 + [[1, 0]] * 3
    upright = instances.select("upright")
    assert upright.targets is not None
    assert upright.sample_weights is not None
    assert (upright.targets.tolist(), upright.sample_weights.tolist()) == (targets.tolist(), [2, 0.5])


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 1, 0, 1], (1 / 2 + 2 / 4) / 2),
        # Equal scores are taken together: at 3 there are two of three.
        ([3, 3, 3, 1], [0, 1, 1, 0], 2 / 3),
        ([1, 1], [0, 1], 1 / 2),
    ],
)
def test_average_precision_by_hand(scores: list[float], targets: list[int], expected: float) -> None:
    assert average_precision(T(scores), T(targets)).item() == pytest.approx(expected)


def several(size: int = 12) -> pckd.Data:
    """Noise with four classes, of which no image shows the last."""
    generator = np.random.default_rng(0)
    targets = np.stack([np.arange(size) % 2, np.arange(size) % 3 == 0, np.arange(size) < 5, np.zeros(size)], 1)
    arrays = generator.integers(0, 256, (size, 8, 8, 3)).astype(np.uint8), targets.astype(int)
    return pckd.Data.of(arrays, arrays, classes="abcd", name="several")


class Sums(torch.nn.Module):
    """Its logits are a constant times the mean of the image, and their signs are given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(1, 4)
        torch.nn.init.constant_(self.fc.bias, 0)
        self.fc.weight.data = T([[1.0], [-1.0], [0.0], [5.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((1, 2, 3))[:, None])  # type: ignore[no-any-return]


def test_mean_average_precision_is_over_the_classes_that_are_shown() -> None:
    data = several()
    scores = pckd.evaluate(Sums(), data, device="cpu")
    mean = ((data.test.images.float() / 255 - 0.5).mean((1, 2, 3))).double()
    assert data.test.targets is not None
    signs = {"a": mean, "b": -mean, "c": 0 * mean}
    expected = {
        name: 100 * float(average_precision(s, data.test.targets[:, k])) for k, (name, s) in enumerate(signs.items())
    }
    assert scores.by_class == pytest.approx(expected)
    assert scores.map == pytest.approx(sum(expected.values()) / 3)
    assert scores.by_class["c"] == pytest.approx(100 * 5 / 12)
    assert MultiLabel().chance(data) == pytest.approx(100 * (6 + 4 + 5 + 0) / 48)


def test_a_step_is_profiled() -> None:
    cost = pckd.profile(student="resnet8", method="vanilla", data=several(), batch_size=4, device="cpu", rounds=1)
    assert "binary_cross_entropy" in str(cost.as_dict()["terms"])


def test_parts_of_the_data_keep_their_targets() -> None:
    data = pckd.load_data(several(), val_fraction=0.25)
    assert data.train.targets is not None
    assert data.test.targets is not None
    assert (len(data.train), len(data.test), data.measured_on) == (9, 3, "val")
    whole = several().train
    assert whole.targets is not None
    for split in (data.train, data.test, pckd.load_data(several(), limit_train=5).train):
        assert split.targets is not None
        for image, targets in zip(split.images, split.targets, strict=True):
            (position,) = (whole.images == image).all((1, 2, 3)).nonzero()[:, 0].tolist()
            assert targets.equal(whole.targets[position])


ONE_LABEL = "this needs one label an image"
SOFTMAX = "takes the logits for one distribution over the classes, .* show several; use multilabel_kd"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "kd"}, f"kd {SOFTMAX}"),
        ({"method": "rkd+dist"}, f"dist_inter {SOFTMAX}"),
        ({"method": "crd"}, f"loss 'crd': {ONE_LABEL}"),
        ({"method": "pckd(delta=0)"}, f"difficulty metric 'cross_entropy': {ONE_LABEL}"),
        ({"method": "pckd(delta=0)", "difficulty": "entropy"}, f"loss 'category_contrast': {ONE_LABEL}"),
        ({"method": "at", "centers": "ema"}, f"center rule 'RunningMeanCenters': {ONE_LABEL}"),
        ({"method": "at", "balance": "sampler"}, "balance=sampler needs one label an image"),
        ({"method": "at", "report_difficulty": True}, "report_difficulty needs one label an image"),
        ({"method": "at", "task": "classification"}, "its images have no one label each; use task='multilabel'"),
        (
            {"method": "at", "data": "shapes(image_size=8, train_size=20, test_size=20)", "task": "multilabel"},
            "has one label",
        ),
    ],
    ids=str,
)
def test_what_needs_one_label_an_image_is_refused_by_its_name(options: dict[str, Any], said: str) -> None:
    teacher = build(BACKBONES, "resnet8", 10 if "data" in options else 4)
    with pytest.raises(UserError, match=said) as error:
        pckd.distill(student="resnet8", teacher=teacher, **{"data": several(), "epochs": 1, "display": None, **options})
    assert "\n" not in str(error.value)


def test_a_strong_view_needs_bytes_in_one_or_three_channels() -> None:
    images = np.zeros((4, 8, 8, 4), np.uint16)
    data = pckd.Data.of((images, [0, 1, 1, 0]), (images, [0, 1, 1, 0]))
    with pytest.raises(
        UserError, match=r"made of uint8 images with 1 or 3 channels, and those of .* are uint16 with 4"
    ):
        pckd.distill(student="resnet8", teacher="resnet20", method="mld", data=data, display=None)


def test_a_prediction_is_a_probability_for_each_class(tmp_path: Path) -> None:
    from PIL import Image

    network, file = Sums(), tmp_path / "white.png"
    Image.new("RGB", (8, 8), (255, 255, 255)).save(file)
    set_preprocessing(network, Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8), tuple("abcd")))
    backbone: Any = Classification().make_network(network, several())
    set_preprocessing(backbone, Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8), tuple("abcd")))
    found = list(predict(backbone, [file], top=4, multilabel=True, device="cpu"))
    sigmoid = {name: 1 / (1 + math.exp(-x)) for name, x in {"d": 5.0, "a": 1.0, "c": 0.0, "b": -1.0}.items()}
    assert {one.label: one.value for one in found} == pytest.approx(sigmoid)
    for change, said in (
        ({"mean": (0.5,) * 4}, "takes images with 4 channels"),
        ({"mean": (128.0,) * 3}, "not scaled"),
    ):
        set_preprocessing(backbone, replace(Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8), tuple("abcd")), **change))
        with pytest.raises(UserError, match=said):
            list(predict(backbone, [file]))

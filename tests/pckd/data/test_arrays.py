"""Data from Python: layouts, types, labels and sizes as they are given, what is refused, and a run on each kind."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

import pckd
from pckd.data.arrays import resized
from registry import Absent, UserError

T = torch.tensor
LABELS = np.array([0, 1, 1, 0])
RAMP = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)


class Pairs(Dataset):
    """Items (image, label); ``noisy`` ones are other each time."""

    def __init__(self, images: Any, labels: Any = LABELS, noisy: bool = False, **attributes: Any) -> None:
        self.images, self.own, self.noisy, self.reads = images, labels, noisy, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        image = self.images[i]
        if self.noisy:
            image = image + torch.randint(0, 9, image.shape).numpy().astype(image.dtype)
        return image, self.own[i]


def of(train: Any, test: Any = None, **options: Any) -> Any:
    return pckd.Data.of(train, train if test is None else test, **options)


@pytest.mark.parametrize(
    ("images", "shape", "pixel"),
    [
        # The pixel at row 1, column 2 of the last channel of image 1.
        (RAMP, (3, 6, 5), RAMP[1, 1, 2, 2]),
        (RAMP.transpose(0, 3, 1, 2), (3, 6, 5), RAMP[1, 1, 2, 2]),
        (T(RAMP), (3, 6, 5), RAMP[1, 1, 2, 2]),
        (RAMP[..., 0], (1, 6, 5), RAMP[1, 1, 2, 0]),
        (np.zeros((4, 12, 8, 8), np.float64), (8, 12, 8), 0),
        (torch.zeros(4, 12, 8, 8), (12, 8, 8), 0),
        (np.zeros((4, 20, 20, 16), ">u2"), (16, 20, 20), 0),
        (RAMP > 7, (3, 6, 5), 255),
    ],
    ids=str,
)
@pytest.mark.parametrize("items", [False, True], ids=["arrays", "items"])
def test_images_in_every_layout(images: Any, shape: tuple[int, ...], pixel: float, items: bool) -> None:
    split = of(Pairs(images) if items else (images, LABELS)).train
    assert split.images.shape == (4, *shape)
    assert split.images[1, -1, 1, 2] == pixel
    assert split.labels.tolist() == LABELS.tolist()
    assert split.images.dtype in (torch.uint8, torch.uint16, torch.float32)


@pytest.mark.parametrize(
    ("mode", "value", "dtype", "expected"),
    [
        ("RGB", (9, 8, 7), torch.uint8, [9, 8, 7]),
        ("L", 9, torch.uint8, [9]),
        ("RGBA", (9, 8, 7, 6), torch.uint8, [9, 8, 7, 6]),
        ("1", 1, torch.uint8, [255]),
        ("I;16", 40000, torch.uint16, [40000]),
        ("I", 40000, torch.uint16, [40000]),
        ("F", 0.25, torch.float32, [0.25]),
        ("CMYK", (0, 0, 0, 255), torch.uint8, [0, 0, 0]),
    ],
)
def test_pictures_of_pillow(mode: str, value: Any, dtype: torch.dtype, expected: list[float]) -> None:
    split = of(Pairs([Image.new(mode, (8, 6), value)] * 4)).train
    assert split.images.dtype == dtype
    assert split.images[2, :, 5, 7].tolist() == expected
    assert split.images.shape[2:] == (6, 8)


@pytest.mark.parametrize(
    ("given", "labels", "targets", "classes"),
    [
        (T([0, 2, 2, 0]), [0, 2, 2, 0], None, ("0", "1", "2")),
        ([[1], [0], [1], [1]], [1, 0, 1, 1], None, ("0", "1")),
        (["dog", "cat", "dog", "dog"], [1, 0, 1, 1], None, ("cat", "dog")),
        (np.eye(2)[[1, 0, 1, 1]], [1, 0, 1, 1], None, ("0", "1")),
        ([[0.25, 0.75]] * 4, [1] * 4, [[0.25, 0.75]] * 4, ("0", "1")),
        ([[1, 1], [0, 0], [0, 1], [0, 1]], None, [[1, 1], [0, 0], [0, 1], [0, 1]], ("0", "1")),
    ],
    ids=str,
)
def test_labels_of_every_kind(given: Any, labels: Any, targets: Any, classes: tuple[str, ...]) -> None:
    for source in ((RAMP, given), Pairs(RAMP, given)):
        data = of(source)
        assert data.task == ("multilabel" if labels is None else "classification")
        assert data.train.classes == classes
        assert isinstance(data.train.labels, Absent) if labels is None else data.train.labels.tolist() == labels
        assert targets is None if data.train.targets is None else data.train.targets.tolist() == targets


def test_the_test_split_has_the_classes_and_the_kind_of_labels_of_the_training_split() -> None:
    several, one = [[1, 1], [0, 1], [0, 0], [1, 0]], [[0, 1]] * 4
    assert isinstance(of((RAMP, several), (RAMP, one)).test.labels, Absent)
    assert isinstance(of((RAMP, one), multilabel=True).train.labels, Absent)
    names = of(Pairs(RAMP, classes=["a", ("b", "c")]), Subset(Pairs(RAMP, classes=["a", ("b", "c")]), [2, 3]))
    assert (names.test.classes, names.test.labels.tolist()) == (("a", "b, c"), [1, 0])
    assert of((RAMP, ["x", "x", "y", "y"]), (RAMP, ["y"] * 4)).test.labels.tolist() == [1] * 4


def test_mean_and_std_are_those_of_the_training_images_at_scale_1() -> None:
    images = np.zeros((4, 8, 8, 2), np.uint16)
    images[:2, ..., 0], images[..., 1] = 65535, 13107
    data = of((images, LABELS), (images + 9, LABELS))
    assert data.train.mean == data.test.mean == pytest.approx((0.5, 0.2))
    # A channel that never changes has no spread to divide by.
    assert data.train.std == data.test.std == pytest.approx((0.5, 1.0))
    assert of((images, LABELS), mean=(0.1, 0.2), std=(1, 2)).train.std == (1, 2)
    assert data.train.padding == 1
    assert of((images, LABELS), padding=3).train.padding == 3


def test_a_mean_far_from_that_of_the_images_is_said(caplog: pytest.LogCaptureFixture) -> None:
    floats = RAMP.astype(np.float32), LABELS
    of(floats, mean=(128,) * 3, std=(60,) * 3)
    assert not caplog.messages
    of(floats, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert "its images have mean 106 where 1 is 1, and mean=0.5 is given" in caplog.text


def test_a_data_set_that_augments_is_streamed_and_not_cropped_again(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_rng_state()
    random = of(Pairs(RAMP, noisy=True), Pairs(RAMP))
    assert torch.get_rng_state().equal(before)
    assert not isinstance(random.train.images, torch.Tensor)
    assert random.train.padding == 0
    assert isinstance(random.test.images, torch.Tensor)
    assert "each of its 4 items is read for its own" in caplog.text
    # Labels that are listed are taken as they are where the items agree with them.
    listed, wrong = Pairs(RAMP, stream=True, targets=LABELS.tolist()), Pairs(RAMP, targets=[1, 1, 1, 1])
    for source in (listed, wrong):
        split = of(source, stream=True).train
        assert split.labels.tolist() == LABELS.tolist()
        assert split.images[1].equal(T(RAMP[1]).permute(2, 0, 1))
        assert split.padding == 1
    assert listed.reads < wrong.reads


def test_images_of_other_sizes_are_cropped_at_the_center_and_resized() -> None:
    wide = np.full((4, 8, 16, 1), 7, np.uint8)
    wide[:, :, 4:12] = 90
    square = np.full((8, 8, 1), 90, np.uint8)
    data = of(Pairs([wide[0], square, square, np.full((4, 4, 1), 90, np.uint8)]), image_size=8)
    assert data.train.images.shape == (4, 1, 8, 8)
    assert (data.train.images == 90).all()
    assert of((wide, LABELS), image_size=(4, 8)).train.images.shape == (4, 1, 4, 8)
    small = resized(T([[0, 65535], [0, 65535]], dtype=torch.uint16)[None, None], (1, 1))
    assert (small.dtype, small.item()) == (torch.uint16, 32768)


class Endless(IterableDataset):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter(())


GRAY = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("train", "options", "said"),
    [
        (Endless(), {}, "custom train: must be a data set with a length and items"),
        ("cifar10", {}, "not str"),
        ((RAMP, LABELS[:3]), {}, "4 images but 3 labels"),
        ((RAMP.astype(np.int64), LABELS), {}, r"must be uint8 \(0 to 255\), uint16 .* not int64; convert them"),
        ((RAMP.astype("U"), LABELS), {}, "must be uint8, uint16, float32 or float16, not <U3"),
        ((np.full((4, 8, 8), np.nan), LABELS), {}, "values that are not finite"),
        ((np.zeros((4, 20, 20, 20)), LABELS), {}, r"\[20, 20, 20\] have 1 to 16 channels neither first nor last"),
        ((np.zeros((4, 9)), LABELS), {}, r"images must be \[M, C, H, W\]"),
        (Pairs(np.zeros((4, 9))[:, 0]), {}, r"item 0: an image must be \[C, H, W\]"),
        (Pairs([GRAY[0], GRAY[0, 1:]] * 2), {}, r"its shape is \[1, 7, 8\], and another one \[1, 8, 8\]"),
        (Pairs([GRAY[0]] * 3), {}, "custom train: item 3 raised IndexError"),
        ([GRAY[0]] * 4, {}, r"item 0 must be a pair \(image, label\), not ndarray"),
        ([], {}, "the data set is empty"),
        ((GRAY, [0, 1, -1, 0]), {}, "labels run from -1: each must be 0 or above"),
        ((GRAY, [0, 1, 0.5, 0]), {}, r"labels must be whole numbers \[M\]"),
        ((GRAY, [[0.5, 0.2]] * 4), {}, "rows that sum to 1, or 0 and 1"),
        ((GRAY, [[0.5, 0.5]] * 4), {"multilabel": True}, "rows that sum to 1, or 0 and 1"),
        ((GRAY, [[1], [1, 0], [0], [1]]), {}, "some have more than others"),
        ((GRAY, ["a", "b", "c", "a"]), {"classes": "ab"}, "label 'c' is none of the 2 classes"),
        ((GRAY, [0, 1, 2, 0]), {"classes": "ab"}, "labels run from 0 to 2, and there are 2 classes"),
        ((GRAY, [0] * 4), {}, "there is one class only"),
        ((GRAY, LABELS), {"mean": (0.5,)}, "give both mean and std, or neither"),
        ((GRAY, LABELS), {"image_size": 0}, "image_size=0: it must be a number of pixels"),
        (
            (GRAY, LABELS),
            {"test": (GRAY / 255.0, LABELS)},
            "training images are torch.uint8, test images torch.float32",
        ),
        (Pairs(GRAY, classes=("a", "b")), {"test": Pairs(GRAY, classes=("b", "a"))}, "custom test: its classes are"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(train: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        of(train, **options)
    assert "\n" not in str(error.value)


def test_classes_without_an_image_are_named(caplog: pytest.LogCaptureFixture) -> None:
    data = of((GRAY, [0, 1, 1, 3]), (GRAY, [0, 1, 1, 1]), classes=["ant", "bee", "cow", "doe"], name="farm")
    with caplog.at_level(logging.WARNING):
        pckd.load_data(data)
        pckd.load_data(data)
        pckd.load_data(data, limit_test=3)
    assert caplog.messages == [
        "farm: 1 of 4 classes have no training image (cow)",
        "farm: 2 of 4 classes have no test image (cow, doe)",
    ]


def blobs(shape: tuple[int, ...], dtype: Any, size: int = 32, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(size) % classes
    images = generator.random((size, *shape)) / 2 + labels.reshape(-1, *[1] * len(shape)) / (2 * classes)
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    return (images * top).astype(dtype), labels


BYTES, SEVERAL = blobs((12, 12, 3), np.uint8)[0], (np.random.default_rng(1).random((32, 4)) < 0.5).astype(int)


@pytest.mark.parametrize(
    ("data", "method", "metric"),
    [
        (blobs((12, 12, 4), np.uint16), "pckd", "top1"),
        (blobs((1, 8, 16), np.float32), "kd", "top1"),
        (FakeData(32, (3, 12, 12), 3), "kd", "top1"),
        (FakeData(32, (3, 12, 12), 3, transform=ToTensor()), "at", "top1"),
        ((BYTES, np.eye(3)[np.arange(32) % 3] * 0.7 + 0.1), "pckd", "top1"),
        ((BYTES, SEVERAL), "multilabel_kd", "map"),
        ((BYTES, SEVERAL), "vanilla+rkd", "map"),
    ],
    ids=["uint16", "float", "pictures", "tensors", "soft", "several", "several-rkd"],
)
def test_a_student_is_distilled_on(data: Any, method: str, metric: str, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    options: dict[str, Any] = {"batch_size": 16, "lr": 0.01, "compile": False, "device": "cpu", "display": None}
    options |= {"epochs": 1, "teacher_epochs": 1, "precision": "fp32"}
    result = pckd.distill(student="resnet8", teacher="resnet20", data=of(data), method=method, **options)
    assert 0 <= result.record[f"last_{metric}"] <= 100
    assert np.isfinite(result.history[-1]["loss"])
    again = pckd.evaluate(result.student, of(data), device="cpu")
    assert getattr(again, metric) == pytest.approx(result.record[f"last_{metric}"], abs=0.01)


def test_a_pair_of_data_sets_is_data_and_anything_else_is_refused() -> None:
    assert pckd.load_data((Pairs(RAMP), Pairs(RAMP))).train.images.shape == (4, 3, 6, 5)
    half = pckd.load_data(Pairs(RAMP), val_fraction=0.5)
    assert (len(half.train), len(half.test), half.measured_on) == (2, 2, "val")
    for data in ((RAMP, LABELS), Pairs(RAMP), None):
        with pytest.raises(UserError, match=r"data must be a name, .* a pair"):
            pckd.load_data(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.zeros(4, 3), r"targets must be float \[4, 2\], a row an image, not float32 \[4, 3\]"),
        (torch.full((4, 2), 0.4), "each row must sum to 1"),
        (T([[1.5, -0.5]] * 4), "with no entry below 0"),
    ],
)
def test_targets_that_do_not_fit_the_labels_are_refused(targets: torch.Tensor, said: str) -> None:
    split = of((RAMP, LABELS)).train
    with pytest.raises(UserError, match=said):
        pckd.Data(replace(split, targets=targets), split)
    with pytest.raises(UserError, match="targets without labels must be 0 or 1"):
        pckd.Data(replace(split, targets=torch.full((4, 2), 0.5), labels=None), split)

"""A saved student from its file alone: the network, its accuracy, and what it says of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pckd
from model_zoo import Preprocessing, preprocessing_of, read_metadata, save_weights, set_preprocessing
from pckd.predict import Found, predict
from registry import BACKBONES, Output, UserError, build

DATA = "shapes(image_size=16, train_size=40, test_size=40, num_classes=4)"
RECORD = Preprocessing((0.5,) * 3, (0.25,) * 3, (16, 16), ("a", "b"))


def saved(path: Path, name: str | None, record: Preprocessing | None = RECORD, **meta: Any) -> Path:
    """An untrained network's file; ``name`` is that of the network, and what the file says of it."""
    torch.manual_seed(0)
    network = build(BACKBONES, name or "resnet8", 2)
    set_preprocessing(network, record)
    return save_weights(network, path, **({"student": name} if name else {}), **meta)


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_a_run_is_loaded_from_its_file(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 1, "batch_size": 20, "device": "cpu", "precision": "fp32", "display": None}
    record = pckd.load_data(DATA).preprocessing
    network = build(BACKBONES, "resnet14", 4)
    set_preprocessing(network, record)
    options |= {"teacher_weights": save_weights(network, tmp_path / "t.pth"), "output": tmp_path / "run"}
    result = pckd.distill(student="resnet8", teacher="resnet14", method=method, data=DATA, **options)
    file, before = tmp_path / "run" / "model_final.pth", torch.random.get_rng_state()
    network = pckd.load(file)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not network.training
    assert preprocessing_of(network) == record
    assert all(torch.equal(x, result.student.state_dict()[key]) for key, x in network.state_dict().items())
    assert pckd.evaluate(file, DATA).top1 == pckd.evaluate(str(file), DATA).top1 == result.last_top1
    assert read_metadata(file)["task"] == "classification"


def test_a_file_says_its_task(tmp_path: Path) -> None:
    """Scenes are data for detection where nothing else is said."""
    data = "scenes(train_size=2, test_size=2, image_size=32, num_classes=2)"
    record = replace(RECORD, classes=tuple(pckd.load_data(data).train.classes))
    scores = pckd.evaluate(saved(tmp_path / "x.pth", "fcn_r10w16", record, task="segmentation"), data).scores
    assert sorted(scores) == ["miou", "pixel_accuracy"]
    assert pckd.evaluate(saved(tmp_path / "x.pth", "fcn_r10w16", record), data).scores == scores


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_before_and_of_teachers(suffix: str, tmp_path: Path) -> None:
    """They do not say the task, nor do the files of networks that have one."""
    network = build(BACKBONES, "resnet8", 2)
    set_preprocessing(network, RECORD)
    for meta in ({"student": "resnet8", "dataset": "shapes"}, {"teacher": "resnet8", "version": "0.1"}):
        loaded = pckd.load(save_weights(network, tmp_path / f"x.{suffix}", **meta))
        assert torch.equal(loaded.state_dict()["fc.weight"], network.state_dict()["fc.weight"])


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("resnet8", None, "has no record of its classes and preprocessing: build the network and use model_zoo"),
        ("resnet8", replace(RECORD, image_size=(0, 0)), "has no record of its classes and preprocessing: build"),
        (None, RECORD, "has no record of its network: build"),
        (None, None, "has no record of its network and its classes and preprocessing: build"),
    ],
)
def test_files_without_a_record(name: str | None, record: Preprocessing | None, said: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", name, record)
    for function in (pckd.load, lambda file: pckd.evaluate(file, DATA)):
        with pytest.raises(UserError, match=f"^{path}: {said}") as caught:
            function(path)
        assert "\n" not in str(caught.value)


def test_a_network_that_is_not_known_here(tmp_path: Path) -> None:
    network = build(BACKBONES, "resnet8", 2)
    set_preprocessing(network, RECORD)
    path = save_weights(network, tmp_path / "x.pth", student="MyNet")
    with pytest.raises(UserError, match="its network 'MyNet' is not known here: load its plug-in first, or build it"):
        pckd.load(path)
    head = {"method": "simkd", "teacher": "Mine", "centers": "classifier"}
    with pytest.raises(UserError, match=r"y\.pth: the student answers with a loss's head.*unknown name 'Mine'"):
        pckd.load(saved(tmp_path / "y.pth", "resnet8", head=head))


# What a network says


class Colors(nn.Module):
    """Probability of red: a sigmoid of ten times what red has above 0.5."""

    def __init__(self, record: Preprocessing) -> None:
        super().__init__()
        self.classifier = nn.Linear(len(record.mean), 2)
        set_preprocessing(self, record)

    def forward(self, x: torch.Tensor) -> Output:
        self.shown = x
        red = 10 * x[:, 0].mean((1, 2))
        return Output(torch.stack([torch.zeros_like(red), red], 1), x.mean((2, 3)))


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def test_classes_by_hand(tmp_path: Path) -> None:
    """Red of 0.6 is (0.6 - 0.5) / 0.25 = 0.4 for the network, and 4 the logit of the second class."""
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    red = picture(tmp_path / "folder" / "sub" / "red.png", (153, 0, 0))
    blue = picture(tmp_path / "folder" / "blue.png", (0, 0, 255), (32, 20))
    (tmp_path / "folder" / "notes.txt").touch()
    (tmp_path / "broken.png").write_bytes(b"no image")
    network, bad = Colors(RECORD), []
    found = list(predict(network, [tmp_path / "broken.png", tmp_path / "folder", red], device="cpu", bad=bad.append))
    high = 1 / (1 + np.exp(-4))
    assert [one[:3] for one in found if one.image == str(red)] == 2 * [
        (str(red), "b", "probability"),
        (str(red), "a", "probability"),
    ]
    assert [one.value for one in found if one.image == str(red)] == pytest.approx(2 * [high, 1 - high], rel=1e-5)
    assert [one.label for one in found if one.image == str(blue)] == ["a", "b"]
    assert len(found) == 6
    assert len(bad) == 1
    assert bad[0].startswith(f"{tmp_path / 'broken.png'}: not a readable image")
    with pytest.raises(UserError, match="not a readable image"):
        list(predict(network, [tmp_path / "broken.png"]))
    assert len(list(predict(network, [red], top=1))) == 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_images_are_resized_as_in_training(interpolation: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    network = Colors(replace(RECORD, interpolation=interpolation))
    list(predict(network, [tmp_path / "noise.png"], device="cpu"))
    expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling[interpolation.upper()])
    found = (network.shown * 0.25 + 0.5) * 255
    # torch and Pillow round in their own ways.
    assert np.abs(found[0].round().permute(1, 2, 0).numpy() - np.asarray(expected).astype(int)).max() <= 1


def test_gray_networks_see_gray(tmp_path: Path) -> None:
    """Pillow's gray of pure green is 150 of 255."""
    network = Colors(Preprocessing((0.0,), (1.0,), (4, 4), ("a", "b")))
    list(predict(network, [picture(tmp_path / "green.png", (0, 255, 0))], device="cpu"))
    assert network.shown.shape == (1, 1, 4, 4)
    assert network.shown.unique().tolist() == pytest.approx([150 / 255])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sources": []}, "no images are given"),
        ({"top": 0}, "top must be at least 1"),
        ({"score": 1.5}, "score from 0"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        list(predict(Colors(RECORD), **{"sources": [tmp_path], **options}))
    with pytest.raises(UserError, match="no images in this folder"):
        list(predict(Colors(RECORD), [tmp_path]))
    with pytest.raises(UserError, match="has no record"):
        list(predict(build(BACKBONES, "resnet8", 2), [tmp_path]))


def test_objects_in_pixels_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 40 x 20 in a network for 32 x 32 is shown at 0.8, as 32 x 16, with padding below."""
    record = Preprocessing((0.0,) * 3, (1.0,) * 3, (32, 32), ("a", "b"))
    network = pckd.load(saved(tmp_path / "x.pth", "faster_rcnn_r10w16", record, task="detection"))
    answer = {"boxes": torch.tensor([[8.0, 4.0, 24.0, 20.0], [0.0, 0.0, 8.0, 8.0]])}
    answer |= {"labels": torch.tensor([2, 1]), "scores": torch.tensor([0.75, 0.25])}
    monkeypatch.setattr(type(network), "detect", lambda self, images: [answer] * len(images))
    image = str(picture(tmp_path / "x.png", (255, 0, 0), (40, 20)))
    assert list(predict(network, [image], device="cpu")) == [Found(image, "b", "score", 0.75, (10.0, 5.0, 30.0, 20.0))]
    assert len(list(predict(network, [image], score=0.2, device="cpu"))) == 2
    assert list(predict(network, [image], score=0.8, device="cpu")) == [Found(image, "", "score", 0.0)]


def test_shares_of_the_image_without_its_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 x 16 pixels that are the image, a quarter is of the second class, and the padding does not count."""
    record = Preprocessing((0.0,) * 3, (1.0,) * 3, (32, 32), ("a", "b"))
    network = pckd.load(saved(tmp_path / "x.pth", "fcn_r10w16", record, task="segmentation"))
    logits = torch.zeros(1, 3, 32, 32)
    logits[:, 2, :8, :16] = 1
    logits[:, 1, 16:] = 1
    monkeypatch.setattr(type(network), "forward", lambda self, x: Output(x, x, (x, logits)))
    image = str(picture(tmp_path / "x.png", (255, 0, 0), (40, 20)))
    expected = [Found(image, "background", "share", 0.75), Found(image, "b", "share", 0.25)]
    assert list(predict(network, [image], device="cpu")) == expected

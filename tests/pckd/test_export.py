"""A network that other programs run answers as it does here, on any number of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pckd
from model_zoo import Preprocessing, load_weights, preprocessing_of, save_weights, set_preprocessing
from pckd.export import export
from registry import BACKBONES, UserError, build

RECORD = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), (32, 32), ("a", "b", "c"))
PLAIN = Preprocessing((0.0,) * 3, (1.0,) * 3, (32, 32), ("a", "b", "c"))


def network(name: str, record: Preprocessing | None = RECORD) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = build(BACKBONES, name, 3)
    set_preprocessing(made, record)
    return made


def answer(path: Path, images: Tensor) -> tuple[Tensor, Any]:
    """What another program answers, and what it reads of the record."""
    if path.suffix == ".pt2":
        extra = {"preprocessing": ""}
        return torch.export.load(path, extra_files=extra).module()(images), json.loads(extra["preprocessing"])
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    found = session.run(["logits"], {"images": images.numpy()})[0]
    return torch.from_numpy(found), json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("name", "normalize"), [("resnet8", False), ("resnet8", True), ("MobileNetV2", True), ("fcn_r10w16", False)]
)
def test_the_same_answers(name: str, normalize: bool, suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnx")
    record = PLAIN if name == "fcn_r10w16" else RECORD
    made = network(name, record).train()
    path = export(made, tmp_path / f"x.{suffix}", normalize=normalize)
    assert made.training
    pixels = pckd.load_data("shapes(image_size=32, train_size=8, test_size=8)").test.images.float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (record.mean, record.std))
    shown = (pixels - mean) / std
    with torch.no_grad():
        output = made.eval()(shown)
        own = output.logits if record is RECORD else F.interpolate(output.maps[-1], (32, 32), mode="bilinear")
    for count in (1, 2, 8):
        found, said = answer(path, (pixels if normalize else shown)[:count])
        torch.testing.assert_close(found, own[:count], rtol=1e-4, atol=1e-4)
    assert said == json.loads(json.dumps(record.as_metadata()))


def test_weights_of_a_file_keep_what_it_knows(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    made, again = network("resnet8"), network("resnet14")
    file = save_weights(made, tmp_path / "x.pth", student="resnet8", dataset="shapes", task="classification")
    path = export(file, tmp_path / "new.safetensors")
    loaded = pckd.load(path)
    assert preprocessing_of(loaded) == RECORD
    assert torch.equal(loaded.state_dict()["fc.weight"], made.state_dict()["fc.weight"])
    with pytest.raises(UserError, match="fits resnet8"):
        load_weights(again, path)


@pytest.mark.parametrize(
    ("name", "file", "options", "said"),
    [
        ("resnet8", "x.pth", {}, "give a file that ends in .onnx, .pt2, .safetensors"),
        ("resnet8", "x.safetensors", {"normalize": True}, "weights alone cannot normalize"),
        ("faster_rcnn_r10w16", "x.pt2", {}, "detectors are written as .safetensors only"),
    ],
)
def test_refusals(name: str, file: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{file}: {said}"):
        export(network(name), tmp_path / file, **options)
    with pytest.raises(UserError, match=r"has no record|ends in"):
        export(network(name, None), tmp_path / file)


def test_a_network_that_cannot_be_traced_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = network("resnet8")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"x.onnx: writing it needs onnx and onnxscript: pip install 'pckd\[onnx\]'"):
        export(made, tmp_path / "x.onnx")
    monkeypatch.setattr(type(made), "forward", lambda self, x: made.conv1(x).sum().item())
    with pytest.raises(UserError, match=r"x.pt2: ResNet cannot be written in this format: ") as caught:
        export(made, tmp_path / "x.pt2")
    assert "\n" not in str(caught.value)

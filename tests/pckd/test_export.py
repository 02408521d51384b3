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
TASK = "classification"
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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has ended."""
    made = network("resnet8")
    folder = tmp_path / "run"
    file = save_weights(made, folder / "model_final.pth", student="resnet8", dataset="shapes(num_classes=3)", task=TASK)
    arguments = {
        "student": "resnet8",
        "teacher": "resnet20",
        "method": "kd(weight=0.9)",
        "data": "shapes(num_classes=3)",
    }
    arguments |= {
        "epochs": 3,
        "batch_size": 8,
        "flip": False,
        "compile": True,
        "output": "mine",
        "teacher_epochs": None,
    }
    arguments |= {"milestones": [0.625, 0.75, 0.875], "student_weights": "folder/start.pth", "data_root": "/home/me"}
    record = {
        "student": "resnet8",
        "teacher": "resnet20",
        "method": "kd(weight=0.9)",
        "dataset": "shapes(num_classes=3)",
    }
    record |= {"task": TASK, "metric": "top1", "columns": ["top1", "top5"], "last_top1": 61.5, "best_top1": 62.0}
    record |= {"last_top5": 99.0, "teacher_top1": 70.25, "epochs": 3, "lr": 0.05, "seed": 0, "train_images": 48}
    record |= {"precision": "fp32", "measured_on": "val", "terms": {}, "versions": {"pckd": "0.1.0"}}
    (folder / "result.json").write_text(json.dumps({**record, "arguments": arguments}))
    assert file.name == "model_final.pth"
    return folder


def test_a_folder_for_a_model_hub(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = export(run / "model_final.pth", tmp_path / "hub", license="apache-2.0")
    images = torch.randn(2, 3, 32, 32)
    expected = pckd.load(run / "model_final.pth")(images).logits
    for source in (folder, str(folder / "model.safetensors")):
        loaded = pckd.load(source)
        assert torch.equal(loaded(images).logits, expected)
        assert preprocessing_of(loaded) == RECORD
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet8", 3, 64)
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["pretrained_cfg"]["mean"] == [0.4, 0.5, 0.6]
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    assert config["label2id"] == {"a": 0, "b": 1, "c": 2}
    text = (folder / "README.md").read_text()
    for figure in ("61.50 %", "70.25 %", "| 99.00 % |", "| val |", "distilled from resnet20", "77,587 parameters"):
        assert figure in text
    (command,) = [line for line in text.splitlines() if line.startswith("pckd-train ")]
    words = (
        "pckd-train --student resnet8 --teacher resnet20 --method 'kd(weight=0.9)' --dataset 'shapes(num_classes=3)'"
    )
    words += " --epochs 3 --batch-size 8 --no-flip --teacher-epochs 3 --student-weights start.pth --lr 0.05"
    assert command == words
    assert "/home/me" not in text
    with pytest.raises(
        UserError, match=r"hub: already holds model\.safetensors, config\.json, README\.md; give another"
    ):
        export(run / "model_final.pth", folder)
    card = pytest.importorskip("huggingface_hub").ModelCard.load(folder / "README.md").data
    assert (card.license, card.pipeline_tag, card.model_name) == ("apache-2.0", "image-classification", "resnet8")
    assert card.tags == ["image-classification", "knowledge-distillation", "pytorch", "pckd"]
    (result,) = card.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("accuracy", 61.5, "shapes")


def test_the_command_of_a_run_under_several_teachers(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    result = json.loads((run / "result.json").read_text())
    known = {"teacher": ["resnet20", "resnet32"], "teacher_weights": ["/home/me/t.pth", None]}
    known["teacher_classes"] = "/home/me/classes.txt"
    changed = {**result, "teacher": known["teacher"], "arguments": {**result["arguments"], **known}}
    (run / "result.json").write_text(json.dumps(changed))
    text = (export(run / "model_final.pth", tmp_path / "hub") / "README.md").read_text()
    assert "distilled from resnet20 and resnet32 with the method" in text
    assert "--teacher resnet20 --teacher resnet32" in text
    assert "--teacher-weights t.pth --teacher-weights - " in text
    assert "--teacher-classes classes.txt" in text
    assert "--teacher-epochs 3" in text


@pytest.mark.parametrize(
    "change", [{"student": "mine"}, {"data": "my pictures"}, {"milestones": [0.5]}, {"method": ["1.0 * kd"]}], ids=str
)
def test_a_run_of_objects_has_no_command(change: dict[str, Any], run: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "arguments": {**result["arguments"], **change}}))
    text = (export(run / "model_final.pth", tmp_path / "hub") / "README.md").read_text()
    assert "started from Python, with objects that have no name" in text
    assert "pckd-train" not in text
    assert 'license: "unknown"' in text


def test_a_folder_without_figures_and_what_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    text = (export(network("fcn_r10w16"), tmp_path / "hub") / "README.md").read_text()
    assert "Figures: none are known." in text
    assert "model-index" not in text
    for options, said in (({"license": "a\nb"}, "the license must be a line"), ({"license": " "}, "must be a line")):
        with pytest.raises(UserError, match=said):
            export(network("resnet8"), tmp_path / "other", **options)
    with pytest.raises(UserError, match="weights alone cannot normalize"):
        export(network("resnet8"), tmp_path / "other", normalize=True)
    with pytest.raises(UserError, match=r"x\.pt2: a license is for a folder"):
        export(network("resnet8"), tmp_path / "x.pt2", license="mit")
    assert not (tmp_path / "other").exists()


def test_timm_builds_its_own_networks_from_a_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224(img_size=32, depth=2)"
    made = network(name).eval()
    folder = export(save_weights(made, tmp_path / "x.pth", student=name), tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for logits in (theirs(images), pckd.load(folder)(images).logits):
        torch.testing.assert_close(logits, made(images).logits)
    assert theirs.pretrained_cfg["mean"] == [0.4, 0.5, 0.6]


def test_a_network_that_cannot_be_traced_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = network("resnet8")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"x.onnx: writing it needs onnx and onnxscript: pip install 'pckd\[onnx\]'"):
        export(made, tmp_path / "x.onnx")
    monkeypatch.setattr(type(made), "forward", lambda self, x: made.conv1(x).sum().item())
    with pytest.raises(UserError, match=r"x.pt2: ResNet cannot be written in this format: ") as caught:
        export(made, tmp_path / "x.pt2")
    assert "\n" not in str(caught.value)

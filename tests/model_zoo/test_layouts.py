"""Checkpoints as the field's programs write them: which weights are taken, what is said, and what is refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_zoo import load_weights, read_metadata
from registry import UserError

State = dict[str, Tensor]


class Net(nn.Module):
    """Smallest with a name that ends like another, a buffer, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1)
        self.features = nn.Sequential(collections.OrderedDict(conv1=nn.Conv2d(2, 2, 1), bn=nn.BatchNorm2d(2)))
        self.fc = nn.Linear(2, 3)


class Holder(nn.Module):
    """As a backbone that holds a network of another library."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Net()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{key}": value for key, value in state.items()}


def other(state: State) -> State:
    """Of a second network of the same shape."""
    return {key: value + 1 for key, value in state.items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
TRAINER = {"epoch": 3, "optimizer": OPTIMIZER, "args": argparse.Namespace(lr=0.1, output=pathlib.Path("runs"))}
ARRAYS = {"np": np.arange(6.0).reshape(2, 3), "rng": np.arange(3, dtype=np.uint32), "when": datetime.date(2024, 1, 1)}

LAYOUTS: dict[str, tuple[Callable[[State], Any], str, str]] = {
    # By program: what it writes, which of its weights is asked for, and what is said.
    "torchvision": (lambda s: {"model": s, "lr_scheduler": {"last_epoch": 1}, **TRAINER}, "", "ignored: lr_scheduler"),
    "torchvision, average": (
        lambda s: {"model": other(s), "model_ema": {**under("module", s), "n_averaged": torch.tensor(9)}},
        "model_ema",
        "weights of model_ema; ignored: model, n_averaged",
    ),
    "torchvision, both": (
        lambda s: {"model_ema": under("module", other(s)), "model": s},
        "",
        "several weights fit; taken: model, else say .*#model_ema",
    ),
    "timm": (
        lambda s: {"arch": "net", "state_dict": s, "metric": 71.0, **TRAINER, "args": types.SimpleNamespace(lr=0.1)},
        "",
        "ignored: arch",
    ),
    "timm, average": (lambda s: {"state_dict": other(s), "state_dict_ema": s}, "state_dict_ema", "ignored: state_dict"),
    "ImageNet example": (lambda s: {"state_dict": under("module", s), "best_acc1": torch.tensor(70.0)}, "", "ignored:"),
    "data parallel features": (
        lambda s: {key.replace("features.", "features.module."): value for key, value in s.items()},
        "",
        "",
    ),
    "Lightning": (
        lambda s: {
            "state_dict": {**under("model", s), "criterion.weight": torch.ones(3), "val_acc.tp": torch.tensor(1)},
            "hyper_parameters": {"root": pathlib.Path("data")},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
        },
        "",
        r"weights of state_dict\.model; ignored: hyper_parameters, callbacks, criterion.weight, val_acc.tp",
    ),
    "Lightning, net": (lambda s: {"state_dict": under("net._orig_mod", s), "loops": {}}, "", "state_dict.net; ignored"),
    "LightningModule of a student and a teacher": (
        lambda s: {"state_dict": {**under("teacher", other(s)), **under("student", s)}},
        "",
        r"several weights fit; taken: state_dict\.student, else say .*#state_dict\.teacher",
    ),
    "the teacher of them": (
        lambda s: {"state_dict": {**under("teacher", s), **under("student", other(s))}},
        "teacher",
        "weights of state_dict.teacher",
    ),
    "Hugging Face bin": (lambda s: under("resnet", s), "", ""),
    "DeiT": (lambda s: {"model": s, "model_ema": other(s), "scaler": {"scale": 1.0}, **TRAINER}, "model", "ignored:"),
    "mmengine": (
        lambda s: {
            "meta": {"cfg": "model = dict()", "dataset_meta": {"classes": ["a", "b", "c"]}},
            "state_dict": {("head." if "fc" in key else "backbone.") + key: value for key, value in s.items()},
            "message_hub": {"log_scalars": np.arange(4.0)},
        },
        "",
        r"weights of state_dict\.backbone; ignored: message_hub",
    ),
    "fairseq": (
        lambda s: {"args": None, "model": under("encoder", s), "extra_state": {"train_iterator": {"epoch": 2}}},
        "",
        r"weights of model\.encoder; ignored: args, extra_state",
    ),
    "RepDistiller": (lambda s: {"epoch": 240, "model": s, "accuracy": torch.tensor([74.6])}, "", "ignored: epoch, acc"),
    "mdistiller": (
        lambda s: {"model": {**under("module.student", s), "module.teacher.x.weight": torch.ones(1)}, "best_acc": 70.0},
        "",
        r"weights of model\.student; ignored: best_acc, module\.teacher\.x\.weight",
    ),
    "torchdistill": (
        lambda s: {"model": s, "best_value": 70.0, "lr_scheduler": {"last_epoch": 9}, **TRAINER},
        "",
        "best_v",
    ),
    "fvcore": (lambda s: {"model_state": s, "iteration": 9}, "", "weights of model_state; ignored: iteration"),
    "thop": (
        lambda s: {**s, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
        "",
        "ignored: total_ops, conv1.total_params",
    ),
    "arrays": (lambda s: {"net": s, **ARRAYS}, "", "weights of net; ignored: np, rng, when"),
    "weights as arrays": (lambda s: {key: value.numpy() for key, value in s.items()}, "", ""),
    "far inside": (lambda s: {"ckpt": {"ema": {"model": under("module.backbone", s)}}}, "", ""),
    "torch's own average": (lambda s: {**under("module", s), "n_averaged": torch.tensor(3)}, "", "ignored: n_averaged"),
}


@pytest.mark.parametrize("holder", [Net, Holder])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, holder: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, wanted, said = LAYOUTS[name]
    source, target, path = Net(), holder(), tmp_path / "x.pth"
    torch.save(made(source.state_dict()), path)
    caplog.set_level("INFO")
    for _ in range(2):
        load_weights(target, f"{path}#{wanted}" if wanted else path)
    own = getattr(target, "network", target).state_dict()
    assert all(torch.equal(own[key], value) for key, value in source.state_dict().items())
    # Once, and in one line.
    assert len(caplog.messages) == len(set(caplog.messages)) <= 2
    assert [text for text in caplog.messages if "\n" in text] == []
    assert re.search(said, "; ".join(caplog.messages)) if said else not caplog.messages


def test_the_student_of_a_file_of_two_and_averages_come_after(tmp_path: Path) -> None:
    """Weights in the order in which they are named, the first of which is taken; each can be asked for."""
    target, state = Net(), Net().state_dict()
    path = tmp_path / "x.pth"
    torch.save({"ema": other(state), "state_dict": {"a.weight": torch.ones(1)}, "teacher": state}, path)
    load_weights(target, path)
    assert torch.equal(target.fc.weight, state["fc.weight"])
    load_weights(target, f"{path.as_uri()}#ema")
    assert torch.equal(target.fc.weight, state["fc.weight"] + 1)
    with pytest.raises(UserError, match=r"x\.pth: holds no weights 'swa'; there are teacher, ema, state_dict\.a$"):
        load_weights(target, f"{path}#swa")
    with pytest.raises(UserError, match=r"don't fit Net; 10 missing"):
        load_weights(target, f"{path}#state_dict")
    # A file may have a # in its own name.
    path.rename(tmp_path / "x#ema")
    load_weights(target, tmp_path / "x#ema")
    assert torch.equal(target.fc.weight, state["fc.weight"])


def test_safetensors_of_a_hub(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, target = Net(), Net()
    save_file(under("model.backbone", source.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    load_weights(target, tmp_path / "model.safetensors")
    assert torch.equal(source.fc.weight, target.fc.weight)
    assert read_metadata(tmp_path / "model.safetensors#model") == {"format": "pt"}


def test_shards_of_a_hub(tmp_path: Path) -> None:
    """Two files, and a third that says which weights lie in which."""
    source, target, path = Net(), Net(), tmp_path / "pytorch_model.bin.index.json"
    names = {key: f"pytorch_model-0000{1 + ('fc' in key)}-of-00002.bin" for key in source.state_dict()}
    for name in set(names.values()):
        torch.save({key: value for key, value in source.state_dict().items() if names[key] == name}, tmp_path / name)
    path.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": names}))
    load_weights(target, path)
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.state_dict().items())
    for content, said in (
        ({"weight_map": {"x": "../x.bin"}}, r"names '\.\./x\.bin', which is no file beside it"),
        ({"weight_map": {"x": "none.bin"}}, "none.bin: no such file"),
        ({"weights": {}}, "not an index of files of weights, or a damaged one"),
        ([], "not an index of files of weights, or a damaged one"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            load_weights(target, path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_folder_of_a_model_hub_stands_for_its_file(file: str, tmp_path: Path) -> None:
    source, target = Net(), Net()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    if file.endswith(".json"):
        (tmp_path / "pytorch_model.bin").rename(tmp_path / "part.bin")
        (tmp_path / file).write_text(json.dumps({"weight_map": dict.fromkeys(source.state_dict(), "part.bin")}))
    load_weights(target, tmp_path)
    assert torch.equal(source.fc.weight, target.fc.weight)


def test_objects_of_libraries_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, library, path = Net(), Net(), types.ModuleType("omegaconf_like"), tmp_path / "x.pth"
    library.Config = type("Config", (), {"__module__": library.__name__})  # type: ignore[attr-defined]
    config = library.Config()  # type: ignore[attr-defined]
    config.lr, config.path = 0.1, pathlib.Path("x")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, library.__name__, library)
        torch.save({"cfg": config, "kind": type(config), "model": source.state_dict()}, path)
    load_weights(target, path)
    assert torch.equal(source.fc.weight, target.fc.weight)
    for content in ({"model": nn.Linear(2, 2)}, {"model": source.state_dict(), "x": subprocess.getoutput}):
        torch.save(content, path)
        with pytest.raises(UserError, match="refused as unsafe"):
            load_weights(target, path)


def test_a_head_that_was_not_saved_is_not_taken_of_the_teacher(tmp_path: Path) -> None:
    state = Net().state_dict()
    without = {key: value for key, value in state.items() if "fc" not in key}
    torch.save({**under("student", without), **under("teacher", state)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"don't fit Net; 2 missing: fc\.weight, fc\.bias$"):
        load_weights(Net(), f"{tmp_path / 'x.pth'}#student")

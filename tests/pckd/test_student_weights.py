"""A student that starts with given weights, as in fine-tuning."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from model_zoo import Preprocessing, save_weights, set_preprocessing
from pckd.comparison.jobs import DEFAULTS, make_jobs, parse_weights, refuse_early, settings_of
from pckd.comparison.runner import finished
from pckd.comparison.variants import method_variants
from pckd.display import Display
from registry import BACKBONES, UserError, build

# So small a rate leaves the weights where they started.
STILL: dict[str, Any] = {"student": "resnet8", "epochs": 1, "batch_size": 16, "lr": 1e-12, "milestones": ()}
STILL |= {"precision": "fp32", "device": "cpu", "compile": False}
OWN = Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), tuple(f"class {k}" for k in range(3)))
HEAD = ["fc.weight", "fc.bias"]


class Notes(Display):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def file_of(path: Path, record: Preprocessing | None = OWN, name: str = "resnet8", classes: int = 3) -> Path:
    torch.manual_seed(7)
    network: nn.Module = build(BACKBONES, name, classes)
    set_preprocessing(network, record)
    return save_weights(network, path)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Without the batch norms' statistics, which move with the images."""
    return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize(
    ("record", "classes", "new", "warned"),
    [
        (OWN, 3, False, False),
        (None, 3, False, False),
        (replace(OWN, classes=("a", "b", "c")), 3, True, False),
        (replace(OWN, classes=OWN.classes[::-1]), 3, True, False),
        (replace(OWN, classes=tuple("abcde"), mean=(0.1,) * 3), 5, True, True),
        (None, 5, True, False),
    ],
    ids=["same classes", "no record", "other names", "another order", "other number", "no record, other number"],
)
@pytest.mark.parametrize("given", ["name", "module"])
def test_all_but_a_last_layer_of_other_classes(
    given: str,
    record: Preprocessing | None,
    classes: int,
    new: bool,
    warned: bool,
    tiny_data: pckd.Data,
    tmp_path: Path,
) -> None:
    path = file_of(tmp_path / "x.pth", record, classes=classes)
    fresh = (
        pckd.train(data=tiny_data, display=None, **STILL).student if given == "name" else build(BACKBONES, "resnet8", 3)
    )
    usual, notes = weights_of(fresh), Notes()
    options = STILL if given == "name" else {**STILL, "student": fresh}
    result = pckd.train(data=tiny_data, student_weights=path, display=notes, **options)
    torch.manual_seed(7)
    theirs = weights_of(build(BACKBONES, "resnet8", classes))
    for name, value in result.student.named_parameters():
        torch.testing.assert_close(value, (usual if new and name in HEAD else theirs)[name], atol=1e-6, rtol=0)
    said = f"student: starts with the weights of {path}"
    layer = ", but for a new last layer (fc.weight, fc.bias): the file's is of other classes"
    assert said + layer * new in notes.said
    assert any("normalized in another way" in note for note in notes.said) == warned
    assert result.record["arguments"]["student_weights"] == str(path)


def test_a_resumed_run_takes_the_same_content_wherever_it_lies(tiny_data: pckd.Data, tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.pth")
    options = {**STILL, "lr": 0.05, "data": tiny_data, "display": None}
    whole = pckd.train(**{**options, "epochs": 2}, student_weights=path)
    pckd.train(**options, student_weights=path, output=tmp_path / "run")
    (tmp_path / "other").mkdir()
    moved = shutil.move(path, tmp_path / "other" / "y.pth")
    again: dict[str, Any] = {**options, "epochs": 2, "output": tmp_path / "run", "resume": True}
    for weights in (None, file_of(path, name="resnet8", record=None)):
        if weights is not None:
            save_weights(build(BACKBONES, "resnet8", 3), path)
        with pytest.raises(
            UserError, match=r"student_weights was .*is None|the file of student_weights has other weights"
        ):
            pckd.train(**again, student_weights=weights)
    resumed = pckd.train(**again, student_weights=moved)
    for name, value in resumed.student.state_dict().items():
        assert value.equal(whole.student.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("resnet14", "kd", r"x\.pth: the keys don't fit ResNet \(the file fits resnet14\)"),
        ("vgg8", "kd", r"x\.pth: the keys don't fit ResNet \(the file fits vgg8\)"),
        (
            "resnet8",
            "pckd_plus",
            "the method lets the student inherit weights of its teacher, and it has those of .*x.pth",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_teacher_is_trained(
    name: str, method: str, said: str, tiny_data: pckd.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    path = file_of(tmp_path / "x.pth", name=name)
    options = {**STILL, "data": tiny_data, "teacher": "resnet8", "student_weights": path, "display": None}
    with pytest.raises(UserError, match=said) as caught:
        pckd.distill(**options, method=method)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    if method == "pckd_plus":
        pckd.distill(**{**options, "teacher": build(BACKBONES, "resnet8", 3)}, method="pckd_plus(inherit='nothing')")


def test_a_benchmark_takes_them(tiny_data: pckd.Data, tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.pth")
    taught = file_of(tmp_path / "t.pth", name="resnet14")
    starts = parse_weights(str(path), ["resnet8"], "student")
    with pytest.raises(UserError, match=r"--student-weights .*: there are several students \(resnet8, vgg8\)"):
        parse_weights(str(path), ["resnet8", "vgg8"], "student")
    settings = {**settings_of({**DEFAULTS, **STILL}), "data": "tiny", "milestones": []}
    del settings["display"]
    pairs = [("resnet14", "resnet8")]
    jobs = make_jobs(pairs, method_variants("kd,pckd_plus"), [0], settings, {"resnet14": str(taught)}, tmp_path, starts)
    refused, _ = refuse_early(jobs, tiny_data)
    assert [label for _, label in refused] == ["pckd_plus"]
    pckd.distill(**{**jobs[0].arguments, "data": tiny_data})
    assert finished(replace(jobs[0], arguments={**jobs[0].arguments, "data": "tiny"}), tiny_data) is not None
    save_weights(build(BACKBONES, "resnet8", 3), path)
    with pytest.raises(UserError, match="the file of student_weights has other weights than before"):
        finished(jobs[0], tiny_data)


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: [state.pop(name) for name in HEAD], None),
        (lambda state: state.pop("fc.bias"), None),
        (lambda state: state.pop("conv1.weight"), r"1 missing: conv1\.weight"),
        (lambda state: state.update(more=torch.zeros(1)), "1 unexpected: more"),
    ],
    ids=["no classifier", "half of one", "no stem", "more"],
)
def test_only_the_classifier_may_be_missing(
    change: Change, said: str | None, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    state = build(BACKBONES, "resnet8", 3).state_dict()
    change(state)
    torch.save(state, tmp_path / "x.pth")
    notes = Notes()
    options = {**STILL, "data": tiny_data, "student_weights": tmp_path / "x.pth", "display": notes}
    if said is None:
        pckd.train(**options)
        assert any("new last layer (fc.weight, fc.bias)" in note for note in notes.said)
    else:
        with pytest.raises(UserError, match=said):
            pckd.train(**options)

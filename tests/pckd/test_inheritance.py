"""What a student takes over from its teacher before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pckd
from model_zoo import probe
from registry import BACKBONES, LOSSES, NotApplicable, Output, Setup, UserError, build

SHAPES = "shapes(num_classes=3, image_size=8, train_size=32, test_size=16)"


def pair(student: str, teacher: str) -> tuple[nn.Module, nn.Module, Setup]:
    torch.manual_seed(0)
    networks = [BACKBONES.get(name)(3) for name in (student, teacher)]
    for network in networks:
        network(torch.randn(4, 3, 32, 32))  # statistics of the batch norms that are not the initial ones
    own, theirs = networks
    return own, theirs, Setup(probe(own, 3, 32), probe(theirs, 3, 32), 10, theirs.classifier)


def started(student: str, teacher: str, inherit: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    own, theirs, setup = pair(student, teacher)
    loss = build(LOSSES, f"direct_alignment(inherit={inherit!r})", setup)
    with torch.no_grad():
        loss.start(own, theirs)
    return own, theirs, loss


@pytest.mark.parametrize(
    ("student", "inherit", "inherited"),
    [
        # resnet8 is resnet20 with one block a stage in place of three.
        ("resnet8", "layers", ""),
        ("resnet8", "centers", "fc."),
        ("resnet8", "nothing", "none"),
        # Another family of the same width.
        ("wrn_16_1", "layers", ("fc.", "conv1.weight")),
    ],
)
def test_what_is_inherited_of_a_teacher_of_the_same_width(
    student: str, inherit: str, inherited: str | tuple[str, ...]
) -> None:
    untouched, *_ = pair(student, "resnet20")
    own, theirs, _ = started(student, "resnet20", inherit)
    for name, value in own.state_dict().items():
        wanted = theirs if name.startswith(inherited) else untouched
        assert value.equal(wanted.state_dict()[name]), name


@pytest.mark.parametrize(
    ("student", "teacher", "average"),
    [
        # What the student's classifier makes of an embedding is what the teacher's makes of the mean of each group.
        ("resnet8x4", "resnet20", lambda embedding: embedding.unflatten(1, (64, 4)).mean(2)),
        ("vgg8", "resnet20", lambda embedding: embedding.unflatten(1, (64, 8)).mean(2)),
        # A narrower student is repeated.
        ("resnet8", "vgg8", lambda embedding: embedding.repeat_interleave(8, dim=1)),
    ],
)
def test_centers_of_another_width_come_through_averages(student: str, teacher: str, average: Any) -> None:
    own, theirs, loss = started(student, teacher, "layers")
    embedding = torch.randn(5, own.classifier.in_features)
    torch.testing.assert_close(own.classifier(embedding), theirs.classifier(average(embedding)))
    torch.testing.assert_close(loss.average(embedding), average(embedding))
    assert not list(loss.parameters())


class Chain(nn.Module):
    """Blocks in a row, as a transformer has them, and a stem and a norm beside them."""

    def __init__(self, blocks: int, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()) for _ in range(blocks))
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> Output:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        embedding = x.mean((2, 3))
        return Output(self.classifier(embedding), embedding)


@pytest.mark.parametrize(
    ("student", "teacher", "blocks", "inherited"),
    [
        (Chain(6), Chain(12), "blocks", [0, 2, 4, 7, 9, 11]),
        (Chain(3), Chain(4), "blocks", [0, 2, 3]),
        (Chain(1), Chain(4), "blocks", [0]),
        (Chain(4), Chain(4), "blocks", [0, 1, 2, 3]),
        (BACKBONES.get("resnet20")(3), BACKBONES.get("resnet56")(3), "layer2", [0, 4, 8]),
        (BACKBONES.get("resnet8")(3), BACKBONES.get("resnet56")(3), "layer3", [0]),
    ],
    ids=["6 of 12", "3 of 4", "1 of 4", "4 of 4", "resnet20 of resnet56", "resnet8 of resnet56"],
)
def test_a_slice_of_the_teachers_blocks(
    student: nn.Module, teacher: nn.Module, blocks: str, inherited: list[int]
) -> None:
    setup = Setup(probe(student, 3, 32), probe(teacher, 3, 32), 10, teacher.classifier)
    loss = build(LOSSES, "direct_alignment(inherit='blocks')", setup)
    loss.check_start(student, teacher)
    with torch.no_grad():
        loss.start(student, teacher)
    own, theirs = student.state_dict(), teacher.state_dict()
    for name, value in own.items():
        part, _, rest = name.removeprefix(f"{blocks}.").partition(".")
        if name.startswith(f"{blocks}."):
            assert value.equal(theirs[f"{blocks}.{inherited[int(part)]}.{rest}"]), name
    others = [name for name in own if not name.startswith(("block", "layer"))]
    assert all(own[name].equal(theirs[name]) for name in others)


@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        ("resnet8x4", "resnet20", r"whose conv1\.weight for the student's conv1\.weight \[32, 3, 3, 3\] is \[16, 3, 3"),
        ("resnet20", "resnet8", r"whose layer1\.1\.conv1\.weight for the student's .* is not there"),
        ("resnet8", "wrn_16_1", r"whose bn1\.weight .* is \[64\]; use inherit='layers', 'centers' or 'nothing'"),
    ],
)
def test_what_is_no_slice_is_refused_before_a_teacher_is_trained(
    student: str, teacher: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"data": SHAPES, "batch_size": 8, "device": "cpu", "epochs": 1, "display": None}
    with pytest.raises(NotApplicable, match=f"the student is no slice of the teacher, {said}"):
        pckd.distill(student=student, teacher=teacher, method="pckd_plus(inherit='blocks')", **options)
    assert not (tmp_path / "cache").exists()


def test_unknown_inheritance_is_refused() -> None:
    _, _, setup = pair("resnet8", "resnet8")
    with pytest.raises(UserError, match="inherit must be one of layers, blocks, centers, nothing, not 'all'"):
        build(LOSSES, "direct_alignment(inherit='all')", setup)


def test_a_run_starts_so_and_a_resumed_one_does_not_start_again(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": SHAPES, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    teacher = pckd.train(student="resnet20", epochs=1, **settings).student
    options = {**settings, "student": "resnet8", "teacher": teacher, "method": "pckd_plus", "milestones": ()}
    # So small a rate leaves the weights where they started.
    still = pckd.distill(**options, epochs=1, lr=1e-12)
    theirs = teacher.state_dict()
    for name, value in still.student.named_parameters():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)
    whole = pckd.distill(**options, epochs=2)
    pckd.distill(**options, epochs=1, output=tmp_path)
    resumed = pckd.distill(**options, epochs=2, output=tmp_path, resume=True)
    for name, value in whole.student.state_dict().items():
        assert value.equal(resumed.student.state_dict()[name]), name

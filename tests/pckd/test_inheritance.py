"""What a student takes over from its teacher before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pckd
from model_zoo import probe
from registry import BACKBONES, LOSSES, Setup, UserError, build

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


def test_layers_of_the_same_name_and_shape_are_the_teachers() -> None:
    own, theirs, _ = started("resnet8", "resnet20", "layers")
    wanted = theirs.state_dict()
    # resnet8 is resnet20 with one block a stage in place of three.
    assert own.state_dict().keys() < wanted.keys()
    for name, value in own.state_dict().items():
        assert value.equal(wanted[name]), name


def test_centers_alone() -> None:
    untouched, _, _ = pair("resnet8", "resnet20")
    own, theirs, _ = started("resnet8", "resnet20", "centers")
    for name, value in own.state_dict().items():
        wanted = theirs if name.startswith("fc.") else untouched
        assert value.equal(wanted.state_dict()[name]), name


def test_nothing() -> None:
    untouched, _, _ = pair("resnet8", "resnet20")
    own, _, _ = started("resnet8", "resnet20", "nothing")
    assert all(value.equal(untouched.state_dict()[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize(("student", "group"), [("resnet8x4", 4), ("vgg8", 8)])
def test_centers_of_another_width_come_through_averages(student: str, group: int) -> None:
    """What the student's classifier makes of an embedding is what the teacher's makes of the mean of each group."""
    own, theirs, loss = started(student, "resnet20", "layers")
    embedding = torch.randn(5, own.classifier.in_features)
    means = embedding.unflatten(1, (64, group)).mean(2)
    torch.testing.assert_close(own.classifier(embedding), theirs.classifier(means))
    torch.testing.assert_close(loss.average(embedding), means)
    assert not list(loss.parameters())


def test_a_narrower_student_is_repeated() -> None:
    own, theirs, loss = started("resnet8", "vgg8", "centers")
    embedding = torch.randn(5, 64)
    repeated = embedding.repeat_interleave(8, dim=1)
    torch.testing.assert_close(own.classifier(embedding), theirs.classifier(repeated))
    torch.testing.assert_close(loss.average(embedding), repeated)


def test_another_family_of_the_same_width_inherits_the_centers() -> None:
    untouched, _, _ = pair("wrn_16_1", "resnet20")
    own, theirs, _ = started("wrn_16_1", "resnet20", "layers")
    for name in ("fc.weight", "fc.bias", "conv1.weight"):
        assert own.state_dict()[name].equal(theirs.state_dict()[name])
    assert own.state_dict()["block1.layer.0.conv1.weight"].equal(untouched.state_dict()["block1.layer.0.conv1.weight"])


def test_unknown_inheritance_is_refused() -> None:
    _, _, setup = pair("resnet8", "resnet8")
    with pytest.raises(UserError, match="inherit must be one of layers, centers, nothing, not 'all'"):
        build(LOSSES, "direct_alignment(inherit='all')", setup)


def test_a_run_starts_so_and_a_resumed_one_does_not_start_again(tmp_path: Path) -> None:
    settings = {"data": SHAPES, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    teacher = pckd.train(student="resnet20", epochs=1, **settings).student  # type: ignore[arg-type]
    options = {
        **settings,
        "student": "resnet8",
        "teacher": teacher,
        "method": "pckd_plus",
        "weight_decay": 0.0,
    }
    # So small a rate leaves the weights where they started.
    still = pckd.distill(**options, epochs=1, lr=1e-12)  # type: ignore[arg-type]
    theirs = teacher.state_dict()
    for name, value in still.student.named_parameters():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)
    whole = pckd.distill(**options, epochs=2, milestones=())  # type: ignore[arg-type]
    pckd.distill(**options, epochs=1, milestones=(), output=tmp_path)  # type: ignore[arg-type]
    resumed = pckd.distill(**options, epochs=2, milestones=(), output=tmp_path, resume=True)  # type: ignore[arg-type]
    for name, value in whole.student.state_dict().items():
        assert value.equal(resumed.student.state_dict()[name]), name

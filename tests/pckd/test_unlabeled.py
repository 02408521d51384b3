"""Distillation on images without labels: what is refused, what is measured, and what the student's file says."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from model_zoo import Preprocessing, preprocessing_of, save_weights, set_preprocessing
from pckd.data import hold_out
from pckd.engine.fingerprint import split_fingerprint
from pckd.predict import predict
from pckd.tasks.unlabeled import nearest, vote
from registry import BACKBONES, Context, DataSplit, NotApplicable, Output, Term, UserError, build

SHORT: dict[str, Any] = {
    "batch_size": 16,
    "epochs": 1,
    "lr": 0.05,
    "device": "cpu",
    "precision": "fp32",
    "display": None,
}
NAMES = ("class 0", "class 1", "class 2")


class Extractor(nn.Module):
    """A teacher that returns an embedding alone: a few means over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


class Small(nn.Module):
    """A loss of the student alone."""

    needs_teacher = False

    def __init__(self, setup: Any) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return student.logits.square().mean(1)


def bare(split: DataSplit) -> DataSplit:
    return dataclasses.replace(split, labels=torch.full_like(split.labels, -1), classes=())


@pytest.fixture
def pictures(tiny_data: pckd.Data) -> pckd.Data:
    """The tiny data without any labels."""
    return pckd.Data(bare(tiny_data.train), bare(tiny_data.test), "pictures")


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(5)
    network: nn.Module = build(BACKBONES, "resnet8", 3)
    set_preprocessing(network, Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), NAMES))
    return network


def distilled(data: pckd.Data, teacher: Any, method: str, **options: Any) -> pckd.Result:
    return pckd.distill(
        **{"student": "resnet8", "teacher": teacher, "method": method, "data": data, **SHORT, **options}
    )


def test_neighbors_vote_by_their_cosine() -> None:
    # Two of class 1 at cosine 0.6 outweigh one of class 0 at cosine 0.64: exp(0.64 / 0.07) < 2 exp(0.6 / 0.07); at 0.7
    # one is as much as exp(0.1 / 0.07) = 4.2 of them.
    def at(cosine: float) -> list[float]:
        return [5 * cosine, 5 * math.sqrt(1 - cosine**2)]

    known = torch.tensor([at(0.64), at(0.6), at(0.6), at(-0.9)])
    labels = torch.tensor([0, 1, 1, 2])
    assert vote(torch.tensor([[3.0, 0.0]]), known, labels, 3).tolist() == [1]
    assert vote(torch.tensor([[3.0, 0.0]]), torch.tensor([at(0.7), *known[1:].tolist()]), labels, 3).tolist() == [0]
    # Only the 20 nearest count: 30 others of another class, at a cosine that 10 more votes of theirs would win by.
    crowd = torch.tensor([at(0.8)] * 20 + [at(0.79)] * 30)
    assert vote(torch.tensor([[1.0, 0.0]]), crowd, torch.tensor([0] * 20 + [1] * 30), 2).tolist() == [0]


def test_nearest_leaves_the_image_itself_out() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0])
    embedding = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [9.0], [2.0], [3.0]])
    assert nearest(embedding, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert nearest(embedding, 10).shape == (4, 3)


def test_student_is_measured_by_its_agreement_with_the_teacher(
    pictures: pckd.Data, teacher: nn.Module, tmp_path: Path
) -> None:
    result = distilled(pictures, teacher, "kd", output=tmp_path / "run")
    pixels = (pictures.test.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        same = result.student(pixels).logits.argmax(1) == teacher.eval()(pixels).logits.argmax(1)
    assert result.last_agreement == pytest.approx(100 * float(same.double().mean()))
    assert (result.metric, result.teacher_agreement, result.task) == ("agreement", None, "unlabeled")
    assert not {"cross_entropy", "top1", "train_top1", "test_loss"} & set(result.history[0])
    record = preprocessing_of(pckd.load(tmp_path / "run" / "model_final.pth"))
    assert record is not None
    assert record.classes == NAMES


def test_several_teachers_are_measured_as_far_as_they_can_be(
    pictures: pckd.Data, tiny_data: pckd.Data, teacher: nn.Module
) -> None:
    sure, unsure = copy.deepcopy(teacher), teacher
    for network, bias in ((sure, [90.0, 0, 0]), (unsure, [0, 1.0, 0])):
        network.fc.weight.data.zero_()  # type: ignore[operator, union-attr]
        network.fc.bias.data = torch.tensor(bias)  # type: ignore[union-attr]
    # The mean of their probabilities is (0.61, 0.29, 0.11), though the last one alone says class 1.
    result = distilled(pictures, [sure, Extractor(), unsure], "kd@3+rkd@2")
    with torch.no_grad():
        answers = result.student((pictures.test.images.float() / 255 - 0.5) / 0.25).logits.argmax(1)
    assert result.last_agreement == pytest.approx(100 * float((answers == 0).double().mean()))
    assert [one["agreement"] for one in result.teachers] == [None] * 3
    test = dataclasses.replace(tiny_data.test, neighbors=tiny_data.train)
    among = distilled(pckd.Data(bare(tiny_data.train), test), [Extractor(), sure], "rkd@1")
    assert among.teacher_knn is None
    assert all(one["knn"] > 0 for one in among.teachers)


def test_untrained_classifier_has_no_classes(
    pictures: pckd.Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = distilled(pictures, Extractor(), "rkd", output=tmp_path / "run", val_fraction=0.5)
    assert result.metric == "mutual_knn"
    held = hold_out(pictures.train, 0.5)[1]
    pixels = (held.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        sets = [nearest(e).tolist() for e in (result.student(pixels).embedding, Extractor()(pixels))]
    shared = [len(set(own) & set(theirs)) / 10 for own, theirs in zip(*sets, strict=True)]
    assert result.last_mutual_knn == pytest.approx(100 * sum(shared) / len(shared))
    network = pckd.load(tmp_path / "run" / "model_final.pth")
    assert "its classifier was never trained" in caplog.text
    for one in (network, result.student):
        record = preprocessing_of(one)
        assert record is not None
        assert record.classes == ()
        with pytest.raises(UserError, match="no record of its classes, as one whose classifier was never trained"):
            list(predict(one, [tmp_path / "any.png"]))


@pytest.mark.parametrize("forced", [False, True])
def test_knn_looks_among_labeled_neighbors(forced: bool, tiny_data: pckd.Data) -> None:
    test = dataclasses.replace(tiny_data.test, neighbors=tiny_data.train)
    # Where labels are hidden that are there, the training images are the neighbors.
    data = tiny_data if forced else pckd.Data(bare(tiny_data.train), test, "mixed")
    result = distilled(data, Extractor(), "rkd", **({"task": "unlabeled"} if forced else {}))
    pixels = [(split.images.float() / 255 - 0.5) / 0.25 for split in (test, tiny_data.train)]
    with torch.no_grad():
        own, theirs = ([network(x) for x in pixels] for network in (lambda x: result.student(x).embedding, Extractor()))
    right = [vote(of_test, known, tiny_data.train.labels, 3) == test.labels for of_test, known in (own, theirs)]
    expected = [100 * float(found.double().mean()) for found in right]
    assert [result.last_knn, result.teacher_knn] == pytest.approx(expected)
    assert result.teacher_knn > 60


def test_labels_of_the_teachers_classes_give_top1(tiny_data: pckd.Data, teacher: nn.Module) -> None:
    mixed = pckd.Data(bare(tiny_data.train), tiny_data.test, "mixed")
    result = distilled(mixed, teacher, "kd")
    assert result.last_top1 == pytest.approx(pckd.evaluate(result.student, tiny_data).top1)
    assert result.last_top5 == 100
    # Names that nobody knows are the test split's.
    set_preprocessing(teacher, None)
    assert distilled(mixed, teacher, "kd").record["preprocessing"]["classes"] == NAMES
    # Other classes are no measure.
    set_preprocessing(teacher, Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), ("x", "y", "z")))
    assert distilled(mixed, teacher, "kd").metric == "agreement"


@pytest.mark.parametrize("known", [True, False])
def test_file_says_how_many_classes_the_teacher_has(
    known: bool, pictures: pckd.Data, teacher: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "teacher.pth"
    if known:
        save_weights(teacher, file)
    else:
        torch.save(teacher.state_dict(), file)
    result = distilled(pictures, "resnet8", "kd", teacher_weights=file, output=tmp_path / "run")
    assert result.record["preprocessing"]["classes"] == (NAMES if known else ("",) * 3)
    student = pckd.load(tmp_path / "run" / "model_final.pth")
    assert student.classifier.out_features == 3  # type: ignore[union-attr]
    picture = tmp_path / "0.png"
    pytest.importorskip("PIL.Image").fromarray(pictures.test.images[0].permute(1, 2, 0).numpy()).save(picture)
    names = {found.label for found in predict(student, [picture])}
    assert names == (set(NAMES) if known else {"class 0", "class 1", "class 2"})


LABELS = "the images have no labels"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("vanilla", {}, r"nothing to learn by cross_entropy alone; use another method, such as kd"),
        ("fsp", {}, "nothing to learn by cross_entropy, fsp alone"),
        ("dkd", {}, f"loss 'dkd': {LABELS}"),
        ("crd", {}, f"loss 'crd': {LABELS}"),
        ("kd", {"scheduler": "preview"}, f"difficulty metric 'cross_entropy': {LABELS}"),
        ("kd", {"centers": "ema"}, f"center rule 'RunningMeanCenters': {LABELS}"),
        ("kd", {"task": "classification"}, "pictures has no labels: leave out the task"),
        ("kd", {"report_difficulty": True}, "report_difficulty asks metrics that look at labels"),
        ("kd", {"balance": "weights"}, "balance=weights looks at labels"),
        ("kd", {"teacher": "resnet8"}, "teacher 'resnet8' cannot be trained first, because no label is looked at"),
        ("kd", {"teacher": Extractor()}, "loss 'kd': the teacher has no classifier"),
    ],
)
def test_what_reads_labels_is_refused_by_name(
    method: str, options: dict[str, Any], message: str, pictures: pckd.Data, teacher: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        distilled(pictures, options.pop("teacher", teacher), method, **options)


def test_teacher_is_not_trained_without_labels(pictures: pckd.Data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be trained first"):
        pckd.train_teacher(teacher="resnet8", data=pictures, cache=tmp_path, display=None)
    with pytest.raises(UserError, match="cannot be trained first"):
        pckd.check(student="resnet8", teacher="resnet8", method="kd", data=pictures, display=None, device="cpu")
    assert not list(tmp_path.iterdir())


def test_run_without_labels_is_checked_resumed_and_cached(
    pictures: pckd.Data, teacher: nn.Module, tmp_path: Path
) -> None:
    pckd.check(student="resnet8", teacher=teacher, method="kd+at", data=pictures, display=None, device="cpu")
    whole = distilled(pictures, teacher, "kd", epochs=2, teacher_cache=tmp_path / "cache")
    first = distilled(pictures, teacher, "kd", epochs=2, teacher_cache=tmp_path / "cache", output=tmp_path / "run")
    again = distilled(
        pictures, teacher, "kd", epochs=3, teacher_cache=tmp_path / "cache", output=tmp_path / "run", resume=True
    )
    assert first.history == whole.history
    assert len(again.history) == 3


def test_splits_that_do_not_fit_together_are_refused(tiny_data: pckd.Data) -> None:
    train, test = tiny_data.train, tiny_data.test
    some = dataclasses.replace(train, labels=train.labels.clone().fill_(0).index_fill(0, torch.tensor([0]), -1))
    with pytest.raises(UserError, match=r"run from -1 to 0, .*where no image has a label, all must be -1"):
        pckd.Data(some, test)
    with pytest.raises(UserError, match="the test split has no labels, and the training split has"):
        pckd.Data(train, bare(test))
    other = dataclasses.replace(train, classes=("a", "b", "c"))
    with pytest.raises(UserError, match="test split and its neighbors differ in classes"):
        pckd.Data(bare(train), dataclasses.replace(test, neighbors=other))
    with pytest.raises(UserError, match="has no labels to measure by"):
        pckd.evaluate(build(BACKBONES, "resnet8", 3), pckd.Data(bare(train), bare(test)))
    with pytest.raises(NotApplicable, match="there is nothing to measure the student by"):
        distilled(pckd.Data(bare(train), bare(test)), None, [Term(Small)])  # type: ignore[arg-type]


def test_fingerprint_knows_the_neighbors(tiny_data: pckd.Data) -> None:
    test = tiny_data.test
    assert "neighbors" not in split_fingerprint(test)
    one, two = (dataclasses.replace(test, neighbors=n) for n in (tiny_data.train, test))
    assert split_fingerprint(one) != split_fingerprint(two)


@pytest.mark.usefixtures("registries")
def test_an_extractor_by_name_with_a_file_of_its_weights(pictures: pckd.Data, tmp_path: Path) -> None:
    """What it returns is its embedding, as of one that is given as a module."""

    @BACKBONES.register("extractor_of_five")
    def extractor_of_five(num_classes: int, *, in_channels: int = 3) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    torch.save(extractor_of_five(0).state_dict(), tmp_path / "x.pth")
    taught: dict[str, Any] = {"teacher": "extractor_of_five", "teacher_weights": tmp_path / "x.pth", "data": pictures}
    result = pckd.distill(student="resnet8", method="rkd", **taught, **SHORT)
    assert "mutual_knn" in result.history[-1]
    with pytest.raises(NotApplicable, match="has no classifier"):
        pckd.distill(student="resnet8", method="kd", **taught, **SHORT)

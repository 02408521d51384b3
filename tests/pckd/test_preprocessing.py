"""A network's record of its preprocessing: where it is written, and that networks are shown images by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pckd
from model_zoo import Preprocessing, load_weights, preprocessing_of, save_weights, set_preprocessing
from pckd.data import make_views
from pckd.device import Device
from pckd.engine.teacher import FrozenTeacher, resized
from pckd.plan import plan
from pckd.tasks.classification import Classification, Scores
from registry import BACKBONES, Output, UserError, build

SMALL: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 1}
CLASSES = ("class 0", "class 1", "class 2")
OWN = Preprocessing((0.5,) * 3, (0.25,) * 3, (8, 8), CLASSES)
"""Of ``tiny_data``."""
THEIRS = Preprocessing((0.2, 0.3, 0.4), (0.5, 0.25, 1.0), (8, 8), CLASSES)


def net(record: Preprocessing | None = None, seed: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = BACKBONES.get("resnet8")(3)
    set_preprocessing(network, record)
    return network.eval()


def normalized(data: pckd.Data, record: Preprocessing) -> pckd.Data:
    train, test = (replace(split, mean=record.mean, std=record.std) for split in (data.train, data.test))
    return replace(data, train=train, test=test)


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def begin(self, *_: object) -> None:
        self.note("training")

    def nothing(self, *_: object) -> None: ...

    advance = epoch = end = nothing


def distill(data: pckd.Data, **options: Any) -> tuple[pckd.Result, list[str]]:
    """A run of one epoch, and its notes."""
    display = Notes()
    return pckd.distill(**{"student": "resnet8", "data": data, "display": display, **SMALL, **options}), display.said


# Where it is written


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_the_student_its_file_and_the_result_have_it(method: str, tiny_data: pckd.Data, tmp_path: Path) -> None:
    """Also where the student answers with the head of a loss."""
    student = net(THEIRS, seed=1)
    result, _ = distill(tiny_data, student=student, teacher=net(), method=method, output=tmp_path)
    assert preprocessing_of(result.student) == preprocessing_of(student) == OWN
    meta = torch.load(tmp_path / "model_final.pth", weights_only=True)["meta"]
    assert Preprocessing.from_metadata(meta) == OWN
    assert Preprocessing.from_metadata(json.loads((tmp_path / "result.json").read_text())) == OWN


def test_a_trained_teacher_has_it_now_and_from_the_cache(tiny_data: pckd.Data, tmp_path: Path) -> None:
    for _ in range(2):
        teacher = pckd.train_teacher(teacher="resnet8", data=tiny_data, cache=tmp_path, **SMALL)
        assert preprocessing_of(teacher) == OWN


def test_both_splits_are_normalized_alike(tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match="the test split is normalized in another way than the training split"):
        pckd.Data(tiny_data.train, replace(tiny_data.test, std=(0.25, 0.25, 0.3)))


# A network is measured by it


def test_a_network_is_measured_with_its_own_normalization(
    tiny_data: pckd.Data, caplog: pytest.LogCaptureFixture
) -> None:
    network = pckd.train(student="resnet8", data=tiny_data, **{**SMALL, "epochs": 8}).student
    own = pckd.evaluate(network, tiny_data)
    assert not caplog.records
    dark = normalized(tiny_data, THEIRS)
    assert pckd.evaluate(network, dark) == own
    assert caplog.messages == [
        "the network: is shown images normalized as in its own training (mean 0.5 0.5 0.5, std 0.25 0.25 0.25), "
        "not as tiny says (mean 0.2 0.3 0.4, std 0.5 0.25 1)"
    ]
    set_preprocessing(network, None)
    assert pckd.evaluate(network, dark).loss != own.loss


def test_the_same_test_pictures_beside_other_training_pictures(tmp_path: Path) -> None:
    """Of small pictures the data set takes mean and std from whatever lies in ``train``."""
    for name, scale, seed in (("a/train", 1.0, 0), ("b/train", 0.1, 2), ("a/test", 1.0, 1), ("b/test", 1.0, 1)):
        random = np.random.default_rng(seed)
        for k in range(2):
            folder = tmp_path / name / f"class {k}"
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(0, 120, (8, 8, 3))
                pixels[..., k] += 100
                Image.fromarray((scale * pixels).astype(np.uint8)).save(folder / f"{i}.png")
    options = {**SMALL, "epochs": 6, "batch_size": 8, "data": "imagefolder", "data_root": str(tmp_path / "a")}
    result = pckd.train(student="resnet8", output=tmp_path / "run", **options)
    again = BACKBONES.get("resnet8")(2)
    load_weights(again, tmp_path / "run" / "model_final.pth")
    found = pckd.evaluate(again, "imagefolder", data_root=str(tmp_path / "b"))
    assert found.top1 == result.last_top1
    assert found.loss == pytest.approx(result.history[-1]["test_loss"])


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (CLASSES[::-1], "the same classes in another order than tiny has: class 0 is 'class 2' there"),
        (("class 0", "dog", "class 2"), "other classes than tiny has: class 1 is 'dog' there and 'class"),
        (CLASSES[:2], "2 classes, and tiny has 3"),
    ],
)
def test_other_classes_are_refused(classes: tuple[str, ...], said: str, tiny_data: pckd.Data, tmp_path: Path) -> None:
    network = net(replace(OWN, classes=classes))
    path = str(save_weights(network, tmp_path / "teacher.pth"))
    calls: dict[str, Callable[[], object]] = {"the network": lambda: pckd.evaluate(network, tiny_data)}
    if set(classes) != set(CLASSES):
        # A teacher's would be matched by their names.
        calls["the teacher"] = lambda: distill(tiny_data, teacher=network)
        calls[path] = lambda: distill(tiny_data, teacher="resnet8", teacher_weights=path)
    for what, call in calls.items():
        with pytest.raises(UserError) as caught:
            call()
        assert str(caught.value).startswith(f"{what}: was trained on {said}")
        assert "\n" not in str(caught.value)


def test_images_are_resized_and_other_channels_refused(tiny_data: pckd.Data, caplog: pytest.LogCaptureFixture) -> None:
    network = net(replace(OWN, image_size=(12, 16), interpolation="bicubic"))
    found = pckd.evaluate(network, tiny_data)
    assert caplog.messages == [
        "the network: is shown images resized to 12x16 pixels (bicubic), as in its own training; those of tiny have 8x8"
    ]
    assert pckd.evaluate(ByHand(net(), OWN, (12, 16)), tiny_data).loss == pytest.approx(found.loss, rel=1e-4)
    with pytest.raises(UserError, match="trained on images with 1 channels, and those of tiny have 3"):
        pckd.evaluate(net(replace(OWN, mean=(0.5,), std=(0.5,))), tiny_data)


# A teacher is shown images by it


@pytest.mark.parametrize("prepared", [False, True])
def test_the_students_batch_is_renormalized_for_the_teacher(prepared: bool, tiny_data: pckd.Data) -> None:
    """Crops too, which are padded with black before they are normalized."""

    def views(record: Preprocessing) -> Tensor:
        options: dict[str, Any] = {
            "mean": record.mean,
            "std": record.std,
            "generator": torch.Generator().manual_seed(0),
        }
        return make_views(tiny_data.train.images[:6], views=2, train=True, **options).flatten(0, 1)

    teacher = FrozenTeacher(net(THEIRS), THEIRS.renormalization(OWN.mean, OWN.std))
    torch.testing.assert_close(teacher.renormalized(views(OWN)), views(THEIRS), rtol=1e-5, atol=1e-5)
    if prepared:
        assert teacher.prepare(views(OWN), Device(torch.device("cpu")))
    expected = net()(views(THEIRS))
    torch.testing.assert_close(teacher(views(OWN)).logits, expected.logits, rtol=1e-4, atol=1e-4)


def by_pillow(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """[N, C, H, W] resized one channel at a time by another library."""

    def resize(channel: Tensor) -> Tensor:
        method = Image.Resampling[interpolation.upper()]
        return torch.tensor(np.array(Image.fromarray(channel.numpy()).resize(size[::-1], method)))

    return torch.stack([resize(channel) for channel in images.flatten(0, 1)]).unflatten(0, images.shape[:2])


class ByHand(nn.Module):
    """The network of a record, on images normalized with 0.5 and 0.25; they are resized where a size is given."""

    def __init__(self, network: nn.Module, record: Preprocessing, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.network, self.classifier, self.size = network, network.classifier, size
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (record.mean, record.std))

    def forward(self, x: Tensor) -> Output:
        x = x if self.size is None else by_pillow(x, self.size, "bicubic")
        output: Output = self.network((x * 0.25 + 0.5 - self.mean) / self.std)
        return output


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(5, 5), (13, 19)])
def test_images_are_resized_as_image_libraries_do_it(size: tuple[int, int], interpolation: str) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = resized(images, size, interpolation)
    torch.testing.assert_close(found, by_pillow(images, size, interpolation), rtol=1e-4, atol=1e-4)
    assert resized(images, (8, 8), interpolation) is images


def test_a_teacher_teaches_at_its_own_size(tiny_data: pckd.Data, tmp_path: Path) -> None:
    """Also by its file, and with its answers kept apart from those at the data's size."""
    record = replace(THEIRS, image_size=(12, 16), interpolation="bicubic")
    options: dict[str, Any] = {"method": "kd", "teacher_cache": tmp_path / "cache"}
    by_hand, _ = distill(tiny_data, teacher=ByHand(net(), record, (12, 16)), **options)
    found, said = distill(tiny_data, teacher=net(record), **options)
    assert [note for note in said if "resized" in note] == [
        "the teacher: is shown images resized to 12x16 pixels (bicubic), as in its own training; those of tiny have 8x8"
    ]
    assert found.history[0]["kd"] == pytest.approx(by_hand.history[0]["kd"], rel=1e-3)
    assert found.teacher_top1 == by_hand.teacher_top1 == pckd.evaluate(net(record), tiny_data).top1
    path = save_weights(net(record), tmp_path / "teacher.pth")
    named, _ = distill(tiny_data, teacher="resnet8", teacher_weights=path, output=tmp_path / "run", **options)
    assert named.history == found.history
    assert named.fingerprints["teacher"]["image_size"] == [12, 16]
    assert "image_size" not in distill(tiny_data, teacher=net(THEIRS), output=tmp_path / "b")[0].fingerprints["teacher"]
    distill(tiny_data, teacher=net(THEIRS), **options)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("method", ["fsp", "kdsvd", "simkd", "reviewkd", "ofd", "fitnet", "at"])
def test_maps_of_a_teacher_of_another_size_are_compared(method: str, tiny_data: pckd.Data) -> None:
    result, _ = distill(tiny_data, teacher=net(replace(OWN, image_size=(20, 28))), method=method)
    assert np.isfinite(result.history[0]["loss"])


def test_a_profile_counts_the_teacher_at_its_own_size() -> None:
    options: dict[str, Any] = {"student": "resnet8", "image_size": 16, "num_classes": 3, "batch_size": 2, "rounds": 0}
    teachers = [net(replace(OWN, image_size=(side, side))) for side in (16, 32)]
    found = [pckd.profile(teacher=teacher, **options) for teacher in teachers]
    linear = 64 * 3
    assert found[1].teacher.macs - linear == 4 * (found[0].teacher.macs - linear)  # type: ignore[union-attr]
    assert found[1].student.macs == found[0].student.macs
    assert found[1].notes == ["ResNet: on images resized to 32x32 pixels"]


class OneSize(nn.Module):
    """Takes images of 12 pixels alone, as a ViT, and says so."""

    image_size = 12

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3 * 12 * 12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(len(x), 432)).relu())


def test_a_network_that_takes_one_size_alone_is_shown_it(
    tiny_data: pckd.Data, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = OneSize()
    result, said = distill(tiny_data, teacher=network, method="kd")
    text = "is shown images resized to 12x12 pixels (bilinear), the only size it takes; those of tiny have 8x8"
    assert [note for note in said if "is shown" in note] == [f"the teacher: {text}"]
    assert result.teacher_top1 == pckd.evaluate(network, tiny_data).top1
    assert caplog.messages == [f"the network: {text}"]
    assert not hasattr(network, "preprocessing")
    # Also inside the module that picks its classes.
    assert distill(tiny_data, teacher=network, method="kd", teacher_classes=[2, 0, 1])[0].teacher_top1 is not None
    # With its normalization, which says nothing of the size; and as one that says nothing.
    record = preprocessing_of(pckd.adapt(network, mean=THEIRS.mean, std=THEIRS.std))
    assert record == Preprocessing(THEIRS.mean, THEIRS.std)
    network.image_size = None  # type: ignore[assignment]
    sized = pckd.adapt(network, image_size=12, interpolation="nearest")
    assert preprocessing_of(sized) == Preprocessing(image_size=(12, 12), interpolation="nearest")
    logits = FrozenTeacher(sized, None, Classification().resizing("", sized, tiny_data.train))(torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(logits.logits, network(torch.ones(2, 3, 12, 12)))
    with pytest.raises(UserError, match="student cannot run on images of 3 x 8 x 8"):
        distill(tiny_data, student=OneSize(), teacher=net())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, replace(OWN, interpolation="bicubic")),
        ({"interpolation": None}, OWN),
        ({"interpolation": "lanczos"}, None),
        ({"mean": (), "std": (), "classes": ()}, Preprocessing(image_size=(8, 8), interpolation="bicubic")),
        ({"mean": ()}, None),
    ],
)
def test_a_files_record(change: dict[str, Any], found: Preprocessing | None) -> None:
    """Files of before do not say how their images were resized."""
    written = {**replace(OWN, interpolation="bicubic").as_metadata(), **change}
    kept = {key: value for key, value in written.items() if value is not None}
    assert Preprocessing.from_metadata({"preprocessing": kept}) == found


# A teacher of more classes, or of others

ANIMALS = ("ant", "class 2", "bee", "class 0", "class 1")


def of_five(record: Preprocessing | None = None) -> nn.Module:
    torch.manual_seed(6)
    network: nn.Module = BACKBONES.get("resnet8")(5)
    set_preprocessing(network, record)
    return network.eval()


@pytest.mark.parametrize(
    ("classes", "rows"),
    [((4, 0, 2), [4, 0, 2]), (("bee", "4", "class 2"), [2, 4, 1]), (None, [3, 4, 1]), (range(3), [0, 1, 2])],
)
def test_the_rows_of_a_teacher_of_more_classes(
    classes: Any, rows: list[int], tiny_data: pckd.Data, tmp_path: Path
) -> None:
    record = replace(OWN, classes=ANIMALS)
    run = plan(
        task=Classification(),
        data=tiny_data,
        student="resnet8",
        teacher=of_five(record),
        method="kd",
        teacher_classes=classes,
    )
    assert isinstance(run.teacher, nn.Module)
    teacher, images, expected = run.freeze([run.teacher], print), torch.randn(4, 3, 8, 8), of_five()
    whole = expected(images)
    for prepared in (False, True):
        torch.testing.assert_close(teacher(images).logits, whole.logits[:, rows], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher(images).embedding, whole.embedding, rtol=1e-4, atol=1e-4)
        assert prepared or teacher.prepare(images, Device(torch.device("cpu")))
    assert torch.equal(teacher.classifier.weight, expected.classifier.weight[rows])
    assert torch.equal(teacher.classifier.bias, expected.classifier.bias[rows])
    # In a run, by its file, with what looks at the rows and what inherits layers.
    path, note = save_weights(of_five(record), tmp_path / "five.pth"), "classes were matched with those of tiny by"
    for method in ("pckd", "pckd_plus", "simkd"):
        results = []
        for taught in ({"teacher": of_five(record)}, {"teacher": "resnet8", "teacher_weights": path}):
            result, said = distill(tiny_data, method=method, teacher_classes=classes, **taught)
            results.append(result)
            assert any(note in text for text in said) == (classes is None)
        assert results[0].history == results[1].history
        assert results[0].teacher_top1 == results[1].teacher_top1


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ([0, 1], "teacher_classes names 2 classes, and tiny has 3; give one for each"),
        ([0, 1, 5], "teacher_classes: the teacher has classes 0 to 4, and not '5'"),
        ([0, 1, -1], "teacher_classes: the teacher has classes 0 to 4, and not '-1'"),
        (["bee", "ant", "anf"], "teacher_classes: the teacher has no class 'anf'; did you mean 'ant'?"),
        (["bee", 0, "ant"], "teacher_classes names 'ant' twice; give one class for each class of tiny"),
    ],
)
def test_classes_that_the_teacher_has_not_are_refused(classes: Any, said: str, tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError) as caught:
        distill(tiny_data, teacher=of_five(replace(OWN, classes=ANIMALS)), method="kd", teacher_classes=classes)
    assert str(caught.value) == said


def test_classes_that_nothing_can_be_picked_from_are_refused(tiny_data: pckd.Data, tmp_path: Path) -> None:
    def refused(said: str, **options: Any) -> None:
        with pytest.raises(UserError) as caught:
            distill(tiny_data, **{"method": "kd", "teacher_classes": ["a", "b", "c"], **options})
        assert said in str(caught.value)

    twice = replace(OWN, classes=("class 1", "class 0", "class 1", "class 2", "bee"))
    refused(
        "2 classes of the teacher are called 'class 1'; give a number", teacher=of_five(twice), teacher_classes=None
    )
    refused("has classes 0 to 4, whose names are not known, and not 'a'", teacher=of_five())
    refused("the teacher has 5 classes, the data set tiny 3: they must be", teacher=of_five(), teacher_classes=None)
    refused("the name resnet8 brings no weights with it; give teacher_weights", teacher="resnet8")
    path = save_weights(of_five(), tmp_path / "five.pth")
    refused("five.pth has classes 0 to 4, whose", teacher="resnet8", teacher_weights=path)
    refused("the file has 5 classes", teacher="resnet8", teacher_weights=path, teacher_classes=None)
    refused("none.txt': No such file or directory", teacher=of_five(), teacher_classes=tmp_path / "none.txt")
    refused("five.pth': not a file of text", teacher=of_five(), teacher_classes=path)
    listed = tmp_path / "classes.txt"
    listed.write_text("4\n\n2\n9\n")
    refused("has classes 0 to 4, whose names are not known, and not '9'", teacher=of_five(), teacher_classes=listed)


def test_a_teacher_teaches_with_its_own_normalization(tiny_data: pckd.Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "pckd", "epochs": 2}
    by_hand, _ = distill(tiny_data, teacher=ByHand(net(), THEIRS), **options)
    found, said = distill(tiny_data, teacher=net(THEIRS), **options)
    assert found.teacher_top1 == pckd.evaluate(net(THEIRS), tiny_data).top1
    assert [note for note in said if "normalized" in note and "warning" not in note] == [
        "the teacher: is shown images normalized as in its own training (mean 0.2 0.3 0.4, std 0.5 0.25 1), "
        "not as tiny says (mean 0.5 0.5 0.5, std 0.25 0.25 0.25)"
    ]
    for one, other in zip(by_hand.history, found.history, strict=True):
        assert other["kd"] == pytest.approx(one["kd"], rel=1e-3)
        assert other["feature_alignment"] == pytest.approx(one["feature_alignment"], rel=1e-3)
    # By its file, and with its answers kept.
    path = save_weights(net(THEIRS), tmp_path / "teacher.pth")
    named, _ = distill(tiny_data, teacher="resnet8", teacher_weights=path, **options)
    assert named.history == found.history
    cache = {"method": "kd", "teacher_cache": tmp_path / "cache"}
    kept = [distill(tiny_data, teacher=teacher, **cache)[0].history[0]["kd"] for teacher in (net(), net(THEIRS))]
    assert kept[0] != pytest.approx(kept[1], rel=1e-2)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(("record", "warned"), [(OWN, False), (THEIRS, True)])
def test_a_student_that_inherits_layers_of_another_normalization_is_warned_of(
    record: Preprocessing, warned: bool, tiny_data: pckd.Data
) -> None:
    _, said = distill(tiny_data, teacher=net(record), method="pckd_plus")
    assert any("layers of the teacher, which were trained on images" in note for note in said) == warned


# A teacher that knows nothing


@pytest.mark.parametrize(
    ("teacher", "warned", "advised"), [(0.0, True, False), (50.0, True, False), (50.1, False, True)]
)
def test_a_teacher_near_chance_is_a_mistake_and_not_one_that_was_trained_too_briefly(
    teacher: float, warned: bool, advised: bool, tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three classes chance is a third, and half is one and a half times as much."""
    found = chain([teacher], repeat(90.0))
    monkeypatch.setattr(Classification, "scores", lambda *_: Scores(next(found), 100.0, 1.0, 30))
    _, said = distill(tiny_data, teacher=net(), method="kd")
    before = said[: said.index("training")]
    expected = "classes may be in another order than the data's, its images may have been normalized in another way, or"
    assert any(expected in note and "chance (33.33 %)" in note for note in before) == warned
    assert any("a better teacher" in note for note in said) == advised


def test_a_backbone_by_name_still_works_where_its_file_has_no_record(tiny_data: pckd.Data, tmp_path: Path) -> None:
    path = save_weights(build(BACKBONES, "resnet8", 3), tmp_path / "teacher.pth")
    _, said = distill(tiny_data, teacher="resnet8", teacher_weights=path)
    assert not any("normalized as in its own" in note for note in said)

"""Detection and segmentation: what their networks answer beside torchvision's own calls, and runs that go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import pckd
from model_zoo import lean, load_weights
from model_zoo.detection import DenseDetector, Detector, Regions, TwoStageDetector
from pckd import objective
from pckd.difficulty.metrics import group_cross_entropy
from pckd.plan import make_task
from registry import (
    BACKBONES,
    LOSSES,
    Absent,
    Centers,
    Context,
    Instances,
    Output,
    Setup,
    Shapes,
    UserError,
    build,
)

DATA = "scenes(train_size=12, test_size=4, image_size=64)"
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = [
    {"boxes": torch.tensor([[4.0, 4, 30, 28], [30, 36, 60, 60]]), "labels": torch.tensor([1, 3])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[10.0, 20, 50, 44]]), "labels": torch.tensor([2])},
]
SEEDS = (5, 6, 7)


def network(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build(BACKBONES, name, 10)


@pytest.mark.parametrize("name", ["faster_rcnn_r10w16", "faster_rcnn_r10w16(norm='group')", "fcos_r10w16"])
def test_a_detector_has_the_losses_and_the_detections_of_torchvisions_own_call(name: str) -> None:
    detector: Detector = network(name)
    regions, output = detector.train().study(IMAGES, TARGETS, SEEDS)
    losses = dict(output.losses)
    if isinstance(detector, TwoStageDetector):
        losses["loss_classifier"] = F.cross_entropy(output.logits, regions.labels)
    theirs = detector.network(list(IMAGES), [dict(target) for target in TARGETS])
    assert set(losses) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(losses[key], value, rtol=0, atol=1e-6)
    # At their own size images are what torchvision's transform makes of them.
    ours = detector.eval().detect(IMAGES)
    detector.network.transform = GeneralizedRCNNTransform(64, 64, [0.5] * 3, [0.25] * 3)
    for found, expected in zip(ours, detector.network(list(IMAGES)), strict=True):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_regions_are_drawn_by_each_images_own_seed() -> None:
    detector = network("faster_rcnn_r10w16(norm='group')").train()
    regions, _ = detector.study(IMAGES, TARGETS, SEEDS)
    alone, _ = detector.study(IMAGES[2:], TARGETS[2:], SEEDS[2:])
    torch.testing.assert_close(regions.where[2], alone.where[0])
    assert torch.equal(regions.labels[regions.image == 2], alone.labels)
    again, _ = detector.study(IMAGES, TARGETS, (5, 6, 8))
    assert not torch.equal(again.where[2], regions.where[2])
    # An image without objects is background.
    assert not regions.labels[regions.image == 1].any()
    # A region shows the object of its image that it overlaps most.
    assert set(regions.match[(regions.image == 0) & (regions.labels == 3)].tolist()) == {1}


def test_a_teacher_answers_about_the_students_proposals_as_its_parts_do() -> None:
    student, teacher = network("faster_rcnn_r10w16").train(), network("faster_rcnn_r18w48", 1).eval()
    regions, _ = student.study(IMAGES, TARGETS, SEEDS)
    output = teacher.answer(IMAGES, regions)
    heads = teacher.network.roi_heads
    features = teacher.network.backbone((IMAGES - 0.5) / 0.25)
    pooled = heads.box_roi_pool(features, [where * 64 for where in regions.where], [(64, 64)] * 3)
    embedding = heads.box_head(pooled)
    torch.testing.assert_close(output.embedding, embedding)
    torch.testing.assert_close(output.logits, heads.box_predictor(embedding)[0])
    torch.testing.assert_close(output.images.maps[1], features["1"])  # type: ignore[union-attr]


def test_a_location_is_what_the_last_convolution_reads_and_background_has_the_logit_0() -> None:
    detector: DenseDetector = network("fcos_r10w16").train()
    regions, output = detector.study(IMAGES, TARGETS, SEEDS)
    torch.testing.assert_close(detector.classifier(output.embedding), output.logits, rtol=1e-4, atol=1e-5)
    assert not output.logits[:, 0].any()
    levels = list(detector.network.backbone((IMAGES - 0.5) / 0.25).values())
    everywhere = detector.network.head.classification_head(levels)[regions.image, torch.cat(regions.where)]
    torch.testing.assert_close(output.logits[:, 1:], everywhere[:, 1:])


def retinanet(seed: int = 0) -> DenseDetector:
    torch.manual_seed(seed)
    anchors = AnchorGenerator(tuple((side,) for side in (16, 32, 64, 128)), ((0.5, 1.0, 2.0),) * 4)
    made = RetinaNet(lean.pyramid((1, 1, 1, 1), 16, 32, "group"), 11, anchor_generator=anchors)
    made.transform = lean.OwnSize(0, 0, **lean.NORMALIZATION)
    return DenseDetector(made, "retinanet")


def shown_whole(detector: DenseDetector) -> tuple[Output, Any, Regions]:
    regions, output = detector.train().study(IMAGES, TARGETS, SEEDS)
    whole = output.rows(None)
    return whole, whole.head, regions


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_a_dense_head_entered_anywhere_answers_as_torchvisions(kind: str, layer: int) -> None:
    detector = network("fcos_r10w16") if kind == "fcos" else retinanet()
    whole, head, regions = shown_whole(detector)
    assert head.channels == (32,) * 5
    features = head.features(whole.maps, layer)
    kept = [m.clone() for branch in features for m in branch]
    logits, boxes = head.predict(features, layer)
    # RetinaNet's own activations work in place.
    assert all(torch.equal(m, before) for m, before in zip((m for b in features for m in b), kept, strict=True))
    own = detector.network.head(list(whole.maps))
    torch.testing.assert_close(logits, own["cls_logits"])
    anchors = detector.network.anchor_generator(detector.network.transform(list(IMAGES))[0], list(whole.maps))
    if kind == "fcos":
        decoded = detector.network.head.box_coder.decode(own["bbox_regression"][0], anchors[0])
    else:
        coder = detector.network.head.regression_head.box_coder
        decoded = coder.decode_single(own["bbox_regression"][0], anchors[0])
    torch.testing.assert_close(boxes[0], decoded)
    # What each location shows is what the rows of it show.
    assert regions.locations is not None
    assert regions.locations.shape == logits.shape[:2]
    assert torch.equal(regions.locations[regions.image, torch.cat(regions.where)], regions.labels)


def crossed(student: DenseDetector, teacher: DenseDetector, layer: int) -> Tensor:
    output, _, regions = shown_whole(student)
    answer = teacher.requires_grad_(False).eval().answer(IMAGES, regions).detach()
    with torch.no_grad():
        shapes = [Shapes.of(net.answer(IMAGES, net.everywhere(IMAGES))).images for net in (student, teacher)]
    loss = build(LOSSES, f"crosskd(layer={layer})", Setup(*shapes))
    instances = Instances(torch.zeros(3), locations=regions.locations)
    values: Tensor = loss(output, answer.rows(None), Context(instances, Centers(torch.zeros(1), torch.zeros(1))))
    return values


@pytest.mark.parametrize("layer", [0, 3])
def test_crosskd_trains_the_students_head_up_to_its_layer(layer: int) -> None:
    student, teacher = network("fcos_r10w16"), network("fcos_r18w48", 1)
    values = crossed(student, teacher, layer)
    assert values.shape == (3,)
    values.mean().backward()
    assert all(p.grad is None for p in teacher.parameters())
    trained = {name for name, p in student.network.head.named_parameters() if p.grad is not None and p.grad.any()}
    convolutions = {int(name.split(".")[2]) // 3 for name in trained}
    assert convolutions == set(range(layer))
    assert {name.partition(".")[0] for name in trained} == (
        {"classification_head", "regression_head"} if layer else set()
    )
    assert student.network.backbone.body.conv1.weight.grad.any()


def test_crosskd_of_a_network_with_itself_is_0() -> None:
    student = network("fcos_r10w16(norm='group')")
    # A box without an area overlaps nothing.
    torch.nn.init.ones_(student.network.head.regression_head.bbox_reg.bias)
    values = crossed(student, copy.deepcopy(student), 3)
    torch.testing.assert_close(values, torch.zeros(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("fcn_r10w16", 64),
        ("torchvision:deeplabv3_mobilenet_v3_large", 256),
        ("torchvision:lraspp_mobilenet_v3_large", 168),
    ],
)
def test_a_segmenter_answers_as_torchvisions_own_call_and_its_last_layer_is_linear(name: str, width: int) -> None:
    segmenter = network(name).eval()
    output, answers = segmenter.study(IMAGES)
    features, logits = output.maps
    assert (features.shape[1], logits.shape[1]) == (width, 11)
    torch.testing.assert_close(
        segmenter.classifier(features.movedim(1, -1)).movedim(-1, 1), logits, rtol=1e-4, atol=1e-4
    )
    own = segmenter.network((IMAGES - segmenter.mean) / segmenter.std)["out"]
    torch.testing.assert_close(F.interpolate(logits, (64, 64), mode="bilinear"), own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(answers["out"], own)


def step(task: Any, data: Any, student: Any, teacher: Any, **loading: Any) -> tuple[Output, Output, Any, Any]:
    loader = task.loader(data.train, 4, train=True, objective=None, device="cpu", **loading)
    batch = next(iter(loader.epoch(1)))

    class Frozen:
        network = teacher

    output, (taught,), instances = task.pair(batch, student, [Frozen()])
    return output, taught, instances, batch


def test_rows_of_detection_name_their_objects_and_are_capped() -> None:
    data = pckd.load_data(DATA)
    task = make_task("detection", data, max_rows=20)
    student, teacher = network("faster_rcnn_r10w16").train(), network("faster_rcnn_r18w48").eval()
    output, taught, instances, batch = step(task, data, student, teacher)
    assert len(output.logits) == len(taught.logits) == len(instances) == len(instances.labels)
    shown = instances.index >= 0
    assert torch.equal(shown, instances.labels > 0)
    # The object is of the row's image, and of the row's class.
    objects = data.train.objects
    assert torch.equal(objects.labels[instances.index[shown]], instances.labels[shown])
    first = data.train.first_object[batch.index[instances.image[shown]]]
    assert bool((instances.index[shown] >= first).all())
    assert torch.equal(instances.group, shown.long())
    assert len(instances.select("all")) == 20
    assert 0 < len(instances.select("foreground")) <= 20
    assert bool((instances.select("foreground").labels > 0).all())
    images = instances.select("images")
    assert len(images) == len(output.rows(None).maps[0]) == 4
    assert torch.equal(images.boxes.labels, torch.cat(batch.labels))
    torch.testing.assert_close(images.boxes.xyxy * 64, torch.cat(batch.boxes))


@pytest.mark.parametrize("balanced", [False, True])
def test_rows_of_segmentation_are_pixels_drawn_by_each_images_seed(balanced: bool) -> None:
    data = pckd.load_data(DATA)
    task = make_task("segmentation", data, pixels=80, balanced=balanced)
    student, teacher = network("fcn_r10w16").train(), network("fcn_r18w48").eval()
    output, taught, instances, batch = step(task, data, student, teacher)
    assert instances.image.bincount().tolist() == [20] * 4
    features, logits = output.rows(None).maps
    place, y, x = task._drawn(batch, features.shape[2:])
    cell = ((y * 16).long(), (x * 16).long())
    torch.testing.assert_close(output.logits, logits[(place.image, slice(None), *cell)])
    torch.testing.assert_close(taught.logits, teacher(batch.images).maps[1][(place.image, slice(None), *cell)])
    centers = batch.masks[place.image, cell[0] * 4 + 2, cell[1] * 4 + 2]
    assert torch.equal(instances.labels, centers)
    share = float((instances.labels == 0).float().mean())
    assert share < 0.6 if balanced else share > 0.6


RUNS = [
    ("detection", "faster_rcnn_r10w16", "faster_rcnn_r18w48", "pckd+mgd"),
    ("detection", "fcos_r10w16", "fcos_r18w48", "crd+crosskd"),
    ("segmentation", "fcn_r10w16", "fcn_r18w48", "pckd+cirkd"),
]


@pytest.mark.parametrize(("task", "student", "teacher", "method"), RUNS)
def test_an_interrupted_run_goes_on_byte_for_byte(
    task: str, student: str, teacher: str, method: str, tmp_path: Path, stop_after: Callable[[int], Any]
) -> None:
    options: dict[str, Any] = {"data": pckd.load_data(DATA), "task": task, "method": method, "batch_size": 4}
    options |= {"epochs": 2, "lr": 0.01, "precision": "fp32", "device": "cpu", "checkpoint_every": 2, "display": None}
    options["teacher"] = network(teacher, 1)
    whole = pckd.distill(student=student, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(student=student, output=tmp_path / "stopped", **{**options, "display": stop_after(5)})
    again = pckd.distill(student=student, output=tmp_path / "stopped", resume=True, **options)
    assert again.history == whole.history
    assert {f"last_{whole.record['metric']}", "teacher_" + whole.record["metric"]} <= set(whole.record)
    for name in ("metrics.jsonl", "model_final.pth"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "simkd"}, "simkd needs the map that the student's classifier reads"),
    ({"method": "sskd"}, "compares 2 or more views"),
    ({"method": "crosskd"}, r"crosskd needs two dense detectors \(FCOS, RetinaNet\)"),
    ({"method": "ld"}, "ld needs two networks whose Output.sides have as many bins, not 0 and 0"),
    ({"method": "layers(student='a', teacher='b')"}, "layers reads layers of networks that classify images"),
    ({"student": "resnet8"}, "the student must be a network for detection, such as faster_rcnn_r10w16"),
    ({"teacher": network("fcos_r18w48")}, "look at other regions"),
    ({"data": "shapes(train_size=64)"}, "no data for detection"),
    ({"teacher_cache": "cache"}, "a teacher cache serves classification"),
    ({"views": 4}, "has no option 'views'"),
    ({"report_difficulty": True}, "serves classification"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {
        "student": "faster_rcnn_r10w16",
        "teacher": network("faster_rcnn_r18w48"),
        "method": "kd",
    }
    options |= {"task": "detection", "data": DATA, "epochs": 1, "batch_size": 4, "display": None, **given}
    with pytest.raises(UserError, match=said) as caught:
        pckd.distill(**options)
    assert "\n" not in str(caught.value)


def test_an_image_takes_the_mean_weight_of_its_rows() -> None:
    # Rows 0 and 2 are of image 0, row 1 of image 2; image 1 has none.
    images = Instances(Absent("none"), torch.tensor([7, 8, 9]), pixels=torch.zeros(3, 2, 2))  # type: ignore[arg-type]
    rows = Instances(torch.tensor([1, 0, 2]), image=torch.tensor([0, 2, 0]), images=images)
    weights = torch.tensor([0.2, 0.5, 0.6])
    found = objective._weights_of(rows.select("images"), weights, rows)
    torch.testing.assert_close(found, torch.tensor([0.4, 1.0, 0.5]))
    assert torch.equal(objective._weights_of(rows.select("all"), weights, rows), weights)


def test_weights_of_another_program_load_without_a_prefix(tmp_path: Path) -> None:
    detector = network("fcos_r10w16", 3)
    torch.save({"model": detector.network.state_dict()}, tmp_path / "theirs.pth")
    loaded = network("fcos_r10w16")
    load_weights(loaded, tmp_path / "theirs.pth")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), detector.parameters(), strict=True))


def test_difficulty_by_group_compares_objects_with_objects() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    labels, group = torch.tensor([1, 0, 0]), torch.tensor([1, 0, 0])
    losses = F.cross_entropy(logits, labels, reduction="none")
    found = group_cross_entropy(logits, labels, group)
    torch.testing.assert_close(found, torch.tensor([1.0, losses[1] / losses[1:].mean(), losses[2] / losses[1:].mean()]))

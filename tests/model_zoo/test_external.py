"""Networks of torchvision and timm behind the same contract."""

from __future__ import annotations

import copy
import pickle
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pckd
from model_zoo import Preprocessing, load_weights, preprocessing_of, probe
from model_zoo.adapting import size_taken
from pckd.plan import make_task, plan
from pckd.terms import describe
from registry import BACKBONES, Output, UserError, build

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")

TORCHVISION: dict[str, tuple[int, int, list[int]]] = {
    # image size, embedding, channels of the maps
    "resnet18": (32, 512, [64, 64, 128, 256, 512]),
    "shufflenet_v2_x0_5": (48, 1024, [24, 24, 48, 96, 1024]),
    "mobilenet_v3_small": (48, 1024, [16, 16, 24, 48, 576]),
}
# Only their shapes are looked at.
OTHERS: dict[str, tuple[int, int, list[int]]] = {
    "regnet_y_400mf": (32, 440, [32, 48, 104, 208, 440]),
    "mnasnet0_5": (32, 1280, [8, 16, 24, 48, 1280]),
    "densenet121": (32, 1024, [64, 256, 512, 1024, 1024]),
    "convnext_tiny": (32, 768, [96, 192, 384, 768]),
    "swin_t": (32, 768, [768]),
    "vit_b_32(image_size=32)": (32, 768, []),
}
TIMM: dict[str, tuple[int, int, list[int]]] = {
    "resnet10t": (32, 512, [64, 64, 128, 256, 512]),
    "convnext_atto": (32, 320, [40, 80, 160, 320]),
    "mobilenetv3_small_050": (32, 1024, [16, 8, 16, 24, 288]),
    "vit_tiny_patch16_224(img_size=32)": (32, 192, []),
}


def check_shapes(network: Any, size: int, embedding: int, channels: list[int], in_channels: int = 3) -> None:
    shapes = probe(network, in_channels, size)
    assert (shapes.num_classes, shapes.embedding) == (5, embedding)
    assert [m[0] for m in shapes.maps] == channels
    assert shapes.preacts == ()


def check(network: Any, size: int, embedding: int, channels: list[int], in_channels: int = 3) -> None:
    check_shapes(network, size, embedding, channels, in_channels)
    network.eval()
    images = torch.randn(2, in_channels, size, size)
    with torch.no_grad():
        output = network(images)
        assert isinstance(output, Output)
        torch.testing.assert_close(output.logits, network.classifier(output.embedding))
        assert torch.equal(copy.deepcopy(network)(images).logits, output.logits)
        logits, *_ = torch.jit.trace(network, images, check_trace=False)(images)
        torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_keeps_the_contract(name: str) -> None:
    check(build(BACKBONES, f"torchvision:{name}", 5), *TORCHVISION[name])


@pytest.mark.parametrize("name", OTHERS)
def test_torchvision_has_the_right_shapes(name: str) -> None:
    network = build(BACKBONES, f"torchvision:{name}", 5)
    check_shapes(network, *OTHERS[name])
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", TIMM)
def test_timm_keeps_the_contract(name: str) -> None:
    pytest.importorskip("timm")
    check(build(BACKBONES, f"timm:{name}", 5), *TIMM[name])


@pytest.mark.parametrize(
    "spec", ["torchvision:squeezenet1_1", "timm:deit_tiny_distilled_patch16_224(img_size=32, depth=1)"]
)
def test_a_head_that_is_no_single_linear_layer_gives_logits(spec: str) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    network, images = build(BACKBONES, spec, 5).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images).logits, network.network(images))
    assert set(network.state_dict()) == set(network.network.state_dict())
    with pytest.raises(UserError, match=rf"the logits of {spec.partition('(')[0]} are the output of no single"):
        network.classifier.weight  # noqa: B018


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121"])
def test_outputs_are_those_of_torchvision(name: str) -> None:
    from torchvision import models

    network = build(BACKBONES, f"torchvision:{name}", 5)
    original = models.get_model(name, weights=None, num_classes=5)
    original.load_state_dict(network.network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    last = [m for m in original.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for mode in (False, True):  # Dropout draws the same numbers from the same seed.
        torch.manual_seed(1)
        expected = original.train(mode)(images)
        torch.manual_seed(1)
        output = network.train(mode)(images)
        torch.testing.assert_close(output.logits, expected)
        torch.testing.assert_close(output.embedding, seen.pop())


def test_gradient_reaches_every_parameter_and_weights_pickle() -> None:
    network = pickle.loads(pickle.dumps(build(BACKBONES, "torchvision:resnet18", 5)))
    output = network(torch.randn(2, 3, 32, 32))
    sum(t.square().mean() for t in (output.logits, *output.maps)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_one_channel_and_googlenet_without_its_side_outputs() -> None:
    network = build(BACKBONES, "torchvision:googlenet(init_weights=False)", 5, in_channels=1)
    check(network, 32, 1024, [64, 192, 480, 832, 1024], in_channels=1)
    assert isinstance(network.train()(torch.randn(2, 1, 32, 32)), Output)


def test_new_input_keeps_the_scale_of_the_first_layer() -> None:
    first = build(BACKBONES, "torchvision:resnet18", 5, in_channels=12).network.conv1
    usual = build(BACKBONES, "torchvision:resnet18", 5).network.conv1
    assert first.in_channels == 12
    assert float(first.weight.detach().std() / usual.weight.detach().std()) == pytest.approx(0.5, rel=0.05)


def test_pretrained_weights_get_a_new_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    donor = models.resnet18(num_classes=1000)
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: donor.state_dict())
    network = build(BACKBONES, "torchvision:resnet18(weights='DEFAULT')", 5)
    assert network.classifier.out_features == 5
    assert torch.equal(network.network.get_parameter("layer4.1.conv2.weight"), donor.layer4[1].conv2.weight)
    shown = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    assert preprocessing_of(network) == Preprocessing(*shown)
    for classes in (1000, None):
        kept = build(BACKBONES, "torchvision:resnet18(weights='DEFAULT')", classes)
        assert torch.equal(kept.classifier.weight, donor.fc.weight)
        record = preprocessing_of(kept)
        assert record is not None
        assert record == Preprocessing(*shown, record.classes)
        assert record.classes[:2] == ("tench", "goldfish")


def test_a_pretrained_name_teaches_as_it_is_where_its_classes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of its classes; without them it is trained on the data, which says how its images are prepared."""
    from torchvision import models

    donor = models.resnet18(num_classes=1000).eval()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: donor.state_dict())
    data, name = pckd.load_data("shapes(num_classes=3, image_size=8)"), "torchvision:resnet18(weights='DEFAULT')"
    options: dict[str, Any] = {"task": make_task(None, data), "data": data, "student": "resnet8", "method": "kd"}
    run = plan(teacher=name, teacher_classes=["goldfish", "3", "tench"], **options)
    assert isinstance(run.teacher, nn.Module)
    teacher, images = run.freeze([run.teacher], print), torch.randn(2, 3, 8, 8)
    expected = donor(teacher.renormalized(F.interpolate(images, (224, 224), mode="bilinear", antialias=True)))
    torch.testing.assert_close(teacher(images).logits, expected[:, [1, 3, 0]], rtol=1e-4, atol=1e-4)
    assert describe(run.teacher) == name
    untrained = plan(teacher=name, **options).untrained_teacher()
    assert untrained is not None
    assert untrained.resizing is None
    assert not untrained.renormalizes
    with pytest.raises(UserError, match="torchvision:resnet18 has no classes of its own"):
        plan(teacher="torchvision:resnet18", teacher_classes=[0, 1, 2], **options)


def test_timms_statistics_count_where_its_weights_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=4)
    said = Preprocessing((0.5,) * 3, (0.5,) * 3, (224, 224), (), "bicubic")
    assert preprocessing_of(pckd.adapt(module)) is None
    assert preprocessing_of(pckd.adapt(module, pretrained=True)) == said
    given = pckd.adapt(module, pretrained=True, mean=(0.1,) * 3, std=(0.2,) * 3, interpolation="nearest")
    assert preprocessing_of(given) == Preprocessing((0.1,) * 3, (0.2,) * 3, (224, 224), (), "nearest")
    spec, create = "timm:vit_tiny_patch16_224(depth=1, img_size=32{})", timm.create_model
    assert preprocessing_of(build(BACKBONES, spec.format(""), 4)) is None
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **options: create(*args, **{**options, "pretrained": False})
    )
    network = build(BACKBONES, spec.format(", pretrained=True"), None)
    assert network.classifier.out_features == 1000
    assert preprocessing_of(network) == replace(said, image_size=(32, 32))


def test_a_fixed_size_is_found_out_and_named() -> None:
    """Of a teacher that is to be trained on other images, too."""
    vit = build(BACKBONES, "torchvision:vit_b_32(image_size=64)", 5)
    assert [size_taken(vit, (3, side, side)) for side in (64, 32)] == [None, (64, 64)]
    assert size_taken(build(BACKBONES, "torchvision:resnet18", 5), (3, 32, 32)) is None
    options: dict[str, Any] = {"data": "shapes(num_classes=5, image_size=32, train_size=8, test_size=8)", "epochs": 1}
    with pytest.raises(UserError, match=r"cannot be trained on the images of shapes.* takes 64x64 pixels alone"):
        pckd.distill(student="resnet8", teacher="torchvision:vit_b_32(image_size=64)", **options)


def test_a_checkpoint_of_torchvision_loads(tmp_path: Any) -> None:
    from torchvision import models

    donor = models.resnet18(num_classes=5)
    torch.save(donor.state_dict(), tmp_path / "resnet18.pth")
    network = build(BACKBONES, "torchvision:resnet18", 5)
    load_weights(network, tmp_path / "resnet18.pth")
    assert torch.equal(network.classifier.weight, donor.fc.weight)
    torch.save(models.resnet18(num_classes=9).state_dict(), tmp_path / "nine.pth")
    with pytest.raises(UserError, match="the file has 9 classes, the network 5"):
        load_weights(network, tmp_path / "nine.pth")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet10t"])
def test_compiles_as_one_graph(spec: str) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    network = build(BACKBONES, spec, 5).eval()
    images = torch.randn(2, 3, 32, 32)
    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(network, backend="eager", fullgraph=True)(images)
        torch.testing.assert_close(output.logits, network(images).logits)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean 'resnet18'"),
        ("torchvision:qqqqqq", "torchvision has no model 'qqqqqq'; see torchvision's list"),
        ("torchvision:resnet18(colour=3)", "torchvision:resnet18: .*unexpected keyword argument 'colour'"),
        ("torchvision:resnet18(weights='best')", "has no weights 'best': use one of DEFAULT, IMAGENET1K_V1"),
        ("torchvision:resnet18(weights='DEFAULT', in_channels=1)", "the pretrained weights read 3 channels, not 1"),
        ("torchvision", "'torchvision' is a family: name one of its models, as in torchvision:resnet18"),
        ("timm", "'timm' is a family: name one of its models, as in timm:convnext_atto"),
    ],
)
def test_refusals_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(BACKBONES, spec, 5)
    assert "\n" not in str(caught.value)


def test_timm_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")

    def refused(name: str, message: str, classes: int = 5) -> None:
        with pytest.raises(UserError, match=message):
            build(BACKBONES, f"timm:{name}", classes)

    refused("resnet_18x", "timm has no model 'resnet_18x'; did you mean 'resnet18'")
    refused("test_resnet(colour=3)", r"timm:test_resnet: .*colour")
    refused("resnet10t", "num_classes must be at least 1", 0)
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("resnet10t", r"pip install 'pckd\[timm\]'")


def test_a_fixed_size_is_named_by_the_probe() -> None:
    with pytest.raises(UserError, match="vit cannot run on images of 3 x 64 x 64"):
        probe(build(BACKBONES, "torchvision:vit_b_32(image_size=32)", 5), 3, 64, name="vit")

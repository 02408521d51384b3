"""What holds for every registered network: registering is testing."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo import probe
from pckd.testing import check_backbone
from registry import BACKBONES, Output, Shapes, UserError, build

FAMILIES = ("torchvision", "timm")
NAMES = [name for name in BACKBONES.names() if name not in FAMILIES]
# The others of a family are deeper or wider: they are held to their contract, and to their golden numbers.
ONE_OF_EACH_KIND = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50")
NO_RELU_AT_THE_END = ("wrn_16_1", "MobileNetV2")

each_kind = pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")


def tensors(output: Output) -> list[Tensor]:
    return [output.logits, output.embedding, *output.maps, *output.preacts]


def shake(network: nn.Module) -> nn.Module:
    """Give the batch norms statistics and weights that an error in their order would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return network


def assert_near(got: Tensor, want: Tensor) -> None:
    """Close on the tensor's own scale, which grows with the depth of a network that was never trained."""
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(name: str) -> None:
    check_backbone(name, in_channels=(1,), image_sizes=(16, (28, 36)))


@each_kind
def test_maps_are_those_of_the_stages_with_what_precedes_their_relu(name: str) -> None:
    network = shake(build(BACKBONES, name, 7, in_channels=1)).eval()
    with torch.no_grad():
        output = network(torch.randn(2, 1, 28, 36))
    assert [m for m in network.modules() if isinstance(m, nn.Linear)][-1] is network.classifier
    torch.testing.assert_close(output.logits, network.classifier(output.embedding))
    assert len(output.maps) >= 4
    assert [m.shape for m in output.preacts] == [m.shape for m in output.maps]
    assert all(a.shape[2] >= b.shape[2] for a, b in zip(output.maps, output.maps[1:], strict=False))
    if name not in NO_RELU_AT_THE_END:
        for feature_map, preact in zip(output.maps, output.preacts, strict=True):
            assert torch.equal(feature_map, F.relu(preact))
            assert (preact < 0).any()


@each_kind
def test_layout_and_tracing_change_nothing(name: str) -> None:
    network = shake(build(BACKBONES, name, 7)).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = tensors(network(images))
        traced = torch.jit.trace(network, images)
        logits, embedding, maps, preacts, *_ = traced(images.clone())
        for got, want in zip([logits, embedding, *maps, *preacts], expected, strict=True):
            assert_near(got, want)
        network = network.to(memory_format=torch.channels_last)
        found = tensors(network(images.to(memory_format=torch.channels_last)))
    for got, want in zip(found, expected, strict=True):
        assert_near(got, want)


@each_kind
def test_gradient_other_than_zero_reaches_every_parameter(name: str) -> None:
    network = build(BACKBONES, name, 7).train()
    output = network(torch.randn(4, 3, 16, 16))
    sum(t.square().mean() for t in tensors(output)).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    counts = {int(b) for key, b in network.named_buffers() if key.endswith("num_batches_tracked")}
    assert counts == {1}, "a batch norm ran more than once, or never"


def test_preacts_of_wide_resnets_follow_the_next_norm() -> None:
    network = shake(build(BACKBONES, "wrn_16_1", 7)).eval()
    with torch.no_grad():
        output = network(torch.randn(2, 3, 16, 16))
        norms = [network.block1.layer[0].bn1, network.block2.layer[0].bn1, network.block3.layer[0].bn1, network.bn1]
        for norm, feature_map, preact in zip(norms, output.maps, output.preacts, strict=True):
            torch.testing.assert_close(preact, norm(feature_map))
        torch.testing.assert_close(output.embedding, F.relu(output.preacts[-1]).mean((2, 3)))


def test_bottlenecks_of_mobilenet_have_no_activation() -> None:
    output = shake(build(BACKBONES, "MobileNetV2", 7)).eval()(torch.randn(2, 3, 32, 32))
    assert torch.equal(output.maps[0], F.relu(output.preacts[0]))
    for feature_map, preact in zip(output.maps[1:], output.preacts[1:], strict=True):
        assert torch.equal(feature_map, preact)
        assert (feature_map < 0).any()


def test_vgg_pools_64_pixels_once_more() -> None:
    assert [m[1] for m in probe(build(BACKBONES, "vgg8", 7), 3, 64).maps] == [64, 32, 16, 8, 4]
    assert [m[1] for m in probe(build(BACKBONES, "vgg8", 7), 3, 48).maps] == [48, 24, 12, 6, 6]


@each_kind
def test_runs_at_other_sizes(name: str) -> None:
    network = build(BACKBONES, name, 7)
    for size in (8, 48, 64):
        assert probe(network, 3, size).maps[0][1] in (size, size // 2)


@each_kind
def test_survives_copying_and_functional_calls(name: str) -> None:
    network = build(BACKBONES, name, 7).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = network(images).logits
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(images).logits, expected)
        weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert torch.equal(torch.func.functional_call(network, weights, (images,)).logits, expected)
        doubled = {key: 2 * value if value is network.classifier.weight else value for key, value in weights.items()}
        assert not torch.equal(torch.func.functional_call(network, doubled, (images,)).logits, expected)
    for key, parameter in network.named_parameters():
        assert network.get_parameter(key) is parameter


@pytest.mark.parametrize(
    "name", [*ONE_OF_EACH_KIND[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in ONE_OF_EACH_KIND[4:])]
)
def test_compiles_as_one_graph(name: str) -> None:
    network = build(BACKBONES, name, 7).eval()
    images = torch.randn(2, 3, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)(images)
        for got, want in zip(tensors(compiled), tensors(network(images)), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    network = build(BACKBONES, "resnet8", 7).eval()
    images = torch.randn(2, 3, 16, 16)
    torch._dynamo.reset()
    compiled = torch.compile(network)(images)
    compiled.logits.sum().backward()
    torch.testing.assert_close(compiled.logits, network(images).logits, rtol=1e-4, atol=1e-4)


def test_runs_under_ddp(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = build(BACKBONES, "MobileNetV2", 7)
        wrapped = nn.parallel.DistributedDataParallel(network)
        for _ in range(2):  # The second step fails if the first left a parameter without gradient.
            output = wrapped(torch.randn(2, 3, 32, 32))
            assert isinstance(output, Output)
            output.logits.sum().backward()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("num_classes", "in_channels"), [(0, 3), (-1, 3), (7, 0)])
def test_refuses_impossible_sizes(num_classes: int, in_channels: int) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        build(BACKBONES, "resnet8", num_classes, in_channels=in_channels)


def test_probe_reads_shapes_and_leaves_no_trace() -> None:
    network = build(BACKBONES, "resnet8", 7).train()
    network.layer1.eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    shapes = probe(network, 3, (16, 24))
    maps = ((16, 16, 24), (16, 16, 24), (32, 8, 12), (64, 4, 6))
    assert shapes == Shapes(7, 64, maps, maps)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_probe_names_network_and_size_when_it_cannot_run() -> None:
    network = build(BACKBONES, "vgg8", 7)
    for channels, size, name, said in (
        (3, 4, "vgg8", "vgg8 cannot run on images of 3 x 4 x 4 .*use another image"),
        (1, 32, "", "VGG cannot run on images of 1 x 32 x 32"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            probe(network, channels, size, name=name)
        assert "\n" not in str(caught.value)
        assert all(module.training for module in network.modules())


class Custom(nn.Module):
    """A user's network whose output is whatever the test says."""

    def __init__(self, answer: object, classifier: object = None) -> None:
        super().__init__()
        self.answer, self.classifier = answer, classifier

    def forward(self, x: Tensor) -> object:
        return self.answer


LINEAR = nn.Linear(5, 3)
LOGITS, EMBEDDING, MAP = torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize(
    ("answer", "classifier", "message"),
    [
        (LOGITS, LINEAR, "must return registry.Output, not Tensor"),
        (Output(MAP, EMBEDDING), LINEAR, r"must be \[N, K\] and \[N, D\]"),
        (Output(LOGITS, None), LINEAR, "logits and embedding must be tensors"),  # type: ignore[arg-type]
        (Output(LOGITS[:1], EMBEDDING), LINEAR, "returned 1 rows for 2 images"),
        (Output(LOGITS, EMBEDDING, (EMBEDDING,)), LINEAR, r"every map must be \[N, C, H, W\]"),
        (Output(LOGITS, EMBEDDING, (MAP,), (MAP, MAP)), LINEAR, "preacts must have the shapes of maps"),
        (Output(LOGITS, EMBEDDING), None, "classifier must be the last nn.Linear, not NoneType"),
        (Output(LOGITS, EMBEDDING), nn.Linear(5, 4), "is 5 -> 4, but embedding and logits have 5 and 3"),
    ],
)
def test_probe_refuses_what_breaks_the_contract(answer: object, classifier: object, message: str) -> None:
    with pytest.raises(UserError, match=f"Custom.*{message}"):
        probe(Custom(answer, classifier))
    assert probe(Custom(Output(LOGITS, EMBEDDING, (MAP,)), LINEAR)) == Shapes(3, 5, ((5, 4, 4),))

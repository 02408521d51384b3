"""What the families share: the base class, stages that show their pre-activation, initialization."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from registry import Output, UserError

__all__ = [
    "Backbone",
    "ReluStage",
    "channel_shuffle",
    "computed_linear",
    "conv3x3",
    "init_convolutions",
    "init_small_classifier",
    "run_stages",
]


class Backbone(nn.Module):
    """Base of the built-in networks: checks the two sizes that users give, and pools and classifies the last map.

    A family calls :meth:`read_out` at the end of its ``forward`` and has an attribute or property ``classifier``.
    The average is over all positions, so that any input size works that the strides allow.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        for option, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise UserError(f"{type(self).__name__}: {option} must be at least 1, not {value}")

    # Two ways to write one average. fvcore counts operations for the adaptive pooling and none for the mean, and a
    # network keeps the count of its published form, in which VGG and ResNet50 pool adaptively and the others don't.
    adaptive_pooling = False

    def read_out(
        self, classifier: nn.Linear, last: Tensor, maps: Sequence[Tensor], preacts: Sequence[Tensor]
    ) -> Output:
        """Average ``last`` [N, D, H, W] over the positions, classify it, and pack everything."""
        embedding = F.adaptive_avg_pool2d(last, 1).flatten(1) if self.adaptive_pooling else last.mean((2, 3))
        return Output(classifier(embedding), embedding, tuple(maps), tuple(preacts))


class ReluStage(nn.Sequential):
    """Blocks that end before their last ReLU; the stage applies it.

    ``forward(x) -> (map, preact)`` with ``map = relu(preact)``. The ReLUs between blocks work in place, which saves
    one activation per block in training; the last one does not, because both of its sides are returned.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        *body, last = self
        for block in body:
            x = F.relu(block(x), inplace=True)
        preact = last(x)
        return F.relu(preact), preact


def run_stages(preact: Tensor, *stages: ReluStage) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and pre-activations of a stem, whose pre-activation is given, and of the stages after it."""
    maps, preacts = [F.relu(preact)], [preact]
    for stage in stages:
        x, preact = stage(maps[-1])
        maps.append(x)
        preacts.append(preact)
    return maps, preacts


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size (at stride 1), without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave ``groups`` groups of channels of [N, C, H, W] (ShuffleNet, arXiv 1707.01083, section 3.1)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def init_convolutions(network: nn.Module) -> None:
    """He initialization by fan-out (arXiv 1502.01852); no bias. Batch norms start as the identity in PyTorch."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_small_classifier(classifier: nn.Linear) -> None:
    """Start near uniform predictions: weights of standard deviation 0.01, no bias."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


def computed_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer without parameters of its own: the gradient flows into those that ``weight`` [K, D] comes of."""
    linear = nn.Linear(weight.shape[1], len(weight), device="meta")
    del linear.weight, linear.bias
    linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
    return linear

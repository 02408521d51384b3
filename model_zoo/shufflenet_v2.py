"""ShuffleNetV2 for small images (Ma et al., arXiv 1807.11164): a 1x1 stem, no pooling before the stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, ReluStage, channel_shuffle, conv3x3, run_stages
from registry import BACKBONES, Output

STEM = 24


class SplitUnit(nn.Module):
    """Half of the channels pass, half go through three convolutions; up to but without the last ReLU.

    The stage's ReLU leaves the passing half as it is, because that half comes out of a ReLU already. So it may be
    applied after the concatenation and the shuffle, where map and pre-activation have their channels in one order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passing, y = x.chunk(2, 1)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)), inplace=True)))
        return channel_shuffle(torch.cat([passing, self.bn3(self.conv3(y))], 1), 2)


class DownUnit(nn.Module):
    """Two convolutional branches of stride 2, concatenated and shuffled; up to but without the last ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)), inplace=True)))
        return channel_shuffle(torch.cat([left, self.bn5(self.conv5(right))], 1), 2)


class ShuffleNetV2(Backbone):
    """A stem, three stages, and a 1x1 convolution to the embedding.

    Args:
        widths: channels of the stages and of the embedding.
        units: number of split units of each stage, after its down unit.
        num_classes: K.
        in_channels: channels of the input.
    """

    def __init__(
        self, widths: tuple[int, int, int, int], units: tuple[int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(units[0], STEM, widths[0])
        self.layer2 = _stage(units[1], widths[0], widths[1])
        self.layer3 = _stage(units[2], widths[1], widths[2])
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def forward(self, x: Tensor) -> Output:
        maps, preacts = run_stages(self.bn1(self.conv1(x)), self.layer1, self.layer2, self.layer3)
        last = F.relu(self.bn2(self.conv2(maps[-1])), inplace=True)
        return self.read_out(self.linear, last, maps, preacts)


def _stage(units: int, in_channels: int, channels: int) -> ReluStage:
    return ReluStage(DownUnit(in_channels, channels), *(SplitUnit(channels) for _ in range(units)))


@BACKBONES.register("ShuffleV2")
def shufflenet_v2(num_classes: int, *, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 at width 1: 1.36 M parameters, embedding 1024."""
    return ShuffleNetV2((116, 232, 464, 1024), (3, 7, 3), num_classes, in_channels)

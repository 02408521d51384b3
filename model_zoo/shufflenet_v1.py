"""ShuffleNet for small images (Zhang et al., arXiv 1707.01083): a 1x1 stem, no pooling before the stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, ReluStage, channel_shuffle, conv3x3, run_stages
from registry import BACKBONES, Output

GROUPS = 3
STEM = 24


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 per channel, grouped 1x1, and a shortcut, up to but without the last ReLU.

    At stride 2 the pooled input is concatenated to the residual, at stride 1 it is added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Too few channels come from the stem to be worth splitting into groups.
        self.groups = 1 if in_channels == STEM else GROUPS
        residual = channels - in_channels if stride == 2 else channels
        hidden = residual // 4
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, residual, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(residual)

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.groups)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.stride == 2:
            return torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        return y + x


class ShuffleNetV1(Backbone):
    """A stem and three stages.

    Args:
        widths: channels of the stages.
        units: number of units of each stage.
        num_classes: K.
        in_channels: channels of the input.
    """

    def __init__(
        self, widths: tuple[int, int, int], units: tuple[int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(units[0], STEM, widths[0])
        self.layer2 = _stage(units[1], widths[0], widths[1])
        self.layer3 = _stage(units[2], widths[1], widths[2])
        self.linear = nn.Linear(widths[2], num_classes)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def forward(self, x: Tensor) -> Output:
        maps, preacts = run_stages(self.bn1(self.conv1(x)), self.layer1, self.layer2, self.layer3)
        return self.read_out(self.linear, maps[-1], maps, preacts)


def _stage(units: int, in_channels: int, channels: int) -> ReluStage:
    first = ShuffleUnit(in_channels, channels, 2)
    return ReluStage(first, *(ShuffleUnit(channels, channels, 1) for _ in range(units - 1)))


@BACKBONES.register("ShuffleV1")
def shufflenet_v1(num_classes: int, *, in_channels: int = 3) -> ShuffleNetV1:
    """ShuffleNet with 3 groups: 0.95 M parameters, embedding 960."""
    return ShuffleNetV1((240, 480, 960), (4, 8, 4), num_classes, in_channels)

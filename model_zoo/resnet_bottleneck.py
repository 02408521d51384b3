"""ImageNet's bottleneck ResNet with a stem for small images: 3x3, stride 1, no pooling (arXiv 1512.03385, table 1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, ReluStage, conv3x3, init_convolutions, run_stages
from registry import BACKBONES, Output

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut, up to but without the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        return self.bn3(self.conv3(residual)) + self.shortcut(x)


class BottleneckResNet(Backbone):
    """A stem of 64 channels and four stages.

    Args:
        blocks: number of blocks of each stage.
        num_classes: K.
        in_channels: channels of the input.
    """

    adaptive_pooling = True

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.conv1 = conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(blocks[0], 64, 64, 1)
        self.layer2 = _stage(blocks[1], 64 * EXPANSION, 128, 2)
        self.layer3 = _stage(blocks[2], 128 * EXPANSION, 256, 2)
        self.layer4 = _stage(blocks[3], 256 * EXPANSION, 512, 2)
        self.linear = nn.Linear(512 * EXPANSION, num_classes)
        init_convolutions(self)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def forward(self, x: Tensor) -> Output:
        maps, preacts = run_stages(self.bn1(self.conv1(x)), self.layer1, self.layer2, self.layer3, self.layer4)
        return self.read_out(self.linear, maps[-1], maps, preacts)


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> ReluStage:
    first = Bottleneck(in_channels, channels, stride)
    return ReluStage(first, *(Bottleneck(channels * EXPANSION, channels, 1) for _ in range(blocks - 1)))


@BACKBONES.register("ResNet50")
def resnet50(num_classes: int, *, in_channels: int = 3) -> BottleneckResNet:
    """ResNet-50 with a stem for small images: 23.7 M parameters, embedding 2048."""
    return BottleneckResNet((3, 4, 6, 3), num_classes, in_channels)

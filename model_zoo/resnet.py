"""ResNets for small images: 6n + 2 layers in three stages (He et al., arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, ReluStage, conv3x3, init_convolutions, run_stages
from registry import BACKBONES, Output

THIN = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, up to but without the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return residual + (x if self.downsample is None else self.downsample(x))


class ResNet(Backbone):
    """A stem and three stages.

    Args:
        depth: number of weight layers, 6n + 2.
        widths: channels of the stem and of the stages.
        num_classes: K.
        in_channels: channels of the input.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        blocks, rest = divmod(depth - 2, 6)
        assert rest == 0, depth
        stem, first, second, third = widths
        self.conv1 = conv3x3(in_channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(blocks, stem, first, 1)
        self.layer2 = _stage(blocks, first, second, 2)
        self.layer3 = _stage(blocks, second, third, 2)
        self.fc = nn.Linear(third, num_classes)
        init_convolutions(self)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Output:
        maps, preacts = run_stages(self.bn1(self.conv1(x)), self.layer1, self.layer2, self.layer3)
        return self.read_out(self.fc, maps[-1], maps, preacts)


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> ReluStage:
    first = BasicBlock(in_channels, channels, stride)
    return ReluStage(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


@BACKBONES.register
def resnet8(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-8 for small images: 0.08 M parameters, embedding 64."""
    return ResNet(8, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet14(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-14 for small images: 0.18 M parameters, embedding 64."""
    return ResNet(14, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet20(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-20 for small images: 0.28 M parameters, embedding 64."""
    return ResNet(20, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet32(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-32 for small images: 0.47 M parameters, embedding 64."""
    return ResNet(32, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet44(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-44 for small images: 0.67 M parameters, embedding 64."""
    return ResNet(44, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet56(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-56 for small images: 0.86 M parameters, embedding 64."""
    return ResNet(56, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet110(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-110 for small images: 1.74 M parameters, embedding 64."""
    return ResNet(110, THIN, num_classes, in_channels)


@BACKBONES.register
def resnet8x4(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-8 with four times the width: 1.23 M parameters, embedding 256."""
    return ResNet(8, WIDE, num_classes, in_channels)


@BACKBONES.register
def resnet32x4(num_classes: int, *, in_channels: int = 3) -> ResNet:
    """ResNet-32 with four times the width: 7.43 M parameters, embedding 256."""
    return ResNet(32, WIDE, num_classes, in_channels)

"""Wide residual networks: 6n + 4 layers in three stages (Zagoruyko and Komodakis, arXiv 1605.07146)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, conv3x3, init_convolutions
from registry import BACKBONES, Output


class PreactBlock(nn.Module):
    """Norm and ReLU come before each convolution; nothing follows the sum.

    ``forward(x) -> (y, normed)``: ``normed`` is x after this block's first batch norm, which is the pre-activation of
    the stage that made x. Returning it saves running that norm twice, which would also update its statistics twice.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        # The published checkpoints know it by this name.
        self.convShortcut: nn.Conv2d | None = None
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.bn1(x)
        active = F.relu(normed)
        residual = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        # A shortcut that changes the width reads the activated input, an identity the raw one.
        return (x if self.convShortcut is None else self.convShortcut(active)) + residual, normed


class PreactStage(nn.Module):
    """``forward(x) -> (y, normed)``; see :class:`PreactBlock`."""

    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        first = PreactBlock(in_channels, channels, stride)
        self.layer = nn.ModuleList([first, *(PreactBlock(channels, channels, 1) for _ in range(blocks - 1))])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *rest = self.layer
        x, normed = first(x)
        for block in rest:
            x, _ = block(x)
        return x, normed


class WideResNet(Backbone):
    """A stem of 16 channels and three stages of 16, 32 and 64 times ``factor`` channels.

    The maps are the stages' sums, which no activation follows; their pre-activations are what the next batch norm
    makes of them.

    Args:
        depth: number of weight layers, 6n + 4.
        factor: the widening factor.
        num_classes: K.
        in_channels: channels of the input.
    """

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        blocks, rest = divmod(depth - 4, 6)
        assert rest == 0, depth
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = PreactStage(blocks, 16, 16 * factor, 1)
        self.block2 = PreactStage(blocks, 16 * factor, 32 * factor, 2)
        self.block3 = PreactStage(blocks, 32 * factor, 64 * factor, 2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.fc = nn.Linear(64 * factor, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def forward(self, x: Tensor) -> Output:
        map0 = self.conv1(x)
        map1, pre0 = self.block1(map0)
        map2, pre1 = self.block2(map1)
        map3, pre2 = self.block3(map2)
        pre3 = self.bn1(map3)
        return self.read_out(self.fc, F.relu(pre3), (map0, map1, map2, map3), (pre0, pre1, pre2, pre3))


@BACKBONES.register
def wrn_16_1(num_classes: int, *, in_channels: int = 3) -> WideResNet:
    """WRN-16-1: 0.18 M parameters, embedding 64."""
    return WideResNet(16, 1, num_classes, in_channels)


@BACKBONES.register
def wrn_16_2(num_classes: int, *, in_channels: int = 3) -> WideResNet:
    """WRN-16-2: 0.70 M parameters, embedding 128."""
    return WideResNet(16, 2, num_classes, in_channels)


@BACKBONES.register
def wrn_40_1(num_classes: int, *, in_channels: int = 3) -> WideResNet:
    """WRN-40-1: 0.57 M parameters, embedding 64."""
    return WideResNet(40, 1, num_classes, in_channels)


@BACKBONES.register
def wrn_40_2(num_classes: int, *, in_channels: int = 3) -> WideResNet:
    """WRN-40-2: 2.26 M parameters, embedding 128."""
    return WideResNet(40, 2, num_classes, in_channels)

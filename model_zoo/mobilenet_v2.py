"""MobileNetV2 at half width for small images (Sandler et al., arXiv 1801.04381, table 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.layers import Backbone, conv3x3, init_convolutions, init_small_classifier
from registry import BACKBONES, Output

# Per group of blocks: expansion, channels at full width, number of blocks, stride of the first.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# The groups whose output is a feature map.
MAPS = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    """Expand, filter per channel, project; a linear bottleneck, so nothing follows the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv3x3(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class _OnlyLayer(nn.Linear):
    """The one layer of the classifier's sequence, in a network whose ``.classifier`` is the layer itself.

    Its attribute "0" is itself, so that the path "classifier.0" leads here whichever of the two it starts from
    (``get_submodule`` and ``torch.func.functional_call`` follow paths by attribute).
    """


setattr(_OnlyLayer, "0", property(lambda layer: layer))


class MobileNetV2(Backbone):
    """A stem of stride 2, seven groups of inverted residuals, and a 1x1 convolution to 1280 channels.

    Args:
        width: factor on the channels of every group.
        num_classes: K.
        in_channels: channels of the input.
    """

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        channels = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(in_channels, channels, 2), nn.BatchNorm2d(channels))
        self.blocks = nn.ModuleList()
        for expansion, full_width, count, stride in GROUPS:
            group = nn.Sequential()
            for position in range(count):
                out_channels = int(full_width * width)
                group.append(InvertedResidual(channels, out_channels, stride if position == 0 else 1, expansion))
                channels = out_channels
            self.blocks.append(group)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280))
        # Published checkpoints have the key "classifier.0.weight", while ``.classifier`` is to be the linear layer:
        # the sequence is registered under a name that the property below shadows.
        self._modules["classifier"] = nn.Sequential(_OnlyLayer(1280, num_classes))
        init_convolutions(self)
        init_small_classifier(self.classifier)

    @property
    def classifier(self) -> nn.Linear:
        sequence = self._modules["classifier"]
        assert isinstance(sequence, nn.Sequential)
        linear = sequence[0]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, x: Tensor) -> Output:
        pre0 = self.conv1(x)
        x = F.relu(pre0)
        maps = [x]
        for position, group in enumerate(self.blocks):
            x = group(x)
            if position in MAPS:
                maps.append(x)
        # No activation follows a bottleneck: the maps after the stem are their own pre-activations.
        last = F.relu(self.conv2(x), inplace=True)
        return self.read_out(self.classifier, last, maps, (pre0, *maps[1:]))


@BACKBONES.register("MobileNetV2")
def mobilenet_v2(num_classes: int, *, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 at half width: 0.81 M parameters, embedding 1280."""
    return MobileNetV2(0.5, num_classes, in_channels)

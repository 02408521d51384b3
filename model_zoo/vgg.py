"""VGG with batch norm and one linear layer, for small images (Simonyan and Zisserman, arXiv 1409.1556)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn

from model_zoo.layers import Backbone, init_convolutions, init_small_classifier
from registry import BACKBONES, Output

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five blocks of 3x3 convolutions; max pooling after the first three, global average pooling after the last.

    Images 64 pixels high are pooled once more, before the last block, as in the published networks.

    Args:
        convolutions: number of convolutions of each block.
        num_classes: K.
        in_channels: channels of the input.
    """

    adaptive_pooling = True

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.block0 = _block(convolutions[0], in_channels, WIDTHS[0])
        self.block1 = _block(convolutions[1], WIDTHS[0], WIDTHS[1])
        self.block2 = _block(convolutions[2], WIDTHS[1], WIDTHS[2])
        self.block3 = _block(convolutions[3], WIDTHS[2], WIDTHS[3])
        self.block4 = _block(convolutions[4], WIDTHS[3], WIDTHS[4])
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convolutions(self)
        init_small_classifier(self.classifier)

    def forward(self, x: Tensor) -> Output:
        pre0 = self.block0(x)
        map0 = F.relu(pre0)
        pre1 = self.block1(F.max_pool2d(map0, 2))
        map1 = F.relu(pre1)
        pre2 = self.block2(F.max_pool2d(map1, 2))
        map2 = F.relu(pre2)
        pre3 = self.block3(F.max_pool2d(map2, 2))
        map3 = F.relu(pre3)
        pre4 = self.block4(_last_pool(map3, x.shape[2]))
        map4 = F.relu(pre4)
        return self.read_out(self.classifier, map4, (map0, map1, map2, map3, map4), (pre0, pre1, pre2, pre3, pre4))


@fx.wrap
def _last_pool(x: Tensor, image_size: int) -> Tensor:
    """Pool once more where the images are of 64 pixels; one step for ``torch.fx``, which cannot look at sizes."""
    return F.max_pool2d(x, 2) if image_size == 64 else x


def _block(convolutions: int, in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        in_channels = channels
    # The network applies the last ReLU, so that it has both sides of it.
    return nn.Sequential(*layers[:-1])


@BACKBONES.register
def vgg8(num_classes: int, *, in_channels: int = 3) -> VGG:
    """VGG-8 with batch norm: 3.97 M parameters, embedding 512."""
    return VGG((1, 1, 1, 1, 1), num_classes, in_channels)


@BACKBONES.register
def vgg11(num_classes: int, *, in_channels: int = 3) -> VGG:
    """VGG-11 with batch norm: 9.28 M parameters, embedding 512."""
    return VGG((1, 1, 2, 2, 2), num_classes, in_channels)


@BACKBONES.register
def vgg13(num_classes: int, *, in_channels: int = 3) -> VGG:
    """VGG-13 with batch norm: 9.46 M parameters, embedding 512."""
    return VGG((2, 2, 2, 2, 2), num_classes, in_channels)


@BACKBONES.register
def vgg16(num_classes: int, *, in_channels: int = 3) -> VGG:
    """VGG-16 with batch norm: 14.8 M parameters, embedding 512."""
    return VGG((2, 2, 3, 3, 3), num_classes, in_channels)


@BACKBONES.register
def vgg19(num_classes: int, *, in_channels: int = 3) -> VGG:
    """VGG-19 with batch norm: 20.1 M parameters, embedding 512."""
    return VGG((2, 2, 4, 4, 4), num_classes, in_channels)

"""Lean detectors and segmenters for images of 100 to 300 pixels, trained from scratch: pairs of student and teacher.

Of each kind there are a student with one block a stage, width 16 and a pyramid of 32 channels, and its teacher with two
blocks a stage, width 48 and 96 channels. Their options:

- ``num_classes``: K, without the background;
- ``norm``: ``"batch"`` or ``"group"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.segmentation import FCN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model_zoo.detection import DenseDetector, TwoStageDetector
from model_zoo.segmentation import Segmenter
from registry import BACKBONES, UserError

__all__ = ["faster_rcnn_r10w16", "faster_rcnn_r18w48", "fcn_r10w16", "fcn_r18w48", "fcos_r10w16", "fcos_r18w48"]

Norm = Literal["group", "batch"]


class OwnSize(GeneralizedRCNNTransform):
    """Normalizes images and leaves their size as it is."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """What normalizes so many channels: batch norm, or group norm with 4 channels a group or more.

    Raises:
        UserError: another ``norm`` than "group" or "batch".
    """
    if norm not in ("group", "batch"):
        raise UserError(f"norm must be 'group' or 'batch', not {norm!r}")
    return nn.BatchNorm2d if norm == "batch" else lambda channels: nn.GroupNorm(min(16, channels // 4), channels)


def pyramid(
    layers: Sequence[int], width: int, channels: int, norm: Norm, stages: Sequence[int] = (2, 3, 4)
) -> BackboneWithFPN:
    """A ResNet of basic blocks with a feature pyramid, for small images.

    Args:
        layers: blocks of each of the four stages. width: channels of the first. channels: of the pyramid.
        stages: which of them the pyramid has; its levels are ``"0"``, ``"1"``, ..., and ``"pool"``.

    Raises:
        UserError: another ``norm`` than "group" or "batch".
    """
    layer = norm_layer(norm)
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=layer)
    body.inplanes = width
    body.conv1, body.bn1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), layer(width)
    for stage, blocks in enumerate(layers):
        made = body._make_layer(BasicBlock, width * 2**stage, blocks, stride=min(2, 1 + stage))
        setattr(body, f"layer{stage + 1}", made)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    levels = {f"layer{stage}": str(level) for level, stage in enumerate(stages)}
    widths = [width * 2 ** (stage - 1) for stage in stages]
    return BackboneWithFPN(body, levels, widths, channels, LastLevelMaxPool(), layer)


SIZES = (24, 40, 64, 96)
"""Anchors of the lean networks, in pixels, from the finest level of the pyramid on."""
NORMALIZATION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def _faster_rcnn(
    layers: Sequence[int], width: int, channels: int, num_classes: int, norm: Norm, name: str
) -> TwoStageDetector:
    network = FasterRCNN(
        pyramid(layers, width, channels, norm),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in SIZES), ((0.5, 1.0, 2.0),) * len(SIZES)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        box_head=TwoMLPHead(channels * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, num_classes + 1),
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=50,
    )
    network.transform = OwnSize(0, 0, **NORMALIZATION)
    return TwoStageDetector(network, name)


@BACKBONES.register("faster_rcnn_r10w16", task="detection")
def faster_rcnn_r10w16(num_classes: int, *, norm: Norm = "batch") -> TwoStageDetector:
    """Lean Faster R-CNN for images of 100 to 300 pixels: one block a stage, width 16, pyramid of 32 channels; 0.84 M.

    Args:
        num_classes: K, without the background. norm: ``"batch"`` or ``"group"``, trained from scratch.
    """
    return _faster_rcnn((1, 1, 1, 1), 16, 32, num_classes, norm, "faster_rcnn_r10w16")


@BACKBONES.register("faster_rcnn_r18w48", task="detection")
def faster_rcnn_r18w48(num_classes: int, *, norm: Norm = "batch") -> TwoStageDetector:
    """The lean pair's teacher: two blocks a stage, width 48, pyramid of 96 channels; 8.0 M. As faster_rcnn_r10w16."""
    return _faster_rcnn((2, 2, 2, 2), 48, 96, num_classes, norm, "faster_rcnn_r18w48")


def _fcos(layers: Sequence[int], width: int, channels: int, num_classes: int, norm: Norm, name: str) -> DenseDetector:
    strides = (8, 16, 32, 64)
    network = FCOS(
        pyramid(layers, width, channels, norm),
        num_classes + 1,
        anchor_generator=AnchorGenerator(tuple((size,) for size in strides), ((1.0,),) * len(strides)),
        topk_candidates=300,
        detections_per_img=50,
    )
    network.transform = OwnSize(0, 0, **NORMALIZATION)
    for head in (network.head.classification_head, network.head.regression_head):
        for position, layer in enumerate(head.conv):
            if isinstance(layer, nn.GroupNorm):
                # torchvision's has 32 groups: of one channel each, one pixel alone would always become 0.
                head.conv[position] = norm_layer("group")(channels)
    return DenseDetector(network, name)


@BACKBONES.register("fcos_r10w16", task="detection")
def fcos_r10w16(num_classes: int, *, norm: Norm = "batch") -> DenseDetector:
    """Lean FCOS for images of 100 to 300 pixels, otherwise as faster_rcnn_r10w16."""
    return _fcos((1, 1, 1, 1), 16, 32, num_classes, norm, "fcos_r10w16")


@BACKBONES.register("fcos_r18w48", task="detection")
def fcos_r18w48(num_classes: int, *, norm: Norm = "batch") -> DenseDetector:
    """The teacher of fcos_r10w16: two blocks a stage, width 48, pyramid of 96 channels."""
    return _fcos((2, 2, 2, 2), 48, 96, num_classes, norm, "fcos_r18w48")


class Finest(nn.Module):
    """The finest level of a pyramid, as torchvision's segmentation networks ask for features; others are not made."""

    def __init__(self, backbone: BackboneWithFPN) -> None:
        super().__init__()
        self.pyramid = backbone
        backbone.fpn.layer_blocks = backbone.fpn.layer_blocks[:1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fpn = self.pyramid.fpn
        *finer, coarsest = self.pyramid.body(x).values()
        found = fpn.inner_blocks[-1](coarsest)
        for block, stage in zip(fpn.inner_blocks[-2::-1], reversed(finer), strict=True):
            found = block(stage) + F.interpolate(found, size=stage.shape[2:])
        return {"out": fpn.layer_blocks[0](found)}


def _fcn(layers: Sequence[int], width: int, channels: int, num_classes: int, norm: Norm) -> Segmenter:
    layer = norm_layer(norm)
    head = nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        layer(64),
        nn.ReLU(),
        nn.Conv2d(64, num_classes + 1, 1),
    )
    network = FCN(Finest(pyramid(layers, width, channels, norm, stages=(1, 2, 3, 4))), head)
    return Segmenter(network, ["classifier.3"], (0.5,) * 3, (0.25,) * 3)


@BACKBONES.register("fcn_r10w16", task="segmentation")
def fcn_r10w16(num_classes: int, *, norm: Norm = "batch") -> Segmenter:
    """Lean segmenter for images of 100 to 300 pixels: one block a stage, width 16, pyramid of 32 channels, stride 4.

    Args:
        num_classes: K, without the background. norm: ``"batch"`` or ``"group"``, trained from scratch.
    """
    return _fcn((1, 1, 1, 1), 16, 32, num_classes, norm)


@BACKBONES.register("fcn_r18w48", task="segmentation")
def fcn_r18w48(num_classes: int, *, norm: Norm = "batch") -> Segmenter:
    """The lean pair's teacher: two blocks a stage, width 48, pyramid of 96 channels. As fcn_r10w16."""
    return _fcn((2, 2, 2, 2), 48, 96, num_classes, norm)

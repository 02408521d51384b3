"""Detectors of torchvision's family as backbones: what their heads say of the regions that a student looks at.

Shapes: B images, N regions of them (proposals, or locations of a pyramid), K classes of objects; 0 is the background.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import fastrcnn_loss

from model_zoo.layers import computed_linear
from registry import Absent, NotApplicable, Output, UserError

__all__ = ["DenseDetector", "Detector", "Regions", "TwoStageDetector", "as_detector"]

NO_ROWS = Absent("the rows 'images' have feature maps alone: logits and embedding belong to regions; use other rows")


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions that a student learns by, in the order of its rows.

    Args:
        where: of a two-stage detector the boxes of each image, [n, 4] as shares of its width and height; of a dense one
            the positions in each image's list of anchors, [n].
        labels: [N], 0 for the background. match: [N], which of its image's true boxes a row shows; any for background.
        image: [N]. anchors: of a dense detector, how many an image has. locations: of a dense detector, [B, anchors],
            the label of each, -1 where it counts for nothing.
    """

    where: tuple[Tensor, ...]
    labels: Tensor
    match: Tensor
    image: Tensor
    anchors: int = 0
    locations: Tensor | None = None

    @classmethod
    def of(
        cls, where: Sequence[Tensor], labels: Sequence[Tensor], match: Sequence[Tensor], anchors: int = 0
    ) -> Regions:
        """From the regions of each image."""
        image = [torch.full_like(found, position) for position, found in enumerate(labels)]
        return cls(tuple(where), torch.cat(list(labels)), torch.cat(list(match)), torch.cat(image), anchors)


class SeededSampler:
    """torchvision's sampler of positive and negative regions, which draws each image's by a seed of its own.

    Args:
        size: how many regions an image. positive: the largest share of positive ones.
    """

    def __init__(self, size: int, positive: float) -> None:
        self.size, self.positive = size, positive
        self.seeds: Sequence[int] = ()

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each image two masks, of its positive and of its negative regions; labels below 0 count for nothing."""
        chosen: tuple[list[Tensor], list[Tensor]] = [], []
        for of_image, seed in zip(labels, self.seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            positive, negative = (of_image >= 1).nonzero()[:, 0], (of_image == 0).nonzero()[:, 0]
            first = min(len(positive), int(self.size * self.positive))
            for masks, found, count in ((chosen[0], positive, first), (chosen[1], negative, self.size - first)):
                picked = torch.randperm(len(found), generator=generator)[:count].to(found.device)
                masks.append(torch.zeros_like(of_image, dtype=torch.uint8).index_fill_(0, found[picked], 1))
        return chosen


class ExactCoder:
    """A box coder of torchvision's that decodes in float32: in bfloat16 a box would be rounded to whole pixels."""

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def __getattr__(self, name: str) -> Any:
        if name == "coder":  # before it is there, as where a copy is made
            raise AttributeError(name)
        return getattr(self.coder, name)

    def decode(self, codes: Tensor, boxes: Any) -> Tensor:
        """As the coder's own."""
        boxes = [box.float() for box in boxes] if isinstance(boxes, (list, tuple)) else boxes.float()
        decoded: Tensor = self.coder.decode(codes.float(), boxes)
        return decoded

    def decode_single(self, codes: Tensor, boxes: Tensor) -> Tensor:
        """As the coder's own."""
        decoded: Tensor = self.coder.decode_single(codes.float(), boxes.float())
        return decoded


class ExactAnchors(nn.Module):
    """An anchor generator of torchvision's whose anchors are in float32, whatever the features are in."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: ImageList, features: Sequence[Tensor]) -> Any:
        """As the generator's own, which asks the features for their shape, type and device alone."""
        return self.generator(images, [level.new_empty(level.shape, dtype=torch.float32) for level in features])

    def num_anchors_per_location(self) -> Any:
        return self.generator.num_anchors_per_location()  # type: ignore[operator]


def make_exact(network: nn.Module) -> None:
    """Let a detector compute its boxes in float32 under autocast, too."""
    for module in list(network.modules()):
        if hasattr(module, "box_coder"):
            module.box_coder = ExactCoder(module.box_coder)  # type: ignore[assignment]
        if isinstance(getattr(module, "anchor_generator", None), nn.Module):
            module.anchor_generator = ExactAnchors(module.anchor_generator)  # type: ignore[arg-type]


class Detector(nn.Module):
    """Base class: a torchvision detector, seen as rows. Its parameters keep torchvision's names, below ``network.``.

    Args:
        network: takes images in [0, 1], which it normalizes itself. name: what to call it in messages.
    """

    kind: str
    """What its regions are: two networks of one kind can answer about the same ones."""
    classifies: bool
    """Whether its own losses include the classification of regions."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        make_exact(network)
        self.network = network
        self.label = name

    @property
    def classifier(self) -> nn.Linear:
        """Of regions, with a row for the background: its rows are the category centers."""
        raise NotImplementedError

    def study(
        self, images: Tensor, targets: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]
    ) -> tuple[Regions, Output]:
        """Sample regions of the images, answer about them, and compute the network's own losses; in train mode.

        Args:
            images: [B, 3, H, W], 0 to 1. targets: for each the true ``boxes`` [n, 4], in pixels, each with an area,
                and their ``labels`` [n], 1 to K. seeds: of the sampling, one an image.
        """
        raise NotImplementedError

    def answer(self, images: Tensor, regions: Regions) -> Output:
        """What the network says of regions that another one has sampled.

        Args:
            images: [B, 3, H, W], 0 to 1.
        """
        raise NotImplementedError

    def everywhere(self, images: Tensor) -> Regions:
        """Some regions of images, to see the shapes of an answer: no random number is drawn."""
        raise NotImplementedError

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """The objects in each image [3, H, W], as torchvision's own call finds them; in eval mode.

        Returns:
            for each image ``boxes`` [n, 4] in pixels, ``labels`` [n], and ``scores`` [n].
        """
        found: list[dict[str, Tensor]] = self.network(list(images))
        return found

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return self.detect(x)

    def _features(
        self, images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None
    ) -> tuple[ImageList, list[dict[str, Tensor]], dict[str, Tensor]]:
        """Normalized images, the targets in their pixels, and the pyramid."""
        listed = None if targets is None else [dict(target) for target in targets]
        normalized, fitted = self.network.transform(list(images), listed)  # type: ignore[operator]
        features = self.network.backbone(normalized.tensors)  # type: ignore[operator]
        return normalized, fitted or [], features if isinstance(features, dict) else {"0": features}

    def _of_images(self, features: Mapping[str, Tensor]) -> Output:
        maps = tuple(features.values())
        # A pyramid ends in convolutions: nothing is activated.
        return Output(NO_ROWS, NO_ROWS, maps, maps)  # type: ignore[arg-type]


class TwoStageDetector(Detector):
    """Faster R-CNN: a row is a proposal; its embedding is what the box head makes of it.

    Raises:
        UserError: it is another network, or one with a head for masks or keypoints.
    """

    network: FasterRCNN
    kind = "proposals"
    classifies = False

    def __init__(self, network: Any, name: str) -> None:
        heads = getattr(network, "roi_heads", None)
        predictor = getattr(heads, "box_predictor", None)
        if heads is None or not isinstance(getattr(predictor, "cls_score", None), nn.Linear):
            raise UserError(f"{name} is no detector with torchvision's box predictor; use fasterrcnn_resnet50_fpn")
        if heads.has_mask() or heads.has_keypoint():
            raise UserError(f"{name} has a head for masks or keypoints, which is not trained here; use a Faster R-CNN")
        super().__init__(network, name)
        for part in (network.rpn, heads):
            sampler = part.fg_bg_sampler
            part.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction)

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.network.roi_heads.box_predictor.cls_score
        assert isinstance(classifier, nn.Linear)
        return classifier

    def study(
        self, images: Tensor, targets: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]
    ) -> tuple[Regions, Output]:
        rpn, heads = self.network.rpn, self.network.roi_heads
        rpn.fg_bg_sampler.seeds = heads.fg_bg_sampler.seeds = seeds
        normalized, fitted, features = self._features(images, targets)
        proposals, losses = rpn(normalized, features, fitted)
        with torch.no_grad():
            boxes, match, labels, offsets = heads.select_training_samples(proposals, fitted)
        output, deltas = self._rows(features, boxes, normalized)
        _, losses["loss_box_reg"] = fastrcnn_loss(output.logits, deltas, labels, offsets)
        shares = [b / _extent(b, size) for b, size in zip(boxes, normalized.image_sizes, strict=True)]
        return Regions.of(shares, labels, match), output._replace(losses=losses)

    def answer(self, images: Tensor, regions: Regions) -> Output:
        normalized, _, features = self._features(images, None)
        boxes = [b * _extent(b, size) for b, size in zip(regions.where, normalized.image_sizes, strict=True)]
        return self._rows(features, boxes, normalized)[0]

    def everywhere(self, images: Tensor) -> Regions:
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=images.device)
        label = torch.zeros(1, dtype=torch.int64, device=images.device)
        where, labels, match = ([x] * len(images) for x in (whole, label, label))
        return Regions.of(where, labels, match)

    def _rows(self, features: dict[str, Tensor], boxes: list[Tensor], images: ImageList) -> tuple[Output, Tensor]:
        heads = self.network.roi_heads
        pooled = heads.box_roi_pool(features, boxes, images.image_sizes)
        embedding = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(embedding)
        return Output(logits, embedding, (pooled,), images=self._of_images(features)), deltas


def _extent(boxes: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    return boxes.new_tensor([width, height, width, height])


class DenseHead:
    """The head of an FCOS or RetinaNet as a function of its pyramid (:class:`registry.Head`).

    Args:
        images: their size says where the anchors are.
    """

    def __init__(self, network: FCOS | RetinaNet, images: ImageList) -> None:
        self.network, self.images = network, images

    @property
    def channels(self) -> tuple[int, ...]:
        convolutions = [layer for layer in self._towers[0] if isinstance(layer, nn.Conv2d)]
        return (convolutions[0].in_channels, *(layer.out_channels for layer in convolutions))

    def features(self, maps: Sequence[Tensor], layer: int) -> tuple[list[Tensor], list[Tensor]]:
        scores, boxes = ([_through(tower[: _end(tower, layer)], m) for m in maps] for tower in self._towers)
        return scores, boxes

    def predict(self, features: tuple[list[Tensor], list[Tensor]], layer: int) -> tuple[Tensor, Tensor]:
        head: Any = self.network.head
        scores, boxes = (
            [_through(tower[_end(tower, layer) :], m) for m in of_branch]
            for tower, of_branch in zip(self._towers, features, strict=True)
        )
        logits = _by_anchor(map(head.classification_head.cls_logits, scores), head.classification_head.num_classes)
        # Where the anchors are is counted in the precision of these.
        moves = [head.regression_head.bbox_reg(m).float() for m in boxes]
        anchors = torch.stack(self.network.anchor_generator(self.images, moves)[:1]).expand(len(logits), -1, -1)
        codes = _by_anchor(moves, 4)
        if isinstance(self.network, FCOS):
            return logits, head.box_coder.decode(codes.relu(), anchors)
        decoded = head.regression_head.box_coder.decode_single(codes.flatten(0, 1), anchors.flatten(0, 1))
        return logits, decoded.view_as(codes)

    @property
    def _towers(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Of each branch the convolutions, norms and activations, in their order."""
        head: Any = self.network.head
        scores, boxes = (
            [layer for layer in part.conv.modules() if not list(layer.children())]
            for part in (head.classification_head, head.regression_head)
        )
        return scores, boxes


def _end(tower: Sequence[nn.Module], layer: int) -> int:
    """Position of the activation of a layer, counted from 1; 0 of layer 0."""
    return [0, *(position for position, part in enumerate(tower) if isinstance(part, nn.ReLU))][layer]


def _through(tower: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in tower:
        # Never in place: what it is given may be needed once more.
        x = x.relu() if isinstance(layer, nn.ReLU) else layer(x)
    return x


def _by_anchor(maps: Iterable[Tensor], width: int) -> Tensor:
    """Maps [B, anchors * width, H, W] of all levels as [B, A, width], in torchvision's order."""
    return torch.cat([m.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3) for m in maps], 1)


class DenseDetector(Detector):
    """FCOS or RetinaNet: a row is a sampled location (and anchor); its embedding is what the last convolution reads.

    That is a patch of 3 x 3 pixels of the classification tower. The convolution's filters are the classifier's rows,
    of several anchors their mean. The network gives each class a probability of its own: sigmoid(z) is the softmax of
    (0, z), so that the background has the logit 0, and a center of zeros.

    Args:
        rows: locations an image. positive: the largest share of those that show an object.

    Raises:
        UserError: it is another network.
    """

    network: FCOS
    kind = "locations"
    classifies = True

    def __init__(self, network: nn.Module, name: str, *, rows: int = 64, positive: float = 0.5) -> None:
        if not isinstance(network, (FCOS, RetinaNet)):
            raise UserError(f"{name} is no FCOS or RetinaNet of torchvision's, and no Faster R-CNN")
        super().__init__(network, name)
        self.sampler = SeededSampler(rows, positive)

    @property
    def _head(self) -> Any:
        return self.network.head.classification_head

    @property
    def classifier(self) -> nn.Linear:
        head = self._head
        weight = head.cls_logits.weight.unflatten(0, (head.num_anchors, head.num_classes)).mean(0).flatten(1)
        bias = head.cls_logits.bias.unflatten(0, (head.num_anchors, head.num_classes)).mean(0)
        background = torch.arange(head.num_classes, device=weight.device) == 0
        return computed_linear(weight.masked_fill(background[:, None], 0), bias.masked_fill(background, 0))

    def study(
        self, images: Tensor, targets: Sequence[Mapping[str, Tensor]], seeds: Sequence[int]
    ) -> tuple[Regions, Output]:
        network = self.network
        normalized, fitted, features = self._features(images, targets)
        levels = list(features.values())
        with self._tower_recorded() as tower:
            outputs = network.head(levels)
        anchors = network.anchor_generator(normalized, levels)
        sizes = [[level.shape[2] * level.shape[3] for level in levels]] if isinstance(network, FCOS) else []
        with self._matches_recorded() as match:
            losses = network.compute_loss(fitted, outputs, anchors, *sizes)
        labels = []
        for matched, target in zip(match, fitted, strict=True):
            # -1 is background, below that what counts for nothing.
            found = torch.cat([target["labels"], target["labels"].new_zeros(1)])[matched.clamp(-1)]
            labels.append(torch.where(matched < -1, -1, found))
        self.sampler.seeds = seeds
        where = [(a | b).nonzero()[:, 0] for a, b in zip(*self.sampler(labels), strict=True)]
        picked = [[of_image[w] for of_image, w in zip(values, where, strict=True)] for values in (labels, match)]
        regions = Regions.of(where, picked[0], [m.clamp_min(0) for m in picked[1]], len(match[0]))
        regions = replace(regions, locations=torch.stack(labels))
        output = self._rows(outputs["cls_logits"], tower, regions, features, normalized)
        return regions, output._replace(losses=losses)

    def answer(self, images: Tensor, regions: Regions) -> Output:
        normalized, _, features = self._features(images, None)
        with self._tower_recorded() as tower:
            logits = self._head(list(features.values()))
        if regions.anchors not in (0, logits.shape[1]):
            raise NotApplicable(
                f"{self.label} looks at {logits.shape[1]} locations of an image, and the student at {regions.anchors}: "
                "use two networks with the same pyramid and anchors"
            )
        return self._rows(logits, tower, regions, features, normalized)

    def everywhere(self, images: Tensor) -> Regions:
        first = torch.zeros(1, dtype=torch.int64, device=images.device)
        each = [first] * len(images)
        _, _, features = self._features(images, None)
        cells = sum(level.shape[2] * level.shape[3] for level in features.values())
        return Regions.of(each, each, each, cells * self._head.num_anchors)

    def _rows(
        self,
        logits: Tensor,
        tower: Sequence[Tensor],
        regions: Regions,
        features: Mapping[str, Tensor],
        images: ImageList,
    ) -> Output:
        """Args: logits: [B, A, K + 1] of all anchors. tower: what the last convolution has read, by level."""
        flat = torch.cat(regions.where)
        chosen = logits[regions.image, flat]
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, 1:]], 1)
        place = flat // self._head.num_anchors
        embedding = chosen.new_zeros(len(flat), 9 * tower[0].shape[1], dtype=tower[0].dtype)
        start = 0
        for level in tower:
            height, width = level.shape[2:]
            here = ((place >= start) & (place < start + height * width)).nonzero()[:, 0]
            y, x = (place[here] - start) // width, (place[here] - start) % width
            padded = F.pad(level, (1, 1, 1, 1))
            around = [padded[regions.image[here], :, y + dy, x + dx] for dy in range(3) for dx in range(3)]
            embedding = embedding.index_copy(0, here, torch.stack(around, 2).flatten(1))
            start += height * width
        whole = self._of_images(features)
        if isinstance(self.network.head, (FCOSHead, RetinaNetHead)):
            whole = whole._replace(head=DenseHead(self.network, images))
        return Output(chosen, embedding, images=whole)

    @contextlib.contextmanager
    def _tower_recorded(self) -> Iterator[list[Tensor]]:
        """Inside, what the last convolution of the classification tower reads is listed, level by level."""
        read: list[Tensor] = []
        handle = self._head.cls_logits.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            yield read
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _matches_recorded(self) -> Iterator[list[Tensor]]:
        """Inside, which true box each anchor was matched with is listed, image by image: torchvision tells its head."""
        head: Any = self.network.head
        match: list[Tensor] = []

        def compute_loss(targets: Any, outputs: Any, anchors: Any, matched: list[Tensor]) -> Any:
            match.extend(matched)
            return type(head).compute_loss(head, targets, outputs, anchors, matched)

        head.compute_loss = compute_loss
        try:
            yield match
        finally:
            del head.compute_loss


def as_detector(network: nn.Module, name: str) -> Detector:
    """A torchvision detector as a backbone: :class:`TwoStageDetector` or :class:`DenseDetector`.

    One of your own, in a file that is named with ``--plugin``::

        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        from model_zoo.detection import Detector, as_detector
        from registry import BACKBONES

        @BACKBONES.register("mine", task="detection")
        def mine(num_classes: int) -> Detector:
            body = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
            return as_detector(FasterRCNN(body, num_classes + 1, min_size=64), "mine")

    Raises:
        UserError: it is neither a Faster R-CNN nor an FCOS or RetinaNet.
    """
    kind = TwoStageDetector if hasattr(network, "roi_heads") else DenseDetector
    return kind(network, name)


def detector_of(network: Any, label: str, classes: int) -> Detector:
    """:func:`as_detector`, with a new last layer where the network has another number of classes.

    Args:
        classes: K + 1.
    """
    detector = as_detector(network, label)
    if detector.classifier.out_features != classes:
        if isinstance(detector, TwoStageDetector):
            network.roi_heads.box_predictor = FastRCNNPredictor(detector.classifier.in_features, classes)
        else:
            head, old = network.head.classification_head, network.head.classification_head.cls_logits
            # As a fresh head of torchvision's has it: a probability of 0.01.
            head.num_classes = classes
            head.cls_logits = nn.Conv2d(old.in_channels, head.num_anchors * classes, 3, padding=1)
            nn.init.normal_(head.cls_logits.weight, std=0.01)
            nn.init.constant_(head.cls_logits.bias, -math.log(0.99 / 0.01))
    return detector

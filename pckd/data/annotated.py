"""Images with boxes and masks: what data sets of detection and segmentation return, their augmentation, their loader.

Shapes: M images a split, K classes without the background, n objects of an image, B images a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as change

from pckd.data.check import check_on_bad_image
from pckd.data.folder import IMAGENET_MEAN, IMAGENET_STD
from pckd.data.loader import Loader, _as_is, _Plan, _Stream, check_loading
from pckd.data.views import mixed
from registry import UserError

__all__ = [
    "FLIP_ONLY",
    "FROM_FILES",
    "IGNORED",
    "LEAST_REST",
    "AnnotatedBatch",
    "AnnotatedLoader",
    "AnnotatedSplit",
    "Annotation",
    "Augment",
    "check_annotated",
    "prepare",
]

IGNORED = 255
"""In a mask: a pixel that counts for nothing. -1 in a batch."""
LEAST_REST = 0.2
"""Share of a box's area that must be left after a crop; below it the box is dropped."""
_JITTER = (0.2, 0.3, 0.3, 0.03)
"""Of brightness, contrast, saturation and hue."""
_TASK = 6
"""The stream of an image's seed for the task: see the streams of :mod:`pckd.data.loader`."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """The objects of one image, in pixels of the image as it is read.

    Args:
        boxes: float32 [n, 4]: left, top, right, bottom.
        labels: int64 [n], 1 to K.
        crowd: bool [n]: never trained on, and ignored where a detector is measured. None are by default.
        area: float32 [n]: of the object's mask where that is known, else of its box, and so by default.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor = None  # type: ignore[assignment]
    area: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.crowd is None:
            object.__setattr__(self, "crowd", torch.zeros(len(self.labels), dtype=torch.bool))
        if self.area is None:
            object.__setattr__(self, "area", _area(self.boxes))

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, boxes: Sequence[Sequence[float]], labels: Sequence[int], **others: Tensor) -> Annotation:
        """From lists, which may be empty."""
        return cls(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels).long(), **others)


class Augment(NamedTuple):
    """How training images are augmented. Boxes and masks follow."""

    flip: bool = True
    """Mirror half of them left to right."""
    crop: float = 1.0
    """Cut out a window whose sides are this share of the image's, or more; 1 cuts nothing."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Resize by a factor from this range of what fits: above 1 a random part of the image is seen, below 1 there is
    more padding."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue by so little that colors still tell things apart."""


FLIP_ONLY = Augment()
FROM_FILES = Augment(scale=(0.6, 1.4), photometric=True)
"""What data sets of files ask for."""


@dataclass(frozen=True, eq=False)
class AnnotatedSplit:
    """One split of a data set of detection or segmentation.

    Args:
        images: uint8 [M, 3, H, W]; or, streamed from files, a sequence whose item i is uint8 [3, h, w], of any size.
        annotations: M of them; ``()`` where only masks are known.
        classes: K names, without the background.
        masks: where they are known, uint8 [h, w] of each image: 0 (background) to K, 255 where a pixel counts for
            nothing.
        image_size: (H, W) that networks are shown. Images of another size are resized with their aspect kept, and
            padded with ``mean`` at the right and the bottom.
        mean, std: per channel, of images scaled to [0, 1]: what a fresh network normalizes by.
        difficulty: the true difficulty of each object, by aspect, where it is known: [number of objects] each.
        name: shown in logs.
        on_bad_image: as in :class:`registry.DataSplit`.
        augment: how training images are augmented.
    """

    images: Any
    annotations: tuple[Annotation, ...]
    classes: tuple[str, ...]
    masks: Any = None
    image_size: tuple[int, int] = (0, 0)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    difficulty: Mapping[str, Tensor] | None = None
    name: str = ""
    on_bad_image: Literal["stop", "skip"] = "stop"
    augment: Augment = FLIP_ONLY

    def __post_init__(self) -> None:
        if not any(self.image_size) and isinstance(self.images, Tensor):
            object.__setattr__(self, "image_size", (int(self.images.shape[-2]), int(self.images.shape[-1])))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @cached_property
    def first_object(self) -> Tensor:
        """int64 [M + 1]: object j of image i has position ``first_object[i] + j`` among all objects."""
        counts = torch.tensor([len(each) for each in self.annotations] or [0] * len(self))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    @cached_property
    def objects(self) -> Annotation:
        """The annotations of all images in one."""
        if not sum(map(len, self.annotations)):
            return Annotation.of([], [])
        parts = ([getattr(each, name) for each in self.annotations] for name in ("boxes", "labels", "crowd", "area"))
        return Annotation(*map(torch.cat, parts))

    def part(self, index: Tensor, name: str, evaluation: bool = False) -> AnnotatedSplit:
        """The images at these positions, in this order."""
        chosen, first = index.tolist(), self.first_object.tolist()

        def some(images: Any) -> Any:
            return images[index] if isinstance(images, Tensor) else Subset(images, chosen)

        difficulty = self.difficulty
        if difficulty is not None:
            at = torch.cat([torch.arange(first[i], first[i + 1]) for i in chosen])
            difficulty = {aspect: values[at] for aspect, values in difficulty.items()}
        return replace(
            self,
            images=some(self.images),
            annotations=tuple(self.annotations[i] for i in chosen) if self.annotations else (),
            masks=None if self.masks is None else some(self.masks),
            difficulty=difficulty,
            name=name,
        )


@dataclass(frozen=True, eq=False)
class AnnotatedBatch:
    """What the loader yields, on its device.

    Args:
        images: [B, 3, H, W], floating point, 0 to 1, not normalized.
        boxes: of each image float32 [n, 4]: left, top, right, bottom in pixels of ``images``. Without crowds, boxes
            without area, and those that a crop has left too little of.
        labels: of each image int64 [n], 1 to K.
        objects: of each image int64 [n]: position of each object among all of the split.
        masks: int64 [B, H, W]: 0 (background) to K, -1 where a pixel counts for nothing; None where they are not known.
        index: int64 [B]: position of each image in the split.
        seeds: of each image one, made of the run's seed, the epoch and the index, for what a task draws at random.
        scale: [B, 4]: boxes in pixels of the image as it is read are ``boxes / scale[i]``. In evaluation only; in
            training images are also mirrored and cropped.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    objects: tuple[Tensor, ...]
    masks: Tensor | None
    index: Tensor
    seeds: tuple[int, ...]
    scale: Tensor

    def __len__(self) -> int:
        return len(self.images)


class AnnotatedLoader(Loader):
    """Iterates :class:`AnnotatedBatch` of a split, in the order of :class:`pckd.data.Loader` and with its rules.

    Everything random of an image follows from (seed, epoch, index) alone: neither the number of processes, nor that of
    workers, nor the batch that it is in changes how it is augmented.

    Args:
        split: what to iterate; in memory or streamed.
        batch_size: B, images a batch and rank.
        train: shuffle and augment.
        device, seed, num_workers, rank, world_size: as for :class:`pckd.data.Loader`.
        augment: instead of the split's own.

    Raises:
        UserError: an empty or inconsistent split, or what :class:`pckd.data.Loader` refuses.
    """

    def __init__(
        self,
        split: AnnotatedSplit,
        batch_size: int,
        *,
        train: bool,
        device: str | torch.device = "cpu",
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        augment: Augment | None = None,
    ) -> None:
        check_annotated(split)
        check_loading(split, batch_size, train, num_workers, rank, world_size)
        self.split: Any = split
        self.batch_size, self.train, self.seed, self.device = batch_size, train, seed, torch.device(device)
        self.num_workers, self.rank, self.world_size = num_workers, rank, world_size
        self.prefetched = num_workers > 0
        self.bad, self._said, self._pixels, self._plan = {}, 0, None, _Plan()
        prepared = _Prepared(split, (augment or split.augment) if train else None)
        self._workers = DataLoader(
            _JoinedStream(prepared, seed, skip=split.on_bad_image == "skip", replace=train),
            batch_sampler=self._plan,
            num_workers=num_workers,
            collate_fn=_as_is,
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
            # The base seed of the workers would otherwise be drawn from the global generator, each epoch.
            generator=torch.Generator(),
        )

    def _arrived(self, read: Any, share: Tensor, epoch: int, number: int) -> Any:
        def sent(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        masks = None if read.masks is None else sent(read.masks).long()
        tag = epoch if self.train else 0
        return AnnotatedBatch(
            images=sent(read.images).float() / 255,
            boxes=sent(read.boxes).split(read.counts),
            labels=sent(read.labels).split(read.counts),
            objects=sent(read.objects).split(read.counts),
            masks=None if masks is None else torch.where(masks == IGNORED, -1, masks),
            index=sent(share),
            seeds=tuple(mixed(self.seed, _TASK, tag, i) for i in share.tolist()),
            scale=sent(read.scale),
        )


class _Item(NamedTuple):
    image: Tensor
    boxes: Tensor
    mask: Tensor | None
    scale: Tensor
    labels: Tensor
    objects: Tensor


class _Joined(NamedTuple):
    """A batch as a worker makes it: few tensors, which are sent one by one."""

    images: Tensor
    boxes: Tensor
    labels: Tensor
    objects: Tensor
    masks: Tensor | None
    scale: Tensor
    counts: list[int]


class _JoinedStream(_Stream):
    def join(self, items: list[Any], shown: list[int]) -> Any:
        boxes, labels, objects = (torch.cat([getattr(x, k) for x in items]) for k in ("boxes", "labels", "objects"))
        masks = None if items[0].mask is None else torch.stack([x.mask for x in items])
        images, scale = (torch.stack([getattr(x, name) for x in items]) for name in ("image", "scale"))
        return _Joined(images, boxes, labels, objects, masks, scale, [len(x.labels) for x in items])


class _Prepared:
    """Item i: image i with its boxes and its mask, augmented by the global generators, in the size of the split."""

    def __init__(self, split: AnnotatedSplit, augment: Augment | None) -> None:
        self.images, self.masks, self.size, self.augment = split.images, split.masks, split.image_size, augment
        self.fill = [round(255 * x) for x in split.mean]
        # Few tensors, because workers that are spawned get each of them by a file.
        self.first, self.all = split.first_object.tolist(), split.objects

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> _Item:
        image, mask = self.images[i], None if self.masks is None else self.masks[i]
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise UserError(f"image {i} must be uint8 [3, h, w], not {_kind(image)}")
        if mask is not None and (mask.dtype != torch.uint8 or mask.shape != image.shape[1:]):
            raise UserError(f"the mask of image {i} must be uint8 {list(image.shape[1:])}, not {_kind(mask)}")
        rows = torch.arange(self.first[i], self.first[i + 1])
        rows = rows[~self.all.crowd[rows]]
        item, kept = prepare(image, self.all.boxes[rows], mask, self.size, self.augment, self.fill)
        rows = rows[kept]
        return _Item(*item, self.all.labels[rows], rows)


def prepare(
    image: Tensor,
    boxes: Tensor,
    mask: Tensor | None,
    size: tuple[int, int],
    augment: Augment | None = None,
    fill: Sequence[float] = (0, 0, 0),
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
    """Augment an image with its boxes and its mask, and bring it to the size of a batch.

    Args:
        image: uint8 [3, h, w]. boxes: float32 [n, 4]. mask: uint8 [h, w].
        size: (H, W). The image is resized with its aspect kept, and padded at the right and the bottom.
        augment: None only resizes and pads. Random numbers are drawn from torch's global generator.
        fill: the color of the padding.

    Returns:
        Image, boxes that are kept, mask and scale (x, y, x, y); and which boxes are kept, bool [n].
    """
    height, width = image.shape[-2:]
    frames = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    sample: list[Any] = [tv_tensors.Image(image), frames]
    if mask is not None:
        sample.append(tv_tensors.Mask(mask))

    def each(function: Callable[..., Any], *arguments: Any) -> None:
        sample[:] = [function(x, *arguments) for x in sample]

    jitter = 1.0
    # Drawn whatever is asked for, so that one option does not change what another one does.
    drawn = torch.rand(8).tolist() if augment else []
    if augment:
        if augment.crop < 1:
            tall, wide = (
                max(1, round(x * (augment.crop + (1 - augment.crop) * u)))
                for x, u in ((height, drawn[1]), (width, drawn[2]))
            )
            each(change.crop, int(drawn[3] * (height - tall + 1)), int(drawn[4] * (width - wide + 1)), tall, wide)
            height, width = tall, wide
        low, high = augment.scale
        jitter = low + drawn[5] * (high - low)
    fit = min(size[0] / height, size[1] / width) * jitter
    tall, wide = max(1, round(height * fit)), max(1, round(width * fit))
    if (tall, wide) != (height, width):
        each(change.resize, [tall, wide])
    ratio = torch.tensor([wide / width, tall / height] * 2)
    if tall > size[0] or wide > size[1]:
        top, left = (int(drawn[k] * (max(0, x - most) + 1)) for k, x, most in ((6, tall, size[0]), (7, wide, size[1])))
        tall, wide = min(tall, size[0]), min(wide, size[1])
        each(change.crop, top, left, tall, wide)
    # Late, when the image is small.
    if augment and augment.flip and drawn[0] < 0.5:
        each(change.horizontal_flip)
    if augment and augment.photometric:
        sample[0] = v2.ColorJitter(*_JITTER)(sample[0])
    if (tall, wide) != tuple(size):
        fills = (list(fill), 0, IGNORED)
        margin = [0, 0, size[1] - wide, size[0] - tall]
        sample[:] = [change.pad(x, margin, fill=color) for x, color in zip(sample, fills, strict=False)]
    found = sample[1].as_subclass(Tensor)
    sides = found[:, 2:] - found[:, :2]
    kept = (sides > 0).all(1)
    if augment:
        whole = _area(boxes) * ratio[0] * ratio[1]
        kept &= (sides >= 1).all(1) & (sides.prod(1) >= LEAST_REST * whole)
    plane = None if mask is None else sample[2].as_subclass(Tensor)
    return (sample[0].as_subclass(Tensor), found[kept], plane, ratio), kept


def check_annotated(split: AnnotatedSplit) -> None:
    """Refuse a split that is empty, or whose images, annotations, masks, mean or std do not fit together.

    Raises:
        UserError: names the split.
    """

    def expect(ok: object, text: str) -> None:
        if not ok:
            raise UserError(f"{split.name or 'the data set'}: {text}")

    count, known, images, classes = len(split), split.objects, split.images, split.num_classes
    expect(count, "the split has no images")
    check_on_bad_image(split.on_bad_image)
    if isinstance(images, Tensor):
        whole = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
        expect(whole, f"images must be uint8 [M, 3, H, W], not {_kind(images)}")
    expect(split.annotations or split.masks is not None, "it has neither boxes nor masks; give one of them")
    for what, given in (("annotations", split.annotations or images), ("masks", split.masks)):
        expect(given is None or len(given) == count, f"{0 if given is None else len(given)} {what} for {count} images")
    boxes, labels = known.boxes, known.labels
    expect(boxes.shape == (len(labels), 4), f"boxes of shape {list(boxes.shape)} for {len(labels)} labels")
    expect(boxes.dtype == torch.float32 and labels.dtype == torch.int64, "boxes must be float32, and labels int64")
    expect(len(known.crowd) == len(known.area) == len(labels), "crowd and area must have one value a box")
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        between = f"each must be 1 to {classes}, as there are {classes} classes beside the background"
        expect(low >= 1 and high <= classes, f"labels run from {low} to {high}: {between}")
        ordered = boxes.isfinite().all() and (boxes[:, 2:] >= boxes[:, :2]).all()
        expect(ordered, "boxes must be finite, with left <= right and top <= bottom")
    for aspect, values in (split.difficulty or {}).items():
        expect(len(values) == len(labels), f"{len(values)} values of the difficulty {aspect} for {len(labels)} objects")
    size = split.image_size
    expect(len(size) == 2 and min(size) >= 1, f"image_size={size}: it must be two numbers of at least 1")
    numbers = [*split.mean, *split.std]
    expect(len(split.mean) == len(split.std) == 3, f"mean and std must have 3 numbers each, not {numbers}")
    expect(min(split.std) > 0, f"std must be above 0, not {split.std}")
    crop, (least, most) = split.augment.crop, split.augment.scale
    expect(0 < crop <= 1 and 0 < least <= most, f"{split.augment}: crop must be above 0 and up to 1, scale a range")


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__

"""Data from Python: a torch ``Dataset`` of pairs (image, label), or a pair of arrays (images, labels), as splits.

Shapes: M images of C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from pckd.data.check import PIXELS, check_alike, say_once
from pckd.data.folder import image_statistics, spread
from pckd.data.loader import _seeded
from pckd.data.views import SCALES, as_bits
from pckd.data.vision import crop_padding
from registry import BadImages, DataSplit, UserError, ask

__all__ = ["is_arrays", "make_splits", "resized"]

MOST_CHANNELS = 16
IN_MEMORY = 2**30
"""Bytes up to which the images of a data set are read once and kept."""
TRIED = 16
"""Images that are read twice, to see whether a data set augments them."""
FAR = 10
"""Standard deviations between the mean of the images and the one that is given, above which a warning says so."""
SAMPLE = 2048, 256
"""Images that mean and standard deviation are computed from: in memory (uint8: all), and streamed."""


class Source(NamedTuple):
    """A data set that was looked into."""

    images: Any
    """[M, C, H, W], or a data set of images [C, H, W]."""
    labels: np.ndarray
    """[M], of whole numbers or of names; or [M, K]."""
    classes: tuple[str, ...]
    """As the data set names them; none where it does not."""
    random: bool
    """Whether it augments its images."""


def is_arrays(source: Any) -> bool:
    """Whether this is a pair of arrays (images, labels)."""
    return isinstance(source, (tuple, list)) and len(source) == 2 and hasattr(source[0], "dtype")


def make_splits(
    train: Any,
    test: Any,
    *,
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | tuple[int, int] | None,
    padding: int | None,
    stream: bool | None,
    multilabel: bool | None,
    name: str,
) -> tuple[DataSplit, DataSplit]:
    """The two splits; the arguments are those of :meth:`pckd.Data.of`."""
    if (mean is None) != (std is None):
        raise UserError(f"{name}: give both mean and std, or neither")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(f"{name}: image_size={image_size!r}: it must be a number of pixels of at least 1, or two")
    named = {"train": train} if test is train else {"train": train, "test": test}
    sources = {part: _look_into(source, f"{name} {part}", size, stream) for part, source in named.items()}
    known = tuple(map(str, classes or ())) or next((s.classes for s in sources.values() if s.classes), ())
    for part, source in sources.items():
        if source.classes and not classes and source.classes != known:
            raise UserError(f"{name} {part}: its classes are named otherwise than those of the training split")
    if any(source.labels.dtype.kind in "US" for source in sources.values()):
        known = known or tuple(map(str, np.unique(np.concatenate([s.labels for s in sources.values()]))))
    facts: dict[str, Any] = {}
    for part, source in sources.items():
        facts[part] = _labels(source.labels, known, multilabel, f"{name} {part}")
        # The test split's labels are of the kind of the training split's.
        multilabel = facts["train"][0] is None
    if not known:
        counts = [int(labels.max()) + 1 if t is None else t.shape[1] for labels, t in facts.values()]
        known = tuple(map(str, range(max(counts))))
    splits = []
    for part, source in sources.items():
        if mean is None or std is None:
            mean, std = _statistics(source.images)
        elif part == "train":
            own = _statistics(source.images)[0]
            if any(abs(x - m) > FAR * s for x, m, s in zip(own, mean, std, strict=False)):
                is_1 = SCALES[source.images[0].dtype]
                text = f"its images have mean {own[0]:.4g} where {is_1:g} is 1, and mean={mean[0]:.4g} is given"
                say_once(f"{name} {part}: {text}; mean and std are of images so scaled")
        labels, targets = facts[part]
        if padding is None:
            height, width = source.images[0].shape[1:]
            padding = 0 if source.random else crop_padding(min(height, width))
        options: dict[str, Any] = {"padding": padding, "name": f"{name} {part}", "targets": targets}
        splits.append(DataSplit(source.images, labels, known, tuple(mean), tuple(std), **options))
    return splits[0], splits[-1]


def _look_into(source: Any, label: str, size: tuple[int, int] | None, stream: bool | None) -> Source:
    if is_arrays(source):
        images, labels = source
        if images.ndim not in (3, 4):
            raise UserError(
                f"{label}: images must be [M, C, H, W], [M, H, W, C] or [M, H, W], not {list(images.shape)}"
            )
        pixels = _channels_first(_pixels(images, label), isinstance(images, Tensor), label, images.ndim == 3)
        # As [M, H, W, C] in memory, in which the loader keeps them.
        pixels = torch.stack([fitted(image, size) for image in pixels]) if size else pixels
        return Source(pixels, _as_array(labels), (), False)
    whole = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, IterableDataset) or not whole or isinstance(source, (str, dict)):
        kind = type(source).__name__
        raise UserError(
            f"{label}: must be a data set with a length and items (image, label), or a pair of arrays (images, "
            f"labels), not {kind}"
        )
    items = Items(source, label, size)
    if not len(items):
        raise UserError(f"{label}: the data set is empty")
    first, _ = items.read(0)
    random = not all(items.alike(i) for i in spread(len(items), TRIED))
    if stream is None:
        stream = random or len(items) * first.nbytes > IN_MEMORY
    classes = _classes(source)
    if stream:
        return Source(items, _labels_of(items), classes, random)
    pixels = first.new_empty((len(items), *first.shape[1:], len(first))).permute(0, 3, 1, 2)
    labels = []
    for i in range(len(items)):
        image, of_image = items.read(i)
        check_alike(image, first, i)
        pixels[i] = image
        labels.append(of_image)
    return Source(pixels, _as_array(labels), classes, random)


class Items(Dataset):
    """The images of a data set of pairs.

    Args:
        source: its items are pairs (image, label), or more; or have them by name. label: what messages call it.
        size: (H, W) that images are brought to.
    """

    def __init__(self, source: Any, label: str, size: tuple[int, int] | None) -> None:
        self.source, self.label, self.size = source, label, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Tensor:
        return self.read(i)[0]

    def read(self, i: int) -> tuple[Tensor, Any]:
        """Image [C, H, W] and label."""
        item = ask(f"{self.label}: item {i}", self._item, i)
        if isinstance(item, dict):
            image, label = (
                next((item[name] for name in names if name in item), None)
                for names in (("image", "img", "pixel_values"), ("label", "labels", "fine_label", "target"))
            )
        else:
            pair = isinstance(item, (tuple, list)) and len(item) > 1
            image, label = item[:2] if pair else (None, None)
        if image is None or label is None:
            raise UserError(f"{self.label}: item {i} must be a pair (image, label), not {type(item).__name__}")
        where = f"{self.label}, item {i}"
        pixels = _pixels(image, where)
        if pixels.ndim not in (2, 3):
            raise UserError(f"{where}: an image must be [C, H, W], [H, W, C] or [H, W], not {list(pixels.shape)}")
        return fitted(_channels_first(pixels, isinstance(image, Tensor), where, pixels.ndim == 2), self.size), label

    def _item(self, i: int) -> Any:
        try:
            return self.source[i]
        except OSError as error:
            raise BadImages(f"{self.label}, item {i}: {error}") from error

    def alike(self, i: int) -> bool:
        """Whether an image is the same under two seeds."""
        read = []
        for seed in range(2):
            with _seeded(seed):
                read.append(self[i])
        return read[0].shape == read[1].shape and read[0].equal(read[1])


def _pixels(image: Any, where: str) -> Tensor:
    """A tensor of a type in :data:`pckd.data.views.SCALES`; refuses what has none of its meaning, and is not finite."""
    if hasattr(image, "mode") and hasattr(image, "getbands"):
        modes = {"1": "L", "L": "L", "RGB": "RGB", "RGBA": "RGBA", "I": "I", "F": "F"}
        kept = image.mode if image.mode.startswith("I;16") else modes.get(image.mode, "RGB")
        array = np.asarray(image if kept == image.mode else image.convert(kept))
        # Pillow reads gray of 16 bits as 32.
        image = array.astype(np.uint16) if kept == "I" and array.min() >= 0 and array.max() <= 65535 else array
    if not isinstance(image, Tensor):
        array = np.asarray(image)
        if array.dtype.kind not in "biuf":
            raise UserError(f"{where}: an image must be {PIXELS}, not {array.dtype}")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        image = torch.from_numpy(array if array.flags.writeable else array.copy())
    if image.dtype == torch.bool:
        image = image.byte() * 255
    image = image.detach().float() if image.dtype == torch.float64 else image.detach()
    if image.dtype not in SCALES:
        kind = str(image.dtype).removeprefix("torch.")
        raise UserError(
            f"{where}: images must be uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1), not {kind}; convert them"
        )
    if image.is_floating_point() and not bool(image.isfinite().all()):
        raise UserError(f"{where}: the images have values that are not finite; replace them")
    return image


def _channels_first(images: Tensor, tensor: bool, where: str, gray: bool) -> Tensor:
    """[..., C, H, W] of images in either layout, or without channels (``gray``).

    Channels come first in tensors and last in NumPy arrays, where both may be. The other axis is taken where only that
    can be one of 1 to 16 channels, or only that has 1, 3 or 4.
    """
    if gray:
        return images.unsqueeze(-3)
    first, last = images.shape[-3], images.shape[-1]
    fits = [
        [size <= MOST_CHANNELS for size in (first, last)],
        [size in (1, 3, 4) for size in (first, last)],
    ]
    if not any(fits[0]):
        raise UserError(
            f"{where}: images of shape {list(images.shape[-3:])} have 1 to {MOST_CHANNELS} channels neither first nor "
            "last"
        )
    leads = tensor
    for one, other in fits[::-1]:
        leads = one if one != other else leads
    return images if leads else images.movedim(-1, -3)


def fitted(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """An image [C, H, W] of another size: its center of the same aspect, resized (bilinear, without aliasing)."""
    if size is None or tuple(image.shape[1:]) == size:
        return image
    height, width = image.shape[1:]
    scale = min(height / size[0], width / size[1])
    tall, wide = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - tall) // 2, (width - wide) // 2
    return resized(image[None, :, top : top + tall, left : left + wide], size)[0]


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [M, C, H, W] of another size in their own type, where that has whole numbers rounded to these."""
    floats = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    if not images.is_floating_point():
        floats.round_().clamp_(0, SCALES[images.dtype])
    return floats.to(images.dtype)


def _as_array(labels: Any) -> np.ndarray:
    """Labels as they are given, or as items have them, in one array."""
    if isinstance(labels, (list, tuple)):
        labels = [x.tolist() if isinstance(x, Tensor) else x for x in labels]
    try:
        return labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError:
        raise UserError("labels must be one an image, or K for every image; some have more than others") from None


def _labels(
    labels: np.ndarray, classes: Sequence[str], multilabel: bool | None, where: str
) -> tuple[Tensor | None, Tensor | None]:
    """Labels [M] and targets [M, K], either of which may be None (:class:`registry.DataSplit`)."""
    if labels.dtype.kind in "US":
        place = {name: k for k, name in enumerate(classes)}
        if unknown := set(map(str, labels.ravel())) - place.keys():
            raise UserError(f"{where}: label {min(unknown)!r} is none of the {len(classes)} classes")
        labels = np.array([place[str(name)] for name in labels])
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise UserError(f"{where}: labels must be numbers or names [M], or numbers [M, K], not {list(labels.shape)}")
    if labels.ndim == 2 and labels.shape[1] == 1 and not multilabel:
        labels = labels[:, 0]
    if labels.ndim == 1:
        whole = labels.astype(np.int64)
        if multilabel or not (whole == labels).all():
            expected = "0 and 1 [M, K] for several labels an image" if multilabel else "whole numbers [M]"
            raise UserError(f"{where}: labels must be {expected}")
        if len(whole) and whole.min() < 0:
            raise UserError(f"{where}: labels run from {whole.min()}: each must be 0 or above; leave such images out")
        return torch.from_numpy(whole), None
    targets = torch.from_numpy(labels.astype(np.float32))
    binary = bool(((targets == 0) | (targets == 1)).all())
    one = bool(((targets.sum(1) - 1).abs() < 1e-3).all() and (targets >= 0).all())
    if multilabel is None:
        multilabel = binary and not one
    if multilabel and binary:
        return None, targets
    if multilabel or not one:
        raise UserError(
            f"{where}: labels [M, K] must be probabilities, with rows that sum to 1, or 0 and 1, for several labels an "
            "image"
        )
    return targets.argmax(1), None if binary else targets


def _classes(source: Any) -> tuple[str, ...]:
    """Names of the classes, where a data set, or the one that it is a part of, has them."""
    while isinstance(source, Subset):
        source = source.dataset
    names = getattr(source, "classes", None)
    if not isinstance(names, (list, tuple)):
        return ()
    return tuple(", ".join(map(str, name)) if isinstance(name, (list, tuple)) else str(name) for name in names)


def _labels_of(items: Items) -> np.ndarray:
    """Of a streamed data set: its attribute, where that is what its items say, or read item by item."""
    source: Any = items.source
    chosen = np.arange(len(items))
    while isinstance(source, Subset):
        source, chosen = source.dataset, np.asarray(source.indices)[chosen]
    for name in ("targets", "labels", "_labels"):
        listed = getattr(source, name, None)
        if listed is None or len(listed) != len(source):
            continue
        labels = _as_array(listed)[chosen]
        some = spread(len(items), TRIED)
        if getattr(source, "target_transform", None) is None and np.array_equal(
            labels[some], _as_array([items.read(i)[1] for i in some])
        ):
            return labels
    say_once(
        f"{items.label}: it lists no labels as its .targets, so each of its {len(items):,} items is read for its own"
    )
    return _as_array([items.read(i)[1] for i in range(len(items))])


def _statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of images whose scale is 1, of some of them."""
    if isinstance(images, Tensor):
        if images.dtype == torch.uint8:
            return image_statistics(images)
        chosen = torch.tensor(spread(len(images), SAMPLE[0]))
        images = as_bits(images)[chosen].view(images.dtype)
    else:
        images = torch.stack([images[i] for i in spread(len(images), SAMPLE[1])])
    pixels = images.transpose(0, 1).flatten(1).float().double() / SCALES[images.dtype]
    mean, std = pixels.mean(1), pixels.std(1, correction=0)
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())

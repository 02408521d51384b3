"""What a network says of image files: the likeliest classes, the objects, or the shares of the classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_zoo import Preprocessing, preprocessing_of
from model_zoo.detection import Detector
from model_zoo.probe import borrowed, evaluating
from model_zoo.segmentation import Segmenter
from pckd.data.annotated import prepare
from pckd.data.folder import IMAGENET_MEAN, images_below, read_image
from pckd.data.frames import Square
from pckd.device import Device
from pckd.tasks.segmentation_scores import BACKGROUND, pixel_classes
from registry import BadImages, UserError

__all__ = ["Found", "predict"]

TOGETHER = 16
"""Images of a pass through the network."""


class Found(NamedTuple):
    """One thing that is said of an image."""

    image: str
    label: str
    """Name of a class; empty for an image without an object."""
    measure: str
    """``"probability"`` of the class, ``"score"`` of an object, or ``"share"`` of the image's pixels."""
    value: float
    """Of the measure, 0 to 1."""
    box: tuple[float, ...] | None = None
    """Left, top, right, bottom of an object, in pixels of the file."""


def predict(
    network: nn.Module,
    sources: Iterable[str | os.PathLike[str]],
    *,
    top: int = 3,
    score: float = 0.5,
    multilabel: bool = False,
    device: str | torch.device | None = None,
    precision: str = "auto",
    bad: Callable[[str], object] | None = None,
) -> Iterator[Found]:
    """What a network says of image files, image by image, the likeliest first.

    Images are brought to the size of the network's training: in classification the shorter side is resized, as its
    record says, and the center cropped; in detection and segmentation the whole is resized and padded.

    Args:
        network: with a record of its preprocessing, as of :func:`pckd.load`; afterwards as it was given.
        sources: image files, and folders of them.
        top: how many classes of each image. score: the least of an object.
        multilabel: whether each class is a question of its own (the task ``multilabel``).
        bad: told of each image that cannot be read, which is then left out; by default the first one is raised.

    Raises:
        UserError: no record, no image, or an option out of its range.
    """
    record = preprocessing_of(network)
    if record is not None and record.mean and not record.classes:
        raise UserError("the network has no record of its classes, as one whose classifier was never trained")
    if record is None or not record.whole:
        raise UserError("the network has no record of its classes and preprocessing; see model_zoo.set_preprocessing")
    if len(record.mean) not in (1, 3):
        raise UserError(f"the network takes images with {len(record.mean)} channels, and image files are read with 3")
    if not all(0 <= x <= 1 for x in record.mean):
        raise UserError("the network was trained on images that are not scaled to 0 to 1, as image files are")
    if top < 1 or not 0 <= score <= 1:
        raise UserError(f"top must be at least 1, and score from 0 to 1, not {top} and {score:g}")
    files = [file for source in sources for file in _files(os.fspath(source))]
    if not files:
        raise UserError("no images are given; give files, or a folder of them")
    place = Device.resolve(device, precision)
    kinds: dict[type[nn.Module], Callable[..., Iterator[list[Found]]]] = {
        Detector: partial(_objects, score=score),
        Segmenter: _shares,
    }
    answer = next(
        (kinds[kind] for kind in kinds if isinstance(network, kind)), partial(_classes, top=top, multilabel=multilabel)
    )
    dense = isinstance(network, tuple(kinds))
    with borrowed(network), evaluating(network), torch.no_grad():
        network.to(place.target)
        for at in range(0, len(files), TOGETHER):
            read = list(_read(files[at : at + TOGETHER], record, dense, bad))
            if read:
                names, images, scales = zip(*read, strict=True)
                with place.autocast():
                    found = answer(network, torch.stack(images).to(place.target), scales, record)
                for name, rows in zip(names, found, strict=True):
                    yield from (row._replace(image=name) for row in rows)


def _files(source: str) -> list[str]:
    found = images_below(source) if os.path.isdir(source) else [source]
    if not found:
        raise UserError(f"{source}: no images in this folder")
    return found


def _read(
    files: Sequence[str], record: Preprocessing, dense: bool, bad: Callable[[str], object] | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, image as the network takes it, and by which factors (x, y) it was resized."""
    from PIL import Image

    for file in files:
        try:
            pixels = read_image(file)
        except (BadImages, UserError) as error:
            if bad is None:
                raise
            bad(error.reasons[0] if isinstance(error, BadImages) else str(error))
            continue
        if not dense:
            pixels = Square(record.image_size, record.interpolation)(pixels)
        if len(record.mean) == 1:
            pixels = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).convert("L")))[:, :, None]
        image = pixels.permute(2, 0, 1)
        scale = torch.ones(2)
        if dense:
            fill = [round(255 * x) for x in IMAGENET_MEAN]
            (image, _, _, ratio), _ = prepare(image, torch.zeros(0, 4), None, record.image_size, fill=fill)
            height, width, _ = pixels.shape
            scale = torch.tensor([*ratio[:2], round(height * float(ratio[1])), round(width * float(ratio[0]))])
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (record.mean, record.std))
        yield file, (image.float() / 255 - mean) / std, scale


def _classes(
    network: nn.Module, images: Tensor, _: Any, record: Preprocessing, top: int, multilabel: bool
) -> Iterator[list[Found]]:
    logits = network(images).logits.float()
    shares = logits.sigmoid() if multilabel else logits.softmax(1)
    values, classes = shares.topk(min(top, shares.shape[1]))
    for of_image, which in zip(values.tolist(), classes.tolist(), strict=True):
        names = [(record.classes[k] or f"class {k}", value) for k, value in zip(which, of_image, strict=True)]
        yield [Found("", name, "probability", value) for name, value in names]


def _objects(
    network: Any, images: Tensor, scales: Sequence[Tensor], record: Preprocessing, score: float
) -> Iterator[list[Found]]:
    for found, scale in zip(network.detect(images), scales, strict=True):
        # Within the image, without what it is padded with.
        boxes = (found["boxes"].cpu().float().clamp(min=0).minimum(scale[[3, 2, 3, 2]])) / scale[[0, 1, 0, 1]]
        rows = zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
        objects = [Found("", record.classes[k - 1], "score", x, tuple(box)) for box, k, x in rows if x >= score]
        yield objects or [Found("", "", "score", 0.0)]


def _shares(
    network: nn.Module, images: Tensor, scales: Sequence[Tensor], record: Preprocessing
) -> Iterator[list[Found]]:
    answers = pixel_classes(network(images).maps[-1], images.shape[2:]).cpu()
    for answer, scale in zip(answers, scales, strict=True):
        height, width = scale[2:].int().tolist()
        shares = answer[:height, :width].flatten().bincount(minlength=len(record.classes) + 1).double()
        shares /= shares.sum()
        names = (BACKGROUND, *record.classes)
        yield [
            Found("", names[k], "share", float(shares[k]))
            for k in shares.argsort(descending=True).tolist()
            if shares[k]
        ]

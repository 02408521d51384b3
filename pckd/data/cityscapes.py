"""Cityscapes: street scenes with the class of each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import Cityscapes

from pckd.data.annotated import IGNORED, AnnotatedSplit
from pckd.data.box_files import UNKNOWN, MaskFiles, folder_of, split_of
from registry import DATASETS, UserError

_TRAINED = sorted((kind for kind in Cityscapes.classes if 0 <= kind.train_id < IGNORED), key=lambda kind: kind.train_id)


@DATASETS.register("cityscapes", task="segmentation")
def cityscapes(
    root: str | None = None, train: bool = True, *, image_size: int | Sequence[int] = (512, 1024)
) -> AnnotatedSplit:
    """Cityscapes: ``leftImg8bit`` and ``gtFine``, the 19 classes that are trained on.

    Their train ids 0 to 18 become classes 1 to 19, as 0 is the background, which no pixel is; all others count for
    nothing.

    Args:
        root: the folder that holds these two.
        train: the training split, or else the validation split.
        image_size: what networks are shown: a square of so many pixels, or (height, width).

    Raises:
        UserError: files that are missing.
    """
    folder_of("cityscapes", root, "leftImg8bit/ and gtFine/")
    name = "train" if train else "val"
    try:
        listed = Cityscapes(root, name, target_type="semantic")
    except (RuntimeError, OSError) as error:
        advice = f"it must hold leftImg8bit/{name}/ and gtFine/{name}/, a folder for each city"
        raise UserError(f"cityscapes: {root} is not whole ({' '.join(str(error).split())}); {advice}") from error
    pairs = sorted((image, mask[0]) for image, mask in zip(listed.images, listed.targets, strict=True))
    for image, mask in pairs:
        if not Path(mask).is_file():
            raise UserError(f"cityscapes: {image} has no {mask}; fetch gtFine again")
    table = [UNKNOWN] * 255 + [IGNORED]
    for kind in Cityscapes.classes:
        table[kind.id] = kind.train_id + 1 if kind in _TRAINED else IGNORED
    masks = MaskFiles([mask for _, mask in pairs], table)
    classes = tuple(kind.name for kind in _TRAINED)
    return split_of(f"cityscapes {name}", [image for image, _ in pairs], (), classes, image_size, masks=masks)

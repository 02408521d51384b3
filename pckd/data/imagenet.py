"""ImageNet (Deng et al., 2009), as extracted folders."""

from __future__ import annotations

from typing import Any, Literal

from pckd.data.check import check_on_bad_image
from pckd.data.folder import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, find_split, list_files
from pckd.data.frames import Center, RandomPart
from registry import DATASETS, DataSplit, UserError


@DATASETS.register
def imagenet(
    root: str | None = None,
    train: bool = True,
    *,
    image_size: int = 224,
    min_area: float = 0.08,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> DataSplit:
    """ImageNet: a folder with ``train/<class>/*`` and ``val/<class>/*``, read as it is needed.

    In training a random part of each image, of 3:4 to 4:3, is resized to the image size in the loader's workers; the
    random flip is the loader's. In evaluation the shorter side is resized to 8/7 of the image size (256 for 224) and
    the center cropped. Files are found and decoded as by ``imagefolder``: in archives, too, and ``val`` as it is
    unpacked.

    Args:
        root: the folder.
        train: the training split, or else the validation split.
        image_size: pixels per side.
        min_area: the smallest share of an image's area that a training crop has.
        on_bad_image: what is done about files that cannot be read: ``"stop"`` or ``"skip"``; see
            :class:`registry.DataSplit`.

    Raises:
        UserError: no such folder, a class without images, or one in ``val`` that ``train`` does not have.
    """
    if not root:
        raise UserError("imagenet: give the root folder that holds train/ and val/")
    if image_size < 1:
        raise UserError(f"imagenet: image_size={image_size}: it must be at least 1")
    if not 0 < min_area <= 1:
        raise UserError(f"imagenet: min_area={min_area}: it must be above 0 and at most 1")
    check_on_bad_image(on_bad_image)
    training, split = find_split(root, train, ("val", "valid", "validation"))
    files = list_files(split, training, skip=on_bad_image == "skip")
    plain = Center(image_size, round(image_size * 8 / 7))
    crop = RandomPart(image_size, min_area) if train else plain
    images = ImageFiles(files.paths, (image_size, image_size), crop, plain)
    options: dict[str, Any] = {"padding": 0, "name": f"imagenet {split.name}", "on_bad_image": on_bad_image}
    return DataSplit(images, files.labels, files.classes, IMAGENET_MEAN, IMAGENET_STD, **options)

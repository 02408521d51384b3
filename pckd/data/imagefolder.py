"""Any folder of images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pckd.data.folder import Files, find_split, find_unlabeled, has_classes, list_files, list_unlabeled, no_split
from pckd.data.image_split import ImageOptions, image_split
from registry import DATASETS, DataSplit, UserError


@DATASETS.register
def imagefolder(
    root: str | None = None,
    train: bool = True,
    *,
    image_size: int | None = None,
    min_area: float | None = None,
    memory: bool | Literal["auto"] = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: float | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
    unlabeled: bool = False,
) -> DataSplit:
    """A folder or archive with ``train/<class>/*`` and ``test/<class>/*`` (or ``val/<class>/*``), any usual format.

    The splits' folders have these names in any case; ``training``, ``valid``, ``validation`` and ``testing`` will do.
    Where there is none of them, the root's folders are taken for the classes of a training split, to measure on a share
    of it (``val_fraction``). A ``val`` of Tiny-ImageNet or ImageNet is also read as it is unpacked, without class
    folders, with its ``val_annotations.txt`` or Kaggle's ``LOC_val_solution.csv``. A zip (stored or deflated) or
    uncompressed tar archive is read in place.

    Images are read as a viewer shows them on a white page: upright by their EXIF orientation, transparent ones laid on
    white, the first of several frames or pages. Color profiles are not applied. Hidden folders, links that lead back
    into the data set, images beside the class folders and files of other kinds are left out, and a warning counts them.
    Names of class folders are compared and given in Unicode's form NFC, however the disk spells them.

    Images of up to 8 bits a channel, and TIFF of 12 bits, say which value is white. In gray images of 16 bits 65535 is
    taken for it, in those of 32-bit integers 255, in those of floating-point numbers 1. An image is refused where that
    may be wrong: where a value is below 0 or above white, and where no value of 16 bits is above 16383, because images
    of 10, 12 and 14 bits are stored so. ``white`` is then to be given. It holds for all images: none is stretched by
    its own darkest and brightest value.

    Args:
        root: the folder, the archive, or a folder in an archive (``pictures.zip/small``).
        train: the training split, or else the test split.
        image_size: pixels per side: the shorter side is resized to it and the center cropped. Not needed where all
            images have one size.
        min_area: in training a random part of each image, of at least this share of its area, is resized to the image
            size as the files are read.
        memory: decode everything once into memory (True), or read the files as they are needed (False); ``"auto"``
            decodes where images have at most 64 pixels a side and the training split takes less than 2 GiB.
        mean: per-channel mean of images scaled to [0, 1]. By default that of (10,000 of) the training images in
            memory, ImageNet's where files are read as needed.
        std: per-channel standard deviation, likewise.
        white: the value that is white in gray images of more than 8 bits. 65535 also accepts dark color images of 16
            bits.
        on_bad_image: what is done about files that cannot be read: ``"stop"`` refuses them, in memory all at once;
            ``"skip"`` leaves them out, and a warning names them (of streamed ones see :class:`registry.DataSplit`).
        unlabeled: train on images without labels: all below ``unlabeled/``, or else below ``train/``, or else below the
            root itself but for ``test/`` and ``val/``. Test images in class folders have labels, others have none; of
            the first, those in class folders of ``train/`` are the ``neighbors``. Without test images give
            ``val_fraction``.

    Raises:
        BadImages: files that are no images; with their names.
        UserError: no such folder, an archive that cannot be read, a class without images, a class of the test split
            that training does not have, images of mixed sizes without ``image_size``, or an image of which it is not
            known which value is white; with its name.
    """
    if not root:
        raise UserError("imagefolder: give the root folder that holds train/ and test/ or val/")
    options = ImageOptions("imagefolder", image_size, memory, mean, std, white, on_bad_image, min_area)
    if unlabeled:
        return _unlabeled(root, train, options)
    training, split = find_split(root, train)
    # What the training images are like decides for both splits, so that they are prepared alike.
    source = list_files(training)
    files = source if train else list_files(split, training, skip=options.skip)
    return image_split(source, files, f"imagefolder {split.parent.name}/{split.name}", options)


def _unlabeled(root: str, train: bool, options: ImageOptions) -> DataSplit:
    """Images without labels, and the images to measure on, which may have some."""
    base, training, test, labeled = find_unlabeled(root)

    def split(files: Files, folder: Path) -> DataSplit:
        return image_split(source, files, f"imagefolder {folder.parent.name}/{folder.name}", options)

    source = list_unlabeled(training, test)
    if train:
        return split(source, training)
    if test is None:
        raise UserError(
            f"{no_split(base, 'folder test/ or val/')}; or hold out some of the training images (val_fraction)"
        )
    if not has_classes(test):
        return split(list_unlabeled(test), test)
    measured = split(list_files(test), test)
    return measured if labeled is None else replace(measured, neighbors=split(list_files(labeled), labeled))

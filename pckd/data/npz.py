"""Images and labels as arrays in ``.npz`` files of NumPy."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pckd.data.folder import TESTING, TRAINING, image_statistics, named
from pckd.data.vision import crop_padding
from registry import DATASETS, DataSplit, UserError

_PAIRS = (("images", "labels"), ("x", "y"))
_FORMS = ("{0}_{1}", "{1}_{0}")


@DATASETS.register
def npz(root: str | None = None, train: bool = True, *, channels: int | None = None) -> DataSplit:
    """Arrays of images and labels in a ``.npz`` file, or in ``train.npz`` and ``test.npz``.

    In one file the arrays are called ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` (MedMNIST's
    names), or ``x_train``, ``y_train``, ``x_test``, ``y_test`` (Keras's); ``val``, ``valid`` or ``validation`` serve
    where there is no ``test``. In a file of one split they are ``images`` and ``labels``, or ``x`` and ``y``.

    Images are uint8 [M, H, W], [M, H, W, C] or [M, C, H, W], of 1 or 3 channels, and labels whole numbers [M] or
    [M, 1]. Classes are the labels of the training images, or are named by an array of texts, ``classes``.

    Args:
        root: the file; or a folder with one such file, or with ``train.npz`` and ``test.npz``.
        train: the training split, or else the test split.
        channels: 3 repeats the gray channel for networks that take color; by default those of the file.

    Raises:
        UserError: no such file or array, or one that is no such image or label; with its name.
    """
    if not root:
        raise UserError("npz: give the file, or the folder that holds train.npz and test.npz")
    if channels not in (None, 1, 3):
        raise UserError(f"npz: channels={channels}: it must be 1, or 3 (gray is repeated)")
    base = Path(root).expanduser()
    images, labels, names, where = _split(base, True)
    known, numbers = np.unique(labels, return_inverse=True)
    if names is not None and (known.min() < 0 or known.max() >= len(names)):
        raise UserError(f"{where}: labels run from {known.min()} to {known.max()}, and {len(names)} classes are named")
    classes = tuple(map(str, known.tolist())) if names is None else names
    shown = _images(images, channels, where)
    mean, std = image_statistics(shown)
    if not train:
        images, labels, _, where = _split(base, False)
        shown = _images(images, channels, where)
        if unknown := sorted(set(labels.tolist()) - set(range(len(classes)) if names else known.tolist())):
            count = int(np.isin(labels, unknown).sum())
            raise UserError(f"{where}: {count:,} of {len(labels):,} labels are of no training image, like {unknown[0]}")
        numbers = np.searchsorted(known, labels)
    target = torch.from_numpy(np.asarray(numbers if names is None else labels, dtype=np.int64))
    options: dict[str, Any] = {"padding": crop_padding(min(shown.shape[2:])), "name": f"npz {base.name}"}
    return DataSplit(shown, target, classes, mean, std, **options)


def _split(base: Path, train: bool) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None, str]:
    """Images, labels and names of the classes of a split, and where they are, for messages."""
    wanted = TRAINING if train else TESTING
    file, alone = _file(base, wanted)
    try:
        arrays = np.load(file)
        if isinstance(arrays, np.ndarray):
            raise UserError(f"{file}: it is one array; an .npz file with images and labels is needed")
        with arrays:
            found = _pair(list(arrays), wanted, alone)
            if found is None:
                one = wanted[0]
                needed = "images and labels" if alone else f"{one}_images and {one}_labels, or x_{one} and y_{one}"
                advice = "" if train else "; or measure on a share of the training images with --val-fraction 0.1"
                there = ", ".join(list(arrays)[:8]) + (", ..." if len(arrays) > 8 else "")
                raise UserError(f"{file}: it has {there or 'nothing'}; it must have {needed}{advice}")
            images, labels = (arrays[name] for name in found)
            texts = arrays["classes"] if "classes" in arrays else np.empty(0)
            names = tuple(map(str, texts.tolist())) if texts.dtype.kind == "U" and texts.ndim == 1 else None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read as arrays ({' '.join(str(error).split())[:200]})") from error
    where = f"{file}: {found[1]}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{where} are {labels.dtype} {list(labels.shape)}; labels are whole numbers [M], one an image")
    if len(images) != len(labels) or not len(images):
        raise UserError(f"{where}: {len(labels):,} labels for {len(images):,} images")
    return images, labels, names, f"{file}: {found[0]}"


def _file(base: Path, names: tuple[str, ...]) -> tuple[Path, bool]:
    """The file of a split, and whether it holds that one only."""
    if not os.path.isdir(base):
        if not os.path.isfile(base):
            raise UserError(f"no file {base}: give an .npz file, or the folder that holds train.npz and test.npz")
        return base, False
    there = sorted(path.name for path in base.iterdir() if path.suffix.lower() == ".npz")
    stems = {Path(name).stem: name for name in there}
    if found := named(stems, names):
        return base / stems[found[0]], True
    if len(there) != 1:
        raise UserError(
            f"{base}: it has {', '.join(there[:8]) or 'no .npz file'}; give one file, or one called {names[0]}.npz"
        )
    return base / there[0], False


def _pair(there: Collection[str], splits: Sequence[str], alone: bool) -> tuple[str, str] | None:
    """The arrays of images and labels of the first of the splits that has both."""
    known = {name.lower(): name for name in there}
    pairs = [tuple(form.format(split, kind) for kind in pair) for split in splits for pair in _PAIRS for form in _FORMS]
    for images, labels in (*pairs, *(_PAIRS if alone else ())):
        if images in known and labels in known:
            return known[images], known[labels]
    return None


def _images(images: np.ndarray, channels: int | None, where: str) -> Tensor:
    """uint8 [M, C, H, W]."""
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        kinds = "uint8 [M, H, W], [M, H, W, C] or [M, C, H, W], of 1 or 3 channels"
        raise UserError(f"{where} are {images.dtype} {list(shape)}; images are {kinds}")
    found = torch.from_numpy(images)
    if channels == 3 and found.shape[1] == 1:
        return found.repeat(1, 3, 1, 1)
    if channels not in (None, found.shape[1]):
        raise UserError(f"{where} have {found.shape[1]} channels, and not {channels}")
    return found

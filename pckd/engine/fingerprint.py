"""Fingerprints of data and networks: what the key of a cache holds, and what a resumed run is compared with."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from model_zoo import Preprocessing, preprocessing_of
from pckd.data.annotated import AnnotatedSplit
from pckd.data.archive import read_bytes, size_of
from pckd.data.folder import ImageFiles, spread
from pckd.data.subset import Part
from pckd.engine.progress import own_random_state, seed_everything
from registry import Absent, BadImages, DataSplit, UserError, ask

__all__ = ["code_fingerprint", "digest", "network_fingerprint", "split_fingerprint"]

SAMPLE = 64
"""Files, or images, of streamed data that are read, spread evenly."""
_PIECE = 4096
"""Images, or files, that are looked at together."""


def digest(parts: Mapping[str, Any]) -> str:
    """sha256 of named values; a tensor counts with its type, its shape and its bytes in order, not its layout."""
    found = hashlib.sha256()
    for name, value in parts.items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            # In pieces, because images that are not contiguous are copied.
            for piece in value.detach().split(_PIECE) if value.dim() else (value.detach(),):
                found.update(piece.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{name} {value!r}\n".encode())
    return found.hexdigest()


def split_fingerprint(split: Any) -> dict[str, Any]:
    """What is learned from a split follows from this, as JSON; neither its name nor where its files lie counts.

    Images in memory count with every byte. Of image files that are read as they are needed count all names, relative
    to their common folder, and all sizes, and the content of 64 of them; of other streamed data 64 images; so it
    is with masks. Boxes count with every number. Of another task's split count all its attributes.

    Raises:
        UserError: a file is gone, or an image cannot be read.
    """
    if isinstance(split, AnnotatedSplit):
        known, given = split.objects, ("classes", "mean", "std", "image_size", "augment")
        return {
            "images": _images(split.images),
            "masks": None if split.masks is None else _images(split.masks),
            "objects": digest({"first": split.first_object, **vars(known)}),
            **{name: digest({name: getattr(split, name)}) for name in given},
        }
    if not isinstance(split, DataSplit):
        return {"split": digest({key: value for key, value in vars(split).items() if key != "name"})}
    return {
        "images": _images(split.images),
        "labels": None if isinstance(split.labels, Absent) else digest({"labels": split.labels.to(torch.int64)}),
        **({} if split.targets is None else {"targets": digest({"targets": split.targets})}),
        "classes": digest({"classes": tuple(split.classes)}),
        "mean": [float(x) for x in split.mean],
        "std": [float(x) for x in split.std],
        "padding": split.padding,
        **({} if split.neighbors is None else {"neighbors": split_fingerprint(split.neighbors)}),
    }


def network_fingerprint(network: nn.Module) -> dict[str, Any]:
    """What a network answers, as far as its files say it: parameters, buffers, and the normalization of its images."""
    record = preprocessing_of(network) or Preprocessing()
    return {
        "weights": digest({**network.state_dict(), **dict(network.named_buffers())}),
        "mean": list(record.mean) or None,
        "std": list(record.std) or None,
    }


def code_fingerprint(network: nn.Module) -> str:
    """Hash of how a network computes: its modules, their settings as they print them, and the source of their classes.

    Of PyTorch's own classes, and of those whose source cannot be read, the names count. Where a class lies does not.
    """
    structure = _printed(network)
    names = [f"{name} {type(part).__qualname__}" for name, part in network.named_modules()]
    sources = sorted({_source(type(part)) for part in network.modules()})
    return digest({"printed": structure, "classes": names, "sources": sources})


def _source(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name.startswith("torch."):
        return name
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return name


def _printed(value: object) -> str:
    """How it is printed, without the addresses of functions, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _images(images: Any) -> str:
    if isinstance(images, Tensor):
        return digest({"images": images})
    if isinstance(images, (Part, Subset)):
        return digest({"indices": torch.as_tensor(list(images.indices)), "of": _images(images.dataset)})
    if isinstance(images, ImageFiles):
        return _files(images)
    return digest({"count": len(images), **{f"image {i}": _item(images, i) for i in spread(len(images), SAMPLE)}})


def _files(images: ImageFiles) -> str:
    paths = images.paths
    first, last = min(paths), max(paths)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    # Where the folder that all have in common ends.
    start = first.rfind(os.sep, 0, alike) + 1
    pieces = [paths[begin : begin + _PIECE] for begin in range(0, len(paths), _PIECE)]
    found = hashlib.sha256(f"{images.size} {_printed(images.arrange)}\n".encode())

    def listed(piece: Sequence[str]) -> str:
        return "".join(f"{path[start:].replace(os.sep, '/')}\0{size_of(path)}\n" for path in piece)

    try:
        # Several at once, because a network's file system takes its time for each.
        with ThreadPoolExecutor(16) as pool:
            for lines in pool.map(listed, pieces):
                found.update(lines.encode(errors="surrogateescape"))
        for position in spread(len(paths), SAMPLE):
            try:
                found.update(hashlib.sha256(read_bytes(paths[position])).digest())
            except BadImages:  # a damaged archive: a fact like others, as in _item
                found.update(b"cannot be read")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror or error}); restore the file") from None
    return found.hexdigest()


def _item(images: Any, position: int) -> Any:
    """An image of a streamed data set, with the random numbers of its reading, should it use any, always the same.

    One that cannot be read is a fact like others: whether it stops the run is for the run's steps to say.
    """
    with own_random_state(torch.device("cpu")):
        seed_everything(position, 0)
        try:
            return ask(f"image {position} of the data set", images.__getitem__, position)
        except BadImages:
            return "cannot be read"

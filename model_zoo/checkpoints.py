"""Read and write the weights of one network: local files, ``file://`` and ``http(s)://`` addresses."""

from __future__ import annotations

import _compat_pickle
import argparse
import functools
import hashlib
import http.client
import io
import json
import logging
import os
import pathlib
import pickle
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from iopath.common.file_io import HTTPURLHandler, PathManager
from torch import Tensor, nn

from model_zoo.adapting import classifier_name
from model_zoo.layouts import NESTED, Fit, find_fits
from model_zoo.preprocessing import Preprocessing, preprocessing_of, set_preprocessing
from registry import BACKBONES, UserError
from registry.files import DISK_ERRORS, cannot_write, write_atomically

__all__ = ["Loaded", "OtherClasses", "fetch", "load_weights", "read_metadata", "save_weights"]

log = logging.getLogger(__name__)
# What is said of a download that is not what it should be.
REMOVED = "the download was removed; try again, and if it persists the file at that address has changed"
# How torch words its refusal of a pickle that would run code, as opposed to a file that is no pickle.
UNSAFE = re.compile(r"unsupported (global|class)|unrecognized|can only (build|create|setitem)|not an allowed", re.I)


class _Damaged(UserError):
    """A file that cannot be read as a checkpoint, and that a download cut short may have left."""


class OtherClasses(UserError):
    """A file that fits the network, but for the number of its classes."""

    def __init__(self, text: str, classes: int) -> None:
        super().__init__(text)
        self.classes = classes


class Loaded(NamedTuple):
    """What :func:`load_weights` did."""

    meta: dict[str, Any]
    """The file's metadata, as given to :func:`save_weights`; empty for other files."""
    missing: tuple[str, ...] = ()
    """Keys of the network that kept their values; with ``strict`` those of its classifier alone."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that were not used and not said to be ignored; always empty with ``strict``."""


def load_weights(
    network: nn.Module,
    source: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    strict: bool = True,
    classes: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Loaded:
    """Fill ``network`` from a checkpoint. Either everything is checked and loaded, or nothing is changed.

    The file holds a state dict, or dictionaries with one somewhere inside, or it is a ``.safetensors`` file, or the
    ``.index.json`` of several files. What fits best by names and shapes is taken, behind whatever prefix (``module.``,
    ``backbone.``, ``student.``, ...). Where several fit alike, plain weights come before averaged ones, and the log
    says so; it also says what was ignored. No code in the file is ever run. The network takes the file's record of how
    its images are prepared, too (:func:`model_zoo.preprocessing_of`), or has none where the file has none.

    Args:
        network: what to fill; stays on its device and keeps its types.
        source: a path or an address (see :func:`fetch`); ``FILE#state_dict_ema`` takes the weights of that name.
        sha256: the file's SHA-256 in hexadecimal, checked before the file is opened.
        strict: whether every key must match; if not, those that match in name and shape are loaded.
        classes: names of the network's own. Given, the network keeps its classifier where the file has none, one of
            another shape, or one of classes with other names.
        cache_dir: where downloads are kept.

    Raises:
        UserError: no such file, another hash, no checkpoint, an unsafe one, or one of another network.
    """
    source, wanted = _split(source)
    path, content = _fetch_and_read(source, sha256=sha256, cache_dir=cache_dir)
    own = network.state_dict()
    state = _choose(find_fits(content, own), wanted, content, path).state
    meta = _metadata(content)
    record = Preprocessing.from_metadata(meta)
    kept = [] if classes is None else [f"{classifier_name(network)}.{part}" for part in ("weight", "bias")]
    kept = [key for key in kept if key in own]
    others = record is not None and record.classes and record.classes != tuple(classes or ())
    if others or any(key not in state or state[key].shape != own[key].shape for key in kept):
        state = {key: value for key, value in state.items() if key not in kept}
    else:
        kept = []
    # Files older than PyTorch 0.4.1 don't count batches; nothing depends on the count.
    missing = [key for key in own if not (key in state or key in kept or key.endswith("num_batches_tracked"))]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    matching = [key for key in own if key in state and key not in reshaped]
    if strict:
        _refuse_misfit(path, network, state, missing, unexpected, reshaped)
    elif not matching:
        raise UserError(f"{path}: no key matches {type(network).__name__}'s{_fitting(state)}")
    _check_finite(path, {key: state[key] for key in matching})
    network.load_state_dict({key: state[key] for key in matching}, strict=False)
    set_preprocessing(network, record)
    return Loaded(meta, (*kept, *missing, *reshaped), tuple(unexpected) if not strict else ())


def read_metadata(source: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What :func:`save_weights` was given besides the network; empty for the files of other programs.

    Raises:
        UserError: no such file, no checkpoint, or an unsafe one.
    """
    return _metadata(_fetch_and_read(_split(source)[0], sha256=None, cache_dir=cache_dir)[1])


def classes_in(source: str | os.PathLike[str], network: nn.Module) -> int:
    """How many classes the weights of a file have, by its classifier's rows; 0 where they cannot be seen.

    Args:
        source: as of :func:`load_weights`. network: of the same kind, with any number of classes.

    Raises:
        UserError: no such file, no checkpoint, or an unsafe one.
    """
    file, wanted = _split(source)
    path, content = _fetch_and_read(file, sha256=None, cache_dir=None)
    rows = _choose(find_fits(content, network.state_dict()), wanted, content, path).state
    weight = rows.get(f"{classifier_name(network)}.weight")
    return 0 if weight is None else len(weight)


def _split(source: str | os.PathLike[str]) -> tuple[str, str]:
    """A source and which of its weights are wanted, "" where that is not said; a file may have a # in its name."""
    text = os.fspath(source)
    file, _, wanted = text.rpartition("#")
    return (file, wanted) if file and not os.path.exists(os.path.expanduser(text)) else (text, "")


def _fetch_and_read(
    source: str | os.PathLike[str], *, sha256: str | None, cache_dir: str | os.PathLike[str] | None
) -> tuple[Path, dict[str, Any]]:
    path = fetch(source, sha256=sha256, cache_dir=cache_dir)
    try:
        return path, _read(path)
    except _Damaged as error:
        if not _is_download(os.fspath(source)):
            raise
        path.unlink(missing_ok=True)
        raise UserError(f"{error}; {REMOVED}") from error


def _metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    meta = content.get("meta")
    return dict(meta) if isinstance(meta, Mapping) else {}


def save_weights(network: nn.Module, path: str | os.PathLike[str], /, **metadata: Any) -> Path:
    """Write ``{"model": state dict, "meta": metadata}``, all or nothing, and return the path.

    Where the network carries a record of how its images are prepared, that is in the metadata as ``preprocessing``.

    Args:
        network: its tensors are written from the CPU, so that the file loads anywhere.
        path: the file; folders are made. One that ends in ``.safetensors`` has that format (``pip install
            'pckd[safetensors]'``), in which metadata are strings: what is none is written as JSON.
        metadata: numbers, strings, and lists and dictionaries of them, so that the file loads without running code.

    Raises:
        UserError: it cannot be written; an earlier file of that name is as it was.
    """
    target = Path(path)
    state = network.state_dict()
    record = preprocessing_of(network)
    if record is not None:
        metadata = {"preprocessing": record.as_metadata(), **metadata}
    if target.suffix == ".safetensors":
        data = _to_safetensors(state, target, metadata)
    else:
        buffer = io.BytesIO()
        torch.save({"model": {key: value.detach().cpu() for key, value in state.items()}, "meta": metadata}, buffer)
        data = buffer.getvalue()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    return write_atomically(target, data)


def _to_safetensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise _no_safetensors(path, "writing") from error
    # The format knows neither memory layouts nor tensors that share memory, so each becomes a plain copy.
    tensors = {
        key: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True) for key, value in state.items()
    }
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    content: bytes = save(tensors, {"format": "pt", **texts})
    return content


def fetch(
    source: str | os.PathLike[str], *, sha256: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The local path of ``source``; a download is kept and used again.

    Args:
        source: a path, or an address that begins with ``file://``, ``http://`` or ``https://``; of a folder with a
            ``model.safetensors`` or ``pytorch_model.bin``, as on model hubs, this file.
        sha256: the file's SHA-256 in hexadecimal; a download with another one is removed.
        cache_dir: where downloads are kept; ``pckd`` in PyTorch's hub folder by default.

    Raises:
        UserError: no such file, the download failed, or the hash is another one.
    """
    text = os.fspath(source)
    scheme = urlsplit(text).scheme if "://" in text else ""
    downloaded = _is_download(text)
    if downloaded:
        path = _download(text, cache_dir)
    elif scheme == "file":
        path = Path(url2pathname(unquote(urlsplit(text).path)))
    elif scheme:
        raise UserError(f"{text}: cannot read {scheme}:// addresses; use a path, file://, http:// or https://")
    else:
        path = Path(text).expanduser()
        # A folder in the layout of model hubs.
        names = ("model.safetensors", "pytorch_model.bin")
        inside = (path / f"{name}{ending}" for name in names for ending in ("", ".index.json"))
        path = next((file for file in inside if os.path.isfile(file)), path)
    # Unlike Path.is_file, os.path.isfile takes a name that no file can have for one that none has.
    if not os.path.isfile(path):
        kind = "is a folder; give the checkpoint's file" if os.path.isdir(path) else "no such file"
        raise UserError(f"{path}: {kind}")
    if sha256 is not None:
        _check_hash(path, text, sha256, downloaded)
    return path


def _is_download(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def _download(address: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    parts = urlsplit(address)
    if not parts.hostname or not parts.path.strip("/") or parts.path.endswith("/") or ".." in parts.path.split("/"):
        raise UserError(f"{address}: not the address of a file")
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    base = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "pckd"
    # iopath's cache knows an address by the folder of its path and by what follows its last slash: a folder per server
    # keeps equal paths apart, and a hash keeps queries apart of which only the end would count.
    folder = base / re.sub(r"[^\w.-]", "_", parts.netloc)
    if "/" in parts.query + parts.fragment:
        folder = folder / hashlib.sha256(address.encode()).hexdigest()[:16]
    # It downloads under another name and renames. A server that breaks off is noticed where it had said the length;
    # where it had not, only the hash, or reading the file, tells (load_weights then removes it).
    try:
        return Path(manager.get_local_path(address, cache_dir=str(folder)))
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise cannot_write(folder, error) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{address}: the download failed: {reason}; check the address and the network") from error


def _check_hash(path: Path, source: str, expected: str, downloaded: bool) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    if digest.hexdigest() == expected.strip().lower():
        return
    remedy = "give the right file or hash"
    if downloaded:
        path.unlink()
        remedy = REMOVED
    raise UserError(f"{source}: its SHA-256 is {digest.hexdigest()}, expected {expected}: {remedy}")


def _read(path: Path) -> dict[str, Any]:
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals([*_PLAIN_DATA, *_stand_ins(path)]), warnings.catch_warnings():
            # Of files in formats that are no checkpoints; they are refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if UNSAFE.search(str(error)):
            raise _unsafe(path) from error
        raise _Damaged(f"{path}: not a checkpoint that PyTorch can read") from error
    # Damaged archives fail in many ways, all of which mean the same to the user.
    except Exception as error:
        raise _Damaged(f"{path}: not a checkpoint that PyTorch can read, or a damaged one") from error
    if isinstance(content, _StandIn):
        raise _unsafe(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__} and not a dictionary of weights")
    return dict(content)


def _unsafe(path: Path) -> UserError:
    return UserError(
        f"{path}: refused as unsafe: it holds Python objects and not only weights; "
        "save the state_dict() alone from the program that wrote it"
    )


# Harmless company of the weights in published checkpoints: the command line's options, arrays of numbers, and paths.
_NUMBERS = [np.dtype(code) for code in ("?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d")]
_ARRAY, _NUMBER = (value.__reduce__()[0] for value in (np.zeros(1), np.float64(0)))
_PLAIN_DATA: list[Any] = [
    *(argparse.Namespace, np.dtype, np.ndarray, *{type(dtype) for dtype in _NUMBERS}),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]
# Modules of Python itself whose objects mean no harm; a file that names others of them is refused.
_HARMLESS = {"argparse", "collections", "datetime", "decimal", "enum", "fractions", "logging", "pathlib", "types"}
_HARMLESS |= {"typing", "uuid"}


class _StandIn:
    """In the place of an object among the metadata whose class torch does not allow: knows and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _stand_ins(path: Path) -> list[Any]:
    """Stand-ins for what a file names and torch does not allow, so that nothing of it is imported or called."""
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return []  # no archive of torch's, or a damaged one: reading it says so
    # Pickles call Python's own modules as Python 2 did.
    foreign = (sys.stdlib_module_names | _compat_pickle.IMPORT_MAPPING.keys()) - _HARMLESS
    return [] if any(name.partition(".")[0] in foreign for name in names) else [(_StandIn, name) for name in names]


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise _no_safetensors(path, "reading") from error
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping, and no iterator
            return {"model": state, "meta": file.metadata() or {}}
    except Exception as error:
        raise _Damaged(f"{path}: not a safetensors file, or a damaged one") from error


def _read_shards(path: Path) -> dict[str, Any]:
    """Weights that lie in several files beside this one, which says in which, as Hugging Face's libraries write it."""
    try:
        names = sorted({str(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{path}: not an index of files of weights, or a damaged one") from error
    state: dict[str, Any] = {}
    for name in names:
        if Path(name).name != name or name.endswith(".index.json"):
            raise UserError(f"{path}: names {name!r}, which is no file beside it")
        content = _read(fetch(path.parent / name))
        state |= content["model"] if name.endswith(".safetensors") else content
    return {"model": state}


def _no_safetensors(path: Path, doing: str) -> UserError:
    return UserError(f"{path}: {doing} it needs safetensors, which is not installed: pip install 'pckd[safetensors]'")


def _choose(fits: list[Fit], wanted: str, content: Mapping[str, Any], path: Path) -> Fit:
    """The weights to take: those that are wanted, or the first. Says what else there was."""
    if not fits and any(isinstance(value, _StandIn) for value in content.values()):
        raise _unsafe(path)
    if not fits:
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{path}: no weights in it, neither at the top nor under {', '.join(NESTED)}; it holds: {found}"
        )
    chosen = next((fit for fit in fits if f".{wanted}." in f".{fit.name}." or not wanted), None)
    if chosen is None:
        names = ", ".join(dict.fromkeys(fit.name for fit in fits if fit.name)) or "weights without a name alone"
        raise UserError(f"{path}: holds no weights {wanted!r}; there are {names}")
    alike = dict.fromkeys(fit.name for fit in fits if fit.name and fit.score == chosen.score > 0)
    others = ", ".join(f"{path}#{name}" for name in alike if name != chosen.name)
    if others and not wanted:
        taken = chosen.name or "those at the top"
        _say(logging.WARNING, f"{path}: several weights fit; taken: {taken}, else say {others}")
    if chosen.ignored:
        listed = ", ".join(chosen.ignored[:5]) + (f" and {len(chosen.ignored) - 5} more" if chosen.ignored[5:] else "")
        name = chosen.name and f" of {chosen.name}"
        _say(logging.INFO, f"{path}: weights{name}; ignored: {listed}")
    return chosen


@functools.lru_cache(maxsize=1000)
def _say(level: int, text: str) -> None:
    """Once, however often a file is read."""
    log.log(level, text)


def _refuse_misfit(
    path: Path,
    network: nn.Module,
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
) -> None:
    own = network.state_dict()
    prefix = classifier_name(network)
    weight = f"{prefix}.weight"
    alone = prefix and weight in reshaped and {weight, f"{prefix}.bias"}.issuperset(reshaped)
    if alone and state[weight].shape[1:] == own[weight].shape[1:]:
        theirs, ours = len(state[weight]), len(own[weight])
        raise OtherClasses(
            f"{path}: the file has {theirs} classes, the network {ours}: build the network with num_classes={theirs}",
            theirs,
        )
    shapes = [f"{key} ({list(state[key].shape)} in the file, {list(own[key].shape)} wanted)" for key in reshaped]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(f"{path}: the keys don't fit {type(network).__name__}{_fitting(state)}; {'; '.join(problems)}")


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise UserError(
            f"{path}: values that are not finite in {broken[0]}{more}: the training that wrote it broke down; "
            "give another file"
        )


def _fitting(state: Mapping[str, Tensor]) -> str:
    """Name the built-in network that a file fits; built without memory, so the search takes moments."""
    classes = next((len(value) for value in reversed([*state.values()]) if value.dim() == 2), None)
    if classes is None:
        return ""
    shapes = {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for name, factory in BACKBONES:
        if not str(getattr(factory, "__module__", "")).startswith("model_zoo.") or name in ("torchvision", "timm"):
            continue
        with torch.device("meta"):
            candidate = factory(classes).state_dict()
        if shapes == {k: v.shape for k, v in candidate.items() if not k.endswith("num_batches_tracked")}:
            return f" (the file fits {name})"
    return ""

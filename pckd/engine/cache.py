"""What a frozen teacher answered, kept on disk: it is asked once about each augmentation in a finite pool.

Shapes: B images, V views of each, N = B * V rows (image-major), K classes, D the teacher's embedding width,
M images in the split, P entries in each image's pool.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pckd.data.loader import check_pool
from pckd.data.views import POOL_VERSION
from pckd.engine.fingerprint import code_fingerprint, network_fingerprint, split_fingerprint
from pckd.engine.logit_formats import as_bytes, logit_format, of_bytes
from registry import Absent, Batch, DataSplit, Output, UserError
from registry.files import write_atomically

__all__ = ["NO_MAPS", "TeacherCache", "cache_key"]

FORMAT = 1
META, ANSWERS, CHECKS, LOCK = "meta.json", "answers.f16", "checks.u32", "lock"
UNDIVIDED, PIECE = 2**33, 2**32
"""Bytes up to which the answers are one file, and of the pieces of more."""
VIEWS = 4
_ADVICE = "choose another folder, or leave out the cache"

NO_MAPS = Absent(
    "the teacher cache holds logits and embeddings, not feature maps: leave out the teacher cache, "
    "or the term that reads them"
)
"""What stands for the teacher's maps, and their shapes, where a cache answers."""


class TeacherCache:
    """The logits and embeddings of a frozen teacher in float16, by image, entry of its pool and view.

    A folder of its own for each key and format holds ``meta.json`` (the key, for people and for checking),
    ``answers.f16`` [M, P, 4, K + D] (a large one in pieces, ``answers-000.f16``) and ``checks.u32`` [M, P, 4], which
    grow on disk as they are filled. Every answer has a checksum of its bytes and its place; 0 means that there is none.
    It is written after the answer and verified at each reading, so that an answer that is torn or damaged counts as
    missing. Processes may share a cache.

    Attributes:
        hits: answers recalled. misses: answers that were asked for in vain: of a batch all, where one is missing.
        damaged: answers that failed their checksum.

    Args:
        folder: where caches are kept. key: all that the answers depend on, as JSON (:func:`cache_key`).
        samples: M. pool: P, at least 1. classes: K. embedding: D.
        logits: how logits are written (:func:`pckd.engine.logit_formats.logit_format`); embeddings are float16.
        say: told, in one line each, what is wrong with the files and what is done about it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        key: Mapping[str, Any],
        samples: int,
        pool: int,
        classes: int,
        embedding: int,
        say: Callable[[str], None],
        logits: str = "float16",
    ) -> None:
        if pool < 1:
            raise UserError(f"pool={pool}: a teacher cache needs a finite pool of augmentations, of 1 or more an image")
        self.hits = self.misses = self.damaged = 0
        self._classes, self._pool, self._say, self._told = classes, pool, say, False
        self._format = logit_format(logits, classes)
        self._row = self._format.size + embedding * 2
        shape = (samples, pool, VIEWS, classes + embedding)
        of_image = pool * VIEWS * self._row
        self._piece = samples if samples * of_image <= UNDIVIDED else max(1, PIECE // of_image)
        """Images in each file of answers."""
        pieces = [min(self._piece, samples - first) for first in range(0, samples, self._piece)]
        names = [ANSWERS] if len(pieces) == 1 else [f"answers-{number:03}.f16" for number in range(len(pieces))]
        self._sizes = {name: count * of_image for name, count in zip(names, pieces, strict=True)}
        self._sizes[CHECKS] = math.prod(shape[:3]) * 4
        if logits != "float16":
            key = {**key, "logits": logits}
        meta = json.dumps({"format": FORMAT, "shape": shape, "classes": classes, "key": key}, indent=2, sort_keys=True)
        self.path = Path(folder).expanduser() / _digest(key)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _locked(self.path / LOCK):
                self._prepare(meta)
                # Read through the memory map; written through the files, which report a full disk as an error.
                self._files = {name: open(self.path / name, "r+b", 0) for name in self._sizes}  # noqa: SIM115
                shapes = [(count, pool, VIEWS, self._row) for count in pieces]
                self._answers = [
                    np.memmap(self._files[n], np.uint8, "r", shape=s) for n, s in zip(names, shapes, strict=True)
                ]
                self._checks = np.memmap(self._files[CHECKS], "<u4", "r", shape=shape[:3])
            missing = sum(self._sizes.values()) - self._bytes_used()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise self._refusal(error) from None
        if missing > free:
            say(f"teacher cache {self.path}: to fill it takes {_size(missing)}, and {_size(free)} are free")

    def recall(self, index: Tensor, drawn: Tensor, views: int) -> Output | None:
        """What the teacher answered, float32 on the CPU without maps; None where any of the rows is missing.

        Args:
            index: [B], int64, on the CPU: images. drawn: [B], likewise: entries of their pools. views: V, 1 to 4.
        """
        images, entries = index.numpy(), drawn.numpy()
        checks = self._checks[images, entries, :views]
        good = checks != 0
        if good.all():
            rows = self._rows(images, entries, views)
            good = checks == self._checksums(rows, images, entries)
            bad = int(np.count_nonzero(~good))
            if bad and not self.damaged:
                self._say(f"teacher cache {self.path}: {bad} answers failed their checksum and are computed again")
            self.damaged += bad
        if not good.all():
            self.misses += good.size
            return None
        self.hits += good.size
        return self._decoded(torch.from_numpy(rows).flatten(0, 1))

    def _rows(self, images: np.ndarray, entries: np.ndarray, views: int) -> np.ndarray:
        """uint8 [B, V, bytes of an answer]."""
        if len(self._answers) == 1:
            return np.ascontiguousarray(self._answers[0][images, entries, :views])
        rows = np.empty((len(images), views, self._row), np.uint8)
        pieces = images // self._piece
        for piece in np.unique(pieces):
            here = pieces == piece
            rows[here] = self._answers[piece][images[here] % self._piece, entries[here], :views]
        return rows

    def _decoded(self, data: Tensor) -> Output:
        logits, embedding = data.split([self._format.size, self._row - self._format.size], 1)
        decoded = self._format.decode(logits).contiguous(), of_bytes(embedding, torch.float16).float()
        return Output(*decoded, NO_MAPS, NO_MAPS)

    def store(self, index: Tensor, drawn: Tensor, views: int, output: Output) -> Output:
        """Keep the teacher's answer for all N rows, but for those in which a value does not fit in float16.

        Waits for the device, where the output is on one. Returns the answer as :meth:`recall` will give it: a run that
        finds the cache empty sees the numbers of one that finds it full.
        """
        known = [x.detach() for x in (output.logits, output.embedding) if not isinstance(x, Absent)]
        # Nobody looks at what stands for those that are absent.
        logits = known[0].new_zeros(len(known[0]), self._classes) if isinstance(output.logits, Absent) else known[0]
        embedding = logits[:, :0] if isinstance(output.embedding, Absent) else known[-1]
        data = torch.cat([self._format.encode(logits), as_bytes(embedding.half())], 1)
        kept = self._decoded(data)
        fits = kept.logits.isfinite().all(1) & kept.embedding.isfinite().all(1)
        rows, whole = data.cpu().unflatten(0, (-1, views)).numpy(), fits.cpu().unflatten(0, (-1, views)).numpy()
        images, entries = index.cpu().numpy(), drawn.cpu().numpy()
        if not whole.all() and not self._told:
            self._told = True
            self._say(f"teacher cache {self.path}: answers that do not fit in float16 are computed each time")
        checks = np.where(whole, self._checksums(rows, images, entries), np.uint32(0))
        *pieces, checked = (file.fileno() for file in self._files.values())
        try:
            for image, entry, answer, check in zip(images.tolist(), entries.tolist(), rows, checks, strict=True):
                piece, within = divmod(image, self._piece)
                _write(pieces[piece], answer.tobytes(), (within * self._pool + entry) * VIEWS * self._row)
                _write(checked, check.tobytes(), (image * self._pool + entry) * VIEWS * 4)
        except OSError as error:
            raise self._refusal(error) from None
        return kept._replace(
            logits=torch.where(kept.logits.isfinite(), kept.logits, logits.float()),
            embedding=torch.where(kept.embedding.isfinite(), kept.embedding, embedding.float()),
        )

    def check(self) -> tuple[int, int]:
        """Read every answer; how many there are, and how many of them are damaged, which are then forgotten."""
        found = bad = 0
        for image in range(len(self._checks)):
            entries = np.flatnonzero(self._checks[image].any(1))
            if not len(entries):
                continue
            images, held = np.full_like(entries, image), self._checks[image, entries]
            sums = self._checksums(self._rows(images, entries, VIEWS), images, entries)
            damaged = (held != 0) & (held != sums)
            found, bad = found + int(np.count_nonzero(held)), bad + int(np.count_nonzero(damaged))
            for row, view in np.argwhere(damaged).tolist():
                place = (image * self._pool + int(entries[row])) * VIEWS + view
                _write(self._files[CHECKS].fileno(), bytes(4), place * 4)
        return found, bad

    def keep(self, batch: Batch, output: Output) -> Output:
        """:meth:`store` the answer to a batch that was drawn from the pool."""
        assert batch.drawn is not None
        return self.store(batch.index, batch.drawn, batch.views.shape[1], output)

    def describe(self) -> str:
        """Where it is, how full, and how large: one line."""
        filled = np.count_nonzero(self._checks) / self._checks.size
        size = f"{_size(self._bytes_used())} of {_size(sum(self._sizes.values()))}"
        return f"teacher cache {self.path}: {100 * filled:.1f} % of {self._checks.size:,} answers, {size}"

    def _prepare(self, meta: str) -> None:
        """See that the files are there and are this cache's; make them anew otherwise."""
        held = [name for name in (META, *self._sizes) if (self.path / name).exists()]
        trouble = self._trouble(meta)
        if trouble is None:
            return
        if held:
            self._say(f"teacher cache {self.path}: {trouble}; it is made anew")
        for name in held:
            # Not cut short: another process may have them mapped.
            (self.path / name).unlink()
        for name, size in self._sizes.items():
            with open(self.path / name, "xb") as file:
                file.truncate(size)
        # The last of the files: with it the others are complete.
        write_atomically(self.path / META, meta.encode(), then=_ADVICE)

    def _trouble(self, meta: str) -> str | None:
        if not (self.path / META).exists():
            return f"{META} is missing"
        if (self.path / META).read_bytes() != meta.encode():
            return f"{META} is damaged, or of another cache or format"
        for name, size in self._sizes.items():
            found = (self.path / name).stat().st_size if (self.path / name).exists() else 0
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
        return None

    def _checksums(self, rows: np.ndarray, images: np.ndarray, entries: np.ndarray) -> np.ndarray:
        """[B, V], uint32 above 0, of rows [B, V, K + D] and where they belong."""
        first = (images * self._pool + entries) * VIEWS
        places = (first[:, None] + np.arange(rows.shape[1])) & 0xFFFFFFFF
        data = rows.reshape(-1, rows.shape[2]).view(np.uint8)
        sums = [zlib.crc32(row.data, place) or 1 for row, place in zip(data, places.ravel().tolist(), strict=True)]
        return np.array(sums, np.uint32).reshape(rows.shape[:2])

    def _bytes_used(self) -> int:
        return sum(os.stat(file.fileno()).st_blocks * 512 for file in self._files.values())

    def _refusal(self, error: OSError) -> UserError:
        return UserError(f"teacher cache {self.path}: {error.strerror or error}; {_ADVICE}")


def cache_key(
    teacher: nn.Module, split: DataSplit, *, precision: str, pool: int, flip: bool, **more: Any
) -> dict[str, Any]:
    """All that a teacher's answers to a pool of augmentations depend on, as JSON.

    What changes an answer by its rounding alone does not count: the batch that an image is in, and compiling.

    Args:
        teacher: by its modules, their settings as they print them, their code, and all parameters and buffers; where
            it carries a record of its normalization, that counts instead of the split's. split: by every byte; streamed
            files by their names, their sizes and the bytes of some. precision: what the teacher runs in. pool, flip: of
            the loader. more: anything, as JSON.
    """
    check_pool(split)
    network = network_fingerprint(teacher)
    shown = {name: network[name] for name in ("mean", "std") if network[name] is not None}
    return {
        "teacher": network["weights"],
        "structure": code_fingerprint(teacher),
        **split_fingerprint(split),
        **shown,
        "precision": precision,
        "flip": flip,
        "pool": [pool, POOL_VERSION],
        **more,
    }


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:16]


def check_caches(folder: str | os.PathLike[str], say: Callable[[str], None]) -> int:
    """Read every answer of all caches in a folder, and say of each what it holds.

    Returns:
        how many answers are damaged; they are forgotten, so that they are asked for again.

    Raises:
        UserError: there is no cache in the folder.
    """
    damaged, metas = 0, sorted(Path(folder).expanduser().glob(f"*/{META}"))
    if not metas:
        raise UserError(f"{folder}: there is no teacher cache; give the folder of --teacher-cache")
    for meta in metas:
        try:
            held = json.loads(meta.read_bytes())
            (samples, pool, _, width), classes, key = held["shape"], held["classes"], held["key"]
            if _digest(key) != meta.parent.name:
                raise ValueError
            logits = key.pop("logits", "float16")
            sizes = {"samples": samples, "pool": pool, "classes": classes, "embedding": width - classes}
        except (ValueError, KeyError, TypeError, AttributeError):
            say(f"teacher cache {meta.parent}: {META} is damaged, so that a run makes it anew")
            continue
        cache = TeacherCache(folder, key=key, logits=logits, say=say, **sizes)
        found, bad = cache.check()
        damaged += bad
        left = " and left out" if bad else ""
        say(f"{cache.describe()}; {found:,} are checked, and {bad:,} of them are damaged{left}")
    return damaged


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process is in here with the same file."""
    import fcntl  # not on every system: those that have none can do without a cache

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(file: int, data: bytes, at: int) -> None:
    if os.pwrite(file, data, at) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

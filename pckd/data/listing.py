"""The files of large folders, listed once and kept: later runs look at the folders' times alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pckd.data.paths import Paths
from registry.files import cache_folder, write_atomically

__all__ = ["Listing", "keep_listing", "kept_listing"]

WORTH_IT = 50_000
"""Files from which on a listing is kept."""
FORMAT = 1
_SETTLED = 2 * 10**9
"""Nanoseconds after which a folder's time will not be that of another change, too."""


class Listing(NamedTuple):
    """What lies below the class folders of a split."""

    paths: Sequence[str]
    counts: list[int]
    """Of each class folder."""
    left: dict[str, list[str]]
    """What is left out: reason to a name of each."""
    folders: dict[str, int]
    """All folders that were looked into, and when each was last changed, in nanoseconds."""


def kept_listing(key: Mapping[str, Any]) -> Listing | None:
    """The listing of this key; None where there is none, or a folder has changed since."""
    try:
        with np.load(_place(key)) as held:
            facts = json.loads(held["facts"].tobytes())
            if facts["key"] != key:
                return None
            listing = Listing(Paths.of(held["packed"], held["ends"]), **facts["listing"])
        changed = any(os.stat(folder).st_mtime_ns != then for folder, then in listing.folders.items())
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):  # none, damaged, a folder is gone
        return None
    return None if changed else listing


def keep_listing(key: Mapping[str, Any], listing: Listing) -> None:
    """Keep a listing, where it is large and its folders are at rest; where it can't be written, do without."""
    if len(listing.paths) < WORTH_IT or max(listing.folders.values()) > time.time_ns() - _SETTLED:
        return
    packed = Paths(listing.paths)
    facts = {"key": key, "listing": {k: v for k, v in listing._asdict().items() if k != "paths"}}
    data = io.BytesIO()
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(data, packed=packed.packed.numpy(), ends=packed.ends.numpy(), facts=text)
    try:
        _place(key).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_place(key), data.getvalue())
    except (OSError, ValueError):
        return


def _place(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "listings" / f"{digest}.npz"

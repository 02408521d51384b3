"""Memory of the CPU: pages that a step has freed are kept for the next step."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch

__all__ = ["keep_freed", "kept_for"]

SETTINGS = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables with settings of one's own, which are left alone."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT = 2**31 - 1, 2**30
"""Of the two, bytes: free memory from which on it goes back to the system; size of a block from which on it is a
mapping of its own."""
USUAL = 2**26, 2**25
"""Where glibc's own adjustment of the two ends in a program with large blocks."""


def keep_freed(keep: bool) -> bool:
    """Whether freed memory stays with this process, from now on.

    glibc gives large blocks back to the system at once. The next step asks for the same sizes, and the system clears
    each page anew before it is written: some 15 % of a step of a small network. Speed is all that changes.

    Returns:
        Whether this had an effect: not where the C library is another one, and not where the environment has settings
        for it (:data:`SETTINGS`).
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    trim, mapping = KEPT if keep else USUAL
    with contextlib.suppress(OSError, TypeError, AttributeError):
        libc = ctypes.CDLL(None)
        done = libc.mallopt(M_MMAP_THRESHOLD, mapping) and libc.mallopt(M_TRIM_THRESHOLD, trim)
        if done and not keep:
            libc.malloc_trim(0)
        return bool(done)
    return False


@contextlib.contextmanager
def kept_for(device: torch.device) -> Iterator[None]:
    """Keep freed memory while training on the CPU; afterwards it is given back."""
    kept = device.type == "cpu" and keep_freed(True)
    try:
        yield
    finally:
        if kept:
            keep_freed(False)

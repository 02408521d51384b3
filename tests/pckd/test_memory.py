"""Pages of freed memory: kept while training on the CPU, given back afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pckd.engine.memory import keep_freed, kept_for


def write() -> None:
    torch.empty(12_000_000).fill_(1.0)


def pages() -> int:
    """New pages for ten blocks of 48 MB, one after the other."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        write()
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_freed_pages_stay_while_training_and_go_afterwards() -> None:
    """Ten blocks take ten times their pages where each is given back. While they are kept a block may still come to lie
    elsewhere once or twice, beside something small that was put into its place."""
    if not keep_freed(False):
        pytest.skip("another C library, or settings of one's own")
    block = pages() / 10
    with kept_for(torch.device("cpu")):
        write()
        kept, held = pages(), resident()
    assert kept < 5 * block
    assert held - resident() > block / 2

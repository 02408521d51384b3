"""Pages of freed memory: kept while training on the CPU, given back afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from pckd.engine.memory import keep_freed, kept_for

if not keep_freed(False):
    print("none")
    sys.exit()

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(12_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

usual = pages()
with kept_for(torch.device("cpu")):
    torch.empty(12_000_000).fill_(1.0)
    kept, held = pages(), resident()
print(usual, kept, held, resident())
"""


def test_freed_pages_stay_while_training_and_go_afterwards() -> None:
    """48 MB are 11,719 pages of 4 KiB; a system with larger pages has fewer, in the same proportion.

    Ten blocks one after the other are ten times those pages where each is given back. While they are kept a block may
    still come to lie elsewhere once or twice, beside something small that was put into its place.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("the C library of Linux")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "none":
        pytest.skip("another C library, or settings of one's own")
    usual, kept, held, left = map(int, done.stdout.split())
    block = usual / 10
    assert kept < 5 * block
    assert held - left > block / 2

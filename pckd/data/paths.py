"""The names of many files in two tensors, which processes share: a list of strings would be copied to each of them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from pckd.data.archive import Stored

__all__ = ["Paths"]


class Paths(Sequence[str]):
    """A sequence of file names, of which some may be parts of archives (:class:`pckd.data.archive.Stored`)."""

    def __init__(self, paths: Iterable[str]) -> None:
        packed = bytearray()
        ends = [0]
        for path in paths:
            packed += pickle.dumps(path, -1) if isinstance(path, Stored) else b"/" + os.fsencode(path)
            ends.append(len(packed))
        self._packed = torch.frombuffer(packed, dtype=torch.uint8) if packed else torch.empty(0, dtype=torch.uint8)
        self._ends: Tensor = torch.tensor(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        begin, end = self._ends[at % len(self) :][:2].tolist()
        one = self._packed[begin:end].numpy().tobytes()
        # A pickle does not begin with a slash.
        path: str = os.fsdecode(one[1:]) if one[:1] == b"/" else pickle.loads(one)
        return path

"""The names of many files in two tensors, which processes share: a list of strings would be copied to each of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from pckd.data.archive import Stored, Stretch

__all__ = ["Paths"]


class Paths(Sequence[str]):
    """A sequence of file names, of which some may be parts of archives (:class:`pckd.data.archive.Stored`)."""

    def __init__(self, paths: Iterable[str]) -> None:
        packed = bytearray()
        ends = [0]
        for path in paths:
            packed += _packed(path) if isinstance(path, Stored) else b"/" + os.fsencode(path)
            ends.append(len(packed))
        self._hold(torch.frombuffer(packed, dtype=torch.uint8) if packed else torch.empty(0), torch.tensor(ends))

    @classmethod
    def of(cls, packed: np.ndarray, ends: np.ndarray) -> Paths:
        """From the two tensors that another one has."""
        made = cls(())
        made._hold(torch.from_numpy(packed), torch.from_numpy(ends))
        return made

    def _hold(self, packed: Tensor, ends: Tensor) -> None:
        self.packed, self.ends = packed, ends
        # Far faster to look into than tensors; the memory is the same.
        self._bytes, self._limits = packed.numpy(), ends.numpy()

    def __getstate__(self) -> tuple[Tensor, Tensor]:
        return self.packed, self.ends

    def __setstate__(self, state: tuple[Tensor, Tensor]) -> None:
        self._hold(*state)

    def __len__(self) -> int:
        return len(self._limits) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[position] for position in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        one = self._bytes[self._limits[at] : self._limits[at + 1]].tobytes()
        if one[:1] == b"/":
            return os.fsdecode(one[1:])
        name, _, rest = one[1:].partition(b"\0")
        return Stored.at(os.fsdecode(name), Stretch(*json.loads(rest)) if one[:1] == b"[" else rest)


def _packed(path: Stored) -> bytes:
    """A mark, the name, a zero byte, and what says where it is: a list, or the bytes themselves."""
    inside = isinstance(path.where, bytes)
    where = path.where if isinstance(path.where, bytes) else json.dumps(path.where).encode()
    return (b"=" if inside else b"[") + os.fsencode(path) + b"\0" + where

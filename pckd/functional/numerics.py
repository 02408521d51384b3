"""Small numerical helpers that the losses share."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_FLOOR = 1e-6
"""Norms below this count as this: a zero feature gets a bounded gradient instead of 1e12."""


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: losses are never computed in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Tensor) -> Tensor:
    """Rows of ``x`` [..., D] scaled to length 1; a zero row stays zero."""
    return F.normalize(full(x), dim=-1, eps=NORM_FLOOR)


def exact(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off for the device of ``x``, so that matrix products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)

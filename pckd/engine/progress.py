"""How far a run is, in all that a resumed run needs to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pckd.distributed import add_up
from registry import UserError

ALONE = threading.RLock()
"""Held by the thread that uses the global generators."""


@dataclass
class History:
    """What a finished run knows of itself."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    """One dictionary an epoch, as written to metrics.jsonl."""
    seconds: float = 0.0
    """Of training alone, evaluation excluded; from the start of the run, however often it was resumed."""
    images: int = 0
    """Images trained on in that time, by all processes; an image shown in four views counts once."""
    epoch: int = 1
    """The epoch that the run is in."""
    step: int = 0
    """How many of its steps are done."""

    def best(self, metric: str) -> int:
        """The first epoch, counted from 1, with the highest ``metric``."""
        scores = [row[metric] for row in self.rows]
        return scores.index(max(scores)) + 1

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Meter:
    """Means over an epoch of scalars that stay on the device, so that the step never waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget the steps so far."""
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.count: Tensor | int = 0

    def add(self, values: dict[str, Tensor], valid: Tensor) -> None:
        """Add a step's values; a step that is not ``valid`` (a bool on the device) counts for nothing."""
        row = torch.where(valid, torch.stack([v.detach().float() for v in values.values()]).double(), 0)
        self.names = list(values)
        self.total = row if self.total is None else self.total + row
        self.count = self.count + valid.long()

    def means(self) -> dict[str, float]:
        """Over the steps so far, of all processes."""
        if self.total is None:
            return {}
        counted = torch.as_tensor(self.count, dtype=torch.float64, device=self.total.device)
        *sums, count = add_up(torch.cat([self.total, counted[None]])).tolist()
        return {name: value / count if count else float("nan") for name, value in zip(self.names, sums, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names = state["names"]
        self.total, self.count = (
            value.to(self.device) if isinstance(value, Tensor) else value for value in (state["total"], state["count"])
        )


class OwnBuffers:
    """A module's buffers where several processes train: of memories each has its own."""

    def __init__(self, module: nn.Module, processes: int) -> None:
        self.module, self.processes = module, processes

    def state_dict(self) -> dict[str, Any]:
        """Copies of them, in the main memory; nothing in a single process, whose module has them."""
        named = self.module.named_buffers() if self.processes > 1 else ()
        return {name: buffer.cpu() for name, buffer in named}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state, strict=False)


class RandomState:
    """The global generators, as a part of a run that has state."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        _, keys, *rest = np.random.get_state()
        on_cpu = self.device.type == "cpu"
        return {
            "torch": torch.get_rng_state(),
            "device": None if on_cpu else torch.get_device_module(self.device).get_rng_state(self.device),
            "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            "python": random.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if self.device.type != "cpu" and state["device"] is not None:
            torch.get_device_module(self.device).set_rng_state(state["device"], self.device)
        keys, *rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))


@contextlib.contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Inside, the global generators may be seeded and used; afterwards they are as they were.

    Raises:
        UserError: another thread is inside, whose random numbers would change.
    """
    if not ALONE.acquire(blocking=False):
        raise UserError(
            "another thread of this process is training, with the same global random numbers: "
            "train one after the other, or each in a process of its own"
        )
    try:
        generators = RandomState(device)
        before = generators.state_dict()
        # Seeding one accelerator seeds all.
        others = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        try:
            yield
        finally:
            torch.cuda.set_rng_state_all(others)
            generators.load_state_dict(before)
    finally:
        ALONE.release()


def seed_everything(seed: int, rank: int) -> None:
    """Seed every global generator, differently for each process."""
    torch.manual_seed((seed + rank * 1_000_000_007) % 2**63)
    words = np.random.SeedSequence([seed % 2**64, rank]).generate_state(2, np.uint32)
    np.random.seed(int(words[0]))
    random.seed(int(words[1]))

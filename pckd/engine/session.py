"""What surrounds a training: gradients on, one process among others, random numbers of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from pckd.device import Device, ready_to_train
from pckd.engine.progress import own_random_state
from pckd.engine.ranks import Ranks, joined

__all__ = ["session"]


@contextlib.contextmanager
def session(device: Device) -> Iterator[tuple[Ranks, Device, contextlib.ExitStack]]:
    """Inside, a training has all to itself. Yields this process's rank, its own device, and what is undone at the end.

    Raises:
        UserError: no training works under the caller's settings, another thread trains, or the processes that were
            started together do not find one another.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(ready_to_train(device))
        ranks, target = held.enter_context(joined(device.target))
        held.enter_context(own_random_state(target))
        yield ranks, replace(device, target=target), held

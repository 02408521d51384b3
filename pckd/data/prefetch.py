"""The next batch is made while this one is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.profiler import record_function

__all__ = ["prefetch"]


def prefetch(loader: Any, epoch: int, start: int = 0) -> Iterator[Any]:
    """The batches of ``loader.epoch(epoch, start)``, the next ones made in a thread while the caller has the last.

    Not where that gains nothing: images in memory are made into views in a few milliseconds, on an accelerator in its
    own queue, on the CPU by the cores that also train; nor where this process reads the files itself, because items
    may use the global generators. Workers read ahead by themselves, so that what is left is the views of their images.
    So a loader asks for it: with ``prefetched = True``.
    """
    batches, ahead = loader.epoch(epoch, start), getattr(loader, "prefetched", False)
    pool = ThreadPoolExecutor(1, "next batch")
    made: deque[Future[Any]] = deque(pool.submit(next, batches, None) for _ in range(2 if ahead else 0))
    try:
        while True:
            with record_function("pckd.data"):
                batch = made.popleft().result() if ahead else next(batches, None)
            if batch is None:
                return
            if ahead:
                made.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)

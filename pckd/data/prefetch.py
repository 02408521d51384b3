"""The next batch is made while this one is trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from torch.profiler import record_function

__all__ = ["prefetch"]


def prefetch(loader: Any, epoch: int, start: int = 0) -> Iterator[Any]:
    """The batches of ``loader.epoch(epoch, start)``, the next one made in a thread while the caller has the last.

    Not where that gains nothing: images in memory are made into views in a few milliseconds, on an accelerator in its
    own queue, on the CPU by the cores that also train; nor where this process reads the files itself, because items
    may use the global generators. Workers read ahead by themselves, so that what is left is the views of their images.
    So a loader asks for it: with ``prefetched = True``.
    """
    if not getattr(loader, "prefetched", False):
        batches = loader.epoch(epoch, start)
        while True:
            with record_function("pckd.data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    made: queue.Queue[Any] = queue.Queue(maxsize=1)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in loader.epoch(epoch, start):
                put(batch)
                if left.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="next batch", daemon=True)
    thread.start()
    try:
        while True:
            with record_function("pckd.data"):
                item = made.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()

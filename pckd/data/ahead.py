"""The next batch is made while this one is trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from torch import Tensor

from pckd.data.loader import Loader
from registry import Batch

__all__ = ["ahead"]


def ahead(loader: Loader, epoch: int, start: int = 0) -> Iterator[Batch]:
    """The batches of ``loader.epoch(epoch, start)``, the next one made in a thread while the caller has the last.

    Not where that gains nothing: images in memory are made into views in a few milliseconds, on an accelerator in its
    own queue, on the CPU by the cores that also train; nor where this process reads the files itself, because items
    may use the global generators. Workers read ahead by themselves, so that what is left is the views of their images.
    """
    if isinstance(loader.split.images, Tensor) or loader.num_workers == 0:
        yield from loader.epoch(epoch, start)
        return
    made: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    left = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
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
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        thread.join()

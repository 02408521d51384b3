"""Measuring time and memory: medians of interleaved rounds, parts of a step, and the peak of what was allocated."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._pytree import tree_flatten

from pckd.profiling.report import Timing

T = TypeVar("T")

# A measurement lasts at least this many seconds: shorter calls are repeated.
_FLOOR = 0.02
_BEGIN = "pckd: the peak counts from here"
MARK = "pckd."
"""How the names begin under which a step marks its parts, as in :func:`pckd.engine.step.train_step`."""
_NODE = "autograd::engine::evaluate_function"
"""How the profiler names a call of a node of autograd's graph in the backward pass."""


class Clock:
    """Reads the time where the work is done: events of the stream on CUDA, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        if self.device.type == "cuda":
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3
        return float(end - start)

    def timed(self, run: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of one call, as the mean over ``repeats`` calls in a row."""
        start = self.read()
        for _ in range(repeats):
            run()
        return self.seconds(start, self.read()) / repeats

    def repeats(self, run: Callable[[], object]) -> int:
        """How many calls in a row are long enough to be timed, after two that only warm up."""
        for _ in range(2):
            run()
        return max(1, min(100, math.ceil(_FLOOR / max(self.timed(run), 1e-6))))


def interleaved(measure: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every function once a round, each round beginning with another one: what drifts, drifts for all."""
    names = list(measure)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            samples[name].append(measure[name]())
    return samples


def summary(samples: Iterable[float]) -> Timing:
    """Median and quartiles."""
    values = sorted(samples)
    if not values:
        return Timing()
    if len(values) == 1:
        return Timing(seconds=values[0], seconds_low=values[0], seconds_high=values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(seconds=middle, seconds_low=low, seconds_high=high)


def recorder(device: torch.device, memory: bool = False) -> torch.profiler.profile:
    """torch.profiler for the host and, where PyTorch can record it (:func:`is_recorded`), the device."""
    # Its backend talks on standard error unless it is told not to, once, before it is first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    own = getattr(ProfilerActivity, device.type.upper(), ProfilerActivity.CPU)
    return torch.profiler.profile(activities={ProfilerActivity.CPU, own}, profile_memory=memory)


def is_recorded(device: torch.device) -> bool:
    """Whether torch.profiler records the time of a device's kernels."""
    return hasattr(ProfilerActivity, device.type.upper())


@dataclass
class Spent:
    """Seconds of a marked part, and of the backward pass of the operators that ran in it."""

    here: float = 0.0
    backward: float = 0.0


def spent(events: Iterable[Any], device: torch.device) -> dict[str, Spent]:
    """What each marked part took: on the CPU from its begin to its end, elsewhere its kernels on the device.

    A node of autograd's graph has the number of the operator that made it, which tells whose backward pass it is.

    Args:
        events: of torch.profiler, while steps ran one after the other in one thread; marks do not lie in each other.
    """
    on_host = device.type == "cpu"
    found: dict[str, Spent] = {}
    part_of: dict[int, str] = {}
    part, end, thread = "", 0.0, None
    for event in sorted((e for e in events if e.device_type == DeviceType.CPU), key=lambda e: e.time_range.start):
        if event.name.startswith(MARK):
            part, end, thread = event.name.removeprefix(MARK), event.time_range.end, event.thread
            found.setdefault(part, Spent()).here += event.cpu_time_total / 1e6 if on_host else 0.0
            continue
        if event.time_range.start >= end:
            part = ""
        if not on_host and part and not event.is_user_annotation:
            found[part].here += sum(kernel.duration for kernel in event.kernels) / 1e6
        if event.name.startswith(_NODE):
            if owner := part_of.get(event.sequence_nr):
                found[owner].backward += (event.cpu_time_total if on_host else event.device_time_total) / 1e6
        elif event.sequence_nr >= 0 and event.thread == thread and not event.is_user_annotation:
            # An operator that makes no node has the number of the next one that does.
            part_of[event.sequence_nr] = part
    return found


def how_peak_is_measured(device: torch.device) -> str:
    if device.type == "cuda":
        return "measured by torch.cuda.max_memory_allocated: the tensors that stay, and what is added while it runs"
    if device.type == "cpu":
        return (
            "measured by torch.profiler's record of PyTorch's CPU allocations: the tensors that stay, and what is "
            "added while it runs (memory that libraries take for themselves is not in it)"
        )
    return f"not measured on {device.type}"


def peak_of(run: Callable[[], object], device: torch.device, before: Callable[[], object] = int) -> int | None:
    """Most bytes that were allocated at one time during ``run``, above those allocated when it began; None: unknown.

    Args:
        before: called first. On the CPU only what it or ``run`` allocates is seen to be freed: here belongs what
            ``run`` frees of what was there. What it returns lives until the end.
    """
    if device.type == "cuda":
        kept = before()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - start
    if device.type != "cpu":
        return None
    # Garbage from before that is collected during the record would be counted as freed, with a warning.
    gc.collect()
    with recorder(device, memory=True) as profiler:
        kept = before()
        with torch.profiler.record_function(_BEGIN):
            run()
    del kept
    records = getattr(getattr(profiler, "profiler", None), "kineto_results", None)
    if records is None:
        return None
    events = sorted(records.events(), key=lambda event: event.start_ns())
    level = start = peak = 0
    for event in events:
        if event.name() == _BEGIN:
            start = peak = level
        elif event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            level += event.nbytes()
            peak = max(peak, level)
    return peak - start


def storages(things: Iterable[Any]) -> dict[int, int]:
    """Address to bytes of every different storage in tensors, or trees of tensors."""
    found = {}
    for value in tree_flatten(list(things))[0]:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def held_for_backward(run: Callable[[], object], known: Iterable[Any]) -> int:
    """Bytes that autograd keeps for the backward pass of ``run``, in storages that hold nothing of ``known``."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
        # While the result lives so does what was saved, and no address is used twice.
        old = storages(known)
        new = {address: size for address, size in storages(saved).items() if address not in old}
        del result
    return sum(new.values())

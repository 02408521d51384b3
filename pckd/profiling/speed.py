"""Figures of a benchmark of whole steps: seconds, shares of the machine's peak, memory of a process."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pckd.engine.precision import resolve_precision
from pckd.profiling.measure import Clock, summary
from pckd.profiling.stages import Stages, watched
from pckd.profiling.turns import Turn, Turns, give_back_threads

__all__ = [
    "case_figures",
    "compiling_figures",
    "describe_machine",
    "forget_peak",
    "peak_now",
    "product",
    "stage_figures",
    "stages_of",
]


def describe_machine(device: torch.device) -> str:
    """What the device is, in words that name the kind and not the machine."""
    version = f"torch {torch.__version__.partition('+')[0]}"
    cores = f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cores}, {version}"
    if device.type != "cpu":
        return f"{device.type}, {cores}, {version}"
    kind = torch.backends.cpu.get_cpu_capability()
    if kind == "AVX512" and resolve_precision("auto", device) == "bf16":
        kind = "AVX512-BF16"
    return f"{cores} with {kind}, {torch.get_num_threads()} threads, {version}"


def product(size: int, precision: str, device: torch.device) -> Callable[[], float]:
    """A measurement of a matrix product, size x size x size: its seconds, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    multiply = partial(torch.mm, one, other, out=torch.empty_like(one))
    clock = Clock(device)
    repeats = clock.repeats(multiply)
    give_back_threads()

    def seconds() -> float:
        multiply()
        best = min(clock.timed(multiply, repeats) for _ in range(3))
        give_back_threads()
        return best

    return seconds


def case_figures(
    ready: float, warm_up: Sequence[Turn], turns: Sequence[Turn], *, images: int, macs: int, peak_flops: float
) -> dict[str, Any]:
    """What follows from a case's turns.

    Args:
        ready: seconds until the first step could begin. warm_up: the turns before those that count. images: of a step.
        macs: multiply-adds of a step, two operations each. peak_flops: operations a second that the machine reaches.
    """
    samples = [turn.seconds / turn.steps for turn in turns]
    usual = statistics.median(samples)
    return {
        "samples": samples,
        "step": asdict(summary(samples)),
        "images_per_second": images / usual,
        "macs": macs,
        "of_peak": 2 * macs / usual / peak_flops,
        "ready_seconds": ready,
        "first_step_seconds": warm_up[0].first,
        # Beyond what the same steps take later.
        "start_seconds": ready + sum(turn.seconds - turn.steps * usual for turn in warm_up),
    }


def compiling_figures(compiled: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """What compiling takes, and the steps after which that is made up for; None: never, they are not faster.

    Args:
        compiled, other: figures of two cases (:func:`case_figures`), the same but for compiling.
    """
    seconds = compiled["start_seconds"] - other["start_seconds"]
    gain = other["step"]["seconds"] - compiled["step"]["seconds"]
    return {"seconds": seconds, "repaid_after_steps": max(0.0, seconds) / gain if gain > 0 else None}


def stages_of(turns: Turns, device: torch.device) -> dict[str, float]:
    """Seconds of each part of a step, from one turn that is watched, and of what is outside the two networks.

    That is the whole step less the teacher, the student's forward pass, and what the backward pass takes more than the
    terms' own, measured by itself.
    """
    stages = Stages(Clock(device))
    turns.watcher = stages
    try:
        with watched(stages):
            turns.turn()
    finally:
        turns.watcher = None
    parts = stages.parts()
    whole = sum(parts.values())
    networks = parts.get("teacher", 0.0) + parts["student"] + max(0.0, parts["backward"] - stages.terms_backward)
    return {
        **parts,
        "whole": whole,
        "terms_backward": stages.terms_backward,
        "student_backward": stages.student_backward,
        "outside": whole - networks,
    }


def stage_figures(
    samples: Sequence[Mapping[str, float]], macs: Mapping[str, int], peak_flops: float
) -> dict[str, dict[str, Any]]:
    """For each part of :func:`stages_of` median and quartiles, its share of the step, and how much of the peak it
    reaches, where it has multiply-adds."""
    figures: dict[str, dict[str, Any]] = {}
    for part in samples[0]:
        timing = summary(sample[part] for sample in samples)
        reached = 2 * macs.get(part, 0) / timing.seconds / peak_flops if timing.seconds else 0.0
        share = statistics.median(sample[part] / sample["whole"] for sample in samples)
        figures[part] = {**asdict(timing), "share": share, "macs": macs.get(part, 0), "of_peak": reached}
    return figures


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_now` count from what is in use now; where the system cannot, it goes on from the old peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_now(device: torch.device) -> int:
    """Most bytes in use so far: of tensors on a CUDA device, else of this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # On Linux, getrusage would give a new process the peak of the one that started it.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

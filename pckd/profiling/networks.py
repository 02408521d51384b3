"""What a network costs: counted on its trace by fvcore, and measured."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from model_zoo.probe import copied
from pckd.device import Device
from pckd.profiling.measure import Clock, interleaved, peak_of, storages, summary
from pckd.profiling.operators import Counting, formulas, is_costly
from pckd.profiling.report import ModuleCost, NetworkCost, over


@dataclass(frozen=True)
class Counts:
    """What fvcore finds in a trace."""

    macs: Counter[str]
    """By module; ``""`` is the network."""
    activations: Counter[str]
    left_out: Counter[str]
    uncalled: set[str]


def trace(network: nn.Module, images: Tensor) -> Counts:
    """Trace a copy of the network on ``images`` and count. Raises whatever the tracing raises."""
    with quiet():
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        # Copies, because fvcore leaves its hooks behind where tracing fails.
        flops = FlopCountAnalysis(_Tensors(network), images)
        activations = ActivationCountAnalysis(_Tensors(network), images)
        for analysis in (flops, activations):
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        aten = torch.ops.aten
        flops.set_op_handle("aten::scaled_dot_product_attention", _formula(aten._scaled_dot_product_flash_attention, 4))
        flops.set_op_handle("aten::baddbmm", _formula(aten.baddbmm, 3))
        macs, counted = (
            Counter({_Tensors.inside(name): n for name, n in analysis.by_module().items()})
            for analysis in (flops, activations)
        )
        return Counts(macs, counted, flops.unsupported_ops(), set(map(_Tensors.inside, flops.uncalled_modules())))


class _Tensors(nn.Module):
    """A copy of a network that answers with tensors alone, as a trace does: not with what is absent, nor with names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.own = copied(network)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for x in tree_flatten(self.own(images))[0] if isinstance(x, Tensor))

    @staticmethod
    def inside(name: str) -> str:
        """What the network itself calls a module."""
        return name.removeprefix("own").removeprefix(".")


def count(network: nn.Module, name: str, images: Tensor, depth: int) -> NetworkCost:
    """Everything about a network that needs no clock, for one image [1, C, H, W] that lies where the weights are."""
    network.eval()
    counts, error = None, None
    try:
        counts = trace(network, images)
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200]
        error = f"{name}: fvcore cannot trace it ({type(problem).__name__}: {reason}); no multiply-adds or activations"
    with torch.no_grad(), Counting() as run:
        network(images)
    # Without a trace, what was seen while it ran.
    left_out, uncounted, uncalled = {}, dict(run.uncounted), []
    if counts is not None:
        left_out = {op: n for op, n in sorted(counts.left_out.items()) if not is_costly(op)}
        uncounted = {op: n for op, n in sorted(counts.left_out.items()) if is_costly(op)}
        uncalled = sorted(module for module in counts.uncalled if _parameters(network, module))
    notes = []
    if run.reads_values:
        notes.append(f"{name}: what it computes depends on the values in the images; counted for one random image")
    if uncalled:
        notes.append(f"{name}: modules with parameters that no image passes as a call: {', '.join(uncalled)}")

    def cost(module: str) -> dict[str, Any]:
        tables = {"macs": counts.macs, "activations": counts.activations} if counts is not None else {}
        found = {key: int(table[module]) for key, table in tables.items()}
        return {"parameters": _parameters(network, module), "macs": None, "activations": None, **found}

    modules = [
        ModuleCost(name=module or name, type=type(part).__name__, **cost(module))
        for module, part in network.named_modules()
        if (module.count(".") + 1 if module else 0) <= depth
    ]
    return NetworkCost(
        name=name,
        **cost(""),
        elementwise=run.elementwise.total(),
        latency={},
        peak_bytes=None,
        left_out=left_out,
        uncounted=uncounted,
        modules=modules,
        notes=notes,
        error=error,
    )


def time_networks(
    networks: list[nn.Module], shown: list[Tensor], device: Device, rounds: int
) -> list[tuple[dict[str, Any], int | None]]:
    """For each network: latency at batch 1 and at all of its images, in turns, and the peak memory of inference.

    They run as the engine runs them: in its memory layout, under its autocast, in evaluation mode.
    """
    clock = Clock(device.target)
    sizes = sorted({1, len(shown[0])})
    runs = {}
    batches = [images.contiguous(memory_format=torch.channels_last) for images in shown]
    for number, (network, images) in enumerate(zip(networks, batches, strict=True)):
        device.place(network.eval())
        for size in sizes:
            runs[f"{number} {size}"] = partial(_infer, network, images[:size], device)
    peaks = []
    for number, (network, images) in enumerate(zip(networks, batches, strict=True)):
        run = runs[f"{number} {len(images)}"]
        run()
        peak = peak_of(run, device.target)
        resident = sum(storages([*network.parameters(), *network.buffers(), images]).values())
        peaks.append(None if peak is None else resident + peak)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    if rounds:
        measures = {name: partial(clock.timed, run, clock.repeats(run)) for name, run in runs.items()}
        samples = interleaved(measures, rounds)
    return [
        ({str(size): summary(samples[f"{number} {size}"]) for size in sizes}, peak) for number, peak in enumerate(peaks)
    ]


def inference_speed(
    network: nn.Module, images: Tensor, device: Device, sizes: Sequence[int] = (1, 16), rounds: int = 10
) -> dict[int, float]:
    """Images a second at each batch size, by the median of the rounds, which are measured in turns.

    The network runs as the engine runs it, and stays on the device, in evaluation mode.

    Args:
        images: [N, C, H, W], what it is shown; repeated where a batch has more. rounds: at least 1.
    """
    clock = Clock(device.target)
    device.place(network.eval())
    images = images.to(device.target).contiguous(memory_format=torch.channels_last)
    batches = {str(size): images[torch.arange(size, device=images.device) % len(images)] for size in sizes}
    runs = {size: partial(_infer, network, batch, device) for size, batch in batches.items()}
    samples = interleaved({size: partial(clock.timed, run, clock.repeats(run)) for size, run in runs.items()}, rounds)
    return {size: size / median(samples[str(size)]) for size in sizes}


@torch.no_grad()
def _infer(network: nn.Module, images: Tensor, device: Device) -> None:
    """Call the network as it is used: a detector for its detections, with all that chooses among them."""
    answer: Any = getattr(network, "detect", network)
    with device.autocast():
        answer(images)


def ratios(student: NetworkCost, teacher: NetworkCost | None) -> dict[str, float | None]:
    """Student over teacher."""
    keys = ("parameters", "macs", "activations", "peak_bytes")
    if teacher is None:
        return dict.fromkeys((*keys, "latency"))
    found = {key: over(getattr(student, key), getattr(teacher, key)) for key in keys}
    batches = [
        cost.latency[max(cost.latency, key=int)].seconds if cost.latency else None for cost in (student, teacher)
    ]
    return {**found, "latency": over(*batches)}


def _parameters(network: nn.Module, module: str) -> int:
    return sum(p.numel() for p in network.get_submodule(module).parameters())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Importing fvcore and tracing warn of their deprecation, fvcore's logger of what is reported here anyway."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _formula(operator: Any, dims: int) -> Callable[[list[Any], list[Any]], int]:
    """A handle for fvcore: multiply-adds of an operator that it does not know, by its first three inputs' shapes."""

    def macs(inputs: list[Any], outputs: list[Any]) -> int:
        shapes = [value.type().sizes() for value in inputs[:3]]
        return int(formulas()[operator](*([1] * (dims - len(shape)) + shape for shape in shapes))) // 2

    return macs

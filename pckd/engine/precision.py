"""Which arithmetic the networks run in. Losses are always computed in at least float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from registry import UserError

PRECISIONS = ("auto", "fp32", "bf16")


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` becomes bf16 where the hardware multiplies it natively, else fp32.

    Raises:
        UserError: not one of ``PRECISIONS``.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if "AVX512" in capability and native() else "fp32"
    return "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which the networks run, also where the caller has a context of its own."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def ready_to_train(device: torch.device) -> Iterator[None]:
    """Inside, gradients are recorded in float32, also where the caller has turned that off around the call.

    Raises:
        UserError: the caller's settings are for all of PyTorch, and no training works under them.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("nothing can be trained inside torch.inference_mode(): call this outside of it")
    if torch.get_default_dtype() != torch.float32:
        raise UserError(
            f"the default type of tensors is {torch.get_default_dtype()}, and training is in torch.float32: "
            "call torch.set_default_dtype(torch.float32) first"
        )
    if torch.get_default_device().type != "cpu":
        raise UserError(
            f"the default device is {torch.get_default_device()}, on which random numbers cannot be seeded as they "
            "must be: call torch.set_default_device(None) first, and give device=... instead"
        )
    with torch.enable_grad(), autocast("fp32", device):
        yield


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best one there is.

    Raises:
        UserError: unknown or not available here.
    """
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise NotImplementedError("its tensors hold no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return resolved

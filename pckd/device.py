"""Where the networks run and in which arithmetic. Losses are always computed in at least float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from registry import UserError

__all__ = ["PRECISIONS", "Device", "channels_last", "ready_to_train"]

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Device:
    """A device and the precision in which networks run on it.

    Args:
        target: the device. precision: ``"fp32"`` or ``"bf16"``.
    """

    target: torch.device
    precision: str = "fp32"

    @classmethod
    def resolve(cls, device: str | torch.device | None = None, precision: str = "auto") -> Device:
        """The device asked for, or the best one there is; ``"auto"`` is bf16 where the hardware multiplies it natively.

        Raises:
            UserError: the device is unknown or not available here, or the precision is none of ``PRECISIONS``.
        """
        target = _resolve_target(device)
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        return cls(target, ("bf16" if _multiplies_bf16(target) else "fp32") if precision == "auto" else precision)

    @property
    def type(self) -> str:
        """``"cpu"``, ``"cuda"``, ..."""
        return self.target.type

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the networks run, also where the caller has a context of its own."""
        if self.precision == "bf16":
            return torch.autocast(self.target.type, torch.bfloat16)
        if torch.is_autocast_enabled(self.target.type):
            return torch.autocast(self.target.type, enabled=False)
        return contextlib.nullcontext()

    def place(self, network: nn.Module) -> None:
        """Move to the device, in the memory layout that convolutions are fastest in."""
        channels_last(network.to(self.target))


def channels_last(network: nn.Module) -> None:
    """Lay its weights out in the memory format that convolutions are fastest in."""
    # Not network.to(memory_format=...), which refuses tensors of five dimensions.
    network._apply(lambda tensor: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor)


@contextlib.contextmanager
def ready_to_train(device: Device) -> Iterator[None]:
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
    # Not torch.get_default_device(), which in PyTorch 2.6 does not see a `with torch.device(...)`.
    default = torch.empty(0).device
    if default.type != "cpu":
        raise UserError(
            f"the default device is {default}, on which random numbers cannot be seeded as they "
            "must be: call torch.set_default_device(None) first, and give device=... instead"
        )
    with torch.enable_grad(), Device(device.target).autocast():
        yield


def _resolve_target(device: str | torch.device | None) -> torch.device:
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


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "AVX512" in torch.backends.cpu.get_cpu_capability() and native()
    return False

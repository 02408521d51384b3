"""What can end a run early: a term that is not finite, and a signal."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pckd.functional import world_size
from registry import UserError

LOOK_EVERY = 50
"""Steps between two looks at an accelerator from the host, where a look costs a synchronization."""


class NonFinite(UserError):
    """A term of the objective became infinite or not a number."""


class Interrupted(KeyboardInterrupt):
    """The run was told to stop by a signal, and has kept what it had."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = 128 + number


class FiniteGuard:
    """Lets no step with a term that is not finite change a weight.

    On the CPU the host looks at every step. On an accelerator the optimizer itself passes over such a step, without
    waiting for the host, which looks every ``LOOK_EVERY`` steps and at the end of the epoch.

    Args:
        action: ``"stop"`` raises; ``"skip"`` goes on without the step.
    """

    def __init__(self, device: torch.device, action: Literal["stop", "skip"]) -> None:
        self.device = device
        self.action = action
        self.valid: Tensor | None = None
        """Whether the newest step counts: a bool on the device."""
        self.skipped: Tensor | int = 0
        self.names: list[str] = []
        self._first: Tensor | None = None

    def check(self, values: dict[str, Tensor], optimizer: Any, epoch: int, step: int) -> bool:
        """Look at a step before the optimizer does; whether the optimizer may be called.

        Args:
            epoch: counted from 1. step: counted from 0.

        Raises:
            NonFinite: names the terms, the epoch and the step (both counted from 1).
        """
        finite = torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))
        if world_size() > 1:
            finite = finite.to(torch.int32)
            dist.all_reduce(finite, dist.ReduceOp.MIN)
            finite = finite.bool()
        self.names = list(values)
        self.valid = finite.all()
        if self.device.type == "cpu":
            if bool(self.valid):
                return True
            self._note(finite, epoch, step)
            self.skipped += 1
            if self.action == "stop":
                self.look()
            return False
        optimizer.found_inf = (~self.valid).float()
        self.skipped = self.skipped + (~self.valid).long()
        self._note(finite, epoch, step)
        if self.action == "stop" and step % LOOK_EVERY == 0:
            self.look()
        return True

    def _note(self, finite: Tensor, epoch: int, step: int) -> None:
        """Keep which terms of which step were the first not to be finite."""
        # Filled on the device: a copy from the host could wait for it.
        place = [torch.full((1,), number, device=finite.device) for number in (epoch, step + 1)]
        now = torch.cat([*place, (~finite).long()])
        if self._first is None:
            self._first = torch.where(finite.all(), 0, now)
        else:
            self._first = torch.where((self._first[0] == 0) & ~finite.all(), now, self._first)

    def look(self) -> None:
        """Raise if a step so far was not finite.

        Raises:
            NonFinite: see :meth:`check`.
        """
        if self.action == "skip" or self._first is None:
            return
        epoch, step, *broken = self._first.tolist()
        if epoch:
            named = [name for name, bad in zip(self.names, broken, strict=True) if bad and name != "loss"]
            raise NonFinite(
                f"epoch {epoch}, step {step}: {', '.join(named) or 'loss'} is not finite; "
                "lower the learning rate or that term's weight, or leave such steps out with --on-nonfinite skip"
            )


class Signals:
    """While entered, SIGINT and SIGTERM are kept for the loop to look at between two steps.

    A second one acts at once, as it would have without this. Off the main thread, where no handler can be set,
    nothing is kept.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM) if self.enabled else ():
            self._before[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def pending(self, device: torch.device, step: int) -> int:
        """The signal that has come, to any of the processes; 0: none. They ask together, after the same step."""
        if world_size() == 1:
            return self.number
        if device.type != "cpu" and step % LOOK_EVERY:
            return 0
        worst = torch.tensor([self.number], device=device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return int(worst)

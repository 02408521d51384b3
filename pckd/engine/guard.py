"""What can end a run early: a term that is not finite, a signal, and a process that read the data and died."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data._utils import signal_handling

from pckd.distributed import world_size
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

    On the CPU the host looks at every step. On an accelerator a fused optimizer itself passes over such a step, without
    waiting for the host, which looks every ``LOOK_EVERY`` steps, before each checkpoint and at the end of the epoch.

    Args:
        action: ``"stop"`` raises; ``"skip"`` goes on without the step: statistics, memories and centers, which change
            before anyone can look, are put back, for which they are copied before each step.
    """

    def __init__(self, device: torch.device, action: Literal["stop", "skip"]) -> None:
        self.device = device
        self.action = action
        self.valid = torch.tensor(True)
        """Whether the newest step counts: a bool on the device."""
        self.skipped: Tensor | int = 0
        self.names: list[str] = []
        self._first: Tensor | None = None
        self._kept: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, int]:
        return {"skipped": int(self.skipped)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["skipped"]

    def before(self, trainee: nn.Module) -> None:
        """Keep the buffers as they are before a step, where it may be left out."""
        if self.action == "skip":
            self._kept = {name: buffer.detach().clone() for name, buffer in trainee.named_buffers()}

    @torch.no_grad()
    def after(self, trainee: nn.Module) -> None:
        """Put back the buffers that the step has changed, where it does not count."""
        if not self._kept or (self.device.type == "cpu" and bool(self.valid)):
            return
        for name, buffer in trainee.named_buffers():
            kept = self._kept.get(name)
            if kept is not None and kept.shape == buffer.shape:
                buffer.copy_(torch.where(self.valid, buffer, kept))

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
        if list(values) != self.names:
            # Another stage, with other terms: where the old ones were not finite, it is said before they are forgotten.
            self.look()
            self.names, self._first = list(values), None
        self.valid = finite.all()
        waits = self.device.type == "cpu" or not optimizer.defaults.get("fused")
        if waits and bool(self.valid):
            return True
        if not waits:
            optimizer.found_inf = (~self.valid).float()
        self.skipped = self.skipped + (~self.valid).long()
        self._note(finite, epoch, step)
        if self.action == "stop" and (waits or step % LOOK_EVERY == 0):
            self.look()
        return not waits

    def _note(self, finite: Tensor, epoch: int, step: int) -> None:
        """Keep which terms of which step were the first not to be finite."""
        # Filled on the device: a copy from the host could wait for it.
        place = [torch.full((1,), number, device=finite.device) for number in (epoch, step + 1)]
        now = torch.cat([*place, (~finite).long()])
        first = torch.zeros_like(now) if self._first is None else self._first
        self._first = torch.where((first[0] == 0) & ~finite.all(), now, first)

    def look(self) -> None:
        """Raise NonFinite if a step so far was not finite, unless such steps are left out."""
        if self.action == "skip" or self._first is None:
            return
        epoch, step, *broken = self._first.tolist()
        if epoch:
            named = [name for name, bad in zip(self.names, broken, strict=True) if bad and name != "loss"]
            raise NonFinite(
                f"epoch {epoch}, step {step}: {', '.join(named) or 'loss'} is not finite; "
                "lower the learning rate or that term's weight, or leave such steps out with --on-nonfinite skip"
            )

    @torch.no_grad()
    def look_before_saving(self, trainee: nn.Module, epoch: int, step: int) -> None:
        """Raise NonFinite instead of saving what no run could go on from (epoch and step are counted from 1)."""
        self.look()
        if not bool(torch.stack([parameter.isfinite().all() for parameter in trainee.parameters()]).all()):
            raise NonFinite(
                f"epoch {epoch}, step {step}: weights are not finite, though every term was: a gradient was not; "
                "lower the learning rate, or the weight of a term whose gradient has no bound"
            )


Own = TypeVar("Own", bound="Handlers")


class Handlers:
    """While entered, SIGINT and SIGTERM go to :meth:`handle`, which is told their number.

    Not off the main thread, where no handler can be set, and not a signal that is ignored (as a shell does for what it
    starts in the background) or that the program around Python handles.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self: Own) -> Own:
        for number in (signal.SIGINT, signal.SIGTERM) if self.enabled else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.handle(number)

    def handle(self, number: int) -> None:
        raise NotImplementedError


class EndOnSignals(Handlers):
    """While entered, SIGTERM ends the program in the way that SIGINT does: with time to tidy up, and one line."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def handle(self, number: int) -> None:
        """Raise Interrupted, but in a forked process."""
        if os.getpid() == self._process:
            raise Interrupted(number, "interrupted" if number == signal.SIGINT else "terminated")
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        # A terminal sends SIGINT to all. Processes that read data end when this one, which may still need them, does.


class Signals(Handlers):
    """While entered, SIGINT and SIGTERM are kept for the loop to look at between two steps.

    A second one acts at once, as it would have without this.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)
        self.number = 0

    def handle(self, number: int) -> None:
        """Keep it, and the next one no more."""
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


@contextlib.contextmanager
def dead_readers_named(signals: Signals | None = None) -> Iterator[None]:
    """Inside, the death of a process that reads the data is an error of one line, raised where its data are waited for.

    Args:
        signals: where one of them has come, the other processes may have been told too.

    Raises:
        UserError: instead of what PyTorch raises.
        Interrupted: instead of that, where a signal has come.
    """
    with _deaths_seen_by_waiting():
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_of_a_dead_reader(error):
                raise
            if signals is not None and signals.number:
                raise Interrupted(signals.number, "stopped, as were the processes that read the data") from None
            raise UserError(
                f"a process that reads the data has died ({' '.join(str(error).split()).rstrip('.')}); "
                "continue with --resume, with fewer --num-workers if memory has run out"
            ) from None


@contextlib.contextmanager
def _deaths_seen_by_waiting() -> Iterator[None]:
    """Inside, PyTorch notices the death of a reader as it waits for it, within 5 seconds, and not by SIGCHLD.

    Its handler of that signal raises wherever the main thread happens to be: in the middle of a step or of a file, or
    where Python can but print the error and go on.
    """
    in_main = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main else None
    is_theirs = getattr(handler, "__module__", None) == signal_handling.__name__
    if is_theirs:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = getattr(signal_handling, "_SIGCHLD_handler_set", False)
    signal_handling._SIGCHLD_handler_set = True
    try:
        yield
    finally:
        signal_handling._SIGCHLD_handler_set = before
        if is_theirs:
            signal.signal(signal.SIGCHLD, handler)


def _is_of_a_dead_reader(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    # Its end of a connection may be gone a moment before the process is.
    return any(
        frame.f_globals.get("__name__") == "torch.utils.data.dataloader" and frame.f_code.co_name == "_try_get_data"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )

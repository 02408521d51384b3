"""Whether to run the networks through torch.compile."""

from __future__ import annotations

import torch

from registry import UserError

WORTH_IT = 1500
"""Steps from which on compiling saves more time than it takes; see the README for the measurement."""


def resolve_compile(compile: bool | None, steps: int, device: torch.device) -> tuple[bool, str]:
    """Decide, and say why where that is not what was asked for or expected.

    Args:
        compile: yes, no, or None: where the run is long enough to repay the compilation, and it works here.
        steps: that the run has left.

    Raises:
        UserError: compiling was asked for and does not work here.
    """
    if compile is False or (compile is None and (steps < WORTH_IT or device.type not in ("cpu", "cuda"))):
        return False, ""
    try:
        # A trial, because the compiler itself is looked for only now.
        torch.compile(torch.negative)(torch.ones(8, device=device))
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        if compile:
            raise UserError(f"torch.compile does not work here: {reason}; leave out --compile") from None
        return False, f"not compiled: torch.compile does not work here ({reason})"
    return True, "" if compile else f"compiling the networks: {steps} steps repay it (--no-compile leaves it out)"

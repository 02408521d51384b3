"""SGD of the student and of all that is trained beside it."""

from __future__ import annotations

import torch
from torch import nn

from pckd.objective import Objective


def make_optimizer(
    student: nn.Module, objective: Objective, device: torch.device, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD of the student and, beside it, the projections: left out, they would stay frozen at their random start."""
    parameters = [*student.parameters(), *objective.parameters()]
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)
    reset_momentum(optimizer)
    return optimizer


def reset_momentum(optimizer: torch.optim.SGD) -> None:
    """Start from zero momentum, for every parameter.

    Left to itself, fused SGD makes the buffers at the first gradient, and fails where some parameters have their first
    gradient later than others, as in methods with initial epochs. From zero the first step is the same.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

"""Does an optimizer keep the contract of ``registry.OPTIMIZERS``?"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch

from pckd.testing.contract import Contract
from registry import OPTIMIZERS

STEPS = 20
RATE = 0.01


def check_optimizer(optimizer: str | Callable[..., torch.optim.Optimizer]) -> None:
    """Hold an optimizer to its contract, on a bowl with its bottom at 0.

    Clauses: builds, optimizer, groups, runs, downhill, obeys lr, leaves the unused, resumes.

    Args:
        optimizer: a registered name, with options or without (``"adamw(weight_decay=0.1)"``), or the function
            ``(groups, lr) -> torch.optim.Optimizer``.
    """
    contract = Contract("optimizer", OPTIMIZERS, optimizer)

    def make(lr: float) -> tuple[torch.nn.Parameter, torch.nn.Parameter, Any]:
        used, unused = (torch.nn.Parameter(torch.linspace(1, 2, 6).view(2, 3)) for _ in range(2))
        groups = [{"params": [used, unused], "weight_decay": 0.0}]
        return used, unused, contract.make()(groups, lr)

    def step(parameter: torch.nn.Parameter, by: Any) -> None:
        by.zero_grad(set_to_none=True)
        parameter.square().sum().backward()
        with contract.clause("runs"):
            by.step()

    with contract.trial():
        with contract.clause("builds"):
            used, unused, made = make(RATE)
        kind = type(made).__name__
        contract.holds("optimizer", isinstance(made, torch.optim.Optimizer), kind, "a torch.optim.Optimizer")
        own = [group["weight_decay"] for group in made.param_groups if "weight_decay" in group]
        contract.holds("groups", not any(own), f"the group's weight decay of 0 became {own}", "0")
        start = used.detach().clone()
        for _ in range(STEPS):
            step(used, made)
        lower = bool(used.abs().sum() < start.abs().sum())
        contract.holds("downhill", lower, f"after {STEPS} steps {used.tolist()}", "values nearer to 0")
        contract.holds("leaves the unused", torch.equal(unused, start), "what has no gradient changed", "no change")

        after = deepcopy(made.state_dict())
        again, _, other = make(RATE)
        again.data.copy_(used.data)
        with contract.clause("resumes"):
            other.load_state_dict(after)
        for parameter, by in ((used, made), (again, other)):
            step(parameter, by)
        contract.holds("resumes", torch.equal(used, again), "from its state dict another step", "the same one")
        made.param_groups[0]["lr"] = 0.0
        before = used.detach().clone()
        step(used, made)
        contract.holds("obeys lr", torch.equal(used, before), "with a rate of 0 weights change", "no change")

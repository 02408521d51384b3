"""How weights are updated: the optimizer, its parameter groups, and a learning rate by how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pckd.ops import PUBLISHED_EPOCHS
from registry import OPTIMIZERS, Progress, UserError, ask, build, check_options, parse

__all__ = ["MILESTONES", "Grouping", "Optimization", "learning_rate", "reset_momentum"]

MILESTONES = (150 / PUBLISHED_EPOCHS, 180 / PUBLISHED_EPOCHS, 210 / PUBLISHED_EPOCHS)
"""Shares of the schedule after which the literature lowers the learning rate."""
SCALE = "lr_scale"
"""Entry of a parameter group: by what its learning rate is multiplied."""


@dataclass(frozen=True)
class Grouping:
    """Options that every optimizer by name has: which parameters it treats in another way.

    Args:
        decay_norms: whether weight decay acts on norms, biases and what the network's ``no_weight_decay()`` names, too.
        layer_decay: factor by which the rate of each block is below that of the next one; the last block's is whole. A
            block is what one number in a parameter's name stands for (``blocks.3``), and a top module without numbers.
        projection_lr: factor of the rate of what losses train beside the student.
    """

    decay_norms: bool = True
    layer_decay: float = 1.0
    projection_lr: float = 1.0

    def groups(self, student: nn.Module, objective: nn.Module) -> list[dict[str, Any]]:
        """The parameter groups, those of the student first; one where nothing is treated in another way."""
        named = [(name, parameter, student) for name, parameter in student.named_parameters()]
        blocks = {block: depth for depth, block in enumerate(dict.fromkeys(_block_of(name) for name, *_ in named))}
        named += [(name, parameter, objective) for name, parameter in objective.named_parameters()]
        spared = {id(part): set(_ask_undecayed(part)) for part in (student, objective)}
        found: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter, part in named:
            decays = self.decay_norms or (parameter.ndim > 1 and name not in spared[id(part)])
            scale = self.projection_lr
            if part is student:
                scale = self.layer_decay ** (len(blocks) - 1 - blocks[_block_of(name)])
            found.setdefault((decays, scale), []).append(parameter)
        return [
            {"params": parameters, SCALE: scale, **({} if decays else {"weight_decay": 0.0})}
            for (decays, scale), parameters in found.items()
        ]


def _block_of(name: str) -> str:
    parts = name.split(".")
    numbered = next((k for k, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[: numbered + 1])


def _ask_undecayed(network: nn.Module) -> Sequence[str]:
    """What a timm network says of itself, also inside a wrapper."""
    inner: Any = getattr(network, "network", network)
    prefix = "" if inner is network else "network."
    said = getattr(inner, "no_weight_decay", None)
    return [prefix + name for name in said()] if callable(said) else []


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and of its schedule.

    Args:
        epochs: of the schedule. batch_size: images a step, of all processes together.
        lr: learning rate at the start. momentum, weight_decay: of SGD.
        milestones: shares of the schedule, each in (0, 1], after which lr is multiplied by ``lr_decay``.
        schedule: a factor of (share done, epochs), in the place of milestones. clip_grad: largest norm of the gradient.
        initial: epochs that come before the schedule at a constant learning rate, where a method asks for them.
        initial_lr: this rate; ``lr`` by default.
        make: of parameter groups and a learning rate, in the place of SGD. grouping: what the groups are.
        accumulate: batches whose gradients make one step.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: Sequence[float] = MILESTONES
    lr_decay: float = 0.1
    schedule: Callable[[float, int], float] | None = None
    clip_grad: float | None = None
    initial: int = 0
    initial_lr: float | None = None
    make: Callable[[list[dict[str, Any]], float], torch.optim.Optimizer] | None = None
    grouping: Grouping = field(default_factory=Grouping)
    accumulate: int = 1

    @property
    def all_epochs(self) -> int:
        """The initial ones and those of the schedule."""
        return self.initial + self.epochs

    def optimizer(self, student: nn.Module, objective: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """Of all parameters: left out, the losses' projections would stay frozen at their random start."""
        optimizer: torch.optim.Optimizer
        if self.make is None:
            optimizer = torch.optim.SGD(
                [*student.parameters(), *objective.parameters()],
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                fused=device.type in ("cpu", "cuda"),
            )
        else:
            optimizer = ask("the optimizer", self.make, self.grouping.groups(student, objective), self.lr)
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise UserError(f"the optimizer is {type(optimizer).__name__}: it must be a torch.optim.Optimizer")
        reset_momentum(optimizer)
        return optimizer

    def at(self, epoch: int, step: int, steps: int) -> tuple[Progress, float]:
        """Where in the run a step (counted from 0) of an epoch (from 1, over both stages) is, and its learning rate."""
        if epoch <= self.initial:
            share = (epoch - 1 + step / steps) / self.initial
            return Progress(epoch, self.initial, share, "initial"), self.initial_lr or self.lr
        passed = epoch - 1 - self.initial
        share = (passed + step / steps) / self.epochs
        if self.schedule is None:
            rate = learning_rate(share, self.lr, self.milestones, self.lr_decay)
        else:
            rate = self.lr * self.schedule(share, self.epochs)
        return Progress(passed + 1, self.epochs, share), rate


def learning_rate(progress: float, base: float, milestones: Sequence[float], decay: float = 0.1) -> float:
    """Step schedule: ``base`` times ``decay`` for every milestone (a share of the run, as progress is) reached."""
    return base * decay ** sum(progress >= milestone for milestone in milestones)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(SCALE, 1.0)


def reset_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start without any memory of gradients; SGD from zero momentum, for every parameter.

    Left to itself, fused SGD makes the buffers at the first gradient, and fails where some parameters have their first
    gradient later than others, as in methods with initial epochs. From zero the first step is the same.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


def named_optimizer(spec: str) -> tuple[Callable[..., torch.optim.Optimizer], Grouping]:
    """An optimizer by name, and its groups, from one specification: ``"adamw(weight_decay=0.1, layer_decay=0.8)"``.

    Raises:
        UserError: an unknown name or option, or a factor that is not above 0.
    """
    name, given = parse(spec)
    shared = {option: given.pop(option) for option in list(given) if option in vars(Grouping())}
    check_options(f"{OPTIMIZERS.name}: {name}", Grouping, shared)
    factors: Mapping[str, Any] = {
        option: shared[option] for option in ("layer_decay", "projection_lr") if option in shared
    }
    for option, factor in factors.items():
        if not factor > 0:
            raise UserError(f"optimizer {name}: {option}={factor}: it must be above 0")
    return build(OPTIMIZERS, name, **given), Grouping(**shared)


class RunningAverage(AveragedModel):
    """The exponential running average of a network's weights and batch statistics.

    Args:
        network: of which it takes a copy. decay: share of the old average in the new one.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)
        super().__init__(network, multi_avg_fn=average, use_buffers=True)
        self.average = average
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add what the weights are now; the first ones are taken as they are.

        PyTorch's own would copy its count, of which this average does not ask, to an accelerator and wait for it.
        """
        if not self.n_averaged:
            super().update_parameters(model)
            return
        both = [[*network.parameters(), *network.buffers()] for network in (self.module, model)]
        for kind in {tensor.dtype for tensor in both[0]}:
            old, new = ([tensor for tensor in tensors if tensor.dtype == kind] for tensors in both)
            self.average(old, new, self.n_averaged)
        self.n_averaged += 1

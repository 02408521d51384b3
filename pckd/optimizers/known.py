"""Optimizers of PyTorch, and two that timm keeps. The facts ``lr`` are the rates at which each is usually started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from registry import OPTIMIZERS, UserError

Groups = Sequence[dict[str, Any]]


def _fused(groups: Groups) -> bool:
    """Whether all parameters are where PyTorch has one kernel for a whole step."""
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


@OPTIMIZERS.register("sgd", lr=0.05)
def sgd(
    groups: Groups, lr: float, *, momentum: float = 0.9, weight_decay: float = 5e-4, nesterov: bool = False
) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    options: dict[str, Any] = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    return torch.optim.SGD(groups, lr, fused=_fused(groups), **options)


@OPTIMIZERS.register("adam", lr=1e-3)
def adam(
    groups: Groups, lr: float, *, weight_decay: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Optimizer:
    """Adam (Kingma and Ba, arXiv 1412.6980), its weight decay as a part of the gradient."""
    return torch.optim.Adam(groups, lr, (beta1, beta2), eps, weight_decay, fused=_fused(groups))


@OPTIMIZERS.register("adamw", lr=1e-3)
def adamw(
    groups: Groups,
    lr: float,
    *,
    weight_decay: float = 0.05,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101); the usual one for transformers."""
    return torch.optim.AdamW(groups, lr, (beta1, beta2), eps, weight_decay, fused=_fused(groups))


@OPTIMIZERS.register("rmsprop", lr=1e-3)
def rmsprop(
    groups: Groups,
    lr: float,
    *,
    alpha: float = 0.9,
    momentum: float = 0.9,
    weight_decay: float = 1e-5,
    eps: float = 1e-3,
) -> Optimizer:
    """RMSprop (Hinton's lecture 6e) with the settings that the EfficientNets are trained with."""
    return torch.optim.RMSprop(groups, lr, alpha, eps, weight_decay, momentum)


@OPTIMIZERS.register("lamb", lr=5e-3, library="timm")
def lamb(groups: Groups, lr: float, *, weight_decay: float = 0.02) -> Optimizer:
    """LAMB (You et al., arXiv 1904.00962), for large batches; timm's."""
    return _of_timm("lamb")(list(groups), lr=lr, weight_decay=weight_decay)


@OPTIMIZERS.register("lion", lr=1e-4, library="timm")
def lion(groups: Groups, lr: float, *, weight_decay: float = 0.5, beta1: float = 0.9, beta2: float = 0.99) -> Optimizer:
    """Lion (Chen et al., arXiv 2302.06675); timm's. Its rate is a tenth of AdamW's, its weight decay ten times."""
    return _of_timm("lion")(list(groups), lr=lr, weight_decay=weight_decay, betas=(beta1, beta2))


def _of_timm(name: str) -> Any:
    try:
        from timm import optim
    except ImportError as error:
        raise UserError(f"optimizer {name} needs timm, which is not installed: pip install 'pckd[timm]'") from error
    return {"lamb": optim.Lamb, "lion": optim.Lion}[name]

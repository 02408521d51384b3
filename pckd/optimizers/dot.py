from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pckd.distributed import add_up, world_size
from registry import OPTIMIZERS, UserError

TASK, DISTILLATION = "task", "distillation"


class DistillationOriented(torch.optim.Optimizer):
    """SGD with one momentum for the gradients of the task's terms, and a longer one for those of distillation.

    An optimizer with :meth:`take_gradients` is given the two sums of losses by each step, in the place of a backward
    pass. Without, all gradients count as the task's.
    """

    def __init__(self, groups: Any, lr: float, *, momentum: float, delta: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})
        self._taken: dict[str, dict[Tensor, Tensor]] = {}

    def take_gradients(self, task: Tensor | None, distillation: Tensor | None) -> None:
        """Add the gradients of two scalars, each the mean of this process's rows, to what was taken since
        :meth:`zero_grad`; of several processes the mean. ``grad`` of each parameter has their sum."""
        trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for name, loss in ((TASK, task), (DISTILLATION, distillation)):
            if loss is None:
                continue
            own = self._taken.setdefault(name, {})
            gradients = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                if gradient is None:
                    continue
                if world_size() > 1:
                    gradient = add_up(gradient.contiguous()).div_(world_size())
                own[parameter] = own[parameter] + gradient if parameter in own else gradient
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    def scale_gradients(self, factor: Tensor) -> None:
        """Scale what was taken, as where the gradient of all terms together is clipped."""
        self._taken = {name: {p: factor * x for p, x in own.items()} for name, own in self._taken.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._taken = {}
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = [p for group in self.param_groups for p in group["params"]]
        taken = self._taken or {TASK: {p: p.grad for p in every if p.grad is not None}}
        both = set(taken.get(TASK, ())) & set(taken.get(DISTILLATION, ()))
        for group in self.param_groups:
            for name, own in taken.items():
                for shared in (True, False):
                    chosen = [p for p in group["params"] if p in own and (p in both) == shared]
                    if chosen:
                        self._update(group, name, chosen, [own[p] for p in chosen], shared)
        self._taken = {}
        return loss

    def _update(
        self, group: dict[str, Any], name: str, parameters: list[Tensor], gradients: list[Tensor], shared: bool
    ) -> None:
        """Of one kind of gradients; decay and the shifted momenta as released."""
        momentum = group["momentum"]
        if shared:
            momentum += group["delta"] if name == DISTILLATION else -group["delta"]
        if group["weight_decay"] and not (shared and name == DISTILLATION):
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        buffers = [self.state[parameter][name] for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


@OPTIMIZERS.register("dot", lr=0.05)
def dot(
    groups: Sequence[dict[str, Any]],
    lr: float,
    *,
    momentum: float = 0.9,
    delta: float = 0.075,
    weight_decay: float = 5e-4,
) -> DistillationOriented:
    """Distillation-oriented SGD (Zhao et al., arXiv 2307.08436): terms with and without a teacher have their own.

    Momentum is ``momentum - delta`` for the gradient of the terms that look at no teacher, ``momentum + delta`` for
    that of the others, and ``momentum`` for a parameter that only one of the two reaches. A step costs two backward
    passes. A loss that has its own cross entropy inside (``norm``) counts as one that looks at the teacher.

    Args:
        delta: released 0.075 for CIFAR-100 and 0.09 for ImageNet.
    """
    if not 0 <= momentum - abs(delta) <= momentum + abs(delta) < 1:
        raise UserError(f"dot: momentum={momentum} with delta={delta} must stay 0 or above, and below 1")
    return DistillationOriented(groups, lr, momentum=momentum, delta=delta, weight_decay=weight_decay)

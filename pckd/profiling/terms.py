"""What each term of an objective costs: each loss by itself, with what the objective gave it in a real step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from pckd.profiling.measure import held_for_backward, storages
from pckd.profiling.operators import Counting
from pckd.profiling.report import ProjectionCost, TermCost
from pckd.profiling.step import Workload, run_module
from registry import Context, Output


@dataclass
class Calls:
    """What was called with what in a step."""

    losses: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    projections: dict[str, list[tuple[str, nn.Module, Any, bool]]] = field(default_factory=dict)


def calls_of(work: Workload, stage: Literal["initial", "main"] = "main") -> Calls:
    """Take a step and keep the arguments of each loss, and of the trained modules in the losses."""
    calls = Calls()
    handles: list[Any] = []

    def watch(label: str, loss: nn.Module) -> None:
        calls.projections[label] = []
        inside: list[str] = []

        def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            if not inside:
                calls.projections[label].append((name, module, (args, kwargs), torch.is_grad_enabled()))
            inside.append(name)

        def leave(*_: Any) -> None:
            inside.pop()

        handles.append(loss.register_forward_pre_hook(lambda _, args: calls.losses.update({label: args})))
        for name, module in loss.named_modules():
            if name and any(p.requires_grad for p in module.parameters()):
                handles.append(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
                handles.append(module.register_forward_hook(leave))

    for label, loss in work.objective.losses.items():
        watch(label, loss)
    try:
        work.step(stage)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _leaves(tree: Any) -> Any:
    """The same tensors without their history; they require gradients where they did."""
    return tree_map(lambda x: x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x, tree)


def fresh(args: tuple[Any, ...]) -> tuple[Output, Output, Context]:
    """The arguments of a loss as leaves, so that a backward pass ends at them."""
    student, teacher, context = args
    return _leaves(student), _leaves(teacher), replace(context, centers=_leaves(context.centers))


def count_call(call: Callable[[], Any]) -> tuple[Counting, Counting]:
    """Count a call forward and, from the sum of what it returns, backward."""
    with Counting() as forward:
        result = call()
    outputs = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor) and x.requires_grad]
    with Counting() as backward:
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
    return forward, backward


def count_terms(work: Workload) -> dict[str, TermCost]:
    """Each term of the objective by itself: everything about it but its time."""
    calls = calls_of(work)
    late = [label for label, term in work.objective.terms.items() if not term.main]
    if late:
        first = calls_of(work, "initial")
        for label in late:
            calls.losses[label], calls.projections[label] = first.losses[label], first.projections[label]
    costs = {}
    for label, loss in work.objective.losses.items():
        student, teacher, context = shown = fresh(calls.losses[label])
        call = partial(run_module, work, loss, *shown)
        forward, backward = count_call(call)
        given = [student, teacher, context.centers, context.labels, context.index]
        projections: dict[str, ProjectionCost] = {}
        for name, module, arguments, grad in calls.projections[label]:
            projections[name] = _projection(work, name, module, arguments, grad, projections.get(name))
        costs[label] = TermCost(
            parameters=sum(p.numel() for p in loss.parameters() if p.requires_grad),
            buffer_bytes=sum(storages(loss.buffers()).values()),
            macs=forward.macs.total(),
            macs_backward=backward.macs.total(),
            elementwise=(forward.elementwise + backward.elementwise).total(),
            bytes=held_for_backward(call, [work.known, given]),
            uncounted=dict(sorted((forward.uncounted + backward.uncounted).items())),
            projections=projections,
            note="acts in the initial epochs only; its time is not in the step" if label in late else "",
        )
    return costs


def _projection(
    work: Workload, name: str, module: nn.Module, arguments: Any, grad: bool, before: ProjectionCost | None
) -> ProjectionCost:
    args, kwargs = _leaves(arguments)
    with torch.set_grad_enabled(grad):
        forward, backward = count_call(partial(run_module, work, module, *args, **kwargs))
    return ProjectionCost(
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        macs=forward.macs.total() + (before.macs if before else 0),
        macs_backward=backward.macs.total() + (before.macs_backward if before else 0),
    )

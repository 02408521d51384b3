"""What each term of an objective costs: each loss by itself, with what the objective gave it in a real step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from pckd.engine.precision import autocast
from pckd.objective import Objective
from pckd.profiling.measure import Clock, held_for_backward, interleaved, storages, summary
from pckd.profiling.operators import Counting
from pckd.profiling.report import ProjectionCost, TermCost, Timing
from pckd.profiling.step import Workload, run_module
from registry import Context, Output, Setup, Term


@dataclass
class Calls:
    """What was called with what in a step."""

    losses: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    projections: dict[str, list[tuple[str, nn.Module, Any, bool]]] = field(default_factory=dict)
    objective: tuple[Any, ...] = ()


def calls_of(work: Workload, stage: Literal["initial", "main"] = "main") -> Calls:
    """Take a step and keep the arguments of the objective, of each loss, and of the trained modules in the losses."""
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

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        calls.objective = args

    handles.append(work.objective.register_forward_pre_hook(keep))
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
    """The arguments of a loss or an objective as leaves, so that a backward pass ends at them."""
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
            macs=forward.macs,
            macs_backward=backward.macs,
            elementwise=forward.elementwise + backward.elementwise,
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
        macs=forward.macs + (before.macs if before else 0),
        macs_backward=backward.macs + (before.macs_backward if before else 0),
    )


class Nothing(nn.Module):
    """The cheapest term there is, the mean logit: what a method of one term is compared with."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return student.logits.float().mean()


def without(work: Workload, label: str) -> Objective:
    """The same objective, with the same modules, less one term."""
    objective = work.objective
    kept = [
        replace(term, loss=partial(_same, objective.losses[other]), options={}, name=other)
        for other, term in objective.terms.items()
        if other != label
    ]
    if not any(term.main for term in kept):
        kept.append(Term(Nothing))
    made = Objective(
        kept,
        work.setup,
        difficulty=objective.difficulty,
        scheduler=objective.scheduler,
        centers=objective.centers,
    )
    return made.to(work.device).train()


def _same(module: nn.Module, setup: Setup) -> nn.Module:
    return module


def measure_terms(work: Workload, clock: Clock, rounds: int) -> tuple[Timing, dict[str, Timing]]:
    """Time of the objective, forward and backward to the networks' outputs, and how much of it each term adds."""
    args = calls_of(work).objective
    parameters = list(work.objective.parameters())

    def run(objective: Objective) -> None:
        for parameter in parameters:
            parameter.grad = None
        with autocast(work.precision, work.device):
            values = objective(*fresh(args))
        values["loss"].backward()

    variants = {label: without(work, label) for label, term in work.objective.terms.items() if term.main}
    runs = {
        "": partial(run, work.objective),
        **{label: partial(run, objective) for label, objective in variants.items()},
    }
    measures = {name: partial(clock.timed, each, clock.repeats(each)) for name, each in runs.items()}
    samples = interleaved(measures, rounds)
    more = {
        label: summary(full - less for full, less in zip(samples[""], samples[label], strict=True))
        for label in variants
    }
    return summary(samples[""]), more

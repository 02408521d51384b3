"""Does a difficulty scheduler keep the contract of ``registry.DIFFICULTY_SCHEDULERS``?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pckd.testing.cases import IMAGES, ORDER, WIDTH, make_case, near
from pckd.testing.contract import Contract
from registry import DIFFICULTY_SCHEDULERS, Context, Instances

DIFFICULTIES = (
    (0.0, 0.2, 0.9, 1.0, 1.1, 2.8),
    (0.0,) * IMAGES,
    (1.0,) * IMAGES,
    (0.0, 0.0, 0.0, 0.0, 0.0, 6.0),
    (1e-30, 1e-6, 1.0, 30.0, 1e6, 1e30),
)
"""Of an easy and a hard image, of a batch that is all the same, and as far as difficulty may go."""
MOMENTS = ((1, 0.0), (3, 0.25), (10, 0.999))
"""Epochs of 10, and the share of the training steps that is done."""


def check_scheduler(scheduler: str | Callable[..., Tensor]) -> None:
    """Hold a difficulty scheduler to its contract, at the start, in the middle and at the end of a run.

    Clauses: builds, runs, shape, float32, finite, not negative, no gradient, pure, input untouched, order.

    Args:
        scheduler: a registered name, with options or without (``"preview(growth=1.01)"``), or the function
            ``(difficulty [B], context) -> weights [B]``.
    """
    contract = Contract("scheduler", DIFFICULTY_SCHEDULERS, scheduler)
    with contract.clause("builds") as expect:
        weigh = contract.make()
        expect(callable(weigh), f"it is {type(weigh).__name__}", "a function")
    context = make_case(1, WIDTH, grad=False).context
    for epoch, progress in MOMENTS:
        for values in DIFFICULTIES:
            with contract.trial(f"epoch {epoch} of {context.epochs}, difficulty {list(values)}"):
                _check(contract, weigh, torch.tensor(values), replace(context, epoch=epoch, progress=progress))
    # One image is a batch, too.
    with contract.trial("one image"):
        _check(contract, weigh, torch.ones(1), _of_rows(context, [0]))


def _of_rows(context: Context, rows: list[int]) -> Context:
    return replace(context, instances=Instances(context.labels[rows], context.index[rows]))


def _check(
    contract: Contract, weigh: Callable[[Tensor, Context], Tensor], difficulty: Tensor, context: Context
) -> None:
    kept = difficulty.clone()
    weights = contract.vector(lambda: weigh(difficulty, context), kept.shape)
    contract.holds("not negative", (weights >= 0).all(), f"returned {weights.tolist()}", "nothing below 0")
    contract.holds("no gradient", not weights.requires_grad, "the weights ask for gradient", "constants")
    with contract.clause("pure") as expect:
        weights = weights.clone()
        again = weigh(kept.clone(), context)
        expect(again.equal(weights), "the same arguments gave other weights", "the same")
    contract.holds("input untouched", difficulty.equal(kept), "wrote into the difficulty", "no change")
    if len(kept) == IMAGES:
        with contract.clause("order") as expect:
            order = list(ORDER)
            found = weigh(kept[order], _of_rows(context, order))
            expect(near(found, weights[order]), "another order of the images gave other weights", "the same, reordered")

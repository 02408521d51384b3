"""Does an augmentation keep the contract of ``registry.AUGMENTATIONS``?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pckd.testing.contract import Contract
from registry import AUGMENTATIONS, parse

IMAGES = 24


def check_augmentation(
    augmentation: str | Callable[..., Any], *, draws: int | None = None, mixes: bool | None = None
) -> None:
    """Hold an augmentation to its contract, on color images, square ones and others.

    Clauses: draws, runs, shape, dtype, range, pure, alone, random.

    Args:
        augmentation: a registered name, with options or without (``"rotate(degrees=30)"``), or the function.
        draws, mixes: what it is registered with, of a function that is not.
    """
    contract = Contract("augmentation", AUGMENTATIONS, augmentation)
    facts = AUGMENTATIONS.facts(parse(augmentation)[0]) if isinstance(augmentation, str) else {}
    mixes = bool(facts.get("mixes") if mixes is None else mixes)
    count = facts.get("draws") if draws is None else draws
    contract.holds("draws", isinstance(count, int) and count > 0, f"registered with draws={count}", "a number above 0")
    assert count is not None
    for height, width in ((16, 16), (12, 20)):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, 3, height, width), dtype=torch.uint8, generator=generator)
        views = torch.randn(2, IMAGES, 2, 3, height, width, generator=generator)
        drawn = torch.rand(IMAGES, count, dtype=torch.float64, generator=generator)

        def run(
            which: slice, drawn: Tensor = drawn, images: Tensor = images, views: Tensor = views
        ) -> tuple[Tensor, ...]:
            given = (views[0, which], views[1, which]) if mixes else (images[which],)
            with contract.clause("runs"):
                found = contract.make()(*(x.clone() for x in given), drawn[which].clone())
            return found if isinstance(found, tuple) else (found,)

        with contract.trial(f"{IMAGES} images of {height}x{width}"):
            seen = run(slice(None))
            like, result = (views[0] if mixes else images), seen[0]
            contract.holds("shape", result.shape == like.shape, f"{tuple(result.shape)}", f"{tuple(like.shape)}")
            contract.holds("dtype", result.dtype == like.dtype, f"{result.dtype}", f"{like.dtype}")
            if mixes:
                share = seen[1] if len(seen) == 2 else torch.empty(0)
                contract.holds("shape", share.shape == (IMAGES,), f"share {tuple(share.shape)}", f"({IMAGES},)")
                within = bool(((share >= 0) & (share <= 1)).all())
                contract.holds("range", within, f"share from {share.min()} to {share.max()}", "0 to 1")
            torch.rand(7)
            contract.holds("pure", _same(seen, run(slice(None))), "the same numbers gave another result", "the same")
            part = slice(3, 11)
            alone = _same(tuple(x[part] for x in seen), run(part))
            contract.holds("alone", alone, "images depend on the others of the batch", "each by itself")
            other = torch.rand(drawn.shape, dtype=torch.float64, generator=generator)
            contract.holds(
                "random", not _same(seen, run(slice(None), other)), "other numbers change nothing", "a change"
            )


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

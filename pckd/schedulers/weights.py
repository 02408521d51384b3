"""Difficulty schedulers: how much each image counts, by its difficulty and by how far the run is."""

from __future__ import annotations

import torch
from torch import Tensor

from pckd.ops import PUBLISHED_EPOCHS, full, published_epoch
from registry import DIFFICULTY_SCHEDULERS, Context, UserError

GROWTH = 1.005
"""How fast preview's bar rises per epoch, as published; 1.01 and 1.015 also appear."""


@DIFFICULTY_SCHEDULERS.register("constant")
def constant(difficulty: Tensor, context: Context) -> Tensor:
    """1 for every sample: no preview."""
    return torch.ones_like(difficulty)


def preview_weights(difficulty: Tensor, epoch: float, growth: float = GROWTH) -> Tensor:
    """Preview weight v_i = 1 if gamma_i <= growth^epoch, else exp(-gamma_i^2); [B] (PCKD's preview strategy).

    Args:
        difficulty: [B], relative to the batch mean.
        epoch: counted from 1; may be fractional where a schedule is rescaled.
        growth: how fast the bar rises per epoch.
    """
    difficulty = full(difficulty.detach())
    return torch.where(difficulty <= growth**epoch, 1.0, torch.exp(-difficulty.square()))


@DIFFICULTY_SCHEDULERS.register(
    "preview",
    rescaled="preview's bar was published for {published} epochs: at epoch e of {epochs} it stands at "
    "growth^(e * {factor:g})",
)
def preview(
    difficulty: Tensor, context: Context, *, growth: float = GROWTH, reference_epochs: int | None = PUBLISHED_EPOCHS
) -> Tensor:
    """1 up to a bar of growth^epoch that rises every epoch, exp(-difficulty^2) above it (PCKD, arXiv 2410.14143).

    The bar was published for 240 epochs: a run of another length climbs it as far, in its own number of epochs.
    ``reference_epochs=None`` counts the epochs as they are.
    """
    return preview_weights(difficulty, published_epoch(context, reference_epochs), growth)


@DIFFICULTY_SCHEDULERS.register("hard_curriculum")
def hard_curriculum(
    difficulty: Tensor, context: Context, *, growth: float = GROWTH, reference_epochs: int | None = PUBLISHED_EPOCHS
) -> Tensor:
    """1 up to preview's rising bar, 0 above it: the curriculum that drops hard samples until their time comes."""
    bar = growth ** published_epoch(context, reference_epochs)
    return (difficulty <= bar).to(difficulty.dtype)


@DIFFICULTY_SCHEDULERS.register("self_paced")
def self_paced(difficulty: Tensor, context: Context, *, start: float = 1.0, end: float = 4.0) -> Tensor:
    """Linear self-paced weights max(0, 1 - difficulty / pace), the pace growing from start to end over the run.

    Self-paced learning (Kumar et al., NeurIPS 2010) with the linear soft weighting of Jiang et al. (ACM MM 2014).
    """
    if not (start > 0 and end > 0):
        raise UserError(f"self_paced: start and end must be above 0, not {start} and {end}")
    pace = start + (end - start) * context.progress
    return (1 - difficulty / pace).clamp(0, 1)


@DIFFICULTY_SCHEDULERS.register("proportional")
def proportional(difficulty: Tensor, context: Context) -> Tensor:
    """The difficulty itself, of mean 1: the harder, the more, without a bound, and the same at every epoch.

    With the difficulty ``ea_kd`` or ``wttm`` this is the weighting of EA-KD (arXiv 2311.13621) and WTTM (2402.11148),
    but for the mean of the batch.
    """
    return full(difficulty)


@DIFFICULTY_SCHEDULERS.register("focal")
def focal(difficulty: Tensor, context: Context, *, gamma: float = 2.0) -> Tensor:
    """(1 - exp(-difficulty))^gamma: hard samples first, the opposite of a preview.

    The focal factor (1 - p)^gamma (Lin et al., arXiv 1708.02002, eq. 4) with p = exp(-difficulty), which for the
    difficulty ``cross_entropy`` is the label's probability with the batch's mean loss as the unit.
    """
    return (1 - torch.exp(-difficulty)).pow(gamma)

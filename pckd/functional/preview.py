"""Difficulty of a sample, and the preview weight that grows out of it (PCKD, arXiv 2410.14143, section on preview)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.numerics import full
from registry import Context

PUBLISHED_EPOCHS = 240
"""The length of the schedule for which milestones, growth, warm-up and initial epochs were published."""


def relative(values: Tensor) -> Tensor:
    """Non-negative values [B] over their mean, so that an average sample has difficulty 1; all zero stays zero.

    A mean below the smallest normal number counts as that number: such values stay close to zero.
    """
    values = full(values)
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


def cross_entropy_difficulty(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Difficulty gamma_i = CE_i / mean_j CE_j (PCKD's difficulty of an instance).

    Args:
        student_logits: [B, K], of the upright views.
        labels: [B].

    Returns:
        [B], non-negative with mean 1 (all zero when every cross entropy is exactly zero); without gradient.
    """
    losses = F.cross_entropy(full(student_logits.detach()), labels, reduction="none")
    return relative(losses)


def preview_weights(difficulty: Tensor, epoch: float, growth: float = 1.005) -> Tensor:
    """Preview weight v_i = 1 if gamma_i <= growth^epoch, else exp(-gamma_i^2) (PCKD's preview strategy).

    Args:
        difficulty: [B], relative to the batch mean.
        epoch: counted from 1; may be fractional where a schedule is rescaled.
        growth: how fast the bar rises per epoch; 1.005 as published, 1.01 and 1.015 also appear.

    Returns:
        [B] in [0, 1]; without gradient.
    """
    difficulty = full(difficulty.detach())
    return torch.where(difficulty <= growth**epoch, 1.0, torch.exp(-difficulty.square()))


def published_epoch(context: Context, reference_epochs: int | None = PUBLISHED_EPOCHS) -> float:
    """The epoch of a ``reference_epochs`` schedule that corresponds to this one, from epoch * reference / epochs.

    Args:
        context: gives the epoch (from 1) and the number of epochs of this run.
        reference_epochs: the length for which a constant was published; None leaves the epoch as it is.
    """
    if reference_epochs is None:
        return context.epoch
    return context.epoch * reference_epochs / context.epochs

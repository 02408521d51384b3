"""Class means of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from pckd.functional.numerics import full


def class_means(embedding: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean embedding of each class in a batch.

    Args:
        embedding: [N, D]. labels: [N]. num_classes: K.

    Returns:
        means [K, D], zero for a class that does not occur, and counts [K].
    """
    embedding = full(embedding)
    counts = torch.zeros(num_classes, dtype=embedding.dtype, device=embedding.device)
    counts.index_add_(0, labels, torch.ones_like(labels, dtype=embedding.dtype))
    sums = torch.zeros(num_classes, embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
    sums.index_add_(0, labels, embedding)
    return sums / counts.clamp_min(1)[:, None], counts


def blend_class_means(centers: Tensor, seen: Tensor, embedding: Tensor, labels: Tensor, momentum: float) -> None:
    """Move centers [K, D] toward the batch's class means, in place: c = momentum * c + (1 - momentum) * mean.

    A class seen for the first time takes its mean whole; a class that is not in the batch keeps its center.

    Args:
        centers: [K, D], changed in place. seen: bool [K], changed in place.
        embedding: [N, D]. labels: [N]. momentum: in [0, 1); 0 keeps the newest batch mean alone.
    """
    means, counts = class_means(embedding, labels, centers.shape[0])
    present = counts > 0
    keep = torch.where(present, torch.where(seen, momentum, 0.0), 1.0)[:, None]
    centers.copy_(keep * centers + (1 - keep) * means)
    seen.logical_or_(present)

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


def centered_means(means: Tensor, seen: Tensor, rows: Tensor) -> Tensor:
    """Class means as a classifier's rows lie: less their mean over the classes, at the mean length of the rows.

    Embeddings that are not negative have means that all point one way and are several times as long as the rows; a loss
    whose scale follows its centers' length is made for rows. Of a trained network the two lie alike up to scale (neural
    collapse, Papyan, Han and Donoho 2020, arXiv 2008.08186).

    Args:
        means: [K, D]. seen: bool [K]. rows: [K, D], the classifier's weight.

    Returns:
        [K, D]; the classifier's row where a class has not been seen, or only one has.
    """
    known = (seen & (seen.sum() > 1))[:, None]
    count = known.sum().clamp_min(1)
    centered = torch.where(known, means - torch.where(known, means, 0).sum(dim=0) / count, 0)
    length = rows.norm(dim=1).mean() / (centered.norm(dim=1).sum() / count).clamp_min(1e-12)
    return torch.where(known, centered * length, rows)


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

"""Accuracy of a network on a split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from model_zoo.probe import evaluating
from pckd.data import Loader
from pckd.engine.precision import autocast
from pckd.engine.ranks import add_up
from registry import Batch, Output, UserError


class Scores(NamedTuple):
    """Percentages and the mean cross entropy over a split."""

    top1: float
    top5: float
    loss: float
    samples: int


@torch.no_grad()
def answers(
    network: nn.Module, loader: Loader, *, device: torch.device, precision: str
) -> Iterator[tuple[Output, Batch]]:
    """The network's output for each batch of a loader, without gradient and in eval mode; its mode is restored."""
    with evaluating(network):
        for batch in loader.epoch(1):
            with autocast(precision, device):
                output = network(batch.views.flatten(0, 1))
            yield output, batch
    loader.say_bad()


def evaluate_network(network: nn.Module, loader: Loader, *, device: torch.device, precision: str) -> Scores:
    """Top-1 and top-5 accuracy in percent, with the network in eval mode; its mode is restored afterwards.

    With fewer than five classes, top-5 counts as many as there are.

    Raises:
        UserError: an image cannot be read, or, where such images are skipped, none can.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    samples = 0
    for output, batch in answers(network, loader, device=device, precision=precision):
        logits = output.logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        totals += torch.stack([ranked[:, 0].sum().double(), ranked.sum().double(), loss.double()])
        samples += len(batch.labels)
    # Each process has measured its share.
    *sums, counted = add_up(torch.cat([totals, totals.new_tensor([samples])])).tolist()
    if not counted:
        raise UserError(f"{loader.split.name or 'the data set'}: none of its images can be read")
    top1, top5, loss_sum = sums
    return Scores(100 * top1 / counted, 100 * top5 / counted, loss_sum / counted, int(counted))

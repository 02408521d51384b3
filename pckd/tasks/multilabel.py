"""Multi-label classification: an image shows any number of K classes, and each of them is a question of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.data.load import Data
from pckd.device import Device
from pckd.distributed import gather_rows, uneven_rows
from pckd.objective import Objective, says
from pckd.tasks.classification import Classification, answers
from registry import TASKS, Absent, Batch, NotApplicable, Output, Term, UserError

__all__ = ["MultiLabel", "MultiLabelScores", "average_precision"]


class MultiLabelScores(NamedTuple):
    """Mean average precision in percent, the mean binary cross entropy, and the average precision of each class."""

    map: float
    loss: float
    samples: int
    by_class: dict[str, float]


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of a class, 0 to 1: the mean, over the images that show it, of the precision at their score.

    Images with equal scores are taken together. Nan where no image shows the class.

    Args:
        scores: [M]. targets: [M], 0 or 1.
    """
    ranked, order = scores.double().sort(descending=True)
    shown = targets[order].double()
    last = torch.searchsorted(-ranked, -ranked, right=True)
    precision = shown.cumsum(0)[last - 1] / last
    return (precision * shown).sum() / shown.sum()


@TASKS.register("multilabel")
class MultiLabel(Classification):
    """Which of K classes does an image show, any number of them: judged by mean average precision in percent.

    The supervised term of every method is the binary cross entropy. The mean average precision is over the classes that
    a measured image shows. What needs one label an image is refused. The options are those of ``classification``.
    """

    name = "multilabel"
    metric = "map"
    columns = ()
    titles = MappingProxyType({"map": "mAP"})
    demonstration = MappingProxyType({})

    def chance(self, data: Data) -> float:
        share = float(data.test.targets.float().mean())
        # Of classes that most images show, it says nothing of a network.
        return 100 * share if share < 0.5 else 0.0

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        return [replace(t, loss="binary_cross_entropy") if t.loss == "cross_entropy" else t for t in terms]

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        super().check(data, terms)
        if self.balance != "none":
            raise UserError(f"balance={self.balance} needs one label an image, which multi-label data does not have")
        for term in terms:
            if term.weight and says(term, "softmax", False):
                raise NotApplicable(
                    f"{term.label} takes the logits for one distribution over the classes, and images of multi-label "
                    "data show several; use multilabel_kd, or a method that looks at embeddings or maps"
                )

    def check_labels(self, data: Data) -> None:
        if data.train.targets is None or not isinstance(data.train.labels, Absent):
            raise UserError(f"{data.name} has one label an image; use task='classification'")

    def observe(self, batch: Batch, output: Output, objective: Objective) -> dict[str, Tensor]:
        return {}

    def random_data(self, images: int, classes: int, shape: tuple[int, int, int]) -> Data:
        data = super().random_data(images, classes, shape)
        targets = torch.randint(0, 2, (images, classes)).float()
        split = replace(data.train, labels=None, targets=targets)
        return replace(data, train=split, test=split, task=self.name)

    def difficulty_report(self, data: Data, device: Device) -> Any:
        raise UserError("report_difficulty needs one label an image; leave it out")

    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, Any]:
        scores = self.scores(network, loader, device)
        return {"map": scores.map, "test_loss": scores.loss, "by_class": scores.by_class}

    @torch.no_grad()
    def scores(self, network: nn.Module, loader: Any, device: Device) -> MultiLabelScores:  # type: ignore[override]
        """See :class:`MultiLabelScores`.

        Raises:
            UserError: no image can be read, or none shows a class.
        """
        split = loader.split
        rows = [(output.logits.float(), batch.targets) for output, batch in answers(network, loader, device)]
        empty = torch.zeros(2, 0, split.num_classes, device=device.target)
        with uneven_rows(True):
            # Each process has measured its share.
            logits, targets = (gather_rows(torch.cat(part)) for part in (zip(*rows, strict=True) if rows else empty))
        by_class = {
            name: 100 * float(average_precision(logits[:, k], targets[:, k]))
            for k, name in enumerate(split.classes)
            if bool(targets[:, k].any())
        }
        if not by_class:
            raise UserError(f"{split.name or 'the data set'}: no image that can be read shows a class")
        loss = float(F.binary_cross_entropy_with_logits(logits, targets))
        return MultiLabelScores(sum(by_class.values()) / len(by_class), loss, len(logits), by_class)

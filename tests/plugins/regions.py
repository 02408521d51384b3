"""A task from outside the tree: which of K colors do the two halves of an image have; some halves are background.

Two rows an image, a foreground set, no index that lasts, and a loss that the network computes itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pckd.device import Device
from pckd.distributed import add_up
from pckd.objective import Objective
from pckd.tasks import BatchLoader, Task
from registry import BACKBONES, DATASETS, TASKS, Instances, Output, Rows, Shapes, Term, UserError

HALVES, COLORS = 2, 4


@dataclass(frozen=True)
class Halves:
    """Images float [M, 3, 8, 8] whose halves have the labels [M, 2]; 0 is background."""

    images: Tensor
    labels: Tensor
    name: str
    classes: tuple[str, ...] = ("background", "red", "green", "blue")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def part(self, index: Tensor, name: str, evaluation: bool = False) -> Halves:
        return replace(self, images=self.images[index], labels=self.labels[index], name=name)


@DATASETS.register("halves", task="regions")
def halves(root: str | None = None, train: bool = True, *, size: int = 48, noise: float = 0.6) -> Halves:
    """Drawn halves."""
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.randint(0, COLORS, (size, HALVES), generator=generator)
    colors = torch.cat([torch.zeros(1, 3), torch.eye(3)])[labels]
    images = colors.transpose(1, 2)[:, :, None, :, None].expand(size, 3, 8, HALVES, 4).reshape(size, 3, 8, 8)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return Halves(images, labels, "halves")


class HalfNet(nn.Module):
    """A row for each half; its own loss is the mean square of the embedding. It may say where its sides are."""

    def __init__(self, num_classes: int, width: int, bins: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)
        self.bins = bins
        self.sides = nn.Linear(width, 4 * bins) if bins else None

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    def forward(self, x: Tensor) -> Output:
        embedding = self.body(x).unflatten(3, (HALVES, -1)).mean((2, 4)).transpose(1, 2).flatten(0, 1)
        sides = () if self.sides is None else self.sides(embedding).unflatten(1, (4, self.bins))
        losses = {"size": embedding.float().square().mean()}
        return Output(self.head(embedding), embedding, losses=losses, sides=sides)


@BACKBONES.register("half_net")
def half_net(num_classes: int, *, in_channels: int = 3, width: int = 8, bins: int = 0) -> HalfNet:
    """The network of the halves."""
    return HalfNet(num_classes, width, bins)


@dataclass(frozen=True)
class HalvesBatch:
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


class HalvesLoader(BatchLoader):
    def __init__(self, split: Halves, batch_size: int, train: bool, *, seed: int = 0, device: Any, **ranks: int):
        self.split, self.size, self.train, self.seed, self.device = split, batch_size, train, seed, device
        self.rank, self.world_size = ranks.get("rank", 0), ranks.get("world_size", 1)

    def __len__(self) -> int:
        whole = len(self.split) // (self.size * self.world_size)
        return max(1, whole) if self.train else -(-len(self.split) // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[HalvesBatch]:
        order = torch.arange(len(self.split))
        if self.train:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        for some in order[self.rank :: self.world_size].split(self.size)[start : len(self)]:
            yield HalvesBatch(self.split.images[some].to(self.device), self.split.labels[some].to(self.device))


@TASKS.register("regions")
class Regions(Task):
    """The color of each half, judged by the share of halves that are right."""

    metric = "score"
    rows = ("upright", "all", "foreground")

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        return [*terms, Term("network_losses", 0.1)]

    def shapes(self, network: nn.Module, data: Any, role: str) -> Shapes:
        width = network.classifier.in_features
        if network.classifier.out_features != data.train.num_classes:
            raise UserError(f"the {role} has another number of classes than {data.name}")
        return Shapes(data.train.num_classes, int(width), sides=int(getattr(network, "bins", 0)))

    def sizes(self, images: int, objective: Objective) -> dict[str, tuple[int, int]]:
        return {"upright": (HALVES * images, 1), "all": (HALVES * images, 1), "foreground": (2, 1)}

    def loader(self, split: Halves, batch_size: int, *, train: bool, objective: Any, **options: Any) -> HalvesLoader:
        options.pop("num_workers", None)
        return HalvesLoader(split, batch_size, train, **options)

    def images(self, batch: HalvesBatch) -> Tensor:
        return batch.images

    def pair(self, batch: HalvesBatch, student: nn.Module, teachers: Sequence[Any]) -> Any:
        labels = batch.labels.flatten()
        image = torch.arange(len(batch), device=labels.device).repeat_interleave(HALVES)
        sets = {"foreground": Rows(labels.nonzero()[:, 0])}
        answers = [teacher.answer(batch, batch.images) for teacher in teachers]
        return student(batch.images), answers, Instances(labels, image=image, sets=sets)

    def observe(self, batch: HalvesBatch, output: Output, objective: Objective) -> dict[str, Tensor]:
        return {"train_score": 100 * (objective.predict(output).argmax(1) == batch.labels.flatten()).float().mean()}

    @torch.no_grad()
    def evaluate(self, network: nn.Module, loader: HalvesLoader, device: Device) -> dict[str, float]:
        mode = network.training
        network.eval()
        counts = torch.zeros(2, dtype=torch.float64, device=device.target)
        for batch in loader.epoch(1):
            right = network(batch.images).logits.argmax(1) == batch.labels.flatten()
            counts += torch.stack([right.sum().double(), torch.tensor(len(right), dtype=torch.float64)])
        network.train(mode)
        right, seen = add_up(counts).tolist()
        return {"score": 100 * right / seen}

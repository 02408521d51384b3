"""PCKD's training step written plainly, as programs of the field run theirs: what benchmark_speed.py compares with.

Float32, channels first, images one by one through PIL in worker processes, nothing compiled or fused, the teacher asked
anew in every step, and every metric read back from the device in every step. It shares the networks with the rest of
the project and nothing else: the losses are the method's formulas, in the order in which the released step has them.

Shapes: B images, V = 4 views of each, N = B * V rows (image-major, view 0 upright), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

VIEWS = 4
TEMPERATURE = 4.0
CONTRAST_TEMPERATURE = 4.0
BASE_TEMPERATURE = 0.07


class FourViews(Dataset):
    """Each image in its four rotations, each randomly cropped and normalized: [V, C, H, W], with its label.

    Args:
        images: uint8 [M, C, H, W]. labels: [M]. mean, std: per channel, of images scaled to [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = [TF.to_pil_image(image) for image in images]
        self.labels = labels.tolist()
        self.flip = T.RandomHorizontalFlip()
        size = tuple(images.shape[2:])
        self.finish = T.Compose([T.RandomCrop(size, padding=4), T.ToTensor(), T.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        image = self.flip(self.images[item])
        views = [self.finish(TF.rotate(image, 90 * quarter)) for quarter in range(VIEWS)]
        return torch.stack(views), self.labels[item]


def make_loader(dataset: FourViews, batch_size: int, workers: int = 2) -> DataLoader:
    """Shuffled batches from worker processes, which stay from epoch to epoch."""
    return DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


class AverageMeter:
    """A running mean of numbers."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.total += value * count
        self.count += count

    @property
    def average(self) -> float:
        return self.total / max(1, self.count)


class PlainLosses(nn.Module):
    """The five terms of PCKD with their projections.

    Args:
        student_width, teacher_width: D of the two networks' embeddings.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        delta: float = 1.0,
        feature: float = 20.0,
        alpha: float = 1.0,
        beta: float = 0.05,
        growth: float = 1.005,
    ) -> None:
        super().__init__()
        self.delta, self.feature, self.alpha, self.beta, self.growth = delta, feature, alpha, beta, growth
        self.project = nn.Sequential(
            nn.Linear(student_width, 16 * teacher_width),
            nn.BatchNorm1d(16 * teacher_width),
            nn.ReLU(),
            nn.Linear(16 * teacher_width, teacher_width),
        )
        self.student_query = nn.Linear(student_width, student_width)
        self.teacher_query = nn.Linear(student_width, teacher_width)

    def forward(
        self, student: Any, teacher: Any, student_net: Any, teacher_net: Any, labels: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        """Every term with its weight, and ``loss``, their sum.

        Args:
            student, teacher: the networks' outputs, [N, ...]. labels: [B]. epoch: of 240, counted from 1.
        """
        student_upright, teacher_upright = student.logits[::VIEWS], teacher.logits[::VIEWS]
        cross_entropy = F.cross_entropy(student_upright, labels)

        with torch.no_grad():
            each = F.cross_entropy(student_upright, labels, reduction="none")
            difficulty = each / each.mean()
            weight = torch.where(
                difficulty <= self.growth**epoch, torch.ones_like(difficulty), torch.exp(-(difficulty**2))
            )

        log_student = F.log_softmax(student_upright / TEMPERATURE, dim=1)
        soft_teacher = F.softmax(teacher_upright / TEMPERATURE, dim=1)
        divergence = F.kl_div(log_student, soft_teacher, reduction="none").sum(1) * TEMPERATURE**2
        kd = (weight * divergence).mean()

        projected = F.normalize(self.project(student.embedding), dim=1)
        target = F.normalize(teacher.embedding, dim=1)
        feature = (2 - 2 * (projected * target).sum(1)).mean()

        contrast = (weight.repeat_interleave(VIEWS) * self.contrast(student, student_net, teacher_net, labels)).mean()

        terms = {
            "cross_entropy": cross_entropy,
            "kd": self.delta * kd,
            "feature_alignment": self.feature * feature,
            "category_contrast": self.beta * contrast,
        }
        own, other = student_net.classifier, teacher_net.classifier
        if own.weight.shape == other.weight.shape:
            own_centers = torch.cat([own.weight, own.bias.unsqueeze(1)], dim=1)
            other_centers = torch.cat([other.weight, other.bias.unsqueeze(1)], dim=1)
            terms["center_alignment"] = self.alpha * F.mse_loss(own_centers, other_centers)
        return {**terms, "loss": sum(terms.values(), torch.zeros((), device=labels.device))}

    def contrast(self, student: Any, student_net: Any, teacher_net: Any, labels: Tensor) -> Tensor:
        """Category contrast of each row: [N]."""
        student_query = F.normalize(self.student_query(student.embedding), dim=1)
        teacher_query = F.normalize(self.teacher_query(student.embedding), dim=1)
        relation = torch.cat(
            [
                torch.matmul(student_query, student_net.classifier.weight.t()),
                torch.matmul(teacher_query, teacher_net.classifier.weight.t()),
            ],
            dim=0,
        )
        anchors = labels.repeat_interleave(VIEWS).repeat(2).view(-1, 1)
        same = torch.eq(anchors, anchors.t()).float()
        others = torch.ones_like(same) - torch.eye(len(anchors), device=same.device)
        positives = same * others
        logits = torch.matmul(relation, relation.t()) / CONTRAST_TEMPERATURE
        highest, _ = logits.max(dim=1, keepdim=True)
        logits = logits - highest.detach()
        exponentials = torch.exp(logits) * others
        log_probability = logits - torch.log(exponentials.sum(1, keepdim=True) + 1e-7)
        mean_positive = (positives * log_probability).sum(1) / positives.sum(1)
        loss = -(CONTRAST_TEMPERATURE / BASE_TEMPERATURE) * mean_positive
        return loss.view(2, -1).sum(0)


class PlainTrainer:
    """A student, its teacher, and the step.

    Args:
        student, teacher: ``forward(x) -> (logits, embedding, ...)`` with a ``classifier``. lr: learning rate.
    """

    def __init__(self, student: Any, teacher: Any, device: torch.device, lr: float) -> None:
        self.device = device
        self.student, self.teacher = student.to(device), teacher.to(device).eval()
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        widths = self.student.classifier.in_features, self.teacher.classifier.in_features
        self.losses = PlainLosses(*widths).to(device)
        parameters = [*self.student.parameters(), *self.losses.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
        self.meters: dict[str, AverageMeter] = {}

    def start_epoch(self) -> None:
        self.student.train()
        self.losses.train()
        self.meters = {}

    def step(self, views: Tensor, labels: Tensor, epoch: int) -> float:
        """One step on views [B, V, C, H, W] and labels [B]; the loss."""
        views, labels = views.to(self.device), labels.to(self.device)
        images = views.view(-1, *views.shape[2:])
        student = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        terms = self.losses(student, teacher, self.student, self.teacher, labels, epoch)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        self.optimizer.step()

        top1, top5 = accuracy(student.logits[::VIEWS], labels)
        metrics = {"top1": top1, "top5": top5, **{name: term.item() for name, term in terms.items()}}
        for name, value in metrics.items():
            self.meters.setdefault(name, AverageMeter()).update(value, len(labels))
        return metrics["loss"]


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    with torch.no_grad():
        _, ranked = logits.topk(min(5, logits.shape[1]), dim=1)
        hits = ranked.eq(labels.view(-1, 1)).float()
        return 100 * hits[:, 0].mean().item(), 100 * hits.sum(1).mean().item()

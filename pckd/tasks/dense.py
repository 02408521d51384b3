"""What detection and segmentation share: a row is a part of an image, and networks have losses of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo import Preprocessing
from model_zoo.pairs import DENSE_RECIPE
from model_zoo.probe import answering
from pckd.data.annotated import AnnotatedBatch, AnnotatedLoader, AnnotatedSplit, Annotation
from pckd.data.load import Data
from pckd.device import Device
from pckd.objective import Objective, says
from pckd.tasks.classification import check_classes
from pckd.tasks.task import Task
from registry import Absent, NotApplicable, Rows, Shapes, Term, UserError

__all__ = ["NO_LABELS", "DenseTask"]

NO_LABELS = Absent("the rows 'images' have no labels of their own: use rows='upright' or 'foreground'")


def drawn(count: int, most: int, seeds: Sequence[int]) -> Tensor | None:
    """Which of ``count`` rows are taken where these are too many: int64 [most], drawn by the seeds; None for all."""
    if count <= most:
        return None
    generator = torch.Generator().manual_seed(sum(seeds) % 2**63)
    return torch.randperm(count, generator=generator)[:most].sort().values


class DenseTask(Task):
    """Base class: a step's rows are ``"upright"``; at most ``max_rows`` of them ``"all"``, and ``"foreground"``, those
    that show an object; and ``"images"`` are the images with their feature maps.

    A method's terms are placed on the rows that they can look at: losses that read feature maps alone on the images.
    Rotated and strong views there are none. The network's own losses are a term of every method.

    Args:
        max_rows: how many rows a step shows to losses that compare rows with one another.
        flip: random horizontal flips in training.
    """

    rows = ("upright", "all", "foreground", "images")
    network_kind: type[nn.Module]
    """What its networks are."""
    example: str
    """Names of some, for messages."""

    def __init__(self, *, max_rows: int = 512, flip: bool = True) -> None:
        if max_rows < 2:
            raise UserError(f"max_rows must be 2 or more, not {max_rows}")
        self.max_rows, self.flip = max_rows, flip

    def classifies(self, student: nn.Module) -> bool:
        """Whether the network's own losses say what each row is, in the place of a method's cross entropy."""
        raise NotImplementedError

    def shapes_of(self, network: Any, images: Tensor) -> Shapes:
        """The shapes of a network's answer about images."""
        raise NotImplementedError

    def own(self, network: nn.Module, role: str) -> Any:
        """The network of this task that a teacher, a predictor, ... holds, or that was given itself.

        Raises:
            UserError: there is none.
        """
        found: Any = network
        while not isinstance(found, self.network_kind):
            if not isinstance(found := getattr(found, "network", None), nn.Module):
                raise UserError(
                    f"{role} must be a network for {self.name}, such as {self.example}, not {type(network).__name__}"
                )
        return found

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        placed = []
        for term in terms:
            if says(term, "reads_layers", False):
                raise NotApplicable(f"{term.label} reads layers of networks that classify images; leave it out")
            rows = "upright" if term.rows == "strong" else term.rows
            if rows in ("upright", "all") and says(term, "reads_maps") and not says(term, "reads_rows", False):
                rows = "images"
            elif says(term, "compares_rows", False):
                rows = "all"
            placed.append(replace(term, rows=rows))
        own = any(term.loss == "network_losses" for term in placed)
        return placed if own else [*placed, Term("network_losses", 1.0)]

    def terms_for(self, student: nn.Module, terms: Sequence[Term]) -> list[Term]:
        twice = "cross_entropy" if self.classifies(self.own(student, "the student")) else None
        return [term for term in terms if term.loss != twice]

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        if not isinstance(data.train, AnnotatedSplit):
            raise UserError(
                f"{data.name} is no data for {self.name}: it must have boxes or masks, as scenes, coco and voc"
            )

    def preprocessing(self, data: Data) -> Preprocessing:
        # Networks are shown images in [0, 1], which they normalize themselves.
        split = data.train
        return Preprocessing((0.0,) * 3, (1.0,) * 3, split.image_size, tuple(split.classes))

    def check_classes(self, what: str, network: nn.Module, data: Data) -> None:
        check_classes(what, network, data.train.classes, data.name)

    def as_trained(self, network: nn.Module, split: AnnotatedSplit, say: Callable[[str], None]) -> AnnotatedSplit:
        check_classes("the network", network, split.classes, split.name or "the data set")
        return split

    def shapes(self, network: nn.Module, data: Data, role: str) -> Shapes:
        own, (height, width) = self.own(network, f"the {role}"), data.train.image_size
        images = torch.zeros(2, 3, height, width, device=next(own.parameters()).device)
        with answering(own, f"the {role}", images):
            shapes = self.shapes_of(own, images)
        if shapes.num_classes != data.train.num_classes + 1:
            raise UserError(
                f"the {role} has {shapes.num_classes - 1} classes, the data set {data.name} {data.train.num_classes}: "
                "they must be the same"
            )
        return shapes

    def check_batch(self, student: nn.Module, data: Data, images: int, objective: Objective) -> None:
        if objective.predictor(student) is not student:
            raise NotApplicable(f"a loss answers with a head of its own, which serves no {self.name}; leave it out")

    def loader(
        self, split: AnnotatedSplit, batch_size: int, *, train: bool, objective: Objective | None, **options: Any
    ) -> AnnotatedLoader:
        augment = split.augment._replace(flip=self.flip and split.augment.flip)
        return AnnotatedLoader(split, batch_size, train=train, augment=augment, **options)

    recipe = DENSE_RECIPE
    prepares = False
    test_batch = 16

    def images(self, batch: AnnotatedBatch) -> Tensor:
        return batch.images

    def random_data(self, images: int, classes: int, shape: tuple[int, int, int]) -> Data:
        channels, height, width = shape
        if channels != 3:
            raise UserError(f"a network for {self.name} takes images of 3 channels, not {channels}")
        pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8)
        # Two objects an image, with some area each.
        corners = torch.rand(images, 2, 2, 2).sort(2).values.flatten(2) * 0.5 + torch.tensor([0, 0, 0.5, 0.5])
        boxes = corners * torch.tensor([width, height, width, height])
        labels = torch.randint(1, classes + 1, (images, 2))
        masks = torch.randint(0, classes + 1, (images, height, width), dtype=torch.uint8)
        known = tuple(Annotation(one, own) for one, own in zip(boxes, labels, strict=True))
        names = tuple(map(str, range(classes)))
        split = AnnotatedSplit(pixels, known, names, masks, name="random images")
        return Data(split, split, "random images", task=self.name)

    def sets(self, labels: Tensor, seeds: Sequence[int]) -> dict[str, Rows]:
        """``"all"`` and ``"foreground"`` of a step's rows, drawn by its seeds where they are more than ``max_rows``.

        Args:
            labels: [N], 0 for the background.
        """
        foreground = (labels > 0).nonzero()[:, 0]
        some, fewer = (drawn(count, self.max_rows, seeds) for count in (len(labels), len(foreground)))
        return {
            "all": Rows(slice(None) if some is None else some.to(labels.device)),
            "foreground": Rows(foreground if fewer is None else foreground[fewer.to(labels.device)]),
        }

    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, Any]:
        found = self.scores(network, loader, device)
        return {**found.scores, "by_class": found.by_class}

    def facts(self, objective: Objective) -> dict[str, Any]:
        return {"max_rows": self.max_rows}

    def contract_checks(
        self, networks: Sequence[str], dataset: str | None, data: Data, *, root: str | None
    ) -> list[tuple[str, Callable[[], None]]]:
        from pckd import testing

        backbone = partial(testing.check_dense, image_sizes=(data.train.image_size,))
        checks: list[tuple[str, Callable[[], None]]] = [
            (f"backbone {name}", partial(backbone, name)) for name in networks
        ]
        if dataset is not None:
            checks.append((f"data set {dataset}", partial(testing.check_dataset, dataset, root=root)))
        return checks

"""Where networks put images: their embeddings in the plane of most variance, and the category centers in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from model_zoo import preprocessing_of
from pckd.data import Loader, limit
from pckd.data.load import DATA_SEED
from pckd.device import Device
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Predictor
from pckd.plots.centers import classifier_rows
from pckd.plots.networks import Workshop, classes_of
from pckd.plots.style import grid_shape, headline, marker_style, new_figure, panel_title, panels_of
from pckd.runs import Group
from pckd.tasks.classification import Classification, other_preprocessing
from registry import Absent, DataSplit, UserError

MOST_CLASSES = 10


class Plane(NamedTuple):
    """The principal components of some points."""

    mean: np.ndarray
    """[D]."""
    axes: np.ndarray
    """[2, D], orthonormal; the largest entry of each is positive."""
    shares: tuple[float, float]
    """Of the variance, each axis's."""

    def project(self, points: np.ndarray) -> np.ndarray:
        """[M, 2] from [M, D]."""
        return np.asarray((points - self.mean) @ self.axes.T)


class Panel(NamedTuple):
    """A network's images and centers in its plane."""

    title: str
    points: np.ndarray
    """[M, 2]."""
    labels: np.ndarray
    """[M]."""
    centers: np.ndarray | None
    """[K, 2]; None where the classifier does not read the embedding, or has other classes."""
    shares: tuple[float, float]


def principal_plane(points: np.ndarray) -> Plane:
    """The two directions in which ``points`` [M, D] vary most."""
    if len(points) < 3 or points.shape[1] < 2:
        count, width = points.shape
        raise UserError(f"a plane needs 3 images and an embedding of 2 numbers, and these are {count} of {width}")
    mean = points.mean(axis=0)
    _, singular, axes = np.linalg.svd(points - mean, full_matrices=False)
    axes = axes[:2]
    # A singular vector's sign is arbitrary; fixed, it is the same on every machine.
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.where(axes[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    variance = singular**2 / max(float((singular**2).sum()), 1e-30)
    return Plane(mean, axes, (float(variance[0]), float(variance[1])))


def placed_centers(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The classifier's rows [K, D] where they can be seen beside the embeddings ``points`` [M, D].

    Predictions depend on the rows' differences alone, and a row's length is not that of an embedding: the rows are
    shifted to the points' mean and scaled, all alike, to the points' mean distance from it.
    """
    mean = points.mean(axis=0)
    apart = rows - rows.mean(axis=0)
    reach = np.linalg.norm(apart, axis=1).mean()
    distance = np.linalg.norm(points - mean, axis=1).mean()
    return np.asarray(mean + apart * (distance / reach if reach > 0 else 0.0))


def first_classes(split: DataSplit, images: int) -> DataSplit:
    """At most so many images of the first ten classes, always the same ones."""
    if isinstance(split.labels, Absent):
        raise UserError(f"{split.name or 'the data set'}: {split.labels.reason}")
    index = (split.labels < MOST_CLASSES).nonzero()[:, 0]
    if len(index) < len(split):
        # What is streamed is read where it is needed only.
        kept: Any = split.images[index] if isinstance(split.images, Tensor) else Subset(split.images, index.tolist())
        split = dataclasses.replace(split, images=kept, labels=split.labels[index], difficulty=None)
    if not len(split):
        raise UserError(f"{split.name or 'the data set'}: has no images of its first {MOST_CLASSES} classes")
    return limit(split, min(images, len(split)), DATA_SEED)


@torch.no_grad()
def embeddings(network: nn.Module, split: DataSplit, device: Device) -> tuple[np.ndarray, np.ndarray]:
    """[M, D] the embeddings of a split's images, without augmentation, and [M] their labels."""
    network.to(device.target).eval()
    found, labels = [], []
    for batch in Loader(split, 256, train=False, device=device.target).epoch(1):
        with device.autocast():
            output = network(batch.views.flatten(0, 1))
        found.append(output.embedding.double().cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(found).numpy(), torch.cat(labels).numpy()


def draw_embedding(groups: Sequence[Group], workshop: Workshop) -> tuple[Any, list[str]]:
    """A panel for each student and one for their teacher."""
    if workshop.images < 3:
        raise UserError(f"images must be at least 3, not {workshop.images}")
    chosen, notes = workshop.students(groups)
    whole = workshop.split(chosen[0][1])
    if not isinstance(whole, DataSplit):
        raise UserError(
            f"embedding shows one point an image, and in the task {chosen[0][1].task} a network answers about parts of "
            "images; draw centers"
        )
    if not whole.labeled:
        raise UserError(f"embedding colors images by their class, and those of {chosen[0][1].path} have no labels")
    place = Device.resolve(workshop.device, workshop.precision)
    networks: list[tuple[str, nn.Module]] = [
        (f"{run.result['student']}, {label}", workshop.student(run)) for label, run in chosen
    ]
    name, teacher, more = workshop.teacher([run for _, run in chosen], networks[0][1])
    if teacher is not None:
        networks.append((f"teacher {name}", teacher))
    # Where no label was looked at, the student may have other classes than the images, or none that were trained.
    other = chosen[0][1].task == "unlabeled" and _trained_classes(networks[0][1], whole) != whole.classes
    if not other and whole.num_classes != classes_of(networks[0][1]):
        raise UserError(
            f"{chosen[0][1].path}: its student has {classes_of(networks[0][1])} classes, the data set "
            f"{whole.num_classes}; give its own with --data-root"
        )
    workshop.common_split([run for _, run in chosen])
    part = first_classes(whole, workshop.images)
    panels = []
    for title, network in networks:
        alike = dataclasses.replace(part, classes=_trained_classes(network, part)) if other else part
        own = other_preprocessing(title, network, alike, more.append)
        shown = part if own is None else dataclasses.replace(part, mean=own.mean, std=own.std)
        resizing = Classification().resizing(title, network, part, more.append)
        panels.append(_panel(title, network, resizing, shown, place, centers=not other))
    if other:
        more.append("the student's classifier is not one of these classes, so that no centers are shown")
    elif any(panel.centers is None for panel in panels):
        more.append("a student that answers with a loss's head has no centers among its embeddings")
    return _draw(panels, whole.classes, len(part)), [*notes, *more]


def _trained_classes(network: nn.Module, split: DataSplit) -> tuple[str, ...]:
    """Those of a network's record, none where its classifier was never trained; without a record the split's."""
    record = preprocessing_of(network)
    return tuple(split.classes) if record is None else record.classes


def _panel(
    title: str, network: nn.Module, resizing: Any, part: DataSplit, device: Device, *, centers: bool = True
) -> Panel:
    points, labels = embeddings(FrozenTeacher(network, resizing=resizing), part, device)
    plane = principal_plane(points)
    placed = None
    # The head of a loss does not read the embedding itself.
    if centers and not isinstance(network, Predictor):
        placed = plane.project(placed_centers(classifier_rows(network), points)[:MOST_CLASSES])
    return Panel(title, plane.project(points), labels, placed, plane.shares)


def _draw(panels: Sequence[Panel], classes: Sequence[str], images: int) -> Any:
    rows, columns = grid_shape(len(panels))
    figure = new_figure(1.1 + {1: 6.0, 2: 4.3, 3: 3.3}[columns] * rows)
    places = panels_of(figure, len(panels), rows, columns)
    for axes, panel in zip(places, panels, strict=True):
        _scatter(axes, panel, classes, columns)
    shown = min(len(classes), MOST_CLASSES)
    which = "" if shown == len(classes) else f" of the first {shown} of {len(classes)} classes"
    title = f"Embeddings of {images} unseen images{which}"
    if any(panel.centers is not None for panel in panels):
        title += ", and the category centers (large; moved and scaled together)"
    headline(figure, title)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(shown, 5), markerscale=2.2, fontsize=9)
    return figure


def _scatter(axes: Any, panel: Panel, classes: Sequence[str], columns: int) -> None:
    shown = range(min(len(classes), MOST_CLASSES))
    for k in shown:
        own = panel.points[panel.labels == k]
        axes.scatter(own[:, 0], own[:, 1], s=9, alpha=0.65, linewidths=0, label=classes[k], **marker_style(k))
    if panel.centers is not None:
        for k in shown:
            x, y = panel.centers[k]
            axes.scatter(x, y, s=110, edgecolors="black", linewidths=1.3, zorder=4, **marker_style(k))
    panel_title(axes, panel.title, columns)
    for axis, number, share in ((axes.xaxis, 1, panel.shares[0]), (axes.yaxis, 2, panel.shares[1])):
        axis.set_label_text(f"component {number} ({100 * share:.0f} % of the variance)")

"""Precision against recall of detections, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pckd.data.load import DATA_SEED
from pckd.data.subset import limit
from pckd.plots.networks import Workshop
from pckd.plots.style import LINES, class_color, grid_shape, headline, new_figure, panel_title
from pckd.runs import Group
from pckd.tasks.average_precision import RECALLS, DetectionScores, detection_scores, require_pycocotools

MOST_CLASSES = 10


def draw_precision_recall(groups: Sequence[Group], workshop: Workshop) -> tuple[Any, list[str]]:
    """A panel for each network: a line a class, and their mean."""
    require_pycocotools()
    shown = workshop.shown(groups)
    images = min(workshop.images, len(shown.split))
    loader = shown.loader(limit(shown.split, images, DATA_SEED))
    panels = [(title, detection_scores(network, loader, shown.device)) for title, network in shown.networks]
    notes = [*shown.notes]
    if images < len(shown.split):
        notes.append(f"measured on {images} of {len(shown.split)} images (--images)")
    rows, columns = grid_shape(len(panels), most=2)
    figure = new_figure(0.9 + (4.6 if columns == 1 else 3.9) * rows)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    names = [name for name in shown.split.classes if name in panels[0][1].curves]
    for axes, (title, measured) in zip(places, panels, strict=False):
        _panel(axes, measured, names[:MOST_CLASSES])
        ap50, mean = measured.scores["ap50"], measured.scores["map"]
        panel_title(axes, f"{title}: AP50 {ap50:.1f}, mAP {mean:.1f}", columns)
    for axes in places[len(panels) :]:
        axes.remove()
    which = "" if len(names) <= MOST_CLASSES else f", the first {MOST_CLASSES} of {len(names)} classes by name"
    headline(figure, f"Precision and recall of detections at an overlap of 0.5, {images} unseen images{which}")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, handlelength=3.2, fontsize=9)
    return figure, notes


def _panel(axes: Any, measured: DetectionScores, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        style = {"color": class_color(number), "linestyle": LINES[number % len(LINES)], "linewidth": 1.2}
        axes.plot(100 * RECALLS, measured.curves[name], label=name, **style)
    mean = np.mean(list(measured.curves.values()), axis=0)
    axes.plot(100 * RECALLS, mean, color="black", linewidth=2.6, label="mean of all classes")
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall (%)", ylabel="precision (%)")

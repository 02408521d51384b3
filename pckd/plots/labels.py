"""Labels beside points, so that none covers another label, a point, or the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""

# Right, left, above, below, and then between them.
_TURNS = (0, 8, 4, 12, 2, 6, 14, 10, 1, 15, 7, 9, 3, 5, 13, 11)
_DIRECTIONS = tuple((math.cos(math.pi * turn / 8), math.sin(math.pi * turn / 8)) for turn in _TURNS)
_DISTANCES = (9, 16, 26, 38, 54, 72, 96)
"""Points between a point and its label, the near ones first."""
_LEADER = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}


def place_labels(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
) -> list[Any]:
    """Write each text beside its point, at the nearest free place; a thin line leads to one that is farther away.

    The layout must be final, as places are measured in pixels.

    Args:
        points, texts: one of each a label. lines: level and upright ones that a label should not lie on, by their ends.

    Returns:
        The annotations, in the order of the texts.
    """
    renderer = figure.canvas.get_renderer()
    place = axes.transData.transform
    taken = [_around(place(point), place(point), 6 * figure.dpi / 72) for point in points]
    taken += [_around(place(one), place(other), 1.5 * figure.dpi / 72) for one, other in lines]
    extent = axes.get_window_extent(renderer)
    inside = (extent.x0, extent.y0, extent.x1, extent.y1)
    written: list[Any] = []
    labels: list[Box] = []
    for point, text in zip(points, texts, strict=True):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=9)
        dx, dy, box = _free_place(note, renderer, taken, labels, inside)
        note.remove()
        labels.append(box)
        taken += [box, *_leader(place(point), dx, dy, figure.dpi / 72)]
        written.append(
            axes.annotate(
                text,
                point,
                xytext=(dx, dy),
                textcoords="offset points",
                fontsize=9,
                zorder=5,
                arrowprops=_arrow(dx, dy) if _is_far(dx, dy) else None,
                **_alignment(dx, dy),
            )
        )
    return written


def _free_place(
    note: Any, renderer: Any, taken: Sequence[Box], labels: Sequence[Box], inside: Box
) -> tuple[float, float, Box]:
    """The first offset of a label that is free, or where none is the one that covers least, and the label's box.

    Nothing in ``taken`` is to be under the label, nothing in ``labels`` under the line that leads to it.
    """
    point, scale = note.axes.transData.transform(note.xy), note.figure.dpi / 72
    best: tuple[float, float, float, Box] | None = None
    for distance in _DISTANCES:
        for cosine, sine in _DIRECTIONS:
            dx, dy = distance * cosine, distance * sine
            note.set(position=(dx, dy), **_alignment(dx, dy))
            extent = note.get_window_extent(renderer)
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            covered = sum(overlap(box, other) for other in taken) + (_area(box) - overlap(box, inside))
            covered += sum(overlap(part, other) for part in _leader(point, dx, dy, scale) for other in labels)
            if best is None or covered < best[0] - 1e-6:
                best = covered, dx, dy, box
            if best[0] <= 1e-6:
                return best[1:]
    assert best is not None
    return best[1:]


def _leader(point: Sequence[float], dx: float, dy: float, scale: float) -> list[Box]:
    """Boxes along the line from a point to its label, if that is so far away that it has one."""
    if not _is_far(dx, dy):
        return []
    at = [(point[0] + dx * scale * k / 10, point[1] + dy * scale * k / 10) for k in range(2, 10)]
    return [_around(here, here, 1.5 * scale) for here in at]


def _arrow(dx: float, dy: float) -> dict[str, Any]:
    """The line itself, which begins at the side of the label that is turned to the point."""
    sides = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
    return {**_LEADER, "relpos": tuple(sides[side] for side in _alignment(dx, dy).values())}


def _is_far(dx: float, dy: float) -> bool:
    return math.hypot(dx, dy) > _DISTANCES[0] + 0.1


def _alignment(dx: float, dy: float) -> dict[str, str]:
    """Which side of a label is turned to its point."""
    across = "left" if dx > 0.1 else "right" if dx < -0.1 else "center"
    return {"ha": across, "va": "center" if abs(dy) <= 0.5 * abs(dx) else "bottom" if dy > 0 else "top"}


def _around(one: Sequence[float], other: Sequence[float], size: float) -> Box:
    x, y = (one[0], other[0]), (one[1], other[1])
    return min(x) - size, min(y) - size, max(x) + size, max(y) + size


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0

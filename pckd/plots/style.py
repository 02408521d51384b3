"""How pictures look (colors that any color vision tells apart, and never a color alone), and how they are written."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pckd.profiling.picture import require_matplotlib
from registry import UserError
from registry.files import write_atomically

# Okabe and Ito's palette; yellow is last, as it is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
POINTS = (*COLORS, "#888888", "#882255")
"""For sets of points, ten at a time: two more, from Tol's palettes."""

AREAS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#882255", "#8C510A", "#44AA99")
"""For classes inside of images, where black and gray say nothing: Okabe and Ito's, and three more."""

WIDTH = 9.0
"""Inches; with DPI, 1260 pixels."""
DPI = 140
_RC: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.titlesize": 11.5,
    "font.size": 9.5,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    # Names of methods, classes and folders may have dollar signs in them.
    "text.parse_math": False,
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The settings under which figures are made and written."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_figure(height: float) -> Any:
    """An empty figure of ``height`` inches."""
    figure = require_matplotlib().Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # The canvas that can measure text, whatever the user's settings say.
    FigureCanvasAgg(figure)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Color, line and marker of the so-manieth line; the first 35 are all different, the first 5 in each respect."""
    return {
        "color": COLORS[number % (len(COLORS) - 1)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.5,
    }


def marker_style(number: int) -> dict[str, Any]:
    """Color and marker of the so-manieth set of points; the first 10 differ in both, the first 100 in one."""
    shift = number // len(POINTS)
    return {"color": POINTS[number % len(POINTS)], "marker": MARKERS[(number + shift) % len(MARKERS)]}


def class_color(number: int) -> tuple[float, float, float]:
    """Color of the so-manieth class inside of images; the first 30 differ: plain, pale and dark."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(AREAS[number % len(AREAS)])
    share, other = ((1.0, 0.0), (0.5, 0.5), (0.5, 0.0))[number // len(AREAS) % 3]
    return share * red + other, share * green + other, share * blue + other


def text_color(background: Sequence[float]) -> str:
    """Black or white, whichever can be read on a color."""
    red, green, blue = background
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def image_rows(titles: Sequence[str], images: Sequence[np.ndarray]) -> tuple[Any, np.ndarray]:
    """A figure that shows every image, [h, w, 3], in each of some rows, and its axes.

    Args:
        titles: of the rows, written at their left.
    """
    shape = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    side = (WIDTH - 0.4) / len(images)
    figure = new_figure(0.55 + len(titles) * (side * shape[0] / shape[1] + 0.06))
    places = figure.subplots(len(titles), len(images), squeeze=False)
    for row, title in zip(places, titles, strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(title, fontsize=9)
    return figure, places


def evenly(count: int, most: int) -> list[int]:
    """At most so many positions of ``count``, evenly spread, always the same ones."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})


def grid_shape(panels: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns for so many panels, at most ``most`` side by side."""
    columns = 2 if panels == 4 else min(panels, most)
    return -(-panels // columns), columns


def panels_of(figure: Any, count: int, rows: int, columns: int, **options: Any) -> list[Any]:
    """So many panels in a grid of at least as many places, row by row."""
    places = list(figure.subplots(rows, columns, squeeze=False, **options).flatten())
    for axes in places[count:]:
        axes.remove()
    return places[:count]


def headline(figure: Any, text: str) -> None:
    """Write above all panels what they show, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(text, 98), x=0.01, ha="left", fontsize=11.5)


def panel_title(axes: Any, text: str, columns: int) -> None:
    """Write above a panel, of so many side by side, what it shows, in as many lines as it takes."""
    axes.set_title(textwrap.fill(text, 100 // columns - 2))


def whole_numbers(axis: Any) -> None:
    """Epochs have no fractions, and neither have their ticks."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def check_target(path: str | os.PathLike[str]) -> Path:
    """Where a picture is to go."""
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    if not os.fspath(path):
        raise UserError("the picture's file has no name; give one, as in curves.png")
    target = Path(path).expanduser()
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give the name of a file in it, as in {target / 'curves.png'}")
    known = FigureCanvasBase.get_supported_filetypes()
    if target.suffix[1:].lower() not in known:
        raise UserError(f"{target}: the name must end in a format that can be drawn: .{', .'.join(sorted(known))}")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    return target


def write(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure, all or nothing, in the format that the name ends with.

    Raises:
        UserError: see :func:`check_target`; or it cannot be written, and an earlier file is as it was.
    """
    target = check_target(path)
    buffer = io.BytesIO()
    form = target.suffix[1:].lower()
    try:
        figure.savefig(buffer, format=form, dpi=DPI)
    except (OSError, ValueError, RuntimeError) as error:
        # Some formats need programs that are not there, such as LaTeX.
        raise UserError(f"{target}: cannot be drawn as .{form} ({error}); use .png or .svg") from None
    return write_atomically(target, buffer.getvalue())

"""How pictures look (colors that any color vision tells apart, and never a color alone), and how they are written."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pckd.profiling.picture import require_matplotlib
from registry import UserError
from registry.files import write_atomically

# Okabe and Ito's palette; yellow is last, as it is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
POINTS = (*COLORS, "#888888", "#882255")
"""For sets of points, ten at a time: two more, from Tol's palettes."""

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

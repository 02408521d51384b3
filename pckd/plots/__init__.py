"""Pictures of what runs have written: ``pckd.plots.plot("curves", ["runs/kd", "runs/pckd"], "curves.png")``.

Needs matplotlib (``pip install 'pckd[plots]'``), which is imported where something is drawn. The numbers that are drawn
come from functions without it, in each kind's module.
"""

from __future__ import annotations

from pckd.plots.pictures import KINDS, Picture, draw, plot, plot_all

__all__ = ["KINDS", "Picture", "draw", "plot", "plot_all"]

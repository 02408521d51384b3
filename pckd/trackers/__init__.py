"""Trackers: displays that also keep each epoch's numbers where other programs show them."""

from __future__ import annotations

from pckd.trackers.builtin import CSV, MLflow, TensorBoard, WandB
from pckd.trackers.tracker import Tracker, scalars, track

__all__ = ["CSV", "MLflow", "TensorBoard", "Tracker", "WandB", "scalars", "track"]

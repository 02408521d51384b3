"""The tracker TensorBoard, by the name that it had before there were others."""

from __future__ import annotations

from pckd.trackers import TensorBoard, scalars

__all__ = ["TensorBoard", "scalars"]

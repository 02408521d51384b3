"""What training costs: parameters, FLOPs, memory and time, of the networks, each term of the objective, and a step."""

from __future__ import annotations

from pckd.profiling.api import profile
from pckd.profiling.networks import inference_speed
from pckd.profiling.picture import plot
from pckd.profiling.render import render, short
from pckd.profiling.report import FLOP, STEP, Comparison, Profile
from pckd.profiling.side_by_side import compare, compare_pairs

__all__ = [
    "FLOP",
    "STEP",
    "Comparison",
    "Profile",
    "compare",
    "compare_pairs",
    "inference_speed",
    "plot",
    "profile",
    "render",
    "short",
]

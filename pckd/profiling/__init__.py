"""What training costs: parameters, FLOPs, memory and time, of the networks, each term of the objective, and a step."""

from __future__ import annotations

from pckd.profiling.api import profile
from pckd.profiling.compare import compare, compare_pairs
from pckd.profiling.plot import plot
from pckd.profiling.report import FLOP, STEP, Comparison, Profile

__all__ = ["FLOP", "STEP", "Comparison", "Profile", "compare", "compare_pairs", "plot", "profile"]

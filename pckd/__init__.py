"""Knowledge distillation with a plugin registry: a large frozen teacher trains a small student.

    result = pckd.distill(student="resnet8x4", teacher="resnet32x4", method="pckd", data="cifar100")

Losses as pure functions are in :mod:`pckd.functional`; what can be plugged in, and the contract of each kind, in
:mod:`registry`; networks, weights and recipes in :mod:`model_zoo`.
"""

from __future__ import annotations

from model_zoo.adapting import adapt
from pckd import functional
from pckd.api import Result, distill, evaluate, train, train_teacher
from pckd.data.load import Data, load_data
from pckd.engine.guard import Interrupted
from pckd.objective import Objective
from pckd.preflight import check
from pckd.profiling import profile
from pckd.recipes import recipe
from pckd.saved import load
from pckd.transfer import Transfer, transfer

__all__ = [
    "Data",
    "Interrupted",
    "Objective",
    "Result",
    "Transfer",
    "adapt",
    "check",
    "distill",
    "evaluate",
    "functional",
    "load",
    "load_data",
    "profile",
    "recipe",
    "train",
    "train_teacher",
    "transfer",
]

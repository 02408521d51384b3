"""What a profile says: small typed records. ``asdict`` of them is the JSON, so their names are its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FLOP = (
    "One FLOP is one multiply-add (two floating-point operations). A network's are fvcore's count for one image: "
    "convolutions, linear layers and matrix products, plus 2 an element of batch norms (5 of other norms) and 1 an "
    "element that adaptive pooling reads. Other element-wise operators, reductions and data movement are not in it."
)
STEP = (
    "A step's multiply-adds are counted while it runs, forward and backward, by the formulas of "
    "torch.utils.flop_counter (2 of its FLOPs are one): convolutions, matrix products, attention. Element-wise work is "
    "counted apart: one for each element of the largest tensor that any other operator touches, without views. "
    "Decompositions, sorting, distances and operators of other libraries are in neither count, and named."
)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median over the rounds, and the quartiles around it. None where nothing was timed."""

    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """A row of a network's table."""

    name: str
    type: str
    parameters: int
    macs: int | None
    activations: int | None


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """A network in evaluation. ``macs``, ``activations`` and ``elementwise`` are for one image."""

    name: str
    parameters: int
    macs: int | None
    """Multiply-adds; None where tracing failed."""
    activations: int | None
    """Elements that convolutions and matrix products put out (fvcore's ``ActivationCountAnalysis``)."""
    elementwise: int
    latency: dict[str, Timing]
    """Of a batch of 1 and of the batch size: ``"1"``, ``"64"``."""
    peak_bytes: int | None
    """Of inference with the batch size: weights, images, and the most that was alive meanwhile."""
    left_out: dict[str, int]
    """Operators that take a few operations an element at most, which fvcore does not count, and how often they run."""
    uncounted: dict[str, int]
    """Operators whose cost is in no number here, and how often they run."""
    modules: list[ModuleCost]
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    """Why it could not be traced."""


@dataclass(frozen=True, kw_only=True)
class ProjectionCost:
    """A trained part of a loss that is called as a module."""

    parameters: int
    macs: int
    macs_backward: int


@dataclass(frozen=True, kw_only=True)
class TermCost(Timing):
    """A term of the objective, for the rows of one step.

    The time is that of its forward pass and of the backward pass of its operators, down to the networks' outputs.
    """

    parameters: int
    """Trained ones: its projections."""
    buffer_bytes: int
    """Memory banks, frozen copies."""
    macs: int
    """Forward."""
    macs_backward: int
    elementwise: int
    """Forward and backward."""
    bytes: int
    """Held between forward and backward beside the networks' outputs, parameters and buffers."""
    uncounted: dict[str, int]
    projections: dict[str, ProjectionCost]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PartCost(Timing):
    """A stretch of the step: its time there, and what it does."""

    macs: int
    elementwise: int
    bytes: int | None = None
    """Held by it: for backward (student), as state (optimizer)."""


@dataclass(frozen=True, kw_only=True)
class StepCost(Timing):
    """A whole step of training: both networks, objective, backward, optimizer."""

    peak_bytes: int | None
    peak_how: str
    macs: int
    elementwise: int
    parameters: int
    """Trained ones: the student's and the objective's."""
    rows: int
    """Images times views."""
    images_per_second: float | None
    parts: dict[str, PartCost]
    """``teacher``, ``student`` (forward), ``term:<name>`` (forward), ``preview``, ``backward`` (of everything),
    ``optimizer``, ``other``, in the order of the step."""
    uncounted: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a training costs: networks, terms, a step. :func:`pckd.profile` makes it."""

    settings: dict[str, Any]
    student: NetworkCost
    teacher: NetworkCost | None
    """Of several teachers the cost of all of them, one after the other."""
    ratio: dict[str, float | None]
    """Student over teacher: ``parameters``, ``macs``, ``activations``, ``latency``, ``peak_bytes``."""
    terms: dict[str, TermCost]
    objective: Timing
    """Of all terms together, with difficulty and weights: forward, and backward down to the networks' outputs."""
    step: StepCost
    notes: list[str] = field(default_factory=list)
    teachers: list[NetworkCost] = field(default_factory=list)
    """Of several teachers, each one's cost."""

    @property
    def networks(self) -> list[NetworkCost]:
        """The student and each teacher."""
        return [self.student, *(self.teachers or ([] if self.teacher is None else [self.teacher]))]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with stable keys: ``["student"]["macs"]``, ``["terms"]["kd"]["seconds"]``, ..."""
        known = {name: value for name, value in asdict(self).items() if name != "teachers" or value}
        return {"units": {"network": FLOP, "step": STEP}, **known}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods side by side on one pair. :func:`pckd.profiling.compare` makes it."""

    profiles: dict[str, Profile]
    """By label: the method, and ``@views`` where it was given."""

    def relative(self, label: str, base: str) -> Mapping[str, float | None]:
        """Cost of a step over that of ``base``: ``seconds``, ``macs``, ``peak_bytes``, ``parameters``."""
        one, other = self.profiles[label].step, self.profiles[base].step
        return {key: over(getattr(one, key), getattr(other, key)) for key in RELATIVE}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ``methods.<label>`` is a profile, ``relative.<label>.<base>`` the ratios."""
        bases = [base for base in BASES if base in self.profiles]
        return {
            "methods": {label: profile.as_dict() for label, profile in self.profiles.items()},
            "relative": {label: {base: self.relative(label, base) for base in bases} for label in self.profiles},
        }


BASES = ("vanilla", "kd")
"""What methods are compared with."""
RELATIVE = ("seconds", "macs", "peak_bytes", "parameters")


def over(one: float | None, other: float | None) -> float | None:
    """The ratio, or None where either is unknown or the lower one is 0."""
    return one / other if one is not None and other else None

"""Names for everything that can be plugged in, and the contract of each kind.

The leaf of the project: it imports neither ``model_zoo`` nor ``pckd``. Built-in plug-ins are found in the packages
named here at the first look-up; a user's come from :func:`load_plugin`.
"""

from __future__ import annotations

from registry.contracts import (
    Absent,
    Batch,
    CenterRule,
    Centers,
    Context,
    DataSplit,
    Loss,
    Network,
    Output,
    Setup,
    Shapes,
    Term,
)
from registry.errors import BadImages, NameTaken, NotApplicable, PluginError, UnknownName, UserError, ask
from registry.plugins import load_entry_points, load_plugin
from registry.registry import Registry
from registry.spec import build, check_options, options_of, parse

BACKBONES = Registry(
    "BACKBONES",
    """Networks: ``fn(num_classes, **options) -> nn.Module``.

    ``forward(x: [N, C, H, W]) -> Output``; ``.classifier`` is the last nn.Linear. The option ``in_channels`` (default
    3) sets the input's channels. Any input size that the strides allow works.
    """,
    packages=("model_zoo",),
)
LOSSES = Registry(
    "LOSSES",
    """Distillation losses: ``factory(setup: Setup, **options) -> nn.Module`` (see :class:`registry.contracts.Loss`).

    ``forward(student: Output, teacher: Output, context: Context) -> Tensor[N]``, unreduced, or a scalar where the loss
    is about the whole batch. Projections are submodules; memory is buffers. A pair of networks that cannot work is
    refused in the constructor with :class:`registry.NotApplicable`.
    """,
    packages=("pckd.losses",),
)
METHODS = Registry(
    "METHODS",
    """Methods: ``fn(**weights) -> list[Term]``; the whole objective is the weighted sum of the terms.""",
    packages=("pckd.methods", "pckd.losses"),
)
DIFFICULTY_METRICS = Registry(
    "DIFFICULTY_METRICS",
    """How hard is each image: ``fn(student: Output, teacher: Output, context: Context, **options) -> Tensor[B]``.

    Higher is harder; finite and not negative; scaled to mean 1 over the batch, as the schedulers' bars expect. Called
    with the upright rows only and without gradient.
    """,
    packages=("pckd.difficulty",),
    kind="function",
)
DIFFICULTY_SCHEDULERS = Registry(
    "DIFFICULTY_SCHEDULERS",
    """From difficulty to weight: ``fn(difficulty: Tensor[B], context: Context, **options) -> Tensor[B]`` in [0, 1].

    Pure: the same arguments give the same weights. The rows of an image's other views take the image's weight.
    """,
    packages=("pckd.schedulers",),
    kind="function",
)
CENTER_RULES = Registry(
    "CENTER_RULES",
    """What the category centers are: ``factory(setup: Setup, **options) -> CenterRule``, an nn.Module.

    ``forward(student_net, teacher_net) -> Centers``, valid at step 0; ``update(student, teacher, labels)`` after each
    step. State is parameters and buffers.
    """,
    packages=("pckd.centers",),
)
DATASETS = Registry(
    "DATASETS",
    """Data sets: ``fn(root: str | None, train: bool, **options) -> DataSplit``: images, labels, classes, mean, std.

    An image that cannot be read is raised as :class:`registry.BadImages`. A data set that decodes its images when it is
    built takes the option ``on_bad_image``: ``"stop"`` raises for all of them at once, ``"skip"`` leaves them out.
    """,
    packages=("pckd.data",),
)

REGISTRIES: tuple[Registry, ...] = (
    BACKBONES,
    LOSSES,
    METHODS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    CENTER_RULES,
    DATASETS,
)

__all__ = [
    "BACKBONES",
    "CENTER_RULES",
    "DATASETS",
    "DIFFICULTY_METRICS",
    "DIFFICULTY_SCHEDULERS",
    "LOSSES",
    "METHODS",
    "REGISTRIES",
    "Absent",
    "BadImages",
    "Batch",
    "CenterRule",
    "Centers",
    "Context",
    "DataSplit",
    "Loss",
    "NameTaken",
    "Network",
    "NotApplicable",
    "Output",
    "PluginError",
    "Registry",
    "Setup",
    "Shapes",
    "Term",
    "UnknownName",
    "UserError",
    "ask",
    "build",
    "check_options",
    "load_entry_points",
    "load_plugin",
    "options_of",
    "parse",
]

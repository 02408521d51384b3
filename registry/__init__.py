"""Names for everything that can be plugged in, and the contract of each kind.

The leaf of the project: it imports neither ``model_zoo`` nor ``pckd``. Built-in plug-ins are found in the packages
named here at the first look-up; a user's come from :func:`load_plugin`.
"""

from __future__ import annotations

from registry.contracts import (
    Absent,
    Batch,
    Boxes,
    CenterRule,
    Centers,
    Context,
    DataSplit,
    Head,
    Instances,
    Loss,
    Network,
    Output,
    Progress,
    Rows,
    Setup,
    Shapes,
    Term,
)
from registry.errors import BadImages, NameTaken, NotApplicable, PluginError, UnknownName, UserError, ask
from registry.functions import INPUTS, function_loss, loss_factory, metric_function
from registry.plugins import load_entry_points, load_plugin
from registry.registry import Registry
from registry.spec import build, check_options, options_of, parse, split_specs

BACKBONES = Registry(
    "BACKBONES",
    """Networks: ``fn(num_classes, **options) -> nn.Module``.

    ``forward(x: [N, C, H, W]) -> Output``; ``.classifier`` is the last nn.Linear. The option ``in_channels`` (default
    3) sets the input's channels. Any input size that the strides allow works. Where ``forward`` returns logits in
    another form, the module is adapted (:func:`pckd.adapt`).

    A network of another task is registered with it, ``register("name", task="detection")``, and is what that task says.
    """,
    packages=("model_zoo",),
)
LOSSES = Registry(
    "LOSSES",
    """Distillation losses: functions, or classes where a loss has layers or a memory.

    A function: ``fn(student_logits, teacher_logits, ..., temperature=4.0) -> Tensor``. It returns [N], unreduced, or a
    scalar where the loss is about the whole batch. The names of its parameters without a default choose its inputs
    (:data:`registry.INPUTS`; ``student``, ``teacher`` and ``context`` are the whole of each); the others are its
    options. ``register`` also takes its claims (``per_sample=False``; see :class:`registry.Loss`), ``check=fn(setup,
    **options)`` to refuse a pair of networks or an option when the loss is built, and ``inputs=(names)`` where the
    parameters have other names.

    A class, or a function that makes a module: ``factory(setup: Setup, **options) -> nn.Module`` with
    ``forward(student: Output, teacher: Output, context: Context) -> Tensor``. Projections are submodules, memory is
    buffers, claims are attributes. The constructor refuses a pair of networks that cannot work.

    Refuse a pair with :class:`registry.NotApplicable`.
    """,
    packages=("pckd.losses",),
    adapt=loss_factory,
)
METHODS = Registry(
    "METHODS",
    """Methods: ``fn(**weights) -> list[Term]``; the whole objective is the weighted sum of the terms.""",
    packages=("pckd.methods", "pckd.losses"),
)
DIFFICULTY_METRICS = Registry(
    "DIFFICULTY_METRICS",
    """How hard is each image: ``fn(student: Output, teacher: Output, context: Context, **options) -> Tensor[B]``.

    Or a function that names its inputs, as a loss does: ``fn(student_logits, labels, **options)``. One that takes the
    whole outputs and looks at no feature map says so: ``register("name", reads_maps=False)``.

    Higher is harder; finite and not negative; scaled to mean 1 over the batch, as the schedulers' bars expect. Called
    with the upright rows only and without gradient.
    """,
    packages=("pckd.difficulty",),
    kind="function",
    adapt=metric_function,
)
DIFFICULTY_SCHEDULERS = Registry(
    "DIFFICULTY_SCHEDULERS",
    """From difficulty to weight: ``fn(difficulty: Tensor[B], context: Context, **options) -> Tensor[B]``, 0 or above.

    A preview's weights are at most 1. Pure: the same arguments give the same weights. The rows of an image's other
    views take the image's weight.
    """,
    packages=("pckd.schedulers",),
    kind="function",
)
LR_SCHEDULES = Registry(
    "LR_SCHEDULES",
    """Learning-rate schedules: ``fn(progress: float, epochs: int, **options) -> float``.

    By this factor, at least 0, the learning rate at the start is multiplied. ``progress`` is the share of the steps
    done, 0 to 1, of a schedule of ``epochs``. Pure.
    """,
    packages=("pckd.lr_schedules",),
    kind="function",
)
OPTIMIZERS = Registry(
    "OPTIMIZERS",
    """Optimizers: ``fn(groups: list[dict], lr: float, **options) -> torch.optim.Optimizer``.

    ``groups`` are parameter groups with ``params``, and where it is not the optimizer's own with ``weight_decay``. The
    schedule sets each group's ``lr`` before each step. ``register(lr=1e-3)`` says at which rate it is usually started.
    All take the options of :class:`pckd.engine.optimization.Grouping`, too.
    """,
    packages=("pckd.optimizers",),
    kind="function",
)
AUGMENTATIONS = Registry(
    "AUGMENTATIONS",
    """Augmentations of training images: ``fn(images, drawn, **options) -> images``, registered with ``draws=R``.

    ``images`` are uint8 [B, C, H, W], on any device, and so is what is returned. ``drawn`` are R random numbers of
    [0, 1) for each image, float64 [B, R] on the CPU. Pure: all that is random comes from ``drawn``, and an image's
    result does not depend on the others.

    With ``mixes=True``: ``fn(views, others, drawn, **options) -> (views, share)``. It mixes normalized views, float [B,
    V, C, H, W], with those of other images; ``share`` [B], float64 on the CPU, is the weight of each image's own label.
    """,
    packages=("pckd.augmentations",),
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
RECIPES = Registry(
    "RECIPES",
    """Recipes: ``fn(**options) -> dict``, arguments of :func:`pckd.distill` that hold where a run does not give them.

    ``register(source="...")`` says where they are from.
    """,
    packages=("pckd.recipes",),
)
DATASETS = Registry(
    "DATASETS",
    """Data sets: ``fn(root: str | None, train: bool, **options) -> DataSplit``: images, labels, classes, mean, std.

    One of another task is registered with its name, ``register(task="detection")``, and returns that task's split: for
    detection and segmentation :class:`pckd.data.annotated.AnnotatedSplit`, images with boxes or masks.

    An image that cannot be read is raised as :class:`registry.BadImages`. A data set that decodes its images when it is
    built takes the option ``on_bad_image``: ``"stop"`` raises for all of them at once, ``"skip"`` leaves them out.
    """,
    packages=("pckd.data",),
)

TASKS = Registry(
    "TASKS",
    """Tasks: ``factory(**options) -> pckd.tasks.Task``, which turns batches into rows, and measures networks.""",
    packages=("pckd.tasks",),
)

TRACKERS = Registry(
    "TRACKERS",
    """Trackers: ``factory(folder, display, **options) -> pckd.trackers.Tracker``.

    A display that tells another one everything, and keeps each epoch's numbers in a folder for another program.
    """,
    packages=("pckd.trackers",),
)

REGISTRIES: tuple[Registry, ...] = (
    BACKBONES,
    LOSSES,
    METHODS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LR_SCHEDULES,
    OPTIMIZERS,
    AUGMENTATIONS,
    CENTER_RULES,
    DATASETS,
    TASKS,
    TRACKERS,
    RECIPES,
)

__all__ = [
    "AUGMENTATIONS",
    "BACKBONES",
    "CENTER_RULES",
    "DATASETS",
    "DIFFICULTY_METRICS",
    "DIFFICULTY_SCHEDULERS",
    "INPUTS",
    "LOSSES",
    "LR_SCHEDULES",
    "METHODS",
    "OPTIMIZERS",
    "RECIPES",
    "REGISTRIES",
    "TASKS",
    "TRACKERS",
    "Absent",
    "BadImages",
    "Batch",
    "Boxes",
    "CenterRule",
    "Centers",
    "Context",
    "DataSplit",
    "Head",
    "Instances",
    "Loss",
    "NameTaken",
    "Network",
    "NotApplicable",
    "Output",
    "PluginError",
    "Progress",
    "Registry",
    "Rows",
    "Setup",
    "Shapes",
    "Term",
    "UnknownName",
    "UserError",
    "ask",
    "build",
    "check_options",
    "function_loss",
    "load_entry_points",
    "load_plugin",
    "options_of",
    "parse",
    "split_specs",
]

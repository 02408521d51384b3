"""One table of facts about the arguments of a run; ranges, command lines, resume and comparison all derive from it."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

from registry import UserError

__all__ = [
    "ARGUMENTS",
    "POOL",
    "Argument",
    "Several",
    "add_arguments",
    "alike",
    "before",
    "check_arguments",
    "may_change",
]

POOL = 16
"""Augmentations of each image where a teacher cache needs them to be finite; measured in pckd/engine/README.md."""
LARGEST_POOL = 65535
GRAPHS = "reduce-overhead"
"""What ``compile`` may be beside yes and no."""
MOST_WORKERS = 1024
"""More processes than any machine has use for, and fewer than bring one down."""


@dataclass(frozen=True)
class Argument:
    """What is known of an argument of :func:`pckd.distill`.

    Args:
        help: for the command line. group: of the help page. metavar: likewise.
        kind: from the text of a command line to the value; bool makes a switch.
        choices: the values it may have, besides None.
        low, high: the range of a number; ``above``: whether ``low`` itself is outside, ``below``: likewise ``high``.
        path: a path, which must not be empty.
        several: may be given several times on a command line; the value is then a list.
        may_change: a resumed run may give it anew.
        apart: two runs that differ in it are different things to compare, and not two seeds or two machines of one.
        before: what runs did that were made before the argument existed.
    """

    help: str
    group: str
    metavar: str | None = None
    kind: Callable[[str], Any] = str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float = math.inf
    above: bool = False
    below: bool = False
    path: bool = False
    several: bool = False
    may_change: bool = False
    apart: bool = True
    before: Any = None


def steps_or_epoch(text: str) -> int | str:
    """``"epoch"`` or a number of steps, of a command line."""
    if text == "epoch":
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a number of steps, or epoch, not {text!r}")


def _number(help: str, group: str, low: float = 0, high: float = math.inf, **facts: Any) -> Argument:
    return Argument(help, group, kind=float, low=low, high=high, **facts)


def _count(help: str, group: str, low: int = 1, high: float = math.inf, **facts: Any) -> Argument:
    return Argument(help, group, kind=int, low=low, high=high, **facts)


def _switch(help: str, group: str, **facts: Any) -> Argument:
    return Argument(help, group, kind=bool, **facts)


FREE: dict[str, Any] = {"may_change": True, "apart": False}
"""Facts of what concerns one start of a run: a resumed run may give it anew, and runs that differ in it are alike."""

WHAT, DATA, SCHEDULE, SPEED, OUTPUT, REPORTS = "what", "data", "schedule", "speed", "output", "reports"

ARGUMENTS: Mapping[str, Argument] = MappingProxyType(
    {
        "student": Argument("backbone to train", WHAT, "NAME"),
        "student_weights": Argument(
            "file or address of weights that it starts with; a last layer of other classes is left out",
            WHAT,
            "FILE",
            path=True,
        ),
        "teacher": Argument(
            "backbone to learn from (default: the student's usual one); repeat it for several teachers",
            WHAT,
            "NAME",
            several=True,
        ),
        "teacher_weights": Argument(
            "file or address of its weights, FILE#NAME of one that holds several (default: it is trained first); of "
            "several teachers one for each, - for none",
            WHAT,
            "FILE",
            path=True,
            several=True,
        ),
        "teacher_classes": Argument(
            "file of its classes' names or numbers, one a line for each of the data's (default: by their names)",
            WHAT,
            "FILE",
        ),
        "method": Argument("what to distill; NAME@2: from the second of several teachers", WHAT, "NAME"),
        "task": Argument("what is learned (default: what the data set is for)", WHAT, "NAME"),
        "difficulty": Argument("how hard a sample is", WHAT, "NAME"),
        "scheduler": Argument("from difficulty to weight (default: preview, where the method previews)", WHAT, "NAME"),
        "centers": Argument("what the category centers are", WHAT, "NAME"),
        "views": _count(
            "rotations of each image (default: what the method asks for)", WHAT, 1, 4, choices=(1, 2, 3, 4)
        ),
        "view_statistics": Argument(
            "whether the student's batch norms take all views together or each by itself",
            WHAT,
            choices=("joint", "own"),
            before="joint",
        ),
        "data": Argument("data set (default: a demonstration on drawn data)", DATA, "NAME"),
        "data_root": Argument("where the data set's files are", DATA, "DIR", path=True, **FREE),
        "limit_train": _count("train on N images, always the same ones, of each class one first", DATA, metavar="N"),
        "limit_test": _count("measure on N images, likewise", DATA, metavar="N"),
        "val_fraction": Argument("hold out this share of the training set and measure on it", DATA, kind=float),
        "flip": _switch("random horizontal flips in training", DATA),
        "augment": Argument("augmentations of training images, joined by + (default: crop+flip)", DATA, "NAMES"),
        "balance": Argument(
            "classes of unequal size: as they are, by weights in the cross entropy, or drawn equally often",
            DATA,
            choices=("none", "weights", "sampler"),
            before="none",
        ),
        "on_bad_image": Argument(
            "what an image that cannot be read does: stop the run, or be left out",
            DATA,
            choices=("stop", "skip"),
            before="stop",
        ),
        "epochs": _count("length of the run; the schedule scales with it", SCHEDULE, may_change=True),
        "batch_size": _count("images a step", SCHEDULE),
        "lr": _number("learning rate at the start (default: the recipe's)", SCHEDULE, above=True),
        "momentum": _number("of SGD", SCHEDULE, 0, 1, below=True),
        "weight_decay": _number("of SGD", SCHEDULE),
        "milestones": Argument("shares of the run after which the learning rate falls", SCHEDULE),
        "lr_decay": _number("factor by which it falls", SCHEDULE),
        "schedule": Argument("learning-rate schedule (default: steps at the milestones)", SCHEDULE, "NAME"),
        "optimizer": Argument("of the student (default: SGD with the two options above)", SCHEDULE, "NAME"),
        "accumulate": _count("batches whose mean gradient makes one step", SCHEDULE, before=1),
        "label_smoothing": _number("of the cross entropy with the labels", SCHEDULE, 0, 1, below=True, before=0.0),
        "ema": _number(
            "also keep a running average of the student's weights, with this decay, and measure it",
            SCHEDULE,
            0,
            1,
            above=True,
            below=True,
        ),
        "patience": _count("stop after N epochs without a better one; needs --val-fraction", SCHEDULE, metavar="N"),
        "clip_grad": _number("largest norm of the gradient; above it, it is scaled down", SCHEDULE, above=True),
        "teacher_epochs": _count("length of the teacher's training, where it is trained (default: --epochs)", SCHEDULE),
        "teacher_lr": _number("its learning rate at the start, likewise (default: its recipe's)", SCHEDULE, above=True),
        # Generators take 64 bits, and seed + 1 is used.
        "seed": _count("of initialization, order and augmentation", SCHEDULE, -(2**63), 2**63 - 2, apart=False),
        "device": Argument("cpu, cuda, cuda:1, mps, ... (default: the accelerator, if there is one)", SPEED, **FREE),
        "precision": Argument("of the networks", SPEED, choices=("auto", "fp32", "bf16")),
        "compile": Argument(
            "run the networks through torch.compile (default: where the run is long enough to repay it); "
            "reduce-overhead also replays them as CUDA graphs",
            SPEED,
            kind=bool,
            choices=(True, False, GRAPHS),
            **FREE,
        ),
        "threads": _count(
            "threads of the CPU (default: as many as there are free cores when the run starts)",
            SPEED,
            high=MOST_WORKERS,
            metavar="N",
            **FREE,
        ),
        "num_workers": _count("processes that read a streamed data set", SPEED, 0, MOST_WORKERS, **FREE),
        "teacher_cache": Argument(
            "keep the teacher's answers there, for this run and later ones", SPEED, "DIR", path=True, apart=False
        ),
        "cache_logits": Argument(
            "how the cache writes logits: float16, float32, uint8 or topN", SPEED, "FORMAT", before="float16"
        ),
        "view_pool": _count(
            f"augment each image in P ways (default: {POOL} with a cache)", SPEED, 0, LARGEST_POOL, metavar="P"
        ),
        "output": Argument(
            "folder for metrics.jsonl, result.json, checkpoint.pth and model_final.pth",
            OUTPUT,
            "DIR",
            path=True,
            **FREE,
        ),
        "resume": _switch("continue from the checkpoint in --output", OUTPUT, **FREE),
        "checkpoint_every": Argument(
            "how often, with --output", OUTPUT, "STEPS|epoch", kind=steps_or_epoch, low=1, **FREE
        ),
        "keep_best": _switch("also keep the best epoch's network; needs --val-fraction", OUTPUT, before=False),
        "on_nonfinite": Argument(
            "what a term that is not finite does: stop the run, or leave the step out",
            OUTPUT,
            choices=("stop", "skip"),
            **FREE,
        ),
        "profile": _switch("first measure what a step costs; kept in result.json", REPORTS, **FREE),
        "report_difficulty": _switch(
            "each epoch also how the difficulty metrics spread over the training images, and with true difficulties "
            "how well they agree",
            REPORTS,
            **FREE,
        ),
        "report_gradients": _switch("each epoch also how the terms' gradients lie to one another", REPORTS, **FREE),
        "debug": _switch("show the traceback of an error", REPORTS, **FREE),
    }
)


def may_change() -> frozenset[str]:
    """Arguments that a resumed run may give anew."""
    return frozenset(name for name, argument in ARGUMENTS.items() if argument.may_change)


def alike() -> frozenset[str]:
    """Arguments in which the runs that are averaged may differ."""
    return frozenset(name for name, argument in ARGUMENTS.items() if not argument.apart)


def before() -> dict[str, Any]:
    """What runs of earlier versions, which did not know these arguments, did.

    An earlier run that lacks any other argument was not given it.
    """
    return {name: argument.before for name, argument in ARGUMENTS.items() if argument.before is not None}


def check_arguments(**values: Any) -> None:
    """Refuse what no run can use: numbers out of their range, unknown choices, empty paths.

    Raises:
        UserError: names the argument and what it may be.
    """
    for name, value in values.items():
        argument = ARGUMENTS[name]
        if value is None or (argument.kind is steps_or_epoch and value == "epoch"):
            continue
        paths = (
            [path for path in value if path is not None] if argument.several and isinstance(value, list) else [value]
        )
        if argument.path and any(not isinstance(path, (str, os.PathLike)) or not os.fspath(path) for path in paths):
            # An empty path, as of a variable that is not set, would be the current folder.
            raise UserError(f"{name} must be a path, not {value!r}; give one, or leave {name} out")
        if argument.low is not None:
            _check_range(name, argument, value)
        elif argument.choices and value not in argument.choices:
            raise UserError(f"{name} must be {_either(argument.choices)}, not {value!r}")


def _check_range(name: str, argument: Argument, value: Any) -> None:
    low, high = argument.low, argument.high
    assert low is not None
    if argument.kind is float:
        inside = isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high
        if not inside and high == math.inf:
            raise UserError(f"{name} must be a finite number of at least {low:g}, not {value!r}")
        if argument.above and value <= low:
            raise UserError(f"{name} must be above {low:g}, not {value!r}")
        if not inside or (argument.below and value >= high):
            raise UserError(f"{name} must be at least {low:g} and below {high:g}, not {value!r}")
    elif not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        allowed = f"of at least {low:g}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{name} must be a whole number {allowed}, not {value!r}")


def _either(choices: Iterable[Any]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}"


class YesNoOr(argparse.BooleanOptionalAction):
    """``--NAME`` and ``--no-NAME``, and ``--NAME VALUE`` of what else it may be."""

    def __init__(self, option_strings: Sequence[str], dest: str, choices: Iterable[Any], **options: Any) -> None:
        super().__init__(option_strings, dest, **options)
        self.nargs, self.const, self.choices = "?", True, [value for value in choices if isinstance(value, str)]

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        no = str(option_string).startswith("--no-")
        if no and values is not True:
            parser.error(f"argument {option_string}: it takes no value, and not {values!r}")
        setattr(namespace, self.dest, False if no else values)


class Several(argparse.Action):
    """Keeps one value as it is, and several as a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        listed = before if isinstance(before, list) else [] if before is None else [before]
        setattr(namespace, self.dest, [*listed, values] if listed else values)


def add_arguments(
    parser: argparse.ArgumentParser, names: Iterable[str], defaults: Mapping[str, Any], **helps: str
) -> dict[str, argparse._ArgumentGroup]:
    """Add flags for these arguments: ``data`` as ``--dataset``, others by their name. Returns the groups.

    Args:
        defaults: by argument. A switch that is on by default becomes ``--no-NAME``; one that is None by default gets
            both. helps: other help texts.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in names:
        argument, default = ARGUMENTS[name], defaults.get(name)
        if argument.group not in groups:
            groups[argument.group] = parser.add_argument_group(argument.group)
        flag = "--dataset" if name == "data" else "--" + name.replace("_", "-")
        options: dict[str, Any] = {"help": helps.get(name, argument.help), "default": default}
        if argument.kind is bool and default is True:
            flag, options["dest"] = f"--no-{flag[2:]}", name
            options.update(action="store_false", help=f"no {options['help']}")
        elif argument.kind is bool and argument.choices:
            options.update(action=YesNoOr, choices=argument.choices)
        elif argument.kind is bool:
            options["action"] = argparse.BooleanOptionalAction if default is None else "store_true"
        else:
            options.update(type=argument.kind, metavar=argument.metavar, choices=argument.choices or None)
            options["action"] = Several if argument.several else "store"
        groups[argument.group].add_argument(flag, **options)
    return groups

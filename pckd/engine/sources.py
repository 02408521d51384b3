"""From what a caller names to what the loop needs: data, networks, methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_zoo import method_options, method_recipe, probe
from model_zoo.recipes import LEFT_OUT
from pckd.data import hold_out, limit
from pckd.objective import Metric, Objective, Scheduler, preview_all
from registry import (
    BACKBONES,
    CENTER_RULES,
    DATASETS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    METHODS,
    CenterRule,
    DataSplit,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
    parse,
)

DATA_SEED = 0
"""Seed of which images ``limit`` and ``val_fraction`` pick: every run of every seed sees the same ones."""


@dataclass(frozen=True)
class Data:
    """What to train on and what to measure on.

    Args:
        train: the training split. test: what accuracy is measured on, each epoch and at the end.
        name: for logs and result.json.
        measured_on: ``"test"``, or ``"val"`` where ``test`` was held out of the training set.
    """

    train: DataSplit
    test: DataSplit
    name: str = "custom"
    measured_on: str = "test"

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes:
            raise UserError(
                f"{self.name}: training and test split have different classes "
                f"({self.train.num_classes} and {self.test.num_classes})"
            )
        for label, split in (("training", self.train), ("test", self.test)):
            if not len(split):
                raise UserError(f"{self.name}: the {label} split is empty")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as the network gets it in training."""
        channels, height, width = self.train.images[0].shape
        return int(channels), int(height), int(width)


def load_data(
    data: str | Data,
    *,
    root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
) -> Data:
    """Load a data set by name, or pass one through.

    Args:
        data: a name of ``DATASETS``, with options (``"shapes(num_classes=20)"``), or a :class:`Data`.
        root: where its files are.
        limit_train: use the first so many images of a fixed permutation of the training split.
        limit_test: likewise for the test split.
        val_fraction: hold out this share of the training split, by class, and measure on it instead of the test
            split, which is then not touched.

    Raises:
        UserError: unknown name, missing or broken data, a limit beyond the data.
    """
    train: DataSplit
    test: DataSplit
    if isinstance(data, Data):
        train, test, name, measured_on = data.train, data.test, data.name, data.measured_on
    else:
        train = build(DATASETS, data, root, True)
        # With a validation split the test split is not even read.
        test = train if val_fraction else build(DATASETS, data, root, False)
        name, measured_on = data, "test"
    if limit_train is not None:
        train = limit(train, limit_train, DATA_SEED)
    if val_fraction:
        train, test = hold_out(train, val_fraction, DATA_SEED)
        measured_on = "val"
    if limit_test is not None:
        test = limit(test, limit_test, DATA_SEED)
    return Data(train, test, name, measured_on)


def make_network(network: str | nn.Module, data: Data) -> nn.Module:
    """Build a backbone by name for this data, or pass a module through."""
    if isinstance(network, nn.Module):
        return network
    built: nn.Module = build(BACKBONES, network, data.train.num_classes, in_channels=data.image_shape[0])
    return built


def shapes_of(network: nn.Module, data: Data, role: str) -> Shapes:
    """The network's shapes at this data's resolution.

    Raises:
        UserError: it cannot take these images, or has another number of classes.
    """
    channels, *size = data.image_shape
    shapes = probe(network, channels, (size[0], size[1]), name=f"the {role}")
    if shapes.num_classes != data.train.num_classes:
        raise UserError(
            f"the {role} has {shapes.num_classes} classes, the data set {data.name} {data.train.num_classes}: "
            "they must be the same"
        )
    return shapes


def method_terms(
    method: str | Sequence[Term],
    student: str | nn.Module | None = None,
    teacher: str | nn.Module | None = None,
) -> list[Term]:
    """The terms of a method by name (``"pckd(beta=0.1)"``), of several together (``"dkd+crd"``), or the given ones.

    Several methods have one cross entropy between them: the first one's. Where student and teacher have names, a
    method takes the pair's published options; those given in ``method`` win.
    """
    if not isinstance(method, str):
        return list(method)
    options = pair_options(method, student, teacher)
    terms: list[Term] = []
    for part in split_methods(method):
        name = parse(part)[0]
        if name in LEFT_OUT and name not in METHODS:
            raise UserError(f"method {name!r} is left out: {LEFT_OUT[name]}")
        for term in build(METHODS, part, **options.get(name, {})):
            if term.loss != "cross_entropy" or not any(t.loss == "cross_entropy" for t in terms):
                terms.append(term)
    return terms


def pair_options(
    method: str | Sequence[Term], student: str | nn.Module | None, teacher: str | nn.Module | None
) -> dict[str, dict[str, Any]]:
    """For each named method the options that follow from the pair (:func:`model_zoo.method_options`), less those given.

    Methods without any are left out.
    """
    if not (isinstance(method, str) and isinstance(student, str) and isinstance(teacher, str)):
        return {}
    found = {}
    for name, given in map(parse, split_methods(method)):
        options = {k: v for k, v in method_options(name, student, teacher).items() if k not in given}
        if options:
            found[name] = options
    return found


def method_lr(method: str | Sequence[Term], student: str | nn.Module) -> float | None:
    """The learning rate that a named method asks for (the first that does, of several together); None: the usual."""
    name = student if isinstance(student, str) else None
    for part in split_methods(method) if isinstance(method, str) else ():
        if "lr" in (changes := method_recipe(parse(part)[0], name)):
            return float(changes["lr"])
    return None


def split_methods(method: str, separator: str = "+") -> list[str]:
    """``"dkd(beta=2)+crd"`` to ``["dkd(beta=2)", "crd"]``: split at each separator outside parentheses."""
    parts, depth = [""], 0
    for character in method:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def schedule_terms(terms: Sequence[Term], scheduler: str | Scheduler | None) -> tuple[list[Term], str | Scheduler]:
    """The terms with what is previewed, and the scheduler: one that is given weights every method's losses."""
    if scheduler is None:
        return list(terms), "preview"
    return list(terms) if any(term.previewed for term in terms) else preview_all(terms), scheduler


def make_objective(
    terms: Sequence[Term],
    setup: Setup,
    *,
    difficulty: str | Metric,
    scheduler: str | Scheduler,
    centers: str | CenterRule,
) -> Objective:
    """The objective of these terms; its other parts by name or as objects."""
    return Objective(
        terms,
        setup,
        difficulty=build(DIFFICULTY_METRICS, difficulty) if isinstance(difficulty, str) else difficulty,
        scheduler=build(DIFFICULTY_SCHEDULERS, scheduler) if isinstance(scheduler, str) else scheduler,
        centers=build(CENTER_RULES, centers, setup) if isinstance(centers, str) else centers,
    )


def describe(thing: Any) -> Any:
    """What result.json says of an argument that may be an object: its name."""
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, Data):
        return thing.name
    if isinstance(thing, torch.device):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, Term):
        return f"{thing.weight} * {thing.label}"
    return str(getattr(thing, "__name__", type(thing).__name__))

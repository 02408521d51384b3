"""Before a long run: everything it would use held to its contract, and one step taken of each stage."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from model_zoo import save_weights
from pckd import testing
from pckd.api import distill
from pckd.arguments import check_arguments
from pckd.data import Loader, limit
from pckd.data.annotated import AnnotatedLoader, AnnotatedSplit
from pckd.data.augment import USUAL
from pckd.data.load import DATA_SEED, Data, load_data
from pckd.device import Device, ready_to_train
from pckd.display import Display, choose_display, watch
from pckd.engine.optimization import named_optimizer
from pckd.engine.progress import own_random_state
from pckd.engine.record import RunFolder
from pckd.given import copy_of
from pckd.objective import needs_teacher
from pckd.ops import PUBLISHED_EPOCHS
from pckd.plan import choose, make_task
from pckd.tasks import Task
from pckd.terms import paired, teachers_of
from registry import (
    DATASETS,
    LR_SCHEDULES,
    BadImages,
    DataSplit,
    Term,
    UserError,
    build,
    options_of,
    parse,
    split_specs,
)

__all__ = ["check"]

LOOKED_AT = 64
"""Test images, of which the first are enough."""
PIECE = 16
"""Images that a process reads at a time."""


def check(*, display: Display | Literal["auto"] | None = "auto", **options: Any) -> None:
    """Check what ``pckd.distill(**options)`` would use, and take one step of each stage. Trains and writes nothing.

    All cores together read every image of data that is streamed or decoded from files, whatever limits are given.

    Args:
        options: those of :func:`pckd.distill`. A teacher without weights answers untrained, and of a student that is a
            module a copy takes the step. display: told what holds; as for :func:`pckd.distill`.

    Raises:
        BadImages: images cannot be read, and are not to be skipped: those of both splits.
        UserError: a plug-in breaks a clause of its contract (see ``pckd.testing``), or the run would be refused or
            fail at its first step; in one line.
    """
    device = Device.resolve(options.get("device"))
    with ready_to_train(device), own_random_state(device.target):
        if isinstance(options["student"], nn.Module):
            options["student"] = copy_of(options["student"], "the student", "a check")
        _check(choose_display(display), options)


def _check(display: Display, options: dict[str, Any]) -> None:
    for name in ("epochs", "batch_size", "limit_train", "limit_test", "on_bad_image"):
        # They are others in the step that is taken.
        check_arguments(**{name: options.get(name)})
    loaded = _load(options, display)
    output = options.get("output")
    if output is not None and Path(output).expanduser().exists() and not options.get("resume"):
        RunFolder(output).refuse_finished_work()

    student, method = options["student"], options.get("method", "pckd")
    given, weights = paired(options.get("teacher"), options.get("teacher_weights"))
    task = make_task(options.get("task"), loaded)
    teacher, terms, scheduler, _ = choose(task, method, student, given, options.get("scheduler"))
    for name, run in _checks(task, student, teacher, terms, scheduler, loaded, options):
        try:
            run()
        except testing.ContractError as error:
            raise UserError(str(error)) from error
        display.note(f"checked {name}")

    batch = min(options.get("batch_size", 64), len(loaded.train))
    small = replace(
        loaded,
        train=limit(loaded.train, batch, DATA_SEED),
        test=limit(loaded.test, min(LOOKED_AT, len(loaded.test)), DATA_SEED),
    )
    with tempfile.TemporaryDirectory() as folder:
        step = {**options, "data": small, "epochs": 1, "batch_size": batch, "output": None, "resume": False}
        step.update(teacher=teacher, profile=False, compile=options.get("compile") or False)
        if isinstance(options.get("schedule"), str):
            # As at the start of the whole run: a warm-up is longer than the one epoch of the step.
            rate, epochs = build(LR_SCHEDULES, options["schedule"]), options.get("epochs", PUBLISHED_EPOCHS)
            step["schedule"] = lambda progress, _: rate(progress / epochs, epochs)
        # A step of one batch, which chooses nothing.
        step.update(accumulate=1, patience=None, keep_best=False)
        for done in ("data_root", "limit_train", "limit_test", "val_fraction", "on_bad_image"):
            step.pop(done, None)
        files = weights if isinstance(weights, list) else [weights] * len(teachers_of(teacher))
        for at, (one, file) in enumerate(zip(teachers_of(teacher), files, strict=True)):
            weightless = file is options.get("teacher_classes") is None
            if isinstance(one, str) and weightless and needs_teacher(terms):
                task.check_teachable(one, loaded)
                # By its name, because published options go by the names; what it would be trained to is not known yet.
                files[at] = save_weights(task.make_network(one, loaded), Path(folder) / f"teacher{at}.pth")
        if files:
            step["teacher_weights"] = files
        if options.get("teacher_cache") is not None:
            step["teacher_cache"] = Path(folder) / "cache"
        distill(**step, display=None)
    display.note(f"checked one step of {batch} images; nothing was trained or written")


def _load(options: Mapping[str, Any], display: Display) -> Data:
    """The data of the run, of which every image has been read: those beyond its limits, too.

    Raises:
        BadImages: images cannot be read, and are not to be skipped: those of both splits.
        UserError: the data cannot be loaded.
    """
    data = options.get("data", "shapes")
    whole = {"root": options.get("data_root"), "val_fraction": options.get("val_fraction", 0.0)}
    policy = options.get("on_bad_image", "stop")
    if isinstance(data, Data) and getattr(data.train, "on_bad_image", "") == "skip":
        policy = "skip"
    limits = {key: options[key] for key in ("limit_train", "limit_test") if options.get(key) is not None}
    name, chosen = parse(data) if isinstance(data, str) else ("", {})
    takes = options_of(DATASETS.get(name)) if name else {}
    # Decoded into memory, a split ends with its own bad images, before the other one is looked at.
    one_by_one = _written(name, {**chosen, "memory": False}) if {"memory", "on_bad_image"} <= set(takes) else data
    loaded = load_data(one_by_one, on_bad_image="skip", **whole)
    bad: list[str] = []
    count = 0
    for split in (loaded.train, loaded.test):
        if isinstance(split, (DataSplit, AnnotatedSplit)) and not isinstance(split.images, Tensor):
            reader: Any = AnnotatedLoader if isinstance(split, AnnotatedSplit) else Loader
            loader = reader(split, PIECE, train=False, num_workers=min(_cores(), len(split) // PIECE))
            for _ in watch(loader.epoch(1), f"reading {split.name}", len(loader), display):
                pass
            bad += [loader.bad[position] for position in sorted(loader.bad)]
            count += len(split)
    if bad and "skip" not in (policy, chosen.get("on_bad_image")):
        raise BadImages(*bad)
    if limits or "on_bad_image" in takes:
        loaded = load_data(data, on_bad_image=policy, **whole, **limits)
    # Those that are decoded into memory have been named there.
    if bad and not isinstance(getattr(loaded.train, "images", None), Tensor):
        display.note(f"left out: {BadImages(*bad).listed()}")
    if count:
        display.note(f"checked {count:,} images: {f'{len(bad):,} cannot be read' if bad else 'all can be read'}")
    return loaded


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checks(
    task: Task,
    student: Any,
    teacher: Any,
    terms: Sequence[Term],
    scheduler: Any,
    data: Data,
    options: dict[str, Any],
) -> list[tuple[str, Callable[[], None]]]:
    """What is held to its contract: everything that is given by name."""
    named = options.get("data", "shapes")
    if isinstance(named, str):
        name, chosen = parse(named)
        if options.get("on_bad_image") == "skip" and "on_bad_image" in options_of(DATASETS.get(name)):
            named = _written(name, {"on_bad_image": "skip", **chosen})
    networks = list(dict.fromkeys(name for name in (student, *teachers_of(teacher)) if isinstance(name, str)))
    dataset = named if isinstance(named, str) else None
    checks = task.contract_checks(networks, dataset, data, root=options.get("data_root"))
    for term in terms:
        if term.weight:
            checks.append((f"loss {term.label}", partial(testing.check_loss, _with_options(term))))
    if any(term.previewed for term in terms):
        checks.append((f"scheduler {scheduler}", partial(testing.check_scheduler, scheduler)))
        difficulty = options.get("difficulty", "cross_entropy")
        checks.append((f"difficulty metric {difficulty}", partial(testing.check_difficulty, difficulty)))
    if isinstance(options.get("schedule"), str):
        schedule, epochs = options["schedule"], options.get("epochs", PUBLISHED_EPOCHS)
        checks.append((f"schedule {schedule}", partial(testing.check_lr_schedule, schedule, epochs=epochs)))
    if isinstance(options.get("optimizer"), str):
        checks.append(
            (
                f"optimizer {options['optimizer']}",
                partial(testing.check_optimizer, named_optimizer(options["optimizer"])[0]),
            )
        )
    for name in split_specs(options.get("augment") or ""):
        if name and name not in USUAL.split("+"):
            checks.append((f"augmentation {name}", partial(testing.check_augmentation, name)))
    centers = options.get("centers", "classifier")
    if not isinstance(centers, nn.Module):
        checks.append((f"center rule {centers}", partial(testing.check_center_rule, centers)))
    return checks


def _with_options(term: Term) -> Any:
    """The loss as a term has it, written as a name with options."""
    if not isinstance(term.loss, str):
        return term.loss
    name, given = parse(term.loss)
    return _written(name, {**given, **term.options})


def _written(name: str, options: Mapping[str, Any]) -> str:
    """A name with options, as ``registry.parse`` reads it."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"

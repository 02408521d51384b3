"""Before a long run: everything it would use held to its contract, and one step taken of each stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from model_zoo import save_weights, usual_teacher
from pckd import testing
from pckd.api import check_numbers, distill
from pckd.display import Silent
from pckd.engine.precision import ready_to_train, resolve_device
from pckd.engine.progress import own_random_state
from pckd.engine.record import RunFolder
from pckd.engine.sources import Data, copy_of, load_data, make_network, method_terms, schedule_terms
from pckd.engine.train import Display
from pckd.objective import needs_teacher
from registry import Term, UserError, parse

__all__ = ["check"]

LOOKED_AT = 64
"""Test images, of which the first are enough."""


def check(*, display: Display | None = None, **options: Any) -> None:
    """Check what ``pckd.distill(**options)`` would use, and take one step of each stage. Trains and writes nothing.

    Args:
        options: those of :func:`pckd.distill`. A teacher without weights answers untrained, and of a student that is a
            module a copy takes the step. display: told what holds.

    Raises:
        UserError: a plug-in breaks a clause of its contract (see ``pckd.testing``), or the run would be refused or
            fail at its first step; in one line.
    """
    target = resolve_device(options.get("device"))
    with ready_to_train(target), own_random_state(target):
        if isinstance(options["student"], nn.Module):
            options["student"] = copy_of(options["student"], "the student", "a check")
        _check(display or Silent(), options)


def _check(display: Display, options: dict[str, Any]) -> None:
    for name in ("epochs", "batch_size"):
        # They are others in the step that is taken.
        check_numbers(**{name: options.get(name)})
    data = options.get("data", "shapes")
    loaded = load_data(data, root=options.get("data_root"), val_fraction=options.get("val_fraction", 0.0))
    for limit in ("limit_train", "limit_test"):
        if options.get(limit) is not None:
            load_data(loaded, **{limit: options[limit]})
    output = options.get("output")
    if output is not None and Path(output).expanduser().exists() and not options.get("resume"):
        RunFolder(output).refuse_finished_work()

    student, method = options["student"], options.get("method", "pckd")
    terms, scheduler = schedule_terms(method_terms(method), options.get("scheduler"))
    teacher = options.get("teacher")
    if teacher is None and needs_teacher(terms) and isinstance(student, str):
        teacher = usual_teacher(student)
    for name, run in _checks(student, teacher, terms, scheduler, loaded, options):
        try:
            run()
        except testing.ContractError as error:
            raise UserError(str(error)) from error
        display.note(f"checked {name}")

    batch = min(options.get("batch_size", 64), len(loaded.train))
    small = load_data(loaded, limit_train=batch, limit_test=min(LOOKED_AT, len(loaded.test)))
    with tempfile.TemporaryDirectory() as folder:
        step = {**options, "data": small, "epochs": 1, "batch_size": batch, "output": None, "resume": False}
        step.update(teacher=teacher, profile=False, compile=bool(options.get("compile")))
        for done in ("data_root", "limit_train", "limit_test", "val_fraction"):
            step.pop(done, None)
        if isinstance(teacher, str) and options.get("teacher_weights") is None and needs_teacher(terms):
            # By its name, because published options go by the names; but what it would be trained to is not known yet.
            step["teacher_weights"] = save_weights(make_network(teacher, loaded), Path(folder) / "teacher.pth")
        if options.get("teacher_cache") is not None:
            step["teacher_cache"] = Path(folder) / "cache"
        distill(**step)
    display.note(f"checked one step of {batch} images; nothing was trained or written")


def _checks(
    student: Any, teacher: Any, terms: Sequence[Term], scheduler: Any, data: Data, options: dict[str, Any]
) -> list[tuple[str, Callable[[], None]]]:
    """What is held to its contract: everything that is given by name."""
    channels, *size = data.image_shape
    networks = dict.fromkeys(name for name in (student, teacher) if isinstance(name, str))
    checks: list[tuple[str, Callable[[], None]]] = [
        (
            f"backbone {name}",
            partial(testing.check_backbone, name, in_channels=(channels,), image_sizes=((size[0], size[1]),)),
        )
        for name in networks
    ]
    named = options.get("data", "shapes")
    if isinstance(named, str):
        checks.append((f"data set {named}", partial(testing.check_dataset, named, root=options.get("data_root"))))
    for term in terms:
        if term.weight:
            checks.append((f"loss {term.label}", partial(testing.check_loss, _with_options(term))))
    if any(term.previewed for term in terms):
        checks.append((f"scheduler {scheduler}", partial(testing.check_scheduler, scheduler)))
        difficulty = options.get("difficulty", "cross_entropy")
        checks.append((f"difficulty metric {difficulty}", partial(testing.check_difficulty, difficulty)))
    centers = options.get("centers", "classifier")
    if not isinstance(centers, nn.Module):
        checks.append((f"center rule {centers}", partial(testing.check_center_rule, centers)))
    return checks


def _with_options(term: Term) -> Any:
    """The loss as a term has it, written as a name with options."""
    if not isinstance(term.loss, str):
        return term.loss
    name, given = parse(term.loss)
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in {**given, **term.options}.items())})"

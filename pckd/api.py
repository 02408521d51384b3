"""The functional API: every argument explicit and typed, objects or names, no configuration object."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from model_zoo import load_weights, probe, recipe_for, save_weights, set_preprocessing, usual_teacher
from model_zoo.pairs import bare
from model_zoo.probe import borrowed, check_network
from pckd import profiling
from pckd.data import Loader
from pckd.data.check import check_item, check_on_bad_image
from pckd.data.loader import LARGEST_POOL, MOST_WORKERS
from pckd.display import Silent
from pckd.engine.cache import NO_MAPS, TeacherCache, cache_key
from pckd.engine.difficulty_report import DifficultyReport
from pckd.engine.evaluate import Scores, evaluate_network
from pckd.engine.fingerprint import code_fingerprint, network_fingerprint, split_fingerprint
from pckd.engine.gradient_report import GradientReport
from pckd.engine.precision import ready_to_train, resolve_device, resolve_precision
from pckd.engine.progress import own_random_state
from pckd.engine.ranks import joined
from pckd.engine.record import FINAL_MODEL, FolderInUse, RunFolder
from pckd.engine.sources import (
    Data,
    check_apart,
    check_choices,
    check_gradients,
    check_layout,
    check_one_row,
    check_trainable,
    copy_of,
    describe,
    limited,
    load_data,
    load_trained,
    make_network,
    make_objective,
    method_lr,
    method_terms,
    other_preprocessing,
    pair_options,
    schedule_terms,
    shapes_of,
)
from pckd.engine.step import ViewStatistics
from pckd.engine.teacher import FrozenTeacher
from pckd.engine.train import Display, Report, fit
from pckd.functional import PUBLISHED_EPOCHS
from pckd.functional.ranks import alone
from pckd.objective import Metric, Objective, Scheduler, needs_teacher
from registry import (
    BACKBONES,
    DATASETS,
    CenterRule,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
    parse,
)

__all__ = ["Result", "distill", "evaluate", "train", "train_teacher"]

log = logging.getLogger("pckd")

POOL = 16
"""Augmentations of each image where a teacher cache needs them to be finitely many; see the README for the choice."""

RECIPE_BATCH = 64
"""Images a step in the recipes, to which their learning rates belong."""
TOLERATED = 4.0
"""Factor by which a learning rate may differ from the linear rule before the log says so."""

NEAR_CHANCE = 1.5
"""A teacher whose accuracy is at most so many times that of chance is said to be a mistake."""

TEACHER_OPTIONS = (
    *("batch_size", "momentum", "weight_decay", "milestones", "lr_decay", "flip", "on_nonfinite"),
    *("device", "precision", "compile", "num_workers"),
)
"""Arguments of :func:`distill` that hold for the training of its teacher, too."""

POLL_SECONDS = 2.0
"""Between two looks at a teacher that another process trains."""

MILESTONES = (150 / PUBLISHED_EPOCHS, 180 / PUBLISHED_EPOCHS, 210 / PUBLISHED_EPOCHS)


@dataclass(frozen=True)
class Result:
    """What a run gives back. Accuracies are percentages on ``measured_on``."""

    student: nn.Module
    """The trained network, in eval mode, with a record of its preprocessing (:func:`model_zoo.preprocessing_of`)."""
    last_top1: float
    """Accuracy after the last epoch: the figure to report."""
    best_top1: float
    """Best accuracy over the epochs; choosing an epoch by it would be choosing on the test set."""
    last_top5: float
    teacher_top1: float | None
    """The teacher's accuracy; None where there is no teacher."""
    history: list[dict[str, Any]]
    """One dictionary an epoch: every term of the objective, accuracies, learning rate."""
    images_per_second: float | None
    """Training images a second, evaluation excluded; an image counts once however many views it has. None where it is
    not known: a run of an earlier version, resumed with nothing left to train."""
    record: dict[str, Any]
    """Everything above but the network, with the exact arguments and versions: the content of result.json."""


def distill(
    *,
    student: str | nn.Module,
    teacher: str | nn.Module | None = None,
    method: str | Sequence[Term] = "pckd",
    data: str | Data = "shapes",
    data_root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    teacher_weights: str | os.PathLike[str] | None = None,
    teacher_epochs: int | None = None,
    teacher_lr: float | None = None,
    epochs: int = PUBLISHED_EPOCHS,
    batch_size: int = 64,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    milestones: Sequence[float] = MILESTONES,
    lr_decay: float = 0.1,
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    views: int | None = None,
    view_statistics: ViewStatistics = "joint",
    flip: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: bool | None = None,
    num_workers: int = 0,
    teacher_cache: str | os.PathLike[str] | None = None,
    view_pool: int | None = None,
    report_difficulty: bool = False,
    report_gradients: bool = False,
    profile: bool = False,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | Literal["epoch"] = "epoch",
    on_nonfinite: Literal["stop", "skip"] = "stop",
    on_bad_image: Literal["stop", "skip"] = "stop",
    display: Display | None = None,
) -> Result:
    """Train a student under a frozen teacher.

    Args:
        student: a module (``forward(x) -> Output``, with ``classifier``) or a name of ``BACKBONES``. A module is
            trained in place, in float32, as far as its parameters require gradients. Afterwards it is what
            ``Result.student`` is (or holds, where a loss adds the head that answers): with the trained weights, in eval
            mode as a whole, on ``device``, in channels_last memory format, without gradients.
        teacher: likewise; by default the student's usual one, where the method needs a teacher. A name without
            ``teacher_weights`` is trained first (:func:`train_teacher`) and kept in the cache: on the same data and
            with the same batch size, ``momentum``, ``weight_decay``, ``milestones``, ``lr_decay``, ``flip`` and
            ``on_nonfinite`` as the student, but always with seed 0, so that runs of all seeds have one teacher. A
            teacher that carries a record of its preprocessing (:func:`model_zoo.preprocessing_of`) is shown images
            normalized as in its own training, and refused where its classes are others. A module answers in float32,
            whatever its type, and is afterwards as it was given, also after an error.
        method: a name of ``METHODS``, with options (``"pckd(beta=0.1)"``), several (``"dkd+crd"``), or a list of terms.
            Options that are published for this pair of names are taken where none are given.
        data: a name of ``DATASETS`` or a :class:`Data`. data_root, limit_train, limit_test, val_fraction, on_bad_image:
            see :func:`load_data`.
        teacher_weights: file or address of the named teacher's weights; the record of its preprocessing is in the file,
            where this library wrote it.
        teacher_epochs: length of the teacher's training where it is trained first; by default ``epochs``.
        teacher_lr: its learning rate at the start; by default its recipe's.
        epochs: length of the run; milestones and preview's growth scale with it.
        batch_size: images a step (each in ``views`` views), of all processes together where several train.
        lr: learning rate at the start; by default the method's, or the recipe of the student's name, or 0.05.
        momentum, weight_decay: of SGD. milestones: shares of the run after which lr is multiplied by ``lr_decay``.
        difficulty: a name of ``DIFFICULTY_METRICS`` or a function.
        scheduler: a name of ``DIFFICULTY_SCHEDULERS`` or a function. By default ``"preview"``, for the terms that the
            method previews; where it previews none, a scheduler given here weights all its per-sample losses.
        centers: a name of ``CENTER_RULES`` or a center rule, of which the run has a copy.
        views: rotations shown of each image, 1 to 4; by default 4 where a term looks at all views, else 1.
        view_statistics: what the student's batch norms normalize by: ``"joint"``, all views of a batch together, as
            published, or ``"own"``, each view by itself; evaluation is then by the upright view's.
        flip: random horizontal flips in training (the released PCKD loader does not flip; its baselines do).
        seed: of initialization, order and augmentation; the same seed on the same machine gives the same metrics.
        device: by default the accelerator, if there is one. precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16
            where the hardware multiplies it natively. compile: run the networks through ``torch.compile``; by default
            where the run is long enough to repay it, and on a CPU the teacher alone.
        num_workers: processes that read a streamed data set.
        teacher_cache: folder in which the teacher's answers are kept, for this run and for later ones; serves methods
            that look at its logits and embedding, and data in memory.
        view_pool: in how many ways each image is augmented, the same in every run; 0: anew each time. By default
            16 where there is a teacher cache, else 0.
        report_difficulty: after each epoch also ask every difficulty metric about the training images
            (:class:`pckd.engine.difficulty_report.DifficultyReport`); in the history and metrics.jsonl as
            ``difficulty_report``.
        report_gradients: after each epoch also ask how the terms' gradients lie to one another
            (:class:`pckd.engine.gradient_report.GradientReport`); likewise, as ``gradient_report``.
        profile: first measure what a step costs, not compiled (:func:`pckd.profile`); kept in the record.
        output: folder for metrics.jsonl, result.json, checkpoint.pth and model_final.pth; None writes nothing.
        resume: continue from the output folder's checkpoint, if there is one. Other arguments, other data (also at the
            same place) and another teacher are refused; data and teacher's file may lie elsewhere.
        checkpoint_every: steps between two checkpoints, or ``"epoch"``; there is always one at the end of an epoch.
        on_nonfinite: what a term that is not finite does: ``"stop"`` the run before its step, or ``"skip"`` the step.
        display: what is told meanwhile; nothing by default (see ``pckd.display.make_display``).

    Raises:
        UserError: any bad input, in one line.
        pckd.Interrupted: SIGINT or SIGTERM; where there is an output folder, a checkpoint was written first.

    One thread of a process trains at a time, because the random numbers are the process's: a second one is refused.

    Started by ``torchrun``, the processes train together: each has its share of every batch, the statistics of batch
    norms, the difficulty, the centers' updates and the metrics are those of all, and the first one alone writes.
    """
    arguments = {key: describe(value) for key, value in locals().items() if key != "display"}
    display = display or Silent()
    check_numbers(
        epochs=epochs,
        teacher_epochs=teacher_epochs,
        batch_size=batch_size,
        limit_train=limit_train,
        limit_test=limit_test,
        lr=lr,
        teacher_lr=teacher_lr,
        momentum=momentum,
        weight_decay=weight_decay,
        lr_decay=lr_decay,
        views=views,
        view_pool=view_pool,
        seed=seed,
        num_workers=num_workers,
        checkpoint_every=None if checkpoint_every == "epoch" else checkpoint_every,
    )
    _check_paths(data_root=data_root, teacher_weights=teacher_weights, teacher_cache=teacher_cache, output=output)
    if on_nonfinite not in ("stop", "skip"):
        raise UserError(f"on_nonfinite must be stop or skip, not {on_nonfinite!r}")
    check_on_bad_image(on_bad_image)
    if view_statistics not in ("joint", "own"):
        raise UserError(f"view_statistics must be joint or own, not {view_statistics!r}")
    target = resolve_device(device)
    precision = resolve_precision(precision, target)
    if view_pool is None:
        view_pool = 0 if teacher_cache is None else POOL
    elif view_pool == 0 and teacher_cache is not None:
        raise UserError("a teacher cache needs a finite view_pool: view_pool=0 draws augmentations without end")
    with contextlib.ExitStack() as held:
        held.enter_context(ready_to_train(target))
        ranks, target = held.enter_context(joined(target))
        held.enter_context(own_random_state(target))
        for role, network in (("student", student), ("teacher", teacher)):
            if network is not None and not isinstance(network, str):
                check_network(network, f"the {role}")
        if not ranks.first:
            display = Silent()
        with ranks.alike():
            folder = RunFolder(output) if output is not None and ranks.first else None
            if folder is not None:
                held.enter_context(folder.lock())
                if not resume:
                    folder.refuse_finished_work()
        rank_batch = ranks.share(batch_size)
        loaded = load_data(
            data,
            root=data_root,
            limit_train=limit_train,
            limit_test=limit_test,
            val_fraction=val_fraction,
            on_bad_image=on_bad_image,
        )
        fingerprints: dict[str, Any] = {}
        if folder is not None:
            fingerprints = {"train": split_fingerprint(loaded.train), "test": split_fingerprint(loaded.test)}
            if resume:
                folder.refuse_another_run(arguments, fingerprints)
        terms = method_terms(method)
        if teacher is None and needs_teacher(terms):
            if not isinstance(student, str):
                raise UserError(f"method {describe(method)!r} needs a teacher, and none is given")
            BACKBONES.get(parse(student)[0])  # a misspelled student is not one without a usual teacher
            teacher = usual_teacher(student)
        published = pair_options(method, student, teacher)
        if published:
            terms = method_terms(method, student, teacher)
        for name, options in published.items():
            chosen = ", ".join(f"{option}={value:g}" for option, value in options.items())
            display.note(f"{name}: options of the pair {bare(str(teacher))}>{bare(str(student))}: {chosen}")
        cost = None
        if profile:
            channels, *size = loaded.image_shape
            cost = profiling.profile(
                student=student,
                teacher=teacher,
                method=method,
                batch_size=rank_batch,
                views=views,
                image_size=(size[0], size[1]),
                num_classes=loaded.train.num_classes,
                in_channels=channels,
                num_samples=len(loaded.train),
                difficulty=difficulty,
                scheduler=scheduler,
                centers=centers,
                device=target,
                precision=precision,
                depth=0,
                rounds=5,
                seed=seed,
            )
            display.note(cost.short())
        terms, scheduler = schedule_terms(terms, scheduler)
        check_choices(
            loaded,
            terms,
            views=views,
            view_pool=view_pool,
            difficulty=difficulty,
            scheduler=scheduler,
            centers=centers,
        )
        lr = _learning_rate(lr, method, student, batch_size, display)

        torch.manual_seed(seed)
        student_net = make_network(student, loaded, "the student")
        check_trainable(student_net)
        if isinstance(teacher, nn.Module):
            check_apart(student_net, teacher)
            held.enter_context(borrowed(teacher))
        student_shapes = shapes_of(student_net, loaded, "student")
        check_layout(student_net, loaded.image_shape, "the student")
        cached = teacher_cache is not None and needs_teacher(terms)
        smallest = min(batch_size, len(loaded.train))

        def assemble(terms: Sequence[Term], setup: Setup) -> tuple[Objective, int]:
            """The objective and the number of views it is shown, or the refusal of what cannot work."""
            # Seeded anew, so that the projections do not depend on whether the teacher was trained just now.
            torch.manual_seed(seed + 1)
            objective = make_objective(terms, setup, difficulty=difficulty, scheduler=scheduler, centers=centers)
            shown = (4 if objective.needs_rotations else 1) if views is None else views
            check_gradients(student_net, objective)
            objective.check_views(shown, smallest)
            check_one_row(student_net, loaded, smallest * shown)
            return objective, shown

        surely = [term for term in terms if not term.optional]
        if isinstance(teacher, str) and teacher_weights is None and needs_teacher(terms) and surely:
            # What is refused, is refused before the teacher has been trained.
            untrained = FrozenTeacher(make_network(teacher, loaded))
            assemble(surely, _setup(student_shapes, untrained, loaded, surely, cached=cached))
        teacher_net, own = None, None
        # A method that needs no teacher does not make one, but one that is at hand is measured.
        if teacher is not None and (needs_teacher(terms) or teacher_weights or isinstance(teacher, nn.Module)):
            network = _obtain_teacher(
                teacher,
                loaded,
                weights=teacher_weights,
                epochs=epochs if teacher_epochs is None else teacher_epochs,
                lr=teacher_lr,
                batch_size=batch_size,
                momentum=momentum,
                weight_decay=weight_decay,
                milestones=milestones,
                lr_decay=lr_decay,
                flip=flip,
                on_nonfinite=on_nonfinite,
                device=target,
                precision=precision,
                compile=compile,
                num_workers=num_workers,
                display=display,
            )
            own = other_preprocessing("the teacher", network, loaded.train, display.note)
            shown = loaded.train.mean, loaded.train.std
            teacher_net = FrozenTeacher(network, None if own is None else own.renormalization(*shown))
            if folder is not None:
                fingerprints["teacher"] = network_fingerprint(network)
        setup = _setup(student_shapes, teacher_net, loaded, terms, cached=cached)
        objective, views = assemble(terms, setup)
        cache = None
        if teacher_cache is not None and teacher_net is not None and cached:
            key = cache_key(
                teacher_net.network,
                loaded.train,
                precision=precision,
                pool=view_pool,
                flip=flip,
                device=target.type,
                version=_version(),
            )
            cache = TeacherCache(
                teacher_cache,
                key=key,
                samples=len(loaded.train),
                pool=view_pool,
                classes=setup.teacher.num_classes,
                embedding=setup.teacher.embedding,
                say=display.note,
            )
            display.note(cache.describe())
        if own is not None and any(hasattr(loss, "start") for loss in objective.losses.values()):
            display.note(
                "warning: the student may start with layers of the teacher, which were trained on images that were "
                "normalized in another way; data with the teacher's mean and std suits them better"
            )
        objective.start(student_net, None if teacher_net is None else teacher_net.network)
        if objective.previews and scheduler == "preview" and epochs != PUBLISHED_EPOCHS:
            display.note(
                f"preview's bar was published for {PUBLISHED_EPOCHS} epochs: at epoch e of {epochs} it stands at "
                f"growth^(e * {PUBLISHED_EPOCHS / epochs:g})"
            )
        make_loader = partial(Loader, device=target, num_workers=num_workers, rank=ranks.rank, world_size=ranks.size)
        train_loader = make_loader(
            loaded.train,
            rank_batch,
            train=True,
            views=views,
            strong=objective.needs_strong,
            seed=seed,
            flip=flip,
            pool=view_pool,
            recall=None if cache is None else cache.recall,
        )
        test_loader = make_loader(loaded.test, max(rank_batch, 256), train=False)
        teacher_top1, at_chance = None, False
        if teacher_net is not None:
            teacher_net.to(target)
            teacher_top1 = evaluate_network(teacher_net, test_loader, device=target, precision=precision).top1
            display.note(f"teacher: {teacher_top1:.2f} % top-1 on {loaded.measured_on}")
            chance = 100 / loaded.train.num_classes
            at_chance = teacher_top1 <= NEAR_CHANCE * chance
            if at_chance:
                display.note(
                    f"warning: the teacher ({teacher_top1:.2f} %) is not far from chance ({chance:.2f} %): its "
                    "classes may be in another order than the data's, its images may have been normalized in another "
                    "way, or its weights may be the wrong file"
                )
        reports: dict[str, Report] = {}
        if report_difficulty:
            reports["difficulty_report"] = DifficultyReport(
                loaded.train, loaded.test, device=target, precision=precision
            )
        if report_gradients:
            # It looks at copies, after an epoch: too late to learn that there are none.
            both = nn.ModuleList([student_net, objective])
            copy_of(both, "the student, or a loss of the method,", "the gradient report")
            reports["gradient_report"] = GradientReport(
                train_loader, device=target, precision=precision, view_statistics=view_statistics
            )
        set_preprocessing(student_net, loaded.preprocessing)
        held.callback(ranks.synchronize_statistics(student_net, target))
        history = fit(
            student=student_net,
            teacher=teacher_net if objective.needs_teacher else None,
            objective=objective,
            train_loader=train_loader,
            test_loader=test_loader,
            epochs=epochs,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            milestones=milestones,
            lr_decay=lr_decay,
            device=target,
            precision=precision,
            compile=compile,
            seed=seed,
            arguments=arguments,
            folder=folder,
            resume=resume,
            display=display,
            title=f"{describe(student)} by {describe(method)} on {loaded.name}",
            cache=cache,
            checkpoint_every=checkpoint_every,
            on_nonfinite=on_nonfinite,
            reports=reports,
            view_statistics=view_statistics,
            fingerprints=fingerprints,
        )
        last = history.rows[-1]
        best_top1 = max(row["top1"] for row in history.rows)
        if teacher_top1 is not None and best_top1 > teacher_top1 and not at_chance:
            display.note(
                f"the student ({best_top1:.2f} %) is above its teacher ({teacher_top1:.2f} %): a better teacher, "
                "or one trained longer, would have more to teach"
            )
        record = {
            "student": arguments["student"],
            "teacher": describe(teacher) if teacher_net is not None else None,
            "method": arguments["method"],
            "terms": {
                label: {"weight": term.weight, "previewed": term.previewed, **term.particulars, **term.options}
                for label, term in objective.terms.items()
            },
            "pair_options": published,
            "loss_parameters": sum(parameter.numel() for parameter in objective.parameters()),
            "dataset": loaded.name,
            "preprocessing": loaded.preprocessing.as_metadata(),
            "fingerprints": fingerprints,
            "train_images": len(loaded.train),
            "measured_on": loaded.measured_on,
            "epochs": epochs,
            "seed": seed,
            "teacher_top1": teacher_top1,
            "last_top1": last["top1"],
            "best_top1": best_top1,
            "last_top5": last["top5"],
            "images_per_second": history.images / history.seconds if history.seconds else None,
            "train_seconds": history.seconds,
            "device": str(target),
            "processes": ranks.size,
            "precision": precision,
            "lr": lr,
            "views": views,
            "view_pool": view_pool,
            "versions": {"pckd": _version(), "torch": torch.__version__, "python": platform.python_version()},
            "arguments": arguments,
            "profile": cost.as_dict() if cost is not None else None,
        }
        student_net = objective.predictor(student_net).eval()
        set_preprocessing(student_net, loaded.preprocessing)
        if folder is not None:
            save_weights(student_net, folder.path / FINAL_MODEL, student=arguments["student"], dataset=loaded.name)
            folder.write_result(record)
    return Result(
        student=student_net,
        history=history.rows,
        record=record,
        **{key: record[key] for key in ("last_top1", "best_top1", "last_top5", "teacher_top1", "images_per_second")},
    )


def train(*, student: str | nn.Module, data: str | Data = "shapes", **options: Any) -> Result:
    """Train a network alone, with cross entropy: :func:`distill` with the method ``vanilla`` and no teacher.

    Args:
        student: a module or a name of ``BACKBONES``. data: a name of ``DATASETS`` or a :class:`Data`.
        options: any other argument of :func:`distill` but ``teacher`` and ``method``.
    """
    return distill(student=student, teacher=None, method="vanilla", data=data, **options)


def train_teacher(
    *,
    teacher: str,
    data: str | Data = "shapes",
    data_root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    epochs: int = PUBLISHED_EPOCHS,
    batch_size: int = 64,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    milestones: Sequence[float] = MILESTONES,
    lr_decay: float = 0.1,
    flip: bool = True,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: bool | None = None,
    num_workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    display: Display | None = None,
) -> nn.Module:
    """A trained teacher: from the cache where the same one was trained before, else trained now and kept there.

    The same one: all arguments that its weights follow from, its code, and the training images with their labels and
    normalization are the same (:func:`pckd.engine.fingerprint.split_fingerprint`). Each image is shown in one view,
    augmented anew each time.

    Args:
        teacher: a name of ``BACKBONES``.
        lr: learning rate at the start; by default the recipe's.
        cache: folder; by default ``$PCKD_CACHE``, or ``~/.cache/pckd``.
        data, data_root, limit_train, limit_test, val_fraction, epochs, batch_size, momentum, weight_decay, milestones,
            lr_decay, flip, on_nonfinite, seed, device, precision, compile, num_workers, display: see :func:`distill`.

    Returns:
        The network, in eval mode, with a record of its preprocessing (:func:`model_zoo.preprocessing_of`).
    """
    display = display or Silent()
    check_numbers(epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum, weight_decay=weight_decay)
    check_numbers(lr_decay=lr_decay, seed=seed, num_workers=num_workers)
    if not isinstance(teacher, str):
        raise UserError(f"a teacher to train must be the name of a network, not {type(teacher).__name__}")
    loaded = load_data(data, root=data_root, limit_train=limit_train, limit_test=limit_test, val_fraction=val_fraction)
    if lr is None:
        lr = recipe_for(teacher).lr
    target = resolve_device(device)
    with ready_to_train(target), joined(target) as (ranks, target), own_random_state(target):
        training: dict[str, Any] = {
            "epochs": int(epochs),
            "batch_size": int(batch_size),
            "lr": float(lr),
            "momentum": float(momentum),
            "weight_decay": float(weight_decay),
            "milestones": [float(milestone) for milestone in milestones],
            "lr_decay": float(lr_decay),
            "flip": bool(flip),
            "on_nonfinite": on_nonfinite,
            "seed": int(seed),
            "precision": resolve_precision(precision, target),
        }
        with own_random_state(target):
            network = make_network(teacher, loaded)
        # What the teacher's weights follow from, found out once for all processes.
        key, measured = ranks.same(
            (
                {
                    "version": _version(),
                    "teacher": teacher,
                    "code": code_fingerprint(network),
                    "dataset": loaded.name,
                    "data": split_fingerprint(loaded.train),
                    "shape": loaded.image_shape,
                    **training,
                    "device": target.type,
                },
                split_fingerprint(loaded.test),
            )
            if ranks.first
            else None
        )
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(cache or os.environ.get("PCKD_CACHE") or "~/.cache/pckd").expanduser() / "teachers"
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{teacher}-{loaded.name}")[:80]
        path = folder / f"{safe}-{digest}.pth"
        # Its training is a run like any other, which goes on where it was interrupted: by the images it is measured on,
        # too, on which its weights do not depend.
        looked_at = hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:6]
        unfinished = folder / f"{safe}-{digest}-{looked_at}.run"
        said = False
        while not ranks.same(path.exists()):
            if not said:
                display.note(
                    f"teacher {teacher}: no weights given, so it is trained first ({epochs} epochs) and kept as {path}"
                )
            try:
                trained = train(
                    student=teacher,
                    data=loaded,
                    **training,
                    device=device,
                    compile=compile,
                    num_workers=num_workers,
                    output=unfinished,
                    resume=True,
                    display=display,
                ).student
            except FolderInUse:
                if not said:
                    display.note(f"teacher {teacher}: another process trains it; waiting")
                said = True
                time.sleep(POLL_SECONDS)
                continue
            except UserError:
                # Another process has just finished it, and removed the folder under this one.
                if path.exists():
                    continue
                raise
            if ranks.first:
                save_weights(trained, path, **key)
                shutil.rmtree(unfinished, ignore_errors=True)
            ranks.wait()
            break
        else:
            display.note(f"teacher {teacher}: from the cache, {path}")
        # Also the one trained just now: its batch norms may be those of several processes, which round otherwise.
        network = make_network(teacher, loaded)
        load_weights(network, path)
        return network.eval()


@alone()
def evaluate(
    network: nn.Module,
    data: str | Data,
    *,
    data_root: str | None = None,
    limit_test: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    num_workers: int = 0,
) -> Scores:
    """Top-1 and top-5 accuracy in percent on the test split of ``data``.

    A network that carries a record of its preprocessing (:func:`model_zoo.preprocessing_of`) is shown images normalized
    as in its training; where that is not as the data set says, the log says so.

    Args:
        network: ``forward(x) -> Output``, in any type; it answers in float32, and is afterwards as it was given. The
            other arguments: see :func:`distill`.

    Raises:
        UserError: any bad input, in one line; also where the network was trained on other classes, or on the same in
            another order.
    """
    check_network(network, "the network")
    target = resolve_device(device)
    split = data.test if isinstance(data, Data) else build(DATASETS, data, data_root, False)
    if limit_test is not None:
        split = limited(split, limit_test)
    own = other_preprocessing("the network", network, split, log.warning)
    if own is not None:
        split = replace(split, mean=own.mean, std=own.std)
    loader = Loader(split, batch_size, train=False, device=target, num_workers=num_workers)
    precision = resolve_precision(precision, target)
    with contextlib.ExitStack() as held:
        if not isinstance(split.images, torch.Tensor):
            # Each image that this process reads has the global generators to itself.
            held.enter_context(own_random_state(target))
        channels, height, width = check_item(split)
        held.enter_context(borrowed(network))
        frozen = FrozenTeacher(network)
        classes = probe(network, channels, (height, width), name="the network", classifier=False).num_classes
        if classes < split.num_classes:
            name = split.name or "the data set"
            raise UserError(f"the network has {classes} classes, and {name} {split.num_classes}: it must have as many")
        return evaluate_network(frozen.to(target), loader, device=target, precision=precision)


def _setup(student: Shapes, teacher: FrozenTeacher | None, data: Data, terms: Sequence[Term], *, cached: bool) -> Setup:
    """What the losses are built from.

    Args:
        cached: the teacher's logits and embedding are kept, and its maps are not.
    """
    if teacher is None:
        return Setup(student, student, len(data.train), None)
    shapes = shapes_of(teacher.network, data, "teacher")
    if not needs_teacher(terms):
        # In an objective that does not look at it the student stands in its place.
        shapes = student
    elif cached:
        shapes = shapes._replace(maps=NO_MAPS, preacts=NO_MAPS)
    return Setup(student, shapes, len(data.train), teacher.classifier)


def _obtain_teacher(
    teacher: str | nn.Module, data: Data, *, weights: str | os.PathLike[str] | None, **training: Any
) -> nn.Module:
    """The teacher itself, by its weights, or trained as :func:`train_teacher` does with ``training``."""
    if isinstance(teacher, nn.Module):
        return teacher
    if weights is not None:
        return load_trained(teacher, data, weights)
    return train_teacher(teacher=teacher, data=data, **training)


def _learning_rate(
    lr: float | None, method: str | Sequence[Term], student: str | nn.Module, batch_size: int, display: Display
) -> float:
    """The learning rate at the start: as given, or the method's, or the recipe's; says so where it fits no recipe."""
    published = method_lr(method, student)
    usual = published or (recipe_for(student).lr if isinstance(student, str) else None)
    if lr is None:
        if published is not None:
            display.note(f"{describe(method)}: learning rate {published:g}, as published")
        return 0.05 if usual is None else usual
    if usual is not None:
        # Goyal et al., arXiv 1706.02677: the rate grows with the batch.
        fitting = usual * batch_size / RECIPE_BATCH
        if not 1 / TOLERATED <= lr / fitting <= TOLERATED:
            display.note(
                f"warning: learning rate {lr:g} is far from what fits a batch of {batch_size}: {usual:g} was published "
                f"for {RECIPE_BATCH}, which makes {fitting:g} by the linear rule"
            )
    return lr


_WHOLE: dict[str, tuple[int, float]] = {
    "epochs": (1, math.inf),
    "teacher_epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "limit_train": (1, math.inf),
    "limit_test": (1, math.inf),
    "checkpoint_every": (1, math.inf),
    "views": (1, 4),
    "view_pool": (0, LARGEST_POOL),
    "num_workers": (0, MOST_WORKERS),
    "seed": (-(2**63), 2**63 - 2),
}
"""The lowest and the highest of arguments that are whole numbers. Generators take 64 bits, and seed + 1 is used."""


def check_numbers(**numbers: float | None) -> None:
    """Refuse what no run can use.

    Raises:
        UserError: names the argument and its range.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if name in _WHOLE:
            low, high = _WHOLE[name]
            if not isinstance(value, Integral) or isinstance(value, bool) or not low <= value <= high:
                allowed = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
                raise UserError(f"{name} must be a whole number {allowed}, not {value!r}")
        elif not isinstance(value, Real) or not 0 <= value < math.inf:
            raise UserError(f"{name} must be a finite number of at least 0, not {value!r}")
        elif name in ("lr", "teacher_lr") and value == 0:
            raise UserError(f"{name} must be above 0, not {value!r}")
        elif name == "momentum" and value >= 1:
            raise UserError(f"momentum must be at least 0 and below 1, not {value!r}")


def _check_paths(**paths: Any) -> None:
    """Refuse an empty path, as of a variable that is not set: it would be the current folder.

    Raises:
        UserError: names the argument.
    """
    for name, path in paths.items():
        if path is not None and (not isinstance(path, (str, os.PathLike)) or not os.fspath(path)):
            raise UserError(f"{name} must be a path, not {path!r}; give one, or leave {name} out")


def _version() -> str:
    from importlib.metadata import version

    return version("pckd")

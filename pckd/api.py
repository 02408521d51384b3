"""The functional API: every argument explicit and typed, objects or names, no configuration object."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from model_zoo import load_weights, recipe_for, save_weights, set_preprocessing
from model_zoo.probe import borrowed, check_network
from pckd import profiling
from pckd.arguments import GRAPHS, check_arguments
from pckd.data.load import Data, as_data, limited, load_data, read_split
from pckd.data.loader import Balance
from pckd.device import Device
from pckd.display import Display, Silent, choose_display, tell
from pckd.distributed import alone
from pckd.engine.cache import TeacherCache, cache_key
from pckd.engine.fingerprint import code_fingerprint, network_fingerprint, split_fingerprint
from pckd.engine.gradient_report import GradientReport
from pckd.engine.logit_formats import logit_format
from pckd.engine.optimization import MILESTONES, Grouping, Optimization, named_optimizer
from pckd.engine.progress import History, own_random_state
from pckd.engine.ranks import Ranks
from pckd.engine.record import BEST_MODEL, EMA_MODEL, FINAL_MODEL, FolderInUse, RunFolder
from pckd.engine.session import session
from pckd.engine.teacher import FrozenTeacher, SeveralTeachers
from pckd.engine.threads import threads_for
from pckd.engine.trainer import Report, Trainer
from pckd.given import copy_of
from pckd.objective import Metric, Objective, Predictor, Scheduler
from pckd.ops import PUBLISHED_EPOCHS
from pckd.plan import Plan, class_list, load_trained, make_task, plan, said_of
from pckd.saved import load_with_task
from pckd.tasks import BatchLoader, DistillationTask, Task
from pckd.tasks.classification import ViewStatistics
from pckd.terms import Teachers, Weights, describe, paired
from registry import LR_SCHEDULES, CenterRule, Shapes, Term, UserError, build, options_of
from registry.files import cache_folder, write_atomically

__all__ = ["Result", "distill", "evaluate", "train", "train_teacher"]

log = logging.getLogger("pckd")

NEAR_CHANCE = 1.5
"""A teacher whose score is at most so many times that of chance is said to be a mistake."""
TEACHER_OPTIONS = (
    *("batch_size", "momentum", "weight_decay", "milestones", "lr_decay", "schedule", "clip_grad"),
    *("flip", "balance", "on_nonfinite"),
    *("device", "precision", "compile", "num_workers"),
)
"""Arguments of :func:`distill` that hold for the training of its teacher, too."""
POLL_SECONDS = 2.0
"""Between two looks at a teacher that another process trains."""


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Every entry of the record is also an attribute: ``last_top1``, ``best_top1``, ``last_top5``, ``teacher_top1`` in
    classification (percentages on ``measured_on``), and likewise by the metric's name in other tasks;
    ``images_per_second``. The score after the last epoch is the figure to report. Choosing an epoch by the best one
    would be choosing on the test set.
    """

    student: nn.Module
    """The trained network, in eval mode, with a record of its preprocessing (:func:`model_zoo.preprocessing_of`)."""
    history: list[dict[str, Any]]
    """One dictionary an epoch: every term of the objective, scores, learning rate."""
    record: dict[str, Any]
    """All else, with the exact arguments and versions: the content of result.json."""
    ema: nn.Module | None = None
    """The network with the running average of the weights, where one was asked for."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["record"][name]
        except KeyError:
            raise AttributeError(f"Result has no {name!r}") from None


def distill(
    *,
    student: str | nn.Module,
    teacher: Teachers = None,
    method: str | Sequence[Term] = "pckd",
    task: str | Task | None = None,
    data: str | Data | tuple[Any, Any] | Dataset = "shapes",
    data_root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    student_weights: str | os.PathLike[str] | None = None,
    teacher_weights: Weights = None,
    teacher_classes: Sequence[int | str] | str | os.PathLike[str] | None = None,
    teacher_epochs: int | None = None,
    teacher_lr: float | None = None,
    epochs: int = PUBLISHED_EPOCHS,
    batch_size: int = 64,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    milestones: Sequence[float] = MILESTONES,
    lr_decay: float = 0.1,
    schedule: str | Callable[[float, int], float] | None = None,
    clip_grad: float | None = None,
    optimizer: str | Callable[..., torch.optim.Optimizer] | None = None,
    accumulate: int = 1,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    patience: int | None = None,
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    views: int | None = None,
    view_statistics: ViewStatistics = "joint",
    flip: bool = True,
    augment: str | None = None,
    balance: Balance = "none",
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: bool | Literal["reduce-overhead"] | None = None,
    threads: int | None = None,
    num_workers: int = 0,
    teacher_cache: str | os.PathLike[str] | None = None,
    cache_logits: str = "float16",
    view_pool: int | None = None,
    report_difficulty: bool = False,
    report_gradients: bool = False,
    profile: bool = False,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | Literal["epoch"] = "epoch",
    keep_best: bool = False,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    on_bad_image: Literal["stop", "skip"] = "stop",
    display: Display | Literal["auto"] | None = "auto",
) -> Result:
    """Train a student under a frozen teacher.

    Args:
        student: a module that classifies images or a name of ``BACKBONES``. Where its ``forward`` does not return
            ``Output``, it is adapted (:func:`pckd.adapt`, which says what of it is used). A module is trained in place,
            in float32, as far as its parameters require gradients. Afterwards it is what ``Result.student`` is (or
            holds as its ``network``, where it was adapted or a loss adds the head that answers; the state dict's keys
            are its own where it was adapted): with the trained weights, in eval mode as a whole, on ``device``, in
            channels_last memory format, without gradients.
        teacher: likewise; by default the student's usual one, where the method needs a teacher. A name without
            ``teacher_weights`` is trained first (:func:`train_teacher`) and kept in the cache: on the same data and
            with the same batch size, ``momentum``, ``weight_decay``, ``milestones``, ``lr_decay``, ``flip``,
            ``balance`` and ``on_nonfinite`` as the student, but always with seed 0, so that runs of all seeds have one
            teacher. A teacher that carries a record of its preprocessing (:func:`model_zoo.preprocessing_of`) is shown
            the student's images resized and normalized as in its own training, and refused where its classes are
            others; one that takes images of another size alone, as a ViT, is shown that size. A module answers in
            float32, whatever its type, and is afterwards as it was given, also after an error. One without a
            classifier, which returns an embedding, teaches the methods that look at embeddings and maps. A list is
            several teachers: a term looks at the mean of their probabilities, or at the one that it names
            (``method="kd+crd@2"``, :class:`registry.Term`). ``teacher_top1`` is then the score of the mean, and
            ``teachers`` has each one's.
        method: a name of ``METHODS``, with options (``"pckd(beta=0.1)"``), several (``"dkd+crd"``), or a list of terms.
            Options that are published for this pair of names are taken where none are given.
        task: a name of ``TASKS`` or a task; by default the one that the data set is for.
        data: a name of ``DATASETS``, a :class:`Data`, or a pair (train, test) of torch data sets (:meth:`Data.of`), or
            with ``val_fraction`` one; where the images have no labels, the student learns from its teacher alone
            (:class:`pckd.tasks.unlabeled.Unlabeled`). data_root, limit_train, limit_test, val_fraction, on_bad_image:
            see :func:`load_data`.
        student_weights: file or address of weights that the student starts with (:func:`model_zoo.load_weights`), as in
            fine-tuning: where the file has other classes, or no classifier, the last layer starts as usual. Not with
            methods that let it inherit its teacher's.
        teacher_weights: file or address of the named teacher's weights; the record of its preprocessing is in the file,
            where this library wrote it. Of several teachers a list, with None for one that is trained first.
        teacher_classes: names or numbers (from 0) of the teacher's classes, one for each of the data's in their order,
            where it has more classes, or others; or a file with one a line. Where both know names, and the data's are
            all among the teacher's, they are matched without this. A teacher whose name says that it is pretrained, as
            ``'torchvision:resnet18(weights="DEFAULT")'``, then teaches as it is, and is not trained first.
        teacher_epochs: length of the teacher's training where it is trained first; by default ``epochs``.
        teacher_lr: its learning rate at the start; by default its recipe's.
        epochs: length of the run; milestones and preview's growth scale with it.
        batch_size: images a step (each in ``views`` views), of all processes together where several train.
        lr: learning rate at the start; by default the method's, or the recipe of the student's name, or 0.05.
        momentum, weight_decay: of SGD. milestones: shares of the run after which lr is multiplied by ``lr_decay``.
        schedule: a name of ``LR_SCHEDULES`` or a function, in the place of milestones. clip_grad: largest norm of the
            gradient of all parameters together; the metrics then have the norm before, ``grad_norm``.
        optimizer: a name of ``OPTIMIZERS`` or a function of the parameter groups and the learning rate, of the student
            in the place of SGD; its weight decay and momentum are its options. A named one says its usual ``lr``. A
            teacher that is trained first has SGD with ``milestones`` then, whatever the ``schedule``.
        accumulate: batches that are seen one after the other and make one step by their mean gradient. It is that of
            one larger batch where a loss is a mean over samples; batch norms, difficulty, and losses that compare rows,
            look at each batch by itself.
        label_smoothing: of the cross entropy with the labels: share of the probability that all classes have alike.
        ema: decay, below 1, of a running average of the student's weights, which is measured, too: ``ema_top1`` and so
            on, and model_ema.pth.
        patience: end the run after so many epochs that were no better. Needs ``val_fraction``, as ``keep_best`` does.
        difficulty: a name of ``DIFFICULTY_METRICS`` or a function.
        scheduler: a name of ``DIFFICULTY_SCHEDULERS`` or a function. By default ``"preview"``, for the terms that the
            method previews; where it previews none, a scheduler given here weights all its per-sample losses.
        centers: a name of ``CENTER_RULES`` or a center rule, of which the run has a copy.
        views: rotations shown of each image, 1 to 4; by default 4 where a term looks at all views, else 1.
        view_statistics: what the student's batch norms normalize by: ``"joint"``, all views of a batch together, as
            published, or ``"own"``, each view by itself; evaluation is then by the upright view's. A strongly augmented
            view (``mld``) is a pass of its own either way.
        flip: random horizontal flips in training (the released PCKD loader does not flip; its baselines do).
        augment: names of ``AUGMENTATIONS`` with options, joined by ``+``, in the place of ``"crop+flip"``; the same
            pixels for student and teacher, of which a teacher that is trained first sees none but crop and flip. Mixed
            images have soft labels, which the cross entropy takes; what needs one label takes that of the larger share.
        balance: what is done about classes with more images than others: ``"none"``; ``"weights"`` in the cross
            entropy, inverse to the size of the class, with mean 1 over the images; or a ``"sampler"`` that draws each
            class equally often.
        seed: of initialization, order and augmentation; the same seed on the same machine gives the same metrics.
        device: by default the accelerator, if there is one. precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16
            where the hardware multiplies it natively. compile: run the networks through ``torch.compile``; by default
            where the run is long enough to repay it, and on a CPU the teacher alone; ``"reduce-overhead"`` also replays
            them as CUDA graphs, for small networks on an accelerator that waits for launches.
        threads: of a training on the CPU, of each process; by default as many as there are cores that nothing else uses
            when the run starts, or as the caller has set (``torch.set_num_threads``, ``OMP_NUM_THREADS``). A resumed
            run goes on with its own number. Afterwards PyTorch has the number that it had before.
        num_workers: processes that read a streamed data set.
        teacher_cache: folder in which the teacher's answers are kept, for this run and for later ones; serves methods
            that look at its logits and embedding.
        cache_logits: how the cache writes logits: ``"float16"``, ``"float32"``, ``"uint8"`` (a byte each, off by half
            of a 255th of the row's range at most), or ``"top50"`` with any number, for temperature 1: the largest, and
            one value for the others.
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
            same place), another teacher and other starting weights are refused; their files may lie elsewhere.
        checkpoint_every: steps between two checkpoints, or ``"epoch"``; there is always one at the end of an epoch.
        keep_best: also write the network of the best epoch, as model_best.pth, judged by held-out training images.
        on_nonfinite: what a term that is not finite does: ``"stop"`` the run before its step, or ``"skip"`` the step.
        display: what is told meanwhile (:class:`pckd.display.Display`). ``"auto"`` shows progress on a terminal and in
            a notebook, and nothing elsewhere; None shows nothing.

    Raises:
        UserError: any bad input, in one line.
        pckd.Interrupted: SIGINT or SIGTERM; where there is an output folder, a checkpoint was written first.

    One thread of a process trains at a time, because the random numbers are the process's: a second one is refused.

    Started by ``torchrun``, the processes train together: each has its share of every batch, the statistics of batch
    norms, the difficulty, the centers' updates and the metrics are those of all, and the first one alone writes.
    """
    teacher, teacher_weights = paired(teacher, teacher_weights)
    arguments = {key: describe(value) for key, value in locals().items() if key != "display"}
    check_arguments(**{name: value for name, value in arguments.items() if name != "student"})
    if optimizer is not None and (momentum, weight_decay) != (OPTIONS["momentum"], OPTIONS["weight_decay"]):
        raise UserError("momentum and weight_decay are of the usual SGD; give them as options of the optimizer")
    if keep_best and output is None:
        raise UserError("keep_best writes model_best.pth: it needs an output folder")
    if view_pool == 0 and teacher_cache is not None:
        raise UserError("a teacher cache needs a finite view_pool: view_pool=0 draws augmentations without end")
    if compile == GRAPHS and accumulate > 1:
        raise UserError(
            f"compile={GRAPHS} keeps the gradient of one batch alone; leave out accumulate, or use --compile"
        )
    display = choose_display(display)
    with session(Device.resolve(device, precision)) as (ranks, place, held):
        display = display if ranks.first else Silent()
        chosen_threads = held.enter_context(threads_for(place.target, threads, ranks.beside))
        with ranks.alike():
            folder = _open_folder(output, resume, held) if ranks.first else None
        limits: dict[str, Any] = {"limit_train": limit_train, "limit_test": limit_test, "val_fraction": val_fraction}
        loaded = load_data(data, root=data_root, on_bad_image=on_bad_image, **limits)
        if (keep_best or patience is not None) and loaded.measured_on == "test":
            raise UserError(
                "keep_best and patience choose an epoch, which must not be done on test images; give val_fraction"
            )
        fingerprints: dict[str, Any] = {}
        if folder is not None:
            fingerprints = _fingerprints(loaded, data, "train", "test")
            if resume:
                folder.refuse_another_run(arguments, fingerprints)
        cached = teacher_cache is not None
        options: dict[str, Any] = {
            "views": views,
            "view_statistics": view_statistics,
            "flip": flip,
            "augment": augment,
            "view_pool": view_pool,
            "balance": balance,
        }
        parts: dict[str, Any] = {"task": make_task(task, loaded, cached=cached, **options), "data": loaded}
        parts |= {"student": student, "method": method, "seed": seed}
        parts |= {"difficulty": difficulty, "scheduler": scheduler, "centers": centers}
        classes = class_list(teacher_classes)
        of_run: dict[str, Any] = {
            "epochs": epochs,
            "lr": lr,
            "optimizer": optimizer,
            "label_smoothing": label_smoothing,
            "cached": cached,
            "teacher_weights": teacher_weights,
        }
        if teacher_weights is None or isinstance(teacher, nn.Module):
            # How many classes a file has is known when it is read.
            of_run["teacher_classes"] = classes
        run = plan(teacher=teacher, batch_size=batch_size, **of_run, **parts)
        parts["data"] = loaded = run.data
        for note in run.notes:
            display.note(note)
        if teacher_cache is not None and loaded.train.num_classes:
            logit_format(cache_logits, loaded.train.num_classes)
        if student_weights is not None:
            fingerprints["student"] = run.start_from(student_weights, display.note)
        cost = None
        if profile:
            where: dict[str, Any] = {"device": place.target, "precision": place.precision, "depth": 0, "rounds": 5}
            cost = profiling.profile(teacher=run.teacher, batch_size=ranks.share(batch_size), **parts, **where)
            display.note(profiling.short(cost))
        for given in run.teachers:
            if isinstance(given, nn.Module):
                held.enter_context(borrowed(given))
        rate = build(LR_SCHEDULES, schedule) if isinstance(schedule, str) else schedule
        if rate is not None:
            rate(0.0, epochs)  # refuses its options before anything is trained
        optimization = Optimization(epochs, batch_size, run.lr, momentum, weight_decay, tuple(milestones), lr_decay)
        optimization = replace(optimization, schedule=rate, clip_grad=clip_grad)
        make, grouping = named_optimizer(optimizer) if isinstance(optimizer, str) else (optimizer, Grouping())
        frozen = _obtain_teacher(
            run,
            teacher_weights,
            classes,
            replace(optimization, epochs=teacher_epochs or epochs),
            fingerprints,
            place,
            display,
            lr=teacher_lr,
            on_nonfinite=on_nonfinite,
            schedule=schedule if optimizer is None else None,
            compile=compile,
            threads=threads,
            num_workers=num_workers,
        )
        members = [] if frozen is None else frozen.members
        if folder is not None and frozen is not None:
            prints = [{**network_fingerprint(member.network), **member.resizing_facts} for member in members]
            named = {f"{key} (teacher {at})": x for at, own in enumerate(prints, 1) for key, x in own.items()}
            fingerprints["teacher"] = prints[0] if len(prints) == 1 else named
        objective = run.objective(frozen)
        if teacher_cache is not None and run.cached:
            for member in members:
                shapes = objective.setup.of_teacher(member.position).teacher
                member.cache = _open_cache(teacher_cache, run, member, shapes, place, display, cache_logits)
        run.start(objective, frozen, display.note)

        def loader(split: Any, size: int, **options: Any) -> BatchLoader:
            shares: dict[str, Any] = {"num_workers": num_workers, "rank": ranks.rank, "world_size": ranks.size}
            return run.task.loader(split, size, objective=objective, device=place.target, **shares, **options)

        recall = {} if frozen is None or frozen.recall is None else {"recall": frozen.recall}
        train_loader = loader(loaded.train, ranks.share(batch_size), train=True, seed=seed, **recall)
        test_loader = loader(loaded.test, max(ranks.share(batch_size), run.task.test_batch), train=False)
        scores = _measure_teachers(run, frozen, test_loader, place, display)
        score = scores[-1] if scores else None
        reports: dict[str, Report] = {}
        if report_difficulty:
            reports["difficulty_report"] = run.task.difficulty_report(loaded, place)
        if report_gradients:
            reports["gradient_report"] = _gradient_report(run, objective, train_loader, place)
        preprocessing = run.task.preprocessing(loaded)
        set_preprocessing(run.student, preprocessing)
        held.callback(ranks.synchronize_statistics(run.student, place.target))

        def save(name: str, network: nn.Module) -> None:
            """Write a network of the run, with all that its file says of it, to the run's folder."""
            known: dict[str, Any] = {"student": arguments["student"], "dataset": loaded.name, "task": run.task.name}
            if preprocessing is not None and not preprocessing.classes:
                known["num_classes"] = loaded.train.num_classes
            if isinstance(network, Predictor):
                known["head"] = {name: describe(getattr(run, name)) for name in ("method", "teacher", "centers")}
            set_preprocessing(network, preprocessing)
            if folder is not None:
                save_weights(network, folder.path / name, **known)

        trainer = Trainer(
            DistillationTask(run.task, run.reading(run.student, "student"), objective),
            members if objective.needs_teacher else [],
            train_loader,
            test_loader,
            optimization=replace(
                optimization,
                initial=objective.initial_epochs(epochs),
                initial_lr=run.initial_lr,
                make=make,
                grouping=grouping,
                accumulate=accumulate,
            ),
            device=place,
            seed=seed,
            arguments=arguments,
            fingerprints=fingerprints,
            folder=folder,
            display=display,
            title=f"{describe(student)} by {describe(method)} on {loaded.name}",
            resume=resume,
            compile=compile,
            threads=chosen_threads,
            checkpoint_every=checkpoint_every,
            on_nonfinite=on_nonfinite,
            reports=reports,
            decay=ema,
            patience=patience,
            on_best=partial(save, BEST_MODEL) if keep_best and folder is not None else None,
        )
        history = trainer.fit()
        record = _record(run, history, objective, score, place, ranks)
        files = [getattr(member.network, "weights_file", None) for member in members]
        if len(members) > 1:
            pairs = zip(run.teachers, scores, strict=False)  # the last score is that of their mean
            record["teachers"] = [{"name": describe(one), run.task.metric: own} for one, own in pairs]
        record.update(
            teacher=None if frozen is None else describe(run.teacher),
            teacher_file=files[0] if len(files) == 1 else files if any(files) else None,
            preprocessing=None if preprocessing is None else preprocessing.as_metadata(),
            fingerprints=fingerprints,
            arguments=arguments,
            profile=None if cost is None else cost.as_dict(),
        )
        _compare_with_teacher(record[f"best_{run.task.metric}"], run, score, display)
        network = objective.predictor(run.student).eval()
        set_preprocessing(network, preprocessing)
        averaged = None if trainer.ema is None else trainer.ema.module.eval()
        if folder is not None:
            save(FINAL_MODEL, network)
            if averaged is not None:
                save(EMA_MODEL, averaged)
            folder.write_result(record)
        tell(display, "result", record)
    return Result(network, history.rows, record, averaged)


OPTIONS = options_of(distill)
"""Its arguments and their defaults."""


def train(
    *, student: str | nn.Module, data: str | Data | tuple[Any, Any] | Dataset = "shapes", **options: Any
) -> Result:
    """Train a network alone, with cross entropy: :func:`distill` with the method ``vanilla`` and no teacher.

    Args:
        student: a module or a name of ``BACKBONES``. data: a name of ``DATASETS`` or a :class:`Data`.
        options: any other argument of :func:`distill` but ``teacher`` and ``method``.
    """
    return distill(student=student, teacher=None, method="vanilla", data=data, **options)


def train_teacher(
    *,
    teacher: str,
    task: str | Task | None = None,
    data: str | Data | tuple[Any, Any] | Dataset = "shapes",
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
    schedule: str | Callable[[float, int], float] | None = None,
    clip_grad: float | None = None,
    flip: bool = True,
    balance: Balance = "none",
    on_nonfinite: Literal["stop", "skip"] = "stop",
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    compile: bool | Literal["reduce-overhead"] | None = None,
    threads: int | None = None,
    num_workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    display: Display | Literal["auto"] | None = "auto",
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
            lr_decay, schedule, clip_grad, flip, balance, on_nonfinite, seed, device, precision, compile, threads,
            num_workers, display: see :func:`distill`.

    Returns:
        The network, in eval mode, with a record of its preprocessing (:func:`model_zoo.preprocessing_of`), and with
        the path of its file as ``weights_file``.
    """
    training: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "on_nonfinite": on_nonfinite, "seed": seed}
    training |= {"momentum": momentum, "weight_decay": weight_decay, "lr_decay": lr_decay}
    # What runs of before did not know is no part of the key where it is not given.
    training |= {} if clip_grad is None else {"clip_grad": clip_grad}
    check_arguments(lr=lr, threads=threads, num_workers=num_workers, balance=balance, **training)
    training |= {} if schedule is None else {"schedule": schedule}
    training |= {} if balance == "none" else {"balance": balance}
    display = choose_display(display)
    if not isinstance(teacher, str):
        raise UserError(f"a teacher to train must be the name of a network, not {type(teacher).__name__}")
    loaded = load_data(data, root=data_root, limit_train=limit_train, limit_test=limit_test, val_fraction=val_fraction)
    chosen_task = make_task(task, loaded, flip=flip, balance=balance)
    chosen_task.check_teachable(teacher, loaded)
    usual = recipe_for(teacher, otherwise=chosen_task.recipe).lr
    training.update(lr=usual if lr is None else lr, flip=bool(flip))
    training["milestones"] = [float(milestone) for milestone in milestones]
    with session(Device.resolve(device, precision)) as (ranks, place, _):
        display = display if ranks.first else Silent()
        training["precision"] = place.precision
        with own_random_state(place.target):
            network = chosen_task.make_network(teacher, loaded)
        # What the teacher's weights follow from, found out once for all processes.
        key = None
        if ranks.first:
            names = {"version": version("pckd"), "teacher": teacher, "task": chosen_task.name, "dataset": loaded.name}
            learned = {"code": code_fingerprint(network), "data": _fingerprints(loaded, data, "train")["train"]}
            training_key = {name: describe(value) for name, value in training.items()}
            key = {**names, **learned, **training_key, "device": place.type}
        key = ranks.same(key)
        folder = (Path(cache).expanduser() if cache else cache_folder()) / "teachers"
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{teacher}-{loaded.name}")[:80]
        path = folder / f"{safe}-{_digest(key, 12)}.pth"
        unfinished: Path | None = None
        waiting = False
        while not ranks.same(path.exists()):
            if unfinished is None:
                display.note(
                    f"teacher {teacher}: no weights given, so it is trained first ({epochs} epochs) and kept as {path}"
                )
                # Its training is a run like any other, which goes on where it was interrupted: by the images it is
                # measured on, too, on which its weights do not depend.
                measured = ranks.same(_fingerprints(loaded, data, "test")["test"] if ranks.first else None)
                unfinished = folder / f"{path.stem}-{_digest(measured, 6)}.run"
                loaded = _Known(**vars(loaded), fingerprints={"train": key["data"], "test": measured})
            try:
                trained = train(
                    student=teacher,
                    task=task,
                    data=loaded,
                    **training,
                    device=device,
                    compile=compile,
                    threads=threads,
                    num_workers=num_workers,
                    output=unfinished,
                    resume=True,
                    display=display,
                ).student
            except FolderInUse:
                if not waiting:
                    display.note(f"teacher {teacher}: another process trains it; waiting")
                waiting = True
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
        # Processes on other machines have another cache.
        content = path.read_bytes() if ranks.first and ranks.beside < ranks.size else None
        content = ranks.same(content)
        if content is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        # Also the one trained just now: its batch norms may be those of several processes, which round otherwise.
        load_weights(network, path)
        network.weights_file = os.fspath(path)  # type: ignore[assignment]
        return network.eval()


@alone()
def evaluate(
    network: nn.Module | str | os.PathLike[str],
    data: str | Data | tuple[Any, Any],
    *,
    task: str | Task | None = None,
    data_root: str | None = None,
    limit_test: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    num_workers: int = 0,
) -> Any:
    """How good a network is on the test split of ``data``: in classification, top-1 and top-5 accuracy in percent.

    A network that carries a record of its preprocessing (:func:`model_zoo.preprocessing_of`) is shown images resized
    and normalized as in its training; where that is not as the data set says, the log says so.

    Args:
        network: a module that classifies images, in any type; it answers in float32, and is afterwards as it was given.
            Or the file of a saved one (:func:`pckd.load`), which says its task. The other arguments: see
            :func:`distill`.

    Returns:
        what the task's ``scores`` returns: in classification :class:`pckd.tasks.classification.Scores`.

    Raises:
        UserError: any bad input, in one line; also where the network was trained on other classes, or on the same in
            another order.
    """
    if isinstance(network, (str, os.PathLike)):
        network, own = load_with_task(network)
        task = task or own
    check_network(network, "the network")
    place = Device.resolve(device, precision)
    data = as_data(data)
    split = data.test if isinstance(data, Data) else read_split(data, data_root, False)
    if limit_test is not None:
        split = limited(split, limit_test)
    chosen = make_task(task, data)
    with contextlib.ExitStack() as held:
        if not isinstance(getattr(split, "images", None), torch.Tensor):
            # Each image that this process reads has the global generators to itself.
            held.enter_context(own_random_state(place.target))
        held.enter_context(borrowed(network))
        network = chosen.adapted(network, split)
        split = chosen.as_trained(network, split, log.warning)
        resizing = chosen.resizing("the network", network, split, log.warning)
        loader = chosen.loader(
            split, batch_size, train=False, objective=None, device=place.target, num_workers=num_workers
        )
        return chosen.scores(FrozenTeacher(network, resizing=resizing).to(place.target), loader, place)


def _open_folder(output: str | os.PathLike[str] | None, resume: bool, held: contextlib.ExitStack) -> RunFolder | None:
    """The run's folder, locked until the run ends."""
    if output is None:
        return None
    folder = RunFolder(output)
    held.enter_context(folder.lock())
    if not resume:
        folder.refuse_finished_work()
    return folder


@dataclass(frozen=True)
class _Known(Data):
    """Data with the fingerprints of its splits: a run tells them to the training of its teacher."""

    fingerprints: Mapping[str, Any] = field(default_factory=dict)


def _fingerprints(loaded: Data, given: Any, *splits: str) -> dict[str, Any]:
    """Of the splits of loaded data; those that the given data know are not taken again."""
    known = given.fingerprints if isinstance(given, _Known) else {}
    return {split: known.get(split) or split_fingerprint(getattr(loaded, split)) for split in splits}


def _digest(key: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:length]


def _obtain_teacher(
    run: Plan,
    weights: Any,
    classes: Sequence[int | str] | None,
    optimization: Optimization,
    fingerprints: Mapping[str, Any],
    device: Device,
    display: Display,
    **options: Any,
) -> FrozenTeacher | SeveralTeachers | None:
    """The plan's teachers: each itself, by its weights, or trained by :func:`train_teacher` with these options.

    A method that needs no teacher does not make one, but those that are at hand are measured.
    """
    files = weights if isinstance(weights, list) else [weights] * len(run.teachers)
    networks: list[Any] = [teacher if isinstance(teacher, nn.Module) else None for teacher in run.teachers]
    untrained = [
        at for at, (network, file) in enumerate(zip(networks, files, strict=True)) if network is None and file is None
    ]
    if untrained and not run.needs_teacher:
        return None
    for at, teacher in enumerate(run.teachers):
        if isinstance(teacher, str) and at not in untrained:
            with said_of(at + 1, run.teachers):
                networks[at] = load_trained(run.task, teacher, run.data, files[at], classes, display.note)
    for at in untrained:
        # Only now: a file that cannot be read is refused before another teacher is trained.
        run.task.check_teachable(str(run.teachers[at]), run.data)
        run.refuse_impossible()
        unsaid = ("lr", "initial", "initial_lr", "schedule", "make", "grouping", "accumulate")
        settings = {key: value for key, value in vars(optimization).items() if key not in unsaid}
        networks[at] = train_teacher(
            teacher=str(run.teachers[at]),
            task=run.task.name,
            data=_Known(**vars(run.data), fingerprints=fingerprints),
            flip=getattr(run.task, "flip", True),
            balance=getattr(run.task, "balance", "none"),
            device=device.target,
            precision=device.precision,
            display=display,
            **settings,
            **options,
        )
    return run.freeze(networks, display.note)


def _open_cache(
    folder: str | os.PathLike[str],
    run: Plan,
    teacher: FrozenTeacher,
    shapes: Shapes,
    device: Device,
    display: Display,
    logits: str,
) -> TeacherCache:
    """The teacher's remembered answers; says how many there are."""
    key = cache_key(
        teacher.network,
        run.data.train,
        precision=device.precision,
        device=device.type,
        version=version("pckd"),
        **teacher.resizing_facts,
        **run.task.cache_options(),
    )
    cache = TeacherCache(
        folder,
        key=key,
        samples=len(run.data.train),
        pool=run.task.cache_options()["pool"],
        classes=shapes.num_classes,
        embedding=shapes.embedding,
        say=display.note,
        logits=logits,
    )
    if logits.startswith("top"):
        display.note("the cache keeps the largest logits: for losses at temperature 1; at higher ones choose uint8")
    display.note(cache.describe())
    return cache


def _gradient_report(run: Plan, objective: Objective, loader: BatchLoader, device: Device) -> GradientReport:
    """It looks at copies, after an epoch: too late to learn that there can be none."""
    both = nn.ModuleList([run.student, objective])
    copy_of(both, "the student, or a loss of the method,", "the gradient report")
    return GradientReport(loader, device)


def _measure_teachers(
    run: Plan, teacher: FrozenTeacher | SeveralTeachers | None, loader: BatchLoader, device: Device, display: Display
) -> list[float | None]:
    """The teacher's score; of several each one's, and last that of their mean, where networks answer about images.

    Says what may be wrong where one is not far from chance.
    """
    if teacher is None:
        return []
    if isinstance(teacher, FrozenTeacher):
        return [_measure_teacher(run, "teacher", teacher, loader, device, display)]
    scores = []
    for one, member in zip(run.teachers, teacher.members, strict=True):
        name = f"teacher {member.position}, {describe(one)}"
        scores.append(_measure_teacher(run, name, member, loader, device, display))
    known = sum(getattr(member.network, "gives_logits", True) for member in teacher.members)
    if not run.task.prepares or not known:
        return [*scores, None]
    name = "the mean of the teachers" if known == len(scores) else "the mean of the teachers that have a classifier"
    return [*scores, _measure_teacher(run, name, teacher, loader, device, display)]


def _measure_teacher(
    run: Plan,
    name: str,
    teacher: FrozenTeacher | SeveralTeachers,
    loader: BatchLoader,
    device: Device,
    display: Display,
) -> float | None:
    score = run.task.measure_teacher(
        teacher.to(device.target), loader, device, lambda text: display.note(f"{name}: {text}")
    )
    if score is None:
        return None
    display.note(f"{name}: {score:.2f} % {run.task.title} on {run.data.measured_on}")
    if _at_chance(run, score):
        name = "the teacher" if name == "teacher" else name
        display.note(
            f"warning: {name} ({score:.2f} %) is not far from chance ({run.task.chance(run.data):.2f} %): "
            "its classes may be in another order than the data's, its images may have been normalized in another way, "
            "or its weights may be the wrong file"
        )
    return score


def _at_chance(run: Plan, score: float) -> bool:
    return score <= NEAR_CHANCE * run.task.chance(run.data)


def _compare_with_teacher(best: float, run: Plan, score: float | None, display: Display) -> None:
    if score is not None and best > score and not _at_chance(run, score):
        display.note(
            f"the student ({best:.2f} %) is above its teacher ({score:.2f} %): a better teacher, or one trained "
            "longer, would have more to teach"
        )


def _record(
    run: Plan, history: History, objective: Objective, score: float | None, device: Device, ranks: Ranks
) -> dict[str, Any]:
    """What result.json says of a run, but for what only the caller knows."""
    metric, last = run.task.metric, history.rows[-1]
    others = {f"last_{name}": last[name] for name in run.task.columns if name != metric}
    if f"ema_{metric}" in last:
        others[f"last_ema_{metric}"] = last[f"ema_{metric}"]
    return {
        "student": describe(run.student_name),
        "task": run.task.name,
        "metric": metric,
        "columns": list(run.task.columns),
        "method": describe(run.method),
        "terms": {
            label: {"weight": term.weight, "previewed": term.previewed, **term.particulars, **term.options}
            for label, term in objective.terms.items()
        },
        "pair_options": run.published,
        "loss_parameters": sum(parameter.numel() for parameter in objective.parameters()),
        "dataset": run.data.name,
        "train_images": len(run.data.train),
        "measured_on": run.data.measured_on,
        "epochs": run.epochs,
        "seed": run.seed,
        f"teacher_{metric}": score,
        f"last_{metric}": last[metric],
        f"best_{metric}": max(row[metric] for row in history.rows),
        "best_epoch": history.best(metric),
        **others,
        "images_per_second": history.images / history.seconds if history.seconds else None,
        "train_seconds": history.seconds,
        "device": str(device.target),
        "processes": ranks.size,
        "threads": torch.get_num_threads(),
        "precision": device.precision,
        "lr": run.lr,
        **run.task.facts(objective),
        "versions": {"pckd": version("pckd"), "torch": torch.__version__, "python": platform.python_version()},
    }

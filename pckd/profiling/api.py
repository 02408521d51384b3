"""``pckd.profile``: from names or modules to what they cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

from model_zoo import usual_teacher
from model_zoo.probe import copied
from pckd.data import Loader
from pckd.engine.optimizer import make_optimizer
from pckd.engine.precision import ready_to_train, resolve_device, resolve_precision
from pckd.engine.progress import own_random_state
from pckd.engine.sources import (
    Data,
    check_gradients,
    check_layout,
    check_trainable,
    copy_of,
    describe,
    make_network,
    make_objective,
    method_terms,
    schedule_terms,
    shapes_of,
)
from pckd.engine.teacher import FrozenTeacher
from pckd.engine.train import place
from pckd.functional.ranks import alone
from pckd.objective import Metric, Objective, Scheduler, needs_teacher
from pckd.profiling.measure import Clock, how_peak_is_measured, interleaved, summary
from pckd.profiling.networks import count, ratios, time_networks
from pckd.profiling.report import NetworkCost, Profile, StepCost, Timing
from pckd.profiling.step import Workload, counted_step, timed_step
from pckd.profiling.terms import count_terms, measure_terms
from registry import BACKBONES, CenterRule, DataSplit, Setup, Term, UserError, parse


@dataclass(frozen=True)
class Case:
    """One thing to profile: a method, with so many views."""

    method: str | Sequence[Term]
    views: int | None = None


def profile(
    *,
    student: str | nn.Module,
    teacher: str | nn.Module | None = None,
    method: str | Sequence[Term] = "pckd",
    batch_size: int = 64,
    views: int | None = None,
    image_size: int | tuple[int, int] = 32,
    num_classes: int = 100,
    in_channels: int = 3,
    num_samples: int = 50_000,
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    device: str | torch.device | None = None,
    precision: str = "auto",
    depth: int = 1,
    rounds: int = 10,
    seed: int = 0,
) -> Profile:
    """What it costs to train a student with a method: FLOPs, memory and time of the networks, each term and a step.

    Weights and images are random, so no data is needed; modules that are given are copied and stay as they are. The
    step is the engine's own (:func:`pckd.engine.step.train_step`), on a batch of its own loader. What a FLOP counts
    is ``pckd.profiling.FLOP`` and ``pckd.profiling.STEP``.

    Args:
        student, teacher, method, difficulty, scheduler, centers, device, precision: see :func:`pckd.distill`.
        batch_size: images a step. views: rotations of each; by default what the method asks for.
        image_size: in pixels, or height and width. num_classes, in_channels: of the images.
        num_samples: size of the training set that is pretended: memory banks are as large.
        depth: how deep the tables of modules go; 0 is the networks alone.
        rounds: repetitions of every timing, in turns; the result is the median. 0 times nothing.
        seed: of weights and images.

    Raises:
        UserError: any bad input, in one line.
    """
    return profile_cases(
        {"": Case(method, views)},
        student=student,
        teacher=teacher,
        batch_size=batch_size,
        image_size=image_size,
        num_classes=num_classes,
        in_channels=in_channels,
        num_samples=num_samples,
        difficulty=difficulty,
        scheduler=scheduler,
        centers=centers,
        device=device,
        precision=precision,
        depth=depth,
        rounds=rounds,
        seed=seed,
    )[""]


@alone()
def profile_cases(
    cases: Mapping[str, Case],
    *,
    student: str | nn.Module,
    teacher: str | nn.Module | None = None,
    batch_size: int = 64,
    image_size: int | tuple[int, int] = 32,
    num_classes: int = 100,
    in_channels: int = 3,
    num_samples: int = 50_000,
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    device: str | torch.device | None = None,
    precision: str = "auto",
    depth: int = 1,
    rounds: int = 10,
    seed: int = 0,
    time_terms: bool = True,
) -> dict[str, Profile]:
    """The profile of each case: one pair of networks, steps timed in turns."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    lowest = {"batch_size": 1, "image_size": 1, "num_classes": 1, "in_channels": 1, "num_samples": 1}
    numbers = (batch_size, min(height, width), num_classes, in_channels, num_samples, depth, rounds)
    for (name, least), number in zip({**lowest, "depth": 0, "rounds": 0}.items(), numbers, strict=True):
        if number < least:
            raise UserError(f"{name} must be at least {least}, not {number}")
    target = resolve_device(device)
    precision = resolve_precision(precision, target)
    if teacher is None and any(needs_teacher(method_terms(case.method)) for case in cases.values()):
        if not isinstance(student, str):
            methods = ", ".join(repr(describe(case.method)) for case in cases.values())
            raise UserError(f"a teacher is needed for {methods}, and none is given")
        BACKBONES.get(parse(student)[0])  # a misspelled student is not one without a usual teacher
        teacher = usual_teacher(student)

    with ready_to_train(target), own_random_state(target):
        torch.manual_seed(seed)
        data = _random_data(batch_size, num_classes, (in_channels, height, width))
        networks = [_own(student, data, "the student")]
        check_trainable(networks[0])
        if teacher is not None:
            networks.append(_own(teacher, data, "the teacher").float())
        shapes = [shapes_of(net, data, role) for net, role in zip(networks, ("student", "teacher"), strict=False)]
        for network, role in zip(networks, ("student", "teacher"), strict=False):
            check_layout(network, data.image_shape, f"the {role}")
        names = [str(describe(network)) for network in (student, teacher) if network is not None]
        costs = _networks(names, networks, data, target, precision, depth, rounds)
        student_cost, teacher_cost = costs[0], costs[1] if teacher is not None else None
        frozen = FrozenTeacher(networks[1]) if teacher is not None else None
        classifier = frozen.classifier if frozen is not None else None
        setup = Setup(shapes[0], shapes[-1], max(num_samples, batch_size), classifier)

        works: dict[str, Workload] = {}
        for label, case in cases.items():
            terms, chosen = schedule_terms(method_terms(case.method, student, teacher), scheduler)
            objective = make_objective(terms, setup, difficulty=difficulty, scheduler=chosen, centers=centers)
            check_gradients(networks[0], objective)
            works[label] = _workload(case, networks[0], frozen, objective, setup, data, target, precision, seed)
        step_costs = _steps(works, Clock(target), rounds)
        profiles = {}
        for label, work in works.items():
            term_costs = count_terms(work)
            whole, timings = measure_terms(work, Clock(target), rounds) if rounds and time_terms else (Timing(), {})
            profiles[label] = Profile(
                settings={
                    "student": names[0],
                    "teacher": names[1] if teacher is not None else None,
                    "method": describe(cases[label].method),
                    "batch_size": batch_size,
                    "views": work.batch.views.shape[1] - work.strong,
                    "strong_view": work.strong,
                    "image_size": [height, width],
                    "num_classes": num_classes,
                    "in_channels": in_channels,
                    "num_samples": num_samples,
                    "difficulty": describe(difficulty),
                    "scheduler": describe(scheduler),
                    "centers": describe(centers),
                    "device": str(target),
                    "device_name": _device_name(target),
                    "threads": torch.get_num_threads(),
                    "precision": precision,
                    "rounds": rounds,
                    "seed": seed,
                    "torch": torch.__version__,
                },
                student=student_cost,
                teacher=teacher_cost,
                ratio=ratios(student_cost, teacher_cost),
                terms={
                    name: replace(cost, **asdict(timings[name])) if name in timings else cost
                    for name, cost in term_costs.items()
                },
                objective=whole,
                step=step_costs[label],
                notes=[note for cost in costs for note in (cost.error, *cost.notes) if note],
            )
        return profiles


def _own(network: str | nn.Module, data: Data, role: str) -> nn.Module:
    """A network to wear out: made by name, or a copy."""
    made = make_network(network, data, role)
    return made if isinstance(network, str) else copy_of(made, role, "a profile")


def _random_data(num_images: int, num_classes: int, shape: tuple[int, int, int]) -> Data:
    """Images of uniform noise, with random labels."""
    images = torch.randint(0, 256, (num_images, *shape), dtype=torch.uint8)
    labels = torch.randint(0, num_classes, (num_images,))
    classes = tuple(map(str, range(num_classes)))
    split = DataSplit(images, labels, classes, (0.5,) * shape[0], (0.25,) * shape[0], name="random images")
    return Data(split, split, "random images")


def _networks(
    names: list[str],
    networks: list[nn.Module],
    data: Data,
    device: torch.device,
    precision: str,
    depth: int,
    rounds: int,
) -> list[NetworkCost]:
    images = next(iter(Loader(data.test, len(data.test), train=False).epoch(1))).views.flatten(0, 1)
    costs = []
    for name, network in zip(names, networks, strict=True):
        weight = next((p for p in network.parameters() if p.is_floating_point()), images)
        costs.append(count(network, name, images[:1].to(weight.device, weight.dtype), depth))
    measured = time_networks(networks, images.to(device), precision, rounds)
    return [
        replace(cost, latency=latency, peak_bytes=peak) for cost, (latency, peak) in zip(costs, measured, strict=True)
    ]


def _workload(
    case: Case,
    student: nn.Module,
    teacher: FrozenTeacher | None,
    objective: Objective,
    setup: Setup,
    data: Data,
    device: torch.device,
    precision: str,
    seed: int,
) -> Workload:
    """The step of one case, with a student of its own."""
    views = case.views if case.views is not None else 4 if objective.needs_rotations else 1
    loader = Loader(
        data.train,
        len(data.train),
        train=True,
        views=views,
        strong=objective.needs_strong,
        device=device,
        seed=seed,
    )
    network = copied(student)
    place(network, device)
    objective.to(device)
    if not objective.needs_teacher:
        teacher = None
    batch = next(iter(loader.epoch(1)))
    if teacher is not None:
        place(teacher, device)
        if not teacher.prepared:
            teacher.prepare(batch.views.flatten(0, 1)[:4], precision)
    return Workload(
        student=network,
        teacher=teacher,
        objective=objective,
        setup=setup,
        # A rate of 0 costs what any costs, and the weights stay what they are however many steps are taken.
        optimizer=make_optimizer(network, objective, device, lr=0.0, momentum=0.9, weight_decay=5e-4),
        batch=batch,
        strong=loader.strong,
        device=device,
        precision=precision,
    )


def _steps(works: Mapping[str, Workload], clock: Clock, rounds: int) -> dict[str, StepCost]:
    for work in works.values():
        work.first_step()
        work.step()
    samples = interleaved({label: partial(timed_step, work, clock) for label, work in works.items()}, rounds)
    costs = {}
    for label, work in works.items():
        parts, uncounted = counted_step(work)
        times = {part: summary(sample[part] for sample in samples[label]) for part in (*parts, "whole")}
        whole = times["whole"]
        images = len(work.batch.labels)
        costs[label] = StepCost(
            **asdict(whole),
            peak_bytes=work.peak_bytes(),
            peak_how=how_peak_is_measured(clock.device),
            macs=sum(part.macs for part in parts.values()),
            elementwise=sum(part.elementwise for part in parts.values()),
            parameters=sum(
                p.numel() for module in (work.student, work.objective) for p in module.parameters() if p.requires_grad
            ),
            rows=images * work.batch.views.shape[1],
            images_per_second=images / whole.seconds if whole.seconds else None,
            parts={name: replace(part, **asdict(times[name])) for name, part in parts.items()},
            uncounted=dict(sorted(uncounted.items())),
        )
    return costs


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()

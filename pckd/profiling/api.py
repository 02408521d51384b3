"""``pckd.profile``: from names or modules to what they cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from model_zoo.probe import copied
from pckd.data.load import Data, load_data
from pckd.device import Device, ready_to_train
from pckd.distributed import alone
from pckd.engine.optimization import Optimization
from pckd.engine.progress import own_random_state
from pckd.engine.teacher import FrozenTeacher, SeveralTeachers
from pckd.given import check_gradients, copy_of
from pckd.objective import Metric, Objective, Scheduler
from pckd.plan import Plan, make_task, plan, together
from pckd.profiling.measure import Clock, how_peak_is_measured, interleaved, summary
from pckd.profiling.networks import count, ratios, time_networks
from pckd.profiling.report import NetworkCost, Profile, StepCost
from pckd.profiling.step import Times, Workload, counted_step, timed_step
from pckd.profiling.terms import count_terms
from pckd.tasks import DistillationTask, Task
from pckd.terms import Teachers, describe, paired
from registry import CenterRule, Term, UserError


@dataclass(frozen=True)
class Case:
    """One thing to profile: a method, with so many views."""

    method: str | Sequence[Term]
    views: int | None = None


def profile(
    *,
    student: str | nn.Module,
    teacher: Teachers = None,
    method: str | Sequence[Term] = "pckd",
    task: str | Task | None = None,
    data: str | Data | None = None,
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
        task: a name of ``TASKS`` or a task; by default the one that ``data`` is for, or classification.
        data: a name of ``DATASETS`` or a :class:`pckd.Data`, whose images and classes are taken; by default noise.
        image_size: in pixels, or height and width. num_classes, in_channels: of the images.
        num_samples: size of the training set that is pretended: memory banks are as large.
        depth: how deep the tables of modules go; 0 is the networks alone.
        rounds: repetitions of every timing, in turns; the result is the median. 0 times nothing.
        seed: of weights and images.

    Raises:
        UserError: any bad input, in one line.
    """
    options = dict(locals())
    return profile_cases({"": Case(options.pop("method"), options.pop("views"))}, **options)[""]


@alone()
def profile_cases(
    cases: Mapping[str, Case],
    *,
    student: str | nn.Module,
    teacher: Teachers = None,
    task: str | Task | None = None,
    data: str | Data | None = None,
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
) -> dict[str, Profile]:
    """The profile of each case: one pair of networks, steps timed in turns."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = {"batch_size": batch_size, "image_size": min(height, width), "num_classes": num_classes}
    sizes |= {"in_channels": in_channels, "num_samples": num_samples, "depth": depth, "rounds": rounds}
    for name, number in sizes.items():
        if number < (least := 0 if name in ("depth", "rounds") else 1):
            raise UserError(f"{name} must be at least {least}, not {number}")
    teacher, _ = paired(teacher, None)
    place = Device.resolve(device, precision)
    with ready_to_train(place), own_random_state(place.target):
        torch.manual_seed(seed)
        if data is None:
            chosen = make_task(task or "classification", None)
            loaded = chosen.random_data(batch_size, num_classes, (in_channels, height, width))
        else:
            loaded = load_data(data)
            chosen = make_task(task, loaded)
            num_classes, num_samples = loaded.train.num_classes, len(loaded.train)
        plans = {
            label: plan(
                task=chosen if case.views is None else make_task(chosen.name, loaded, views=case.views),
                data=loaded,
                student=student,
                teacher=teacher,
                method=case.method,
                difficulty=difficulty,
                scheduler=scheduler,
                centers=centers,
                batch_size=batch_size,
                seed=seed,
            )
            for label, case in cases.items()
        }
        first = next((run for run in plans.values() if run.teacher is not None), next(iter(plans.values())))
        own = copy_of(first.student, "the student", "a profile")
        every = [term for run in plans.values() for term in run.terms]
        members = []
        for at, given in enumerate(first.teachers, 1):
            network = given if isinstance(given, nn.Module) else chosen.make_network(given, loaded)
            resizing = chosen.resizing("the teacher", network, loaded.train)
            network = copy_of(network, "the teacher", "a profile").float()
            asked = first.reading(network, "teacher", every, position=at if len(first.teachers) > 1 else None)
            members.append(FrozenTeacher(network, resizing=resizing, asked=asked))
        frozen = together(members)
        names = [str(describe(network)) for network in (student, *first.teachers)]
        networks = [own, *(member.network for member in members)]
        if isinstance(frozen, SeveralTeachers):
            if not chosen.prepares:
                raise UserError(f"a profile of the task {chosen.name} is of one teacher: name one, or leave it out")
            names.append(" + ".join(names[1:]))
            # As each of them is counted: not as it is prepared for the step.
            networks.append(SeveralTeachers([FrozenTeacher(m.network, resizing=m.resizing) for m in members]))
        works = {}
        for label, run in plans.items():
            objective = run.objective(frozen, num_samples=max(num_samples, batch_size))
            works[label] = _workload(run, own, frozen, objective, place)
        images = _images(first)
        shown = [images, *(member.shown(images) for member in members), *[images] * (len(networks) - 1 - len(members))]
        costs = _networks(names, networks, shown, place, depth, rounds)
        own_size = [
            f"{name}: on images resized to {'x'.join(map(str, member.resizing[0]))} pixels"
            for name, member in zip(names[1:], members, strict=False)
            if member.resizing is not None
        ]
        student_cost, teacher_cost = costs[0], costs[-1] if frozen is not None else None
        samples = _time_steps(works, Clock(place.target), rounds)
        return {
            label: Profile(
                settings={
                    "student": names[0],
                    "teacher": names[-1] if frozen is not None else None,
                    "method": describe(cases[label].method),
                    "batch_size": batch_size,
                    "views": 1,
                    "strong_view": False,
                    **plans[label].task.facts(work.objective),
                    "image_size": list(images.shape[-2:]),
                    "num_classes": num_classes,
                    "in_channels": images.shape[1],
                    "num_samples": num_samples,
                    "difficulty": describe(difficulty),
                    "scheduler": describe(scheduler),
                    "centers": describe(centers),
                    "device": str(place.target),
                    "device_name": _device_name(place.target),
                    "threads": torch.get_num_threads(),
                    "precision": place.precision,
                    "rounds": rounds,
                    "seed": seed,
                    "torch": torch.__version__,
                },
                student=student_cost,
                teacher=teacher_cost,
                teachers=costs[1:-1],
                ratio=ratios(student_cost, teacher_cost),
                terms={
                    name: replace(
                        cost, **asdict(summary(times.terms[name] for times in samples[label] if name in times.terms))
                    )
                    for name, cost in count_terms(work).items()
                },
                objective=summary(times.objective for times in samples[label] if times.objective is not None),
                step=_step_cost(work, samples[label]),
                notes=[*own_size, *(note for cost in costs for note in (cost.error, *cost.notes) if note)],
            )
            for label, work in works.items()
        }


def _images(run: Plan) -> Tensor:
    """A batch of the test split as networks are shown it, [N, C, H, W]."""
    loader = run.task.loader(run.data.test, run.batch_size, train=False, objective=None, device="cpu")
    images = run.task.images(next(iter(loader.epoch(1))))
    if images is None:
        raise UserError(
            f"the task {run.task.name!r} does not say what networks are called with, so that none is profiled"
        )
    return images


def _networks(
    names: list[str], networks: list[nn.Module], shown: list[Tensor], device: Device, depth: int, rounds: int
) -> list[NetworkCost]:
    """Each network's cost for the images [N, C, H, W] that it is shown."""
    counted = []
    for name, network, images in zip(names, networks, shown, strict=True):
        weight = next((p for p in network.parameters() if p.is_floating_point()), images)
        counted.append(count(network, name, images[:1].to(weight.device, weight.dtype), depth))
    measured = time_networks(networks, [images.to(device.target) for images in shown], device, rounds)
    return [replace(cost, latency=time, peak_bytes=peak) for cost, (time, peak) in zip(counted, measured, strict=True)]


def _workload(
    run: Plan,
    student: nn.Module,
    teacher: FrozenTeacher | SeveralTeachers | None,
    objective: Objective,
    device: Device,
) -> Workload:
    """The step of one case, with a student of its own."""
    check_gradients(student, objective)
    model = DistillationTask(run.task, run.reading(copied(student), "student"), objective)
    device.place(model.student)
    objective.to(device.target)
    place = {"device": device.target, "seed": run.seed}
    loader = run.task.loader(run.data.train, run.batch_size, train=True, objective=objective, **place)
    batch = next(iter(loader.epoch(1)))
    teachers = [] if teacher is None or not objective.needs_teacher else [*teacher.members]
    images = run.task.images(batch)
    for frozen in teachers:
        device.place(frozen)
        if not frozen.prepared and images is not None:
            frozen.prepare(images[:4], device)
    # A rate of 0 costs what any costs, and the weights stay what they are however many steps are taken.
    optimizer = Optimization(1, run.batch_size, lr=0.0).optimizer(model.student, objective, device.target)
    return Workload(model, teachers, optimizer, batch, device)


def _time_steps(works: Mapping[str, Workload], clock: Clock, rounds: int) -> dict[str, list[Times]]:
    for work in works.values():
        work.first_step()
        work.step()
    return interleaved({label: partial(timed_step, work, clock) for label, work in works.items()}, rounds)


def _step_cost(work: Workload, samples: Sequence[Times]) -> StepCost:
    parts, uncounted = counted_step(work)
    whole = summary(times.whole for times in samples)
    images = len(work.batch)
    return StepCost(
        **asdict(whole),
        peak_bytes=work.peak_bytes(),
        peak_how=how_peak_is_measured(work.device.target),
        macs=sum(part.macs for part in parts.values()),
        elementwise=sum(part.elementwise for part in parts.values()),
        parameters=sum(
            p.numel() for module in (work.model.student, work.objective) for p in module.parameters() if p.requires_grad
        ),
        rows=work.rows,
        images_per_second=images / whole.seconds if whole.seconds else None,
        parts={
            name: replace(part, **asdict(summary(times.parts[name] for times in samples if times.parts)))
            for name, part in parts.items()
        },
        uncounted=dict(sorted(uncounted.items())),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()

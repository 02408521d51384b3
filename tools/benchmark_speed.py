#!/usr/bin/env python
"""How fast a step of distillation is, data included, beside the same step written plainly. Needs no data.

python tools/benchmark_speed.py                                          # four pairs; takes long on a CPU
python tools/benchmark_speed.py --pairs 'resnet56>resnet20' --rounds 3 --output speed.json
python tools/benchmark_speed.py --pairs 'resnet56>resnet20' --memory     # and the peak memory of three batch sizes
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pckd import Data, distill, profile
from pckd.cli import Parser, run_tool
from pckd.engine.compiling import resolve_compile
from pckd.engine.memory import keep_freed, one_arena
from pckd.engine.precision import resolve_device, resolve_precision
from pckd.engine.sources import make_network, method_terms, split_methods
from pckd.profiling.measure import interleaved
from pckd.profiling.show import markdown
from pckd.profiling.speed import (
    case_figures,
    compiling_figures,
    describe_machine,
    forget_peak,
    peak_now,
    product,
    stage_figures,
    stages_of,
)
from pckd.profiling.speed_sheets import overview, pair_sheets
from pckd.profiling.turns import Epochs, Turn, Turns, give_back_threads
from registry import DataSplit, UserError

PAIRS = "resnet32x4>resnet8x4,resnet56>resnet20,wrn_40_2>wrn_16_2,vgg13>vgg8"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (
        "the step as programs of the field run it (tools/plain_step.py): float32, PIL images, two workers",
        {"precision": "fp32"},
    ),
    "default": ("pckd.distill with its own choices", {}),
    "cache": ("default, with the teacher's answers from a full cache", {"view_pool": 1}),
    "fp32": ("default in float32, not compiled", {"precision": "fp32", "compile": False}),
    "uncompiled": ("default, not compiled", {"compile": False}),
    "compiled": ("default, compiled", {"compile": True}),
}
"""What each case is, and what :func:`pckd.distill` is given for it."""

WARM_UP = 2
"""Turns before the first that counts: in them things are compiled, and the cache is filled."""
RUN = 240 * 781
"""Steps of the run that the steps belong to, which is what the choices of a default depend on: the paper's."""
LR = 1e-4
"""Low, so that a student of random images stays finite; any rate costs the same."""


def make_parser() -> Parser:
    parser = Parser("Time steps of distillation, data included, on random weights and images.")
    add = parser.add_argument
    add("--pairs", default=PAIRS, metavar="TEACHER>STUDENT,...", help="pairs of networks")
    add("--method", default="pckd", metavar="NAME", help="what to distill")
    add("--cases", default="plain,default,cache,fp32,uncompiled", metavar="A,B,...", help=f"of {', '.join(CASES)}")
    add("--batch-size", type=int, default=64, help="images a step")
    add("--image-size", type=int, default=32, help="height and width in pixels")
    add("--classes", type=int, default=100, help="classes of the networks")
    add("--rounds", type=int, default=5, help="in each of which every case has a turn")
    add("--steps", type=int, default=4, help="steps in a turn")
    add("--product", type=int, default=4096, metavar="N", help="the machine's peak is that of an N x N matrix product")
    add("--memory", nargs="?", const="32,64,128", metavar="SIZES", help="also measure peak memory, by batch size")
    add("--output", metavar="FILE", help="write everything as JSON")
    add("--peak", action="store_true", help=argparse.SUPPRESS)  # what --memory starts: prints one case's peak as JSON
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    pairs, cases = refuse_early(args)
    one_arena()  # each case has a thread of its own, where a user's run is in the main one
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    if args.peak:
        print(json.dumps(peak(args, *pairs[0], cases[0], device)))
        return 0
    machine = describe_machine(device)
    images = f"{args.batch_size} images of 3 x {args.image_size} x {args.image_size}, {args.classes} classes"
    setting = f"{args.method}, {images}, random weights; {machine}; {args.rounds} rounds of {args.steps} steps"
    options = {name: value for name, value in vars(args).items() if name not in ("peak", "list", "debug", "output")}
    content: dict[str, Any] = {"machine": machine, "precision": precision, "options": options, "pairs": {}}
    for teacher, student in pairs:
        label = f"{teacher}>{student}"
        found = measure_pair(args, teacher, student, cases, device, precision)
        if args.memory:
            found["memory"] = measure_memory(args, label, cases)
        content["pairs"][label] = found
        print(markdown(pair_sheets(found, label.replace(">", " > "), setting)), flush=True)
        torch.compiler.reset()
    if len(pairs) > 1:
        print(markdown([overview(content["pairs"], setting)]))
    if args.output:
        try:
            Path(args.output).expanduser().write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {args.output}: {error.strerror or error}") from None
    return 0


def refuse_early(args: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs and the cases, and whatever is wrong with the options before minutes are spent."""
    lowest = {"batch_size": 2, "image_size": 1, "classes": 2, "rounds": 1, "steps": 2, "product": 1}
    for name, least in lowest.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    pairs = []
    for text in split_methods(args.pairs, ","):
        teacher, between, student = text.partition(">")
        if not (between and teacher.strip() and student.strip()):
            raise UserError(f"--pairs are written teacher>student with commas between, not {text!r}")
        pairs.append((teacher.strip(), student.strip()))
    cases = list(dict.fromkeys(case.strip() for case in args.cases.split(",")))
    for case in cases:
        if case not in CASES:
            raise UserError(f"--cases: unknown case {case!r}; known: {', '.join(CASES)}")
    method_terms(args.method)
    if "plain" in cases and args.method != "pckd":
        raise UserError(f"the plain step is written for pckd alone, not for {args.method}; leave plain out of --cases")
    try:
        sizes = [int(size) for size in (args.memory or "2").split(",")]
    except ValueError:
        raise UserError(f"--memory takes batch sizes with commas between, not {args.memory!r}") from None
    if min(sizes) < 2:
        raise UserError(f"--memory: a batch size must be at least 2, not {min(sizes)}")
    if args.output and not Path(args.output).expanduser().parent.is_dir():
        raise UserError(f"{args.output}: there is no folder {Path(args.output).expanduser().parent}")
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        make_network(name, random_data(args, images=2))
    return pairs, cases


# What is run


def random_data(args: argparse.Namespace, images: int) -> Data:
    """Noise with random labels: ``images`` to train on, and a few to evaluate on, which is not timed."""
    generator = torch.Generator().manual_seed(0)

    def split(number: int) -> DataSplit:
        size = (number, 3, args.image_size, args.image_size)
        pixels = torch.randint(0, 256, size, generator=generator).to(torch.uint8)
        labels = torch.randint(0, args.classes, (number,), generator=generator)
        classes = tuple(map(str, range(args.classes)))
        return DataSplit(pixels, labels, classes, (0.5,) * 3, (0.25,) * 3, name="random images")

    return Data(split(images), split(2), "random images")


def make_pair(teacher: str, student: str, data: Data) -> tuple[nn.Module, nn.Module]:
    """Two networks with random weights, the teacher's batch norms with statistics of the images."""
    torch.manual_seed(0)
    networks = make_network(teacher, data), make_network(student, data)
    images = data.train.images[:64].float() / 127.5 - 1
    for module in networks[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        networks[0].train()(images)
    return networks[0].eval(), networks[1]


def make_turns(
    case: str, args: argparse.Namespace, networks: tuple[nn.Module, nn.Module], data: Data, device: torch.device
) -> Turns:
    """A case in a thread of its own, with networks of its own."""
    teacher, student = copy.deepcopy(networks)
    if case == "plain":
        return Turns(partial(run_plain, student=student, teacher=teacher, data=data, args=args, device=device), device)
    return Turns(partial(run_distill, case=case, student=student, teacher=teacher, data=data, args=args), device)


def run_distill(
    turns: Turns, *, case: str, student: nn.Module, teacher: nn.Module, data: Data, args: argparse.Namespace
) -> None:
    """What a user calls; a turn is an epoch."""
    options = {"precision": args.precision, **CASES[case][1]}
    with tempfile.TemporaryDirectory() as folder:
        distill(
            student=student,
            teacher=teacher,
            method=args.method,
            data=data,
            epochs=math.ceil(RUN / args.steps),
            batch_size=args.batch_size,
            lr=LR,
            device=args.device,
            teacher_cache=folder if case == "cache" else None,
            display=Epochs(turns),
            **options,
        )


def run_plain(
    turns: Turns, *, student: nn.Module, teacher: nn.Module, data: Data, args: argparse.Namespace, device: torch.device
) -> None:
    """The plain step over an epoch in each turn.

    A turn begins with its first batch there and the workers at the next ones, as in the middle of an epoch; at its end
    they have nothing left to do, so that they take no time from others.
    """
    from plain_step import FourViews, PlainTrainer, make_loader

    split = data.train
    loader = make_loader(FourViews(split.images, split.labels, split.mean, split.std), args.batch_size)
    trainer = PlainTrainer(student, teacher, device, LR)
    epoch = 0
    while True:
        turns.wait()
        epoch += 1
        trainer.start_epoch()
        batches = iter(loader)
        batch = next(batches)
        turns.begin()
        while batch is not None:
            views, labels = batch
            trainer.step(views, labels, min(epoch, 240))
            batch = next(batches, None)
            turns.stepped(waited_for=batch is None)


# What is measured


def measure_pair(
    args: argparse.Namespace, teacher: str, student: str, cases: Sequence[str], device: torch.device, precision: str
) -> dict[str, Any]:
    """Every case in turns, the parts of the default step, and the machine's peak, all in the same rounds."""
    data = random_data(args, args.batch_size * args.steps)
    networks = make_pair(teacher, student, data)
    macs = count_macs(args, networks, data)
    give_back_threads()
    precisions = {case: CASES[case][1].get("precision", precision) for case in cases}
    measures: dict[str, Callable[[], Any]] = {}
    ready, warm_up = {}, {}
    with contextlib.ExitStack() as held, compiler_without_memory():
        for case in cases:
            turns = make_turns(case, args, networks, data, device)
            held.callback(turns.close)
            ready[case] = turns.start()
            warm_up[case] = [turn_of(turns, case) for _ in range(WARM_UP)]
            measures[case] = partial(turn_of, turns, case)
            if case == "default":
                measures["stages"] = partial(stages_of, turns, device)
                measures["stages"]()
            say(f"{teacher}>{student}: {case} is ready")
        for kind in sorted({"fp32", *precisions.values()}):
            measures[f"product in {kind}"] = product(args.product, kind, device)
        samples = interleaved(measures, args.rounds)
    peaks = {
        name.removeprefix("product in "): 2 * args.product**3 / min(seconds)
        for name, seconds in samples.items()
        if name.startswith("product in ")
    }
    found: dict[str, Any] = {"cases": {}, "macs": macs, "peak_flops": peaks, "product": args.product}
    for case in cases:
        work = sum(macs.values()) - (macs["teacher"] if case == "cache" else 0)
        figures = case_figures(
            ready[case],
            warm_up[case],
            samples[case],
            images=args.batch_size,
            macs=work,
            peak_flops=peaks[precisions[case]],
        )
        found["cases"][case] = {"what": CASES[case][0], "precision": precisions[case], **figures}
    if "plain" in cases:
        plain = found["cases"]["plain"]["samples"]
        for one in found["cases"].values():
            one["faster"] = [base / own for base, own in zip(plain, one["samples"], strict=True)]
    if "default" in cases:
        found["stages"] = stage_figures(samples["stages"], macs, peaks[precision])
        found |= {"run": RUN, "compiled": resolve_compile(None, RUN, device)[0]}
        if found["compiled"] and "uncompiled" in cases:
            found["compiling"] = compiling_figures(found["cases"]["default"], found["cases"]["uncompiled"])
    return found


def turn_of(turns: Turns, case: str) -> Turn:
    """A turn with the process's memory as it is when the case runs alone: distillation keeps what a step has freed."""
    keep_freed(case != "plain")
    return turns.turn()


@contextlib.contextmanager
def compiler_without_memory() -> Iterator[None]:
    """What was compiled by earlier programs is not found: compiling takes as long as it does the first time."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name) if before is None else os.environ.update({name: before})


def count_macs(args: argparse.Namespace, networks: tuple[nn.Module, nn.Module], data: Data) -> dict[str, int]:
    """Multiply-adds of each part of a step, counted on the step as it is without any preparation."""
    counted = profile(
        student=networks[1],
        teacher=networks[0],
        method=args.method,
        batch_size=args.batch_size,
        image_size=args.image_size,
        num_classes=args.classes,
        num_samples=len(data.train),
        device=args.device,
        precision="fp32",
        depth=0,
        rounds=0,
    )
    return {"teacher": 0, **{part: cost.macs for part, cost in counted.step.parts.items()}}


# Memory: each figure from a process of its own


def measure_memory(args: argparse.Namespace, label: str, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each batch size and each of plain and default: :func:`peak` in a new process."""
    found: dict[str, dict[str, Any]] = {}
    for size in args.memory.split(","):
        found[size] = {}
        for case in [case for case in ("plain", "default") if case in cases]:
            options: dict[str, Any] = {"pairs": label, "cases": case, "batch-size": size, "image-size": args.image_size}
            options |= {"classes": args.classes, "steps": args.steps, "method": args.method}
            options |= {"precision": args.precision, **({"device": args.device} if args.device else {})}
            command = [sys.executable, __file__, "--peak"]
            command += [f"--{name}={value}" for name, value in options.items()]
            command += [f"--plugin={plugin}" for plugin in args.plugin]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                raise UserError(f"--memory: the process that measures {case} failed: {reason}")
            found[size][case] = json.loads(done.stdout.splitlines()[-1])
            say(f"{label}: memory of {case} with batches of {size}")
    return found


def peak(args: argparse.Namespace, teacher: str, student: str, case: str, device: torch.device) -> dict[str, int]:
    """Bytes of this process at its peak: before its steps, in the first ones, and in later ones.

    On CUDA those of the device's tensors, elsewhere the resident memory of this process without its workers'.
    """
    data = random_data(args, args.batch_size * args.steps)
    turns = make_turns(case, args, make_pair(teacher, student, data), data, device)
    with compiler_without_memory():
        turns.start()
        forget_peak(device)
        before = peak_now(device)
        for _ in range(WARM_UP):
            turns.turn()
        first = peak_now(device)
        forget_peak(device)
        turns.turn()
        later = peak_now(device)
        turns.close()
    return {"before": before, "first": first, "later": later}


# What is said


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""How fast a step of distillation is, data included, beside the same step written plainly. Needs no data.

python tools/benchmark_speed.py                                          # four pairs; takes long on a CPU
python tools/benchmark_speed.py --pairs 'resnet56>resnet20' --rounds 3 --output speed.json
python tools/benchmark_speed.py --pairs 'resnet56>resnet20' --memory     # and the peak memory of three batch sizes
python tools/benchmark_speed.py --data                                   # how fast images are read

Each case is a process of its own, this program with --child. In turns each trains an epoch, so that what drifts on a
machine drifts for all alike. The memory of all cases is in use at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from pckd import Data, distill, profile
from pckd.cli import Parser, run_tool
from pckd.comparison.jobs import parse_pairs
from pckd.device import Device
from pckd.engine.compiling import resolve_compile
from pckd.engine.memory import keep_freed
from pckd.plan import make_task
from pckd.profiling.measure import Clock, interleaved, summary
from pckd.profiling.speed import Served
from pckd.tables import NONE, Table, amount, digits, duration, markdown, memory, share, spread
from pckd.terms import method_terms
from registry import UserError
from registry.files import write_atomically

TASK = make_task("classification", None)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (
        "the step as programs of the field run it (tools/plain_step.py): float32, PIL images, two workers",
        {"precision": "fp32"},
    ),
    "peer": (
        "RepDistiller's own loop, networks, losses and loader, two workers (tools/peer_step.py)",
        {"precision": "fp32"},
    ),
    "default": ("pckd.distill with its own choices", {}),
    "cache": ("default, with the teacher's answers from a full cache", {"view_pool": 1}),
    "fp32": ("default in float32, not compiled", {"precision": "fp32", "compile": False}),
    "uncompiled": ("default, not compiled", {"compile": False}),
    "compiled": ("default, compiled", {"compile": True}),
}
"""What each case is, and what :func:`pckd.distill` is given for it."""

PAIRS = "resnet32x4>resnet8x4,resnet56>resnet20,wrn_40_2>wrn_16_2,vgg13>vgg8"
WARM_UP = 2
"""Epochs before the first that counts: in them things are compiled, and the cache is filled."""
LR = 1e-4
"""Low, so that a student of random images stays finite; any rate costs the same."""
Answer = dict[str, Any]


def make_parser() -> Parser:
    parser = Parser("Time steps of distillation, data included, on random weights and images.")
    add = parser.add_argument
    add("--pairs", default=PAIRS, metavar="TEACHER>STUDENT,...", help="pairs of networks")
    add("--method", default="pckd", metavar="NAME", help="what to distill")
    add("--cases", default="plain,default,cache,fp32,uncompiled", metavar="A,B,...", help=f"of {', '.join(CASES)}")
    add("--batch-size", type=int, default=64, help="images a step")
    add("--image-size", type=int, default=32, help="height and width in pixels")
    add("--classes", type=int, default=100, help="classes of the networks")
    add("--rounds", type=int, default=5, help="in each of which every case trains an epoch")
    add("--steps", type=int, default=4, help="steps in an epoch")
    add("--run", type=int, default=240 * 781, metavar="N", help="steps of the run, by which default decides to compile")
    add("--product", type=int, default=4096, metavar="N", help="the machine's peak is that of an N x N matrix product")
    add("--memory", nargs="?", const="32,64,128", metavar="SIZES", help="also measure peak memory, by batch size")
    add(
        "--data",
        nargs="?",
        const="",
        metavar="DIR",
        help="measure how fast images are read: drawn ones, or DIR/train/*",
    )
    add("--peer", metavar="DIR", help="beside RepDistiller's loop, of a checkout there; for kd, at, rkd and sp")
    add("--workers", default="1,2", metavar="N,N,...", help="with --data: processes that read")
    add("--output", metavar="FILE", help="write everything as JSON")
    add("--child", help=argparse.SUPPRESS)  # the case that this process is
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), partial(run, sys.argv[1:] if argv is None else argv), argv)


def run(argv: Sequence[str], args: argparse.Namespace) -> int:
    if args.child:
        return serve(args)
    if args.data is not None:
        from data_speed import measure

        place = Device.resolve(args.device).target
        print(f"{describe_machine(place)}\n", flush=True)
        for table in measure(args.data or None, [int(count) for count in args.workers.split(",")], args.rounds, place):
            print(markdown([table]), flush=True)
        return 0
    pairs, cases = refuse_early(args)
    device = Device.resolve(args.device).target
    machine = describe_machine(device)
    images = f"{args.batch_size} images of 3 x {args.image_size} x {args.image_size}, {args.classes} classes"
    setting = f"{args.method}, {images}, random weights; {machine}; {args.rounds} rounds of {args.steps} steps"
    options = {name: value for name, value in vars(args).items() if name not in ("child", "list", "debug", "output")}
    precision = Device.resolve(args.device, args.precision).precision
    content: dict[str, Any] = {"machine": machine, "precision": precision, "options": options, "pairs": {}}
    for pair in pairs:
        found = measure_pair(argv, args, pair, cases, device)
        sheets = [cases_sheet(found, f"{pair.replace('>', ' > ')}: {setting}")]
        if args.memory:
            found["memory"] = measure_memory(argv, args, pair, cases)
            sheets.append(memory_sheet(found["memory"], pair))
        content["pairs"][pair] = found
        print(markdown(sheets), flush=True)
    print(markdown([overview(content["pairs"], setting)]))
    if args.output:
        write_atomically(Path(args.output).expanduser(), (json.dumps(content, indent=2) + "\n").encode())
    return 0


def refuse_early(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The pairs and the cases, and whatever is wrong with the options before minutes are spent."""
    timed = args.steps * (WARM_UP + 2 * args.rounds)
    lowest = {"batch_size": 2, "image_size": 1, "classes": 2, "rounds": 1, "steps": 2, "run": timed, "product": 1}
    for name, least in lowest.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    pairs = [">".join(pair) for pair in parse_pairs(args.pairs)]
    cases = list(dict.fromkeys(case.strip() for case in args.cases.split(",")))
    for case in cases:
        if case not in CASES:
            raise UserError(f"--cases: unknown case {case!r}; known: {', '.join(CASES)}")
    method_terms(args.method)
    if args.peer is not None:
        from peer_step import METHODS, Peer

        if args.method not in METHODS:
            raise UserError(f"--peer runs {', '.join(METHODS)}, not {args.method}; give one of them as --method")
        cases = ["peer", *(case for case in cases if case not in ("plain", "peer"))]
        for pair in pairs:
            Peer(args.peer, pair, args.method, args.batch_size, LR, workers=0)
    elif "peer" in cases:
        raise UserError("--cases: peer needs --peer, a checkout of RepDistiller")
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
    for name in dict.fromkeys(name for pair in pairs for name in pair.split(">")):
        TASK.make_network(name, TASK.random_data(2, args.classes, (3, args.image_size, args.image_size)))
    return pairs, cases


# A case, in its own process


def serve(args: argparse.Namespace) -> int:
    """Train the case ``args.child`` on the pair ``args.pairs`` until the input ends."""
    shape = (3, args.image_size, args.image_size)
    train = TASK.random_data(args.batch_size * args.steps, args.classes, shape).train
    data = Data(train, TASK.random_data(2, args.classes, shape).test, "random images")
    teacher, student = make_pair(args.pairs, data)
    # What libraries print must not come between the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        say = partial(print, file=answers, flush=True)
        device = Device.resolve(args.device).target
        served = Served(device, args.batch_size, sys.stdin.readline, lambda answer: say(json.dumps(answer)))
        runs = {"plain": run_plain, "peer": run_peer}
        runs.get(args.child, run_distill)(args, teacher, student, data, served)
    return 0


def run_distill(args: argparse.Namespace, teacher: nn.Module, student: nn.Module, data: Data, served: Served) -> None:
    """What a user calls."""
    options: dict[str, Any] = {"precision": args.precision, **CASES[args.child][1]}
    device = Device.resolve(args.device).target
    with tempfile.TemporaryDirectory() as folder:
        options |= {"teacher_cache": folder if args.child == "cache" else None, "device": args.device}
        # As the other cases, whatever the machine does when this one starts.
        options |= {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
        options |= {"epochs": math.ceil(args.run / args.steps), "batch_size": args.batch_size, "lr": LR}
        distill(student=student, teacher=teacher, method=args.method, data=data, display=served, **options)


def run_plain(args: argparse.Namespace, teacher: nn.Module, student: nn.Module, data: Data, served: Served) -> None:
    """The plain step. An epoch begins with its first batch there and the workers at the next ones, as in the middle of
    a longer one; at its end they have nothing left to do, so that they take no time from others."""
    from plain_step import FourViews, PlainTrainer, make_loader

    keep_freed(False)  # glibc's usual limits, where its own adjustment ends sooner or later
    images = data.train
    loader = make_loader(FourViews(images.images, images.labels, images.mean, images.std), args.batch_size)
    trainer = PlainTrainer(student, teacher, Device.resolve(args.device).target, LR)
    served.begin("", args.run, len(loader), 0)
    for epoch in range(1, args.run):
        trainer.start_epoch()
        batches = iter(loader)
        batch = next(batches)
        served.restart()
        for step in range(1, len(loader) + 1):
            trainer.step(batch[0], batch[1], min(epoch, 240))
            batch = next(batches, None)
            served.advance(epoch, step)
        served.epoch({})


def run_peer(args: argparse.Namespace, teacher: nn.Module, student: nn.Module, data: Data, served: Served) -> None:
    """Another library's loop, which builds networks and data of its own."""
    from peer_step import Peer

    keep_freed(False)
    peer = Peer(args.peer, args.pairs, args.method, args.batch_size, LR)
    served.begin("", args.run, args.steps, 0)
    for epoch in range(1, args.run):
        peer.epoch(epoch, args.steps)
        served.advance(epoch, args.steps)
        served.epoch({})


def make_pair(names: str, data: Data) -> tuple[nn.Module, nn.Module]:
    """Teacher and student with random weights, the teacher's batch norms with statistics of the images."""
    torch.manual_seed(0)
    teacher, student = (TASK.make_network(name, data) for name in names.split(">"))
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        teacher.train()(data.train.images[:64].float() / 127.5 - 1)
    return teacher.eval(), student


# What is measured


@contextlib.contextmanager
def child(argv: Sequence[str], case: str, **options: object) -> Any:
    """A case in a process of its own: a function that gives it a line, and returns its answer.

    ``options`` take the place of those in ``argv``.
    """
    changes = [f"--{name.replace('_', '-')}={value}" for name, value in {**options, "child": case}.items()]
    command = [sys.executable, __file__, *argv, *changes]
    # Nothing that earlier programs have compiled is found: compiling takes as long as it does the first time.
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        pipe = subprocess.PIPE
        # The end of its input ends it.
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:

            def ask(order: str = "go") -> Answer:
                with contextlib.suppress(BrokenPipeError):
                    print(order, file=process.stdin, flush=True)
                line = process.stdout.readline() if process.stdout is not None else ""
                if not line:
                    code = process.wait()
                    raise UserError(f"the process that measures {case} has ended with exit code {code}; see above")
                return dict(json.loads(line))

            yield ask


def measure_pair(
    argv: Sequence[str], args: argparse.Namespace, pair: str, cases: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Every case in turns, the parts of the default step, and the machine's peak, all in the same rounds."""
    macs = count_macs(args, pair)
    precision = Device.resolve(args.device, args.precision).precision
    precisions = {case: CASES[case][1].get("precision", precision) for case in cases}
    measures: dict[str, Callable[[], Any]] = {}
    first: dict[str, list[Answer]] = {}
    with contextlib.ExitStack() as ends:
        for case in cases:
            ask = measures[case] = ends.enter_context(child(argv, case, pairs=pair))
            first[case] = [ask() for _ in range(1 + WARM_UP)]
            if case == "default":
                measures["watch"] = partial(ask, "watch")
            print(f"{pair}: {case} is ready", file=sys.stderr, flush=True)
        for kind in sorted({"fp32", *precisions.values()}):
            measures[f"product in {kind}"] = product(args.product, kind, device)
        samples = interleaved(measures, args.rounds)
    seconds = {kind: min(samples.get(f"product in {kind}", [0.0])) for kind in ("fp32", "bf16")}
    peaks = {kind: 2 * args.product**3 / best for kind, best in seconds.items() if best}
    found: dict[str, Any] = {"cases": {}, "macs": macs, "peak_flops": peaks, "product": args.product}
    for case in cases:
        work = sum(macs.values()) - (macs["teacher"] if case == "cache" else 0)
        figures = case_figures(first[case], samples[case], steps=args.steps)
        reached = 2 * work / figures["step"]["seconds"] / peaks[precisions[case]]
        what = {"what": CASES[case][0], "precision": precisions[case]}
        found["cases"][case] = {**what, **figures, "macs": work, "of_peak": reached}
    if (base := base_of(cases)) is not None:
        beside = found["cases"][base]["samples"]
        for one in found["cases"].values():
            one["faster"] = [other / own for other, own in zip(beside, one["samples"], strict=True)]
    if "default" in cases:
        found |= {"recorded": samples["watch"], "outside": median(map(outside, samples["watch"]))}
        found |= {"run": args.run, "compiled": resolve_compile(None, args.run, device)[0]}
    return found


def measure_memory(
    argv: Sequence[str], args: argparse.Namespace, pair: str, cases: Sequence[str]
) -> dict[str, dict[str, dict[str, int]]]:
    """For each batch size and each of plain and default the bytes in use before the first step, and the peak of steps
    after those in which networks are compiled."""
    found: dict[str, dict[str, dict[str, int]]] = {size: {} for size in args.memory.split(",")}
    for size, by_case in found.items():
        for case in [case for case in ("plain", "default") if case in cases]:
            with child(argv, case, pairs=pair, batch_size=size) as ask:
                before, *_, peak = (ask()["peak"] for _ in range(2 + WARM_UP))
            by_case[case] = {"before": before, "peak": peak}
    return found


def count_macs(args: argparse.Namespace, pair: str) -> dict[str, int]:
    """Multiply-adds of each part of a step, counted on the step as it is without any preparation."""
    teacher, student = make_pair(pair, TASK.random_data(2, args.classes, (3, args.image_size, args.image_size)))
    options = {name: getattr(args, name) for name in ("method", "batch_size", "image_size", "device")}
    options |= {"num_classes": args.classes, "num_samples": args.batch_size * args.steps, "depth": 0, "rounds": 0}
    counted = profile(student=student, teacher=teacher, precision="fp32", **options)
    return {"teacher": 0, **{part: cost.macs for part, cost in counted.step.parts.items()}}


def product(size: int, precision: str, device: torch.device) -> Callable[[], float]:
    """A measurement of a matrix product, size x size x size: its seconds, the best of a few."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    multiply = partial(torch.mm, one, other, out=torch.empty_like(one))
    clock = Clock(device)
    repeats = clock.repeats(multiply)
    return lambda: min(clock.timed(multiply, repeats) for _ in range(3))


def describe_machine(device: torch.device) -> str:
    """What the device is, in words that name the kind and not the machine."""
    name = device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(device)
    elif name == "cpu":
        bf16 = "-BF16" if Device.resolve(device).precision == "bf16" else ""
        name = f"{torch.backends.cpu.get_cpu_capability()}{bf16}, {torch.get_num_threads()} threads"
    cores = f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores"
    return f"{cores}, {name}, torch {torch.__version__.partition('+')[0]}"


# Figures


def case_figures(first: Sequence[Answer], epochs: Sequence[Answer], *, steps: int) -> dict[str, Any]:
    """What follows from a case's answers: ``first``, when it was ready and the epochs in which things are made ready,
    and the ``epochs`` that count, of so many ``steps``."""
    samples = [epoch["seconds"] / steps for epoch in epochs]
    usual = median(samples)
    ready, *warm_up = first
    return {
        "samples": samples,
        "step": asdict(summary(samples)),
        "images_per_second": epochs[0]["images"] / steps / usual,
        "ready_seconds": ready["ready"],
        # Also what the first steps take beyond what the same steps take later.
        "start_seconds": ready["ready"] + sum(epoch["seconds"] - steps * usual for epoch in warm_up),
        "peak_bytes": max(epoch["peak"] for epoch in epochs),
    }


def outside(epoch: Answer) -> float:
    """The share of a recorded epoch that is neither the teacher's nor the student's forward or backward pass."""
    return 1 - sum(sum(epoch["parts"].get(part, {}).values()) for part in ("teacher", "student")) / epoch["seconds"]


# Tables


def base_of(cases: Sequence[str]) -> str | None:
    """What the others are compared with."""
    return next((case for case in ("plain", "peer") if case in cases), None)


def ranged(values: Sequence[float]) -> str:
    """``4.20 x (4.10 to 4.31)``: median and range."""
    middle, low, high = (digits(value) for value in (median(values), min(values), max(values)))
    return f"{middle} x ({low} to {high})"


def overview(pairs: Mapping[str, Any], setting: str) -> Table:
    """A row for each pair, as in pckd/profiling/README.md: plain and default, how much faster than plain each case is,
    how much of the machine's peak is reached, and what is outside the networks."""
    cases = next(iter(pairs.values()))["cases"]
    base = base_of(list(cases))
    shown = [case for case in ("plain", "peer", "default") if case in cases]
    faster = [case for case in cases if case != base] if base else []
    header = ["teacher > student", *shown, *(f"{case} is faster" for case in faster)]
    header += [*(f"of the peak: {case}" for case in reversed(shown)), "outside the networks"]
    rows = []
    for pair, found in pairs.items():
        row = [duration(found["cases"][case]["step"]["seconds"]) for case in shown]
        row += [ranged(found["cases"][case]["faster"]) for case in faster]
        row += [share(found["cases"][case]["of_peak"]) for case in reversed(shown)]
        rows.append([pair.replace(">", " > "), *row, share(found.get("outside"))])
    return Table(f"A step by case, medians, ratios with their range: {setting}", header, rows)


def cases_sheet(found: Mapping[str, Any], title: str) -> Table:
    base = base_of(list(found["cases"])) or "plain"
    header = ["case", "networks in", "step, median (quartiles)", "images/s", f"{base} / case, median (range)"]
    header += ["of the peak", "ready after", "start in all", "peak memory"]
    rows = []
    for case, one in found["cases"].items():
        row = [case, one["precision"], spread(*one["step"].values()), f"{one['images_per_second']:.0f}"]
        row += [ranged(one["faster"]) if "faster" in one else NONE, share(one["of_peak"])]
        row += [duration(one["ready_seconds"]), duration(one["start_seconds"]), memory(one["peak_bytes"])]
        rows.append(row)
    peaks = ", ".join(f"{digits(flops / 1e9)} GFLOP/s in {kind}" for kind, flops in found["peak_flops"].items())
    macs = found["macs"]
    notes = [
        *(f"{case}: {one['what']}." for case, one in found["cases"].items()),
        "A step is taken with its data. Ready after: from the call to the first step. Start in all: that, and what the "
        "first steps take more than later ones. Peak memory: of the steps; on CUDA of the device's tensors, elsewhere "
        "resident memory of the case's process, without the two workers of plain and peer.",
        f"The peak is the best matrix product of {found['product']} x {found['product']} in the same rounds: {peaks}. "
        f"A step has {amount(sum(macs.values()))} multiply-adds, {amount(macs['teacher'])} of them the teacher's, "
        "which cache leaves out; each is two operations.",
    ]
    if "compiled" in found:
        does = "compiles, which takes the start of default less that of uncompiled" if found["compiled"] else "does not"
        notes.append(f"Compiling: in a run of {found['run']:,} steps, default {does}.")
    return Table(title, header, rows, notes)


def memory_sheet(found: Mapping[str, Mapping[str, Mapping[str, int]]], pair: str) -> Table:
    header = [f"{case}: {what}" for case in next(iter(found.values())) for what in ("before the first step", "peak")]
    rows = [[size, *(memory(n) for one in cases.values() for n in one.values())] for size, cases in found.items()]
    return Table(f"{pair.replace('>', ' > ')}: memory by images a step", ["images a step", *header], rows)


if __name__ == "__main__":
    sys.exit(main())

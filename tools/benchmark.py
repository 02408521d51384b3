#!/usr/bin/env python
"""Methods, or an ablation's cases, side by side: pairs of networks and seeds on one data set, and tables of them.

python tools/benchmark.py --methods vanilla,kd,pckd --pairs 'resnet20>resnet8,resnet20>vgg8' --output runs/a
python tools/benchmark.py --preset quick --output runs/quick        # less than an hour on two cores
python tools/benchmark.py --preset quick --ablation pckd --output runs/parts
python tools/benchmark.py --matrix                                  # which method works on which pair of families

Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pckd import load_data
from pckd.cli import Parser, run_tool
from pckd.comparison.cases import ABLATIONS, GRIDS, Case, ablation_cases, method_cases, scheduled
from pckd.comparison.ledger import MARKDOWN, Ledger
from pckd.comparison.matrix import FAMILIES, matrix
from pckd.comparison.paper import USUAL
from pckd.comparison.plan import (
    SETTINGS,
    Run,
    check_settings,
    make_runs,
    parse_pairs,
    parse_seeds,
    parse_weights,
    refuse_early,
)
from pckd.comparison.presets import PRESETS, preset
from pckd.comparison.runs import fingerprints_of, obtain_teachers, read_finished, run_all, run_one_for_parent
from pckd.comparison.sheets import overview
from pckd.comparison.statistics import t_quantile
from pckd.display import make_display, print_table
from pckd.engine.record import Lock
from registry import UserError


def make_parser() -> Parser:
    parser = Parser("Run methods side by side on pairs of networks.")
    add = parser.add_argument
    add("--preset", choices=PRESETS, help="defaults for the options below: the paper's whole table, or one to try")
    add("--methods", metavar="A,B,...", help="methods to run, or all (default: all; of an ablation its references)")
    add("--pairs", metavar="T>S,...", help="teachers and students (default: --teacher and --student)")
    add("--student", default="resnet8", metavar="NAME", help="backbone to train")
    add("--teacher", default="resnet20", metavar="NAME", help="backbone to learn from")
    add(
        "--teacher-weights",
        metavar="FILE|NAME=FILE,...",
        help="weights of the teachers; others are trained first",
    )
    add("--teacher-epochs", type=int, metavar="N", help="length of their training (default: --epochs)")
    add("--teacher-lr", type=float, help="their learning rate at the start (default: the recipe's)")
    add("--ablation", choices=ABLATIONS, help="variants of --base: its parts, difficulty and scheduler, or centers")
    add("--base", default="pckd", metavar="METHOD", help="what the ablation changes")
    add("--grid", choices=GRIDS, default="one", help="of parts: each left out and each alone, or all combinations")
    add("--seeds", default="0", metavar="0,1,...", help="seeds to run each case with")
    add("--dataset", default="shapes", metavar="NAME", help="data set")
    add("--data-root", metavar="DIR", help="where the data set's files are")
    add("--limit-train", type=int, metavar="N", help="train on N images, always the same ones")
    add("--limit-test", type=int, metavar="N", help="measure on N images, always the same ones")
    add("--val-fraction", type=float, default=0.0, help="measure on this share of the training set instead")
    add("--epochs", type=int, default=240, help="length of each run")
    add("--batch-size", type=int, default=64, help="images a step")
    add("--lr", type=float, help="learning rate at the start (default: the recipe's)")
    add("--views", type=int, choices=(1, 2, 3, 4), help="rotations of each image (default: what the method asks for)")
    add(
        "--view-statistics",
        choices=("joint", "own"),
        default=USUAL["view_statistics"],
        help="of the student's batch norms",
    )
    add("--no-flip", dest="flip", action="store_false", help="no random horizontal flips in training")
    add("--difficulty", default=USUAL["difficulty"], metavar="NAME", help="how hard a sample is")
    add("--scheduler", metavar="NAME", help="from difficulty to weight, in methods that preview (default: preview)")
    add("--centers", default=USUAL["centers"], metavar="NAME", help="what the category centers are")
    add("--teacher-cache", metavar="DIR", help="keep the teacher's answers there, for all runs")
    add("--view-pool", type=int, metavar="P", help="augment each image in P ways")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: where it repays itself)")
    add("--num-workers", type=int, default=0, help="processes that read a streamed data set")
    add("--report-difficulty", action="store_true", help="after each epoch ask every difficulty metric")
    add("--report-gradients", action="store_true", help="after each epoch ask how the terms' gradients lie")
    add("--reference", metavar="LABEL", help="what the others are compared with (default: kd)")
    add("--confidence", type=float, default=0.95, help="of the intervals of differences")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once, each a process with its share of the cores")
    add("--output", metavar="DIR", help="folder for the runs and benchmark.json, .csv, .md; done runs are kept")
    add("--matrix", action="store_true", help="only say which method works on which pair of families")
    add("--one-run", help=argparse.SUPPRESS)
    parser.add_common()
    return parser


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """Methods, or an ablation's cases and what methods are asked for beside them."""
    if args.ablation is None:
        return method_cases("all" if args.methods is None else args.methods)
    cases = ablation_cases(args.ablation, base=args.base, grid=args.grid, epochs=args.epochs, views=args.views)
    known = {case.label for case in cases}
    more = [] if args.methods is None else method_cases(args.methods)
    return cases + [case for case in more if case.label not in known]


def run(args: argparse.Namespace) -> int:
    if args.one_run is not None:
        return run_one_for_parent(args.one_run)
    cases = scheduled(chosen_cases(args), args.scheduler)
    if args.matrix:
        print_table(["method", *FAMILIES], matrix(cases), header=True)
        return 0
    if not args.output:
        raise UserError("--output is missing: give the folder for the runs")
    root = Path(args.output).expanduser()
    runs, reference = planned(args, cases, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {root}: {error.strerror or error}; choose another --output") from None
    with Lock(root):
        return compare(args, runs, reference, root)


def planned(args: argparse.Namespace, cases: Sequence[Case], root: Path) -> tuple[list[Run], str]:
    """All runs, and the label of the reference.

    Raises:
        UserError: an option that no run can use.
    """
    pairs = parse_pairs(f"{args.teacher}>{args.student}" if args.pairs is None else args.pairs)
    seeds = parse_seeds(args.seeds)
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {args.jobs}")
    t_quantile(args.confidence, 1)
    labels = [case.label for case in cases]
    if args.reference is not None and args.reference not in labels:
        raise UserError(f"--reference {args.reference!r} is no row of the table: {', '.join(labels)}")
    settings = {**{name: getattr(args, name) for name in SETTINGS}, "data": args.dataset}
    check_settings(settings, seeds)
    weights = parse_weights(args.teacher_weights, [teacher for teacher, _ in pairs])
    return make_runs(pairs, cases, seeds, settings, weights, root), args.reference or "kd"


def compare(args: argparse.Namespace, runs: Sequence[Run], reference: str, root: Path) -> int:
    """Run what is not done, and write the tables after each run; 1 if one failed."""
    display = make_display()
    limits = {name: getattr(args, name) for name in ("limit_train", "limit_test", "val_fraction")}
    data = load_data(args.dataset, root=args.data_root, **limits)
    refused, notes = refuse_early(runs, data)
    tried = [run for run in runs if (run.pair, run.case.label) not in refused]
    now = fingerprints_of(runs, data)
    done = {run: record for run in tried if (record := read_finished(run, data, now[run.teacher])) is not None}
    hidden = ("output", "preset", "matrix", "one_run", "list", "debug")
    protocol = {name: value for name, value in vars(args).items() if name not in hidden}
    ledger = Ledger(root, protocol, tried, reference=reference, confidence=args.confidence, notes=notes)
    for (pair, label), reason in refused.items():
        ledger.refuse(next(r for r in runs if (r.pair, r.case.label) == (pair, label)), reason, failed=False)
        display.note(f"{pair} {label}: {reason}")
    for note in notes:
        display.note(note)
    for finished, record in done.items():
        ledger.add(finished, record)
    left = [run for run in tried if run not in done]
    display.note(f"{len(tried)} runs, {len(done)} of them done")
    ledger.write()

    def ended(run: Run, reason: str | None, seconds: float) -> None:
        record = read_finished(run, data, now[run.teacher]) if reason is None else None
        if record is None:
            ledger.refuse(run, reason or "it left no result", failed=True)
            display.note(f"{run.title}: failed after {seconds:.0f} s: {reason}")
        else:
            ledger.add(run, record)
            accuracies = f"{record['last_top1']:.2f} % top-1 (best {record['best_top1']:.2f})"
            display.note(f"{run.title}: {accuracies}, {seconds:.0f} s")
        ledger.write()

    failed = obtain_teachers(left, data, display, now)
    for run in done:
        # A teacher that had to be trained anew is another one than that of the runs that are done.
        read_finished(run, data, now[run.teacher])
    for run in left:
        if run.teacher in failed:
            ended(run, failed[run.teacher], 0.0)
    plugins = [part for plugin in args.plugin for part in ("--plugin", plugin)]
    command = [sys.executable, str(Path(__file__).resolve()), *plugins, *["--debug"] * args.debug, "--one-run"]
    left = [run for run in left if run.teacher not in failed]
    run_all(left, ended, jobs=args.jobs, command=command, display=display)
    content: dict[str, Any] = ledger.write()
    print_table(*overview(content), header=True)
    display.note(f"{content['done']} of {content['runs']} runs; written to {root / MARKDOWN}")
    return 1 if ledger.failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    early = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    early.add_argument("--preset", choices=PRESETS)
    early.add_argument("--ablation")
    try:
        known = early.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        known = argparse.Namespace(preset=None)  # the whole parser says what is wrong
    if known.preset is not None:
        # An ablation has methods of its own.
        left_out = {"methods"} if known.ablation is not None else set()
        parser.set_defaults(**{k: value for k, value in preset(known.preset).items() if k not in left_out})
    return run_tool(parser, run, argv, interrupted=lambda args: "; the same command goes on from there")


if __name__ == "__main__":
    sys.exit(main())

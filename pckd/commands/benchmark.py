"""Methods, or an ablation's variants of one, side by side: pairs of networks, seeds, and tables of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_zoo import usual_teacher
from pckd import load_data
from pckd.arguments import ARGUMENTS, add_arguments
from pckd.cli import Parser, run_tool
from pckd.comparison.jobs import (
    DEFAULTS,
    Job,
    check_settings,
    make_jobs,
    parse_pairs,
    parse_seeds,
    parse_weights,
    refuse_early,
    settings_of,
)
from pckd.comparison.matrix import WORKS, families_of, matrix
from pckd.comparison.paper import other_figures
from pckd.comparison.presets import PRESETS, preset
from pckd.comparison.results import MARKDOWN, Results
from pckd.comparison.runner import fingerprints_of, finished, obtain_teachers, run_all, run_one_for_parent
from pckd.comparison.statistics import t_quantile
from pckd.comparison.summary import overview
from pckd.comparison.variants import ABLATIONS, GRIDS, Variant, ablation_variants, method_variants, scheduled
from pckd.display import make_display
from pckd.engine.record import Lock
from pckd.runs import TASK, title_of
from pckd.tables import Table, print_tables
from registry import DATASETS, TASKS, UserError, options_of, parse

UNSAID = (
    *("student_weights", "teacher_weights", "method", "seed", "milestones", "lr_decay"),
    *("device", "precision", "debug", "output", "resume", "checkpoint_every", "profile"),
)
"""Arguments of a run that have no flag here, or another one."""


def make_parser() -> Parser:
    parser = Parser("Run methods side by side on pairs of networks.")
    group = parser.add_argument_group("comparison")
    add = group.add_argument
    add("--preset", choices=PRESETS, help="defaults for the options below: the paper's whole table, or one to try")
    add("--methods", metavar="A,B,...", help="methods to run, or all (default: all; of an ablation its references)")
    add("--pairs", metavar="T>S,...", help="teachers and students (default: --teacher and --student)")
    add("--teacher-weights", metavar="FILE|NAME=FILE,...", help="weights of the teachers; others are trained first")
    add("--student-weights", metavar="FILE|NAME=FILE,...", help="weights that the students start with")
    add("--ablation", choices=ABLATIONS, help="variants of --base: its parts, difficulty and scheduler, or centers")
    add("--base", default="pckd", metavar="METHOD", help="what the ablation changes")
    add("--grid", choices=GRIDS, default="one", help="of parts: each left out and each alone, or all combinations")
    add("--seeds", default="0", metavar="0,1,...", help="seeds to run each of them with")
    add("--reference", metavar="LABEL", help="what the others are compared with (default: kd)")
    add("--confidence", type=float, default=0.95, help="of the intervals of differences")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once, each a process with its share of the cores")
    add("--output", metavar="DIR", help="folder for the runs and benchmark.json, .csv, .md; done runs are kept")
    add("--matrix", action="store_true", help="only say which method works on which pair of families")
    add("--one-run", help=argparse.SUPPRESS)
    defaults = {**DEFAULTS, "student": "resnet8", "data": "shapes"}
    names = [name for name in ARGUMENTS if name not in UNSAID]
    groups = add_arguments(parser, names, defaults, data="data set")
    parser.add_common(groups["speed"])
    return parser


def task_of(args: argparse.Namespace) -> str:
    """What is learned, and by default what the data set is for."""
    return str(args.task or DATASETS.facts(parse(args.dataset)[0]).get("task", TASK))


def chosen_variants(args: argparse.Namespace) -> list[Variant]:
    """Methods, or an ablation's variants and what methods are asked for beside them."""
    if args.ablation is None:
        return method_variants("all" if args.methods is None else args.methods)
    # Where an image has one view, no variant is about their number.
    views = args.views if "views" in options_of(TASKS.get(parse(task_of(args))[0])) else 1
    variants = ablation_variants(args.ablation, base=args.base, grid=args.grid, epochs=args.epochs, views=views)
    known = {variant.label for variant in variants}
    more = [] if args.methods is None else method_variants(args.methods)
    return variants + [variant for variant in more if variant.label not in known]


def run(args: argparse.Namespace) -> int:
    if args.one_run is not None:
        return run_one_for_parent(args.one_run)
    variants = scheduled(chosen_variants(args), args.scheduler)
    if args.matrix:
        task = task_of(args)
        header, rows = ["method", *families_of(task)], matrix(variants, task)
        if args.methods in (None, "all"):
            # Those that serve other tasks, and those that need options.
            rows = [row for row in rows if WORKS in row]
        print_tables([Table("", header, rows, numbers=False)])
        return 0
    if not args.output:
        raise UserError("--output is missing: give the folder for the runs")
    root = Path(args.output).expanduser()
    jobs, reference = planned(args, variants, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {root}: {error.strerror or error}; choose another --output") from None
    with Lock(root):
        return compare(args, jobs, reference, root)


def planned(args: argparse.Namespace, variants: Sequence[Variant], root: Path) -> tuple[list[Job], str]:
    """All runs, and the label of the reference."""
    if isinstance(args.teacher, list):
        raise UserError("--teacher is given several times, and a row has one: give --pairs TEACHER>STUDENT,... instead")
    pairs = parse_pairs(
        f"{args.teacher or usual_teacher(args.student)}>{args.student}" if args.pairs is None else args.pairs
    )
    seeds = parse_seeds(args.seeds)
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {args.jobs}")
    t_quantile(args.confidence, 1)
    labels = [variant.label for variant in variants]
    if args.reference is not None and args.reference not in labels:
        raise UserError(f"--reference {args.reference!r} is no row of the table: {', '.join(labels)}")
    settings = {**settings_of(vars(args)), "data": args.dataset}
    check_settings(settings, seeds)
    weights = parse_weights(args.teacher_weights, [teacher for teacher, _ in pairs])
    if args.teacher_classes is not None and not all(teacher in weights for teacher, _ in pairs):
        raise UserError("--teacher-classes are those of the teachers' files: give --teacher-weights")
    starts = parse_weights(args.student_weights, [student for _, student in pairs], "student")
    return make_jobs(pairs, variants, seeds, settings, weights, root, starts), args.reference or "kd"


def compare(args: argparse.Namespace, jobs: Sequence[Job], reference: str, root: Path) -> int:
    """Run what is not done, and write the tables after each run; 1 if one failed."""
    display = make_display()
    names = ("limit_train", "limit_test", "val_fraction", "on_bad_image")
    data = load_data(args.dataset, root=args.data_root, **{name: getattr(args, name) for name in names})
    refused, notes = refuse_early(jobs, data)
    tried = [job for job in jobs if job.row not in refused]
    now = fingerprints_of(jobs, data)
    done = {job: run for job in tried if (run := finished(job, data, now[job.teacher])) is not None}
    hidden = ("output", "preset", "matrix", "one_run", "list", "debug")
    protocol = {name: value for name, value in vars(args).items() if name not in hidden}
    results = Results(root, protocol, tried, reference=reference, confidence=args.confidence, notes=notes)
    for row, reason in refused.items():
        results.refuse(next(job for job in jobs if job.row == row), reason, failed=False)
        display.note(f"{' '.join(row)}: {reason}")
    for note in notes:
        display.note(note)
    for job, run in done.items():
        results.add(job, run)
    left = [job for job in tried if job not in done]
    display.note(f"{len(tried)} runs, {len(done)} of them done")
    results.write()

    def ended(job: Job, reason: str | None, seconds: float) -> None:
        run = finished(job, data, now[job.teacher]) if reason is None else None
        if run is None:
            results.refuse(job, reason or "it left no result", failed=True)
            display.note(f"{job.title}: failed after {seconds:.0f} s: {reason}")
        else:
            results.add(job, run)
            reached = f"{run.last:.2f} % {title_of(run.metric)} (best {run.best:.2f})"
            display.note(f"{job.title}: {reached}, {seconds:.0f} s")
        results.write()

    failed = obtain_teachers(left, data, display, now)
    for job in done:
        # A teacher that had to be trained anew is another one than that of the runs that are done.
        finished(job, data, now[job.teacher])
    for job in left:
        if job.teacher in failed:
            ended(job, failed[job.teacher], 0.0)
    plugins = [part for plugin in args.plugin for part in ("--plugin", plugin)]
    command = [sys.executable, str(Path(__file__).resolve()), *plugins, *["--debug"] * args.debug, "--one-run"]
    left = [job for job in left if job.teacher not in failed]
    run_all(left, ended, at_once=args.jobs, command=command, display=display)
    content: dict[str, Any] = results.write()
    print_tables([overview(content)])
    for (teacher, student), reported in other_figures(
        content["protocol"], {(j.teacher, j.student) for j in jobs}
    ).items():
        display.note(f"{teacher}>{student}, by other papers: {reported}")
    display.note(f"{content['done']} of {content['runs']} runs; written to {root / MARKDOWN}")
    return 1 if results.failures else 0


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

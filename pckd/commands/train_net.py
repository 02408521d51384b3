"""Distill a student: names in, a trained network out."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from model_zoo import recipe_for
from pckd import distill, plots
from pckd.arguments import ARGUMENTS, add_arguments
from pckd.cli import LISTS, Parser, run_tool
from pckd.display import Display, Silent, make_display
from pckd.engine.cache import check_caches
from pckd.engine.ranks import launched
from pckd.preflight import check
from pckd.recipes import recipe
from pckd.runs import title_of
from pckd.tables import Table, fixed, print_tables
from pckd.terms import teachers_of
from pckd.trackers import track
from registry import BACKBONES, DATASETS, TASKS, UserError, options_of, parse

__all__ = ["LISTS", "main"]

DEFAULTS = options_of(distill)


UNSAID = ("milestones", "lr_decay", "device", "precision", "debug")
"""Arguments that have no flag here, or one that all tools have."""


def make_parser() -> Parser:
    parser = Parser("Distill a student from a frozen teacher.")
    # Where these are not given, they are the demonstration's or the recipe's.
    defaults = {**DEFAULTS, **dict.fromkeys(("student", "data", "epochs", "batch_size"))}
    groups = add_arguments(parser, [name for name in ARGUMENTS if name not in UNSAID], defaults)
    add = groups["output"].add_argument
    groups["schedule"].add_argument("--recipe", metavar="NAME", help="sets whatever is not given here")
    add(
        "--track",
        action="append",
        default=[],
        metavar="NAME",
        help="keep each epoch's numbers for another program, in OUTPUT/NAME or its option folder; repeatable",
    )
    add("--tensorboard", action="append_const", dest="track", const="tensorboard", help="--track tensorboard")
    add = groups["reports"].add_argument
    add("--verbose", action="store_true", help="on a terminal, show every number of an epoch, not the main ones alone")
    add("--check-cache", action="store_true", help="read every answer of the caches in --teacher-cache, and stop")
    add("--check", action="store_true", help="read every image, hold all to its contract, take one step, and stop")
    parser.add_common(groups["speed"])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    return run_tool(parser, partial(run, given=partial(parser.given, argv)), argv, interrupted=_how_to_continue)


def _how_to_continue(args: argparse.Namespace) -> str:
    return f"; continue with the same command and --resume (--output {args.output})" if args.output else ""


def run(args: argparse.Namespace, given: Callable[[], Collection[str]] = tuple) -> int:
    """
    Args:
        given: says the names of the options that the command line has.
    """
    if args.recipe:
        kept = given()
        for name, value in recipe(args.recipe).items():
            if (name := "dataset" if name == "data" else name) not in kept:
                setattr(args, name, value)
    if args.check_cache:
        if not args.teacher_cache:
            raise UserError("--check-cache needs --teacher-cache, the folder of the caches")
        return int(check_caches(args.teacher_cache, partial(print, flush=True)) > 0)
    if not args.student:
        raise UserError("--student is missing; try --student resnet8x4, or --list backbones")
    if args.resume and not args.output:
        raise UserError("--resume needs the --output folder of the run to continue")
    first = launched().first
    display: Display = make_display(verbose=args.verbose) if first else Silent()
    told = display
    for spec in dict.fromkeys(args.track):
        tracker = track(spec, args.output, told)
        # The first process alone writes, and --check writes nothing.
        told = tracker if first and not args.check else told
    args.task = args.task or BACKBONES.facts(parse(args.student)[0]).get("task")
    demonstration = args.dataset is None
    task = args.task or "classification"
    if not demonstration:
        task = args.task or DATASETS.facts(parse(args.dataset)[0]).get("task", task)
    usual = TASKS.get(parse(task)[0]).demonstration
    if demonstration and not usual:
        raise UserError(f"--dataset is missing: the task {task} has no data of its own")
    dataset = usual["data"] if demonstration else args.dataset
    quick = DATASETS.facts(parse(dataset)[0]).get("drawn")
    if demonstration:
        called = Path(sys.argv[0]).name
        called = "python tools/train_net.py" if called.endswith(".py") else called
        display.note(
            f"No --dataset given: this is the built-in demonstration on drawn data ({dataset}), "
            "not the paper's setting.\n"
            f"The paper's: {called} --student resnet8x4 --dataset cifar100 --output runs/pckd"
        )
    if quick:
        # Drawn data is for trying things out: what is not given is what the demonstration takes.
        # Its learning rate is that of SGD.
        for option in usual.keys() - {"data", *(("lr",) if args.optimizer else ())}:
            if getattr(args, option) is None:
                setattr(args, option, usual[option])
    options = {name: getattr(args, name) for name in DEFAULTS if hasattr(args, name)}
    options.update(data=dataset, display=told)
    if isinstance(args.teacher_weights, list):
        options["teacher_weights"] = [None if file in ("", "-") else file for file in args.teacher_weights]
    # The recipe of a pair is that of its student.
    teacher = None if isinstance(args.teacher, list) else args.teacher
    usual_recipe = recipe_for(args.student, teacher, TASKS.get(parse(task)[0]).recipe)
    for option in ("epochs", "batch_size"):
        if getattr(args, option) is None:
            options[option] = getattr(usual_recipe, option)
    if args.check:
        check(**options)
        return 0
    pictures = TASKS.get(parse(task)[0]).pictures
    if demonstration and pictures and not args.output:
        options["output"] = args.output = tempfile.mkdtemp(prefix="pckd-")
    result = distill(**options)
    record, metric = result.record, result.record["metric"]
    title, taught = title_of(metric), record[f"teacher_{metric}"]
    named = " + ".join(map(str, teachers_of(record["teacher"])))
    teacher = "" if taught is None else f" (teacher {named}: {taught:.2f} %)"
    others = "".join(f", {title_of(name)} {record[f'last_{name}']:.2f} %" for name in record["columns"])
    speed = f"{result.images_per_second:.0f} images/s" if result.images_per_second else "nothing left to train"
    display.note(
        f"{args.student} by {args.method}: {record[f'last_{metric}']:.2f} % {title} after the last epoch, "
        f"best {record[f'best_{metric}']:.2f} %{others}{teacher}; "
        f"{speed} on {record['device']} in {record['precision']}"
    )
    by_class = result.history[-1].get("by_class")
    if first and by_class:
        rows = [[name, fixed(value)] for name, value in by_class.items()]
        print_tables([Table(f"{title} by class", ("class", title), rows)])
    if args.output:
        if first and pictures:
            draw_pictures(pictures, Path(args.output), display)
        display.note(f"written to {args.output}")
    return 0


def draw_pictures(kinds: Sequence[str], folder: Path, display: Display) -> None:
    """Draw what the student has learned into its run folder; says why where that cannot be."""
    for kind in kinds:
        try:
            plots.plot(kind, [folder], folder / f"{kind}.png")
        except UserError as error:
            display.note(f"no picture {kind}: {error}")

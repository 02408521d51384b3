"""What training costs: FLOPs, memory and time of two networks, of each loss term, and of a step. Needs no data."""

from __future__ import annotations

import argparse
import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pckd import profile
from pckd.arguments import Several
from pckd.cli import Parser, run_tool
from pckd.profiling import Comparison, Profile, compare, compare_pairs, plot
from pckd.profiling.picture import require_matplotlib
from pckd.profiling.render import comparison_tables, pairs_tables, profile_tables
from pckd.tables import markdown, print_tables
from registry import UserError, split_specs
from registry.files import write_atomically

SIDE_BY_SIDE = "kd,pckd,pckd@1"
"""What --pairs compares where --compare is not given."""

OPTIONS = [name for name in inspect.signature(profile).parameters if name not in ("student", "teacher", "method")]


def make_parser() -> Parser:
    defaults = {name: p.default for name, p in inspect.signature(profile).parameters.items()}
    parser = Parser("Measure what training costs, on random weights and images.")
    add = parser.add_argument
    add("--student", metavar="NAME", help="backbone to train")
    usual = "backbone to learn from; the student's usual one by default; repeat it for several"
    add("--teacher", metavar="NAME", action=Several, help=usual)
    add("--method", default=defaults["method"], metavar="NAME", help="what to distill")
    add("--task", metavar="NAME", help="what is learned (default: what the data set is for, or classification)")
    add("--dataset", dest="data", metavar="NAME", help="data set to take a step on (default: random images)")
    add("--batch-size", type=int, default=defaults["batch_size"], help="images a step")
    add("--views", type=int, choices=(1, 2, 3, 4), help="rotations of each image (default: what the method asks for)")
    add("--image-size", type=int, default=defaults["image_size"], help="height and width in pixels")
    add("--in-channels", type=int, default=defaults["in_channels"], help="channels of the images")
    add("--num-classes", type=int, default=defaults["num_classes"], help="classes of the networks")
    add("--num-samples", type=int, default=defaults["num_samples"], help="size of the training set, for memory banks")
    add("--difficulty", default=defaults["difficulty"], metavar="NAME", help="how hard a sample is")
    add("--scheduler", metavar="NAME", help="from difficulty to weight (default: preview, where the method previews)")
    add("--centers", default=defaults["centers"], metavar="NAME", help="what the category centers are")
    add("--depth", type=int, default=defaults["depth"], help="of the tables of modules; 0 is the networks alone")
    add("--rounds", type=int, default=defaults["rounds"], help="of every timing; 0 times nothing")
    add("--seed", type=int, default=defaults["seed"], help="of weights and images")
    add("--compare", metavar="NAME,...", help="methods side by side, with vanilla and kd; NAME@1: with one view")
    add("--pairs", choices=("paper",), help=f"every pair of the PCKD paper in a table (compares {SIDE_BY_SIDE})")
    add("--json", metavar="FILE", help="write everything as JSON")
    add("--markdown", metavar="FILE", help="write the tables in Markdown")
    add("--plot", metavar="FILE.png", help="draw the step as stacked bars")
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    refuse_early(args)
    options = {name: getattr(args, name) for name in OPTIONS}
    methods = split_specs(args.compare or SIDE_BY_SIDE, ",")
    drawn: Profile | Comparison | None = None
    if args.pairs:
        pairs = compare_pairs(methods, **options)
        tables = pairs_tables(pairs)
        content: dict[str, Any] = {"pairs": {label: comparison.as_dict() for label, comparison in pairs.items()}}
    elif args.compare:
        drawn = compare(methods, student=args.student, teacher=args.teacher, **options)
        tables, content = comparison_tables(drawn), drawn.as_dict()
    else:
        drawn = profile(student=args.student, teacher=args.teacher, method=args.method, **options)
        tables, content = profile_tables(drawn), drawn.as_dict()
    print_tables(tables)
    if args.json:
        write_atomically(Path(args.json).expanduser(), (json.dumps(content, indent=2) + "\n").encode())
    if args.markdown:
        write_atomically(Path(args.markdown).expanduser(), markdown(tables).encode())
    if args.plot and drawn is not None:
        plot(drawn, args.plot)
    return 0


def refuse_early(args: argparse.Namespace) -> None:
    """Say what cannot work before minutes are spent."""
    if bool(args.student) == bool(args.pairs):
        raise UserError("give either --student (try --student resnet8x4, or --list backbones) or --pairs paper")
    if args.pairs and (args.teacher or args.plot):
        raise UserError("--pairs goes without --teacher and --plot: those are about one pair")
    if args.plot:
        if not args.rounds:
            raise UserError("--plot needs timings: --rounds of at least 1")
        require_matplotlib()
    if not -(2**63) <= args.seed < 2**63:
        raise UserError(f"--seed must have 64 bits, and {args.seed} has more")
    for file in (args.json, args.markdown, args.plot):
        if file and not os.path.isdir(Path(file).expanduser().parent):
            raise UserError(f"{file}: there is no folder {Path(file).expanduser().parent}")
        if file and os.path.isdir(Path(file).expanduser()):
            raise UserError(f"{file}: is a folder; give the name of a file")

"""Pictures of what runs and benchmarks have written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pckd.cli import Parser, run_tool
from pckd.plots import KINDS, plot, plot_all
from registry import UserError

ALL = "all"


class PlotParser(Parser):
    """Takes the folders before, between and behind the options."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)


def make_parser() -> Parser:
    parser = PlotParser("Draw what runs and benchmarks have written.")
    add = parser.add_argument
    # Neither is required by the parser, so that --list goes without them.
    kinds = "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    add("kind", nargs="?", choices=(*KINDS, ALL), metavar="KIND", help=f"{kinds}; {ALL}: all that the folders allow")
    add("folders", nargs="*", metavar="FOLDER", help="of runs (train_net.py --output), or of benchmark.py")
    add("--output", metavar="FILE", help=f"the picture, named after its format (.png, .svg, ...); with {ALL}, a folder")
    add("--teacher-weights", metavar="FILE", help="where networks are shown and the run does not name the file")
    add("--data-root", metavar="DIR", help="for the same: where the data set's files are now (default: as in the run)")
    add("--images", type=int, default=1000, metavar="N", help="for embedding and precision_recall: at most so many")
    add("--score", type=float, default=0.5, metavar="S", help="for detections: only those with at least this score")
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    if not args.kind:
        raise UserError(f"say what to draw: one of {', '.join((*KINDS, ALL))}, then the folders")
    if not args.folders:
        raise UserError(f"{args.kind}: no folder is given; give those of runs, or of benchmark.py")
    if not args.output:
        raise UserError(f"--output is missing: give {'a folder' if args.kind == ALL else 'a file, as in curves.png'}")
    names = ("teacher_weights", "data_root", "images", "score", "device", "precision")
    options = {name: getattr(args, name) for name in names}
    if args.kind == ALL:
        plot_all(args.folders, args.output, say=print, **options)
        return 0
    for note in plot(args.kind, args.folders, args.output, **options):
        print(note)
    return 0

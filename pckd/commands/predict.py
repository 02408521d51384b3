"""What a trained network says of images: names of files in, a table out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

from pckd.cli import Parser, run_tool
from pckd.predict import Found, predict
from pckd.saved import load_with_task
from pckd.tables import NONE, Table, print_tables
from registry import UserError, options_of

DEFAULTS = options_of(predict)


def make_parser() -> Parser:
    parser = Parser("Show what a trained network says of images.")
    add = parser.add_argument
    # Neither is required by the parser, so that --list goes without them.
    add("weights", nargs="?", metavar="FILE", help="model_final.pth of a run, or a trained teacher's file")
    add("images", nargs="*", metavar="IMAGE", help="image files, and folders of them")
    add("--top", type=int, default=DEFAULTS["top"], metavar="N", help="classes of each image")
    add("--score", type=float, default=DEFAULTS["score"], metavar="S", help="of detections: only those with it or more")
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    if not args.weights:
        raise UserError("give the file of a trained network (model_final.pth of a run), and images")
    bad: list[str] = []
    options = {name: getattr(args, name) for name in ("top", "score", "device", "precision")}
    network, task = load_with_task(args.weights)
    found = list(predict(network, args.images, multilabel=task == "multilabel", bad=bad.append, **options))
    if found:
        print_tables([table(found)])
    for text in bad:
        print(" ".join(text.split()), file=sys.stderr)
    return 2 if bad else 0


def table(found: Sequence[Found]) -> Table:
    """A row for each class or object; the name of an image stands before its first."""
    boxed = found[0].measure == "score"
    repeated = [False, *(one.image == other.image for one, other in pairwise(found))]
    rows = [
        ["" if again else one.image, one.label or NONE, f"{100 * one.value:.1f} %" if one.label else ""]
        + [" ".join(f"{side:.0f}" for side in one.box or ())] * boxed
        for one, again in zip(found, repeated, strict=True)
    ]
    return Table("", ["image", "class", found[0].measure, *["left top right bottom"] * boxed], rows, numbers=False)

"""A trained network alone, as ONNX, for ``torch.export``, as safetensors, or as a folder for a model hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pckd.cli import Parser, run_tool
from pckd.export import FORMATS, export
from registry import UserError


def make_parser() -> Parser:
    parser = Parser("Write a trained network alone, for programs that know nothing of this library.")
    add = parser.add_argument
    # Neither is required by the parser, so that --list goes without them.
    add("weights", nargs="?", metavar="FILE", help="model_final.pth of a run, or a trained teacher's file")
    formats = ", ".join(FORMATS)
    add("--output", metavar="FILE|DIR", help=f"what to write, named after its format ({formats}), or a hub's folder")
    add("--license", metavar="NAME", help="for the model card of a folder, such as apache-2.0 (default: unknown)")
    add("--normalize", action="store_true", help="let it take images in [0, 1], and normalize them itself")
    parser.add_common()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    if not args.weights or not args.output:
        raise UserError("give the file of a trained network (model_final.pth of a run), and --output")
    print(f"written to {export(args.weights, args.output, normalize=args.normalize, license=args.license)}")
    return 0

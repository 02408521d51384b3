#!/usr/bin/env python
"""Distil a student: names in, a trained network out.

python tools/train_net.py --student resnet8x4
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_zoo import recipe_for
from pckd import distill
from pckd.api import POOL
from pckd.cli import LISTS, Parser, run_tool
from pckd.display import Silent, make_display
from pckd.engine.ranks import launched
from pckd.engine.train import Display
from pckd.rehearsal import check
from pckd.tensorboard import TensorBoard
from registry import UserError, parse

__all__ = ["LISTS", "main"]

DEMONSTRATION: dict[str, Any] = {
    "data": "shapes(image_size=12, train_size=2048, color_cue=0.6)",
    "epochs": 10,
    "teacher_epochs": 24,
    "batch_size": 32,
    "lr": 0.02,
    "teacher_lr": 0.02,
}
"""What runs where no data set is given: minutes on two CPU cores."""


DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(distill).parameters.items()}


def make_parser() -> Parser:
    parser = Parser("Distil a student from a frozen teacher.")
    add = parser.add_argument
    add("--student", metavar="NAME", help="backbone to train")
    add("--teacher", metavar="NAME", help="backbone to learn from; the student's usual one by default")
    add("--teacher-weights", metavar="FILE", help="file or address of its weights; trained first if not given")
    add("--method", default=DEFAULTS["method"], metavar="NAME", help="what to distill")
    add("--dataset", metavar="NAME", help="data set; the built-in demonstration on shapes if not given")
    add("--data-root", metavar="DIR", help="where the data set's files are")
    add("--epochs", type=int, help="length of the run; the schedule scales with it (default: the recipe's, 240)")
    add("--teacher-epochs", type=int, help="length of the teacher's training, where it is trained (default: --epochs)")
    add("--teacher-lr", type=float, help="its learning rate at the start, likewise (default: its recipe's)")
    add("--batch-size", type=int, help=f"images a step (default: {DEFAULTS['batch_size']})")
    add("--lr", type=float, help="learning rate at the start (default: the recipe's)")
    add("--weight-decay", type=float, default=DEFAULTS["weight_decay"], help="of SGD")
    add("--momentum", type=float, default=DEFAULTS["momentum"], help="of SGD")
    add("--seed", type=int, default=DEFAULTS["seed"], help="of initialization, order and augmentation")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run the networks through torch.compile (default: where the run is long enough to repay it)",
    )
    add("--teacher-cache", metavar="DIR", help="keep the teacher's answers there, for this run and later ones")
    add("--view-pool", type=int, metavar="P", help=f"augment each image in P ways (default: {POOL} with a cache)")
    add("--output", metavar="DIR", help="folder for metrics.jsonl, result.json, checkpoint.pth and model_final.pth")
    add("--resume", action="store_true", help="continue from the checkpoint in --output")
    add("--checkpoint-every", type=_steps, default="epoch", metavar="STEPS|epoch", help="how often, with --output")
    add("--on-nonfinite", choices=("stop", "skip"), default="stop", help="what a term that is not finite does")
    add(
        "--on-bad-image",
        choices=("stop", "skip"),
        default=DEFAULTS["on_bad_image"],
        help="what an image that cannot be read does: stop the run, or be left out",
    )
    add("--difficulty", default=DEFAULTS["difficulty"], metavar="NAME", help="how hard a sample is")
    add("--scheduler", metavar="NAME", help="from difficulty to weight (default: preview, where the method previews)")
    add("--centers", default=DEFAULTS["centers"], metavar="NAME", help="what the category centers are")
    add("--views", type=int, choices=(1, 2, 3, 4), help="rotations of each image (default: what the method asks for)")
    add(
        "--view-statistics",
        choices=("joint", "own"),
        default=DEFAULTS["view_statistics"],
        help="whether the student's batch norms take all views together or each by itself",
    )
    add("--no-flip", dest="flip", action="store_false", help="no random horizontal flips in training")
    add("--val-fraction", type=float, default=0.0, help="hold out this share of the training set and measure on it")
    add("--limit-train", type=int, metavar="N", help="train on N images, always the same ones, of each class one first")
    add("--limit-test", type=int, metavar="N", help="measure on N images, likewise")
    add("--num-workers", type=int, default=DEFAULTS["num_workers"], help="processes that read a streamed data set")
    add(
        "--report-difficulty",
        action="store_true",
        help="each epoch also how the difficulty metrics spread over the training images, and with true difficulties "
        "how well they agree",
    )
    add("--report-gradients", action="store_true", help="each epoch also how the terms' gradients lie to one another")
    add("--tensorboard", action="store_true", help="write each epoch's numbers to OUTPUT/tensorboard, too")
    add("--profile", action="store_true", help="first measure what a step costs; kept in result.json")
    add("--check", action="store_true", help="read every image, hold all to its contract, take one step, and stop")
    parser.add_common()
    return parser


def _steps(text: str) -> int | str:
    if text == "epoch":
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a number of steps, or epoch, not {text!r}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv, interrupted=_how_to_continue)


def _how_to_continue(args: argparse.Namespace) -> str:
    return f"; continue with the same command and --resume (--output {args.output})" if args.output else ""


def run(args: argparse.Namespace) -> int:
    if not args.student:
        raise UserError("--student is missing; try --student resnet8x4, or --list backbones")
    if args.resume and not args.output:
        raise UserError("--resume needs the --output folder of the run to continue")
    first = launched().first
    display: Display = make_display() if first else Silent()
    told = display
    if args.tensorboard:
        if not args.output:
            raise UserError("--tensorboard needs the --output folder to write its events to")
        # The first process alone writes, and --check writes nothing.
        told = TensorBoard(Path(args.output) / "tensorboard", display) if first and not args.check else display
    demonstration = args.dataset is None
    dataset = DEMONSTRATION["data"] if demonstration else args.dataset
    quick = parse(dataset)[0] == "shapes"
    if demonstration:
        display.note(
            "No --dataset given: this is the built-in demonstration on drawn shapes, not the paper's setting.\n"
            f"The paper's: python tools/train_net.py --student {args.student} --dataset cifar100 --output runs/pckd"
        )
    if quick:
        # Drawn data is for trying things out: what is not given is what the demonstration takes.
        for option in ("epochs", "teacher_epochs", "batch_size", "lr", "teacher_lr"):
            if getattr(args, option) is None:
                setattr(args, option, DEMONSTRATION[option])
    options: dict[str, Any] = {
        "student": args.student,
        "teacher": args.teacher,
        "teacher_weights": args.teacher_weights,
        "teacher_epochs": args.teacher_epochs,
        "teacher_lr": args.teacher_lr,
        "method": args.method,
        "data": dataset,
        "data_root": args.data_root,
        "limit_train": args.limit_train,
        "limit_test": args.limit_test,
        "val_fraction": args.val_fraction,
        "epochs": recipe_for(args.student, args.teacher).epochs if args.epochs is None else args.epochs,
        "batch_size": DEFAULTS["batch_size"] if args.batch_size is None else args.batch_size,
        "lr": args.lr,
        "momentum": args.momentum,
        "weight_decay": args.weight_decay,
        "difficulty": args.difficulty,
        "scheduler": args.scheduler,
        "centers": args.centers,
        "views": args.views,
        "view_statistics": args.view_statistics,
        "flip": args.flip,
        "seed": args.seed,
        "device": args.device,
        "precision": args.precision,
        "compile": args.compile,
        "num_workers": args.num_workers,
        "teacher_cache": args.teacher_cache,
        "view_pool": args.view_pool,
        "checkpoint_every": args.checkpoint_every,
        "on_nonfinite": args.on_nonfinite,
        "on_bad_image": args.on_bad_image,
        "report_difficulty": args.report_difficulty,
        "report_gradients": args.report_gradients,
        "profile": args.profile,
        "output": args.output,
        "resume": args.resume,
        "display": told,
    }
    if args.check:
        check(**options)
        return 0
    result = distill(**options)
    teacher = ""
    if result.teacher_top1 is not None:
        teacher = f" (teacher {result.record['teacher']}: {result.teacher_top1:.2f} %)"
    speed = f"{result.images_per_second:.0f} images/s" if result.images_per_second else "nothing left to train"
    display.note(
        f"{args.student} by {args.method}: {result.last_top1:.2f} % top-1 after the last epoch, "
        f"best {result.best_top1:.2f} %, top-5 {result.last_top5:.2f} %{teacher}; "
        f"{speed} on {result.record['device']} in {result.record['precision']}"
    )
    if args.output:
        display.note(f"written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

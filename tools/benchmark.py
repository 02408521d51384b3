#!/usr/bin/env python
"""Methods side by side on one pair: the same data, schedule and seeds, one table of what came out.

python tools/benchmark.py --methods kd,pckd --student resnet8 --teacher resnet20 --output runs/compare
python tools/benchmark.py --matrix                  # which method works on which pair of families
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_zoo import probe
from pckd import distill, load_data, train_teacher
from pckd.cli import Parser, run_tool
from pckd.display import make_display, print_table
from pckd.engine.record import METRICS, RESULT
from pckd.engine.sources import make_objective, method_terms, split_methods
from pckd.engine.teacher import FrozenTeacher
from registry import BACKBONES, METHODS, NotApplicable, Setup, UserError

SHOWN = ("terms", "last_top1", "best_top1", "images_per_second", "loss_parameters")
"""What the table takes of a run's result.json."""

FAMILIES = {
    "resnet-resnet": ("resnet20", "resnet8"),
    "wrn-resnet": ("wrn_16_2", "resnet8"),
    "vgg-vgg": ("vgg11", "vgg8"),
    "resnet-vgg": ("resnet8x4", "vgg8"),
    "resnet-MobileNetV2": ("resnet8x4", "MobileNetV2"),
    "resnet-ShuffleV2": ("resnet8x4", "ShuffleV2"),
}
"""Teacher and student of the columns of ``--matrix``."""


def make_parser() -> Parser:
    parser = Parser("Run methods side by side on one pair of networks.")
    add = parser.add_argument
    add("--methods", default="all", metavar="A,B,...", help="methods to run, or all")
    add("--student", default="resnet8", metavar="NAME", help="backbone to train")
    add("--teacher", default="resnet20", metavar="NAME", help="backbone to learn from")
    add("--teacher-weights", metavar="FILE", help="its weights; trained first, once, if not given")
    add("--teacher-epochs", type=int, metavar="N", help="length of its training (default: --epochs)")
    add("--dataset", default="shapes", metavar="NAME", help="data set")
    add("--data-root", metavar="DIR", help="where the data set's files are")
    add("--limit-train", type=int, metavar="N", help="train on N images, always the same ones")
    add("--limit-test", type=int, metavar="N", help="measure on N images, always the same ones")
    add("--val-fraction", type=float, default=0.0, help="measure on this share of the training set instead")
    add("--epochs", type=int, default=240, help="length of each run")
    add("--batch-size", type=int, default=64, help="images a step")
    add("--seeds", default="0", metavar="0,1,...", help="seeds to run each method with")
    add("--compile", action="store_true", help="run the networks through torch.compile")
    add("--output", metavar="DIR", help="folder for a run folder each and table.md; finished runs are not run again")
    add("--matrix", action="store_true", help="only say which method works on which pair of families")
    parser.add_common()
    return parser


def chosen_methods(text: str) -> list[str]:
    """The methods of ``--methods``."""
    return METHODS.names() if text == "all" else [method for method in split_methods(text, ",") if method]


def matrix(methods: Sequence[str]) -> list[list[str]]:
    """A row per method: whether its objective can be built for each pair of families, else the reason."""
    setups = {}
    for label, names in FAMILIES.items():
        teacher, student = (BACKBONES.get(name)(10) for name in names)
        frozen = FrozenTeacher(teacher)
        setups[label] = Setup(probe(student, 3, 32), probe(frozen, 3, 32), 1000, frozen.classifier)
    rows = []
    for method in methods:
        row = [method]
        for label, (teacher_name, student_name) in FAMILIES.items():
            setup = setups[label]
            try:
                terms = method_terms(method, student_name, teacher_name)
                make_objective(terms, setup, difficulty="cross_entropy", scheduler="preview", centers="classifier")
                row.append("works")
            except NotApplicable as error:
                row.append(str(error))
        rows.append(row)
    return rows


def run_one(args: argparse.Namespace, method: str, seed: int, teacher: Any, data: Any, folder: Path) -> dict[str, Any]:
    """One run, or what it wrote when it was run before."""
    if (folder / RESULT).exists():
        return read_result(args, method, seed, data, folder)
    return distill(
        student=args.student,
        teacher=teacher,
        teacher_weights=args.teacher_weights,
        method=method,
        data=data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=seed,
        device=args.device,
        precision=args.precision,
        compile=args.compile,
        output=folder,
        resume=folder.exists(),
        display=make_display(),
    ).record


def read_result(args: argparse.Namespace, method: str, seed: int, data: Any, folder: Path) -> dict[str, Any]:
    """What a finished run has written, if it is the one that is asked for.

    Raises:
        UserError: the files cannot be read, or are of a run with other arguments; says which.
    """
    advice = "choose another --output, or remove the folder"
    try:
        done = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        there = {**done["arguments"], **{key: done[key] for key in ("train_images", "measured_on", *SHOWN)}}
        json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{folder}: not the folder of a finished run ({type(error).__name__}: {error}); {advice}"
        ) from error
    asked = {
        "student": args.student,
        "method": method,
        "data": data.name,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "seed": seed,
        "teacher_weights": args.teacher_weights,
        "train_images": len(data.train),
        "measured_on": data.measured_on,
    }
    other = [f"{key} was {there.get(key)!r}, is {value!r}" for key, value in asked.items() if there.get(key) != value]
    if other:
        raise UserError(f"{folder} holds a run with other arguments ({'; '.join(other)}); {advice}")
    return dict(done)


def summary(method: str, records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line of the table: accuracies over seeds, last epoch's terms of the first seed, speed, extra parameters."""

    def spread(key: str) -> str:
        values = [record[key] for record in records]
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{deviation}"

    terms = ", ".join(f"{name} {rows[-1][name]:.3g}" for name in records[0]["terms"] if name in rows[-1])
    speed = statistics.median(record["images_per_second"] or float("nan") for record in records)
    return [
        method,
        spread("last_top1"),
        spread("best_top1"),
        terms,
        f"{speed:.0f}",
        f"{records[0]['loss_parameters']:,}",
    ]


def run(args: argparse.Namespace) -> int:
    methods = chosen_methods(args.methods)
    if not methods:
        raise UserError(f"--methods {args.methods!r} names none; give some with commas between, or all")
    for method in methods:
        method_terms(method)  # a misspelled name is refused before hours of the others
    if args.matrix:
        columns = ["method", *FAMILIES]
        print_table(columns, matrix(methods), header=True)
        return 0
    if not args.output:
        raise UserError("--output is missing: give the folder for the runs")
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds must be whole numbers with commas between, not {args.seeds!r}") from None
    root = Path(args.output).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {root}: {error.strerror or error}; choose another --output") from None
    display = make_display()
    data = load_data(
        args.dataset,
        root=args.data_root,
        limit_train=args.limit_train,
        limit_test=args.limit_test,
        val_fraction=args.val_fraction,
    )
    if args.teacher_weights is None:
        # Trained once, here, and then found in the cache by every run.
        epochs = args.epochs if args.teacher_epochs is None else args.teacher_epochs
        teacher: Any = train_teacher(
            teacher=args.teacher,
            data=data,
            epochs=epochs,
            batch_size=args.batch_size,
            device=args.device,
            precision=args.precision,
            display=display,
        )
    else:
        teacher = args.teacher
    table, refused = [], []
    for method in methods:
        safe = "".join(c if c.isalnum() or c in "-_+" else "_" for c in method)
        folders = [root / f"{safe}-seed{seed}" for seed in seeds]
        try:
            records = [run_one(args, method, s, teacher, data, f) for s, f in zip(seeds, folders, strict=True)]
        except NotApplicable as error:
            refused.append(f"{method}: {error}")
            display.note(refused[-1])
            continue
        rows = [json.loads(line) for line in (folders[0] / METRICS).read_text().splitlines()]
        table.append(summary(method, records, rows))
    columns = ["method", "last top-1", "best top-1", "terms in the last epoch", "images/s", "extra parameters"]
    print_table(columns, table, header=True)
    lines = ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *table]]
    (root / "table.md").write_text("\n".join([*lines, *(["", *refused] if refused else [])]) + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())

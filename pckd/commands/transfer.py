"""How far trained students carry to other data: a linear layer on each one's frozen embedding, as CRD and PCKD do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from model_zoo import Preprocessing, read_metadata
from pckd import Transfer, load_data, transfer
from pckd.arguments import before
from pckd.cli import Parser, run_tool
from pckd.display import make_display
from pckd.engine.record import FINAL_MODEL
from pckd.runs import METRIC, OF_IMAGES, TASK, group_runs, grouped, mean_and_deviation, read_finished
from pckd.tables import Table, fixed, print_tables
from pckd.transfer import MILESTONES, MOMENTUM, Inputs, inputs_of, load_network, untrained
from registry import UserError, options_of
from registry.files import write_atomically

DEFAULTS = options_of(transfer)


class Subject(NamedTuple):
    """A network to look at."""

    label: str
    """The row of the table that it belongs to."""
    student: str
    network: nn.Module
    inputs: Inputs
    source: str
    """What it was trained on, for the table."""
    seed: int | None = None
    """Of its training; None where that is not known."""
    own_top1: float | None = None
    """What it reached there."""
    folder: str | None = None


def make_parser() -> Parser:
    parser = Parser("Train a linear layer on the frozen embedding of trained students.")
    add = parser.add_argument
    add("folders", nargs="*", metavar="RUN_FOLDER", help="of train_net.py --output; the runs of a method are averaged")
    add("--dataset", metavar="NAME", help="data set to classify")
    add("--data-root", metavar="DIR", help="where its files are")
    add("--limit-train", type=int, metavar="N", help="train on N images, always the same ones")
    add("--limit-test", type=int, metavar="N", help="measure on N images, always the same ones")
    add("--weights", metavar="FILE", help="also look at this network without a run folder, for example the teacher")
    add("--student", metavar="NAME", help="backbone of --weights, or of --random without run folders")
    add("--random", action="store_true", help="also look at untrained networks: the least that training must exceed")
    add(
        "--source",
        metavar="NAME",
        help="data set that the networks were trained on (default: what the files of their weights say, or the runs)",
    )
    add("--source-root", metavar="DIR", help="where its files are (default: what the runs say)")
    add("--mean", type=_numbers, metavar="A,B,...", help="its mean per channel of 0 to 1, instead")
    add("--std", type=_numbers, metavar="A,B,...", help="its standard deviation per channel, likewise")
    add("--image-size", type=int, metavar="N", help="pixels per side (default: those of the networks' training)")
    add("--epochs", type=int, default=DEFAULTS["epochs"], help="of the linear layer")
    add("--batch-size", type=int, default=DEFAULTS["batch_size"], help="images a step")
    add("--lr", type=float, default=DEFAULTS["lr"], help="learning rate at the start")
    add("--seed", type=int, default=DEFAULTS["seed"], help="of the linear layer; the networks have their runs' own")
    add("--num-workers", type=int, default=DEFAULTS["num_workers"], help="processes that read a streamed data set")
    add("--output", metavar="FILE", help="write everything as JSON")
    parser.add_common()
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between, not {text!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(make_parser(), run, argv)


def run(args: argparse.Namespace) -> int:
    refuse_early(args)
    subjects = trained(args)
    if args.weights:
        subjects.append(given(args, subjects))
    if args.random:
        subjects += random_ones(args, subjects)
    data = load_data(args.dataset, root=args.data_root, limit_train=args.limit_train, limit_test=args.limit_test)
    names = ("image_size", "epochs", "batch_size", "lr", "seed", "device", "precision", "num_workers")
    options = {name: getattr(args, name) for name in names}
    say = make_display().note
    found = []
    for subject in subjects:
        found.append(transfer(subject.network, data, source=subject.inputs, **options))
        say(f"{subject.folder or subject.label}: {found[-1].last_top1:.2f} % top-1 on {data.name}")
    rows = rows_of(subjects, found)
    if args.output:
        protocol = {
            "dataset": data.name,
            **{name: getattr(args, name) for name in ("limit_train", "limit_test", "image_size", "epochs")},
            **{name: getattr(args, name) for name in ("batch_size", "lr", "seed", "precision")},
            "momentum": MOMENTUM,
            "weight_decay": 0.0,
            "milestones": MILESTONES,
        }
        text = json.dumps({"protocol": protocol, "rows": rows}, indent=2) + "\n"
        write_atomically(Path(args.output).expanduser(), text.encode())
    print_tables([table(rows)])
    return 0


def refuse_early(args: argparse.Namespace) -> None:
    """Say what cannot work before any data is read."""
    if not args.dataset:
        raise UserError("--dataset is missing: what to classify; try --dataset stl10, or --list datasets")
    if not (args.folders or args.weights or args.random):
        raise UserError("nothing to look at: give run folders, --weights FILE with --student NAME, or --random")
    if args.weights and not args.student:
        raise UserError("--weights needs --student: the name of the backbone that they are of; see --list backbones")
    if args.random and not (args.folders or args.student):
        raise UserError("--random needs run folders, or --student: which backbone; see --list backbones")
    if args.student and not (args.weights or args.random):
        raise UserError("--student goes with --weights or --random; the run folders say what theirs is")
    if (args.mean is None) != (args.std is None) or len(args.mean or ()) != len(args.std or ()):
        raise UserError("--mean and --std go together, with a number each for every channel")
    if args.mean and (args.source or not args.image_size):
        raise UserError("--mean and --std stand for --source: leave that out, and give --image-size")
    if args.std and not all(value > 0 for value in args.std):
        raise UserError("--std must be above 0")
    output = Path(args.output or "transfer.json").expanduser()
    if not output.parent.is_dir() or output.is_dir():
        what = "is a folder; give the name of a file" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"--output {output}: {what}")


# The networks


def trained(args: argparse.Namespace) -> list[Subject]:
    """The students of the run folders."""
    runs = [read_finished(folder) for folder in args.folders]
    label_of = {run.path: group.label for group in group_runs(runs) for run in group.runs}
    known: dict[tuple[str, str | None, Any], Inputs] = {}
    subjects = []
    for folder, run in zip(args.folders, runs, strict=True):
        if run.task not in OF_IMAGES:
            raise UserError(
                f"{folder}: a run of {run.task}, whose network says nothing of whole images; give runs of {TASK}"
            )
        student, dataset = run.result["student"], run.result["dataset"]
        source = args.source or dataset
        own = {} if args.source else {**before(), **run.arguments}
        where = source, args.source_root or own.get("data_root"), own.get("on_bad_image", "stop")
        weights = run.path / FINAL_MODEL
        try:
            inputs = recorded(args, weights)
            if inputs is None:
                if where not in known:
                    known[where] = shown_as(args, *where)
                inputs = known[where]
            network = load_network(student, weights, channels=len(inputs.mean))
        except UserError as error:
            text = str(error)
            raise UserError(text if str(folder) in text else f"{folder}: {text}") from error
        facts = run.result.get("seed"), run.result.get(f"last_{METRIC}"), str(folder)
        subjects.append(Subject(label_of[run.path], student, network, inputs, dataset, *facts))
    return subjects


def recorded(args: argparse.Namespace, weights: str | Path) -> Inputs | None:
    """How a file of weights itself says that images are shown; None where it does not, or the command says it."""
    if args.mean or args.source or args.source_root:
        return None
    record = Preprocessing.from_metadata(read_metadata(weights))
    return Inputs.of(record) if record is not None and record.mean else None


def shown_as(args: argparse.Namespace, source: str, root: str | None, on_bad_image: Any = "stop") -> Inputs:
    """How networks that were trained on ``source`` are shown images."""
    if args.mean:
        return Inputs(args.mean, args.std, (args.image_size, args.image_size))
    try:
        return inputs_of(source, root, on_bad_image)
    except UserError as error:
        raise UserError(
            f"the data set {source!r} of its training cannot be read ({error}); "
            "say with --source and --source-root where it is, or give --mean, --std and --image-size"
        ) from error


def given(args: argparse.Namespace, runs: Sequence[Subject]) -> Subject:
    """The network of --weights; where its file does not say how, it is shown images as those of the run folders are."""
    inputs, source = recorded(args, args.weights), str(read_metadata(args.weights).get("dataset", ""))
    if inputs is None:
        inputs, source = (runs[0].inputs, runs[0].source) if runs else elsewhere(args)
    network = load_network(args.student, args.weights, channels=len(inputs.mean))
    return Subject(Path(args.weights).name, args.student, network, inputs, source)


def random_ones(args: argparse.Namespace, others: Sequence[Subject]) -> list[Subject]:
    """Untrained networks: of every student of the run folders with the same seeds, or else of --student."""
    runs = {(run.student, run.seed): run for run in others if run.folder is not None}
    if not runs:
        inputs, source = elsewhere(args)
        runs = {(args.student, args.seed): Subject("", args.student, nn.Module(), inputs, source, args.seed)}
    subjects = []
    for (student, seed), run in runs.items():
        torch.manual_seed(seed or 0)
        network = untrained(student, channels=len(run.inputs.mean))
        subjects.append(Subject("untrained", student, network, run.inputs, "", seed))
    return subjects


def elsewhere(args: argparse.Namespace) -> tuple[Inputs, str]:
    """How networks are shown images where there is no run folder to say it."""
    if not (args.mean or args.source):
        raise UserError("--source is missing: what the network was trained on (or --mean, --std and --image-size)")
    return shown_as(args, args.source or "", args.source_root), args.source or ""


# The table


def rows_of(subjects: Sequence[Subject], found: Sequence[Transfer]) -> list[dict[str, Any]]:
    """A row for each label and student, over its runs."""
    both = grouped(zip(subjects, found, strict=True), lambda pair: (pair[0].label, pair[0].student))
    return [_row([subject for subject, _ in pairs], [result for _, result in pairs]) for pairs in both.values()]


def _row(subjects: Sequence[Subject], found: Sequence[Transfer]) -> dict[str, Any]:
    last, best = [result.last_top1 for result in found], [result.best_top1 for result in found]
    return {
        "label": subjects[0].label,
        "student": subjects[0].student,
        "source": subjects[0].source,
        "seeds": [subject.seed for subject in subjects],
        "folders": [subject.folder for subject in subjects],
        "own_top1": [subject.own_top1 for subject in subjects],
        "last_top1": last,
        "best_top1": best,
        **dict(zip(("mean", "std"), mean_and_deviation(last), strict=True)),
        **dict(zip(("best_mean", "best_std"), mean_and_deviation(best), strict=True)),
        "history": [result.history for result in found],
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracies in percent, mean ± standard deviation over the runs."""

    def shown(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return fixed(*mean_and_deviation(known)) if known else ""

    header = ["network", "student", "trained on", "runs", "top-1 there", "last top-1", "best top-1"]
    cells = [
        [row["label"], row["student"], row["source"], str(len(row["last_top1"]))]
        + [shown(row[key]) for key in ("own_top1", "last_top1", "best_top1")]
        for row in rows
    ]
    return Table("", header, cells, numbers=False)

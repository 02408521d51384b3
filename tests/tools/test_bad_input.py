"""Bad input, case by case, on the real command lines: exit code 2, one line that says what and what to do, no traces.

Each case runs in this process; some run again as processes of their own, where what libraries print counts, too.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pckd
from model_zoo import save_weights
from pckd import cli
from pckd.objective import Objective
from registry import (
    BACKBONES,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    REGISTRIES,
    Centers,
    Context,
    Instances,
    Output,
    PluginError,
    Setup,
    Shapes,
    Term,
    UserError,
    ask,
    build,
)

TOOLS = Path(__file__).parents[2] / "tools"
CLASSES = 4
DATA = f"shapes(image_size=8, train_size=24, test_size=12, num_classes={CLASSES})"
RUN = ["--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--device", "cpu"]
TAUGHT = "--teacher resnet8 --teacher-weights {weights} --method"
KD, PCKD = f"{TAUGHT} kd", f"{TAUGHT} pckd"
FOLDER = "--batch-size 4 --dataset imagefolder --data-root"
STREAM = "--batch-size 4 --dataset imagefolder(memory=False) --data-root"
CUT_LATE = ("train/a/1", "train/b/3", "test/a/2", "test/b/2")
"""Images of the folder ``cut_late`` whose heads can be read and whose pixels cannot."""
BASE = {
    "train_net": ["--student", "resnet8", "--method", "vanilla", "--dataset", DATA, *RUN, "--output", "{output}"],
    "benchmark": [
        *("--methods", "kd", "--student", "resnet8", "--teacher", "resnet8", "--teacher-weights", "{weights}"),
        *("--dataset", DATA, *RUN, "--output", "{output}"),
    ],
    "profile_net": [
        *("--student", "resnet8", "--teacher", "resnet8", "--method", "kd", "--batch-size", "4", "--image-size", "8"),
        *("--num-classes", "5", "--num-samples", "40", "--rounds", "0", "--precision", "fp32", "--device", "cpu"),
    ],
}
"""Command lines that work, and what each case's arguments are added to: of an option given twice, the last counts."""


class Case(NamedTuple):
    """Arguments, as in a shell (``{names}`` are those of :func:`make_world`), and what the one line must say."""

    arguments: str
    says: tuple[str, ...]
    plugin: str = ""
    """Python source, loaded from ``mine.py``."""
    tool: str = "train_net"


def says(arguments: str, *parts: str, tool: str = "train_net") -> Case:
    return Case(arguments, parts, tool=tool)


NUMBERS = {
    "epochs 0": says("--epochs 0", "epochs must be a whole number of at least 1, not 0"),
    "epochs -1": says("--epochs -1", "epochs must be a whole number of at least 1, not -1"),
    "epochs abc": says("--epochs abc", "argument --epochs: invalid int value: 'abc'", "--help"),
    "epochs 1.5": says("--epochs 1.5", "argument --epochs: invalid int value: '1.5'", "--help"),
    "epochs with a line break": says("--epochs '1\n2'", "argument --epochs: invalid int value"),
    "teacher epochs 0": says(f"{KD} --teacher-epochs 0", "teacher_epochs must be a whole number of at least 1, not 0"),
    "batch size 0": says("--batch-size 0", "batch_size must be a whole number of at least 1, not 0"),
    "batch size -3": says("--batch-size -3", "batch_size must be a whole number of at least 1, not -3"),
    "batch size x": says("--batch-size x", "argument --batch-size: invalid int value: 'x'"),
    "lr 0": says("--lr 0", "lr must be above 0, not 0"),
    "lr -1": says("--lr -1", "lr must be a finite number of at least 0, not -1"),
    "lr inf": says("--lr inf", "lr must be a finite number", "not inf"),
    "lr nan": says("--lr nan", "lr must be a finite number", "not nan"),
    "lr abc": says("--lr abc", "argument --lr: invalid float value: 'abc'"),
    "lr without a value": says("--lr", "argument --lr: expected one argument"),
    "lr too high": says("--lr 1e300", "step 2: cross_entropy is not finite", "lower the learning rate"),
    "teacher epochs abc": says("--teacher-epochs abc", "argument --teacher-epochs: invalid int value: 'abc'"),
    "teacher lr nan": says(f"{KD} --teacher-lr nan", "teacher_lr must be a finite number", "not nan"),
    "teacher lr 0": says(f"{KD} --teacher-lr 0", "teacher_lr must be above 0, not 0"),
    "weight decay -1": says("--weight-decay -1", "weight_decay must be a finite number of at least 0, not -1"),
    "weight decay nan": says("--weight-decay nan", "weight_decay must be a finite number", "not nan"),
    "momentum -0.1": says("--momentum -0.1", "momentum must be at least 0 and below 1, not -0.1"),
    "momentum 1": says("--momentum 1", "momentum must be at least 0 and below 1, not 1"),
    "momentum 1.5": says("--momentum 1.5", "momentum must be at least 0 and below 1, not 1.5"),
    "momentum nan": says("--momentum nan", "momentum must be at least 0 and below 1, not nan"),
    "seed abc": says("--seed abc", "argument --seed: invalid int value: 'abc'"),
    "seed of 70 bits": says(f"--seed {2**70}", "seed must be a whole number from", f"not {2**70}"),
    "seed whose successor overflows": says(f"--seed {2**63 - 1}", "seed must be a whole number from"),
    "num workers -1": says("--num-workers -1", "num_workers must be a whole number from 0 to 1024, not -1"),
    "num workers 1000000": says("--num-workers 1000000", "num_workers must be a whole number from 0 to 1024"),
    "views 0": says("--views 0", "argument --views: invalid choice: 0", "1, 2, 3, 4"),
    "views 5": says("--views 5", "argument --views: invalid choice: 5", "1, 2, 3, 4"),
    "val fraction -0.1": says("--val-fraction -0.1", "hold out the fraction -0.1: it must be above 0 and below 1"),
    "val fraction 1": says("--val-fraction 1", "hold out the fraction 1.0: it must be above 0 and below 1"),
    "val fraction 1.5": says("--val-fraction 1.5", "hold out the fraction 1.5"),
    "val fraction nan": says("--val-fraction nan", "hold out the fraction nan"),
    "val fraction too small": says("--val-fraction 0.001", "0.001 of shapes train", "one part would be empty"),
    "limit train 0": says("--limit-train 0", "limit_train must be a whole number of at least 1, not 0"),
    "limit train -1": says("--limit-train -1", "limit_train must be a whole number of at least 1, not -1"),
    "limit train too high": says("--limit-train 25", "cannot take 25 images of shapes train", "give 1 to 24"),
    "limit test 0": says("--limit-test 0", "limit_test must be a whole number of at least 1, not 0"),
    "limit test too high": says("--limit-test 13", "cannot take 13 images of shapes test", "give 1 to 12"),
    "view pool -1": says("--view-pool -1", "view_pool must be a whole number from 0 to 65535, not -1"),
    "view pool 70000": says("--view-pool 70000", "view_pool must be a whole number from 0 to 65535, not 70000"),
    "checkpoint every 0": says("--checkpoint-every 0", "checkpoint_every must be a whole number of at least 1, not 0"),
    "checkpoint every -1": says("--checkpoint-every -1", "--checkpoint-every: must be a number of steps, or epoch"),
    "checkpoint every abc": says("--checkpoint-every abc", "--checkpoint-every: must be a number of steps", "'abc'"),
    "infinite weight": says(f"{TAUGHT} kd(weight=1e999)", "term kd: its weight must be a finite number, not inf"),
}
CHOICES = {
    "on nonfinite x": says("--on-nonfinite x", "argument --on-nonfinite: invalid choice: 'x'", "stop", "skip"),
    "on bad image x": says("--on-bad-image x", "argument --on-bad-image: invalid choice: 'x'", "stop", "skip"),
    "precision x": says("--precision x", "argument --precision: invalid choice: 'x'", "bf16"),
    "device nonsense": says("--device nonsense", "device 'nonsense' cannot be used here", "cpu, cuda"),
    "device with nothing in it": says("--device ''", "device '' cannot be used here"),
    "unknown option": says("--learning-rate 1", "unrecognized arguments: --learning-rate 1", "--help"),
    "unknown option with a line break": says("'--x\ny'", "unrecognized arguments: --x y"),
    "left over word": says("resnet8", "unrecognized arguments: resnet8"),
    "list of what": says("--list method", "argument --list: invalid choice: 'method'", "methods"),
    "no student": says("--student ''", "--student is missing; try --student resnet8x4"),
    "student": says("--student reznet8", "unknown name 'reznet8'", "did you mean 'resnet8'"),
    "student of a family": says("--student torchvision:resnet81", "torchvision has no", "'resnet81'", "did you mean"),
    "student without its last layer": says(
        "--student torchvision:squeezenet1_0", "does not end in a linear classifier"
    ),
    "student with a line break": says("--student 'res\nnet'", r"cannot read 'res\nnet'", "expected name"),
    "teacher": says("--method kd --teacher reznet20", "unknown name 'reznet20'", "did you mean 'resnet20'"),
    "method": says("--method pcdk", "METHODS: unknown name 'pcdk'", "did you mean 'pckd'"),
    "method left out": says("--method crrcd", "method 'crrcd' is left out: neither a paper nor code"),
    "data set": says("--dataset shape", "DATASETS: unknown name 'shape'", "did you mean 'shapes'"),
    "difficulty": says(f"{PCKD} --difficulty crossentropy", "unknown name 'crossentropy'", "mean 'cross_entropy'"),
    "scheduler": says(f"{PCKD} --scheduler previw", "unknown name 'previw'", "did you mean 'preview'"),
    "scheduler before the teacher": says("--method kd --scheduler previw", "unknown name 'previw'"),
    "centers": says(f"{PCKD} --centers clasifier", "unknown name 'clasifier'", "did you mean 'classifier'"),
    "centers before the teacher": says("--method pckd --centers ema(m=1)", "ema has no option 'm'", "momentum"),
    "no literal": says(f"{PCKD} --scheduler preview(growth=abc)", "value of 'growth' must be a literal", "a number"),
    "unknown option of a name": says(f"{PCKD} --scheduler preview(speed=1)", "no option 'speed'", "growth"),
    "option of another kind": says(f"{PCKD} --scheduler preview(growth=True)", "'growth' must be float, not True"),
    "option out of range": says(f"{TAUGHT} kd(temperature=0)", "kd: temperature must be above 0, not 0"),
    "option of a center rule": says(f"{PCKD} --centers ema(momentum=2)", "ema: momentum must be in [0, 1), not 2"),
    "option of a metric": says(f"{PCKD} --difficulty margin(x=1)", "margin has no option 'x'"),
    "option of a data set": says("--dataset shapes(image_size=2.5)", "'image_size' must be int, not 2.5"),
    "option given by place": says("--method kd(2)", "options are given by name, as in kd(key=value)"),
    "option given twice": says("--method 'kd(ce=1, ce=2)'", "cannot read 'kd(ce=1, ce=2)'"),
    "open parenthesis": says("--method 'kd('", "cannot read 'kd('", "expected name"),
    "loss that is none": says(f"{TAUGHT} \"pckd(contrast='nce')\"", "LOSSES: unknown name 'nce'", "center_infonce"),
    "no method": says("--method ''", "method '': a name is missing", "--list methods"),
    "half a sum of methods": says("--method kd+", "method 'kd+': a name is missing", "--list methods"),
    "method without a weight": says(f"{TAUGHT} 'kd(ce=0, weight=0)'", "no term with a weight other than 0"),
    "scheduler without a teacher": says("--scheduler preview", "nothing to schedule by difficulty"),
    "channels of the student": says(
        "--student resnet8(in_channels=1)", "the student cannot run on images of 3 x 8 x 8"
    ),
    "pair of networks": says(f"{TAUGHT} fsp --student vgg8", "fsp needs maps of equal widths"),
    "views that a method compares": says(f"{TAUGHT} sskd --views 1", "2 or more views", "leave views out"),
    "batch of one image, normalized by a loss": says(
        f"{PCKD} --views 1 --batch-size 1", "loss 'feature_alignment'", "use a batch of 2 or more images"
    ),
    "batch of one image, normalized by the student": says(
        "--student vgg8 --batch-size 1", "the student, trained on a batch of one image", "a batch of 2 or more images"
    ),
    "training set of one image": says(
        "--student vgg8 --limit-train 1", "the student, trained on a batch of one image", "a batch of 2 or more images"
    ),
}
FOLDERS = {
    "no root": says("--dataset imagefolder", "imagefolder: give the root folder that holds train/"),
    "missing root": says(
        f"{FOLDER} {{world}}/no", "no folder", "/no: give the root that holds train/ and test/ or val/"
    ),
    "root that no system can have": says(f"{FOLDER} {'x' * 300}", "no folder xxx", "give the root"),
    "empty root": says(f"{FOLDER} {{empty}}", "no folder train/ in", "there is: nothing"),
    "root that is a file": says(f"{FOLDER} {{weights}}", "no folder", "weights.pth: give the root"),
    "root of nothing": says("--data-root ''", "data_root must be a path, not ''", "leave data_root out"),
    "no class": says(f"{FOLDER} {{no_class}}", "no class folders in", "one folder of images a class"),
    "one class": says(f"{FOLDER} {{one_class}}", "imagefolder: there is one class only", "2 or more"),
    "class without images": says(
        f"{FOLDER} {{no_image}}", "no images in", "/train/c", "each class folder must have one"
    ),
    "other classes in the test set": says(f"{FOLDER} {{other_classes}}", "must have the same class folders", "lacks b"),
    "no test set": says(f"{FOLDER} {{no_test}}", "no folder test/ or val/ in", "there is: train/"),
    "text for an image": says(f"{FOLDER} {{text}}", "b/2.png: not a readable image", "repair or remove it"),
    "image of no bytes": says(f"{FOLDER} {{zero}}", "b/2.png: not a readable image (the file is empty)"),
    "image cut short": says(f"{FOLDER} {{cut}}", "b/2.png: not a readable image (image file is truncated)"),
    "text for a streamed image": says(f"{STREAM} {{text}}", "b/2.png: not a readable image", "repair or remove it"),
    "streamed image of no bytes": says(f"{STREAM} {{zero}}", "b/2.png: not a readable image (the file is empty)"),
    "streamed image cut short": says(f"{STREAM} {{cut}}", "b/2.png: not a readable image (image file is truncated)"),
    "image cut short, read by workers": says(f"{STREAM} {{cut}} --num-workers 2", "b/2.png: not a readable image"),
    "images cut short in both splits": says(
        f"{FOLDER} {{cut_late}}", "2 images cannot be read: ", "train/a/1.jpg: not a", "train/b/3.jpg", "remove them"
    ),
    "streamed images cut short in both splits": says(
        f"{STREAM} {{cut_late}} --batch-size 8", "2 images cannot be read: ", "train/a/1.jpg: not a", "train/b/3.jpg"
    ),
    "12 bits in 16": says(
        f"{FOLDER} {{dark}}", "b/bits.png: a 16-bit gray image of values from 0 to 4095", "imagefolder(white=4095)"
    ),
    "one class in two forms of Unicode": says(
        f"{FOLDER} {{two_forms}}", "has two class folders caf\xe9, spelled in two forms of Unicode; move the images"
    ),
    "class that is a link to another": says(
        f"{FOLDER} {{linked}}", "train/c is the class folder a or lies in it, by a link", "remove the link"
    ),
    "mixed sizes": says(f"{FOLDER} {{mixed}}", "z.png is 9x10", "8x8; give image_size to resize all"),
    "mixed sizes, streamed": says(f"{STREAM} {{mixed}}", "z.png is 9x10", "give image_size to resize all"),
    "mean of two numbers": says(
        f"{FOLDER} {{good}} --dataset 'imagefolder(mean=(0.5, 0.5), std=(1, 1, 1))'", "mean has 2 numbers; give 3"
    ),
    "mean in words": says(
        f"{FOLDER} {{good}} --dataset 'imagefolder(mean=(\"a\", 0, 0), std=(1, 1, 1))'", "mean must be numbers"
    ),
    "deviation of zero": says(
        f"{FOLDER} {{good}} --dataset 'imagefolder(mean=(0, 0, 0), std=(0, 1, 1))'",
        "std must be above 0, not (0, 1, 1)",
    ),
    "images too small": says(
        f"{FOLDER} {{good}} --student torchvision:alexnet", "the student cannot run on images of 3 x 8 x 8", "another"
    ),
    "one class of shapes": says("--dataset shapes(num_classes=1)", "shapes: num_classes=1: it must be 2 to 100"),
    "shapes without images": says("--dataset shapes(train_size=0)", "shapes: train_size=0: it must be at least 1"),
    "views of images that are not square": says(f"{FOLDER} {{wide}} --views 4", "need square images", "use views=1"),
    "rotations before the teacher": says(
        f"{FOLDER} {{wide}} --method pckd --teacher resnet8", "rotated views need square images", "8x12", "use views=1"
    ),
    "pool of streamed data": says(f"{STREAM} {{good}} --view-pool 4", "is streamed", "leave out the pool"),
    "cache of streamed data, before the teacher": says(
        f"{STREAM} {{good}} --method kd --teacher resnet8 --teacher-cache {{own}}",
        *("is streamed", "the teacher cache", "held in memory"),
    ),
    "files that are not there": says(
        "--dataset cifar10(download=False) --data-root {empty}", "cifar10: not found, or not whole, in", "by hand"
    ),
}
FILES = {
    "weights missing": says(f"{KD} --teacher-weights {{world}}/no.pth", "no.pth: no such file"),
    "weights that no system can have": says(f"{KD} --teacher-weights {'x' * 300}", "xxx: no such file"),
    "weights in a folder": says(f"{KD} --teacher-weights {{empty}}", "is a folder; give the checkpoint's file"),
    "weights of nothing": says(f"{KD} --teacher-weights ''", "teacher_weights must be a path, not ''"),
    "weights of text": says(
        f"{KD} --teacher-weights {{text_file}}", "text.pth: not a checkpoint that PyTorch can read"
    ),
    "weights cut short": says(f"{KD} --teacher-weights {{half_weights}}", "half.pth: not a checkpoint", "damaged"),
    "weights of no bytes": says(f"{KD} --teacher-weights {{no_bytes}}", "no_bytes.pth: not a checkpoint"),
    "weights with code": says(f"{KD} --teacher-weights {{code}}", "code.pth: refused as unsafe", "state_dict() alone"),
    "pickle with code": says(f"{KD} --teacher-weights {{bare_code}}", "bare_code.pth: not a checkpoint that PyTorch"),
    "weights of another network": says(f"{KD} --teacher-weights {{resnet14}}", "the file fits resnet14", "unexpected"),
    "weights of other classes": says(f"{KD} --teacher-weights {{seven}}", "the file has 7 classes, the network 4"),
    "weights that are not finite": says(
        f"{KD} --teacher-weights {{broken}}", "not finite in conv1.weight", "another file"
    ),
    "weights by ftp": says(f"{KD} --teacher-weights ftp://x/y", "cannot read ftp:// addresses; use a path"),
    "output in the way": says("--output {weights}", "weights.pth: File exists; choose another --output"),
    "output below a file": says("--output {weights}/run", "Not a directory; choose another --output"),
    "output in /proc": says("--output /proc/run", "output folder /proc/run", "choose another --output"),
    "output that no system can have": says(f"--output {'x' * 300}", "File name too long; choose another --output"),
    "output of nothing": says("--output ''", "output must be a path, not ''", "leave output out"),
    "output of another run": says("--output {finished}", "already holds a run", "--resume", "another --output"),
    "resume with other arguments": says(
        "--output {finished} --resume --lr 0.3", "the arguments differ (lr was 0.02, is 0.3)", "another --output"
    ),
    "resume with another student": says(
        "--output {finished} --resume --student resnet14", "student was 'resnet8', is 'resnet14'"
    ),
    "resume with fewer epochs": says("--output {two_epochs} --resume", "2 epochs are done", "--epochs"),
    "resume of a damaged checkpoint": says(
        "--output {damaged} --resume", "checkpoint.pth", "is damaged", "restore one of them from a copy", "--output"
    ),
    "cache in the way": says(f"{KD} --teacher-cache {{weights}}", "teacher cache", "Not a directory; choose another"),
    "cache of nothing": says(f"{KD} --teacher-cache ''", "teacher_cache must be a path, not ''"),
    "cache of endless views": says(f"{KD} --teacher-cache {{own}} --view-pool 0", "needs a finite view_pool"),
    "cache of maps": says(f"{TAUGHT} at --teacher-cache {{own}}", "not feature maps", "leave out"),
}
CHECKED = {
    "check: names": says(f"{PCKD} --check --scheduler previw", "unknown name 'previw'", "did you mean 'preview'"),
    "check: numbers": says("--check --lr 0", "lr must be above 0"),
    "check: data": says(f"{FOLDER} {{cut}} --check", "b/2.png: not a readable image"),
    **{
        f"check: images cut short in both splits, {kind}": says(
            f"{given} --check", "4 images cannot be read: ", *(f"{p}.jpg: not a readable image" for p in CUT_LATE)
        )
        for kind, given in (("in memory", f"{FOLDER} {{cut_late}}"), ("streamed", f"{STREAM} {{cut_late}}"))
    },
    "check: output of another run": says("--check --output {finished}", "already holds a run"),
    "check: output that no system can have": says(
        f"--check --output {'x' * 300}", "xxx: File name too long; check the"
    ),
}
TOOLS_TOO = {
    "benchmark: no method": says("--methods ,", "--methods ',' names none", "or all", tool="benchmark"),
    "benchmark: method": says("--methods kd,pcdk", "unknown name 'pcdk'", "did you mean 'pckd'", tool="benchmark"),
    "benchmark: seeds": says("--seeds 0,one", "--seeds must be whole numbers with commas", tool="benchmark"),
    "benchmark: seed of 70 bits": says(f"--seeds {2**70}", "seed must be a whole number from", tool="benchmark"),
    "benchmark: epochs": says("--epochs 0", "epochs must be a whole number of at least 1", tool="benchmark"),
    "benchmark: no output": says("--output ''", "--output is missing: give the folder", tool="benchmark"),
    "benchmark: output": says("--output {weights}", "File exists; choose another --output", tool="benchmark"),
    "benchmark: output below a file": says("--output {weights}/x", "Not a directory; choose", tool="benchmark"),
    "benchmark: run with other arguments": says(
        "--output {compared} --epochs 2", "holds a run with other arguments (epochs was 1, is 2)", tool="benchmark"
    ),
    "benchmark: damaged result": says(
        "--output {broken_result}", "result.json: cannot be read: it is no JSON", tool="benchmark"
    ),
    "benchmark: weights": says("--teacher-weights no.pth", "no.pth: no such file", tool="benchmark"),
    "profile_net: no student": says("--student ''", "give either --student", "or --pairs paper", tool="profile_net"),
    "profile_net: batch": says("--batch-size 0", "batch_size must be at least 1, not 0", tool="profile_net"),
    "profile_net: image": says("--image-size -1", "image_size must be at least 1, not -1", tool="profile_net"),
    "profile_net: rounds": says("--rounds -1", "rounds must be at least 0, not -1", tool="profile_net"),
    "profile_net: depth": says("--depth x", "argument --depth: invalid int value: 'x'", tool="profile_net"),
    "profile_net: one class": says("--num-classes 1", "there is one class only", tool="profile_net"),
    "profile_net: seed of 70 bits": says(f"--seed {2**70}", "--seed must have 64 bits", tool="profile_net"),
    "profile_net: views": says("--compare kd@x", "after the @ stands the number of views", tool="profile_net"),
    "profile_net: views out of range": says("--compare kd@9", "an image has 1 to 4 views", tool="profile_net"),
    "profile_net: no such folder": says("--json no/x.json", "no/x.json: there is no folder", tool="profile_net"),
    "profile_net: folder for a file": says(
        "--json {empty}", "is a folder; give the name of a file", tool="profile_net"
    ),
    "profile_net: one row": says(
        "--method pckd --views 1 --batch-size 1", "'feature_alignment'", "2 or more images", tool="profile_net"
    ),
}

IMPORTS = "import torch\nfrom torch import nn\nfrom registry import *\n"


def function(kind: str, body: str) -> str:
    """A plug-in: a metric or a scheduler called "mine"."""
    given = "difficulty, context" if kind == "DIFFICULTY_SCHEDULERS" else "student, teacher, context"
    return f'{IMPORTS}@{kind}.register("mine")\ndef function({given}):\n    {body}\n'


def scheduler(body: str, *parts: str) -> Case:
    return Case(f"{KD} --scheduler mine", parts, function("DIFFICULTY_SCHEDULERS", body))


def metric(body: str, *parts: str) -> Case:
    return Case(f"{KD} --difficulty mine --scheduler preview", parts, function("DIFFICULTY_METRICS", body))


def loss(
    body: str,
    *parts: str,
    init: str = "pass",
    facts: str = "",
    terms: str = "Term('cross_entropy'), Term('mine')",
    arguments: str = "",
) -> Case:
    """A loss called "mine" and a method of that name."""
    source = f"""{IMPORTS}
@LOSSES.register("mine")
class Mine(nn.Module):
    {facts}
    def __init__(self, setup):
        super().__init__()
        {init}
    def forward(self, student, teacher, context):
        {body}
@METHODS.register("mine")
def mine():
    return [{terms}]
"""
    return Case(f"{TAUGHT} mine {arguments}", parts, source)


def method(body: str, *parts: str) -> Case:
    return Case(f"{TAUGHT} mine", parts, f'{IMPORTS}@METHODS.register("mine")\ndef mine():\n    {body}\n')


def rule(body: str, *parts: str, update: str = "pass", base: str = "CenterRule") -> Case:
    source = f"""{IMPORTS}
@CENTER_RULES.register("mine")
class Mine({base}):
    def __init__(self, setup):
        super().__init__()
    def forward(self, student_net, teacher_net):
        {body}
    def {"update" if update else "unused"}(self, student, teacher, labels):
        {update or "pass"}
"""
    return Case(f"{PCKD} --views 1 --centers mine", parts, source)


def backbone(body: str, *parts: str, init: str = "", arguments: str = "--student mine") -> Case:
    source = f"""{IMPORTS}
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Linear(8, classes)
        {init}
    def forward(self, x):
        embedding = self.body(x).relu().mean((2, 3))
        {body}
@BACKBONES.register("mine")
def mine(num_classes, in_channels=3):
    return Net(num_classes)
"""
    return Case(arguments, parts, source)


def dataset(body: str, *parts: str) -> Case:
    """A data set called "mine": ``split`` is a good one of 8 images, of which the body returns some change."""
    source = f"""{IMPORTS}
from dataclasses import replace
class Items(torch.utils.data.Dataset):
    def __init__(self, read): self.read = read
    def __len__(self): return 8
    def __getitem__(self, i): return self.read(i)
@DATASETS.register("mine")
def mine(root=None, train=True):
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    split = DataSplit(images, torch.arange(8) % 2, ("a", "b"), (0.5,) * 3, (0.5,) * 3, name="mine")
    {body}
"""
    return Case("--batch-size 4 --dataset mine", parts, source)


def file(source: str, *parts: str) -> Case:
    return Case("", parts, source)


OUTPUT = "Output(self.classifier(embedding), embedding)"
CENTERS = "Centers(student_net.classifier.weight, teacher_net.classifier.weight.detach())"
PLUGINS = {
    "plug-in missing": says("--plugin {world}/no.py", "plug-in", "no.py: no such file"),
    "plug-in in a folder": says("--plugin {empty}/", "no such file, but a folder; give a .py file"),
    "plug-in that no system can have": says(f"--plugin {'x' * 300}.py", "no such file"),
    "plug-in module missing": says(
        "--plugin no.such.module", "plug-in module 'no.such.module'", "No module named 'no'"
    ),
    "plug-in of bad syntax": file("import torch\ndef (:\n", "mine.py: line 2 of mine.py: SyntaxError: "),
    "plug-in of bytes": file("\0\1\2", "plug-in", "mine.py: "),
    "plug-in that raises": file("\n\nraise OSError('no luck')\n", "line 3 of mine.py: OSError: no luck"),
    "plug-in that exits": file("import sys\nsys.exit(0)\n", "line 2 of mine.py: SystemExit: 0"),
    "plug-in of a taken name": file(
        "from registry import LOSSES\n@LOSSES.register('kd')\ndef kd(setup): ...\n", "'kd' is taken", "another name"
    ),
    "scheduler raises": scheduler(
        "raise ValueError('boom')", "scheduler 'mine' raised ValueError: boom (line 6 of mine.py)"
    ),
    "check: scheduler raises": scheduler("raise ValueError('boom')", "scheduler mine", "boom")._replace(
        arguments=f"{KD} --scheduler mine --check"
    ),
    "scheduler raises lines": scheduler(
        "raise ValueError('one\\ntwo')", "scheduler 'mine' raised ValueError: one two (l"
    ),
    "scheduler fails in torch": scheduler(
        "return difficulty @ torch.ones(99)", "scheduler 'mine' raised RuntimeError: ", "(line 6 of mine.py)"
    ),
    "scheduler of another shape": scheduler(
        "return difficulty[:3]", "scheduler 'mine' returned values of shape (3,) for 8 images", "one weight an image"
    ),
    "scheduler of no tensor": scheduler("return 1.0", "scheduler 'mine' returned float for 8 images", "one weight"),
    "scheduler of nan": scheduler(
        "return difficulty * float('nan')", "scheduler 'mine' gave a weight that is not finite"
    ),
    "scheduler of inf": scheduler("return difficulty / 0", "scheduler 'mine' gave a weight that is not finite"),
    "scheduler below zero": scheduler(
        "return torch.full_like(difficulty, -0.5)",
        "scheduler 'mine' gave a weight of -0.5: a weight must be 0 or above",
    ),
    "metric raises": metric(
        "raise KeyError('boom')", "difficulty metric 'mine' raised KeyError: 'boom' (line 6 of mine.py)"
    ),
    "metric of another shape": metric(
        "return student.logits", "difficulty metric 'mine' returned values of shape (8, 4)", "one difficulty an image"
    ),
    "metric of nothing": metric("pass", "difficulty metric 'mine' returned NoneType for 8 images"),
    "metric of nan": metric(
        "return student.logits[:, 0].detach() * float('nan')",
        "difficulty metric 'mine' gave a difficulty that is not finite",
    ),
    "loss raises": loss("raise ValueError('boom')", "loss 'mine' raised ValueError: boom (line 12 of mine.py)"),
    "loss cannot be built": loss(
        "pass", "loss 'mine' raised AttributeError", "(line 10 of mine.py)", init="setup.student.width"
    ),
    "loss of another shape": loss(
        "return student.logits", "mine returned values of shape (8, 4) for 8 rows", "a scalar"
    ),
    "loss of nothing": loss("pass", "mine returned NoneType", "it must return a floating-point tensor"),
    "loss of whole numbers": loss("return context.labels", "mine returned torch.int64", "a floating-point tensor"),
    "loss of nan": loss(
        "return student.logits.mean(1) * float('nan')", "epoch 1, step 1: mine is not finite", "that term's weight"
    ),
    "loss that compares rows": loss(
        "return student.logits.mean(1)",
        *("mine compares 3 or more rows of a batch, and the smallest batch has 2 for it", "use a larger batch"),
        facts="needs_rows = 3",
        arguments="--batch-size 2",
    ),
    "loss that answers with an error": loss(
        "return student.logits.mean(1)",
        "loss 'Mine' raised ValueError: boom",
        facts="classifier = None\n    def predict(self, student): raise ValueError('boom')",
    ),
    "method raises": method("raise ValueError('boom')", "method 'mine' raised ValueError: boom (line 6 of mine.py)"),
    "method of nothing": method("pass", "method 'mine' returned None: it must return a list of registry.Term"),
    "method of names": method("return ['kd']", "method 'mine' returned ['kd']", "a list of registry.Term"),
    "method of an unknown loss": method("return [Term('kdd')]", "LOSSES: unknown name 'kdd'", "did you mean 'kd'"),
    "method of an option that a loss lacks": method("return [Term('kd', options={'t': 1})]", "kd has no option 't'"),
    "method of unknown views": method(
        "return [Term('kd', views='both')]", "term kd: rows must be upright, all, strong or images"
    ),
    "method without a main stage": method(
        "return [Term('kd', initial=1, main=False)]", "only terms for initial epochs", "main=True"
    ),
    "method without a gradient": loss(
        "return torch.ones(8)", "nothing to train by: none of mine has", terms="Term('mine')"
    ),
    "center rule raises": rule(
        "raise ValueError('boom')", "center rule 'Mine' raised ValueError: boom (line 10 of mine.py)"
    ),
    "center rule of nothing": rule("pass", "center rule 'Mine' returned NoneType", "registry.Centers"),
    "center rule of another shape": rule(
        "return Centers(torch.ones(2, 3), torch.ones(4, 64))",
        "center rule 'Mine' returned [2, 3] as the student's centers: they must be [4, 64], one row a class",
    ),
    "center rule of numbers": rule("return Centers(0.0, 0.0)", "center rule 'Mine' returned float as the student's"),
    "center rule whose update raises": rule(
        f"return {CENTERS}",
        "center rule 'Mine' raised ValueError: boom (line 12 of mine.py)",
        update="raise ValueError('boom')",
    ),
    "center rule that is none": rule(
        "pass", "center rule: a Mine is none; derive it from", update="", base="nn.Module"
    ),
    "backbone cannot be built": backbone(
        "pass", "backbone 'mine' raised ValueError: boom", init="raise ValueError('boom')"
    ),
    "backbone raises": backbone("raise ValueError('boom')", "the student cannot run on images of 3 x 8 x 8", "boom"),
    "backbone of no output": backbone(
        "return embedding", "the student: forward must return registry.Output, not Tensor"
    ),
    "backbone without a classifier": backbone(
        "return Output(embedding[:, :4], embedding)",
        "the student: .classifier must be the last nn.Linear",
        init="del self.classifier",
    ),
    "backbone of other classes": backbone(
        f"return {OUTPUT}", "the student has 3 classes, the data set shapes", init="self.classifier = nn.Linear(8, 3)"
    ),
    "teacher of other classes": backbone(
        f"return {OUTPUT}",
        *("the teacher has 3 classes, the data set shapes", "they must be the same"),
        init="self.classifier = nn.Linear(8, 3)",
        arguments="--method kd --teacher mine --teacher-weights {three}",
    ),
    "data set raises": dataset(
        "raise ValueError('boom')", "data set 'mine' raised ValueError: boom (line 14 of mine.py)"
    ),
    "data set of nothing": dataset("pass", "data set 'mine' returned NoneType: it must return registry.DataSplit"),
    "labels too high": dataset(
        "return replace(split, labels=torch.arange(8))", "mine: labels run from 0 to 7", "each must be 0 to 1"
    ),
    "labels below 0": dataset("return replace(split, labels=torch.arange(8) - 7)", "mine: labels run from -7 to 0"),
    "labels in floating point": dataset(
        "return replace(split, labels=torch.zeros(8))", "mine: labels must be whole numbers [M], not float32 [8]"
    ),
    "labels in a list": dataset("return replace(split, labels=[0] * 8)", "labels must be whole numbers [M], not list"),
    "too few labels": dataset("return replace(split, labels=split.labels[:5])", "mine: 8 images but 5 labels"),
    "images in floating point": dataset(
        "return replace(split, images=images.float())",
        "mine: images must be uint8 [M, C, H, W], not float32 [8, 3, 8, 8]",
    ),
    "no images": dataset("return replace(split, images=images[:0], labels=split.labels[:0])", "split is empty"),
    "mean of one number": dataset("return replace(split, mean=(0.5,))", "mine: mean has 1 numbers, the images have 3"),
    "deviation below 0": dataset(
        "return replace(split, std=(1.0, -1.0, 1.0))", "mine: std must be above 0, not (1.0, -1"
    ),
    "other classes in the test split": dataset(
        "return replace(split, classes=('a', 'b') if train else ('b', 'a'))",
        "mine: training and test split have different classes",
    ),
    "other channels in the test split": dataset(
        "return split if train else replace(split, images=images[:, :1], mean=(0.5,), std=(0.5,))",
        "have 3 channels, test images 1",
    ),
    "item that cannot be read": dataset(
        "return replace(split, images=Items(lambda i: images[i] if i != 3 else 1 / 0))",
        "image 3 of the data set raised ZeroDivisionError: division by zero (line 14 of mine.py)",
    ),
    "items of floats": dataset(
        "return replace(split, images=Items(lambda i: images[i].float()))",
        "an image must be uint8 [C, H, W], not float32",
    ),
    "items of two sizes": dataset(
        "return replace(split, images=Items(lambda i: images[i] if i != 3 else images[i, :, 1:]))",
        *("of the data set: its shape is", "[3, 7, 8]", "all must have the same"),
    ),
    "item of floats among others": dataset(
        "return replace(split, images=Items(lambda i: images[i] if i != 3 else images[i].float()))",
        "image 3 of the data set: it must be uint8 [C, H, W], not float32 [3, 8, 8]",
    ),
}
CASES = {**NUMBERS, **CHOICES, **FOLDERS, **FILES, **CHECKED, **TOOLS_TOO, **PLUGINS}


class SideEffect:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def folder_of_images(
    root: Path, classes: str = "ab", size: tuple[int, int] = (8, 8), splits: str = "train test", suffix: str = "png"
) -> Path:
    """A folder for ``imagefolder``: four images a class."""
    generator = np.random.default_rng(0)
    for split in splits.split():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.{suffix}")
    return root


def bad_folders(world: Path) -> Iterator[Path]:
    for name in ("text", "zero", "cut"):
        path = folder_of_images(world / name) / "train" / "b" / "2.png"
        content = path.read_bytes()
        path.write_bytes({"text": b"no image", "zero": b"", "cut": content[: len(content) // 2]}[name])
        yield world / name
    cut_late = folder_of_images(world / "cut_late", suffix="jpg")
    for name in CUT_LATE:
        path = cut_late / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:-30])
    yield cut_late
    dark = folder_of_images(world / "dark")
    Image.fromarray(np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)).save(dark / "train" / "b" / "bits.png")
    yield dark
    two_forms = folder_of_images(world / "two_forms")
    for split in ("train", "test"):
        (two_forms / split / "a").rename(two_forms / split / "caf\xe9")
        (two_forms / split / "b").rename(two_forms / split / "cafe\u0301")
    yield two_forms
    linked = folder_of_images(world / "linked")
    for split in ("train", "test"):
        (linked / split / "c").symlink_to("a")
    yield linked
    mixed = folder_of_images(world / "mixed")
    Image.new("RGB", (9, 10)).save(mixed / "train" / "b" / "z.png")
    no_image = folder_of_images(world / "no_image")
    for split in ("train", "test"):
        (no_image / split / "c").mkdir()
    other = folder_of_images(world / "other_classes")
    (other / "test" / "b").rename(other / "test" / "c")
    no_class = world / "no_class"
    for split in ("train", "test"):
        (no_class / split).mkdir(parents=True)
    yield from (mixed, no_image, other, no_class)
    yield folder_of_images(world / "one_class", "a")
    yield folder_of_images(world / "no_test", splits="train")
    yield folder_of_images(world / "wide", size=(8, 12))
    yield folder_of_images(world / "good")
    modes = folder_of_images(world / "modes")
    for split in ("train", "test"):
        Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save(modes / split / "a" / "cmyk.jpg")
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(modes / split / "b" / "bits.png")
    yield modes


def bad_weights(world: Path) -> Iterator[tuple[str, Path]]:
    def saved(name: str, network: str = "resnet8", classes: int = CLASSES) -> Path:
        return save_weights(build(BACKBONES, network, classes), world / f"{name}.pth")

    torch.manual_seed(0)
    weights = saved("weights")
    yield "weights", weights
    yield "resnet14", saved("resnet14", "resnet14")
    yield "seven", saved("seven", classes=7)
    state = build(BACKBONES, "resnet8", CLASSES).state_dict()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, world / "broken.pth")
    torch.save({"model": SideEffect(world / "code_ran")}, world / "code.pth")
    whole = weights.read_bytes()
    contents = {
        "text_file": ("text.pth", b"no weights"),
        "half_weights": ("half.pth", whole[: len(whole) // 2]),
        "no_bytes": ("no_bytes.pth", b""),
        "bare_code": ("bare_code.pth", pickle.dumps(SideEffect(world / "code_ran"))),
    }
    for name, (file, content) in contents.items():
        (world / file).write_bytes(content)
        yield name, world / file
    net = torch.nn.ModuleDict({"body": torch.nn.Conv2d(3, 8, 3), "classifier": torch.nn.Linear(8, 3)})
    yield "three", save_weights(net, world / "three.pth")
    yield "broken", world / "broken.pth"
    yield "code", world / "code.pth"


class World(NamedTuple):
    """Files that the cases name, made once; no case may change them."""

    places: dict[str, str]

    def command(self, tool: str, arguments: str, output: Path) -> list[str]:
        places = {**self.places, "output": str(output), "own": str(output.with_name("own"))}
        given = [part.format(**places) if "{" in part else part for part in shlex.split(arguments)]
        return [*(part.format(**places) for part in BASE[tool]), *given]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, load_module: Callable[[str], ModuleType]) -> World:
    root = tmp_path_factory.mktemp("world")
    (root / "empty").mkdir()
    places = {"world": root, "empty": root / "empty", **{path.name: path for path in bad_folders(root)}}
    places.update(bad_weights(root))
    made = World({name: str(path) for name, path in places.items()})
    runs = {name: root / name for name in ("finished", "two_epochs", "damaged", "compared", "broken_result")}
    for name, folder in runs.items():
        tool, more = ("benchmark", "") if name in ("compared", "broken_result") else ("train_net", "--lr 0.02")
        assert load_module(tool).main(made.command(tool, more + " --epochs 2" * (name == "two_epochs"), folder)) == 0
    (runs["damaged"] / "checkpoint.pth").write_bytes(b"no checkpoint")
    (runs["broken_result"] / "resnet8_resnet8" / "kd-seed0" / "result.json").write_text("{")
    return World({**made.places, **{name: str(folder) for name, folder in runs.items()}})


class Ran(NamedTuple):
    """What a command line did."""

    code: object
    out: str
    err: str
    warnings: list[str]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    load_module: Callable[[str], ModuleType],
) -> Callable[[str, list[str]], Ran]:
    """Run a tool's command line in this process, in an empty folder and with a cache of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))

    def run(tool: str, command: list[str]) -> Ran:
        monkeypatch.setattr(sys, "argv", [f"{tool}.py"])
        module = load_module(tool)
        known = [(registry, registry._snapshot()) for registry in REGISTRIES]
        capfd.readouterr()
        recwarn.clear()
        try:
            code: object = module.main(command)
        except SystemExit as error:
            code = error.code
        finally:
            # As in a process of its own, the next one knows nothing of this one's plug-ins.
            for registry, state in known:
                registry._restore(state)
            for name in [name for name in sys.modules if name.startswith("pckd_plugin_mine_")]:
                del sys.modules[name]
        silent = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
        printed = [str(warning.message) for warning in recwarn if not issubclass(warning.category, silent)]
        return Ran(code, *capfd.readouterr(), printed)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; not the locks, which say whose they were last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def with_plugin(arguments: str, plugin: str, folder: Path) -> str:
    if not plugin:
        return arguments
    (folder / "mine.py").write_text(plugin)
    return f"{arguments} --plugin {folder / 'mine.py'}"


def check_refused(ran: Ran, tool: str, parts: tuple[str, ...]) -> None:
    assert ran.code == 2, (ran.code, ran.err)
    assert ran.err.startswith(f"{tool}.py: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for part in parts:
        assert part in ran.err
    assert "Traceback" not in ran.out + ran.err
    assert ran.warnings == []


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path) -> None:
    case = CASES[name]
    output, root = tmp_path / "output", Path(world.places["world"])
    command = world.command(case.tool, with_plugin(case.arguments, case.plugin, tmp_path), output)
    before = contents(root)
    ran = run(case.tool, command)
    check_refused(ran, case.tool, case.says)
    assert contents(root) == before
    assert not (root / "code_ran").exists()
    for folder in ("output", "cache", "here"):
        assert contents(tmp_path / folder) == {}


def test_there_are_many_cases_and_each_says_something() -> None:
    assert len(CASES) == sum(map(len, (NUMBERS, CHOICES, FOLDERS, FILES, CHECKED, TOOLS_TOO, PLUGINS)))
    assert len(CASES) >= 200
    assert all(case.says for case in CASES.values())


# What may look bad and is not


ACCEPTED = {
    "seed below 0": "--seed -5",
    "highest seed": f"--seed {2**63 - 2}",
    "no momentum, no decay": "--momentum 0 --weight-decay 0",
    "batch larger than the data": "--batch-size 1000",
    "batch of one image": "--batch-size 1",
    "training set of one image": "--limit-train 1",
    "a checkpoint each step": "--checkpoint-every 1",
    "a loss in another's place": f"{PCKD} --views 1 \"--method=pckd(contrast='kd')\"",
    "methods that compare rows, of which there is one": f"{TAUGHT} rkd+sp+cc --batch-size 1",
    "images of mixed sizes, resized": f"{FOLDER} {{mixed}} --dataset imagefolder(image_size=8)",
    "images that are not square": f"{FOLDER} {{wide}}",
    "no test set, but a part held out": f"{FOLDER} {{no_test}} --val-fraction 0.5",
    "images cut short, skipped": f"{FOLDER} {{cut_late}} --on-bad-image skip",
    "streamed images cut short, skipped": f"{STREAM} {{cut_late}} --on-bad-image skip --num-workers 1",
    "12 bits in 16, of which white is given": f"{FOLDER} {{dark}} --dataset imagefolder(white=4095)",
    "CMYK and 16 bits": f"{FOLDER} {{modes}}",
    "CMYK and 16 bits, streamed": f"{STREAM} {{modes}}",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path) -> None:
    ran = run("train_net", world.command("train_net", ACCEPTED[name], tmp_path / "output"))
    assert (ran.code, ran.err, ran.warnings) == (0, "", [])
    assert len((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_mask_is_a_weight(world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path) -> None:
    case = scheduler("return difficulty < 1")
    arguments = with_plugin(case.arguments, case.plugin, tmp_path)
    assert run("train_net", world.command("train_net", arguments, tmp_path / "output")).code == 0
    row = json.loads((tmp_path / "output" / "metrics.jsonl").read_text())
    assert row["preview_weight"] == pytest.approx(1 - row["previewed"])
    assert 0 < row["preview_weight"] < 1


# What is left behind


def test_a_command_that_was_refused_at_its_first_step_can_be_mended(
    world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path
) -> None:
    """Without --resume and in the same folder: nothing of a run is in it."""
    for body, code in (("raise ValueError('boom')", 2), ("return difficulty.sigmoid()", 0)):
        folder = tmp_path / str(code)
        folder.mkdir()
        arguments = with_plugin(*scheduler(body)[::2], folder)
        assert run("train_net", world.command("train_net", arguments, tmp_path / "output")).code == code


def test_an_error_in_the_second_epoch_leaves_the_first(
    world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path
) -> None:
    case = scheduler("return difficulty.sigmoid() * (1 / (2 - context.epoch))")
    arguments = with_plugin(f"{case.arguments} --epochs 3", case.plugin, tmp_path)
    command = world.command("train_net", arguments, tmp_path / "output")
    ran = run("train_net", command)
    check_refused(ran, "train_net", ("scheduler 'mine' raised ZeroDivisionError: division by zero",))
    assert sorted(contents(tmp_path / "output")) == ["checkpoint.pth", "metrics.jsonl"]
    before = contents(tmp_path / "output")
    assert len(before["metrics.jsonl"].splitlines()) == 1
    # As whole as it looks: a resumed run gets as far as this one did, and changes nothing.
    assert run("train_net", [*command, "--resume"]).err == ran.err
    assert contents(tmp_path / "output") == before


@pytest.mark.parametrize("part", ["objective", "student"])
def test_resuming_with_a_plugin_that_has_changed(
    part: str, world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path
) -> None:
    for width in (5, 6):
        folder = tmp_path / str(width)
        folder.mkdir()
        case = loss("return self.layer(student.embedding).mean(1)", init=f"self.layer = nn.Linear(64, {width})")
        if part == "student":
            case = backbone(f"return {OUTPUT}", init=f"self.more = nn.Linear(1, {width})")
        arguments = with_plugin(f"{case.arguments} --epochs {width}", case.plugin, folder)
        resume = [] if width == 5 else ["--resume"]
        before = contents(tmp_path / "output")
        ran = run("train_net", [*world.command("train_net", arguments, tmp_path / "output"), *resume])
        assert ran.code == (0 if width == 5 else 2)
    check_refused(ran, "train_net", (f"cannot resume: the {part} is another than before", "size mismatch", "--output"))
    assert contents(tmp_path / "output") == before


def test_a_file_that_may_not_be_read(world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path) -> None:
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("nothing is forbidden to this user")
    plugin = tmp_path / "mine.py"
    plugin.touch(0o000)
    ran = run("train_net", world.command("train_net", f"--plugin {plugin}", tmp_path / "output"))
    check_refused(ran, "train_net", (str(plugin), "PermissionError: "))


# What is no bad input, and how to see more


def test_an_interrupt_in_a_plugin_is_an_interrupt(
    world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path
) -> None:
    arguments = with_plugin(*scheduler("raise KeyboardInterrupt")[::2], tmp_path)
    ran = run("train_net", world.command("train_net", arguments, tmp_path / "output"))
    assert ran.code == 130
    assert ran.err.startswith("train_net.py: interrupted; continue with the same command and --resume")


def test_debug_shows_the_error_of_the_plugin(
    world: World, run: Callable[[str, list[str]], Ran], tmp_path: Path
) -> None:
    arguments = with_plugin(*scheduler("raise ValueError('boom')")[::2], tmp_path)
    command = world.command("train_net", f"{arguments} --debug", tmp_path / "output")
    with pytest.raises(PluginError, match="scheduler 'mine' raised ValueError: boom") as caught:
        run("train_net", command)
    assert type(caught.value.__cause__) is ValueError
    assert Path(caught.traceback[-1].path).name == "errors.py"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "x/y"), "x/y: No such file or directory; check the path"),
        (OSError("odd"), "odd; check the path, its permissions and the disk"),
        (MemoryError("Unable to allocate 8 GiB"), "out of memory (Unable to allocate 8 GiB); use a smaller batch"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "out of memory (CUDA out of memory. Tried)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8"), "out of memory (DefaultCPUAllocator"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool.py"])
    parser = cli.Parser("A tool.")
    parser.add_common()

    def run(_: object) -> int:
        # Also from within a plug-in they are not said to be its own.
        return ask("plug-in 'mine'", fail) if not isinstance(error, OSError) else fail()

    def fail() -> int:
        raise error

    assert cli.run_tool(parser, run, []) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tool.py: error: {text}")
    assert err.count("\n") == 1
    with pytest.raises(type(error)):
        cli.run_tool(parser, run, ["--debug"])


def test_a_fault_of_the_program_is_a_traceback() -> None:
    parser = cli.Parser("A tool.")
    parser.add_common()

    def run(_: object) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run_tool(parser, run, [])


# From Python, where values have types


def teacher_of(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    network: torch.nn.Module = build(BACKBONES, "resnet8", classes)
    return network


NETWORK = teacher_of(CLASSES)
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "student that is the teacher": ({"student": NETWORK, "teacher": NETWORK, "method": "kd"}, "are the same object"),
    "teacher of other classes": ({"teacher": teacher_of(7), "method": "kd"}, "the teacher has 7 classes"),
    "no teacher for a module": ({"student": teacher_of(CLASSES), "method": "kd"}, "needs a teacher, and none is given"),
    "epochs in floating point": ({"epochs": 1.0}, "epochs must be a whole number of at least 1, not 1.0"),
    "epochs in text": ({"epochs": "1"}, "epochs must be a whole number of at least 1, not '1'"),
    "batch of True": ({"batch_size": True}, "batch_size must be a whole number of at least 1, not True"),
    "images in floating point": ({"limit_train": 2.5}, "limit_train must be a whole number of at least 1, not 2.5"),
    "rate in text": ({"lr": "0.1"}, "lr must be a finite number of at least 0, not '0.1'"),
    "views out of range": ({"views": 5}, "views must be a whole number from 1 to 4, not 5"),
    "seed in text": ({"seed": "0"}, "seed must be a whole number"),
    "path that is none": ({"output": 5}, "output must be a path, not 5"),
    "student that is none": ({"student": 8}, "the student must be an nn.Module or the name of a network, not int"),
    "data that are none": ({"data": 8}, "cannot read 8: expected text"),
    "method without terms": ({"method": []}, "the method has no term"),
    "weight that is no number": (
        {"method": [Term("cross_entropy", float("nan"))]},
        "its weight must be a finite number",
    ),
    "weight in text": ({"method": [Term("cross_entropy", "1")]}, "must be a finite number, not '1'"),  # type: ignore[arg-type]
    "views that are none": (
        {"method": [Term("cross_entropy", views="up")]},  # type: ignore[arg-type]
        "rows must be upright, all, strong or images, not 'up'",
    ),
    "loss that is none": (
        {"teacher": teacher_of(CLASSES), "method": [Term(lambda setup: 5, name="five")]},  # type: ignore[arg-type, return-value]
        "loss 'five': its factory made int",
    ),
    "on nonfinite": ({"on_nonfinite": "ask"}, "on_nonfinite must be stop or skip, not 'ask'"),
    "on bad image": ({"on_bad_image": "ask"}, "on_bad_image must be stop or skip, not 'ask'"),
    "precision": ({"precision": "fp16"}, "precision must be auto, fp32 or bf16, not 'fp16'"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_arguments_from_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    arguments, text = CALLS[name]
    usual = {"student": "resnet8", "method": "vanilla", "data": DATA, "epochs": 1, "batch_size": 8, "device": "cpu"}
    with pytest.raises(UserError) as caught:
        pckd.distill(**{**usual, "output": tmp_path / "output", **arguments})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {}


# As processes of their own


PROCESSES = [
    "batch size 0",
    "pickle with code",
    "image cut short, read by workers",
    "scheduler fails in torch",
    "benchmark: damaged result",
]


def test_a_process_does_the_same(world: World, tmp_path: Path) -> None:
    environment = {**os.environ, "PCKD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    started = []
    for number, name in enumerate(PROCESSES):
        case, folder = CASES[name], tmp_path / str(number)
        folder.mkdir()
        arguments = with_plugin(case.arguments, case.plugin, folder)
        command = [sys.executable, str(TOOLS / f"{case.tool}.py")]
        command += world.command(case.tool, arguments, folder / "output")
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append((case, folder, subprocess.Popen(command, cwd=folder, env=environment, **pipes)))
    for case, folder, process in started:
        out, err = process.communicate(timeout=300)
        check_refused(Ran(process.returncode, out, err, []), case.tool, case.says)
        assert contents(folder / "output") == {}
    assert not Path(world.places["world"], "code_ran").exists()


# On an accelerator, where looking at a value makes the host wait


class Elsewhere(torch.Tensor):
    """A tensor that says it is on an accelerator, and counts how often the host looks at its values."""

    looks = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.Tensor.__float__, torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist):
            cls.looks += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def below_zero_halfway(difficulty: Tensor, context: Context) -> Tensor:
    weights = difficulty.sigmoid() - float(context.progress == 0.5)
    return weights if torch.cuda.is_available() else weights.as_subclass(Elsewhere)


def test_weights_below_zero_on_an_accelerator_are_said_at_the_next_epoch() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0)).to(device)
    output, labels = Output(logits, logits), torch.arange(8, device=device) % CLASSES
    setup = Setup(Shapes.of(output), Shapes.of(output))
    objective = Objective(
        [Term("kd", previewed=True)],
        setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=below_zero_halfway,
        centers=build(CENTER_RULES, "classifier", setup),
    )

    def step(epoch: int, progress: float) -> None:
        context = Context(Instances(labels, labels), Centers(logits, logits), epoch=epoch, progress=progress)
        objective.weights(output, output, context)

    step(1, 0.0)
    looks = Elsewhere.looks
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for progress in (0.25, 0.5, 0.75):
            step(1, progress)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert Elsewhere.looks == looks
    said = r"scheduler 'below_zero_halfway' gave a weight of -0\.\d+: a weight must be 0 or above"
    with pytest.raises(UserError, match=said):
        step(2, 1.0)

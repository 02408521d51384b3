"""Bad input, case by case, on the real command lines: exit code 2, one line that says what and what to do, no traces.

Each case runs in this process; some run again as processes of their own, where what libraries print counts, too.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
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
FILE = "--method kd --teacher resnet8 --teacher-weights"
FOLDER = "--batch-size 4 --dataset imagefolder --data-root"
STREAM = "--batch-size 4 --dataset imagefolder(memory=False) --data-root"
GOOD = f"{FOLDER} {{good}} --dataset"
CACHED = "--method kd --teacher resnet8 --teacher-cache {own}"
LONG = "x" * 300
"""A name that no file system can have."""
BY_WORKERS = ("b/2.png: not a readable image",)
NO_JSON = ("result.json: cannot be read: it is no JSON",)
IN_TORCH = ("scheduler 'mine' raised RuntimeError: ", "(line 6 of mine.py)")
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
"""Command lines that work, and what each case's arguments are added to: of an option given twice, the last counts,
but for teachers and their weights."""


class Case(NamedTuple):
    """Arguments, as in a shell (``{names}`` are those of :func:`make_world`), and what the one line must say."""

    arguments: str
    says: tuple[str, ...]
    plugin: str = ""
    """Python source, loaded from ``mine.py``."""
    tool: str = "train_net"


def says(arguments: str, *parts: str, tool: str = "train_net") -> Case:
    return Case(arguments, parts, tool=tool)


# A range is a fact of each argument; how it is refused is one code for all.
NUMBERS = [
    says("--epochs 0", "epochs must be a whole number of at least 1, not 0"),
    says("--epochs 1.5", "argument --epochs: invalid int value: '1.5'", "--help"),
    says(f"{KD} --teacher-epochs 0", "teacher_epochs must be a whole number of at least 1, not 0"),
    says("--batch-size -3", "batch_size must be a whole number of at least 1, not -3"),
    says("--lr 0", "lr must be above 0, not 0"),
    says("--lr -1", "lr must be a finite number of at least 0, not -1"),
    says("--lr nan", "lr must be a finite number", "not nan"),
    says("--lr abc", "argument --lr: invalid float value: 'abc'"),
    says("--lr", "argument --lr: expected one argument"),
    says("--lr 1e300", "step 2: cross_entropy is not finite", "lower the learning rate"),
    says(f"{KD} --teacher-lr 0", "teacher_lr must be above 0, not 0"),
    says("--weight-decay -1", "weight_decay must be a finite number of at least 0, not -1"),
    says("--momentum -0.1", "momentum must be at least 0 and below 1, not -0.1"),
    says("--momentum 1", "momentum must be at least 0 and below 1, not 1"),
    says("--momentum nan", "momentum must be at least 0 and below 1, not nan"),
    says(f"--seed {2**63 - 1}", "seed must be a whole number from", f"to {2**63 - 2}, not {2**63 - 1}"),
    says("--num-workers 1025", "num_workers must be a whole number from 0 to 1024, not 1025"),
    says("--views 5", "argument --views: invalid choice: 5", "1, 2, 3, 4"),
    says("--val-fraction 1", "hold out the fraction 1.0: it must be above 0 and below 1"),
    says("--val-fraction nan", "hold out the fraction nan"),
    says("--val-fraction 0.001", "0.001 of shapes train", "one part would be empty"),
    says("--limit-train 0", "limit_train must be a whole number of at least 1, not 0"),
    says("--limit-train 25", "cannot take 25 images of shapes train", "give 1 to 24"),
    says("--limit-test 0", "limit_test must be a whole number of at least 1, not 0"),
    says("--limit-test 13", "cannot take 13 images of shapes test", "give 1 to 12"),
    says("--view-pool -1", "view_pool must be a whole number from 0 to 65535, not -1"),
    says("--checkpoint-every 0", "checkpoint_every must be a whole number of at least 1, not 0"),
    says("--checkpoint-every abc", "--checkpoint-every: must be a number of steps, or epoch", "'abc'"),
    says(f"{TAUGHT} kd(weight=1e999)", "term kd: its weight must be a finite number, not inf"),
]
CHOICES = [
    says("--on-nonfinite x", "argument --on-nonfinite: invalid choice: 'x'", "stop", "skip"),
    says("--precision x", "argument --precision: invalid choice: 'x'", "bf16"),
    says("--device nonsense", "device 'nonsense' cannot be used here", "cpu, cuda"),
    says("'--x\ny'", "unrecognized arguments: --x y", "--help"),
    says("--list method", "argument --list: invalid choice: 'method'", "methods"),
    says("--list methods:dkkd", "METHODS: unknown name 'dkkd'", "did you mean 'dkd'"),
    says("--student ''", "--student is missing; try --student resnet8x4"),
    says("--resume --output ''", "--resume needs the --output folder"),
    says("--tensorboard --output ''", "--track tensorboard needs the --output folder"),
    says("--student-weights none.pth", "none.pth: no such file"),
    says("--student-weights ''", "student_weights must be a path"),
    says("--track csv --output ''", "--track csv needs the --output folder", "csv(folder="),
    says("--track tabel", "TRACKERS: unknown name 'tabel'"),
    says("--track 'csv(project=1)'", "TRACKERS: csv has no option 'project'"),
    says("--track 'csv(folder=3)'", "folder must be a path, not 3"),
    says("--track 'csv(folder=\"{weights}/x\")'", "cannot track the run in", "Not a directory"),
    says("--student reznet8", "unknown name 'reznet8'", "did you mean 'resnet8'"),
    says("--student torchvision:resnet81", "torchvision has no", "'resnet81'", "did you mean"),
    says("--student 'res\nnet'", r"cannot read 'res\nnet'", "expected name"),
    says("--method kd --teacher reznet20", "unknown name 'reznet20'", "did you mean 'resnet20'"),
    says("--method pcdk", "METHODS: unknown name 'pcdk'", "did you mean 'pckd'"),
    says("--method crrcd", "method 'crrcd' is left out: cross-resolution relational"),
    says("--dataset shape", "DATASETS: unknown name 'shape'", "did you mean 'shapes'"),
    says(f"{PCKD} --difficulty crossentropy", "unknown name 'crossentropy'", "mean 'cross_entropy'"),
    # Said before the teacher is trained.
    says("--method kd --scheduler previw", "unknown name 'previw'", "did you mean 'preview'"),
    says("--method pckd --centers ema(m=1)", "ema has no option 'm'", "momentum"),
    says(f"{PCKD} --centers clasifier", "unknown name 'clasifier'", "did you mean 'classifier'"),
    says(f"{PCKD} --scheduler preview(growth=abc)", "value of 'growth' must be a literal", "a number"),
    says(f"{PCKD} --scheduler preview(growth=True)", "'growth' must be float, not True"),
    says(f"{TAUGHT} kd(temperature=0)", "kd: temperature must be above 0, not 0"),
    says(f"{PCKD} --centers ema(momentum=2)", "ema: momentum must be in [0, 1), not 2"),
    says(f"{PCKD} --difficulty margin(x=1)", "margin has no option 'x'"),
    says("--dataset shapes(image_size=2.5)", "'image_size' must be int, not 2.5"),
    says("--method 'kd('", "cannot read 'kd('", "expected name"),
    says(f"{TAUGHT} \"pckd(contrast='nce')\"", "LOSSES: unknown name 'nce'", "center_infonce"),
    says("--method kd+", "method 'kd+': a name is missing", "--list methods"),
    says(f"{TAUGHT} 'kd(ce=0, weight=0)'", "no term with a weight other than 0"),
    says("--scheduler preview", "nothing to schedule by difficulty"),
    says("--student resnet8(in_channels=1)", "the student cannot run on images of 3 x 8 x 8"),
    says(f"{TAUGHT} fsp --student vgg8", "fsp needs maps of equal widths"),
    says(f"{TAUGHT} sskd --views 1", "2 or more views", "leave views out"),
    says(f"{PCKD} --views 1 --batch-size 1", "loss 'feature_alignment'", "use a batch of 2 or more images"),
    says(
        "--student vgg8 --batch-size 1", "the student, trained on a batch of one image", "a batch of 2 or more images"
    ),
    says("--student vgg8 --limit-train 1", "the student, trained on a batch of one image"),
]
FOLDERS = [
    says("--dataset imagefolder", "imagefolder: give the root folder that holds train/"),
    says(f"{FOLDER} {{world}}/no", "no folder", "/no: give the root that holds train/ and test/ or val/"),
    says(f"{FOLDER} {LONG}", "no folder xxx", "give the root"),
    says(f"{FOLDER} {{empty}}", "no folder train/ in", "there is: nothing"),
    says(f"{FOLDER} {{weights}}", "no folder", "weights.pth: give the root"),
    says("--data-root ''", "data_root must be a path, not ''", "leave data_root out"),
    says(f"{FOLDER} {{no_class}}", "no class folders in", "one folder of images a class"),
    says(f"{FOLDER} {{one_class}}", "imagefolder: there is one class only", "2 or more"),
    says(f"{FOLDER} {{no_image}}", "no images in", "/train/c", "each class folder must have one"),
    says(f"{FOLDER} {{other_classes}}", "/test has class folders that", "/train lacks: c; both must"),
    says(f"{FOLDER} {{no_test}}", "no folder test/ or val/ in", "there is: train/"),
    says(f"{FOLDER} {{text}}", "b/2.png: not a readable image", "repair or remove it"),
    says(f"{FOLDER} {{zero}}", "b/2.png: not a readable image (the file is empty)"),
    says(f"{FOLDER} {{cut}}", "b/2.png: not a readable image (image file is truncated)"),
    says(f"{STREAM} {{cut}} --num-workers 2", *BY_WORKERS),
    says(f"{FOLDER} {{cut_late}}", "2 images cannot be read: ", "train/a/1.jpg: not a", "train/b/3.jpg", "remove them"),
    says(f"{STREAM} {{cut_late}} --batch-size 8", "2 images cannot be read: ", "train/a/1.jpg: not a", "train/b/3.jpg"),
    says(f"{FOLDER} {{dark}}", "b/bits.png: a 16-bit gray image of values from 0 to 4095", "imagefolder(white=4095)"),
    says(f"{FOLDER} {{two_forms}}", "has two class folders caf\xe9, spelled in two forms of Unicode; move the images"),
    says(f"{FOLDER} {{linked}}", "train/c is the class folder a or lies in it, by a link", "remove the link"),
    says(f"{FOLDER} {{mixed}}", "z.png is 9x10", "8x8; give image_size to resize all"),
    says(f"{STREAM} {{mixed}}", "z.png is 9x10", "give image_size to resize all"),
    says(f"{GOOD} 'imagefolder(mean=(0.5, 0.5), std=(1, 1, 1))'", "mean has 2 numbers; give 3"),
    says(f"{GOOD} 'imagefolder(mean=(\"a\", 0, 0), std=(1, 1, 1))'", "mean must be numbers"),
    says(f"{GOOD} 'imagefolder(mean=(0, 0, 0), std=(0, 1, 1))'", "std must be above 0, not (0, 1, 1)"),
    says(
        f"{FOLDER} {{good}} --student torchvision:alexnet", "the student cannot run on images of 3 x 8 x 8", "another"
    ),
    says("--dataset shapes(num_classes=1)", "shapes: num_classes=1: it must be 2 to 100"),
    says("--dataset shapes(train_size=0)", "shapes: train_size=0: it must be at least 1"),
    # Said before the teacher is trained.
    says(f"{FOLDER} {{wide}} --method pckd --teacher resnet8", "need square images", "8x12", "use views=1"),
    says(f"{GOOD} 'imagefolder(min_area=0.5)'", "min_area cuts images as they are read: give image_size"),
    says(f"{GOOD} 'imagefolder(min_area=2, image_size=8)'", "min_area=2: it must be above 0"),
    says(f"{STREAM} {{good}} {CACHED} --cache-logits top9", "cache_logits='top9': there are 2 classes"),
    says("--check-cache", "--check-cache needs --teacher-cache"),
    says("--dataset cifar10(download=False) --data-root {empty}", "cifar10: not found, or not whole, in", "by hand"),
]
# What else is wrong with weights: tests/model_zoo/test_checkpoints.py.
FILES = [
    says(f"{FILE} {LONG}", "xxx: no such file"),
    says(f"{FILE} ''", "teacher_weights must be a path, not ''"),
    says(f"{FILE} {{code}}", "code.pth: refused as unsafe", "state_dict() alone"),
    says(f"{FILE} {{resnet14}}", "the file fits resnet14", "unexpected"),
    says(f"{FILE} {{seven}}", "the file has 7 classes, the network 4", "teacher_classes"),
    says(f"{FILE} {{seven}} --teacher-classes no.txt", "'no.txt': No such file or directory"),
    says("--output {weights}", "weights.pth: File exists; choose another --output"),
    says(f"--output {LONG}", "File name too long; choose another --output"),
    says("--output ''", "output must be a path, not ''", "leave output out"),
    says("--output {finished}", "already holds a run", "--resume", "another --output"),
    says("--output {finished} --resume --lr 0.3", "the arguments differ (lr was 0.02, is 0.3)", "another --output"),
    says("--output {finished} --resume", "2 epochs are done", "--epochs"),
    says("--output {damaged} --resume", "checkpoint.pth", "is damaged", "restore one of them from a copy", "--output"),
    says(f"{KD} --teacher-cache {{weights}}", "teacher cache", "Not a directory; choose another"),
    says(f"{KD} --teacher-cache ''", "teacher_cache must be a path, not ''"),
    says(f"{KD} --teacher-cache {{own}} --view-pool 0", "needs a finite view_pool"),
    says(f"{TAUGHT} at --teacher-cache {{own}}", "not feature maps", "leave out"),
]
CHECKED = [
    says("--check --lr 0", "lr must be above 0"),
    *(
        says(f"{given} {{cut_late}} --check", "4 images cannot be read: ", *(f"{p}.jpg: not a" for p in CUT_LATE))
        for given in (FOLDER, STREAM)
    ),
    says("--check --output {finished}", "already holds a run"),
    says(f"--check --output {LONG}", "xxx: File name too long; check the"),
]
benchmark, profile_net = (functools.partial(says, tool=tool) for tool in ("benchmark", "profile_net"))
TOOLS_TOO = [
    benchmark("--methods ,", "--methods ',' names none", "or all"),
    benchmark("--methods kd,pcdk", "unknown name 'pcdk'", "did you mean 'pckd'"),
    benchmark("--seeds 0,one", "--seeds must be whole numbers with commas"),
    benchmark(f"--seeds {2**70}", "seed must be a whole number from"),
    benchmark("--epochs 0", "epochs must be a whole number of at least 1"),
    benchmark("--output ''", "--output is missing: give the folder"),
    benchmark("--output {weights}/x", "Not a directory; choose another --output"),
    benchmark("--output {compared} --epochs 2", "holds a run with other arguments (epochs was 1, is 2)"),
    benchmark("--output {broken_result}", *NO_JSON),
    benchmark("--teacher-weights no.pth", "no.pth: no such file"),
    profile_net("--student ''", "give either --student", "or --pairs paper"),
    profile_net("--batch-size 0", "batch_size must be at least 1, not 0"),
    profile_net("--image-size -1", "image_size must be at least 1, not -1"),
    profile_net("--rounds -1", "rounds must be at least 0, not -1"),
    profile_net("--num-classes 1", "there is one class only"),
    profile_net(f"--seed {2**70}", "--seed must have 64 bits"),
    profile_net("--compare kd@x", "after the @ stands the number of views"),
    profile_net("--compare kd@9", "an image has 1 to 4 views"),
    profile_net("--json no/x.json", "no/x.json: there is no folder"),
    profile_net("--json {empty}", "is a folder; give the name of a file"),
    profile_net("--method pckd --views 1 --batch-size 1", "'feature_alignment'", "2 or more images"),
]

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
    """A data set called "mine"; the body may change ``split``, a good one of 8 images."""
    source = f"""{IMPORTS}
from dataclasses import replace
class Items(torch.utils.data.Dataset):
    def __init__(self, read): self.read = read
    def __len__(self): return 8
    def __getitem__(self, i): return self.read(i)
@DATASETS.register("mine")
def mine(root=None, train=True):
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    one_channel = {{"images": images[:, :1], "mean": (0.5,), "std": (0.5,)}}
    split = DataSplit(images, torch.arange(8) % 2, ("a", "b"), (0.5,) * 3, (0.5,) * 3, name="mine")
    {body}
"""
    return Case("--batch-size 4 --dataset mine", parts, source)


def split(changes: str, *parts: str) -> Case:
    return dataset(f"return replace(split, {changes})", *parts)


def items(third: str, *parts: str) -> Case:
    """A data set of which the fourth image, when it is read, is this."""
    return split(f"images=Items(lambda i: images[i] if i != 3 else {third})", *parts)


def file(source: str, *parts: str) -> Case:
    return Case("", parts, source)


BOOM = "raise ValueError('boom')"
MEAN = "return student.logits.mean(1)"
THREE = "self.classifier = nn.Linear(8, 3)"
OUTPUT = "Output(self.classifier(embedding), embedding)"
CENTERS = "Centers(student_net.classifier.weight, teacher_net.classifier.weight.detach())"
NAN = "* float('nan')"
# How a plug-in may fail to load: tests/registry/test_plugins.py.
PLUGINS = [
    says("--plugin {world}/no.py", "plug-in", "no.py: no such file"),
    says(f"--plugin {LONG}.py", "no such file"),
    file("\n\nraise OSError('no luck')\n", "line 3 of mine.py: OSError: no luck"),
    file("import sys\nsys.exit(0)\n", "line 2 of mine.py: SystemExit: 0"),
    scheduler("raise ValueError('one\\ntwo')", "scheduler 'mine' raised ValueError: one two (line 6 of mine.py)"),
    scheduler(BOOM, "scheduler mine", "boom")._replace(arguments=f"{KD} --scheduler mine --check"),
    scheduler("return difficulty @ torch.ones(99)", *IN_TORCH),
    scheduler("return difficulty[:3]", "scheduler 'mine' returned values of shape (3,) for 8 images", "one weight"),
    scheduler("return 1.0", "scheduler 'mine' returned float for 8 images", "one weight an image"),
    scheduler("return difficulty / 0", "scheduler 'mine' gave a weight that is not finite"),
    scheduler("return difficulty * 0 - 0.5", "scheduler 'mine' gave a weight of -0.5: a weight must be 0 or above"),
    metric("raise KeyError('boom')", "difficulty metric 'mine' raised KeyError: 'boom' (line 6 of mine.py)"),
    metric("return student.logits", "difficulty metric 'mine' returned values of shape (8, 4)", "one difficulty an"),
    metric(f"return student.logits[:, 0] {NAN}", "difficulty metric 'mine' gave a difficulty that is not finite"),
    loss(BOOM, "loss 'mine' raised ValueError: boom (line 12 of mine.py)"),
    loss("pass", "loss 'mine' raised AttributeError", "(line 10 of mine.py)", init="setup.student.width"),
    loss("return student.logits", "mine returned values of shape (8, 4) for 8 rows", "a scalar"),
    loss("pass", "mine returned NoneType", "it must return a floating-point tensor"),
    loss("return context.labels", "mine returned torch.int64", "a floating-point tensor"),
    loss(f"{MEAN} {NAN}", "epoch 1, step 1: mine is not finite", "that term's weight"),
    loss(
        MEAN,
        *("mine compares 3 or more rows of a batch, and the smallest batch has 2 for it", "use a larger batch"),
        facts="needs_rows = 3",
        arguments="--batch-size 2",
    ),
    loss(
        MEAN,
        "loss 'Mine' raised ValueError: boom",
        facts=f"classifier = None\n    def predict(self, student): {BOOM}",
    ),
    loss("return torch.ones(8)", "nothing to train by: none of mine has", terms="Term('mine')"),
    method(BOOM, "method 'mine' raised ValueError: boom (line 6 of mine.py)"),
    method("return ['kd']", "method 'mine' returned ['kd']", "a list of registry.Term"),
    method("pass", "method 'mine' returned None: it must return a list of registry.Term"),
    method("return [Term('kdd')]", "LOSSES: unknown name 'kdd'", "did you mean 'kd'"),
    method("return [Term('kd', options={'t': 1})]", "kd has no option 't'"),
    method("return [Term('kd', views='both')]", "term kd: rows must be upright, all, strong or images, not 'both'"),
    method("return [Term('kd', initial=1, main=False)]", "only terms for initial epochs", "main=True"),
    rule(BOOM, "center rule 'Mine' raised ValueError: boom (line 10 of mine.py)"),
    rule("pass", "center rule 'Mine' returned NoneType", "registry.Centers"),
    rule(
        "return Centers(torch.ones(2, 3), torch.ones(4, 64))",
        "center rule 'Mine' returned [2, 3] as the student's centers: they must be [4, 64], one row a class",
    ),
    rule("return Centers(0.0, 0.0)", "center rule 'Mine' returned float as the student's"),
    rule(f"return {CENTERS}", "center rule 'Mine' raised ValueError: boom (line 12 of mine.py)", update=BOOM),
    rule("pass", "center rule: a Mine is none; derive it from", update="", base="nn.Module"),
    backbone("pass", "backbone 'mine' raised ValueError: boom", init=BOOM),
    backbone(BOOM, "the student cannot run on images of 3 x 8 x 8", "boom"),
    backbone("return embedding[0]", "backbone 'mine': forward returns no logits [N, K] (a tensor ["),
    backbone(f"return {OUTPUT}", "the student has 3 classes, the data set shapes", init=THREE),
    backbone(
        f"return {OUTPUT}",
        *("the teacher has 3 classes, the data set shapes", "they must be the same"),
        init=THREE,
        arguments="--method kd --teacher mine --teacher-weights {three}",
    ),
    dataset(BOOM, "data set 'mine' raised ValueError: boom (line 15 of mine.py)"),
    dataset("pass", "data set 'mine' returned NoneType: it must return registry.DataSplit"),
    split("labels=torch.arange(8)", "mine: labels run from 0 to 7", "each must be 0 to 1"),
    split("labels=torch.arange(8) - 7", "mine: labels run from -7 to 0"),
    split("labels=torch.zeros(8)", "mine: labels must be whole numbers [M], not float32 [8]"),
    split("labels=[0] * 8", "labels must be whole numbers [M], not list"),
    split("labels=split.labels[:5]", "mine: 8 images but 5 labels"),
    split("images=images.int()", "mine: images must be uint8, uint16, float32 or float16 [M, C, H, W], not int32 [8,"),
    split("images=images[:0], labels=split.labels[:0]", "split is empty"),
    split("mean=(0.5,)", "mine: mean has 1 numbers, the images have 3"),
    split("std=(1.0, -1.0, 1.0)", "mine: std must be above 0, not (1.0, -1"),
    split("classes=split.classes[:: 1 if train else -1]", "mine: training and test split have different classes"),
    split("**({} if train else one_channel)", "have 3 channels, test images 1"),
    items("1 / 0", "image 3 of the data set raised ZeroDivisionError: division by zero (line 15 of mine.py)"),
    items("images[i, :, 1:]", "of the data set: its shape is", "[3, 7, 8]", "all must have the same"),
    items(
        "images[i].int()", "image 3 of the data set: it must be uint8, uint16, float32 or float16 [C, H, W], not int"
    ),
    items("images[i].float()", "image 3 of the data set: its pixels are float32 [3, 8, 8], and another one's uint8"),
    split("images=Items(lambda i: images[i].int())", "an image must be uint8, uint16, float32 or float16 [C, H, W]"),
]
CASES = [*NUMBERS, *CHOICES, *FOLDERS, *FILES, *CHECKED, *TOOLS_TOO, *PLUGINS]


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


def make_folders(world: Path) -> None:
    for name in ("text", "zero", "cut", "dark", "two_forms", "linked", "mixed", "no_image", "other_classes", "good"):
        folder_of_images(world / name)
    folder_of_images(world / "cut_late", suffix="jpg")
    folder_of_images(world / "one_class", "a")
    folder_of_images(world / "no_test", splits="train")
    folder_of_images(world / "wide", size=(8, 12))
    folder_of_images(world / "modes")
    (world / "text" / "train" / "b" / "2.png").write_bytes(b"no image")
    (world / "zero" / "train" / "b" / "2.png").write_bytes(b"")
    for path, left in [("cut/train/b/2.png", 100), *((f"cut_late/{name}.jpg", -30) for name in CUT_LATE)]:
        (world / path).write_bytes((world / path).read_bytes()[:left])
    twelve_bits = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(twelve_bits).save(world / "dark" / "train" / "b" / "bits.png")
    Image.new("RGB", (9, 10)).save(world / "mixed" / "train" / "b" / "z.png")
    (world / "other_classes" / "test" / "b").rename(world / "other_classes" / "test" / "c")
    for part in ("train", "test"):
        (world / "no_class" / part).mkdir(parents=True)
        (world / "no_image" / part / "c").mkdir()
        (world / "linked" / part / "c").symlink_to("a")
        for old, new in (("a", "caf\xe9"), ("b", "cafe\u0301")):
            (world / "two_forms" / part / old).rename(world / "two_forms" / part / new)
        Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save(world / "modes" / part / "a" / "cmyk.jpg")
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(world / "modes" / part / "b" / "bits.png")


def make_weights(world: Path) -> None:
    torch.manual_seed(0)
    for name, network, classes in (("weights", "resnet8", CLASSES), ("resnet14", "resnet14", CLASSES)):
        save_weights(build(BACKBONES, network, classes), world / f"{name}.pth")
    save_weights(build(BACKBONES, "resnet8", 7), world / "seven.pth")
    net = torch.nn.ModuleDict({"body": torch.nn.Conv2d(3, 8, 3), "classifier": torch.nn.Linear(8, 3)})
    save_weights(net, world / "three.pth")
    torch.save({"model": SideEffect(world / "code_ran")}, world / "code.pth")


class World(NamedTuple):
    """A folder of files that the cases name, made once; no case may change them."""

    root: Path

    def command(self, case: Case, output: Path) -> list[str]:
        places = {path.stem: path for path in self.root.iterdir()}
        places |= {"world": self.root, "output": output, "own": output.with_name("own")}
        parts = [*BASE[case.tool], *shlex.split(case.arguments)]
        command = [part.format(**places) if "{" in part else part for part in parts]
        if not case.plugin:
            return command
        # In a folder of its own: of a file that was there before, Python may have kept the bytecode.
        file = Path(tempfile.mkdtemp(dir=output.parent)) / "mine.py"
        file.write_text(case.plugin)
        return [*command, "--plugin", str(file)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, load_module: Callable[[str], ModuleType]) -> World:
    root = tmp_path_factory.mktemp("world")
    (root / "empty").mkdir()
    make_folders(root)
    make_weights(root)
    made = World(root)
    for case, name in ((says("--lr 0.02 --epochs 2"), "finished"), (benchmark(""), "compared")):
        assert load_module(case.tool).main(made.command(case, root / name)) == 0
    shutil.copytree(root / "finished", root / "damaged")
    (root / "damaged" / "checkpoint.previous.pth").unlink()
    (root / "damaged" / "checkpoint.pth").write_bytes(b"no checkpoint")
    shutil.copytree(root / "compared", root / "broken_result")
    (root / "broken_result" / "resnet8_resnet8" / "kd-seed0" / "result.json").write_text("{")
    return made


class Ran(NamedTuple):
    """What a command line did."""

    code: object
    out: str
    err: str
    warnings: list[str]


@pytest.fixture
def run(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    load_module: Callable[[str], ModuleType],
) -> Callable[..., Ran]:
    """Run a case, or arguments of train_net, in this process, in an empty folder and with a cache of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))

    def run(case: Case | str, more: str = "") -> Ran:
        case = says(case) if isinstance(case, str) else case
        command = world.command(case._replace(arguments=f"{case.arguments} {more}"), tmp_path / "output")
        monkeypatch.setattr(sys, "argv", [f"{case.tool}.py"])
        module = load_module(case.tool)
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


def check_refused(ran: Ran, tool: str, *parts: str) -> None:
    assert ran.code == 2, (ran.code, ran.err)
    assert ran.err.startswith(f"{tool}.py: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    for part in parts:
        assert part in ran.err
    assert "Traceback" not in ran.out + ran.err
    assert ran.warnings == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says[0])
def test_bad_input(case: Case, world: World, run: Callable[..., Ran], tmp_path: Path) -> None:
    before = contents(world.root)
    check_refused(run(case), case.tool, *case.says)
    assert contents(world.root) == before
    assert not (world.root / "code_ran").exists()
    for folder in ("output", "cache", "here"):
        assert contents(tmp_path / folder) == {}


# What may look bad and is not


ACCEPTED = [
    f"--seed {2**63 - 2} --momentum 0 --weight-decay 0 --checkpoint-every 1 --batch-size 1000",
    "--seed -5 --limit-train 1",
    f"{PCKD} --views 1 \"--method=pckd(contrast='kd')\"",
    # Methods that compare rows, of which there is one.
    f"{TAUGHT} rkd+sp+cc --batch-size 1 --limit-train 4",
    f"{FOLDER} {{mixed}} --dataset imagefolder(image_size=8)",
    f"{FOLDER} {{wide}}",
    f"{FOLDER} {{no_test}} --val-fraction 0.5",
    f"{STREAM} {{cut_late}} --on-bad-image skip --num-workers 1",
    f"{FOLDER} {{dark}} --dataset imagefolder(white=4095)",
    f"{FOLDER} {{modes}}",
    f"{STREAM} {{modes}}",
]


@pytest.mark.parametrize("arguments", ACCEPTED)
def test_accepted(arguments: str, run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run(arguments)
    assert (ran.code, ran.err, ran.warnings) == (0, "", [])
    assert len((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_mask_is_a_weight(run: Callable[..., Ran], tmp_path: Path) -> None:
    assert run(scheduler("return difficulty < 1")).code == 0
    row = json.loads((tmp_path / "output" / "metrics.jsonl").read_text())
    assert row["preview_weight"] == pytest.approx(1 - row["previewed"])
    assert 0 < row["preview_weight"] < 1


# What is left behind


def test_a_command_that_was_refused_at_its_first_step_can_be_mended(run: Callable[..., Ran]) -> None:
    """Without --resume and in the same folder: nothing of a run is in it."""
    assert run(scheduler(BOOM)).code == 2
    assert run(scheduler("return difficulty.sigmoid()")).code == 0


def test_an_error_in_the_second_epoch_leaves_the_first(run: Callable[..., Ran], tmp_path: Path) -> None:
    case = scheduler("return difficulty.sigmoid() * (1 / (2 - context.epoch))")
    ran = run(case, "--epochs 3")
    check_refused(ran, "train_net", "scheduler 'mine' raised ZeroDivisionError: division by zero")
    before = contents(tmp_path / "output")
    assert sorted(before) == ["checkpoint.pth", "metrics.jsonl"]
    assert len(before["metrics.jsonl"].splitlines()) == 1
    # As whole as it looks: a resumed run gets as far as this one did, and changes nothing.
    assert run(case, "--epochs 3 --resume").err == ran.err
    assert contents(tmp_path / "output") == before


@pytest.mark.parametrize("part", ["objective", "student"])
def test_resuming_with_a_plugin_that_has_changed(part: str, run: Callable[..., Ran], tmp_path: Path) -> None:
    def case(width: int) -> Case:
        if part == "student":
            return backbone(f"return {OUTPUT}", init=f"self.more = nn.Linear(1, {width})")
        return loss("return self.layer(student.embedding).mean(1)", init=f"self.layer = nn.Linear(64, {width})")

    assert run(case(5)).code == 0
    before = contents(tmp_path / "output")
    said = f"cannot resume: the {part} is another than before"
    check_refused(run(case(6), "--epochs 2 --resume"), "train_net", said, "size mismatch", "--output")
    assert contents(tmp_path / "output") == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_file_that_may_not_be_read(run: Callable[..., Ran], tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.touch(0o000)
    check_refused(run(f"--plugin {plugin}"), "train_net", str(plugin), "PermissionError: ")


# What is no bad input, and how to see more


def test_an_interrupt_in_a_plugin_is_an_interrupt(run: Callable[..., Ran]) -> None:
    ran = run(scheduler("raise KeyboardInterrupt"))
    assert ran.code == 130
    assert ran.err.startswith("train_net.py: interrupted; continue with the same command and --resume")


def test_debug_shows_the_error_of_the_plugin(run: Callable[..., Ran]) -> None:
    with pytest.raises(PluginError, match="scheduler 'mine' raised ValueError: boom") as caught:
        run(scheduler(BOOM), "--debug")
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
FIVE: Any = lambda setup: 5  # noqa: E731
CALLS: list[tuple[dict[str, Any], str]] = [
    ({"student": NETWORK, "teacher": NETWORK, "method": "kd"}, "are the same object"),
    ({"teacher": teacher_of(7), "method": "kd"}, "the teacher has 7 classes"),
    ({"student": NETWORK, "method": "kd"}, "needs a teacher, and none is given"),
    ({"epochs": 1.0}, "epochs must be a whole number of at least 1, not 1.0"),
    ({"batch_size": True}, "batch_size must be a whole number of at least 1, not True"),
    ({"lr": "0.1"}, "lr must be a finite number of at least 0, not '0.1'"),
    ({"views": 5}, "views must be a whole number from 1 to 4, not 5"),
    ({"output": 5}, "output must be a path, not 5"),
    ({"student": 8}, "the student must be an nn.Module or the name of a network, not int"),
    ({"data": 8}, "data must be a name, a pckd.Data, a pair"),
    ({"method": []}, "the method has no term"),
    ({"method": [Term("cross_entropy", float("nan"))]}, "its weight must be a finite number, not nan"),
    ({"method": [Term("cross_entropy", "1")]}, "must be a finite number, not '1'"),  # type: ignore[arg-type]
    ({"teacher": teacher_of(CLASSES), "method": [Term(FIVE, name="five")]}, "loss 'five': its factory made int"),
    ({"on_nonfinite": "ask"}, "on_nonfinite must be stop or skip, not 'ask'"),
    ({"on_bad_image": "ask"}, "on_bad_image must be stop or skip, not 'ask'"),
    ({"precision": "fp16"}, "precision must be auto, fp32 or bf16, not 'fp16'"),
]


@pytest.mark.parametrize(("arguments", "text"), CALLS, ids=[text for _, text in CALLS])
def test_bad_arguments_from_python(
    arguments: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    usual = {"student": "resnet8", "method": "vanilla", "data": DATA, "epochs": 1, "batch_size": 8, "device": "cpu"}
    with pytest.raises(UserError) as caught:
        pckd.distill(**{**usual, "output": tmp_path / "output", **arguments})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == {}


# As processes of their own


# Those in which workers, PyTorch's C++ and tables have their say.
PROCESSES = [case for case in CASES if case.says in (BY_WORKERS, IN_TORCH, NO_JSON)]


def test_a_process_does_the_same(world: World, tmp_path: Path) -> None:
    environment = {**os.environ, "PCKD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    assert len(PROCESSES) == 3
    started = []
    for number, case in enumerate(PROCESSES):
        output = tmp_path / f"output{number}"
        command = [sys.executable, str(TOOLS / f"{case.tool}.py"), *world.command(case, output)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append((case, output, subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)))
    for case, output, process in started:
        out, err = process.communicate(timeout=300)
        check_refused(Ran(process.returncode, out, err, []), case.tool, *case.says)
        assert contents(output) == {}


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

"""The checks of pckd.testing can fail: for every clause a plug-in that breaks it, and good ones that pass."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import math
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd import functional
from pckd.testing import (
    ContractError,
    check_backbone,
    check_center_rule,
    check_dataset,
    check_dense,
    check_difficulty,
    check_loss,
    check_lr_schedule,
    check_method,
    check_scheduler,
)
from registry import (
    BACKBONES,
    LOSSES,
    Absent,
    CenterRule,
    Centers,
    DataSplit,
    NotApplicable,
    Output,
    Term,
    UnknownName,
    UserError,
    build,
    function_loss,
)

COUNT = itertools.count(1)
"""State outside of any plug-in."""
ONE = torch.ones(())
PARAMETER = nn.Parameter(ONE)
Fault = tuple[str, Any, str]
"""The clause that is broken, the plug-in, and what the message says of it."""


def mine(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which messages call "mine"."""

    def wrapped(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    wrapped.__name__ = "mine"
    return wrapped


def but(base: type, **changes: Any) -> Any:
    """A good class but for what is given; messages call it "mine"."""
    return type("mine", (base,), changes)


def fail(*args: Any, **options: Any) -> Any:
    raise ValueError("no such\nthing")


def refuse(*args: Any, **options: Any) -> Any:
    raise NotApplicable("it needs something else")


# Losses


def distance(student: Output, teacher: Output) -> Tensor:
    return (functional.full(student.logits) - functional.full(teacher.logits)).square().mean(1)


class GoodLoss(nn.Module):
    def __init__(self, setup: Any) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        return distance(student, teacher)


class Remembers(GoodLoss):
    """Good: its memory is a buffer."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.register_buffer("mean", torch.zeros(setup.student.num_classes))

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        value = (functional.full(student.logits) - self.mean).square().mean(1)
        self.mean.lerp_(functional.full(teacher.logits).mean(0), 0.5)
        return value


class NeedsTwoViews(GoodLoss):
    """Good: it says that it needs two views, and is not shown fewer."""

    needs_views = 2

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        rows = functional.full(student.logits).unflatten(0, (-1, context.views))
        return (rows - rows[:, 1:2]).square().mean(2).flatten()


class NeedsManyRows(GoodLoss):
    """Good: it says that it needs eight rows, and is not shown fewer."""

    needs_rows = 8

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        assert len(student.logits) >= 8
        return distance(student, teacher)


class NeedsOneWidth(GoodLoss):
    """Good: it refuses some pairs of networks."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        if setup.student.embedding != setup.teacher.embedding:
            raise NotApplicable("it needs equal widths")


class DrawsNumbers(GoodLoss):
    """Good: it draws random numbers, row by row, so that the order of the batch matters."""

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        return distance(student, teacher) * torch.rand(len(student.logits))


class HasAnLstm(GoodLoss):
    """Good: a layer of PyTorch's keeps a list of its parameters. It answers with its own head."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        self.lstm = nn.LSTM(setup.student.num_classes, setup.student.num_classes, batch_first=True)

    def predict(self, student: Output) -> Tensor:
        return self.lstm(student.logits[:, None])[0][:, 0]

    def forward(self, student: Output, teacher: Output, context: Any) -> Tensor:
        return distance(student._replace(logits=self.predict(student)), teacher)


def function(value: Callable[..., Any], **claims: Any) -> Any:
    """A loss that is a function of the two networks' logits."""

    def mine(student_logits: Tensor, teacher_logits: Tensor, *, power: float = 2.0) -> Any:
        return value(functional.full(student_logits), functional.full(teacher_logits))

    return function_loss(mine, **claims) if claims else mine


def loss(value: Callable[..., Any], base: type = GoodLoss, **facts: Any) -> Any:
    """A good loss but for its value, a function of (student, teacher)."""
    return but(base, forward=lambda self, student, teacher, context: value(student, teacher), **facts)


def holding(part: Callable[[Any], Any], forward: Any = GoodLoss.forward) -> Any:
    """A loss that keeps something of its setup as its attribute ``part``."""

    def init(self: Any, setup: Any) -> None:
        GoodLoss.__init__(self, setup)
        self.part = part(setup)

    return but(GoodLoss, __init__=init, forward=forward)


trains_the_teacher = holding(
    lambda setup: [setup.teacher_classifier],
    lambda self, s, t, c: distance(s, t._replace(logits=self.part[0](t.embedding))),
)


def reads_a_map(student: Output, teacher: Output) -> Tensor:
    return distance(student, teacher) + functional.full(teacher.maps[-1]).mean()


def asks_for_maps(student: Output, teacher: Output) -> Tensor:
    return distance(student, teacher) + (not isinstance(student.maps, Absent))


def counting(self: Any, student: Output, teacher: Output, context: Any) -> Tensor:
    self.count = getattr(self, "count", 0) + 1
    return distance(student, teacher) * self.count


def rows_of(x: Tensor) -> Tensor:
    return torch.arange(len(x), dtype=torch.float32)


LOSS_FAULTS: list[Fault] = [
    ("builds", mine(lambda setup: 3), "the factory made int, expected an nn.Module"),
    (
        "applicable",
        but(GoodLoss, __init__=refuse),
        "refused every pair of networks: it needs something else, expected one",
    ),
    # A partial is called by the name of its function.
    ("runs", functools.partial(loss(fail)), "raised ValueError: no such thing"),
    ("runs", loss(refuse), "raised NotApplicable: it needs something else"),
    ("runs", loss(lambda s, t: (1, 2)), "returned tuple, expected a tensor"),
    (
        "unreduced",
        loss(lambda s, t: s.logits),
        "returned shape (6, 7), expected (6,) or () (views=1, student width 12, teacher width 12)",
    ),
    ("per_sample", loss(lambda s, t: distance(s, t).mean()), "returned shape (), expected (6,), as per_sample says"),
    ("per_sample", but(GoodLoss, per_sample=False), "returned shape (6,), expected (), as per_sample says"),
    ("float32", loss(lambda s, t: distance(s, t).double()), "returned torch.float64, expected torch.float32"),
    ("finite", loss(lambda s, t: distance(s, t) / 0), "inf], expected finite values"),
    ("inputs untouched", loss(lambda s, t: distance(s, Output(t.logits.mul_(2), t.embedding))), "wrote into what"),
    ("gradient to the student", loss(lambda s, t: distance(s.detach(), t) * PARAMETER), "none came, expected some in"),
    ("gradient to the student", loss(lambda s, t: distance(s.detach(), t)), "raised RuntimeError: element 0 of"),
    ("finite gradient", loss(lambda s, t: s.embedding.sqrt().mean(1)), "some is not, expected finite numbers"),
    ("trained parameters", holding(lambda setup: nn.Linear(2, 2)), "part.weight, part.bias got no gradient"),
    (
        "teacher is constant",
        holding(
            lambda setup: setup.teacher_classifier,
            lambda self, s, t, c: distance(s, t._replace(logits=self.part(t.embedding))),
        ),
        "holds the teacher's own classifier as a submodule, expected a setup.frozen_classifier()",
    ),
    ("teacher is constant", trains_the_teacher, "gradient reached the teacher, expected none"),
    ("deterministic", loss(lambda s, t: distance(s, t) * next(COUNT)), "the same state and seed gave another value"),
    ("deterministic", holding(lambda setup: nn.Parameter(next(COUNT) * ONE, False)), "the same state and seed gave"),
    ("registered state", holding(lambda setup: torch.zeros(2)), "part is neither submodule, parameter nor buffer"),
    ("registered state", holding(lambda setup: [nn.Linear(2, 2)]), "part is neither"),
    ("registered state", holding(lambda setup: {"memory": torch.zeros(2)}), "part is neither"),
    ("state", but(GoodLoss, forward=counting), "resumed from its saved state it gave another value, expected the same"),
    ("half precision", loss(lambda s, t: (s.logits - t.logits).square().mean(1)), "returned torch.bfloat16"),
    ("half precision", loss(lambda s, t: (s.logits - t.logits).square().mean(1).float()), "expected at most 1e-04"),
    ("half precision", loss(lambda s, t: s.logits.lerp(t.logits.float(), 0.5).square().mean(1)), "raised RuntimeError"),
    ("needs_teacher", but(GoodLoss, needs_teacher=False), "another teacher changed the value, expected none"),
    ("needs_teacher", function(lambda s, t: (s - t).square().mean(1), needs_teacher=False), "another teacher changed"),
    ("reads_maps", loss(reads_a_map, reads_maps=False), "raised NotApplicable: it looks at feature maps"),
    ("reads_maps", loss(asks_for_maps, reads_maps=False), "without feature maps it gave another value"),
    (
        "reads_maps",
        but(GoodLoss, reads_maps=False, predict=lambda self, s: s.logits + s.preacts[0].mean()),
        "raised NotApplicable: it looks at feature maps",
    ),
    ("predict", but(GoodLoss, predict=lambda self, s: s.embedding), "returned shape (6, 12), expected (6, 7)"),
    ("predict", but(GoodLoss, predict=lambda self, s: s.logits / 0), "predict is not finite"),
    ("start", but(GoodLoss, start=lambda self, s, t: 1 / 0), "raised ZeroDivisionError"),
    (
        "start",
        but(GoodLoss, start=lambda self, s, t: setattr(s, "classifier", nn.Linear(1, 1))),
        "weights of other shapes",
    ),
    ("start", but(GoodLoss, start=lambda self, s, t: s.classifier.bias.log_().log_()), "weights not finite"),
    ("start", but(GoodLoss, start=lambda self, s, t: t.classifier.weight.zero_()), "start changed the teacher"),
    ("order", loss(lambda s, t: distance(s, t) * rows_of(s.logits)), "another order of the images gave other values"),
    ("independent rows", loss(lambda s, t: distance(s, t) * distance(s, t).mean()), "leaving out other images changed"),
    ("independent rows", loss(lambda s, t: distance(s, t).mean(), per_sample=False), "returned a scalar"),
]


# Difficulty schedulers and metrics


def scheduler(weigh: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return mine(lambda difficulty, context: weigh(difficulty))


def good_weights(difficulty: Tensor) -> Tensor:
    return torch.exp(-difficulty)


SCHEDULER_FAULTS: list[Fault] = [
    ("builds", 3, "it is int, expected a function"),
    ("runs", scheduler(lambda d: [1.0]), "returned list, expected a tensor"),
    ("shape", scheduler(lambda d: good_weights(d).mean()), "returned shape (), expected (6,) (epoch 1 of 10"),
    ("float32", scheduler(lambda d: good_weights(d).double()), "returned torch.float64, expected torch.float32"),
    ("finite", scheduler(lambda d: d / d.sum()), "nan], expected finite values (epoch 1 of 10, difficulty [0.0, 0.0"),
    ("not negative", scheduler(lambda d: (1 - d).clamp_max(1)), "expected nothing below 0"),
    ("no gradient", scheduler(lambda d: good_weights(d) * PARAMETER), "the weights ask for gradient"),
    ("pure", scheduler(lambda d: good_weights(d) / next(COUNT)), "the same arguments gave other weights"),
    ("input untouched", scheduler(lambda d: d.clamp_(0, 1)), "wrote into the difficulty, expected no change"),
    ("order", scheduler(lambda d: rows_of(d) / 10), "another order of the images gave other weights"),
]


LR_FAULTS: list[Fault] = [
    ("builds", 3, "it is int, expected a function"),
    ("runs", mine(fail), "raised ValueError: no such thing, expected no error (0% of 240 epochs)"),
    ("runs", "cosine(warmup=240)", "raised UserError: cosine: warmup=240: it must be at least 0 epochs"),
    ("number", mine(lambda progress, epochs: torch.ones(())), "returned Tensor, expected a float"),
    ("finite", mine(lambda progress, epochs: math.inf if progress == 1 else 1), "returned inf, expected a finite"),
    ("not negative", mine(lambda progress, epochs: 0.5 - progress), "expected 0 or more (51% of 240 epochs)"),
    ("trains", mine(lambda progress, epochs: float(progress == 1)), "the factor is 0 throughout"),
    ("pure", mine(lambda progress, epochs: 1 / next(COUNT)), "the same arguments gave another factor"),
]


def cross_entropy(student: Output, labels: Tensor) -> Tensor:
    return functional.relative(F.cross_entropy(functional.full(student.logits), labels, reduction="none"))


def metric(measure: Callable[[Output, Tensor], Any]) -> Callable[..., Any]:
    return mine(lambda student, teacher, context: measure(student, context.labels))


def asks_for_gradient(student: Output, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        return cross_entropy(student, labels) * PARAMETER


of_maps: Any = metric(lambda s, y: cross_entropy(s, y) + 0 * s.maps[0].mean())
of_maps.reads_maps = False


DIFFICULTY_FAULTS: list[Fault] = [
    ("builds", 3, "it is int, expected a function"),
    ("runs", metric(lambda s, y: 1.0), "returned float, expected a tensor"),
    ("shape", metric(lambda s, y: s.logits), "returned shape (6, 7), expected (6,)"),
    ("float32", metric(lambda s, y: cross_entropy(s, y).double()), "returned torch.float64"),
    ("finite", metric(lambda s, y: cross_entropy(s, y).log() * torch.inf), "expected finite values"),
    ("not negative", metric(lambda s, y: 10 - 9 * cross_entropy(s, y)), "expected nothing below 0"),
    ("mean 1", metric(lambda s, y: cross_entropy(s, y) * 2), "the batch has mean 2, expected 1, or 0 everywhere"),
    ("no gradient", metric(asks_for_gradient), "the values ask for gradient"),
    ("deterministic", metric(lambda s, y: functional.relative(torch.rand(len(y)))), "the same arguments gave other"),
    ("inputs untouched", metric(lambda s, y: cross_entropy(s._replace(logits=s.logits.clamp_(-1, 1)), y)), "wrote"),
    ("reads_maps", of_maps, "raised NotApplicable: it looks at feature maps"),
    ("half precision", metric(lambda s, y: cross_entropy(s, y).lerp(s.logits[:, 0] * 0 + 1, 0)), "raised RuntimeError"),
    (
        "half precision",
        metric(lambda s, y: functional.relative(1 + (1000 + s.logits.sum(1).abs()) % 1)),
        "other values for bfloat16 outputs: tensor([",
    ),
    ("order", metric(lambda s, y: functional.relative(1 + rows_of(y))), "another order of the images gave other"),
    (
        "higher is harder",
        metric(lambda s, y: functional.relative(functional.full(s.logits).softmax(1).gather(1, y[:, None])[:, 0])),
        "1.99 for an image that is easy and 0.00607 for a hard one, expected more for the hard",
    ),
]


# Center rules


class GoodRule(CenterRule):
    """A running sum of the student's embedding, for every class."""

    student: Tensor

    def __init__(self, setup: Any) -> None:
        super().__init__()
        self.register_buffer("student", torch.zeros(setup.student.num_classes, setup.student.embedding))

    def forward(self, student_net: Any, teacher_net: Any) -> Centers:
        return Centers(self.student.clone(), teacher_net.classifier.weight.detach())

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        self.student += functional.full(student.embedding).mean(0)


class OneWidthRule(GoodRule):
    """Good: it refuses some pairs of networks."""

    def __init__(self, setup: Any) -> None:
        super().__init__(setup)
        if setup.student.embedding != setup.teacher.embedding:
            raise NotApplicable("it needs equal widths")


def looks(center: Callable[..., Any]) -> Any:
    """A good rule but for its centers: a function of the rule, what a good one gives, and the student's network."""
    return but(GoodRule, forward=lambda self, s, t: center(self, GoodRule.forward(self, s, t), s, t))


def updates(extra: Callable[[Any, Output], Any], **facts: Any) -> Any:
    """A good rule that also does something else in its update."""

    def update(self: Any, student: Output, teacher: Output, labels: Tensor) -> None:
        GoodRule.update(self, student, teacher, labels)
        extra(self, student)

    return but(GoodRule, update=update, **facts)


RULE_FAULTS: list[Fault] = [
    ("builds", mine(lambda setup: 3), "the factory made int, expected an nn.Module"),
    ("builds", mine(lambda setup: nn.Identity()), "it has no method update"),
    ("applicable", but(GoodRule, __init__=refuse), "refused every pair of networks, expected one that it works for"),
    ("runs", looks(lambda rule, good, s, t: tuple(good)), "returned tuple, expected registry.Centers"),
    ("shape", looks(lambda rule, good, s, t: good._replace(student=good.student.T)), "student has shape (12, 7)"),
    ("shape", looks(lambda rule, good, s, t: good._replace(student_bias=good.student)), "student_bias has shape"),
    ("finite", looks(lambda rule, good, s, t: good._replace(student=good.student / good.student)), "student is not"),
    (
        "teacher is constant",
        looks(lambda rule, good, s, t: good._replace(teacher=t.classifier.weight)),
        "teacher asks for gradient",
    ),
    (
        "looking changes nothing",
        looks(lambda rule, good, s, t: good._replace(student=rule.student.add_(1).clone())),
        "a second look gave other centers",
    ),
    ("update", but(GoodRule, update=fail), "raised ValueError: no such thing"),
    ("update", but(GoodRule, update=lambda self, s, t, y: 3), "update returned int, expected None"),
    ("inputs untouched", updates(lambda rule, student: student.embedding.zero_()), "update wrote into"),
    ("backward after update", looks(lambda rule, good, s, t: good._replace(student=rule.student)), "inplace operation"),
    (
        "reads_maps",
        updates(lambda rule, student: rule.student.add_(student.maps[0].mean()), reads_maps=False),
        "raised NotApplicable: it looks at feature maps",
    ),
    (
        "half precision",
        updates(lambda rule, student: setattr(rule, "student", rule.student.to(student.embedding.dtype))),
        "after bfloat16 outputs",
    ),
    ("holds no network", looks(lambda rule, good, s, t: setattr(rule, "net", s) or good), "net.classifier.weight"),
    ("registered state", updates(lambda rule, student: setattr(rule, "last", student.embedding)), "last is neither"),
    ("state", updates(lambda rule, student: rule.student.add_(next(COUNT))), "resumed, it updates to other centers"),
    (
        "state",
        looks(lambda rule, good, s, t: good._replace(student=good.student + vars(rule).setdefault("c", next(COUNT)))),
        "resumed from its saved state it gave other centers",
    ),
]


# Networks


class GoodNet(nn.Module):
    """One convolution."""

    def __init__(self, num_classes: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Output:
        preact = self.conv(x)
        embedding = preact.relu().mean((2, 3))
        return Output(self.classifier(embedding), embedding, (preact.relu(),), (preact,))


def net(answer: Callable[..., Any], extra: Callable[[Any], Any] = lambda self: None, **changes: Any) -> Any:
    """A good network but for its answer, a function of the network and the images; ``extra`` is called in __init__."""

    def init(self: Any, num_classes: int, *, in_channels: int = 3) -> None:
        GoodNet.__init__(self, num_classes, in_channels=in_channels)
        extra(self)

    return but(GoodNet, __init__=init, forward=answer, **changes)


def good(self: Any, x: Tensor) -> Output:
    return GoodNet.forward(self, x)


of_one_size = net(lambda self, x: good(self, x.view(len(x), -1, 32, 32)))


def refuses_to_leave_training(self: Any, mode: bool = True) -> Any:
    nn.Module.train(self, mode)
    self.conv.training = True
    return self


NET_FAULTS: list[Fault] = [
    ("builds", mine(lambda num_classes: GoodNet(num_classes)), "unexpected keyword argument 'in_channels'"),
    ("builds", mine(lambda num_classes, in_channels: 3), "the factory made int, expected an nn.Module"),
    ("runs", mine(lambda num_classes, in_channels: GoodNet(num_classes)), "(images of 1 x 32 x 32)"),
    ("runs", of_one_size, "(images of 3 x 48 x 64)"),
    ("output", net(lambda self, x: good(self, x).logits), "must return registry.Output, not Tensor"),
    ("finite", net(lambda self, x: good(self, x * torch.inf)), "some values are not"),
    ("num_classes", mine(lambda num_classes, in_channels: GoodNet(5, in_channels=in_channels)), "5 logits, expected 7"),
    ("classifier", net(lambda self, x: good(self, x)._replace(logits=good(self, x).logits + 1)), "the logits are not"),
    (
        "deterministic in eval mode",
        net(lambda self, x: good(self, F.dropout(x))),
        "the same images gave another output",
    ),
    (
        "eval changes nothing",
        net(
            lambda self, x: good(self, x + 0 * self.seen.add_(1)),
            lambda self: self.register_buffer("seen", torch.zeros(())),
        ),
        "answering changed seen",
    ),
    ("input untouched", net(lambda self, x: good(self, x.clamp_(-1, 1))), "wrote into the images"),
    ("one image", net(lambda self, x: good(self, x - x.mean(0))), "an image alone has other logits"),
    (
        "train and eval mode",
        net(lambda self, x: good(self, x).logits if self.training else good(self, x)),
        "in train mode it returned Tensor, expected registry.Output",
    ),
    ("train and eval mode", net(good, train=lambda self, mode=True: self), "eval() left itself"),
    ("train and eval mode", net(good, train=lambda self, mode=True: nn.Module.train(self, False)), "train() left it"),
    ("train and eval mode", net(good, train=refuses_to_leave_training), "eval() left conv in train mode"),
    (
        "trained parameters",
        net(good, lambda self: setattr(self, "part", nn.Linear(2, 2))),
        "part.weight, part.bias got no gradient",
    ),
    (
        "parameters",
        net(good, lambda self: setattr(self.conv, "bias", nn.Parameter(self.classifier.weight[0]))),
        "two parameters share their memory",
    ),
    ("registered state", net(good, lambda self: setattr(self, "layers", [nn.Linear(2, 2)])), "layers is neither"),
    (
        "state",
        net(lambda self, x: good(self, x * self.scale), lambda self: setattr(self, "scale", next(COUNT))),
        "its saved state gave another",
    ),
]


# Networks of detection and segmentation


def changed(made: Any, method: str, change: Callable[..., Any]) -> Any:
    """A good network, of which a method's result is another: ``change(network, result)``."""
    own = getattr(made, method)

    def call(*args: Any, **options: Any) -> Any:
        return change(made, own(*args, **options))

    object.__setattr__(made, method, call)
    return made


def dense(name: str, method: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """A factory of such networks: of a detector, or of a segmenter."""
    return mine(lambda num_classes: changed(build(BACKBONES, name, num_classes), method, change))


def detector(method: str, change: Callable[..., Any]) -> Callable[..., Any]:
    return dense("faster_rcnn_r10w16", method, change)


def segmenter(method: str, change: Callable[..., Any]) -> Callable[..., Any]:
    return dense("fcn_r10w16", method, change)


def with_part(part: Any) -> Callable[..., Any]:
    """A factory of segmenters with a further part, which answers nothing."""

    def make(num_classes: int) -> Any:
        made = build(BACKBONES, "fcn_r10w16", num_classes)
        made.part = part(made)
        return made

    return mine(make)


def output_of(change: Callable[[Output], Output]) -> Callable[..., Any]:
    return lambda network, found: (found[0], change(found[1]))


def writes(num_classes: int) -> Any:
    made = build(BACKBONES, "faster_rcnn_r10w16", num_classes)
    own = made.detect
    object.__setattr__(made, "detect", lambda images: own(images.clamp_(0, 0.5)))
    return made


def shares(num_classes: int) -> Any:
    made = build(BACKBONES, "fcn_r10w16", num_classes)
    norm = made.network.classifier[1]
    norm.bias = nn.Parameter(norm.weight.data)
    return made


def hides_a_scale(num_classes: int) -> Any:
    scale, made = next(COUNT), build(BACKBONES, "fcos_r10w16", num_classes)
    return changed(made, "answer", lambda network, found: found.apply(lambda x: x * scale))


DENSE_FAULTS: list[Fault] = [
    (
        "builds",
        mine(lambda num_classes: GoodNet(num_classes)),
        "it is GoodNet, expected a model_zoo.detection.Detector",
    ),
    ("study", detector("study", fail), "no such thing, expected no error (images of 3 x 64 x 64)"),
    ("study", segmenter("study", lambda network, found: found[0]), "raised"),
    ("answer", detector("answer", lambda network, found: found if network.training else fail()), "no such thing"),
    (
        "rows",
        detector("answer", lambda network, found: found.rows(slice(1, None))),
        "it studied 256 and answered about 255",
    ),
    (
        "num_classes",
        mine(lambda num_classes: build(BACKBONES, "fcn_r10w16", 5)),
        "6 logits, expected 8, with the backgr",
    ),
    (
        "classifier",
        detector("study", output_of(lambda output: output._replace(logits=output.logits + 1))),
        "the logits are not classifier(embedding)",
    ),
    ("losses", detector("study", output_of(lambda output: output._replace(losses={}))), "of its own losses none is no"),
    (
        "losses",
        detector("study", output_of(lambda output: output._replace(losses={"box": output.logits[0]}))),
        "of its own losses box is no number",
    ),
    (
        "drawn by the seeds",
        detector("study", lambda network, found: (replace(found[0], match=torch.rand(len(found[0].match))), found[1])),
        "the same seeds gave other regions",
    ),
    ("trained parameters", with_part(lambda made: nn.Linear(2, 2)), "part.weight, part.bias got no gradient"),
    (
        "deterministic in eval mode",
        detector("answer", lambda network, found: found.apply(F.dropout)),
        "the same images gave another answer",
    ),
    (
        "eval changes nothing",
        segmenter(
            "forward", lambda network, found: (network.network.classifier[1].num_batches_tracked.add_(1), found)[1]
        ),
        "answering changed network.classifier.1.num_batches_tracked",
    ),
    ("results", detector("detect", lambda network, found: found[1:]), "3 results for 4 images, expected one an image"),
    (
        "results",
        detector("detect", lambda network, found: [{**one, "labels": one["labels"] * 0} for one in found]),
        "expected 1 to the number of classes",
    ),
    ("results", segmenter("forward", lambda network, found: found._replace(maps=found.maps[::-1])), "its maps are"),
    ("input untouched", mine(writes), "wrote into the images"),
    ("parameters", mine(shares), "two parameters share their memory"),
    ("registered state", with_part(lambda made: [nn.Linear(2, 2)]), "part is neither submodule"),
    ("state", mine(hides_a_scale), "its saved state"),
]


# Data sets


def split(train: bool, size: int = 20) -> DataSplit:
    generator = torch.Generator().manual_seed(int(train))
    images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return DataSplit(images, torch.arange(size) % 2, ("a", "b"), (0.5,) * 3, (0.25,) * 3, torch.rand(size), name="mine")


def data(change: Callable[[DataSplit], DataSplit], only: bool | None = None) -> Callable[..., DataSplit]:
    """A good data set but for a change of its splits, or of one."""
    return mine(lambda root, train: change(split(train)) if only in (None, train) else split(train))


def having(**changes: Any) -> Callable[..., DataSplit]:
    """A good data set but for these fields; a function gets the split."""
    return data(lambda s: replace(s, **{key: new(s) if callable(new) else new for key, new in changes.items()}))


class Stream:
    """Streamed images; the readings end."""

    def __init__(self, images: Any, readings: int = 10**6) -> None:
        self.images, self.readings = images, readings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Any:
        self.readings -= 1
        if self.readings < 0:
            raise UserError("the file is gone")
        return self.images[position]


DATA_FAULTS: list[Fault] = [
    ("builds", "shapes(num_clases=3)", "did you mean 'num_classes'?"),
    (
        "DataSplit",
        mine(lambda root, train: (1, 2)),
        "returned tuple, expected registry.DataSplit, or pckd.data.annotated.AnnotatedSplit (train=True)",
    ),
    ("not empty", mine(lambda root, train: split(train, size=0)), "the split has no labels"),
    ("length", having(labels=torch.zeros(19, dtype=torch.int64)), "20 images and 19 labels, expected one label an"),
    ("pixels", having(images=lambda s: s.images.int()), "images are torch.int32 (20, 3, 8, 8), expected uint8, uint16"),
    ("pixels", having(images=lambda s: Stream(s.images.numpy())), "images are ndarray, expected tensors"),
    ("one size", having(images=lambda s: s.images[:, 0]), "images of shape (8, 8), expected one (C, H, W)"),
    ("one size", having(images=lambda s: Stream([*s.images[:19], s.images[19, :, :4]])), "(3, 4, 8) and (3, 8, 8)"),
    ("labels", having(labels=torch.zeros(20, 1, dtype=torch.int64)), "labels of shape (20, 1), expected (20,)"),
    ("labels", having(labels=lambda s: s.labels.int()), "labels are torch.int32, expected torch.int64"),
    ("labels", having(labels=lambda s: s.labels + 1), "labels from 1 to 2, expected 0 to 1, for 2 classes"),
    ("labels", having(labels=lambda s: s.labels - 1), "labels from -1 to 0"),
    ("classes", having(classes=["a", "b"]), "classes are a list, expected a tuple of names"),
    ("classes", having(classes=(0, 1)), "some class names are no text"),
    ("classes", having(classes=("a", "a")), "two classes have one name"),
    ("difficulty", having(difficulty=torch.rand(19)), "difficulty of shape (19,), expected (20,)"),
    ("difficulty", having(difficulty=torch.arange(20)), "difficulty is torch.int64, expected floating point"),
    ("difficulty", having(difficulty=torch.full((20,), torch.nan)), "difficulty is not finite"),
    ("mean and std", having(mean=(0.5,)), "mean and std have 1 and 3 numbers, expected 3, one a channel"),
    ("mean and std", having(mean=(127.0,) * 3), "mean is (127.0, 127.0, 127.0), expected numbers in [0, 1]"),
    ("mean and std", having(std=(0.0,) * 3), "std is (0.0, 0.0, 0.0), expected numbers above 0"),
    ("padding", having(padding=-1), "padding is -1, expected a number of pixels from 0"),
    ("loads", having(images=lambda s: Stream(s.images, readings=21)), "raised UserError: the file is gone"),
    ("stable", having(labels=lambda s: torch.randint(0, 2, (20,))), "built again, it has other labels"),
    ("stable", having(classes=lambda s: ("a", str(next(COUNT)))), "built again, it has other classes"),
    ("splits agree", data(lambda s: replace(s, classes=("b", "a")), only=False), "2 and 2 classes, or other names"),
    (
        "splits agree",
        data(lambda s: replace(s, images=s.images[:, :1], mean=(0.5,), std=(0.5,)), only=False),
        "images of 3 and 1 channels",
    ),
    ("splits agree", data(lambda s: replace(s, mean=(0.4,) * 3), only=False), "each split is normalized its own way"),
]


# Methods


def method(only: Any) -> Callable[..., list[Term]]:
    return mine(lambda: [Term(only)])


METHOD_FAULTS: list[Fault] = [
    ("builds", "pckd(betta=1)", "did you mean 'beta'?"),
    ("terms", mine(lambda: (Term("kd"),)), "returned tuple, expected a list of registry.Term"),
    ("terms", mine(list), "the list holds nothing, expected registry.Term"),
    ("terms", mine(lambda: ["kd"]), "the list holds str, expected registry.Term"),
    ("objective", method("no_such_loss"), "raised UnknownName: LOSSES: unknown name 'no_such_loss'"),
    ("objective", mine(lambda: [Term("kd", 0)]), "raised UserError: the method has no term with a weight"),
    ("applicable", method(but(GoodLoss, __init__=refuse)), "refused every pair of networks"),
    ("runs", method(loss(fail)), "raised ValueError: no such thing"),
    ("runs", mine(lambda: [Term("center_relation", previewed=True)]), "is about the whole batch"),
    ("finite", method(loss(lambda s, t: distance(s, t) / 0)), "mine is inf, expected a finite number"),
    ("gradient to the student", method(loss(lambda s, t: distance(s.detach(), t) * PARAMETER)), "none came"),
    ("teacher is constant", method(trains_the_teacher), "gradient reached the teacher"),
]


# What is broken is found


def strict(loss: Any) -> None:
    check_loss(loss, independent_rows=True)


FAULTS: dict[Any, tuple[str, list[Fault]]] = {
    check_loss: ("loss", LOSS_FAULTS),
    check_scheduler: ("scheduler", SCHEDULER_FAULTS),
    check_difficulty: ("difficulty metric", DIFFICULTY_FAULTS),
    check_center_rule: ("center rule", RULE_FAULTS),
    check_lr_schedule: ("schedule", LR_FAULTS),
    check_backbone: ("backbone", NET_FAULTS),
    check_dense: ("backbone", DENSE_FAULTS),
    check_dataset: ("data set", DATA_FAULTS),
    check_method: ("method", METHOD_FAULTS),
}
"""For every check what messages call its plug-ins, and faults."""
GOOD: dict[Any, list[Any]] = {
    check_loss: [
        *(GoodLoss, Remembers, NeedsTwoViews, NeedsManyRows, NeedsOneWidth, DrawsNumbers, HasAnLstm),
        function(lambda s, t: (s - t).square().mean(1)),
        function(lambda s, t: (s - t).square().mean(), per_sample=False),
        "dkd(beta=2)",
        # An order that matters may be said, and independence is only asked where it is claimed.
        loss(lambda s, t: distance(s, t) * rows_of(s.logits), order_matters=True),
        loss(lambda s, t: distance(s, t) * distance(s, t).mean()),
    ],
    strict: [GoodLoss],
    check_scheduler: [scheduler(good_weights), "preview(growth=1.01)"],
    check_lr_schedule: [lambda progress, epochs: 1 - progress, "cosine(warmup=5, least=0.1)"],
    check_difficulty: [
        functional.cross_entropy_difficulty,
        metric(cross_entropy),
        metric(lambda s, y: functional.relative(s.embedding.float().sum(1))),
    ],
    check_center_rule: [GoodRule, OneWidthRule, "ema(momentum=0.5)"],
    check_backbone: [GoodNet, GoodNet(3)],
    check_dense: ["fcos_r10w16(norm='group')", build(BACKBONES, "fcn_r10w16", 2)],
    functools.partial(check_backbone, in_channels=(2,)): [GoodNet(3, in_channels=2)],
    functools.partial(check_backbone, image_sizes=(32,)): [of_one_size],
    check_dataset: [data(lambda s: s), having(images=lambda s: Stream(s.images), difficulty=None)],
    check_method: [method("kd(temperature=2)"), method(GoodLoss), "pckd(beta=0.1)"],
}


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        pytest.param(check, fault, id=f"{check.__name__}-{fault[0]}-{n}")
        for check, (_, faults) in FAULTS.items()
        for n, fault in enumerate(faults)
    ],
)
def test_a_fault_is_found_and_named(check: Any, fault: Fault) -> None:
    clause, plugin, said = fault
    with pytest.raises(ContractError) as caught:
        (strict if clause == "independent rows" else check)(plugin)
    message = str(caught.value)
    name = plugin if isinstance(plugin, str) else "int" if plugin == 3 else "mine"
    assert caught.value.plugin == f"{FAULTS[check][0]} {name}"
    assert message.startswith(f"{caught.value.plugin}: clause {clause!r}: ")
    assert caught.value.clause == clause
    assert said in message
    assert "\n" not in message
    assert (": raised " in message) == (caught.value.__cause__ is not None)


@pytest.mark.parametrize(("check", "plugin"), [(check, plugin) for check in GOOD for plugin in GOOD[check]])
def test_what_is_good_passes_and_the_callers_random_numbers_are_left_alone(check: Any, plugin: Any) -> None:
    before = torch.get_rng_state()
    check(plugin)
    assert torch.get_rng_state().equal(before)


SHARED = {
    check_loss: ["loss_claims"],
    check_scheduler: ["contract"],
    check_difficulty: ["contract"],
    check_backbone: ["networks"],
    check_dense: ["networks"],
}
"""Modules that check clauses for another one."""


@pytest.mark.parametrize("check", FAULTS)
def test_every_clause_has_a_fault_and_is_documented(check: Any) -> None:
    modules = [check.__module__, *(f"pckd.testing.{name}" for name in SHARED.get(check, ()))]
    clauses = set()
    for node in ast.walk(ast.parse("".join(inspect.getsource(sys.modules[module]) for module in modules))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".clause", ".holds")):
            clauses |= {first.value for first in node.args[:1] if isinstance(first, ast.Constant)}
    assert {fault[0] for fault in FAULTS[check][1]} == clauses
    paragraph = next(text for text in inspect.getdoc(check).split("\n\n") if text.startswith("Clauses: "))
    listed = " ".join(paragraph.removeprefix("Clauses: ").removesuffix(".").split())
    # The comma of [0, 1] separates nothing.
    assert set(re.split(r", (?![^\[]*\])", listed)) == clauses


def test_an_error_survives_pickling() -> None:
    with pytest.raises(ContractError) as caught:
        check_scheduler(scheduler(fail))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.clause) == (str(caught.value), "runs")


@pytest.mark.parametrize("check", FAULTS)
def test_an_unknown_name_is_the_callers_mistake(check: Any) -> None:
    with pytest.raises(UnknownName, match="unknown name 'no_such'"):
        check("no_such")
    with pytest.raises(UserError, match="cannot read"):
        check("no_such(")


@pytest.mark.usefixtures("registries")
def test_a_registered_name_is_looked_up() -> None:
    LOSSES.register("mine")(loss(lambda s, t: s.logits))
    with pytest.raises(ContractError, match=r"^loss mine: clause 'unreduced'"):
        check_loss("mine")


def test_a_network_is_not_changed() -> None:
    network = GoodNet(3).eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    check_backbone(network)
    assert not network.training
    assert all(value.equal(state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())

"""From what a caller names to what the loop needs: data, networks, methods."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from model_zoo import Preprocessing, load_weights, method_options, method_recipe, preprocessing_of, probe
from model_zoo.probe import check_network, copied, evaluating
from model_zoo.recipes import LEFT_OUT
from pckd.data import hold_out, limit
from pckd.data.check import check_item, check_on_bad_image, check_split, first_item, say_once
from pckd.objective import Metric, Objective, Scheduler, preview_all
from registry import (
    BACKBONES,
    CENTER_RULES,
    DATASETS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    METHODS,
    CenterRule,
    DataSplit,
    PluginError,
    Setup,
    Shapes,
    Term,
    UserError,
    ask,
    build,
    check_options,
    options_of,
    parse,
)
from registry.errors import place_of

Module = TypeVar("Module", bound=nn.Module)

DATA_SEED = 0
"""Seed of which images ``limit`` and ``val_fraction`` pick: every run of every seed sees the same ones."""


@dataclass(frozen=True)
class Data:
    """What to train on and what to measure on.

    Args:
        train: the training split. test: what accuracy is measured on, each epoch and at the end.
        name: for logs and result.json.
        measured_on: ``"test"``, or ``"val"`` where ``test`` was held out of the training set.
    """

    train: DataSplit
    test: DataSplit
    name: str = "custom"
    measured_on: str = "test"

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes:
            numbers = self.train.num_classes, self.test.num_classes
            names = [pair for pair in zip(self.train.classes, self.test.classes, strict=False) if pair[0] != pair[1]]
            one, other = numbers if numbers[0] != numbers[1] else names[0]
            raise UserError(f"{self.name}: training and test split have different classes ({one} and {other})")
        if self.train.num_classes < 2:
            raise UserError(f"{self.name}: there is one class only; to learn to tell classes apart takes 2 or more")
        for label, split in (("training", self.train), ("test", self.test)):
            if not len(split.labels):
                raise UserError(f"{self.name}: the {label} split is empty")
            check_split(split)
        channels, others = check_item(self.train)[0], check_item(self.test)[0]
        if channels != others:
            raise UserError(f"{self.name}: training images have {channels} channels, test images {others}")
        if not self.preprocessing.normalizes_as(self.test.mean, self.test.std):
            raise UserError(
                f"{self.name}: the test split is normalized in another way than the training split; "
                "give both the training split's mean and std"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as the network gets it in training."""
        channels, height, width = first_item(self.train).shape
        return int(channels), int(height), int(width)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a network that is trained on this data carries as its record."""
        return preprocessing_for(self.train)


def preprocessing_for(split: DataSplit) -> Preprocessing:
    """How the images of a split are prepared, and its classes."""
    _, height, width = check_item(split)
    mean, std = (tuple(float(x) for x in values) for values in (split.mean, split.std))
    return Preprocessing(mean, std, (height, width), tuple(map(str, split.classes)))


def load_data(
    data: str | Data,
    *,
    root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> Data:
    """Load a data set by name, or pass one through.

    Args:
        data: a name of ``DATASETS``, with options (``"shapes(num_classes=20)"``), or a :class:`Data`.
        root: where its files are.
        limit_train: use so many images of the training split, always the same ones: of a fixed permutation the first
            image of each class, then the first of the rest. A warning says so where some classes have none.
        limit_test: likewise for the test split.
        val_fraction: hold out this share of the training split, by class, and measure on it instead of the test
            split, which is then not touched.
        on_bad_image: what is done about images that cannot be read. ``"stop"`` raises: of data in memory at once, of
            streamed data at the first batch with one. ``"skip"`` leaves them out of data in memory; of streamed data,
            training shows the next image in their place, and evaluation does not count them; a warning names them.
            A :class:`Data` that skips them keeps doing so.

    Raises:
        UserError: unknown name, missing or broken data, a limit beyond the data.
    """
    train: DataSplit
    test: DataSplit
    check_on_bad_image(on_bad_image)
    if isinstance(data, Data):
        train, test, name, measured_on = data.train, data.test, data.name, data.measured_on
        if on_bad_image == "skip":
            train, test = (replace(split, on_bad_image=on_bad_image) for split in (train, test))
    else:
        train = read_split(data, root, True, on_bad_image)
        # With a validation split the test split is not even read.
        test = train if val_fraction else read_split(data, root, False, on_bad_image)
        name, measured_on = data, "test"
    if limit_train is not None:
        train = limited(train, limit_train)
    if val_fraction:
        train, test = hold_out(train, val_fraction, DATA_SEED)
        measured_on = "val"
    if limit_test is not None:
        test = limited(test, limit_test)
    return Data(train, test, name, measured_on)


def limited(split: DataSplit, n: int) -> DataSplit:
    """The ``n`` images that every run takes of a split (:func:`pckd.data.limit`); warns of classes without any.

    Raises:
        UserError: it has fewer, or ``n`` is below 1.
    """
    part = limit(split, n, DATA_SEED)
    missing = len(split.labels.unique()) - len(part.labels.unique())
    if missing:
        name = split.name or "the data set"
        say_once(f"{name}: {n} images are fewer than it has classes: {missing} of these are left without an image")
    return part


def read_split(name: str, root: str | None, train: bool, on_bad_image: Literal["stop", "skip"] = "stop") -> DataSplit:
    """One split of a data set by name, as a whole.

    Args:
        on_bad_image: see :func:`load_data`.

    Raises:
        UserError: unknown name, missing or broken data.
    """
    options: dict[str, Any] = {}
    if on_bad_image == "skip" and "on_bad_image" in options_of(DATASETS.get(parse(name)[0])):
        options["on_bad_image"] = on_bad_image
    split = ask(f"data set {name!r}", build, DATASETS, name, root, train, **options)
    if not isinstance(split, DataSplit):
        raise PluginError(f"data set {name!r} returned {type(split).__name__}: it must return registry.DataSplit")
    return replace(split, on_bad_image=on_bad_image) if on_bad_image == "skip" else split


def check_choices(
    data: Data,
    terms: Sequence[Term],
    *,
    views: int | None,
    view_pool: int,
    difficulty: str | Metric,
    scheduler: str | Scheduler | None,
    centers: str | CenterRule,
) -> None:
    """Refuse, before a teacher is trained for hours, what would be refused after it.

    Raises:
        UserError: unknown names or options of the objective's parts; rotated views of images that are not square, or
            a pool of augmentations, where the data cannot have them.
    """
    for registry, spec in ((DIFFICULTY_METRICS, difficulty), (DIFFICULTY_SCHEDULERS, scheduler)):
        if isinstance(spec, str):
            build(registry, spec)
    if isinstance(centers, str):
        name, options = parse(centers)
        check_options(f"{CENTER_RULES.name}: {name}", CENTER_RULES.get(name), options, ("setup",))
    _, height, width = data.image_shape
    rotated = any(term.views == "all" for term in terms if term.weight) if views is None else views > 1
    if rotated and height != width:
        raise UserError(f"rotated views need square images, and those of {data.name} are {height}x{width}; use views=1")
    if view_pool and not isinstance(data.train.images, torch.Tensor):
        raise UserError(
            f"view_pool={view_pool}: {data.name} is streamed and augmented anew as it is read; leave out the pool "
            "(and the teacher cache), or use a data set that is held in memory"
        )


def check_one_row(network: nn.Module, data: Data, rows: int) -> None:
    """Refuse a student that normalizes over a batch of ``rows`` rows where that is one.

    Raises:
        UserError: it cannot be trained on one row; says what would work.
    """
    if rows == 1:
        weight = next(network.parameters(), torch.empty(0))
        image = torch.zeros(1, *data.image_shape, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            # Of a copy, because training it changes its statistics.
            copy = copy_of(network, "the student", "the check of a batch of one image")
            ask("the student, trained on a batch of one image,", copy.train(), image)


def check_trainable(student: nn.Module) -> None:
    """Refuse a student whose weights no step could change as they are.

    Raises:
        UserError: they are not in float32, or were made in inference mode.
    """
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if tensor.is_inference():
            raise UserError(
                f"the student's {name} was made inside torch.inference_mode() and cannot be trained: make it outside"
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"the student's {name} is in {tensor.dtype}, and training is in torch.float32: give student.float() "
                "(precision='bf16' multiplies in bfloat16)"
            )


def check_gradients(student: nn.Module, objective: Objective) -> None:
    """Refuse a student that is frozen as a whole, unless a loss trains a head that answers for it.

    Raises:
        UserError: says what to call.
    """
    if not any(p.requires_grad for p in student.parameters()) and objective.predictor(student) is student:
        raise UserError(
            "no parameter of the student requires gradients, so that there is nothing to train: "
            "call student.requires_grad_(True), or do so for the layers to train"
        )


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student whose training would change the teacher.

    Raises:
        UserError: the two have parameters or buffers in common.
    """
    if student is teacher:
        raise UserError("student and teacher are the same object; give the student a copy")
    theirs = {_place_in_memory(tensor) for tensor in [*teacher.parameters(), *teacher.buffers()]}
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if _place_in_memory(tensor) in theirs:
            raise UserError(f"student and teacher share {name}: give the student a copy of it (copy.deepcopy)")


def _place_in_memory(tensor: torch.Tensor) -> int:
    # Two parameters may be made of the same data. What is empty, or sparse, has no address.
    return (tensor.data_ptr() if tensor.layout == torch.strided else 0) or id(tensor)


def copy_of(module: Module, role: str, need: str) -> Module:
    """A copy of what a caller has given.

    Args:
        role: what it is, for messages: ``"the student"``. need: what the copy is for: ``"a profile"``.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        return copied(module)
    # Any object in it may refuse in its own way.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{role} cannot be copied, as {need} needs: {reason}") from error


def make_network(network: str | nn.Module, data: Data, role: str = "a network") -> nn.Module:
    """Build a backbone by name for this data, or pass a module through.

    Raises:
        UserError: an unknown name, or no network.
    """
    if not isinstance(network, str):
        check_network(network, role)
        return network
    classes, channels = data.train.num_classes, data.image_shape[0]
    built = ask(f"backbone {network!r}", build, BACKBONES, network, classes, in_channels=channels)
    if not isinstance(built, nn.Module):
        raise PluginError(f"backbone {network!r} returned {type(built).__name__}: it must return an nn.Module")
    return built


def load_trained(name: str, data: Data, weights: str | os.PathLike[str]) -> nn.Module:
    """A network by name with these weights.

    Raises:
        UserError: unknown name, no such file, or weights of another network or of other classes.
    """
    network = make_network(name, data)
    load_weights(network, weights)
    check_classes(os.fspath(weights), network, data.train.classes, data.name)
    return network


def check_classes(what: str, network: nn.Module, classes: Sequence[str], owner: str) -> None:
    """Refuse a network whose record has other classes than these, or the same in another order.

    Args:
        what: the network, for messages. owner: who has ``classes``, likewise.

    Raises:
        UserError: says which.
    """
    record = preprocessing_of(network)
    theirs, ours = () if record is None else record.classes, tuple(map(str, classes))
    if not theirs or theirs == ours:
        return
    if len(theirs) != len(ours):
        raise UserError(f"{what}: was trained on {len(theirs)} classes, and {owner} has {len(ours)}")
    k = next(k for k, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    how = "the same classes in another order" if sorted(theirs) == sorted(ours) else "other classes"
    raise UserError(
        f"{what}: was trained on {how} than {owner} has: class {k} is {theirs[k]!r} there and {ours[k]!r} here; "
        "use weights and data with the same classes in the same order"
    )


def other_preprocessing(
    what: str, network: nn.Module, split: DataSplit, say: Callable[[str], None]
) -> Preprocessing | None:
    """The network's record, where its images were normalized in another way than a split says; None otherwise.

    Args:
        what: the network, for messages. say: told where normalization or image size are others.

    Raises:
        UserError: the network was trained on other classes, or on images with another number of channels.
    """
    record = preprocessing_of(network)
    if record is None:
        return None
    data, name = preprocessing_for(split), split.name or "the data set"
    check_classes(what, network, data.classes, name)
    if len(record.mean) != len(data.mean):
        raise UserError(
            f"{what}: was trained on images with {len(record.mean)} channels, and those of {name} have {len(data.mean)}"
        )
    if record.image_size != data.image_size:
        theirs, ours = ("x".join(map(str, size)) for size in (record.image_size, data.image_size))
        say(f"{what}: was trained on images of {theirs} pixels, and those of {name} have {ours}")
    if record.normalizes_as(data.mean, data.std):
        return None
    say(
        f"{what}: is shown images normalized as in its own training (mean {_numbers(record.mean)}, std "
        f"{_numbers(record.std)}), not as {name} says (mean {_numbers(data.mean)}, std {_numbers(data.std)})"
    )
    return record


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def check_layout(network: nn.Module, image_shape: tuple[int, int, int], role: str) -> None:
    """Refuse a network that cannot run in the memory format that convolutions are fastest in.

    Args:
        image_shape: (C, H, W).

    Raises:
        UserError: names the line, and what to write instead.
    """
    weight = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, *image_shape, device=weight.device)
    try:
        with evaluating(network), torch.no_grad():
            network(images.contiguous(memory_format=torch.channels_last))
    except Exception as error:
        reason, where = " ".join(str(error).split())[:200], place_of(error)
        raise UserError(
            f"{role} cannot run on images in channels_last memory format: {reason}{where and f' ({where})'}; "
            "in its forward, write .reshape or .flatten(1) instead of .view"
        ) from error


def shapes_of(network: nn.Module, data: Data, role: str) -> Shapes:
    """The network's shapes at this data's resolution.

    Raises:
        UserError: it cannot take these images, or has another number of classes.
    """
    channels, *size = data.image_shape
    shapes = probe(network, channels, (size[0], size[1]), name=f"the {role}")
    if shapes.num_classes != data.train.num_classes:
        raise UserError(
            f"the {role} has {shapes.num_classes} classes, the data set {data.name} {data.train.num_classes}: "
            "they must be the same"
        )
    return shapes


def method_terms(
    method: str | Sequence[Term],
    student: str | nn.Module | None = None,
    teacher: str | nn.Module | None = None,
) -> list[Term]:
    """The terms of a method by name (``"pckd(beta=0.1)"``), of several together (``"dkd+crd"``), or the given ones.

    Several methods have one cross entropy between them: the first one's. Where student and teacher have names, a
    method takes the pair's published options; those given in ``method`` win.
    """
    if not isinstance(method, str):
        return list(method)
    options = pair_options(method, student, teacher)
    terms: list[Term] = []
    for part in split_methods(method):
        if not part:
            raise UserError(f"method {method!r}: a name is missing; see --list methods")
        name = parse(part)[0]
        if name in LEFT_OUT and name not in METHODS:
            raise UserError(f"method {name!r} is left out: {LEFT_OUT[name]}")
        built = ask(f"method {name!r}", build, METHODS, part, **options.get(name, {}))
        if not isinstance(built, (list, tuple)) or not all(isinstance(term, Term) for term in built):
            raise PluginError(f"method {name!r} returned {built!r:.100}: it must return a list of registry.Term")
        for term in built:
            if term.loss != "cross_entropy" or not any(t.loss == "cross_entropy" for t in terms):
                terms.append(term)
    return terms


def pair_options(
    method: str | Sequence[Term], student: str | nn.Module | None, teacher: str | nn.Module | None
) -> dict[str, dict[str, Any]]:
    """For each named method the options that follow from the pair (:func:`model_zoo.method_options`), less those given.

    Methods without any are left out.
    """
    if not (isinstance(method, str) and isinstance(student, str) and isinstance(teacher, str)):
        return {}
    found = {}
    for name, given in map(parse, split_methods(method)):
        options = {k: v for k, v in method_options(name, student, teacher).items() if k not in given}
        if options:
            found[name] = options
    return found


def method_lr(method: str | Sequence[Term], student: str | nn.Module) -> float | None:
    """The learning rate that a named method asks for (the first that does, of several together); None: the usual."""
    name = student if isinstance(student, str) else None
    for part in split_methods(method) if isinstance(method, str) else ():
        if "lr" in (changes := method_recipe(parse(part)[0], name)):
            return float(changes["lr"])
    return None


def split_methods(method: str, separator: str = "+") -> list[str]:
    """``"dkd(beta=2)+crd"`` to ``["dkd(beta=2)", "crd"]``: split at each separator outside parentheses."""
    parts, depth = [""], 0
    for character in method:
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def schedule_terms(terms: Sequence[Term], scheduler: str | Scheduler | None) -> tuple[list[Term], str | Scheduler]:
    """The terms with what is previewed, and the scheduler: one that is given weights every method's losses."""
    if scheduler is None:
        return list(terms), "preview"
    return list(terms) if any(term.previewed for term in terms) else preview_all(terms), scheduler


def make_objective(
    terms: Sequence[Term],
    setup: Setup,
    *,
    difficulty: str | Metric,
    scheduler: str | Scheduler,
    centers: str | CenterRule,
) -> Objective:
    """The objective of these terms; its other parts by name or as objects."""
    if isinstance(centers, str):
        rule = ask(f"center rule {centers!r}", build, CENTER_RULES, centers, setup)
    else:
        # A run begins with the rule as it was given, and so does the next one.
        rule = copy_of(centers, "the center rule", "each run") if isinstance(centers, nn.Module) else centers
    return Objective(
        terms,
        setup,
        difficulty=build(DIFFICULTY_METRICS, difficulty) if isinstance(difficulty, str) else difficulty,
        scheduler=build(DIFFICULTY_SCHEDULERS, scheduler) if isinstance(scheduler, str) else scheduler,
        centers=rule,
    )


def describe(thing: Any) -> Any:
    """What result.json says of an argument that may be an object: its name."""
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, Data):
        return thing.name
    if isinstance(thing, torch.device):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [describe(item) for item in thing]
    if isinstance(thing, Term):
        return f"{thing.weight} * {thing.label}"
    return str(getattr(thing, "__name__", type(thing).__name__))

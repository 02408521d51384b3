"""A data set by name or as it is given: its two splits, their parts, and what a network remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from model_zoo import Preprocessing
from pckd.data.annotated import AnnotatedSplit, check_annotated
from pckd.data.arrays import is_arrays, make_splits
from pckd.data.check import check_item, check_on_bad_image, check_split, first_item, name_of, say_once
from pckd.data.loader import _seeded
from pckd.data.subset import hold_out, limit
from registry import DATASETS, Absent, DataSplit, PluginError, UserError, ask, build, options_of, parse

__all__ = ["DATA_SEED", "Data", "as_data", "limited", "load_data", "preprocessing_for", "read_split"]

DATA_SEED = 0
"""Seed of which images ``limit`` and ``val_fraction`` pick: every run of every seed sees the same ones."""


@dataclass(frozen=True)
class Data:
    """What to train on and what to measure on.

    Args:
        train: the training split. test: what accuracy is measured on, each epoch and at the end. Where the training
            images have no labels, the test split may have some, of any classes, or none.
        name: for logs and result.json.
        measured_on: ``"test"``, or ``"val"`` where ``test`` was held out of the training set.
        task: the name of the task that the data is for; without labels ``"unlabeled"``. A split of another task than
            classification is what that task takes, with ``classes``, ``num_classes``, ``name``, a length, and
            ``part(index, name, evaluation)``.
    """

    train: Any
    test: Any
    name: str = "custom"
    measured_on: str = "test"
    task: str = "classification"

    def __post_init__(self) -> None:
        for label, split in (("training", self.train), ("test", self.test)):
            if not len(split):
                raise UserError(f"{self.name}: the {label} split is empty")
        labeled, test_labeled = (getattr(split, "labeled", True) for split in (self.train, self.test))
        if labeled and not test_labeled:
            raise UserError(f"{self.name}: the test split has no labels, and the training split has; give it its own")
        if labeled and self.train.classes != self.test.classes:
            numbers = self.train.num_classes, self.test.num_classes
            names = [pair for pair in zip(self.train.classes, self.test.classes, strict=False) if pair[0] != pair[1]]
            one, other = numbers if numbers[0] != numbers[1] else names[0]
            raise UserError(f"{self.name}: training and test split have different classes ({one} and {other})")
        if isinstance(self.train, AnnotatedSplit):
            self._check_annotated()
            return
        if labeled and self.train.num_classes < 2:
            raise UserError(f"{self.name}: there is one class only; to learn to tell classes apart takes 2 or more")
        if not isinstance(self.train, DataSplit):
            return
        if not labeled and self.task == "classification":
            object.__setattr__(self, "task", "unlabeled")
        for split in (self.train, self.test):
            check_split(split)
        if self.test.neighbors is not None:
            self._check_neighbors(self.test, self.test.neighbors)
        channels, others = check_item(self.train)[0], check_item(self.test)[0]
        if channels != others:
            raise UserError(f"{self.name}: training images have {channels} channels, test images {others}")
        one, other = first_item(self.train).dtype, first_item(self.test).dtype
        if one != other:
            raise UserError(f"{self.name}: training images are {one}, test images {other}; give both in one type")
        if not self.preprocessing.normalizes_as(self.test.mean, self.test.std):
            raise UserError(
                f"{self.name}: the test split is normalized in another way than the training split; "
                "give both the training split's mean and std"
            )

    def _check_neighbors(self, test: DataSplit, neighbors: DataSplit) -> None:
        check_split(neighbors)
        for what, one, other in (
            ("labels", test.labeled, neighbors.labeled),
            ("classes", test.classes, neighbors.classes),
            ("image shape", check_item(test), check_item(neighbors)),
            ("mean and std", (*test.mean, *test.std), (*neighbors.mean, *neighbors.std)),
        ):
            if one != other:
                raise UserError(f"{self.name}: test split and its neighbors differ in {what} ({one} and {other})")

    def _check_annotated(self) -> None:
        for split in (self.train, self.test):
            check_annotated(split)
        for what, one, other in (
            ("boxes", bool(self.train.annotations), bool(self.test.annotations)),
            ("masks", self.train.masks is not None, self.test.masks is not None),
            ("image_size", self.train.image_size, self.test.image_size),
        ):
            if one != other:
                raise UserError(f"{self.name}: training and test split differ in {what} ({one} and {other})")

    @classmethod
    # A data set that augments its images draws from the global generators, which are the caller's.
    @_seeded(0)
    def of(
        cls,
        train: Any,
        test: Any,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | tuple[int, int] | None = None,
        padding: int | None = None,
        stream: bool | None = None,
        multilabel: bool | None = None,
        name: str = "custom",
    ) -> Data:
        """Data from Python objects.

        Args:
            train: a ``torch.utils.data.Dataset`` with a length, whose items are pairs (image, label) (or dictionaries
                with ``image`` and ``label``); or a pair of arrays (images, labels). An image is a ``PIL.Image``, a
                tensor or a NumPy array, [C, H, W], [H, W, C] or [H, W], with 1 to 16 channels, of type uint8, uint16
                (65535 is 1) or float (taken as it is). Where both layouts fit, channels come first in a tensor and last
                in an array. Labels are whole numbers from 0 or names, [M]; probabilities [M, K] (soft labels); or 0 and
                1 [M, K] (several labels an image: the task is then ``multilabel``).
            test: likewise.
            classes: names of the K classes; by default the data set's ``.classes``, or the numbers.
            mean, std: per channel, of images scaled as above; by default of the training images.
            image_size: (height, width), or one number: images of other sizes are resized and cropped to it.
            padding: pixels of the random crop in training; by default an eighth of the side, and 0 for a data set that
                gives other images each time, because it augments them itself (``flip=False`` leaves out the flips).
            stream: read images when they are needed, by ``num_workers`` processes; by default where the data set
                augments them, or they take more than 1 GiB.
            multilabel: whether labels [M, K] of 0 and 1 are several labels an image; by default where not every row of
                the training split has exactly one 1.
            name: for logs and result.json.

        Raises:
            UserError: what cannot be read, in one line.
        """
        options: dict[str, Any] = {"image_size": image_size, "padding": padding, "stream": stream}
        options |= {"classes": classes, "mean": mean, "std": std, "multilabel": multilabel, "name": name}
        one, other = make_splits(train, test, **options)
        return cls(one, other, name, task="multilabel" if isinstance(one.labels, Absent) else "classification")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as the network gets it in training."""
        if isinstance(self.train, AnnotatedSplit):
            return 3, *self.train.image_size
        channels, height, width = first_item(self.train).shape
        return channels, height, width

    @property
    def preprocessing(self) -> Preprocessing:
        """What a network that is trained on this data carries as its record."""
        return preprocessing_for(self.train)


def preprocessing_for(split: DataSplit | AnnotatedSplit) -> Preprocessing:
    """How the images of a split are prepared, and its classes."""
    _, height, width = (3, *split.image_size) if isinstance(split, AnnotatedSplit) else check_item(split)
    mean, std = (tuple(float(x) for x in values) for values in (split.mean, split.std))
    return Preprocessing(mean, std, (height, width), tuple(map(str, split.classes)))


def as_data(data: Any) -> str | Data:
    """A name or a :class:`Data` as it is; a pair (train, test) by :meth:`Data.of`.

    Raises:
        UserError: anything else.
    """
    if isinstance(data, (str, Data)):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2 and not is_arrays(data):
        return Data.of(*data)
    raise UserError(
        "data must be a name, a pckd.Data, a pair (train, test) of torch data sets, or one of them with val_fraction, "
        f"not {type(data).__name__}; pckd.Data.of(train, test) takes arrays, too"
    )


def load_data(
    data: str | Data | tuple[Any, Any] | Dataset,
    *,
    root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.0,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> Data:
    """Load a data set by name, or pass one through.

    Args:
        data: a name of ``DATASETS``, with options (``"shapes(num_classes=20)"``), a :class:`Data`, or a pair
            (train, test) for :meth:`Data.of`, or with ``val_fraction`` one data set.
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
    check_on_bad_image(on_bad_image)
    data = as_data((data, data) if val_fraction and isinstance(data, Dataset) else data)
    if isinstance(data, Data):
        train, test, name, measured_on, task = data.train, data.test, data.name, data.measured_on, data.task
        if on_bad_image == "skip":
            train, test = (replace(split, on_bad_image=on_bad_image) for split in (train, test))
    else:
        train = read_split(data, root, True, on_bad_image)
        # With a validation split the test split is not even read.
        test = train if val_fraction else read_split(data, root, False, on_bad_image)
        name, measured_on, task = data, "test", DATASETS.facts(parse(data)[0]).get("task", "classification")
    if limit_train is not None:
        train = limited(train, limit_train)
    if val_fraction:
        train, test = hold_out(train, val_fraction, DATA_SEED)
        measured_on = "val"
    if limit_test is not None:
        test = limited(test, limit_test)
    for part, split, limited_to in (("training", train, limit_train), ("test", test, limit_test)):
        # Of a limit it was said above.
        if limited_to is None:
            _say_missing(name, part, split)
    return Data(train, test, name, measured_on, task)


def _say_missing(name: str, part: str, split: Any) -> None:
    """Say which classes have no image in a split."""
    if not isinstance(split, DataSplit) or not isinstance(split.labels, Tensor):
        return
    there = set(split.labels.unique().tolist())
    missing = [str(name) for k, name in enumerate(split.classes) if k not in there]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        say_once(f"{name}: {len(missing)} of {split.num_classes} classes have no {part} image ({shown})")


def limited(split: DataSplit, n: int) -> DataSplit:
    """The ``n`` images that every run takes of a split (:func:`pckd.data.limit`); warns of classes without any."""
    part = limit(split, n, DATA_SEED)
    if not isinstance(split, DataSplit):
        return part
    if isinstance(split.labels, Absent):
        return part
    missing = len(split.labels.unique()) - len(part.labels.unique())
    if missing:
        text = f"{n} images are fewer than it has classes: {missing} of these are left without an image"
        say_once(f"{name_of(split)}: {text}")
    return part


def read_split(name: str, root: str | None, train: bool, on_bad_image: Literal["stop", "skip"] = "stop") -> DataSplit:
    """One split of a data set by name, as a whole; the arguments are those of :func:`load_data`."""
    plain, skip = parse(name)[0], on_bad_image == "skip"
    takes = skip and "on_bad_image" in options_of(DATASETS.get(plain))
    options: dict[str, Any] = {"on_bad_image": on_bad_image} if takes else {}
    split = ask(f"data set {name!r}", build, DATASETS, name, root, train, **options)
    if isinstance(split, DataSplit) == (
        DATASETS.facts(plain).get("task") not in (None, "classification", "multilabel")
    ):
        raise PluginError(
            f"data set {name!r} returned {type(split).__name__}: it must return registry.DataSplit, or be "
            "registered with task=..."
        )
    skip = skip and isinstance(split, (DataSplit, AnnotatedSplit))
    return replace(split, on_bad_image=on_bad_image) if skip else split

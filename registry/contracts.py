"""The small types that plug-ins exchange.

Shapes: B images a step, N rows (instances) that a task makes of them, K classes, D embedding width (Ds student's, Dt
teacher's). A row is a view of an image in classification, a region in detection, a pixel in segmentation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from registry.errors import NotApplicable, UserError

__all__ = [
    "Absent",
    "Batch",
    "Boxes",
    "CenterRule",
    "Centers",
    "Context",
    "DataSplit",
    "Head",
    "Instances",
    "Loss",
    "Network",
    "Output",
    "Progress",
    "Rows",
    "Setup",
    "Shapes",
    "Term",
]


if TYPE_CHECKING:
    _Maps = tuple[Any, ...]
else:
    # No tuple when it runs: data parallelism looks into every tuple it meets for tensors.
    _Maps = object


class Absent(_Maps):
    """Stands for maps, logits, ... that are not there: every use raises NotApplicable with the reason.

    A network without maps has ``()``; this is for answers of a network that has some, where they were not kept.

    Args:
        reason: one line that says what is missing and what to do.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def _refuse(self, *_: Any) -> NoReturn:
        raise NotApplicable(self.reason)

    __len__ = __bool__ = __iter__ = __reversed__ = __getitem__ = __contains__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = count = index = _refuse

    def __getattr__(self, name: str) -> Any:
        # What the language itself asks for (copying, pickling) is answered as usual.
        return object.__getattribute__(self, name) if name.startswith("__") else self._refuse()

    @classmethod
    def __torch_function__(cls, _function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        found = next(value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Absent))
        raise NotApplicable(found.reason)

    def __eq__(self, other: object) -> bool:
        # A comparison with () is a question for the maps, too.
        return self.reason == other.reason if isinstance(other, Absent) else self._refuse()

    def __hash__(self) -> int:
        return hash(self.reason)

    def __repr__(self) -> str:
        return f"Absent({self.reason!r})"


SEVERAL_LABELS = (
    "this needs one label an image, and an image of multi-label data shows several classes; use a method that looks at "
    "logits, embeddings or maps alone, such as multilabel_kd"
)


class Head(Protocol):
    """The head of a dense detector, as a function of maps: another network's may go on where it is entered.

    Two branches, of the scores and of the boxes, each of layers that end in an activation, and a last convolution.
    Shapes: B images, A locations and anchors of each, over all levels.
    """

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps that the first layer reads, and of those that each layer gives."""
        ...

    def features(self, maps: Sequence[Tensor], layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """What a layer, counted from 1, gives before its activation: of each branch a map [B, C, H, W] a level.

        Args:
            maps: of the levels, which the head reads. layer: 0 for these themselves.
        """
        ...

    def predict(self, features: tuple[list[Tensor], list[Tensor]], layer: int) -> tuple[Tensor, Tensor]:
        """What the rest of the head makes of :meth:`features`.

        Returns:
            logits [B, A, K + 1], each class's own, where column 0 says nothing; boxes [B, A, 4] in pixels.
        """
        ...


class Output(NamedTuple):
    """What a backbone returns. A NamedTuple, so that ``torch.jit.trace`` and ``torch.compile`` take it."""

    logits: Tensor
    """[N, K], the classifier's output."""
    embedding: Tensor
    """[N, D], what the classifier reads; or :class:`Absent`, where there is no single such layer."""
    maps: tuple[Tensor, ...] = ()
    """Feature maps, [N, C, H, W] each, from the stem to the last stage; or :class:`Absent`."""
    preacts: tuple[Tensor, ...] = ()
    """The maps before their activation, one for each of ``maps``; equal to the map where a stage has none."""

    losses: Mapping[str, Tensor] | tuple[()] = ()
    """The network's own losses by name, where it computes any (a detector's box loss): scalars."""
    images: Output | tuple[()] = ()
    """Where a row is not an image: an output whose rows are the B images. Its maps are of whole images (a detector's
    pyramid); its logits and its embedding are :class:`Absent`."""
    sides: Tensor | tuple[()] = ()
    """[N, 4, bins], where a network gives each side of a row's box as a distribution (GFL): its logits."""
    head: Head | tuple[()] = ()
    """Of images: the dense detector's head that reads their maps. It holds no answer, and costs nothing unasked."""
    layers: Mapping[str, Tensor] | tuple[()] = ()
    """What those modules returned that a loss names (``reads_layers`` of :class:`Loss`), by their paths: maps
    [N, C, H, W] and vectors [N, D]; or :class:`Absent`."""
    members: tuple[Output, ...] = ()
    """Of several teachers, each one's own answer; the logits are then the log of the mean of their probabilities, and
    all else is :class:`Absent`. No loss is shown them."""

    def of_teacher(self, position: int | None) -> Output:
        """The answer of the teacher at this position, counted from 1; for None that of all of them."""
        return self.members[position - 1] if position else self._replace(members=()) if self.members else self

    def apply(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same output with each of its rows' tensors changed; what is absent stays absent."""

        def one(x: Tensor) -> Tensor:
            return x if isinstance(x, Absent) else change(x)

        def each(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return maps if isinstance(maps, Absent) else tuple(change(m) for m in maps)

        sides = change(self.sides) if isinstance(self.sides, Tensor) else ()
        layers = self.layers
        if isinstance(layers, Mapping):
            layers = {path: change(layer) for path, layer in layers.items()}
        return Output(
            logits=one(self.logits),
            embedding=one(self.embedding),
            maps=each(self.maps),
            preacts=each(self.preacts),
            losses=self.losses,
            images=self.images,
            sides=sides,
            head=self.head,
            layers=layers,
            members=tuple(member.apply(change) for member in self.members),
        )

    def rows(self, which: slice | Tensor | None) -> Output:
        """The same output for some of the rows only; for None that of the images."""
        if which is None:
            return self.images or self._refuse_images()
        whole = isinstance(which, slice) and which == slice(None)
        return self if whole else self.apply(lambda x: x[which])

    def _refuse_images(self) -> NoReturn:
        raise NotApplicable("a term asks for the rows 'images', and the network tells nothing of whole images")

    def select(self, views: int, chosen: Sequence[int]) -> Output:
        """The same output for some of the ``views`` views of each image only, in the order ``chosen``."""
        if list(chosen) == list(range(views)):
            return self

        def pick(x: Tensor) -> Tensor:
            if len(chosen) == 1:
                return x[chosen[0] :: views]
            return x.unflatten(0, (-1, views))[:, list(chosen)].flatten(0, 1)

        return self.apply(pick)

    def upright(self, views: int) -> Output:
        """The same output for the rows of view 0 only, where each image has ``views`` rows."""
        return self.select(views, (0,))

    def detach(self) -> Output:
        """The same output without gradient."""
        losses = {name: value.detach() for name, value in self.losses.items()} if self.losses else ()
        images = self.images.detach() if self.images else ()
        return self.apply(lambda x: x.detach())._replace(losses=losses, images=images)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loader yields."""

    views: Tensor
    """[B, V, C, H, W], normalized, floating point."""
    labels: Tensor
    """[B], int64; or :class:`Absent`."""
    index: Tensor
    """[B], int64: the position of each image in the data set, stable over epochs."""
    drawn: Tensor | None = None
    """[B], int64, on the CPU: the entry of its pool of augmentations that each image shows; None where there is no
    pool."""
    recalled: Output | None = None
    """The teacher's remembered answer for all N rows, on the device of the views; None where it must be asked."""
    strong: bool = False
    """Whether the last of the views is a strongly augmented one."""
    targets: Tensor | None = None
    """[B, K], of a split with targets (:class:`DataSplit`)."""
    sample_weights: Tensor | None = None
    """[B], what each image counts in the supervised term, where not all count alike."""

    def __len__(self) -> int:
        return len(self.index)


class Centers(NamedTuple):
    """One center per category: by default the rows of the two classifiers; or :class:`Absent`."""

    student: Tensor
    """[K, Ds]; gradient may flow into it."""
    teacher: Tensor
    """[K, Dt]; constant."""
    student_bias: Tensor | None = None
    """[K], where the rule has one (the classifier's bias)."""
    teacher_bias: Tensor | None = None
    """[K]."""


class Rows(NamedTuple):
    """A named set of a step's rows, for the terms that ask for it."""

    which: slice | Tensor | None
    """Which rows, in their order; None stands for the images (:attr:`Output.images`)."""
    views: int = 1
    """How many rows of the set, one after the other, show one image."""
    strong: bool = False
    """Whether the last of these is a strongly augmented view."""


class Boxes(NamedTuple):
    """The true boxes of a batch of images, n of them."""

    xyxy: Tensor
    """[n, 4]: left, top, right, bottom, in shares of the image's width and height, 0 to 1."""
    labels: Tensor
    """[n], int64, 1 to K: 0 is the background."""
    image: Tensor
    """[n], int64: position of each box's image in the batch."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The N rows of a step: what a task has made of a batch. :meth:`select` gives those of a named set.

    Args:
        labels: [N], int64; or :class:`Absent`, where the images have none, or several each.
        index: [N], int64: position of each row's image in the data set, stable over epochs; -1 where a row has no
            identity that lasts, and so by default.
        image: [N], int64: position of each row's image in the batch; by default every row has an image of its own.
        targets: [N, K], soft or several labels, where there are any (:class:`DataSplit`).
        sample_weights: [N], what each row counts in the supervised term, where not all count alike.
        views, strong: as in :class:`Rows`.
        sets: named sets of rows. ``"upright"`` and ``"all"`` are all rows where they are not among them, and
            ``"images"`` are ``images``, or the upright rows where a row is an image.
        judged: the set whose difficulty is judged.
        weight_of: [N], int64: position in that set of the row whose weight each row takes; by default its own. An image
            takes the mean weight of its rows.
        group: [N], int64: which rows are compared by their difficulty, where not all are.
        images: where a row is not an image: the B images.
        boxes: of the images. pixels: [B, H, W], int64, the class of each pixel of the images, -1 where it counts for
            nothing. locations: [B, A], int64, likewise of all the locations and anchors of a dense detector. All three
            of ``images`` alone.
        uneven: whether processes that train together may have another number of rows each.
    """

    labels: Tensor
    index: Tensor = None  # type: ignore[assignment]
    image: Tensor = None  # type: ignore[assignment]
    targets: Tensor | None = None
    views: int = 1
    strong: bool = False
    sets: Mapping[str, Rows] = field(default_factory=dict)
    judged: str = "upright"
    weight_of: Tensor = None  # type: ignore[assignment]
    group: Tensor | None = None
    images: Instances | None = None
    boxes: Boxes | None = None
    pixels: Tensor | None = None
    locations: Tensor | None = None
    uneven: bool = False
    sample_weights: Tensor | None = None

    def __post_init__(self) -> None:
        known = self.index if isinstance(self.labels, Absent) else self.labels
        position = torch.arange(len(known), device=known.device)
        for name, value in (("index", torch.full_like(position, -1)), ("image", position), ("weight_of", position)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, name: str) -> Rows:
        """The set of that name.

        Raises:
            UserError: the task has no such set.
        """
        if name in self.sets:
            return self.sets[name]
        if name == "images":
            return self.rows("upright") if self.images is None else Rows(None)
        if name not in ("upright", "all"):
            known = ", ".join(dict.fromkeys(("upright", "all", *self.sets)))
            raise UserError(f"a term asks for the rows {name!r}, and this task has: {known}")
        return Rows(slice(None), self.views, self.strong)

    def select(self, name: str) -> Instances:
        """The rows of a named set, which has no further sets."""
        which, views, strong = self.rows(name)
        if which is None:
            assert self.images is not None
            return self.images
        return Instances(
            labels=self.labels if isinstance(self.labels, Absent) else self.labels[which],
            index=self.index[which],
            image=self.image[which],
            targets=None if self.targets is None else self.targets[which],
            views=views,
            strong=strong,
            weight_of=self.weight_of[which],
            group=None if self.group is None else self.group[which],
            uneven=self.uneven,
            sample_weights=None if self.sample_weights is None else self.sample_weights[which],
        )


class Progress(NamedTuple):
    """Where in the run a step is; the fields are those of :class:`Context`."""

    epoch: int = 1
    epochs: int = 240
    progress: float = 0.0
    stage: Literal["initial", "main"] = "main"


@dataclass(frozen=True, eq=False)
class Context:
    """What a loss, metric or scheduler may know besides the two outputs."""

    instances: Instances
    """Of the rows shown."""
    centers: Centers
    epoch: int = 1
    """Counted from 1."""
    epochs: int = 240
    """How many epochs the run will have."""
    progress: float = 0.0
    """Share of the training steps done, 0 to 1."""
    stage: Literal["initial", "main"] = "main"
    """``"initial"`` in the epochs before the schedule that some methods ask for (:class:`Term`); ``epoch``, ``epochs``
    and ``progress`` count within the stage."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        return self.instances.labels

    @property
    def targets(self) -> Tensor | None:
        """[N, K], soft or several labels of each row; None where it has one label."""
        return self.instances.targets

    @property
    def sample_weights(self) -> Tensor | None:
        """[N], what each row counts in the supervised term; None where all count alike."""
        return self.instances.sample_weights

    @property
    def index(self) -> Tensor:
        """[N], position of each row's image in the data set; -1 where a row has no identity that lasts."""
        return self.instances.index

    @property
    def views(self) -> int:
        """How many rows, one after the other, show one image."""
        return self.instances.views

    @property
    def strong(self) -> bool:
        """Whether the last view of each image is a strongly augmented one."""
        return self.instances.strong

    @property
    def group(self) -> Tensor:
        """[N], int64: rows of one group are compared by their difficulty; all rows where the task has no groups."""
        return torch.zeros_like(self.index) if self.instances.group is None else self.instances.group

    @property
    def boxes(self) -> Boxes:
        """The true boxes, of the images of a task that has some."""
        if self.instances.boxes is None:
            raise NotApplicable("this needs boxes, which the rows 'images' of the task detection have")
        return self.instances.boxes

    @property
    def pixels(self) -> Tensor:
        """[B, H, W], int64, the class of each pixel, -1 where it counts for nothing; of a task that has them."""
        if self.instances.pixels is None:
            raise NotApplicable("this needs the class of each pixel, which the rows 'images' of segmentation have")
        return self.instances.pixels

    @property
    def locations(self) -> Tensor:
        """[B, A], int64, the class of each location (and anchor) of a dense detector, -1 where it counts for nothing.

        0 is the background.
        """
        if self.instances.locations is None:
            raise NotApplicable("this needs the rows 'images' of detection, and a dense detector (FCOS, RetinaNet)")
        return self.instances.locations

    def select(self, name: str) -> Context:
        """The same context for the rows of a named set."""
        return replace(self, instances=self.instances.select(name))

    def upright(self) -> Context:
        """The same context for the upright rows only."""
        return self.select("upright")


class Shapes(NamedTuple):
    """What a loss needs to know of a network to build its projections."""

    num_classes: int
    embedding: int
    """D; 0 where the network has none (:class:`Absent`)."""
    maps: tuple[tuple[int, int, int], ...] = ()
    """(C, H, W) of each map at the training resolution; or :class:`Absent`."""
    preacts: tuple[tuple[int, int, int], ...] = ()
    images: Shapes | tuple[()] = ()
    """Of :attr:`Output.images`, with an embedding of width 0."""
    sides: int = 0
    """Bins of :attr:`Output.sides`; 0 where the network gives none."""
    head: tuple[int, ...] = ()
    """``channels`` of :attr:`Output.head`; none where there is no such head."""
    layers: Mapping[str, tuple[int, ...]] | tuple[()] = ()
    """(C, H, W) or (D,) of each of :attr:`Output.layers`; or :class:`Absent`."""

    @classmethod
    def of(cls, output: Output) -> Shapes:
        """Read the shapes off one forward pass."""

        def chw(maps: tuple[Tensor, ...]) -> tuple[tuple[int, int, int], ...]:
            if isinstance(maps, Absent):
                return maps
            return tuple((int(m.shape[1]), int(m.shape[2]), int(m.shape[3])) for m in maps)

        whole = output.images
        classes = 0 if isinstance(output.logits, Absent) else output.logits.shape[1]
        sides = output.sides.shape[2] if isinstance(output.sides, Tensor) else 0
        images: Shapes | tuple[()] = ()
        if whole:
            images = cls(
                classes, 0, chw(whole.maps), chw(whole.preacts), head=whole.head.channels if whole.head else ()
            )
        width = 0 if isinstance(output.embedding, Absent) else output.embedding.shape[1]
        layers: Any = output.layers
        if isinstance(layers, Mapping):
            layers = {path: tuple(layer.shape[1:]) for path, layer in layers.items()}
        return cls(classes, width, chw(output.maps), chw(output.preacts), images, sides, layers=layers)


class Setup(NamedTuple):
    """What losses and center rules are built from."""

    student: Shapes
    teacher: Shapes
    num_samples: int = 0
    """Size of the training set: ``Batch.index`` is below it. 0 where unknown."""
    teacher_classifier: nn.Linear | None = None
    """The teacher's last layer, for losses that reuse it (:meth:`frozen_classifier`); or :class:`Absent`."""
    stable_index: bool = True
    """Whether ``Context.index`` says which sample a row is, the same in every epoch."""
    rows: tuple[str, ...] = ("upright", "all", "strong", "images")
    """The sets of rows that a term may ask for."""
    knows: tuple[str, ...] = ()
    """What is known of the rows beside labels: ``"boxes"``, ``"pixels"`` (:class:`Context`)."""
    sets: Mapping[str, Setup] | tuple[()] = ()
    """The setup of the sets of rows that another one holds for: that of ``"images"`` has their maps, for instance."""
    members: tuple[Setup, ...] = ()
    """Of several teachers, the setup of each one alone, for the terms that name it."""

    def of_teacher(self, position: int | None) -> Setup:
        """The setup for a term of the teacher at this position, counted from 1; for None of all of them."""
        return self if position is None else self.members[position - 1]

    def of(self, rows: str) -> Setup:
        """The setup for a loss that is shown this set of rows."""
        return dict(self.sets).get(rows, self)

    def require(self, fact: str, loss: str) -> None:
        """Refuse a loss that needs ``"boxes"`` or ``"pixels"``.

        Raises:
            NotApplicable: the rows that it is shown have none.
        """
        if fact not in self.knows:
            raise NotApplicable(f"{loss} needs {fact}, which these rows do not have; use a task whose images have some")

    def frozen_classifier(self) -> nn.Linear:
        """A copy of the teacher's classifier with buffers for weights: it is saved with the loss and never trained.

        Raises:
            NotApplicable: there is no teacher's classifier.
        """
        if self.teacher_classifier is None:
            raise NotApplicable("this loss reuses the teacher's classifier, and none is known")
        layer = self.teacher_classifier
        if "weight" in layer._parameters:
            frozen = copy.deepcopy(layer)
        else:
            # Its weight is computed, as by weight norm: as it is now, in a plain layer. Made without a random number.
            frozen = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        for name, _ in list(frozen.named_parameters()):
            delattr(frozen, name)
            frozen.register_buffer(name, getattr(layer, name).detach().clone())
        return frozen


@runtime_checkable
class Loss(Protocol):
    """An nn.Module built as ``factory(setup, **options)``, or made of a function (:func:`registry.function_loss`).

    Its projections are submodules (so that the optimizer gets them), its memory is buffers (so that a resumed run
    has it). It never reduces over samples itself, unless the loss is about the whole batch.

    It may say about itself, as an attribute of the class or, of a function, as an argument of ``LOSSES.register``:

    - ``needs_teacher = False``: it never looks at the teacher;
    - ``reads_maps = False``: it looks at no feature map (``maps``, ``preacts``, ``layers``), here or in ``predict``.
      Where nothing of an objective does, the networks leave their maps out, which is faster;
    - ``per_sample = False``: it returns a scalar, so that there is nothing to preview;
    - ``needs_views = V``: it compares views of an image and has nothing to do with fewer than V;
    - ``needs_rows = R``: it compares rows of a batch and has nothing to do with fewer than R;
    - ``order_matters = True``: what it makes of an image depends on the order of the batch;
    - ``softmax = True``: it takes the logits for one distribution over the classes, so that images that show several
      have no use for it;
    - ``reads_rows = True``: beside feature maps it looks at logits or embedding, so that it needs rows that have both;
    - ``compares_rows = True``: it looks at all pairs of rows: where there are thousands, it is shown some of them;
    - ``needs_index = True``: it remembers rows by their ``index``, which must be the same in every epoch;
    - ``reads_layers = True``: its options ``student`` and ``teacher`` are paths of modules of these networks, as in
      ``named_modules()``: it is shown what they returned (:attr:`Output.layers`);
    - ``needs = ("boxes",)``: what it asks for that not every task or network has: ``"boxes"`` and ``"pixels"`` of the
      context (:meth:`Setup.require`), a network's ``"head"`` or ``"sides"`` (:class:`Shapes`).

    A class may also have

    - a method ``predict(student: Output) -> logits [N, K]``: how the trained student answers, where that is not with
      its own classifier;
    - a method ``start(student: Network, teacher: Network) -> None``: called once before the first step of a new run,
      without gradient; it may set weights of the student, whose shapes it leaves as they are;
    - a static method ``claims(**options) -> object``, where what it says of itself depends on its options: what has
      these facts as its attributes.
    """

    def __call__(self, student: Output, teacher: Output, context: Context) -> Tensor:
        """[N], unreduced, or a scalar."""
        ...


class Network(Protocol):
    """What this project asks of a backbone: an nn.Module that also has these."""

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer."""
        ...

    def __call__(self, x: Tensor) -> Output:
        """From images [N, C, H, W] to an Output."""
        ...


class CenterRule(nn.Module):
    """Base class of center rules: ``factory(setup, **options)``; state lives in parameters and buffers.

    A rule with an ``update`` that looks at no feature map says so with ``reads_maps = False``, as a loss does.
    """

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        """The centers now; valid from the first step on."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        """Called after each optimizer step with the step's outputs ([N] rows) and labels [N]."""


@dataclass(frozen=True)
class Term:
    """One term of a method's objective: which loss, how much, on which rows, previewed or not.

    Args:
        loss: a name of ``LOSSES`` (``"kd"``, ``"kd(temperature=2)"``) or a factory ``(setup) -> Loss``.
        weight: the coefficient of the term in the sum.
        rows: the set of rows that the loss is shown, one of the task's. Of classification: ``"upright"``, view 0 of
            each image; ``"all"``, every rotation (and asks for four); ``"strong"``, view 0 and a strongly augmented
            view (and asks for one), two rows an image; ``"images"``, here as ``"upright"``. In tasks without views the
            first two are all rows; where a row is no image, ``"images"`` are the whole images.
        previewed: whether the per-sample values are multiplied by the difficulty scheduler's weights.
        options: options of the loss.
        optional: if the loss cannot work for this pair of networks, drop the term and say so once,
            instead of refusing the run.
        name: what the log calls the term; the loss's name by default.
        warmup: epochs, of the published 240, over which the weight rises linearly to its full value: at epoch e it
            is weight * min(1, e / warmup).
        initial: epochs, of the published 240, that come before the schedule: in them the terms with ``initial`` act
            alone, with ``Context.stage`` "initial".
        main: whether the term acts in the schedule itself.
        initial_weight: the coefficient in the initial epochs; ``weight`` by default.
        teacher: which of several teachers the loss looks at: its name, or its position, counted from 1. By default all
            of them, whose answer is the mean of their probabilities. A loss that looks at no teacher ignores it.
        head: path of the student's module whose output [N, K] the loss is shown as its logits.
        standardize: whether the loss is shown z-scores of both networks' logits (:func:`pckd.losses.lskd.standardize`):
            of a loss that compares distributions over the classes (``softmax`` of :class:`Loss`).
    """

    loss: str | Callable[..., nn.Module]
    weight: float = 1.0
    rows: str = "upright"
    previewed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    name: str = ""
    warmup: int = 0
    initial: int = 0
    main: bool = True
    initial_weight: float | None = None
    teacher: str | int | None = None
    head: str = ""
    standardize: bool = False
    views: InitVar[str | None] = None
    """Another name of ``rows``."""

    def __post_init__(self, views: str | None) -> None:
        if views is not None:
            object.__setattr__(self, "rows", views)

    @property
    def label(self) -> str:
        label = self.name
        if not label and isinstance(self.loss, str):
            label = self.loss.partition("(")[0]
        label = label or str(getattr(self.loss, "__name__", type(self.loss).__name__))
        return label if self.teacher is None else f"{label}@{self.teacher}"

    @property
    def particulars(self) -> dict[str, Any]:
        """How the term acts where that is not the usual way: rows, epochs, teacher, head, standardize."""
        usual = {f.name: f.default for f in fields(self)}
        names = ("rows", "warmup", "initial", "initial_weight", "main", "teacher", "head", "standardize")
        shown = {name: getattr(self, name) for name in names}
        return {name: value for name, value in shown.items() if value != usual[name]}


@dataclass(frozen=True, eq=False)
class DataSplit:
    """One split of a data set: what a ``DATASETS`` factory returns.

    Args:
        images: uint8 tensor [M, C, H, W] for data that fits in memory; or, for data that is streamed, a map-style
            ``torch.utils.data.Dataset`` whose item i is a uint8 tensor [C, H, W] of one fixed size. Or uint16, of which
            65535 is 1, or float, which is taken as it is. Where an item is augmented as it is read, by the global
            generators, these are seeded for each. A Dataset with an attribute ``draws``, a number, and a method
            ``drawn(i, numbers)``, which gives item i as so many random numbers of [0, 1) say, needs none: it may have
            a finite pool of augmentations and a teacher cache.
        labels: int64 [M], each in [0, K); all -1, where the images have no labels; None where ``targets`` say which
            classes an image shows.
        classes: K class names. ``""`` is one that nobody knows; without labels there may be none, ``()``: the teacher's
            are taken.
        mean: per-channel mean of images scaled to [0, 1].
        std: per-channel standard deviation, likewise.
        difficulty: float [M], the true difficulty where it is known (``shapes``), else None.
        padding: pixels of zero padding for the random crop in training; 0 for data that is already augmented
            in its workers.
        name: shown in logs.
        on_bad_image: what is done about a streamed image that raises :class:`registry.BadImages`: ``"stop"`` raises it;
            ``"skip"`` shows the next one of the split in its place in training, and does not count it in evaluation.
        targets: float [M, K]. Beside labels: the probability of each class (soft labels), which the cross entropy takes
            in the labels' place. Without labels: 1 for each class that the image shows and 0 for the others; such data
            is for the task ``multilabel``, and its labels are :class:`Absent`.
        neighbors: of a labeled test split: labeled images of the same kind, among whose embeddings a network without a
            trained classifier looks for the nearest of each test image (k-NN accuracy).
    """

    images: Any
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    difficulty: Tensor | None = None
    padding: int = 4
    name: str = ""
    on_bad_image: Literal["stop", "skip"] = "stop"
    targets: Tensor | None = None
    neighbors: DataSplit | None = None

    def __post_init__(self) -> None:
        if self.labels is None and self.targets is not None:
            object.__setattr__(self, "labels", Absent(SEVERAL_LABELS))

    def __len__(self) -> int:
        return len(self.images if isinstance(self.labels, Absent) else self.labels)

    @property
    def labeled(self) -> bool:
        """Whether the images have labels."""
        return not (isinstance(self.labels, Tensor) and len(self.labels) and bool((self.labels == -1).all()))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

"""What the checks show to plug-ins: outputs of two small networks that never were.

Shapes: B images, V views of each, N = B * V rows, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial, partialmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pckd.objective import Objective, says
from pckd.ops import exact, full
from pckd.tasks.classification import image_views
from registry import (
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LOSSES,
    METHODS,
    Absent,
    Boxes,
    CenterRule,
    Centers,
    Context,
    Instances,
    Output,
    Rows,
    Setup,
    Shapes,
    Term,
    build,
    parse,
)

IMAGES, CLASSES, SAMPLES, WIDTH = 6, 7, 50, 12
SIZES = (16, 16, 8, 4, 4)
"""Of the maps: as many as any built-in network has."""
PAIRS = ((1, 12), (1, 20), (4, 12), (4, 20))
"""Views, and the teacher's width."""
ORDER = (2, 0, 1, 5, 3, 4)
"""Another order of the images."""
BOXES = Boxes(
    torch.tensor([[0.1, 0.1, 0.4, 0.6], [0.3, 0.2, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0], [0.6, 0.7, 0.65, 0.72]]),
    torch.tensor([1, 2, 3, 1]),
    torch.tensor([0, 0, 2, 3]),
)
"""One within another, one of the whole image, one smaller than a cell; two images have none."""
OF_IMAGES = {"boxes", "pixels", "head"}
"""What a loss may need that only whole images have."""
BINS, LAYERS = 5, 3
"""Of the distributions of sides; of a head."""
LAYER = "layer"
"""The path of the one module that the networks name: its output is a map."""
PATHS = {"student": LAYER, "teacher": LAYER}
"""Options of a loss that reads it."""


class LevelHead:
    """A head of 1x1 convolutions on the last two maps of a case (:class:`registry.Head`); its weights are constants."""

    def __init__(self, width: int) -> None:
        normal = partial(torch.randn, generator=torch.Generator().manual_seed(width))
        self.branches = [[normal(width, width) / width**0.5 for _ in range(LAYERS)] for _ in range(2)]
        self.last = normal(CLASSES, width), normal(4, width)
        self.channels = (width,) * (LAYERS + 1)

    def features(self, maps: Sequence[Tensor], layer: int) -> tuple[list[Tensor], list[Tensor]]:
        return self._through([list(maps[-2:])] * 2, 0, layer)

    def predict(self, features: tuple[list[Tensor], list[Tensor]], layer: int) -> tuple[Tensor, Tensor]:
        found = self._through(features, layer, LAYERS)
        logits, moves = (
            torch.cat([mixed(m.relu(), last).flatten(2).mT for m in of_branch], 1)
            for of_branch, last in zip(found, self.last, strict=True)
        )
        return logits, torch.cat([-moves[..., :2].exp(), moves[..., 2:].exp()], -1)

    def _through(self, inputs: Sequence[list[Tensor]], first: int, end: int) -> tuple[list[Tensor], list[Tensor]]:
        results = []
        for maps, layers in zip(inputs, self.branches, strict=True):
            for position in range(first, end):
                maps = [mixed(m.relu() if position else m, layers[position]) for m in maps]
            results.append(maps)
        return results[0], results[1]


def mixed(feature_map: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution in at least float32."""
    feature_map = full(feature_map)
    with exact(feature_map):
        return nn.functional.conv2d(feature_map, weight.to(feature_map.dtype)[:, :, None, None])


class Case(NamedTuple):
    """A pair of networks' outputs, all of it leaves of the graph."""

    student: Output
    teacher: Output
    context: Context
    setup: Setup

    def __str__(self) -> str:
        strong = ", the last one strong" if self.context.strong else ""
        return (
            f"views={self.context.views}{strong}, student width {self.setup.student.embedding}, "
            f"teacher width {self.setup.teacher.embedding}"
        )

    @property
    def shown(self) -> tuple[Output, Output, Context]:
        """What a loss is called with: the teacher's output is a constant."""
        return self.student, self.teacher.detach(), self.context

    @property
    def upright(self) -> tuple[Output, Output, Context]:
        """What a difficulty metric is called with."""
        views = self.context.views
        return self.student.upright(views), self.teacher.upright(views), self.context.upright()

    @property
    def constants(self) -> list[Tensor | None]:
        """What no gradient may reach: the teacher's."""
        centers, classifier = self.context.centers, self.setup.teacher_classifier
        assert classifier is not None
        return [*tensors_of(self.teacher), centers.teacher, centers.teacher_bias, *classifier.parameters()]

    def images(self, chosen: Iterable[int]) -> Case:
        """The same case for these images, in this order."""
        views = self.context.views
        rows = torch.tensor([image * views + view for image in chosen for view in range(views)])
        first = rows[::views]
        labels, index = self.context.labels[first], self.context.index[first]
        instances = image_views(labels, index, views, strong=self.context.strong)
        if (boxes := self.context.instances.boxes) is not None:
            box, image = (boxes.image == first[:, None]).nonzero(as_tuple=True)[::-1]
            pixels = self.context.pixels[first]
            boxes = Boxes(boxes.xyxy[box], boxes.labels[box], image)
            instances = Instances(labels, index, boxes=boxes, pixels=pixels, locations=self.context.locations[first])
        context = replace(self.context, instances=instances)
        student, teacher = (output.apply(lambda x: x[rows]) for output in (self.student, self.teacher))
        return self._replace(student=student, teacher=teacher, context=context)

    @property
    def of_images(self) -> bool:
        """Whether the rows are whole images, with boxes and pixels."""
        return self.context.instances.boxes is not None

    def another(self, seed: int) -> Case:
        """A case of this kind with other outputs."""
        return make_case(self.context.views, self.setup.teacher.embedding, seed=seed, of_images=self.of_images)

    def whole(self) -> Case:
        """The images of the case, as a task shows them whose rows are none: feature maps, boxes and pixels alone."""
        student, teacher = (output.rows(None) for output in (self.student, self.teacher))
        whole = Case(student, teacher, self.context.select("images"), self.setup.of("images"))
        return whole.to(torch.float32)

    def without_maps(self) -> Case:
        """The same case; whoever looks at a feature map is refused."""
        absent = Absent("it looks at feature maps")
        left_out: dict[str, Any] = dict.fromkeys(("maps", "preacts", "layers"), absent)
        student, teacher = (output._replace(**left_out) for output in (self.student, self.teacher))
        return self._replace(student=student, teacher=teacher)

    def to(self, dtype: torch.dtype) -> Case:
        """The same case with the networks' outputs as leaves in another precision; what is the centers' stays."""
        student, teacher = (
            output.apply(lambda x: x.detach().to(dtype).requires_grad_(x.requires_grad))
            for output in (self.student, self.teacher)
        )
        return self._replace(student=student, teacher=teacher)


class Bare(nn.Module):
    """A network of which only the classifier is there."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, CLASSES, bias=bias)


def make_case(
    views: int,
    teacher_width: int,
    *,
    seed: int = 0,
    grad: bool = True,
    strong: bool = False,
    of_images: bool = False,
) -> Case:
    """Random outputs for 6 images; two pairs of these share a class, two images are alone in theirs.

    The rows are views, or the images themselves (:meth:`Case.whole`). The teacher's classifier asks for gradient, so
    that a loss that trains it is found out.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = IMAGES * views
    student = make_output(generator, rows, WIDTH, grad)
    teacher = make_output(generator, rows, teacher_width, grad)
    normal = partial(torch.randn, generator=generator)
    labels, index = torch.tensor([0, 3, 0, 6, 3, 1]), torch.tensor([4, 49, 0, 7, 21, 8])
    centers = Centers(
        normal(CLASSES, WIDTH).requires_grad_(grad),
        normal(CLASSES, teacher_width),
        normal(CLASSES).requires_grad_(grad),
        normal(CLASSES),
    )
    drawn = partial(torch.randint, -1, CLASSES, generator=torch.Generator().manual_seed(seed))
    pixels, locations = drawn((IMAGES, 16, 16)), drawn((IMAGES, sum(size**2 for size in SIZES[-2:])))
    images = Instances(labels, index, boxes=BOXES, pixels=pixels, locations=locations)
    instances = replace(image_views(labels, index, views, strong=strong), images=images)
    foreground = Rows(labels.repeat_interleave(views).nonzero()[:, 0])
    instances = replace(instances, sets={**instances.sets, "foreground": foreground})
    context = Context(instances, centers, epoch=3, epochs=10, progress=0.25)
    classifier = nn.utils.skip_init(nn.Linear, teacher_width, CLASSES)
    with torch.no_grad():
        classifier.weight.copy_(normal(CLASSES, teacher_width))
        classifier.bias.copy_(normal(CLASSES))
    student, teacher = (output._replace(images=images_of(output, views)) for output in (student, teacher))
    student, teacher = (
        output._replace(sides=normal(rows, 4, BINS).requires_grad_(grad)) for output in (student, teacher)
    )
    setup = Setup(Shapes.of(student), Shapes.of(teacher), SAMPLES, classifier)
    setup = setup._replace(rows=(*setup.rows, "foreground"))
    shapes = (s._replace(sides=0, head=s.images.head if s.images else ()) for s in (setup.student, setup.teacher))
    whole = setup._replace(knows=("boxes", "pixels"), student=next(shapes), teacher=next(shapes))
    setup = setup._replace(sets={"images": whole})
    case = Case(student, teacher, context, setup)
    return case.whole() if of_images else case


def images_of(output: Output, views: int) -> Output:
    """What is known of whole images: the maps of their first views."""
    absent: Any = Absent("the images themselves have feature maps and nothing else")
    head = LevelHead(output.embedding.shape[1])
    return output.upright(views)._replace(logits=absent, embedding=absent, losses=(), head=head)


def losses_of_views() -> list[str]:
    """The registered losses that views of images are enough for: no boxes, no pixels, no named modules, no losses of
    the network's."""
    names = [name for name in LOSSES.names() if name != "network_losses"]
    return [
        name for name in names if not any(getattr(LOSSES.get(name), fact, ()) for fact in ("needs", "reads_layers"))
    ]


def on_layer(loss: Any) -> Any:
    """A loss by its name or its class; one that reads layers, of the one that the cases have, whatever it is called."""
    if not says(Term(loss), "reads_layers", False):
        return loss
    if isinstance(loss, str):
        name, given = parse(loss)
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in {**given, **PATHS}.items())})"
    return type(loss.__name__, (loss,), {"__init__": partialmethod(loss.__init__, **PATHS)})


def methods_of_views() -> list[str]:
    """The registered methods all of whose losses are such."""
    fit = losses_of_views()
    terms = {name: build(METHODS, name) for name in METHODS.names()}
    return [name for name in terms if all(parse(str(term.loss))[0] in fit for term in terms[name])]


def enough_views(views: int, losses: Iterable[nn.Module]) -> int:
    """``views``, or as many as these losses ask for: of an image, or of 6 images to make up their rows."""
    asked = [(getattr(loss, "needs_views", 1), getattr(loss, "needs_rows", 1)) for loss in losses]
    return max([views, *(max(needed, -(-rows // IMAGES)) for needed, rows in asked)])


def make_output(generator: torch.Generator, rows: int, width: int, grad: bool) -> Output:
    """Random outputs shaped as those of a small residual network with a last stage of ``width`` channels."""
    normal = partial(torch.randn, generator=generator)
    channels = (width // 3, width // 3, width // 2, width, width)
    preacts = tuple(normal(rows, c, size, size) for c, size in zip(channels, SIZES, strict=True))
    maps = tuple(preact.relu() for preact in preacts)
    output = Output(normal(rows, CLASSES), normal(rows, width).relu(), maps, preacts, {"own": torch.ones(())})
    output = output._replace(layers={LAYER: preacts[-2].clone()})
    for tensor in tensors_of(output):
        tensor.requires_grad_(grad)
    return output


def tensors_of(output: Output) -> list[Tensor]:
    """Every tensor of an output."""
    found = [output.logits, output.embedding, *output.maps, *output.preacts, *dict(output.losses).values()]
    found += [output.sides, *dict(output.layers).values()]  # type: ignore[list-item]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def reached(tensors: Iterable[Tensor | None]) -> bool:
    """Whether any gradient other than zero has come here."""
    return any(t is not None and t.grad is not None and bool(t.grad.any()) for t in tensors)


def same(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether the tensors of two collections are equal, pair by pair."""
    return all(one.detach().equal(other.detach()) for one, other in zip(ones, others, strict=True))


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree on the scale of the expected one."""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return value.shape == expected.shape and torch.allclose(value, expected, rtol=tolerance, atol=tolerance * scale)


def saved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


def objective_of(terms: Sequence[Term], setup: Setup) -> Objective:
    """An objective of these terms, with what is published as the rest; the centers are those of the context."""
    return Objective(
        terms,
        setup,
        difficulty=build(DIFFICULTY_METRICS, "cross_entropy"),
        scheduler=build(DIFFICULTY_SCHEDULERS, "preview"),
        centers=CenterRule(),
    )


def hidden_parts(module: nn.Module) -> str:
    """What to say of tensors and layers in a module that neither an optimizer nor a file would see; "" of none."""
    own = set(vars(nn.Module()))

    def holds(value: object) -> bool:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        return any(isinstance(part, (nn.Module, Tensor)) for part in parts)

    hidden = [
        f"{path}.{key}".lstrip(".")
        for path, part in module.named_modules()
        # PyTorch's own layers keep lists of their parameters (nn.LSTM does), torchvision's of their anchors.
        if not type(part).__module__.startswith(("torch.", "torchvision."))
        for key, value in vars(part).items()
        if key not in own and holds(value)
    ]
    return f"{', '.join(hidden)} is neither submodule, parameter nor buffer" if hidden else ""

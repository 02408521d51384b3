"""Pairs of layers: any loss of maps or of embeddings between two named modules of student and teacher."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from registry import (
    LOSSES,
    METHODS,
    Absent,
    Centers,
    Context,
    Instances,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
    parse,
)

FACTS = ("per_sample", "needs_views", "needs_rows", "order_matters", "compares_rows", "needs_index")
"""Claims of the loss inside that hold for the pair."""
FEW = 8
"""Images that a loss is tried on."""
NOT_SHOWN: Any = Absent("it looks at logits, embeddings or centers, and a pair of layers has maps or vectors alone")
ONE_MAP: Any = Absent("it looks at several maps of a network, and a pair of layers has one of each")


@LOSSES.register("layers")
class Layers(nn.Module):
    """Any loss of maps or of embeddings between two modules, named by their paths; [N] or a scalar, as that loss.

    The loss inside is built for networks that have this one map alone (where it leaves out the stem's, a second one),
    or this embedding: its own projections join the shapes. A loss of embeddings is shown a map's mean over space.

    Args:
        student, teacher: paths of modules, as in ``named_modules()``; they return a map, a vector, or tokens of patches
            (:func:`model_zoo.adapting.as_layer`).
        loss: a name of ``LOSSES``, with its options.
    """

    reads_layers = True

    @staticmethod
    def claims(*, loss: str = "fitnet", **_: Any) -> Any:
        inner = LOSSES.get(parse(loss)[0])
        facts = {fact: getattr(inner, fact) for fact in FACTS if hasattr(inner, fact)}
        return type("Claims", (), {"reads_layers": True, **facts})

    def __init__(self, setup: Setup, *, student: str = "", teacher: str = "", loss: str = "fitnet") -> None:
        super().__init__()
        if not (student and teacher):
            raise NotApplicable("layers: name a module of each network: layers(student='layer3', teacher='layer4')")
        self.paths, self.inner = (student, teacher), parse(loss)[0]
        self.of_maps = bool(getattr(LOSSES.get(self.inner), "reads_maps", True))
        self.stems: tuple[Any, ...] = ()
        shapes = _layer(setup.student.layers, student), _layer(setup.teacher.layers, teacher)
        for shape, path in zip(shapes, self.paths, strict=True):
            if self.of_maps and len(shape) == 1:
                raise NotApplicable(
                    f"layers: {self.inner} compares maps, and {path!r} returns vectors of width {shape[0]}; name a "
                    "module that returns a map, or a loss of embeddings such as feature_alignment or rkd"
                )
        self._find_stems(setup, shapes, loss)
        self.loss = self._made(setup, shapes, loss)
        for fact in FACTS:
            if hasattr(self.loss, fact):
                setattr(self, fact, getattr(self.loss, fact))

    def _find_stems(self, setup: Setup, shapes: tuple[Any, Any], loss: str) -> None:
        """Show noise to the loss, of a small memory: what it looks at beside the layers is refused before training.

        Many losses leave out the first map, that of the stem; they are shown two.
        """
        few = setup._replace(num_samples=min(setup.num_samples, FEW))
        refused: Exception | None = None
        for self.stems in ((), (ONE_MAP,)):
            try:
                with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Initializing zero-element tensors")
                    return self._try(self._made(few, shapes, loss), shapes)
            except (ValueError, RuntimeError) as error:
                if isinstance(error, UserError) and not isinstance(error, NotApplicable):
                    raise
                refused = refused or error
        raise NotApplicable(f"layers: {self.inner} serves no pair of layers: {refused}") from refused

    def _made(self, setup: Setup, shapes: tuple[Any, Any], loss: str) -> nn.Module:
        maps = [(*self.stems, shape) if self.of_maps else NOT_SHOWN for shape in shapes]
        widths = [0 if self.of_maps else shape[0] for shape in shapes]
        own, theirs = (Shapes(setup.student.num_classes, w, m, m) for w, m in zip(widths, maps, strict=True))
        inside = setup._replace(student=own, teacher=theirs, teacher_classifier=NOT_SHOWN, sets=(), knows=())
        made: nn.Module = build(LOSSES, loss, inside)
        return made

    def _try(self, tried: nn.Module, shapes: tuple[Any, Any]) -> None:
        if hasattr(tried, "start") or hasattr(tried, "predict"):
            raise NotApplicable("it is about the whole student")
        views = getattr(tried, "needs_views", 1)
        position = torch.arange(views * max(FEW, getattr(tried, "needs_rows", 1)))
        context = Context(Instances(position * 0, position, views=views), Centers(NOT_SHOWN, NOT_SHOWN))
        student, teacher = (torch.randn(len(position), *shape, requires_grad=True) for shape in shapes)
        tried(self._shown(student), self._shown(teacher.detach()), context).mean().backward()
        if any(p.requires_grad and p.grad is None for p in tried.parameters()):
            raise NotApplicable("it trains a part of itself in epochs of its own, before the schedule")

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        layers = _layer(student.layers, self.paths[0]), _layer(teacher.layers, self.paths[1])
        value: Tensor = self.loss(*map(self._shown, layers), context)
        return value

    def _shown(self, layer: Tensor) -> Output:
        if not self.of_maps:
            return Output(NOT_SHOWN, layer if layer.dim() == 2 else layer.mean((2, 3)), NOT_SHOWN, NOT_SHOWN)
        return Output(NOT_SHOWN, NOT_SHOWN, (*self.stems, layer), (*self.stems, layer))


def _layer(layers: Any, path: str) -> Any:
    if not isinstance(layers, Absent) and path not in layers:
        raise NotApplicable(f"layers: the output has no layer {path!r}; name it in the term's options")
    return layers[path]


@METHODS.register("layers")
def layers(
    ce: float = 1.0, weight: float = 1.0, student: str = "", teacher: str = "", loss: str = "fitnet"
) -> list[Term]:
    """Any loss between two named modules of the networks, beside the cross entropy; several are added with ``+``.

    Args:
        ce: weight of the cross entropy.
        weight: of the loss: nothing is published for pairs of layers, so that it is 1 whatever the loss.
        student, teacher: paths of modules, as in ``named_modules()``.
        loss: a name of ``LOSSES`` with its options, of maps or of embeddings: ``"at"``, ``"rkd(angle_weight=10)"``.
    """
    options = {"student": student, "teacher": teacher, "loss": loss}
    return [Term("cross_entropy", ce), Term("layers", weight, options=options)]

"""Any classifier of torchvision or timm as a backbone: ``torchvision:resnet18``, ``timm:convnext_atto``.

Both libraries are imported only when one of their networks is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from model_zoo.adapting import adapt, pretrained_record
from model_zoo.detection import detector_of
from model_zoo.preprocessing import Preprocessing, set_preprocessing
from model_zoo.probe import evaluating
from model_zoo.segmentation import segmenter_of
from registry import BACKBONES, Output, UserError
from registry.errors import closest

__all__ = ["TimmBackbone", "TorchvisionBackbone", "timm_backbone", "torchvision_backbone"]


class _NoClassifier(UserError):
    """A model that does not end in a linear classifier: hooks read it, as a network of the user's own."""


class TorchvisionBackbone(nn.Module):
    """A torchvision classifier, traced once so that its forward also returns the embedding and the maps.

    The traced graph sees the root's own steps and the members of its sequences; every other module is called as it
    is, so train and eval mode work as ever. The parameters keep torchvision's names, below ``network.``.

    Maps: the last output at each resolution, from the largest to the smallest; none for transformers whose
    tokens don't form a map. Pre-activations: none.

    Args:
        model: a classifier whose last step is an nn.Linear.
        name: what to call it in messages.
        image_size: pixels of the images on which the resolutions are read off (nothing is computed).

    Raises:
        UserError: the last step is no nn.Linear, or the model cannot be traced.
    """

    def __init__(self, model: nn.Module, name: str, image_size: int = 224) -> None:
        super().__init__()
        try:
            graph = _RootTracer().trace(model)
        except Exception as error:
            raise UserError(f"{name}: the model cannot be traced: {' '.join(str(error).split())[:200]}") from error
        end = next(node for node in graph.nodes if node.op == "output")
        logits = end.args[0]
        if not (isinstance(logits, fx.Node) and logits.op == "call_module" and _is_linear(model, str(logits.target))):
            raise _NoClassifier(f"{name} does not end in a linear classifier; use model_zoo.adapt")
        maps = _last_of_each_resolution(model, graph, image_size)
        end.args = ((logits, logits.args[0], tuple(maps)),)
        self.network = fx.GraphModule(model, graph)
        self._path = str(logits.target)

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.network.get_submodule(self._path)
        assert isinstance(classifier, nn.Linear)
        return classifier

    def forward(self, x: Tensor) -> Output:
        logits, embedding, maps = self.network(x)
        return Output(logits, embedding, tuple(maps))


class _RootTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not (type(m) is nn.Sequential and "." not in module_qualified_name)


def _is_linear(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path), nn.Linear)


def _last_of_each_resolution(model: nn.Module, graph: fx.Graph, image_size: int) -> list[fx.Node]:
    # Fake tensors have shapes and no values, so that this costs no arithmetic.
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes: dict[fx.Node, torch.Size] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_module" and isinstance(result, Tensor):
                shapes[n] = result.shape
            return result

    weight = next(model.parameters())
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    with evaluating(model), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        Record(fx.GraphModule(model, graph)).run(
            torch.empty(2, channels, image_size, image_size, dtype=weight.dtype, device=weight.device)
        )

    last: dict[int, fx.Node] = {}
    for node, shape in shapes.items():
        module = model.get_submodule(str(node.target))
        # Not square: channels last, as inside Swin; 1 x 1 and adaptive pooling: on the way to the embedding.
        is_map = len(shape) == 4 and shape[2] == shape[3] > 1 and not isinstance(module, nn.AdaptiveAvgPool2d)
        if is_map and shape[2] <= min(last, default=image_size):
            last[shape[2]] = node
        elif any(isinstance(m, nn.MultiheadAttention) for m in module.modules()):
            last.clear()  # A ViT: what came before is its patch embedding, not a stage.
    return list(last.values())


class TimmBackbone(nn.Module):
    """A timm classifier. The parameters keep timm's names, below ``network.``.

    Maps: timm's intermediate features, one for each resolution, where the model has several; else none.
    Pre-activations: none.

    Args:
        model: a timm model whose ``get_classifier()`` is an nn.Linear.
        name: what to call it in messages.

    Raises:
        UserError: the classifier is no nn.Linear.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        if not isinstance(model.get_classifier(), nn.Linear):
            raise _NoClassifier(f"{name} does not end in a linear classifier; use model_zoo.adapt")
        self.network = model
        stages = {info["reduction"]: index for index, info in enumerate(getattr(model, "feature_info", None) or [])}
        self._stages = list(stages.values()) if len(stages) > 1 and hasattr(model, "forward_intermediates") else []

    @property
    def classifier(self) -> nn.Linear:
        return self.network.get_classifier()

    def forward(self, x: Tensor) -> Output:
        maps: tuple[Tensor, ...] = ()
        if self._stages:
            features, found = self.network.forward_intermediates(x, indices=self._stages, output_fmt="NCHW")
            maps = tuple(found)
        else:
            features = self.network.forward_features(x)
        embedding = self.network.forward_head(features, pre_logits=True)
        return Output(self.classifier(embedding), embedding, maps)


_DENSE = {"detection": detector_of, "segmentation": segmenter_of}
"""Modules of torchvision's models whose networks answer about parts of images."""


@BACKBONES.register("torchvision")
def torchvision_backbone(
    name: str, num_classes: int | None = None, *, in_channels: int = 3, weights: str | None = None, **options: Any
) -> nn.Module:
    """Any model of torchvision that classifies, detects or segments, as in ``torchvision:resnet18``.

    A classifier with pretrained weights carries the record of their preprocessing.

    Args:
        name: torchvision's name of the model.
        num_classes: K; a new classifier is made where the weights have another number of classes. None: as many as
            they have.
        in_channels: channels of the input; other than 3 only without pretrained weights.
        weights: ``"DEFAULT"`` or another name of torchvision's pretrained weights; None starts from scratch.
        options: further arguments of torchvision's function, for example ``image_size=32`` of its ViTs.

    Raises:
        UserError: an unknown model, weights or option, or no linear classifier that could be made anew.
    """
    _check_member("torchvision", "resnet18", name, num_classes, weights is not None)
    from torchvision import models

    others = {member: kind for kind in _DENSE for member in models.list_models(module=getattr(models, kind))}
    dense = others.get(name)
    _check_known("torchvision", name, [*models.list_models(module=models), *others])
    if name in ("googlenet", "inception_v3"):
        # The auxiliary classifiers would make the output a tuple in training.
        options = {"aux_logits": False, **({} if weights else {"init_weights": True}), **options}
    size = options.get("image_size") or options.get("input_size") or 224
    image_size = size if isinstance(size, int) else size[0]
    label = f"torchvision:{name}"
    if weights is not None:
        offered = ["DEFAULT", *models.get_model_weights(name).__members__]
        if weights not in offered:
            raise UserError(f"{label} has no weights {weights!r}: use one of {', '.join(dict.fromkeys(offered))}")
    if in_channels != 3 and weights is not None:
        raise UserError(f"{label}: the pretrained weights read 3 channels, not {in_channels}: leave them out")
    if in_channels != 3 and dense:
        raise UserError(f"{label} reads 3 channels, not {in_channels}: leave in_channels out")
    try:
        if weights is None:
            options["num_classes"] = (num_classes or 0) + bool(dense)
        if dense:
            if num_classes is None:
                raise UserError(f"{label}: num_classes is missing")
            # The background is a class, too; and the backbone's own weights are fetched only where they are asked for.
            model = models.get_model(name, weights=weights, **{"weights_backbone": None, **options})
            return _DENSE[dense](model, label, num_classes + 1)
        model = models.get_model(name, weights=weights, **options)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{label}: {' '.join(str(error).split())[:300]}") from error
    if in_channels != 3:
        _set_in_channels(label, model, in_channels)
    network: Any = _backbone(TorchvisionBackbone, model, label, image_size)
    network.image_size = image_size
    own = num_classes is None or weights is None or network.classifier.out_features == num_classes
    if num_classes is not None and not own:
        _set_num_classes(network.classifier, num_classes)
    if weights is not None:
        published: Any = getattr(models.get_model_weights(name), weights)
        shown = published.transforms()
        record = Preprocessing(
            tuple(shown.mean),
            tuple(shown.std),
            (shown.crop_size[0], shown.crop_size[-1]),
            tuple(published.meta["categories"]) if own else (),
            shown.interpolation.value,
        )
        set_preprocessing(network, record)
    return network


@BACKBONES.register("timm")
def timm_backbone(
    name: str, num_classes: int | None = None, *, in_channels: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Any classification model of timm, as in ``timm:convnext_atto``; needs ``pip install 'pckd[timm]'``.

    One with pretrained weights carries the record of their preprocessing, which does not know the classes' names.

    Args:
        name: timm's name of the model.
        num_classes: K; timm makes a new classifier where the pretrained weights have another number of classes. None:
            as many as they have.
        in_channels: channels of the input.
        pretrained: whether to fetch timm's weights.
        options: further arguments of ``timm.create_model``.

    Raises:
        UserError: timm is missing, or an unknown model or option.
    """
    _check_member("timm", "convnext_atto", name, num_classes, pretrained)
    if num_classes is not None:
        options["num_classes"] = num_classes
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm:{name} needs timm, which is not installed: pip install 'pckd[timm]'") from error
    _check_known("timm", name.partition(".")[0], timm.list_models())
    label = f"timm:{name}"
    try:
        model = timm.create_model(name, pretrained=pretrained, in_chans=in_channels, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise UserError(f"{label}: {' '.join(str(error).split())[:300]}") from error
    network = _backbone(TimmBackbone, model, label)
    set_preprocessing(network, pretrained_record(model) if pretrained else None)
    return network


def _backbone(kind: Callable[..., nn.Module], model: nn.Module, label: str, *size: int) -> nn.Module:
    try:
        return kind(model, label, *size)
    except _NoClassifier:
        return adapt(model, name=label)


def _check_member(family: str, example: str, name: object, num_classes: int | None, pretrained: bool) -> None:
    # Asked for as plain "torchvision", a family gets the number of classes where the name belongs.
    if not isinstance(name, str):
        raise UserError(f"BACKBONES: {family!r} is a family: name one of its models, as in {family}:{example}")
    if num_classes is None and not pretrained:
        raise UserError(f"{family}:{name} has no classes of its own: it is named without pretrained weights")
    if num_classes is not None and num_classes < 1:
        raise UserError(f"{family}:{name}: num_classes must be at least 1, not {num_classes}")


def _check_known(family: str, name: str, known: list[str]) -> None:
    if name not in known:
        hint = closest(name, known, n=3, cutoff=0.5)
        hint = f"; see {family}'s list of models" if hint == "." else hint
        raise UserError(f"{family} has no model {name!r}{hint}")


def _set_in_channels(label: str, model: nn.Module, in_channels: int) -> None:
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None or convolution.groups != 1:
        raise UserError(f"{label}: no first convolution whose input channels could be changed to {in_channels}")
    shape = (convolution.out_channels, in_channels, *convolution.kernel_size)
    # The sum over the input channels keeps its variance.
    std = float(convolution.weight.detach().std()) * math.sqrt(convolution.in_channels / in_channels)
    convolution.weight = nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))
    convolution.in_channels = in_channels


def _set_num_classes(classifier: nn.Linear, num_classes: int) -> None:
    fresh = nn.Linear(classifier.in_features, num_classes, bias=classifier.bias is not None)
    classifier.weight, classifier.bias = fresh.weight, fresh.bias
    classifier.out_features = num_classes

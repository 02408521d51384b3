"""A network that is given: run once on blank images, borrowed, copied; or one line that says why it cannot be used."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from registry import Absent, Output, Shapes, UserError
from registry.errors import place_of

__all__ = ["answering", "borrowed", "check_network", "copied", "evaluating", "probe"]

Module = TypeVar("Module", bound=nn.Module)


def probe(
    network: nn.Module,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    *,
    name: str = "",
    classifier: bool = True,
) -> Shapes:
    """The shapes of everything that ``network`` returns for images of one size.

    Nothing about the network changes: it runs in eval mode without gradient, and each module's mode is put back.
    No random number is drawn.

    Args:
        network: a backbone.
        in_channels: channels of the images.
        image_size: height and width in pixels, or one number for both.
        name: what to call the network in messages; its class by default.
        classifier: whether it must have its last layer as ``classifier``; to measure its accuracy it need not.

    Raises:
        UserError: it cannot run on such images, or breaks the contract of ``registry.BACKBONES``.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    label = name or type(network).__name__
    check_network(network, label)
    kind = type(network)
    if classifier and kind.__module__.startswith("torch.") and isinstance(getattr(network, "module", None), nn.Module):
        raise UserError(f"{label} is wrapped in {kind.__name__}: give the network inside, its .module")
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, in_channels, height, width, dtype=weight.dtype, device=weight.device)
    with answering(network, label, images):
        output = network(images)
    shapes = _checked(output, label, len(images))
    if classifier:
        _check_classifier(network, label, shapes)
    return shapes


def check_network(network: object, label: str) -> None:
    """Refuse what is no network, or one whose layers have no weights yet.

    Args:
        label: what to call it in messages: ``"the student"``.

    Raises:
        UserError: says what to give.
    """
    if isinstance(network, str):
        raise UserError(f"{label} must be an nn.Module with its weights, not a name ({network!r})")
    if not isinstance(network, nn.Module):
        raise UserError(f"{label} must be an nn.Module or the name of a network, not {type(network).__name__}")
    tensors = [*network.named_parameters(), *network.named_buffers()]
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise UserError(f"{label} has no weights yet ({lazy}): run it once on a batch of images before it is given")


def _checked(output: object, label: str, images: int) -> Shapes:
    if not isinstance(output, Output):
        raise UserError(
            f"{label}: forward must return registry.Output, not {type(output).__name__}: wrap the network in a module "
            "whose forward returns Output(logits, embedding) and whose .classifier is the last nn.Linear, or name one "
            "that is ready, such as 'torchvision:resnet18' or 'timm:convnext_atto'"
        )
    # Logits that are no single layer's have no embedding.
    rows_of_each = tuple(x for x in (output.logits, output.embedding) if not isinstance(x, Absent))
    tensors = (*rows_of_each, *output.maps, *output.preacts)
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise UserError(f"{label}: logits and embedding must be tensors, maps and preacts tuples of tensors")
    if any(tensor.dim() != 2 for tensor in rows_of_each):
        raise UserError(
            f"{label}: logits and embedding must be [N, K] and [N, D], "
            f"not {list(output.logits.shape)} and {list(output.embedding.shape)}"
        )
    if any(m.dim() != 4 for m in (*output.maps, *output.preacts)):
        raise UserError(f"{label}: every map must be [N, C, H, W]")
    if output.preacts and [m.shape for m in output.preacts] != [m.shape for m in output.maps]:
        raise UserError(f"{label}: preacts must have the shapes of maps, or be empty")
    rows = next((len(tensor) for tensor in tensors if len(tensor) != images), images)
    if rows != images:
        raise UserError(f"{label}: returned {rows} rows for {images} images: it must return one row an image")
    return Shapes.of(output)


def _check_classifier(network: nn.Module, label: str, shapes: Shapes) -> None:
    classifier = getattr(network, "classifier", None)
    if isinstance(classifier, Absent) and not (shapes.embedding and shapes.num_classes):
        return
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"{label}: .classifier must be the last nn.Linear, not {type(classifier).__name__}")
    if (classifier.out_features, classifier.in_features) != (shapes.num_classes, shapes.embedding):
        raise UserError(
            f"{label}: .classifier is {classifier.in_features} -> {classifier.out_features}, "
            f"but embedding and logits have {shapes.embedding} and {shapes.num_classes} columns"
        )


@contextlib.contextmanager
def answering(network: nn.Module, label: str, images: Tensor) -> Iterator[None]:
    """Inside, the network is asked about images [N, C, H, W], in eval mode and without gradient.

    Raises:
        UserError: it raised anything, in one line; what is one already, as it was raised.
    """
    try:
        with evaluating(network), torch.no_grad():
            yield
    except UserError:
        raise
    except Exception as error:
        reason, where = " ".join(str(error).split()) or type(error).__name__, place_of(error)
        raise UserError(
            f"{label} cannot run on images of {' x '.join(map(str, images.shape[1:]))} (channels, height, width): "
            f"{reason[:300]}{where and f' ({where})'}; use another image size or another network"
        ) from error


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def borrowed(network: nn.Module) -> Iterator[None]:
    """Inside, a caller's network may be moved, cast, frozen and put in eval mode; afterwards all that is undone.

    Its tensors are put back by reference: what was written into them in place stays.
    """
    modules = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in network.modules()]
    parameters = [(p, p.requires_grad, p.data) for p in network.parameters()]
    gradients = [(p, p.grad, p.grad.data) for p in network.parameters() if p.grad is not None]
    try:
        yield
    finally:
        for module, training, own, buffers in modules:
            module.training = training
            module._parameters.update(own)
            module._buffers.update(buffers)
        for parameter, requires_grad, data in parameters:
            # What was made in inference mode is changed in inference mode only.
            with torch.inference_mode(parameter.is_inference()):
                parameter.data = data
                parameter.requires_grad_(requires_grad)
        for parameter, gradient, data in gradients:
            gradient.data = data
            parameter.grad = gradient


def copied(network: Module, instead: Mapping[nn.Module, nn.Module] = MappingProxyType({})) -> Module:
    """A deep copy, also of a network whose layers compute their weights (weight norm, spectral norm, pruning).

    ``copy.deepcopy`` refuses tensors that were computed with gradient; the copy computes its own at its next call.

    Args:
        instead: of modules inside, what the copy has in their place.
    """
    computed = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    return copy.deepcopy(network, {**computed, **{id(module): other for module, other in instead.items()}})

"""Run a network once on blank images: its shapes, or one line that says why it cannot run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from registry import Output, Shapes, UserError
from registry.errors import place_of

__all__ = ["evaluating", "probe"]


def probe(
    network: nn.Module, in_channels: int = 3, image_size: int | tuple[int, int] = 32, *, name: str = ""
) -> Shapes:
    """The shapes of everything that ``network`` returns for images of one size.

    Nothing about the network changes: it runs in eval mode without gradient, and each module's mode is put back.
    No random number is drawn.

    Args:
        network: a backbone.
        in_channels: channels of the images.
        image_size: height and width in pixels, or one number for both.
        name: what to call the network in messages; its class by default.

    Raises:
        UserError: it cannot run on such images, or breaks the contract of ``registry.BACKBONES``.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    label = name or type(network).__name__
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, in_channels, height, width, dtype=weight.dtype, device=weight.device)
    try:
        with evaluating(network), torch.no_grad():
            output = network(images)
    except Exception as error:
        reason, where = " ".join(str(error).split()) or type(error).__name__, place_of(error)
        raise UserError(
            f"{label} cannot run on images of {in_channels} x {height} x {width} (channels, height, width): "
            f"{reason[:300]}{where and f' ({where})'}; use another image size or another network"
        ) from error
    return _checked(network, output, label)


def _checked(network: nn.Module, output: object, label: str) -> Shapes:
    if not isinstance(output, Output):
        raise UserError(f"{label}: forward must return registry.Output, not {type(output).__name__}")
    if output.logits.dim() != 2 or output.embedding.dim() != 2:
        raise UserError(
            f"{label}: logits and embedding must be [N, K] and [N, D], "
            f"not {list(output.logits.shape)} and {list(output.embedding.shape)}"
        )
    if any(m.dim() != 4 for m in (*output.maps, *output.preacts)):
        raise UserError(f"{label}: every map must be [N, C, H, W]")
    if output.preacts and [m.shape for m in output.preacts] != [m.shape for m in output.maps]:
        raise UserError(f"{label}: preacts must have the shapes of maps, or be empty")
    classifier = getattr(network, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"{label}: .classifier must be the last nn.Linear, not {type(classifier).__name__}")
    shapes = Shapes.of(output)
    if (classifier.out_features, classifier.in_features) != (shapes.num_classes, shapes.embedding):
        raise UserError(
            f"{label}: .classifier is {classifier.in_features} -> {classifier.out_features}, "
            f"but embedding and logits have {shapes.embedding} and {shapes.num_classes} columns"
        )
    return shapes


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

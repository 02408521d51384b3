"""Segmentation networks of torchvision's family as backbones: features and logits of whole images.

Shapes: B images, K classes of objects; class 0 is the background. h x w is the resolution of the last convolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.layers import computed_linear
from registry import Absent, Output, UserError

__all__ = ["NO_PIXELS", "Segmenter"]

NO_PIXELS = Absent("the rows 'images' have maps alone: logits and embedding belong to pixels; use other rows")


class Segmenter(nn.Module):
    """A segmentation network, seen as maps. Its parameters keep torchvision's names, below ``network.``.

    Args:
        network: torchvision's FCN, DeepLabV3 or LRASPP, or one that is called as they are. It is shown normalized
            images; its last convolutions, of 1 x 1 pixels, are ``last``, and the sum of their answers are the logits.
        mean, std: by which images in [0, 1] are normalized.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, last: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.last = network, tuple(last)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    @property
    def _last(self) -> list[nn.Conv2d]:
        return [self.network.get_submodule(path) for path in self.last]  # type: ignore[misc]

    @property
    def classifier(self) -> nn.Linear:
        """The last convolutions as one linear layer on the pixels that they read, side by side."""
        weight = torch.cat([convolution.weight.flatten(1) for convolution in self._last], 1)
        biases = [convolution.bias for convolution in self._last if convolution.bias is not None]
        bias = torch.stack(biases).sum(0) if biases else None
        return computed_linear(weight, bias)

    def study(self, images: Tensor) -> tuple[Output, dict[str, Tensor]]:
        """The maps of images in [0, 1], [B, 3, H, W], and the network's own answers at their size.

        Returns:
            what :meth:`forward` does, and by name logits [B, K + 1, H, W]: ``out``, and ``aux`` of an auxiliary head.
        """
        with self._read() as read:
            answers: dict[str, Tensor] = self.network((images - self.mean) / self.std)
        features = torch.cat([inputs for inputs, _ in read], 1)
        logits = torch.stack([outputs for _, outputs in read]).sum(0)
        return Output(NO_PIXELS, NO_PIXELS, (features, logits)), answers  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Output:
        """From images in [0, 1] an output of two maps: features [B, D, h, w] and logits [B, K + 1, h, w]."""
        return self.study(x)[0]

    @contextlib.contextmanager
    def _read(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Inside, what the last convolutions read and answer is listed."""
        read: list[tuple[Tensor, Tensor]] = []
        handles = [
            convolution.register_forward_hook(lambda _, inputs, output: read.append((inputs[0], output)))
            for convolution in self._last
        ]
        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def segmenter_of(network: Any, label: str, classes: int) -> Segmenter:
    """A segmentation network of torchvision; with new last layers where it has another number of classes.

    Args:
        label: what to call it in messages. classes: K + 1.

    Raises:
        UserError: a network of another family.
    """
    head = network.classifier
    if isinstance(head, nn.Sequential):
        last = [f"classifier.{len(head) - 1}"]
    elif hasattr(head, "low_classifier"):
        last = ["classifier.low_classifier", "classifier.high_classifier"]
    else:
        raise UserError(f"{label} is no FCN, DeepLabV3 or LRASPP")
    auxiliary = getattr(network, "aux_classifier", None)
    for path in [*last, *([f"aux_classifier.{len(auxiliary) - 1}"] if auxiliary is not None else [])]:
        old = network.get_submodule(path)
        if old.out_channels != classes:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, nn.Conv2d(old.in_channels, classes, 1))
    return Segmenter(network, last, *IMAGENET)

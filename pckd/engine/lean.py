"""Networks that return logits and embedding only, where nobody reads their feature maps.

A map that is returned has to be written and kept; and a compiled network adds up its gradient, though it is zero.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model_zoo.adapting import Adapted
from registry import Absent, Output

UNREAD = Absent(
    "feature maps are left out, because everything in the objective says reads_maps = False: "
    "take that out of the loss, metric or center rule that reads them"
)
"""What stands for maps that nobody reads."""


def without_maps(output: Output) -> Output:
    """Logits and embedding only."""
    return Output(output.logits, output.embedding, UNREAD, UNREAD, layers=UNREAD)


def compiled(network: nn.Module, original: nn.Module, *, maps: bool) -> nn.Module:
    """A network through torch.compile, with or without its feature maps, in the place of the ``original``."""
    if maps:
        return cast(nn.Module, torch.compile(network))
    lean = network.without_maps() if isinstance(network, Adapted) else network
    return WithoutMaps(cast(nn.Module, torch.compile(Head(lean))), original)


class Head(nn.Module):
    """A network that returns its logits and its embedding, as plain tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output: Output = self.network(x)
        return output.logits, output.embedding


class WithoutMaps(nn.Module):
    """A compiled :class:`Head` in the place of the network that is in it."""

    def __init__(self, head: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.head = head
        # Not a second time among the submodules.
        self._network = [network]

    @property
    def classifier(self) -> nn.Linear:
        classifier = self._network[0].classifier
        assert isinstance(classifier, (nn.Linear, Absent))
        return classifier

    def forward(self, x: Tensor) -> Output:
        return without_maps(Output(*self.head(x)))

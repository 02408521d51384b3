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


def compiled(network: nn.Module, original: nn.Module, how: bool | str = True, *, maps: bool) -> nn.Module:
    """A network through torch.compile, with or without its feature maps, in the place of the ``original``.

    Args:
        how: True, or a mode of torch.compile. The next replay of a CUDA graph writes over what the last one returned,
            whatever network it is of. So answers are copied at once where there is a mode.
    """
    mode = how if isinstance(how, str) else None
    if not maps:
        network = Head(network.without_maps() if isinstance(network, Adapted) else network)
    fast = cast(nn.Module, torch.compile(network, mode=mode))
    return fast if maps and mode is None else Compiled(fast, original, copies=mode is not None)


class Head(nn.Module):
    """A network that returns its logits and its embedding, as plain tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output: Output = self.network(x)
        return output.logits, output.embedding


class Compiled(nn.Module):
    """A compiled network, or a compiled :class:`Head`, in the place of the network.

    Args:
        copies: whether its answers are copied.
    """

    def __init__(self, fast: nn.Module, network: nn.Module, *, copies: bool = False) -> None:
        super().__init__()
        self.fast, self.copies = fast, copies
        # Not a second time among the submodules.
        self._network = [network]

    @property
    def classifier(self) -> nn.Linear:
        classifier = self._network[0].classifier
        assert isinstance(classifier, (nn.Linear, Absent))
        return classifier

    def forward(self, x: Tensor) -> Output:
        answer = self.fast(x)
        output = answer if isinstance(answer, Output) else without_maps(Output(*answer))
        return output.apply(Tensor.clone) if self.copies else output

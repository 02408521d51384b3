"""The frozen teacher: always in eval mode, never a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from registry import Output


class FrozenTeacher(nn.Module):
    """Wraps a network so that it only answers.

    Its parameters stop requiring gradients, it stays in eval mode whatever ``train()`` is called on it or on a module
    that holds it. The engine keeps it outside everything it saves.

    Args:
        network: ``forward(x) -> Output`` with a ``classifier``. It is frozen in place, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode; the argument is ignored."""
        super().train(False)
        return self

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.network.classifier
        assert isinstance(classifier, nn.Linear)
        return classifier

    @torch.no_grad()
    def forward(self, x: Tensor) -> Output:
        output: Output = self.network(x)
        return output

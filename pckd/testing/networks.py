"""What is asked of the weights of any network, whatever its rows are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pckd.testing.cases import hidden_parts, near, saved, tensors_of
from pckd.testing.contract import Contract
from registry import Output

CLASSES = 7
"""A network is built for so many."""
TOLERANCE = 1e-3
"""On the scale of the output, which grows with the depth of a network that was never trained."""


def hold_state(contract: Contract, network: Any, answer: Callable[[Any], Output], **options: Any) -> None:
    """Hold the weights of a network to their clauses.

    Clauses: parameters, registered state, state.

    Args:
        answer: what a network in eval mode says of some images. options: that the network was built with.
    """
    # Aliased weights would be counted, saved and optimized twice.
    pointers = [parameter.data_ptr() for parameter in network.parameters()]
    distinct = len(set(pointers)) == len(pointers)
    contract.holds("parameters", distinct, "two parameters share their memory", "each its own")
    hidden = hidden_parts(network)
    contract.holds("registered state", not hidden, hidden, "nothing hidden")
    if isinstance(contract.plugin, nn.Module):
        return
    with contract.clause("state") as expect, torch.no_grad():
        other = contract.make(CLASSES, **options)
        other.load_state_dict(saved(network.state_dict()))
        pairs = zip(tensors_of(answer(network.eval())), tensors_of(answer(other.eval())), strict=True)
        expect(all(near(a, b, TOLERANCE) for a, b in pairs), "its saved state gave another network", "the same output")

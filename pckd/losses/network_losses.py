from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from registry import LOSSES, NotApplicable


@LOSSES.register("network_losses", per_sample=False)
def network_losses(student_losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of the losses that the network computes itself, as a detector does; scalar."""
    if not student_losses:
        raise NotApplicable("network_losses: the student computes no losses of its own")
    return torch.stack(list(student_losses.values())).sum()

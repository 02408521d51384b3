from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_SCHEDULERS, Context


@DIFFICULTY_SCHEDULERS.register("preview")
def preview(
    difficulty: Tensor, context: Context, *, growth: float = 1.005, reference_epochs: int | None = 240
) -> Tensor:
    """1 up to a bar of growth^epoch that rises every epoch, exp(-difficulty^2) above it (PCKD, arXiv 2410.14143).

    The bar was published for 240 epochs: a run of another length climbs it as far, in its own number of epochs.
    ``reference_epochs=None`` counts the epochs as they are.
    """
    return functional.preview_weights(difficulty, functional.published_epoch(context, reference_epochs), growth)

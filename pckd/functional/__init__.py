"""The mathematics of the losses as pure functions: tensors in, per-sample values out, no parameters, no state.

Everything is computed in at least float32, also under autocast.
"""

from __future__ import annotations

from pckd.functional.centers import category_contrast, center_alignment, center_infonce, center_relation
from pckd.functional.features import feature_alignment
from pckd.functional.logits import kd
from pckd.functional.means import blend_class_means, class_means
from pckd.functional.numerics import full, unit
from pckd.functional.preview import (
    PUBLISHED_EPOCHS,
    cross_entropy_difficulty,
    preview_weights,
    published_epoch,
    relative,
)

__all__ = [
    "PUBLISHED_EPOCHS",
    "blend_class_means",
    "category_contrast",
    "center_alignment",
    "center_infonce",
    "center_relation",
    "class_means",
    "cross_entropy_difficulty",
    "feature_alignment",
    "full",
    "kd",
    "preview_weights",
    "published_epoch",
    "relative",
    "unit",
]

"""The mathematics of the losses as pure functions: tensors in, per-sample values out, no parameters, no state.

Everything is computed in at least float32, also under autocast.
"""

from __future__ import annotations

from pckd.functional.attention import attention_transfer, factor_transfer
from pckd.functional.boundaries import activation_boundary, negative_means, ofd
from pckd.functional.centers import category_contrast, center_alignment, center_infonce, center_relation
from pckd.functional.channels import channel_correlation
from pckd.functional.decoupled import dkd
from pckd.functional.features import feature_alignment
from pckd.functional.flow import fsp, kdsvd
from pckd.functional.hints import hierarchical_context, hint, vid
from pckd.functional.logits import kd
from pckd.functional.maps import matched, paired, paired_shapes
from pckd.functional.means import blend_class_means, centered_means, class_means
from pckd.functional.multilevel import batch_alignment, class_alignment, instance_alignment, unsure_share
from pckd.functional.noise_contrast import (
    bank_scores,
    draw_negatives,
    first_rows,
    keep_other_classes,
    log_normalizer,
    noise_contrast,
    renewed,
)
from pckd.functional.numerics import full, unit
from pckd.functional.pearson import inter_class_relation, intra_class_relation
from pckd.functional.preview import (
    PUBLISHED_EPOCHS,
    cross_entropy_difficulty,
    preview_weights,
    published_epoch,
    relative,
)
from pckd.functional.rank_correlation import rank_correlation
from pckd.functional.ranks import gather_output, gather_rows, gather_rows_with_gradient, own_rows, world_size
from pckd.functional.relations import correlation_congruence, pkt, rkd
from pckd.functional.reused_classifier import (
    feature_statistic,
    read_map,
    read_shape,
    reused_feature,
    softmax_regression,
)
from pckd.functional.similarity import nst, similarity_preserving
from pckd.functional.standardized import lskd, standardize
from pckd.functional.transformations import (
    reliable,
    similarity_transfer,
    transformed_kd,
    view_contrast,
    view_similarity,
)

__all__ = [
    "PUBLISHED_EPOCHS",
    "activation_boundary",
    "attention_transfer",
    "bank_scores",
    "batch_alignment",
    "blend_class_means",
    "category_contrast",
    "center_alignment",
    "center_infonce",
    "center_relation",
    "centered_means",
    "channel_correlation",
    "class_alignment",
    "class_means",
    "correlation_congruence",
    "cross_entropy_difficulty",
    "dkd",
    "draw_negatives",
    "factor_transfer",
    "feature_alignment",
    "feature_statistic",
    "first_rows",
    "fsp",
    "full",
    "gather_output",
    "gather_rows",
    "gather_rows_with_gradient",
    "hierarchical_context",
    "hint",
    "instance_alignment",
    "inter_class_relation",
    "intra_class_relation",
    "kd",
    "kdsvd",
    "keep_other_classes",
    "log_normalizer",
    "lskd",
    "matched",
    "negative_means",
    "noise_contrast",
    "nst",
    "ofd",
    "own_rows",
    "paired",
    "paired_shapes",
    "pkt",
    "preview_weights",
    "published_epoch",
    "rank_correlation",
    "read_map",
    "read_shape",
    "relative",
    "reliable",
    "renewed",
    "reused_feature",
    "rkd",
    "similarity_preserving",
    "similarity_transfer",
    "softmax_regression",
    "standardize",
    "transformed_kd",
    "unit",
    "unsure_share",
    "vid",
    "view_contrast",
    "view_similarity",
    "world_size",
]

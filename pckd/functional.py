"""The mathematics of the losses as pure functions: tensors in, per-sample values out, no parameters, no state.

Everything is computed in at least float32, also under autocast.
"""

from __future__ import annotations

from pckd.centers.rules import blend_class_means, centered_means, class_means
from pckd.difficulty.metrics import cross_entropy_difficulty
from pckd.distributed import gather_output, gather_rows, gather_rows_with_gradient, own_rows, world_size
from pckd.losses.ab import activation_boundary
from pckd.losses.at import attention_transfer
from pckd.losses.category_contrast import category_contrast
from pckd.losses.cc import correlation_congruence
from pckd.losses.center_alignment import center_alignment
from pckd.losses.center_infonce import center_infonce
from pckd.losses.center_relation import center_relation
from pckd.losses.cirkd import cross_image_relations
from pckd.losses.cirkd_memory import enqueue
from pckd.losses.crd import (
    bank_scores,
    draw_negatives,
    first_rows,
    keep_other_classes,
    log_normalizer,
    noise_contrast,
    renewed,
)
from pckd.losses.cwd import channel_divergence
from pckd.losses.defeat import decoupled_imitation, object_masks
from pckd.losses.dist import inter_class_relation, intra_class_relation
from pckd.losses.dkd import dkd
from pckd.losses.feature_alignment import feature_alignment
from pckd.losses.fgd import attention_difference, box_masks, focal
from pckd.losses.fgfi import near_objects
from pckd.losses.fitnet import hint
from pckd.losses.fsp import fsp
from pckd.losses.ft import factor_transfer
from pckd.losses.ickd import channel_correlation
from pckd.losses.ifvd import intra_class_variation
from pckd.losses.kd import kd
from pckd.losses.kdsvd import kdsvd
from pckd.losses.ld import localization_distillation
from pckd.losses.lskd import lskd, standardize
from pckd.losses.maps import matched, paired, paired_shapes, read_map, read_shape
from pckd.losses.mld import batch_alignment, class_alignment, instance_alignment, unsure_share
from pckd.losses.nst import nst
from pckd.losses.ofd import negative_means, ofd
from pckd.losses.pkd import pearson_distance
from pckd.losses.pkt import pkt
from pckd.losses.reviewkd import hierarchical_context
from pckd.losses.rkd import rkd
from pckd.losses.simkd import reused_feature
from pckd.losses.skd import pairwise_similarity
from pckd.losses.sp import similarity_preserving
from pckd.losses.srrl import feature_statistic, softmax_regression
from pckd.losses.sskd import reliable, similarity_transfer, transformed_kd, view_contrast, view_similarity
from pckd.losses.vid import vid
from pckd.ops import PUBLISHED_EPOCHS, full, published_epoch, rank_correlation, relative, unit
from pckd.schedulers.weights import preview_weights

__all__ = [
    "PUBLISHED_EPOCHS",
    "activation_boundary",
    "attention_difference",
    "attention_transfer",
    "bank_scores",
    "batch_alignment",
    "blend_class_means",
    "box_masks",
    "category_contrast",
    "center_alignment",
    "center_infonce",
    "center_relation",
    "centered_means",
    "channel_correlation",
    "channel_divergence",
    "class_alignment",
    "class_means",
    "correlation_congruence",
    "cross_entropy_difficulty",
    "cross_image_relations",
    "decoupled_imitation",
    "dkd",
    "draw_negatives",
    "enqueue",
    "factor_transfer",
    "feature_alignment",
    "feature_statistic",
    "first_rows",
    "focal",
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
    "intra_class_variation",
    "kd",
    "kdsvd",
    "keep_other_classes",
    "localization_distillation",
    "log_normalizer",
    "lskd",
    "matched",
    "near_objects",
    "negative_means",
    "noise_contrast",
    "nst",
    "object_masks",
    "ofd",
    "own_rows",
    "paired",
    "paired_shapes",
    "pairwise_similarity",
    "pearson_distance",
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

"""What the literature sets per method and pair: options of methods, and their changes of the usual recipe.

Pairs are labeled ``teacher>student``, as in :mod:`model_zoo.pairs`. A pair that no source names has the method's own
defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from model_zoo.pairs import bare, recipe_for

__all__ = ["LEFT_OUT", "METHOD_OPTIONS", "MethodOptions", "method_options", "method_recipe"]


@dataclass(frozen=True)
class MethodOptions:
    """What one source sets for the options of a method.

    Args:
        source: where the values are from.
        pairs: ``teacher>student`` to options.
    """

    source: str
    pairs: Mapping[str, Mapping[str, Any]]


def _table(source: str, names: tuple[str, ...], rows: Mapping[tuple[float | str, ...], str]) -> MethodOptions:
    """Of each row of values, the pairs that have them; "" is none."""
    pairs = {
        label: MappingProxyType({name: value for name, value in zip(names, row, strict=True) if value != ""})
        for row, labels in rows.items()
        for label in labels.split()
    }
    return MethodOptions(source, MappingProxyType(pairs))


METHOD_OPTIONS: Mapping[str, MethodOptions] = MappingProxyType(
    {
        "dkd": _table(
            "mdistiller's configurations of DKD for CIFAR-100 (arXiv 2203.08679)",
            ("beta",),
            {
                (8.0,): "resnet32x4>resnet8x4 resnet32x4>ShuffleV1 resnet32x4>ShuffleV2 ResNet50>MobileNetV2 "
                "wrn_40_2>ShuffleV1",
                (6.0,): "vgg13>vgg8 vgg13>MobileNetV2 wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1",
                (2.0,): "resnet56>resnet20 resnet110>resnet32",
            },
        ),
        "reviewkd": _table(
            "ReviewKD's commands for CIFAR-100 (arXiv 2104.09044)",
            ("weight",),
            {
                (5.0,): "wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 wrn_40_2>ShuffleV1 resnet32x4>resnet8x4 "
                "resnet32x4>ShuffleV1",
                (8.0,): "resnet32x4>ShuffleV2",
                (0.6,): "resnet56>resnet20",
                (1.0,): "resnet110>resnet32",
            },
        ),
        "kd_plus_plus": _table(
            "the release of ND for CIFAR-100 (arXiv 2305.17007)",
            ("kd", "weight"),
            {
                (1.0, 2.0): "resnet56>resnet20",
                (3.5, 2.0): "resnet32x4>resnet8x4",
                (1.0, 1.5): "wrn_40_2>wrn_40_1",
                (3.0, 0.5): "ResNet50>MobileNetV2",
                (2.5, 1.5): "resnet32x4>ShuffleV1",
                (4.0, 0.5): "resnet32x4>ShuffleV2",
            },
        ),
        "catkd": _table(
            "CAT-KD's configurations for CIFAR-100 (arXiv 2304.12777)",
            ("weight", "resolution", "normalized", "student"),
            {
                (12.0, 2, False, ""): "wrn_40_2>wrn_16_2",
                (1.5, 2, False, ""): "wrn_40_2>wrn_40_1",
                (0.7, 2, False, ""): "resnet56>resnet20",
                (1.8, 2, False, ""): "resnet110>resnet32",
                (15.0, 2, False, ""): "resnet32x4>resnet8x4",
                (4.5, 2, False, ""): "vgg13>vgg8",
                (15.0, 2, True, "conv2"): "vgg13>MobileNetV2",
                (40.0, 2, True, "conv2"): "ResNet50>MobileNetV2",
                (600.0, 4, True, ""): "resnet32x4>ShuffleV1",
                (600.0, 4, True, "bn2"): "resnet32x4>ShuffleV2",
                (80.0, 4, True, ""): "wrn_40_2>ShuffleV1",
            },
        ),
        "hsakd": _table(
            "the auxiliary heads of HSAKD's networks for CIFAR-100 (arXiv 2107.13715)",
            ("blocks", "teacher_blocks"),
            {
                (2, 6): "wrn_40_2>wrn_16_2",
                (6, 6): "wrn_40_2>wrn_40_1",
                (3, 9): "resnet56>resnet20",
                (1, 5): "resnet32x4>resnet8x4",
            },
        ),
        "itrd": _table(
            "the example in ITRD's README (arXiv 2112.00459)",
            ("correlation", "mutual", "alpha"),
            {(2.0, 1.0, 1.01): "wrn_40_2>wrn_16_2"},
        ),
        "lskd": _table(
            "the names of LSKD's published logs for KD on CIFAR-100 (arXiv 2403.01427)",
            ("temperature", "weight"),
            {
                (2.0, 9.0): "resnet32x4>resnet8x4 resnet32x4>ShuffleV2 resnet56>resnet20 resnet110>resnet32 "
                "wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 wrn_40_2>resnet8x4",
                (3.0, 9.0): "resnet32x4>wrn_16_2 resnet32x4>wrn_40_2 vgg13>vgg8 vgg13>MobileNetV2 wrn_40_2>MobileNetV2",
                (4.0, 12.0): "resnet110>resnet20",
                (3.0, 1.0): "ResNet50>MobileNetV2",
            },
        ),
    }
)

# Jin et al.'s configurations: .025 instead of .05; the students that are trained gently keep their rate.
_RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({"mld": MappingProxyType({"lr": 0.025})})


def method_options(method: str, student: str, teacher: str) -> dict[str, Any]:
    """The options that the literature gives ``method`` for this pair; empty where it gives none.

    Args:
        method: a name of ``METHODS``. student, teacher: names of ``BACKBONES``; their options are ignored.
    """
    known = METHOD_OPTIONS.get(method)
    return dict(known.pairs.get(f"{bare(teacher)}>{bare(student)}", {})) if known else {}


def method_recipe(method: str, student: str | None = None) -> dict[str, Any]:
    """What ``method`` changes of the fields of :class:`model_zoo.Recipe`; empty for most.

    Args:
        method: a name of ``METHODS``. student: a name of ``BACKBONES``; None where it has none. A change of the
            learning rate never raises the student's own.
    """
    changes = dict(_RECIPES.get(method, {}))
    if "lr" in changes and student is not None and recipe_for(student).lr < changes["lr"]:
        del changes["lr"]
    return changes


LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "crrcd": "cross-resolution relational contrastive distillation (arXiv 2409.02555) is for students that see "
        "images of lower resolution, and has no released code to take its relation networks, negatives and weights "
        "from; the row may be another training of it (CRCD, arXiv 2103.16367, is another method)",
        "fcfd": "it runs the rest of each network on the other's features, with batch statistics of its own (Liu et "
        "al., ICLR 2023); a loss is shown what networks return, and cannot enter them",
        "rekd": "neither a paper nor code of this name on image classification could be found",
        "ckd": "which paper the row means could not be established (arXiv 2404.14109 is a candidate, but its "
        "published code has neither the row's figures nor its pair resnet110>resnet20)",
    }
)
"""Rows of the paper's table, and newer methods, that are not here, and why: nothing is guessed under a paper's name."""

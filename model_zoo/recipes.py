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

__all__ = ["LEFT_OUT", "METHOD_OPTIONS", "METHOD_RECIPES", "MethodOptions", "method_options", "method_recipe"]


@dataclass(frozen=True)
class MethodOptions:
    """What one source sets for the options of a method.

    Args:
        source: where the values are from.
        pairs: ``teacher>student`` to options.
    """

    source: str
    pairs: Mapping[str, Mapping[str, Any]]


def _labeled(names: tuple[str, ...], rows: Mapping[tuple[Any, ...], str]) -> Mapping[str, Mapping[str, Any]]:
    """Of each row of values, the labels that have them; "" is no value."""
    named = [
        (MappingProxyType({k: v for k, v in zip(names, row, strict=True) if v != ""}), labels.split())
        for row, labels in rows.items()
    ]
    return MappingProxyType({label: values for values, labels in named for label in labels})


def _table(source: str, names: tuple[str, ...], rows: Mapping[tuple[Any, ...], str]) -> MethodOptions:
    return MethodOptions(source, _labeled(names, rows))


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
        "ttm": _table(
            "the commands for TTM in the code of TTM (arXiv 2402.11148) and of ABKD (arXiv 2505.04560)",
            ("gamma", "weight"),
            {(0.1, 45.0): "vgg13>vgg8", (0.1, 76.0): "wrn_40_2>wrn_40_1"},
        ),
        "sdd": _table(
            "SDD's configurations and commands of SD-DKD for CIFAR-100 (arXiv 2403.13512)",
            ("beta", "scales"),
            {
                (8.0, (1, 2, 4)): "resnet32x4>ShuffleV1 wrn_40_2>ShuffleV1 ResNet50>ShuffleV1 ResNet50>vgg8 "
                "wrn_40_2>vgg8",
                (6.0, (1, 2)): "vgg13>vgg8",
            },
        ),
        "wkd": _table(
            "WKD's configurations of WKD-L for CIFAR-100 (arXiv 2412.08139), whose costs are the CKA of features",
            ("gamma", "temperature"),
            {(600.0, 8.0): "resnet32x4>resnet8x4", (200.0, 6.0): "wrn_40_2>ShuffleV1"},
        ),
        "ckd": _table(
            "CKD's configurations for CIFAR-100 (arXiv 2404.14109), of 480 epochs with a cosine schedule",
            ("weight", "temperature"),
            {
                (100.0, 1.0): "resnet32x4>resnet8x4 resnet32x4>ShuffleV1 resnet32x4>ShuffleV2 wrn_40_2>wrn_16_2 "
                "wrn_40_2>ShuffleV1 vgg13>vgg8 ResNet50>MobileNetV2",
                (50.0, 2.0): "wrn_40_2>wrn_40_1 vgg13>MobileNetV2",
                (10.0, 1.0): "resnet56>resnet20 resnet110>resnet32",
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
        "dkd(standardize=True)": _table(
            "the names of LSKD's published logs for DKD on CIFAR-100 (arXiv 2403.01427); beta of DKD's configurations "
            "where a name has none",
            ("temperature", "weight", "beta"),
            {
                (2.0, 9.0, 8.0): "resnet32x4>resnet8x4 resnet32x4>ShuffleV2 resnet32x4>wrn_40_2",
                (2.0, 9.0, 2.0): "resnet32x4>wrn_16_2",
                (2.0, 12.0, 2.0): "wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1",
                (2.0, 15.0, 2.0): "vgg13>vgg8 resnet110>resnet20 resnet110>resnet32 ResNet50>MobileNetV2 "
                "wrn_40_2>MobileNetV2",
                (2.0, 18.0, 2.0): "wrn_40_2>resnet8x4",
                (3.0, 9.0, 2.0): "vgg13>MobileNetV2",
                (3.0, 18.0, 2.0): "resnet56>resnet20",
            },
        ),
        "mld(standardize=True)": _table(
            "the names of LSKD's published logs for MLD on CIFAR-100 (arXiv 2403.01427)",
            ("temperature", "weight"),
            {
                (2.0, 9.0): "resnet32x4>resnet8x4 resnet32x4>wrn_16_2 resnet32x4>wrn_40_2 wrn_40_2>resnet8x4 "
                "wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 resnet110>resnet20 resnet110>resnet32 ResNet50>MobileNetV2",
                (2.0, 6.0): "resnet32x4>ShuffleV2 vgg13>MobileNetV2 vgg13>vgg8",
            },
        ),
    }
)

METHOD_RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # Jin et al.'s configurations (MLD): 0.025 instead of 0.05, and the students that are trained gently keep their
        # rate. The milestones are 150, 180 and 210 in all of them.
        "mld": {
            "": {"lr": 0.025},
            **_labeled(
                ("epochs",),
                {
                    (480,): "vgg13>MobileNetV2 ResNet50>MobileNetV2 wrn_40_2>ShuffleV1",
                    (960,): "resnet32x4>ShuffleV1 resnet32x4>ShuffleV2",
                },
            ),
        },
        # RepDistiller trains the paraphraser of these students' teachers gently, and of others at the student's rate.
        "ft": _labeled(
            ("initial_lr",),
            {
                (0.01,): "resnet8 resnet14 resnet20 resnet32 resnet44 resnet56 resnet110 resnet8x4 resnet32x4 "
                "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2"
            },
        ),
    }
)
"""Of a method what it changes of the usual recipe: always (``""``), for a student, or for a pair."""


def method_options(method: str, student: str, teacher: str) -> dict[str, Any]:
    """The options that the literature gives ``method`` for this pair; empty where it gives none.

    Args:
        method: a name of ``METHODS``, or ``"dkd(standardize=True)"``, which has a table of its own.
        student, teacher: names of ``BACKBONES``; their options are ignored.
    """
    known = METHOD_OPTIONS.get(method)
    return dict(known.pairs.get(f"{bare(teacher)}>{bare(student)}", {})) if known else {}


def method_recipe(method: str, student: str | None = None, teacher: str | None = None) -> dict[str, Any]:
    """What ``method`` changes of the usual recipe; empty for most.

    ``lr`` and ``epochs`` are those of :class:`model_zoo.Recipe`; ``initial_lr`` is the learning rate of the epochs
    before the schedule that some methods ask for.

    Args:
        method: a name of ``METHODS``. student, teacher: names of ``BACKBONES``; None where there is none. A change of
            the learning rate never raises the student's own.
    """
    known, name = METHOD_RECIPES.get(method, {}), bare(student or "")
    changes = {**known.get("", {}), **known.get(name, {}), **known.get(f"{bare(teacher or '')}>{name}", {})}
    if "lr" in changes and student is not None and recipe_for(student).lr < changes["lr"]:
        del changes["lr"]
    return changes


LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "dist_plus": "the paper (DIST+, TPAMI 2025) is not open, and the only public code that could be found, "
        "torchdistill's, adds the correlation of the channels to the loss where DIST's terms are 1 minus one",
        "crrcd": "cross-resolution relational contrastive distillation (arXiv 2409.02555) is for students that see "
        "images of lower resolution, and has no released code to take its relation networks, negatives and weights "
        "from; the row may be another training of it (CRCD, arXiv 2103.16367, is another method)",
        "fcfd": "it runs the rest of each network on the other's features, with batch statistics of its own (Liu et "
        "al., ICLR 2023); a loss is shown what networks return, and cannot enter them",
        "rekd": "neither a paper nor code of this name on image classification could be found",
    }
)
"""Methods that are not here, some of them rows of the paper's table: nothing is guessed under a paper's name."""

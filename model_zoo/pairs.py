"""Teacher-student pairs of the CIFAR-100 literature, with the recipe and the reported figures of each.

The figures are what the papers report: top-1 accuracy in percent of the last epoch, not measured by this library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from registry import UserError

__all__ = ["DENSE_RECIPE", "OTHER_SOURCES", "PAIRS", "Pair", "Recipe", "find_pair", "recipe_for", "usual_teacher"]


@dataclass(frozen=True)
class Recipe:
    """SGD with steps, as in the CIFAR-100 tables of CRD, DKD and PCKD.

    Args:
        lr: learning rate of the first epoch, for ``batch_size`` images a step.
        epochs: how many.
        milestones: epochs after which the rate is multiplied by ``lr_decay``.
        lr_decay: the factor.
        batch_size: images a step.
        weight_decay: on all parameters.
        momentum: of SGD.
    """

    lr: float = 0.05
    epochs: int = 240
    milestones: tuple[int, ...] = (150, 180, 210)
    lr_decay: float = 0.1
    batch_size: int = 64
    weight_decay: float = 5e-4
    momentum: float = 0.9


@dataclass(frozen=True)
class Pair:
    """A student, its teacher, how it is trained, and what was reported.

    Args:
        student: name in ``registry.BACKBONES``.
        teacher: likewise.
        recipe: how the student is trained.
        paper: method to reported top-1 in percent; "teacher" and "student" are the two networks trained alone.
        source: where the figures are from.
        others: likewise, of methods that the paper does not compare with; :data:`OTHER_SOURCES` says where each is
            from, and what is to be known of it.
    """

    student: str
    teacher: str
    recipe: Recipe
    paper: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """``teacher>student``."""
        return f"{self.teacher}>{self.student}"


# Every table trains these at a fifth of the usual rate.
_GENTLE = ("MobileNetV2", "ShuffleV1", "ShuffleV2")

_SAME_FAMILY_SOURCE = "PCKD, arXiv 2410.14143, CIFAR-100, teacher and student of the same family"
_SAME_FAMILY = """\
method            wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 resnet56>resnet20 resnet110>resnet20 resnet110>resnet32 \
resnet32x4>resnet8x4 vgg13>vgg8
teacher           75.61 75.61 72.34 74.31 74.31 79.42 74.64
student           73.26 71.98 69.06 69.06 71.14 72.50 70.36
KD                74.92 73.54 70.66 70.67 73.08 73.33 72.98
FitNet            73.58 72.24 69.21 68.99 71.06 73.50 71.02
AT                74.08 72.77 70.55 70.22 72.31 73.44 71.43
SP                73.83 72.43 69.67 70.04 72.69 72.94 72.68
CC                73.56 72.21 69.63 69.48 71.48 72.97 70.71
VID               74.11 73.30 70.38 70.16 72.61 73.09 71.23
RKD               73.35 72.22 69.61 69.25 71.82 71.90 71.48
FT                73.25 71.59 69.84 70.22 72.37 72.86 70.58
FSP               72.91 -     69.95 70.11 71.89 72.62 70.23
CRD               75.48 74.14 71.16 71.46 73.48 75.51 73.94
SSKD              74.87 74.59 70.20 69.85 72.63 75.69 74.35
SRRL              75.96 74.75 71.44 71.51 73.80 75.92 74.40
ICKD              75.64 74.33 71.76 71.68 73.89 75.25 73.42
ReviewKD          76.12 75.09 71.89 -     73.89 75.63 74.84
DKD               76.24 74.81 71.97 71.73 74.11 76.32 74.68
MLD               76.63 75.35 72.19 -     74.11 77.08 75.18
LSKD              74.10 75.22 71.43 71.38 -     74.38 -
CRRCD             76.43 74.83 72.10 71.92 74.05 75.14 74.04
ReKD              76.13 74.84 72.19 71.93 74.29 76.98 74.62
CKD               76.29 74.85 72.03 71.97 74.14 76.62 74.86
PCKD~without~L_KD 76.52 76.22 71.92 72.05 74.33 76.89 75.61
PCKD              76.97 76.24 72.21 72.55 75.12 77.14 75.80
"""

# DKD's own table prints the pair resnet32x4>ShuffleV2 with another student's name; its KD figure tells them apart.
_CROSS_FAMILY_SOURCE = "CRD, arXiv 1910.10699, table 2; the row DKD from DKD, arXiv 2203.08679"
_CROSS_FAMILY = """\
method  vgg13>MobileNetV2 ResNet50>MobileNetV2 ResNet50>vgg8 resnet32x4>ShuffleV1 resnet32x4>ShuffleV2 \
wrn_40_2>ShuffleV1
teacher 74.64 79.34 79.34 79.42 79.42 75.61
student 64.60 64.60 70.36 70.50 71.82 70.50
KD      67.37 67.35 73.81 74.07 74.45 74.83
FitNet  64.14 63.16 70.69 73.59 73.54 73.73
AT      59.40 58.58 71.84 71.73 72.73 73.32
SP      66.30 68.08 73.34 73.48 74.56 74.52
CC      64.86 65.43 70.25 71.14 71.29 71.38
VID     65.56 67.57 70.30 73.38 73.40 73.61
RKD     64.52 64.43 71.50 72.28 73.21 72.21
PKT     67.13 66.52 73.01 74.10 74.69 73.89
AB      66.06 67.20 70.65 73.55 74.31 73.34
FT      61.78 60.99 70.29 71.75 72.50 72.03
NST     58.16 64.96 71.28 74.12 74.68 74.89
CRD     69.73 69.11 74.30 75.11 75.65 76.05
DKD     69.71 70.35 -     76.45 77.07 76.70
"""

# From here on the figures are those of other papers and repositories.
_OTHERS_SAME_FAMILY = """\
method     wrn_40_2>wrn_16_2 wrn_40_2>wrn_40_1 resnet56>resnet20 resnet110>resnet20 resnet110>resnet32 \
resnet32x4>resnet8x4 vgg13>vgg8
DIST       -     74.42 71.78 -     -     75.79 -
SemCKD     -     74.41 -     -     -     76.23 74.43
SimKD      -     75.56 -     -     -     78.08 -
ITRD       76.12 75.18 71.47 71.99 74.26 76.69 74.93
NORM       75.65 74.82 71.35 71.55 73.67 76.49 73.95
NORM+KD    76.26 75.42 71.61 72.00 73.95 76.98 74.46
KD++       -     74.59 72.53 -     -     75.54 -
DIST++     -     75.00 72.52 -     -     76.13 -
DKD++      -     75.02 72.16 -     -     76.28 -
ReviewKD++ -     75.66 72.05 -     -     76.07 -
WTTM       76.37 74.58 71.92 -     74.13 76.06 74.44
KD+LSKD    76.11 74.37 71.43 -     74.17 76.62 74.36
DKD+LSKD   76.39 74.89 72.32 -     74.29 77.01 74.81
MLD+LSKD   76.95 75.56 72.33 -     74.32 78.28 75.22
WKD-L+F    -     -     -     -     -     77.28 -
HSAKD      77.20 77.00 72.58 -     -     77.26 -
"""
_OTHERS_CROSS_FAMILY = """\
method     vgg13>MobileNetV2 ResNet50>MobileNetV2 ResNet50>vgg8 resnet32x4>ShuffleV1 resnet32x4>ShuffleV2 \
wrn_40_2>ShuffleV1
DIST       -     69.17 -     75.23 76.08 -
SemCKD     -     -     -     -     77.62 -
SimKD      -     -     -     77.18 -     -
ITRD       70.39 71.34 75.49 76.69 77.40 77.09
NORM       68.94 70.56 75.17 77.42 78.07 77.06
NORM+KD    69.38 71.17 75.67 77.79 78.32 77.63
KD++       -     70.10 -     75.45 76.42 -
DIST++     -     69.80 -     75.60 76.64 -
DKD++      -     70.82 -     77.11 77.49 -
ReviewKD++ -     70.45 -     77.68 77.93 -
"""
_ND = "the repository of ND, arXiv 2305.17007: batches of 128, rate 0.1, Nesterov's momentum"
_NORM = "the repository of NORM, ICLR 2023"
_LSKD = "the repository of LSKD, arXiv 2403.01427: the best epoch. The row LSKD of PCKD's table is not LSKD's own"
OTHER_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "DIST": "the table of the repository of ND, arXiv 2305.17007",
        "SemCKD": "the table of the repository of NORM, ICLR 2023",
        "SimKD": "the table of the repository of NORM, ICLR 2023; the teacher's classifier answers",
        "ITRD": "the repository of ITRD, arXiv 2112.00459",
        **dict.fromkeys(("NORM", "NORM+KD"), f"{_NORM}: two more convolutions answer with the student"),
        **dict.fromkeys(("KD++", "DIST++", "DKD++", "ReviewKD++"), _ND),
        "WTTM": "the repository of TTM, arXiv 2402.11148",
        **dict.fromkeys(("KD+LSKD", "DKD+LSKD"), _LSKD),
        "MLD+LSKD": f"{_LSKD}; of 480 epochs (resnet32x4>resnet8x4: 78.17 in the last one)",
        "WKD-L+F": "the repository of WKD, arXiv 2412.08139",
        "HSAKD": "the repository of HSAKD, arXiv 2107.13715: four rotations of each image, Nesterov's momentum, and "
        "better networks alone (students 73.57, 71.95, 69.62 and 72.95, teachers 76.45, 73.44 and 79.63)",
    }
)
"""Of each method of :attr:`Pair.others`: where its figures are from, and how its training differs from the tables'."""

# For students of no pair above.
_TEACHERS = {
    "resnet8": "resnet20",
    "resnet14": "resnet56",
    "resnet44": "resnet110",
    "wrn_16_1": "wrn_40_2",
    "vgg11": "vgg13",
    "faster_rcnn_r10w16": "faster_rcnn_r18w48",
    "fcos_r10w16": "fcos_r18w48",
    "fcn_r10w16": "fcn_r18w48",
}

DENSE_RECIPE = Recipe(lr=0.02, epochs=12, batch_size=8, weight_decay=1e-4)
"""Of detectors and segmenters on small drawn scenes, trained from scratch."""
_DENSE = ("faster_rcnn_r10w16", "faster_rcnn_r18w48", "fcos_r10w16", "fcos_r18w48", "fcn_r10w16", "fcn_r18w48")


def recipe_for(student: str, teacher: str | None = None, otherwise: Recipe | None = None) -> Recipe:
    """How ``student`` is trained, alone or with ``teacher``; ``otherwise``, the usual recipe, where it is not known."""
    student = bare(student)
    if teacher is not None:
        for pair in PAIRS:
            if (pair.student, pair.teacher) == (student, bare(teacher)):
                return pair.recipe
    known = student in (*_GENTLE, *_DENSE, *_TEACHERS, *(pair.student for pair in PAIRS))
    return otherwise if otherwise is not None and not known else _recipe(student)


def bare(spec: str) -> str:
    """The name in ``"name(key=value)"``."""
    return spec.partition("(")[0].strip()


def _recipe(student: str) -> Recipe:
    if student in _DENSE:
        return DENSE_RECIPE
    return Recipe(lr=0.01) if student in _GENTLE else Recipe()


def usual_teacher(student: str) -> str:
    """The teacher that papers most often give to ``student``.

    Raises:
        UserError: none is known; the message says to name one.
    """
    student = bare(student)
    if student in _TEACHERS:
        return _TEACHERS[student]
    for pair in PAIRS:
        if pair.student == student:
            return pair.teacher
    known = sorted({*_TEACHERS, *(pair.student for pair in PAIRS)})
    raise UserError(f"no usual teacher is known for {student!r}: pass --teacher NAME (known for: {', '.join(known)})")


def find_pair(student: str, teacher: str) -> Pair:
    """The pair with its reported figures.

    Raises:
        UserError: no paper at hand reports it; the message lists those that are.
    """
    for pair in PAIRS:
        if (pair.student, pair.teacher) == (bare(student), bare(teacher)):
            return pair
    raise UserError(
        f"no reported figures for teacher {teacher!r} and student {student!r}; "
        f"there are some for: {', '.join(pair.label for pair in PAIRS)}"
    )


def _figures(table: str) -> dict[str, Mapping[str, float]]:
    """Of each pair's label, method to figure."""
    header, *rows = (line.split() for line in table.splitlines())
    return {
        label: MappingProxyType({row[0].replace("~", " "): float(row[at]) for row in rows if row[at] != "-"})
        for at, label in enumerate(header[1:], start=1)
    }


def _pairs(table: str, source: str, others: str) -> list[Pair]:
    beside = _figures(others)
    pairs = []
    for label, paper in _figures(table).items():
        teacher, student = label.split(">")
        pairs.append(Pair(student, teacher, _recipe(student), paper, source, beside[label]))
    return pairs


PAIRS: tuple[Pair, ...] = (
    *_pairs(_SAME_FAMILY, _SAME_FAMILY_SOURCE, _OTHERS_SAME_FAMILY),
    *_pairs(_CROSS_FAMILY, _CROSS_FAMILY_SOURCE, _OTHERS_CROSS_FAMILY),
)

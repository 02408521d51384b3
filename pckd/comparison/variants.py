"""What is compared: methods as they are, or an ablation's variants of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from pckd.terms import method_terms
from registry import (
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    METHODS,
    UserError,
    options_of,
    parse,
    split_specs,
)

ABLATIONS = ("pckd", "difficulty", "centers")
GRIDS = ("one", "full")

PARTS: Mapping[str, str] = {"feature": "feature", "center": "alpha", "contrast": "beta", "kd": "delta"}
"""The parts of PCKD's objective, and the option that is each one's weight. Preview is a part without a weight."""
PREVIEW = "preview"
UNSCHEDULED = "constant"
"""The scheduler that weights every sample alike."""
REFERENCES = ("kd", "vanilla")
"""Methods that stand beside every ablation."""
VIEWS = 4


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    label: str
    method: str
    """As ``pckd.distill`` takes it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``pckd.distill`` that are others in this variant."""


def method_variants(text: str) -> list[Variant]:
    """A variant for each method of ``--methods``: ``"kd,dkd(beta=2)+crd"``, or ``"all"``."""
    names = METHODS.names() if text == "all" else [method for method in split_specs(text, ",") if method]
    if not names:
        raise UserError(f"--methods {text!r} names none; give some with commas between, or all")
    for name in names:
        method_terms(name)
    return [Variant(name, name) for name in dict.fromkeys(names)]


def ablation_variants(
    kind: str, *, base: str = "pckd", grid: str = "one", epochs: int, views: int | None = None
) -> list[Variant]:
    """The variants of an ablation of ``base``; the references come first.

    Args:
        kind: of :data:`ABLATIONS`. grid: of :data:`GRIDS`, for the parts of PCKD: each one left out and each one alone,
            or every combination.
        epochs: of a run; what has one view is also trained longer, so that it computes as much.
        views: that all variants have; None: as many as the method asks for, and variants with one of them.
    """
    method_terms(base)
    references = [Variant(name, name) for name in REFERENCES]
    if kind == "difficulty":
        return references + list(_difficulties(base))
    if kind == "centers":
        return references + [Variant(f"centers-{rule}", base, {"centers": rule}) for rule in CENTER_RULES.names()]
    return references + _parts(base, grid) + (_views(base, epochs) if views is None else [])


def scheduled(variants: Sequence[Variant], scheduler: str | None) -> list[Variant]:
    """The same variants, with this scheduler where the method previews and the variant itself says nothing of it."""
    if scheduler is None:
        return list(variants)
    DIFFICULTY_SCHEDULERS.get(parse(scheduler)[0])
    options = {"scheduler": scheduler}
    return [replace(one, options=options | dict(one.options)) if _previews(one.method) else one for one in variants]


def _difficulties(base: str) -> Iterator[Variant]:
    # It looks at no metric: with each of them it is the same run.
    yield Variant(UNSCHEDULED, base, {"scheduler": UNSCHEDULED})
    for metric in DIFFICULTY_METRICS.names():
        for scheduler in DIFFICULTY_SCHEDULERS.names():
            if scheduler != UNSCHEDULED:
                yield Variant(f"{metric}-{scheduler}", base, {"difficulty": metric, "scheduler": scheduler})


def _parts(base: str, grid: str) -> list[Variant]:
    parts = _parts_of(base)
    everything = frozenset(parts)
    if grid == "full":
        chosen = [frozenset(some) for size in range(len(parts), 0, -1) for some in combinations(parts, size)]
    else:
        chosen = [everything, *(everything - {part} for part in parts), *(frozenset({part}) for part in parts)]
    variants: dict[frozenset[str], Variant] = {}
    for on in chosen:
        method = _without(base, everything - on - {PREVIEW})
        previews = _previews(method)
        # With nothing to preview it is the same run as without a preview; with nothing at all it is vanilla.
        kept = on if previews else on - {PREVIEW}
        if kept:
            options = {"scheduler": UNSCHEDULED} if previews and PREVIEW in everything - on else {}
            variants[kept] = Variant(_label(base, parts, kept), method, options)
    return list(variants.values())


def _parts_of(base: str) -> list[str]:
    """The parts that a method has."""
    if len(split_specs(base)) > 1:
        raise UserError(f"--base {base!r}: the parts of one method are switched off; give one, such as pckd")
    name, given = parse(base)
    weights = {**options_of(METHODS.get(name)), **given}
    parts = [part for part, option in PARTS.items() if weights.get(option)]
    if not parts:
        raise UserError(
            f"--base {base!r} has none of the parts that are switched off ({', '.join(PARTS.values())}); "
            "give pckd, pckd_without_kd, or another method with these options"
        )
    if _previews(base):
        parts.insert(-1 if parts[-1] == "kd" else len(parts), PREVIEW)
    return parts


def _without(base: str, off: Collection[str]) -> str:
    """The method with the weights of some parts 0."""
    if not off:
        return base
    name, options = parse(base)
    options.update({option: 0 for part, option in PARTS.items() if part in off})
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _label(base: str, parts: Sequence[str], on: Collection[str]) -> str:
    off = [part for part in parts if part not in on]
    if not off:
        return base
    if len(off) == 1:
        return f"{base}-without-{off[0]}"
    return "+".join(["ce", *(part for part in parts if part in on)])


def _previews(method: str) -> bool:
    return any(term.previewed and term.weight for term in method_terms(method))


def _views(base: str, epochs: int) -> list[Variant]:
    """One view at as many steps, and at as many images through the networks; KD with as many, too."""
    if not any(term.rows == "all" and term.weight for term in method_terms(base)):
        return []
    longer = VIEWS * epochs
    return [
        Variant(f"{base}-1-view", base, {"views": 1}),
        Variant(f"{base}-1-view-{VIEWS}x-epochs", base, {"views": 1, "epochs": longer}),
        Variant(f"kd-{VIEWS}x-epochs", "kd", {"epochs": longer}),
    ]

"""A picture of a step: stacked bars of what its time goes into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pckd.profiling.render import PARTS, part_name
from pckd.profiling.report import Comparison, Profile
from pckd.tables import duration
from registry import UserError

# Okabe and Ito's palette, told apart with any color vision; terms beyond its length get a hatch besides.
_COLORS = {
    "teacher": "#0072B2",
    "student": "#56B4E9",
    "backward": "#E69F00",
    "optimizer": "#999999",
    "preview": "#000000",
    "other": "#DDDDDD",
}
_TERMS = ("#009E73", "#CC79A7", "#F0E442", "#D55E00")
_HATCHES = ("", "///", "...", "xxx")


def plot(what: Profile | Comparison, path: str | Path) -> None:
    """Draw a bar for each method, stacked by part of the step, and below it the objective's parts enlarged.

    Args:
        path: of the PNG, or of what its name ends with.

    Raises:
        UserError: matplotlib is missing, nothing was timed, or the file cannot be written.
    """
    figures = require_matplotlib()
    profiles = what.profiles if isinstance(what, Comparison) else {_label(what): what}
    if any(part.seconds is None for profile in profiles.values() for part in profile.step.parts.values()):
        raise UserError("a picture of the step needs timings of its parts: use --rounds of at least 1, on cpu or cuda")
    parts = {label: _milliseconds(profile) for label, profile in profiles.items()}
    styles = _styles(profiles)
    figure = figures.Figure(figsize=(10, 2.6 + 0.9 * len(profiles) + 0.09 * len(styles)), layout="constrained")
    whole, objective = figure.subplots(2, 1)
    _stack(whole, parts, styles, labelled=len(profiles) == 1)
    terms = {part: style for part, style in styles.items() if part == "preview" or part not in PARTS}
    _stack(objective, parts, terms)
    s = next(iter(profiles.values())).settings
    teacher = f", teacher {s['teacher']}" if s["teacher"] else ""
    whole.set_title(
        f"One training step of {s['student']}{teacher}: {s['batch_size']} images, {s['device']} in {s['precision']}, "
        f"medians of {s['rounds']} rounds",
        loc="left",
        fontsize=11,
    )
    objective.set_title("Of it the objective's forward pass, enlarged", loc="left", fontsize=11)
    objective.set_xlabel("milliseconds a step")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}") from None


def _milliseconds(profile: Profile) -> dict[str, float]:
    """The parts' medians, scaled to add up to the median of the step, as medians need not do."""
    step = profile.step
    seconds = {part: cost.seconds or 0.0 for part, cost in step.parts.items()}
    return {part: 1e3 * value * (step.seconds or 0.0) / sum(seconds.values()) for part, value in seconds.items()}


def _stack(
    axes: Any, bars: Mapping[str, Mapping[str, float]], styles: Mapping[str, dict[str, Any]], labelled: bool = False
) -> None:
    """Horizontal bars with their sums at the end; ``labelled`` writes each part's value in the legend."""
    names = list(bars)
    lefts = dict.fromkeys(names, 0.0)
    for part, style in styles.items():
        widths = [bars[name].get(part, 0.0) for name in names]
        label = part_name(part) + (f": {duration(widths[0] / 1e3)}" if labelled else "")
        axes.barh(names, widths, left=list(lefts.values()), label=label, edgecolor="white", linewidth=0, **style)
        lefts = {name: lefts[name] + width for name, width in zip(names, widths, strict=True)}
    for position, total in enumerate(lefts.values()):
        text = duration(total / 1e3)
        axes.annotate(text, (total, position), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.12 * max(lefts.values()))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def require_matplotlib() -> Any:
    """The module ``matplotlib.figure``."""
    try:
        import matplotlib.figure as figures
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install 'pckd[plots]'") from None
    return figures


def _label(profile: Profile) -> str:
    method = profile.settings["method"]
    return method if isinstance(method, str) else "step"


def _styles(profiles: Mapping[str, Profile]) -> dict[str, dict[str, Any]]:
    """All parts in the order of the step, each with how it is drawn."""
    seen = list(dict.fromkeys(part for profile in profiles.values() for part in profile.step.parts))
    terms = [part for part in seen if part not in PARTS]
    before, after = ("teacher", "student", "preview"), ("backward", "optimizer", "other")
    styles: dict[str, dict[str, Any]] = {part: {"color": _COLORS[part]} for part in before if part in seen}
    for number, part in enumerate(terms):
        hatch = _HATCHES[number // len(_TERMS) % len(_HATCHES)]
        styles[part] = {"color": _TERMS[number % len(_TERMS)], "hatch": hatch}
    return {**styles, **{part: {"color": _COLORS[part]} for part in after if part in seen}}

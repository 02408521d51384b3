"""What a point of accuracy costs: the steps that were profiled beside the accuracies that runs have written down."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pckd.engine.record import RESULT
from pckd.profiling.report import BASES, Gain, Profile
from registry import UserError

NEEDED = ("student", "method", "last_top1", "dataset", "epochs")


def read_results(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The ``result.json`` of run folders, and of all run folders below a folder.

    Raises:
        UserError: there is none, or one is not a run's.
    """
    found: list[dict[str, Any]] = []
    for place in map(Path, places):
        paths = [place] if place.is_file() else sorted(place.rglob(RESULT))
        if not paths:
            raise UserError(f"--results {place}: no {RESULT} there")
        for path in paths:
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            missing = [key for key in NEEDED if not isinstance(result, dict) or key not in result]
            if missing:
                raise UserError(f"{path} is not a result of train_net.py: it has no {', '.join(missing)}")
            found.append(result)
    return found


def gains_of(
    profiles: Mapping[str, Profile], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[Gain]], list[str]]:
    """For every profiled method what its results gain over vanilla's and kd's, at which cost, and what was left out.

    Only results of the same student and teacher count, and only results of one setting (data set, epochs, images) are
    compared with each other; several runs of a method are averaged.
    """
    accuracies: dict[str, dict[str, list[float]]] = {}
    others = 0
    for result in results:
        label = next((label for label, profile in profiles.items() if _belongs(result, profile)), None)
        if label is None:
            others += 1
        else:
            accuracies.setdefault(_setting(result), {}).setdefault(label, []).append(float(result["last_top1"]))
    notes = [f"{others} of the results are of other networks or methods than those profiled"] if others else []
    gains: dict[str, list[Gain]] = {}
    for setting, found in accuracies.items():
        for label, runs in found.items():
            # Of the two bases kd is itself set against vanilla, vanilla against nothing.
            for base in BASES[: BASES.index(label)] if label in BASES else BASES:
                if base in found:
                    gain = _gain(setting, runs, base, fmean(found[base]), profiles[label], profiles[base])
                    gains.setdefault(label, []).append(gain)
    if results and not gains:
        notes.append("no results to compare: a method's run and one of vanilla or kd on the same pair and data")
    return gains, notes


def _belongs(result: Mapping[str, Any], profile: Profile) -> bool:
    settings = profile.settings
    return (
        result["student"] == settings["student"]
        and result["method"] == settings["method"]
        and result.get("teacher") in (None, settings["teacher"])
        and result.get("views", settings["views"]) == settings["views"]
    )


def _setting(result: Mapping[str, Any]) -> str:
    measured_on = result.get("measured_on", "test")
    held_out = "" if measured_on == "test" else f", on {measured_on}"
    images = f", {result['train_images']} images" if "train_images" in result else ""
    return f"{result['dataset']}, {result['epochs']} epochs{images}{held_out}"


def _gain(setting: str, runs: list[float], base: str, base_top1: float, own: Profile, other: Profile) -> Gain:
    points = fmean(runs) - base_top1

    def per_point(extra: float | None) -> float | None:
        return extra / points if extra is not None and points > 0 else None

    seconds = _minus(own.step.seconds, other.step.seconds)
    share = seconds / other.step.seconds if seconds is not None and other.step.seconds else None
    return Gain(
        setting=setting,
        runs=len(runs),
        top1=fmean(runs),
        base=base,
        points=points,
        seconds_per_point=per_point(seconds),
        macs_per_point=per_point(own.step.macs - other.step.macs),
        cost_per_point=per_point(share),
    )


def _minus(one: float | None, other: float | None) -> float | None:
    return one - other if one is not None and other is not None else None

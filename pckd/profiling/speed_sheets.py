"""What a benchmark of whole steps found, as tables.

``found`` is what ``tools/benchmark_speed.py`` writes for a pair of networks.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pckd.profiling.report import Timing
from pckd.profiling.sheets import part_name
from pckd.profiling.show import NONE, Sheet, amount, digits, duration, memory, share, spread

NAMES = {
    "data": "data (views)",
    "other": "rest of the step",
    "metrics": "metrics and logging",
    "whole": "whole step",
    "outside": "outside the two networks",
    "terms_backward": "- of the terms, by themselves",
    "student_backward": "- of the student, by itself",
}


def ranged(values: Sequence[float]) -> str:
    """``4.20 x (4.10 to 4.31)``: median and range."""
    middle, low, high = (digits(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} x ({low} to {high})"


def pair_sheets(found: Mapping[str, Any], name: str, setting: str) -> list[Sheet]:
    """The cases, the parts of the default step, and memory, where they were measured.

    Args:
        name: of the pair. setting: what a step is, and where it was measured.
    """
    sheets = [cases_sheet(found, f"{name}: {setting}")]
    if "stages" in found:
        sheets.append(stages_sheet(found, f"{name}: where a default step goes"))
    if "memory" in found:
        sheets.append(memory_sheet(found["memory"], f"{name}: memory of a step"))
    return sheets


def cases_sheet(found: Mapping[str, Any], title: str) -> Sheet:
    header = ["case", "networks in", "step, median (quartiles)", "images/s", "plain / case, median (range)"]
    header += ["of the peak", "ready after", "first step", "start in all"]
    rows = []
    for case, one in found["cases"].items():
        row = [case, one["precision"], spread(_timing(one["step"])), f"{one['images_per_second']:.0f}"]
        row += [ranged(one["faster"]) if "faster" in one else NONE, share(one["of_peak"])]
        row += [duration(one[f"{what}_seconds"]) for what in ("ready", "first_step", "start")]
        rows.append(row)
    notes = [f"{case}: {one['what']}." for case, one in found["cases"].items()]
    peaks = ", ".join(f"{digits(flops / 1e9)} GFLOP/s in {kind}" for kind, flops in found["peak_flops"].items())
    macs = found["macs"]
    notes += [
        "A step is taken with its data. The cases take turns in one process, one at a time; the ratio is taken round "
        "by round.",
        f"The peak is the best matrix product of {found['product']} x {found['product']} in the same rounds: {peaks}. "
        f"A step has {amount(sum(macs.values()))} multiply-adds, {amount(macs['teacher'])} of them the teacher's, "
        "which cache leaves out; each is two operations.",
        "Ready after: from the call to the first step. Start in all: that, and what the first steps take more than "
        "later ones. A case that compiles the same networks as one above it compiles less.",
    ]
    if "compiled" in found:
        does = "compiles" if found["compiled"] else "does not compile"
        notes.append(f"In a run of {found['run']:,} steps, default {does} the networks here.")
    if "compiling" in found:
        steps = found["compiling"]["repaid_after_steps"]
        repaid = "no faster" if steps is None else f"repaid after {steps:.0f} steps"
        notes.append(
            f"Compiling takes {duration(found['compiling']['seconds'])} (the start of default less that of uncompiled) "
            f"and is {repaid}."
        )
    return Sheet(title, header, rows, notes)


def stages_sheet(found: Mapping[str, Any], title: str) -> Sheet:
    stages, default = found["stages"], found["cases"]["default"]
    last = ("whole", "outside")
    inside = ("terms_backward", "student_backward")
    order = [part for part in stages if part not in (*last, *inside)]
    after = order.index("backward") + 1
    order[after:after] = inside
    rows = []
    for part in (*order, *last):
        figures = stages[part]
        work = [amount(figures["macs"]), share(figures["of_peak"])] if figures["macs"] else ["", ""]
        title_of_part = NAMES.get(part) or part_name(part)
        rows.append([title_of_part, spread(_timing(figures)), share(figures["share"]), *work])
    notes = [
        f"From turns of default that are watched, in the same rounds; a step that is not takes "
        f"{spread(_timing(default['step']))}. Backward is of everything, with the look for values that are not finite. "
        "Below it the objective's backward pass down to the networks' outputs, and the student's with the gradients "
        "that come of it, each repeated by itself: their sum need not be the whole.",
        "Outside the two networks is the whole step less the teacher, the student's forward pass, and what the "
        "backward pass takes more than that of the terms by themselves.",
        f"Of the peak: of the matrix product's in {default['precision']}. Terms compute in float32 what must be exact.",
    ]
    return Sheet(title, ["part", "time", "share", "multiply-adds", "of the peak"], rows, notes)


def memory_sheet(found: Mapping[str, Any], title: str) -> Sheet:
    cases = list(next(iter(found.values())))
    header = ["images a step"]
    for case in cases:
        header += [f"{case}: before", "steps add", "peak", "peak of the first steps"]
    rows = []
    for size, by_case in found.items():
        row = [size]
        for one in by_case.values():
            row += [memory(one["before"]), memory(one["later"] - one["before"])]
            row += [memory(one["later"]), memory(one["first"])]
        rows.append(row)
    notes = [
        "Each in a process of its own. On CUDA of the device's tensors; elsewhere resident memory of the process, "
        "without plain's two workers. Before: all is there, and no step is taken. The first steps: those in which "
        "networks are compiled.",
    ]
    return Sheet(title, header, rows, notes)


def overview(pairs: Mapping[str, Any], setting: str) -> Sheet:
    """A row for each pair: every case's step, and how much faster than plain it is."""
    cases = list(next(iter(pairs.values()))["cases"])
    header = ["teacher > student"]
    for case in cases:
        header += [case] if case == "plain" or "plain" not in cases else [case, f"plain / {case}"]
    rows = []
    for label, found in pairs.items():
        row = [label]
        for case in cases:
            one = found["cases"][case]
            row.append(duration(one["step"]["seconds"]))
            if case != "plain" and "faster" in one:
                row.append(f"{digits(statistics.median(one['faster']))} x")
        rows.append(row)
    return Sheet(f"A step by case, medians: {setting}", header, rows)


def _timing(figures: Mapping[str, Any]) -> Timing:
    return Timing(**{name: figures[name] for name in ("seconds", "seconds_low", "seconds_high")})

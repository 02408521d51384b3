"""What a profile and a comparison say, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from pckd.profiling.report import BASES, FLOP, STEP, Comparison, NetworkCost, Profile, Timing, over
from pckd.tables import NONE, Table, amount, duration, markdown, memory, plural, ratio, share, spread, times


def render(what: Profile | Comparison) -> str:
    """All tables of a profile or a comparison in Markdown."""
    return markdown(profile_tables(what) if isinstance(what, Profile) else comparison_tables(what))


def took(timing: Timing) -> str:
    """Median and quartiles: ``12.3 ms (12.1 to 12.9)``."""
    return spread(timing.seconds, timing.seconds_low, timing.seconds_high)


def profile_tables(profile: Profile) -> list[Table]:
    """Networks, their modules, the terms, and the step."""
    modules = [_modules(network) for network in profile.networks if len(network.modules) > 1]
    return [_networks(profile), *modules, _terms(profile), _step(profile)]


def heading(profile: Profile, method: bool = True) -> str:
    """What was profiled, and where."""
    s = profile.settings
    what = f"{s['student']} by {_name(s['method'])}" if method else s["student"]
    teacher = f", teacher {_name(s['teacher'])}" if s["teacher"] else ""
    views = f" x {plural(s['views'], 'view')}" if method else ""
    strong = " and a strong one" if method and s["strong_view"] else ""
    return f"{what}{teacher}: {plural(s['batch_size'], 'image')}{views}{strong} of {_images(s)}; {where(s)}"


def _images(settings: Mapping[str, Any]) -> str:
    height, width = settings["image_size"]
    return f"{settings['in_channels']} x {height} x {width}, {settings['num_classes']} classes, random weights"


def where(settings: Mapping[str, Any]) -> str:
    """The device, and how often something was timed."""
    s = settings
    threads = f", {plural(s['threads'], 'thread')}" if s["device"].startswith("cpu") else ""
    rounds = f"medians of {plural(s['rounds'], 'round')} (quartiles in parentheses)" if s["rounds"] else "nothing timed"
    return f"{s['device']} ({s['device_name']}{threads}) in {s['precision']}, torch {s['torch']}; {rounds}"


def _name(method: Any) -> str:
    return method if isinstance(method, str) else " + ".join(map(str, method))


def _networks(profile: Profile) -> Table:
    student, teacher = profile.student, profile.teacher
    sizes = list(student.latency)
    header = ["network", "parameters", "multiply-adds", "activations"]
    header += [f"latency, {plural(size, 'image')}" for size in sizes]
    header += [f"peak memory, {plural(sizes[-1], 'image')}"]

    def row(network: NetworkCost, role: str) -> list[str]:
        counts = [amount(v) for v in (network.parameters, network.macs, network.activations)]
        times = [took(network.latency[size]) for size in sizes]
        return [f"{network.name} ({role})", *counts, *times, memory(network.peak_bytes)]

    rows = [row(student, "student")]
    rows += [row(own, f"teacher {at}") for at, own in enumerate(profile.teachers, 1)]
    if teacher is not None:
        rows.append(row(teacher, "all teachers" if profile.teachers else "teacher"))
        r = profile.ratio
        times = [ratio(over(student.latency[size].seconds, teacher.latency[size].seconds)) for size in sizes]
        counts = [ratio(r[key]) for key in ("parameters", "macs", "activations")]
        rows.append(["student / teacher", *counts, *times, ratio(r["peak_bytes"])])
    notes = [FLOP, f"Peak memory is {profile.step.peak_how}."]
    for network in profile.networks:
        notes += _operators(network.name, network.uncounted, network.left_out)
    return Table(heading(profile, method=False), header, rows, [*profile.notes, *notes])


def _operators(name: str, uncounted: Mapping[str, int], left_out: Mapping[str, int] | None = None) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"{name}: element-wise or data movement, not in its multiply-adds: {_calls(left_out)}.")
    if uncounted:
        notes.append(f"{name}: NOT COUNTED, cost unknown: {_calls(uncounted)}.")
    return notes


def _calls(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{name.removeprefix('aten::')} ({plural(count, 'call')})" for name, count in operators.items())


def _modules(network: NetworkCost) -> Table:
    rows = [
        [m.name, m.type, amount(m.parameters), amount(m.macs), amount(m.activations)]
        for m in network.modules
        if m.parameters or m.macs or m.activations or network.error
    ]
    header = ["module", "type", "parameters", "multiply-adds", "activations"]
    return Table(f"Modules of {network.name}, one image (those that cost nothing are left out)", header, rows)


_SUMMED = ("parameters", "macs", "macs_backward", "elementwise", "bytes")


def _terms(profile: Profile) -> Table:
    header = ["term", "parameters", "multiply-adds forward", "backward", "element-wise", "held for backward"]
    header += ["time, forward and backward"]
    rows, notes = [], [STEP]
    for label, term in profile.terms.items():
        counts = [amount(v) for v in (term.parameters, term.macs, term.macs_backward, term.elementwise)]
        rows.append([label, *counts, memory(term.bytes), took(term)])
        for name, part in term.projections.items():
            counts = [amount(v) for v in (part.parameters, part.macs, part.macs_backward)]
            rows.append([f"- its {name}", *counts, "", "", ""])
        notes += _operators(label, term.uncounted)
        if term.buffer_bytes:
            notes.append(f"{label} keeps buffers of {memory(term.buffer_bytes)}.")
        if term.note:
            notes.append(f"{label} {term.note}.")
    sums = [sum(getattr(term, key) for term in profile.terms.values()) for key in _SUMMED]
    rows.append(["all terms", *map(amount, sums[:-1]), memory(sums[-1]), took(profile.objective)])
    notes.append(
        "A term's time is that of its forward pass and of the backward pass of its operators, down to the networks' "
        "outputs, as torch.profiler records them; of all terms together also difficulty and weights."
    )
    return Table(f"Loss terms of {_name(profile.settings['method'])}, one step", header, rows, notes)


PARTS = {
    "teacher": "teacher forward",
    "student": "student forward",
    "preview": "difficulty and weights",
    "backward": "backward",
    "optimizer": "optimizer",
    "other": "rest",
}


def part_name(part: str) -> str:
    return PARTS.get(part) or f"{part.removeprefix('term:')} forward"


def _step(profile: Profile) -> Table:
    step = profile.step
    header = ["part of the step", "multiply-adds", "element-wise", "holds", "time", "share"]
    rows = []
    for name, part in step.parts.items():
        costs = [amount(part.macs), amount(part.elementwise), memory(part.bytes) if part.bytes is not None else ""]
        rows.append([part_name(name), *costs, took(part), share(over(part.seconds, step.seconds))])
    rows.append(["whole step", amount(step.macs), amount(step.elementwise), "", took(step), ""])
    notes = [
        f"Peak memory of the step {memory(step.peak_bytes)}, {step.peak_how}.",
        f"{amount(step.parameters)} trained parameters; {step.rows} rows a step"
        + (f"; {step.images_per_second:.0f} images/s without loading." if step.images_per_second else "."),
        "The student holds its activations for the backward pass, the optimizer its momentum.",
        *_operators("the step", step.uncounted),
    ]
    return Table(heading(profile), header, rows, notes)


def short(profile: Profile) -> str:
    """Networks, step and terms in a line each."""
    student, teacher, step = profile.student, profile.teacher, profile.step

    def network(cost: NetworkCost) -> str:
        return f"{cost.name} {amount(cost.parameters)} parameters, {amount(cost.macs)} multiply-adds an image"

    lines = [f"profile: {heading(profile)}", f"  student {network(student)}"]
    lines += [f"  teacher {at} {network(own)}" for at, own in enumerate(profile.teachers, 1)]
    if teacher is not None:
        bigger = over(teacher.macs, student.macs)
        lines.append(f"  teacher {network(teacher)}" + (f" ({ratio(bigger)} the student's)" if bigger else ""))
    parts = ", ".join(
        f"{part_name(name)} {share(over(part.seconds, step.seconds))}" for name, part in step.parts.items()
    )
    lines.append(f"  step {took(step)}: {parts}")
    lines.append(f"  step {amount(step.macs)} multiply-adds, peak memory {memory(step.peak_bytes)}")
    for label, term in profile.terms.items():
        lines.append(
            f"  {label}: {amount(term.parameters)} parameters, {amount(term.macs)} multiply-adds forward and "
            f"{amount(term.macs_backward)} backward, holds {memory(term.bytes)}, {took(term)}"
        )
    uncounted = {**student.uncounted, **(teacher.uncounted if teacher else {}), **step.uncounted}
    lines += [f"  {note}" for note in (*profile.notes, *_operators("this step", uncounted))]
    return "\n".join(lines)


# Comparisons


def comparison_tables(comparison: Comparison) -> list[Table]:
    """The networks, a step by method, and its parts by method."""
    first = next(iter(comparison.profiles.values()))
    return [_networks(first), _methods(comparison), _parts(comparison)]


def _methods(comparison: Comparison) -> Table:
    bases = [base for base in BASES if base in comparison.profiles]
    header = ["method", "views", "time", "multiply-adds", "peak memory", "trained parameters", "terms hold"]
    header += [f"{what} / {base}" for base in bases for what in ("time", "multiply-adds", "memory")]
    rows = []
    for label, profile in comparison.profiles.items():
        step = profile.step
        held = sum(term.bytes for term in profile.terms.values())
        row = [label, str(profile.settings["views"]), took(step), amount(step.macs), memory(step.peak_bytes)]
        row += [amount(step.parameters), memory(held)]
        for base in bases:
            relative = comparison.relative(label, base)
            row += [ratio(relative[key]) for key in ("seconds", "macs", "peak_bytes")]
        rows.append(row)
    first = next(iter(comparison.profiles.values()))
    notes = [STEP, sentence([comparison], "kd")] if "kd" in comparison.profiles else [STEP]
    notes += [note for label, p in comparison.profiles.items() for note in _operators(label, p.step.uncounted)]
    return Table(f"A step of training by method: {heading(first, method=False)}", header, rows, notes)


def _parts(comparison: Comparison) -> Table:
    profiles = comparison.profiles
    seen = {part: None for profile in profiles.values() for part in profile.step.parts}
    order = sorted(seen, key=lambda part: list(PARTS).index(part) if part in PARTS else 2.5)
    rows = []
    for part in order:
        parts = [profile.step.parts.get(part) for profile in profiles.values()]
        rows.append([part_name(part), *(duration(p.seconds) if p is not None else "" for p in parts)])
    return Table("Where a step's time goes", ["part of the step", *profiles], rows)


def pairs_tables(pairs: Mapping[str, Comparison]) -> list[Table]:
    """Every pair in a row: networks, a step with KD, and the other methods as multiples of it."""
    first = next(iter(pairs.values()))
    profiles = first.profiles
    others = [label for label in profiles if label != "kd"]
    header = ["teacher > student", "teacher", "student"]
    header += ["kd: time", "multiply-adds", "memory"]
    header += [text for label in others for text in (f"{label} / kd: time", "multiply-adds", "memory")]
    rows = []
    for pair, comparison in pairs.items():
        kd = comparison.profiles["kd"]
        networks = [
            f"{amount(n.parameters)} parameters, {amount(n.macs)} multiply-adds" if n else NONE
            for n in (kd.teacher, kd.student)
        ]
        row = [pair.replace(">", " > "), *networks]
        row += [took(kd.step), amount(kd.step.macs), memory(kd.step.peak_bytes)]
        for label in others:
            relative = comparison.relative(label, "kd")
            row += [ratio(relative[key]) for key in ("seconds", "macs", "peak_bytes")]
        rows.append(row)
    s = profiles["kd"].settings
    views = ", ".join(f"{label} {profile.settings['views']}" for label, profile in profiles.items())
    title = f"A step of {plural(s['batch_size'], 'image')} of {_images(s)}, views: {views}; {where(s)}"
    notes = [sentence(pairs.values(), "kd"), FLOP, STEP, f"Memory is the step's peak, {profiles['kd'].step.peak_how}."]
    notes += [note for comparison in pairs.values() for p in comparison.profiles.values() for note in p.notes]
    return [Table(title, header, rows, list(dict.fromkeys(notes)))]


def sentence(comparisons: Iterable[Comparison], base: str) -> str:
    """What each method costs over ``base``, as the median over pairs and its range."""
    comparisons = list(comparisons)
    texts = []
    for label, profile in comparisons[0].profiles.items():
        if label in BASES:
            continue
        costs = []
        for key, what in (("macs", "multiply-adds"), ("seconds", "time"), ("peak_bytes", "peak memory")):
            values = [c.relative(label, base)[key] for c in comparisons]
            known = [value for value in values if value is not None]
            if known:
                middle, low, high = (times(v) for v in (median(known), min(known), max(known)))
                costs.append(f"{middle} x the {what}" + (f" ({low} to {high})" if len(known) > 1 else ""))
        views = profile.settings["views"]
        views_text = f"{views} views" if views > 1 else "one view"
        texts.append(f"{label.partition('@')[0]} with {views_text} takes {', '.join(costs)} of {base}")
    over_pairs = f" (median and range over {len(comparisons)} pairs)" if len(comparisons) > 1 else ""
    return "; ".join(texts) + over_pairs + "." if texts else ""

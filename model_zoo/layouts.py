"""Where a network's weights are in a checkpoint of any program: under which entries, and behind which prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["NESTED", "Fit", "find_fits"]

# Where the weights are in the files of this library, of other distillation libraries, and of common trainers.
NESTED = ("model", "state_dict", "model_state_dict", "model_state", "student", "network", "net")
# Of entries with averages of the weights over the training.
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:$|[._])", re.IGNORECASE)
# Parts of names that wrappers put in: data parallelism, torch.compile, sharding and recomputation.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What profilers and averages count, between the weights.
COUNTERS = {"total_ops", "total_params", "n_averaged"}
DEEPEST = 3
"""Entries within entries that are looked into."""


class Fit(NamedTuple):
    """Weights of a file, as a network would take them."""

    name: str
    """The entries that lead to them and their prefix, with dots between; empty where they are the file itself."""
    state: dict[str, Tensor]
    """By the network's names; what it does not have is under the file's own, without the prefix."""
    score: int
    """How many of the network's tensors are there, by name and shape; counts of batches are not counted."""
    ignored: list[str]
    """Names of what lies beside them, and of counters."""


def find_fits(content: Mapping[str, Any], own: Mapping[str, Tensor]) -> list[Fit]:
    """All that a file holds that could be the weights of a network; what fits best, and is usual, comes first.

    Args:
        own: the network's state dict.
    """
    fits = []
    for where, entries in _states(content, "", DEEPEST):
        beside = [str(key) for key in content if where and key not in ("meta", where.partition(".")[0])]
        found = list(_fits(where, entries, own))
        # A prefix by which only some names fit is of no interest beside one by which most do.
        most = max(fit.score for fit in found)
        fits += [fit._replace(ignored=[*beside, *fit.ignored]) for fit in found if 2 * fit.score >= most]
    most = max((fit.score for fit in fits), default=0)
    # Where nothing fits, what a message is about is the largest.
    return sorted(fits, key=lambda fit: (-fit.score, _order(fit.name)) if most else (-len(fit.state), (False, [])))


def _order(name: str) -> tuple[bool, list[int]]:
    """Plain weights come before averaged ones, and usual names before others."""
    usual = [NESTED.index(part) if part in NESTED else len(NESTED) for part in name.split(".") if part]
    return bool(AVERAGED.search(name)), usual


def _states(content: Mapping[Any, Any], name: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mappings with tensors in them, by the names of the entries that lead to them."""
    entries = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(_is_tensor(value) for value in entries.values()):
        yield name, entries
    for key, value in entries.items():
        if isinstance(value, Mapping) and depth:
            yield from _states(value, f"{name}.{key}" if name else key, depth - 1)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _plain(names: Mapping[str, Any]) -> dict[str, str]:
    """Names without the parts that wrappers put in, and what they were."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) and "" not in plain else {name: name for name in names}


def _common(names: Mapping[str, Any]) -> str:
    """The parts that all names begin with, and a dot; empty where there are none."""
    first, last = min(names, default=""), max(names, default="")
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[: first.rfind(".", 0, same) + 1]


def _fits(where: str, entries: Mapping[str, Any], own: Mapping[str, Tensor]) -> Iterator[Fit]:
    """The weights under one entry, behind each prefix that makes any of them fit."""
    tensors = {key: torch.as_tensor(value) for key, value in entries.items() if _is_tensor(value)}
    theirs, ours = _plain(tensors), _plain(own)
    # A network may hold the one that was saved: then all of its names begin alike.
    common = _common(ours)
    bases = [common[:end] for end in range(len(common) + 1) if not end or common[end - 1] == "."]
    found: dict[tuple[str, str], dict[str, str]] = {}
    # A student of this library that answers with the head of a loss: alone it is not what was saved.
    headed = {name.partition(".")[0] for name in theirs} == {"network", "head"}
    for name in theirs:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name) if not headed)):
            for base in bases:
                if base + name[start:] in ours and not (base and name[:start].endswith(base)):
                    found.setdefault((name[:start], base), {})[name] = base + name[start:]
    if not found:
        found[_common(theirs), ""] = {}
    for (prefix, base), names in found.items():
        inside = {name: names.get(name, name[len(prefix) :]) for name in theirs if name.startswith(prefix)}
        missing = {name for name in ours if name not in inside.values()}
        for (_, below), others in found.items():
            # The classifier may lie elsewhere; a second network, which has all the names, is not looked at.
            if below == base and missing.issuperset(others.values()) and not inside.keys() & others.keys():
                inside |= others
                missing -= set(others.values())
        outside = [name for name in theirs if name not in inside]
        counters = [name for name in inside if name.rpartition(".")[2] in COUNTERS and inside[name] not in ours]
        state = {ours.get(mine, mine): tensors[theirs[name]] for name, mine in inside.items() if name not in counters}
        beside = [key for key in entries if key not in tensors and (where or key != "meta")]
        ignored = [*beside, *(theirs[name] for name in (*outside, *counters))]
        fitting = sum(
            key in own and own[key].shape == value.shape and not key.endswith("num_batches_tracked")
            for key, value in state.items()
        )
        yield Fit(".".join(part for part in (where, prefix.rstrip(".")) if part), state, fitting, ignored)

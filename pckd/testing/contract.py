"""How a check speaks: a plug-in, the clauses of its contract, and the error that names the one that broke."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pckd.objective import says
from registry import Registry, Term, build, parse

SEED = 0
LONGEST_REASON = 300


class ContractError(AssertionError):
    """A plug-in breaks its contract; one line: whose, which clause, what was seen, what is expected.

    An error that the plug-in itself raised is the cause (``__cause__``).
    """

    plugin: str = ""
    """Its kind and name."""
    clause: str = ""


class Expect(Protocol):
    """Raises a ContractError unless ``ok``."""

    def __call__(self, ok: object, seen: str, expected: str) -> None: ...


class Contract:
    """One plug-in under examination.

    Args:
        kind: what messages call it: "loss", "scheduler", ...
        registry: where a name is looked up.
        plugin: a registered name, with options or without, or the function or class itself.

    Raises:
        UserError: there is no such name, or the text cannot be read: that is the caller's mistake.
    """

    def __init__(self, kind: str, registry: Registry, plugin: str | Callable[..., Any]) -> None:
        self.registry = registry
        self.plugin = plugin
        self._registered = registry.get(parse(plugin)[0]) if isinstance(plugin, str) else registry.adapt(plugin)
        self.label = f"{kind} {plugin if isinstance(plugin, str) else _name_of(plugin)}"
        self.case = ""
        """On what it is tried; messages end with it."""

    def make(self, *args: Any, **options: Any) -> Any:
        """The plug-in: what its factory makes of these arguments, or the function itself."""
        if isinstance(self.plugin, str):
            return build(self.registry, self.plugin, *args, **options)
        return self._registered if self.registry.kind == "function" else self._registered(*args, **options)

    def says(self, fact: str, default: bool = True) -> bool:
        """What a loss's class says of itself, as the objective reads it."""
        return says(Term(self.plugin), fact, default)

    def needs(self) -> set[str]:
        """What a loss needs that not every task or network has."""
        return set(getattr(self._registered, "needs", ()))

    @contextmanager
    def clause(self, clause: str) -> Iterator[Expect]:
        """Inside, what the plug-in raises breaks ``clause``; yields how to say what else would."""
        where = f" ({self.case})" if self.case else ""

        def broken(seen: str, expected: str) -> ContractError:
            error = ContractError(f"{self.label}: clause {clause!r}: {seen}, expected {expected}{where}")
            error.plugin, error.clause = self.label, clause
            return error

        def expect(ok: object, seen: str, expected: str) -> None:
            if not ok:
                raise broken(seen, expected)

        try:
            yield expect
        except ContractError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:LONGEST_REASON]
            seen = f"raised {type(error).__name__}" + (f": {reason}" if reason else "")
            raise broken(seen, "no error") from error

    def holds(self, clause: str, ok: object, seen: str, expected: str) -> None:
        """Raise the error of ``clause`` unless ``ok``."""
        with self.clause(clause) as expect:
            expect(ok, seen, expected)

    def vector(self, call: Callable[[], Any], shape: torch.Size) -> Tensor:
        """What ``call`` returns: finite float32 numbers of this shape."""
        with self.clause("runs") as expect:
            values: Tensor = call()
            expect(isinstance(values, Tensor), f"returned {type(values).__name__}", "a tensor")
        self.holds("shape", values.shape == shape, f"returned shape {tuple(values.shape)}", f"{tuple(shape)}")
        self.holds("float32", values.dtype == torch.float32, f"returned {values.dtype}", "torch.float32")
        self.holds("finite", values.isfinite().all(), f"returned {values.tolist()}", "finite values")
        return values

    @contextmanager
    def trial(self, case: object = "") -> Iterator[None]:
        """Inside, random numbers start from one seed, and the caller's generator is left as it was."""
        self.case = str(case)
        with torch.random.fork_rng(devices=[]):
            seed_cpu(SEED)
            yield
        self.case = ""


def seed_cpu(number: int) -> None:
    """Like ``torch.manual_seed``, which would also seed the accelerators, whose generators are the caller's."""
    torch.random.default_generator.manual_seed(number)


def _name_of(plugin: object) -> str:
    while isinstance(plugin, functools.partial):
        plugin = plugin.func
    if isinstance(plugin, nn.Module):
        return type(plugin).__name__
    return str(getattr(plugin, "__name__", type(plugin).__name__))

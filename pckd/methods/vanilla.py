from __future__ import annotations

from registry import METHODS, Term


@METHODS.register("vanilla")
def vanilla(ce: float = 1.0) -> list[Term]:
    """Cross entropy alone: the student without a teacher."""
    return [Term("cross_entropy", ce)]

"""Errors that are the user's to mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

__all__ = [
    "BadImages",
    "NameTaken",
    "NotApplicable",
    "PluginError",
    "UnknownName",
    "UserError",
    "ask",
    "closest",
    "is_out_of_memory",
    "place_of",
    "raise_named",
]

T = TypeVar("T")

# Whose lines say nothing about a plug-in: what calls it, and what it calls.
_PASSED_THROUGH = (Path(__file__).parent, Path(torch.__file__).parent)
_LONGEST_REASON = 300
_ONE_ROW = "more than 1 value per channel"


class UserError(ValueError):
    """Bad input. Tools print its one line on standard error and exit with code 2."""


class BadImages(UserError):
    """Images that cannot be read, as in a damaged file. A data set raises it; ``on_bad_image`` says what becomes of it.

    Args:
        reason, more: one for each image, with its place: ``"cats/3.png: not a readable image (the file is empty)"``.
    """

    def __init__(self, reason: str, *more: str) -> None:
        super().__init__(reason, *more)
        self.reasons = (reason, *more)

    def __str__(self) -> str:
        remedy = "repair or remove {0}, or leave {0} out with on_bad_image=skip"
        if len(self.reasons) == 1:
            return f"{self.reasons[0]}; {remedy.format('it')}"
        return f"{len(self.reasons):,} images cannot be read: {self.listed()}; {remedy.format('them')}"

    def listed(self, most: int = 5) -> str:
        """The first reasons, and how many more there are."""
        more = len(self.reasons) - most
        return "; ".join(self.reasons[:most]) + (f"; and {more:,} more" if more > 0 else "")


class UnknownName(UserError, KeyError):
    """A name that is in no registry. Also a KeyError, as ``fvcore.common.registry`` raises."""

    # KeyError prints the repr of its argument; a sentence should print as a sentence.
    __str__ = Exception.__str__


class NameTaken(UserError):
    """A name registered twice, with both places."""


class PluginError(UserError):
    """A plug-in that cannot be loaded, or that failed when it was asked, with its line and the reason."""


class NotApplicable(UserError):
    """Raised by a loss that cannot work for this pair of networks or this data; says what would work."""


def closest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """``"; did you mean 'kd'?"``; ``"."`` where nothing known is close. Capitals do not count."""
    lowered = {other.lower(): other for other in known}
    close = [repr(lowered[other]) for other in get_close_matches(name.lower(), lowered, n, cutoff)]
    return f"; did you mean {' or '.join(close)}?" if close else "."


def ask(what: str, function: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """``function(*args, **options)``; where it fails, the error names it.

    Args:
        what: for messages: ``"scheduler 'preview'"``.

    Raises:
        UserError: as it was raised.
        PluginError: any other error of the function, which is the cause (``__cause__``). What is not about the function
            passes: an interrupt, and memory that is used up.
    """
    try:
        return function(*args, **options)
    except Exception as error:
        raise_named(what, error)


def raise_named(what: str, error: Exception) -> NoReturn:
    """Raise what :func:`ask` raises for an error of ``what``."""
    try:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise error
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        where = place_of(error)
        remedy = "; use a batch of 2 or more images" if _ONE_ROW in reason else ""
        raise PluginError(
            f"{what} raised {type(error).__name__}{reason and f': {reason}'}{where and f' ({where})'}{remedy}"
        ) from error
    finally:
        # This frame is in the error's traceback: with the error in it, all that the frames hold would stay in memory.
        del error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of an accelerator, is used up."""
    # What PyTorch raises where the machine has none left is a plain RuntimeError.
    plain = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return plain or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def place_of(error: BaseException) -> str:
    """Where a plug-in failed, as ``line 7 of mine.py``: the deepest line of its own; ``""`` where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        passed_through = "importlib" in frame.filename or any(folder in path.parents for folder in _PASSED_THROUGH)
        if path.suffix == ".py" and not passed_through:
            return f"line {frame.lineno} of {path.name}"
    return ""

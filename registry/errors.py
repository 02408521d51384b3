"""Errors that are the user's to mend: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["NameTaken", "NotApplicable", "PluginError", "UnknownName", "UserError"]


class UserError(ValueError):
    """Bad input. Tools print its one line on standard error and exit with code 2."""


class UnknownName(UserError, KeyError):
    """A name that is in no registry. Also a KeyError, as ``fvcore.common.registry`` raises."""

    # KeyError prints the repr of its argument; a sentence should print as a sentence.
    __str__ = Exception.__str__


class NameTaken(UserError):
    """A name registered twice, with both places."""


class PluginError(UserError):
    """A plug-in that cannot be loaded, with its file and the reason."""


class NotApplicable(UserError):
    """Raised by a loss that cannot work for this pair of networks or this data; says what would work."""

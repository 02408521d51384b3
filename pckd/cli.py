"""What the command lines in tools/ share: parser, plug-ins, lists of names, and errors of one line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import registry
from pckd.display import print_registry
from pckd.engine.guard import EndOnSignals, Interrupted, dead_readers_named
from registry import REGISTRIES, UserError, load_plugin
from registry.errors import is_out_of_memory

LISTS = {
    "backbones": registry.BACKBONES,
    "losses": registry.LOSSES,
    "methods": registry.METHODS,
    "difficulty": registry.DIFFICULTY_METRICS,
    "schedulers": registry.DIFFICULTY_SCHEDULERS,
    "centers": registry.CENTER_RULES,
    "datasets": registry.DATASETS,
}
assert len(LISTS) == len(REGISTRIES)


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of an option that has one and does not say so itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, True, []) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Knows the options of every tool, and reports bad usage in one line, like every other bad input."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=f"{description} Every NAME may carry options: 'preview(growth=1.01)'.",
            epilog=f"See --list {{{','.join(LISTS)}}} for the names.",
            formatter_class=Formatter,
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see --help)\n")

    def add_common(self) -> None:
        """--device, --precision, --plugin, --list, --debug."""
        add = self.add_argument
        add("--device", help="cpu, cuda, cuda:1, mps, ... (default: the accelerator, if there is one)")
        add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the networks")
        add("--plugin", action="append", default=[], metavar="FILE|MODULE", help="load a plug-in; repeatable")
        add("--list", choices=sorted(LISTS), help="print the known names and exit")
        add("--debug", action="store_true", help="show the traceback of an error")


def run_tool(
    parser: Parser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    *,
    interrupted: Callable[[argparse.Namespace], str] = lambda args: "",
) -> int:
    """Parse, load the plug-ins, and run; the exit code.

    Args:
        run: does the work of the parsed arguments. interrupted: a hint to add where the user interrupts it.

    Returns:
        what ``run`` returns; 2 after a :class:`registry.UserError`, or an error of the system, printed in one line;
        130 when interrupted, 143 when terminated.
    """
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_ToOutput()])
    try:
        with EndOnSignals(), dead_readers_named():
            for plugin in args.plugin:
                load_plugin(plugin)
            if args.list:
                print_registry(LISTS[args.list])
                return 0
            return run(args)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if args.debug or not (text := _reason(error)):
            raise
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{parser.prog}: {str(error) or 'interrupted'}{interrupted(args)}", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 130


class _ToOutput(logging.StreamHandler):
    """Writes to standard output as it is when something is said: a progress bar puts itself in its place."""

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, stream: TextIO) -> None: ...


def _reason(error: Exception) -> str:
    """What to say of an error that is not this program's; "" where it is."""
    if isinstance(error, UserError):
        return _one_line(error)
    if is_out_of_memory(error):
        return f"out of memory ({_one_line(error)[:200]}); use a smaller batch, network or data set"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _one_line(f"{where}{error.strerror or error}; check the path, its permissions and the disk")
    return ""


def _one_line(text: object) -> str:
    """Names that a user gave may have line breaks in them."""
    return " ".join(str(text).splitlines())

"""What the command lines share: parser, plug-ins, lists of names, and errors of one line."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from model_zoo import METHOD_OPTIONS, METHOD_RECIPES
from model_zoo.recipes import LEFT_OUT
from pckd.engine.guard import EndOnSignals, Interrupted, dead_readers_named
from pckd.recipes import recipe
from pckd.runs import grouped
from pckd.tables import print_columns
from registry import (
    DATASETS,
    METHODS,
    RECIPES,
    REGISTRIES,
    TRACKERS,
    Registry,
    Term,
    UserError,
    build,
    load_plugin,
    options_of,
    parse,
)
from registry.errors import is_out_of_memory

KINDS = (
    *("backbones", "losses", "methods", "difficulty", "schedulers", "lr_schedules", "optimizers"),
    *("augmentations", "centers", "datasets", "tasks", "trackers", "recipes"),
)
LISTS = dict(zip(KINDS, REGISTRIES, strict=True))


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
            epilog=f"For the names see --list KIND, for one of them --list KIND:NAME; kinds: {', '.join(LISTS)}.",
            formatter_class=Formatter,
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see --help)\n")

    def add_common(self, speed: argparse._ActionsContainer | None = None) -> None:
        """--device, --precision, --plugin, --list, --debug.

        Args:
            speed: the group of the first two.
        """
        add = (speed or self).add_argument
        add("--device", help="cpu, cuda, cuda:1, mps, ... (default: the accelerator, if there is one)")
        add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the networks")
        add = self.add_argument
        add("--plugin", action="append", default=[], metavar="FILE|MODULE", help="load a plug-in; repeatable")
        add("--list", type=_listed, metavar="KIND[:NAME]", help="print the known names, or all about one, and exit")
        add("--debug", action="store_true", help="show the traceback of an error")

    def given(self, argv: Sequence[str] | None) -> set[str]:
        """The options that a command line gives, by the names of their values."""
        usual = {action: action.default for action in self._actions}
        try:
            for action in usual:
                action.default = argparse.SUPPRESS
            return set(vars(self.parse_args(argv)))
        finally:
            for action, default in usual.items():
                action.default = default


def _listed(text: str) -> str:
    if text.partition(":")[0] not in LISTS:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(LISTS)}, or KIND:NAME)")
    return text


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
                _list(*args.list.partition(":"))
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


# Lists of names


def _list(kind: str, _: str, name: str) -> None:
    try:
        print_entry(LISTS[kind], name) if name else print_registry(LISTS[kind])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads, such as head, has had enough. At its end Python would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_registry(registry: Registry, stream: TextIO | None = None) -> None:
    """A table of the names of a registry and what they are."""
    stream = stream or sys.stdout
    names = registry.names()
    if registry is METHODS:
        header = ["name", "year", "terms", "what it is"]
        rows = [[name, str(registry.facts(name).get("year", "")), _labels(name), _title(name)] for name in names]
    elif registry is RECIPES:
        header = ["name", "what it is", "sets"]
        rows = [[name, registry.summary(name), _values(recipe(name))] for name in names]
    else:
        header = ["name", "what it is", "options"]
        rows = [[name, registry.summary(name), ", ".join(_defaults(registry, name))] for name in names]
    print_columns(header, rows, stream)
    if registry is METHODS:
        print_columns(header[:2], [[f"# {name}", f"left out: {why}"] for name, why in LEFT_OUT.items()], stream)


def print_entry(registry: Registry, name: str, stream: TextIO | None = None) -> None:
    """All that is known of one name: what was said when it was registered, options, docstring; a method's terms, too.

    Raises:
        UserError: there is no such name.
    """
    stream = stream or sys.stdout
    obj = registry.get(name)
    print(f"{name}: {registry.summary(name)}\n", file=stream)
    facts: dict[str, Iterable[str]] = {key: [str(value)] for key, value in registry.facts(name).items() if value}
    if registry is METHODS:
        facts["terms"] = map(_term, _terms(name))
        facts["published"] = _published(name)
    if registry is RECIPES:
        facts["sets"] = (f"{key} = {value!r}" for key, value in recipe(name).items())
    facts["options"] = (f"{option} = {default!r}" for option, default in _defaults(registry, name).items())
    facts["defined in"] = [registry.origin(name)]
    rows = [["" if at else key, text] for key, texts in facts.items() for at, text in enumerate(texts)]
    print_columns(["", ""], rows, stream)
    doc = inspect.getdoc(inspect.unwrap(getattr(obj, "func", obj))) or ""
    if more := doc.partition("\n")[2].strip("\n"):
        print(f"\n{more}", file=stream)


def _defaults(registry: Registry, name: str) -> dict[str, Any]:
    """The options that a name may carry, with their defaults."""
    given = {DATASETS: ("root", "train"), TRACKERS: ("display",)}.get(registry, ())
    options = options_of(registry.get(name)).items()
    return {key: value for key, value in options if value is not inspect.Parameter.empty and key not in given}


def _terms(method: str) -> list[Term]:
    """A method's terms as it is by default; none where a plug-in must be given options."""
    try:
        return list(build(METHODS, method))
    except UserError:
        return []


def _title(method: str) -> str:
    """The beginning of a method's docstring: what it is called, and by whom."""
    return METHODS.summary(method).partition(": ")[0].removesuffix(".")


def _labels(method: str) -> str:
    return " + ".join(term.label for term in _terms(method) if term.weight)


def _term(term: Term) -> str:
    details = _values({**term.options, **term.particulars})
    return f"{term.weight:g} {term.label}{' (previewed)' * term.previewed}{f' [{details}]' if details else ''}"


def _published(method: str) -> Iterator[str]:
    """What the literature sets for a method: ``lr=0.025``, ``beta=8 for resnet32x4>resnet8x4, ...``."""
    recipes = {(method, label): _values(values) for label, values in METHOD_RECIPES.get(method, {}).items()}
    options = {
        (spec, pair): _values({**parse(spec)[1], **values})
        for spec, table in METHOD_OPTIONS.items()
        if parse(spec)[0] == method
        for pair, values in table.pairs.items()
    }
    for shown in (recipes, options):
        for values, own in grouped(shown, shown.__getitem__).items():
            labels = [label for _, label in own]
            yield values + (f" for {', '.join(labels)}" if any(labels) else "")


def _values(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items()
    )

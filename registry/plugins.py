"""Load plug-ins: a file path, a module name, or everything installed under the entry-point group ``pckd.plugins``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from registry.errors import NameTaken, PluginError, place_of

ENTRY_POINT_GROUP = "pckd.plugins"


def load_plugin(source: str | os.PathLike[str]) -> ModuleType:
    """Import a plug-in, so that what it registers can be named. Loading the same one again does nothing.

    Args:
        source: a Python file (``my/losses.py``) or the name of an importable module (``my.losses``).

    Raises:
        PluginError: it cannot be found or fails to import; nothing that it registered is kept.
    """
    text = os.fspath(source)
    if text.endswith(".py") or os.sep in text:
        return _load_file(Path(text).expanduser())
    with _all_or_nothing(f"plug-in module {text!r}"):
        return importlib.import_module(text)


def _load_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):
        folder = ", but a folder; give a .py file or the name of a module" if os.path.isdir(path) else ""
        raise PluginError(f"plug-in {path}: no such file{folder}")
    path = path.resolve()
    name = f"pckd_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plug-in {path}: not a Python file; give a .py file or a module name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _all_or_nothing(f"plug-in {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@functools.cache
def load_entry_points(group: str = ENTRY_POINT_GROUP) -> int:
    """Import every installed plug-in of ``group`` and return how many were loaded; a broken one is warned about.

    It is a warning and not an error because the user who meets it may not have asked for that plug-in.
    """
    loaded = 0
    for entry_point in importlib.metadata.entry_points(group=group):
        try:
            with _all_or_nothing(f"installed plug-in {entry_point.name!r} ({entry_point.value})"):
                entry_point.load()
            loaded += 1
        except PluginError as error:
            warnings.warn(str(error), stacklevel=2)
    return loaded


@contextlib.contextmanager
def _all_or_nothing(label: str) -> Iterator[None]:
    from registry import REGISTRIES

    before = [(registry, registry._snapshot()) for registry in REGISTRIES]
    try:
        yield
    except BaseException as error:
        for registry, state in before:
            registry._restore(state)
        # A plug-in that calls sys.exit() is a broken one; an interrupt is the user's.
        if isinstance(error, (Exception, SystemExit)):
            raise PluginError(f"{label}: {_reason(error)}") from error
        raise


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno} of {Path(error.filename or '?').name}: {type(error).__name__}: {error.msg}"
    message = " ".join(str(error).split())
    # NameTaken says its place itself, and where a decorator was called, Pythons differ on the line.
    where = "" if isinstance(error, NameTaken) else place_of(error)
    return f"{where and f'{where}: '}{type(error).__name__}: {message}"

"""The shape of the project, read from its sources: who imports whom, what lies where, and calls that must not occur."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("registry", "model_zoo", "pckd")
PLUGIN_FOLDERS = ("losses", "difficulty", "schedulers", "centers", "methods", "augmentations", "optimizers")
CORE = {"torch", "torchvision", "fvcore", "iopath", "numpy", "rich"}
TOP_LEVEL = {"pyproject.toml", "pckd", "registry", "model_zoo", "tools", "tests", "README.md", "LICENSE"}


def sources(*folders: str) -> list[Path]:
    """Modules of folders; a module may be named, too."""
    return sorted(path for name in folders for path in [*(ROOT / name).rglob("*.py"), ROOT / name] if path.is_file())


def broken(rule: Callable[[Path], Iterable[str]], *folders: str) -> dict[str, list[str]]:
    """What breaks a rule, by file."""
    found = {str(path.relative_to(ROOT)): sorted(rule(path)) for path in sources(*folders)}
    return {path: names for path, names in found.items() if names}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of the modules that are imported anywhere below ``node``."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"a relative import: {ast.unparse(child)}"
            for alias in child.names:
                # "from pckd import functional" is an import of pckd.functional.
                full = f"{child.module}.{alias.name}"
                yield full if is_module(full) else str(child.module)


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@functools.cache
def ours(path: Path) -> set[str]:
    return {name for name in imports(tree(path)) if under(name, *PACKAGES, "tools", "tests")}


def at_import(node: ast.AST) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported; not the bodies of functions, nor TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        yield from at_import(child)


def registers(path: Path) -> bool:
    """Whether a module registers something: a plug-in, not a helper."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "register" and ast.unparse(node.value).isupper()
        for node in ast.walk(tree(path))
    )


# Who imports whom

FLOORS = (
    ("registry",),
    ("model_zoo",),
    ("pckd.ops", "pckd.distributed", "pckd.arguments", "pckd.device", "pckd.tables"),
    ("pckd.data", "pckd.recipes", *(f"pckd.{folder}" for folder in PLUGIN_FOLDERS)),
    ("pckd.objective",),
    ("pckd.given", "pckd.runs"),
    ("pckd.display", "pckd.tasks"),
    ("pckd.engine",),
    ("pckd.terms", "pckd.plan", "pckd.profiling", "pckd.saved"),
    ("pckd.api",),
    (
        "pckd.testing",
        "pckd.preflight",
        "pckd.transfer",
        "pckd.predict",
        "pckd.hub",
        "pckd.export",
        "pckd.trackers",
        "pckd.tensorboard",
    ),
    ("pckd.cli", "pckd.comparison", "pckd.plots"),
    ("pckd.functional", "pckd.__init__"),
    ("pckd.commands", "tools"),
)
"""The house from the ground up. A module imports from its own floor and from those below it."""


def floor_of(name: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if under(name, *rooms)), len(FLOORS) - 2)


def test_imports_run_one_way() -> None:
    def rule(path: Path) -> Iterator[str]:
        found = (name for statement in at_import(tree(path)) for name in imports(statement) if under(name, *PACKAGES))
        return (name for name in found if floor_of(name) > floor_of(module_name(path)))

    assert broken(rule, *PACKAGES) == {}


@pytest.mark.parametrize(
    ("folders", "allowed"),
    [
        (["registry"], ["registry"]),
        (["model_zoo"], ["registry", "model_zoo"]),
        (["pckd/ops.py", "pckd/distributed.py"], ["registry"]),
        (["pckd/data"], ["registry", "model_zoo", "pckd.data", "pckd.arguments"]),
        ([f"pckd/{folder}" for folder in PLUGIN_FOLDERS], ["registry", "pckd.ops", "pckd.distributed", "pckd.losses"]),
        (PACKAGES, PACKAGES),
    ],
    ids=str,
)
def test_folders_import_only(folders: Sequence[str], allowed: Sequence[str]) -> None:
    """Also inside functions."""
    assert broken(lambda path: (name for name in ours(path) if not under(name, *allowed)), *folders) == {}


@pytest.mark.parametrize("folder", ["pckd/data", "model_zoo"])
def test_plugins_do_not_import_each_other(folder: str) -> None:
    """Of those that may import helpers."""
    plugins = {module_name(path): path for path in sources(folder) if registers(path)}

    def rule(path: Path) -> set[str]:
        return (ours(path) & plugins.keys()) - {module_name(path)} if path in plugins.values() else set()

    assert broken(rule, folder) == {}


def test_engine_does_not_name_plugins() -> None:
    """The engine gets its parts as objects, or by name from the registry."""
    plugins = [f"pckd.{folder}" for folder in PLUGIN_FOLDERS]
    plugins += [module_name(path) for path in sources("pckd/data", "model_zoo") if registers(path)]
    assert broken(lambda path: (name for name in ours(path) if under(name, *plugins)), "pckd/engine") == {}


def test_the_public_face_of_the_losses_is_for_users() -> None:
    """Inside, functions are imported from where they are: the face imports them all."""
    assert list(broken(lambda path: ours(path) & {"pckd.functional"}, *PACKAGES, "tools")) == ["pckd/__init__.py"]


def test_only_core_packages_are_imported_at_module_level() -> None:
    def rule(path: Path) -> set[str]:
        roots = {name.partition(".")[0] for statement in at_import(tree(path)) for name in imports(statement)}
        own = ["tools"] if under(module_name(path), "tools") else []
        return roots - {"", *sys.stdlib_module_names, *CORE, *PACKAGES, *own}

    assert broken(rule, *PACKAGES, "tools") == {}


# What lies where


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_top_level_of_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.partition("/")[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} - TOP_LEVEL == set()


def test_folders_of_modules_are_packages_and_typed() -> None:
    """A folder without __init__.py is left out of the wheel."""
    folders = {path.parent for path in sources(*PACKAGES)}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


# Calls that must not occur


UNSAFE = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("joblib.load", "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
}


def full_names(node: ast.AST) -> dict[str, str]:
    """What the imported names below ``node`` stand for: ``np`` for ``numpy``, ``loads`` for ``pickle.loads``."""
    names = {}
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            names.update({alias.asname: alias.name for alias in child.names if alias.asname})
        elif isinstance(child, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{child.module}.{alias.name}" for alias in child.names})
    return names


def forbidden(node: ast.AST) -> Iterator[str]:
    """Calls that run what they read, or write where what they read says, with their lines."""
    names = full_names(node)
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        first, dot, rest = ast.unparse(call.func).partition(".")
        function = names.get(first, first) + dot + rest
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if function.removeprefix("builtins.") in UNSAFE:
            yield f"line {call.lineno}: {function}"
        if keywords.get("shell", "False") != "False":
            yield f"line {call.lineno}: {function} with a shell"
        if function in ("torch.load", "torch.serialization.load") and keywords.get("weights_only") != "True":
            yield f"line {call.lineno}: torch.load runs code without weights_only=True"
        if keywords.get("allow_pickle", "False") != "False":
            yield f"line {call.lineno}: {function} with allow_pickle"
        # The methods of archives, whatever the archive is called.
        last = function.rpartition(".")[2]
        if last in ("extractall", "unpack_archive") and keywords.get("filter") not in ("'data'", "tarfile.data_filter"):
            yield f"line {call.lineno}: {function} without filter='data'"
        if last == "exec_module":
            yield f"line {call.lineno}: exec_module"


def test_no_call_runs_what_it_reads() -> None:
    """Only the loader of plug-ins runs a file, and once."""
    found = broken(lambda path: forbidden(tree(path)), *PACKAGES, "tools")
    calls = {path: [call.partition(": ")[2] for call in lines] for path, lines in found.items()}
    assert calls == {"registry/plugins.py": ["exec_module"]}


def test_no_bare_except() -> None:
    def rule(path: Path) -> list[str]:
        handlers = (node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler))
        return [f"line {handler.lineno}" for handler in handlers if handler.type is None]

    assert broken(rule, *PACKAGES, "tools") == {}


# The readers above, on small texts


UNSAFE_CALLS = """
eval("1")
exec("x = 1")
os.system("ls")
subprocess.run("ls", shell=True)
subprocess.run("ls", shell=flag)
subprocess.getoutput("ls")
torch.load("x")
torch.load("x", weights_only=False)
torch.load("x", weights_only=flag)
torch.serialization.load("x")
numpy.load("x", allow_pickle=True)
pickle.load(file)
pickle.loads(data)
pickle.Unpickler(file).load()
yaml.load(file, Loader=yaml.Loader)
yaml.unsafe_load(file)
tarfile.open("x").extractall("there")
archive.extractall(path="there", filter="fully_trusted")
zipfile.ZipFile("x").extractall()
shutil.unpack_archive("x")
spec.loader.exec_module(module)
"""
UNSAFE_IMPORTS = """
import numpy as np
import torch as t
from builtins import eval as run
from pickle import loads
from os import system as call
from torch import load
np.load("x", allow_pickle=True)
t.load("x")
run("1")
loads(data)
call("ls")
load("x")
"""
SAFE_CALLS = """
from json import loads
torch.load("x", weights_only=True)
torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
model.eval()
subprocess.run(["ls"], shell=False)
ast.literal_eval("1")
numpy.load("x")
yaml.safe_load(file)
loads(data)
json.load(file)
archive.extractall("there", filter="data")
student.load(path)
"""


def test_forbidden_calls_are_seen() -> None:
    assert len(list(forbidden(ast.parse(UNSAFE_CALLS)))) == UNSAFE_CALLS.count("\n") - 1
    assert len(list(forbidden(ast.parse(UNSAFE_IMPORTS)))) == 6
    assert list(forbidden(ast.parse(SAFE_CALLS))) == []


def test_imports_are_seen() -> None:
    text = "import a.b\nfrom pckd import functional\nfrom registry import LOSSES\ndef f():\n    import timm\n"
    assert set(imports(ast.parse(text))) == {"a.b", "pckd.functional", "registry", "timm"}
    module_level = [ast.unparse(node) for node in at_import(ast.parse(text + "try:\n    import z\nfinally:\n    pass"))]
    assert module_level == ["import a.b", "from pckd import functional", "from registry import LOSSES", "import z"]

"""Console scripts of the package: each runs the code of a tool, and each tool that users have is one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = dict(
    re.findall(r'^(pckd-\w+) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_its_tool(script: str, load_tool: Callable[[str], ModuleType]) -> None:
    module, _, function = SCRIPTS[script].partition(":")
    name = module.removeprefix("pckd.commands.")
    assert name.removesuffix("_net") == script.removeprefix("pckd-")
    assert load_tool(name).main is getattr(importlib.import_module(module), function)


def test_every_command_is_a_script() -> None:
    commands = {path.stem for path in (ROOT / "pckd" / "commands").glob("[!_]*.py")}
    assert {f"pckd.commands.{name}:main" for name in commands} == set(SCRIPTS.values())

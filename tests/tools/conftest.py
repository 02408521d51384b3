"""Command lines of tools/, loaded as modules so that a test can call their main()."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """Load a tool by its file's name, each time anew."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def load_tool(
    load_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], ModuleType]:
    """Load a tool by its file's name; teachers go to a cache of the test's own."""
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "cache"))
    return load_module


@pytest.fixture
def refusal(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Call the module's ``tool``, which must end with exit code 2 and one line on standard error; that line."""

    def refused(arguments: list[str]) -> str:
        try:
            code = tool.main(arguments)
        except SystemExit as error:
            code = error.code
        err = capsys.readouterr().err
        assert code == 2
        assert len(err.strip().splitlines()) == 1, err
        return err

    return refused

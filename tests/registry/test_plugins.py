"""Plug-ins from a file, from a module, and from installed distributions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import LOSSES, METHODS, PluginError, UserError, load_entry_points, load_plugin

GOOD = """
from registry import METHODS, Term

@METHODS.register("{name}")
def method():
    return [Term("cross_entropy", 0.5)]
"""


@pytest.fixture(autouse=True)
def clean(registries: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Modules and entry points of a test are gone after it; its folder can be imported from."""
    modules = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    load_entry_points.cache_clear()
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    load_entry_points.cache_clear()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(source: str | Path) -> str:
    """The message of a plug-in that cannot be loaded; checks that it is one line and that nothing is left of it."""
    before = {registry.name: registry.names() for registry in (LOSSES, METHODS)}
    modules = {name for name in sys.modules if name.startswith("pckd_plugin_")}
    with pytest.raises(PluginError) as caught:
        load_plugin(source)
    assert isinstance(caught.value, UserError)
    assert {registry.name: registry.names() for registry in (LOSSES, METHODS)} == before
    assert {name for name in sys.modules if name.startswith("pckd_plugin_")} == modules
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "sub/mine.py", GOOD.format(name="from_file"))
    loaded = load_plugin(str(path))
    method = METHODS.get("from_file")
    assert method()[0].weight == 0.5
    assert METHODS.origin("from_file") == f"{path}:4"
    monkeypatch.chdir(tmp_path)
    # Again, which does nothing.
    assert load_plugin("sub/mine.py") is load_plugin(path) is loaded
    assert METHODS.get("from_file") is method


def test_from_a_module(tmp_path: Path) -> None:
    write(tmp_path, "a_users_package/__init__.py", "")
    write(tmp_path, "a_users_package/mine.py", GOOD.format(name="from_module"))
    assert load_plugin("a_users_package.mine") is load_plugin("a_users_package.mine")
    assert "from_module" in METHODS


def test_two_files_of_one_name_are_two_plugins(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        load_plugin(write(tmp_path, f"{folder}/mine.py", GOOD.format(name=f"in_{folder}")))
    assert {"in_a", "in_b"} <= set(METHODS.names())


def test_what_is_missing(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.py") == f"plug-in {tmp_path / 'missing.py'}: no such file"
    assert "no such file, but a folder; give a .py file" in refused(str(tmp_path))
    assert refused("no_such.module") == (
        "plug-in module 'no_such.module': ModuleNotFoundError: No module named 'no_such'"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("x = (1,\ndef\n", "SyntaxError:"),
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_fails_after_registering_leaves_nothing(more: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "half.py", f"{GOOD.format(name='half')}\n{more}\n")
    assert refused(path).startswith(f"plug-in {path}: line 8 of half.py: {message}")
    # Mended, it loads.
    path.write_text(GOOD.format(name="half"))
    load_plugin(path)
    assert "half" in METHODS


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(b"\x00\xff\xfe")
    assert refused(path).startswith(f"plug-in {path}: ")


def test_an_interrupt_stays_an_interrupt_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "half.py", GOOD.format(name="half") + "\nraise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_plugin(path)
    assert "half" not in METHODS


def test_a_name_taken_points_at_the_line_of_the_plugin(tmp_path: Path) -> None:
    path = write(tmp_path, "clash.py", GOOD.format(name="first") + GOOD.format(name="kd"))
    message = refused(path)
    assert message.startswith(f"plug-in {path}: NameTaken: METHODS: the name 'kd' is taken: first registered at ")
    assert "kd.py:" in message
    assert message.endswith(f", again at {path}:10; give one of them another name")


def install(folder: Path, distribution: str, entry_points: dict[str, str]) -> None:
    """What pip leaves behind of a distribution with entry points."""
    info = f"{distribution}-1.0.dist-info"
    write(folder, f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    write(folder, f"{info}/entry_points.txt", "\n".join(["[pckd.plugins]", *lines, ""]))


def test_installed_plugins_are_found_when_a_name_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "installed_plugin.py", GOOD.format(name="installed"))
    install(tmp_path, "users_distribution", {"mine": "installed_plugin"})
    assert METHODS.get("installed")()[0].weight == 0.5
    assert load_entry_points() == 1


def test_families_of_installed_plugins_are_found(tmp_path: Path) -> None:
    text = "from registry import METHODS\n@METHODS.register('fam')\ndef fam(member):\n    return member\n"
    write(tmp_path, "installed_family.py", text)
    install(tmp_path, "users_distribution", {"mine": "installed_family"})
    assert METHODS.get("fam:one")() == "one"


def test_a_broken_installed_plugin_is_a_warning_and_others_work(tmp_path: Path) -> None:
    write(tmp_path, "installed_good.py", GOOD.format(name="good"))
    write(tmp_path, "installed_bad.py", GOOD.format(name="bad") + "\nraise RuntimeError('out of date')\n")
    install(tmp_path, "users_distribution", {"a_bad": "installed_bad", "b_good": "installed_good", "c_gone": "gone"})
    with pytest.warns(UserWarning, match="installed plug-in") as caught:
        assert load_entry_points() == 1
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 2
    assert "'a_bad' (installed_bad): line 8 of installed_bad.py: RuntimeError: out of date" in messages[0]
    assert "'c_gone' (gone)" in messages[1]
    assert "good" in METHODS
    assert "bad" not in METHODS
    assert "kd" in METHODS


def test_no_installed_plugins() -> None:
    assert load_entry_points("pckd.a_group_that_nobody_uses") == 0

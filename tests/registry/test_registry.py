"""Registering, looking up, and what is said when a name is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry import LOSSES, METHODS, REGISTRIES, NameTaken, Registry, UnknownName, UserError


@pytest.fixture
def plants() -> Registry:
    return Registry("PLANTS", "Plants: ``fn() -> str``.")


def fern() -> str:
    """A plant without flowers.

    More about it.
    """
    return "fern"


def test_register_without_parentheses(plants: Registry) -> None:
    @plants.register
    class Moss:
        pass

    assert isinstance(Moss, type)
    assert plants.get("Moss") is Moss


def test_register_with_empty_parentheses(plants: Registry) -> None:
    @plants.register()
    def moss() -> None: ...

    assert plants.get("moss") is moss


def test_register_with_a_name(plants: Registry) -> None:
    @plants.register("sphagnum")
    def moss() -> None: ...

    assert plants.get("sphagnum") is moss
    assert "moss" not in plants


def test_register_as_a_plain_call(plants: Registry) -> None:
    assert plants.register(fern) is fern
    assert plants.register("other")(fern) is fern
    assert plants.names() == ["fern", "other"]


def test_a_lambda_needs_a_name(plants: Registry) -> None:
    with pytest.raises(UserError, match="no name of its own"):
        plants.register(lambda: 1)
    plants.register("named")(lambda: 1)
    assert plants.names() == ["named"]


@pytest.mark.parametrize("thing", [3, ["fern"], {}])
def test_what_cannot_be_called_is_refused(plants: Registry, thing: object) -> None:
    with pytest.raises(TypeError, match="PLANTS"):
        plants.register(thing)
    with pytest.raises(TypeError, match="'rock' must be a function or a class"):
        plants.register("rock")(thing)
    assert plants.names() == []


def test_unknown_name_says_the_closest_and_all(plants: Registry) -> None:
    for name in ("fern", "moss", "horsetail"):
        plants.register(name)(fern)
    with pytest.raises(UnknownName) as caught:
        plants.get("Fenr")
    message = str(caught.value)
    assert message == "PLANTS: unknown name 'Fenr'; did you mean 'fern'? Known: fern, horsetail, moss"
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KeyError)


def test_unknown_name_with_nothing_close(plants: Registry) -> None:
    with pytest.raises(UnknownName, match=r"^PLANTS: unknown name 'zzz'\. Known: \(none\)$"):
        plants.get("zzz")


def test_a_name_taken_names_both_places(plants: Registry) -> None:
    plants.register("fern")(fern)

    def second() -> None: ...

    with pytest.raises(NameTaken) as caught:
        plants.register("fern")(second)
    lines = [f.__code__.co_firstlineno for f in (fern, second)]
    places = [f"{Path(__file__).name}:{line}" for line in lines]
    first, again = (str(caught.value).index(place) for place in places)
    assert first < again
    assert plants.get("fern") is fern


def test_origin_is_file_and_line(plants: Registry) -> None:
    plants.register(fern)
    assert plants.origin("fern").endswith(f"{Path(__file__).name}:{fern.__code__.co_firstlineno}")
    assert plants.origin("fern:x") == plants.origin("fern")


def test_summary_is_the_first_line_of_the_docstring(plants: Registry) -> None:
    plants.register(fern)
    plants.register("bare")(lambda: 1)
    assert plants.summary("fern") == "A plant without flowers."
    assert plants.summary("fern:royal") == "A plant without flowers."
    assert plants.summary("bare") == ""


def test_family_member_is_the_first_argument(plants: Registry) -> None:
    @plants.register
    def garden(member: str, *, size: int = 1) -> tuple[str, int]:
        return member, size

    assert plants.get("garden:rose")() == ("rose", 1)
    assert plants.get("garden:rose:red")(size=2) == ("rose:red", 2)
    for missing in ("garden:", ":rose", "park:rose"):
        with pytest.raises(UnknownName):
            plants.get(missing)


def test_an_exact_name_wins_over_a_family(plants: Registry) -> None:
    @plants.register
    def garden(member: str) -> str:
        return member

    plants.register("garden:rose")(fern)
    assert plants.get("garden:rose") is fern


def test_it_behaves_as_a_collection(plants: Registry) -> None:
    assert len(plants) == 0
    assert plants
    plants.register("b")(fern)
    plants.register("a")(fern)
    assert len(plants) == 2
    assert "a" in plants
    assert "c" not in plants
    assert [name for name, _ in plants] == ["a", "b"]
    assert repr(plants) == "<Registry PLANTS: a, b>"


def test_contract_is_the_docstring() -> None:
    for registry in REGISTRIES:
        assert registry.__doc__
        assert "``" in registry.__doc__, f"{registry.name}: the docstring must give the call"


@pytest.mark.usefixtures("registries")
def test_built_in_names_win_over_a_later_registration() -> None:
    kd = LOSSES.get("kd")
    with pytest.raises(NameTaken) as caught:
        LOSSES.register("kd")(fern)
    first, again = str(caught.value).split("again at")
    assert "kd.py" in first
    assert Path(__file__).name in again
    assert LOSSES.get("kd") is kd


def run_python(code: str, *path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_discovery_does_not_depend_on_import_order(tmp_path: Path) -> None:
    """In a new process: names without importing pckd; a plug-in that takes a built-in name before any look-up."""
    clash = tmp_path / "clash.py"
    clash.write_text("from registry import LOSSES\n@LOSSES.register('kd')\nclass Mine: pass\n")
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('broken')\n")
    code = """
import sys
from registry import LOSSES, METHODS, PluginError, load_plugin
for plugin in sys.argv[1:]:
    try:
        load_plugin(plugin)
    except PluginError as error:
        print(error)
print(*LOSSES.names(), *METHODS.names())
"""
    *errors, names = run_python(code, clash, broken).splitlines()
    assert names.split() == [*LOSSES.names(), *METHODS.names()]
    assert len(errors) == 2
    assert errors[0].index("kd.py:") < errors[0].index("again at") < errors[0].rindex("clash.py:2")


def test_a_direct_import_that_takes_a_built_in_name_is_reported_at_the_newcomer(tmp_path: Path) -> None:
    """Even where it is the first import of all, and of a module whose name begins like ours."""
    (tmp_path / "pckd_extras.py").write_text("from registry import LOSSES\n@LOSSES.register('kd')\nclass Mine: pass\n")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from registry import LOSSES, NameTaken
try:
    import pckd_extras
except NameTaken as error:
    print(error)
print(LOSSES.get("kd").__module__)
"""
    error, module = run_python(code, tmp_path).splitlines()
    assert error.index("kd.py:") < error.index("again at") < error.index("pckd_extras.py:2")
    assert module == "pckd.losses.kd"

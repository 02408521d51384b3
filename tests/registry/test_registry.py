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


def test_every_way_to_register(plants: Registry) -> None:
    @plants.register
    class Moss:
        pass

    assert isinstance(Moss, type)
    assert plants.get("Moss") is Moss
    assert plants.register()(fern) is plants.get("fern") is fern
    assert plants.register("other")(fern) is plants.get("other") is fern
    assert plants.names() == ["Moss", "fern", "other"]


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
    with pytest.raises(UnknownName, match=r"^PLANTS: unknown name 'zzz'\. Known: \(none\)$"):
        plants.get("zzz")
    for name in ("fern", "moss", "horsetail"):
        plants.register(name)(fern)
    with pytest.raises(UnknownName) as caught:
        plants.get("Fenr")
    assert str(caught.value) == "PLANTS: unknown name 'Fenr'; did you mean 'fern'? Known: fern, horsetail, moss"
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, KeyError)


def test_a_name_taken_names_both_places(plants: Registry) -> None:
    plants.register("fern")(fern)

    def second() -> None: ...

    with pytest.raises(NameTaken) as caught:
        plants.register("fern")(second)
    places = [f"{Path(__file__).name}:{f.__code__.co_firstlineno}" for f in (fern, second)]
    first, again = (str(caught.value).index(place) for place in places)
    assert first < again
    assert plants.get("fern") is fern


def test_origin_and_summary(plants: Registry) -> None:
    plants.register(fern)
    plants.register("bare")(lambda: 1)
    assert plants.origin("fern").endswith(f"{Path(__file__).name}:{fern.__code__.co_firstlineno}")
    assert plants.origin("fern:x") == plants.origin("fern")
    assert plants.summary("fern") == plants.summary("fern:royal") == "A plant without flowers."
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
    # An exact name wins.
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


def test_in_a_new_process(tmp_path: Path) -> None:
    """Importing is cheap, and names do not depend on what is imported first: here modules that take a built-in name.

    The first one's own name begins like ours; the last is broken, and takes no name with it.
    """
    clash = "from registry import LOSSES\n@LOSSES.register('kd')\nclass Mine: pass\n"
    for name, text in (("pckd_extras", clash), ("clash", clash), ("broken", "raise RuntimeError('broken')\n")):
        (tmp_path / f"{name}.py").write_text(text)
    code = """
import os, sys
import model_zoo
print([name for name in ("torchvision", "timm", "model_zoo.vgg", "pckd") if name in sys.modules])
sys.path.insert(0, sys.argv[1])
from registry import LOSSES, METHODS, NameTaken, PluginError, load_plugin
try:
    import pckd_extras
except NameTaken as error:
    print(error)
for plugin in ("clash", "broken"):
    try:
        load_plugin(os.path.join(sys.argv[1], plugin + ".py"))
    except PluginError as error:
        print(error)
print(LOSSES.get("kd").__module__, *LOSSES.names(), *METHODS.names())
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heavy, first, second, broken, names = done.stdout.splitlines()
    assert heavy == "[]"
    assert first.index("kd.py:") < first.index("again at") < first.index("pckd_extras.py:2")
    assert second.index("kd.py:") < second.index("again at") < second.rindex("clash.py:2")
    assert "broken.py: line 1" in broken
    assert names.split() == ["pckd.losses.kd", *LOSSES.names(), *METHODS.names()]

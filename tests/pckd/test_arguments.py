"""One table of facts about arguments: ranges, command lines, resume and comparison follow from it."""

import argparse
from pathlib import Path

import pytest

from pckd import arguments
from pckd.arguments import ARGUMENTS, Argument, add_arguments, check_arguments
from pckd.engine.record import RunFolder, find_changes
from pckd.runs import Run
from registry import UserError


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ([], None),
        (["--compile"], True),
        (["--no-compile"], False),
        (["--compile", "reduce-overhead"], "reduce-overhead"),
        (["--compile=reduce-overhead", "--no-compile"], False),
    ],
)
def test_a_switch_that_may_have_a_value(given: list[str], value: object) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ["compile"], {})
    assert parser.parse_args(given).compile == value


@pytest.mark.parametrize("given", [["--compile", "fast"], ["--no-compile", "reduce-overhead"]])
def test_a_switch_refuses_another_value(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ["compile"], {})
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    assert f"argument --{'no-' * (given[0] == '--no-compile')}" in capsys.readouterr().err


def test_an_argument_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = {
        "decay": Argument("of the average", "schedule", kind=float, low=0, high=1, below=True, before=0.5),
        "pace": Argument("of the notes", "output", kind=int, low=1, may_change=True, apart=False),
    }
    monkeypatch.setattr(arguments, "ARGUMENTS", {**ARGUMENTS, **new})
    for values in ({"decay": 1.0}, {"pace": 0}):
        with pytest.raises(UserError, match=f"{next(iter(values))} must be"):
            check_arguments(**values)
    parser = argparse.ArgumentParser()
    add_arguments(parser, new, {"decay": 0.9})
    assert vars(parser.parse_args(["--pace", "3"])) == {"decay": 0.9, "pace": 3}
    assert "of the average" in parser.format_help()
    assert find_changes({}, {"decay": 0.5}) == []
    assert find_changes({}, {"decay": 0.9}) == ["decay was 0.5, is 0.9"]
    state = {"arguments": {"decay": 0.9, "pace": 1}, "parts": {}}
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state)
    assert folder.load_checkpoint({"decay": 0.9, "pace": 2}) is not None
    with pytest.raises(UserError, match=r"decay was 0\.9, is 0\.8"):
        folder.load_checkpoint({"decay": 0.8, "pace": 1})
    run = Run(tmp_path, [], {"arguments": {"decay": 0.9, "pace": 7}})
    assert run.settings["decay"] == 0.9
    assert "pace" not in run.settings

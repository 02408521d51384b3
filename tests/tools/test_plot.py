"""tools/plot.py as a user meets it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib")

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("plot")


@pytest.fixture
def run_folder(load_tool: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A real run that previews and reports difficulties and gradients, with its teacher's weights beside it."""
    common = ["--dataset", "shapes(image_size=8, train_size=24, test_size=12, num_classes=4)", "--student", "resnet8"]
    common += ["--batch-size", "8", "--precision", "fp32", "--device", "cpu"]
    train_net, teacher = load_tool("train_net"), tmp_path / "teacher"
    assert train_net.main([*common, "--method", "vanilla", "--epochs", "1", "--output", str(teacher)]) == 0
    taught = ["--teacher", "resnet8", "--teacher-weights", str(teacher / "model_final.pth"), "--epochs", "2"]
    taught += ["--report-difficulty", "--report-gradients", "--output", str(tmp_path / "run")]
    assert train_net.main([*common, *taught]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_all_pictures_of_a_real_run(
    tool: ModuleType, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["all", str(run_folder), "--output", str(tmp_path / "pictures"), "--images", "12"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    kinds = ["centers", "cost", "curves", "difficulty", "embedding", "gradients", "preview"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{kind}.png" for kind in kinds]
    ablation, *others = [line for line in out.splitlines() if "left out" in line]
    assert ablation == "ablation: left out: no folder of benchmark.py is given, and ablation is drawn from one"
    assert [line.partition(" is of the task ")[0].split(": left out: ") for line in others] == [
        [kind, kind] for kind in ("detections", "precision_recall", "segments")
    ]
    assert len(out.splitlines()) == 11


@pytest.fixture
def unfinished(write_run: Callable[..., Path]) -> Callable[[str], Path]:
    """Writes the folder of a run that is going on, its last line half written."""

    def write(name: str) -> Path:
        folder = write_run(name, finished=False)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"epoch"')
        return folder

    return write


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 4, 0, 1, 2), (0, 1, 3, 4, 2)])
def test_folders_and_options_in_any_order(
    tool: ModuleType,
    tmp_path: Path,
    unfinished: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    order: tuple[int, ...],
) -> None:
    words = ["curves", str(unfinished("a")), str(unfinished("b")), "--output", str(tmp_path / "picture.svg")]
    assert tool.main([words[i] for i in order]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert "still going on" in out
    assert Path(words[4]).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to draw: one of curves"),
        (["curves"], "no folder is given"),
        (["curve", "{run}"], "invalid choice: 'curve'"),
        (["curves", "{run}"], "--output is missing: give a file"),
        (["all", "{run}"], "--output is missing: give a folder"),
        (["curves", "{run}", "{empty}", "--output", "{new}.png"], "neither a run's folder"),
        (["gradients", "{run}", "--output", "{new}.png"], "--report-gradients"),
        (["centers", "{run}", "--output", "{new}.png"], "has no result.json: let the run finish"),
        (["embedding", "{run}", "--output", "{new}.png", "--images", "many"], "invalid int value"),
        (["cost", "{run}", "--output", "{new}.png"], "no training times are known"),
        (["all", "{run}", "{empty}", "--output", "{new}"], "neither a run's folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    unfinished: Callable[[str], Path],
    refusal: Callable[[list[str]], str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": unfinished("run"), "empty": tmp_path / "empty", "new": tmp_path / "new"}
    assert message in refusal([word.format(**places) for word in arguments])
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("name", ["plot", "profile_net", "transfer"])
def test_runs_as_a_script_and_lists_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--list", "difficulty"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert "cross_entropy" in out
    assert err == ""

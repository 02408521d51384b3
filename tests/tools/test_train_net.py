"""tools/train_net.py as a user meets it: real command lines, on data small enough for a second.

What it refuses: test_bad_input.py.
"""

from __future__ import annotations

import json
import logging
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from pckd import api
from pckd.cli import LISTS
from pckd.testing import check_loss
from registry import RECIPES

README = (Path(__file__).parents[2] / "README.md").read_text()
DATA = "shapes(image_size=8, train_size=40, test_size=20)"
QUICK = ["--student", "resnet8", "--dataset", DATA, "--epochs", "2", "--batch-size", "8"]
QUICK += ["--precision", "fp32", "--device", "cpu"]
TAUGHT = [*QUICK, "--teacher-epochs", "1"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("train_net")


def readme_python(first_line: str) -> str:
    """The Python of the README that begins so."""
    match = re.search(rf"```python\n({re.escape(first_line)}\n.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_student_alone_finds_trains_and_keeps_its_teacher(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked_at: list[int] = []
    fingerprint = api.split_fingerprint
    monkeypatch.setattr(api, "split_fingerprint", lambda split: looked_at.append(len(split)) or fingerprint(split))
    assert tool.main([*TAUGHT, "--output", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out
    assert "trained first" in first
    assert re.search(r"epoch 2/2 .*cross_entropy .*left 0:00", first)
    assert re.search(r"resnet8 by pckd: \d+\.\d\d % top-1 after the last epoch", first)
    # Plain lines, where there is no terminal.
    assert "\x1b" not in first
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher"] == "resnet20"
    assert result["arguments"]["epochs"] == 2
    assert tool.main([*TAUGHT, "--output", str(tmp_path / "again")]) == 0
    assert "from the cache" in capsys.readouterr().out
    # By each run once: it tells the training of its teacher.
    assert looked_at == [40, 20] * 2
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "again" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kind", LISTS)
def test_lists_fit_100_characters(kind: str, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line[0] not in " #"] == LISTS[kind].names()
    if kind == "methods":
        assert any(line.startswith("# crrcd ") for line in lines)
        (srrl,) = (line for line in lines if line.startswith("srrl "))
        assert " ".join(srrl.split()) == "srrl 2021 cross_entropy + srrl Softmax regression representation"


def test_list_of_one_name_is_all_about_it(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list", "methods:pckd"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "pckd: Preview-based category contrastive learning (Ding et al. 2024): the full method.",
        "paper Ding et al., arXiv 2410.14143",
        "year 2024",
        "terms 1 cross_entropy 1 kd (previewed) [temperature=4] 20 feature_alignment [rows=all]",
        "0.05 category_contrast (previewed) [rows=all]",
        "options ce = 1.0 delta = 1.0",
        "contrast = 'category_contrast'",
        "methods/pckd.py:",
        "Args:",
    ):
        assert part in text
    assert tool.main(["--list", "backbones:torchvision:resnet18"]) == 0
    assert "in_channels = 3" in capsys.readouterr().out


def test_help_is_in_groups(tool: ModuleType) -> None:
    text = tool.make_parser().format_help()
    places = [text.index(f"\n{title}:\n") for title in ("what", "data", "schedule", "speed", "output", "reports")]
    assert places == sorted(places)
    # Of those that every tool has, two are about speed.
    assert places[3] < text.index("--device DEVICE  ") < places[4]


def test_a_recipe_sets_what_is_not_given(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], registries: None
) -> None:
    @RECIPES.register("mine")
    def mine() -> dict[str, Any]:
        """Mine."""
        return {"epochs": 3, "lr": 0.3, "momentum": 0.5, "milestones": (0.5,), "clip_grad": 2.0}

    arguments = [*TAUGHT, "--recipe", "mine", "--momentum", "0.7", "--output", str(tmp_path)]
    assert tool.main(arguments) == 0
    used = json.loads((tmp_path / "result.json").read_text())["arguments"]
    # TAUGHT has epochs.
    assert [used[name] for name in ("epochs", "lr", "momentum", "clip_grad")] == [2, 0.3, 0.7, 2.0]
    assert used["milestones"] == [0.5]
    with pytest.raises(SystemExit, match="0"):
        tool.main(["--help"])
    assert "(default: 0.9)" in capsys.readouterr().out


def test_plugin_of_the_readme(tool: ModuleType, tmp_path: Path, registries: None) -> None:
    plugin, output = tmp_path / "mine.py", tmp_path / "run"
    plugin.write_text(readme_python("# mine.py"))
    chosen = ["--method", "pckd+logits", "--difficulty", "confidence_gap", "--centers", "teacher_only"]
    chosen += ["--scheduler", "soft_preview(softness=0.3)", "--plugin", str(plugin)]
    assert tool.main([*TAUGHT, *chosen, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["preview_weight"] < 1 and row["logit_distance"] > 0 for row in rows)
    check_loss("logit_distance(power=1)")


def test_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(readme_python("import pckd").replace("limit_train=1000", "limit_train=64, limit_test=20"))
    runpy.run_path(str(script))
    assert "category_contrast" in capsys.readouterr().out


# --check


def test_check_takes_a_step_and_leaves_nothing(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    command = ["--student", "resnet8", "--teacher", "resnet8", "--dataset", DATA, "--centers", "ema", "--check"]
    assert tool.main([*command, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    for name in ("loss kd", "loss category_contrast", "scheduler preview", "center rule ema", "backbone resnet8"):
        assert f"checked {name}\n" in said
    assert "checked one step of 32 images" in said
    assert not output.exists()
    # No teacher was trained either.
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("plugin", "option", "clause"),
    [
        ("SCHEDULERS.register('mine')(lambda difficulty, context: difficulty - 99)", "--scheduler", "scheduler mine"),
        ("METRICS.register('mine')(lambda s, t, c: c.labels.float()[:, None])", "--difficulty", "mine"),
    ],
)
def test_check_names_the_clause_that_a_plugin_breaks(
    plugin: str,
    option: str,
    clause: str,
    tool: ModuleType,
    refusal: Callable[[list[str]], str],
    tmp_path: Path,
    registries: None,
) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(
        f"from registry import DIFFICULTY_METRICS as METRICS, DIFFICULTY_SCHEDULERS as SCHEDULERS\n{plugin}"
    )
    error = refusal([*QUICK, "--teacher", "resnet8", "--plugin", str(path), option, "mine", "--check"])
    assert clause in error
    assert "clause" in error


@pytest.mark.parametrize("memory", [True, False])
def test_what_is_left_out_of_a_folder_is_said_once_on_standard_output(
    memory: bool,
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # As in a process of its own, where nobody else listens to the log.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def run(root: Path, *more: str) -> list[str]:
        for name in ("train/a", "train/b", "test/a", "test/b"):
            (root / name / "@eaDir").mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (12, 12), (60 * i, 0, 0)).save(root / name / f"{i}.jpg")
        for path in (root / "train" / "b" / "2.jpg", root / "test" / "a" / "0.jpg"):
            path.write_bytes(path.read_bytes()[:-60])
        data = ["--dataset", f"imagefolder(memory={memory})", "--data-root", str(root), "--on-bad-image", "skip"]
        assert tool.main([*QUICK, "--method", "vanilla", "--batch-size", "4", *data, *more]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines()

    lines = run(tmp_path)
    for part, name in (("train", "b/2.jpg"), ("test", "a/0.jpg")):
        text = f"{tmp_path / part}: 8 images are used, and left out are hidden folders: 2 (@eaDir)"
        assert lines.count(text) == 1
        (line,) = (line for line in lines if f"{part}/{name}" in line)
        assert line.startswith(f"imagefolder {tmp_path.name}/{part}: 1 of 8 images cannot be read, and ")
    assert sum(line.startswith("epoch ") for line in lines) == 2
    lines = run(tmp_path / "checked", "--check")
    assert "checked 16 images: 2 cannot be read" in lines
    assert any("train/b/2.jpg" in line for line in lines)
    assert lines[-1] == "checked one step of 4 images; nothing was trained or written"


# TensorBoard


def test_tensorboard_has_the_numbers_of_metrics(tool: ModuleType, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    command = [*QUICK, "--method", "vanilla", "--report-difficulty", "--tensorboard"]
    assert tool.main([*command, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    (training,) = (output / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(training)).Reload()
    truth = rows[1]["difficulty_report"]["metrics"]["cross_entropy"]["truth"]
    for tag, value in (("accuracy/top1", rows[1]["top1"]), ("difficulty/metrics/cross_entropy/truth", truth)):
        assert [event.step for event in events.Scalars(tag)] == [1, 2]
        assert events.Scalars(tag)[1].value == pytest.approx(value)
    assert tool.main([*command, "--output", str(tmp_path / "checked"), "--check"]) == 0
    assert not (tmp_path / "checked").exists()

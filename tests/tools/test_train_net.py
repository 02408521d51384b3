"""tools/train_net.py as a user meets it: real command lines, on data small enough for a second."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from pckd.testing import check_loss

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "train_net.py"
DATA = "shapes(image_size=8, train_size=40, test_size=20)"
QUICK = ["--dataset", DATA, "--epochs", "2", "--batch-size", "8", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("train_net")


def readme_plugin() -> str:
    """The plug-in that the README shows."""
    match = re.search(r"```python\n(# mine\.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def test_student_alone_finds_trains_and_keeps_its_teacher(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--student", "resnet8", *QUICK, "--teacher-epochs", "1", "--output", str(tmp_path / "run")]
    assert tool.main(arguments) == 0
    first = capsys.readouterr().out
    assert "trained first" in first
    assert re.search(r"resnet8 by pckd: \d+\.\d\d % top-1 after the last epoch", first)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher"] == "resnet20"
    assert result["arguments"]["epochs"] == 2
    assert tool.main([*arguments[:-1], str(tmp_path / "again")]) == 0
    assert "from the cache" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (tmp_path / "again" / "metrics.jsonl").read_text()


def test_a_teacher_is_not_taken_for_one_of_other_pictures(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of as many pictures a class, under the same names."""
    for root, color in (("a", 40), ("b", 200)):
        for split in ("train", "test"):
            for k, name in enumerate(("cat", "dog")):
                folder = tmp_path / root / split / name
                folder.mkdir(parents=True)
                for i in range(8):
                    Image.new("RGB", (8, 8), (color, 100 * k, i)).save(folder / f"{i}.png")
    for root, said in (("a", "trained first"), ("b", "trained first"), ("a", "from the cache")):
        data = ["--dataset", "imagefolder", "--data-root", str(tmp_path / root)]
        taught = ["--student", "resnet8", "--teacher", "resnet8", "--method", "kd", "--teacher-epochs", "1"]
        assert tool.main([*taught, *QUICK, *data]) == 0
        assert said in capsys.readouterr().out


def test_output_is_plain_lines_where_there_is_no_terminal(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--student", "resnet8", "--method", "vanilla", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(r"epoch 2/2 .*cross_entropy .*left 0:00", out)


@pytest.mark.parametrize("kind", ["backbones", "losses", "methods", "difficulty", "schedulers", "centers", "datasets"])
def test_lists_fit_100_characters(kind: str, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines if line[0] not in " #"] == tool.LISTS[kind].names()


def test_list_of_methods_names_year_terms_and_what_they_are(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(["--list", "methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines if line.startswith("srrl ")] == [
        "srrl 2021 cross_entropy + srrl Softmax regression representation"
    ]
    assert any(line.startswith("# crrcd ") for line in lines)


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
    titles = ["\nwhat:\n", "\ndata:\n", "\nschedule:\n", "\nspeed:\n", "\noutput:\n", "\nreports:\n"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    # Of those that every tool has, two are about speed.
    assert places[3] < text.index("--device DEVICE  ") < places[4]


def test_plugin_of_the_readme(tool: ModuleType, tmp_path: Path, registries: None) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(readme_plugin())
    output = tmp_path / "run"
    chosen = [
        "--method",
        "pckd+logits",
        "--difficulty",
        "confidence_gap",
        "--scheduler",
        "soft_preview(softness=0.3)",
        "--centers",
        "teacher_only",
    ]
    arguments = ["--student", "resnet8", "--plugin", str(plugin), *chosen, *QUICK, "--teacher-epochs", "1"]
    assert tool.main([*arguments, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["preview_weight"] < 1 and row["logit_distance"] > 0 for row in rows)
    check_loss("logit_distance(power=1)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--student is missing"),
        (["--list", "methods:dkkd"], "did you mean 'dkd'"),
        (["--student", "resnet9"], "did you mean"),
        (["--student", "resnet8", "--dataset", "cifar11"], "did you mean 'cifar10'"),
        (["--student", "resnet8", "--method", "crrcd"], "method 'crrcd' is left out: neither a paper nor code"),
        (["--student", "resnet8", "--method", "nothing"], "METHODS: unknown name 'nothing'"),
        (["--student", "resnet8", "--dataset", "imagefolder", "--data-root", "/does/not/exist"], "/does/not/exist"),
        (["--student", "resnet8", *QUICK, "--plugin", "missing.py"], "plug-in missing.py: no such file"),
        (["--student", "resnet8", *QUICK, "--epochs", "0"], "epochs must be"),
        (["--student", "resnet8", *QUICK, "--epochs", "two"], "invalid int value"),
        (["--student", "resnet8", *QUICK, "--teacher-weights", "missing.pth"], "missing.pth"),
        (["--student", "resnet8", *QUICK, "--resume"], "--resume needs the --output folder"),
        (["--student", "resnet8", *QUICK, "--tensorboard"], "--tensorboard needs the --output folder"),
        (["--student", "resnet8", *QUICK, "--val-fraction", "2"], "fraction"),
        (["--student", "resnet8", *QUICK, "--limit-train", "41"], "40"),
        (["--student", "resnet8", *QUICK, "--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--student", "resnet8", *QUICK, "--scheduler", "preview(growth=high)"], "must be a literal"),
        (["--student", "torchvision:squeezenet1_0", *QUICK, "--method", "vanilla"], "squeezenet1_0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal(arguments)


def test_a_plugin_that_fails_says_which_file_and_why(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import registry\n\nregistry.no_such_thing\n")
    assert tool.main(["--student", "resnet8", "--plugin", str(plugin), *QUICK]) == 2
    err = capsys.readouterr().err
    assert str(plugin) in err
    assert "line 3" in err
    assert "no_such_thing" in err


def test_debug_shows_the_traceback(tool: ModuleType) -> None:
    with pytest.raises(ValueError, match="did you mean"):
        tool.main(["--student", "resnet9", "--method", "vanilla", *QUICK, "--debug"])


def test_runs_as_a_script() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--list", "schedulers"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.split()[0] == "constant"
    assert done.stderr == ""


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path))
    match = re.search(r"```python\n(import pckd\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match is not None
    smaller = match[1].replace("limit_train=1000", "limit_train=64, limit_test=20")
    script = tmp_path / "example.py"
    script.write_text(smaller)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "category_contrast" in done.stdout


TINY = ["--dataset", "shapes(num_classes=4, image_size=12, train_size=64, test_size=40)", "--student", "resnet8"]


def test_check_takes_a_step_and_leaves_nothing(
    load_tool: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("train_net")
    output = tmp_path / "run"
    command = [*TINY, "--teacher", "resnet8", "--centers", "ema", "--output", str(output), "--check"]
    assert tool.main(command) == 0
    said = capsys.readouterr().out
    for name in ("loss kd", "loss category_contrast", "scheduler preview", "center rule ema", "backbone resnet8"):
        assert f"checked {name}\n" in said
    assert "checked one step of 32 images" in said
    assert not output.exists()
    # No teacher was trained either.
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("memory", [True, False])
def test_what_is_left_out_of_a_folder_is_said_once_on_standard_output(memory: bool, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name / "@eaDir").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (12, 12), (60 * i, 0, 0)).save(tmp_path / name / f"{i}.jpg")
    for path in (tmp_path / "train" / "b" / "2.jpg", tmp_path / "test" / "a" / "0.jpg"):
        path.write_bytes(path.read_bytes()[:-60])
    command = ["--student", "resnet8", "--method", "vanilla", "--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    command += ["--dataset", f"imagefolder(memory={memory})", "--data-root", str(tmp_path), "--on-bad-image", "skip"]

    def run(*more: str) -> list[str]:
        done = subprocess.run([sys.executable, str(TOOL), *command, *more], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    lines = run()
    for part, name in (("train", "b/2.jpg"), ("test", "a/0.jpg")):
        text = f"{tmp_path / part}: 8 images are used, and left out are hidden folders: 2 (@eaDir)"
        assert lines.count(text) == 1
        (line,) = (line for line in lines if f"{part}/{name}" in line)
        assert line.startswith(f"imagefolder {tmp_path.name}/{part}: 1 of 8 images cannot be read, and ")
    assert sum(line.startswith("epoch ") for line in lines) == 2
    lines = run("--check")
    assert "checked 16 images: 2 cannot be read" in lines
    assert any("train/b/2.jpg" in line for line in lines)
    assert lines[-1] == "checked one step of 4 images; nothing was trained or written"


@pytest.mark.parametrize(
    ("plugin", "options", "clause"),
    [
        (
            "DIFFICULTY_SCHEDULERS.register('mine')(lambda difficulty, context: 2 + difficulty)",
            "--scheduler",
            "scheduler mine",
        ),
        ("DIFFICULTY_METRICS.register('mine')(lambda s, t, c: c.labels.float()[:, None])", "--difficulty", "mine"),
    ],
)
def test_check_names_the_clause_that_a_plugin_breaks(
    plugin: str,
    options: str,
    clause: str,
    load_tool: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    registries: None,
) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(f"from registry import DIFFICULTY_METRICS, DIFFICULTY_SCHEDULERS\n{plugin}\n")
    command = [*TINY, "--teacher", "resnet8", "--plugin", str(path), options, "mine", "--check"]
    assert load_tool("train_net").main(command) == 2
    error = capsys.readouterr().err
    assert clause in error
    assert "clause" in error
    assert error.count("\n") == 1


# TensorBoard


def test_tensorboard_has_the_numbers_of_metrics(tool: ModuleType, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    command = ["--student", "resnet8", "--method", "vanilla", *QUICK, "--report-difficulty", "--tensorboard"]
    assert tool.main([*command, "--output", str(output)]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    (training,) = (output / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(training)).Reload()
    for tag, value in (
        ("accuracy/top1", rows[1]["top1"]),
        (
            "difficulty/metrics/cross_entropy/truth",
            rows[1]["difficulty_report"]["metrics"]["cross_entropy"]["truth"],
        ),
    ):
        assert [event.step for event in events.Scalars(tag)] == [1, 2]
        assert events.Scalars(tag)[1].value == pytest.approx(value)
    assert tool.main([*command, "--output", str(tmp_path / "checked"), "--check"]) == 0
    assert not (tmp_path / "checked").exists()

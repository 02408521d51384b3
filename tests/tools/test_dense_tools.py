"""Detection and segmentation through the command lines, as people call them, on a few small drawn images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pckd
from model_zoo import load_weights
from pckd.commands import benchmark
from pckd.plan import make_task
from registry import DATASETS, build

DATA = "scenes(train_size=8, test_size=4, image_size=64)"
ON = ["--device", "cpu", "--precision", "fp32"]
QUICK = ["--dataset", DATA, "--batch-size", "4", *ON]
SHORT = [*QUICK, "--epochs", "1", "--teacher-epochs", "1"]
DETECTOR, SEGMENTER = ["--student", "faster_rcnn_r10w16"], ["--student", "fcn_r10w16", "--task", "segmentation"]
MINE = '''
from torchvision.models.detection import FasterRCNN
from model_zoo.detection import as_detector
from model_zoo.lean import pyramid
from registry import BACKBONES

@BACKBONES.register("mine", task="detection")
def mine(num_classes: int):
    """Mine."""
    body = pyramid((1, 1, 1, 1), 8, 8, "batch", (1, 2, 3, 4))
    return as_detector(FasterRCNN(body, num_classes + 1, min_size=64), "mine")
'''


@pytest.fixture(scope="module")
def call(load_module: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Call a tool as on a command line; all share one cache, so that each teacher is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCKD_CACHE", str(tmp_path_factory.mktemp("cache")))

        def called(tool: str, *arguments: Any) -> int:
            try:
                return int(load_module(tool).main([str(argument) for argument in arguments]))
            except SystemExit as error:
                return int(error.code or 0)

        yield called


@pytest.fixture(scope="module")
def runs(call: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task, with all that can be asked of one."""
    root = tmp_path_factory.mktemp("runs")
    more = ["--schedule", "cosine(warmup=0.5)", "--clip-grad", "5", "--report-gradients", "--tensorboard"]
    found = {}
    for task, student in (("detection", DETECTOR), ("segmentation", SEGMENTER)):
        found[task] = root / task
        arguments = [*student, *SHORT, *more, "--method", "pckd", "--output", found[task]]
        assert call("train_net", *arguments) == 0
        assert call("train_net", *arguments, "--resume", "--epochs", "2") == 0
    return found


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("task", "metric", "pictures"),
    [("detection", "map", ["detections", "precision_recall"]), ("segmentation", "miou", ["segments"])],
)
def test_a_run_goes_on_and_leaves_its_numbers_and_pictures(
    task: str, metric: str, pictures: list[str], runs: dict[str, Path]
) -> None:
    rows = [json.loads(line) for line in (runs[task] / "metrics.jsonl").read_text().splitlines()]
    record = result(runs[task])
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"grad_norm", "gradient_report", "network_losses", metric} <= set(rows[0])
    assert (record["task"], record["metric"], record[f"last_{metric}"]) == (task, metric, rows[-1][metric])
    assert all((runs[task] / f"{picture}.png").is_file() for picture in pictures)
    assert any((runs[task] / "tensorboard").iterdir())


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_was_trained_is_read_and_measured_again(task: str, runs: dict[str, Path]) -> None:
    record, data = result(runs[task]), pckd.load_data(DATA)
    made = make_task(task, data)
    for name, file, score in (
        (record["student"], runs[task] / "model_final.pth", record[f"last_{record['metric']}"]),
        (record["teacher"], record["teacher_file"], record[f"teacher_{record['metric']}"]),
    ):
        network = made.make_network(name, data)
        load_weights(network, file)
        measured = pckd.evaluate(network, data, task=task, batch_size=3)
        assert measured.scores[record["metric"]] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "drawn"),
    [
        ("detection", {"curves", "preview", "gradients", "cost", "centers", "detections", "precision_recall"}),
        ("segmentation", {"curves", "preview", "gradients", "cost", "centers", "segments"}),
    ],
)
def test_all_its_pictures_are_drawn(
    task: str, drawn: set[str], runs: dict[str, Path], call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plot", "all", runs[task], "--output", tmp_path, *ON) == 0
    assert {path.stem for path in tmp_path.iterdir()} == drawn
    said = capsys.readouterr().out
    assert f"in the task {task} a network answers about parts of images" in said
    assert "the student alone" not in said


@pytest.mark.parametrize(
    ("student", "schedule"),
    [(DETECTOR, "cosine(warmup=5)"), (SEGMENTER, "linear"), (["--student", "mine"], "constant")],
    ids=lambda value: str(value[1]) if isinstance(value, list) else "",
)
def test_a_run_is_checked(
    student: list[str], schedule: str, call: Any, registries: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    method = ["--method", "vanilla" if "mine" in student else "kd", "--schedule", schedule]
    # A warm-up that is longer than the one step.
    arguments = [*student, *method, *QUICK, "--epochs", "12", "--plugin", tmp_path / "mine.py", "--check"]
    assert call("train_net", *arguments) == 0
    said = capsys.readouterr().out
    assert f"checked backbone {student[1]}\n" in said
    assert f"checked schedule {schedule}\n" in said


@pytest.mark.parametrize(
    ("student", "methods", "refused", "unit"),
    [
        (DETECTOR, "vanilla,crd,cirkd", "cirkd needs pixels", "mAP"),
        (SEGMENTER, "vanilla,cirkd,crd", "crd: a row has no place in its memory", "mIoU"),
    ],
)
def test_methods_are_compared_under_the_usual_teacher(
    student: list[str], methods: str, refused: str, unit: str, call: Any, tmp_path: Path
) -> None:
    arguments = [*student, *SHORT, "--methods", methods, "--output", tmp_path]
    assert call("benchmark", *arguments) == 0
    table = (tmp_path / "benchmark.md").read_text()
    assert f"last {unit}" in table
    assert refused in table
    assert f"_r18w48>{student[1]}" in table
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/result.json")}
    assert len(stamps) == 2
    assert call("benchmark", *arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_an_ablation_leaves_out_the_variants_of_views() -> None:
    parser = benchmark.make_parser()
    labels = {
        data: [
            one.label for one in benchmark.chosen_variants(parser.parse_args(["--ablation", "pckd", "--dataset", data]))
        ]
        for data in ("shapes", "scenes")
    }
    assert set(labels["shapes"]) - set(labels["scenes"]) == {"pckd-1-view", "pckd-1-view-4x-epochs", "kd-4x-epochs"}
    assert "pckd-without-center" in labels["scenes"]


@pytest.mark.parametrize(
    ("arguments", "works"),
    [
        (["--task", "detection"], {"kd": 2, "cirkd": 0, "crd": 2, "sskd": 0}),
        (["--task", "segmentation", "--dataset", "scenes"], {"kd": 1, "cirkd": 1, "crd": 0, "sskd": 0}),
    ],
)
def test_matrix(arguments: list[str], works: dict[str, int], call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("benchmark", "--matrix", *arguments, "--methods", ",".join(works)) == 0
    lines = capsys.readouterr().out.strip().splitlines()[2:]
    assert {line.split()[1]: line.count("| works") for line in lines} == works


@pytest.mark.parametrize(
    ("student", "task", "method"),
    [
        ("faster_rcnn_r10w16", "detection", "crd"),
        # Its smallest map is one pixel, and one image is a batch.
        ("fcos_r10w16", "detection", "mgd"),
        ("fcn_r10w16", "segmentation", "cirkd"),
    ],
)
def test_a_step_is_profiled_on_noise(student: str, task: str, method: str, call: Any, tmp_path: Path) -> None:
    sizes = ["--image-size", "64", "--num-classes", "3", "--batch-size", "2", "--rounds", "1"]
    file = tmp_path / "cost.json"
    arguments = ["--student", student, "--task", task, "--method", method, *sizes, "--json", file, *ON]
    assert call("profile_net", *arguments) == 0
    profile = json.loads(file.read_text())
    assert profile["student"]["macs"] > 1e6
    assert set(profile["student"]["latency"]) == {"1", "2"}
    assert any(term.startswith(method) for term in profile["terms"])
    assert "network_losses" in profile["terms"]
    assert not any("cannot trace" in note for note in profile["notes"])


VANILLA = ["--method", "vanilla"]
REFUSED = [
    (["train_net", "--student", "resnet8", *SHORT], "the student must be a network for detection, such as"),
    (["train_net", *DETECTOR, *SHORT, "--dataset", "shapes"], "shapes is no data for detection: it must have boxes"),
    (["train_net", *DETECTOR, *SHORT, "--task", "classification"], "is data for detection: leave out the task"),
    (["train_net", *DETECTOR, *SHORT, "--task", "segmentation"], "is a network for detection, and the task is segm"),
    (["train_net", "--student", "faster_rcnn_r10w16(norm='x')", *SHORT], "norm must be 'group' or 'batch', not 'x'"),
    (["train_net", "--student", "torchvision:fcos_resnet51_fpn", *SHORT, *VANILLA], "did you mean 'fcos_resnet50_fpn'"),
    (
        ["train_net", "--student", "torchvision:ssd300_vgg16", *SHORT, *VANILLA],
        "error: torchvision:ssd300_vgg16 is no FCOS",
    ),
    (
        ["train_net", "--student", "torchvision:fcos_resnet50_fpn(weights='x')", *SHORT, *VANILLA],
        "has no weights 'x': use one",
    ),
    # Before the teacher is trained.
    (["train_net", *DETECTOR, *SHORT, "--teacher", "fcos_r18w48"], "look at other regions (proposals and locations)"),
    (["train_net", *DETECTOR, *SHORT, "--report-difficulty"], "report_difficulty serves classification"),
    (["train_net", *DETECTOR, *SHORT, "--schedule", "cosine(warmup=1)"], "shorter than the run (1)"),
    (["train_net", *DETECTOR, *SHORT, "--dataset", "voc", "--data-root", "{root}"], "there is no JPEGImages/; give"),
    (["train_net", *DETECTOR, *SHORT, "--dataset", "pixels", *VANILLA], "pixels has no boxes, which detection learns"),
    (["train_net", *DETECTOR, *SHORT, *VANILLA, "--resume", "--output", "{segmentation}"], "cannot resume from"),
    (["profile_net", *DETECTOR], "is a network for detection, and the task is classification; use task=detection"),
    (["profile_net", *DETECTOR, "--task", "detection", "--in-channels", "1"], "takes images of 3 channels, not 1"),
    (["benchmark", *SHORT, "--student", "torchvision:fcos_resnet50_fpn", "--output", "{root}"], "no usual teacher is"),
    (["benchmark", "--matrix", "--task", "mine"], "no families of networks are known for the task 'mine'"),
    (["plot", "segments", "{detection}", "--output", "a.png"], "segments is of the task segmentation, and "),
    (["plot", "embedding", "{detection}", "--output", "a.png"], "in the task detection a network answers about parts"),
    (
        ["plot", "detections", "{detection}", "--output", "a.png", "--score", "1.5"],
        "score must be from 0 to 1, not 1.5",
    ),
    (["transfer", "{detection}", "--dataset", "shapes"], "a run of detection, whose network says nothing of whole"),
    (["transfer", "--random", *DETECTOR, "--source", "shapes", "--dataset", "shapes"], "is a network for detection"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[" ".join(case[0][:3]) for case in REFUSED])
def test_refused_in_one_line(
    arguments: list[str],
    said: str,
    call: Any,
    runs: dict[str, Path],
    registries: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @DATASETS.register("pixels", task="segmentation")
    def pixels(root: str | None = None, train: bool = True) -> Any:
        return replace(build(DATASETS, DATA, None, train), annotations=(), difficulty=None)

    places = {"root": tmp_path, **runs}
    capsys.readouterr()
    assert call(*(part.format_map(places) if part.startswith("{") else part for part in arguments)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1

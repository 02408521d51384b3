"""Pictures of run folders: the numbers that are drawn, what a figure holds, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from model_zoo import Preprocessing, save_weights
from pckd import plots
from pckd.distributed import world_size
from pckd.engine.fingerprint import network_fingerprint
from pckd.objective import Predictor
from pckd.plots import embedding, pictures
from pckd.plots.centers import classifier_rows, off_diagonal_correlation, similarities
from pckd.plots.cost import pareto, points_of_benchmark, points_of_runs, relative, seconds_of
from pckd.plots.curves import series
from pckd.plots.difficulty import shares
from pckd.plots.embedding import first_classes, placed_centers, principal_plane
from pckd.plots.networks import Workshop, _predictor
from pckd.plots.style import grid_shape, line_style, marker_style
from pckd.runs import Run, read_benchmarks, read_runs
from registry import BACKBONES, DataSplit, UserError, build

pytest.importorskip("matplotlib")

EDGES = [0.0, 0.2, 0.4]
WriteRun = Callable[..., Path]
Taught = Callable[..., tuple[Path, Path]]


def write_benchmark(folder: Path, rows: Sequence[dict[str, Any]] | None = None) -> Path:
    def row(pair: str, label: str, tops: list[float], seconds: list[Any]) -> dict[str, Any]:
        return {"pair": pair, "label": label, "last_top1": tops, "seconds": seconds, "teacher_top1": 80.0}

    if rows is None:
        rows = [
            row("resnet20>resnet8", "kd", [60.0, 62.0], [100.0, 100.0]),
            row("resnet20>resnet8", "pckd", [63.0, 65.0], [390.0, 410.0]),
            row("resnet20>resnet8", "vanilla", [58.0], [50.0]),
            row("vgg13>vgg8", "kd", [70.0, 70.0], [None, 200.0]),
            row("vgg13>vgg8", "at", [69.0, 71.0], []),
        ]
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps({"protocol": {"dataset": "cifar100"}, "rows": list(rows)}))
    return folder


def report(counts: Sequence[int], truth: float | None = None) -> dict[str, Any]:
    metric: dict[str, Any] = {"histogram": list(counts)} | ({} if truth is None else {"truth": truth})
    known = {} if truth is None else {"top1_by_truth": [50.0, 40.0, 30.0]}
    return {"edges": EDGES, "metrics": {"margin": metric}, **known}


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "compare")


@pytest.fixture
def seeds(write_run: WriteRun) -> list[Path]:
    """Two seeds of kd."""
    return [write_run(f"kd-{s}", seed=s, tops=(10.0 + 2 * s, 20.0 + 4 * s)) for s in (0, 1)]


# Curves and preview


def test_series_are_means_with_the_lowest_and_highest(seeds: list[Path]) -> None:
    runs = read_runs(seeds)[0]
    runs[1].rows.append({"epoch": 3, "top1": 7.0, "kd": None})
    assert series(runs, "top1") == ([1, 2, 3], [11.0, 22.0, 7.0], [10.0, 20.0, 7.0], [12.0, 24.0, 7.0], 2)
    assert series(runs, "kd").epochs == []


def test_gradients_have_a_panel_for_each_pair_and_each_norm(write_run: WriteRun) -> None:
    def pulled(cosine: float) -> dict[str, Any]:
        return {"norms": {"kd": 2.0, "crd": 1.0}, "cosines": {"kd": {"crd": cosine}}}

    folders = [write_run(str(s), seed=s, rows={"gradient_report": [pulled(0.5 + s / 4), pulled(-0.5)]}) for s in (0, 1)]
    picture = plots.draw("gradients", [*folders, write_run("plain", "vanilla")])
    assert titles(picture.figure) == ["cosine: kd, crd", "norm: kd", "norm: crd"]
    assert [lines(axes) for axes in picture.figure.axes[:2]] == [[[0.625, -0.5]], [[2.0, 2.0]]]
    assert picture.notes == ["vanilla: without --report-gradients, and left out"]


def titles(figure: Any) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes]


def lines(axes: Any) -> list[list[float]]:
    """The heights of a panel's lines."""
    return [list(line.get_ydata()) for line in axes.get_lines()]


def test_curves_have_a_panel_a_term_and_a_line_a_group(seeds: list[Path], write_run: WriteRun) -> None:
    other = write_run("pckd", "pckd", rows={"kd": [2.0, 1.0]})
    figure = plots.draw("curves", [*seeds, other, seeds[0]]).figure
    accuracies, terms = ["top-1 on test (%)", "top-1 in training (%)"], ["cross_entropy (weighted)", "kd (weighted)"]
    assert titles(figure) == [*accuracies, *terms, "loss (their sum)"]
    assert lines(figure.axes[0]) == [[11.0, 22.0], [10.0, 20.0]]
    # Only two seeds have a band.
    assert len(figure.axes[0].collections) == 1
    one, other = figure.axes[0].get_lines()
    assert one.get_color() != other.get_color()
    assert one.get_marker() != other.get_marker()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kd", "pckd"]


def test_curves_of_another_task_show_its_metric(write_run: WriteRun) -> None:
    folder = write_run("run", rows={"miou": [40.0, 41.0], "train_miou": [45.0, 46.0]}, metric="miou")
    assert titles(plots.draw("curves", [folder]).figure)[:2] == ["mIoU on test (%)", "mIoU in training (%)"]


def test_preview_shows_who_previews(seeds: list[Path], write_run: WriteRun) -> None:
    folder = write_run("pckd", "pckd", rows={"preview_weight": [0.7, 0.9], "previewed": [0.3, 0.1]})
    picture = plots.draw("preview", [*seeds, folder])
    assert [lines(axes) for axes in picture.figure.axes] == [[[0.7, 0.9]], [pytest.approx([30, 10])]]
    assert picture.notes == ["kd: previews nothing, and is left out"]


# Difficulty


def test_shares_are_of_the_first_and_the_last_report(write_run: WriteRun) -> None:
    reports = [[report([6, 3, 1]), report([1, 1, 8])], [report([2, 5, 3]), report([3, 1, 6])]]
    folders = [write_run(str(s), seed=s, rows={"difficulty_report": rows}) for s, rows in enumerate(reports)]
    runs = read_runs(folders)[0]
    assert shares(runs, "margin", late=False).tolist() == [40.0, 40.0, 20.0]
    assert shares(runs, "margin", late=True).tolist() == [20.0, 10.0, 70.0]


@pytest.mark.parametrize("known", [True, False])
def test_difficulty_has_a_histogram_a_metric_and_the_truth_where_it_is_known(known: bool, write_run: WriteRun) -> None:
    rows = [report([6, 3, 1], 0.2 if known else None), report([1, 1, 8], 0.4 if known else None)]
    histogram, *truth = plots.draw("difficulty", [write_run("run", rows={"difficulty_report": rows})]).figure.axes
    early, late = (patch.get_data() for patch in histogram.patches)
    assert (early.values.tolist(), late.values.tolist()) == ([60, 30, 10], [10, 10, 80])
    assert late.edges == pytest.approx([0, 0.2, 0.4, 0.6])
    expected = [[[0.2, 0.4]], [[50, 50], [40, 40], [30, 30]]] if known else []
    assert [lines(axes) for axes in truth] == expected


# Ablation


def test_ablation_has_a_panel_a_pair_and_a_dot_a_seed(benchmark_folder: Path) -> None:
    first, second = plots.draw("ablation", [benchmark_folder]).figure.axes
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["pckd", "kd", "vanilla"]
    assert [patch.get_x() + patch.get_width() for patch in first.patches] == pytest.approx([64, 61, 58])
    assert [patch.get_hatch() for patch in first.patches] == ["", "///", ""]
    assert [text.get_text() for text in first.texts] == ["64.00 ± 1.41", "61.00 ± 1.41", "58.00"]
    dots = [line.get_xdata() for line in first.get_lines() if line.get_marker() == "o"]
    assert [list(map(float, xs)) for xs in dots] == [[63, 65], [60, 62], [58]]
    dashed = [line for line in first.get_lines() if line.get_linestyle() == "--"]
    assert [set(line.get_xdata()) for line in dashed] == [{61.0}]
    low, high = first.get_xlim()
    assert 0 < low < 58.0 < 65.5 < high
    assert second.get_title(loc="left") == "vgg13 > vgg8, teacher 80.00 %"


def test_bars_of_one_value_everywhere_can_be_drawn(tmp_path: Path) -> None:
    rows = [{"pair": "a>b", "label": "kd", "last_top1": [100.0]}]
    figure = plots.draw("ablation", [write_benchmark(tmp_path / "one", rows)]).figure
    assert len(figure.axes[0].patches) == 1


# Cost


@pytest.mark.parametrize(
    ("costs", "accuracies", "front"),
    [
        ([1, 2, 3], [10, 20, 30], [0, 1, 2]),
        ([3, 2, 1], [30, 20, 10], [2, 1, 0]),
        ([1, 2, 3], [30, 20, 10], [0]),
        ([1, 1, 2], [10, 12, 12], [1]),
        ([4, 1, 2, 3], [9, 5, 4, 8], [1, 3, 0]),
    ],
)
def test_pareto_front(costs: list[float], accuracies: list[float], front: list[int]) -> None:
    assert pareto(costs, accuracies) == front


def test_points_leave_out_what_was_not_timed_and_are_relative_to_kd(benchmark_folder: Path) -> None:
    benchmark = read_benchmarks([benchmark_folder])[0]
    points = points_of_benchmark(benchmark, "resnet20>resnet8")
    assert [(p.label, p.cost, p.accuracy) for p in points] == [("kd", 100, 61), ("pckd", 400, 64), ("vanilla", 50, 58)]
    scaled, is_relative = relative(points)
    assert is_relative
    assert [p.seconds for p in scaled] == [[1, 1], pytest.approx([3.9, 4.1]), [0.5]]
    assert [(p.label, p.cost) for p in points_of_benchmark(benchmark, "vgg13>vgg8")] == [("kd", 200)]
    assert relative(points[1:]) == (points[1:], False)


def test_seconds_of_runs(seeds: list[Path]) -> None:
    runs = read_runs(seeds)[0]
    assert [(p.label, p.cost, p.accuracy) for p in points_of_runs(runs)] == [("kd", 10.5, 22.0)]
    older = {"train_images": 100, "epochs": 12, "images_per_second": 40.0}
    assert seconds_of(Run(Path("x"), [], older)) == 30.0
    assert seconds_of(Run(Path("x"), [], {"train_images": 100})) is None


def test_cost_has_one_legend_that_tells_the_methods_apart(tmp_path: Path) -> None:
    common = {"pair": "a>b", "last_top1": [60.0], "seconds": [100.0]}
    rows = [{**common, "label": f"method number {i}"} for i in range(6)]
    rows += [{**common, "label": "kd", "seconds": [90.0, 95.0]}, {**rows[0], "pair": "c>d"}]
    figure = plots.draw("cost", [write_benchmark(tmp_path / "close", rows)]).figure
    styles: dict[str, set[tuple[Any, Any]]] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            styles.setdefault(label, set()).add((handle.lines[0].get_color(), handle.lines[0].get_marker()))
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(styles)
    assert len(styles) == len(set.union(*styles.values())) == 7
    assert figure.axes[0].get_xlabel() == "training time (kd: 1)"


# Centers


def test_similarities_of_known_centers() -> None:
    found = similarities(np.array([[1.0, 0], [0, 2], [3, 3], [0, 0]]))
    half = 0.5**0.5
    assert found == pytest.approx(np.array([[1, 0, half, 0], [0, 1, half, 0], [half, half, 1, 0], [0, 0, 0, 0]]))


def test_correlation_looks_above_the_diagonal_only() -> None:
    one = np.array([[1.0, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    other = np.array([[9.0, 3, 2], [3, 9, 1], [2, 1, 9]])
    assert off_diagonal_correlation(one, one * 2 + 5) == pytest.approx(1)
    assert off_diagonal_correlation(one, other) == pytest.approx(-1)
    assert off_diagonal_correlation(one[:2, :2], one[:2, :2]) is None
    with pytest.raises(UserError, match="3 classes and the teacher 2"):
        off_diagonal_correlation(one, one[:2, :2])


@pytest.fixture
def taught(tmp_path: Path, write_run: WriteRun) -> Taught:
    """Writes a run's folder and its teacher's weights."""

    def write(classes: int = 4, name: str = "run", **arguments: str) -> tuple[Path, Path]:
        torch.manual_seed(9)
        weights = save_weights(build(BACKBONES, "resnet20", classes), tmp_path / f"teacher-{classes}.pth")
        return write_run(name, classes=classes, arguments={"teacher_weights": str(weights), **arguments}), weights

    return write


def test_centers_are_the_rows_of_both_classifiers(taught: Taught) -> None:
    folder, weights = taught()
    before = torch.get_rng_state()
    picture = plots.draw("centers", [folder])
    assert torch.equal(torch.get_rng_state(), before)
    *panels, bar = picture.figure.axes
    networks = [build(BACKBONES, name, 4) for name in ("resnet8", "resnet20")]
    for network, path in zip(networks, (folder / "model_final.pth", weights), strict=True):
        network.load_state_dict(torch.load(path, weights_only=True)["model"])
    expected = [similarities(classifier_rows(network)) for network in networks]
    shown = [axes.get_images()[0] for axes in panels]
    assert [image.get_array().data.tolist() for image in shown] == pytest.approx(np.array(expected))
    assert shown[0].get_clim() == shown[1].get_clim()
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["disc", "ring", "square", "triangle"]
    assert picture.figure.get_suptitle().endswith(f"off-diagonals {off_diagonal_correlation(*expected):.2f}")
    assert bar.get_xlabel().startswith("cosine")
    assert picture.notes == []


@pytest.mark.parametrize(
    ("weights", "note"),
    [(None, "does not say where its teacher's weights are"), ("/gone/teacher.pth", "are not there any more")],
)
def test_without_the_teachers_weights_the_student_is_alone(
    weights: str | None, note: str, write_run: WriteRun, taught: Taught
) -> None:
    folder = write_run("run", classes=4, arguments={"teacher_weights": weights})
    picture = plots.draw("centers", [folder])
    assert len(picture.figure.axes) == 2
    assert [note in text for text in picture.notes] == [True]
    given = plots.draw("centers", [folder], teacher_weights=taught(name="other")[1])
    assert len(given.figure.axes) == 3


def test_classes_are_named_by_the_student_or_numbered_where_the_data_set_is_gone(write_run: WriteRun) -> None:
    folder = write_run("run", classes=4, arguments={"data": "imagefolder", "data_root": "/gone"}, teacher=None)
    picture = plots.draw("centers", [folder])
    assert picture.figure.axes[0].get_xlabel() == "class"
    assert ["has no teacher" in picture.notes[0], "classes are numbered" in picture.notes[1]] == [True, True]
    with_record(folder / "model_final.pth", classes=("a", "b", "c", "d"))
    axes = plots.draw("centers", [folder]).figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c", "d"]


def test_a_student_that_answers_with_a_losses_head(write_run: WriteRun) -> None:
    folder = write_run("run", "simkd", classes=4)
    workshop, (run,) = Workshop(), read_runs([folder])[0]
    predictor = _predictor(run, workshop.student(run))
    save_weights(predictor, folder / "model_final.pth")
    loaded = workshop.student(run)
    assert isinstance(loaded, Predictor)
    assert torch.equal(loaded.classifier.weight, predictor.classifier.weight)
    picture = plots.draw("embedding", [folder])
    assert any("no centers among its embeddings" in note for note in picture.notes)
    assert len(picture.figure.axes[0].collections) == 4


def with_record(path: Path, **changes: Any) -> None:
    """Give a file of weights with 4 classes a record of its preprocessing."""
    record = replace(Preprocessing((0.5,) * 3, (0.16,) * 3, (8, 8), ("disc", "ring", "square", "triangle")), **changes)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "meta": {"preprocessing": record.as_metadata()}}, path)


def test_a_teacher_that_is_not_the_runs_own_is_said(taught: Taught) -> None:
    folder, weights = taught()
    network = build(BACKBONES, "resnet20", 4)
    result = json.loads((folder / "result.json").read_text())
    known = {"fingerprints": {"teacher": network_fingerprint(network)}}
    (folder / "result.json").write_text(json.dumps(result | known))
    note = f"{weights}: has other weights than the teacher that the runs learned from"
    assert plots.draw("centers", [folder]).notes == [note]
    save_weights(network, weights)
    assert plots.draw("centers", [folder]).notes == []


def test_networks_are_shown_images_by_their_own_record(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    original = embedding.embeddings
    monkeypatch.setattr(embedding, "embeddings", lambda *a, **o: (shown.append(a[1].mean), original(*a, **o))[1])
    folder, weights = taught()
    with_record(weights, mean=(0.1, 0.2, 0.3))
    picture = plots.draw("embedding", [folder], images=20)
    assert shown == [(0.5,) * 3, (0.1, 0.2, 0.3)]
    assert [note for note in picture.notes if "teacher resnet20: is shown images normalized as in its own" in note]
    other = ("ring", "disc", "square", "triangle")
    with_record(folder / "model_final.pth", classes=other)
    for kind in ("centers", "embedding"):
        with pytest.raises(UserError, match="teacher resnet20: was trained on the same classes in another order than"):
            plots.draw(kind, [folder])
    with_record(weights, classes=other)
    with pytest.raises(UserError, match="resnet8, kd: was trained on the same classes in another order than shapes"):
        plots.draw("embedding", [folder], images=20)


# Embedding


def test_a_student_whose_classifier_was_never_trained_has_no_centers(taught: Taught) -> None:
    folder, weights = taught()
    with_record(weights)
    with_record(folder / "model_final.pth", classes=())
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "task": "unlabeled"}))
    picture = plots.draw("embedding", [folder], images=20)
    assert [len(axes.collections) for axes in picture.figure.axes] == [4, 4]
    assert "no centers are shown" in picture.notes[-1]
    with pytest.raises(UserError, match="classifier was never trained, so that it has no centers"):
        plots.draw("centers", [folder])


def test_plane_of_points_on_known_axes() -> None:
    points = np.array([[5.0, 1, 0], [-5, 1, 0], [0, 1, 3], [0, 1, -3]])
    plane = principal_plane(points)
    assert plane.mean.tolist() == [0, 1, 0]
    assert plane.axes == pytest.approx(np.array([[1.0, 0, 0], [0, 0, 1]]))
    assert plane.shares == pytest.approx((50 / 68, 18 / 68))
    assert plane.project(points) == pytest.approx(np.array([[5.0, 0], [-5, 0], [0, 3], [0, -3]]))
    # A singular vector of either sign is turned to have its largest entry positive.
    assert principal_plane(-points).axes == pytest.approx(plane.axes)
    with pytest.raises(UserError, match="3 images"):
        principal_plane(points[:2])


def test_centers_are_moved_and_scaled_together() -> None:
    points = np.array([[4.0, 0], [-2, 0], [1, 3], [1, -3]])
    rows = np.array([[10.0, 11], [10, 9]])
    assert placed_centers(rows, points) == pytest.approx(np.array([[1.0, 3], [1, -3]]))


def test_images_of_the_first_ten_classes() -> None:
    names = tuple(map(str, range(12)))
    split = DataSplit(torch.arange(36).byte().view(36, 1, 1, 1), torch.arange(36) % 12, names, (0.5,), (0.5,))
    part = first_classes(split, 100)
    assert (len(part), int(part.labels.max()), len(first_classes(split, 7))) == (30, 9, 7)
    assert torch.equal(part.images.flatten().long() % 12, part.labels)


@pytest.mark.parametrize(("classes", "shown"), [(4, 4), (12, 10)])
def test_embedding_shows_images_and_centers_of_both(classes: int, shown: int, taught: Taught) -> None:
    folder, _ = taught(classes)
    figure = plots.draw("embedding", [folder], images=20).figure
    assert len(figure.axes) == 2
    for axes in figure.axes:
        images, centers = axes.collections[:shown], axes.collections[shown:]
        assert sum(len(points.get_offsets()) for points in images) == 20
        assert [len(points.get_offsets()) for points in centers] == [1] * shown
        assert min(points.get_sizes()[0] for points in centers) > 5 * max(points.get_sizes()[0] for points in images)
    assert len(figure.legends[0].get_texts()) == shown
    assert ("of the first 10 of 12 classes" in figure.get_suptitle()) == (classes == 12)


def test_images_that_were_held_out(write_run: WriteRun) -> None:
    folder = write_run("run", classes=4, arguments={"val_fraction": 0.5})
    assert len(Workshop().split(read_runs([folder])[0][0])) == 12


# Styles and files


def test_styles_do_not_repeat() -> None:
    keys = ("color", "linestyle", "marker")
    assert len({tuple(str(line_style(i)[key]) for key in keys) for i in range(35)}) == 35
    assert len({(marker_style(i)["color"], marker_style(i)["marker"]) for i in range(100)}) == 100
    for key in ("color", "marker"):
        assert len({marker_style(i)[key] for i in range(10)}) == 10
    assert [grid_shape(n) for n in (1, 2, 3, 4, 5, 7)] == [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_pictures_are_written_in_the_format_of_the_name(
    seeds: list[Path], tmp_path: Path, suffix: str, start: bytes
) -> None:
    target = tmp_path / f"picture.{suffix}"
    target.write_bytes(b"old")
    assert plots.plot("curves", seeds, target) == []
    assert target.read_bytes().startswith(start)
    if suffix == "png":
        # The size of a README's.
        with Image.open(target) as image:
            assert image.size[0] == 1260
        assert target.stat().st_size < 120_000


def test_all_writes_what_the_folders_allow(tmp_path: Path, seeds: list[Path], benchmark_folder: Path) -> None:
    said: list[str] = []
    written = plots.plot_all([*seeds, benchmark_folder], tmp_path / "pictures", say=said.append)
    assert [path.name for path in written] == ["curves.png", "ablation.png", "cost.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    left_out = {text.partition(":")[0]: text for text in said if ": left out: " in text}
    others = ["detections", "precision_recall", "segments"]
    assert list(left_out) == ["preview", "gradients", "difficulty", "centers", "embedding", *others]
    assert "--report-difficulty" in left_out["difficulty"]
    assert "model_final.pth" in left_out["centers"]
    assert "is of the task segmentation, and " in left_out["segments"]


def test_a_process_of_a_group_draws_alone(write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    seen = []
    monkeypatch.setitem(pictures._OF_ROWS, "curves", lambda groups: (seen.append(world_size()), []))
    plots.draw("curves", [write_run("run")])
    assert (seen, world_size()) == ([1], 2)


# What is refused


def refused(kind: str, folders: Sequence[Path], target: Path, **options: Any) -> str:
    """The one line with which a picture is refused; a file that was there is as it was."""
    is_file = target.is_file()
    before = target.read_bytes() if is_file else None
    with pytest.raises(UserError) as error:
        plots.plot(kind, folders, target, **options)
    assert (target.read_bytes() if is_file else None) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "folders", "message"),
    [
        ("curves", "empty", "no metrics.jsonl"),
        ("curves", "gone", "no such folder"),
        ("curves", "old.png", "not a folder"),
        ("curves", "compare", "folder of benchmark.py"),
        ("ablation", "kd-0 kd-1", "single run's folder"),
        ("ablation", "", "no folder of benchmark.py is given"),
        ("preview", "kd-0", "--method pckd"),
        ("difficulty", "kd-0", "--report-difficulty"),
        ("centers", "kd-0", "no model_final.pth"),
        ("curve", "kd-0", "unknown kind"),
    ],
)
def test_folders_that_do_not_allow_a_kind(
    kind: str, folders: str, message: str, tmp_path: Path, seeds: list[Path], benchmark_folder: Path
) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    assert message in refused(kind, [tmp_path / name for name in folders.split()], tmp_path / "old.png")


def test_damaged_files(tmp_path: Path, seeds: list[Path], write_run: WriteRun) -> None:
    target = tmp_path / "new.png"
    for text, message in (
        ('{"epoch": 1}\n{"epo\n{"epoch": 3}\n', "line 2 is damaged"),
        ('{"epoch": 1', "no whole line yet"),
        ("", "no whole line yet"),
        ("[1]\n", "line 1 is not an epoch's row"),
        ('{"epoch": 1}\n', "no top1"),
    ):
        (seeds[0] / "metrics.jsonl").write_text(text)
        assert message in refused("curves", seeds[:1], target)
    (seeds[1] / "result.json").write_text("{")
    assert "no JSON" in refused("curves", seeds[1:], target)
    for number, (rows, message) in enumerate((([], "no rows"), ([{"pair": "a>b"}], "not what tools/benchmark.py"))):
        assert message in refused("ablation", [write_benchmark(tmp_path / f"b{number}", rows)], target)
    for kind, entries, message in (
        ("difficulty", [report([1, 2, 3]) | {"metrics": {"margin": {"histogram": ["x"]}}}] * 2, "is damaged"),
        ("difficulty", [report([1, 2])] * 2, "does not fit its edges"),
        ("gradient", [{"norms": 3, "cosines": {"kd": 1}}, 5], "damaged or empty"),
    ):
        folder = write_run(message, rows={f"{kind}_report": entries})
        assert message in refused(kind.replace("gradient", "gradients"), [folder], target)
    assert not target.exists()


def test_networks_that_cannot_be_shown(tmp_path: Path, write_run: WriteRun, taught: Taught) -> None:
    folder, weights = taught()
    five, _ = taught(5, name="five", data="shapes(num_classes=4, image_size=8)")
    gone = tmp_path / "no.pth"
    cut = write_run("cut")
    (cut / "model_final.pth").write_bytes(weights.read_bytes()[:1000])
    for kind, folders, options, message in (
        ("embedding", [folder], {"images": 2}, "at least 3"),
        ("centers", [write_run("wrong", classes=4, student="vgg8")], {}, "is not of a vgg8"),
        ("centers", [write_run("unknown", classes=4, student="Mine")], {}, "unknown name 'Mine'"),
        ("centers", [folder, five], {}, "several teachers"),
        ("embedding", [five], {}, "5 classes"),
        ("centers", [folder], {"teacher_weights": gone}, str(gone)),
        ("centers", [cut], {}, "damaged"),
        ("centers", [write_run(m, m, classes=4) for m in ("a", "b", "c", "d")], {}, "at most 3"),
    ):
        assert message in refused(kind, folders, tmp_path / "new.png", **options)


def test_outputs_that_cannot_be_written(tmp_path: Path, seeds: list[Path], write_run: WriteRun) -> None:
    assert "is a folder" in refused("curves", seeds, tmp_path)
    assert ".png" in refused("curves", seeds, tmp_path / "picture.docx")
    assert "must end in a format" in refused("curves", seeds, tmp_path / "picture")
    assert "there is no folder" in refused("curves", seeds, tmp_path / "gone" / "picture.png")
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="not a folder"):
        plots.plot_all(seeds, tmp_path / "file")
    with pytest.raises(UserError, match="check the path"):
        plots.plot_all(seeds, tmp_path / "file" / "pictures")
    nothing = write_run("nothing", finished=False)
    (nothing / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match="none of the pictures"):
        plots.plot_all([nothing], tmp_path / "pictures")
    assert not (tmp_path / "pictures").exists()


def test_a_disk_that_is_full(seeds: list[Path], tmp_path: Path, file_size_limit: Any) -> None:
    target = tmp_path / "picture.png"
    target.write_bytes(b"old")
    with file_size_limit(1000):
        assert "cannot write" in refused("curves", seeds, target)
    assert target.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_matplotlib(seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: plots.plot("curves", seeds, tmp_path / "picture.png"),
        lambda: plots.draw("curves", seeds),
        lambda: plots.plot_all(seeds, tmp_path / "all"),
    ):
        with pytest.raises(UserError, match=r"a picture needs matplotlib: pip install 'pckd\[plots\]'"):
            call()

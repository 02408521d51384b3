"""pckd/comparison: statistics by hand, variants by name, jobs, and what the tables say."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_zoo import PAIRS, save_weights, set_preprocessing
from pckd import load_data
from pckd.comparison import jobs as planning
from pckd.comparison.jobs import (
    DEFAULTS,
    Job,
    folder_name,
    make_jobs,
    parse_pairs,
    parse_seeds,
    parse_weights,
    refuse_early,
    settings_of,
    unusual,
)
from pckd.comparison.paper import is_papers_setting, paper_figure, paper_methods
from pckd.comparison.presets import PRESETS, preset
from pckd.comparison.results import Results
from pckd.comparison.runner import dealt, failure
from pckd.comparison.statistics import paired_difference, t_quantile
from pckd.comparison.variants import Variant, ablation_variants, method_variants, scheduled
from pckd.runs import Run
from registry import BACKBONES, CENTER_RULES, DIFFICULTY_METRICS, DIFFICULTY_SCHEDULERS, METHODS, UserError

DATA = "shapes(image_size=8, train_size=20, test_size=9)"

# Statistics


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 5, 2.571),
        (0.95, 10, 2.228),
        (0.95, 1000, 1.962),
        (0.99, 2, 9.925),
        (0.9, 4, 2.132),
        (0.5, 1, 1.0),
    ],
)
def test_quantiles_are_those_of_the_tables(confidence: float, freedom: int, expected: float) -> None:
    assert t_quantile(confidence, freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan")])
def test_no_interval_has_such_a_confidence(confidence: float) -> None:
    with pytest.raises(UserError, match="confidence must be above 0 and below 1"):
        t_quantile(confidence, 3)


def test_paired_difference_by_hand() -> None:
    # Differences 1, 3, 2: mean 2, deviation 1, half a width of 4.303 / sqrt(3).
    values, *interval = paired_difference([71.0, 75.0, 73.0], [70.0, 72.0, 71.0])
    assert values == [1.0, 3.0, 2.0]
    assert interval == pytest.approx([2.0, 2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert paired_difference([2.0], [1.5]) == ([0.5], 0.5, None, None)


# Variants


def test_methods_are_variants_once_each() -> None:
    assert method_variants("kd, dkd(beta=2, alpha=1)+rkd,kd") == [
        Variant("kd", "kd"),
        Variant("dkd(beta=2, alpha=1)+rkd", "dkd(beta=2, alpha=1)+rkd"),
    ]
    assert [variant.method for variant in method_variants("all")] == METHODS.names()


def by_label(variants: list[Variant]) -> dict[str, tuple[str, dict[str, Any]]]:
    assert len({variant.label for variant in variants}) == len(variants)
    assert len({(variant.method, str(variant.options)) for variant in variants}) == len(variants)
    return {variant.label: (variant.method, dict(variant.options)) for variant in variants}


def test_each_part_left_out_and_each_alone() -> None:
    parts = {
        "kd": ("kd", {}),
        "vanilla": ("vanilla", {}),
        "pckd": ("pckd", {}),
        "pckd-without-feature": ("pckd(feature=0)", {}),
        "pckd-without-center": ("pckd(alpha=0)", {}),
        "pckd-without-contrast": ("pckd(beta=0)", {}),
        "pckd-without-preview": ("pckd", {"scheduler": "constant"}),
        "pckd-without-kd": ("pckd(delta=0)", {}),
        "ce+feature": ("pckd(alpha=0, beta=0, delta=0)", {}),
        "ce+center": ("pckd(feature=0, beta=0, delta=0)", {}),
        "ce+contrast": ("pckd(feature=0, alpha=0, delta=0)", {"scheduler": "constant"}),
        "ce+kd": ("pckd(feature=0, alpha=0, beta=0)", {"scheduler": "constant"}),
    }
    assert by_label(ablation_variants("pckd", epochs=10)) == {
        **parts,
        "pckd-1-view": ("pckd", {"views": 1}),
        "pckd-1-view-4x-epochs": ("pckd", {"views": 1, "epochs": 40}),
        "kd-4x-epochs": ("kd", {"epochs": 40}),
    }
    # Where all have one number of views, no variant changes it.
    assert by_label(ablation_variants("pckd", epochs=10, views=1)) == parts


def test_all_combinations_of_parts_that_mean_something() -> None:
    full = by_label(ablation_variants("pckd", grid="full", epochs=10))
    # 32, less none at all, less preview with neither contrast nor KD (feature and center on or off: 4, one of them
    # with nothing else); two references and three of views.
    assert len(full) == 32 - 1 - 4 + 5
    assert full["ce+feature+contrast+preview"] == ("pckd(alpha=0, delta=0)", {})
    assert full["ce+feature+contrast"] == ("pckd(alpha=0, delta=0)", {"scheduler": "constant"})
    assert "ce+feature+preview" not in full
    assert by_label(ablation_variants("pckd", epochs=10)).items() <= full.items()


def test_the_parts_are_those_that_the_base_has() -> None:
    variants = by_label(ablation_variants("pckd", base="pckd_without_kd(beta=0.1)", epochs=1))
    assert variants["pckd_without_kd(beta=0.1)-without-center"] == ("pckd_without_kd(beta=0.1, alpha=0)", {})
    # Without the contrast there is nothing to preview either.
    assert variants["ce+feature+center"] == ("pckd_without_kd(beta=0)", {})
    assert variants["ce+contrast"][0] == "pckd_without_kd(beta=0.1, feature=0, alpha=0)"
    assert "ce+kd" not in variants


def test_every_metric_with_every_scheduler_and_every_center_rule() -> None:
    variants = by_label(ablation_variants("difficulty", base="pckd(beta=0.1)", epochs=1))
    metrics, schedulers = DIFFICULTY_METRICS.names(), DIFFICULTY_SCHEDULERS.names()
    # The constant scheduler looks at no metric.
    assert len(variants) == 2 + 1 + len(metrics) * (len(schedulers) - 1)
    assert variants["constant"] == ("pckd(beta=0.1)", {"scheduler": "constant"})
    assert variants["margin-focal"] == ("pckd(beta=0.1)", {"difficulty": "margin", "scheduler": "focal"})
    centers = by_label(ablation_variants("centers", epochs=1))
    assert set(centers) == {"kd", "vanilla", *(f"centers-{rule}" for rule in CENTER_RULES.names())}
    assert centers["centers-ema"] == ("pckd", {"centers": "ema"})


def test_a_scheduler_is_given_to_what_previews_and_has_none_of_its_own() -> None:
    own = Variant("unpreviewed", "pckd", {"scheduler": "constant"})
    kd, *others = method_variants("kd,pckd,pckd(beta=0, delta=0),kd+pckd")
    assert scheduled([kd, *others, own], None) == [kd, *others, own]
    focal = {"scheduler": "focal"}
    changed = [replace(others[0], options=focal), others[1], replace(others[2], options=focal)]
    assert scheduled([kd, *others, own], "focal") == [kd, *changed, own]


# Jobs


def test_pairs_seeds_and_weights_are_read() -> None:
    pairs = [("resnet20", "resnet8"), ("vgg13", "vgg8")]
    assert parse_pairs("resnet20>resnet8, vgg13 > vgg8,resnet20>resnet8") == pairs
    assert parse_seeds("0,2, 1,2") == [0, 2, 1]
    assert parse_weights(None, ["vgg13"]) == {}
    assert parse_weights("runs/a=b.pth", ["vgg13", "vgg13"]) == {"vgg13": "runs/a=b.pth"}
    both = {"resnet20": "a.pth", "vgg13": "b=c.pth"}
    assert parse_weights("resnet20=a.pth, vgg13=b=c.pth", ["resnet20", "vgg13", "vgg11"]) == both


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_pairs("resnet20"), "give TEACHER>STUDENT"),
        (lambda: parse_pairs("resnet20>resnet8,"), "cannot read ''"),
        (lambda: parse_pairs("resnet20>resnet9"), "unknown name 'resnet9'"),
        (lambda: parse_seeds("0,one"), "whole numbers with commas"),
        (lambda: parse_weights("a.pth", ["resnet20", "vgg13"]), "several teachers"),
        (lambda: parse_weights("resnet20=a,vgg16=b", ["resnet20", "vgg13"]), "give NAME=FILE"),
        (lambda: method_variants(","), "names none"),
        (lambda: ablation_variants("pckd", base="kd", epochs=1), "--base 'kd' has none of the parts"),
        (lambda: ablation_variants("pckd", base="pckd+crd", epochs=1), "--base 'pckd+crd': the parts of one method"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(call: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_are_readable_and_tell_apart() -> None:
    assert [folder_name(name) for name in ("pckd-without-kd", "ce+feature")] == ["pckd-without-kd", "ce+feature"]
    one, other = folder_name("kd(ce=1)"), folder_name("kd(ce 1)")
    assert one.startswith("kd_ce_1-")
    assert one != other
    assert len(folder_name("x" * 300)) == 80 + 7


def settings(**given: Any) -> dict[str, Any]:
    usual = settings_of(DEFAULTS) | {"epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu"}
    return {**usual, "data": DATA, **given}


def jobs_of(labels: str = "kd,vanilla", pairs: str = "resnet8>resnet8", seeds: str = "0,1", **given: Any) -> list[Job]:
    variants = method_variants(labels)
    return make_jobs(parse_pairs(pairs), variants, parse_seeds(seeds), settings(**given), {}, Path("out"))


def test_runs_are_every_variant_seed_and_pair() -> None:
    pairs = [("resnet20", "resnet8"), ("vgg13", "vgg8")]
    variants = [Variant("kd", "kd"), Variant("long", "kd", {"epochs": 12})]
    runs = make_jobs(pairs, variants, [0, 1], settings(), {"vgg13": "vgg13.pth"}, Path("out"))
    assert [run.folder for run in runs[:4]] == [
        f"resnet20_resnet8/{name}" for name in ("kd-seed0", "long-seed0", "kd-seed1", "long-seed1")
    ]
    assert len({run.folder for run in runs}) == 8
    first, longer, other = runs[0].arguments, runs[1].arguments, runs[4].arguments
    assert first["output"] == str(Path("out") / "resnet20_resnet8" / "kd-seed0")
    assert (first["teacher"], first["teacher_weights"], first["teacher_epochs"]) == ("resnet20", None, 3)
    # The teacher is the same though the run is longer.
    assert (longer["epochs"], longer["teacher_epochs"]) == (12, 3)
    assert (other["teacher_weights"], other["teacher_epochs"], other["seed"]) == ("vgg13.pth", None, 0)


def test_unusual_options_tell_runs_apart_and_are_not_the_defaults() -> None:
    options = {"dataset": "shapes", "epochs": 240, "lr": 0.1, "flip": False, "device": "cpu", "teacher_cache": "there"}
    assert unusual({**options, "views": None, "scheduler": "focal", "student": "resnet8", "confidence": 0.9}) == {
        "lr": 0.1,
        "flip": False,
        "scheduler": "focal",
    }


def test_what_cannot_work_is_known_before_any_run() -> None:
    pair, alone, data = "resnet8x4>resnet8", "pckd(feature=0,beta=0,delta=0)", load_data(DATA)
    runs = jobs_of(f"fsp,kd,pckd,{alone}", pairs=f"{pair},resnet8>resnet8", seeds="0")
    refused, notes = refuse_early(runs, data)
    assert set(refused) == {(pair, "fsp"), (pair, alone)}
    assert "fsp needs maps of equal widths" in refused[pair, "fsp"]
    assert "no term that looks at the teacher" in refused[pair, alone]
    assert notes == [f"{pair} pckd: without center_alignment, which cannot work here"]
    cached, _ = refuse_early(jobs_of("at,kd", teacher_cache="there"), data)
    assert list(cached) == [("resnet8>resnet8", "at")]


def test_runs_that_are_judged_differently_are_not_compared(tmp_path: Path) -> None:
    data = load_data("shapes(image_size=8, train_size=20, test_size=20, labels=False)")
    path = save_weights(BACKBONES.get("resnet8")(10), tmp_path / "teacher.pth")
    variants, weights = method_variants("kd,dist,rkd,dkd"), {"resnet8": str(path)}
    runs = make_jobs([("resnet8", "resnet8")], variants, [0], settings(), weights, tmp_path)
    refused, _ = refuse_early(runs, data)
    assert {name: reason.partition(";")[0] for (_, name), reason in refused.items()} == {
        "rkd": "is judged by mutual_knn, and others by agreement",
        "dkd": "loss 'dkd': the images have no labels",
    }


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("resnet14", r"other\.pth"),
        ("resnet8", r"other\.pth: was trained on other classes"),
    ],
)
def test_a_teacher_that_is_another_is_refused_before_any_run(network: str, message: str, tmp_path: Path) -> None:
    data = load_data(DATA)
    teacher = BACKBONES.get(network)(10)
    set_preprocessing(teacher, replace(data.preprocessing, classes=("dog", *data.train.classes[1:])))
    path = save_weights(teacher, tmp_path / "other.pth")
    runs = make_jobs([("resnet8", "resnet8")], method_variants("kd"), [0], settings(), {"resnet8": str(path)}, tmp_path)
    with pytest.raises(UserError, match=message):
        refuse_early(runs, data)


def test_two_runs_never_have_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "folder_name", lambda text: "same")
    with pytest.raises(UserError, match="would have the same folder"):
        jobs_of("kd,vanilla")


@pytest.mark.parametrize(
    ("device", "slot", "expected"),
    [(None, 0, "cuda:0"), (None, 2, "cuda:0"), ("cuda", 1, "cuda:1"), ("cuda:0", 1, "cuda:0"), ("cpu", 1, "cpu")],
)
def test_accelerators_are_dealt_in_turn(device: str | None, slot: int, expected: str) -> None:
    assert dealt(device, slot, ["cuda:0", "cuda:1"]) == expected
    assert dealt(device, slot, []) == device


def test_why_a_child_failed_is_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("epoch 1\nbenchmark.py: error: epoch 1, step 2: kd is not finite\n\n")
    assert failure(2, log) == "epoch 1, step 2: kd is not finite"
    assert failure(-9, log) == f"ended by signal 9; out of memory, perhaps (see {log})"
    assert failure(-15, log) == f"ended by signal 15 (see {log})"
    log.write_text("")
    assert failure(3, log) == "exit code 3"


# Papers


PROTOCOL = {"dataset": "cifar100", "epochs": 240, "batch_size": 64, "val_fraction": 0.0, "confidence": 0.95}


def figure(method: str, student: str = "vgg8", protocol: Any = PROTOCOL, **options: Any) -> float | None:
    return paper_figure(protocol, "vgg13", student, Variant("any", method, options))


def test_a_figure_of_the_paper_stands_beside_its_own_method_and_pair() -> None:
    known = {"pckd": 75.80, "kd": 72.98, "vanilla": 70.36, "pckd_without_kd": 75.61, "pckd(delta=0)": 75.61}
    known["reviewkd"] = 74.84
    assert {name: figure(name) for name in known} == known
    assert paper_figure(PROTOCOL, "vgg13", "vgg8", "teacher") == 74.64
    assert paper_figure(PROTOCOL, "ResNet50", "vgg8", Variant("kd", "kd")) == 73.81
    assert [figure(name) for name in ("itrd", "norm", "norm(kd=1)")] == [74.93, 73.95, 74.46]
    assert paper_figure(PROTOCOL, "resnet56", "resnet20", Variant("any", "kd_plus_plus")) == 72.53
    # The paper's row LSKD has none for this pair, and the row that LSKD itself has is another method's name.
    assert [figure(name) for name in ("lskd", "pckd(beta=0)", "kd+crd", "norm+kd")] == [None] * 4
    assert figure("pckd", scheduler="constant") is None
    assert figure("kd", "resnet8") is None


@pytest.mark.parametrize(
    "other",
    [
        *({"dataset": "cifar10"}, {"epochs": 12}, {"limit_train": 10}, {"limit_test": 10}, {"batch_size": 128}),
        *({"val_fraction": 0.1}, {"lr": 0.1}, {"views": 1}, {"view_pool": 4}, {"teacher_epochs": 10}),
        *({"view_statistics": "own"}, {"difficulty": "margin"}, {"centers": "ema"}, {"teacher_cache": "there"}),
    ],
)
def test_another_setting_has_no_figures(other: dict[str, Any]) -> None:
    assert figure("pckd", protocol={**PROTOCOL, **other}) is None
    assert is_papers_setting({**PROTOCOL, "teacher_epochs": 10, "teacher_weights": "there.pth"})


def test_presets_are_the_papers_table_and_one_to_try() -> None:
    paper = preset("paper-cifar100")
    assert (paper["dataset"], paper["epochs"]) == ("cifar100", 240)
    assert parse_pairs(paper["pairs"]) == [(pair.teacher, pair.student) for pair in PAIRS[:7]]
    # Of the 25 rows, the teacher is none, and three are left out.
    assert len(paper_methods()) == 20
    assert {"vanilla", "kd", "pckd", "pckd_without_kd", "reviewkd", "sskd"} <= set(paper_methods())
    assert {"pkt", "ofd"} & set(paper_methods()) == set()
    for name in PRESETS:
        assert parse_pairs(preset(name)["pairs"])
        assert len(method_variants(preset(name)["methods"])) >= 9


# Tables


def finished(top1: float, rows: Sequence[dict[str, Any]] = ({"epoch": 1, "kd": 2.0}, {"epoch": 2, "kd": 1.0})) -> Run:
    result = {"last_top1": top1, "best_top1": top1 + 1, "train_seconds": 4.0, "images_per_second": 100.0}
    result.update(teacher_top1=80.0, terms={"kd": {}, "gone": {}}, loss_parameters=7, precision="fp32", device="cpu")
    return Run(Path(), list(rows), result)


def results_of(jobs: list[Job], tops: list[float], folder: Path, protocol: dict[str, Any] = PROTOCOL) -> Results:
    results = Results(folder, protocol, jobs, reference="kd", confidence=0.95)
    for job, top1 in zip(jobs, tops, strict=False):
        results.add(job, finished(top1))
    return results


def test_rows_by_hand(tmp_path: Path) -> None:
    runs = jobs_of("vanilla,kd", seeds="0,1,2")
    vanilla, kd = results_of(runs, [60.0, 70.0, 61.0, 70.0, 59.0, 73.0], tmp_path).rows()
    assert (vanilla["label"], vanilla["seeds"], vanilla["last_top1"]) == ("vanilla", [0, 1, 2], [60.0, 61.0, 59.0])
    assert (vanilla["mean"], vanilla["std"]) == (60.0, 1.0)
    assert (kd["mean"], kd["best_mean"], kd["std"]) == (71.0, 72.0, pytest.approx(3**0.5))
    assert (kd["seconds"], kd["terms"], kd["teacher_top1"], kd["difference"]) == ([4.0] * 3, {"kd": 1.0}, 80.0, None)
    assert kd["folders"][2] == "resnet8_resnet8/kd-seed2"
    # -10, -9, -14: mean -11, deviation sqrt(7).
    difference = vanilla["difference"]
    assert (difference["to"], difference["values"], difference["mean"]) == ("kd", [-10.0, -9.0, -14.0], -11.0)
    assert difference["low"] == pytest.approx(-11 - 4.3027 * 7**0.5 / 3**0.5, abs=1e-3)


def test_a_table_of_what_is_done_so_far(tmp_path: Path) -> None:
    runs = jobs_of("vanilla,kd", seeds="0,1")
    results = results_of(runs, [60.0, 70.0, 62.0], tmp_path)
    reason = "epoch 1, step 2: kd is not finite"
    results.refuse(runs[3], reason, failed=True)
    results.write()
    text = (tmp_path / "benchmark.md").read_text()
    assert "3 of 4 runs" in text
    # Of the one seed that both have; the dash stands for the interval.
    assert "| vanilla | 61.00 ± 1.41 | 60.00, 62.00 | 62.00 ± 1.41 | -10.00 (-) | 4 | 100 |" in text
    assert "| kd | 70.00 | 70.00 | 71.00 | - | 4 | 100 |" in text
    assert "paper" not in text.replace("paper's", "")
    assert f"- resnet8>resnet8 kd seed 1: {reason}" in text
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert (content["done"], content["runs"], results.failures) == (3, 4, 1)
    assert content["refused"] == [
        {"pair": "resnet8>resnet8", "label": "kd", "method": "kd", "seed": 1, "reason": reason}
    ]
    header, *lines = csv.reader((tmp_path / "benchmark.csv").read_text().splitlines())
    assert header == [
        "pair", "label", "method", "seed", "last_top1", "best_top1", "seconds", "images_per_second", "folder",
    ]  # fmt: skip
    assert lines == [
        ["resnet8>resnet8", name, name, seed, last, best, "4.0", "100.0", f"resnet8_resnet8/{name}-seed{seed}"]
        for name, seed, last, best in (
            ("vanilla", "0", "60.0", "61.0"), ("kd", "0", "70.0", "71.0"), ("vanilla", "1", "62.0", "63.0"),
        )
    ]  # fmt: skip


def test_a_metric_of_another_task_is_called_by_its_name(tmp_path: Path) -> None:
    result = {"metric": "miou", "last_miou": 40.0, "best_miou": 41.0, "teacher_miou": 50.0, "terms": {}}
    results = results_of(jobs_of("kd", seeds="0"), [], tmp_path)
    results.add(results.jobs[0], Run(Path(), [{"epoch": 1}], result))
    row = results.write()["rows"][0]
    assert (row["last_miou"], row["best_miou"], row["teacher_miou"]) == ([40.0], [41.0], 50.0)
    text = (tmp_path / "benchmark.md").read_text()
    assert "| label | last mIoU | seeds 0 | best mIoU |" in text
    assert "Teacher: 50.00 %." in text
    assert (tmp_path / "benchmark.csv").read_text().startswith("pair,label,method,seed,last_miou,best_miou,seconds")


def test_papers_figures_have_a_column_where_the_setting_is_theirs(tmp_path: Path) -> None:
    runs = jobs_of("kd,pckd", pairs="vgg13>vgg8", seeds="0")
    results_of(runs, [70.0, 72.0], tmp_path).write()
    text = (tmp_path / "benchmark.md").read_text()
    assert "| images/s | paper |" in text
    assert "| pckd | 72.00 | 72.00 | 73.00 | +2.00 (-) | 4 | 100 | 75.80 |" in text
    assert "Teacher: 80.00 % (paper: 74.64 %)." in text
    assert "\n\nBy other papers, not measured here: SemCKD 74.43, ITRD 74.93, NORM 73.95, " in text
    assert "\n## Figures of other papers\n" in text
    assert "- ITRD: the repository of ITRD, arXiv 2112.00459.\n" in text
    assert "WKD" not in text
    results_of(runs, [70.0, 72.0], tmp_path, {**PROTOCOL, "epochs": 12}).write()
    text = (tmp_path / "benchmark.md").read_text()
    assert "75.80" not in text
    assert "other papers" not in text


def test_true_difficulty_has_tables_of_its_own(tmp_path: Path) -> None:
    def history(hard: float) -> list[dict[str, Any]]:
        metrics = [
            {"margin": {"histogram": [], "truth": truth}, "entropy": {"histogram": []}}
            for truth in (0.1, 0.9, 0.2, 0.9, 0.4)
        ]
        reports = [{"edges": [], "metrics": metric, "top1_by_truth": [90.0, 60.0, hard]} for metric in metrics]
        return [{"epoch": at, "difficulty_report": report} for at, report in enumerate(reports, start=1)]

    variants = [Variant("pckd", "pckd"), Variant("flat", "pckd", {"scheduler": "constant"}), Variant("kd", "kd")]
    runs = make_jobs([("resnet8", "resnet8")], variants, [0, 1], settings(), {}, tmp_path)
    results = results_of(runs, [], tmp_path)
    for run, hard in zip(runs, [30.0, 26.0, 20.0, 34.0, 28.0, 24.0], strict=True):
        results.add(run, finished(50.0, history(hard)))
    assert results.write()["rows"][0]["truth"] == {
        "epochs": [1, 3, 5],
        "correlation": {"margin": pytest.approx([0.1, 0.2, 0.4]), "entropy": [None, None, None]},
        "top1": [[90.0, 60.0, 30.0], [90.0, 60.0, 34.0]],
    }
    text = (tmp_path / "benchmark.md").read_text()
    # Gains over the flat variant: 4 and 6, which is 5 with half a width of 12.706 * sqrt(2) / sqrt(2).
    gains = "+0.00 (+0.00 to +0.00) | +0.00 (+0.00 to +0.00) | +5.00 (-7.71 to +17.71)"
    for row in (
        "pckd | 1 / 3 / 5 | 0.10 / 0.20 / 0.40 | - / - / -",
        f"pckd | 90.00 | 60.00 | 32.00 | {gains}",
        "flat | 90.00 | 60.00 | 27.00 | - | - | -",
        "kd | 90.00 | 60.00 | 22.00 | - | - | -",
    ):
        assert f"| {row} |" in text

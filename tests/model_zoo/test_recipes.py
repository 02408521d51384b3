"""What is published per method and pair, and that a run by name takes it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pckd
from model_zoo import METHOD_OPTIONS, method_options, method_recipe, recipe_for
from pckd.cli import print_entry
from pckd.display import Silent
from pckd.terms import method_lr, method_terms, pair_options
from registry import BACKBONES, METHODS, DataSplit, Term, options_of


def test_dkd_betas_are_the_configurations() -> None:
    betas = {
        ("resnet32x4", "resnet8x4"): 8,
        ("vgg13", "vgg8"): 6,
        ("wrn_40_2", "wrn_16_2"): 6,
        ("wrn_40_2", "wrn_40_1"): 6,
        ("vgg13", "MobileNetV2"): 6,
        ("resnet56", "resnet20"): 2,
        ("resnet110", "resnet32"): 2,
        ("ResNet50", "MobileNetV2"): 8,
        ("resnet32x4", "ShuffleV1"): 8,
    }
    for (teacher, student), beta in betas.items():
        assert method_options("dkd", student, teacher) == {"beta": beta}
    assert method_options("reviewkd", "resnet20", "resnet56") == {"weight": 0.6}
    assert method_options("reviewkd", "ShuffleV2", "resnet32x4") == {"weight": 8}
    assert method_options("lskd", "resnet20", "resnet110") == {"temperature": 4, "weight": 12}


def test_what_nobody_published_has_no_options() -> None:
    assert method_options("dkd", "resnet8", "resnet20") == {}
    assert method_options("dkd", "resnet56", "resnet20") == {}
    assert method_options("pckd", "resnet20", "resnet56") == {}
    assert method_options("unheard_of", "resnet20", "resnet56") == {}
    assert method_recipe("dkd") == {}


def test_options_of_networks_do_not_matter() -> None:
    assert method_options("dkd", "vgg8(in_channels=1)", "vgg13 (in_channels=1)") == {"beta": 6}


def test_a_caller_cannot_change_the_tables() -> None:
    method_options("dkd", "vgg8", "vgg13")["beta"] = 0.0
    method_recipe("mld")["lr"] = 1.0
    assert method_options("dkd", "vgg8", "vgg13") == {"beta": 6}
    assert method_recipe("mld") == {"lr": 0.025}


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_tables_name_networks_and_options(name: str) -> None:
    table = METHOD_OPTIONS[name]
    assert table.source
    for pair, options in table.pairs.items():
        teacher, student = pair.split(">")
        assert {teacher, student} <= set(BACKBONES.names())
        if name in METHODS:
            assert set(options) <= set(options_of(METHODS.get(name)))
            METHODS.get(name)(**options)


def test_mld_halves_the_learning_rate_where_it_is_the_usual_one() -> None:
    assert method_recipe("mld", "resnet8x4") == {"lr": 0.025}
    for student in ("MobileNetV2", "ShuffleV1", "ShuffleV2"):
        assert method_recipe("mld", student) == {}
        assert method_lr("mld", student) is None
        assert recipe_for(student).lr == 0.01
    assert method_lr("mld(ce=1.0)+dkd", "resnet20") == 0.025
    assert method_lr("dkd+mld", torch.nn.Identity()) == 0.025
    assert method_lr([Term("kd")], "resnet20") is None
    assert method_lr("dkd", "resnet20") is None


def beta_of(terms: list[Term]) -> float:
    return next(term.options["beta"] for term in terms if term.loss == "dkd")


def test_terms_by_name_take_the_options_of_the_pair() -> None:
    assert beta_of(method_terms("dkd")) == 8
    assert beta_of(method_terms("dkd", "resnet20", "resnet56")) == 2
    assert beta_of(method_terms("dkd(alpha=2.0)", "resnet20", "resnet56")) == 2
    assert beta_of(method_terms("kd+dkd", "resnet20", "resnet56")) == 2
    assert beta_of(method_terms("dkd", BACKBONES.get("resnet20")(10), "resnet56")) == 8
    assert beta_of(method_terms("dkd", "resnet8", "resnet20")) == 8


def test_what_is_given_wins() -> None:
    assert beta_of(method_terms("dkd(beta=3)", "resnet20", "resnet56")) == 3
    assert pair_options("dkd(beta=3)", "resnet20", "resnet56") == {}
    assert pair_options("lskd(weight=3.0)", "resnet20", "resnet110") == {"lskd": {"temperature": 4}}
    assert pair_options([Term("dkd")], "resnet20", "resnet56") == {}


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def data() -> pckd.Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (16, 3, 8, 8), generator=generator).to(torch.uint8)
    split = DataSplit(images, torch.arange(16) % 2, ("a", "b"), (0.5,) * 3, (0.25,) * 3, padding=1)
    return pckd.Data(split, split)


@pytest.fixture
def run(data: pckd.Data, tmp_path: Path) -> Any:
    """A run of one epoch from resnet56 to resnet20, and what it said."""
    torch.manual_seed(0)
    weights = tmp_path / "teacher.pth"
    torch.save(BACKBONES.get("resnet56")(2).state_dict(), weights)

    def start(**options: Any) -> tuple[pckd.Result, list[str]]:
        display = Notes()
        given = {"teacher": "resnet56", "teacher_weights": weights, "output": tmp_path / "run", **options}
        result = pckd.distill(
            student="resnet20",
            data=data,
            epochs=1,
            batch_size=8,
            precision="fp32",
            device="cpu",
            display=display,
            **given,
        )
        return result, display.notes

    return start


def test_a_run_says_and_records_what_it_took(run: Any, tmp_path: Path) -> None:
    result, notes = run(method="dkd")
    assert "dkd: options of the pair resnet56>resnet20: beta=2" in notes
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record["terms"]["dkd"] == {
        "weight": 1.0,
        "previewed": False,
        "warmup": 20,
        "alpha": 1.0,
        "beta": 2.0,
        "temperature": 4.0,
    }
    assert record["pair_options"] == {"dkd": {"beta": 2.0}}
    assert result.record["lr"] == 0.05


def test_the_usual_teacher_has_its_options_too(run: Any) -> None:
    result, _ = run(method="dkd", teacher=None)
    assert result.record["teacher"] == "resnet56"
    assert result.record["terms"]["dkd"]["beta"] == 2


def test_a_run_keeps_what_is_given(run: Any) -> None:
    result, notes = run(method="dkd(beta=3)")
    assert result.record["terms"]["dkd"]["beta"] == 3
    assert result.record["pair_options"] == {}
    assert not any("options of the pair" in note for note in notes)


def test_a_run_takes_the_learning_rate_of_the_method(run: Any) -> None:
    result, notes = run(method="mld")
    assert result.record["lr"] == 0.025
    assert "mld: learning rate 0.025, as published" in notes
    assert run(method="mld", lr=0.1, output=None)[0].record["lr"] == 0.1
    assert run(method="kd", output=None)[0].record["lr"] == 0.05


def test_the_list_shows_what_is_published() -> None:
    stream = io.StringIO()
    print_entry(METHODS, "dkd", stream)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "1 dkd [alpha=1, beta=8, temperature=4, warmup=20]" in lines
    assert "beta=2 for resnet56>resnet20, resnet110>resnet32" in lines
    stream = io.StringIO()
    print_entry(METHODS, "mld", stream)
    assert "published lr=0.025" in " ".join(stream.getvalue().split())

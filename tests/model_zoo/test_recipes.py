"""What is published per method and pair, and that a run by name takes it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pckd
from model_zoo import METHOD_OPTIONS, METHOD_RECIPES, method_options, method_recipe
from pckd.cli import print_entry
from pckd.display import Silent
from pckd.plan import make_task, plan
from pckd.terms import method_terms, pair_options, recipe_changes
from registry import BACKBONES, METHODS, DataSplit, Term, options_of, parse


@pytest.mark.parametrize(
    ("method", "pair", "options"),
    [
        ("dkd", "resnet32x4>resnet8x4", {"beta": 8}),
        ("dkd", "vgg13>vgg8", {"beta": 6}),
        ("dkd", "wrn_40_2>wrn_16_2", {"beta": 6}),
        ("dkd", "wrn_40_2>wrn_40_1", {"beta": 6}),
        ("dkd", "vgg13>MobileNetV2", {"beta": 6}),
        ("dkd", "resnet56>resnet20", {"beta": 2}),
        ("dkd", "resnet110>resnet32", {"beta": 2}),
        ("dkd", "ResNet50>MobileNetV2", {"beta": 8}),
        ("dkd", "resnet32x4>ShuffleV1", {"beta": 8}),
        ("reviewkd", "resnet56>resnet20", {"weight": 0.6}),
        ("reviewkd", "resnet32x4>ShuffleV2", {"weight": 8}),
        ("lskd", "resnet110>resnet20", {"temperature": 4, "weight": 12}),
        ("kd_plus_plus", "resnet32x4>resnet8x4", {"kd": 3.5, "weight": 2}),
        ("catkd", "vgg13>MobileNetV2", {"weight": 15, "resolution": 2, "normalized": True, "student": "conv2"}),
        ("itrd", "wrn_40_2>wrn_16_2", {"correlation": 2, "mutual": 1, "alpha": 1.01}),
        ("hsakd", "resnet56>resnet20", {"blocks": 3, "teacher_blocks": 9}),
        # Options of the networks do not matter.
        ("dkd", "vgg13 (in_channels=1)>vgg8(in_channels=1)", {"beta": 6}),
        # What nobody published.
        ("dkd", "resnet20>resnet8", {}),
        ("dkd", "resnet20>resnet56", {}),
        ("pckd", "resnet56>resnet20", {}),
        ("unheard_of", "resnet56>resnet20", {}),
    ],
)
def test_options_are_those_of_the_publications(method: str, pair: str, options: dict[str, Any]) -> None:
    teacher, student = pair.split(">")
    found = method_options(method, student, teacher)
    assert found == options
    # A caller cannot change the tables.
    found["beta"] = 0.0
    assert method_options(method, student, teacher) == options


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_tables_name_networks_and_options(name: str) -> None:
    table = METHOD_OPTIONS[name]
    assert table.source
    for pair, options in table.pairs.items():
        teacher, student = pair.split(">")
        assert {teacher, student} <= set(BACKBONES.names())
        method, given = parse(name)
        assert set(options) <= set(options_of(METHODS.get(method)))
        METHODS.get(method)(**given, **options)


def test_recipes_name_methods_and_networks() -> None:
    assert set(METHOD_RECIPES) <= set(METHODS.names())
    named = {name for table in METHOD_RECIPES.values() for label in table if label for name in label.split(">")}
    assert named <= set(BACKBONES.names())


@pytest.mark.parametrize(
    ("method", "pair", "changes"),
    [
        ("mld", (), {"lr": 0.025}),
        ("mld", ("resnet8x4", "resnet32x4"), {"lr": 0.025}),
        # Students that are trained gently keep their rate.
        ("mld", ("ShuffleV2",), {}),
        ("mld", ("MobileNetV2", "vgg13"), {"epochs": 480}),
        ("mld", ("MobileNetV2(in_channels=1)", "ResNet50"), {"epochs": 480}),
        ("mld", ("ShuffleV1", "wrn_40_2"), {"epochs": 480}),
        ("mld", ("ShuffleV1", "resnet32x4"), {"epochs": 960}),
        ("mld", ("ShuffleV2", "resnet32x4"), {"epochs": 960}),
        ("mld", ("vgg8", "vgg13"), {"lr": 0.025}),
        ("ft", ("wrn_40_1", "vgg13"), {"initial_lr": 0.01}),
        ("ft", ("resnet8x4 (in_channels=1)",), {"initial_lr": 0.01}),
        ("ft", ("vgg8", "resnet32x4"), {}),
        ("ft", (), {}),
        ("dkd", (), {}),
    ],
)
def test_what_a_method_changes_of_the_usual_recipe(method: str, pair: tuple[str, ...], changes: dict[str, Any]) -> None:
    method_recipe(method, *pair)["lr"] = 1.0
    assert method_recipe(method, *pair) == changes


def test_of_several_methods_the_first_that_changes_the_recipe_wins() -> None:
    assert (
        recipe_changes("mld(ce=1.0)+dkd", "resnet20")["lr"] == recipe_changes("dkd+mld", nn.Identity())["lr"] == 0.025
    )
    assert recipe_changes("mld+ft", "resnet20") == {"lr": 0.025, "initial_lr": 0.01}
    assert recipe_changes([Term("kd")], "resnet20") == recipe_changes("ft", nn.Identity()) == {}


@pytest.mark.parametrize(
    ("method", "pair", "beta"),
    [
        ("dkd", (), 8),
        ("dkd", ("resnet20", "resnet56"), 2),
        ("dkd(alpha=2.0)", ("resnet20", "resnet56"), 2),
        ("kd+dkd", ("resnet20", "resnet56"), 2),
        ("dkd", (nn.Identity(), "resnet56"), 8),
        ("dkd", ("resnet8", "resnet20"), 8),
        # What is given wins.
        ("dkd(beta=3)", ("resnet20", "resnet56"), 3),
    ],
)
def test_terms_by_name_take_the_options_of_the_pair(method: str, pair: tuple[Any, ...], beta: float) -> None:
    assert next(term.options["beta"] for term in method_terms(method, *pair) if term.loss == "dkd") == beta


def test_what_is_given_wins() -> None:
    assert pair_options("dkd(beta=3)", "resnet20", "resnet56") == {}
    assert pair_options("lskd(weight=3.0)", "resnet20", "resnet110") == {"lskd": {"temperature": 4}}
    assert pair_options([Term("dkd")], "resnet20", "resnet56") == {}


def test_a_method_with_standardized_logits_has_options_of_its_own() -> None:
    pair = "resnet20", "resnet56"
    options = {"temperature": 3, "weight": 18, "beta": 2}
    assert pair_options("dkd(standardize=True)", *pair) == {"dkd": options}
    assert pair_options("dkd(standardize=False)", *pair) == {"dkd": {"beta": 2}}
    del options["weight"]
    assert pair_options("dkd(standardize=True, weight=1.0)", *pair) == {"dkd": options}


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


def test_a_run_says_and_records_what_it_took(data: pckd.Data, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pth"
    torch.save(BACKBONES.get("resnet56")(2).state_dict(), weights)
    # The usual teacher, which has its options, too.
    options: dict[str, Any] = {"student": "resnet20", "teacher_weights": weights, "method": "dkd", "data": data}
    options |= {"epochs": 1, "batch_size": 16, "precision": "fp32", "device": "cpu", "display": (display := Notes())}
    result = pckd.distill(output=tmp_path / "run", **options)
    assert "dkd: options of the pair resnet56>resnet20: beta=2" in display.notes
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    facts = {"weight": 1.0, "previewed": False, "warmup": 20, "alpha": 1.0, "beta": 2.0, "temperature": 4.0}
    assert record["terms"]["dkd"] == facts
    assert record["pair_options"] == {"dkd": {"beta": 2.0}}
    assert (result.record["teacher"], result.record["lr"]) == ("resnet56", 0.05)


@pytest.mark.parametrize(
    ("method", "lr", "taken", "notes"),
    [
        ("dkd(beta=3)", None, 0.05, []),
        ("mld", None, 0.025, ["mld: learning rate 0.025, as published"]),
        ("mld", 0.1, 0.1, []),
        ("ft", 0.1, 0.1, ["ft: learning rate 0.01 in the initial epochs, as published"]),
        ("ft(initial=0)", 0.1, 0.1, []),
    ],
)
def test_a_plan_takes_what_is_given_or_the_learning_rate_of_the_method(
    method: str, lr: float | None, taken: float, notes: list[str], data: pckd.Data
) -> None:
    planned = plan(task=make_task(None, data), data=data, student="resnet20", teacher="resnet56", method=method, lr=lr)
    assert (planned.lr, planned.notes, planned.published) == (taken, notes, {})
    assert planned.initial_lr == (0.01 if method == "ft" else None)


def test_a_plan_says_what_else_is_published(data: pckd.Data) -> None:
    given: dict[str, Any] = {"student": "ShuffleV1", "teacher": "wrn_40_2", "method": "mld", "data": data, "epochs": 3}
    planned = plan(task=make_task(None, data), **given)
    assert (planned.lr, planned.epochs) == (0.01, 3)
    assert planned.notes == ["mld: published with epochs=480, schedule='multistep(milestones=(0.3125, 0.375, 0.4375))'"]
    # Rates that were published for SGD are no other optimizer's.
    given |= {"student": "resnet20", "method": "ft", "optimizer": "adamw", "lr": 1e-3}
    assert plan(task=make_task(None, data), **given).initial_lr is None


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("dkd", "1 dkd [alpha=1, beta=8, temperature=4, warmup=20]"),
        ("dkd", "beta=2 for resnet56>resnet20, resnet110>resnet32"),
        ("mld", "published lr=0.025 epochs=480 for vgg13>MobileNetV2, ResNet50>MobileNetV2, wrn_40_2>ShuffleV1"),
        ("ft", "published initial_lr=0.01 for resnet8, "),
        ("mld", "standardize=True, temperature=2, weight=6 for resnet32x4>ShuffleV2, vgg13>MobileNetV2, vgg13>vgg8"),
    ],
)
def test_the_list_shows_what_is_published(method: str, line: str) -> None:
    stream = io.StringIO()
    print_entry(METHODS, method, stream)
    assert line in " ".join(stream.getvalue().split())

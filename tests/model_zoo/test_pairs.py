"""Recipes and reported figures, against the paper's table as a file."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from model_zoo import OTHER_SOURCES, PAIRS, PUBLISHED, Recipe, find_pair, recipe_for, usual_teacher
from registry import BACKBONES, UserError


def test_figures_are_the_papers() -> None:
    with (Path(__file__).parent / "data" / "paper_cifar100.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = [column for column in rows[0] if column != "method"]
    assert [pair.label for pair in PAIRS[:7]] == pairs
    for pair in PAIRS[:7]:
        expected = {row["method"]: float(row[pair.label]) for row in rows if row[pair.label]}
        assert dict(pair.paper) == expected
        assert "PCKD without L_KD" in pair.paper


def test_pairs_name_networks_and_agree_with_each_other() -> None:
    assert len({pair.label for pair in PAIRS}) == len(PAIRS) == 13
    names = set(BACKBONES.names())
    alone: dict[str, float] = {}
    for pair in PAIRS:
        assert {pair.student, pair.teacher} <= names
        assert pair.teacher in PUBLISHED
        assert pair.paper["teacher"] == PUBLISHED[pair.teacher].accuracy
        assert alone.setdefault(pair.student, pair.paper["student"]) == pair.paper["student"]
        assert "KD" in pair.paper
        assert "CRD" in pair.paper
        assert pair.source
    assert find_pair("ShuffleV2", "resnet32x4").paper["CRD"] == 75.65
    assert "DKD" not in find_pair("vgg8", "ResNet50").paper


def test_figures_of_other_papers_have_a_source_each() -> None:
    assert {row for pair in PAIRS for row in pair.others} == set(OTHER_SOURCES)
    assert all(50 < figure < 80 for pair in PAIRS for figure in pair.others.values())
    # What the paper's own table has keeps its name to itself: its row LSKD is not LSKD's.
    assert not any(set(pair.others) & {"LSKD", "MLD", "DKD", "PCKD"} for pair in PAIRS)
    found = [find_pair("resnet8x4", "resnet32x4").others[row] for row in ("ITRD", "NORM+KD", "MLD+LSKD", "HSAKD")]
    assert found == [76.69, 76.98, 78.28, 77.26]
    assert find_pair("resnet20", "resnet110").others["NORM"] == 71.55
    assert find_pair("ShuffleV2", "resnet32x4").others["ITRD"] == 77.40
    assert "best epoch" in OTHER_SOURCES["KD+LSKD"]
    assert "480 epochs" in OTHER_SOURCES["MLD+LSKD"]
    assert "four rotations" in OTHER_SOURCES["HSAKD"]


def test_recipes() -> None:
    assert recipe_for("resnet8x4") == Recipe(0.05, 240, (150, 180, 210), 0.1, 64, 5e-4, 0.9)
    for student in ("MobileNetV2", "ShuffleV1", "ShuffleV2"):
        assert recipe_for(student) == dataclasses.replace(Recipe(), lr=0.01)
    for pair in PAIRS:
        assert recipe_for(pair.student, pair.teacher) == pair.recipe == recipe_for(pair.student)
    assert recipe_for("mine", "yours") == Recipe()


def test_usual_teachers() -> None:
    for teacher, students in {
        "resnet32x4": ("resnet8x4", "ShuffleV1", "ShuffleV2"),
        "resnet56": ("resnet20", "resnet14"),
        "resnet110": ("resnet32", "resnet44"),
        "wrn_40_2": ("wrn_16_2", "wrn_40_1", "wrn_16_1"),
        "vgg13": ("vgg8", "vgg8(in_channels=1)", "MobileNetV2", "vgg11"),
        "resnet20": ("resnet8",),
    }.items():
        assert [usual_teacher(student) for student in students] == [teacher] * len(students)
    assert recipe_for("ShuffleV1 (in_channels=1)").lr == 0.01
    assert find_pair("vgg8(in_channels=1)", "vgg13(in_channels=1)").label == "vgg13>vgg8"
    with pytest.raises(UserError, match="no usual teacher is known for 'mine': pass --teacher NAME"):
        usual_teacher("mine")
    with pytest.raises(UserError, match=r"no reported figures for teacher 'a' and student 'b'.*vgg13>vgg8"):
        find_pair("b", "a")

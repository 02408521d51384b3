"""tools/predict.py as a user meets it: a table out, and one line for what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from model_zoo import Preprocessing, save_weights, set_preprocessing
from registry import BACKBONES, build


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("predict")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = build(BACKBONES, "resnet8", 4)
    # Whatever the image: 4 to the power of the class.
    network.load_state_dict(
        {**network.state_dict(), "fc.weight": torch.zeros(4, 64), "fc.bias": 1.3863 * torch.arange(4)}
    )
    set_preprocessing(network, Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8), ("cat", "dog", "emu", "fox")))
    return save_weights(network, tmp_path / "x.pth", student="resnet8")


def test_a_table(tool: ModuleType, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1, 4, 16 and 64 of 85."""
    for name in ("one", "two"):
        Image.new("RGB", (9, 12), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "bad.jpg").write_bytes(b"")
    images = [str(tmp_path / name) for name in ("one.png", "bad.jpg", "two.png")]
    assert tool.main([str(weights), *images, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    rows = [line.replace("|", " ").split() for line in out.splitlines() if "%" in line]
    said = [["fox", "75.3", "%"], ["emu", "18.8", "%"], ["dog", "4.7", "%"]]
    assert [row[-3:] for row in rows] == said * 2
    assert "probability" in out
    assert [row[0] for row in rows[::3]] == [images[0], images[2]]
    assert err.splitlines() == [f"{images[1]}: not a readable image (the file is empty)"]
    assert tool.main([str(weights), images[0], "--device", "cpu", "--top", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the file of a trained network"),
        (["none.pth", "x.png"], "none.pth: no such file"),
        (["{weights}"], "no images are given"),
        (["{weights}", "{folder}", "--top", "0"], "top must be at least 1"),
        (["{weights}", "{folder}"], "no images in this folder"),
    ],
    ids=str,
)
def test_refusals(
    arguments: list[str], said: str, weights: Path, tmp_path: Path, refusal: Callable[[list[str]], str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert said in refusal([text.format(weights=weights, folder=tmp_path / "empty") for text in arguments])

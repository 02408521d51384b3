"""What the contract of DATASETS promises, for each data set that can be built without files from elsewhere."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pckd.data
from pckd.data import Loader
from registry import DATASETS, DataSplit, build, options_of

BUILT_IN = ("cifar10", "cifar100", "fashion_mnist", "imagefolder", "imagenet", "shapes", "stl10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return str(root)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        "shapes(train_size=40, test_size=30, image_size=16)",
        "shapes(num_classes=30, train_size=40, test_size=30, label_noise=0.2)",
        "imagefolder",
        "imagefolder(memory=False)",
        "imagenet(image_size=16)",
    ],
)
def test_a_split_is_what_the_contract_says(spec, train, folder):
    split = build(DATASETS, spec, folder, train)
    assert isinstance(split, DataSplit)
    size = len(split)
    assert len(split.images) == size > 0
    if isinstance(split.images, torch.Tensor):
        assert split.images.dtype == torch.uint8
        assert split.images.ndim == 4
    shapes = {tuple(split.images[i].shape) for i in range(size)}
    assert len(shapes) == 1
    assert all(split.images[i].dtype == torch.uint8 for i in range(size))
    assert split.labels.shape == (size,)
    assert split.labels.dtype == torch.int64
    assert split.labels.min() >= 0
    assert split.labels.max() < split.num_classes
    assert len(set(split.classes)) == split.num_classes
    channels = next(iter(shapes))[0]
    assert len(split.mean) == len(split.std) == channels
    assert all(0 <= m <= 1 for m in split.mean)
    assert all(0 < s <= 1 for s in split.std)
    assert split.padding >= 0
    assert split.name
    if split.difficulty is not None:
        assert split.difficulty.shape == (size,)
        assert split.difficulty.min() >= 0
        assert split.difficulty.max() <= 1
    batch = next(Loader(split, 4, train=train, views=4 if train else 1).epoch(1))
    assert batch.views.isfinite().all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_data_sets_are_registered_and_documented(name):
    factory = DATASETS.get(name)
    assert list(options_of(factory))[:2] == ["root", "train"]
    documented = factory.__doc__
    assert DATASETS.summary(name)
    for option in options_of(factory):
        assert f"{option}:" in documented


def test_data_sets_do_not_import_each_other():
    package = Path(pckd.data.__file__).parent
    for name in BUILT_IN:
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").rpartition(".")[2] not in BUILT_IN

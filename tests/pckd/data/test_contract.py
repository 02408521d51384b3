"""What the contract of DATASETS promises, for each data set that can be built without files from elsewhere."""

import numpy as np
import pytest
from PIL import Image

from pckd.testing import check_dataset
from registry import DATASETS, build, options_of, parse

WITH_OPTIONS = (
    "scenes(train_size=12, test_size=9, image_size=48)",
    "shapes(train_size=40, test_size=30, image_size=16)",
    "shapes(num_classes=30, train_size=40, test_size=30, label_noise=0.2)",
    "imagefolder",
    "imagefolder(memory=False)",
    "imagenet(image_size=16)",
    "filelist(memory=False)",
    "npz",
)
DOWNLOADED = ("cifar10", "cifar100", "fashion_mnist", "stl10")
"""What they make of their archives is tested in test_vision.py."""
ANNOTATED = ("cityscapes", "coco", "voc", "voc_segmentation", "yolo")
"""Held to the contract in test_box_files.py, which makes their files."""
NAMES = DATASETS.names()
COVERED = {*DOWNLOADED, *ANNOTATED, *(parse(spec)[0] for spec in WITH_OPTIONS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    for split in ("train", "val"):
        rows = [f"{split}/{name}/{i}.png,{name}" for name in "ab" for i in range(4)]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]))
        np.savez(root / f"{split}.npz", images=np.zeros((4, 16, 16), np.uint8), labels=np.arange(4) % 2)
    return str(root)


def test_the_built_in_data_sets_are_there():
    assert set(NAMES) >= COVERED


@pytest.mark.parametrize("spec", [*WITH_OPTIONS, *(name for name in NAMES if name not in COVERED)])
def test_it_keeps_its_contract(spec, folder):
    check_dataset(spec, root=folder)


@pytest.mark.parametrize("train", [True, False])
def test_a_built_in_split_has_a_name_and_difficulties_in_0_to_1(train, folder):
    for spec in WITH_OPTIONS:
        split = build(DATASETS, spec, folder, train)
        assert split.name
        known = split.difficulty
        for values in known.values() if isinstance(known, dict) else () if known is None else (known,):
            assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    factory = DATASETS.get(name)
    assert list(options_of(factory))[:2] == ["root", "train"]
    assert DATASETS.summary(name)
    assert all(f"{option}:" in factory.__doc__ for option in options_of(factory))

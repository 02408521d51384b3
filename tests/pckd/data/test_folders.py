import random

import numpy as np
import pytest
import torch
from PIL import Image

from pckd.data import Loader, hold_out, limit
from pckd.data.folder import read_image
from registry import DATASETS, UserError, build

COLORS = {"blue": (10, 20, 230), "green": (20, 220, 30), "red": (240, 15, 25)}


def make(root, splits=("train", "test"), size=(12, 12), count=4, suffix="png"):
    """Images of one color each, their class's, a little darker from file to file."""
    for split in splits:
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, tuple(c - i for c in color)).save(folder / f"{i}.{suffix}")
    return root


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def load(name, root, train=True, **options):
    return build(DATASETS, name, str(root), train, **options)


def items(split):
    return torch.stack([split.images[i] for i in range(len(split))])


@pytest.mark.parametrize("memory", [True, False, "auto"])
def test_images_labels_and_classes(root, memory):
    for train in (True, False):
        split = load("imagefolder", root, train, memory=memory)
        assert split.classes == ("blue", "green", "red")
        assert split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert items(split).shape == (12, 3, 12, 12)
        assert items(split)[5, :, 0, 0].tolist() == [19, 219, 29]
        assert isinstance(split.images, torch.Tensor) == (memory is not False)


def test_val_serves_as_test(tmp_path):
    assert len(load("imagefolder", make(tmp_path, ("train", "val"), count=1), train=False)) == 3


def test_training_needs_no_test_folder(tmp_path):
    assert len(load("imagefolder", make(tmp_path, ("train",)))) == 12


def test_statistics_are_those_of_the_training_images_for_both_splits(root):
    Image.new("RGB", (12, 12), (255, 255, 255)).save(root / "test" / "red" / "odd.png")
    train, test = (load("imagefolder", root, part) for part in (True, False))
    pixels = train.images.double() / 255
    assert train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert (test.mean, test.std) == (train.mean, train.std)


def test_statistics_can_be_given_and_are_those_of_imagenet_for_streamed_data(root):
    given = load("imagefolder", root, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load("imagefolder", root, memory=False).mean == (0.485, 0.456, 0.406)


def test_large_images_are_streamed_and_small_ones_are_not(tmp_path):
    large = make(tmp_path, size=(80, 80), count=1)
    assert not isinstance(load("imagefolder", large).images, torch.Tensor)
    assert isinstance(load("imagefolder", large, image_size=16).images, torch.Tensor)


@pytest.mark.parametrize("memory", [True, False])
def test_mixed_sizes_are_resized_and_cropped(root, memory):
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, 8:32] = 200
    Image.fromarray(wide).save(root / "train" / "blue" / "0.png")
    split = load("imagefolder", root, image_size=10, memory=memory)
    assert items(split).shape == (12, 3, 10, 10)
    assert items(split)[0].min() == 200


@pytest.mark.parametrize("which", ["0.png", "3.png"])
def test_mixed_sizes_without_image_size_name_the_file(root, which):
    Image.new("RGB", (9, 7)).save(root / "train" / "green" / which)
    with pytest.raises(UserError, match=r"is 9x7 .*image_size"):
        load("imagefolder", root)


def test_a_streamed_image_of_another_size_is_named_in_training(tmp_path):
    root = make(tmp_path, ("train",), count=60)
    Image.new("RGB", (9, 7)).save(root / "train" / "green" / "31.png")
    split = load("imagefolder", root, memory=False)
    with pytest.raises(UserError, match=r"31\.png is 9x7"):
        list(Loader(split, 60, train=True).epoch(1))


def write(folder, name, image):
    image.save(folder / name)
    return read_image(str(folder / name))


def test_every_mode_becomes_rgb(tmp_path):
    def close(pixels, expected, within=0):
        assert pixels.shape == (6, 5, 3)
        assert pixels.dtype == np.uint8
        assert np.abs(pixels[3, 3].astype(int) - expected).max() <= within

    size = (5, 6)
    close(write(tmp_path, "grey.png", Image.new("L", size, 77)), (77, 77, 77))
    close(write(tmp_path, "alpha.png", Image.new("RGBA", size, (9, 8, 7, 100))), (9, 8, 7))
    close(write(tmp_path, "grey_alpha.png", Image.new("LA", size, (50, 10))), (50, 50, 50))
    close(write(tmp_path, "palette.png", Image.new("RGB", size, (200, 100, 0)).quantize(4)), (200, 100, 0))
    close(write(tmp_path, "bits.png", Image.new("1", size, 1)), (255, 255, 255))
    deep = Image.fromarray(np.full((6, 5), 0x8000, dtype=np.uint16))
    close(write(tmp_path, "deep.png", deep), (128, 128, 128))
    close(write(tmp_path, "print.jpg", Image.new("CMYK", size, (0, 255, 255, 0))), (255, 0, 0), within=4)


def cut(path):
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no image at all"), cut], ids=["0", "text", "cut"]
)
def test_a_damaged_file_is_named(tmp_path, damage, part):
    root = make(tmp_path, size=(12, 13), suffix="jpg")
    path = root / part / "green" / "2.jpg"
    damage(path)
    with pytest.raises(UserError, match=r"green.2\.jpg: not a readable image") as caught:
        load("imagefolder", root, part == "train", image_size=12)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_called_empty(root):
    (root / "train" / "red" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3\.png: not a readable image \(the file is empty\)"):
        load("imagefolder", root)


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
class TestLayout:
    @pytest.fixture
    def root(self, tmp_path):
        return make(tmp_path, ("train", "val"), count=1)

    def fails(self, name, root, train, said):
        with pytest.raises(UserError, match=said) as caught:
            load(name, root, train)
        assert "\n" not in str(caught.value)

    def test_missing_root(self, name, tmp_path):
        self.fails(name, tmp_path / "nowhere", True, r"no folder .*nowhere")

    def test_no_root(self, name):
        with pytest.raises(UserError, match=f"{name}: give the root folder"):
            build(DATASETS, name, None, True)

    def test_missing_split_says_what_is_there(self, name, root):
        (root / "train").rename(root / "images")
        self.fails(name, root, True, r"no folder train/ in .*there is: images/, val/")
        (root / "images").rename(root / "train")
        (root / "val").rename(root / "other")
        self.fails(name, root, False, r"val/ in .*there is: other/, train/")

    def test_no_classes(self, name, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "loose.png").touch()
        self.fails(name, tmp_path, True, r"no class folders in .*train")

    def test_class_without_images(self, name, root):
        (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "0.txt")
        self.fails(name, root, True, r"no images in .*red")

    @pytest.mark.parametrize("train", [True, False])
    def test_different_classes(self, name, root, train):
        (root / "val" / "red").rename(root / "val" / "rouge")
        self.fails(name, root, train, r"same class folders; .*val lacks red")
        (root / "val" / "rouge").rename(root / "val" / "red")
        (root / "val" / "more").mkdir()
        self.fails(name, root, train, r"train lacks more")

    def test_hidden_and_nested_files(self, name, root):
        (root / "train" / ".cache").mkdir()
        (root / "train" / "red" / "images").mkdir()
        (root / "train" / "red" / "0.png").rename(root / "train" / "red" / "images" / "0.png")
        (root / "train" / "red" / "._0.png").touch()
        assert load(name, root).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"memory": "yes"}, "memory='yes'"),
        ({"mean": (0.5, 0.5, 0.5)}, "both mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean has 1 numbers"),
    ],
)
def test_imagefolder_options(root, options, said):
    with pytest.raises(UserError, match=said):
        load("imagefolder", root, **options)


def pictures(root):
    """Two classes of large pictures of several sizes."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (60 + 10 * i, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.JPEG")
    return root


def test_imagenet_is_streamed_at_one_size(tmp_path):
    root = pictures(tmp_path)
    train, test = (load("imagenet", root, part, image_size=28) for part in (True, False))
    assert (train.mean, train.std, train.padding) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0)
    assert items(train).shape == items(test).shape == (6, 3, 28, 28)
    assert items(train).dtype == torch.uint8
    assert not torch.equal(items(train), items(train))
    assert torch.equal(items(test), items(test))


def test_imagenet_evaluation_resizes_and_crops_the_center(tmp_path):
    from torchvision.transforms import v2

    root = pictures(tmp_path)
    test = load("imagenet", root, train=False, image_size=28)
    with Image.open(root / "val" / "a" / "1.JPEG") as image:
        expected = np.asarray(v2.CenterCrop(28)(v2.Resize(32)(image.convert("RGB"))))
    assert np.array_equal(test.images[1].permute(1, 2, 0).numpy(), expected)


def test_imagenet_batches_are_reproducible_across_processes(tmp_path):
    split = load("imagenet", pictures(tmp_path), image_size=28)
    here = list(Loader(split, 2, train=True, views=4, seed=5).epoch(1))
    random.seed(1)
    there = list(Loader(split, 2, train=True, views=4, seed=5, num_workers=1).epoch(1))
    assert all(torch.equal(a.views, b.views) for a, b in zip(here, there, strict=True))
    again = list(Loader(split, 2, train=True, views=4, seed=5).epoch(2))
    assert not torch.equal(here[0].views, again[0].views)


def test_imagenet_held_out_images_are_read_as_in_evaluation(tmp_path):
    split = load("imagenet", pictures(tmp_path), image_size=28)
    _, held = hold_out(limit(split, 6), 0.34)
    assert torch.equal(items(held), items(held))


@pytest.mark.parametrize(("options", "said"), [({"image_size": 0}, "image_size=0"), ({"min_area": 0.0}, "min_area=0")])
def test_imagenet_options(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        load("imagenet", tmp_path, **options)

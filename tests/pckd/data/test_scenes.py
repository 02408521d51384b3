"""Drawn scenes: boxes and masks are of what is drawn, and its difficulty is known."""

import math

import pytest
import torch

from pckd.data.load import load_data
from pckd.data.scenes import scenes
from pckd.plan import make_task
from registry import DATASETS, UserError, build

SMALL = {"train_size": 30, "test_size": 20}
CLEAN = {"noise": 0.0, "occlusion": 0.0, "contrast": 1.0}


@pytest.fixture(scope="module")
def split():
    return scenes(**SMALL)


def test_it_is_found_by_name(split):
    built = build(DATASETS, "scenes(train_size=30)", None, True)
    assert built.images.equal(split.images)
    assert DATASETS.facts("scenes")["task"] == "detection"
    assert (len(scenes(train=False, **SMALL)), split.image_size, split.num_classes) == (20, (128, 128), 10)


def test_pixels_depend_on_the_seed_and_the_split_alone():
    # Neither on the number of threads nor on that of the images; 105 images are drawn in two pieces.
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = scenes(train_size=105, image_size=64)
        torch.set_num_threads(3)
        three = scenes(train_size=105, image_size=64)
    finally:
        torch.set_num_threads(threads)
    few = scenes(train_size=7, image_size=64)
    assert one.images.equal(three.images)
    assert one.masks.equal(three.masks)
    assert one.objects.boxes.equal(three.objects.boxes)
    assert few.images.equal(one.images[:7])
    assert few.objects.boxes.equal(one.objects.boxes[: len(few.objects)])
    for other in (scenes(train_size=7, image_size=64, seed=1), scenes(train=False, test_size=7, image_size=64)):
        assert not other.images.equal(few.images)


def test_boxes_areas_and_masks_agree(split):
    assert {len(each) for each in split.annotations} == {1, 2, 3, 4, 5, 6}
    for each, mask in zip(split.annotations, split.masks, strict=True):
        for box, label, area in zip(each.boxes.int().tolist(), each.labels, each.area, strict=True):
            left, top, right, bottom = box
            inside = mask[top:bottom, left:right] == label
            # Each side of the box touches the object; others of its class may lie there, too.
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert area <= inside.sum()
        assert sum(each.area) == (mask > 0).sum()


def test_an_object_is_drawn_where_its_mask_is():
    # Without clutter of their own, objects stand out from the median color of the image.
    split = scenes(objects=1, **CLEAN, **SMALL)
    for image, mask in zip(split.images.float(), split.masks, strict=True):
        ground = image.flatten(1).median(1).values.view(3, 1, 1)
        away = (image - ground).norm(dim=0)
        assert away[mask > 0].mean() > 2 * away[mask == 0].mean()


def test_difficulty_says_how_small_faint_and_hidden_an_object_is(split):
    assert set(split.difficulty) == {"size", "contrast", "occlusion"}
    # A disc's radius is 0.85 of the shape's: its box says its size where all of it is seen.
    discs = scenes(num_classes=1, objects=1, occlusion=0, **SMALL)
    sides = (discs.objects.boxes[:, 2:] - discs.objects.boxes[:, :2]).amax(1)
    radius = (math.log(0.22) - discs.difficulty["size"] * math.log(0.22 / 0.09)).exp() * 128
    torch.testing.assert_close(sides, 2 * 0.85 * radius, atol=1.5, rtol=0)
    assert (discs.difficulty["occlusion"] == 0).all()
    assert split.difficulty["occlusion"].max() <= 0.5
    assert 0.2 < (split.difficulty["occlusion"] > 0).float().mean() < 0.9


@pytest.mark.parametrize(("classes", "expected"), [(1, ("disc",)), (11, "striped disc")])
def test_classes_are_shapes_and_then_patterned_shapes(classes, expected):
    split = scenes(num_classes=classes, image_size=32, **SMALL)
    assert split.classes == expected or split.classes[10] == expected
    assert split.objects.labels.max() <= classes


@pytest.mark.parametrize(
    "option",
    ["num_classes=0", "image_size=31", "train_size=0", "objects=0", "smallest=0.01", "largest=0.05"],
)
def test_an_option_out_of_its_range_is_refused(option):
    with pytest.raises(UserError, match=f"scenes: {option}: it must be"):
        build(DATASETS, f"scenes({option})", None, True)


def test_classification_refuses_them_in_one_line():
    data = load_data("scenes(train_size=3, test_size=2, image_size=32)")
    with pytest.raises(UserError, match="is data for detection: leave out the task"):
        make_task("classification", data, cached=False).check(data, [])

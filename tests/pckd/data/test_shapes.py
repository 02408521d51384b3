import itertools

import pytest
import torch

from pckd.data.drawing import PATTERNS, SHAPES, figure
from pckd.data.shapes import Drawing, draw, shapes
from registry import DATASETS, UserError, build

CLEAN = {"noise": 0.0, "occlusion": 0.0, "contrast": 1.0}


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_sizes_and_names_follow_the_options():
    options = {"num_classes": 7, "image_size": 12, "train_size": 60, "test_size": 30}
    train, test = (build(DATASETS, "shapes", None, part, **options) for part in (True, False))
    assert train.images.shape == (60, 3, 12, 12)
    assert test.images.shape == (30, 3, 12, 12)
    assert train.images.is_contiguous(memory_format=torch.channels_last)
    assert train.classes == test.classes == SHAPES[:7]
    assert set(train.labels.tolist()) == set(range(7))
    assert (train.mean, train.std) == (test.mean, test.std)


def test_mean_and_std_are_those_of_the_images():
    split = shapes()
    pixels = split.images.double() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.tensor(split.mean).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(split.std).double(), atol=0.02, rtol=0)


def test_the_seed_decides_everything():
    one, again, other = (shapes(train_size=40, image_size=16, seed=seed) for seed in (3, 3, 4))
    assert same(one, again)
    assert torch.equal(one.difficulty, again.difficulty)
    assert not torch.equal(one.images, other.images)


def test_an_image_does_not_depend_on_how_many_there_are():
    few, many = (draw(count, image_size=16) for count in (30, 700))
    for name in Drawing._fields:
        assert torch.equal(getattr(few, name), getattr(many, name)[:30])


def test_train_and_test_have_no_image_in_common():
    train, test = (shapes(train=part, train_size=300, test_size=300, image_size=16) for part in (True, False))
    distance = torch.cdist(train.images.flatten(1).float(), test.images.flatten(1).float())
    assert distance.min() > 100


@pytest.mark.parametrize("options", [{}, {"noise": 0.0}, {"occlusion": 0.0, "contrast": 1.0}])
def test_difficulty_is_spread_over_zero_to_one(options):
    difficulty = draw(2000, image_size=8, **options).difficulty
    assert difficulty.min() >= 0
    assert difficulty.max() <= 1
    counts = torch.histc(difficulty, 4, 0, 1) / 2000
    assert counts.min() > 0.2


def test_difficulty_is_the_radius_of_the_three_levels():
    d = draw(300, image_size=8, noise=0.2, occlusion=0.5, contrast=0.4)
    levels = torch.stack([d.noise / 0.2, d.occlusion / 0.5, (1 - d.contrast) / 0.6], 1)
    torch.testing.assert_close(d.difficulty, levels.norm(dim=1))


def test_an_option_that_is_off_adds_no_difficulty():
    clean = draw(50, image_size=16, **CLEAN)
    assert not clean.difficulty.any()
    only_noise = draw(50, image_size=16, **{**CLEAN, "noise": 0.3})
    torch.testing.assert_close(only_noise.difficulty, only_noise.noise / 0.3)


def drawn(**options):
    return draw(400, image_size=16, **{**CLEAN, **options})


def change(drawing, reference):
    """Root mean square difference of each image from its cleaner rendering."""
    return (drawing.images.float() - reference.images.float()).pow(2).flatten(1).mean(1).sqrt()


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def test_noise_in_the_image_grows_with_difficulty():
    noisy = drawn(noise=0.2)
    nearly = drawn(noise=1e-6)
    assert correlation(change(noisy, nearly), noisy.difficulty) > 0.97
    torch.testing.assert_close(change(noisy, nearly) / 255, noisy.noise, atol=0.03, rtol=0.1)


def test_faint_images_are_nearer_to_their_background():
    faint, full = drawn(contrast=0.1), drawn(contrast=0.999)
    assert torch.equal(faint.difficulty, full.difficulty)
    assert correlation(change(faint, full), faint.difficulty) > 0.75
    assert change(faint, full)[faint.difficulty < 0.1].max() < change(faint, full)[faint.difficulty > 0.9].min()


def test_occlusion_covers_the_share_it_says():
    covered, bare = drawn(occlusion=0.6), drawn(occlusion=1e-6)
    changed = ((covered.images.int() - bare.images.int()).abs().amax(1) > 1).flatten(1).float().mean(1)
    assert correlation(changed, covered.occlusion) > 0.8
    assert changed[covered.occlusion < 0.02].max() < changed[covered.occlusion > 0.55].min()


def test_label_noise_is_an_exact_share_and_recorded_as_hardest():
    noisy = draw(500, image_size=8, label_noise=0.2)
    wrong = noisy.labels != noisy.true_labels
    assert wrong.sum() == 100
    assert (noisy.difficulty[wrong] == 1).all()
    clean = draw(500, image_size=8)
    assert torch.equal(clean.images, noisy.images)
    assert torch.equal(clean.labels, noisy.true_labels)
    assert torch.equal(clean.difficulty[~wrong], noisy.difficulty[~wrong])
    assert len(set(noisy.labels[wrong].tolist())) == 10


def test_only_training_labels_are_noisy():
    options = {"train_size": 200, "test_size": 200, "image_size": 8}
    noisy, clean = (
        [shapes(train=part, label_noise=rate, **options).labels for part in (True, False)] for rate in (0.5, 0.0)
    )
    assert (noisy[0] != clean[0]).sum() == 100
    assert torch.equal(noisy[1], clean[1])


def test_a_hundred_classes_have_a_hundred_names():
    split = shapes(num_classes=100, train_size=100, image_size=16)
    assert len(set(split.classes)) == 100
    assert split.labels.tolist() == list(range(100))
    assert split.classes[13] == f"{PATTERNS[1]} {SHAPES[3]}"


def test_no_class_is_a_rotation_or_mirror_image_of_another():
    # Colors are random: a class is where its first and second color are, and which is which says nothing.
    grid = (torch.arange(48) + 0.5) / 24 - 1
    u, v = grid.expand(1, 48, 48), grid.view(1, 48, 1).expand(1, 48, 48)
    pixel = torch.full((1, 1, 1), 1 / 24)
    classes = []
    for shape, pattern in itertools.product(torch.arange(10), torch.arange(10)):
        mask, second = figure(shape[None], pattern[None], u, v, pixel)
        classes.append(torch.cat([mask * (1 - second), mask * second]))
    drawn = torch.stack(classes)
    area = drawn.sum((1, 2, 3))
    nearest = torch.full((100, 100), torch.inf)
    for turns, mirrored, swapped in itertools.product(range(4), (False, True), (False, True)):
        turned = torch.rot90(drawn.flip(-1) if mirrored else drawn, turns, (2, 3))
        turned = turned.flip(1) if swapped else turned
        distance = torch.cdist(drawn.flatten(1), turned.flatten(1), p=1) / torch.minimum(area, area[:, None])
        nearest = torch.minimum(nearest, distance)
    assert nearest.diagonal().max() < 1e-4
    assert nearest.fill_diagonal_(torch.inf).min() > 0.15


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 1},
        {"num_classes": 101},
        {"image_size": 4},
        {"train_size": 0},
        {"test_size": 0},
        {"noise": -0.1},
        {"occlusion": 0.95},
        {"contrast": 1.5},
        {"label_noise": 1.0},
    ],
)
def test_options_out_of_range_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"shapes: {name}="):
        shapes(**options)


def test_color_cue_paints_that_share_and_changes_nothing_else() -> None:
    plain, cued = draw(400), draw(400, color_cue=0.5)
    same = (plain.images == cued.images).flatten(1).all(1)
    assert 0.4 < same.float().mean() < 0.6
    assert cued.labels.equal(plain.labels)
    assert cued.difficulty.equal(plain.difficulty)
    clean = draw(400, noise=0, occlusion=0, contrast=1, color_cue=1.0)
    center = clean.images[:, :, 14:18, 14:18].float().mean((2, 3))
    spread = torch.stack([center[clean.labels == k].std(0).mean() for k in (0, 2)])
    anyway = torch.stack(
        [draw(400, noise=0, occlusion=0, contrast=1).images[:, :, 14:18, 14:18].float().mean((2, 3)).std(0).mean()]
    )
    assert spread.max() < 0.8 * anyway.min()


@pytest.mark.parametrize("train", [True, False])
def test_labels_can_be_hidden(train: bool) -> None:
    shown, hidden = (shapes(train=train, train_size=6, test_size=6, labels=labels) for labels in (True, False))
    assert torch.equal(shown.images, hidden.images)
    assert (hidden.labels.tolist(), hidden.classes, hidden.labeled) == ([-1] * 6, (), False)

import pytest
import torch

from pckd.data import make_views
from pckd.data.strong import _OPERATIONS, _cut_out, strong_augment
from pckd.data.views import POOL_VERSION, apply_views, draw_pool, draw_views
from registry import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(batch=5, channels=3, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


def normalized(images):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def views_of(images, views=4, train=True, seed=0, **options):
    options = {"mean": MEAN, "std": STD, "generator": torch.Generator().manual_seed(seed), **options}
    return make_views(images, views=views, train=train, **options)


def drawn(images, views, padding, flip=True, seed=3):
    return draw_views(images, views, padding=padding, flip=flip, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_view_k_is_rot90_k_of_its_own_image(views):
    images = random_images()
    out = views_of(images, views, train=False)
    assert out.shape == (5, views, 3, 8, 8)
    for k in range(views):
        torch.testing.assert_close(out[:, k], normalized(torch.rot90(images, k, (2, 3))))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "views", "padding"), [(8, 8, 4, 3), (8, 8, 1, 3), (6, 9, 1, 3), (8, 8, 1, 0)]
)
def test_training_flips_then_rotates_then_pads_with_black_and_cuts(flip, height, width, views, padding):
    images = random_images(12, height=height, width=width)
    draw = drawn(12, views, padding, flip)
    assert draw.flips.any() == flip
    assert not draw.flips.all()
    out = views_of(images, views, seed=3, padding=padding, flip=flip)
    assert torch.equal(out, apply_views(images, views=views, mean=MEAN, std=STD, padding=padding, draw=draw))
    for i in range(12):
        image = images[i].flip(-1) if draw.flips[i] else images[i]
        for k in range(views):
            top, left = draw.offsets[i, k].tolist()
            padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
            padded[:, padding : padding + height, padding : padding + width] = torch.rot90(image, k, (1, 2))
            cut = padded[:, top : top + height, left : left + width]
            torch.testing.assert_close(out[i, k], normalized(cut))


def test_offsets_reach_every_place_and_differ_between_views():
    draw = drawn(400, 4, padding=2)
    assert set(draw.offsets.unique().tolist()) == {0, 1, 2, 3, 4}
    assert (draw.offsets[:, 0] != draw.offsets[:, 1]).any()
    assert 0.4 < draw.flips.float().mean() < 0.6
    # Crops do not depend on whether flips are on.
    assert torch.equal(drawn(400, 4, padding=2, flip=False).offsets, draw.offsets)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_are_channels_last_and_the_layout_of_the_images_does_not_matter(train, views, layout):
    images = random_images()
    out = views_of(images.contiguous(memory_format=layout), views, train=train)
    rows = out.view(-1, 3, 8, 8)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert rows.dtype == torch.float32
    assert torch.equal(out, views_of(images, views, train=train))
    # Nor is the input changed.
    assert torch.equal(images, random_images())


def test_one_channel():
    assert views_of(random_images(channels=1), mean=(0.5,), std=(0.5,)).shape == (5, 4, 1, 8, 8)


@pytest.mark.parametrize(
    ("height", "views", "mean", "said"),
    [(6, 4, MEAN, "square"), (8, 5, MEAN, "1 to 4"), (8, 0, MEAN, "1 to 4"), (8, 1, (0.5,), "3 channels")],
)
def test_errors_name_what_is_wrong(height, views, mean, said):
    with pytest.raises(UserError, match=said):
        views_of(random_images(height=height), views, mean=mean, std=STD[: len(mean)], train=False)


def pool_of(images=6, entries=10, views=4, flip=True, padding=4):
    """The draws of all entries of all images, image by image."""
    index, entry = torch.arange(images).repeat_interleave(entries), torch.arange(entries).repeat(images)
    return draw_pool(index, entry, views, padding=padding, flip=flip)


def test_an_entry_of_a_pool_is_always_the_same():
    whole = pool_of()
    one = draw_pool(torch.tensor([4, 2]), torch.tensor([7, 0]), 4, padding=4, flip=True)
    assert torch.equal(one.flips, whole.flips[[47, 20]])
    assert torch.equal(one.offsets, whole.offsets[[47, 20]])
    # Written down: these numbers are on the disks of those who have a teacher cache. Others need a new POOL_VERSION.
    assert POOL_VERSION == 1
    assert one.flips.tolist() == [False, True]
    assert one.offsets.tolist() == [[[1, 1], [8, 2], [1, 1], [1, 4]], [[1, 2], [1, 3], [4, 7], [7, 7]]]
    # Fewer views are the first ones, and without flips the crops are the same.
    fewer, unflipped = pool_of(views=2), pool_of(flip=False)
    assert torch.equal(fewer.offsets, whole.offsets[:, :2])
    assert torch.equal(fewer.flips, whole.flips)
    assert fewer.offsets.is_contiguous()
    assert torch.equal(unflipped.offsets, whole.offsets)
    assert not unflipped.flips.any()


def test_entries_reach_every_place_and_differ_between_images_entries_and_views():
    draw = pool_of(images=300, entries=40, padding=2)
    assert draw.offsets.dtype == torch.int64
    assert draw.flips.dtype == torch.bool
    # 12,000 of each: five places alike to 6 standard deviations.
    for numbers in draw.offsets.flatten(1).T:
        assert torch.bincount(numbers, minlength=5).tolist() == [pytest.approx(2400, abs=264)] * 5
    assert draw.flips.sum().item() == pytest.approx(6000, abs=330)
    columns = torch.cat([draw.offsets.flatten(1), draw.flips[:, None]], 1).float()
    for table in (columns, draw.offsets[:, 0, 0].view(300, 40).float(), draw.offsets[:, 0, 0].view(300, 40).T.float()):
        correlations = torch.corrcoef(table.T).fill_diagonal_(0)
        assert correlations.abs().max() < 6 / len(table) ** 0.5
    assert pool_of(padding=0).offsets.unique().tolist() == [0]


def test_views_are_changed_after_the_crop_and_before_they_are_normalized():
    images, draw = random_images(), drawn(5, 1, 3)
    options = {"views": 1, "mean": MEAN, "std": STD, "padding": 3, "draw": draw}
    black = {"views": 1, "mean": (0,) * 3, "std": (1 / 255,) * 3, "padding": 3, "draw": draw}
    cut = apply_views(images, **black)[:, 0]
    changed = apply_views(images, change=lambda x: 255 - x, **options)[:, 0]
    torch.testing.assert_close(changed, normalized(255 - cut))


# From 10 to 120; every expected value is by hand, but for the rotation, which is Pillow's.
STEPS = torch.arange(10, 130, 10, dtype=torch.uint8).view(3, 4)
POINT = torch.zeros(3, 3, dtype=torch.uint8)
POINT[1, 1] = 130


@pytest.mark.parametrize(
    ("name", "strength", "image", "expected"),
    [
        ("identity", 0.3, STEPS, STEPS),
        # 0.5 of the image, the rest plainer: black, the gray of the pixel (0.299, 0.587, 0.114), the mean of 65.
        ("brightness", 0.5, STEPS, STEPS // 2),
        ("color", 0.5, [[[100]], [[200]], [[50]]], [[[126]], [[176]], [[101]]]),
        ("color", 0.5, STEPS, STEPS),
        ("contrast", 0.5, STEPS, [[37, 42, 47, 52], [57, 62, 67, 72], [77, 82, 87, 92]]),
        # Blurred, the point has 5 / 13 of its height.
        ("sharpness", 0.5, POINT, [[0, 0, 0], [0, 90, 0], [0, 0, 0]]),
        # 4, 6 and 7 bits of 8 stay.
        ("posterize", 0.0, STEPS, [[0, 16, 16, 32], [48, 48, 64, 80], [80, 96, 96, 112]]),
        ("posterize", 0.5, STEPS, [[8, 20, 28, 40], [48, 60, 68, 80], [88, 100, 108, 120]]),
        ("posterize", 0.99, POINT + 1, [[0, 0, 0], [0, 130, 0], [0, 0, 0]]),
        # From a quarter of 256 on.
        ("solarize", 0.25, STEPS, [[10, 20, 30, 40], [50, 60, 185, 175], [165, 155, 145, 135]]),
        # By a pixel, of 0.3 * 4 and of 0.3 * 3.
        ("shift_x", 0.92, STEPS, [[20, 30, 40, 0], [60, 70, 80, 0], [100, 110, 120, 0]]),
        ("shift_x", 0.08, STEPS, [[0, 10, 20, 30], [0, 50, 60, 70], [0, 90, 100, 110]]),
        ("shift_y", 0.99, STEPS, [[50, 60, 70, 80], [90, 100, 110, 120], [0, 0, 0, 0]]),
        # The centers of the rows move by 0.15, 0.45 and 0.75, those of columns by up to 1.05 the other way.
        ("shear_x", 1.0, STEPS, [[10, 20, 30, 40], [50, 60, 70, 80], [100, 110, 120, 0]]),
        ("shear_y", 0.0, STEPS, [[10, 20, 0, 0], [50, 60, 30, 40], [90, 100, 70, 80]]),
        ("rotate", 0.5, STEPS, STEPS),
        ("rotate", 1.0, STEPS, [[0, 30, 30, 80], [10, 60, 70, 120], [50, 100, 100, 0]]),
    ],
)
def test_operations_of_the_strong_view(name, strength, image, expected):
    image, expected = (torch.as_tensor(x, dtype=torch.uint8) for x in (image, expected))
    shape = (1, 1, *image.shape) if image.ndim == 2 else (1, *image.shape)
    # Two images of two strengths do not disturb each other.
    images = torch.cat([image.view(shape), torch.zeros(shape, dtype=torch.uint8)])
    strengths = torch.tensor([strength, 0.5]).view(2, 1, 1, 1)
    assert torch.equal(_OPERATIONS[name](images, strengths)[0], expected.view(shape[1:]))


def test_the_hole_of_the_strong_view():
    # Side 0.5 * 8 / 2 = 2, from column 0.5 * 8 - 1 = 3 and row 0.25 * 4 - 1 = 0 on, both ends included.
    holes = _cut_out(torch.ones(1, 3, 4, 8, dtype=torch.uint8), torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1, 1, 1))
    expected = torch.ones(3, 4, 8, dtype=torch.uint8)
    expected[:, :3, 3:6] = torch.tensor([125, 123, 114], dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(holes[0], expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strong_view_is_of_any_strength_and_always_has_a_hole(channels):
    images = torch.full((1000, channels, 32, 32), 200, dtype=torch.uint8)
    images[:, :, ::2] = 90

    def strong(operations, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return strong_augment(images, generator=generator, operations=operations)

    holes = (strong(0) != images).any(1)
    assert holes.flatten(1).any(1).all()
    # The released code cuts out 8.3 %.
    assert holes.float().mean().item() == pytest.approx(0.083, abs=0.006)
    one = strong(1)
    assert torch.equal(one, strong(1))
    assert not torch.equal(one, strong(1, seed=1))
    # Brightness alone has more than fifty strengths.
    assert len(one[:, 0, 0, 0].unique()) > 50

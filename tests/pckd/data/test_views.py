import pytest
import torch

from pckd.data import make_views
from pckd.data.views import POOL_VERSION, apply_views, draw_pool, draw_views
from registry import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(batch=5, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


def normalized(images):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def views_of(images, views=4, train=True, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return make_views(images, views=views, mean=MEAN, std=STD, train=train, generator=generator, **options)


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_view_k_is_rot90_k_of_its_own_image(views):
    images = random_images()
    out = views_of(images, views, train=False)
    assert out.shape == (5, views, 3, 8, 8)
    for k in range(views):
        torch.testing.assert_close(out[:, k], normalized(torch.rot90(images, k, (2, 3))))


def test_rows_are_image_major():
    images = random_images()
    rows = views_of(images, 4, train=False).flatten(0, 1)
    for n in (0, 3, 4, 19):
        torch.testing.assert_close(rows[n], normalized(torch.rot90(images[n // 4], n % 4, (1, 2))))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("height", "width", "views"), [(8, 8, 4), (8, 8, 1), (6, 9, 1)])
def test_training_flips_then_rotates_then_pads_and_cuts(flip, height, width, views):
    images = random_images(12, height=height, width=width)
    padding = 3
    generator = torch.Generator().manual_seed(7)
    draw = draw_views(12, views, padding=padding, flip=flip, generator=generator)
    assert draw.flips.any() == flip
    assert not draw.flips.all()
    out = apply_views(images, views=views, mean=MEAN, std=STD, padding=padding, draw=draw)
    for i in range(12):
        image = images[i].flip(-1) if draw.flips[i] else images[i]
        for k in range(views):
            top, left = draw.offsets[i, k].tolist()
            padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
            padded[:, padding : padding + height, padding : padding + width] = torch.rot90(image, k, (1, 2))
            cut = padded[:, top : top + height, left : left + width]
            torch.testing.assert_close(out[i, k], normalized(cut))


def test_make_views_draws_then_applies():
    images = random_images()
    draw = draw_views(5, 4, padding=4, flip=True, generator=torch.Generator().manual_seed(3))
    expected = apply_views(images, views=4, mean=MEAN, std=STD, padding=4, draw=draw)
    assert torch.equal(views_of(images, seed=3), expected)
    assert not torch.equal(views_of(images, seed=4), expected)


def test_offsets_reach_every_place_and_differ_between_views():
    draw = draw_views(400, 4, padding=2, flip=True, generator=torch.Generator().manual_seed(0))
    assert set(draw.offsets.unique().tolist()) == {0, 1, 2, 3, 4}
    assert (draw.offsets[:, 0] != draw.offsets[:, 1]).any()
    assert 0.4 < draw.flips.float().mean() < 0.6


def test_crops_do_not_depend_on_whether_flips_are_on():
    with_flips, without = (
        draw_views(9, 4, padding=4, flip=flip, generator=torch.Generator().manual_seed(1)) for flip in (True, False)
    )
    assert torch.equal(with_flips.offsets, without.offsets)
    assert not without.flips.any()


def test_padding_is_black_before_normalization():
    white = torch.full((40, 3, 8, 8), 255, dtype=torch.uint8)
    out = views_of(white, 1)
    darkest = out.amin((0, 1, 3, 4))
    torch.testing.assert_close(darkest, -torch.tensor(MEAN) / torch.tensor(STD))


def test_evaluation_and_no_padding_leave_pixels_in_place():
    images = random_images()
    torch.testing.assert_close(views_of(images, 1, train=False)[:, 0], normalized(images))
    torch.testing.assert_close(views_of(images, 1, padding=0, flip=False)[:, 0], normalized(images))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_are_channels_last(train, views, layout):
    out = views_of(random_images().contiguous(memory_format=layout), views, train=train)
    rows = out.view(-1, 3, 8, 8)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert rows.dtype == torch.float32


def test_the_memory_layout_of_the_images_does_not_matter():
    images = random_images()
    assert torch.equal(views_of(images), views_of(images.contiguous(memory_format=torch.channels_last)))


def test_one_channel():
    images = random_images(channels=1)
    generator = torch.Generator().manual_seed(0)
    out = make_views(images, views=4, mean=(0.5,), std=(0.5,), train=True, generator=generator)
    assert out.shape == (5, 4, 1, 8, 8)


def test_the_input_is_not_changed():
    images = random_images()
    before = images.clone()
    views_of(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "views", "mean", "said"),
    [
        (random_images(height=6), 4, MEAN, "square"),
        (random_images(), 5, MEAN, "1 to 4"),
        (random_images(), 0, MEAN, "1 to 4"),
        (random_images(), 1, (0.5,), "3 channels"),
    ],
)
def test_errors_name_what_is_wrong(images, views, mean, said):
    with pytest.raises(UserError, match=said):
        make_views(images, views=views, mean=mean, std=STD[: len(mean)], train=False)


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


def test_fewer_views_of_an_entry_are_its_first_ones():
    for views in (1, 2, 3):
        assert torch.equal(pool_of(views=views).offsets, pool_of().offsets[:, :views])
        assert torch.equal(pool_of(views=views).flips, pool_of().flips)
    assert pool_of(views=2).offsets.is_contiguous()


def test_without_flips_an_entry_has_the_same_crops():
    assert torch.equal(pool_of(flip=False).offsets, pool_of().offsets)
    assert not pool_of(flip=False).flips.any()


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

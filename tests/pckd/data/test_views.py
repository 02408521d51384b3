import pytest
import torch

from pckd.data import make_views
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

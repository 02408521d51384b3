import dataclasses
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pckd.data import Loader, hold_out, limit
from pckd.data.views import apply_views, draw_pool, draw_views
from registry import Absent, BadImages, DataSplit, Output, UserError


class Noisy(Dataset):
    """Streamed items whose reading uses the global generators; ``evaluation()`` reads them plainly."""

    def __init__(self, images, plain=False):
        self.images = images
        self.plain = plain

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if self.plain:
            return self.images[i]
        grain = torch.randint(0, 9, self.images[i].shape, dtype=torch.uint8)
        return self.images[i] // 2 + grain + random.randrange(9) + int(np.random.randint(9))

    def evaluation(self):
        return Noisy(self.images, plain=True)


class Broken(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, i):
        raise UserError(f"{i}.jpg: not a readable image")


class Damaged(Noisy):
    """Noisy items some of which cannot be read."""

    def __init__(self, images, bad):
        super().__init__(images)
        self.bad = bad

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImages(f"{i}.jpg: not a readable image")
        return super().__getitem__(i)


def damaged_split(bad, on_bad_image="skip"):
    split = make_split(stream=True)
    return dataclasses.replace(split, images=Damaged(split.images.images, set(bad)), on_bad_image=on_bad_image)


def make_split(size=50, side=8, classes=5, stream=False, plain=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 200, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    return DataSplit(
        Noisy(images, plain) if stream else images,
        torch.arange(size) % classes,
        tuple(f"class {k}" for k in range(classes)),
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        difficulty=torch.arange(size) / size,
        padding=0 if stream else 2,
        name="made up",
    )


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("views", "labels", "index"))


@pytest.fixture(params=[False, True], ids=["memory", "streamed"])
def split(request):
    return make_split(stream=request.param)


def test_a_batch_has_views_labels_and_positions(split):
    loader = Loader(split, 8, train=True, views=4)
    for batch in loader.epoch(1):
        assert batch.views.shape == (8, 4, 3, 8, 8)
        assert batch.views.dtype == torch.float32
        assert batch.views.view(-1, 3, 8, 8).is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.labels, split.labels[batch.index])


def test_position_names_the_image_that_is_shown():
    split = make_split()
    for batch in Loader(split, 10, train=False).epoch(1):
        expected = (split.images[batch.index].float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(batch.views[:, 0], expected)


def test_evaluation_shows_every_image_once_in_order(split):
    loader = Loader(split, 8, train=False)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == 7
    assert torch.cat([b.index for b in batches]).tolist() == list(range(50))
    assert batches[0].views.shape[1] == 1
    assert all(same(a, b) for a, b in zip(batches, loader.epoch(9), strict=True))


def test_training_drops_the_last_incomplete_batch(split):
    loader = Loader(split, 8, train=True)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == 6
    index = torch.cat([b.index for b in batches])
    assert len(index) == len(index.unique()) == 48


def test_training_keeps_an_incomplete_batch_that_is_the_only_one(split):
    loader = Loader(split, 64, train=True)
    (batch,) = loader.epoch(1)
    assert len(loader) == 1
    assert sorted(batch.index.tolist()) == list(range(50))


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split):
    def shown(seed, epoch):
        batches = list(Loader(split, 10, train=True, seed=seed).epoch(epoch))
        index, views = (torch.cat([getattr(b, name) for b in batches]) for name in ("index", "views"))
        return index, views[index.argsort()]

    index, views = shown(0, 1)
    for seed, epoch in ((0, 2), (1, 1), (1, 0), (-1, 1)):
        other_index, other_views = shown(seed, epoch)
        assert not torch.equal(index, other_index)
        assert not torch.equal(views, other_views)


def test_batches_are_a_function_of_seed_and_epoch_alone(split):
    whole = list(Loader(split, 8, train=True, views=4, seed=3).epoch(2))
    torch.manual_seed(99)
    fresh = Loader(split, 8, train=True, views=4, seed=3)
    list(fresh.epoch(1))
    torch.rand(5)
    assert all(same(a, b) for a, b in zip(whole, fresh.epoch(2), strict=True))


def test_each_batch_and_each_epoch_is_augmented_on_its_own():
    white = torch.full((40, 3, 8, 8), 255, dtype=torch.uint8)
    split = DataSplit(white, torch.zeros(40, dtype=torch.long), ("a",), (0.0,) * 3, (1.0,) * 3, padding=2)
    loader = Loader(split, 10, train=True, views=4)
    # All images are alike: what differs is where they were cropped.
    shown = [batch.views for epoch in (1, 2) for batch in loader.epoch(epoch)]
    assert len({tuple(views.flatten().tolist()) for views in shown}) == 8


def test_a_streamed_image_is_read_anew_in_each_training_epoch_only():
    def shown(train, epoch):
        batches = list(Loader(make_split(stream=True), 50, train=train, flip=False).epoch(epoch))
        return batches[0].views[batches[0].index.argsort()]

    assert not torch.equal(shown(True, 1), shown(True, 2))
    assert torch.equal(shown(False, 1), shown(False, 2))


@pytest.mark.parametrize("start", [1, 5, 6])
def test_resuming_continues_where_the_uninterrupted_epoch_goes_on(split, start):
    whole = list(Loader(split, 8, train=True, views=2).epoch(4))
    rest = list(Loader(split, 8, train=True, views=2).epoch(4, start=start))
    assert len(rest) == 6 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_skipped_batches_are_not_read():
    split = make_split(stream=True)
    read = []
    split.images.images = Recorder(split.images.images, read)
    list(Loader(split, 10, train=False).epoch(1, start=4))
    assert sorted(set(read)) == list(range(40, 50))


class Recorder:
    def __init__(self, images, read):
        self.images = images
        self.read = read

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(i)
        return self.images[i]


def test_global_random_state_is_neither_read_nor_changed(split):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = state()
    list(Loader(split, 8, train=True).epoch(1))
    assert state() == before


@pytest.mark.parametrize("batch_size", [6, 40])
def test_ranks_share_what_one_process_with_the_larger_batch_would_see(batch_size):
    split = make_split()
    whole = Loader(split, batch_size * 2, train=True, views=2)
    ranks = [Loader(split, batch_size, train=True, views=2, rank=r, world_size=2) for r in range(2)]
    assert len(whole) == len(ranks[0]) == len(ranks[1])
    for batch, *parts in zip(whole.epoch(3), *(r.epoch(3) for r in ranks), strict=True):
        for field in ("views", "labels", "index"):
            shares = [getattr(part, field) for part in parts]
            assert len(shares[0]) == len(shares[1])
            assert torch.equal(getattr(batch, field), torch.cat(shares))


def test_ranks_partition_the_evaluation():
    split = make_split(size=11)
    shares = [
        torch.cat([b.index for b in Loader(split, 2, train=False, rank=r, world_size=3).epoch(1)]).tolist()
        for r in range(3)
    ]
    assert sorted(i for share in shares for i in share) == list(range(11))
    assert all(share == sorted(share) for share in shares)
    assert [len(Loader(split, 2, train=False, rank=r, world_size=3)) for r in range(3)] == [2, 2, 2]


def test_streamed_data_is_the_same_with_and_without_worker_processes():
    split = make_split(stream=True)
    here = Loader(split, 8, train=True)
    workers = Loader(split, 8, train=True, num_workers=2)
    for epoch in (1, 2):
        assert all(same(a, b) for a, b in zip(here.epoch(epoch), workers.epoch(epoch), strict=True))
    next(workers.epoch(3))  # An epoch that is given up does not show in the next.
    assert all(same(a, b) for a, b in zip(here.epoch(4), workers.epoch(4), strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_reading_stays_one_line(num_workers):
    split = DataSplit(Broken(), torch.zeros(50, dtype=torch.long), ("a",), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match=r"^\d+\.jpg: not a readable image$"):
        next(Loader(split, 4, train=True, num_workers=num_workers).epoch(1))


def test_all_bad_images_of_a_batch_are_named():
    split = damaged_split({3, 5, 12}, "stop")
    with pytest.raises(BadImages) as caught:
        list(Loader(split, 10, train=False).epoch(1))
    assert caught.value.reasons == ("3.jpg: not a readable image", "5.jpg: not a readable image")


BAD = {0, 7, 20, 21, 22, 49}
INSTEAD = {7: 8, 20: 23, 21: 23, 22: 23, 49: 1, 0: 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_training_the_next_readable_image_takes_the_place_of_a_bad_one(num_workers, caplog):
    whole, skipping = (
        Loader(split, 8, train=True, views=2, seed=3, num_workers=num_workers)
        for split in (damaged_split(()), damaged_split(BAD))
    )
    met = set()
    for plain, batch in zip(whole.epoch(2), skipping.epoch(2), strict=True):
        assert batch.index.tolist() == [INSTEAD.get(i, i) for i in plain.index.tolist()]
        assert torch.equal(batch.labels, batch.index % 5)
        assert batch.views.shape == plain.views.shape
        good = torch.tensor([i not in BAD for i in plain.index.tolist()])
        assert torch.equal(batch.views[good], plain.views[good])
        met |= BAD & set(plain.index.tolist())
    assert met <= set(skipping.bad) <= BAD
    resumed = Loader(damaged_split(BAD), 8, train=True, views=2, seed=3).epoch(2, start=3)
    rest = list(skipping.epoch(2))[3:]
    assert all(same(a, b) for a, b in zip(resumed, rest, strict=True))
    for _ in range(2):
        skipping.say_bad()
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"made up: {len(skipping.bad)} of 50 images cannot be read, and others take their place: ")


def test_ranks_skip_what_one_process_with_the_larger_batch_would_skip():
    whole = Loader(damaged_split(BAD), 10, train=True)
    ranks = [Loader(damaged_split(BAD), 5, train=True, rank=r, world_size=2) for r in range(2)]
    for batch, *parts in zip(whole.epoch(1), *(r.epoch(1) for r in ranks), strict=True):
        assert [len(part.index) for part in parts] == [5, 5]
        assert all(
            torch.equal(getattr(batch, f), torch.cat([getattr(p, f) for p in parts])) for f in ("index", "views")
        )


def test_in_evaluation_bad_images_are_not_counted():
    loader = Loader(damaged_split({3, *range(10, 20)}), 10, train=False)
    assert [batch.index.tolist() for batch in loader.epoch(1)] == [
        [0, 1, 2, 4, 5, 6, 7, 8, 9],
        *(list(range(start, start + 10)) for start in (20, 30, 40)),
    ]
    assert sorted(loader.bad) == [3, *range(10, 20)]


def test_where_no_image_can_be_read_training_stops():
    with pytest.raises(BadImages, match="50 images cannot be read"):
        next(Loader(damaged_split(range(50)), 4, train=True).epoch(1))


def test_other_errors_are_not_skipped():
    split = dataclasses.replace(make_split(), images=Broken(), on_bad_image="skip")
    with pytest.raises(UserError, match=r"^\d+\.jpg: not a readable image$"):
        next(Loader(split, 4, train=True).epoch(1))


@pytest.mark.parametrize("flip", [True, False])
def test_flips_can_be_turned_off(flip):
    left = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    left[..., :4] = 255
    split = DataSplit(left, torch.zeros(40, dtype=torch.long), ("a",), (0.0,) * 3, (1.0,) * 3, padding=0)
    (batch,) = Loader(split, 40, train=True, flip=flip).epoch(1)
    mirrored = batch.views[:, 0, 0, 0, 0] == 0
    assert mirrored.any() == flip
    assert not mirrored.all()


def test_a_resident_copy_gives_the_same_batches():
    split = make_split()
    one, other = (Loader(split, 8, train=True, views=4, resident=r).epoch(1) for r in (True, False))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"views": 5}, "views=5"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0, "world_size": 51}, "50 images cannot be shared by 51"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Loader(make_split(), **{"batch_size": 8, "train": True, **options})


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(3, 3, 8, 8), "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "2 images but 3 labels"),
    ],
)
def test_a_split_that_breaks_the_contract_is_refused(images, said):
    split = DataSplit(images, torch.zeros(3, dtype=torch.long), ("a",), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match=said):
        Loader(split, 2, train=False)


def test_an_empty_split_is_refused():
    split = DataSplit(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0), ("a",), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="no images"):
        Loader(split, 2, train=False)


def items(split):
    return torch.stack([split.images[i] for i in range(len(split))])


@pytest.fixture(params=[False, True], ids=["memory", "streamed"])
def plain(request):
    return make_split(stream=request.param, plain=True)


def test_limit_takes_a_fixed_random_part(plain):
    part = limit(plain, 20, seed=1)
    assert len(part) == len(part.images) == 20
    at = (part.difficulty * 50).round().long()
    assert at.tolist() != list(range(20))
    assert torch.equal(part.labels, plain.labels[at])
    assert torch.equal(items(part), items(plain)[at])
    assert torch.equal(limit(plain, 20, seed=1).difficulty, part.difficulty)
    assert not torch.equal(limit(plain, 20, seed=2).difficulty, part.difficulty)
    assert set(limit(plain, 10, seed=1).difficulty.tolist()) < set(part.difficulty.tolist())
    assert torch.equal(items(limit(plain, 50, seed=1)), items(plain))


def test_a_limited_part_has_every_class_where_there_is_room():
    # 42 classes of one image, and 8 of 26.
    split = make_split(size=250)
    labels = torch.cat([torch.arange(42), 42 + torch.arange(208) % 8])
    split = dataclasses.replace(split, labels=labels, classes=tuple(map(str, range(50))))
    parts = {n: limit(split, n, seed=4) for n in (1, 20, 50, 51, 100, 249)}
    for n, part in parts.items():
        assert len(part) == n
        assert len(part.labels.unique()) == min(n, 50)
        at = (part.difficulty * 250).round().long()
        assert at.tolist() == sorted(at.tolist())
    for smaller, larger in zip(list(parts.values()), list(parts.values())[1:], strict=False):
        assert set(smaller.difficulty.tolist()) < set(larger.difficulty.tolist())


def test_a_limited_part_is_as_ever_where_that_has_every_class():
    split = make_split()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert len(split.labels[order[:20]].unique()) == 5
    assert torch.equal(limit(split, 20).difficulty, split.difficulty[order[:20].sort().values])


@pytest.mark.parametrize("n", [0, -1, 51])
def test_limit_says_how_many_there_are(n):
    with pytest.raises(UserError, match=rf"{n} images of made up: it has 50"):
        limit(make_split(), n)


def test_hold_out_divides_each_class_alike(plain):
    train, validation = hold_out(plain, 0.2, seed=1)
    assert torch.bincount(validation.labels).tolist() == [2] * 5
    assert torch.bincount(train.labels).tolist() == [8] * 5
    at = [(part.difficulty * 50).round().long() for part in (train, validation)]
    assert sorted(torch.cat(at).tolist()) == list(range(50))
    assert torch.equal(items(validation), items(plain)[at[1]])
    assert torch.equal(items(train), items(plain)[at[0]])
    again = hold_out(plain, 0.2, seed=1)[1]
    other = hold_out(plain, 0.2, seed=2)[1]
    assert torch.equal(again.difficulty, validation.difficulty)
    assert not torch.equal(other.difficulty, validation.difficulty)


def test_held_out_images_are_not_augmented_in_reading():
    split = make_split(stream=True)
    train, validation = hold_out(limit(split, 40), 0.25)
    at = (validation.difficulty * 50).round().long()
    assert torch.equal(items(validation), split.images.images[at])
    assert not torch.equal(items(train), items(train))


def test_parts_keep_the_memory_layout():
    images = make_split().images.contiguous(memory_format=torch.channels_last)
    split = DataSplit(images, torch.arange(50) % 5, tuple("abcde"), (0.5,) * 3, (0.5,) * 3)
    assert limit(split, 20).images.is_contiguous(memory_format=torch.channels_last)
    assert limit(split, 20).difficulty is None


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2, 0.01, 0.99])
def test_hold_out_refuses_a_fraction_that_leaves_nothing(fraction):
    with pytest.raises(UserError, match=f"fraction {fraction}"):
        hold_out(make_split(), fraction)


def pooled(pool=4, **options):
    return Loader(make_split(), **{"batch_size": 10, "train": True, "views": 2, "pool": pool, **options})


def shown_by(loader, epochs):
    """{(image, entry): its views} over some epochs, and the pairs in the order in which they came."""
    views, order = {}, []
    for epoch in epochs:
        for batch in loader.epoch(epoch):
            assert batch.drawn.dtype == torch.int64
            pairs = list(zip(batch.index.tolist(), batch.drawn.tolist(), strict=True))
            for pair, image in zip(pairs, batch.views, strict=True):
                assert pair not in views or torch.equal(views[pair], image)
                views[pair] = image
            order += pairs
    return views, order


def test_without_a_pool_batches_are_drawn_as_ever():
    split = make_split()
    loader = Loader(split, 10, train=True, views=2, seed=3, pool=0)
    # What the loader's docstring says, drawn by hand: numbers 1 and 2 are the order and the augmentation.
    order = torch.randperm(50, generator=generator_of(3, 1, 5)).split(10)
    for number, (batch, index) in enumerate(zip(loader.epoch(5), order, strict=True)):
        draw = draw_views(10, 2, padding=2, flip=True, generator=generator_of(3, 2, 5, number))
        views = apply_views(split.images[index], views=2, mean=split.mean, std=split.std, padding=2, draw=draw)
        assert torch.equal(batch.index, index)
        assert torch.equal(batch.views, views)
        assert batch.drawn is None
        assert batch.recalled is None


def generator_of(*numbers):
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("first", [1, 3])
def test_every_entry_of_the_pool_is_shown_once_in_as_many_epochs(seed, first):
    views, order = shown_by(pooled(seed=seed), range(first, first + 4))
    assert len(order) == len(views) == 50 * 4
    assert set(views) == {(image, entry) for image in range(50) for entry in range(4)}


def test_images_take_turns_from_a_place_that_the_seed_says():
    def entries(seed, epoch):
        return torch.tensor([entry for _, entry in sorted(shown_by(pooled(seed=seed), [epoch])[1])])

    first = entries(0, 1)
    assert torch.equal(entries(0, 2), (first + 1) % 4)
    assert torch.equal(entries(0, 5), first)
    assert first.unique().tolist() == [0, 1, 2, 3]
    assert not torch.equal(entries(1, 1), first)


def test_an_entry_looks_the_same_in_every_epoch_of_every_run():
    views, _ = shown_by(pooled(), range(1, 9))
    other, _ = shown_by(pooled(seed=5, batch_size=7), range(4, 8))
    assert len(other) > 150
    assert all(torch.equal(views[pair], image) for pair, image in other.items())


def test_one_view_is_the_first_of_four():
    four, _ = shown_by(pooled(views=4), range(1, 5))
    one, _ = shown_by(pooled(views=1), range(1, 5))
    assert all(torch.equal(one[pair][0], four[pair][0]) for pair in four)


def test_without_flips_the_pool_is_the_same_but_for_them():
    split = make_split()
    flipped, plain = (shown_by(pooled(flip=flip), range(1, 5))[0] for flip in (True, False))
    unchanged = 0
    for image, entry in plain:
        draw = draw_pool(torch.tensor([image]), torch.tensor([entry]), 2, padding=2, flip=True)
        unchanged += not draw.flips[0]
        assert torch.equal(flipped[image, entry], plain[image, entry]) == (not draw.flips[0])
        by_hand = draw._replace(flips=torch.tensor([False]))
        shown = apply_views(split.images[[image]], views=2, mean=split.mean, std=split.std, padding=2, draw=by_hand)
        assert torch.equal(shown[0], plain[image, entry])
    assert 60 < unchanged < 140


@pytest.mark.parametrize("start", [1, 4])
def test_resuming_with_a_pool_continues_the_epoch(start):
    whole, rest = list(pooled().epoch(3)), list(pooled().epoch(3, start=start))
    assert len(rest) == 5 - start
    for one, other in zip(whole[start:], rest, strict=True):
        assert same(one, other)
        assert torch.equal(one.drawn, other.drawn)


def test_ranks_with_a_pool_share_what_one_process_would_see():
    whole = pooled(batch_size=12)
    ranks = [pooled(batch_size=6, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole.epoch(3), *(rank.epoch(3) for rank in ranks), strict=True):
        for field in ("views", "index", "drawn"):
            assert torch.equal(getattr(batch, field), torch.cat([getattr(part, field) for part in parts]))


def test_what_is_recalled_comes_with_the_batch():
    asked = []

    def recall(index, drawn, views):
        asked.append((index, drawn, views))
        if len(asked) % 2:
            return None
        return Output(torch.zeros(10 * views, 5), index.repeat_interleave(views)[:, None].double(), Absent("none"))

    batches = list(pooled(recall=recall).epoch(2))
    assert [batch.recalled is None for batch in batches] == [True, False, True, False, True]
    for batch, (index, drawn, views) in zip(batches, asked, strict=True):
        assert index.device.type == drawn.device.type == "cpu"
        assert torch.equal(index, batch.index)
        assert torch.equal(drawn, batch.drawn)
        assert views == 2
    assert torch.equal(batches[1].recalled.embedding[::2, 0], batches[1].index.double())
    assert isinstance(batches[1].recalled.maps, Absent)


def test_a_pool_and_what_is_recalled_follow_the_loader_to_its_device():
    def recall(index, drawn, views):
        return Output(torch.zeros(20, 5), torch.zeros(20, 4), (torch.zeros(20, 1, 2, 2),))

    loader = pooled(device="meta", resident=False, recall=recall)
    batch = next(loader.epoch(1))
    assert batch.views.device.type == batch.index.device.type == "meta"
    assert {t.device.type for t in (batch.recalled.logits, batch.recalled.embedding, *batch.recalled.maps)} == {"meta"}
    assert batch.drawn.device.type == "cpu"


def test_evaluation_has_no_pool():
    one, other = (Loader(make_split(), 10, train=False, pool=pool) for pool in (3, 0))
    for batch, expected in zip(one.epoch(1), other.epoch(1), strict=True):
        assert same(batch, expected)
        assert batch.drawn is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": -1}, "pool=-1: an image has 1 to 65535"),
        ({"pool": 65536}, "pool=65536: an image has 1 to 65535"),
        ({"pool": 2, "strong": True}, "pool=2: the strongly augmented view is drawn anew .*; leave out the pool"),
        ({"pool": 2, "split": make_split(stream=True)}, "pool=2: made up is streamed .*; leave out the pool"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(options, said):
    with pytest.raises(UserError, match=said) as caught:
        Loader(**{"split": make_split(), "batch_size": 8, "train": True, **options})
    assert "\n" not in str(caught.value)


def test_recalling_needs_a_pool():
    with pytest.raises(TypeError, match="needs a pool"):
        pooled(pool=0, recall=lambda index, drawn, views: None)

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pckd.data import Loader, hold_out, limit, prefetch
from pckd.data.views import apply_views, draw_pool, draw_views
from registry import Absent, BadImages, DataSplit, Output, UserError


class Noisy(Dataset):
    """Streamed items whose reading uses the global generators; ``evaluation()`` reads them plainly.

    Some cannot be read. ``read`` has the positions asked for.
    """

    def __init__(self, images, bad=(), plain=False, error=BadImages):
        self.images, self.bad, self.plain, self.error, self.read = images, bad, plain, error, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(i)
        if i in self.bad:
            raise self.error(f"{i}.jpg: not a readable image")
        if self.plain:
            return self.images[i]
        grain = torch.randint(0, 9, self.images[i].shape, dtype=torch.uint8)
        return self.images[i] // 2 + grain + random.randrange(9) + int(np.random.randint(9))

    def evaluation(self):
        return Noisy(self.images, plain=True)


def make_split(size=50, stream=False, plain=False, **changes):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 200, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
    split = DataSplit(
        Noisy(images, plain=plain) if stream else images,
        torch.arange(size) % 5,
        tuple("abcde"),
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        difficulty=torch.arange(size) / size,
        padding=0 if stream else 2,
        name="made up",
    )
    return replace(split, **changes)


def damaged_split(bad, on_bad_image="skip", error=BadImages):
    images = Noisy(make_split().images, bad, error=error)
    return make_split(stream=True, images=images, on_bad_image=on_bad_image)


def same(one, other, fields=("views", "labels", "index")):
    """Whether batches, of which there are as many, are alike."""
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in fields)


def joined(batches, field="index"):
    return torch.cat([getattr(batch, field) for batch in batches])


@pytest.fixture(params=[False, True], ids=["memory", "streamed"])
def split(request):
    return make_split(stream=request.param)


def train(split, batch_size=8, **options):
    return Loader(split, batch_size, train=True, **options)


def test_a_batch_has_views_labels_and_positions(split):
    for batch in train(split, views=4).epoch(1):
        assert batch.views.shape == (8, 4, 3, 8, 8)
        assert batch.views.dtype == torch.float32
        assert batch.views.view(-1, 3, 8, 8).is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.labels, split.labels[batch.index])


def test_evaluation_shows_every_image_once_in_order(split):
    loader = Loader(split, 8, train=False)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == 7
    assert joined(batches).tolist() == list(range(50))
    assert batches[0].views.shape[1] == 1
    if isinstance(split.images, torch.Tensor):
        torch.testing.assert_close(joined(batches, "views")[:, 0], (split.images.float() / 255 - 0.5) / 0.25)
    assert same(batches, loader.epoch(9))


@pytest.mark.parametrize(("size", "count", "images"), [(8, 6, 48), (64, 1, 50)])
def test_training_drops_the_last_incomplete_batch_unless_it_is_the_only_one(split, size, count, images):
    loader = train(split, size)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == count
    assert len(joined(batches)) == len(joined(batches).unique()) == images


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(split):
    def shown(seed, epoch):
        batches = list(train(split, 10, seed=seed).epoch(epoch))
        return joined(batches), joined(batches, "views")[joined(batches).argsort()]

    index, views = shown(0, 1)
    for seed, epoch in ((0, 2), (1, 1), (1, 0), (-1, 1)):
        other_index, other_views = shown(seed, epoch)
        assert not torch.equal(index, other_index)
        assert not torch.equal(views, other_views)


def test_batches_are_a_function_of_seed_and_epoch_alone(split):
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = state()
    whole = list(train(split, views=4, seed=3).epoch(2))
    assert state() == before
    torch.manual_seed(99)
    fresh = train(split, views=4, seed=3)
    list(fresh.epoch(1))
    torch.rand(5)
    assert same(whole, fresh.epoch(2))


@pytest.mark.parametrize("training", [True, False])
def test_a_streamed_image_is_read_anew_in_each_training_epoch_only(training):
    def shown(epoch):
        (batch,) = Loader(make_split(stream=True), 50, train=training, flip=False).epoch(epoch)
        return batch.views[batch.index.argsort()]

    assert torch.equal(shown(1), shown(2)) != training


@pytest.mark.parametrize("start", [1, 6])
def test_resuming_continues_where_the_uninterrupted_epoch_goes_on(split, start):
    whole = list(train(split, views=2).epoch(4))
    assert same(whole[start:], train(split, views=2).epoch(4, start=start))


def test_skipped_batches_are_not_read():
    split = make_split(stream=True)
    list(Loader(split, 10, train=False).epoch(1, start=4))
    assert split.images.read == list(range(40, 50))


BAD = {0, 7, 20, 21, 22, 49}
INSTEAD = {7: 8, 20: 23, 21: 23, 22: 23, 49: 1, 0: 1}


@pytest.mark.parametrize("batch_size", [6, 40])
@pytest.mark.parametrize("options", [{}, {"pool": 4}, {"split": damaged_split(BAD)}], ids=["drawn", "pool", "skipping"])
def test_ranks_share_what_one_process_with_the_larger_batch_would_see(batch_size, options):
    options = {"split": make_split(), "views": 2, **options}
    whole = train(batch_size=batch_size * 2, **options)
    ranks = [train(batch_size=batch_size, rank=r, world_size=2, **options) for r in range(2)]
    assert len(whole) == len(ranks[0]) == len(ranks[1])
    for batch, *parts in zip(whole.epoch(3), *(r.epoch(3) for r in ranks), strict=True):
        assert len(parts[0].index) == len(parts[1].index)
        for field in ("views", "labels", "index", *(["drawn"] if whole.pool else [])):
            assert torch.equal(getattr(batch, field), joined(parts, field))


def test_ranks_partition_the_evaluation():
    loaders = [Loader(make_split(size=11), 2, train=False, rank=r, world_size=3) for r in range(3)]
    assert [joined(loader.epoch(1)).tolist() for loader in loaders] == [list(range(r, 11, 3)) for r in range(3)]
    assert [len(loader) for loader in loaders] == [2, 2, 2]


def test_streamed_data_is_the_same_with_and_without_worker_processes():
    split = make_split(stream=True)
    here, workers = train(split), train(split, num_workers=2)
    for epoch in (1, 2):
        assert same(here.epoch(epoch), workers.epoch(epoch))
    next(workers.epoch(3))  # An epoch that is given up does not show in the next.
    assert same(here.epoch(4), workers.epoch(4))


# Images that cannot be read


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_an_error_in_reading_stays_one_line_and_is_not_skipped(num_workers, on_bad_image):
    split = damaged_split(range(50), on_bad_image, UserError)
    with pytest.raises(UserError, match=r"^\d+\.jpg: not a readable image$"):
        next(train(split, num_workers=num_workers).epoch(1))


def test_all_bad_images_of_a_batch_are_named():
    with pytest.raises(BadImages) as caught:
        list(Loader(damaged_split({3, 5, 12}, "stop"), 10, train=False).epoch(1))
    assert caught.value.reasons == ("3.jpg: not a readable image", "5.jpg: not a readable image")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_training_the_next_readable_image_takes_the_place_of_a_bad_one(num_workers, caplog):
    options = {"views": 2, "seed": 3, "num_workers": num_workers}
    whole, skipping = train(damaged_split(()), **options), train(damaged_split(BAD), **options)
    met = set()
    for plain, batch in zip(whole.epoch(2), skipping.epoch(2), strict=True):
        assert batch.index.tolist() == [INSTEAD.get(i, i) for i in plain.index.tolist()]
        assert torch.equal(batch.labels, batch.index % 5)
        assert batch.views.shape == plain.views.shape
        good = torch.tensor([i not in BAD for i in plain.index.tolist()])
        assert torch.equal(batch.views[good], plain.views[good])
        met |= BAD & set(plain.index.tolist())
    assert met <= set(skipping.bad) <= BAD
    resumed = train(damaged_split(BAD), views=2, seed=3).epoch(2, start=3)
    assert same(resumed, list(skipping.epoch(2))[3:])
    for _ in range(2):
        skipping.say_bad()
    (said,) = caplog.messages
    assert said.startswith(f"made up: {len(skipping.bad)} of 50 images cannot be read, and others take their place: ")


def test_in_evaluation_bad_images_are_not_counted():
    loader = Loader(damaged_split({3, *range(10, 20)}), 10, train=False)
    shown = [batch.index.tolist() for batch in loader.epoch(1)]
    assert shown == [[0, 1, 2, 4, 5, 6, 7, 8, 9], *([*range(start, start + 10)] for start in (20, 30, 40))]
    assert sorted(loader.bad) == [3, *range(10, 20)]


def test_where_no_image_can_be_read_training_stops():
    with pytest.raises(BadImages, match="50 images cannot be read"):
        next(train(damaged_split(range(50))).epoch(1))


def test_a_resident_copy_gives_the_same_batches():
    assert same(*(train(make_split(), views=4, resident=resident).epoch(1) for resident in (True, False)))


def of_images(*shape, dtype=torch.uint8):
    return make_split(images=torch.zeros(*shape, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"views": 5}, "views=5"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"rank": 0, "world_size": 51}, "50 images cannot be shared by 51"),
        ({"split": of_images(50, 3, 8, 8, dtype=torch.int32)}, "uint8"),
        ({"split": of_images(50, 8, 8)}, "uint8"),
        ({"split": of_images(49, 3, 8, 8)}, "49 images but 50 labels"),
        ({"split": make_split(images=torch.zeros(0, 3, 8, 8), labels=torch.zeros(0))}, "no images"),
        ({"pool": -1}, "pool=-1: an image has 1 to 65535"),
        ({"pool": 65536}, "pool=65536: an image has 1 to 65535"),
        ({"pool": 2, "strong": True}, "pool=2: the strongly augmented view is drawn anew .*; leave out the pool"),
        (
            {"pool": 2, "split": make_split(stream=True)},
            "made up is streamed, and its images draw .*; leave out view_pool",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, said):
    with pytest.raises(UserError, match=said) as caught:
        train(**{"split": make_split(), **options})
    assert "\n" not in str(caught.value)


# Parts of a split


def items(split):
    return torch.stack([split.images[i] for i in range(len(split))])


def positions(part, whole=50):
    return (part.difficulty * whole).round().long()


@pytest.fixture(params=[False, True], ids=["memory", "streamed"])
def plain(request):
    return make_split(stream=request.param, plain=True)


def test_limit_takes_a_fixed_random_part(plain):
    part = limit(plain, 20, seed=1)
    at = positions(part)
    assert len(part) == len(part.images) == 20
    assert at.tolist() != list(range(20))
    assert torch.equal(part.labels, plain.labels[at])
    assert torch.equal(items(part), items(plain)[at])
    assert torch.equal(positions(limit(plain, 20, seed=1)), at)
    assert not torch.equal(positions(limit(plain, 20, seed=2)), at)
    assert torch.equal(items(limit(plain, 50, seed=1)), items(plain))


def test_a_limited_part_has_every_class_where_there_is_room():
    # 42 classes of one image, and 8 of 26.
    labels = torch.cat([torch.arange(42), 42 + torch.arange(208) % 8])
    split = make_split(size=250, labels=labels, classes=tuple(map(str, range(50))))
    before = set()
    for n in (1, 20, 50, 51, 100, 249):
        part = limit(split, n, seed=4)
        at = positions(part, 250).tolist()
        assert len(part) == n
        assert len(part.labels.unique()) == min(n, 50)
        assert at == sorted(at)
        assert before < set(at)
        before = set(at)


def test_a_limited_part_is_as_ever_where_that_has_every_class():
    split = make_split()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert len(split.labels[order[:20]].unique()) == 5
    assert torch.equal(limit(split, 20).difficulty, split.difficulty[order[:20].sort().values])


def test_hold_out_divides_each_class_alike(plain):
    parts = hold_out(plain, 0.2, seed=1)
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[8] * 5, [2] * 5]
    assert torch.cat([positions(part) for part in parts]).sort().values.tolist() == list(range(50))
    for part in parts:
        assert torch.equal(items(part), items(plain)[positions(part)])
    assert torch.equal(positions(hold_out(plain, 0.2, seed=1)[1]), positions(parts[1]))
    assert not torch.equal(positions(hold_out(plain, 0.2, seed=2)[1]), positions(parts[1]))


def test_held_out_images_are_not_augmented_in_reading():
    split = make_split(stream=True)
    training, validation = hold_out(limit(split, 40), 0.25)
    assert torch.equal(items(validation), split.images.images[positions(validation)])
    assert not torch.equal(items(training), items(training))


def test_parts_keep_the_memory_layout_and_need_no_difficulty():
    images = make_split().images.contiguous(memory_format=torch.channels_last)
    part = limit(make_split(images=images, difficulty=None), 20)
    assert part.images.is_contiguous(memory_format=torch.channels_last)
    assert part.difficulty is None


@pytest.mark.parametrize(
    ("function", "number", "said"),
    [
        *((limit, n, f"{n} images of made up: it has 50") for n in (0, -1, 51)),
        *((hold_out, share, f"fraction {share}") for share in (0.0, 1.0, -0.1, 2, 0.01, 0.99)),
    ],
)
def test_a_part_that_cannot_be_is_refused(function, number, said):
    with pytest.raises(UserError, match=said):
        function(make_split(), number)


# A pool of augmentations


def pooled(pool=4, **options):
    return Loader(make_split(), **{"batch_size": 10, "train": True, "views": 2, "pool": pool, **options})


def generator_of(*numbers):
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@pytest.mark.parametrize("flip", [True, False])
def test_without_a_pool_batches_are_drawn_as_ever(flip):
    split = make_split()
    loader = train(split, 10, views=2, seed=3, flip=flip, pool=0)
    # What the loader's docstring says, drawn by hand: numbers 1 and 2 are the order and the augmentation.
    order = torch.randperm(50, generator=generator_of(3, 1, 5)).split(10)
    for number, (batch, index) in enumerate(zip(loader.epoch(5), order, strict=True)):
        draw = draw_views(10, 2, padding=2, flip=flip, generator=generator_of(3, 2, 5, number))
        views = apply_views(split.images[index], views=2, mean=split.mean, std=split.std, padding=2, draw=draw)
        assert torch.equal(batch.index, index)
        assert torch.equal(batch.views, views)
        assert batch.drawn is batch.recalled is None


def test_images_show_their_entries_in_turn_from_a_place_that_the_seed_says():
    def entries(seed, epoch):
        batches = list(pooled(seed=seed).epoch(epoch))
        assert joined(batches, "drawn").dtype == torch.int64
        return joined(batches, "drawn")[joined(batches).argsort()]

    first = entries(0, 1)
    assert first.unique().tolist() == [0, 1, 2, 3]
    assert all(torch.equal(entries(0, epoch), (first + epoch - 1) % 4) for epoch in range(2, 6))
    assert not torch.equal(entries(1, 1), first)


@pytest.mark.parametrize("options", [{}, {"flip": False}, {"seed": 5, "batch_size": 7}, {"views": 4}])
def test_an_entry_looks_the_same_in_every_epoch_of_every_run(options):
    split, loader = make_split(), pooled(**options)
    for batch in [*loader.epoch(1), *loader.epoch(7)]:
        draw = draw_pool(batch.index, batch.drawn, loader.views, padding=2, flip=loader.augment.flip)
        how = {"views": loader.views, "mean": split.mean, "std": split.std, "padding": 2, "draw": draw}
        assert torch.equal(batch.views, apply_views(split.images[batch.index], **how))


@pytest.mark.parametrize("augment", ["crop+flip", "crop+flip+rotate+mixup"])
def test_a_pool_of_streamed_images_is_that_of_images_in_memory(augment):
    images = make_split().images

    class Read(Noisy):
        draws = 0

        def drawn(self, i, numbers):
            return self[i]

    splits = make_split(), make_split(images=Read(images, plain=True))
    one, other = (Loader(split, 10, train=True, views=2, pool=3, augment=augment).epoch(2) for split in splits)
    assert same(one, other, ("views", "labels", "index", "drawn"))


def test_resuming_with_a_pool_continues_the_epoch():
    whole = list(pooled().epoch(3))
    assert same(whole[4:], pooled().epoch(3, start=4), ("views", "labels", "index", "drawn"))


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
    with pytest.raises(TypeError, match="needs a pool"):
        pooled(pool=0, recall=recall)


def test_a_pool_and_what_is_recalled_follow_the_loader_to_its_device():
    def recall(index, drawn, views):
        return Output(torch.zeros(20, 5), torch.zeros(20, 4), (torch.zeros(20, 1, 2, 2),))

    batch = next(pooled(device="meta", resident=False, recall=recall).epoch(1))
    found = [batch.views, batch.index, batch.recalled.logits, batch.recalled.embedding, *batch.recalled.maps]
    assert {tensor.device.type for tensor in found} == {"meta"}
    assert batch.drawn.device.type == "cpu"


def test_evaluation_has_no_pool():
    batches = list(Loader(make_split(), 10, train=False, pool=3).epoch(1))
    assert same(batches, Loader(make_split(), 10, train=False).epoch(1))
    assert batches[0].drawn is None


@pytest.mark.parametrize("prefetched", [True, False])
def test_prefetched_batches_are_those_of_the_epoch_and_an_error_comes_in_its_place(prefetched):
    class Counting:
        def epoch(self, epoch, start):
            yield from range(start, epoch)
            raise UserError("broken")

    loader, shown = Counting(), []
    loader.prefetched = prefetched
    with pytest.raises(UserError, match="broken"):
        shown.extend(prefetch(loader, 7, 2))
    assert shown == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
@pytest.mark.parametrize("kind", [torch.uint16, torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "views"), [((4, 8, 8), 4), ((1, 6, 10), 1)])
def test_other_pixels_are_shown_as_bytes_are(stream, kind, shape, views):
    values = torch.randint(0, 256, (20, *shape), generator=torch.Generator().manual_seed(0))
    # 65535 is 257 times 255.
    others = (values * 257).to(kind) if kind == torch.uint16 else (values / 255).to(kind)
    channels = shape[0]
    split = make_split(20, mean=(0.3,) * channels, std=(0.2,) * channels, padding=2)

    def shown(images):
        loader = train(replace(split, images=Noisy(images, plain=True) if stream else images), views=views)
        return joined(loader.epoch(1), "views")

    bound = 5e-3 if kind == torch.float16 else 1e-5
    torch.testing.assert_close(shown(others), shown(values.byte()), atol=bound, rtol=0)


def test_weights_of_classes_by_hand(split):
    split = replace(split, labels=torch.tensor([0] * 30 + [3] * 20))
    for batch in train(split, balance="weights").epoch(1):
        # 50 images in two classes: 50 / (2 * 30) and 50 / (2 * 20), whose mean over the images is 1.
        expected = torch.where(batch.labels == 0, 5 / 6, 5 / 4)
        torch.testing.assert_close(batch.sample_weights, expected)
    assert next(iter(train(split).epoch(1))).sample_weights is None
    assert next(iter(Loader(split, 8, train=False, balance="weights").epoch(1))).sample_weights is None


@pytest.mark.parametrize(
    ("counts", "drawn", "each"),
    [
        # Of 50 draws each class has a half: the 5 images of one class five times each, 25 of the 45 others once.
        ((45, 0, 5), [25, 25], [(0, 1), (5, 5)]),
        # 50 in three classes: 16 or 17; 8 images two or three times.
        ((20, 22, 8), [16, 17, 17], [(0, 1), (0, 1), (2, 3)]),
    ],
)
def test_the_sampler_draws_classes_equally_often(split, counts, drawn, each):
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    split = replace(split, labels=labels)
    found = set()
    for epoch in (1, 2, 3):
        index = joined(train(split, 50, balance="sampler").epoch(epoch))
        found.add(tuple(index.tolist()))
        times = index.bincount(minlength=50)
        classes = [k for k in range(3) if counts[k]]
        assert sorted(int(times[labels == k].sum()) for k in classes) == drawn
        for k, (least, most) in zip(classes, each, strict=True):
            assert least <= times[labels == k].min() <= times[labels == k].max() <= most
    assert len(found) == 3


def test_the_sampler_resumes_and_is_shared_by_processes(split):
    split = replace(split, labels=torch.tensor([0] * 40 + [1] * 10))
    whole = list(train(split, 8, seed=3, balance="sampler").epoch(2))
    assert same(whole[2:], train(split, 8, seed=3, balance="sampler").epoch(2, start=2))
    ranks = [train(split, 4, seed=3, balance="sampler", rank=rank, world_size=2).epoch(2) for rank in (0, 1)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert joined(shares).equal(batch.index)

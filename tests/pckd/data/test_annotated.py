"""Images with boxes and masks: augmentation by hand and by drawing, the loader's order, parts, and refusals."""

import logging
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Subset

from pckd.data.annotated import FROM_FILES, AnnotatedLoader, AnnotatedSplit, Annotation, Augment, prepare
from pckd.data.load import Data, load_data
from pckd.engine.fingerprint import split_fingerprint
from pckd.testing import ContractError, check_dataset
from registry import BadImages, UserError

COUNTS = (2, 0, 3, 1, 1, 2, 0, 1, 4, 1, 2)
CROWD = (2, 1)
"""Object 1 of image 2 is a crowd."""


class Files:
    """Images of different sizes; those in ``bad`` cannot be read."""

    def __init__(self, images, bad=()):
        self.images, self.bad = images, bad

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImages(f"{i}.jpg: not a readable image")
        return self.images[i]


def make_split(streamed=False, bad=(), **options):
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 32 + 4 * (i % 3) * streamed) for i in range(len(COUNTS))]
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    masks = [torch.randint(3, size, generator=generator, dtype=torch.uint8) for size in sizes]
    annotations = []
    for i, count in enumerate(COUNTS):
        left = torch.rand(count, 2, generator=generator) * 16
        crowd = torch.tensor([(i, j) == CROWD for j in range(count)], dtype=torch.bool)
        annotations.append(Annotation(torch.cat([left, left + 12], 1), torch.arange(count) % 2 + 1, crowd))
    given = {"image_size": (32, 32), "name": "tiny", "difficulty": {"size": torch.arange(sum(COUNTS)).float()}}
    stacked = Files(images, bad) if streamed else torch.stack(images)
    classes, masks = ("a", "b"), masks if streamed else torch.stack(masks)
    return AnnotatedSplit(stacked, tuple(annotations), classes, masks, **{**given, **options})


def seen(batches):
    """All that is known of each image shown, by its position."""
    found = {}
    for batch in batches:
        for row, i in enumerate(batch.index.tolist()):
            parts = (batch.images[row], batch.boxes[row], batch.labels[row], batch.objects[row], batch.masks[row])
            found[i] = (*parts, torch.tensor(batch.seeds[row]))
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for i, parts in one.items():
        assert all(a.equal(b) for a, b in zip(parts, other[i], strict=True))


# Augmentation

OFF = Augment(flip=False)


@pytest.mark.parametrize(
    ("augment", "drawn", "boxes", "expected", "kept"),
    [
        (Augment(), {0: 0.4}, [[10, 20, 30, 40]], [[34, 20, 54, 40]], [True]),
        (Augment(), {0: 0.6}, [[10, 20, 30, 40]], [[10, 20, 30, 40]], [True]),
        # The window is the right upper quarter, shown at twice its size. Of the third box 0.6 is left, of the last 0.1.
        (
            OFF._replace(crop=0.5),
            {4: 0.99},
            [[40, 10, 60, 30], [0, 0, 20, 20], [28, 0, 38, 10], [23, 0, 33, 10]],
            [[16, 20, 56, 60], [0, 0, 12, 20]],
            [True, False, True, False],
        ),
        (OFF._replace(scale=(0.5, 0.5)), {}, [[10, 20, 30, 40]], [[5, 10, 15, 20]], [True]),
        # Less than a pixel is left of its width.
        (OFF._replace(scale=(0.5, 0.5)), {}, [[10, 10, 11.5, 30]], [], [False]),
        # At twice the size the lower left part is seen, from row int(0.5 * 65) = 32 on.
        (OFF._replace(scale=(1.0, 3.0)), {5: 0.5, 6: 0.5}, [[10, 20, 30, 40]], [[20, 8, 60, 48]], [True]),
    ],
)
def test_boxes_follow_the_image(augment, drawn, boxes, expected, kept, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor([drawn.get(k, 0.0) for k in range(n)]))
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    item, found = prepare(image, torch.tensor(boxes, dtype=torch.float32), None, (64, 64), augment)
    assert item[1].tolist() == expected
    assert found.tolist() == kept


def test_an_image_of_another_size_is_fitted_and_padded():
    image = torch.full((3, 50, 99), 200, dtype=torch.uint8)
    boxes = torch.tensor([[11.0, 10, 33, 40], [5, 5, 5, 9]])
    mask = torch.ones(50, 99, dtype=torch.uint8)
    (picture, found, plane, scale), kept = prepare(image, boxes, mask, (64, 66), None, (7, 8, 9))
    # 99 becomes 66, and 50 becomes 33 (33.3): each side has a scale of its own. The box without area is left out.
    torch.testing.assert_close(scale, torch.tensor([66 / 99, 33 / 50] * 2))
    torch.testing.assert_close(found, torch.tensor([[22 / 3, 6.6, 22, 26.4]]))
    torch.testing.assert_close(found / scale, boxes[:1])
    assert kept.tolist() == [True, False]
    assert (picture[:, :33] == 200).all()
    assert picture[:, 33:].unique(dim=1).flatten(1).tolist() == [[7] * 66, [8] * 66, [9] * 66]
    assert (plane[:33] == 1).all()
    assert (plane[33:] == 255).all()


@pytest.mark.parametrize("augment", [Augment(), FROM_FILES._replace(photometric=False), Augment(crop=0.6)])
def test_a_drawn_box_and_its_mask_stay_together(augment):
    generator = torch.Generator().manual_seed(1)
    shown = 0
    for seed in range(40):
        left, top = torch.randint(0, 30, (2,), generator=generator).tolist()
        right, bottom = left + 14, top + 22
        image, mask = torch.zeros(3, 56, 44, dtype=torch.uint8), torch.zeros(56, 44, dtype=torch.uint8)
        image[:, top:bottom, left:right], mask[top:bottom, left:right] = 255, 3
        torch.manual_seed(seed)
        boxes = torch.tensor([[left, top, right, bottom]]).float()
        (picture, found, plane, _), _ = prepare(image, boxes, mask, (48, 48), augment)
        for drawn in (picture[0] > 127, plane == 3):
            for box in found:
                down, across = drawn.nonzero().unbind(1)
                extent = torch.stack([across.min(), down.min(), across.max() + 1, down.max() + 1])
                assert (extent - box).abs().max() <= 1
                shown += 1
    assert shown > 60


def test_photometric_changes_leave_geometry_and_padding_alone():
    image = torch.randint(256, (3, 20, 40), dtype=torch.uint8)
    results = []
    for photometric in (False, True):
        torch.manual_seed(3)
        augment = FROM_FILES._replace(photometric=photometric, scale=(0.5, 0.5))
        results.append(prepare(image, torch.tensor([[4.0, 4, 20, 16]]), None, (40, 40), augment, (9, 9, 9))[0])
    assert results[0][1].equal(results[1][1])
    assert not results[0][0].equal(results[1][0])
    for picture, *_ in results:
        assert (picture[:, 10:] == 9).all()


# The loader


@pytest.mark.parametrize("streamed", [False, True])
def test_an_image_is_shown_alike_by_any_number_of_processes_and_workers_and_after_a_resume(streamed):
    split = make_split(streamed, augment=FROM_FILES)
    whole = AnnotatedLoader(split, 4, train=True, seed=5)
    batches = list(whole.epoch(3))
    first = seen(batches)
    assert len(whole) == len(batches) == 2
    assert len(first) == 8
    ranks = [AnnotatedLoader(split, 2, train=True, seed=5, rank=r, world_size=2, num_workers=r) for r in (0, 1)]
    assert_same({**seen(ranks[0].epoch(3)), **seen(ranks[1].epoch(3))}, first)
    assert_same(seen(whole.epoch(3, start=1)), seen(batches[1:]))
    for other in (seen(whole.epoch(4)), seen(AnnotatedLoader(split, 4, train=True, seed=6).epoch(3))):
        both = first.keys() & other.keys()
        assert all(first[i][-1] != other[i][-1] for i in both)
        assert any(not first[i][0].equal(other[i][0]) for i in both)
    assert len({int(parts[-1]) for parts in first.values()}) == 8


@pytest.mark.parametrize("streamed", [False, True])
def test_evaluation_shows_every_image_once_with_its_objects(streamed):
    split = make_split(streamed)
    shares = [seen(AnnotatedLoader(split, 3, train=False, rank=r, world_size=2).epoch(1)) for r in (0, 1)]
    assert [list(share) for share in shares] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]]
    assert split.first_object.tolist() == [0, 2, 2, 5, 6, 7, 9, 9, 10, 14, 15, 17]
    for i, (image, boxes, labels, objects, mask, _) in {**shares[0], **shares[1]}.items():
        kept = [j for j in range(COUNTS[i]) if (i, j) != CROWD]
        assert objects.tolist() == [split.first_object[i] + j for j in kept]
        assert labels.equal(split.annotations[i].labels[kept])
        width = split.images[i].shape[2]
        tall = round(1024 / width)
        scale = torch.tensor([32 / width, tall / 32] * 2)
        torch.testing.assert_close(boxes, split.annotations[i].boxes[kept] * scale)
        if width == 32:
            assert image.equal(split.images[i].float() / 255)
            assert mask.equal(split.masks[i].long())
        else:
            assert (mask[tall:] == -1).all()


def test_images_that_cannot_be_read_stop_or_are_replaced(caplog):
    stopping = AnnotatedLoader(make_split(True, bad=(1, 4)), 4, train=False)
    with pytest.raises(BadImages, match=r"1\.jpg"):
        list(stopping.epoch(1))
    split = make_split(True, bad=(1, 4), on_bad_image="skip")
    assert list(seen(AnnotatedLoader(split, 4, train=False).epoch(1))) == [0, 2, 3, 5, 6, 7, 8, 9, 10]
    loader = AnnotatedLoader(split, 11, train=True, seed=1)
    (batch,) = loader.epoch(1)
    assert sorted(batch.index.tolist()) == [0, 2, 2, 3, 5, 5, 6, 7, 8, 9, 10]
    for row, i in enumerate(batch.index.tolist()):
        low, high = split.first_object[i], split.first_object[i + 1]
        assert ((batch.objects[row] >= low) & (batch.objects[row] < high)).all()
    with caplog.at_level(logging.WARNING):
        loader.say_bad()
    assert "2 of 11 images cannot be read, and others take their place: 1.jpg" in caplog.text


# Parts and refusals


def test_a_part_keeps_the_objects_of_its_images():
    split = make_split(True)
    part = split.part(torch.tensor([8, 1, 3]), "some")
    assert part.first_object.tolist() == [0, 4, 4, 5]
    assert part.difficulty["size"].tolist() == [10, 11, 12, 13, 5]
    assert part.objects.boxes[4].equal(split.annotations[3].boxes[0])
    assert part.masks[2].equal(split.masks[3])
    assert part.images[0].equal(split.images[8])
    nothing = split.part(torch.tensor([1, 6]), "none")
    assert len(nothing.objects) == 0
    (batch,) = AnnotatedLoader(nothing, 2, train=True).epoch(1)
    assert [len(boxes) for boxes in batch.boxes] == [0, 0]


def test_limits_and_a_validation_part_are_of_one_data_set():
    data = Data(make_split(), make_split(), "tiny", task="detection")
    assert data.image_shape == (3, 32, 32)
    assert (data.preprocessing.image_size, data.preprocessing.classes) == ((32, 32), ("a", "b"))
    found = load_data(data, limit_train=8, val_fraction=0.25, limit_test=1, on_bad_image="skip")
    assert (len(found.train), len(found.test), found.measured_on, found.task) == (6, 1, "val", "detection")
    assert found.train.on_bad_image == "skip"


BOXES = make_split().annotations


def other(i, **changes):
    return (*BOXES[:i], replace(BOXES[i], **changes), *BOXES[i + 1 :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "annotations": ()}, "the training split is empty"),
        ({"images": torch.zeros(11, 1, 8, 8, dtype=torch.uint8)}, r"must be uint8 \[M, 3, H, W\], not uint8 \[11, 1"),
        ({"annotations": (), "masks": None, "difficulty": None}, "neither boxes nor masks"),
        ({"annotations": BOXES[:5]}, "5 annotations for 11 images"),
        ({"masks": torch.zeros(3, 32, 32, dtype=torch.uint8)}, "3 masks for 11 images"),
        ({"annotations": other(0, labels=torch.tensor([1, 3]))}, "labels run from 1 to 3: each must be 1 to 2"),
        ({"annotations": other(0, labels=torch.tensor([0, 1]))}, "labels run from 0 to 2"),
        ({"annotations": other(3, boxes=torch.tensor([[9.0, 0, 3, 8]]))}, "left <= right"),
        ({"annotations": other(3, boxes=torch.tensor([[torch.nan, 0, 3, 8]]))}, "must be finite"),
        ({"annotations": other(3, boxes=torch.zeros(0, 4))}, r"\[16, 4\] for 17 labels"),
        ({"difficulty": {"size": torch.zeros(3)}}, "3 values of the difficulty size for 17 objects"),
        ({"image_size": (0, 8)}, "image_size="),
        ({"std": (0.1, 0.1)}, "3 numbers each"),
        ({"std": (0.1, 0.1, 0.0)}, "above 0"),
        ({"on_bad_image": "ignore"}, "stop or skip"),
        ({"augment": Augment(crop=0.0)}, "crop must be above 0"),
    ],
)
def test_a_split_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Data(replace(make_split(), **changes), make_split(), "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "c")}, r"different classes \(b and c\)"),
        ({"annotations": (), "difficulty": None}, r"differ in boxes \(True and False\)"),
        ({"masks": None}, "differ in masks"),
        ({"image_size": (32, 40)}, "differ in image_size"),
    ],
)
def test_splits_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Data(make_split(), replace(make_split(), **changes), "tiny")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"images": Files([torch.zeros(1, 8, 8, dtype=torch.uint8)])}, r"image 0 must be uint8 \[3, h, w\]"),
        (
            {"masks": [torch.zeros(9, 8, dtype=torch.uint8)]},
            r"mask of image 0 must be uint8 \[8, 8\], not uint8 \[9, 8\]",
        ),
    ],
)
def test_an_item_that_is_no_image_is_refused(item, message):
    images = Files([torch.zeros(3, 8, 8, dtype=torch.uint8)])
    split = AnnotatedSplit(images, (Annotation.of([], []),), ("a",), image_size=(8, 8))
    with pytest.raises(UserError, match=message):
        list(AnnotatedLoader(replace(split, **item), 1, train=False).epoch(1))


def test_the_loader_refuses_numbers_out_of_range():
    with pytest.raises(UserError, match="batch_size=0"):
        AnnotatedLoader(make_split(), 0, train=True)
    with pytest.raises(UserError, match="11 images cannot be shared by 12 processes"):
        AnnotatedLoader(make_split(), 1, train=True, world_size=12)


MOVED = BOXES[0].boxes + 1
# The last object of image 2 is one of image 3.
WHOLE = [getattr(make_split().objects, name).split([2, 0, 2, 2, *COUNTS[4:]]) for name in vars(BOXES[0])]
REGROUPED = tuple(Annotation(*each) for each in zip(*WHOLE, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": other(0, boxes=MOVED)},
        {"annotations": other(0, labels=torch.tensor([2, 2]))},
        {"annotations": other(0, crowd=torch.tensor([True, False]))},
        {"annotations": REGROUPED},
        {"masks": make_split().masks.flip(0)},
        {"images": make_split().images.flip(0)},
        {"image_size": (32, 48)},
        {"classes": ("a", "c")},
        {"augment": FROM_FILES},
    ],
)
def test_the_fingerprint_covers_what_is_learned_from(changes):
    found = split_fingerprint(make_split())
    assert found == split_fingerprint(make_split(name="another", difficulty=None))
    assert found != split_fingerprint(replace(make_split(), **changes))


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"annotations": other(0, boxes=MOVED + 15)}, "'boxes'"),
        ({"annotations": other(0, boxes=torch.tensor([[1.0, 1, 1, 5], [0, 0, 2, 2]]))}, "'boxes'"),
        ({"masks": make_split().masks + 3}, "'masks'"),
        ({"classes": ("a", "a")}, "'classes'"),
        ({"annotations": BOXES[:5]}, "'consistent'"),
        ({"images": Subset([image.float() for image in make_split().images], range(len(make_split())))}, "'images'"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_named(changes, clause):
    check_dataset(lambda root=None, train=True: make_split())
    with pytest.raises(ContractError, match=clause):
        check_dataset(lambda root=None, train=True: replace(make_split(), **changes))

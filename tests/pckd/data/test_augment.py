"""Augmentations in the loader: their order, mixing with soft labels, pools, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pckd
from pckd.data import Loader
from pckd.data.augment import USUAL, augmentations
from pckd.data.views import draw_numbers
from pckd.engine.teacher import FrozenTeacher
from registry import AUGMENTATIONS, Absent, DataSplit, UserError, build


def split(size: int = 24, channels: int = 3, **changes: Any) -> DataSplit:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, channels, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(size) % 4
    usual = DataSplit(images, labels, tuple("abcd"), (0.0,) * channels, (1.0,) * channels, padding=1, name="noise")
    return replace(usual, **changes)


def batches(part: DataSplit, epoch: int = 1, **options: Any) -> list[Any]:
    return list(Loader(part, 8, train=True, **options).epoch(epoch))


def test_the_usual_names_change_nothing() -> None:
    for usual, named in zip(batches(split()), batches(split(), augment=USUAL), strict=True):
        assert torch.equal(usual.views, named.views)
        assert named.targets is None
    (plain, *_), (still, *_) = batches(split(), flip=False), batches(split(), augment="crop")
    assert torch.equal(plain.views, still.views)
    part = split(padding=0)
    (batch, *_) = batches(part, augment="flip", flip=False)
    assert torch.allclose(batch.views[:, 0], part.images[batch.index] / 255)


def test_pixels_are_changed_before_crop_and_flip() -> None:
    """All rotations of an image show the same change; what is written first is done first."""
    (batch, *_) = batches(split(padding=0), augment="random_erasing(p=1)", views=4)
    for k in range(4):
        assert torch.equal(batch.views[:, k], torch.rot90(batch.views[:, 0], k, (2, 3)))
    found = augmentations("mixup+rotate+crop+grayscale(p=1)")
    assert [function.__name__ for function, _ in found.pixels] == ["rotate", "grayscale"]
    assert (found.crop, found.flip, found.numbers) == (True, False, 1 + 1 + 3 + 1)


@pytest.mark.parametrize("augment", ["mixup(alpha=1)", "cutmix(alpha=1)", "mixup(alpha=1)+cutmix(alpha=1)"])
def test_mixed_images_have_the_labels_of_both(augment: str) -> None:
    part = split(padding=0, images=torch.stack([torch.full((3, 8, 8), k % 4) for k in range(24)]).to(torch.uint8))
    for batch in batches(part, augment=augment):
        own, other = part.labels[batch.index], part.labels[batch.index.flip(0)]
        # An image is as bright as its label, so that its mean is that of the labels.
        mean = 255 * batch.views.mean((1, 2, 3, 4))
        assert torch.allclose(mean, batch.targets @ torch.arange(4.0), atol=1e-4)
        assert torch.allclose(batch.targets.sum(1), torch.ones(8))
        share = batch.targets.gather(1, own[:, None])[:, 0]
        different = own != other
        assert torch.equal(batch.labels[different], torch.where(share >= 0.5, own, other)[different])
        assert ((share[different] > 0) & (share[different] < 1)).any()


def test_every_image_has_one_of_the_mixes() -> None:
    part = split(padding=0, images=torch.stack([torch.full((3, 8, 8), k % 4) for k in range(24)]).to(torch.uint8))
    views = torch.cat([batch.views for batch in batches(part, augment="mixup(alpha=1)+cutmix(alpha=1)")])
    # CutMix has pixels of both images, mixup one value in all of them.
    flat = (views.flatten(1).amax(1) - views.flatten(1).amin(1)) < 1e-6
    assert 0 < flat.sum() < len(flat)


def test_mixing_keeps_what_is_absent_and_mixes_what_is_there() -> None:
    several = torch.eye(4)[torch.arange(24) % 4] + torch.eye(4)[(torch.arange(24) + 1) % 4]
    part = split(labels=None, targets=several)
    for batch in batches(part, augment="mixup(alpha=1)"):
        assert isinstance(batch.labels, Absent)
        assert torch.allclose(batch.targets.sum(1), torch.full((8,), 2.0))
    unlabeled = split(labels=torch.full((24,), -1), classes=())
    assert all(batch.targets is None for batch in batches(unlabeled, augment="mixup"))


@pytest.mark.parametrize("augment", ["rand_augment+random_erasing(p=0.5)", "crop+flip+mixup", "cutmix+grayscale"])
def test_an_entry_of_a_pool_is_the_same_whatever_the_batch(augment: str) -> None:
    def shown(seed: int) -> dict[tuple[int, int], Any]:
        loader = Loader(split(), 8, train=True, pool=2, augment=augment, seed=seed)
        found = {}
        for epoch in (1, 2):
            for batch in loader.epoch(epoch):
                for row, key in enumerate(zip(batch.index.tolist(), batch.drawn.tolist(), strict=True)):
                    found[key] = batch.views[row], None if batch.targets is None else batch.targets[row]
        return found

    one, other = shown(0), shown(1)
    assert len(one) == len(other) == 48
    for key, (views, targets) in one.items():
        assert torch.equal(views, other[key][0])
        assert targets is None or torch.equal(targets, other[key][1])
    assert not torch.equal(one[0, 0][0], one[0, 1][0])


def test_numbers_of_a_pool_are_even_and_independent() -> None:
    index, entry = torch.arange(5000), torch.zeros(5000, dtype=torch.int64)
    numbers = draw_numbers(index, entry, 3)
    assert numbers.mean(0) == pytest.approx([0.5] * 3, abs=0.02)
    assert numbers.var(0) == pytest.approx([1 / 12] * 3, abs=0.004)
    assert torch.corrcoef(torch.cat([numbers.T, draw_numbers(index, entry + 1, 1).T])).triu(1).abs().max() < 0.05
    assert torch.equal(draw_numbers(index[7:9], entry[7:9], 2), numbers[7:9, :2])


@pytest.mark.parametrize("augment", ["rand_augment", "rotate+flip"])
def test_processes_share_what_one_draws(augment: str) -> None:
    whole = batches(split(), augment=augment)
    loaders = (Loader(split(), 4, train=True, rank=rank, world_size=2, augment=augment) for rank in (0, 1))
    for batch, *parts in zip(whole, *(loader.epoch(1) for loader in loaders), strict=True):
        assert torch.equal(batch.views, torch.cat([part.views for part in parts]))


def test_epochs_differ_and_repeat() -> None:
    first, again, next_epoch = (batches(split(), epoch, augment="rotate+mixup")[0].views for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)


@pytest.mark.parametrize(
    ("augment", "part", "message"),
    [
        ("crop+", split(), "augment 'crop\\+': a name is missing"),
        ("flip+flip", split(), "a name is there twice"),
        ("crop(padding=3)", split(), "crop has no options"),
        ("rotat", split(), "AUGMENTATIONS: unknown name 'rotat'.*did you mean 'rotate'"),
        ("rotate(angle=3)", split(), "no option 'angle'"),
        ("rotate", split(images=torch.rand(24, 3, 8, 8)), "are for uint8 images, and these are float32"),
        ("rand_augment", split(channels=4), "the images have 4 channels"),
    ],
)
def test_bad_names_are_refused(augment: str, part: DataSplit, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batches(part, augment=augment)


def test_a_teacher_cache_serves_mixed_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pckd.Data(split(32), split(16), name="noise")
    usual: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "display": None, "data": data}
    teacher = pckd.train(student="resnet8", epochs=1, **usual).student
    asked: list[int] = []
    answer = FrozenTeacher.forward
    monkeypatch.setattr(FrozenTeacher, "forward", lambda self, x: asked.append(len(x)) or answer(self, x))

    def run() -> tuple[Any, int]:
        asked.clear()
        options = {"augment": "crop+flip+trivial_augment+mixup+cutmix", "teacher_cache": tmp_path, "view_pool": 2}
        result = pckd.distill(student="resnet8", teacher=teacher, method="kd", epochs=2, **options, **usual)
        return result.history, sum(asked)

    (first, filling), (again, full) = run(), run()
    assert first == again
    # What is left is measuring the teacher, and preparing it.
    assert full <= filling - 64


def test_registered_augmentations_are_used_by_name() -> None:
    """A user's own is enough: no other code knows its name."""
    AUGMENTATIONS.register("darker", draws=1)(lambda images, drawn: (images // 2).contiguous())
    try:
        (batch, *_) = batches(split(padding=0), augment="darker")
        assert batch.views.max() < 127.5 / 255
        assert build(AUGMENTATIONS, "darker")(torch.full((1, 3, 2, 2), 9, dtype=torch.uint8), None).max() == 4
    finally:
        del AUGMENTATIONS._obj_map["darker"]

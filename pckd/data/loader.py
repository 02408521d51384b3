"""Batches of views from a data set's split, in an order that is a pure function of the seed and the epoch."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset, default_collate

from pckd.arguments import LARGEST_POOL, MOST_WORKERS
from pckd.data.augment import Augmentations, augmentations
from pckd.data.check import check_alike, check_split, first_item, log, name_of
from pckd.data.frames import Cut
from pckd.data.strong import strong_augment
from pckd.data.views import apply_views, as_bits, draw_numbers, draw_pool, draw_sample, draw_views, mixed, seeded
from registry import Absent, BadImages, Batch, DataSplit, Output, UserError, ask

__all__ = ["Balance", "Loader", "balanced_order", "balanced_weights", "check_loading"]

# What a random number is for: streams of one seed that never meet.
_ORDER, _VIEWS, _SAMPLE, _STRONG, _POOL, _AUGMENT = 1, 2, 3, 4, 5, 7

# Above this a split is not moved to the accelerator whole.
_RESIDENT_BYTES = 4 * 2**30

_AHEAD = 2
"""Batches that each process has read, or is reading."""
_SLOT_BYTES = 2**30
"""Of shared memory that is kept; where more would be needed, and where there is less, it is taken anew each time."""
_SLACK = 2
"""How much larger than resized parts of images there is room for."""


Balance = Literal["none", "weights", "sampler"]
"""What is done about classes that have more images than others."""


def balanced_weights(labels: Tensor) -> Tensor:
    """[M], float: what each image counts, inverse to the size of its class, with mean 1 over the images.

    Args:
        labels: [M].
    """
    _, position, counts = labels.unique(return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts.double())).float()[position]


def balanced_order(labels: Tensor, order: Tensor, generator: torch.Generator) -> Tensor:
    """[M] positions in which each class that has images comes equally often, up to one.

    Which classes come once more is drawn. An image comes at most once more than another one of its class.

    Args:
        labels: [M]. order: [M], the positions in a random order. generator: of the CPU.
    """
    sizes = labels.unique(return_counts=True)[1]
    by_class = order[labels[order].argsort(stable=True)].split(sizes.tolist())
    each, more = divmod(len(labels), len(by_class))
    counts = torch.full_like(sizes, each)
    counts[torch.randperm(len(by_class), generator=generator)[:more]] += 1
    drawn = torch.cat([of.repeat(-(-n // len(of)))[:n] for of, n in zip(by_class, counts.tolist(), strict=True)])
    return drawn[torch.randperm(len(drawn), generator=generator)]


class Loader:
    """Iterates :class:`registry.Batch` of a split.

    The order of an epoch is a pure function of (seed, epoch), and the augmentation of a batch of (seed, epoch, number
    of the batch): no global random state is read or changed, so a run resumed at any step sees exactly what the
    uninterrupted one would have seen. Random numbers are drawn on the CPU and do not depend on the device.

    Training: a new order each epoch; the last incomplete batch is dropped unless it is the only one. With
    ``world_size`` processes each step takes ``world_size * batch_size`` images of the one order and each rank gets its
    share of these, augmented as a single process with that larger batch would have done.

    Evaluation: every image once, in order, not augmented; ranks take every ``world_size``-th image, so their counts
    may differ by one: add up sums, not means.

    A streamed image that raises ``registry.BadImages`` ends the epoch. Where the split says ``on_bad_image="skip"``,
    training shows the next readable image of the split in its place, with that one's label and position: batches keep
    their size, and are the same in a resumed run and with any number of workers. Evaluation leaves it out. ``bad`` has
    all that were met, position to reason.

    With a pool of P, an image is augmented in P fixed ways only, the same in every run (``draw_pool``). It shows them
    in turn, beginning where the seed says, so that each P epochs show every one of them once: what a frozen network
    answers to them can be remembered.

    Args:
        split: what to iterate; in memory or streamed.
        batch_size: B, images a batch and rank.
        train: shuffle and augment.
        views: V, 1 to 4 rotations of each image.
        strong: append a strongly augmented view (:mod:`pckd.data.strong`) to the V rotations, in training.
        seed: any integer.
        device: where the batches are put and, for data in memory, augmented.
        flip: random horizontal flips in training.
        num_workers: processes that read streamed data; 0 reads it in this one. Data in memory needs none.
        rank: which share of the data is this process's.
        world_size: how many processes share the data.
        resident: keep a copy of in-memory images on ``device``; by default where it is an accelerator and they take
            less than 4 GiB.
        augment: names of ``AUGMENTATIONS``, joined by ``+`` (:func:`pckd.data.augment.augmentations`), all views alike;
            by default the random crop and the flip. Where images are mixed, ``targets`` has their soft labels.
        pool: P, in how many ways an image is augmented in training, up to 65535; 0 draws each time anew.
        balance: ``"weights"``: training batches have ``sample_weights``, which are the larger the rarer the image's
            class is, with mean 1 over the split. ``"sampler"``: an epoch of as many images draws each class that has
            some equally often, up to one; within a class, no image twice more than another.
        recall: called as ``recall(index, drawn, views)`` with two tensors [B] on the CPU when a training batch with a
            pool is made; what it returns is the batch's ``recalled``, moved to ``device``.

    Raises:
        UserError: an empty or inconsistent split, a batch size below 1, fewer training images than processes, a pool
            out of range, or one for data that is strongly augmented or draws by itself (:func:`check_pool`).
    """

    def __init__(
        self,
        split: DataSplit,
        batch_size: int,
        *,
        train: bool,
        views: int = 1,
        seed: int = 0,
        device: str | torch.device = "cpu",
        strong: bool = False,
        flip: bool = True,
        augment: str | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        resident: bool | None = None,
        pool: int = 0,
        balance: Balance = "none",
        recall: Callable[[Tensor, Tensor, int], Output | None] | None = None,
    ) -> None:
        check_split(split)
        check_loading(split, batch_size, train, num_workers, rank, world_size)
        if not 1 <= views <= 4:
            raise UserError(f"views={views}: an image has 1 to 4 views (rotations by 0, 90, 180, 270 degrees)")
        if not 0 <= pool <= LARGEST_POOL:
            raise UserError(f"pool={pool}: an image has 1 to {LARGEST_POOL} augmentations, or 0 for ever new ones")
        streamed = not isinstance(split.images, Tensor)
        if pool and train and strong:
            advice = "leave out the pool, or the terms that look at that view"
            raise UserError(f"pool={pool}: the strongly augmented view is drawn anew each time; {advice}")
        if pool and train:
            check_pool(split)
        if recall is not None and not pool:
            raise TypeError("Loader(recall=...) needs a pool")
        if balance != "none" and isinstance(split.labels, Absent):
            raise UserError(f"balance={balance}: {split.labels.reason}")
        self.split, self.batch_size, self.train, self.views = split, batch_size, train, views
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.augment = augmentations(augment, flip=flip)
        self._check_augment(strong and train)
        self.device, self.num_workers = torch.device(device), num_workers
        self.strong = strong and train
        self.pool, self.recall = pool if train else 0, recall
        self.balance = balance if train else "none"
        if self.pool:
            # The entry of its pool that each image shows in the first epoch.
            self._first = torch.randint(self.pool, (len(split),), generator=seeded(seed, _POOL))
        self.prefetched = num_workers > 0 and streamed
        self.bad: dict[int, str] = {}
        self._said = 0
        self._pixels: Tensor | None = None
        # What a batch has of each image beside its pixels; what is absent is so in every batch.
        self._facts: dict[str, Any] = {"labels": split.labels}
        if not isinstance(split.labels, Absent):
            self._facts["labels"] = split.labels.to(torch.int64)
        if split.targets is not None:
            self._facts["targets"] = split.targets.float()
        if self.balance == "weights":
            self._facts["sample_weights"] = balanced_weights(split.labels)
        if not streamed:
            if resident is None:
                resident = self.device.type != "cpu" and split.images.nbytes <= _RESIDENT_BYTES
            pixels = split.images.to(self.device) if resident else split.images
            # [M, H, W, C], in which a pixel's channels and a row's pixels are neighbors, as the view pipeline likes it.
            self._pixels = pixels.permute(0, 2, 3, 1).contiguous()
            self._facts = {name: _on(pixels.device, fact) for name, fact in self._facts.items()}
        else:
            self._plan = _Plan()
            if num_workers and getattr(split.images, "cuts", False):
                # As many as are under way, and the one that is looked at here.
                size, count = batch_size * first_item(split).numel() * _SLACK, _AHEAD * num_workers + 1
                if size * count <= min(_SLOT_BYTES, _shared_room() // 2):
                    self._slots = [torch.empty(size, dtype=torch.uint8).share_memory_() for _ in range(count)]
            stream = _Stream(
                split.images,
                seed,
                self._slots,
                skip=split.on_bad_image == "skip",
                replace=train,
                pool=self.pool,
                first=self._first if self.pool else None,
                partners=partial(_partners, self.augment, len(split), pool)
                if self.pool and self.augment.mixes
                else None,
            )
            self._workers: Any = DataLoader(
                stream,
                batch_sampler=self._plan,
                num_workers=num_workers,
                collate_fn=_as_is,
                prefetch_factor=_AHEAD if num_workers else None,
                persistent_workers=num_workers > 0,
                pin_memory=self.device.type == "cuda",
                # The base seed of the workers would otherwise be drawn from the global generator, each epoch.
                generator=torch.Generator(),
            )

    balance: Balance = "none"
    _slots: Sequence[Tensor] = ()

    def _check_augment(self, strong: bool) -> None:
        if self.augment.pixels and (kind := first_item(self.split).dtype) != torch.uint8:
            raise UserError(
                f"{name_of(self.split)}: augmentations of pixels are for uint8 images, and these are {str(kind)[6:]}; "
                "use crop, flip and mixes alone"
            )
        if self.augment.mixes and strong:
            raise UserError("mixed images have no strongly augmented view; leave out mixup and cutmix, or the method")

    def __len__(self) -> int:
        """Batches per epoch, for this rank."""
        if self.train:
            return max(1, len(self.split) // (self.batch_size * self.world_size))
        mine = len(range(self.rank, len(self.split), self.world_size))
        return -(-mine // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch.

        Args:
            epoch: counted from 1; in evaluation it makes no difference.
            start: how many batches to leave out at the front, without reading them.
        """
        shares = self._shares(epoch)[start:]
        if self._pixels is not None:
            return self._from_memory(self._pixels, epoch, start, shares)
        return self._streamed(epoch, start, shares)

    def _shares(self, epoch: int) -> Sequence[Tensor]:
        """The positions that this rank shows, batch by batch."""
        size = len(self.split)
        if not self.train:
            return torch.arange(self.rank, size, self.world_size).split(self.batch_size)
        generator = seeded(self.seed, _ORDER, epoch)
        order = torch.randperm(size, generator=generator)
        if self.balance == "sampler":
            order = balanced_order(self.split.labels, order, generator)
        share = min(self.batch_size, size // self.world_size)
        steps = order[: len(self) * share * self.world_size].split(share * self.world_size)
        return [step[self.rank * share : (self.rank + 1) * share] for step in steps]

    def _from_memory(self, pixels: Tensor, epoch: int, start: int, shares: Sequence[Tensor]) -> Iterator[Batch]:
        for number, index in enumerate(shares, start):
            there = index.to(pixels.device, non_blocking=True)
            yield self._batch(_taken(pixels, there), there, index, epoch, number)

    def _streamed(self, epoch: int, start: int, shares: Sequence[Tensor]) -> Iterator[Batch]:
        # In evaluation, too, every item gets the same numbers in each epoch, should its reading use any.
        tag = epoch if self.train else 0
        slots = max(1, len(self._slots))
        # As arrays, which are sent by value: a tensor would be shared with the process, which takes longer.
        self._plan.batches = [(tag, share.numpy(), number % slots) for number, share in enumerate(shares)]
        for number, read in enumerate(self._workers, start):
            if isinstance(read, UserError):
                try:
                    raise read
                finally:
                    # Or the error would hold this frame, and this frame the error: the workers would be left to the
                    # cycle collector, which stops them in an order that takes seconds.
                    del read
            images, shown, bad = read
            self.bad.update(bad)
            if images is not None:
                yield self._arrived(images, torch.tensor(shown), epoch, number)

    def _arrived(self, read: Any, share: Tensor, epoch: int, number: int) -> Any:
        """The batch of what a worker has joined: the images of a batch, and those that they are mixed with."""
        if isinstance(read, _Cuts):
            read = read.resized(self._slots, self.device)
        own = len(share) // 2 if self.pool and self.augment.mixes else len(share)
        return self._batch(read[:own], share[:own], share[:own], epoch, number, (read[own:], share[own:]))

    def say_bad(self) -> None:
        """Log how many images could not be read, where there are more than when it was said last."""
        if len(self.bad) > self._said:
            self._said = len(self.bad)
            bad = BadImages(*(self.bad[position] for position in sorted(self.bad)))
            who = f"process {self.rank + 1} of {self.world_size}: " if self.world_size > 1 else ""
            done = "others take their place" if self.train else "they are not counted"
            count = f"{self._said:,} of {len(self.split):,} images cannot be read"
            log.warning("%s%s: %s, and %s: %s", who, name_of(self.split), count, done, bad.listed())

    def _batch(
        self,
        images: Tensor,
        index: Tensor,
        share: Tensor,
        epoch: int,
        number: int,
        others: tuple[Tensor, Tensor] | None = None,
    ) -> Batch:
        """One batch of the images at ``index``; ``share`` is the same on the CPU.

        Args:
            others: of streamed images with a pool, those that they are mixed with, and their positions.
        """
        split = self.split
        facts = self._facts_of(index)
        images, index = (_on(self.device, t) for t in (images, index))
        draw, drawn, recalled, numbers = None, None, None, torch.empty(0)
        how: dict[str, Any] = {"padding": split.padding * self.augment.crop, "flip": self.augment.flip}
        if self.pool:
            drawn = (self._first[share] + epoch - 1) % self.pool
            draw = draw_pool(share, drawn, self.views, **how)
            numbers = draw_numbers(share, drawn, self.augment.numbers)
            recalled = self.recall and self.recall(share, drawn, self.views)
            recalled = recalled and recalled.apply(self._sent)
        elif self.train:
            # Drawn for the batches of all ranks, of which this rank takes its own.
            mine, generator = len(images), seeded(self.seed, _VIEWS, epoch, number)
            draw = draw_views(mine * self.world_size, self.views, generator=generator, **how)
            own = slice(self.rank * mine, (self.rank + 1) * mine)
            draw = draw.rows(own.start, own.stop)
            if self.augment.numbers:
                size = mine * self.world_size, self.augment.numbers
                generator = seeded(self.seed, _AUGMENT, epoch, number)
                numbers = torch.rand(size, dtype=torch.float64, generator=generator)[own]
        show = partial(apply_views, mean=split.mean, std=split.std, padding=how["padding"])
        views = show(self.augment.change(images, numbers) if self.train else images, views=self.views, draw=draw)
        if self.train and self.augment.mixes:
            views, facts = self._mix(views, facts, numbers, show, how, others)
        if self.strong:
            generator = seeded(self.seed, _STRONG, epoch, number, self.rank)
            draw = draw_views(len(images), 1, generator=generator, **how)
            strong = show(images, views=1, draw=draw, change=partial(strong_augment, generator=generator))
            # Joined as [B, V + 1, H, W, C], which keeps the rows channels_last.
            both = (v.permute(0, 1, 3, 4, 2) for v in (views, strong))
            views = torch.cat(tuple(both), dim=1).permute(0, 1, 4, 2, 3)
        return Batch(views, index=index, drawn=drawn, recalled=recalled, strong=self.strong, **facts)

    def _facts_of(self, index: Tensor) -> dict[str, Any]:
        """What is known of the images at these positions, on the device of the batches."""
        return {
            name: fact if isinstance(fact, Absent) else _on(self.device, fact.index_select(0, index))
            for name, fact in self._facts.items()
        }

    def _mix(
        self,
        views: Tensor,
        facts: dict[str, Any],
        numbers: Tensor,
        show: Callable[..., Tensor],
        how: dict[str, Any],
        read: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Mixed views and what is known of them: with the other images of the batch in reverse order, or, with a pool,
        with any of the data set, so that an entry of the pool is the same whatever batch it is in.
        """
        if self.pool:
            partner, entry = self.augment.partners(numbers, len(self.split), self.pool)
            if read is not None:
                images, partner = read
                there = partner
            else:
                assert self._pixels is not None
                there = partner.to(self._pixels.device, non_blocking=True)
                images = _taken(self._pixels, there)
            images = self.augment.change(_on(self.device, images), draw_numbers(partner, entry, self.augment.numbers))
            others = show(images, views=self.views, draw=draw_pool(partner, entry, self.views, **how))
            theirs = self._facts_of(there)
        else:
            others = views.flip(0)
            theirs = {name: f if isinstance(f, Absent) else f.flip(0) for name, f in facts.items()}
        views, share = self.augment.mix(views, others, numbers)
        return views, mixed_facts(facts, theirs, _on(self.device, share), self.split)

    def _sent(self, tensor: Tensor) -> Tensor:
        # From memory that is not pinned, a copy may wait for the device.
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)


def check_loading(split: Any, batch_size: int, train: bool, num_workers: int, rank: int, world_size: int) -> None:
    """Refuse what no split can be iterated with.

    Raises:
        UserError: a number out of its range.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: it must be at least 1")
    if not 0 <= num_workers <= MOST_WORKERS:
        raise UserError(f"num_workers={num_workers}: it must be 0 (read in this process) to {MOST_WORKERS}")
    if not 0 <= rank < world_size:
        raise UserError(f"rank={rank} with world_size={world_size}: ranks count from 0 to world_size - 1")
    if train and len(split) < world_size:
        raise UserError(
            f"{split.name or 'the data set'}: {len(split)} images cannot be shared by {world_size} processes"
        )


def check_pool(split: Any) -> None:
    """Refuse images that a pool of augmentations cannot have: each time they are read they may be others.

    Raises:
        UserError: names the split.
    """
    if not isinstance(split.images, Tensor) and not hasattr(split.images, "drawn"):
        raise UserError(
            f"{name_of(split)} is streamed, and its images draw from random generators as they are read, so that they "
            "have no finite pool of augmentations; leave out view_pool and the teacher cache, or give the images the "
            "methods of registry.DataSplit.images"
        )


def _partners(augment: Augmentations, count: int, pool: int, index: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
    """The images that entries of pools are mixed with, of ``count``, and which entries these show; all [B]."""
    return augment.partners(draw_numbers(index, entry, augment.numbers), count, pool)


class _Plan:
    """A batch sampler whose batches are set before each epoch: the epoch, or 0, positions [B], and a slot."""

    batches: Sequence[tuple[int, np.ndarray, int]] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _Cuts(NamedTuple):
    """Parts of images one after the other, which are still to be resized; a worker has no time for it."""

    sizes: list[tuple[int, int]]
    """Height and width of each."""
    wanted: tuple[int, int]
    mode: str
    slot: int
    """In which of the shared tensors the pixels are."""
    pixels: Tensor | None
    """They themselves, where they did not fit in there."""

    def resized(self, slots: Sequence[Tensor], device: torch.device) -> Tensor:
        """uint8 [B, 3, H, W], in memory [B, H, W, 3], on the device."""
        pixels = slots[self.slot] if self.pixels is None else self.pixels
        counts = [3 * height * width for height, width in self.sizes]
        parts = pixels[: sum(counts)].to(device).split(counts)
        shown = [
            Cut(part.view(*size, 3), self.wanted, self.mode).resized()
            for part, size in zip(parts, self.sizes, strict=True)
        ]
        return torch.stack(shown).permute(0, 3, 1, 2)


class _Stream(Dataset):
    """Reads items of a data set, each with its own random numbers, whatever process does it.

    Args:
        images: the data set; its items follow from given numbers where it has a method ``drawn``, and otherwise from
            the global generators, which are seeded for each.
        seed: of the run. slots: shared tensors, in which parts of images are passed on: to write into new memory that
            is shared takes a tenth of the time of decoding. skip: leave out what cannot be read; replace: and show the
            next one.
        pool: in how many ways an image is augmented. first: [M], the entry of its pool that each image shows first.
        partners: from images and entries of pools to those that they are mixed with, which are then read, too.
    """

    def __init__(
        self,
        images: Any,
        seed: int,
        slots: Sequence[Tensor] = (),
        *,
        skip: bool,
        replace: bool,
        pool: int = 0,
        first: Tensor | None = None,
        partners: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.images, self.seed, self.slots, self.skip, self.replace = images, seed, slots, skip, replace
        self.pool, self.first, self.partners = pool, first, partners

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, asked: tuple[int, np.ndarray, int]) -> tuple[Any, list[int], dict[int, str]] | UserError:
        """The items, or None where none is left, with their positions; positions and reasons of those not read."""
        epoch, positions, slot = asked
        items: list[Any] = []
        shown: list[int] = []
        bad: dict[int, str] = {}

        def read(positions: Tensor, entries: Tensor | None) -> None:
            numbers = self._numbers(positions, epoch, entries)
            wanted = [None] * len(positions) if entries is None else entries.tolist()
            for position, entry, own in zip(positions.tolist(), wanted, numbers, strict=True):
                found = self._read(position, epoch, entry, own, bad)
                if found is not None:
                    shown.append(found[0])
                    items.append(found[1])

        try:
            read(torch.from_numpy(positions), None)
            if self.partners is not None:
                own = torch.tensor(shown)
                read(*self.partners(own, self._entries(own, epoch)))
            if bad and not self.skip:
                raise BadImages(*bad.values())
            if items and isinstance(items[0], Cut):
                return self._passed(items, slot), shown, bad
            return (self.join(items, shown) if items else None), shown, bad
        except UserError as error:
            # As a value: raised in a worker it would arrive wrapped in the worker's traceback.
            return error

    def _entries(self, positions: Tensor, epoch: int) -> Tensor:
        assert self.first is not None
        return (self.first[positions] + epoch - 1) % self.pool

    def _passed(self, cuts: list[Cut], slot: int) -> _Cuts:
        sizes = [(cut.pixels.shape[0], cut.pixels.shape[1]) for cut in cuts]
        counts = [cut.pixels.numel() for cut in cuts]
        fits = sum(counts) <= len(self.slots[slot])
        pixels = self.slots[slot] if fits else torch.empty(sum(counts), dtype=torch.uint8)
        for cut, part in zip(cuts, pixels[: sum(counts)].split(counts), strict=True):
            part.view(cut.pixels.shape).copy_(cut.pixels)
        return _Cuts(sizes, cuts[0].size, cuts[0].mode, slot, None if fits else pixels)

    def join(self, items: list[Any], shown: list[int]) -> Any:
        """The items at these positions as one value."""
        for item, position in zip(items, shown, strict=True):
            check_alike(item, items[0], position)
        # Decoded images are [H, W, C] in memory, and stay so; in a worker they are copied to where others see them.
        return default_collate([item.permute(1, 2, 0) for item in items]).permute(0, 3, 1, 2)

    def _read(
        self, position: int, epoch: int, entry: int | None, numbers: Sequence[float], bad: dict[int, str]
    ) -> tuple[int, Any] | None:
        """A position and its item: the first from ``position`` on that can be read, or that one alone."""
        tries = len(self) if self.skip and self.replace else 1
        for at in (step % len(self) for step in range(position, position + tries)):
            if at != position:
                entries = None if entry is None else torch.tensor([entry])
                numbers = self._numbers(torch.tensor([at]), epoch, entries)[0]
            try:
                return at, ask(f"image {at} of the data set", self._item, at, epoch, numbers)
            except BadImages as error:
                bad[at] = error.reasons[0]
        if tries > 1:
            raise BadImages(*bad.values())
        return None

    def _numbers(self, positions: Tensor, epoch: int, entries: Tensor | None) -> Sequence[Sequence[float]]:
        """The random numbers of items as entries of their pools; by default those that they show in this epoch."""
        count = getattr(self.images, "draws", 0)
        if not count:
            return [()] * len(positions)
        if not self.pool:
            return draw_sample(mixed(self.seed, _SAMPLE, epoch), positions, count).tolist()
        entries = self._entries(positions, epoch) if entries is None else entries
        return draw_numbers(positions, entries, count, of_item=True).tolist()

    def _item(self, at: int, epoch: int, numbers: Sequence[float]) -> Any:
        if not hasattr(self.images, "drawn"):
            with _seeded(mixed(self.seed, _SAMPLE, epoch, at)):
                return self.images[at]
        return (self.images.cut if self.slots else self.images.drawn)(at, numbers)


def mixed_facts(own: dict[str, Any], others: dict[str, Any], share: Tensor, split: DataSplit) -> dict[str, Any]:
    """What is known of mixed images: soft labels; the label is that of the larger share.

    Args:
        own, others: of both images of each mixed one. share: float64 [B], of the own image.
    """
    facts, weight = dict(own), share.float()
    if not isinstance(own["labels"], Absent):
        facts["labels"] = torch.where(share >= 0.5, own["labels"], others["labels"])
    if split.targets is not None or (split.labeled and not isinstance(own["labels"], Absent)):
        both = [
            known["targets"] if split.targets is not None else one_hot(known["labels"], split.num_classes).float()
            for known in (own, others)
        ]
        facts["targets"] = torch.lerp(both[1], both[0], weight[:, None])
    if "sample_weights" in own:
        facts["sample_weights"] = torch.lerp(others["sample_weights"], own["sample_weights"], weight)
    return facts


def _taken(pixels: Tensor, index: Tensor) -> Tensor:
    """Images [B, C, H, W] of pixels [M, H, W, C], at these positions."""
    return as_bits(pixels).index_select(0, index).view(pixels.dtype).permute(0, 3, 1, 2)


def _on(device: torch.device, fact: Any) -> Any:
    return fact if isinstance(fact, Absent) else fact.to(device, non_blocking=True)


def _shared_room() -> int:
    """Bytes of shared memory that are free."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else _SLOT_BYTES * 2


def _as_is(value: Any) -> Any:
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Inside, the global CPU generators of torch, NumPy and Python start from ``seed``; after it they are as before."""
    generator = torch.random.default_generator
    before = generator.get_state(), np.random.get_state(), random.getstate()
    generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        generator.set_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])

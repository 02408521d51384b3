"""The view pipeline: flip, rotate, crop and normalize a whole batch with tensor operations on its own device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from registry import UserError

__all__ = [
    "POOL_VERSION",
    "SCALES",
    "Draw",
    "apply_views",
    "as_bits",
    "draw_numbers",
    "draw_pool",
    "draw_sample",
    "draw_views",
    "make_views",
    "mixed",
    "seeded",
]

SCALES: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0, torch.float16: 1.0, torch.bfloat16: 1.0}
)
"""The types that images may have, and what is 1 in each: mean and std are of images divided by it."""

POOL_VERSION = 1
"""Raise it when the entries of :func:`draw_pool` change: what was remembered about the old ones is then not used."""


def mixed(*numbers: int) -> int:
    """A 63-bit seed that depends on every number and on their places."""
    words = np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose seed depends on every number and on their places."""
    return torch.Generator().manual_seed(mixed(*numbers))


def as_bits(images: Tensor) -> Tensor:
    """uint16 as int16 of the same bits, others as they are: more operations know that type."""
    return images.view(torch.int16) if images.dtype == torch.uint16 else images


class Draw(NamedTuple):
    """The random numbers of a batch: the same on every device, because they are drawn on the CPU."""

    flips: Tensor
    """[B], bool: which images are mirrored left to right."""
    offsets: Tensor
    """[B, V, 2], int64: top and left of each crop in the padded view, 0 to 2 * padding."""

    def rows(self, start: int, stop: int) -> Draw:
        """The random numbers of some of the images only."""
        return Draw(self.flips[start:stop], self.offsets[start:stop])


def draw_views(images: int, views: int, *, padding: int, flip: bool, generator: torch.Generator) -> Draw:
    """Draw the augmentation of ``images`` images in ``views`` views each from a CPU generator.

    The crops do not depend on ``flip``: runs with and without it can be compared image by image.
    """
    flips = torch.rand(images, generator=generator) < 0.5
    offsets = torch.randint(0, 2 * padding + 1, (images, views, 2), generator=generator)
    return Draw(flips if flip else torch.zeros_like(flips), offsets)


def draw_pool(index: Tensor, entry: Tensor, views: int, *, padding: int, flip: bool) -> Draw:
    """The augmentations of entries (0 to 65535) of images' fixed pools; both int64 [B], on the CPU.

    They are the same in every run, on every machine. An entry is a flip and four crops, of which the first ``views``
    are taken. It is computed from its two numbers, so that a pool of any size takes no memory; neither the size of the
    pool nor ``flip`` changes the crops.
    """
    first = (index.numpy().astype(np.uint64) << np.uint64(16) | entry.numpy().astype(np.uint64)) << np.uint64(4)
    words = _scrambled(first[:, None] + np.arange(9, dtype=np.uint64)) >> np.uint64(32)
    flips = torch.from_numpy(words[:, 8] >= 2**31)
    offsets = words[:, :8] * np.uint64(2 * padding + 1) >> np.uint64(32)
    chosen = torch.from_numpy(offsets.astype(np.int64)).view(-1, 4, 2)[:, :views].contiguous()
    return Draw(flips if flip else torch.zeros_like(flips), chosen)


def draw_numbers(index: Tensor, entry: Tensor, count: int, *, of_item: bool = False) -> Tensor:
    """[B, ``count``] further random numbers of [0, 1), float64, of entries of images' pools, as :func:`draw_pool`.

    Args:
        of_item: those that a streamed image is read with, not those of the augmentations of batches.
    """
    first = (index.numpy().astype(np.uint64) << np.uint64(16) | entry.numpy().astype(np.uint64)) << np.uint64(4)
    return _uniform(_scrambled(first + np.uint64(14 if of_item else 15)), count)


def draw_sample(seed: int, index: Tensor, count: int) -> Tensor:
    """[B, ``count``] random numbers of [0, 1), float64, of images at these positions, as a seed of 63 bits says."""
    return _uniform(_scrambled(_scrambled(index.numpy().astype(np.uint64)) ^ np.uint64(seed)), count)


def _uniform(start: np.ndarray, count: int) -> Tensor:
    words = _scrambled(start[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)
    return torch.from_numpy(words.astype(np.float64)) / 2**53


def _scrambled(counters: np.ndarray) -> np.ndarray:
    """64 random bits for each of several different uint64 numbers: SplitMix64 (Steele et al., OOPSLA 2014)."""
    state = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def make_views(
    images: Tensor,
    *,
    views: int,
    mean: Sequence[float],
    std: Sequence[float],
    train: bool,
    padding: int = 4,
    flip: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Show each image in ``views`` views: rotated by 0, 90, 180 and 270 degrees, the first ``views`` of these.

    Training: a random horizontal flip of the image (all its views alike), the rotation (``torch.rot90``), a random
    crop of each view on its own, with ``padding`` black pixels around it, normalization. Evaluation: rotation and
    normalization only.

    Args:
        images: [B, C, H, W] of a type in :data:`SCALES`; fastest where the memory is laid out as [B, H, W, C].
        views: V, 1 to 4; above 1 the images must be square.
        mean: per channel, of images scaled to [0, 1].
        std: per channel, likewise.
        train: whether to augment.
        padding: pixels on each side; 0 leaves the crop out.
        flip: whether to mirror half of the images.
        generator: a CPU generator; needed for training only.

    Returns:
        Float [B, V, C, H, W]; viewed as [B * V, C, H, W] it is contiguous in the channels_last memory format.

    Raises:
        UserError: ``views`` is not 1 to 4, or above 1 for images that are not square; mean or std do not fit.
    """
    draw = None
    if train:
        if generator is None:
            raise TypeError("make_views(train=True) needs a generator")
        draw = draw_views(images.shape[0], views, padding=padding, flip=flip, generator=generator)
    return apply_views(images, views=views, mean=mean, std=std, padding=padding if train else 0, draw=draw)


def apply_views(
    images: Tensor,
    *,
    views: int,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int = 0,
    draw: Draw | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """:func:`make_views` with the random numbers given; without a draw there is no flip and no crop.

    Args:
        change: of the views [B * V, C, H, W], before they are normalized.
    """
    batch, channels, height, width = images.shape
    if not 1 <= views <= 4:
        raise UserError(f"views={views}: an image has 1 to 4 views (rotations by 0, 90, 180, 270 degrees)")
    if views > 1 and height != width:
        raise UserError(f"views={views}: rotated views need square images, these are {height}x{width}; use views=1")
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"the images have {channels} channels, but mean has {len(mean)} numbers and std {len(std)}; give one each"
        )
    device = images.device
    # Everything up to the crop is moving bytes; as [B, H, W, C] a row of a crop is one contiguous run of W * C bytes.
    kind, pixels = images.dtype, as_bits(images).permute(0, 2, 3, 1)
    if draw is not None:
        flips = draw.flips.to(device, non_blocking=True)
        pixels = torch.where(flips.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    else:
        padding = 0
    padded = torch.zeros if padding else torch.empty
    tall, wide = height + 2 * padding, width + 2 * padding
    canvas = padded((batch, views, tall, wide, channels), dtype=pixels.dtype, device=device)
    inner = canvas[:, :, padding : padding + height, padding : padding + width]
    for k in range(views):
        inner[:, k].copy_(torch.rot90(pixels, k, (1, 2)))
    rows = batch * views
    if padding and draw is not None:
        # Row i of a crop starts at pixel (n * tall + top + i) * wide + left of the canvas: overlapping windows of
        # one flat buffer, gathered whole.
        top, left = draw.offsets.view(rows, 2).to(device, non_blocking=True).unbind(1)
        first = (torch.arange(rows, device=device) * tall + top) * wide + left
        start = first.unsqueeze(1) + torch.arange(height, device=device) * wide
        windows = canvas.as_strided((rows * tall * wide - width + 1, width * channels), (channels, 1))
        cropped = windows.index_select(0, start.view(-1))
    else:
        cropped = canvas
    if change is not None:
        shown = cropped.view(kind).view(rows, height, width, channels).permute(0, 3, 1, 2)
        cropped = change(shown).permute(0, 2, 3, 1).contiguous()
    scale = 1.0 / (SCALES[kind] * torch.tensor(std, dtype=torch.float64))
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    # Whole rows of scale and shift, so that the inner loop is W * C long and not C.
    line = torch.stack([scale, shift]).float().repeat(1, width).to(device, non_blocking=True)
    out = torch.addcmul(line[1], cropped.view(rows * height, width * channels).view(kind).float(), line[0])
    return out.view(batch, views, height, width, channels).permute(0, 1, 4, 2, 3)

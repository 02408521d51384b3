"""Augmentations by hand. What any of them promises is in test_contracts.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixel

from pckd.augmentations.policies import RAND
from registry import AUGMENTATIONS, UserError, build


def drawn(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def ramp(height: int = 8, width: int = 8, channels: int = 3) -> Tensor:
    """[1, C, H, W]: 10 times the column."""
    return (10 * torch.arange(width)).expand(1, channels, height, width).to(torch.uint8)


def apply(spec: str, images: Tensor, *numbers: float) -> Tensor:
    result: Tensor = build(AUGMENTATIONS, spec)(images, drawn(*numbers))
    return result


def test_a_crop_by_hand() -> None:
    # All of the area: the image itself. A quarter, from the left edge: columns 0 to 3, each drawn twice as wide.
    assert torch.equal(apply("random_resized_crop(ratio=1)", ramp(), 1 - 1e-12, 0.5, 0.3, 0.9), ramp())
    left = apply("random_resized_crop(least=0.25, ratio=1)", ramp(), 0, 0.5, 0.5, 0)[0, 0, 4].tolist()
    assert left == pytest.approx([0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30], abs=0.51)
    right = apply("random_resized_crop(least=0.25, ratio=1)", ramp(), 0, 0.5, 0.5, 1 - 1e-9)[0, 0, 4].tolist()
    assert right == pytest.approx([40, 42.5, 47.5, 52.5, 57.5, 62.5, 67.5, 70], abs=0.51)
    # Half the area, twice as wide as high: all columns, four rows.
    wide = apply("random_resized_crop(least=0.5, ratio=2)", ramp().mT, 0, 1, 1 - 1e-9, 0.5)[0, 0, :, 4].tolist()
    assert wide == pytest.approx([40, 42.5, 47.5, 52.5, 57.5, 62.5, 67.5, 70], abs=0.51)


@pytest.mark.parametrize(("height", "width"), [(9, 9), (9, 15)])
def test_a_quarter_turn_by_hand(height: int, width: int) -> None:
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turned = apply("rotate(degrees=90)", images, 1.0)
    side = slice((width - height) // 2, (width + height) // 2)
    assert torch.equal(turned[..., side], torch.rot90(images[..., side], 1, (2, 3)))


def test_a_rectangle_is_erased() -> None:
    # A quarter of the area, a square of 4 pixels, as far to the lower right as it goes.
    image = ramp()
    erased = apply("random_erasing(p=1, least=0.25, most=0.25, ratio=1)", image, 0, 0.5, 0.5, 1 - 1e-9, 1 - 1e-9)
    expected = image.clone()
    expected[..., 4:, 4:] = 35
    assert torch.equal(erased, expected)
    assert torch.equal(apply("random_erasing(p=0.5)", image, 0.5, 0.5, 0.5, 0.5, 0.5), image)


def test_colors_by_hand() -> None:
    image = torch.tensor([100, 50, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous()
    gray = round(0.2989 * 100 + 0.587 * 50 + 0.114 * 200)
    assert apply("grayscale(p=1)", image, 0.3)[0, :, 0, 0].tolist() == [gray] * 3
    assert torch.equal(apply("grayscale(p=0.2)", image, 0.2), image)
    one = {"contrast": 0, "saturation": 0}
    options = ", ".join(f"{k}={v}" for k, v in one.items())
    assert apply(f"color_jitter(brightness=0.5, {options})", image, 1, 0, 0, 0)[0, :, 0, 0].tolist() == [150, 75, 255]
    # Of one color, contrast moves every channel to or from the gray value, and so does saturation.
    for option, place in (("contrast", 1), ("saturation", 2)):
        numbers = [0.5] * 4
        numbers[place] = 0.0
        others = ", ".join(f"{k}=0" for k in ("brightness", "contrast", "saturation") if k != option)
        found = apply(f"color_jitter({option}=0.5, {others})", image, *numbers)[0, :, 0, 0].tolist()
        exact = 0.2989 * 100 + 0.587 * 50 + 0.114 * 200
        assert found == [round((c + exact) / 2) for c in (100, 50, 200)]
    hue = apply("color_jitter(brightness=0, contrast=0, saturation=0, hue=0.2)", image, 0.5, 0.5, 0.5, 1.0)
    assert torch.equal(hue, pixel.adjust_hue(image, 0.2))


@pytest.mark.parametrize("operation", range(14))
@pytest.mark.parametrize("negative", [False, True])
def test_rand_augment_applies_what_is_drawn(operation: int, negative: bool) -> None:
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    number = (2 * operation + negative + 0.5) / 28
    found = apply("rand_augment(n=1, m=15)", image, number, *[0.0] * 7)
    assert torch.equal(found, RAND[operation](image, -0.5 if negative else 0.5))
    by_torchvision = {
        1: lambda s: pixel.affine(image, 0.0, [0, 0], 1.0, [math.degrees(math.atan(0.3 * s)), 0.0]),
        4: lambda s: pixel.affine(image, 0.0, [0, round(150 / 331 * s * 16)], 1.0, [0.0, 0.0]),
        5: lambda s: pixel.rotate(image, -30 * s),
        6: lambda s: pixel.adjust_brightness(image, 1 + 0.9 * s),
        10: lambda _: pixel.posterize(image, 6),
        11: lambda _: pixel.solarize(image, 127.5),
        13: lambda _: pixel.equalize(image),
    }
    if operation in by_torchvision:
        expected = by_torchvision[operation](-0.5 if negative else 0.5)
        assert (found != expected).float().mean() < 0.05


def test_mixing_by_hand() -> None:
    views, others = torch.zeros(1, 2, 3, 4, 4), torch.ones(1, 2, 3, 4, 4)
    mixed, share = build(AUGMENTATIONS, "mixup(alpha=1)")(views, others, drawn(0.3))
    assert mixed.unique().tolist() == pytest.approx([1 - share.item()])
    # The center of the rectangle is the image's corner: a quarter of it is inside.
    cut, share = build(AUGMENTATIONS, "cutmix(alpha=1)")(views, others, drawn(0.3, 0.0, 0.0))
    assert share.item() == 1 - cut.mean().item()
    side = round(math.sqrt(cut.mean().item()) * 4)
    assert cut[0, 1, 2, :side, :side].all()
    assert cut[0, 1, 2, side:].sum() == 0


def test_shares_are_of_the_beta_distribution() -> None:
    numbers = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1, None]
    views = torch.zeros(4000, 1, 1, 1, 1)
    _, share = build(AUGMENTATIONS, "mixup(alpha=0.2)")(views, views, numbers)
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert share.var().item() == pytest.approx(1 / 5.6, abs=0.01)


@pytest.mark.parametrize(
    ("spec", "channels", "message"),
    [
        ("rand_augment(m=31)", 3, "rand_augment: n=2, m=31: n is 0 to 8, m 0 to 30"),
        ("rand_augment", 4, "rand_augment changes colors, and the images have 4 channels"),
        ("auto_augment(policy='mnist')", 3, "must be one of imagenet, cifar10, svhn"),
        ("random_resized_crop(least=0)", 3, "least is in"),
        ("mixup(alpha=0)", 3, "mixup: alpha=0: it must be above 0"),
    ],
)
def test_bad_options_are_refused(spec: str, channels: int, message: str) -> None:
    images: Any = [ramp(channels=channels)] * (2 if spec.startswith("mixup") else 1)
    if spec.startswith("mixup"):
        images = [x[:, None].float() for x in images]
    with pytest.raises(UserError, match=message):
        build(AUGMENTATIONS, spec)(*images, torch.rand(1, 8, dtype=torch.float64))

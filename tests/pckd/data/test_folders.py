import os
import pickle
import random
import shutil
import struct
import unicodedata
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from torchvision.transforms import v2

from pckd.data import Loader, hold_out, limit, listing
from pckd.data import folder as folders
from pckd.data.archive import Stored
from pckd.data.folder import image_size_of, list_files, read_image
from pckd.data.frames import RandomPart
from pckd.data.paths import Paths
from registry import DATASETS, BadImages, UserError, build

COLORS = {"blue": (10, 20, 230), "green": (20, 220, 30), "red": (240, 15, 25)}
LABELS = [0] * 4 + [1] * 4 + [2] * 4


def make(root, splits=("train", "test"), size=(12, 12), count=4, suffix="png"):
    """Images of one color each, their class's, a little darker from file to file."""
    for split in splits:
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", size, tuple(c - i for c in color)).save(folder / f"{i}.{suffix}")
    return root


@pytest.fixture
def root(tmp_path):
    return make(tmp_path)


def load(name, root, train=True, **options):
    return build(DATASETS, name, str(root), train, **options)


def items(split):
    return torch.stack([split.images[i] for i in range(len(split))])


@pytest.mark.parametrize("memory", [True, False, "auto"])
def test_images_labels_and_classes(root, memory):
    for train in (True, False):
        split = load("imagefolder", root, train, memory=memory)
        assert split.classes == ("blue", "green", "red")
        assert split.labels.tolist() == LABELS
        assert items(split).shape == (12, 3, 12, 12)
        assert items(split)[5, :, 0, 0].tolist() == [19, 219, 29]
        assert isinstance(split.images, torch.Tensor) == (memory is not False)


def test_val_serves_as_test_and_training_needs_neither(tmp_path):
    nested = make(tmp_path / "a", ("train", "val"), count=1) / "val" / "red" / "nested"
    nested.mkdir()
    (nested.parent / "0.png").rename(nested / "0.png")
    assert load("imagefolder", tmp_path / "a", train=False).labels.tolist() == [0, 1, 2]
    assert len(load("imagefolder", make(tmp_path / "b", ("train",)))) == 12


@pytest.mark.parametrize("memory", [True, False])
def test_images_without_labels_lie_anywhere(root, memory):
    """Without ``unlabeled/`` they are those of ``train/``, and without that all but the test images."""
    read = partial(load, "imagefolder", root, unlabeled=True, memory=memory)
    test = read(train=False)
    assert test.labels.tolist() == test.neighbors.labels.tolist() == LABELS
    assert test.classes == test.neighbors.classes == ("blue", "green", "red")
    assert torch.equal(items(test.neighbors), items(load("imagefolder", root, memory=memory)))
    assert (test.neighbors.mean, test.neighbors.std) == (test.mean, test.std) == (read().mean, read().std)
    assert (len(read()), read().labeled, read().classes) == (12, False, ())
    deep = root / "unlabeled" / "2026" / "test"
    deep.mkdir(parents=True)
    shutil.move(root / "train" / "red" / "3.png", deep / "a.png")
    Image.new("RGB", (12, 12), "white").save(root / "unlabeled" / "b.png")
    assert items(read())[:, 0, 0, 0].tolist() == [237, 255]
    assert len(read(train=False).neighbors) == 11
    shutil.rmtree(root / "train")
    assert read(train=False).neighbors is None
    shutil.move(deep / "a.png", root)
    shutil.rmtree(root / "unlabeled")
    assert (len(read()), read().labels.tolist()) == (1, [-1])
    for name in COLORS:
        shutil.move(root / "test" / name / "0.png", root / "test" / f"{name}.png")
        shutil.rmtree(root / "test" / name)
    assert read(train=False).labels.tolist() == [-1] * 3
    shutil.rmtree(root / "test")
    with pytest.raises(UserError, match=r"no folder test/ or val/ .*; or hold out some .*val_fraction"):
        read(train=False)
    (root / "a.png").unlink()
    with pytest.raises(UserError, match=r"^no images in"):
        read()
    with pytest.raises(UserError, match=r"^no folder .*nowhere: give the root"):
        load("imagefolder", root / "nowhere", unlabeled=True)


def test_statistics_are_those_of_the_training_images_or_of_imagenet_or_given(root):
    Image.new("RGB", (12, 12), (255, 255, 255)).save(root / "test" / "red" / "odd.png")
    train, test = (load("imagefolder", root, part) for part in (True, False))
    pixels = train.images.double() / 255
    assert train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
    assert (test.mean, test.std) == (train.mean, train.std)
    given = load("imagefolder", root, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load("imagefolder", root, memory=False).mean == (0.485, 0.456, 0.406)


def test_large_images_are_streamed_and_small_ones_are_not(tmp_path):
    large = make(tmp_path, size=(80, 80), count=1)
    assert not isinstance(load("imagefolder", large).images, torch.Tensor)
    assert isinstance(load("imagefolder", large, image_size=16).images, torch.Tensor)


@pytest.mark.parametrize("memory", [True, False])
def test_mixed_sizes_are_resized_and_cropped(root, memory):
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:, 8:32] = 200
    Image.fromarray(wide).save(root / "train" / "blue" / "0.png")
    split = load("imagefolder", root, image_size=10, memory=memory)
    assert items(split).shape == (12, 3, 10, 10)
    assert items(split)[0].min() == 200


@pytest.mark.parametrize("memory", [True, False])
def test_mixed_sizes_without_image_size_name_the_file(tmp_path, memory):
    """Of 180 files 100 are looked at when the data set is loaded, and 31.png is none of them."""
    root = make(tmp_path, ("train",), count=60)
    Image.new("RGB", (9, 7)).save(root / "train" / "green" / "31.png")
    with pytest.raises(UserError, match=r"31\.png is 9x7 .*image_size"):
        items(load("imagefolder", root, memory=memory))
    Image.new("RGB", (9, 7)).save(root / "train" / "blue" / "0.png")
    with pytest.raises(UserError, match=r"is 9x7.*image_size"):
        load("imagefolder", root, memory=memory)


@pytest.mark.parametrize(
    ("suffix", "mode", "color", "expected"),
    [
        ("png", "L", 77, (77, 77, 77)),
        ("png", "RGBA", (9, 8, 7, 100), (159, 158, 158)),
        ("png", "LA", (50, 10), (247, 247, 247)),
        ("png", "P", (200, 100, 0), (200, 100, 0)),
        ("png", "1", 1, (255, 255, 255)),
        ("jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, suffix, mode, color, expected):
    path = tmp_path / f"image.{suffix}"
    image = Image.new("RGB", (5, 6), color).quantize(4) if mode == "P" else Image.new(mode, (5, 6), color)
    image.save(path)
    pixels = read_image(str(path)).numpy()
    assert pixels.shape == (6, 5, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[3, 3].astype(int) - expected).max() <= (4 if suffix == "jpg" else 0)


TURNED = np.random.default_rng(0).integers(0, 256, (18, 27, 3), dtype=np.uint8)


def save_turned(path, orientation):
    """A photograph as a camera held otherwise writes it; what it should look like."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(TURNED).save(path, exif=exif)
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


JPEGS = {
    "colors": ("RGB", {}),
    "all pixels' colors": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "gray": ("L", {}),
    "RGB inside": ("RGB", {"keep_rgb": True}),
    "four inks": ("CMYK", {}),
}


@pytest.mark.parametrize("decoder", [True, False], ids=["torchvision's decoder", "without it"])
@pytest.mark.parametrize(("mode", "options"), JPEGS.values(), ids=JPEGS)
def test_a_jpeg_has_the_pixels_that_pillow_gives(tmp_path, monkeypatch, mode, options, decoder):
    if not decoder:
        monkeypatch.setattr("pckd.data.folder._jpeg_decoder", lambda: None)
    path = tmp_path / "photo.jpg"
    Image.fromarray(TURNED).convert(mode).save(path, **options)
    with Image.open(path) as image:
        assert np.array_equal(read_image(str(path)), np.asarray(image.convert("RGB")))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadImages, match=r"photo.jpg: not a readable image \(image file is truncated"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"photo.{suffix}"
    upright = save_turned(path, orientation)
    assert upright.size == ((27, 18) if orientation < 5 else (18, 27))
    assert image_size_of(str(path)) == upright.size[::-1]
    assert np.array_equal(read_image(str(path)), np.asarray(upright))


def test_a_damaged_exif_block_says_nothing(tmp_path):
    Image.new("RGB", (4, 6), "red").save(tmp_path / "photo.jpg", exif=b"Exif\0\0MM no such block")
    assert read_image(str(tmp_path / "photo.jpg")).shape == (6, 4, 3)


def fit(image):
    """The square in the middle, from a whole pixel on, in 16 x 16 pixels."""
    left, top = (max(0, one - other) // 2 for one, other in (image.size, image.size[::-1]))
    side = min(image.size)
    return image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BILINEAR)


@pytest.mark.parametrize(
    ("spec", "arrange", "orientations"),
    [
        ("imagefolder(image_size=16, memory=True)", fit, range(1, 9)),
        ("imagefolder(image_size=16, memory=False)", fit, range(1, 9)),
        ("imagenet(image_size=14)", v2.Compose([v2.Resize(16), v2.CenterCrop(14)]), range(1, 9)),
        # All lie on their side, and the size is that of upright ones.
        ("imagefolder(memory=True)", np.asarray, [6]),
        ("imagefolder(memory=False)", np.asarray, [6]),
    ],
)
def test_turned_images_are_turned_back_before_they_are_cropped(tmp_path, spec, arrange, orientations):
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        upright = [save_turned(tmp_path / folder / f"{i}.png", i) for i in orientations]
    shown = [np.asarray(arrange(image)).transpose(2, 0, 1) for image in upright]
    test = build(DATASETS, spec, str(tmp_path), False)
    # Pillow rounds in another way than torch.
    assert np.abs(items(test).numpy().astype(int) - np.stack(shown * 2)).max() <= (1 if "size" in spec else 0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_16_bits(color, values, transparent=b""):
    """A PNG of 16 bits a channel [H, W, C], which Pillow does not write in color."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", transparent) if transparent else b""]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def gray_tiff(bits, data, photometric=1, kind=1):
    """A gray TIFF of 2x2 pixels of so many bits, which Pillow does not write."""
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 150, 277: 1, 278: 2, 279: len(data), 339: kind}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(150, b"\0") + data


def drawing(mode, **info):
    """Two rows: black and opaque, then a hidden color that no one is to see; how it is saved."""
    if mode == "P":
        image = Image.fromarray(np.array([[0, 0], [1, 1]], np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
        return lambda path: image.save(path, **info)
    colors = {"RGBA": [(0, 0, 0, 255), (200, 0, 0, 0)], "LA": [(0, 255), (77, 0)], "RGB": [(0, 0, 0), (9, 9, 9)]}
    colors |= {"L": [0, 9], "1": [0, 1]}
    image = Image.new(mode, (2, 2), colors[mode][0])
    image.paste(colors[mode][1], (0, 1, 2, 2))
    return lambda path: image.save(path, **info)


def half_hidden_png(color, channels):
    """The same in 16 bits."""
    values = np.repeat([[[0] * channels], [[50000] * channels]], 2, 1)
    return lambda path: path.write_bytes(png_of_16_bits(color, values, struct.pack(">H", 50000) * channels))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("rgba.png", drawing("RGBA")),
        ("rgba.tif", drawing("RGBA")),
        ("rgba.webp", drawing("RGBA", lossless=True, exact=True)),
        ("gray.png", drawing("LA")),
        ("palette.png", drawing("P", transparency=1)),
        ("palette_bytes.png", drawing("P", transparency=b"\xff\0")),
        ("palette.gif", drawing("P", transparency=1)),
        ("color.png", drawing("RGB", transparency=(9, 9, 9))),
        ("one_gray.png", drawing("L", transparency=9)),
        ("bits.png", drawing("1", transparency=1)),
        ("color16.png", half_hidden_png(2, 3)),
        ("gray16.png", half_hidden_png(0, 1)),
    ],
)
def test_transparent_images_are_laid_on_white(tmp_path, name, save):
    save(tmp_path / name)
    assert read_image(str(tmp_path / name))[:, :, 0].tolist() == [[0, 0], [255, 255]]
    assert read_image(str(tmp_path / name))[1].tolist() == [[255] * 3] * 2


def by_name(value):
    return value if isinstance(value, str) and value.isprintable() else ""


def gray(*values, kind="uint16"):
    return Image.fromarray(np.array(values, kind).reshape(2, 2))


@pytest.mark.parametrize(
    ("name", "image", "white", "expected"),
    [
        ("16.png", gray(0, 256, 32768, 65535), None, [0, 1, 128, 255]),
        ("16.tif", gray(0, 256, 32768, 65535), None, [0, 1, 128, 255]),
        ("16.pgm", gray(0, 256, 32768, 65535), None, [0, 1, 128, 255]),
        ("dark16.png", gray(0, 256, 512, 16383), 65535, [0, 1, 2, 63]),
        ("black16.png", gray(0, 0, 0, 0), None, [0, 0, 0, 0]),
        ("12in16.png", gray(0, 16, 2048, 4095), 4095, [0, 1, 128, 255]),
        ("12in16.tif", gray(0, 16, 2048, 4095), 4095, [0, 1, 128, 255]),
        ("8in32.tif", gray(0, 1, 128, 255, kind="int32"), None, [0, 1, 128, 255]),
        ("10in32.tif", gray(0, 4, 512, 1023, kind="int32"), 1023, [0, 1, 128, 255]),
        ("float.tif", gray(0, 0.2, 0.5, 1.0001, kind="float32"), None, [0, 51, 128, 255]),
        ("float.pfm", gray(0, 0.2, 0.5, 1, kind="float32"), None, [0, 51, 128, 255]),
        ("float255.tif", gray(0, 1, 128, 255, kind="float32"), 255, [0, 1, 128, 255]),
        # These say themselves which value is white.
        ("12.tif", gray_tiff(12, bytes.fromhex("000800800fff")), None, [0, 128, 128, 255]),
        ("white0.tif", gray_tiff(16, struct.pack("<4H", 0, 256, 32768, 65535), 0), None, [255, 254, 127, 0]),
        ("float0.tif", gray_tiff(32, struct.pack("<4f", 0, 0.2, 0.6, 1), 0, 3), None, [255, 204, 102, 0]),
        ("12.pgm", b"P5 2 2 4095\n" + struct.pack(">4H", 0, 0, 0, 1000), None, [0, 0, 0, 62]),
        ("12.pgm", b"P5 2 2 4095\n" + struct.pack(">4H", 0, 0, 0, 1000), 4095, [0, 0, 0, 62]),
        ("plain12.pgm", b"P2 2 2 4095\n0 0 0 4095\n", None, [0, 0, 0, 255]),
        ("color16.png", png_of_16_bits(0, np.array([[[0], [256]], [[32768], [65535]]])), None, [0, 1, 128, 255]),
        ("dark16.png", png_of_16_bits(2, np.full((2, 2, 3), 4095)), 65535, [15, 15, 15, 15]),
    ],
    ids=by_name,
)
def test_deep_images_keep_their_content(tmp_path, name, image, white, expected):
    path = tmp_path / name
    path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
    pixels = read_image(str(path), white=white)
    assert pixels[:, :, 0].ravel().tolist() == expected
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize(
    ("name", "image", "white", "said"),
    [
        ("12in16.png", gray(0, 16, 2048, 4095), None, r"16-bit .* from 0 to 4095, .* not say .*\(white=4095\)"),
        ("14in16.tif", gray(0, 16, 2048, 16383), None, r"16-bit .* from 0 to 16383, .*\(white=16383\)"),
        ("8in16.pgm", gray(0, 16, 20, 255), None, r"16-bit .* from 0 to 255, .*\(white=255\)"),
        ("16.png", gray(0, 16, 20, 5000), 4095, r"from 0 to 5000, and white is 4095; give the one"),
        ("32.tif", gray(0, 16, 20, 256, kind="int32"), None, r"integer .* from 0 to 256, .*\(white=1023\)"),
        ("sign.tif", gray(-1, 16, 20, 25, kind="int32"), 255, "from -1 to 25, and black is 0; convert"),
        ("float.tif", gray(0, 1, 2, 200, kind="float32"), None, r"floating-point .* from 0 to 200, .*\(white=255\)"),
        ("sign.tif", gray(-1, 0, 0, 1, kind="float32"), None, "from -1 to 1, and black is 0"),
        ("color.png", png_of_16_bits(2, np.full((2, 2, 3), 4095)), None, "16-bit color .* up to 4095.*convert"),
        ("color.png", png_of_16_bits(2, np.full((2, 2, 3), 4095)), 4095, "16-bit color .* up to 4095.*convert"),
        ("alpha.png", png_of_16_bits(4, np.full((2, 2, 2), [0, 4095])), None, "16-bit color .* up to 4095"),
    ],
    ids=by_name,
)
@pytest.mark.parametrize("memory", [True, False])
def test_an_image_of_unknown_range_is_refused_whatever_is_skipped(tmp_path, name, image, white, said, memory):
    root = make(tmp_path, size=(2, 2), count=1)
    path = root / "train" / "red" / name
    path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
    with pytest.raises(UserError, match=f"red.{name}: .*{said}") as caught:
        items(load("imagefolder", root, memory=memory, white=white, on_bad_image="skip"))
    assert not isinstance(caught.value, BadImages)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_a_damaged_image(tmp_path):
    gray(0, float("nan"), 0, 1, kind="float32").save(tmp_path / "nan.tif")
    with pytest.raises(BadImages, match="not finite"):
        read_image(str(tmp_path / "nan.tif"))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_read(tmp_path, suffix):
    red, blue = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    red.save(tmp_path / f"frames.{suffix}", save_all=True, append_images=[blue], **options)
    assert read_image(str(tmp_path / f"frames.{suffix}"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "the file is empty"), (b"no image", "cannot identify"), (None, "[Tt]runcated")]
)
def test_a_damaged_file_is_named(tmp_path, content, reason):
    root = make(tmp_path, size=(12, 13), suffix="jpg")
    path = root / "train" / "green" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    with pytest.raises(UserError, match=rf"green.2\.jpg: not a readable image \(.*{reason}") as caught:
        load("imagefolder", root, image_size=12)
    assert "\n" not in str(caught.value)


def damage(root, *names):
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:-60])


@pytest.mark.parametrize("train", [True, False])
def test_all_damaged_files_of_a_split_are_named_at_once(root, train):
    damage(root, *(f"{part}/{name}.png" for part in ("train", "test") for name in ("blue/1", "red/0", "red/3")))
    with pytest.raises(BadImages) as caught:
        load("imagefolder", root, train)
    part = "train" if train else "test"
    assert [reason.partition(": ")[0] for reason in caught.value.reasons] == [
        str(root / part / name) for name in ("blue/1.png", "red/0.png", "red/3.png")
    ]
    assert str(caught.value).startswith("3 images cannot be read: ")
    assert "\n" not in str(caught.value)


def test_of_many_damaged_files_the_first_are_named():
    error = str(BadImages(*(f"{i}.png: bad" for i in range(1000))))
    assert error.startswith("1,000 images cannot be read: 0.png: bad; ")
    assert "; 4.png: bad; and 995 more; repair or remove them" in error


def test_skipped_files_are_left_out_of_memory_with_their_labels_and_named(root, caplog):
    damage(root, "train/blue/1.png", "train/red/0.png", "train/red/3.png")
    whole = items(load("imagefolder", make(root / "whole")))
    train, test = (load("imagefolder", root, part, on_bad_image="skip") for part in (True, False))
    kept = [0, 2, 3, 4, 5, 6, 7, 9, 10]
    assert train.labels.tolist() == [LABELS[i] for i in kept]
    assert torch.equal(items(train), whole[kept])
    assert len(test) == 12
    assert (test.mean, test.std) == (train.mean, train.std)
    assert train.mean == pytest.approx((items(train).double() / 255).mean((0, 2, 3)).tolist())
    (said,) = set(caplog.messages)
    assert said.startswith(f"imagefolder {root.name}/train: 3 of 12 images cannot be read, and are left out: {root}")


def test_a_class_of_which_nothing_can_be_read_is_refused(root):
    damage(root, *(f"train/red/{i}.png" for i in range(4)))
    with pytest.raises(BadImages, match=r"no image of red can be read, as .*red.0\.png"):
        load("imagefolder", root, on_bad_image="skip")


@pytest.mark.parametrize("name", ["imagefolder(memory=False)", "imagenet(image_size=12)"])
def test_skipped_files_of_streamed_data_do_not_keep_it_from_being_loaded(tmp_path, name):
    root = make(tmp_path, ("train", "val"))
    damage(root, "train/blue/0.png")
    (root / "train" / "red" / "1.png").write_bytes(b"")
    split = build(DATASETS, name, str(root), on_bad_image="skip")
    assert len(split) == len(split.images) == 12
    (batch,) = Loader(split, 12, train=False).epoch(1)
    assert batch.index.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]


def spell(root, name, form):
    """Rename the red class of one split to ``café`` in one form of Unicode, NFC or NFD."""
    (root / name / "red").rename(root / name / unicodedata.normalize(form, "café"))


def spell_twice(root):
    spell(root, "train", "NFC")
    (root / "train" / unicodedata.normalize("NFD", "café")).mkdir()


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def test_a_class_without_test_images_keeps_its_number(root, caplog):
    shutil.rmtree(root / "test" / "green")
    test = load("imagefolder", root, train=False)
    assert (test.classes, test.labels.tolist()) == (tuple(COLORS), [0] * 4 + [2] * 4)
    assert caplog.messages == [f"{root}/test: no images of 1 of 3 classes: green"]


@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
@pytest.mark.parametrize(
    ("change", "train", "said"),
    [
        (shutil.rmtree, True, "no folder .*data: give the root"),
        (rename("train", "images"), True, "no folder train/ in .*there is: images/, val/"),
        (rename("val", "other"), False, "val/ in .*there is: other/, train/"),
        (
            lambda root: [shutil.rmtree(path) for path in (root / "train").iterdir()],
            True,
            "no class folders in .*train",
        ),
        (rename("train/red/0.png", "train/red/0.txt"), True, "no images in .*red: .*; there are other files: 1 .*.txt"),
        (rename("train/red/0.png", "train/red/0.heic"), True, "images that this Pillow cannot read: 1 .*.heic"),
        (rename("val/red", "val/rouge"), True, "val has class folders that .*train lacks: rouge"),
        (rename("val/red", "val/rouge"), False, "val has class folders that .*train lacks: rouge"),
        (lambda root: (root / "val" / "more").mkdir(), True, "train lacks: more"),
        (lambda root: (root / "val" / "more").mkdir(), False, "train lacks: more"),
        (
            lambda root: (root / "train" / "rouge").symlink_to("red"),
            True,
            "by a link: its images would have two labels",
        ),
        (lambda root: (root / "train" / "rouge").symlink_to("."), True, "by a link: its images would have two labels"),
        (spell_twice, True, "train has two class folders café, spelled in two forms of Unicode"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_in_one_line(tmp_path, name, change, train, said):
    root = make(tmp_path / "data", ("train", "val"), count=1)
    change(root)
    with pytest.raises(UserError, match=said) as caught:
        load(name, root, train)
    assert "\n" not in str(caught.value)


HIDDEN = (".ipynb_checkpoints", "@eaDir", "__MACOSX")
OTHERS = ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.png", "notes.txt", "labels.csv", "more.txt")
LINKS = {"up": "..", "root": "../..", "other": "../red", "test": "../../test/blue", "deep/up": "../.."}


@pytest.mark.parametrize(
    ("said", "files", "links"),
    [
        (
            f"hidden folders: 6 ({', '.join(HIDDEN)})",
            [f"{at}/{name}/0.png" for at in ("blue", ".") for name in HIDDEN],
            {},
        ),
        ("links to folders that are read already: 1 (here); other files: 1 (it)", [], {"here": ".", "it": "it"}),
        ("links to folders that are read already: 5 (other, root, test, up)", [], LINKS),
        ("hidden files: 1 (._0.png); other files: 3 (.csv, .txt)", ["list.txt", *(f"blue/{n}" for n in OTHERS)], {}),
        ("images that this Pillow cannot read: 3 (.heic, .jxl)", ["blue/0.heic", "blue/1.HEIC", "blue/0.jxl"], {}),
        ("images beside the class folders: 2 (loose.heic, loose.png)", ["loose.heic", "loose.png"], {}),
    ],
)
def test_what_is_no_image_of_a_class_is_left_out_and_said_once(root, said, files, links, caplog):
    for file in files:
        (root / "train" / file).parent.mkdir(exist_ok=True)
        (root / "train" / file).touch()
    for name, target in links.items():
        (root / "train" / "blue" / name).parent.mkdir(exist_ok=True)
        (root / "train" / "blue" / name).symlink_to(target)
    for train in (True, True, False):
        assert load("imagefolder", root, train).labels.tolist() == LABELS
    assert caplog.messages == [f"{root}/train: 12 images are used, and left out are {said}"]


def test_a_class_may_be_a_link_and_a_folder_that_two_classes_link_to_is_read_once(root, caplog):
    train, pool, more = root / "train", root / "pool", root / "more"
    (train / "red").rename(pool)
    (train / "red").symlink_to(pool)
    (pool / "up").symlink_to(root)
    more.mkdir()
    for name in ("blue", "green"):
        (train / name / "0.png").rename(more / f"{name}.png")
        (train / name / "more").symlink_to(more)
    assert load("imagefolder", root).labels.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    (said,) = caplog.messages
    assert said.endswith("left out are links to folders that are read already: 2 (more, up)")


def test_every_suffix_that_pillow_reads_is_read(tmp_path):
    names = ["0.gif", "1.JFIF", "2.jpe", "3.bmp", "4.tga", "5.ppm", "6.webp"]
    names += [
        f"{suffix}.{suffix}" for suffix, codec in {"avif": "avif", "jp2": "jpg_2000"}.items() if features.check(codec)
    ]
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for name in names:
            format = {"1.JFIF": "JPEG", "2.jpe": "JPEG"}.get(name)
            Image.new("RGB", (12, 12), (200, 100, 50)).save(tmp_path / split / "a" / name, format)
    shown = items(load("imagefolder", tmp_path)).int()
    assert len(shown) == len(names)
    assert (shown - torch.tensor([200, 100, 50]).view(3, 1, 1)).abs().max() <= 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_a_folder_that_may_not_be_read_is_named(root):
    (root / "train" / "red" / "more").mkdir(0o000)
    with pytest.raises(UserError, match=r"red.more: Permission denied; its images cannot be listed"):
        load("imagefolder", root)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path, name, forms):
    root = make(tmp_path, ("train", "val"))
    for split, form in zip(("train", "val"), forms, strict=True):
        # A name that sorts before é and behind e: the order must be that of one form.
        (root / split / "green").rename(root / split / "cafz")
        spell(root, split, form)
    for train in (True, False):
        split = load(name, root, train, image_size=12)
        assert split.classes == ("blue", "cafz", unicodedata.normalize("NFC", "café"))
        assert split.labels.tolist() == LABELS
        assert items(split)[8, 0, 0, 0] == COLORS["red"][0]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("imagefolder", {"root": None}, "imagefolder: give the root folder"),
        ("imagefolder", {"image_size": 0}, "image_size=0"),
        ("imagefolder", {"memory": "yes"}, "memory='yes'"),
        ("imagefolder", {"white": 0}, "white=0: it must be a finite number above 0"),
        ("imagefolder", {"white": float("inf")}, "white=inf"),
        ("imagefolder", {"on_bad_image": "ignore"}, "on_bad_image must be stop or skip, not 'ignore'"),
        ("imagefolder", {"mean": (0.5, 0.5, 0.5)}, "both mean and std"),
        ("imagefolder", {"mean": (0.5,), "std": (0.5,)}, "mean has 1 numbers"),
        ("imagenet", {"root": None}, "imagenet: give the root folder"),
        ("imagenet", {"image_size": 0}, "image_size=0"),
        ("imagenet", {"min_area": 0.0}, "min_area=0"),
    ],
)
def test_options_that_cannot_be_are_refused(root, name, options, said):
    with pytest.raises(UserError, match=said):
        DATASETS.get(name)(**{"root": str(root), **options})


@pytest.fixture
def pictures(tmp_path):
    """Two classes of large pictures of several sizes."""
    generator = np.random.default_rng(0)
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 256, (60 + 10 * i, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.JPEG")
    return tmp_path


def test_imagenet_crops_at_random_in_training_and_the_center_in_evaluation(pictures):
    train, test = (load("imagenet", pictures, part, image_size=28) for part in (True, False))
    assert (train.mean, train.std, train.padding) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0)
    assert items(train).shape == items(test).shape == (6, 3, 28, 28)
    assert items(train).dtype == torch.uint8
    assert not torch.equal(items(train), items(train))
    with Image.open(pictures / "val" / "a" / "1.JPEG") as image:
        expected = np.asarray(v2.CenterCrop(28)(v2.Resize(32)(image.convert("RGB"))))
    assert np.abs(test.images[1].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1
    # Held out images are read as in evaluation.
    _, held = hold_out(limit(train, 6), 0.34)
    assert torch.equal(items(held), items(held))


def test_a_listing_is_kept_until_a_folder_changes(tmp_path, monkeypatch, caplog):
    make(tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "note.txt").touch()
    monkeypatch.setattr(listing, "WORTH_IT", 1)
    monkeypatch.setenv("PCKD_CACHE", str(tmp_path / "kept"))

    def listed():
        looked.clear()
        files = list_files(tmp_path / "data" / "train")
        return list(files.paths), files.labels.tolist(), files.classes

    looked = []
    scan = folders.scan
    monkeypatch.setattr(folders, "scan", lambda place: looked.append(str(place)) or scan(place))
    fresh = listed()
    # Too young to be kept: another change would have the same time.
    assert not (tmp_path / "kept").exists()
    for place in (tmp_path / "data" / "train").iterdir():
        os.utime(place, (1, 1))
    assert listed() == fresh
    (file,) = (tmp_path / "kept" / "listings").iterdir()
    assert str(tmp_path / "data" / "train" / "red") in looked
    assert listed() == fresh
    assert str(tmp_path / "data" / "train" / "red") not in looked
    file.write_bytes(file.read_bytes()[:100])
    assert listed() == fresh
    (tmp_path / "data" / "train" / "red" / "0.png").unlink()
    assert len(listed()[0]) == len(fresh[0]) - 1


def test_packed_names_are_the_names(tmp_path):
    names = ["a", "/b/\udcff.jpg", Stored.at("p.zip/x.png", b"bytes"), "d" * 300]
    for packed in (Paths(names), pickle.loads(pickle.dumps(Paths(names)))):
        assert list(packed) == names == packed[:]
        assert (packed[-1], packed[1:3]) == (names[-1], names[1:3])
        assert packed[2].read() == b"bytes"
        with pytest.raises(IndexError):
            packed[4]
    assert list(Paths([])) == []


def test_a_random_part_by_hand(pictures):
    """Of 100 x 200 pixels; the first box that lies in the image, of those that are drawn."""
    part = RandomPart(8, least=0.5, ratio=4)
    # All of the area as a square, 141 pixels, is too tall; a half of it, twice as wide as high, is 71 x 141.
    numbers = [0.999999, 0.0, *[0.0] * 8, 0.5, 0.75, *[0.0] * 8, 0.5, 0.999]
    assert part.box(100, 200, numbers) == (15, 59, 71, 141)
    # Nothing that is drawn lies in a strip of 10 x 1,000: its middle, of the ratio allowed.
    assert part.box(10, 1000, [0.999] * 10 + [0.5] * 10 + [0.0] * 2) == (0, 480, 10, 40)
    # The shares and the places that torchvision's boxes have in the mean.
    drawn = torch.rand(4000, RandomPart.draws, generator=torch.Generator().manual_seed(0)).tolist()
    torch.manual_seed(0)
    theirs = [v2.RandomResizedCrop(8).make_params([torch.empty(3, 60, 90)]) for _ in range(4000)]
    boxes = torch.tensor([RandomPart(8).box(60, 90, numbers) for numbers in drawn]).double()
    known = torch.tensor([[one[name] for name in ("top", "left", "height", "width")] for one in theirs]).double()
    assert (boxes.mean(0) - known.mean(0)).abs().max() < 1
    assert (boxes.std(0) - known.std(0)).abs().max() < 1
    # Cut first, then resized, as Pillow does.
    split = load("imagenet", pictures, image_size=28)
    top, left, tall, wide = split.images.arrange.box(60, 90, drawn[0])
    with Image.open(split.images.paths[0]) as image:
        cut = image.crop((left, top, left + wide, top + tall)).resize((28, 28), Image.Resampling.BILINEAR)
    shown = split.images.drawn(0, drawn[0]).permute(1, 2, 0).int() - torch.tensor(np.array(cut)).int()
    assert shown.abs().max() <= 1


@pytest.mark.parametrize("room", [2**40, 0], ids=["in shared memory that is kept", "without it"])
def test_imagenet_batches_are_reproducible_across_processes(pictures, room, monkeypatch):
    monkeypatch.setattr("pckd.data.loader._shared_room", lambda: room)
    split = load("imagenet", pictures, image_size=28)
    here = list(Loader(split, 2, train=True, views=4, seed=5).epoch(1))
    random.seed(1)
    there = list(Loader(split, 2, train=True, views=4, seed=5, num_workers=1).epoch(1))
    assert all(torch.equal(a.views, b.views) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("augment", ["flip", "flip+color_jitter+mixup+cutmix"])
def test_a_pool_of_streamed_images(pictures, augment):
    """An entry looks the same in every run, whatever process reads it and whatever batch it is in."""
    split, seen = load("imagenet", pictures, image_size=28), {}
    for seed, size, workers in ((0, 2, 0), (1, 3, 1)):
        loader = Loader(split, size, train=True, seed=seed, pool=2, augment=augment, num_workers=workers)
        for batch in (batch for epoch in (1, 2) for batch in loader.epoch(epoch)):
            facts = batch.labels if batch.targets is None else batch.targets
            keys = zip(batch.index.tolist(), batch.drawn.tolist(), strict=True)
            for key, shown in zip(keys, zip(batch.views, facts, strict=True), strict=True):
                assert all(map(torch.equal, seen.setdefault(key, shown), shown))
    assert len(seen) == 12
    assert not torch.equal(seen[0, 0][0], seen[0, 1][0])

"""Folders of image files, one folder a class: listing, decoding, and reading as they are needed."""

from __future__ import annotations

import functools
import io
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pckd.data.archive import Entry, Stored, is_archive, is_folder, read_bytes, scan, size_of
from pckd.data.check import log, say_once
from pckd.data.frames import Cut, Cutting, Frame
from pckd.data.listing import Listing, keep_listing, kept_listing
from pckd.data.paths import Paths
from registry import BadImages, UserError
from registry.errors import is_out_of_memory

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TRAINING = ("train", "training")
TESTING = ("test", "val", "valid", "validation", "testing")
"""Names of the splits' folders and lists, in any case. Of several the first is taken."""

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".tga", ".qoi"),
    *(".avif", ".heic", ".heif", ".hif", ".jxl"),
)
"""Of image files. Those that this Pillow cannot open are left out by name."""
_SYSTEM_FOLDERS = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")
"""Hold thumbnails and the like, no classes and no images of one. In lower case."""
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")
"""Of no interest to anyone. In lower case."""

_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
_TURNS |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
"""``PIL.Image.Transpose`` that makes an image of this EXIF orientation upright."""
_ORIENTATION = 0x0112
_MOST_PIXELS = 2**26
"""Of a JPEG that is decoded without Pillow, which refuses images that would fill the memory."""
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_UNKNOWN = "the file does not say which value is white"
_MOST_OF_14_BITS = 2**14 - 1
"""Images of 10, 12 and 14 bits are stored in 16 without a word. None of their values is above this one."""

_TINY, _KAGGLE = "val_annotations.txt", "LOC_val_solution.csv"
LISTS = (".csv", ".tsv", ".jsonl", ".parquet", ".tar")
"""Of files that list images, or hold them with their labels."""

_HIDDEN = "hidden folders"
_TOLD = 200_000
"""Files after which it is said how many are listed."""
Left = defaultdict[str, list[str]]
"""What is left out: reason to a name of each, or its suffix."""


class Files(NamedTuple):
    """The image files of one split."""

    paths: Sequence[str]
    """Sorted within each class; those of a list in its order."""
    labels: Tensor
    """[M], int64."""
    classes: tuple[str, ...]
    """In Unicode's form NFC, sorted."""


def _find_splits(root: str | Path, testing: Sequence[str] = TESTING) -> tuple[Path, Path | None]:
    """The folders of the training split and of the test split; None where there is none to measure on.

    A root that holds class folders and neither of the two is the training split itself, and a warning says so. Of
    several test folders the first counts that has labels: class folders of the training split, or a list of them.
    """
    base = root_of(root)
    folders = [entry.name for entry in scan(base) if _is_folder(entry)]
    training, others = named(folders, TRAINING), named(folders, TESTING)
    if training:
        split, tests = base / training[0], [base / name for name in named(folders, testing)]
        if len(tests) > 1:
            labelled = [test for test in tests if listed_images(test) is not None or _share_classes(split, test)]
            if labelled and labelled[0] != tests[0]:
                say_once(f"{tests[0]} has no labels, so that {labelled[0]} is the test split")
            tests = labelled or tests
        return split, tests[0] if tests else None
    some = (next(_images_below(str(base / name), _readable(), set(), defaultdict(list)), "") for name in folders)
    if others or not any(some):
        raise no_split(base, "folder train/")
    for name in folders:
        inside = [entry.name for entry in scan(base / name) if _is_folder(entry)]
        if named(inside, TRAINING) and named(inside, TESTING):
            raise UserError(f"no folder train/ in {base}, but in {base / name}: give that one as the root")
    count = len(class_folders(base))
    say_once(f"{base}: no folder train/, so that its {count:,} folders are taken for the classes of a training split")
    return base, None


def root_of(root: str | Path) -> Path:
    """The root of a data set, a folder or an archive; of an archive that holds one folder only, that folder."""
    base = Path(root).expanduser()
    if not is_folder(base):
        raise UserError(f"no folder {base}: give the root that holds train/ and test/ or val/")
    packed = is_archive(base)
    while packed:
        inside = [entry for entry in scan(base) if not _is_hidden(entry.name)]
        if len(inside) != 1 or not _is_folder(inside[0]) or named([inside[0].name], (*TRAINING, *TESTING)):
            break
        base = base / inside[0].name
    return base


def named(there: Collection[str], names: Sequence[str]) -> list[str]:
    """Those of the names that are there: spelled as here first, then in another case."""
    found = [name for name in there if name.lower() in names]
    return sorted(found, key=lambda name: (name not in names, names.index(name.lower()), name))


def no_split(base: Path, wanted: str) -> UserError:
    """The error that says which split, ``"folder train/"`` or another thing, is not there, and what is."""
    there = [entry.name + ("/" if _is_folder(entry) else "") for entry in scan(base)]
    lists = wanted.startswith("folder") and any(name.lower().endswith(LISTS) for name in there)
    advice = "; lists, parquet files and shards are for the data set filelist" if lists else ""
    return UserError(f"no {wanted} in {base}; there is: {_few(there, 8) or 'nothing'}{advice}")


def find_split(root: str | Path, train: bool, testing: Sequence[str] = TESTING) -> tuple[Path, Path]:
    """The folder of the training split, and that of the wanted one.

    Raises:
        UserError: a split is not there, or the test split has a class that the other has not.
    """
    training, test = _find_splits(root, testing)
    if test is not None:
        _check_classes(training, test)
    elif not train:
        base = root_of(root)
        if training == base:
            advice = "measure on a share of its images with --val-fraction 0.1"
            raise UserError(f"{base} holds class folders, and no folder train/ or test/: {advice}")
        raise no_split(base, "folder " + " or ".join(f"{name}/" for name in testing if name in ("test", "val")))
    return training, training if train or test is None else test


def listed_images(split: Path) -> list[tuple[str, str]] | None:
    """Path and class of each image of a split that has a list instead of class folders; None for all others.

    Known are ``val`` of Tiny-ImageNet (``val_annotations.txt``) and of ImageNet (Kaggle's ``LOC_val_solution.csv``, in
    the folder or in one of four above it).
    """
    there = {entry.name: entry for entry in scan(split) if not _is_hidden(entry.name)}
    folders = [name for name, entry in there.items() if _is_folder(entry)]
    if folders == ["images"] and _TINY in there:
        return _pairs(there[_TINY].path, "\t", os.path.join(split, "images"))
    if not folders and any(name.startswith("ILSVRC2012_val_") for name in there):
        places = [os.path.join(place, _KAGGLE) for place in (split, *list(split.parents)[:4])]
        if found := [path for path in resolve(places) if path]:
            return _pairs(found[0], ",", str(split))[1:]
        advice = f"put {_KAGGLE} beside it, or sort its images into class folders"
        raise UserError(f"{split} holds ImageNet's validation images without their classes: {advice}")
    return None


def _pairs(path: str, separator: str, folder: str) -> list[tuple[str, str]]:
    """The first two fields of each line: a file, which lies in ``folder``, and the first word of its class."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, rest = line.partition(separator)
        if not (words := rest.split()):
            raise UserError(f"{path}: line {number} has no file and class, but {line[:80]!r}")
        found.append((os.path.join(folder, name if "." in name else f"{name}.JPEG"), words[0]))
    return found


def read_text(path: str) -> str:
    """The content of a text file in UTF-8, with or without a byte-order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from error


def resolve(paths: Sequence[str]) -> list[str | None]:
    """Each path as its folder lists it, or None where it is not there; folders may lie in archives."""
    known: dict[str, dict[str, str]] = {}

    def one(path: str) -> str | None:
        folder, name = os.path.split(os.path.normpath(path))
        if folder not in known:
            there = scan(folder or ".") if is_folder(folder or ".") else []
            known[folder] = {entry.name: entry.path for entry in there if not _is_folder(entry)}
        return known[folder].get(name)

    return [path if isinstance(path, Stored) else one(path) for path in paths]


def files_of(rows: Sequence[tuple[str, str]], classes: Sequence[str], where: str, skip: bool = False) -> Files:
    """The files of a list.

    Args:
        rows: path and class of each image. classes: those that there are. where: the list, for messages.
        skip: leave out files that are not there, and warn of them.

    Raises:
        BadImages: files are not there.
        UserError: a class that there is not, or a file with two classes.
    """
    paths = resolve([path for path, _ in rows])
    if missing := [path for (path, _), found in zip(rows, paths, strict=True) if found is None]:
        if not skip:
            raise BadImages(*(f"{path}: not there, and listed in {where}" for path in missing))
        say_once(f"{where}: {len(missing):,} of {len(rows):,} files are not there, and are left out: {_few(missing)}")
    kept = [(path, label) for path, (_, label) in zip(paths, rows, strict=True) if path is not None]
    if not kept:
        raise UserError(f"{where}: it lists no images" + (" that are there" if missing else ""))
    number = {name: k for k, name in enumerate(classes)}
    if unknown := [label for _, label in kept if label not in number]:
        known = f"{len(unknown):,} of {len(kept):,} images are of classes that the training split has not"
        raise UserError(f"{where}: {known}: {_few(set(unknown))}; it has {_few(classes)}")
    once = dict(kept)
    if two := [path for path, label in kept if once[path] != label]:
        raise UserError(f"{where}: {len(two):,} files are listed with two classes: {_few(two)}")
    if len(once) < len(kept):
        say_once(f"{where}: {len(kept) - len(once):,} of its {len(kept):,} lines name a file that another one names")
    return Files([path for path, _ in kept], torch.tensor([number[label] for _, label in kept]), tuple(classes))


def class_folders(split: Path) -> dict[str, str]:
    """The class folders of a split, sorted: name in Unicode's form NFC to the folder as the disk spells it.

    One name has several spellings: macOS and the programs that pack its archives write ``é`` as two characters.
    """
    spelled: dict[str, str] = {}
    for entry in scan(split):
        if not _is_folder(entry) or _is_hidden(entry.name):
            continue
        name = unicodedata.normalize("NFC", entry.name)
        if name in spelled:
            text = f"{split} has two class folders {name}, spelled in two forms of Unicode"
            raise UserError(f"{text}; move the images of one into the other")
        spelled[name] = entry.name
    if not spelled:
        raise UserError(f"no class folders in {split}: it must have one folder of images a class")
    places = {os.path.realpath(split / spelled[name]): name for name in sorted(spelled, reverse=True)}
    for name, folder in spelled.items():
        for outer in _path_up(os.path.realpath(split / folder)):
            if places.get(outer, name) != name:
                raise UserError(
                    f"class folder {split / folder} is the class folder {places[outer]} or lies in it, by a link: its "
                    "images would have two labels; remove the link"
                )
    return dict(sorted(spelled.items()))


def list_files(split: Path, training: Path | None = None, skip: bool = False) -> Files:
    """All image files below ``split/<class>/``, in a fixed order; or those of its list (:func:`listed_images`).

    Links to folders are followed, but for those that lead back into the data set. Hidden folders and those of systems
    (``.ipynb_checkpoints``, ``@eaDir``, ``__MACOSX``) are not looked into. A warning counts what is left out. A class
    folder without an image is refused.

    Args:
        training: the split whose class folders are the classes; by default this one. skip: see :func:`files_of`.
    """
    classes = tuple(class_folders(training or split))
    if training not in (None, split) and (listed := listed_images(split)) is not None:
        return files_of(listed, classes, str(split), skip)
    folders = class_folders(split)
    left: Left = defaultdict(list)
    for entry in scan(split):
        if _is_folder(entry):
            if _is_hidden(entry.name):
                left[_HIDDEN].append(entry.name)
        elif _suffix(entry.name) in _SUFFIXES:
            left["images beside the class folders"].append(entry.name)
    # What has its label already: a link into it, or to a folder that holds it, would give its images a second one.
    known = {os.path.realpath(split / folder) for folder in folders.values()}
    for name in (*TRAINING, *TESTING):
        known |= {os.path.realpath(split.parent / spelled) for spelled in (name, name.capitalize())}
    listing = _listing(split, list(folders.values()), known)
    for reason, names in listing.left.items():
        left[reason] += names
    if left:
        say_once(f"{split}: {len(listing.paths):,} images are used, and left out are {_counted(left)}")
    numbers = torch.tensor([k for k, name in enumerate(classes) if name in folders])
    return Files(listing.paths, torch.repeat_interleave(numbers, torch.tensor(listing.counts)), classes)


def _listing(split: Path, folders: list[str], known: set[str]) -> Listing:
    """What lies below these class folders, as it was kept, or listed now."""
    readable = _readable()
    key = {"split": os.path.abspath(split), "folders": folders, "known": sorted(known), "readable": readable}
    if (kept := kept_listing(key)) is not None:
        return kept
    paths: list[str] = []
    counts: list[int] = []
    left: Left = defaultdict(list)
    seen: dict[str, int] = {}
    for folder in folders:
        here: Left = defaultdict(list)
        found = sorted(_images_below(os.path.join(split, folder), readable, known, here, seen))
        if not found:
            there = f"; there are {_counted(here)}" if here else ""
            usual = f"each class folder must have one ({', '.join(readable)})"
            raise UserError(f"no images in {split / folder}: {usual}{there}")
        if len(paths) // _TOLD < (len(paths) + len(found)) // _TOLD:
            log.info("%s: %s files are listed so far", split, f"{len(paths) + len(found):,}")
        paths += found
        counts.append(len(found))
        for reason, names in here.items():
            left[reason] += names
    listing = Listing(paths, counts, dict(left), seen)
    if all(seen.values()):
        keep_listing(key, listing)
    return listing


def find_unlabeled(root: str | Path) -> tuple[Path, Path, Path | None, Path | None]:
    """The root; where it has its images without labels: ``unlabeled/``, or else ``train/``, or else itself; its test
    split; and a training split of class folders.
    """
    base = root_of(root)
    folders = [entry.name for entry in scan(base) if _is_folder(entry)]
    training, others, tests = (named(folders, names) for names in (("unlabeled",), TRAINING, TESTING))
    labeled = base / others[0] if others and has_classes(base / others[0]) else None
    images = next((base / name for name in (*training, *others)), base)
    return base, images, base / tests[0] if tests else None, labeled


def has_classes(split: Path) -> bool:
    """Whether a split's images lie in folders of classes."""
    return any(_is_folder(entry) and not _is_hidden(entry.name) for entry in scan(split))


def list_unlabeled(split: Path, without: Path | None = None) -> Files:
    """All image files below a folder, at any depth and without labels, but for those below ``without``."""
    left: Left = defaultdict(list)
    other = "" if without is None else os.path.join(without, "")
    found = _images_below(str(split), _readable(), set(), left)
    paths = sorted(path for path in found if not other or not path.startswith(other))
    if not paths:
        raise UserError(f"no images in {split}{left and f'; there are {_counted(left)}'}")
    if left:
        say_once(f"{split}: {len(paths):,} images are used, and left out are {_counted(left)}")
    return Files(paths, torch.full((len(paths),), -1), ())


def images_below(top: str) -> list[str]:
    """The image files below a folder that are no system's, sorted."""
    return sorted(_images_below(top, _readable(), set(), defaultdict(list)))


def _readable() -> list[str]:
    """What this Pillow, with the plug-ins that it has now, can open."""
    from PIL import Image

    formats = Image.registered_extensions()
    return [suffix for suffix in _SUFFIXES if formats.get(suffix) in Image.OPEN]


def _images_below(
    top: str, readable: Container[str], known: set[str], left: Left, seen: dict[str, int] | None = None
) -> Iterator[str]:
    """The image files below a folder; adds to ``known`` where links led, and to ``left`` what is left out.

    Args:
        seen: gets the folders, and when each was last changed, in nanoseconds; 0 in an archive.
    """
    folders = [top]
    while folders:
        folder = folders.pop()
        if seen is not None:
            seen[folder] = os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0
        for entry in sorted(scan(folder), key=attrgetter("name")):
            suffix = _suffix(entry.name)
            if _is_folder(entry):
                if _is_hidden(entry.name):
                    left[_HIDDEN].append(entry.name)
                elif entry.is_symlink() and _leads_back(place := os.path.realpath(entry.path), known):
                    left["links to folders that are read already"].append(entry.name)
                else:
                    if entry.is_symlink():
                        known.add(place)
                    folders.append(entry.path)
            elif entry.name.startswith("."):
                if suffix in _SUFFIXES:
                    left["hidden files"].append(entry.name)
            elif suffix in readable:
                yield entry.path
            elif suffix in _SUFFIXES:
                left["images that this Pillow cannot read"].append(suffix)
            elif entry.name.lower() not in _SYSTEM_FILES:
                left["other files"].append(suffix or entry.name)


def _leads_back(place: str, known: set[str]) -> bool:
    """Whether a folder is one of the known, lies in one, or holds one."""
    below = os.path.join(place, "")
    return not known.isdisjoint(_path_up(place)) or any(other.startswith(below) for other in known)


def _is_folder(entry: os.DirEntry[str] | Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_image(name: str) -> bool:
    """Whether it is called like an image that this Pillow can read."""
    return _suffix(name) in _readable()


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in _SYSTEM_FOLDERS


def _suffix(name: str) -> str:
    """As os.path.splitext has it, which takes three times as long for a name without folders."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 and name[:dot].strip(".") else ""


def _path_up(path: str) -> list[str]:
    """A folder and all that it lies in."""
    return [path, *map(str, Path(path).parents)]


def _counted(left: Left) -> str:
    """``"hidden folders: 3 (.cache, @eaDir); other files: 1 (.txt)"``."""
    return "; ".join(f"{reason}: {len(names):,} ({_few(set(names))})" for reason, names in left.items())


def _share_classes(one: Path, other: Path) -> bool:
    try:
        return not class_folders(one).keys().isdisjoint(class_folders(other))
    except UserError:  # it has no class folders
        return False


def _few(names: Collection[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (", ..." if len(names) > most else "")


def _check_classes(training: Path, test: Path) -> None:
    """Refuse a test split with classes that training does not have; say which ones it lacks itself."""
    if listed_images(test) is not None:
        return
    known, found = (class_folders(split).keys() for split in (training, test))
    if more := found - known:
        raise UserError(f"{test} has class folders that {training} lacks: {_few(more)}; both must have the same")
    if absent := known - found:
        say_once(f"{test}: no images of {len(absent):,} of {len(known):,} classes: {_few(absent)}")


def read_image(path: str, white: float | None = None) -> Tensor:
    """Decode a file to uint8 [H, W, 3]: plain RGB, upright, as a viewer shows it on a white page.

    Args:
        path: the file. Of several frames or pages the first is read.
        white: the value that is white in gray images of more than 8 bits; see ``imagefolder``.

    Raises:
        BadImages: the file cannot be read as an image.
        UserError: which value is white is not known, or exceeded.
    """
    from PIL import Image

    try:
        # A buffer that may be written to, which torch takes as it is.
        data = bytearray(path.read()) if isinstance(path, Stored) else np.fromfile(path, np.uint8).data
        if (pixels := _decoded_jpeg(data)) is not None:
            return pixels
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(_plain(image, white, path)))
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        empty = (isinstance(path, Stored) or os.path.isfile(path)) and size_of(path) == 0
        reason = "the file is empty" if empty else " ".join(str(error).split()) or type(error).__name__
        raise BadImages(f"{path}: not a readable image ({reason})") from error


def _decoded_jpeg(data: bytearray | memoryview) -> Tensor | None:
    """The pixels of a usual JPEG by torchvision: those that Pillow gives, in half the time. None of anything else."""
    if (decode := _jpeg_decoder()) is None or not _is_usual_jpeg(data):
        return None
    try:
        pixels: Tensor = decode(torch.frombuffer(data, dtype=torch.uint8))
    except RuntimeError:
        return None  # Pillow reads it, or says why it can't be read.
    return pixels.permute(1, 2, 0)


@functools.cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchvision's, in RGB; None where it has none: it is optional there, and will leave."""
    from PIL import Image

    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        decode = functools.partial(decode_jpeg, mode=ImageReadMode.RGB)
        tried = io.BytesIO()
        Image.new("RGB", (1, 1)).save(tried, "JPEG")
        decode(torch.frombuffer(bytearray(tried.getvalue()), dtype=torch.uint8))
    except (ImportError, RuntimeError, AttributeError):
        return None
    return decode


def _is_usual_jpeg(data: bytearray | memoryview) -> bool:
    """Whether it has 8 bits, is gray or in colors, and lies upright."""
    at, exif = 2, False
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and at + 9 < len(data):
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + x : at + x + 2], "big") for x in (5, 7))
            if data[at + 4] != 8 or data[at + 9] not in (1, 3) or height * width > _MOST_PIXELS:
                return False
            return not exif or _lies_upright(data)
        exif |= kind == 0xE1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _lies_upright(data: bytearray | memoryview) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _orientation(image) not in _TURNS


def _source(path: str) -> Any:
    """What Pillow opens."""
    return io.BytesIO(path.read()) if isinstance(path, Stored) else path


def _plain(image: Any, white: float | None, path: str) -> Any:
    """An opened ``PIL.Image`` upright, on white, as RGB of 8 bits a channel."""
    from PIL import Image

    # How the pixels lie in the file; forgotten when they are decoded.
    packing = image.tile[0][3] if image.tile else ""
    image.load()
    turn = _TURNS.get(_orientation(image))
    picture = image if turn is None else image.transpose(Image.Transpose[turn])
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(_from_deep_gray(np.asarray(picture), image, packing, white, path)).convert("RGB")
    clear = picture.info.get("transparency")
    if ";16" in str(packing):
        # Of each 16 bits Pillow keeps the upper 8.
        highest = max(high for _, high in picture.getextrema())
        if 0 < highest <= _MOST_OF_14_BITS >> 8 and white != 65535:
            raise UserError(
                f"{path}: a 16-bit color image of values up to {highest * 256 + 255}, and {_UNKNOWN}; "
                "convert the image to 8 bits, or say imagefolder(white=65535) where it uses all 16 bits"
            )
        if isinstance(clear, tuple):
            picture.info["transparency"] = tuple(value >> 8 for value in clear)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("LA", "PA", "RGBA") or clear is not None:
        picture = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing, and the pixels are whole
        return 1


def _from_deep_gray(values: np.ndarray, image: Any, packing: Any, white: float | None, path: str) -> np.ndarray:
    """Gray values of 16 or 32 bits [H, W] of an image as uint8; ``packing``: how they lie in its file."""
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    low, high = values.min(), values.max()
    tags = image.tag_v2 if image.format == "TIFF" else {}
    floating = image.mode == "F"
    of_16_bits = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    # The white of the smallest usual range that has the brightest value.
    usual = next((white for white in (1, 255, 1023, 4095, 16383, 65535) if high <= white), int(high))
    advice = f"say it, as in imagefolder(white={usual}), or convert the image to 8 bits"
    top: float
    if tags.get(_TIFF_BITS) == (12,):
        top = 4095
    elif image.format == "PPM" and not floating and isinstance(packing, tuple) and packing[1] != 65535:
        top = 65535  # to which Pillow has scaled what the file's head calls white
    elif white is not None:
        top, advice = white, "give the one that holds for all images, or convert the image to 8 bits"
    elif floating:
        top = 1
    elif of_16_bits:
        # Values of fewer bits are often stored in 16: a dark image, or one of those?
        top = 65535 if high > _MOST_OF_14_BITS else 0
        advice += " (white=65535 where it uses all 16 bits)"
    else:
        top = 255
    beyond = top / 510 if floating else 0  # is rounded away
    if low < -beyond or high > top + beyond:
        kind = "a floating-point" if floating else "a 16-bit" if of_16_bits else "an integer"
        known = _UNKNOWN if white is None else f"white is {white:g}"
        if low < -beyond:
            known, advice = "black is 0", "convert the image to 8 bits"
        raise UserError(f"{path}: {kind} gray image of values from {low:g} to {high:g}, and {known}; {advice}")
    # Of 16 bits the upper 8, as Pillow does in color.
    scaled = values // 256 if top == 65535 else np.rint(values * (255 / max(top, 1e-9)))
    pixels = scaled.clip(0, 255).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:
        pixels = 255 - pixels  # 0 is white; Pillow inverts images of up to 8 bits only
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = 255
    return pixels


def image_size_of(path: str) -> tuple[int, int]:
    """(height, width) of the upright image, read from the file's head where that is enough."""
    from PIL import Image

    try:
        with Image.open(_source(path)) as image:
            height, width = image.height, image.width
            if _orientation(image) < 5:
                return height, width
            # Of one that lies on its side, it depends on the format and on Pillow which of the two is the height.
    except Exception:
        pass
    shape = read_image(path).shape
    return shape[0], shape[1]


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the positions 0 to ``count`` - 1, evenly spaced, so that every class has its share."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def decode_all(
    paths: Sequence[str],
    size: tuple[int, int],
    arrange: Frame | None = None,
    white: float | None = None,
    skip: bool = False,
) -> tuple[Tensor, dict[int, str]]:
    """Decode files with a few threads, each of ``size`` (H, W) once arranged.

    Returns:
        uint8 [M, 3, H, W] (in memory [M, H, W, 3]), and the files that cannot be read: position to reason. ``skip``
        leaves these out; otherwise they are raised, all at once.
    """
    out = torch.empty((len(paths), *size, 3), dtype=torch.uint8)
    bad: dict[int, str] = {}

    def work(rows: range) -> None:
        for row in rows:
            try:
                out[row] = _sized(paths[row], size, arrange, white)
            except BadImages as error:
                bad[row] = error.reasons[0]

    # Several pieces a thread, so that one of large files does not hold up the rest.
    pieces = [range(start, min(start + 256, len(paths))) for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(work, pieces))
    bad = dict(sorted(bad.items()))
    if bad and not skip:
        raise BadImages(*bad.values())
    if bad:
        out = out[[row for row in range(len(paths)) if row not in bad]]
    return out.permute(0, 3, 1, 2), bad


def _sized(
    path: str, size: tuple[int, int], arrange: Frame | None, white: float | None, drawn: Sequence[float] = ()
) -> Tensor:
    pixels = read_image(path, white)
    if arrange is not None:
        pixels = arrange(pixels, drawn)
    if tuple(pixels.shape[:2]) != size:
        height, width = pixels.shape[:2]
        raise UserError(f"{path} is {width}x{height} and others are {size[1]}x{size[0]}; give image_size to resize all")
    return pixels


def image_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 images [M, C, H, W] scaled to [0, 1]."""
    pixels = images.transpose(0, 1).flatten(1)
    # By way of the 256 possible values: exact, and no copy in floating point.
    value = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in pixels:
        share = torch.bincount(channel, minlength=256).double() / channel.numel()
        center = float((share * value).sum())
        mean.append(center)
        std.append(max(float((share * (value - center) ** 2).sum()) ** 0.5, 1e-3))
    return tuple(mean), tuple(std)


class ImageFiles(Dataset):
    """Reads one file an item: a uint8 tensor [3, H, W], in memory [H, W, 3].

    Args:
        paths: the files, which may lie in archives (:class:`pckd.data.archive.Stored`).
        size: (H, W) of every item.
        arrange: brings decoded pixels to that size.
        plain: the same without randomness, for :meth:`evaluation`; ``arrange`` by default.
        white: see :func:`read_image`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        size: tuple[int, int],
        arrange: Frame | None,
        plain: Frame | None = None,
        white: float | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, Paths) else Paths(paths)
        self.size = size
        self.arrange = arrange
        self.plain = plain or arrange
        self.white = white

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def draws(self) -> int:
        """How many random numbers an item takes."""
        return getattr(self.arrange, "draws", 0)

    def __getitem__(self, i: int) -> Tensor:
        return self.drawn(i, torch.rand(self.draws).tolist() if self.draws else ())

    def drawn(self, i: int, numbers: Sequence[float]) -> Tensor:
        """Item i, as given random numbers of [0, 1) say."""
        return _sized(self.paths[i], self.size, self.arrange, self.white, numbers).permute(2, 0, 1)

    @property
    def cuts(self) -> bool:
        """Whether an item is a part that may be resized later (:meth:`cut`)."""
        return isinstance(self.arrange, Cutting)

    def cut(self, i: int, numbers: Sequence[float]) -> Cut:
        """Item i before it is resized."""
        assert isinstance(self.arrange, Cutting)
        return self.arrange.cut(read_image(self.paths[i], self.white), numbers)

    def evaluation(self) -> ImageFiles:
        """The same files, read without augmentation."""
        return ImageFiles(self.paths, self.size, self.plain, white=self.white)

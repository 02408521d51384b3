"""Layouts of data on disk: each is the same data set as the plain folder that it was made of."""

import csv
import json
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pckd.data import Loader
from pckd.data.archive import Stored, read_bytes
from pckd.data.load import load_data
from pckd.engine.fingerprint import split_fingerprint
from pckd.testing import check_dataset
from registry import DATASETS, BadImages, UserError, build

CLASSES = ("blue", "green", "red")
COUNT = 3


def make(root, splits=("train", "test"), form="{split}/{name}/{i}.png", size=(12, 12)):
    """Images of a color each that tells the class, the number and, by the green value, the split."""
    for at, split in enumerate(splits):
        for k, name in enumerate(CLASSES):
            for i in range(COUNT):
                path = root / form.format(split=split, name=name, i=i, k=k)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, (100 * k + i, 7 * at, 5)).save(path)
    return root


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "pictures")


def load(name, root, train=True, **options):
    return build(DATASETS, name, str(root), train, **options)


def colors(split):
    return torch.stack([split.images[i][:, 0, 0] for i in range(len(split))]).tolist()


def expected(train):
    return [[100 * k + i, 0 if train else 7, 5] for k in range(3) for i in range(COUNT)]


def holds(name, root, classes=CLASSES, **options):
    """Both splits have the images of :func:`make` in their order, in memory and streamed."""
    for memory in (True, False):
        for train in (True, False):
            split = load(name, root, train, memory=memory, **options)
            assert split.classes == classes
            assert split.labels.tolist() == [0] * COUNT + [1] * COUNT + [2] * COUNT
            assert colors(split) == expected(train)


def refuses(said, name, root, train=True, **options):
    with pytest.raises(UserError, match=said) as caught:
        load(name, root, train, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# Archives


def files_below(top):
    return sorted(path for path in top.rglob("*") if path.is_file())


def zipped(top, archive, prefix="", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(archive, "w", compression) as target:
        for path in files_below(top):
            target.write(path, f"{prefix}{path.relative_to(top)}")
    return archive


def tarred(top, archive, prefix="", mode="w", order=1):
    with tarfile.open(archive, mode) as target:
        for path in files_below(top)[::order]:
            target.add(path, f"{prefix}{path.relative_to(top)}")
    return archive


def linked(top, archive):
    """A tar of which one image is a hard link and another file a symbolic one."""
    path = tarred(top, archive)
    with tarfile.open(path, "a") as target:
        for name, kind, to in (
            ("train/blue/0.png", tarfile.REGTYPE, None),
            ("train/blue/1.png", tarfile.LNKTYPE, "train/blue/1.png"),
            ("train/blue/9.png", tarfile.SYMTYPE, "0.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, to or ""
            content = top / name if kind == tarfile.REGTYPE else None
            info.size = content.stat().st_size if content else 0
            target.addfile(info, content.open("rb") if content else None)
    return path


ARCHIVES = {
    "stored": lambda top, at: zipped(top, at / "pictures.zip"),
    "deflated": lambda top, at: zipped(top, at / "p.ZIP", "pictures/", zipfile.ZIP_DEFLATED),
    "backslashes": lambda top, at: zipped(top, at / "p.zip", "some\\"),
    "tar": lambda top, at: tarred(top, at / "pictures.tar"),
    "tar of a folder": lambda top, at: tarred(top, at / "p.tar", "./pictures/", order=-1),
    "long names": lambda top, at: tarred(top, at / "p.tar", f"{'x' * 90}/{'y' * 90}/"),
    "links": lambda top, at: linked(top, at / "p.tar"),
    "into the archive": lambda top, at: zipped(top, at / "p.zip", "other/in/") / "other" / "in",
}


@pytest.mark.parametrize("pack", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_is_the_folder_that_was_packed(root, tmp_path, pack):
    plain = load("imagefolder", root, memory=False)
    packed = pack(root, tmp_path)
    before = split_fingerprint(plain)
    root.rename(tmp_path / "gone")
    holds("imagefolder", packed)
    split = load("imagefolder", packed, memory=False)
    assert split_fingerprint(split) == before
    assert all(isinstance(path, Stored) for path in split.images.paths)


def test_what_is_no_image_of_a_class_is_left_out_of_an_archive_too(root, tmp_path, caplog):
    (root / "train" / "blue" / "__MACOSX").mkdir()
    (root / "train" / "blue" / "__MACOSX" / "0.png").touch()
    (root / "train" / "blue" / "notes.txt").touch()
    archive = zipped(root, tmp_path / "p.zip")
    holds("imagefolder", archive)
    said = f"{archive}/train: 9 images are used, and left out are hidden folders: 1 (__MACOSX); other files: 1 (.txt)"
    assert caplog.messages == [said]


def test_of_a_name_that_occurs_twice_the_last_counts_and_links_are_named(root, tmp_path, caplog):
    archive = linked(root, tmp_path / "p.tar")
    holds("imagefolder", archive)
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "2 files occur more than once, of which the last counts (train/blue/0.png, train/blue/1.png)",
        "1 links are left out (train/blue/9.png)",
    ]


def encrypt(archive):
    """Sets the flag of every entry of the index, as a program that encrypts does."""
    data = bytearray(archive.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 1)
    archive.write_bytes(data)
    return archive


def cut(archive, at):
    archive.write_bytes(archive.read_bytes()[:at])
    return archive


def tar_border(archive):
    """Where the last file of a tar begins: cut there, nothing shows but the missing end mark."""
    with tarfile.open(archive) as opened:
        return opened.getmembers()[-1].offset


BAD_ARCHIVES = {
    "cut zip": (lambda top, at: cut(zipped(top, at / "p.zip"), 900), r"p\.zip: cannot be read as an archive"),
    "no zip": (lambda top, at: cut(zipped(top, at / "p.zip"), 0), r"p\.zip: cannot be read as an archive"),
    "cut tar": (lambda top, at: cut(tarred(top, at / "p.tar"), 6000), r"p\.tar: cannot be read as an archive \("),
    "tar cut between files": (
        lambda top, at: cut(made := tarred(top, at / "p.tar"), tar_border(made)),
        r"p\.tar: cannot be read as an archive \(it is cut off\)",
    ),
    "no tar": (lambda top, at: cut(tarred(top, at / "p.tar"), 0), r"p\.tar: cannot be read as an archive"),
    "encrypted": (lambda top, at: encrypt(zipped(top, at / "p.zip")), r"p\.zip: test/blue/0\.png is encrypted"),
    "rare": (lambda top, at: zipped(top, at / "p.zip", "", zipfile.ZIP_LZMA), "compressed in a rare way"),
    "tar.gz": (lambda top, at: tarred(top, at / "p.tar.gz", mode="w:gz"), r"p\.tar\.gz: only \.zip and \.tar"),
    "gz called tar": (lambda top, at: tarred(top, at / "p.tar", mode="w:gz"), r"p\.tar: cannot be read"),
    "no split": (lambda top, at: zipped(top / "train" / "red", at / "p.zip"), r"no folder train/ in .*p\.zip; there"),
    "no such folder": (lambda top, at: zipped(top, at / "p.zip") / "no", r"no folder .*p\.zip.no: give the root"),
}


@pytest.mark.parametrize(("pack", "said"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused_in_one_line(root, tmp_path, pack, said):
    refuses(said, "imagefolder", pack(root, tmp_path))


def flip(archive, name):
    """Change a byte in the middle of a stored file."""
    data = bytearray(archive.read_bytes())
    data[data.find(b"IDAT", data.find(name)) + 8] ^= 255
    archive.write_bytes(data)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_that_changes_under_the_run_is_not_misread(root, tmp_path, pack):
    archive = pack(root, tmp_path / f"p.{pack.__name__[:3]}")
    split = load("imagefolder", archive, memory=False)
    # The same names and sizes, in another order.
    with zipfile.ZipFile(archive, "w") if pack is zipped else tarfile.open(archive, "w") as target:
        for path in reversed(files_below(root)):
            (target.write if pack is zipped else target.add)(path, path.relative_to(root))
    with pytest.raises(
        BadImages, match=r"p\.(zip|tar).train.blue.0\.png: cannot be read \(.* is damaged, or has changed"
    ):
        split.images[0]
    archive.unlink()
    with pytest.raises(BadImages, match=r"blue.0\.png: cannot be read \(.*No such file"):
        split.images[0]


def test_a_damaged_member_of_a_zip_is_a_bad_image(root, tmp_path):
    archive = zipped(root, tmp_path / "p.zip")
    flip(archive, b"train/green/1.png")
    error = refuses(r"green.1\.png: cannot be read \(.*damaged", "imagefolder", archive)
    assert len(error.reasons) == 1
    for memory in (True, False):
        split = load("imagefolder", archive, memory=memory, on_bad_image="skip")
        shown = [i for batch in Loader(split, 4, train=False).epoch(1) for i in batch.labels.tolist()]
        assert shown == [0, 0, 0, 1, 1, 2, 2, 2]
        assert split_fingerprint(split)


# Names of splits, and splits without class folders


@pytest.mark.parametrize(
    "names", [("train", "valid"), ("Train", "Validation"), ("TRAIN", "Test"), ("training", "testing"), ("train", "val")]
)
def test_splits_go_by_several_names(tmp_path, names):
    make(tmp_path, names)
    holds("imagefolder", tmp_path)


def test_of_several_test_splits_the_usual_name_counts_and_one_without_labels_does_not(root, caplog):
    make(root, ("other", "valid"))
    (root / "other").rename(root / "Test")
    holds("imagefolder", root)
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "Test")
    (root / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (12, 12)).save(root / "test" / "images" / "0.png")
    holds("imagefolder", root)
    assert caplog.messages == [f"{root}/test has no labels, so that {root}/valid is the test split"]


def test_a_flat_root_is_a_training_split_to_hold_some_of_out(tmp_path, caplog):
    make(tmp_path, ("",), "{name}/{i}.png")
    data = load_data("imagefolder", root=str(tmp_path), val_fraction=0.34)
    assert (len(data.train), len(data.test), data.train.classes) == (6, 3, CLASSES)
    said = f"{tmp_path}: no folder train/, so that its 3 folders are taken for the classes of a training split"
    assert caplog.messages == [said]
    with pytest.raises(UserError, match=r"holds class folders, and no folder train/ or test/: .* --val-fraction 0.1"):
        load_data("imagefolder", root=str(tmp_path))
    check_dataset("imagefolder", root=str(tmp_path), test=False)
    make(tmp_path / "red" / "pictures")
    refuses(
        f"no folder train/ in {tmp_path}/red, but in {tmp_path}/red/pictures: give", "imagefolder", tmp_path / "red"
    )


def tiny_imagenet(root):
    """As it is unpacked: boxes beside the training images, a list for ``val``, no labels for ``test``."""
    make(root, ("train",), "train/{name}/images/{name}_{i}.JPEG")
    (root / "train" / "red" / "red_boxes.txt").write_text("red_0.JPEG\t0\t0\t9\t9\n")
    make(root, ("x", "val"), "{split}/images/val_{k}{i}.JPEG")
    shutil.rmtree(root / "x")
    make(root, ("x", "test"), "{split}/images/test_{k}{i}.JPEG")
    shutil.rmtree(root / "x")
    lines = [f"val_{k}{i}.JPEG\t{name}\t0\t0\t9\t9" for k, name in enumerate(CLASSES) for i in range(COUNT)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines[::-1]) + "\n")
    return root, root / "val" / "val_annotations.txt"


def imagenet_val(root):
    make(root / "CLS-LOC", ("train",), "train/{name}/{i}.JPEG")
    make(root / "CLS-LOC", ("x", "val"), "{split}/ILSVRC2012_val_{k}{i}.JPEG")
    shutil.rmtree(root / "CLS-LOC" / "x")
    lines = [f"ILSVRC2012_val_{k}{i},{name} 1 2 3 4 {name} 5 6 7 8" for k, name in enumerate(CLASSES) for i in range(3)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[::-1]]))
    return root / "CLS-LOC", root / "LOC_val_solution.csv"


@pytest.mark.parametrize("layout", [tiny_imagenet, imagenet_val])
@pytest.mark.parametrize("name", ["imagefolder", "imagenet"])
def test_a_validation_split_may_have_a_list_of_its_labels(tmp_path, layout, name):
    root, listed = layout(tmp_path)
    test = load(name, root, train=False, image_size=12)
    assert test.classes == CLASSES
    assert test.labels.tolist() == [2] * 3 + [1] * 3 + [0] * 3
    assert torch.tensor(colors(test))[:, 0].sub(torch.tensor(expected(False)[::-1])[:, 0]).abs().max() <= 4
    text = listed.read_text()
    listed.write_text(text.replace("green", "rot"))
    refuses("3 of 9 images are of classes that the training split has not: rot; it has blue", name, root, False)
    listed.write_text(text.replace("val_20", "val_77"))
    refuses(r"val_77\.JPEG: not there, and listed in .*val", name, root, False)
    skipped = load(name, root, train=False, image_size=12, on_bad_image="skip")
    assert skipped.labels.tolist() == [2] * 2 + [1] * 3 + [0] * 3
    listed.write_text(text + "\nval_00")
    refuses(r"line \d+ has no file and class, but 'val_00'", name, root, False)
    listed.unlink()
    layout is imagenet_val and refuses("without their classes: put LOC_val_solution.csv", name, root, False)


# Lists


def rows_of(split, form="{split}/{name}/{i}.png"):
    return [(form.format(split=split, name=name, i=i), name) for name in CLASSES for i in range(COUNT)]


def write_csv(path, rows, head=("path", "label"), separator=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([head, *rows])


def write_json(path, rows, head=("file_name", "label")):
    path.write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in rows))


def as_csv(root, **options):
    for split in ("train", "test"):
        write_csv(root / f"{split}.csv", rows_of(split), **options)


def as_tsv(root):
    for split in ("train", "test"):
        write_csv(root / f"{split.title()}.TSV", rows_of(split), separator="\t", head=("Filename", "Class"))


def as_json_lines(root):
    for split in ("train", "test"):
        write_json(root / f"{split}.jsonl", rows_of(split))


def as_metadata(root):
    for split in ("train", "test"):
        write_csv(root / split / "metadata.csv", rows_of(split, "{name}/{i}.png"), head=("file_name", "label"))


def as_pieces(root):
    as_csv(root)
    (root / "data").mkdir()
    for number in range(3):
        part = slice(3 * number, 3 * number + 3)
        rows = [(f"../{path}", name) for path, name in rows_of("train")[part]]
        write_csv(root / "data" / f"train-0000{number}-of-00003.csv", rows)
    (root / "train.csv").unlink()
    (root / "test.csv").rename(root / "data" / "validation.csv")
    text = (root / "data" / "validation.csv").read_text()
    (root / "data" / "validation.csv").write_text("\ufeff" + text.replace("test/", "../test/").replace("\n", "\r\n"))


def as_shards(root, label="cls", form="set-train-00000{n}.tar"):
    for split in ("train", "test"):
        for k, name in enumerate(CLASSES):
            with tarfile.open(root / form.replace("train", split).format(n=k), "w") as target:
                for i in range(COUNT):
                    text = json.dumps({"width": 12, "label": name}) if label == "json" else f"{name}\n"
                    (root / "text").write_text(text)
                    target.add(root / "text", f"{name}_{i}.{label}")
                    target.add(root / split / name / f"{i}.png", f"{name}_{i}.PNG")
            (root / "text").unlink()
        shutil.rmtree(root / split)


def write_parquet(path, rows, top, names=None, label="label", column="image", unlabelled=False):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": (top / name).read_bytes() if top else None, "path": name} for name, _ in rows]
    labels = [-1 if unlabelled else names.index(text) if names else text for _, text in rows]
    table = pyarrow.table({"id": list(range(len(rows))), column: images, label: labels})
    features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    if names:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=4)


def as_parquet(root):
    (root / "data").mkdir()
    names = list(CLASSES)
    for split in ("train", "test"):
        for number in range(3):
            part = rows_of(split)[3 * number : 3 * number + 3]
            path = root / "data" / f"{split}-0000{number}-of-00003-0a1b.parquet"
            write_parquet(path, part, root, names, label="fine", column="img")
        shutil.rmtree(root / split)


def as_parquet_of_paths(root):
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", rows_of(split), None)


LISTS = {
    "csv": as_csv,
    "semicolons": lambda root: as_csv(root, separator=";"),
    "tsv": as_tsv,
    "json lines": as_json_lines,
    "metadata": as_metadata,
    "pieces": as_pieces,
    "shards": as_shards,
    "shards with json": lambda root: as_shards(root, "json", "train_{n}.tar"),
    "parquet": as_parquet,
    "parquet of paths": as_parquet_of_paths,
}


@pytest.mark.parametrize("write", LISTS.values(), ids=LISTS)
def test_a_list_is_the_folder_that_it_lists(root, tmp_path, write):
    write(root)
    holds("filelist", root)
    split = load("filelist", root, memory=False)
    assert split_fingerprint(split) == split_fingerprint(load("filelist", root, memory=False))


@pytest.mark.parametrize("write", [as_shards, as_parquet])
def test_what_is_stored_can_be_read_in_another_process(root, write):
    write(root)
    split = load("filelist", root, memory=False)
    sent = pickle.loads(pickle.dumps(split.images))
    assert [read_bytes(path) for path in sent.paths] == [path.read() for path in split.images.paths]
    here, there = (list(Loader(split, 4, train=True, num_workers=n).epoch(1)) for n in (0, 1))
    assert all(torch.equal(a.views, b.views) for a, b in zip(here, there, strict=True))


def test_a_list_and_its_images_may_lie_in_an_archive(root, tmp_path):
    as_csv(root)
    holds("filelist", zipped(root, tmp_path / "p.zip", "pictures/"))
    holds("filelist", tarred(root, tmp_path / "p.tar"))


def test_labels_that_are_numbers_are_in_their_order_and_columns_have_any_name(root):
    for split in ("train", "test"):
        rows = [(path, {"blue": 2, "green": 9, "red": 10}[name]) for path, name in rows_of(split)]
        write_csv(root / f"{split}.csv", rows, ("picture", "kind"))
    holds("filelist", root, ("2", "9", "10"), path="picture", label="kind")


def test_one_list_is_a_training_split_to_hold_some_of_out(root):
    write_csv(root / "all.csv", rows_of("train"))
    data = load_data("filelist", root=str(root / "all.csv"), val_fraction=0.34)
    assert (len(data.train), len(data.test)) == (6, 3)
    with pytest.raises(UserError, match=r"all\.csv: there is no list of test images; .*--val-fraction"):
        load_data("filelist", root=str(root / "all.csv"))


def test_what_a_test_list_lacks_or_repeats_is_said(root, caplog):
    write_csv(root / "train.csv", rows_of("train") + rows_of("train")[:2])
    write_csv(root / "test.csv", rows_of("test")[:6] + rows_of("train")[:1])
    assert load("filelist", root, train=False).labels.tolist() == [0, 0, 0, 1, 1, 1, 0]
    train, test = root / "train.csv", root / "test.csv"
    assert caplog.messages == [
        f"{train}: 2 of its 11 lines name a file that another one names",
        f"{test}: 1 of its images are training images, too, like {root}/train/blue/0.png",
        f"{test}: no images of 1 of 3 classes, like red",
    ]


def lines(*texts):
    return lambda root: (root / "train.csv").write_text("\n".join(texts))


def unlink(*names):
    return lambda root: [(root / name).unlink() for name in names]


def shards_without(name):
    def change(root):
        as_shards(root)
        with tarfile.open(root / "set-train-000000.tar", "w") as target:
            target.add(root / "test.csv", name)

    return change


BAD_LISTS = {
    "none": (unlink("train.csv"), r"no list train\.csv or .*\.tar in .*; there is: test.csv, test/, train/"),
    "no test": (unlink("test.csv"), "there is no list of test images; .*--val-fraction 0.1"),
    "two": (
        lambda root: shutil.copy(root / "train.csv", root / "train.tsv"),
        "several lists of one split: .*train.tsv",
    ),
    "a piece is missing": (
        lambda root: [as_pieces(root), unlink("data/train-00001-of-00003.csv")(root)],
        "2 of 3 pieces of one list are there: .*train-00000-of-00003.csv and 1 more",
    ),
    "empty": (lines(""), r"train\.csv: no column path, file_name, .*; there is nothing"),
    "no images": (lines("path,label"), r"train\.csv: it lists no images"),
    "no column": (lines("a,label", "b,c"), r"train\.csv: no column path, .*there is 'a', 'label'; .*filelist\(path="),
    "no head": (lines("train/red/0.png,red"), r"no column path.*there is 'train/red/0.png', 'red'"),
    "a field too many": (lines("path,label", "a,b.png,red"), "line 2 has more than 2 fields; .* in quotes"),
    "no label": (lines("path,label", "a.png,", "b.png"), r"train\.csv: 2 lines lack path or label: 2, 3"),
    "missing": (lines("path,label", "train/red/0.png,a", "train/no.png,b"), r"train.no\.png: not there, and listed in"),
    "two labels": (
        lines("path,label", "train/red/0.png,a", "train/red/../red/0.png,b"),
        "1 files are listed with two classes: .*red.0.png",
    ),
    "no text": (
        lambda root: (root / "train.csv").write_bytes(b"path,label\n\xff,a"),
        r"train\.csv: not a text in UTF-8",
    ),
    "unknown class": (
        lambda root: write_csv(root / "test.csv", [("test/red/0.png", "rot"), ("test/red/1.png", "red")]),
        r"test\.csv: 1 of 2 images are of classes that the training split has not: rot; it has blue, green, red",
    ),
    "no object": (
        lambda root: [
            unlink("train.csv")(root),
            (root / "train.jsonl").write_text('{"path": "a", "label": "b"}\n[]\n'),
        ],
        r"train\.jsonl: line 2: it is '\[\]'; each line must be an object",
    ),
    "no JSON": (
        lambda root: [unlink("train.csv")(root), (root / "train.jsonl").write_text("{")],
        r"train\.jsonl: line 1: cannot be read as JSON",
    ),
    "several labels": (
        lambda root: [unlink("train.csv")(root), write_json(root / "train.jsonl", [("a", [1, 2])])],
        r"train\.jsonl: line 1: its label is \[1, 2\]; an image has one label",
    ),
    "no parquet": (
        lambda root: [unlink("train.csv")(root), (root / "train.parquet").write_text("no")],
        r"train\.parquet: (cannot be read as a parquet file|parquet files need pyarrow)",
    ),
    "sample without image": (
        lambda root: [unlink("train.csv")(root), tarred(root / "test" / "red", root / "train.tar", "", "w")],
        r"train\.tar.0: this sample has no label, but png; say filelist\(label=",
    ),
}


@pytest.mark.parametrize(("change", "said"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_bad_list_is_refused_in_one_line(root, change, said):
    as_csv(root)
    change(root)
    refuses(said, "filelist", root, train=False)


def test_parquet_labels_are_those_of_the_schema(root):
    names = ["blue", "green", "nothing", "red"]
    for split in ("train", "test"):
        write_parquet(root / f"{split}.parquet", rows_of(split), root, names)
    split = load("filelist", root, train=False)
    assert split.classes == tuple(names)
    assert split.labels.tolist() == [0] * 3 + [1] * 3 + [3] * 3
    write_parquet(root / "test.parquet", rows_of("test"), root, [*names[::-1]])
    refuses("its schema names other classes", "filelist", root, train=False)
    write_parquet(root / "validation.parquet", rows_of("test"), root, names)
    write_parquet(root / "test.parquet", rows_of("test"), root, names, unlabelled=True)
    refuses(r"row 0 has the label -1, and the schema 4 classes; filelist\(test=", "filelist", root, train=False)
    assert load("filelist", root, train=False, test="validation").labels.tolist() == split.labels.tolist()
    refuses("there is no list of a split {; measure", "filelist", root, train=False, test="{")
    write_parquet(root / "train.parquet", rows_of("train"), None, names)
    (root / "train" / "red" / "1.png").write_bytes(b"")
    refuses(r"train.red.1\.png: not a readable image \(the file is empty\)", "filelist", root)


# Arrays


IMAGES = np.arange(4 * 8 * 9 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 8, 9, 3)
LABELS = np.array([[7], [2], [2], [7]])


def save(root, **arrays):
    np.savez(root / "data.npz", **arrays)
    return root / "data.npz"


def keras(root):
    return save(root, x_train=IMAGES, y_train=LABELS[:, 0], x_test=IMAGES[::-1], y_test=LABELS[1:, 0][[0, 1, 2, 2]])


def medmnist(root):
    arrays = {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES[:1], "val_labels": LABELS[:1]}
    return save(root, **arrays, test_images=IMAGES[::-1], test_labels=LABELS[[1, 2, 3, 3]])


def one_a_split(root):
    np.savez(root / "train.npz", images=IMAGES.transpose(0, 3, 1, 2), labels=LABELS.astype(np.uint8))
    np.savez_compressed(root / "val.npz", x=IMAGES[::-1], y=LABELS[[1, 2, 3, 3], 0])
    return root


@pytest.mark.parametrize("write", [keras, medmnist, one_a_split])
def test_arrays_are_images_and_labels(tmp_path, write):
    root = write(tmp_path)
    train, test = (load("npz", root, part) for part in (True, False))
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (("2", "7"), [1, 0, 0, 1], [0, 0, 1, 1])
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), IMAGES)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), IMAGES[::-1])
    assert train.mean == test.mean == pytest.approx((IMAGES / 255).mean((0, 1, 2)))


def test_gray_arrays_have_one_channel_or_three_and_classes_may_be_named(tmp_path):
    named = {"train_images": IMAGES[..., 0], "train_labels": LABELS // 3, "classes": np.array(["cat", "dog", "emu"])}
    root = save(tmp_path, **named)
    split = load("npz", tmp_path)
    assert (split.classes, split.labels.tolist()) == (("cat", "dog", "emu"), [2, 0, 0, 2])
    assert split.images.shape == (4, 1, 8, 9)
    assert torch.equal(load("npz", root, channels=3).images, split.images.repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": IMAGES}, r"it has images; it must have train_images and train_labels, or x_train and y_train"),
        ({"x_train": IMAGES / 255}, r"x_train are float64 \[4, 8, 9, 3\]; images are uint8"),
        ({"x_train": IMAGES[..., :2]}, r"x_train are uint8 \[4, 8, 9, 2\]; images are .* of 1 or 3 channels"),
        ({"y_train": LABELS / 2}, r"y_train are float64 \[4\]; labels are whole numbers"),
        ({"y_train": np.eye(4, dtype=int)}, r"y_train are int64 \[4, 4\]; labels are whole"),
        ({"y_train": LABELS[:3]}, "y_train: 3 labels for 4 images"),
        ({"y_test": LABELS + 1}, "x_test: 4 of 4 labels are of no training image, like 3"),
        ({"x_test": IMAGES.astype(object)}, r"data\.npz: cannot be read as arrays \(Object arrays"),
        ({"classes": np.array(["a", "b"])}, "labels run from 2 to 7, and 2 classes are named"),
    ],
)
def test_arrays_that_are_no_images_and_labels_are_refused(tmp_path, arrays, said):
    whole = {name: LABELS if name[0] == "y" else IMAGES for name in ("x_train", "y_train", "x_test", "y_test")}
    root = save(tmp_path, **(arrays if "images" in arrays else {**whole, **arrays}))
    refuses(said, "npz", root, train=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "no file .*data.npz: give an .npz file"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), r"data\.npz: cannot be read as arrays"),
        (lambda path: path.write_bytes(b""), r"data\.npz: cannot be read as arrays"),
        (lambda path: np.save(path.open("wb"), IMAGES), "it is one array; an .npz file"),
        (lambda path: np.savez(path, x_train=IMAGES, y_train=LABELS), "x_test and y_test; or measure .*--val-fraction"),
    ],
)
def test_a_file_that_holds_no_arrays_is_refused(tmp_path, change, said):
    path = keras(tmp_path)
    change(path)
    refuses(said, "npz", path, train=False)


@pytest.mark.parametrize("name", ["filelist", "npz"])
def test_a_root_is_needed(name, tmp_path):
    refuses(f"{name}: give the ", name, "")
    refuses("no (file|folder) .*gone: give", name, tmp_path / "gone")

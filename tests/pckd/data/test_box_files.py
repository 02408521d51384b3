"""Boxes and masks in files: the same objects in three formats, what is left out, what is refused."""

import json
import logging
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from pckd import preflight
from pckd.data import check
from pckd.data.annotated import FROM_FILES, AnnotatedLoader
from pckd.data.load import load_data
from pckd.display import choose_display
from pckd.engine.fingerprint import split_fingerprint
from pckd.testing import check_dataset
from registry import BadImages, UserError

WIDTH, HEIGHT = 40, 20
NAMES = ("cat", "dog")
OBJECTS = {
    "a": [("cat", 4, 2, 20, 18), ("dog", 10, 5, 38, 15)],
    "b": [],
    # Beyond the edge, without area, outside, of a class that training images do not have.
    "c": [("dog", 30, 10, 48, 25), ("cat", 8, 8, 8, 12), ("dog", 50, 5, 60, 15), ("cow", 1, 1, 5, 5)],
}
SPLITS = {"train": ("a", "b"), "test": ("c",)}
KINDS = ("coco", "voc", "yolo")


def image_file(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def write_coco(root):
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        annotations = []
        for image, (name, x, y, right, bottom) in ((i, each) for i in SPLITS[split] for each in OBJECTS[i]):
            category = {"cat": 13, "dog": 14, "cow": 10}[name]
            facts = {"id": len(annotations), "image_id": ord(image), "category_id": category, "area": 7.0, "iscrowd": 0}
            annotations.append({**facts, "bbox": [x, y, right - x, bottom - y]})
        images = [{"id": ord(i), "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in SPLITS[split]]
        categories = [{"id": 14, "name": "dog"}, {"id": 13, "name": "cat"}]
        content = {"images": images[::-1], "annotations": annotations, "categories": categories}
        write(root / f"annotations/instances_{folder}.json", content)
        for i in SPLITS[split]:
            image_file(root / folder / f"{i}.png")


def write_voc(root):
    for split, stems in SPLITS.items():
        write(
            root / f"ImageSets/Main/{'trainval' if split == 'train' else split}.txt",
            "".join(f"{i}  1\n" for i in stems),
        )
        for i in stems:
            objects = [
                f"<object>\n<name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{right + (x == right)}</xmax><ymax>{bottom}</ymax></bndbox>\n</object>\n"
                for name, x, y, right, bottom in OBJECTS[i]
            ]
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            write(root / f"Annotations/{i}.xml", f"<annotation>\n{size}\n{''.join(objects)}</annotation>\n")
            image_file(root / f"JPEGImages/{i}.png")


def write_yolo(root):
    write(root / "classes.txt", "cat\ndog\n")
    for split, stems in SPLITS.items():
        for i in stems:
            lines = [
                f"{(*NAMES, 'cow').index(name)} {(x + right) / 2 / WIDTH} {(y + bottom) / 2 / HEIGHT} "
                f"{(right - x) / WIDTH} {(bottom - y) / HEIGHT}\n"
                for name, x, y, right, bottom in OBJECTS[i]
            ]
            if lines:
                write(root / f"labels/{split}/{i}.txt", "".join(lines))
            image_file(root / f"images/{split}/{i}.png")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_SAID", set())
    for kind, writer in zip(KINDS, (write_coco, write_voc, write_yolo), strict=True):
        writer(tmp_path / kind)
    return tmp_path


def load(folders, spec, **options):
    return load_data(spec, root=str(folders / spec.partition("(")[0]), **options)


PLACES = {
    "coco": ("instances_val2017.json, annotation 1", "annotation 2", "of unknown classes (category 10; the first: "),
    "voc": ("c.xml, line 6", "c.xml, line 9", "of unknown classes (cow; the first: c.xml, line 12)"),
    "yolo": ("c.txt, line 2", "c.txt, line 3", "of unknown classes (class 2; the first: c.txt, line 4)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_says_the_same(kind, folders, caplog):
    with caplog.at_level(logging.WARNING):
        data = load(folders, f"{kind}(image_size=(20, 40))")
    assert (data.train.classes, data.task, data.train.augment) == (NAMES, "detection", FROM_FILES)
    assert [len(each) for each in data.train.annotations] == [2, 0]
    torch.testing.assert_close(data.train.objects.boxes, torch.tensor([[4.0, 2, 20, 18], [10, 5, 38, 15]]))
    torch.testing.assert_close(data.test.objects.boxes, torch.tensor([[30.0, 10, 40, 20]]))
    assert (data.train.objects.labels.tolist(), data.test.objects.labels.tolist()) == ([1, 2], [2])
    assert data.train.objects.area.tolist() == pytest.approx([7, 7] if kind == "coco" else [256, 280])
    (line,) = caplog.messages
    assert f"{kind} test: 3 boxes are left out: " in line
    for text in PLACES[kind]:
        assert text in line
    (batch,) = AnnotatedLoader(data.test, 4, train=False).epoch(1)
    torch.testing.assert_close(batch.boxes[0], data.test.objects.boxes)
    assert (batch.images == 90 / 255).all()
    check_dataset(f"{kind}(image_size=(20, 40))", root=str(folders / kind))
    found = split_fingerprint(data.train)
    shutil.move(folders / kind, folders / "moved")
    again = load_data(f"{kind}(image_size=(20, 40))", root=str(folders / "moved"))
    assert split_fingerprint(again.train) == found


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_chosen_by_name(kind, folders, caplog):
    data = load(folders, f"{kind}(classes=('dog', 'cat'))")
    assert (data.train.classes, data.train.objects.labels.tolist()) == (("dog", "cat"), [2, 1])
    data = load(folders, f"{kind}(classes=('cat',))")
    assert (data.train.objects.labels.tolist(), len(data.test.objects)) == ([1], 0)
    # A dog is known, and not wanted: the warning is of the others.
    assert "cat test: 2 boxes" not in caplog.text
    assert any(f"{kind} test: 2 boxes are left out" in line for line in caplog.messages)
    with pytest.raises(UserError, match=r"there is no class 'cow'; there are: cat, dog"):
        load(folders, f"{kind}(classes=('cow',))")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_cannot_be_read_stops_or_is_skipped(kind, folders):
    (broken,) = (folders / kind).rglob("b.png")
    broken.write_bytes(b"")
    loaders = [AnnotatedLoader(load(folders, kind, on_bad_image=p).train, 2, train=False) for p in ("stop", "skip")]
    with pytest.raises(BadImages, match=r"b\.png: not a readable image"):
        list(loaders[0].epoch(1))
    assert [batch.index.tolist() for batch in loaders[1].epoch(1)] == [[0]]
    # --check reads every image, whatever limits are given.
    options = {"data": kind, "data_root": str(folders / kind), "limit_train": 1}
    with pytest.raises(BadImages, match=r"b\.png: not a readable image"):
        preflight._load(options, choose_display(None))
    assert len(preflight._load({**options, "on_bad_image": "skip"}, choose_display(None)).train) == 1


def test_an_image_of_another_size_than_its_annotation_is_named(folders):
    Image.new("RGB", (HEIGHT, WIDTH)).save(folders / "voc/JPEGImages/a.png")
    with pytest.raises(BadImages, match=r"a\.png: it is 20x40, and its annotation says 40x20"):
        list(AnnotatedLoader(load(folders, "voc").train, 2, train=False).epoch(1))


CATEGORIES = [{"id": 1, "name": "x"}]
COCO, XML = "coco/annotations/instances_train2017.json", "voc/Annotations/a.xml"


@pytest.mark.parametrize(
    ("kind", "file", "text", "message"),
    [
        ("coco", COCO, "{", r"instances_train2017.json: not readable as JSON"),
        ("coco", COCO, {"images": [], "categories": []}, "it has no list 'annotations'"),
        ("coco", COCO, {"images": [{"id": 1}], "annotations": [], "categories": []}, "an entry has no 'file_name'"),
        (
            "coco",
            COCO,
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]},
            "there are no images",
        ),
        (
            "coco",
            COCO,
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 40}],
                "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2]}],
                "categories": CATEGORIES,
            },
            r"annotation 5, bbox: there must be 4 numbers, not \[1, 2\]",
        ),
        ("coco", COCO, None, "cannot be read .No such file"),
        ("voc", XML, "<annotation><object>", r"a\.xml: not readable as an annotation of VOC .no element found"),
        ("voc", XML, "<annotation><object><name>cat</name></object></annotation>", r"a\.xml: not readable .*'bndbox'"),
        ("voc", "voc/ImageSets/Main/test.txt", None, "train.txt: cannot be read"),
        ("voc", XML, None, r"a\.xml: cannot be read"),
        ("yolo", "yolo/labels/train/a.txt", "0 0.5 0.5 0.1 0.1\n1 x 0.5 0.1 0.1\n", r"a\.txt, line 2: there must be 5"),
        ("yolo", "yolo/labels/train/a.txt", "0 0.5 0.5 0.1\n", r"a\.txt, line 1: there must be 5"),
        ("yolo", "yolo/labels/train/a.txt", "0 0.5 0.5 0.1 0.1 0.9\n", r"a\.txt, line 1: after the class there must"),
        ("yolo", "yolo/data.yaml", "names: [", r"data\.yaml: it must be YAML with names"),
        ("yolo", "yolo/data.yaml", "names: [cat, dog]\nval: images/test\n", "has no train images"),
        ("yolo", "yolo/data.yaml", "names: [cat, dog]\ntrain: nowhere\n", "there is no .*nowhere"),
    ],
)
def test_a_broken_file_is_named_in_one_line(kind, file, text, message, folders):
    if text is None:
        (folders / file).unlink()
    else:
        write(folders / file, text)
    with pytest.raises(UserError, match=message) as error:
        load(folders, kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "size"), list(product(KINDS, ["0", "(3,)"])))
def test_a_missing_root_or_a_size_that_is_none_is_refused(kind, size, folders):
    with pytest.raises(UserError, match="image_size="):
        load(folders, f"{kind}(image_size={size})")
    for root, message in ((None, "no root is given"), ("nowhere", "there is no folder nowhere")):
        with pytest.raises(UserError, match=message):
            load_data(kind, root=root)


def test_crowds_difficult_objects_and_images_without_objects(folders):
    content = json.loads((folders / COCO).read_text())
    content["annotations"][0] |= {"iscrowd": 1, "area": 0}
    content["annotations"].append({"id": 9, "image_id": 404, "category_id": 13, "bbox": [1, 1, 2, 2]})
    write(folders / COCO, content)
    split = load(folders, "coco(empty=False)").train
    assert (len(split), split.objects.crowd.tolist(), split.objects.area.tolist()) == (1, [True, False], [256, 7])
    path = folders / XML
    write(path, path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert load(folders, "voc").train.objects.crowd.tolist() == [True, False]
    assert load(folders, "voc(first_pixel=0)").train.objects.boxes[0].tolist() == [5, 3, 20, 18]


def test_yolo_reads_outlines_lists_and_what_a_yaml_file_says(folders):
    root = folders / "yolo"
    write(root / "labels/train/b.txt", "1 0.1 0.2 0.5 0.2 0.3 0.8\n")
    write(root / "list.txt", "./images/train/b.png\nimages/train/a.png\n")
    write(root / "data.yaml", "path: /elsewhere/set\ntrain: list.txt\nval: [images/test]\nnames: {1: dog, 0: cat}\n")
    split = load(folders, "yolo").train
    assert split.classes == NAMES
    assert split.annotations[0].labels.tolist() == [2]
    torch.testing.assert_close(split.annotations[0].boxes, torch.tensor([[4.0, 4, 20, 16]]))
    assert len(split.annotations[1]) == 2


# Masks


def test_coco_outlines_become_masks_with_small_objects_on_top(folders):
    pytest.importorskip("pycocotools")
    content = json.loads((folders / COCO).read_text())
    square = [[4, 2, 20, 2, 20, 18, 4, 18]]
    packed = {"counts": [124, 5, 671], "size": [HEIGHT, WIDTH]}  # column by column: rows 4 to 8 of column 6
    for each, outline in zip(content["annotations"], (square, packed), strict=True):
        each["segmentation"] = outline
    write(folders / COCO, content)
    mask = load(folders, "coco(masks=True)").train.masks[0]
    assert mask.shape == (HEIGHT, WIDTH)
    assert (mask[2:18, 4:20] > 0).all()
    assert (mask > 0).sum() == 256
    assert (mask == 2).nonzero().tolist() == [[row, 6] for row in range(4, 9)]


def test_without_pycocotools_masks_are_refused(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'pckd\[detection\]'"):
        load(folders, "coco(masks=True)")


def mask_file(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (HEIGHT, WIDTH))).save(path)


@pytest.fixture
def masks(tmp_path):
    for split, names in (("train", ["b", "a"]), ("val", ["c"])):
        write(tmp_path / f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt", "\n".join(names))
        for name in names:
            image_file(tmp_path / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg")
            mask_file(tmp_path / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", [0, 1, 20, 255])
            image_file(tmp_path / f"leftImg8bit/{split}/city/city_{name}_leftImg8bit.png")
            mask_file(tmp_path / f"gtFine/{split}/city/city_{name}_gtFine_labelIds.png", [7, 33, 0, 255])
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "classes", "first", "values"),
    [
        ("voc_segmentation", 20, "b.jpg", [0, 1, 20, -1]),
        ("cityscapes", 19, "city_a_leftImg8bit.png", [1, 19, -1, -1]),
    ],
)
def test_masks_are_read_as_classes(kind, classes, first, values, masks):
    data = load_data(f"{kind}(image_size=(20, 40))", root=str(masks))
    assert (data.task, data.train.num_classes, data.train.annotations) == ("segmentation", classes, ())
    assert [len(data.train), len(data.test)] == [2, 1]
    assert data.train.images.paths[0].endswith(first)
    (batch,) = AnnotatedLoader(data.test, 4, train=False).epoch(1)
    assert batch.masks[0, 0, :4].tolist() == values
    assert batch.masks.unique().tolist() == sorted(set(values))
    check_dataset(f"{kind}(image_size=(20, 40))", root=str(masks))


@pytest.mark.parametrize(
    ("kind", "mask", "values", "message"),
    [
        ("voc_segmentation", "VOCdevkit/VOC2012/SegmentationClass/a.png", [0, 21], "the value 21, which is no class"),
        ("cityscapes", "gtFine/train/city/city_a_gtFine_labelIds.png", [40], "the value 40, which is no class"),
        ("cityscapes", "gtFine/train/city/city_a_gtFine_labelIds.png", None, "fetch gtFine again"),
        ("cityscapes", "gtFine/train", None, "is not whole"),
        ("voc_segmentation", "VOCdevkit/VOC2012/JPEGImages", None, "there is no JPEGImages/"),
    ],
)
def test_a_mask_that_is_missing_or_says_something_else_is_refused(kind, mask, values, message, masks):
    path = masks / mask
    if values is not None:
        mask_file(path, values)
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        list(AnnotatedLoader(load_data(kind, root=str(masks)).train, 2, train=False).epoch(1))

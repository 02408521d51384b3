"""Images with labels in a list: CSV and JSON lines of file names, parquet files, and shards of WebDataset."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pckd.data.archive import Stored, is_archive, is_folder, members, scan, size_of
from pckd.data.check import say_once
from pckd.data.folder import LISTS, TESTING, TRAINING, files_of, is_image, named, no_split, read_text, root_of
from pckd.data.image_split import ImageOptions, image_split
from registry import DATASETS, DataSplit, UserError

_PATHS = ("path", "file_name", "filename", "file", "filepath", "image", "image_path", "img")
_LABELS = ("label", "labels", "class", "class_name", "category", "target", "cls")


class _Columns(NamedTuple):
    path: str | None
    label: str | None


class _Rows(NamedTuple):
    """What a list says: path and label of each image, and the names of the classes where it has them in order."""

    rows: list[tuple[str, str]]
    classes: tuple[str, ...] = ()


@DATASETS.register
def filelist(
    root: str | None = None,
    train: bool = True,
    *,
    path: str | None = None,
    label: str | None = None,
    test: str | None = None,
    image_size: int | None = None,
    min_area: float | None = None,
    memory: bool | Literal["auto"] = "auto",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: float | None = None,
    on_bad_image: Literal["stop", "skip"] = "stop",
) -> DataSplit:
    """Images with labels in a list: ``train.csv``, JSON lines, parquet files as a hub writes them, WebDataset shards.

    The list of the training split is called ``train.csv``, ``train.tsv``, ``train.jsonl``, ``train.parquet`` or
    ``train.tar``; in pieces, ``train-00000-of-00004.parquet``, ``train-000000.tar``, ``anything-train-000000.tar``; or
    it lies in a folder ``train/``, as ``metadata.csv``, ``metadata.jsonl``, ``*.parquet`` or ``*.tar``. It is looked
    for in the root and in its folder ``data/``. The test split's is called ``test``, ``val``, ``valid`` or
    ``validation`` instead, the first of these that is there; it is not needed with ``val_fraction``.

    - CSV: the first line names the columns; they are separated by what it has most of: commas, semicolons, tabs or
      bars. JSON lines: an object a line. Paths are relative to the list's folder.
    - Parquet: a column of encoded images (``{bytes, path}`` or bytes), or of paths. The images are held in memory as
      they are encoded. Class names are read from the schema. Needs ``pip install 'pckd[parquet]'``.
    - Shards: the members ``key.jpg`` and ``key.cls`` (a number or a name), or ``key.json`` with a field of the label,
      make one image. They are read in place.

    Classes are the labels of the training list, in the order of numbers where all are whole numbers, else sorted.
    Images are decoded as by ``imagefolder``. The root may be a zip or tar archive that holds the list and its images.

    Args:
        root: the folder; or one list, which is then that of the training split.
        train: the training split, or else the test split.
        path: the column of the file names or images; in shards the members' suffix (``"png"``). By default the first
            of ``path``, ``file_name``, ``filename``, ``file``, ``filepath``, ``image``, ``image_path``, ``img``.
        label: the column of the labels; in shards the members' suffix, or the field of ``json``. By default the first
            of ``label``, ``labels``, ``class``, ``class_name``, ``category``, ``target``, ``cls``.
        test: the name of the split to measure on, where the first one has no labels (``"validation"``).
        image_size: pixels per side, see ``imagefolder``.
        min_area: the least share of a random part, see ``imagefolder``.
        memory: decode everything once into memory, or not, see ``imagefolder``.
        mean: per-channel mean, see ``imagefolder``.
        std: per-channel standard deviation, likewise.
        white: the value that is white in gray images of more than 8 bits, see ``imagefolder``.
        on_bad_image: what is done about files that cannot be read or are not there: ``"stop"`` refuses them, ``"skip"``
            leaves them out, and a warning names them.

    Raises:
        BadImages: files that are no images or not there; with their names.
        UserError: no such list, no such column, a line without path or label, or labels that training does not have.
    """
    if not root:
        raise UserError("filelist: give the root folder that holds train.csv and test.csv, or another list")
    options = ImageOptions("filelist", image_size, memory, mean, std, white, on_bad_image, min_area)
    columns = _Columns(path, label)
    base, training, testing = _find_lists(root, TESTING if test is None else (test.lower(),))
    if not train and not testing:
        wanted = "test images" if test is None else f"a split {test}"
        raise UserError(f"{base}: there is no list of {wanted}; measure on a share of these with --val-fraction 0.1")
    known = _read(training, columns)
    classes = known.classes or _sorted(label for _, label in known.rows)
    source = files = files_of(known.rows, classes, _shown(training), options.skip)
    if testing and not train:
        found = _read(testing, columns)
        if found.classes != known.classes:
            raise UserError(f"{_shown(testing)}: its schema names other classes than that of {_shown(training)}")
        files = files_of(found.rows, classes, _shown(testing), options.skip)
        if both := set(source.paths) & set(files.paths):
            say_once(f"{_shown(testing)}: {len(both):,} of its images are training images, too, like {min(both)}")
        if absent := set(classes) - {classes[k] for k in files.labels.unique().tolist()}:
            say_once(f"{_shown(testing)}: no images of {len(absent):,} of {len(classes):,} classes, like {min(absent)}")
    return image_split(source, files, f"filelist {base.name}/{'train' if train else 'test'}", options)


def _find_lists(root: str, tests: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """The root, and the lists of both splits."""
    base = Path(root).expanduser()
    if os.path.isfile(base) and base.suffix.lower() in LISTS and not is_archive(base):
        return base, [str(base)], []
    base = root_of(root)
    training, testing = (_lists_of(base, names) for names in (TRAINING, tests))
    if not training:
        raise no_split(base, "list " + " or ".join(f"train{suffix}" for suffix in LISTS))
    return base, training, testing


def _lists_of(base: Path, names: Sequence[str]) -> list[str]:
    """The list of the first split of these names that has one, or its pieces."""
    for folder in (base, base / "data"):
        if not is_folder(folder):
            continue
        entries = list(scan(folder))
        there = {entry.name: entry.path for entry in entries if not entry.is_dir()}
        inside = {entry.name: entry.path for entry in entries if entry.is_dir()}
        for name in names:
            stem, suffix = re.escape(name), f"({'|'.join(map(re.escape, LISTS))})"
            whole = [at for file, at in there.items() if re.fullmatch(stem + suffix, file.lower())]
            piece = rf"(.*[-_.])?{stem}[-_.]\d.*{suffix}"
            pieces = [at for file, at in there.items() if re.fullmatch(piece, file.lower())]
            for split in named(inside, (name,)):
                of_split = {entry.name.lower(): entry.path for entry in scan(inside[split]) if not entry.is_dir()}
                whole += [at for file, at in of_split.items() if file.startswith("metadata.") and file.endswith(LISTS)]
                pieces += [at for file, at in of_split.items() if file.endswith((".parquet", ".tar"))]
            found = sorted(whole or pieces)
            if len(whole) > 1 or len({os.path.splitext(at)[1].lower() for at in found}) > 1:
                raise UserError(f"{folder}: several lists of one split: {', '.join(found[:5])}; keep one of them")
            total = {int(number) for at in found for number in re.findall(r"\d-of-(\d+)", os.path.basename(at))}
            if total and total != {len(found)}:
                raise UserError(f"{folder}: {len(found)} of {max(total)} pieces of one list are there: {_shown(found)}")
            if found:
                return found
    return []


def _shown(lists: Sequence[str]) -> str:
    return lists[0] if len(lists) == 1 else f"{lists[0]} and {len(lists) - 1:,} more"


def _sorted(labels: Iterable[str]) -> tuple[str, ...]:
    names = set(labels)
    return tuple(sorted(names, key=int if all(re.fullmatch(r"-?\d{1,18}", name) for name in names) else None))


def _read(lists: Sequence[str], columns: _Columns) -> _Rows:
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".parquet": _parquet, ".tar": _shard}
    rows: list[tuple[str, str]] = []
    classes: set[tuple[str, ...]] = set()
    parquet = sum(size_of(file) for file in lists if file.lower().endswith(".parquet"))
    if parquet > _memory() / 2:
        advice = f"its {parquet / 2**30:.1f} GiB do not fit in memory; write the images into a folder or into shards"
        raise UserError(f"{_shown(lists)}: {advice}")
    for file in lists:
        found = readers[os.path.splitext(file)[1].lower()](file, columns)
        rows += found.rows
        classes.add(found.classes)
    if len(classes) > 1:
        raise UserError(f"{_shown(lists)}: their schemas name different classes")
    return _Rows(rows, classes.pop())


def _label(value: Any, place: str) -> str:
    """A label as text, in one form of Unicode; ``""`` where there is none."""
    if isinstance(value, (list, tuple, dict)):
        raise UserError(f"{place}: its label is {str(value)[:60]}; an image has one label, a number or a text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else unicodedata.normalize("NFC", str(value).strip())


def _column(wanted: str | None, usual: Sequence[str], there: Sequence[str], option: str, file: str) -> str:
    """The column of this name; by default the first of the usual ones."""
    found = [wanted] if wanted and wanted in there else [] if wanted else named([name for name in there if name], usual)
    if not found:
        asked = repr(wanted) if wanted else ", ".join(usual)
        has = ", ".join(map(repr, there[:10])) or "nothing"
        raise UserError(
            f"{file}: no column {asked}; there is {has}; name it with {option}, as in filelist({option}=...)"
        )
    return found[0]


def _csv(file: str, columns: _Columns) -> _Rows:
    text = read_text(file)
    head = text.partition("\n")[0]
    separator = max(",;\t|", key=head.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [(reader.line_num, row) for row in reader]
        if more := [number for number, row in rows if None in row]:
            raise UserError(
                f"{file}: line {more[0]} has more than {len(names)} fields; put texts with {separator!r} in quotes"
            )
        return _table(rows, names, file, columns)
    except csv.Error as error:
        raise UserError(f"{file}: line {reader.line_num}: cannot be read as CSV ({error})") from error


def _json_lines(file: str, columns: _Columns) -> _Rows:
    def rows() -> Iterator[tuple[int, Mapping[str, Any]]]:
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{file}: line {number}: cannot be read as JSON ({error})") from error
                if not isinstance(row, dict):
                    raise UserError(f"{file}: line {number}: it is {line[:60]!r}; each line must be an object")
                yield number, row

    found = list(rows())
    return _table(found, list(found[0][1]) if found else [], file, columns)


def _table(rows: Iterable[tuple[int, Mapping[str, Any]]], names: list[str], file: str, columns: _Columns) -> _Rows:
    """Rows by line; paths become relative to the list's folder."""
    path = _column(columns.path, _PATHS, names, "path", file)
    label = _column(columns.label, _LABELS, names, "label", file)
    folder, found, empty = os.path.dirname(file), [], []
    for number, row in rows:
        where, text = row.get(path), _label(row.get(label), f"{file}: line {number}")
        if not where or not isinstance(where, str) or not text:
            empty.append(number)
            continue
        if os.sep == "/" and "/" not in where:
            where = where.replace("\\", "/")
        found.append((os.path.join(folder, where.strip()), text))
    if empty:
        lines = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise UserError(f"{file}: {len(empty):,} lines lack {path} or {label}: {lines}; complete or remove them")
    return _Rows(found)


def _shard(file: str, columns: _Columns) -> _Rows:
    samples: dict[str, dict[str, Stored]] = defaultdict(dict)
    for member in members(file):
        folder, name = os.path.split(member)
        key, _, suffix = name.partition(".")
        if key and suffix:
            samples[os.path.join(folder, key)][suffix.lower()] = member
    rows: list[tuple[str, str]] = []
    for key, parts in samples.items():
        images = [suffix for suffix in parts if (suffix == columns.path if columns.path else is_image(f"x.{suffix}"))]
        if len(images) != 1:
            text = f"{len(images)} images ({', '.join(parts)}); it must have one, named by filelist(path=...)"
            raise UserError(f"{key}: this sample has {text}")
        text = _label(_shard_label(parts, columns.label), key)
        if not text:
            raise UserError(f"{key}: this sample has no label, but {', '.join(parts)}; say filelist(label=...)")
        rows.append((parts[images[0]], text))
    return _Rows(rows)


def _shard_label(parts: Mapping[str, Stored], wanted: str | None) -> Any:
    if (suffix := wanted or "cls") in parts:
        return read_text(parts[suffix])
    if "json" not in parts:
        return None
    try:
        fields = json.loads(read_text(parts["json"]))
    except ValueError as error:
        raise UserError(f"{parts['json']}: cannot be read as JSON ({error})") from error
    if not isinstance(fields, dict):
        return None
    usual = [wanted] if wanted in fields else [] if wanted else named(list(fields), _LABELS)
    return fields[usual[0]] if usual else None


def _parquet(file: str, columns: _Columns) -> _Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{file}: parquet files need pyarrow: pip install 'pckd[parquet]'") from error
    try:
        opened = parquet.ParquetFile(io.BytesIO(file.read()) if isinstance(file, Stored) else file)
        names = opened.schema_arrow.names
        features = _features(opened.schema_arrow.metadata)
        kinds = {name: str(kind.get("_type")) for name, kind in features.items() if isinstance(kind, dict)}
        images, labels = ([n for n in names if kinds.get(n) == kind] for kind in ("Image", "ClassLabel"))
        path = _column(columns.path or _only(images), _PATHS, names, "path", file)
        label = _column(columns.label or _only(labels), _LABELS, names, "label", file)
        classes = (
            tuple(map(str, features.get(label, {}).get("names") or ())) if kinds.get(label) == "ClassLabel" else ()
        )
        values: list[tuple[Any, Any]] = []
        for batch in opened.iter_batches(256, columns=[path, label]):
            values += zip(batch.column(path).to_pylist(), batch.column(label).to_pylist(), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot be read as a parquet file ({' '.join(str(error).split())[:200]})") from error
    rows: list[tuple[str, str]] = []
    image: Any
    for number, (image, value) in enumerate(values):
        place = f"{file}{os.sep}{number}"
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        text = _label(value, f"{file}: row {number}")
        if not text or not isinstance(image, (bytes, str)) or not image:
            raise UserError(f"{file}: row {number} has no image in {path} or no label in {label}")
        if classes:
            if not text.isdecimal() or int(text) >= len(classes):
                advice = "; filelist(test=...) measures on another split" if text == "-1" else ""
                text = f"row {number} has the label {text}, and the schema {len(classes)} classes{advice}"
                raise UserError(f"{file}: {text}")
            text = classes[int(text)]
        if isinstance(image, str):
            rows.append((os.path.join(os.path.dirname(file), image), text))
        else:
            rows.append((Stored.at(place, image), text))
    return _Rows(rows, classes)


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What a hub writes into the schema: what kind of thing each column is, and the names of classes."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _memory() -> float:
    """Bytes of this machine's memory, if it says so."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")

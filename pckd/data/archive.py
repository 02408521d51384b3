"""Listing folders and reading files, also in zip and tar archives, which are read in place."""

from __future__ import annotations

import functools
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pckd.data.check import say_once
from registry import BadImages, UserError

__all__ = ["Entry", "Stored", "is_archive", "is_folder", "members", "read_bytes", "scan", "size_of"]

_PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_OTHERS = (*_PACKED_TARS, ".7z", ".rar")


class Stretch(NamedTuple):
    """Where the bytes of a file lie in an archive, from the head that the archive writes before them."""

    archive: str
    begin: int
    """Of that head."""
    length: int
    """Bytes as they are stored, without the head."""
    size: int
    """Bytes of the file."""
    check: int
    """A zip's CRC of the bytes; of a tar, which has none, the checksum of the head."""
    deflated: bool = False

    def read(self) -> bytes:
        """The bytes; an OSError or a ValueError where they are not those that were listed."""
        is_zip = _is_zip(self.archive)
        # Opened anew each time, so that no open file is shared by processes and threads.
        with open(self.archive, "rb") as file:
            file.seek(self.begin)
            head = file.read(30 if is_zip else tarfile.BLOCKSIZE)
            if is_zip:
                # The lengths of the file's name and of a field that may differ from that of the archive's index.
                file.seek(sum(int.from_bytes(head[at : at + 2], "little") for at in (26, 28)), os.SEEK_CUR)
            data = file.read(self.length)
        if self.deflated:
            # Not more than the index promises, whatever is packed.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1)
        found = zlib.crc32(data) if is_zip else _tar_checksum(head)
        if len(data) != self.size or found != self.check:
            raise ValueError(f"{self.archive} is damaged, or has changed since it was listed")
        return data


class Stored(str):
    """Names a file that is a part of another one, like ``pictures.zip/train/cat/1.png``; says where its bytes are.

    It holds no open file, so that it can be sent to other processes.
    """

    __slots__ = ("where",)
    where: Stretch | bytes

    @classmethod
    def at(cls, name: str, where: Stretch | bytes) -> Stored:
        """The file of this name; ``where``: a stretch of an archive, or the bytes themselves."""
        made = cls(name)
        made.where = where
        return made

    @property
    def size(self) -> int:
        return len(self.where) if isinstance(self.where, bytes) else self.where.size

    def read(self) -> bytes:
        """The bytes; BadImages where they cannot be read."""
        try:
            return self.where if isinstance(self.where, bytes) else self.where.read()
        except (OSError, ValueError, zlib.error) as error:
            raise BadImages(f"{self}: cannot be read ({error})") from error


class Entry(NamedTuple):
    """What an archive has in a folder, with the interface of ``os.DirEntry``."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_symlink(self) -> bool:
        return False


def read_bytes(path: str) -> bytes:
    """The content of a file."""
    return path.read() if isinstance(path, Stored) else Path(path).read_bytes()


def size_of(path: str) -> int:
    """Bytes of a file."""
    return path.size if isinstance(path, Stored) else os.stat(path).st_size


def is_archive(path: str | Path) -> bool:
    """Whether it is an archive that can be read in place. Its name says so."""
    return str(path).lower().endswith((".zip", ".tar")) and os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Whether it is a folder, an archive, or a folder in one; refuses an archive of another kind."""
    # Unlike Path.is_dir, os.path.isdir takes a name that no file can have for one that none has.
    if os.path.isdir(path):
        return True
    if str(path).lower().endswith(_OTHERS) and os.path.isfile(path):
        raise UserError(f"{path}: only .zip and .tar archives are read in place; unpack it, or pack it as one of these")
    archive, inner = _split(path)
    return bool(archive) and inner in _folders(archive)


def scan(folder: str | Path) -> list[os.DirEntry[str] | Entry]:
    """What a folder holds, or an archive at its top, or a folder in one.

    Raises:
        UserError: there is no such folder, or it cannot be listed.
    """
    archive, inner = _split(folder)
    if archive:
        if (found := _folders(archive).get(inner)) is not None:
            return list(found.values())
        raise UserError(f"{folder}: there is no such folder in the archive")
    try:
        return list(os.scandir(str(folder)))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; its images cannot be listed") from error


def members(archive: str | Path) -> Iterator[Stored]:
    """All files of an archive, in its own order.

    Raises:
        UserError: it is damaged, cut off, encrypted or compressed in another way than zip's usual one.
    """
    name = os.fspath(archive)
    found: dict[str, Stored] = {}
    left: list[str] = []
    again: list[str] = []
    try:
        for inner, where in (_zip_members if _is_zip(name) else _tar_members)(name):
            target = where if isinstance(where, Stretch) else getattr(found.get(where or ""), "where", None)
            if target is None:
                left.append(inner)
                continue
            if inner in found:
                again.append(inner)
            found[inner] = Stored.at(f"{name}{os.sep}{inner.replace('/', os.sep)}", target)
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{name}: cannot be read as an archive ({error}); fetch or pack it again") from error
    for many, text in ((again, "files occur more than once, of which the last counts"), (left, "links are left out")):
        if many:
            say_once(f"{name}: {len(many):,} {text} ({', '.join(many[:5])}{', ...' if len(many) > 5 else ''})")
    return iter(found.values())


def _zip_members(archive: str) -> Iterator[tuple[str, Stretch | None]]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.filename.replace("\\", "/")
            if name.endswith("/"):
                continue
            if info.flag_bits & 1:
                raise UserError(
                    f"{archive}: {info.filename} is encrypted; unpack the archive, or pack it without a password"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{archive}: {info.filename} is compressed in a rare way; pack it with zip's usual one")
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            where = Stretch(archive, info.header_offset, info.compress_size, info.file_size, info.CRC, deflated)
            yield _clean(name), None if stat.S_ISLNK(info.external_attr >> 16) else where


def _tar_members(archive: str) -> Iterator[tuple[str, Stretch | str | None]]:
    """Names and where they are: another name for a hard link to it, None for links of the other kind."""
    with open(archive, "rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
        while (info := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined]  # or it would remember them all
            if info.islnk():
                yield _clean(info.name), _clean(info.linkname)
            elif info.issym():
                yield _clean(info.name), None
            elif info.isreg():
                if info.issparse():
                    raise UserError(f"{archive}: {info.name} is stored with holes; pack the archive without --sparse")
                begin = info.offset_data - tarfile.BLOCKSIZE
                yield _clean(info.name), Stretch(archive, begin, info.size, info.size, info.chksum)
        file.seek(opened.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError("it is cut off")


def _tar_checksum(head: bytes) -> int:
    try:
        return int(head[148:156].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _clean(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _is_zip(archive: str) -> bool:
    return archive.lower().endswith(".zip")


def _split(path: str | Path) -> tuple[str, str]:
    """The archive that a path leads to or into, and the path within it, with slashes; two empty texts for none."""
    parts = Path(path).parts
    for count in range(len(parts), 0, -1):
        if is_archive(archive := os.path.join(*parts[:count])):
            return archive, "/".join(parts[count:])
    return "", ""


def _folders(archive: str) -> dict[str, dict[str, Entry]]:
    """The folders of an archive with their entries by name; ``""`` is its top."""
    status = os.stat(archive)
    return _listed(archive, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _listed(archive: str, _size: int, _time: int) -> dict[str, dict[str, Entry]]:
    top = archive + os.sep
    tree: dict[str, dict[str, Entry]] = {"": {}}
    for member in members(archive):
        folder, _, name = member[len(top) :].replace(os.sep, "/").rpartition("/")
        _add(tree, top, folder)[name] = Entry(name, member, False)
    return tree


def _add(tree: dict[str, dict[str, Entry]], top: str, folder: str) -> dict[str, Entry]:
    if folder not in tree:
        tree[folder] = {}
        above, _, name = folder.rpartition("/")
        _add(tree, top, above)[name] = Entry(name, top + folder.replace("/", os.sep), True)
    return tree[folder]

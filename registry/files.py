"""Files that survive: written whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from registry.errors import UserError

__all__ = ["DISK_ERRORS", "append_whole", "cache_folder", "cannot_write", "remove_temporaries", "write_atomically"]

# What a process that is killed while it writes leaves behind: ".NAME.pckd-0123abcd.tmp".
_TEMPORARY = re.compile(r"\..+\.pckd-[0-9a-f]{8}\.tmp")

# Windows has no number for a quota that is used up.
_QUOTA = getattr(errno, "EDQUOT", -1)
_ADVICE = {
    errno.ENOSPC: "free some space",
    _QUOTA: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make the file system writable",
}
DISK_ERRORS = frozenset(_ADVICE)
"""Numbers of the errors that are about the disk and not, say, the network."""


def cache_folder() -> Path:
    """Where this library keeps what it can make anew: ``$PCKD_CACHE``, or ``~/.cache/pckd``."""
    return Path(os.environ.get("PCKD_CACHE") or "~/.cache/pckd").expanduser()


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes | memoryview | Callable[[BinaryIO], object],
    *,
    previous: str | os.PathLike[str] | None = None,
    then: str = "try again",
) -> Path:
    """Replace a file as a whole: a reader, a kill and a full disk meet the old one or the new one, never a part.

    The new content goes to a temporary file beside ``path``, is brought to the disk (fsync), and takes the name in one
    step; then the folder is brought to the disk. Permissions are those of any new file (umask). A link stays a link,
    and a device or a pipe is written to directly.

    Args:
        path: the file; its folder must exist.
        data: the content, or a function that writes it to the open file. ``torch.save`` is none: it words a full disk
            as a RuntimeError, so write to memory first.
        previous: where the file that had the name before is kept. A kill between the two renames leaves that one and
            no ``path``.
        then: how the error's advice ends.

    Returns:
        ``path``.

    Raises:
        UserError: it cannot be written (:func:`cannot_write`); the temporary file is gone, and what was there is there.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                _emit(data, file)
            return path
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name[:100]}.pckd-{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                _emit(data, file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(target, previous)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(path, error, then) from error
    return path


def append_whole(path: str | os.PathLike[str], data: bytes, *, then: str = "try again") -> None:
    """Add to the end of a file and bring it to the disk; where that fails, the file is as it was.

    Only a kill in the middle can leave a part of ``data``.

    Raises:
        UserError: it cannot be written (:func:`cannot_write`).
    """
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise cannot_write(path, error, then) from error


def cannot_write(path: str | os.PathLike[str], error: OSError, then: str = "try again") -> UserError:
    """What to raise where writing ``path`` failed: one line with the reason and what to do about it."""
    advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
    return UserError(f"cannot write {os.fspath(path)}: {error.strerror or error}; {advice} and {then}")


def remove_temporaries(folder: str | os.PathLike[str]) -> list[str]:
    """Remove what killed processes left of :func:`write_atomically`; only where no other process writes there.

    Returns:
        The names of the files removed.
    """
    removed = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if _TEMPORARY.fullmatch(name):
                os.unlink(os.path.join(folder, name))
                removed.append(name)
    return removed


def _emit(data: bytes | memoryview | Callable[[BinaryIO], object], file: BinaryIO) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system can sync folders: Windows and some network file systems cannot."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, _QUOTA):
            raise

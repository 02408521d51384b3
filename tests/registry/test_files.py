"""Files are written whole or not at all: killed at every step, on full and read-only disks, over a limit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from registry import UserError
from registry.files import DISK_ERRORS, append_whole, cannot_write, remove_temporaries, write_atomically

pytest.importorskip("resource", reason="kills, limits and permissions of POSIX")

SMALL_DISK = 128
"""KiB."""


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed before its ``step``-th operation on names; whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event not in ("open", "os.rename", "os.remove", "os.truncate", "os.link"):
                return
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status)


def refused(call: Callable[[], object], *said: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert write_atomically(path, b"first, and longer") == path
    write_atomically(str(path), lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_keeps_the_one_before(tmp_path: Path) -> None:
    path, before = tmp_path / "a", tmp_path / "a.before"
    for text in (b"1", b"2", b"3"):
        write_atomically(path, text, previous=before)
    assert (path.read_bytes(), before.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(tmp_path)) == ["a", "a.before"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"x"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


def test_long_names(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("x" * 250), b"x")
    assert os.listdir(tmp_path) == ["x" * 250]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_alone(error: BaseException, tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a", b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail, previous=tmp_path / "before")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_kill_at_any_step_leaves_a_whole_file(tmp_path: Path) -> None:
    """The old content or the new, and with ``previous`` always one of the two names."""
    path, before = tmp_path / "a", tmp_path / "before"
    outcomes = []
    for step in range(1, 20):
        write_atomically(path, b"1" * 1000)
        write_atomically(path, b"2" * 1000, previous=before)
        killed = killed_at(step, lambda: write_atomically(path, b"3" * 1000, previous=before))
        found = [p.read_bytes()[:1].decode() if p.exists() else "-" for p in (path, before)]
        assert all(len(p.read_bytes()) == 1000 for p in (path, before) if p.exists())
        outcomes.append("".join(found))
        if not killed:
            break
    # Before the temporary file, before the first rename, before the second, before the folder's sync; and not killed.
    assert outcomes == ["21", "21", "-2", "32", "32"]
    assert len(os.listdir(tmp_path)) == 4, "two kills left a temporary file each"


def test_what_kills_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    assert killed_at(2, lambda: write_atomically(tmp_path / "a.json", b"x"))
    (left,) = os.listdir(tmp_path)
    mine = [".a.json.tmp", "a.json.pckd-01234567.tmp", ".a.pckd-0123.tmp", ".a.pckd-01234567.tmp.gz", ".pckd.tmp"]
    for name in mine:
        (tmp_path / name).touch()
    assert remove_temporaries(tmp_path) == [left]
    assert sorted(os.listdir(tmp_path)) == sorted(mine)
    assert remove_temporaries(tmp_path / "none") == []


@pytest.mark.parametrize("size", [0, 1, 9999])
def test_over_the_limit(
    size: int, tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = write_atomically(tmp_path / "a", b"old")
    with file_size_limit(size):
        refused(
            lambda: write_atomically(path, bytes(10_000), previous=tmp_path / "before", then="go on"),
            f"cannot write {path}: File too large; raise the limit on the size of files (ulimit -f) and go on",
        )
        write_atomically(tmp_path / "b", bytes(size))
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_full_disk(small_disk: Path) -> None:
    path = write_atomically(small_disk / "a", bytes(60_000))
    # Twice: a temporary file that stayed would leave no room for what fits.
    for _ in range(2):
        refused(
            lambda: write_atomically(path, b"x" * 100_000, previous=small_disk / "before"),
            f"cannot write {path}: No space left on device; free some space and try again",
        )
        assert path.read_bytes() == bytes(60_000)
        assert os.listdir(small_disk) == ["a"]
        write_atomically(path, bytes(60_000))
    lines = b"x" * 40_000 + b"\n"
    append_whole(small_disk / "b", lines)
    refused(lambda: append_whole(small_disk / "b", lines), "No space left on device; free some space and try again")
    assert (small_disk / "b").read_bytes() == lines


def test_a_disk_that_became_read_only(small_disk: Path) -> None:
    path = write_atomically(small_disk / "a", b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (lambda: write_atomically(path, b"new"), lambda: append_whole(path, b"new")):
        refused(call, f"cannot write {path}: Read-only file system; make the file system writable and try again")
    assert path.read_bytes() == b"old"


def test_a_folder_that_may_not_be_written(forbidden: Path) -> None:
    path = forbidden / "a"
    said = f"cannot write {path}: Permission denied; make it writable and try again"
    refused(lambda: write_atomically(path, b"new"), said)
    path_below = forbidden / "b"
    refused(lambda: append_whole(path_below, b"new"), f"cannot write {path_below}: Permission denied; make it writable")
    assert path.read_bytes() == b"old"
    assert os.listdir(forbidden) == ["a"]


def test_folders_in_the_way_or_missing(tmp_path: Path) -> None:
    refused(lambda: write_atomically(tmp_path, b"x"), f"cannot write {tmp_path}: ", "; check the path and the disk and")
    refused(lambda: write_atomically(tmp_path / "no" / "a", b"x"), "No such file or directory; check the path")
    refused(lambda: append_whole(tmp_path / "no" / "a", b"x"), "No such file or directory; check the path")
    assert os.listdir(tmp_path) == []


def test_appends(tmp_path: Path) -> None:
    append_whole(tmp_path / "a", b"1\n")
    append_whole(tmp_path / "a", b"2\n")
    assert (tmp_path / "a").read_bytes() == b"1\n2\n"


@pytest.mark.parametrize("room", [0, 1, 9])
def test_what_cannot_be_appended_whole_is_not_there_at_all(
    room: int, tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    append_whole(tmp_path / "a", b"first\n")
    with file_size_limit(6 + room):
        refused(lambda: append_whole(tmp_path / "a", b"0123456789"), "File too large", "and try again")
    assert (tmp_path / "a").read_bytes() == b"first\n"


def test_a_quota_is_named() -> None:
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert str(cannot_write("x", quota)) == (
        "cannot write x: Disk quota exceeded; free some of your quota and try again"
    )
    assert errno.EDQUOT in DISK_ERRORS
    assert errno.ECONNREFUSED not in DISK_ERRORS
    assert str(cannot_write("x", OSError("odd"))) == "cannot write x: odd; check the path and the disk and try again"

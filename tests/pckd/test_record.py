"""A run's folder survives kill -9, full disks, flipped bits and second processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from pckd.api import distill
from pckd.arguments import before, may_change
from pckd.engine.record import CHECKPOINT, LOCK, METRICS, PREVIOUS, RunFolder
from registry import UserError
from registry.files import write_atomically

pytest.importorskip("resource", reason="kills, limits and locks of POSIX")

SMALL_DISK = 256
"""KiB."""

ARGUMENTS = {"method": "kd", "lr": 0.05, "epochs": 3, "output": "here", "milestones": [0.5, 0.75], "views": None}


def state_of(epoch: int, size: int = 50) -> dict[str, Any]:
    """A state whose every number follows from its epoch, so that a mixture of two is seen."""
    parts = {"history": {"epoch": epoch}, "student": {"weight": torch.full((size,), float(epoch))}}
    return {"arguments": ARGUMENTS, "parts": parts}


def check(state: Mapping[str, Any] | None) -> int:
    assert state is not None
    epoch, weight = state["parts"]["history"]["epoch"], state["parts"]["student"]["weight"]
    assert torch.equal(weight, torch.full_like(weight, float(epoch)))
    return int(epoch)


def loaded(path: Path) -> int:
    """The epoch that a new process would go on from."""
    return check(RunFolder(path).load_checkpoint(ARGUMENTS))


def forked(work: Callable[[], object]) -> int:
    """The number of a process of its own that runs ``work``."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def finished(child: int) -> int:
    """Its exit status; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused(call: Callable[[], object], *said: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


# Checkpoints


def test_the_newest_and_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    assert folder.load_checkpoint(ARGUMENTS) is None
    for epoch in (1, 2, 3):
        folder.save_checkpoint(state_of(epoch))
    state = folder.load_checkpoint(ARGUMENTS)
    assert check(state) == 3
    assert state is not None
    assert state.keys() == {"arguments", "parts"}
    assert sorted(os.listdir(folder.path)) == [PREVIOUS, CHECKPOINT]
    os.unlink(folder.path / CHECKPOINT)
    assert loaded(folder.path) == 2


def test_torch_itself_reads_the_file_and_the_seal_is_the_hash_of_what_is_before_it(tmp_path: Path) -> None:
    RunFolder(tmp_path).save_checkpoint(state_of(7))
    assert check(torch.load(tmp_path / CHECKPOINT, weights_only=True)) == 7
    assert check(torch.load(tmp_path / CHECKPOINT, weights_only=True, mmap=True)) == 7
    body, _, seal = (tmp_path / CHECKPOINT).read_bytes().rpartition(b"\npckd sha256 ")
    assert seal == hashlib.sha256(body).hexdigest().encode() + b"\n"


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed before its ``step``-th operation on names; whether it came that far."""

    def body() -> None:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.remove", "os.truncate", "os.link"):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    status = finished(forked(body))
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_kill_at_any_step_of_saving_leaves_a_checkpoint(saved: int, tmp_path: Path) -> None:
    found, killed, step = [], True, 0
    while killed:
        step += 1
        folder = RunFolder(tmp_path / str(step))
        for epoch in range(1, saved + 1):
            folder.save_checkpoint(state_of(epoch))

        def work(folder: RunFolder = folder) -> None:
            folder.append_metrics({"epoch": saved + 1})
            folder.save_checkpoint(state_of(saved + 1))

        killed = killed_at(step, work)
        again = RunFolder(folder.path)
        state = again.load_checkpoint(ARGUMENTS)
        found.append(0 if state is None else check(state))
        # And the next save makes good what the kill left.
        again.keep_metrics(found[-1])
        again.append_metrics({"epoch": 4})
        again.save_checkpoint(state_of(4))
        assert loaded(folder.path) == 4
        assert json.loads((folder.path / METRICS).read_text().splitlines()[-1]) == {"epoch": 4}
        with again.lock():
            assert set(os.listdir(folder.path)) <= {METRICS, CHECKPOINT, PREVIOUS, LOCK}, "no temporary file is left"
        os.unlink(folder.path / CHECKPOINT)
        if saved:
            assert loaded(folder.path) in (saved, saved + 1)
    assert (found[0], found[-1]) == (saved, saved + 1)
    assert found == sorted(found)
    assert len(found) >= 5


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "no byte": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without the seal": lambda content: content[: content.rindex(b"\npckd")],
    "longer": lambda content: content + b"\n",
    "twice": lambda content: content * 2,
    "text": lambda content: b"not a checkpoint",
    "a flipped bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_newest_gives_way_to_the_one_before(
    spoil: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.save_checkpoint(state_of(epoch))
    newest = tmp_path / CHECKPOINT
    newest.write_bytes(spoil(newest.read_bytes()))
    again = RunFolder(tmp_path)
    state = again.load_checkpoint(ARGUMENTS)
    assert check(state) == 1
    assert state is not None
    (record,) = caplog.records
    assert record.name == "pckd"
    assert record.levelname == "WARNING"
    assert record.getMessage() == state["note"]
    assert str(newest) in state["note"]
    assert state["note"].endswith(": going on from checkpoint.previous.pth, the one before")
    # The damaged one does not push out the good one: a kill between the renames would leave it alone.
    again.save_checkpoint(state_of(3))
    assert loaded(tmp_path) == 3
    newest.rename(tmp_path / "aside")
    assert loaded(tmp_path) == 1
    (tmp_path / "aside").rename(newest)
    again.save_checkpoint(state_of(4))
    newest.unlink()
    assert loaded(tmp_path) == 3


def test_a_flipped_bit_and_a_missing_end_are_noticed_wherever(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state_of(1, size=2))
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    unsealed = whole.rindex(b"\npckd")
    unnoticed = []
    for position in (*range(0, unsealed, 7), *range(unsealed, len(whole))):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        with contextlib.suppress(UserError):
            folder.load_checkpoint(ARGUMENTS)
            unnoticed.append(position)
        path.write_bytes(whole[:position])
        with contextlib.suppress(UserError):
            folder.load_checkpoint(ARGUMENTS)
            unnoticed.append(-position)
    assert unnoticed == []


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_no_good_checkpoint_is_one_line(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state_of(1))
    content = spoil((tmp_path / CHECKPOINT).read_bytes())
    (tmp_path / CHECKPOINT).write_bytes(content)
    call = lambda: RunFolder(tmp_path).load_checkpoint(ARGUMENTS)  # noqa: E731
    remedy = "; restore one of them from a copy, or start anew in another --output"
    refused(
        call, f"cannot resume from {tmp_path / CHECKPOINT}: it is ", "and checkpoint.previous.pth is missing", remedy
    )
    (tmp_path / PREVIOUS).write_bytes(content)
    what = "empty" if not content else "damaged"
    refused(call, f"{tmp_path / CHECKPOINT}: it is {what}", f"and checkpoint.previous.pth is {what}", remedy)
    (tmp_path / CHECKPOINT).unlink()
    refused(call, f"{tmp_path / CHECKPOINT}: it is missing, and checkpoint.previous.pth is {what}", remedy)
    assert (tmp_path / PREVIOUS).read_bytes() == content


def sealed(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    return body + f"\npckd sha256 {hashlib.sha256(body).hexdigest()}\n".encode()


def test_an_unreadable_newest_is_no_loss(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state_of(1))
    folder.save_checkpoint(state_of(2))
    (tmp_path / CHECKPOINT).unlink()
    (tmp_path / CHECKPOINT).mkdir()
    state = folder.load_checkpoint(ARGUMENTS)
    assert check(state) == 1
    assert "cannot be read (Is a directory)" in (state or {})["note"]


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**state_of(1), "x": Evil()}, "it cannot be loaded ("),
        ([1], "it is no checkpoint of this program"),
        ({"epoch": 1}, "it is no checkpoint of this program"),
        ({"arguments": 1}, "it is no checkpoint of this program"),
    ],
)
def test_what_is_no_checkpoint_of_a_run(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(sealed(content))
    refused(lambda: RunFolder(tmp_path).load_checkpoint(ARGUMENTS), said)
    # No code in it has run.
    assert not (tmp_path / "trap").exists()


# Arguments


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.1}, "the arguments differ (lr was 0.05, is 0.1); give the same ones or another --output"),
        ({"views": 4, "method": "crd"}, "(method was 'kd', is 'crd'; views was None, is 4)"),
        ({"milestones": [0.5]}, "milestones was [0.5, 0.75], is [0.5]"),
        ({"ema": 0.9}, "ema was None, is 0.9"),
        ({"amp": True}, "amp was None, is True"),
        ({"view_statistics": "own"}, "view_statistics was 'joint', is 'own'"),
        ({"on_bad_image": "skip"}, "on_bad_image was 'stop', is 'skip'"),
    ],
)
def test_other_arguments_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state_of(1))
    refused(
        lambda: folder.load_checkpoint({**ARGUMENTS, **change}), f"cannot resume from {tmp_path / CHECKPOINT}", said
    )
    folder.save_checkpoint(state_of(2))
    (tmp_path / CHECKPOINT).write_bytes(b"")
    refused(lambda: folder.load_checkpoint({**ARGUMENTS, **change}), f"cannot resume from {tmp_path / PREVIOUS}", said)


@pytest.mark.parametrize(
    "change",
    [
        {"ema": None, "amp": False},
        dict.fromkeys(sorted(may_change()), "new"),
        {"epochs": 9, "num_workers": 4},
        before(),
    ],
)
def test_arguments_that_may_change_or_are_not_given(change: dict[str, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state_of(1))
    assert check(folder.load_checkpoint({**ARGUMENTS, **change})) == 1


def test_earlier_runs_had_the_defaults_of_later_arguments() -> None:
    parameters = inspect.signature(distill).parameters
    assert {name: parameters[name].default for name in before()} == before()


# Metrics and result


def test_metrics_are_kept_up_to_an_epoch(tmp_path: Path) -> None:
    folder, path = RunFolder(tmp_path), tmp_path / METRICS
    folder.keep_metrics(0)
    assert path.read_bytes() == b""
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "loss": 0.5})
    lines = [f'{{"epoch": {epoch}, "loss": 0.5}}\n' for epoch in (1, 2, 3)]
    assert path.read_text() == "".join(lines)
    folder.keep_metrics(2)
    assert path.read_text() == "".join(lines[:2])
    for epochs in (3, 2):
        # Half a line is removed.
        path.write_text(path.read_text() + '{"epoch": 3, "lo')
        folder.keep_metrics(epochs)
        assert path.read_text() == "".join(lines[:2])
    folder.keep_metrics(0)
    assert path.read_bytes() == b""


def test_result(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result({"top1": 71.25, "device": torch.device("cpu")})
    assert json.loads((tmp_path / "result.json").read_text()) == {"top1": 71.25, "device": "cpu"}
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("name", [CHECKPOINT, PREVIOUS, METRICS, "result.json", "model_final.pth"])
def test_finished_work_is_refused(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock():
        folder.refuse_finished_work()
    (tmp_path / name).touch()
    refused(folder.refuse_finished_work, f"already holds a run ({name}); continue it with --resume")


# Disks


def write_all(folder: RunFolder, size: int) -> dict[str, Callable[[], object]]:
    return {
        CHECKPOINT: lambda: folder.save_checkpoint(state_of(3, size=size // 4)),
        METRICS: lambda: folder.append_metrics({"text": "x" * size}),
        "result.json": lambda: folder.write_result({"text": "x" * size}),
    }


def refuses_and_goes_on(folder: RunFolder, size: int, said: str) -> None:
    """Every file of ``size`` bytes is refused with what is ``said``, the folder is as before, and smaller ones fit."""
    for epoch in (1, 2):
        folder.append_metrics({"epoch": epoch})
        folder.save_checkpoint(state_of(epoch))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    for name, call in write_all(folder, size).items():
        refused(call, f"cannot write {folder.path / name}: {said} and continue with --resume")
        assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert loaded(folder.path) == 2
    folder.append_metrics({"epoch": 3})
    folder.save_checkpoint(state_of(3))
    assert loaded(folder.path) == 3


def test_a_full_disk(small_disk: Path) -> None:
    refuses_and_goes_on(RunFolder(small_disk / "run"), 400_000, "No space left on device; free some space")


def test_over_the_limit_of_a_file(
    tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    with file_size_limit(20_000):
        said = "File too large; raise the limit on the size of files (ulimit -f)"
        refuses_and_goes_on(RunFolder(tmp_path), 400_000, said)


def test_a_disk_that_became_read_only(small_disk: Path) -> None:
    folder = RunFolder(small_disk)
    folder.save_checkpoint(state_of(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name, call in write_all(folder, 100).items():
        refused(
            call, f"cannot write {small_disk / name}: Read-only file system; make the file system writable and cont"
        )
    refused(folder.lock, f"cannot write {small_disk / LOCK}: Read-only file system")
    refused(
        lambda: RunFolder(small_disk), f"output folder {small_disk}: Read-only file system; choose another --output"
    )
    refused(lambda: RunFolder(small_disk / "run"), "Read-only file system; choose another --output")
    assert check(folder.load_checkpoint(ARGUMENTS)) == 1


def test_a_folder_that_may_not_be_written(forbidden: Path) -> None:
    refused(lambda: RunFolder(forbidden), f"output folder {forbidden}: Permission denied; choose another --output")
    refused(lambda: RunFolder(forbidden / "run"), "Permission denied; choose another --output")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    refused(lambda: RunFolder(tmp_path / "run"), f"output folder {tmp_path / 'run'}: File exists; choose another")
    refused(lambda: RunFolder(tmp_path / "run" / "below"), "Not a directory; choose another")


# The lock


def holder(folder: Path, *, with_worker: bool = False) -> tuple[int, int]:
    """Another process that holds the folder until it is killed, and a worker that it has forked (or itself)."""
    reader, writer = os.pipe()

    def hold() -> None:
        lock = RunFolder(folder).lock()
        assert lock.held
        worker = forked(lambda: time.sleep(60)) if with_worker else os.getpid()
        os.write(writer, b"%d\n" % worker)
        time.sleep(60)
        lock.release()

    child = forked(hold)
    os.close(writer)
    with open(reader, "rb") as pipe:
        return child, int(pipe.readline())


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    child, _ = holder(tmp_path)
    left = tmp_path / ".checkpoint.pth.pckd-0123abcd.tmp"
    left.touch()
    try:
        for _ in range(2):
            said = f"output folder {tmp_path} is in use by another process (PID {child}); wait for it or choose another"
            refused(RunFolder(tmp_path).lock, said)
        assert left.exists(), "it may be the other's, who is writing"
    finally:
        os.kill(child, signal.SIGKILL)
        finished(child)
    (tmp_path / ".other.tmp").touch()
    with RunFolder(tmp_path).lock() as lock:
        assert lock.held
        assert sorted(os.listdir(tmp_path)) == [LOCK, ".other.tmp"]
    assert not lock.held


def test_a_lock_is_released(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lock = folder.lock()
    assert folder.lock() is lock
    refused(RunFolder(tmp_path).lock, "is in use by another run of this process; wait")
    for content, said in (("17 elsewhere\n", " (PID 17 on elsewhere)"), ("", "")):
        (tmp_path / LOCK).write_text(content)
        refused(RunFolder(tmp_path).lock, f"in use by another process{said}; wait")
    lock.release()
    lock.release()
    with contextlib.suppress(RuntimeError), RunFolder(tmp_path).lock():
        raise RuntimeError
    with RunFolder(tmp_path).lock():
        refused(folder.lock, "is in use")
    assert folder.lock().held


def test_workers_of_a_killed_run_do_not_hold_its_lock(tmp_path: Path) -> None:
    child, worker = holder(tmp_path, with_worker=True)
    try:
        refused(RunFolder(tmp_path).lock, f"another process (PID {child})")
        os.kill(child, signal.SIGKILL)
        finished(child)
        os.kill(worker, 0)
        with RunFolder(tmp_path).lock() as lock:
            assert lock.held
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_about(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_atomically(tmp_path / ".checkpoint.pth.pckd-0123abcd.tmp", b"another's, perhaps")
    with RunFolder(tmp_path).lock() as lock:
        assert not lock.held
    (record,) = caplog.records
    assert f"output folder {tmp_path} cannot be locked ({os.strerror(number)})" in record.getMessage()
    assert (tmp_path / ".checkpoint.pth.pckd-0123abcd.tmp").exists()

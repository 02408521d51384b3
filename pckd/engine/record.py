"""The folder a run writes: metrics.jsonl, result.json, checkpoint.pth, model_final.pth. Made to survive kill -9.

A checkpoint is what ``torch.save`` writes, which ``torch.load`` reads as ever, and behind it a line with its SHA-256:
PyTorch itself checks no sums and would load flipped bits. The newest is ``checkpoint.pth``; the one before stays as
``checkpoint.previous.pth``. A new one is written beside them and brought to the disk, then the newest is renamed to
previous, then the new one to newest: at every moment, and so after a kill at any moment, one whole checkpoint has one
of the two names. Room is needed for three.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch

from pckd import arguments
from pckd.runs import METRICS, RESULT
from registry import UserError
from registry.files import append_whole, cannot_write, remove_temporaries, write_atomically

CHECKPOINT = "checkpoint.pth"
PREVIOUS = "checkpoint.previous.pth"
FINAL_MODEL, EMA_MODEL, BEST_MODEL = "model_final.pth", "model_ema.pth", "model_best.pth"
LOCK = ".lock"

PARTS: Mapping[str, str] = MappingProxyType(
    {
        "train": "the training split",
        "test": "the split that is measured on",
        "teacher": "the teacher",
        "student": "the file of student_weights",
    }
)
"""What a run has fingerprints of, and what that is called; see :mod:`pckd.engine.fingerprint`."""

log = logging.getLogger("pckd")

# Text, so that no digest looks like the ZIP signature that torch.load searches for from the end.
_SEAL = b"\npckd sha256 %s\n"
_SEAL_SIZE = len(_SEAL % bytes(64))
_THEN = "continue with --resume"


class FolderInUse(UserError):
    """Another run is at work in the folder."""


class RunFolder:
    """One run's files. Every file appears whole or not at all.

    Args:
        path: created if missing.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._lock: Lock | None = None
        self._newest_is_broken = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output folder {self.path}: {error.strerror or error}; choose another --output") from None

    def lock(self) -> Lock:
        """Keep other processes out until the lock is released, this folder's object is gone or the process dies.

        What a killed process left half written is removed.

        Raises:
            FolderInUse: another process, or another run of this one, is at work in the folder.
        """
        if self._lock is None or not self._lock.held:
            self._lock = Lock(self.path)
            if self._lock.held:
                remove_temporaries(self.path)
        return self._lock

    def refuse_finished_work(self) -> None:
        """Keep an earlier run from being overwritten."""
        names = (CHECKPOINT, PREVIOUS, METRICS, RESULT, FINAL_MODEL, EMA_MODEL, BEST_MODEL)
        held = [name for name in names if (self.path / name).exists()]
        if held:
            raise UserError(
                f"output folder {self.path} already holds a run ({', '.join(held)}); "
                "continue it with --resume, or choose another --output"
            )

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write the newest checkpoint; the one before stays as the previous.

        Args:
            state: tensors, numbers, strings, and lists and dictionaries of them; ``"arguments"`` among them.

        Raises:
            UserError: the disk is full or the like; the checkpoints that were there still are.
        """
        path = self.path / CHECKPOINT
        # A broken one must not take the place of the good one that the run goes on from.
        previous = None if self._newest_is_broken else self.path / PREVIOUS
        write_atomically(path, _seal(state), previous=previous, then=_THEN)
        self._newest_is_broken = False

    def load_checkpoint(
        self, arguments: Mapping[str, Any], fingerprints: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None where there is none yet.

        Where that is the previous one, because the newest is damaged or a kill came between two renames, a warning is
        logged, and its text is also under ``"note"`` in what is returned.

        Args:
            arguments: of the run that goes on. fingerprints: of its data and teacher (:data:`PARTS`).

        Raises:
            UserError: none of those there can be read, or it was written by a run with other arguments, data or
                teacher.
        """
        state, problems = self._newest(arguments, fingerprints)
        if state is None:
            if problems == ["is missing"] * 2:
                return None
            raise UserError(
                f"cannot resume from {self.path / CHECKPOINT}: it {problems[0]}, and {PREVIOUS} {problems[1]}; "
                "restore one of them from a copy, or start anew in another --output"
            )
        if problems:
            self._newest_is_broken = problems[0] != "is missing"
            state["note"] = f"{self.path / CHECKPOINT} {problems[0]}: going on from {PREVIOUS}, the one before"
            log.warning("%s", state["note"])
        return state

    def refuse_another_run(self, arguments: Mapping[str, Any], fingerprints: Mapping[str, Any]) -> None:
        """Refuse another run, as :meth:`load_checkpoint` does, by the fingerprints that are known so far."""
        self._newest(arguments, fingerprints)

    def _newest(
        self, now: Mapping[str, Any], fingerprints: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint, if it is of this run, and what is wrong with those that should come before."""
        problems: list[str] = []
        for name in (CHECKPOINT, PREVIOUS):
            path = self.path / name
            try:
                state = _unseal(path.read_bytes())
            except FileNotFoundError:
                problems.append("is missing")
            except OSError as error:
                problems.append(f"cannot be read ({error.strerror or error})")
            except _Damaged as error:
                problems.append(str(error))
            else:
                asked = {key: value for key, value in now.items() if key not in arguments.may_change()}
                changed = find_changes(state["arguments"], asked, state.get("fingerprints"), fingerprints)
                if changed:
                    raise UserError(
                        f"cannot resume from {path}: the arguments differ ({'; '.join(changed)}); "
                        "give the same ones or another --output"
                    )
                return state, problems
        return None, problems

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of metrics.jsonl after ``epochs``: they belong to what a resumed run does again.

        A last line that a kill has cut short goes too.
        """
        path = self.path / METRICS
        lines = path.read_bytes().splitlines(keepends=True)[:epochs] if epochs and path.exists() else []
        whole = b"".join(line for line in lines if line.endswith(b"\n"))
        write_atomically(path, whole, then=_THEN)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; it is on the disk when this returns. Call it before :meth:`save_checkpoint`."""
        append_whole(self.path / METRICS, (json.dumps(row) + "\n").encode(), then=_THEN)

    def write_result(self, result: Mapping[str, Any]) -> None:
        text = json.dumps(result, indent=2, default=str) + "\n"
        write_atomically(self.path / RESULT, text.encode(), then=_THEN)


class Lock:
    """An exclusive flock on ``.lock`` in a folder: the kernel releases it when the process dies, however it dies.

    The file stays, since a lock on a file that another process removes would guard nothing. Where the file system
    (some network ones) or the system (Windows) has no flock, a warning is logged and nothing is held.
    """

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO | None = None
        try:
            import fcntl
        except ImportError:
            _warn_unlocked(folder, "this system has no flock")
            return
        try:
            file = open(folder / LOCK, "a+b", buffering=0)  # noqa: SIM115 - open as long as the lock is held
        except OSError as error:
            raise cannot_write(folder / LOCK, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    _warn_unlocked(folder, error.strerror or str(error))
                    return
                raise FolderInUse(
                    f"output folder {folder} is in use by {_holder(file)}; wait for it or choose another --output"
                ) from None
        # Who holds it is said for the one who is refused; the lock itself needs no content, nor room on the disk.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"{os.getpid()} {platform.node()}\n".encode())
        self._file = file
        _close_in_children(file)

    @property
    def held(self) -> bool:
        return self._file is not None

    def release(self) -> None:
        """Let others in. Releasing again does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _close_in_children(file: BinaryIO) -> None:
    """Take the file from forked workers: a lock lasts as long as any copy is open, and workers outlive a killed run."""
    reference = weakref.ref(file)

    def close() -> None:
        copy = reference()
        if copy is not None:
            copy.close()

    os.register_at_fork(after_in_child=close)


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    process, _, host = file.read(1000).decode(errors="replace").strip().partition(" ")
    if not process.isdigit():
        return "another process"
    if host != platform.node():
        return f"another process (PID {process} on {host})"
    return "another run of this process" if int(process) == os.getpid() else f"another process (PID {process})"


def _warn_unlocked(folder: Path, reason: str) -> None:
    log.warning("output folder %s cannot be locked (%s): see to it that one run at a time writes there", folder, reason)


class _Damaged(Exception):
    """Says of a checkpoint what is wrong with it."""


def _seal(state: Mapping[str, Any]) -> memoryview:
    """The bytes of a checkpoint file: ``torch.save`` to a file on a full disk raises errors that do not say so."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with buffer.getbuffer() as body:
        seal = _seal_of(body)
    buffer.seek(0, os.SEEK_END)
    buffer.write(seal)
    return buffer.getbuffer()


def _seal_of(body: bytes | memoryview) -> bytes:
    return _SEAL % hashlib.sha256(body).hexdigest().encode()


def _unseal(content: bytes) -> dict[str, Any]:
    """The state in the bytes of a checkpoint file; raises _Damaged."""
    if not content:
        raise _Damaged("is empty")
    body = memoryview(content)[:-_SEAL_SIZE]
    if content[-_SEAL_SIZE:] != _seal_of(body):
        raise _Damaged("is damaged (cut short, changed, or no checkpoint of this version)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _Damaged(f"cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    if isinstance(state, dict) and isinstance(state.get("arguments"), dict):
        if "parts" in state:
            return state
        if "objective" in state:
            return _in_parts(state)
    raise _Damaged("is no checkpoint of this program")


def _in_parts(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of version 0.1, which kept the parts of a run otherwise."""
    parts = {name: state.pop(name) for name in ("student", "objective", "optimizer")}
    history = {"rows": state.pop("history"), "seconds": state.pop("seconds", 0.0), "images": state.pop("images", 0)}
    history.update(epoch=state.pop("epoch"), step=state.pop("step"))
    state["processes"] = [{"buffers": {}, **own} for own in state["processes"]]
    return {**state, "parts": {**parts, "guard": {"skipped": state.pop("skipped")}, "history": history}}


def find_changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
    found: Mapping[str, Any] | None = None,
) -> list[str]:
    """What of a run's arguments, data and teacher differs from those of an earlier run, in words.

    Args:
        before: arguments of the earlier run, as its files have them; it may lack some that its version did not know.
        now: what is asked for; of the others nothing is said.
        known: the earlier run's fingerprints (:data:`PARTS`); what its version did not know is not compared.
        found: what there is now; likewise.
    """
    before, known, found = {**arguments.before(), **before}, known or {}, found or {}
    # What is known by its content may lie elsewhere.
    moved = {"teacher_cache"} | {f"{role}_weights" for role in ("teacher", "student") if role in known}
    changes = [
        f"{key} was {before.get(key)!r}, is {value!r}"
        for key, value in now.items()
        # An earlier version did as this one does where an argument is not given.
        if (before[key] != value if key in before else value) and not (key in moved and value and before.get(key))
    ]
    for part, name in PARTS.items():
        own, other = (prints.get(part) or {} for prints in (found, known))
        differing = [key for key, value in own.items() if key in other and other[key] != value]
        if differing:
            changes.append(f"{name} has other {', '.join(differing)} than before")
    return changes

"""The folder a run writes: metrics.jsonl, result.json, checkpoint.pth, model_final.pth."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from registry import UserError

CHECKPOINT = "checkpoint.pth"
METRICS = "metrics.jsonl"
RESULT = "result.json"
FINAL_MODEL = "model_final.pth"

MAY_CHANGE = frozenset({"output", "resume", "device", "num_workers", "epochs", "data_root", "compile", "profile"})
"""Arguments that a resumed run may give anew."""


class RunFolder:
    """One run's files. Every file appears whole or not at all.

    Args:
        path: created if missing.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"output folder {self.path}: {error.strerror or error}; choose another --output") from None

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        _replace(self.path / CHECKPOINT, lambda temporary: torch.save(dict(state), temporary))

    def refuse_finished_work(self) -> None:
        """Keep an earlier run from being overwritten.

        Raises:
            UserError: the folder holds a run.
        """
        held = [name for name in (CHECKPOINT, METRICS, RESULT, FINAL_MODEL) if (self.path / name).exists()]
        if held:
            raise UserError(
                f"output folder {self.path} already holds a run ({', '.join(held)}); "
                "continue it with --resume, or choose another --output"
            )

    def load_checkpoint(self, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest checkpoint, or None where there is none yet.

        Raises:
            UserError: it cannot be read, or was written by a run with other arguments.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"cannot resume from {path}: not a checkpoint of this program ({reason})") from None
        changed = [
            f"{key} was {state['arguments'].get(key)!r}, is {value!r}"
            for key, value in arguments.items()
            if key not in MAY_CHANGE and state["arguments"].get(key) != value
        ]
        if changed:
            raise UserError(
                f"cannot resume from {path}: the arguments differ ({'; '.join(changed)}); "
                "give the same ones or another --output"
            )
        return state

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of metrics.jsonl after ``epochs``: they belong to what a resumed run does again."""
        path = self.path / METRICS
        lines = path.read_text().splitlines(keepends=True)[:epochs] if epochs and path.exists() else []
        _replace(path, lambda temporary: temporary.write_text("".join(lines)))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        with open(self.path / METRICS, "a") as file:
            file.write(json.dumps(row) + "\n")

    def write_result(self, result: Mapping[str, Any]) -> None:
        text = json.dumps(result, indent=2, default=str) + "\n"
        _replace(self.path / RESULT, lambda temporary: temporary.write_text(text))


def _replace(path: Path, write: Any) -> None:
    """Write beside ``path`` and rename, so that a reader never meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

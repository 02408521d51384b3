"""Fixtures of all tests: one thread, registries that forget, the published step's numbers, and disks that refuse."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model_zoo import save_weights
from pckd.display import Display
from pckd.tasks.classification import image_views
from registry import BACKBONES, REGISTRIES, Centers, Context, Output, Setup, Shapes, build

# The tensors of these tests are small: more threads only cost time, and one thread sums in one order. So it is in the
# processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A job that a shell starts in the background ignores the interrupt that some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "pckd" / "golden"


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget after the test the plug-ins that it loaded, and what it registered."""
    before, modules = [(registry, registry._snapshot()) for registry in REGISTRIES], set(sys.modules)
    yield
    for name in [name for name in sys.modules.keys() - modules if name.startswith("pckd_plugin_")]:
        del sys.modules[name]
    for registry, state in before:
        registry._restore(state)


@pytest.fixture
def stop_after() -> Callable[[int], Display]:
    """A display that interrupts a run after so many steps."""

    class Stop(Display):
        def __init__(self, steps: int) -> None:
            self.left = steps

        def advance(self, epoch: int, step: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    return Stop


class Golden(SimpleNamespace):
    """Arrays of one file as tensors, and what the losses need made of them."""

    arrays: dict[str, torch.Tensor]
    name: str

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.arrays[key]

    def near(self, key: str) -> Any:
        """What a test compares with: the published number, rtol 1e-4, atol 1e-5."""
        return pytest.approx(self.arrays[f"expected_{key}"].numpy(), rel=1e-4, abs=1e-5)

    @property
    def student(self) -> Output:
        return Output(self["student_logits"], self["student_embedding"])

    @property
    def teacher(self) -> Output:
        return Output(self["teacher_logits"], self["teacher_embedding"])

    @property
    def setup(self) -> Setup:
        return Setup(Shapes.of(self.student), Shapes.of(self.teacher))

    @property
    def views(self) -> int:
        return int(self["views"])

    @property
    def centers(self) -> Centers:
        names = ("student_weight", "teacher_weight", "student_bias", "teacher_bias")
        return Centers(*(self[name] for name in names))

    def context(self, epoch: int = 1, epochs: int = 240) -> Context:
        instances = image_views(self["labels"], torch.arange(len(self["labels"])), self.views)
        return Context(instances, self.centers, epoch=epoch, epochs=epochs)

    def fill(self, layer: nn.Module, name: str) -> None:
        """Fill a layer with the published weight and bias; a batch norm keeps its fresh running statistics."""
        state = {**layer.state_dict(), "weight": self[f"{name}_weight"], "bias": self[f"{name}_bias"]}
        layer.load_state_dict(state)


@pytest.fixture(scope="session", params=["same", "other"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Published inputs and outputs, for embeddings of one width and of two."""
    with np.load(GOLDEN / f"losses_{request.param}_width.npz") as file:
        arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    return Golden(arrays=arrays, name=request.param)


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a run of two epochs below the test's own: ``write_run("kd-0", "kd", seed=0)``."""

    def write(
        name: str,
        method: str = "kd",
        *,
        seed: int = 0,
        tops: Sequence[float] = (10.0, 20.0),
        rows: Mapping[str, Sequence[Any]] = {},
        finished: bool = True,
        classes: int = 0,
        arguments: Mapping[str, Any] = {},
        **result: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        columns = {"train_top1": tops, "loss": tops, "cross_entropy": tops, **rows}
        lines = [
            {"epoch": i + 1, "lr": 0.1, **{k: v[i] for k, v in columns.items()}, "top1": top, "top5": 90.0}
            for i, top in enumerate(tops)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps({**line, "test_loss": 1.0}) + "\n" for line in lines))
        data = f"shapes(image_size=8, train_size=24, test_size=40, num_classes={classes})"
        given = {"student": "resnet8", "method": method, "seed": seed, "data": data, "data_root": None, **arguments}
        record = {"student": "resnet8", "teacher": "resnet20", "method": method, "seed": seed, "measured_on": "test"}
        record |= {"last_top1": tops[-1], "best_top1": max(tops), "epochs": len(tops), "dataset": data}
        record |= {"train_images": 100, "train_seconds": 10.0 + seed, "terms": {"cross_entropy": {}, "kd": {}}}
        if finished:
            (folder / "result.json").write_text(json.dumps({**record, "arguments": given, **result}))
        if classes:
            # An untrained student's weights.
            torch.manual_seed(seed)
            save_weights(build(BACKBONES, "resnet8", classes), folder / "model_final.pth")
        return folder

    return write


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """In ``with file_size_limit(size):`` no file may grow beyond ``size`` bytes: the system refuses as it does over a
    quota. Python ignores SIGXFSZ."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system in memory of as many KiB as the module's SMALL_DISK says, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.module.SMALL_DISK}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that may be read and not be written, not even where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a").write_bytes(b"old")
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)

"""Weights from files and addresses; every refusal in one line, and nothing loaded by halves."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import http.server
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model_zoo import (
    PUBLISHED,
    Preprocessing,
    Published,
    load_published,
    load_weights,
    preprocessing_of,
    read_metadata,
    save_weights,
    set_preprocessing,
)
from registry import BACKBONES, UserError, build

Limit = Callable[[int], AbstractContextManager[None]]
Server = tuple[str, Path, list[str]]
"""An address, the folder behind it, and the paths that were asked for."""
Halting = tuple[str, list[Callable[[], object]], bytes]


def net(name: str = "resnet8", classes: int = 7) -> nn.Module:
    return build(BACKBONES, name, classes)


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(path: object, message: str, network: nn.Module | None = None, **options: Any) -> None:
    """The file is refused in one line, and the network is as it was."""
    network = network or net()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_weights(network, path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a local web server."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A local web server: its address, its folder, and the paths it was asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with serving(functools.partial(Handler, directory=str(folder))) as address:
        yield address, folder, asked


def downloaded(cache: Path, name: str) -> list[Path]:
    """What is left of a download."""
    return [path for path in cache.rglob(f"{name}*") if path.suffix != ".lock"]


def begins_again(halting: Halting, cache: Path, name: str) -> None:
    """No part is taken for the whole: the next call gets all of it."""
    assert not list(cache.rglob(f"{name}.pth"))
    load_weights(net(), f"{halting[0]}/{name}.pth", cache_dir=cache)
    assert next(cache.rglob(f"{name}.pth")).read_bytes() == halting[2]


@pytest.mark.parametrize("name", ["resnet8", "MobileNetV2"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    source, target = net(name), net(name)
    path = save_weights(source, tmp_path / "new" / "student.pt", accuracy=71.5, epochs=[1, 2], network="resnet8")
    loaded = load_weights(target, path)
    assert same(source, target)
    assert loaded.meta == {"accuracy": 71.5, "epochs": [1, 2], "network": "resnet8"}
    assert (loaded.missing, loaded.unexpected) == ((), ())
    assert os.listdir(path.parent) == ["student.pt"]


RECORD = Preprocessing((0.5, 0.25, 0.75), (0.5, 0.25, 1.0), (8, 12), ("cat", "dog"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_network_keeps_the_record_of_its_preprocessing(suffix: str, tmp_path: Path) -> None:
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    source, plain = net(), net()
    set_preprocessing(source, RECORD)
    assert preprocessing_of(plain) is None
    assert source.state_dict().keys() == plain.state_dict().keys()
    for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert preprocessing_of(other) == RECORD
    target = net()
    load_weights(target, save_weights(source, tmp_path / f"x.{suffix}", epochs=3))
    assert preprocessing_of(target) == RECORD
    assert Preprocessing.from_metadata(read_metadata(tmp_path / f"x.{suffix}")) == RECORD
    # Weights of a file without a record are not those that the record was of.
    load_weights(target, save_weights(plain, tmp_path / f"y.{suffix}"))
    assert preprocessing_of(target) is None


@pytest.mark.parametrize(
    "metadata",
    [{}, {"preprocessing": "resize 256"}, {"preprocessing": {"mean": [0.5]}}]
    + [{"preprocessing": {**RECORD.as_metadata(), **other}} for other in ({"std": (1, 0, 1)}, {"mean": (1, "x", 1)})],
    ids=str,
)
def test_metadata_of_other_programs_are_no_record(metadata: dict[str, Any]) -> None:
    assert Preprocessing.from_metadata(metadata) is None


def test_a_network_with_another_attribute_of_that_name_keeps_it() -> None:
    network = net()
    network.preprocessing = torch.nn.Identity()
    set_preprocessing(network, RECORD)
    assert preprocessing_of(network) is None
    assert isinstance(network.preprocessing, torch.nn.Identity)


def test_renormalization_by_hand() -> None:
    # A pixel of 0.6: (0.6 - 0.4) / 0.2 = 1 for the data, and (0.6 - 0.5) / 0.5 = 0.2 for the network's first channel.
    scale, shift = RECORD.renormalization((0.4, 0.1, 0.35), (0.2, 0.5, 0.25))
    assert [1 * s + t for s, t in zip(scale, shift, strict=True)] == pytest.approx([0.2, (0.6 - 0.25) / 0.25, -0.15])
    assert RECORD.normalizes_as(RECORD.mean, [x + 5e-5 for x in RECORD.std])
    assert not RECORD.normalizes_as(RECORD.mean, [x + 2e-4 for x in RECORD.std])
    assert not RECORD.normalizes_as((0.5,), (0.5,))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, file_size_limit: Limit) -> None:
    path = save_weights(net(), tmp_path / "student.pt", run=1)
    content = path.read_bytes()
    with file_size_limit(10_000), pytest.raises(UserError, match=f"^cannot write {path}: File too large; raise the"):
        save_weights(net(), path, run=2)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["student.pt"]


def test_what_is_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below" / "x.pth", tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*; check the path and the disk and try again") as caught:
            save_weights(net(), path)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


CONTENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": dict,
    "parallel": lambda state: {"model": prefixed("module.", state), "epoch": 240},
    "compiled": lambda state: {"state_dict": prefixed("_orig_mod.", state)},
    "compiled, parallel": lambda state: {"model_state_dict": prefixed("module._orig_mod.", state)},
    "parallel, compiled": lambda state: {"student": prefixed("_orig_mod.module.", state)},
    "of an old PyTorch": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    "published": lambda state: {
        "opt": argparse.Namespace(model="resnet8", lr=0.05, milestones=[150]),
        "model": state,
        "accuracy": torch.tensor([74.64]),
        "best_acc": np.float32(74.64),
        "mean": np.float64(0.5),
        "optimizer": torch.optim.SGD(net().parameters(), 0.1, momentum=0.9).state_dict(),
    },
}


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("content", CONTENTS)
def test_finds_weights_wherever_they_are(content: str, modern: bool, tmp_path: Path) -> None:
    source, target = net(), net()
    made = CONTENTS[content](source.state_dict())
    torch.save(made, tmp_path / "x.pth", _use_new_zipfile_serialization=modern)
    load_weights(target, tmp_path / "x.pth")
    assert same(source, target)


def test_half_precision_files_keep_the_network_single(tmp_path: Path) -> None:
    target = net()
    torch.save(net().half().state_dict(), tmp_path / "x.pth")
    load_weights(target, tmp_path / "x.pth")
    assert {p.dtype for p in target.parameters()} == {torch.float32}


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    with monkeypatch.context() as patch:
        for name in ("safetensors", "safetensors.torch"):
            patch.setitem(sys.modules, name, None)
        missing = r"needs safetensors, which is not installed: pip install 'pckd\[safetensors\]'"
        refused(path, f"x.safetensors: reading it {missing}")
        with pytest.raises(UserError, match=f"y.safetensors: writing it {missing}"):
            save_weights(net(), tmp_path / "y.safetensors")
    assert os.listdir(tmp_path) == ["x.safetensors"]
    save_file = pytest.importorskip("safetensors.torch").save_file
    refused(path, "not a safetensors file, or a damaged one")
    source, target = net(), net()
    save_file(source.state_dict(), path)
    assert load_weights(target, path).meta == {}
    assert same(source, target)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    # As training leaves it: another memory layout, which the format does not know.
    source, target = net().to(memory_format=torch.channels_last), net()
    path = save_weights(source, tmp_path / "new" / "x.safetensors", accuracy=71.5, method="kd", epochs=[1, 2])
    loaded = load_weights(target, path)
    assert same(source, target)
    assert loaded.meta == {"format": "pt", "accuracy": "71.5", "method": "kd", "epochs": "[1, 2]"}
    assert os.listdir(path.parent) == ["x.safetensors"]
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(source.state_dict())
        assert np.array_equal(file.get_tensor("fc.weight"), source.state_dict()["fc.weight"].numpy())
        assert file.metadata() == loaded.meta
    content = path.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path, "not a safetensors file, or a damaged one")


def test_safetensors_of_tensors_that_share_memory(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    tied, again = (nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}) for _ in range(2))
    tied["two"].weight = tied["one"].weight
    load_weights(again, save_weights(tied, tmp_path / "x.safetensors"))
    assert same(tied, again)


def test_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", r"none\.pth: no such file")
    refused(tmp_path, "is a folder; give the checkpoint's file")
    refused("s3://bucket/x.pth", "cannot read s3:// addresses; use a path, file://, http:// or https://")
    for text in (b"hello, I am text\n", b"", b"{}", b"\x80\x02", bytes(range(256))):
        (tmp_path / "x.pth").write_bytes(text)
        refused(tmp_path / "x.pth", "not a checkpoint that PyTorch can read")
    path = save_weights(net(), tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "not a checkpoint that PyTorch can read, or a damaged one")
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds a list and not a dictionary of weights")
    for content, found in (({"epoch": 3, "lr": 0.1}, "epoch, lr"), ({}, "nothing"), ({"model": {}}, "model")):
        torch.save(content, tmp_path / "dict.pth")
        refused(tmp_path / "dict.pth", f"no weights in it, .* it holds: {found}")


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_never_runs_code_from_a_file(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"model": net().state_dict(), "x": Evil(trap)}, tmp_path / "evil.pth")
    refused(tmp_path / "evil.pth", "refused as unsafe.*save the state_dict\\(\\) alone")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(trap), protocol=2))
    refused(tmp_path / "evil.pkl", "refused as unsafe|not a checkpoint")
    torch.save(net(), tmp_path / "whole.pth")
    refused(tmp_path / "whole.pth", "refused as unsafe")
    assert not trap.exists()


def test_refuses_another_number_of_classes_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    said = "the file has 100 classes, the network 7: build the network with num_classes=100"
    for name in ("resnet8", "MobileNetV2", "vgg8"):
        refused(save_weights(net(name, 100), tmp_path / "x.pth"), said, net(name, 7))
    state = net().state_dict()
    state["conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"values that are not finite in conv1\.weight: .*; give another file")
    state["bn1.bias"][0] = float("inf")
    torch.save(state, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"not finite in conv1\.weight and 1 more: ")


def test_refuses_another_network_and_says_which(tmp_path: Path) -> None:
    path = save_weights(net("resnet14"), tmp_path / "x.pth")
    refused(path, r"don't fit ResNet \(the file fits resnet14\); 36 unexpected: layer1\.1\.conv1\.weight, .*, \.\.\.$")
    path = save_weights(net("resnet8"), tmp_path / "x.pth")
    refused(path, r"\(the file fits resnet8\); 30 missing: layer1\.1\.conv1\.weight", net("resnet14"))
    path = save_weights(net("wrn_16_2"), tmp_path / "x.pth")
    refused(path, r"\(the file fits wrn_16_2\); .*of another shape: .* \(\[32, 16, 3, 3\] in the file", net("wrn_16_1"))
    torch.save({"a": torch.zeros(2), "b": torch.zeros(2, 2)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"don't fit ResNet; 47 missing: .*, \.\.\.; 2 unexpected: a, b$")


def test_loose_loading_reports_what_it_left(tmp_path: Path) -> None:
    source, target = net(classes=100), net(classes=7)
    state = {**source.state_dict(), "extra": torch.zeros(1)}
    del state["bn1.bias"]
    torch.save(state, tmp_path / "x.pth")
    fresh = target.classifier.weight.detach().clone()
    loaded = load_weights(target, tmp_path / "x.pth", strict=False)
    assert set(loaded.missing) == {"bn1.bias", "fc.weight", "fc.bias"}
    assert loaded.unexpected == ("extra",)
    assert torch.equal(target.classifier.weight, fresh)
    assert torch.equal(target.layer3[0].conv2.weight, source.layer3[0].conv2.weight)
    refused(save_weights(net("vgg8"), tmp_path / "y.pth"), "no key matches", strict=False)


def test_file_addresses(tmp_path: Path) -> None:
    source, target = net(), net()
    path = save_weights(source, tmp_path / "a name with spaces.pth")
    load_weights(target, path.as_uri(), sha256=sha256(path).upper())
    assert same(source, target)
    refused(path.as_uri(), "its SHA-256 is .*, expected 00: give the right file or hash", sha256="00")
    assert path.is_file(), "only downloads may be removed"
    refused("file:///no/such/file.pth", "/no/such/file.pth: no such file")


def test_downloads_are_verified_and_kept(server: Server, tmp_path: Path) -> None:
    address, folder, asked = server
    source = net()
    path = save_weights(source, folder / "sub" / "x.pth")
    for _ in range(2):
        target = net()
        load_weights(target, f"{address}/sub/x.pth", sha256=sha256(path), cache_dir=tmp_path / "cache")
        assert same(source, target)
    assert asked == ["/sub/x.pth"]
    # The same path on another server is another file.
    target = net()
    load_weights(target, f"{address.replace('127.0.0.1', 'localhost')}/sub/x.pth", cache_dir=tmp_path / "cache")
    assert len(asked) == 2


def test_addresses_that_differ_within_the_query_are_different_files(server: Server, tmp_path: Path) -> None:
    address, folder, asked = server
    save_weights(net(), folder / "get.pth")
    for query in ["?file=one/x.pth", "?file=two/x.pth", "?version=1", "?version=2"] * 2:
        load_weights(net(), f"{address}/get.pth{query}", cache_dir=tmp_path)
    assert len(asked) == 4


def test_a_corrupt_download_is_removed(server: Server, tmp_path: Path) -> None:
    address, folder, asked = server
    good = save_weights(net(), folder / "x.pth").read_bytes()
    digest = sha256(folder / "x.pth")
    (folder / "x.pth").write_bytes(good[:-10])
    options = {"sha256": digest, "cache_dir": tmp_path / "cache"}
    refused(f"{address}/x.pth", "expected .*: the download was removed; try again", **options)
    assert not list((tmp_path / "cache").rglob("x.pth"))
    (folder / "x.pth").write_bytes(good)
    load_weights(net(), f"{address}/x.pth", **options)
    assert len(asked) == 2


def test_failed_downloads(server: Server, tmp_path: Path) -> None:
    for address, said in (
        (f"{server[0]}/none.pth", "the download failed: .*404"),
        ("http://127.0.0.1:9/x.pth", "the download failed: .*check the address and the network"),
        (f"{server[0]}/", "not the address of a file"),
        (f"{server[0]}/../../x.pth", "not the address of a file"),
    ):
        refused(address, said, cache_dir=tmp_path)


@pytest.fixture
def halting(tmp_path: Path) -> Iterator[Halting]:
    """A server of one file that stops halfway: its address, what it does then, call by call, and the file.

    After the last it sends the whole file. ``/known.pth`` has its length in the header, ``/unknown.pth`` has not.
    """
    content = save_weights(net(), tmp_path / "source.pth").read_bytes()
    halts: list[Callable[[], object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if "unknown" not in self.path:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if halts:
                halts.pop(0)()
            else:
                self.wfile.write(content[len(content) // 2 :])

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as address:
        yield address, halts, content


@pytest.mark.parametrize(
    ("name", "said", "said_of_hash"),
    [
        ("known", "the download failed: .*got only", "the download failed"),
        # With a hash it is noticed before the file is looked into.
        ("unknown", "a damaged one; the download was removed; try", "its SHA-256 is .* the download was removed"),
    ],
)
def test_half_a_download_is_not_taken_for_the_whole(
    name: str, said: str, said_of_hash: str, halting: Halting, tmp_path: Path
) -> None:
    (address, halts, content), cache = halting, tmp_path / "cache"
    halts += [lambda: None] * 2
    refused(f"{address}/{name}.pth", said, cache_dir=cache)
    assert downloaded(cache, name) == []
    refused(f"{address}/{name}.pth", said_of_hash, cache_dir=cache, sha256=hashlib.sha256(content).hexdigest())
    begins_again(halting, cache, name)


def test_a_download_that_is_interrupted_is_begun_again(halting: Halting, tmp_path: Path) -> None:
    """Ctrl-C in the middle."""
    (address, halts, _), cache, over = halting, tmp_path / "cache", threading.Event()
    halts.append(lambda: (os.kill(os.getpid(), signal.SIGINT), over.wait(30)))
    try:
        with pytest.raises(KeyboardInterrupt):
            load_weights(net(), f"{address}/unknown.pth", cache_dir=cache)
    finally:
        over.set()
    assert downloaded(cache, "unknown") == []
    begins_again(halting, cache, "unknown")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_download_that_is_killed_is_begun_again(halting: Halting, tmp_path: Path) -> None:
    (address, halts, _), cache = halting, tmp_path / "cache"
    arrived, over = threading.Event(), threading.Event()
    halts.append(lambda: (arrived.set(), over.wait(30)))
    child = os.fork()
    if child == 0:
        try:
            load_weights(net(), f"{address}/unknown.pth", cache_dir=cache)
        finally:
            os._exit(1)
    try:
        assert arrived.wait(30)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    finally:
        over.set()
    begins_again(halting, cache, "unknown")


def test_a_download_that_finds_no_room_is_one_line(server: Server, tmp_path: Path, file_size_limit: Limit) -> None:
    address, folder, _ = server
    save_weights(net(), folder / "x.pth")
    with file_size_limit(10_000):
        refused(f"{address}/x.pth", "cannot write .*: File too large; raise the limit", cache_dir=tmp_path / "cache")
    assert downloaded(tmp_path / "cache", "x") == []


def test_published_teachers(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert set(PUBLISHED) <= set(BACKBONES.names())
    assert all(entry.address.startswith("http") and entry.num_classes == 100 for entry in PUBLISHED.values())
    address, folder, _ = server
    source = net("resnet8", 100)
    path = save_weights(source, folder / "x.pth")
    monkeypatch.setitem(PUBLISHED, "resnet8", Published(f"{address}/x.pth", 60.0))
    caplog.set_level("WARNING")
    assert same(load_published("resnet8", cache_dir=tmp_path), source)
    assert "no hash of this file was published" in caplog.text
    caplog.clear()
    load_published("resnet8", sha256=sha256(path), cache_dir=tmp_path)
    assert caplog.text == ""
    with pytest.raises(UserError, match="no published checkpoint of 'vgg8': there are ResNet50"):
        load_published("vgg8")

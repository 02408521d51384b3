"""Training in two processes, started by torchrun as users do, against one process with the whole batch."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model_zoo import load_weights, save_weights
from pckd.distributed import BatchNormOverRanks, gather_output, gather_rows, own_rows
from pckd.engine import ranks
from pckd.engine.ranks import Ranks, joined, launched
from registry import BACKBONES, Output, PluginError, UserError

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("ranks_worker", Path(__file__).with_name("ranks_worker.py"))
assert _spec is not None
assert _spec.loader is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

OF_THE_BATCH = {
    "cirkd_batch": "relations between images",
    "category_contrast": "contrasts with the rows of its own process, unless gather=True",
    "ckd": "tells the images of its own batch apart",
    "correlation_congruence": "relations between rows",
    "crd": "draws its negatives at random",
    "dist_intra": "relations over the rows of the batch",
    "itrd": "correlations over the rows of the batch",
    "mld_batch": "relations between rows",
    "mld_class": "relations over the rows of the batch",
    "mgd": "draws its masks at random",
    "ofd": "its margins are means over the rows of the batch",
    "pkd": "normalizes by the statistics of its own batch",
    "pkt": "relations between rows",
    "rkd": "relations between rows",
    "self_supervision": "tells the images of its own batch apart",
    "semckd": "relations between rows",
    "sp": "relations between rows",
    "srd": "normalizes by the statistics of its own batch",
}
"""Losses that are no mean over samples, so that half the batch is another question."""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PCKD_CACHE": str(folder)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, worker.__file__, str(folder / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize("loss", worker.TERMS)
def test_two_processes_with_half_the_batch_have_the_gradient_of_one_with_all(
    loss: str, together: dict[str, Any]
) -> None:
    alone, shared = worker.gradients(loss, 1, 0), together[loss]
    assert shared["gradients"].keys() == alone["gradients"].keys()
    # Batch statistics, the difficulty that is relative to the batch, and the centers' update are those of all rows.
    for part in ("statistics", "centers"):
        for name, value in alone[part].items():
            torch.testing.assert_close(shared[part][name], value, rtol=1e-4, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in alone["gradients"].values())
    assert scale > 0
    worst = max(
        float((shared["gradients"][name] - gradient).abs().max()) for name, gradient in alone["gradients"].items()
    )
    if loss in OF_THE_BATCH:
        assert worst > 1e-5 * scale, f"{loss} is a mean over samples after all: take it off the list"
    else:
        assert worst <= 1e-5 * scale


def test_calls_one_after_the_other(together: dict[str, Any]) -> None:
    """They use one group; one process alone may measure; after an error of all or of one the next call goes on."""
    calls = together["calls"]
    assert calls["groups"] == [True, True]
    assert calls["errors"] == [
        "batch_size=7 cannot be shared by 2 processes; try 8",
        "rank 0 of 2: another process of this run has died or given up; continue with --resume",
    ]
    # The teacher was trained just now in one, and comes from the cache in the other.
    assert calls["histories"][1] == calls["histories"][0]
    assert calls["top1"][1] == calls["top1"][0]
    assert calls["samples"] == 9
    assert calls["profiled"]


def test_training_in_two_processes_is_training_in_one(together: dict[str, Any]) -> None:
    rows = together["calls"]["trained"]
    assert len(rows) == 2
    for alone, shared in zip(worker.trained(), rows, strict=True):
        assert shared.keys() == alone.keys()
        for key, value in alone.items():
            # Each epoch amplifies the rounding of sums in another order.
            assert shared[key] == pytest.approx(value, rel=0.02, abs=3.1 if "top" in key else 0.02), key


@pytest.mark.parametrize("task", worker.DENSE)
def test_two_processes_with_unequal_rows_have_the_weights_of_one(task: str, together: dict[str, Any]) -> None:
    (alone,), weights = worker.trained_densely(task)
    (shared,), theirs = together["calls"]["densely"][task]
    assert shared.keys() == alone.keys()
    for key, value in alone.items():
        assert key == "by_class" or shared[key] == pytest.approx(value, rel=1e-3, abs=1e-3), key
    for name, value in weights.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_alone_everything_is_as_it_was() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    output = Output(rows, rows, (torch.ones(3, 1, 2, 2),))
    assert gather_rows(rows) is rows
    assert own_rows(rows) is rows
    assert gather_output(output) is output


def test_converted_batch_norm_keeps_names_statistics_and_answers() -> None:
    usual = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(64))
    network = copy.deepcopy(usual)
    images, parameters = torch.randn(5, 3, 4, 4), list(network.parameters())
    converted = BatchNormOverRanks.convert(network)
    assert [type(m) for m in converted][1::2] == [BatchNormOverRanks] * 2
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    assert torch.equal(converted(images), usual(images))
    torch.testing.assert_close(converted.state_dict(), usual.state_dict(), rtol=0, atol=0)


# How processes find one another

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables of a launcher, and no others of its kind."""

    def set_all(variables: dict[str, str]) -> None:
        for name in (*LAUNCHED, "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Ranks()),
        (LAUNCHED, Ranks(1, 2)),
        ({**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}, Ranks()),
        # Clusters that set it for every job.
        ({"WORLD_SIZE": "8"}, Ranks()),
        ({"WORLD_SIZE": ""}, Ranks()),
    ],
)
def test_environment_says_which_process_this_is(variables: dict[str, str], expected: Ranks, launch: Any) -> None:
    launch(variables)
    assert launched() == expected


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("WORLD_SIZE", "two", "a number from 1"),
        ("RANK", None, "a number from 0 to 1"),
        ("RANK", "2", "a number from 0 to 1"),
        ("MASTER_ADDR", None, "the address of the machine of rank 0"),
        ("MASTER_PORT", None, "a number from 1 to 65535"),
        ("MASTER_PORT", "0", "a number from 1 to 65535"),
    ],
)
def test_environment_that_does_not_fit_is_refused(variable: str, value: str | None, wanted: str, launch: Any) -> None:
    launch({name: old for name, old in {**LAUNCHED, variable: value}.items() if old is not None})
    said = f"variable {variable}='{value or ''}': it must be {wanted}, because WORLD_SIZE="
    with pytest.raises(UserError, match=said), joined(worker.CPU):
        pass


def test_port_that_is_taken_is_refused(launch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launch({**LAUNCHED, "RANK": "0", "MASTER_PORT": str(port)})
        said = rf"^rank 0 of 2 cannot listen at 127.0.0.1:{port} \(.*choose another MASTER_PORT$"
        with pytest.raises(UserError, match=said), joined(worker.CPU):
            pass
    assert not dist.is_initialized()


def test_process_that_does_not_come_is_named(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "3", "MASTER_PORT": str(store.port)}
    launch({**variables, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=0.6))
    said = f"^rank 0 of 3: rank 1, 2 has not come to 127.0.0.1:{store.port} within 0.01 minutes;"
    with pytest.raises(UserError, match=said), joined(worker.CPU):
        pass


def test_process_without_a_gpu_is_refused(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launch({**LAUNCHED, "LOCAL_RANK": "1"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = "no GPU for the process with LOCAL_RANK=1: this machine has 1"
    with pytest.raises(UserError, match=said), joined(torch.device("cuda")):
        pass


@pytest.mark.parametrize(
    ("address", "beside", "variable", "expected"),
    [
        ("127.0.1.1", "1", "", "eth7"),
        ("192.0.2.7", "1", "", None),
        ("127.0.1.1", "2", "", None),
        ("127.0.1.1", "1", "ib0", "ib0"),
    ],
    ids=["loopback", "usable", "one machine", "set"],
)
def test_gloo_is_told_the_interface_where_the_machines_name_is_of_itself_alone(
    address: str, beside: str, variable: str, expected: str | None, launch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(LAUNCHED)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if variable:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", variable)
    monkeypatch.setattr(ranks.socket, "gethostbyname", lambda host: address)
    monkeypatch.setattr(ranks, "_interface", lambda bound: "eth7")
    with ranks._reachable(Ranks(1, 2)):
        assert os.environ.get("GLOO_SOCKET_IFNAME") == expected
    assert os.environ.get("GLOO_SOCKET_IFNAME") == (variable or None)


@pytest.fixture
def group() -> Iterator[Any]:
    """A group of one process that the caller has made."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


CLOSED = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [::1]:4: Connection reset by peer")
GONE = "^rank 0 of 1: another process of this run has died or given up; continue with --resume$"
SLOW = RuntimeError("[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting for recv")
INSIDE = PluginError("loss 'mine' raised RuntimeError")
INSIDE.__cause__ = CLOSED


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (CLOSED, GONE),
        (INSIDE, GONE),
        (SLOW, r"^rank 0 of 1: cannot reach the other processes of this run \(\[third_party.* Timed out"),
        (UserError("a reason"), "^a reason$"),
    ],
    ids=["closed", "in a plug-in", "slow", "another"],
)
def test_lost_connection_is_one_line_and_the_callers_group_is_left(raised: Exception, said: str, group: Any) -> None:
    with pytest.raises(UserError, match=said), joined(worker.CPU):
        raise raised
    assert dist.group.WORLD is group


def test_any_other_error_passes_as_it_is(group: Any) -> None:
    error = RuntimeError("something")
    with pytest.raises(RuntimeError) as caught, joined(worker.CPU):
        raise error
    assert caught.value is error


# Several hosts


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them; the first has the address 10.77.0.1."""
    names = [f"pckd{os.getpid()}{end}" for end in "ab"]

    def ip(*arguments: str) -> None:
        try:
            subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"two network namespaces cannot be made here, which takes root and iproute2: {why}")

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_hosts_train_as_one_process_and_a_dead_one_ends_the_other_in_one_line(
    hosts: list[str], tmp_path: Path
) -> None:
    """The command of pckd/engine/README.md. The hosts have no name and no cache in common."""
    torch.manual_seed(0)
    save_weights(BACKBONES.get("resnet8")(4), tmp_path / "teacher.pth")
    script = str(ROOT / "tools" / "train_net.py")
    run = ["--student", "resnet8", "--teacher", "resnet8", "--teacher-weights", str(tmp_path / "teacher.pth")]
    run += ["--method", "pckd(beta=0)", "--dataset", "shapes(num_classes=4,image_size=12)", "--batch-size", "16"]
    run += ["--limit-train", "32", "--limit-test", "16", "--no-flip", "--no-compile", "--precision", "fp32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name in ("GLOO_SOCKET_IFNAME", *LAUNCHED):
        environment.pop(name, None)

    def start(*options: str) -> list[subprocess.Popen[str]]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        launch += ["--master-addr=10.77.0.1", "--master-port=29517"]
        return [
            subprocess.Popen(
                ["ip", "netns", "exec", name, *launch, f"--node-rank={rank}", script, *run, *options],
                env={**environment, "PCKD_CACHE": str(tmp_path / name)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, name in enumerate(hosts)
        ]

    def ended(*processes: subprocess.Popen[str]) -> list[str]:
        return [process.communicate(timeout=300)[0] for process in processes]

    together = start("--epochs", "1", "--output", str(tmp_path / "two"))
    said = ended(*together)
    assert [process.returncode for process in together] == [0, 0], said
    alone = [sys.executable, script, *run, "--epochs", "1", "--output", str(tmp_path / "one")]
    subprocess.run(alone, env=environment, check=True, capture_output=True, timeout=300)
    one, two = (BACKBONES.get("resnet8")(4) for _ in range(2))
    load_weights(one, tmp_path / "one" / "model_final.pth")
    load_weights(two, tmp_path / "two" / "model_final.pth")
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=1e-3, atol=1e-4)

    # The second time a teacher is trained first, which the second host's cache lacks.
    run[4:6] = ["--teacher-epochs", "1"]
    metrics, command = tmp_path / "cut" / "metrics.jsonl", ("--output", str(tmp_path / "cut"), "--resume")
    first, second = start("--epochs", "100", *command)
    while first.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n")):
        time.sleep(0.1)
    workers = Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    for process in (second.pid, *map(int, workers)):
        os.kill(process, signal.SIGKILL)
    survivor, _ = ended(first, second)
    lines = [line for line in survivor.splitlines() if line.startswith("train_net.py: error:")]
    assert lines == [
        "train_net.py: error: rank 0 of 2: another process of this run has died or given up; continue with --resume"
    ]
    assert str(ROOT / "pckd") not in survivor
    done = metrics.read_bytes().count(b"\n")
    again = start("--epochs", str(done + 1), *command)
    said = ended(*again)
    assert [process.returncode for process in again] == [0, 0], said
    assert f"resuming after epoch {done} of {done + 1}" in said[0]
    assert metrics.read_bytes().count(b"\n") == done + 1

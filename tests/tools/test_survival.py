"""Runs of tools/train_net.py that are killed, stopped and continued: real processes, real signals, the same result.

The version with 20 kills of one run, for each kind of state a run has:
``python -m pytest -m slow -s tests/tools/test_survival.py``; it says in which phase each kill came.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

if not hasattr(os, "fork"):
    pytest.skip("kills and signals of POSIX", allow_module_level=True)

HERE = Path(__file__).parent
TOOL = HERE.parents[1] / "tools" / "train_net.py"
PHASES = ("start-up", "training", "evaluation", "checkpoint", "end")
PATIENCE = 300.0
"""Seconds after which a process that should have come to something is given up."""

DATA = "shapes(image_size=8, train_size=32, test_size=60)"
BASE = ["--student", "resnet8", "--batch-size", "8", "--precision", "fp32", "--device", "cpu", "--no-compile"]
SHAPES = [*BASE, "--dataset", DATA, "--lr", "0.02"]
EVERY_OTHER = ["--checkpoint-every", "2"]

# What there is to lose between two checkpoints: momentum and running centers; a memory and random draws; the border of
# two stages, with their own terms and momentum; a stage of projections alone; answers of the teacher that are kept.
CASES: dict[str, list[str]] = {
    "pckd, running centers": ["--method", "pckd", "--centers", "ema"],
    "crd, memory": ["--method", "crd(negatives=16)"],
    "ft, initial epochs": ["--method", "ft"],
    "fsp, initial epochs": ["--method", "fsp"],
    "kd, teacher cache": ["--method", "kd", "--teacher-cache", "CACHE", "--view-pool", "3"],
}


Gate = tuple[str, int]
"""A phase, and how often a run may enter it before it waits to begin the next step of training."""


class Board:
    """What a run with the plug-in shows of itself, and where it waits."""

    def __init__(self, path: Path, gate: Gate | None) -> None:
        self.path = path
        path.write_bytes(bytes(8 * (4 + 2 * len(PHASES))))
        with path.open("r+b") as file:
            self.numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        if gate is not None:
            self.numbers[-2], self.numbers[-1] = PHASES.index(gate[0]), gate[1]

    def open(self) -> None:
        """Let the run pass the gate."""
        self.numbers[-1] = 0

    @property
    def phase(self) -> str:
        return PHASES[self.numbers[0]]

    def entered(self, phase: str) -> int:
        return self.numbers[1 + PHASES.index(phase)]

    @property
    def waited(self) -> int:
        """How often it has looked whether the gate is open; 0 where it is not at the gate."""
        return self.numbers[-3]

    def seconds(self, phase: str) -> float:
        """That it took on average."""
        total = self.numbers[1 + len(PHASES) + PHASES.index(phase)]
        return total / 1e9 / max(1, self.entered(phase))

    def readers(self) -> list[int]:
        return [int(number) for number in Path(f"{self.path}.readers").read_text().split()]


class Driver(NamedTuple):
    """The streams of survival_driver.py."""

    stdin: IO[str]
    stdout: IO[str]


class Run:
    """A process at work: forked by the driver, or ``python tools/train_net.py`` itself."""

    def __init__(
        self,
        home: Path,
        argv: list[str],
        *,
        driver: Driver | None,
        cache: Path,
        gate: Gate | None = None,
        launched: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        env = {"SURVIVAL_BOARD": str(home / "board"), "PCKD_CACHE": str(cache), **(launched or {})}
        rank = env.get("RANK", "")
        self.board = Board(home / f"board{rank}", gate)
        self.out, self.err = home / f"out{rank}", home / f"err{rank}"
        argv = [*argv, "--plugin", str(HERE / "survival_phases.py")]
        self.driver = driver
        self.own: subprocess.Popen[bytes] | None = None
        self.ended = False
        self.status: int | None = None
        if driver is None:
            with self.out.open("wb") as out, self.err.open("wb") as err:
                self.own = subprocess.Popen(
                    [sys.executable, *launcher, str(TOOL), *argv], stdout=out, stderr=err, env={**os.environ, **env}
                )
            self.number = self.own.pid
        else:
            self.tell(json.dumps({"argv": argv, "out": str(self.out), "err": str(self.err), "env": env}))
            self.number = int(self.hear())

    def tell(self, line: str) -> None:
        assert self.driver is not None
        self.driver.stdin.write(line + "\n")
        self.driver.stdin.flush()

    def hear(self) -> str:
        assert self.driver is not None
        return self.driver.stdout.readline()

    def is_over(self) -> bool:
        if self.driver is None:
            return self.own is None or self.own.poll() is not None
        if not self.ended and select.select([self.driver.stdout], [], [], 0)[0]:
            assert self.hear() == "ended\n"
            self.ended = True
        return self.ended

    def until(self, reached: Callable[[], object]) -> bool:
        """Wait; whether it came that far before it ended."""
        patience = time.monotonic() + PATIENCE
        while not reached():
            if self.is_over():
                return bool(reached())
            if time.monotonic() > patience:
                os.kill(self.number, signal.SIGKILL)
                pytest.fail(f"nothing happens; {self.out.read_text()}{self.err.read_text()}")
            time.sleep(0.0005)
        return True

    def send(self, number: int) -> None:
        if not self.is_over():
            os.kill(self.number, number)

    def wait(self) -> int:
        """Its exit status; minus the signal's number where that killed it."""
        self.until(self.is_over)
        if self.own is not None:
            self.status = self.own.wait()
        else:
            self.tell("")
            self.status = int(self.hear())
        return self.status

    def done(self) -> None:
        """Wait for an end as it should be."""
        assert self.wait() == 0, self.err.read_text()
        assert self.complaints() == []

    def said(self) -> str:
        """Wait; the one line it said as it ended."""
        lines = self.complaints()
        assert len(lines) == 1, lines
        return lines[0]

    def complaints(self) -> list[str]:
        """The lines on standard error, without PyTorch's advice on an option of data parallelism."""
        return [line for line in self.err.read_text().splitlines() if "find_unused_parameters" not in line]


def clear(runs: list[Run]) -> None:
    """End what is still running."""
    for run in runs:
        if run.status is None:
            run.send(signal.SIGKILL)
            run.wait()


@contextlib.contextmanager
def driving() -> Iterator[Driver]:
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(HERE / "survival_driver.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Driver(process.stdin, process.stdout)
        process.stdin.close()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with driving() as process:
        yield process


@pytest.fixture(scope="module")
def other_driver() -> Iterator[Driver]:
    with driving() as process:
        yield process


Start = Callable[..., Run]


@pytest.fixture
def start(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts runs, whose teachers are kept in a cache of the test's own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs: list[Run] = []

    def begin(argv: list[str], *, real: bool = False, cache: str = "teachers", **options: Any) -> Run:
        runs.append(Run(tmp_path, argv, driver=None if real else driver, cache=tmp_path / cache, **options))
        return runs[-1]

    yield begin
    clear(runs)


@pytest.fixture(scope="module")
def teacher(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a teacher that was trained before."""
    home = tmp_path_factory.mktemp("teacher")
    argv = [*SHAPES, "--method", "vanilla", "--epochs", "1", "--output", str(home / "run")]
    Run(home, argv, driver=driver, cache=home).done()
    return str(home / "run" / "model_final.pth")


def same(whole: Path, other: Path) -> None:
    """Whether two folders hold the same run: bit by bit, but for what depends on the clock or the folder's name."""
    assert (other / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    models = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (whole, other)]
    assert models[0].keys() == models[1].keys()
    for name, value in models[0].items():
        assert value.numpy().tobytes() == models[1][name].numpy().tobytes(), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, other)]
    for result in results:
        del result["images_per_second"], result["train_seconds"], result["teacher_file"]
        for argument in ("output", "resume", "teacher_cache"):
            del result["arguments"][argument]
    assert results[0] == results[1]
    # Whether there is a checkpoint before the newest depends on how many were written.
    names = [{path.name for path in folder.iterdir()} - {"checkpoint.previous.pth"} for folder in (whole, other)]
    assert names[0] == names[1]


# Kills


def kill_in(run: Run, phase: str, nth: int, delay: float) -> str | None:
    """Kill a run ``delay`` seconds after it has come to the ``nth`` of a phase; where it was then, None: at its end."""
    if phase != "start-up":
        run.until(lambda: run.board.entered(phase) >= nth)
    time.sleep(delay)
    run.send(signal.SIGKILL)
    status = run.wait()
    assert status in (0, -signal.SIGKILL), run.err.read_text()
    return run.board.phase if status else None


def survives(
    start: Start, home: Path, argv: list[str], plan: list[str], draw: random.Random, real: Callable[[int], bool]
) -> Counter[str]:
    """Kill one run as often as planned and compare it with the uninterrupted one; how many kills hit which phase.

    Args:
        plan: the phase in which each kill should come; at its moment the run may be in the next one already.
        real: whether an attempt, by its number, is a process of its own and not a fork.
    """

    def argv_of(name: str) -> list[str]:
        own = [str(home / f"{name} answers") if part == "CACHE" else part for part in argv]
        return [*own, *EVERY_OTHER, "--output", str(home / name), "--resume"]

    begun = time.monotonic()
    whole = start(argv_of("whole"))
    whole.until(lambda: whole.board.entered("training"))
    starting = time.monotonic() - begun
    whole.done()
    lengths = {phase: whole.board.seconds(phase) for phase in PHASES} | {"start-up": starting}
    hits: Counter[str] = Counter()
    for attempt in range(3 * len(plan)):
        if hits.total() == len(plan):
            break
        phase = plan[hits.total()]
        # Imports take several seconds more.
        length = lengths[phase] + (6 if real(attempt) and phase == "start-up" else 0)
        nth = draw.randint(1, {"training": 3, "checkpoint": 2}.get(phase, 1))
        # A machine that is faster than before does not train to the end meanwhile.
        gate = None if phase == "end" else ("training" if phase == "start-up" else phase, nth)
        hit = kill_in(start(argv_of("cut"), gate=gate, real=real(attempt)), phase, nth, draw.uniform(0, length))
        hits.update([hit] if hit else [])
    assert hits.total() == len(plan), hits
    start(argv_of("cut"), real=real(2)).done()
    same(home / "whole", home / "cut")
    return hits


@pytest.mark.parametrize("case", ["pckd, running centers", "kd, teacher cache"])
def test_three_kills(case: str, start: Start, teacher: str, tmp_path: Path) -> None:
    argv = [*SHAPES, *CASES[case], "--epochs", "3", "--teacher", "resnet8", "--teacher-weights", teacher]
    draw = random.Random(case)
    plan = ["training", "evaluation", "checkpoint"]
    draw.shuffle(plan)
    survives(start, tmp_path, argv, plan, draw, real=lambda attempt: False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twenty_kills(case: str, start: Start, teacher: str, tmp_path: Path) -> None:
    draw = random.Random(case)
    plan = ["start-up"] * 4 + ["training"] * 6 + ["evaluation"] * 4 + ["checkpoint"] * 5
    draw.shuffle(plan)
    argv = [*SHAPES, *CASES[case], "--epochs", "25", "--teacher", "resnet8", "--teacher-weights", teacher]
    # Evaluations that take long enough to be hit.
    argv += ["--dataset", DATA.replace("test_size=60", "test_size=1000")]
    hits = survives(start, tmp_path, argv, [*plan, "end"], draw, real=lambda attempt: attempt % 3 == 2)
    print(f"\n{case}: {', '.join(f'{hits[phase]} kills in {phase}' for phase in PHASES)}")
    assert all(hits[phase] for phase in PHASES[:4])


# Signals

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])


def stopped(run: Run, number: int, readers: bool = False) -> Run:
    """Send a signal to a run that waits at its gate, and to its ``readers`` as from a terminal; open it, and wait."""
    assert run.until(lambda: run.board.waited)
    for process in run.board.readers() if readers else ():
        os.kill(process, number)
    run.send(number)
    run.board.open()
    run.wait()
    return run


def test_signals_stop_with_a_checkpoint_and_say_how_to_go_on(start: Start, teacher: str, tmp_path: Path) -> None:
    argv = [*SHAPES, *CASES["crd, memory"], "--epochs", "2", "--teacher", "resnet8", "--teacher-weights", teacher]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start([*argv, "--output", str(whole)]).done()
    argv += ["--output", str(cut)]
    # The first is stopped in its third step; the second goes on from there, and its third is the second of epoch 2.
    for number, place in ((signal.SIGTERM, "epoch 1 after step 3"), (signal.SIGINT, "epoch 2 after step 2")):
        run = stopped(start(argv, gate=("training", 2)), number)
        assert run.status == 128 + number
        assert run.said() == (
            f"train_net.py: stopped in {place} of 4; continue with the same command and --resume (--output {cut})"
        )
        assert (cut / "checkpoint.pth").exists()
        assert not (cut / "result.json").exists()
        argv = [*argv, "--resume"]
    run = start(argv)
    run.done()
    assert "resuming after step 2 of epoch 2 of 2" in run.out.read_text()
    same(whole, cut)


@BOTH
def test_a_second_signal_ends_a_run_at_once(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    output = tmp_path / "run"
    argv = [*SHAPES, "--epochs", "1", "--method", "vanilla", "--checkpoint-every", "1", "--output", str(output)]
    run = start(argv, gate=("training", 2))
    assert run.until(lambda: run.board.waited)
    run.send(number)
    # It waits on: the first one is for the end of the step.
    waited = run.board.waited + 50
    assert run.until(lambda: run.board.waited > waited)
    run.send(number)
    assert run.wait() == 128 + number
    assert run.said() == (
        f"train_net.py: {NAMES[number]}; continue with the same command and --resume (--output {output})"
    )
    assert torch.load(output / "checkpoint.pth", weights_only=True)["parts"]["history"]["step"] == 2


@BOTH
@pytest.mark.parametrize("when", ["before it trains", "in training"])
def test_without_an_output_a_signal_ends_a_run_at_once(
    when: str, number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    argv = [*SHAPES, "--epochs", "1", "--method", "vanilla"]
    if when == "in training":
        run = start(argv, gate=("training", 2))
        assert run.until(lambda: run.board.waited)
    else:
        plugin = tmp_path / "waits.py"
        plugin.write_text("import pathlib, time\npathlib.Path(__file__ + '.here').touch()\ntime.sleep(600)\n")
        run = start([*argv, "--plugin", str(plugin)])
        assert run.until(Path(f"{plugin}.here").exists)
    run.send(number)
    assert run.wait() == 128 + number
    assert run.said() == f"train_net.py: {NAMES[number]}"


def test_a_teacher_whose_training_was_stopped_is_trained_on(start: Start, tmp_path: Path) -> None:
    argv = [*SHAPES, "--teacher", "resnet8", "--teacher-epochs", "2", "--epochs", "1", "--method", "kd", "--output"]
    start([*argv, str(tmp_path / "whole")], cache="other").done()
    run = stopped(start([*argv, str(tmp_path / "cut")], gate=("training", 5)), signal.SIGTERM)
    assert run.status == 143
    assert "stopped in epoch 2 after step 2 of 4; continue with the same command and --resume (--output " in run.said()
    (unfinished,) = (tmp_path / "teachers" / "teachers").iterdir()
    assert unfinished.suffix == ".run"
    assert (unfinished / "checkpoint.pth").exists()
    run = start([*argv, str(tmp_path / "cut"), "--resume"])
    run.done()
    assert "resuming after step 2 of epoch 2 of 2" in run.out.read_text()
    (kept,) = (tmp_path / "teachers" / "teachers").iterdir()
    assert kept.suffix == ".pth"
    (other,) = (tmp_path / "other" / "teachers").iterdir()
    models = [torch.load(path, weights_only=True)["model"] for path in (kept, other)]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    same(tmp_path / "whole", tmp_path / "cut")


# Other arguments


def test_a_run_goes_on_only_with_the_arguments_it_had(start: Start, tmp_path: Path) -> None:
    output = tmp_path / "run"
    argv = [*SHAPES, "--method", "vanilla", "--output", str(output), "--epochs"]
    start([*argv, "2"]).done()
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.name != ".lock"}

    def refusal(*changed: str) -> str:
        run = start([*argv, *changed])
        assert run.wait() == 2
        assert {path.name: path.read_bytes() for path in output.iterdir() if path.name != ".lock"} == before
        return run.said()

    said = refusal("2", "--resume", "--lr", "0.5", "--seed", "7")
    assert said.startswith(f"train_net.py: error: cannot resume from {output / 'checkpoint.pth'}: the arguments differ")
    assert "(lr was 0.02, is 0.5; seed was 0, is 7)" in said
    assert "cannot resume: 2 epochs are done, and 1 epochs are asked for" in refusal("1", "--resume")
    assert "already holds a run" in refusal("3")
    moved = tmp_path / "moved"
    output.rename(moved)
    argv[argv.index(str(output))] = str(moved)
    start([*argv, "3", "--resume", "--num-workers", "1", "--on-nonfinite", "skip", *EVERY_OTHER]).done()
    rows = (moved / "metrics.jsonl").read_bytes().splitlines()
    assert rows[:2] == before["metrics.jsonl"].splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2, 3]


# Streamed data

SLOW = """
import time
from pckd.data.folder import ImageFiles

read = ImageFiles.__getitem__

def slow(self, i):
    time.sleep(0.1 if i % 7 == 0 else 0)
    return read(self, i)

ImageFiles.__getitem__ = slow
"""


@pytest.fixture
def streamed(tmp_path: Path) -> list[str]:
    """Arguments of a run that reads image files in two processes, some of them slowly."""
    from PIL import Image

    draw = random.Random(0)
    for split, count in (("train", 64), ("test", 8)):
        for number in range(count):
            folder = tmp_path / "images" / split / f"class {number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = bytes(draw.randrange(100) + 100 * (number % 2) for _ in range(8 * 8 * 3))
            Image.frombytes("RGB", (8, 8), pixels).save(folder / f"{number}.png")
    (tmp_path / "slow.py").write_text(SLOW)
    data = ["--dataset", "imagefolder(memory=False)", "--data-root", str(tmp_path / "images"), "--num-workers", "2"]
    return [*BASE, *data, "--method", "vanilla", "--lr", "0.02", "--epochs", "2", *EVERY_OTHER]


def test_readers_that_are_killed_or_interrupted_do_no_harm(start: Start, streamed: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start([*streamed, "--output", str(whole)]).done()
    argv = [*streamed, "--plugin", str(tmp_path / "slow.py"), "--output", str(cut)]
    run = start(argv, gate=("training", 3))
    assert run.until(lambda: run.board.waited)
    os.kill(run.board.readers()[0], signal.SIGKILL)
    run.board.open()
    assert run.wait() == 2
    said = run.said()
    assert said.startswith("train_net.py: error: a process that reads the data has died (DataLoader worker")
    assert said.endswith("; continue with --resume, with fewer --num-workers if memory has run out")
    argv.append("--resume")
    run = stopped(start(argv, gate=("training", 2)), signal.SIGINT, readers=True)
    assert run.status == 130
    assert "resuming after step " in run.out.read_text()
    assert run.said().startswith("train_net.py: stopped in epoch ")
    start(argv).done()
    same(whole, cut)


# Several processes

LOST = "another process of this run has died or given up; continue with --resume"


class Pair:
    """Starts two runs that train together, as a launcher does: with a store that it keeps when it starts them again."""

    def __init__(self, home: Path, drivers: tuple[Driver, ...]) -> None:
        self.home, self.drivers = home, drivers
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.launched = {
            "WORLD_SIZE": str(len(drivers)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        self.runs: list[Run] = []

    def start(self, argv: list[str], *, gate: Gate | None = None, of_rank_1: list[str] | None = None) -> list[Run]:
        pair = []
        for rank, driver in enumerate(self.drivers):
            own = [*argv, *(of_rank_1 or [])] if rank else argv
            launched = {**self.launched, "RANK": str(rank)}
            pair.append(Run(self.home, own, driver=driver, cache=self.home / "teachers", gate=gate, launched=launched))
        self.runs += pair
        return pair


@pytest.fixture
def pair(driver: Driver, other_driver: Driver, tmp_path: Path) -> Iterator[Pair]:
    both = Pair(tmp_path, (driver, other_driver))
    yield both
    clear(both.runs)


def test_one_of_two_processes_is_killed_and_both_are_started_again(pair: Pair, teacher: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # Each process has memories and draws of its own.
    argv = [*SHAPES, *CASES["crd, memory"], "--epochs", "2", "--teacher", "resnet8", "--teacher-weights", teacher]
    argv += ["--checkpoint-every", "1", "--resume", "--output"]
    for run in pair.start([*argv, str(whole)]):
        run.done()
    for rank in (1, 0):
        runs = pair.start([*argv, str(cut)], gate=("training", 3))
        assert all(run.until(lambda run=run: run.board.waited) for run in runs)
        runs[rank].send(signal.SIGKILL)
        assert runs[rank].wait() == -signal.SIGKILL
        runs[1 - rank].board.open()
        assert runs[1 - rank].wait() == 2
        assert runs[1 - rank].said() == f"train_net.py: error: rank {1 - rank} of 2: {LOST}"
    for run in pair.start([*argv, str(cut)]):
        run.done()
    same(whole, cut)


@pytest.mark.parametrize("told", [(1,), (0, 1)], ids=["rank 1", "both"])
def test_a_signal_to_any_of_two_processes_stops_both_with_a_checkpoint(
    told: tuple[int, ...], pair: Pair, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    argv = [*SHAPES, "--method", "vanilla", "--epochs", "1", "--output"]
    runs = pair.start([*argv, str(whole)])
    for run in runs:
        run.done()
    # The second process is silent.
    assert [run.out.read_text().count("top-1 after the last epoch") for run in runs] == [1, 0]
    assert json.loads((whole / "result.json").read_text())["processes"] == 2
    runs = pair.start([*argv, str(cut)], gate=("training", 2))
    assert all(run.until(lambda run=run: run.board.waited) for run in runs)
    for rank in told:
        runs[rank].send(signal.SIGTERM)
    for run in runs:
        run.board.open()
    for run in runs:
        assert run.wait() == 128 + signal.SIGTERM
        assert run.said() == (
            "train_net.py: stopped in epoch 1 after step 3 of 4; "
            f"continue with the same command and --resume (--output {cut})"
        )
    for run in pair.start([*argv, str(cut), "--resume"]):
        run.done()
    same(whole, cut)


FULL = """
import errno, os
from pckd.engine import record

def write(path, *content, then, **options):
    raise record.cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), then)

record.write_atomically = write
"""


def test_where_the_disk_is_full_both_processes_end(pair: Pair, tmp_path: Path) -> None:
    plugin = tmp_path / "full.py"
    plugin.write_text(FULL)
    argv = [*SHAPES, "--method", "vanilla", "--epochs", "2", "--output", str(tmp_path / "run"), "--plugin", str(plugin)]
    first, second = pair.start(argv)
    assert (first.wait(), second.wait()) == (2, 2)
    assert "No space left on device" in first.said()
    assert second.said() == f"train_net.py: error: rank 1 of 2: {LOST}"


def test_what_the_first_process_refuses_all_refuse(pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "metrics.jsonl").touch()
    for run in pair.start([*SHAPES, "--method", "vanilla", "--epochs", "1", "--output", str(output)]):
        assert run.wait() == 2
        assert run.said().startswith(f"train_net.py: error: output folder {output} already holds a run (metrics.jsonl)")


def test_a_process_that_waits_for_one_that_gave_up_can_be_ended(pair: Pair, tmp_path: Path) -> None:
    argv = [*SHAPES, "--method", "vanilla", "--epochs", "1", "--output", str(tmp_path / "run")]
    first, second = pair.start(argv, of_rank_1=["--plugin", "missing.py"])
    assert second.wait() == 2
    assert "missing.py" in second.said()
    assert first.until(lambda: pair.store.check(["pckd"]))
    # As a launcher does when it sees that one has ended.
    first.send(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    assert first.said().startswith("train_net.py: terminated; continue with ")


def test_a_process_that_waits_at_a_port_of_somebody_else_can_be_ended(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        port = str(silent.getsockname()[1])
        launched = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        run = start([*SHAPES, "--method", "vanilla", "--epochs", "1"], launched=launched)
        connection, _ = silent.accept()
        run.send(signal.SIGTERM)
        assert run.wait() == 128 + signal.SIGTERM
        connection.close()
        assert run.said() == "train_net.py: terminated"


def workers(agent: int) -> dict[int, int]:
    """The numbers of the processes that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == agent:
                variables = dict(part.partition("=")[::2] for part in (folder / "environ").read_text().split("\0"))
                if "LOCAL_RANK" in variables:
                    found[int(variables["RANK"])] = int(folder.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_torchrun_goes_on_after_twelve_kills(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ["start-up"] * 3 + ["training"] * 3 + ["evaluation"] * 2 + ["checkpoint"] * 4
    draw = random.Random("torchrun")
    draw.shuffle(plan)
    argv = [*SHAPES, *CASES["pckd, running centers"], "--teacher", "resnet8", "--teacher-epochs", "2", "--epochs", "25"]
    argv += [*EVERY_OTHER, "--dataset", DATA.replace("test_size=60", "test_size=1000"), "--resume", "--output"]
    for run in pair.start([*argv, str(tmp_path / "whole")]):
        run.done()
    lengths = {phase: pair.runs[0].board.seconds(phase) for phase in PHASES} | {"start-up": 5.0}

    first, _ = (Board(tmp_path / f"board{rank}", None) for rank in range(2))
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--max-restarts={len(plan)}"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        launcher += ["--master-port", str(free.getsockname()[1])]
    argv.append(str(tmp_path / "cut"))
    run = Run(tmp_path, argv, driver=None, cache=tmp_path / "other", launcher=launcher)
    pair.runs.append(run)
    hits: Counter[str] = Counter()
    ended: set[int] = set()

    def started_again() -> bool:
        return len(set(workers(run.number).values()) - ended) == 2

    for phase in plan:
        assert run.until(started_again)
        started = workers(run.number)
        first.numbers[0] = 0
        nth = first.entered(phase) + draw.randint(1, {"training": 3, "checkpoint": 2}.get(phase, 1))
        if phase != "start-up":
            assert run.until(lambda phase=phase, nth=nth: first.entered(phase) >= nth)
        time.sleep(draw.uniform(0, lengths[phase]))
        hits[first.phase] += 1
        os.kill(started[draw.randrange(2)], signal.SIGKILL)
        ended.update(started.values())
    assert run.wait() == 0, run.err.read_text()
    said = [line for line in run.complaints() if line.startswith("train_net.py: ")]
    print(
        f"\ntorchrun: {', '.join(f'{hits[phase]} kills in {phase}' for phase in PHASES)}; others say {len(said)} lines"
    )
    assert "Traceback" not in run.err.read_text()
    assert all(line.endswith((LOST, f"--resume (--output {tmp_path / 'cut'})")) for line in said)
    same(tmp_path / "whole", tmp_path / "cut")

"""Threads of a training on the CPU: as many as there are free cores, unless somebody has said how many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pckd
from pckd.display import Display
from pckd.engine import threads
from pckd.engine.threads import Pace, Threads, threads_for

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Eight cores, of which others use so many; the caller has as many threads as PyTorch takes by itself."""

    def make(used: float | None, quota: str = "max 100000") -> None:
        (tmp_path / "cgroup").write_text("3:cpuset:/elsewhere\n0::/service/one\n")
        (tmp_path / "service" / "one").mkdir(parents=True)
        (tmp_path / "service" / "cpu.max").write_text(f"{quota}\n")
        own = threads._quota
        monkeypatch.setattr(threads, "_allowed", lambda: set(range(8)))
        monkeypatch.setattr(threads, "_usual", lambda: {8})
        monkeypatch.setattr(threads, "_quota", lambda: own(str(tmp_path / "cgroup"), str(tmp_path)))
        monkeypatch.setattr(threads, "_in_use", lambda: used)
        for name in threads.SET_BY:
            monkeypatch.delenv(name, raising=False)
        torch.set_num_threads(8)

    yield make
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("used", "quota", "processes", "count", "note"),
    [
        (0.4, "max 100000", 1, 8, "8 threads on 8 cores"),
        (None, "max 100000", 1, 8, "8 threads on 8 cores"),
        (1.2, "max 100000", 1, 7, "7 threads: other programs use 1.2 of 8 cores now (--threads N sets it)"),
        (9.0, "max 100000", 1, 1, "1 thread: other programs use 9.0 of 8 cores now (--threads N sets it)"),
        (0.0, "250000 100000", 1, 2, "2 threads on 2 cores"),
        (5.0, "250000 100000", 1, 2, "2 threads: other programs use 5.0 of 8 cores now (--threads N sets it)"),
        (0.0, "max 100000", 3, 2, "2 threads on 8 cores"),
        (0.0, "max 100000", 9, 1, "1 thread on 8 cores"),
    ],
)
def test_threads_are_the_free_cores(
    used: float | None, quota: str, processes: int, count: int, note: str, machine: Any
) -> None:
    machine(used, quota)
    with threads_for(CPU, None, processes) as chosen:
        assert (chosen.count, chosen.note, torch.get_num_threads()) == (count, note, count)
        # A teacher that is trained inside has the same, without another look.
        with threads_for(CPU, None) as inside:
            assert (inside.count, inside.note, inside.settled) == (count, note, False)
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("who", ["asks", "caller", "environment", "accelerator"])
def test_number_that_somebody_has_set_stays(who: str, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(7.0)
    if who == "caller":
        torch.set_num_threads(5)
    if who == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
    expected = {"asks": 3, "caller": 5}.get(who, 8)
    device = torch.device("cuda" if who == "accelerator" else "cpu")
    with threads_for(device, 3 if who == "asks" else None) as chosen:
        assert (chosen.count, torch.get_num_threads()) == (expected, expected)
        assert (chosen.note, chosen.settled) == ("", True)
    assert torch.get_num_threads() == (5 if who == "caller" else 8)


@pytest.mark.parametrize(
    ("settled", "before", "count", "note"),
    [
        (False, None, 2, "chosen"),
        (False, 2, 2, "chosen"),
        (False, 5, 5, "5 threads, as before the interruption; --threads 2 suits the free cores now"),
        (False, 9, 2, "2 threads: the checkpoint was written with 9 threads, and there are 8 cores, so numbers"),
        (True, 5, 2, "2 threads: the checkpoint was written with 5 threads, so numbers may differ by rounding"),
    ],
)
def test_resumed_run_has_the_number_of_its_checkpoint(
    settled: bool, before: int | None, count: int, note: str, machine: Any
) -> None:
    machine(0.0)
    own = Threads(2, "chosen", settled)
    own.load_state_dict({} if before is None else Threads(before).state_dict())
    assert own.count == count
    assert own.note.startswith(note)


def test_look_at_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the time that the allowed cores have worked, what is not this process's own."""
    rows = ["cpu  9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 999 999 4 5 6 0\ncpu1 99 0 0 0 0 0 0 0 0\ncpu2 100 0 0 0 0 0 0 0 0\n"]
    monkeypatch.setattr(threads, "_allowed", lambda: {0, 2})
    monkeypatch.setattr(threads, "_text", lambda path: rows[0] if path == "/proc/stat" else "")
    monkeypatch.setattr(threads.time, "perf_counter", iter([10.0, 12.0]).__next__)
    monkeypatch.setattr(threads.time, "process_time", iter([1.0, 1.5]).__next__)
    hertz = os.sysconf("SC_CLK_TCK")
    assert threads._worked() == 121 / hertz
    look = threads._Look()
    rows[0] = rows[0].replace("cpu2 100", f"cpu2 {100 + 3 * hertz}")
    assert look.others() == pytest.approx(1.25)
    rows[0] = ""
    assert look.others() is None


def test_steps_that_slow_down_to_a_third_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used, said = [0.0], [1.0], list[str]()
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(threads._Look, "others", lambda self: used[0])
    monkeypatch.setattr(threads, "_allowed", lambda: {0, 1})
    pace = Pace(said.append)

    def steps(seconds: float) -> list[str]:
        for _ in range(threads.STEPS):
            clock[0] += seconds
            pace.step()
        return said

    assert steps(1.0) == steps(2.9) == []
    clock[0] += 1000.0
    pace.begin()
    assert steps(1.0) == []
    used[0] = 0.2
    assert steps(3.1) == []
    used[0] = 1.0
    pace.begin(anew=True)
    assert steps(3.1) == []
    pace.best = 1.0
    assert len(steps(3.1)) == 1
    assert said[0].startswith("warning: a step takes 3.1 s, and took 1 s: other programs use 1.0 of 2 cores; ")
    assert len(steps(30.0)) == 1


def test_a_run_has_its_number_and_keeps_it(tiny_data: pckd.Data, tmp_path: Path) -> None:
    seen: list[int] = []
    notes: list[str] = []

    class Watch(Display):
        def note(self, text: str) -> None:
            notes.append(text)

        def advance(self, epoch: int, step: int) -> None:
            seen.append(torch.get_num_threads())

    run: dict[str, Any] = {"student": "resnet8", "data": tiny_data, "batch_size": 24, "display": Watch()}
    result = pckd.train(**run, epochs=1, output=tmp_path, threads=2)
    assert set(seen) == {2}
    assert result.record["threads"] == 2
    assert torch.get_num_threads() == 1
    # The tests' own variable says 1, and so does the caller.
    pckd.train(**run, epochs=2, output=tmp_path, resume=True)
    assert set(seen[2:]) == {1}
    assert "1 thread: the checkpoint was written with 2 threads, so numbers may differ by rounding" in notes

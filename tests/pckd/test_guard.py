"""What ends a run early, piece by piece: terms that are not finite, signals, readers that die, random state."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pckd
from pckd.cli import Parser, run_tool
from pckd.display import Display
from pckd.engine import guard as guards
from pckd.engine.guard import EndOnSignals, FiniteGuard, Interrupted, NonFinite, Signals, dead_readers_named
from pckd.engine.optimization import Optimization
from pckd.engine.progress import Meter, own_random_state, seed_everything
from registry import BACKBONES, CenterRule, Centers, Context, Network, Output, Setup, Term, UserError

NAN, INF = float("nan"), float("inf")
CPU = torch.device("cpu")
# The guard asks a device only for its type: with tensors on the CPU, whose fused SGD obeys ``found_inf`` as that of an
# accelerator does, the steps of an accelerator run here.
ACCELERATOR = torch.device("cuda")
DEVICES = pytest.mark.parametrize("device", [CPU, ACCELERATOR], ids=["cpu", "accelerator"])


class Scale(nn.Module):
    """One weight, and a buffer that counts the calls and remembers the newest input, as statistics do."""

    calls: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("seen", torch.tensor([0.0]))

    def forward(self, x: float) -> Tensor:
        self.calls += 1
        self.seen.fill_(x)
        return self.weight.sum() * x


def optimizer_of(module: nn.Module, momentum: float = 0.5) -> torch.optim.SGD:
    return Optimization(1, 1, 0.1, momentum, weight_decay=0.0).optimizer(module, nn.Module(), CPU)


def take(guard: FiniteGuard, module: Scale, optimizer: torch.optim.SGD, x: float, step: int, epoch: int = 1) -> None:
    """A step with the loss x * weight, in the order of the loop."""
    guard.before(module)
    value = module(x)
    optimizer.zero_grad()
    value.backward()
    if guard.check({"term": value, "other": torch.tensor(1.0), "loss": value + 1}, optimizer, epoch, step):
        optimizer.step()
    guard.after(module)


def look_at(guard: FiniteGuard, epoch: int, step: int, **values: float) -> bool:
    """Look at a step with these values of its terms."""
    terms = {name: torch.tensor(value) for name, value in values.items()}
    return guard.check(terms, optimizer_of(Scale()), epoch, step)


def momentum_of(optimizer: torch.optim.SGD) -> float:
    (state,) = optimizer.state.values()
    return float(state["momentum_buffer"])


# Terms that are not finite


@DEVICES
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_skipped_step_changes_nothing(device: torch.device, bad: float) -> None:
    module = Scale()
    optimizer, guard = optimizer_of(module), FiniteGuard(device, "skip")
    take(guard, module, optimizer, 2.0, 0)
    # Momentum 2, and 1 - 0.1 * 2.
    assert module.weight.item() == pytest.approx(0.8)
    assert momentum_of(optimizer) == 2
    assert bool(guard.valid)
    before = copy.deepcopy(module.state_dict())
    take(guard, module, optimizer, bad, 1)
    assert not bool(guard.valid)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert (int(module.calls), module.seen.item()) == (1, 2)
    assert momentum_of(optimizer) == 2
    take(guard, module, optimizer, 4.0, 2)
    # Momentum 0.5 * 2 + 4, and 0.8 - 0.1 * 5.
    assert momentum_of(optimizer) == 5
    assert module.weight.item() == pytest.approx(0.3)
    assert (int(module.calls), module.seen.item()) == (2, 4)
    assert int(guard.skipped) == 1
    guard.look()


def test_on_the_cpu_a_bad_step_stops_at_once_and_is_named() -> None:
    module = Scale()
    optimizer, guard = optimizer_of(module), FiniteGuard(CPU, "stop")
    take(guard, module, optimizer, 2.0, 0, epoch=3)
    with pytest.raises(NonFinite, match=r"^epoch 3, step 5: term is not finite; lower .* --on-nonfinite skip$"):
        take(guard, module, optimizer, NAN, 4, epoch=3)
    assert (module.weight.item(), momentum_of(optimizer)) == (pytest.approx(0.8), 2)


def test_on_an_accelerator_the_first_bad_step_is_named_at_the_next_look() -> None:
    module = Scale()
    optimizer, guard = optimizer_of(module), FiniteGuard(ACCELERATOR, "stop")
    for step in range(guards.LOOK_EVERY):
        take(guard, module, optimizer, {2: NAN, 7: INF}.get(step, 0.0), step, epoch=2)
    # No step with the input 0 has a gradient.
    assert module.weight.item() == 1
    with pytest.raises(NonFinite, match=r"^epoch 2, step 3: term is not finite"):
        take(guard, module, optimizer, 0.0, guards.LOOK_EVERY, epoch=2)
    with pytest.raises(NonFinite, match=r"^epoch 2, step 3: term is not finite"):
        guard.look()


def test_on_an_accelerator_the_host_does_not_wait_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, step = FiniteGuard(ACCELERATOR, "stop"), 0
    looks: list[int] = []
    monkeypatch.setattr(guard, "look", lambda: looks.append(step))
    for step in range(2 * guards.LOOK_EVERY + 1):
        assert look_at(guard, 1, step, term=1.0)
    # The first also because the terms are new.
    assert looks == [0, 0, guards.LOOK_EVERY, 2 * guards.LOOK_EVERY]


def test_an_accelerator_without_a_fused_optimizer_is_looked_at_in_each_step() -> None:
    module = Scale()
    guard = FiniteGuard(torch.device("mps"), "skip")
    optimizer: Any = torch.optim.SGD(module.parameters(), lr=0.1)
    take(guard, module, optimizer, NAN, 0)
    assert module.weight.item() == 1
    assert (int(module.calls), int(guard.skipped)) == (0, 1)
    take(guard, module, optimizer, 1.0, 1)
    assert module.weight.item() == pytest.approx(0.9)


@DEVICES
@pytest.mark.parametrize(
    ("values", "said"), [({"a": NAN, "b": 1.0, "c": INF, "loss": NAN}, "a, c"), ({"a": 1.0, "loss": INF}, "loss")]
)
def test_each_bad_term_is_named_but_the_sum_only_where_it_is_alone(
    values: dict[str, float], said: str, device: torch.device
) -> None:
    with pytest.raises(NonFinite, match=f"^epoch 1, step 1: {said} is not finite;"):
        look_at(FiniteGuard(device, "stop"), 1, 0, **values)


@DEVICES
def test_stages_with_other_terms(device: torch.device) -> None:
    guard = FiniteGuard(device, "skip")
    for epoch, values in ((1, {"a": 1.0}), (2, {"a": 1.0, "b": 1.0}), (3, {"a": NAN}), (4, {"a": 1.0, "b": NAN})):
        look_at(guard, epoch, 0, **values)
    guard.look()
    assert int(guard.skipped) == 2
    guard = FiniteGuard(device, "stop")
    look_at(guard, 1, 0, a=1.0)
    with pytest.raises(NonFinite, match="epoch 2, step 1: b is not finite"):
        look_at(guard, 2, 0, a=1.0, b=NAN)


def test_what_was_not_finite_in_a_stage_is_said_before_the_next_one_begins() -> None:
    guard = FiniteGuard(ACCELERATOR, "stop")
    look_at(guard, 1, 0, a=1.0)
    look_at(guard, 1, 1, a=NAN)
    with pytest.raises(NonFinite, match="epoch 1, step 2: a is not finite"):
        look_at(guard, 2, 1, b=1.0)


def test_a_buffer_that_a_step_made_or_replaced_is_no_trouble() -> None:
    guard, module = FiniteGuard(CPU, "skip"), Scale()
    guard.before(module)
    module.register_buffer("new", torch.ones(2))
    module.seen = torch.tensor([7.0])
    module.calls = torch.tensor([1, 2])
    guard.valid = torch.tensor(False)
    guard.after(module)
    assert module.seen.item() == 0
    assert module.new.tolist() == [1, 1]


def test_meter_counts_the_valid_steps() -> None:
    meter = Meter(CPU)
    assert meter.means() == {}
    meter.add({"a": torch.tensor(NAN)}, torch.tensor(False))
    assert np.isnan(meter.means()["a"])
    meter.reset()
    for value, valid in ((1.0, True), (NAN, False), (4.0, True), (INF, False), (10.0, True)):
        meter.add({"a": torch.tensor(value), "b": torch.tensor(2.0)}, torch.tensor(valid))
    assert meter.means() == {"a": 5.0, "b": 2.0}
    again = Meter(CPU)
    again.load_state_dict(copy.deepcopy(meter.state_dict()))
    again.add({"a": torch.tensor(1.0), "b": torch.tensor(6.0)}, torch.tensor(True))
    assert again.means() == {"a": 4.0, "b": 3.0}
    assert meter.means() == {"a": 5.0, "b": 2.0}


# The same in whole runs


class BadAt(nn.Module):
    """Infinite in some of the calls, counted from 1; it notes the calls in a buffer."""

    remembered: Tensor

    def __init__(self, setup: Setup, *, calls: tuple[int, ...]) -> None:
        super().__init__()
        self.bad = calls
        self.count = 0
        self.register_buffer("remembered", torch.zeros(()))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        self.count += 1
        factor = INF if self.count in self.bad else 0.01
        self.remembered.copy_((student.embedding.mean() * factor).detach())
        return student.logits.square().mean(1) * factor


class Follow(CenterRule):
    """Keeps the newest embedding."""

    newest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("newest", torch.zeros(64))

    def forward(self, student: Network, teacher: Network) -> Centers:
        return Centers(self.newest.repeat(3, 1), self.newest.repeat(3, 1))

    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        self.newest.copy_(student.embedding[0])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = BACKBONES.get("resnet8")(3)
    return made


def distil(data: pckd.Data, *calls: int, **options: Any) -> pckd.Result:
    """Three steps an epoch, with a term that is infinite in some of them."""
    fixed: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 2, "views": 1}
    terms = [Term("cross_entropy"), Term(BadAt, name="bad", options={"calls": calls})]
    networks = {"teacher": network(9), "student": network(0)}
    return pckd.distill(**{"method": terms, "data": data, **networks, **fixed, **options})


class Notes(Display):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.ended = 0

    def note(self, text: str) -> None:
        self.said.append(text)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of a run takes the way of an accelerator."""
    monkeypatch.setattr("pckd.engine.trainer.FiniteGuard", lambda device, action: FiniteGuard(ACCELERATOR, action))


def test_a_stopped_run_keeps_the_checkpoint_before_and_goes_on_from_it(tiny_data: pckd.Data, tmp_path: Path) -> None:
    notes = Notes()
    options: dict[str, Any] = {"output": tmp_path, "checkpoint_every": 1}
    with pytest.raises(NonFinite, match="epoch 2, step 2: bad is not finite"):
        distil(tiny_data, 5, display=notes, **options)
    assert notes.ended == 1
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    history, guard = state["parts"]["history"], state["parts"]["guard"]
    assert (history["epoch"], history["step"], guard["skipped"]) == (2, 1, 0)
    assert all(value.isfinite().all() for value in state["parts"]["student"].values())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1]
    # The loss counts its calls anew: the second of the resumed run is the third step.
    resumed = distil(tiny_data, 2, on_nonfinite="skip", resume=True, display=notes, **options)
    assert "steps left out because a term was not finite: 1" in notes.said
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    assert resumed.history[0] == rows[0]


def test_no_bad_step_is_saved_before_it_is_found(
    tiny_data: pckd.Data, tmp_path: Path, as_on_an_accelerator: None
) -> None:
    """Statistics of a bad step are in the network before the host looks."""
    with pytest.raises(NonFinite, match="epoch 1, step 3: bad is not finite"):
        distil(tiny_data, 3, output=tmp_path, checkpoint_every=1)
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["parts"]["history"]["step"] == 2


@pytest.mark.parametrize("way", ["cpu", "accelerator"])
def test_a_run_that_skips_is_the_run_without_those_steps(
    way: str, tiny_data: pckd.Data, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "accelerator":
        request.getfixturevalue("as_on_an_accelerator")
    kept: list[dict[str, Tensor]] = []
    original = FiniteGuard.after

    def spy(self: FiniteGuard, trainee: nn.Module) -> None:
        original(self, trainee)
        kept.append(copy.deepcopy(trainee.state_dict()))

    notes = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FiniteGuard, "after", spy)
        result = distil(tiny_data, 2, 3, 6, on_nonfinite="skip", centers=Follow(), display=notes, output=tmp_path)
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(kept)]
    # Steps 2, 3 and 6 changed nothing, of weights, statistics, the loss's memory and the centers; the others did.
    assert same == [True, True, False, False, True]
    assert any(name.endswith("newest") for name in kept[0])
    assert any(name.endswith("num_batches_tracked") for name in kept[0])
    assert "steps left out because a term was not finite: 3" in notes.said
    assert notes.ended == 1
    for row in result.history:
        assert all(np.isfinite(value) for value in row.values())
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row["bad"], rel=1e-5)


def test_the_count_of_skipped_steps_survives_a_resumption(tiny_data: pckd.Data, tmp_path: Path) -> None:
    distil(tiny_data, 2, on_nonfinite="skip", epochs=1, output=tmp_path)
    notes = Notes()
    distil(tiny_data, 1, on_nonfinite="skip", epochs=2, output=tmp_path, resume=True, display=notes)
    assert "steps left out because a term was not finite: 2" in notes.said


class BadGradient(BadAt):
    """0, with a gradient that is not a number, in some of the calls."""

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        self.count += 1
        x = student.logits.sum(1) * 0
        return x.square().sqrt() if self.count in self.bad else x


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tiny_data: pckd.Data, tmp_path: Path) -> None:
    terms = [Term("cross_entropy"), Term(BadGradient, name="bad", options={"calls": (5,)})]
    with pytest.raises(NonFinite, match="epoch 2, step 2: weights are not finite, though every term was"):
        distil(tiny_data, method=terms, output=tmp_path, checkpoint_every=1)
    parts = torch.load(tmp_path / "checkpoint.pth", weights_only=True)["parts"]
    assert (parts["history"]["epoch"], parts["history"]["step"]) == (2, 1)
    assert all(value.isfinite().all() for value in parts["student"].values())


# Signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals are handled as in a new process, and afterwards as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def current() -> tuple[Any, Any]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_kept_and_the_second_one_acts(number: int) -> None:
    before = current()
    with EndOnSignals():
        with Signals() as signals:
            assert signals.pending(CPU, 1) == 0
            signal.raise_signal(number)
            assert signals.pending(CPU, 1) == number
            with pytest.raises(Interrupted) as caught:
                signal.raise_signal(number)
            assert caught.value.exit_code == 128 + number
        with pytest.raises(KeyboardInterrupt, match="interrupted" if number == signal.SIGINT else "terminated"):
            signal.raise_signal(number)
    assert current() == before


def test_without_a_tool_around_it_a_second_interrupt_is_pythons_own() -> None:
    with Signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(caught.value, Interrupted)


@pytest.mark.parametrize("handlers_of", [Signals, EndOnSignals])
def test_a_signal_that_is_ignored_stays_ignored(handlers_of: Callable[[], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with handlers_of():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert current() == (signal.SIG_IGN, signal.SIG_DFL)


@pytest.mark.parametrize("make", [Signals, EndOnSignals, partial(Signals, enabled=False)])
def test_off_the_main_thread_or_not_enabled_nothing_is_handled(make: Callable[[], Any]) -> None:
    before, seen = current(), []

    def enter() -> None:
        with make():
            seen.append(current())

    if isinstance(make, partial):
        enter()
    else:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 7), (signal.SIGTERM, -signal.SIGTERM)])
def test_forked_processes_leave_an_interrupt_to_their_parent(number: int, status: int) -> None:
    with EndOnSignals():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(number)
                os._exit(7)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


class Send(Notes):
    """Sends this process a signal after a step, or in the evaluation of an epoch."""

    def __init__(self, number: int, *, after: tuple[int, int] | None = None, epoch: int = 0) -> None:
        super().__init__()
        self.number, self.after, self.sent_in = number, after, epoch

    def advance(self, epoch: int, step: int) -> None:
        if (epoch, step) == self.after:
            signal.raise_signal(self.number)

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.sent_in:
            signal.raise_signal(self.number)


def test_a_signal_ends_a_run_with_a_checkpoint_wherever_it_comes(tiny_data: pckd.Data, tmp_path: Path) -> None:
    whole, before = distil(tiny_data, output=tmp_path / "whole"), current()
    cases: list[tuple[dict[str, Any], str, tuple[int, int]]] = [
        ({"after": (1, 2)}, "stopped in epoch 1 after step 2 of 3", (1, 2)),
        ({"after": (1, 3)}, "stopped in epoch 1 after step 3 of 3", (1, 3)),
        ({"epoch": 1}, "stopped after epoch 1 of 2", (2, 0)),
        ({"epoch": 2}, "stopped after epoch 2 of 2", (3, 0)),
    ]
    for sent, said, place in cases:
        send, cut = Send(signal.SIGTERM, **sent), tmp_path / said
        with pytest.raises(Interrupted, match=f"^{said}$") as caught:
            distil(tiny_data, output=cut, display=send)
        assert (caught.value.exit_code, current(), send.ended) == (143, before, 1)
        history = torch.load(cut / "checkpoint.pth", weights_only=True)["parts"]["history"]
        assert (history["epoch"], history["step"]) == place
        resumed = distil(tiny_data, output=cut, resume=True)
        assert (cut / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_tool_that_python_interrupts_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: Any) -> int:
        raise KeyboardInterrupt

    parser = Parser("A tool.")
    parser.add_common()
    parser.prog = "tool.py"
    assert run_tool(parser, run, [], interrupted=lambda args: "; go on") == 130
    assert capsys.readouterr().err == "tool.py: interrupted; go on\n"


# Readers


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (
            "DataLoader worker (pid 5) is killed by signal: Killed. ",
            UserError,
            r"^a process that reads the data has died \(DataLoader worker \(pid 5\) is killed .*Killed\); continue",
        ),
        ("shapes do not match", RuntimeError, "^shapes do not match$"),
    ],
)
def test_the_death_of_a_reader_is_one_line(raised: str, expected: type[Exception], said: str) -> None:
    with pytest.raises(expected, match=said), dead_readers_named():
        raise RuntimeError(raised)


def test_the_death_of_a_reader_after_a_signal_is_the_end_that_was_asked_for() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped, as were the processes") as caught, dead_readers_named(signals):
            raise RuntimeError("DataLoader worker (pid(s) 5, 6) exited unexpectedly")
    assert caught.value.exit_code == 143


NUMBERS: Any = torch.utils.data.DataLoader([1, 2], num_workers=1)  # type: ignore[arg-type]


@pytest.fixture
def deaths() -> Iterator[None]:
    """How PyTorch looks for the death of readers, afterwards as before."""
    from torch.utils.data._utils import signal_handling

    before = signal_handling._SIGCHLD_handler_set, signal.getsignal(signal.SIGCHLD)
    signal_handling._SIGCHLD_handler_set = False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal_handling._SIGCHLD_handler_set = before[0]
    signal.signal(signal.SIGCHLD, before[1])


def test_the_death_of_a_reader_interrupts_nothing(deaths: None) -> None:
    """PyTorch's handler would raise in the middle of a step."""

    def read() -> Any:
        list(NUMBERS)
        return signal.getsignal(signal.SIGCHLD)

    with dead_readers_named():
        assert read() == signal.SIG_DFL
    theirs = read()
    assert theirs != signal.SIG_DFL
    with dead_readers_named(), dead_readers_named():
        assert read() == signal.SIG_DFL
    assert signal.getsignal(signal.SIGCHLD) == theirs


def test_a_connection_that_a_dead_reader_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection may break before the process is seen to be dead, and then PyTorch raises what it met."""
    reading: Any = iter(NUMBERS)
    next(reading)

    def broken(timeout: float) -> Any:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(reading._data_queue, "get", broken)
    with pytest.raises(UserError, match=r"has died \(\[Errno 104\] Connection reset by peer\)"), dead_readers_named():
        next(reading)
    with pytest.raises(ConnectionResetError), dead_readers_named():
        broken(1.0)


# Random state


def test_seeds_differ_by_process_and_number_and_reach_every_generator() -> None:
    seen = []
    with own_random_state(CPU):
        for seed, rank in ((3, 0), (3, 1), (4, 0), (2**70, 0), (3, 0)):
            seed_everything(seed % 2**63, rank)
            seen.append([float(torch.rand(())), float(np.random.rand()), random.random()])
    assert seen[0] == seen[4]
    assert [len(set(drawn)) for drawn in zip(*seen, strict=True)] == [4, 4, 4]

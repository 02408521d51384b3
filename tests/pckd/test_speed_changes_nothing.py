"""What makes training faster must not change it: curves of fixed seeds, prepared teachers, the cache, compiling."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import pckd
from pckd.device import Device
from pckd.display import Display
from pckd.engine import trainer
from pckd.engine.compiling import WORTH_IT, resolve_compile
from pckd.engine.lean import compiled
from pckd.engine.teacher import FrozenTeacher, fold_batch_norms
from registry import BACKBONES, Absent, Context, Output, Term, UserError, function_loss

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"batch_size": 16, "precision": "fp32", "device": "cpu", "compile": False}


def teacher_net(name: str = "resnet8", classes: int = 3) -> nn.Module:
    torch.manual_seed(5)
    network: nn.Module = BACKBONES.get(name)(classes)
    # Statistics as training leaves them: at their start, folding a batch norm would be the identity.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


def run(data: pckd.Data, **options: Any) -> pckd.Result:
    return pckd.distill(**{"student": "resnet8", "teacher": teacher_net(), "data": data, **SMALL, **options})


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("kd", [1.128307, 1.106882, 1.022407, 0.956868]),
        ("pckd", [73.484177, 37.189896, 36.707489, 36.581036]),
    ],
)
def test_fp32_curve_of_a_fixed_seed_stays(method: str, expected: list[float], tiny_data: pckd.Data) -> None:
    # Recorded before teachers were prepared, with one step an epoch to see single steps.
    rows = run(tiny_data, method=method, epochs=4, batch_size=48, lr=0.01).history
    assert [row["loss"] for row in rows] == pytest.approx(expected, rel=2e-4)


CLASSIFIERS = [n for n in BACKBONES.names() if n not in ("torchvision", "timm") and "task" not in BACKBONES.facts(n)]
"""Other networks are not prepared."""


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_prepared_teacher_answers_as_before(name: str) -> None:
    network = teacher_net(name, 7)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
    state = copy.deepcopy(network.state_dict())
    teacher = FrozenTeacher(network)
    assert teacher.prepare(images, Device(CPU))
    after = teacher(images)
    for a, b in zip(before.maps + before.preacts + before[:2], after.maps + after.preacts + after[:2], strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()
    # A batch norm that reads a convolution is folded away; only pre-activation networks have others.
    left = sum(isinstance(m, nn.BatchNorm2d) for m in teacher.answering.modules())
    assert left == 0 or name.startswith("wrn")
    assert left < sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    # The network itself is as it was, and so are the centers that it gives.
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert teacher.classifier is network.classifier
    assert not teacher.answering.training


class Shared(nn.Module):
    """One convolution before two batch norms, and one batch norm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.classifier = nn.Linear(3, 3)
        for bn in (self.first, self.second):
            bn.running_mean.normal_()
            bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Output:
        x = self.first(self.conv(x)) + self.second(self.conv(x)) + self.second(self.other(x))
        embedding = x.mean((2, 3))
        return Output(self.classifier(embedding), embedding)


def test_shared_layers_are_not_folded_for_one_of_their_places() -> None:
    network = Shared().eval()
    images = torch.randn(2, 3, 4, 4)
    folded = fold_batch_norms(network)
    torch.testing.assert_close(folded(images).logits, network(images).logits)


def test_bf16_teacher_keeps_exact_statistics_where_batch_norms_are_left() -> None:
    teacher = FrozenTeacher(teacher_net("wrn_16_1"))
    teacher.prepare(torch.randn(2, 3, 16, 16), Device(CPU, "bf16"))
    kinds = {type(m): m.weight.dtype for m in teacher.answering.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))}
    assert kinds == {nn.Conv2d: torch.bfloat16, nn.BatchNorm2d: torch.float32}


@pytest.mark.parametrize("method", ["kd", "pckd"])
def test_cached_run_is_the_uncached_one_but_for_half_precision(
    method: str, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"method": method, "epochs": 3, "view_pool": 2, "lr": 0.01}
    plain = run(tiny_data, **options).history
    cold = run(tiny_data, **options, teacher_cache=tmp_path).history
    warm = run(tiny_data, **options, teacher_cache=tmp_path).history
    # Whether the answers are new or recalled makes no difference at all.
    assert warm == cold
    for a, b in zip(plain, cold, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
    other = run(tiny_data, **{**options, "view_pool": 0}).history
    assert other[0]["loss"] != plain[0]["loss"]


def test_warm_cache_does_not_ask_the_teacher(tiny_data: pckd.Data, tmp_path: Path) -> None:
    asked: list[int] = []
    teacher = teacher_net()
    teacher.register_forward_hook(lambda module, shown, answer: asked.append(len(shown[0])))
    options: dict[str, Any] = {"teacher": teacher, "method": "kd", "view_pool": 2, "teacher_cache": tmp_path}
    run(tiny_data, epochs=2, **options)
    cold = asked.count(16)
    asked.clear()
    # Another seed, another student, another length: the answers are the same.
    run(tiny_data, epochs=3, seed=7, student="resnet14", **options)
    assert (cold, asked.count(16)) == (6, 0)


@pytest.mark.parametrize(
    ("options", "said"), [({"method": "mld"}, "strongly augmented view"), ({"view_pool": 0}, "view_pool")]
)
def test_what_is_not_cached_is_refused(
    options: dict[str, Any], said: str, tiny_data: pckd.Data, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run(tiny_data, epochs=1, teacher_cache=tmp_path, **options)


@pytest.mark.parametrize("claims", [{}, {"reads_maps": True}, {"reads_maps": False}])
def test_maps_are_left_out_only_where_everybody_says_so(claims: dict[str, bool], tiny_data: pckd.Data) -> None:
    seen: set[type] = set()

    def look(student: Output, teacher: Output, context: Context) -> Tensor:
        seen.add(type(teacher.maps))
        if claims.get("reads_maps", True):
            assert [len(m) for m in (*teacher.maps, *student.maps)] == [16] * 8
        return student.embedding.sum(1)

    run(tiny_data, method=[Term("cross_entropy"), Term(function_loss(look, **claims))], epochs=1)
    assert seen == {Absent if claims.get("reads_maps") is False else tuple}


def test_a_loss_that_reads_maps_and_says_it_does_not_is_refused(tiny_data: pckd.Data) -> None:
    def look(student: Output, teacher: Output, context: Context) -> Tensor:
        return student.embedding.sum(1) + teacher.maps[-1].mean()

    with pytest.raises(UserError, match="feature maps are left out, because everything in the objective says"):
        run(tiny_data, method=[Term("cross_entropy"), Term(function_loss(look, reads_maps=False))], epochs=1)


@pytest.mark.parametrize(
    ("compile", "steps", "device", "teacher"),
    [
        (None, WORTH_IT - 1, "cpu", True),
        (False, 10 * WORTH_IT, "cpu", True),
        (None, 10 * WORTH_IT, "meta", True),
        # Nothing would be compiled, so nothing is tried or said.
        (None, 10 * WORTH_IT, "cpu", False),
    ],
)
def test_short_runs_are_not_compiled(compile: bool | None, steps: int, device: str, teacher: bool) -> None:
    assert resolve_compile(compile, steps, torch.device(device), teacher=teacher) == (False, "")


def test_compiler_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    said = "torch.compile does not work here"
    assert resolve_compile(None, WORTH_IT, CPU) == (False, f"not compiled: {said} (no compiler found)")
    with pytest.raises(UserError, match=f"{said}: no compiler found; leave out --compile"):
        resolve_compile(True, 1, CPU)


def test_a_compiled_network_returns_maps_only_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, mode: network)
    network, images = teacher_net(), torch.randn(2, 3, 8, 8)
    assert compiled(network, network, maps=True) is network
    lean = compiled(network, network, maps=False)
    assert torch.equal(lean(images).logits, network(images).logits)
    assert isinstance(lean(images).maps, Absent)
    assert lean.classifier is network.classifier
    assert len(list(lean.parameters())) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compile": "reduce-overhead"}, "CUDA graphs, which cpu does not have; use --compile"),
        (
            {"compile": "reduce-overhead", "accumulate": 2},
            "keeps the gradient of one batch alone; leave out accumulate",
        ),
        ({"compile": "max-autotune"}, "compile must be True, False or reduce-overhead, not 'max-autotune'"),
    ],
)
def test_cuda_graphs_are_refused(options: dict[str, Any], said: str, tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match=said):
        run(tiny_data, method="kd", epochs=1, **options)


class Replayed(nn.Module):
    """As a network whose CUDA graph is replayed: the next call, of any of them, writes over its answer."""

    written: ClassVar[list[Tensor]] = []

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        for tensor in self.written:
            tensor.data.fill_(torch.nan)
        answer = self.network(x)
        self.written[:] = [*answer[:2], *(answer.maps + answer.preacts if isinstance(answer, Output) else ())]
        return answer


@pytest.mark.parametrize("method", ["pckd+crd", "pckd+crd+at"])
def test_nothing_is_kept_that_a_cuda_graph_writes_over(
    method: str, tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"method": method, "centers": "ema", "epochs": 2, "lr": 0.01, "ema": 0.9}
    plain = run(tiny_data, **options).history
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: modes.append(mode) or Replayed(network))
    monkeypatch.setattr(trainer, "resolve_compile", lambda compile, *_, **__: (compile, ""))
    assert run(tiny_data, **{**options, "compile": "reduce-overhead"}).history == plain
    assert modes == ["reduce-overhead"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_run_is_the_same_but_for_rounding(precision: str, tiny_data: pckd.Data) -> None:
    options: dict[str, Any] = {"method": "pckd", "epochs": 2, "lr": 0.01, "precision": precision}
    plain, compiled = (run(tiny_data, **options, compile=c).history for c in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3 if precision == "fp32" else 0.05)


def test_nothing_is_left_over_from_step_to_step(tiny_data: pckd.Data) -> None:
    """Over 200 steps neither the number of live tensors nor their bytes grow."""
    seen: dict[int, tuple[int, int]] = {}

    class Watch(Display):
        steps = 0

        def advance(self, epoch: int, step: int) -> None:
            self.steps += 1
            if self.steps in (60, 120, 201):
                gc.collect()
                # Not what compilers keep of other tests: tensors without numbers.
                alive = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)]
                storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
                seen[self.steps] = (len(alive), sum(storages.values()))

    # Three steps an epoch; the three looks come after the last step of one.
    run(tiny_data, method="pckd", centers="ema", epochs=67, display=Watch())
    assert len(seen) == 3
    assert seen[60] == seen[120] == seen[201]

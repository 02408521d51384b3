"""The profiler: counts against published and hand-computed numbers, what it must not hide or change, its outputs."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.autograd import DeviceType

import pckd
from pckd.device import Device
from pckd.display import Silent
from pckd.engine.optimization import Optimization
from pckd.engine.teacher import FrozenTeacher
from pckd.plan import make_objective
from pckd.profiling import Comparison, Profile, compare, plot, render, short, step
from pckd.profiling.measure import MARK, Clock, held_for_backward, interleaved, peak_of, recorder, spent, summary
from pckd.profiling.networks import count, inference_speed, quiet
from pckd.profiling.operators import Counting, is_costly
from pckd.profiling.render import sentence
from pckd.profiling.step import Workload, timed_step
from pckd.tables import amount
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from pckd.terms import method_terms
from registry import BACKBONES, Batch, Context, Output, Setup, Shapes, Term, UserError, build

GOLDEN = json.loads((Path(__file__).parents[1] / "model_zoo" / "data" / "backbones_100.json").read_text())
SMALL: dict[str, Any] = {
    "batch_size": 4,
    "image_size": 8,
    "num_classes": 5,
    "num_samples": 40,
    "rounds": 2,
    "device": "cpu",
    "precision": "fp32",
}
UNTIMED = {**SMALL, "rounds": 0}
PAIR = {"student": "resnet8", "teacher": "resnet20"}
N, D, K, P = 16, 64, 5, 16 * 64
"""Of SMALL with PCKD: rows (4 images in 4 views), both embeddings' width, classes, width of the projection."""


@pytest.fixture(scope="module")
def cost() -> Profile:
    torch.set_num_threads(1)
    return pckd.profile(**PAIR, method="pckd", depth=1, **SMALL)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    torch.set_num_threads(1)
    return compare(["kd", "pckd", "pckd@1"], **PAIR, **SMALL)


# Networks


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet20"])
def test_networks_cost_what_is_published(name: str) -> None:
    found = count(build(BACKBONES, name, 100), name, torch.zeros(1, 3, 32, 32), 1)
    assert (found.macs, found.parameters) == (GOLDEN[name]["macs_fvcore"], GOLDEN[name]["params"])
    assert (found.error, found.uncounted, found.notes) == (None, {}, [])


IMAGES = torch.zeros(1, 3, 6, 6)


class Tiny(nn.Module):
    """A convolution of 3 to 4 channels, and a classifier of 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU())
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Output:
        embedding = self.body(x).mean((2, 3))
        return Output(self.classifier(embedding), embedding)


def test_counts_by_hand_down_to_the_depth_asked_for() -> None:
    conv, linear = 36 * 4 * 3 * 9, 4 * 2
    by_depth = [count(Tiny(), "tiny", IMAGES, depth) for depth in (0, 1, 2)]
    names = [[row.name for row in found.modules] for found in by_depth]
    assert names == [["tiny"], ["tiny", "body", "classifier"], ["tiny", "body", "body.0", "body.1", "classifier"]]
    found = by_depth[2]
    assert (found.macs, found.activations) == (conv + linear, 36 * 4 + 2)
    assert found.elementwise == 36 * 4 + 36 * 4  # ReLU and mean
    assert found.left_out == {"aten::mean": 1}
    row = found.modules[2]
    assert (row.type, row.parameters, row.macs, row.activations) == ("Conv2d", 108, conv, 144)


class Untraceable(Tiny):
    """Fails where it is traced."""

    def forward(self, x: Tensor) -> Output:
        if torch.jit.is_tracing():
            raise RuntimeError("no\ntracing here")
        return super().forward(x)


def test_a_network_that_cannot_be_traced_is_one_line_and_the_rest_is_there() -> None:
    found = pckd.profile(student=Untraceable(), teacher=Tiny(), method="kd", **{**SMALL, "num_classes": 2})
    student, teacher = found.student, found.teacher
    assert teacher is not None
    assert (student.macs, teacher.macs) == (None, 64 * 4 * 27 + 8)
    assert "Untraceable: fvcore cannot trace it (RuntimeError: no tracing here)" in found.notes[0]
    assert found.notes == [student.error]
    assert (found.ratio["macs"], found.ratio["parameters"]) == (None, 1)
    assert found.step.parts["student"].macs == 4 * teacher.macs
    assert student.latency["4"].seconds is not None
    assert render(found).count("cannot trace it") == 1


class Moody(Tiny):
    """What it computes depends on the pixels."""

    def forward(self, x: Tensor) -> Output:
        return super().forward(x if x.mean() > 1e9 else self.body[1](x))


def test_control_flow_that_depends_on_data_is_told() -> None:
    found = count(Moody(), "moody", IMAGES, 0)
    assert found.error is None
    assert found.notes == ["moody: what it computes depends on the values in the images; counted for one random image"]


class Attentive(Tiny):
    """Attends and sorts: operators that fvcore does not know."""

    def forward(self, x: Tensor) -> Output:
        rows = self.body(x).flatten(2).transpose(1, 2)[:, None]
        attended = nn.functional.scaled_dot_product_attention(rows, rows, rows)
        return Output(self.classifier(attended[:, 0].sort(1).values.mean(1)), attended[:, 0].mean(1))


def test_operators_that_fvcore_does_not_know_have_handles_or_are_listed() -> None:
    found = count(Attentive(), "attentive", IMAGES, 0)
    assert found.macs == 36 * 4 * 27 + 8 + 36 * 36 * (4 + 4)
    assert found.uncounted == {"aten::sort": 1}


def test_tracing_is_silent(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]) -> None:
    count(Attentive(), "attentive", IMAGES, 0)
    pckd.profile(**PAIR, method="crd(negatives=8)", **UNTIMED)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


# Terms


def test_terms_of_pckd_by_hand(cost: Profile) -> None:
    terms = cost.terms
    assert list(terms) == ["cross_entropy", "kd", "feature_alignment", "center_alignment", "category_contrast"]
    query, relation, gram = N * D * D, N * D * K, (2 * N) ** 2 * K
    expected = {
        "feature_alignment": ((D * P + P) + 2 * P + (P * D + D), N * (D * P + P * D), 2 * N * (D * P + P * D)),
        # Backward, queries: to weight and input. Relations: to both queries and the student's centers. u u^T: to u from
        # both sides.
        "category_contrast": (2 * (D * D + D), 2 * query + 2 * relation + gram, 4 * query + 3 * relation + 2 * gram),
    }
    for name, term in terms.items():
        assert (term.parameters, term.macs, term.macs_backward) == expected.get(name, (0, 0, 0))
        assert term.elementwise > 0
        assert term.uncounted == {}
    alignment, contrast = terms["feature_alignment"], terms["category_contrast"]
    assert alignment.buffer_bytes == 2 * P * 4 + 8
    assert {name: (p.parameters, p.macs) for name, p in alignment.projections.items()} == {
        "projection": (alignment.parameters, alignment.macs)
    }
    assert {name: p.macs for name, p in contrast.projections.items()} == dict.fromkeys(
        ("student_query", "teacher_query"), query
    )


class KnownFunction(torch.autograd.Function):
    """Saves 1000 floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.zeros(1000))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert len(ctx.saved_tensors) == 1
        return gradient


class Known(nn.Module):
    """A product of 7 columns, operators of every kind, and 4000 bytes for the backward pass."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(setup.student.embedding, 7))
        self.register_buffer("memory", torch.zeros(10, 3))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        found = KnownFunction.apply(student.embedding) @ self.weight
        with torch.no_grad():
            torch.linalg.svdvals(found)
            found.sort(1)
        return found.sum(1)


def test_a_loss_of_known_cost() -> None:
    found = pckd.profile(**PAIR, method=[Term("cross_entropy"), Term(Known, name="known")], **UNTIMED)
    term, rows = found.terms["known"], 4
    assert (term.parameters, term.buffer_bytes, term.projections, term.seconds) == (D * 7, 120, {}, None)
    assert (term.macs, term.macs_backward) == (rows * D * 7, 2 * rows * D * 7)
    # Besides the 1000 floats only the product's left side, which the function has copied.
    assert term.bytes == 4 * 1000 + 4 * rows * D
    assert term.uncounted == found.step.uncounted == {"aten::_linalg_svd": 1, "aten::sort": 1}
    assert "known: NOT COUNTED, cost unknown: _linalg_svd (1 call), sort (1 call)." in render(found)
    assert "NOT COUNTED" in short(found)


def test_terms_of_the_initial_epochs_are_counted_where_they_act() -> None:
    term = pckd.profile(**PAIR, method="fsp", **UNTIMED).terms["fsp"]
    assert term.macs > 0
    assert "initial epochs" in term.note


def test_projections_under_no_grad_have_no_backward() -> None:
    parts = pckd.profile(**PAIR, method="sskd", **UNTIMED).terms["self_supervision"].projections
    assert parts["student_head"].macs == parts["teacher_head"].macs == N * 2 * D * D
    assert parts["student_head"].macs_backward == 2 * N * 2 * D * D
    assert parts["teacher_head"].macs_backward == 0


@pytest.fixture(scope="module")
def work() -> Workload:
    """A step of PCKD on random data, as profile() makes it."""
    student, teacher = build(BACKBONES, "resnet8", K), FrozenTeacher(build(BACKBONES, "resnet8", K))
    shapes = Shapes.of(teacher(torch.zeros(2, 3, 8, 8)))
    setup = Setup(shapes, shapes, 40, teacher.classifier)
    objective = make_objective(
        method_terms("pckd"), setup, difficulty="cross_entropy", scheduler="preview", centers="classifier"
    )
    device = Device(torch.device("cpu"))
    optimizer = Optimization(1, 4, 0.0, weight_decay=0.0).optimizer(student, objective, device.target)
    batch = Batch(torch.randn(4, 4, 3, 8, 8), torch.arange(4), torch.arange(4))
    return Workload(DistillationTask(Classification(), student, objective), [teacher], optimizer, batch, device)


# The step


def test_parts_add_up_to_the_step(cost: Profile) -> None:
    step, terms = cost.step, {f"term:{name}": term for name, term in cost.terms.items()}
    assert list(step.parts) == ["teacher", "student", "preview", *terms, "backward", "optimizer", "other"]
    assert step.macs == sum(part.macs for part in step.parts.values())
    assert step.elementwise == sum(part.elementwise for part in step.parts.values())
    assert {name: step.parts[name].macs for name in terms} == {name: term.macs for name, term in terms.items()}
    assert step.rows == N
    assert step.parameters == cost.student.parameters + sum(term.parameters for term in terms.values())
    assert step.parts["optimizer"].bytes == 4 * step.parameters
    backward = step.parts["backward"].macs - sum(term.macs_backward for term in terms.values())
    first = N * 64 * 16 * 27  # the first convolution has no gradient to the images
    assert backward == 2 * step.parts["student"].macs - first


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_networks_in_the_step_agree_with_fvcore(role: str, cost: Profile) -> None:
    network = build(BACKBONES, PAIR[role], K).eval()
    with quiet():
        analysis = FlopCountAnalysis(network, torch.zeros(1, 3, 8, 8))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        operators = analysis.by_operator()
    assert cost.step.parts[role].macs == N * (operators["conv"] + operators["linear"])


def test_time_and_memory_are_measured(cost: Profile) -> None:
    step, student, teacher = cost.step, cost.student, cost.teacher
    assert 0 < step.seconds_low <= step.seconds <= step.seconds_high  # type: ignore[operator]
    assert all(part.seconds is not None for part in step.parts.values())
    assert cost.objective.seconds > 0  # type: ignore[operator]
    assert all(term.seconds > step.parts[f"term:{name}"].seconds for name, term in cost.terms.items())  # type: ignore
    assert set(student.latency) == {"1", "4"}
    assert all((timing.seconds or 0) > 0 for timing in student.latency.values())
    weights = 4 * (teacher.parameters + 3 * step.parameters)  # type: ignore[union-attr]
    assert step.peak_bytes > weights + step.parts["student"].bytes / 2  # type: ignore[operator]
    assert student.peak_bytes > 4 * student.parameters  # type: ignore[operator]
    assert "torch.profiler" in step.peak_how


@pytest.mark.parametrize("detector", [True, False])
def test_speed_of_inference_is_of_what_a_network_is_used_for(detector: bool) -> None:
    class Counted(nn.Module):
        def forward(self, images: Tensor) -> None:
            assert not self.training
            assert not torch.is_grad_enabled()
            sizes.add(len(images))

    sizes: set[int] = set()
    network = Counted()
    if detector:
        network.detect, network.forward = network.forward, None
    speed = inference_speed(network, torch.rand(3, 3, 8, 8), Device.resolve("cpu", "fp32"), rounds=2)
    assert sizes == set(speed) == {1, 16}
    assert min(speed.values()) > 0


def test_times_of_a_step_add_up_by_part_and_by_term(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    times = timed_step(work, Clock(work.device.target))
    assert sum(times.parts.values()) == pytest.approx(times.whole)
    assert times.objective == pytest.approx(times.parts["preview"] + sum(times.terms.values()))
    for label, seconds in times.terms.items():
        assert times.parts[f"term:{label}"] < seconds < times.parts[f"term:{label}"] + times.parts["backward"]
    # A device whose kernels are not recorded is timed as a whole.
    monkeypatch.setattr(step, "is_recorded", lambda device: False)
    times = timed_step(work, Clock(work.device.target))
    assert times.whole > 0
    assert (times.parts, times.terms, times.objective) == ({}, {}, None)


def test_the_optimizer_really_steps_and_weights_stay(work: Workload) -> None:
    before = copy.deepcopy(work.model.student.state_dict())
    work.step()
    assert len(work.optimizer.state) == len(work.optimizer.param_groups[0]["params"])
    for key, value in work.model.student.state_dict().items():
        assert "running" in key or "tracked" in key or torch.equal(value, before[key]), key


def test_vanilla_has_no_teacher() -> None:
    found = pckd.profile(student="resnet8", method="vanilla", **SMALL)
    assert found.teacher is None
    assert found.ratio == dict.fromkeys(("parameters", "macs", "activations", "peak_bytes", "latency"))
    assert "teacher" not in found.step.parts
    assert found.settings["views"] == 1
    assert found.terms["cross_entropy"].seconds is not None


def test_modules_and_random_numbers_stay_as_they_are() -> None:
    student, teacher = (build(BACKBONES, "resnet8", K) for _ in range(2))
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pckd.profile(student=student, teacher=teacher, method="pckd", **UNTIMED)
    assert torch.equal(torch.rand(2), expected)
    for network, state in zip((student, teacher), before, strict=True):
        assert network.training
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_strong_views_and_other_rules_are_taken() -> None:
    found = pckd.profile(**PAIR, method="mld", difficulty="margin", centers="ema", scheduler="focal", **UNTIMED)
    assert found.step.rows == 8
    assert (found.settings["views"], found.settings["strong_view"]) == (1, True)
    assert "preview" in found.step.parts


def test_bf16_is_profiled_as_it_trains(comparison: Comparison) -> None:
    found = pckd.profile(**PAIR, method="kd", **{**UNTIMED, "precision": "bf16"})
    assert found.settings["precision"] == "bf16"
    assert found.step.macs == comparison.profiles["kd"].step.macs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"views": 5}, "views=5"),
        (
            {"teacher": "resnet8x4", "method": "pckd(center='center_alignment')+kdsvd"},
            "kdsvd needs maps of equal widths",
        ),
        ({"teacher": Tiny()}, "the teacher has 2 classes"),
        ({"method": "nothing"}, "unknown name"),
        ({"batch_size": 1, "views": 1, "image_size": 4}, "one image, raised ValueError: Expected more than 1"),
        # The strong view is a pass of its own beside all rotations.
        ({"batch_size": 1, "views": 4, "image_size": 4, "method": "mld"}, "one image, raised ValueError"),
        ({"student": Tiny(), "teacher": None}, "method 'pckd' needs a teacher"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        pckd.profile(**{**PAIR, **UNTIMED, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Measuring


@pytest.mark.parametrize(
    ("costly", "names"),
    [
        (False, "aten::add_ aten::sqrt aten::resolve_conj aten::linalg_vector_norm prim::ListConstruct"),
        (True, "aten::_linalg_svd aten::sort aten::addmm_ aten::_euclidean_dist torchvision::roi_align"),
    ],
)
def test_operators_whose_cost_their_sizes_do_not_tell(costly: bool, names: str) -> None:
    assert {name: is_costly(name) for name in names.split()} == dict.fromkeys(names.split(), costly)


def test_work_of_every_kind_by_hand() -> None:
    one, other = torch.randn(30, 8, requires_grad=True), torch.randn(40, 8)
    with Counting() as counting:
        one.relu().unflatten(0, (5, 6)).sum()  # 240 each, and a view
        torch.cdist(one, other)
    assert (counting.macs.total(), counting.elementwise.total(), counting.uncounted.total()) == (0, 2 * 240, 1)
    for call in (lambda: one @ other.T, lambda: torch.einsum("nd,kd->nk", one, other)):
        with Counting() as forward:
            value = call().sum()
        with Counting() as backward:
            value.backward()
        assert (forward.macs.total(), backward.macs.total()) == (30 * 8 * 40, 30 * 8 * 40)


def test_a_step_marks_its_parts_for_the_profiler(work: Workload) -> None:
    with recorder(work.device.target) as profiler:
        work.step()
    marks = [event for event in profiler.events() if event.name.startswith(MARK)]
    terms = [f"term:{label}" for label in work.objective.terms]
    order = ["teacher", "student", "centers", "preview", *terms, "backward", "optimizer", "centers"]
    assert [mark.name.removeprefix(MARK) for mark in sorted(marks, key=lambda mark: mark.time_range.start)] == order
    found = spent(profiler.events(), work.device.target)
    assert {part for part, times in found.items() if times.backward} == {"student", *terms}
    assert sum(times.backward for times in found.values()) <= found["backward"].here


def recorded(name: str, start: float, end: float, number: int = -1, thread: int = 1, kernels: float = 0) -> Any:
    """An event of torch.profiler, in microseconds."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        sequence_nr=number,
        thread=thread,
        device_type=DeviceType.CPU,
        is_user_annotation=name.startswith(MARK),
        kernels=[SimpleNamespace(duration=kernels)],
        cpu_time_total=end - start,
        device_time_total=kernels,
    )


EVENTS = [
    recorded("pckd.student", 0, 100, kernels=7),
    recorded("aten::conv2d", 10, 90, 0, kernels=300),
    recorded("aten::detach", 91, 92, 1),
    recorded("pckd.term:kd", 100, 120),
    recorded("aten::kl_div", 101, 110, 1, kernels=20),
    recorded("aten::div", 130, 131, 2, kernels=2),
    # Of another thread, whose numbers are its own.
    recorded("aten::to", 105, 106, 0, thread=3),
    recorded("pckd.backward", 200, 260),
    recorded("autograd::engine::evaluate_function: DivBackward0", 201, 205, 2, thread=2, kernels=2),
    recorded("autograd::engine::evaluate_function: KlDivBackward0", 205, 215, 1, thread=2, kernels=40),
    recorded("autograd::engine::evaluate_function: ConvolutionBackward0", 215, 255, 0, thread=2, kernels=600),
]


@pytest.mark.parametrize(
    ("device", "student", "term", "backward"),
    [("cpu", (100, 40), (20, 10), 60), ("cuda", (300, 600), (20, 40), 642)],
)
def test_parts_by_hand(device: str, student: tuple[int, int], term: tuple[int, int], backward: int) -> None:
    found = spent(EVENTS, torch.device(device))
    assert list(found) == ["student", "term:kd", "backward"]
    for part, (here, later) in {"student": student, "term:kd": term, "backward": (backward, 0)}.items():
        assert (1e6 * found[part].here, 1e6 * found[part].backward) == pytest.approx((here, later)), part


def test_peak_is_the_most_that_is_alive_at_one_time() -> None:
    def run() -> None:
        one = torch.empty(2**20)
        other = torch.empty(2**18)
        del one
        torch.empty(2**18)
        del other

    assert peak_of(run, torch.device("cpu")) == 4 * 2**20 + 4 * 2**18
    kept = {"old": torch.zeros(2**18)}

    def renew() -> Tensor:
        old, kept["old"] = kept["old"], torch.zeros(2**18)
        return old

    def replace() -> None:
        del kept["old"]
        kept["new"] = torch.zeros(2**18)

    assert peak_of(replace, torch.device("cpu"), renew) == 0


def test_held_bytes_leave_out_what_is_known_and_count_a_storage_once() -> None:
    x, weight = torch.randn(10, 20, requires_grad=True), torch.randn(20, 3, requires_grad=True)
    assert held_for_backward(lambda: x @ weight, [x, weight]) == 0
    assert held_for_backward(lambda: x[:5] @ weight, [weight]) == 800
    assert held_for_backward(lambda: (x @ weight).exp() + (x @ weight).exp().square(), [x, [weight]]) == 2 * 120


def test_rounds_are_interleaved_and_summarized() -> None:
    calls: list[str] = []
    interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(calls) == "abcbcacab"
    timing = summary([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.seconds, timing.seconds_low, timing.seconds_high) == (3.0, 2.0, 4.0)
    assert summary([]).seconds is None


# Outputs


def test_keys_are_stable(cost: Profile) -> None:
    data = json.loads(json.dumps(cost.as_dict()))
    assert set(data) == {
        "units", "settings", "student", "teacher", "ratio", "terms", "objective", "step", "notes",
    }  # fmt: skip
    network = {
        "name", "parameters", "macs", "activations", "elementwise", "latency", "peak_bytes", "left_out", "uncounted",
        "modules", "notes", "error",
    }  # fmt: skip
    times = {"seconds", "seconds_low", "seconds_high"}
    assert set(data["student"]) == set(data["teacher"]) == network
    assert set(data["student"]["latency"]["4"]) == times
    assert set(data["ratio"]) == {"parameters", "macs", "activations", "latency", "peak_bytes"}
    assert set(data["terms"]["kd"]) == {
        "parameters", "buffer_bytes", "macs", "macs_backward", "elementwise", "bytes", "uncounted", "projections",
        "note", *times,
    }  # fmt: skip
    assert set(data["step"]) == {
        "peak_bytes", "peak_how", "macs", "elementwise", "parameters", "rows", "images_per_second", "parts",
        "uncounted", *times,
    }  # fmt: skip
    assert set(data["step"]["parts"]["student"]) == {"macs", "elementwise", "bytes", *times}
    assert data["ratio"]["macs"] == data["student"]["macs"] / data["teacher"]["macs"]
    assert "One FLOP is one multiply-add" in data["units"]["network"]
    assert data["settings"]["student"] == "resnet8"


def test_markdown_says_it_all(cost: Profile) -> None:
    text = render(cost)
    for part in (
        "| resnet8 (student) | 77.7 k |",
        "| student / teacher |",
        "| conv1 | Conv2d | 432 |",
        "One FLOP is one multiply-add",
        "Peak memory is measured by torch.profiler",
        "not in its multiply-adds: add (3 calls), mean (1 call)",
        f"| feature_alignment | {amount(cost.terms['feature_alignment'].parameters)} | 2.10 M | 4.19 M |",
        "| - its student_query |",
        "| all terms |",
        "| teacher forward |",
        "| optimizer |",
        "| whole step |",
        "4 images x 4 views of 3 x 8 x 8, 5 classes, random weights; cpu",
        "medians of 2 rounds",
    ):
        assert part in text, part


def test_the_short_form_has_a_line_for_each_term(cost: Profile) -> None:
    lines = short(cost).splitlines()
    assert lines[0].startswith("profile: resnet8 by pckd, teacher resnet20")
    for name in cost.terms:
        assert sum(line.startswith(f"  {name}: ") for line in lines) == 1


# Comparisons


def test_methods_side_by_side(comparison: Comparison) -> None:
    assert {label: p.settings["views"] for label, p in comparison.profiles.items()} == {
        "vanilla": 1, "kd": 1, "pckd": 4, "pckd@1": 1,
    }  # fmt: skip
    relative = json.loads(json.dumps(comparison.as_dict()))["relative"]
    assert relative["kd"]["kd"] == {"seconds": 1, "macs": 1, "peak_bytes": 1, "parameters": 1}
    kd, whole, one = (comparison.profiles[name].step for name in ("kd", "pckd", "pckd@1"))
    assert relative["pckd"]["kd"]["macs"] == whole.macs / kd.macs > 4
    assert 1 < one.macs / kd.macs < 1.2
    assert relative["pckd@1"]["vanilla"]["seconds"] > 0
    text = render(comparison)
    for part in ("| method | views | time | multiply-adds |", "Where a step's time goes", "pckd with 4 views takes"):
        assert part in text
    text = sentence([comparison, comparison], "kd")
    assert "pckd with one view takes" in text
    assert text.endswith("(median and range over 2 pairs).")
    assert text.count(" to ") == 6


def test_pictures_are_drawn(
    cost: Profile, comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for number, what in enumerate((cost, comparison)):
        plot(what, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot write the picture"):
        plot(cost, tmp_path / "missing" / "x.png")
    with pytest.raises(UserError, match="needs timings"):
        plot(pckd.profile(student="resnet8", method="vanilla", **UNTIMED), tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'pckd\[plots\]'"):
        plot(cost, tmp_path / "x.png")


# In a training


def test_profile_of_a_run_is_kept_and_changes_nothing(tiny_data: pckd.Data, tmp_path: Path) -> None:
    notes: list[str] = []

    class Recorder(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

        def begin(self, title: str, epochs: int, steps: int, done: int) -> None:
            notes.append("training begins")

    options: dict[str, Any] = {"data": tiny_data, "batch_size": 16, "precision": "fp32", "device": "cpu", "epochs": 1}
    teacher = build(BACKBONES, "resnet8", 3)
    plain, profiled = (
        pckd.distill(
            student="resnet8",
            teacher=copy.deepcopy(teacher),
            profile=profile,
            output=tmp_path / str(profile),
            display=Recorder(),
            **options,
        )
        for profile in (False, True)
    )
    assert plain.history == profiled.history
    assert plain.record["profile"] is None
    kept = json.loads((tmp_path / "True" / "result.json").read_text())["profile"]
    taken = [kept["settings"][name] for name in ("num_classes", "num_samples", "image_size")]
    assert taken == [3, 48, [8, 8]]
    assert kept["terms"]["feature_alignment"]["parameters"] > 0
    assert kept["step"]["seconds"] > 0
    told = next(number for number, note in enumerate(notes) if note.startswith("profile: resnet8 by pckd"))
    assert "training begins" in notes[told:]

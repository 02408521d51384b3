"""Modules and settings of a caller: any network that answers may teach, the others are refused in one line, and
afterwards every module, and PyTorch itself, is as it was."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchvision.models import resnet18

import pckd
from model_zoo.probe import borrowed
from pckd.device import Device
from pckd.display import Silent
from pckd.engine.progress import RandomState
from pckd.engine.ranks import Ranks
from pckd.engine.teacher import FrozenTeacher
from pckd.tasks.classification import _running_statistics_kept
from registry import BACKBONES, CenterRule, Centers, Network, Output, Setup, Shapes, Term, UserError

# The older of two ways to norm weights, which is still around.
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 16}


class Net(nn.Module):
    """A convolution, a batch norm and dropout."""

    def __init__(self, conv: nn.Module | None = None, bn: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.conv = conv or nn.Conv2d(3, 4, 3, padding=1)
            self.bn = bn or nn.BatchNorm2d(4)
            self.drop = nn.Dropout(0.5)
            self.classifier = nn.Linear(4, 3)
            if isinstance(self.bn, nn.BatchNorm2d) and self.bn.running_mean is not None:
                # As training leaves them: at their start, folding a batch norm would be the identity.
                self.bn.running_mean.normal_(0, 0.1)
                self.bn.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Output:
        x = self.bn(self.conv(x)).relu()
        embedding = x.mean((2, 3))
        return Output(self.classifier(self.drop(embedding)), embedding, (x,))


def run(data: pckd.Data, teacher: nn.Module | None = None, **options: Any) -> pckd.Result:
    teacher = Net() if teacher is None else teacher
    fixed: dict[str, Any] = {"student": "resnet8", "method": "kd", "epochs": 1, **QUICK}
    return pckd.distill(**{"data": data, "teacher": teacher, **fixed, **options})


def one_line(call: Callable[[], object]) -> str:
    """The message of the refusal."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Teachers that answer, whatever stands in the way of preparing them for speed


class Viewing(Net):
    """Asks for images in the usual memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Output:
        embedding = F.adaptive_avg_pool2d(self.conv(x), 2).view(len(x), -1)
        return Output(self.classifier(embedding), embedding)


class FiveDimensions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("five", torch.full((1, 1, 1, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Output:
        return super().forward(x * self.get_buffer("five")[0])


class Locked(Net):
    """No copy can be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Standardized(nn.Conv2d):
    """Computes with its weight first (Qiao et al., arXiv 1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / std, self.bias, padding=1)


class Branching(Net):
    """Cannot be traced, so that no batch norm is folded."""

    def forward(self, x: Tensor) -> Output:
        return super().forward(x if bool(x.sum() > 0) else x.flip(3))


class Recording(Net):
    """With gradient, whatever is around it."""

    def forward(self, x: Tensor) -> Output:
        with torch.enable_grad():
            return super().forward(x)


def changed(change: Callable[[Net], object]) -> Net:
    network = Net()
    change(network)
    return network


def both(how: Callable[..., object]) -> Callable[[], Net]:
    """Makes a network whose convolution and classifier are changed."""
    return lambda: changed(lambda network: (how(network.conv), how(network.classifier)))


def without_statistics() -> Net:
    """One batch norm that cannot be folded, after another that can."""
    torch.manual_seed(4)
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    return Net(first, nn.BatchNorm2d(4, track_running_stats=False))


@torch.inference_mode()
def inferred() -> Net:
    return Net()


TEACHERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm without statistics": without_statistics,
    "weight norm": both(weight_norm),
    "parametrized weight norm": both(parametrizations.weight_norm),
    "spectral norm": both(spectral_norm),
    "parametrized spectral norm": both(parametrizations.spectral_norm),
    "pruned": both(partial(prune.l1_unstructured, name="weight", amount=0.5)),
    "five dimensions": FiveDimensions,
    "no copy": Locked,
    "view": Viewing,
    "weight standardization": lambda: Net(Standardized(3, 4, 3)),
    "a branch": Branching,
    "with gradient": Recording,
    "a hook that changes": lambda: changed(lambda n: n.bn.register_forward_hook(lambda *seen: 2 * seen[2])),
    "train mode": lambda: Net().train(),
    "made in inference mode": inferred,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
def test_a_teacher_that_is_prepared_for_speed_answers_as_one_that_is_not(
    teacher: Callable[[], nn.Module], precision: str, tiny_data: pckd.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result() -> pckd.Result:
        torch.manual_seed(0)
        return run(tiny_data, teacher(), precision=precision, compile=False)

    prepared = result()
    monkeypatch.setattr(FrozenTeacher, "prepare", lambda *_, **__: False)
    plain = result()
    assert prepared.teacher_top1 == plain.teacher_top1
    close = pytest.approx(plain.history[0]["kd"], rel=1e-4 if precision == "fp32" else 1e-2)
    assert prepared.history[0]["kd"] == close


def test_weights_that_a_layer_computes_with_are_not_rounded_before() -> None:
    network = Branching(Standardized(3, 4, 3)).eval()
    images = torch.randn(4, 3, 8, 8)
    teacher = FrozenTeacher(network)
    assert not teacher.prepare(images, Device(CPU, "bf16"))
    assert teacher.answering is not network
    with Device(CPU, "bf16").autocast():
        assert torch.equal(teacher(images).logits, network(images).logits)


def test_a_batch_norm_that_cannot_be_folded_does_not_keep_others_from_it() -> None:
    teacher = FrozenTeacher(without_statistics())
    assert teacher.prepare(torch.randn(4, 3, 8, 8), Device(CPU))
    left = [m for m in teacher.answering.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.running_mean for norm in left] == [None]


def test_the_centers_of_a_teacher_made_in_inference_mode_enter_losses(tiny_data: pckd.Data) -> None:
    usual, given = (run(tiny_data, teacher, method="pckd", student=Net()) for teacher in (Net(), inferred()))
    assert given.history == usual.history


def test_a_teacher_that_cannot_be_compiled_answers_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such kernel")

    teacher, images = FrozenTeacher(Net()), torch.randn(4, 3, 8, 8)
    before = teacher(images)
    monkeypatch.setattr(torch, "compile", broken)
    assert teacher.prepare(images, Device(CPU), compile=True, maps=False)
    after = teacher(images)
    torch.testing.assert_close(after.logits, before.logits)
    assert not isinstance(after.maps, tuple)


def test_hooks_of_a_teacher_are_called_in_every_step(tiny_data: pckd.Data) -> None:
    seen: list[int] = []
    teacher = Net()
    teacher.bn.register_forward_hook(lambda *shown: seen.append(len(shown[2])))
    run(tiny_data, teacher)
    assert seen.count(16) == 3


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("method", ["simkd", "srrl"])
def test_a_classifier_that_computes_its_weights_is_reused(
    method: str, norm: Callable[..., object], tiny_data: pckd.Data
) -> None:
    usual = run(tiny_data, method=method).history
    normed = run(tiny_data, changed(lambda network: norm(network.classifier)), method=method).history
    assert normed[0]["loss"] == pytest.approx(usual[0]["loss"], rel=1e-4)
    assert normed[0]["top1"] == usual[0]["top1"]


# Types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_another_type_answers_as_it_does_in_float32(dtype: torch.dtype, tiny_data: pckd.Data) -> None:
    def rounded() -> Net:
        return Net().to(dtype)

    given, single = run(tiny_data, rounded()), run(tiny_data, rounded().float())
    assert (given.history, given.teacher_top1) == (single.history, single.teacher_top1)
    networks = rounded(), rounded().float()
    one, other = (pckd.evaluate(network, tiny_data, device="cpu") for network in networks)
    assert one == other
    options: dict[str, Any] = {"source": tiny_data, "epochs": 1, **QUICK}
    first, second = (pckd.transfer(network, tiny_data, **options) for network in networks)
    assert first.history == second.history
    profile(Net(), rounded())


@pytest.mark.parametrize("around", [torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_a_call_change_nothing(around: Callable[[], Any], tiny_data: pckd.Data) -> None:
    def results() -> list[Any]:
        transferred = pckd.transfer(Net(), tiny_data, source=tiny_data, epochs=1, **QUICK)
        profile(Net(), Net())
        check(tiny_data, Net(), Net())
        return [run(tiny_data).history, transferred.history, pckd.evaluate(Net(), tiny_data, device="cpu")]

    alone = results()
    with around():
        assert results() == alone


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference": (torch.inference_mode, "inside torch.inference_mode(): call this outside of it"),
    "dtype": (default_dtype, "call torch.set_default_dtype(torch.float32) first"),
    "device": (lambda: torch.device("meta"), "call torch.set_default_device(None) first"),
}


@pytest.mark.parametrize(("around", "message"), MODES.values(), ids=MODES)
def test_settings_under_which_nothing_can_be_trained_are_refused(
    around: Callable[[], Any], message: str, tiny_data: pckd.Data
) -> None:
    networks = Net(), Net()
    calls: list[Callable[[], object]] = [
        partial(run, tiny_data, networks[0]),
        partial(pckd.train, student="resnet8", data=tiny_data, **QUICK),
        partial(pckd.transfer, networks[0], tiny_data, source=tiny_data, **QUICK),
        partial(profile, *networks),
        partial(check, tiny_data, *networks),
    ]
    for call in calls:
        with around():
            assert message in one_line(call)


# What is refused


def profile(student: Any, teacher: Any) -> None:
    sizes: dict[str, Any] = {"image_size": 8, "batch_size": 4, "num_classes": 3, "num_samples": 8, "rounds": 0}
    pckd.profile(student=student, teacher=teacher, method="kd", device="cpu", precision="fp32", **sizes)


def check(data: pckd.Data, student: Any, teacher: Any) -> None:
    pckd.check(student=student, teacher=teacher, method="kd", data=data, epochs=1, **QUICK)


class Bare(Net):
    """A plain network that returns its logits."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).logits


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__(nn.LazyConv2d(4, 3, padding=1))


class Mapping(Net):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).maps[0]


NETWORKS: dict[str, tuple[Callable[[], object], str]] = {
    "maps alone": (Mapping, "forward returns no logits [N, K] (a tensor [2, 4, 8, 8] for 2 images)"),
    "a function": (lambda: len, "must be an nn.Module or the name of a network, not builtin_function_or_method"),
    "lazy": (Lazy, "has no weights yet (conv.weight): run it once on a batch of images before it is given"),
}
ADAPTED: dict[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: resnet18(num_classes=3),
    "logits alone": Bare,
    "DataParallel": lambda: nn.DataParallel(Net()),
    "average": lambda: torch.optim.swa_utils.AveragedModel(Net()),
}
ENTRIES: dict[str, Callable[[pckd.Data, Any], object]] = {
    "the student": lambda data, network: run(data, student=network),
    "the teacher": lambda data, network: run(data, network),
    "the student of a profile": lambda data, network: profile(network, Net()),
    "the teacher of a profile": lambda data, network: profile(Net(), network),
    "the student of a check": lambda data, network: check(data, network, Net()),
    "the network to transfer": lambda data, network: pckd.transfer(network, data, source=data, epochs=1, **QUICK),
    "the network to evaluate": lambda data, network: pckd.evaluate(network, data, device="cpu"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("network", "message"), NETWORKS.values(), ids=NETWORKS)
def test_what_is_no_network_is_refused_with_what_to_give(
    network: Callable[[], object], message: str, entry: str, tiny_data: pckd.Data
) -> None:
    text = one_line(lambda: ENTRIES[entry](tiny_data, network()))
    assert message in text
    assert text.startswith(entry.partition(" of")[0].partition(" to")[0])


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("network", ADAPTED.values(), ids=ADAPTED)
def test_a_module_that_answers_otherwise_is_adapted(
    network: Callable[[], nn.Module], entry: str, tiny_data: pckd.Data
) -> None:
    found, native = ENTRIES[entry](tiny_data, network()), ENTRIES[entry](tiny_data, Net())
    if network is not ADAPTED["torchvision"] and entry.startswith("the network"):
        # What transfer returns holds the layer that it trained.
        assert getattr(found, "history", found) == getattr(native, "history", native)


def test_evaluate_refuses_a_name_and_a_network_of_fewer_classes(tiny_data: pckd.Data) -> None:
    assert "not a name ('resnet8')" in one_line(lambda: pckd.evaluate("resnet8", tiny_data))
    few = BACKBONES.get("resnet8")(2)
    assert "the network has 2 classes, and tiny 3" in one_line(lambda: pckd.evaluate(few, tiny_data, device="cpu"))


def a_stem(student: Net, teacher: Net) -> None:
    student.conv = teacher.conv


def data_alone(student: Net, teacher: Net) -> None:
    student.load_state_dict(teacher.state_dict(), assign=True)


def statistics_alone(student: Net, teacher: Net) -> None:
    student.bn, teacher.bn = (nn.BatchNorm2d(4, affine=False) for _ in range(2))
    student.bn._buffers.update(teacher.bn._buffers)


@pytest.mark.parametrize(
    ("how", "shared"), [(a_stem, "conv.weight"), (data_alone, "conv.weight"), (statistics_alone, "bn.running_mean")]
)
def test_a_student_that_shares_with_its_teacher_is_refused(
    how: Callable[[Net, Net], object], shared: str, tiny_data: pckd.Data
) -> None:
    student, teacher = Net(), Net()
    how(student, teacher)
    before = state_of(student), state_of(teacher)
    message = one_line(lambda: run(tiny_data, teacher, student=student))
    assert message == f"student and teacher share {shared}: give the student a copy of it (copy.deepcopy)"
    assert (state_of(student), state_of(teacher)) == before


STUDENTS = {
    "double": (lambda: Net().double(), "is in torch.float64, and training is in torch.float32: give student.float()"),
    "frozen": (lambda: Net().requires_grad_(False), "nothing to train: call student.requires_grad_(True)"),
    "inference": (inferred, "conv.weight was made inside torch.inference_mode() and cannot be trained"),
    "view": (Viewing, "of test_given_modules.py); in its forward, write .reshape or .flatten(1) instead of .view"),
}


@pytest.mark.parametrize(("student", "message"), STUDENTS.values(), ids=STUDENTS)
def test_a_student_that_cannot_be_trained_is_refused(
    student: Callable[[], nn.Module], message: str, tiny_data: pckd.Data
) -> None:
    for call in (partial(run, tiny_data, student=student()), lambda: profile(student(), Net())):
        if message != STUDENTS["inference"][1] or isinstance(call, partial):
            assert message in one_line(call)


def test_a_frozen_student_may_have_a_head_that_is_trained(tiny_data: pckd.Data) -> None:
    student = Net().requires_grad_(False)
    before = student.conv.weight.clone()  # type: ignore[union-attr, operator]
    assert run(tiny_data, student=student, method="simkd", epochs=2).history[1]["simkd"] > 0
    assert torch.equal(student.conv.weight, before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "need"),
    [
        (lambda data: run(data, student=Locked(), report_gradients=True), "the gradient report"),
        (lambda data: profile(Locked(), Net()), "a profile"),
        (lambda data: check(data, Locked(), Net()), "a check"),
    ],
)
def test_a_student_that_cannot_be_copied_is_refused_where_it_must_be(
    call: Callable[[pckd.Data], object], need: str, tiny_data: pckd.Data
) -> None:
    said = f"cannot be copied, as {need} needs: cannot pickle '_thread.lock' object"
    assert said in one_line(lambda: call(tiny_data))


# What is left behind


def state_of(network: nn.Module) -> dict[str, Any]:
    """All that a caller may see of a module, but for the values of its tensors."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    gradients = {f"{name}.grad": t.grad for name, t in tensors.items() if t.grad is not None}
    layouts = {
        name: (id(t), t.requires_grad, t.dtype, t.device, t.stride(), t.data_ptr(), t._version)
        for name, t in {**tensors, **gradients}.items()
    }
    modules = {
        name: (id(m), type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in network.named_modules()
    }
    return {"modules": modules, "tensors": layouts}


def state_of_torch() -> dict[str, Any]:
    return {
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "generators": str(RandomState(CPU).state_dict()),
        "generator": torch.get_rng_state().tolist(),
    }


def as_of_a_caller() -> Net:
    """Half frozen, half in eval mode, in bfloat16, with gradients of its own and a hook."""
    network = Net().bfloat16().train()
    network.bn.eval()
    network.classifier.weight.requires_grad_(False)
    network(torch.ones(2, 3, 8, 8, dtype=torch.bfloat16)).logits.sum().backward()
    network.drop.register_forward_hook(lambda *_: None)
    return network


class Raising(Silent):
    """Ends a run at its second step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def advance(self, epoch: int, step: int) -> None:
        if step == 2:
            raise self.error


def ended(data: pckd.Data, network: nn.Module, **options: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt, UserError):
        run(data, network, **options)
        raise AssertionError("it was to end early")


CALLS: dict[str, Callable[[pckd.Data, Net], object]] = {
    "distill": run,
    "distill, compared": partial(run, method="vanilla"),
    "distill, profiled, with reports": partial(run, profile=True, report_difficulty=True, report_gradients=True),
    "distill, refused": partial(ended, student=5),
    "distill, refused late": partial(ended, method="simkd(factor=0)"),
    "distill, not finite": partial(ended, lr=1e30, epochs=3),
    "distill, interrupted": lambda data, network: ended(data, network, display=Raising(KeyboardInterrupt())),
    "evaluate": lambda data, network: pckd.evaluate(network, data, device="cpu"),
    "transfer": lambda data, network: pckd.transfer(network, data, source=data, epochs=1, **QUICK),
    "profile, teacher": lambda data, network: profile(Net(), network),
    "check, teacher": lambda data, network: check(data, Net(), network),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_network_that_is_not_trained_is_afterwards_as_it_was(
    call: Callable[[pckd.Data, Net], object], tiny_data: pckd.Data
) -> None:
    network = as_of_a_caller()
    values, pixels = copy.deepcopy(network.state_dict()), tiny_data.train.images.clone()
    before = state_of(network), state_of_torch()
    call(tiny_data, network)
    assert (state_of(network), state_of_torch()) == before
    assert all(torch.equal(values[key], value) for key, value in network.state_dict().items())
    assert torch.equal(tiny_data.train.images, pixels)


def test_a_teacher_from_the_cache_takes_no_random_number(tiny_data: pckd.Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": tiny_data, "epochs": 1, "cache": tmp_path, **QUICK}
    pckd.train_teacher(teacher="resnet8", **options)
    before = state_of_torch()
    pckd.train_teacher(teacher="resnet8", **options)
    assert state_of_torch() == before
    assert "must be the name of a network, not Net" in one_line(
        lambda: pckd.train_teacher(teacher=Net(), **options)  # type: ignore[arg-type]
    )


def test_what_checks_and_profiles_a_student_does_not_train_it(tiny_data: pckd.Data) -> None:
    student = TEACHERS["weight norm"]().train()
    student.bn.eval()  # type: ignore[operator, union-attr]
    values, before = copy.deepcopy(student.state_dict()), (state_of(student), state_of_torch())
    profile(student, Net())
    check(tiny_data, student, Net())
    torch.testing.assert_close(student.state_dict(), values, rtol=0, atol=0)
    assert (state_of(student), state_of_torch()) == before
    # It computes its weights, and is copied where it must be.
    assert run(tiny_data, student=student, report_gradients=True).history[0]["gradient_report"]["norms"]["kd"] > 0


def test_a_network_that_has_taught_can_be_trained(tiny_data: pckd.Data) -> None:
    teacher = Net()
    start = copy.deepcopy(dict(teacher.named_parameters()))
    run(tiny_data, teacher)
    trained = pckd.train(student=teacher, data=tiny_data, epochs=1, **QUICK)
    assert trained.student is teacher
    # But for the bias before a batch norm.
    moved = [name for name, parameter in teacher.named_parameters() if not torch.equal(parameter, start[name])]
    assert {"conv.weight", "bn.weight", "bn.bias", "classifier.weight", "classifier.bias"} <= set(moved)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_what_moves_and_casts_a_borrowed_network_is_undone() -> None:
    network = as_of_a_caller()
    before = state_of(network)
    with contextlib.suppress(KeyboardInterrupt), borrowed(network):
        network.double().to(memory_format=torch.channels_last).requires_grad_(False).eval()
        network.to_empty(device="meta")
        raise KeyboardInterrupt
    assert state_of(network) == before


class Newest(CenterRule):
    """The newest embedding as the center of every class."""

    newest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("newest", torch.zeros(4))

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        return Centers(self.newest.repeat(3, 1), self.newest.repeat(3, 1))

    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        self.newest.copy_(student.embedding[0])


def test_a_center_rule_that_is_given_begins_each_run_as_it_was_given(tiny_data: pckd.Data) -> None:
    rule, terms = Newest(), [Term("cross_entropy"), Term("center_alignment")]
    first, second = (run(tiny_data, student=Net(), method=terms, centers=rule).history for _ in range(2))
    assert first == second
    assert not rule.newest.any()
    assert [term.label for term in terms] == ["cross_entropy", "center_alignment"]


def test_batch_norms_of_several_processes_are_the_students_own_again() -> None:
    student = Net()
    student.again = student.bn
    own, affine = student.bn, student.bn.weight
    put_back = Ranks(0, 2).synchronize_statistics(student, CPU)
    assert type(student.bn) is not nn.BatchNorm2d
    student.bn.train().running_mean.fill_(7.0)  # type: ignore[operator, union-attr]
    student.eval()
    put_back()
    assert student.bn is student.again is own
    assert own.weight is affine
    assert not own.training
    assert own.running_mean.tolist() == [7.0] * 4  # type: ignore[union-attr, operator]


def test_other_views_do_not_count_for_a_batch_norm_that_averages_all_batches() -> None:
    norm = nn.BatchNorm2d(1, momentum=None)
    with _running_statistics_kept(norm):
        for _ in range(3):
            norm(torch.full((2, 1, 1, 1), 100.0))
    norm(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
    assert norm.running_mean is not None
    assert norm.running_mean.item() == 2.0
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 1


# Several calls at once


def test_a_second_training_in_another_thread_is_refused_and_changes_nothing(tiny_data: pckd.Data) -> None:
    alone = run(tiny_data, method="pckd", epochs=2).history
    messages: list[str] = []

    class Second(Silent):
        def advance(self, epoch: int, step: int) -> None:
            for call in (
                partial(run, tiny_data, seed=9),
                partial(pckd.transfer, Net(), tiny_data, source=tiny_data, **QUICK),
                partial(profile, Net(), Net()),
            ):
                thread = threading.Thread(target=lambda call=call: messages.append(one_line(call)))
                thread.start()
                thread.join()

    assert run(tiny_data, method="pckd", epochs=2, display=Second()).history == alone
    assert len(messages) == 3 * 6
    assert set(messages) == {
        "another thread of this process is training, with the same global random numbers: "
        "train one after the other, or each in a process of its own"
    }
    assert run(tiny_data, method="pckd", epochs=2).history == alone


def test_calls_within_a_training_change_nothing(tiny_data: pckd.Data) -> None:
    alone = run(tiny_data, epochs=2).history

    class Nested(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            run(tiny_data, seed=9)
            pckd.evaluate(Net(), tiny_data, device="cpu")

    assert run(tiny_data, epochs=2, display=Nested()).history == alone


def test_setup_copies_a_plain_classifier_without_random_numbers() -> None:
    shapes, classifier = Shapes(3, 4), Net().classifier
    before = torch.get_rng_state()
    plain = Setup(shapes, shapes, teacher_classifier=classifier).frozen_classifier()
    normed = Setup(shapes, shapes, teacher_classifier=weight_norm(classifier)).frozen_classifier()
    assert torch.equal(torch.get_rng_state(), before)
    for frozen in (plain, normed):
        assert frozen.state_dict().keys() == {"weight", "bias"}
        assert not list(frozen.parameters())
        torch.testing.assert_close(frozen.weight, plain.weight)

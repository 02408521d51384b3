"""The step on an accelerator that is not there: no device mixes, and the host waits at the listed places alone.

The CPU computes. What lies on the device "cuda" has a shape and a type and no numbers (``FakeTensorMode``), so that an
operation that mixes devices fails. Where the host asks for a number, or copies and waits, the place is noted and
the answer made up. Everything registered is tested here. The backward pass needs a real device and is left out.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pckd.data.loader import Loader
from pckd.device import Device
from pckd.display import Display
from pckd.engine.guard import Signals
from pckd.engine.optimization import Optimization, named_optimizer
from pckd.engine.teacher import FrozenTeacher
from pckd.engine.trainer import Trainer
from pckd.objective import Objective, says
from pckd.ops import PUBLISHED_EPOCHS
from pckd.plan import plan
from pckd.tasks import DistillationTask, Task
from pckd.testing.cases import PAIRS, PATHS, WIDTH, Bare, Case, LevelHead, enough_views, make_case
from registry import (
    AUGMENTATIONS,
    BACKBONES,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    METHODS,
    OPTIMIZERS,
    TASKS,
    Absent,
    Instances,
    NotApplicable,
    Output,
    Progress,
    UserError,
    build,
)

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
aten = torch.ops.aten


class Accelerator(TorchDispatchMode):
    """Inside, "cuda" is a device whose tensors have no numbers; ``waits`` says where the host waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)

    def __enter__(self) -> Accelerator:
        self._fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def _note(self) -> None:
        # The innermost first.
        frames = [(Path(frame.f_code.co_filename), frame.f_code.co_name) for frame, _ in traceback.walk_stack(None)]
        own = [(path, name) for path, name in frames if path.is_relative_to(ROOT) and "site-packages" not in path.parts]
        path, name = next((each for each in own if each[0] != Path(__file__)), own[0])
        self.waits.add(f"{path.relative_to(ROOT)}: {name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        goes = device is not None and torch.device(device).type == "cuda"
        if not goes and not any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs))):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        first = args[0] if args else None
        if func is aten._local_scalar_dense.default:
            self._note()
            return {torch.bool: True}.get(first.dtype, 1.0 if first.is_floating_point() else 0)
        if func is aten.nonzero.default:
            self._note()
            return first.new_zeros((first.numel(), first.dim()), dtype=torch.int64)
        if func.name() == "torchvision::nms":
            self._note()
            return first.new_zeros(len(first), dtype=torch.int64)
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            return func(first, [k for one in args[1] for k in self._indices(first, one)], *args[2:], **kwargs)
        if func is aten._to_copy.default and device is not None:
            moved = first.device.type != torch.device(device).type
            if moved and not (goes and kwargs.get("non_blocking")):
                self._note()
        elif func is aten.copy_.default and args[1].device.type != first.device.type:
            # A number of the CPU is an argument of the kernel.
            if first.device.type == "cpu" or (args[1].dim() and not (len(args) > 2 and args[2])):
                self._note()
        elif func in (aten._linalg_svd.default, aten._linalg_eigh.default):
            # On a device they ask whether they have converged.
            self._note()
        elif func.name().startswith("aten::_fused_"):
            # The optimizer's kernel, which changes its arguments alone.
            return None
        return func(*args, **kwargs)

    def _indices(self, x: Tensor, index: Tensor | None) -> Sequence[Tensor | None]:
        """An index as PyTorch takes it: a mask stands for the places where it is true, and the CPU's is copied."""
        if index is None:
            return [None]
        if index.device.type != x.device.type and index.dim():
            self._note()
        if index.dtype not in (torch.bool, torch.uint8):
            return [index]
        self._note()
        return [x.new_zeros(index.numel(), dtype=torch.int64) for _ in range(index.dim())]


CPU_INDEX = torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("does", "waits"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: 1 if x.any() else 0, True),
        (lambda x: x.cpu(), True),
        (lambda x: torch.zeros(()).copy_(x.sum()), True),
        (lambda x: x.nonzero(), True),
        (lambda x: x[x > 0], True),
        (lambda x: x[[1, 0]], True),
        (lambda x: x[CPU_INDEX], True),
        (lambda x: x.new_tensor([1.0, 2.0]), True),
        (lambda x: torch.linalg.svd(x), True),
        (lambda x: x[CPU_INDEX.to(CUDA, non_blocking=True)], False),
        (lambda x: (x[1:] * 2 + torch.tensor(1.0)).softmax(0), False),
    ],
)
def test_what_the_accelerator_notices(does: Callable[[Tensor], Any], waits: bool) -> None:
    with Accelerator() as accelerator:
        x = torch.zeros(2, 2, device=CUDA)
        does(x)
        assert bool(accelerator.waits) == waits
        with pytest.raises(RuntimeError, match=r"two (different )?devices"):
            x + torch.zeros(2)


WAITS = {
    # Once an epoch, and the look of the guard in 50 steps.
    "pckd/objective.py: _look",
    "pckd/engine/guard.py: look",
    "pckd/engine/guard.py: look_before_saving",
}
"""Where every step may wait."""
OF_A_METHOD = {"kdsvd": {"pckd/losses/kdsvd.py: forward"}}
"""A decomposition looks at its own success."""
NOT_FUSED = {name: {"pckd/engine/guard.py: check"} for name in ("dot", "lamb", "lion", "rmsprop")}
"""Optimizers that do not pass over a step by themselves: the host looks whether it is finite."""
OF_TORCHVISION = {
    *(f"pckd/augmentations/policies.py: {name}" for name in ("_affine", "<lambda>", "auto_augment")),
    "pckd/data/strong.py: <lambda>",
}
"""Operations of torchvision's: matrices and kernels are made on the CPU and copied, contrast uses a mask."""
OF_A_TASK = {
    # How many regions or pixels there are of a kind is in the data.
    "segmentation": {"pckd/tasks/dense.py: sets", "pckd/tasks/segmentation.py: _some"},
    "detection": {
        "pckd/tasks/dense.py: sets",
        # torchvision's matching, sampling, anchors and boxes.
        *(f"model_zoo/detection.py: {name}" for name in ("study", "forward", "__call__", "_features", "_rows")),
        *(f"model_zoo/detection.py: {name}" for name in ("compute_loss", "decode", "_extent", "<listcomp>")),
    },
}


def moved(x: Any) -> Any:
    """What a case holds, on the accelerator."""
    if isinstance(x, Tensor):
        return x.to(CUDA, non_blocking=True).detach().requires_grad_(x.requires_grad)
    if isinstance(x, (list, tuple)) and not isinstance(x, Absent):
        parts = [moved(one) for one in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if isinstance(x, dict):
        return {key: moved(one) for key, one in x.items()}
    if isinstance(x, LevelHead):
        head = LevelHead.__new__(LevelHead)
        vars(head).update(moved(vars(x)))
        return head
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{field.name: moved(getattr(x, field.name)) for field in fields(x)})
    return x


class Given(Task):
    """Its batches are what two networks have answered."""

    prepares = False

    def pair(self, batch: Case, student: nn.Module, teachers: Any) -> tuple[Output, list[Output], Instances]:
        return batch.student, [batch.teacher], batch.context.instances


class Batches:
    """The same batch, twice an epoch."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return iter([self.batch] * 2)

    def say_bad(self) -> None:
        pass


def train(
    accelerator: Accelerator, model: DistillationTask, teachers: Sequence[FrozenTeacher], loader: Any, **options: Any
) -> None:
    """An epoch of each stage, as the trainer does it, but for the backward pass: gradients are zeros."""

    def backward(loss: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def grad(_loss: Tensor, inputs: Sequence[Tensor], **_options: Any) -> list[Tensor]:
        return [torch.zeros_like(parameter) for parameter in inputs]

    def tolist(x: Tensor) -> Any:
        # PyTorch refuses tensors without numbers.
        return [tolist(row) for row in x] if x.dim() else x.item()

    def apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # PyTorch's own changes a parameter that has no numbers in a way that may fail.
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
            part._buffers.update({name: change(buffer) for name, buffer in part._buffers.items() if buffer is not None})
        return module

    on_nonfinite, decay = options.pop("on_nonfinite", "stop"), options.pop("decay", None)
    optimization = Optimization(**{"epochs": 10, "batch_size": 4, "lr": 0.1, "clip_grad": 1.0, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", apply)
        for teacher in teachers:
            teacher.to(CUDA)
        trainer = Trainer(
            model,
            teachers,
            loader,
            loader,
            optimization=optimization,
            device=Device(CUDA),
            seed=0,
            arguments={},
            fingerprints={},
            folder=None,
            display=Display(),
            title="",
            on_nonfinite=on_nonfinite,
            decay=decay,
        )
        accelerator.waits.clear()
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(torch.autograd, "grad", grad)
        patch.setattr(FakeTensor, "tolist", tolist)
        for epoch in {1, 1 + optimization.initial}:
            trainer.history.step = 0
            trainer._train_epoch(epoch, model, Signals(enabled=False))


def step_of(
    method: str,
    difficulty: str = "cross_entropy",
    scheduler: str = "preview",
    centers: str = "classifier",
) -> tuple[DistillationTask, FrozenTeacher, Case]:
    """A method on the first pair of networks that it works for: what is trained, the teacher, a batch."""
    for views, width in PAIRS:
        setup = make_case(views, width).setup
        terms = [
            replace(term, options={**term.options, **PATHS}) if says(term, "reads_layers", False) else term
            for term in build(METHODS, method)
        ]
        with contextlib.suppress(NotApplicable):
            objective = Objective(
                terms,
                setup,
                difficulty=build(DIFFICULTY_METRICS, difficulty),
                scheduler=build(DIFFICULTY_SCHEDULERS, scheduler),
                centers=build(CENTER_RULES, centers, setup),
            )
            break
    strong = "strong" in objective.row_sets
    case = make_case(enough_views(views, objective.losses.values()) + strong, width, strong=strong)
    return DistillationTask(Given(), Bare(WIDTH), objective), FrozenTeacher(Bare(width)), case._replace(setup=None)


def waits(method: str, options: Mapping[str, Any] = {}, **parts: str) -> set[str]:
    """Where the host waits in the steps of a method, beside the places where it may.

    Args:
        options: for :func:`train`. parts: for :func:`step_of`.
    """
    model, teacher, case = step_of(method, **parts)
    with Accelerator() as accelerator:
        initial = model.objective.initial_epochs(PUBLISHED_EPOCHS)
        train(accelerator, model, [teacher], Batches(moved(case)), **{"initial": initial, **options})
    return accelerator.waits - WAITS


@pytest.mark.parametrize("method", METHODS.names())
def test_a_step_of_a_method(method: str) -> None:
    assert waits(method) == OF_A_METHOD.get(method, set())


KINDS = {"difficulty": DIFFICULTY_METRICS, "scheduler": DIFFICULTY_SCHEDULERS, "centers": CENTER_RULES}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in KINDS[kind].names()])
def test_a_step_with_a_part(kind: str, name: str) -> None:
    assert not waits("pckd", **{kind: name})


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_step_of_an_optimizer(name: str) -> None:
    if library := OPTIMIZERS.facts(name).get("library"):
        pytest.importorskip(library)
    make, grouping = named_optimizer(name)
    assert waits("kd", {"make": make, "grouping": grouping}) == NOT_FUSED.get(name, set())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_guard_that_leaves_steps_out_and_an_average_of_weights() -> None:
    assert not waits("crd", {"on_nonfinite": "skip", "decay": 0.9}, centers="ema")


LOADERS: list[dict[str, Any]] = [
    {"views": 4},
    {"strong": True},
    {"pool": 4},
    {"balance": "weights"},
    *({"augment": f"crop+flip+{name}"} for name in AUGMENTATIONS.names()),
]


@pytest.mark.parametrize("options", LOADERS, ids=lambda options: "-".join(map(str, *options.items())))
def test_batches_of_a_loader(options: dict[str, Any]) -> None:
    split = build(TASKS, "classification").random_data(16, 3, (3, 12, 12)).train
    with Accelerator() as accelerator:
        loader = Loader(split, 16, train=True, device=CUDA, **options)
        accelerator.waits.clear()
        batch = next(iter(loader.epoch(1)))
    assert (batch.views.device.type, batch.labels.device.type) == ("cuda", "cuda")
    assert accelerator.waits <= OF_TORCHVISION


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("name", TASKS.names())
def test_a_step_of_a_task(name: str) -> None:
    task: Any = build(TASKS, name)
    task.name = name
    data = task.random_data(8, 5, (3, 64, 64))
    named = [one for one in BACKBONES.names() if BACKBONES.facts(one).get("task") == name] or ["resnet8"]
    # One of each kind; with strong views where a task has them.
    networks = {type(task.make_network(one, data)): one for one in reversed(named)}.values()
    methods = ["pckd", "mld"] if "strong" in task.rows else ["pckd"]
    for network, wanted in itertools.product(networks, methods):
        for method in (wanted, *METHODS.names()):
            with contextlib.suppress(UserError):
                run = plan(task=task, data=data, student=network, teacher=network, method=method, batch_size=4)
                teacher: Any = run.freeze([task.make_network(network, data)], print)
                objective = run.objective(teacher)
                break
        model = DistillationTask(task, run.reading(run.student, "student"), objective)
        with Accelerator() as accelerator:
            loader = task.loader(data.train, 4, train=True, objective=objective, device=CUDA, seed=0)
            train(accelerator, model, [teacher], loader)
        assert accelerator.waits - WAITS <= OF_A_TASK.get(name, OF_TORCHVISION)


def test_networks_and_objective_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "_look", lambda *_: None)
    torch._dynamo.reset()
    task: Any = build(TASKS, "classification")
    data = task.random_data(4, 3, (3, 16, 16))
    run = plan(task=task, data=data, student="resnet8", teacher="resnet8", method="pckd+at", batch_size=4)
    teacher: Any = run.freeze([task.make_network("resnet8", data)], print)
    objective = run.objective(teacher)
    batch = next(iter(task.loader(data.train, 4, train=True, objective=objective).epoch(1)))
    teacher.prepare(task.images(batch), Device(torch.device("cpu")))
    model = DistillationTask(task, run.student, objective)
    first = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    steps = [one(batch, [teacher], Progress(120, 240, 0.5)).values for one in (compiled, first)]
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("method", METHODS.names())
def test_a_step_of_a_method_is_one_graph(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Student, teacher, difficulty, weights and terms, but for the look at the weights, which asks for a number."""
    monkeypatch.setattr(Objective, "_look", lambda *_: None)
    torch._dynamo.reset()
    model, teacher, case = step_of(method)
    first = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for stage in {"initial" if term.initial else "main" for term in model.objective.terms.values()}:
        values = []
        for one in (compiled, first):
            torch.manual_seed(0)
            values.append(one(case, [teacher], Progress(120, 240, 0.5, stage)).values)
        torch.testing.assert_close(*values)

"""tools/benchmark_speed.py and the plain step beside it; nothing here asserts on how long anything takes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from model_zoo import probe
from pckd.data import make_views
from pckd.engine.teacher import FrozenTeacher
from pckd.plan import make_objective
from pckd.profiling.speed import Served
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from pckd.terms import method_terms
from registry import BACKBONES, Batch, Progress, Setup, UserError

TOOLS = Path(__file__).parents[2] / "tools"
CPU = torch.device("cpu")
QUICK = ["--pairs", "resnet8>resnet8", "--batch-size", "8", "--image-size", "16", "--classes", "5", "--steps", "2"]
# A run so short that default does not compile.
QUICK += ["--product", "32", "--device", "cpu", "--run", "400"]


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return load_tool("benchmark_speed")


@pytest.fixture
def plain(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("plain_step")


# The plain step


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("teacher_name", "terms"), [("resnet20", 5), ("resnet8x4", 4)])
def test_plain_step_is_the_objective(plain: ModuleType, teacher_name: str, terms: int) -> None:
    """Two programs that share only the networks: every term, their sum and the student's gradients agree."""
    torch.manual_seed(0)
    student, teacher = BACKBONES.get("resnet8")(6), FrozenTeacher(BACKBONES.get(teacher_name)(6))
    setup = Setup(probe(student, 3, 16), probe(teacher, 3, 16), 12, teacher.classifier)
    objective = make_objective(
        method_terms("pckd"), setup, difficulty="cross_entropy", scheduler="preview", centers="classifier"
    )
    with torch.no_grad():
        # So sure of themselves that some images are hard, and previewed.
        student.classifier.weight.mul_(20)
    student.train()
    objective.train()
    losses = plain.PlainLosses(setup.student.embedding, setup.teacher.embedding)
    losses.project.load_state_dict(objective.losses["feature_alignment"].projection.state_dict())
    for name in ("student_query", "teacher_query"):
        getattr(losses, name).load_state_dict(getattr(objective.losses["category_contrast"], name).state_dict())

    views, labels = torch.randn(12, 4, 3, 16, 16), torch.randint(0, 6, (12,))
    epoch = 30
    output, answer = student(views.flatten(0, 1)), teacher(views.flatten(0, 1))
    found = losses(output, answer, student, teacher, labels, epoch)
    found["loss"].backward()
    theirs = gradients(student)
    student.zero_grad()
    batch = Batch(views, labels, torch.arange(12))
    model = DistillationTask(Classification(), student, objective)
    values = model(dataclasses.replace(batch, recalled=answer), [teacher], Progress(epoch, 240, 0.1)).values
    values["loss"].backward()
    ours = gradients(student)

    assert 0 < float(values["previewed"]) < 1
    assert len(found) == terms + 1
    assert set(found) == set(values) - {"preview_weight", "previewed"}
    for name, value in found.items():
        torch.testing.assert_close(value, values[name], rtol=1e-4, atol=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, ours[name], rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_plain_views_are_those_of_the_library(plain: ModuleType) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8)).to(torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    data = plain.FourViews(images, torch.tensor([3, 1]), mean, std)
    data.flip = lambda image: image
    crop = data.finish.transforms.pop(0)
    assert (crop.size, crop.padding) == ((8, 8), 4)
    views, label = data[1]
    assert label == 1
    expected = make_views(images, views=4, mean=mean, std=std, train=False)[1]
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-5)
    ((batch, labels),) = plain.make_loader(data, 2, workers=0)
    assert batch.shape == (2, 4, 3, 8, 8)
    assert sorted(labels.tolist()) == [1, 3]


def test_plain_trainer_trains_the_student_and_leaves_the_teacher(plain: ModuleType) -> None:
    torch.manual_seed(0)
    student, teacher = BACKBONES.get("resnet8")(4), BACKBONES.get("resnet8")(4)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = plain.PlainTrainer(student, teacher, CPU, 0.01)
    views, labels = torch.randn(6, 4, 3, 8, 8), torch.randint(0, 4, (6,))
    trainer.start_epoch()
    losses = [trainer.step(views, labels, 1) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert trainer.meters["loss"].average == pytest.approx(sum(losses) / 6)
    assert trainer.meters["top5"].average == 100
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_accuracy_by_hand(plain: ModuleType) -> None:
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5, 6], [0.0, 1, 2, 3, 4, 5, 6]])
    assert plain.accuracy(logits, torch.tensor([0, 2, 1])) == pytest.approx((100 / 3, 200 / 3))


# A case


def answers(tool: ModuleType, case: str, lines: Iterable[str]) -> list[dict[str, Any]]:
    """What a case says to each line, in this process."""
    args = tool.make_parser().parse_args([*QUICK, "--child", case, "--precision", "fp32"])
    said: list[dict[str, Any]] = []
    served = Served(CPU, args.batch_size, chain(lines, [""]).__next__, said.append)
    data = pckd.Data(*(Classification().random_data(n, 5, (3, 16, 16)).train for n in (16, 2)), "random images")
    teacher, student = tool.make_pair("resnet8>resnet8", data)
    run = tool.run_plain if case == "plain" else tool.run_distill
    with pytest.raises(SystemExit) as ended:
        run(args, teacher, student, data, served)
    assert ended.value.code == 0
    return said


@pytest.mark.parametrize("case", ["plain", "default"])
def test_a_case_trains_an_epoch_a_line(tool: ModuleType, case: str) -> None:
    ready, watched, epoch = answers(tool, case, ["ready\n", "watch\n", "go\n"])
    assert set(ready) == {"ready", "peak"}
    assert set(epoch) == {"seconds", "images", "peak"}
    assert epoch["images"] == 16
    assert epoch["seconds"] > 0
    parts = watched["parts"]
    if case == "default":
        names = {"data", "teacher", "student", "preview", "term:category_contrast", "backward", "optimizer"}
        assert names <= set(parts)
        assert sum(part["here"] for part in parts.values()) < watched["seconds"]
        assert 0 < sum(part["backward"] for part in parts.values()) < parts["backward"]["here"]
        assert 0 < tool.outside(watched) < 1


def test_cache_is_full_before_the_first_epoch_that_counts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    forward = FrozenTeacher.forward

    def counting(self: FrozenTeacher, x: Tensor) -> Any:
        asked.append(len(x))
        return forward(self, x)

    def lines() -> Iterator[str]:
        for _ in range(2 + tool.WARM_UP):
            yield "go\n"
            seen.append(sum(asked))

    seen: list[int] = []
    monkeypatch.setattr(FrozenTeacher, "forward", counting)
    answers(tool, "cache", lines())
    # Before the first epoch its preparation asks; the first epoch asks for all views of all images, no later one does.
    assert [later - before for before, later in pairwise(seen)] == [16 * 4, 0, 0]


def test_peak_is_of_what_was_in_use_since() -> None:
    program = """
import torch
from pckd.profiling.speed import forget_peak, peak

cpu = torch.device("cpu")
forget_peak(cpu)
before = peak(cpu)
held = torch.ones(64 << 18)
print(peak(cpu) - before > 48 << 20)
del held
print(peak(cpu) - before > 48 << 20)
"""
    # In a process of its own: one that has freed much takes it from there.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


# Figures


PARTS = {"teacher": {"here": 2.0, "backward": 0.0}, "student": {"here": 1.0, "backward": 3.0}}


def epoch_of(seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "images": 16, "peak": 1000, **more}


def test_figures_by_hand(tool: ModuleType) -> None:
    first = [{"ready": 5.0, "peak": 500}, epoch_of(10.0), epoch_of(2.0)]
    assert tool.case_figures(first, [epoch_of(2.0), epoch_of(4.0, peak=3000), epoch_of(1.0)], steps=2) == {
        "samples": [1.0, 2.0, 0.5],
        "step": {"seconds": 1.0, "seconds_low": 0.75, "seconds_high": 1.5},
        "images_per_second": 8,
        "ready_seconds": 5,
        "start_seconds": 5 + (10 - 2) + (2 - 2),
        "peak_bytes": 3000,
    }
    assert tool.ranged([4.0, 1.0, 2.0]) == "2.00 x (1.00 to 4.00)"
    assert tool.outside(epoch_of(8.0, parts=PARTS)) == 0.25
    assert tool.outside(epoch_of(8.0, parts={"student": PARTS["student"]})) == 0.5


def test_machine_is_described_by_kind(tool: ModuleType) -> None:
    text = tool.describe_machine(CPU)
    assert "cores, " in text
    assert torch.__version__.partition("+")[0] in text


# The tool


@contextlib.contextmanager
def canned(argv: list[str], case: str, **options: object) -> Iterator[Callable[..., dict[str, Any]]]:
    """In place of a case's process: plain takes 8 seconds an epoch, the others 2."""
    said = iter([{"ready": 5.0, "peak": 500}])
    seconds = 8.0 if case == "plain" else 2.0
    yield lambda order="go": next(said, epoch_of(seconds, **({"parts": PARTS} if order == "watch" else {})))


def test_table_and_json(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "child", canned)
    output = tmp_path / "speed.json"
    arguments = [*QUICK, "--cases", "plain,cache", "--rounds", "2", "--precision", "bf16"]
    assert tool.main([*arguments, "--memory", "16", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "| plain | fp32 | 4.00 s (4.00 to 4.00) | 2 | 1.00 x (1.00 to 1.00) |" in out
    assert "| cache | bf16 | 1.00 s (1.00 to 1.00) | 8 | 4.00 x (4.00 to 4.00) |" in out
    assert "| images a step | plain: before the first step | plain: peak |" in out
    header, _, row = out.strip().splitlines()[-3:]
    assert header.startswith("| teacher > student | plain | cache is faster | of the peak: plain |")
    assert row.startswith("| resnet8 > resnet8 | 4.00 s | 4.00 x (4.00 to 4.00) |")
    assert len(row.split("|")) == len(header.split("|"))
    ((pair, found),) = json.loads(output.read_text())["pairs"].items()
    assert pair == "resnet8>resnet8"
    assert set(found["peak_flops"]) == {"fp32", "bf16"}
    assert {case: one["faster"] for case, one in found["cases"].items()} == {"plain": [1.0, 1.0], "cache": [4.0, 4.0]}
    macs, of_case = found["macs"], {case: one["macs"] for case, one in found["cases"].items()}
    assert macs["teacher"] == macs["student"]
    assert of_case == {"plain": sum(macs.values()), "cache": sum(macs.values()) - macs["teacher"]}
    assert found["memory"] == {"16": {"plain": {"before": 500, "peak": 1000}}}


def test_other_methods_go_without_plain(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "child", canned)
    arguments = [*QUICK, "--method", "kd", "--rounds", "1", "--cases", "default", "--precision", "fp32"]
    assert tool.main([*arguments, "--output", str(tmp_path / "speed.json")]) == 0
    assert "in a run of 400 steps, default does not" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "speed.json").read_text())["pairs"].values()
    assert found["outside"] == 1 - 6 / 2
    assert "faster" not in found["cases"]["default"]
    assert list(found["peak_flops"]) == ["fp32"]
    assert found["recorded"][0]["parts"] == PARTS


def test_a_case_is_a_process_of_its_own(tool: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    with tool.child([*QUICK, "--precision", "fp32"], "plain") as ask:
        assert set(ask()) == {"ready", "peak"}
        epoch = ask()
        assert epoch["images"] == 16
        assert epoch["peak"] > 50 << 20
    message = "the process that measures cache has ended with exit code 2"
    with pytest.raises(UserError, match=message), tool.child([*QUICK, "--method", "nothing"], "cache") as ask:
        ask()
    assert "METHODS: unknown name 'nothing'" in capfd.readouterr().err


@pytest.mark.slow
def test_compiled_networks_are_timed_part_by_part(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*QUICK, "--rounds", "1", "--cases", "default", "--precision", "fp32", "--run", "4000"]
    assert tool.main([*arguments, "--output", str(tmp_path / "speed.json")]) == 0
    assert "in a run of 4,000 steps, default compiles" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "speed.json").read_text())["pairs"].values()
    assert found["compiled"]
    for part in ("teacher", "student", "backward", "term:kd"):
        assert found["recorded"][0]["parts"][part]["here"] > 0
    assert found["recorded"][0]["parts"]["student"]["backward"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "resnet8"], "give TEACHER>STUDENT"),
        (["--pairs", "resnet9>resnet8"], "did you mean"),
        (["--cases", "plain,fast"], "unknown case 'fast'; known: plain, peer, default, cache"),
        (["--method", "kd"], "the plain step is written for pckd alone"),
        (["--method", "kd", "--peer", "nowhere"], "--peer nowhere: no helper/loops.py there"),
        (["--method", "crd", "--peer", "nowhere"], "--peer runs kd, at, rkd, sp, not crd"),
        (["--method", "kd", "--cases", "peer"], "--cases: peer needs --peer"),
        (["--method", "nothing"], "METHODS: unknown name 'nothing'"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--rounds", "100"], "--run must be at least 404, not 400"),
        (["--batch-size", "1"], "--batch-size must be at least 2"),
        (["--memory", "8,x"], "--memory takes batch sizes"),
        (["--memory", "1"], "--memory: a batch size must be at least 2"),
        (["--output", "/does/not/exist/x.json"], "there is no folder /does/not/exist"),
        (["--device", "tpu"], "device 'tpu' cannot be used here"),
        (["--steps", "x"], "invalid int value"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, refusal: Callable[[list[str]], str]
) -> None:
    assert message in refusal([*QUICK, *arguments])


# Reading images


def test_reading_is_timed_beside_a_reference(load_tool: Callable[[str], ModuleType], monkeypatch: Any) -> None:
    """Both give batches of the same images, shape and normalization."""
    tool = load_tool("data_speed")
    monkeypatch.setattr(tool, "DRAWN", 128)
    monkeypatch.setattr(tool, "COPIES", 1)
    monkeypatch.setattr(tool, "IMAGENET", 60 * tool.BATCH)
    monkeypatch.setattr(tool, "LARGE", (40, 48))
    reading, waiting = tool.measure(None, [0], 1, CPU)
    assert [row[0] for row in reading.rows] == [
        "JPEG files to 224 pixels",
        "the same in tar shards",
        "64-pixel JPEG files",
    ]
    assert [row[0] for row in waiting.rows] == ["reference", "ours"]


# Another library's loop

CHECKOUT = {
    "models/__init__.py": "import torch\nmodel_dict = {'tiny': lambda num_classes: torch.nn.Linear(3072, num_classes)}",
    "distiller_zoo/__init__.py": "import torch\nclass Similarity(torch.nn.Module): pass\n"
    "class DistillKL(torch.nn.Module):\n    def __init__(self, T): super().__init__()",
    "dataset/cifar100.py": "from torch.utils.data import DataLoader\nfrom torchvision import datasets, transforms\n"
    "class Own(datasets.CIFAR100): pass\n"
    "def get_cifar100_dataloaders(batch_size, num_workers, is_instance):\n"
    "    return DataLoader(Own('x', train=False, transform=transforms.ToTensor()), batch_size), None",
    "helper/loops.py": "seen = []\n"
    "def train_distill(epoch, loader, networks, losses, optimizer, options):\n"
    "    seen.append((epoch, len(loader), [x.shape for x, _ in loader], len(networks), options.distill, options.beta))",
}


def test_the_peers_own_loop_is_run(load_tool: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: Any) -> None:
    for name, text in CHECKOUT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    tool = load_tool("peer_step")
    monkeypatch.setattr(tool.datasets, "CIFAR100", tool.datasets.CIFAR100)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("models", "distiller_zoo", "dataset", "helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        peer = tool.Peer(str(tmp_path), "tiny>tiny", "sp", 40, 0.1, workers=0)
        peer.epoch(7, 4)
        # Images without end: of 100 the last 20 make a batch of their own.
        shapes = [(40, 3, 32, 32), (40, 3, 32, 32), (20, 3, 32, 32), (40, 3, 32, 32)]
        assert sys.modules["helper.loops"].seen == [(7, 4, shapes, 2, "similarity", 3000.0)]
        with pytest.raises(UserError, match="RepDistiller has no network resnet9; it has tiny"):
            tool.Peer(str(tmp_path), "tiny>resnet9", "sp", 40, 0.1)
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] in ("models", "distiller_zoo", "dataset", "helper")]:
            del sys.modules[name]

"""Optimizers by name, parameter groups, accumulated batches, averaged weights, and the choice of an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pckd
from model_zoo import load_weights, save_weights
from pckd.device import Device
from pckd.engine import trainer as loop
from pckd.engine.optimization import Grouping, Optimization, named_optimizer, set_rate
from pckd.engine.step import train_step
from pckd.plan import make_objective
from pckd.tasks import DistillationTask
from pckd.tasks.classification import Classification
from registry import Batch, Output, Progress, Setup, Shapes, Term, UserError

CPU = torch.device("cpu")


def T(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Linear(nn.Module):
    """A network of which every row's gradient is its own: it has no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(192, 4), nn.Linear(4, 4)])
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Output:
        embedding = self.blocks[1](self.blocks[0](x.flatten(1)).tanh())
        return Output(self.classifier(embedding), embedding)


def run(data: pckd.Data, **options: Any) -> pckd.Result:
    usual = {"student": Linear(), "method": "vanilla", "batch_size": 16, "precision": "fp32", "device": "cpu"}
    return pckd.distill(**{**usual, "data": data, "epochs": 2, "display": None, **options})


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_sgd_by_name_is_the_usual_sgd(tiny_data: pckd.Data) -> None:
    usual, named = run(tiny_data), run(tiny_data, optimizer="sgd", lr=0.05)
    assert torch.equal(weights(usual.student), weights(named.student))
    assert usual.history == named.history
    other = run(tiny_data, optimizer="sgd(nesterov=True)")
    assert not torch.equal(weights(other.student), weights(usual.student))


def own(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr)


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-3), ("rmsprop", 1e-3), (own, None)])
def test_an_optimizer_says_its_usual_rate(optimizer: Any, lr: float | None, tiny_data: pckd.Data) -> None:
    if lr is None:
        with pytest.raises(UserError, match=r"nobody says at which learning rate .* give lr"):
            run(tiny_data, optimizer=optimizer)
    result = run(tiny_data, optimizer=optimizer, epochs=1, **({} if lr else {"lr": 0.01}))
    assert result.record["lr"] == (lr or 0.01)
    assert result.history[0]["loss"] < run(tiny_data, optimizer=optimizer, epochs=1, lr=1e-9).history[0]["loss"]


def test_groups_by_hand() -> None:
    student, objective = Linear(), nn.Linear(2, 2)
    grouping = Grouping(decay_norms=False, layer_decay=0.5, projection_lr=10.0)
    names = {id(p): name for net in (student, objective) for name, p in net.named_parameters()}
    groups = grouping.groups(student, objective)
    found = {(g["lr_scale"], g.get("weight_decay")): [names[id(p)] for p in g["params"]] for g in groups}
    assert found == {
        (0.25, None): ["blocks.0.weight"],
        (0.25, 0.0): ["blocks.0.bias"],
        (0.5, None): ["blocks.1.weight"],
        (0.5, 0.0): ["blocks.1.bias"],
        (1.0, None): ["classifier.weight"],
        (1.0, 0.0): ["classifier.bias"],
        (10.0, None): ["weight"],
        (10.0, 0.0): ["bias"],
    }
    assert len(Grouping().groups(student, nn.Linear(2, 2))) == 1
    make, same = named_optimizer("adamw(weight_decay=0.1, decay_norms=False, layer_decay=0.5, projection_lr=10.0)")
    assert same == grouping
    optimizer = Optimization(1, 8, 0.02, make=make, grouping=same).optimizer(student, objective, CPU)
    set_rate(optimizer, 0.2)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 2.0, 2.0])
    assert [g["weight_decay"] for g in optimizer.param_groups] == 4 * [0.1, 0.0]


def test_a_network_says_what_is_not_decayed() -> None:
    student = Linear()
    student.no_weight_decay = lambda: {"classifier.weight"}  # type: ignore[assignment]
    groups = Grouping(decay_norms=False).groups(student, nn.Module())
    spared = next(g["params"] for g in groups if g.get("weight_decay") == 0.0)
    assert any(p is student.classifier.weight for p in spared)


def step_of(batches: list[Batch], teacher: Any = ()) -> tuple[nn.Module, list[Any]]:
    student = Linear().double()
    shapes = Shapes(3, 4)
    parts: dict[str, Any] = {"difficulty": "cross_entropy", "scheduler": "constant", "centers": "classifier"}
    objective = make_objective([Term("cross_entropy")], Setup(shapes, shapes, 8), **parts)
    steps = train_step(
        *batches,
        model=DistillationTask(Classification(), student, objective),
        teachers=teacher,
        optimizer=Optimization(1, 8, 0.1).optimizer(student, objective, CPU),
        device=Device(CPU, "fp32"),
        progress=Progress(),
        clip_grad=1e3,
    )
    return student, steps


def test_accumulated_batches_make_the_step_of_one_larger_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(8, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(8) % 3
    parts = [Batch(views[k : k + 4], labels[k : k + 4], torch.arange(k, k + 4)) for k in (0, 4)]
    whole, (one,) = step_of([Batch(views, labels, torch.arange(8))])
    sum_of_two, two = step_of(parts)
    assert torch.allclose(weights(whole), weights(sum_of_two), rtol=0, atol=1e-15)
    assert not torch.allclose(weights(whole), weights(step_of(parts[:1])[0]), atol=1e-6)
    means = torch.stack([step.values["loss"] for step in two]).mean()
    assert one.values["loss"].item() == pytest.approx(means.item(), abs=1e-7)
    assert one.values["grad_norm"].item() == pytest.approx(two[0].values["grad_norm"].item())


def test_an_epoch_drops_the_batches_that_make_no_step(tiny_data: pckd.Data) -> None:
    # 48 images in batches of 16, two a step: one step, and the third batch is not used.
    result = run(tiny_data, accumulate=2, epochs=3)
    assert result.record["images_per_second"] == pytest.approx(96 / result.record["train_seconds"])
    with pytest.raises(UserError, match="accumulate=4: an epoch has 3 batches only"):
        run(tiny_data, accumulate=4)


def test_the_average_of_the_weights_is_kept_measured_and_saved(
    tiny_data: pckd.Data, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[Tensor] = []
    step = loop.train_step

    def spy(*args: Any, model: Any, **options: Any) -> Any:
        done = step(*args, model=model, **options)
        passed.append(weights(model.student).clone())
        return done

    monkeypatch.setattr(loop, "train_step", spy)
    result = run(tiny_data, ema=0.75, epochs=1, output=tmp_path)
    first, second, third = passed
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert result.ema is not None
    assert torch.allclose(weights(result.ema), expected, atol=1e-6)
    assert torch.equal(weights(result.student), third)
    score = pckd.evaluate(result.ema, tiny_data)
    assert (result.history[0]["ema_top1"], result.history[0]["ema_top5"]) == (score.top1, score.top5)
    assert result.last_ema_top1 == score.top1
    saved = Linear()
    load_weights(saved, tmp_path / "model_ema.pth")
    assert torch.equal(weights(saved), weights(result.ema))


class Rising(Classification):
    """Scores that are known before."""

    scores = (30.0, 50.0, 40.0, 50.0, 20.0, 60.0)

    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, float]:
        self.asked = getattr(self, "asked", 0) + 1
        return {"top1": self.scores[self.asked - 1], "top5": 0.0, "test_loss": 0.0}


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 5), (4, 6), (None, 6)])
def test_patience_ends_a_run_that_is_no_longer_better(
    patience: int | None, epochs: int, tiny_data: pckd.Data, tmp_path: Any
) -> None:
    options: dict[str, Any] = {"val_fraction": 0.25, "epochs": 6, "patience": patience, "batch_size": 12}
    result = run(tiny_data, task=Rising(), **options)
    assert len(result.history) == epochs
    assert result.record["best_epoch"] == (6 if epochs == 6 else 2)


def test_the_best_network_is_kept(tiny_data: pckd.Data, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        pckd.api, "save_weights", lambda net, path, **_: written.append(path.name) or save_weights(net, path)
    )
    options: dict[str, Any] = {"val_fraction": 0.25, "epochs": 6, "output": tmp_path, "batch_size": 12}
    run(tiny_data, task=Rising(), keep_best=True, **options)
    assert written == 3 * ["model_best.pth"] + ["model_final.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamx"}, "OPTIMIZERS: unknown name 'adamx'"),
        ({"optimizer": "adamw(momentum=0.9)"}, "no option 'momentum'"),
        ({"optimizer": "adamw(layer_decay=0)"}, "optimizer adamw: layer_decay=0: it must be above 0"),
        ({"optimizer": "adamw(decay_norms=1)"}, "option 'decay_norms' must be bool"),
        ({"optimizer": "adamw", "weight_decay": 0.1}, "are of the usual SGD; give them as options"),
        ({"optimizer": lambda groups, lr: None, "lr": 0.1}, "the optimizer is NoneType"),
        ({"optimizer": "adamw(beta1=2)"}, "the optimizer raised ValueError: Invalid beta"),
        ({"ema": 1.0}, "ema must be"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
        ({"label_smoothing": 1}, "label_smoothing must be"),
        ({"label_smoothing": 0.1, "method": [Term("kd")], "teacher": Linear()}, "no term is a cross entropy"),
        ({"patience": 1}, "must not be done on test images; give val_fraction"),
        ({"keep_best": True, "val_fraction": 0.5}, "needs an output folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(options: dict[str, Any], message: str, tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match=f"^.*{message}.*$"):
        run(tiny_data, **options)


def test_label_smoothing_by_hand(tiny_data: pckd.Data) -> None:
    plain, smooth = (run(tiny_data, epochs=1, lr=1e-12, label_smoothing=e).history[0]["loss"] for e in (0.0, 0.3))
    network = Linear()
    images = (tiny_data.train.images / 255 - 0.5) / 0.25
    even = -network(images).logits.log_softmax(1).mean()
    # Crops and flips change the images a little.
    assert smooth - 0.7 * plain == pytest.approx(0.3 * even.item(), rel=0.05)


# Gradients of the task and of distillation apart


def test_dot_is_as_released() -> None:
    both, task, taught = (nn.Parameter(T(values)) for values in ([1.0, -2.0], [3.0], [0.5, 0.25]))
    optimizer = named_optimizer("dot(weight_decay=0)")[0]([{"params": [both, task, taught]}], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.take_gradients(both.square().sum() * task.sum(), (both * taught).sum() ** 2)
        optimizer.step()
    moved = [parameter.tolist() for parameter in (both, task, taught)]
    assert moved == [
        pytest.approx(values, rel=1e-12)
        for values in ([-0.7521450000000002, 1.5042900000000003], [1.4494875], [0.5, 0.25])
    ]


def test_dot_decays_each_parameter_once() -> None:
    both, task, taught = (nn.Parameter(T([2.0])) for _ in range(3))
    optimizer = named_optimizer("dot(weight_decay=0.5)")[0]([{"params": [both, task, taught]}], 0.1)
    optimizer.take_gradients((both + task).sum(), (both + taught).sum())
    assert [p.grad.tolist() for p in (both, task, taught) if p.grad is not None] == [[2], [1], [1]]
    optimizer.step()
    assert [p.item() for p in (both, task, taught)] == pytest.approx([2 - 0.1 * 3, 2 - 0.1 * 2, 2 - 0.1 * 2])


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip_grad": 0.1}])
def test_dot_without_a_difference_is_sgd(tiny_data: pckd.Data, options: dict[str, Any]) -> None:
    def trained(optimizer: str, method: str = "kd") -> Tensor:
        given: dict[str, Any] = {"teacher": Linear(), "method": method, "optimizer": optimizer, "lr": 0.05, **options}
        return weights(run(tiny_data, **given).student)

    usual = trained("sgd")
    assert torch.allclose(trained("dot(delta=0)"), usual, rtol=0, atol=1e-5)
    assert not torch.allclose(trained("dot"), usual, rtol=0, atol=1e-4)
    # One kind of terms alone has the usual momentum.
    assert torch.allclose(trained("dot", "vanilla"), trained("sgd", "vanilla"), rtol=0, atol=1e-5)


def test_dot_refuses_a_momentum_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^dot: momentum=0\.9 with delta=0\.2 must stay"):
        named_optimizer("dot(delta=0.2)")[0]([{"params": [nn.Parameter(T([1.0]))]}], 0.1)

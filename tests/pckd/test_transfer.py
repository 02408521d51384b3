"""The linear probe: what it is shown, what it leaves alone, and what it reaches, on cases that can be counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import pckd
from model_zoo import Preprocessing, preprocessing_of, save_weights, set_preprocessing
from pckd import transfer as probe_of
from pckd.device import Device
from pckd.objective import Predictor
from pckd.transfer import Inputs, embed, fit_linear, fitted, inputs_of, load_network
from registry import BACKBONES, DataSplit, Output, UserError

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 16}
TINY = Inputs((0.5,) * 3, (0.25,) * 3, (8, 8))
"""How the images of ``tiny_data`` are shown."""


class Averages(nn.Module):
    """The mean of each channel, times a factor: what tells the classes of ``tiny_data`` apart."""

    def __init__(self, factor: float = 1.0, channels: int = 3) -> None:
        super().__init__()
        self.factor = factor
        self.classifier = nn.Linear(channels, 7)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Output:
        self.seen.append(x)
        embedding = x.mean((2, 3)) * self.factor
        return Output(self.classifier(embedding), embedding)


def resnet8(classes: int = 3, seed: int = 0, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = BACKBONES.get("resnet8")(classes, in_channels=channels)
    return network


def grey(images: list[list[list[int]]]) -> DataSplit:
    pixels = torch.tensor(images, dtype=torch.uint8).unsqueeze(1)
    return DataSplit(pixels, torch.arange(len(pixels)) % 2, ("a", "b"), (0.1,), (0.3,), name="grey")


class Streamed(Dataset):
    """Images that come one by one; in training they come inverted."""

    def __init__(self, images: Tensor, inverted: bool = True) -> None:
        self.images, self.inverted = images, inverted

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return 255 - self.images[position] if self.inverted else self.images[position]

    def evaluation(self) -> Streamed:
        return Streamed(self.images, inverted=False)


# What it reaches


def test_classes_that_the_embedding_separates_are_all_told_apart(tiny_data: pckd.Data) -> None:
    result = probe_of(Averages(), tiny_data, source=tiny_data, epochs=30, **QUICK)
    assert result.last_top1 == result.best_top1 == 100.0
    assert [row["epoch"] for row in result.history] == list(range(1, 31))
    assert (result.classifier.in_features, result.classifier.out_features) == (3, 3)


def test_an_embedding_that_says_nothing_gets_the_share_of_the_most_frequent_class(tiny_data: pckd.Data) -> None:
    most = int(tiny_data.train.labels.bincount().argmax())
    share = 100 * float((tiny_data.test.labels == most).float().mean())
    result = probe_of(Averages(factor=0.0), tiny_data, source=tiny_data, epochs=60, **{**QUICK, "batch_size": 48})
    assert result.last_top1 == pytest.approx(share)
    assert share < 60


def fit(rows: Tensor, **options: Any) -> pckd.Transfer:
    """Two rows, one of each class."""
    split = rows, torch.tensor([0, 1])
    return fit_linear(split, split, classes=2, batch_size=2, **options)


def test_first_step_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    torch.manual_seed(3)
    start = nn.Linear(2, 2)
    excess = (start(rows).softmax(1) - torch.eye(2)).detach()
    result = fit(rows, epochs=1, lr=0.5, seed=3)
    weight = start.weight.detach() - 0.5 * excess.T @ rows / 2
    assert torch.allclose(result.classifier.weight, weight, atol=1e-6)
    assert torch.allclose(result.classifier.bias, start.bias.detach() - 0.5 * excess.mean(0), atol=1e-6)
    loss = -float(start(rows).log_softmax(1).diag().mean().detach())
    assert result.history[0]["loss"] == pytest.approx(loss, rel=1e-5)


def test_learning_rate_falls_to_a_tenth_after_30_60_and_90_percent() -> None:
    rates = [row["lr"] for row in fit(torch.eye(2), epochs=10, lr=0.1, seed=0).history]
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001] * 3 + [0.0001])


def test_best_is_the_best_epoch_and_last_the_last(tiny_data: pckd.Data) -> None:
    result = probe_of(resnet8(), tiny_data, source=tiny_data, epochs=8, **QUICK)
    accuracies = [row["top1"] for row in result.history]
    assert (result.best_top1, result.last_top1) == (max(accuracies), accuracies[-1])
    # 30 test images: every accuracy is a thirtieth.
    assert all(0.3 * top1 == pytest.approx(round(0.3 * top1), abs=1e-4) for top1 in accuracies)


def test_same_seed_same_figures_and_the_caller_keeps_its_random_state(tiny_data: pckd.Data) -> None:
    network, before = resnet8(), torch.get_rng_state()
    first, second, other = (
        probe_of(network, tiny_data, source=tiny_data, epochs=2, seed=seed, **QUICK) for seed in (5, 5, 6)
    )
    assert first.history == second.history != other.history
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_data_by_name(tiny_data: pckd.Data) -> None:
    name = "shapes(num_classes=4, image_size=12, train_size=40, test_size=20)"
    assert inputs_of(name) == Inputs((0.5,) * 3, (0.16,) * 3, (12, 12))
    result = probe_of(resnet8(), name, source=tiny_data, epochs=1, limit_train=30, limit_test=10, **QUICK)
    assert result.classifier.out_features == 4
    assert result.last_top1 in [10.0 * right for right in range(11)]


# What it leaves alone


def test_network_is_frozen_in_eval_mode_and_as_it_was_afterwards(tiny_data: pckd.Data) -> None:
    network = resnet8().train()
    frozen = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = copy.deepcopy(network.state_dict())
    modes: list[bool] = []
    network.register_forward_hook(lambda module, *_: modes.append(any(m.training for m in module.modules())))
    probe_of(network, tiny_data, source=tiny_data, epochs=2, **QUICK)
    assert set(modes) == {False}
    # In train mode the running means of the batch norms would have moved.
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (network.training, frozen.training) == (True, False)


# What the network is shown


def test_grey_images_are_resized_repeated_and_normalized_as_in_the_networks_training() -> None:
    columns = [0, 70, 140, 210]
    split = fitted(grey([[columns] * 4]), Inputs((0.5, 0.4, 0.3), (0.25, 0.5, 1.0), (2, 2)))
    # Half the size, so that the triangle is 2 pixels wide on each side, with weights 3/7, 3/7 and 1/7:
    # (0 * 3 + 70 * 3 + 140) / 7 = 50 and (70 + 140 * 3 + 210 * 3) / 7 = 160.
    assert split.images.tolist() == [[[[50, 160]] * 2] * 3]
    network = Averages()
    embed(network, split, device=Device(CPU))
    for channel, (mean, std) in enumerate(zip((0.5, 0.4, 0.3), (0.25, 0.5, 1.0), strict=True)):
        expected = [(value / 255 - mean) / std for value in (50, 160)]
        assert network.seen[0][0, channel, 1].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("source", "size", "seen"),
    [
        (TINY, None, (8, 8)),
        (TINY, 5, (5, 5)),
        (TINY, (6, 3), (6, 3)),
        (TINY._replace(size=None), None, (4, 4)),
    ],
)
def test_size_and_statistics_are_those_of_the_source(source: Inputs, size: Any, seen: tuple[int, int]) -> None:
    data = pckd.Data(grey([[[40] * 4] * 4] * 6), grey([[[40] * 4] * 4] * 2), name="grey")
    network = Averages()
    probe_of(network, data, source=source, image_size=size, epochs=1, **QUICK)
    assert network.seen[-1].shape == (2, 3, *seen)
    assert float(network.seen[-1][0, 0, 0, 0]) == pytest.approx((40 / 255 - 0.5) / 0.25)


def test_by_default_size_and_statistics_are_those_of_the_networks_record(tiny_data: pckd.Data) -> None:
    network = Averages()
    with pytest.raises(UserError, match="source is missing: what the network was trained on, of which it has no rec"):
        probe_of(network, tiny_data, **QUICK)
    # Its classes are others, as those of another data set may be.
    set_preprocessing(network, Preprocessing((0.1,) * 3, (0.2,) * 3, (5, 6), ("a", "b")))
    probe_of(network, tiny_data, epochs=1, **QUICK)
    pixels = fitted(tiny_data.test, Inputs((0.1,) * 3, (0.2,) * 3, (5, 6))).images
    torch.testing.assert_close(network.seen[-1], ((pixels / 255) - 0.1) / 0.2, atol=1e-5, rtol=1e-5)


def test_images_of_the_same_size_are_not_touched(tiny_data: pckd.Data) -> None:
    assert inputs_of(tiny_data) == TINY
    split = fitted(tiny_data.train, TINY)
    assert torch.equal(split.images, tiny_data.train.images)
    # Nothing is cropped or flipped, in the training split neither.
    features, labels = embed(Averages(), split, device=Device(CPU))
    assert torch.allclose(features, ((tiny_data.train.images / 255 - 0.5) / 0.25).mean((2, 3)), atol=1e-5)
    assert torch.equal(labels, tiny_data.train.labels)


def test_streamed_images_are_fitted_like_those_in_memory_and_not_augmented(tiny_data: pckd.Data) -> None:
    whole, inputs = tiny_data.train, Inputs((0.4,) * 3, (0.2,) * 3, (5, 6))
    streamed = DataSplit(Streamed(whole.images), whole.labels, whole.classes, whole.mean, whole.std, name="streamed")
    found = [embed(Averages(), fitted(split, inputs), device=Device(CPU)) for split in (streamed, whole)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# Trained networks


def test_any_number_of_classes_is_loaded(tmp_path: Path) -> None:
    trained = resnet8(classes=17, seed=4).eval()
    path = save_weights(trained, tmp_path / "weights.pth")
    before = torch.get_rng_state()
    loaded = load_network("resnet8", path, channels=3)
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(loaded(images).embedding, trained(images).embedding)
    assert not loaded.training


def test_of_a_student_with_the_head_of_a_loss_its_own_embedding(tiny_data: pckd.Data, tmp_path: Path) -> None:
    trained = {"teacher": resnet8(seed=1), "method": "simkd", "output": tmp_path}
    student = pckd.distill(student="resnet8", data=tiny_data, epochs=1, **trained, **QUICK).student
    assert isinstance(student, Predictor)
    loaded = load_network("resnet8", tmp_path / "model_final.pth", channels=3)
    own = student.network.state_dict()
    body = {key: value for key, value in loaded.state_dict().items() if not key.startswith("fc.")}
    assert preprocessing_of(loaded) == tiny_data.preprocessing
    assert len(body) == len(own) - 2
    assert all(torch.equal(value, own[key]) for key, value in body.items())
    options: dict[str, Any] = {"source": tiny_data, "epochs": 2, **QUICK}
    assert probe_of(loaded, tiny_data, **options).history == probe_of(student, tiny_data, **options).history


# What is refused


@pytest.mark.parametrize(
    ("student", "channels", "file", "message"),
    [
        ("resnet8", 3, "weights.pth", r"weights of another network than resnet8: \d+ keys differ: layer1.*"),
        ("resnet8", 3, "none.pth", "no such file"),
        ("resnet9", 3, "weights.pth", "did you mean 'resnet8'"),
        ("resnet20", 1, "weights.pth", r"conv1\.weight"),
    ],
)
def test_weights_of_another_network_are_refused(
    student: str, channels: int, file: str, message: str, tmp_path: Path
) -> None:
    save_weights(BACKBONES.get("resnet20")(17), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as error:
        load_network(student, tmp_path / file, channels=channels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Averages(), {"epochs": 0}, "epochs must be a whole number of at least 1"),
        (Averages(), {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (Averages(), {"lr": 0.0}, "lr must be above 0"),
        (Averages(), {"lr": 1e38}, "the loss of the linear layer is not finite; lower the learning rate"),
        (Averages(), {"image_size": 0}, "image_size must be pixels per side"),
        (Averages(), {"image_size": (8, 8, 8)}, "image_size must be pixels per side"),
        (Averages(), {"limit_train": 49}, "cannot take 49 images"),
        (Averages(), {"precision": "fp8"}, "precision must be one of"),
        (Averages(), {"source": "cifar11"}, "did you mean 'cifar10'"),
        (Averages(), {"source": Inputs((0.5,) * 3, (0.0,) * 3, (8, 8))}, "std must be above 0"),
        (Averages(factor=float("inf")), {}, "embedding of tiny is not finite"),
        (resnet8(channels=1), {"source": Inputs((0.5,), (0.5,))}, "tiny: its images have 3 channels, and the network"),
    ],
)
def test_bad_input_is_one_line(network: nn.Module, options: dict[str, Any], message: str, tiny_data: pckd.Data) -> None:
    with pytest.raises(UserError, match=message) as error:
        probe_of(network, tiny_data, **{"source": tiny_data, **QUICK, **options})
    assert "\n" not in str(error.value)

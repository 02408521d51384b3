"""How far what a network has learned carries to other data: a linear layer trained on its frozen embedding.

PCKD and CRD (Tian et al., arXiv 1910.10699, section 4.3) freeze a student trained on CIFAR-100 and train a linear
classifier of STL-10 and of TinyImageNet on its embedding, all images at 32x32. Neither says how the layer was trained,
and neither released code for it. What is done here is the schedule that HSAKD (Yang et al., IJCAI 2021) released for
this test: plain SGD with momentum 0.9 and no weight decay, learning rate 0.1, a tenth of it after 30, 60 and 90 % of
the run (its 100 epochs are 30 here), the network and its batch norms frozen (as in DKD's protocol). Embeddings are
computed once, of the images as they are: without HSAKD's random crops and flips, which would need the network again in
every epoch. They are not standardized.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from model_zoo import Preprocessing, load_weights, preprocessing_of, probe, set_preprocessing
from model_zoo.adapting import adapted_by_itself, as_backbone, classifier_name
from model_zoo.probe import borrowed, check_network
from pckd.arguments import check_arguments
from pckd.data import Loader
from pckd.data.arrays import resized
from pckd.data.check import first_item
from pckd.data.load import Data, load_data, read_split
from pckd.device import Device, ready_to_train
from pckd.engine.optimization import learning_rate
from pckd.engine.progress import own_random_state
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import Predictor
from pckd.tasks.classification import answers, check_layout
from registry import BACKBONES, DataSplit, PluginError, UserError, ask, build, parse

__all__ = ["MILESTONES", "MOMENTUM", "Inputs", "Transfer", "inputs_of", "load_network", "transfer", "untrained"]

MOMENTUM = 0.9
MILESTONES = (0.3, 0.6, 0.9)
"""Shares of the run after which the learning rate falls to a tenth."""

PIECE = 512
"""Images that are resized at a time."""
ROWS = 256
"""Images of a pass through the network."""
CLASSES = 10
"""Of the classifier that a network is built with; nothing here looks at it, and no weights are read into it."""


class Inputs(NamedTuple):
    """How a network is shown images: as it was in its own training."""

    mean: tuple[float, ...]
    """Per channel, of images scaled to [0, 1]."""
    std: tuple[float, ...]
    """Per channel, likewise."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None leaves images as they are."""

    @classmethod
    def of(cls, record: Preprocessing) -> Inputs:
        """As a network's own record says."""
        return cls(record.mean, record.std, record.image_size if any(record.image_size) else None)


@dataclass(frozen=True)
class Transfer:
    """What the linear layer reached. Accuracies are percentages on the test split."""

    last_top1: float
    """After the last epoch: the figure to report."""
    best_top1: float
    """Best over the epochs; choosing an epoch by it would be choosing on the test set."""
    history: list[dict[str, Any]]
    """One dictionary an epoch: ``epoch``, ``lr``, ``loss`` (mean over the training images), ``top1``."""
    classifier: nn.Linear
    """The trained layer."""


def transfer(
    network: nn.Module,
    data: str | Data,
    *,
    source: str | Data | Inputs | None = None,
    source_root: str | None = None,
    data_root: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    epochs: int = 30,
    batch_size: int = 256,
    lr: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str = "auto",
    num_workers: int = 0,
) -> Transfer:
    """Train a linear layer on the frozen embedding of ``network``, which is afterwards as it was given.

    Images of another size than the network was trained at are resized to it (bilinear, antialiased), and grey ones
    are repeated to 3 channels for a network that takes 3.

    Args:
        network: ``forward(x) -> Output``. Of a student that answers with the head of a loss, its own embedding.
        data: what to classify: a name of ``DATASETS`` or a :class:`Data`. data_root, limit_train, limit_test: see
            :func:`pckd.load_data`.
        source: what the network was trained on, for its normalization and size: a name (with the files in
            ``source_root``), a :class:`Data`, or the numbers themselves. By default what the network's own record of
            its preprocessing says (:func:`model_zoo.preprocessing_of`).
        image_size: pixels per side, or height and width, instead of the source's.
        epochs: of the linear layer. batch_size: rows a step. lr: at the start.
        seed: of the layer's initialization and of the order; the same seed on the same machine gives the same figures.
        device, precision, num_workers: see :func:`pckd.distill`; the layer itself is trained in float32.

    Raises:
        UserError: any bad input, in one line.
    """
    check_arguments(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, num_workers=num_workers)
    check_arguments(limit_train=limit_train, limit_test=limit_test)
    place = Device.resolve(device, precision)
    record = preprocessing_of(network)
    if source is not None:
        inputs = inputs_of(source, source_root)
    elif record is not None and record.mean:
        inputs = Inputs.of(record)
    else:
        raise UserError("source is missing: what the network was trained on, of which it has no record itself")
    if image_size is not None:
        inputs = inputs._replace(size=_sides(image_size))
    loaded = load_data(data, root=data_root, limit_train=limit_train, limit_test=limit_test)
    train, test = (fitted(split, inputs) for split in (loaded.train, loaded.test))
    network = network.network if isinstance(network, Predictor) else network
    check_network(network, "the network")
    with ready_to_train(place), own_random_state(place.target), borrowed(network):
        size = inputs.size or loaded.image_shape[1:]
        network = as_backbone(network, (len(inputs.mean), *size), "the network")
        frozen = FrozenTeacher(network)
        probe(network, len(inputs.mean), size, name="the network")
        check_layout(network, (len(inputs.mean), *size), "the network")
        place.place(frozen)
        look = partial(embed, frozen, device=place, num_workers=num_workers)
        return fit_linear(
            look(train), look(test), classes=train.num_classes, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed
        )


def inputs_of(
    source: str | Data | Inputs, root: str | None = None, on_bad_image: Literal["stop", "skip"] = "stop"
) -> Inputs:
    """The statistics and the image size of a data set that networks were trained on; its training split is read.

    Args:
        source, root, on_bad_image: the data set, where its files are, and what is done about those that cannot be read,
            as in the networks' training.

    Raises:
        UserError: unknown name, or missing or broken data.
    """
    if isinstance(source, Inputs):
        return source
    split = source.train if isinstance(source, Data) else read_split(source, root, True, on_bad_image)
    _, height, width = first_item(split).shape
    return Inputs(tuple(split.mean), tuple(split.std), (int(height), int(width)))


@own_random_state(torch.device("cpu"))
def load_network(student: str, weights: str | os.PathLike[str], *, channels: int) -> nn.Module:
    """A trained network, whatever the number of its classes, in eval mode; its classifier may be any.

    Of a student that was saved with the head of a loss which answers for it (simkd), the student itself.

    Args:
        student: a name of ``BACKBONES``. weights: file or address. channels: of its images.

    Raises:
        UserError: unknown name, no such file, or weights of another network.
    """
    network = untrained(student, channels=channels)
    # A Predictor without its head, which cannot be rebuilt without the loss that it is a part of.
    headless = nn.Module()
    headless.network = network
    problem: UserError | None = None
    for holder, prefix in ((network, ""), (headless, "network.")):
        try:
            _, missing, unexpected = load_weights(holder, weights, strict=False)
        except UserError as error:
            problem = problem or error
            continue
        left = {f"{prefix}{classifier_name(network)}.{part}" for part in ("weight", "bias")}
        wrong = [key for key in missing if key not in left]
        wrong += [key for key in unexpected if not (prefix and key.startswith("head."))]
        if wrong:
            shown = f"{', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}"
            raise UserError(f"{weights}: weights of another network than {student}: {len(wrong)} keys differ: {shown}")
        set_preprocessing(network, preprocessing_of(holder))
        return network
    assert problem is not None
    raise problem


def untrained(student: str, *, channels: int) -> nn.Module:
    """A network by name, as it is before its training (from the global generator), in eval mode."""
    task = BACKBONES.facts(parse(student)[0]).get("task")
    if task is not None:
        raise UserError(f"{student} is a network for {task}, which has no embedding of whole images; give a classifier")
    built = ask(f"backbone {student!r}", build, BACKBONES, student, CLASSES, in_channels=channels)
    if not isinstance(built, nn.Module):
        raise PluginError(f"backbone {student!r} returned {type(built).__name__}: it must return an nn.Module")
    return adapted_by_itself(built).eval()


def fitted(split: DataSplit, inputs: Inputs) -> DataSplit:
    """The split as the network takes it: its size, its number of channels and its normalization; not augmented."""
    channels, wanted = int(first_item(split).shape[0]), len(inputs.mean)
    if channels != wanted and not (channels == 1 and wanted == 3):
        raise UserError(
            f"{split.name or 'the data set'}: its images have {channels} channels, and the network takes {wanted}; "
            "use other data, or a network that was trained on such images"
        )
    images = split.images
    if isinstance(images, Tensor):
        images = _fit(images, wanted, inputs.size)
    else:
        plain = images.evaluation() if hasattr(images, "evaluation") else images
        images = _Fitted(plain, wanted, inputs.size)
    return dataclasses.replace(split, images=images, mean=inputs.mean, std=inputs.std, padding=0)


class _Fitted(Dataset):
    """Items of a streamed data set, fitted one by one."""

    def __init__(self, images: Any, channels: int, size: tuple[int, int] | None) -> None:
        self.images, self.channels, self.size = images, channels, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return _fit(self.images[position].unsqueeze(0), self.channels, self.size)[0]


def _fit(images: Tensor, channels: int, size: tuple[int, int] | None) -> Tensor:
    """[M, C, H, W] to [M, channels, *size], in the same type."""
    if size is not None and tuple(images.shape[2:]) != size:
        images = torch.cat([resized(piece, size) for piece in images.split(PIECE)])
    return images.expand(-1, channels, -1, -1)


def embed(network: nn.Module, split: DataSplit, *, device: Device, num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings [M, D], float32, and labels [M], on the device, in the split's order."""
    loader = Loader(split, ROWS, train=False, device=device.target, num_workers=num_workers)
    embeddings, labels = [], []
    for output, batch in answers(network, loader, device):
        embeddings.append(output.embedding.float())
        labels.append(batch.labels)
    features = torch.cat(embeddings)
    if not bool(features.isfinite().all()):
        raise UserError(f"the network's embedding of {split.name or 'the data set'} is not finite; give other weights")
    return features, torch.cat(labels)


def fit_linear(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> Transfer:
    """Train nn.Linear on rows [M, D] with labels [M]; every epoch shows each row once. Seeds the global generator."""
    (features, labels), (test_features, test_labels) = train, test
    torch.manual_seed(seed)
    # Made and ordered on the CPU, so that neither depends on the device.
    linear = nn.Linear(features.shape[1], classes).to(features.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(linear.parameters(), lr=lr, momentum=MOMENTUM)
    history: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        rate = learning_rate((epoch - 1) / epochs, lr, MILESTONES)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = features.new_zeros(())
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(linear(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        mean = float(total) / len(labels)
        if not math.isfinite(mean):
            raise UserError(
                f"epoch {epoch}: the loss of the linear layer is not finite; lower the learning rate {lr:g}"
            )
        with torch.no_grad():
            right = int((linear(test_features).argmax(1) == test_labels).sum())
        history.append({"epoch": epoch, "lr": rate, "loss": mean, "top1": 100 * right / len(test_labels)})
    return Transfer(history[-1]["top1"], max(row["top1"] for row in history), history, linear)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise UserError(f"image_size must be pixels per side, or height and width, each at least 1, not {size!r}")
    return sides[0], sides[1]

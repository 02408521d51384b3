"""Does a network of detection or segmentation keep its contract?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo.detection import Detector, Regions
from model_zoo.segmentation import Segmenter
from pckd.testing.cases import near, same, tensors_of
from pckd.testing.contract import Contract
from pckd.testing.networks import CLASSES, TOLERANCE, hold_state
from registry import BACKBONES, Output

SEEDS = (1, 2, 3, 4)
"""Of what is drawn of each image: there are four."""
Size = int | tuple[int, int]


def is_dense(network: object) -> bool:
    """Whether a network answers about parts of images."""
    return isinstance(network, (Detector, Segmenter))


def check_dense(backbone: str | Callable[..., nn.Module], *, image_sizes: Sequence[Size] = (64, (48, 96))) -> None:
    """Hold a detector or a segmenter to its contract: :class:`model_zoo.detection.Detector`, ``Segmenter`` beside it.

    Clauses: builds, study, answer, rows, num_classes, classifier, losses, drawn by the seeds, trained parameters,
    deterministic in eval mode, eval changes nothing, results, input untouched, parameters, registered state, state.

    Args:
        backbone: a registered name, with options or without; the factory ``(num_classes, **options) -> nn.Module``; or
            a network, which is copied, and of which ``num_classes`` and ``state`` are not asked.
        image_sizes: pixels, or (height, width), each tried; the first of them most.
    """
    contract = Contract("backbone", BACKBONES, backbone)
    for size in image_sizes:
        height, width = (size, size) if isinstance(size, int) else size
        with contract.trial(f"images of 3 x {height} x {width}"):
            network = _built(contract)
            images = torch.rand(len(SEEDS), 3, height, width)
            kept = images.clone()
            answer = _studies(contract, network, images)
            _answers(contract, network, answer)
            _finds(contract, network.eval(), images)
            contract.holds("input untouched", images.equal(kept), "wrote into the images", "no change")
            if size == image_sizes[0]:
                hold_state(contract, network, answer)


def _built(contract: Contract) -> Any:
    with contract.clause("builds") as expect:
        plugin = contract.plugin
        network = copy.deepcopy(plugin) if isinstance(plugin, nn.Module) else contract.make(CLASSES)
        kinds = "a model_zoo.detection.Detector or a model_zoo.segmentation.Segmenter"
        expect(is_dense(network), f"it is {type(network).__name__}", kinds)
        return network


def _studies(contract: Contract, network: Any, images: Tensor) -> Callable[[Any], Output]:
    """A step of training; what a network says of the same parts."""
    with contract.clause("study"):
        output, losses, regions = _studied(network.train(), images)
        answer = partial(_answered, images=images, regions=regions)
    rows, columns = len(output.logits), network.classifier.out_features
    with contract.clause("rows") as expect:
        answered = len(answer(network).logits)
        expect(answered == rows == len(output.embedding), f"it studied {rows} and answered about {answered}", "as many")
    if not isinstance(contract.plugin, nn.Module):
        seen = output.logits.shape[1]
        contract.holds("num_classes", seen == CLASSES + 1, f"{seen} logits", f"{CLASSES + 1}, with the background's")
    with contract.clause("classifier") as expect:
        agrees = columns == output.logits.shape[1] and near(
            network.classifier(output.embedding), output.logits, TOLERANCE
        )
        expect(agrees, "the logits are not classifier(embedding)", "the classifier to be the last layer")
    with contract.clause("losses") as expect:
        wrong = [name for name, x in losses.items() if x.dim() or not x.isfinite()]
        expect(losses and not wrong, f"of its own losses {', '.join(wrong) or 'none'} is no number", "finite scalars")
    with contract.clause("drawn by the seeds") as expect:
        again = _studied(network, images)[2]
        expect(_same_regions(regions, again), "the same seeds gave other regions", "the same")
    with contract.clause("trained parameters") as expect:
        shown = [tensor for tensor in (output.logits, output.embedding) if tensor.requires_grad]
        torch.stack([*(x.square().mean() for x in shown), *losses.values()]).sum().backward()
        unused = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
        expect(not unused, f"{', '.join(unused)} got no gradient", "some for every parameter")
    return answer


@torch.no_grad()
def _answers(contract: Contract, network: Any, answer: Callable[[Any], Output]) -> None:
    with contract.clause("answer"):
        network.eval()
        state = {key: value.clone() for key, value in network.state_dict().items()}
        output = answer(network)
    with contract.clause("deterministic in eval mode") as expect:
        again = same(tensors_of(output), tensors_of(answer(network)))
        expect(again, "the same images gave another answer", "the same")
    with contract.clause("eval changes nothing") as expect:
        changed = [key for key, value in network.state_dict().items() if not value.equal(state[key])]
        expect(not changed, f"answering changed {', '.join(changed)}", "no change")


@torch.no_grad()
def _finds(contract: Contract, network: Any, images: Tensor) -> None:
    """What it is measured by."""
    with contract.clause("results") as expect:
        if isinstance(network, Segmenter):
            shapes = [tuple(m.shape[:2]) for m in network(images).maps]
            wanted = [
                (len(images), width) for width in (network.classifier.in_features, network.classifier.out_features)
            ]
            expect(shapes == wanted, f"its maps are {shapes}", f"features and logits, {wanted}")
            return
        found = network.detect(images)
        expect(len(found) == len(images), f"{len(found)} results for {len(images)} images", "one an image")
        for one in found:
            count, labels = len(one["scores"]), one["labels"]
            expect(one["boxes"].shape == (count, 4), f"boxes of shape {tuple(one['boxes'].shape)}", f"{(count, 4)}")
            inside = ((labels >= 1) & (labels < network.classifier.out_features)).all()
            expect(inside, f"labels {labels.tolist()}", "1 to the number of classes")


def _studied(network: Any, images: Tensor) -> tuple[Output, Mapping[str, Tensor], Regions | None]:
    """Rows, losses, and of a detector the regions that the rows are."""
    if isinstance(network, Segmenter):
        whole, answers = network.study(images)
        return _pixels(whole), {name: x.square().mean() for name, x in answers.items()}, None
    height, width = images.shape[2:]
    extent = torch.tensor([width, height, width, height])
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9]]) * extent
    labels = torch.tensor([1, network.classifier.out_features - 1])
    regions, output = network.study(images, [{"boxes": boxes, "labels": labels} for _ in SEEDS], SEEDS)
    return output, dict(output.losses), regions


def _answered(network: Any, images: Tensor, regions: Regions | None) -> Output:
    return _pixels(network(images)) if regions is None else network.answer(images, regions)


def _pixels(whole: Output) -> Output:
    """All pixels of a segmenter's maps, as rows."""
    features, logits = (m.movedim(1, -1).flatten(0, 2) for m in whole.maps)
    return Output(logits, features)


def _same_regions(one: Regions | None, other: Regions | None) -> bool:
    if one is None or other is None:
        return True
    names = ("labels", "match", "image")
    return same(one.where, other.where) and same(*([getattr(x, name) for name in names] for x in (one, other)))

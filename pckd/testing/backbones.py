"""Does a network keep the contract of ``registry.BACKBONES``?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model_zoo import probe
from pckd.testing.cases import near, same, tensors_of
from pckd.testing.contract import Contract
from pckd.testing.dense import Size, check_dense, is_dense
from pckd.testing.networks import CLASSES, TOLERANCE, hold_state
from registry import BACKBONES, Output


def check_backbone(
    backbone: str | Callable[..., nn.Module],
    *,
    in_channels: Sequence[int] = (3, 1),
    image_sizes: Sequence[Size] = (32, (48, 64)),
) -> None:
    """Hold a network to its contract.

    Clauses: builds, runs, output, finite, num_classes, classifier, deterministic in eval mode, eval changes nothing,
    input untouched, one image, train and eval mode, trained parameters, parameters, registered state, state.

    A network of detection or segmentation is held to the clauses of :func:`pckd.testing.check_dense` instead.

    Args:
        backbone: a registered name, with options or without; the factory ``(num_classes, **options) -> nn.Module``; or
            a network, which is copied, and of which ``num_classes`` and ``state`` are not asked.
        in_channels: channels of the images, each tried; one number for a network.
        image_sizes: pixels, or (height, width), each tried; the first of them most.
    """
    contract = Contract("backbone", BACKBONES, backbone)
    if _is_dense(contract):
        check_dense(backbone)
        return
    is_network = isinstance(backbone, nn.Module)
    for channels in in_channels[: 1 if is_network else None]:
        for size in image_sizes:
            height, width = (size, size) if isinstance(size, int) else size
            with contract.trial(f"images of {channels} x {height} x {width}"):
                network = _built(contract, channels)
                images = torch.randn(4, channels, height, width)
                _answers(contract, network, images)
                if channels == in_channels[0] and size == image_sizes[0]:
                    _trains(contract, network, images)
                    hold_state(contract, network, partial(_called, images=images), in_channels=channels)


def _called(network: Any, images: Tensor) -> Any:
    return network(images)


def _is_dense(contract: Contract) -> bool:
    if isinstance(contract.plugin, nn.Module):
        return is_dense(contract.plugin)
    try:
        with contract.trial():
            return is_dense(contract.make(CLASSES))
    except Exception:
        return False  # which the clause "builds" says


def _built(contract: Contract, channels: int) -> Any:
    with contract.clause("builds") as expect:
        if isinstance(contract.plugin, nn.Module):
            return copy.deepcopy(contract.plugin)
        network = contract.make(CLASSES, in_channels=channels)
        expect(isinstance(network, nn.Module), f"the factory made {type(network).__name__}", "an nn.Module")
        return network


@torch.no_grad()
def _answers(contract: Contract, network: Any, images: Tensor) -> None:
    kept = images.clone()
    with contract.clause("runs"):
        network.eval()
        state = {key: value.clone() for key, value in network.state_dict().items()}
        output = network(images)
    with contract.clause("output"):
        shapes = probe(network, images.shape[1], (images.shape[2], images.shape[3]))
    finite = all(tensor.isfinite().all() for tensor in tensors_of(output))
    contract.holds("finite", finite, "some values are not", "finite values")
    if not isinstance(contract.plugin, nn.Module):
        right = shapes.num_classes == CLASSES
        contract.holds("num_classes", right, f"{shapes.num_classes} logits", f"{CLASSES}, as asked for")
    with contract.clause("classifier") as expect:
        agrees = near(network.classifier(output.embedding), output.logits, TOLERANCE)
        expect(agrees, "the logits are not classifier(embedding)", "the classifier to be the last layer")
    with contract.clause("deterministic in eval mode") as expect:
        again = same(tensors_of(output), tensors_of(network(images)))
        expect(again, "the same images gave another output", "the same")
    with contract.clause("eval changes nothing") as expect:
        changed = [key for key, value in network.state_dict().items() if not value.equal(state[key])]
        expect(not changed, f"answering changed {', '.join(changed)}", "no change")
    contract.holds("input untouched", images.equal(kept), "wrote into the images", "no change")
    with contract.clause("one image") as expect:
        alone = network(images[:1]).logits
        expect(near(alone, output.logits[:1], TOLERANCE), "an image alone has other logits", "those it has in a batch")


def _trains(contract: Contract, network: Any, images: Tensor) -> None:
    with contract.clause("train and eval mode") as expect:
        network.train()
        expect(network.training, "train() left it in eval mode", "train mode")
        output = network(images)
        expect(isinstance(output, Output), f"in train mode it returned {type(output).__name__}", "registry.Output")
        network.eval()
        left = [name or "itself" for name, module in network.named_modules() if module.training]
        expect(not left, f"eval() left {', '.join(left)} in train mode", "eval mode")
    with contract.clause("trained parameters") as expect:
        # Everything returned can be in a loss: an in-place change of a returned tensor would be an error here.
        torch.stack([tensor.square().mean() for tensor in tensors_of(output)]).sum().backward()
        unused = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
        expect(not unused, f"{', '.join(unused)} got no gradient", "some for every parameter")

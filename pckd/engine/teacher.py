"""The frozen teacher: always in eval mode, never a gradient, prepared once for nothing but answering."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pckd.engine.lean import Head, WithoutMaps, without_maps
from pckd.engine.precision import autocast
from registry import Output


class FrozenTeacher(nn.Module):
    """Wraps a network so that it only answers.

    Its parameters stop requiring gradients, it stays in eval mode whatever ``train()`` is called on it or on a module
    that holds it. The engine keeps it outside everything it saves.

    Args:
        network: ``forward(x) -> Output`` with a ``classifier``. It is frozen in place, not copied.
        renormalization: scale and shift per channel, where the teacher was trained on images that were normalized in
            another way than those it will be given (:meth:`model_zoo.Preprocessing.renormalization`).
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self, network: nn.Module, renormalization: tuple[Sequence[float], Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.answering: nn.Module = self.network
        for name, values in zip(("scale", "shift"), renormalization or (None, None), strict=True):
            per_channel = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)
        self.maps = True
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode; the argument is ignored."""
        super().train(False)
        return self

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.network.classifier
        assert isinstance(classifier, nn.Linear)
        return classifier

    @property
    def prepared(self) -> bool:
        """Whether :meth:`prepare` was called."""
        return self.answering is not self.network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Output:
        output: Output = self.answering(self.renormalized(x))
        return output if self.maps else without_maps(output)

    def renormalized(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] as the teacher was shown them in its own training."""
        return x if self.scale is None or self.shift is None else x * self.scale + self.shift

    def prepare(self, images: Tensor, precision: str, *, maps: bool = True, compile: bool = False) -> bool:
        """Answer from here on with a copy that is faster: batch norms folded, weights cast, compiled.

        The copy is used only if it gives the same answers on some of ``images``; the network itself is left as it is.

        Args:
            images: [N, C, H, W], as many as in a step, on the network's device. precision: ``"fp32"`` or ``"bf16"``.
            maps: whether feature maps are in the answers; without them they need not be kept until the step's end.
            compile: through torch.compile, with the weights as constants.

        Returns:
            whether batch norms were folded; a network that cannot be traced answers as it is.
        """
        folded = fold_batch_norms(self.network)
        same = folded is not None and same_answers(self.network, folded, self.renormalized(images[:4]))
        prepared = folded if folded is not None and same else copy.deepcopy(self.network)
        if precision == "bf16":
            # The cast that autocast would make in every step. Batch norms that are left keep their statistics exact.
            for module in prepared.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(torch.bfloat16)
        prepared.to(memory_format=torch.channels_last).eval()
        self.maps = maps
        if compile:
            compiled: Any = torch.compile(prepared if maps else Head(prepared))
            self.answering = compiled if maps else WithoutMaps(compiled, self.network)
            # Compiled at the first call. The weights of a network that never changes become constants, which on the
            # CPU are laid out as the kernels like them; the setting is looked up before torch.compile's own options.
            frozen = torch._inductor.config.patch(freezing=images.device.type == "cpu")
            with frozen, autocast(precision, images.device):
                self(images)
        else:
            self.answering = prepared
        return same


def fold_batch_norms(network: nn.Module) -> fx.GraphModule | None:
    """A copy of a network in eval mode with each batch norm that follows a convolution folded into it.

    Returns:
        None where the network cannot be traced.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network).eval())
    # Tracing runs the network's own code on symbols, which fails in as many ways as there are networks.
    except Exception:
        return None
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        source = node.args[0]
        if (
            source.op == "call_module"
            and isinstance(modules[source.target], nn.Conv2d)
            and len(source.users) == 1
            and calls(traced, source.target) == calls(traced, node.target) == 1
        ):
            parent, _, name = source.target.rpartition(".")
            fused = fuse_conv_bn_eval(modules[source.target], modules[node.target])
            setattr(traced.get_submodule(parent), name, fused)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)


def calls(traced: fx.GraphModule, target: str) -> int:
    """How many times a module is called: one that is shared must not be changed for one of its places."""
    return sum(node.op == "call_module" and node.target == target for node in traced.graph.nodes)


@torch.no_grad()
def same_answers(network: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether two networks return the same, up to the rounding of their arithmetic."""
    first, second = network(images), other(images)
    pairs = [(first.logits, second.logits), (first.embedding, second.embedding)]
    for ours, theirs in ((first.maps, second.maps), (first.preacts, second.preacts)):
        if len(ours) != len(theirs):
            return False
        pairs += zip(ours, theirs, strict=True)
    return all(a.shape == b.shape and bool((a - b).norm() <= 1e-4 * a.norm() + 1e-6) for a, b in pairs)

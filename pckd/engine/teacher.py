"""The frozen teacher: always in eval mode, never a gradient, prepared once for nothing but answering."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import record_function

from model_zoo.adapting import Tap
from model_zoo.probe import copied
from pckd.device import Device, channels_last
from pckd.engine.cache import TeacherCache
from pckd.engine.lean import compiled, without_maps
from pckd.ops import SEVERAL, mean_answer
from registry import Absent, Output

log = logging.getLogger("pckd")


class FrozenTeacher(nn.Module):
    """Wraps a network so that it only answers.

    Its parameters stop requiring gradients, it stays in eval mode whatever ``train()`` is called on it or on a module
    that holds it. A network of another type (half, double) answers in float32. The engine keeps it outside everything
    it saves.

    Args:
        network: ``forward(x) -> Output`` with a ``classifier``. It is frozen in place, not copied: use a network that
            is someone else's inside :func:`model_zoo.probe.borrowed`.
        renormalization: scale and shift per channel, where the teacher was trained on images that were normalized in
            another way than those it will be given (:meth:`model_zoo.Preprocessing.renormalization`).
        resizing: the size (height, width) of the images that it is shown, and by which interpolation they are brought
            to it, where that is not as they are given.
        asked: what answers for the network, where its outputs have more than its own (:class:`WithLayers`).
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        renormalization: tuple[Sequence[float], Sequence[float]] | None = None,
        resizing: tuple[tuple[int, int], str] | None = None,
        asked: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resizing = resizing
        self.network = network.requires_grad_(False)
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in network.parameters()):
            network.float()
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_inference():
                    # Its classifier's rows enter losses that have a gradient, which must not keep such tensors.
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        self.asked = self.network if asked is None else asked
        self.answering: nn.Module = self.asked
        for name, values in zip(("scale", "shift"), renormalization or (None, None), strict=True):
            per_channel = None if values is None else torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)
        self.prepared = False
        """Whether :meth:`prepare` was called."""
        self.maps = True
        self.cache: TeacherCache | None = None
        self.position: int | None = None
        """Among several teachers, counted from 1."""
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode; the argument is ignored."""
        super().train(False)
        return self

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.network.classifier
        assert isinstance(classifier, (nn.Linear, Absent))
        return classifier

    @torch.no_grad()
    def forward(self, x: Tensor) -> Output:
        x = self.shown(x)
        if self.answering is self.asked:
            # A network may ask for the memory layout that images usually have, as with Tensor.view.
            x = x.contiguous()
        output: Output = self.answering(x).detach()
        return output if self.maps else without_maps(output)

    def answer(self, batch: Any, images: Tensor) -> Output:
        """The answer to a batch: remembered, where it comes with one, else given now, and remembered by the cache."""
        recalled: Output | None = getattr(batch, "recalled", None)
        if recalled is not None:
            return recalled.of_teacher(self.position)
        with record_function("pckd.teacher"):
            output: Output = self(images)
        return output if self.cache is None else self.cache.keep(batch, output)

    @property
    def members(self) -> tuple[FrozenTeacher, ...]:
        """Itself alone, as of :class:`SeveralTeachers` each one."""
        return (self,)

    @property
    def recall(self) -> Callable[..., Output | None] | None:
        """How a loader asks for remembered answers; None where there is no cache."""
        return None if self.cache is None else self.cache.recall

    @property
    def renormalizes(self) -> bool:
        """Whether images were normalized in another way in the teacher's own training."""
        return self.scale is not None

    @property
    def resizing_facts(self) -> dict[str, Any]:
        """Size of the images that it is shown, and how they are resized, as JSON; nothing where they are not."""
        return {} if self.resizing is None else {"image_size": list(self.resizing[0]), "resized": self.resizing[1]}

    def shown(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] as the teacher was shown them in its own training: of its size, and normalized for it."""
        return self.renormalized(x if self.resizing is None else resized(x, *self.resizing))

    def renormalized(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] normalized as in the teacher's own training."""
        return x if self.scale is None or self.shift is None else x * self.scale + self.shift

    def prepare(self, images: Tensor, device: Device, *, maps: bool = True, compile: bool | str = False) -> bool:
        """Answer from here on with a copy that is faster: batch norms folded, weights cast, compiled.

        The copy is used only if it gives the same answers on some of ``images``; the network itself is left as it is.
        Where no copy can be made, or none runs, the network answers as it is.

        Args:
            images: [N, C, H, W], as many as in a step, on the network's device. device: where and in which precision.
            maps: whether feature maps are in the answers; without them they need not be kept until the step's end.
            compile: through torch.compile, with the weights as constants; or how (:func:`compiled`).

        Returns:
            whether batch norms were folded.
        """
        self.prepared, self.maps = True, maps
        if has_hooks(self.network):
            log.debug("the teacher answers as it is: it has hooks, which a copy would not call as it does")
            return False
        for fast, make in itertools.product(dict.fromkeys((compile, False)), (fold_batch_norms, copied)):
            # What is done here for speed fails in as many ways as there are networks.
            try:
                candidate = make(self.asked)
                if same_answers(self.asked, candidate, self.shown(images[:4]).contiguous()):
                    self._answer_with(candidate, images, device, fast)
                    return make is fold_batch_norms
                reason = "it answers otherwise"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            self.answering = self.asked
            how = f"{make.__name__}{', compiled' if fast else ''}"
            log.debug("the teacher cannot answer with a faster copy (%s): %s", how, reason)
        return False

    def _answer_with(self, prepared: nn.Module, images: Tensor, device: Device, compile: bool | str) -> None:
        """Lay a copy of the network out for speed, and let it answer; raises what its first answer raises."""
        if device.precision == "bf16":
            # The cast that autocast would make in every step. Batch norms that are left keep their statistics exact.
            for module in prepared.modules():
                # Not what derives from them: it may compute with its weights first.
                if type(module) in (nn.Conv2d, nn.Linear):
                    module.to(torch.bfloat16)
        channels_last(prepared.eval())
        self.answering = prepared
        if compile:
            self.answering = compiled(prepared, self.network, compile, maps=self.maps)
            # Compiled at the first call. The weights of a network that never changes become constants, which on the
            # CPU are laid out as the kernels like them; the setting is looked up before torch.compile's own options.
            with torch._inductor.config.patch(freezing=images.device.type == "cpu"), device.autocast():
                self(images)
        else:
            with device.autocast():
                self(images[:4])


class SeveralTeachers(nn.Module):
    """Several frozen teachers, and the mean of their probabilities as one answer (:func:`pckd.ops.mean_answer`).

    A step asks each of its ``members``, which has its own normalization, preparation and cache.

    Args:
        members: in the order in which terms count them.
    """

    def __init__(self, members: Sequence[FrozenTeacher]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(members)
        for position, member in enumerate(members, 1):
            member.position = position

    @property
    def classifier(self) -> nn.Linear:
        """Absent: each member has one."""
        return SEVERAL

    def forward(self, x: Tensor) -> Output:
        return mean_answer([member(x) for member in self.members])

    @property
    def renormalizes(self) -> bool:
        """Whether images were normalized in another way in the training of any of them."""
        return any(member.renormalizes for member in self.members)

    @property
    def recall(self) -> Callable[..., Output | None] | None:
        """As of :class:`FrozenTeacher`; what all of them remember, as the members of an output."""
        return None if any(member.cache is None for member in self.members) else self._recalled

    def _recalled(self, index: Tensor, drawn: Tensor, views: int) -> Output | None:
        answers = [member.cache.recall(index, drawn, views) for member in self.members]
        if any(answer is None for answer in answers):
            return None
        return Output(SEVERAL, SEVERAL, SEVERAL, SEVERAL, members=tuple(answers))


def resized(x: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Images [N, C, H, W] at another size, antialiased where they shrink; those of this size as they are.

    Args:
        size: (height, width). interpolation: one of :data:`model_zoo.preprocessing.INTERPOLATIONS`.
    """
    if tuple(x.shape[2:]) == size:
        return x
    if interpolation == "nearest":
        # The pixel that lies nearest, as image libraries take it; torch's "nearest" is shifted.
        return F.interpolate(x, size, mode="nearest-exact")
    return F.interpolate(x, size, mode=interpolation, align_corners=False, antialias=True)


def has_hooks(network: nn.Module) -> bool:
    """Whether anything else is called when a module of the network is."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def fold_batch_norms(network: nn.Module) -> fx.GraphModule:
    """A copy of a network in eval mode with each batch norm that follows a convolution folded into it.

    Raises whatever tracing the network raises, which runs its code on symbols.
    """
    network = copied(network).eval()
    traced = fx.GraphModule(network, _Tracer().trace(network))
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        # Not what derives from the two, which may compute otherwise; a batch norm may have no statistics to fold.
        if node.op != "call_module" or type(norm := modules[node.target]) is not nn.BatchNorm2d:
            continue
        source = node.args[0]
        if (
            norm.running_mean is not None
            and source.op == "call_module"
            and type(modules[source.target]) is nn.Conv2d
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


class _Tracer(fx.Tracer):
    """Lets an adapted network read the modules that are not traced into, as it does when they are called."""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        returned = super().call_module(m, forward, args, kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            for hook in m._forward_hooks.values():
                if isinstance(hook, Tap):
                    hook(m, args, kwargs, returned)
        return returned


def calls(traced: fx.GraphModule, target: str) -> int:
    """How many times a module is called: one that is shared must not be changed for one of its places."""
    return sum(node.op == "call_module" and node.target == target for node in traced.graph.nodes)


@torch.no_grad()
def same_answers(network: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Whether two networks return the same, up to the rounding of their arithmetic."""
    first, second = network(images), other(images)
    pairs = [(first.logits, second.logits), (first.embedding, second.embedding)]
    pairs = [(a, b) for a, b in pairs if not (isinstance(a, Absent) and isinstance(b, Absent))]
    for ours, theirs in ((first.maps, second.maps), (first.preacts, second.preacts)):
        if len(ours) != len(theirs):
            return False
        pairs += zip(ours, theirs, strict=True)
    pairs += [(layer, second.layers[path]) for path, layer in dict(first.layers).items()]
    return all(a.shape == b.shape and bool((a - b).norm() <= 1e-4 * a.norm() + 1e-6) for a, b in pairs)

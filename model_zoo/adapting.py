"""Any module that classifies images as a backbone: hooks read its embedding and its maps."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from model_zoo.preprocessing import INTERPOLATIONS, Preprocessing, preprocessing_of, set_preprocessing
from model_zoo.probe import check_network, evaluating
from registry import Output, UserError
from registry.contracts import Absent
from registry.errors import closest

__all__ = [
    "Adapted",
    "Picked",
    "Tap",
    "WithLayers",
    "adapt",
    "adapted_by_itself",
    "as_backbone",
    "classifier_name",
    "size_taken",
]

SIZES = (32, 64, 224)
"""Pixels of the images that a module is tried on where nothing says which it takes."""
READABLE = 128
"""Pixels of the images on which the resolutions of maps are read off, where a module takes them."""
OUTERMOST = 3
"""A module with maps of so many resolutions inside is not one stage but several."""

NO_EMBEDDING = (
    "the logits of {} are the output of no single nn.Linear, so that it has neither an embedding nor "
    "a classifier's rows; use a method that looks at logits or maps, such as kd, dkd, dist or at, or another network"
)

NO_LOGITS = (
    "{} has no classifier, so that it has neither logits nor a classifier's rows; use a method that looks at "
    "embeddings or maps, such as rkd or at, and for one that looks at centers centers='ema' or centers='batch_mean'"
)


class Tap:
    """A forward hook that keeps what a module was called with and what it returned."""

    def __init__(self) -> None:
        self.given: Any = None
        self.returned: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        self.given = args[0] if args else next(iter(kwargs.values()), None)
        self.returned = returned


class Adapted(nn.Module):
    """A module as a backbone. Made by :func:`adapt`.

    Parameters have the module's own names in the state dict. Hooks are there only while it answers, so that the module
    is without any afterwards, and may be called by itself at any time.

    Attributes:
        network: the module.
        classifier_path: of the nn.Linear whose output the logits are; "" where there is none.
        gives_logits: whether what the module returns are logits; otherwise it is the embedding.
        map_paths: of the modules whose outputs are the maps.
    """

    def __init__(
        self,
        network: nn.Module,
        classifier_path: str,
        map_paths: Sequence[str],
        key: str | int | None,
        name: str,
        gives_logits: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.classifier_path, self.map_paths, self._key = classifier_path, tuple(map_paths), key
        self.__name__, self.gives_logits = name, gives_logits
        self._taps = {path: Tap() for path in dict.fromkeys((*filter(None, [classifier_path]), *map_paths))}
        self.register_state_dict_post_hook(_own_names)
        self.register_load_state_dict_pre_hook(_names_below)

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer; :class:`Absent` where the logits are the output of no single one."""
        if not self.classifier_path:
            why = NO_EMBEDDING if self.gives_logits else NO_LOGITS
            return Absent(why.format(self.__name__))  # type: ignore[return-value]
        classifier = self.network.get_submodule(self.classifier_path)
        assert isinstance(classifier, nn.Linear)
        return classifier

    def forward(self, x: Tensor) -> Output:
        with _hooked(self.network, self._taps):
            answer = _logits(self.network(x), self._key)
            maps = tuple(self._taps[path].returned for path in self.map_paths)
            absent: Any = self.classifier
            if not self.classifier_path:
                return Output(answer, absent, maps) if self.gives_logits else Output(absent, answer, maps)
            return Output(answer, self._taps[self.classifier_path].given, maps)

    def without_maps(self) -> Adapted:
        """The same module, read without its maps."""
        return Adapted(self.network, self.classifier_path, (), self._key, self.__name__, self.gives_logits)

    def describe(self) -> str:
        """What was taken for the classifier and the maps, in one line."""
        classifier = "no single nn.Linear gives its logits, so that it has no embedding and no centers"
        if not self.gives_logits:
            classifier = "no classifier, what it returns is the embedding"
        if self.classifier_path:
            layer = self.classifier
            classifier = f"classifier {self.classifier_path} ({layer.in_features} -> {layer.out_features})"
        return f"{self.__name__}: {classifier}; maps {', '.join(self.map_paths) or 'none'}"


_WRAPPERS = re.compile(r"^(network\.)+")
MOST_LEADING = 5
"""Tokens before those of the patches: a class token and four registers."""


@fx.wrap
def as_layer(returned: Any, images: Tensor, what: str, leading: int | None) -> Tensor:
    """What a module returned, as a map [N, C, H, W] or a vector [N, D]: a copy, as the next step may work in place.

    Of several values the first tensor counts. Tokens [N, T, D] become a map without the leading ones, and so do maps
    whose channels come last. A function of its own, which traces call as it is: it looks at shapes.

    Args:
        images: [N, C, H, W], which the network was shown. what: the module, for messages. leading: tokens before those
            of the patches, where the network says it.

    Raises:
        UserError: it returned anything else.
    """
    several = returned.values() if isinstance(returned, Mapping) else returned
    several = several if isinstance(several, Iterable) and not isinstance(returned, Tensor) else [returned]
    x = next((value for value in several if isinstance(value, Tensor)), None)
    size = images.shape[2], images.shape[3]
    if x is not None and x.is_floating_point() and x.dim() and len(x) == len(images):
        if x.dim() == 2 or (x.dim() == 4 and _lies_on((x.shape[2], x.shape[3]), size)):
            return x.clone()
        if x.dim() == 4 and _lies_on((x.shape[1], x.shape[2]), size):
            return x.clone().movedim(3, 1)
        for first in (*([] if leading is None else [leading]), *range(MOST_LEADING + 1)) if x.dim() == 3 else ():
            count = x.shape[1] - first
            height = math.isqrt(max(0, count) * size[0] // size[1])
            if height and count % height == 0 and height * size[1] == count // height * size[0]:
                return x[:, first:].clone().mT.unflatten(2, (height, count // height))
    raise UserError(
        f"{what} returns {'nothing in floating point' if x is None else f'a tensor {list(x.shape)}'} for "
        f"{len(images)} images of {size[0]}x{size[1]} pixels, which is neither a map [N, C, H, W], nor a vector "
        "[N, D], nor tokens [N, T, D] of patches; name another module"
    )


class _LayerTap(Tap):
    """Keeps what a module returned as :func:`as_layer` gives it; ``given`` are the images."""

    def __init__(self, what: str, leading: int | None) -> None:
        super().__init__()
        self.what, self.leading = what, leading

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        self.returned = as_layer(returned, self.given, self.what, self.leading)


class WithLayers(nn.Module):
    """A backbone whose outputs also have what some of its modules returned (:attr:`registry.Output.layers`).

    Of a module that is called several times, the last call counts. As with :class:`Adapted`, hooks are there only while
    it answers, and the state dict has the network's own keys.

    Args:
        network: a backbone. paths: of its modules, as in ``named_modules()`` of what was given; of a network of
            torchvision or timm as that library names them. label: what messages call it.

    Raises:
        UserError: it has no such module.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], label: str) -> None:
        super().__init__()
        # A compiled network would not see the hooks.
        self.network = _unwrapped(network)
        set_preprocessing(self, preprocessing_of(network))
        known = dict(self.network.named_modules(remove_duplicate=False))
        label = f"{label} ({getattr(network, '__name__', '') or type(self.network).__name__})"
        leading = next((m.num_prefix_tokens for m in known.values() if hasattr(m, "num_prefix_tokens")), None)
        self._taps: dict[str, _LayerTap] = {}
        self._paths: dict[str, str] = {}
        for path in dict.fromkeys(paths):
            # Below any wrappers, each of which holds a network.
            found = next((full for depth in range(4) if (full := "network." * depth + path) in known and path), None)
            if found is None:
                names = [inner for name in known if (inner := _WRAPPERS.sub("", f"{name}.")[:-1])]
                top = ", ".join(name for name in names if "." not in name)
                hint = f"{closest(path, names, 3)} It has {top}, and their parts"
                raise UserError(f"{label} has no module {path!r}{hint}")
            found = _last_inside(known, found)
            self._paths[path], self._taps[found] = found, _LayerTap(f"{label}: its module {path!r}", leading)
        self.register_state_dict_post_hook(_own_names)
        self.register_load_state_dict_pre_hook(_names_below)

    @property
    def classifier(self) -> nn.Linear:
        """The network's own."""
        return self.network.classifier  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Output:
        with _hooked(self.network, self._taps):
            for tap in self._taps.values():
                tap.given = x
            output: Output = self.network(x)
            layers = {path: self._taps[found].returned for path, found in self._paths.items()}
            silent = next((tap.what for tap in self._taps.values() if tap.returned is None), None)
        if silent is not None:
            raise UserError(f"{silent} is not called when the network answers; name a module that is")
        return output._replace(layers=layers)


def _last_inside(modules: Mapping[str, nn.Module], path: str) -> str:
    """The last module of a plain sequence, which returns what the sequence does: some networks call it alone.

    In a traced network, a plain nn.Module is what is left of a sequence that it takes apart.
    """
    module, traced = modules[path], any(isinstance(other, fx.GraphModule) for other in modules.values())
    if not (type(module) is nn.Sequential or (traced and type(module) is nn.Module)) or not module._modules:
        return path
    *_, (name, last) = module._modules.items()
    shared = sum(other is last for other in modules.values()) > 1
    return path if shared else _last_inside(modules, f"{path}.{name}")


class Picked(nn.Module):
    """A teacher that answers about some of its classes alone, in a given order.

    Its state dict is the network's own: layers that a student inherits go by their names.

    Args:
        network: a backbone with logits, whose weights do not change any more.
        rows: K numbers of its logits. classes: what these are called.
    """

    rows: Tensor

    def __init__(self, network: nn.Module, rows: Sequence[int], classes: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.__name__ = getattr(network, "__name__", type(network).__name__)
        layer: Any = network.classifier
        device = next((p.device for p in network.parameters()), None)
        self.register_buffer("rows", torch.tensor(rows, device=device))
        if isinstance(layer, nn.Linear):
            # Made without a random number.
            picked = nn.Linear(layer.in_features, len(rows), layer.bias is not None, device="meta")
            picked.weight = nn.Parameter(layer.weight.detach()[self.rows], requires_grad=False)
            if layer.bias is not None:
                picked.bias = nn.Parameter(layer.bias.detach()[self.rows], requires_grad=False)
            layer = picked
        self.classifier = layer
        record = preprocessing_of(network) or Preprocessing()
        set_preprocessing(self, replace(record, classes=tuple(classes)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Output:
        output: Output = self.network(x)
        return output._replace(logits=output.logits[:, self.rows])


def _own_names(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    below = f"{prefix}network."
    for key in [key for key in state if key.startswith(below)]:
        state[prefix + key.removeprefix(below)] = state.pop(key)


def _names_below(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)


@contextlib.contextmanager
def _hooked(network: nn.Module, taps: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the modules at these paths tell their taps; afterwards the taps hold nothing."""
    handles = [network.get_submodule(path).register_forward_hook(tap, with_kwargs=True) for path, tap in taps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for tap in taps.values():
            tap.given = tap.returned = None


def _logits(answer: Any, key: str | int | None) -> Any:
    """The logits in what a module returns, which in train mode may be another type than in eval mode."""
    if isinstance(answer, (Tensor, fx.Proxy)):
        return answer
    if isinstance(answer, Mapping):
        return answer["logits" if key is None else key]
    if isinstance(key, int):
        return answer[key]
    return getattr(answer, key or "logits") if hasattr(answer, key or "logits") else answer[0]


def _places(answer: Any, rows: int) -> list[tuple[str | int | None, Tensor]]:
    """Where in an answer there are tensors [rows, K], those first that are called logits."""
    if isinstance(answer, Tensor):
        named: list[tuple[Any, Any]] = [(None, answer)]
    elif isinstance(answer, Mapping):
        named = list(answer.items())
    elif hasattr(answer, "_fields"):
        named = list(answer._asdict().items())
    elif isinstance(answer, (tuple, list)):
        named = list(enumerate(answer))
    else:
        named = list(vars(answer).items()) if hasattr(answer, "__dict__") else []
    found = [(key, value) for key, value in named if isinstance(value, Tensor) and value.dim() == 2]
    return sorted(((key, value) for key, value in found if len(value) == rows), key=lambda pair: pair[0] != "logits")


class _Call(NamedTuple):
    """The last call of a module."""

    given: Tensor | None
    returned: Any


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> tuple[Any, dict[str, _Call]]:
    """What a network answers in eval mode, and the last call of each of its modules, in the order in which they end."""
    calls: dict[str, _Call] = {}

    def keeper(path: str) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            calls.pop(path, None)
            given = args[0] if args else next(iter(kwargs.values()), None)
            calls[path] = _Call(given, returned.clone() if isinstance(module, nn.Linear) else returned)

        return keep

    handles = [m.register_forward_hook(keeper(path), with_kwargs=True) for path, m in network.named_modules() if path]
    try:
        with evaluating(network):
            return network(images), calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _decides(network: nn.Module, path: str, images: Tensor, key: str | int | None, logits: Tensor) -> bool:
    """Whether what is added to a layer's output is added to the logits: that it is the last one, and the only one."""
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)

    def add(module: nn.Module, args: Any, returned: Tensor) -> Tensor:
        return returned + noise

    handle = network.get_submodule(path).register_forward_hook(add)
    try:
        with evaluating(network):
            changed = _logits(network(images), key)
    finally:
        handle.remove()
    return torch.allclose(changed.float(), (logits + noise).float(), rtol=1e-3, atol=1e-3)


def _is_classifier(network: nn.Module, path: str, calls: Mapping[str, _Call], logits: Tensor) -> bool:
    if path not in calls or not isinstance(network.get_submodule(path), nn.Linear):
        return False
    given, returned = calls[path]
    flat = given is not None and given.dim() == 2
    return flat and returned.shape == logits.shape and torch.equal(returned.float(), logits.float())


def _on_larger_images(network: nn.Module, images: Tensor, calls: Mapping[str, _Call]) -> tuple[Any, Tensor]:
    """The calls on images on which late stages are larger than a pixel, where the network takes them; these images."""
    factor = -(-READABLE // min(images.shape[2:]))
    if factor > 1:
        larger = images.repeat(1, 1, factor, factor)
        with contextlib.suppress(Exception):
            return _run(network, larger)[1], larger
    return calls, images


def _find_maps(network: nn.Module, calls: Mapping[str, _Call], images: Tensor, classes: int) -> list[str]:
    """The last output at each resolution, from the largest on, among the outermost modules that return maps.

    Tokens after a map say that the map was their embedding, and no stage.

    Args:
        classes: channels of what a head of convolutions returns, which is no map; 0 where there is no such head.
    """

    rows, size = len(images), images.shape[2:]

    def resolution(path: str) -> tuple[int, int] | None:
        found = calls[path].returned
        if not isinstance(found, Tensor) or found.dim() != 4 or len(found) != rows:
            return None
        height, width = found.shape[2:]
        return (height, width) if _lies_on((height, width), (size[0], size[1])) else None

    children: dict[str, list[str]] = {"": []}
    for path in calls:
        parent = path.rpartition(".")[0]
        while parent and parent not in calls:
            parent = parent.rpartition(".")[0]
        children.setdefault(parent, []).append(path)

    def steps(path: str, nested: bool = False) -> Iterator[str]:
        inside = children.get(path, [])
        if path and resolution(path) is not None:
            several = len({resolution(child) for child in inside} - {None})
            sequence = isinstance(network.get_submodule(path), nn.Sequential) and not nested
            if several < (2 if sequence else OUTERMOST):
                yield path
                return
            nested = True
        for child in inside:
            yield from steps(child, nested)
        if path and resolution(path) is None:
            yield path

    last: dict[tuple[int, int], str] = {}
    for path in steps(""):
        found, returned = resolution(path), calls[path].returned
        if found is None:
            if isinstance(returned, Tensor) and returned.dim() >= 3:
                last.clear()
            continue
        pooled = max(found) == 1 or isinstance(network.get_submodule(path), nn.AdaptiveAvgPool2d)
        if not pooled and returned.shape[1] != classes and all(found[0] <= other[0] for other in last):
            last[found] = path
    return list(last.values())


def _lies_on(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether (H, W) has the shape of an image of that size, as maps have; of channels that come last, it has not."""
    return abs(grid[0] * size[1] - grid[1] * size[0]) <= max(size) and grid[0] <= size[0]


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch's own wrappers: DataParallel, AveragedModel, torch.compile."""
    while type(module).__module__.startswith("torch."):
        inner = getattr(module, "_orig_mod", getattr(module, "module", None))
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def _said_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """Image sizes (height, width) that a module says it takes."""
    config: Any = getattr(module, "config", None)
    pretrained: Any = getattr(module, "pretrained_cfg", None) or {}
    embed: Any = getattr(module, "patch_embed", None)
    said = [
        getattr(config, "image_size", None),
        getattr(module, "image_size", None),
        getattr(embed, "img_size", None),
        *([pretrained["input_size"][1:]] if isinstance(pretrained, Mapping) and "input_size" in pretrained else []),
    ]
    pairs = [tuple(size) if isinstance(size, (tuple, list)) else (size, size) for size in said]
    # Modules may call anything so.
    return [pair for pair in pairs if len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)]


def size_taken(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """The image size that a network says it takes, as a ViT does, where it cannot run on images of ``image_shape``.

    Args:
        image_shape: (C, H, W).
    """
    inside: list[nn.Module] = [network]
    while isinstance(within := getattr(inside[-1], "network", None), nn.Module):
        inside.append(within)
    said = [size for part in inside for size in _said_sizes(_unwrapped(part))]
    own = (image_shape[1], image_shape[2])
    for size in [own, *said] if said and own not in said else []:
        with contextlib.suppress(Exception), evaluating(network), torch.no_grad():
            network(_probe_images(network, image_shape[0], size))
            return None if size == own else size
    return None


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def adapt(
    module: nn.Module,
    *,
    classifier: str | Literal[False] | None = None,
    maps: Sequence[str] | None = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    interpolation: str | None = None,
    pretrained: bool = False,
    name: str = "",
) -> Adapted:
    """Any classifier of images as a backbone, by forward hooks: torchvision's, timm's, Hugging Face's, your own.

    ``pckd.distill(student=module, teacher=module)`` does this by itself; call it to choose. The module is not copied:
    it is trained in place, and its state dict's keys are those of the result. It returns logits [N, K], or a tuple, a
    dictionary or an object with them (the entry ``logits``, or else the first that a linear layer gives). DataParallel,
    AveragedModel and compiled modules are taken off.

    The embedding is what the classifier reads: in a ViT the class token, or the mean of all tokens. Where logits are
    the output of no single nn.Linear (a 1x1 convolution, the mean of two heads), there is no embedding, and methods
    that look at it or at the classifier's rows are refused. Maps are [N, C, H, W]; tokens and maps whose channels come
    last are not found.

    Args:
        module: ``forward(images [N, C, H, W])``.
        classifier: path of the nn.Linear whose output the logits are, as in ``named_modules()``; by default found.
            False: it has none, and what it returns is the embedding; it may teach methods that look at no logits.
        maps: paths of the modules whose outputs are the maps, from the stem on; by default found: the last output at
            each resolution. None: no maps.
        mean, std: per channel, how images were normalized in its training, both or neither: where the data are
            normalized otherwise, it is shown images as in its training.
        image_size: pixels of the images in its training, two numbers (height, width) where these differ: images of
            another size are resized for it when it teaches or is measured. By default it is tried on what the module
            says, or 32, 64 or 224, and shown images as they are where it takes them.
        interpolation: how they are resized: ``"bilinear"`` (the default), ``"bicubic"`` or ``"nearest"``.
        pretrained: its weights are those that timm publishes: what is not given here is what its ``pretrained_cfg``
            says. (timm's modules have one with random weights, too, so that it counts for nothing by itself.)
        name: what messages call it; its class by default.

    Raises:
        UserError: it cannot run on such images, returns no logits, has no such module, or no ``pretrained_cfg``.
    """
    label = name or type(module).__name__
    check_network(module, label)
    if isinstance(module, Adapted):
        module = module.network
    module = _unwrapped(module)
    label = name or type(module).__name__
    if (mean is None) != (std is None):
        raise UserError(f"{label}: give both mean and std, or neither")
    if pretrained:
        published = pretrained_record(module)
        if published is None:
            raise UserError(f"{label} has no pretrained_cfg, as timm's modules have; give mean, std and image_size")
        mean, std = (published.mean, published.std) if mean is None else (mean, std)
        image_size, interpolation = image_size or published.image_size, interpolation or published.interpolation
    record = Preprocessing(
        tuple(map(float, mean or ())),
        tuple(map(float, std or ())),
        (0, 0) if image_size is None else _sides(image_size),
        interpolation=interpolation or "bilinear",
    )
    if Preprocessing.from_metadata({"preprocessing": record.as_metadata()}) is None:
        raise UserError(
            f"{label}: give mean and std with a number a channel, std above 0, image_size as pixels or "
            f"(height, width), and interpolation as {', '.join(INTERPOLATIONS)}"
        )
    channels = _channels(module, len(mean or (0, 0, 0)))
    sizes = [*_said_sizes(module), *map(_sides, SIZES)] if image_size is None else [record.image_size]
    reason = ""
    for size in sizes:
        images = _probe_images(module, channels, size)
        try:
            answer, calls = _run(module, images)
        # A module refuses a size in its own way.
        except Exception as error:
            reason = reason or " ".join(str(error).split())[:200] or type(error).__name__
            continue
        adapted = _adapted(module, label, images, answer, calls, classifier, maps)
        if record != Preprocessing():
            set_preprocessing(adapted, record)
        return adapted
    raise UserError(
        f"{label} cannot run on images of {channels} channels and "
        f"{' or '.join('x'.join(map(str, size)) for size in sizes)} pixels: {reason}; give image_size"
    )


def as_backbone(
    network: nn.Module, image_shape: tuple[int, int, int], label: str, classes: int | None = None
) -> nn.Module:
    """A network that is no backbone yet, adapted; a backbone, or what cannot be adapted, as it is.

    Args:
        image_shape: (C, H, W); where it cannot run on such images, it is tried on the size that it says.
        label: what messages call it. classes: with another number of columns, and no classifier that gives them, what
            it returns is its embedding.

    Raises:
        UserError: it returns no logits.
    """
    if isinstance(network, Adapted) or type(network).__module__.startswith("model_zoo."):
        return network
    inside = _unwrapped(network)
    images = _probe_images(inside, image_shape[0], size_taken(inside, image_shape) or image_shape[1:])
    for candidate in (network, inside):
        try:
            answer, calls = _run(candidate, images)
        # Why it cannot run is for the probe to say.
        except Exception:
            return network
        if isinstance(answer, Output):
            # A network inside a wrapper has its classifier, too.
            return candidate if hasattr(candidate, "classifier") else inside
    name = getattr(network, "__name__", "") or type(inside).__name__
    return _adapted(inside, str(name), images, answer, calls, None, (), label, classes)


def adapted_by_itself(network: nn.Module) -> nn.Module:
    """As :func:`as_backbone`, where nobody says what the images are."""
    channels = _channels(network)
    for height, width in [*_said_sizes(network), *map(_sides, SIZES)]:
        found = as_backbone(network, (channels, height, width), type(network).__name__)
        if found is not network:
            return found
    return network


def classifier_name(network: nn.Module) -> str:
    """The classifier's name in the network's state dict; "" where it has none."""
    if isinstance(network, Adapted):
        return network.classifier_path
    layer = getattr(network, "classifier", None)
    return next((name for name, module in network.named_modules() if module is layer), "")


def _channels(module: nn.Module, usual: int = 3) -> int:
    return next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), usual)


def _probe_images(network: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    # Not blank ones, under which different layers may answer the same. Two rows, as many as no classes.
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(weight)


def _adapted(
    module: nn.Module,
    name: str,
    images: Tensor,
    answer: Any,
    calls: Mapping[str, _Call],
    classifier: str | Literal[False] | None,
    maps: Sequence[str] | None,
    label: str = "",
    classes: int | None = None,
) -> Adapted:
    """The module as a backbone, from what it has answered.

    Args:
        label: what messages call it, where that is not its name.
        classes: what has another number of columns, and comes from no classifier, is its embedding.
    """
    label = label or name
    places = _places(answer, len(images))
    if not places:
        raise UserError(
            f"{label}: forward returns no logits [N, K] ({_seen(answer)} for 2 images): let it return them, alone or "
            "as the entry 'logits' of a dictionary, or return registry.Output"
        )
    linear = [path for path in reversed(list(calls)) if isinstance(module.get_submodule(path), nn.Linear)]
    if isinstance(classifier, str):
        linear = [_checked_path(module, classifier, label)]
        if not isinstance(module.get_submodule(classifier), nn.Linear):
            raise UserError(f"{label}: {classifier} must be an nn.Linear, not {_kind(module, classifier)}")
    key: str | int | None = places[0][0]
    path = ""
    for place, logits in places if classifier is not False else ():
        found = (p for p in linear if _is_classifier(module, p, calls, logits))
        path = next((p for p in found if _decides(module, p, images, place, logits)), "")
        if path or place == "logits":
            key = place
            break
    if isinstance(classifier, str) and not path:
        raise UserError(f"{label}: the output of {classifier} is not its logits; leave classifier out, or name another")
    other = classes is not None and dict(places)[key].shape[1] != classes
    gives_logits = classifier is not False and (bool(path) or not other)
    if maps is not None and not maps:
        head = dict(places)[key].shape[1] if gives_logits and not path else 0
        maps = _find_maps(module, *_on_larger_images(module, images, calls), head)
    for chosen in maps or ():
        returned = calls[_checked_path(module, chosen, label)].returned if chosen in calls else None
        if not isinstance(returned, Tensor) or returned.dim() != 4:
            raise UserError(f"{label}: {chosen} returns no map [N, C, H, W] ({_seen(returned)}); name another module")
    adapted = Adapted(module, path, maps or (), key, name, gives_logits)
    set_preprocessing(adapted, preprocessing_of(module))
    return adapted


def pretrained_record(module: Any) -> Preprocessing | None:
    """What timm's ``pretrained_cfg`` says of the images of published weights; None where a module has none."""
    said: Any = getattr(module, "pretrained_cfg", None)
    if not isinstance(said, Mapping) or not said.get("mean") or not said.get("std"):
        return None
    size = next(iter(_said_sizes(module)), (0, 0))
    how = "bicubic" if said.get("interpolation") == "lanczos" else said.get("interpolation")
    interpolation = how if how in INTERPOLATIONS else "bilinear"
    return Preprocessing(tuple(said["mean"]), tuple(said["std"]), size, (), interpolation)


def _checked_path(module: nn.Module, path: str, label: str) -> str:
    try:
        module.get_submodule(path)
    except AttributeError as error:
        raise UserError(f"{label} has no module {path!r}; see its named_modules()") from error
    return path


def _kind(module: nn.Module, path: str) -> str:
    return type(module.get_submodule(path)).__name__


def _seen(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__

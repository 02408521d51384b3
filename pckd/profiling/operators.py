"""What an operator costs: multiply-adds by a formula, one operation an element, nothing, or nobody knows.

Two counters look at operators. fvcore reads the trace of a network; :class:`Counting` watches what runs, forward and
backward. Both name operators ``aten::name``, and both ask :func:`kind` what an operator is that has no formula.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

Kind = Literal["free", "elementwise", "unknown"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FREE = _names(
    """
    _local_scalar_dense _reshape_alias _to_copy _unsafe_view alias arange as_strided cat chunk clone constant_pad_nd
    contiguous copy detach dropout embedding empty empty_like empty_strided expand eye feature_dropout fill flatten
    flip full full_like gather index index_copy index_select item lift lift_fresh masked_select narrow new_empty
    new_empty_strided new_full new_ones new_zeros nonzero numel one_hot ones ones_like pad permute pixel_shuffle
    pixel_unshuffle repeat repeat_interleave reshape resize resolve_conj resolve_neg roll scalar_tensor scatter
    select_backward select_scatter set size slice_backward slice_scatter split_with_sizes squeeze stack t to transpose
    tril triu type_as unflatten unfold unfold_backward unsafe_split view zero zeros zeros_like
    """
)
"""Operators that move, copy or make data: no arithmetic."""

ELEMENTWISE = _names(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _batch_norm_no_update _batch_norm_with_update _foreach_add
    _foreach_mul _fused_dropout _fused_sgd _log_softmax _log_softmax_backward_data _native_batch_norm_legit
    _native_batch_norm_legit_no_training _prelu_kernel _softmax _softmax_backward_data adaptive_avg_pool2d
    adaptive_max_pool2d all amax amin aminmax any argmax argmin avg_pool2d avg_pool2d_backward batch_norm
    batch_norm_backward bernoulli binary_cross_entropy binary_cross_entropy_with_logits bincount cosine_similarity
    count_nonzero cross_entropy_loss cudnn_batch_norm cudnn_batch_norm_backward cummax cumprod cumsum
    embedding_dense_backward exponential frobenius_norm gelu glu group_norm hardtanh huber_loss huber_loss_backward
    index_add index_put index_reduce instance_norm kl_div layer_norm leaky_relu linalg_vector_norm log_sigmoid_forward
    log_softmax logcumsumexp logsumexp masked_fill masked_scatter max max_pool2d max_pool2d_with_indices
    max_pool2d_with_indices_backward mean median min miopen_batch_norm miopen_batch_norm_backward mse_loss
    mse_loss_backward nansum native_batch_norm native_batch_norm_backward native_dropout native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward nll_loss nll_loss2d_backward
    nll_loss2d_forward nll_loss_backward nll_loss_forward nll_loss_nd norm normal prelu prod rand rand_like randint
    randint_like randn randn_like random randperm renorm rms_norm scatter_add scatter_reduce smooth_l1_loss
    smooth_l1_loss_backward soft_margin_loss softmax softplus std std_mean sum trace uniform upsample_bicubic2d
    upsample_bicubic2d_backward upsample_bilinear2d upsample_bilinear2d_backward upsample_nearest2d
    upsample_nearest2d_backward value_selecting_reduction_backward var var_mean where
    """
)
"""Operators without PyTorch's tag for element-wise ones that do a fixed amount of arithmetic an element."""


@functools.cache
def kind(name: str) -> Kind:
    """Whether an operator without a formula is free, does some operations an element, or is of unknown cost.

    Args:
        name: ``"aten::softmax"``; in-place variants (``"aten::add_"``) are as their plain forms.
    """
    space, _, full = name.partition("::")
    base = full.partition(".")[0]
    if space in ("prim", "profiler") or base in FREE or base.removesuffix("_") in FREE:
        return "free"
    if base in ELEMENTWISE or base.removesuffix("_") in ELEMENTWISE:
        return "elementwise"
    packet = getattr(getattr(torch.ops, space, None), base, None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    if any(torch.Tag.pointwise in overload.tags for overload in overloads):
        return "elementwise"
    if any(_is_view(overload) for overload in overloads):
        return "free"
    forward = base.removesuffix("_backward")
    return kind(f"{space}::{forward}") if forward != base else "unknown"


def _is_view(overload: Any) -> bool:
    returns = overload._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


# Formulas in floating-point operations, two for a multiply-add, as torch.utils.flop_counter has them: shapes in.


def _matrix_vector(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _added_matrix_vector(start: Any, matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _dot(one: Any, other: Any, *_: Any, **__: Any) -> int:
    return 2 * one[0]


def _distances(one: Any, other: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """[..., P, D] to [..., R, D]: a difference and its power, added up: one multiply-add an element of P x R x D."""
    batch = 1
    for size in one[:-2]:
        batch *= size
    return int(2 * batch * one[-2] * other[-2] * one[-1])


def _distances_backward(gradient: Any, one: Any, other: Any, *_: Any, **__: Any) -> int:
    return _distances(one, other)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, length, width = query
    return int(2 * batch * heads * length * key[-2] * (width + value[-1]))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # The scores once more, then the gradients of scores, query, key and value.
    batch, heads, length, width = query
    return int(2 * batch * heads * length * key[-2] * (3 * width + 2 * value[-1]))


_FORMULAS: dict[str, Callable[..., int]] = {
    "mv": _matrix_vector,
    "addmv": _added_matrix_vector,
    "dot": _dot,
    "vdot": _dot,
    "_euclidean_dist": _distances,
    "_cdist_forward": _distances,
    "_cdist_backward": _distances_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
}


@functools.cache
def formulas() -> dict[Any, Callable[..., int]]:
    """Operator to the floating-point operations of a call: those of ``FlopCounterMode``, and ours."""
    ours = {getattr(torch.ops.aten, name): formula for name, formula in _FORMULAS.items()}
    return dict(FlopCounterMode(display=False, custom_mapping=ours).flop_registry)


class Counting(TorchDispatchMode):
    """While it is entered, counts what every operator that runs costs, in the forward and the backward pass.

    ``macs``: multiply-adds of convolutions, matrix products, attention and distances, by formulas that are exact.
    ``elementwise``: one for each element of the largest tensor that an element-wise operator or reduction touches.
    ``uncounted``: calls of all others but those that only move data. ``reads_values``: whether Python looked at a
    value in a tensor, so that what runs may depend on the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.elementwise = 0
        self.uncounted: Counter[str] = Counter()
        self.reads_values = False
        self._formulas = formulas()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", func)
        if packet in self._formulas:
            self.macs += int(self._formulas[packet](*args, **kwargs, out_val=result)) // 2
            return result
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        what = kind(name)
        self.reads_values |= packet is torch.ops.aten._local_scalar_dense
        if what == "elementwise":
            self.elementwise += max((_elements(value) for value in (*args, *kwargs.values(), result)), default=0)
        elif what == "unknown":
            self.uncounted[name] += 1
        return result


def _elements(value: Any) -> int:
    """Elements of a tensor, or of all in a list: fused optimizers take lists."""
    return sum(t.numel() for t in tree_flatten(value)[0] if isinstance(t, Tensor))

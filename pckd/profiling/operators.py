"""What operators cost while they run: multiply-adds by the formulas of torch.utils.flop_counter, the rest by size."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from pckd.profiling.measure import MARK

_COSTLY = re.compile(
    r"linalg_(?!vector_norm)|fft|svd|cholesky|triangular|sort|topk|kthvalue|unique|dist|rnn|attention|transformer|conv"
    r"|mm_?$|^_trilinear"
)
"""PyTorch's operators that do more than some operations for each element of their tensors."""


def is_costly(name: str) -> bool:
    """Whether an operator without a formula does work that its tensors' sizes do not tell.

    Args:
        name: as in ``"aten::sort"``. Of the operators of other libraries nothing is known.
    """
    space, _, operator = name.partition("::")
    return space not in ("aten", "prim", "profiler") or bool(_COSTLY.search(operator))


@functools.cache
def formulas() -> dict[Any, Callable[..., int]]:
    """Operator to the floating-point operations of a call, two for a multiply-add: those of ``FlopCounterMode``."""
    found = dict(FlopCounterMode(display=False).flop_registry)
    aten = torch.ops.aten
    # They have no entry for the CPU's attention, which computes the same.
    found[aten._scaled_dot_product_flash_attention_for_cpu] = found[aten._scaled_dot_product_flash_attention]
    backward = found[aten._scaled_dot_product_flash_attention_backward]
    found[aten._scaled_dot_product_flash_attention_for_cpu_backward] = backward
    return found


class Counting(TorchDispatchMode):
    """While it is entered, counts what every operator that runs costs, in the forward and the backward pass.

    By the marks of the step (:data:`pckd.profiling.measure.MARK`), and ``"other"`` outside them:
    ``macs``: multiply-adds of convolutions, matrix products and attention, by formulas that are exact.
    ``elementwise``: one for each element of the largest tensor that any other operator touches, without views.

    ``uncounted``: calls of those that are in neither count (:func:`is_costly`). ``reads_values``: whether Python looked
    at a value in a tensor, so that what runs may depend on the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.elementwise: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.reads_values = False
        self._inside = ["other"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        packet = getattr(func, "_overloadpacket", func)
        self.reads_values |= packet is torch.ops.aten._local_scalar_dense
        if packet in formulas():
            self.macs[self._inside[-1]] += int(formulas()[packet](*args, **kwargs, out_val=result)) // 2
        elif name == "profiler::_record_function_enter_new":
            # A mark within a part, as an optimizer makes one, belongs to it.
            self._inside.append(args[0].removeprefix(MARK) if args[0].startswith(MARK) else self._inside[-1])
        elif name == "profiler::_record_function_exit":
            self._inside.pop()
        elif is_costly(name):
            self.uncounted[name] += 1
        elif not func.is_view:
            self.elementwise[self._inside[-1]] += max(map(_elements, (*args, *kwargs.values(), result)), default=0)
        return result


def _elements(value: Any) -> int:
    """Elements of a tensor, or of all in a list: fused optimizers take lists."""
    return sum(t.numel() for t in tree_flatten(value)[0] if isinstance(t, Tensor))

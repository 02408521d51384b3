"""Networks and modules that a caller gives: copied, and refused where no training could work on them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from model_zoo.probe import copied
from pckd.objective import Objective
from registry import UserError

__all__ = ["check_apart", "check_gradients", "check_trainable", "copy_of"]

Module = TypeVar("Module", bound=nn.Module)


def check_trainable(student: nn.Module) -> None:
    """Refuse a student whose weights no step could change: not in float32, or made in inference mode."""
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if tensor.is_inference():
            raise UserError(
                f"the student's {name} was made inside torch.inference_mode() and cannot be trained: make it outside"
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"the student's {name} is in {tensor.dtype}, and training is in torch.float32: give student.float() "
                "(precision='bf16' multiplies in bfloat16)"
            )


def check_gradients(student: nn.Module, objective: Objective) -> None:
    """Refuse a student that is frozen as a whole, unless a loss trains a head that answers for it."""
    if not any(p.requires_grad for p in student.parameters()) and objective.predictor(student) is student:
        raise UserError(
            "no parameter of the student requires gradients, so that there is nothing to train: "
            "call student.requires_grad_(True), or do so for the layers to train"
        )


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student that has parameters or buffers in common with its teacher, which its training would change."""
    if student is teacher:
        raise UserError("student and teacher are the same object; give the student a copy")
    theirs = {_place_in_memory(tensor) for tensor in [*teacher.parameters(), *teacher.buffers()]}
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        if _place_in_memory(tensor) in theirs:
            raise UserError(f"student and teacher share {name}: give the student a copy of it (copy.deepcopy)")


def _place_in_memory(tensor: torch.Tensor) -> int:
    # Two parameters may be made of the same data. What is empty, or sparse, has no address.
    return (tensor.data_ptr() if tensor.layout == torch.strided else 0) or id(tensor)


def copy_of(module: Module, role: str, need: str) -> Module:
    """A copy of what a caller has given.

    Args:
        role: what it is, for messages: ``"the student"``. need: what the copy is for: ``"a profile"``.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        return copied(module)
    # Any object in it may refuse in its own way.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{role} cannot be copied, as {need} needs: {reason}") from error

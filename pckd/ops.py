"""Small functions that losses, metrics and schedulers share."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from registry import Absent, Context, Output, Setup, Shapes, UserError

log = logging.getLogger("pckd")

NORM_FLOOR = 1e-6
"""Norms below this count as this: a zero feature gets a bounded gradient instead of 1e12."""


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: losses are never computed in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


LARGE = 2**28
"""Bytes from which on a memory of samples is large: it is then announced, and not copied."""


def announce(loss: str, shape: Sequence[int], dtype: torch.dtype, smaller: str) -> None:
    """Log how much a memory of vectors takes, before it is taken, where that is much.

    Args:
        shape: of the memory. smaller: how to have a smaller one.
    """
    size = math.prod(shape) * dtype.itemsize
    if size >= LARGE:
        log.warning(
            f"{loss}: its memory takes {size / 2**30:.2f} GiB on the device of the training, and in each checkpoint: "
            f"{' x '.join(f'{n:,}' for n in shape)} numbers of {dtype.itemsize} bytes; {smaller}"
        )


def unit(x: Tensor) -> Tensor:
    """Rows of ``x`` [..., D] scaled to length 1; a zero row stays zero."""
    return F.normalize(full(x), dim=-1, eps=NORM_FLOOR)


def exact(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off for the device of ``x``, so that matrix products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """The numbers as a tensor of the type and on the device of another, which the host does not wait for."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


SEVERAL: Any = Absent(
    "there are several teachers, whose mean has logits alone: name one of them, as in 'crd@2' or Term('crd', teacher=2)"
)
"""What of several teachers together there is not."""


def mean_answer(answers: Sequence[Output]) -> Output:
    """The answer of several teachers together: the log of the mean of their probabilities (softmax at temperature 1).

    Args:
        answers: of each about the same rows, [N, ...]; one alone is returned as it is. Those without logits do not
            count; where none has any, there is no mean.
    """
    if len(answers) == 1:
        return answers[0]
    logits = [answer.logits for answer in answers if not isinstance(answer.logits, Absent)]
    mean = answers[0].logits
    if logits:
        mean = torch.stack([full(x).log_softmax(1) for x in logits]).logsumexp(0) - math.log(len(logits))
    images = Output(SEVERAL, SEVERAL, SEVERAL, SEVERAL, layers=SEVERAL) if answers[0].images else ()
    return Output(mean, SEVERAL, SEVERAL, SEVERAL, images=images, layers=SEVERAL, members=tuple(answers))


def mean_shapes(shapes: Sequence[Shapes]) -> Shapes:
    """The shapes of :func:`mean_answer`."""
    first = shapes[0]
    mean = Shapes(first.num_classes, 0, SEVERAL, SEVERAL, layers=SEVERAL, sides=SEVERAL if first.sides else 0)
    if not first.images:
        return mean
    return mean._replace(images=mean._replace(head=SEVERAL if first.images.head else ()))


def above_zero(loss: str, *options: str) -> Callable[..., None]:
    """A check for ``LOSSES.register``: refuses a value of these options that is not above 0.

    Args:
        loss: its name, for the message.
    """

    def check(setup: Setup, **given: Any) -> None:
        for option in options:
            if not given[option] > 0:
                raise UserError(f"{loss}: {option} must be above 0, not {given[option]}")

    return check


PUBLISHED_EPOCHS = 240
"""The length of the schedule for which milestones, growth, warm-up and initial epochs were published."""


def relative(values: Tensor) -> Tensor:
    """Non-negative values [B] over their mean, so that an average sample has difficulty 1; all zero stays zero.

    A mean below the smallest normal number counts as that number: such values stay close to zero.
    """
    values = full(values)
    return values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)


def published_epoch(context: Context, reference_epochs: int | None = PUBLISHED_EPOCHS) -> float:
    """The epoch of a ``reference_epochs`` schedule that corresponds to this one, from epoch * reference / epochs.

    Args:
        context: gives the epoch (from 1) and the number of epochs of this run.
        reference_epochs: the length for which a constant was published; None leaves the epoch as it is.
    """
    if reference_epochs is None:
        return context.epoch
    return context.epoch * reference_epochs / context.epochs


def mean_square(student: Tensor, teacher: Tensor, name: str) -> Tensor:
    """Mean squared difference of each row, [N, ...] to [N]; the teacher's is a constant.

    Args:
        name: of the caller, for the message.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"{name} needs two equal shapes, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    return (full(student) - full(teacher.detach())).square().flatten(1).mean(1)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation: the correlation of the ranks, equal values having the mean of theirs.

    Args:
        one, other: [B] each.

    Returns:
        -1 to 1; nan where one of the two is constant.
    """
    ranks = torch.stack([_ranks(one.cpu()), _ranks(other.cpu())])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, group, sizes = values.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes - 1) / 2)[group]

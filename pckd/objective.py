"""The whole objective on one screen: every term, and the only place that weights and reduces.

Shapes: B images, V views of each, N = B * V rows (image-major, view 0 upright), K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn

from registry import (
    LOSSES,
    CenterRule,
    Context,
    NotApplicable,
    Output,
    Setup,
    Term,
    UserError,
    build,
    parse,
)

log = logging.getLogger("pckd")

Metric = Callable[[Output, Output, Context], Tensor]
Scheduler = Callable[[Tensor, Context], Tensor]


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Whether any term looks at a teacher: a loss says that it does not with ``needs_teacher = False``."""

    def asks(term: Term) -> bool:
        factory = LOSSES.get(parse(term.loss)[0]) if isinstance(term.loss, str) else term.loss
        return term.previewed or bool(getattr(factory, "needs_teacher", True))

    return any(asks(term) for term in terms if term.weight)


def labels_of(terms: Sequence[Term]) -> list[str]:
    """A label for each term, all different: repeated ones, and those that a ModuleDict refuses, get a number."""
    wanted = [term.label.replace(".", "_") for term in terms]
    repeats = Counter(wanted)
    used = {"loss", "preview_weight", "previewed", *dir(nn.ModuleDict())}
    free = [label for label in wanted if repeats[label] == 1 and label not in used]
    used.update(free)
    labels = []
    for position, label in enumerate(wanted):
        if label not in free:
            numbers = (f"{label}_{number}" for number in count(position))
            label = next(numbered for numbered in numbers if numbered not in used)
            used.add(label)
        labels.append(label)
    return labels


class Objective(nn.Module):
    """The weighted sum of a method's terms.

    Its parameters (the losses' projections, learnable centers) go to the optimizer beside the student's; its
    buffers (memories, running centers) go into the checkpoint. It holds neither of the two networks.

    Args:
        terms: what to sum; a term of weight 0 is left out, an ``optional`` one that cannot work here is logged.
        setup: the shapes of the two networks.
        difficulty: metric that says how hard each image is. scheduler: turns difficulty into a weight.
        centers: rule that gives the category centers.

    Raises:
        NotApplicable: a term cannot work for this pair of networks.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        setup: Setup,
        *,
        difficulty: Metric,
        scheduler: Scheduler,
        centers: CenterRule,
    ) -> None:
        super().__init__()
        self.difficulty = difficulty
        self.scheduler = scheduler
        self.centers = centers
        self.terms: dict[str, Term] = {}
        self.losses = nn.ModuleDict()
        for label, term in zip(labels_of(terms), terms, strict=True):
            if term.weight == 0:
                continue
            try:
                factory = term.loss
                self.losses[label] = (
                    build(LOSSES, factory, setup, **term.options)
                    if isinstance(factory, str)
                    else factory(setup, **term.options)
                )
            except NotApplicable as error:
                if not term.optional:
                    raise
                log.warning("term %s is left out: %s", label, error)
                continue
            self.terms[label] = term
        if not self.terms:
            raise UserError("the method has no term with a weight other than 0")
        self.previews = any(term.previewed for term in self.terms.values())
        self.needs_teacher = needs_teacher(list(self.terms.values()))
        self.needs_views = any(term.views == "all" for term in self.terms.values())

    def forward(self, student: Output, teacher: Output, context: Context) -> dict[str, Tensor]:
        """Value of every term as it enters the sum, and ``loss``, the sum itself.

        Where the method previews, also ``preview_weight`` (mean weight) and ``previewed`` (share of the samples with
        a weight below 1), without gradient.

        Args:
            student: [N, ...]; teacher: [N, ...], a constant; context: labels and index [N].

        Raises:
            UserError: a loss or the scheduler returned values of another shape than its contract says.
        """
        teacher = teacher.detach()
        upright = student.upright(context.views), teacher.upright(context.views), context.upright()
        shown = {"all": (student, teacher, context), "upright": upright}
        weights = self.weights(*upright) if self.previews else None
        values: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            value = self.losses[label](*shown[term.views])
            if value.ndim and value.shape != shown[term.views][2].labels.shape:
                raise UserError(
                    f"{label} returned values of shape {tuple(value.shape)} for "
                    f"{len(shown[term.views][2].labels)} rows: it must return one value a row, or a scalar"
                )
            if term.previewed and weights is not None:
                if value.ndim == 0:
                    raise UserError(f"{label} is about the whole batch: it has no samples to preview")
                value = value * (weights if term.views == "upright" else weights.repeat_interleave(context.views))
            values[label] = term.weight * value.mean()
        values["loss"] = torch.stack(list(values.values())).sum()
        if weights is not None:
            values["preview_weight"] = weights.mean()
            values["previewed"] = (weights < 1).float().mean()
        return values

    @torch.no_grad()
    def weights(self, student: Output, teacher: Output, context: Context) -> Tensor:
        """Weight of each image, [B], from the upright rows; a constant of the step."""
        difficulty = self.difficulty(student, teacher, context)
        weights = self.scheduler(difficulty, context)
        if weights.shape != context.labels.shape:
            raise UserError(
                f"the scheduler returned weights of shape {tuple(weights.shape)} for {len(context.labels)} images: "
                "it must return one weight an image"
            )
        return weights

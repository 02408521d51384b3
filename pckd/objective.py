"""The whole objective on one screen: every term, and the only place that weights and reduces.

Shapes: B images, V views of each, N = B * V rows (image-major, view 0 upright), K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from pckd.functional import PUBLISHED_EPOCHS, gather_output, gather_rows, own_rows, published_epoch, world_size
from registry import (
    LOSSES,
    CenterRule,
    Context,
    NotApplicable,
    Output,
    PluginError,
    Setup,
    Term,
    UserError,
    ask,
    build,
    parse,
)
from registry.held import check_per_image, check_term, check_values, hold_rule, name_of

log = logging.getLogger("pckd")

Metric = Callable[[Output, Output, Context], Tensor]
Scheduler = Callable[[Tensor, Context], Tensor]


def _says(term: Term, fact: str) -> bool:
    factory = LOSSES.get(parse(term.loss)[0]) if isinstance(term.loss, str) else term.loss
    return bool(getattr(factory, fact, True))


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Whether any term looks at a teacher: a loss says that it does not with ``needs_teacher = False``."""
    return any(term.previewed or _says(term, "needs_teacher") for term in terms if term.weight)


def preview_all(terms: Sequence[Term]) -> list[Term]:
    """The same terms, with every per-sample loss that looks at the teacher previewed: anyone's loss can be.

    Raises:
        UserError: there is none.
    """
    fit = [_says(term, "needs_teacher") and _says(term, "per_sample") for term in terms]
    if not any(fit):
        labels = ", ".join(term.label for term in terms)
        raise UserError(f"nothing to schedule by difficulty: no term of {labels} is a per-sample distillation loss")
    return [replace(term, previewed=True) if ok else term for term, ok in zip(terms, fit, strict=True)]


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


class Predictor(nn.Module):
    """A student that answers with the head of a loss instead of its own classifier."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = head

    @property
    def classifier(self) -> nn.Linear:
        classifier = self.head.classifier
        assert isinstance(classifier, nn.Linear)
        return classifier

    def forward(self, x: Tensor) -> Output:
        output: Output = self.network(x)
        return output._replace(logits=self.head.predict(output))  # type: ignore[operator]


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
        self._metric_says = f"difficulty metric {name_of(difficulty)}"
        self._scheduler_says = f"scheduler {name_of(scheduler)}"
        self._lowest: Tensor | None = None
        self._looked_at: tuple[str, int] | None = None
        # The rule itself is the submodule, so that its state has its own names; what is called is in a list, as below.
        self._rule = [hold_rule(centers, setup)]
        self._modules["centers"] = centers
        self.terms: dict[str, Term] = {}
        self.losses = nn.ModuleDict()
        for label, term in zip(labels_of(terms), terms, strict=True):
            check_term(label, term)
            if term.weight == 0:
                continue
            try:
                factory = partial(build, LOSSES, term.loss) if isinstance(term.loss, str) else term.loss
                loss = ask(f"loss {label!r}", factory, setup, **term.options)
                if not isinstance(loss, nn.Module):
                    raise PluginError(f"loss {label!r}: its factory made {type(loss).__name__}, not an nn.Module")
                self.losses[label] = loss
            except NotApplicable as error:
                if not term.optional:
                    raise
                log.warning("term %s is left out: %s", label, error)
                continue
            self.terms[label] = term
        if not self.terms:
            raise UserError("the method has no term with a weight other than 0")
        if not any(term.main for term in self.terms.values()):
            raise UserError("the method has only terms for initial epochs: give it one with main=True")
        self.previews = any(term.previewed for term in self.terms.values())
        self.needs_teacher = needs_teacher(list(self.terms.values()))
        self.needs_rotations = any(term.views == "all" for term in self.terms.values())
        self.needs_strong = any(term.views == "strong" for term in self.terms.values())
        heads = [loss for loss in self.losses.values() if hasattr(loss, "predict")]
        if len(heads) > 1:
            raise UserError("two terms both say how the student answers; use one of them")
        self._head = heads[:1]

    @property
    def centers(self) -> CenterRule:
        """The center rule, held to its contract."""
        return self._rule[0]

    def check_views(self, views: int, images: int | None = None) -> None:
        """Refuse too few views, or too small a batch, before the first step.

        Args:
            images: of the smallest batch.

        Raises:
            NotApplicable: a loss compares more views of an image, or more rows, than the loader will show.
        """
        for label, loss in self.losses.items():
            needed = getattr(loss, "needs_views", 1)
            if views < needed:
                raise NotApplicable(
                    f"{label} compares {needed} or more views of an image, but views={views}; leave views out"
                )
            needed = getattr(loss, "needs_rows", 1)
            rows = {"upright": 1, "all": views, "strong": 2}[self.terms[label].views] * (images or needed)
            if rows < needed:
                raise NotApplicable(
                    f"{label} compares {needed} or more rows of a batch, and a batch of {images} has {rows} for it; "
                    "use a larger batch"
                )

    def initial_epochs(self, epochs: int) -> int:
        """How many epochs come before a schedule of ``epochs``: the longest that a term asks for, scaled to it."""
        asked = max(term.initial for term in self.terms.values())
        return max(1, round(asked * epochs / PUBLISHED_EPOCHS)) if asked else 0

    @torch.no_grad()
    def start(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Let the losses that ask for it set weights of the student, once, before the first step of a new run."""
        for label, loss in self.losses.items():
            if hasattr(loss, "start"):
                ask(f"loss {label!r}", loss.start, student, teacher)  # type: ignore[arg-type]

    @torch.no_grad()
    def predict(self, student: Output) -> Tensor:
        """Logits [N, K] of the trained student, to measure by: its own, unless a loss answers with another head.

        The head is asked in eval mode: it must not take the same rows into its batch statistics once more.
        """
        if not self._head:
            return student.logits
        head = self._head[0]
        was_training = head.training
        head.eval()
        logits: Tensor = ask(f"loss {type(head).__name__!r}", head.predict, student)  # type: ignore[arg-type]
        head.train(was_training)
        return logits

    def predictor(self, student: nn.Module) -> nn.Module:
        """The network to deploy: ``student`` itself, unless a loss answers with another head."""
        return Predictor(student, self._head[0]) if self._head else student

    def forward(self, student: Output, teacher: Output, context: Context) -> dict[str, Tensor]:
        """Value of every term as it enters the sum, and ``loss``, the sum itself.

        Where the method previews, also ``preview_weight`` (mean weight) and ``previewed`` (share of the samples with
        a weight below 1), without gradient.

        Args:
            student: [N, ...]; teacher: [N, ...], a constant; context: labels and index [N].

        Raises:
            UserError: a loss, the metric or the scheduler breaks its contract; names it.
            PluginError: one of them raised an error.
        """
        teacher = teacher.detach()
        views = context.views
        chosen = {"upright": [0], "all": list(range(views - context.strong)), "strong": [0, views - 1]}
        looked_at = {"upright", *(term.views for term in self.terms.values())}
        shown = {
            name: (student.select(views, some), teacher.select(views, some), context.select(some))
            for name, some in chosen.items()
            if name in looked_at
        }
        upright = shown["upright"]
        weights = self.weights(*upright) if self.previews else None
        values: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            if not (term.initial if context.stage == "initial" else term.main):
                continue
            value = ask(f"loss {label!r}", self.losses[label], *shown[term.views])
            value = check_values(label, value, len(shown[term.views][2].labels))
            if term.previewed and weights is not None:
                if value.ndim == 0:
                    raise UserError(f"{label} is about the whole batch: it has no samples to preview")
                value = value * weights.repeat_interleave(len(chosen[term.views]))
            ramp = min(1.0, published_epoch(context) / term.warmup) if term.warmup else 1.0
            weight = term.weight
            if context.stage == "initial" and term.initial_weight is not None:
                weight = term.initial_weight
            values[label] = ramp * weight * value.mean()
        values["loss"] = torch.stack(list(values.values())).sum()
        if student.logits.requires_grad and not values["loss"].requires_grad:
            raise UserError(f"nothing to train by: none of {', '.join(self.terms)} has a gradient; add a term with one")
        if weights is not None:
            values["preview_weight"] = weights.mean()
            values["previewed"] = (weights < 1).float().mean()
        return values

    @torch.no_grad()
    def weights(self, student: Output, teacher: Output, context: Context) -> Tensor:
        """Weight of each image, [B], from the upright rows; a constant of the step.

        Difficulty is relative to the batch, so that processes that train together look at all their images. A student
        that answers with the head of a loss is judged by that answer: its own classifier may be untrained.
        """
        if self._head:
            student = student._replace(logits=self.predict(student))
        if world_size() > 1:
            student, teacher = gather_output(student), gather_output(teacher)
            context = replace(context, labels=gather_rows(context.labels), index=gather_rows(context.index))
        difficulty = ask(self._metric_says, self.difficulty, student, teacher, context)
        difficulty = check_per_image(self._metric_says, "difficulty", difficulty, context)
        weights = ask(self._scheduler_says, self.scheduler, difficulty, context)
        weights = check_per_image(self._scheduler_says, "weight", weights, context)
        self._look(difficulty, weights, (student, teacher), context)
        return own_rows(weights)

    def _look(self, difficulty: Tensor, weights: Tensor, seen: tuple[Output, Output], context: Context) -> None:
        """Refuse weights below 0, and those that are not finite though all that they came of is.

        On the CPU every step's. An accelerator remembers the lowest, and is asked for it at the first step of each
        epoch, where the host does not wait long; what is not finite there is also found by the guard of the loop.
        """
        lowest = weights.amin()
        if weights.device.type != "cpu":
            self._lowest = lowest if self._lowest is None else torch.fmin(self._lowest, lowest)
            moment = context.stage, context.epoch
            if moment == self._looked_at:
                return
            self._looked_at = moment
            if float(self._lowest) < 0:
                lowest = self._lowest
        if float(lowest) < 0:
            raise UserError(f"{self._scheduler_says} gave a weight of {float(lowest):g}: a weight must be 0 or above")
        if bool(weights.isfinite().all()):
            return
        if bool(difficulty.isfinite().all()):
            raise UserError(f"{self._scheduler_says} gave a weight that is not finite: a weight must be 0 to 1")
        if all(bool(x.isfinite().all()) for output in seen for x in (output.logits, output.embedding)):
            raise UserError(f"{self._metric_says} gave a difficulty that is not finite: it must be 0 or above")

"""The whole objective on one screen: every term, and the only place that weights and reduces.

Shapes: N rows (instances) of a step, J of them judged by difficulty, K classes.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from model_zoo.adapting import NO_EMBEDDING
from model_zoo.probe import copied
from pckd.distributed import gather_output, gather_rows, own_rows, world_size
from pckd.losses.lskd import standardize
from pckd.ops import LARGE, PUBLISHED_EPOCHS, SEVERAL, published_epoch
from registry import (
    DIFFICULTY_METRICS,
    LOSSES,
    Absent,
    CenterRule,
    Centers,
    Context,
    Instances,
    Network,
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
from registry.errors import raise_named
from registry.held import check_centers, check_per_row, check_rule, check_term, check_values, name_of

log = logging.getLogger("pckd")

FEW = 4096
"""Samples that a loss with a memory is made for where it is only tried."""

Metric = Callable[[Output, Output, Context], Tensor]
Scheduler = Callable[[Tensor, Context], Tensor]


def says(term: Term, fact: str, usual: bool = True) -> bool:
    """What the loss of a term claims (:class:`registry.Loss`), or what is usual."""
    factory = LOSSES.get(parse(term.loss)[0]) if isinstance(term.loss, str) else LOSSES.adapt(term.loss)
    claims = getattr(factory, "claims", None)
    return bool(getattr(factory if claims is None else claims(**_options(term)), fact, usual))


def _options(term: Term) -> dict[str, Any]:
    return {**term.options, **(parse(term.loss)[1] if isinstance(term.loss, str) else {})}


def layers_of(terms: Sequence[Term], role: str) -> list[str]:
    """The paths of the modules of a network whose outputs the terms read.

    Args:
        role: "student" or "teacher".
    """
    active = [term for term in terms if term.weight]
    readers = [_options(term) for term in active if says(term, "reads_layers", False)]
    paths = [str(options[role]) for options in readers if options.get(role)]
    return list(dict.fromkeys(paths + [term.head for term in active if term.head and role == "student"]))


def is_shared(term: Term) -> bool:
    """Whether several methods have one term of this loss between them: its registration says ``shared=True``."""
    return isinstance(term.loss, str) and bool(LOSSES.facts(parse(term.loss)[0]).get("shared"))


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Whether any term looks at a teacher: a loss says that it does not with ``needs_teacher = False``."""
    return any(term.previewed or says(term, "needs_teacher") for term in terms if term.weight)


def preview_all(terms: Sequence[Term]) -> list[Term]:
    """The same terms, with every per-sample loss that looks at the teacher previewed: anyone's loss can be.

    Raises:
        UserError: there is none.
    """
    fit = [says(term, "needs_teacher") and says(term, "per_sample") for term in terms]
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


class _Several(Centers):
    """The centers of several teachers together, Absent, and those of each one that a term names, by its position."""

    members: Mapping[int, Centers]

    def __new__(cls, members: Mapping[int, Centers]) -> _Several:
        centers = super().__new__(cls, SEVERAL, SEVERAL)
        centers.members = members
        return centers


class CentersOfEach(CenterRule):
    """Of several teachers, a center rule for each one that a term names; all together have no centers.

    Args:
        rules: by the teacher's position, counted from 1.
    """

    def __init__(self, rules: Mapping[int, CenterRule]) -> None:
        super().__init__()
        for position, rule in rules.items():
            check_rule(rule)
            self.add_module(str(position), rule)

    @property
    def rules(self) -> dict[int, CenterRule]:
        return {int(position): cast(CenterRule, rule) for position, rule in self.named_children()}

    def forward(self, student_net: Network, *teacher_nets: Network) -> Centers:
        # There are no teachers where no term looks at one.
        known = {at: rule for at, rule in self.rules.items() if at <= len(teacher_nets)}
        return _Several({at: rule(student_net, teacher_nets[at - 1]) for at, rule in known.items()})

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        for position, rule in self.rules.items():
            rule.update(student, teacher.of_teacher(position), labels)


def _position(term: Term) -> int | None:
    """Of the term's teacher among several: in an objective a term names it by its number."""
    return cast("int | None", term.teacher)


def _lacking(setup: Setup) -> list[str]:
    """Why those of the networks that have no embedding have none, for messages."""
    roles = [role for role in ("student", "teacher") if not getattr(setup, role).embedding]
    return [
        SEVERAL.reason if setup.members and role == "teacher" else NO_EMBEDDING.format(f"the {role}") for role in roles
    ]


def _layer(layers: Any, path: str) -> Any:
    if isinstance(layers, Absent) or path not in layers:
        raise NotApplicable(f"the student's output has no layer {path!r}, which a term names as a head")
    return layers[path]


class _Layer(nn.Module):
    """Stands for the network that has given an output: it has a classifier, or it has not."""

    classifier: Any

    def __init__(self, output: Output) -> None:
        super().__init__()
        absent = next((x for x in (output.embedding, output.logits) if isinstance(x, Absent)), None)
        self.classifier = absent
        if absent is None:
            self.classifier = nn.Linear(output.embedding.shape[1], output.logits.shape[1])


def _made(label: str, term: Term, setup: Setup) -> nn.Module:
    """The loss of a term.

    Raises:
        NotApplicable: it cannot work for this pair of networks; also where it makes layers for an embedding that is not
            there, which fails in as many ways as there are layers.
    """
    factory = partial(build, LOSSES, term.loss) if isinstance(term.loss, str) else LOSSES.adapt(term.loss)
    shown = setup.of(term.rows)
    if term.head and (shape := _layer(setup.student.layers, term.head)) != (setup.student.num_classes,):
        raise NotApplicable(
            f"{label}: {term.head!r} returns {list(shape)} an image, and a head [{setup.student.num_classes}] logits"
        )
    if term.standardize and not says(term, "softmax", False):
        raise NotApplicable(f"{label} compares no distributions over the classes: leave out standardize")
    lacking = _lacking(setup) if shown is setup else []
    with warnings.catch_warnings():
        if lacking:
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        try:
            loss: nn.Module = ask(f"loss {label!r}", factory, shown, **term.options)
            return loss
        except UserError as error:
            # Its own refusals name it; those of the setup, of which it asks for the teacher's classifier, do not.
            refused = isinstance(error, NotApplicable)
            unnamed = refused and isinstance(cast(Any, shown.teacher_classifier), Absent) and label not in str(error)
            unnamed = unnamed or str(error) == SEVERAL.reason
            if not unnamed and (refused or not lacking):
                raise
            raise NotApplicable(f"loss {label!r}: {lacking[0] if lacking else error}") from error


def _weights_of(rows: Instances, weights: Tensor, instances: Instances) -> Tensor:
    """The weight of each of these rows, from those of the judged rows."""
    if rows is not instances.images:
        return weights[rows.weight_of]
    # The mean of each image's judged rows, and 1 where it has none.
    judged = instances.select(instances.judged)
    belongs = (judged.image == rows.image[:, None]).to(weights.dtype)
    count = belongs.sum(1)
    return torch.where(count > 0, belongs @ weights / count.clamp_min(1), 1.0)


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
        setup: the shapes of the two networks; of several teachers with the setup of each one.
        difficulty: metric that says how hard each image is. scheduler: turns difficulty into a weight.
        centers: rule that gives the category centers; of several teachers :class:`CentersOfEach`.

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
        check_rule(centers)
        self.difficulty = DIFFICULTY_METRICS.adapt(difficulty)
        self.scheduler = scheduler
        self.centers = centers
        self.setup = setup
        self._metric_says = f"difficulty metric {name_of(difficulty)}"
        self._scheduler_says = f"scheduler {name_of(scheduler)}"
        self._rule_says = f"center rule {type(next(iter(self._rules), centers)).__name__!r}"
        self._asked = ""
        self._checked: set[str] = set()
        self._lowest: Tensor | None = None
        self._looked_at: tuple[str, int] | None = None
        self.terms: dict[str, Term] = {}
        self.losses = nn.ModuleDict()
        for label, term in zip(labels_of(terms), terms, strict=True):
            check_term(label, term, setup.rows)
            if term.weight == 0:
                continue
            try:
                own = self._own_setup(label, term)
                loss = _made(label, term, own)
                if own.members and (hasattr(loss, "start") or any(not p.numel() for p in loss.parameters())):
                    raise NotApplicable(f"loss {label!r}: {SEVERAL.reason}")
                images_alone = own.of(term.rows) is not own and not own.of(term.rows).student.embedding
                if images_alone and not getattr(loss, "reads_maps", True):
                    raise NotApplicable(f"{label} reads no feature map, and the rows {term.rows!r} have nothing else")
                if not isinstance(loss, nn.Module):
                    raise PluginError(f"loss {label!r}: its factory made {type(loss).__name__}, not an nn.Module")
                self.losses[label] = loss
            except NotApplicable as error:
                if not term.optional:
                    raise
                log.warning("term %s is left out: %s", label, SEVERAL.reason if own.members else error)
                continue
            self.terms[label] = term
        if not self.terms:
            raise UserError("the method has no term with a weight other than 0")
        if not any(term.main for term in self.terms.values()):
            raise UserError("the method has only terms for initial epochs: give it one with main=True")
        self.previews = any(term.previewed for term in self.terms.values())
        self.needs_teacher = needs_teacher(list(self.terms.values()))
        self.row_sets = tuple(dict.fromkeys(term.rows for term in self.terms.values()))
        heads = [loss for loss in self.losses.values() if hasattr(loss, "predict")]
        if len(heads) > 1:
            raise UserError("two terms both say how the student answers; use one of them")
        self._head = heads[:1]

    def _own_setup(self, label: str, term: Term) -> Setup:
        """That of the term's teacher."""
        at, known = term.teacher, len(self.setup.members)
        if at is not None and (not isinstance(at, int) or not 1 <= at <= known):
            raise UserError(f"term {label}: its teacher {at!r} is none of the {known} teachers of this objective")
        return self.setup.of_teacher(at)

    @property
    def _rules(self) -> list[CenterRule]:
        return [*self.centers.rules.values()] if isinstance(self.centers, CentersOfEach) else [self.centers]

    @property
    def reads_maps(self) -> bool:
        """Whether anything here may look at feature maps: all that does not say ``reads_maps = False``."""
        readers: list[object] = [*self.losses.values()]
        if self.previews:
            readers.append(self.difficulty)
        if self.updates_centers:
            readers += self._rules
        return any(getattr(reader, "reads_maps", True) for reader in readers)

    def check_reads(self, student: Output, teacher: Output, instances: Instances) -> bool:
        """Refuse, by its name, what looks at something that is not there: an embedding, a classifier's rows, labels.

        A copy computes every term once, so that no memory here changes. Of a loss with a large one, another of the same
        kind does, for as few samples as these instances need.

        Args:
            student, teacher, instances: as in a step, with :class:`registry.Absent` for what is not there.

        Returns:
            whether any term trains what the student answers with: its logits, its classifier's rows, or a loss's head.

        Raises:
            NotApplicable: names the first loss that looks at it, and says what would work.
        """
        tried = copied(self, self._small(int(instances.index.max()) + 1))
        tried._asked = self._rule_says
        stages: tuple[Literal["main", "initial"], ...] = ("main", "initial")
        answers = bool(self._head)
        layer = _Layer(student)
        for stage in stages:
            try:
                if any(term.initial if stage == "initial" else term.main for term in self.terms.values()):
                    centers = tried.find_centers(layer, *map(_Layer, teacher.members or [teacher]))
                    values = tried(student, teacher, Context(instances, centers, stage=stage))
                    trained = [x for x in (student.logits, *layer.parameters()) if x.requires_grad]
                    if trained and values["loss"].requires_grad:
                        found = torch.autograd.grad(values["loss"], trained, allow_unused=True)
                        answers = answers or any(gradient is not None for gradient in found)
                if tried.updates_centers:
                    tried._asked = tried._rule_says
                    tried.update_centers(student.detach(), teacher.detach(), instances.labels)
            except NotApplicable as error:
                named = str(error).startswith(tried._asked)
                raise NotApplicable(str(error) if named else f"{tried._asked}: {error}") from None
            except PluginError as error:
                # As one that has made layers of width 0.
                if not (lacking := _lacking(self.setup)):
                    raise
                raise NotApplicable(f"{tried._asked}: {lacking[0]}") from error
        return answers

    def _small(self, samples: int) -> dict[nn.Module, nn.Module]:
        """Losses whose buffers are large, and each made anew for fewer samples."""
        small: dict[nn.Module, nn.Module] = {}
        for label, loss in self.losses.items():
            if sum(buffer.numel() * buffer.element_size() for buffer in loss.buffers()) >= LARGE:
                setup = self._own_setup(label, self.terms[label])
                few = min(setup.num_samples, max(samples, FEW))
                small[loss] = _made(label, self.terms[label], setup._replace(num_samples=few)).train(loss.training)
        return small

    def check_rows(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Refuse too few rows, or too few views of an image, before the first step.

        Args:
            sizes: of each set of rows in the smallest batch: how many rows, and how many of these show one image.

        Raises:
            NotApplicable: a loss compares more views of an image, or more rows, than the loader will show.
        """
        for label, loss in self.losses.items():
            rows, views = sizes[self.terms[label].rows]
            needed = getattr(loss, "needs_views", 1)
            if views < needed:
                raise NotApplicable(
                    f"{label} compares {needed} or more views of an image, but views={views}; leave views out"
                )
            needed = getattr(loss, "needs_rows", 1)
            if rows < needed:
                raise NotApplicable(
                    f"{label} compares {needed} or more rows of a batch, and the smallest batch has {rows} for it; "
                    "use a larger batch"
                )

    def initial_epochs(self, epochs: int) -> int:
        """How many epochs come before a schedule of ``epochs``: the longest that a term asks for, scaled to it."""
        asked = max(term.initial for term in self.terms.values())
        return max(1, round(asked * epochs / PUBLISHED_EPOCHS)) if asked else 0

    @property
    def inherits(self) -> bool:
        """Whether a loss sets weights of the student before the first step."""
        losses = self.losses.values()
        return any(hasattr(loss, "start") and getattr(loss, "inherit", "") != "nothing" for loss in losses)

    def check_start(self, student: nn.Module, *teachers: nn.Module) -> None:
        """Let the losses that ask for it refuse a pair that :meth:`start` cannot work on; both may be untrained."""
        for label, loss in self.losses.items():
            if hasattr(loss, "check_start"):
                at = _position(self.terms[label]) or 1
                ask(f"loss {label!r}", loss.check_start, student, teachers[at - 1])  # type: ignore[arg-type]

    @torch.no_grad()
    def start(self, student: nn.Module, *teachers: nn.Module) -> None:
        """Let the losses that ask for it set weights of the student, once, before the first step of a new run."""
        for label, loss in self.losses.items():
            if hasattr(loss, "start"):
                at = _position(self.terms[label]) or 1
                ask(f"loss {label!r}", loss.start, student, teachers[at - 1] if teachers else None)  # type: ignore

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

    def find_centers(self, student_net: nn.Module, *teacher_nets: nn.Module) -> Centers:
        """The category centers now, by the center rule; of several teachers those of each one, too."""
        centers: Centers = ask(self._rule_says, self.centers, student_net, *teacher_nets)
        if "centers" not in self._checked:
            self._check_centers(centers)
            for position, own in centers.members.items() if isinstance(centers, _Several) else ():
                self._check_centers(own, position)
            self._checked.add("centers")
        return centers

    def _check_centers(self, centers: object, position: int | None = None) -> None:
        shapes = self.setup.of_teacher(position)[:2]
        check_centers(self._rule_says, centers, [(own.num_classes, own.embedding) for own in shapes])

    @property
    def updates_centers(self) -> bool:
        """Whether the center rule looks at what each step has seen."""
        return any(type(rule).update is not CenterRule.update for rule in self._rules)

    @torch.no_grad()
    def update_centers(self, student: Output, teacher: Output, labels: Tensor) -> None:
        """Tell the center rule what a step has seen: [N, ...] of all processes, labels [N]."""
        ask(self._rule_says, self.centers.update, student, teacher, labels)

    def forward(self, student: Output, teacher: Output, context: Context) -> dict[str, Tensor]:
        """Value of every term as it enters the sum, and ``loss``, the sum itself.

        Where the method previews, also ``preview_weight`` (mean weight) and ``previewed`` (share of the judged rows
        with a weight below 1), without gradient.

        Args:
            student: [N, ...]; teacher: [N, ...], a constant; context: of all N rows, with their named sets.

        Raises:
            UserError: a loss, the metric or the scheduler breaks its contract; names it.
            PluginError: one of them raised an error.
        """
        try:
            return self._values(student, teacher.detach(), context)
        except Exception as error:
            if str(error) == SEVERAL.reason:
                raise NotApplicable(f"{self._asked}: {error}") from None
            raise_named(self._asked, error)

    def _values(self, student: Output, teacher: Output, context: Context) -> dict[str, Tensor]:
        instances, centers = context.instances, context.centers
        shown = {}
        wanted = [(term.rows, _position(term)) for term in self.terms.values()]
        for name, position in dict.fromkeys([(instances.judged, None), *wanted]):
            which = instances.rows(name).which
            own = context.select(name)
            if isinstance(centers, _Several):
                own = replace(own, centers=Centers(*centers) if position is None else centers.members[position])
            shown[name, position] = student.rows(which), teacher.of_teacher(position).rows(which), own
        weights = self.weights(*shown[instances.judged, None]) if self.previews else None
        values: dict[str, Tensor] = {}
        for label, term in self.terms.items():
            if not (term.initial if context.stage == "initial" else term.main):
                continue
            self._asked = f"loss {label!r}"
            given = shown[term.rows, _position(term)]
            if term.head:
                given = given[0]._replace(logits=_layer(given[0].layers, term.head)), *given[1:]
            if term.standardize:
                ours, theirs = (output._replace(logits=standardize(output.logits)) for output in given[:2])
                given = ours, theirs, given[2]
            rows = given[2].instances
            if len(rows) < 2 and isinstance(instances.rows(term.rows).which, Tensor):
                # Too few foreground rows in this batch: no loss, and a gradient of 0 for data parallelism.
                values[label] = 0.0 * student.logits.sum()
                continue
            with record_function(f"pckd.term:{label}"):
                value = self.losses[label](*given)
            if (stage_and_label := f"{context.stage} {label}") not in self._checked:
                check_values(label, value, len(rows), previewed=term.previewed)
                self._checked.add(stage_and_label)
            if weights is not None and term.previewed:
                value = value * _weights_of(rows, weights, instances)
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

    def apart(self, values: Mapping[str, Tensor], batches: int = 1) -> tuple[Tensor | None, Tensor | None]:
        """What :meth:`forward` gave, over ``batches``, as two sums: of the terms that look at no teacher, and of those
        that do; None where there are none with a gradient."""
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for label, term in self.terms.items():
            if label in values and values[label].requires_grad:
                sides[says(term, "needs_teacher")].append(values[label] / batches)
        task, distillation = (torch.stack(side).sum() if side else None for side in sides)
        return task, distillation

    @record_function("pckd.preview")
    @torch.no_grad()
    def weights(self, student: Output, teacher: Output, context: Context) -> Tensor:
        """Weight of each judged row, [J]; a constant of the step.

        Difficulty is relative to the batch, so that processes that train together look at all their rows. A student
        that answers with the head of a loss is judged by that answer: its own classifier may be untrained.
        """
        if self._head:
            student = student._replace(logits=self.predict(student))
        rows = len(context.index)
        if world_size() > 1:
            student, teacher = gather_output(student), gather_output(teacher)
            labels, index, group = map(gather_rows, (context.labels, context.index, context.group))
            targets = None if context.targets is None else gather_rows(context.targets)
            context = replace(context, instances=Instances(labels, index, targets=targets, group=group))
        self._asked = self._metric_says
        difficulty = self.difficulty(student, teacher, context)
        difficulty = check_per_row(self._asked, "difficulty", difficulty, context)
        self._asked = self._scheduler_says
        weights = check_per_row(self._asked, "weight", self.scheduler(difficulty, context), context)
        self._look(difficulty, weights, (student, teacher), context)
        return own_rows(weights, rows)

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
            raise UserError(
                f"{self._scheduler_says} gave a weight that is not finite: a weight must be a number, 0 or above"
            )
        present = (x for output in seen for x in (output.logits, output.embedding) if not isinstance(x, Absent))
        if all(bool(x.isfinite().all()) for x in present):
            raise UserError(f"{self._metric_says} gave a difficulty that is not finite: it must be 0 or above")

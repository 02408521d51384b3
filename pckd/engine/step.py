"""One step of training, top to bottom: networks, centers, difficulty, weights, losses, backward, optimizer, centers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pckd.engine.precision import autocast
from pckd.engine.teacher import FrozenTeacher
from pckd.functional import gather_output, gather_rows
from pckd.objective import Objective
from registry import Batch, CenterRule, Context, Output

ViewStatistics = Literal["joint", "own"]
"""See :class:`Trainee`."""


class Moment(NamedTuple):
    """Where in the run a step is; the fields are those of :class:`registry.Context`."""

    epoch: int
    """Counted from 1, within the stage; so are the next two."""
    epochs: int
    progress: float
    stage: Literal["initial", "main"] = "main"


class Trainee(nn.Module):
    """All that is trained, in one module: the student, and the objective with its projections.

    In one module, so that data parallelism, wrapped around it, reduces the gradients of both.

    Args:
        view_statistics: ``"joint"``: the batch norms normalize all views of a batch together, as published. ``"own"``:
            each view by its own statistics, and evaluation by the upright view's, which is what it shows.
    """

    def __init__(self, student: nn.Module, objective: Objective, *, view_statistics: ViewStatistics = "joint") -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.view_statistics = view_statistics

    def forward(
        self,
        batch: Batch,
        teacher_output: Output | None,
        teacher: FrozenTeacher | None,
        moment: Moment,
        strong: bool,
    ) -> tuple[dict[str, Tensor], Output, Output]:
        """The objective's values, the student's output and the teacher's, for all rows.

        Where there is no teacher, the student stands in its place.
        """
        views = batch.views.shape[1]
        output = self._answer(batch.views)
        if teacher_output is None:
            teacher_output = output.detach()
        centers = self.objective.centers(self.student, self.student if teacher is None else teacher)
        context = Context(
            labels=batch.labels.repeat_interleave(views),
            index=batch.index.repeat_interleave(views),
            centers=centers,
            views=views,
            strong=strong,
            **moment._asdict(),
        )
        return self.objective(output, teacher_output, context), output, teacher_output

    def _answer(self, views: Tensor) -> Output:
        """The student's output for [B, V, C, H, W], image by image as in the batch."""
        if self.view_statistics == "joint" or views.shape[1] == 1:
            output: Output = self.student(views.flatten(0, 1))
            return output
        upright, *others = views.unbind(1)
        with _running_statistics_kept(self.student):
            outputs = [self.student(view) for view in others]
        outputs.insert(0, self.student(upright))
        rest = iter(zip(*(_tensors(output) for output in outputs), strict=True))
        return outputs[0].apply(lambda _: torch.stack(next(rest), 1).flatten(0, 1))


def _tensors(output: Output) -> list[Tensor]:
    """All tensors of an output, in the order of :meth:`Output.apply`."""
    found: list[Tensor] = []
    output.apply(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@contextlib.contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms in train mode use their batch's statistics without counting them for evaluation."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]
    try:
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def train_step(
    batch: Batch,
    *,
    trainee: nn.Module,
    teacher: FrozenTeacher | None,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    precision: str,
    moment: Moment,
    strong: bool = False,
    check: Callable[[dict[str, Tensor]], bool] | None = None,
    keep: Callable[[Batch, Output], Output] | None = None,
) -> tuple[dict[str, Tensor], Output]:
    """One step: what the loop repeats and what the profiler measures.

    Args:
        trainee: a :class:`Trainee`, or data parallelism around one. strong: whether the last view is a strongly
            augmented one. check: looks at the values before the optimizer steps, and may refuse the step. keep: is
            given the teacher's answer, where it was asked, and returns it as it will be recalled.

    Returns:
        the objective's values, and the student's output for all rows.
    """
    with autocast(precision, device):
        answer = batch.recalled
        if teacher is not None and answer is None:
            answer = teacher(batch.views.flatten(0, 1))
            if keep is not None:
                answer = keep(batch, answer)
        values, student_output, teacher_output = trainee(batch, answer, teacher, moment, strong)

    optimizer.zero_grad(set_to_none=True)
    values["loss"].backward()
    if check is None or check(values):
        optimizer.step()
        update_centers(trainee, student_output.detach(), teacher_output, batch)
    return values, student_output


def update_centers(trainee: nn.Module, student: Output, teacher: Output, batch: Batch) -> None:
    """Tell the center rule what the step has seen, on all processes together."""
    inner = getattr(trainee, "module", trainee)
    assert isinstance(inner, Trainee)
    if getattr(type(inner.objective.centers), "update", None) is CenterRule.update:
        # Nothing to tell, and at hundreds of processes nothing to send.
        return
    labels = gather_rows(batch.labels.repeat_interleave(batch.views.shape[1]))
    inner.objective.centers.update(gather_output(student), gather_output(teacher), labels)

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import matched, paired, paired_shapes
from pckd.ops import full
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def vid(predicted_mean: Tensor, target: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Variational information distillation (Ahn et al., arXiv 1904.05835, -log q(t|s)); [N].

    Negative log-likelihood, up to a constant, of the teacher's map under a Gaussian whose mean the student predicts:
    ((t - mu)^2 / var + log var) / 2, with one var = log(1 + exp(log_scale)) + eps a channel; mean over C, H and W.

    Args:
        predicted_mean: [N, C, Hs, Ws], mu; target: [N, C, Ht, Wt]; constant. Of two sizes the larger is average
            pooled.
        log_scale: [C]. eps: the least variance.
    """
    mean, target = matched(predicted_mean, target)
    variance = (F.softplus(full(log_scale)) + eps)[:, None, None]
    return ((mean - target).square() / variance + variance.log()).flatten(1).mean(1) / 2


LEAST_VARIANCE = 1e-5


@LOSSES.register("vid")
class VariationalInformation(nn.Module):
    """Likelihood of the teacher's maps under Gaussians that the student predicts; [N] (Ahn et al., arXiv 1904.05835).

    For each stage three 1x1 convolutions predict the mean; the variance is one parameter a channel.
    """

    def __init__(self, setup: Setup, *, init_variance: float = 5.0) -> None:
        super().__init__()
        if not init_variance > LEAST_VARIANCE:
            raise UserError(f"vid: init_variance must be above {LEAST_VARIANCE}, not {init_variance}")
        # The inverse of softplus, which overflows for no variance.
        free = init_variance - LEAST_VARIANCE
        start = free + math.log(-math.expm1(-free))
        self.regressors, self.log_scales = nn.ModuleList(), nn.ParameterList()
        pairs = paired_shapes("vid", setup.student.maps[1:], setup.teacher.maps[1:])
        for (width, *_), (target, *_) in pairs:
            first, second, third = (nn.Conv2d(w, target, 1, bias=False) for w in (width, target, target))
            self.regressors.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))
            self.log_scales.append(nn.Parameter(torch.full((target,), start)))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = paired(student.maps[1:], teacher.maps[1:])
        values = []
        for pair, regress, log_scale in zip(pairs, self.regressors, self.log_scales, strict=True):
            source, target = matched(*pair)
            values.append(vid(regress(source), target, log_scale, LEAST_VARIANCE))
        return torch.stack(values).sum(0)


@METHODS.register("vid", paper="Ahn et al., arXiv 1904.05835", year=2019)
def vid_method(ce: float = 1.0, weight: float = 1.0, init_variance: float = 5.0) -> list[Term]:
    """Variational information distillation (Ahn et al. 2019): cross entropy plus predicted maps of the stages."""
    return [Term("cross_entropy", ce), Term("vid", weight, options={"init_variance": init_variance})]

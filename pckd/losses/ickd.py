from __future__ import annotations

from torch import Tensor, nn

from pckd.ops import exact, full, unit
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term


def channel_correlation(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Inter-channel correlation L_ICKD-C (Liu et al., arXiv 2202.03680): sum of (G_s - G_t)^2 over C; [N].

    With F the map as a [C, H * W] matrix, G = F F^T is C x C: its size does not depend on H and W. Its rows are
    normalized and the squares divided by C, as in the released code for CIFAR.

    Args:
        student_map: [N, C, H, W], already projected to the teacher's channels.
        teacher_map: [N, C, H', W']; constant; another resolution is fine.

    Raises:
        ValueError: the numbers of channels differ.
    """
    if student_map.shape[1] != teacher_map.shape[1]:
        raise ValueError(
            f"channel_correlation needs maps of as many channels, got {student_map.shape[1]} and "
            f"{teacher_map.shape[1]}: project the student's first"
        )
    with exact(student_map):
        student, teacher = (full(x).flatten(2) for x in (student_map, teacher_map.detach()))
        difference = unit(student @ student.mT) - unit(teacher @ teacher.mT)
        return difference.square().sum(dim=(1, 2)) / student.shape[1]


@LOSSES.register("channel_correlation")
class ChannelCorrelation(nn.Module):
    """Correlations between the channels of the last map; [N] (Liu et al., arXiv 2202.03680, ICKD-C).

    The student's map is projected to the teacher's channels by a 1 x 1 convolution and a batch norm, as released.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        if not (setup.student.maps and setup.teacher.maps):
            raise NotApplicable("channel_correlation needs feature maps, and one of the networks returns none")
        student, teacher = setup.student.maps[-1][0], setup.teacher.maps[-1][0]
        self.embed = nn.Sequential(nn.Conv2d(student, teacher, 1, bias=False), nn.BatchNorm2d(teacher))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return channel_correlation(self.embed(student.maps[-1]), teacher.maps[-1])


@METHODS.register("ickd", paper="Liu et al., arXiv 2202.03680", year=2021)
def ickd(ce: float = 1.0, kd: float = 0.0, weight: float = 2.5, temperature: float = 4.0) -> list[Term]:
    """Inter-channel correlation (Liu et al. 2021): cross entropy plus correlations between channels.

    As in the paper's row without KL; ``kd=1`` adds it, as its other row does.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, options={"temperature": temperature}),
        Term("channel_correlation", weight),
    ]

from __future__ import annotations

from torch import Tensor, nn

from pckd.losses.maps import read_map
from pckd.ops import full, mean_square
from registry import LOSSES, METHODS, Context, Output, Setup, Term


def feature_statistic(adapted_map: Tensor, teacher_embedding: Tensor) -> Tensor:
    """L_FM of SRRL: mean squared difference of the features' means over space; [N] (Yang et al., ICLR 2021).

    Args:
        adapted_map: [N, Dt, H, W], the student's last map after the adapter.
        teacher_embedding: [N, Dt], the teacher's last map averaged over space; constant.

    Raises:
        ValueError: the widths differ.
    """
    return mean_square(full(adapted_map).mean((2, 3)), teacher_embedding, "feature_statistic")


def softmax_regression(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """L_SR of SRRL as released: mean squared difference of the teacher's classifier on both features; [N] (ICLR 2021).

    Args:
        student_logits: [N, K], the teacher's classifier on the student's adapted feature.
        teacher_logits: [N, K]; constant.

    Raises:
        ValueError: the shapes differ.
    """
    return mean_square(student_logits, teacher_logits, "softmax_regression")


@LOSSES.register("srrl")
class SoftmaxRegression(nn.Module):
    """Adapted features matched to the teacher's, and judged by its frozen classifier; [N] (Yang et al., ICLR 2021).

    The adapter is Conv2d(1x1), BatchNorm2d, ReLU, on the map that the student's classifier reads; on the embedding
    where that map is not at hand.
    """

    reads_rows = True

    def __init__(self, setup: Setup, *, feature: float = 1.0, regression: float = 1.0) -> None:
        super().__init__()
        self.feature, self.regression = feature, regression
        width = setup.teacher.embedding
        convolution = nn.Conv2d(setup.student.embedding, width, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.adapter = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = setup.frozen_classifier()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        read = read_map(student)
        adapted = self.adapter(student.embedding[:, :, None, None] if read is None else read)
        statistic = feature_statistic(adapted, teacher.embedding)
        regression = softmax_regression(self.classifier(adapted.mean((2, 3))), teacher.logits)
        return self.feature * statistic + self.regression * regression


@METHODS.register("srrl", paper="Yang et al., Softmax Regression Representation Learning, ICLR", year=2021)
def srrl(ce: float = 1.0, feature: float = 1.0, regression: float = 1.0) -> list[Term]:
    """Softmax regression representation learning (Yang et al. 2021).

    Two forms are published. The authors adapt the map and then average it, as here. SimKD's benchmark adapts the
    averaged vector, which is another loss, and adds KD: its figures are not those of this method.

    Args:
        ce: weight of the cross entropy.
        feature: of the feature statistic. regression: of the squared error of the logits.
    """
    return [Term("cross_entropy", ce), Term("srrl", options={"feature": feature, "regression": regression})]

from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("srrl")
class SoftmaxRegression(nn.Module):
    """Adapted features matched to the teacher's, and judged by its frozen classifier; [N] (Yang et al., ICLR 2021).

    The adapter is Conv2d(1x1), BatchNorm2d, ReLU, on the map that the student's classifier reads; on the embedding
    where that map is not at hand.
    """

    def __init__(self, setup: Setup, *, feature: float = 1.0, regression: float = 1.0) -> None:
        super().__init__()
        self.feature, self.regression = feature, regression
        width = setup.teacher.embedding
        convolution = nn.Conv2d(setup.student.embedding, width, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.adapter = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = setup.frozen_classifier()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        read = functional.read_map(student)
        adapted = self.adapter(student.embedding[:, :, None, None] if read is None else read)
        statistic = functional.feature_statistic(adapted, teacher.embedding)
        regression = functional.softmax_regression(self.classifier(adapted.mean((2, 3))), teacher.logits)
        return self.feature * statistic + self.regression * regression


@METHODS.register("srrl", paper="Yang et al., Softmax Regression Representation Learning, ICLR", year=2021)
def srrl(ce: float = 1.0, feature: float = 1.0, regression: float = 1.0) -> list[Term]:
    """Softmax regression representation learning (Yang et al. 2021).

    Args:
        ce: weight of the cross entropy.
        feature: of the feature statistic. regression: of the squared error of the logits.
    """
    return [Term("cross_entropy", ce), Term("srrl", options={"feature": feature, "regression": regression})]

"""Center rules: where the centers are, and updates by hand. What any rule promises is in test_contracts.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pckd.testing import check_center_rule
from registry import CENTER_RULES, CenterRule, Output, Setup, Shapes, UserError, build

CLASSES, STUDENT, TEACHER = 3, 2, 4
SETUP = Setup(Shapes(CLASSES, STUDENT), Shapes(CLASSES, TEACHER))


class Net(nn.Module):
    """As much of a network as a center rule looks at."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, CLASSES, bias=bias)


@pytest.fixture
def nets() -> tuple[Net, Net]:
    torch.manual_seed(0)
    return Net(STUDENT), Net(TEACHER)


def output(embedding: list[list[float]]) -> Output:
    rows = torch.tensor(embedding)
    return Output(torch.zeros(len(rows), CLASSES), rows)


def rule(spec: str) -> CenterRule:
    torch.manual_seed(0)
    made: CenterRule = build(CENTER_RULES, spec, SETUP)
    return made


def step(made: CenterRule, student: list[list[float]], labels: list[int]) -> None:
    """One update; the teacher's embedding is the student's, twice side by side and negative."""
    teacher = [[-x for x in row + row] for row in student]
    made.update(output(student), output(teacher), torch.tensor(labels))


def test_classifier_rows_are_the_centers(nets: tuple[Net, Net]) -> None:
    centers = rule("classifier")(*nets)
    student, teacher = (net.classifier for net in nets)
    assert centers.student is student.weight
    assert centers.student_bias is student.bias
    assert centers.teacher.equal(teacher.weight)
    assert centers.teacher_bias is not None
    assert centers.teacher_bias.equal(teacher.bias)
    centers = rule("classifier")(Net(STUDENT, bias=False), Net(TEACHER, bias=False))
    assert centers.student_bias is None
    assert centers.teacher_bias is None


def test_learnable_centers_get_gradient(nets: tuple[Net, Net]) -> None:
    made = rule("learnable")
    (parameter,) = made.parameters()
    centers = made(*nets)
    centers.student.square().sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.any(dim=1).all()
    assert centers.teacher.equal(nets[1].classifier.weight)


def close(tensor: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(tensor, torch.tensor(expected))


def test_ema_by_hand(nets: tuple[Net, Net]) -> None:
    made = rule("ema(momentum=0.75, raw=True)")
    row = nets[0].classifier.weight[2].tolist()
    step(made, [[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], [0, 0, 1])
    # The first mean is taken whole; class 2 has not been seen and has its classifier's row.
    close(made(*nets).student, [[2.0, 3.0], [10.0, 20.0], row])
    step(made, [[6.0, 7.0]], [0])
    close(made(*nets).student, [[0.75 * 2 + 0.25 * 6, 0.75 * 3 + 0.25 * 7], [10.0, 20.0], row])
    close(made(*nets).teacher[:2], [[-3.0, -4.0, -3.0, -4.0], [-10.0, -20.0, -10.0, -20.0]])
    assert made(*nets).teacher[2].equal(nets[1].classifier.weight[2])


def test_ema_default_momentum_is_0_9(nets: tuple[Net, Net]) -> None:
    made = rule("ema(raw=True)")
    for value in (0.0, 10.0):
        step(made, [[value, value]], [0])
    close(made(*nets).student[:1], [[1.0, 1.0]])


def test_batch_mean_by_hand(nets: tuple[Net, Net]) -> None:
    made = rule("batch_mean(raw=True)")
    row = nets[0].classifier.weight[2].tolist()
    step(made, [[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]], [0, 0, 1])
    step(made, [[6.0, 7.0], [8.0, 9.0]], [0, 0])
    close(made(*nets).student, [[7.0, 8.0], [10.0, 20.0], row])


@pytest.mark.parametrize("name", ["ema", "batch_mean"])
def test_means_lie_as_the_rows_do(name: str, nets: tuple[Net, Net]) -> None:
    made = rule(name)
    student, teacher = (net.classifier.weight for net in nets)
    with torch.no_grad():
        student.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]))  # of length 5, 1, 10: 16 / 3 on average
    # One class alone has nothing to lie around.
    step(made, [[1.0, 2.0]], [0])
    assert made(*nets).student.equal(student)
    # Less their mean (5, 5) the two are (-4, -3) and (4, 3), of length 5 each.
    step(made, [[1.0, 2.0], [9.0, 8.0]], [0, 1])
    scale = 16 / 15
    close(made(*nets).student, [[-4 * scale, -3 * scale], [4 * scale, 3 * scale], [6.0, 8.0]])
    theirs = made(*nets).teacher
    direction = torch.tensor([4.0, 3.0, 4.0, 3.0]) / 50**0.5
    torch.testing.assert_close(theirs[:2], teacher.norm(dim=1).mean() * torch.stack([direction, -direction]))
    assert theirs[2].equal(teacher[2])
    # All classes: (1, 2), (9, 8), (2, 8) less (4, 6) are (-3, -4), (5, 2), (-2, 2).
    step(made, [[2.0, 8.0]], [2])
    scale = 16 / (5 + 29**0.5 + 8**0.5)
    close(made(*nets).student, [[-3 * scale, -4 * scale], [5 * scale, 2 * scale], [-2 * scale, 2 * scale]])


@pytest.mark.parametrize("name", ["ema(raw=True)", "batch_mean(raw=True)"])
def test_the_row_of_an_unseen_class_follows_the_classifier(name: str, nets: tuple[Net, Net]) -> None:
    made = rule(name)
    step(made, [[1.0, 2.0]], [0])
    with torch.no_grad():
        nets[0].classifier.weight.fill_(9)
    close(made(*nets).student, [[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]])


@pytest.mark.parametrize("name", ["ema(raw=True)", "batch_mean(raw=True)"])
def test_raw_means_keep_the_contract(name: str) -> None:
    check_center_rule(name)


def test_embeddings_in_half_precision_are_averaged_in_full(nets: tuple[Net, Net]) -> None:
    made = rule("ema(raw=True)")
    values = torch.full((1000, STUDENT), 1.0, dtype=torch.bfloat16)
    teacher = torch.full((1000, TEACHER), 1.0, dtype=torch.bfloat16)
    labels = torch.zeros(1000, dtype=torch.int64)
    made.update(Output(values, values), Output(values, teacher), labels)
    centers = made(*nets)
    assert centers.student.dtype == torch.float32
    close(centers.student[:1], [[1.0, 1.0]])


@pytest.mark.parametrize("momentum", [-0.1, 1, 2])
def test_ema_refuses_a_momentum_outside_of_its_range(momentum: float) -> None:
    with pytest.raises(UserError, match="momentum"):
        rule(f"ema(momentum={momentum})")

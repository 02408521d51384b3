"""Losses of whole-image feature maps: cases computed by hand, invariances, masks, memory, and who refuses them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pckd import functional as pf
from pckd.losses.fgd import attention
from pckd.losses.ifvd import to_prototypes
from pckd.losses.levels import cells_of, labels_at, mean_where, on_images
from pckd.losses.mgd import masked
from pckd.tasks.classification import Classification, image_views
from pckd.testing.cases import IMAGES, Case, losses_of_views, make_case, methods_of_views, objective_of
from registry import (
    LOSSES,
    METHODS,
    Boxes,
    Centers,
    Context,
    Instances,
    NotApplicable,
    Output,
    Setup,
    Shapes,
    Term,
    UserError,
    build,
)

T = torch.tensor
E = math.e
P, Q = E / (E + 1), 1 / (E + 1)
"""Softmax of (1, 0)."""
OF_LAYERS = {name for name in LOSSES.names() if getattr(LOSSES.get(name), "reads_layers", False)}
OF_IMAGES = sorted(set(LOSSES.names()) - {*losses_of_views(), *OF_LAYERS, "network_losses", "crosskd", "ld"})
MAPS_ALONE = ("cirkd_batch", "cwd", "mgd", "pkd", "skd")
"""They need neither boxes nor pixels, and run in classification, too."""


def grid(*rows: tuple[float, ...]) -> Tensor:
    """A map of one image and one channel, [1, 1, H, W]."""
    return T(rows).float()[None, None]


def cells(*features: tuple[float, ...]) -> Tensor:
    """A map of one image whose cells, in one row, have these features: [1, C, 1, W]."""
    return T(features).T[None, :, None]


def boxes(*corners: tuple[float, float, float, float], image: tuple[int, ...] = ()) -> Boxes:
    count = len(corners)
    where = T(image) if image else torch.zeros(count, dtype=torch.long)
    return Boxes(T(corners).view(count, 4), torch.ones(count, dtype=torch.long), where)


LOW, HIGH = grid((1.0, 2.0), (3.0, 4.0)), grid((4.0, 3.0), (2.0, 1.0))
FLAT, PEAK = torch.zeros(1, 1, 2, 2), grid((math.log(3), 0.0), (0.0, 0.0))
LEFT, OTHERS = grid((3.0, 1.0), (1.0, 1.0)), torch.ones(1, 1, 2, 2)
TWO = torch.cat([grid((0.0, 0.0)), grid((0.0, 4.0))])
UP, BOTH = cells((1.0, 0.0), (1.0, 0.0)), cells((1.0, 0.0), (0.0, 1.0))
CORNER = T([[[1.0, 0.0], [0.0, 0.0]]])
VARIED = torch.tensor([[[[1.0, 0.0], [1.0, 5.0]], [[0.0, 1.0], [0.0, 5.0]]]])
RIGHT = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 2, 2)

BY_HAND: dict[str, tuple[Tensor, list[float]]] = {
    # 1 - correlation: of a line with itself, with the falling one, and with one that has nothing to do with it.
    "pkd of a scaled map": (pf.pearson_distance(LOW, 3 * LOW - 7), [0.0]),
    "pkd of the opposite": (pf.pearson_distance(LOW, HIGH), [2.0]),
    "pkd of another": (pf.pearson_distance(LOW, grid((1.0, -1.0), (-1.0, 1.0))), [1.0]),
    "pkd is the mean over channels": (pf.pearson_distance(LOW.repeat(1, 2, 1, 1), torch.cat([LOW, HIGH], 1)), [1.0]),
    # Normalized over both images: -1, -1, -1, 3 over the root of 12, against zeros.
    "pkd has a part for each image": (pf.pearson_distance(TWO, torch.zeros_like(TWO)), [1 / 6, 5 / 6]),
    # A half and three sixths against four quarters.
    "cwd": (pf.channel_divergence(FLAT, PEAK), [math.log(4 / 3) / 2]),
    "cwd at a temperature": (pf.channel_divergence(FLAT, 2 * PEAK, 2.0), [4 * math.log(4 / 3) / 2]),
    "cwd ignores a shift": (pf.channel_divergence(FLAT + 5, PEAK - 3), [math.log(4 / 3) / 2]),
    "cwd is the mean over channels": (
        pf.channel_divergence(FLAT.repeat(1, 2, 1, 1), torch.cat([PEAK, FLAT], 1)),
        [math.log(4 / 3) / 4],
    ),
    # Six of sixteen similarities are -1 instead of 1.
    "skd": (pf.pairwise_similarity([OTHERS], [grid((1.0, 1.0), (1.0, -2.0))], level=-1), [6 * 4 / 16]),
    "skd of one patch": (pf.pairwise_similarity([LOW], [-HIGH], scale=1.0, level=-1), [0.0]),
    # To 1, 1, 1, -1.
    "skd pools by the maximum": (
        pf.pairwise_similarity(
            [torch.ones(1, 1, 4, 4)], [grid((1, -5, 1, 1), (-5, -5, 1, 1), (1, 1, -1, -1), (1, 1, -1, -1))], level=-1
        ),
        [1.5],
    ),
    "skd sums levels": (pf.pairwise_similarity([OTHERS] * 2, [grid((1.0, 1.0), (1.0, -2.0))] * 2, level=None), [3.0]),
    # Class 0 has (1, 0) and (0, 1), both at 45 degrees from their mean; the others are 1 in both networks.
    "ifvd": (
        pf.intra_class_variation(VARIED, RIGHT, T([[[0, 0], [1, -1]]]), 2),
        [2 * (1 - math.sqrt(0.5)) ** 2 / 4],
    ),
    "ifvd where nothing has a class": (pf.intra_class_variation(VARIED, RIGHT, torch.full((1, 2, 2), -1), 2), [0.0]),
    # The teacher's cells are alike, so that each similarity has a half; the student's are (1, 0) and (0, 1).
    "cirkd": (
        pf.cross_image_relations([BOTH], [UP], temperature=1.0, level=-1),
        [-math.log(2) - math.log(P * Q) / 2],
    ),
    # The first image is that again with itself; with the second, alike in both networks, there is nothing to tell.
    "cirkd over two images": (
        pf.cross_image_relations([torch.cat([BOTH, UP])], [torch.cat([UP, UP])], temperature=1.0, level=-1),
        [(-math.log(2) - math.log(P * Q) / 2) / 2] * 2,
    ),
    "cirkd of pooled patches": (
        pf.cross_image_relations([BOTH], [UP], temperature=1.0, patch=2, level=-1),
        [0.0],
    ),
    # Squares 4, 1, 1, 1, halved: 2 on the object, a half beside it.
    "defeat": (pf.decoupled_imitation(grid((2.0, 1.0), (1.0, 1.0)), FLAT, CORNER, 3.0, 12.0), [3 * 2 + 12 * 0.5]),
    # A teacher of equal magnitudes pays equal attention.
    "fgd, focal": (pf.focal(LEFT, OTHERS, CORNER / 2, 0.5), [4 / 2]),
    "fgd, focal where the teacher looks": (pf.focal(PEAK + 1, PEAK, CORNER, 1.0), [2.0]),
    "fgd, attention": (pf.attention_difference(PEAK, FLAT, 1.0), [1 + 3 * (1 - 2 / 3)]),
    # Even odds against three to one, and the other way round in the second score.
    "crosskd, scores": (
        pf.quality_focal(torch.zeros(2), T([math.log(3), -math.log(3)])),
        [math.log(2) / 4, math.log(2) / 4],
    ),
    "crosskd, equal scores": (pf.quality_focal(T([2.0]), T([2.0])), [0.0]),
    # Mean 1 and deviation 1 over both images become 12 and 2; a map without deviation takes the mean.
    "crosskd, statistics": (
        pf.with_statistics_of(T([0.0, 2.0]).view(2, 1, 1, 1), T([14.0, 10.0]).view(2, 1, 1, 1)).flatten(),
        [10.0, 14.0],
    ),
    "crosskd, nothing to stretch": (pf.with_statistics_of(FLAT, LOW).flatten(), [2.5] * 4),
    "ld": (
        pf.localization_distillation(torch.zeros(1, 4, 2), T([[[2 * math.log(3), 0.0], *[[0.0, 0.0]] * 3]]), 2.0),
        [4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 4],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    value, expected = BY_HAND[name]
    assert value.tolist() == pytest.approx(expected, abs=1e-6)


def test_attention_has_mean_1() -> None:
    spatial, channel = attention(torch.cat([PEAK, -PEAK, FLAT], 1) * 1.5, temperature=1.0)
    assert spatial.flatten().tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    weights = [math.exp(1.5 * math.log(3) / 4)] * 2 + [1.0]
    assert channel[0].tolist() == pytest.approx([3 * weight / sum(weights) for weight in weights])


FUNCTIONS: dict[str, Any] = {
    "pkd": pf.pearson_distance,
    "cwd": pf.channel_divergence,
    "skd": lambda s, t: pf.pairwise_similarity([s], [t], level=-1),
    "ifvd": lambda s, t: pf.intra_class_variation(s, t, torch.arange(48).view(2, 4, 6) % 3, 3),
    "cirkd": lambda s, t: pf.cross_image_relations([s], [t], level=-1),
    "fgd attention": lambda s, t: pf.attention_difference(s, t, 0.5),
    "fgd focal": lambda s, t: pf.focal(s, t, torch.ones(2, 4, 6), 0.5),
    "defeat": lambda s, t: pf.decoupled_imitation(s, t, torch.eye(4, 6).expand(2, 4, 6), 3.0, 12.0),
}
INVARIANT = {
    "pkd": lambda m: m * T([2.0, 0.5, 30.0])[:, None, None] + T([5.0, -8.0, 0.0])[:, None, None],
    "cwd": lambda m: m + T([5.0, -8.0, 0.5])[:, None, None],
    "skd": lambda m: m * 7.0,
    "ifvd": lambda m: m * 7.0,
    "cirkd": lambda m: m * T([2.0, 0.3])[:, None, None, None],
}
"""Changes of the student's map that leave the value as it is."""


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_maps_have_no_loss_and_the_teacher_is_a_constant(name: str) -> None:
    student, teacher = (maps(seed, 2, 3, 4, 6).requires_grad_() for seed in (0, 1))
    value = FUNCTIONS[name](student, teacher)
    assert value.shape == (2,)
    assert (value > 0).all()
    value.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    torch.testing.assert_close(FUNCTIONS[name](student, student), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("name", INVARIANT)
def test_what_changes_nothing(name: str) -> None:
    student, teacher = maps(0, 2, 3, 4, 6), maps(1, 2, 3, 4, 6)
    change: Any = INVARIANT[name]
    torch.testing.assert_close(FUNCTIONS[name](change(student), teacher), FUNCTIONS[name](student, teacher))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_the_derivative(name: str) -> None:
    teacher = maps(1, 2, 3, 4, 6)
    assert torch.autograd.gradcheck(lambda s: FUNCTIONS[name](s, teacher), maps(0, 2, 3, 4, 6).requires_grad_())


# Where boxes and pixels lie


@pytest.mark.parametrize(
    ("corners", "size", "rows", "columns"),
    [
        ((0.0, 0.0, 0.5, 0.25), (4, 4), [0], [0, 1]),
        ((0.3, 0.3, 0.6, 0.6), (4, 8), [1, 2], [2, 3, 4]),
        ((0.0, 0.0, 1.0, 1.0), (2, 3), [0, 1], [0, 1, 2]),
        # Smaller than a cell, at the last edge, and on an edge but for rounding.
        ((0.6, 0.6, 0.61, 0.61), (4, 4), [2], [2]),
        ((1.0, 1.0, 1.0, 1.0), (4, 4), [3], [3]),
        ((0.3, 0.1, 0.7, 0.2), (10, 10), [1], [3, 4, 5, 6]),
    ],
)
def test_cells_that_a_box_touches(
    corners: tuple[float, float, float, float], size: tuple[int, int], rows: list[int], columns: list[int]
) -> None:
    (touched,) = cells_of(boxes(corners), size)
    assert touched.any(1).nonzero().flatten().tolist() == rows
    assert touched.any(0).nonzero().flatten().tolist() == columns
    assert touched.sum() == len(rows) * len(columns)


def test_of_several_boxes_a_cell_has_the_largest_value_and_an_image_without_any_has_zeros() -> None:
    values = torch.stack([torch.full((1, 2), 0.5), T([[0.0, 0.7]]), torch.full((1, 2), 0.1)])
    assert on_images(values, T([0, 0, 2]), 3)[:, 0].equal(T([[0.5, 0.7], [0.0, 0.0], [0.1, 0.1]]))


def test_the_class_of_a_cell_is_that_of_its_nearest_pixel() -> None:
    pixels = torch.arange(16).view(1, 4, 4) - 1
    assert labels_at(pixels, (2, 2)).tolist() == [[[-1, 1], [7, 9]]]
    assert labels_at(pixels, (1, 8)).tolist() == [[[-1, -1, 0, 0, 1, 1, 2, 2]]]


def test_parts_of_a_mean_have_that_mean() -> None:
    values, mask = T([[1.0, 2.0], [3.0, 100.0]]), T([[1.0, 1.0], [1.0, 0.0]])
    assert mean_where(values, mask).tolist() == [2 * 3 / 3, 2 * 3 / 3]
    assert mean_where(values, torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_fgd_weights_of_cells() -> None:
    foreground, background = pf.box_masks(boxes((0.0, 0.0, 0.5, 0.25), (0.0, 0.0, 0.25, 0.25), image=(0, 0)), 2, (4, 4))
    # Two cells, one of which is a box of its own; the second image has no box.
    assert foreground[0, 0].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert foreground.sum() == 1.5
    assert background[0, 0].tolist() == pytest.approx([0, 0, 1 / 14, 1 / 14])
    assert background[1].unique().tolist() == [1 / 16]
    covered, nothing = pf.box_masks(boxes((0.0, 0.0, 1.0, 1.0)), 1, (2, 2))
    assert covered.unique().tolist() == [1 / 4]
    assert not nothing.any()


CENTER = {(1, 1), (1, 2), (2, 1), (2, 2)}
SIDES = {(0, 1), (0, 2), (1, 0), (2, 0), (1, 3), (2, 3), (3, 1), (3, 2)}


@pytest.mark.parametrize(
    ("threshold", "near", "coarse"),
    [
        # A box of 2 x 2 cells amid 4 x 4, and square anchors of 2: IoU 2.25/5.75 at the center, 0.75/7.25 at the sides,
        # 0.25/7.75 at the corners; on the coarse level 1/4 everywhere.
        (0.7, CENTER, 0),
        (0.5, CENTER, 4),
        (0.2, CENTER | SIDES, 4),
        (0.0, {(row, column) for row in range(4) for column in range(4)}, 4),
    ],
)
def test_fgfi_cells_near_an_object(threshold: float, near: set[tuple[int, int]], coarse: int) -> None:
    box = boxes((0.25, 0.25, 0.75, 0.75), image=(1,))
    fine, second = pf.near_objects(box, 2, [(4, 4), (2, 2)], anchor=2.0, ratios=(1.0,), threshold=threshold)
    assert {tuple(cell) for cell in fine[1].nonzero().tolist()} == near
    assert second[1].sum() == coarse
    assert not fine[0].any()


def test_fgfi_anchors_have_ratios() -> None:
    # Twice as high as wide: its own anchor fits alone.
    tall = boxes((0.25, 0.0, 0.75, 1.0))
    (near,) = pf.near_objects(tall, 1, [(3, 3)], anchor=math.sqrt(4.5), ratios=(2.0, 0.5), threshold=0.99)
    assert near[0].nonzero().tolist() == [[1, 1]]


def test_defeat_puts_a_box_on_the_level_of_its_size() -> None:
    # Sides 16 and 28.8 cells of the first level: log2(16 / 14) = 0.2 and log2(28.8 / 14) = 1.04.
    given = boxes((0.0, 0.0, 0.5, 0.5), (0.05, 0.05, 0.95, 0.95), image=(0, 1))
    first, second = pf.object_masks(given, 2, [(32, 32), (16, 16)])
    assert first.sum((1, 2)).tolist() == [256, 0]
    assert second.sum((1, 2)).tolist() == [0, 256]


# The losses as modules


class OneLayer:
    """A head whose one layer multiplies; a location's logit is the feature - 5, its box as wide as the feature - 3."""

    channels = (1, 1)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def features(self, maps: Any, layer: int) -> Any:
        return [list(maps), [self.factor * m for m in maps]][layer], list(maps)

    def predict(self, features: Any, layer: int) -> tuple[Tensor, Tensor]:
        scores, boxes = (torch.cat([m.flatten(1) for m in of_branch], 1) for of_branch in features)
        scores = scores if layer else self.factor * scores
        corners = torch.stack([0 * boxes, 0 * boxes, boxes - 3, 0 * boxes + 1], -1)
        return torch.stack([0 * scores + 99, scores - 5], -1), corners


MIMICKED = -(Q * math.log(P) + P * math.log(Q)) * (P - Q)
"""Quality focal loss of a logit of 1 where the teacher has -1, and the other way round."""


@pytest.mark.parametrize(
    ("options", "factor", "locations", "expected"),
    [
        # The boxes of both locations have an IoU of 1/3; the teacher's scores add up to 1.
        ("layer=1", 2.0, [[1, 0], [0, 0]], (2 * MIMICKED + 2 / 3, 0)),
        ("layer=1, scores=3.0, boxes=0.0", 2.0, [[1, 0], [0, 0]], (6 * MIMICKED, 0)),
        ("layer=1", 2.0, [[1, 2], [1, 0]], ((2 * MIMICKED + 2 / 3) / 3, 0)),
        ("layer=1", 2.0, [[1, -1], [0, 0]], (MIMICKED + Q * 2 / 3, 0)),
        ("layer=0", 2.0, [[0, 0], [0, 0]], (2 * MIMICKED + 2 / 3, 0)),
        # The student's own layer turns its scores around; that of the teacher is left out.
        ("layer=1", -1.0, [[1, 0], [0, 0]], (2 / 3, 2 * MIMICKED)),
    ],
)
def test_crosskd_by_hand(
    options: str, factor: float, locations: list[list[int]], expected: tuple[float, float]
) -> None:
    shapes = Shapes(2, 0, ((1, 1, 2),), head=(1, 1))
    loss = build(LOSSES, f"crosskd({options})", Setup(shapes, shapes))
    # With the teacher's mean and deviation the first image is 6, 4 and the second as the teacher's.
    own, target = (T(values).view(2, 1, 1, 2) for values in ([2.0, 0, 0, 2], [4.0, 6, 4, 6]))
    student, teacher, context = shown([own], [target], locations=T(locations))
    value = loss(student._replace(head=OneLayer(factor)), teacher._replace(head=OneLayer(1.0)), context)
    assert value.tolist() == pytest.approx([2 * each for each in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (Shapes(2, 0, ((4, 2, 2),)), "^crosskd needs two dense detectors"),
        (
            Shapes(2, 0, ((4, 2, 2),), head=(4, 4, 4)),
            "^crosskd: layer must be 0 to 2, the layers of both heads, not 3$",
        ),
        (Shapes(2, 0, ((4, 1, 1),), head=(4,) * 5), "^crosskd needs two pyramids with levels of the same sizes$"),
    ],
)
def test_crosskd_refuses(shapes: Shapes, message: str) -> None:
    other = Shapes(2, 0, ((8, 2, 2),), head=(8,) * 5)
    for pair in ((shapes, other), (other, shapes)):
        with pytest.raises(NotApplicable, match=message):
            build(LOSSES, "crosskd", Setup(*pair))


def setup_of(*shapes: tuple[int, int, int], teacher: Any = None, classes: int = 2) -> Setup:
    student = Shapes(classes, 4, shapes)
    return Setup(student, Shapes(classes, 4, teacher or shapes), knows=("boxes", "pixels"))


def shown(student: list[Tensor], teacher: list[Tensor], **known: Any) -> tuple[Output, Output, Context]:
    index = torch.arange(len(student[0]))
    context = Context(Instances(index, index, **known), Centers(torch.zeros(2, 4), torch.zeros(2, 4)))
    logits, embedding = torch.zeros(len(index), 2), torch.zeros(len(index), 4)
    return Output(logits, embedding, tuple(student)), Output(logits, embedding, tuple(teacher)), context


@torch.no_grad()
def passes(layer: nn.Conv2d) -> None:
    """Make a 3x3 convolution give back what it is given."""
    nn.init.dirac_(layer.weight)
    if layer.bias is not None:
        layer.bias.zero_()


def test_fgd_with_one_box_by_hand() -> None:
    weights = "foreground=1.0, background=10.0, attention=100.0, relation=1000.0"
    loss = build(LOSSES, f"fgd(temperature=1.0, {weights})", setup_of((1, 2, 2)))
    value = loss(*shown([LEFT + 0.0], [OTHERS], boxes=boxes((0.0, 0.0, 0.5, 0.5))))
    # The student is 2 above the teacher on the box alone; its attention is 4 times the softmax of (3, 1, 1, 1).
    share = [E**2 / (E**2 + 3), 1 / (E**2 + 3)]
    difference = abs(4 * share[0] - 1) + 3 * abs(4 * share[1] - 1)
    assert value.item() == pytest.approx(4 + 100 * difference + 1000 * 4, rel=1e-5)
    beside = loss(*shown([LEFT + 0.0], [OTHERS], boxes=boxes((0.5, 0.5, 1.0, 1.0))))
    assert beside.item() == pytest.approx(10 * 4 / 3 + 100 * difference + 1000 * 4, rel=1e-5)


def test_fgd_relation_adds_what_the_map_is_like() -> None:
    loss = build(LOSSES, "fgd(foreground=0.0, background=0.0, attention=0.0, relation=1.0)", setup_of((1, 2, 2)))
    given = shown([LEFT + 0.0], [OTHERS], boxes=boxes((0.0, 0.0, 0.5, 0.5)))
    (block,) = loss.student_context
    with torch.no_grad():
        block.change[-1].bias.fill_(1.0)
    # All cells of the student are 1 higher: 3, 1, 1, 1 instead of 2, 0, 0, 0 above the teacher.
    assert loss(*given).item() == pytest.approx(9 + 3)


def test_mgd_generates_from_what_is_left() -> None:
    student, teacher = torch.rand(2, 3, 4, 4) + 1, torch.rand(2, 3, 4, 4)
    for mask in (0.0, 0.45):
        loss = build(LOSSES, f"mgd(mask={mask})", setup_of((3, 4, 4)))
        for layer in (loss.generate[0][0], loss.generate[0][2]):
            passes(layer)
        torch.manual_seed(3)
        value = loss(*shown([student], [teacher]))
        torch.manual_seed(3)
        kept = torch.rand(2, 1, 4, 4) <= 1 - mask
        torch.testing.assert_close(value, (student * kept - teacher).square().sum((1, 2, 3)))
    torch.manual_seed(0)
    assert (masked(torch.ones(1, 2, 100, 100), 0.3) == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_fgfi_compares_near_objects_alone() -> None:
    loss = build(LOSSES, "fgfi(anchor=2.0, ratios=(1.0,))", setup_of((1, 4, 4)))
    passes(loss.align[0])
    teacher = torch.zeros(2, 1, 4, 4)
    student = teacher + 2
    student[:, :, 0] = 50.0
    value = loss(*shown([student], [teacher], boxes=boxes((0.25, 0.25, 0.75, 0.75))))
    # Four cells of square 4, over twice their number; all of it is the first image's part.
    assert value.tolist() == pytest.approx([2 * 2.0, 0.0])


def test_defeat_takes_the_mean_over_levels() -> None:
    loss = build(LOSSES, "defeat", setup_of((1, 4, 4), (1, 2, 2)))
    for layer in loss.align:
        passes(layer)
    fine, coarse = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    fine[0, 0, 0, 0] = 4.0
    value = loss(*shown([fine, coarse + 1], [torch.zeros_like(fine), coarse], boxes=boxes((0.0, 0.0, 0.5, 0.25))))
    # On the first level two cells of the object with squares 16 and 0; the second level has background alone.
    assert value.item() == pytest.approx((3 * (16 / 2) / 2 + 12 * 0 + 12 * 1 / 2) / 2)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_nothing_to_see_is_no_error(name: str) -> None:
    case = make_case(1, 20, of_images=True)
    nothing = Instances(
        case.context.labels, case.context.index, boxes=boxes(), pixels=torch.full_like(case.context.pixels, -1)
    )
    torch.manual_seed(0)
    loss = build(LOSSES, name, case.setup)
    value = loss(case.student, case.teacher.detach(), Context(nothing, case.context.centers))
    assert value.shape == (IMAGES,)
    assert value.isfinite().all()
    value.mean().backward()
    assert all(m.grad is None or m.grad.isfinite().all() for m in case.student.maps)
    if name in ("fgfi", "cirkd_memory", "ifvd"):
        assert not value.any()


# CIRKD's memory


@pytest.mark.parametrize(
    ("valid", "expected", "pointer"),
    [
        ([1, 1, 0, 0], [1, 2, 0], 2),
        ([1, 0, 0, 1], [1, 4, 0], 2),
        ([1, 1, 1, 0], [1, 2, 3], 0),
        ([1, 1, 1, 1], [4, 2, 3], 1),
        ([0, 0, 0, 0], [0, 0, 0], 0),
    ],
)
def test_the_newest_overwrite_the_oldest(valid: list[int], expected: list[int], pointer: int) -> None:
    queue, place = torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.long)
    vectors = T([1.0, 2.0, 3.0, 4.0])[:, None, None].expand(4, 2, 1)
    pf.enqueue(queue, place, vectors, torch.stack([T(valid), torch.zeros(4)], 1).bool())
    assert queue[0].flatten().tolist() == expected
    assert place.tolist() == [pointer, 0]
    assert not queue[1].any()
    # Once more, from where it stands.
    pf.enqueue(queue, place, vectors[:1] * 9, T([[True, True]]))
    assert queue[0, pointer].item() == 9
    assert queue[1].flatten().tolist() == [9, 0, 0]


def memory_loss(half: bool = False) -> Any:
    options = f"temperature=1.0, pixels=1, regions=1, level=-1, pixel=2.0, region=4.0, half={half}"
    loss = build(LOSSES, f"cirkd_memory({options})", setup_of((2, 1, 2)))
    loss.project = nn.Identity()
    return loss


@pytest.mark.parametrize("half", [False, True])
def test_relations_with_the_memory_by_hand(half: bool) -> None:
    loss = memory_loss(half)
    assert loss.pixel_queue.dtype == loss.region_queue.dtype == (torch.float16 if half else torch.float32)
    given = shown([UP * 3], [BOTH * 5], pixels=T([[[0, 1]]]))
    # The memory is (1, 0) for class 0 and (0, 1) for class 1. The student's second cell is nearer to the other one.
    assert loss(*given).item() == pytest.approx((2 + 4) * (P - Q) / 2)
    assert loss.region_queue.flatten(1).tolist() == [[1, 0], [0, 1]]
    assert loss.pixel_queue.flatten(1).tolist() == [[1, 0], [0, 1]]
    assert loss.pixel_pointer.tolist() == [0, 0]
    # Without the cell that has no class, nothing is left to tell.
    assert loss(*shown([UP], [BOTH], pixels=T([[[0, -1]]]))).item() == pytest.approx(0, abs=1e-6)


def test_a_region_is_the_mean_direction_of_its_class() -> None:
    loss = memory_loss()
    loss(*shown([UP], [BOTH], pixels=T([[[1, 1]]])))
    assert loss.region_queue[1, 0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    kept = loss.pixel_queue.clone()
    loss.eval()
    loss(*shown([UP], [-BOTH], pixels=T([[[1, 1]]])))
    assert loss.pixel_queue.equal(kept)


def test_pixels_are_drawn_of_each_image_and_class() -> None:
    loss = build(LOSSES, "cirkd_memory(pixels=8, regions=8, drawn=3, level=-1)", setup_of((2, 4, 4)))
    pixels = torch.zeros(2, 4, 4, dtype=torch.long)
    pixels[0, 0, :2] = 1
    loss(*shown([maps(0, 2, 2, 4, 4).float()], [maps(1, 2, 2, 4, 4).float()], pixels=pixels))
    # Class 0 has 14 and 16 cells, class 1 two in the first image.
    assert loss.pixel_pointer.tolist() == [6, 2]
    assert loss.region_pointer.tolist() == [2, 1]


def test_to_prototypes_is_1_for_a_cell_alone_in_its_class() -> None:
    member = torch.eye(4, 5)[None]
    assert to_prototypes(maps(0, 1, 3, 2, 2), member.double())[0].tolist() == pytest.approx([1.0] * 4)


# Shapes, methods and tasks


@pytest.mark.parametrize("name", [*MAPS_ALONE, *OF_IMAGES])
def test_any_widths_and_sizes(name: str) -> None:
    """Levels are paired from the last backwards, and the larger map is pooled."""
    student, teacher = ((3, 8, 8), (4, 4, 4)), ((2, 32, 32), (5, 4, 4), (6, 4, 4))
    torch.manual_seed(0)
    loss = build(LOSSES, name, setup_of(*student, teacher=teacher))
    sides = [[torch.randn(2, *shape) for shape in shapes] for shapes in (student, teacher)]
    known = {"boxes": boxes((0.1, 0.2, 0.9, 0.8), image=(1,)), "pixels": torch.randint(0, 2, (2, 64, 64))}
    value = loss(*shown(*sides, **known))
    assert value.shape == (2,)
    assert value.isfinite().all()
    assert (value >= -1e-6).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("ld(temperature=0)", "^ld: temperature must be above 0, not 0$"),
        ("cwd(temperature=0)", "^cwd: temperature must be above 0, not 0$"),
        ("mgd(mask=1)", "^mgd: mask must be 0 or above and below 1, not 1$"),
        ("skd(scale=0)", "^skd: scale must be above 0 and at most 1, not 0$"),
        ("pkd(level=2)", "^pkd: level=2, but this pair has 2; choose another level$"),
        ("fgd(temperature=-1)", "^fgd: temperature must be above 0, not -1$"),
        ("fgfi(ratios=())", "^fgfi: 0 <= threshold < 1, anchor above 0"),
        ("cirkd_batch(patch=0)", "^cirkd_batch: temperature must be above 0, and patch at least 1$"),
        ("cirkd_memory(pixels=0)", "^cirkd_memory: temperature must be above 0, and each count at least 1$"),
        ("ifvd(level=-3)", "^ifvd: level=-3"),
    ],
)
def test_options_out_of_range(loss: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(LOSSES, loss, setup_of((2, 4, 4), (2, 2, 2)))


@pytest.mark.parametrize("name", [*MAPS_ALONE, *OF_IMAGES])
def test_networks_without_maps_are_refused(name: str) -> None:
    with pytest.raises(NotApplicable, match="needs 1 pair of feature maps"):
        build(LOSSES, name, setup_of())


PUBLISHED: dict[str, dict[str, tuple[float, dict[str, Any]]]] = {
    "pkd": {"pkd": (6, {})},
    "cwd": {"cwd": (10, {"temperature": 1})},
    "mgd": {"mgd": (5e-7, {"mask": 0.45})},
    "fgfi": {"fgfi": (0.01, {"threshold": 0.5})},
    "defeat": {"defeat": (1, {"foreground": 3, "background": 12})},
    "fgd": {
        "fgd": (
            1,
            {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "relation": 5e-7, "temperature": 0.5},
        )
    },
    "skd": {"kd": (1, {"temperature": 1}), "skd": (10, {"scale": 0.5})},
    "ifvd": {"kd": (1, {"temperature": 1}), "ifvd": (20, {})},
    "cirkd": {
        "kd": (1, {"temperature": 1}),
        "cirkd_batch": (1, {}),
        "cirkd_memory": (1, {"pixel": 0.1, "region": 0.1}),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe(name: str) -> None:
    ce, *terms = build(METHODS, name)
    assert (ce.loss, ce.weight, ce.rows) == ("cross_entropy", 1, "upright")
    assert [term.loss for term in terms] == list(PUBLISHED[name])
    for term in terms:
        weight, options = PUBLISHED[name][str(term.loss)]
        assert term.weight == weight
        assert {**term.options, **options} == term.options
        assert term.rows == ("upright" if term.loss == "kd" else "images")
        assert getattr(LOSSES.get(str(term.loss)), "per_sample", True)


def in_classification(case: Case) -> Case:
    """The case as classification has it: no images beside its rows."""
    instances = image_views(case.context.labels[:: case.context.views], torch.arange(IMAGES), case.context.views)
    outputs = (output._replace(images=()) for output in (case.student, case.teacher))
    setup = case.setup._replace(sets={}, rows=Classification.rows)
    return Case(*outputs, Context(instances, case.context.centers), setup)


@pytest.mark.parametrize("name", PUBLISHED)
def test_classification_runs_what_needs_maps_alone_and_refuses_the_rest(name: str) -> None:
    case = in_classification(make_case(4, 20))
    if name not in methods_of_views():
        with pytest.raises(NotApplicable, match=f"^{name} needs (boxes|pixels), which these rows do not have"):
            objective_of(build(METHODS, name), case.setup)
        return
    assert name in MAPS_ALONE
    torch.manual_seed(0)
    objective = objective_of(build(METHODS, name), case.setup)
    torch.manual_seed(1)
    values = objective(case.student, case.teacher, case.context)
    torch.manual_seed(1)
    # There the rows "images" are the upright ones.
    upright = [output.upright(4) for output in (case.student, case.teacher.detach())]
    alone = objective.losses[name](*upright, case.context.upright())
    assert alone.shape == (IMAGES,)
    assert values[name].item() == pytest.approx(objective.terms[name].weight * alone.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", [*MAPS_ALONE, *OF_IMAGES])
def test_any_of_them_can_be_previewed(name: str) -> None:
    """An image takes the mean weight of its rows, and 1 where it has none."""
    case = make_case(1, 12)
    torch.manual_seed(0)
    objective = objective_of([Term("cross_entropy"), Term(name, 2.0, rows="images", previewed=True)], case.setup)
    objective.losses.eval()
    torch.manual_seed(1)
    values = objective(case.student, case.teacher, case.context)
    weights = objective.weights(case.student, case.teacher, case.context)
    assert weights.min() < 1
    torch.manual_seed(1)
    whole = case.student.rows(None), case.teacher.detach().rows(None), case.context.select("images")
    each = objective.losses[name](*whole)
    assert values[name].item() == pytest.approx((2 * weights * each).mean().item(), rel=1e-4)

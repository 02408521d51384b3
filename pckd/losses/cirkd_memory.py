from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.distributed import gather_rows
from pckd.losses.cirkd import relations
from pckd.losses.levels import FEATURES, labels_at, level_shapes, mean_where, of_level
from pckd.losses.maps import matched, paired
from pckd.ops import announce, exact, full, unit
from registry import LOSSES, Context, Output, Setup, UserError


@torch.no_grad()
def enqueue(queue: Tensor, pointer: Tensor, vectors: Tensor, valid: Tensor) -> None:
    """Write vectors into each class's ring of slots, in their order; the newest overwrite the oldest.

    Args:
        queue: [K, M, C]; pointer: [K], int64, the next slot; both are changed. vectors: [R, K, C]. valid: [R, K], bool.
    """
    slots = queue.shape[1]
    number = valid.cumsum(0) - 1
    total = valid.sum(0)
    row, label = (torch.arange(count, device=queue.device) for count in valid.shape)
    last = torch.where(valid, row[:, None], 0).amax(0)
    # As many writes whatever is valid, so that an accelerator is not asked: those left over repeat their class's last.
    source = torch.where(valid & (number >= total - slots), row[:, None], last)
    slot = (pointer + number.gather(0, source)) % slots
    new = vectors[source, label].to(queue.dtype)
    queue[label, slot] = torch.where((total > 0)[:, None], new, queue[label, slot])
    pointer.copy_((pointer + total) % slots)


@LOSSES.register("cirkd_memory")
class CrossImageMemory(nn.Module):
    """Relations of pixels with a memory of the teacher's pixels and regions; [B] (CIRKD, arXiv 2204.06986).

    Each class has a ring of pixels and one of regions, the mean feature of the class in an image, all scaled to length
    1. A step writes into them first, of each image and class one region and ``drawn`` random pixels, of all processes.
    Then random slots, the same of each class, are what pixels with a class are compared with.

    Args:
        pixel, region: weights of the two parts. temperature: of the similarities.
        pixels, regions: slots of each class; published 20000 and 2000, which here would fill each checkpoint.
        pixel_contrast, region_contrast: how many slots are drawn, over all classes.
        half: keep both in half precision (float16); similarities are computed in float32 all the same.
        drawn: pixels of an image and class. level: which level; in segmentation -2 are the features.
    """

    needs = ("pixels",)
    pixel_queue: Tensor
    region_queue: Tensor
    pixel_pointer: Tensor
    region_pointer: Tensor

    def __init__(
        self,
        setup: Setup,
        *,
        pixel: float = 1.0,
        region: float = 1.0,
        temperature: float = 0.1,
        pixels: int = 2000,
        regions: int = 200,
        pixel_contrast: int = 4096,
        region_contrast: int = 1024,
        drawn: int = 16,
        level: int = FEATURES,
        half: bool = False,
    ) -> None:
        super().__init__()
        setup.require("pixels", "cirkd")
        ((shape, target),) = level_shapes("cirkd", setup, level)
        if not temperature > 0 or min(pixels, regions, pixel_contrast, region_contrast, drawn) < 1:
            raise UserError("cirkd_memory: temperature must be above 0, and each count at least 1")
        self.weights, self.temperature, self.drawn, self.level = (pixel, region), temperature, drawn, level
        width, self.classes = target[0], setup.student.num_classes
        self.contrast = [count // self.classes + 1 for count in (pixel_contrast, region_contrast)]
        self.project = nn.Sequential(
            nn.Conv2d(shape[0], width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
        )
        for name, slots in (("pixel", pixels), ("region", regions)):
            shape, dtype = (self.classes, slots, width), torch.float16 if half else torch.float32
            smaller = f"{'' if half else 'half=True takes half of it, and '}{name}s=N has N slots a class"
            announce(f"cirkd_memory, {name}s", shape, dtype, smaller)
            self.register_buffer(f"{name}_queue", unit(torch.randn(shape)).to(dtype))
            self.register_buffer(f"{name}_pointer", torch.zeros(self.classes, dtype=torch.long))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        ((own, target),) = of_level(paired(student.maps, teacher.maps), self.level)
        sides = matched(self.project(own), target)
        own, target = (unit(m.flatten(2).transpose(1, 2)) for m in sides)
        labels = labels_at(context.pixels, sides[0].shape[2:]).flatten(1)
        member = labels[..., None] == torch.arange(self.classes, device=labels.device)
        if self.training:
            self._remember(target, member)
        parts = []
        for queue, count in zip((self.pixel_queue, self.region_queue), self.contrast, strict=True):
            slots = torch.randperm(queue.shape[1], device=queue.device)[:count]
            memory = full(queue[:, slots].flatten(0, 1))
            parts.append(mean_where(relations(own, target, (memory, memory), self.temperature), member.any(2)))
        return self.weights[0] * parts[0] + self.weights[1] * parts[1]

    @torch.no_grad()
    def _remember(self, cells: Tensor, member: Tensor) -> None:
        """Write what an image has of each class: cells [B, P, C], member [B, P, K]."""
        with exact(cells):
            regions = unit(member.to(cells.dtype).transpose(1, 2) @ cells)
        order = torch.rand(member.shape[:2], device=cells.device)[..., None].masked_fill(~member, -1.0)
        score, position = order.topk(min(self.drawn, cells.shape[1]), dim=1)
        image = torch.arange(len(cells), device=cells.device)[:, None, None]
        for queue, pointer, vectors, valid in (
            (self.pixel_queue, self.pixel_pointer, cells[image, position].flatten(0, 1), (score >= 0).flatten(0, 1)),
            (self.region_queue, self.region_pointer, regions, member.any(1)),
        ):
            enqueue(queue, pointer, gather_rows(vectors), gather_rows(valid.byte()).bool())

"""What Micron-BERT needs for training without labels alone: swapped blocks, crops and their agreement."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones.mubert_networks import MicroEncoder

__all__ = ["draw_blocks", "random_crops", "swap_mask"]


def draw_blocks(
    rows: int,
    columns: int,
    *,
    generator: torch.Generator,
    ratio: float = 0.5,
    min_block: float = 16,
    min_aspect: float = 0.3,
) -> list[tuple[int, int, int, int]]:
    """Rectangles of patches, (top, left, height, width), to be taken from the other frame (Algorithm 1, its defaults).

    Blocks are drawn while the sum of their areas is at most ``ratio * rows * columns``, so that the last block takes
    the sum beyond it. Patches under two blocks count twice, as in the algorithm, hence fewer patches than that are
    swapped. ``rnd(a, b)`` is ``a + (b - a) * u`` with `u` uniform in [0, 1), also where a > b, which happens to the
    block size when less than `min_block` is left. What the algorithm leaves open: sides are rounded to whole patches,
    at least one and at most the grid's side; corners are rounded down and drawn from all places where the block fits.

    `ratio`, `min_block` and `min_aspect` are r_s, min_bs (in patches) and min_ar (height to width; the largest ratio is
    its inverse). The generator draws four numbers a block: size, aspect ratio, row, column.
    """
    wanted = ratio * rows * columns
    blocks: list[tuple[int, int, int, int]] = []
    count = 0
    while count <= wanted:
        draws = torch.rand(4, generator=generator, dtype=torch.float64, device=generator.device).tolist()
        size = min_block + (wanted - count - min_block) * draws[0]
        aspect = min_aspect + (1 / min_aspect - min_aspect) * draws[1]
        height = min(max(round(math.sqrt(size * aspect)), 1), rows)
        width = min(max(round(math.sqrt(size / aspect)), 1), columns)
        blocks.append((int(draws[2] * (rows - height + 1)), int(draws[3] * (columns - width + 1)), height, width))
        count += height * width
    return blocks


def swap_mask(blocks: Iterable[tuple[int, int, int, int]], rows: int, columns: int) -> Tensor:
    """Which patches lie under any of `blocks`, bool of shape (rows, columns)."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for top, left, height, width in blocks:
        mask[top : top + height, left : left + width] = True
    return mask


class DinoHead(nn.Module):
    """Three-layer perceptron, unit length, linear layer with rows of unit length, as in the published code."""

    def __init__(self, width: int, outputs: int, hidden: int, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.empty(outputs, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, context: Tensor) -> Tensor:
        """Scores (B, outputs) of contextual features (B, width)."""
        return F.normalize(self.mlp(context), dim=-1) @ F.normalize(self.prototypes, dim=-1).mT


class DinoAgreement(nn.Module):
    """Agreement of crops between encoder and a slow copy of it (the published code's place of eq. 15). Cross-entropy
    between the sharpened, centred scores of the teacher on two large crops and those of the student on all other crops;
    the teacher follows the student by a moving average."""

    student_temperature = 0.1
    teacher_temperature = 0.04
    centre_momentum = 0.9
    teacher_momentum = 0.997

    def __init__(self, encoder: MicroEncoder, outputs: int = 128, hidden: int = 2048) -> None:
        super().__init__()
        self.head = DinoHead(encoder.width, outputs, hidden)
        self.teacher = nn.ModuleDict({"encoder": copy.deepcopy(encoder), "head": copy.deepcopy(self.head)})
        self.teacher.requires_grad_(False)
        self.centre = nn.Buffer(torch.zeros(outputs))
        self._seen: Tensor | None = None
        self._done = 0.0

    def forward(self, encoder: MicroEncoder, large: list[Tensor], small: list[Tensor], done: float) -> Tensor:
        """Loss of two large and any number of small crops, each (B, 3, h, w)."""
        student = []
        for crops in filter(None, (large, small)):
            student += [self.head(part.context) for part in encoder(torch.cat(crops)).split(len(crops[0]))]
        with torch.no_grad():
            raw = self.teacher["head"](self.teacher["encoder"](torch.cat(large)).context)
            self._seen, self._done = raw.mean(dim=0), done
            teacher = ((raw - self.centre) / self.teacher_temperature).softmax(dim=-1).chunk(len(large))
        terms = [
            -(target * F.log_softmax(scores / self.student_temperature, dim=-1)).sum(dim=-1).mean()
            for one, target in enumerate(teacher)
            for other, scores in enumerate(student)
            if one != other
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def follow(self, encoder: MicroEncoder) -> None:
        """Move centre and teacher after a step; the teacher's momentum rises along a cosine to one."""
        if self._seen is None:
            return
        self.centre.lerp_(self._seen, 1 - self.centre_momentum)
        share = (1 - self.teacher_momentum) * (1 + math.cos(math.pi * self._done)) / 2
        for slow, fast in zip(self.teacher.parameters(), [*encoder.parameters(), *self.head.parameters()], strict=True):
            slow.lerp_(fast, share)
        self._seen = None


def random_crops(images: Tensor, size: int, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A rectangle of each image, of random area, place and shape (sides 3:4 to 4:3), brought to `size` x `size`."""
    draws = torch.rand(len(images), 4, generator=generator, device=generator.device)
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    aspect = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3))
    width, height = (share * aspect).sqrt().clamp(max=1), (share / aspect).sqrt().clamp(max=1)
    # In the coordinates of affine_grid: -1 is the left or upper edge of the frame, 1 the right or lower one.
    across, down = ((2 * draws[:, 2 + axis] - 1) * (1 - side) for axis, side in enumerate((width, height)))
    zero = torch.zeros_like(width)
    boxes = torch.stack([width, zero, across, zero, height, down], dim=1).view(-1, 2, 3).to(images)
    grid = F.affine_grid(boxes, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

"""`mubert_small` and `mubert_tiny`: Micron-BERT, which looks for the patches that changed between onset and apex."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fsmer.backbones.base import Backbone
from fsmer.backbones.recipe import PretrainRecipe, TrainRecipe
from fsmer.backbones.registry import register_backbone
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError, SpecMismatchError

__all__ = [
    "Block",
    "MicroAttention",
    "MuBert",
    "MuBertTiny",
    "begin_with_likeness",
    "draw_blocks",
    "log_diagonal_attention",
    "patchify",
    "random_crops",
    "sine_positions",
    "swap_mask",
]

# Mean and deviation of ImageNet's red, green and blue, as the published code takes them.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)
NORM_EPSILON = 1e-6
# Where the embedding joins both: distances between clips are then no longer those of P_dma's many entries alone.
FEATURE_GAIN = 0.25
CHANGE_GAIN = 20.0


# --- Algorithm 1: blockwise swapping ----------------------------------------------------------------------------------


class Block(NamedTuple):
    """A rectangle of patches: rows ``top`` to ``top + height``, columns ``left`` to ``left + width``."""

    top: int
    left: int
    height: int
    width: int


def draw_blocks(
    rows: int,
    columns: int,
    *,
    generator: torch.Generator,
    ratio: float = 0.5,
    min_block: float = 16,
    min_aspect: float = 0.3,
) -> list[Block]:
    """Rectangles of patches to be taken from the other frame (Micron-BERT, Algorithm 1; its defaults).

    Blocks are drawn while the sum of their areas is at most ``ratio * rows * columns``, so that the last block takes
    the sum beyond it. Patches under two blocks count twice, as in the algorithm, hence fewer patches than that are
    swapped. ``rnd(a, b)`` is ``a + (b - a) * u`` with `u` uniform in [0, 1), also where a > b, which happens to the
    block size when less than `min_block` is left. What the algorithm leaves open: sides are rounded to whole patches,
    at least one and at most the grid's side; corners are rounded down and drawn from all places where the block fits.

    Parameters
    ----------
    rows, columns : int
        Patches down and across the frame.
    generator : torch.Generator
        Four uniform numbers a block: size, aspect ratio, row, column.
    ratio : float
        Share of the patches (r_s).
    min_block : float
        Least block size in patches (min_bs).
    min_aspect : float
        Least ratio of height to width (min_ar); the largest is its inverse.
    """
    wanted = ratio * rows * columns
    blocks: list[Block] = []
    count = 0
    while count <= wanted:
        size_draw, aspect_draw, row_draw, column_draw = torch.rand(
            4, generator=generator, dtype=torch.float64, device=generator.device
        ).tolist()
        size = min_block + (wanted - count - min_block) * size_draw
        aspect = min_aspect + (1 / min_aspect - min_aspect) * aspect_draw
        height = min(max(round(math.sqrt(size * aspect)), 1), rows)
        width = min(max(round(math.sqrt(size / aspect)), 1), columns)
        top = int(row_draw * (rows - height + 1))
        left = int(column_draw * (columns - width + 1))
        blocks.append(Block(top, left, height, width))
        count += height * width
    return blocks


def swap_mask(blocks: Iterable[Block], rows: int, columns: int) -> Tensor:
    """Which patches lie under any of `blocks`, bool of shape (rows, columns)."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for top, left, height, width in blocks:
        mask[top : top + height, left : left + width] = True
    return mask


# --- patches and positions --------------------------------------------------------------------------------------------


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch, (B, rows * columns, patch_size * patch_size * C), from images (B, C, H, W) (eq. 1, 6)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)


def sine_positions(width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Fixed two-dimensional sine positions, (len(rows) * len(columns), width), row by row.

    The first half of the entries speaks of the column, the second of the row; each half is the sines and then the
    cosines of ``x / 10000 ** (4 k / width)`` with k = 0 ... width / 4 - 1.

    Parameters
    ----------
    width : int
        Length of one position; a multiple of four.
    rows, columns : Tensor of shape (rows,) and (columns,)
        Coordinates in patches.
    """
    steps = torch.arange(width // 4, dtype=torch.float64)
    frequencies = 10000.0 ** (-4 * steps / width)

    def waves(places: Tensor) -> Tensor:
        angles = places.double()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    across = waves(columns)[None].expand(len(rows), -1, -1)
    down = waves(rows)[:, None].expand(-1, len(columns), -1)
    return torch.cat([across, down], dim=2).flatten(0, 1).float()


# --- the diagonal of attention without the map ------------------------------------------------------------------------


class _LogDiagonal(torch.autograd.Function):
    """The diagonal of the row-wise log-softmax of ``rows @ columns.T``; see `log_diagonal_attention`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, chunk: int) -> Tensor:
        own, total = torch.empty(2, *rows.shape[:2], dtype=rows.dtype, device=rows.device)
        for start in range(0, rows.shape[1], chunk):
            part = slice(start, start + chunk)
            own[:, part] = (rows[:, part] * columns[:, part]).sum(dim=-1)
            total[:, part] = torch.logsumexp(rows[:, part] @ columns.mT, dim=-1)
        ctx.save_for_backward(rows, columns, total)
        ctx.chunk = chunk
        return own - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        # With p the softmax, d(log p_ii) / d(score_ij) = [i = j] - p_ij; p is made again, chunk by chunk.
        rows, columns, total = ctx.saved_tensors
        rows_gradient = torch.empty_like(rows)
        columns_gradient = gradient[..., None] * rows
        for start in range(0, rows.shape[1], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            shares = torch.baddbmm(total[:, part, None], rows[:, part], columns.mT, beta=-1).exp_()
            shares *= gradient[:, part, None]
            rows_gradient[:, part] = torch.baddbmm(
                gradient[:, part, None] * columns[:, part], shares, columns, alpha=-1
            )
            columns_gradient.baddbmm_(shares.mT, rows[:, part], alpha=-1)
        return rows_gradient, columns_gradient, None


def log_diagonal_attention(rows: Tensor, columns: Tensor, *, chunk: int | None = None) -> Tensor:
    """Logarithm of the diagonal of ``softmax(rows @ columns.T)`` over each row, without the N x N map.

    Forward and backward each go through the map `chunk` rows at a time, so memory grows with N and not with its
    square; values and gradients are those of the dense formula. Half-precision inputs are calculated in float32. The
    logarithm keeps the differences between entries that are all but one.

    Parameters
    ----------
    rows, columns : Tensor of shape (B, N, D)
        Scaled as wanted beforehand.
    chunk : int, optional
        Rows of each map held at a time. Default: so many that the maps of the batch together have about 512.

    Returns
    -------
    Tensor of shape (B, N)
    """
    if rows.dtype in (torch.bfloat16, torch.float16):
        rows, columns = rows.float(), columns.float()
    chunk = chunk or max(16, 512 // max(1, len(rows)))
    if rows.is_meta:  # shapes alone; autocast knows no such device
        return cast(Tensor, _LogDiagonal.apply(rows, columns, chunk))
    with torch.autocast(rows.device.type, enabled=False):
        return cast(Tensor, _LogDiagonal.apply(rows, columns, chunk))


# --- encoder and decoder ----------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, *, first_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """New tokens (B, N, width), and what the first token attends to, (B, N), the mean of the heads, if asked."""
        batch, count, width = tokens.shape
        split = self.query_key_value(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        row = None
        if first_row:
            scores = (query[:, :, :1] @ key.mT).squeeze(2).float() / math.sqrt(width // self.heads)
            row = scores.softmax(dim=-1).mean(dim=1)
        return self.out(mixed), row


class TransformerBlock(nn.Module):
    """Layer norm, attention, layer norm, two-layer perceptron, each pair with a residual (eq. 3, Fig. 3)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, *, first_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """New tokens, and what the first one attends to if asked."""
        mixed, row = self.attention(self.attention_norm(tokens), first_row=first_row)
        tokens = tokens + mixed
        return tokens + self.mlp(self.mlp_norm(tokens)), row


class Encoded(NamedTuple):
    """What the encoder makes of frames.

    ``patches`` is P (eq. 4), (B, N, width); ``context`` the contextual feature p^CT, (B, width); ``interest`` the
    patch-of-interest scores S (eq. 11), (B, N), which sum to one.
    """

    patches: Tensor
    context: Tensor
    interest: Tensor

    def split(self, size: int) -> list[Encoded]:
        """Parts of `size` frames each."""
        return [Encoded(*part) for part in zip(*(tensor.split(size) for tensor in self), strict=True)]


class MicroEncoder(nn.Module):
    """The µ-Encoder (Sec. 4.2) with the contextual token of Sec. 4.6.

    Parameters
    ----------
    image_size, patch_size, width, depth, heads : int
    mlp_ratio : float
    """

    positions: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.side = image_size // patch_size
        self.width = width
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.context_token = nn.Parameter(torch.empty(width))
        places = torch.arange(self.side)
        self.register_buffer("positions", sine_positions(width, places, places), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        nn.init.normal_(self.context_token, std=0.02)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Encoded:
        """Encode normalised images (B, 3, H, W); smaller ones than the frames stand for parts seen at lower detail."""
        patches = self.patch_embedding(images)
        side = patches.shape[-1]
        positions = self.positions
        if side != self.side:
            # Centres of the coarser patches, in the units of the full grid.
            places = (torch.arange(side, dtype=torch.float64) + 0.5) * (self.side / side) - 0.5
            positions = sine_positions(self.width, places, places).to(positions)
        tokens = patches.flatten(2).mT + positions
        # The contextual token's position is all zeros.
        tokens = torch.cat([self.context_token.expand(len(tokens), 1, -1), tokens], dim=1)
        row: Tensor | None = None
        for number, block in enumerate(self.blocks, start=1):
            tokens, row = block(tokens, first_row=number == len(self.blocks))
        tokens = self.norm(tokens)
        scores = cast(Tensor, row)[:, 1:]
        return Encoded(tokens[:, 1:], tokens[:, 0], scores / scores.sum(dim=1, keepdim=True))


class MicroDecoder(nn.Module):
    """The µ-Decoder: blocks like the encoder's and a linear layer to the pixels of each patch (eq. 5-6).

    Parameters
    ----------
    side : int
        Patches along one side of the frame.
    patch_size, width, depth, heads : int
    mlp_ratio : float
    """

    positions: Tensor

    def __init__(self, side: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.embedding = nn.Linear(width, width)
        places = torch.arange(side)
        self.register_buffer("positions", sine_positions(width, places, places), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pixels = nn.Linear(width, 3 * patch_size * patch_size)
        self.apply(_initialise)

    def forward(self, features: Tensor) -> Tensor:
        """Pixels of each patch, (B, N, 3 * patch_size ** 2), from features (B, N, width)."""
        tokens = self.embedding(features) + self.positions
        for block in self.blocks:
            tokens, _ = block(tokens)
        return cast(Tensor, self.pixels(self.norm(tokens)))


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as in the published code."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        # A patch embedding is a linear layer on flattened patches, and is drawn as one.
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- diagonal micro-attention -----------------------------------------------------------------------------------------


class MicroAttention(nn.Module):
    """Diagonal micro-attention (Sec. 4.5, eq. 8-9, with patch of interest eq. 12), one head.

    Parameters
    ----------
    width : int
    kind : {"diagonal", "full"}
        ``"full"`` is the cross attention of the published code: every patch gathers the values of all.
    similarity : {"dot", "cosine"}
        Scores are products over the root of `width`, or cosines times the logarithm of the number of patches.
    """

    def __init__(
        self,
        width: int,
        kind: Literal["diagonal", "full"] = "diagonal",
        similarity: Literal["dot", "cosine"] = "dot",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.similarity = similarity
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.apply(_initialise)

    def scored(self, second: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
        """Q(P_{t+δ}) and K(P_{t/s}), (B, N, width) each, scaled so that their products are the scores."""
        query, key = self.query(second), self.key(swapped)
        if self.similarity == "cosine":
            return F.normalize(query, dim=-1) * math.log(query.shape[1]), F.normalize(key, dim=-1)
        return query / math.sqrt(query.shape[2]), key

    def log_diagonal(self, second: Tensor, swapped: Tensor) -> Tensor:
        """Logarithm of diag(Â), (B, N), from patches (B, N, width) of I_{t+δ} and of I_{t/s}.

        As eq. 8 has it, the entries Â(i, j) over all patches i of I_{t+δ} sum to one for each patch j of I_{t/s}.
        """
        query, key = self.scored(second, swapped)
        return log_diagonal_attention(key, query)

    def map(self, second: Tensor, swapped: Tensor) -> Tensor:
        """The whole Â, (B, N, N): patches of I_{t+δ} down, of I_{t/s} across, each column summing to one (eq. 8)."""
        query, key = self.scored(second, swapped)
        return (query @ key.mT).float().softmax(dim=-2)

    def forward(
        self, second: Tensor, swapped: Tensor, interest: Tensor | None = None, *, relative: bool = False
    ) -> Tensor:
        """P_dma, (B, N, width).

        Parameters
        ----------
        second, swapped : Tensor of shape (B, N, width)
            P_{t+δ} and P_{t/s}.
        interest : Tensor of shape (B, N), optional
            S_{t+δ}. It is multiplied by N, so that even interest changes nothing.
        relative : bool
            Divide the weights of the patches by their mean.
        """
        if self.kind == "full":
            query, key = self.scored(second, swapped)
            asking, asked, value = (part[:, None] for part in (key, query, self.value(swapped)))
            mixed = F.scaled_dot_product_attention(asking, asked, value, scale=1.0).squeeze(1)
            weight = None if interest is None else interest.shape[1] * interest
        else:
            weight = self.log_diagonal(second, swapped).exp()
            if interest is not None:
                weight = weight * interest * interest.shape[1]
            mixed = self.value(swapped)
        if weight is not None:
            if relative:
                weight = weight / weight.mean(dim=1, keepdim=True)
            mixed = mixed * weight[..., None].to(mixed.dtype)
        return cast(Tensor, self.out(mixed))


# --- the agreement of the published code ------------------------------------------------------------------------------


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
    """Agreement of crops between encoder and a slow copy of it (the published code's place of eq. 15).

    Cross-entropy between the sharpened, centred scores of the teacher on two large crops and those of the student on
    all other crops; the teacher follows the student by a moving average.

    Parameters
    ----------
    encoder : MicroEncoder
        Copied to be the teacher.
    outputs : int
        Length of the scores.
    hidden : int
        Hidden width of the head.
    """

    centre: Tensor
    student_temperature = 0.1
    teacher_temperature = 0.04
    centre_momentum = 0.9
    teacher_momentum = 0.997

    def __init__(self, encoder: MicroEncoder, outputs: int = 128, hidden: int = 2048) -> None:
        super().__init__()
        self.head = DinoHead(encoder.width, outputs, hidden)
        self.teacher = nn.ModuleDict({"encoder": copy.deepcopy(encoder), "head": copy.deepcopy(self.head)})
        self.teacher.requires_grad_(False)
        self.register_buffer("centre", torch.zeros(outputs))
        self._seen: Tensor | None = None
        self._done = 0.0

    def forward(self, encoder: MicroEncoder, large: list[Tensor], small: list[Tensor], done: float) -> Tensor:
        """Loss of two large and any number of small crops, each (B, 3, h, w)."""
        student = [self.head(part.context) for part in encoder(torch.cat(large)).split(len(large[0]))]
        if small:
            student += [self.head(part.context) for part in encoder(torch.cat(small)).split(len(small[0]))]
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


# --- the backbone -----------------------------------------------------------------------------------------------------


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


@register_backbone("mubert_small")
class MuBert(Backbone):
    """µ-BERT of the paper's size: encoder and diagonal micro-attention on onset and apex, pretrained on frame pairs.

    Nguyen et al., "Micron-BERT: BERT-based Facial Micro-Expression Recognition", CVPR 2023. Equations, sections and
    Algorithm 1 are cited where they are written. For recognition (Sec. 5.3) onset and apex take the places of I_t and
    I_{t+δ}, nothing is swapped, and the embedding is made of P_dma.

    Parameters
    ----------
    image_size, patch_size : int
        Sides of the frames and of the patches in pixels (Sec. 4.1: 224 and 8, hence 784 patches).
    width, depth, decoder_depth : int
        Length of every vector, blocks of encoder and decoder (Sec. 5.2: 512, 4, 4).
    heads : int
        Attention heads of each block (published code: 4).
    mlp_ratio : float
        Hidden width of the perceptrons over `width` (published code: 4).
    attention : {"diagonal", "full", "none"}
        Diagonal micro-attention (eq. 8-9), the cross attention that the published weights use in its place, or neither
        (MB1 of Table 6, with ``interest=False``).
    interest : bool
        Weigh patches by the patch-of-interest scores (eq. 12) and train with the agreement loss; False is MB2 of
        Table 6.
    agreement : {"mse", "dino"}
        Mean squared difference of contextual features (eq. 15), or the teacher and student of the published code.
    reconstruction_weight, agreement_weight : float
        γ and β of eq. 13. The paper does not give them; published code: 1 and 1.
    swap_ratio, min_block, min_aspect : float
        r_s, min_bs and min_ar of Algorithm 1, whose defaults these are.
    crop_area : (low, high)
        Share of the frame that Crop (eq. 10) keeps. Not in the paper; this is the range of DINO's large crops.
    small_crops : int
        Further crops that the student sees with ``agreement="dino"`` (published arguments: 8), 5 % to `crop_area`'s
        lower end of the frame, shown at 3/7 of its size.
    head_width : int
        Hidden width of the head of ``"dino"`` (published code: 2048).
    normalise_patches : bool
        Reconstruct each patch after bringing it to mean 0 and deviation 1 (an option of the published code).
    similarity : {"dot", "cosine"}
        Scores of the micro-attention: products over sqrt(d) as in the published code, or cosines times log(N). The
        second are bounded: training cannot bring every entry of the diagonal to one by telling places apart, and a
        patch unlike all others weighs one half.
    noise : float
        Deviation of normal noise on P_dma in training without labels. With it, the weights W decide how precisely
        each patch reaches the decoder; without, any weight but zero does.
    start : {"xavier", "likeness"}
        Initial weights: those of the published code, or `begin_with_likeness`.
    reading : {"diagonal", "relative"}
        How `explain_maps` reads a change from the attention: ``1 - diag / max`` as the published code does, or how far
        the diagonal between the frames falls below that of each frame with itself, see `change`.
    both_ways : bool
        The embedding is P_dma with onset and apex exchanged minus P_dma, so that it is zero without movement and
        holds what patches became as well as what they were; the bias of P_dma cancels out and is frozen except in
        training without labels. The paper uses P_dma alone.
    regions : int
        Average P_dma, over the mean weight W, in that many rows and columns of regions. The paper does not say how
        P_dma enters the classifier; 1 averages over the whole frame.
    changes : int
        Join the map of `change`, averaged over that many rows and columns of regions, to the embedding, times 20, and
        P_dma times 0.25; 0 leaves it out, as the paper does.

    Notes
    -----
    There, of the paper: patches and fixed sine positions (eq. 1-2), pre-norm blocks (eq. 3-4), decoder with pixel layer
    (eq. 5-6), Algorithm 1, diagonal micro-attention (eq. 8-9), contextual token, agreement and patch of interest
    (eq. 10-12), losses (eq. 13-15), encoder and micro-attention as the backbone of recognition (Sec. 5.3).

    From the published code, where the paper is silent: heads, width of the perceptrons, one attention head with the
    scale 1/sqrt(d) and an output layer after eq. 9, layer norm after the last block, decoder embedding and positions,
    ImageNet's mean and deviation, how the diagonal is read as a map.

    Settled here: S is multiplied by the number of patches within W, which the output layer can undo and which keeps
    P_dma at the size of the tokens; S is the mean of the heads, without the contextual token's share. Crop (eq. 10)
    keeps 40 to 100 % of the frame. Rounding in Algorithm 1 is in `draw_blocks`. The sum over i in eq. 8 is taken as
    printed: shares over the patches of I_{t+δ}. How P_dma enters the classifier the paper does not say: here its mean
    over the frame, divided by the mean of W, is the embedding, and the classifier on it is linear.

    Deviations: training without labels counts steps instead of epochs, and those of one GPU's batch; either frame of a
    pair may be the earlier one, where the paper adds δ.

    Absent: the 8 million frames of CAS(ME)³ and the authors' weights; dropout and augmentation of fine-tuning, of
    which the paper says nothing; the other networks of its tables and figures (ViT, MoCo, BEiT and MAE of Table 6, RAFT
    and MagNet of Fig. 7). Eq. 7 gives the reason for swapping and has no place in code. The decoder is frozen except in
    training without labels, as recognition leaves it out.
    """

    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="Micron-BERT gives no values for fine-tuning; AdamW with a cosine to zero from 1e-4 as in its Sec. 5.2, "
        "epochs, batch size, warm-up and weight decay are fsmer's own",
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.05,
        epochs=50,
        batch_size=16,
        schedule="cosine",
        warmup_epochs=5,
        clip_gradient=1.0,
    )
    pretraining_recipe: ClassVar[PretrainRecipe] = PretrainRecipe(
        source="Micron-BERT Sec. 5.2: AdamW, 1e-4 with a cosine to zero, 64 pairs a GPU, frames 5 to 11 apart; 100 "
        "epochs of 8 million frames are 390,625 steps on its 32 GPUs, here as many with the pairs of one. Weight decay "
        "is not given: AdamW's usual 0.01",
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.01,
        steps=390_625,
        batch_size=64,
        distance=(5, 11),
        schedule="cosine",
    )

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 8,
        width: int = 512,
        depth: int = 4,
        heads: int = 4,
        decoder_depth: int = 4,
        mlp_ratio: float = 4.0,
        attention: Literal["diagonal", "full", "none"] = "diagonal",
        interest: bool = True,
        agreement: Literal["mse", "dino"] = "mse",
        reconstruction_weight: float = 1.0,
        agreement_weight: float = 1.0,
        swap_ratio: float = 0.5,
        min_block: float = 16.0,
        min_aspect: float = 0.3,
        crop_area: Sequence[float] = (0.4, 1.0),
        small_crops: int = 8,
        head_width: int = 2048,
        normalise_patches: bool = False,
        similarity: Literal["dot", "cosine"] = "dot",
        noise: float = 0.0,
        start: Literal["xavier", "likeness"] = "xavier",
        reading: Literal["diagonal", "relative"] = "diagonal",
        both_ways: bool = False,
        regions: int = 1,
        changes: int = 0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config["crop_area"] = list(crop_area)
        _check_arguments(config)
        specs = [
            InputSpec(kind=kind, size=(image_size, image_size), channels=("red", "green", "blue"), normalisation="unit")
            for kind in ("onset", "apex")
        ]
        super().__init__(input_spec=specs, embed_dim=width * regions**2 + changes**2, config=config)
        self.patch_size = patch_size
        self.side = image_size // patch_size
        self.interest = interest
        self.weights = (reconstruction_weight, agreement_weight)
        self.swapping = {"ratio": swap_ratio, "min_block": min_block, "min_aspect": min_aspect}
        self.crop_area = (crop_area[0], crop_area[1])
        self.small_crops = small_crops
        self.normalise_patches = normalise_patches
        self.noise = noise
        self.reading = reading
        self.both_ways = both_ways
        self.regions = regions
        self.changes = changes
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGE_DEVIATION).view(3, 1, 1), persistent=False)
        self.encoder = MicroEncoder(image_size, patch_size, width, depth, heads, mlp_ratio)
        self.micro_attention = None if attention == "none" else MicroAttention(width, attention, similarity)
        self.decoder = MicroDecoder(self.side, patch_size, width, decoder_depth, heads, mlp_ratio)
        if start == "likeness":
            begin_with_likeness(self)
        self.dino = DinoAgreement(self.encoder, hidden=head_width) if interest and agreement == "dino" else None
        # Labels do not reach what serves training without them; `begin_pretraining` gives it back.
        self.decoder.requires_grad_(False)
        if both_ways and self.micro_attention is not None:
            # P_dma one way less P_dma the other way: what both hold is gone.
            self.micro_attention.out.bias.requires_grad_(False)
        if self.dino is not None:
            self.dino.requires_grad_(False)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings (B, embed_dim) of ``{"onset": ..., "apex": ...}``, images (B, 3, H, W) from 0 to 1."""
        onset, apex = self._encode(inputs)
        # The diagonal is of the order of 1/N: the mean over patches becomes one weighted by W.
        features = self._weighed(apex, onset, relative=True)
        if self.both_ways:
            features = self._weighed(onset, apex, relative=True) - features
        found = self._averaged(features, self.regions)
        if not self.changes:
            return found
        changes = self._averaged(self.change(onset, apex)[..., None].to(found.dtype), self.changes)
        return torch.cat([FEATURE_GAIN * found, CHANGE_GAIN * changes], dim=1)

    def _averaged(self, values: Tensor, regions: int) -> Tensor:
        """Means of values (B, N, D) over the patches of each region, (B, D * regions ** 2)."""
        return F.adaptive_avg_pool2d(values.mT.unflatten(2, (self.side, self.side)), regions).flatten(1)

    def begin_pretraining(self) -> None:
        """Make trainable what serves training without labels alone.

        These are the decoder, the head of ``"dino"`` and, with `both_ways`, the bias of P_dma.
        """
        self.decoder.requires_grad_(True)
        if self.micro_attention is not None:
            self.micro_attention.out.bias.requires_grad_(True)
        if self.dino is not None:
            self.dino.head.requires_grad_(True)

    def pretraining_loss(
        self, first: Tensor, second: Tensor, *, done: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Reconstruction and agreement (eq. 13-15) of pairs of frames; no label is used.

        Parameters
        ----------
        first, second : Tensor of shape (B, 3, H, W)
            I_t and I_{t+δ}, from 0 to 1.
        done : float
            Share of the training that is over; sets the teacher's momentum with ``agreement="dino"``.
        generator : torch.Generator
            Draws the blocks of Algorithm 1 and the crops.

        Returns
        -------
        dict
            ``"loss"`` (eq. 13), and detached ``"reconstruction"`` (eq. 14) and ``"agreement"`` (eq. 15).
        """
        first, second = self._normalised(first), self._normalised(second)
        views = [self.swap(first, second, generator), second]
        if self.interest and self.dino is None:
            views.append(random_crops(second, second.shape[-1], self.crop_area, generator))
        swapped, whole, *cropped = self.encoder(torch.cat(views)).split(len(first))
        features = self._weighed(whole, swapped)
        if self.noise:
            drawn = torch.randn(features.shape, generator=generator, device=generator.device)
            features = features + self.noise * drawn.to(features)
        pixels = self.decoder(features)
        reconstruction = F.mse_loss(pixels.float(), self._wanted(first).float())
        losses = {"loss": self.weights[0] * reconstruction, "reconstruction": reconstruction.detach()}
        agreement: Tensor | None = None
        if cropped:
            agreement = F.mse_loss(whole.context, cropped[0].context)
        elif self.dino is not None:
            agreement = self.dino(self.encoder, *self._crops(second, generator), done)
        if agreement is not None:
            losses["loss"] = losses["loss"] + self.weights[1] * agreement
            losses["agreement"] = agreement.detach()
        return losses

    def after_step(self) -> None:
        """Let the teacher of ``"dino"`` follow after an optimiser step."""
        if self.dino is not None:
            self.dino.follow(self.encoder)

    def swap(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        """I_{t/s}: `first` with blocks of patches from `second` (Sec. 4.4, Algorithm 1), drawn anew for each pair."""
        masks = torch.stack(
            [
                swap_mask(draw_blocks(self.side, self.side, generator=generator, **self.swapping), self.side, self.side)
                for _ in first
            ]
        )
        pixels = masks.repeat_interleave(self.patch_size, dim=1).repeat_interleave(self.patch_size, dim=2)
        return torch.where(pixels[:, None].to(first.device), second, first)

    def explain_maps(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What moved and what counts, by patch: ``"dma"``, ``"poi"`` and their product ``"dma_poi"``.

        Each is (B, H / patch_size, W / patch_size) from 0 to 1: where the diagonal of the attention between the frames
        is low (see `reading`), the patch-of-interest scores of the apex over their largest (eq. 11), and the product
        over its largest (Fig. 7). Maps that the network is built without are left out.
        """
        onset, apex = self._encode(inputs)
        maps = {}
        if self.micro_attention is not None:
            maps["dma"] = self.change(onset, apex)
        if self.interest:
            maps["poi"] = _over_largest(apex.interest.float())
        if len(maps) == 2:
            maps["dma_poi"] = _over_largest(maps["dma"] * maps["poi"])
        return {name: values.unflatten(1, (self.side, self.side)) for name, values in maps.items()}

    def change(self, onset: Encoded, apex: Encoded) -> Tensor:
        """How much each patch changed according to the diagonal, (B, N) from 0 to 1.

        With ``reading="diagonal"`` this is ``1 - diag(Â) / max diag(Â)``. A patch that looks like its neighbours has
        a low diagonal without moving, though. ``"relative"`` takes the logarithm of the diagonal from onset to apex and
        from apex to onset less that of each frame with itself; half that sum, at most zero, is c and the map
        ``1 - exp(c)``.
        """
        attention = cast(MicroAttention, self.micro_attention)
        before, after = onset.patches, apex.patches
        diagonal = attention.log_diagonal(after, before)
        if self.reading == "diagonal":
            return -torch.expm1(diagonal - diagonal.amax(dim=1, keepdim=True))
        across = diagonal + attention.log_diagonal(before, after)
        still = attention.log_diagonal(before, before) + attention.log_diagonal(after, after)
        return -torch.expm1(((across - still) / 2).clamp(max=0))

    def attention_map(self, inputs: dict[str, Tensor]) -> Tensor:
        """The whole Â of eq. 8, (B, N, N): patches of the apex down, of the onset across.

        Raises
        ------
        FsmerError
            The network was built with ``attention="none"``.
        """
        if self.micro_attention is None:
            raise FsmerError(
                f"{self.name!r} was built with attention='none' and has no map; give 'diagonal' or 'full'."
            )
        onset, apex = self._encode(inputs)
        return self.micro_attention.map(apex.patches, onset.patches)

    def _encode(self, inputs: dict[str, Tensor]) -> tuple[Encoded, Encoded]:
        """Onset and apex through the encoder."""
        if not isinstance(inputs, dict) or not {"onset", "apex"} <= inputs.keys():
            given = f"only {', '.join(inputs) or 'nothing'}" if isinstance(inputs, dict) else type(inputs).__name__
            raise SpecMismatchError(f"{self.name!r} eats onset and apex, but was given {given}; give a dict with both.")
        onset, apex = self._normalised(inputs["onset"]), self._normalised(inputs["apex"])
        if len(onset) != len(apex):
            raise SpecMismatchError(f"there are {len(onset)} onsets and {len(apex)} apexes; give one of each a clip.")
        encoded = self.encoder(torch.cat([onset, apex])).split(len(onset))
        return encoded[0], encoded[1]

    def _normalised(self, frames: Tensor) -> Tensor:
        wanted = self.input_specs[0].shape
        if frames.ndim != 4 or tuple(frames.shape[1:]) != wanted:
            raise SpecMismatchError(
                f"{self.name!r} eats frames of shape (B, {', '.join(map(str, wanted))}), but was given "
                f"{tuple(frames.shape)}; resize the frames or set image_size."
            )
        return (frames - self.mean) / self.deviation

    def _weighed(self, second: Encoded, swapped: Encoded, *, relative: bool = False) -> Tensor:
        """P_dma (eq. 9 or 12), or the patches of I_{t/s} as they are where there is no micro-attention."""
        if self.micro_attention is None:
            return swapped.patches
        interest = second.interest if self.interest else None
        return cast(Tensor, self.micro_attention(second.patches, swapped.patches, interest, relative=relative))

    def _wanted(self, first: Tensor) -> Tensor:
        """What the decoder has to give back."""
        pixels = patchify(first, self.patch_size)
        if not self.normalise_patches:
            return pixels
        spread = (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        return (pixels - pixels.mean(dim=-1, keepdim=True)) / spread

    def _crops(self, frames: Tensor, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Two large crops and the small ones of the published code."""
        size = frames.shape[-1]
        small = max(1, round(self.side * 3 / 7)) * self.patch_size
        return (
            [random_crops(frames, size, self.crop_area, generator) for _ in range(2)],
            [random_crops(frames, small, (0.05, self.crop_area[0]), generator) for _ in range(self.small_crops)],
        )


@register_backbone("mubert_tiny")
class MuBertTiny(MuBert):
    """µ-BERT for two processor cores: frames of 112, width 128, two blocks each; pretrained in minutes.

    As `MuBert` (``mubert_small``), whose parameters it takes and whose notes hold; the values that differ are fsmer's
    own.

    Parameters
    ----------
    image_size, width, depth, decoder_depth : int
        112 (196 patches), 128, 2, 2.
    normalise_patches, similarity, noise, start
        True, ``"cosine"``, 0.5 and ``"likeness"``: with the paper's values, a short training makes the diagonal tell
        places apart and no longer changes, see `MuBert` and `begin_with_likeness`.
    reading, both_ways, regions, changes
        ``"relative"``, True, 4 and 7: where and how a face moves is lost in a mean over the frame, see `MuBert`.
    others
        See `MuBert`.

    Notes
    -----
    What of the paper is there, what comes from the published code and what is absent: as in ``mubert_small``.

    Deviations beside those of ``mubert_small``: the size; what is reconstructed is normalised patch by patch (an option
    of the published code); cosines in place of products in eq. 8, noise on P_dma during training without labels, other
    initial weights; maps read relative to each frame with itself; the embedding takes P_dma both ways, by region, and
    the map of changes. Learning rate, steps and batch size of both trainings differ too.
    """

    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="fsmer's own choice for a network of this size",
        optimizer="adamw",
        learning_rate=5e-4,
        weight_decay=0.05,
        epochs=30,
        batch_size=16,
        schedule="cosine",
        warmup_epochs=2,
        clip_gradient=1.0,
    )
    pretraining_recipe: ClassVar[PretrainRecipe] = PretrainRecipe(
        source="distance as in Micron-BERT Sec. 5.2; the rest is fsmer's own choice for two processor cores",
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        steps=1000,
        batch_size=8,
        distance=(5, 11),
        warmup_steps=30,
        schedule="cosine",
        clip_gradient=1.0,
    )

    def __init__(
        self,
        image_size: int = 112,
        patch_size: int = 8,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        decoder_depth: int = 2,
        mlp_ratio: float = 4.0,
        attention: Literal["diagonal", "full", "none"] = "diagonal",
        interest: bool = True,
        agreement: Literal["mse", "dino"] = "mse",
        reconstruction_weight: float = 1.0,
        agreement_weight: float = 1.0,
        swap_ratio: float = 0.5,
        min_block: float = 16.0,
        min_aspect: float = 0.3,
        crop_area: Sequence[float] = (0.4, 1.0),
        small_crops: int = 8,
        head_width: int = 2048,
        normalise_patches: bool = True,
        similarity: Literal["dot", "cosine"] = "cosine",
        noise: float = 0.5,
        start: Literal["xavier", "likeness"] = "likeness",
        reading: Literal["diagonal", "relative"] = "relative",
        both_ways: bool = True,
        regions: int = 4,
        changes: int = 7,
    ) -> None:
        super().__init__(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})


def begin_with_likeness(model: MuBert) -> None:
    """Set initial weights with which a short training already tells small differences.

    The patch embedding is a randomly turned cosine transform of each patch (grey and two colour differences, the lowest
    `width` frequencies) whose gain grows with frequency, as the spectrum of pictures falls: patches then differ by
    texture as much as by brightness. Query and key of the micro-attention are equal, so that it begins as likeness.
    Value, output and decoder embedding are rotations, and the branches of all blocks begin small, so that the way to
    the decoder is open. The queries of the encoder begin small too: no patch is of interest before there is a reason.
    """
    encoder, decoder = model.encoder, model.decoder
    size = model.patch_size
    waves = _cosine_transform(size)
    colours = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]), dim=1)
    steps = torch.arange(size, dtype=torch.float32)
    frequency = (steps[:, None].square() + steps.square()).sqrt().expand(3, size, size)
    # Colour is coarser than grey in pictures: its frequencies come later, and it is weaker.
    coloured = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1).expand_as(frequency)
    order = (frequency + size / 2 * coloured).flatten().argsort(stable=True)[: encoder.width]
    basis = torch.einsum("kc,im,jn->kijcmn", colours, waves, waves).flatten(0, 2)
    gains = 0.3 * (frequency + 0.5) * (1 + coloured)
    weight = torch.zeros(encoder.width, *basis.shape[1:])
    weight[: len(order)] = (gains.flatten()[:, None, None, None] * basis)[order]
    with torch.no_grad():
        turn = nn.init.orthogonal_(torch.empty(encoder.width, encoder.width))
        encoder.patch_embedding.weight.copy_((turn @ weight.flatten(1)).view_as(encoder.patch_embedding.weight))
        for block in (*encoder.blocks, *decoder.blocks):
            block.attention.out.weight.mul_(0.1)
            block.mlp[-1].weight.mul_(0.1)
        for block in encoder.blocks:
            cast(TransformerBlock, block).attention.query_key_value.weight[: encoder.width].mul_(0.1)
    nn.init.orthogonal_(decoder.embedding.weight)
    if model.micro_attention is not None:
        nn.init.orthogonal_(model.micro_attention.value.weight)
        nn.init.orthogonal_(model.micro_attention.out.weight)
        model.micro_attention.key.load_state_dict(model.micro_attention.query.state_dict())


def _cosine_transform(size: int) -> Tensor:
    """Orthonormal cosine waves (DCT-II), one a row."""
    steps = torch.arange(size, dtype=torch.float32)
    waves = torch.cos(math.pi * steps[:, None] * (steps + 0.5) / size) * math.sqrt(2 / size)
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])


def _over_largest(values: Tensor) -> Tensor:
    """Values of each row over the largest of them."""
    return values / values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _check_arguments(arguments: dict[str, Any]) -> None:
    """One sentence about the first argument that cannot be used."""
    image, patch, width = arguments["image_size"], arguments["patch_size"], arguments["width"]
    if min(image, patch) < 1 or image % patch:
        raise FsmerError(f"image_size {image} is not a multiple of patch_size {patch}; choose sizes that divide.")
    if width < 4 or width % 4 or width % arguments["heads"]:
        raise FsmerError(
            f"width {width} cannot be split into {arguments['heads']} heads and two-dimensional positions; choose a "
            "multiple of four and of the heads."
        )
    for name, choices in (
        ("attention", ("diagonal", "full", "none")),
        ("agreement", ("mse", "dino")),
        ("similarity", ("dot", "cosine")),
        ("start", ("xavier", "likeness")),
        ("reading", ("diagonal", "relative")),
    ):
        if arguments[name] not in choices:
            raise FsmerError(f"{name} is {arguments[name]!r}, but must be one of {', '.join(choices)}.")
    if arguments["attention"] == "none" and arguments["interest"]:
        raise FsmerError("patches of interest weigh micro-attention, but attention is 'none'; set interest=False too.")
    if not (0 < arguments["swap_ratio"] <= 1 and 0 < arguments["min_aspect"] <= 1 and arguments["min_block"] >= 1):
        raise FsmerError(
            f"blocks cannot be drawn with swap_ratio {arguments['swap_ratio']}, min_block {arguments['min_block']} and "
            f"min_aspect {arguments['min_aspect']}; the ratios lie above 0 and up to 1, the block has 1 patch or more."
        )
    crop = arguments["crop_area"]
    if len(crop) != 2 or not 0.05 <= crop[0] <= crop[1] <= 1:
        raise FsmerError(
            f"crop_area is {crop}, but must be two shares of the frame from 0.05 to 1, the lower one first."
        )
    for name, least in (("regions", 1), ("changes", 0)):
        if arguments[name] < least:
            raise FsmerError(f"{name} is {arguments[name]}, but must be {least} or more.")
    if arguments["attention"] == "none" and arguments["changes"]:
        raise FsmerError("changes are read from micro-attention, but attention is 'none'; set changes=0 too.")

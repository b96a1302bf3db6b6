"""Encoder, decoder and diagonal micro-attention of Micron-BERT (`fsmer.backbones.mubert`)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fsmer.kernels.differentiation import is_second_order

__all__ = ["Encoded", "MicroAttention", "MicroDecoder", "MicroEncoder", "begin_with_likeness", "patchify"]

NORM_EPSILON = 1e-6


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch, (B, rows * columns, patch_size * patch_size * C), from images (B, C, H, W) (eq. 1, 6)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)


def sine_positions(width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Fixed two-dimensional sine positions, (len(rows) * len(columns), width), row by row; `width` a multiple of four.
    The first half of the entries describes the column, the second the row (in patches); each half is the sines and then
    the cosines of ``x / 10000 ** (4 k / width)`` with k = 0 ... width / 4 - 1."""
    steps = torch.arange(width // 4, dtype=torch.float64)
    frequencies = 10000.0 ** (-4 * steps / width)

    def waves(places: Tensor) -> Tensor:
        angles = places.double()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    across = waves(columns)[None].expand(len(rows), -1, -1)
    down = waves(rows)[:, None].expand(-1, len(columns), -1)
    return torch.cat([across, down], dim=2).flatten(0, 1).float()


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
            own = gradient[:, part, None] * columns[:, part]
            rows_gradient[:, part] = torch.baddbmm(own, shares, columns, alpha=-1)
            columns_gradient.baddbmm_(shares.mT, rows[:, part], alpha=-1)
        return rows_gradient, columns_gradient, None


def log_diagonal_attention(rows: Tensor, columns: Tensor, *, chunk: int | None = None) -> Tensor:
    """Logarithm of the diagonal of ``softmax(rows @ columns.T)`` over each row, (B, N), without the N x N map. `rows`
    and `columns`, (B, N, D), are scaled beforehand. Forward and backward each go through the map `chunk` rows at a time
    (default: so many that the maps of the batch together have about 512), so memory grows with N and not with its
    square; values and gradients are those of the dense formula, which stands in for it where gradients are
    differentiated again (`second_order`). Half-precision inputs are calculated in float32. The
    logarithm keeps the differences between entries that are all but one."""
    if rows.dtype in (torch.bfloat16, torch.float16):
        rows, columns = rows.float(), columns.float()
    # Of shapes alone autocast knows no device.
    with nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False):
        if is_second_order():
            return (rows * columns).sum(dim=-1) - torch.logsumexp(rows @ columns.mT, dim=-1)
        return _LogDiagonal.apply(rows, columns, chunk or max(16, 512 // max(1, len(rows))))


class SelfAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, *, first_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """New tokens (B, N, width), and what the first token attends to, (B, N), the mean of the heads, if asked."""
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        row = None
        if first_row:
            scores = (query[:, :, :1] @ key.mT).squeeze(2).float() / math.sqrt(query.shape[-1])
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
    """What the encoder makes of frames."""

    patches: Tensor  # P (eq. 4), (B, N, width)
    context: Tensor  # the contextual feature p^CT, (B, width)
    interest: Tensor  # the patch-of-interest scores S (eq. 11), (B, N), which sum to one

    def split(self, size: int) -> list[Encoded]:
        """Parts of `size` frames each."""
        return [Encoded(*part) for part in zip(*(tensor.split(size) for tensor in self), strict=True)]


class MicroEncoder(nn.Module):
    """The µ-Encoder (Sec. 4.2) with the contextual token of Sec. 4.6."""

    def __init__(self, image_size: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.side = image_size // patch_size
        self.width = width
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.context_token = nn.Parameter(torch.empty(width))
        places = torch.arange(self.side)
        self.positions = nn.Buffer(sine_positions(width, places, places), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        nn.init.normal_(self.context_token, std=0.02)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Encoded:
        """Encode normalised images (B, 3, H, W); smaller ones than the frames stand for parts seen at lower detail."""
        patches = self.patch_embedding(images)
        side, positions = patches.shape[-1], cast(Tensor, self.positions)
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
    """The µ-Decoder for `side` x `side` patches: blocks as in the encoder, a linear layer to the pixels (eq. 5-6)."""

    def __init__(self, side: int, patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.embedding = nn.Linear(width, width)
        places = torch.arange(side)
        self.positions = nn.Buffer(sine_positions(width, places, places), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pixels = nn.Linear(width, 3 * patch_size * patch_size)
        self.apply(_initialise)

    def forward(self, features: Tensor) -> Tensor:
        """Pixels of each patch, (B, N, 3 * patch_size ** 2), from features (B, N, width)."""
        tokens = self.embedding(features) + self.positions
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.pixels(self.norm(tokens))


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as in the published code."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        # A patch embedding is a linear layer on flattened patches, and is drawn as one.
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MicroAttention(nn.Module):
    """Diagonal micro-attention (Sec. 4.5, eq. 8-9, with patch of interest eq. 12), one head. `kind` ``"full"`` is the
    cross attention of the published code: every patch gathers the values of all. Scores are products over the root of
    `width` (``"dot"``), or cosines times the logarithm of the number of patches (``"cosine"``)."""

    def __init__(
        self, width: int, kind: Literal["diagonal", "full"] = "diagonal", similarity: Literal["dot", "cosine"] = "dot"
    ) -> None:
        super().__init__()
        self.kind, self.similarity = kind, similarity
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
        """Logarithm of diag(Â), (B, N), from patches (B, N, width) of I_{t+δ} and of I_{t/s}. As eq. 8 has it, the
        entries Â(i, j) over all patches i of I_{t+δ} sum to one for each patch j of I_{t/s}."""
        query, key = self.scored(second, swapped)
        return log_diagonal_attention(key, query)

    def map(self, second: Tensor, swapped: Tensor) -> Tensor:
        """The whole Â, (B, N, N): patches of I_{t+δ} down, of I_{t/s} across, each column summing to one (eq. 8)."""
        query, key = self.scored(second, swapped)
        return (query @ key.mT).float().softmax(dim=-2)

    def forward(
        self, second: Tensor, swapped: Tensor, interest: Tensor | None = None, *, relative: bool = False
    ) -> Tensor:
        """P_dma, (B, N, width), from P_{t+δ} in `second` and P_{t/s} in `swapped`, (B, N, width) each. The `interest`,
        S_{t+δ} of shape (B, N), is multiplied by N, so that even interest changes nothing. With `relative` the weights
        of the patches are divided by their mean."""
        if self.kind == "full":
            query, key = self.scored(second, swapped)
            rows, columns, value = (part[:, None] for part in (key, query, self.value(swapped)))
            mixed = F.scaled_dot_product_attention(rows, columns, value, scale=1.0).squeeze(1)
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
        return self.out(mixed)


def begin_with_likeness(encoder: MicroEncoder, decoder: MicroDecoder, attention: MicroAttention | None) -> None:
    """Set initial weights with which a short training already tells small differences.

    The patch embedding is a randomly turned cosine transform of each patch (grey and two colour differences, the lowest
    `width` frequencies) whose gain grows with frequency, as the spectrum of pictures falls: patches then differ by
    texture as much as by brightness. Query and key of the micro-attention are equal, so that it begins as likeness.
    Value, output and decoder embedding are rotations, and the branches of all blocks begin small, so that the way to
    the decoder is open. The queries of the encoder begin small too: no patch is of interest before there is a reason.
    """
    size = encoder.patch_embedding.kernel_size[0]
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
    if attention is not None:
        nn.init.orthogonal_(attention.value.weight)
        nn.init.orthogonal_(attention.out.weight)
        attention.key.load_state_dict(attention.query.state_dict())


def _cosine_transform(size: int) -> Tensor:
    """Orthonormal cosine waves (DCT-II), one a row."""
    steps = torch.arange(size, dtype=torch.float32)
    waves = torch.cos(math.pi * steps[:, None] * (steps + 0.5) / size) * math.sqrt(2 / size)
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])

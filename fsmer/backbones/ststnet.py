"""`ststnet`: the shallow triple-stream network on 28x28 flow maps, a baseline of 1,683 parameters."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones.base import Backbone
from fsmer.backbones.recipe import TrainRecipe
from fsmer.backbones.registry import register_backbone
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError
from fsmer.kernels.compiled import compiled, plain_in_memory
from fsmer.kernels.noise import drop_below, dropout, noise

__all__ = ["STSTNet"]

# Filters of the three streams, which differ in nothing else.
STREAMS = (3, 5, 8)
FILTERS = sum(STREAMS)
# The network was published for maps of 8-bit values.
GAIN = 255.0
# Numbers of room that are kept from batch to batch; 64 MiB.
LENT = 1 << 24


@register_backbone("ststnet")
class STSTNet(Backbone):
    """Shallow triple-stream CNN on u, v and strain: one convolution a stream, pooled twice.

    Liong et al. 2019, "Shallow Triple Stream Three-dimensional CNN (STSTNet) for Micro-expression Recognition". Each
    stream sees all three maps: 3x3 convolution, ReLU, batch normalisation, 3x3 maximum pooling with stride 3, dropout.
    The streams of 3, 5 and 8 filters are joined and averaged over 2x2 pixels, which leaves 400 numbers for the linear
    classifier.

    Parameters
    ----------
    padding : int
        Zeros around the map before the convolution: 1 keeps its 28 pixels, the authors' Python code has 2. Both leave
        10x10 pixels after the first pooling.
    dropout : float
        Share of the pooled values dropped in training (to the next 256th); 0.5 in the authors' Python code.
    size : int
        Side of the maps in pixels.

    Notes
    -----
    There: all layers in the order of the authors' Python code (github.com/christy1206/STSTNet, main.py), its learning
    rate, batch size and number of epochs, its 8-bit scale of the maps; 448 parameters of convolutions, 32 of batch
    normalisation and 1,203 of a classifier of three classes make 1,683. The streams lie side by side in one convolution
    of 16 filters.

    Deviation: clips are shuffled in every epoch, while the loader of that code never shuffles. Absent: the variant in
    MATLAB.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="the authors' Python code (Adam, rate 5e-5, batches of 256, 800 epochs, the last one taken); clips are "
        "shuffled here",
        optimizer="adam",
        learning_rate=5e-5,
        weight_decay=0.0,
        epochs=800,
        batch_size=256,
        schedule="constant",
    )
    stackable: ClassVar[bool] = True

    def __init__(self, padding: int = 1, dropout: float = 0.5, size: int = 28) -> None:
        if padding not in (1, 2):
            raise FsmerError(f"{self.name!r} was given a padding of {padding}; give 1 or 2.")
        if not 0 <= dropout < 1:
            raise FsmerError(f"{self.name!r} was given a dropout of {dropout}; give a share from 0 to below 1.")
        side = ((size + 2 * padding - 3) // 3 + 1) // 2
        if side < 1:
            raise FsmerError(f"maps of {size} pixels are too small for {self.name!r}; give 4 or more.")
        super().__init__(
            input_spec=InputSpec(kind="flow", size=(size, size), channels=("u", "v", "strain"), normalisation="minmax"),
            embed_dim=FILTERS * side * side,
            config={"padding": padding, "dropout": dropout, "size": size},
        )
        self.padding = padding
        self.dropout = dropout
        self.convolution = nn.Conv2d(3, FILTERS, 3, padding=padding)
        self.normalisation = nn.BatchNorm2d(FILTERS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of shape (B, 400) for minmax maps of shape (B, 3, 28, 28)."""
        if self.training and _fits(inputs, self.convolution.weight):
            return self._compiled(inputs)
        responses = self.normalisation(F.relu(self.convolution(GAIN * inputs)))
        pooled = F.max_pool2d(responses, 3, stride=3, padding=1)
        # Dropped with the filters last, which is how the compiled code lays them out.
        kept = dropout(pooled.movedim(1, -1), self.dropout, self.training).movedim(-1, 1)
        return F.avg_pool2d(kept, 2).flatten(1)

    def _compiled(self, inputs: Tensor) -> Tensor:
        norm = self.normalisation
        height, width = (side + 2 * self.padding - 2 for side in inputs.shape[-2:])
        shape = (len(inputs), (height - 1) // 3 + 1, (width - 1) // 3 + 1, FILTERS)
        limit = drop_below(self.dropout)
        drawn = noise(shape, inputs.device) if limit else None
        convolution = self.convolution
        embedded, statistics = _Shallow.apply(
            convolution.weight, convolution.bias, norm.weight, norm.bias, inputs, drawn, limit, self.padding, norm.eps
        )
        with torch.no_grad():
            mean, variance = statistics
            count = len(inputs) * height * width
            momentum = 0.1 if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.float(), momentum)  # type: ignore[union-attr]
            norm.running_var.lerp_((variance * (count / max(count - 1, 1))).float(), momentum)  # type: ignore[union-attr]
            norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return embedded


class _Loan:
    """Room for the responses of a batch, used again by the next: fresh memory costs as much as filling it."""

    _returned: ClassVar[list[Tensor]] = []

    def __init__(self, numbers: int) -> None:
        held = self._returned.pop() if self._returned else torch.empty(0)
        self.room = held if len(held) >= numbers else torch.empty(numbers)

    def __del__(self) -> None:
        if not self._returned and len(self.room) <= LENT:
            self._returned.append(self.room)


class _Shallow(torch.autograd.Function):
    """Convolution to average pooling in two compiled passes over the batch, see ``shallow.c``."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor,
        offset: Tensor,
        inputs: Tensor,
        drawn: Tensor | None,
        limit: int,
        padding: int,
        epsilon: float,
    ) -> tuple[Tensor, Tensor]:
        clips, _, height, width = inputs.shape
        media = inputs.contiguous()
        tall, wide = height + 2 * padding - 2, width + 2 * padding - 2
        windows = ((tall - 1) // 3 + 1, (wide - 1) // 3 + 1)
        padded = torch.zeros(3, height + 2 * padding, width + 2 * padding)
        taps = weight.detach().permute(1, 2, 3, 0).contiguous()
        loan = _Loan(clips * tall * wide * FILTERS)
        responses = loan.room
        pooled = torch.empty(clips, windows[0] * windows[1], FILTERS)
        statistics = torch.empty(2, FILTERS, dtype=torch.float64)
        embedded = torch.empty(clips, FILTERS * (windows[0] // 2) * (windows[1] // 2))
        sizes = (ctypes.c_double(GAIN), *map(ctypes.c_int64, (clips, height, width, padding)))
        _library().shallow_forward(
            _at(media),
            None,
            *sizes,
            *map(_at, (padded, taps, bias, scale, offset)),
            ctypes.c_double(epsilon),
            _at(drawn),
            ctypes.c_int64(limit),
            *map(_at, (responses, pooled, statistics[0], statistics[1], embedded)),
        )
        ctx.save_for_backward(scale, media, padded, pooled, statistics, drawn)
        ctx.loan = loan  # handed back with the graph
        ctx.rest = (sizes, limit, epsilon, wide)
        ctx.mark_non_differentiable(statistics)
        return embedded, statistics

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, media, padded, pooled, statistics, drawn = ctx.saved_tensors
        sizes, limit, epsilon, wide = ctx.rest
        inner, band = torch.empty_like(pooled), torch.empty(5, wide, FILTERS)
        gradients = torch.empty(30, FILTERS, dtype=torch.float64)
        _library().shallow_backward(
            _at(media),
            None,
            *sizes,
            *map(_at, (padded, scale)),
            ctypes.c_double(epsilon),
            _at(drawn),
            ctypes.c_int64(limit),
            *map(
                _at, (ctx.loan.room, pooled, statistics[0], statistics[1], outer.contiguous(), inner, band, gradients)
            ),
        )
        found = gradients.float()
        weight = found[:27].T.reshape(FILTERS, 3, 3, 3)
        return weight, found[27], found[28], found[29], None, None, None, None, None


def _fits(inputs: Tensor, weight: Tensor) -> bool:
    """Whether the compiled code can take these; it differentiates with respect to weights alone."""
    return (
        not inputs.requires_grad
        and plain_in_memory(inputs, weight)
        and not torch.is_autocast_enabled("cpu")
        and len(inputs) > 0
        and compiled("shallow") is not None
    )


def _library() -> ctypes.CDLL:
    library = compiled("shallow")
    if library is None:
        raise FsmerError("the compiled code of 'ststnet' has vanished; set FSMER_COMPILE=off to do without.")
    return library


def _at(values: Tensor | None) -> ctypes.c_void_p | None:
    return None if values is None else ctypes.c_void_p(values.data_ptr())

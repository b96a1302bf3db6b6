"""`ststnet`: the shallow triple-stream network on 28x28 flow maps, a baseline of 1,683 parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, TrainRecipe, register_backbone
from fsmer.backbones.recipe import CompiledEpochs
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError
from fsmer.kernels.compiled import compiled, plain_in_memory
from fsmer.kernels.noise import drop_below, dropout, noise

# Of the three streams, which differ in nothing else.
FILTERS = 3 + 5 + 8
# The network was published for maps of 8-bit values.
GAIN = 255.0
# Classes that the compiled code is written for.
MOST_CLASSES = 64


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
        self.padding, self.dropout = padding, dropout
        self.convolution = nn.Conv2d(3, FILTERS, 3, padding=padding)
        self.normalisation = nn.BatchNorm2d(FILTERS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of shape (B, 400) for minmax maps of shape (B, 3, 28, 28)."""
        responses = self.normalisation(F.relu(self.convolution(GAIN * inputs)))
        pooled = F.max_pool2d(responses, 3, stride=3, padding=1)
        # Dropped with the filters last, which is how the compiled code lays them out.
        kept = dropout(pooled.movedim(1, -1), self.dropout, self.training).movedim(-1, 1)
        return F.avg_pool2d(kept, 2).flatten(1)

    def compiled_epochs(
        self,
        classifier: nn.Module,
        optimizer: torch.optim.Optimizer,
        media: Mapping[str, Tensor],
        targets: Targets,
        recipe: TrainRecipe,
    ) -> CompiledEpochs | None:
        """See `Backbone.compiled_epochs`; by Adam or AdamW, without augmentation or a limit on gradients."""
        library = compiled("shallow")
        parameters = [*self.parameters(), *classifier.parameters()]
        if (
            library is None
            or not isinstance(classifier, nn.Linear)
            or classifier.bias is None
            or recipe.optimizer not in ("adam", "adamw")
            or recipe.augment
            or recipe.clip_gradient is not None
            or len(targets.classes) > MOST_CLASSES
            or not all(value.requires_grad for value in parameters)
            or not plain_in_memory(*parameters)
        ):
            return None
        return _Epochs(library, self, classifier, optimizer, media[self.input_spec.kind].contiguous(), targets, recipe)


@dataclass
class _Epochs:
    """Epochs whose forward passes, backward passes and steps of Adam are one call of ``shallow.c``."""

    library: ctypes.CDLL
    network: STSTNet
    classifier: nn.Linear
    optimizer: torch.optim.Optimizer
    media: Tensor
    targets: Targets
    recipe: TrainRecipe

    def __post_init__(self) -> None:
        network, weights = self.network, self.targets.class_weights
        self.class_weights = torch.ones(len(self.targets.classes)) if weights is None else weights.float().contiguous()
        layers = (network.convolution, network.normalisation, self.classifier)
        self.parameters = [value for layer in layers for value in layer.parameters()]
        rates = {id(value): group["lr"] for group in self.optimizer.param_groups for value in group["params"]}
        filled = [torch.full((value.numel(),), rates[id(value)], dtype=torch.float64) for value in self.parameters]
        self.rates = torch.cat(filled)
        height, width = (side + 2 * network.padding for side in self.media.shape[-2:])
        self.windows = ((height - 3) // 3 + 1) * ((width - 3) // 3 + 1)
        self.padded = (height, width)
        self.kept_rooms: tuple[Tensor, ...] = ()

    def __call__(self, batches: Sequence[NDArray[np.int64]], factors: Sequence[float]) -> list[float]:
        network, norm, whole, real = self.network, self.network.normalisation, ctypes.c_int64, ctypes.c_double
        sizes = [len(rows) for rows in batches]
        rows, ends = torch.from_numpy(np.concatenate(batches)), torch.tensor(sizes).cumsum(0)
        limit = drop_below(network.dropout)
        # Every batch begins with a fresh word, as it does where each draws for itself.
        words = sum((size * self.windows * FILTERS + 7) // 8 for size in sizes)
        drawn = noise((8 * words,), self.media.device) if limit else None
        states = [self.optimizer.state[value] for value in self.parameters]
        done = int(states[0]["step"]) if states[0] else 0
        values = _laid_out([value.detach() for value in self.parameters])
        held = list(zip(states, self.parameters, strict=True))
        first, second = (
            _laid_out([state.get(name, torch.zeros_like(value)) for state, value in held])
            for name in ("exp_avg", "exp_avg_sq")
        )
        losses = torch.empty(len(sizes), dtype=torch.float64)
        labels = self.targets.labels[rows]
        rate_factors = torch.tensor(factors, dtype=torch.float64)
        statistics = cast("tuple[Tensor, Tensor]", (norm.running_mean, norm.running_var))
        momentum, decoupled = 0.1 if norm.momentum is None else norm.momentum, self.recipe.optimizer == "adamw"
        self.library.shallow_epoch(
            *(_at(self.media), real(GAIN), _at(rows), _at(ends)),
            *map(whole, (len(sizes), *self.media.shape[-2:], network.padding, len(self.class_weights))),
            *map(_at, (values, first, second, self.rates, rate_factors)),
            *(whole(done), real(self.recipe.weight_decay), whole(decoupled), real(norm.eps), real(momentum)),
            *(_at(drawn), whole(limit), _at(labels), _at(self.class_weights), real(network.recipe.label_smoothing)),
            *map(_at, (*statistics, *self._rooms(max(sizes), len(values)), losses)),
        )
        cast(Tensor, norm.num_batches_tracked).add_(len(sizes))
        with torch.no_grad():
            for value, new, *moments in zip(
                self.parameters, *(self._parts(laid) for laid in (values, first, second)), strict=True
            ):
                value.copy_(new)
                step = torch.tensor(float(done + len(sizes)))
                # In the layout of the weight, as steps of the optimiser itself need it.
                first, second = (torch.empty_like(value).copy_(moment) for moment in moments)
                self.optimizer.state[value] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        return losses.tolist()

    def _rooms(self, clips: int, parameters: int) -> tuple[Tensor, ...]:
        """Memory to work in; fresh memory for every epoch would cost as much as filling it."""
        if not self.kept_rooms or len(self.kept_rooms[1]) < clips:
            (height, width), pooled = self.padded, (clips, self.windows, FILTERS)
            embedded = (clips, self.network.embed_dim)
            responses, band = (clips, (height - 2) * (width - 2), FILTERS), (5, width - 2, FILTERS)
            shapes = (responses, pooled, embedded, embedded, pooled, band)
            gradients = torch.empty(parameters, dtype=torch.float64)
            self.kept_rooms = (torch.zeros(3, height, width), *map(torch.empty, shapes), gradients)
        return self.kept_rooms

    def _parts(self, laid: Tensor) -> list[Tensor]:
        """One tensor a parameter of what `_laid_out` gave."""
        cut = laid.split([value.numel() for value in self.parameters])
        return [
            part.view(3, 3, 3, FILTERS).permute(3, 0, 1, 2) if value.ndim == 4 else part.view_as(value)
            for part, value in zip(cut, self.parameters, strict=True)
        ]


def _laid_out(values: Sequence[Tensor]) -> Tensor:
    """Parameters as compiled code has them: one after the other, filters last."""
    return torch.cat([(value.permute(1, 2, 3, 0) if value.ndim == 4 else value).reshape(-1) for value in values])


def _at(values: Tensor | None) -> ctypes.c_void_p | None:
    return None if values is None else ctypes.c_void_p(values.data_ptr())

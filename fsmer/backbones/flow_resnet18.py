"""`flow_resnet18`: ResNet18 on dense optical flow with a projection layer, the optical-flow module of MERAU alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.backbones.weights import refuse_other_files
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError, WeightsError
from fsmer.tensor_files import read_tensors

__all__ = ["PUBLISHED_RATES", "FlowResNet18"]

# MERAU Table 2, "Fine-tune, Train": for an encoder that was trained on images before.
PUBLISHED_RATES = {"encoder": 1e-5, "projection": 1.2e-3, "classifier": 1.2e-3}

# Displacement that counts as 1 inside the network, in thousandths of the face width (about 2 pixels of a face of 224).
SIGNED_UNIT = 10.0
IMAGENET = ("timm/resnet18.tv_in1k", "model.safetensors")


@register_backbone("flow_resnet18")
class FlowResNet18(Backbone):
    """ResNet18 on the flow map from onset to apex, followed by a projection with ReLU.

    The optical-flow module of MERAU, "Micro-expression recognizer incorporating action units" (section III.B.2), as in
    the paper's ablation without action units (section IV.E). The encoder is timm's ``resnet18``.

    Parameters
    ----------
    size : int
        Side of the maps in pixels.
    channels : sequence of str
        Channels of the maps; dense flow has u and v.
    normalisation : {"signed", "minmax"}
        Of the maps, see `InputSpec`. Signed maps are divided by a hundredth of the face width; minmax maps are
        standardised one by one, since the value that means no motion differs from map to map.
    inner_size : int, optional
        Side to which maps are resized (bilinear) before the encoder; ``None`` takes them as they are. ResNet18 halves
        its input five times, so the public maps of 28 pixels are best enlarged, to 56 or more.
    projection_dim : int
        Length of the embedding; 0 leaves the projection out, and the embedding is the encoder's pooled feature.
    widths, depths : sequence of int
        Channels and blocks of the four stages; other values than ResNet18's make small networks for trials.
    weights : str, optional
        Where the encoder starts: ``"imagenet"`` (torchvision's weights through timm's repository on the Hugging Face
        hub, or its cache), or a ``.safetensors`` file of a timm or torchvision ``resnet18`` or a folder with one named
        ``model.safetensors``. The first convolution is adapted to the number of channels. ``None`` starts at random.

    Raises
    ------
    WeightsError
        The weights are missing, cannot be fetched, or do not fit.

    Notes
    -----
    There: ResNet18 encoder, projection layer with ReLU, one linear classifier on it, learning rates of Table 2
    (`PUBLISHED_RATES`), random crops, resizing and rotations in training.

    Open in the paper and chosen here: size and scale of the flow, the projection's length (128), optimiser (Adam),
    epochs, batch size, how far clips are shifted (4 pixels), resized (10 %) and turned (3 degrees), and whether the
    encoder starts from ImageNet (its rate of 1e-5 suggests that it does).

    Deviations: without `weights` the encoder starts at random, where a rate of 1e-5 hardly moves it; the recipe's
    `random_rates` therefore give it 1e-3 until it has been trained. With `weights` it has the published rates.
    The tensors stored with a saved backbone take the place of `weights`, so that its config does not name them.

    Absent: Farnebäck flow itself and neighbour frames, which come before a backbone (``fsmer.preprocess``,
    ``fsmer.episodic``); the action unit module, see ``merau``, whose card says more of the paper.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="MERAU Table 2 (rates) and section IV.A (crops, resizing and rotations); the encoder's rate is raised "
        "from 1e-5 where it starts at random; optimiser, epochs, batch size and sizes of augmentations are open there",
        optimizer="adam",
        learning_rate=1.2e-3,
        weight_decay=0.0,
        rates=PUBLISHED_RATES,
        random_rates={"encoder": 1e-3},
        epochs=30,
        batch_size=32,
        schedule="constant",
        augment=("crop", "resize", "rotate"),
    )

    def __init__(
        self,
        size: int = 224,
        channels: Sequence[str] = ("u", "v"),
        normalisation: Literal["signed", "minmax"] = "signed",
        inner_size: int | None = None,
        projection_dim: int = 128,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        weights: str | None = None,
    ) -> None:
        config = constructor_arguments(locals()) | {"weights": None}
        if not channels:
            raise FsmerError(f"{self.name!r} was given no channels; name one or more, such as u and v.")
        super().__init__(
            input_spec=InputSpec(kind="flow", size=(size, size), channels=tuple(channels), normalisation=normalisation),
            embed_dim=projection_dim or widths[-1],
            config=config,
        )
        import timm  # only here: it takes seconds to import

        self.signed = normalisation == "signed"
        self.inner_size = inner_size
        self.encoder: nn.Module = timm.create_model(
            "resnet18", in_chans=len(channels), num_classes=0, channels=tuple(widths), layers=tuple(depths)
        )
        self.projection = nn.Sequential(nn.Linear(widths[-1], projection_dim), nn.ReLU()) if projection_dim else None
        if weights is not None:
            self._load_encoder(weights)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of shape (B, embed_dim) for maps of shape (B, channels, size, size)."""
        features: Tensor = self.encoder(self.prepare(inputs))
        return features if self.projection is None else self.projection(features)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Maps as the encoder gets them: scaled or standardised, and resized to `inner_size`."""
        if self.signed:
            maps = inputs / SIGNED_UNIT
        else:
            centred = inputs - inputs.mean(dim=(2, 3), keepdim=True)
            maps = centred / (centred.std(dim=(2, 3), keepdim=True) + 1e-3)
        if self.inner_size is None or maps.shape[-1] == self.inner_size:
            return maps
        return F.interpolate(maps, size=(self.inner_size, self.inner_size), mode="bilinear", align_corners=False)

    def _load_encoder(self, weights: str) -> None:
        from timm.models import adapt_input_conv

        refuse_other_files("weights")
        path = _weights_file(weights)
        tensors = read_tensors(path)
        own = self.encoder.state_dict()
        first = tensors.get("conv1.weight", torch.empty(0))
        if first.ndim == 4 and first.shape[1] == 3:
            tensors["conv1.weight"] = adapt_input_conv(own["conv1.weight"].shape[1], first)
        kept = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
        # torchvision's older files lack the counters of batch normalisation.
        missing = {key for key in own.keys() - kept.keys() if not key.endswith("num_batches_tracked")}
        unfit = {key for key in own.keys() & kept.keys() if own[key].shape != kept[key].shape}
        wrong = sorted(missing | unfit | (kept.keys() - own.keys()))
        if wrong:
            raise WeightsError(
                f"{path} does not fit the ResNet18 of {self.name!r} ({len(wrong)} tensors differ, such as {wrong[0]}); "
                "give weights of timm's or torchvision's resnet18."
            )
        self.encoder.load_state_dict(kept, strict=False)


def _weights_file(weights: str) -> Path:
    """The safetensors file that `weights` names; ImageNet's is fetched or taken from the cache."""
    if weights != "imagenet":
        path = Path(weights)
        path = path / "model.safetensors" if path.is_dir() else path
        if not path.exists():
            raise WeightsError(
                f"{path} does not exist; give 'imagenet', a .safetensors file of resnet18 or a folder that holds "
                "model.safetensors."
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(*IMAGENET))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"the ImageNet weights ({IMAGENET[0]}) are not in the cache and could not be fetched; connect to the "
            "network once, or give weights= a .safetensors file of resnet18."
        ) from error

"""A classifier of support sets that was itself learned, from drawn few-shot tasks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict

from fsmer.backbones import ClassDirections
from fsmer.backbones.base import model_hash
from fsmer.errors import SupportError, WeightsError
from fsmer.io import file_digest
from fsmer.schema import read_json
from fsmer.tensor_files import read_tensors
from fsmer.transfer.heads import FittedHead, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.source_model import SourceModel, require

__all__ = ["AdapterConfig", "AdapterNetwork", "ClassEvidence", "Learned", "LearnedHead", "load_adapter"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
# Few-shot embeddings have unit length or less; the first layers expect numbers near 1.
_LINEAR_SCALE, _HIDDEN_SCALE = 6.0, 10.0
_TINY = 1e-6


class AdapterConfig(TypedDict):
    """What ``config.json`` of a folder with an adapter says."""

    format_version: int
    backbone: str
    backbone_hash: str  # of the weights whose embeddings it was trained on
    arguments: dict[str, int]
    weights_sha256: str


class Features(nn.Module):
    """A linear map beside a network of one hidden layer, whose last layer begins at zero."""

    def __init__(self, inputs: int, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.dropout = nn.Dropout(dropout)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Features (..., outputs) of (..., inputs)."""
        hidden = self.dropout(F.gelu(self.first(_HIDDEN_SCALE * values)))
        return _LINEAR_SCALE * self.linear(values) + self.last(hidden)


@dataclass(frozen=True)
class ClassEvidence:
    """What a support set says of E x C classes: a logit is square . f^2 + linear . f + bias + direction . unit(z), for
    the features f of an embedding z."""

    square: Tensor  # (E, C, K)
    linear: Tensor  # (E, C, K)
    bias: Tensor  # (E, C)
    direction: Tensor  # (E, C, D)


class AdapterNetwork(nn.Module):
    """Classes as normal distributions over learned features, whose means are read off a support set in closed form.

    Embeddings become K features. A class has a mean, around which its clips scatter, and which itself scatters around
    the mean of all classes or, for a described class, around the place that the description points to. All classes of a
    task may be moved by one common offset: another camera moves them alike. Each of these scatters is learned. A first
    posterior says of each support clip, judged by the others, how probable its label is; the second one counts clips by
    that. A query clip is scored by its density under each class. What a description alone answers is added the less,
    the more clips a class has.

    Neither the order of clips or classes nor their number makes a difference to the parameters.

    Parameters
    ----------
    embed_dim, features, hidden : int
        Lengths of embeddings, of features, and of the hidden layers.
    dropout : float
        Of the hidden layers, in training.
    """

    def __init__(self, embed_dim: int = 192, features: int = 128, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.clip_features = Features(embed_dim, features, hidden, dropout)
        self.description_features = Features(embed_dim, features, hidden, dropout)
        # Logarithms of variances: of described class means and of their clips, beside the common ones below.
        self.description_scatter = nn.Linear(embed_dim, 2 * features)
        nn.init.zeros_(self.description_scatter.weight)
        nn.init.zeros_(self.description_scatter.bias)
        self.mean = nn.Parameter(torch.zeros(features))
        self.mean_scatter = nn.Parameter(torch.zeros(features))
        self.clip_scatter = nn.Parameter(torch.zeros(features))
        self.offset_scatter = nn.Parameter(torch.full((features,), -3.0))
        self.temperature = nn.Parameter(torch.tensor(-1.0))
        self.label_temperature = nn.Parameter(torch.tensor(-1.0))
        self.wrong_labels = nn.Parameter(torch.tensor(-3.0))  # logit of their share
        self.scatter_clips = nn.Parameter(torch.tensor(2.0))  # how many clips the learned scatter counts as
        self.word_scale = nn.Parameter(torch.tensor(12.0))
        self.word_clips = nn.Parameter(torch.tensor(1.0))  # at how many clips the words' own answer counts half

    def forward(
        self, support: Tensor, codes: Tensor, way: int, query: Tensor, directions: Tensor, known: Tensor
    ) -> Tensor:
        """Logits (E, Q, C) of the queries (E, Q, D); for the others see `evidence`."""
        return self.logits(self.evidence(support, codes, way, directions, known), query)

    def logits(self, found: ClassEvidence, query: Tensor) -> Tensor:
        """Logits (E, Q, C) of embeddings (E, Q, D), or (Q, D) that all episodes share."""
        values = self.clip_features(query)
        parts = (values.square(), found.square), (values, found.linear), (F.normalize(query, dim=-1), found.direction)
        return sum((left @ right.transpose(1, 2) for left, right in parts), found.bias[:, None])

    def evidence(self, support: Tensor, codes: Tensor, way: int, directions: Tensor, known: Tensor) -> ClassEvidence:
        """What a support set says.

        Parameters
        ----------
        support : Tensor of shape (E, S, D)
        codes : int64 Tensor of shape (E, S)
            Class of each clip, -1 for padding.
        way : int
            Number of classes C.
        directions : Tensor of shape (E, C, D)
            Of unit length for described classes.
        known : bool Tensor of shape (E, C)
            Which classes are described.
        """
        members, clips = one_hot(codes, way), self.clip_features(support)
        described = known[..., None]
        place = torch.where(described, self.description_features(directions), self.mean)
        mean_scatter, scatter = self.description_scatter(4 * directions).chunk(2, dim=-1)
        # A described class mean is better known beforehand.
        around = torch.where(described, self.mean_scatter - 1 + mean_scatter, self.mean_scatter).exp()
        within = torch.where(described, self.clip_scatter + scatter, self.clip_scatter).exp()
        first = self._posterior(clips, members, place, around, within)
        weights = self._label_weights(clips, codes, members, *first, within)
        mean, precision = self._posterior(clips, weights, place, around, within)

        counts = weights.sum(dim=-1, keepdim=True)
        squared = weights @ clips.square() - 2 * mean * (weights @ clips) + mean.square() * counts
        beforehand, size = self.scatter_clips.exp(), clips.shape[-1]
        wider = (beforehand * size + (squared / within).sum(-1, keepdim=True)) / ((beforehand + counts) * size)
        variance = within * wider + 1 / precision
        factor = self.temperature.exp()
        bias = -(mean.square() / variance + variance.log()).sum(dim=-1) / 2 * factor
        # What is said of an undescribed class is the mean of the described ones.
        shares = known / known.sum(dim=-1, keepdim=True).clamp_min(1)
        unit = F.normalize(directions, dim=-1)
        unit = torch.where(described, unit, shares[:, None] @ unit)
        half = self.word_clips.exp()
        direction = self.word_scale * unit * half / (half + counts)
        return ClassEvidence(-factor / (2 * variance), factor * mean / variance, bias, direction)

    def _posterior(
        self, clips: Tensor, weights: Tensor, place: Tensor, around: Tensor, within: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and precisions (E, C, K) of the class means, by clips with weights (E, C, S)."""
        counts, sums = weights.sum(dim=-1, keepdim=True), weights @ clips
        given = counts.clamp_min(_TINY)
        trust = torch.where(counts > 0, 1 / (around + within / given), 0.0)
        apart = (trust * (sums / given - place)).sum(dim=1, keepdim=True)
        offset = apart / (trust.sum(dim=1, keepdim=True) + (-self.offset_scatter).exp())
        precision = 1 / around + counts / within
        return ((place + offset) / around + sums / within) / precision, precision

    def _label_weights(
        self, clips: Tensor, codes: Tensor, members: Tensor, mean: Tensor, precision: Tensor, within: Tensor
    ) -> Tensor:
        """Probability (E, C, S) of each class for each support clip, by its label and by the other clips."""
        variance = within + 1 / precision
        scores = clips.square() @ (1 / variance).transpose(1, 2) - 2 * clips @ (mean / variance).transpose(1, 2)
        others = -(scores + (mean.square() / variance + variance.log()).sum(dim=-1)[:, None]) / 2
        # A clip must not vouch for its own label: its class is taken without it.
        own = codes.clamp_min(0)[..., None].expand(-1, -1, clips.shape[-1])
        its_within, its_precision, its_mean = (one.gather(1, own) for one in (within, precision, mean))
        left = (its_precision - 1 / its_within).clamp_min(_TINY)
        apart = clips - (its_mean * its_precision - clips / its_within) / left
        variance = its_within + 1 / left
        alone = -(apart.square() / variance + variance.log()).sum(dim=-1)[..., None] / 2
        labelled = members.transpose(1, 2)
        scores = torch.where(labelled > 0, alone, others) * self.label_temperature.exp()
        share = torch.sigmoid(self.wrong_labels)
        believed = torch.where(labelled > 0, 1 - share, share / max(labelled.shape[-1] - 1, 1))
        return (scores + believed.log()).softmax(dim=-1).transpose(1, 2) * (codes >= 0)[:, None]


@dataclass(frozen=True)
class LearnedHead(FittedHead):
    """What an adapter has read off the support sets of E episodes."""

    network: AdapterNetwork
    found: ClassEvidence
    kind: str = "learned"

    def __len__(self) -> int:
        return len(self.found.bias)

    def logits(self, queries: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network.logits(self.found, queries)

    @property
    def shares_queries(self) -> bool:
        """Features of shared queries are computed once."""
        return True

    def tensors(self) -> dict[str, Tensor]:
        return {one.name: getattr(self.found, one.name) for one in fields(self.found)}


@dataclass(frozen=True)
class Learned(Method):
    """Network that reads a support set of facs-flow and answers in one pass, trained on drawn few-shot tasks.

    Parameters
    ----------
    weights : str
        A folder that ``python -m benchmarks.adapter_training`` made.
    """

    name: ClassVar[str] = "learned"
    batched: ClassVar[bool] = True
    saves_head: ClassVar[bool] = False

    weights: str = ""

    def for_model(self, model: SourceModel) -> Self:
        """This method; raises `MethodError` for a backbone that it was not trained on."""
        config = load_adapter(self.weights)[1]
        given = (model.backbone.name, model_hash(model.backbone))
        require(
            given == (config["backbone"], config["backbone_hash"]),
            f"the method {self.name!r} was trained on embeddings of {config['backbone']} {config['backbone_hash']}, "
            f"but the model is {' '.join(given)}; use that model, or another method, such as 'cosine'.",
        )
        return self

    def fit_head(
        self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None
    ) -> LearnedHead:
        """All episodes read in one pass; a class with neither clips nor a description gets probability 0."""
        network = load_adapter(self.weights)[0]
        width = embeddings.shape[-1]
        require(
            width == network.embed_dim,
            f"the method {self.name!r} reads embeddings of length {network.embed_dim}, but these have {width}; use the "
            "backbone that it was trained on (facs-flow), or another method, such as 'cosine'.",
        )
        shape = len(embeddings), way
        known = torch.zeros(shape, dtype=torch.bool) if prior is None else prior.known.expand(shape)
        directions = torch.zeros(*shape, width)
        if prior is not None:
            directions = F.normalize(prior.weight, dim=-1).expand(*shape, width) * known[..., None]
        heard = one_hot(codes, way).any(dim=-1) | known
        if not bool(heard.any(dim=-1).all()):
            raise SupportError(
                f"the method {self.name!r} is given neither labelled clips nor a description of any class; give "
                "labelled clips (at least one shot), or describe the classes."
            )
        values = torch.where((codes >= 0)[..., None], embeddings, 0.0)
        with torch.no_grad():
            found = network.evidence(values, codes, way, directions, known)
        bias = found.bias.masked_fill(~heard, float("-inf"))
        return LearnedHead(network, ClassEvidence(found.square, found.linear, bias, found.direction))


def load_adapter(folder: str) -> tuple[AdapterNetwork, AdapterConfig]:
    """The network in a folder, and its config; `WeightsError` where its files are absent or do not belong together."""
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise WeightsError(
            f"{folder!r} is no folder with an adapter; make one by 'python -m benchmarks.adapter_training'."
        )
    return _read(Path(folder), file_digest(path))


@lru_cache(maxsize=4)
def _read(folder: Path, _: str) -> tuple[AdapterNetwork, AdapterConfig]:
    what, remedy = "the config of an adapter", "make the weights again"
    config = read_json(folder / CONFIG_FILE, AdapterConfig, what=what, remedy=remedy, error=WeightsError)
    path = folder / WEIGHTS_FILE
    if file_digest(path) != config["weights_sha256"]:
        raise WeightsError(f"{path} is not the file that its {CONFIG_FILE} names; fetch or make the weights again.")
    try:
        network = AdapterNetwork(**config["arguments"])
        network.load_state_dict(read_tensors(path))
    except (TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} does not fit the network of its {CONFIG_FILE}; make the weights again.") from error
    return network.eval().requires_grad_(False), config

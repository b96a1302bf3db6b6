"""Leave-one-subject-out of small networks: `fit_many` beside plain PyTorch loops that train fold after fold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from benchmarks.figures import Figure, best_rates
from benchmarks.plain_backbones import plain, plain_loss
from fsmer.backbones import Backbone, Targets, TrainRecipe, create_model
from fsmer.backbones.fr import FR
from fsmer.transfer import load_method
from fsmer.transfer.train import Train
from fsmer.transfer.trainer import for_classes

CLIPS, SUBJECTS = 442, 40
CLASSES = ("negative", "positive", "surprise")
SEED = 0


@dataclass(frozen=True)
class Case:
    """One network: how long it is trained here, and on how many folds.

    Parameters
    ----------
    name : str
    times : float
        How many times faster than the plain loop is promised.
    epochs : int
        Of the folds that are timed, after which their support is embedded once; recipes have 30 to 800.
    folds : int
        Timed on fsmer's side in each round; the plain loop trains one.
    checked : int
        Folds whose answers are compared, after `checked_epochs`.
    learning_rate : float, optional
        In place of the recipe's, where that learns nothing in so few epochs.
    arguments : dict
        Of the backbone.
    """

    name: str
    times: float
    epochs: int
    folds: int
    checked: int
    checked_epochs: int
    learning_rate: float | None = None
    arguments: dict[str, object] = field(default_factory=dict)


CASES = (
    Case("ststnet", 10, epochs=60, folds=4, checked=SUBJECTS, checked_epochs=3, learning_rate=1e-3),
    # Without dropout and augmentation both sides train on the same numbers; neither costs these networks much.
    Case("fr", 4, epochs=4, folds=1, checked=3, checked_epochs=1, arguments={"dropout": 0.0}),
    Case("facs-flow", 4, epochs=4, folds=1, checked=3, checked_epochs=1),
)


class PlainSTSTNet(nn.Module):
    """The shallow triple-stream network as one writes it down, with the weights of fsmer's."""

    def __init__(self, own: Backbone, dropout: nn.Module) -> None:
        super().__init__()
        counts = (3, 5, 8)
        self.streams = nn.ModuleList(nn.Conv2d(3, count, 3, padding=1) for count in counts)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in counts)
        self.dropout = dropout
        state = own.state_dict()
        with torch.no_grad():
            for number, part in enumerate((slice(0, 3), slice(3, 8), slice(8, 16))):
                for module, name in ((self.streams[number], "convolution"), (self.norms[number], "normalisation")):
                    for key, value in module.state_dict().items():
                        whole = state[f"{name}.{key}"]
                        value.copy_(whole[part] if whole.ndim else whole)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of minmax maps."""
        pooled = [
            F.max_pool2d(norm(F.relu(stream(inputs))), 3, stride=3, padding=1)
            for stream, norm in zip(self.streams, self.norms, strict=True)
        ]
        return F.avg_pool2d(self.dropout(torch.cat(pooled, dim=1)), 2).flatten(1)


class SameDropout(nn.Module):
    """Dropout of a half that draws what fsmer draws, so that answers can be compared; `nn.Dropout` draws others."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of which about half are zero, the others doubled."""
        if not self.training:
            return values
        words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64).random_(-(1 << 63), None)
        drawn = words.view(torch.uint8)[: values.numel()].view(len(values), *values.shape[2:], values.shape[1])
        return 2 * values * (drawn.movedim(-1, 1) >= 128)


def run() -> list[Figure]:
    """Rates in folds and epochs a second of both, in turn, and whether their answers are the same fold by fold."""
    return [figure for case in CASES for figure in compare(case)]


def compare(case: Case) -> list[Figure]:
    """The speed of one network, and the answers on folds that both have trained."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        backbone = create_model(case.name, **case.arguments)
        clips = fsmer.synthetic_clips("lab", CLIPS, seed=1, subjects=SUBJECTS, specs=backbone.input_specs)
        checked = Folds(case, backbone, clips, case.checked_epochs)
        checked.own(case.checked)
        checked.peer(case.checked, same_dropout=True)
        same = [bool((answers == checked.peer_answers[fold]).all()) for fold, answers in checked.answers.items()]
        timed = Folds(case, backbone, clips, case.epochs)
        ours, peer = best_rates(lambda: timed.own(case.folds), lambda: timed.peer(1), rounds=2)
    name = f"{case.name}, LOSO of {CLIPS} clips"
    times, kept = f"{case.times:g}x", ours >= case.times * peer
    return [
        Figure(f"{name}, epochs of a fold", f"{ours:.2f}/s", f"{peer:.2f}/s", ours / peer, times, kept),
        Figure(
            f"{name}: answers like the plain loop's", f"{sum(same)} of {len(same)} folds", "", None, "all", all(same)
        ),
    ]


class Folds:
    """The folds of one case, trained by fsmer or by a plain loop, with the answers of both."""

    def __init__(self, case: Case, backbone: Backbone, clips: fsmer.ClipSet, epochs: int) -> None:
        self.case = case
        self.epochs = epochs
        self.backbone = backbone
        self.clips = clips
        subjects = np.array(clips.table["subject"].astype(str))
        self.queries = [np.flatnonzero(subjects == subject) for subject in np.unique(subjects)]
        self.answers: dict[int, np.ndarray] = {}
        self.peer_answers: dict[int, np.ndarray] = {}
        method = load_method("train", epochs=epochs, learning_rate=case.learning_rate, augment=False, seed=SEED)
        assert isinstance(method, Train)
        self.method = method

    def own(self, folds: int) -> int:
        """Train that many folds with `fit_many`; returns epochs done."""
        everything = np.arange(len(self.clips))
        supports = [self.clips[np.setdiff1d(everything, query)] for query in self.queries[:folds]]
        found = self.method.fit_many(self.backbone, supports, seeds=[None] * folds, classes=[CLASSES] * folds)
        for fold, recognizer in found:
            self.answers[fold] = recognizer.predict(self.clips[self.queries[fold]])
        return folds * self.epochs

    def peer(self, folds: int, *, same_dropout: bool = False) -> int:
        """Train that many folds as one does without fsmer; returns epochs done."""
        media = torch.from_numpy(self.clips.media())
        media = media[:, [self.clips.specs["flow"].channels.index(name) for name in self.backbone.input_spec.channels]]
        if self.case.name == "ststnet":
            media = 255 * media  # the scale that the network was published for
        labels = torch.tensor([CLASSES.index(label) for label in self.clips.labels])
        for fold, query in enumerate(self.queries[:folds]):
            support = np.setdiff1d(np.arange(len(media)), query)
            network, classifier = self._train(media[support], labels[support], same_dropout)
            with torch.no_grad():
                found = classifier(network(media[query])).argmax(dim=1)
            self.peer_answers[fold] = np.array(CLASSES)[found.numpy()]
        return folds * self.epochs

    def _train(self, media: Tensor, labels: Tensor, same_dropout: bool) -> tuple[nn.Module, nn.Module]:
        """One network of one fold, by the backbone's recipe."""
        recipe = self.method.recipe(self.backbone)
        own = for_classes(self.backbone, CLASSES, SEED)
        torch.manual_seed(SEED)
        classifier = nn.Linear(own.embed_dim, len(CLASSES))
        network = self._network(own, same_dropout)
        groups = [
            {"params": list(network.parameters()), "lr": recipe.learning_rate},
            {"params": list(classifier.parameters()), "lr": recipe.rates.get("classifier", recipe.learning_rate)},
        ]
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, weight_decay=recipe.weight_decay)
        steps = max(1, math.ceil((len(media) - 1) / recipe.batch_size))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: self._rate(recipe, done / steps))
        network.train()
        for epoch in range(recipe.epochs):
            torch.manual_seed((SEED << 20) + epoch)
            order = np.random.Generator(np.random.PCG64([SEED, epoch])).permutation(len(media))
            for rows in np.array_split(order, steps):
                loss = self._loss(network, classifier, media[rows], labels[rows], recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return network.eval(), classifier.eval()

    def _network(self, own: Backbone, same_dropout: bool) -> nn.Module:
        if self.case.name == "ststnet":
            return PlainSTSTNet(own, SameDropout() if same_dropout else nn.Dropout(0.5))
        # `facs-flow` is written plainly as it is: convolutions, batch normalisation and a linear layer.
        return plain(own) if isinstance(own, FR) else own

    def _loss(self, network: nn.Module, classifier: nn.Module, media: Tensor, labels: Tensor, smooth: float) -> Tensor:
        if isinstance(self.backbone, FR):
            return plain_loss(network, media, Targets(labels, CLASSES), classifier)
        return F.cross_entropy(classifier(network(media)), labels, label_smoothing=smooth)

    def _rate(self, recipe: TrainRecipe, epochs: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1, epochs / recipe.epochs))) if recipe.schedule == "cosine" else 1.0

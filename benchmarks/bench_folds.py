"""Leave-one-subject-out of small networks: `fsmer.evaluate` beside plain PyTorch loops that train fold after fold.

Both sides get the whole machine: fsmer a process a core, the loop as many threads as torch takes by default. What the
loop takes on one thread is shown beside it. Worker processes are started before the clock is.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from benchmarks.figures import Figure
from benchmarks.plain_backbones import plain, plain_loss
from fsmer.backbones import Backbone, Targets, create_model, load_model
from fsmer.backbones.fr import FR
from fsmer.training.supervised import for_classes
from fsmer.transfer import load_method
from fsmer.transfer.full_training import Train
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.method import Method

CLIPS = 442
# People of a MEGC2019 composite, and what they may take with the default 200 steps.
MANY_SUBJECTS, MINUTES = 68, 30
CLASSES = ("negative", "positive", "surprise")
SEED = 0
ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """One network, and how it is trained in each fold.

    Parameters
    ----------
    name : str
    times : float
        How many times faster than the plain loop on all cores is promised.
    times_alone : float
        Than the loop on one thread.
    method : str
    params : dict
        Of the method in the runs that are timed.
    checked : dict
        Those that differ in the runs whose answers are compared, since rounding grows from step to step.
    arguments : dict
        Of the backbone.
    subjects : int
        People among whom the clips are divided: the folds.
    """

    name: str
    times: float
    times_alone: float
    method: str
    params: dict[str, Any]
    checked: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    subjects: int = 8


# Far fewer epochs than recipes have, some of which need a larger learning rate then to learn anything. Without dropout
# and augmentation both sides train on the same numbers; neither costs these networks much. Of `fr` and `facs-flow`
# products take most of the time on either side: on all cores of both more is not in it.
CASES = (
    Case("ststnet", 10, 12, "train", {"epochs": 20, "learning_rate": 1e-3}, {"epochs": 3}, subjects=40),
    Case(
        "fr", 2.5, 4, "train", {"epochs": 4, "augment": False}, {"epochs": 1, "learning_rate": 2e-4}, {"dropout": 0.0}
    ),
    Case("facs-flow", 2, 4, "finetune", {"train_backbone": True, "steps": 60}, {"steps": 10}),
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


def run(*, thorough: bool = False) -> list[Figure]:
    """Seconds of both for all folds, in turn, and whether their answers are the same fold by fold.

    With `thorough`, also what a whole fine-tuning of `facs-flow` takes for each of 68 people.
    """
    return [figure for case in CASES for figure in compare(case)] + ([whole()] if thorough else [])


def whole() -> Figure:
    """Minutes of fine-tuning `facs-flow` with its defaults once for every left-out person, without a loop beside it."""
    backbone = load_model("facs-flow")
    clips = fsmer.synthetic_clips("lab", CLIPS, seed=1, subjects=MANY_SUBJECTS, specs=backbone.input_specs)
    minutes = _seconds(Folds(backbone, clips, load_method("finetune", train_backbone=True)).own) / 60
    name = f"facs-flow, LOSO of {CLIPS} clips, {MANY_SUBJECTS} folds of 200 steps"
    return Figure(name, f"{minutes:.1f} min", promise=f"< {MINUTES} min", kept=minutes < MINUTES)


def compare(case: Case) -> list[Figure]:
    """The speed of one network, and the answers on folds that both have trained."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        shipped = not case.arguments and case.method == "finetune"
        backbone = load_model(case.name) if shipped else create_model(case.name, **case.arguments)
        clips = fsmer.synthetic_clips("lab", CLIPS, seed=1, subjects=case.subjects, specs=backbone.input_specs)
        checked = Folds(backbone, clips, load_method(case.method, **case.params | case.checked))
        found, wanted = checked.own(), checked.peer(same_dropout=True)
        same = [bool((found[query] == wanted[query]).all()) for query in checked.queries]
        timed = Folds(backbone, clips, load_method(case.method, **case.params))
        ours, peer = [], []
        for _ in range(ROUNDS):
            ours.append(_seconds(timed.own))
            with _all_cores():
                peer.append(_seconds(timed.peer))
        alone = _seconds(timed.peer)
    ratio = min(peer) / min(ours)
    name = f"{case.name}, LOSO of {CLIPS} clips"
    return [
        Figure(
            f"{name}, {len(same)} folds",
            f"{min(ours):.2f} s",
            f"{min(peer):.2f} s",
            ratio,
            f"{case.times:g}x",
            ratio >= case.times,
        ),
        Figure(
            f"{name}, loop on one thread",
            f"{min(ours):.2f} s",
            f"{alone:.2f} s",
            alone / min(ours),
            f"{case.times_alone:g}x",
            alone / min(ours) >= case.times_alone,
        ),
        Figure(f"{name}: answers like the loop's", f"{sum(same)} of {len(same)} folds", "", None, "all", all(same)),
    ]


class Folds:
    """The folds of one case, trained by fsmer or by a plain loop; both give their answers for all the clips."""

    def __init__(self, backbone: Backbone, clips: fsmer.ClipSet, method: Method) -> None:
        self.backbone = backbone
        self.clips = clips
        self.method = method
        subjects = np.array(clips.table["subject"].astype(str))
        self.queries = [np.flatnonzero(subjects == subject) for subject in np.unique(subjects)]

    def own(self) -> np.ndarray:
        """By the engine, in as many processes as it takes."""
        report = fsmer.evaluate("loso", self.backbone, self.method, clips=self.clips, jobs=-1, cache=False)
        told = dict(zip(report.predictions["clip"], report.predictions["predicted"], strict=True))
        return np.array([told[name] for name in self.clips.ids])

    def peer(self, *, same_dropout: bool = False) -> np.ndarray:
        """As one does without fsmer."""
        media = torch.from_numpy(self.clips.media())
        media = media[:, [self.clips.specs["flow"].channels.index(name) for name in self.backbone.input_spec.channels]]
        if self.backbone.name == "ststnet":
            media = 255 * media  # the scale that the network was published for
        labels = torch.tensor([CLASSES.index(label) for label in self.clips.labels])
        answers = np.empty(len(media), dtype=object)
        for query in self.queries:
            support = np.setdiff1d(np.arange(len(media)), query)
            train = self._tune if isinstance(self.method, Finetune) else self._train
            network, classifier = train(media[support], labels[support], same_dropout)
            with torch.no_grad():
                answers[query] = np.array(CLASSES)[classifier(network(media[query])).argmax(dim=1).numpy()]
        return answers

    def _train(self, media: Tensor, labels: Tensor, same_dropout: bool) -> tuple[nn.Module, nn.Module]:
        """One network of one fold, by the backbone's recipe."""
        assert isinstance(self.method, Train)
        recipe = self.method.recipe(self.backbone)
        own = for_classes(self.backbone, CLASSES, SEED)
        torch.manual_seed(SEED)
        classifier = nn.Linear(own.embed_dim, len(CLASSES))
        network = (
            plain(own) if isinstance(own, FR) else PlainSTSTNet(own, SameDropout() if same_dropout else nn.Dropout())
        )
        optimizer = torch.optim.Adam(
            [*network.parameters(), *classifier.parameters()], lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = max(1, math.ceil((len(media) - 1) / recipe.batch_size))
        network.train()
        for epoch in range(recipe.epochs):
            torch.manual_seed((SEED << 20) + epoch)
            order = np.random.Generator(np.random.PCG64([SEED, epoch])).permutation(len(media))
            for rows in np.array_split(order, steps):
                if isinstance(own, FR):
                    loss = plain_loss(network, media[rows], Targets(labels[rows], CLASSES), classifier)
                else:
                    loss = F.cross_entropy(classifier(network(media[rows])), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return network.eval(), classifier.eval()

    def _tune(self, media: Tensor, labels: Tensor, same_dropout: bool) -> tuple[nn.Module, nn.Module]:
        """A copy of the pretrained network, its lower layers frozen, with a new linear layer."""
        del same_dropout
        method = self.method
        assert isinstance(method, Finetune)
        # Written plainly as it is: convolutions, batch normalisation and a linear layer.
        network = copy.deepcopy(self.backbone).eval()
        for layer in network.lower_layers():
            layer.requires_grad_(False)
        classifier = nn.Linear(network.embed_dim, len(CLASSES), bias=False)
        with torch.no_grad():
            fresh = torch.rand(*classifier.weight.shape, generator=torch.Generator().manual_seed(SEED))
            classifier.weight.copy_((2 * fresh - 1) / math.sqrt(network.embed_dim))
        layers: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, value in network.named_parameters():
            if value.requires_grad:
                layers["projection" in name].append(value)
        optimizer = torch.optim.Adam(
            [
                {"params": layers[False], "lr": method.encoder_rate},
                {"params": layers[True], "lr": method.projection_rate},
                {"params": list(classifier.parameters()), "lr": method.learning_rate},
            ]
        )
        counts = torch.bincount(labels, minlength=len(CLASSES))
        weights = len(labels) / (len(CLASSES) * counts)
        rng, done = np.random.default_rng(SEED), 0
        while done < method.steps:
            for rows in np.array_split(rng.permutation(len(media)), len(media) // method.batch_size):
                if done == method.steps:
                    break
                logits = classifier(network(media[rows]))
                loss = F.cross_entropy(logits, labels[rows], weights, label_smoothing=network.recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
        return network, classifier


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """As many threads as torch takes by default, which the other benchmarks limit to one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with threadpool_limits(cores):
        torch.set_num_threads(cores)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _seconds(work: Any) -> float:
    # By the clock on the wall: processes and threads of both sides count.
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

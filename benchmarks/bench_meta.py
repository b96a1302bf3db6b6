"""Training on episodes beside learn2learn and easyfsl: steps of the outer loop a second, from the same weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fsmer
from benchmarks.figures import Figure
from fsmer.backbones import Backbone
from fsmer.meta import ClipTasks, TaskBatch, load_algorithm
from fsmer.meta.algorithm import Algorithm, Learner
from fsmer.training.ridge import ridge_weights

WAY, SHOT, QUERY, STEPS, RATE = 5, 5, 5, 5, 1e-3
CLASSES = ("4", "12", "1+2", "15", "6+12", "9")
# Tasks a step, one after the other on both sides; fewer than 16 where a step of 16 would take minutes.
TASKS = {"ststnet": 16, "facs-flow": 4, "fr": 1}


def run() -> list[Figure]:
    """Tasks a second, on one core; learn2learn's figures are left out where it is not installed (make learn2learn)."""
    figures: list[Figure] = []
    try:
        figures.append(_prototypes())
    except ImportError:
        print("easyfsl is not installed (pip install 'fsmer[bench]'): its figure is left out")
    try:
        import learn2learn
    except ImportError:
        print("learn2learn is not installed (make learn2learn): its figures are left out")
        return figures
    for name in TASKS:
        figures += _maml(name, learn2learn)
    return figures + _on_lower_layers(learn2learn)


def _tasks(backbone: Backbone, count: int, *, upper: bool = False, clips: int = 360) -> TaskBatch:
    """Tasks with media, or with what the lower layers make of these."""
    protocol = fsmer.load_protocol("kshot", way=WAY, shot=SHOT, query=QUERY)
    made = fsmer.synthetic_clips("lab", clips, classes=CLASSES, specs=backbone.input_specs)
    return ClipTasks(protocol, made, backbone, upper=upper).batch(0, count)


def _learner(algorithm: Algorithm, backbone: Backbone, *, upper: bool = False) -> Learner:
    begun = {name: nn.Parameter(value) for name, value in algorithm.begin(backbone, WAY).items()}
    return Learner(backbone, nn.ParameterDict(begun), upper)


def _compare(ours: Callable[[], Any], peers: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Processor seconds of the fastest of some rounds, taken in turn."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for taken, call in zip(times, (ours, peers), strict=True):
            began = time.process_time()
            call()
            taken.append(time.process_time() - began)
    return min(times[0]), min(times[1])


def _maml(name: str, learn2learn: Any) -> list[Figure]:
    from fsmer.interop.learn2learn import module

    torch.manual_seed(0)
    backbone = fsmer.load_model(name) if name == "facs-flow" else fsmer.create_model(name).eval()
    rate = 1e-6 if name == "ststnet" else RATE  # its fresh embeddings are large
    algorithm = load_algorithm("maml", inner_steps=STEPS, inner_rate=rate, batch_norm="inherited")
    batch = _tasks(backbone, TASKS[name])
    learner = _learner(algorithm, backbone)
    features = module(copy.deepcopy(backbone))
    head = nn.Linear(backbone.embed_dim, WAY)
    with torch.no_grad():
        head.weight.copy_(learner.learned["weight"])
        head.bias.copy_(learner.learned["bias"])
    whole = nn.Sequential(features, head)
    maml = learn2learn.algorithms.MAML(whole, lr=rate, first_order=False)

    def peers() -> None:
        for number in range(len(batch)):
            inner = maml.clone()
            for _ in range(STEPS):
                inner.adapt(F.cross_entropy(inner(batch.support[number]), batch.support_codes[number]))
            loss = F.cross_entropy(inner(batch.query[number]), batch.query_codes[number])
            (loss / len(batch)).backward()

    def ours() -> None:
        algorithm.step(learner, batch)

    ours()
    peers()
    used = {key.removeprefix("0.backbone.") for key, value in whole.named_parameters() if value.grad is not None}
    mine = [value.grad for key, value in backbone.named_parameters() if key in used]
    theirs = [value.grad for key, value in features.named_parameters() if value.grad is not None]
    near = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-20)) for a, b in zip(mine, theirs, strict=True)]
    backbone.zero_grad()
    whole.zero_grad()
    fast, slow = _compare(ours, peers, 3 if name != "fr" else 1)
    count = len(batch)
    return [
        Figure(
            f"second-order MAML, {name}, {count} tasks a step",
            f"{count / fast:,.2f}/s",
            f"{count / slow:,.2f}/s",
            slow / fast,
            "1x",
            slow >= fast,
        ),
        Figure(
            f"second-order MAML, {name}: gradients like the peer's",
            f"{max(near):.0e} apart",
            promise="below 1e-3",
            kept=max(near) < 1e-3,
        ),
    ]


def _on_lower_layers(learn2learn: Any) -> list[Figure]:
    """`facs-flow` with lower layers that stay as they are: computed once here, in every step by a plain loop.

    Promised for 16 tasks a step of 160 clips, about as many as a data set has (SMIC 164, CASME II 145); tasks of more
    clips have fewer of them in common, and every clip passes the upper layers once a step.
    """
    figures = []
    for name, clips, promise in (("anil", 160, 10), ("r2d2", 160, 10), ("anil", 360, 0), ("r2d2", 360, 0)):
        backbone = fsmer.load_model("facs-flow")
        for layer in backbone.lower_layers():
            layer.requires_grad_(False)
        media, lower = (_tasks(backbone, 16, upper=upper, clips=clips) for upper in (False, True))
        algorithm = load_algorithm(name)
        learner = _learner(algorithm, backbone, upper=True)
        head = nn.Linear(backbone.embed_dim, WAY)
        maml = learn2learn.algorithms.MAML(head, lr=0.01)

        def peers(name: str = name, backbone: Backbone = backbone, media: TaskBatch = media, maml: Any = maml) -> None:
            for number in range(len(media)):
                support, query = backbone(media.support[number]), backbone(media.query[number])
                codes = media.support_codes[number]
                if name == "anil":
                    inner = maml.clone()
                    for _ in range(STEPS):
                        inner.adapt(F.cross_entropy(inner(support), codes))
                    scores = inner(query)
                else:
                    scores = query @ ridge_weights(support, F.one_hot(codes, WAY).float(), 1.0)
                (F.cross_entropy(scores, media.query_codes[number]) / len(media)).backward()

        def ours(algorithm: Algorithm = algorithm, learner: Learner = learner, lower: TaskBatch = lower) -> None:
            algorithm.step(learner, lower)

        ours()
        peers()
        fast, slow = _compare(ours, peers, 2)
        figures.append(
            Figure(
                f"{name} on lower layers kept, facs-flow, 16 tasks a step of {clips} clips",
                f"{16 / fast:,.1f}/s",
                f"{16 / slow:,.1f}/s",
                slow / fast,
                f"{promise}x" if promise else "",
                slow >= promise * fast,
            )
        )
    return figures


def _prototypes() -> Figure:
    """`ststnet` by episodic ProtoNet: tasks a second, drawing included, beside easyfsl's tutorial loop."""
    from easyfsl.methods import PrototypicalNetworks

    from benchmarks.peers import PeerSampler

    torch.manual_seed(0)
    protocol = fsmer.load_protocol("kshot", way=WAY, shot=SHOT, query=QUERY)
    clips = fsmer.synthetic_clips("lab", 360, classes=CLASSES)
    backbone = fsmer.create_model("ststnet")
    media, labels = torch.from_numpy(clips.media()), clips.codes()
    count = 100
    tutorial = PrototypicalNetworks(copy.deepcopy(backbone))
    optimizer = torch.optim.Adam(tutorial.parameters(), lr=1e-3)
    data = TensorDataset(media, torch.from_numpy(labels))
    data.get_labels = lambda: labels.tolist()  # type: ignore[attr-defined]

    def peers() -> None:
        sampler = PeerSampler(data, WAY, SHOT, QUERY, count)
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
        tutorial.train()
        for support, codes, query, asked, _ in loader:
            optimizer.zero_grad()
            tutorial.process_support_set(support, codes)
            F.cross_entropy(tutorial(query), asked).backward()
            optimizer.step()

    def ours() -> None:
        options: dict[str, Any] = {"steps": count // 4, "batch": 4, "learning_rate": 1e-3}
        fsmer.meta_train(backbone, protocol, "protonet", clips=clips, **options)

    ours()
    fast, slow = _compare(ours, peers, 3)
    return Figure(
        "episodic ProtoNet, ststnet",
        f"{count / fast:,.0f}/s",
        f"{count / slow:,.0f}/s",
        slow / fast,
        "3x",
        slow >= 3 * fast,
    )

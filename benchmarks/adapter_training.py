"""Training of an adapter on few-shot tasks drawn from FACS: ``python -m benchmarks.adapter_training --out DIR``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adapter_network import CONFIG_FILE, WEIGHTS_FILE, AdapterNetwork
from fsmer.ambient import library_settings
from fsmer.array_files import read_arrays
from fsmer.backbones import Backbone, load_model
from fsmer.backbones.base import model_hash
from fsmer.backbones.facs_flow import COARSE_CLASSES
from fsmer.errors import FsmerError
from fsmer.io import atomic_path, check_writable, file_digest, read_bytes, remove_folder, write_json
from fsmer.pretraining.pretraining import HISTORY, StepProgress
from fsmer.synthetic.clips import EMOTION_ORDER, synthetic_maps, unit_set_maps
from fsmer.synthetic.domains import THREE_CLASSES, Domain, load_domain
from fsmer.synthetic.unit_sets import Family, unit_sets
from fsmer.tensor_files import write_tensors

__all__ = ["AdapterRecipe", "TaskBatch", "draw_domain", "draw_tasks", "pretrain_adapter"]

HISTORY_STEPS = 100
LARGEST_GRADIENT = 1.0
T = TypeVar("T")

# What pools are kept in while training goes on: drawing takes longer than training.
_POOL_FOLDER = "pool"
_POOL_BYTES = 1 << 28
_EMBEDDED_AT_ONCE = 256
_QUERIES = 6  # a class in a training task


@dataclass(frozen=True)
class AdapterRecipe:
    """How the adapter is trained; every value is our own choice, made on validation tasks alone."""

    steps: int = 8_000
    batch: int = 32  # tasks a step
    learning_rate: float = 1.5e-3  # peak; falls to 0 as a cosine
    scatter_rate: float = 5.0  # of means and scatters, against that of the layers
    weight_decay: float = 0.01
    warm_up: int = 100
    domains: tuple[str, ...] = ("broad", "lab", "clinic")
    drawn_domains: int = 9  # beside them; cameras whose values are drawn
    camera_seed: int = 1  # of these values
    clips: int = 16  # of each set of action units in each domain
    emotion_clips: int = 2_560  # drawn as emotions in each domain
    merged_share: float = 0.15  # of the steps whose classes join several sets, without a description
    emotion_share: float = 0.25  # of the steps whose classes are negative, positive and surprise
    most_wrong: float = 0.2  # share of wrong labels in a quarter of the steps; half of it in another quarter
    features: int = 128
    hidden: int = 256
    dropout: float = 0.1


class TaskBatch(NamedTuple):
    """Tasks of the same number of classes: what `AdapterNetwork.forward` takes, and the answers."""

    support: Tensor  # (E, S, D)
    codes: Tensor  # (E, S), -1 for padding
    query: Tensor  # (E, Q, D)
    answers: Tensor  # (E, Q)
    directions: Tensor  # (E, C, D), zero where a class is not described
    known: Tensor  # (E, C)


class Pool(NamedTuple):
    """Embeddings that tasks are made of."""

    units: Tensor  # (domains, sets of action units, clips, D)
    emotions: Tensor  # (domains, clips, D)
    coarse: Tensor  # (domains, clips), place in `COARSE_CLASSES`, -1 for none
    unit_directions: Tensor  # (sets, D)
    coarse_directions: Tensor  # (3, D)


@library_settings()
def pretrain_adapter(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = True,
    progress: StepProgress | None = None,
    recipe: AdapterRecipe | None = None,
) -> Path:
    """Train the adapter on embeddings of `facs-flow` and write weights, config and history to `out`.

    Clips are drawn first; with `resume` those that an interrupted run has left in `out` are taken. The seed decides on
    everything; `steps` replaces those of the recipe. `progress` is called with (domains, all domains, {}) while clips
    are drawn, then with (step, steps, losses).

    A `FsmerError` is raised for a recipe that is out of range, an `OutputError` for a folder that cannot be written.
    """
    recipe = recipe or AdapterRecipe()
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    if recipe.steps < 1 or recipe.batch < 1 or recipe.clips < 16:
        raise FsmerError(
            f"cannot train {recipe.steps} steps of {recipe.batch} tasks on {recipe.clips} clips a class: give at least "
            "1 step, 1 task and 16 clips."
        )
    folder = Path(out)
    check_writable(folder)
    backbone = load_model("facs-flow")
    places = [
        *map(load_domain, recipe.domains),
        *(draw_domain(recipe.camera_seed, number) for number in range(recipe.drawn_domains)),
    ]
    pool = _pool(backbone, "base", places, recipe, seed, folder / _POOL_FOLDER, resume, progress)
    generator, started = torch.Generator().manual_seed(seed), time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AdapterNetwork(backbone.embed_dim, recipe.features, recipe.hidden, recipe.dropout)
        history = _train(network, pool, recipe, generator, progress)
    _write(folder, network.eval(), backbone, recipe, seed, history, time.perf_counter() - started)
    remove_folder(folder / _POOL_FOLDER)
    return folder


def draw_domain(seed: int, number: int) -> Domain:
    """A camera, population and estimator whose values are drawn, from about where `broad` and other domains have
    theirs."""
    draw = np.random.Generator(np.random.PCG64([seed, number, 77])).uniform
    weakest, finest = draw(0.15, 0.45), draw(0.005, 0.045)
    return Domain(
        f"t{number:04d}",
        "drawn for the training of an adapter",
        crop_scale=(draw(0.85, 1.12), draw(0.03, 0.1)),
        crop_aspect=(draw(0.9, 1.1), draw(0.03, 0.08)),
        crop_shift=(draw(0.01, 0.04), draw(0.01, 0.05)),
        crop_offset=(draw(-0.03, 0.03), draw(-0.06, 0.06)),
        crop_angle=draw(0.02, 0.08),
        variety=draw(0.5, 1.2),
        intensity=(weakest, draw(0.9, 1.4)),
        asymmetry=draw(0.15, 0.4),
        head=draw(0.2, 1.6),
        blink=draw(0.1, 0.5),
        noise=draw(0.1, 0.75),
        smoothness=(finest, finest + draw(0.01, 0.035)),
    )


def draw_tasks(pool: Pool, recipe: AdapterRecipe, generator: torch.Generator) -> TaskBatch:
    """The tasks of one step: of sets of action units, of such sets joined, or of coarse emotions."""
    kind = _share(generator)
    wrong = _one_of(generator, (0.0, 0.0, recipe.most_wrong / 2, recipe.most_wrong))
    if kind < recipe.emotion_share:
        shot = _one_of(generator, (1, 2, 3, 5, 10, 20))
        described = _one_of(generator, (0.0, 1.0, 1.0))
        clips, directions = _emotion_clips(pool, recipe.batch, shot + _QUERIES, generator)
    else:
        joined = kind < recipe.emotion_share + recipe.merged_share
        way, parts = (_one_of(generator, (2, 3, 4, 5)), _one_of(generator, (2, 3, 4))) if joined else (0, 1)
        way = way or _one_of(generator, (2, 3, 4, 5, 6, 7))
        shot = _one_of(generator, (1, 2, 3, 5, 7, 10))
        described = 0.0 if joined else _one_of(generator, (0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0))
        clips, directions = _unit_clips(pool, recipe.batch, way, parts, shot + _QUERIES, generator)
    tasks, way = clips.shape[:2]
    support, query = clips[:, :, :shot].flatten(1, 2), clips[:, :, shot:].flatten(1, 2)
    codes = torch.arange(way).repeat_interleave(shot).expand(tasks, -1)
    answers = torch.arange(way).repeat_interleave(query.shape[1] // way).expand(tasks, -1)
    flipped = torch.rand(codes.shape, generator=generator) < wrong
    codes = torch.where(flipped, (codes + torch.randint(1, way, codes.shape, generator=generator)) % way, codes)
    if _share(generator) < 0.4:
        least = 0 if described == 1 else 1
        kept = torch.randint(least, shot + 1, (tasks, way), generator=generator).repeat_interleave(shot, dim=1)
        codes = torch.where(torch.arange(shot).repeat(way) < kept, codes, -1)
    known = torch.rand(tasks, way, generator=generator) < described
    return TaskBatch(support, codes, query, answers, directions * known[..., None], known)


def _unit_clips(
    pool: Pool, tasks: int, way: int, parts: int, clips: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Embeddings (E, C, clips, D) of classes that join so many sets of action units, and directions of the first."""
    domains, sets, each, _ = pool.units.shape
    domain = torch.randint(domains, (tasks, 1, 1), generator=generator)
    chosen = torch.rand(tasks, sets, generator=generator).topk(way * parts, dim=1).indices.view(tasks, way, parts)
    part = torch.arange(clips).expand(tasks, way, clips) % parts
    part = part.gather(2, torch.rand(tasks, way, clips, generator=generator).argsort(dim=-1))
    # Within a set clips are taken in a drawn order, each once.
    order = torch.rand(tasks, way, each, generator=generator).argsort(dim=-1)
    return pool.units[domain, chosen.gather(2, part), order[..., :clips]], pool.unit_directions[chosen[..., 0]]


def _emotion_clips(pool: Pool, tasks: int, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings (E, 3, clips, D) of negative, positive and surprise, and their directions."""
    domain = torch.randint(len(pool.emotions), (tasks,), generator=generator)
    coarse, key = pool.coarse[domain], torch.rand(tasks, pool.coarse.shape[1], generator=generator)
    rows = torch.stack([torch.where(coarse == one, key, 2.0).argsort(dim=1)[:, :clips] for one in range(3)], dim=1)
    return pool.emotions[domain[:, None, None], rows], pool.coarse_directions.expand(tasks, -1, -1)


def _train(
    network: AdapterNetwork,
    pool: Pool,
    recipe: AdapterRecipe,
    generator: torch.Generator,
    progress: StepProgress | None,
) -> list[dict[str, float]]:
    rates = {2: recipe.learning_rate, 1: recipe.scatter_rate * recipe.learning_rate}
    named = [(2 if value.ndim >= 2 else 1, value) for value in network.parameters()]
    groups = [
        {"params": [value for held, value in named if held == size], "lr": rate, "rate": rate,
         "weight_decay": recipe.weight_decay if size == 2 else 0.0}
        for size, rate in rates.items()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    history, recent = [], []
    with torch.enable_grad():
        for step in range(recipe.steps):
            share = step / recipe.steps
            factor = min(1.0, (step + 1) / recipe.warm_up) * (1 + np.cos(np.pi * share)) / 2
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * factor
            support, codes, query, answers, directions, known = draw_tasks(pool, recipe, generator)
            scores = network(support, codes, known.shape[1], query, directions, known)
            loss = F.cross_entropy(scores.flatten(0, 1), answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            recent.append(loss.item())
            if not np.isfinite(recent[-1]):
                raise FsmerError(f"the training loss is {recent[-1]} at step {step + 1}; give a lower learning rate.")
            if progress is not None:
                progress(step + 1, recipe.steps, {"loss": recent[-1]})
            if len(recent) == HISTORY_STEPS or step + 1 == recipe.steps:
                history.append({"step": step + 1, "loss": round(float(np.mean(recent)), 4)})
                recent = []
    return history


def _pool(
    backbone: Backbone,
    family: Family,
    places: Sequence[Domain],
    recipe: AdapterRecipe,
    seed: int,
    folder: Path,
    resume: bool,
    progress: StepProgress | None,
) -> Pool:
    """Embeddings of drawn clips of all domains, in a file for each of them."""
    sets = unit_sets(family)
    codes = np.tile(np.arange(len(sets)), recipe.clips)
    found: list[dict[str, NDArray[np.generic]]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(places):
        path = folder / f"{family}-{seed}-{recipe.clips}-{recipe.emotion_clips}-{place.name}.npz"
        if not (resume and path.is_file()):
            units = _embedded(backbone, unit_set_maps(sets, codes, domain=place, seed=seed).maps)
            drawn = synthetic_maps(recipe.emotion_clips, domain=place, seed=seed)
            emotions = _embedded(backbone, drawn.maps)
            units = units.reshape(recipe.clips, len(sets), -1)
            with atomic_path(path) as new, open(new, "wb") as stream:
                np.savez(stream, units=units, emotions=emotions, codes=drawn.emotions)
        found.append(read_arrays(read_bytes(path, _POOL_BYTES), ("units", "emotions", "codes")))
        if progress is not None:
            progress(number + 1, len(places), {})
    names = [THREE_CLASSES.get(emotion) for emotion in EMOTION_ORDER]
    coarse = torch.tensor([-1 if name is None else COARSE_CLASSES.index(name) for name in names])
    clips = {key: torch.from_numpy(np.stack([one[key] for one in found])) for key in ("units", "emotions", "codes")}
    known = [backbone.class_directions(names) for names in ([one.name for one in sets], COARSE_CLASSES)]
    assert known[0] is not None  # facs-flow knows action units and coarse classes
    assert known[1] is not None
    units, emotions = clips["units"].float().transpose(1, 2), clips["emotions"].float()
    return Pool(units, emotions, coarse[clips["codes"]], known[0].weight, known[1].weight)


def _embedded(backbone: Backbone, maps: NDArray[np.float32]) -> NDArray[np.float16]:
    with torch.inference_mode():
        parts = [backbone(part) for part in torch.from_numpy(maps).split(_EMBEDDED_AT_ONCE)]
    return torch.cat(parts).half().numpy()


def _write(
    folder: Path,
    network: AdapterNetwork,
    backbone: Backbone,
    recipe: AdapterRecipe,
    seed: int,
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    with atomic_path(folder / WEIGHTS_FILE) as path:
        write_tensors(path, network.state_dict())
    arguments = {"embed_dim": backbone.embed_dim, "features": recipe.features, "hidden": recipe.hidden}
    config = {
        "format_version": 1,
        "backbone": backbone.name,
        "backbone_hash": model_hash(backbone),
        "arguments": arguments,
        "weights_sha256": file_digest(folder / WEIGHTS_FILE),
    }
    write_json(folder / CONFIG_FILE, config)
    entries = {"recipe": asdict(recipe), "seed": seed, "seconds": round(seconds), "losses": history}
    write_json(folder / HISTORY, entries)


def _share(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator))


def _one_of(generator: torch.Generator, values: Sequence[T]) -> T:
    return values[int(torch.randint(len(values), (1,), generator=generator))]


def main() -> None:
    """Train and say how far it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--steps", type=int, help="in place of those of the recipe")
    given = parser.parse_args()
    pretrain_adapter(given.out, seed=given.seed, steps=given.steps, progress=_say)


def _say(done: int, total: int, losses: dict[str, float]) -> None:
    if not losses or done % HISTORY_STEPS == 0:
        print(f"{done} of {total}", *(f"{name} {value:.3f}" for name, value in losses.items()), flush=True)


if __name__ == "__main__":
    main()

"""What training without labels teaches, judged by the generator's truth: ``python -m benchmarks.self_supervision``.

µ-BERT says which patches moved. Its map is compared with the patches that the expression truly moved (area under the
ROC curve, mean over clips), as the product of both of its parts and with each part alone, beside the same maps of a
network with fresh weights and beside plain differences of pixels.

TCAE gives a frame two codes, one of facial action and one of head pose. Linear probes read the active action units and
the motion of the head out of what each code changes from onset to apex.

Clips that are judged show individuals whom no training has seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone, create_model, load_model
from fsmer.backbones.mubert import MuBert
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.backbones.tcae import Tcae
from fsmer.io import atomic_folder, write_json
from fsmer.pretraining.self_supervised import pretrain_self_supervised
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import Camera

# Training draws its faces with seed 0; these are others.
PROBE_SEED, TEST_SEED = 901, 902
DOMAIN = "broad"
MUBERT_DOMAINS = ("broad", "lab")
INDIVIDUALS = 50
# Onset, apex and offset an eighth of a second apart, the time in which a micro-expression rises.
FRAMES, FRAMES_PER_SECOND = 3, 8.0
BATCH = 32
# TCAE was made for ordinary video, in which faces move by many pixels. Frames of 64 show the micro-expressions of the
# generator as fractions of one, so what TCAE is trained on and judged by moves more: factor on the expression, and
# amplitude of the head's motion.
AMPLIFY, HEAD = 4.0, 8.0
RECORDINGS, RECORDED_FRAMES, RECORDED_RATE = 500, 16, 25.0
# With the published weights (1, 1, 0.1) beside the pixels' 10, a short training ends in codes and flows of zero, which
# please every loss but that of the pixels.
TCAE_ARGUMENTS: dict[str, Any] = {
    "size": 64,
    "width": 8,
    "code_dim": 64,
    "jitter": "each",
    "code_weight": 0.01,
    "cycle_weight": 0.1,
    "flow_weight": 0.05,
    "pose_grid": 3,
}
TCAE_RECIPE: dict[str, Any] = {
    "source": "fsmer's own choice for a short training",
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "steps": 2000,
    "batch_size": 16,
    "distance": (5, 15),
}
# Of each part: constructor arguments, and what changes in the recipe.
KNOWN_SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mubert_tiny": ({}, {}),
    "tcae": (TCAE_ARGUMENTS, TCAE_RECIPE),
}
PARTS = tuple(KNOWN_SETTINGS)
# A unit is judged where at least so many of the clips on either side show it.
FEWEST = 20
RIDGE = tuple(10.0**power for power in range(-1, 6))

Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """Drawn clips and what is true about them.

    Parameters
    ----------
    onset, apex : float32 Tensor of shape (N, 3, size, size)
    moving : bool Tensor of shape (N, size, size)
        Where the expression moves.
    units : bool array of shape (N, 30)
        Active action units.
    head : array of shape (N, 6)
        Motion of the head from onset to apex.
    """

    onset: Tensor
    apex: Tensor
    moving: Tensor
    units: NDArray[np.bool_]
    head: Array


def draw(
    n: int, *, size: int, seed: int, domain: str = DOMAIN, amplify: float = 1.0, head: float | None = None
) -> Truth:
    """`n` clips of a domain; `head` is the amplitude of head motion, by default the domain's."""
    onsets, apexes, moving, units, motion = [], [], [], [], []
    for video in synthetic_videos(
        n,
        domain=domain,
        seed=seed,
        size=size,
        frames=FRAMES,
        frames_per_second=FRAMES_PER_SECOND,
        subjects=INDIVIDUALS,
        camera=_camera(domain, head),
        amplify=amplify,
    ):
        onsets.append(video.frames[video.onset])
        apexes.append(video.frames[video.apex])
        moving.append(video.moving)
        units.append(video.units)
        motion.append(video.head[video.apex] - video.head[video.onset])
    return Truth(
        _frames(onsets), _frames(apexes), torch.from_numpy(np.stack(moving)), np.stack(units), np.stack(motion)
    )


def _camera(domain: str, head: float | None) -> Camera:
    camera = Camera.of(domain)
    return camera if head is None else replace(camera, head=head)


def _frames(pictures: list[Array]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


# --- µ-BERT -----------------------------------------------------------------------------------------------------------


def moved_patches(model: MuBert, clips: Truth) -> dict[str, float]:
    """Area under the ROC curve of each of the model's maps, and of pixel differences, in telling patches that moved."""
    patch = model.patch_size
    truth = F.avg_pool2d(clips.moving[:, None].float(), patch)[:, 0].flatten(1) > 0.5
    found: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for rows in torch.arange(len(truth)).split(BATCH):
            onset, apex = clips.onset[rows], clips.apex[rows]
            maps = model.explain_maps({"onset": onset, "apex": apex})
            maps["pixels"] = F.avg_pool2d((apex - onset).square().mean(dim=1, keepdim=True), patch)[:, 0]
            for name, values in maps.items():
                found.setdefault(name, []).append(values.flatten(1))
    # A clip whose expression moves all patches, or none by half, has nothing to rank.
    judged = (truth.any(dim=1) & ~truth.all(dim=1)).nonzero()[:, 0].tolist()
    scores = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return {
        name: float(np.mean([roc_auc_score(truth[row], values[row]) for row in judged]))
        for name, values in scores.items()
    }


def judge_mubert(
    folder: Path,
    *,
    steps: int | None,
    clips: int,
    seed: int,
    arguments: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The maps of `mubert_tiny`, trained and fresh, on each domain."""
    trained = cast(
        MuBert, pretrained("mubert_tiny", folder, seed=seed, steps=steps, arguments=arguments, changes=changes)
    )
    untrained = cast(MuBert, fresh("mubert_tiny", seed, trained.config))
    size = trained.input_specs[0].size[0]
    results: dict[str, Any] = {}
    for domain in MUBERT_DOMAINS:
        truth = draw(clips, size=size, seed=TEST_SEED, domain=domain)
        results[domain] = {"trained": moved_patches(trained, truth), "fresh": moved_patches(untrained, truth)}
    return results


def mubert_table(results: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| clips | weights | DMA x PoI | DMA alone | PoI alone | pixel difference |",
        "|---|---|---|---|---|---|",
    ]
    for domain, both in results.items():
        for weights, scores in both.items():
            cells = " | ".join(f"{scores[name]:.3f}" for name in ("dma_poi", "dma", "poi", "pixels"))
            lines.append(f"| {domain} | {weights} | {cells} |")
    return "\n".join(lines)


# --- TCAE -------------------------------------------------------------------------------------------------------------


def code_changes(model: Tcae, clips: Truth) -> dict[str, Array]:
    """What each code changes from onset to apex, (N, code_dim)."""
    parts: dict[str, list[Tensor]] = {"AU code": [], "pose code": []}
    with torch.inference_mode():
        for rows in torch.arange(len(clips.onset)).split(BATCH):
            before, after = (model.encoder.codes(frames[rows]) for frames in (clips.onset, clips.apex))
            for name, one, other in zip(parts, before, after, strict=True):
                parts[name].append(other - one)
    return {name: torch.cat(found).double().numpy() for name, found in parts.items()}


def probe_scores(codes: tuple[Array, Array], clips: tuple[Truth, Truth]) -> dict[str, float]:
    """What linear probes, fitted on the first clips, read out of the codes of the second."""
    known, asked = clips
    enough = np.minimum(known.units.sum(axis=0), asked.units.sum(axis=0)) >= FEWEST
    scores = _probe().fit(codes[0], known.units[:, enough].astype(float)).predict(codes[1])
    # Shift, angle and scale have units of their own; in the end each counts alike.
    spread = known.head.std(axis=0)
    motion = _probe().fit(codes[0], known.head / spread).predict(codes[1])
    areas = [roc_auc_score(*pair) for pair in zip(asked.units[:, enough].T, scores.T, strict=True)]
    return {
        "action_units": float(np.mean(areas)),
        "head_motion": float(r2_score(asked.head / spread, motion)),
    }


def _probe() -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=RIDGE))


def draw_recordings(folder: Path, *, size: int, amplify: float, head: float) -> Path:
    """A tree of frames to train on, one folder a recording; one that is there already is kept."""
    if folder.is_dir():
        return folder
    with atomic_folder(folder) as tree:
        videos = synthetic_videos(
            RECORDINGS,
            domain=DOMAIN,
            size=size,
            frames=RECORDED_FRAMES,
            frames_per_second=RECORDED_RATE,
            subjects=INDIVIDUALS,
            camera=_camera(DOMAIN, head),
            amplify=amplify,
        )
        for number, video in enumerate(videos):
            place = tree / f"{number:04d}"
            place.mkdir(parents=True)
            for index, frame in enumerate(video.frames):
                Image.fromarray(frame).save(place / f"{index:03d}.png")
    return folder


def judge_tcae(
    folder: Path,
    *,
    steps: int | None,
    clips: int,
    seed: int,
    arguments: Mapping[str, Any],
    changes: Mapping[str, Any],
    amplify: float = AMPLIFY,
    head: float = HEAD,
) -> dict[str, Any]:
    """Probes on both codes of a TCAE, trained and fresh."""
    moved = {"amplify": amplify, "head": head}
    size = cast(Tcae, create_model("tcae", **arguments)).size
    frames = draw_recordings(folder.parent / f"frames-{size}-{amplify:g}-{head:g}", size=size, **moved)
    trained = cast(
        Tcae, pretrained("tcae", folder, seed=seed, steps=steps, arguments=arguments, changes=changes, frames=frames)
    )
    untrained = cast(Tcae, fresh("tcae", seed, trained.config))
    known, asked = (draw(clips, size=size, seed=one, **moved) for one in (PROBE_SEED, TEST_SEED))
    results: dict[str, Any] = {}
    for weights, model in (("trained", trained), ("fresh", untrained)):
        before, after = code_changes(model, known), code_changes(model, asked)
        results[weights] = {name: probe_scores((before[name], after[name]), (known, asked)) for name in before}
    return results


def tcae_table(results: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = ["| weights | code | action units, mean AUC | head motion, R² |", "|---|---|---|---|"]
    for weights, codes in results.items():
        for code, scores in codes.items():
            lines.append(f"| {weights} | {code} | {scores['action_units']:.3f} | {scores['head_motion']:.3f} |")
    return "\n".join(lines)


# --- both -------------------------------------------------------------------------------------------------------------


def fresh(name: str, seed: int, arguments: Mapping[str, Any]) -> Backbone:
    """The network before the first step of its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(name, **arguments).eval()


def pretrained(
    name: str,
    folder: Path,
    *,
    seed: int,
    steps: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    frames: Path | None = None,
) -> Backbone:
    """The network trained by its recipe with some `changes`; one that lies in `folder` is not trained again.

    `frames` is a tree of frames; without one the pairs are those that ``fsmer pretrain`` draws.
    """
    model = create_model(name, **(arguments or {}))
    recipe = cast(PretrainRecipe, model.pretraining_recipe)
    recipe = replace(recipe, **{**(changes or {}), **({} if steps is None else {"steps": steps})})
    wanted = {"backbone": name, "arguments": model.config, "recipe": recipe.to_dict(), "seed": seed}
    history = folder / "history.json"
    done = json.loads(history.read_text()) if history.is_file() else {}
    if {key: done.get(key) for key in wanted} != json.loads(json.dumps(wanted)):
        pretrain_self_supervised(
            name, folder, frames=frames, seed=seed, recipe=recipe, arguments=arguments, progress=_progress
        )
    return load_model(folder)


def _progress(step: int, steps: int, losses: dict[str, float]) -> None:
    if step % max(1, steps // 20) == 0 or step == steps:
        print(f"step {step} of {steps}: loss {losses['loss']:.4g}", flush=True)


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_supervision", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--steps", type=int, help="steps of training; default: those of the part")
    parser.add_argument("--clips", type=int, default=1000, help="clips that are judged, and as many to fit probes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an argument or an entry of the recipe"
    )
    parser.add_argument("--amplify", type=float, default=AMPLIFY, help="TCAE: factor on the expressions")
    parser.add_argument("--head", type=float, default=HEAD, help="TCAE: amplitude of head motion")
    parser.add_argument("--out", type=Path, default=Path("out/self_supervision"), help="weights and results")
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    parts = asked.parts or PARTS
    if asked.set and len(parts) > 1:
        parser.error("--set changes one part; name that part alone")
    for part in parts:
        folder = asked.out / part
        arguments, changes = settings(part, asked.set)
        chosen: dict[str, Any] = {
            "steps": asked.steps,
            "clips": asked.clips,
            "seed": asked.seed,
            "arguments": arguments,
            "changes": changes,
        }
        if part == "mubert_tiny":
            results = judge_mubert(folder, **chosen)
            text = mubert_table(results)
        else:
            results = judge_tcae(folder, amplify=asked.amplify, head=asked.head, **chosen)
            text = tcae_table(results)
        write_json(folder / "probes.json", results)
        print(text, flush=True)


def settings(part: str, pairs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments and changes of the recipe, after ``name=value`` pairs with values as in JSON."""
    arguments, changes = (dict(known) for known in KNOWN_SETTINGS[part])
    recipe = {key.name for key in fields(PretrainRecipe)}
    for pair in pairs:
        name, _, text = pair.partition("=")
        value: Any
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if name in recipe:
            changes[name] = tuple(value) if isinstance(value, list) else value
        else:
            arguments[name] = value
    return arguments, changes


if __name__ == "__main__":
    main()

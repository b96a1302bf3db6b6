"""Training without labels on pairs of frames: one trainer for every backbone that says what a pair should teach it."""

from __future__ import annotations

import functools
import inspect
import json
import math
import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, create_model
from fsmer.backbones.base import as_device
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.backbones.registry import class_notes
from fsmer.errors import FsmerError
from fsmer.io import check_writable
from fsmer.kernels.noise import Draws
from fsmer.pretraining.frame_pairs import FolderPairs, FramePairs, SyntheticPairs
from fsmer.pretraining.pretraining import CardText, Pretraining, StepProgress
from fsmer.training.loop import Step, make_optimizer, prefetched

__all__ = ["pretrain_mubert_small", "pretrain_mubert_tiny", "pretrain_self_supervised", "pretrain_tcae"]

# Lines of the history of one training, about.
HISTORY_LINES = 100


@library_settings()
def pretrain_self_supervised(
    name: str,
    out: str | Path,
    *,
    frames: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = True,
    checkpoint_every: int = 100,
    progress: StepProgress | None = None,
    recipe: PretrainRecipe | None = None,
    params: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Path:
    """Train a backbone from nothing on pairs of frames and write weights, config and model card to `out`.

    A pair is two frames of one recording, a drawn number of frames apart; no label is read. `frames` is any tree of
    folders with images (each folder one recording) and of video files, faces cropped alike, see
    `fsmer.pretraining.frame_pairs`; by default faces are drawn, with known expressions and head motion.

    `out` gets ``config.json``, ``model.safetensors``, ``README.md`` (the model card) and ``history.json``; while
    training goes on it also holds a checkpoint, from which an interrupted run of the same backbone, recipe, seed and
    frames goes on with `resume`, to the same result as that of a run that was never stopped. The seed decides on
    initial weights, pairs and everything random in the loss, whose numbers are drawn on the CPU whatever the `device`.
    The recipe is the backbone's own by default, with `steps` and `params`, such as ``{"batch_size": 16, "distance": (3,
    6)}``, in place of its fields (`PretrainRecipe.with_params`); `arguments` are those of the backbone's constructor.
    `progress` is called with (step, steps, losses) after every step.

    Raised are: `UnknownNameError` for an unknown backbone, field of the recipe or argument; `FsmerError` where the
    backbone has no training without labels, cannot be trained by such a recipe, or the loss is no longer a number;
    `DataError` or `MediaError` where there are no frames or they cannot be read; `WeightsError` for a checkpoint that
    is damaged or belongs to another run; `OutputError` for a folder that cannot be written; `DeviceError` for a device
    that is not here.
    """
    where = as_device(device)
    with Draws(seed).used():
        model = create_model(name, **dict(arguments or {}))
    if not hasattr(model, "pretraining_loss"):
        raise FsmerError(f"{name!r} has no training without labels; train it with labels instead ('fsmer train').")
    chosen = recipe or cast(PretrainRecipe, model.pretraining_recipe)
    changes = dict(params or {})
    if steps is not None:
        if "steps" in changes:
            raise FsmerError(f"steps are given twice, as {steps} and as {changes['steps']!r}; give them once.")
        changes["steps"] = steps
    chosen = chosen.with_params(changes)
    folder = Path(out)
    check_writable(folder)  # now rather than after half an hour
    pairs = _open_pairs(frames, model, chosen, seed)
    # Parameters that only labels can train, or that labels must not change, are given back here.
    getattr(model, "begin_pretraining", lambda: None)()
    run = _PairTraining(model.to(where), chosen, seed, pairs, progress)
    run.run(folder=folder, key=run.key, resume=resume, checkpoint_every=checkpoint_every)
    model = model.to("cpu").eval()
    settings = {**chosen.to_dict(), **{f"frames: {name}": value for name, value in run.key["frames"].items()}}
    text = card_text(model, chosen, seed, from_recordings=frames is not None)
    run.write_results(folder, model, text, settings)
    return folder


pretrain_tcae = functools.partial(pretrain_self_supervised, "tcae")
pretrain_mubert_tiny = functools.partial(pretrain_self_supervised, "mubert_tiny")
pretrain_mubert_small = functools.partial(pretrain_self_supervised, "mubert_small")


class _PairTraining(Pretraining):
    """Training of a network by its own loss of pairs of frames."""

    def __init__(
        self, model: Backbone, recipe: PretrainRecipe, seed: int, pairs: FramePairs, progress: StepProgress | None
    ) -> None:
        self.model, self.recipe, self.pairs = model, recipe, pairs
        self.after_step: Callable[[], None] = getattr(model, "after_step", lambda: None)
        super().__init__(
            {"model": model},
            make_optimizer(recipe, [value for value in model.parameters() if value.requires_grad]),
            steps=recipe.steps,
            seed=seed,
            key={"backbone": model.name, "arguments": model.config, "recipe": recipe.to_dict()}
            | {"seed": seed, "frames": pairs.describe()},
            history_every=max(1, recipe.steps // HISTORY_LINES),
            digits=6,
            clip_gradient=recipe.clip_gradient,
            progress=progress,
        )

    def steps(self) -> Generator[Step, None, None]:
        self.model.train()
        numbers = range(self.epoch, self.recipe.steps)
        with closing(prefetched(lambda step: self.pairs.batch(step, self.recipe.batch_size), numbers)) as batches:
            for number, pair in zip(numbers, batches, strict=True):
                frames = [torch.from_numpy(part).to(self.device) for part in pair]
                yield Step(frames, rate=rate_factor(self.recipe, number), seed=self.seed_of(number))

    def loss(self, step: Step) -> tuple[Tensor, dict[str, float]]:
        losses: dict[str, Tensor] = self.model.pretraining_loss(  # type: ignore[operator]
            *step.inputs,
            done=self.epoch / self.recipe.steps,
            generator=torch.Generator().manual_seed(cast(int, step.seed)),
        )
        return losses["loss"], {name: float(value.detach()) for name, value in losses.items()}

    def advance(self, step: Step) -> dict[str, float]:
        figures = super().advance(step)
        self.after_step()
        return figures


def rate_factor(recipe: PretrainRecipe, step: int) -> float:
    """Factor on the learning rate at step `step`, from 0: a linear rise, then constant or a half cosine to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return 1.0
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def _open_pairs(frames: str | Path | None, model: Backbone, recipe: PretrainRecipe, seed: int) -> FramePairs:
    (size,) = {spec.size for spec in model.input_specs if spec.kind in ("onset", "apex", "frames")}
    if frames is None:
        return SyntheticPairs(size=size, distance=recipe.distance, seed=seed)
    return FolderPairs(frames, size=size, distance=recipe.distance, seed=seed)


def command_line(backbone: Backbone, recipe: PretrainRecipe, seed: int, *, from_recordings: bool) -> str:
    """The shell command that makes such weights, with all that differs from the backbone's defaults."""
    own = type(backbone)
    words = ["fsmer", "pretrain", backbone.name]
    if from_recordings:
        words += ["--frames", "DIR"]
    usual = cast(PretrainRecipe, backbone.pretraining_recipe)
    if recipe.steps != usual.steps:
        words += ["--steps", str(recipe.steps)]
    for key in (one.name for one in fields(recipe)):
        value = getattr(recipe, key)
        # Where the values come from changes no weight.
        if key not in ("source", "steps") and value != getattr(usual, key):
            words += ["--param", shlex.quote(f"{key}={json.dumps(value)}")]
    for name, parameter in inspect.signature(own).parameters.items():
        value, default = (json.dumps(one) for one in (backbone.config[name], parameter.default))
        if value != default:
            words += ["--argument", shlex.quote(f"{name}={value}")]
    return " ".join([*words, "--seed", str(seed)])


def card_text(backbone: Backbone, recipe: PretrainRecipe, seed: int, *, from_recordings: bool) -> CardText:
    """What the model card says of weights that were trained without labels."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    media = " and ".join(spec.describe() for spec in backbone.input_specs)
    summary = (type(backbone).__doc__ or "").strip().splitlines()[0].rstrip(".")
    if from_recordings:
        source = (
            "It was trained\nwithout labels on recordings that whoever trained it had at hand (counted below): what\n"
            "the people in them agreed to, and the licence of the recordings, hold for these weights too."
        )
    else:
        source = (
            "It was trained\nwithout labels on drawn faces that move by the Facial Action Coding System. **No\n"
            "recording of a person was used to train it**, and no checkpoint was picked: the weights are those after\n"
            "the last step."
        )
    return CardText(
        summary=f"""\
{summary}.

A network of {parameters:,} parameters that turns {media}
into an embedding of {backbone.embed_dim} numbers. {source}""",
        use=f"""\
import fsmer

model = fsmer.load_model("path/to/this/folder")
recognizer = fsmer.adapt(model, support_set)   # five labelled clips a class
recognizer.predict(clips)  # {", ".join(spec.kind for spec in backbone.input_specs)}""",
        limits=f"""\
- Knows no class and no emotion before it is adapted with labelled clips.
- Learns from what moves in the frames it was given; differences between groups of people were not measured.
- Expects the media described above and nothing else; another crop or size is refused.

What of the paper is here:

{class_notes(type(backbone))}""",
        command=command_line(backbone, recipe, seed, from_recordings=from_recordings),
        tags=("few-shot", "self-supervised"),
        licence="other" if from_recordings else "apache-2.0",
    )

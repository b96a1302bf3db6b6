"""Pretraining of `facs-flow` on synthetic FACS motion: one command, one seed, resumable to the same numbers."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.backbones.embedding import embed
from fsmer.backbones.facs_flow import COARSE_CLASSES, FacsFlow, FlowBranch, smoothed
from fsmer.errors import FsmerError
from fsmer.io import check_writable
from fsmer.kernels.noise import Draws
from fsmer.pretraining.estimated_maps import BLOCK as DRAWN_BLOCK
from fsmer.pretraining.estimated_maps import EstimationPlan, MapPool
from fsmer.pretraining.pretraining import CardText, Pretraining, StepProgress
from fsmer.synthetic.clips import BLOCK, EMOTION_ORDER, SyntheticMaps, synthetic_maps
from fsmer.synthetic.domains import THREE_CLASSES
from fsmer.training.loop import Step, prefetched

__all__ = ["Recipe", "card_text", "pretrain_facs_flow"]

HISTORY_STEPS = 100
LARGEST_GRADIENT = 2.0

# Coarse class of every emotion of the synthetic data, -1 for those without one.
COARSE_CODES = np.array(
    [COARSE_CLASSES.index(THREE_CLASSES[name]) if name in THREE_CLASSES else -1 for name in EMOTION_ORDER]
)


@dataclass(frozen=True)
class Recipe:
    """How `facs-flow` is trained; every value is our own choice.

    Training is short and noisy on purpose, so that the network does not learn how synthetic maps look in detail.
    """

    steps: int = 1_500
    batch: int = 160  # clips a step; a divisor of 2,560
    learning_rate: float = 1.2e-3  # peak of the one-cycle schedule (AdamW)
    weight_decay: float = 0.1  # decoupled
    label_smoothing: float = 0.1  # of both cross-entropies
    unit_weight: float = 8.0  # of the action unit loss (binary cross-entropy) against the class loss
    emotion_weight: float = 1.0  # of the loss over single emotions against that over coarse classes
    # Both parameters of the beta distribution that two clips are mixed by (Zhang et al. 2018), for each branch anew.
    mixup: float = 0.4
    channel_drop: float = 0.1  # probability that a branch does not see u, v or strain of a clip
    # How far each map is drawn towards its 3x3 mean: from half of this away from it (sharpened) to all of it.
    sharpness: float = 0.7
    average_decay: float = 0.998  # of the running average of the weights, which is what is kept
    # Clips on which the scatter of embeddings inside a class is measured after training: drawn as flow, not yet seen.
    scatter_clips: int = 4_096
    scatter_ridge: float = 0.3  # what is added to the scatter's diagonal, as a part of its mean
    domain: str = "broad"  # synthetic domain to draw from
    # Part of every batch whose flow was estimated between drawn faces (`fsmer.pretraining.estimated_maps`); the rest is
    # drawn as flow.
    estimated_share: float = 0.6
    estimated_clips: int = 28_800  # how many such clips are drawn before training: a multiple of 240, or fewer


@library_settings()
def pretrain_facs_flow(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = True,
    checkpoint_every: int = 100,
    progress: StepProgress | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Train `facs-flow` from nothing and write weights, config and model card to `out`.

    `out` gets ``config.json``, ``model.safetensors``, ``README.md`` (the model card) and ``history.json``; while
    training goes on it also holds the drawn clips and, every `checkpoint_every` steps, a checkpoint, from which an
    interrupted run of the same recipe and seed goes on with `resume`. The seed decides on initial weights and clips;
    `steps` replaces those of the recipe. `progress` is called with (clips, all clips, {}) while clips are drawn, then
    with (step, steps, losses) after every step.

    A `FsmerError` is raised for a recipe that is out of range, a `WeightsError` for a checkpoint that is damaged or
    belongs to another recipe or seed, an `OutputError` for a folder that cannot be written.
    """
    recipe = recipe or Recipe()
    if steps is not None:
        recipe = Recipe(**{**asdict(recipe), "steps": steps})
    if not 0 <= recipe.estimated_share <= 1:
        raise FsmerError(f"cannot train on a share of {recipe.estimated_share} of each batch: give one from 0 to 1.")
    if recipe.steps < 1 or recipe.batch < 2 or (10 * BLOCK) % recipe.batch:
        raise FsmerError(
            f"cannot train {recipe.steps} steps of {recipe.batch} clips: need 1 step or more and a batch "
            f"that divides {10 * BLOCK}."
        )
    plan = _estimation_plan(recipe) if recipe.estimated_share else None
    folder = Path(out)
    check_writable(folder)  # now rather than after half an hour
    # No loss is known while clips are drawn.
    told = None if progress is None else lambda done, total: progress(done, total, {})
    open_pool = None if plan is None else functools.partial(MapPool, folder, plan, seed, progress=told)
    run = _FacsTraining(recipe, seed, progress, open_pool)
    run.run(folder=folder, key=run.key, resume=resume, checkpoint_every=checkpoint_every)
    run.average.eval()
    run.average.precision.copy_(_inverse_scatter(run.average, recipe, seed))
    run.write_results(folder, run.average, card_text(run.average, seed), asdict(recipe))
    if run.pool is not None:
        run.pool.remove()
    return folder


class _FacsTraining(Pretraining):
    """Training of the network, whose running average is what is kept."""

    def __init__(
        self, recipe: Recipe, seed: int, progress: StepProgress | None, open_pool: Callable[[], MapPool] | None
    ) -> None:
        self.recipe = recipe
        with Draws(seed).used():
            self.model = FacsFlow()
            self.average = FacsFlow()
        self.average.load_state_dict(self.model.state_dict())
        self.model.to(memory_format=torch.channels_last)
        self.coarse = torch.from_numpy(COARSE_CODES)
        self.open_pool = open_pool
        self.pool: MapPool | None = None
        super().__init__(
            {"model": self.model, "average": self.average},
            torch.optim.AdamW(self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
            steps=recipe.steps,
            seed=seed,
            key={"recipe": asdict(recipe), "seed": seed},
            history_every=HISTORY_STEPS,
            digits=4,
            clip_gradient=LARGEST_GRADIENT,
            progress=progress,
        )

    def begin(self) -> None:
        # After a checkpoint was read: one of another run is refused before clips are drawn.
        self.pool = self.open_pool and self.open_pool()

    def steps(self) -> Generator[Step, None, None]:
        self.model.train()
        with contextlib.closing(_clip_stream(self.recipe, self.seed, self.epoch, self.pool)) as batches:
            for number, clips in zip(range(self.epoch, self.epochs), batches, strict=False):
                yield Step(clips, rate=_one_cycle(number / self.epochs), seed=self.seed_of(number))

    def advance(self, step: Step) -> dict[str, float]:
        figures = super().advance(step)
        # Early on the average follows fast, so that it does not keep the random start.
        keep = min(self.recipe.average_decay, (1 + self.epoch) / (10 + self.epoch))
        with torch.no_grad():
            for kept, newest in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(newest, 1 - keep)
                else:
                    kept.copy_(newest)
        return figures

    def loss(self, step: Step) -> tuple[Tensor, dict[str, float]]:
        clips: SyntheticMaps = step.inputs
        maps, emotions = torch.from_numpy(clips.maps), torch.from_numpy(clips.emotions)
        targets = (self.coarse[emotions], emotions, torch.from_numpy(clips.units).float())
        generator = torch.Generator().manual_seed(cast(int, step.seed))
        total = torch.zeros(())
        sums = dict.fromkeys(("classes", "emotions", "units"), 0.0)
        branches = self.model.networks
        for branch in branches:
            seen, other, share = self._augment(maps, generator)
            with torch.autocast("cpu", torch.bfloat16):
                embeddings = branch(seen.contiguous(memory_format=torch.channels_last))
            losses = self._branch_losses(branch, embeddings, targets, other, share)
            total = total + losses["classes"] + self.recipe.emotion_weight * losses["emotions"]
            total = total + self.recipe.unit_weight * losses["units"]
            for name, value in losses.items():
                sums[name] += float(value.detach()) / len(branches)
        return total, {"loss": float(total.detach()) / len(branches), **sums}

    def _augment(self, maps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Maps as one branch sees them, the clips that they are mixed with, and each clip's own share, (B,)."""
        recipe, count = self.recipe, len(maps)
        amount = recipe.sharpness * (1.5 * torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
        keep = (torch.rand(count, 3, 1, 1, generator=generator) >= recipe.channel_drop).float()
        seen = keep * smoothed(maps, amount)
        other = torch.randperm(count, generator=generator)
        share = torch.ones(count)
        if recipe.mixup:
            # torch's own beta distribution takes no generator.
            seed = int(torch.randint(1 << 62, (1,), generator=generator))
            drawn = np.random.Generator(np.random.PCG64(seed)).beta(recipe.mixup, recipe.mixup, count)
            share = torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()
        wide = share.view(-1, 1, 1, 1)
        return wide * seen + (1 - wide) * seen[other], other, share

    def _branch_losses(
        self, branch: FlowBranch, embeddings: Tensor, targets: tuple[Tensor, ...], other: Tensor, share: Tensor
    ) -> dict[str, Tensor]:
        scores = self.model.scale * embeddings @ F.normalize(branch.directions, dim=-1).T
        coarse, emotion = scores[:, : len(COARSE_CLASSES)], scores[:, len(COARSE_CLASSES) :]
        units = branch.unit_head(self.model.scale * embeddings)

        def mixed(loss: Callable[..., Tensor], target: Tensor) -> Tensor:
            return (share * loss(target=target) + (1 - share) * loss(target=target[other])).mean()

        entropy = functools.partial(F.cross_entropy, label_smoothing=self.recipe.label_smoothing, reduction="none")

        def unit_loss(target: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(units, target, reduction="none").mean(dim=1)

        return {
            "classes": mixed(functools.partial(entropy, coarse, ignore_index=-1), targets[0]),
            "emotions": mixed(functools.partial(entropy, emotion), targets[1]),
            "units": mixed(unit_loss, targets[2]),
        }


def _one_cycle(done: float, warm: float = 0.15, start: float = 0.04, end: float = 4e-6) -> float:
    """Cosine from `start` up to 1 in the first part of training, then down to `end` (Smith & Topin 2018)."""
    low, high, position = (start, 1.0, done / warm) if done < warm else (1.0, end, (done - warm) / (1 - warm))
    return high + (low - high) * 0.5 * (1 + float(np.cos(np.pi * position)))


def _inverse_scatter(model: FacsFlow, recipe: Recipe, seed: int) -> Tensor:
    """Inverse of the scatter of unit embeddings inside the coarse classes, on clips that training has not seen."""
    drawn = synthetic_maps(recipe.scatter_clips, domain=recipe.domain, seed=seed + 1)
    labels = COARSE_CODES[drawn.emotions]
    embeddings = F.normalize(embed(model, drawn.maps[labels >= 0]), dim=-1).double()
    labels = labels[labels >= 0]
    means = torch.stack([embeddings[labels == code].mean(dim=0) for code in range(len(COARSE_CLASSES))])
    inside = embeddings - means[labels]
    scatter = inside.T @ inside / len(inside)
    # The ridge keeps directions in which synthetic clips hardly differ from being taken for certain.
    scatter += recipe.scatter_ridge * scatter.diagonal().mean() * torch.eye(len(scatter), dtype=torch.float64)
    return torch.linalg.inv(scatter).float()


def _estimation_plan(recipe: Recipe) -> EstimationPlan:
    """The clips with estimated flow: no more of them than the steps can use, in whole blocks."""
    used = math.ceil(recipe.estimated_share * recipe.batch * recipe.steps)
    block = max(1, min(DRAWN_BLOCK, used, recipe.estimated_clips))
    return EstimationPlan(min(recipe.estimated_clips, math.ceil(used / block) * block), recipe.domain, block=block)


def _clip_stream(
    recipe: Recipe, seed: int, first_step: int, pool: MapPool | None
) -> Generator[SyntheticMaps, None, None]:
    """Batches of synthetic clips from step `first_step` on, drawn one piece ahead in a second thread."""
    piece = 10 * BLOCK

    def draw(number: int) -> SyntheticMaps:
        return synthetic_maps(piece, domain=recipe.domain, seed=seed, start=number * piece)

    step, pieces = first_step, range(first_step * recipe.batch // piece, -(-recipe.steps * recipe.batch // piece))
    with contextlib.closing(prefetched(draw, pieces)) as drawn_pieces:
        for drawn in drawn_pieces:
            for begin in range(step * recipe.batch % piece, piece, recipe.batch):
                part = slice(begin, begin + recipe.batch)
                batch = SyntheticMaps(drawn.maps[part], drawn.units[part], drawn.emotions[part])
                yield batch if pool is None else _with_estimated(batch, pool, recipe.estimated_share, seed, step)
                step += 1


def _with_estimated(batch: SyntheticMaps, pool: MapPool, share: float, seed: int, step: int) -> SyntheticMaps:
    """The batch with a `share` of its clips replaced by some of the pool; the step is the seed."""
    count = round(share * len(batch.maps))
    taken = pool.take(count, np.random.Generator(np.random.PCG64([seed, step])))
    both = ((getattr(taken, name), getattr(batch, name)[count:]) for name in ("maps", "units", "emotions"))
    return SyntheticMaps(*map(np.concatenate, both))


def card_text(backbone: FacsFlow, seed: int) -> CardText:
    """What the model card says of `facs-flow`."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return CardText(
        summary=f"""\
A compact network ({parameters:,} parameters) that turns one optical-flow map of a face (onset to apex:
{backbone.input_spec.describe()}) into a {backbone.embed_dim}-d embedding. It knows action units and emotions from
synthetic motion drawn from the Facial Action Coding System: some of it as flow with modelled errors, some as flow that
an estimator found between two pictures of a drawn face. **No recording of a person was used to train it**. The
weights are those after the last step; how many steps was set while figures on real maps were seen (see Limits).""",
        use="""\
import fsmer

model = fsmer.load_model("facs-flow")
recognizer = fsmer.adapt(model, support_set)  # five labelled clips a class
recognizer = fsmer.adapt(model, many_clips, "finetune", train_backbone=True)  # last stage and embedding layer too
recognizer.predict(clips)""",
        limits="""\
- Synthetic faces are a drawing of anatomy, not people: no claim is made about any group of people, and differences
  between groups were not measured.
- Positions, sizes and co-occurrences of action units follow published anatomy. The crop, the strength of head motion
  and the look of estimator noise were set while looking at public flow maps of CASME II and SMIC (MEGC 2019).
- UF1 on these two sets, with their labels, was seen for many variants of the generator, of the flow estimators, the
  network, its length of training, the smoothing at inference and the default few-shot method while they were designed.
  Figures on them are therefore optimistic; other data sets are the fair test.
- Expects the map described above and nothing else; another crop, size or normalisation is refused.
- Per-map min-max scaling hides how strong a movement is: a face that does not move still gets an answer.""",
        command=f"fsmer pretrain {backbone.name} --seed {seed}",
        tags=("few-shot", "optical-flow", "facial-action-coding-system"),
    )

"""What the kill tests run that is no command of its own."""

from __future__ import annotations

import tiny_backbone  # noqa: F401

import fsmer
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.backbones.registry import fresh_model
from fsmer.data import InputSpec
from fsmer.preprocess.prepare import prepare
from fsmer.pretraining.facs_flow import Recipe, pretrain_facs_flow
from fsmer.pretraining.self_supervised import pretrain_self_supervised


def save_clips(out: str, seed: int) -> None:
    fsmer.synthetic_clips("lab", 12, seed=seed).save(out)


def save_recognizer(out: str, seed: int) -> None:
    model = fresh_model("tiny-for-tests", seed, {"seed": seed})
    fsmer.adapt(model.eval(), fsmer.synthetic_clips("lab", 12, seed=seed)).save(out)


def prepare_clips(root: str, out: str) -> None:
    flow = InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax")
    onset = InputSpec("onset", (16, 16), ("red", "green", "blue"), "unit")
    prepare("casme2", root, out, specs=(flow, onset), frames="cropped", workers=1)


def pretrain_flow(out: str) -> None:
    recipe = Recipe(steps=4, batch=32, scatter_clips=128, estimated_clips=8)
    pretrain_facs_flow(out, seed=3, recipe=recipe, checkpoint_every=1)


def pretrain_pairs(root: str, out: str) -> None:
    recipe = PretrainRecipe(optimizer="adamw", steps=5, batch_size=4, distance=(2, 4))
    tiny = {"size": 32, "width": 2, "code_dim": 8}
    pretrain_self_supervised("tcae", out, frames=root, recipe=recipe, arguments=tiny, checkpoint_every=1)


def compile_code() -> None:
    from fsmer.kernels.compiled import compiled

    assert compiled("shallow") is not None

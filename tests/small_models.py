"""Every registered backbone at a size that tests can afford, with clips with media that it expects."""

from __future__ import annotations

from typing import Any

import torch

import fsmer
from fsmer.backbones import Backbone, create_model, list_models

# Constructor arguments that make a backbone small; a backbone that is small already needs none.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "basic_inception": {"shared_width": 32},
    "ensemble": {"of": "fr", "members": 2, "arguments": {"shared_width": 64, "detector_width": 16, "hidden_width": 64}},
    "flow_resnet18": {"size": 32, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "projection_dim": 16},
    "fr": {"shared_width": 64, "detector_width": 16, "hidden_width": 64},
    "merau": {
        "frame_size": 32,
        "frame_width": 8,
        "code_dim": 16,
        "projection_dim": 8,
        "flow": {"size": 32, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "projection_dim": 16},
    },
    "mmnet": {"size": 32, "stem": [[12, 2], [8, 1]], "stages": [[8, 1], [16, 2]], "heads": 2},
    "mubert_small": {"image_size": 32, "width": 32, "depth": 1, "heads": 2, "decoder_depth": 1},
    "mubert_tiny": {"image_size": 32, "width": 32, "depth": 1, "heads": 2, "decoder_depth": 1},
    "r3d10_attribute": {"width": 4, "size": 32, "frames": 8, "stream_dim": 8, "text": "scratch"},
    "r3d18_attribute": {"width": 4, "size": 32, "frames": 8, "stream_dim": 8, "text": "scratch"},
    "r3d34_attribute": {"width": 4, "size": 32, "frames": 8, "stream_dim": 8, "text": "scratch"},
    "ststnet": {},
    "tcae": {"size": 32, "width": 8, "code_dim": 16},
}
NAMES = [info.name for info in list_models() if not info.name.endswith("for-tests")]


def small_model(name: str, seed: int = 0) -> Backbone:
    """A small backbone of that name with fresh weights, in evaluation mode."""
    torch.manual_seed(seed)
    return create_model(name, **ARGUMENTS.get(name, {})).eval()


def clips_for(backbone: Backbone, n: int = 12, *, seed: int = 1, domain: str = "lab") -> fsmer.ClipSet:
    """Synthetic clips with the media that the backbone expects."""
    return fsmer.synthetic_clips(domain, n, seed=seed, specs=backbone.input_specs)


def assert_words_tell_two_classes(model: Backbone, clips: fsmer.ClipSet, words: dict[str, str]) -> None:
    """Two described classes are recognised without a label, and five labelled clips of each do no harm."""
    assert fsmer.recognizer_of_words(model, words).score(clips) > 0.9
    ask = {"model": model, "clips": clips, "descriptions": words}
    zero = fsmer.evaluate(fsmer.load_protocol("kshot", way=2, shot=0, episodes=20), method="zero_shot", **ask)
    few = fsmer.evaluate(fsmer.load_protocol("kshot", way=2, shot=5, episodes=20), method="cosine", **ask)
    assert zero.uf1 > 0.9
    assert few.uf1 > zero.uf1 - 0.01

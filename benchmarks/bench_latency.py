"""What a user waits for: adapting the default model to 15 clips, and one answer."""

from __future__ import annotations

import numpy as np

from benchmarks.figures import Figure, best_seconds
from fsmer import adapt, list_models, load_model, synthetic_clips
from fsmer.backbones import create_model

MODEL = "facs-flow"


def run() -> list[Figure]:
    """Times on one core, after import."""
    (known,) = list_models(MODEL)
    # Time does not depend on the weights, so the figures are there before the network is trained.
    model = load_model(MODEL) if known.pretrained else create_model(MODEL).eval()
    clips = synthetic_clips("clinic", 200, seed=1)
    rows = np.concatenate([np.flatnonzero(clips.labels == name)[:5] for name in clips.classes])
    support, query = clips[rows], clips[0]
    recognizer = adapt(model, support)
    learning = best_seconds(lambda: adapt(model, support), rounds=5)
    answering = best_seconds(lambda: recognizer.predict(query), rounds=100)
    return [
        Figure(f"adapt {MODEL} to 3 x 5 clips", f"{learning:.3f} s", promise="1 s", kept=learning < 1),
        Figure(f"{MODEL}: predict one map", f"{1000 * answering:.2f} ms", promise="5 ms", kept=answering < 0.005),
    ]

"""fsmer: few-shot micro-expression recognition.

>>> import fsmer
>>> model = fsmer.load_model("facs-flow")  # doctest: +SKIP
>>> recognizer = fsmer.adapt(model, support_set)  # doctest: +SKIP
>>> recognizer.predict(clips)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsmer.version import __version__

# The whole public API: name -> module. Nothing is imported before it is asked for, so `import fsmer` stays fast.
_PUBLIC = {
    # clips
    "Clip": "fsmer.data",
    "ClipSet": "fsmer.data",
    "InputSpec": "fsmer.data",
    "concat": "fsmer.data",
    "read_clips": "fsmer.data",
    "read_frame": "fsmer.data",
    "load_scheme": "fsmer.data",
    "list_schemes": "fsmer.data",
    "parse_aus": "fsmer.data",
    "synthetic_clips": "fsmer.synthetic",
    "list_domains": "fsmer.synthetic",
    "list_datasets": "fsmer.datasets",
    "read_dataset": "fsmer.datasets",
    "check_dataset": "fsmer.datasets",
    "megc2019_composite": "fsmer.datasets",
    # recordings
    "open_frames": "fsmer.preprocess",
    "media_from_frames": "fsmer.preprocess",
    "clips_from_frames": "fsmer.preprocess",
    "PreprocessRecipe": "fsmer.preprocess",
    "prepare": "fsmer.deploy.prepare_models",
    "predict_recording": "fsmer.deploy.recording",
    # episodes
    "Episode": "fsmer.episodic",
    "KShotSampler": "fsmer.episodic",
    "load_protocol": "fsmer.episodic",
    "list_protocols": "fsmer.episodic",
    # backbones
    "Backbone": "fsmer.backbones",
    "load_model": "fsmer.backbones",
    "list_models": "fsmer.backbones",
    "create_model": "fsmer.backbones",
    "embed": "fsmer.backbones",
    "wrap": "fsmer.backbones",
    # transfer
    "Recognizer": "fsmer.transfer",
    "adapt": "fsmer.transfer",
    "load_method": "fsmer.transfer",
    "list_methods": "fsmer.transfer",
    "mmd": "fsmer.transfer",
    "recognizer_of_words": "fsmer.transfer",
    "train": "fsmer.transfer",
    # evaluation
    "Report": "fsmer.evaluation",
    "evaluate": "fsmer.evaluation",
    "explain": "fsmer.deploy.explain",
    "compare": "fsmer.reporting.compare",
    "paired_comparison": "fsmer.reporting.statistics",
    "critical_difference": "fsmer.reporting.ranking",
    "audit": "fsmer.auditing",
    "list_tables": "fsmer.published",
    "run_table": "fsmer.published",
    # errors
    "FsmerError": "fsmer.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsmer' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if TYPE_CHECKING:
    from fsmer.auditing import audit
    from fsmer.backbones import Backbone, create_model, embed, list_models, load_model, wrap
    from fsmer.data import (
        Clip,
        ClipSet,
        InputSpec,
        concat,
        list_schemes,
        load_scheme,
        parse_aus,
        read_clips,
        read_frame,
    )
    from fsmer.datasets import check_dataset, list_datasets, megc2019_composite, read_dataset
    from fsmer.deploy.explain import explain
    from fsmer.deploy.prepare_models import prepare
    from fsmer.deploy.recording import predict_recording
    from fsmer.episodic import Episode, KShotSampler, list_protocols, load_protocol
    from fsmer.errors import FsmerError
    from fsmer.evaluation import Report
    from fsmer.evaluation.evaluate import evaluate
    from fsmer.preprocess import PreprocessRecipe, clips_from_frames, media_from_frames, open_frames
    from fsmer.published import list_tables, run_table
    from fsmer.reporting.compare import compare
    from fsmer.reporting.ranking import critical_difference
    from fsmer.reporting.statistics import paired_comparison
    from fsmer.synthetic import list_domains, synthetic_clips
    from fsmer.transfer import Recognizer, list_methods, load_method
    from fsmer.transfer.adapt import adapt, recognizer_of_words
    from fsmer.transfer.full_training import train
    from fsmer.transfer.mmd import mmd

"""fsmer: few-shot micro-expression recognition.

>>> import fsmer
>>> model = fsmer.load_model("facs-flow")  # doctest: +SKIP
>>> recognizer = fsmer.adapt(model, support_set)  # doctest: +SKIP
>>> recognizer.predict(clips)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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
    "synthetic_clips": "fsmer.data",
    "list_domains": "fsmer.data",
    "list_datasets": "fsmer.data.adapters",
    "read_dataset": "fsmer.data.adapters",
    "check_dataset": "fsmer.data.adapters",
    "megc2019_composite": "fsmer.data.adapters",
    # recordings
    "open_frames": "fsmer.preprocess",
    "media_from_frames": "fsmer.preprocess",
    "clips_from_frames": "fsmer.preprocess",
    "PreprocessRecipe": "fsmer.preprocess",
    "prepare": "fsmer.evaluation.prepare_models",
    "predict_recording": "fsmer.evaluation.recording",
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
    "explain": "fsmer.evaluation.explain",
    "compare": "fsmer.evaluation.compare",
    "paired_comparison": "fsmer.evaluation.statistics",
    "critical_difference": "fsmer.evaluation.statistics",
    "audit": "fsmer.evaluation.audit",
    "list_tables": "fsmer.benchmarks",
    "run_table": "fsmer.benchmarks",
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
    from fsmer.backbones import Backbone, create_model, embed, list_models, load_model
    from fsmer.benchmarks import list_tables, run_table
    from fsmer.data import (
        Clip,
        ClipSet,
        InputSpec,
        concat,
        list_domains,
        list_schemes,
        load_scheme,
        parse_aus,
        read_clips,
        read_frame,
        synthetic_clips,
    )
    from fsmer.data.adapters import check_dataset, list_datasets, megc2019_composite, read_dataset
    from fsmer.episodic import Episode, KShotSampler, list_protocols, load_protocol
    from fsmer.errors import FsmerError
    from fsmer.evaluation import Report, evaluate
    from fsmer.evaluation.audit import audit
    from fsmer.evaluation.compare import compare
    from fsmer.evaluation.explain import explain
    from fsmer.evaluation.prepare_models import prepare
    from fsmer.evaluation.recording import predict_recording
    from fsmer.evaluation.statistics import critical_difference, paired_comparison
    from fsmer.preprocess import PreprocessRecipe, clips_from_frames, media_from_frames, open_frames
    from fsmer.transfer import Recognizer, list_methods, load_method
    from fsmer.transfer.adapt import adapt, recognizer_of_words
    from fsmer.transfer.mmd import mmd
    from fsmer.transfer.train import train

"""fsmer: few-shot micro-expression recognition.

>>> import fsmer
>>> model = fsmer.load_model("facs-flow")  # doctest: +SKIP
>>> recognizer = fsmer.adapt(model, support_set)  # doctest: +SKIP
>>> recognizer.predict(clips)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsmer.version import __version__

# The whole public API: module -> names. Nothing is imported before it is asked for, so `import fsmer` stays fast.
_MODULES = {
    "fsmer.data": "Clip ClipSet InputSpec concat read_clips read_frame load_scheme list_schemes parse_aus",
    "fsmer.synthetic": "synthetic_clips list_domains",
    "fsmer.datasets": "list_datasets read_dataset check_dataset megc2019_composite",
    "fsmer.preprocess": "open_frames media_from_frames clips_from_frames PreprocessRecipe",
    "fsmer.deploy.prepare_models": "prepare",
    "fsmer.deploy.recording": "predict_recording",
    "fsmer.episodic": "Episode KShotSampler load_protocol list_protocols",
    "fsmer.backbones": "Backbone load_model list_models create_model embed wrap",
    "fsmer.transfer": "Recognizer adapt load_method list_methods mmd recognizer_of_words train",
    "fsmer.meta": "meta_train list_algorithms",
    "fsmer.evaluation": "Report evaluate",
    "fsmer.deploy.explain": "explain",
    "fsmer.reporting.compare": "compare",
    "fsmer.reporting.statistics": "paired_comparison",
    "fsmer.reporting.ranking": "critical_difference",
    "fsmer.auditing": "audit",
    "fsmer.published": "list_tables run_table",
    "fsmer.errors": "FsmerError",
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsmer' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


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
    from fsmer.meta.algorithm import list_algorithms
    from fsmer.meta.training import meta_train
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

"""From a recording to a clip's media: reading, face, apex, flow and time, one file a step, one declared recipe."""

# ruff: noqa: F401 (the names that type checkers see are not used in this file itself)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Module -> names. Nothing is imported before it is asked for: the steps use libraries that take their time to load.
_PUBLIC = {
    name: f"fsmer.preprocess.{module}"
    for module, names in {
        "cascade": "CascadeDetector",
        "faces": "NoFaceError",
        "flow": "list_flow_methods optical_flow",
        "frame_clips": "clips_from_frames",
        "frame_source": "FrameSource",
        "media": "ClipMedia make_media media_from_frames pair_media",
        "reading": "open_frames",
        "recipe": "PreprocessRecipe",
    }.items()
    for name in names.split()
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsmer.preprocess' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_PUBLIC[name]), name))


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from fsmer.preprocess.cascade import CascadeDetector
    from fsmer.preprocess.faces import NoFaceError
    from fsmer.preprocess.flow import list_flow_methods, optical_flow
    from fsmer.preprocess.frame_clips import clips_from_frames
    from fsmer.preprocess.frame_source import FrameSource
    from fsmer.preprocess.media import ClipMedia, make_media, media_from_frames, pair_media
    from fsmer.preprocess.reading import open_frames
    from fsmer.preprocess.recipe import PreprocessRecipe

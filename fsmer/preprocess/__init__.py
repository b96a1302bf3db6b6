"""From a recording to a clip's media: reading, face, apex, flow and time, one file a step, one declared recipe."""

# ruff: noqa: F401 (the names that type checkers see are not used in this file itself)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Name -> module. Nothing is imported before it is asked for: the steps use libraries that take their time to load.
_PUBLIC = {
    "ApexSpot": "fsmer.preprocess.apex",
    "CascadeDetector": "fsmer.preprocess.faces",
    "ClipMedia": "fsmer.preprocess.media",
    "FacePose": "fsmer.preprocess.faces",
    "FaceTracker": "fsmer.preprocess.faces",
    "FrameSource": "fsmer.preprocess.reading",
    "NoFaceError": "fsmer.preprocess.faces",
    "PreprocessRecipe": "fsmer.preprocess.recipe",
    "clips_from_frames": "fsmer.preprocess.media",
    "crop_face": "fsmer.preprocess.faces",
    "list_flow_methods": "fsmer.preprocess.flow",
    "load_detector": "fsmer.preprocess.faces",
    "load_flow_method": "fsmer.preprocess.flow",
    "locate_face": "fsmer.preprocess.faces",
    "make_media": "fsmer.preprocess.media",
    "media_from_frames": "fsmer.preprocess.media",
    "open_frames": "fsmer.preprocess.reading",
    "optical_flow": "fsmer.preprocess.flow",
    "pair_media": "fsmer.preprocess.media",
    "pose_from_landmarks": "fsmer.preprocess.faces",
    "resample": "fsmer.preprocess.time",
    "spot_apex": "fsmer.preprocess.apex",
    "track_faces": "fsmer.preprocess.faces",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fsmer.preprocess' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if TYPE_CHECKING:
    from fsmer.preprocess.apex import ApexSpot, spot_apex
    from fsmer.preprocess.faces import (
        CascadeDetector,
        FacePose,
        FaceTracker,
        NoFaceError,
        crop_face,
        load_detector,
        locate_face,
        pose_from_landmarks,
        track_faces,
    )
    from fsmer.preprocess.flow import list_flow_methods, load_flow_method, optical_flow
    from fsmer.preprocess.media import ClipMedia, clips_from_frames, make_media, media_from_frames, pair_media
    from fsmer.preprocess.reading import FrameSource, open_frames
    from fsmer.preprocess.recipe import PreprocessRecipe
    from fsmer.preprocess.time import resample

"""All that is done to a recording before a backbone gets it, in one frozen dataclass with a hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from fsmer.errors import DataError, unknown_name
from fsmer.io import CHECKSUM, write_json
from fsmer.preprocess.apex import APEX_METHODS
from fsmer.preprocess.face_detectors import DETECTORS, FaceDetector, load_detector
from fsmer.preprocess.flow import FlowMethod, load_flow_method
from fsmer.preprocess.time import TIME_METHODS
from fsmer.schema import Count, checked, plain_value, read_json

__all__ = ["PreprocessRecipe", "library_versions"]

# Raised whenever the same recipe would give other numbers.
STEPS_VERSION = 2
REMEDY = "give what PreprocessRecipe.save wrote"
# Pixels of a crop's height or width.
Side = Annotated[int, Ge(16), Le(1 << 14)]
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python")  # one of them is there
LIBRARIES = (("av",), ("numpy",), OPENCV, ("pillow",), ("scikit-image",))


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, *others in LIBRARIES:
        for candidate in (name, *others):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(candidate))
    return {**found, "steps": str(STEPS_VERSION)}


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose numbers end up in the media, and of the steps themselves (``"steps"``)."""
    return dict(_installed())


class _RecipeFile(TypedDict, total=False):
    """What a file of a recipe may hold; whatever is not there has its default."""

    detector: str
    detector_parameters: dict[str, Any]
    face: Count | Literal["largest"]
    crop: str
    crop_size: tuple[Side, Side]
    apex: str
    flow: str
    flow_parameters: dict[str, Any]
    head_motion: str
    strain_shear: float
    time: str
    versions: dict[str, str]


@dataclass(frozen=True)
class PreprocessRecipe:
    """All steps from a recording to a clip's media with their parameters and versions.

    Parameters
    ----------
    detector : str, default "cascade"
        See `fsmer.preprocess.face_detectors.DETECTORS`; ``"cropped"`` where frames show nothing but the face.
    detector_parameters : mapping, optional
        Arguments of the detector, e.g. ``{"path": "landmarks.csv"}``.
    face : "largest" or int, default "largest"
        Which face, counted from the largest.
    crop : {"onset", "frame"}, default "onset"
        ``"onset"``: one crop for the whole clip from its onset frame, so that nothing but the face moves in it (the
        habit of this field). ``"frame"``: the crop follows the face.
    crop_size : tuple of int, default (224, 224)
        Height and width of the crop on which flow is computed.
    apex : str, default "given"
        See `fsmer.preprocess.apex.spot_apex`. ``"given"`` takes the annotation where there is one and spots it by flow
        where there is none.
    flow : str, default "farneback"
        See `fsmer.preprocess.flow.list_flow_methods`; a backbone that names its own method gets that one.
    flow_parameters : mapping, optional
        Parameters of `flow` that differ from its defaults.
    head_motion : {"keep", "remove"}, default "keep"
        Whether the affine motion of the head is taken out of flow.
    strain_shear : float, default 0.5
        See `fsmer.preprocess.flow.optical_strain`.
    time : {"tim", "linear"}, default "tim"
        How clips are brought to a number of frames. The attribute paper (section IV-A) uses TIM.
    versions : mapping, optional
        Libraries that the media were made with.

    Raises
    ------
    UnknownNameError, DataError
        A step of that name does not exist.

    Examples
    --------
    >>> import fsmer
    >>> recipe = fsmer.PreprocessRecipe(detector="cropped", flow="farneback")
    >>> path = recipe.save("recipe.json")
    >>> fsmer.PreprocessRecipe.load(path) == recipe
    True
    >>> fsmer.PreprocessRecipe.from_dict(recipe.to_dict()).hash == recipe.hash
    True
    >>> recipe.with_current_versions() == recipe
    True
    >>> callable(recipe.load_detector().detect), type(recipe.load_flow()).__name__
    (True, 'Farneback')
    """

    detector: str = "cascade"
    detector_parameters: Mapping[str, Any] = field(default_factory=dict)
    face: int | Literal["largest"] = "largest"
    crop: Literal["onset", "frame"] = "onset"
    crop_size: tuple[int, int] = (224, 224)
    apex: str = "given"
    flow: str = "farneback"
    flow_parameters: Mapping[str, Any] = field(default_factory=dict)
    head_motion: Literal["keep", "remove"] = "keep"
    strain_shear: float = 0.5
    time: Literal["tim", "linear"] = "tim"
    versions: Mapping[str, str] = field(default_factory=library_versions)

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("face detector", self.detector, tuple(DETECTORS)),
            ("apex method", self.apex, ("given", *APEX_METHODS)),
            ("crop", self.crop, ("onset", "frame")),
            ("treatment of head motion", self.head_motion, ("keep", "remove")),
            ("time interpolation", self.time, tuple(TIME_METHODS)),
        ):
            if given not in known:
                raise unknown_name(kind, given, known)
        load_flow_method(self.flow, self.flow_parameters)
        if self.face != "largest" and (not isinstance(self.face, (int, np.integer)) or self.face < 0):
            raise DataError(f"face={self.face!r} is no face: give 'largest' or a number from 0 (the largest).")
        if len(self.crop_size) != 2 or min(self.crop_size) < 16:
            raise DataError(f"a crop of {self.crop_size} is too small for flow: give height and width of 16 or more.")

    def load_detector(self) -> FaceDetector:
        """The face detector.

        Returns
        -------
        FaceDetector
            As `detector` and `detector_parameters` say.
        """
        return load_detector(self.detector, self.detector_parameters)

    def load_flow(self, name: str | None = None) -> FlowMethod:
        """The flow method.

        Parameters
        ----------
        name : str, optional
            A backbone's own wish, which gets that method's defaults if it is another one.

        Returns
        -------
        FlowMethod
            As `flow` and `flow_parameters` say, unless `name` is another one.
        """
        if name is None or name == self.flow:
            return load_flow_method(self.flow, self.flow_parameters)
        return load_flow_method(name)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that differ when anything in the recipe differs, versions included."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        Returns
        -------
        dict
            Field -> value.
        """
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), default=plain_value))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PreprocessRecipe:
        """Inverse of `to_dict`.

        Parameters
        ----------
        values : mapping
            What `to_dict` gives.

        Returns
        -------
        PreprocessRecipe
            The recipe.

        Raises
        ------
        DataError
            The values are no recipe, or one with steps that this version does not know.
        """
        checked(values, _RecipeFile, "the values", what="a preprocessing recipe", remedy=REMEDY)
        # The values stay as they were written, since the hash is of their text.
        values = {name: value for name, value in values.items() if name != CHECKSUM}
        unknown = sorted(set(values) - {one.name for one in fields(cls)})
        if unknown:
            raise DataError(f"the recipe has the unknown step {unknown[0]!r}; update fsmer or take it out.")
        return cls(**{**values, "crop_size": tuple(values.get("crop_size", cls.crop_size))})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as JSON with a checksum.

        Parameters
        ----------
        path : path
            File to write.

        Returns
        -------
        Path
            The file.
        """
        return write_json(path, self.to_dict(), sealed=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PreprocessRecipe:
        """Read what `save` wrote; the versions stay those of then.

        Parameters
        ----------
        path : path
            File to read.

        Returns
        -------
        PreprocessRecipe
            The recipe as it was saved.

        Raises
        ------
        DataError
            The file is missing or no recipe.
        """
        return cls.from_dict(read_json(path, dict[str, Any], what="a preprocessing recipe", remedy=REMEDY))

    def with_current_versions(self) -> PreprocessRecipe:
        """The same steps with the libraries that are installed now.

        Returns
        -------
        PreprocessRecipe
            Equal but for `versions`.
        """
        return replace(self, versions=library_versions())

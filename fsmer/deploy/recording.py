"""From a recording to an answer: when the face moves, which class that is, and by which action units."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, embed, load_model
from fsmer.backbones.facs_flow import COARSE_CLASSES, FacsFlow
from fsmer.backbones.weights import WEIGHTS_FILE, read_config
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.spec import InputSpec
from fsmer.deploy.recording_prediction import UNIT_THRESHOLD, Pictures, PredictedInterval, RecordingPrediction
from fsmer.errors import DataError, MediaError
from fsmer.preprocess.face_detectors import FaceDetector
from fsmer.preprocess.face_tracking import Which
from fsmer.preprocess.faces import NoFaceError
from fsmer.preprocess.flow import FlowMethod, flow_map, optical_flow
from fsmer.preprocess.frame_source import Frame
from fsmer.preprocess.media import Estimate, media_from_frames, pair_media
from fsmer.preprocess.movement import Movement
from fsmer.preprocess.reading import TimedFrames
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.preprocess.spotting import MovementSpotter, SpotterSettings
from fsmer.resources import resource_folder
from fsmer.tensor_files import read_tensors
from fsmer.training.loop import Progress
from fsmer.transfer import Recognizer, recognizer_of_words
from fsmer.transfer.recognizer import load_trained

__all__ = ["RecordingReader", "predict_recording"]

DEFAULT_MODEL = "facs-flow"
# Movements in the picture, the strongest; pictures of the others are not kept.
SHOWN = 12
THUMBNAIL = (96, 96)
# Side in pixels of the crops that flow is computed on, as in `PreprocessRecipe`.
CROP = (224, 224)
# How flow is made for a model that answers without labels: the estimator that lost least against true flow on drawn
# recordings, and the head's motion out of it, since a recording's crop is not aligned from frame to frame.
UNIT_RECIPE = PreprocessRecipe(flow="dis", flow_parameters={"finest_scale": 1}, head_motion="remove")


class RecordingReader:
    """Reads a recording and gives its movements as they end, from files and from live streams alike.

    Memory does not grow with the recording. Iterate once; `prediction` then sums everything up. The arguments are those
    of `predict_recording`.

    >>> for interval in RecordingReader(camera()):  # doctest: +SKIP
    ...     print(interval.apex_s, interval.label, interval.words)
    """

    def __init__(
        self,
        source: Any,
        model: Any = DEFAULT_MODEL,
        *,
        classes: Sequence[str] | None = None,
        which: Which = "largest",
        detector: FaceDetector | None = None,
        settings: SpotterSettings | None = None,
        frames_per_second: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._answerer = _Answerer(model, classes)
        self._timed = TimedFrames(source, frames_per_second)
        self._progress, self._which = progress, which
        self._spotter = MovementSpotter(self._timed.fps, detector=detector, which=which, settings=settings)
        self._kept: list[PredictedInterval] = []

    def __iter__(self) -> Iterator[PredictedInterval]:
        total = self._timed.count or 0
        for time, frame in self._timed:
            for movement in self._spotter.update(frame, time):
                yield self._answer(movement)
            if self._progress is not None:
                self._progress(self._spotter.frames, total)
        for movement in self._spotter.finish():
            yield self._answer(movement)
        name, frames = self._timed.name, self._spotter.frames
        if frames < 3:
            raise MediaError(
                f"{name} has {frames} frame{'s' if frames > 1 else ''}, too few to see a movement; give a recording of "
                "a second or more."
            )
        if self._spotter.faces:
            return
        if self._which not in ("largest", 0):
            raise NoFaceError(
                f"face {self._which} was asked for (counted from 0, largest first), but none of the {frames} frames of "
                f"{name} shows so many; ask for a smaller number."
            )
        raise NoFaceError(
            f"no face was found in any of the {frames} frames of {name}; give a recording that shows a face from the "
            "front."
        )

    def _answer(self, movement: Movement) -> PredictedInterval:
        found = self._answerer(movement)
        self._kept.append(found)
        pictured = [one for one in self._kept if one.pictures is not None]
        if len(pictured) > SHOWN:
            weakest = min(pictured, key=lambda one: one.energy)
            self._kept[self._kept.index(weakest)] = replace(weakest, pictures=None)
        return found

    @property
    def prediction(self) -> RecordingPrediction:
        """Everything that was found so far."""
        return RecordingPrediction(
            name=self._timed.name,
            fps=self._timed.fps,
            frames=self._spotter.frames,
            faces=self._spotter.faces,
            intervals=tuple(self._kept),
            notes=tuple(self._timed.notes),
            trace=self._spotter.trace.arrays(),
        )


@library_settings()
def predict_recording(
    source: Any,
    model_or_recognizer: Backbone | Recognizer | str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    classes: Sequence[str] | None = None,
    which: Which = "largest",
    detector: FaceDetector | None = None,
    settings: SpotterSettings | None = None,
    frames_per_second: float | None = None,
    progress: Progress | None = None,
) -> RecordingPrediction:
    """Find the movements of a face in a recording, and say of each its class and its action units.

    Parameters
    ----------
    source : path, array, sequence of arrays, iterable of arrays or FrameSource
        A video file, a folder of images, an array (T, H, W, 3), or images or (seconds, image) pairs one by one, see
        `fsmer.open_frames`.
    model_or_recognizer : Backbone, Recognizer or path, default "facs-flow"
        A recognizer (or its folder), or a backbone that knows classes without labels (its name, or a folder of
        weights). Action units come from the head of a `facs-flow` that is given as a backbone; with anything else they
        come from the shipped `facs-flow` on the same onset and apex, whatever the inputs of the recognizer are.
    classes : sequence of str, optional
        For a backbone: classes that it knows by name, or by their action units (``"4+7"``); default negative,
        positive, surprise. A recognizer has its own.
    which : "largest" or int, default "largest"
        Which face, counted from the largest in the first frame that shows one.
    detector : FaceDetector, optional
        Default the cascade, which needs no download.
    settings : SpotterSettings, optional
        How movements are found; default those of `SpotterSettings`.
    frames_per_second : float, optional
        Overrides the source's own.
    progress : callable, optional
        Called with (frames done, frames in all or 0 where nobody knows).

    Returns
    -------
    RecordingPrediction
        Its intervals have onset, apex and offset, the class with its probability, and action units.

    Raises
    ------
    NoFaceError
        No frame shows a face.
    MediaError
        The source cannot be read, breaks off, or is shorter than 3 frames.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.preprocess.face_detectors import load_detector
    >>> from fsmer.synthetic.recordings import synthetic_videos
    >>> (video,) = synthetic_videos(1, size=96, frames=60)
    >>> found = fsmer.predict_recording(video.frames, detector=load_detector("cropped"), frames_per_second=25)
    >>> found.frames, found.faces
    (60, 60)
    """
    reader = RecordingReader(
        source,
        model_or_recognizer,
        classes=classes,
        which=which,
        detector=detector,
        settings=settings,
        frames_per_second=frames_per_second,
        progress=progress,
    )
    for _ in reader:
        pass
    return reader.prediction


class _Answerer:
    """From a movement to class probabilities and action units."""

    def __init__(self, model: Any, classes: Sequence[str] | None) -> None:
        model = load_trained(model)
        self._given = None if isinstance(model, Recognizer) else model
        if self._given is not None:
            model = recognizer_of_words(model, {}, others=tuple(classes or COARSE_CLASSES))
        if model.method.transductive:
            raise DataError(
                f"the recognizer of the method {model.method.name!r} compares clips with each other, but the movements "
                "of a recording are answered one by one; use a recognizer of another method, such as 'simpleshot', or "
                "prepare the clips and ask about them in one call of predict."
            )
        self.recognizer: Recognizer = model
        # A recognizer of the user's saw flow by the default recipe when it was fitted.
        self.recipe = PreprocessRecipe() if self._given is None else UNIT_RECIPE

    @cached_property
    def units(self) -> FacsFlow:
        """The network that names action units; the shipped one is loaded only where none at hand is equal to it."""
        at_hand = self.recognizer.backbone
        if isinstance(at_hand, FacsFlow) and (self._given is not None or _is_shipped(at_hand)):
            return at_hand
        return cast(FacsFlow, load_model(DEFAULT_MODEL))

    def __call__(self, movement: Movement) -> PredictedInterval:
        onset, apex = movement.steady_pair(CROP)
        flows: list[tuple[FlowMethod, NDArray[np.float32]]] = []

        def flow(onset: ArrayLike, apex: ArrayLike, method: FlowMethod) -> NDArray[np.float32]:
            # Computed once a method; those from outside need not be hashable.
            if method not in [known for known, _ in flows]:
                flows.append((method, optical_flow(onset, apex, method)))
            return next(flow for known, flow in flows if known == method)

        names = [str(name) for name in self.recognizer.classes_]
        shares = self.recognizer.predict_proba(self._media(movement, onset, apex, flow))[0].tolist()
        probabilities = dict(zip(names, shares, strict=True))
        unit_media = pair_media(onset, apex, self.units.input_specs, recipe=UNIT_RECIPE, estimate=flow)
        with torch.inference_mode():
            embedding = embed(self.units, {kind: array[None] for kind, array in unit_media.items()})
            chances = torch.sigmoid(self.units.unit_logits(embedding))[0].tolist()
        by_number = dict(zip(ACTION_UNIT_ORDER, chances, strict=True))
        thumbs: list[Any] = [cv2.resize(one, THUMBNAIL, interpolation=cv2.INTER_AREA) for one in (onset, apex)]
        spec = InputSpec(size=(56, 56), normalisation="signed")
        pictured = flow_map(flow(onset, apex, UNIT_RECIPE.load_flow()), spec, remove_head=True)
        return PredictedInterval(
            onset_s=movement.onset.time,
            apex_s=movement.apex.time,
            offset_s=movement.offset.time,
            label=max(probabilities, key=lambda name: probabilities[name]),
            probabilities=probabilities,
            aus=tuple(sorted(number for number, chance in by_number.items() if chance > UNIT_THRESHOLD)),
            unit_probabilities=by_number,
            energy=movement.energy,
            pictures=Pictures(thumbs[0], thumbs[1], pictured),
        )

    def _media(self, movement: Movement, onset: Frame, apex: Frame, flow: Estimate) -> dict[str, NDArray[np.float32]]:
        specs = self.recognizer.backbone.input_specs
        if all(spec.frames is None for spec in specs):
            media = pair_media(onset, apex, specs, recipe=self.recipe, estimate=flow)
        else:
            cropped = replace(self.recipe, detector="cropped")
            media = media_from_frames(movement.crops(size=CROP), specs, apex=movement.apex_place, recipe=cropped)
        return {kind: array[None] for kind, array in media.items()}


def _is_shipped(backbone: FacsFlow) -> bool:
    """Whether a network has the arguments and weights that ship with fsmer, as one that no fitting has moved."""
    folder = resource_folder("pretrained") / DEFAULT_MODEL
    if read_config(folder)["arguments"] != backbone.config:
        return False
    own, shipped = backbone.state_dict(), read_tensors(folder / WEIGHTS_FILE)
    return own.keys() == shipped.keys() and all(torch.equal(own[name].cpu(), shipped[name]) for name in own)

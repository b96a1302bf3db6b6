"""Prediction on recordings: frames a second, and how much is lost between the true flow and the answer end to end.

``python -m benchmarks.recording [speed] [accuracy] [--recordings N] [--seed N]``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fsmer.backbones import embed, load_model
from fsmer.backbones.facs_flow import COARSE_CLASSES, FacsFlow
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.deploy.recording import predict_recording
from fsmer.deploy.recording_prediction import UNIT_THRESHOLD, RecordingPrediction
from fsmer.preprocess.faces import FacePose
from fsmer.preprocess.flow import flow_map
from fsmer.synthetic.drawn_recording import SyntheticRecording
from fsmer.synthetic.recordings import synthetic_recording
from fsmer.synthetic.scene import Interval
from fsmer.transfer import Recognizer, recognizer_of_words

__all__ = ["Scores", "accuracy", "main", "matched", "speed", "true_crop_flow"]

Rows = NDArray[np.bool_] | NDArray[np.int64]

DOMAINS = ("lab", "clinic", "field")
PARTS = ("speed", "accuracy")
CROP = (224, 224)
# Samples of the recordings for the interval of a loss, and the share of them that lies inside.
SAMPLES, INSIDE = 2000, 0.95


def speed(seconds: float = 20.0) -> dict[str, float]:
    """Frames a second by the clock and by processor time, decoding included, model loaded; 640x360."""
    model = load_model("facs-flow")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "webcam.mp4"
        synthetic_recording(seconds, seed=5).save(path)
        wall, processor = time.perf_counter(), time.process_time()
        found = predict_recording(path, model)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"frames/s": found.frames / wall, "frames/s of one core": found.frames / processor}


def true_crop_flow(recording: SyntheticRecording, interval: Interval) -> NDArray[np.float32]:
    """True displacement from onset to apex on the true crop, pixels of `CROP`."""
    import cv2

    crop = np.asarray(recording.crop(interval.onset), np.float64)
    width, height = (float(np.linalg.norm(crop[:, axis])) for axis in (0, 1))
    roll = float(np.arctan2(crop[1, 0], crop[0, 0]))
    pose = FacePose(float(crop[0, 2]), float(crop[1, 2]), width, roll, height / width)
    matrix = pose.matrix(CROP)
    flow = recording.flow(interval.onset, interval.apex)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = np.stack([cv2.warpAffine(part, matrix, CROP[::-1], flags=flags) for part in flow])
    # Vectors are turned and scaled as the picture is.
    turned: NDArray[np.float32] = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix[:, :2]), cut).astype(np.float32)
    return turned


def matched(recording: SyntheticRecording, found: RecordingPrediction) -> tuple[list[int | None], int]:
    """Which found interval shows each true one (two fifths in common), and how many show none."""
    fps = recording.frames_per_second
    places: list[int | None] = []
    for interval in recording.intervals:
        common = [
            min(one.offset_s, interval.offset / fps) - max(one.onset_s, interval.onset / fps) for one in found.intervals
        ]
        best = int(np.argmax(common)) if common else -1
        enough = best >= 0 and common[best] > 0.4 * (interval.offset - interval.onset) / fps and best not in places
        places.append(best if enough else None)
    return places, len(found.intervals) - sum(place is not None for place in places)


@dataclass
class Scores:
    """Truth and answers, one row a true expression; NaN rows where it was not spotted."""

    recordings: list[int] = field(default_factory=list)
    units: list[NDArray[np.bool_]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    direct_units: list[NDArray[np.float64]] = field(default_factory=list)
    direct_labels: list[str] = field(default_factory=list)
    found_units: list[NDArray[np.float64]] = field(default_factory=list)
    found_labels: list[str] = field(default_factory=list)
    false: int = 0
    minutes: float = 0.0

    @property
    def spotted(self) -> NDArray[np.bool_]:
        """Which expressions were spotted."""
        return np.isfinite(np.array(self.found_units)[:, 0])

    def unit_f1(self, which: str, rows: Rows, threshold: float = UNIT_THRESHOLD) -> float:
        """Unweighted mean F1 of the action units that occur."""
        truth = np.array(self.units)[rows]
        said = np.nan_to_num(np.array(getattr(self, f"{which}_units"))[rows]) > threshold
        occurs = truth.any(axis=0)
        right, all_said, all_true = (part.sum(axis=0)[occurs] for part in (truth & said, said, truth))
        return float((2 * right / (all_said + all_true)).mean())

    def label_uf1(self, which: str, rows: Rows) -> float:
        """UF1 of the classes."""
        truth, said = np.array(self.labels)[rows], np.array(getattr(self, f"{which}_labels"))[rows]
        classes = np.unique(truth)
        return float(
            np.mean(
                [2 * ((truth == c) & (said == c)).sum() / ((truth == c).sum() + (said == c).sum()) for c in classes]
            )
        )

    def interval(self, score: Callable[[str, Rows], float], rows: NDArray[np.bool_]) -> tuple[float, float]:
        """Where the loss from true flow to recording would lie with other recordings: bootstrap over recordings, since
        the expressions of one share face, light and head."""
        rng = np.random.default_rng(0)
        places = np.array(self.recordings)
        members = [np.flatnonzero((places == number) & rows) for number in np.unique(places)]
        losses = []
        for _ in range(SAMPLES):
            drawn = np.concatenate([members[number] for number in rng.integers(len(members), size=len(members))])
            if len(drawn):
                losses.append(score("direct", drawn) - score("found", drawn))
        low, high = np.quantile(losses, [(1 - INSIDE) / 2, (1 + INSIDE) / 2]).tolist()
        return low, high


def accuracy(recordings: int, *, seed: int = 1, amplify: float = 1.0, seconds: float = 20.0) -> Scores:
    """Answers end to end on drawn recordings (640x360, 25 frames a second, random place, size and roll of the face),
    beside those on the true flow of the same expressions."""
    model = load_model("facs-flow")
    assert isinstance(model, FacsFlow)
    words = recognizer_of_words(model, {}, others=COARSE_CLASSES)
    scores = Scores()
    for number in range(recordings):
        recording = synthetic_recording(
            seconds, domain=DOMAINS[number % 3], seed=seed * 1000 + number, subject=number, amplify=amplify
        )
        found = predict_recording(recording, words, frames_per_second=recording.frames_per_second)
        places, false = matched(recording, found)
        scores.false += false
        scores.minutes += seconds / 60
        for interval, place in zip(recording.intervals, places, strict=True):
            scores.recordings.append(number)
            scores.units.append(interval.units)
            scores.labels.append(interval.label)
            chances, label = _direct(model, words, true_crop_flow(recording, interval))
            scores.direct_units.append(chances)
            scores.direct_labels.append(label)
            one = None if place is None else found.intervals[place]
            scores.found_units.append(
                np.full(len(ACTION_UNIT_ORDER), np.nan)
                if one is None
                else np.array([one.unit_probabilities[unit] for unit in ACTION_UNIT_ORDER])
            )
            scores.found_labels.append("" if one is None else one.label)
    return scores


def _direct(model: FacsFlow, words: Recognizer, flow: NDArray[np.float32]) -> tuple[NDArray[np.float64], str]:
    maps = flow_map(flow, model.input_spec)[None]
    with torch.inference_mode():
        chances = torch.sigmoid(model.unit_logits(embed(model, maps)))[0].double().numpy()
    return chances, str(words.predict(maps)[0])


def show(scores: Scores) -> Iterator[str]:
    """The table of `accuracy`, line by line."""
    every = np.ones(len(scores.labels), bool)
    spotted = scores.spotted
    false = scores.false / scores.minutes
    yield f"  {len(every)} expressions, {int(spotted.sum())} spotted, {false:.2f} false a minute"
    yield f"  {'':51} {'true flow':>10} {'recording':>10} {'loss':>7} {f'{INSIDE:.0%} interval':>16}"
    for name, rows in (("spotted expressions", spotted), ("all expressions (missed: nothing)", every)):
        for what, score in (("action units", scores.unit_f1), ("label", scores.label_uf1)):
            direct, found = score("direct", rows), score("found", rows)
            low, high = scores.interval(score, rows)
            loss = f"{direct - found:7.3f} {low:8.3f} .. {high:.3f}"
            yield f"  UF1 {what:12} {name:34} {direct:10.3f} {found:10.3f} {loss}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recording", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--recordings", type=int, default=24, help="drawn recordings of 20 s (default 24)")
    parser.add_argument("--seed", type=int, default=1, help="which recordings are drawn (default 1)")
    parser.add_argument("--amplify", type=float, nargs="*", default=[1.0, 3.0], help="strength of the expressions")
    asked = parser.parse_args(arguments)
    parts = asked.parts or PARTS
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if "speed" in parts:
        with threadpool_limits(2):
            for name, value in speed().items():
                print(f"{name:24} {value:8.1f}")
    for amplify in asked.amplify if "accuracy" in parts else ():
        print(f"Expressions {amplify:g} times as strong as micro-expressions, {asked.recordings} recordings:")
        for line in show(accuracy(asked.recordings, seed=asked.seed, amplify=amplify)):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())

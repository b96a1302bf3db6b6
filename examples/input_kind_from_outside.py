"""A kind of medium that fsmer does not know, added by one file: the difference of the apex and onset frames.

    fsmer prepare casme2 --root DIR --out OUT --for NAME --import examples/input_kind_from_outside.py --import MODEL.py

Here MODEL.py registers a backbone NAME that expects the medium. Run by itself, this file makes the medium of drawn
recordings, wraps a torch module that expects it, and asks a recognizer about new ones.
"""

import cv2
import numpy as np

from fsmer.data import InputSpec, register_input_kind


def difference(frames, spec, apex):
    """Grey values of the apex frame minus those of the onset frame, at the size that the backbone expects."""
    onset, last = (frames[place].mean(axis=2) for place in (0, -1 if apex is None else apex))
    height, width = spec.size
    return cv2.resize(last - onset, (width, height), interpolation=cv2.INTER_AREA)[None]


register_input_kind("difference", channels=["grey"], needs_apex=True, make=difference)


if __name__ == "__main__":
    from torch import nn

    import fsmer

    def recording(row, seed):
        """Eight noisy pictures in which a bright square rises (or, for a lower row, falls) by a pixel a frame."""
        frames = np.random.default_rng(seed).integers(90, 110, (8, 64, 64, 3), dtype=np.uint8)
        for number, frame in enumerate(frames):
            start = row + (number if row < 32 else -number)
            frame[start : start + 12, 26:38] = 250
        return frames

    rows, labels = [10, 44] * 6, ["down", "up"] * 6
    spec = InputSpec("difference", size=(16, 16), channels=("grey",), normalisation="signed")
    clips = fsmer.clips_from_frames(
        [recording(row, seed) for seed, row in enumerate(rows)],
        labels,
        specs=spec,
        apexes=[7] * len(rows),
        recipe=fsmer.PreprocessRecipe(detector="cropped"),
    )
    backbone = fsmer.wrap(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), spec)
    recognizer = fsmer.adapt(backbone, clips[:4], "protonet")
    print(f"{recognizer.score(clips[4:]):.0%} of {len(clips) - 4} new clips are right")

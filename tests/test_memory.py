"""Reading a recording and predicting on it take the same memory whatever its length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsmer.synthetic.recordings import synthetic_recording
from fsmer.synthetic.scene import Camera, Scene

FPS = 25
SIZE = (240, 320)
# Seconds; the longer one has 1000 frames more, which would take 220 MiB.
SHORT, LONG = 20, 60

PEAK = """
import resource, sys
import numpy as np
how, seconds, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if how == "reading":
    from fsmer.preprocess import open_frames
    found = sum(1 for _ in open_frames(f"{folder}/{seconds}.mp4"))
else:
    from fsmer.deploy.recording import RecordingReader, predict_recording
    if how == "file":
        prediction = predict_recording(f"{folder}/{seconds}.mp4")
    else:
        drawn = np.load(f"{folder}/drawn.npy")
        reader = RecordingReader((n / 25, drawn[n % len(drawn)].copy()) for n in range(25 * seconds))
        assert len(list(reader)) > 0
        prediction = reader.prediction
    found = prediction.frames
    assert prediction.faces > 0.9 * found
assert found == 25 * seconds, found
# Linux hands the peak of the process that started this one on in ru_maxrss, so its own is read; macOS counts in bytes.
if sys.platform == "linux":
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / (1 << 10))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One drawn face that smiles again and again, for a short and for a long time."""
    av = pytest.importorskip("av")
    place = tmp_path_factory.mktemp("recordings")
    scene = Scene((160.0, 125.0), 96.0, 3.0)
    camera = Camera(noise=1.5, light=0.005, head=0.1, blinks=0.0)
    drawn = np.stack(
        list(
            synthetic_recording(
                6.0,
                domain="lab",
                seed=3,
                size=SIZE,
                frames_per_second=FPS,
                scene=scene,
                units=[[12]],
                rest=(1.5, 1.6),
                amplify=2.5,
                camera=camera,
            )
        )
    )
    np.save(place / "drawn.npy", drawn)
    for seconds in (SHORT, LONG):
        with av.open(str(place / f"{seconds}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=FPS)
            stream.height, stream.width = SIZE
            stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            for number in range(FPS * seconds):
                picture = av.VideoFrame.from_ndarray(drawn[number % len(drawn)], format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    return place


def peak(how: str, seconds: int, folder: Path) -> float:
    """MiB that a process of its own has held at most."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, how, str(seconds), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reading", "file", "frames"])
def test_memory_does_not_grow_with_the_recording(folder: Path, how: str) -> None:
    assert peak(how, LONG, folder) < peak(how, SHORT, folder) + 24

"""The apex is where the expression is strongest, whatever the head, the lids and the light do."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from fsmer.errors import MediaError, UnknownNameError
from fsmer.preprocess.apex import FlowEnergy, check_interval, facial_regions, frame_differences, spot_apex
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_videos
from fsmer.synthetic.scene import Camera


@lru_cache(maxsize=4)
def video(domain: str = "lab", still: bool = True) -> SyntheticVideo:
    camera = Camera.perfect() if still else None
    (drawn,) = synthetic_videos(1, domain=domain, seed=5, size=128, frames=20, camera=camera)
    return drawn


def test_both_spotters_find_the_apex_of_a_still_head() -> None:
    drawn = video()
    for method in ("difference", "flow"):
        spot = spot_apex(drawn.frames, method, onset=drawn.onset, offset=drawn.offset)
        assert abs(spot.index - drawn.apex) <= 2
        assert spot.method == method
        assert len(spot.scores) == drawn.offset - drawn.onset + 1
        assert spot.scores[0] == 0


def test_the_flow_spotter_keeps_to_the_expression_when_the_head_moves() -> None:
    wrong: dict[str, list[int]] = {"flow": [], "difference": []}
    for index in range(4):
        (drawn,) = synthetic_videos(1, domain="field", seed=8, start=index, size=128, frames=20)
        for method, errors in wrong.items():
            spot = spot_apex(drawn.frames, method, onset=drawn.onset, offset=drawn.offset)
            errors.append(abs(spot.index - drawn.apex))
    assert np.mean(wrong["flow"]) <= 1.5
    assert np.mean(wrong["flow"]) < np.mean(wrong["difference"])


def test_a_blink_is_not_taken_for_the_apex() -> None:
    drawn = video()
    frames = drawn.frames.copy()
    late = drawn.offset - 2
    # A dark bar over both eyes, as a closing lid draws it.
    frames[late, 28:42, 12:116] = 40
    assert spot_apex(frames, "difference", onset=drawn.onset, offset=drawn.offset).index == late
    spot = spot_apex(frames, "flow", onset=drawn.onset, offset=drawn.offset)
    assert abs(spot.index - drawn.apex) <= 2


def test_differences_are_those_of_equation_1() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 10, 12, 1), dtype=np.uint8).repeat(3, axis=3)
    expected = [np.abs(one[..., 0].astype(float) - frames[0, ..., 0]).mean() for one in frames]
    np.testing.assert_allclose(frame_differences(frames), expected)
    assert spot_apex(frames, "difference").index == int(np.argmax(expected))


def test_energy_forgets_a_steady_drift_when_the_clip_ends_at_rest() -> None:
    times = np.linspace(0, 1, 21)
    drift = times[:, None, None] * np.ones((1, 6, 2)) * 8
    course = np.exp(-0.5 * ((times - 0.4) / 0.1) ** 2)[:, None, None] * np.ones((1, 6, 2))
    energy = FlowEnergy()
    assert energy.energy(drift + course).argmax() == 8
    assert energy.energy(drift + course, at_rest=False).argmax() == 20
    assert energy.energy(drift).max() < 1e-6


def test_regions_leave_the_eyes_out() -> None:
    regions, face = facial_regions(64)
    np.testing.assert_allclose(regions.sum(axis=1), 1, rtol=1e-4)
    side = (np.arange(64) + 0.5) / 64 - 0.5
    row, column = np.abs(side + 0.2175).argmin(), np.abs(side - 0.285).argmin()
    assert face[row, column] == face[row, 63 - column] == 0
    assert not regions.reshape(-1, 64, 64)[:, row, column].any()
    assert face[50].all()


def test_annotated_and_middle_take_what_they_are_told() -> None:
    frames = np.zeros((9, 20, 20), np.uint8)
    assert spot_apex(frames, "annotated", apex=3).index == 3
    assert spot_apex(frames, "middle").index == 4
    assert spot_apex(frames, "middle", onset=2, offset=7).index == 5
    with pytest.raises(MediaError, match=r"annotated.*apex='flow'"):
        spot_apex(frames, "annotated")
    with pytest.raises(UnknownNameError, match="'middle'"):
        spot_apex(frames, "midle")


@pytest.mark.parametrize(
    ("count", "times", "message"),
    [
        (1, (None, None, None), "1 frame"),
        (9, (4, 4, 8), "onset .*frame 4"),
        (9, (4, 2, 8), r"onset 4, apex \d, offset \d"),
        (9, (4, 8, 6), r"onset 4, apex \d, offset \d"),
        (9, (0, 3, 9), r"9 frames .*onset 0, apex 3, offset 9"),
        (9, (-1, 3, 8), "onset -1"),
        (9, (5, None, 5), "onset 5, apex unknown, offset 5"),
    ],
)
def test_impossible_intervals_are_refused(count, times, message) -> None:
    with pytest.raises(MediaError, match=message):
        check_interval(count, *times, name="clip 'a'")


def test_open_ends_are_the_ends_of_the_sequence() -> None:
    assert check_interval(9, None, None, None) == (0, 8)
    assert check_interval(9, 2, 3, 5) == (2, 5)

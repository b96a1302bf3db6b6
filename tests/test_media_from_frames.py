"""A frame sequence becomes exactly the media that were asked for, and what cannot is refused by name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fsmer.data import ClipSet, InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError, UnknownNameError
from fsmer.preprocess import (
    NoFaceError,
    PreprocessRecipe,
    clips_from_frames,
    make_media,
    media_from_frames,
    open_frames,
    optical_flow,
    pair_media,
)
from fsmer.preprocess.flow import flow_map, resize_area
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_videos
from fsmer.synthetic.scene import Camera, Scene

RGB = ("red", "green", "blue")
FLOW = InputSpec()
SIGNED = InputSpec(size=(32, 32), channels=("u", "v"), normalisation="signed")
ONSET, APEX = (InputSpec(kind=kind, size=(40, 30), channels=RGB, normalisation="unit") for kind in ("onset", "apex"))
FRAMES = InputSpec(kind="frames", size=(24, 24), channels=RGB, normalisation="unit", frames=16)
FLOWS = InputSpec(kind="flows", size=(28, 28), channels=("u", "v"), normalisation="signed", frames=6)
CROPPED = PreprocessRecipe(detector="cropped", crop_size=(96, 96))


@lru_cache(maxsize=4)
def video(start: int = 0) -> SyntheticVideo:
    (drawn,) = synthetic_videos(1, seed=6, start=start, size=96, frames=12, camera=Camera.perfect(), amplify=1.5)
    return drawn


def test_exactly_the_asked_media_in_the_asked_shapes() -> None:
    drawn = video()
    specs = [FLOW, ONSET, APEX, FRAMES, FLOWS]
    media = media_from_frames(
        drawn.frames, specs, onset=drawn.onset, apex=drawn.apex, offset=drawn.offset, recipe=CROPPED
    )
    assert list(media) == [spec.kind for spec in specs]
    for spec in specs:
        assert media[spec.kind].shape == spec.shape
        assert media[spec.kind].dtype == np.float32
    for kind in ("onset", "apex", "frames"):
        assert 0 <= media[kind].min() < media[kind].max() <= 1


def test_media_are_those_of_the_named_frames() -> None:
    drawn = video()
    times = {"onset": drawn.onset, "apex": drawn.apex, "offset": drawn.offset}
    media = media_from_frames(drawn.frames, [SIGNED, ONSET, APEX, FRAMES, FLOWS], **times, recipe=CROPPED)
    first, top = drawn.frames[drawn.onset], drawn.frames[drawn.apex]
    np.testing.assert_array_equal(media["flow"], flow_map(optical_flow(first, top, "farneback"), SIGNED))
    last = drawn.frames[drawn.offset]
    shown = [(media["onset"], first, (40, 30)), (media["apex"], top, (40, 30))]
    shown += [(media["frames"][0], first, (24, 24)), (media["frames"][-1], last, (24, 24))]
    for image, frame, size in shown:
        # Rounded to one of 256 values, as pictures are.
        np.testing.assert_allclose(image, resize_area(frame.transpose(2, 0, 1), size) / 255, atol=0.5001 / 255)
        np.testing.assert_allclose(255 * image, np.rint(255 * image), atol=1e-4)
    np.testing.assert_array_equal(media["flows"][-1], media["flows"][-2])


def test_flow_from_frames_is_the_true_movement_in_thousandths_of_the_face() -> None:
    drawn = video()
    media = media_from_frames(
        drawn.frames,
        SIGNED,
        onset=drawn.onset,
        apex=drawn.apex,
        recipe=PreprocessRecipe(detector="cropped", flow="dis"),
    )
    true = flow_map(drawn.flow, SIGNED)
    assert np.hypot(*(media["flow"] - true)).mean() < 0.4 * np.hypot(*true).mean()
    assert np.corrcoef(media["flow"].ravel(), true.ravel())[0, 1] > 0.9


def test_flows_add_up_to_the_movement_of_the_clip() -> None:
    drawn = video()
    spec = InputSpec(kind="flows", size=(32, 32), channels=("u", "v"), normalisation="signed", frames=4)
    media = media_from_frames(
        drawn.frames,
        spec,
        onset=drawn.onset,
        offset=drawn.apex,
        recipe=PreprocessRecipe(detector="cropped", flow="dis"),
    )
    true = flow_map(drawn.flow, SIGNED)
    assert np.corrcoef(media["flows"][:-1].sum(axis=0).ravel(), true.ravel())[0, 1] > 0.85


def test_a_backbones_own_flow_method_is_used() -> None:
    drawn = video()
    wish = InputSpec(size=(32, 32), channels=("u", "v"), normalisation="signed", flow_method="dis")
    times = {"onset": drawn.onset, "apex": drawn.apex}
    media = media_from_frames(drawn.frames, wish, **times, recipe=CROPPED)
    expected = flow_map(optical_flow(drawn.frames[drawn.onset], drawn.frames[drawn.apex], "dis"), SIGNED)
    np.testing.assert_array_equal(media["flow"], expected)


def test_two_crops_give_the_same_as_their_clip() -> None:
    drawn = video()
    pair = pair_media(drawn.frames[drawn.onset], drawn.frames[drawn.apex], [FLOW, APEX], recipe=CROPPED)
    media = media_from_frames(drawn.frames, [FLOW, APEX], onset=drawn.onset, apex=drawn.apex, recipe=CROPPED)
    for kind, array in pair.items():
        np.testing.assert_array_equal(array, media[kind])
    with pytest.raises(SpecMismatchError, match="'frames'"):
        pair_media(drawn.frames[0], drawn.frames[1], FRAMES)


def test_a_face_in_a_larger_picture_is_cropped_like_the_synthetic_maps() -> None:
    scene = Scene((170.0, 125.0), 84.0, 6.0)
    (drawn,) = synthetic_videos(
        1, seed=2, size=(240, 320), frames=6, scene=scene, units=[12], camera=Camera.perfect(), amplify=2.0
    )
    recipe = PreprocessRecipe(flow="dis", crop_size=(112, 112))
    made = make_media(drawn.frames, [SIGNED, APEX], onset=drawn.onset, apex=drawn.apex, recipe=recipe)
    flow = made.media["flow"]
    # AU 12 pulls the mouth corners out and up: in the canonical crop they are at x = 0.205, y = 0.225.
    row, column = int((0.5 + 0.2) * 32), int((0.5 + 0.22) * 32)
    right, left = (
        flow[:, row - 2 : row + 3, column - 2 : column + 3],
        flow[:, row - 2 : row + 3, 29 - column : 34 - column],
    )
    assert right[0].mean() > 2
    assert left[0].mean() < -2
    assert right[1].mean() < -2
    assert left[1].mean() < -2
    assert np.abs(flow[:, :6]).mean() < 0.3 * np.abs(right).mean()


def test_a_missing_apex_is_spotted_or_asked_for() -> None:
    drawn = video()
    times = {"onset": drawn.onset, "offset": drawn.offset}
    made = make_media(drawn.frames, FLOW, **times, recipe=CROPPED)
    assert made.apex_method == "flow"
    assert abs((made.apex or 0) - drawn.apex) <= 2
    strict = PreprocessRecipe(detector="cropped", apex="annotated")
    with pytest.raises(MediaError, match=r"annotated.*apex='flow'"):
        media_from_frames(drawn.frames, FLOW, recipe=strict)
    # Media that need no apex do not ask for one.
    assert make_media(drawn.frames, [ONSET, FRAMES], recipe=strict).apex is None
    assert make_media(drawn.frames, FLOW, apex=drawn.apex, recipe=strict).apex == drawn.apex


def test_an_apex_on_the_onset_is_refused() -> None:
    with pytest.raises(MediaError, match=r"apex .* onset .*frame 3"):
        media_from_frames(video().frames, FLOW, onset=3, apex=3, recipe=CROPPED)


def test_too_few_frames_are_interpolated_and_said_so() -> None:
    made = make_media(video().frames, [FRAMES, FLOWS], recipe=CROPPED)
    assert made.notes[-1] == "the clip has 12 frames; 16 were interpolated from them (tim)."
    assert not any(" 6 were" in note for note in made.notes)
    two = make_media(video().frames[[video().onset, video().apex]], [FLOW, FRAMES, FLOWS], recipe=CROPPED)
    assert two.media["frames"].shape == FRAMES.shape
    assert (two.onset, two.apex, two.offset) == (0, 1, 1)
    assert sum("interpolated" in note for note in two.notes) == 2


def test_one_frame_is_no_clip() -> None:
    with pytest.raises(MediaError, match=r"1 frame.* 2 "):
        media_from_frames(video().frames[:1], FLOW, recipe=CROPPED)


@pytest.mark.parametrize("spec", [FLOW, SIGNED, FLOWS], ids=["minmax", "signed", "flows"])
def test_a_still_photo_shows_no_movement(spec: InputSpec) -> None:
    still = np.repeat(video().frames[:1], 5, axis=0)
    with pytest.raises(MediaError, match=r"no movement .*frames 0 and [1-4]"):
        media_from_frames(still, spec, recipe=CROPPED)


def test_frames_of_changing_size_and_missing_faces_are_refused() -> None:
    frames = [*video().frames[:4], video().frames[4][:80]]
    with pytest.raises(MediaError, match=r"frame 4 .*80x96 .*96x96"):
        media_from_frames(frames, FRAMES, recipe=CROPPED)
    with pytest.raises(NoFaceError, match=r"no face .*frame 0"):
        media_from_frames(np.zeros((3, 90, 90), np.uint8), FLOW)


def test_a_stream_is_a_clip_too() -> None:
    drawn = video()
    stream = open_frames((number / 50, frame) for number, frame in enumerate(drawn.frames))
    streamed = media_from_frames(stream, FLOW, apex=drawn.apex, recipe=CROPPED)["flow"]
    np.testing.assert_array_equal(
        streamed, media_from_frames(drawn.frames, FLOW, apex=drawn.apex, recipe=CROPPED)["flow"]
    )


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ([], DataError, "no media"),
        ([InputSpec(kind="depth")], UnknownNameError, "'depth'"),
        ([FLOW, SIGNED], SpecMismatchError, "'flow'"),
        ([InputSpec(kind="onset")], SpecMismatchError, "channels red, green, blue"),
        ([InputSpec(kind="frames", channels=RGB, normalisation="unit")], SpecMismatchError, "length"),
        ([InputSpec(frames=4)], SpecMismatchError, "4 frames|length"),
        ([InputSpec(normalisation="unit")], SpecMismatchError, "'signed' or 'minmax'"),
    ],
)
def test_media_that_cannot_be_made_are_refused(specs, error, message) -> None:
    with pytest.raises(error, match=message):
        media_from_frames(video().frames, specs, recipe=CROPPED)


# -- clip sets --------------------------------------------------------------------------------------------------------


def make_clips(lazy: bool, **changes) -> ClipSet:
    drawn = [video(0), video(1)]
    given = {
        "specs": [FLOW, FRAMES],
        "onsets": [one.onset for one in drawn],
        "apexes": [one.apex for one in drawn],
        "offsets": [one.offset for one in drawn],
        "subjects": ["1", "2"],
        "aus": ["12", "4"],
        "recipe": CROPPED,
        "lazy": lazy,
        **changes,
    }
    return clips_from_frames([one.frames for one in drawn], ["a", "b"], **given)


def test_lazy_and_eager_clip_sets_hold_the_same(tmp_path: Path) -> None:
    eager, lazy = make_clips(False), make_clips(True)
    assert eager.ids.tolist() == ["mine-0", "mine-1"]
    assert eager.specs["flow"].flow_method == "farneback"
    assert eager.table["recipe"].unique().tolist() == [CROPPED.hash]
    for clips in (lazy, lazy[::-1][::-1], pickle.loads(pickle.dumps(lazy))):
        for kind in ("flow", "frames"):
            np.testing.assert_array_equal(clips.media(kind), eager.media(kind))
    saved = ClipSet.load(lazy.save(tmp_path / "clips"))
    np.testing.assert_array_equal(saved.media("frames"), eager.media("frames"))
    assert saved.table["apex"].tolist() == [video(0).apex, video(1).apex]


def test_a_bad_recording_is_named_by_its_clip(tmp_path: Path) -> None:
    bad = tmp_path / "broken file.mp4"
    bad.write_text("no video")
    sequences = [video(0).frames, bad]
    with pytest.raises(MediaError, match=r"clip 'two'.*broken file\.mp4"):
        clips_from_frames(sequences, None, specs=FLOW, ids=["one", "two"], recipe=CROPPED)
    lazy = clips_from_frames(sequences, None, specs=FLOW, ids=["one", "two"], recipe=CROPPED, lazy=True)
    assert lazy[:1].media().shape == (1, 3, 28, 28)
    with pytest.raises(MediaError, match=r"clip 'two' of data set 'mine'.*broken file\.mp4"):
        lazy.media()
    with pytest.raises(NoFaceError, match=r"clip 'mine-0': no face"):
        clips_from_frames([np.zeros((3, 90, 90), np.uint8)], None, specs=FLOW)


def test_clip_sets_say_what_was_spotted_and_made_up() -> None:
    seen: list[tuple[int, int]] = []
    apexes = [float("nan"), video(1).apex]
    clips = make_clips(False, apexes=apexes, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    assert abs(clips.table["apex"][0] - video(0).apex) <= 2
    assert clips.table["apex_from"].tolist() == ["flow", "annotation"]
    assert clips.table["notes"].str.contains("the apex is spotted (flow).", regex=False).tolist() == [True, False]
    assert clips.table["notes"].str.contains("16 were interpolated").all()


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("method", "origin", "said"),
    [
        ("given", "annotation", ""),
        ("difference", "difference", "the apex is spotted (difference)."),
        ("middle", "middle", "the middle frame stands for the apex."),
    ],
)
def test_an_apex_that_the_recipe_does_not_take_from_the_annotation_is_told(lazy, method, origin, said) -> None:
    clips = make_clips(lazy, specs=FLOW, recipe=replace(CROPPED, apex=method))
    assert clips.table["apex_from"].tolist() == [origin] * 2
    for note in clips.table["notes"]:
        assert note.startswith(said)
        assert note.count("apex") == bool(said)
    without = make_clips(lazy, specs=FRAMES, apexes=None, recipe=replace(CROPPED, apex=method))
    assert without.table["apex_from"].tolist() == ["", ""], "frames need no apex"
    assert not without.table["notes"].str.contains("apex").any()


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 recordings.* 1 apex"):
        make_clips(False, apexes=[3])
    with pytest.raises(DataError, match=r"2 recordings.* 3 .*'subject'"):
        make_clips(False, subjects=["1", "2", "3"])
    with pytest.raises(DataError, match="no recordings"):
        clips_from_frames([], [], specs=FLOW)


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_is_saved_with_its_hash(tmp_path: Path) -> None:
    recipe = PreprocessRecipe(flow="tvl1", flow_parameters={"warps": 3}, head_motion="remove", face=1)
    path = recipe.save(tmp_path / "recipe.json")
    again = PreprocessRecipe.load(path)
    assert again == recipe
    assert again.hash == recipe.hash
    assert len(recipe.hash) == 16
    assert recipe.versions["steps"] == "2"
    assert {"av", "numpy", "opencv-python", "pillow", "scikit-image"} <= set(recipe.versions)


@pytest.mark.parametrize(
    "change",
    [
        {"flow": "dis"},
        {"flow_parameters": {"winsize": 21}},
        {"apex": "middle"},
        {"crop_size": (112, 112)},
        {"time": "linear"},
        {"versions": {"numpy": "1.0"}},
    ],
)
def test_every_change_changes_the_hash(change) -> None:
    assert PreprocessRecipe(**change).hash != PreprocessRecipe().hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": "pca"}, "'pca'"),
        ({"flow_parameters": {"size": 3}}, "'size' .*'farneback'"),
        ({"detector": "retina"}, "'retina'"),
        ({"apex": "guess"}, "'guess'"),
        ({"face": -1}, "face=-1"),
        ({"crop_size": (4, 4)}, r"\(4, 4\)"),
    ],
)
def test_steps_that_do_not_exist_are_refused(change, message) -> None:
    with pytest.raises((UnknownNameError, DataError), match=message):
        PreprocessRecipe(**change)


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    with pytest.raises(DataError, match="cannot be read"):
        PreprocessRecipe.load(path)
    for text, message in (
        ("[]", r"recipe\.json"),
        ('{"blur": 3}', "'blur'"),
        ("{", r"recipe\.json"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            PreprocessRecipe.load(path)


def test_importing_fsmer_preprocess_loads_no_heavy_library() -> None:
    import subprocess
    import sys

    program = (
        "import sys, fsmer.preprocess; heavy = {'cv2', 'av', 'skimage', 'torch', 'PIL'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

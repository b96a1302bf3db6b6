"""Neighbour frames: eq. 11 of MERAU against counts worked out by hand, and which frames are taken."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmer.data import InputSpec
from fsmer.episodic.neighbour_frames import NeighbourFrames, neighbour_counts, neighbours_of
from fsmer.errors import DataError
from fsmer.preprocess import PreprocessRecipe, make_media
from fsmer.preprocess.prepare import prepare
from fsmer.synthetic.recordings import synthetic_videos


def test_the_papers_own_training_set_gets_the_counts_worked_out_by_hand():
    """CASME II of Table 1: N_min is 25, so 125 / N_i is 5, 4.63, 3.91, 1.98 and 1.26."""
    counts = {"surprise": 25, "repression": 27, "happiness": 32, "disgust": 63, "others": 99}
    assert neighbour_counts(counts) == {"surprise": 4, "repression": 4, "happiness": 3, "disgust": 1, "others": 0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"a": 7}, {"a": 4}),
        ({"a": 1, "b": 1}, {"a": 4, "b": 4}),
        ({"a": 2, "b": 4}, {"a": 4, "b": 2}),  # 10 / 4 = 2.5: halves go up to 3
        ({"a": 3, "b": 10}, {"a": 4, "b": 1}),  # 15 / 10 = 1.5
        ({"a": 1, "b": 11}, {"a": 4, "b": 0}),  # 5 / 11 rounds to 0, and no class loses clips
        ({"a": 0, "b": 6, "c": 12}, {"b": 4, "c": 2}),
    ],
)
def test_counts_worked_out_by_hand(counts, expected):
    assert neighbour_counts(counts) == expected


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 500), min_size=1), st.integers(1, 9))
def test_classes_end_up_near_the_same_size_unless_they_were_larger_before(counts, factor):
    extra = neighbour_counts(counts, factor=factor)
    target = factor * min(counts.values())
    for name, count in counts.items():
        total = count * (1 + extra[name])
        if count < target / 1.5:
            assert abs(total - target) <= count / 2
        elif count > 1.5 * target:
            assert extra[name] == 0


def test_neighbours_come_from_both_sides_nearest_first():
    assert neighbours_of(onset=10, apex=20, offset=40, count=4) == [19, 21, 18, 22]
    assert neighbours_of(onset=10, apex=20, offset=40, count=0) == []


@given(st.integers(0, 50), st.integers(1, 30), st.integers(0, 30), st.integers(0, 20))
def test_neighbours_lie_between_onset_and_offset_and_are_never_onset_or_apex(onset, rise, fall, count):
    apex = onset + rise
    found = neighbours_of(onset, apex, apex + fall, count)
    assert len(found) == min(count, rise - 1 + fall)
    assert len(set(found)) == len(found)
    assert onset not in found
    assert apex not in found
    assert all(onset < frame <= apex + fall for frame in found)
    distances = [abs(frame - apex) for frame in found]
    assert distances == sorted(distances)


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "clip": ["one", "two", "three", "four"],
            "label": ["joy", "fear", "fear", None],
            "onset": [1, 11, 21, 31],
            "apex": [5, 13, 22, 35],
            "offset": [9, 13, 30, 40],
        }
    )


def samples_of(table: pd.DataFrame) -> list[tuple[str, int, int, str]]:
    """The clip itself or the one whose neighbour it is, onset, apex and label of every sample."""
    sources = [near or clip for near, clip in zip(table["neighbour_of"], table["clip"], strict=True)]
    return list(zip(sources, table["onset"], table["apex"], table["label"], strict=True))


def test_every_clip_is_kept_and_rare_classes_get_more_samples(table: pd.DataFrame):
    # N_min is 1: joy gets 4 neighbours, fear round(5 / 2) - 1 = 2.
    assert samples_of(NeighbourFrames().table(table)) == [
        ("one", 1, 5, "joy"),
        *(("one", 1, frame, "joy") for frame in (4, 6, 3, 7)),
        ("two", 11, 13, "fear"),
        ("two", 11, 12, "fear"),  # one frame alone lies between
        ("three", 21, 22, "fear"),
        *(("three", 21, frame, "fear") for frame in (23, 24)),
    ]


def test_the_samples_are_clips_of_their_own_with_their_clips_cells_and_another_apex(table: pd.DataFrame):
    samples = NeighbourFrames().table(table.assign(subject=["s1", "s2", "s3", "s4"]))
    assert samples["apex"].tolist() == [5, 4, 6, 3, 7, 13, 12, 22, 23, 24]
    assert samples["neighbour_of"].tolist() == ["", *["one"] * 4, "", "two", "", "three", "three"]
    assert samples["clip"].tolist() == [
        *("one", "one@-1", "one@+1", "one@-2", "one@+2", "two", "two@-1", "three", "three@+1", "three@+2")
    ]
    assert samples["subject"].tolist() == ["s1"] * 5 + ["s2"] * 2 + ["s3"] * 3
    assert table["apex"].tolist() == [5, 13, 22, 35], "the table that was given must stay as it is"


def test_places_from_0_are_preferred_and_an_apex_that_stands_in_for_an_annotation_has_no_neighbours(table):
    read = table.assign(
        apex=["5", "/", "22", "35"],
        onset_index=[0, 0, 0, 0],
        apex_index=[4, 1, 1, 4],
        offset_index=[8, 2, 9, 9],
        apex_from=["annotation", "middle", "annotation", "annotation"],
    )
    samples = NeighbourFrames().table(read, classes=["fear"])
    # N_min is 2 now: 5 - 1 neighbours, but none of the clip in the middle of which nobody saw an apex.
    assert samples["clip"].tolist() == ["two", "three", "three@+1", "three@+2", "three@+3", "three@+4"]
    assert samples["apex_index"].tolist() == [1, 1, 2, 3, 4, 5]
    assert samples["apex"].tolist() == ["/", "22", "22", "22", "22", "22"]
    as_written = read.drop(columns=["onset_index", "apex_index", "offset_index"])
    assert NeighbourFrames().table(as_written, classes=["fear"])["apex"].tolist() == [pd.NA, 22, 23, 24, 25, 26]
    with pytest.raises(DataError, match="'offset_index'"):
        NeighbourFrames().table(read.drop(columns="offset_index"))


def test_prepared_neighbours_have_the_media_of_their_own_frame(tmp_path):
    from PIL import Image

    rows = []
    for number, label in enumerate(("joy", "fear", "fear")):
        folder = tmp_path / f"ep{number}"
        folder.mkdir()
        (video,) = synthetic_videos(1, size=(40, 40), frames=9, seed=number)
        for place, frame in enumerate(video.frames):
            Image.fromarray(frame).save(folder / f"img{place}.png")
        rows.append({"clip": folder.name, "path": folder.name, "label": label, "onset": 0, "apex": 4, "offset": 8})
    samples = NeighbourFrames().table(pd.DataFrame(rows))
    recipe = PreprocessRecipe(detector="cropped", flow="farneback")
    specs = [
        InputSpec("flow", (16, 16), ("u", "v"), "signed"),
        InputSpec("apex", (16, 16), ("red", "green", "blue"), "unit"),
    ]
    clips = prepare(samples, tmp_path, tmp_path / "out", specs=specs, recipe=recipe, workers=1).clips
    first = ["ep0", "ep0@-1", "ep0@+1", "ep0@-2", "ep0@+2"]
    assert clips.ids.tolist() == [*first, "ep1", "ep1@-1", "ep1@+1", "ep2", "ep2@-1", "ep2@+1"]
    assert clips.labels.tolist() == ["joy"] * 5 + ["fear"] * 6
    for row, (folder, apex) in {1: ("ep0", 3), 10: ("ep2", 5)}.items():
        made = make_media(tmp_path / folder, specs, onset=0, apex=apex, offset=8, recipe=recipe)
        for kind, array in made.media.items():
            np.testing.assert_array_equal(clips.read(kind, [row])[0], array, err_msg=kind)


def test_classes_can_be_chosen_and_the_rarest_is_sought_among_them(table: pd.DataFrame):
    assert NeighbourFrames(factor=2).table(table, classes=["fear"])["apex"].tolist() == [13, 12, 22, 23]


def test_frame_numbers_may_be_text_or_floats_as_tables_hold_them(table: pd.DataFrame):
    changed = table.assign(onset=table["onset"].astype(str), apex=table["apex"].astype(np.float64))
    for name in ("clip", "apex"):
        assert NeighbourFrames().table(changed)[name].tolist() == NeighbourFrames().table(table)[name].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="offset"), "'offset'"),
        (lambda table: table.assign(apex=[1, 13, 22, 35]), "'one'.*onset"),
        (lambda table: table.assign(offset=[9, 12, 30, 40]), "'two'.*offset"),
        (lambda table: table.assign(apex=[np.nan, 13, 22, 35]), "'one'.* nan .*apex"),
        (lambda table: table.assign(apex=[5, np.inf, 22, 35]), "'two'.* inf .*apex"),
        (lambda table: table.assign(apex=[5, 13, "22.5", 35]), "'three'.*'22.5'.*apex"),
        (lambda table: table.assign(apex=[5, 13, "?", 35]), "'three'.*'.'.*apex"),
        (lambda table: table.assign(label=None), "nothing to balance"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_by_clip_and_reason(table: pd.DataFrame, change, message: str):
    with pytest.raises(DataError, match=message):
        NeighbourFrames().table(change(table))


@pytest.mark.parametrize(
    "call",
    [
        lambda: neighbour_counts({"a": -1}),
        lambda: neighbour_counts({"a": 1}, factor=0),
        lambda: neighbours_of(1, 3, 5, -1),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(DataError):
        call()

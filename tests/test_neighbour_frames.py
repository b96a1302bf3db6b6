"""Neighbour frames: eq. 11 of MERAU against counts worked out by hand, and which frames are taken."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_trees import build
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fsmer.cli.app import app
from fsmer.data import ClipSet, InputSpec, concat, read_clips
from fsmer.episodic import Protocol, load_protocol
from fsmer.episodic.neighbour_frames import NeighbourFrames, neighbour_counts, neighbours_of
from fsmer.episodic.sides import neighbour_parents
from fsmer.errors import DataError, ProtocolError
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


# -- in protocols -----------------------------------------------------------------------------------------------------


def recorded(counts: dict[str, int], *, datasets: int = 2, people: int = 4, frames: int = 9) -> pd.DataFrame:
    """Clips of some classes, dealt to people of data sets in turn, with room for neighbours of their apexes."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return pd.DataFrame(
        {
            "clip": [f"c{number:02d}" for number in range(len(labels))],
            "dataset": [f"set{number % datasets}" for number in range(len(labels))],
            "subject": [f"p{number // datasets % people}" for number in range(len(labels))],
            "label": labels,
            "onset": 0,
            "apex": 4,
            "offset": frames - 1,
        }
    )


def as_clips(table: pd.DataFrame) -> ClipSet:
    return ClipSet.from_table(table)


def origins(clips: ClipSet, rows: np.ndarray) -> set[str]:
    """The clips that some rows show, of their own or through a neighbour."""
    table = clips.table.iloc[rows]
    return {near or clip for near, clip in zip(table["neighbour_of"], table["clip"], strict=True)}


PROTOCOLS_TO_DEAL = {
    "kshot": {"shot": 1},
    "kshot, counted": {"shot": 1, "query": 1, "balance": "natural"},
    "kshot, people": {"shot": 1, "subject_disjoint": True},
    "source-target": {"shot": 1, "source": "set0"},
    "loso": {},
    "cde": {},
    "holdout": {},
    "ratio": {"repeats": 3},
}


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(PROTOCOLS_TO_DEAL)),
    counts=st.tuples(*[st.integers(8, 14)] * 2),
    factor=st.integers(2, 5),
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_a_neighbour_is_on_the_side_of_its_clip_and_never_asked_about(kind, counts, factor, seed, order):
    table = NeighbourFrames(factor=factor).table(recorded(dict(zip("ab", counts, strict=True))))
    rows = list(range(len(table)))
    order.shuffle(rows)
    clips = as_clips(table.iloc[rows])
    name = kind.partition(",")[0]
    params = dict(PROTOCOLS_TO_DEAL[kind])
    if "shot" in params or name == "ratio":
        params["seed"] = seed
    if "shot" in params:
        params["episodes"] = 4
    plain = load_protocol(name, **params)
    alone = clips[(clips.table["neighbour_of"] == "").to_numpy()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dealt = [plain.split(clips)]
    assert len(said) == (len(alone) < len(clips))
    if name != "kshot":
        dealt.append(plain.with_params(neighbours=True).split(clips))
    without = plain.split(alone)
    for episodes in dealt:
        assert len(episodes) == len(without)
        for episode, expected in zip(episodes, without, strict=True):
            shown = origins(clips, episode.support)
            assert not shown & origins(clips, episode.query)
            assert (clips.table["neighbour_of"].iloc[episode.query] == "").all()
            # The sides are those of the same clips without any neighbours.
            assert shown == set(alone.ids[expected.support])
            assert set(clips.ids[episode.query]) == set(alone.ids[expected.query])
            if episodes.source is not None:
                assert not origins(clips, episodes.source) & (shown | origins(clips, episode.query))
    left_out = {name for side in (dealt[0][0].support, dealt[0][0].query) for name in clips.ids[side]}
    assert not {name for name in left_out if "@" in name}


def test_sources_and_whole_sides_hold_all_neighbours_of_their_clips():
    table = NeighbourFrames().table(recorded({"a": 8, "b": 12}))
    clips = as_clips(table)
    near = (clips.table["neighbour_of"] != "").to_numpy()
    taught = load_protocol("source-target", source="set0", shot=1, episodes=3, neighbours=True).split(clips)
    expected = np.flatnonzero(clips.datasets == "set0")
    assert near[expected].sum() > 20
    assert taught.source.tolist() == expected.tolist()
    assert not near[taught[0].support].any()
    with pytest.warns(UserWarning, match="neighbour frames out"):
        left = load_protocol("source-target", source="set0", shot=1, episodes=3).split(clips)
    assert left.source.tolist() == [row for row in expected.tolist() if not near[row]]
    fold = load_protocol("loso", neighbours=True).split(clips)[0]
    own = origins(clips, fold.support)
    assert fold.support.tolist() == [row for row in range(len(clips)) if origins(clips, np.array([row])) & own]


def test_a_neighbour_whose_clip_is_not_there_is_nowhere():
    table = NeighbourFrames().table(recorded({"a": 8, "b": 12}))
    lost = set(table["clip"][:3]) - set(table["clip"][table["neighbour_of"] != ""])
    assert lost
    clips = as_clips(table[~table["clip"].isin(lost)])
    for episode in load_protocol("loso", neighbours=True).split(clips):
        assert not origins(clips, episode.support) & lost
    source = load_protocol("source-target", source="set0", shot=1, episodes=1, neighbours=True).split(clips).source
    assert not origins(clips, source) & lost


def test_neighbours_of_a_neighbour_belong_to_the_clip_and_circles_to_none():
    table = recorded({"a": 8, "b": 8}).assign(neighbour_of="")
    table.loc[1, "neighbour_of"] = "c00"
    table.loc[2, "neighbour_of"] = "c01"
    table.loc[[4, 5], "neighbour_of"] = ["c05", "c04"]
    assert neighbour_parents(as_clips(table))[:6].tolist() == [-1, 0, 0, -1, -2, -2]
    assert neighbour_parents(as_clips(table[:1])) is None
    assert neighbour_parents(as_clips(table[1:2])).tolist() == [-2]
    assert neighbour_parents(as_clips(table.drop(columns="neighbour_of"))) is None


def test_prefixes_and_joined_sets_keep_neighbours_with_their_clips():
    one = as_clips(NeighbourFrames().table(recorded({"a": 2, "b": 2}, datasets=1)))
    plain = as_clips(recorded({"a": 2, "b": 2}, datasets=1))
    joined = concat([one.with_prefix("x"), plain.with_prefix("y"), one.with_prefix()])
    parents = neighbour_parents(joined)
    for row in np.flatnonzero(parents >= 0):
        assert joined.ids[row].startswith(f"{joined.ids[parents[row]]}@")
    assert (parents >= 0).sum() == 2 * (len(one) - len(plain))


def test_only_protocols_that_learn_from_neighbours_have_another_hash():
    for name in ("loso", "kshot", "source-target", "merau-casme2-to-smic-3way"):
        plain = load_protocol(name)
        assert plain.with_params(neighbours=False).hash == plain.hash
        assert plain.with_params(neighbours=True).hash != plain.hash
        assert Protocol.from_dict(plain.with_params(neighbours=True).to_dict()).neighbours


def test_learning_from_neighbours_needs_some_and_a_place_for_them():
    clips = as_clips(recorded({"a": 8, "b": 8}))
    with pytest.raises(ProtocolError, match=r"none of the 16 clips.*--add-neighbours"):
        load_protocol("loso", neighbours=True).split(clips)
    with pytest.raises(ProtocolError, match=r"'kshot'.*no source"):
        load_protocol("kshot", shot=1, neighbours=True).split(as_clips(NeighbourFrames().table(clips.table)))
    with pytest.raises(ProtocolError, match=r"neighbours='yes'"):
        load_protocol("loso", neighbours="yes")


def test_the_commands_make_neighbours_and_learn_from_them_when_told_to(tmp_path):
    root, out = build("casme2", tmp_path / "casme2"), tmp_path / "clips"

    def run(*arguments: object) -> Any:
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
        return done

    made = ("prepare", "casme2", "--root", root, "--out", out, "--for", "facs-flow", "--frames", "cropped")
    run(*made, "--scheme", "megc2019", "--add-neighbours", 3, "--workers", 1)
    clips = read_clips(out)
    # N_min is 1: a rare class gets round(3 / 1) - 1 = 2 neighbours, the one of two clips round(3 / 2) - 1 = 1 for each.
    near = Counter(clips.table["neighbour_of"])
    assert near == {"": 4, "sub01_EP02_01f": 2, "sub07_EP06_01": 2, "sub05_EP05_03": 1, "sub06_EP06_02_01": 1}
    asked = ("evaluate", "loso", "--data", out, "--method", "protonet", "--no-cache", "--json")
    told, plain = run(*asked, "--neighbours"), run(*asked)
    reports = [json.loads(one.stdout) for one in (told, plain)]
    assert [one["counts"]["predictions"] for one in reports] == [4, 4]
    assert reports[0]["protocol"]["hash"] != reports[1]["protocol"]["hash"]
    assert "neighbour" not in told.stderr
    assert "6 neighbour frames" in plain.stderr

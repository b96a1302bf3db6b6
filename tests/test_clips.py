"""Clip sets keep clip, label and media together, whatever is sliced, joined, saved or loaded, and copy nothing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmer.data import (
    ArrayStore,
    Clip,
    ClipSet,
    InputSpec,
    LabelScheme,
    LazyArray,
    NpyStore,
    as_clips,
    collate_clips,
    concat,
)
from fsmer.data.table import plain_text
from fsmer.errors import DataError, MediaError, OutputError, SpecMismatchError
from fsmer.io import block_digests

SMALL = InputSpec(size=(4, 5))


def maps(n: int, seed: int = 0) -> np.ndarray:
    """Min-max maps of shape (n, 3, 4, 5); the first pixel of u says which map it is."""
    array = np.random.default_rng(seed).random((n, 3, 4, 5), dtype=np.float32)
    array[:, 0, 0, 0] = np.arange(n) / 1000
    return array


def clip_set(n: int = 12, dataset: str = "mine", labels: list[str] | None = None, seed: int = 0) -> ClipSet:
    names = labels or ["negative", "positive", "surprise"]
    return ClipSet.from_arrays(
        maps(n, seed),
        [names[row % len(names)] for row in range(n)],
        subjects=[f"{row % 4:03d}" for row in range(n)],
        datasets=dataset,
        ids=[f"{dataset}_{row}" for row in range(n)],
    )


class UntouchableStore:
    """A store that fails the test when anything is read from it."""

    spec = SMALL

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("media were read")


# -- what a set holds -------------------------------------------------------------------------------------------------


def test_table_holds_one_row_a_clip_in_order() -> None:
    clips = clip_set(5)
    assert list(clips.table.columns) == ["clip", "dataset", "subject", "label", "aus"]
    assert clips.table["clip"].tolist() == clips.ids.tolist() == [f"mine_{row}" for row in range(5)]
    assert clips.table["label"].tolist() == clips.labels.tolist()
    assert clips.classes == ("negative", "positive", "surprise")


def test_changing_the_table_does_not_change_the_clips() -> None:
    clips = clip_set(3)
    table = clips.table
    table.loc[0, "label"] = "surprise"
    table["new"] = 1
    assert clips.labels[0] == "negative"
    assert "new" not in clips.table


def test_labels_and_ids_cannot_be_overwritten() -> None:
    clips = clip_set(3)
    for values in (clips.ids, clips.labels, clips.subjects, clips.datasets):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = "other"


def test_subjects_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    clips = ClipSet.from_arrays(maps(3), ["a", "b", "a"], subjects=["006", "6", "0006"], ids=["01", "1", "1.0"])
    assert clips.subjects.tolist() == ["006", "6", "0006"]
    loaded = ClipSet.load(clips.save(tmp_path / "set"))
    assert loaded.subjects.tolist() == ["006", "6", "0006"]
    assert loaded.ids.tolist() == ["01", "1", "1.0"]
    assert len(clips.subject_names) == 3
    mixed = ClipSet.from_arrays(maps(3), ["a", "b", "a"], subjects=["006", 6, 6.0])
    assert mixed.subjects.tolist() == ["006", "6", "6"]


def test_the_same_subject_name_in_two_data_sets_is_two_people() -> None:
    clips = ClipSet.from_arrays(maps(4), list("abab"), subjects=["1", "2", "1", "2"], datasets=["x", "x", "y", "x"])
    assert clips.subject_names == (("x", "1"), ("x", "2"), ("y", "1"))
    assert clips.subject_codes().tolist() == [0, 1, 2, 1]
    assert clips.dataset_codes().tolist() == [0, 0, 1, 0]


def test_codes_follow_the_asked_class_order() -> None:
    clips = clip_set(3)
    assert clips.codes().tolist() == [0, 1, 2]
    assert clips.codes(["surprise", "negative", "positive"]).tolist() == [1, 2, 0]
    assert clips.codes().dtype == np.int64


def test_a_label_outside_the_classes_names_clip_and_label() -> None:
    with pytest.raises(DataError, match=r"'mine_2'.*'surprise'"):
        clip_set(3).codes(["negative", "positive"])


def test_an_unlabelled_clip_is_refused_where_labels_are_needed() -> None:
    clips = ClipSet.from_arrays(maps(2), ["a", None], ids=["one", "two"])
    assert clips.labels.tolist() == ["a", None]
    assert clips[1].label is None
    assert clips.classes == ("a",)
    with pytest.raises(DataError, match=r"'two'.*label"):
        clips.codes()


def test_codes_of_a_part_cover_only_what_the_part_holds() -> None:
    part = clip_set(12)[[2, 5]]
    assert part.classes == ("surprise",)
    assert part.codes().tolist() == [0, 0]
    assert part.subject_names == (("mine", "001"), ("mine", "002"))
    assert list(part.table["label"].cat.categories) == ["surprise"]


def test_repr_is_one_line_with_counts() -> None:
    text = repr(clip_set(4))
    assert text == ("ClipSet(4 clips; mine 4; negative 2, positive 1, surprise 1; flow 4x5 (u, v, strain), minmax)")


# -- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -5), [11, 6, 1]),
        ([3, 0], [3, 0]),
        ([-1, 0], [11, 0]),
        (np.array([7, 2], np.int32), [7, 2]),
        ([], []),
        (["mine_4", "mine_1"], [4, 1]),
        ([True] + [False] * 10 + [True], [0, 11]),
    ],
)
def test_masks_indices_slices_and_ids_choose_the_same_clips_and_media(item: object, expected: list[int]) -> None:
    part = clip_set()[item]  # type: ignore[index]
    assert part.ids.tolist() == [f"mine_{row}" for row in expected]
    assert np.array_equal(part.media(), maps(12)[expected])


def test_a_mask_from_the_table_chooses_clips() -> None:
    clips = clip_set()[3:]
    assert clips[clips.table["label"] == "positive"].ids.tolist() == ["mine_4", "mine_7", "mine_10"]
    assert clips[clips.labels == "positive"].ids.tolist() == ["mine_4", "mine_7", "mine_10"]


def test_one_index_gives_the_clip_with_its_flow() -> None:
    clip = clip_set()[-1]
    assert (clip.id, clip.dataset, clip.subject, clip.label) == ("mine_11", "mine", "003", "surprise")
    assert np.array_equal(clip.flow, maps(12)[11])
    assert [one.id for one in clip_set()[:2]] == ["mine_0", "mine_1"]


def test_choosing_what_is_not_there_is_refused() -> None:
    clips = clip_set()
    with pytest.raises(IndexError):
        clips[12]
    with pytest.raises(IndexError, match="12 clips"):
        clips[[0, 12]]
    with pytest.raises(DataError, match=r"mask.*\b3\b.*\b12\b"):
        clips[np.array([True, False, True])]
    with pytest.raises(DataError, match="'nobody'"):
        clips[["nobody"]]
    with pytest.raises(DataError, match=r"'mine_3'.*twice"):
        clips[[3, 1, -9]]
    with pytest.raises(DataError, match="a float"):
        clips[0.5]  # type: ignore[call-overload]


def test_membership_is_by_id() -> None:
    clips = clip_set(4)
    assert "mine_3" in clips
    assert clips[2] in clips
    assert clips[3] not in clips[:3]
    assert clips.positions(["mine_2", "mine_0"]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label == 'positive' and subject == '001'", ["mine_1"]),
        (
            "label in ['positive', 'surprise'] and subject != '001'",
            ["mine_2", "mine_4", "mine_7", "mine_8", "mine_10", "mine_11"],
        ),
        ("clip.str.endswith('9')", ["mine_9"]),
        ("dataset == 'mine' and not (subject == '000')", [f"mine_{row}" for row in range(12) if row % 4]),
        (lambda table: table["clip"] == "mine_3", ["mine_3"]),
    ],
)
def test_select_reads_conditions(where: str | Callable, expected: list[str]) -> None:
    assert clip_set().select(where).ids.tolist() == expected


def test_select_by_values() -> None:
    clips = clip_set()
    assert clips.select(label="positive", subject="001").ids.tolist() == ["mine_1"]
    assert clips.select(label=["positive", "surprise"], subject="001").ids.tolist() == ["mine_1", "mine_5"]


@pytest.mark.parametrize(
    "where",
    [
        "dataset = 'mine'",
        "dataset ==",
        "((dataset == 'x'",
        "sujet == '1'",
        "label",
        "1",
        "dataset.nope()",
        "",
        "@os",
        "clip > 3",
    ],
)
def test_a_condition_that_cannot_be_used_is_refused_in_one_sentence(where: str) -> None:
    with pytest.raises(DataError, match="condition"):
        clip_set().select(where)


def test_a_condition_without_matches_says_what_there_is() -> None:
    with pytest.raises(DataError, match=r"dataset == 'samm'.*mine.*negative, positive, surprise"):
        clip_set().select("dataset == 'samm'")
    with pytest.raises(DataError, match="subject == '006'"):
        clip_set().select("subject == 1")
    with pytest.raises(DataError, match="'nope'"):
        clip_set().select(nope=1)


# -- nothing is copied ------------------------------------------------------------------------------------------------


def test_a_million_clips_are_built_filtered_and_sampled_quickly_without_touching_media() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "clip": np.char.add("c", np.arange(n).astype(str)).astype(object),
            "dataset": np.array(["a", "b", "c"], object)[rng.integers(3, size=n)],
            "subject": np.array([f"{s:03d}" for s in range(500)], object)[rng.integers(500, size=n)],
            "label": np.array(["negative", "positive", "surprise"], object)[rng.integers(3, size=n)],
        }
    )
    started = time.perf_counter()
    clips = ClipSet.from_table(frame, {"flow": UntouchableStore(n)})
    built = time.perf_counter() - started
    started = time.perf_counter()
    part = clips.select("dataset == 'b' and subject != '006'")
    codes, people = part.codes(), part.subject_codes()
    filtered = time.perf_counter() - started
    started = time.perf_counter()
    for seed in range(200):
        support = part[np.random.default_rng(seed).choice(len(part), 15, replace=False)]
        assert len(support.codes(part.classes)) == 15
    sampled = time.perf_counter() - started
    assert len(part) == len(codes) == len(people) < n / 2
    assert part._base is clips._base
    # About 0.5, 0.05 and 0.02 seconds on one core; the bounds leave room for a busy one.
    assert built < 15
    assert filtered < 4
    assert sampled < 4


def test_arrays_are_kept_not_copied() -> None:
    array = maps(6)
    clips = ClipSet.from_arrays(array, list("ababab"))
    part = concat([clips[[4, 1]], clip_set(3)])
    lazy = part[0].media["flow"]
    assert isinstance(clips[2].media["flow"].store, ArrayStore)
    assert np.shares_memory(clips[2:4][0].media["flow"].store.array, array)  # type: ignore[attr-defined]
    array[4, 0, 0, 0] = 0.5
    assert lazy.read()[0, 0, 0] == np.float32(0.5)


def test_media_given_out_are_the_callers_own() -> None:
    array = maps(3)
    clips = ClipSet.from_arrays(array, list("aba"))
    media = clips.media()
    media[:] = 0
    assert np.array_equal(array, maps(3))
    assert np.array_equal(clips.media(), maps(3))


def test_relabelling_and_joining_touch_no_media() -> None:
    frame = clip_set(6, dataset="casme2", labels=["disgust", "happiness", "others"]).table
    clips = ClipSet.from_table(frame, {"flow": UntouchableStore(6)})
    joined = concat([clips.relabel("megc2019").with_prefix("x"), clips[:2].with_prefix("y")])
    assert len(joined) == 6
    with pytest.raises(AssertionError, match="media were read"):
        joined.media()


def test_batches_read_everything_once_in_order() -> None:
    clips = clip_set(10)[::-1]
    assert [len(batch) for batch in clips.batches(size=4)] == [4, 4, 2]
    assert np.array_equal(np.concatenate(list(clips.batches(size=4))), maps(10)[::-1])


def test_some_media_can_be_read_in_any_order_and_more_than_once() -> None:
    clips = clip_set(10)[2:]
    assert np.array_equal(clips.read("flow", [3, 3, 0]), maps(10)[[5, 5, 2]])
    assert clips.read("flow", []).shape == (0, 3, 4, 5)
    assert clips[[]].media().shape == (0, 3, 4, 5)


# -- joining ----------------------------------------------------------------------------------------------------------


def test_joined_sets_keep_order_columns_and_media() -> None:
    one, two = clip_set(5, "smic"), clip_set(4, "casme2", ["disgust"], seed=1)
    joined = concat([one[::-1], two[1:]])
    assert joined.ids.tolist() == [*one.ids[::-1], *two.ids[1:]]
    assert np.array_equal(joined.media(), np.concatenate([maps(5)[::-1], maps(4, 1)[1:]]))
    assert joined.dataset_names == ("casme2", "smic")
    again = concat([joined[[6, 0]], clip_set(2, "samm")])
    assert np.array_equal(again[[2, 0]].media(), np.stack([maps(2)[0], maps(4, 1)[2]]))


def test_ids_that_clash_are_named_with_the_remedy() -> None:
    one, two = clip_set(3, "smic"), clip_set(3, "smic", seed=1)
    with pytest.raises(DataError, match=r"3 clip ids.*'smic_0', 'smic_1', 'smic_2'.*with_prefix"):
        concat([one, two])
    joined = concat([one.with_prefix("hs"), two.with_prefix("nir")])
    assert joined.ids.tolist()[::3] == ["hs/smic_0", "nir/smic_0"]
    assert one.with_prefix().ids[0] == "smic/smic_0"


def test_joining_media_of_another_form_names_both() -> None:
    other = ClipSet.from_arrays(np.random.default_rng(0).random((2, 3, 8, 8)), ["a", "b"], ids=["x", "y"])
    with pytest.raises(SpecMismatchError, match=r"flow 8x8.*flow 4x5"):
        concat([clip_set(3), other])
    bare = ClipSet.from_table(pd.DataFrame({"clip": ["z"]}))
    with pytest.raises(SpecMismatchError, match=r"none.*flow.*kinds="):
        concat([clip_set(3), bare])
    assert concat([clip_set(3), bare], kinds=[]).specs == {}


def test_joining_flow_of_two_estimators_is_refused_and_an_unknown_one_stays_unknown() -> None:
    def of(method: str | None, name: str) -> ClipSet:
        spec = InputSpec(size=(4, 5), flow_method=method)
        return ClipSet.from_arrays(maps(1), ["a"], ids=[name], spec=spec)

    with pytest.raises(SpecMismatchError, match=r"farneback.*tvl1"):
        concat([of("tvl1", "x"), of("farneback", "y")])
    assert concat([of("tvl1", "x"), of("tvl1", "y")]).specs["flow"].flow_method == "tvl1"
    assert concat([of("tvl1", "x"), of(None, "y")]).specs["flow"].flow_method is None


def test_joining_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no clips"):
        concat([])
    assert len(concat([clip_set(3), clip_set(3, "b")[:0]])) == 3


# -- making one -------------------------------------------------------------------------------------------------------


def test_numbers_as_labels_and_subjects_become_text() -> None:
    clips = ClipSet.from_arrays(maps(3), np.array([0, 1, 0]), subjects=[7, 7, 8.0], aus=[4, "4+7", None])
    assert clips.labels.tolist() == ["0", "1", "0"]
    assert clips.subjects.tolist() == ["7", "7", "8"]
    assert clips.table["aus"].tolist() == ["4", "4+7", ""]


def test_tensors_are_taken_as_arrays_and_labels() -> None:
    import torch

    clips = ClipSet.from_arrays(torch.from_numpy(maps(2)), torch.tensor([1, 0]))
    assert clips.labels.tolist() == ["1", "0"]
    assert np.array_equal(clips.media(), maps(2))


def test_8_bit_maps_are_scaled_to_one() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    assert np.allclose(ClipSet.from_arrays(array, ["a", "b"]).media(), array / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": np.zeros((0, 3, 4, 5))}, "empty"),
        ({"media": np.zeros((3, 4, 5, 3))}, "move the channel axis"),
        ({"media": np.zeros((3, 3, 4))}, "move the channel axis"),
        ({"media": np.zeros((3, 3, 4, 5), np.int64)}, "integers of type int64"),
        ({"labels": ["a", "b"]}, "3 clips but 2 labels"),
        ({"subjects": ["1"]}, "3 clips but 1 subjects"),
        ({"ids": ["x", "y", "x"]}, "'x'"),
        ({"ids": ["x", "", "z"]}, "row 2"),
        ({"labels": [{}, "a", "b"]}, "row 1.*'label'.*dict"),
        ({"spec": InputSpec(size=(9, 9))}, "9, 9"),
        ({"media": {}}, "media.*empty"),
        ({"media": {"onset": np.zeros((3, 3, 4, 5))}}, "'onset'.*spec"),
        ({"media": {"flow": np.zeros((0, 3, 4, 5))}}, "flow.*empty"),
        (
            {
                "media": {"flow": maps(3), "apex": maps(2)},
                "spec": [InputSpec("apex", (4, 5), ("red", "green", "blue"), "unit")],
            },
            "apex.*2 rows",
        ),
    ],
)
def test_arrays_that_cannot_be_clips_are_refused(change: dict, message: str) -> None:
    given = {"media": maps(3), "labels": ["a", "b", "c"]} | change
    with pytest.raises(DataError, match=message):
        ClipSet.from_arrays(**given)


def test_people_cannot_be_told_apart_when_a_part_of_a_data_set_has_no_subject() -> None:
    mixed = ClipSet.from_arrays(maps(3), list("aba"), subjects=["1", "", "2"])
    with pytest.raises(DataError, match=r"'mine-1'.*'mine'.*subject"):
        mixed.subject_codes()
    assert mixed[[0, 2]].subject_codes().tolist() == [0, 1]
    clips = ClipSet.from_arrays(maps(3), list("aba"), subjects=["1", "", "2"], datasets=["a", "b", "a"])
    assert clips.subject_names == (("a", "1"), ("a", "2"), ("b", ""))
    assert clips.subject_codes().tolist() == [0, 2, 1]


def test_a_table_without_clips_or_ids_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        ClipSet.from_table(pd.DataFrame({"clip": []}))
    with pytest.raises(DataError, match="'clip'"):
        ClipSet.from_table(pd.DataFrame({"name": ["a"]}))
    with pytest.raises(DataError, match=r"\b2 clips.*flow.*\b3 rows"):
        ClipSet.from_table(pd.DataFrame({"clip": ["a", "b"]}), {"flow": ArrayStore(maps(3))})
    with pytest.raises(DataError, match="kind"):
        ClipSet.from_table(pd.DataFrame({"clip": ["a", "b", "c"]}), {"video": ArrayStore(maps(3))})


def test_single_clips_make_a_set_again() -> None:
    clips = clip_set(6)
    chosen = [clips[4], replace(clips[1], label="others"), Clip("new", media={"flow": maps(9)[8]}, extra={"age": 3})]
    made = ClipSet.from_clips([replace(clip, subject="7") for clip in chosen])
    assert made.ids.tolist() == ["mine_4", "mine_1", "new"]
    assert made.labels.tolist() == ["positive", "others", None]
    assert np.array_equal(made.media(), maps(9)[[4, 1, 8]])
    assert made[2].extra["age"] == 3


def test_single_clips_of_different_form_are_refused_by_name() -> None:
    clips = clip_set(2)
    with pytest.raises(SpecMismatchError, match=r"'odd'.*6x6.*'mine_0'.*4x5"):
        ClipSet.from_clips([clips[0], Clip("odd", media={"flow": np.random.default_rng(0).random((3, 6, 6))})])
    with pytest.raises(SpecMismatchError, match=r"'bare'.*'flow'"):
        ClipSet.from_clips([clips[0], Clip("bare")])
    frames = LazyArray.of(maps(1)[0], replace(SMALL, kind="frames"))
    with pytest.raises(SpecMismatchError, match=r"'mine_0'.*'frames'"):
        ClipSet.from_clips([clips[0], replace(clips[1], media={**clips[1].media, "frames": frames})])
    with pytest.raises(DataError, match="'mine_0'"):
        ClipSet.from_clips([clips[0], clips[0]])
    with pytest.raises(DataError, match="empty"):
        ClipSet.from_clips([])


def test_whatever_a_user_hands_over_becomes_clips() -> None:
    clips = clip_set(4)
    assert as_clips(clips) is clips
    assert as_clips(clips[1]).ids.tolist() == ["mine_1"]
    assert as_clips(list(clips)).ids.tolist() == clips.ids.tolist()
    assert as_clips((maps(2), ["a", "b"])).labels.tolist() == ["a", "b"]
    assert as_clips(maps(2)).labels.tolist() == [None, None]
    assert len(as_clips(maps(1)[0])) == 1
    for wrong in ("folder", ["a", "b"], [], None, {}):
        with pytest.raises(DataError):
            as_clips(wrong)  # type: ignore[arg-type]


# -- files ------------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    rows=st.lists(
        st.tuples(WORDS, st.none() | WORDS, WORDS, WORDS, st.integers(-(2**62), 2**62), st.floats(), st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_a_saved_set_comes_back_with_every_character_and_type(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]
) -> None:
    frame = pd.DataFrame(
        {
            "clip": [f"{row}:{values[0]}" for row, values in enumerate(rows)],
            "dataset": [f"d{values[2]}" for values in rows],
            "subject": "s",
            "label": [values[1] for values in rows],
            "aus": [values[3] for values in rows],
            "note": [values[0] for values in rows],
            "onset": [values[4] for values in rows],
            "rate": [values[5] for values in rows],
            "clean": [values[6] for values in rows],
        }
    )
    clips = ClipSet.from_table(frame, {"flow": ArrayStore(maps(len(rows)), SMALL)})
    loaded = ClipSet.load(clips.save(tmp_path_factory.mktemp("sets") / "set"))
    pd.testing.assert_frame_equal(loaded.table, clips.table, check_exact=True)
    assert np.array_equal(loaded.media(), clips.media())
    assert loaded.specs == clips.specs


def test_a_part_is_saved_as_it_stands(tmp_path: Path) -> None:
    part = clip_set(12)[[7, 2, 5]]
    loaded = ClipSet.load(part.save(tmp_path / "part"))
    assert loaded.ids.tolist() == ["mine_7", "mine_2", "mine_5"]
    assert np.array_equal(loaded.media(), maps(12)[[7, 2, 5]])
    assert sorted(os.listdir(tmp_path)) == ["part"]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, 2**63], dtype="uint64", name="frame"),
        pd.Series([1, 2**64 - 1], dtype="UInt64", name="frame"),
        pd.Series(["a", "x" * 131_073], name="frame"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, column: pd.Series) -> None:
    frame = pd.DataFrame({"clip": ["a", "b"], "frame": column})
    with pytest.raises(DataError, match="row 2 of column 'frame'"):
        ClipSet.from_table(frame).save(tmp_path / "set")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="name of column"):
        ClipSet.from_table(pd.DataFrame({"clip": ["a"], "x" * 131_073: [1]})).save(tmp_path / "set")


def test_the_largest_and_longest_values_survive_saving(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "clip": ["a"],
            "frame": np.array([2**63 - 1], np.uint64),
            "note": ["x" * 131_072],
            "rate": np.array([0.1], np.longdouble),
        }
    )
    loaded = ClipSet.load(ClipSet.from_table(frame).save(tmp_path / "set")).table.iloc[0]
    assert [loaded["frame"], loaded["note"], loaded["rate"]] == [2**63 - 1, "x" * 131_072, float(np.longdouble("0.1"))]


def test_gaps_in_numbers_survive_saving(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"clip": ["a", "b"], "apex": pd.array([3, None], "Int64"), "ok": pd.array([None, True], "boolean")}
    )
    loaded = ClipSet.load(ClipSet.from_table(frame).save(tmp_path / "set"))
    assert loaded.table["apex"].tolist() == [3, pd.NA]
    assert loaded.table["ok"].tolist() == [pd.NA, True]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_a_disk_that_fills_up_while_saving_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the system refuses the bytes, nobody pretends to."""
    code = """
import resource, signal, sys
import numpy as np
from fsmer.data import ClipSet
from fsmer.errors import OutputError
clips = ClipSet.from_arrays(np.random.default_rng(0).random((400, 3, 28, 28), dtype=np.float32), None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    clips.save(sys.argv[1])
except OutputError as error:
    print(error)
"""
    (tmp_path / "out").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out" / "clips")], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "cannot write" in run.stdout
    assert run.stdout.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_a_loaded_set_can_be_saved_over_itself(tmp_path: Path) -> None:
    folder = clip_set(8).save(tmp_path / "set")
    ClipSet.load(folder)[::2].save(folder)
    assert np.array_equal(ClipSet.load(folder).media(), maps(8)[::2])


def test_saving_never_replaces_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="other files"):
        clip_set(3).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        clip_set(3).save(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        clip_set(3).save(tmp_path / "file" / "set")


def test_a_set_with_bad_media_leaves_nothing_behind_and_keeps_the_old_one(tmp_path: Path) -> None:
    array = maps(400)
    array[399, 1] = np.nan
    bad = ClipSet.from_arrays(array, ["a"] * 400)
    with pytest.raises(MediaError, match="'mine-399'"):
        bad.save(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    clip_set(3).save(tmp_path / "old")
    with pytest.raises(MediaError, match="'mine-399'"):
        bad.save(tmp_path / "old")
    assert len(ClipSet.load(tmp_path / "old")) == 3
    assert os.listdir(tmp_path) == ["old"]


def test_columns_that_a_table_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    clips = ClipSet.from_table(pd.DataFrame({"clip": ["a"], "landmarks": [[1, 2]]}))
    with pytest.raises(DataError, match="'landmarks'"):
        clips.save(tmp_path / "set")
    with pytest.raises(DataError, match="nothing to save"):
        clips[:0].save(tmp_path / "set")
    assert os.listdir(tmp_path) == []


def edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "clips.json").read_text())
    values.pop("checksum", None)
    (folder / "clips.json").write_text(json.dumps(values | changes))


def put(folder: Path, array: np.ndarray) -> None:
    """Other arrays, as a folder without digests can hold them."""
    edit(folder, files={})
    np.save(folder / "flow.npy", array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "clips.json").unlink(), "not a saved clip set"),
        (lambda folder: (folder / "clips.json").write_text('{"format": '), "cannot be read"),
        (lambda folder: (folder / "clips.json").write_text("[]"), "cannot be read"),
        (lambda folder: edit(folder, media=[]), "cannot be read"),
        (lambda folder: edit(folder, format_version=99), "format 99.*update fsmer"),
        (lambda folder: edit(folder, format="other"), "update fsmer"),
        (lambda folder: (folder / "table.csv").unlink(), "table.csv cannot be used"),
        (lambda folder: os.truncate(folder / "table.csv", 60), "table.csv cannot be used"),
        (lambda folder: (folder / "table.csv").write_bytes(b""), "table.csv cannot be used"),
        (lambda folder: (folder / "flow.npy").unlink(), "flow.npy"),
        (lambda folder: os.truncate(folder / "flow.npy", 200), "cut short"),
        (lambda folder: (folder / "flow.npy").write_bytes(b""), "cut short"),
        (lambda folder: put(folder, maps(2)), "4 clips but its flow has 2 rows"),
        (lambda folder: put(folder, np.zeros((4, 3, 9, 9))), "shape"),
        (lambda folder: put(folder, np.zeros((4, 3, 4, 5), complex)), "numbers"),
        (
            lambda folder: (
                np.savez(folder / "flow.npy", a=maps(4)) or os.replace(folder / "flow.npy.npz", folder / "flow.npy")
            ),
            "flow.npy",
        ),
        (lambda folder: np.save(folder / "flow.npy", maps(4)[::-1]), "flow.npy is damaged"),
        (lambda folder: replace_bytes(folder / "flow.npy", b"}", b"("), "flow.npy"),
        (lambda folder: edit(folder, clips="4"), "clips: "),
        (lambda folder: edit(folder, clips=10**30), "clips: "),
        (lambda folder: edit(folder, columns={"clip": "date"}), "columns"),
        (lambda folder: edit(folder, media=None), "media"),
        (lambda folder: edit(folder, block_bytes=0), "block_bytes"),
        (lambda folder: edit(folder, files={"table.csv": []}), "table.csv"),
        (lambda folder: edit(folder, files={"flow.npy": []}), "another saving"),
        (lambda folder: (folder / "clips.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: relabel_by_hand(folder), "table.csv"),
        (lambda folder: replace_text(folder / "clips.json", '"clips": 4', '"clips": 3'), "altered"),
    ],
)
def test_a_damaged_folder_is_one_typed_error(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = clip_set(4).save(tmp_path / "set")
    damage(folder)
    with pytest.raises(DataError, match=message):
        ClipSet.load(folder)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def relabel_by_hand(folder: Path) -> None:
    replace_text(folder / "table.csv", "positive", "negative")


def test_a_folder_without_digests_is_read_as_before(tmp_path: Path) -> None:
    folder = clip_set(4).save(tmp_path / "set")
    values = json.loads((folder / "clips.json").read_text())
    for name in ("checksum", "files", "block_bytes"):
        del values[name]
    (folder / "clips.json").write_text(json.dumps(values))
    relabel_by_hand(folder)
    clips = ClipSet.load(folder)
    assert "positive" not in clips.classes
    assert np.array_equal(clips.media(), maps(4))


def test_a_damaged_block_is_found_when_it_is_first_read_and_names_its_clip(tmp_path: Path) -> None:
    path = tmp_path / "flow.npy"
    np.save(path, maps(50))
    blocks = block_digests(path, 1000)
    content = bytearray(path.read_bytes())
    row_bytes = 3 * 4 * 5 * 4
    content[128 + 30 * row_bytes + 7] ^= 1
    path.write_bytes(content)
    for rows in ([30], [49, 30, 1], range(50)):
        clips = ClipSet.from_table(
            pd.DataFrame({"clip": [f"clip-{row}" for row in range(50)]}), {"flow": NpyStore(path, None, blocks, 1000)}
        )
        assert np.array_equal(clips.read("flow", [0, 1, 49]), maps(50)[[0, 1, 49]])
        with pytest.raises(MediaError, match=r"'clip-(2[4-9]|3\d)'.*damaged"):
            clips.read("flow", list(rows))
        with pytest.raises(MediaError, match=r"'clip-30'.*damaged"):
            pickle.loads(pickle.dumps(clips))[30].flow  # noqa: B018


SAVER = """
import sys, numpy as np, fsmer.io
from fsmer.data import ClipSet
folder, way = sys.argv[1:]
if way == "file by file":
    fsmer.io._exchange = lambda one, other: False
sets = [
    ClipSet.from_arrays(
        np.random.default_rng(n).random((4, 3, 4, 5), dtype=np.float32) / 4 + n / 2,
        [f"label-{n}"] * 4, ids=[f"clip-{i}" for i in range(4)], subjects=[f"person-{n}"] * 4,
    )
    for n in (0, 1)
]
while True:
    for clips in sets:
        clips.save(folder)
        print(flush=True)
"""


@pytest.mark.parametrize("way", ["in one step", "file by file"])
def test_a_set_that_is_saved_anew_meanwhile_is_read_as_the_one_or_the_other(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "set"
    saver = subprocess.Popen([sys.executable, "-c", SAVER, str(folder), way], stdout=subprocess.PIPE)
    seen: Counter[int] = Counter()
    try:
        saver.stdout.readline()
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            clips = ClipSet.load(folder)
            held = 0 if clips.labels[0] == "label-0" else 1
            low, high = held / 2, held / 2 + 0.25
            flow = clips.media()
            assert set(clips.labels) == {f"label-{held}"}
            assert set(clips.subjects) == {f"person-{held}"}
            assert low <= flow.min() <= flow.max() <= high
            seen[held] += 1
        assert saver.poll() is None
    finally:
        saver.kill()
        saver.wait()
        saver.stdout.close()
    assert min(seen[0], seen[1]) > 20, seen


def test_a_set_that_is_replaced_after_it_was_opened_never_gives_maps_of_the_other(tmp_path: Path) -> None:
    folder = clip_set(4).save(tmp_path / "set")
    clips = ClipSet.load(folder)
    sent = pickle.dumps(clips)
    ClipSet.from_arrays(maps(8)[4:], ["x"] * 4).save(folder)
    assert np.array_equal(clips.media(), maps(4))
    with pytest.raises(MediaError, match="another saving"):
        pickle.loads(sent)
    assert ClipSet.load(folder).classes == ("x",)


# -- torch ------------------------------------------------------------------------------------------------------------


def test_a_data_loader_gives_tensors_and_class_indices() -> None:
    import torch
    from torch.utils.data import DataLoader

    clips = clip_set(7)[::-1]
    order = ["surprise", "positive", "negative"]
    batches = list(DataLoader(clips.as_torch(order), batch_size=3))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), torch.from_numpy(maps(7)[::-1].copy()))
    assert torch.cat([codes for _, codes in batches]).tolist() == clips.codes(order).tolist()
    one, code = clips.as_torch(order)[-1]
    assert (one.shape, code) == ((3, 4, 5), 2)
    with pytest.raises(IndexError):
        clips.as_torch()[7]


def test_a_clip_set_is_a_data_set_itself() -> None:
    from torch.utils.data import DataLoader

    batches = list(DataLoader(clip_set(5), batch_size=2, collate_fn=collate_clips))
    assert [batch["inputs"].shape[0] for batch in batches] == [2, 2, 1]
    assert [name for batch in batches for name in batch["clip"]] == clip_set(5).ids.tolist()
    assert batches[0]["label"] == ["negative", "positive"]


def test_clips_and_sets_can_be_sent_to_another_process(tmp_path: Path) -> None:
    folder = clip_set(200).save(tmp_path / "set")
    clips = ClipSet.load(folder)
    sent = pickle.dumps(clips)
    back = pickle.loads(sent)
    assert np.array_equal(back.media(), clips.media())
    assert back.ids.tolist() == clips.ids.tolist()
    assert len(pickle.dumps(clips[0].media["flow"])) < 1000, "the file's content was sent along"
    clip = pickle.loads(pickle.dumps(clip_set(3)[2]))
    assert np.array_equal(clip.flow, maps(3)[2])


def test_clips_load_without_torch() -> None:
    code = (
        "import sys, numpy as np, fsmer.data as d;"
        "c = d.ClipSet.from_arrays(np.random.default_rng(0).random((4, 3, 8, 8)), list('abab'));"
        "c.select(label='a').media(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# -- order can never pair a map with the wrong clip --------------------------------------------------------------------


@given(st.data())
def test_any_chain_of_choices_and_joins_keeps_clip_label_and_map_together(data: st.DataObject) -> None:
    n = 20
    array = maps(n)
    clips = clip_set(n)
    for _ in range(data.draw(st.integers(1, 5))):
        size = len(clips)
        step = data.draw(st.sampled_from(["slice", "index", "mask", "join", "clips"]))
        if step == "slice":
            clips = clips[data.draw(st.slices(size))]
        elif step == "mask":
            clips = clips[np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)]
        elif step == "index":
            clips = clips[data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, size))]]
        elif size:
            cut = data.draw(st.integers(0, size))
            clips = concat([clips[cut:], clips[:cut]]) if step == "join" else ClipSet.from_clips(list(clips)[::-1])
    rows = [int(name.removeprefix("mine_")) for name in clips.ids]
    assert np.array_equal(clips.media(), array[rows])
    assert clips.labels.tolist() == [("negative", "positive", "surprise")[row % 3] for row in rows]
    assert clips.table["clip"].tolist() == clips.ids.tolist()
    assert [clips.classes[code] for code in clips.codes()] == clips.labels.tolist()
    assert [clips.subject_names[code][1] for code in clips.subject_codes()] == clips.subjects.tolist()


# -- labels in any form -----------------------------------------------------------------------------------------------


class Feeling(Enum):
    HAPPY = "happiness"
    SAD = "sadness"


class Spoken(str, Enum):  # noqa: UP042 - its str() is the member's name, other than that of StrEnum
    HAPPY = "happiness"
    SAD = "sadness"


class Numbered(IntEnum):
    HAPPY = 1
    SAD = 0


class Written(StrEnum):
    HAPPY = "happiness"
    SAD = "sadness"


class Word(str):
    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (list(Feeling), ["happiness", "sadness"]),
        (list(Spoken), ["happiness", "sadness"]),
        (np.array(list(Spoken), object), ["happiness", "sadness"]),
        (pd.Categorical(list(Feeling)), ["happiness", "sadness"]),
        (pd.Series(list(Spoken), dtype="category"), ["happiness", "sadness"]),
        (list(Written), ["happiness", "sadness"]),
        ([Spoken.HAPPY, "sadness"], ["happiness", "sadness"]),
        (list(Numbered), ["1", "0"]),
        ([Word("a"), np.str_("b")], ["a", "b"]),
        (np.array(["a", "b"], "S"), ["a", "b"]),
        (np.array(["a", "ü"], np.dtypes.StringDType()), ["a", "ü"]),
        ([b"a", "ü".encode()], ["a", "ü"]),
        ([1, 2.0], ["1", "2"]),
        (np.array([1, 2], np.uint8), ["1", "2"]),
        (np.array([0.5, 2], np.float32), ["0.5", "2"]),
        ([np.float64(3), np.int8(-1)], ["3", "-1"]),
        ([True, np.bool_(False)], ["True", "False"]),
        (np.array([True, False]), ["True", "False"]),
        (pd.array([1, None], dtype="Int64"), ["1", None]),
        (["a", None], ["a", None]),
        (["a", float("nan")], ["a", None]),
        (["a", np.datetime64("NaT")], ["a", None]),
        (["a", pd.NA], ["a", None]),
        (["a", pd.NaT], ["a", None]),
        (["a", ""], ["a", None]),
        (np.ma.masked_array([3, 4], mask=[False, True]), ["3", None]),
    ],
)
def test_labels_of_any_form_are_plain_text_by_one_rule(tmp_path: Path, values: Any, text: list[str | None]) -> None:
    listed = list(values)
    sets = {
        "arrays": ClipSet.from_arrays(maps(2), values, subjects=values, ids=["a", "b"]),
        "table": ClipSet.from_table(pd.DataFrame({"clip": ["a", "b"], "label": pd.Series(listed, dtype=object)})),
        "clips": ClipSet.from_clips([Clip("a", label=listed[0]), Clip("b", label=listed[1])]),
        "saved": ClipSet.load(ClipSet.from_arrays(maps(2), values).save(tmp_path / "set")),
    }
    for form, clips in sets.items():
        assert clips.labels.tolist() == text, form
        assert all(type(label) in (str, type(None)) for label in clips.labels), form
        assert all(type(name) is str for name in clips.classes), form
        assert type(clips[0].label) is str
    known = [label for label in listed if plain_text(label) is not None]
    assert sets["arrays"].select(label=known).labels.tolist() == [label for label in text if label is not None]
    assert sets["arrays"].select(label=known).codes(known).tolist() == list(range(len(known)))
    scheme = LabelScheme("own", known, {"mine": {label: label for label in known}})
    assert sets["arrays"].relabel(scheme).classes == tuple(sorted(label for label in text if label is not None))


@pytest.mark.parametrize(
    "value",
    [
        {},
        [1],
        1j,
        b"\xff",
        pytest.param(10**5000, id="huge"),
        object(),
        np.zeros(2),
        pd.Timestamp("2020-01-01"),
        "half \ud800",
    ],
)
def test_what_is_no_label_is_a_typed_error_that_says_where(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError, match="row 2 of column 'label'"):
        ClipSet.from_arrays(maps(2), ["a", value])
    with pytest.raises(DataError):
        ClipSet.from_clips([Clip("a", label=value)])


def test_labels_of_a_tensor_and_of_one_value_for_all_are_text() -> None:
    import torch

    clips = ClipSet.from_arrays(maps(2), [torch.tensor(1), np.array("a")], subjects=Spoken.SAD, datasets=np.array("x"))
    assert clips.labels.tolist() == ["1", "a"]
    assert clips.subjects.tolist() == ["sadness"] * 2
    assert clips.datasets.tolist() == ["x"] * 2

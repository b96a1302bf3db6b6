"""Drawn few-shot tasks: classes that are sets of action units, in families that share no set."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsmer
from fsmer.data import ClipSet, InputSpec
from fsmer.data.au_parser import au_numbers
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.episodic import DrawnTasks, KShot, TaskRows, read_protocol, split_classes
from fsmer.episodic.uneven import uneven_counts
from fsmer.errors import DataError, FsmerError, ProtocolError, UnknownNameError
from fsmer.synthetic.clips import synthetic_clips, unit_set_maps
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS
from fsmer.synthetic.unit_sets import FAMILIES, UnitSet, family_of, unit_set, unit_sets

NEW_PROTOCOLS = ("novel-units-5way", "novel-units-3way", "uneven-queries", "new-camera")
ROWS = list(TaskRows.__dataclass_fields__)


def small(**changes) -> DrawnTasks:
    options = {"way": 3, "shot": 2, "query": 3, "domains": ("lab", "field"), "pool": 12, "size": 12}
    return DrawnTasks(**{**options, "classes": ("12", "6+12", "15", "1+2", "4", "L14"), **changes})


def digest(rows: TaskRows) -> str:
    content = b"".join(np.ascontiguousarray(getattr(rows, name), dtype="<i8").tobytes() for name in ROWS)
    return hashlib.sha256(content).hexdigest()[:16]


# ---- classes


def test_families_share_no_set_of_units_whatever_the_side():
    held = {family: {one.units for one in unit_sets(family)} for family in FAMILIES}
    assert not held["base"] & held["novel"]
    assert not held["base"] & held["validation"]
    assert not held["validation"] & held["novel"]
    assert min(map(len, held.values())) >= 50
    assert set(unit_sets()) == {one for family in FAMILIES for one in unit_sets(family)}


@settings(max_examples=60, deadline=None)
@given(units=st.sets(st.sampled_from(ACTION_UNIT_ORDER), min_size=1, max_size=5), turn=st.integers(0, 4))
def test_any_set_is_in_one_family_by_its_numbers_alone(units: set[int], turn: int):
    listed = sorted(units)
    turned = tuple(listed[turn % len(listed) :] + listed[: turn % len(listed)])
    assert family_of(UnitSet(turned, "left")) == family_of(UnitSet(tuple(listed), "right")) in FAMILIES


def test_what_emotions_are_drawn_with_is_never_novel():
    for patterns in EMOTION_ACTION_UNITS.values():
        assert {family_of(UnitSet(one.units, "left")) for one in patterns} == {"base"}


def test_drawn_classes_do_not_pull_against_themselves():
    seen = {tuple(sorted(one.units)) for patterns in EMOTION_ACTION_UNITS.values() for one in patterns}
    for one in unit_sets():
        if one.units not in seen:
            assert not {12, 15} <= set(one.units)
            assert not {5, 43} <= set(one.units)


def test_names_of_classes_are_read_back():
    for one in unit_sets():
        assert unit_set(one.name) == one


@pytest.mark.parametrize("name", ["", "smile", "12 or 14", "L12+R6", "12+x"])
def test_a_name_that_is_no_set_of_units_is_refused_in_one_sentence(name: str):
    with pytest.raises(DataError, match=r"6\+12"):
        unit_set(name)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (lambda: UnitSet(()), "no action unit"),
        (lambda: UnitSet((8,)), "'8'|8"),
        (lambda: UnitSet((12,), "above"), "above"),
        (lambda: UnitSet((46,)), "wink"),
        (lambda: UnitSet((12,), intensity=(1.0, 0.5)), "1.0, 0.5"),
        (lambda: unit_sets("base-ish"), "'base'"),
        (lambda: unit_set_maps(["12"], [0, 1]), "1 class"),
        (lambda: synthetic_clips("lab", 4, classes=["6+12", "12+6"]), r"6\+12 is named more than once"),
    ],
)
def test_classes_that_cannot_be_drawn_are_refused_in_one_sentence(make, fact: str):
    with pytest.raises(FsmerError, match=fact):
        make()


def test_one_half_of_the_face_moves_where_a_class_has_a_side():
    codes = np.repeat([0, 1, 2], 120)
    maps = unit_set_maps(["12", "L12", "R12"], codes, domain="lab", normalisation="signed").maps
    mouth = np.abs(maps[:, 1, 16:24])
    right, left = mouth[:, :, :14].mean(axis=(1, 2)), mouth[:, :, 14:].mean(axis=(1, 2))
    ratio = [left[codes == code].mean() / right[codes == code].mean() for code in range(3)]
    # The person's left is the right half of the picture.
    assert ratio[1] > 1.7
    assert ratio[2] < 1 / 1.7
    assert 0.8 < ratio[0] < 1.25


def test_intensity_of_a_class_takes_the_place_of_that_of_the_domain():
    calm = replace(fsmer.synthetic.domains.load_domain("lab"), head=0.0, noise=0.0, blink=0.0)
    weak, strong = UnitSet((12,), intensity=(0.1, 0.2)), UnitSet((12,), intensity=(1.2, 1.3))
    maps = unit_set_maps([weak, strong], np.repeat([0, 1], 60), domain=calm, normalisation="signed").maps
    assert abs(maps[60:, :2]).max(axis=(1, 2, 3)).mean() > 4 * abs(maps[:60, :2]).max(axis=(1, 2, 3)).mean()


def test_clips_of_asked_classes_carry_their_names_and_units(tmp_path):
    names = ("12", "6+12", "L14")
    few, many = (synthetic_clips("clinic", n, classes=names, seed=4, subjects=5) for n in (30, 270))
    assert few.classes == tuple(sorted(names))
    assert np.unique(few.codes(), return_counts=True)[1].tolist() == [10, 10, 10]
    np.testing.assert_array_equal(few.media(), many.media()[:30])
    assert few.table.equals(many.table.iloc[:30].reset_index(drop=True))
    for clip in many:
        assert set(unit_set(clip.label).units) <= set(au_numbers(clip.aus))
    assert ClipSet.load(few.save(tmp_path / "clips")).classes == few.classes


def test_frames_of_asked_classes_move_the_half_that_the_class_names():
    spec = InputSpec(kind="flow", size=(40, 48), channels=("u", "v"), normalisation="signed")
    clips = synthetic_clips("lab", 24, classes=("L12", "R12"), specs=[spec], seed=1)
    assert clips.classes == ("L12", "R12")
    mouth = np.abs(clips.media()[:, 1]).mean(axis=1)
    lean = mouth[:, 24:].mean(axis=1) / mouth[:, :24].mean(axis=1)
    assert np.median(lean[clips.labels == "L12"]) > 1.2 > 1 / 1.2 > np.median(lean[clips.labels == "R12"])


# ---- tasks


def test_tasks_of_a_seed_are_the_same_for_ever():
    assert digest(DrawnTasks().rows(0, 50)) == "be0e41caac73b755"
    assert (
        digest(DrawnTasks(family="novel", uneven=2, wrong_labels=0.2, pool=100, seed=7).rows(10, 50))
        == "f74395dbf366179b"
    )


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(0, 10**9),
    count=st.integers(1, 12),
    uneven=st.sampled_from([None, 1, 2]),
    wrong=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_task_is_the_same_in_any_batch(start: int, count: int, uneven: int | None, wrong: float, seed: int):
    tasks = small(uneven=uneven, wrong_labels=wrong, seed=seed)
    together = tasks.rows(start, count)
    for number in range(count):
        alone = tasks.rows(start + number, 1)
        for name in ROWS:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[number])


@pytest.mark.parametrize("pool", [12, None])
def test_media_are_the_same_in_any_batch_and_in_a_new_object(pool: int | None):
    one, other = (small(pool=pool, seed=3) for _ in range(2))
    batch, task = one.batch(4, 3), other.task(5)
    assert batch.support.shape == (3, 6, 3, 12, 12)
    assert batch.query.shape == (3, 9, 3, 12, 12)
    np.testing.assert_array_equal(batch.support[1], task.support[0])
    np.testing.assert_array_equal(batch.query[1], task.query[0])
    assert (batch.classes[1], batch.domains[1]) == (task.classes[0], task.domains[0])
    assert len(one.batch(9, 0)) == 0
    assert not np.array_equal(small(pool=pool, seed=4).task(5).query, task.query)


def test_a_task_has_one_domain_its_own_classes_and_no_clip_twice():
    tasks = small(seed=1)
    rows = tasks.rows(0, 300)
    codes, each = tasks.pool_codes, len(tasks.pool_codes) // 2
    for side in ("support", "query"):
        clips, labels = getattr(rows, side), getattr(rows, f"{side}_codes")
        assert (clips // each == rows.domains[:, None]).all()
        np.testing.assert_array_equal(codes[clips], np.take_along_axis(rows.classes, labels, axis=1))
        assert (np.sort(labels, axis=1) == np.repeat(np.arange(3), labels.shape[1] // 3)).all()
    together = np.sort(np.concatenate([rows.support, rows.query], axis=1), axis=1)
    assert (np.diff(together, axis=1) > 0).all()
    # Every class at every place, and both domains, about equally often.
    counts = np.stack([np.bincount(rows.classes[:, place], minlength=6) for place in range(3)])
    assert counts.min() > 25
    assert 100 < np.count_nonzero(rows.domains) < 200


def test_the_pool_is_that_of_the_tasks():
    tasks = small(seed=2)
    rows, batch = tasks.rows(0, 4), tasks.batch(0, 4)
    np.testing.assert_array_equal(tasks.pool_maps[rows.support], batch.support)
    assert batch.names[0] == tuple(tasks.sets[code].name for code in rows.classes[0])


def test_uneven_queries_follow_dirichlet_shares():
    keys = np.arange(1, 20001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    counts = uneven_counts(keys, 5, 75, 2)
    assert (counts.sum(axis=1) == 75).all()
    assert counts.min() >= 0
    shares = counts / 75
    # Of a Dirichlet distribution with five parameters of 2: mean 1/5, variance (1/5)(4/5)/11.
    np.testing.assert_allclose(shares.mean(axis=0), 0.2, atol=0.005)
    np.testing.assert_allclose(shares.var(axis=0), 0.16 / 11, rtol=0.05)


def test_uneven_tasks_and_the_uneven_protocol_ask_that_many():
    rows = small(uneven=2, pool=20).rows(0, 200)
    assert rows.query.shape == (200, 9)
    assert np.ptp(np.stack([np.bincount(one, minlength=3) for one in rows.query_codes]), axis=1).max() > 3
    clips = synthetic_clips("lab", 120, classes=("12", "15", "4"), size=8)
    episodes = fsmer.load_protocol("uneven", query=6, episodes=40).split(clips)
    sizes = {tuple(np.bincount(clips.codes()[one.query], minlength=3)) for one in episodes}
    assert {sum(one) for one in sizes} == {18}
    assert len(sizes) > 20
    for one in episodes:
        assert not set(one.support) & set(one.query)
        assert np.bincount(clips.codes()[one.support]).tolist() == [5, 5, 5]


def test_wrong_labels_are_a_share_of_the_support_alone():
    right, wrong = small(seed=5).rows(0, 2000), small(seed=5, wrong_labels=0.1).rows(0, 2000)
    np.testing.assert_array_equal(right.support, wrong.support)
    np.testing.assert_array_equal(right.query_codes, wrong.query_codes)
    assert 0.09 < np.mean(right.support_codes != wrong.support_codes) < 0.11


@pytest.mark.parametrize(
    ("options", "error", "fact"),
    [
        ({"classes": ("12", "15", "12")}, ProtocolError, "12 is named more than once"),
        ({"way": 7}, ProtocolError, "way=7.*6 base classes"),
        ({"classes": ("12", "1+14")}, ProtocolError, "1.14 is novel.*base"),
        ({"domains": ("feild",)}, UnknownNameError, "did you mean 'field'"),
        ({"domains": ()}, ProtocolError, "list_domains"),
        ({"family": "bass"}, UnknownNameError, "did you mean 'base'"),
        ({"family": "bass", "classes": None}, UnknownNameError, "did you mean 'base'"),
        ({"wrong_labels": 1.0}, ProtocolError, "wrong_labels=1.0"),
        ({"uneven": 0.5}, ProtocolError, "uneven=0.5"),
        ({"pool": 4}, ProtocolError, "pool=4.*at least 5"),
        ({"shot": 0}, ProtocolError, "shot=0"),
        ({"seed": -1}, ProtocolError, "seed=-1"),
        ({"size": 300}, DataError, "300"),
    ],
)
def test_impossible_tasks_are_refused_in_one_sentence(options: dict, error: type[FsmerError], fact: str):
    with pytest.raises(error, match=fact) as caught:
        small(**options).task(0)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_classes_are_told_apart_by_the_shipped_backbone_and_domains_differ():
    model = fsmer.load_model("facs-flow")
    tasks = DrawnTasks(way=5, shot=5, query=5, family="novel", domains=("lab",), pool=None, seed=1)
    batch = tasks.batch(0, 6)
    maps = np.concatenate([batch.support, batch.query], axis=1)
    clips = ClipSet.from_arrays(maps.reshape(-1, *maps.shape[2:]), None)
    found = fsmer.embed(model, clips).numpy()
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).reshape(len(batch), 50, -1)
    right = []
    for number in range(len(batch)):
        support, query = found[number, :25], found[number, 25:]
        means = np.stack([support[batch.support_codes[number] == code].mean(axis=0) for code in range(5)])
        distances = np.linalg.norm(query[:, None] - means, axis=2)
        right.append(np.mean(distances.argmin(axis=1) == batch.query_codes[number]))
    assert np.mean(right) > 0.5  # by chance: 0.2
    rough = {
        name: np.abs(
            np.diff(unit_set_maps(["12"], np.zeros(128), domain=name, normalisation="signed").maps[:, :2])
        ).mean()
        for name in ("kiosk", "infrared")
    }
    assert rough["kiosk"] > 1.3 * rough["infrared"]


# ---- protocols


def test_hashes_of_the_protocols_on_drawn_classes():
    assert {name: fsmer.load_protocol(name).hash for name in NEW_PROTOCOLS} == {
        "novel-units-5way": "4f2ab916566b7abb",
        "novel-units-3way": "fb85b9199d4f8763",
        "uneven-queries": "89517838d652856f",
        "new-camera": "adb213bd7b54acc6",
    }


def test_novel_protocols_have_classes_of_no_base_task_and_a_camera_of_no_training():
    for name in NEW_PROTOCOLS[:3]:
        (part,) = fsmer.load_protocol(name).synthetic
        assert {family_of(one) for one in part.classes()} == {"novel"}
    judged = {part.domain for name in NEW_PROTOCOLS for part in fsmer.load_protocol(name).synthetic}
    assert judged == {"kiosk", "infrared"}
    assert not judged & set(DrawnTasks().domains)


def test_what_trains_by_default_draws_no_clip_of_the_judging_cameras():
    from pathlib import Path

    folder = Path(fsmer.__file__).parent
    naming = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if any(f'"{name}"' in path.read_text(encoding="utf-8") for name in ("kiosk", "infrared"))
    }
    assert naming == {"synthetic/domains.py"}
    # Nothing may draw from every domain there is.
    drawing = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if "import DOMAINS" in path.read_text(encoding="utf-8")
    }
    assert not {one for one in drawing if one.startswith(("pretraining/", "training/", "meta/", "backbones/"))}


@pytest.mark.parametrize("shot", [1, 10])
def test_novel_protocols_run_by_name_with_other_supports(shot: int):
    protocol = fsmer.load_protocol("novel-units-5way", shot=shot, episodes=3)
    clips = protocol.make_clips(size=8)
    for episode in protocol.split(clips):
        assert len(episode.support) == 5 * shot
        assert len(episode.query) == 75
        assert {family_of(name) for name in episode.classes} == {"novel"}


def test_a_protocol_of_drawn_classes_survives_its_file(tmp_path):
    protocol = fsmer.load_protocol("uneven-queries")
    again = read_protocol(_written(tmp_path / "again.yaml", protocol.to_dict()))
    assert again.hash == protocol.hash
    assert again.synthetic == protocol.synthetic
    values = protocol.to_dict()
    values["data"][0]["synthetic"]["units"] = "novell"
    wrong = _written(tmp_path / "wrong.yaml", values)
    with pytest.raises(UnknownNameError, match="'novel'"):
        read_protocol(wrong)


def _written(path, values: dict):
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return path


@pytest.mark.parametrize(
    ("options", "fact"),
    [({"query": "rest"}, "query='rest'"), ({"shares": 0}, "shares=0"), ({"balance": "natural"}, "balance")],
)
def test_uneven_protocols_refuse_what_has_no_meaning(options: dict, fact: str):
    with pytest.raises(ProtocolError, match=fact):
        fsmer.load_protocol("uneven", **options)


# ---- classes of a clip set


def labelled(subjects: int = 12) -> ClipSet:
    return synthetic_clips("lab", 240, classes=[one.name for one in unit_sets("base")[:10]], size=8, subjects=subjects)


def test_classes_are_split_by_name_and_seed_whatever_the_order_of_rows():
    clips = labelled()
    sides = split_classes(clips, seed=3)
    assert [len(side.classes) for side in sides] == [6, 2, 2]
    assert sum(map(len, sides)) == len(clips)
    assert len({name for side in sides for name in side.classes}) == 10
    mixed = clips[np.random.default_rng(0).permutation(len(clips))]
    assert [side.classes for side in split_classes(mixed, seed=3)] == [side.classes for side in sides]
    assert {split_classes(clips, seed=seed).novel.classes for seed in range(6)} != {sides.novel.classes}


def test_people_are_on_one_side_where_that_is_asked_for():
    sides = split_classes(labelled(), people=True, base=0.5, validation=0.25)
    people = [{*side.subject_names} for side in sides]
    assert all(people)
    assert sum(map(len, people)) == len(set.union(*people))
    assert [len(side.classes) for side in sides] == [5, 3, 2]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"base": 0.9}, "novel side gets 0 of 10|validation"),
        ({"way": 5}, "validation side gets 2 of 10 classes, but 5"),
        ({"base": 0.8, "validation": 0.4}, "more than 1"),
        ({"base": -0.1}, "base=-0.1"),
        ({"base": ["A", "B"], "validation": ["B", "C"]}, "'.*' is asked for as base and as validation"),
        ({"base": ["A", "no such"]}, "no such"),
        ({"people": True, "subjects": 2}, "people"),
    ],
)
def test_splits_that_are_not_possible_are_refused_in_one_sentence(options: dict, fact: str):
    clips = labelled(options.pop("subjects", 12))
    names = dict(zip("ABC", clips.classes, strict=False))
    options = {
        key: [names.get(one, one) for one in value] if isinstance(value, list) else value
        for key, value in options.items()
    }
    with pytest.raises(FsmerError, match=fact):
        split_classes(clips, **options)


def test_tasks_from_clips_keep_classes_and_people_apart():
    clips = labelled(subjects=12)
    base = split_classes(clips, seed=3).base
    protocol = KShot(way=3, shot=2, query=2, episodes=30, subject_disjoint=True, class_subset=base.classes)
    episodes = protocol.split(clips)
    people = clips.subject_codes()
    for episode in episodes:
        assert set(episode.classes) <= set(base.classes)
        assert not set(people[episode.support]) & set(people[episode.query])


@pytest.mark.parametrize(("people", "fact"), [(1, "one subject"), (2, "subject")])
def test_a_class_of_too_few_people_is_named_in_one_sentence(people: int, fact: str):
    table = labelled(subjects=12).table
    name = table["label"].iloc[0]
    alone = np.flatnonzero(table["label"] == name)
    # With two people, one of them has a single clip: neither side can hold two of the class from a person of its own.
    table.loc[alone, "subject"] = "lab001"
    table.loc[alone[:1], "subject"] = f"lab00{people}"
    clips = ClipSet.from_table(table)
    protocol = KShot(way=10, shot=2, query=2, episodes=3, subject_disjoint=True)
    with pytest.raises(ProtocolError, match=fact) as caught:
        list(protocol.split(clips))
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)

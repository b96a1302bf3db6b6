"""Promises of the synthetic flow maps: deterministic, fast, and moving the way that FACS says."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fsmer
from fsmer.data.facs import ACTION_UNITS
from fsmer.errors import DataError, UnknownNameError
from fsmer.synthetic.clips import ACTION_UNIT_ORDER, EMOTION_ORDER, action_unit_maps, synthetic_clips, synthetic_maps
from fsmer.synthetic.domains import DOMAINS, list_domains, load_domain
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS, FIELDS, LANDMARKS


def test_every_action_unit_of_the_table_has_a_field_and_a_name():
    assert set(FIELDS) == set(ACTION_UNITS)
    for patterns in EMOTION_ACTION_UNITS.values():
        assert {unit for pattern in patterns for unit in pattern.units} <= set(FIELDS)


# Where (landmark, right half of the picture) a unit moves the face most, and which way: u outward, v down positive.
# After Ekman, Friesen & Hager 2002.
MOVEMENTS = [
    (1, "brow_inner", 0, -1),
    (2, "brow_outer", 0, -1),
    (4, "brow_inner", -1, 1),
    (5, "lid_upper", 0, -1),
    (6, "cheek", 0, -1),
    (7, "lid_lower", 0, -1),
    (9, "nose_side", 0, -1),
    (10, "lip_upper", 0, -1),
    (12, "mouth_corner", 1, -1),
    (13, "mouth_corner", 0, -1),
    (14, "mouth_corner", 1, 0),
    (15, "mouth_corner", 0, 1),
    (16, "lip_lower", 0, 1),
    (17, "chin", 0, -1),
    (18, "mouth_corner", -1, 0),
    (20, "mouth_corner", 1, 0),
    (24, "lip_lower", 0, -1),
    (25, "lip_lower", 0, 1),
    (26, "chin", 0, 1),
    (27, "chin", 0, 1),
    (28, "lip_upper", 0, 1),
    (43, "lid_upper", 0, 1),
    (45, "lid_upper", 0, 1),
]


@pytest.mark.parametrize(("unit", "landmark", "outward", "down"), MOVEMENTS)
def test_a_unit_moves_its_landmark_the_way_that_facs_says(unit: int, landmark: str, outward: int, down: int):
    size = 112
    u, v, _ = action_unit_maps(unit, size=size)
    x, y = (round((part + 0.5) * size) for part in LANDMARKS[landmark])
    for value, sign in ((u[y, x], outward), (v[y, x], down)):
        if sign:
            assert value * sign > 0.25
    reach = max(abs(u).max(), abs(v).max())
    assert np.hypot(u[y, x], v[y, x]) > 0.5 * reach


@pytest.mark.parametrize("unit", [unit for unit in ACTION_UNIT_ORDER if unit != 46])
def test_a_clean_unit_is_mirror_symmetric(unit: int):
    u, v, strain = action_unit_maps(unit)
    np.testing.assert_allclose(u, -u[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(v, v[:, ::-1], atol=1e-5)
    assert strain.max() > 0


def test_a_wink_closes_one_eye():
    _, v, _ = action_unit_maps(46)
    middle = v.shape[1] // 2
    assert abs(v[:, middle:]).max() > 10 * abs(v[:, :middle]).max()


def test_strain_is_that_of_the_formula():
    # A pure shear u = y has strain sqrt(1 / 2); a pure stretch u = x has strain 1.
    from fsmer.synthetic.flow_maps import optical_strain

    axis = np.arange(16) / 16
    shear = np.stack([np.tile(axis[:, None], (1, 16)), np.zeros((16, 16))])[None]
    stretch = np.stack([np.tile(axis[None, :], (16, 1)), np.zeros((16, 16))])[None]
    np.testing.assert_allclose(optical_strain(shear)[0, :-1, :-1], np.sqrt(0.5), rtol=1e-5)
    np.testing.assert_allclose(optical_strain(stretch)[0, :-1, :-1], 1.0, rtol=1e-5)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_same_seed_same_maps_and_clip_i_does_not_depend_on_how_many_are_asked_for(domain: str):
    few, many = synthetic_maps(40, domain=domain, seed=3), synthetic_maps(300, domain=domain, seed=3)
    np.testing.assert_array_equal(few.maps, many.maps[:40])
    np.testing.assert_array_equal(few.units, many.units[:40])
    later = synthetic_maps(44, domain=domain, seed=3, start=256)
    np.testing.assert_array_equal(later.maps, many.maps[256:])
    assert not np.array_equal(synthetic_maps(40, domain=domain, seed=4).maps, few.maps)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(0, 40),
    size=st.integers(8, 48),
    domain=st.sampled_from(sorted(DOMAINS)),
    normalisation=st.sampled_from(["minmax", "signed"]),
)
def test_maps_are_finite_of_the_size_asked_for_and_scaled_as_promised(
    n: int, size: int, domain: str, normalisation: str
):
    drawn = synthetic_maps(n, domain=domain, seed=1, size=size, normalisation=normalisation)
    assert drawn.maps.shape == (n, 3, size, size)
    assert drawn.maps.dtype == np.float32
    assert np.isfinite(drawn.maps).all()
    assert len(drawn.units) == len(drawn.emotions) == n
    if n and normalisation == "minmax":
        np.testing.assert_allclose(drawn.maps.min(axis=(2, 3)), 0, atol=1e-6)
        np.testing.assert_allclose(drawn.maps.max(axis=(2, 3)), 1, atol=1e-6)


def test_signed_maps_keep_sign_and_stay_in_the_range_of_micro_expressions():
    maps = synthetic_maps(512, domain="lab", seed=2, normalisation="signed").maps
    largest = np.abs(maps[:, :2]).max(axis=(1, 2, 3))
    assert (maps[:, 1] < 0).any()
    assert (maps[:, 1] > 0).any()
    # In thousandths of the face width: 0.5 to 4 pixels at 224 are 2 to 18.
    assert 2 < np.median(largest) < 25


def test_the_largest_size_works():
    assert synthetic_maps(2, size=224).maps.shape == (2, 3, 224, 224)


def test_classes_are_balanced_and_units_are_those_of_the_emotion():
    clips = synthetic_clips("lab", 1500, seed=0)
    counts = clips.table["label"].value_counts()
    assert set(counts.index) == {"negative", "positive", "surprise"}
    assert counts.min() > 0.28 * 1500
    happy = clips.select("emotion == 'happiness'").table["aus"].str.split("+")
    assert happy.map(lambda units: bool({"6", "12", "13"} & set(units))).all()


def test_domains_differ_in_label_scheme_and_look():
    assert {"broad", "clinic", "field", "lab", "lab-five"} <= set(list_domains())
    assert synthetic_clips("lab-five", 200).classes == ("disgust", "happiness", "others", "repression", "surprise")
    roughness = {
        name: np.abs(np.diff(synthetic_maps(256, domain=name, normalisation="signed").maps[:, :2], axis=-1)).mean()
        for name in ("lab", "field")
    }
    assert roughness["field"] > 1.3 * roughness["lab"]


def test_clip_set_says_what_its_media_is_and_which_units_moved():
    clips = synthetic_clips("clinic", 30, seed=5, size=32, normalisation="signed", subjects=6)
    assert clips.specs["flow"].size == (32, 32)
    assert clips.specs["flow"].normalisation == "signed"
    assert clips.table["subject"].nunique() == 6
    assert all(fsmer.parse_aus(clip.aus).units for clip in clips)


@pytest.mark.parametrize(
    "options",
    [{"n": -1}, {"n": 5, "size": 4}, {"n": 5, "size": 300}, {"n": 5, "start": 7}, {"n": 5, "normalisation": "z"}],
)
def test_requests_out_of_range_are_refused_in_one_sentence(options: dict):
    with pytest.raises(DataError, match=r"must be|expected"):
        synthetic_maps(**options)


def test_an_unknown_domain_or_unit_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="'clinic'"):
        synthetic_maps(3, domain="clinik")
    with pytest.raises(UnknownNameError, match="12"):
        action_unit_maps(3)


def test_a_thousand_maps_a_second_on_one_core():
    synthetic_maps(256)
    started = time.process_time()
    synthetic_maps(1024, seed=8)
    # Processor time of all threads together, so that other work on the machine does not count.
    assert 1024 / (time.process_time() - started) > 1000


def test_every_emotion_is_in_the_order_that_labels_point_into():
    emotions = synthetic_maps(2000, domain="broad", seed=1).emotions
    names = {EMOTION_ORDER[index] for index in emotions}
    assert names == set(DOMAINS["broad"].labels)


@pytest.mark.parametrize(
    ("field", "still"),
    [
        ("head", 0.0),
        ("blink", 0.0),
        ("noise", 0.0),
        ("asymmetry", 0.0),
        ("geometry", 0.0),
        ("variety", 0.0),
        ("crop_angle", 0.0),
        ("crop_shift", (0.0, 0.0)),
        ("smoothness", (0.2, 0.2)),
    ],
)
def test_everything_that_is_not_expression_changes_the_maps_and_not_the_labels(field: str, still: Any) -> None:
    domain = load_domain("broad")
    drawn, changed = (synthetic_maps(64, domain=place, seed=5) for place in (domain, replace(domain, **{field: still})))
    np.testing.assert_array_equal(drawn.emotions, changed.emotions)
    moved = np.abs(drawn.maps - changed.maps).mean(axis=(1, 2, 3)) > 1e-3
    # A blink is in some of the clips only.
    assert moved.mean() > (0.05 if field == "blink" else 0.8)
    if field != "blink":  # blinks are action unit 45
        np.testing.assert_array_equal(drawn.units, changed.units)

"""Flow is the movement that was made, strain is its strain, and the maps are what the specs say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fsmer.data import InputSpec
from fsmer.errors import MediaError, SpecMismatchError, UnknownNameError
from fsmer.preprocess.flow import (
    TVL1,
    flow_map,
    head_motion,
    list_flow_methods,
    load_flow_method,
    optical_flow,
    optical_strain,
    remove_head_motion,
    resize_area,
)
from fsmer.synthetic import flow_maps as synthetic_flow

SIDE = 96


def texture(seed: int = 0, side: int = SIDE) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moved(picture: np.ndarray, field: np.ndarray) -> np.ndarray:
    """`picture` after a small smooth movement given on the grid of the result."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    return cv2.remap(picture, columns - field[0], rows - field[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def bump(u: float, v: float) -> np.ndarray:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    profile = np.exp(-0.5 * ((columns - 60) ** 2 + (rows - 40) ** 2) / 14**2)
    return np.stack([u * profile, v * profile]).astype(np.float32)


INSIDE = (slice(None), slice(12, -12), slice(12, -12))


@pytest.mark.parametrize("method", list_flow_methods())
def test_every_method_finds_a_bump_of_a_pixel_with_its_sign(method: str) -> None:
    field = bump(1.2, -0.8)
    flow = optical_flow(texture(), moved(texture(), field), method)
    assert flow.shape == (2, SIDE, SIDE)
    assert flow.dtype == np.float32
    error = np.hypot(*(flow - field))[INSIDE[1:]].mean()
    assert error < 0.12
    assert error < 0.6 * np.hypot(*field)[INSIDE[1:]].mean()
    assert flow[0, 40, 60] > 0.6
    assert flow[1, 40, 60] < -0.4


@pytest.mark.parametrize("method", list_flow_methods())
def test_flow_is_the_same_every_time_and_colour_is_read_as_grey(method: str) -> None:
    one, two = texture(), moved(texture(), bump(0.7, 0.7))
    flow = optical_flow(one, two, method)
    np.testing.assert_array_equal(flow, optical_flow(np.dstack([one] * 3), two[..., None], method))


def test_methods_are_chosen_by_name_and_parameters() -> None:
    assert list_flow_methods() == ["dis", "farneback", "tvl1"]
    assert load_flow_method("tvl1", {"warps": 3}) == TVL1(warps=3)
    with pytest.raises(UnknownNameError, match="'farneback'"):
        load_flow_method("farnebeck")
    with pytest.raises(UnknownNameError, match=r"'winsiz' .*'farneback'.*'winsize'"):
        load_flow_method("farneback", {"winsiz": 3})


def test_a_drawn_faces_flow_is_found_within_half_of_the_movement() -> None:
    from fsmer.synthetic.recordings import synthetic_videos
    from fsmer.synthetic.scene import Camera

    (video,) = synthetic_videos(1, seed=3, size=128, frames=5, units=[12], camera=Camera.perfect(), amplify=1.5)
    flow = optical_flow(video.frames[video.onset], video.frames[video.apex], "dis")
    moving = video.moving
    assert np.hypot(*(flow - video.flow))[moving].mean() < 0.4 * np.hypot(*video.flow)[moving].mean()


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MediaError, match=r"96x96.*50x96"):
        optical_flow(texture(), texture()[:50])
    with pytest.raises(MediaError, match="16x16"):
        optical_flow(texture()[:8], texture()[:8])


# -- head motion ------------------------------------------------------------------------------------------------------


def affine(size: tuple[int, int], matrix: np.ndarray) -> np.ndarray:
    height, width = size
    field = np.empty((2, height, width), np.float32)
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5) / width - 0.5, (row + 0.5 - height / 2) / width
            field[:, row, column] = matrix @ (x, y, 1)
    return field


MATRIX = np.array([[0.8, -0.6, 1.5], [0.7, 0.3, -2.0]])


@pytest.mark.parametrize("size", [(96, 96), (60, 96)])
def test_an_affine_head_motion_is_found_and_removed(size: tuple[int, int]) -> None:
    field = affine(size, MATRIX)
    np.testing.assert_allclose(head_motion(field).matrix, MATRIX, atol=1e-4)
    assert np.abs(remove_head_motion(field)).max() < 1e-3


def test_a_moving_third_of_the_face_does_not_sway_the_head() -> None:
    field = affine((96, 96), MATRIX)
    field[:, 60:, 10:80] += 3.0
    noise = 0.05 * np.random.default_rng(0).standard_normal(field.shape)
    motion = head_motion((field + noise).astype(np.float32))
    np.testing.assert_allclose(motion.matrix, MATRIX, atol=0.06)
    assert 0.3 < motion.inliers < 0.8
    left = remove_head_motion(field)
    assert left[:, 70:90, 20:70].mean() == pytest.approx(3.0, abs=0.1)
    assert np.abs(left[:, :50]).mean() < 0.05


def test_what_has_no_weight_has_no_say_in_the_heads_motion() -> None:
    field = affine((96, 96), MATRIX)
    field[:, :70] = 9.0
    weight = np.zeros((96, 96))
    weight[70:] = 1
    np.testing.assert_allclose(head_motion(field, weight).matrix, MATRIX, atol=1e-3)


def test_a_still_field_has_no_head_motion() -> None:
    assert not remove_head_motion(np.zeros((2, 40, 40), np.float32)).any()


# -- strain and maps --------------------------------------------------------------------------------------------------


def test_strain_by_plain_loops() -> None:
    flow = np.random.default_rng(1).standard_normal((2, 7, 9)).astype(np.float32)
    expected = np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            right, down = min(x + 1, 8), min(y + 1, 6)
            ux, vx = (9 * (flow[c, y, right] - flow[c, y, x]) for c in (0, 1))
            uy, vy = (9 * (flow[c, down, x] - flow[c, y, x]) for c in (0, 1))
            expected[y, x] = (ux**2 + vy**2 + 0.5 * (uy + vx) ** 2) ** 0.5
    np.testing.assert_allclose(optical_strain(flow), expected, rtol=1e-5)
    assert (optical_strain(flow, shear=0.25) <= optical_strain(flow) + 1e-6).all()


def test_strain_is_that_of_the_synthetic_maps() -> None:
    flow = np.random.default_rng(2).standard_normal((2, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(optical_strain(flow), synthetic_flow.optical_strain(flow[None])[0], rtol=1e-5)


def test_signed_maps_are_thousandths_of_the_crop_width() -> None:
    flow = np.stack([np.full((112, 112), 1.12), np.full((112, 112), -2.24)]).astype(np.float32)
    flow[:, :56] = 0
    spec = InputSpec(size=(28, 28), channels=("v", "u"), normalisation="signed")
    maps = flow_map(flow, spec)
    assert maps.shape == spec.shape
    np.testing.assert_allclose(maps[:, :14], 0, atol=1e-6)
    np.testing.assert_allclose(maps[0, 14:], -20, rtol=1e-5)
    np.testing.assert_allclose(maps[1, 14:], 10, rtol=1e-5)


def test_minmax_maps_fill_zero_to_one_by_channel_and_resizing_averages() -> None:
    flow = np.random.default_rng(3).standard_normal((2, 56, 56)).astype(np.float32)
    maps = flow_map(flow, InputSpec())
    np.testing.assert_allclose(maps.min(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(maps.max(axis=(1, 2)), 1, atol=1e-6)
    blocks = flow.reshape(2, 28, 2, 28, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(resize_area(flow, (28, 28)), blocks, atol=1e-6)
    low, high = blocks.min(axis=(1, 2), keepdims=True), blocks.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(maps[:2], (blocks - low) / (high - low), atol=1e-5)


def test_head_motion_leaves_the_map_on_request_only() -> None:
    flow = affine((96, 96), MATRIX) + bump(2, 2)
    spec = InputSpec(channels=("u", "v"), normalisation="signed")
    kept, left = flow_map(flow, spec), flow_map(flow, spec, remove_head=True)
    assert np.abs(left[:, -4:]).max() < 2
    assert np.abs(kept[:, -4:]).max() > 10


def test_maps_of_another_kind_are_refused() -> None:
    flow = np.zeros((2, 32, 32), np.float32)
    with pytest.raises(SpecMismatchError, match="channels u, v, strain"):
        flow_map(flow, InputSpec(channels=("u", "magnitude")))
    with pytest.raises(SpecMismatchError, match="'signed' or"):
        flow_map(flow, InputSpec(normalisation="unit"))


@pytest.mark.slow
def test_the_side_by_side_tables_put_the_methods_above_no_movement(monkeypatch, repository, capsys) -> None:
    monkeypatch.syspath_prepend(str(repository))
    from benchmarks import preprocess as tables

    rows = tables.flow_errors(2)
    for name in list_flow_methods():
        assert rows[name]["moving"] < 0.7 * rows["(no movement)"]["moving"]
    assert tables.main(["apex", "--videos", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("difference", "flow", "middle"))

"""Clips with estimated flow: the same for a seed, near the true flow, kept as bytes, mirrored rightly when taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError
from fsmer.pretraining.estimated_maps import FIRST_SEED, EstimationPlan, MapPool, estimated_maps
from fsmer.synthetic.clips import EMOTION_ORDER, SyntheticMaps
from fsmer.synthetic.domains import THREE_CLASSES
from fsmer.synthetic.frame_clips import synthetic_frame_clips

BLOCK = 40
# At 112 pixels most of a movement is found; smaller crops lose it.
PLAN = EstimationPlan(BLOCK, "lab", block=BLOCK)


@pytest.fixture(scope="module")
def block() -> SyntheticMaps:
    return estimated_maps(2, plan=PLAN, seed=1)


def test_a_block_is_scaled_labelled_and_varied(block: SyntheticMaps):
    assert block.maps.shape == (BLOCK, 3, 28, 28)
    np.testing.assert_allclose(block.maps.min(axis=(2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(block.maps.max(axis=(2, 3)), 1, atol=1e-6)
    assert block.units.shape == (BLOCK, len(ACTION_UNIT_ORDER))
    assert block.units.any(axis=1).all()
    assert {EMOTION_ORDER[code] for code in block.emotions} <= set(THREE_CLASSES)
    other = estimated_maps(3, plan=PLAN, seed=1)
    assert not np.array_equal(block.units, other.units)
    assert np.abs(block.maps - other.maps).mean() > 0.02


def test_the_maps_show_the_true_movement_with_an_estimators_errors(block: SyntheticMaps):
    spec = InputSpec(kind="flow", size=(28, 28), channels=("u", "v", "strain"), normalisation="minmax")
    true = synthetic_frame_clips("lab", BLOCK, seed=FIRST_SEED + 1_000_003 + 2, specs=[spec], subjects=4)
    exact = true.read("flow", np.arange(BLOCK))

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (one - one.mean(axis=(1, 2), keepdims=True) for one in (a, b))
        return (a * b).sum(axis=(1, 2)) / np.sqrt((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2)))

    for channel in (0, 1):
        found = alike(block.maps[:, channel], exact[:, channel])
        shuffled = alike(block.maps[:, channel], np.roll(exact[:, channel], 1, axis=0))
        assert np.median(found) > 0.4
        assert np.median(found) > np.median(shuffled) + 0.3
    assert np.abs(block.maps - exact).mean() > 0.01


def test_blocks_are_the_same_in_any_process_and_are_drawn_once(block: SyntheticMaps, tmp_path: Path):
    asked = EstimationPlan(3 * BLOCK, "lab", block=BLOCK)
    seen: list[tuple[int, int]] = []
    pool = MapPool(tmp_path, asked, 1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(BLOCK, 3 * BLOCK), (2 * BLOCK, 3 * BLOCK), (3 * BLOCK, 3 * BLOCK)]
    # Workers drew it with eight bits a value.
    np.testing.assert_allclose(pool.maps[2 * BLOCK :] / 255, block.maps, atol=0.51 / 255)
    np.testing.assert_array_equal(pool.units[2 * BLOCK :], block.units)
    next(pool.folder.glob("00001-*.npz")).unlink()
    seen.clear()
    again = MapPool(tmp_path, asked, 1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3 * BLOCK, 3 * BLOCK)]
    np.testing.assert_array_equal(again.maps, pool.maps)
    path = next(pool.folder.glob("00002-*.npz"))
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:]):
        path.write_bytes(damaged)
        seen.clear()
        mended = MapPool(tmp_path, asked, 1, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(3 * BLOCK, 3 * BLOCK)]
        np.testing.assert_array_equal(mended.maps, pool.maps)
        assert path.read_bytes() == whole
    again.remove()
    assert not again.folder.exists()


def test_taken_clips_are_those_of_the_pool_half_of_them_mirrored(block: SyntheticMaps, tmp_path: Path):
    pool = MapPool(tmp_path, PLAN, 0)
    taken = pool.take(200, np.random.default_rng(0))
    held = pool.maps.astype(np.float32) / 255
    turned = held[..., ::-1].copy()
    turned[:, 0] = 1 - turned[:, 0]
    both = np.concatenate([held, turned]).reshape(2 * BLOCK, -1)
    distance = np.abs(taken.maps.reshape(200, 1, -1) - both[None]).max(axis=2)
    which = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-6
    np.testing.assert_array_equal(taken.units, pool.units[which % BLOCK])
    np.testing.assert_array_equal(taken.emotions, pool.emotions[which % BLOCK])
    assert 0.35 < (which >= BLOCK).mean() < 0.65
    same = pool.take(200, np.random.default_rng(0))
    np.testing.assert_array_equal(same.maps, taken.maps)


@pytest.mark.parametrize("count", [0, -40, 250])
def test_a_number_of_clips_that_fills_no_blocks_is_refused(count: int):
    with pytest.raises(FsmerError, match="at least one" if count < 1 else "multiple"):
        EstimationPlan(count)

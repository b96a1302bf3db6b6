"""Whatever kind of array the same numbers come in, the answer is the same, or one sentence says why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.arrays import plain_array
from fsmer.data import as_clips, read_frame
from fsmer.errors import DataError, FsmerError

TINY = TinyBackbone()
CLIPS = fsmer.synthetic_clips("lab", 12, seed=4)
# Multiples of 1/64, which every type of 8 or more bits of mantissa holds.
MAPS = np.round(CLIPS.media("flow") * 64) / np.float32(64)


def tensor() -> torch.Tensor:
    return torch.from_numpy(MAPS.copy())


class Kept(torch.Tensor):
    """A kind of tensor of somebody's own."""


SAME: dict[str, Callable[[], Any]] = {
    "with a gradient": lambda: tensor().requires_grad_(),
    "after a step of autograd": lambda: tensor().requires_grad_() * 1,
    "a parameter": lambda: torch.nn.Parameter(tensor()),
    "bfloat16": lambda: tensor().bfloat16(),
    "float16": lambda: tensor().half(),
    "float64": lambda: tensor().double(),
    "sparse": lambda: tensor().to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(tensor(), 1 / 64, 0, torch.qint8),
    "with named axes, where torch has them": lambda: (
        tensor().rename("clip", "channel", "row", "column") if hasattr(torch.Tensor, "rename") else tensor()
    ),
    "a subclass": lambda: tensor().as_subclass(Kept),
    "an inference tensor": lambda: inference_tensor(),
    "not contiguous": lambda: tensor().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "a list of tensors": lambda: list(tensor().requires_grad_()),
    "a list of lists": lambda: MAPS.tolist(),
    "a list of arrays": lambda: list(MAPS),
    "masked, without a masked value": lambda: np.ma.masked_array(MAPS),
    "big-endian": lambda: MAPS.astype(">f4"),
    "big-endian doubles": lambda: MAPS.astype(">f8"),
    "objects": lambda: MAPS.astype(object),
    "backwards in memory": lambda: MAPS[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "a view of bytes": lambda: memoryview(MAPS),
    "long doubles": lambda: MAPS.astype(np.longdouble),
    "read-only": lambda: read_only(),
}
REFUSED: dict[str, Callable[[], Any]] = {
    "complex": lambda: tensor().to(torch.complex64),
    "complex in NumPy": lambda: MAPS.astype(complex),
    "on meta": lambda: tensor().to("meta"),
    "masked": lambda: np.ma.masked_array(MAPS, mask=MAPS > 0.9),
    "nested": lambda: torch.nested.nested_tensor([tensor()[0], tensor()[0]]),
    "words": lambda: np.full(MAPS.shape, "x"),
    "dates": lambda: np.full(MAPS.shape, np.datetime64("2020-01-01")),
    "ragged": lambda: [MAPS[0].tolist(), [1.0]],
    "huge numbers": lambda: [[[[10**400]]]],
    "nothing": lambda: None,
    "a generator": lambda: iter(MAPS),
    "a table": lambda: pd.DataFrame({"a": [1.0]}),
    "text": lambda: "flow",
    "records": lambda: np.zeros(3, dtype=[("a", "f4")]),
    "infinite in float32": lambda: MAPS.astype(np.float64) * 1e300,
}


def inference_tensor() -> torch.Tensor:
    with torch.inference_mode():
        return tensor()


def read_only() -> np.ndarray:
    array = MAPS.copy()
    array.flags.writeable = False
    return array


LABELS = [str(label) for label in CLIPS.labels]
NAMES = [str(name) for name in CLIPS.ids]
RECOGNIZER = fsmer.adapt(TINY, (MAPS, LABELS))
DOORS: dict[str, Callable[[Any], Any]] = {
    "embed": lambda maps: fsmer.embed(TINY, maps).numpy(),
    "predict": lambda maps: RECOGNIZER.predict_proba(maps),
    "adapt": lambda maps: fsmer.adapt(TINY, (maps, LABELS)).predict_proba(MAPS),
    "update": lambda maps: RECOGNIZER.update((maps, LABELS)).predict_proba(MAPS),
    "explain": lambda maps: RECOGNIZER.explain(maps, steps=1)[3].probabilities,
    "clip set": lambda maps: fsmer.ClipSet.from_arrays(maps, LABELS).media("flow"),
    "as clips": lambda maps: as_clips(maps).media("flow"),
    "as labelled clips": lambda maps: as_clips((maps, LABELS)).media("flow"),
    "single clips": lambda maps: np.stack([fsmer.Clip("a", media={"flow": one}).flow for one in each(maps)]),
    "a column of maps": lambda maps: read_frame(pd.DataFrame({"clip": NAMES, "file": each(maps)})).media("flow"),
}


# Doors for one map at a time.
SINGLE = ("single clips", "a column of maps")


def each(maps: Any) -> list[Any]:
    """Single maps in the kind that all of them have, where it can be taken apart."""
    if isinstance(maps, memoryview):
        maps = np.asarray(maps)
    # Lists are a kind of arrays to all doors but a column of a table, in which each cell is one.
    return [np.asarray(one) if isinstance(one, list) else one for one in maps]


@pytest.mark.parametrize("door", DOORS)
def test_the_same_numbers_get_the_same_answer_in_every_kind_of_array(door: str):
    ask = DOORS[door]
    expected = ask(MAPS)
    assert np.isfinite(expected).all()
    for name, make in SAME.items():
        assert np.array_equal(ask(make()), expected), name


@pytest.mark.parametrize("door", [door for door in DOORS if door not in SINGLE])
def test_what_is_no_array_of_real_numbers_is_refused_in_one_sentence(door: str):
    for name, make in REFUSED.items():
        with pytest.raises(FsmerError) as refused:
            DOORS[door](make())
        assert "\n" not in str(refused.value), name


@pytest.mark.parametrize("name", ["complex", "complex in NumPy", "on meta", "masked", "words", "dates"])
def test_a_single_map_of_no_real_numbers_is_refused_in_one_sentence(name: str):
    wrong = REFUSED[name]()[0]
    table = pd.DataFrame({"clip": ["a"], "file": pd.Series([wrong], dtype=object)})
    for door in (lambda: fsmer.Clip("a", media={"flow": wrong}), lambda: read_frame(table)):
        with pytest.raises(DataError) as refused:
            door()
        assert "\n" not in str(refused.value)


def test_samples_to_compare_may_be_tensors():
    first, second = torch.rand(6, 4), torch.rand(5, 4)
    expected = fsmer.mmd(first.numpy(), second.numpy(), permutations=10)
    assert fsmer.mmd(first.requires_grad_(), second.to_sparse(), permutations=10) == expected
    assert fsmer.mmd(pd.DataFrame(first.detach().numpy()), list(second), permutations=10) == expected
    for wrong in (first.to(torch.complex64), first.to("meta"), [["a"]]):
        with pytest.raises(DataError):
            fsmer.mmd(wrong, second)


def test_labels_may_be_tensors():
    codes = torch.tensor([index % 2 for index in range(len(MAPS))])
    assert fsmer.adapt(TINY, (MAPS, codes)).classes_.tolist() == ["0", "1"]
    recognizer = fsmer.adapt(TINY, (MAPS, codes.double().requires_grad_().long()))
    assert recognizer.score(MAPS, codes) == recognizer.score(MAPS, codes.numpy())


def test_what_is_a_plain_array_is_not_copied():
    assert plain_array(MAPS) is MAPS
    assert np.shares_memory(plain_array(torch.from_numpy(MAPS)), MAPS)


def test_a_network_in_another_precision_embeds_adapts_and_trains():
    expected = fsmer.embed(TINY, MAPS)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        backbone = TinyBackbone(knows=("negative", "positive")).to(dtype)
        found = fsmer.embed(backbone, MAPS)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        for params in ({}, {"train_backbone": True, "steps": 2}):
            assert np.isfinite(fsmer.adapt(backbone, CLIPS, **params).predict_proba(CLIPS)).all()


def test_a_number_of_clips_a_batch_that_is_none_is_refused():
    for size in (0, -1, 2.5):
        with pytest.raises(DataError, match="batch_size"):
            fsmer.embed(TINY, MAPS, batch_size=size)

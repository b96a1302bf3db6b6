"""Kinds of media from outside: clips hold them, backbones expect them, and plugins may make them from frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import fsmer
from fsmer.data import register_input_kind
from fsmer.errors import MediaError, PluginError, SpecMismatchError, UnknownNameError
from fsmer.plugins import INPUT_KINDS
from fsmer.preprocess import PreprocessRecipe, media_from_frames

DEPTH = fsmer.InputSpec("depth", (16, 16), ("near",), "signed")
WHOLE = PreprocessRecipe(detector="cropped")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    before = set(INPUT_KINDS)
    yield
    INPUT_KINDS._forget(set(INPUT_KINDS) - before)


def nearest(frames: NDArray[np.uint8], spec: fsmer.InputSpec, apex: int | None) -> NDArray[Any]:
    """Brightness of the frame that is asked about, at the size of the spec."""
    chosen = frames[-1 if apex is None else apex].mean(axis=2)
    rows, columns = (
        np.linspace(0, side - 1, wanted).astype(int) for side, wanted in zip(chosen.shape, spec.size, strict=True)
    )
    return chosen[np.ix_(rows, columns)][None]


def recording() -> NDArray[np.uint8]:
    """Six pictures, each brighter than the one before."""
    ramp = np.arange(48, dtype=np.uint8)[None, :, None] + np.zeros((48, 48, 3), np.uint8)
    return np.stack([ramp + np.uint8(10 * number) for number in range(6)])


def test_clips_with_media_of_a_registered_kind_are_saved_read_embedded_and_evaluated(tmp_path: Path) -> None:
    register_input_kind("depth", channels=["near", "far"])
    labels = list("abc") * 8
    maps = np.random.default_rng(0).normal(size=(24, 1, 16, 16)).astype(np.float32)
    for number, label in enumerate(labels):
        maps[number, 0, 4 * "abc".index(label)] += 20
    clips = fsmer.ClipSet.from_arrays({"depth": maps}, labels, spec=DEPTH, subjects=[f"s{n % 8}" for n in range(24)])
    clips.save(tmp_path / "clips")
    read = fsmer.read_clips(tmp_path / "clips")
    assert read.specs["depth"] == DEPTH
    backbone = fsmer.wrap(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), DEPTH)
    assert fsmer.embed(backbone, read).shape == (24, 16)
    report = fsmer.evaluate(fsmer.load_protocol("kshot", way=3, shot=1, episodes=4), backbone, clips=read)
    assert report.uf1 > 0.9
    (found,) = fsmer.explain(fsmer.adapt(backbone, read), read[:1], out=tmp_path / "pictures")
    assert [values.shape for values in found.maps.values()] == [(16, 16)]
    with pytest.raises(SpecMismatchError, match=r"'depth'.*from frames.*make="):
        media_from_frames(recording(), DEPTH, recipe=WHOLE)


def test_a_kind_with_a_function_is_made_from_the_frames_between_onset_and_offset() -> None:
    register_input_kind("depth", channels=["near"], make=nearest)
    found = media_from_frames(recording(), DEPTH, onset=1, offset=4, recipe=WHOLE)["depth"]
    assert found.shape == DEPTH.shape
    assert found.dtype == np.float32
    assert found.min() == 40
    register_input_kind("depth", channels=["near"], needs_apex=True, make=nearest)
    assert media_from_frames(recording(), DEPTH, onset=1, apex=3, recipe=WHOLE)["depth"].min() == 30
    clips = fsmer.clips_from_frames([recording()] * 2, ["a", "b"], specs=DEPTH, apexes=[3, 4], recipe=WHOLE)
    assert clips.read("depth").min(axis=(1, 2, 3)).tolist() == [30, 40]


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda frames, spec, apex: frames[0], r"depth.*\(48, 48, 3\).*\(1, 16, 16\)"),
        (lambda frames, spec, apex: np.full(spec.shape, np.nan), "depth.*finite"),
        (lambda frames, spec, apex: frames["near"], "depth.*IndexError"),
    ],
)
def test_a_function_that_makes_something_else_is_named_in_one_sentence(make: Any, facts: str) -> None:
    register_input_kind("depth", make=make)
    with pytest.raises(MediaError, match=facts):
        media_from_frames(recording(), DEPTH, recipe=WHOLE)


def test_a_spec_that_the_kind_does_not_have_is_refused() -> None:
    register_input_kind("depth", channels=["far"], make=nearest)
    with pytest.raises(SpecMismatchError, match=r"near.*'depth'.*far"):
        media_from_frames(recording(), DEPTH, recipe=WHOLE)


def test_names_that_are_taken_or_unknown_are_refused() -> None:
    with pytest.raises(PluginError, match="'flow'"):
        register_input_kind("flow")
    with pytest.raises(ValueError, match="plain word"):
        register_input_kind("depth map")
    register_input_kind("depth", make=nearest)
    with pytest.raises(UnknownNameError, match=r"'dept'.*'depth'"):
        media_from_frames(recording(), fsmer.InputSpec("dept", (16, 16)), recipe=WHOLE)
    assert INPUT_KINDS.origin("depth") == __name__
    assert INPUT_KINDS.origin("flow") == "fsmer"

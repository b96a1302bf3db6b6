"""Kinds of media from outside: clips hold them, backbones expect them, and plugins may make them from frames."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch import nn

import fsmer
from fsmer.data import register_input_kind
from fsmer.errors import DataError, MediaError, PluginError, SpecMismatchError, UnknownNameError
from fsmer.plugins import INPUT_KINDS, import_plugin
from fsmer.preprocess import PreprocessRecipe, media_from_frames
from fsmer.preprocess.prepare import prepare

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
    INPUT_KINDS._forget({"depth"})
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


def test_a_kind_that_is_described_wrongly_is_refused() -> None:
    for wrong in ({"channels": "near"}, {"make": 3}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            register_input_kind("depth", **wrong)
    with pytest.raises(DataError, match="plain word"):
        register_input_kind(nearest)  # type: ignore[arg-type]


@pytest.mark.parametrize("lazy", [False, True])
def test_numbers_that_are_not_finite_are_named_with_kind_and_clip(lazy: bool) -> None:
    register_input_kind("depth", make=lambda frames, spec, apex: np.full(spec.shape, np.nan))
    with pytest.raises(MediaError, match=r"mine-0.*depth.*not finite"):
        fsmer.clips_from_frames([recording()] * 2, ["a", "b"], specs=DEPTH, recipe=WHOLE, lazy=lazy).read("depth")


def two_folders(root: Path) -> pd.DataFrame:
    for name in ("one", "two"):
        (root / name).mkdir()
        for number, image in enumerate(recording()):
            cv2.imwrite(str(root / name / f"{number:03d}.png"), image)
    return pd.DataFrame({"path": ["one", "two"], "subject": ["1", "2"], "label": ["a", "b"], "onset": 0, "offset": 5})


@pytest.mark.slow
def test_workers_of_prepare_know_kinds_of_this_process_and_of_imported_files(tmp_path: Path) -> None:
    register_input_kind("depth", make=lambda frames, spec, apex: np.linspace(0, 0.5, 256).reshape(spec.shape))
    (tmp_path / "medium.py").write_text(
        "import numpy as np\nfrom fsmer.data import register_input_kind\n"
        "register_input_kind('filed', make=lambda frames, spec, apex: np.linspace(0, 1, 256).reshape(spec.shape))\n"
    )
    import_plugin(tmp_path / "medium.py")
    specs = [replace(DEPTH, kind=kind) for kind in ("depth", "filed")]
    made = prepare(two_folders(tmp_path), tmp_path, tmp_path / "out", specs=specs, recipe=WHOLE, workers=2)
    assert [made.clips.read(kind).mean() for kind in ("depth", "filed")] == pytest.approx([0.25, 0.5], abs=0.01)


def test_a_kind_that_cannot_be_sent_to_workers_is_made_here_with_a_warning(tmp_path: Path) -> None:
    lock = threading.Lock()

    def make(frames: Any, spec: fsmer.InputSpec, apex: int | None) -> Any:
        with lock:
            return np.linspace(0, 0.5, 256).reshape(spec.shape)

    register_input_kind("depth", make=make)
    with pytest.warns(UserWarning, match=r"'depth'.*this process"):
        made = prepare(two_folders(tmp_path), tmp_path, tmp_path / "out", specs=DEPTH, recipe=WHOLE, workers=2)
    assert made.clips.read("depth").mean() == pytest.approx(0.25, abs=0.01)

"""What runs keep on disk for later ones - embeddings, finished episodes - is verified, and may fail without harm."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fsmer
from fsmer.array_files import map_array, read_arrays
from fsmer.backbones import Backbone
from fsmer.data import ClipSet, InputSpec
from fsmer.data.saved import ArrayWriter
from fsmer.errors import OutputError
from fsmer.evaluation import Report, evaluate
from fsmer.evaluation.embedding_cache import cache_folder, embed_cached
from fsmer.evaluation.episode_results import EpisodeResults, PartStore, RunSize
from fsmer.evaluation.run_folder import RunFolder
from fsmer.io import MARK, block_digests, digest
from fsmer.synthetic.clips import synthetic_clips
from fsmer.transfer import Method, Recognizer, load_method
from fsmer.transfer.linear_head import Finetune

from tiny_backbone import TinyBackbone  # isort: skip


class Stop(Exception):
    pass


def stopped(*_: Any, **__: Any) -> None:
    raise Stop


def tuned() -> Method:
    return load_method("finetune", train_backbone=True, steps=2, encoder_rate=1e-2)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return TinyBackbone().eval()


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    made = synthetic_clips("lab", n=24)
    return ClipSet.from_arrays(made.media(), made.labels, subjects=[f"{place % 6}" for place in range(24)])


@pytest.mark.parametrize("change", ["every 997th byte", "cut short", "empty", "of another kind", "a pipe"])
def test_an_altered_cache_entry_is_made_again(change: str, backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    expected, _ = embed_cached(backbone, clips, folder=tmp_path)
    (path,) = tmp_path.glob("*/*.npy")
    whole = path.read_bytes()
    # The header stays as it is, and the embeddings are numbers.
    flipped = bytes(byte ^ (place % 997 == 996) for place, byte in enumerate(whole))
    os.remove(path)
    if change == "a pipe":
        os.mkfifo(path)
    else:
        contents = {"every 997th byte": flipped, "cut short": whole[:-7], "empty": b"", "of another kind": b"no array"}
        path.write_bytes(contents[change])
    assert torch.equal(embed_cached(backbone, clips, folder=tmp_path)[0], expected)
    assert path.read_bytes() == whole


def test_a_cache_that_may_only_be_read_is_used(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = embed_cached(backbone, clips, folder=tmp_path)
    before = list(tmp_path.rglob("*"))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr("fsmer.evaluation.embedding_cache.embed", refuse)
    assert torch.equal(embed_cached(backbone, clips, folder=tmp_path)[0], expected)
    assert list(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["a file", "a pipe", "a loop", "no home", "a full disk", "a long name"])
def test_a_cache_without_a_place_is_no_reason_to_stop(
    place: str, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate("loso", backbone, "protonet", clips=clips, cache=False)
    if place == "a file":
        (tmp_path / "cache").touch()
    if place == "a pipe":
        os.mkfifo(tmp_path / "cache")
    if place == "a loop":
        (tmp_path / "cache").symlink_to(tmp_path / "cache")
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / ("x" * 300 if place == "a long name" else "cache")))
    if place == "no home":
        for name in ("FSMER_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user has no passwd entry
        assert cache_folder() is None
    if place == "a full disk":

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("tempfile.mkdtemp", full)
    assert evaluate("loso", backbone, "protonet", clips=clips).to_dict() == expected.to_dict()
    assert fsmer.train(backbone, clips[:12], epochs=1).predict(clips).tolist()


def test_what_killed_runs_left_half_written_in_cache_and_parts_goes(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    embed_cached(backbone, clips[:4], folder=tmp_path / "cache")
    (network,) = (tmp_path / "cache").iterdir()
    left = [network / ".a.npy.unfinished-abcdefg1", tmp_path / "cache" / "other" / ".b.npy.unfinished-abcdefg2"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / MARK).touch()
        (folder / "a.npy").write_bytes(b"half")
    embed_cached(backbone, clips, folder=tmp_path / "cache")
    assert not any(folder.exists() for folder in left)


def test_finished_episodes_that_were_altered_are_computed_again(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path / "whole")
    fit, fitted = Finetune.fit, []

    def counted(self: Finetune, *args: Any, **options: Any) -> Recognizer:
        if len(fitted) == 4:
            raise Stop
        fitted.append(self.seed)
        return fit(self, *args, **options)

    monkeypatch.setattr(Finetune, "fit", counted)
    monkeypatch.setattr(Finetune, "_learn_many", Method._learn_many)
    with pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path / "cut")
    (store,) = (tmp_path / "cut").glob(".parts-*")
    first, second, third, _ = sorted(store.glob("*.npz"))
    held = first.read_bytes()
    # A probability: zip's own checksum does not cover the whole file, and this file is put together anew.
    with np.load(first) as arrays:
        altered = {name: arrays[name] for name in arrays}
    altered["probabilities"] = altered["probabilities"][::-1].copy()
    with first.open("wb") as stream:
        np.savez(stream, **altered)
    assert first.read_bytes() != held
    second.write_bytes(b"")
    os.remove(third)
    os.mkfifo(third)
    (store / ".x.npz.unfinished-abcdefg1").mkdir()
    fitted = [-1, -1]  # two episodes more than are allowed
    with pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path / "cut")
    assert not list(store.glob(".*"))
    fitted = [-9] * 9
    resumed = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path / "cut")
    assert resumed.to_dict() == whole.to_dict()
    for name in ("report.json", "predictions.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


ROW = {
    "numbers": np.array([4, 2]),
    "names": np.array(["fold 4", "fold 2"]),
    "among": np.array([[True, True, False], [True, False, True]]),
    "episode": np.array([4, 4, 2], np.int32),
    "clip": np.array([7, 0, 3]),
    "predicted": np.array([1, 0, 2], np.int16),
    "probabilities": np.array([[0.3, 0.7, np.nan], [1, 0, np.nan], [0.5, np.nan, 0.5]], np.float32),
}


def part_of(store: PartStore, **arrays: NDArray[Any]) -> list[EpisodeResults]:
    """What a store reads of a whole file with these arrays."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    path = store.folder / f"00000002-00000004-{digest(content.getbuffer())}.npz"
    path.write_bytes(content.getbuffer())
    found = store.read()
    assert path.exists() == bool(found)
    path.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("numbers", np.array([4, 5])),
        ("numbers", np.array([4, -2])),
        ("numbers", np.array([4, 4])),
        ("numbers", np.array([4, 2, 1])),
        ("numbers", np.array(["4", "2"])),
        ("numbers", np.array(4)),
        ("names", np.array(["fold 4"])),
        ("names", np.array([b"fold 4", b"fold 2"])),
        ("among", np.ones((2, 4), bool)),
        ("among", np.ones((2, 3), np.int8)),
        ("episode", np.array([4, 4, 1], np.int32)),
        ("episode", np.array([4, 4], np.int32)),
        ("clip", np.array([7, 0, 8])),
        ("clip", np.array([7, 0, -1])),
        ("clip", np.array([[7, 0, 3]])),
        ("predicted", np.array([1, 0, 1], np.int16)),
        ("predicted", np.array([1, 0, 3], np.int16)),
        ("predicted", np.array([1.0, 0, 2])),
        ("probabilities", ROW["probabilities"][:2]),
        ("probabilities", ROW["probabilities"][:, :2]),
        ("probabilities", ROW["probabilities"] * 2),
        ("probabilities", np.where(ROW["probabilities"] == 1, np.inf, ROW["probabilities"])),
        ("probabilities", np.where(ROW["probabilities"] == 1, np.nan, ROW["probabilities"])),
        ("probabilities", np.nan_to_num(ROW["probabilities"])),
        ("probabilities", None),
    ],
)
def test_a_part_that_does_not_fit_its_run_is_removed(name: str, array: Any, tmp_path: Path) -> None:
    store = PartStore(tmp_path, {}, RunSize(episodes=5, clips=8, classes=3))
    (part,) = part_of(store, **ROW)
    assert part.names == ("fold 4", "fold 2")
    assert part.predictions.clip.tolist() == [7, 0, 3]
    assert part_of(store, **{key: value for key, value in (ROW | {name: array}).items() if value is not None}) == []


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 5)",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ('4', 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999, 5), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000000, 5), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 1), }",
    "{'descr': [], 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'shape': (4, 5), }",
    "(" * 5000,
    "'" * 3,
    "",
]


@pytest.mark.parametrize("header", HEADERS[1:])
def test_every_damaged_header_of_an_array_is_one_kind_of_error(header: str, tmp_path: Path) -> None:
    def array(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(80)

    def archive(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as held:
            held.writestr("a.npy", content)
        return stream.getvalue()

    path = tmp_path / "a.npy"
    path.write_bytes(array(HEADERS[0]))
    assert map_array(path).shape == read_arrays(archive(array(HEADERS[0])), ["a"])["a"].shape == (4, 5)
    path.write_bytes(array(header))
    for content in (archive(array(header)), archive(array(HEADERS[0]), zipfile.ZIP_DEFLATED)):
        with pytest.raises(ValueError, match=r"\w"):
            read_arrays(content, ["a"])
    with pytest.raises(ValueError, match=r"\w"):
        map_array(path)


@pytest.mark.parametrize(
    "content", ["", "null", "[1]", '{"run": {}}', "[" * 100_000, '{"format_version": 3, "run": 5}']
)
def test_a_damaged_description_of_an_unfinished_run_is_one_sentence(
    content: str, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Report, "save", stopped)
        with pytest.raises(Stop):
            evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    (path,) = tmp_path.glob(".parts-*/run.json")
    for text in (content, path.read_text().replace("protonet", "protonot")):
        path.write_text(text)
        with pytest.raises(OutputError, match=r"unfinished run.*resume=False"):
            evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, resume=False)


def test_a_run_does_not_replace_the_report_that_another_one_wrote_meanwhile(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def beside(*_: Any) -> None:
        if not begun:
            begun.append("logistic")
            with monkeypatch.context() as patch:
                patch.setattr(RunFolder, "_difference", lambda *_: "")  # as if it had begun first
                evaluate("loso", backbone, "logistic", clips=clips, out=tmp_path, overwrite=True)

    with pytest.raises(OutputError, match=r"another method \(logistic.*--overwrite"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, progress=beside)
    assert Report.load(tmp_path).method["name"] == "logistic"


def test_an_array_is_written_once_with_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsmer.data.saved.BLOCK_BYTES", 1000)
    spec = InputSpec("flow", (4, 5), ("u", "v", "strain"), "minmax")
    for rows in (0, 1, 40):
        media = np.random.default_rng(rows).random((rows, *spec.shape), np.float32)
        with ArrayWriter(tmp_path, spec, rows, "<f4") as writer:
            for start in range(0, rows, 7):
                writer.write(media[start : start + 7].data)
        assert np.array_equal(np.load(tmp_path / "flow.npy"), media)
        assert writer.blocks == block_digests(tmp_path / "flow.npy", 1000)

"""Preparing a data set: one pass over the disk gives every backbone its media, whatever happens on the way."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_trees import build, write_frames
from typer.testing import CliRunner

from fsmer.cli.app import app
from fsmer.data import ClipSet, InputSpec
from fsmer.datasets import read_dataset
from fsmer.errors import DataError, MissingDatasetError, OutputError, SpecMismatchError, UnknownNameError
from fsmer.preprocess import CascadeDetector, PreprocessRecipe, make_media
from fsmer.preprocess.media import group_specs
from fsmer.preprocess.prepare import prepare
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import Scene

COLOURS = ("red", "green", "blue")
FLOW = InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax")
ONSET, APEX = (InputSpec(kind, (32, 32), COLOURS, "unit") for kind in ("onset", "apex"))
SPECS = (FLOW, ONSET, APEX)


@functools.cache
def _video():
    return next(synthetic_videos(1, size=(64, 56), frames=24, seed=3))


def picture(index: int, total: int) -> np.ndarray:
    """Frame of a drawn face's movement, as long as the clip is."""
    video = _video()
    return video.frames[round(index * (len(video.frames) - 1) / max(total - 1, 1))]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A fake CASME II whose frames are drawn; its folder has blanks and other letters in its name."""
    return build("casme2", tmp_path_factory.mktemp("data") / "Größe 微 表情", picture=picture)


def make(root, out, **options):
    return prepare("casme2", root, out, **{"specs": SPECS, "frames": "cropped", "workers": 1} | options)


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """What an undisturbed run of one worker gives."""
    return make(root, tmp_path_factory.mktemp("out") / "prepared clips ü")


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_result_is_an_ordinary_clip_set_with_recipe_and_report(root, whole):
    assert sorted(hashes(whole.folder)) == [
        *("apex.npy", "clips.json", "flow.npy", "onset.npy", "prepare.json", "recipe.json", "report.csv", "table.csv")
    ]
    clips = ClipSet.load(whole.folder)
    assert len(clips) == whole.report.prepared == 8
    assert isinstance(np.load(whole.folder / "flow.npy", mmap_mode="r"), np.memmap)
    recipe = PreprocessRecipe.load(whole.folder / "recipe.json")
    assert recipe.detector == "cropped"  # the folder of frames says so
    assert set(clips.table["recipe"]) == {recipe.hash} == {whole.report.recipe}
    source = read_dataset("casme2", root, frames="cropped")
    assert clips.labels.tolist() == source[clips.ids].labels.tolist()
    assert whole.folder.parent.joinpath(f"{whole.folder.name}.parts").exists() is False


def test_media_are_those_that_one_recording_gives(whole):
    clips = whole.clips
    for row in (0, len(clips) - 1):
        facts = clips.table.iloc[row]
        made = make_media(
            facts["path"],
            SPECS,
            onset=facts["onset_index"],
            apex=facts["apex_index"],
            offset=facts["offset_index"],
            recipe=PreprocessRecipe(detector="cropped"),
        )
        for kind, array in made.media.items():
            np.testing.assert_array_equal(clips.read(kind, [row])[0], array, err_msg=kind)


def test_an_apex_that_nobody_annotated_is_spotted_as_the_recipe_says(whole):
    table = whole.clips.table.set_index("clip")
    assert table.loc["sub04_EP12_01f", "apex_from"] == "flow"
    assert table.loc["sub01_EP02_01f", "apex_from"] == "annotation"


def test_a_bad_clip_is_left_out_and_named(whole):
    lost = whole.report.left_out
    assert lost["clip"].tolist() == ["sub05_EP09_05f"]
    assert "apex" in lost["detail"].iloc[0]
    assert "onset" in lost["detail"].iloc[0]
    written = pd.read_csv(whole.folder / "report.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(written, whole.report.table, check_dtype=False)
    assert "8 of 9 clips" in str(whole.report)
    assert "sub05_EP09_05f" in str(whole.report)


def test_damaged_frames_leave_out_their_clip_alone_and_are_tried_again_once_mended(tmp_path):
    root = build("casme2", tmp_path / "data", picture=picture)
    folder = root / "Cropped-updated" / "Cropped"
    frame = folder / "sub06" / "EP06_02_01" / "reg_img9.jpg"
    good = frame.read_bytes()
    frame.write_bytes(b"no picture")
    first = make(root, tmp_path / "out")
    assert set(first.report.left_out["clip"]) == {"sub05_EP09_05f", "sub06_EP06_02_01"}
    reason = first.report.left_out.set_index("clip").loc["sub06_EP06_02_01", "detail"]
    assert "reg_img9.jpg" in reason
    frame.write_bytes(good)
    second = make(root, tmp_path / "out")
    assert set(second.report.left_out["clip"]) == {"sub05_EP09_05f"}
    assert second.report.reused == 7
    fresh = make(root, tmp_path / "fresh")
    assert hashes(second.folder) == hashes(fresh.folder)


def test_two_workers_give_the_bytes_of_one(root, whole, tmp_path):
    assert hashes(make(root, tmp_path / "out", workers=2).folder) == hashes(whole.folder)


class Torn:
    """A file that takes a clip's head and half of its first medium, and then `end` happens."""

    def __init__(self, handle, end):
        self.handle, self.end = handle, end

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.close()

    def write(self, data):
        whole = bytes(data)
        self.handle.write(whole if whole.startswith(b"{") else whole[: len(whole) // 2])
        if not whole.startswith(b"{"):
            self.handle.flush()
            self.end()


def torn_at(clip: int, end):
    """`Path.open` that gives a torn file for that clip."""
    real, opened = Path.open, []

    def open_file(path, mode="r", *args, **kwargs):
        handle = real(path, mode, *args, **kwargs)
        opened.extend([path] if mode == "ab" else [])
        return Torn(handle, end) if mode == "ab" and len(opened) == clip else handle

    return open_file


KILLED = """
import os, signal, sys
from pathlib import Path
what, place, root, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
sys.path.insert(0, sys.argv[5])
from test_prepare import make, torn_at
def die():
    os.kill(os.getpid(), signal.SIGKILL)
real, renames = os.replace, []
def replace(*paths):
    renames.append(paths)
    if len(renames) == place:
        die()
    real(*paths)
if what == "clip":
    Path.open = torn_at(place, die)
elif what == "swap":
    os.rename = lambda *paths: die()
else:
    os.replace = replace
make(root, out)
"""


# Half of the third clip written, a table of the assembled folder, the last step before it takes its place.
@pytest.mark.parametrize(("what", "place"), [("clip", 3), ("rename", 2), ("swap", 1)])
def test_killed_anywhere_and_run_again_gives_the_same_bytes(root, whole, tmp_path, what, place):
    out = tmp_path / "out"
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, what, str(place), str(root), str(out), here], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    assert (tmp_path / "out.parts").is_dir()
    again = make(root, out)
    assert again.report.reused == (place - 1 if what == "clip" else 8)
    assert hashes(out) == hashes(whole.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_prepare import make
if __name__ == "__main__":
    make(sys.argv[2], sys.argv[3], workers=int(sys.argv[1]), progress=lambda state: print(state.done, flush=True))
"""


def started(tmp_path: Path, root: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    arguments = [sys.executable, str(script), str(workers), str(root), str(out), str(Path(__file__).parent)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_killed_at_three_moments_from_outside_gives_the_same_bytes(root, whole, tmp_path):
    out = tmp_path / "out"
    random = np.random.default_rng(0)
    for clips, workers in ((1, 1), (3, 1), (5, 2)):
        run = started(tmp_path, root, out, workers)
        for _ in range(clips):
            run.stdout.readline()
        time.sleep(random.uniform(0, 0.005))
        # The workers go with it, as they do when a machine goes down.
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert not out.exists()
        assert any((tmp_path / "out.parts").glob("*.clips"))
    again = make(root, out)
    assert again.report.reused >= 4
    assert hashes(out) == hashes(whole.folder)


def test_interrupted_by_the_user_leaves_whole_clips_and_no_lock(root, whole, tmp_path):
    out = tmp_path / "out"
    run = started(tmp_path, root, out, workers=1)
    for _ in range(3):
        run.stdout.readline()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert not out.exists()
    (kept,) = (tmp_path / "out.parts").iterdir()
    assert kept.suffix == ".clips"
    assert make(root, out).report.reused >= 2
    assert hashes(out) == hashes(whole.folder)


def test_a_second_run_into_the_same_folder_is_refused_until_the_first_ends_or_dies(root, whole, tmp_path):
    out = tmp_path / "out"
    refused = []

    def meddle(state):
        if state.done == 2:
            with pytest.raises(OutputError) as caught:
                make(root, out, resume=False)
            refused.append(str(caught.value))

    make(root, out, progress=meddle)
    assert refused == [
        f"another run is preparing {out} at the moment; wait until it has ended, or choose another folder."
    ]
    assert hashes(out) == hashes(whole.folder)
    # What a dead process leaves is no lock.
    second = tmp_path / "two"
    (tmp_path / "two.parts").mkdir()
    (tmp_path / "two.parts" / "lock").write_text("")
    assert make(root, second).report.prepared == 8
    assert not (tmp_path / "two.parts").exists()


def test_a_second_run_makes_and_writes_nothing(root, tmp_path):
    out = tmp_path / "out"
    make(root, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = make(root, out)
    assert again.report.reused == 8
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    anew = make(root, out, resume=False)
    assert anew.report.reused == 0


def test_progress_tells_what_is_done_and_how_long_the_rest_takes(root, tmp_path):
    seen = []
    make(root, tmp_path / "out", progress=seen.append)
    assert [one.done for one in seen] == list(range(1, 10))
    assert {one.total for one in seen} == {9}
    assert seen[-1].left_out == 1
    assert seen[-1].remaining == 0
    assert all(one.remaining > 0 for one in seen[:-1])


def test_other_settings_do_not_overwrite_an_earlier_result(root, tmp_path):
    out = tmp_path / "out"
    make(root, out)
    before = hashes(out)
    with pytest.raises(OutputError, match=r"recipe .*resuming"):
        make(root, out, recipe=PreprocessRecipe(detector="cropped", flow="dis"))
    assert hashes(out) == before
    replaced = make(root, out, recipe=PreprocessRecipe(detector="cropped", flow="dis"), resume=False)
    assert replaced.clips.specs["flow"].flow_method == "dis"


def test_a_folder_of_other_files_is_never_replaced(root, tmp_path):
    (tmp_path / "mine.txt").write_text("thesis")
    with pytest.raises(OutputError, match="other files"):
        make(root, tmp_path, resume=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of that name"):
        make(root, tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        make(root, tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.txt"]


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["first clip", "third clip", "media"])
def test_a_full_disk_is_one_sentence_and_finished_clips_are_kept(root, whole, tmp_path, monkeypatch, step):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if step == "media":
            patch.setattr(np.lib.format, "write_array_header_1_0", no_space)
        else:
            patch.setattr(Path, "open", torn_at(1 if step == "first clip" else 3, no_space))
        with pytest.raises(OutputError, match=r"No space left on device.*kept") as refused:
            make(root, out)
    assert str(refused.value).count("\n") == 0
    assert not out.exists()
    kept = {"first clip": 0, "third clip": 2, "media": 8}[step]
    assert [path.name for path in tmp_path.iterdir()] == (["out.parts"] if kept else [])
    assert make(root, out).report.reused == kept
    assert hashes(out) == hashes(whole.folder)


class Stop(Exception):
    """Ends a preparation within."""


def stop_after_four(state):
    if state.done == 4:
        raise Stop


def test_finished_clips_that_were_damaged_since_are_made_again(root, whole, tmp_path):
    out = tmp_path / "out"
    for reused in (0, 2):
        with pytest.raises(Stop):
            make(root, out, progress=stop_after_four)
        # Cut short in its third clip; the other file begins with no clip at all.
        first, *further = sorted((tmp_path / "out.parts").glob("*.clips"), key=lambda path: path.stat().st_mtime)
        assert bool(further) == bool(reused)
        held = first.read_bytes()
        starts = [place for place in range(len(held)) if held.startswith(b'{"clip": ', place)]
        first.write_bytes(held[: starts[2] + 5000])
        for path in further:
            path.write_bytes(b"[]\n" + path.read_bytes())
    assert make(root, out).report.reused == 2
    assert hashes(out) == hashes(whole.folder)


def test_finished_clips_with_a_changed_byte_are_made_again(root, whole, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stop):
        make(root, out, progress=stop_after_four)
    (path,) = (tmp_path / "out.parts").glob("*.clips")
    held = bytearray(path.read_bytes())
    starts = [place for place in range(len(held)) if held.startswith(b'{"clip": ', place)]
    # In the medium of the first clip, in a fact and in the digest of later ones.
    facts = held.index(b'"apex_index": ', starts[1])
    for place in (starts[1] - 100, facts + 14, starts[3] - 1):
        held[place] = ord("7") if held[place] != ord("7") else ord("8")
    path.write_bytes(held)
    assert make(root, out).report.reused == 1
    assert hashes(out) == hashes(whole.folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("report.csv", lambda text: text.replace("sub", "bus", 1)),
        ("report.csv", lambda text: ""),
        ("report.csv", lambda text: "x" * 200_000 + text),
        ("prepare.json", lambda text: text.replace("flow", "flaw", 1)),
        ("prepare.json", lambda text: "null"),
        ("prepare.json", lambda text: text[:-20]),
        ("prepare.json", lambda text: "[" * 100_000),
    ],
)
def test_a_damaged_record_of_a_finished_folder_is_one_sentence_and_can_be_made_anew(
    root, whole, tmp_path, name, change
):
    out = tmp_path / "out"
    shutil.copytree(whole.folder, out)
    text = (out / name).read_text()
    (out / name).write_text(change(text))
    with pytest.raises(OutputError, match="without resuming") as refused:
        make(root, out)
    assert name in str(refused.value)
    make(root, out, resume=False)
    assert hashes(out) == hashes(whole.folder)


@pytest.mark.parametrize(
    ("name", "place", "reused"),
    [
        ("flow.npy", -1, 7),  # within the last clip, in a block of its own
        ("onset.npy", 3, 0),
        ("flow.npy", None, 0),
        ("table.csv", 30, 0),
        ("clips.json", 30, 0),
    ],
)
def test_what_was_damaged_in_a_finished_folder_is_made_again(root, tmp_path, monkeypatch, name, place, reused):
    monkeypatch.setattr("fsmer.data.saved.BLOCK_BYTES", 4096)
    out = tmp_path / "out"
    before = hashes(make(root, out).folder)
    held = bytearray((out / name).read_bytes())
    if place is None:
        held = held[:-7]
    else:
        held[place] ^= 1
    (out / name).write_bytes(held)
    found = make(root, out)
    assert found.report.reused == reused
    assert len(found.clips.media()) == 8
    assert hashes(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_folder_of_an_earlier_version_is_taken_up(root, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole.folder, out)
    settings = json.loads((out / "prepare.json").read_text())
    del settings["checksum"], settings["report"]
    (out / "prepare.json").write_text(json.dumps(settings))
    assert make(root, out).report.reused == 8
    assert hashes(out) == hashes(whole.folder)


def test_a_store_that_is_cut_short_during_the_run_never_becomes_a_result(root, whole, tmp_path):
    out = tmp_path / "out"

    def cut(state):
        if state.done == state.total:
            (held,) = (tmp_path / "out.parts").glob("*.clips")
            os.truncate(held, held.stat().st_size - 40)

    with pytest.raises(DataError, match=r"altered or cut short.* run it again"):
        make(root, out, progress=cut)
    assert not out.exists()
    assert make(root, out).report.reused == 7
    assert hashes(out) == hashes(whole.folder)


def test_a_read_only_place_is_refused_before_any_work(root, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    seen = []
    with pytest.raises(OutputError, match="Read-only file system"):
        make(root, tmp_path / "out", progress=seen.append)
    assert not seen
    assert not list(tmp_path.iterdir())


def test_wrong_roots_say_so_and_write_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingDatasetError, match="CASME II"):
        make(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(MissingDatasetError, match="exist"):
        make(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UnknownNameError):
        prepare("casme22", tmp_path, tmp_path / "out", specs=SPECS)
    with pytest.raises(DataError, match="0 workers"):
        make(tmp_path / "empty", tmp_path / "out", workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_table_of_paths_is_enough(tmp_path):
    for name in ("erste Aufnahme", "二"):
        write_frames(tmp_path / "films" / name, [f"{n}.png" for n in range(12)], picture=picture)
    (tmp_path / "films" / "二" / "cover_1.png").write_bytes(b"no frame")
    table = pd.DataFrame(
        {
            "path": ["films/erste Aufnahme", "films/二", "films/gone"],
            "label": ["happiness", None, "fear"],
            "onset": [1, None, 0],
            "apex": [6, None, 1],
            "camera": ["left", "right", "left"],
        }
    )
    done = prepare(
        table, tmp_path, tmp_path / "out", specs=FLOW, recipe=PreprocessRecipe(detector="cropped"), workers=1
    )
    assert done.clips.ids.tolist() == ["erste Aufnahme", "二"]
    assert done.clips.table["onset_index"].tolist() == [1, 0]
    assert done.clips.table["offset_index"].tolist() == [11, 11]
    assert done.clips.table["apex_from"].tolist() == ["annotation", "flow"]
    assert done.clips.table["camera"].tolist() == ["left", "right"]
    assert "does not exist" in done.report.left_out["detail"].iloc[0]
    with pytest.raises(DataError, match="'path'"):
        prepare(table.drop(columns="path").assign(clip=list("abc")), tmp_path, tmp_path / "two", specs=FLOW)
    with pytest.raises(DataError, match="1 clip"):
        prepare(table[2:], tmp_path, tmp_path / "two", specs=FLOW, workers=1)
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "two.parts").exists()


def test_the_generic_table_is_prepared_and_its_unreadable_video_named(tmp_path):
    root = build("generic", tmp_path / "data", picture=picture)
    recipe = PreprocessRecipe(detector="cropped")
    done = prepare("generic", root, tmp_path / "out", specs=SPECS, recipe=recipe, workers=1)
    assert done.clips.ids.tolist() == ["anna-1", "anna-2"]
    assert done.report.left_out["clip"].tolist() == ["björn"]


def test_backbones_that_want_different_media_of_one_kind_get_a_folder_each(root, whole, tmp_path):
    larger = InputSpec("flow", (40, 40), ("u", "v"), "signed")
    wanted = {"small": [FLOW], "large": [larger], "images": [ONSET, APEX]}
    assert list(group_specs(wanted)) == ["small+images", "large"]
    done = make(root, tmp_path / "out", specs=wanted)
    assert list(done.sets) == ["small+images", "large"]
    for kind in ("flow", "onset", "apex"):
        shared = done.folder / "small+images" / f"{kind}.npy"
        assert shared.read_bytes() == (whole.folder / f"{kind}.npy").read_bytes()
    assert ClipSet.load(done.folder / "large").media().shape == (8, 2, 40, 40)
    with pytest.raises(DataError, match="2 clip sets"):
        _ = done.clips
    with pytest.raises(SpecMismatchError, match="mapping"):
        make(root, tmp_path / "two", specs=[FLOW, larger])
    again = make(root, tmp_path / "out", specs=wanted)
    assert again.report.reused == 8


def test_specs_that_differ_in_channels_or_an_open_flow_method_are_shared():
    open_one = InputSpec("flow", (28, 28), ("u", "v"), "minmax")
    tvl1 = InputSpec("flow", (28, 28), ("strain", "u"), "minmax", "tvl1")
    farneback = InputSpec("flow", (28, 28), ("u", "v"), "minmax", "farneback")
    shared = group_specs({"a": [open_one], "b": [tvl1], "c": [farneback]})
    assert {name: [spec.describe() for spec in specs] for name, specs in shared.items()} == {
        "a+b": ["flow 28x28 (u, v, strain), minmax, tvl1"],
        "c": ["flow 28x28 (u, v), minmax, farneback"],
    }


def test_raw_frames_are_searched_once_for_all_media(tmp_path, monkeypatch):
    scene = Scene(centre=(80.0, 68.0), face_width=56.0)
    video = next(synthetic_videos(1, size=(120, 160), frames=8, seed=1, scene=scene, amplify=2))
    folder = tmp_path / "raw"
    write_frames(folder, [f"{n}.png" for n in range(8)], picture=lambda index, total: video.frames[index])
    made = make_media(folder, [FLOW, ONSET])
    searched = []
    detect = CascadeDetector.detect
    monkeypatch.setattr(CascadeDetector, "detect", lambda *args: searched.append(1) or detect(*args))
    wanted = {"a": [FLOW], "b": [InputSpec("flow", (40, 40), ("u", "v"), "signed")], "c": [ONSET]}
    done = prepare(pd.DataFrame({"path": ["raw"]}), tmp_path, tmp_path / "out", specs=wanted, workers=1)
    assert len(searched) == 3  # the onset and its two neighbours
    for kind in ("flow", "onset"):
        np.testing.assert_array_equal(done.sets["a+c"].read(kind)[0], made.media[kind])


def test_models_are_named_and_share_what_they_can(tmp_path, root):
    import fsmer

    models = ["facs-flow", "mmnet"]
    done = fsmer.prepare(
        "casme2", root, tmp_path / "out", models=models, frames="cropped", workers=1, scheme="megc2019"
    )
    assert {kind: spec.size for kind, spec in done.clips.specs.items()} == {
        "apex": (224, 224),
        "flow": (28, 28),
        "onset": (224, 224),
    }
    assert set(done.clips.classes) <= {"negative", "positive", "surprise"}
    with pytest.raises(UnknownNameError, match="facs-flow"):
        fsmer.prepare("casme2", root, tmp_path / "two", models="facs_flow")


@pytest.mark.slow
def test_a_dask_cluster_takes_over_and_gives_the_same_bytes(root, whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster),
    ):
        done = make(root, tmp_path / "out", backend="dask", workers=None)
    assert hashes(done.folder) == hashes(whole.folder)


def test_a_backend_that_is_not_there_is_one_sentence(root, tmp_path):
    with pytest.raises(DataError, match="'flink'"):
        make(root, tmp_path / "out", backend="flink")
    assert not (tmp_path / "out.parts").exists()


def test_the_command_prepares_a_download_and_refuses_in_one_sentence(root, tmp_path):
    out = tmp_path / "clips"

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["prepare", *map(str, arguments), "--workers", "1"])
        assert done.exit_code == code, done.output
        return done

    asked = ("casme2", "--root", root, "--out", out, "--frames", "cropped", "--for", "facs-flow")
    said = json.loads(run(*asked, "--json").stdout)
    assert (said["prepared"], said["reused"], said["out"]) == (8, 0, [str(out)])
    assert ClipSet.load(out).specs["flow"].size == (28, 28)
    again = run(*asked).stdout
    assert "8 of 9 clips prepared" in again
    assert "8 of them by an earlier run" in again
    for wrong, words in (
        (("casme22", *asked[1:]), "did you mean"),
        (("casme2", "--root", tmp_path, *asked[3:]), "CASME II"),
        ((*asked[:-1], "facs_flow"), "facs-flow"),
        ((*asked[:4], tmp_path / "file" / "out", *asked[5:]), "cannot write"),
    ):
        (tmp_path / "file").write_text("")
        refused = run(*wrong, code=1)
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "file"]


def film(path: Path, frames, rate: int = 30) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_every_bad_recording_is_one_sentence_in_the_report_and_the_good_ones_are_prepared(tmp_path):
    """One table of all that goes wrong with recordings, as a user hands it in."""
    drawn = next(synthetic_videos(1, size=(64, 64), frames=12, seed=3, amplify=2)).frames
    films = tmp_path / "Aufnahmen, 表情"
    films.mkdir()
    good = film(films / "gute Aufnahme.mp4", drawn)
    (films / "text.mp4").write_text("this is no video " * 50)
    (films / "nothing.mp4").write_bytes(b"")
    (films / "short.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    write_frames(films, ["photo.png"], picture=lambda index, total: drawn[0])
    film(films / "still.mp4", [drawn[0]] * 8)
    film(films / "two frames.mp4", drawn[[0, 6]])
    write_frames(films / "sizes", ["1.png", "2.png", "3.png"], picture=lambda index, total: drawn[index][: 60 + index])
    (films / "empty folder").mkdir()
    names = ["gute Aufnahme.mp4", "text.mp4", "nothing.mp4", "short.mp4", "photo.png", "still.mp4", "two frames.mp4"]
    names += ["sizes", "empty folder", "gone.mp4"]
    table = pd.DataFrame({"path": names, "apex": [6, None, None, None, None, 4, 1, 2, None, None]})
    recipe = PreprocessRecipe(detector="cropped")
    done = prepare(table, films, tmp_path / "out", specs=FLOW, recipe=recipe, workers=1)
    assert done.clips.ids.tolist() == ["gute Aufnahme.mp4", "two frames.mp4"]
    said = done.report.left_out.set_index("clip")["detail"]
    expected = {
        "text.mp4": "cannot be opened as a video",
        "nothing.mp4": "is empty (zero bytes)",
        "short.mp4": "cut short",
        "photo.png": "has 1 frame, but a movement needs 2 or more",
        "still.mp4": "there is no movement between frames 0 and 4",
        "sizes": "pixels, but the first one is",
        "empty folder": "holds no image",
        "gone.mp4": "does not exist",
    }
    assert set(said.index) == set(expected)
    for clip, words in expected.items():
        assert words in said[clip]
        assert clip in said[clip]
        assert "\n" not in said[clip]
        assert said[clip].endswith(".")


def test_no_face_and_a_face_that_is_lost_half_way_are_said_by_name(tmp_path):
    scene = Scene(centre=(80.0, 68.0), face_width=56.0)
    seen = next(synthetic_videos(1, size=(120, 160), frames=8, seed=1, scene=scene, amplify=2)).frames
    grey = np.full_like(seen[0], 90)
    write_frames(tmp_path / "wall", [f"{n}.png" for n in range(8)], picture=lambda index, total: grey)
    write_frames(
        tmp_path / "leaves", [f"{n}.png" for n in range(8)], picture=lambda n, total: seen[n] if n < 3 else grey
    )
    write_frames(tmp_path / "good", [f"{n}.png" for n in range(8)], picture=lambda n, total: seen[n])
    table = pd.DataFrame({"path": ["wall", "leaves", "good"]})
    done = prepare(
        table, tmp_path, tmp_path / "out", specs=FLOW, recipe=PreprocessRecipe(crop="frame", apex="middle"), workers=1
    )
    said = done.report.left_out.set_index("clip")["detail"]
    assert "no face was found in any of the 8 frames" in said["wall"]
    assert "the face is lost in" in said["leaves"]
    assert "of the 8 frames" in said["leaves"]
    assert done.clips.ids.tolist() == ["good"]
    second = PreprocessRecipe(face=1, crop="onset")
    with pytest.raises(DataError, match=r"face 1 .*frame 0 .*good"):
        prepare(table[2:], tmp_path, tmp_path / "two", specs=FLOW, recipe=second, workers=1)

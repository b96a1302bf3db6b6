"""Whatever reads the output, and wherever it goes: no traceback, results written, and nothing half-done left behind."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import report_of

import fsmer
from fsmer.cli.console import open_streams
from fsmer.deploy.recording_prediction import RecordingPrediction
from fsmer.errors import OutputError
from fsmer.reporting.compare import compare

FULL = Path("/dev/full")
TITLE = "结果 naïve 😀"
CLASSES = ("快乐", "naïve", "other")


@pytest.fixture(scope="module")
def report() -> fsmer.Report:
    base = fsmer.synthetic_clips("lab", 18, seed=1)
    clips = fsmer.ClipSet.from_arrays(
        base.media(), [CLASSES[row % 3] for row in range(18)], subjects=[f"人{row % 3}" for row in range(18)],
        spec=base.specs["flow"],
    )  # fmt: skip
    return report_of(clips, clips.codes(CLASSES), classes=CLASSES)


def command(
    *arguments: object, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "fsmer", *map(str, arguments)]
    whole = {**os.environ, **(environment or {})}
    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(line, env=whole, timeout=120, check=False, **captured)


@pytest.fixture(scope="module")
def protocol(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protocol file whose title lies outside ASCII and cp1252."""
    written = (repository / "episodes" / "kshot-flow-3way-5shot.yaml").read_text(encoding="utf-8")
    place = tmp_path_factory.mktemp("protocols") / "mine.yaml"
    place.write_text(re.sub(r"(?m)^title: .*$", f"title: {TITLE}", written), encoding="utf-8")
    return place


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_encoding_lacks_are_printed_as_escapes(encoding: str, protocol: Path) -> None:
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = command("protocols", protocol, environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "\\u7ed3\\u679c" in done.stdout.decode(encoding)
    done = command("protocols", protocol, "--json", environment=environment)
    assert json.loads(done.stdout.decode(encoding))["title"] == TITLE


@pytest.mark.slow
def test_an_evaluation_of_names_that_the_encoding_lacks_is_written_and_printed(tmp_path: Path) -> None:
    base = fsmer.synthetic_clips("lab", 18, seed=1)
    fsmer.ClipSet.from_arrays(
        base.media(),
        [CLASSES[row % 3] for row in range(18)],
        subjects=[f"人{row % 3}" for row in range(18)],
        spec=base.specs["flow"],
    ).save(tmp_path / "clips")
    done = command(
        *("evaluate", "loso", "--data", tmp_path / "clips", "--out", tmp_path / "out"),
        environment={"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert fsmer.Report.load(tmp_path / "out").classes == tuple(sorted(CLASSES))
    assert "naïve" in done.stdout.decode("cp1252")
    assert "\\u5feb\\u4e50" in done.stdout.decode("cp1252")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [("protocols",), ("protocols", "--json"), ("--help",), ("--version",)])
def test_a_full_disk_behind_standard_output_is_one_sentence(arguments: tuple[str, ...]) -> None:
    with FULL.open("wb") as nowhere:
        done = command(*arguments, stdout=nowhere)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.startswith("fsmer: ")
    assert said.count("\n") == 1
    assert os.strerror(errno.ENOSPC) in said


@pytest.mark.parametrize("arguments", [("protocols",), ("protocols", "--json"), ("--help",)])
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = command(*arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_streams_without_a_file_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Notebook(io.StringIO):
        def fileno(self) -> int:
            return 1

    for stream in (io.StringIO(), Notebook(), io.TextIOWrapper(io.BytesIO())):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        open_streams()
        assert sys.stdout is stream
        assert sys.stderr is stream
        monkeypatch.undo()


def test_a_closed_standard_output_or_error_is_no_error() -> None:
    done = command("protocols", "--json", preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")
    # What belongs to standard error must not turn up among the results.
    done = command("protocols", "nothing", preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can take another user's number")
@pytest.mark.slow
def test_a_user_without_home_and_entry_evaluates_and_trains(tmp_path: Path) -> None:
    lacking = ("HOME", "FSMER_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME")
    environment = {key: value for key, value in os.environ.items() if key not in lacking}
    few = ("--data", "synthetic:lab:20")
    for name, arguments in {
        "evaluate": ("evaluate", "kshot", "--shot", "1", "--query", "2", "--episodes", "2", *few),
        "train": ("train", "fr", "-p", "epochs=1", *few),
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "fsmer", *arguments, "--out", str(tmp_path / name)],
            env=environment,
            # The rights of root, which the interpreter may need, under a number that no entry has.
            preexec_fn=lambda: os.setresuid(54321, 0, 0),
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert any((tmp_path / name).iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_saved_weights_and_recognizers_get_the_permissions_of_the_umask(mask: int, tmp_path: Path) -> None:
    backbone = fsmer.load_model("facs-flow")
    recognizer = fsmer.adapt(backbone, fsmer.synthetic_clips("lab", 12, seed=1))
    before = os.umask(mask)
    try:
        recognizer.save(tmp_path / "recognizer")
        backbone.save_pretrained(tmp_path / "weights")
    finally:
        os.umask(before)
    for folder in (tmp_path / "recognizer", tmp_path / "weights"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o666 & ~mask}


def _save_report(report: fsmer.Report, place: Path) -> None:
    report.save(place)


def _save_comparison(report: fsmer.Report, place: Path) -> None:
    compare(report, report, draws=100).save(place)


def _save_recording(report: fsmer.Report, place: Path) -> None:
    RecordingPrediction("video.mp4", 25.0, 100, 100, ()).save(place)


@pytest.mark.parametrize("save", [_save_report, _save_comparison, _save_recording])
def test_what_a_killed_writer_left_is_removed_by_the_next(
    save: Callable[[fsmer.Report, Path], None], report: fsmer.Report, tmp_path: Path
) -> None:
    leave_half_written(tmp_path / "out" / "timeline.png")
    save(report, tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def leave_half_written(path: Path) -> None:
    """Kill a process in the middle of writing `path`."""
    code = (
        "import sys, time\nfrom fsmer.io import atomic_path\n"
        "with atomic_path(sys.argv[1]) as half:\n"
        "    half.write_text('half')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert [left.name for left in path.parent.iterdir()], "the killed writer left nothing"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system has no limit on the size of files")
def test_a_full_disk_under_weights_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    backbone = fsmer.load_model("facs-flow")
    recognizer = fsmer.adapt(backbone, fsmer.synthetic_clips("lab", 12, seed=1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Every write beyond this fails, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        for save in (recognizer.save, backbone.save_pretrained):
            with pytest.raises(OutputError) as caught:
                save(tmp_path / save.__name__)
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

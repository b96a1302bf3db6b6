"""Files and folders are whole or not there, whoever is killed or writes at the same time, and alterations are found."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmer import io
from fsmer.errors import OutputError
from fsmer.schema import read_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def save(target, text, count=2):
    with io.atomic_folder(target) as temporary:
        for number in range(count):
            (temporary / f"{number}.txt").write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def killed(code, *arguments):
    """Run a script that kills itself."""
    script = "import os, signal, sys\nfrom pathlib import Path\nfrom fsmer import io\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(params=["exchange", "one by one"])
def way(request, monkeypatch):
    """Both ways to replace a folder: in one step, and file by file where the system cannot do that."""
    if request.param == "one by one":
        monkeypatch.setattr(io, "_take_place", lambda new, target: False)
    return request.param


def test_a_folder_is_replaced_whole_and_leaves_nothing_behind(tmp_path, way):
    save(tmp_path / "out", "old", count=3)
    save(tmp_path / "out", "new", count=2)
    assert content(tmp_path / "out") == {"0.txt": "new", "1.txt": "new"}
    assert names(tmp_path) == ["out"]


def test_a_failure_leaves_the_older_folder(tmp_path, way):
    save(tmp_path / "out", "old")

    def fail():
        with io.atomic_folder(tmp_path / "out") as temporary:
            (temporary / "0.txt").write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert set(content(tmp_path / "out").values()) == {"old"}
    assert names(tmp_path) == ["out"]


def test_a_symbolic_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    save(tmp_path / "link", "one")
    save(tmp_path / "link", "two")
    io.write_text(tmp_path / "link" / "more.txt", "three")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk" / "real") == {"0.txt": "two", "1.txt": "two", "more.txt": "three"}


def test_a_file_is_never_written_through_a_link_and_pipes_and_devices_are_never_replaced(tmp_path):
    (tmp_path / "precious").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    io.write_text(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "old"
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    io.write_text(tmp_path / "dangling", "new")
    assert not (tmp_path / "nowhere").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe or device"):
        io.write_text(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(OutputError, match="pipe or device"):
        io.write_text("/dev/null", "text")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_alone_decides_who_may_read(tmp_path, mask, way):
    before = os.umask(mask)
    try:
        save(tmp_path / "out", "text")
        with io.atomic_folder(tmp_path / "out") as temporary:
            (temporary / "secret").touch(mode=0o600)
        io.write_json(tmp_path / "file.json", {})
        with io.atomic_path(tmp_path / "private") as temporary:
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out", *tmp_path.rglob("*")]}
    assert modes["out"] == 0o777 & ~mask
    assert {modes[name] for name in ("secret", "file.json", "private")} == {0o666 & ~mask}


def test_files_of_a_folder_get_the_permissions_of_new_ones(tmp_path, way):
    before = os.umask(0o027)
    try:
        save(tmp_path / "out", "text")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o640}


def test_what_a_kill_left_of_one_folder_is_not_taken_for_that_of_another_with_a_like_name(tmp_path):
    names = ["x" * 180 + end for end in ("-seed1", "-seed2")]
    for name in names:
        save(tmp_path / name, name)
    killed(
        """
        io._take_place = lambda new, target: False
        io._move_files = lambda whole, target: os.kill(os.getpid(), signal.SIGKILL)
        with io.atomic_folder(sys.argv[1]) as temporary:
            (temporary / "0.txt").write_text("new")
        """,
        tmp_path / names[0],
    )
    io.restore_folder(tmp_path / names[1])
    io.remove_unfinished(tmp_path, names[1])
    assert set(content(tmp_path / names[1]).values()) == {names[1]}
    io.restore_folder(tmp_path / names[0])
    assert content(tmp_path / names[0]) == {"0.txt": "new"}


def test_what_others_named_alike_is_left_alone(tmp_path):
    """Only folders that bear fsmer's mark are removed, and files of earlier versions when they are old."""
    for name in (".my-unfinished-paper", ".a.unfinished-plan", ".b.unfinished-abcd1234"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").touch()
        for path in (tmp_path / name / "a.txt", tmp_path / name):
            os.utime(path, (0, 0))
    for name in (".notes-unfinished-work.txt", ".unfinished-symphony.mid", ".unfinished-letter"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    before = names(tmp_path)
    (tmp_path / ".report.md.unfinished-abcd_123.md").touch()
    os.utime(tmp_path / ".report.md.unfinished-abcd_123.md", (0, 0))
    io.remove_unfinished(tmp_path)
    io.check_writable(tmp_path)
    io.restore_folder(tmp_path / "b")
    assert names(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_that_another_user_planted_replaces_nothing(tmp_path):
    save(tmp_path / "out", "mine")
    planted = tmp_path / ".out.unfinished-abcd1234"
    (planted / "complete").mkdir(parents=True)
    (planted / ".fsmer").touch()
    (planted / "complete" / "0.txt").write_text("theirs")
    os.chown(planted, 12345, 12345)
    io.restore_folder(tmp_path / "out")
    assert set(content(tmp_path / "out").values()) == {"mine"}


def test_a_folder_is_removed_in_one_step(tmp_path):
    save(tmp_path / ".store", "text")
    io.remove_folder(tmp_path / ".store")
    io.remove_folder(tmp_path / ".store")
    assert names(tmp_path) == []


def test_where_nothing_can_be_locked_age_decides_what_is_left_over(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    killed(
        """
        with io.atomic_path(Path(sys.argv[1]) / "a.txt") as temporary:
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    monkeypatch.setattr(io.fcntl, "flock", no_locks)
    io.write_text(tmp_path / "b.txt", "text")
    io.remove_unfinished(tmp_path)
    (left,) = (path for path in tmp_path.iterdir() if path.name != "b.txt")
    for path in (*left.iterdir(), left):
        os.utime(path, (0, 0))
    io.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["b.txt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_does_not_keep_a_lock(tmp_path):
    reading, writing = os.pipe()
    with io.locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
    try:
        lock = io._lock(tmp_path)
        assert lock is not None
        io._unlock(lock)
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)


def test_a_killed_writer_of_a_folder_leaves_the_old_one_and_the_next_one_tidies_up(tmp_path):
    save(tmp_path / "out", "old")
    killed(
        """
        with io.atomic_folder(sys.argv[1]) as temporary:
            (temporary / "0.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path / "out",
    )
    assert set(content(tmp_path / "out").values()) == {"old"}
    assert len(names(tmp_path)) == 2
    save(tmp_path / "out", "new")
    assert names(tmp_path) == ["out"]
    assert set(content(tmp_path / "out").values()) == {"new"}


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_files_that_were_being_moved_when_the_writer_was_killed_are_moved_on(tmp_path, moves):
    save(tmp_path / "out", "old", count=4)
    killed(
        """
        io._take_place = lambda new, target: False
        replace, left = os.replace, [int(sys.argv[2])]
        def counted(one, other):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            replace(one, other)
        os.replace = counted
        with io.atomic_folder(sys.argv[1]) as temporary:
            for number in range(3):
                (temporary / f"{number}.txt").write_text("new")
            left[0] = int(sys.argv[2])
        """
        if moves < 3
        else """
        io._take_place = lambda new, target: False
        remove = io.shutil.rmtree
        io.shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        with io.atomic_folder(sys.argv[1]) as temporary:
            for number in range(3):
                (temporary / f"{number}.txt").write_text("new")
        """,
        tmp_path / "out",
        moves,
    )
    io.restore_folder(tmp_path / "out")
    assert content(tmp_path / "out") == {"0.txt": "new", "1.txt": "new", "2.txt": "new"}
    assert names(tmp_path) == ["out"]


def test_what_an_earlier_version_left_between_two_renames_is_restored(tmp_path):
    left = tmp_path / ".out.old.abc" / "out"
    left.mkdir(parents=True)
    (left / "0.txt").write_text("old")
    io.restore_folder(tmp_path / "out")
    assert content(tmp_path / "out") == {"0.txt": "old"}
    assert names(tmp_path) == ["out"]


WRITER = """
import sys
from fsmer import io
from fsmer.errors import FsmerError
for turn in range(int(sys.argv[3])):
    with io.atomic_folder(sys.argv[1]) as temporary:
        for number in range(3):
            (temporary / f"{number}.txt").write_text(sys.argv[2] + str(turn))
"""


def test_writers_of_one_folder_never_mix_and_never_fail(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "out", letter, "300"], stderr=subprocess.PIPE)
        for letter in "ab"
    ]
    errors = [writer.communicate(timeout=120)[1] for writer in writers]
    assert errors == [b"", b""]
    assert len(set(content(tmp_path / "out").values())) == 1
    assert names(tmp_path) == ["out"]


def test_what_somebody_still_writes_is_not_tidied_up(tmp_path):
    with io.atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("text")
        io.remove_unfinished(tmp_path)
        io.restore_folder(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_killed_writer_of_a_file_leaves_something_that_is_tidied_up(tmp_path):
    killed(
        """
        with io.atomic_path(Path(sys.argv[1]) / "a.txt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert len(names(tmp_path)) == 1
    io.remove_unfinished(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_mount_point_is_written_into(tmp_path):
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        save(place, "old", count=3)
        save(place, "new")
        assert content(place) == {"0.txt": "new", "1.txt": "new"}
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path):
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        io.write_text(place / "a.txt", "old")
        with pytest.raises(OutputError, match="free space") as caught:
            io.write_text(place / "a.txt", "x" * 200_000)
        assert str(place) in str(caught.value)
        assert (place / "a.txt").read_text() == "old"
        assert names(place) == ["a.txt"]
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_place_below_a_file_is_one_sentence_and_errors_of_other_files_stay(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "below" / "deeper"):
        with pytest.raises(OutputError, match="below"):
            io.write_text(path, "text")
        with pytest.raises(OutputError, match="below"):
            save(path, "text")
        with pytest.raises(OutputError, match="below"):
            io.check_writable(path)
    (tmp_path / "out").mkdir()

    def read_another():
        with io.atomic_path(tmp_path / "out" / "a.txt"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        read_another()

    def read_a_sibling():
        with io.atomic_path(tmp_path / "out" / "a.txt"):
            (tmp_path / "out" / "missing").read_text()

    def ask_a_server():
        with io.atomic_path(tmp_path / "out" / "a.txt"):
            raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(FileNotFoundError):
        read_a_sibling()
    with pytest.raises(ConnectionResetError):
        ask_a_server()


def test_pipes_devices_folders_and_huge_files_are_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    for path, words in ((tmp_path / "pipe", "named pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder")):
        for reader in (io.read_bytes, io.check_regular, io.file_digest):
            with pytest.raises(OSError, match=words):
                reader(path)
    with pytest.raises(OSError, match="100 bytes") as caught:
        io.read_bytes(tmp_path / "large", limit_bytes=99)
    assert caught.value.errno == errno.EFBIG
    assert io.read_bytes(tmp_path / "large", limit_bytes=100) == b"x" * 100


def test_digests_of_blocks_are_those_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 10
    (tmp_path / "file").write_bytes(data)
    assert io.file_digest(tmp_path / "file") == io.digest(data)
    assert io.block_digests(tmp_path / "file", 1000) == [io.digest(data[at : at + 1000]) for at in range(0, 2560, 1000)]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_a_sealed_file_has_the_digest_of_what_is_read_back(values):
    held = json.loads(io.json_text(values, sealed=True))
    assert held.pop(io.CHECKSUM) == io.json_digest(held)
    assert held == {key: value for key, value in values.items() if key != io.CHECKSUM}


def test_bytes_of_file_names_that_are_no_text_are_written_as_escapes(tmp_path):
    name = os.fsdecode(b"clips\xff")
    io.write_json(tmp_path / "a.json", {"path": name, name: 1}, sealed=True)
    held = read_json(tmp_path / "a.json", dict, what="a test", remedy="write it again")
    assert held.pop(io.CHECKSUM)
    assert held == {"path": "clips\\udcff", "clips\\udcff": 1}
    io.write_text(tmp_path / "a.md", name)
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "clips\\udcff"

"""Compiled code is loaded only as this user's own compiler made it, from a place that nobody else can write."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fsmer.caches import cache_place
from fsmer.kernels import compiled as module
from fsmer.kernels import describe

pytestmark = pytest.mark.skipif(module.compiled("shallow") is None, reason="this machine has no C compiler")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(module, "FLAGS", ("-O0", *(flag for flag in module.FLAGS if flag != "-O3")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of an own cache in which one library lies."""
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "cache"))
    assert compiled() is not None
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def loaded(monkeypatch):
    """What the system was asked to load: the files, whatever name they were opened by."""
    found = []
    real = module.ctypes.CDLL
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: found.append(os.path.realpath(name)) or real(name))
    return found


def compiled():
    """As a new process finds the library."""
    return module.compiled.__wrapped__("shallow")


def only(folder):
    (found,) = folder.iterdir()
    return found


def put(path, content):
    """Another file of this name: the one that is there is mapped by this process, which dies if it changes."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o700)


def test_what_was_compiled_is_found_again(cache, loaded, monkeypatch):
    monkeypatch.setattr(module.subprocess, "run", None)
    assert compiled() is not None
    assert loaded == [str(only(cache))]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(cache).stat().st_mode) == 0o700


@pytest.mark.parametrize("change", ["a byte", "cut short", "a link", "others may write", "a pipe", "a folder"])
def test_a_library_that_is_not_as_it_was_compiled_is_compiled_again(cache, loaded, tmp_path, change):
    path = only(cache)
    whole = path.read_bytes()
    if change == "a byte":
        put(path, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    if change == "cut short":
        put(path, whole[:4000])
    if change == "others may write":
        path.chmod(0o777)
    if change == "a link":
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    if change == "a pipe":
        path.unlink()
        os.mkfifo(path)
    if change == "a folder":
        path.rename(path.with_suffix(""))
        path.mkdir()
    library = compiled()
    if change == "a folder":  # in whose place nothing can be put
        assert library is None
        return
    assert loaded == [str(path)]
    assert not path.is_symlink()
    assert path.read_bytes() == whole
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.filterwarnings("ignore:.*not private")
@pytest.mark.parametrize("whose", ["library", "folder", "parent"])
def test_nothing_of_another_user_is_loaded(cache, loaded, whose):
    path = only(cache)
    os.chown({"library": path, "folder": cache, "parent": cache.parent}[whose], 12345, 12345)
    assert compiled() is not None
    if whose == "library":
        assert path.stat().st_uid == 0, "compiled again in its place"
        assert loaded == [str(path)]
    else:
        # Made by this process for itself, and gone.
        assert len(loaded) == 1
        assert not os.path.exists(loaded[0])
        assert cache not in Path(loaded[0]).parents


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="this system has no list of open files")
@pytest.mark.parametrize("fails", ["reading", "loading", "the digest"])
def test_a_library_that_is_not_loaded_is_closed(cache, monkeypatch, fails):
    path = only(cache)

    def failing(*_):
        raise OSError(5, os.strerror(5))

    if fails == "reading":
        monkeypatch.setattr(module, "digest", failing)
    if fails == "loading":
        monkeypatch.setattr(module.ctypes, "CDLL", failing)
    if fails == "the digest":
        put(path, path.read_bytes()[:4000])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((OSError, ValueError)):
        module._loaded(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("place", ["folder", "parent"])
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_place_that_others_can_write_is_left_alone(cache, loaded, place, mode):
    before = only(cache).stat().st_mtime_ns
    shared = cache if place == "folder" else cache.parent
    shared.chmod(mode)
    with pytest.warns(UserWarning, match=f"chmod go-rwx {shared}.*FSMER_CACHE") as told:
        assert compiled() is not None
    assert len(told) == 1
    assert cache not in Path(loaded[0]).parents
    assert only(cache).stat().st_mtime_ns == before


def test_a_folder_for_all_in_which_nobody_renames_what_is_others_is_good_enough(cache, loaded):
    cache.parent.chmod(0o1777)
    assert compiled() is not None
    assert loaded == [str(only(cache))]


def test_the_file_that_was_checked_is_the_one_that_is_loaded(cache, monkeypatch):
    """Another file takes the name between the check and the loading."""
    path = only(cache)
    found = []

    def swapped(name):
        path.unlink()
        path.write_bytes(b"\x7fELF another")
        found.append(Path(name).read_bytes())
        return object()

    whole = path.read_bytes()
    monkeypatch.setattr(module.ctypes, "CDLL", swapped)
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("this system has no names for open files")
    compiled()
    assert found == [whole]


@pytest.mark.parametrize("place", ["a file", "a pipe", "no home", "a full disk"])
def test_without_a_place_it_is_compiled_for_this_process_or_done_without(place, tmp_path, loaded, monkeypatch):
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "cache"))
    if place == "a file":
        (tmp_path / "cache").touch()
    if place == "a pipe":
        os.mkfifo(tmp_path / "cache")
    if place == "no home":
        for name in ("FSMER_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert cache_place("compiled") is None
    if place == "a full disk":

        def full(*_, **__):
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(tempfile, "mkdtemp", full)
        assert compiled() is None
        return
    assert compiled() is not None
    assert not os.path.exists(loaded[0])


def test_what_a_kill_left_half_compiled_goes(cache):
    left = cache / ".shallow.so.unfinished-abcdefg1"
    left.mkdir()
    only_library(cache).unlink()
    assert compiled() is not None
    assert not left.exists()


def only_library(cache):
    (found,) = cache.glob("*.so")
    return found


def described(**environment):
    """What a new process says of its arithmetic."""
    code = "import json; from fsmer.kernels import describe; print(json.dumps(describe()))"
    told = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(told.stdout)


def test_the_arithmetic_is_described_with_compiler_and_sources():
    found = describe()
    assert found["kernels"] == "on"
    assert set(found) == {"kernels", "compiler", "library", "onednn"}
    version = subprocess.run([module.find_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    assert found["compiler"] == version.splitlines()[0]
    assert len(found["library"]) == 32
    assert found == described()


@pytest.mark.parametrize(
    ("environment", "library"),
    [({"FSMER_COMPILE": "off"}, "switched off (FSMER_COMPILE=off)"), ({"PATH": "/nowhere", "CC": ""}, "none")],
)
def test_without_kernels_the_description_says_why(environment, library):
    found = described(**environment)
    assert (found["kernels"], found["compiler"], found["library"]) == ("off", "none", library)


def test_a_compiler_that_fails_is_described_as_none(tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o700)
    found = described(CC=str(broken))
    assert (found["kernels"], found["compiler"]) == ("off", "none")


@pytest.mark.parametrize("fails", [("inception", "shallow"), ("shallow",)])
def test_kernels_that_cannot_be_compiled_are_not_described_as_on(fails, tmp_path):
    picky = tmp_path / "cc"
    cases = "".join(f'case "$*" in *{name}.c*) exit 1;; esac\n' for name in fails)
    picky.write_text(f'#!/bin/sh\n{cases}exec {module.find_compiler()} "$@"\n')
    picky.chmod(0o700)
    found = described(CC=str(picky), FSMER_CACHE=str(tmp_path / "cache"))
    assert found["kernels"] == ("off" if len(fails) == 2 else "inception")
    assert (found["library"] == "none") == (len(fails) == 2)

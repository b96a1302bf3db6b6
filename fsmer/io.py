"""Files and folders that are either whole or not there, and digests that show whether one was altered."""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fsmer.errors import DataError, OutputError, reason_of

try:
    import fcntl
except ImportError:  # not a POSIX system: whether a writer still lives is told by the age of its files
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "CHECKSUM", "atomic_folder", "atomic_path", "block_digests", "check_regular", "check_writable", "digest",
    "file_digest", "json_digest", "json_text", "locked", "read_bytes", "remove_folder", "remove_unfinished",
    "restore_folder", "write_json", "write_text",
]  # fmt: skip

# Key under which a JSON file carries the digest of all its other values.
CHECKSUM = "checksum"
# Bytes that one digest of `block_digests` covers, and the most that a text file may hold.
BLOCK_BYTES = 4 << 20
TEXT_BYTES = 256 << 20
# Names of folders in which something is being written end as those of `tempfile` do; earlier versions wrote files of
# such names, with the ending of the file behind. In these folders: the mark that they are fsmer's, a whole folder that
# waits to be moved file by file, and the names of its files.
UNFINISHED = "unfinished-"
_UNFINISHED_NAME = re.compile(r"\.(?:(.+)\.)?unfinished-[a-z0-9_]{8}(\.\w+)?", re.DOTALL)
MARK, COMPLETE, MOVED = ".fsmer", "complete", ".moved"
# Where files cannot be locked: how long something unfinished may be one that somebody still writes.
WRITING_SECONDS = 60.0
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
# What writing may meet that names no file, and what helps.
_FULL_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space on the disk or choose a folder on another one"),
    errno.EFBIG: "choose a folder whose disk takes files of that size",
    errno.EIO: "check the disk or choose a folder on another one",
    errno.EROFS: "choose a folder that you may write to",
}
# Bytes of a name that are no text, as Python holds them.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_regular(path: str | os.PathLike[str], limit_bytes: int | None = None) -> None:
    """Raise an ``OSError`` whose ``strerror`` says why `path` is no file of at most `limit_bytes`; opens nothing."""
    _check_status(os.stat(path), path, limit_bytes)


def read_bytes(path: str | os.PathLike[str], limit_bytes: int = TEXT_BYTES) -> bytes:
    """Content of a regular file; ``OSError`` as for `check_regular`, or where it cannot be read."""
    # Without O_NONBLOCK, opening a named pipe would wait for somebody to write into it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_status(os.fstat(handle), path, limit_bytes)
        with open(handle, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(handle)


def _check_status(found: os.stat_result, path: str | os.PathLike[str], limit_bytes: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, but a file is expected", str(path))
    if not stat.S_ISREG(found.st_mode):
        what = "a named pipe" if stat.S_ISFIFO(found.st_mode) else "a device or socket"
        raise OSError(errno.EINVAL, f"it is {what}, but a file is expected", str(path))
    if limit_bytes is not None and found.st_size > limit_bytes:
        reason = f"it has {found.st_size:,} bytes, but at most {limit_bytes:,} are expected"
        raise OSError(errno.EFBIG, reason, str(path))


def digest(data: bytes | memoryview) -> str:
    """Hex BLAKE2b digest (128 bits) of `data`."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """`digest` of a file's content."""
    check_regular(path)
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def block_digests(path: str | os.PathLike[str], block_bytes: int = BLOCK_BYTES) -> list[str]:
    """`digest` of every `block_bytes` of a file, so that a part of a large file can be checked by itself."""
    check_regular(path)
    with open(path, "rb") as stream:
        return [digest(block) for block in iter(lambda: stream.read(block_bytes), b"")]


def json_digest(values: Mapping[str, Any]) -> str:
    """`digest` of plain values in one fixed spelling, without the entry `CHECKSUM`."""
    plain = {key: value for key, value in values.items() if key != CHECKSUM}
    return digest(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` on success and is removed on any failure.

    The file gets the permissions that the umask gives to new files. A symbolic link of that name is replaced rather
    than followed: in a folder that somebody else made, it may lead anywhere. An `OutputError` is raised where the
    folder cannot be made or written, `path` is a folder, pipe or device, or the disk is full.
    """
    target = Path(os.path.realpath(Path(path).parent)) / Path(path).name
    if target.is_dir():
        raise OutputError(f"cannot write the file {target}: a folder of that name is there; choose another name.")
    if target.exists() and not target.is_symlink() and not target.is_file():
        raise OutputError(f"cannot write the file {target}: it is a pipe or device; choose another name.")
    remove_unfinished(target.parent, target.name)
    with _cannot_write(target), _workspace(target.parent, target.name) as workspace:
        temporary = workspace / target.name
        yield temporary
        temporary.chmod(_file_mode(workspace))
        os.replace(temporary, target)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` on success; an older folder stays whole until then.

    The two folders are exchanged in one step. Where the system cannot (a mount point, some network drives), the files
    are moved one by one, and what a kill leaves half moved is finished by `restore_folder`. A symbolic link is
    followed. Folder and files get the permissions that the umask gives to new ones. An `OutputError` is raised where
    the parent folder cannot be made or written, `path` is a file, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {target}: a file of that name is there; choose another folder.")
    restore_folder(target)
    # Nothing beside a mount point can be exchanged with it, and beside a folder that one may write one may not always.
    within = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    with _cannot_write(target), _workspace(target if within else target.parent, "" if within else target.name) as held:
        new = held / "new"
        new.mkdir()
        yield new
        mode = _file_mode(held)
        for file in new.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        if within or not _take_place(new, target):
            whole = held / COMPLETE
            new.rename(whole)
            _move_files(whole, target)


def restore_folder(path: str | os.PathLike[str]) -> None:
    """Finish or remove what a killed `atomic_folder` left of `path`; nothing is done where no kill left anything."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        for folder in (target, target.parent):
            name = "" if folder == target else target.name
            for left in _unfinished(folder, name):
                with _abandoned(left) as nobody:
                    # Anybody may put a folder of that name into one that many share.
                    if nobody and (not hasattr(os, "geteuid") or left.lstat().st_uid == os.geteuid()):
                        if (left / COMPLETE).is_dir():
                            _move_files(left / COMPLETE, target)
                        _remove(left)
        # Earlier versions renamed twice, and a kill between the two left the old folder under another name.
        name = glob.escape(target.name)
        for old in sorted(target.parent.glob(f".{name}.old.*/{name}")):
            if not target.exists():
                os.replace(old, target)
            shutil.rmtree(old.parent, ignore_errors=True)


def remove_unfinished(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove what killed writers left in `folder`, of all or of one `name`; what somebody still writes stays."""
    with contextlib.suppress(OSError):
        for left in _unfinished(Path(folder), name):
            with contextlib.suppress(OSError), _abandoned(left) as nobody:
                # A whole folder that waits to be moved is somebody's result: `restore_folder` finishes it.
                if nobody and not (left / COMPLETE).is_dir():
                    _remove(left)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step, so that nobody finds half of it; nothing is done where it is not there."""
    with contextlib.suppress(OSError), _workspace(folder.parent, folder.name.lstrip(".")) as held:
        folder.rename(held / "old")


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make `folder`, remove what killed writers left there, and raise `OutputError` unless files can be written."""
    if not isinstance(folder, str | os.PathLike):
        raise OutputError(f"the folder to write to came as {type(folder).__name__}; give its path.")
    target = Path(folder)
    with _cannot_write(target):
        target.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target)
        # Without a name where the system can, so that a kill leaves nothing.
        with tempfile.TemporaryFile(dir=target, prefix=".writable."):
            pass


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_json(path: str | os.PathLike[str], values: Any, *, sealed: bool = False) -> Path:
    """Write `values` as indented JSON, atomically; a `sealed` mapping gets the `CHECKSUM` that `read_json` checks."""
    return write_text(path, json_text(values, sealed=sealed))


def json_text(values: Any, *, sealed: bool = False) -> str:
    """`values` as the indented JSON that `write_json` writes; bytes of file names that are no text become escapes."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"a value cannot be written as JSON ({reason_of(error)}); use plain, finite values.") from error
    # As a reader will find them: tuples are lists and keys are text by then.
    plain = json.loads(_LONE_SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text))
    if sealed:
        plain.pop(CHECKSUM, None)
        plain[CHECKSUM] = json_digest(plain)
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _cannot_write(target: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into one sentence."""
    try:
        yield
    except OSError as error:
        foreign = error.errno not in _FULL_DISK
        if error.filename is not None:
            place = Path(os.path.abspath(error.filename))
            own = any(part.startswith(_prefix("")) or f".{UNFINISHED}" in part for part in place.parts)
            foreign = not own and place != target and place not in target.parents
        if isinstance(error, OutputError) or foreign:
            raise  # of something else that was read or asked meanwhile
        remedy = _FULL_DISK.get(error.errno or 0, "choose a folder that you may write to")
        raise OutputError(f"cannot write {target}: {error.strerror or error}; {remedy}.") from error


@contextlib.contextmanager
def _workspace(parent: Path, name: str) -> Iterator[Path]:
    """A folder of its own in `parent` that says by a lock that its writer lives, removed at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        workspace = Path(tempfile.mkdtemp(prefix=_prefix(name), dir=parent))
        # Somebody who tidies up may have got hold of it and removed it before it was locked.
        lock = _lock(workspace, wait=True)
        with contextlib.suppress(FileNotFoundError):
            (workspace / MARK).touch()
            break
        _unlock(lock)
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        _unlock(lock)


def _file_mode(workspace: Path) -> int:
    """Permissions of a new file; asking for the umask itself would change it for other threads meanwhile."""
    probe = workspace / ".mode"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def _take_place(new: Path, target: Path) -> bool:
    """Put the folder `new` where `target` is in one step, the older one where `new` was; False where that cannot be."""
    for _ in range(1000):
        try:
            if not target.exists():
                os.rename(new, target)
                return True
            return _exchange(new, target)
        except OSError as error:
            # Another writer came or went between the question and the step.
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY) or not new.exists():
                raise
    return False


def _exchange(one: Path, other: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _move_files(whole: Path, target: Path) -> None:
    """Move the files of a whole folder into `target` and remove others there; may be repeated after a kill."""
    target.mkdir(parents=True, exist_ok=True)
    with locked(target):
        names = {file.relative_to(whole) for file in whole.rglob("*") if file.is_file()}
        moved = (whole / MOVED).read_text(encoding="utf-8") if (whole / MOVED).is_file() else ""
        kept = names | {Path(line) for line in moved.splitlines()}
        (whole / MOVED).write_text("\n".join(str(name) for name in sorted(kept)), encoding="utf-8")
        # What names the other files, and their digests, comes last.
        for name in sorted(names - {Path(MOVED)}, key=lambda name: (name.suffix == ".json", name)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(whole / name, target / name)
        for file in target.rglob("*"):
            relative = file.relative_to(target)
            if file.is_file() and relative not in kept and not relative.parts[0].startswith("."):
                file.unlink()


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `folder` where the system has locks, once nobody else does.

    A ``BlockingIOError`` is raised where somebody else holds it, or it was removed just now, and `wait` is False.
    """
    lock = None
    with contextlib.suppress(_NoLocksError):
        lock = _lock(folder, wait=wait)
        if lock is None and not wait:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(folder))
    try:
        yield
    finally:
        _unlock(lock)


class _NoLocksError(OSError):
    """The system, or the disk, has no locks."""


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A lock on `folder` that ends with its process, or None; `_NoLocksError` if there are none here and not `wait`."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise BlockingIOError(errno.EWOULDBLOCK, "its holder has replaced it")
    except OSError as error:
        os.close(handle)
        if wait or isinstance(error, (BlockingIOError, FileNotFoundError)):
            return None
        raise _NoLocksError(error.errno, error.strerror) from error
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        # A process that was forked meanwhile has the handle too, and closing this one would leave the lock to it.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextlib.contextmanager
def _abandoned(left: Path) -> Iterator[bool]:
    """Whether nobody writes `left` any more; nobody else tidies it up meanwhile."""
    lock: int | None = None
    locks = left.is_dir()  # earlier versions wrote files, and locked nothing
    try:
        lock = _lock(left) if locks else None
    except _NoLocksError:
        locks = False
    try:
        yield lock is not None if locks else _is_old(left)
    finally:
        _unlock(lock)


def _is_old(left: Path) -> bool:
    times = [file.lstat().st_mtime for file in [left, *left.rglob("*")] if os.path.lexists(file)]
    return bool(times) and time.time() - max(times) > WRITING_SECONDS


def _unfinished(folder: Path, name: str | None) -> list[Path]:
    """Folders and files in which fsmer was writing, or still is: of one name, or of all where none is given."""
    begin = "." if name is None else _prefix(name)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(begin) and _is_unfinished(path))


def _is_unfinished(path: Path) -> bool:
    found = _UNFINISHED_NAME.fullmatch(path.name)
    if found is not None and path.is_dir():
        # A kill may come between the making of a folder and its mark.
        return (path / MARK).exists() or not any(path.iterdir())
    return found is not None and found[1] is not None and Path(found[1]).suffix == (found[2] or "")


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _prefix(name: str) -> str:
    if len(os.fsencode(name)) > 100:  # names of files may have 255 bytes on most systems
        name = f"{name[:20]}-{digest(os.fsencode(name))}"
    return f".{name}.{UNFINISHED}" if name else f".{UNFINISHED}"

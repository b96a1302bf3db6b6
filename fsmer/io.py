"""Files that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsmer.errors import OutputError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_writable",
    "json_text",
    "remove_unfinished",
    "write_json",
    "write_text",
]

# In the names of files that are not whole, and how long such a file may be one that somebody still writes.
UNFINISHED, WRITING_SECONDS = "unfinished-", 60.0


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    Raises
    ------
    OutputError
        The folder cannot be made or written, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"cannot write the file {target}: a folder of that name is there; choose another name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.{UNFINISHED}", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files readable by their owner alone; results are meant to be shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        try:
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, target)
        except OSError as error:
            raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed `atomic_path` left in `folder`, unless another process may still be writing it."""
    for left in Path(folder).glob(f".*.{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > WRITING_SECONDS:
                left.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place on success; an older folder stays whole until then.

    Raises
    ------
    OutputError
        The parent folder cannot be made or written, or `path` is a file.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {target}: a file of that name is there; choose another folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, retired / target.name)
            os.replace(temporary, target)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make `folder` if need be and raise `OutputError` unless files can be written there; leaves nothing behind."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target, prefix=".writable."):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], values: Any) -> Path:
    """Write `values` as indented JSON, atomically."""
    return write_text(path, json_text(values))


def json_text(values: Any) -> str:
    """`values` as the indented JSON that `write_json` writes."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {target}: {error.strerror or error}; choose a folder that you may write to.")

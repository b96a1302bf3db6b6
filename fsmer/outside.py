"""Code that is not fsmer's own: whatever it raises as one sentence, and a digest of its source."""

from __future__ import annotations

import hashlib
import inspect
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from fsmer.errors import FsmerError, reason_of
from fsmer.memory import out_of_memory

__all__ = ["code_digest", "outside_call", "outside_value"]

# Packages that a version stands for, beside fsmer.
KNOWN = {"fsmer", "torch", "numpy", "sklearn", "huggingface_hub", *sys.stdlib_module_names} - {"__main__"}
# Folders of installed packages.
INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def outside_call(what: str, error: type[FsmerError] = FsmerError, remedy: str = "mend it") -> Iterator[None]:
    """Raise `error`, which says `what` has failed, for whatever is raised inside.

    Errors of fsmer, key presses and errors that mean that memory has run out stay as they are.
    """
    try:
        yield
    except BaseException as found:
        if isinstance(found, (FsmerError, KeyboardInterrupt, GeneratorExit)) or out_of_memory(found):
            raise
        raise error(f"{what} fails with {type(found).__name__} ({reason_of(found)}); {remedy}.") from found


def outside_value(value: object) -> str:
    """A value that code from outside gave, in one short line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # its repr is code from outside too
        text = f"an object of the class {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:117]}..."


def code_digest(parts: Iterable[object]) -> str:
    """16 hex digits of the source that classes of `parts` (and functions among them) are written in.

    It covers the files of their modules and those that these take names from in their package, or beside or below a
    file that is in none. Nothing where all are of fsmer or of packages that it is made with; another one each time for
    code whose source is not there, as in a notebook, or was edited after it was loaded.
    """
    named: Any = [part if hasattr(part, "__qualname__") else type(part) for part in parts]
    things = {one for thing in named for one in (thing.__mro__ if isinstance(thing, type) else (thing,))}
    things = {thing for thing in things if str(thing.__module__).partition(".")[0] not in KNOWN}
    if not things:
        return ""
    sources: dict[str, bytes] = {}
    modules = [thing.__module__ for thing in things]
    try:
        for name in modules:  # grows meanwhile
            if name not in sources:
                sources[name] = Path(inspect.getfile(sys.modules[name])).read_bytes()
                modules += _beside(sys.modules[name])
        edited = any(_edited(thing, sources[thing.__module__]) for thing in things)
    except (OSError, TypeError, KeyError, SyntaxError, ValueError):
        edited = True
    digests = [uuid.uuid4().bytes] if edited else sorted(hashlib.sha256(one).digest() for one in sources.values())
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _beside(module: ModuleType) -> list[str]:
    """Modules that a module takes names from, in its package, or beside or below its file."""
    inside = max(module.__name__.count(".") - (not hasattr(module, "__path__")), 0)
    root = Path(inspect.getfile(module)).resolve().parents[inside]
    held = vars(module).values()
    taken = {one.__name__ if isinstance(one, ModuleType) else getattr(one, "__module__", "") for one in held}
    found = []
    for name in sorted(name for name in taken if isinstance(name, str) and name.partition(".")[0] not in KNOWN):
        path = Path(getattr(sys.modules.get(name), "__file__", None) or "/").resolve()
        if path.is_relative_to(root) and not INSTALLED & {root.name, *path.relative_to(root).parts}:
            found.append(name)
    return found


def _edited(thing: Any, source: bytes) -> bool:
    """Whether functions of a class (or a function) are not those of its source."""
    path = inspect.getfile(sys.modules[thing.__module__])
    compiled = [compile(source, path, "exec", dont_inherit=True)]
    for code in compiled:  # grows meanwhile
        compiled += [one for one in code.co_consts if isinstance(one, CodeType)]
    values = vars(thing).values() if isinstance(thing, type) else [thing]
    codes = [getattr(inspect.unwrap(getattr(value, "__func__", value)), "__code__", None) for value in values]
    return any(code is not None and code.co_filename == path and code not in compiled for code in codes)

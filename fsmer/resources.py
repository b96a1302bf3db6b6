"""Where files are that ship beside the code (in a wheel and in a checkout alike), and where fsmer keeps its own."""

from __future__ import annotations

import os
from pathlib import Path

from fsmer.errors import FsmerError

__all__ = ["own_cache", "resource_folder"]

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """Folder of shipped resources, e.g. ``"episodes"`` or ``"pretrained"``.

    An installed wheel carries them as ``fsmer/_resources/<name>``, a checkout has them beside the package.

    Raises
    ------
    FsmerError
        Neither place has it: the installation is incomplete.
    """
    places = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for folder in places:
        if folder.is_dir():
            return folder
    raise FsmerError(
        f"this installation of fsmer has no folder {name!r}: neither {places[0]} nor {places[1]} is there; "
        "install fsmer again from a wheel or a full checkout."
    )


def own_cache() -> Path | None:
    """``$XDG_CACHE_HOME/fsmer``, else ``~/.cache/fsmer``; ``None`` where the user has no home folder."""
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(os.path.join("~", ".cache"))
    return None if place.startswith("~") else Path(place) / "fsmer"

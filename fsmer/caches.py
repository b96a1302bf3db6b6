"""Where a user's caches lie: what is kept there saves time and may be missing, unwritable or removed at any moment."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_place"]


def cache_place(name: str) -> Path | None:
    """Folder of the cache `name`: in ``$FSMER_CACHE``, else in ``$XDG_CACHE_HOME/fsmer``, else in ``~/.cache/fsmer``.

    ``None`` where nothing of that is set and the user has no home.
    """
    asked = os.environ.get("FSMER_CACHE", "")
    if asked.lower() not in ("", "off"):
        return Path(asked) / name
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsmer" / name
    except RuntimeError:
        return None

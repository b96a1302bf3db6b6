"""Where a user's caches lie: what is kept there saves time and may be missing, unwritable or removed at any moment."""

import os
from pathlib import Path

__all__ = ["cache_place"]


def cache_place(name: str) -> Path | None:
    """``$FSMER_CACHE/name``, else ``$XDG_CACHE_HOME/fsmer/name``, else ``~/.cache/fsmer/name``; None without a home."""
    asked = os.environ.get("FSMER_CACHE", "")
    if asked.lower() not in ("", "off"):
        return Path(asked) / name
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsmer" / name
    except RuntimeError:
        return None

"""Where the files that ship beside the code are: protocols and weights, in a wheel and in a checkout alike."""

from pathlib import Path

from fsmer.errors import FsmerError

__all__ = ["resource_folder"]

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """Folder of shipped resources, e.g. ``"episodes"``: in a wheel under ``_resources``, in a checkout beside fsmer."""
    places = (_PACKAGE / "_resources" / name, _PACKAGE.parent / name)
    for folder in places:
        if folder.is_dir():
            return folder
    raise FsmerError(
        f"this installation of fsmer has no folder {name!r}: neither {places[0]} nor {places[1]} is there; "
        "install fsmer again from a wheel or a full checkout."
    )

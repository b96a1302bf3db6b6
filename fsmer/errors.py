"""Typed errors of fsmer: each message says what was given, what is expected and what to do."""

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError", "DeviceError", "FsmerDeprecationWarning", "FsmerError", "MediaError", "MissingDatasetError",
    "OutputError", "PluginError", "ProtocolError", "SpecMismatchError", "SupportError", "UnknownNameError",
    "WeightsError",
]  # fmt: skip


class FsmerError(Exception):
    """Base of every error that fsmer raises on purpose."""


class DataError(FsmerError, ValueError):
    """A table, index file, label or set of clips cannot be used as given."""


class MediaError(DataError):
    """The media of a named clip is missing, unreadable, not finite or constant."""


class SpecMismatchError(DataError):
    """Clips hold media of another kind, size, channels or normalisation than a backbone expects."""


class MissingDatasetError(DataError):
    """A protocol needs a data set that is not there; the message says where to request it."""


class ProtocolError(FsmerError, ValueError):
    """A protocol asks for something that the clips cannot give (named in the message)."""


class SupportError(FsmerError, ValueError):
    """A support set cannot be learnt from (one class, no clips, unlabelled clips)."""


class UnknownNameError(FsmerError, LookupError):
    """A model, method, protocol, scheme or domain of that name does not exist."""


class WeightsError(FsmerError):
    """A weights file is missing, cut short, altered or from a newer version of fsmer."""


class DeviceError(FsmerError, ValueError):
    """A device to compute on that torch does not know or that is not there."""


class OutputError(FsmerError, OSError):
    """A file or folder cannot be written."""


class PluginError(FsmerError, ValueError):
    """A plugin cannot be loaded, or registers a name that is taken."""


class FsmerDeprecationWarning(FutureWarning):
    """Something of fsmer that is used here goes in a later release; the message says which one and what to use."""


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, without its full stop, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def unknown_name(kind: str, given: object, choices: Iterable[str], *, of: str = "") -> UnknownNameError:
    """Build the error for an unknown name (`of` something), suggesting the nearest known ones."""
    owner = f" of {of}" if of else ""
    known = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(given).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else "check the spelling."
    return UnknownNameError(f"unknown {kind} {str(given)!r}{owner}: {hint} Known: {', '.join(known)}.")

"""Typed errors of fsmer: each message says what was given, what is expected and what to do."""

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError", "DeviceError", "FsmerDeprecationWarning", "FsmerError", "MediaError", "MissingDatasetError",
    "OutputError", "PluginError", "ProtocolError", "SpecMismatchError", "SupportError", "UnknownNameError",
    "WeightsError",
]  # fmt: skip


class FsmerError(Exception):
    """Base of every error that fsmer raises on purpose.

    Examples
    --------
    >>> import fsmer
    >>> try:
    ...     fsmer.load_model("facs-flw")
    ... except fsmer.FsmerError as error:
    ...     print(str(error).split(": ")[1].split("?")[0])
    did you mean 'facs-flow'
    """


class DataError(FsmerError, ValueError):
    """A table, index file, label or set of clips cannot be used as given.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.synthetic_clips(n=4).positions(["no-clip"])
    Traceback (most recent call last):
        ...
    fsmer.errors.DataError: clip 'no-clip' is not in this set of 4 clips; check the id.
    """


class MediaError(DataError):
    """The media of a named clip is missing, unreadable, not finite or constant.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> fsmer.ClipSet.from_arrays(np.zeros((1, 3, 28, 28), np.float32), ["positive"]).media()
    Traceback (most recent call last):
        ...
    fsmer.errors.MediaError: clip 'mine-0' of data set 'mine': channel 'u' of its flow is constant
    (every pixel 0), so there is no movement to see; compute the flow again or leave the clip out.
    """


class SpecMismatchError(DataError):
    """Clips hold media of another kind, size, channels or normalisation than a backbone expects.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.synthetic_clips(n=4).media("frames")
    Traceback (most recent call last):
        ...
    fsmer.errors.SpecMismatchError: the clips hold no 'frames' media (held: flow); prepare frames first
    or ask for what is there.
    """


class MissingDatasetError(DataError):
    """A protocol needs a data set that is not there; the message says where to request it.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.check_dataset("casme2", "no-folder")
    Traceback (most recent call last):
        ...
    fsmer.errors.MissingDatasetError: the root ...no-folder of CASME II does not exist; give its folder.
    """


class ProtocolError(FsmerError, ValueError):
    """A protocol asks for something that the clips cannot give (named in the message).

    Examples
    --------
    >>> import fsmer
    >>> fsmer.KShotSampler(shot=-1)
    Traceback (most recent call last):
        ...
    fsmer.errors.ProtocolError: shot=-1 is not possible; give a whole number of at least 0.
    """


class SupportError(FsmerError, ValueError):
    """A support set cannot be learnt from (one class, no clips, unlabelled clips).

    Examples
    --------
    >>> import fsmer
    >>> fsmer.adapt("facs-flow", [])
    Traceback (most recent call last):
        ...
    fsmer.errors.SupportError: the support set is empty; give at least one labelled clip of every class.
    """


class UnknownNameError(FsmerError, LookupError):
    """A model, method, protocol, scheme or domain of that name does not exist.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.load_scheme("megc2018")
    Traceback (most recent call last):
        ...
    fsmer.errors.UnknownNameError: unknown label scheme 'megc2018': did you mean 'megc2019'? Known: ...
    """


class WeightsError(FsmerError):
    """A weights file is missing, cut short, altered or from a newer version of fsmer.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.Recognizer.load("no-folder")
    Traceback (most recent call last):
        ...
    fsmer.errors.WeightsError: no-folder is no folder here; give one that save_pretrained or
    Recognizer.save wrote.
    """


class DeviceError(FsmerError, ValueError):
    """A device to compute on that torch does not know or that is not there.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.train("ststnet", fsmer.synthetic_clips(n=12), epochs=1, device="abacus")
    Traceback (most recent call last):
        ...
    fsmer.errors.DeviceError: the device 'abacus' cannot be used here; torch sees ...
    """


class OutputError(FsmerError, OSError):
    """A file or folder cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> import fsmer
    >>> written = Path("taken").write_text("a file")
    >>> fsmer.synthetic_clips(n=4).save("taken")
    Traceback (most recent call last):
        ...
    fsmer.errors.OutputError: cannot write the folder ...: a file of that name is there; choose another folder.
    """


class PluginError(FsmerError, ValueError):
    """A plugin cannot be loaded, or registers a name that is taken.

    Examples
    --------
    >>> from fsmer.plugins import import_plugin
    >>> import_plugin("no_plugin.py")
    Traceback (most recent call last):
        ...
    fsmer.errors.PluginError: the plugin no_plugin.py is not a file here; give the path of a .py file or
    the name of a module.
    """


class FsmerDeprecationWarning(FutureWarning):
    """Something of fsmer that is used here goes in a later release; the message says which one and what to use.

    Examples
    --------
    >>> import warnings
    >>> from fsmer.errors import FsmerDeprecationWarning
    >>> import fsmer
    >>> with warnings.catch_warnings():
    ...     # An error shows every place that has to change, with a traceback.
    ...     warnings.simplefilter("error", FsmerDeprecationWarning)
    ...     clips = fsmer.synthetic_clips(n=4)
    """


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

"""Protocols by name: the kinds with their default parameters, and the YAML files that ship with fsmer."""

import fnmatch
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsmer.episodic.protocol import Protocol, make_protocol
from fsmer.errors import FsmerError, ProtocolError, UnknownNameError, unknown_name
from fsmer.listing import Listing
from fsmer.outside import outside_value
from fsmer.plugins import PROTOCOLS
from fsmer.resources import resource_folder
from fsmer.schema import read_yaml

__all__ = ["list_protocols", "load_protocol", "read_protocol"]

_SUFFIXES = (".yaml", ".yml")


def list_protocols(pattern: str = "*") -> list[str]:
    """Names of the protocols that `load_protocol` knows: the kinds first, then the shipped files.

    Parameters
    ----------
    pattern : str, default "*"
        Wildcards as in file names, e.g. ``"cdmer-*"``.

    Returns
    -------
    list of str
        The names.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.list_protocols("merau-*-to-smic-*")
    ['merau-casme2-to-smic-3way']
    """
    known = (*_kind_names(), *sorted(_shipped()))
    return Listing([name for name in known if fnmatch.fnmatchcase(name, pattern)], "protocols", _protocol_row)


def _protocol_row(name: str) -> dict[str, str]:
    title = "-"
    with suppress(FsmerError):  # of code from outside, which may be faulty
        title = load_protocol(name).title
    return {"protocol": name, "what it is": title}


def load_protocol(protocol: Protocol | str | os.PathLike[str], **overrides: Any) -> Protocol:
    """Load a protocol by name or from a YAML file.

    Parameters
    ----------
    protocol : str, path or Protocol
        A name of `list_protocols`, the path of a YAML file, or a protocol (which comes back, with the overrides).
    **overrides : object
        Parameters to replace, e.g. ``shot=1``. They change the protocol's hash.

    Returns
    -------
    Protocol
        The protocol with its overrides.

    Raises
    ------
    UnknownNameError
        There is no protocol of that name; the message suggests the nearest.
    ProtocolError
        The file is missing or wrong, or an override is no parameter of the protocol.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.load_protocol("kshot", way=3, shot=5, episodes=100).params["episodes"]
    100
    >>> fsmer.load_protocol("megc2019-cde").kind
    'cde'
    """
    if not isinstance(protocol, (Protocol, str, os.PathLike)):
        raise ProtocolError(
            f"a protocol was given as {outside_value(protocol)}; give a name of fsmer.list_protocols, the path of a "
            "YAML file, or a Protocol, which its class makes when it is called."
        )
    found = protocol if isinstance(protocol, Protocol) else _find(os.fspath(protocol))
    return found.with_params(**overrides) if overrides else found


def read_protocol(path: str | os.PathLike[str]) -> Protocol:
    """Read a protocol from a YAML file (its keys are described in ``episodes/README.md``).

    Raises
    ------
    ProtocolError
        The file is missing, is no valid YAML, or has a key or value that is not possible; the message names the file.
    UnknownNameError
        It names a label scheme that does not exist.
    """
    remedy = "give the path of a YAML file as episodes/README.md describes it, or a name of `fsmer protocols`"
    values: Any = read_yaml(path, Any, what="a protocol file", remedy=remedy, error=ProtocolError)
    try:
        found = Protocol.from_dict(values)
    except (ProtocolError, UnknownNameError) as error:
        raise type(error)(f"the protocol file {path}: {error}") from error
    named = isinstance(values, dict) and values.get("name")
    return found if named else replace(found, name=Path(path).stem)


def _find(name: str) -> Protocol:
    kinds, shipped = _kind_names(), _shipped()
    key = name.strip().lower().replace("_", "-")
    if key in kinds:
        # A name with a preset is known by it, since the kind is that of its class.
        return make_protocol(kinds[key], **{"name": key} if PROTOCOLS.preset(kinds[key]) else {})
    if key in shipped:
        return read_protocol(shipped[key])
    path = Path(name)
    if path.suffix.lower() not in _SUFFIXES and len(path.parts) == 1:
        raise unknown_name("protocol", name, [*kinds, *shipped])
    # An installed fsmer has the files of a checkout's episodes folder elsewhere; the path from the manual means those.
    if not path.exists() and path.parent == Path("episodes") and path.stem in shipped:
        path = shipped[path.stem]
    return read_protocol(path)


def _kind_names() -> dict[str, str]:
    return {kind.replace("_", "-").lower(): kind for kind in PROTOCOLS}


def _shipped() -> dict[str, Path]:
    folder = resource_folder("episodes")
    return {path.stem: path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}")}

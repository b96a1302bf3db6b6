"""Which methods there are, by name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fsmer.parameters import typed_value
from fsmer.plugins import METHODS
from fsmer.transfer.source_model import MethodError

__all__ = ["MethodInfo", "list_methods", "load_method", "register_method"]

if TYPE_CHECKING:
    from fsmer.transfer.method import Method

# Class decorator that enters a method in the registry under a name, if wanted with other values of its parameters.
register_method = METHODS.register


@dataclass(frozen=True)
class MethodInfo:
    """One line of `list_methods`."""

    name: str
    summary: str
    params: dict[str, Any]


def load_method(name: str | Method, **params: Any) -> Method:
    """The method of that name with `params` in place of its defaults.

    Parameters
    ----------
    name : str or Method
        A name of `list_methods`, or a method to change parameters of.
    **params
        Text is read as the parameter's type, so that a command line can hand values on: ``steps="50"``,
        ``scale="none"``.

    Raises
    ------
    UnknownNameError
        No such method or parameter; the nearest names are suggested.
    MethodError
        A value that the method cannot work with.

    Examples
    --------
    >>> load_method("cosine", steps=50).steps
    50
    """
    if not isinstance(name, str):
        cls, preset = type(name), name.get_params()
    else:
        cls = METHODS.find(name)
        preset = METHODS.preset(name)
    cls.check_params(params)
    # A class from outside may name its types as such and not as text.
    kinds = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(cls)}
    return cls(**preset | {key: _typed(cls.name, key, value, kinds[key]) for key, value in params.items()})


def list_methods() -> list[MethodInfo]:
    """All methods with their summaries and default parameters, sorted by name."""
    found = []
    for name in sorted(METHODS):
        cls, preset = METHODS[name], METHODS.preset(name)
        method = cls(**preset)
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        if preset:
            implied = ", ".join(f"{key}={value}" for key, value in preset.items())
            summary = f"{summary.removesuffix('.')}, with {implied}."
        found.append(MethodInfo(name=name, summary=summary, params=method.get_params()))
    return found


def _typed(method: str, key: str, value: Any, kind: str) -> Any:
    """`value` as the type that the annotation `kind` names; anything else is refused."""
    try:
        return typed_value(value, kind)
    except ValueError as error:
        raise MethodError(f"{key}={value!r} of the method {method!r} is not understood; expected {error}.") from error

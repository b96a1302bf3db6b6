"""Parameters as text or JSON gives them, brought to the type that a field's annotation names."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any, cast

__all__ = ["check_arguments", "typed_value"]

_WORDS = {"none": None, "null": None, "true": True, "yes": True, "false": False, "no": False}
_EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a finite number",
    "str": "text",
    "tuple[int, int]": "two whole numbers such as [5, 11]",
}


def typed_value(value: Any, kind: str) -> Any:
    """`value` as the type that the annotation `kind` names; ``ValueError`` with what was expected where it cannot be.

    Text is read as that type, so that a command line can hand values on: ``"50"``, ``"none"``. A `kind` beyond those
    listed above, with or without `` | None`` behind it, leaves the value as it is.
    """
    base, _, optional = kind.partition(" | ")
    if base not in _EXPECTED or optional not in ("", "None"):
        return value  # of a class from outside, which checks its own
    expected = _EXPECTED[base] + (" or none" if optional else "")
    if isinstance(value, str) and base != "str":
        value = _WORDS.get(value.strip().lower(), value)
    if value is None and optional:
        return None
    if base == "tuple[int, int]":
        try:
            one, other = value if isinstance(value, list | tuple) else ()
            return typed_value(one, "int"), typed_value(other, "int")
        except ValueError as error:
            raise ValueError(expected) from error
    if isinstance(value, str) and base in ("int", "float"):
        value = _number(value)
    # Whole numbers of more than 64 bits are too large for anything that a parameter stands for.
    limit = sys.float_info.max if base == "float" else 2**64 - 1
    number = isinstance(value, Real) and not isinstance(value, bool) and abs(cast(float, value)) <= limit
    fits = {
        "bool": isinstance(value, bool),
        "int": number and (isinstance(value, Integral) or float(value).is_integer()),
        "float": number,
        "str": isinstance(value, str),
    }
    if not fits[base]:
        raise ValueError(expected)
    return {"bool": bool, "int": int, "float": float, "str": str}[base](value)


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where an argument cannot be of the type that the function's own annotation names."""
    parameters = inspect.signature(function).parameters
    for name, value in arguments.items():
        kind = getattr(parameters.get(name), "annotation", None)
        try:
            typed_value(value, getattr(kind, "__name__", str(kind)))
        except ValueError as error:
            raise ValueError(f"{name} is {value!r}, expected is {error}") from None


def _number(text: str) -> int | float | None:
    for read in (int, float):
        with suppress(ValueError):
            return read(text)
    return None

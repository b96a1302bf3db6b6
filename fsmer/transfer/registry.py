"""Which methods there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fsmer.errors import unknown_name
from fsmer.parameters import typed_value
from fsmer.transfer.cosine_head import Cosine
from fsmer.transfer.full_training import Train
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.logistic import Logistic
from fsmer.transfer.method import Method, MethodError
from fsmer.transfer.protonet import ProtoNet
from fsmer.transfer.zero_shot import ZeroShot

__all__ = ["MethodInfo", "list_methods", "load_method"]

# One line a method: its class, and the parameters that the name implies.
METHODS: dict[str, tuple[type[Method], Mapping[str, Any]]] = {
    "cosine": (Cosine, {}),
    "finetune": (Finetune, {}),
    "logistic": (Logistic, {}),
    "protonet": (ProtoNet, {}),
    "protonet_cosine": (ProtoNet, {"distance": "cosine"}),
    "train": (Train, {}),
    "zero_shot": (ZeroShot, {}),
}


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
    if isinstance(name, Method):
        cls, preset = type(name), name.get_params()
    else:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
        cls, preset = METHODS[name][0], dict(METHODS[name][1])
    cls.check_params(params)
    # A class from outside may name its types as such and not as text.
    kinds = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(cls)}
    return cls(**preset | {key: _typed(cls.name, key, value, kinds[key]) for key, value in params.items()})


def list_methods() -> list[MethodInfo]:
    """All methods with their summaries and default parameters, sorted by name."""
    found = []
    for name in sorted(METHODS):
        cls, preset = METHODS[name]
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

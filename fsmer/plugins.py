"""Names under which backbones, methods and kinds of protocols are found, and where what has the name comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from fsmer.errors import unknown_name

__all__ = ["BACKBONES", "METHODS", "PROTOCOLS", "Registry", "is_own"]

C = TypeVar("C", bound=type[Any])


class Registry(Mapping[str, type[Any]]):
    """Classes of one kind by name: fsmer's own, whose modules are imported on first use, and those from outside.

    Parameters
    ----------
    kind : str
        What the classes are, in the words of messages.
    modules : sequence of str
        Modules of fsmer that register classes of this kind when they are imported.
    attribute : str
        Attribute of a class that says its name.
    """

    def __init__(self, kind: str, modules: Sequence[str], attribute: str = "name") -> None:
        self.kind = kind
        self.modules = tuple(modules)
        self.attribute = attribute
        self._held: dict[str, type[Any]] = {}
        self._preset: dict[str, Mapping[str, Any]] = {}

    def register(self, name: str, **preset: Any) -> Callable[[C], C]:
        """Class decorator that enters a class under `name` and writes the name into the class.

        With `preset`, values of its parameters, the name is a second one for the class with these values.

        Raises
        ------
        ValueError
            The name is taken by another class.
        """

        def enter(cls: C) -> C:
            taken = self._held.get(name)
            if taken is not None and taken.__qualname__ != cls.__qualname__:
                raise ValueError(
                    f"a {self.kind} named {name!r} is registered already ({taken.__qualname__}); choose another name."
                )
            if not preset:
                setattr(cls, self.attribute, name)
            self._held[name] = cls
            self._preset[name] = preset
            return cls

        return enter

    def find(self, name: str) -> type[Any]:
        """The class of that name; `UnknownNameError` with the nearest names for any other."""
        self._fill()
        if name not in self._held:
            raise unknown_name(self.kind, name, self._held)
        return self._held[name]

    def preset(self, name: str) -> dict[str, Any]:
        """Values of parameters that the name implies."""
        return dict(self._preset[name])

    def outside(self) -> set[str]:
        """Names of registered classes that are not fsmer's own; imports nothing."""
        return {name for name, cls in self._held.items() if not is_own(cls)}

    def __getitem__(self, name: str) -> type[Any]:
        self._fill()
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(tuple(self._held))

    def __len__(self) -> int:
        self._fill()
        return len(self._held)

    def _fill(self) -> None:
        for module in self.modules:
            import_module(module)


def is_own(cls: type) -> bool:
    """Whether a class is of fsmer, and not from outside."""
    return cls.__module__.partition(".")[0] == "fsmer"


BACKBONES = Registry(
    "model",
    [
        "fsmer.backbones.ensemble",
        "fsmer.backbones.facs_flow",
        "fsmer.backbones.flow_resnet18",
        "fsmer.backbones.fr",
        "fsmer.backbones.merau",
        "fsmer.backbones.mmnet",
        "fsmer.backbones.mubert",
        "fsmer.backbones.r3d_attribute",
        "fsmer.backbones.ststnet",
        "fsmer.backbones.tcae",
    ],
)
METHODS = Registry(
    "method",
    [
        "fsmer.transfer.cosine_head",
        "fsmer.transfer.full_training",
        "fsmer.transfer.linear_head",
        "fsmer.transfer.logistic",
        "fsmer.transfer.protonet",
        "fsmer.transfer.zero_shot",
    ],
)
PROTOCOLS = Registry("kind of protocol", ["fsmer.episodic.protocols"], attribute="kind")

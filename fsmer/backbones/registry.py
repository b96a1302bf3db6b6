"""Which backbones there are, by name, and how to load one."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from fsmer.backbones.base import CONFIG_FILE, Backbone, fetch_weights, read_config
from fsmer.data.spec import InputSpec
from fsmer.errors import WeightsError, unknown_name
from fsmer.resources import resource_folder

__all__ = ["ModelInfo", "create_model", "list_models", "load_model", "register_backbone"]

# One line a backbone: importing the module registers the names in it.
MODULES = ("fsmer.backbones.facs_flow",)

_REGISTRY: dict[str, type[Backbone]] = {}
B = TypeVar("B", bound=type[Backbone])


@dataclass(frozen=True)
class ModelInfo:
    """One line of `list_models`."""

    name: str
    summary: str
    parameters: int
    embed_dim: int
    input_spec: InputSpec
    pretrained: bool


def register_backbone(name: str) -> Callable[[B], B]:
    """Class decorator that enters a backbone in the registry under `name`."""

    def enter(cls: B) -> B:
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise ValueError(
                f"a backbone named {name!r} is registered already ({_REGISTRY[name].__qualname__}); "
                "choose another name."
            )
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return enter


def backbone_class(name: str) -> type[Backbone]:
    """The class registered under `name`; an unknown name raises `UnknownNameError` with the nearest ones."""
    registry = _filled_registry()
    if name not in registry:
        raise unknown_name("model", name, registry)
    return registry[name]


def create_model(name: str, **arguments: object) -> Backbone:
    """A backbone of that name with fresh (untrained) weights."""
    return backbone_class(name)(**arguments)  # type: ignore[arg-type]


def load_model(name_or_folder: str | Path) -> Backbone:
    """A backbone with trained weights, in evaluation mode.

    Parameters
    ----------
    name_or_folder : str or Path
        A registered name whose weights ship with fsmer (see `list_models`), a folder that ``save_pretrained`` made, or
        a hub repository (``owner/name``).

    Raises
    ------
    UnknownNameError
        Neither a registered name nor a folder.
    WeightsError
        The weights are missing, cut short, altered or from a newer fsmer.
    """
    name = str(name_or_folder)
    if name not in _filled_registry() and (Path(name).is_dir() or "/" in name):
        folder = fetch_weights(name)
        return backbone_class(str(read_config(folder)["backbone"])).from_pretrained(folder)
    cls = backbone_class(name)
    folder = resource_folder("pretrained") / name
    if not folder.is_dir():
        raise WeightsError(
            f"no weights of {name!r} ship with this fsmer; make them with 'fsmer pretrain {name}' and load that folder."
        )
    return cls.from_pretrained(folder)


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """All registered backbones whose name matches the wildcard `pattern`, sorted by name."""
    found = []
    for name in sorted(fnmatch.filter(_filled_registry(), pattern)):
        cls = _REGISTRY[name]
        model = cls()  # type: ignore[call-arg]
        found.append(
            ModelInfo(
                name=name,
                summary=(cls.__doc__ or "").strip().splitlines()[0],
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                embed_dim=model.embed_dim,
                input_spec=model.input_spec,
                pretrained=(resource_folder("pretrained") / name / CONFIG_FILE).is_file(),
            )
        )
    if not found and not any(character in pattern for character in "*?["):
        raise unknown_name("model", pattern, _REGISTRY)
    return found


def _filled_registry() -> dict[str, type[Backbone]]:
    for module in MODULES:
        import_module(module)
    return _REGISTRY

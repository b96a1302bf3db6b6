"""Folders of weights: read so that config and tensors belong together, and networks made that are no larger than them.

A config decides how large a network is made, and it is a text that anybody can write. So the tensors' names and shapes,
which the header of their file tells, are read first, and the making of a network that needs more is ended.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeVar

import torch
from annotated_types import Len
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import TypedDict

from fsmer.backbones.adaptation import PREFIX, Adaptation, AdaptationConfig
from fsmer.errors import FsmerError, WeightsError, reason_of
from fsmer.io import check_regular, restore_folder
from fsmer.kernels.noise import Draws, Redirected
from fsmer.memory import out_of_memory
from fsmer.parameters import check_arguments
from fsmer.plugins import BACKBONES, declared
from fsmer.schema import Count, Names, checked, read_json
from fsmer.tensor_files import read_tensors, tensor_shapes, under

if TYPE_CHECKING:
    from fsmer.backbones.base import Backbone

__all__ = ["WeightsConfig", "WeightsFolder", "fetch_weights", "file_sha256", "load_folder", "made_from_folder"]
__all__ += ["read_config", "refuse_other_files"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1

# Of a recognizer; minus infinity there stands for a class of which nothing is known.
OPEN_TENSORS = ("head.bias", "source.bias")

# Before the id of a repository on the Hugging Face hub, what can be such an id, and endings of files, which are none.
HUB = "hf://"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ENDINGS = (".safetensors", ".json", ".yaml", ".csv", ".npz")

REMEDY = "fetch or save the weights again"
# A folder that is saved again and again under its reader is read as often, at most.
TRIES, MOMENT_SECONDS = 100, 0.02
# While a network is made some tensors are made on the way to others, or not stored.
ELEMENTS_AN_ELEMENT, FURTHER_ELEMENTS = 8, 4 << 20
OPERATIONS_A_TENSOR, FURTHER_OPERATIONS = 32, 2_000
# A result up to this size is counted by a bound.
SMALL = 1 << 16

T = TypeVar("T")
B = TypeVar("B", bound="Backbone")

_LOADING: ContextVar[bool] = ContextVar("a network is being made from a config", default=False)


class WeightsConfig(TypedDict):
    """What ``config.json`` must say."""

    format_version: Count
    backbone: str
    # Who registered the backbone, in plain text: nothing is loaded because of it.
    plugin: NotRequired[str]
    arguments: dict[str, Any]
    weights_sha256: Annotated[str, Len(64, 64)]
    classes: NotRequired[Names]
    adaptation: NotRequired[AdaptationConfig]
    recognizer: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class WeightsFolder:
    """A folder whose weights are those that its config names; `shapes` are those of all tensors by their names."""

    folder: Path
    config: WeightsConfig
    shapes: Mapping[str, tuple[int, ...]]

    def tensors(self, *, unbounded: Collection[str] = ()) -> dict[str, Tensor]:
        """All tensors by their names; `WeightsError` for a number that is not finite, but for minus infinity in those
        that `unbounded` names."""
        path = self.folder / WEIGHTS_FILE
        found = read_tensors(path, unbounded=unbounded)
        if {name: tuple(value.shape) for name, value in found.items()} != self.shapes:
            raise WeightsError(f"{path} was replaced while it was read; load it again.")
        return found

    def check_real(self, name: str, value: Tensor) -> None:
        """Raise `WeightsError` unless the tensor of that name holds real numbers."""
        if not value.is_floating_point():
            raise WeightsError(
                f"the tensor {name!r} of {self.folder} has the type {value.dtype}, but real numbers are expected; "
                f"{REMEDY}."
            )

    def make(self, cls: type[B], prefix: str = "") -> B:
        """The network that the config describes, without the weights, whose names begin with `prefix`, in it.
        `WeightsError` where the arguments do not fit the class, or the network does not fit the tensors."""
        shapes = under(prefix, self.shapes)
        try:
            with _bounded(cls, self.config["arguments"], shapes):
                check_arguments(cls, self.config["arguments"])
                model = cls(**self.config["arguments"])
        # Arguments that nobody has checked can raise all sorts.
        except Exception as error:
            if out_of_memory(error):
                raise
            raise WeightsError(
                f"the arguments in {self.folder / CONFIG_FILE} do not fit {cls.name!r} ({reason_of(error)}); "
                "use weights and fsmer of the same version."
            ) from error
        if told := self.config.get("adaptation"):
            learned = {name: torch.empty(shape) for name, shape in under(PREFIX, shapes).items() if name}
            model.adaptation = Adaptation(told["algorithm"], told["method"], told["params"], learned)
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        unfit = {
            "missing": own.keys() - shapes.keys(),
            "unexpected": shapes.keys() - own.keys(),
            "of another shape": {name for name in own.keys() & shapes.keys() if own[name] != shapes[name]},
        }
        if any(unfit.values()):
            listed = "; ".join(f"{what}: {', '.join(sorted(names)[:3])}" for what, names in unfit.items() if names)
            raise WeightsError(
                f"the weights in {self.folder} do not fit {cls.name!r} ({listed}); "
                "use weights and fsmer of the same version."
            )
        return model

    def load(self, model: B, tensors: Mapping[str, Tensor], prefix: str = "") -> B:
        """The network of `make` with its weights, those of `tensors` that begin with `prefix`, in evaluation mode.
        `WeightsError` where whole numbers stand in place of real ones."""
        found = under(prefix, tensors)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.check_real(prefix + name, found[name])
        model.load_state_dict(found)
        model.classes = tuple(self.config.get("classes", ()))
        return model.eval()


def load_folder(folder: str | Path, load: Callable[[WeightsFolder], T], *, hub: bool = False) -> T:
    """What `load` makes of a folder of weights; once more where the folder was replaced meanwhile. `hub` says whether
    whoever gives a folder could give a repository of the hub. `WeightsError` where there is no such folder or a file is
    missing, cut short, altered or made by a newer fsmer, and whatever `load` raises."""
    place = Path(folder)
    for left in reversed(range(TRIES)):
        before = _generation(place)
        try:
            found = load(_open(place))
            if _generation(place) == before or not left:
                return found
        except FsmerError:
            # A writer that has replaced one file is about to replace the other; a killed one has left something to
            # be finished.
            time.sleep(MOMENT_SECONDS)
            restore_folder(place)
            if _generation(place) == before or not left:
                if place.is_dir():
                    raise
                break
    hint, name = "", str(folder)
    if hub and REPOSITORY.fullmatch(name) and not name.endswith(ENDINGS):
        hint = f", or write {HUB}{name} for a repository of that name on the Hugging Face hub"
    raise WeightsError(f"{name} is no folder here; give one that save_pretrained or Recognizer.save wrote{hint}.")


def read_config(folder: str | Path) -> WeightsConfig:
    """Read and check the ``config.json`` of a weights folder."""
    path = Path(folder) / CONFIG_FILE
    words: dict[str, Any] = {"what": "a config of fsmer weights", "remedy": REMEDY, "error": WeightsError}
    values = read_json(path, dict[str, Any], **words)
    version = values.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise WeightsError(
            f"{folder} was written by a newer fsmer (weights format {version}, this version reads up to "
            f"{FORMAT_VERSION}); upgrade fsmer."
        )
    return checked(values, WeightsConfig, path, **words)


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    check_regular(path)
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def made_from_folder() -> bool:
    """Whether the network that is being made is that of a saved config, whose text anybody can have written."""
    return _LOADING.get()


def refuse_other_files(argument: str) -> None:
    """Raise `WeightsError` while a network is made from a saved config: its weights are whole, and name no others."""
    if made_from_folder():
        raise WeightsError(f"its argument {argument} asks for other weights, but saved weights are whole")


def _open(folder: Path) -> WeightsFolder:
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    try:
        found = file_sha256(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "is missing" if missing else f"cannot be read: {error.strerror or error}"
        raise WeightsError(f"{path} {what}; {REMEDY}.") from error
    if found != config["weights_sha256"]:
        raise WeightsError(
            f"{path} is cut short or altered: its sha256 is {found[:12]}..., "
            f"{CONFIG_FILE} says {config['weights_sha256'][:12]}...; {REMEDY}."
        )
    return WeightsFolder(folder, config, tensor_shapes(path))


def _generation(folder: Path) -> list[tuple[int, int, int] | None]:
    """What changes when somebody writes the files of a folder anew."""
    found: list[tuple[int, int, int] | None] = [None, None]
    for place, name in enumerate((CONFIG_FILE, WEIGHTS_FILE)):
        with suppress(OSError):
            status = os.stat(folder / name)
            found[place] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


@contextmanager
def _bounded(
    cls: type[Backbone], arguments: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[None]:
    """Make a network that is no larger than `shapes`, and leave fresh weights undrawn where all of them are stored."""
    # Other networks may draw, after torch.manual_seed, what they do not store; an argument may name one of them.
    named = [BACKBONES.get(value) for value in arguments.values() if isinstance(value, str)]
    draws = not all(declared(one, "trusted") for one in (cls, *named) if one is not None)
    token = _LOADING.set(True)
    own: AbstractContextManager[Any] = torch.random.fork_rng(devices=[]) if draws else Draws(0).used(everywhere=False)
    try:
        with own, _Bounded(shapes, draws=draws):
            yield
    finally:
        _LOADING.reset(token)


class _Bounded(Redirected):
    """Gives up making a network that holds far more tensors or elements than there are in a file."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, draws: bool) -> None:
        super().__init__(Draws(0))
        self.draws_in_place = draws
        self.stored = sum(map(math.prod, shapes.values()))
        self.elements = ELEMENTS_AN_ELEMENT * self.stored + FURTHER_ELEMENTS
        self.operations = OPERATIONS_A_TENSOR * len(shapes) + FURTHER_OPERATIONS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        changes, views, draws = _traits(func)
        self.operations -= 1
        if not changes and not views:
            self.elements -= _elements(func, args, kwargs)
        if self.operations < 0 or self.elements < 0:
            raise ValueError(f"they describe a network far larger than the {self.stored:,} numbers of its weights")
        if not draws or self.draws_in_place or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if changes:
            # Zero rather than nothing: some draw again until all values are in some range.
            return args[0].zero_()
        return super().__torch_dispatch__(func, types, args, kwargs)


@lru_cache(maxsize=1000)
def _traits(func: Any) -> tuple[bool, bool, bool]:
    """Whether an operation changes a tensor, gives a view of one, draws random numbers."""
    return func._schema.is_mutable, func.is_view, torch.Tag.nondeterministic_seeded in func.tags


def _elements(func: Any, args: Any, kwargs: Mapping[str, Any]) -> int:
    """How many elements the results of an operation will have, or a bound, before there are any."""
    if args and isinstance(args[0], list | tuple) and all(isinstance(length, int) for length in args[0]):
        return math.prod(args[0])
    # No result of numbers and tensors that are multiplied, laid side by side or counted to is larger than this.
    sizes = [one.numel() if isinstance(one, Tensor) else one for one in tree_leaves(args)]
    if all(isinstance(size, int) for size in sizes):
        bound = math.prod(max(1, abs(size)) for size in sizes)
        if bound <= SMALL:
            return bound
    described = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else dict(kwargs)
    try:
        args, described = tree_map_only(Tensor, partial(torch.empty_like, device="meta"), (args, described))
        return sum(one.numel() for one in tree_leaves(func(*args, **described)) if isinstance(one, Tensor))
    except RuntimeError:
        # Not for shapes alone, such as the value of one element.
        return 0


def fetch_weights(folder: str | Path, revision: str | None = None) -> str | Path:
    """The local folder of weights that are given as a folder or as a hub repository (``hf://owner/name``). A path is
    only ever a path: the hub is asked for nothing that is not marked as its own."""
    name = str(folder)
    mark = re.match("hf://?", name)  # the second slash is lost where a Path has been made of it
    if mark is None or (not name.startswith(HUB) and Path(name).is_dir()):
        return folder
    repository = name[mark.end() :]
    if len(repository.split("/")) != 2:
        raise WeightsError(f"{name} names no repository of the hub; write {HUB}owner/name.")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"the hub repository {repository} could not be fetched or found in the cache ({reason_of(error)}); check "
            "the name and the network, or give a folder that save_pretrained made."
        ) from error

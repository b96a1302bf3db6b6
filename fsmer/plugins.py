"""Names under which things that others can add are found, where each comes from, and how plugins are loaded.

A plugin is a file or module that calls ``register_...`` when it is imported. An installed one is found by its entry
point in the group ``fsmer.plugins``, any other one is named by its user (`import_plugin`, ``--import`` on the command
line). No file that fsmer reads can name one: a saved recognizer says in plain text who registered its parts, and loads
where that plugin is there already.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

from fsmer.errors import PluginError, UnknownNameError, unknown_name
from fsmer.text import without_marks

__all__ = [
    "ALGORITHMS", "BACKBONES", "DATASETS", "GROUP", "INPUT_KINDS", "METHODS", "METRICS", "OWN", "PROTOCOLS", "Registry",
    "declared", "import_plugin", "outside_origin", "plugin_entry",
]  # fmt: skip

C = TypeVar("C")

# Group of the entry points that installed plugins are found by.
GROUP = "fsmer.plugins"
# Origin of what is part of fsmer.
OWN = "fsmer"
_REGISTRIES: list[Registry] = []
_INSTALLED: list[str] = []
# Name of the plugin that is being imported, by which its registrations are known.
_LOADING: ContextVar[str | None] = ContextVar("fsmer_plugin", default=None)


class Registry(Mapping[str, Any]):
    """Things of one kind by name: fsmer's own, whose modules are imported on first use, and those of plugins.

    `kind` says in messages what they are, `modules` ("folder: names") where fsmer's own are, and `base`
    ("module:class") which class they extend, or with `instances` are of; a thing's name is written to the `attribute`
    of it, where there is one.
    """

    def __init__(self, kind: str, modules: str, base: str, attribute: str = "", *, instances: bool = False) -> None:
        folder, _, names = modules.partition(": ")
        self.kind, self.modules = kind, tuple(f"fsmer.{folder}.{name}" for name in names.split())
        self.base, self.instances, self.attribute = base, instances, attribute
        self._held: dict[str, Any] = {}
        self._preset: dict[str, Mapping[str, Any]] = {}
        self._origins: dict[str, str] = {}
        _REGISTRIES.append(self)

    def register(self, name: str, **preset: Any) -> Callable[[C], C]:
        """Decorator that enters a class (or function, or other thing) under a name and writes the name into it.

        It is `fsmer.backbones.register_backbone`, `fsmer.transfer.registry.register_method` and
        `fsmer.episodic.register_protocol`.

        Parameters
        ----------
        name : str
            Name by which it is found from then on.
        **preset : object
            Values of its parameters that the name implies; the name is then a second one for it.

        Returns
        -------
        callable
            The decorator.

        Raises
        ------
        PluginError
            The name is taken by something else (also a ``ValueError``), it is no plain name, or the thing cannot be of
            this kind. The same definition (a module imported anew, a cell that is run again) replaces the first.

        Examples
        --------
        >>> import fsmer
        >>> from fsmer.backbones import register_backbone
        >>> @register_backbone("channel-means")
        ... class ChannelMeans(fsmer.Backbone):
        ...     def __init__(self):
        ...         super().__init__(input_spec=fsmer.InputSpec(), embed_dim=3, config={})
        ...
        ...     def forward(self, inputs):
        ...         return inputs.mean(dim=(2, 3))
        >>> fsmer.create_model("channel-means").name
        'channel-means'
        """
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            raise PluginError(
                f"{name!r:.80} cannot name a {self.kind}; give a text of letters, digits and '-', '_', '.', '+', as in "
                'register("my-name").'
            )

        def enter(thing: C) -> C:
            self._check(name, thing)
            place = _place(thing)
            if place[0] not in self.modules:
                # Names of fsmer's own are taken, whether they were asked for before or not.
                self._import_own()
            taken = self._held.get(name)
            if taken is not None and not (self._preset[name] == preset and self._same(taken, thing)):
                by = _place(taken)[1].rpartition(".")[2].replace("<lambda>", "a lambda")
                raise PluginError(
                    f"a {self.kind} named {name!r} is registered already, as {by} of {self._origins[name]}, and this "
                    "is another one; choose another name, or start Python anew if it takes the place of the first."
                )
            if not preset and self.attribute:
                setattr(thing, self.attribute, name)
            self._held[name] = thing
            self._preset[name] = preset
            self._origins[name] = OWN if place[0] in self.modules else _LOADING.get() or place[0]
            return thing

        return enter

    def _same(self, one: Any, other: Any) -> bool:
        # Not by `fsmer.outside.code_digest`: that is of the module's whole file, so that any edit beside a definition
        # would make it another one, and code of a notebook, which has no file, has another digest each time.
        if one is other:
            return True
        definitions = [_definition(thing, whole=True) for thing in (one, other)]
        if self.attribute:  # is written to the first one already
            for definition in definitions:
                definition[-1].pop(self.attribute, None)
        return _place(one) == _place(other) and definitions[0] == definitions[1]

    def _check(self, name: str, thing: Any) -> None:
        base, cls = pkgutil.resolve_name(self.base), type(thing) if self.instances else thing
        if not isinstance(cls, type) or not issubclass(cls, base):
            expected = f"a {base.__name__}" if self.instances else f"a class that extends {base.__name__}"
            raise PluginError(f"the {self.kind} {name!r} is {thing!r:.100}, but {expected} is expected.")
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        if missing:
            raise PluginError(f"the {self.kind} {name!r} is abstract; define {missing} in {cls.__name__}.")

    def find(self, name: str, plugin: object = None) -> Any:
        """The thing of that name; `plugin` says who registered it where a file that names it was written.

        An `UnknownNameError` has the nearest names, or the plugin that has to be loaded.
        """
        self._fill()
        if name in self._held:
            return self._held[name]
        if isinstance(plugin, str) and plugin:
            source = plugin[:200]
            remedy = "import it with --import or fsmer.plugins.import_plugin, by its "
            remedy += "path" if source.endswith(".py") else "name"
            if source.endswith(")"):  # as `_load_installed` writes it
                remedy = f"install {source.partition(' (')[0]!r}"
            elif source == "__main__":
                remedy = "run the code that registers it first"
            raise UnknownNameError(
                f"the {self.kind} {name!r} is registered by the plugin {source!r}, which is not loaded here; {remedy}."
            )
        raise unknown_name(self.kind, name, self._held)

    def summary(self, name: str) -> str:
        """The first line of its documentation as plain text; empty where it has none of its own."""
        thing = self[name]
        text = str(thing.__doc__ or "").strip().partition("\n")[0]
        # A dataclass without documentation gets its signature in place of it.
        return "" if text.startswith(f"{thing.__name__}(") else without_marks(text)

    def preset(self, name: str) -> dict[str, Any]:
        """Values of parameters that the name implies."""
        return dict(self._preset.get(name, {}))

    def origin(self, name: str) -> str:
        """Where the thing of that name is from: ``"fsmer"``, a distribution with its entry point, a file, a module."""
        self._fill()
        return self._origins[name]

    def outside(self) -> set[str]:
        """Names of registered things that are not fsmer's own; imports nothing."""
        return {name for name, origin in self._origins.items() if origin != OWN}

    def __getitem__(self, name: str) -> Any:
        self._fill()
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(tuple(self._held))

    def __len__(self) -> int:
        self._fill()
        return len(self._held)

    def _import_own(self) -> None:
        for module in self.modules:
            importlib.import_module(module)

    def _fill(self) -> None:
        self._import_own()
        _load_installed()

    def _forget(self, names: set[str]) -> None:
        for name in names & self._held.keys():
            del self._held[name], self._preset[name], self._origins[name]


def outside_origin(registry: Registry, thing: Any) -> str:
    """Where something of that kind is from, registered or not; nothing where it is fsmer's own."""
    module = _place(thing)[0]
    if module in registry.modules:
        return ""
    return next((registry._origins.get(name, module) for name, held in registry._held.items() if held is thing), module)


def plugin_entry(registry: Registry, thing: Any) -> dict[str, Any]:
    """What a saved file says, as plain text, of a thing that a plugin has registered; nothing of any other."""
    held = any(one is thing for one in registry._held.values())
    return {"plugin": outside_origin(registry, thing)} if held and _place(thing)[0] not in registry.modules else {}


def declared(cls: type, name: str) -> bool:
    """Whether a class itself says that `name` is true of it: what a class that it extends says does not count."""
    return vars(cls).get(name) is True


def import_plugin(target: str | os.PathLike[str]) -> ModuleType:
    """Import a plugin, so that what it registers is found by name, in processes of folds too.

    Parameters
    ----------
    target : path
        A ``.py`` file, or the name of a module that Python can import. What was imported already stays as it is; after
        an error it can be imported again.

    Returns
    -------
    module
        The module that was imported.

    Raises
    ------
    PluginError
        There is no such file or module, it is no valid Python, it raises an error, or it registers a name that is
        taken; the message names the plugin and the error.

    Warns
    -----
    UserWarning
        It registers nothing.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.plugins import import_plugin
    >>> with open("my_method.py", "w") as file:
    ...     print("from fsmer.transfer.cosine_head import Cosine", file=file)
    ...     print("from fsmer.transfer.registry import register_method", file=file)
    ...     print("register_method('short-cosine', steps=5)(Cosine)", file=file)
    >>> module = import_plugin("my_method.py")
    >>> fsmer.load_method("short-cosine").steps
    5
    """
    if not isinstance(target, (str, os.PathLike)) or not os.fspath(target):
        raise PluginError(f"a plugin is the path of a .py file or the name of a module, but {target!r:.100} was given.")
    text = str(os.fspath(target))
    path = Path(text)
    if path.suffix != ".py" and not path.exists() and re.fullmatch(r"[\w.]*\w", text):
        if text in sys.modules:
            return sys.modules[text]
        if path.with_suffix(".py").is_file() and importlib.util.find_spec(text.partition(".")[0]) is None:
            raise PluginError(f"no module {text!r} is installed, but a file {text}.py is here; give {text}.py instead.")
        with _plugin(text, text, text):
            return importlib.import_module(text)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a file here"
        raise PluginError(f"the plugin {text} is {what}; give the path of a .py file or the name of a module.")
    path = path.resolve()
    # A name of its own, so that a file called like an installed module does not stand in its way.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"the plugin {text} is no Python file; give one whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    with _plugin(text, path.name, name):
        sys.modules[name] = module
        spec.loader.exec_module(module)
    # Worker processes cannot import it by this name: its classes travel whole. Older versions of joblib have a
    # cloudpickle of their own.
    for pickles in ("cloudpickle", "joblib.externals.cloudpickle"):
        with suppress(ImportError):
            importlib.import_module(pickles).register_pickle_by_value(module)
    return module


def _load_installed() -> None:
    """Load the plugins of installed distributions once; a broken one is a warning."""
    if _INSTALLED:
        return
    _INSTALLED.append(GROUP)  # first, since plugins may ask registries themselves
    for entry in entry_points(group=GROUP):
        of = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        origin = f"{entry.dist.name if entry.dist else entry.value} ({entry.name})"
        try:
            with _plugin(f"{entry.name!r}{of}", origin, entry.value.partition(":")[0], asked=False):
                found = entry.load()
                if callable(found):
                    found()
        except PluginError as error:
            warnings.warn(f"{str(error).rstrip('.')}; until then its names are missing.", stacklevel=4)


@contextmanager
def _plugin(shown: str, origin: str, module: str, *, asked: bool = True) -> Iterator[None]:
    """Know what is registered meanwhile as from `origin`; after an error no module of the plugin counts as imported,
    and no name that such a module has registered is known, so that it can be mended and imported again."""
    before, modules = [registry.outside() for registry in _REGISTRIES], set(sys.modules)
    token = _LOADING.set(origin)
    try:
        yield
    except BaseException as error:
        package = module.partition(".")[0]
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] == package:
                del sys.modules[name]
        kept = set(sys.modules) - modules
        for registry, names in zip(_REGISTRIES, before, strict=True):
            new = {name for name in registry.outside() - names if registry._origins[name] == origin}
            registry._forget({name for name in new if _place(registry._held[name])[0] not in kept})
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = _reason(error)
        raise PluginError(f"the plugin {shown} cannot be loaded ({reason}); repair it or leave it out.") from error
    finally:
        _LOADING.reset(token)
    # What an entry point names may have been imported, and have registered all, before it is asked for.
    if asked and before == [registry.outside() for registry in _REGISTRIES]:
        warnings.warn(f"the plugin {shown} registers nothing; let it call a register_... function.", stacklevel=4)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, (ModuleNotFoundError, SyntaxError)):
        return f"{type(error).__name__}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    where = f", line {inside[0].lineno} of {Path(inside[0].filename).name}" if inside else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


def _place(thing: Any) -> tuple[str, str]:
    """Module and qualified name of a class, of a function, or of the class of anything else."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return named.__module__, named.__qualname__


# What definitions are made of.
_PARTS: dict[type, tuple[str, ...]] = {
    classmethod: ("__func__",), staticmethod: ("__func__",), property: ("fget", "fset", "fdel"),
    partial: ("func", "args", "keywords"), CodeType: ("co_code", "co_names", "co_consts"),
    FunctionType: ("__code__", "__defaults__", "__kwdefaults__"),
}  # fmt: skip


def _definition(thing: Any, *, whole: bool = False) -> Any:
    # Code and plain values: equal for the same text that is run once more, wherever it stands.
    if isinstance(thing, (str, bytes, int, float, complex, frozenset)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [_definition(one) for one in thing]
    if isinstance(thing, dict):
        return {key: _definition(value) for key, value in thing.items()}
    for kind, names in _PARTS.items():
        if isinstance(thing, kind):
            held = []
            for cell in getattr(thing, "__closure__", None) or ():
                with suppress(ValueError):  # empty
                    held.append(cell.cell_contents)
            # Functions that know each other would go on for ever.
            places = [_place(one) if isinstance(one, (FunctionType, partial)) else _definition(one) for one in held]
            return [*(_definition(getattr(thing, name)) for name in names), *places]
    bases = [_place(base) for base in getattr(thing, "__bases__", ())]
    return [_place(thing), bases, _definition(dict(getattr(thing, "__dict__", {}))) if whole else {}]


_NETWORKS = "backbones: ensemble facs_flow flow_resnet18 fr merau mmnet mubert r3d_attribute ststnet tcae"
_LEARNERS = (
    "transfer: alpha_tim cosine_head full_training inner_loop laplacian_shot linear_head protonet ridge simpleshot "
    "sklearn_methods svm"
)
_ALGORITHMS = "meta: anil fomaml maml meta_sgd metaoptnet protonet r2d2 reptile"
_RELEASES = "datasets: casme casme2 casme_squared casme3 samm smic mmew fourdme generic"
BACKBONES = Registry("model", _NETWORKS, "fsmer.backbones.base:Backbone", "name")
ALGORITHMS = Registry("algorithm", _ALGORITHMS, "fsmer.meta.algorithm:Algorithm", "name")
METHODS = Registry("method", _LEARNERS, "fsmer.transfer.method:Method", "name")
PROTOCOLS = Registry("kind of protocol", "episodic: protocols", "fsmer.episodic.protocol:Protocol", "kind")
DATASETS = Registry("data set", _RELEASES, "fsmer.datasets.base:Adapter")
METRICS = Registry("metric", "evaluation: metrics", "collections.abc:Callable", instances=True)
INPUT_KINDS = Registry("kind of medium", "data: spec", "fsmer.data.spec:InputKind", instances=True)

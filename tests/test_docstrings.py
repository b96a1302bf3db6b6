"""Docstrings of the public interface: whole, true to the signatures, and with examples that run.

The rules, each a test with one case a public name:

- The docstring parses as numpydoc; sections stand in numpydoc's order.
- Documented parameters are those of the signature, in its order. Every one has a type and a description. A class that
  fsmer makes itself, such as `Report`, documents its attributes in place of its constructor.
- A documented type agrees with the annotation. It is a list of words joined by commas or "or"; the first word of each
  stands for the classes in `WORDS` (a class for itself), and every class of the annotation is meant by a word.
- A default is named: ``optional`` where it is None or made anew for each call, else ``default VALUE``.
- A function that gives something has Returns (or Yields); errors of fsmer that it raises itself are in its docstring.
- A function or class has an example, and so has a method or property, be it in the docstring of its class or of one of
  the other methods there. Examples import what they use and run in an empty folder; none is skipped.
- What several functions share (`SHARED`) is described with the same first sentence.
"""

from __future__ import annotations

import ast
import doctest
import functools
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from numpydoc.validate import Validator, validate

import fsmer
from fsmer import plugins
from fsmer.errors import DataError

# Modules whose public names are documented, beside `fsmer` itself.
MODULES = ("fsmer.testing", "fsmer.errors", "fsmer.deprecation")
# What a plugin calls.
FOR_PLUGINS = (
    "fsmer.plugins.import_plugin", "fsmer.plugins.Registry.register", "fsmer.evaluation.metrics.register_metric",
    "fsmer.datasets.register_dataset", "fsmer.data.spec.register_input_kind",
)  # fmt: skip

# numpydoc's codes: unknown or misplaced sections, no summary, parameters that are missing, unknown, in another order,
# or without type or description, and descriptions that are no sentence.
CHECKED = {"GL06", "GL07", "GL08", "SS01", "SS02", "PR01", "PR02", "PR03", "PR04", "PR07", "PR08", "PR09", "RT03"}

PATHS = {"str", "PathLike", "Path"}
ARRAYS = {"ArrayLike", "NDArray", "ndarray", "Any", "Floats"}
WORDS = {
    "name": {"str"},
    "path": PATHS,
    "slice": {"slice"},
    "mask": ARRAYS,
    "index": ARRAYS,
    "folder": PATHS,
    "file": PATHS,
    "array": ARRAYS,
    "ndarray": ARRAYS,
    "tensor": {"Tensor"},
    "sequence": {"Sequence", "ArrayLike"},
    "list": {"Sequence"},
    "iterable": {"Iterable"},
    "pair": {"tuple"},
    "mapping": {"Mapping", "dict"},
    "callable": {"Callable"},
    "classifier": {"ClassifierMixin"},
    "kind": {"Any"},
    "one": ARRAYS,
}
# Names for types, and what they stand for.
ALIASES = {
    "Damaged": "Literal['refuse', 'keep']",
    "FrameKind": "Literal['raw', 'cropped']",
    "Normalisation": "Literal['minmax', 'signed']",
    "Rule": "Literal['fixed', 'nested', 'oracle']",
    "Block": "Literal['subject', 'dataset', 'episode']",
    "Kind": "Literal['backbone', 'method', 'protocol', 'adapter']",
    "Which": "Literal['largest'] | int",
    "Length": "int",
    "Progress": "Callable",
    "F": "Callable",
    "T": "Any",
    "Labelled": "ClipSet | Sequence | tuple",
    "Inputs": "ClipSet | Clip | Sequence | Any",
    "Explainable": "ClipSet | Clip | Sequence | Any",
    "Targets": "Targets",
    "Figures": "dict",
    "object": "Any",
}
# What parameters of several functions are, once for all: each description begins with one of these.
SHARED = {
    "arguments": ("Constructor arguments of a backbone that is given by name", "Arguments of its constructor"),
    "classes": (
        "The classes in the order of the recognizer's columns; default the sorted labels",
        "The classes that", "The classes of", "As for `codes`", "For a backbone: classes", "Fixed subset of classes",
        "Names of classes", "Sets of action units to draw",
    ),
    "descriptions": ("What classes look like in words",),
    "device": ('Where the network computes, such as ``"cuda"``; default where it is, which for names and folders is',),
    "draws": ("Bootstrap samples",),
    "folder": ("Folder to write.", "Folder to read.", "A folder (that of a recognizer gives its backbone)"),
    "frames": (
        "Kind of frames where a release has both. Default: raw where they are there.", "Length in time", "Video file",
    ),
    "frames_per_second": ("Overrides the source's own.",),
    "inputs": (
        "One tensor where the network expects one medium, a dict by kind where it expects several.", "Kind -> medium",
    ),
    "instead": ("What to use in its place",),
    "kind": ("Kind of medium.", "What `subject` is.", "What the subjects are.", '``"flow"`` (one map'),
    "out": ("Folder for",),
    "params": ("Parameters",),
    "progress": ("Called with (",),
    "recipe": ("Default: face found by the cascade, apex as given or spotted by flow, Farneback, TIM.", "How is"),
    "removal": ("Release in which it is gone, at least two minor releases later",),
    "resume": ("Whether to go on with what is there",),
    "scheme": ("Label scheme to apply, see `ClipSet.relabel`.", "Name of a built-in scheme"),
    "seed": ("Seed of",),
    "since": ("First release that warns",),
    "subject": ("What is checked, as for `checks`.", "A registered name", "Whose face it is"),
    "where": (
        "Rows to keep, see `ClipSet.select`; it is applied before the scheme, on the labels as written.", "A condition",
    ),
}  # fmt: skip
# Parameters that are something else in nearly every function.
OF_THEIR_OWN = {"clips", "media", "method", "model", "name", "names", "path", "root", "source", "subjects"}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@dataclass(frozen=True)
class Public:
    """One public name: where it is imported from, what it is, and the class that has it."""

    name: str
    thing: Any
    owner: str = ""

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def code(self) -> Any:
        found = getattr(self.thing, "func", self.thing)
        found = found.fget if isinstance(found, property) else found
        return found if inspect.isclass(found) else inspect.unwrap(getattr(found, "__func__", found))

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.code.__doc__ or "")

    @property
    def is_property(self) -> bool:
        return isinstance(self.thing, (property, functools.cached_property))

    def section(self, heading: str) -> str:
        found = re.search(rf"^{heading}\n-+\n(.*?)(?=^\w[\w ]*\n-{{3,}}$|\Z)", self.doc, re.MULTILINE | re.DOTALL)
        return found[1].rstrip() if found else ""

    @functools.cached_property
    def tree(self) -> Any:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(self.code))).body
        return node

    def documented(self) -> dict[str, tuple[str, str]]:
        """Parameter -> its type as written, and its description."""
        found = {}
        for head, text in re.findall(r"^(\S.*)\n((?:(?:[ ].*)?\n?)*)", self.section("Parameters") + "\n", re.MULTILINE):
            names, _, kind = head.partition(" : ")
            for name in names.split(","):
                found[name.strip().lstrip("*")] = (kind, " ".join(text.split()))
        return found

    def annotations(self) -> dict[str, ast.expr]:
        """Parameter -> its annotation, as it is written."""
        node = self.tree
        if isinstance(node, ast.ClassDef):
            made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
            if not made:
                fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
                return {part.target.id: part.annotation for part in fields if isinstance(part.target, ast.Name)}
            (node,) = made
        given = node.args
        every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        return {one.arg: one.annotation for one in every if one is not None and one.annotation is not None}


def members(cls: type, path: str) -> Iterator[Public]:
    """Public methods and properties that fsmer's own code gives a class."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("fsmer."):
            found |= vars(base)
    for name, value in found.items():
        callable_there = inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod))
        if not name.startswith("_") and (callable_there or isinstance(value, (property, functools.cached_property))):
            yield Public(f"{path}.{name}", value, path)


def public_names() -> Iterator[Public]:
    places = [f"fsmer.{name}" for name in fsmer.__all__ if name != "__version__"]
    for module in MODULES:
        places += [f"{module}.{name}" for name in import_module(module).__all__]
    seen = set()
    for place in [*places, *FOR_PLUGINS]:
        thing = Validator._load_obj(place)
        if not callable(thing) or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield Public(place, thing)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            yield from members(thing, place)


PUBLIC = tuple(public_names())
FUNCTIONS = [one for one in PUBLIC if not one.is_property]
BY_NAME = {one.name: one for one in PUBLIC}


def is_error(one: Public) -> bool:
    return inspect.isclass(one.thing) and issubclass(one.thing, Exception)


def classes_of(annotation: ast.expr) -> set[str]:
    """Names of the classes in an annotation; a literal is its value as written in Python with double quotes."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return classes_of(left) | classes_of(right)
        case ast.Constant(value=None):
            return {"None"}
        case ast.Constant(value=str() as text):
            return classes_of(ast.parse(text, mode="eval").body)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=held):
            values = held.elts if isinstance(held, ast.Tuple) else [held]
            return {quoted(ast.literal_eval(value)) for value in values}
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return classes_of(first)
        case ast.Subscript(value=value):
            return classes_of(value)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            alias = ALIASES.get(name, name)
            return {name} if alias == name else classes_of(ast.parse(alias, mode="eval").body)
    raise AssertionError(f"{ast.unparse(annotation)} is no annotation that this test can read.")


def quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def alternatives(kind: str) -> list[str]:
    """The parts of a documented type, without what is said of the default."""
    kind = re.sub(r",? ?(optional|default .*)$", "", kind)
    kind = re.sub(r"\{([^}]*)\}", lambda found: " or ".join(found[1].split(", ")), kind)
    kind = re.sub(r",? (?:of )?shape \([^()]*\)", "", kind)
    kind = re.sub(r"\([^()]*\)", "()", kind)
    return [part for part in re.split(r", or |, | or ", kind) if part]


def meant_by(part: str) -> set[str]:
    if part.startswith('"'):  # a choice, which may be annotated as any text
        return {part, "str"}
    word = part.split()[0].rsplit(".", 1)[-1]
    return WORDS.get(word, {word})


@pytest.mark.parametrize("public", PUBLIC, ids=str)
def test_a_docstring_is_numpydoc_with_the_parameters_of_the_signature(public: Public) -> None:
    faults = validate(public.name)["errors"]
    found = [text for code, text in faults if code in CHECKED]
    if public.is_property or is_error(public) or public.section("Attributes"):
        found = [text for text in found if "not documented" not in text]
    assert not found, f"{public}: {found}"


@pytest.mark.parametrize("public", FUNCTIONS, ids=str)
def test_documented_types_agree_with_annotations(public: Public) -> None:
    documented, faults = public.documented(), []
    for name, annotation in public.annotations().items():
        if name not in documented:
            continue
        kind, _ = documented[name]
        wanted, parts = classes_of(annotation), [meant_by(part) for part in alternatives(kind)]
        if not kind:  # what the test above says of *args alone
            continue
        stray = [part for part, held in zip(alternatives(kind), parts, strict=True) if not held & wanted]
        left = wanted - {"None", "Any"} - set().union(*parts)
        stray = [] if "Any" in wanted else stray
        if stray or left:
            faults.append(f"{name}: {kind!r} says {stray or 'nothing'} beside, and nothing of {sorted(left)}")
    assert not faults, f"{public}: {faults}"


@pytest.mark.parametrize("public", [one for one in PUBLIC if one.section("Attributes")], ids=str)
def test_documented_attributes_are_there(public: Public) -> None:
    names = re.findall(r"^(\S.*?) : ", public.section("Attributes"), re.MULTILINE)
    documented = [name for part in names for name in part.split(", ")]
    if is_dataclass(public.thing):
        assert documented == [field.name for field in fields(public.thing)]
    else:
        code = inspect.getsource(public.thing)
        assert documented
        assert all(re.search(rf"(self\.{name}\b.*=|def {name}\(|^    {name}: )", code, re.M) for name in documented)


@pytest.mark.parametrize("public", FUNCTIONS, ids=str)
def test_defaults_are_named(public: Public) -> None:
    documented, faults = public.documented(), []
    if is_error(public):
        return
    for name, parameter in inspect.signature(public.code).parameters.items():
        if name not in documented:
            continue
        kind, _ = documented[name]
        default = parameter.default
        said = re.search(r"(?:^|, )(optional|default (.*))$", kind)
        if default is inspect.Parameter.empty:
            expected = None
        elif default is None or type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            expected = "optional"
        else:
            expected = f"default {quoted(default)}".replace("'", '"')
        if (said and said[1]) != expected:
            faults.append(f"{name} : {kind} should say {expected or 'no default'}")
    assert not faults, f"{public}: {faults}"


@pytest.mark.parametrize("name", sorted(SHARED))
def test_a_parameter_of_several_functions_is_described_in_the_same_words(name: str) -> None:
    found = {str(one): one.documented()[name][1] for one in FUNCTIONS if name in one.documented()}
    assert len(found) > 1, f"{name} is no parameter of several functions; take it out of the table."
    others = {place: text for place, text in found.items() if not text.startswith(SHARED[name])}
    assert not others, f"{name} is described in other words: {others}; take those of SHARED."
    unused = [text for text in SHARED[name] if not any(one.startswith(text) for one in found.values())]
    assert not unused, f"no description of {name} begins with {unused}."


def test_parameters_of_many_functions_have_shared_texts() -> None:
    counts = Counter(name for one in FUNCTIONS for name in one.documented())
    many = {name for name, count in counts.items() if count > 3}
    assert not (missing := many - SHARED.keys() - OF_THEIR_OWN), f"add {missing} to SHARED."


@pytest.mark.parametrize("public", FUNCTIONS, ids=str)
def test_what_is_returned_is_documented(public: Public) -> None:
    if inspect.isclass(public.thing):
        return
    returns = public.tree.returns
    if returns is None or ast.unparse(returns).strip("'\"") in {"None", "Never"}:
        assert not public.section("Returns"), public
    else:
        assert public.section("Returns") or public.section("Yields"), f"{public} has no section Returns."


@pytest.mark.parametrize("public", PUBLIC, ids=str)
def test_errors_that_it_raises_itself_are_documented(public: Public) -> None:
    if inspect.isclass(public.thing):
        return
    errors = import_module("fsmer.errors")
    raised = {
        node.exc.func.id
        for node in ast.walk(public.tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    raised = {name for name in raised if hasattr(errors, name) and inspect.isclass(getattr(errors, name))}
    missing = [
        name
        for name in raised
        if not any(base.__name__ in public.doc for base in getattr(errors, name).__mro__ if base is not Exception)
    ]
    assert not missing, f"{public} does not say when it raises {missing}."


@pytest.fixture
def _names_of_fsmer() -> Iterator[None]:
    """What an example registers is forgotten after it."""
    held = [(registry, set(registry)) for registry in plugins._REGISTRIES]
    yield
    for registry, names in held:
        registry._forget(set(registry) - names)


def examples_of(public: Public) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(public.section("Examples"))


def shown(public: Public) -> bool:
    """Whether an example uses the name."""
    if examples_of(public):
        return True
    if not public.owner:
        return False
    code = [example.source for one in PUBLIC if public.owner in (one.name, one.owner) for example in examples_of(one)]
    name = public.name.rsplit(".", 1)[-1]
    nodes = [node for text in code for node in ast.walk(ast.parse(text))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return name in used | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("public", PUBLIC, ids=str)
def test_every_public_name_has_an_example(public: Public) -> None:
    assert shown(public), f"{public} has no example."
    assert ">>>" not in public.doc.replace(public.section("Examples"), ""), f"{public}: >>> outside Examples."


@pytest.mark.usefixtures("_names_of_fsmer")
@pytest.mark.parametrize("public", [one for one in PUBLIC if examples_of(one)], ids=str)
def test_examples_run_and_print_what_they_say(public: Public, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = public.section("Examples")
    assert "+SKIP" not in text, f"{public}: an example is skipped."
    made = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, public.name, None, None)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    outcome = runner.run(made, out=said.append)
    assert outcome.failed == 0, "".join(said)


def _wrong(first: int, second: str = "a", third: Path | None = None) -> int:
    """Add something.

    Parameters
    ----------
    first : str
        The first.
    third : path, default 3
        The third.
    second : str
        The second.
    """
    raise DataError("it cannot be added; give something else.")


@pytest.mark.parametrize(
    ("rule", "facts"),
    [
        (test_a_docstring_is_numpydoc_with_the_parameters_of_the_signature, ["Wrong parameters order"]),
        (test_documented_types_agree_with_annotations, ["first: 'str'", "int"]),
        (
            test_defaults_are_named,
            ['second : str should say default "a"', "third : path, default 3 should say optional"],
        ),
        (test_what_is_returned_is_documented, ["no section Returns"]),
        (test_errors_that_it_raises_itself_are_documented, ["DataError"]),
        (test_every_public_name_has_an_example, ["has no example"]),
    ],
    ids=lambda value: value.__name__.removeprefix("test_") if callable(value) else "",
)
def test_a_docstring_that_breaks_a_rule_is_found(rule: Callable[[Public], None], facts: list[str]) -> None:
    with pytest.raises(AssertionError) as caught:
        rule(Public(f"{__name__}._wrong", _wrong))
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)

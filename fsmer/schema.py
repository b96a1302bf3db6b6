"""Reading of structured files: JSON and YAML are bounded, parsed, and checked against a declared schema."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeVar, cast

import numpy as np
from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict, Unpack

from fsmer.errors import DataError, FsmerError
from fsmer.io import CHECKSUM, TEXT_BYTES, json_digest, read_bytes

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Count", "Fraction", "Names", "checked", "entries", "parse_json", "plain_value", "read_json", "read_yaml"]

T = TypeVar("T")
StrPath = str | os.PathLike[str]

# Nested lists and tables of one file.
DEPTH = 64
# More than any file of fsmer holds, and little enough to allocate nothing by mistake.
Count = Annotated[int, Ge(0), Le(2**40)]
Fraction = Annotated[float, Ge(0), Le(1)]
Names = Annotated[list[str], Len(0, 1_000_000)]


class Words(TypedDict):
    """What a file is in messages (``"a report"``), what to do about a bad one, what to raise (default `DataError`)."""

    what: str
    remedy: str
    error: NotRequired[type[FsmerError]]


def entries(fields: Mapping[str, Any], **options: Any) -> Any:
    """A schema: a table with these entries; with ``extra_items=Any`` it may have any others too."""
    return TypedDict("entries", fields, **options)  # type: ignore[operator]


def read_json(path: StrPath, schema: type[T], *, limit_bytes: int = TEXT_BYTES, **words: Unpack[Words]) -> T:
    """Content of a JSON file as `schema` describes it; a file of more than `limit_bytes` is refused unread.

    `schema` is what pydantic can check strictly: a ``TypedDict`` of ``typing_extensions`` (the result is a plain dict),
    a dataclass, ``dict[str, Any]``. The ``error`` of `words` is raised where the file is missing, no regular file, too
    large, no JSON, nested too deeply, does not fit the schema, holds a number that is not finite, or was altered after
    fsmer wrote it.
    """
    return parse_json(_content(path, limit_bytes, **words), schema, path, **words)


def parse_json(data: str | bytes, schema: type[T], name: object, **words: Unpack[Words]) -> T:
    """As `read_json` for content that is at hand; `name` says in messages where it is from."""
    from pydantic_core import from_json

    try:
        values = from_json(data, allow_inf_nan=False)
    except ValueError as problem:
        raise _refused(name, f"it is not valid JSON ({_plain(problem)})", **words) from problem
    if isinstance(values, dict) and CHECKSUM in values and values[CHECKSUM] != json_digest(values):
        raise words.get("error", DataError)(
            f"{name} was altered after fsmer wrote it: its content does not have its checksum; {words['remedy']}, or "
            f"remove its entry {CHECKSUM!r} if you changed it on purpose."
        )
    return checked(values, schema, name, **words)


def read_yaml(path: StrPath, schema: type[T], *, limit_bytes: int = 1 << 20, **words: Unpack[Words]) -> T:
    """Content of a YAML file as `schema` describes it; parameters and errors as for `read_json`.

    Only text, numbers, true and false, null, lists and tables are read: no tags, no dates, no aliases (by which a
    small file can stand for a huge one), no key twice.
    """
    import yaml

    data = _content(path, limit_bytes, **words)
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"its lists and tables are nested more than {DEPTH} deep")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it refers to another place by *{event.anchor}; write the value out")
        values = yaml.load(text, _yaml_loader())
    except UnicodeDecodeError as problem:
        raise _refused(path, "it is not UTF-8 text", **words) from problem
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise _refused(path, f"it is no valid YAML ({_plain(problem)})", **words) from problem
    return checked(values, schema, path, **words)


def checked(values: Any, schema: type[T], name: object, **words: Unpack[Words]) -> T:
    """Plain values as `schema` describes them; `name` says where they are from. Errors as for `read_json`."""
    from pydantic import ValidationError
    from pydantic_core import to_json

    problem = _unusable(values)
    if not problem:
        try:
            # Through JSON, so that a list may stand for a tuple while text may not stand for a number.
            text = to_json(values, inf_nan_mode="constants", fallback=plain_value)
            found: T = _adapter(cast(Any, schema)).validate_json(text, strict=True)
            return cast(T, _in_order(found, values))
        except ValidationError as refused:
            first = refused.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            given = repr(first["input"])
            shown = given if len(given) <= 60 else f"{given[:57]}..."
            fault = first["msg"].removeprefix("Value error, ")
            problem = f"{place}: {fault[:1].lower()}{fault[1:]}"
            problem += "" if first["type"] == "missing" else f", not {shown}"
        except (ValueError, RecursionError) as refused:
            problem = _plain(refused).removeprefix("Error serializing to JSON: DataError: ").removesuffix(".")
    raise words.get("error", DataError)(f"{name} cannot be read as {words['what']} ({problem}); {words['remedy']}.")


def plain_value(value: Any) -> Any:
    """What a NumPy number stands for in JSON; of everything else that JSON does not have, a `DataError`."""
    if isinstance(value, np.generic):
        return value.item()
    raise DataError(f"a value has the type {type(value).__name__}, but text, numbers, lists and tables are expected.")


def _in_order(found: Any, given: Any) -> Any:
    """The plain values found, in the order of those given: what is written again stays the same file."""
    if isinstance(found, dict) and isinstance(given, dict):
        return {key: _in_order(found[key], given[key]) for key in given if key in found}
    if isinstance(found, list) and isinstance(given, list):
        return [_in_order(*pair) for pair in zip(found, given, strict=True)]
    return found


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _content(path: StrPath, limit_bytes: int, **words: Unpack[Words]) -> bytes:
    try:
        return read_bytes(path, limit_bytes)
    except (OSError, ValueError) as problem:
        raise _refused(Path(path), getattr(problem, "strerror", None) or problem, **words) from problem


def _refused(name: object, reason: object, **words: Unpack[Words]) -> FsmerError:
    error = words.get("error", DataError)
    return error(f"{name} cannot be read as {words['what']}: {reason}; {words['remedy']}.")


def _unusable(values: Any) -> str:
    """What forbids plain values whatever their schema: nesting, numbers that are not finite, keys that are no text."""
    level = [("", values)]
    for _ in range(DEPTH):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, float) and not math.isfinite(value):
                return f"{place or 'the whole'} is {value}, but a finite number is expected"
            if isinstance(value, Mapping):
                if any(not isinstance(key, str) for key in value):
                    return f"{place or 'the whole'} has a key that is no text"
                below += [(f"{place}.{key}" if place else key, one) for key, one in value.items()]
            elif isinstance(value, list | tuple):
                below += [(place, one) for one in value]
        if not below:
            return ""
        level = below
    return f"its lists and tables are nested more than {DEPTH} deep"


@cache
def _yaml_loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values alone, and no key twice, of which YAML would silently keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            two = [key for index, key in enumerate(keys) if key in keys[:index]]
            if two:
                raise yaml.constructor.ConstructorError(None, None, f"the key {two[0]!r} stands twice", node.start_mark)
            return super().construct_mapping(node, deep)

    # A date such as 2020-99-99 would be an error of its own; text stays text.
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _plain(problem: BaseException) -> str:
    return " ".join(str(problem).split())

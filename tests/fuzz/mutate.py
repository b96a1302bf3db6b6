"""Seeded mutations of small files that know the formats: JSON, YAML, CSV, npy, safetensors, PNG, zip, XML and text."""

from __future__ import annotations

import ast
import copy
import csv
import enum
import functools
import hashlib
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fsmer.io import CHECKSUM, digest, json_digest

__all__ = ["CANARIES", "Files", "Node", "mutated", "seal", "without_checksums"]


class Node(enum.Enum):
    """What may lie at a path in place of a file."""

    PIPE = "a named pipe"
    FOLDER = "a folder"
    LOOP = "a link to itself"
    ELSEWHERE = "a link to a file outside the folder"


Files = dict[str, "bytes | Node"]
Change = Callable[[bytes, np.random.Generator, Sequence[str]], bytes]

# Files outside the folder of the input: no reader may open one because the input names it.
CANARIES = ("../canary.png", "/etc/passwd")

TOKENS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "1",
        "2",
        "-0",
        "3.5",
        "0.1",
        "1e5",
        "1e999",
        "-1e999",
        "1e-400",
        "NaN",
        "nan",
        "inf",
        "-inf",
    ),
    *("null", "None", "true", "false", "yes", "~", "0x10", "1_000", "0o17", "1:30", "+5", "5.", ".5", "５", "²", "٣"),
    *("2147483648", "4294967296", "9223372036854775808", "1" + "0" * 40, "9" * 400, "9" * 5000, "2020-99-99"),
    *(
        "\0",
        "\ufeff",
        "\r\n",
        "\r",
        "\n",
        "\t",
        "\x0b",
        "\x0c",
        "\x1b[31m",
        "\x07",
        "\x85",
        "\u2028",
        "\u202e",
        "\ud800",
    ),
    *(
        "é",
        "e\u0301",
        "\u00a0",
        "\U0001f600",
        "ß",
        "İ",
        "情",
        ",",
        ";",
        '"',
        "'",
        '""',
        "\\",
        "/",
        "|",
        ":",
        "#",
        "%",
        "=",
    ),
    *(*CANARIES, "..", ".", "a/../b", "/dev/zero", "/dev/stdin", "C:\\x.png", "\\\\host\\x", "~root", "a/b", "pipe:0"),
    *("<script>alert(1)</script>", '=HYPERLINK("http://x")', "%s%n%x", "{0}", "${HOME}", "$(id)", "`id`", "__class__"),
    *("!!python/object/apply:os.system [id]", "!!binary aGk=", "&a [*a]", "*a", "<<: {a: 1}", "? x", "--- x", "- x"),
    *("[" * 200, "{" * 200, "(" * 200, "[" * 100_000, "a" * 300, "ab " * 400, "x" * 131_073),
)
# Values in JSON, as they are written.
VALUES = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "7",
        "0.5",
        "3.5",
        "-0.0",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e-400",
        "1e308",
    ),
    *("2147483648", "9223372036854775808", "1" + "0" * 40, "1" + "0" * 400, "9" * 5000, "1000000", "10000000"),
    *("true", "false", "null", '""', '"x"', '"0"', '"\\u0000"', '"\\ud800"', '"../canary.png"', '"\\u001b[31m"'),
    *("[]", "{}", "[[]]", "[null]", '{"": null}', '{"a": 1}', "[1, 2, 3]", '["a", "b"]', "[0, 0]", '["x", "x"]'),
    *(
        "[" * 100 + "]" * 100,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        f'"{"x" * 131_073}"',
    ),
)
NAMES = (
    *(
        "a\nb",
        "\x1b[31m",
        " ",
        "-rf",
        "~",
        "x" * 200,
        "\udcff",
        "é",
        "e\u0301",
        ".hidden",
        "Thumbs.db",
        "a.png",
        "0",
        "u_x",
    ),
    *(
        "a b",
        "a;b",
        "%41",
        "<b>",
        "'",
        '"',
        "con",
        "nul.png",
        "1_0.png",
        "10_0.png",
        "t0.92.png",
        "a.npy",
        "sub99",
        "s1",
    ),
)
NUMBERS = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, 0.0, -0.0, 255.0)


def mutated(files: Files, rng: np.random.Generator, words: Sequence[str] = (), only: str = "") -> Files:
    """Copy of `files` with one to five changes, of files whose path `only` (a regular expression) finds."""
    found = dict(files)
    for _ in range(1 + int(rng.geometric(0.6) - 1) % 5):
        paths = [path for path, content in found.items() if isinstance(content, bytes) and re.search(only, path)]
        if not paths:
            return found
        path = pick(rng, sorted(paths))
        content = found[path]
        assert isinstance(content, bytes)
        if rng.random() < 0.08:
            _change_place(found, path, rng)
            continue
        structured = _structured(content)
        if structured is not None and rng.random() < 0.7:
            change = structured
        else:
            change = pick(rng, [_bytes, _bytes, _text]) if _is_text(content) else _bytes
        try:
            found[path] = change(content, rng, words)
        except Exception:
            if content == files.get(path):
                raise
            found[path] = _bytes(content, rng, words)  # an earlier change left nothing that the format allows
    return found


def seal(before: Files, after: Files) -> Files:
    """`after` with its checksums made to fit again, so that a reader has to look at the content itself.

    Whatever digest of a file stands in its name or in another file of `before` is replaced by that of the changed file.
    """
    found = dict(after)
    for _ in range(3):  # a file may name one that names another
        for path, content in found.items():
            if isinstance(content, bytes) and content != before.get(path):
                found[path] = _with_own_checksum(content)
        for path, content in list(found.items()):
            old = before.get(path)
            if isinstance(content, bytes) and isinstance(old, bytes) and content != old:
                for one, other in zip(_digests(old), _digests(content), strict=True):
                    for place, held in list(found.items()):
                        if place != path and isinstance(held, bytes) and one in held:
                            found[place] = held.replace(one, other)
    return {_named_anew(path, before.get(path), content): content for path, content in found.items()}


def _named_anew(path: str, old: bytes | Node | None, new: bytes | Node) -> str:
    if isinstance(old, bytes) and isinstance(new, bytes) and old != new:
        return path.replace(digest(old), digest(new))
    return path


def without_checksums(after: Files) -> Files:
    """`after` without the checksums that JSON files have of themselves, as after an edit by hand."""
    return {
        path: re.sub(rb',?\s*"%s":\s*"[0-9a-f]*"' % CHECKSUM.encode(), b"", content)
        if isinstance(content, bytes)
        else content
        for path, content in after.items()
    }


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _digests(content: bytes) -> list[bytes]:
    sha = hashlib.sha256(content)
    hexes = [digest(content), sha.hexdigest(), sha.hexdigest()[:16], f"{zlib.crc32(content):08x}"]
    return [*(one.encode() for one in hexes), bytes.fromhex(hexes[0]), sha.digest()]


def _with_own_checksum(content: bytes) -> bytes:
    # A file of binary data may begin with a line of JSON.
    head, line, rest = content.partition(b"\n") if content.startswith(b'{"') else (content, b"", b"")
    for text, behind in ((content, b""), (head, line + rest)):
        if CHECKSUM.encode() not in text:
            continue
        try:
            values = json.loads(text)
            if isinstance(values, dict) and CHECKSUM in values:
                values[CHECKSUM] = json_digest(values)
                return json.dumps(values).encode() + behind
        except (ValueError, RecursionError):
            continue
    return content


# -- files in their folder ------------------------------------------------------------------------------------------


def _change_place(files: Files, path: str, rng: np.random.Generator) -> None:
    folder, _, name = path.rpartition("/")
    other = pick(rng, sorted(files))
    match int(rng.integers(9)):
        case 0:
            del files[path]
        case 1:
            files[path] = b""
        case 2:
            files[path] = pick(rng, list(Node))
        case 3:
            files[path], files[other] = files[other], files[path]
        case 4:
            files[path] = files[other]
        case 5:
            files["/".join([*([folder] if folder else []), pick(rng, NAMES)])] = files.pop(path)
        case 6:
            files["/".join([*([folder] if folder else []), pick(rng, NAMES)])] = files[path]
        case 7:
            parts = path.split("/")
            old = parts[int(rng.integers(len(parts)))]
            new = pick(rng, NAMES)
            for place in list(files):
                if old in place.split("/"):
                    files["/".join(new if part == old else part for part in place.split("/"))] = files.pop(place)
        case _:
            files["/".join([*([folder] if folder else []), "." + name])] = files[path]
    # A path below what is no folder any more cannot be written.
    for place in list(files):
        if any("/".join(place.split("/")[:depth]) in files for depth in range(1, place.count("/") + 1)):
            files.pop(place, None)


# -- bytes and text -------------------------------------------------------------------------------------------------


def _bytes(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    size = len(data)
    at = int(rng.integers(size + 1))
    # Most formats decide in their first bytes.
    at = at if rng.random() < 0.7 else min(at, int(rng.integers(64)))
    length = int(rng.integers(1, max(2, min(size + 1, int(2 ** rng.integers(1, 10))))))
    held = bytearray(data)
    match int(rng.integers(10)):
        case 0 | 1:
            for place in rng.integers(0, max(size, 1), int(rng.integers(1, 9))) if size else ():
                held[int(place)] ^= 1 << int(rng.integers(8))
        case 2:
            held[at : at + length] = rng.bytes(length)
        case 3:
            held[at:at] = rng.bytes(length)
        case 4:
            del held[at : at + length]
        case 5:
            held[at:at] = held[at : at + length]
        case 6:
            del held[at:]
        case 7:
            other = int(rng.integers(size + 1))
            held[at : at + length] = held[other : other + length]
        case 8:
            number = pick(rng, (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63))
            width = pick(rng, (1, 2, 4, 8))
            held[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, pick(rng, ("little", "big")))
        case _:
            held[at : at + length] = bytes([int(rng.integers(256))]) * length
    return bytes(held)


def _text(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    match int(rng.integers(9)):
        case 0:
            return b"\xef\xbb\xbf" + data
        case 1:
            return text.replace("\n", pick(rng, ("\r\n", "\r", "\n\n", "\x85", "\u2028"))).encode(
                "utf-8", "surrogateescape"
            )
        case 2:
            return text.encode(pick(rng, ("utf-16", "utf-16-le", "utf-32", "utf-8-sig")), "replace")
        case 3 | 4:
            lines = text.splitlines(keepends=True) or [""]
            at, other = (int(rng.integers(len(lines))) for _ in range(2))
            match int(rng.integers(4)):
                case 0:
                    del lines[at]
                case 1:
                    lines.insert(at, lines[other])
                case 2:
                    lines[at], lines[other] = lines[other], lines[at]
                case _:
                    lines[at] = pick(rng, (" ", "\t", "#", "-", "  - ")) + lines[at]
            return "".join(lines).encode("utf-8", "surrogateescape")
        case 5:
            # One word in place of another.
            found = list(re.finditer(r"\w+|[^\w\s]+", text))
            if found:
                one = pick(rng, found)
                return _as_bytes(text[: one.start()] + _token(rng, words) + text[one.end() :])
            return _as_bytes(_token(rng, words))
        case _:
            at = int(rng.integers(len(text) + 1))
            return _as_bytes(text[:at] + _token(rng, words) + text[at:])


def _token(rng: np.random.Generator, words: Sequence[str]) -> str:
    if words and rng.random() < 0.5:
        return str(pick(rng, words))
    # The few huge ones take long and say the same each time.
    return str(pick(rng, TOKENS if rng.random() < 0.1 else TOKENS[:-3]))


def _as_bytes(text: str) -> bytes:
    # Lone surrogates: bytes that are not UTF-8 as they were, and others as some programs write them.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _structured(data: bytes) -> Change | None:
    """The mutator that knows the format of `data`."""
    for start, change in ((b"\x93NUMPY", _npy), (b"\x89PNG", _png), (b"PK", _zip), (b"<", _xml), (b"BM", _picture)):
        if data.startswith(start):
            return change
    if data.startswith(b"\xff\xd8\xff"):
        return _picture
    if len(data) > 10 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return _safetensors
    if data[:1] in (b"{", b"["):
        return _json if _is_text(data) else _json_line
    if not _is_text(data):
        return None
    head = data.split(b"\n", 1)[0]
    if re.match(rb"[\w-]+:( |$)", head) or head.startswith(b"#"):
        return _yaml
    return _csv if any(mark in head for mark in (b",", b";", b"\t")) else None


# -- JSON and YAML --------------------------------------------------------------------------------------------------


class _Pairs(list):  # type: ignore[type-arg]
    """A table as a list of keys and values, in which a key may stand twice."""


class _Raw(str):
    """Text that is written as it is."""


def _json(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    try:
        return _dump(_tree(json.loads(data, object_pairs_hook=_Pairs), rng, words)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # no JSON any more, or too deep for this
        return _text(data, rng, words)


def _json_line(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    head, line, rest = data.partition(b"\n")
    return _json(head, rng, words) + line + rest


def _yaml(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    try:
        values = yaml.safe_load(data)
        tree = json.loads(json.dumps(values, default=str), object_pairs_hook=_Pairs)
    except (ValueError, yaml.YAMLError, RecursionError, TypeError):
        return _text(data, rng, words)
    changed = _tree(tree, rng, words)
    if isinstance(changed, _Pairs) and rng.random() < 0.7:
        # Top-level keys a line each, in which text may stand without quotes.
        lines = []
        for key, value in changed:
            plain = isinstance(value, str) and not isinstance(value, _Raw) and rng.random() < 0.8
            lines.append(f"{key}: {value if plain else _dump(value)}\n")
        return _as_bytes("".join(lines))
    return _as_bytes(_dump(changed))


def _tree(tree: Any, rng: np.random.Generator, words: Sequence[str]) -> Any:
    """A tree of `_Pairs`, lists and values with one change, made in place where it can."""
    slots: list[tuple[Any, int]] = []
    below = [tree] if isinstance(tree, list) else []
    while below:
        one = below.pop()
        for place, value in enumerate(one):
            slots.append((one, place))
            held = value[1] if isinstance(one, _Pairs) else value
            if isinstance(held, list):
                below.append(held)
    if not slots or rng.random() < 0.03:
        return _value(tree, rng, words)
    holder, place = pick(rng, slots)
    pairs = isinstance(holder, _Pairs)
    value = holder[place][1] if pairs else holder[place]

    def put(new: Any) -> None:
        holder[place] = (holder[place][0], new) if pairs else new

    match int(rng.integers(10)):
        case 0:
            del holder[place]
        case 1:
            holder.insert(int(rng.integers(len(holder) + 1)), holder[place])
        case 2 if pairs:
            # The key twice with two values.
            holder.append((holder[place][0], _value(value, rng, words)))
        case 3 if pairs:
            holder[place] = (_token(rng, words), value)
        case 4:
            other_holder, other_place = pick(rng, slots)
            other = other_holder[other_place]
            # A copy: a list within itself could not be written.
            put(copy.deepcopy(other[1] if isinstance(other_holder, _Pairs) else other))
        case 5:
            put([value] if rng.random() < 0.5 else _Pairs([("a", value)]))
        case _:
            put(_value(value, rng, words))
    return tree


def _value(value: Any, rng: np.random.Generator, words: Sequence[str]) -> Any:
    """Another value in place of `value`, often one of its own kind."""
    if isinstance(value, bool) or value is None or rng.random() < 0.4:
        return _Raw(pick(rng, VALUES if rng.random() < 0.1 else VALUES[:-3]))
    if isinstance(value, (int, float)):
        return pick(
            rng, (value + 1, value - 1, -value, value * 1000, value / 3, float(value), str(value), _Raw("1e999"), 0)
        )
    if isinstance(value, str):
        return pick(
            rng, (value + _token(rng, words), _token(rng, words), value.upper(), value[:-1], [value], value * 50)
        )
    return [value] if rng.random() < 0.5 else list(value)[: int(rng.integers(len(value) + 1))]


def _dump(tree: Any) -> str:
    if isinstance(tree, _Raw):
        return str(tree)
    if isinstance(tree, _Pairs):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_dump(value)}" for key, value in tree) + "}"
    if isinstance(tree, (list, tuple)):
        return "[" + ", ".join(_dump(value) for value in tree) + "]"
    return json.dumps(tree)


# -- tables ---------------------------------------------------------------------------------------------------------


def _csv(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    text = data.decode("utf-8")
    mark = max(",;\t", key=text.split("\n", 1)[0].count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark))
    except csv.Error:
        return _text(data, rng, words)
    width = max(len(row) for row in rows)
    row = rows[int(rng.integers(len(rows)))]
    column, other = int(rng.integers(max(width, 1))), int(rng.integers(max(width, 1)))
    match int(rng.integers(12)):
        case 0:
            rows.remove(row)
        case 1:
            rows.insert(int(rng.integers(len(rows) + 1)), list(row))
        case 2:
            rows = [[cell for place, cell in enumerate(one) if place != column] for one in rows]
        case 3:
            rows = [[*one, *one[column : column + 1]] for one in rows]
        case 4:
            for one in rows:
                if max(column, other) < len(one):
                    one[column], one[other] = one[other], one[column]
        case 5:
            row.append(_token(rng, words))
        case 6 if row:
            row.pop()
        case 7:
            rows = [
                [_token(rng, words) if place == column and one else cell for place, cell in enumerate(one)]
                for one in rows
            ]
        case 8 if row:
            row[column % len(row)] = pick(rng, pick(rng, rows) or [""])
        case _ if row:
            place = column % len(row)
            row[place] = pick(rng, (_token(rng, words), row[place] + _token(rng, words), "", row[place].upper()))
        case _:
            rows.append([])
    out = io.StringIO(newline="")
    new = mark if rng.random() < 0.95 else pick(rng, ",;\t|")
    csv.writer(out, delimiter=new, lineterminator=pick(rng, ("\n", "\n", "\n", "\r\n", "\r"))).writerows(rows)
    return _as_bytes(out.getvalue())


# -- arrays ---------------------------------------------------------------------------------------------------------


def _npy(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    head, payload = data[start : start + length], data[start + length :]
    if rng.random() < 0.4:
        return data[: start + length] + _payload(payload, rng)
    try:
        values = ast.literal_eval(head.decode("latin-1"))
        shape = list(values["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        return _bytes(data, rng, words)
    place = int(rng.integers(max(len(shape), 1)))
    match int(rng.integers(7)):
        case 0 | 1:
            values["descr"] = pick(
                rng,
                (
                    "<f2",
                    "<f8",
                    ">f4",
                    "|O",
                    "<i4",
                    "<u1",
                    "|b1",
                    "|S4",
                    "<U1",
                    "<c8",
                    "|V4",
                    "<M8[s]",
                    "<m8[ns]",
                    "x",
                    "",
                ),
            )
        case 2:
            values["descr"] = pick(rng, ([("a", "<f4")], [("a", "<f2"), ("b", "<f2")], [], 3, ("<f4", (1,))))
        case 3 if shape:
            shape[place] = pick(
                rng, (0, 1, -1, shape[place] + 1, shape[place] - 1, 10**6, 2**31, 2**63, 10**30, 1.5, True)
            )
            values["shape"] = tuple(shape)
        case 4:
            values["shape"] = pick(
                rng, ((), (0,), tuple(shape[::-1]), (*shape, 1), tuple(shape[1:]), (1, *shape), None)
            )
        case 5:
            values["fortran_order"] = pick(rng, (True, 1, None, "x"))
        case _:
            key = pick(rng, sorted(values))
            values[pick(rng, ("x", key.upper(), key))] = values.pop(key) if rng.random() < 0.5 else None
    text = repr(values).encode("latin-1", "replace")
    text = text + b" " * max(0, length - 1 - len(text)) + b"\n"
    return data[:8] + len(text).to_bytes(start - 8, "little") + text + payload


def _payload(data: bytes, rng: np.random.Generator) -> bytes:
    """Numbers that are not finite, huge or zero among those of `data`, or other bytes."""
    if len(data) < 4 or rng.random() < 0.3:
        return _bytes(data, rng, ())
    held = bytearray(data)
    number = pick(rng, NUMBERS)
    code = pick(rng, ("<f", "<f", "<f", "<d", "<e"))
    with np.errstate(all="ignore"):
        word = np.array(number, {"<f": "<f4", "<d": "<f8", "<e": "<f2"}[code]).tobytes()
    if rng.random() < 0.3:
        return (word * (len(data) // len(word) + 1))[: len(data)]
    for place in rng.integers(0, max(len(data) // len(word), 1), int(rng.integers(1, 5))):
        held[int(place) * len(word) : (int(place) + 1) * len(word)] = word
    return bytes(held[: len(data)])


def _safetensors(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    head, payload = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.35:
        return data[: 8 + length] + _payload(payload, rng)
    try:
        values = json.loads(head)
        names = sorted(name for name in values if name != "__metadata__")
        name = pick(rng, names)
        entry = values[name]
        begin, end = entry["data_offsets"]
        shape = list(entry["shape"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _bytes(data, rng, words)
    tensor = payload[begin:end]
    match int(rng.integers(10)):
        case 0:
            del values[name]
        case 1:
            values[name + pick(rng, ("x", ".weight", "\0", "é"))] = values.pop(name)
        case 2:
            entry["dtype"] = pick(rng, ("F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "I8", "C64", "x"))
        case 3 if shape:
            place = int(rng.integers(len(shape)))
            shape[place] = pick(rng, (0, 1, shape[place] + 1, shape[place] - 1, 10**6, 2**62, -1, 0.5))
            entry["shape"] = shape
        case 4:
            entry["shape"] = pick(rng, ([], shape[::-1], [*shape, 1], shape[1:], [1, *shape]))
        case 5:
            entry["data_offsets"] = pick(rng, ([0, 0], [begin, end + 4], [end, begin], [-4, 0], [0, 2**60], [begin]))
        case 6:
            other = pick(rng, names)
            values[name], values[other] = values[other], values[name]
        case 7:
            # Another type of the same shape, with bytes to fit: behind every check of the container.
            kind, code = pick(rng, (("F16", "<f2"), ("F64", "<f8"), ("I64", "<i8"), ("I32", "<i4"), ("BOOL", "|b1")))
            if entry["dtype"] != "F32":
                return data
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new = np.frombuffer(tensor, "<f4").astype(code).tobytes()
            return _with_tensor(values, payload, name, kind, shape, new)
        case 8 if shape and shape[0] > 1:
            # One row less, or one more.
            row = len(tensor) // shape[0]
            more = rng.random() < 0.5
            new = tensor + tensor[:row] if more else tensor[row:]
            return _with_tensor(
                values, payload, name, entry["dtype"], [shape[0] + (1 if more else -1), *shape[1:]], new
            )
        case _:
            changed = _json(head, rng, words)
            return len(changed).to_bytes(8, "little") + changed + payload
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + payload


def _with_tensor(values: Any, payload: bytes, name: str, kind: str, shape: list[int], content: bytes) -> bytes:
    """The file with other content of one tensor, and all offsets to fit."""
    pieces, at = [], 0
    for one in sorted((one for one in values if one != "__metadata__"), key=lambda one: values[one]["data_offsets"]):
        begin, end = values[one]["data_offsets"]
        piece = content if one == name else payload[begin:end]
        values[one] = {**values[one], "data_offsets": [at, at + len(piece)]}
        pieces.append(piece)
        at += len(piece)
    values[name] |= {"dtype": kind, "shape": shape}
    text = json.dumps(values).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(pieces)


# -- pictures and archives ------------------------------------------------------------------------------------------


def _png(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    if rng.random() < 0.3:
        return _picture(data, rng, words)
    chunks, at = [], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append([kind, data[at + 8 : at + 8 + length]])
        at += 12 + length
    place = int(rng.integers(len(chunks))) if chunks else 0
    match int(rng.integers(8)):
        case 0 | 1 if len(chunks[0][1]) == 13:
            head = list(struct.unpack(">IIBBBBB", chunks[0][1]))
            field = int(rng.integers(7))
            head[field] = pick(
                rng, ((0, 1, 7, 9, 2000, 20_000, 2**31 - 1, 2**32 - 1), (0, 1, 2, 3, 4, 6, 8, 16, 255))[field > 1]
            )
            chunks[0][1] = struct.pack(">IIBBBBB", *head)
        case 2 if len(chunks) > 1:
            del chunks[place]
        case 3:
            chunks.insert(place, chunks[int(rng.integers(len(chunks)))])
        case 4:
            chunks[place][1] = _bytes(chunks[place][1], rng, words)
        case 5:
            bomb = zlib.compress(b"\0" * int(pick(rng, (10, 10_000, 20_000_000))))
            kind, front = pick(rng, ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")))
            chunks.insert(1, [kind, front + bomb])
        case 6:
            kind = pick(rng, (b"PLTE", b"tRNS", b"acTL", b"eXIf", b"gAMA", b"sBIT", b"fcTL", b"fdAT"))
            chunks.insert(min(1, len(chunks)), [kind, rng.bytes(int(rng.integers(0, 40)))])
        case _:
            if rng.random() < 0.02:
                return _huge_png()
            chunks[place][0] = pick(rng, (b"IDAT", b"IEND", b"IHDR", b"aaaa", b"\0\0\0\0"))
    body = b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held)) for kind, held in chunks
    )
    return data[:8] + body


@functools.lru_cache(maxsize=1)
def _huge_png() -> bytes:
    """9000 x 9000 pixels of one colour in 240 KB."""
    packer = zlib.compressobj(1)
    row = b"\0" * (1 + 3 * 9000)
    pixels = b"".join(packer.compress(row) for _ in range(9000)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held)) for kind, held in chunks
    )


def _picture(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    """The same picture in another mode, size or format."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        mode = pick(rng, ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "I", "F", "LA"))
        size = pick(rng, (image.size, image.size, image.size[::-1], (1, 1), (image.width + 1, image.height), (300, 2)))
        changed = (image.convert("L") if mode == "I;16" else image).convert(mode).resize(size, Image.Resampling.NEAREST)
        if rng.random() < 0.2:
            changed = Image.new(changed.mode, size)  # one value everywhere
        out = io.BytesIO()
        changed.save(out, pick(rng, ("PNG", "PNG", "BMP", "TIFF", "JPEG", "GIF", "WEBP")))
        return out.getvalue()
    except Exception:  # whatever Pillow cannot do with a picture that was changed before
        return _bytes(data, rng, words)


def _zip(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as held:
            members = [(one.filename, held.read(one)) for one in held.infolist()]
    except Exception:  # changed before
        return _bytes(data, rng, words)
    if not members:
        return data
    place = int(rng.integers(len(members)))
    name, content = members[place]
    match int(rng.integers(10)):
        case 0:
            del members[place]
        case 1:
            members.append(members[place])
        case 2:
            members[place] = (pick(rng, ("x", "../x", "/x", name.upper(), name + "x", "\0", "a/" * 200)), content)
        case 3:
            members[place] = (name, members[int(rng.integers(len(members)))][1])
        case 4:
            members[place] = (name, b"\0" * int(pick(rng, (0, 100, 30_000_000))))
        case _:
            change = _structured(content) or _bytes
            members[place] = (name, change(content, rng, words))
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as held:
        warnings.simplefilter("ignore")  # names that stand twice
        for name, content in members:
            held.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _xml(data: bytes, rng: np.random.Generator, words: Sequence[str]) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    found = list(re.finditer(pick(rng, (r">([^<>]+)<", r'="([^"]*)"', r"(<[^<>]+>)")), text))
    if rng.random() < 0.05:
        entities = '<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {one} "{f"&{chr(ord(one) - 1)};" * 10}">' for one in "bcdefghi"
        )
        return f"<!DOCTYPE x [{entities}]>".encode() + data.replace(b"<v>", b"<v>&i;", 1)
    if not found:
        return _text(data, rng, words)
    one = pick(rng, found)
    new = pick(rng, ("", one.group(1) * 2, _token(rng, words).replace("&", "").replace("<", "").replace('"', "")))
    return _as_bytes(text[: one.start(1)] + new + text[one.end(1) :])

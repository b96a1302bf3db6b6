"""Structured files are read through one door: what does not fit is one sentence of a typed error."""

import json
import os
from typing import NotRequired

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from fsmer.errors import DataError, FsmerError, ProtocolError
from fsmer.io import write_json
from fsmer.schema import Count, Fraction, Names, checked, parse_json, read_json, read_yaml


class Inner(TypedDict):
    share: Fraction


class Example(TypedDict):
    name: str
    count: Count
    classes: Names
    inner: NotRequired[Inner]


GOOD = {"name": "a", "count": 3, "classes": ["x"], "inner": {"share": 0.5}}


def read(data, error=DataError):
    return parse_json(data, Example, "FILE", what="an example", remedy="write it again", error=error)


def test_what_fits_is_a_plain_dict():
    assert read(json.dumps(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"name": None}, "name"),
        ({"name": 3}, "name"),
        ({"count": "3"}, "count"),
        ({"count": 3.5}, "count"),
        ({"count": -1}, "count"),
        ({"count": 10**30}, "count"),
        ({"count": True}, "count"),
        ({"classes": 3.5}, "classes"),
        ({"classes": ["x", None]}, "classes.1"),
        ({"inner": {}}, "inner.share"),
        ({"inner": {"share": 1.5}}, "inner.share"),
        ({"inner": []}, "inner"),
    ],
)
def test_a_value_of_another_kind_is_named_by_its_place(change, fact):
    with pytest.raises(ProtocolError) as caught:
        read(json.dumps(GOOD | change), ProtocolError)
    assert all(word in str(caught.value) for word in ("FILE", "an example", f"({fact}: ", "write it again"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        "null",
        "[]",
        "",
        "{",
        b"\xff\xfe",
        json.dumps(GOOD).replace("0.5", "NaN"),
        json.dumps(GOOD).replace("0.5", "1e999"),
        json.dumps(GOOD).replace("3", "9" * 5000),
        json.dumps(GOOD)[:-1] + ', "more": ' + "[" * 100_000 + "]" * 100_000 + "}",
        json.dumps(GOOD)[:-1] + ', "more": ' + '{"a":' * 150 + "1" + "}" * 150 + "}",
        json.dumps(GOOD)[:-1] + ', "more": [-1e999]}',
    ],
)
def test_what_is_no_such_file_is_one_sentence(data):
    with pytest.raises(DataError, match="write it again"):
        read(data)


leaves = st.none() | st.booleans() | st.floats() | st.text()
anything = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.sampled_from([*GOOD, "other"]), anything)
def test_any_value_anywhere_gives_a_table_or_a_typed_error(name, value):
    try:
        found = read(json.dumps(GOOD | {name: value}))
    except DataError:
        return
    assert isinstance(found["name"], str)
    assert isinstance(found["count"], int)


@settings(max_examples=200)
@given(st.data())
def test_one_changed_byte_of_a_sealed_file_is_found(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    write_json(path, GOOD, sealed=True)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    try:
        held = read_json(path, Example, what="an example", remedy="write it again")
    except DataError:
        return
    # The name of the checksum itself, or white space between values, may have become something else.
    assert {name: held[name] for name in GOOD} == GOOD


def test_values_keep_the_order_of_the_file(tmp_path):
    class Inner(TypedDict):
        first: int
        second: int

    class Outer(TypedDict):
        inner: list[Inner]
        name: str

    given = {"name": "x", "inner": [{"second": 2, "first": 1}]}
    path = write_json(tmp_path / "file.json", given, sealed=True)
    found = read_json(path, Outer, what="a file", remedy="write it again")
    assert json.dumps(found) == json.dumps(given)


def test_an_altered_file_says_so_and_how_to_keep_an_edit(tmp_path):
    write_json(tmp_path / "a.json", GOOD, sealed=True)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("0.5", "0.75"))
    with pytest.raises(DataError, match="altered after") as caught:
        read_json(tmp_path / "a.json", Example, what="an example", remedy="write it again")
    assert "'checksum'" in str(caught.value)


def test_pipes_missing_and_huge_files_are_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.json").write_bytes(b" " * 2000)
    for name, words in (
        ("pipe", "named pipe"),
        ("none", "No such file"),
        (".", "folder"),
        ("huge.json", "2,000 bytes"),
    ):
        for reader in (read_json, read_yaml):
            with pytest.raises(ProtocolError, match=words):
                reader(tmp_path / name, Example, what="an example", remedy="x", error=ProtocolError, limit_bytes=1000)


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x",
        "[" * 100_000,
        "- " * 5000 + "1",
        "a: 1\na: 2",
        "a: !!python/object/apply:os.system [id]",
        "seed: .inf",
        "1: 2",
        "\t",
        "a: \x00",
        "a: " + "9" * 5000,
    ],
)
def test_yaml_that_is_no_plain_table_is_one_sentence(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(FsmerError, match="write it again") as caught:
        read_yaml(tmp_path / "a.yaml", dict[str, object], what="an example", remedy="write it again")
    assert "\n" not in str(caught.value)


def test_dates_in_yaml_are_text(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 2020-99-99\nday: 2020-01-01\n")
    held = read_yaml(tmp_path / "a.yaml", dict[str, object], what="an example", remedy="x")
    assert held == {"seed": "2020-99-99", "day": "2020-01-01"}


def test_numbers_of_numpy_count_as_those_that_they_hold():
    values = GOOD | {"count": np.int64(3), "inner": {"share": np.float32(0.5)}}
    words = {"what": "an example", "remedy": "write it again"}
    assert checked(values, Example, "VALUES", **words) == GOOD
    for wrong in ({"count": np.float64(3)}, {"inner": {"share": np.float32("nan")}}, {"count": object()}):
        with pytest.raises(DataError, match=r"^VALUES .*an example.*write it again"):
            checked(values | wrong, Example, "VALUES", **words)

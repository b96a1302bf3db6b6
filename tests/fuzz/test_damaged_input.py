"""Whatever is done to a file that fsmer reads, an answer holds or one typed error is raised; faults are found out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fsmer.errors import DataError
from fsmer.io import CHECKSUM, digest, write_json
from fsmer.schema import parse_json

from .confine import can_confine
from .mutate import Files, seal, without_checksums
from .readers import READERS
from .runner import run, table
from .worker import CRASH, HANG, MEMORY, NOISE, REACH, UNTYPED, WRONG

pytestmark = pytest.mark.skipif(not can_confine(), reason="as root, without Landlock, hostile paths could do harm")

MUTATIONS = 200
ALL_MUTATIONS = 20_000
ENOUGH = 3
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("reader", READERS)
def test_changed_input_is_answered_or_refused_by_one_typed_error(reader: str) -> None:
    found = run(reader, range(MUTATIONS), stop_after=ENOUGH)
    assert not found.failures, f"\n{found}"
    assert sum(found.counts.values()) == MUTATIONS


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_so_are_twenty_thousand_changes(reader: str) -> None:
    found = run(reader, range(MUTATIONS, MUTATIONS + ALL_MUTATIONS), stop_after=ENOUGH)
    print(table([found]))
    assert not found.failures, f"\n{found}"


FAULTS = {
    "planted-hang": HANG,
    "planted-leak": MEMORY,
    "planted-allocation": MEMORY,
    "planted-lookup": UNTYPED,
    "planted-nan": WRONG,
    "planted-segfault": CRASH,
    "planted-exit": CRASH,
    "planted-print": NOISE,
    "planted-command": REACH,
    "planted-outside": REACH,
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are those of Linux")
@pytest.mark.parametrize("reader", FAULTS)
def test_a_reader_with_a_fault_is_found_out(reader: str) -> None:
    found = run(reader, range(30), alarm=1.0 if reader == "planted-hang" else 20.0, stop_after=2)
    assert [one.kind for one in found.failures] == [FAULTS[reader]] * 2
    assert f"--seed {found.failures[0].seed}" in str(found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Landlock is a part of Linux")
def test_no_reader_can_write_outside_its_folder(tmp_path: Path) -> None:
    beside = tmp_path / "beside.txt"
    beside.write_text("as it was")
    # A process of its own: what is forked later has the environment of then.
    ask = "import sys; from tests.fuzz.runner import run; print(run('planted-writing', range(30), stop_after=1))"
    environment = os.environ | {"FUZZ_OUTSIDE": str(beside)}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout
    assert beside.read_text() == "as it was"


def test_a_reader_without_a_fault_is_not() -> None:
    found = run("planted-nothing", range(50))
    assert not found.failures
    assert found.counts["accepted"] == 50


def test_a_seed_gives_the_same_input_every_time() -> None:
    def kinds() -> list[tuple[int, str, str]]:
        held: list[tuple[int, str, str]] = []
        run("index", range(60), told=lambda one: held.append((one.seed, one.kind, one.place)))
        return held

    assert kinds() == kinds()


def test_checksums_can_be_made_to_fit_so_that_changes_reach_what_is_behind_them(tmp_path: Path) -> None:
    def written(number: int) -> Files:
        (tmp_path / f"{digest(bytes([number]))}.bin").write_bytes(bytes([number]))
        held = {"file": f"{digest(bytes([number]))}.bin", "value": number}
        write_json(tmp_path / "a.json", held, sealed=True)
        return {path.name: path.read_bytes() for path in (tmp_path / "a.json", tmp_path / held["file"])}

    def read(content: bytes) -> dict[str, Any]:
        return parse_json(content, dict[str, Any], "a.json", what="a test", remedy="write it again")

    before = written(1)
    name = next(path for path in before if path.endswith(".bin"))
    changed = {"a.json": before["a.json"].replace(b'"value": 1', b'"value": 7'), name: b"changed"}
    with pytest.raises(DataError):
        read(changed["a.json"])
    fitting = seal(before, changed)
    assert read(fitting["a.json"])["value"] == 7
    assert fitting[read(fitting["a.json"])["file"]] == b"changed"
    assert CHECKSUM.encode() not in without_checksums(changed)["a.json"]
    assert read(without_checksums(changed)["a.json"])["value"] == 7


def test_every_test_that_the_threat_table_names_exists(repository: Path) -> None:
    named = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)`", (repository / "docs" / "security.md").read_text(encoding="utf-8")
    )
    assert len(named) > 30
    lost = [
        f"{file}::{function}"
        for file, function in named
        if not (repository / file).is_file()
        or f"def {function}(" not in (repository / file).read_text(encoding="utf-8")
    ]
    assert not lost

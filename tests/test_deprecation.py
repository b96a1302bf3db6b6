"""What goes in a later release works on, warns once a place, and is removed in time."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterable
from importlib import import_module

import pytest

import fsmer
from fsmer import deprecation
from fsmer.deprecation import Deprecation, deprecated, deprecated_attributes, deprecated_parameter
from fsmer.errors import DataError, FsmerDeprecationWarning

CYCLE = {"since": "0.2", "removal": "0.4", "instead": "fsmer.new"}


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as ``0.4.0.dev1``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    assert found, version
    return int(found[1]), int(found[2])


def faults(marks: Iterable[Deprecation], version: str) -> list[str]:
    """One sentence for each mark that is overdue or leaves less than two minor releases."""
    found = []
    for mark in marks:
        since, removal = release(mark.since), release(mark.removal)
        # After a new major version at least its .0 must still warn.
        if removal < ((since[0], since[1] + 2) if removal[0] == since[0] else (since[0] + 1, 1)):
            found.append(f"{mark.name} goes in {mark.removal}, less than two minor releases after {mark.since}.")
        if release(version) >= removal:
            found.append(f"{mark.name} should be gone in {mark.removal}, and this is {version}; remove it.")
    return found


@pytest.fixture(autouse=True)
def _own_marks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Marks that tests make are not those of fsmer."""
    if "fsmer_marks" not in request.fixturenames:
        monkeypatch.setattr(deprecation, "DEPRECATIONS", [])


@pytest.fixture
def fsmer_marks() -> list[Deprecation]:
    for module in pkgutil.walk_packages(fsmer.__path__, "fsmer."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    return [mark for mark in deprecation.DEPRECATIONS if "fsmer." in mark.name]


def test_nothing_of_fsmer_is_overdue_or_goes_too_soon(fsmer_marks: list[Deprecation]) -> None:
    assert faults(fsmer_marks, fsmer.__version__) == []


@pytest.mark.parametrize(
    ("since", "removal", "version", "facts"),
    [
        ("0.2", "0.4", "0.3.9", []),
        ("0.2", "0.4", "0.4.0.dev0", ["gone in 0.4", "0.4.0.dev0"]),
        ("0.2", "0.4", "1.0", ["gone in 0.4"]),
        ("0.2", "0.3", "0.2.0", ["less than two", "0.3"]),
        ("0.9", "0.11", "0.10.0", []),
        ("0.9", "1.1", "1.0.0", []),
        ("0.9", "1.0", "0.9.0", ["less than two", "1.0"]),
    ],
)
def test_a_mark_that_is_overdue_or_goes_too_soon_is_found(
    since: str, removal: str, version: str, facts: list[str]
) -> None:
    found = faults([Deprecation("fsmer.old", since, removal, "fsmer.new")], version)
    assert len(found) == bool(facts)
    assert all(fact in found[0] for fact in facts)


def test_a_deprecated_function_keeps_its_answer_and_signature_and_warns_in_one_sentence() -> None:
    @deprecated(**CYCLE)
    def old(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    with pytest.warns(FsmerDeprecationWarning) as caught:
        assert old(1) == 3
    assert caught[0].filename == __file__
    for fact in ("old", "0.2", "0.4", "use fsmer.new instead."):
        assert fact in str(caught[0].message)
    assert list(inspect.signature(old).parameters) == ["a", "b"]
    assert old.__doc__ == "Add."
    assert issubclass(FsmerDeprecationWarning, FutureWarning)
    assert deprecation.DEPRECATIONS[0].name.endswith(".old")


def test_a_deprecated_class_warns_when_made_and_stays_a_class() -> None:
    @deprecated(**CYCLE)
    class Old:
        def __init__(self, value: int) -> None:
            self.value = value

    with pytest.warns(FsmerDeprecationWarning):
        made = Old(3)
    assert isinstance(made, Old)
    assert made.value == 3


def test_a_warning_is_shown_once_a_place() -> None:
    @deprecated(**CYCLE)
    def old() -> None: ...

    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default", FutureWarning)
        for _ in range(3):
            old()
        old()
    assert len(caught) == 2


def test_a_renamed_parameter_reaches_its_new_name() -> None:
    @deprecated_parameter("n", **CYCLE, renamed="shot")
    def draw(way: int, *, shot: int = 5) -> int:
        return way * shot

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(3, shot=2) == 6
    with pytest.warns(FsmerDeprecationWarning, match="'n'") as caught:
        assert draw(3, n=1) == 3
    assert caught[0].filename == __file__
    assert "n" not in inspect.signature(draw).parameters
    with pytest.warns(FsmerDeprecationWarning), pytest.raises(DataError, match="'n' and 'shot'"):
        draw(3, n=1, shot=2)


def test_a_removed_parameter_is_taken_without_effect() -> None:
    @deprecated_parameter("verbose", since="0.2", removal="0.4", instead="the progress callback")
    def draw(way: int) -> int:
        return way

    with pytest.warns(FsmerDeprecationWarning, match="progress callback"):
        assert draw(3, verbose=True) == 3


def test_an_attribute_that_has_moved_is_found_from_its_old_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("old_module")
    module.__getattr__ = deprecated_attributes(  # type: ignore[method-assign]
        "old_module", {"Error": "fsmer.errors.FsmerError"}, since="0.2", removal="0.4"
    )
    monkeypatch.setitem(sys.modules, "old_module", module)
    with pytest.warns(FsmerDeprecationWarning, match=r"old_module.Error .* fsmer.errors.FsmerError") as caught:
        assert module.Error is fsmer.FsmerError
    assert caught[0].filename == __file__
    assert [mark.name for mark in deprecation.DEPRECATIONS] == ["old_module.Error"]
    with pytest.raises(AttributeError, match=r"old_module.*'other'"):
        _ = module.other

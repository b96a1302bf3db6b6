"""Conditions on a table of clips: what they choose, what they refuse, and that they run nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fsmer.data import ClipSet
from fsmer.data.conditions import condition_mask
from fsmer.errors import DataError

TABLE = pd.DataFrame(
    {
        "clip": ["a1", "b2", "c3", "d4"],
        "label": pd.Categorical(["x", "y", None, "x"]),
        "aus": ["1+2", "", "4", ""],
        "onset": pd.array([1, None, 3, 4], dtype="Int64"),
        "speed": [1.5, 2, np.nan, 4],
        "left": [True, False, True, False],
        "sure": pd.array([True, None, False, True], dtype="boolean"),
        "frame rate": [1, 2, 3, 4],
        "mixed": [[1], "a", 2, 3.5],
        "day": pd.to_datetime(["2020-01-01"] * 4),
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("label == 'x'", [0, 3]),
        ("'x' == label", [0, 3]),
        ("label in ['x', 'z']", [0, 3]),
        ("label == ['y', 'z']", [1]),
        ("label == 'x' and not (clip == 'a1')", [3]),
        ("clip < 'c'", [0, 1]),
        ("label == clip", []),
        ("onset > 1", [2, 3]),
        ("1 < onset <= 3", [2]),
        ("onset not in [1, -4]", [2, 3]),
        ("onset < 1e400 and onset < 9999999999999999999999", [0, 2, 3]),
        ("speed < onset", []),
        ("speed >= onset", [0, 3]),
        ("left", [0, 2]),
        ("not sure", [2]),
        ("left == False", [1, 3]),
        ("`frame rate` >= 3 & left", [2]),
        ("~left | label == 'x'", [0, 1, 3]),
        ("clip.str.endswith('3')", [2]),
        ("clip.startswith(('a', 'd'))", [0, 3]),
        ("clip.upper().contains('B')", [1]),
        ("clip.contains('.')", []),
        ("label.str.upper().lower().strip() == 'x'", [0, 3]),
        ("clip == 'it is missing & `so`' or clip == 'a1'", [0]),
        ("label == 'x'\n  and clip == 'a1'", [0]),
        ("label == 'x'  # of the first\r\nand not\r\n(clip == '# a1')", [0, 3]),
        ("label == 'x' # not all\nand clip == 'd4'\n", [3]),
    ],
)
def test_conditions_choose_rows(where: str, rows: list[int]) -> None:
    assert np.flatnonzero(condition_mask(where, TABLE)).tolist() == rows


@pytest.mark.parametrize(
    ("column", "absent"), [("label", [2]), ("aus", [1, 3]), ("onset", [1]), ("speed", [2]), ("sure", [1])]
)
def test_missing_values_fit_nothing_but_is_missing(column: str, absent: list[int]) -> None:
    chosen = {
        where: set(np.flatnonzero(condition_mask(where, TABLE)).tolist())
        for where in (f"{column} is missing", f"{column} is not missing")
    }
    assert chosen == {f"{column} is missing": set(absent), f"{column} is not missing": {0, 1, 2, 3} - set(absent)}
    literal = {"label": "'x'", "aus": "'4'", "onset": "3", "speed": "2", "sure": "True"}[column]
    for where in (
        f"{column} == {literal}",
        f"{column} != {literal}",
        f"not ({column} == {literal})",
        f"not ({column} != {literal})",
        f"{column} in [{literal}]",
        f"{column} not in [{literal}]",
        f"{column} == {column}",
        f"not ({column} == {column})",
    ):
        assert not condition_mask(where, TABLE)[absent].any(), where
    # What is certain whatever the missing value is holds.
    assert condition_mask(f"{column} == {literal} or clip > 'A'", TABLE).all()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("label == 1", "text with number 1"),
        ("label in ['x', 2]", "text with number 2"),
        ("onset == '1'", "numbers with text '1'"),
        ("left == 1", "booleans with number 1"),
        ("label < onset", "text with the column 'onset' of numbers"),
        ("label == ''", "label is missing"),
        ("label == None", "label is missing"),
        ("label is None", "is missing"),
        ("nope == 1", "'nope'"),
        ("`no pe` == 1", "'no pe'"),
        ("mixed == 1", "'mixed'"),
        ("day > '2019'", "'day'"),
        ("onset.startswith('1')", "column of text"),
        ("1 == 1", "neither is a column"),
        ("label", "no yes or no"),
        ("onset - speed > 1", "'onset - speed'"),
        ("'x' in label", "'in'"),
        ("label.contains('a', regex=True)", "contains"),
        ("x" * 20_001, "20001 characters"),
        ("not " * 60 + "left", "nested"),
        ("not " * 4900 + "left", ""),
        ("(" * 500 + "left" + ")" * 500, "cannot be read"),
        ("-" * 9000 + "1 == onset", "cannot be read"),
        ("left" + " == left" * 500, "200 comparisons"),
        ("9" * 6000 + " == onset", "cannot be read"),
        ("left\0", "cannot be read"),
        ("label = 'x'", "cannot be read"),
        ("@os", "cannot be read"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("# label == 'x'", "is empty"),
        ("label == 'x\ny'", "cannot be read"),
        ("label == 'x' \\\n and left", "cannot be read"),
    ],
)
def test_what_a_condition_cannot_say_is_refused_in_one_sentence(where: str, words: str) -> None:
    with pytest.raises(DataError, match="the condition") as caught:
        condition_mask(where, TABLE)
    assert words in str(caught.value)
    assert "<unknown>" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


def test_a_condition_runs_nothing(tmp_path: Path) -> None:
    clips = ClipSet.from_arrays(np.random.default_rng(0).random((4, 3, 6, 6)), list("abab"))
    made = tmp_path / "made"
    hostile = [
        f"clip != clip.__class__.__init__.__globals__.get('sys').modules.get('os').system('touch {made}')",
        f"clip.to_csv('{made}')",
        f"clip.to_pickle('{made}') == 'a'",
        f"open('{made}', 'w')",
        f"__import__('os').system('touch {made}') == 0",
        f"clip == [__import__('os').system('touch {made}')]",
        f"clip.str.cat(open('{made}', 'w'))",
        f"clip == f\"{{open('{made}', 'w')}}\"",
        f"`_`.__class__ == (lambda: open('{made}', 'w'))()",
        f"@pd.compat.os.system('touch {made}')",
        f"clip = open('{made}', 'w')",
        "9**9**9**9 > 1",
        "clip == 'x' * 10**10",
        "[row for row in clip]",
        "(clip := 'a') == 'a'",
        "label if label else clip",
    ]
    started = time.perf_counter()
    for where in hostile:
        with pytest.raises(DataError, match="condition"):
            clips.select(where)
    assert not made.exists()
    assert time.perf_counter() - started < 5

"""Reports side by side: the same figures, tests on the same clips alone, and in words what cannot be compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import browser, read_page, report_of, tables
from PIL import Image

import fsmer
from fsmer.data import ClipSet
from fsmer.errors import DataError
from fsmer.evaluation import Report
from fsmer.reporting.compare import compare
from fsmer.reporting.statistics import paired_comparison

CLASSES = ("negative", "positive", "<b>surprise")


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    base = fsmer.synthetic_clips("lab", 60, seed=1)
    return ClipSet.from_arrays(
        base.media(),
        [CLASSES[row % 3] for row in range(60)],
        subjects=[f"s{row % 7}" for row in range(60)],
        datasets=["casme2" if row % 2 else "smic" for row in range(60)],
        spec=base.specs["flow"],
    )


def answers(clips: ClipSet, right: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = clips.codes(CLASSES)
    return np.where(rng.random(len(truth)) < right, truth, (truth + 1) % 3)


@pytest.fixture(scope="module")
def good(clips: ClipSet) -> Report:
    return report_of(clips, answers(clips, 0.9), classes=CLASSES, method="cosine")


@pytest.fixture(scope="module")
def poor(clips: ClipSet) -> Report:
    return report_of(clips, answers(clips, 0.5, 1), classes=CLASSES, method="protonet")


def test_figures_and_paired_tests_are_those_of_the_reports(good: Report, poor: Report) -> None:
    comparison = compare(good, poor, names=("good", "poor"), draws=500)
    assert not comparison.warnings
    assert comparison.reports == {"good": good, "poor": poor}
    wanted = paired_comparison(good, poor, names=("good", "poor"), draws=500)
    assert comparison.tests == (wanted,)
    assert wanted.differences["uf1"].difference == pytest.approx(good.uf1 - poor.uf1)
    assert comparison.ranking is None


def test_three_reports_are_tested_pair_by_pair_and_ranked(clips: ClipSet, good: Report, poor: Report) -> None:
    middle = report_of(clips, answers(clips, 0.7, 2), classes=CLASSES)
    comparison = compare(poor, middle, good, names=("poor", "middle", "good"), draws=200)
    assert [test.names for test in comparison.tests] == [("poor", "middle"), ("poor", "good"), ("middle", "good")]
    assert comparison.ranking is not None
    assert comparison.ranking.names == ("good", "middle", "poor")


def test_other_clips_are_shown_but_neither_tested_nor_passed_over(clips: ClipSet, good: Report) -> None:
    part = clips[clips.datasets == "smic"]
    other = report_of(part, answers(part, 0.8), classes=CLASSES)
    comparison = compare(good, other, names=("all", "smic"))
    assert comparison.tests == ()
    (warning,) = comparison.warnings
    assert "30 are in both, 30 only in all and 0 only in smic" in warning
    assert f"{other.uf1:.4f}" in comparison.markdown()


def test_other_protocol_is_named_setting_by_setting(clips: ClipSet, good: Report) -> None:
    other = report_of(clips, answers(clips, 0.8), classes=CLASSES, protocol="cde")
    comparison = compare(good, other, names=("a", "b"), draws=50)
    assert comparison.warnings == ("a and b follow other protocols: a loso, b cde.",)
    assert len(comparison.tests) == 1
    settings = good.protocol["settings"]
    changed = {"hash": "other", "settings": settings | {"params": {"shot": 2}}}
    fewer = replace(good, protocol={**good.protocol, **changed})
    assert compare(good, fewer, names=("a", "b"), draws=50).warnings == (
        "a and b follow other protocols: shot is 5 in a and 2 in b.",
    )


def test_other_classes_are_called_other_tasks(clips: ClipSet, good: Report) -> None:
    renamed = ClipSet.from_arrays(
        clips.media(),
        np.where(clips.labels == "positive", "happy", clips.labels).tolist(),
        subjects=clips.subjects.tolist(),
        datasets=clips.datasets.tolist(),
        ids=clips.ids.tolist(),
        spec=clips.specs["flow"],
    )
    names = ("negative", "happy", "<b>surprise")
    comparison = compare(good, report_of(renamed, answers(clips, 0.8), classes=names))
    assert comparison.tests == ()
    assert "other tasks" in comparison.warnings[0]


def test_other_labels_of_the_same_clips_give_the_reason(clips: ClipSet, good: Report) -> None:
    turned = ClipSet.from_arrays(
        clips.media(),
        np.roll(clips.labels, 1).tolist(),
        subjects=clips.subjects.tolist(),
        datasets=clips.datasets.tolist(),
        ids=clips.ids.tolist(),
        spec=clips.specs["flow"],
    )
    comparison = compare(good, report_of(turned, answers(clips, 0.8), classes=CLASSES), names=("a", "b"))
    assert comparison.tests == ()
    assert comparison.warnings[0].startswith("a and b are not tested against each other: ")
    assert "another label" in comparison.warnings[0]


def test_oracle_is_stamped_and_kept_apart_from_honest_figures(clips: ClipSet, good: Report, poor: Report) -> None:
    chosen = [{"seed": 0, "episode": "episode 0", "epochs": 3}]
    oracle = report_of(
        clips,
        answers(clips, 0.95, 3),
        classes=CLASSES,
        selection={"rule": "oracle", "by": "the query side", "candidates": [{"epochs": 3}], "chosen": chosen},
    )
    comparison = compare(oracle, good, poor, names=("x", "y", "z"), draws=50)
    assert list(comparison.reports) == ["x [ORACLE]", "y", "z"]
    assert comparison.warnings[0].startswith(
        "settings were chosen on the judged clips for x [ORACLE] but not for y and z;"
    )
    tree = read_page(comparison.to_html())
    assert "with ORACLE figures" in tree.find("header")[0].text
    assert all("ORACLE" in cell for cell in tables(tree)["Figures with 95 % intervals"][1][:4])
    assert not any("ORACLE" in cell for cell in tables(tree)["Figures with 95 % intervals"][2][:4])


def test_folders_are_read_and_named_by_what_tells_them_apart(good: Report, poor: Report, tmp_path: Path) -> None:
    for place, report in (("one/run", good), ("two/run", poor), ("third", good)):
        report.save(tmp_path / place)
    comparison = compare(tmp_path / "one" / "run", str(tmp_path / "two" / "run"), tmp_path / "third", draws=50)
    assert list(comparison.reports) == [str(tmp_path / "one/run"), str(tmp_path / "two/run"), "third"]
    assert comparison.reports["third"].uf1 == pytest.approx(good.uf1)
    assert list(compare(good, good, draws=50).reports) == ["cosine on facs-flow", "cosine on facs-flow (2)"]


def test_saved_comparison_holds_every_form(good: Report, poor: Report, tmp_path: Path) -> None:
    comparison = compare(good, poor, good, names=("good", "poor|bad", "again"), draws=200)
    comparison.save(tmp_path)
    held = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in held["reports"]] == ["good", "poor|bad", "again"]
    assert held["reports"][0]["uf1"] == pytest.approx(good.uf1)
    assert held["reports"][0]["uf1_interval"] == pytest.approx(good.interval("uf1"))
    assert held["tests"][0]["differences"]["uf1"]["difference"] == pytest.approx(good.uf1 - poor.uf1)
    assert held["tests"][1]["differences"]["uf1"]["difference"] == 0
    assert held["ranking"]["blocks"] == 14
    for name in ("compare.png", "ranks.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100
    lines = (tmp_path / "compare.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line.startswith("| poor")).count(" | ") == 6
    assert "https:" not in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_page_shows_the_clips_on_which_reports_disagree(good: Report, poor: Report) -> None:
    comparison = compare(good, poor, names=("good", "poor"), draws=50)
    tree = read_page(comparison.to_html())
    right = {
        name: dict(zip(one.predictions["clip"], one.predictions["label"] == one.predictions["predicted"], strict=True))
        for name, one in comparison.reports.items()
    }
    wanted = {
        clip: [f"{float(right[name][clip]):.0%}" for name in ("good", "poor")]
        for clip in right["good"]
        if right["good"][clip] != right["poor"][clip]
    }
    rows = tables(tree)["Share of right answers"][1:]
    assert {row[0]: row[4:] for row in rows} == wanted
    assert f"{len(wanted)} of 60 clips" in tree.text


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [(1, None, "two.* 1"), (2, ("a",), "2 .* 1 ")],
)
def test_too_few_reports_or_names_are_refused(
    good: Report, count: int, names: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compare(*[good] * count, names=names)


def test_folder_without_a_report_is_refused_by_name(good: Report, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        compare(good, tmp_path)


def test_page_is_readable_in_a_browser(good: Report, poor: Report, tmp_path: Path) -> None:
    names = ("a name that is as long as names of folders may well become in the end", "poor", "again")
    compare(good, poor, good, names=names, draws=50).to_html(tmp_path / "page.html")
    with browser() as started:
        for width in (1280, 390):
            heard: list[str] = []
            tab = started.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message, heard=heard: heard.append(message.text))
            tab.goto((tmp_path / "page.html").as_uri())
            assert not heard
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert tab.locator("table").count() >= 8
            tab.close()

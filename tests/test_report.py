"""A report is data first: whole files, text that stays text, and the same report after loading."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmer.data import ClipSet
from fsmer.drawing import confusion_figure, flow_figure, save_figure
from fsmer.errors import DataError, OutputError
from fsmer.evaluation import METRICS, Report
from fsmer.evaluation.predictions import Predictions
from fsmer.reporting.plots import domains_figure, methods_figure

CLASSES = ("negative", "positive", "surprise")
# Labels by hand: what is right, what was said.
TRUTH = [0, 0, 0, 0, 1, 1, 1, 2, 2]
SAID = [0, 0, 0, 1, 0, 1, 2, 2, 2]


@pytest.fixture
def clips() -> ClipSet:
    maps = np.random.default_rng(0).random((9, 3, 28, 28), dtype=np.float32)
    for channel in maps.reshape(-1, 28, 28):
        channel -= channel.min()
        channel /= channel.max()
    return ClipSet.from_arrays(
        maps,
        [CLASSES[code] for code in TRUTH],
        subjects=["006", "006", "007", "007", "006", "007", "1e3", "NA", "007"],
        datasets=["samm"] * 7 + ["nan"] * 2,
        ids=["NA", "001", "1e5", "d,e", 'f"g', "None", "h", "true", "ü"],
    )


@pytest.fixture
def report(clips: ClipSet) -> Report:
    said = np.array(SAID)
    probabilities = np.full((9, 3), 0.1, dtype=np.float32)
    probabilities[np.arange(9), said] = 0.8
    return Report.from_predictions(
        clips,
        Predictions(np.zeros(9, dtype=np.int32), np.arange(9), said.astype(np.int16), probabilities),
        codes=clips.codes(CLASSES),
        classes=CLASSES,
        names=["episode 0"],
        among=None,
        averaging="pooled",
        seed=3,
        protocol={
            "name": "kshot",
            "title": "K-shot",
            "hash": "0" * 16,
            "settings": {"kind": "kshot", "params": {"way": None, "shot": 5, "class_subset": ["a", "b"]}},
        },
        model={"name": "facs-flow", "weights_hash": "1" * 16},
        method={"name": "cosine", "params": {"steps": 200, "centre": None}},
    )


def test_figures_are_those_of_the_hand_worked_matrix(report: Report) -> None:
    assert report.confusion.tolist() == [[3, 1, 0], [1, 1, 1], [0, 0, 2]]
    assert report.uf1 == pytest.approx((0.75 + 0.4 + 0.8) / 3)
    assert report.uar == pytest.approx((3 / 4 + 1 / 3 + 1) / 3)
    assert report.acc == pytest.approx(6 / 9)
    assert report.per_class["positive"] == pytest.approx({"f1": 0.4, "recall": 1 / 3, "precision": 1 / 2, "clips": 3})
    # The second data set has one class of three; the other two count as zero.
    assert report.per_dataset["nan"]["uf1"] == pytest.approx(1 / 3)
    assert report.per_dataset["nan"]["acc"] == 1
    assert report.counts["subjects"] == 5  # "007" of two data sets are two people


def test_report_json_has_figures_intervals_and_everything_to_repeat_it(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    held = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for name in METRICS:
        low, high = held[f"{name}_interval"]
        assert low <= held[name] <= high
    assert set(held["per_dataset"]) == {"samm", "nan"}
    assert held["per_dataset"]["samm"]["uf1_interval"] is not None
    assert held["classes"] == list(CLASSES)
    assert held["confusion"] == report.confusion.tolist()
    assert held["protocol"]["hash"] == "0" * 16
    assert held["model"]["weights_hash"] == "1" * 16
    assert held["method"]["params"]["steps"] == 200
    assert held["seed"] == 3
    assert {"fsmer", "torch", "numpy", "python"} <= set(held["versions"])


def test_predictions_are_by_clip_id_and_text_stays_text(report: Report, clips: ClipSet, tmp_path: Path) -> None:
    report.save(tmp_path)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["clip"] for row in rows] == clips.ids.tolist()
    assert [row["subject"] for row in rows] == clips.subjects.tolist()
    assert [row["label"] for row in rows] == clips.labels.tolist()
    assert [row["predicted"] for row in rows] == [CLASSES[code] for code in SAID]
    assert float(rows[0]["p_negative"]) == pytest.approx(0.8)


def test_a_loaded_report_is_the_saved_one(report: Report, tmp_path: Path) -> None:
    loaded = Report.load(report.save(tmp_path / "deep" / "out"))
    assert loaded.to_dict() == report.to_dict()
    assert loaded.figures == report.figures
    for column in report.predictions:
        assert loaded.predictions[column].tolist() == report.predictions[column].tolist()
    assert loaded.episodes["name"].tolist() == ["episode 0"]
    assert loaded.markdown() == report.markdown()


def test_saving_twice_gives_the_same_bytes_and_keeps_other_files(report: Report, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    first = {path.name: path.read_bytes() for path in report.save(tmp_path).iterdir()}
    assert {path.name: path.read_bytes() for path in report.save(tmp_path).iterdir()} == first
    assert set(first) == {"notes.txt", "report.json", "report.md", "predictions.csv", "episodes.csv", "confusion.png"}


def test_markdown_shows_every_figure(report: Report) -> None:
    page = report.markdown()
    for word in (
        "# cosine on K-shot (shot 5, class_subset a+b)",
        "0.6500",
        "samm",
        "positive",
        "| 0.4000 |",
        "bootstrap over 5 subjects",
        "1" * 16,
    ):
        assert word in page
    assert str(report).startswith("cosine on kshot: UF1 0.6500")


@pytest.mark.parametrize("damage", ["missing", "cut", "newer", "other"])
def test_a_folder_without_a_whole_report_is_refused(report: Report, tmp_path: Path, damage: str) -> None:
    path = report.save(tmp_path) / "report.json"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text()[:100])
    elif damage == "newer":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    else:
        path.write_text("{}")
    with pytest.raises(DataError, match="newer" if damage == "newer" else "report"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("predictions.csv", lambda lines: lines[:5], r"predictions.csv.*\b4\b.*\b9\b"),
        ("predictions.csv", lambda lines: lines[:1], r"predictions.csv.*\b0\b.*\b9\b"),
        ("episodes.csv", lambda lines: lines[:1], r"episodes.csv.*\b0\b.*\b1\b"),
        # As many rows, but others.
        ("predictions.csv", lambda lines: [*lines[:-1], lines[1]], "confusion matrix"),
        ("predictions.csv", lambda lines: [*lines[:-1], "7" + lines[-1][1:]], "numbers of clips"),
        (
            "predictions.csv",
            lambda lines: [line.replace("surprise", "joy") for line in lines],
            "label",
        ),
        ("report.json", lambda lines: [line.replace('"uf1": 0.65', '"uf1": 0.75') for line in lines], r"UF1.*0\.75"),
    ],
)
def test_tables_that_the_figures_do_not_follow_from_are_refused(
    report: Report, tmp_path: Path, name: str, damage: Callable[[list[str]], list[str]], words: str
) -> None:
    path = report.save(tmp_path) / name
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert damage(lines) != lines
    path.write_text("".join(damage(lines)), encoding="utf-8")
    with pytest.raises(DataError, match="evaluation again") as refused:
        Report.load(tmp_path)
    assert re.search(words, str(refused.value))
    assert str(refused.value).count(". ") == 0
    assert Report.load(tmp_path, check=False).counts == report.counts


def test_what_is_missing_is_said_without_numbers_of_errors(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "run")
    (tmp_path / "run" / "episodes.csv").unlink()
    (tmp_path / "file").touch()
    for folder, words in (
        ("run", "episodes.csv"),
        ("nowhere", "report.json"),
        ("file", "Not a directory"),
    ):
        with pytest.raises(DataError, match=words) as refused:
            Report.load(tmp_path / folder)
        assert "Errno" not in str(refused.value)


def test_a_folder_that_cannot_be_written_is_refused(report: Report, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        report.save(tmp_path / "file")


def test_pictures_are_made_without_touching_pyplot(report: Report, clips: ClipSet, tmp_path: Path) -> None:
    before = set(sys.modules)
    generator = np.random.default_rng(0)
    pictures = {
        "confusion": confusion_figure(report.confusion, CLASSES, title="a very long title " * 5),
        "methods": methods_figure({"one": report, "two": report}, title="methods"),
        "domains": domains_figure(generator.normal(size=(30, 8)), generator.normal(size=(9, 8)) + 2),
        "flow": flow_figure(clips.media(), titles=list(clips.ids), normalisation="minmax"),
        "still": flow_figure(np.zeros((1, 2, 5, 5))),
    }
    for name, figure in pictures.items():
        with Image.open(save_figure(figure, tmp_path / f"{name}.png")) as image:
            pixels = np.asarray(image.convert("RGB"))
            assert min(pixels.shape[:2]) > 150
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > (1 if name == "still" else 10)
    # Other libraries that tests compare with may have imported it before.
    assert "matplotlib.pyplot" not in set(sys.modules) - before


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: confusion_figure(np.zeros((2, 2)), CLASSES), "3 class names"),
        (lambda: methods_figure({}), "no report"),
        (lambda: domains_figure(np.zeros((4, 3)), np.zeros((4, 2))), "same length"),
        (lambda: flow_figure(np.zeros((3, 5, 5))), "shape"),
        (lambda: flow_figure(np.zeros((3, 3, 5, 5)), titles=["a"]), "1 titles"),
    ],
)
def test_pictures_of_the_wrong_data_are_refused(call: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()  # type: ignore[operator]


def test_the_recipe_that_clips_were_prepared_with_stands_in_the_report(clips: ClipSet, tmp_path: Path) -> None:
    """A part of the clips states its recipe; the clips of the other data set were made elsewhere."""
    prepared = clips.table.assign(recipe=["0123456789abcdef"] * 4 + ["fedcba9876543210"] * 3 + [None] * 2)
    prepared = ClipSet.from_table(prepared)
    said = np.array(SAID)
    plain = {
        "codes": clips.codes(CLASSES),
        "classes": CLASSES,
        "names": ["episode 0"],
        "among": None,
        "averaging": "pooled",
        "seed": 0,
        "protocol": {"name": "loso", "title": "LOSO", "hash": "0" * 16, "settings": {"kind": "loso", "params": {}}},
        "model": {"name": "mine", "weights_hash": "1" * 16, "input": ""},
        "method": {"name": "cosine", "params": {}},
    }
    shown = Predictions(np.zeros(9, np.int32), np.arange(9), said.astype(np.int16), np.full((9, 3), 1 / 3, np.float32))
    report = Report.from_predictions(prepared, shown, **plain)
    assert report.preprocessing == {"samm": ["0123456789abcdef", "fedcba9876543210"]}
    assert "samm recipe 0123456789abcdef and fedcba9876543210" in report.markdown()
    assert json.loads((report.save(tmp_path) / "report.json").read_text())["preprocessing"] == report.preprocessing
    assert Report.load(tmp_path).preprocessing == report.preprocessing
    assert "preprocessing" not in Report.from_predictions(clips, shown, **plain).to_dict()

"""Every reading of real labels is a row of benchmarks/releases.csv."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fsmer.backbones import model_hash
from fsmer.errors import DataError
from fsmer.evaluation import Report
from fsmer.synthetic.clips import synthetic_clips


@pytest.fixture(autouse=True)
def _found_from_anywhere(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.syspath_prepend(str(repository))
    monkeypatch.setenv("PYTHONPATH", str(repository))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of clips, as real ones lie on a disk."""
    synthetic_clips("lab", n=18, seed=0).save(tmp_path / "clips")
    return tmp_path / "clips"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_a_reading_of_labels_in_a_folder_is_one_row_with_its_figures_and_no_path(clips: Path, tmp_path: Path) -> None:
    from benchmarks.releases import read

    readings, out = tmp_path / "releases.csv", tmp_path / "out"
    command = ["fsmer", "evaluate", "kshot", "--shot", "0", "-d", str(clips), "--method", "zero_shot", f"--out={out}"]
    assert read(command, readings, note="a trial") == 0
    (row,) = rows_of(readings)
    report = Report.load(out)
    assert float(row["uf1"]) == pytest.approx(report.uf1, abs=5e-4)
    assert float(row["uar"]) == pytest.approx(report.uar, abs=5e-4)
    assert row["command"] == "fsmer evaluate kshot --shot 0 --data DIR --method zero_shot --out OUT"
    assert row["weights"] == report.model["weights_hash"]
    assert row["model"] == "facs-flow"
    assert row["note"] == "a trial"
    assert "18 clips" in row["data"]
    assert str(tmp_path) not in readings.read_text()
    # Asked for again, the finished run reads nothing.
    assert read(command, readings) == 0
    assert len(rows_of(readings)) == 1


def test_drawn_clips_add_no_row(tmp_path: Path) -> None:
    from benchmarks.releases import read

    readings = tmp_path / "releases.csv"
    given = ["--data", "synthetic:lab:18", "--method", "zero_shot", "--out", str(tmp_path / "out")]
    assert read(["fsmer", "evaluate", "kshot", "--shot", "0", *given], readings) == 0
    assert (tmp_path / "out" / "report.json").is_file()
    assert not readings.exists()


def test_a_refused_run_adds_no_row(tmp_path: Path) -> None:
    from benchmarks.releases import read

    readings = tmp_path / "releases.csv"
    given = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert read(["fsmer", "evaluate", "loso", *given], readings) == 1
    assert not readings.exists()


@pytest.mark.parametrize(
    ("command", "fact"),
    [
        (["python", "-m", "this"], "fsmer evaluate"),
        (["fsmer", "evaluate", "loso", "--data", "DIR"], "--out"),
        (["fsmer", "evaluate", "loso", "--out", "OUT"], "--data"),
    ],
)
def test_what_gives_no_row_is_refused_before_it_runs(command: list[str], fact: str, tmp_path: Path) -> None:
    from benchmarks.releases import read

    with pytest.raises(DataError, match=fact):
        read(command, tmp_path / "releases.csv")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    from benchmarks.releases import read

    readings = tmp_path / "releases.csv"
    readings.write_text("name,uf1\nx,.5\n")
    with pytest.raises(DataError, match="columns"):
        read(["fsmer", "evaluate", "loso", "--data", "DIR", "--out", "OUT"], readings)


def test_the_readings_are_in_order_of_time_and_name_the_shipped_weights(repository: Path) -> None:
    from benchmarks.releases import COLUMNS, READINGS
    from fsmer import load_model

    rows = rows_of(READINGS)
    assert tuple(rows[0]) == COLUMNS
    days = [row["date"] for row in rows]
    assert days == sorted(days)
    assert model_hash(load_model("facs-flow")) in {row["weights"] for row in rows}
    assert all(0 <= float(row["uf1"]) <= 1 for row in rows)


def test_each_figure_on_raw_pixels_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import pixels

    monkeypatch.setattr(pixels, "EPISODES", 5)
    synthetic_clips("lab", n=30, seed=0).save(tmp_path / "clips")
    pixels.main([str(tmp_path / "clips"), "--to", str(tmp_path / "releases.csv")])
    rows = rows_of(tmp_path / "releases.csv")
    assert [row["note"].partition(",")[0] for row in rows] == ["logistic regression", "nearest class mean"]
    assert {row["command"] for row in rows} == {"python -m benchmarks.pixels DIR"}
    assert all(row["data"].startswith("lab: ") and float(row["uf1"]) >= 0 for row in rows)

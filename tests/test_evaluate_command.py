"""`fsmer evaluate`: seeds, fresh weights, choices, and commands that were killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fsmer.backbones import Backbone
from fsmer.cli.app import app
from fsmer.data import ClipSet
from fsmer.errors import DataError
from fsmer.evaluation import Report, evaluate

from tiny_runs import command  # isort: skip


@pytest.fixture(scope="module")
def folder(clips: ClipSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clips.save(tmp_path_factory.mktemp("clips") / "both"))


@pytest.mark.slow
def test_the_command_line_runs_seeds_of_a_model_with_and_without_weights(folder: str, tmp_path: Path) -> None:
    tune = ("--method", "finetune", "--train-backbone", "-p", "steps=1", "--seeds", 3)
    for model, more in (("facs-flow", ()), ("fr", ("-a", "shared_width=16", "-a", "detector_width=4"))):
        out = tmp_path / model
        shown = command("loso", "--data", folder, "--model", model, *tune, *more, "--out", out).stdout
        held = json.loads((out / "report.json").read_text())
        assert [row["seed"] for row in held["per_seed"]] == [0, 1, 2]
        assert held["method"]["params"]["train_backbone"] is True
        assert held["model"].get("fresh", False) is (model == "fr")
        for name in ("uf1", "uar", "acc"):
            assert held[name] == pytest.approx(np.mean([row[name] for row in held["per_seed"]]))
            assert f"{held[name]:.3f}" in shown
        assert "seed 2" in shown
        assert "3 seeds" in shown
    # Asked again, the same folder gets the same report.
    before = (out / "report.json").read_bytes()
    command("loso", "--data", folder, "--model", "fr", *tune, *more, "--out", out)
    assert (out / "report.json").read_bytes() == before


def test_fresh_weights_are_trained_by_their_recipe_unless_fine_tuning_is_asked_for_in_detail(folder: str) -> None:
    common = ("loso", "--data", folder, "--model", "random-tiny-for-tests", "--jobs", 1, "--json", "--seeds", "0,4")
    begun = "'random-tiny-for-tests' starts from fresh weights, and 'finetune' is made to adjust trained ones"
    asked = json.loads(command(*common, "--method", "train").stdout)
    assert asked["notes"] == []
    tune = ("--method", "finetune", "--train-backbone")
    plain = command(*common, *tune)
    said = f"{begun}: it is trained by its paper's recipe instead, by the method 'train'."
    assert f"fsmer: {said}\n" in plain.stderr
    found = json.loads(plain.stdout)
    assert found["notes"] == [said]
    assert found | {"notes": []} == asked
    said = f"{begun}: this is not the training of its paper, which is the method 'train' (--method train)."
    for more in (("-p", "steps=1"), ("--select", "nested", "--grid", "steps=1,2")):
        detailed = command(*common, *tune, *more)
        assert f"fsmer: {said}\n" in detailed.stderr
        assert json.loads(detailed.stdout)["method"]["name"] == "finetune"
        assert json.loads(detailed.stdout)["notes"] == [said]


def test_the_command_line_shows_honest_and_oracle_figures_side_by_side(folder: str) -> None:
    common = ("loso", "--data", folder, "--model", "random-tiny-for-tests", "--method", "train", "-p", "epochs=3")
    shown = command(*common, "--select", "oracle").stdout
    held = json.loads(command(*common, "--select", "oracle", "--json").stdout)
    assert f"ORACLE {held['uf1']:.3f}" in shown
    assert f"ORACLE {held['acc']:.3f}" in shown
    assert f"{held['honest']['acc']:.3f}" in next(line for line in shown.splitlines() if line.startswith("honest"))
    assert f"{held['gap']['acc']:+.3f}" in next(line for line in shown.splitlines() if line.startswith("gap"))
    assert shown.startswith("ORACLE")
    nested = json.loads(
        command(*common, "--select", "nested", "--grid", "epochs=1,3", "--seeds", "2,5", "--json").stdout
    )
    assert [row["seed"] for row in nested["per_seed"]] == [2, 5]
    assert {one["epochs"] for one in nested["selection"]["chosen"]} <= {1, 3}
    assert "oracle" not in nested
    assert "--grid" in command(*common, "--select", "nested", "--grid", "epochs", code=2).stderr
    assert "--seeds" in command(*common, "--seeds", "many", code=2).stderr
    refused = command("loso", "--data", folder, "--model", "fr", "--method", "cosine", code=1).stderr
    assert "--train-backbone" in refused
    assert refused.count("\n") == 1


def test_what_a_kill_left_half_written_goes_with_the_next_report(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    left = [tmp_path / f".{name}.unfinished-abcd_123{Path(name).suffix}" for name in ("report.md", "predictions.csv")]
    others = [tmp_path / ".report.md.original.md", tmp_path / ".report.md.unfinished-now12345.md"]
    for path in (*left, *others):
        path.write_text("half")
    for path in (*left, others[0]):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    assert all(path.read_text() == "half" for path in others), "a user's own file, and one that may still be written"
    assert not any(path.exists() for path in left)


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(folder: str, tmp_path: Path) -> None:
    arguments = [
        *("loso", "--data", folder, "--model", "facs-flow", "-a", "widths=[4,4,4,4]", "-a", "branch_dim=4"),
        *("--method", "finetune", "--train-backbone", "-p", "steps=8", "--seeds", "2", "--out"),
    ]
    program = [sys.executable, "-m", "fsmer", "evaluate", *arguments, str(tmp_path / "cut")]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        for _ in range(1200):
            if len(list((tmp_path / "cut").glob(".parts-*/*.npz"))) >= 2 or running.poll() is not None:
                break
            time.sleep(0.05)
        running.kill()
    finished = len(list((tmp_path / "cut").glob(".parts-*/*.npz")))
    assert 2 <= finished < 12
    command(*arguments, tmp_path / "cut")
    command(*arguments, tmp_path / "whole")
    for name in ("report.json", "predictions.csv", "episodes.csv", "report.md", "confusion.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def killed(folder: str, out: Path, *arguments: str, parts: int) -> tuple[str, ...]:
    """A command that was killed when so many parts lay on disk."""
    given = ("evaluate", "loso", "--data", folder, "--model", "facs-flow", "-a", "widths=[4,4,4,4]")
    given += ("-a", "branch_dim=4", "--method", "finetune", "--train-backbone", "--jobs", "1")
    given += (*arguments, "--out", str(out))
    there = f".parts-*/{'*.npz' if parts else 'run.json'}"
    with subprocess.Popen([sys.executable, "-m", "fsmer", *given], stderr=subprocess.DEVNULL) as running:
        for _ in range(18000):
            if len(list(out.glob(there))) >= max(parts, 1) or running.poll() is not None:
                break
            time.sleep(0.01)
        running.kill()
    assert not (out / "report.json").exists()
    return given


@pytest.mark.slow
def test_a_killed_run_is_called_unfinished_and_tells_how_to_go_on(folder: str, tmp_path: Path) -> None:
    killed(folder, tmp_path / "cut", "-p", "steps=8", parts=2)
    finished = len([path for path in (tmp_path / "cut").glob(".parts-*/*.npz") if not path.name.startswith(".")])
    # A file that was being written when the end came is none.
    parts = "1 finished part" if finished == 1 else f"{finished} finished parts"
    words = f"holds an unfinished run with {parts} and no report; run the same evaluation again"
    for given in (("audit", tmp_path / "cut"), ("compare", tmp_path / "cut", tmp_path / "cut")):
        done = CliRunner().invoke(app, list(map(str, given)))
        assert done.exit_code == 1
        said = " ".join(done.stderr.split())
        assert words in said
        assert "Errno" not in said


@pytest.mark.slow
def test_a_run_killed_before_its_first_part_leaves_nothing_beside_the_next(folder: str, tmp_path: Path) -> None:
    given = killed(folder, tmp_path / "cut", "-p", "steps=5000", parts=0)
    (left,) = (tmp_path / "cut").glob(".parts-*")
    assert [path.name for path in left.iterdir()] == ["run.json"]
    with pytest.raises(DataError, match=r"unfinished run.*no finished part"):
        Report.load(tmp_path / "cut")
    command(*(("steps=2" if word == "steps=5000" else word) for word in given[1:]))
    assert not list((tmp_path / "cut").glob(".parts-*"))
    (kept,) = (tmp_path / "cut").glob(".kept-*")
    assert kept.name.removeprefix(".kept-") != left.name.removeprefix(".parts-")

"""Interrupted and finished runs: nothing is computed twice, and nothing of another run is taken over."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsmer import kernels
from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.errors import DataError, OutputError
from fsmer.evaluation import Report, evaluate
from fsmer.evaluation.episode_results import EpisodeResults, RunSize
from fsmer.evaluation.predictions import Predictions
from fsmer.evaluation.run_folder import RunFolder
from fsmer.transfer import Method, Recognizer
from fsmer.transfer.linear_head import Finetune

from tiny_runs import RandomTiny, tuned, Stop, untrained, contents  # isort: skip


@pytest.mark.parametrize("stop_after", [1, 8, 17])
def test_killed_anywhere_nothing_is_repeated_and_the_report_is_the_same(
    stop_after: int, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("loso", backbone, tuned(), clips=clips, seeds=3)
    fitted: list[int] = []
    fit = Finetune.fit

    def counted(self: Finetune, *args: Any, **options: Any) -> Recognizer:
        if len(fitted) == stop_after:
            raise Stop
        fitted.append(self.seed)
        return fit(self, *args, **options)

    monkeypatch.setattr(Finetune, "fit", counted)
    monkeypatch.setattr(Finetune, "_learn_many", Method._learn_many)
    with pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path)
    assert not (tmp_path / "report.json").exists()
    stop_after = -1
    resumed = evaluate("loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path)
    assert sorted(fitted) == [seed for seed in range(3) for _ in range(6)]
    assert resumed.to_dict() == whole.to_dict()
    assert resumed.predictions.equals(whole.predictions)
    assert not list(tmp_path.glob(".parts-*"))


def test_folds_may_be_finished_in_any_order(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("loso", backbone, tuned(), clips=clips)
    order: list[list[int]] = []
    last = 3

    def backwards(self: Method, model: Any, supports: Any, **options: Any) -> Iterator[tuple[int, Recognizer]]:
        order.append([])
        for member in reversed(range(len(supports))):
            if len(order[-1]) == last:
                raise Stop
            order[-1].append(len(supports[member]))
            yield member, self.fit(model, supports[member], classes=options["classes"][member])

    monkeypatch.setattr(Finetune, "fit_many", backwards)
    with pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    # Every finished fold lay on disk by itself.
    assert len(list(tmp_path.glob(".parts-*/*.npz"))) == 3
    last = 99
    resumed = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    assert [len(one) for one in order] == [3, 3]
    assert resumed.to_dict() == whole.to_dict()
    assert resumed.predictions.equals(whole.predictions)


def test_more_seeds_go_on_from_those_of_an_interrupted_run(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Report, folder: Any) -> Path:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Report, "save", stop)
        with pytest.raises(Stop):
            evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    seen: list[tuple[int, int]] = []
    report = evaluate(
        "loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path, progress=lambda *said: seen.append(said[1:])
    )
    assert [row["seed"] for row in report.per_seed] == [0, 1, 2]
    assert seen.count((6, 6)) == 3  # twice at once, once after six folds
    assert seen.count((3, 6)) == 1


def test_a_finished_run_that_is_started_again_repeats_nothing(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    assert first.folder is None
    before, fitted = contents(tmp_path), untrained(monkeypatch)
    again = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    assert fitted == []
    assert again.folder == tmp_path
    assert again.to_dict() == first.to_dict()
    assert again.run == first.run
    assert contents(tmp_path) == before
    # What is asked for anew is made anew.
    anew = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path, resume=False)
    assert sorted(fitted) == [0] * 6 + [1] * 6
    assert contents(tmp_path)["report.json"] == before["report.json"]
    assert anew.run["resumed"] == 0


def test_more_seeds_go_on_from_a_finished_run(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate("loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path / "whole")
    evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path / "out")
    fitted = untrained(monkeypatch)
    more = evaluate("loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path / "out")
    assert fitted == [2] * 6
    assert more.to_dict() == whole.to_dict()
    assert more.run["resumed"] == 12
    assert contents(tmp_path / "out")["report.json"] == contents(tmp_path / "whole")["report.json"]
    assert contents(tmp_path / "out")["predictions.csv"] == contents(tmp_path / "whole")["predictions.csv"]
    # Fewer would throw a seed away.
    with pytest.raises(OutputError, match=r"seeds 0, 1, 2, .*seeds 0 .*--overwrite"):
        evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path / "out")


def test_a_finished_report_of_something_else_is_replaced_only_on_demand(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    before = contents(tmp_path)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"method": "protonet"}, r"another method \(finetune, now protonet\)"),
        ({"method": tuned(steps=3)}, r"another method \(finetune: steps was 2, is 3 now\)"),
        ({"model": RandomTiny(4).eval()}, "another model .random-tiny-for-tests with weights"),
        ({"protocol": load_protocol("kshot", shot=2, episodes=3)}, "another protocol"),
        ({"clips": clips[:40]}, r"another table of clips \(\d+ clips of one, two, hash \w+, now 40 clips of "),
        ({"resume": False, "method": "protonet"}, "another method"),
    ]
    for changed, words in changes:
        asked = {"protocol": "loso", "model": backbone, "method": tuned(), "clips": clips} | changed
        with pytest.raises(OutputError, match=f"finetune on random-tiny.* loso with {words}.*--overwrite") as refused:
            evaluate(**asked, out=tmp_path)
        assert str(refused.value).count(". ") == 0
        assert contents(tmp_path) == before
    (tmp_path / "report.html").write_text("of the old report")
    report = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, overwrite=True)
    assert Report.load(tmp_path).to_dict() == report.to_dict()
    assert "protonet on" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".*-*"))


def test_the_old_report_stays_until_the_new_one_is_there(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    before = contents(tmp_path)
    fitted = untrained(monkeypatch)

    def stop(stage: str, done: int, total: int) -> None:
        if len(fitted) == 3:
            raise Stop

    with pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path, overwrite=True, progress=stop)
    assert contents(tmp_path) == before
    fitted.clear()
    evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path, overwrite=True)
    assert len(fitted) == 3
    assert Report.load(tmp_path).method["name"] == "finetune"


def test_a_report_that_was_saved_over_another_is_not_taken_for_it(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    evaluate("loso", backbone, "logistic", clips=clips).save(tmp_path)
    call = "fsmer.evaluate('loso', 'random-tiny-for-tests', 'logistic', select='fixed')"
    assert Report.load(tmp_path).run["call"] == call
    with pytest.raises(OutputError, match=r"logistic on random-tiny.*run\.json"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(OutputError, match=r"cannot be read.*--overwrite"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)


def test_a_finished_report_that_lost_a_table_is_made_again(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    (tmp_path / "predictions.csv").unlink()
    fitted = untrained(monkeypatch)
    assert evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path).to_dict() == first.to_dict()
    assert fitted == []
    assert (tmp_path / "predictions.csv").is_file()


def test_run_json_says_how_and_when(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    began = time.time()
    report = evaluate("loso", backbone, tuned(seed=4), clips=clips, seeds=2, out=tmp_path, call="typed by hand")
    held = json.loads((tmp_path / "run.json").read_text())
    assert held["call"] == "typed by hand"
    assert held["seeds"] == [4, 5]
    assert held["resumed"] == 0
    assert 0 < held["seconds"] <= time.time() - began + 0.1
    assert abs(datetime.strptime(held["started"], "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC).timestamp() - began) < 2
    assert f"hash {report.protocol['hash']}" in held["identity"]["protocol"]
    assert report.model["weights_hash"] in held["identity"]["model"]
    assert "cores" in held["machine"]
    page = report.to_html()
    for words in ("typed by hand", held["started"], held["identity"]["content of the media"].removeprefix("hash ")):
        assert words in page
        assert words in Report.load(tmp_path).to_html()
    # The report itself is the same whenever it is made.
    assert "started" not in (tmp_path / "report.json").read_text()


def test_a_run_is_not_continued_under_another_arithmetic(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    for name, value in kernels.describe().items():
        assert first.versions[name] == value
    assert "kernels" not in evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "frozen").versions
    other = kernels.describe() | {"kernels": "elsewhere", "compiler": "another one"}
    monkeypatch.setattr(kernels, "describe", lambda: other)
    with pytest.raises(OutputError, match=r"another arithmetic .* is \"elsewhere\" now") as told:
        evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    assert str(told.value).count(". ") == 0
    # What is unfinished is refused too.
    (tmp_path / "report.json").unlink()
    with pytest.raises(OutputError, match="unfinished run with another arithmetic"):
        evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    # Embeddings of a frozen network do not depend on it.
    assert evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "frozen").run["resumed"] == 0


def test_runs_of_before_the_arithmetic_was_written_go_on(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "describe", dict)
        first = evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path)
    assert "arithmetic" not in first.run["identity"]
    fitted = untrained(monkeypatch)
    assert evaluate("loso", backbone, tuned(), clips=clips, out=tmp_path).to_dict() == first.to_dict()
    assert fitted == []
    again = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    assert set(fitted) == {1}  # the episodes of the first seed are taken over
    assert again.run["identity"]["arithmetic"].startswith("this machine with {")
    # What the first seed was trained with is not known, nor is it when further seeds come.
    more = evaluate("loso", backbone, tuned(), clips=clips, seeds=3, out=tmp_path)
    for report in (again, more, Report.load(tmp_path)):
        for name, value in kernels.describe().items():
            assert report.versions[name].startswith("unknown for the episodes of an earlier version")
            assert report.versions[name].endswith(value)


def test_a_report_without_its_tables_is_refused(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(DataError, match=r"predictions\.csv is missing"):
        Report.load(tmp_path)


@pytest.mark.parametrize("name", ["predictions.csv", "episodes.csv"])
@pytest.mark.parametrize("learner", ["finetune", "protonet"])
def test_a_finished_report_with_a_cut_table_is_made_again(
    learner: str, name: str, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tuned() if learner == "finetune" else learner
    first = evaluate("loso", backbone, method, clips=clips, out=tmp_path)
    before = contents(tmp_path)
    (tmp_path / name).write_text("".join((tmp_path / name).read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match=f"{name} has 2 rows.*run the same evaluation again"):
        Report.load(tmp_path)
    fitted = untrained(monkeypatch)
    again = evaluate("loso", backbone, method, clips=clips, out=tmp_path)
    assert fitted == []
    assert again.folder is None
    assert again.to_dict() == first.to_dict()
    after = contents(tmp_path)
    for file in ("report.json", "predictions.csv", "episodes.csv", "report.md", "confusion.png"):
        assert after[file] == before[file]
    assert evaluate("loso", backbone, method, clips=clips, out=tmp_path).folder == tmp_path


def test_whole_reports_of_every_kind_are_read(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    """Some of all classes in an episode, several seeds, figures chosen on the test clips, and classes nobody shows."""
    kshot = load_protocol("kshot", way=2, shot=2, query=2, episodes=5)
    two = clips[clips.labels != "surprise"]
    asked: list[dict[str, Any]] = [
        {"protocol": kshot, "method": tuned(), "seeds": 2},
        {"protocol": kshot, "method": "protonet"},
        {"protocol": "loso", "method": tuned(), "seeds": 2, "select": "oracle", "grid": {"steps": [1, 3]}},
        {"protocol": "loso", "method": "protonet", "clips": two},
        {"protocol": "holdout", "method": "protonet", "clips": clips},
    ]
    for number, given in enumerate(asked):
        if given["protocol"] == "holdout":
            given["protocol"] = load_protocol("holdout", train=["one"], test=["two"])
        report = evaluate(**{"model": backbone, "clips": clips} | given, out=tmp_path / str(number))
        assert Report.load(tmp_path / str(number)).to_dict() == report.to_dict()


@pytest.mark.parametrize("finished", [True, False])
def test_a_refusal_names_the_parameters_that_differ_and_no_others(finished: bool, tmp_path: Path) -> None:
    before = 'finetune with {"heads": {"au": {"rate": 0.1, "size": 3}}, "rates": [1, 2], "steps": 60}'
    model = 'fr with fresh weights and {"width": 4} on cuda'

    def opened(**changes: str) -> RunFolder:
        identity = {"protocol": "loso, hash 12", "model": model, "method": before} | changes
        return RunFolder(tmp_path, identity, [0], resume=True, overwrite=False)

    store = opened().store(RunSize(1, 1, 1), seed=0)
    answers = Predictions(np.zeros(1, np.int32), np.zeros(1, int), np.zeros(1, np.int16), np.ones((1, 1), np.float32))
    store.write([EpisodeResults(np.arange(1), ("one",), np.ones((1, 1), bool), answers)])
    if finished:
        identity = json.loads((store.folder / "run.json").read_text())["run"]
        (tmp_path / "report.json").write_text("{}")
        made = {"report": hashlib.sha256(b"{}").hexdigest(), "seeds": [0], "identity": identity}
        (tmp_path / "run.json").write_text(json.dumps(made))
    opened()
    for changes, words in (
        ({"method": before.replace("60", "61")}, "method (finetune: steps was 60, is 61 now)"),
        (
            {"method": before.replace("0.1", "0.2").replace("[1, 2]", "null")},
            "method (finetune: heads.au.rate was 0.1, is 0.2 now, rates was [1, 2], is null now)",
        ),
        ({"method": before.replace(', "steps": 60', "")}, "method (finetune: steps was 60, is not there now)"),
        ({"method": "protonet with {}"}, "method (finetune, now protonet)"),
        (
            {"model": 'fr with fresh weights and {"width": 4}'},
            "model (fr with fresh weights on cuda, now fr with fresh",
        ),
        ({"model": model.replace("4", "8")}, "model (fr with fresh weights on cuda: width was 4, is 8 now)"),
        ({"protocol": "loso, hash 13"}, "protocol (loso, hash 12, now loso, hash 13)"),
    ):
        with pytest.raises(OutputError) as refused:
            opened(**changes)
        assert f"with another {words}" in str(refused.value)
        assert "{" not in str(refused.value)

"""Choosing epochs and parameters: on inner folds, on the test side with its stamp, at checkpoint steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fsmer
from fsmer.auditing import audit
from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.errors import FsmerError, OutputError, ProtocolError, UnknownNameError
from fsmer.evaluation import METRICS, Report, evaluate, score
from fsmer.evaluation.selection import InnerEpisodes
from fsmer.reporting.plots import methods_figure
from fsmer.transfer import Method, load_method
from fsmer.transfer.full_training import Train
from fsmer.transfer.linear_head import Finetune

from tiny_runs import trained, tuned, Stop  # isort: skip


def test_a_stage_is_what_training_to_there_gives(backbone: Backbone, clips: ClipSet) -> None:
    method = trained(epochs=3)
    stages = dict(method.fit_checkpoints(backbone, clips, [1, 3], classes=clips.classes))
    # The schedule of this recipe does not look ahead, so stopping and planning to stop are the same.
    for stage, recognizer in stages.items():
        alone = trained(epochs=stage).fit(backbone, clips, classes=clips.classes)
        assert torch.equal(recognizer.head.weight, alone.head.weight)
        assert np.array_equal(recognizer.predict_proba(clips), alone.predict_proba(clips))
    assert not torch.equal(stages[1].head.weight, stages[3].head.weight)


@pytest.mark.parametrize("name", ["finetune", "cosine"])
def test_a_stage_of_a_fine_tuning_is_what_so_many_steps_give(name: str, backbone: Backbone, clips: ClipSet) -> None:
    method = tuned(name, steps=7, batch_size=16)
    before = torch.get_rng_state()
    for stage, recognizer in method.fit_checkpoints(backbone, clips, [5, 2], classes=clips.classes):  # type: ignore[attr-defined]
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)  # what others draw in between is no part of the training
        alone = tuned(name, steps=stage, batch_size=16).fit(backbone, clips, classes=clips.classes)
        assert torch.equal(recognizer.head.weight, alone.head.weight)
        assert np.array_equal(recognizer.predict_proba(clips), alone.predict_proba(clips))
        before = torch.get_rng_state()
        # What is put off is there when it is asked for.
        assert np.array_equal(recognizer.update(clips[:3]).head.weight, alone.update(clips[:3]).head.weight)


def test_pauses_of_a_fine_tuning_leave_dropout_as_it_is(clips: ClipSet) -> None:
    start = fsmer.create_model("random-tiny-for-tests")
    start.encoder = torch.nn.Sequential(start.encoder, torch.nn.Dropout(0.5))

    class Dropping(Finetune):
        def _begin(self, *args: Any) -> Any:
            found = super()._begin(*args)
            found.backbone.train()
            return found

    method = Dropping(train_backbone=True, steps=6, encoder_rate=1e-2)
    ends = {
        stages: dict(method.fit_checkpoints(start, clips, stages, classes=clips.classes))[6].predict_proba(clips)
        for stages in ((6,), (1, 2, 4, 6))
    }
    assert np.array_equal(ends[6,], ends[1, 2, 4, 6])


def test_a_fine_tuning_is_looked_at_twenty_times_without_a_grid(backbone: Backbone, clips: ClipSet) -> None:
    report = evaluate("loso", backbone, tuned(steps=30), clips=clips, select="oracle")
    steps = [one["steps"] for one in report.selection["candidates"]]
    assert steps == [30, 29, 27, 26, 24, 23, 21, 20, 18, 17, 15, 14, 12, 11, 9, 8, 6, 5, 3, 2]
    assert report.honest == evaluate("loso", backbone, tuned(steps=30), clips=clips).figures
    assert report.gap is not None
    assert report.gap["acc"] > 0


def by_fold(clips: ClipSet, method: Method, backbone: Backbone, support: np.ndarray, query: np.ndarray) -> np.ndarray:
    recognizer = fsmer.adapt(backbone, clips[support], method, classes=clips.classes)
    return recognizer.predict(clips[query])


def test_nested_choice_is_that_of_plain_loops_over_inner_folds(backbone: Backbone, clips: ClipSet) -> None:
    grid = {"learning_rate": [0.05, "0.5"]}
    method = load_method("finetune", steps=20, learning_rate=1e-2)
    report = evaluate("loso", backbone, method, clips=clips, select="nested", grid=grid)
    values = [0.01, 0.05, 0.5]
    assert report.selection["candidates"] == [{"learning_rate": value} for value in values]
    episodes = load_protocol("loso").split(clips)
    inner = InnerEpisodes(episodes, clips)
    people = clips.datasets + "/" + clips.subjects
    picks = set()
    for number, (episode, chosen) in enumerate(zip(episodes, report.selection["chosen"], strict=True)):
        scores = []
        folds = [fold for owner, fold in zip(inner.owner, inner, strict=True) if owner == number]
        assert len(folds) == 3
        assert np.array_equal(np.sort(np.concatenate([fold.query for fold in folds])), episode.support)
        for value in values:
            truth, said = [], []
            for fold in folds:
                assert not set(people[fold.support]) & set(people[fold.query])
                assert not set(fold.support) & set(episode.query)
                truth += clips.labels[fold.query].tolist()
                said += by_fold(
                    clips, method.set_params(learning_rate=value), backbone, fold.support, fold.query
                ).tolist()
            scores.append(score(truth, said, clips.classes)["uf1"])
        best = values[int(np.argmax(scores))]
        picks.add(best)
        assert chosen == {"seed": 0, "episode": episode.name, "learning_rate": best}
        rows = report.predictions[report.predictions["episode"] == number]
        expected = by_fold(clips, method.set_params(learning_rate=best), backbone, episode.support, episode.query)
        assert rows["predicted"].tolist() == expected.tolist()
    assert len(picks) > 1


def test_oracle_is_the_best_on_the_test_fold_and_stands_beside_the_honest_figures(
    backbone: Backbone, clips: ClipSet
) -> None:
    report = evaluate("loso", backbone, trained(epochs=4), clips=clips, select="oracle", seeds=2)
    honest = evaluate("loso", backbone, trained(epochs=4), clips=clips, seeds=2)
    assert report.honest == honest.figures
    assert report.gap == {name: report.figures[name] - honest.figures[name] for name in METRICS}
    assert report.acc > honest.acc
    for seed in (0, 1):
        for number, episode in enumerate(load_protocol("loso").split(clips)):
            accuracy = {
                epochs: float(
                    np.mean(
                        by_fold(clips, trained(epochs=epochs, seed=seed), backbone, episode.support, episode.query)
                        == clips.labels[episode.query]
                    )
                )
                for epochs in range(1, 5)
            }
            (chosen,) = [
                one["epochs"]
                for one in report.selection["chosen"]
                if one["episode"] == episode.name and one["seed"] == seed
            ]
            assert accuracy[chosen] == max(accuracy.values())
            rows = report.predictions[(report.predictions["episode"] == number) & (report.predictions["seed"] == seed)]
            assert np.mean(rows["predicted"] == rows["label"]) == pytest.approx(max(accuracy.values()))


def test_epochs_are_looked_at_on_the_way_and_not_trained_for_one_by_one(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.training.supervised import Trainer

    epochs: list[int] = []
    on_epoch = Trainer.on_epoch
    monkeypatch.setattr(Trainer, "on_epoch", lambda self: epochs.append(1) or on_epoch(self))
    evaluate("loso", backbone, trained(epochs=4), clips=clips, select="oracle")
    assert len(epochs) == 6 * 4
    epochs.clear()
    report = evaluate("loso", backbone, trained(), clips=clips, select="nested", grid={"epochs": ["2", 4]})
    ends = [one["epochs"] for one in report.selection["chosen"]]
    assert len(epochs) == 6 * 3 * 4 + sum(ends)
    assert report.selection["candidates"] == [{"epochs": 4}, {"epochs": 2}]


def test_an_interrupted_choice_goes_on_and_ends_alike(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"clips": clips, "select": "nested", "grid": {"epochs": [1, 2]}}
    whole = evaluate("loso", backbone, trained(), **options)
    fitted = 0
    fit = Train.fit_checkpoints

    def counted(self: Train, *args: Any, **rest: Any) -> Any:
        nonlocal fitted
        fitted += 1
        if fitted == 20:  # 18 inner folds, one outer
            raise Stop
        return fit(self, *args, **rest)

    monkeypatch.setattr(Train, "fit_checkpoints", counted)
    with pytest.raises(Stop):
        evaluate("loso", backbone, trained(), **options, out=tmp_path)
    with pytest.raises(OutputError, match="another selection"):
        evaluate("loso", backbone, trained(), clips=clips, out=tmp_path)
    resumed = evaluate("loso", backbone, trained(), **options, out=tmp_path)
    assert fitted == 18 + 6 + 1
    assert resumed.to_dict() == whole.to_dict()


def test_the_oracle_stamps_every_number_title_and_picture(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    report = evaluate(
        "loso", backbone, "protonet", clips=clips, select="oracle", grid={"distance": ["cosine"]}, out=tmp_path
    )
    assert report.title.startswith("ORACLE")
    assert str(report).startswith("ORACLE")
    assert "ORACLE" in report.how
    held = json.loads((tmp_path / "report.json").read_text())
    assert held["oracle"] is True
    assert held["selection"]["rule"] == "oracle"
    assert held["per_dataset"]["one"]["oracle"] is held["per_seed"][0]["oracle"] is True
    assert all(row["oracle"] is True for row in held["per_class"].values())
    for name in ("predictions.csv", "episodes.csv"):
        assert pd.read_csv(tmp_path / name)["oracle"].all()
    found = [one for one in audit(tmp_path / "predictions.csv").findings if one.check == "oracle"]
    assert [one.severity for one in found] == ["serious"]
    assert held["gap"]["acc"] == pytest.approx(held["acc"] - held["honest"]["acc"])
    assert "oracle" not in held["honest"]
    page = (tmp_path / "report.md").read_text()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.startswith(("| all", "| one", "| two", "| negative |", "| positive |", "| surprise |")):
            numbers = [cell for cell in cells if "0." in cell]
            assert all(cell.startswith("ORACLE ") for cell in numbers), line
    assert "| honest, same run |" in page
    (axes,) = methods_figure({"mine": report}).axes
    assert [text.get_text() for text in axes.texts] == [f"ORACLE {report.uf1:.3f}"]
    assert Report.load(tmp_path).to_dict() == report.to_dict()
    assert Report.load(tmp_path).markdown() == report.markdown()
    plain = evaluate("loso", backbone, "protonet", clips=clips)
    assert "ORACLE" not in plain.markdown()
    assert "oracle" not in plain.predictions
    assert "oracle" not in plain.episodes


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"select": "best"}, ProtocolError, "select='best' is no rule; use one of fixed, nested, oracle"),
        ({"grid": {"scale": [1]}}, ProtocolError, "chooses nothing"),
        ({"select": "nested"}, ProtocolError, "nothing to choose from.*--grid"),
        ({"select": "oracle", "grid": {"stps": [1]}}, UnknownNameError, "stps"),
        ({"select": "oracle", "grid": {"scale": []}}, ProtocolError, "at least one value"),
        ({"select": "oracle", "grid": {"scale": "1,2"}}, ProtocolError, "give a list"),
        ({"select": "oracle", "grid": {"scale": ["big"]}}, FsmerError, "scale='big'"),
        ({"jobs": 0}, ProtocolError, "jobs=0"),
        ({"jobs": "many"}, ProtocolError, "jobs='many'.*'auto'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(
    options: dict[str, Any], error: type[FsmerError], words: str, backbone: Backbone, clips: ClipSet
) -> None:
    with pytest.raises(error, match=words):
        evaluate("loso", backbone, "protonet", clips=clips, **options)


def test_supports_of_one_person_cannot_choose(backbone: Backbone, clips: ClipSet) -> None:
    some = clips[(clips.datasets == "one") & np.isin(clips.subjects, ["001", "002"])]
    with pytest.raises(ProtocolError, match=r"'one/001' \(8 clips of 1 subjects\).*select='fixed'"):
        evaluate("loso", backbone, trained(), clips=some, select="nested")

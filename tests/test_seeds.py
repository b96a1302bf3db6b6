"""Several seeds of a method: what they share, where each starts from, and what the report says of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fsmer
from fsmer.backbones import Backbone, model_hash
from fsmer.backbones.registry import fresh_model
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.errors import ProtocolError, WeightsError
from fsmer.evaluation import METRICS, Report, evaluate
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.transfer import load_method
from fsmer.transfer.linear_head import Finetune

from tiny_runs import tuned, figures  # isort: skip


def test_several_seeds_are_the_runs_of_each_seed_and_their_mean(backbone: Backbone, clips: ClipSet) -> None:
    together = evaluate("loso", backbone, tuned(seed=4), clips=clips, seeds=3)
    each = [evaluate("loso", backbone, tuned(seed=seed), clips=clips) for seed in (4, 5, 6)]
    assert [row["seed"] for row in together.per_seed] == [4, 5, 6]
    for row, alone in zip(together.per_seed, each, strict=True):
        assert {name: row[name] for name in METRICS} == figures(alone)
        rows = together.predictions[together.predictions["seed"] == row["seed"]].drop(columns="seed")
        assert rows.reset_index(drop=True).equals(alone.predictions)
        assert alone.per_seed == [{"seed": row["seed"], **figures(alone)}]
    assert len({row["uf1"] for row in together.per_seed}) > 1
    for name in METRICS:
        assert together.figures[name] == pytest.approx(np.mean([alone.figures[name] for alone in each]))
    assert together.confusion.tolist() == sum(alone.confusion for alone in each).tolist()
    assert next(iter(together.predictions)) == next(iter(together.episodes)) == "seed"
    assert together.counts == {"clips": 48, "subjects": 6, "episodes": 6, "predictions": 144}
    assert together.per_class["negative"]["clips"] == each[0].per_class["negative"]["clips"]
    assert "seed" not in each[0].predictions
    chosen = evaluate("loso", backbone, tuned(), clips=clips, seeds=[6, 4])
    assert chosen.per_seed == [together.per_seed[2], together.per_seed[0]]


def test_the_interval_is_that_of_the_mean_over_seeds_when_people_are_drawn(backbone: Backbone, clips: ClipSet) -> None:
    report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2)
    rows = report.predictions.assign(person=report.predictions["dataset"] + report.predictions["subject"])
    people = sorted(set(rows["person"]))
    times = np.random.default_rng(report.seed).multinomial(len(people), [1 / len(people)] * len(people), size=2000)
    code = {name: place for place, name in enumerate(report.classes)}
    counts = np.zeros((2, len(people), 3, 3))
    for _, row in rows.iterrows():
        counts[row["seed"], people.index(row["person"]), code[row["label"]], code[row["predicted"]]] += 1
    drawn = []
    for draw in times:
        each = []
        for seed in range(2):
            matrix = sum(count * counts[seed, person] for person, count in enumerate(draw))
            f1 = [
                2 * matrix[c, c] / total if (total := matrix[c].sum() + matrix[:, c].sum()) else 0.0 for c in range(3)
            ]
            each.append(np.mean(f1))
        drawn.append(np.mean(each))
    assert report.interval("uf1") == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_episodes_stay_the_same_whatever_the_seed_and_are_averaged_over_seeds(
    backbone: Backbone, clips: ClipSet
) -> None:
    protocol = load_protocol("kshot", shot=2, query=2, episodes=5)
    report = evaluate(protocol, backbone, tuned(), clips=clips, seeds=2)
    by_seed = [table["clip"].tolist() for _, table in report.predictions.groupby("seed")]
    assert by_seed[0] == by_seed[1]
    each = report.episodes.groupby("episode")["uf1"].mean().to_numpy()
    half = 1.959964 * each.std(ddof=1) / np.sqrt(5)
    assert report.uf1 == pytest.approx(each.mean())
    assert report.interval("uf1") == pytest.approx((each.mean() - half, each.mean() + half))
    assert "seeds and 5 episodes" in report.how


def test_a_model_without_weights_starts_from_fresh_ones_by_seed(clips: ClipSet) -> None:
    report = evaluate("loso", "random-tiny-for-tests", tuned(), clips=clips, seeds=2, arguments={"embed_dim": 6})
    hashes = {str(seed): model_hash(fresh_model("random-tiny-for-tests", seed, {"embed_dim": 6})) for seed in (0, 1)}
    assert report.model["weights_by_seed"] == hashes
    assert len(set(hashes.values())) == 2
    start = fresh_model("random-tiny-for-tests", 1, {"embed_dim": 6})
    assert report.per_seed[1] == evaluate("loso", start, tuned(seed=1), clips=clips).per_seed[0]


def test_a_device_is_gone_to_with_a_copy(backbone: Backbone, clips: ClipSet) -> None:
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    there = evaluate("loso", backbone, tuned(), clips=clips, device="cpu")
    assert there.to_dict() | {"run": None} == evaluate("loso", backbone, tuned(), clips=clips).to_dict() | {"run": None}
    start = InitialWeights.of(backbone, tuned(), device="cpu")
    assert start.given is not backbone
    learnt = fsmer.train(backbone, clips[:12], device="cpu", epochs=1)
    assert learnt.backbone is not backbone
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_fine_tuning_from_elsewhere_is_not_replaced(clips: ClipSet) -> None:
    @dataclass(frozen=True)
    class Mine(Finetune):
        """One's own fine-tuning."""

        steps: int = 1

    report = evaluate("ratio", "random-tiny-for-tests", Mine(train_backbone=True), clips=clips)
    assert report.method["name"] == "finetune"
    assert not report.notes


def test_random_weights_that_nothing_trains_are_not_judged(backbone: Backbone, clips: ClipSet) -> None:
    with pytest.raises(WeightsError, match=r"'cosine'.*--train-backbone"):
        evaluate("loso", "random-tiny-for-tests", "cosine", clips=clips)


def test_arguments_with_weights_that_are_there_already_are_refused(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    folder = backbone.save_pretrained(tmp_path / "weights")
    for model, origin in ((backbone, "a backbone"), (folder, f"the weights in {folder}")):
        with pytest.raises(WeightsError) as refused:
            evaluate("loso", model, "protonet", clips=clips, arguments={"nonsense": 1, "embed_dim": 6})
        assert str(refused.value).startswith(f"nonsense=1, embed_dim=6 came with {origin}, but these are of a")
        assert f"give the name {backbone.name!r}, which begins with fresh weights." in str(refused.value)
        for nothing in (None, {}):
            assert InitialWeights.of(model, load_method("protonet"), nothing).given is not None
    start = InitialWeights.of("random-tiny-for-tests", tuned(), {"embed_dim": 6})
    with pytest.raises(WeightsError, match="embed_dim"):
        evaluate("loso", start, tuned(), clips=clips, arguments={"embed_dim": 5})
    assert InitialWeights.of(start, tuned()).backbone(0).embed_dim == 6


def test_seeds_that_cannot_differ_are_said_to_be_equal(backbone: Backbone, clips: ClipSet) -> None:
    report = evaluate("loso", backbone, "protonet", clips=clips, seeds=3)
    assert [row["seed"] for row in report.per_seed] == [0, 1, 2]
    assert len({row["uf1"] for row in report.per_seed}) == 1
    assert "All 3 seeds gave the same answers: 'protonet'" in report.notes[0]
    assert report.notes[0] in report.markdown()
    # A head that starts at random is another matter, even on a network that stays as it is.
    assert not evaluate("loso", backbone, load_method("finetune", steps=3), clips=clips, seeds=3).notes
    assert not evaluate("loso", backbone, "protonet", clips=clips).notes


@pytest.mark.parametrize("seeds", [0, -2, [], [1, 1], [-1], "12", True, [0.5]])
def test_impossible_seeds_are_refused(seeds: Any, backbone: Backbone, clips: ClipSet) -> None:
    with pytest.raises(ProtocolError, match="seeds="):
        evaluate("loso", backbone, "protonet", clips=clips, seeds=seeds)


def test_a_loaded_report_of_several_seeds_is_the_saved_one(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.to_dict() == report.to_dict()
    assert loaded.markdown() == report.markdown()
    assert loaded.predictions["seed"].tolist() == report.predictions["seed"].tolist()
    held = json.loads((tmp_path / "report.json").read_text())
    for name in ("uf1", "uar", "acc"):
        assert held[name] == pytest.approx(np.mean([row[name] for row in held["per_seed"]]))
        low, high = held[f"{name}_interval"]
        assert low <= held[name] <= high
    assert held["selection"] == {"rule": "fixed"}


def test_reports_of_the_first_format_are_read(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    report = evaluate("loso", backbone, load_method("finetune", seed=7, steps=2), clips=clips, out=tmp_path)
    path = tmp_path / "report.json"
    held = json.loads(path.read_text())
    for key in ("per_seed", "selection", "notes"):
        del held[key]
    path.write_text(json.dumps(held | {"format_version": 1}))
    loaded = Report.load(tmp_path)
    assert loaded.per_seed == report.per_seed == [{"seed": 7, **figures(report)}]
    assert loaded.selection == {"rule": "fixed"}
    assert not loaded.oracle

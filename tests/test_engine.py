"""The benchmark engine: seeds, what learners can see, choices of epochs, the cache of embeddings, parallel folds."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import fsmer
from fsmer.auditing import audit
from fsmer.backbones import Backbone, TrainRecipe, model_hash, register_backbone
from fsmer.backbones.registry import fresh_model
from fsmer.cli.app import app
from fsmer.data import ClipSet, concat
from fsmer.data.media import ConcatStore, ImageStore, ListStore
from fsmer.episodic import load_protocol
from fsmer.errors import DataError, FsmerError, MediaError, OutputError, ProtocolError, UnknownNameError, WeightsError
from fsmer.evaluation import METRICS, Report, evaluate, score
from fsmer.evaluation import episodes_run as runner
from fsmer.evaluation.embedding_cache import cache_folder, clear_cache, embed_cached
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.predictions import Predictions
from fsmer.evaluation.run_folder import EpisodeResults, RunFolder, RunSize
from fsmer.evaluation.selection import InnerEpisodes
from fsmer.reporting.plots import methods_figure
from fsmer.synthetic.clips import synthetic_clips
from fsmer.transfer import Method, Recognizer, list_methods, load_method
from fsmer.transfer.full_training import Train
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.source_model import SourceModel

from tiny_backbone import TinyBackbone  # isort: skip

RECIPE = TrainRecipe(learning_rate=5e-3, epochs=3, batch_size=16, schedule="constant", augment=("flip",))


@register_backbone("random-tiny-for-tests")
class RandomTiny(TinyBackbone):
    """`TinyBackbone` whose weights come from torch's own generator, as those of real networks do."""

    recipe = RECIPE

    def __init__(self, embed_dim: int = 8) -> None:
        super().__init__(embed_dim)
        self.config = {"embed_dim": embed_dim}
        for value in self.parameters():
            value.data = 0.3 * torch.randn(value.shape)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return RandomTiny().eval()


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """Two data sets of three people each, with action units and a further column."""
    sets = []
    for number, name in enumerate(("one", "two")):
        made = synthetic_clips("lab", n=24, seed=number)
        frame = pd.DataFrame(
            {
                "clip": [f"{name}-{place:02d}" for place in range(len(made))],
                "dataset": name,
                "subject": [f"{place % 3 + 1:03d}" for place in range(len(made))],
                "label": made.labels,
                "aus": [f"{place % 9 + 1}" for place in range(len(made))],
                "emotion": [f"felt {label}" for label in made.labels],
            }
        )
        media = ClipSet.from_arrays(made.media(), None)
        sets.append(ClipSet.from_table(frame, media._base.media))
    return concat(sets)


def trained(**params: Any) -> Train:
    return load_method("train", **params)  # type: ignore[return-value]


def tuned(name: str = "finetune", **params: Any) -> Method:
    return load_method(name, train_backbone=True, **{"steps": 2, "encoder_rate": 1e-2} | params)


def figures(report: Report) -> dict[str, float]:
    return {name: report.figures[name] for name in METRICS}


class Stop(Exception):
    pass


# ---- seeds


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
    with pytest.raises(WeightsError, match=r"'cosine' would judge random ones.*--train-backbone"):
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
    with pytest.raises(WeightsError, match="embed_dim came with a starting point"):
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


# ---- interruptions


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
    monkeypatch.setattr(Finetune, "fit_many", Method.fit_many)
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


# ---- finished runs


def untrained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the fine-tunings from now on."""
    fitted: list[int] = []
    fit = Finetune.fit
    monkeypatch.setattr(
        Finetune, "fit", lambda self, *rest, **more: fitted.append(self.seed) or fit(self, *rest, **more)
    )
    monkeypatch.setattr(Finetune, "fit_many", Method.fit_many)
    return fitted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


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


def test_a_finished_run_of_frozen_embeddings_is_seen_without_a_network(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, counted: list[int]
) -> None:
    first = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, cache=False)
    assert sum(counted) == 48
    again = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, cache=False)
    assert sum(counted) == 48
    assert again.to_dict() == first.to_dict()
    # The bootstrap draws by it, so it is another report.
    with pytest.raises(OutputError, match="another seed of episodes and bootstrap"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, seed=3)


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
    with pytest.raises(OutputError, match=r"of the seeds 0, 1, 2, but the seeds 0 are asked for.*--overwrite"):
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
        with pytest.raises(
            OutputError, match=f"the finished report of finetune on random-tiny.* by loso with {words}.*--overwrite"
        ) as refused:
            evaluate(**asked, out=tmp_path)
        assert str(refused.value).count(". ") == 0
        assert contents(tmp_path) == before
    (tmp_path / "report.html").write_text("of the old report")
    report = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, overwrite=True)
    assert Report.load(tmp_path).to_dict() == report.to_dict()
    assert not (tmp_path / "report.html").exists()
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
    with pytest.raises(OutputError, match=r"finished report of logistic on random-tiny.*no run\.json says"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(OutputError, match="holds a report that cannot be read"):
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


# ---- what learners can see


def reachable(*roots: Any) -> Iterator[Any]:
    """Every object that can be reached by attributes, items, closures and array bases; not through modules or types."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (types.ModuleType, type, types.CodeType, types.FrameType)):
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, types.FunctionType):
            waiting += [one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)]
        elif isinstance(one, np.ndarray):
            waiting += [one.base, *(one.ravel().tolist() if one.dtype.kind in "OUS" else [])]
        elif isinstance(one, (pd.DataFrame, pd.Series, pd.Index)):
            values = one.to_frame() if not isinstance(one, pd.DataFrame) else one
            waiting += [*values.astype(object).to_numpy().ravel().tolist(), *gc.get_referents(one)]
        else:
            waiting += gc.get_referents(one)


def secrets_in(clips: ClipSet, queries: set[str], *roots: Any) -> list[str]:
    """What of the query clips' names and annotations, or of everybody's labels, lies within reach."""
    codes = clips.codes()
    found = []
    for one in reachable(*roots):
        if isinstance(one, str) and one in queries:
            found.append(one)
        if isinstance(one, str) and "the secret of" in one:
            found.append(one)
        if isinstance(one, Tensor):
            one = one.detach().cpu().numpy()
        if isinstance(one, np.ndarray) and one.shape == codes.shape and one.dtype.kind in "iu":
            found += ["codes of all clips"] if len(np.unique(one)) == 3 else []
        if isinstance(one, list) and len(one) == len(codes) and set(one) == set(clips.classes):
            found.append("labels of all clips")
    return found


def marked(clips: ClipSet, query: np.ndarray) -> ClipSet:
    """The clips with annotations of some of them that exist nowhere else."""
    table = clips.table
    for column in ("aus", "emotion"):
        table[column] = np.where(query, [f"the secret of {name}" for name in clips.ids], table[column].to_numpy(object))
    return ClipSet.from_table(table, clips._base.media)


SEEN: list[tuple[str, tuple[Any, ...]]] = []


class Snooping(Finetune):
    """A method that looks at everything it is given."""

    name = "snooping"

    def fit(self, backbone: Any, support: Any, **options: Any) -> Recognizer:
        SEEN.append(("fit", (self, backbone, support, options)))
        return super().fit(backbone, support, **options)

    def fit_many(self, model: Any, supports: Any, **options: Any) -> Iterator[tuple[int, Recognizer]]:
        SEEN.append(("fit_many", (self, model, list(supports), options)))
        return super().fit_many(model, supports, **options)

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: Any = None) -> Any:
        SEEN.append(("fit_head", (self, embeddings, codes, prior)))
        return super().fit_head(embeddings, codes, way, prior)

    def train_source(self, backbone: Any, source: Any, *, progress: Any = None) -> Any:
        SEEN.append(("train_source", (self, backbone, source, progress)))
        return super().train_source(backbone, source, progress=progress)


@register_backbone("snooping-for-tests")
class SnoopingBackbone(RandomTiny):
    """A backbone that looks at everything it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        SEEN.append(("forward", (self, inputs)))
        return super().forward(inputs)

    def training_loss(self, inputs: Any, targets: Any, classifier: Any) -> Tensor:
        SEEN.append(("training_loss", (self, inputs, targets, classifier)))
        return super().training_loss(inputs, targets, classifier)


@pytest.mark.parametrize("trains", [True, False])
def test_a_prying_method_and_backbone_find_no_query_label(trains: bool, clips: ClipSet) -> None:
    query = (clips.datasets == "two") & (clips.subjects == "001")
    queries = {f"the secret of {name}" for name in clips.ids[query]} | set(clips.ids[query])
    some = marked(clips, query)
    SEEN.clear()
    heard: list[Any] = []
    evaluate(
        load_protocol("holdout", train=["one"], test=["two"]),
        SnoopingBackbone().eval(),
        Snooping(train_backbone=trains, steps=1),
        clips=some,
        cache=False,
        progress=lambda *said: heard.extend(said),
    )
    kinds = {kind for kind, _ in SEEN}
    assert kinds >= ({"fit", "training_loss", "forward"} if trains else {"fit_head", "forward"})
    for kind, held in SEEN:
        assert not secrets_in(some, queries, *held), kind
    assert {type(one) for one in heard} == {str, int}
    # The search does find them where they are.
    assert secrets_in(some, queries, some[~query])
    assert secrets_in(some, queries, some[~query].isolated()) == []


def test_no_support_of_loso_leads_to_a_query_and_others_methods_get_one_fold_at_a_time(
    backbone: Backbone, clips: ClipSet
) -> None:
    SEEN.clear()
    evaluate("loso", backbone, Snooping(train_backbone=True, steps=1), clips=clips)
    supports = [held[2] for kind, held in SEEN if kind == "fit"]
    assert not [kind for kind, _ in SEEN if kind == "fit_many"]
    for support, episode in zip(supports, load_protocol("loso").split(clips), strict=True):
        assert support.ids.tolist() == clips.ids[episode.support].tolist()
        assert not secrets_in(clips, set(clips.ids[episode.query]), support)
    SEEN.clear()
    evaluate("loso", backbone, Snooping(steps=1), clips=clips)
    assert [len(held[2]) for kind, held in SEEN if kind == "fit_head"] == [1] * 6


@dataclass(frozen=True)
class Careless(Finetune):
    """From outside, and trains the backbone that it was given instead of a copy."""

    name: ClassVar[str] = "careless"
    starts: ClassVar[list[str]] = []
    memory: list[int] = field(default_factory=list)

    @property
    def keeps_backbone(self) -> bool:
        return False

    def fit(self, backbone: Any, support: ClipSet, **options: Any) -> Recognizer:
        model = SourceModel.wrap(backbone)
        assert not self.memory
        self.memory.append(len(support))
        self.starts.append(model_hash(model.backbone))
        with torch.no_grad():
            for value in model.backbone.parameters():
                value += 0.1
        return Finetune(steps=2).fit(model, support, **options)


def test_a_careless_method_from_outside_starts_every_fold_alike(backbone: Backbone, clips: ClipSet) -> None:
    before = model_hash(backbone)
    Careless.starts.clear()
    evaluate("loso", backbone, Careless(), clips=clips)
    assert Careless.starts == [before] * 6
    assert model_hash(backbone) == before


def test_the_source_is_handed_over_apart_from_the_target(clips: ClipSet) -> None:
    SEEN.clear()
    protocol = load_protocol("synthetic-source-target", episodes=1, query=2)
    made = protocol.make_clips()
    method = Snooping(train_backbone=True, steps=1, source_epochs=1)
    evaluate(protocol, RandomTiny().eval(), method, clips=made, progress=lambda *said: None)
    (held,) = [held for kind, held in SEEN if kind == "train_source"]
    target = set(made.ids[made.datasets == protocol.target[0]])  # type: ignore[attr-defined]
    assert target
    assert not secrets_in(made, target, *held)


def test_queries_are_asked_about_without_anything_that_was_annotated(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ClipSet] = []
    predict = Recognizer.predict_proba
    monkeypatch.setattr(Recognizer, "predict_proba", lambda self, one: asked.append(one) or predict(self, one))
    evaluate("loso", backbone, tuned(), clips=clips)
    assert len(asked) == 6
    for query in asked:
        assert query.labels.tolist() == [None] * len(query)
        assert set(query.table["aus"]) == {""}
        assert "emotion" not in query.table
        assert not [one for one in reachable(query) if isinstance(one, str) and one.startswith("felt ")]


class Peeping(Recognizer):
    """A recognizer that looks at everything that it is asked about."""

    def predict_proba(self, clips: Any) -> Any:
        SEEN.append(("asked", (clips,)))
        return super().predict_proba(clips)


class PeepingMethod(Finetune):
    name = "peeping"

    def fit(self, *args: Any, **options: Any) -> Recognizer:
        found = super().fit(*args, **options)
        found.__class__ = Peeping
        return found


def labelled_files(clips: ClipSet, root: Path) -> ClipSet:
    """The clips as images whose names and folders hold the labels, as in published layouts."""
    rows = []
    for place, (values, row) in enumerate(zip(clips.media(), clips.table.to_dict("records"), strict=True)):
        file = root / str(row["subject"]) / "u_test" / str(row["label"]) / f"{row['label'][:3]}-{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(values * 255).astype(np.uint8).transpose(1, 2, 0)).save(file)
        rows.append(row | {"clip": f"s1_{row['label']}_{place}", "file": str(file)})
    table = pd.DataFrame(rows)
    return concat(
        [fsmer.read_frame(part.reset_index(drop=True)) for _, part in table.groupby("dataset", observed=True)]
    )


def test_whoever_answers_is_shown_no_name_that_holds_a_label(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    files = labelled_files(clips, tmp_path)
    plain = ClipSet.from_arrays(
        files.media(), files.labels, subjects=files.subjects, datasets=files.datasets, ids=files.ids
    )
    words = (*clips.classes, ".png", *(name[:3] + "-" for name in clips.classes), str(tmp_path))

    def telling(*roots: Any) -> list[str]:
        return [one for one in reachable(*roots) if isinstance(one, str) and any(word in one for word in words)]

    SEEN.clear()
    report = evaluate("loso", backbone, PeepingMethod(train_backbone=True, steps=2, encoder_rate=1e-2), clips=files)
    assert [kind for kind, _ in SEEN] == ["asked"] * 6
    for (_, held), episode in zip(SEEN, load_protocol("loso").split(files), strict=True):
        shown, asked = ({one.tobytes() for one in some.media()} for some in (held[0], files[episode.query]))
        assert shown == asked
        assert telling(*held) == []
    # The search does find them where they are, and what is hidden changes no answer.
    assert telling(files[:3]) != [] != telling(files[:3].isolated())
    assert report.predictions.equals(evaluate("loso", backbone, tuned(), clips=plain).predictions)


def test_a_broken_query_is_named_though_it_was_asked_about_under_no_name(backbone: Backbone, clips: ClipSet) -> None:
    maps = clips.media()
    maps[30] = 0.5
    broken = ClipSet.from_arrays(maps, clips.labels, subjects=clips.subjects, datasets=clips.datasets, ids=clips.ids)
    # Fold by fold the clip is a query before it is in a support.
    order = np.r_[30, np.delete(np.arange(48), 30)]
    protocol = load_protocol("holdout", train=["one"], test=["two"])
    with pytest.raises(MediaError, match=f"clip '{clips.ids[30]}' of data set 'two'"):
        evaluate(protocol, backbone, tuned(), clips=broken[order])


def test_images_without_names_are_the_same_pixels_and_name_the_clip_that_is_missing(
    clips: ClipSet, tmp_path: Path
) -> None:
    files = labelled_files(clips, tmp_path)[[5, 40, 2]]
    hidden = files.isolated(labelled=False)
    assert np.array_equal(hidden.media(), files.media())
    assert hidden.ids.tolist() == ["clip-0", "clip-1", "clip-2"]
    assert hidden.subjects.tolist() == files.subjects.tolist()
    next(tmp_path.glob("*/u_test/*/*-40.png")).unlink()
    with pytest.raises(MediaError, match=f"clip '{files.ids[1]}'.*does not exist"):
        files.isolated(labelled=False)


def test_clips_apart_know_no_other_file(tmp_path: Path) -> None:
    spec = fsmer.InputSpec()
    files = ImageStore([f"negative/{row}.png" for row in range(6)], spec)
    arrays = ListStore([np.full(spec.shape, row / 6, np.float32) for row in range(6)], spec)
    both = ConcatStore([files, arrays], np.array([0, 1] * 6), np.arange(6).repeat(2))
    table = pd.DataFrame({"clip": [f"c{row}" for row in range(12)], "label": list("ab") * 6})
    part = ClipSet.from_table(table, {"flow": both})[[1, 2, 3, 7]].isolated()
    assert part.ids.tolist() == ["c1", "c2", "c3", "c7"]
    paths = [one for one in reachable(part) if isinstance(one, str) and one.endswith(".png")]
    assert paths == ["negative/1.png"]
    read = part[[0, 2, 3]]._base.media["flow"].read(np.array([3, 0, 2]))
    assert read[:, 0, 0, 0] == pytest.approx([3 / 6, 0, 1 / 6])
    assert len(part[[]].isolated()) == 0


def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Report, Predictions, list[Tensor]]]:
    """`evaluate` that also gives the answers to the last bit and what was fitted."""

    def run(*args: Any, **options: Any) -> tuple[Report, Predictions, list[Tensor]]:
        held: list[Any] = []
        fitted: list[Tensor] = []
        make = Report.from_predictions.__func__  # type: ignore[attr-defined]
        learn = Recognizer.__init__

        def keep(cls: Any, clips: ClipSet, predictions: Any, **rest: Any) -> Report:
            held.append(predictions)
            return make(cls, clips, predictions, **rest)  # type: ignore[no-any-return]

        def look(self: Recognizer, *rest: Any) -> None:
            learn(self, *rest)
            fitted.append(torch.cat([self.head.weight.ravel(), *(v.ravel() for v in self.backbone.parameters())]))

        with monkeypatch.context() as patch:
            patch.setattr(Report, "from_predictions", classmethod(keep))
            patch.setattr(Recognizer, "__init__", look)
            report = evaluate(*args, **options)
        (predictions,) = held[0].values()
        return report, predictions, fitted

    return run


METHODS = [
    *(pytest.param(one.name, {}, id=one.name) for one in list_methods() if one.name != "train"),
    pytest.param("train", {}, id="train"),
    pytest.param("finetune", {"train_backbone": True, "steps": 2}, id="finetune+backbone"),
    pytest.param("cosine", {"train_backbone": True, "steps": 2}, id="cosine+backbone"),
    pytest.param("train", {"select": "nested"}, id="train, nested"),
    pytest.param("protonet", {"select": "nested", "grid": {"distance": ["cosine"]}}, id="protonet, nested"),
]


@pytest.mark.parametrize(("name", "params"), METHODS)
def test_poisoned_query_labels_change_nothing_that_is_learnt_or_answered(
    name: str, params: dict[str, Any], clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = dict(params)
    how = {key: params.pop(key) for key in ("select", "grid") if key in params}
    knowing = TinyBackbone(8, knows=clips.classes).eval()
    monkeypatch.setattr(TinyBackbone, "recipe", RECIPE)
    run = captured(monkeypatch)
    labels = clips.labels.copy()
    mine = (clips.datasets == "two") & (clips.subjects == "002")
    labels[mine] = np.roll(labels[mine], 1)
    poisoned = ClipSet.from_table(
        clips.table.assign(label=labels, aus=np.where(mine, "12", clips.table["aus"])), clips._base.media
    )
    names = [episode.name for episode in load_protocol("loso").split(clips)]
    fold = names.index("two/002")
    method = load_method(name, **params)
    honest, before, learnt = run("loso", knowing, method, clips=clips, **how)
    lied, after, relearnt = run("loso", knowing, method, clips=poisoned, **how)
    rows = before.episode == fold
    assert np.array_equal(before.probabilities[rows], after.probabilities[rows])
    if learnt and not how:
        assert torch.equal(learnt[fold], relearnt[fold])
    if how:
        chosen = [
            [one for one in report.selection["chosen"] if one["episode"] == "two/002"] for report in (honest, lied)
        ]
        assert chosen[0] == chosen[1]
    # The lie was told: others learn from these labels, and the answers are held against other truths.
    assert name == "zero_shot" or not np.array_equal(before.probabilities, after.probabilities)
    assert honest.predictions["label"].tolist() != lied.predictions["label"].tolist()


def test_the_oracle_is_what_poison_does_change(clips: ClipSet, backbone: Backbone) -> None:
    labels = clips.labels.copy()
    mine = (clips.datasets == "two") & (clips.subjects == "002")
    labels[mine] = np.roll(labels[mine], 1)
    poisoned = ClipSet.from_table(clips.table.assign(label=labels), clips._base.media)
    picks = []
    for some in (clips, poisoned):
        report = evaluate("loso", backbone, trained(epochs=10, learning_rate=0.02), clips=some, select="oracle")
        picks.append([one["epochs"] for one in report.selection["chosen"] if one["episode"] == "two/002"])
    assert picks[0] != picks[1]


# ---- choices


def test_a_stage_is_what_training_to_there_gives(backbone: Backbone, clips: ClipSet) -> None:
    method = trained(epochs=3)
    stages = dict(method.fit_stages(backbone, clips, [1, 3], classes=clips.classes))
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
    for stage, recognizer in method.fit_stages(backbone, clips, [5, 2], classes=clips.classes):  # type: ignore[attr-defined]
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
        stages: dict(method.fit_stages(start, clips, stages, classes=clips.classes))[6].predict_proba(clips)
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
    train = Trainer._train_epoch
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self, *rest: epochs.append(1) or train(self, *rest))
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
    fit = Train.fit_stages

    def counted(self: Train, *args: Any, **rest: Any) -> Any:
        nonlocal fitted
        fitted += 1
        if fitted == 20:  # 18 inner folds, one outer
            raise Stop
        return fit(self, *args, **rest)

    monkeypatch.setattr(Train, "fit_stages", counted)
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


# ---- embeddings on disk


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips that went through the network."""
    seen: list[int] = []
    forward = TinyBackbone.forward
    monkeypatch.setattr(TinyBackbone, "forward", lambda self, inputs: seen.append(len(inputs)) or forward(self, inputs))
    return seen


def test_no_clip_is_embedded_twice_whatever_the_protocol_and_method(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    first = evaluate("loso", backbone, "protonet", clips=clips[:30], cache=tmp_path)
    assert sum(counted) == 30
    evaluate("loso", backbone, "logistic", clips=clips[:30], cache=tmp_path, seeds=3)
    evaluate(load_protocol("kshot", shot=2, episodes=5), backbone, "cosine", clips=clips[:30], cache=tmp_path)
    assert sum(counted) == 30
    # Names and order say nothing, content does.
    mixed = ClipSet.from_arrays(clips.media()[::-1].copy(), clips.labels[::-1], subjects=["1", "2", "3", "4"] * 12)
    found, _ = embed_cached(backbone, mixed, folder=tmp_path)
    assert sum(counted) == 48
    np.testing.assert_allclose(found.numpy(), fsmer.embed(backbone, mixed).numpy(), atol=1e-5)
    again = evaluate("loso", backbone, "protonet", clips=clips[:30], cache=tmp_path)
    assert again.to_dict() == first.to_dict()
    assert again.predictions.equals(first.predictions)


def test_other_weights_other_media_and_no_cache_are_embedded_anew(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    embed_cached(backbone, clips, folder=tmp_path)
    torch.manual_seed(5)
    other = RandomTiny().eval()
    found, _ = embed_cached(other, clips, folder=tmp_path)
    assert sum(counted) == 96
    assert torch.equal(found, fsmer.embed(other, clips))
    counted.clear()
    maps = clips.media()
    maps[3] = maps[3, :, ::-1]
    changed = ClipSet.from_arrays(maps, clips.labels, ids=clips.ids)
    found, ids = embed_cached(backbone, changed, folder=tmp_path)
    assert sum(counted) == 1
    np.testing.assert_allclose(found.numpy(), fsmer.embed(backbone, changed).numpy(), atol=1e-5)
    assert len(np.unique(ids, axis=0)) == len(ids)
    counted.clear()
    evaluate("loso", backbone, "protonet", clips=clips, cache=False)
    assert sum(counted) == 48


def test_the_media_are_read_once_for_hash_and_network(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    read = ClipSet.read

    def counted(self: ClipSet, kind: str = "flow", indices: Any = None) -> Any:
        found = read(self, kind, indices)
        rows.append(len(found))
        return found

    monkeypatch.setattr(ClipSet, "read", counted)
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "out", cache=tmp_path / "cache")
    assert sum(rows) == 48


def test_damaged_and_foreign_files_in_the_cache_are_replaced(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    expected, _ = embed_cached(backbone, clips, folder=tmp_path)
    (path,) = tmp_path.glob("*/*.npy")
    whole = path.read_bytes()
    # Every 997th byte another one: a header that is whole and embeddings that are finite.
    flipped = bytes(byte ^ (place % 997 == 996) for place, byte in enumerate(whole))
    for content in (whole[:-7], b"nothing of that kind", b"", flipped):
        path.write_bytes(content)
        counted.clear()
        found, _ = embed_cached(backbone, clips, folder=tmp_path)
        assert sum(counted) == 48
        assert torch.equal(found, expected)
        assert path.read_bytes() == whole
    os.remove(path)
    os.mkfifo(path)
    assert torch.equal(embed_cached(backbone, clips, folder=tmp_path)[0], expected)
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_two_processes_fill_one_cache(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    clips.save(tmp_path / "clips")
    code = (
        "import sys, torch, fsmer\n"
        "from fsmer.evaluation.embedding_cache import embed_cached\n"
        "torch.manual_seed(0)\n"
        "backbone = fsmer.create_model('facs-flow', widths=[4, 4, 4, 4], branch_dim=4).eval()\n"
        "clips = fsmer.read_clips(sys.argv[1])\n"
        "for start in range(0, 48, 8):\n"
        "    embed_cached(backbone, clips[start : start + 12], folder=sys.argv[2])\n"
        "print(embed_cached(backbone, clips, folder=sys.argv[2])[0].double().sum().item())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "clips"), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert float(said[0]) == pytest.approx(float(said[1]), abs=1e-4)
    files = list((tmp_path / "cache").glob("*/*.npy"))
    assert files
    assert all(len(np.load(path)) for path in files)


def test_the_cache_has_a_size_a_place_and_an_end(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.evaluation import embedding_cache as cache

    for start in range(0, 48, 12):
        embed_cached(backbone, clips[start : start + 12], folder=tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.glob("*/*.npy")]
    assert len(sizes) == 4
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * sizes[0] + 10)
    torch.manual_seed(9)
    embed_cached(RandomTiny().eval(), clips[:12], folder=tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*/*.npy"))) == 2
    assert clear_cache(tmp_path) == 2 * sizes[0]
    assert clear_cache(tmp_path) == 0
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "mine"))
    evaluate("loso", backbone, "protonet", clips=clips)
    assert list((tmp_path / "mine" / "embeddings").glob("*/*.npy"))
    monkeypatch.setenv("FSMER_CACHE", "off")
    assert cache_folder() is None
    evaluate("loso", backbone, "protonet", clips=clips)
    monkeypatch.delenv("FSMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fsmer" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fsmer" / "embeddings"


# ---- parallel folds


def test_a_surrounding_configuration_decides_where_folds_run(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips, seeds=2)
    used: list[int] = []
    fold = runner._fold_in_process
    monkeypatch.setattr(runner, "_fold_in_process", lambda *task: used.append(task[0]) or fold(*task))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
        assert sorted(used) == sorted([*range(6)] * 2)
        evaluate("loso", backbone, tuned(), clips=clips, jobs=1)
        assert len(used) == 12
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)


@pytest.mark.parametrize("how", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_fewer_folds_go_on_at_a_time_when_memory_runs_out(
    how: Exception, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips)
    at_once = [0]
    fold = runner._fold_in_process

    def hungry(number: int, *rest: Any) -> Any:
        at_once.append(at_once[-1] + 1)
        try:
            time.sleep(0.2)  # so that all that may run together do
            if at_once[-1] > 2:
                raise how
            return fold(number, *rest)
        finally:
            at_once.append(at_once[-1] - 1)

    monkeypatch.setattr(runner, "_fold_in_process", hungry)
    with (
        joblib.parallel_config(backend="threading"),
        pytest.warns(UserWarning, match=r"ran out with 4 folds at a time .*; going on with 2 at a time") as heard,
    ):
        report = evaluate("loso", backbone, tuned(), clips=clips, jobs=4, out=tmp_path)
    assert len(heard) == 1
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)
    # Down to one, which is this process.
    monkeypatch.setattr(runner, "_fold_in_process", lambda *task: (_ for _ in ()).throw(how))
    with joblib.parallel_config(backend="threading"), pytest.warns(UserWarning, match="going on with 1 at a time"):
        assert evaluate("loso", backbone, tuned(), clips=clips, jobs=2).to_dict() == alone.to_dict()


@dataclass(frozen=True)
class Killed(Finetune):
    """A fine-tuning whose process is ended from outside, once."""

    name: ClassVar[str] = "killed-for-tests"
    flag: str = ""

    def fit(self, backbone: Any, support: Any, **options: Any) -> Recognizer:
        try:
            Path(self.flag).unlink()
        except FileNotFoundError:
            return super().fit(backbone, support, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process lives on")


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_folds_to_fewer(clips: ClipSet, tmp_path: Path) -> None:
    start = fsmer.create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=4).eval()
    method = Killed(train_backbone=True, steps=1, flag=str(tmp_path / "flag"))
    alone = evaluate("loso", start, method, clips=clips)
    (tmp_path / "flag").touch()
    with pytest.warns(UserWarning, match=r"memory ran out with 2 folds at a time \(TerminatedWorkerError\)"):
        report = evaluate("loso", start, method, clips=clips, jobs=2, out=tmp_path / "out")
    assert report.to_dict() == alone.to_dict()


def test_other_errors_of_a_worker_are_not_taken_for_a_lack_of_memory(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_fold_in_process", lambda *task: (_ for _ in ()).throw(Stop()))
    with joblib.parallel_config(backend="threading"), pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, jobs=2)


def test_auto_takes_processes_where_there_is_more_to_do_than_they_take_to_start(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs=1)
    asked: list[tuple[list[int], int]] = []

    def here(self: Any, numbers: Any, count: int) -> Any:
        asked.append((numbers.tolist(), count))
        return numbers
        yield

    monkeypatch.setattr(runner._Run, "_in_processes", here)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs="auto").to_dict() == alone.to_dict()
    assert asked == []  # a moment of work
    monkeypatch.setattr(runner, "START_SECONDS", 0.0)
    report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs="auto")
    # The first fold of the first seed told how long one takes.
    assert asked == [([1, 2, 3, 4, 5], 3), ([0, 1, 2, 3, 4, 5], 3)]
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)
    asked.clear()
    weights = 4 * sum(value.numel() for value in backbone.parameters())
    monkeypatch.setattr(runner, "free_memory", lambda: int(2.5 * (runner.WORKER_BYTES + runner.COPIES * weights)))
    evaluate("loso", backbone, tuned(), clips=clips, jobs="auto")
    assert [count for _, count in asked] == [2]
    monkeypatch.setattr(runner, "free_memory", lambda: 1)
    evaluate("loso", backbone, tuned(), clips=clips, jobs="auto")
    # Methods from outside may hold what cannot be sent to another process.
    monkeypatch.undo()
    monkeypatch.setattr(runner._Run, "_in_processes", here)
    monkeypatch.setattr(runner, "START_SECONDS", 0.0)
    evaluate("loso", backbone, Careless(), clips=clips, jobs="auto")
    assert len(asked) == 1


def test_folds_are_trained_on_one_thread_so_that_the_machine_changes_no_digit(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    loss = RandomTiny.training_loss
    monkeypatch.setattr(
        RandomTiny, "training_loss", lambda self, *rest: seen.add(torch.get_num_threads()) or loss(self, *rest)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate("loso", backbone, tuned(), clips=clips)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_jobs_without_any_training_are_said_to_have_no_effect(backbone: Backbone, clips: ClipSet) -> None:
    with pytest.warns(UserWarning, match="jobs=2 has no effect: 'protonet' keeps the network as it is"):
        evaluate("loso", backbone, "protonet", clips=clips, jobs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate("loso", backbone, "protonet", clips=clips, jobs="auto")
        evaluate("loso", backbone, tuned(), clips=clips, jobs=1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("where", ["processes", "auto", "dask"])
def test_folds_in_processes_and_on_a_cluster_give_the_same_report(
    where: str, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = fsmer.create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=4).eval()
    method = tuned(steps=3)
    alone = evaluate("loso", start, method, clips=clips, seeds=2)
    if where == "processes":
        report = evaluate("loso", start, method, clips=clips, seeds=2, jobs=2, out=tmp_path)
    elif where == "auto":
        monkeypatch.setattr(runner, "START_SECONDS", 0.0)
        monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
        report = evaluate("loso", start, method, clips=clips, seeds=2, jobs="auto", out=tmp_path)
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            report = evaluate("loso", start, method, clips=clips, seeds=2, out=tmp_path)
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)


# ---- the command line


@pytest.fixture(scope="module")
def folder(clips: ClipSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clips.save(tmp_path_factory.mktemp("clips") / "both"))


def command(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


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


# ---- bad input


def test_a_support_that_lacks_a_class_is_noted_and_its_queries_count(backbone: Backbone, clips: ClipSet) -> None:
    rare = clips.labels == "surprise"
    holder = (clips.datasets == "one") & (clips.subjects == "001")
    some = clips[~rare | holder]
    report = evaluate("loso", backbone, "protonet", clips=some)
    (note,) = report.notes
    assert note.startswith("The support of 1 of 6 episodes lacks a class, such as that of one/001 (surprise)")
    assert report.per_class["surprise"] == {"f1": 0, "recall": 0, "precision": 0, "clips": int((rare & holder).sum())}
    # A network that is trained answers too, and never with what it could not know.
    answers = evaluate("loso", backbone, tuned(), clips=some).predictions
    assert (answers.loc[answers["episode"] == 0, "p_surprise"] == 0).all()


def test_subjects_that_are_numbers_in_one_set_and_text_in_the_other_are_people_of_their_own(
    backbone: Backbone, clips: ClipSet
) -> None:
    pairs = zip(clips.datasets, clips.subjects, strict=True)
    names = [int(name) if dataset == "one" else name for dataset, name in pairs]
    mixed = ClipSet.from_arrays(clips.media(), clips.labels, subjects=names, datasets=clips.datasets, ids=clips.ids)
    report = evaluate("loso", backbone, "protonet", clips=mixed)
    assert report.episodes["name"].tolist() == ["one/1", "one/2", "one/3", "two/001", "two/002", "two/003"]
    assert set(report.predictions["subject"]) == {"1", "2", "3", "001", "002", "003"}
    plain = evaluate("loso", backbone, "protonet", clips=clips)
    assert report.figures == plain.figures


def test_two_data_sets_with_the_same_clip_id_are_refused_with_a_remedy(clips: ClipSet) -> None:
    one = clips[clips.datasets == "one"]
    other = ClipSet.from_arrays(one.media(), one.labels, subjects=one.subjects, datasets="other", ids=one.ids)
    with pytest.raises(
        DataError, match=r"24 clip ids are in more than one set, such as 'one-00'.*with_prefix.*--prefix"
    ):
        concat([one, other])
    assert len(concat([one.with_prefix(), other.with_prefix()])) == 48


def test_a_report_without_its_tables_is_refused(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(DataError, match="holds no whole report"):
        Report.load(tmp_path)


# ---- results that are not whole


@pytest.mark.parametrize("name", ["predictions.csv", "episodes.csv"])
@pytest.mark.parametrize("learner", ["finetune", "protonet"])
def test_a_finished_report_with_a_cut_table_is_made_again(
    learner: str, name: str, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tuned() if learner == "finetune" else learner
    first = evaluate("loso", backbone, method, clips=clips, out=tmp_path)
    before = contents(tmp_path)
    (tmp_path / name).write_text("".join((tmp_path / name).read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match=f"{name} has 2 rows, but report.json tells of .*run the same evaluation again"):
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
    with pytest.raises(DataError, match="unfinished run with no finished part yet and no report"):
        Report.load(tmp_path / "cut")
    command(*(("steps=2" if word == "steps=5000" else word) for word in given[1:]))
    assert not list((tmp_path / "cut").glob(".parts-*"))
    (kept,) = (tmp_path / "cut").glob(".kept-*")
    assert kept.name.removeprefix(".kept-") != left.name.removeprefix(".parts-")


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

"""`evaluate` measures what `adapt` deploys, loses nothing when interrupted, and reads the query side last."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import fsmer
from fsmer.backbones import Backbone, create_model, load_model
from fsmer.data import ClipSet, concat
from fsmer.episodic import Protocol, load_protocol
from fsmer.errors import FsmerError, MissingDatasetError, OutputError, ProtocolError, UnknownNameError
from fsmer.evaluation import Report, evaluate, seed_runs, solving
from fsmer.synthetic.clips import synthetic_clips
from fsmer.transfer import Method, adapt, list_methods, load_method


@pytest.fixture
def backbone(rough_backbone: Backbone) -> Backbone:
    return rough_backbone


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """Two data sets of four subjects each, whose subjects have the same names."""
    sets = []
    for number, name in enumerate(("one", "two")):
        made = synthetic_clips("lab", n=45, seed=number)
        subjects = [f"{place % 4 + 4:03d}" for place in range(len(made))]
        ids = [f"{name}-{place:02d}" for place in range(len(made))]
        sets.append(ClipSet.from_arrays(made.media(), made.labels, subjects=subjects, datasets=name, ids=ids))
    return concat(sets)


def by_hand(protocol: Protocol, backbone: Backbone, method: str | Method, clips: ClipSet) -> list[float]:
    """UF1 of each episode through `adapt`, the recognizer's `predict`, and scikit-learn."""
    found = []
    for episode in protocol.split(clips):
        recognizer = adapt(backbone, clips[episode.support], method, classes=episode.classes)
        query = clips[episode.query]
        found.append(f1_score(query.labels.astype(str), recognizer.predict(query), average="macro", zero_division=0))
    return found


@pytest.mark.parametrize("name", [one.name for one in list_methods()])
def test_what_is_measured_is_what_adapt_deploys(name: str, backbone: Backbone, clips: ClipSet) -> None:
    protocol = load_protocol("kshot", shot=3, episodes=4, seed=2)
    report = evaluate(protocol, backbone, name, clips=clips)
    expected = by_hand(protocol, backbone, name, clips)
    np.testing.assert_allclose(report.episodes["uf1"], expected, atol=1e-6)
    assert report.uf1 == pytest.approx(np.mean(expected))
    assert report.averaging == "episodes"
    half = 1.959964 * np.std(expected, ddof=1) / 2
    assert report.interval("uf1") == pytest.approx((report.uf1 - half, report.uf1 + half))


def test_a_method_that_trains_the_backbone_takes_the_same_road(backbone: Backbone, clips: ClipSet) -> None:
    method = load_method("finetune", train_backbone=True, steps=3, encoder_rate=1e-3)
    protocol = load_protocol("kshot", shot=2, query=4, episodes=2, seed=5)
    report = evaluate(protocol, backbone, method, clips=clips)
    np.testing.assert_allclose(report.episodes["uf1"], by_hand(protocol, backbone, method, clips), atol=1e-6)


def test_counted_queries_and_some_of_the_classes(backbone: Backbone, clips: ClipSet) -> None:
    protocol = load_protocol("kshot", way=2, shot=2, query=3, episodes=5, seed=1)
    report = evaluate(protocol, backbone, "protonet", clips=clips)
    np.testing.assert_allclose(report.episodes["uf1"], by_hand(protocol, backbone, "protonet", clips), atol=1e-6)
    assert report.episodes["clips"].tolist() == [6] * 5
    # A class that an episode is not about has no probability there; the others sum to one.
    probabilities = report.predictions[[f"p_{name}" for name in report.classes]].to_numpy()
    assert (np.isnan(probabilities).sum(axis=1) == 1).all()
    np.testing.assert_allclose(np.nansum(probabilities, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "protonet", "cosine"])
def test_loso_judges_every_clip_once_by_a_recognizer_that_never_saw_its_subject(
    name: str, backbone: Backbone, clips: ClipSet
) -> None:
    protocol = load_protocol("loso")
    report = evaluate(protocol, backbone, name, clips=clips)
    assert report.averaging == "pooled"
    assert report.counts == {"clips": 90, "subjects": 8, "episodes": 8, "predictions": 90}
    assert sorted(report.predictions["clip"]) == sorted(clips.ids)
    said = dict(zip(report.predictions["clip"], report.predictions["predicted"], strict=True))
    for dataset, subject in clips.subject_names:
        mine = (clips.datasets == dataset) & (clips.subjects == subject)
        recognizer = adapt(backbone, clips[~mine], name, classes=clips.classes)
        expected = recognizer.predict(clips[mine])
        assert [said[clip] for clip in clips[mine].ids] == expected.tolist()
    truth = dict(zip(clips.ids, clips.labels, strict=True))
    pooled = f1_score([truth[c] for c in said], list(said.values()), average="macro", zero_division=0)
    assert report.uf1 == pytest.approx(pooled)
    low, high = report.interval("uf1") or (1, 0)
    assert low < report.uf1 < high
    assert set(report.per_dataset) == {"one", "two"}
    assert report.per_dataset["one"]["clips"] == 45
    assert report.per_dataset["one"]["subjects"] == 4


def test_no_shots_are_one_episode_with_every_clip_a_query(backbone: Backbone, clips: ClipSet) -> None:
    report = evaluate(load_protocol("kshot", shot=0), backbone, "zero_shot", clips=clips)
    assert report.counts == {"clips": 90, "subjects": 8, "episodes": 1, "predictions": 90}
    assert report.predictions["clip"].tolist() == clips.ids.tolist()
    assert report.averaging == "pooled"
    assert report.interval("uf1") is not None


def test_per_dataset_and_per_class_figures_are_those_of_their_clips_alone(backbone: Backbone, clips: ClipSet) -> None:
    report = evaluate(load_protocol("kshot", shot=3, episodes=6), backbone, "protonet", clips=clips)
    rows = report.predictions
    for dataset, figures in report.per_dataset.items():
        each = [
            f1_score(part["label"], part["predicted"], labels=list(report.classes), average="macro", zero_division=0)
            for _, part in rows[rows["dataset"] == dataset].groupby("episode")
        ]
        assert figures["uf1"] == pytest.approx(np.mean(each))
    for place, name in enumerate(report.classes):
        each = [
            f1_score(part["label"], part["predicted"], labels=list(report.classes), average=None, zero_division=0)[
                place
            ]
            for _, part in rows.groupby("episode")
        ]
        assert report.per_class[name]["f1"] == pytest.approx(np.mean(each))
        assert report.per_class[name]["clips"] == int((clips.labels == name).sum())
    assert report.confusion.sum() == len(rows)


def test_the_order_of_clips_changes_no_answer(backbone: Backbone, clips: ClipSet) -> None:
    order = np.random.default_rng(0).permutation(len(clips))
    protocol = load_protocol("kshot", shot=3, episodes=5, seed=9)
    straight, mixed = (
        evaluate(protocol, backbone, "protonet", clips=some).predictions.sort_values(["episode", "clip"])
        for some in (clips, clips[order])
    )
    for column in ("clip", "label", "predicted", "subject"):
        assert straight[column].tolist() == mixed[column].tolist()


def test_answers_do_not_depend_on_the_labels_of_the_query_side(backbone: Backbone, clips: ClipSet) -> None:
    protocol = load_protocol("holdout", train=["one"], test=["two"])
    honest = evaluate(protocol, backbone, "logistic", clips=clips)
    labels = clips.labels.copy()
    tested = clips.datasets == "two"
    labels[tested] = np.roll(labels[tested], 7)
    shuffled = ClipSet.from_arrays(
        clips.media(), labels, subjects=clips.subjects, datasets=clips.datasets, ids=clips.ids
    )
    lied = evaluate(protocol, backbone, "logistic", clips=shuffled)
    assert honest.predictions["predicted"].tolist() == lied.predictions["predicted"].tolist()
    assert honest.uf1 != lied.uf1


def test_the_same_seed_gives_the_same_report_and_another_seed_another(backbone: Backbone, clips: ClipSet) -> None:
    first, again, other = (
        evaluate(load_protocol("kshot", shot=2, episodes=5), backbone, "protonet", clips=clips, seed=seed)
        for seed in (3, 3, 4)
    )
    assert first.to_dict() == again.to_dict()
    assert first.seed == 3
    assert first.uf1 != other.uf1


class Interrupt:
    """A progress callback that stops the run after some episodes, as a key press would."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.starts: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "episodes":
            self.starts.append(done)
            if done >= self.after:
                raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "settings", "method"),
    [
        ("kshot", {"shot": 2, "episodes": 600}, "protonet"),
        ("loso", {}, "logistic"),
        ("kshot", {"shot": 2, "query": 2, "episodes": 3}, "finetune+"),
    ],
)
def test_an_interrupted_run_leaves_no_report_and_goes_on_to_the_same_result(
    name: str,
    settings: dict[str, object],
    method: str,
    backbone: Backbone,
    clips: ClipSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solving, "FOLD_CELLS", 3 * len(clips))  # batches of three folds
    solver = load_method("finetune", train_backbone=True, steps=2) if method == "finetune+" else load_method(method)
    protocol = load_protocol(name, **settings)
    whole = evaluate(protocol, backbone, solver, clips=clips)
    with pytest.raises(KeyboardInterrupt):
        evaluate(protocol, backbone, solver, clips=clips, out=tmp_path / "out", progress=Interrupt(1))
    assert not (tmp_path / "out" / "report.json").exists()
    seen = Interrupt(10**9)
    resumed = evaluate(protocol, backbone, solver, clips=clips, out=tmp_path / "out", progress=seen)
    assert seen.starts[0] > 0  # it went on from there
    assert resumed.to_dict() == whole.to_dict()
    assert resumed.predictions.equals(whole.predictions)
    assert not list((tmp_path / "out").glob(".parts-*"))


def test_finished_episodes_count_for_the_very_same_run_only(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    protocol = load_protocol("kshot", shot=2, episodes=300)

    def stop(**changes: object) -> int:
        settings = {"protocol": protocol, "model": backbone, "method": "protonet", "clips": clips} | changes
        seen = Interrupt(1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(out=tmp_path, progress=seen, **settings)  # type: ignore[arg-type]
        return seen.starts[0]

    assert stop() == 0
    assert stop() > 0
    assert stop(resume=False) == 0
    relabelled = ClipSet.from_arrays(
        clips.media(), np.roll(clips.labels, 1), subjects=clips.subjects, datasets=clips.datasets, ids=clips.ids
    )
    # Maps extracted anew under the same ids are another run too.
    anew = ClipSet.from_arrays(
        clips.media()[:, :, :, ::-1].copy(),
        clips.labels,
        subjects=clips.subjects,
        datasets=clips.datasets,
        ids=clips.ids,
    )
    torch.manual_seed(1)
    for changes, words in (
        ({"method": "protonet_cosine"}, "another method .*euclidean.*cosine"),
        ({"protocol": load_protocol("kshot", shot=3, episodes=300)}, f"another protocol .*{protocol.hash}"),
        ({"seed": 77}, "another protocol"),
        ({"clips": clips[1:]}, "another table of clips"),
        ({"clips": relabelled}, "another table of clips"),
        ({"clips": anew}, "another content of the media"),
        ({"model": create_model("facs-flow")}, "another model .*facs-flow with weights"),
    ):
        # Results of two runs never meet in one folder: the message says what differs and what to do.
        with pytest.raises(OutputError, match=f"{words}.*--no-resume") as refused:
            stop(**changes)  # type: ignore[arg-type]
        assert str(refused.value).count(". ") == 0
    assert stop(resume=False, method="protonet_cosine") == 0


@pytest.mark.parametrize("damage", ["lost", "cut", "older"])
def test_an_unfinished_run_of_another_version_is_not_taken_over(
    damage: str, backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    protocol = load_protocol("kshot", shot=2, episodes=300)
    with pytest.raises(KeyboardInterrupt):
        evaluate(protocol, backbone, "protonet", clips=clips, out=tmp_path, progress=Interrupt(1))
    (about,) = tmp_path.glob(".parts-*/run.json")
    if damage == "lost":
        about.unlink()
    elif damage == "cut":
        about.write_text(about.read_text()[:40])
    else:
        about.write_text(json.dumps(json.loads(about.read_text()) | {"format_version": 1}))
    with pytest.raises(OutputError, match=r"run\.json.*--no-resume"):
        evaluate(protocol, backbone, "protonet", clips=clips, out=tmp_path)
    report = evaluate(protocol, backbone, "protonet", clips=clips, out=tmp_path, resume=False)
    assert Report.load(tmp_path).uf1 == report.uf1


def test_a_negative_seed_is_refused(backbone: Backbone, clips: ClipSet) -> None:
    with pytest.raises(ProtocolError, match="seed=-1"):
        evaluate("loso", backbone, "protonet", clips=clips, seed=-1)


def test_a_damaged_intermediate_file_is_computed_again(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    protocol = load_protocol("kshot", shot=2, episodes=300)
    with pytest.raises(KeyboardInterrupt):
        evaluate(protocol, backbone, "protonet", clips=clips, out=tmp_path, progress=Interrupt(1))
    (part,) = tmp_path.glob(".parts-*/*.npz")
    part.write_bytes(part.read_bytes()[:200])
    report = evaluate(protocol, backbone, "protonet", clips=clips, out=tmp_path)
    assert report.to_dict() == evaluate(protocol, backbone, "protonet", clips=clips).to_dict()


def test_long_runs_write_finished_episodes_as_they_go(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_runs, "FLUSH_SECONDS", 0.0)
    found: list[int] = []

    def look(stage: str, done: int, total: int) -> None:
        found.append(len(list(tmp_path.glob(".parts-*/*.npz"))))

    evaluate(
        load_protocol("kshot", shot=2, episodes=600), backbone, "protonet", clips=clips, out=tmp_path, progress=look
    )
    assert max(found) >= 2


def test_a_source_domain_is_learnt_before_the_target(backbone: Backbone) -> None:
    seen: list[str] = []

    def look(stage: str, done: int, total: int) -> None:
        if not seen or seen[-1] != stage:
            seen.append(stage)

    protocol = load_protocol("synthetic-source-target", episodes=2, query=3)
    method = load_method("finetune", train_backbone=True, source_epochs=1, steps=1, batch_size=64)
    report = evaluate(protocol, backbone, method, progress=look)
    assert "training on the source" in seen
    assert report.counts["episodes"] == 2
    # Only target clips are judged.
    assert report.predictions["dataset"].nunique() == 1


def test_clips_that_no_episode_uses_are_not_read(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    broken = clips.media().copy()
    unused = clips.labels == clips.classes[0]
    broken[unused] = np.nan
    some = ClipSet.from_arrays(broken, clips.labels, subjects=clips.subjects, datasets=clips.datasets, ids=clips.ids)
    protocol = load_protocol("kshot", shot=2, episodes=3, class_subset=clips.classes[1:])
    report = evaluate(protocol, backbone, "protonet", clips=some)
    assert report.classes == clips.classes[1:]
    assert report.counts["clips"] == int((~unused).sum())
    with pytest.raises(FsmerError, match="one-"):
        evaluate(load_protocol("kshot", shot=2, episodes=3), backbone, "protonet", clips=some, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_and_paths_are_taken_as_well_as_objects(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path / "weights")
    report = fsmer.evaluate("loso", str(tmp_path / "weights"), "protonet", clips=clips, out=tmp_path / "out")
    assert (
        report.to_dict() == fsmer.evaluate("loso", load_model(tmp_path / "weights"), "protonet", clips=clips).to_dict()
    )
    held = json.loads((tmp_path / "out" / "report.json").read_text())
    assert held["protocol"]["hash"] == load_protocol("loso").hash
    assert held["model"]["weights_hash"] == report.model["weights_hash"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"protocol": "losso"}, UnknownNameError, "loso"),
        ({"method": "protnet"}, UnknownNameError, "protonet"),
        ({"model": "facs-flw"}, UnknownNameError, "facs-flow"),
        ({"clips": None}, ProtocolError, "needs clips"),
        ({"protocol": "loso-samm-5"}, MissingDatasetError, "samm"),
        ({"protocol": "kshot", "shot": 90}, ProtocolError, "negative|positive|surprise"),
        ({"protocol": "kshot", "shot": 5, "episodes": 10**6}, ProtocolError, "90,000,000 answers"),
    ],
)
def test_wrong_requests_are_refused_by_name(
    changes: dict[str, object], error: type[FsmerError], words: str, backbone: Backbone, clips: ClipSet
) -> None:
    settings = {"protocol": "loso", "model": backbone, "method": "protonet", "clips": clips} | changes
    changed = {name: settings.pop(name) for name in ("shot", "episodes") if name in settings}
    settings["protocol"] = load_protocol(settings["protocol"], **changed) if changed else settings["protocol"]
    with pytest.raises(error, match=words):
        evaluate(**settings)  # type: ignore[arg-type]


def test_an_output_folder_that_cannot_be_written_is_refused_before_any_work(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    seen = Interrupt(10**9)
    with pytest.raises(OutputError, match="file"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "file" / "out", progress=seen)
    assert seen.starts == []

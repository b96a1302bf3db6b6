"""The audit: every leak and slip that it promises to find, and clean trees that it must leave in peace."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_backbone
from PIL import Image
from sklearn.metrics import f1_score

import fsmer
from fsmer.auditing import Audit, audit, near_duplicates
from fsmer.auditing.findings import Table
from fsmer.auditing.media import Media
from fsmer.errors import DataError
from fsmer.evaluation import evaluate

CLASSES = ("negative", "positive", "surprise")


def names(found: Audit) -> set[str]:
    return {finding.check for finding in found.findings}


def finding(found: Audit, check: str) -> Any:
    return next(one for one in found.findings if one.check == check)


def write_map(path: Path, seed: int, *, size: int = 28, noise: float = 0.0) -> Path:
    """A smooth colour map that no other seed resembles."""
    rng = np.random.default_rng(seed)
    cells = rng.random((5, 5, 3))
    image = Image.fromarray((cells * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(image, dtype=float) + rng.normal(0, noise, (size, size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return path


# ---- results folders


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LOSO run as it was written."""
    folder = tmp_path_factory.mktemp("run")
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    evaluate("loso", tiny_backbone.TinyBackbone(), "protonet", clips=clips, out=folder)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def change_table(folder: Path, change: Any) -> None:
    path = folder / "predictions.csv"
    table = pd.read_csv(path, dtype={"clip": str, "subject": str})
    change(table).to_csv(path, index=False)


def change_report(folder: Path, **values: Any) -> None:
    path = folder / "report.json"
    held = json.loads(path.read_text()) | values
    # As somebody who edits it on purpose: its seal would be noticed before all else.
    held.pop("checksum", None)
    path.write_text(json.dumps(held), encoding="utf-8")


def test_a_clean_run_gets_a_clean_verdict(run: Path) -> None:
    found = audit(run)
    assert found.findings == ()
    assert (found.clean, found.exit_code, found.kind) == (True, 0, "report")
    assert found.verdict.startswith("Nothing wrong was found")
    assert found.counts["folds"] == 6
    assert "media" in found.unchecked[0]
    assert json.loads(json.dumps(found.to_dict()))["verdict"] == found.verdict


def test_figures_are_recomputed_pooled_and_by_folds(run: Path) -> None:
    table = pd.read_csv(run / "predictions.csv")
    ways = audit(run).figures["uf1"]
    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert ways["pooled"] == pytest.approx(f1_score(table["label"], table["predicted"], **options))
    folds = [part for _, part in table.groupby("episode")]
    whole = [f1_score(part["label"], part["predicted"], labels=CLASSES, **options) for part in folds]
    own = [f1_score(part["label"], part["predicted"], **options) for part in folds]
    assert ways["mean over folds"] == pytest.approx(np.mean(whole))
    assert ways["mean over folds, each over its own classes"] == pytest.approx(np.mean(own))
    weighted = f1_score(table["label"], table["predicted"], average="weighted")
    assert ways["pooled, classes weighted by size"] == pytest.approx(weighted)


def test_a_figure_averaged_over_folds_is_named_as_such(copy: Path) -> None:
    mean = audit(copy).figures["uf1"]["mean over folds"]
    change_report(copy, uf1=mean)
    found = finding(audit(copy), "averaged-over-folds")
    assert found.severity == "serious"
    assert f"{mean:.4f}" in found.message
    change_report(copy, uf1=0.9123)
    assert "0.9123" in finding(audit(copy), "figure-not-from-predictions").message


def test_changed_answers_are_noticed(copy: Path) -> None:
    def swap(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, "predicted"] = next(name for name in CLASSES if name != table.loc[0, "predicted"])
        return table

    change_table(copy, swap)
    assert {"answer-against-probability", "figure-not-from-predictions"} <= names(audit(copy))


def test_missing_and_doubled_predictions_are_noticed(copy: Path, tmp_path: Path, run: Path) -> None:
    change_table(copy, lambda table: table.iloc[1:])
    found = audit(copy)
    assert {"missing-prediction", "missing-clip"} <= names(found)
    assert found.exit_code == 3
    fold = Path(shutil.copytree(run, tmp_path / "fold"))
    change_table(fold, lambda table: table[table["episode"] != 2])
    assert finding(audit(fold), "missing-fold").count == 1
    twice = Path(shutil.copytree(run, tmp_path / "twice"))
    change_table(twice, lambda table: pd.concat([table, table.iloc[:3]]))
    assert finding(audit(twice), "duplicated-prediction").count == 3


def test_a_cut_table_of_episodes_is_noticed(copy: Path) -> None:
    lines = (copy / "episodes.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "episodes.csv").write_text("".join(lines[:3]), encoding="utf-8")
    found = finding(audit(copy), "missing-episode")
    assert (found.severity, found.count) == ("serious", 4)
    assert "episodes.csv has 2 rows, but the folds and seeds of the report make 6" in found.message


def test_a_subject_in_two_folds_is_on_both_sides(copy: Path) -> None:
    def move(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, "episode"] = 5
        return table

    change_table(copy, move)
    found = finding(audit(copy), "subject-on-both-sides")
    assert (found.severity, found.count) == ("serious", 1)


def test_two_labels_and_two_spellings_of_a_subject_are_noticed(copy: Path, tmp_path: Path, run: Path) -> None:
    def relabel(table: pd.DataFrame) -> pd.DataFrame:
        other = table.iloc[[0]].assign(episode=3)
        other["label"] = next(name for name in CLASSES if name != table.loc[0, "label"])
        return pd.concat([table, other])

    change_table(copy, relabel)
    assert {"two-labels", "judged-in-two-folds"} <= names(audit(copy))
    spelt = Path(shutil.copytree(run, tmp_path / "spelt"))

    def respell(table: pd.DataFrame) -> pd.DataFrame:
        first = table.index[table["subject"] == table.loc[0, "subject"]]
        table["subject"] = table["subject"].str.replace("lab", "", regex=False)
        table.loc[first[0], "subject"] = str(int(table.loc[first[0], "subject"]))
        return table

    change_table(spelt, respell)
    found = finding(audit(spelt), "one-person-two-names")
    assert "'1'" in found.examples[0]
    assert "'001'" in found.examples[0]


def test_a_clip_of_two_data_sets_is_noticed(copy: Path) -> None:
    change_table(copy, lambda table: pd.concat([table, table.iloc[[0]].assign(dataset="other")]))
    found = finding(audit(copy), "clip-in-two-data-sets")
    assert found.severity == "serious"
    assert "lab and other" in found.examples[0]


def test_the_oracle_stamp_is_read(copy: Path) -> None:
    figures = json.loads((copy / "report.json").read_text())
    honest = {name: figures[name] for name in figures if name.startswith(("uf1", "uar", "acc"))} | {"uf1": 0.1234}
    change_report(copy, selection={"rule": "oracle"}, honest=honest)
    found = finding(audit(copy), "oracle")
    assert found.severity == "serious"
    assert "0.1234" in found.message
    change_report(copy, selection={"rule": "nested"})
    assert "oracle" not in names(audit(copy))


def test_a_seed_without_predictions_is_noticed(tmp_path: Path) -> None:
    clips = fsmer.synthetic_clips("lab", 36, seed=3, subjects=3)
    method = fsmer.load_method("finetune", steps=3)
    evaluate("loso", tiny_backbone.TinyBackbone(), method, clips=clips, seeds=2, out=tmp_path / "run")
    assert audit(tmp_path / "run").clean
    assert audit(tmp_path / "run").counts["seeds"] == 2
    change_table(tmp_path / "run", lambda table: table[table["seed"] == 0])
    assert finding(audit(tmp_path / "run"), "missing-seed").examples == ("1",)


def test_another_protocol_hash_and_left_over_parts_are_noticed(copy: Path) -> None:
    protocol = json.loads((copy / "report.json").read_text())["protocol"]
    change_report(copy, protocol=protocol | {"hash": "0" * 16})
    (copy / ".parts-abc").mkdir()
    found = audit(copy)
    assert finding(found, "protocol-changed").severity == "warning"
    assert finding(found, "unfinished-run").severity == "note"
    assert (found.clean, found.exit_code) == (False, 0)
    assert "needs an explanation" in found.verdict


def test_a_class_that_one_subject_alone_shows_is_named(tmp_path: Path) -> None:
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    labels = np.where(clips.subjects == clips.subjects[0], "surprise", "negative")
    labels[1] = "positive"
    made = fsmer.ClipSet.from_arrays(clips.media(), labels, subjects=clips.subjects, datasets=clips.datasets)
    evaluate("loso", tiny_backbone.TinyBackbone(), "protonet", clips=made, out=tmp_path / "run")
    found = finding(audit(tmp_path / "run"), "class-not-taught")
    assert found.severity == "warning"
    assert any("surprise" in example for example in found.examples)


def test_episodes_that_share_people_are_a_warning(tmp_path: Path) -> None:
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    for disjoint in (False, True):
        protocol = fsmer.load_protocol("kshot", way=3, shot=1, query=2, episodes=5, subject_disjoint=disjoint)
        out = tmp_path / str(disjoint)
        evaluate(protocol, tiny_backbone.TinyBackbone(), "protonet", clips=clips, out=out)
        found = audit(out)
        assert ("support-and-query-share-people" in names(found)) is not disjoint
        assert found.exit_code == 0


def test_parts_of_smic_show_the_same_people(tmp_path: Path) -> None:
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    datasets = np.where(np.arange(60) % 2, "smic", "smic-vis")
    made = fsmer.ClipSet.from_arrays(clips.media(), clips.labels, subjects=clips.subjects, datasets=datasets)
    protocol = fsmer.load_protocol("holdout", train=["smic"], test=["smic-vis"])
    evaluate(protocol, tiny_backbone.TinyBackbone(), "protonet", clips=made, out=tmp_path / "run")
    assert finding(audit(tmp_path / "run"), "subject-on-both-sides").severity == "warning"


# ---- tables of predictions


def predictions_csv(path: Path, **columns: Any) -> Path:
    rng = np.random.default_rng(0)
    label = rng.choice(CLASSES, 90, p=[0.6, 0.25, 0.15])
    answer = np.where(rng.random(90) < 0.6, label, rng.choice(CLASSES, 90))
    subject = np.repeat(np.arange(9), 10)
    table = {"video_id": [f"c{i}" for i in range(90)], "sub": subject, "fold": subject, "y_true": label, "pred": answer}
    pd.DataFrame(table | columns).to_csv(path, index=False)
    return path


def test_a_table_of_predictions_tells_of_an_oracle_or_not(tmp_path: Path) -> None:
    plain = audit(predictions_csv(tmp_path / "a.csv"))
    assert "oracle" not in names(plain)
    assert any("chosen on the test side" in reason for reason in plain.unchecked)
    honest = audit(predictions_csv(tmp_path / "b.csv", oracle=False))
    assert "oracle" not in names(honest)
    assert "whether a column says ORACLE" in honest.checks
    assert finding(audit(predictions_csv(tmp_path / "c.csv", oracle=True)), "oracle").severity == "serious"


def test_a_stated_figure_is_matched_with_the_way_it_was_averaged(tmp_path: Path) -> None:
    path = predictions_csv(tmp_path / "p.csv")
    ways = audit(path).figures
    assert set(ways) == {"uf1", "uar", "acc"}
    honest = audit(path, stated={"uf1": round(ways["uf1"]["pooled"], 4)})
    assert (honest.exit_code, names(honest)) == (0, {"stated-figure"})
    wrong = audit(path, stated={"UF1": round(100 * ways["uf1"]["mean over folds, each over its own classes"], 2)})
    assert finding(wrong, "averaged-over-folds").severity == "serious"
    assert "each over its own classes" in wrong.verdict
    weighted = audit(path, stated={"uf1": round(ways["uf1"]["pooled, classes weighted by size"], 4)})
    assert "averaged-otherwise" in names(weighted)
    nothing = audit(path, stated={"uf1": 0.9321})
    assert "no known way" in finding(nothing, "figure-not-from-predictions").message


@pytest.mark.parametrize("stated", [{"f2": 0.5}, {"uf1": "much"}, {"uf1": 120}, {"uf1": -1}])
def test_a_stated_figure_that_is_none_is_refused(tmp_path: Path, stated: Mapping[str, Any]) -> None:
    with pytest.raises(DataError, match="stated"):
        audit(predictions_csv(tmp_path / "p.csv"), stated=stated)


def test_predictions_need_labels(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("clip,pred\na,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="label"):
        audit(path)


# ---- lists of splits


def splits(path: Path, rows: Sequence[Sequence[object]], header: str = "clip,subject,label,fold,split") -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def loso_rows(people: int = 4, clips: int = 6) -> list[list[object]]:
    rows: list[list[object]] = []
    for fold in range(people):
        for person in range(people):
            for clip in range(clips):
                side = "test" if person == fold else "train"
                rows.append([f"c{person}_{clip}", f"s{person}", CLASSES[clip % 3], fold, side])
    return rows


def test_a_clean_list_of_splits_gets_a_clean_verdict(tmp_path: Path) -> None:
    found = audit(splits(tmp_path / "s.csv", loso_rows()))
    assert (found.findings, found.kind) == ((), "splits")
    assert found.counts == {"clips": 24, "folds": 4, "subjects": 4}


def test_forms_of_split_lists_are_told_apart(tmp_path: Path) -> None:
    by_fold = [[f"c{p}_{c}", f"s{p}", CLASSES[c % 3], p] for p in range(4) for c in range(6)]
    assert audit(splits(tmp_path / "a.csv", by_fold, "Clip,Subject,Label,split")).counts["folds"] == 4
    leaking = [
        [clip, subject, label, (fold + number) % 4] for number, (clip, subject, label, fold) in enumerate(by_fold)
    ]
    assert "subject-on-both-sides" in names(audit(splits(tmp_path / "b.csv", leaking, "clip,sub,label,cv")))
    once = [[row[0], row[1], row[2], "train" if row[3] else "test"] for row in by_fold]
    found = audit(splits(tmp_path / "c.csv", once, "sample;subject;emotion;set".replace(";", ",")))
    assert (found.findings, found.counts["folds"]) == ((), 1)
    semicolons = splits(tmp_path / "d.csv", loso_rows())
    semicolons.write_text(semicolons.read_text().replace(",", ";"), encoding="utf-8-sig")
    assert audit(semicolons).clean


def test_recordings_called_alike_from_subject_to_subject_are_told_apart(tmp_path: Path) -> None:
    rows = [[f"EP{c}", f"sub{p}", CLASSES[c % 3], p] for p in range(4) for c in range(6)]
    found = audit(splits(tmp_path / "a.csv", rows, "Filename,Subject,Estimated Emotion,fold"))
    assert (found.findings, found.counts["clips"]) == ((), 24)


def test_leaks_in_splits_are_found(tmp_path: Path) -> None:
    rows = loso_rows()
    shared = [*rows, ["c1_0", "s1", CLASSES[0], 1, "train"]]
    found = audit(splits(tmp_path / "a.csv", shared))
    assert {"clip-on-both-sides", "subject-on-both-sides"} <= names(found)
    assert "s1" in finding(found, "subject-on-both-sides").examples[0]
    validation = [
        [*row[:4], "val" if row[1] == "s2" and row[0] == "c2_0" and row[4] == "train" else row[4]] for row in rows
    ]
    assert finding(audit(splits(tmp_path / "b.csv", validation)), "subject-on-both-sides").severity == "warning"


def test_gaps_in_splits_are_found(tmp_path: Path) -> None:
    rows = loso_rows()
    no_test = [row for row in rows if not (row[3] == 2 and row[4] == "test")]
    found = audit(splits(tmp_path / "a.csv", no_test))
    assert finding(found, "missing-side").examples == ("2",)
    assert finding(found, "never-tested").count == 6
    gap = [row for row in rows if row[3] != 1]
    assert {"missing-fold", "never-tested"} <= names(audit(splits(tmp_path / "b.csv", gap)))
    again = [*rows, *([row[0], row[1], row[2], 9, row[4]] for row in rows if row[3] == 0)]
    assert finding(audit(splits(tmp_path / "c.csv", again)), "tested-twice").count == 6


def test_labels_of_splits_are_checked(tmp_path: Path) -> None:
    rows = loso_rows()
    rows[0][2] = "fear"
    found = audit(splits(tmp_path / "a.csv", rows))
    assert {"two-labels", "class-not-taught"} <= names(found)
    asked = [[*row[:2], "anger" if row[0] == "c0_0" else row[2], *row[3:]] for row in loso_rows()]
    assert "'anger' in fold 0" in finding(audit(splits(tmp_path / "b.csv", asked)), "class-not-taught").examples
    never = [row for row in asked if not (row[0] == "c0_0" and row[4] == "test")]
    assert finding(audit(splits(tmp_path / "c.csv", never)), "class-absent").examples == ("anger",)


def test_subjects_that_are_numbers_here_and_text_there_are_found(tmp_path: Path) -> None:
    rows = [[clip, "006" if subject == "s0" else subject, *rest] for clip, subject, *rest in loso_rows()]
    rows[3][1] = "6"
    assert "'006' and '6'" in finding(audit(splits(tmp_path / "a.csv", rows)), "one-person-two-names").examples[0]


def test_two_data_sets_with_the_same_clip_are_found(tmp_path: Path) -> None:
    rows = [[*row, "smic"] for row in loso_rows()]
    rows.append(["c1_0", "s9", CLASSES[0], 0, "train", "casme2"])
    header = "clip,subject,label,fold,split,dataset"
    assert "c1_0" in finding(audit(splits(tmp_path / "a.csv", rows, header)), "clip-in-two-data-sets").examples[0]


def test_media_of_splits_are_compared_across_sides(tmp_path: Path) -> None:
    rows = [[*row, f"maps/{row[0]}.png"] for row in loso_rows(3, 3)]
    for person in range(3):
        for clip in range(3):
            write_map(tmp_path / f"maps/c{person}_{clip}.png", 10 * person + clip)
    header = "clip,subject,label,fold,split,file"
    assert audit(splits(tmp_path / "s.csv", rows, header)).clean
    write_map(tmp_path / "maps/c2_1.png", 10, noise=4)
    found = finding(audit(tmp_path / "s.csv"), "near-duplicate-media")
    assert (found.severity, found.count) == ("serious", 1)
    assert "c1_0 and c2_1" in found.examples[0]


# ---- the STSTNet layout


@pytest.fixture
def ststnet(tmp_path: Path) -> Path:
    """Three subjects of three data sets with three clips each, as the release lays them out."""
    root = tmp_path / "norm_u_v_os"
    people = {"sub01": "EP0", "s02": "ne_0", "006": "1_"}
    for number, (person, word) in enumerate(people.items()):
        for label in range(3):
            source = write_map(
                root / person / "u_test" / str(label) / f"{person}_{word}{label}.png", 10 * number + label
            )
            for other in people:
                if other != person:
                    target = root / other / "u_train" / str(label) / source.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
    return root


def test_the_release_as_it_was_published_is_clean(ststnet: Path) -> None:
    for folder in (ststnet, ststnet.parent):
        found = audit(folder)
        assert (found.findings, found.kind) == ((), "ststnet")
        assert found.counts == {"clips": 9, "subjects": 3, "files": 27}


def test_a_clip_of_the_tested_subject_in_its_training_folder_is_found(ststnet: Path) -> None:
    source = ststnet / "sub01/u_test/0/sub01_EP00.png"
    shutil.copyfile(source, ststnet / "sub01/u_train/0/sub01_EP00.png")
    found = audit(ststnet)
    assert {"clip-on-both-sides", "subject-on-both-sides"} <= names(found)
    assert "sub01_EP00 of casme2 in fold sub01" in finding(found, "clip-on-both-sides").examples


def test_the_same_map_under_another_name_on_the_training_side_is_found(ststnet: Path) -> None:
    shutil.copyfile(ststnet / "sub01/u_test/0/sub01_EP00.png", ststnet / "sub01/u_train/1/s02_copy.png")
    found = audit(ststnet)
    duplicate = finding(found, "duplicated-media")
    assert duplicate.severity == "serious"
    assert {"labels-disagree", "never-tested"} <= names(found)


def test_disagreeing_copies_and_gaps_of_the_layout_are_found(ststnet: Path) -> None:
    shutil.move(ststnet / "sub01/u_train/0/006_1_0.png", ststnet / "sub01/u_train/2/006_1_0.png")
    (ststnet / "s02/u_train/1/006_1_1.png").unlink()
    write_map(ststnet / "s02/u_train/0/006_1_0.png", 99)
    shutil.rmtree(ststnet / "006/u_train/2")
    (ststnet / "006/u_train/happy").mkdir()
    found = audit(ststnet)
    expected = {"two-labels", "copies-differ", "incomplete-training-side", "class-not-taught", "unknown-class"}
    assert expected <= names(found)
    shutil.rmtree(ststnet / "sub01/u_test")
    assert finding(audit(ststnet), "missing-side").examples == ("sub01",)


# ---- folders of clips


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two data sets, four people, three clips each, with an index."""
    rows = []
    for person in range(4):
        for clip in range(3):
            write_map(tmp_path / f"maps/{person}_{clip}.png", 10 * person + clip)
            dataset = "smic" if person < 2 else "casme2"
            rows.append([f"{person}_{clip}", dataset, f"s{person}", CLASSES[clip], f"maps/{person}_{clip}.png"])
    splits(tmp_path / "index.csv", rows, "clip,dataset,subject,label,file")
    return tmp_path


def test_a_clean_folder_of_clips_gets_a_clean_verdict(maps: Path, tmp_path: Path) -> None:
    found = audit(maps)
    assert (found.findings, found.kind) == ((), "clips")
    assert found.counts == {"clips": 12, "data sets": 2, "subjects": 4}
    saved = fsmer.read_clips(maps).save(tmp_path / "saved")
    assert audit(saved).findings == ()


def test_duplicated_media_of_two_people_are_found(maps: Path) -> None:
    shutil.copyfile(maps / "maps/0_0.png", maps / "maps/2_1.png")
    write_map(maps / "maps/3_2.png", 12, size=56)
    found = audit(maps)
    exact, near = finding(found, "duplicated-media"), finding(found, "near-duplicate-media")
    assert (exact.severity, exact.count) == ("serious", 1)
    assert "1 across data sets" in exact.message
    assert "1_2 of smic and 3_2 of casme2" in near.examples[0]
    assert "labels-disagree" in names(found)


def test_copies_of_one_person_are_a_warning(maps: Path) -> None:
    shutil.copyfile(maps / "maps/0_0.png", maps / "maps/0_1.png")
    assert finding(audit(maps), "duplicated-media").severity == "warning"


def test_what_is_wrong_with_an_index_is_found_at_once(maps: Path) -> None:
    (maps / "maps/1_1.png").unlink()
    Image.new("RGB", (28, 28), (9, 9, 9)).save(maps / "maps/1_2.png")
    (maps / "maps/2_2.png").write_bytes(b"no image")
    with (maps / "index.csv").open("a", encoding="utf-8") as stream:
        stream.write("0_0,smic,s1,positive,maps/0_0.png\n5_0,smic,s1,,maps/0_2.png\n6_0,smic,s5,fear,maps/0_1.png\n")
    found = audit(maps)
    expected = {"missing-file", "constant-media", "unreadable-media", "listed-twice", "two-labels", "two-subjects"}
    assert expected | {"empty-label", "class-not-taught"} <= names(found)
    assert finding(found, "unreadable-media").examples == ("2_2",)
    assert "row 15" in finding(found, "empty-label").examples


def test_a_huge_picture_is_reported_and_not_decoded(tmp_path: Path) -> None:
    Image.new("L", (9000, 9000)).save(tmp_path / "a.png")
    Image.new("RGB", (28, 28)).save(tmp_path / "b.png")
    media = Media.of_files([tmp_path / "a.png", tmp_path / "b.png"])
    assert list(media.broken) == [0]
    assert "9000x9000 pixels" in media.broken[0]


def test_saved_clips_of_frames_are_compared_by_what_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    face = rng.random((3, 32, 32))
    change = rng.normal(0, 0.05, (6, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    change[5] = change[0]
    onset = np.repeat(face[None], 6, axis=0).astype(np.float32)
    spec = [fsmer.InputSpec(kind, (32, 32), ("red", "green", "blue"), "unit") for kind in ("onset", "apex")]
    media = {"onset": onset, "apex": np.clip(onset + change, 0, 1).astype(np.float32)}
    clips = fsmer.ClipSet.from_arrays(media, ["a", "b"] * 3, subjects=list("xyzxyz"), spec=spec)
    found = audit(clips.save(tmp_path / "saved"))
    assert finding(found, "duplicated-media").count == 1
    assert "near-duplicate-media" not in names(found)


def test_near_duplicates_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    maps = rng.random((40, 2, 14, 14))
    maps[7] = 0.5 * maps[3] + 0.2 + 0.01 * rng.random((2, 14, 14))
    maps[9] = 0.3
    plain = []
    for a in range(40):
        for b in range(a + 1, 40):
            left, right = (maps[row] - maps[row].mean(axis=(1, 2), keepdims=True) for row in (a, b))
            size = np.sqrt((left**2).sum() * (right**2).sum())
            if size > 0 and (left * right).sum() / size >= 0.12:
                plain.append((a, b))
    found = near_duplicates(maps, near=0.12)
    assert {(a, b) for a, b, _ in found} == set(plain)
    assert found[0][:2] == (3, 7)
    assert [pair[:2] for pair in near_duplicates(maps)] == [(3, 7)]
    assert near_duplicates([]) == []


# ---- refusals


def test_paths_that_cannot_be_audited_are_refused_in_one_sentence(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        audit(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"report\.json.*index\.csv"):
        audit(tmp_path)
    (tmp_path / "half").mkdir()
    shutil.copyfile(run / "predictions.csv", tmp_path / "half/predictions.csv")
    with pytest.raises(DataError, match=r"report\.json"):
        audit(tmp_path / "half")
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "report.json").write_text('{"format_version": 1', encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        audit(broken)
    empty = tmp_path / "e.csv"
    empty.write_text("clip,fold\n", encoding="utf-8")
    with pytest.raises(DataError, match="rows"):
        audit(empty)
    with pytest.raises(DataError, match="clip"):
        audit(splits(tmp_path / "f.csv", [["x", "1"]], "colour,fold"))
    with pytest.raises(DataError, match="columns"):
        audit(splits(tmp_path / "g.csv", [["x", "1"]], "clip,subject"))
    with pytest.raises(DataError, match="fold"):
        audit(splits(tmp_path / "h.csv", [["x", "1"], ["y", "1"]], "clip,fold"))
    with pytest.raises(DataError, match="calls a side 'maybe'"):
        audit(splits(tmp_path / "i.csv", [["x", "1", "maybe"], ["y", "1", "train"]], "clip,fold,split"))
    with pytest.raises(DataError, match="near="):
        audit(run, near=0)
    with pytest.raises(DataError, match="stated"):
        audit(splits(tmp_path / "j.csv", loso_rows()), stated={"uf1": 0.5})
    (tmp_path / "k.csv").write_bytes(b"clip,fold\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        audit(tmp_path / "k.csv")
    os.mkfifo(tmp_path / "l.csv")
    with pytest.raises(DataError):
        audit(tmp_path / "l.csv")
    with pytest.raises(DataError, match="named pipe"):
        Table.read(tmp_path / "l.csv")
    (tmp_path / "m.csv").write_text("x" * 131_073 + "\n1\n", encoding="utf-8")
    with pytest.raises(DataError, match="clip"):
        audit(tmp_path / "m.csv")


def test_the_words_of_an_audit_name_the_worst_first(tmp_path: Path) -> None:
    rows = [*loso_rows(), ["c1_0", "s1", CLASSES[0], 1, "train"]]
    found = audit(splits(tmp_path / "a.csv", rows))
    assert found.findings[0].severity == "serious"
    assert found.verdict.startswith("Do not trust these figures yet")
    text = str(found)
    assert "a list of splits" in text
    assert "not looked at" in text


def test_words_agree_with_their_numbers(copy: Path, tmp_path: Path) -> None:
    table = pd.read_csv(copy / "predictions.csv", dtype=str)
    for count, words in ((1, "1 clip is answered"), (2, "2 clips are answered")):
        doubled = pd.concat([table, table.iloc[:count]])
        doubled.to_csv(tmp_path / "predictions.csv", index=False)
        assert finding(audit(tmp_path / "predictions.csv"), "duplicated-prediction").message.startswith(words)
    sides = "fold,split,subject,clip,label\n" + "\n".join(
        f"{fold},{'test' if fold == person else 'train'},s{person},c{person}-{row},{'ab'[row]}"
        for fold in range(3)
        for person in range(3)
        for row in range(2)
    )
    (tmp_path / "splits.csv").write_text(f"{sides}\n0,train,s0,c0-9,a\n")
    found = audit(tmp_path / "splits.csv")
    assert finding(found, "subject-on-both-sides").message.startswith("1 subject is on the train and the test side")
    (tmp_path / "splits.csv").write_text(f"{sides}\n0,train,s0,c0-9,a\n1,train,s1,c1-9,a\n")
    found = audit(tmp_path / "splits.csv")
    assert finding(found, "subject-on-both-sides").message.startswith("2 subjects are on the train and the test side")
    assert "3 subjects" in str(found)
    lone = "split,subject,clip,label\ntrain,s1,a,x\ntrain,s2,b,y\ntest,s3,c,x\n"
    (tmp_path / "splits.csv").write_text(lone)
    assert "3 clips, 3 subjects, 1 fold\n" in str(audit(tmp_path / "splits.csv"))

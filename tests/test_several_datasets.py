"""Clips of several data sets in one evaluation: classes that lack, subjects and ids that collide."""

from __future__ import annotations

import pytest

from fsmer.backbones import Backbone
from fsmer.data import ClipSet, concat
from fsmer.errors import DataError
from fsmer.evaluation import evaluate

from tiny_runs import tuned  # isort: skip


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
    with pytest.raises(DataError, match=r"24 clip ids .*'one-00'.*with_prefix.*--prefix"):
        concat([one, other])
    assert len(concat([one.with_prefix(), other.with_prefix()])) == 48

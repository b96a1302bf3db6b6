"""Classes in words: recognized without a labelled clip, corrected by a few, kept when saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import small_model

import fsmer
from fsmer.errors import SupportError
from fsmer.synthetic.clips import ACTION_UNIT_ORDER, synthetic_maps

WORDS = {
    "smile": "lip corner puller",
    "smirk": "dimpler",
    "frown": "brow lowerer",
    "astonished": "inner brow raiser, outer brow raiser",
}


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    """Clips that show just the units of one class of `WORDS`, named by that class."""
    drawn = synthetic_maps(6_000, domain="lab", seed=5)
    shown = {"12": "smile", "14": "smirk", "4": "frown", "1+2": "astonished"}
    names = ["+".join(map(str, np.array(ACTION_UNIT_ORDER)[row])) for row in drawn.units]
    rows = [row for row, name in enumerate(names) if name in shown]
    return fsmer.ClipSet.from_arrays(drawn.maps[rows], [shown[names[row]] for row in rows])


def test_classes_in_words_are_recognized_without_a_labelled_clip(clips):
    recognizer = fsmer.recognizer_of_words("facs-flow", WORDS)
    assert recognizer.support_size == 0
    assert recognizer.classes_.tolist() == list(WORDS)
    report = fsmer.evaluate(
        fsmer.load_protocol("kshot", shot=0), "facs-flow", "zero_shot", clips=clips, descriptions=WORDS
    )
    assert report.uf1 > 0.7
    assert recognizer.score(clips) == pytest.approx(report.acc, abs=0.02)
    assert report.protocol["descriptions"] == WORDS


def test_a_few_labelled_clips_correct_the_words_and_never_harm_on_average(clips):
    model = fsmer.load_model("facs-flow")
    words = fsmer.evaluate(fsmer.load_protocol("kshot", shot=0), model, "zero_shot", clips=clips, descriptions=WORDS)
    for shot in (1, 5):
        protocol = fsmer.load_protocol("kshot", shot=shot, episodes=100)
        both = fsmer.evaluate(protocol, model, "cosine", clips=clips, descriptions=WORDS)
        assert both.uf1 > words.uf1 - 0.005, shot
    clips_alone = fsmer.evaluate(fsmer.load_protocol("kshot", shot=1, episodes=100), model, "cosine", clips=clips)
    one = fsmer.evaluate(
        fsmer.load_protocol("kshot", shot=1, episodes=100), model, "cosine", clips=clips, descriptions=WORDS
    )
    assert one.uf1 > clips_alone.uf1


def test_words_are_kept_when_a_recognizer_is_saved_and_updated(clips, tmp_path: Path):
    recognizer = fsmer.recognizer_of_words("facs-flow", WORDS)
    recognizer.save(tmp_path / "words")
    again = fsmer.Recognizer.load(tmp_path / "words")
    np.testing.assert_allclose(again.predict_proba(clips[:20]), recognizer.predict_proba(clips[:20]), atol=1e-6)
    some = clips[np.concatenate([np.flatnonzero(clips.labels == name)[:5] for name in WORDS])]
    updated = again.update(some)
    direct = fsmer.adapt("facs-flow", some, classes=list(WORDS), descriptions=WORDS)
    np.testing.assert_allclose(updated.predict_proba(clips[:20]), direct.predict_proba(clips[:20]), atol=1e-4)


def test_words_and_known_emotions_may_stand_side_by_side():
    recognizer = fsmer.recognizer_of_words("facs-flow", {"smile": "6+12"}, others=("surprise", "disgust"))
    assert recognizer.classes_.tolist() == ["smile", "surprise", "disgust"]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("facs-flow", {"smile": "6+12"}, "1 different classes are described"),
        ("facs-flow", {}, "0 different classes"),
        (
            "facs-flow",
            {"smile": "6+12", "joy": "teeth"},
            "does not understand the description 'teeth' of the class 'joy'",
        ),
        ("mmnet", {"smile": "6+12", "frown": "4"}, "'mmnet' does not understand the description '6\\+12'"),
    ],
)
def test_words_that_a_model_does_not_understand_are_refused(model, words, message):
    backbone = small_model(model) if model != "facs-flow" else fsmer.load_model(model)
    with pytest.raises(SupportError, match=message):
        fsmer.recognizer_of_words(backbone, words)

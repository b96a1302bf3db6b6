"""`adapt` takes a support set in any form and refuses, in one sentence, what cannot be learnt from."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.backbones import create_model
from fsmer.data import ClipSet, InputSpec
from fsmer.errors import FsmerError, MediaError, SpecMismatchError, SupportError, UnknownNameError
from fsmer.synthetic import synthetic_clips
from fsmer.transfer import adapt, load_method

KNOWS = ("negative", "positive", "surprise")


@pytest.fixture(scope="module")
def clips():
    return synthetic_clips("lab", 40, seed=5)


def test_the_public_name_is_the_function():
    assert fsmer.adapt is adapt


def test_a_set_a_list_and_arrays_with_labels_give_the_same_recognizer(clips):
    backbone = TinyBackbone(knows=KNOWS)
    expected = adapt(backbone, clips[:20]).predict_proba(clips)
    maps, labels = clips.media("flow")[:20], list(clips.labels[:20])
    for given in (list(clips[:20]), (maps, labels), (maps, np.array(labels))):
        np.testing.assert_allclose(adapt(backbone, given).predict_proba(clips), expected, atol=1e-5)


def test_labels_may_be_numbers(clips):
    numbers = clips.codes()[:20] * 2 + 1
    recognizer = adapt(TinyBackbone(), (clips.media("flow")[:20], numbers), "protonet")
    assert recognizer.classes_.tolist() == ["1", "3", "5"]
    assert np.isfinite(recognizer.predict_proba(clips)).all()
    assert recognizer.score(clips.media("flow")[:20], numbers) > 0.5


def test_a_model_may_be_given_by_folder_and_a_method_as_an_object(clips, tmp_path):
    backbone = TinyBackbone(knows=KNOWS)
    folder = backbone.save_pretrained(tmp_path / "weights")
    expected = adapt(backbone, clips[:20], "cosine", steps=10).predict_proba(clips)
    for model, method in ((folder, "cosine"), (str(folder), load_method("cosine")), (backbone, load_method("cosine"))):
        np.testing.assert_allclose(adapt(model, clips[:20], method, steps=10).predict_proba(clips), expected, atol=1e-6)


def test_the_backbone_is_not_changed(clips):
    backbone = TinyBackbone().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    adapt(backbone, clips[:20], "finetune", train_backbone=True, steps=3)
    adapt(backbone, clips[:20])
    assert backbone.training
    assert all((value == before[key]).all() for key, value in backbone.state_dict().items())


def test_columns_follow_the_order_of_classes(clips):
    backbone = TinyBackbone(knows=KNOWS)
    order = ("surprise", "negative", "positive")
    recognizer = adapt(backbone, clips[:20], "protonet", classes=order)
    assert recognizer.classes_.tolist() == list(order)
    sorted_columns = adapt(backbone, clips[:20], "protonet").predict_proba(clips)
    np.testing.assert_allclose(recognizer.predict_proba(clips)[:, [1, 2, 0]], sorted_columns, atol=1e-5)


def test_a_class_without_clips_is_taken_from_what_the_model_knows(clips):
    two = clips.select(label=["negative", "positive"])
    recognizer = adapt(TinyBackbone(knows=KNOWS), two, classes=KNOWS)
    assert (recognizer.predict_proba(clips)[:, 2] > 0).all()
    with pytest.raises(SupportError, match=r"'surprise' has no clip .* does not know it either"):
        adapt(TinyBackbone(knows=("negative",)), two, classes=KNOWS)


def test_a_source_domain_is_learnt_first(clips):
    target = synthetic_clips("clinic", 60, seed=6)
    support = target[np.concatenate([np.flatnonzero(target.labels == name)[:1] for name in target.classes])]
    without = adapt(TinyBackbone(), support)
    with_source = adapt(TinyBackbone(), support, source=synthetic_clips("lab", 200, seed=7))
    assert with_source.score(target) > without.score(target)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda clips: clips.select(label="positive"), SupportError, r"one class .*positive, \d+ clips"),
        (lambda clips: clips[[]], SupportError, "support set is empty"),
        (lambda clips: [], SupportError, "support set is empty"),
        (lambda clips: (np.zeros((0, 3, 28, 28)), []), SupportError, "support set is empty"),
        (lambda clips: ClipSet.from_arrays(clips.media("flow"), None), SupportError, "clip 'mine-00' has no label"),
        (lambda clips: (clips.media("flow")[:3], ["a", "b"]), SupportError, "3 arrays came with 2 labels"),
        (lambda clips: "clips", SupportError, r"as str; give a ClipSet, a list of Clips or"),
        (lambda clips: synthetic_clips("lab", 20, size=56), SpecMismatchError, "56x56.*28x28"),
        (
            lambda clips: (np.random.default_rng(0).random((4, 2, 28, 28)), list("abab")),
            SpecMismatchError,
            "tiny-for-tests",
        ),
        (lambda clips: (_spoilt(clips, np.nan), list(clips.labels)), MediaError, "clip 'mine-05'"),
        (lambda clips: (_spoilt(clips, 0.5), list(clips.labels)), MediaError, "clip 'mine-05'.* constant"),
        (
            lambda clips: ClipSet.from_arrays(clips.media("flow"), list(clips.labels), spec=InputSpec(kind="frames")),
            SpecMismatchError,
            "frames",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_in_one_sentence(clips, change, error, message):
    with pytest.raises(error, match=message) as caught:
        adapt(TinyBackbone(), change(clips))
    assert isinstance(caught.value, FsmerError)


def test_unknown_names_suggest_the_nearest(clips):
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        adapt(TinyBackbone(), clips, "cosin")
    with pytest.raises(UnknownNameError, match="did you mean 'facs-flow'"):
        adapt("facs-flo", clips)
    with pytest.raises(SupportError, match="twice"):
        adapt(TinyBackbone(), clips, classes=("negative", "negative", "positive", "surprise"))


def test_adapting_takes_under_a_second_and_an_answer_hardly_longer_than_the_network():
    backbone, support, clip = _default_case()
    recognizer = adapt(backbone, support)
    inputs = torch.from_numpy(clip.flow[None].copy())
    with torch.inference_mode():
        network = _fastest(lambda: backbone(inputs), 50)
    assert _fastest(lambda: adapt(backbone, support), 3) < 1.0
    for query in (clip, clip.flow):
        assert _fastest(lambda query=query: recognizer.predict(query), 50) < 2 * network + 0.003


@pytest.mark.slow  # an absolute time says nothing on a machine that is busy with something else
def test_one_answer_takes_under_five_milliseconds():
    backbone, support, clip = _default_case()
    recognizer = adapt(backbone, support)
    assert _fastest(lambda: recognizer.predict(clip), 100, time.perf_counter) < 0.005


def _default_case():
    clips = synthetic_clips("lab", 60, seed=8)
    rows = np.concatenate([np.flatnonzero(clips.labels == name)[:5] for name in clips.classes])
    return create_model("facs-flow").eval(), clips[rows], clips[0]


def _fastest(work, rounds, clock=time.thread_time):
    """The thread's own time counts, not what a busy machine makes it wait."""
    found = []
    for _ in range(rounds):
        start = clock()
        work()
        found.append(clock() - start)
    return min(found)


def _spoilt(clips, value):
    maps = clips.media("flow").copy()
    maps[5] = value
    return maps

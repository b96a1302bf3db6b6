"""A recognizer answers in scikit-learn's manners, learns on, and comes back from its folder as it was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.backbones import Backbone, model_hash
from fsmer.data import ClipSet, InputSpec
from fsmer.errors import DataError, FsmerError, MediaError, OutputError, SpecMismatchError, SupportError, WeightsError
from fsmer.evaluation.metrics import score
from fsmer.synthetic import synthetic_clips
from fsmer.transfer import Recognizer, adapt, list_methods, load_method

KNOWS = ("negative", "positive", "surprise")


@pytest.fixture(scope="module")
def clips():
    return synthetic_clips("lab", 60, seed=4)


@pytest.fixture(scope="module")
def recognizer(clips):
    return adapt(TinyBackbone(knows=KNOWS), clips[:30])


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [info.name for info in list_methods()])
def test_answers_have_the_shapes_of_scikit_learn(name, clips):
    recognizer = adapt(TinyBackbone(knows=KNOWS), clips[:30], name)
    queries = clips[30:]
    probabilities = recognizer.predict_proba(queries)
    assert recognizer.classes_.tolist() == list(KNOWS)
    assert probabilities.shape == recognizer.decision_function(queries).shape == (30, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    predicted = recognizer.predict(queries)
    assert (predicted == recognizer.classes_[probabilities.argmax(axis=1)]).all()
    assert (
        recognizer.score(queries) == recognizer.score(queries, queries.labels) == (predicted == queries.labels).mean()
    )


def test_a_clip_a_list_a_set_and_arrays_get_the_same_answer(recognizer, clips):
    expected = recognizer.predict_proba(clips[30:34])
    chosen = [clips[row] for row in range(30, 34)]
    for given in (chosen, clips.media("flow")[30:34], clips.media("flow")[30:34].astype(np.float64)):
        np.testing.assert_allclose(recognizer.predict_proba(given), expected, atol=1e-6)
    np.testing.assert_allclose(recognizer.predict_proba(clips[30]), expected[:1], atol=1e-6)
    np.testing.assert_allclose(recognizer.predict_proba(clips[30].flow), expected[:1], atol=1e-6)


def test_eight_bit_maps_mean_the_same_as_a_clip_and_as_an_array(recognizer, clips):
    maps = np.round(255 * clips.media("flow")[30:33]).astype(np.uint8)
    through_clips = recognizer.predict_proba(ClipSet.from_arrays(maps, None))
    np.testing.assert_allclose(recognizer.predict_proba(maps), through_clips, atol=1e-6)
    np.testing.assert_allclose(recognizer.predict_proba(maps / 255), through_clips, atol=1e-5)


def test_the_same_query_gets_the_same_answer_twice_and_no_matter_what_is_asked_beside_it(recognizer, clips):
    first = recognizer.predict_proba(clips)
    assert np.array_equal(first, recognizer.predict_proba(clips))
    np.testing.assert_allclose(recognizer.predict_proba(clips[[7]])[0], first[7], atol=1e-5)


def test_score_counts_labels_that_are_no_class_as_wrong_and_refuses_uneven_lengths(recognizer, clips):
    maps = clips.media("flow")
    labels = recognizer.predict(clips).astype(object)
    labels[:15] = "contempt"
    assert recognizer.score(maps, labels) == 0.75
    with pytest.raises(DataError, match="60 clips and 2 labels"):
        recognizer.score(maps, ["negative", "positive"])
    with pytest.raises(DataError, match="needs labels"):
        recognizer.score(maps)


def test_queries_of_another_size_kind_or_normalisation_are_refused_by_both_names(recognizer, clips):
    with pytest.raises(SpecMismatchError, match=r"flow 56x56.*flow 28x28"):
        recognizer.predict(synthetic_clips("lab", 3, size=56))
    with pytest.raises(SpecMismatchError, match=r"signed.*minmax"):
        recognizer.predict(synthetic_clips("lab", 3, normalisation="signed"))
    with pytest.raises(SpecMismatchError, match=r"\(2, 3, 14, 14\).*flow 28x28"):
        recognizer.predict(np.zeros((2, 3, 14, 14)))
    frames = ClipSet.from_arrays(clips.media("flow"), None, spec=InputSpec(kind="frames"))
    with pytest.raises(SpecMismatchError, match="frames"):
        recognizer.predict(frames)


def test_broken_maps_are_refused_by_number(recognizer, clips):
    for value in (np.nan, 0.5):
        maps = clips.media("flow")[:4].copy()
        maps[2] = value
        with pytest.raises(MediaError, match="clip number 2"):
            recognizer.predict(maps)


# -- learning on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [info.name for info in list_methods() if load_method(info.name).keeps_backbone])
def test_updating_equals_adapting_with_all_clips_at_once(name, clips):
    backbone = TinyBackbone(knows=KNOWS)
    first = adapt(backbone, clips[:30], name)
    before = first.predict_proba(clips)
    updated = first.update(clips[30:45])
    assert (updated.support_size, first.support_size) == (45, 30)
    np.testing.assert_allclose(
        updated.predict_proba(clips), adapt(backbone, clips[:45], name).predict_proba(clips), atol=1e-4
    )
    assert np.array_equal(first.predict_proba(clips), before)


def test_a_new_class_is_added_behind_the_known_ones(recognizer, clips):
    maps = clips.media("flow")[:6]
    updated = recognizer.update((1 - maps, ["contempt"] * 6))
    assert updated.classes_.tolist() == [*KNOWS, "contempt"]
    assert recognizer.classes_.tolist() == list(KNOWS)
    assert (updated.predict(1 - maps) == "contempt").mean() > 0.8
    assert updated.predict_proba(clips).shape == (60, 4)


def test_updating_a_recognizer_with_a_trained_backbone_keeps_that_backbone(clips):
    trained = adapt(TinyBackbone(), clips[:30], "cosine", train_backbone=True, steps=20)
    updated = trained.update(clips[30:40])
    assert updated.backbone is trained.backbone
    assert updated.support_size == 40


def test_unlabelled_clips_cannot_be_learnt_from(recognizer, clips):
    unlabelled = ClipSet.from_arrays(clips.media("flow")[:2], None)
    with pytest.raises(SupportError, match="no label"):
        recognizer.update(unlabelled)
    with pytest.raises(SupportError, match="empty"):
        recognizer.update([])


# -- the folder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [info.name for info in list_methods()])
def test_a_saved_recognizer_answers_and_learns_as_before(name, clips, tmp_path):
    recognizer = adapt(TinyBackbone(knows=KNOWS, embed_dim=12), clips[:30], name)
    recognizer.save(tmp_path / "r")
    loaded = Recognizer.load(tmp_path / "r")
    assert np.array_equal(loaded.predict_proba(clips), recognizer.predict_proba(clips))
    assert loaded.method == recognizer.method
    assert model_hash(loaded.backbone) == model_hash(recognizer.backbone)
    assert not loaded.backbone.training
    again = loaded.update(clips[30:40]).predict_proba(clips)
    np.testing.assert_allclose(again, recognizer.update(clips[30:40]).predict_proba(clips), atol=1e-6)


def test_what_a_source_taught_is_saved_too(clips, tmp_path):
    recognizer = adapt(TinyBackbone(), clips[:12], source=clips[20:])
    loaded = Recognizer.load(recognizer.save(tmp_path / "r"))
    np.testing.assert_allclose(
        loaded.update(clips[12:20]).predict_proba(clips),
        recognizer.update(clips[12:20]).predict_proba(clips),
        atol=1e-6,
    )


def test_a_source_beside_a_backbone_that_knows_classes_is_saved_whole(clips, tmp_path):
    recognizer = adapt(TinyBackbone(knows=KNOWS), clips[:12], source=clips[20:])
    loaded = Recognizer.load(recognizer.save(tmp_path / "r"))
    before, after = recognizer._model.class_directions(KNOWS), loaded._model.class_directions(KNOWS)
    for name in ("weight", "bias", "known", "centre", "precision"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert before.scale == after.scale


def test_a_trained_backbone_is_saved_too(clips, tmp_path):
    recognizer = adapt(TinyBackbone(), clips[:12], "finetune", train_backbone=True, steps=5)
    loaded = Recognizer.load(recognizer.save(tmp_path / "r"))
    assert np.array_equal(loaded.predict_proba(clips), recognizer.predict_proba(clips))


def test_the_folder_holds_json_and_safetensors_and_neither_media_nor_ids(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["config.json", "model.safetensors"]
    assert clips.ids[0] not in (tmp_path / "r" / "config.json").read_text()
    largest = max(
        value.numel() for key, value in load_file(tmp_path / "r" / "model.safetensors").items() if "support" in key
    )
    assert largest == 30 * 16


def test_another_process_loads_it_without_the_training_data(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    np.save(tmp_path / "maps.npy", clips.media("flow")[:5])
    code = (
        "import sys, socket; sys.path.insert(0, sys.argv[1])\n"
        "def offline(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.socket.connect = offline\n"
        "import numpy as np, tiny_backbone, fsmer\n"
        "r = fsmer.Recognizer.load(sys.argv[2] + '/r')\n"
        "print(*r.predict(np.load(sys.argv[2] + '/maps.npy')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(fsmer.__file__).parent.parent,
    )
    assert done.stdout.split() == recognizer.predict(clips[:5]).tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _cut(folder / "model.safetensors"), "cut short or altered"),
        (lambda folder: _flip(folder / "model.safetensors"), "cut short or altered"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: _edit(folder, lambda config: config["recognizer"].update(version=99)), "newer fsmer .*upgrade"),
        (lambda folder: _edit(folder, lambda config: config.update(format_version=99)), "newer fsmer .*upgrade"),
        (lambda folder: _edit(folder, lambda config: config.pop("recognizer")), "holds a backbone, not a recognizer"),
        (
            lambda folder: _edit(folder, lambda config: config["recognizer"].pop("classes")),
            r"recognizer \(classes",
        ),
        (
            lambda folder: _edit(folder, lambda config: config["recognizer"].update(head="magic")),
            "unknown kind 'magic'",
        ),
        (
            lambda folder: _edit(folder, lambda config: config["arguments"].update(embed_dim=99)),
            "not a recognizer that",
        ),
    ],
)
def test_a_damaged_or_newer_folder_is_refused_in_one_sentence(recognizer, tmp_path, damage, message):
    recognizer.save(tmp_path / "r")
    damage(tmp_path / "r")
    with pytest.raises(WeightsError, match=message) as caught:
        Recognizer.load(tmp_path / "r")
    assert isinstance(caught.value, FsmerError)
    assert "\n" not in str(caught.value)


def _rewrite(folder, change=lambda config: None, tensors=lambda held: None):
    """Change a folder as somebody does who keeps config and weights consistent."""
    held = load_file(folder / "model.safetensors")
    tensors(held)
    save_file(held, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    _edit(folder, lambda config: config.update(weights_sha256=digest))
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_config_that_was_altered_is_refused_and_loads_once_its_checksum_is_gone(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    path = tmp_path / "r" / "config.json"
    config = json.loads(path.read_text())
    config["recognizer"]["classes"].reverse()
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="altered after fsmer wrote it"):
        Recognizer.load(tmp_path / "r")
    _edit(tmp_path / "r", lambda config: None)
    assert Recognizer.load(tmp_path / "r").classes_.tolist() == list(reversed(KNOWS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda it: it["classes"].pop(), "head.weight"),
        (lambda it: it["classes"].append("contempt"), "head.weight"),
        (lambda it: it.update(classes=["a", "a", "b"]), "twice"),
        (lambda it: it.update(classes=3.5), "classes"),
        (lambda it: it.update(classes=[1, 2, 3]), "classes"),
        (lambda it: it.update(version=None), "version"),
        (lambda it: it.update(head=None), "head"),
        (lambda it: it.update(method="cosine"), "method"),
        (lambda it: it["method"].update(params={"scale": -1}), "scale"),
        (lambda it: it["method"].update(params={"no_such": 1}), "no_such"),
        (lambda it: it["method"].update(name="magic"), "magic"),
        (lambda it: it.update(source=5), "source"),
        (lambda it: it.update(source={"classes": ["a"], "scale": 1.0}), "source.weight"),
        (lambda it: it.update(source={"classes": ["a"], "scale": "much"}), "scale"),
        (lambda it: it.update(descriptions=["a"]), "descriptions"),
        (lambda it: it.update(support_size=-3), "support_size"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_refused_by_what_does_not_fit(recognizer, tmp_path, change, message):
    recognizer.save(tmp_path / "r")
    _rewrite(tmp_path / "r", lambda config: change(config["recognizer"]))
    with pytest.raises(WeightsError, match=message) as refused:
        Recognizer.load(tmp_path / "r")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["support.codes"][0].fill_(3), "support.codes"),
        (lambda held: held["support.codes"][0].fill_(-1), "support.codes"),
        (lambda held: held.update({"support.codes": held["support.codes"].float()}), "support.codes"),
        (lambda held: held.update({"support.codes": held["support.codes"].to(torch.complex64)}), "support.codes"),
        (lambda held: held.update({"support.codes": held["support.codes"][:5]}), "support.embeddings"),
        (lambda held: held.pop("support.codes"), "support.codes"),
        (lambda held: held.update({"head.bias": held["head.bias"][:, :2]}), "head.bias"),
        (lambda held: held["head.weight"][0, 0, 0].fill_(np.nan), "head.weight"),
        (lambda held: held["head.bias"][0, 0].fill_(np.inf), "head.bias"),
        (lambda held: held["head.bias"][0, 0].fill_(np.nan), "head.bias"),
        (lambda held: held["support.embeddings"][0, 0].fill_(-np.inf), "support.embeddings"),
        (lambda held: held["backbone.encoder.weight"][0, 0].fill_(np.nan), r"backbone\.encoder\.weight"),
        (lambda held: held.pop("backbone.encoder.weight"), r"missing: encoder\.weight"),
    ],
)
def test_tensors_that_do_not_fit_or_are_not_finite_are_refused_by_name(recognizer, tmp_path, change, message):
    recognizer.save(tmp_path / "r")
    _rewrite(tmp_path / "r", tensors=change)
    with pytest.raises(WeightsError, match=message) as refused:
        Recognizer.load(tmp_path / "r")
    assert "\n" not in str(refused.value)


def test_a_class_that_nothing_is_known_of_stays_out_after_loading(clips, tmp_path):
    known = adapt(TinyBackbone(knows=KNOWS), clips[:30], "protonet")
    absent = adapt(TinyBackbone(knows=(*KNOWS, "contempt")), clips[:30], "protonet", classes=[*KNOWS, "contempt"])
    loaded = Recognizer.load(absent.save(tmp_path / "r"))
    found = loaded.predict_proba(clips)
    assert (found[:, 3] == 0).all()
    np.testing.assert_allclose(found[:, :3], known.predict_proba(clips), atol=1e-6)


def test_a_recognizer_in_half_precision_answers(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    halves = lambda held: {name: value.half() for name, value in held.items() if value.is_floating_point()}  # noqa: E731
    _rewrite(tmp_path / "r", tensors=lambda held: held.update(halves(held)))
    loaded = Recognizer.load(tmp_path / "r")
    np.testing.assert_allclose(loaded.predict_proba(clips), recognizer.predict_proba(clips), atol=0.02)
    assert np.isfinite(loaded.update(clips[:6]).predict_proba(clips)).all()


@pytest.mark.parametrize("name", ["head.weight", "support.embeddings", "backbone.encoder.weight"])
def test_whole_numbers_in_place_of_real_ones_are_refused_by_the_name_of_the_tensor(recognizer, tmp_path, name):
    recognizer.save(tmp_path / "r")
    _rewrite(tmp_path / "r", tensors=lambda held: held.update({name: held[name].to(torch.int32)}))
    with pytest.raises(WeightsError, match=f"{name}.*int32"):
        Recognizer.load(tmp_path / "r")


@pytest.mark.parametrize("answer", ["predict", "predict_proba", "decision_function"])
def test_a_score_beyond_all_numbers_is_refused_by_the_number_of_the_clip(clips, answer):
    found = adapt(TinyBackbone(), clips[:30], "finetune")
    weight = found.head.tensors()["weight"]
    weight[0, 1] = torch.sign(fsmer.embed(found.backbone, clips[:1])[0]) * 3e38
    with pytest.raises(MediaError, match="clip number 0"):
        getattr(found, answer)(clips[:1])


def test_a_recognizer_of_an_earlier_version_without_a_checksum_loads(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    _rewrite(tmp_path / "r")
    assert np.array_equal(Recognizer.load(tmp_path / "r").predict_proba(clips), recognizer.predict_proba(clips))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_named_pipe_in_the_folder_is_not_opened(recognizer, tmp_path, name):
    recognizer.save(tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    os.mkfifo(tmp_path / "r" / name)
    with pytest.raises(WeightsError, match="named pipe"):
        Recognizer.load(tmp_path / "r")


def test_a_recognizer_saved_again_and_again_is_read_whole(recognizer, clips, tmp_path):
    other = recognizer.update(clips[30:40])
    recognizer.save(tmp_path / "r")
    over = threading.Event()

    def save():
        while not over.is_set():
            for one in (other, recognizer):
                one.save(tmp_path / "r")
                time.sleep(0.02)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        assert {Recognizer.load(tmp_path / "r").support_size for _ in range(40)} == {30, 40}
    finally:
        over.set()
        writer.join()


def test_a_folder_that_a_killed_writer_has_moved_aside_is_put_back(recognizer, tmp_path):
    recognizer.save(tmp_path / "r")
    (tmp_path / ".r.old.abc").mkdir()
    (tmp_path / "r").rename(tmp_path / ".r.old.abc" / "r")
    assert Recognizer.load(tmp_path / "r").support_size == 30
    (tmp_path / ".r.old.abc").mkdir()
    (tmp_path / "r").rename(tmp_path / ".r.old.abc" / "r")
    assert fsmer.load_model(tmp_path / "r").name == "tiny-for-tests"


@pytest.mark.parametrize(
    "answer",
    [
        lambda shape: np.full(shape, np.nan),
        lambda shape: np.full(shape, np.inf),
        lambda shape: np.full(shape, 0.5),
        lambda shape: np.broadcast_to([1.5, -0.5, 0.0], shape),
        lambda shape: np.full((shape[0], 2), 0.5),
        lambda shape: np.full((1, shape[1]), 1 / 3),
        lambda shape: None,
    ],
)
def test_answers_that_are_no_probabilities_are_refused_in_an_evaluation(clips, monkeypatch, answer):
    def told(self, queries, **_):
        return answer((len(queries), len(self.classes_)))

    monkeypatch.setattr(Recognizer, "predict_proba", told)
    method = load_method("finetune", train_backbone=True, steps=1)
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=2, episodes=1)
    with pytest.raises(FsmerError, match="the method 'finetune'"):
        fsmer.evaluate(protocol, TinyBackbone(), method, clips=clips, cache=False)


def test_a_folder_with_other_files_is_not_replaced(recognizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        recognizer.save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    recognizer.save(tmp_path / "new")
    recognizer.save(tmp_path / "new")


def test_an_output_place_that_cannot_be_written_is_named(recognizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        recognizer.save(tmp_path / "file")
    with pytest.raises(OutputError, match="below"):
        recognizer.save(tmp_path / "file" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(recognizer, clips, tmp_path):
    recognizer.save(tmp_path / "r")
    recognizer.update(clips[30:40]).save(tmp_path / "r")
    assert Recognizer.load(tmp_path / "r").support_size == 40
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_backbone_that_is_not_registered_is_refused_before_anything_is_written(clips, tmp_path):
    class Unregistered(Backbone):
        def __init__(self):
            super().__init__(input_spec=InputSpec(), embed_dim=3, config={})

        def forward(self, inputs):
            return inputs.mean(dim=(2, 3))

    recognizer = adapt(Unregistered(), clips[:30], "protonet")
    with pytest.raises(WeightsError, match="Unregistered is not registered"):
        recognizer.save(tmp_path / "r")
    assert not list(tmp_path.iterdir())


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    del config["checksum"]  # as somebody does who changes it on purpose
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_no_gradients_are_kept(recognizer):
    assert not any(value.requires_grad for value in recognizer._head.tensors().values())
    assert torch.is_grad_enabled()


class Feeling(str, Enum):  # noqa: UP042 - its str() is the member's name, other than that of StrEnum
    HAPPY = "happiness"
    SAD = "sadness"


def test_labels_that_are_members_of_an_enum_are_their_values_from_end_to_end(tmp_path: Path) -> None:
    drawn = fsmer.synthetic_clips("lab", 12, seed=3)
    flow, labels = drawn.media(), [list(Feeling)[row % 2] for row in range(12)]
    recognizer = fsmer.adapt("facs-flow", (flow, labels), classes=list(Feeling))
    recognizer.save(tmp_path / "mine")
    for one in (recognizer, Recognizer.load(tmp_path / "mine")):
        assert tuple(one.classes_) == ("happiness", "sadness")
        found = one.predict(flow)
        assert set(found.tolist()) <= {"happiness", "sadness"}
        assert one.score(flow, labels) == one.score(flow, [label.value for label in labels]) > 0.5
        assert score(labels, found, list(Feeling)) == score([label.value for label in labels], found)
    more = recognizer.update((flow, [Feeling.SAD] * 6 + ["happiness"] * 6))
    assert tuple(more.classes_) == ("happiness", "sadness")
    with pytest.raises(DataError, match="row 1 of 'labels' is missing"):
        recognizer.score(flow, [None] * 12)

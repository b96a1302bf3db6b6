"""The registry, files of weights, and what `facs-flow` promises besides the contract of every backbone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_backbone
import torch
from safetensors.torch import load_file, save_file

import fsmer
from fsmer.backbones import ClassDirections, create_model, embed, list_models, load_model, model_hash, register_backbone
from fsmer.backbones.embedding import mirror_media
from fsmer.backbones.facs_flow import COARSE_CLASSES, FacsFlow, smoothed
from fsmer.backbones.registry import fresh_model
from fsmer.errors import FsmerError, MediaError, SpecMismatchError, UnknownNameError, WeightsError
from fsmer.plugins import BACKBONES
from fsmer.pretraining import PRETRAINERS, load_pretrainer
from fsmer.pretraining.facs_flow import Recipe
from fsmer.synthetic.clips import ACTION_UNIT_ORDER, EMOTION_ORDER, synthetic_maps
from fsmer.text import without_marks


def maps_for(backbone: fsmer.Backbone, n: int = 4) -> torch.Tensor:
    spec = backbone.input_spec
    return torch.from_numpy(synthetic_maps(n, seed=1, size=spec.size[0], normalisation=spec.normalisation).maps)


def test_wildcards_and_unknown_names():
    assert [info.name for info in list_models("facs*")] == ["facs-flow"]
    assert list_models("zzz*") == []
    for ask in (list_models, load_model, create_model):
        with pytest.raises(UnknownNameError, match="did you mean 'facs-flow'"):
            ask("facs-flo")


def test_the_card_of_a_model_says_how_it_is_trained_and_by_whose_numbers():
    (card,) = list_models("merau")
    for said in (
        "Adam at 0.0012 (flow_encoder 1e-05, from random weights 0.001, projection 0.0012",
        "batches of 32",
        "Source: MERAU, Table 2",
    ):
        assert said in " ".join(card.notes.split()), said
    assert "Training without labels" not in card.notes
    (card,) = list_models("tcae")
    told = " ".join(card.notes.split())
    assert "Training without labels (`pretraining_recipe`): SGD with momentum 0.9 at 0.001, 20,000 steps of 64" in told
    assert "Source: TCAE's published training code" in told
    for card in list_models():
        assert "Training (`recipe`): " in card.notes, card.name


def test_a_card_fills_the_width_that_it_is_given_and_loses_no_word():
    for info in list_models():
        for width in (60, 80):
            page = info.card(width)
            lines = page.splitlines()
            assert all(len(line) <= width or " " not in line.strip() for line in lines), info.name
            assert page.split() == without_marks(info.notes).split(), info.name
            assert "\n\n\n" not in page
    (mmnet,) = list_models("mmnet")
    items = [line for line in mmnet.card().splitlines() if line.startswith("* ")]
    assert [line.split()[1].rstrip(":,") for line in items] == ["2.1", "2.2", "2.3", "3.1", "3.3", "3.5"]
    assert sum(line.startswith("  ") for line in mmnet.card().splitlines()) > 15


def test_constructor_arguments_are_checked_by_name_and_by_value():
    with pytest.raises(UnknownNameError, match=r"unknown argument 'sise' of the model 'fr'.*'size'"):
        create_model("fr", sise=28)
    with pytest.raises(fsmer.FsmerError, match="7 heads do not divide"):
        create_model("mmnet", heads=7)
    with pytest.raises(fsmer.FsmerError, match=r"'facs-flow' cannot be made with widths=8"):
        create_model("facs-flow", widths=8)
    with pytest.raises(fsmer.FsmerError, match=r"'facs-flow'.*scale is .*12\.0.* number"):
        create_model("facs-flow", scale={"a": 12.0})


def test_a_scale_of_cosines_is_a_positive_number():
    for scale in (0, -1.0, 1e9):
        with pytest.raises(WeightsError, match="scaled by"):
            ClassDirections.of([torch.ones(2)], scale=scale, centre=torch.zeros(2))


def test_a_backbone_of_several_media_has_no_single_spec():
    model = create_model("tcae", size=32, width=8, code_dim=16)
    with pytest.raises(SpecMismatchError, match=r"'tcae' expects several media \(onset, apex\)"):
        _ = model.input_spec
    with pytest.raises(SpecMismatchError, match="apex is missing"):
        embed(model, {"onset": np.zeros((1, 3, 32, 32))})
    with pytest.raises(SpecMismatchError, match="2 onset, 1 apex"):
        embed(model, {"onset": np.zeros((2, 3, 32, 32)), "apex": np.zeros((1, 3, 32, 32))})


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_backbone("facs-flow")(type("Other", (FacsFlow,), {}))


# ---- weights files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return create_model("tiny-for-tests").save_pretrained(tmp_path / "saved")


def test_a_weights_file_cut_short_or_altered_is_refused(saved: Path):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cut short or altered"):
        load_model(saved)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightsError, match="cut short or altered"):
        load_model(saved)
    weights.unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "newer fsmer"),
        ({"backbone": "facs-flo"}, "facs-flo"),
        ({"weights_sha256": None}, "weights_sha256"),
        ({"format_version": "one"}, "format_version: .*integer"),
        ({"arguments": ["knows"]}, "arguments: .*not \\['knows'\\]"),
        ({"arguments": {"no_such_argument": 1}}, "no_such_argument"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved: Path, change: dict, message: str):
    path = saved / "config.json"
    config = {**json.loads(path.read_text()), **change, "checksum": None}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(fsmer.FsmerError, match=message):
        load_model(saved)


def test_weights_of_another_shape_are_refused(saved: Path, tmp_path: Path):
    other = create_model("tiny-for-tests", embed_dim=8).save_pretrained(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["arguments"]["knows"] = ["negative"]
    del config["checksum"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"do not fit .*\(of another shape: directions\)") as refused:
        load_model(other)
    assert "\n" not in str(refused.value)


def test_a_folder_without_config_and_broken_json_are_refused(saved: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_model(tmp_path)
    (saved / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        load_model(saved)


def test_missing_weights_are_said_to_come_from_commands_that_this_backbone_has():
    lacking = [one.name for one in fsmer.list_models() if not one.pretrained]
    assert {"fr", "mmnet", "tcae", "mubert_tiny"} <= set(lacking)
    for name in lacking:
        if name.endswith("for-tests"):
            continue
        with pytest.raises(WeightsError, match=f"no weights of '{name}' ship") as refused:
            load_model(name)
        assert f"'fsmer train {name}'" in str(refused.value)
        if f"fsmer pretrain {name}" in str(refused.value):
            load_pretrainer(name)
        else:
            assert name not in PRETRAINERS


def test_a_registered_name_is_that_backbone_even_beside_a_folder_of_that_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved.rename(tmp_path / "fr")
    monkeypatch.chdir(tmp_path)
    assert fresh_model("fr", 0).name == "fr"
    assert fresh_model("./fr", 0).name == load_model("./fr").name == "tiny-for-tests"
    with pytest.raises(WeightsError, match="no weights of 'fr' ship"):
        load_model("fr")


def test_a_hub_name_without_network_says_so(tmp_path: Path):
    code = (
        "import fsmer\n"
        "try:\n    fsmer.load_model('hf://nobody/nothing')\n"
        "except fsmer.FsmerError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("WeightsError the hub repository nobody/nothing")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "path", ["out/my-fr", "out/my-fr/", "./out/my-fr", "out/deep/my-fr", "hf:/owner", "hf://a/b/c", "hf://a"]
)
@pytest.mark.parametrize("parent", [True, False])
def test_a_path_that_is_not_there_is_asked_of_nobody(
    path: str, parent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fsmer.backbones.weights.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    if parent:
        Path("out").mkdir()
    for load in (load_model, FacsFlow.from_pretrained):
        with pytest.raises(WeightsError, match=re.escape(path.rstrip("/").removeprefix("./"))) as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("owner/my-fr.v2", True),
        ("out/x.safetensors", False),
        ("../nope", False),
        ("./x", False),
        ("~/rec", False),
        ("a/b/c", False),
        ("/nope/b", False),
    ],
)
def test_the_hub_is_named_where_a_missing_folder_could_be_a_repository(
    path: str, hint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for load in (load_model, FacsFlow.from_pretrained, fsmer.Recognizer.load):
        with pytest.raises(WeightsError, match=f"^{re.escape(path)} is no folder here; .*save_pretrained") as caught:
            load(path)
        assert (f"hf://{path}" in str(caught.value)) == (hint and load != fsmer.Recognizer.load)


def test_a_hub_repository_is_fetched_by_its_mark(saved: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fetch(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(saved)

    monkeypatch.setattr("fsmer.backbones.weights.snapshot_download", fetch)
    assert (
        type(load_model("hf://lab/tiny")).from_pretrained("hf://lab/tiny", revision="v1").name == load_model(saved).name
    )
    assert asked == [("lab/tiny", None), ("lab/tiny", "v1")]
    assert load_model(Path("hf://lab/tiny")).name == load_model(saved).name
    assert asked[2:] == [("lab/tiny", None)]


def test_what_the_hub_says_is_part_of_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> str:
        raise OSError("Cannot find 'lab/tiny'. \nMore.")

    monkeypatch.setattr("fsmer.backbones.weights.snapshot_download", fail)
    with pytest.raises(WeightsError, match=r"\(Cannot find 'lab/tiny'\); check"):
        load_model("hf://lab/tiny")


def test_pushing_to_the_hub_uploads_exactly_the_weights_folder(saved: Path, monkeypatch: pytest.MonkeyPatch):
    uploaded = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploaded[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
            return "done"

    # Only the network client is replaced; what is written is the real thing.
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert load_model(saved).push_to_hub("lab/tiny") == "done"
    assert uploaded == {"lab/tiny": ["config.json", "model.safetensors"]}


def rewrite(folder: Path, change=lambda config: None, tensors=lambda held: None) -> None:
    """Change config and weights of a folder as somebody does who keeps them consistent."""
    held = load_file(folder / "model.safetensors")
    tensors(held)
    save_file(held, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("checksum", None)
    config["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_tensor(saved: Path, value: float):
    rewrite(saved, tensors=lambda held: held["encoder.weight"][0].fill_(value))
    with pytest.raises(WeightsError, match=r"'encoder\.weight'.*not finite"):
        load_model(saved)


def test_a_config_changed_by_hand_loads_without_its_checksum_and_not_with_it(saved: Path):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "classes": ["a", "b"]}))
    with pytest.raises(WeightsError, match="altered after fsmer wrote it"):
        load_model(saved)
    rewrite(saved, lambda config: config.update(classes=["a", "b"]))
    assert load_model(saved).classes == ("a", "b")


def test_folders_of_earlier_versions_without_a_checksum_load(saved: Path):
    before = model_hash(load_model(saved))
    rewrite(saved)
    assert "checksum" not in (saved / "config.json").read_text()
    assert model_hash(load_model(saved)) == before


def test_weights_in_half_precision_load(saved: Path):
    maps = synthetic_maps(4, seed=1).maps
    expected = embed(load_model(saved), maps)
    rewrite(saved, tensors=lambda held: held.update({name: value.half() for name, value in held.items()}))
    torch.testing.assert_close(embed(load_model(saved), maps), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "3",
        '"text"',
        "{}",
        "[" * 100_000,
        '{"format_version": 1e999}',
        '{"format_version": 1, "backbone": 1, "arguments": {}, "weights_sha256": null}',
    ],
)
def test_a_config_that_is_something_else_is_refused_in_one_sentence(saved: Path, text: str):
    (saved / "config.json").write_text(text)
    with pytest.raises(WeightsError) as refused:
        load_model(saved)
    assert "config.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [None, 3.5, "1e999", [], {}, "tiny", 10**400, -1, True])
@pytest.mark.parametrize("key", ["format_version", "backbone", "arguments", "weights_sha256", "classes"])
def test_entries_of_another_kind_are_refused_or_mean_what_they_meant(saved: Path, key: str, value: object):
    rewrite(saved, lambda config: config.update({key: value}))
    try:
        assert load_model(saved).name == "tiny-for-tests"
    except fsmer.FsmerError as refused:
        assert "\n" not in str(refused)  # noqa: PT017


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_named_pipe_in_place_of_a_file_is_not_opened(saved: Path, name: str):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(WeightsError, match="named pipe"):
        load_model(saved)


def test_a_config_cannot_ask_for_the_weights_of_others(tmp_path: Path):
    small = {"size": 32, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "projection_dim": 16}
    create_model("flow_resnet18", **small).save_pretrained(tmp_path / "flow")
    rewrite(tmp_path / "flow", lambda config: config["arguments"].update(weights="imagenet"))
    with pytest.raises(WeightsError, match="weights asks for other weights"):
        load_model(tmp_path / "flow")
    sizes = {"frame_size": 32, "frame_width": 8, "code_dim": 16, "projection_dim": 8}
    create_model("merau", flow=small, **sizes).save_pretrained(tmp_path / "merau")
    rewrite(tmp_path / "merau", lambda config: config["arguments"].update(tcae="nobody/nothing"))
    with pytest.raises(WeightsError, match="tcae asks for other weights"):
        load_model(tmp_path / "merau")


def test_weights_saved_again_and_again_are_read_whole(tmp_path: Path):
    made = [create_model("tiny-for-tests", embed_dim=width, seed=width) for width in (4, 8)]
    known = {model_hash(one) for one in made}
    made[0].save_pretrained(tmp_path / "w")
    over = threading.Event()

    def save() -> None:
        while not over.is_set():
            for one in made:
                one.save_pretrained(tmp_path / "w")
                time.sleep(0.02)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        assert {model_hash(load_model(tmp_path / "w")) for _ in range(40)} == known
    finally:
        over.set()
        writer.join()


def test_a_live_network_with_weights_that_are_not_finite_is_refused_by_the_name_of_the_tensor():
    clips = fsmer.synthetic_clips("lab", 12)
    backbone = create_model("tiny-for-tests")
    recognizer = fsmer.adapt(backbone, clips)
    with torch.no_grad():
        backbone.projection.weight[0, 0] = math.nan
    doors = (
        lambda: embed(backbone, clips),
        lambda: fsmer.adapt(backbone, clips),
        lambda: fsmer.adapt(backbone, clips, "finetune", train_backbone=True, steps=1),
        lambda: fsmer.train(backbone, clips, epochs=1),
        lambda: recognizer.predict(clips),
        lambda: fsmer.mmd(clips, clips, model=backbone),
        lambda: fsmer.evaluate(fsmer.load_protocol("kshot", shot=2, episodes=2), backbone, clips=clips, cache=False),
    )
    for door in doors:
        with pytest.raises(WeightsError, match=r"'projection\.weight' of the model 'tiny-for-tests'.*not finite"):
            door()


def test_a_buffer_that_is_not_finite_is_refused_whether_or_not_the_method_reads_it(tmp_path: Path):
    clips = fsmer.synthetic_clips("lab", 12)
    backbone = create_model("tiny-for-tests", knows=["negative"])
    recognizer = fsmer.adapt(backbone, clips, "protonet")
    backbone.directions[0, 0] = math.nan
    kshot = fsmer.load_protocol("kshot", shot=2, episodes=2)
    doors = (
        lambda: fsmer.adapt(backbone, clips, "protonet"),
        lambda: fsmer.train(backbone, clips, epochs=1),
        lambda: fsmer.evaluate(kshot, backbone, "protonet", clips=clips, cache=False),
        lambda: backbone.save_pretrained(tmp_path / "weights"),
        lambda: recognizer.save(tmp_path / "recognizer"),
    )
    for door in doors:
        with pytest.raises(WeightsError, match=r"directions' of the .*not finite"):
            door()
    assert not (tmp_path / "recognizer").exists()
    assert not (tmp_path / "weights" / "model.safetensors").exists()


def test_an_embedding_that_is_not_finite_is_refused_by_clip_and_network(monkeypatch: pytest.MonkeyPatch):
    clips = fsmer.synthetic_clips("lab", 6)
    backbone = create_model("tiny-for-tests")
    monkeypatch.setattr(backbone, "forward", lambda maps: torch.full((len(maps), 16), math.inf))
    with pytest.raises(MediaError, match=f"'tiny-for-tests'.*not finite.*{clips.ids[0]}"):
        embed(backbone, clips)
    for wrong in (lambda maps: torch.zeros(len(maps), 3), lambda maps: maps.reshape(7, 7), lambda maps: None):
        monkeypatch.setattr(backbone, "forward", wrong)
        with pytest.raises(fsmer.FsmerError, match="'tiny-for-tests'"):
            embed(backbone, clips)


# ---- facs-flow


def test_facs_flow_is_compact():
    (info,) = list_models("facs-flow")
    assert info.parameters <= 1_500_000


def test_folded_inference_gives_what_the_branches_give_and_follows_changed_weights(rough_backbone):
    backbone = rough_backbone
    maps = maps_for(backbone, 8)
    with torch.no_grad():
        plain = backbone(maps)
    torch.testing.assert_close(embed(backbone, maps.numpy()), plain, rtol=1e-4, atol=1e-5)
    weight = backbone.networks[1].projection.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(-1)
            turned = backbone(maps)
        torch.testing.assert_close(embed(backbone, maps.numpy()), turned, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(turned, plain, atol=1e-3)
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_a_mirrored_face_has_the_same_embedding(rough_backbone):
    maps = maps_for(rough_backbone, 6)
    found, turned = (
        embed(rough_backbone, maps.numpy()),
        embed(rough_backbone, mirror_media(maps, rough_backbone.input_spec).numpy()),
    )
    torch.testing.assert_close(found, turned, rtol=1e-4, atol=1e-5)


def test_directions_are_the_mean_of_the_branches_cosines(rough_backbone):
    backbone = rough_backbone
    directions = backbone.class_directions(["surprise", "negative"])
    assert directions is not None
    maps = maps_for(backbone, 5)
    backbone.mirror, kept = False, backbone.mirror
    seen = smoothed(maps, backbone.smooth)
    try:
        with torch.no_grad():
            found = directions.logits(backbone(maps))
            rows = [COARSE_CLASSES.index(name) for name in ("surprise", "negative")]
            each = [
                torch.nn.functional.cosine_similarity(branch(seen)[:, None], branch.directions[rows][None], dim=-1)
                for branch in backbone.networks
            ]
    finally:
        backbone.mirror = kept
    torch.testing.assert_close(found, backbone.scale * torch.stack(each).mean(dim=0), rtol=1e-4, atol=1e-4)


def test_facs_flow_knows_coarse_classes_and_emotions_and_says_what_it_does_not_know(rough_backbone):
    every = rough_backbone.class_directions([*COARSE_CLASSES, *EMOTION_ORDER])
    assert every is not None
    assert every.known.all()
    some = rough_backbone.class_directions(["panic", "positive"])
    assert some is not None
    assert some.known.tolist() == [False, True]
    assert rough_backbone.class_directions(["panic", "despair"]) is None


def test_classes_described_by_action_units_alone_are_known(rough_backbone):
    backbone = rough_backbone
    found = backbone.class_directions(["others", "4+7", "AU12", "12", "panic"])
    assert found.known.tolist() == [True, True, True, True, False]
    torch.testing.assert_close(found.weight[2], found.weight[3])
    torch.testing.assert_close(found.weight[:4].norm(dim=-1), torch.ones(4))
    parts = found.weight[2].chunk(len(backbone.networks))
    for part, branch in zip(parts, backbone.networks, strict=True):
        row = branch.unit_head.weight[ACTION_UNIT_ORDER.index(12)]
        torch.testing.assert_close(torch.cosine_similarity(part, row, dim=0), torch.tensor(1.0))


def test_shipped_weights_tell_classes_apart_that_are_given_by_their_action_units_alone():
    drawn = synthetic_maps(1500, domain="lab", seed=3)
    names = ("4", "12", "1+2", "17")
    numbers = [tuple(np.array(ACTION_UNIT_ORDER)[row]) for row in drawn.units]
    wanted = [tuple(int(unit) for unit in name.split("+")) for name in names]
    rows = [row for row, units in enumerate(numbers) if units in wanted]
    model = load_model("facs-flow")
    scores = model.class_directions(names).logits(embed(model, drawn.maps[rows]))
    asked = torch.tensor([wanted.index(numbers[row]) for row in rows])
    assert (scores.argmax(dim=-1) == asked).float().mean() > 0.7


def test_an_unknown_class_scores_as_the_mean_of_the_known_ones(rough_backbone):
    directions = rough_backbone.class_directions(["negative", "panic", "positive"])
    scores = directions.logits(embed(rough_backbone, maps_for(rough_backbone).numpy()))
    torch.testing.assert_close(scores[:, 1], scores[:, [0, 2]].mean(dim=1))


def test_shipped_weights_know_synthetic_expressions(repository: Path):
    if not (repository / "pretrained" / "facs-flow").is_dir():
        pytest.fail("pretrained/facs-flow is missing; make it with 'fsmer pretrain facs-flow'")
    clips = fsmer.synthetic_clips("lab", 300, seed=7)
    report = fsmer.evaluate(fsmer.load_protocol("kshot", shot=0), "facs-flow", "zero_shot", clips=clips)
    assert report.uf1 > 0.8
    model = load_model("facs-flow")
    units = synthetic_maps(256, domain="lab", seed=9)
    with torch.no_grad():
        scores = model.unit_logits(embed(model, units.maps)).numpy()
    # The active units rank above the others: chance is 0.5.
    above = [(row[on][:, None] > row[~on][None]).mean() for row, on in zip(scores, units.units, strict=True)]
    assert np.mean(above) > 0.9


def test_the_model_card_is_complete(repository: Path):
    folder = repository / "pretrained" / "facs-flow"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for part in ("must not be used for", "fsmer pretrain facs-flow --seed", "CASME II and SMIC", "1.", "AI Act"):
        assert part in card
    assert model_hash(load_model("facs-flow")) in card


def test_the_recipe_of_the_code_is_the_one_that_made_the_shipped_weights(repository: Path):
    history = json.loads((repository / "pretrained" / "facs-flow" / "history.json").read_text())
    assert history["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert history["seed"] == 0


def test_a_constructor_that_fails_without_a_word_is_refused_with_the_type_of_its_error(monkeypatch: pytest.MonkeyPatch):
    class Silent(tiny_backbone.TinyBackbone):
        def __init__(self) -> None:
            raise ValueError

    monkeypatch.setitem(BACKBONES._held, "silent", Silent)
    with pytest.raises(FsmerError, match=r"'silent'.*ValueError"):
        create_model("silent")

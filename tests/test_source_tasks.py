"""Tasks of the source of a source-then-target protocol, and MERAU's Algorithm 1 on them."""

from __future__ import annotations

import copy
import re
import warnings

import numpy as np
import pytest
import torch
from test_merau import TINY
from typer.testing import CliRunner

import fsmer
from fsmer.cli.app import app
from fsmer.data.media import ArrayStore
from fsmer.episodic import SourceTarget
from fsmer.errors import MissingDatasetError, ProtocolError
from fsmer.meta import ClipTasks, load_algorithm, source_tasks
from fsmer.meta.tasks import source_episodes
from fsmer.published import load_table, run_table
from fsmer.published.cells import EPISODES
from fsmer.published.clips import stand_in_clips
from fsmer.training.preparation import train_part

SOURCE = ("disgust", "happiness", "others", "repression", "surprise")
TARGET = ("disgust", "repression", "surprise", "tense")
FROM_THE_TARGET = 1000.0


def clips_of(model, *, each=12, target=TARGET):
    """CASME II, and CASME whose flow has values that no other clip has."""
    source = stand_in_clips("casme2", SOURCE, each, model.input_specs)
    if not target:
        return source
    other = stand_in_clips("casme", target, 6, model.input_specs)
    stores = {}
    for spec in model.input_specs:
        media = other.media(spec.kind) + (FROM_THE_TARGET if spec.kind == "flow" else 0)
        stores[spec.kind] = ArrayStore(media, other.specs[spec.kind])
    return fsmer.concat([source, fsmer.ClipSet.from_table(other.table, stores)])


@pytest.fixture(scope="module")
def ststnet():
    return fsmer.create_model("ststnet")


@pytest.fixture(scope="module")
def clips(ststnet):
    return clips_of(ststnet)


def merau(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fsmer.create_model("merau", **TINY)


def four_way(**params):
    return fsmer.load_protocol("merau-casme2-to-casme-4way", **params)


NO_SUBSET = SourceTarget(source=("casme2",), way=2, shot=2, query=3)
BY_TARGET = SourceTarget(target=("casme",), shot=5)


@pytest.mark.parametrize("protocol", [four_way(), NO_SUBSET, BY_TARGET], ids=lambda one: one.name)
def test_no_clip_of_the_target_is_ever_in_a_task(protocol, ststnet, clips):
    tasks = source_tasks(protocol, clips, ststnet)
    assert set(tasks.clips.dataset_names) == {"casme2"}
    for number in range(0, 40, 8):
        batch = tasks.batch(number, 8)
        assert float(torch.cat([batch.support, batch.query], dim=1).abs().max()) < FROM_THE_TARGET / 2


def test_meta_train_reads_no_clip_of_the_target(ststnet, clips):
    seen = []
    model = copy.deepcopy(ststnet)
    model.register_forward_pre_hook(lambda _, given: seen.append(float(given[0].abs().max())))
    options = {"steps": 3, "batch": 2, "learning_rate": 1e-3, "validate_every": 1, "validation_tasks": 4}
    others = clips_of(ststnet).with_prefix("other")
    with pytest.warns(UserWarning, match="lacks tense"):
        fsmer.meta_train(model, four_way(), clips=clips, validation=(four_way(), others), **options)
    assert seen
    assert max(seen) < FROM_THE_TARGET / 2


def test_tasks_have_the_classes_that_both_sides_have_and_the_targets_shots(ststnet, clips):
    protocol = four_way(query=4)
    tasks = source_tasks(protocol, clips, ststnet)
    episodes = [tasks.episodes[number] for number in range(20)]
    assert {one.classes for one in episodes} == {("disgust", "repression", "surprise")}
    batch = tasks.batch(0, 3)
    assert (batch.way, batch.support_codes.shape, batch.query_codes.shape) == (3, (3, 15), (3, 12))
    assert all(sorted(codes.tolist()) == [0] * 5 + [1] * 5 + [2] * 5 for codes in batch.support_codes)
    assert "tense" in tasks.note
    assert source_tasks(NO_SUBSET, clips, ststnet).way == 2
    assert source_tasks(four_way(way=2, class_subset=["disgust", "surprise"]), clips, ststnet).note == ""


def test_queries_are_as_many_as_shots_or_as_a_small_class_leaves(ststnet):
    for each, wanted in ((12, 5), (7, 2)):
        found = source_episodes(four_way(), clips_of(ststnet, each=each))
        assert (found.protocol.shot, found.protocol.query) == (5, wanted)
    with pytest.raises(ProtocolError, match=r"has 5 clips.*5 for support and 1 for query"):
        source_tasks(four_way(), clips_of(ststnet, each=5), ststnet)


def test_clips_of_the_target_need_not_be_there_where_the_protocol_names_its_classes(ststnet, clips):
    alone, both = (source_tasks(four_way(), one, ststnet) for one in (clips_of(ststnet, target=()), clips))
    assert torch.equal(alone.batch(0, 4).query, both.batch(0, 4).query)
    assert alone.describe() == both.describe()
    with pytest.raises(MissingDatasetError, match="casme2"):
        source_tasks(four_way(), clips[clips.datasets == "casme"], ststnet)


def test_a_source_with_fewer_than_two_of_the_classes_trains_on_all_of_its_own_and_says_so(ststnet, clips):
    hard = fsmer.load_protocol("merau-casme2-to-casme-hard")
    tasks = source_tasks(hard, clips, ststnet)
    assert tasks.way == 2
    assert {name for number in range(40) for name in tasks.episodes[number].classes} == set(SOURCE)
    assert "'repression' alone" in tasks.note
    assert ", ".join(SOURCE) in tasks.note
    with pytest.warns(UserWarning, match=re.escape(tasks.note)):
        fsmer.meta_train(ststnet, hard, clips=clips, steps=1, learning_rate=1e-3)
    smic = fsmer.load_protocol("merau-casme2-to-smic-3way")
    assert "'surprise' alone" in source_tasks(smic, clips, ststnet).note
    one = clips[(clips.labels == "others") | (clips.datasets == "casme")]
    with pytest.raises(ProtocolError, match=r"two classes or more.*has others"):
        source_tasks(four_way(), one, ststnet)


def test_episodes_of_the_target_are_no_tasks(ststnet, clips):
    protocol = four_way()
    with pytest.raises(ProtocolError, match="source_tasks"):
        ClipTasks(protocol, protocol.prepare(clips), ststnet)


def test_changed_clips_are_the_same_in_any_portion_and_unchanged_ones_stay(ststnet, clips):
    model = fsmer.create_model("flow_resnet18", **TINY["flow"])
    own = clips_of(model)
    plain, changed = (source_tasks(four_way(), own, model, augment=augment) for augment in (False, True))
    whole = changed.batch(2, 4)
    assert torch.equal(whole.support[1:3], changed.batch(3, 2).support)
    assert torch.equal(whole.query_codes, plain.batch(2, 4).query_codes)
    assert not torch.allclose(whole.support, plain.batch(2, 4).support)
    assert plain.describe() != changed.describe()
    with pytest.raises(ProtocolError, match=r"'ststnet'.*no change"):
        source_tasks(four_way(), clips, ststnet, augment=True)
    facs = fsmer.load_model("facs-flow")
    with pytest.raises(ProtocolError, match="--layers all"):
        fsmer.meta_train(facs, four_way(), clips=clips_of(facs), steps=1, augment=True)


def test_neighbour_frames_are_on_the_side_of_their_clip(ststnet):
    plain = clips_of(ststnet, target=())
    near = plain[:30].with_prefix("near")
    # A clip has the value of its number, and a neighbour frame that of its clip and one half more.
    values = np.concatenate([np.arange(len(plain)), np.arange(30) + 0.5])
    spec = ststnet.input_spec
    media = np.broadcast_to(values[:, None, None, None], (len(values), *spec.shape)).astype(np.float32)
    media /= 2 * len(plain)
    media[..., -1] += 0.1  # constant ones are refused
    both = fsmer.concat([plain, near])
    table = both.table.assign(neighbour_of=["" for _ in plain.ids] + plain.ids[:30].tolist())
    clips = fsmer.ClipSet.from_table(table, {"flow": ArrayStore(media, spec)})
    sides = {}
    for neighbours in (False, True):
        batch = source_tasks(four_way(neighbours=neighbours), clips, ststnet).batch(0, 30)
        found = (2 * len(plain) * side.flatten(2)[..., 0].numpy() for side in (batch.support, batch.query))
        sides[neighbours] = [np.round(2 * one) / 2 for one in found]
    assert not any((side % 1).any() for side in sides[False])
    assert all((side % 1).any() for side in sides[True])
    for support, query in zip(*sides[True], strict=True):
        assert not set(np.floor(support)) & set(np.floor(query))
    assert np.array_equal(np.floor(sides[True][0]), sides[False][0])
    with pytest.raises(ProtocolError, match="neighbour_of"):
        source_tasks(four_way(neighbours=True), plain, ststnet)


def test_the_action_unit_detector_is_fitted_on_the_source_before_episodes_train():
    model = merau()
    clips = clips_of(model)
    found = fsmer.meta_train(model, four_way(), clips=clips, steps=1, learning_rate=1e-3)
    expected = copy.deepcopy(model)
    train_part(expected.detector_preparation(source_episodes(four_way(), clips).clips, seed=0))
    for name in ("au_detector.0.running_mean", "au_detector.1.weight", "unit_logits"):
        assert torch.equal(found.state_dict()[name], expected.state_dict()[name]), name
    assert not model.unit_logits.any(), "the model that was given stays as it is"


def test_encoder_and_projections_learn_at_the_protonet_rates_of_table_2():
    fresh = merau()
    trained = copy.deepcopy(fresh)
    clips = clips_of(fresh)
    with torch.no_grad():
        trained.train()({spec.kind: torch.from_numpy(clips.media(spec.kind)[:8]) for spec in fresh.input_specs})

    def moved(model, **params):
        after = fsmer.meta_train(model, four_way(), clips=clips, steps=1, batch=1, **params).state_dict()
        found = {}
        for name, value in model.named_parameters():
            part = name.partition(".")[0].partition("_")
            key = part[0] if part[0] == "projection" else name.partition(".")[0]
            # Adam's first step is as long as the learning rate.
            found[key] = max(found.get(key, 0), float((after[name] - value).detach().abs().max()))
        return found

    with pytest.warns(UserWarning, match=r"'merau' starts from random weights.* 0\.001 .*1e-05"):
        rates = moved(fresh)
    assert (rates["flow_encoder"], rates["projection"]) == pytest.approx((1e-3, 1e-4), rel=0.02)
    assert rates["au_encoder"] == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the encoder of")
        rates = moved(trained)
        assert (rates["flow_encoder"], rates["projection"]) == pytest.approx((1e-5, 1e-4), rel=0.05)
    with pytest.warns(UserWarning, match="hardly move at the learning rate 1e-05"):
        assert moved(fresh, random_encoder_rate=0)["flow_encoder"] == pytest.approx(1e-5, rel=0.05)
    assert load_algorithm("protonet").get_params()["random_encoder_rate"] == 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the encoder of")
def test_algorithm_1_makes_prototypes_of_new_people_better():
    model = merau()
    drawn = fsmer.concat(
        [fsmer.synthetic_clips(name, 120, seed=1, specs=model.input_specs) for name in ("lab", "clinic")]
    )
    stores = {kind: ArrayStore(drawn.media(kind), spec) for kind, spec in drawn.specs.items()}  # drawn once
    both = fsmer.ClipSet.from_table(drawn.table, stores)
    protocol = SourceTarget(source=("lab",), way=3, shot=5, query=10, episodes=40)
    scores = {}
    for steps in (1, 80):
        made = fsmer.meta_train(model, protocol.with_params(query=5), clips=both, steps=steps, batch=1, augment=True)
        scores[steps] = fsmer.evaluate(protocol, made, "protonet", clips=both, cache=False).uf1
    # A constant answer has 1/6.
    assert scores[80] > max(scores[1] + 0.05, 0.4), scores


@pytest.mark.parametrize("name", ["merau-3", "merau-4"])
def test_protonet_columns_of_merau_are_trained_by_algorithm_1_alone(name):
    table = load_table(name)
    (row,) = (number for number, one in enumerate(table.rows) if one.method == "MERAU")
    protonet = [column for column in table.runs(row) if "ProtoNet" in table.columns[column].title]
    assert protonet
    for column in protonet:
        settings = table.settings(row, column)
        assert (settings.method, settings.before) == ("protonet", ("au_detector", "episodes"))
        assert (EPISODES["algorithm"], EPISODES["batch"], EPISODES["augment"]) == ("protonet", 1, True)


def test_a_protonet_cell_judges_the_network_that_algorithm_1_made(tmp_path, monkeypatch):
    import fsmer.published.cells as cells

    judged = []
    run = cells.evaluate
    monkeypatch.setattr(cells, "evaluate", lambda *given, **how: judged.append(given) or run(*given, **how))
    result = run_table("merau-4", synthetic=True, out=tmp_path, seeds=1, rows="MERAU")
    (cell,) = (cell for (_, column), cell in result.cells.items() if column == 1)
    assert cell.status == "measured"
    assert "random_encoder_rate" in cell.reason
    assert "'surprise' alone" in cell.reason
    (model,) = (given[1] for given in judged if given[1].adaptation is not None)
    assert model.adaptation.algorithm == "protonet"
    start = cells.fresh_model("merau", 0, cells.small_settings()["arguments"]["merau"])
    changed = {
        name.partition(".")[0]
        for name, one in start.named_parameters()
        if not torch.equal(one, model.get_parameter(name))
    }
    assert changed == {"au_detector", "flow_encoder", "projection_flow", "projection_code", "projection_logits"}
    assert model.unit_logits.any()
    assert cell.reason in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_algorithm_1_runs_by_its_command(tmp_path):
    model = merau()
    clips_of(model, target=()).save(tmp_path / "casme2")
    arguments = [part for key, value in TINY.items() for part in ("--argument", f"{key}={value}".replace("'", '"'))]
    command = ["meta-train", "merau", "--tasks", "merau-casme2-to-casme-4way", "--data", str(tmp_path / "casme2")]
    command += [*arguments, "--steps", "2", "--batch", "1", "--augment", "--out", str(tmp_path / "weights")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "lacks tense" in done.stderr
    made = fsmer.load_model(tmp_path / "weights")
    assert made.unit_logits.any()
    report = fsmer.evaluate(four_way(episodes=2), made, clips=clips_of(model), cache=False)
    assert report.method["name"] == "protonet"

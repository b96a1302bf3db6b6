"""Pretraining: one seed one result, stop and go on gives the same weights, bad folders and checkpoints are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fsmer
from fsmer.backbones import load_model, model_hash
from fsmer.errors import FsmerError, OutputError, UnknownNameError, WeightsError
from fsmer.pretraining import PRETRAINERS, load_pretrainer
from fsmer.pretraining.facs_flow import Recipe, pretrain_facs_flow

# Small enough for seconds; everything else is the real thing.
QUICK = Recipe(steps=6, batch=32, scatter_clips=256, estimated_clips=16)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain_facs_flow(tmp_path_factory.mktemp("whole") / "weights", seed=3, recipe=QUICK)


def stop_after(steps: int):
    def progress(step: int, total: int, losses: dict[str, float]) -> None:
        if not losses:  # clips are being drawn
            assert total == 16
            return
        assert total == QUICK.steps
        assert losses["loss"] > 0
        if step == steps:
            raise Interrupted

    return progress


def test_stopped_and_resumed_is_the_same_as_never_stopped(finished: Path, tmp_path: Path):
    folder = tmp_path / "weights"
    with pytest.raises(Interrupted):
        pretrain_facs_flow(folder, seed=3, recipe=QUICK, checkpoint_every=2, progress=stop_after(5))
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 4
    drawn, *others = sorted(path.name for path in folder.iterdir())
    assert drawn.startswith(".maps-")
    assert [name[:11] for name in others] == ["checkpoint-", "checkpoint."]
    seen: list[int] = []
    pretrain_facs_flow(folder, seed=3, recipe=QUICK, checkpoint_every=2, progress=lambda step, *_: seen.append(step))
    assert seen == [5, 6]  # neither steps nor clips are made again
    whole, resumed = (load_file(str(path / "model.safetensors")) for path in (finished, folder))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not list(folder.glob("checkpoint*")) + list(folder.glob(".maps*"))


def test_another_seed_gives_other_weights_and_global_random_state_is_left_alone(finished: Path, tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    other = pretrain_facs_flow(tmp_path / "other", seed=4, recipe=QUICK)
    assert torch.equal(torch.rand(1), expected)
    assert model_hash(load_model(other)) != model_hash(load_model(finished))


def test_the_folder_holds_loadable_weights_a_card_and_the_losses(finished: Path):
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "config.json",
        "history.json",
        "model.safetensors",
    ]
    card = (finished / "README.md").read_text()
    assert "| seed | 3 |" in card
    assert "| steps | 6 |" in card
    history = json.loads((finished / "history.json").read_text())
    assert history["losses"][-1]["step"] == 6
    model = load_model(finished)
    # The scatter was measured: symmetric, positive, no longer the identity it starts as.
    assert torch.allclose(model.precision, model.precision.T, atol=1e-3 * float(model.precision.abs().max()))
    assert torch.linalg.eigvalsh(model.precision).min() > 0
    assert not torch.equal(model.precision, torch.eye(len(model.precision)))
    assert isinstance(fsmer.adapt(model, fsmer.synthetic_clips("lab", 60)), fsmer.Recognizer)


def test_no_more_clips_are_drawn_than_the_steps_use(tmp_path: Path):
    drawn: list[int] = []

    def progress(done: int, total: int, losses: dict[str, float]) -> None:
        if not losses:
            assert done == total
            drawn.append(total)

    pretrain_facs_flow(tmp_path, recipe=Recipe(steps=1, batch=32, scatter_clips=256), progress=progress)
    assert drawn == [20]  # 0.6 * 32


def test_an_interrupt_while_clips_are_drawn_keeps_what_is_there(tmp_path: Path):
    def stop(done: int, total: int, losses: dict[str, float]) -> None:
        assert not losses
        assert (done, total) == (16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_facs_flow(tmp_path, seed=3, recipe=QUICK, progress=stop)
    assert [path.name[:6] for path in tmp_path.glob(".maps-*/*")] == ["00000-"]
    seen: list[int] = []
    pretrain_facs_flow(tmp_path, seed=3, recipe=QUICK, progress=lambda done, *_: seen.append(done))
    assert seen == list(range(1, QUICK.steps + 1))


def test_losses_fall():
    losses: list[float] = []
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(steps=30, batch=64, mixup=0, channel_drop=0, scatter_clips=256, estimated_share=0)
        pretrain_facs_flow(folder, recipe=recipe, progress=lambda _step, _steps, now: losses.append(now["loss"]))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_checkpoint_of_another_seed_or_recipe_is_refused_and_a_broken_one_too(tmp_path: Path):
    folder = tmp_path / "weights"
    with pytest.raises(Interrupted):
        pretrain_facs_flow(folder, seed=3, recipe=QUICK, checkpoint_every=2, progress=stop_after(3))
    with pytest.raises(WeightsError, match="another recipe or seed"):
        pretrain_facs_flow(folder, seed=4, recipe=QUICK)
    (tensors,) = folder.glob("checkpoint-*.safetensors")
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        pretrain_facs_flow(folder, seed=3, recipe=QUICK)
    assert pretrain_facs_flow(folder, seed=3, recipe=QUICK, resume=False) == folder


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=0),
        Recipe(batch=1),
        Recipe(batch=100),
        Recipe(estimated_share=1.5),
        Recipe(estimated_clips=250),
        Recipe(estimated_clips=0),
    ],
)
def test_a_recipe_out_of_range_is_refused(recipe: Recipe, tmp_path: Path):
    with pytest.raises(FsmerError, match=r"cannot (train|draw)"):
        pretrain_facs_flow(tmp_path, recipe=recipe)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        pretrain_facs_flow(tmp_path / "file" / "weights", recipe=QUICK, progress=stop_after(1))


def test_every_pretrainer_is_there_and_an_unknown_name_suggests_the_nearest():
    for name in PRETRAINERS:
        assert callable(load_pretrainer(name))
    with pytest.raises(UnknownNameError, match="'facs-flow'"):
        load_pretrainer("facs-flw")


@pytest.mark.parametrize("name", ["fr", "mmnet", "merau"])
def test_a_backbone_that_learns_from_labels_alone_is_known_and_said_not_to_teach_itself(name: str):
    with pytest.raises(FsmerError) as refused:
        load_pretrainer(name)
    said = str(refused.value)
    assert not isinstance(refused.value, UnknownNameError)
    assert said.startswith(f"{name!r} does not teach itself: train it with labels ('fsmer train {name}')")
    assert said.endswith("facs-flow, mubert_small, mubert_tiny, tcae.")

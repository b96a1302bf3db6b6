"""Checkpoints are whole, verified, and never the tensors of one with the state of another."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fsmer.errors import WeightsError
from fsmer.io import json_text, read_bytes
from fsmer.kernels import describe
from fsmer.training.checkpoints import (
    PretrainingState,
    load_checkpoint,
    optimizer_tensors,
    remove_checkpoint,
    restore,
    save_checkpoint,
)

KEY = {"seed": 3}


def save(folder, step):
    state = {"step": step, "seconds": 1.5, "history": [{"step": step, "loss": 0.5}]}
    save_checkpoint(folder, {"weight": torch.full((50,), float(step))}, state, KEY)


def load(folder, key=KEY):
    return load_checkpoint(folder, key, PretrainingState)


def test_what_was_saved_last_is_loaded_and_nothing_else_stays(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    tensors, state = load(tmp_path)
    assert tensors["weight"].eq(2).all()
    assert state == {"step": 2, "seconds": 1.5, "history": [{"step": 2, "loss": 0.5}]}
    assert isinstance(state["history"][0]["step"], int)
    assert len(list(tmp_path.iterdir())) == 2
    remove_checkpoint(tmp_path)
    assert load(tmp_path) is None
    assert not tmp_path.exists()


def test_a_stop_between_two_files_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(source, target):
        if str(target).endswith(".json"):
            raise Stop
        replace(source, target)

    save(tmp_path, 1)
    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(Stop):
            save(tmp_path, 2)
    tensors, state = load(tmp_path)
    assert (tensors["weight"][0], state["step"]) == (1, 1)
    save(tmp_path, 3)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_training_may_go_on_or_end_while_its_checkpoint_is_read(tmp_path, monkeypatch):
    def meanwhile(change):
        def read(path, limit_bytes):
            monkeypatch.undo()
            change()
            return read_bytes(path, limit_bytes)

        monkeypatch.setattr("fsmer.training.checkpoints.read_bytes", read)

    save(tmp_path, 1)
    meanwhile(lambda: save(tmp_path, 2))
    tensors, state = load(tmp_path)
    assert (tensors["weight"][0], state["step"]) == (2, 2)
    meanwhile(lambda: remove_checkpoint(tmp_path))
    assert load(tmp_path) is None


def test_any_changed_byte_of_the_tensors_is_refused(tmp_path):
    save(tmp_path, 1)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(WeightsError, match=r"safetensors.*remove"):
            load(tmp_path)
    for content in (b"", whole[:50], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"remove.*resume"):
            load(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"tensors.*remove"):
        load(tmp_path)
    os.mkfifo(path)
    with pytest.raises(WeightsError, match=r"pipe.*remove"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"step": 1', '"step": 2', 1),
        lambda text: text.replace('"loss": 0.5', '"loss": 0.25'),
        lambda text: text[:-10],
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: "",
        lambda text: text.replace("0.5", "1e999"),
    ],
)
def test_a_changed_state_is_refused(tmp_path, change):
    save(tmp_path, 1)
    path = tmp_path / "checkpoint.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(WeightsError, match=r"remove.*resume"):
        load(tmp_path)


def test_a_checkpoint_that_lost_its_checksum_is_refused_and_one_of_another_run_too(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(WeightsError, match=r"recipe.*seed"):
        load(tmp_path, {"seed": 4})
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    for lost in ("checksum", "tensors"):
        (tmp_path / "checkpoint.json").write_text(json.dumps({name: state[name] for name in state if name != lost}))
        with pytest.raises(WeightsError, match="checkpoint"):
            load(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with_and_replaced(tmp_path):
    save_file({"weight": torch.ones(3)}, str(tmp_path / "checkpoint.safetensors"))
    state = {"step": 7, "seconds": 1.5, "history": []}
    (tmp_path / "checkpoint.json").write_text(json.dumps({"key": KEY, **state}))
    tensors, found = load(tmp_path)
    assert (tensors["weight"].tolist(), found) == ([1.0, 1.0, 1.0], state)
    with pytest.raises(WeightsError, match=r"recipe.*seed"):
        load(tmp_path, {"seed": 4})
    save(tmp_path, 8)
    assert load(tmp_path)[1]["step"] == 8
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_checkpoint_made_with_other_kernels_is_refused_and_one_that_does_not_say_is_gone_on_with(
    tmp_path, monkeypatch
):
    own = describe()
    save(tmp_path, 1)
    for name in own:
        monkeypatch.setattr("fsmer.training.checkpoints.describe", lambda name=name: {**own, name: "other"})
        with pytest.raises(WeightsError, match=rf"kernels.*{name}\b.*FSMER_COMPILE=off.*--no-resume"):
            load(tmp_path)
    monkeypatch.undo()
    assert load(tmp_path)[1]["step"] == 1
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    assert state.pop("arithmetic") == own
    state.pop("checksum")
    (tmp_path / "checkpoint.json").write_text(json_text(state, sealed=True))
    assert load(tmp_path)[1]["step"] == 1


def test_a_checkpoint_of_a_gpu_is_gone_on_with_whatever_compiles_for_the_cpu(tmp_path, monkeypatch):
    state = {"step": 1, "seconds": 0.5, "history": []}
    for device in ("cuda", "cpu"):  # earlier versions wrote what a CPU would use
        save_checkpoint(tmp_path, {"weight": torch.ones(3)}, state, KEY, device)
        with monkeypatch.context() as patch:
            patch.setattr("fsmer.training.checkpoints.describe", lambda: {"kernels": "other"})
            assert load_checkpoint(tmp_path, KEY, PretrainingState, "cuda")[1]["step"] == 1
    assert json.loads((tmp_path / "checkpoint.json").read_text())["arithmetic"] == describe()


def test_a_state_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "checkpoint.json").symlink_to(tmp_path / "checkpoint.json")
    with pytest.raises(WeightsError, match=r"link.*remove"):
        load(tmp_path)


def test_the_tensors_get_the_permissions_of_the_state(tmp_path):
    save(tmp_path, 1)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_state_of_an_optimiser_that_lacks_entries_is_refused(kind):
    def made():
        model = nn.Linear(2, 2)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.1, **options)

    model, optimizer = made()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = {f"model.{name}": value for name, value in model.state_dict().items()} | optimizer_tensors(optimizer)
    restore(whole, {"model": made()[0]}, made()[1])
    entries = [name for name in whole if name.startswith("optimizer.")]
    for name in entries:
        fresh, other = made()
        changed = [
            {key: value for key, value in whole.items() if key != name},
            whole | {name: torch.zeros(5)},
            whole | {name.replace(".0.", ".9.").replace(".1.", ".9."): whole[name]},
            whole | {f"{name}x": whole[name]},
        ]
        # Without its only entry, a parameter is one that has had no gradient yet.
        for tensors in changed[1:] if kind is torch.optim.SGD else changed:
            with pytest.raises(WeightsError, match="version"):
                restore(tensors, {"model": fresh}, other)


@pytest.mark.parametrize("fused", [True, False])
def test_weights_whose_channels_lie_together_go_on_as_if_there_had_been_no_stop(fused, tmp_path):
    def made():
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.arange(48.0).view(1, 3, 4, 4) / 48).square().sum().backward()
        optimizer.step()

    (layer, optimizer), (resumed, other) = made(), made()
    step(layer, optimizer)
    tensors = {f"layer.{name}": value for name, value in layer.state_dict().items()} | optimizer_tensors(optimizer)
    save_checkpoint(tmp_path, tensors, {"step": 1, "seconds": 0.0, "history": []}, KEY)
    restore(load(tmp_path)[0], {"layer": resumed}, other)
    step(layer, optimizer)
    step(resumed, other)
    assert torch.equal(layer.weight, resumed.weight)


def test_tensors_that_do_not_fit_the_network_are_refused():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    good = {"model.weight": torch.zeros(2, 2), "model.bias": torch.zeros(2)}
    for tensors in ({}, good | {"model.bias": torch.zeros(3)}, good | {"optimizer.x.step": torch.zeros(1)}):
        with pytest.raises(WeightsError, match="version"):
            restore(tensors, {"model": module}, optimizer)

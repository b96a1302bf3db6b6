"""Checkpoints are whole, verified, and never the tensors of one with the state of another."""

import json
import os

import pytest
import torch
from torch import nn

from fsmer.checkpoints import (
    PretrainingState,
    load_checkpoint,
    remove_checkpoint,
    restore,
    save_checkpoint,
)
from fsmer.errors import WeightsError
from fsmer.io import file_digest

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
    assert not list(tmp_path.iterdir())


def test_a_stop_between_two_files_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(*_, **__):
        raise Stop

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("fsmer.checkpoints.write_json", stop)
        with pytest.raises(Stop):
            save(tmp_path, 2)
    tensors, state = load(tmp_path)
    assert (tensors["weight"][0], state["step"]) == (1, 1)
    save(tmp_path, 3)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_training_may_go_on_or_end_while_its_checkpoint_is_read(tmp_path, monkeypatch):
    def meanwhile(change):
        def read(path):
            monkeypatch.undo()
            change()
            return file_digest(path)

        monkeypatch.setattr("fsmer.checkpoints.file_digest", read)

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
        with pytest.raises(WeightsError, match=r"altered after.*remove it"):
            load(tmp_path)
    for content in (b"", whole[:50], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="remove it or start with resume off"):
            load(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"No such file.*remove it"):
        load(tmp_path)
    os.mkfifo(path)
    with pytest.raises(WeightsError, match=r"named pipe.*remove it"):
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
    with pytest.raises(WeightsError, match="remove it or start with resume off"):
        load(tmp_path)


def test_a_checkpoint_without_checksums_is_refused_and_one_of_another_run_too(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(WeightsError, match="another recipe or seed"):
        load(tmp_path, {"seed": 4})
    state = json.loads((tmp_path / "checkpoint.json").read_text())
    del state["checksum"], state["tensors"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(state))
    with pytest.raises(WeightsError, match="another version of fsmer"):
        load(tmp_path)


def test_tensors_that_do_not_fit_the_network_are_refused():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    good = {"model.weight": torch.zeros(2, 2), "model.bias": torch.zeros(2)}
    for tensors in ({}, good | {"model.bias": torch.zeros(3)}, good | {"optimizer.x.step": torch.zeros(1)}):
        with pytest.raises(WeightsError, match="does not fit this version"):
            restore(tensors, {"model": module}, optimizer)

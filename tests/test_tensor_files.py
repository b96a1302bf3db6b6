"""Tensor files: readable by whom the umask says, and no number that is not finite gets in."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from fsmer.errors import WeightsError
from fsmer.io import atomic_path
from fsmer.tensor_files import read_tensors, tensor_shapes, write_tensors


def test_tensors_come_back_with_their_shapes(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    held = {"a": base, "view": base.T, "number": torch.tensor(3)}
    with atomic_path(tmp_path / "x.safetensors") as temporary:
        write_tensors(temporary, held)
    assert tensor_shapes(tmp_path / "x.safetensors") == {"a": (2, 3), "view": (3, 2), "number": ()}
    found = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in held.items())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    save_file({"good": torch.zeros(2), "head.bias": torch.tensor([0.0, value])}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"head\.bias"):
        read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_could_not_be_read_again_is_not_written(tmp_path, value):
    held = {"good": torch.zeros(2), "bias": torch.tensor([0.0, value])}
    with pytest.raises(WeightsError, match="'bias'"):
        write_tensors(tmp_path / "x.safetensors", held)
    assert not any(tmp_path.iterdir())
    if value == -float("inf"):
        write_tensors(tmp_path / "x.safetensors", held, unbounded=["bias"])
        assert torch.equal(read_tensors(tmp_path / "x.safetensors", unbounded=["bias"])["bias"], held["bias"])


def test_what_is_no_tensor_file_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").touch()
    for name in ("pipe", "text", "empty", "missing", "."):
        for reader in (read_tensors, tensor_shapes):
            with pytest.raises(WeightsError, match="again"):
                reader(tmp_path / name)

"""Checkpoints of long trainings: tensors as safetensors, the rest as JSON, both written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fsmer.errors import WeightsError
from fsmer.io import atomic_path, write_json

__all__ = ["has_checkpoint", "load_checkpoint", "optimizer_tensors", "remove_checkpoint", "restore", "save_checkpoint"]

TENSORS = "checkpoint.safetensors"
STATE = "checkpoint.json"


def has_checkpoint(folder: Path) -> bool:
    """Whether an interrupted training left something to go on from."""
    return (folder / STATE).is_file()


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], key: Any) -> None:
    """Write the tensors first, then the state that points at them.

    Parameters
    ----------
    folder : Path
    tensors : mapping of str to Tensor
    state : mapping
        Plain values.
    key : plain value
        What a run must have in common with the checkpoint to go on from it (recipe, seed, clips).
    """
    with atomic_path(folder / TENSORS) as temporary:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, str(temporary))
    write_json(folder / STATE, {"key": key, **state})


def load_checkpoint(folder: Path, key: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote, provided that it belongs to a run with the same `key`.

    Raises
    ------
    WeightsError
        It cannot be read, or was made with another key.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / TENSORS))
        found = state.pop("key")
    except Exception as error:
        raise WeightsError(
            f"the checkpoint in {folder} cannot be read ({error}); remove it or start with resume off."
        ) from error
    if found != json.loads(json.dumps(key)):
        raise WeightsError(
            f"the checkpoint in {folder} was made with another recipe or seed, or on other clips; remove it, choose "
            "another folder or turn resume off."
        )
    return tensors, state


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that has come to its end."""
    for name in (TENSORS, STATE):
        (folder / name).unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Put tensors back into modules (by the prefix of their names) and into the optimiser."""
    for prefix, module in modules.items():
        module.load_state_dict(
            {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
        )
    if optimizer is None:
        return
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".")
            entries.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})

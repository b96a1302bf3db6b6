"""Checkpoints of long trainings: tensors as safetensors, the rest as JSON that names them, written whole or not at all.

The tensors lie in a file that has the digest of its content in its name. A checkpoint is what the sealed JSON says, so
that a stop at any moment leaves the one before or the new one, never tensors of one with the state of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from fsmer.errors import WeightsError
from fsmer.io import CHECKSUM, atomic_path, digest, file_digest, remove_unfinished, write_json
from fsmer.schema import Count, checked, read_json
from fsmer.tensor_files import read_tensors

__all__ = [
    "PretrainingState",
    "TrainingState",
    "load_checkpoint",
    "optimizer_tensors",
    "remove_checkpoint",
    "restore",
    "save_checkpoint",
]

STATE = "checkpoint.json"
TENSORS = "checkpoint*.safetensors"
REMEDY = "remove it or start with resume off (--no-resume)"


class PretrainingState(TypedDict):
    """State of a pretraining between two steps."""

    step: Count
    seconds: float
    history: list[dict[str, int | float]]


class TrainingState(TypedDict):
    """State of a training between two epochs."""

    epoch: Count
    losses: list[float]


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], key: Any) -> None:
    """Write the tensors first, then the state that names them; the checkpoint before goes last.

    Parameters
    ----------
    folder : Path
    tensors : mapping of str to Tensor
    state : mapping
        Plain values.
    key : plain value
        What a run must have in common with the checkpoint to go on from it (recipe, seed, clips).
    """
    content = safetensors.torch.save(
        {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    )
    name = f"checkpoint-{digest(content)}.safetensors"
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(content)
    write_json(folder / STATE, {"key": key, "tensors": name, **state}, sealed=True)
    _remove_tensors(folder, but=name)


def load_checkpoint(folder: Path, key: Any, schema: type[Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_checkpoint` wrote, provided that it belongs to a run with the same `key`; ``None`` where nothing is.

    Parameters
    ----------
    folder : Path
    key : plain value
    schema : type
        What the state must be, see `fsmer.schema.read_json`.

    Raises
    ------
    WeightsError
        It cannot be read, was altered, comes from another version of fsmer, or was made with another key.
    """
    while (stamp := _stamp(folder)) is not None:
        try:
            return _verified(folder, key, schema)
        except WeightsError:
            # Another training in the same folder may have gone on, or come to its end, meanwhile.
            if _stamp(folder) == stamp:
                raise
    return None


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        found = (folder / STATE).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _verified(folder: Path, key: Any, schema: type[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = read_json(folder / STATE, dict[str, Any], what="a checkpoint", remedy=REMEDY, error=WeightsError)
    found, name = state.pop("key", None), state.pop("tensors", None)
    if not isinstance(name, str) or state.pop(CHECKSUM, None) is None:
        raise WeightsError(f"the checkpoint in {folder} comes from another version of fsmer; {REMEDY}.")
    if found != json.loads(json.dumps(key)):
        raise WeightsError(
            f"the checkpoint in {folder} was made with another recipe or seed, or on other clips; remove it, choose "
            "another folder or turn resume off."
        )
    path = folder / Path(name).name
    try:
        if f"checkpoint-{file_digest(path)}.safetensors" != name:
            raise WeightsError(f"{path} was altered after fsmer wrote it")
        tensors = read_tensors(path)
    except (OSError, WeightsError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise WeightsError(f"the tensors of the checkpoint in {folder} cannot be read: {reason}; {REMEDY}.") from error
    state = checked(state, schema, folder / STATE, what="a checkpoint", remedy=REMEDY, error=WeightsError)
    return tensors, state


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that has come to its end, and what killed ones left half written."""
    (folder / STATE).unlink(missing_ok=True)
    _remove_tensors(folder)
    remove_unfinished(folder)


def _remove_tensors(folder: Path, but: str = "") -> None:
    for path in folder.glob(TENSORS):
        if path.name != but:
            path.unlink(missing_ok=True)


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
    """Put tensors back into modules (by the prefix of their names) and into the optimiser.

    Raises
    ------
    WeightsError
        They do not fit: another version of fsmer wrote them.
    """
    try:
        for prefix, module in modules.items():
            own = {
                name.removeprefix(f"{prefix}."): value
                for name, value in tensors.items()
                if name.startswith(f"{prefix}.")
            }
            module.load_state_dict(own)
        if optimizer is None:
            return
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".")
                entries.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"the checkpoint does not fit this version of fsmer ({reason}); {REMEDY}.") from error

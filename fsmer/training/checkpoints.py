"""Checkpoints of long trainings: tensors as safetensors, the rest as JSON that names them, written whole or not at all.

The tensors lie in a file that has the digest of its content in its name. A checkpoint is what the sealed JSON says, so
that a stop at any moment leaves the one before or the new one, never tensors of one with the state of another. Earlier
versions wrote two files without digests, which are read unchecked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import FiniteFloat
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import TypedDict

from fsmer.errors import WeightsError
from fsmer.io import CHECKSUM, atomic_path, digest, file_digest, json_text, read_bytes, remove_unfinished
from fsmer.kernels import describe
from fsmer.schema import Count, checked, read_json
from fsmer.tensor_files import check_finite, under, write_tensors

__all__ = [
    "PretrainingState", "TrainingState", "history_file", "load_checkpoint", "remove_checkpoint", "restore",
    "running_folder", "save_checkpoint",
]  # fmt: skip

STATE = "checkpoint.json"
# The most bytes that tensors may have.
TENSOR_BYTES = 64 << 30
Loaded = tuple[dict[str, Tensor], dict[str, Any]]
REMEDY = "remove it or start with resume off (--no-resume)"


class PretrainingState(TypedDict):
    """State of a pretraining between two steps."""

    step: Count
    seconds: FiniteFloat
    history: list[dict[str, int | FiniteFloat]]


class TrainingState(TypedDict):
    """State of a training between two epochs."""

    epoch: Count
    losses: list[FiniteFloat]


def running_folder(out: Path) -> Path:
    """Where the checkpoints lie of a training whose results go to the folder `out`, which appears whole at the end."""
    return out.with_name(f"{out.name}.training")


def history_file(out: Path) -> Path:
    """Where the losses are of a training whose results went to the folder `out`."""
    return out.with_name(f"{out.name}.history.json")


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], key: Any, device: str = "cpu"
) -> None:
    """Write the tensors first, then the state (plain values) that names them; the checkpoint before goes last.

    `key`, a plain value, is what a run must have in common with the checkpoint to go on from it (recipe, seed, clips);
    `device` is the type of that which is trained on.
    """
    with atomic_path(folder / STATE) as temporary:
        # Beside the new state, since their name is known only when they are written.
        new = temporary.with_name("checkpoint-new.safetensors")
        write_tensors(new, tensors)
        name = f"checkpoint-{file_digest(new)}.safetensors"
        content = {"key": key, "arithmetic": _arithmetic(device), "tensors": name, **state}
        temporary.write_text(json_text(content, sealed=True), encoding="utf-8")
        shutil.copymode(temporary, new)
        os.replace(new, folder / name)
    _remove_tensors(folder, but=name)


def load_checkpoint(folder: Path, key: Any, schema: type[Any], device: str = "cpu") -> Loaded | None:
    """What `save_checkpoint` wrote, its state read as `schema`; ``None`` where nothing is.

    Raises `WeightsError` where it cannot be read, was altered, comes from another version of fsmer, or was made with
    another key or, for training on a CPU, other arithmetic (see `fsmer.kernels.describe`).
    """
    while (stamp := _stamp(folder)) is not None:
        try:
            return _verified(folder, key, schema, _arithmetic(device))
        except WeightsError:
            # Another training in the same folder may have gone on, or come to its end, meanwhile.
            if _stamp(folder) == stamp:
                raise
    return None


def _arithmetic(device: str) -> dict[str, str]:
    """What of this machine can change a digit of a training there."""
    return describe() if device == "cpu" else {}


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        found = (folder / STATE).stat()
    except FileNotFoundError:
        return None
    except OSError:
        return 0, 0  # reading it says what is wrong
    return found.st_ino, found.st_mtime_ns


def _verified(folder: Path, key: Any, schema: type[Any], here: Mapping[str, str]) -> Loaded:
    state = read_json(folder / STATE, dict[str, Any], what="a checkpoint", remedy=REMEDY, error=WeightsError)
    seal, found, arithmetic, name = (state.pop(entry, None) for entry in (CHECKSUM, "key", "arithmetic", "tensors"))
    if (seal is None) != (name is None) or not isinstance(name, str | None) or not isinstance(arithmetic, dict | None):
        raise WeightsError(f"the checkpoint in {folder} comes from another version of fsmer; {REMEDY}.")
    if found != json.loads(json.dumps(key)):
        raise WeightsError(
            f"the checkpoint in {folder} was made with another recipe or seed, or on other clips; remove it, choose "
            "another folder or turn resume off."
        )
    # Earlier versions did not write with which kernels they trained, and no other device than a CPU uses any.
    others = [(entry, there) for entry, there in (arithmetic or {}).items() if here and there != here.get(entry)]
    differing = [f"{entry} {there} there and {here.get(entry)} here" for entry, there in others]
    if differing:
        raise WeightsError(
            f"the checkpoint in {folder} was made with other kernels ({', '.join(differing)}), whose results differ by "
            f"rounding; go on with the same (FSMER_COMPILE=off does without), or {REMEDY}."
        )
    path = folder / Path(name or "checkpoint.safetensors").name
    try:
        content = read_bytes(path, TENSOR_BYTES)
        if name is not None and f"checkpoint-{digest(content)}.safetensors" != name:
            raise WeightsError(f"{path} was altered after fsmer wrote it")
        tensors = safetensors.torch.load(content)
        check_finite(tensors, path)
    except (OSError, ValueError, KeyError, SafetensorError, WeightsError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise WeightsError(f"the tensors of the checkpoint in {folder} cannot be read: {reason}; {REMEDY}.") from error
    state = checked(state, schema, folder / STATE, what="a checkpoint", remedy=REMEDY, error=WeightsError)
    return tensors, state


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training that has come to its end, what killed ones left half written, and the folder
    where nothing else is in it."""
    (folder / STATE).unlink(missing_ok=True)
    _remove_tensors(folder)
    remove_unfinished(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove_tensors(folder: Path, but: str = "") -> None:
    for path in folder.glob("checkpoint*.safetensors"):
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


def restore(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put tensors back into modules (by the prefix of their names) and into the optimiser.

    Raises `WeightsError` where they do not fit: another version of fsmer wrote them.
    """
    try:
        for prefix, module in modules.items():
            module.load_state_dict(under(f"{prefix}.", tensors))
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".")
                entries.setdefault(int(index), {})[entry] = value
        parameters = [value for group in optimizer.param_groups for value in group["params"]]
        needed = {"step", "exp_avg", "exp_avg_sq"}
        if isinstance(optimizer, torch.optim.SGD):
            needed = {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
        for number, moments in entries.items():
            if not 0 <= number < len(parameters) or set(moments) != needed:
                raise ValueError(f"the optimiser's state of parameter {number} holds {', '.join(sorted(moments))}")
            like = parameters[number]
            for name, value in moments.items():
                if value.shape != (() if name == "step" else like.shape) or not value.is_floating_point():
                    raise ValueError(f"{name} of parameter {number} has another shape or type")
            # A fused step takes a weight and its moments for laid out alike, and files hold no layout.
            moments |= {name: torch.empty_like(like).copy_(value) for name, value in moments.items() if name != "step"}
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"the checkpoint does not fit this version of fsmer ({reason}); {REMEDY}.") from error

"""Tensors in safetensors files: written by one rule, and checked before they are used."""

import contextlib
import errno
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsmer.errors import WeightsError
from fsmer.io import check_regular

__all__ = ["check_finite", "read_tensors", "tensor_shapes", "under", "write_tensors"]

T = TypeVar("T")


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, unbounded: Collection[str] = ()
) -> None:
    """Write tensors to a path of `fsmer.io.atomic_path` after `check_finite`; ``OSError`` where that cannot be."""
    check_finite(tensors, "the weights to be saved", unbounded=unbounded)
    # Tensors that share memory (views of one class table, tied weights) cannot be stored as they are.
    stored = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    try:
        save_file(stored, str(path), metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors hands on what the system said as text alone.
        code = re.search(r"os error (\d+)", str(error))
        number = int(code.group(1)) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error)) from error


def tensor_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file by their names, from its header alone; `WeightsError` where it cannot be read."""
    with _readable(path), safe_open(str(path), framework="pt") as held:
        return {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118


def read_tensors(path: str | os.PathLike[str], *, unbounded: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of a file by their names, after `check_finite`; `WeightsError` where it is no safetensors file."""
    with _readable(path):
        tensors = load_file(str(path))
    check_finite(tensors, path, unbounded=unbounded)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], where: object, *, unbounded: Collection[str] = ()) -> None:
    """Raise `WeightsError` if a tensor from `where` is not finite; those in `unbounded` may hold minus infinity."""
    for name, value in tensors.items():
        if not (value.is_floating_point() or value.is_complex()):
            continue
        if value.dtype.itemsize == 1:
            value = value.float()  # of these there is no arithmetic
        # A sum is not finite if any of its terms is not, and costs a fraction.
        if math.isfinite(abs(value.sum().item())):
            continue
        finite = torch.isfinite(value)
        if name in unbounded:
            finite |= value == -math.inf
        if not finite.all():
            count = int((~finite).sum())
            raise WeightsError(
                f"the tensor {name!r} of {where} holds {count:,} values that are not finite (NaN or infinity); "
                "fetch or save the weights again, or train anew with a lower learning rate."
            )


def under(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """Entries whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        check_regular(path)
        yield
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is not a valid safetensors file ({error}); fetch or save the weights again."
        ) from error
    # safetensors opens a file twice, and says so by a RuntimeError where it was replaced by a smaller one in between.
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{path} cannot be read: {reason}; fetch or save the weights again.") from error

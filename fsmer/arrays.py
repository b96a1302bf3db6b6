"""Arrays in any form that callers have them in, as plain NumPy arrays."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.errors import DataError

__all__ = ["as_float32", "plain_array"]


def plain_array(values: Any, what: str = "the array") -> NDArray[Any]:
    """Real numbers as a plain array of the machine's byte order; what is one already is not copied.

    Taken are NumPy arrays and their kinds (masked without a masked value, object, big-endian), torch tensors (on any
    device, with a gradient, sparse, quantised, of any real type), lists of these, tables and buffers. Anything else,
    and what has no known values (masked ones, tensors without data), is a `DataError`; `what` names it in the message.
    """
    try:
        array = _as_numpy(values)
        if array.dtype.kind == "O":
            with np.errstate(all="ignore"):
                array = array.astype(np.float64)
    # Whatever a foreign kind of array raises when it is asked for its values.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _refused(what, values, reason) from error
    if array.dtype.kind not in "biuf":
        raise _refused(what, values, f"its values are of the type {array.dtype}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Real numbers as float32; one that is too large becomes infinite, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array, dtype=np.float32)


def _as_numpy(values: Any) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return _of_tensor(values)
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError("some of its values are masked; fill them in or leave their clips out")
        values = values.data
    if isinstance(values, list | tuple) and any(hasattr(value, "__array__") for value in values):
        return np.asarray([_as_numpy(value) for value in values])
    return np.asarray(values)


def _of_tensor(tensor: Any) -> NDArray[Any]:
    import torch

    if tensor.is_meta:
        raise ValueError("it is on the device 'meta', which keeps no values")
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    if any(getattr(plain, "names", ())):  # older versions of torch let axes have names
        plain = plain.rename(None)
    plain = plain.resolve_conj().resolve_neg().cpu()
    if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
        plain = plain.float()  # types that NumPy does not have
    found: NDArray[Any] = plain.numpy()
    return found


def _refused(what: str, values: Any, reason: str) -> DataError:
    return DataError(
        f"{what} was given as {type(values).__name__}, which cannot be read as real numbers ({reason.rstrip('.')}); "
        "give a NumPy array or a torch tensor of real numbers."
    )

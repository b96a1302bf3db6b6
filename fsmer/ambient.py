"""Settings that the process or the thread around a call has changed, set aside while the library works.

torch keeps its default type, its deterministic mode and the precision of its matrix products once a process; default
device, autocast, the modes of autograd and the handling of denormal numbers once a thread, as NumPy keeps what it does
about overflow. `library_settings` sets all of them to what they are in a fresh process and restores them afterwards.
What torch keeps once a process is restored when the last thread has left the library: a thread that changes it while
another one is inside changes the arithmetic of that one, and meets the library's settings itself until then.
"""

import functools
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.overrides import _pop_mode_temporarily

__all__ = ["guarded", "library_settings"]

# What NumPy does in a fresh process.
_FLOATING_POINT = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_AUTOCAST_DEVICES = ("cpu", "cuda")
_SMALLEST = 5e-324
# Precision of float32 products in a fresh process, in the order in which they are set: what is not set for a backend
# ("none") is that of all. "ieee" is what "none" means where products are concerned.
_PRECISIONS = {
    name: attrgetter(f"backends.{name}" if name else "backends")
    for name in ("", "mkldnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "cuda.matmul", "cudnn")
}
_FULL = ("none", "ieee")


class _Process:
    """Settings that torch keeps once a process: the first thread that comes sets them, the last one restores them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.dtype: torch.dtype | None = None
        self.precisions: dict[str, str] = {}
        self.strict = False

    def enter(self) -> None:
        with self.lock:
            if (dtype := torch.get_default_dtype()) != torch.float32:
                self.dtype = dtype
                torch.set_default_dtype(torch.float32)
            for name, backend in _PRECISIONS.items():
                if (precision := backend(torch).fp32_precision) not in _FULL:
                    self.precisions[name] = precision
                    backend(torch).fp32_precision = "ieee" if "." in name else "none"
            # 0 stands for off, 1 for warnings, 2 for errors.
            if torch.get_deterministic_debug_mode() == 2:
                # Deterministic kernels stay where there are some; an operation that has none goes on.
                self.strict = True
                torch.use_deterministic_algorithms(True, warn_only=True)
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside:
                return
            self._restore()

    def after_fork(self) -> None:
        """In a child, which has the thread that forked alone: nobody else gives a lock back, or leaves."""
        self.lock = threading.Lock()
        self.inside = int(getattr(_thread, "inside", False))
        if not self.inside:
            self._restore()

    def _restore(self) -> None:
        if self.dtype is not None and torch.get_default_dtype() == torch.float32:
            torch.set_default_dtype(self.dtype)
        for name, precision in self.precisions.items():
            if (backend := _PRECISIONS[name](torch)).fp32_precision in _FULL:
                backend.fp32_precision = precision
        if self.strict and torch.get_deterministic_debug_mode() == 1:
            torch.use_deterministic_algorithms(True)
        self.dtype, self.precisions, self.strict = None, {}, False


_thread, _process = threading.local(), _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork)


@contextmanager
def library_settings() -> Iterator[None]:
    """Compute as in a fresh process, whatever was set around the call; also a decorator for functions.

    A call inside another one changes nothing: settings that the library makes for itself on the way stay.
    """
    if getattr(_thread, "inside", False):
        yield
        return
    _process.enter()
    _thread.inside = True
    try:
        with ExitStack() as stack:
            # A default device is a mode that every call of torch passes. Another device on top of it would not do:
            # layers choose other kernels where any mode is there.
            for _ in range(torch._C._len_torch_function_stack()):
                stack.enter_context(_pop_mode_temporarily())
            for device in _AUTOCAST_DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if not torch.is_grad_enabled():
                stack.enter_context(torch.enable_grad())
            if _SMALLEST * 1.0 == 0.0:
                stack.callback(torch.set_flush_denormal, True)
                torch.set_flush_denormal(False)
            if np.geterr() != _FLOATING_POINT:
                stack.enter_context(np.errstate(**_FLOATING_POINT))  # type: ignore[arg-type]
            yield
    finally:
        _process.leave()
        _thread.inside = False


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under `library_settings`; every step of it where it is a generator, and nothing between them."""
    if not inspect.isgeneratorfunction(function):
        # No object of the context is kept, so that a method of a plugin can be sent to another process.
        @functools.wraps(function)
        def settled(*args: Any, **options: Any) -> Any:
            with library_settings():
                return function(*args, **options)

        return settled

    @functools.wraps(function)
    def steps(*args: Any, **options: Any) -> Iterator[Any]:
        given, end = function(*args, **options), object()
        while True:
            with library_settings():
                found = next(given, end)
            if found is end:
                return
            yield found

    return steps

"""Curves of a training for TensorBoard, written after every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fsmer.errors import FsmerError
from fsmer.io import check_writable

__all__ = ["AfterEpoch", "tensorboard_log"]

# Called with the number of epochs done and figures of the last one by name.
AfterEpoch = Callable[[int, Mapping[str, float]], None]


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str] | None) -> Iterator[AfterEpoch | None]:
    """Give a hook that writes what a training tells it after every epoch; look with ``tensorboard --logdir FOLDER``.

    The hook is ``after_epoch`` of `fsmer.training.loop.Training.run` and writes scalars ``train/loss`` and
    ``train/learning_rate``; a training that is taken up again in the same folder goes on where its curve ended. Without
    a folder there is none. Raises `FsmerError` without the package tensorboard and `OutputError` for a folder that
    cannot be written.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FsmerError(
            "logging for TensorBoard needs the package tensorboard, which is missing; "
            "run: pip install 'fsmer[tensorboard]'."
        ) from error
    check_writable(folder)
    writer = SummaryWriter(log_dir=os.fspath(folder))

    def after_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"train/{name}", value, epoch)
        # A training takes hours, and its curve is looked at meanwhile.
        writer.flush()

    try:
        yield after_epoch
    finally:
        writer.close()

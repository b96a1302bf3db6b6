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

_MISSING = (
    "logging for TensorBoard needs the package tensorboard, which is missing; run: pip install 'fsmer[tensorboard]'."
)


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str] | None) -> Iterator[AfterEpoch | None]:
    """Give a hook that writes what a training tells it after every epoch; look with ``tensorboard --logdir FOLDER``.

    A training that is taken up again in the same folder goes on where its curve ended.

    Parameters
    ----------
    folder : path or None
        Where event files go; ``None`` gives no hook.

    Yields
    ------
    callable or None
        For ``after_epoch`` of `fsmer.training.supervised.Trainer.run`: scalars ``train/loss``, ``train/learning_rate``.

    Raises
    ------
    FsmerError
        The package tensorboard is missing (extra ``tensorboard``).
    OutputError
        The folder cannot be written.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FsmerError(_MISSING) from error
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

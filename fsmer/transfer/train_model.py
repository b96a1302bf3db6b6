"""`train`: full training of a model on clips, in one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone
from fsmer.backbones.base import as_device, check_saveable
from fsmer.backbones.registry import fresh_model
from fsmer.errors import FsmerError
from fsmer.training.tensorboard import tensorboard_log
from fsmer.transfer.full_training import Train
from fsmer.transfer.inputs import as_labelled_clips
from fsmer.transfer.recognizer import Recognizer
from fsmer.transfer.registry import load_method
from fsmer.transfer.source_model import Progress, SourceModel

if TYPE_CHECKING:
    from fsmer.transfer.recognizer import Labelled

__all__ = [
    "train",
]


@library_settings()
def train(
    model: Backbone | str | Path,
    clips: Labelled,
    *,
    out: str | Path | None = None,
    classes: Sequence[str] | None = None,
    arguments: dict[str, Any] | None = None,
    device: str | torch.device | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    log: str | Path | None = None,
    **params: Any,
) -> Recognizer:
    """Train a backbone with labels, by its paper's recipe, to a recognizer.

    Parameters
    ----------
    model : Backbone, str or Path
        A backbone to go on from; the folder of one; or a registered name, which starts from fresh weights drawn with
        the seed.
    clips : ClipSet, list of Clip, or pair (arrays, labels)
        Labelled clips; none of them is held back to choose anything.
    out : path, optional
        Folder for the recognizer; beside it the loss of every epoch is written to ``<out>.history.json`` and, while
        training goes on, a checkpoint to ``<out>.training``.
    classes : sequence of str, optional
        The classes in the order of the recognizer's columns; default the sorted labels.
    arguments : dict, optional
        Constructor arguments of a backbone that is given by name; weights that are there already fix their own.
    device : str or torch.device, optional
        Where to train, such as ``"cuda"``; default where the backbone is, which for names and folders is the CPU.
    resume : bool
        Whether to go on from a checkpoint of the same training.
    progress : callable, optional
        Called with (steps done, steps in all).
    log : path, optional
        Folder for the loss and the learning rate of every epoch as TensorBoard reads them (extra ``tensorboard``).
    **params
        Parameters of the method ``train`` (see `fsmer.list_methods`): epochs, batch_size, learning_rate, seed, ...

    Returns
    -------
    Recognizer

    Raises
    ------
    UnknownNameError
        No such model or parameter.
    SpecMismatchError
        The clips' media is not what the backbone expects.
    SupportError
        Clips without labels, or nothing to train.
    WeightsError
        A checkpoint of another training is in the way, or arguments came with weights that are there already.
    DeviceError
        No such device here.
    FsmerError
        A log is asked for and the package tensorboard is missing.
    """
    method = load_method("train", **params)
    if not isinstance(method, Train):
        raise FsmerError("the method registered as 'train' is not the one of fsmer.transfer.full_training.")
    where = None if device is None else as_device(device)
    backbone = fresh_model(model, method.seed, arguments)
    if out is not None:
        check_saveable(backbone)  # before hours of training
    if where is not None:
        # The caller's own network stays where it is.
        backbone = copy.deepcopy(backbone).to(where)
    labelled = as_labelled_clips(clips, backbone)
    if out is not None:
        return method.run(backbone, labelled, Path(out), classes=classes, resume=resume, progress=progress, log=log)[0]
    with tensorboard_log(log) as after_epoch:
        return method._trained(SourceModel(backbone), labelled, classes, progress, after_epoch=after_epoch)[0]

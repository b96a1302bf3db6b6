"""`meta_train`: a backbone is trained on tasks by an algorithm, with validation on tasks of its own."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import FiniteFloat
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import TypedDict

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, model_hash
from fsmer.backbones.base import as_device, check_saveable
from fsmer.backbones.registry import as_backbone, fresh_model, names_saved_weights
from fsmer.data import ClipSet
from fsmer.episodic import DrawnTasks, Protocol, SourceTarget, load_protocol
from fsmer.errors import ProtocolError, SupportError, WeightsError
from fsmer.io import check_writable, write_json
from fsmer.meta.algorithm import Algorithm, Learner, accuracy, load_algorithm, query_loss
from fsmer.meta.tasks import ClipTasks, Tasks, UnitSetTasks, source_tasks
from fsmer.outside import outside_call
from fsmer.resources import resource_folder
from fsmer.schema import Count
from fsmer.training.checkpoints import remove_checkpoint
from fsmer.training.loop import Progress, Step, Training, prefetched, tensorboard_log
from fsmer.training.supervised import prepare_backbone
from fsmer.transfer.inner_loop import adapts_upper
from fsmer.transfer.source_model import require

__all__ = ["MetaTraining", "meta_train"]

HISTORY = "history.json"
# Steps of which the history holds one mean.
HISTORY_STEPS = 20


class _State(TypedDict):
    step: Count
    history: list[dict[str, int | FiniteFloat]]
    figures: list[dict[str, FiniteFloat]]
    best: FiniteFloat | None
    best_step: Count


class MetaTraining(Training):
    """Training of a backbone on tasks; a step of it is one batch of tasks.

    Parameters
    ----------
    learner : Learner
        Changed in place.
    algorithm : Algorithm
    tasks : Tasks
    steps, batch : int
        Steps, and tasks a step.
    learning_rate : float or None
        Of the outer loop; ``None`` is the algorithm's own.
    batch_norm : {"running", "inherited"}
        Statistics of batch normalisation outside the inner loop: see `meta_train`.
    validation : Tasks or None
        Tasks that nothing is trained on; their accuracy decides which weights are kept.
    validate_every, validation_tasks, patience : int
        Steps from one look to the next, tasks a look, and looks without a better one before training ends.
    seed : int
    clip_gradient : float or None
        Largest norm of the gradient of a step.
    """

    schema = _State

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        tasks: Tasks,
        *,
        steps: int,
        batch: int,
        learning_rate: float | None,
        batch_norm: str,
        validation: Tasks | None,
        validate_every: int,
        validation_tasks: int,
        patience: int | None,
        seed: int,
        clip_gradient: float | None,
    ) -> None:
        self.learner, self.algorithm, self.tasks, self.batch, self.seed = learner, algorithm, tasks, batch, seed
        self.batch_norm, self.validation = batch_norm, validation
        self.validate_every, self.validation_tasks, self.patience = validate_every, validation_tasks, patience
        self.history: list[dict[str, int | float]] = []
        self._recent: list[dict[str, float]] = []
        self.best: float | None = None
        self.best_step = 0
        modules: dict[str, nn.Module] = {"learner": learner.whole}
        self.kept: nn.ModuleDict | None = None
        if validation is not None:
            self.kept = copy.deepcopy(learner.whole).requires_grad_(False)
            modules = {**modules, "kept": self.kept}
        rates = algorithm.rates(learning_rate)
        groups: dict[str, list[nn.Parameter]] = {}
        for name, value in learner.whole.named_parameters():
            if value.requires_grad:
                found = [part for part in rates if part and any(one.startswith(part) for one in name.split("."))]
                groups.setdefault(max(found, key=len, default=""), []).append(value)
        if not groups:
            raise SupportError(f"nothing of {learner.backbone.name!r} can be trained; every parameter is frozen.")
        listed = [{"params": values, "lr": rates[part]} for part, values in groups.items()]
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(listed) if algorithm.optimizer == "sgd" else torch.optim.Adam(listed)
        )
        super().__init__(modules, optimizer, epochs=steps, seed=seed, clip_gradient=clip_gradient)

    @property
    def ended(self) -> bool:
        """Whether validation has asked for the end."""
        if self.patience is None or self.best is None:
            return False
        return self.epoch - self.best_step >= self.patience * self.validate_every

    def steps(self) -> Generator[Step, None, None]:
        made = prefetched(
            lambda number: self.tasks.batch(number * self.batch, self.batch), range(self.epoch, self.epochs)
        )
        for number, tasks in zip(range(self.epoch, self.epochs), made, strict=False):
            if self.ended:
                return
            yield Step(tasks, seed=(self.seed << 32) + number)

    def begin(self) -> None:
        self._set_modes()

    def _set_modes(self) -> None:
        """Dropout is off: support and query of a task meet the same network."""
        self.learner.backbone.eval()
        if self.batch_norm == "running":
            for layer in self.learner.backbone.modules():
                if isinstance(layer, _BatchNorm) and any(value.requires_grad for value in layer.parameters()):
                    layer.train()

    def advance(self, step: Step) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        name = self.learner.backbone.name
        remedy = "mend the network or, where it has no second derivatives, use a first-order algorithm such as 'fomaml'"
        with outside_call(f"a step of {self.algorithm.name!r} on tasks through {name!r}", remedy=remedy):
            figures = self.algorithm.step(self.learner, step.inputs)
        self.move()
        return figures

    def on_step(self, step: Step, figures: Mapping[str, float]) -> None:
        if not math.isfinite(figures["loss"]):
            raise SupportError(
                f"the loss of {self.learner.backbone.name!r} on tasks is {figures['loss']} at step {self.epoch + 1}; "
                f"give a lower learning rate (outer {max(self.base_rates):g}), or a limit of the gradient "
                "(clip_gradient)."
            )
        self._recent.append(dict(figures))

    def on_epoch(self) -> None:
        validates = self.validation is not None and (self.epoch % self.validate_every == 0 or self.epoch == self.epochs)
        if len(self._recent) < HISTORY_STEPS and not validates and self.epoch < self.epochs:
            return
        means = {name: float(np.mean([one[name] for one in self._recent])) for name in self._recent[0]}
        row: dict[str, int | float] = {"step": self.epoch, **means}
        self._recent = []
        if validates:
            row |= self._validate()
        self.history.append(row)

    def figures(self) -> dict[str, float]:
        """Of the last step, or of the last look at validation tasks."""
        last = self.history[-1] if self.history and self.history[-1]["step"] == self.epoch else {}
        return {
            name: float(value) for name, value in (self._recent[-1] if self._recent else last).items() if name != "step"
        }

    def end(self) -> None:
        self.learner.backbone.eval()

    def keep_best(self) -> None:
        """Put the weights that did best on the validation tasks back in place, where there were any."""
        if self.kept is not None and self.best is not None:
            self.learner.whole.load_state_dict(self.kept.state_dict())

    def state(self) -> dict[str, Any]:
        return {
            "step": self.epoch,
            "history": self.history,
            "figures": self._recent,
            "best": self.best,
            "best_step": self.best_step,
        }

    def take_state(self, state: Mapping[str, Any], folder: Path) -> None:
        if state["step"] > self.epochs:
            raise WeightsError(
                f"the checkpoint in {folder} is of step {state['step']}, but the training has {self.epochs}; remove it "
                "or start with resume off (--no-resume)."
            )
        self.epoch, self.history, self._recent = state["step"], list(state["history"]), list(state["figures"])
        self.best, self.best_step = state["best"], state["best_step"]

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        assert self.kept is not None
        self.learner.backbone.eval()
        losses, rights = [], []
        for start in range(0, self.validation_tasks, self.batch):
            tasks = self.validation.batch(start, min(self.batch, self.validation_tasks - start))
            with torch.no_grad():
                logits = self.algorithm.answers(self.learner, tasks, training=False)
                losses.append(float(query_loss(logits, tasks.query_codes)) * len(tasks))
                rights.append(accuracy(logits, tasks.query_codes) * len(tasks))
        self._set_modes()
        found = sum(rights) / self.validation_tasks
        if self.best is None or found > self.best:
            self.best, self.best_step = found, self.epoch
            self.kept.load_state_dict(self.learner.whole.state_dict())
        return {"validation_loss": sum(losses) / self.validation_tasks, "validation_accuracy": found}


@library_settings()
def meta_train(
    model: Backbone | str | Path,
    tasks: Tasks | DrawnTasks | Protocol | str | os.PathLike[str],
    algorithm: str | Algorithm = "protonet",
    *,
    clips: ClipSet | None = None,
    validation: Tasks | DrawnTasks | Protocol | str | tuple[Protocol | str, ClipSet] | None = None,
    steps: int = 1000,
    batch: int = 4,
    learning_rate: float | None = None,
    layers: str = "auto",
    augment: bool = False,
    batch_norm: str | None = None,
    clip_gradient: float | None = 10.0,
    validate_every: int = 100,
    validation_tasks: int = 200,
    patience: int | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    checkpoint_every: int = 100,
    progress: Progress | None = None,
    log: str | os.PathLike[str] | None = None,
    **params: Any,
) -> Backbone:
    """Train a backbone on few-shot tasks, so that a few labelled clips of new classes teach it more.

    `fsmer.adapt` and `fsmer.evaluate` then adapt it as it was trained to be, unless another method is asked for: what
    was learned beside the weights (first classifier, rates) travels with them. What the backbone's paper trains first
    (`Backbone.preparations`, such as the action unit detector of ``merau``) is trained first, where tasks are dealt
    from labelled clips.

    Parameters
    ----------
    model : Backbone, str or Path
        A backbone to go on from, the folder of one, or a registered name: with its weights where some ship, else with
        fresh ones drawn with the seed.
    tasks : DrawnTasks, Protocol, name or path of one, or Tasks
        What is trained on. Protocols that do not make their clips need `clips`. Of a source-then-target protocol the
        source alone is trained on, see `fsmer.meta.source_tasks`.
    algorithm : str or Algorithm, default "protonet"
        A name of `fsmer.list_algorithms`.
    clips : ClipSet, optional
        Labelled clips that the protocol deals: none of them may be judged on later.
    validation : DrawnTasks, Protocol, name or path of one, Tasks, or tuple of protocol and ClipSet, optional
        Tasks of classes and people that are not trained on. The weights that do best on them are kept; without, the
        last ones.
    steps : int, default 1000
        Steps of the outer loop.
    batch : int, default 4
        Tasks a step (as in Finn et al. 2017 on MiniImagenet).
    learning_rate : float, optional
        Of the outer loop in place of the algorithm's own.
    layers : {"auto", "all", "upper"}, default "auto"
        Which layers are trained; ``"auto"`` leaves those alone that the backbone calls its lower ones, and what they
        make of a clip is computed once.
    augment : bool, default False
        Clips are changed at random each time, as the backbone's recipe says; validation clips are not.
    batch_norm : {"running", "inherited"}, optional
        Statistics of batch normalisation in training: those of what passes, whose running averages are used later as
        in supervised training, or the averages that the backbone has. Default ``"running"`` for algorithms that do not
        adapt the backbone, ``"inherited"`` for the others, whose inner loop has a parameter of this name.
    clip_gradient : float or None, default 10.0
        Largest norm of the gradient of a step.
    validate_every : int, default 100
        Steps from one look at validation tasks to the next.
    validation_tasks : int, default 200
        Tasks a look, the same ones each time.
    patience : int, optional
        Looks without a better one before training ends; default: it goes on to the last step.
    seed : int, default 0
        Seed of fresh weights and of the order of classes in tasks from clips.
    arguments : mapping, optional
        Constructor arguments of a backbone that is given by name, which then starts from fresh weights.
    device : str or torch.device, optional
        Where the network computes, such as ``"cuda"``; default where it is, which for names and folders is the CPU.
    out : path, optional
        Folder for the weights; beside it the losses are written to ``<out>.history.json`` and, while training goes on,
        a checkpoint to ``<out>.training``.
    resume : bool, default True
        Whether to go on with what is there: a checkpoint of the same training.
    checkpoint_every : int, default 100
        Steps from one checkpoint to the next.
    progress : callable, optional
        Called with (steps done, steps in all).
    log : path, optional
        Folder for TensorBoard (extra ``tensorboard``).
    **params : object
        Parameters of the algorithm in place of its defaults.

    Returns
    -------
    Backbone
        A copy, in evaluation mode, with its ``adaptation``.

    Raises
    ------
    UnknownNameError
        No such model, protocol, algorithm or parameter.
    ProtocolError
        The clips cannot give such tasks.
    SupportError
        Nothing to train, or the loss is no longer a number.
    WeightsError
        The checkpoint of another training is in the way.

    Warns
    -----
    UserWarning
        Fresh weights meet a learning rate that is made for trained ones; or the source of a source-then-target
        protocol lacks classes of the target.

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips("lab", 60)
    >>> protocol = fsmer.load_protocol("kshot", shot=1, query=2)
    >>> trained = fsmer.meta_train("ststnet", protocol, "protonet", clips=clips, steps=2, learning_rate=1e-3)
    >>> fsmer.adapt(trained, fsmer.synthetic_clips("clinic", 15)).method.name
    'protonet'
    """
    chosen = load_algorithm(algorithm, **params)
    for name, value in (("steps", steps), ("batch", batch), ("validate_every", validate_every)):
        require(value > 0, f"{name}={value} is not positive; give at least 1.")
    require(batch_norm in (None, "running", "inherited"), f"batch_norm={batch_norm!r}: give 'running' or 'inherited'.")
    require(layers in ("auto", "all", "upper"), f"layers={layers!r}: give 'auto', 'all' or 'upper'.")
    backbone, fresh = start_model(model, seed, arguments)
    note = "" if learning_rate is not None else chosen.rate_note(backbone)
    chosen = chosen.for_weights(untrained=backbone.untrained)
    if note:
        warnings.warn(note, stacklevel=3)
    elif fresh and max(chosen.rates(learning_rate).values()) < 5e-4:
        warnings.warn(
            f"{backbone.name!r} starts from fresh weights, which the rates of the algorithm {chosen.name!r} "
            f"({', '.join(f'{rate:g}' for rate in chosen.rates(learning_rate).values())}) hardly change: its paper "
            "adjusts trained ones; give a higher learning_rate, such as 1e-3.",
            stacklevel=3,
        )
    if out is not None:
        check_saveable(backbone)
        check_writable(out)
    backbone = copy.deepcopy(backbone).float()
    backbone.adaptation = None
    if device is not None:
        backbone = backbone.to(as_device(device))
    upper = adapts_upper(backbone, layers)
    if upper:
        for layer in backbone.lower_layers():
            layer.requires_grad_(False)
    if augment and upper:
        raise ProtocolError(
            f"the lower layers of {backbone.name!r} read every clip once, so that clips cannot be changed at random; "
            "train all layers (layers='all', --layers all), or leave augment off."
        )
    dealt = as_tasks(tasks, clips, backbone, seed, upper, augment=augment)
    if isinstance(dealt, ClipTasks):
        if dealt.note:
            warnings.warn(dealt.note, stacklevel=3)
        prepare_backbone(backbone, dealt.clips, seed)
    judged = None if validation is None else _validation(validation, backbone, seed, upper, dealt)
    device_here = next((one.device for one in backbone.parameters()), torch.device("cpu"))
    begun = {name: nn.Parameter(value.to(device_here)) for name, value in chosen.begin(backbone, dealt.way).items()}
    learner = Learner(backbone, nn.ParameterDict(begun), upper)
    settings: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "batch_norm": batch_norm or ("running" if chosen.trains_batch_norm else "inherited"),
        "validate_every": validate_every,
        "validation_tasks": validation_tasks,
        "patience": patience,
        "seed": seed,
        "clip_gradient": clip_gradient,
    }
    key = {
        **settings,
        "algorithm": {"name": chosen.name, **chosen.get_params()},
        "start": model_hash(backbone),
        "layers": "upper" if upper else "all",
        "tasks": dealt.describe(),
        "validation": None if judged is None else judged.describe(),
    }
    training = MetaTraining(learner, chosen, dealt, validation=judged, **settings)
    folder = None if out is None else Path(out)
    running = None if folder is None else folder.with_name(f"{folder.name}.training")
    with tensorboard_log(log) as after_epoch:
        training.run(
            folder=running,
            key=key,
            resume=resume,
            checkpoint_every=checkpoint_every,
            progress=progress,
            after_epoch=after_epoch,
        )
    training.keep_best()
    backbone.adaptation = chosen.adaptation(learner)
    for layer in backbone.lower_layers() if upper else ():
        layer.requires_grad_(True)
    backbone.cpu() if device is None else backbone
    if folder is not None and running is not None:
        backbone.save_pretrained(folder)
        write_json(folder.with_name(f"{folder.name}.{HISTORY}"), {**key, "history": training.history})
        remove_checkpoint(running)
        if running.is_dir() and not any(running.iterdir()):
            running.rmdir()
    return backbone.eval()


def as_tasks(
    tasks: Tasks | DrawnTasks | Protocol | str | os.PathLike[str],
    clips: ClipSet | None,
    backbone: Backbone,
    seed: int,
    upper: bool,
    *,
    augment: bool = False,
) -> Tasks:
    """Tasks in any form that `meta_train` takes."""
    if augment and isinstance(tasks, Tasks | DrawnTasks):
        raise ProtocolError("clips of tasks that are made already are not changed at random; leave augment off.")
    if isinstance(tasks, Tasks | DrawnTasks):
        if clips is not None:
            raise ProtocolError("clips came with tasks that have clips of their own; leave them out.")
        return UnitSetTasks(tasks, backbone, upper=upper) if isinstance(tasks, DrawnTasks) else tasks
    protocol = load_protocol(tasks)
    if any(part.units == "novel" for part in protocol.synthetic):
        raise ProtocolError(
            f"the classes of protocol {protocol.name!r} are there to be judged on, and training on them would make its "
            "figures worthless; train on base-units-5way, or on DrawnTasks."
        )
    if clips is None:
        clips = protocol.make_clips(specs=backbone.input_specs)
    how: dict[str, Any] = {"seed": seed, "upper": upper, "augment": augment}
    if isinstance(protocol, SourceTarget):
        return source_tasks(protocol, clips, backbone, **how)
    return ClipTasks(protocol, protocol.prepare(clips), backbone, **how)


def _validation(given: Any, backbone: Backbone, seed: int, upper: bool, trained: Tasks) -> Tasks:
    protocol, clips = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    judged = as_tasks(protocol, clips, backbone, seed, upper)
    if isinstance(judged, ClipTasks) and isinstance(trained, ClipTasks):
        shared = set(judged.clips.ids) & set(trained.clips.ids)
        if shared:
            raise ProtocolError(
                f"{len(shared):,} clips are both trained on and validated on, such as {sorted(shared)[0]!r}; give "
                "validation clips of other people or classes."
            )
    if judged.way != trained.way:
        raise ProtocolError(
            f"validation tasks have {judged.way} classes and those trained on {trained.way}; give the same number."
        )
    return judged


def start_model(model: Backbone | str | Path, seed: int, arguments: Mapping[str, Any] | None) -> tuple[Backbone, bool]:
    """The backbone that training starts from, and whether its weights are fresh."""
    named = isinstance(model, (str, os.PathLike))
    if not arguments and (not named or (resource_folder("pretrained") / str(model)).is_dir()):
        return as_backbone(model), False
    backbone = fresh_model(model, seed, dict(arguments or {}))
    return backbone, bool(named) and not names_saved_weights(str(model))

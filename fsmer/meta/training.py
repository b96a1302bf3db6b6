"""`meta_train`: a backbone is trained on tasks by an algorithm, with validation on tasks of its own."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass
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
from fsmer.errors import DataError, ProtocolError, SupportError, WeightsError
from fsmer.io import check_writable, write_json
from fsmer.meta.algorithm import Algorithm, Learner, accuracy, load_algorithm, query_loss
from fsmer.meta.tasks import ClipTasks, Tasks, UnitSetTasks, source_tasks
from fsmer.outside import outside_call
from fsmer.resources import resource_folder
from fsmer.schema import Count
from fsmer.synthetic.domains import load_domain
from fsmer.training.checkpoints import history_file, remove_checkpoint, running_folder
from fsmer.training.loop import Progress, Step, Training, prefetched, tensorboard_log
from fsmer.training.supervised import prepare_backbone
from fsmer.transfer.inner_loop import adapts_upper
from fsmer.transfer.source_model import require, typed_params

__all__ = ["MetaTraining", "Settings", "meta_train"]

# Statistics of batch normalisation outside the inner loop: of what passes, or those that the backbone has.
BATCH_NORM = ("running", "inherited")
# Smallest and largest values; seeds of steps are made of that of the training and the number of the step.
_RANGES = {
    "steps": (1, 10**9),
    "batch": (1, 10**6),
    "validate_every": (1, 10**9),
    "validation_tasks": (1, 10**6),
    "patience": (1, 10**9),
    "seed": (0, 2**31 - 1),
}
# Steps of which the history holds one mean.
HISTORY_STEPS = 20


class _State(TypedDict):
    step: Count
    history: list[dict[str, int | FiniteFloat]]
    figures: list[dict[str, FiniteFloat]]
    best: FiniteFloat | None
    best_step: Count


@dataclass(frozen=True)
class Settings:
    """How `meta_train` trains, by its parameters of these names; `MethodError` for values that cannot be."""

    steps: int
    batch: int
    learning_rate: float | None
    batch_norm: str
    validate_every: int
    validation_tasks: int
    patience: int | None
    seed: int
    clip_gradient: float | None

    def __post_init__(self) -> None:
        require(self.batch_norm in BATCH_NORM, f"batch_norm={self.batch_norm!r}: give {' or '.join(BATCH_NORM)}.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            require(value is None or low <= value <= high, f"{name}={value}: give a number from {low:,} to {high:,}.")
        rate, clip = self.learning_rate, self.clip_gradient
        require(rate is None or rate >= 0, f"learning_rate={rate}: give 0 or more.")
        require(clip is None or clip > 0, f"clip_gradient={clip}: give a norm above 0, or none.")


class MetaTraining(Training):
    """Training of a backbone on tasks; a step of it is one batch of tasks.

    Parameters
    ----------
    learner : Learner
        Changed in place.
    algorithm : Algorithm
    tasks : Tasks
    validation : Tasks or None
        Tasks that nothing is trained on; their accuracy decides which weights are kept.
    settings : Settings
    """

    schema = _State

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        tasks: Tasks,
        validation: Tasks | None,
        settings: Settings,
    ) -> None:
        self.learner, self.algorithm, self.tasks = learner, algorithm, tasks
        self.validation, self.settings = validation, settings
        self.history: list[dict[str, int | float]] = []
        self._recent: list[dict[str, float]] = []
        self.best: float | None = None
        self.best_step = 0
        modules: dict[str, nn.Module] = {"learner": learner.whole}
        self.kept: nn.ModuleDict | None = None
        if validation is not None:
            self.kept = copy.deepcopy(learner.whole).requires_grad_(False)
            modules = {**modules, "kept": self.kept}
        rates = algorithm.rates(settings.learning_rate)
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
        limit = settings.clip_gradient
        super().__init__(modules, optimizer, epochs=settings.steps, seed=settings.seed, clip_gradient=limit)

    @property
    def ended(self) -> bool:
        """Whether validation has asked for the end."""
        patience = self.settings.patience
        if patience is None or self.best is None:
            return False
        return self.epoch - self.best_step >= patience * self.settings.validate_every

    def steps(self) -> Generator[Step, None, None]:
        batch, seed = self.settings.batch, self.settings.seed
        made = prefetched(lambda number: self.tasks.batch(number * batch, batch), range(self.epoch, self.epochs))
        for number, tasks in zip(range(self.epoch, self.epochs), made, strict=False):
            if self.ended:
                return
            yield Step(tasks, seed=(seed << 32) + number)

    def begin(self) -> None:
        self._set_modes()

    def _set_modes(self) -> None:
        """Dropout is off: support and query of a task meet the same network."""
        self.learner.backbone.eval()
        if self.settings.batch_norm == "running":
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
        looks = self.epoch % self.settings.validate_every == 0 or self.epoch == self.epochs
        validates = self.validation is not None and looks
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
        batch, count = self.settings.batch, self.settings.validation_tasks
        for start in range(0, count, batch):
            tasks = self.validation.batch(start, min(batch, count - start))
            with torch.no_grad():
                logits = self.algorithm.answers(self.learner, tasks, training=False)
                losses.append(float(query_loss(logits, tasks.query_codes)) * len(tasks))
                rights.append(accuracy(logits, tasks.query_codes) * len(tasks))
        self._set_modes()
        found = sum(rights) / count
        if self.best is None or found > self.best:
            self.best, self.best_step = found, self.epoch
            self.kept.load_state_dict(self.learner.whole.state_dict())
        return {"validation_loss": sum(losses) / count, "validation_accuracy": found}


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
    MethodError
        A value that it cannot work with.
    SpecMismatchError
        The clips hold other media than the backbone expects.
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
    settings = Settings(
        **_typed(
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            batch_norm=batch_norm or ("running" if chosen.trains_batch_norm else "inherited"),
            validate_every=validate_every,
            validation_tasks=validation_tasks,
            patience=patience,
            seed=seed,
            clip_gradient=clip_gradient,
        )
    )
    learning_rate, seed = settings.learning_rate, settings.seed
    augment, resume, checkpoint_every = _typed(
        augment=augment, resume=resume, checkpoint_every=checkpoint_every
    ).values()
    require(checkpoint_every > 0, f"checkpoint_every={checkpoint_every}: give at least 1.")
    require(layers in ("auto", "all", "upper"), f"layers={layers!r}: give 'auto', 'all' or 'upper'.")
    require(
        progress is None or callable(progress), f"progress={progress!r} cannot be called; give a function, or none."
    )
    require(
        patience is None or validation is not None,
        f"patience={patience} came without validation tasks, by which training would end; give some, or leave it out.",
    )
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
    key = {
        **asdict(settings),
        "algorithm": {"name": chosen.name, **chosen.get_params()},
        "start": model_hash(backbone),
        "layers": "upper" if upper else "all",
        "tasks": dealt.describe(),
        "validation": None if judged is None else judged.describe(),
    }
    training = MetaTraining(learner, chosen, dealt, judged, settings)
    folder = None if out is None else Path(out)
    running = None if folder is None else running_folder(folder)
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
        write_json(history_file(folder), {**key, "history": training.history})
        remove_checkpoint(running)
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
        if isinstance(tasks, Tasks):
            return tasks
        _refuse_judged("these drawn tasks", [tasks.family], tasks.domains)
        return UnitSetTasks(tasks, backbone, upper=upper)
    protocol = load_protocol(tasks)
    made = protocol.synthetic
    _refuse_judged(f"protocol {protocol.name!r}", [part.units for part in made], [part.domain for part in made])
    if clips is None:
        clips = protocol.make_clips(specs=backbone.input_specs)
    how: dict[str, Any] = {"seed": seed, "upper": upper, "augment": augment}
    if isinstance(protocol, SourceTarget):
        return source_tasks(protocol, clips, backbone, **how)
    return ClipTasks(protocol, protocol.prepare(clips), backbone, **how)


def _refuse_judged(who: str, families: Iterable[str | None], domains: Iterable[str]) -> None:
    """Raise `ProtocolError` for classes and cameras that nothing may be trained on."""
    cameras = sorted(name for name in domains if load_domain(name).judging)
    what = "classes" if "novel" in families else f"clips ({', '.join(cameras)})" if cameras else ""
    if what:
        raise ProtocolError(
            f"the {what} of {who} are there to be judged on, and training on them would make such figures worthless; "
            "train on base-units-5way, or on DrawnTasks of the family 'base'."
        )


def _typed(**given: Any) -> dict[str, Any]:
    """Parameters of `meta_train` as the types that it names for them."""
    return typed_params(given, meta_train.__annotations__, "meta_train")


def _validation(given: Any, backbone: Backbone, seed: int, upper: bool, trained: Tasks) -> Tasks:
    if isinstance(given, ClipSet | list) or (isinstance(given, tuple) and len(given) != 2):
        raise ProtocolError(
            f"validation came as {type(given).__name__}; give a protocol that makes its clips, or a tuple of a "
            "protocol and a ClipSet."
        )
    protocol, clips = given if isinstance(given, tuple) else (given, None)
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
    if not isinstance(arguments, Mapping | None):
        raise DataError(f"arguments came as {type(arguments).__name__}; give a dict of names and values.")
    named = isinstance(model, (str, os.PathLike))
    if not arguments and (not named or (resource_folder("pretrained") / str(model)).is_dir()):
        return as_backbone(model), False
    backbone = fresh_model(model, seed, dict(arguments or {}))
    return backbone, bool(named) and not names_saved_weights(str(model))

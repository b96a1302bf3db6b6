"""The contract that every backbone keeps: media in, one embedding vector out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fsmer.ambient import library_settings
from fsmer.backbones import weights as folders
from fsmer.backbones.adaptation import Adaptation
from fsmer.backbones.recipe import CompiledEpochs, Preparation, TrainRecipe
from fsmer.backbones.targets import Targets
from fsmer.backbones.weights import CONFIG_FILE, WEIGHTS_FILE
from fsmer.data import ClipSet, InputSpec
from fsmer.errors import DeviceError, FsmerError, SpecMismatchError, WeightsError, unknown_name
from fsmer.io import atomic_path, write_json
from fsmer.outside import outside_call, outside_value
from fsmer.plugins import BACKBONES, declared, plugin_entry
from fsmer.tensor_files import check_finite, write_tensors

__all__ = ["Backbone", "ClassDirections", "Inputs", "as_device", "backbone_call", "blank_media", "check_made"]
__all__ += ["check_saveable", "check_weights", "constructor_arguments", "evaluation_mode", "is_trusted", "model_hash"]

# One medium is a tensor (B, *shape); several are tensors by kind.
Inputs = Tensor | dict[str, Tensor]

# Of red, green and blue in ImageNet, as the published code of several networks takes them.
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of media, in pixels or frames: more than any network here is made for.
LARGEST_SIDE = 16_384


@dataclass(frozen=True)
class ClassDirections:
    """What a backbone knows of classes before it sees any label: a cosine classifier (MERAU eq. 6-7 with a scale).

    Parameters
    ----------
    weight : Tensor of shape (C, D)
        One direction a class; rows of unknown classes are zero.
    bias : Tensor of shape (C,)
        Added to the scaled cosine.
    known : bool Tensor of shape (C,)
        Which classes the backbone has a description of.
    scale : float
        Factor on the cosine.
    centre : Tensor of shape (D,)
        Subtracted from embeddings before the cosine.
    precision : Tensor of shape (D, D), optional
        Inverse scatter inside a class of embeddings scaled to unit length, measured where the directions were learnt:
        it says in which directions clips of one class differ anyway.
    """

    weight: Tensor
    bias: Tensor
    known: Tensor
    scale: float
    centre: Tensor
    precision: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1e6:
            raise WeightsError(f"cosines are scaled by {self.scale}; use weights whose scale is above 0, at most 1e6.")
        # Embeddings are float32 on the CPU, whatever the network is kept in.
        for name in ("weight", "bias", "centre", "precision"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.detach().float())

    @classmethod
    def of(
        cls, directions: Sequence[Tensor | None], *, scale: float, centre: Tensor, precision: Tensor | None = None
    ) -> ClassDirections | None:
        """Of classes with these directions, (D,) each, None where one is unknown; None where all are."""
        known = torch.tensor([direction is not None for direction in directions])
        if not bool(known.any()):
            return None
        weight = torch.stack([torch.zeros(len(centre)) if one is None else one for one in directions])
        return cls(weight, torch.zeros(len(weight)), known, scale, centre, precision)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Class scores of shape (..., C) for `embeddings` of shape (..., D).

        An unknown class scores as the mean of the known ones, so that it neither wins nor loses by default.
        """
        unit = F.normalize(embeddings - self.centre, dim=-1)
        scores = self.scale * unit @ F.normalize(self.weight, dim=-1).T + self.bias
        if bool(self.known.all()):
            return scores
        mean = scores[..., self.known].mean(dim=-1, keepdim=True)
        return torch.where(self.known, scores, mean)


def backbone_call(backbone: Backbone, what: str) -> AbstractContextManager[None]:
    """What hooks of a backbone, such as its ``set_classes``, are called in."""
    return outside_call(f"{what} of the model {backbone.name or 'without a name'!r} ({type(backbone).__name__})")


def check_made(backbone: Backbone) -> None:
    """Raise `FsmerError` where the constructor of a backbone has not called that of `Backbone`."""
    if "input_specs" not in vars(backbone):
        name = type(backbone).__name__
        raise FsmerError(
            f"the constructor of {name} does not call super().__init__(input_spec=..., embed_dim=..., config=...); "
            "add that call at its top."
        )


class Backbone(nn.Module, ModelHubMixin, ABC):
    """A network that turns a clip's media into one embedding vector and says which media it needs.

    Subclasses set `name`, take only JSON-able keyword arguments in their constructor, hand these to
    ``super().__init__`` and write `forward`. They may give `class_directions` (knowledge of classes before any label),
    `training_loss` (when the paper trains with more than cross-entropy), `set_classes` (parts that depend on the
    classes), `preparations` (what a paper trains first), `finish_training`, `lower` (layers that fine-tuning leaves
    alone), `explain_maps` (which pixels they use) and `recipe` (how the paper trains). Those that teach themselves have
    a ``pretraining_recipe`` and a ``pretraining_loss``, see `fsmer.pretraining.self_supervised`.

    Attributes
    ----------
    input_specs : tuple of InputSpec
        What the network expects, one entry a medium.
    embed_dim : int
        Length of the embedding.
    config : dict
        The constructor's arguments; stored beside the weights.
    classes : tuple of str
        What it was last trained on with labels; empty for none. Stored too, so that parts which depend on the classes
        are not made anew when training goes on with the same.
    adaptation : Adaptation or None
        How it is adapted, where it was trained on episodes (see `fsmer.meta_train`); stored too.
    trusted : bool
        Of a class: its code embeds each clip by its media alone, remembers no label from one training to the next, and
        draws the random numbers of a training step with `fsmer.kernels.noise` only. It then needs no isolation. Each
        class declares it for itself; what it extends does not count.

    Examples
    --------
    >>> import torch
    >>> import fsmer
    >>> class ChannelMeans(fsmer.Backbone):
    ...     name = "channel-means"
    ...
    ...     def __init__(self):
    ...         super().__init__(input_spec=fsmer.InputSpec(), embed_dim=3, config={})
    ...
    ...     def forward(self, inputs):
    ...         return inputs.mean(dim=(2, 3))
    >>> backbone = ChannelMeans()
    >>> backbone.input_spec.describe()
    'flow 28x28 (u, v, strain), minmax'
    >>> clips = fsmer.synthetic_clips(n=4)
    >>> fsmer.embed(backbone, clips).shape
    torch.Size([4, 3])
    >>> maps = torch.from_numpy(clips.media())
    >>> backbone.lower_layers(), backbone.explain_maps(maps), backbone.class_directions(["smile"])
    ((), {}, None)
    >>> backbone.set_classes(clips.classes)
    >>> list(backbone.preparations(clips, seed=0))
    []
    >>> backbone.finish_training()
    """

    name: ClassVar[str] = ""
    trusted: ClassVar[bool] = False
    recipe: ClassVar[TrainRecipe] = TrainRecipe()
    # Whether copies can be trained as one: all randomness of a training step comes from `fsmer.kernels.noise`, and
    # no step depends on values of tensors.
    stackable: ClassVar[bool] = False

    def __init__(self, *, input_spec: InputSpec | Sequence[InputSpec], embed_dim: int, config: dict[str, Any]) -> None:
        super().__init__()
        who = f"the constructor of {type(self).__name__}"
        listed = [input_spec] if isinstance(input_spec, InputSpec) else input_spec
        if not isinstance(listed, Sequence) or not listed or not all(isinstance(one, InputSpec) for one in listed):
            raise FsmerError(
                f"{who} hands on input_spec={outside_value(input_spec)}; give an InputSpec, or a list of one or more."
            )
        if not isinstance(embed_dim, int):
            raise FsmerError(f"{who} hands on embed_dim={outside_value(embed_dim)}; give the length of its embedding.")
        if not isinstance(config, dict):
            raise FsmerError(f"{who} hands on config={outside_value(config)}; give a dict of its arguments.")
        self.input_specs = tuple(listed)
        for spec in self.input_specs:
            # An absent length in time counts as one.
            lengths = (*spec.size, 1 if spec.frames is None else spec.frames)
            if not spec.channels or not all(isinstance(one, int) and 1 <= one <= LARGEST_SIDE for one in lengths):
                raise FsmerError(
                    f"{self.name!r} was made for {spec.describe()}, but a size of 1 to {LARGEST_SIDE:,} pixels, one "
                    "or more channels and as many frames are expected."
                )
        self.embed_dim = embed_dim
        self.config = config
        self.classes: tuple[str, ...] = ()
        self.adaptation: Adaptation | None = None

    def __repr__(self) -> str:
        """One line in place of torch's list of all layers, which ``print(*model.children())`` shows."""
        media = "; ".join(spec.describe() for spec in self.input_specs)
        size = sum(parameter.numel() for parameter in self.parameters())
        return f"{type(self).__name__}({self.name}: {size:,} parameters; {media}; {self.embed_dim} numbers out)"

    @property
    def input_spec(self) -> InputSpec:
        """The one medium that the network expects; `SpecMismatchError` where it expects several, see `input_specs`."""
        if len(self.input_specs) > 1:
            kinds = ", ".join(spec.kind for spec in self.input_specs)
            raise SpecMismatchError(f"{self.name!r} expects several media ({kinds}); use input_specs.")
        return self.input_specs[0]

    @abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """Embeddings of a batch of clips.

        Parameters
        ----------
        inputs : tensor of shape (B, \\*spec.shape), or dict of str to such tensors
            One tensor where the network expects one medium, a dict by kind where it expects several.

        Returns
        -------
        tensor of shape (B, embed_dim)
            One embedding a clip.
        """

    @property
    def untrained(self) -> bool:
        """Whether the weights are random still, as far as that shows: it has batch normalisation whose statistics no
        training has moved and no file has brought. False for networks without. Frozen layers do not count.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.create_model("flow_resnet18").untrained, fsmer.load_model("facs-flow").untrained
        (True, False)
        """
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
        # Layers without a scale or without statistics tell nothing.
        means = [one.running_mean for one in norms if one.weight is not None and one.weight.requires_grad]
        known = [mean for mean in means if mean is not None]
        return bool(known) and not any(bool(mean.any()) for mean in known)

    def unprepared(self) -> str:
        """What a paper trains first (see `preparations`) and is random still.

        Returns
        -------
        str
            A sentence; empty where there is nothing of the kind, as by default.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.create_model("ststnet").unprepared()
        ''
        """
        return ""

    def media_of(self, inputs: Any, *kinds: str) -> list[Tensor]:
        """Media by kind, in the order of `input_specs`.

        Parameters
        ----------
        inputs : dict of str to tensor
            Kind -> medium of the batch.
        *kinds : str
            The kinds that are wanted; default all.

        Returns
        -------
        list of tensor
            Each (B, \\*spec.shape).

        Raises
        ------
        SpecMismatchError
            A medium is missing, has another shape, or is of another number of clips.

        Examples
        --------
        >>> import torch
        >>> import fsmer
        >>> backbone = fsmer.create_model("ststnet")
        >>> [tuple(medium.shape) for medium in backbone.media_of({"flow": torch.zeros(2, 3, 28, 28)})]
        [(2, 3, 28, 28)]
        """
        held = inputs if isinstance(inputs, Mapping) else {}
        specs = [spec for spec in self.input_specs if not kinds or spec.kind in kinds]
        shapes = {kind: tuple(medium.shape) for kind, medium in held.items()}
        lengths = {shapes[spec.kind][:1] for spec in specs if spec.kind in held}
        if len(lengths) > 1 or any(shapes.get(spec.kind, ())[1:] != spec.shape for spec in specs):
            wanted = " and ".join(f"{one.kind} (B, {', '.join(map(str, one.shape))})" for one in self.input_specs)
            found = ", ".join(f"{kind} of shape {shape}" for kind, shape in shapes.items()) or type(inputs).__name__
            raise SpecMismatchError(
                f"{self.name!r} expects a dict of tensors, {wanted} with one B, but was given {found}; prepare "
                "the clips with that recipe."
            )
        return [held[spec.kind] for spec in specs]

    def training_loss(self, inputs: Any, targets: Targets, classifier: nn.Module) -> Tensor:
        """Loss of one batch in supervised training; cross-entropy of ``classifier(self(inputs))`` by default.

        Parameters
        ----------
        inputs : tensor of shape (B, \\*spec.shape), or dict of str to such tensors
            One tensor where the network expects one medium, a dict by kind where it expects several.
        targets : Targets
            What is known of the clips of the batch.
        classifier : Module
            From embeddings (B, embed_dim) to logits (B, C); it is trained together with the backbone.

        Returns
        -------
        tensor of shape ()
            The loss.

        Examples
        --------
        >>> import torch
        >>> import fsmer
        >>> from fsmer.backbones.targets import make_targets
        >>> backbone, clips = fsmer.create_model("ststnet"), fsmer.synthetic_clips(n=4)
        >>> targets = make_targets(clips, torch.from_numpy(clips.codes()), clips.classes)
        >>> classifier = torch.nn.Linear(backbone.embed_dim, len(clips.classes))
        >>> backbone.training_loss(torch.from_numpy(clips.media()), targets, classifier).shape
        torch.Size([])
        """
        return targets.cross_entropy(classifier(self(inputs)), label_smoothing=self.recipe.label_smoothing)

    def lower_layers(self) -> Sequence[nn.Module]:
        """Layers that fine-tuning on a few clips leaves as they are, see `lower`; none by default.

        Returns
        -------
        sequence of Module
            The layers.
        """
        return ()

    def lower(self, inputs: Any) -> dict[str, Tensor]:
        """What `lower_layers` make of media; `forward` and `training_loss` take it in place of media.

        In evaluation mode it depends on those layers alone, so that fine-tuning computes it once a clip.

        Parameters
        ----------
        inputs : tensor of shape (B, \\*spec.shape), or dict of str to such tensors
            One tensor where the network expects one medium, a dict by kind where it expects several.

        Returns
        -------
        dict of str to tensor
            Each (B, ...).

        Raises
        ------
        FsmerError
            The backbone names no `lower_layers`.

        Examples
        --------
        >>> import torch
        >>> import fsmer
        >>> backbone = fsmer.create_model("facs-flow").eval()
        >>> media = torch.from_numpy(fsmer.synthetic_clips(n=2).media())
        >>> torch.equal(backbone(backbone.lower(media)), backbone(media))
        True
        """
        raise FsmerError(
            f"layers='upper' needs a backbone that says which of its layers are the lower ones, and {self.name!r} does "
            "not; give layers='all'."
        )

    @library_settings()
    def embedding_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that embeddings depend on and that can be trained; others serve losses, words or decoders alone.

        They are found by one backward pass through embeddings of blank media, in evaluation mode, which changes
        nothing. What embeds in another way than it trains, or cannot take blank media, states them instead.

        Returns
        -------
        dict of str to Parameter
            By name, in the order of ``named_parameters``.

        Raises
        ------
        FsmerError
            The network fails on blank media.

        Examples
        --------
        >>> import fsmer
        >>> backbone = fsmer.load_model("facs-flow")
        >>> "branches.0.directions" in backbone.embedding_parameters()
        False
        """
        trained = {name: value for name, value in self.named_parameters() if value.requires_grad}
        who = f"the model {self.name or type(self).__name__!r} on blank media"
        remedy = "mend its forward, or let its embedding_parameters state them"
        with outside_call(who, remedy=remedy), evaluation_mode(self), torch.random.fork_rng(devices=[]):
            embeddings = self(blank_media(self, self.input_specs))
            if not embeddings.requires_grad:
                return {}
            slopes = torch.autograd.grad(embeddings.sum(), list(trained.values()), allow_unused=True)
        return {name: trained[name] for name, slope in zip(trained, slopes, strict=True) if slope is not None}

    def set_classes(self, classes: Sequence[str]) -> None:
        """Make parts that depend on the classes anew before a training; most backbones have none.

        Parameters
        ----------
        classes : sequence of str
            The classes of the training, in the order of their codes.
        """

    def preparations(self, clips: ClipSet, *, seed: int) -> Iterator[Preparation]:
        """What a paper trains first, from the labelled clips of a supervised training; nothing by default.

        Each is trained before the next one is asked for.

        Parameters
        ----------
        clips : ClipSet
            Labelled clips of the training.
        seed : int
            Seed of the training.

        Yields
        ------
        Preparation
            What is trained next.
        """
        yield from ()

    def compiled_epochs(
        self,
        classifier: nn.Module,
        optimizer: torch.optim.Optimizer,
        media: Mapping[str, Tensor],
        targets: Targets,
        recipe: TrainRecipe,
    ) -> CompiledEpochs | None:
        """Code that takes all steps of an epoch on a CPU, where there is any.

        Weights, batch statistics, state of the optimiser and losses are those of single steps but for rounding.

        Parameters
        ----------
        classifier : Module
            As in `training_loss`.
        optimizer : Optimizer
            Of the parameters of both networks, with the learning rates before the factors of a schedule.
        media : mapping of str to tensor
            Media of all the clips, by kind.
        targets : Targets
            What is known of all the clips.
        recipe : TrainRecipe
            How is trained.

        Returns
        -------
        CompiledEpochs or None
            None, as by default, where there is no such code for these.

        Examples
        --------
        >>> import torch
        >>> import fsmer
        >>> from fsmer.backbones.targets import make_targets
        >>> backbone, clips = fsmer.create_model("fr"), fsmer.synthetic_clips(n=4)
        >>> targets = make_targets(clips, torch.from_numpy(clips.codes()), clips.classes)
        >>> classifier = torch.nn.Linear(backbone.embed_dim, len(clips.classes))
        >>> optimizer = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()])
        >>> media = {"flow": torch.from_numpy(clips.media())}
        >>> backbone.compiled_epochs(classifier, optimizer, media, targets, backbone.recipe) is None
        True
        """
        return None

    def finish_training(self) -> None:
        """Keep what training taught and drop what it alone needed, such as a text tower; called once at its end."""

    def explain_maps(self, inputs: Any) -> dict[str, Tensor]:
        """The network's own maps of which pixels it uses; none by default.

        Parameters
        ----------
        inputs : tensor of shape (B, \\*spec.shape), or dict of str to such tensors
            One tensor where the network expects one medium, a dict by kind where it expects several.

        Returns
        -------
        dict of str to tensor
            Name -> map, each (B, h, w) in 0..1.
        """
        return {}

    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """What this backbone knows of classes without labels.

        Parameters
        ----------
        classes : sequence of str
            Names of classes, or what they look like.

        Returns
        -------
        ClassDirections or None
            None when it knows none of them.
        """
        return None

    def save_pretrained(self, folder: str | Path, **_: Any) -> Path:  # type: ignore[override]
        """Write ``config.json`` (with the sha256 of the weights) and ``model.safetensors``.

        ``push_to_hub(repo_id)`` (from huggingface_hub's mixin) uploads that folder.

        Parameters
        ----------
        folder : str or Path
            Folder to write.
        **_ : object
            Further arguments of that mixin, which are ignored.

        Returns
        -------
        Path
            The folder.

        Examples
        --------
        >>> import fsmer
        >>> folder = fsmer.create_model("ststnet").save_pretrained("my-weights")
        >>> fsmer.load_model(folder).name
        'ststnet'
        """
        target = Path(folder)
        # Both files are ready before the first takes its place: a reader seldom finds the one without the other.
        with atomic_path(target / CONFIG_FILE) as config, atomic_path(target / WEIGHTS_FILE) as weights:
            write_tensors(weights, self.state_dict())
            write_json(config, self.describe_config(folders.file_sha256(weights)), sealed=True)
        return target

    def describe_config(self, weights_sha256: str) -> dict[str, Any]:
        """The content of ``config.json``.

        Parameters
        ----------
        weights_sha256 : str
            Digest of the weights, in hexadecimal digits.

        Returns
        -------
        dict
            Plain values for JSON.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.create_model("ststnet").describe_config("0" * 64)["arguments"]
        {'padding': 1, 'dropout': 0.5, 'size': 28}
        """
        return {
            "library_name": "fsmer",
            "format_version": folders.FORMAT_VERSION,
            "backbone": self.name,
            **plugin_entry(BACKBONES, type(self)),
            "input_specs": [spec.to_dict() for spec in self.input_specs],
            "embed_dim": self.embed_dim,
            "arguments": self.config,
            "classes": list(self.classes),
            **({} if self.adaptation is None else {"adaptation": self.adaptation.to_dict()}),
            "weights_sha256": weights_sha256,
        }

    @classmethod
    @library_settings()
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote, in evaluation mode.

        Parameters
        ----------
        folder : str or Path
            A folder (that of a recognizer gives its backbone), or a repository on the Hugging Face hub
            (``hf://owner/name``), fetched or taken from the cache.
        revision : str, optional
            Branch, tag or commit of that repository.

        Returns
        -------
        Backbone
            Of the class that was asked.

        Raises
        ------
        WeightsError
            A file is missing, cut short, altered, made by a newer fsmer or for another backbone.

        Examples
        --------
        >>> import fsmer
        >>> backbone = fsmer.create_model("ststnet")
        >>> again = type(backbone).from_pretrained(backbone.save_pretrained("my-weights"))
        >>> again.training, again.config == backbone.config
        (False, True)
        """
        return folders.load_folder(folders.fetch_weights(folder, revision), cls.from_folder, hub=True)

    @classmethod
    def from_folder(cls, held: folders.WeightsFolder) -> Self:
        """As `from_pretrained`, from a folder whose config and header have been read.

        Parameters
        ----------
        held : WeightsFolder
            The folder.

        Returns
        -------
        Backbone
            Of the class that was asked, in evaluation mode.

        Raises
        ------
        WeightsError
            It holds another backbone, or its weights are damaged.

        Examples
        --------
        >>> import fsmer
        >>> from fsmer.backbones.weights import load_folder
        >>> backbone = fsmer.create_model("ststnet")
        >>> load_folder(backbone.save_pretrained("my-weights"), type(backbone).from_folder).name
        'ststnet'
        """
        if held.config["backbone"] != cls.name:
            raise WeightsError(
                f"{held.folder} holds weights of {held.config['backbone']!r}, but {cls.name!r} was asked for."
            )
        # The folder of a recognizer has other tensors too.
        prefix = "backbone." if "recognizer" in held.config else ""
        model = held.make(cls, prefix)
        return held.load(model, held.tensors(unbounded=folders.OPEN_TENSORS if prefix else ()), prefix)


def constructor_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a backbone's constructor, from its ``locals()``, as `Backbone.config` holds them.
    `UnknownNameError` where one is none of the choices that its annotation ``Literal[...]`` lists."""
    backbone = values["self"]
    kinds = get_type_hints(values["__class__"].__init__)
    found = {name: value for name, value in values.items() if name not in ("self", "__class__")}
    for name, value in found.items():
        if get_origin(kinds[name]) is Literal and value not in get_args(kinds[name]):
            raise unknown_name(name, value, get_args(kinds[name]), of=backbone.name)
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: Any) -> Any:
    """Sequences as lists, as they come back from JSON."""
    return [_listed(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each of its parts is in its own mode again."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def blank_media(network: nn.Module, specs: Sequence[InputSpec], clips: int = 2) -> Inputs:
    """Media of zeros as `forward` of the network takes them, in its precision and on its device."""
    like = next((value for value in network.parameters() if value.is_floating_point()), torch.zeros(()))
    media = {spec.kind: torch.zeros(clips, *spec.shape, dtype=like.dtype, device=like.device) for spec in specs}
    return media if len(media) > 1 else media[specs[0].kind]


def as_device(name: str | torch.device) -> torch.device:
    """The device of that name, which has been tried; `DeviceError` where torch does not know it or it is not there."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        found = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise DeviceError(
            f"the device {str(name)!r} cannot be used here; torch sees {found}: give one of these, or install a torch "
            "that sees it."
        ) from error
    return device


def is_trusted(backbone: nn.Module) -> bool:
    """Whether every backbone in a network, itself included, is of a class that declares itself `Backbone.trusted`."""
    return all(declared(type(part), "trusted") for part in backbone.modules() if isinstance(part, Backbone))


def check_saveable(backbone: Backbone) -> None:
    """Raise `WeightsError` unless the class is registered, so that saved weights could be loaded again."""
    if BACKBONES.get(backbone.name) is not type(backbone):
        raise WeightsError(
            f"the backbone {backbone.name or type(backbone).__name__} is not registered, so what is saved of it could "
            "not be loaded again; write its class with fsmer.backbones.register_backbone."
        )


def check_weights(backbone: Backbone) -> None:
    """Raise `WeightsError` if a tensor of the network, buffers included, holds NaN or an infinity."""
    check_finite(backbone.state_dict(), f"the model {backbone.name or type(backbone).__name__!r}")


def model_hash(backbone: nn.Module) -> str:
    """First 16 hex digits of the sha256 over all names, shapes and values of the state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(backbone.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{key}:{tuple(array.shape)}:{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

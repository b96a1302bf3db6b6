"""What a clip's media is and what a backbone expects, in one frozen dataclass, and which kinds of media there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, get_type_hints

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray

from fsmer.errors import DataError, FsmerError, MediaError, SpecMismatchError
from fsmer.memory import out_of_memory
from fsmer.plugins import INPUT_KINDS
from fsmer.schema import checked

__all__ = ["COLOURS", "CROP_ASPECT", "InputKind", "InputSpec", "image_spec", "register_input_kind"]

# Pixels, frames or channels of one clip.
Length = Annotated[int, Ge(1), Le(1 << 16)]


@dataclass(frozen=True)
class InputSpec:
    """Kind, size, channels and normalisation of one medium of a clip.

    The same class describes what a clip set holds and what a backbone expects, so that the two can be compared field by
    field.

    Parameters
    ----------
    kind : str, default "flow"
        ``"flow"`` (one map from onset to apex), ``"onset"`` and ``"apex"`` (one image each), ``"frames"`` (the whole
        clip as images), ``"flows"`` (flow maps over the whole clip), or one of `register_input_kind`.
    size : tuple of int, default (28, 28)
        Height and width in pixels.
    channels : tuple of str, default ("u", "v", "strain")
        Meaning of each channel in order, e.g. ``("u", "v", "strain")`` or ``("red", "green", "blue")``.
    normalisation : str, default "minmax"
        ``"minmax"``: every channel scaled to 0..1 by its own minimum and maximum in that clip (as the public MEGC 2019
        maps are; sign and magnitude are lost). ``"signed"``: displacement in thousandths of the face width, zero means
        no motion. ``"unit"``: brightness from 0 (black) to 1.
    flow_method : str, optional
        Name of the optical-flow estimator; ``None`` means unknown (clips) or any (backbones).
    frames : int, optional
        Length in time of ``"frames"`` and ``"flows"``; ``None`` for a single map or image.

    Raises
    ------
    DataError
        A value of another form; lists and NumPy's numbers are taken for tuples and numbers.

    Examples
    --------
    >>> import fsmer
    >>> held = fsmer.InputSpec("flow", (28, 28), ("u", "v", "strain"))
    >>> held.describe(), held.shape
    ('flow 28x28 (u, v, strain), minmax', (3, 28, 28))
    >>> wanted = fsmer.InputSpec("flow", (28, 28), ("strain", "u"))
    >>> held.check_feeds(wanted)
    >>> fsmer.InputSpec.from_dict(held.to_dict()) == held
    True
    """

    kind: str = "flow"
    size: tuple[Length, Length] = (28, 28)
    channels: Annotated[tuple[str, ...], Len(1, 1 << 16)] = ("u", "v", "strain")
    normalisation: str = "minmax"
    flow_method: str | None = None
    frames: Length | None = None

    def __post_init__(self) -> None:
        for name, form in _forms().items():
            remedy = "give a value as its documentation describes it"
            value = checked(getattr(self, name), form, name, what="part of an InputSpec", remedy=remedy)
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one clip's array: ``(channels, height, width)``, with ``frames`` before them where there are any."""
        time = () if self.frames is None else (self.frames,)
        return (*time, len(self.channels), *self.size)

    def describe(self) -> str:
        """One phrase for messages, e.g. ``flow 28x28 (u, v, strain), minmax``.

        Returns
        -------
        str
            The phrase.
        """
        times = "" if self.frames is None else f"{self.frames} x "
        method = f", {self.flow_method}" if self.flow_method else ""
        height, width = self.size
        return f"{self.kind} {times}{height}x{width} ({', '.join(self.channels)}), {self.normalisation}{method}"

    def check_feeds(self, wanted: InputSpec, *, who: str = "the backbone") -> None:
        """Refuse media of this spec where they do not fit.

        Channels may be more than are wanted: they are then picked by name (see `pick_channels`).

        Parameters
        ----------
        wanted : InputSpec
            What is expected.
        who : str, default "the backbone"
            Who expects it, for the message.

        Raises
        ------
        SpecMismatchError
            Media of this spec do not fit; the message names both sides.
        """
        same = attrgetter("kind", "size", "frames", "normalisation")
        method_fits = None in (self.flow_method, wanted.flow_method) or self.flow_method == wanted.flow_method
        if not (same(self) == same(wanted) and set(wanted.channels) <= set(self.channels) and method_fits):
            raise SpecMismatchError(
                f"the clips hold {self.describe()}, but {who} expects {wanted.describe()}; "
                "prepare the clips with that recipe or choose a model that expects what they hold."
            )

    def pick_channels(self, arrays: NDArray[Any], wanted: InputSpec) -> NDArray[Any]:
        """Take channels by name.

        Parameters
        ----------
        arrays : array of shape (N, \\*shape)
            Media of this spec.
        wanted : InputSpec
            The spec whose channels are taken.

        Returns
        -------
        array of shape (N, \\*wanted.shape)
            The `wanted` channels, in the wanted order.

        Examples
        --------
        >>> import numpy as np
        >>> import fsmer
        >>> held = fsmer.InputSpec("flow", (2, 2), ("u", "v", "strain"))
        >>> arrays = np.arange(12).reshape(1, 3, 2, 2)
        >>> held.pick_channels(arrays, fsmer.InputSpec("flow", (2, 2), ("strain",))).tolist()
        [[[[8, 9], [10, 11]]]]
        """
        if self.channels == wanted.channels:
            return arrays
        picked: NDArray[Any] = np.take(arrays, [self.channels.index(name) for name in wanted.channels], axis=-3)
        return picked

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON.

        Returns
        -------
        dict
            Field -> value.
        """
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Inverse of `to_dict`.

        Parameters
        ----------
        values : mapping
            What `to_dict` gives.

        Returns
        -------
        InputSpec
            The spec.

        Raises
        ------
        DataError
            A value is missing, or none that `to_dict` gives.
        """
        what, remedy = "the description of a medium", "prepare the clips again"
        found = checked(values, cls, "the values", what=what, remedy=remedy)
        for name in ("kind", "size", "channels", "normalisation"):
            if name not in values:
                raise DataError(f"the values cannot be read as {what} ({name} is missing); {remedy}.")
        return found


@cache
def _forms() -> dict[str, Any]:
    return get_type_hints(InputSpec, include_extras=True)


# Channels of images.
COLOURS = ("red", "green", "blue")


def image_spec(kind: str, side: int) -> InputSpec:
    """A square colour image with brightness from 0 to 1, of kind ``"onset"`` or ``"apex"``."""
    return InputSpec(kind=kind, size=(side, side), channels=COLOURS, normalisation="unit")


@dataclass(frozen=True)
class InputKind:
    """A kind of medium, see `register_input_kind`."""

    name: str
    channels: tuple[str, ...] = ()
    timed: bool = False
    needs_apex: bool = False
    make: Callable[[NDArray[np.uint8], InputSpec, int | None], Any] | None = None

    def check(self, spec: InputSpec) -> None:
        """Raise `SpecMismatchError` unless media of this spec can be made from frames by `make`."""
        if self.make is None:
            raise SpecMismatchError(
                f"media of kind {self.name!r} cannot be made from frames, since it was registered without a function "
                "that does (register_input_kind(..., make=)); read clips that hold them already."
            )
        if self.timed != (spec.frames is not None) or not set(spec.channels) <= set(self.channels or spec.channels):
            length = "a length in frames" if self.timed else "no length in frames"
            raise SpecMismatchError(
                f"{spec.describe()} cannot be made: media of kind {self.name!r} have {length} and the channels "
                f"{', '.join(self.channels) or 'of their choice'}."
            )

    def media(self, frames: NDArray[np.uint8], spec: InputSpec, apex: int | None) -> NDArray[np.float32]:
        """What `make` gives, or `MediaError` where it fails or gives something else than `spec` says."""
        assert self.make is not None
        try:
            found = np.asarray(self.make(frames, spec, apex), np.float32)
        # Code from outside raises whatever it likes.
        except Exception as error:
            if isinstance(error, FsmerError) or out_of_memory(error):
                raise
            raise MediaError(
                f"its {self.name} cannot be made ({type(error).__name__}: {error}); correct the function of that kind."
            ) from error
        wrong = f"shape {found.shape}" if found.shape != spec.shape else "numbers that are not finite"
        if found.shape != spec.shape or not np.isfinite(found).all():
            raise MediaError(
                f"its {self.name} was made with {wrong}, but finite numbers of shape {spec.shape} are expected; "
                "correct the function of that kind."
            )
        return found


def register_input_kind(
    name: str,
    *,
    channels: Sequence[str] = (),
    timed: bool = False,
    needs_apex: bool = False,
    make: Callable[[NDArray[np.uint8], InputSpec, int | None], Any] | None = None,
) -> InputKind:
    """Add a kind of medium, such as depth maps, that clips hold and backbones expect (``InputSpec(kind=name)``).

    Parameters
    ----------
    name : str
        A plain word.
    channels : sequence of str, default ()
        The channels that media of this kind can have; default any.
    timed : bool, default False
        Whether media have a length in frames.
    needs_apex : bool, default False
        Whether `make` is told the apex, which is spotted where it is not annotated.
    make : callable, optional
        ``make(frames, spec, apex)``: an array of ``spec.shape`` from the cropped face in each frame from onset to
        offset, uint8 of shape (T, H, W, 3); `apex` is the apex's place among them, or None. Without it, clips with
        such media are read, embedded and evaluated, but not prepared from recordings.

    Returns
    -------
    InputKind
        The kind as it is registered.

    Raises
    ------
    DataError
        The name is no plain word, `channels` are no sequence of names, or `make` is no function.
    PluginError
        The name is taken.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> from fsmer.data import register_input_kind
    >>> def brightness(frames, spec, apex):
    ...     return np.full(spec.shape, frames.mean() / 255)
    >>> kind = register_input_kind("brightness", channels=["mean"], make=brightness)
    >>> fsmer.InputSpec("brightness", (8, 8), ("mean",), "unit").shape
    (1, 8, 8)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"{name!r:.80} cannot name a kind of medium; give a plain word.")
    named = isinstance(channels, (list, tuple)) and all(isinstance(one, str) for one in channels)
    if not named or not (make is None or callable(make)):
        given = f"make={make!r:.80}" if named else f"channels={channels!r:.80}"
        raise DataError(f"the medium {name!r} has {given}; give a list of names as channels, a function as make.")
    kind = InputKind(name, tuple(channels), timed, needs_apex, make)
    # The registry asks every entry where it is from: a kind is from the module that registers it.
    vars(kind).update(__module__=sys._getframe(1).f_globals.get("__name__", "__main__"), __qualname__=name)
    return INPUT_KINDS.register(name)(kind)


for _kind in (
    InputKind("apex", COLOURS, needs_apex=True),
    InputKind("flow", needs_apex=True),
    InputKind("flows", timed=True),
    InputKind("frames", COLOURS, timed=True),
    InputKind("onset", COLOURS),
):
    INPUT_KINDS.register(_kind.name)(_kind)

# Height over width of the canonical crop before it is squeezed to a square: pupils are 63 mm apart and the mouth's line
# lies 67 mm below them (Farkas 1994); the canonical landmarks put these 0.57 crop widths and 0.435 crop heights apart.
CROP_ASPECT = (67 / 0.435) / (63 / 0.57)

"""What a clip's media is and what a backbone eats, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray

from fsmer.errors import DataError, SpecMismatchError
from fsmer.schema import checked

__all__ = ["CROP_ASPECT", "InputSpec"]

# Pixels, frames or channels of one clip.
Length = Annotated[int, Ge(1), Le(1 << 16)]


@dataclass(frozen=True)
class InputSpec:
    """Kind, size, channels and normalisation of one medium of a clip.

    The same class describes what a clip set holds and what a backbone eats, so that the two can be compared field by
    field.

    Parameters
    ----------
    kind : str
        ``"flow"`` (one map from onset to apex), ``"onset"`` and ``"apex"`` (one image each), ``"frames"`` (the whole
        clip as images) or ``"flows"`` (flow maps over the whole clip).
    size : tuple of int
        Height and width in pixels.
    channels : tuple of str
        Meaning of each channel in order, e.g. ``("u", "v", "strain")`` or ``("red", "green", "blue")``.
    normalisation : str
        ``"minmax"``: every channel scaled to 0..1 by its own minimum and maximum in that clip (as the public MEGC 2019
        maps are; sign and magnitude are lost). ``"signed"``: displacement in thousandths of the face width, zero means
        no motion. ``"unit"``: brightness from 0 (black) to 1.
    flow_method : str or None
        Name of the optical-flow estimator; ``None`` means unknown (clips) or any (backbones).
    frames : int or None
        Length in time of ``"frames"`` and ``"flows"``; ``None`` for a single map or image.
    """

    kind: str = "flow"
    size: tuple[Length, Length] = (28, 28)
    channels: Annotated[tuple[str, ...], Len(1, 1 << 16)] = ("u", "v", "strain")
    normalisation: str = "minmax"
    flow_method: str | None = None
    frames: Length | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one clip's array: ``(channels, height, width)``, with ``frames`` before them where there are any."""
        time = () if self.frames is None else (self.frames,)
        return (*time, len(self.channels), *self.size)

    def describe(self) -> str:
        """One phrase for messages, e.g. ``flow 28x28 (u, v, strain), minmax``."""
        times = "" if self.frames is None else f"{self.frames} x "
        method = f", {self.flow_method}" if self.flow_method else ""
        height, width = self.size
        return f"{self.kind} {times}{height}x{width} ({', '.join(self.channels)}), {self.normalisation}{method}"

    def check_feeds(self, wanted: InputSpec, *, who: str = "the backbone") -> None:
        """Raise `SpecMismatchError` naming both sides unless media of this spec can be fed where `wanted` is eaten.

        Channels may be more than are wanted: they are then picked by name (see `pick_channels`).
        """
        same = (self.kind, self.size, self.frames, self.normalisation) == (
            wanted.kind,
            wanted.size,
            wanted.frames,
            wanted.normalisation,
        ) and set(wanted.channels) <= set(self.channels)
        method_fits = None in (self.flow_method, wanted.flow_method) or self.flow_method == wanted.flow_method
        if not (same and method_fits):
            raise SpecMismatchError(
                f"the clips hold {self.describe()}, but {who} eats {wanted.describe()}; "
                "prepare the clips with that recipe or choose a model that eats them."
            )

    def pick_channels(self, arrays: NDArray[Any], wanted: InputSpec) -> NDArray[Any]:
        """The `wanted` channels of `arrays` that hold this spec, (N, \\*shape), in the wanted order."""
        if self.channels == wanted.channels:
            return arrays
        picked: NDArray[Any] = np.take(arrays, [self.channels.index(name) for name in wanted.channels], axis=-3)
        return picked

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Inverse of `to_dict`.

        Raises
        ------
        DataError
            A value is missing or none that `to_dict` gives.
        """
        words: Any = {"what": "the description of a medium", "remedy": "prepare the clips again"}
        found = checked(values, cls, "the values", **words)
        for name in ("kind", "size", "channels", "normalisation"):
            if name not in values:
                raise DataError(f"the values cannot be read as {words['what']} ({name} is missing); {words['remedy']}.")
        return found


# Height over width of the canonical crop before it is squeezed to a square: pupils are 63 mm apart and the mouth's line
# lies 67 mm below them (Farkas 1994); the canonical landmarks put these 0.57 crop widths and 0.435 crop heights apart.
CROP_ASPECT = (67 / 0.435) / (63 / 0.57)

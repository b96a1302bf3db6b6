"""`Clip`: one micro-expression sample, whose media are read when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.media import LazyArray, RowError
from fsmer.data.media_checks import check_arrays
from fsmer.data.table import CORE_COLUMNS, plain_text
from fsmer.errors import DataError, MediaError, SpecMismatchError

__all__ = ["Clip", "listed", "media_error", "no_such_kind"]


@dataclass(frozen=True)
class Clip:
    """One micro-expression sample.

    Parameters
    ----------
    id : str
        Name that is unique in its clip set.
    dataset : str, default "mine"
        Where it is from.
    subject : str, default ""
        Whose face it is, as text (``"006"``); ``""`` when unknown.
    label : str, optional
        Its class; None when unknown.
    aus : str, default ""
        Action units as the annotation writes them; ``""`` when unknown. See `fsmer.data.parse_aus`.
    media : mapping of str to LazyArray, optional
        Kind of medium -> array, read when asked for; plain arrays of shape ``(channels, height, width)`` are wrapped.
    extra : mapping, optional
        Further columns of the table.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> flow = np.random.default_rng(0).random((3, 28, 28), dtype=np.float32)
    >>> clip = fsmer.Clip("take-1", subject="006", label="positive", media={"flow": flow})
    >>> clip.label, clip.flow.shape
    ('positive', (3, 28, 28))
    >>> clip.read("flow").dtype.name
    'float32'
    """

    id: str
    dataset: str = "mine"
    subject: str = ""
    label: str | None = None
    aus: str = ""
    media: Mapping[str, LazyArray] = field(default_factory=dict, compare=False, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in (*CORE_COLUMNS[1:], "id"):
            object.__setattr__(self, name, self._text(name))
        lazy = {kind: item if isinstance(item, LazyArray) else LazyArray.of(item) for kind, item in self.media.items()}
        object.__setattr__(self, "media", MappingProxyType(lazy))
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    def _text(self, name: str) -> str | None:
        try:
            return plain_text(getattr(self, name)) or (None if name == "label" else "")
        except TypeError as error:
            raise DataError(f"{name} of clip {self.id!r} is {error}, but text or a number is expected.") from error

    @property
    def flow(self) -> NDArray[np.float32]:
        """The flow map, shape ``(channels, height, width)``."""
        return self.read("flow")

    def read(self, kind: str = "flow") -> NDArray[np.float32]:
        """Read and check one medium.

        Parameters
        ----------
        kind : str, default "flow"
            Kind of medium.

        Returns
        -------
        float32 array
            The medium, of its spec's shape.

        Raises
        ------
        SpecMismatchError
            The clip holds none of that kind.
        MediaError
            It is missing, unreadable, not finite or constant.
        """
        if kind not in self.media:
            raise no_such_kind(f"clip {self.id!r} holds", kind, self.media)
        lazy = self.media[kind]
        try:
            array = lazy.read()
        except RowError as error:
            raise media_error(self.id, self.dataset, error.reason) from error
        problem = check_arrays(array[np.newaxis], lazy.spec)
        if problem is not None:
            raise media_error(self.id, self.dataset, problem[1])
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapping proxies cannot be sent to another process, plain dictionaries can.
        return (Clip, (self.id, self.dataset, self.subject, self.label, self.aus, dict(self.media), dict(self.extra)))


def no_such_kind(who: str, kind: str, held: Mapping[str, Any]) -> SpecMismatchError:
    """The error for a kind of medium that is not held."""
    return SpecMismatchError(
        f"{who} no {kind!r} media (held: {listed(held)}); prepare {kind} first or ask for what is there."
    )


def listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    """Names in one phrase."""
    return ", ".join(names) or "none"


def media_error(clip: str, dataset: str, reason: str) -> MediaError:
    """The error for a medium of one clip."""
    return MediaError(f"clip {clip!r} of data set {dataset!r}: {reason}")

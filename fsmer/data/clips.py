"""`Clip` and `ClipSet`: a table of clips with media that are read only when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.arrays import plain_array
from fsmer.data.conditions import condition_mask
from fsmer.data.media import (
    ArrayStore,
    ConcatStore,
    LazyArray,
    MediaStore,
    RowError,
    check_arrays,
    copied,
    nameless,
    narrowed,
    origins,
)
from fsmer.data.saved import HEADER, TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.schemes import LabelScheme, RelabelReport, load_scheme
from fsmer.data.spec import InputSpec
from fsmer.data.table import (
    CORE_COLUMNS,
    cells_as_text,
    clean_table,
    describe_type,
    known_texts,
    plain_text,
    plain_texts,
    write_table,
)
from fsmer.errors import DataError, MediaError, OutputError, SpecMismatchError
from fsmer.io import atomic_folder

if TYPE_CHECKING:
    from fsmer.data.torch_dataset import TorchClips

__all__ = ["Clip", "ClipSet", "concat"]


@dataclass(frozen=True)
class Clip:
    """One micro-expression sample.

    Parameters
    ----------
    id : str
        Name that is unique in its clip set.
    dataset : str
        Where it is from.
    subject : str
        Whose face it is, as text (``"006"``); ``""`` when unknown.
    label : str or None
        Its class; None when unknown.
    aus : str
        Action units as the annotation writes them; ``""`` when unknown. See `fsmer.data.parse_aus`.
    media : mapping of str to LazyArray
        Kind of medium -> array, read when asked for; plain arrays of shape ``(channels, height, width)`` are wrapped.
    extra : mapping
        Further columns of the table.
    """

    id: str
    dataset: str = "mine"
    subject: str = ""
    label: str | None = None
    aus: str = ""
    media: Mapping[str, LazyArray] = field(default_factory=dict, compare=False, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in CORE_COLUMNS[1:]:
            object.__setattr__(self, name, self._text(name))
        object.__setattr__(self, "id", self._text("id"))
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

        Raises
        ------
        SpecMismatchError
            The clip holds no such medium.
        MediaError
            It is missing, unreadable, not finite or constant.
        """
        if kind not in self.media:
            raise _no_such_kind(f"clip {self.id!r} holds", kind, self.media)
        lazy = self.media[kind]
        try:
            array = lazy.read()
        except RowError as error:
            raise _media_error(self.id, self.dataset, error.reason) from error
        problem = check_arrays(array[np.newaxis], lazy.spec)
        if problem is not None:
            raise _media_error(self.id, self.dataset, problem[1])
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapping proxies cannot be sent to another process, plain dictionaries can.
        return (Clip, (self.id, self.dataset, self.subject, self.label, self.aus, dict(self.media), dict(self.extra)))


class ClipSet(Sequence[Clip]):
    """An ordered, immutable collection of clips: a table, and media that are read when asked for.

    Make one with `read_clips`, `from_arrays`, `from_table`, `from_clips` or `concat`. Masks, index arrays, slices and
    lists of ids give smaller clip sets that share table and media with this one; nothing is copied. It is also a
    map-style data set for ``torch.utils.data.DataLoader`` (with `collate_clips`).

    Examples
    --------
    >>> import numpy as np
    >>> maps = np.random.default_rng(0).random((4, 3, 28, 28), dtype=np.float32)
    >>> clips = ClipSet.from_arrays(maps, ["negative", "positive"] * 2, subjects=["1", "1", "2", "2"])
    >>> clips[clips.labels == "positive"].ids.tolist()
    ['mine-1', 'mine-3']
    """

    def __init__(self, base: _Base, rows: NDArray[np.int64], relabelling: RelabelReport | None = None) -> None:
        self._base = base
        self._rows = rows
        self.relabelling = relabelling
        """What `relabel` mapped and dropped, on the set that it returned; None elsewhere."""

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_table(cls, frame: pd.DataFrame, media: Mapping[str, MediaStore] | None = None) -> ClipSet:
        """Make a clip set of a table and stores whose rows stand in the table's order.

        Parameters
        ----------
        frame : DataFrame
            Columns ``clip`` (unique id) and optionally ``dataset`` (default ``"mine"``), ``subject`` (default
            unknown), ``label`` (default none), ``aus``; all are kept as text, other columns as they are.
        media : mapping of str to MediaStore, optional
            Kind -> store with one row a clip. Nothing is read.

        Raises
        ------
        DataError
            No clips, a missing or doubled id, a doubled column, or stores of another length.
        """
        media = dict(media or {})
        for kind, store in media.items():
            if kind != store.spec.kind or not kind.isidentifier():
                raise DataError(
                    f"media of kind {store.spec.kind!r} stand under the name {kind!r}; "
                    "name them by their kind, a plain word."
                )
        if not len(frame):
            raise DataError("the table has no rows; a clip set needs at least one clip.")
        for kind, store in media.items():
            if len(store) != len(frame):
                raise DataError(
                    f"the table has {len(frame)} clips but its {kind} has {len(store)} rows; give one row a clip."
                )
        return cls._whole(_Base(clean_table(frame), media))

    @classmethod
    def from_arrays(
        cls,
        media: ArrayLike | Mapping[str, ArrayLike],
        labels: ArrayLike | None,
        *,
        subjects: ArrayLike | None = None,
        datasets: ArrayLike = "mine",
        ids: ArrayLike | None = None,
        aus: ArrayLike | None = None,
        spec: InputSpec | Sequence[InputSpec] | None = None,
    ) -> ClipSet:
        """Make a clip set of media in memory; the arrays are kept, not copied.

        Parameters
        ----------
        media : array of shape (N, \\*spec.shape), or mapping of kind to such arrays
            Floats, or 8-bit values (read as value / 255). A single array without a spec is flow maps of shape
            (N, channels, height, width).
        labels : sequence of N labels, or None
            Anything that is no text becomes text as `fsmer.data.table.plain_text` says (numbers, booleans, members of
            an ``Enum`` by their value); None, NaN and empty text stand for unlabelled.
        subjects, datasets, ids, aus : sequence of N, or one value for all
            Clips without a subject count as one person of their data set in protocols, so give subjects where you can.
        spec : InputSpec or sequence of InputSpec, optional
            What the arrays hold, e.g. a backbone's ``input_specs``. Default: min-max maps of the array's size with
            channels (u, v) or (u, v, strain).

        Raises
        ------
        DataError
            Lengths that differ, a doubled id, an array of another form, or a kind without a spec.
        """
        specs = [spec] if isinstance(spec, InputSpec) else list(spec or [])
        stores = {store.spec.kind: store for store in _array_stores(media, specs)}
        n = len(next(iter(stores.values())))
        dataset = _column("dataset", "datasets", datasets, n)
        columns = {
            "clip": [f"{name or 'mine'}-{row:0{len(str(n - 1))}d}" for row, name in enumerate(dataset)]
            if ids is None
            else _column("clip", "ids", ids, n),
            "dataset": dataset,
            "subject": _column("subject", "subjects", subjects, n),
            "label": _column("label", "labels", labels, n),
            "aus": _column("aus", "aus", aus, n),
        }
        frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
        return cls.from_table(frame, stores)

    @classmethod
    def from_clips(cls, clips: Sequence[Clip]) -> ClipSet:
        """Make a clip set of single clips, in that order.

        Raises
        ------
        DataError
            No clips, or an id twice.
        SpecMismatchError
            The clips hold different media.
        """
        clips = list(clips)
        if not clips:
            raise DataError("the list of clips is empty; a clip set needs at least one clip.")
        media: dict[str, MediaStore] = {}
        for kind in clips[0].media:
            media[kind] = _store_of([_lazy(clip, kind) for clip in clips], clips)
        for clip in clips:
            for kind in clip.media:
                if kind not in media:
                    raise _no_such_kind(f"clip {clips[0].id!r} holds", kind, media)
        records = [
            {**clip.extra, **{name: getattr(clip, name) for name in CORE_COLUMNS[1:]}, "clip": clip.id}
            for clip in clips
        ]
        return cls.from_table(pd.DataFrame(records), media)

    @classmethod
    def _whole(cls, base: _Base) -> ClipSet:
        return cls(base, np.arange(len(base.frame), dtype=np.int64))

    # -- what it holds ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        datasets, labels = (_counted(coding) for coding in (self._dataset_coding, self._label_coding))
        held = "; ".join(spec.describe() for spec in self.specs.values()) or "no media"
        return f"ClipSet({len(self)} clips; {datasets or 'no data set'}; {labels or 'no labels'}; {held})"

    @cached_property
    def _table(self) -> pd.DataFrame:
        frame = self._base.frame
        if self._is_whole:
            return frame
        part = frame.take(self._rows).reset_index(drop=True)
        # Categories that no clip of this set has would show up as empty groups and zero counts.
        return part.assign(
            **{name: part[name].cat.remove_unused_categories() for name in ("dataset", "subject", "label")}
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row a clip in this set's order: ``clip, dataset, subject, label, aus`` and further columns.

        A view of its own (pandas copies on write): changing it does not change the clip set.
        """
        return self._table.copy(deep=False)

    @property
    def _is_whole(self) -> bool:
        return len(self._rows) == len(self._base.frame) and bool((self._rows[1:] > self._rows[:-1]).all())

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """Clip ids, shape ``(N,)``, text (read-only)."""
        return _frozen(self._base.ids[self._rows])

    @cached_property
    def labels(self) -> NDArray[np.object_]:
        """Labels, shape ``(N,)``, text or None (read-only)."""
        return _frozen(self._base.values("label")[self._rows])

    @cached_property
    def subjects(self) -> NDArray[np.object_]:
        """Subjects, shape ``(N,)``, text (read-only); the same name in two data sets means two people."""
        return _frozen(self._base.values("subject")[self._rows])

    @cached_property
    def datasets(self) -> NDArray[np.object_]:
        """Data set of each clip, shape ``(N,)``, text (read-only)."""
        return _frozen(self._base.values("dataset")[self._rows])

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels that occur, sorted."""
        return self._label_coding[0]

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Data sets that occur, sorted."""
        return self._dataset_coding[0]

    @property
    def subject_names(self) -> tuple[tuple[str, str], ...]:
        """``(dataset, subject)`` of every person that occurs, sorted."""
        return self._subject_coding[0]

    @property
    def specs(self) -> Mapping[str, InputSpec]:
        """Kind of medium -> what is held."""
        return MappingProxyType({kind: store.spec for kind, store in self._base.media.items()})

    @cached_property
    def _label_coding(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        return _compact(self._base.categories("label"), self._base.codes("label")[self._rows])

    @cached_property
    def _dataset_coding(self) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        return _compact(self._base.categories("dataset"), self._base.codes("dataset")[self._rows])

    @cached_property
    def _subject_coding(self) -> tuple[tuple[tuple[str, str], ...], NDArray[np.int64]]:
        names, codes = self._base.people
        return _compact(names, codes[self._rows])

    def codes(self, classes: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Labels as indices into `classes` (default: `self.classes`), int64 of shape ``(N,)``.

        Raises
        ------
        DataError
            A clip has no label, or one that is not in `classes`; the message names both.
        """
        names, own = self._label_coding
        wanted = names if classes is None else tuple(known_texts(classes, "classes"))
        place = {name: index for index, name in enumerate(wanted)}
        # The last entry answers code -1, the unlabelled clips.
        lookup = np.array([*(place.get(name, -1) for name in names), -1], np.int64)
        codes = lookup[own]
        wrong = np.flatnonzero(codes < 0)
        if len(wrong):
            first = int(wrong[0])
            label, clip = self.labels[first], self.ids[first]
            if label is None:
                raise DataError(f"clip {clip!r} has no label, but one is needed here; label it or leave it out.")
            raise DataError(
                f"clip {clip!r} has the label {label!r}, which is none of the classes {', '.join(wanted)}; "
                "relabel the clips or select those of these classes."
            )
        return codes

    def subject_codes(self) -> NDArray[np.int64]:
        """Person of each clip as an index into `subject_names`, int64 of shape ``(N,)``.

        Raises
        ------
        DataError
            Subjects are known for a part of a data set only.
        """
        names, codes = self._subject_coding
        nameless = {dataset for dataset, subject in names if not subject}
        partly = next((dataset for dataset, subject in names if subject and dataset in nameless), None)
        if partly is not None:
            # A nameless clip may show a person who has a name elsewhere in that data set.
            clip = self.ids[int(np.flatnonzero(codes == names.index((partly, "")))[0])]
            raise DataError(
                f"clip {clip!r} of data set {partly!r} has no subject while others of it have, "
                "so the same person's clips could not be kept apart; give it one or leave it out."
            )
        return codes.copy()

    def dataset_codes(self) -> NDArray[np.int64]:
        """Data set of each clip as an index into `dataset_names`, int64 of shape ``(N,)``."""
        return self._dataset_coding[1].copy()

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of clips in this set by id, int64.

        Raises
        ------
        DataError
            An id is not in this set.
        """
        wanted = list(ids)
        found = np.asarray(self._index.get_indexer(pd.Index(wanted, dtype=object)), np.int64)
        if (found < 0).any():
            missing = wanted[int(np.flatnonzero(found < 0)[0])]
            raise DataError(f"clip {missing!r} is not in this set of {len(self)} clips; check the id.")
        return found

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.ids, dtype=object)

    # -- choosing clips -----------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, item: int) -> Clip: ...
    @overload
    def __getitem__(self, item: slice) -> ClipSet: ...
    @overload
    def __getitem__(self, item: ArrayLike) -> ClipSet: ...
    def __getitem__(self, item: Any) -> Clip | ClipSet:
        if isinstance(item, (int, np.integer)) and not isinstance(item, (bool, np.bool_)):
            return self._base.clip(int(self._rows[item]))
        if isinstance(item, slice):
            return ClipSet(self._base, self._rows[item])
        return ClipSet(self._base, self._rows[self._places(item)])

    def _places(self, item: Any) -> NDArray[np.int64]:
        chosen = np.asarray(item)
        if chosen.dtype.kind == "f" and chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim == 1 and chosen.dtype.kind in "UOT" and all(isinstance(one, str) for one in chosen.tolist()):
            chosen = self.positions(chosen.tolist())
        if chosen.dtype.kind == "O" and all(isinstance(one, (bool, np.bool_)) for one in chosen.ravel().tolist()):
            chosen = chosen.astype(bool)
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise DataError(
                "clips are chosen by an int, a slice, or a one-dimensional mask, index array or list of ids, "
                f"not by {describe_type(item)}."
            )
        if chosen.dtype.kind == "b":
            if len(chosen) != len(self):
                raise DataError(
                    f"the mask has {len(chosen)} entries, but the set has {len(self)} clips; "
                    "make it from this set's table."
                )
            return np.flatnonzero(chosen)
        places = chosen.astype(np.int64)
        if len(places) and (places.min() < -len(self) or places.max() >= len(self)):
            raise IndexError(f"an index runs from {places.min()} to {places.max()}, but the set has {len(self)} clips.")
        places = np.where(places < 0, places + len(self), places)
        if _has_doubles(places, len(self)):
            values, counts = np.unique(places, return_counts=True)
            raise DataError(f"clip {self.ids[values[counts > 1][0]]!r} was chosen twice; a clip set holds a clip once.")
        return places

    def __iter__(self) -> Iterator[Clip]:
        for row in self._rows.tolist():
            yield self._base.clip(row)

    def __contains__(self, item: object) -> bool:
        name = item.id if isinstance(item, Clip) else item
        return isinstance(name, str) and name in self._index

    def select(self, where: str | Callable[[pd.DataFrame], ArrayLike] | None = None, /, **equals: Any) -> ClipSet:
        """Choose clips by their table.

        Parameters
        ----------
        where : str or callable, optional
            A condition such as ``"dataset == 'smic' and subject != '006'"``, as `fsmer.data.conditions` describes them,
            or a function from the table to a mask.
        **equals
            Columns and the value (or list of values) that they must have, e.g. ``dataset="smic"`` or ``label=["a",
            "b"]``.

        Raises
        ------
        DataError
            The expression cannot be read, names an unknown column, gives no mask, or no clip matches.
        """
        table = self._table
        mask = np.ones(len(self), bool)
        if where is not None:
            mask &= _mask_of(where, self.table)
        for name, value in equals.items():
            if name not in table.columns:
                raise DataError(
                    f"there is no column {name!r} to select by; the table has {', '.join(map(str, table.columns))}."
                )
            wanted = list(value) if isinstance(value, (list, tuple, set, frozenset, np.ndarray)) else [value]
            if name in CORE_COLUMNS:
                wanted = [text or (None if name == "label" else "") for text in plain_texts(wanted, name)]
            mask &= table[name].isin(wanted).to_numpy(bool)
        if not mask.any():
            conditions = [] if where is None else [where if isinstance(where, str) else "the given function"]
            asked = " and ".join([*conditions, *(f"{name} = {value!r}" for name, value in equals.items())])
            people = [name for _, name in self.subject_names]
            raise DataError(
                f"no clip matches {asked}: the set has data sets {_listed(self.dataset_names)}; "
                f"labels {_listed(self.classes)}; {len(people)} subjects such as {_listed(people[:2])}. "
                "Correct the condition; values are text, as in subject == '006'."
            )
        return self[mask]

    def relabel(self, scheme: str | LabelScheme, *, column: str = "label") -> ClipSet:
        """Apply a label scheme: clips that it keeps, in this order, with its classes as labels.

        Parameters
        ----------
        scheme : str or LabelScheme
            Name of a built-in scheme (see `fsmer.data.list_schemes`) or your own.
        column : str
            Column that holds the labels to translate.

        Returns
        -------
        ClipSet
            Its ``relabelling`` says what was mapped and dropped.

        Raises
        ------
        UnknownNameError
            No scheme of that name.
        DataError
            The scheme does not cover a data set of this set, or does not know a label.
        """
        scheme = load_scheme(scheme)
        if column not in self._base.frame.columns:
            raise DataError(
                f"there is no column {column!r} to relabel; the table has {', '.join(self._base.frame.columns)}."
            )
        old_names, old_codes = self._base.coded(column)
        old_codes = old_codes[self._rows]
        pair = self._base.codes("dataset")[self._rows] * (len(old_names) + 1) + old_codes + 1
        present, where, counts = np.unique(pair, return_inverse=True, return_counts=True)
        datasets = self._base.categories("dataset")
        keys = [
            (datasets[code // (len(old_names) + 1)], ("", *old_names)[code % (len(old_names) + 1)])
            for code in present.tolist()
        ]
        new = [scheme.class_of(dataset, old) if old else None for dataset, old in keys]
        codes = np.array([-1 if name is None else scheme.classes.index(name) for name in new], np.int64)[where]
        excluded = [(place, reason) for place, reason in self._exclusions(scheme) if codes[place] >= 0]
        codes[[place for place, _ in excluded]] = -1
        kept = np.bincount(where[codes >= 0], minlength=len(keys)).tolist()
        report = RelabelReport(
            scheme.name,
            mapped={
                key: (name, kept[index])
                for index, (key, name) in enumerate(zip(keys, new, strict=True))
                if name is not None
            },
            dropped={
                key: int(counts[index]) for index, (key, name) in enumerate(zip(keys, new, strict=True)) if name is None
            },
            excluded=tuple((self.ids[place], reason) for place, reason in excluded),
        )
        whole = np.full(len(self._base.frame), -1, np.int64)
        whole[self._rows] = codes
        return ClipSet(self._base.with_labels(scheme.classes, whole), self._rows[codes >= 0], report)

    def _exclusions(self, scheme: LabelScheme) -> list[tuple[int, str]]:
        found = []
        for exclusion in scheme.exclusions:
            for place, clip in enumerate(self.ids.tolist()):
                # The cheap test on the name spares a table of a million clips the exact one.
                if clip.endswith(exclusion.clip) and exclusion.matches(
                    self.datasets[place], self.subjects[place], clip
                ):
                    found.append((place, exclusion.reason))
        return found

    def with_prefix(self, prefix: str | None = None) -> ClipSet:
        """Same clips with ids ``prefix/id``, so that sets with equal ids can be joined.

        Parameters
        ----------
        prefix : str, optional
            Default: each clip's data set.
        """
        base = self._base
        fronts = base.values("dataset") if prefix is None else np.full(len(base.frame), prefix, object)
        ids = [f"{front}/{clip}" for front, clip in zip(fronts.tolist(), base.ids.tolist(), strict=True)]
        return ClipSet(_Base(base.frame.assign(clip=pd.Series(ids, dtype="str")), base.media), self._rows)

    def isolated(self, *, labelled: bool = True, in_memory: bool = False) -> ClipSet:
        """The same clips as a set of its own, from which nothing of the set that they were chosen from can be reached.

        Parts share table and media with the whole, so whoever holds one could look up the labels of the others; a set
        apart is what a learner may hold while those others are to judge it.

        Parameters
        ----------
        labelled : bool
            False leaves out what was annotated too: label, action units and all further columns, and the names of clips
            and of image files, since these often hold a label (``s03_po_05``, ``negative/map.png``). The clips are
            numbered instead, and images are read here and now.
        in_memory : bool
            All media are read here and now into arrays of their own. Otherwise those of large arrays stay a view into
            them, from which the media of other clips and the rows of these can be reached.

        Raises
        ------
        MediaError
            A medium that has to be read cannot be.
        """
        if labelled:
            table = self.table
        else:
            table = self.table[["dataset", "subject"]]
            table.insert(0, "clip", [f"clip-{row}" for row in range(len(table))])
        cut = copied if in_memory else narrowed if labelled else nameless
        stores = {kind: self._cut(kind, cut) for kind in self._base.media}
        columns = table.astype(dict.fromkeys({"dataset", "subject", "label"} & set(table.columns), object))
        return ClipSet._whole(_Base(clean_table(columns), stores))

    def _cut(self, kind: str, cut: Callable[[MediaStore, NDArray[np.int64]], MediaStore]) -> MediaStore:
        try:
            return cut(self._base.media[kind], self._rows)
        except RowError as error:
            raise self._base.media_error(error.row, error.reason) from error

    # -- media --------------------------------------------------------------------------------------------------------

    def media(self, kind: str = "flow") -> NDArray[np.float32]:
        """Read and check the media of all clips: a new float32 array of shape ``(N, channels, height, width)``.

        Raises
        ------
        SpecMismatchError
            The clips hold no such medium.
        MediaError
            A clip's medium is missing, unreadable, of another size, not finite or constant; the message names the clip.
        """
        return self.read(kind)

    def read(self, kind: str = "flow", indices: ArrayLike | slice | None = None) -> NDArray[np.float32]:
        """Read and check the media of some clips (default: all), in the order asked.

        Parameters
        ----------
        kind : str
            Kind of medium.
        indices : slice, mask or index array, optional
            Positions in this set; a position may be asked more than once.

        Raises
        ------
        SpecMismatchError, MediaError
            As for `media`.
        """
        if kind not in self._base.media:
            raise _no_such_kind("the clips hold", kind, self._base.media)
        store = self._base.media[kind]
        rows = self._rows
        if isinstance(indices, slice):
            rows = rows[indices]
        elif indices is not None:
            places = np.asarray(indices)
            # An empty list arrives as floats.
            rows = rows[places if places.size else places.astype(np.int64)]
        try:
            arrays = store.read(rows)
        except RowError as error:
            raise self._base.media_error(error.row, error.reason) from error
        problem = check_arrays(arrays, store.spec)
        if problem is not None:
            raise self._base.media_error(int(rows[problem[0]]), problem[1])
        return arrays

    def origins(self, kind: str = "flow") -> list[tuple[Any, int]]:
        """Where the medium of each clip comes from, the same in all parts of a set, see `fsmer.data.media.origins`."""
        return origins(self._base.media[kind], self._rows)

    def batches(self, kind: str = "flow", size: int = 256) -> Iterator[NDArray[np.float32]]:
        """Read the media of all clips in order, at most `size` clips at a time."""
        for start in range(0, len(self), size):
            yield self.read(kind, slice(start, start + size))

    def as_torch(self, classes: Sequence[str] | None = None, kind: str = "flow") -> TorchClips:
        """Map-style data set of ``(tensor, class index)`` for ``torch.utils.data.DataLoader``.

        Parameters
        ----------
        classes : sequence of str, optional
            Order of the class indices; default `self.classes`.
        kind : str
            Kind of medium.
        """
        from fsmer.data.torch_dataset import TorchClips

        return TorchClips(self, kind, self.codes(classes))

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write table and media to one folder, which is whole or not there.

        The folder gets ``clips.json`` (specs, column types, format version, digests), ``table.csv`` and one ``.npy`` a
        kind of medium. A clip set of that name that was saved before is replaced; who reads it meanwhile gets the one
        or the other.

        Raises
        ------
        OutputError
            The folder cannot be written, or holds something else than a clip set.
        MediaError
            A clip's medium cannot be read; nothing is written then.
        """
        if not len(self):
            raise DataError("the clip set holds no clips, so there is nothing to save.")
        target = Path(folder)
        try:
            if target.is_dir() and any(target.iterdir()) and not (target / HEADER).is_file():
                raise OutputError(
                    f"cannot write {target}: it holds other files, which would be lost; choose a new folder."
                )
            with atomic_folder(target) as temporary:
                arrays = []
                for kind, spec in self.specs.items():
                    with ArrayWriter(temporary, spec, len(self), "<f4") as array:
                        for batch in self.batches(kind):
                            array.write(np.ascontiguousarray(batch, "<f4").data)
                    arrays.append(array)
                write_header(temporary, write_table(temporary / TABLE, self._table), len(self), arrays)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {target}: {error.strerror or error}; choose a folder that you may write to."
            ) from error
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ClipSet:
        """Open a folder written by `save`; media stay on disk until they are read, and are checked then.

        Raises
        ------
        DataError
            The folder is no saved clip set, is damaged, or comes from a newer version.
        MediaError
            An array file is missing, cut short or damaged; where it is damaged further on, reading says so.
        """
        frame, stores = read_folder(Path(folder))
        return cls.from_table(frame, stores)


def concat(sets: Sequence[ClipSet], *, kinds: Sequence[str] | None = None) -> ClipSet:
    """Join clip sets, one after the other; nothing is read.

    Parameters
    ----------
    sets : sequence of ClipSet
    kinds : sequence of str, optional
        Kinds of media to keep. Default: all, which every set must hold then.

    Raises
    ------
    DataError
        No clips, or an id in two sets (prefix the ids with `ClipSet.with_prefix` first).
    SpecMismatchError
        The sets hold different media.
    """
    parts = [clips for clips in sets if len(clips)]
    if not parts:
        raise DataError("there are no clips to join; give at least one set that is not empty.")
    wanted = tuple(parts[0].specs) if kinds is None else tuple(kinds)
    for clips in parts:
        lacking = [kind for kind in wanted if kind not in clips.specs]
        further = [kind for kind in clips.specs if kind not in wanted] if kinds is None else []
        if lacking or further:
            raise SpecMismatchError(
                f"one set of clips holds {_listed(clips.specs)}, but {_listed(wanted)} is expected of all; "
                "pass kinds=[...] with the media that all of them hold."
            )
    tables = [clips.table for clips in parts]
    names = pd.concat([table["clip"] for table in tables], ignore_index=True)
    doubled = names.duplicated().to_numpy()
    if doubled.any():
        shown = ", ".join(repr(name) for name in names[doubled].iloc[:3])
        raise DataError(
            f"{int(doubled.sum())} clip ids are in more than one set, such as {shown}; "
            "make them unique with clips.with_prefix(), which puts the data set before the id (on the command line: "
            "one --prefix NAME for each --data), or leave them out."
        )
    frame = pd.concat(
        [table.astype(dict.fromkeys(("dataset", "subject", "label"), object)) for table in tables], ignore_index=True
    )
    media = {kind: ConcatStore.join([(clips._base.media[kind], clips._rows) for clips in parts]) for kind in wanted}
    return ClipSet.from_table(frame, media)


class _Base:
    # The table and stores that a clip set and all its parts share, with the codes that make masks and counts cheap.

    def __init__(self, frame: pd.DataFrame, media: Mapping[str, MediaStore]) -> None:
        self.frame = frame
        self.media = dict(media)
        self._codes: dict[str, NDArray[np.int64]] = {}

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        return np.asarray(self.frame["clip"].to_numpy(object))

    def codes(self, column: str) -> NDArray[np.int64]:
        if column not in self._codes:
            self._codes[column] = self.frame[column].cat.codes.to_numpy(np.int64)
        return self._codes[column]

    def categories(self, column: str) -> tuple[str, ...]:
        return tuple(self.frame[column].cat.categories.tolist())

    def coded(self, column: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        if column in ("dataset", "subject", "label"):
            return self.categories(column), self.codes(column)
        words = cells_as_text(self.frame[column], column)
        codes, names = pd.factorize(np.array([word or None for word in words], object), sort=True)
        return tuple(names.tolist()), codes.astype(np.int64)

    def values(self, column: str) -> NDArray[np.object_]:
        # The last entry answers code -1, the unlabelled clips.
        return np.array([*self.categories(column), None], object)[self.codes(column)]

    @cached_property
    def people(self) -> tuple[tuple[tuple[str, str], ...], NDArray[np.int64]]:
        datasets, subjects = self.categories("dataset"), self.categories("subject")
        pair = self.codes("dataset") * len(subjects) + self.codes("subject")
        present, codes = np.unique(pair, return_inverse=True)
        names = tuple((datasets[code // len(subjects)], subjects[code % len(subjects)]) for code in present.tolist())
        return names, codes.astype(np.int64)

    def with_labels(self, classes: Sequence[str], codes: NDArray[np.int64]) -> _Base:
        labels = pd.Categorical.from_codes(codes, categories=list(classes)).reorder_categories(sorted(classes))
        return _Base(self.frame.assign(label=labels), self.media)

    def clip(self, row: int) -> Clip:
        values = {name: self.frame[name].iat[row] for name in self.frame.columns}
        label = values.pop("label")
        return Clip(
            id=values.pop("clip"),
            dataset=values.pop("dataset"),
            subject=values.pop("subject"),
            label=label if isinstance(label, str) else None,
            aus=values.pop("aus"),
            media={kind: LazyArray(store, row) for kind, store in self.media.items()},
            extra=values,
        )

    def media_error(self, row: int, reason: str) -> MediaError:
        return _media_error(self.ids[row], self.frame["dataset"].iat[row], reason)


def _column(column: str, name: str, values: ArrayLike | None, n: int) -> list[str | None]:
    if values is None or isinstance(values, (str, bytes, int, float, Enum)) or getattr(values, "shape", None) == ():
        return plain_texts([values], column) * n
    listed = plain_texts(values, column)
    if len(listed) != n:
        raise DataError(f"there are {n} clips but {len(listed)} {name}; give one a clip.")
    return listed


def _counted(coding: tuple[tuple[str, ...], NDArray[np.int64]]) -> str:
    names, codes = coding
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def _compact(names: Sequence[Any], codes: NDArray[np.int64]) -> tuple[tuple[Any, ...], NDArray[np.int64]]:
    # Names that occur, and codes into them; -1 stays -1 through the last entry of the lookup.
    present = np.bincount(codes[codes >= 0], minlength=len(names)) > 0
    lookup = np.append(np.cumsum(present) - 1, -1)
    return tuple(name for name, there in zip(names, present.tolist(), strict=True) if there), lookup[codes]


def _has_doubles(places: NDArray[np.int64], n: int) -> bool:
    if len(places) * 16 < n:
        return len(np.unique(places)) < len(places)
    seen = np.zeros(n, bool)
    seen[places] = True
    return int(seen.sum()) < len(places)


def _mask_of(where: str | Callable[[pd.DataFrame], ArrayLike], table: pd.DataFrame) -> NDArray[np.bool_]:
    if not callable(where):
        return condition_mask(str(where), table)
    mask = np.asarray(where(table))
    if mask.dtype != bool or mask.shape != (len(table),):
        raise DataError(
            f"the function {where!r} gives no yes or no per clip; return for instance table['dataset'] == 'smic'."
        )
    return mask


def _array_stores(media: ArrayLike | Mapping[str, ArrayLike], specs: Sequence[InputSpec]) -> list[ArrayStore]:
    if not isinstance(media, Mapping):
        array = plain_array(media)
        if array.size == 0:
            raise DataError("the array of media is empty; a clip set needs at least one clip.")
        return [ArrayStore(array, specs[0] if specs else None)]
    by_kind = {spec.kind: spec for spec in specs}
    if not media:
        raise DataError("the mapping of media is empty; give at least one kind, for example flow.")
    stores = []
    for kind, values in media.items():
        array = plain_array(values, f"the array of {kind}")
        if array.size == 0:
            raise DataError(f"the array of {kind} is empty; a clip set needs at least one clip.")
        if kind not in by_kind and kind != "flow":
            raise DataError(f"nothing says what the arrays of kind {kind!r} hold; pass spec with its InputSpec.")
        stores.append(ArrayStore(array, by_kind.get(kind)))
    return stores


def _lazy(clip: Clip, kind: str) -> LazyArray:
    if kind not in clip.media:
        raise _no_such_kind(f"clip {clip.id!r} holds", kind, clip.media)
    return clip.media[kind]


def _store_of(lazies: Sequence[LazyArray], clips: Sequence[Clip]) -> MediaStore:
    stores: dict[int, MediaStore] = {}
    numbers: dict[int, int] = {}
    for lazy, clip in zip(lazies, clips, strict=True):
        if id(lazy.store) not in stores:
            try:
                lazy.spec.check_feeds(lazies[0].spec)
            except SpecMismatchError as error:
                raise SpecMismatchError(
                    f"clip {clip.id!r} holds {lazy.spec.describe()}, "
                    f"but clip {clips[0].id!r} holds {lazies[0].spec.describe()}; prepare all clips with one recipe."
                ) from error
            numbers[id(lazy.store)] = len(stores)
            stores[id(lazy.store)] = lazy.store
    which = np.array([numbers[id(lazy.store)] for lazy in lazies], np.int32)
    return ConcatStore(list(stores.values()), which, np.array([lazy.row for lazy in lazies], np.int64))


def _frozen(array: NDArray[np.object_]) -> NDArray[np.object_]:
    array.flags.writeable = False
    return array


def _no_such_kind(who: str, kind: str, held: Mapping[str, Any]) -> SpecMismatchError:
    return SpecMismatchError(
        f"{who} no {kind!r} media (held: {_listed(held)}); prepare {kind} first or ask for what is there."
    )


def _listed(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _media_error(clip: str, dataset: str, reason: str) -> MediaError:
    return MediaError(f"clip {clip!r} of data set {dataset!r}: {reason}")

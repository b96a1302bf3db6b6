"""`ClipSet`: a table of clips with media that are read when asked for; one class, since all of it works on rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.data.clip import Clip, listed, no_such_kind
from fsmer.data.coded_table import CodedTable, compact, relabelled
from fsmer.data.conditions import fitting_rows
from fsmer.data.display import clips_figure, clips_html, clips_text
from fsmer.data.in_memory import from_arrays, from_clips
from fsmer.data.media import ConcatStore, MediaStore, RowError, copied, nameless, narrowed, origins
from fsmer.data.media_checks import check_arrays
from fsmer.data.saved import HEADER, TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.schemes import LabelScheme, RelabelReport, load_scheme
from fsmer.data.spec import InputSpec
from fsmer.data.table import clean_table, describe_type, known_texts, write_table
from fsmer.errors import DataError, OutputError, SpecMismatchError
from fsmer.io import atomic_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["Clip", "ClipSet", "TorchClips", "collate_clips", "concat"]


class ClipSet(Sequence[Clip]):
    """An ordered, immutable collection of clips: a table, and media that are read when asked for.

    Make one with `read_clips`, `from_arrays`, `from_table`, `from_clips` or `concat`. Masks, index arrays, slices and
    lists of ids give smaller clip sets that share table and media with this one; nothing is copied. It is also a
    map-style data set for ``torch.utils.data.DataLoader`` (with `collate_clips`).

    Attributes
    ----------
    relabelling : RelabelReport or None
        What `relabel` mapped and dropped, where the set came from it.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> maps = np.random.default_rng(0).random((4, 3, 28, 28), dtype=np.float32)
    >>> clips = fsmer.ClipSet.from_arrays(maps, ["negative", "positive"] * 2, subjects=["1", "1", "2", "2"])
    >>> clips[clips.labels == "positive"].ids.tolist()
    ['mine-1', 'mine-3']
    >>> clips.table[["clip", "subject", "label"]].values.tolist()[0]
    ['mine-0', '1', 'negative']
    >>> clips.classes, clips.dataset_names, clips.subject_names
    (('negative', 'positive'), ('mine',), (('mine', '1'), ('mine', '2')))
    >>> clips.codes().tolist(), clips.subject_codes().tolist(), clips.dataset_codes().tolist()
    ([0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0])
    >>> clips.subjects.tolist(), clips.datasets.tolist()
    (['1', '1', '2', '2'], ['mine', 'mine', 'mine', 'mine'])
    >>> clips.specs["flow"].describe()
    'flow 28x28 (u, v, strain), minmax'
    """

    def __init__(self, base: CodedTable, rows: NDArray[np.int64], relabelling: RelabelReport | None = None) -> None:
        self._base, self._rows = base, rows
        self._codings: dict[str, tuple[tuple[Any, ...], NDArray[np.int64]]] = {}
        self.relabelling = relabelling
        """What `relabel` mapped and dropped, on the set that it returned; None elsewhere."""

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

        Returns
        -------
        ClipSet
            Clips in the order of the table.

        Raises
        ------
        DataError
            No clips, a missing or doubled id, a doubled column, or stores of another length.

        Examples
        --------
        >>> import fsmer
        >>> import pandas as pd
        >>> table = pd.DataFrame({"clip": ["a", "b"], "subject": ["1", "2"], "label": ["positive", "negative"]})
        >>> fsmer.ClipSet.from_table(table).labels.tolist()
        ['positive', 'negative']
        """
        media = dict(media or {})
        if not len(frame):
            raise DataError("the table has no rows; a clip set needs at least one clip.")
        for kind, store in media.items():
            if kind != store.spec.kind or not kind.isidentifier():
                raise DataError(
                    f"media of kind {store.spec.kind!r} are named {kind!r}; name them by their kind, a plain word."
                )
            if len(store) != len(frame):
                raise DataError(
                    f"the table has {len(frame)} clips but its {kind} has {len(store)} rows; give one row a clip."
                )
        base = CodedTable(clean_table(frame), media)
        return cls(base, np.arange(len(frame), dtype=np.int64))

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
        subjects : sequence of N, or one value for all, optional
            Clips without a subject count as one person of their data set in protocols, so give subjects where you can.
        datasets : sequence of N, or one value for all, default "mine"
            Where each clip is from.
        ids, aus : sequence of N, or one value for all, optional
            Unique ids (default: numbers after the data set's name), and action units as the annotation writes them.
        spec : InputSpec or sequence of InputSpec, optional
            What the arrays hold, e.g. a backbone's ``input_specs``. Default: min-max maps of the array's size with
            channels (u, v) or (u, v, strain).

        Returns
        -------
        ClipSet
            Clips in the order of the arrays.

        Raises
        ------
        DataError
            Lengths that differ, a doubled id, an array of another form, or a kind without a spec.

        Examples
        --------
        >>> import numpy as np
        >>> import fsmer
        >>> maps = np.random.default_rng(0).random((2, 3, 28, 28), dtype=np.float32)
        >>> fsmer.ClipSet.from_arrays(maps, ["negative", "positive"], subjects=["1", "2"]).ids.tolist()
        ['mine-0', 'mine-1']
        """
        return cls.from_table(
            *from_arrays(media, spec, labels=labels, subjects=subjects, datasets=datasets, ids=ids, aus=aus)
        )

    @classmethod
    def from_clips(cls, clips: Sequence[Clip]) -> ClipSet:
        """Make a clip set of single clips, in that order.

        Parameters
        ----------
        clips : sequence of Clip
            Clips that hold the same media.

        Returns
        -------
        ClipSet
            The clips, in that order.

        Raises
        ------
        DataError
            No clips, or an id twice.
        SpecMismatchError
            The clips hold different media.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=4)
        >>> fsmer.ClipSet.from_clips([clips[2], clips[0]]).ids.tolist() == [clips[2].id, clips[0].id]
        True
        """
        return cls.from_table(*from_clips(clips))

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return clips_text(self)

    def _repr_html_(self) -> str:
        return clips_html(self)

    def plot(self, count: int = 4) -> Figure:
        """A matplotlib figure of flow maps: a row a class.

        Strain, or how far skin moves where there is none, is grey; arrows show u and v.

        Parameters
        ----------
        count : int, default 4
            The most clips of each class that are drawn.

        Returns
        -------
        Figure
            Not shown and not saved.

        Raises
        ------
        SpecMismatchError
            The clips hold no flow.
        MediaError
            A map that is drawn cannot be read.

        Examples
        --------
        >>> import fsmer
        >>> figure = fsmer.synthetic_clips(n=12).plot(count=2)
        >>> figure.savefig("clips.png")
        """
        return clips_figure(self, count)

    @cached_property
    def _table(self) -> pd.DataFrame:
        frame = self._base.frame
        if len(self._rows) == len(frame) and (self._rows[1:] > self._rows[:-1]).all():
            return frame
        part = frame.take(self._rows).reset_index(drop=True)
        # Categories that no clip of this set has would show up as empty groups and zero counts.
        for name in ("dataset", "subject", "label"):
            part[name] = part[name].cat.remove_unused_categories()
        return part

    @property
    def table(self) -> pd.DataFrame:
        """One row a clip in this set's order: ``clip, dataset, subject, label, aus`` and further columns.

        A view of its own (pandas copies on write): changing it does not change the clip set.
        """
        return self._table.copy(deep=False)

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
        return self._coding("label")[0]

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """Data sets that occur, sorted."""
        return self._coding("dataset")[0]

    @property
    def subject_names(self) -> tuple[tuple[str, str], ...]:
        """``(dataset, subject)`` of every person that occurs, sorted."""
        return self._coding("subject")[0]

    @property
    def specs(self) -> Mapping[str, InputSpec]:
        """Kind of medium -> what is held."""
        return MappingProxyType({kind: store.spec for kind, store in self._base.media.items()})

    def _coding(self, column: str) -> Any:
        """Names that occur in a column, and for each clip the index of its own or -1."""
        if column not in self._codings:
            names, codes = self._base.people if column == "subject" else self._base.coded(column)
            self._codings[column] = compact(names, codes[self._rows])
        return self._codings[column]

    def codes(self, classes: Sequence[str] | None = None) -> NDArray[np.int64]:
        """Labels as indices.

        Parameters
        ----------
        classes : sequence of str, optional
            The classes that are counted; default `self.classes`.

        Returns
        -------
        int64 array of shape (N,)
            Place of each clip's label in `classes`.

        Raises
        ------
        DataError
            A clip has no label, or one that is not in `classes`; the message names it.
        """
        names, own = self._coding("label")
        wanted = names if classes is None else tuple(known_texts(classes, "classes"))
        place = {name: index for index, name in enumerate(wanted)}
        # The last entry answers code -1, the unlabelled clips.
        codes = np.array([*(place.get(name, -1) for name in names), -1], np.int64)[own]
        if (codes < 0).any():
            first = int((codes < 0).argmax())
            label, clip = self.labels[first], self.ids[first]
            if label is None:
                raise DataError(f"clip {clip!r} has no label, but one is needed here; label it or leave it out.")
            raise DataError(
                f"clip {clip!r} has the label {label!r}, none of the classes {', '.join(wanted)}; relabel or select."
            )
        return codes

    def subject_codes(self) -> NDArray[np.int64]:
        """Person of each clip as an index into `subject_names`.

        Returns
        -------
        int64 array of shape (N,)
            Place of each clip's person.

        Raises
        ------
        DataError
            Subjects are known for a part of a data set only.
        """
        names, codes = self._coding("subject")
        nameless = {dataset for dataset, subject in names if not subject}
        partly = next((dataset for dataset, subject in names if subject and dataset in nameless), None)
        if partly is not None:
            # A nameless clip may show a person who has a name elsewhere in that data set.
            clip = self.ids[(codes == names.index((partly, ""))).argmax()]
            raise DataError(
                f"clip {clip!r} of data set {partly!r} has no subject while others have; give it one or leave it out."
            )
        return codes.copy()

    def dataset_codes(self) -> NDArray[np.int64]:
        """Data set of each clip as an index into `dataset_names`.

        Returns
        -------
        int64 array of shape (N,)
            Place of each clip's data set.
        """
        return self._coding("dataset")[1].copy()

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of clips in this set by id.

        Parameters
        ----------
        ids : sequence of str
            Ids of clips of this set, in any order.

        Returns
        -------
        int64 array
            One position an id.

        Raises
        ------
        DataError
            An id is not in the set.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=4)
        >>> clips.positions([clips[3].id, clips[1].id]).tolist()
        [3, 1]
        """
        wanted = list(ids)
        found = self._index.get_indexer(pd.Index(wanted, dtype=object)).astype(np.int64)
        if (found < 0).any():
            missing = wanted[(found < 0).argmax()]
            raise DataError(f"clip {missing!r} is not in this set of {len(self)} clips; check the id.")
        return found

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.ids, dtype=object)

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
        return ClipSet(self._base, self._rows[_chosen_places(item, self.ids, self.positions)])

    def __iter__(self) -> Iterator[Clip]:
        return map(self._base.clip, self._rows.tolist())

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
        **equals : object
            Columns and the value (or list of values) that they must have, e.g. ``dataset="smic"`` or ``label=["a",
            "b"]``.

        Returns
        -------
        ClipSet
            The clips for which all of it is true.

        Raises
        ------
        DataError
            The expression cannot be read, names an unknown column, gives no mask, or no clip matches.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=12)
        >>> clips.select("label != 'negative'", subject=clips.subjects[0]).classes
        ('surprise',)
        >>> clips.select(label="surprise").classes
        ('surprise',)
        """
        mask = fitting_rows(self._table, where, equals)
        if not mask.any():
            conditions = [] if where is None else [where if isinstance(where, str) else "the given function"]
            asked = " and ".join([*conditions, *(f"{name} = {value!r}" for name, value in equals.items())])
            people = [name for _, name in self.subject_names]
            raise DataError(
                f"no clip matches {asked} (data sets {listed(self.dataset_names)}; labels {listed(self.classes)}; "
                f"{len(people)} subjects such as {listed(people[:2])}); values are text, as in subject == '006'."
            )
        return self[mask]

    def relabel(self, scheme: str | LabelScheme, *, column: str = "label") -> ClipSet:
        """Apply a label scheme: clips that it keeps, in this order, with its classes as labels.

        The ``relabelling`` of the set that comes back says what was mapped and dropped.

        Parameters
        ----------
        scheme : str or LabelScheme
            Name of a built-in scheme (see `fsmer.data.list_schemes`) or your own.
        column : str, default "label"
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

        Examples
        --------
        >>> import numpy as np
        >>> import fsmer
        >>> maps = np.random.default_rng(0).random((3, 3, 28, 28), dtype=np.float32)
        >>> clips = fsmer.ClipSet.from_arrays(maps, ["Happiness", "Disgust", "Others"], datasets="casme2")
        >>> clips.relabel("megc2019").labels.tolist()
        ['positive', 'negative']
        """
        return ClipSet(*relabelled(self._base, self._rows, load_scheme(scheme), column))

    def with_prefix(self, prefix: str | None = None) -> ClipSet:
        """Same clips under ids with a prefix, so that sets with equal ids can be joined.

        Parameters
        ----------
        prefix : str, optional
            What stands before ``/`` and the id; default each clip's data set.

        Returns
        -------
        ClipSet
            Clips with ids ``prefix/id``.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.synthetic_clips(n=2).with_prefix("first").ids.tolist()
        ['first/lab_0_000000', 'first/lab_0_000001']
        """
        base = self._base
        fronts = base.values("dataset") if prefix is None else [prefix] * len(base.frame)
        named = {"clip": base.ids}
        if "neighbour_of" in base.frame.columns:
            named["neighbour_of"] = base.frame["neighbour_of"].fillna("").astype("str").to_numpy(object)
        renamed = {
            name: pd.Series([one and f"{front}/{one}" for front, one in zip(fronts, names, strict=True)], dtype="str")
            for name, names in named.items()
        }
        return ClipSet(CodedTable(base.frame.assign(**renamed), base.media), self._rows)

    def isolated(self, *, labelled: bool = True, in_memory: bool = False) -> ClipSet:
        """The same clips as a set of its own, from which nothing of the set that they were chosen from can be reached.

        Parts share table and media with the whole, in which the labels of the other clips can be read. An isolated set
        holds nothing of them, so that a learner may have it while the others are its queries.

        Parameters
        ----------
        labelled : bool, default True
            False leaves out what was annotated too: label, action units and all further columns, and the names of clips
            and of image files, since these often hold a label (``s03_po_05``, ``negative/map.png``). The clips are
            numbered instead, and images are read here and now.
        in_memory : bool, default False
            All media are read here and now into arrays of their own. Otherwise those of large arrays stay a view into
            them, from which the media of other clips and the rows of these can be reached.

        Returns
        -------
        ClipSet
            With a table, and where asked media, of its own.

        Raises
        ------
        MediaError
            A medium that has to be read cannot be.

        Examples
        --------
        >>> import fsmer
        >>> query = fsmer.synthetic_clips(n=4)[:2].isolated(labelled=False)
        >>> query.labels.tolist()
        [None, None]
        """
        table = self.table
        if not labelled:
            table = table[["dataset", "subject"]]
            table.insert(0, "clip", [f"clip-{row}" for row in range(len(table))])
        cut = copied if in_memory else narrowed if labelled else nameless
        try:
            stores = {kind: cut(store, self._rows) for kind, store in self._base.media.items()}
        except RowError as error:
            raise self._base.media_error(error.row, error.reason) from error
        return ClipSet(CodedTable(clean_table(_uncoded(table)), stores), np.arange(len(table), dtype=np.int64))

    def media(self, kind: str = "flow") -> NDArray[np.float32]:
        """Read and check the media of all clips, see `read`.

        Parameters
        ----------
        kind : str, default "flow"
            Kind of medium.

        Returns
        -------
        float32 array of shape (N, \\*spec.shape)
            A new array.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.synthetic_clips(n=4).media().shape
        (4, 3, 28, 28)
        """
        return self.read(kind)

    def read(self, kind: str = "flow", indices: ArrayLike | slice | None = None) -> NDArray[np.float32]:
        """Read and check the media of some clips (default: all), in the order asked.

        Parameters
        ----------
        kind : str, default "flow"
            Kind of medium.
        indices : slice, mask or index array, optional
            Positions in this set; a position may be asked more than once.

        Returns
        -------
        float32 array of shape (M, \\*spec.shape)
            A new array.

        Raises
        ------
        SpecMismatchError
            The clips hold no such medium.
        MediaError
            A clip's medium is missing, unreadable, of another size, not finite or constant; the message names the clip.

        Examples
        --------
        >>> import fsmer
        >>> fsmer.synthetic_clips(n=4).read("flow", [2, 0, 2]).shape
        (3, 3, 28, 28)
        """
        if kind not in self._base.media:
            raise no_such_kind("the clips hold", kind, self._base.media)
        store, rows = self._base.media[kind], self._rows
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
        """Where the medium of each clip comes from, the same in all parts of a set, see `fsmer.data.media.origins`.

        Parameters
        ----------
        kind : str, default "flow"
            Kind of medium.

        Returns
        -------
        list of (object, int)
            Store and row of each clip.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=4)
        >>> clips[2:].origins()[0] == clips.origins()[2]
        True
        """
        return origins(self._base.media[kind], self._rows)

    def batches(self, kind: str = "flow", size: int = 256) -> Iterator[NDArray[np.float32]]:
        """Read the media of all clips in order, some at a time.

        Parameters
        ----------
        kind : str, default "flow"
            Kind of medium.
        size : int, default 256
            The most clips that are read at a time.

        Yields
        ------
        float32 array of shape (at most size, \\*spec.shape)
            The next clips.

        Examples
        --------
        >>> import fsmer
        >>> [len(maps) for maps in fsmer.synthetic_clips(n=5).batches(size=2)]
        [2, 2, 1]
        """
        for start in range(0, len(self), size):
            yield self.read(kind, slice(start, start + size))

    def as_torch(self, classes: Sequence[str] | None = None, kind: str = "flow") -> TorchClips:
        """Map-style data set for ``torch.utils.data.DataLoader``.

        Parameters
        ----------
        classes : sequence of str, optional
            As for `codes`.
        kind : str, default "flow"
            Kind of medium.

        Returns
        -------
        TorchClips
            Entries are ``(tensor, class index)``.

        Examples
        --------
        >>> import fsmer
        >>> from torch.utils.data import DataLoader
        >>> maps, codes = next(iter(DataLoader(fsmer.synthetic_clips(n=6).as_torch(), batch_size=4)))
        >>> maps.shape, codes.shape
        (torch.Size([4, 3, 28, 28]), torch.Size([4]))
        """
        return TorchClips(self, kind, self.codes(classes))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write table and media to one folder, which is whole or not there.

        The folder gets ``clips.json`` (specs, column types, format version, digests), ``table.csv`` and one ``.npy`` a
        kind of medium. A clip set of that name that was saved before is replaced; who reads it meanwhile gets the one
        or the other.

        Parameters
        ----------
        folder : path
            Folder to write.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        OutputError
            The folder cannot be written, or holds something else than a clip set.
        DataError
            A column of the table cannot be written as text.
        MediaError
            A clip's medium cannot be read; nothing is written then.

        Examples
        --------
        >>> import fsmer
        >>> folder = fsmer.synthetic_clips(n=4).save("my-clips")
        >>> fsmer.ClipSet.load(folder).classes
        ('negative', 'positive', 'surprise')
        """
        if not len(self):
            raise DataError("the clip set holds no clips, so there is nothing to save.")
        target = Path(folder)
        try:
            if target.is_dir() and any(target.iterdir()) and not (target / HEADER).is_file():
                raise OutputError(f"{target} holds other files, which would be lost; choose a new folder.")
            with atomic_folder(target) as temporary:
                arrays = []
                for kind, spec in self.specs.items():
                    with ArrayWriter(temporary, spec, len(self), "<f4") as array:
                        for batch in self.batches(kind):
                            array.write(np.ascontiguousarray(batch, "<f4").data)
                    arrays.append(array)
                write_header(temporary, write_table(temporary / TABLE, self._table), len(self), arrays)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {target}: {error.strerror or error}; choose another folder.") from error
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ClipSet:
        """Open a folder written by `save`; media stay on disk until they are read, and are checked then.

        Parameters
        ----------
        folder : path
            Folder to read.

        Returns
        -------
        ClipSet
            The clips as they were saved.

        Raises
        ------
        DataError
            The folder is no saved clip set, is damaged, or comes from a newer version.
        MediaError
            An array file is missing, cut short or damaged; where it is damaged further on, reading says so.
        """
        return cls.from_table(*read_folder(Path(folder)))


def concat(sets: Sequence[ClipSet], *, kinds: Sequence[str] | None = None) -> ClipSet:
    """Join clip sets, one after the other; nothing is read.

    Parameters
    ----------
    sets : sequence of ClipSet
        The sets, in the order that their clips get.
    kinds : sequence of str, optional
        Kinds of media to keep. Default: all, which every set must hold then.

    Returns
    -------
    ClipSet
        All clips.

    Raises
    ------
    DataError
        No clips, or an id in two sets (prefix the ids with `ClipSet.with_prefix` first).
    SpecMismatchError
        The sets hold different media.

    Examples
    --------
    >>> import fsmer
    >>> lab, clinic = fsmer.synthetic_clips("lab", 4), fsmer.synthetic_clips("clinic", 2)
    >>> len(fsmer.concat([lab.with_prefix("a"), clinic.with_prefix("b")]))
    6
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
                f"one set holds {listed(clips.specs)}, but {listed(wanted)} is expected of all; pass kinds=[...]."
            )
    tables = [clips.table for clips in parts]
    names = pd.concat([table["clip"] for table in tables], ignore_index=True)
    doubled = names.duplicated().to_numpy()
    if doubled.any():
        shown = ", ".join(repr(name) for name in names[doubled].iloc[:3])
        raise DataError(
            f"{int(doubled.sum())} clip ids are in more than one set, such as {shown}; make them unique with "
            "clips.with_prefix() (on the command line: one --prefix NAME for each --data), or leave them out."
        )
    frame = pd.concat(map(_uncoded, tables), ignore_index=True)
    media = {kind: ConcatStore.join([(clips._base.media[kind], clips._rows) for clips in parts]) for kind in wanted}
    return ClipSet.from_table(frame, media)


class TorchClips:
    """Map-style data set of ``(tensor, class index)``; made by `ClipSet.as_torch`.

    The clips' media of one `kind` are read when asked for; `codes`, int64 of shape (N,), are their class indices.
    """

    def __init__(self, clips: ClipSet, kind: str, codes: NDArray[np.int64]) -> None:
        self.clips, self.kind, self.codes = clips, kind, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} clips.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Read one batch at once; torch calls this when it is there."""
        import torch

        places = np.asarray(indices, np.int64)
        tensors = torch.from_numpy(self.clips.read(self.kind, places))
        return list(zip(tensors.unbind(), self.codes[places].tolist(), strict=True))


def collate_clips(clips: Sequence[Clip], kind: str = "flow") -> dict[str, Any]:
    """Collate function for a torch DataLoader over a `ClipSet`.

    It gives ``inputs``, a float32 tensor of shape ``(B, channels, height, width)``, and ``clip``, ``dataset``,
    ``subject``, ``label``, lists of B.
    """
    import torch

    stacked = np.stack([clip.read(kind) for clip in clips])
    words = {name: [getattr(clip, name) for clip in clips] for name in ("dataset", "subject", "label")}
    return {"inputs": torch.from_numpy(stacked), "clip": [clip.id for clip in clips], **words}


def _chosen_places(
    item: Any, ids: NDArray[np.object_], positions: Callable[[list[str]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Positions that an index, a mask or a list of ids chooses among clips of these ids; each once."""
    chosen = np.asarray(item)
    if chosen.dtype.kind == "f" and chosen.size == 0:
        chosen = chosen.astype(np.int64)
    if chosen.ndim == 1 and chosen.dtype.kind in "UOT" and all(isinstance(one, str) for one in chosen.tolist()):
        chosen = positions(chosen.tolist())
    if chosen.dtype.kind == "O" and all(isinstance(one, (bool, np.bool_)) for one in chosen.ravel().tolist()):
        chosen = chosen.astype(bool)
    if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
        raise DataError(
            "clips are chosen by an int, a slice, or a one-dimensional mask, index array or list of ids, "
            f"not by {describe_type(item)}."
        )
    if chosen.dtype.kind == "b":
        if len(chosen) != len(ids):
            raise DataError(
                f"the mask has {len(chosen)} entries, but the set has {len(ids)} clips; make it from this set's table."
            )
        return np.flatnonzero(chosen)
    places = chosen.astype(np.int64)
    if len(places) and (places.min() < -len(ids) or places.max() >= len(ids)):
        raise IndexError(f"an index runs from {places.min()} to {places.max()}, but the set has {len(ids)} clips.")
    places = np.where(places < 0, places + len(ids), places)
    values, counts = np.unique(places, return_counts=True)
    if len(values) < len(places):
        raise DataError(f"clip {ids[values[counts > 1][0]]!r} was chosen twice; a clip set holds a clip once.")
    return places


def _uncoded(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({name: object for name in ("dataset", "subject", "label") if name in table.columns})


def _frozen(array: NDArray[np.object_]) -> NDArray[np.object_]:
    array.flags.writeable = False
    return array

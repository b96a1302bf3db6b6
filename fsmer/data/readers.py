"""Read clip sets from folders, data frames and arrays: one function per form, and one that recognises the folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fsmer.arrays import plain_array
from fsmer.data.clips import Clip, ClipSet
from fsmer.data.index import INDEX, files_inside, image_store, read_index
from fsmer.data.media import ListStore, MediaStore
from fsmer.data.media_checks import flow_map_spec
from fsmer.data.schemes import LabelScheme
from fsmer.data.spec import InputSpec
from fsmer.data.ststnet_release import STSTNET_FOLDER, read_ststnet
from fsmer.errors import DataError
from fsmer.io import restore_folder

__all__ = ["read_arrays", "read_clips", "read_frame"]

read_arrays = ClipSet.from_arrays


def read_clips(
    path: str | os.PathLike[str],
    *,
    scheme: str | LabelScheme | None = None,
    where: str | None = None,
    labelled: bool = True,
) -> ClipSet:
    """Read a folder of clips, whichever of the known forms it has.

    Known are a folder that `ClipSet.save` wrote, a folder with an ``index.csv`` and image maps (`read_index`), and
    the layout of the STSTNet release (`read_ststnet`). Images are listed now and decoded when they are asked for.

    Parameters
    ----------
    path : path
        The folder, or its ``index.csv``.
    scheme : str or LabelScheme, optional
        Label scheme to apply, see `ClipSet.relabel`.
    where : str, optional
        Rows to keep, see `ClipSet.select`; it is applied before the scheme, on the labels as written.
    labelled : bool, default True
        Whether every clip must have a label. False accepts an index without labels, for prediction.

    Returns
    -------
    ClipSet
        The clips of the folder.

    Raises
    ------
    DataError
        The folder is missing, has none of the known forms, or its index is wrong (the message names row and clip).
    MediaError
        A map that the index names is missing, or the first one cannot be read.

    Examples
    --------
    >>> import fsmer
    >>> folder = fsmer.synthetic_clips("lab", 12).save("my-clips")
    >>> clips = fsmer.read_clips(folder, where="label != 'negative'")
    >>> clips.classes
    ('positive', 'surprise')
    """
    source = Path(path)
    folder = source.parent if source.is_file() else source
    if not source.exists():
        # A killed writer of an earlier version may have left the folder under another name.
        restore_folder(source)
    if not source.exists():
        raise DataError(f"{source} does not exist; give a folder with {INDEX}, a clip set or an STSTNet release.")
    if source.is_file() and source.suffix.lower() == ".csv":
        clips = read_index(source, labelled=labelled)
    elif (folder / "clips.json").is_file():
        clips = ClipSet.load(folder)
    elif (folder / INDEX).is_file():
        clips = read_index(folder / INDEX, labelled=labelled)
    elif (folder / STSTNET_FOLDER).is_dir() or any(folder.glob("*/u_test")):
        clips = read_ststnet(folder)
    else:
        raise DataError(
            f"{source} holds neither {INDEX} nor clips.json nor {STSTNET_FOLDER}/<subject>/u_test; give such a folder."
        )
    return _chosen(clips, where, scheme)


def read_frame(
    frame: pd.DataFrame,
    *,
    media: str = "file",
    root: str | os.PathLike[str] | None = None,
    spec: InputSpec | None = None,
    scheme: str | LabelScheme | None = None,
    where: str | None = None,
) -> ClipSet:
    """Make a clip set of a DataFrame with one column of arrays or of image files.

    Parameters
    ----------
    frame : DataFrame
        Columns as for `ClipSet.from_table`, and the one named by `media`.
    media : str, default "file"
        Column of arrays or tensors of shape ``(channels, height, width)``, or of paths of 8-bit RGB maps.
    root : path, optional
        Folder that paths are relative to, and that they may not lead out of: give it for a table of somebody else.
        Without it the paths are taken as they are.
    spec : InputSpec, optional
        What the arrays hold; default as for `ClipSet.from_arrays`.
    scheme : str or LabelScheme, optional
        Label scheme to apply, see `ClipSet.relabel`.
    where : str, optional
        Rows to keep, see `ClipSet.select`; it is applied before the scheme, on the labels as written.

    Returns
    -------
    ClipSet
        The clips of the table.

    Raises
    ------
    DataError
        The column is missing or holds neither arrays nor paths, or the table is wrong.
    MediaError
        A file is missing, no regular file or outside `root`, or the first medium cannot be read.

    Examples
    --------
    >>> import fsmer
    >>> import numpy as np
    >>> import pandas as pd
    >>> maps = np.random.default_rng(0).random((2, 3, 28, 28), dtype=np.float32)
    >>> table = pd.DataFrame({"clip": ["a", "b"], "label": ["positive", "negative"], "map": list(maps)})
    >>> fsmer.read_frame(table, media="map").classes
    ('negative', 'positive')
    """
    if media not in frame.columns:
        raise DataError(f"the table has no column {media!r} of maps; it has {', '.join(map(str, frame.columns))}.")
    cells = frame[media].tolist()
    named = ClipSet.from_table(frame.drop(columns=media))
    store: MediaStore
    kinds = ["path" if isinstance(cell, (str, os.PathLike)) else hasattr(cell, "__array__") for cell in cells]
    if set(kinds) == {"path"}:
        names, datasets = named.ids.tolist(), named.datasets.tolist()
        paths = [os.fsdecode(cell) if root is not None else os.path.abspath(os.fsdecode(cell)) for cell in cells]
        top = Path(Path.cwd().anchor if root is None else root)
        files = files_inside(top, paths, names, datasets, ", or leave root out if you trust the table")
        store = image_store(files, names, datasets)
    elif set(kinds) == {True}:
        arrays = [plain_array(cell, f"the map of clip {name!r}") for cell, name in zip(cells, named.ids, strict=True)]
        store = ListStore(arrays, flow_map_spec(arrays[0][np.newaxis]) if spec is None else spec)
    else:
        wrong = next(row for row, kind in enumerate(kinds) if not kind or kind != kinds[0])
        raise DataError(
            f"column {media!r} of clip {named.ids[wrong]!r} holds a {type(cells[wrong]).__name__}, "
            "but all cells must be arrays or all paths."
        )
    return _chosen(ClipSet.from_table(named.table, {store.spec.kind: store}), where, scheme)


def _chosen(clips: ClipSet, where: str | None, scheme: str | LabelScheme | None) -> ClipSet:
    if where is not None:
        clips = clips.select(where)
    return clips if scheme is None else clips.relabel(scheme)


def as_clips(
    given: ClipSet | Clip | Sequence[Clip] | tuple[ArrayLike, ArrayLike] | ArrayLike, *, spec: InputSpec | None = None
) -> ClipSet:
    """Turn whatever a user may hand over as clips into a `ClipSet`.

    Parameters
    ----------
    given : ClipSet, Clip, list of Clip, (arrays, labels), or arrays
        Arrays have shape ``(N, channels, height, width)``, or without N for a single clip; without labels they stay
        unlabelled.
    spec : InputSpec, optional
        What bare arrays hold.

    Raises
    ------
    DataError
        It is none of these.
    """
    if isinstance(given, ClipSet):
        return given
    if isinstance(given, Clip):
        return ClipSet.from_clips([given])
    if isinstance(given, (list, tuple)) and given and all(isinstance(item, Clip) for item in given):
        return ClipSet.from_clips(list(given))
    pair: Any = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    media, labels = pair
    array = plain_array(media, "the set of clips")
    return ClipSet.from_arrays(array[np.newaxis] if array.ndim == 3 else array, labels, spec=spec)

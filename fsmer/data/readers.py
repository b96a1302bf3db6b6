"""Read clip sets from folders, data frames and arrays: one function per form, and one that recognises the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.arrays import plain_array
from fsmer.data.clips import Clip, ClipSet
from fsmer.data.media import ImageStore, ListStore, MediaStore, RowError, guess_spec
from fsmer.data.schemes import LabelScheme
from fsmer.data.spec import InputSpec
from fsmer.data.text_tables import csv_rows, path_inside, read_table_text
from fsmer.errors import DataError, MediaError
from fsmer.io import check_regular, restore_folder

__all__ = ["read_arrays", "read_clips", "read_frame", "read_index", "read_ststnet"]

INDEX = "index.csv"
REQUIRED = ("clip", "dataset", "subject", "file")
STSTNET_FOLDER = "norm_u_v_os"

# The folders of the release are named by MEGC 2019 class number.
STSTNET_LABELS = {"0": "negative", "1": "positive", "2": "surprise"}

# Subjects of the three databases are told apart by how their folders are called: sub17, s03 (or s3), 006.
STSTNET_DATASETS = {r"sub\d+": "casme2", r"s\d+": "smic", r"\d{3}": "samm"}

IMAGE_ENDINGS = frozenset({".png", ".bmp", ".jpg", ".jpeg"})

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
    labelled : bool
        Whether every clip must have a label. False accepts an index without labels, for prediction.

    Raises
    ------
    DataError
        The folder is missing, has none of the known forms, or its index is wrong (the message names row and clip).
    MediaError
        A map that the index names is missing, or the first one cannot be read.

    Examples
    --------
    >>> clips = read_clips("my-maps", where="dataset == 'smic'")  # doctest: +SKIP
    """
    source = Path(path)
    folder = source.parent if source.is_file() else source
    if not source.exists():
        # A killed writer of an earlier version may have left the folder under another name.
        restore_folder(source)
    if not source.exists():
        raise DataError(
            f"{source} does not exist; give a folder with {INDEX}, a saved clip set or the STSTNet release."
        )
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
            f"{source} has no form that fsmer reads: it holds neither {INDEX} nor clips.json "
            f"nor {STSTNET_FOLDER}/<subject>/u_test; give such a folder."
        )
    if where is not None:
        clips = clips.select(where)
    return clips if scheme is None else clips.relabel(scheme)


def read_index(index: str | os.PathLike[str], *, labelled: bool = True) -> ClipSet:
    """Read an index table and the image maps that it names.

    Parameters
    ----------
    index : path
        A CSV file with a header and the columns ``clip, dataset, subject, label, file`` in any order; further columns
        are kept as text. Commas, semicolons or tabs separate; a byte order mark is skipped. ``file`` is relative to
        the index's folder and may not lead out of it, neither by ``..`` nor by a symbolic link.
    labelled : bool
        Whether the column ``label`` must be there and filled.

    Returns
    -------
    ClipSet
        Clips in the order of the index, with ``flow`` media: 8-bit RGB images, red, green, blue = u, v, strain.

    Raises
    ------
    DataError
        A column is missing, a row is cut short, an id is there twice, a field is empty; the message names row and clip.
    MediaError
        A file is missing, no regular file or outside the index's folder (names the clip; nothing is opened then), or
        the first one cannot be read.
    """
    index = Path(index)
    header, rows = _read_csv(index, (*REQUIRED, "label") if labelled else REQUIRED)
    if not rows:
        raise DataError(f"{index} lists no clips; it needs at least one row under its header.")
    columns: dict[str, list[str]] = {name: [] for name in header}
    filled = [name for name in (*REQUIRED, "label") if name in header and (labelled or name != "label")]
    first_row: dict[str, int] = {}
    for number, row in rows:
        values = dict(zip(header, row, strict=False))
        clip = values.get("clip", "")
        if len(row) != len(header):
            raise DataError(
                f"row {number} of {index} (clip {clip!r}) has {len(row)} fields, "
                f"but the header has {len(header)}; correct the row."
            )
        for name in filled:
            if not values[name]:
                raise DataError(
                    f"row {number} of {index} (clip {clip!r}) has an empty {name}; fill it in or take the row out."
                )
        if clip in first_row:
            raise DataError(
                f"row {number} of {index} names clip {clip!r} again, which row {first_row[clip]} has already; "
                "give each clip an id of its own."
            )
        first_row[clip] = number
        for name, value in values.items():
            columns[name].append(value)
    otherwise = ", or read the table with fsmer.data.read_frame if you trust it"
    files = _files_inside(index.parent, columns["file"], columns["clip"], columns["dataset"], otherwise)
    return ClipSet.from_table(
        pd.DataFrame(columns, dtype=object), {"flow": _image_store(files, columns["clip"], columns["dataset"])}
    )


def read_ststnet(folder: str | os.PathLike[str]) -> ClipSet:
    """Read the flow maps in the layout of the STSTNet release.

    The layout is ``norm_u_v_os/<subject>/u_train|u_test/<0|1|2>/<clip>.png``, one folder a subject, in which
    ``u_test`` holds that subject's clips and ``u_train`` those of everybody else, so that each clip lies there once
    per subject. Each is read once, from ``u_test``; 0, 1, 2 are negative, positive, surprise.

    Parameters
    ----------
    folder : path
        ``norm_u_v_os`` or the folder that holds it.

    Raises
    ------
    DataError
        A subject or class folder has an unknown name, a clip is there twice, or a ``u_train`` disagrees with the
        ``u_test`` of the others.
    """
    root = Path(folder)
    if (root / STSTNET_FOLDER).is_dir():
        root = root / STSTNET_FOLDER
    people = sorted(path for path in root.iterdir() if path.is_dir() and (path / "u_test").is_dir())
    if not people:
        raise DataError(
            f"{root} holds no <subject>/u_test folder; give the folder {STSTNET_FOLDER} of the STSTNet release."
        )
    rows: list[dict[str, str]] = []
    owner: dict[str, str] = {}
    for person in people:
        dataset = next(
            (name for pattern, name in STSTNET_DATASETS.items() if re.fullmatch(pattern, person.name, re.IGNORECASE)),
            None,
        )
        if dataset is None:
            raise DataError(
                f"the subject folder {person} is called like none of sub01 (CASME II), s01 (SMIC) or 006 (SAMM), "
                "so its data set is unknown; give the release as it was published."
            )
        for clip, label, file in _ststnet_side(person / "u_test"):
            if clip in owner:
                raise DataError(
                    f"clip {clip!r} lies in u_test of both {owner[clip]} and {person.name}; a clip has one subject."
                )
            owner[clip] = person.name
            rows.append({"clip": clip, "dataset": dataset, "subject": person.name, "label": label, "file": str(file)})
    labels = {row["clip"]: row["label"] for row in rows}
    for person in people:
        if (person / "u_train").is_dir():
            _check_ststnet_train(person, labels, owner)
    files = [row["file"] for row in rows]
    frame = pd.DataFrame(rows).drop(columns="file")
    return ClipSet.from_table(frame, {"flow": _image_store(files, frame["clip"].tolist(), frame["dataset"].tolist())})


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
    media : str
        Column of arrays or tensors of shape ``(channels, height, width)``, or of paths of 8-bit RGB maps.
    root : path, optional
        Folder that paths are relative to, and that they may not lead out of: give it for a table of somebody else.
        Without it the paths are taken as they are.
    spec : InputSpec, optional
        What the arrays hold; default as for `ClipSet.from_arrays`.
    scheme, where : optional
        As for `read_clips`.

    Raises
    ------
    DataError
        The column is missing or holds neither arrays nor paths, or the table is wrong.
    MediaError
        A file is missing, no regular file or outside `root`, or the first medium cannot be read.
    """
    if media not in frame.columns:
        raise DataError(
            f"the table has no column {media!r} with the maps; it has {', '.join(map(str, frame.columns))}."
        )
    cells = frame[media].tolist()
    named = ClipSet.from_table(frame.drop(columns=media))
    store: MediaStore
    if all(isinstance(cell, (str, os.PathLike)) for cell in cells):
        names, datasets = named.ids.tolist(), named.datasets.tolist()
        paths = [os.fsdecode(cell) for cell in cells]
        if root is None:
            paths = [os.path.abspath(path) for path in paths]
        top = Path(Path.cwd().anchor if root is None else root)
        files = _files_inside(top, paths, names, datasets, ", or leave root out if you trust the table")
        store = _image_store(files, names, datasets)
    elif all(hasattr(cell, "__array__") for cell in cells):
        arrays = [plain_array(cell, f"the map of clip {name!r}") for cell, name in zip(cells, named.ids, strict=True)]
        store = ListStore(arrays, guess_spec(arrays[0][np.newaxis]) if spec is None else spec)
    else:
        kinds = [isinstance(cell, (str, os.PathLike)) or 2 * hasattr(cell, "__array__") for cell in cells]
        wrong = next(row for row, kind in enumerate(kinds) if not kind or kind != kinds[0])
        raise DataError(
            f"column {media!r} of clip {named.ids[wrong]!r} holds a {type(cells[wrong]).__name__}, "
            "but all cells must be arrays or all paths."
        )
    clips = ClipSet.from_table(named.table, {store.spec.kind: store})
    if where is not None:
        clips = clips.select(where)
    return clips if scheme is None else clips.relabel(scheme)


def as_clips(
    given: ClipSet | Clip | Sequence[Clip] | tuple[ArrayLike, ArrayLike] | ArrayLike,
    *,
    spec: InputSpec | None = None,
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
    if isinstance(given, tuple) and len(given) == 2:
        flow, labels = cast(tuple[ArrayLike, ArrayLike], given)
        return ClipSet.from_arrays(_stacked(flow), labels, spec=spec)
    return ClipSet.from_arrays(_stacked(given), None, spec=spec)


def _stacked(given: Any) -> NDArray[Any]:
    array = plain_array(given, "the set of clips")
    return array[np.newaxis] if array.ndim == 3 else array


def _read_csv(index: Path, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = read_table_text(index, what="the index")
    lines = text.splitlines()
    best: list[str] = []
    delimiter = ","
    for candidate in (",", ";", "\t"):
        first = next(iter(csv_rows("".join(lines[:1]), index, what="the index", delimiter=candidate)), (1, []))[1]
        names = [name.strip().lower() for name in first]
        if len(set(names) & set(required)) > len(set(best) & set(required)):
            best, delimiter = names, candidate
    missing = [name for name in required if name not in best]
    if missing:
        seen = ", ".join(best) or (lines[0][:80] if text.strip() else "nothing")
        raise DataError(
            f"{index} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; its first line must name "
            f"{', '.join(required)}, and it has {seen}."
        )
    doubled = sorted({name for name in best if best.count(name) > 1})
    if doubled:
        raise DataError(f"{index} has the column {doubled[0]!r} twice; keep one.")
    stripped = (
        (line, [field.strip() for field in row])
        for line, row in csv_rows(text, index, what="the index", delimiter=delimiter)[1:]
    )
    return best, [(line, row) for line, row in stripped if any(row)]


def _files_inside(
    folder: Path, names: Sequence[str], clips: Sequence[str], datasets: Sequence[str], otherwise: str
) -> list[str]:
    """Paths of the files that a table names; all are checked before any is opened."""
    # One listing a folder is much faster than one look-up a file; what is no plain file there is looked at closely.
    plain: dict[str, frozenset[str]] = {}
    found = []
    for name, clip, dataset in zip(names, clips, datasets, strict=True):
        head, base = os.path.split(name.replace("\\", "/"))
        if head not in plain:
            plain[head] = _plain_files(folder, head)
        if base in plain[head]:
            found.append(os.path.join(folder, head, base))
            continue
        try:
            path = path_inside(folder, name, otherwise=otherwise)
            check_regular(path)
            found.append(path)
        except FileNotFoundError as error:
            raise _unusable(clip, dataset, f"the file {path} does not exist; put it there") from error
        except (OSError, ValueError) as error:
            reason = f"the file {path} is not used: {error.strerror}" if isinstance(error, OSError) else f"{error}"
            raise _unusable(clip, dataset, reason) from error
    return found


def _plain_files(folder: Path, head: str) -> frozenset[str]:
    try:
        with os.scandir(path_inside(folder, head)) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (OSError, ValueError):
        return frozenset()


def _unusable(clip: str, dataset: str, reason: str) -> MediaError:
    return MediaError(f"clip {clip!r} of data set {dataset!r}: {reason} or take the clip out of the table.")


def _image_store(files: Sequence[str], clips: Sequence[str], datasets: Sequence[str]) -> ImageStore:
    try:
        return ImageStore(files)
    except RowError as error:
        raise MediaError(f"clip {clips[error.row]!r} of data set {datasets[error.row]!r}: {error.reason}") from error


def _ststnet_side(side: Path) -> list[tuple[str, str, Path]]:
    found = []
    for folder in sorted(path for path in side.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name not in STSTNET_LABELS:
            raise DataError(
                f"the class folder {folder} is called neither 0 (negative) nor 1 (positive) nor 2 (surprise)."
            )
        images = (
            path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
        )
        found += [(path.stem, STSTNET_LABELS[folder.name], path) for path in sorted(images)]
    return found


def _check_ststnet_train(person: Path, labels: dict[str, str], owner: dict[str, str]) -> None:
    train = {clip: label for clip, label, _ in _ststnet_side(person / "u_train")}
    for clip, label in train.items():
        if owner.get(clip) == person.name:
            raise DataError(f"clip {clip!r} lies in both u_train and u_test of {person}; take it out of u_train.")
        if clip not in labels:
            raise DataError(
                f"clip {clip!r} lies in u_train of {person} but in nobody's u_test; "
                "the release is incomplete, copy it again."
            )
        if labels[clip] != label:
            raise DataError(
                f"clip {clip!r} is {label} in u_train of {person} but {labels[clip]} in u_test of {owner[clip]}; "
                "copy the release again."
            )
    gone = [clip for clip in labels if owner[clip] != person.name and clip not in train]
    if gone:
        raise DataError(
            f"u_train of {person} lacks {len(gone)} clips of the others, such as {gone[0]!r}; copy the release again."
        )

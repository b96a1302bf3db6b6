"""Image maps that a table names, as a clip set; every path is kept inside the folder of the table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fsmer.data.clips import ClipSet
from fsmer.data.media import ImageStore, RowError
from fsmer.data.text_tables import csv_rows, path_inside, read_table_text
from fsmer.errors import DataError, MediaError
from fsmer.io import check_regular

__all__ = ["read_index"]

INDEX = "index.csv"
REQUIRED = ("clip", "dataset", "subject", "file")


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
                f"row {number} of {index} (clip {clip!r}) has {len(row)} fields, its header {len(header)}; correct it."
            )
        for name in filled:
            if not values[name]:
                raise DataError(
                    f"row {number} of {index} (clip {clip!r}) has an empty {name}; fill it in or take the row out."
                )
        if clip in first_row:
            raise DataError(
                f"row {number} of {index} names clip {clip!r} again, as row {first_row[clip]} does; rename one."
            )
        first_row[clip] = number
        for name, value in values.items():
            columns[name].append(value)
    otherwise = ", or read the table with fsmer.data.read_frame if you trust it"
    files = files_inside(index.parent, columns["file"], columns["clip"], columns["dataset"], otherwise)
    return ClipSet.from_table(
        pd.DataFrame(columns, dtype=object), {"flow": image_store(files, columns["clip"], columns["dataset"])}
    )


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


def files_inside(
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


def image_store(files: Sequence[str], clips: Sequence[str], datasets: Sequence[str]) -> ImageStore:
    try:
        return ImageStore(files)
    except RowError as error:
        raise MediaError(f"clip {clips[error.row]!r} of data set {datasets[error.row]!r}: {error.reason}") from error

"""Image maps that a table names, as a clip set; every path is kept inside the folder of the table."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fsmer.data.clip import media_error
from fsmer.data.clips import ClipSet
from fsmer.data.media import ImageStore, RowError
from fsmer.data.text_tables import csv_rows, path_inside, read_table_text
from fsmer.errors import DataError
from fsmer.io import check_regular

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
    filled = [name for name in (*REQUIRED, "label") if name in header and (labelled or name != "label")]
    first_row: dict[str, int] = {}
    for number, row in rows:
        values = dict(zip(header, row, strict=False))
        clip = values.get("clip", "")
        place = f"row {number} of {index} (clip {clip!r})"
        if len(row) != len(header):
            raise DataError(f"{place} has {len(row)} fields, but its header {len(header)}; correct the row.")
        empty = next((name for name in filled if not values[name]), None)
        if empty is not None:
            raise DataError(f"{place} has an empty {empty}; fill it in or take the row out.")
        if clip in first_row:
            raise DataError(f"{place} has the id of row {first_row[clip]}; give each clip an id of its own.")
        first_row[clip] = number
    table = pd.DataFrame([row for _, row in rows], columns=header, dtype=object)
    names, clips, datasets = (table[name].tolist() for name in ("file", "clip", "dataset"))
    otherwise = ", or read the table with fsmer.data.read_frame if you trust it"
    files = files_inside(index.parent, names, clips, datasets, otherwise)
    return ClipSet.from_table(table, {"flow": image_store(files, clips, datasets)})


def _read_csv(index: Path, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = read_table_text(index, what="the index")
    lines = text.splitlines()
    headers = {}
    for candidate in (",", ";", "\t"):
        first = csv_rows("".join(lines[:1]), index, what="the index", delimiter=candidate) or [(1, [])]
        headers[candidate] = [name.strip().lower() for name in first[0][1]]
    delimiter = max(headers, key=lambda candidate: len(set(headers[candidate]) & set(required)))
    best = headers[delimiter] if set(headers[delimiter]) & set(required) else []
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
    rows = csv_rows(text, index, what="the index", delimiter=delimiter)[1:]
    stripped = ((line, [field.strip() for field in row]) for line, row in rows)
    return best, [(line, row) for line, row in stripped if any(row)]


def files_inside(
    folder: Path, names: Sequence[str], clips: Sequence[str], datasets: Sequence[str], otherwise: str
) -> list[str]:
    """Paths of the files that a table names; all are checked before any is opened."""
    # One listing a folder is much faster than one look-up a file; what is no plain file there is checked by itself.
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
        except (OSError, ValueError) as error:
            reason = f"the file {path} is not used: {error.strerror}" if isinstance(error, OSError) else f"{error}"
            if isinstance(error, FileNotFoundError):
                reason = f"the file {path} does not exist; put it there"
            raise media_error(clip, dataset, f"{reason} or take the clip out of the table.") from error
    return found


def _plain_files(folder: Path, head: str) -> frozenset[str]:
    try:
        with os.scandir(path_inside(folder, head)) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except (OSError, ValueError):
        return frozenset()


def image_store(files: Sequence[str], clips: Sequence[str], datasets: Sequence[str]) -> ImageStore:
    """The images of clips, whose first one says the size of all."""
    try:
        return ImageStore(files)
    except RowError as error:
        raise media_error(clips[error.row], datasets[error.row], error.reason) from error

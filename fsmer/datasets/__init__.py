"""Data sets on disk, read as their owners give them out: one file a data set, each found by its name.

`read_dataset` turns a release into a clip set without media: who shows what, where its frames are, and which of them
are onset, apex and offset. `check_dataset` says what of the annotation is not there. A new data set is one file with an
`Adapter` that `register_dataset` names: a file of fsmer, or a plugin.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import dataclass

from fsmer.data.clips import ClipSet, concat
from fsmer.data.schemes import LabelScheme, canonical_dataset
from fsmer.datasets.audit import Audit, Finding
from fsmer.datasets.base import Adapter, FrameKind, register_dataset, release, roles
from fsmer.datasets.catalog import dataset_info
from fsmer.datasets.corrections import Correction, read_corrections, shipped_corrections
from fsmer.datasets.folders import frame_files
from fsmer.errors import DataError, MissingDatasetError, PluginError, reason_of
from fsmer.listing import FixedListing
from fsmer.outside import outside_value
from fsmer.plugins import DATASETS, OWN

__all__ = [
    "Adapter", "Audit", "Correction", "DatasetListing", "Finding", "check_dataset", "frame_files", "list_datasets",
    "load_adapter", "megc2019_composite", "read_corrections", "read_dataset", "register_dataset", "release", "roles",
    "shipped_corrections",
]  # fmt: skip
__dir__ = __all__.copy  # tab completion shows public names only

COMPOSITE = ("casme2", "samm", "smic")


@dataclass(frozen=True)
class DatasetListing:
    """One line of `list_datasets`.

    Parameters
    ----------
    name, title : str
        Name for `read_dataset`, and full name.
    clips, subjects : int or None
        What the release holds, where known.
    frames_per_second : float or None
    annotation : str
        File names that the annotation may have.
    request : str
        Where to request it, under which licence, and its paper; ``""`` for a folder of one's own.
    """

    name: str
    title: str
    clips: int | None
    subjects: int | None
    frames_per_second: float | None
    annotation: str
    request: str


def list_datasets() -> tuple[DatasetListing, ...]:
    """Every data set that `read_dataset` reads, and where to request it.

    Returns
    -------
    tuple of DatasetListing
        One entry a data set.

    Examples
    --------
    >>> import fsmer
    >>> [entry.name for entry in fsmer.list_datasets() if "casme2" in entry.name]
    ['casme2']
    """
    return FixedListing(map(_listing, DATASETS), "data sets", _dataset_row)


def _listing(name: str) -> DatasetListing:
    try:
        adapter = _adapter(name)
        return DatasetListing(
            name=adapter.name,
            title=adapter.title,
            clips=adapter.published.get("clips"),
            subjects=adapter.published.get("subjects"),
            frames_per_second=adapter.frames_per_second,
            annotation=" or ".join(adapter.sheets) or "names of the folders",
            request="" if adapter.info is None else adapter.info.where_to_request(),
        )
    # Code from outside raises whatever it likes, and the other data sets are listed all the same.
    except Exception:
        if DATASETS.origin(name) == OWN:
            raise
        return DatasetListing(name, str(DATASETS[name].title), None, None, None, "-", "")


def _dataset_row(one: DatasetListing) -> dict[str, str]:
    known = {"clips": one.clips, "people": one.subjects, "frames/s": one.frames_per_second}
    counts = {key: "" if value is None else f"{value:g}" for key, value in known.items()}
    return {"data set": one.name, **counts, "where to request it": one.request, "title": one.title}


def load_adapter(name: str) -> Adapter:
    """Adapter of a data set by name, in any usual spelling.

    Raises
    ------
    UnknownNameError
        There is none of that name; the message suggests the nearest.

    Examples
    --------
    >>> load_adapter("CASME II").name
    'casme2'
    """
    if not isinstance(name, str):
        raise DataError(f"a data set was given as {outside_value(name)}; give a name of fsmer.list_datasets.")
    plain = name.strip().lower().replace("_", "-")
    for key in DATASETS:
        with suppress(PluginError):  # of another data set
            adapter = _adapter(key)
            if plain in (adapter.name.lower(), *adapter.aliases):
                return adapter
    known = canonical_dataset(name)
    DATASETS.find(known if known in DATASETS else name)
    return _adapter(known)


def _adapter(name: str) -> Adapter:
    try:
        adapter: Adapter = DATASETS[name](**DATASETS.preset(name))
        return adapter
    except Exception as error:
        raise PluginError(
            f"the data set {name!r} of {DATASETS.origin(name)} cannot be read ({type(error).__name__}: "
            f"{reason_of(error)}); correct its class, which is made without arguments."
        ) from error


def check_dataset(
    name: str,
    root: str | os.PathLike[str],
    *,
    frames: FrameKind | None = None,
    sheet: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
) -> Audit:
    """Compare the annotation of a data set with what is on disk, clip by clip.

    A clip is usable when two or more of its annotated frames are there. An apex that is unknown or outside the clip is
    replaced by the middle frame; every such thing is a finding of the audit.

    Parameters
    ----------
    name : str
        A name of `list_datasets`.
    root : path
        Folder to which the release was unpacked; annotation and frames may lie up to three folders below.
    frames : {"raw", "cropped"}, optional
        Kind of frames where a release has both. Default: raw where they are there.
    sheet : path, optional
        The annotation, where it is not under the root or not the one that would be taken.
    corrections : path, optional
        Table of further corrections, see `read_corrections`; they apply after those that ship with fsmer.

    Returns
    -------
    Audit
        Usable clips, and a finding for everything that was replaced or left out.

    Raises
    ------
    UnknownNameError
        There is no data set of that name.
    MissingDatasetError
        The root is not that of the data set; the message says what was expected.
    DataError
        The annotation cannot be read or lacks columns, which the message names.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cv2
    >>> import numpy as np
    >>> import pandas as pd
    >>> import fsmer
    >>> for clip in ("smile", "frown"):
    ...     Path("mine", clip).mkdir(parents=True)
    ...     for number in range(3):
    ...         written = cv2.imwrite(f"mine/{clip}/frame{number}.png", np.zeros((8, 8, 3), np.uint8))
    >>> table = pd.DataFrame({"path": ["smile", "frown"], "label": ["positive", "negative"]})
    >>> table.to_csv("mine/clips.csv", index=False)
    >>> len(fsmer.check_dataset("generic", "mine").clips)
    2
    """
    return load_adapter(name).check(root, frames=frames, sheet=sheet, corrections=corrections)


def read_dataset(
    name: str,
    root: str | os.PathLike[str],
    *,
    scheme: str | LabelScheme | None = None,
    frames: FrameKind | None = None,
    sheet: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
) -> ClipSet:
    """Read the usable clips of a data set as a clip set without media.

    Clips without frames are left out with one warning; `check_dataset` names them.

    Parameters
    ----------
    name : str
        A name of `list_datasets`.
    root : path
        Folder to which the release was unpacked, see `check_dataset`.
    scheme : str or LabelScheme, optional
        Label scheme to apply, see `ClipSet.relabel`.
    frames : {"raw", "cropped"}, optional
        Kind of frames where a release has both. Default: raw where they are there.
    sheet : path, optional
        The annotation, where it is not under the root or not the one that would be taken.
    corrections : path, optional
        Table of further corrections, see `check_dataset`.

    Returns
    -------
    ClipSet
        Beside ``clip, dataset, subject, label, aus`` its table has

        ``name``
            the clip's own name in the annotation or of its folder;
        ``path``
            folder of frames, or video;
        ``frames, first, last``
            number of frame files, and the numbers in the first and last one's name (missing for a video);
        ``onset, apex, offset``
            frame numbers as annotated and corrected; for an unknown onset or offset of a folder that holds one clip its
            first or last frame, for an unknown apex nothing;
        ``onset_index, apex_index, offset_index``
            the same as positions among `frame_files` of the folder (or frames of the video), counted from 0; where a
            frame is not on disk, the nearest within the clip;
        ``apex_from``
            ``"annotation"``, or ``"middle"`` where the middle frame stands in;
        ``frames_per_second``
            speed of the camera;
        ``sheet_...``
            every column of the sheet as text, e.g. ``sheet_objective_classes``.

    Raises
    ------
    UnknownNameError, MissingDatasetError, DataError
        As for `check_dataset`, and if no clip is usable.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cv2
    >>> import numpy as np
    >>> import pandas as pd
    >>> import fsmer
    >>> Path("mine/smile").mkdir(parents=True)
    >>> for number in range(3):
    ...     written = cv2.imwrite(f"mine/smile/frame{number}.png", np.zeros((8, 8, 3), np.uint8))
    >>> table = pd.DataFrame({"path": ["smile"], "label": ["positive"]})
    >>> table.to_csv("mine/clips.csv", index=False)
    >>> clips = fsmer.read_dataset("generic", "mine")
    >>> clips.ids.tolist(), clips.labels.tolist()
    (['smile'], ['positive'])
    """
    audit = check_dataset(name, root, frames=frames, sheet=sheet, corrections=corrections)
    if audit.clips is None:
        first = audit.findings[-1]
        raise DataError(
            f"none of the {audit.annotated} clips of {audit.title} under {audit.root} is usable, for instance "
            f"{first.clip!r}: {first.detail}; copy the frames again."
        )
    if not audit.complete:
        warnings.warn(
            f"{audit.annotated - audit.usable} of {audit.annotated} clips of {audit.title} are left out, such as "
            f"{audit.left_out[0]!r}; check_dataset says why.",
            stacklevel=2,
        )
    return audit.clips if scheme is None else audit.clips.relabel(scheme)


def megc2019_composite(*sets: ClipSet) -> ClipSet:
    """Pool CASME II, SAMM and SMIC-HS by the rule of MEGC 2019: three classes, 442 clips of 68 people when complete.

    Negative is disgust and repression of CASME II, and anger, contempt, disgust, fear and sadness of SAMM; positive is
    happiness; others, and sadness and fear of CASME II, are left out, and so are two clips of CASME II (see the label
    scheme ``megc2019``, which this applies).

    Parameters
    ----------
    *sets : ClipSet
        The three data sets with their own labels, in any order, from `read_dataset`.

    Returns
    -------
    ClipSet
        Its ``relabelling`` says what was mapped and left out.

    Raises
    ------
    MissingDatasetError
        One of the three is not there; the message says where to request it.
    DataError
        Another data set is among them, or a label is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> maps = np.random.default_rng(0).random((2, 3, 28, 28), dtype=np.float32)
    >>> casme2 = fsmer.ClipSet.from_arrays(maps, ["repression", "others"], datasets="casme2")
    >>> samm = fsmer.ClipSet.from_arrays(maps, ["happiness", "anger"], datasets="samm")
    >>> smic = fsmer.ClipSet.from_arrays(maps, ["surprise", "negative"], datasets="smic")
    >>> fsmer.megc2019_composite(casme2, samm, smic).labels.tolist()
    ['negative', 'positive', 'negative', 'surprise', 'negative']
    """
    held = [canonical_dataset(name) for clips in sets for name in clips.dataset_names]
    missing = next((name for name in COMPOSITE if name not in held), None)
    if missing is not None:
        info = dataset_info(missing)
        where = f"; {info.where_to_request()}" if info else ""
        raise MissingDatasetError(
            f"the composite of MEGC 2019 needs {', '.join(COMPOSITE)}, and {missing} is not given{where}."
        )
    other = next((name for name in held if name not in COMPOSITE), None)
    if other is not None:
        raise DataError(f"the composite of MEGC 2019 is made of {', '.join(COMPOSITE)}; leave {other!r} out.")
    return concat(sets, kinds=()).relabel("megc2019")

"""The flow maps in the layout of the STSTNet release as a clip set."""

import os
import re
from pathlib import Path

import pandas as pd

from fsmer.data.clips import ClipSet
from fsmer.data.index import image_store
from fsmer.errors import DataError

STSTNET_FOLDER = "norm_u_v_os"
# The folders of the release are named by MEGC 2019 class number.
STSTNET_LABELS = {"0": "negative", "1": "positive", "2": "surprise"}
# The name of a subject's folder says which of the three databases it is from: sub17, s03 (or s3), 006.
STSTNET_DATASETS = {r"sub\d+": "casme2", r"s\d+": "smic", r"\d{3}": "samm"}
IMAGE_ENDINGS = frozenset({".png", ".bmp", ".jpg", ".jpeg"})


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
        raise DataError(f"{root} holds no <subject>/u_test folder; give {STSTNET_FOLDER} of the STSTNet release.")
    rows: list[dict[str, str]] = []
    owner: dict[str, str] = {}
    for person in people:
        named = [name for form, name in STSTNET_DATASETS.items() if re.fullmatch(form, person.name, re.IGNORECASE)]
        if not named:
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
            rows.append({"clip": clip, "dataset": named[0], "subject": person.name, "label": label, "file": str(file)})
    labels = {row["clip"]: row["label"] for row in rows}
    for person in people:
        if (person / "u_train").is_dir():
            _check_ststnet_train(person, labels, owner)
    frame = pd.DataFrame(rows)
    files, clips, datasets = (frame[name].tolist() for name in ("file", "clip", "dataset"))
    return ClipSet.from_table(frame.drop(columns="file"), {"flow": image_store(files, clips, datasets)})


def _ststnet_side(side: Path) -> list[tuple[str, str, Path]]:
    found = []
    for folder in sorted(path for path in side.iterdir() if path.is_dir() and path.name[0] != "."):
        if folder.name not in STSTNET_LABELS:
            raise DataError(f"the class folder {folder} is not called 0 (negative), 1 (positive) or 2 (surprise).")
        images = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.name[0] != ".")
        found += [(path.stem, STSTNET_LABELS[folder.name], path) for path in sorted(images)]
    return found


def _check_ststnet_train(person: Path, labels: dict[str, str], owner: dict[str, str]) -> None:
    train = {clip: label for clip, label, _ in _ststnet_side(person / "u_train")}
    for clip, label in train.items():
        if owner.get(clip) == person.name:
            raise DataError(f"clip {clip!r} lies in both u_train and u_test of {person}; take it out of u_train.")
        if clip not in labels:
            raise DataError(f"clip {clip!r} lies in u_train of {person} but in nobody's u_test; copy it again.")
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

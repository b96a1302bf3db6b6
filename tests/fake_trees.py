"""Small fake releases of the data sets that fsmer reads, with every quirk of the real ones and nobody's face in them.

Each builder writes sheet and folders of one data set below a root; `build` calls one by the adapter's name. Frames are
a drawn oval with a mouth that opens and closes, or whatever `picture` gives.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rows = Sequence[Sequence[Any]]
Picture = Callable[[int, int], np.ndarray]
"""Index of a frame and number of frames of its clip -> 8-bit RGB or grey image."""


def drawing(index: int, total: int) -> np.ndarray:
    """An oval with eyes and a mouth that opens towards the middle of the clip, 24 x 20 pixels."""
    rows, columns = np.mgrid[0:24, 0:20]
    image = np.full((24, 20, 3), 40, np.uint8)
    image[((rows - 12) / 11) ** 2 + ((columns - 10) / 8) ** 2 < 1] = (205, 170, 150)
    image[9:11, 6:8] = image[9:11, 12:14] = 60
    opening = 1 + round(2 * (1 - abs(2 * index / max(total - 1, 1) - 1)))
    image[17 : 17 + opening, 7:13] = (140, 60, 60)
    return image


@functools.cache
def _encoded(ending: str, grey: bool, index: int, total: int, picture: Picture) -> bytes:
    image = Image.fromarray(picture(index, total))
    held = io.BytesIO()
    image.convert("L" if grey else "RGB").save(held, {".jpg": "JPEG", ".bmp": "BMP", ".png": "PNG"}[ending])
    return held.getvalue()


def write_frames(folder: Path, names: Sequence[str], *, picture: Picture = drawing, grey: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        (folder / name).write_bytes(_encoded(Path(name).suffix, grey, index, len(names), picture))


def numbered(pattern: str, numbers: Iterable[int]) -> list[str]:
    return [pattern.format(number) for number in numbers]


def write_xlsx(path: Path, worksheets: dict[str, Rows]) -> None:
    from openpyxl import Workbook

    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    book.remove(book.active)
    for name, rows in worksheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    book.save(path)


def write_xls(path: Path, worksheets: dict[str, Rows]) -> None:
    import xlwt

    path.parent.mkdir(parents=True, exist_ok=True)
    book = xlwt.Workbook()
    for name, rows in worksheets.items():
        sheet = book.add_sheet(name)
        for place, row in enumerate(rows):
            for column, value in enumerate(row):
                if value is not None:
                    sheet.write(place, column, value)
    book.save(str(path))


def write_csv(path: Path, rows: Rows, delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, delimiter=delimiter).writerows(rows)


# -- CASME ------------------------------------------------------------------------------------------------------------

CASME_HEADER = (
    *("Subject", "Filename", None, "OnsetF", "ApexF1", "ApexF2", "OffsetF", None, "Onset", "Total", "AU", "Emotion"),
)
CASME_ROWS = (
    # The first clips have unpadded numbers, the later ones three digits.
    (1, "EP01_5", None, 8, 10, 12, 14, None, 133, 100, 4, "disgust"),
    (1, "EP03_2", None, 97, 99, "\\", 103, None, 1617, 100, "4+17", "repression"),
    (2, "EP01_8", None, 98, 100, "\\", 104, None, 1633, 100, "L14", "tense"),
    (12, "EP04_1", None, 5, 7, "\\", 9, None, 83, 67, 1, "surprise"),
)


def casme(root: Path, *, picture: Picture = drawing) -> None:
    write_xlsx(root / "CASME-coded-20190721.xlsx", {"Sheet1": [CASME_HEADER, *CASME_ROWS]})
    for place, row in enumerate(CASME_ROWS):
        pattern = "{}.jpg" if place < 2 else "{:03d}.jpg"
        names = [f"{row[1]}-{name}" for name in numbered(pattern, range(row[3], row[6] + 1))]
        write_frames(root / "CASME_raw_selected" / f"sub{row[0]:02d}" / row[1], names, picture=picture)
        crops = [f"reg_{name}" for name in names]
        write_frames(root / "Cropped" / f"sub{row[0]:02d}" / row[1], crops, picture=picture)


# -- CASME II ---------------------------------------------------------------------------------------------------------

CASME2_HEADER = (
    *("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None),
    *("Action Units", "Estimated Emotion"),
)
CASME2_ROWS = (
    ("01", "EP02_01f", None, 46, 59, 66, None, 12, "happiness"),
    ("01", "EP03_02", None, 96, 101, 105, None, "L4+R12", "others"),
    ("04", "EP12_01f", None, 8, "/", 14, None, 4, "disgust"),
    ("05", "EP05_03", None, 5, 8, 12, None, "?", "disgust"),
    ("05", "EP09_05f", None, 20, 20, 26, None, "4+7", "disgust"),
    ("06", "EP06_02_01", None, 9, 11, 13, None, 14, "repression"),
    ("07", "EP06_01", None, 40, 60, 68, None, "15", "surprise"),
    ("17", "EP09f", None, 3, 6, 9, None, "4+15", "fear"),
    ("26", "EP18_47", None, 30, 33, 40, None, "1+2", "sadness"),
)


def casme2(
    root: Path, rows: Rows = CASME2_ROWS, *, year: int = 2014, cropped: bool = True, picture: Picture = drawing
) -> None:
    if year == 2014:
        write_xlsx(root / "CASME2-coding-20140508.xlsx", {"Sheet1": [CASME2_HEADER, *rows], "Sheet2": [], "Sheet3": []})
    else:
        whole = [(int(row[0]), *row[1:]) for row in rows]
        write_xlsx(root / "CASME2-coding-20190701.xlsx", {"Sheet1": [CASME2_HEADER, *whole]})
    objective = [(int(row[0]), row[1], 1 + place % 7) for place, row in enumerate(rows)]
    write_xlsx(
        root / "CASME2-ObjectiveClasses.xlsx", {"Sheet1": [("Subject", "Filename", "Objective Class"), *objective]}
    )
    for row in rows:
        # The folder of this clip holds more than its sheet says.
        last = 91 if row[:2] == ("07", "EP06_01") else row[5]
        names = numbered("img{}.jpg", range(row[3], last + 1))
        write_frames(root / "CASME2_RAW_selected" / f"sub{row[0]}" / row[1], names, picture=picture)
        if cropped:
            crops = [f"reg_{name}" for name in names]
            write_frames(root / "Cropped-updated" / "Cropped" / f"sub{row[0]}" / row[1], crops, picture=picture)
    if cropped:
        (root / "Cropped-updated" / "Cropped" / "sub01" / "Desktop - Shortcut.lnk").write_bytes(b"L\0\0\0")


# -- CAS(ME)^2 --------------------------------------------------------------------------------------------------------

CASME_SQUARED_ROWS = (
    (1, "disgust2_2", 12, 15, 20, "4+7", "negative", "micro-expression", "disgust"),
    (1, "disgust2_1", 30, 40, 60, "4", "negative", "macro-expression", "disgust"),
    (1, "happy2_1", 8, 11, 0, "R12", "positive", "micro-expression", "happy"),
    (7, "happy1_1", "5", "9", 14, "6+12", "positive", "micro-expression", "happy"),
    (8, "anger1_1", 101, 104, 109, 4, "others", "micro-expression", "anger"),
    (22, "happy5_1", 2, 5, 9, "1+2", "surprise", "micro-expression", "surprise"),
)
CASME_SQUARED_FOLDERS = {
    ("s15", "15_0102eatingworms"): 25,
    ("s15", "15_0503unnyfarting"): 15,
    # The recording of s23 lies in the folder of s19.
    ("s19", "23_0502funnyerrors"): 20,
    ("s24", "24_0401girlcrashing"): 112,
    ("s40", "40_0508funnydunkey"): 12,
}


def casme_squared(
    root: Path, *, worksheet: str = "CASFEcode_final", rules: bool = True, picture: Picture = drawing
) -> None:
    people = [(101, "s15", 1), (105, "s23", 7), (106, "s24", 8), (122, "s40", 22)]
    codes = [(102, "disgust2"), (503, "happy2"), (502, "happy1"), (401, "anger1"), (508, "happy5")]
    book: dict[str, Rows] = {worksheet: CASME_SQUARED_ROWS}
    if rules:
        book |= {"naming rule1": people, "naming rule2": codes}
    write_xlsx(root / "CAS(ME)^2code_final(Updated).xlsx", book)
    for (subject, name), frames in CASME_SQUARED_FOLDERS.items():
        # Padded to three digits, and longer numbers simply grow.
        write_frames(root / "rawpic" / subject / name, numbered("img{:03d}.jpg", range(1, frames + 1)), picture=picture)


# -- CAS(ME)^3 --------------------------------------------------------------------------------------------------------

CASME3A_HEADER = ("Subject", "Filename", "Onset ", " Apex", "Offset", "AU", "Objective class", "emotion")
CASME3A_ROWS = (
    ("spNO.1", "a", 1204, 1207, 1213, "4", 4, "disgust"),
    ("spNO.1", "a", 1402, 1405, 1409, "R12+L14", 1, "happy"),
    ("spNO.1", "b", 3, 3, 9, "T10", 7, "sad"),
    ("spNO.149", "d", 57, 52, 63, "4+B25", 4, "anger"),
    ("spNO.210", "m", 88, 92, 98, 1, 2, "surprise"),
)


def casme3(root: Path, *, long: bool = False, master: bool = False, picture: Picture = drawing) -> None:
    if master:
        header = (*CASME3A_HEADER, "Expression type")
        rows = [(*row, "Micro-expression") for row in CASME3A_ROWS]
        rows.insert(1, ("spNO.1", "a", 1300, 1320, 1390, "12", 1, "happy", "Macro-expression"))
        write_xlsx(root / "annotation" / "CAS(ME)3_part_A_v2.xlsx", {"label": [header, *rows]})
    else:
        sheet = {"label": [CASME3A_HEADER, *CASME3A_ROWS]}
        write_xlsx(root / "annotation" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", sheet)
    for subject, letter, onset, _, offset, *_ in CASME3A_ROWS:
        on_disk = str(subject).replace("spNO", "spNo")
        names = numbered("{}.jpg", range(onset, offset + 1))
        if long:
            write_frames(root / "part_A" / on_disk / letter / "color", names, picture=picture)
            write_frames(root / "part_A" / on_disk / letter / "depth", [f"{name[:-4]}.png" for name in names])
        else:
            clip = f"{on_disk}_{letter}_{onset}"
            write_frames(root / "Part_A_ME_clip" / "frame" / clip, names, picture=picture)
            write_frames(root / "Part_A_ME_clip" / "depth" / clip, [f"{name[:-4]}.png" for name in names])


CASME3C_ROWS = (
    (1, 1, 120, 126, "4,7", "disgust", 0, 0),
    (1, 2, 140, 146, "12，25", "happiness", 0, 0),
    (31, 1, 15, 21, 4, "fear", 1, 0),
)


def casme3_c(root: Path, *, by_clip: bool = False, picture: Picture = drawing) -> None:
    header = ("sub", "count", "onset", "offset", "au", "emotion", "PHY", "risk")
    write_xlsx(root / "CAS(ME)3_part_C_ME.xlsx", {"Sheet1": [header, *CASME3C_ROWS]})
    for subject, count, onset, offset, *_ in CASME3C_ROWS:
        names = numbered("{}.jpg", range(onset, offset + 1))
        below = (str(count), "color") if by_clip else ("a", "color")
        write_frames(root.joinpath("part_C", f"{subject:02d}", *below), names, picture=picture)
        depth = root.joinpath("part_C", f"{subject:02d}", below[0], "depth")
        write_frames(depth, [f"{name[:-4]}.png" for name in names])


# -- SAMM -------------------------------------------------------------------------------------------------------------

SAMM_HEADER = (
    *("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration", "Micro"),
    *("Action Units", "Estimated Emotion", "Objective Classes", "Notes"),
)
SAMM_NOTES = (
    *[("Coding of micro-movements", *[None] * 11) for _ in range(11)],
    ("/ means 'or', ? means an unclear offset", *[None] * 11),
    (None,) * 12,
)
SAMM_ROWS = (
    ("006", "006_1_2", 1, 5562, 5565, 5570, 9, "1/2", "4", "Anger", 4, None),
    ("006", "006_1_3", 1, 998, 1001, 1006, 9, "1/2", "L12 or L14", "Happiness", 1, "soft focus"),
    ("006", "006_2_1", 2, 150, 154, "?", 9, "1/2", "(R6 or R12) + R15", "Other", 7, None),
    ("013", "013_1_9", 1, 5730, 5735, 5793, 64, "1/2", "ref(7B)+43", "Contempt", 7, None),
    ("028", "028_4_1", 4, 1100, 2105, 1110, 11, "1/2", "A/L12", "Surprise", 1, None),
    ("036", "036_7_1", 7, 77, 80, 85, 9, "1/2", "soft focus", "Fear", 7, None),
)


def samm(root: Path, rows: Rows = SAMM_ROWS, *, notes: bool = True, picture: Picture = drawing) -> None:
    name = "SAMM_Micro_FACS_Codes_v2.xlsx" if notes else "SAMM_20181215_Micro_FACS_Codes_v2.xlsx"
    above = SAMM_NOTES if notes else ()
    write_xlsx(root / name, {"MICRO_ONLY": [*above, SAMM_HEADER, *rows]})
    for row in rows:
        last = {"013_1_9": 5739, "006_2_1": 158}.get(row[1], row[5])
        # Most clips have five digits, some four.
        pattern = "_{:04d}.jpg" if row[1] == "006_1_3" else "_{:05d}.jpg"
        names = [row[0] + name for name in numbered(pattern, range(row[3], last + 1))]
        write_frames(root / "SAMM" / row[0] / row[1], names, picture=picture, grey=True)


# -- SMIC -------------------------------------------------------------------------------------------------------------

SMIC_CLIPS = (
    ("s3", "negative", "s3_ne_03", 95),
    ("s3", "positive", "s3_po_01", 999_998),
    ("s18", "negative", "s18_sur_03", 12),
    ("s20", "surprise", "s20_sur_01", 1500),
)


def smic_short(
    root: Path,
    clips: Sequence[tuple[str, str, str, int]] = SMIC_CLIPS,
    *,
    part: str = "HS",
    frames: int = 6,
    cropped: bool = True,
    picture: Picture = drawing,
) -> None:
    pattern = "image{:06d}.bmp" if part == "HS" else "{:05d}.bmp"
    for subject, emotion, name, first in clips:
        names = numbered(pattern, range(first, first + frames))
        write_frames(root / "SMIC_all_raw" / part / subject / "micro" / emotion / name, names, picture=picture)
        if cropped:
            crops = [f"reg_{one}" for one in names]
            write_frames(root / "SMIC_all_cropped" / part / subject / "micro" / emotion / name, crops, picture=picture)
    # Clips without an expression lie beside the others.
    write_frames(root / "SMIC_all_raw" / part / "s3" / "non_micro" / "s3_non_01", numbered(pattern, range(1, 5)))


SMIC_LONG_HEADER = (
    *("Subject", "Filename", None, "OnsetF", "OffsetF", "Onset2F", "Offset2F", "Onset3F", "Offset3F", None),
    *("FirstF", "LastF", "TotalMF1", "TotalMF2", "TotalMF3", "TotalVL", "Emotion"),
)
SMIC_LONG_ROWS = (
    ("s1", "s1_ne_01", None, 105, 111, None, None, None, None, None, 100, 120, 7, None, None, 21, "negative"),
    ("s3", "s3_po_02", None, 1002, 1006, 1010, 1015, None, None, None, "MISSING 990", 1020, 5, 6, None, 21, "positive"),
    ("s20", "s20_sur_01", None, 12, 17, None, None, None, None, None, 5, 25, 6, None, None, 21, "surprise"),
    ("three clips were left out", None, None, None, None, None),
)


def smic_long(root: Path, *, part: str = "HS", picture: Picture = drawing) -> None:
    book: dict[str, Rows] = {"HS": [SMIC_LONG_HEADER, *SMIC_LONG_ROWS], "VIS": [], "Sheet2": [], "Sheet3": []}
    if part != "HS":
        book = {"HS": [SMIC_LONG_HEADER], part: [SMIC_LONG_HEADER, *SMIC_LONG_ROWS], "Sheet2": []}
    write_xlsx(root / f"SMIC-{part}-E_annotation.xlsx", book)
    for row in SMIC_LONG_ROWS[:-1]:
        last = row[11]
        first = last - row[15] + 1
        folder = root / f"{part}_long" / f"SMIC-{part}-E" / f"s{int(row[0][1:]):02d}" / row[1]
        write_frames(folder, numbered("image{:06d}.jpg", range(first, last + 1)), picture=picture)


# -- MMEW -------------------------------------------------------------------------------------------------------------

MMEW_HEADER = (
    *("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion", "remarks"),
)
MMEW_ROWS = (
    (1, "S01-02-001", 1, 5, 9, 4, "disgust", None),
    (1, "S01-07-001", 1, 6, 11, "4+14", "others", None),
    ("2.0", "S02-04-003", 1, None, None, "12", "happiness", "apex unclear"),
    (30, "S30-06-002", 1, 4, 8, "1+2", "surprise", None),
)


def mmew(root: Path, *, by_subject: bool = False, picture: Picture = drawing) -> None:
    write_xlsx(root / "MMEW_Micro_Exp.xlsx", {"Sheet1": [MMEW_HEADER, *MMEW_ROWS]})
    for row in MMEW_ROWS:
        # The folder of others has another name.
        emotion = "repression" if row[6] == "others" else row[6]
        above = (row[1].split("-")[0], emotion) if by_subject else (emotion,)
        names = numbered("{}.jpg", range(1, (row[4] or 12) + 1))
        write_frames(root.joinpath("Micro_Expression", *above, row[1]), names, picture=picture)


# -- 4DME -------------------------------------------------------------------------------------------------------------

FOURDME_HEADER = (
    *("sub_ID", "fold", "fold_name", "Emotion", "Onset", "Apex", "Offset", "AUs", "AU1", "AU4", "AU12"),
    *("Positive", "Negative", "Surprise", "Repression", "Others", "eye blink"),
)
FOURDME_ROWS = (
    ("S01", 1, "1st_001_01_1", "Negative", 101, 104, 108, "AU4(k)+L7", 0, 1, 0, 0, 1, 0, 0, 0, 0),
    ("S01", 1, "1st_001_02_1", "Surprise+Positive", 201, 205, 209, "AUR2+12(k)+45", 1, 0, 1, 1, 0, 1, 0, 0, 1),
    ("S13", 2, "1st_001_01_1", "Repression", 11, 14, 19, "4", 0, 1, 0, 0, 0, 0, 1, 0, 0),
    ("S40", 3, "2nd_003_01_1", "Others", 30, 33, 36, 4, 0, 1, 0, 0, 0, 0, 0, 1, 0),
)


def fourdme(root: Path, *, release: bool = True, picture: Picture = drawing) -> None:
    if release:
        write_xlsx(root / "4DME_Labelling_Micro_release v1.xlsx", {"Sheet1": [FOURDME_HEADER, *FOURDME_ROWS]})
    else:
        header = tuple(f"{name}'" for name in FOURDME_HEADER)
        total = ("total", None, None, None, None, None, None, None, 1, 3, 1)
        write_xlsx(
            root / "Micro_and_Macro-expression_labels_new_2D_oneLabel.xlsx", {"Sheet1": [header, *FOURDME_ROWS, total]}
        )
    for row in FOURDME_ROWS:
        if row[0] == "S13":
            # This folder was taken out of the release.
            continue
        if release:
            folder = root / "gray_micro" / row[0] / row[2]
            write_frames(folder, numbered("{}.jpg", range(row[4], row[6] + 1)), picture=picture, grey=True)
        else:
            folder = root / "micro_short_gray_video_cropped" / row[0] / row[2]
            names = numbered("Frame_{:09d}.jpg", range(row[4], row[6] + 1))
            write_frames(folder, names, picture=picture, grey=True)


# -- a folder of one's own --------------------------------------------------------------------------------------------


def generic(root: Path, *, picture: Picture = drawing) -> None:
    rows = (
        ("clip", "subject", "path", "onset", "apex", "offset", "label", "aus", "fps", "camera"),
        ("anna-1", "anna", "recordings\\anna 1", 3, 6, 9, "Happy", "6+12", 50, "left"),
        ("anna-2", "anna", "recordings/anna 1", "", "", "", "", "", "", "left"),
        ("björn", "björn", "videos/björn.mp4", 10, "", 30, "sad", "1+4", 30, "right"),
    )
    write_csv(root / "clips.csv", rows, ";")
    write_frames(root / "recordings" / "anna 1", numbered("f_{}.png", range(12)), picture=picture)
    (root / "recordings" / "anna 1" / "cover_1.png").write_bytes(b"not a frame")
    (root / "videos").mkdir(parents=True, exist_ok=True)
    (root / "videos" / "björn.mp4").write_bytes(b"a video is not decoded here")


BUILDERS: dict[str, Callable[..., None]] = {
    "casme": casme,
    "casme2": casme2,
    "casme-squared": casme_squared,
    "casme3": casme3,
    "casme3-c": casme3_c,
    "samm": samm,
    "smic": smic_short,
    "smic-vis": functools.partial(smic_short, part="VIS"),
    "smic-nir": functools.partial(smic_short, part="NIR"),
    "smic-long": smic_long,
    "smic-vis-long": functools.partial(smic_long, part="VIS"),
    "smic-nir-long": functools.partial(smic_long, part="NIR"),
    "mmew": mmew,
    "4dme": fourdme,
    "generic": generic,
}
"""Builder of every adapter by its name."""


def build(name: str, root: Path, *, picture: Picture = drawing) -> Path:
    """Write the fake release of an adapter below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    BUILDERS[name](root, picture=picture)
    return root

"""Every folder form is read as it was published, and a wrong index is one sentence that names row and clip."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fsmer.data import ClipSet, InputSpec, read_arrays, read_clips, read_frame
from fsmer.data.index import read_index
from fsmer.datasets import read_corrections
from fsmer.datasets.sheets import read_sheets
from fsmer.errors import DataError, FsmerError, MediaError, UnknownNameError


def picture(path: Path, seed: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


ROWS = [
    ("006_1_2", "samm", "006", "negative", "maps/a.png"),
    ("s3_ne_03", "smic", "s3", "positive", "maps/b.png"),
    ("006_1_3", "samm", "006", "surprise", "maps/c.png"),
]
HEADER = ("clip", "dataset", "subject", "label", "file")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, row in enumerate(ROWS):
        picture(tmp_path / "set" / row[4], seed)
    write(tmp_path / "set")
    return tmp_path / "set"


def write(folder: Path, rows: list | None = None, header: tuple = HEADER, comma: str = ",", **how: str) -> None:
    lines = [comma.join(line) for line in (header, *(ROWS if rows is None else rows))]
    (folder / "index.csv").write_text("\n".join(lines) + "\n", **how)


# -- index.csv --------------------------------------------------------------------------------------------------------


def test_an_index_is_read_in_its_order_with_red_green_blue_as_u_v_strain(folder: Path) -> None:
    clips = read_clips(folder)
    assert clips.ids.tolist() == ["006_1_2", "s3_ne_03", "006_1_3"]
    assert clips.subjects.tolist() == ["006", "s3", "006"]
    assert clips.labels.tolist() == ["negative", "positive", "surprise"]
    assert clips.specs == {"flow": InputSpec(size=(6, 5), channels=("u", "v", "strain"), normalisation="minmax")}
    expected = np.moveaxis(picture(folder / "again.png", 1), 2, 0) / 255
    assert np.allclose(clips[1].flow, expected)
    assert clips[1].flow.dtype == np.float32


@pytest.mark.parametrize("comma", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separators_byte_order_marks_and_line_ends_do_not_matter(
    folder: Path, comma: str, encoding: str, newline: str
) -> None:
    write(folder, comma=comma, encoding=encoding, newline=newline)
    assert read_clips(folder).subjects.tolist() == ["006", "s3", "006"]


def test_column_order_case_blanks_and_empty_lines_do_not_matter_and_further_columns_stay(folder: Path) -> None:
    text = " File ,Label,SUBJECT,dataset,Clip,AUs,onset\n\n"
    text += "".join(f"{f} , {lab},{s},{d},{c},4+7,007\n" for c, d, s, lab, f in ROWS) + ",,,,,,\n"
    (folder / "index.csv").write_text(text)
    clips = read_clips(folder)
    assert clips.ids.tolist() == [row[0] for row in ROWS]
    assert clips.labels.tolist() == [row[3] for row in ROWS]
    assert clips[0].aus == "4+7"
    assert clips[0].extra == {"file": "maps/a.png", "onset": "007"}


def test_quoted_fields_and_windows_paths_are_read(folder: Path) -> None:
    write(folder, [('"006, a"', "samm", "006", "negative", "maps\\a.png")])
    clips = read_clips(folder)
    assert clips.ids.tolist() == ["006, a"]
    assert clips.media().shape == (1, 3, 6, 5)


def test_absolute_paths_into_the_folder_are_read(folder: Path) -> None:
    relative = read_clips(folder).media()
    write(folder, [(*row[:4], str(folder / row[4])) for row in ROWS])
    assert np.array_equal(read_clips(folder).media(), relative)


@pytest.mark.parametrize(
    "place",
    [
        "../outside.png",
        "maps/../../outside.png",
        "..\\outside.png",
        "{outside}",
        "/dev/zero",
        "/etc/../{outside}",
        "C:\\maps\\a.png",
        "C:/maps/a.png",
        "\\\\server\\share\\a.png",
        "maps/link.png",
        "linked/outside.png",
        "..",
        "maps/a.png\0",
    ],
)
def test_a_file_outside_the_folder_of_its_table_is_refused_unopened(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = folder.parent / "outside.png"
    shutil.copy(folder / "maps" / "a.png", outside)
    (folder / "maps" / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(folder.parent)
    place = place.replace("{outside}", str(outside))
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *rest: opened.append(file) or real(file, *rest))
    rows = [ROWS[0], ("outside-clip", "samm", "007", "negative", place)]
    frame = pd.DataFrame(rows, columns=HEADER)
    with pytest.raises(MediaError, match="'outside-clip'") as caught:
        read_frame(frame, root=folder)
    assert "take the clip out" in str(caught.value)
    if "\0" not in place:
        write(folder, rows)
        with pytest.raises(MediaError, match="'outside-clip'"):
            read_clips(folder)
    assert not opened


def test_links_within_the_folder_and_folders_that_are_links_are_read(folder: Path, tmp_path: Path) -> None:
    (folder / "maps" / "link.png").symlink_to("a.png")
    write(folder, [(*ROWS[0][:4], "maps/link.png")])
    (tmp_path / "elsewhere").symlink_to(folder)
    assert np.array_equal(read_clips(tmp_path / "elsewhere").media(), read_clips(folder).media())


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_maps_that_are_links_to_elsewhere_are_refused_with_what_helps(
    folder: Path, tmp_path: Path, linked: str
) -> None:
    expected = read_clips(folder).media()
    store = tmp_path / "store"
    (folder / "maps").rename(store)
    if linked == "folder":
        (folder / "maps").symlink_to(store)
    else:
        (folder / "maps").mkdir()
        for file in store.iterdir():
            (folder / "maps" / file.name).symlink_to(file)
    with pytest.raises(MediaError, match=r"symbolic link.*copy the file.*read_frame") as caught:
        read_clips(folder)
    assert "'" + ROWS[0][0] + "'" in str(caught.value)
    table = pd.DataFrame(ROWS, columns=HEADER)
    with pytest.raises(MediaError, match=r"symbolic link.*copy the file.*root"):
        read_frame(table, root=folder)
    # Both remedies help.
    table["file"] = [str(folder / file) for file in table["file"]]
    assert np.array_equal(read_frame(table).media(), expected)
    shutil.copytree(folder, tmp_path / "copied")
    assert np.array_equal(read_clips(tmp_path / "copied").media(), expected)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_in_place_of_a_file_is_an_error_and_no_wait(folder: Path) -> None:
    os.mkfifo(folder / "maps" / "pipe.png")
    write(folder, [(*ROWS[0][:4], "maps/pipe.png")])
    with pytest.raises(MediaError, match="named pipe"):
        read_clips(folder)
    os.mkfifo(folder / "pipe.csv")
    for read in (read_clips, read_index, read_sheets, read_corrections):
        with pytest.raises(DataError):
            read(folder / "pipe.csv")
    (folder / "index.csv").unlink()
    os.mkfifo(folder / "index.csv")
    with pytest.raises(DataError):
        read_clips(folder)
    saved = ClipSet.from_arrays(np.random.default_rng(0).random((2, 3, 4, 4)), ["a", "b"]).save(folder / "saved")
    for name in ("flow.npy", "table.csv", "clips.json"):
        (saved / name).unlink()
        os.mkfifo(saved / name)
        with pytest.raises(DataError):
            ClipSet.load(saved)


def test_a_field_that_is_too_long_is_one_typed_error(folder: Path) -> None:
    for text in (f"{'x' * 131_073}\n", f"clip,dataset,subject,label,file\n{'x' * 131_073},a,b,c,d\n"):
        (folder / "index.csv").write_text(text)
        for read in (read_clips, read_index, read_corrections):
            with pytest.raises(DataError):
                read(folder / "index.csv")


def test_the_index_file_itself_can_be_named(folder: Path) -> None:
    shutil.copy(folder / "index.csv", folder / "other.csv")
    assert len(read_clips(folder / "other.csv")) == 3


@pytest.mark.parametrize("gone", HEADER)
def test_a_missing_column_is_named(folder: Path, gone: str) -> None:
    write(folder, [("x",) * 4], tuple(name for name in HEADER if name != gone))
    with pytest.raises(DataError, match=rf"\b{gone}\b"):
        read_clips(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "clip, dataset, subject, file, label.*nothing"),
        ("a b c\n1 2 3\n", "columns clip, dataset"),
        (",".join(HEADER) + "\n", "no clips"),
        (",".join(HEADER) + ",label\n", "'label'"),
    ],
)
def test_an_index_without_a_usable_header_or_rows_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "index.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_clips(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[0], "row 5 .*'006_1_2'.*row 2"),
        (("x", "samm", "006", "", "maps/a.png"), "row 5 .*'x'.*label"),
        (("x", "samm", " ", "negative", "maps/a.png"), "row 5 .*'x'.*subject"),
        (("", "samm", "006", "negative", "maps/a.png"), "row 5 .*clip"),
        (("x", "samm", "006", "negative"), "row 5 .*'x'.*4 fields.*5"),
        (("x", "samm", "006", "negative", "maps/a.png", "y"), "row 5 .*'x'.*6 fields"),
    ],
)
def test_a_wrong_row_is_named_with_its_clip(folder: Path, row: tuple, message: str) -> None:
    write(folder, [*ROWS, row])
    with pytest.raises(DataError, match=message):
        read_clips(folder)


def test_an_index_that_is_no_utf8_is_refused(folder: Path) -> None:
    write(folder, encoding="utf-16")
    with pytest.raises(DataError, match="not UTF-8"):
        read_clips(folder)


def test_clips_without_labels_are_read_when_asked_for(folder: Path) -> None:
    write(folder, [(*row[:3], row[4]) for row in ROWS], ("clip", "dataset", "subject", "file"))
    assert read_clips(folder, labelled=False).labels.tolist() == [None] * 3
    write(folder, [(*row[:3], "", row[4]) for row in ROWS])
    assert read_clips(folder, labelled=False).classes == ()


def test_an_unknown_label_is_named_with_the_nearest(folder: Path) -> None:
    write(folder, [*ROWS, ("x", "smic", "s3", "positiv", "maps/a.png")])
    assert len(read_clips(folder)) == 4
    with pytest.raises(DataError, match=r"'positiv'.*'smic'.*'positive'"):
        read_clips(folder, scheme="megc2019")
    with pytest.raises(UnknownNameError, match="'megc2019'"):
        read_clips(folder, scheme="megc2018")


def test_rows_are_picked_before_the_scheme_is_applied(folder: Path) -> None:
    write(folder, [*ROWS, ("x", "mine", "1", "bored", "maps/a.png")])
    clips = read_clips(folder, where="dataset != 'mine'", scheme="megc2019")
    assert len(clips) == 3
    assert clips.relabelling is not None
    with pytest.raises(DataError, match="dataset == 'casme2'"):
        read_clips(folder, where="dataset == 'casme2'")


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path / "nowhere", lambda path: path / "a.txt"])
def test_a_folder_of_no_known_form_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"index\.csv"):
        read_clips(make(tmp_path))


def test_a_saved_set_is_recognised(folder: Path, tmp_path: Path) -> None:
    clips = read_clips(folder)
    saved = clips[::-1].save(tmp_path / "saved")
    assert read_clips(saved).ids.tolist() == clips.ids[::-1].tolist()


# -- the STSTNet release ----------------------------------------------------------------------------------------------

RELEASE = {
    "006": [("006_006_1_2", 0), ("006_006_1_3", 2)],
    "s03": [("s03_s03_po_01", 1)],
    "sub01": [("sub01_EP02_01f", 1), ("sub01_EP19_05f", 0)],
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    seeds = {clip: seed for seed, clip in enumerate(clip for clips in RELEASE.values() for clip, _ in clips)}
    for person in RELEASE:
        for owner, clips in RELEASE.items():
            for clip, label in clips:
                side = "u_test" if owner == person else "u_train"
                picture(tmp_path / "norm_u_v_os" / person / side / str(label) / f"{clip}.png", seeds[clip])
    (tmp_path / "norm_u_v_os" / "006" / "u_test" / "0" / "._junk.png").write_text("")
    (tmp_path / "norm_u_v_os" / ".DS_Store").write_text("")
    return tmp_path


@pytest.mark.parametrize("start", ["", "norm_u_v_os"])
def test_the_ststnet_release_is_read_once_a_clip(release: Path, start: str) -> None:
    clips = read_clips(release / start)
    assert clips.table[["clip", "dataset", "subject", "label"]].values.tolist() == [
        ["006_006_1_2", "samm", "006", "negative"],
        ["006_006_1_3", "samm", "006", "surprise"],
        ["s03_s03_po_01", "smic", "s03", "positive"],
        ["sub01_EP19_05f", "casme2", "sub01", "negative"],
        ["sub01_EP02_01f", "casme2", "sub01", "positive"],
    ]
    assert clips.media().shape == (5, 3, 6, 5)
    assert np.allclose(clips[2].flow, np.moveaxis(picture(release / "x.png", 2), 2, 0) / 255)


def test_a_release_without_training_copies_is_read_too(release: Path) -> None:
    for person in RELEASE:
        shutil.rmtree(release / "norm_u_v_os" / person / "u_train")
    assert len(read_clips(release)) == 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "006/u_train/1/sub01_EP02_01f.png").unlink(),
            "006.*'sub01_EP02_01f'",
        ),
        (
            lambda root: picture(root / "006/u_train/1/s99.png", 0),
            "'s99'.*006.*u_test",
        ),
        (lambda root: picture(root / "s03/u_train/1/s03_s03_po_01.png", 0), "both.*s03"),
        (
            lambda root: picture(root / "s03/u_test/0/006_006_1_2.png", 0),
            "'006_006_1_2'.*006.*s03",
        ),
        (
            lambda root: (root / "006/u_train/1/sub01_EP02_01f.png").rename(root / "006/u_train/0/sub01_EP02_01f.png"),
            "'sub01_EP02_01f'.*negative.*006.*positive.*sub01",
        ),
        (lambda root: (root / "s03/u_test/1").rename(root / "s03/u_test/happy"), "happy"),
        (lambda root: (root / "s03").rename(root / "person"), "person"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(release: Path, damage: Callable, message: str) -> None:
    damage(release / "norm_u_v_os")
    with pytest.raises(DataError, match=message):
        read_clips(release)


# -- arrays and tables in memory --------------------------------------------------------------------------------------


def test_arrays_in_memory_are_read() -> None:
    array = np.random.default_rng(0).random((3, 2, 6, 5), dtype=np.float32)
    clips = read_arrays(array, ["a", "b", "a"], subjects=["1", "2", "1"])
    assert clips.specs["flow"].channels == ("u", "v")
    assert np.array_equal(clips.media(), array)


def test_a_table_with_a_column_of_files_is_read(folder: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=list(HEADER))
    clips = read_frame(frame, root=folder, where="dataset == 'samm'", scheme="megc2019")
    assert np.array_equal(clips.media(), read_clips(folder)[[0, 2]].media())
    assert clips.subjects.tolist() == ["006", "006"]
    with pytest.raises(MediaError, match=r"'006_1_2'.*'samm'.*exist"):
        read_frame(frame, root=folder / "elsewhere")


def test_a_table_with_a_column_of_arrays_is_read() -> None:
    array = np.random.default_rng(0).random((3, 3, 6, 5), dtype=np.float32)
    frame = pd.DataFrame({"clip": ["a", "b", "c"], "label": ["x", "y", "x"], "map": list(array)})
    clips = read_frame(frame, media="map")
    assert np.array_equal(clips[[2, 0]].media(), array[[2, 0]])
    signed = read_frame(
        frame.assign(map=list(array * 9 - 4)), media="map", spec=InputSpec(size=(6, 5), normalisation="signed")
    )
    assert signed.media().min() < 0


def test_a_table_without_usable_maps_is_refused() -> None:
    frame = pd.DataFrame({"clip": ["a", "b"], "map": [np.zeros((3, 6, 5)), None]})
    with pytest.raises(DataError, match="'file'"):
        read_frame(frame)
    with pytest.raises(DataError, match=r"'b'.*NoneType"):
        read_frame(frame, media="map")


def test_every_refusal_is_an_fsmer_error() -> None:
    assert issubclass(DataError, FsmerError)
    assert issubclass(MediaError, FsmerError)
    assert issubclass(UnknownNameError, FsmerError)


# -- the real maps, where they are at hand ----------------------------------------------------------------------------


def test_the_real_maps_are_read_with_their_published_counts(real_data: Path, tmp_path: Path) -> None:
    clips = read_clips(real_data, scheme="megc2019")
    assert len(clips) == 309
    counts = Counter(zip(clips.datasets.tolist(), clips.labels.tolist(), strict=True))
    published = {"casme2": (88, 32, 25), "smic": (70, 51, 43)}
    for dataset, expected in published.items():
        assert tuple(counts[dataset, name] for name in ("negative", "positive", "surprise")) == expected
    assert Counter(dataset for dataset, _ in clips.subject_names) == {"casme2": 24, "smic": 16}
    media = clips.media()
    assert media.shape == (309, 3, 28, 28)
    # Each channel was stretched over the whole range of 8 bits.
    assert (media.min(axis=(2, 3)) == 0).all()
    assert (media.max(axis=(2, 3)) == 1).all()
    with Image.open(real_data / clips[7].extra["file"]) as image:
        red = np.asarray(image)[..., 0]
    assert np.array_equal(np.round(clips[7].flow[0] * 255), red)
    loaded = read_clips(clips.save(tmp_path / "set"))
    assert np.array_equal(loaded.media(), media)

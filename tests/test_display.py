"""What objects show of themselves: at the prompt, in a notebook, as a figure, and in tab completion."""

from __future__ import annotations

import base64
import copy
import functools
import importlib
import io
import json
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from pages import browser, read_page, report_of
from PIL import Image
from sklearn.metrics import f1_score
from test_html import CONTRAST
from torch import nn
from typer.testing import CliRunner

import fsmer
from fsmer.cli.app import app
from fsmer.data import ClipSet, InputSpec
from fsmer.drawing import flow_tiles
from fsmer.errors import DataError, SpecMismatchError
from fsmer.evaluation import Report
from fsmer.evaluation.report_display import class_intervals
from fsmer.html import MAX_COLUMNS, MAX_ROWS, Grid, object_html
from fsmer.listing import FixedListing, Listing
from fsmer.plain_figure import PlainFigure

LISTS = {
    "list_models": list,
    "list_methods": list,
    "list_protocols": list,
    "list_domains": list,
    "list_tables": list,
    "list_datasets": tuple,
    "list_schemes": tuple,
}
PACKAGES = "auditing backbones data datasets episodic evaluation kernels preprocess pretraining published reporting "
PACKAGES += "synthetic transfer"
LARGEST = 60_000


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    return fsmer.synthetic_clips("lab", 30, seed=1)


@pytest.fixture(scope="module")
def report(clips: ClipSet) -> Report:
    rng = np.random.default_rng(0)
    truth = clips.codes()
    said = {seed: np.where(rng.random(30) < 0.6, truth, rng.integers(0, 3, 30)) for seed in (7, 8)}
    return report_of(clips, said)


@pytest.fixture(scope="module")
def recognizer(clips: ClipSet) -> fsmer.Recognizer:
    return fsmer.adapt("facs-flow", clips[:12])


@pytest.fixture(scope="module")
def episode(clips: ClipSet) -> fsmer.Episode:
    return fsmer.load_protocol("kshot", way=3, shot=1, query=2, episodes=2).split(clips)[1]


@pytest.fixture(scope="module")
def shown(clips: ClipSet, report: Report, recognizer: fsmer.Recognizer, episode: fsmer.Episode) -> dict[str, str]:
    """The HTML of one object of each kind."""
    held = {"clips": clips, "report": report, "recognizer": recognizer, "episode": episode}
    return {name: one._repr_html_() for name, one in (held | {"models": listing("list_models")}).items()}


def rows_of(text: str) -> list[list[str]]:
    """Cells of all tables of a fragment, row by row."""
    page = read_page(text)
    return [[cell.text for cell in row.children if not isinstance(cell, str)] for row in page.find("tr")]


def words_of(figure: Any) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


# -- lists -------------------------------------------------------------------------------------------------------------


@functools.cache
def listing(function: str) -> Any:
    return getattr(fsmer, function)()


def name_of(item: Any) -> str:
    return item if isinstance(item, str) else item.name


@pytest.mark.parametrize("function", LISTS)
def test_a_list_of_what_there_is_reads_at_80_columns_and_names_every_item(function: str) -> None:
    found = listing(function)
    lines = repr(found).splitlines()
    assert max(map(len, lines)) < 80
    assert len(repr(found)) < 3500
    assert all(name_of(item) in repr(found) for item in found)


@pytest.mark.parametrize("function", LISTS)
def test_a_list_of_what_there_is_is_a_table_in_a_notebook(function: str) -> None:
    found = listing(function)
    head, *rows = rows_of(found._repr_html_())
    assert [row[0] for row in rows] == [name_of(item) for item in found]
    assert {len(row) for row in rows} == {len(head)}
    assert len(head) > 1
    assert len(found._repr_html_()) < LARGEST


@pytest.mark.parametrize(("function", "kind"), LISTS.items())
def test_a_list_of_what_there_is_stays_a_list_or_tuple_for_code(function: str, kind: type) -> None:
    found = listing(function)
    plain = kind(iter(found))
    assert isinstance(found, kind)
    assert found == plain
    assert plain == found
    assert found[0] == plain[0]
    assert found[1:3] == plain[1:3]
    assert len(found) == len(plain)
    assert found[0] in found
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert again == found
        assert again._repr_html_() == found._repr_html_()
    assert [name for name in dir(found) if name[0] != "_"] == [name for name in dir(plain) if name[0] != "_"]


def test_a_part_of_a_list_is_shown_as_the_whole_is() -> None:
    assert repr(listing("list_models")[:2]).splitlines()[0].startswith("model ")
    assert [row[0] for row in rows_of(listing("list_datasets")[:2]._repr_html_())[1:]] == ["casme", "casme2"]


def test_short_lists_of_names_are_shown_as_python_writes_them() -> None:
    assert repr(listing("list_domains")) == repr(list(listing("list_domains")))
    assert repr(FixedListing(["a"])) == "('a',)"


@pytest.mark.parametrize("items", [[], ["a"]])
def test_lists_without_rows_show_themselves(items: list[str]) -> None:
    assert repr(Listing(items)) == repr(items)
    assert f"{len(items)} things" in read_page(Listing(items, "things")._repr_html_()).text


# -- text --------------------------------------------------------------------------------------------------------------


def test_objects_are_short_at_the_prompt(
    clips: ClipSet, report: Report, recognizer: fsmer.Recognizer, episode: fsmer.Episode
) -> None:
    for one in (clips, report, recognizer, episode, recognizer.backbone, listing("list_models")[0]):
        assert "\n" not in repr(one)
        assert len(repr(one)) < 500
        assert repr(one).startswith(f"{type(one).__name__}(")


def test_a_report_shows_its_figures_at_the_prompt(report: Report) -> None:
    assert f"UF1 {report.uf1:.4f}" in repr(report)
    assert report.method["name"] in repr(report)


def test_a_backbone_shows_its_name_size_and_media(recognizer: fsmer.Recognizer) -> None:
    backbone = recognizer.backbone
    size = sum(one.numel() for one in backbone.parameters())
    for fact in (backbone.name, f"{size:,} parameters", backbone.input_specs[0].describe(), str(backbone.embed_dim)):
        assert fact in repr(backbone)


def test_wrapped_modules_around_unlike_backbones_have_other_names() -> None:
    names = []
    for activation in (nn.Tanh, nn.Sigmoid):
        # The same class, name, media, sizes and attributes: only a layer differs.
        inside = fsmer.create_model("flow_resnet18")
        inside.encoder.act1 = activation()
        names.append(fsmer.wrap(nn.Sequential(inside), expects=inside.input_specs[0]).name)
    assert names[0] != names[1]


# -- HTML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clips", "report", "recognizer", "episode", "models"])
def test_a_fragment_is_small_whole_and_without_script(name: str, shown: dict[str, str]) -> None:
    text = shown[name]
    page = read_page(text)
    assert len(text.encode()) < LARGEST
    assert not [tag for tag in ("script", "link", "iframe") if page.find(tag)]
    assert all(one.attributes["src"].startswith("data:image/png;base64,") for one in page.find("img"))
    assert "http" not in text


def test_a_clip_set_counts_its_clips_by_data_set_and_class() -> None:
    base = fsmer.synthetic_clips("lab", 6, seed=1)
    held = ClipSet.from_arrays(
        base.media(), ["b", "a", "b", None, "b", "a"], subjects=list("112231"), datasets=list("xxxyyy")
    )
    rows = rows_of(held._repr_html_())
    assert rows[0] == ["data set", "people", "clips", "a", "b", "no label"]
    assert rows[1:4] == [
        ["x", "2", "3", "1", "2", "0"],
        ["y", "3", "3", "1", "1", "1"],
        ["all", "5", "6", "2", "3", "1"],
    ]
    assert held.specs["flow"].describe() in rows[4]


def test_a_clip_set_shows_maps_of_its_classes_in_turn(clips: ClipSet) -> None:
    pictures = read_page(clips._repr_html_()).find("figure")
    assert [one.text.split(":")[0] for one in pictures] == [*clips.classes, *clips.classes]
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].find("img")[0].attributes["src"].split(",")[1]))) as image:
        assert image.size == (3 * 28 + 4, 28)


def test_a_large_clip_set_reads_few_maps_and_stays_small() -> None:
    many = fsmer.synthetic_clips("lab", 60, seed=2)
    held = ClipSet.from_arrays(
        many.media(), [f"class {n}" for n in range(60)], subjects=range(60), datasets=[f"set {n}" for n in range(60)]
    )
    text = held._repr_html_()
    assert len(text.encode()) < LARGEST
    assert "are not shown" in text
    assert len(read_page(text).find("img")) < 10


def test_faces_are_never_in_the_html_of_a_clip_set() -> None:
    faces = ClipSet.from_arrays(
        {"apex": np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)},
        list("abab"),
        spec=InputSpec("apex", (16, 16), ("red", "green", "blue"), "unit"),
    )
    page = read_page(faces._repr_html_())
    assert not page.find("img")
    assert "apex 16x16" in page.text


def test_maps_that_cannot_be_read_are_named_and_the_counts_stay() -> None:
    broken = ClipSet.from_arrays(np.full((2, 3, 8, 8), np.nan, np.float32), ["a", "b"], ids=["first", "second"])
    page = read_page(broken._repr_html_())
    assert not page.find("img")
    assert "'first'" in page.text
    assert rows_of(broken._repr_html_())[1][:3] == ["mine", "1", "2"]


def test_colours_of_a_small_map_tell_direction_and_strain() -> None:
    flow = np.zeros((3, 8, 8), np.float32)
    flow[0, :, :2], flow[1, :, 4:6], flow[2, :, 6:] = 1.0, -1.0, 1.0
    with Image.open(io.BytesIO(flow_tiles(flow))) as image:
        rgb = np.asarray(image.convert("RGB")).astype(int)
    u, v, strain = rgb[:, :8], rgb[:, 10:18], rgb[:, 20:]
    assert (u[:, :2, 0] > u[:, :2, 2] + 50).all()  # red
    assert (v[:, 4:6, 2] > v[:, 4:6, 0] + 50).all()  # blue
    assert (u[:, 2:] == 255).all()  # nothing moves: white
    assert strain[:, 6:].max() < 10 < 250 < strain[:, :6].min()


@pytest.mark.parametrize("flow", [np.zeros((2, 5, 9)), np.ones((3, 90, 60))], ids=["still", "large"])
def test_small_maps_of_any_size_and_without_movement_are_pictures(flow: np.ndarray) -> None:
    with Image.open(io.BytesIO(flow_tiles(flow))) as image:
        assert image.width <= 3 * 40 + 4
        assert image.height <= 40


def test_a_report_shows_figures_intervals_and_confusion(report: Report) -> None:
    rows = {row[0]: row[1:] for row in rows_of(report._repr_html_()) if row}
    low, high = report.interval("uf1") or (0, 0)
    assert rows["UF1"] == [f"{report.uf1:.4f} [{low:.4f}, {high:.4f}]"]
    assert rows["model"] == [f"facs-flow ({'1' * 16})"]
    tables = rows_of(report._repr_html_())
    first = next(number for number, row in enumerate(tables) if row[1:] == list(report.classes))
    assert [list(map(int, row[1:])) for row in tables[first + 1 : first + 4]] == report.confusion.tolist()


def test_an_oracle_report_says_so_in_a_notebook_and_at_the_prompt(clips: ClipSet) -> None:
    chosen = report_of(clips, clips.codes(), selection={"rule": "oracle"})
    assert "ORACLE" in read_page(chosen._repr_html_()).find("div", class_="t")[0].text
    assert "ORACLE" in repr(chosen)
    assert any("ORACLE" in text for text in words_of(chosen.plot()))


def test_a_recognizer_shows_how_many_clips_of_each_class_it_learnt_from(
    recognizer: fsmer.Recognizer, clips: ClipSet
) -> None:
    rows = {row[0]: row[1:] for row in rows_of(recognizer._repr_html_())}
    for name in recognizer.classes_:
        assert rows[name] == [str((clips[:12].labels == name).sum())]
    assert rows["method"] == ["cosine"]
    assert recognizer.backbone.name in rows["backbone"][0]


def test_an_episode_shows_its_places_and_a_hash_of_its_content(episode: fsmer.Episode, clips: ClipSet) -> None:
    rows = {row[0]: row[1] for row in rows_of(episode._repr_html_())}
    assert rows["support"].endswith(" at " + ", ".join(map(str, episode.support)))
    assert rows["hash"] == episode.hash
    protocol = fsmer.load_protocol("kshot", way=3, shot=1, query=2, episodes=2)
    assert [one.hash for one in protocol.split(clips)][1] == episode.hash
    assert len({one.hash for one in protocol.split(clips)}) == 2
    # Labels are in the clip set alone.
    assert re.fullmatch("[0-9a-f]{16}", episode.hash)


def test_tables_and_texts_are_cut_where_they_are_long() -> None:
    rows = [[f"row {n}", *range(30)] for n in range(100)]
    found = rows_of(object_html("x" * 10_000, Grid("y", ["what", *range(30)], rows)))
    assert len(found) == 1 + MAX_ROWS
    assert {len(row) for row in found} == {MAX_COLUMNS}
    text = object_html("x" * 10_000, Grid("y", ["what", *range(30)], rows))
    assert f"{100 - MAX_ROWS} more rows and {31 - MAX_COLUMNS} more columns" in text
    assert len(text) < LARGEST


# -- figures -----------------------------------------------------------------------------------------------------------


def test_clips_are_drawn_by_class(clips: ClipSet) -> None:
    words = words_of(clips.plot(2))
    assert set(clips.classes) <= words
    drawn = [name for name in clips.ids if name in words]
    assert drawn == sorted(name for own in clips.classes for name in clips.ids[clips.labels == own][:2])


def test_an_episode_is_drawn_with_support_and_query_apart(episode: fsmer.Episode, clips: ClipSet) -> None:
    figure = episode.plot(clips)
    for part, side in zip(figure.subfigs, (episode.support, episode.query), strict=True):
        drawn = {text.get_text() for text in part.findobj(Text)} & set(clips.ids)
        assert drawn == set(clips.ids[side])


def test_a_report_is_drawn_with_its_confusion_and_the_interval_of_each_class(report: Report) -> None:
    figure = report.plot()
    words = words_of(figure)
    for name, bounds in class_intervals(report).items():
        assert bounds is not None
        low, high = bounds
        value = report.per_class[name]["f1"]
        assert f"{name}: {value:.2f} [{low:.2f}, {high:.2f}], {report.per_class[name]['clips']} clips" in words
    assert {f"{count:,}" for count in report.confusion.ravel()} <= words


def test_a_recognizer_draws_a_clip_its_answer_and_its_map(recognizer: fsmer.Recognizer, clips: ClipSet) -> None:
    pytest.importorskip("captum")
    words = words_of(recognizer.plot(clips[20]))
    share = recognizer.predict_proba(clips[20])[0]
    assert {*recognizer.classes_, *(f"{one:.0%}" for one in share), "gradient of the flow"} <= words


@pytest.mark.parametrize(
    ("draw", "error", "facts"),
    [
        (lambda clips: clips.plot(0), DataError, ["0", "24"]),
        (lambda clips: clips.plot(10_000), DataError, ["10000", "24"]),
        (lambda clips: clips.plot(True), DataError, ["True"]),
        (lambda clips: clips[:0].plot(), DataError, ["no clips"]),
        (lambda clips: ClipSet.from_table(clips.table).plot(), SpecMismatchError, ["flow"]),
        (lambda clips: fsmer.Episode([0], [99], ("a",), "e").plot(clips), DataError, ["99", "30", "prepare"]),
        (lambda clips: fsmer.adapt("facs-flow", clips).plot(clips[:2]), DataError, ["2 clips", "clips[0]"]),
    ],
    ids=["none", "too-many", "no-number", "empty", "no-flow", "other-set", "several"],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(
    draw: Callable[[ClipSet], Any], error: type[Exception], facts: list[str], clips: ClipSet
) -> None:
    pytest.importorskip("captum")
    with pytest.raises(error) as found:
        draw(clips)
    assert all(fact in str(found.value) for fact in facts)


def test_intervals_of_classes_are_a_point_where_all_subjects_are_alike_and_none_for_one() -> None:
    maps = np.random.default_rng(0).random((24, 3, 8, 8), dtype=np.float32)
    labels = ["a", "b", "b"] * 8
    said = np.array([0, 1, 0] * 8)
    alike = report_of(ClipSet.from_arrays(maps, labels, subjects=[str(n // 3) for n in range(24)]), said)
    for name, bounds in class_intervals(alike).items():
        assert bounds == pytest.approx([alike.per_class[name]["f1"]] * 2)
    alone = report_of(ClipSet.from_arrays(maps, labels, subjects="1"), said)
    assert class_intervals(alone) == {"a": None, "b": None}
    assert "b" in " ".join(words_of(alone.plot()))


def test_intervals_of_classes_hold_the_figure_and_follow_the_spread_over_subjects(report: Report) -> None:
    for name, bounds in class_intervals(report).items():
        assert bounds is not None
        assert bounds[0] < report.per_class[name]["f1"] < bounds[1]


def test_intervals_of_classes_over_episodes_are_those_of_the_mean(clips: ClipSet) -> None:
    rng = np.random.default_rng(1)
    truth = clips.codes()
    said = np.concatenate([np.where(rng.random(30) < 0.6, truth, rng.integers(0, 3, 30)) for _ in range(5)])
    several = report_of(clips, said, episodes=5)
    each = np.array([f1_score(truth, part, average=None) for part in said.reshape(5, 30)])
    half = 1.96 * each.std(axis=0, ddof=1) / 5**0.5
    for code, name in enumerate(several.classes):
        middle = several.per_class[name]["f1"]
        assert class_intervals(several)[name] == pytest.approx([middle - half[code], middle + half[code]], abs=1e-4)


# -- tab completion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *PACKAGES.split()])
def test_completion_on_a_package_shows_its_public_names_alone(name: str) -> None:
    package = importlib.import_module(f"fsmer.{name}".rstrip("."))
    assert dir(package) == sorted(package.__all__)
    assert all(hasattr(package, one) for one in dir(package))


def test_completion_on_objects_shows_what_is_documented(
    clips: ClipSet, report: Report, recognizer: fsmer.Recognizer, episode: fsmer.Episode
) -> None:
    for one in (clips, report, recognizer, episode, clips[0]):
        cls = type(one)
        words = " ".join(str(base.__doc__) for base in cls.__mro__)
        for name in (name for name in dir(one) if not name.startswith("_")):
            own = getattr(cls, name, None)
            told = own is not None and not isinstance(own, (str, tuple, dict)) and own.__doc__
            source = name == "relabelling"  # documented where it is set
            assert told or source or re.search(rf"\b{name}\b", words), f"{cls.__name__}.{name}"


# -- the folder of a report --------------------------------------------------------------------------------------------

# What differs each time: when a page was made, how and when the run was, how long it took.
TIMES = re.compile(r"(Page made by fsmer .*)|(<tr><th scope=\"row\">(call|started|time)</th>.*)")


def test_evaluate_in_python_writes_the_files_of_the_command(clips: ClipSet, tmp_path: Path) -> None:
    clips.save(tmp_path / "clips")
    arguments = ["loso", "--data", tmp_path / "clips", "--method", "protonet", "--out", tmp_path / "command"]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    fsmer.evaluate("loso", "facs-flow", "protonet", clips=fsmer.read_clips(tmp_path / "clips"), out=tmp_path / "python")
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / one).iterdir() if path.is_file()}
        for one in ("command", "python")
    ]
    assert files[0].keys() == files[1].keys()
    assert {"report.json", "report.html", "report.md", "confusion.png", "run.json"} <= files[1].keys()
    for name in files[0].keys() - {"report.html", "run.json"}:
        assert files[0][name] == files[1][name], name
    pages = [TIMES.sub("", one["report.html"].decode()) for one in files]
    assert "Embedding map" in pages[1]
    assert pages[0] == pages[1]
    accounts = [json.loads(one["run.json"]) for one in files]
    for account in accounts:
        for key in ("call", "started", "seconds", "checksum"):
            account.pop(key, None)
    assert accounts[0] == accounts[1]


def test_embeddings_of_a_run_without_a_cache_are_gone_after_its_page(
    clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    fsmer.evaluate("loso", "facs-flow", "protonet", clips=clips, out=tmp_path / "out", cache=False)
    assert "Embedding map" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_finished_run_gets_its_lost_page_again(clips: ClipSet, tmp_path: Path) -> None:
    def run() -> Report:
        return fsmer.evaluate("loso", "facs-flow", "protonet", clips=clips, out=tmp_path, cache=False)

    run()
    kept = (tmp_path / "report.json").read_bytes()
    (tmp_path / "report.html").write_text("kept")
    assert run().folder == tmp_path
    assert (tmp_path / "report.html").read_text() == "kept"
    (tmp_path / "report.html").unlink()
    run()
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (tmp_path / "report.json").read_bytes() == kept


# -- in a browser ------------------------------------------------------------------------------------------------------

NOTEBOOKS = {"light": "#fff; color: rgba(0, 0, 0, .87)", "dark": "#111; color: rgba(255, 255, 255, .87)"}


@pytest.mark.parametrize("scheme", NOTEBOOKS)
def test_fragments_are_readable_in_light_and_dark_notebooks(scheme: str, shown: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    body = "\n".join(shown.values())
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="background: {NOTEBOOKS[scheme]}"><main>{body}</main>',
        encoding="utf-8",
    )
    with browser() as started:
        for width in (1280, 390):
            tab = started.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            heard: list[str] = []
            tab.on("console", lambda message, heard=heard: heard.append(message.text))
            tab.goto(path.as_uri())
            assert not heard
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            lowest = tab.evaluate(CONTRAST)
            assert len(lowest) > 100
            assert lowest[0][0] >= 4.5, lowest[:5]
            tab.close()


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    assert PlainFigure(2, 1)._repr_png_().startswith(b"\x89PNG")

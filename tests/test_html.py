"""The page of a report: everything on it, nothing from elsewhere, no text taken for markup, readable in a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from pages import Node, browser, read_page, report_of, tables
from PIL import Image

import fsmer
from fsmer.backbones import embed, model_hash
from fsmer.data import ClipSet, InputSpec
from fsmer.errors import DataError
from fsmer.evaluation import Report
from fsmer.reporting import report_page
from fsmer.reporting.charts import flow_picture
from fsmer.reporting.html import projections
from fsmer.reporting.page import fragment, page
from fsmer.transfer.mmd import mmd

EVIL = ("<script>alert('x')</script>", 'a "quoted" & <b>bold</b> class', "other")
SIZES = (1280, 390)


def make_clips(count: int = 48, classes: tuple[str, ...] = EVIL) -> ClipSet:
    """Synthetic maps under names that are hard to write down."""
    base = fsmer.synthetic_clips("lab", count, seed=1)
    return ClipSet.from_arrays(
        base.media(),
        [classes[row % len(classes)] for row in range(count)],
        subjects=[f"<i>{row % 5}" for row in range(count)],
        datasets=["casme<2>" if row % 2 else "smic" for row in range(count)],
        ids=[f"clip<{row}>&" for row in range(count)],
        spec=base.specs["flow"],
    )


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    return make_clips()


def answers(clips: ClipSet, seed: int, classes: tuple[str, ...] = EVIL, times: int = 1) -> np.ndarray:
    """Right in about two of three."""
    rng = np.random.default_rng(seed)
    truth = np.tile(clips.codes(classes), times)
    return np.where(rng.random(len(truth)) < 0.67, truth, rng.integers(0, len(classes), len(truth)))


@pytest.fixture(scope="module")
def report(clips: ClipSet) -> Report:
    """Two seeds."""
    return report_of(clips, {seed: answers(clips, seed) for seed in (7, 8)}, classes=EVIL)


@pytest.fixture(scope="module")
def oracle(clips: ClipSet) -> Report:
    """Chosen on the judged clips, with the honest figures beside it."""
    chosen = [{"seed": 7, "episode": "episode 0", "epochs": 3}, {"seed": 8, "episode": "episode 0", "epochs": 5}]
    selection = {"rule": "oracle", "by": "the query side", "candidates": [{"epochs": 3}], "chosen": chosen}
    honest = report_of(clips, answers(clips, 9), classes=EVIL).figures
    said = {seed: answers(clips, seed) for seed in (7, 8)}
    return report_of(clips, said, classes=EVIL, selection=selection, honest=honest)


@pytest.fixture(scope="module")
def whole(report: Report, clips: ClipSet, rough_backbone: fsmer.Backbone) -> str:
    """The page with everything that there is to show."""
    return report_page(report, clips, rough_backbone)


@pytest.fixture(scope="module")
def root(whole: str) -> Node:
    return read_page(whole)


def cells(root: Node, caption: str) -> dict[str, list[str]]:
    """Rows of a table by their first cell."""
    return {row[0]: row[1:] for row in tables(root)[caption][1:]}


# -- what is on the page -----------------------------------------------------------------------------------------------


def test_headline_figures_stand_with_their_intervals(root: Node, report: Report) -> None:
    tiles = [tile.text for tile in root.find("div", class_="tile")]
    for tile, (name, title) in zip(tiles, {"uf1": "UF1", "uar": "UAR", "acc": "Accuracy"}.items(), strict=True):
        low, high = report.interval(name) or (0, 0)
        assert tile.startswith(f"{title}{report.figures[name]:.4f}95 % interval {low:.4f} to {high:.4f}")


def test_every_seed_is_listed_with_mean_and_spread(root: Node, report: Report) -> None:
    rows = cells(root, "Every seed")
    values = np.array([[one[name] for name in ("uf1", "uar", "acc")] for one in report.per_seed])
    assert rows["7"] == [f"{value:.4f}" for value in values[0]]
    assert rows["8"] == [f"{value:.4f}" for value in values[1]]
    assert rows["mean"] == [f"{value:.4f}" for value in (values[0] + values[1]) / 2]
    assert rows["standard deviation"] == [f"{abs(value) / 2**0.5:.4f}" for value in values[0] - values[1]]


def test_confusion_of_each_data_set_counts_its_answers(root: Node, report: Report) -> None:
    held = tables(root)
    counted = {name: np.zeros((3, 3), int) for name in ("smic", "casme<2>")}
    for row in report.predictions.itertuples():
        counted[row.dataset][EVIL.index(row.label), EVIL.index(row.predicted)] += 1
    for caption, counts in {"All clips": report.confusion, **counted}.items():
        shares = counts / counts.sum(axis=1, keepdims=True)
        wanted = [
            [f"{share:.0%}{count}" for share, count in zip(*both, strict=True)]
            for both in zip(shares.tolist(), counts.tolist(), strict=True)
        ]
        assert [row[1:] for row in held[caption][1:]] == wanted


def test_every_subject_is_listed_worst_first(root: Node, report: Report) -> None:
    caption = next(name for name in tables(root) if name.startswith("By subject"))
    listed = tables(root)[caption][1:]
    right: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for row in report.predictions.itertuples():
        held = right.setdefault((row.subject, row.dataset), {})
        held.setdefault(row.label, []).append(row.label == row.predicted)
    assert {(row[0], row[1]) for row in listed} == set(right)
    shares = []
    for subject, dataset, count, share, *by_class in listed:
        held = right[subject, dataset]
        flat = [value for values in held.values() for value in values]
        # Two seeds: two answers a clip.
        assert (int(count), share) == (len(flat) // 2, f"{np.mean(flat):.0%}")
        wanted = [f"{np.sum(held[name]) / 2:g} of {len(held[name]) // 2}" if name in held else "–" for name in EVIL]
        assert by_class == wanted
        shares.append(np.mean(flat))
    assert shares == sorted(shares)


def test_worst_and_best_clips_are_those_of_least_and_most_probability(root: Node, report: Report) -> None:
    told = report.predictions
    sure: dict[str, list[float]] = {}
    right: dict[str, list[bool]] = {}
    for number, row in told.iterrows():
        sure.setdefault(row["clip"], []).append(float(told.at[number, f"p_{row['label']}"]))
        right.setdefault(row["clip"], []).append(row["label"] == row["predicted"])
    wrong = sorted((np.mean(sure[clip]), clip) for clip in sure if np.mean(right[clip]) < 0.5)
    shown = [card.find("h4")[0].text for card in root.find("article", class_="card")]
    listed = min(len(wrong), 8)
    assert {clip for share, clip in wrong if share < wrong[listed - 1][0]} <= set(shown[:listed])
    assert all(np.mean(right[clip]) >= 0.5 for clip in shown[listed:])
    # The best of every class, one after the other.
    labels = dict(zip(told["clip"], told["label"], strict=True))
    assert {labels[clip] for clip in shown[listed : listed + 3]} == set(EVIL)
    first = shown[listed]
    assert np.mean(sure[first]) == max(np.mean(sure[clip]) for clip in sure if np.mean(right[clip]) >= 0.5)


def test_discrepancy_between_data_sets_is_that_of_mmd(
    root: Node, report: Report, clips: ClipSet, rough_backbone: fsmer.Backbone
) -> None:
    found = embed(rough_backbone, clips).numpy()
    first, second = found[clips.datasets == "casme<2>"], found[clips.datasets == "smic"]
    wanted = mmd(first, second, permutations=999, seed=report.seed)
    row = cells(root, "MMD of the embeddings")["casme<2> – smic"]
    assert row == ["24 and 24", f"{wanted.value:.4f}", f"{wanted.squared:.5f}", f"{wanted.p_value:.3f}"]


def test_embedding_map_shows_every_clip_by_class_and_by_data_set(root: Node, clips: ClipSet) -> None:
    pictures = [
        picture for picture in root.find("svg", role="img") if "of the embeddings" in picture.attributes["aria-label"]
    ]
    titles = [picture.attributes["aria-label"] for picture in pictures]
    assert sum(title.startswith("PCA") for title in titles) == sum(title.startswith("t-SNE") for title in titles) == 2
    for picture in pictures:
        assert sum(path.attributes["d"].count("M") for path in picture.find("path")) == len(clips)


def test_pca_is_that_of_the_singular_values() -> None:
    values = np.random.default_rng(0).normal(size=(30, 6)) * np.array([9.0, 5.0, 1.0, 1.0, 1.0, 1.0])
    name, places, axes = projections(values, 0)[0]
    left, sizes, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    assert name == "PCA"
    assert np.allclose(np.abs(places), np.abs(left[:, :2] * sizes[:2]))
    assert axes[0] == f"axis 1 ({sizes[0] ** 2 / (sizes**2).sum():.0%} of the variance)"


def test_tsne_keeps_far_groups_apart_and_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(20, 5)), rng.normal(size=(20, 5)) + 30])
    name, places, _ = projections(values, 0)[1]
    assert name.startswith("t-SNE")
    centres = [places[:20].mean(axis=0), places[20:].mean(axis=0)]
    nearest = np.linalg.norm(places[:, None] - np.stack(centres), axis=2).argmin(axis=1)
    assert nearest.tolist() == [0] * 20 + [1] * 20
    assert np.array_equal(places, projections(values, 0)[1][1])


def test_umap_is_added_where_it_is_installed() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(20, 5)), rng.normal(size=(20, 5)) + 30])
    name, places, _ = projections(values, 0)[2]
    assert name == "UMAP"
    assert np.linalg.norm(places[:20].mean(axis=0) - places[20:].mean(axis=0)) > places[:20].std()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_or_equal_embeddings_give_a_plain_map(count: int) -> None:
    maps = projections(np.random.default_rng(0).normal(size=(count, 3)), 0)
    assert [name for name, *_ in maps] == ["PCA"]
    assert maps[0][1].shape == (count, 2)
    assert not projections(np.ones((9, 3)), 0)[0][1].any()


def test_provenance_names_hashes_seeds_and_versions(root: Node, report: Report) -> None:
    rows = cells(root, "What it takes to repeat this")
    assert rows["protocol"] == [f"loso ({report.protocol['hash']})"]
    assert rows["model"] == [f"facs-flow ({'1' * 16})"]
    assert rows["seeds"] == ["7, 8"]
    assert rows["seed of episodes and bootstrap"] == ["3"]
    for name, version in report.versions.items():
        assert f"{name} {version}" in rows["versions"][0]


def test_episodes_of_a_k_shot_report_are_shown_as_a_histogram(clips: ClipSet) -> None:
    said = answers(clips, 1, times=20)
    text = report_page(report_of(clips, said, classes=EVIL, episodes=20))
    tree = read_page(text)
    (chart,) = [
        one for one in tree.find("svg") if one.attributes.get("aria-label", "").startswith("UF1 of 20 episodes")
    ]
    tall = [float(bar.attributes["height"]) for bar in chart.find("rect")]
    # Heights are counts on one scale.
    counts, _ = np.histogram(
        [_uf1(clips.codes(EVIL), said.reshape(20, -1)[number]) for number in range(20)], bins=25, range=(0, 1)
    )
    counts = counts[counts > 0]
    assert np.allclose(tall, np.array(counts) / counts.max() * max(tall), atol=0.06)


def _uf1(truth: np.ndarray, said: np.ndarray) -> float:
    found = []
    for code in range(3):
        hit = int(((truth == code) & (said == code)).sum())
        found.append(2 * hit / int((truth == code).sum() + (said == code).sum()))
    return float(np.mean(found))


# -- oracle ------------------------------------------------------------------------------------------------------------


def test_oracle_is_stamped_on_every_number_and_picture(oracle: Report, clips: ClipSet) -> None:
    tree = read_page(report_page(oracle, clips))
    assert "ORACLE" in tree.find("title")[0].text
    assert tree.find("span", class_="badge")[0].text == "ORACLE"
    stamped = [
        *(part for part in tree.find("section") if part.attributes["id"].split("-")[0] != "provenance"),
        *tree.find("div", class_="tile"),
        *tree.find("figure"),
    ]
    assert len(stamped) > 8
    for part in stamped:
        assert part.find("span", class_="stamp"), part.text[:80]
    for caption in (one.find("caption")[0] for one in tree.find("table", class_="confusion")):
        assert "ORACLE" in caption.text


def test_oracle_stands_beside_the_honest_figures_of_the_same_run(oracle: Report) -> None:
    tree = read_page(report_page(oracle))
    rows = cells(tree, "What looking at the test side gains")
    honest = oracle.honest or {}
    assert rows["honest, same run"][0].startswith(f"{honest['uf1']:.4f} [")
    assert rows["chosen on the judged clips"][0].startswith(f"{oracle.uf1:.4f} ORACLE [")
    assert rows["gap"] == [f"{oracle.figures[name] - honest[name]:+.4f}" for name in ("uf1", "uar", "acc")]
    assert cells(tree, "How often each was chosen") == {"epochs=3": ["1"], "epochs=5": ["1"]}


def test_honest_page_says_so_and_has_no_stamp(root: Node) -> None:
    assert root.find("span", class_="badge")[0].text == "HONEST"
    assert not root.find("span", class_="stamp")
    assert "chose nothing" in root.find("p", class_="verdict")[0].text


# -- safe and self-contained -------------------------------------------------------------------------------------------


def test_page_loads_nothing_from_anywhere(whole: str, root: Node) -> None:
    assert not re.search(r"https?:|@import|url\(", whole)
    assert not root.find("script")
    (policy,) = root.find("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    places = [node.attributes["href"] for name in ("a", "link", "image") for node in root.find(name)]
    sections = {part.attributes["id"] for part in root.find("section")}
    assert len(places) > 10
    for place in places:
        assert place.startswith("data:") or place[1:] in sections


def test_names_are_text_whatever_they_look_like(whole: str, root: Node) -> None:
    assert "<script" not in whole
    # The page's own <i> are bars; a subject named <i>3 must not have become one.
    assert all("style" in bar.attributes for bar in root.find("i"))
    assert [row[0] for row in tables(root)["By class"][1:]] == list(EVIL)
    assert {row[0] for row in tables(root)["By data set"][1:]} == {"all", "smic", "casme<2>"}
    assert all(re.fullmatch(r"clip<\d+>&", card.find("h4")[0].text) for card in root.find("article"))


@pytest.mark.parametrize("text", ["<b>", "a & b", '" onclick="x', "'", "</title><script>"])
def test_text_and_attributes_are_escaped(text: str) -> None:
    assert read_page(page("page.html.j2", text, oracle=False)).find("title")[0].text == text
    (box,) = read_page(fragment("parts.html.j2", "table", text, ["what", text], [["row", text]])).find("div")
    assert box.attributes["aria-label"] == box.find("caption")[0].text == text
    assert box.find("th")[1].text == box.find("td")[0].text == text


def test_a_value_that_the_page_lacks_is_an_error_and_not_a_gap() -> None:
    with pytest.raises(UndefinedError, match="oracle"):
        page("page.html.j2", "title")


def test_page_of_three_hundred_clips_stays_small(rough_backbone: fsmer.Backbone) -> None:
    many = make_clips(300)
    text = report_page(report_of(many, answers(many, 0), classes=EVIL), many, rough_backbone)
    assert len(text.encode()) < 1_000_000


# -- maps and media ----------------------------------------------------------------------------------------------------


def test_arrows_point_where_skin_moves() -> None:
    flow = np.zeros((3, 28, 28))
    flow[0, 14, 14], flow[1, 4, 4] = 2.0, -1.0  # one point to the right, one up at half the speed
    wide = np.repeat(np.repeat(flow, 8, axis=1), 8, axis=2)
    path = read_page(flow_picture(wide, label="x")).find("path")[0].attributes["d"]
    ways = [tuple(map(float, found)) for found in re.findall(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)M", path)]
    moved = {(round(x1 - x0, 1), round(y1 - y0, 1)) for x0, y0, x1, y1 in ways}
    assert {(dx > 0, dy) for dx, dy in moved if dx} <= {(True, 0.0)}
    assert all(dy < 0 for dx, dy in moved if not dx)


def test_strain_is_darker_where_it_is_larger() -> None:
    flow = np.zeros((3, 20, 30))
    flow[2, :, 20:] = 1.0
    (picture,) = read_page(flow_picture(flow, label="x")).find("image")
    shades = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.attributes["href"].split(",")[1]))))
    assert shades[:, 25].max() < shades[:, 5].min()


def test_still_map_has_no_arrows() -> None:
    assert not read_page(flow_picture(np.zeros((2, 8, 8)), label="x")).find("path")[0].attributes["d"]


def test_faces_never_appear_and_the_page_says_why(report: Report) -> None:
    rng = np.random.default_rng(0)
    spec = InputSpec("apex", (16, 16), ("red", "green", "blue"), "unit")
    held = make_clips()
    faces = ClipSet.from_arrays(
        {"apex": rng.random((len(held), 3, 16, 16), dtype=np.float32)},
        held.labels.tolist(),
        subjects=held.subjects.tolist(),
        datasets=held.datasets.tolist(),
        ids=held.ids.tolist(),
        spec=spec,
    )
    tree = read_page(report_page(report, faces))
    assert not tree.find("image")
    assert not tree.find("img")
    (part,) = tree.find("section", id="worst-and-best-clips")
    assert "pictures of faces" in part.text


def test_flow_over_time_is_shown_from_the_first_frame_on(report: Report) -> None:
    held = make_clips()
    spec = InputSpec("flows", (16, 16), ("u", "v"), "signed", frames=4)
    steps = 1e-3 * np.random.default_rng(0).normal(size=(len(held), 4, 2, 16, 16)).astype(np.float32)
    steps[:, :, 0] += 1.0  # the whole face goes to the right
    moving = ClipSet.from_arrays(
        {"flows": steps},
        held.labels.tolist(),
        subjects=held.subjects.tolist(),
        datasets=held.datasets.tolist(),
        ids=held.ids.tolist(),
        spec=spec,
    )
    tree = read_page(report_page(report, moving))
    pictures = [one for one in tree.find("svg", class_="flow") if "flow, frame 1 to 4" in one.attributes["aria-label"]]
    assert len(pictures) == len(tree.find("article")) > 0
    ways = re.findall(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)M", pictures[0].find("path")[0].attributes["d"])
    assert len(ways) > 20
    assert all(float(x1) > float(x0) and y1 == y0 for x0, y0, x1, y1 in ways)


def test_map_that_cannot_be_read_leaves_the_page_whole(report: Report, clips: ClipSet) -> None:
    maps = clips.media().copy()
    maps[:] = np.nan
    broken = ClipSet.from_arrays(
        maps,
        clips.labels.tolist(),
        subjects=clips.subjects.tolist(),
        datasets=clips.datasets.tolist(),
        ids=clips.ids.tolist(),
        spec=clips.specs["flow"],
    )
    text = read_page(report_page(report, broken)).text
    assert "This map cannot be shown" in text
    assert "holds NaN or infinity" in text


def test_without_clips_the_page_says_what_is_missing(report: Report) -> None:
    tree = read_page(report_page(report))
    assert not tree.find("image")
    assert "made without the clips" in tree.text


def test_report_writes_its_page(report: Report, clips: ClipSet, tmp_path: Path) -> None:
    text = report.to_html(tmp_path / "page.html", clips=clips)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    assert len(read_page(text).find("image")) == min(len(clips), len(read_page(text).find("article")))
    assert not list(tmp_path.glob(".page*"))


def test_loaded_report_gives_the_same_page(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    again = read_page(Report.load(tmp_path).to_html())
    assert tables(again) == tables(read_page(report.to_html()))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_other_clips_are_refused_by_name(report: Report, clips: ClipSet) -> None:
    with pytest.raises(DataError, match="'clip<0>&'"):
        report_page(report, clips[1:])


def test_backbone_without_clips_is_refused(report: Report, rough_backbone: fsmer.Backbone) -> None:
    with pytest.raises(DataError, match="clips="):
        report_page(report, backbone=rough_backbone)


def test_other_weights_are_pointed_out(clips: ClipSet, whole: str, rough_backbone: fsmer.Backbone) -> None:
    assert "another network than the one that was judged" in whole
    same = report_of(clips, answers(clips, 1), classes=EVIL, weights=model_hash(rough_backbone))
    assert "another network" not in report_page(same, clips, rough_backbone)


# -- in a browser ------------------------------------------------------------------------------------------------------

# Contrast of every piece of text with the first opaque ground behind it (WCAG 2.1, 1.4.3), lowest first.
CONTRAST = """() => {
  const channel = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const read = text => {
    const n = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const rgb = text.startsWith('color(') ? n.slice(0, 3) : n.slice(0, 3).map(v => v / 255);
    return { rgb, alpha: n.length > 3 ? n[3] : 1 };
  };
  const light = c => { const [r, g, b] = c.rgb.map(channel); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const found = read(getComputedStyle(at).backgroundColor);
      if (found.alpha > 0.99) return found;
    }
    return { rgb: [1, 1, 1], alpha: 1 };
  };
  const found = [];
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length || node.closest('title')) continue;
    const style = getComputedStyle(node);
    const ink = node.closest('svg') ? read(style.fill) : read(style.color);
    const [a, b] = [light(ink), light(ground(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_readable_in_a_browser(
    scheme: str, report: Report, oracle: Report, whole: str, clips: ClipSet, tmp_path: Path
) -> None:
    pages = {"honest": whole, "oracle": report_page(oracle, clips)}
    with browser() as started:
        for name, text in pages.items():
            (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
            for width in SIZES:
                heard: list[str] = []
                asked: list[str] = []
                tab = started.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                tab.on("console", lambda message, heard=heard: heard.append(message.text))
                tab.on("pageerror", lambda error, heard=heard: heard.append(str(error)))
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto((tmp_path / f"{name}.html").as_uri())
                assert not heard
                assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / f"{name}.html").as_uri()]
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                assert tab.locator("table").count() >= 7
                assert tab.evaluate("[...document.querySelectorAll('table')].every(t => t.rows.length > 1)")
                # Wide tables scroll inside their own box, which the keyboard can reach.
                boxes = tab.evaluate("[...document.querySelectorAll('.scroll')].map(b => [b.clientWidth, b.tabIndex])")
                assert all(wide <= width and stop == 0 for wide, stop in boxes)
                lowest = tab.evaluate(CONTRAST)
                assert len(lowest) > 100
                assert lowest[0][0] >= 4.5, lowest[:5]
                tab.close()

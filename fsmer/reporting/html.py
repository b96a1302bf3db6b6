"""A report as one self-contained HTML page: figures, confusion, who and what went wrong, embeddings, provenance."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.errors import DataError
from fsmer.evaluation.metrics import METRICS, confusion_matrix
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import ORACLE
from fsmer.reporting.page import (
    Html,
    columns_chart,
    el,
    figure,
    flow_picture,
    histogram,
    interval_bar,
    joined,
    legend,
    page,
    scatter,
    section,
    slug,
    table,
)

if TYPE_CHECKING:
    import pandas as pd

    from fsmer.backbones import Backbone
    from fsmer.data import Clip, ClipSet

__all__ = ["confusion_table", "contents", "footer", "headline", "provenance_rows", "report_html"]

SHOWN = ("uf1", "uar", "acc")
NAMES = {"uf1": "UF1", "uar": "UAR", "acc": "Accuracy", "acc_merau": "Acc (MERAU eq. 14)"}
MEANINGS = {
    "uf1": "mean of the classes' F1",
    "uar": "mean of the classes' recall",
    "acc": "share of clips classified rightly",
}
# Clips shown at each end, subjects in the table and in the picture, folds in the table, points in a map.
EXTREMES = 8
MAX_SUBJECTS = 300
MAX_COLUMNS = 150
MAX_EPISODES = 200
MAX_POINTS = 1000
# Neighbours that t-SNE balances (the default of scikit-learn), and components it starts from.
PERPLEXITY = 30.0
COMPONENTS = 50
PERMUTATIONS = 999
# What of a run's identity the other rows of the provenance do not hold.
HASHES = ("table of clips", "content of the media")
# What the page shows in a place of its own; everything else that a report holds goes to the provenance.
PLACED = frozenset(
    ["format", "averaging", "how", "per_dataset", "per_class", "classes", "confusion", "protocol", "model", "method"]
    + ["counts", "seed", "versions", "per_seed", "selection", "oracle", "honest", "gap", "notes"]
    + [key for name in METRICS for key in (name, f"{name}_interval")]
)


def report_html(
    report: Report,
    clips: ClipSet | None = None,
    backbone: Backbone | str | os.PathLike[str] | None = None,
    *,
    cache: bool | str | os.PathLike[str] = True,
) -> str:
    """The report as one page that loads nothing from anywhere.

    Parameters
    ----------
    report : Report
    clips : ClipSet, optional
        The clips that were evaluated: adds the flow maps of the worst and the best of them.
    backbone : Backbone, name of a model or folder of weights, optional
        The model that was evaluated: with `clips`, adds a map of the embeddings and how far data sets are
        apart in them.
    cache : bool or path
        Where embeddings that the evaluation made are found again, as for `fsmer.evaluate`.

    Returns
    -------
    str

    Raises
    ------
    DataError
        `clips` lacks a clip of the report, or a backbone is given without clips.
    SpecMismatchError
        The clips' media is not what the backbone eats.
    UnknownNameError
        No such backbone.

    Notes
    -----
    Pictures of faces are never put on the page, because pages are passed on and data sets of faces are not.
    """
    from fsmer.evaluation.embedding_cache import as_folder

    facts = _Facts(report)
    if backbone is not None and clips is None:
        raise DataError("a map of embeddings needs the clips that were evaluated; give clips= beside the backbone.")
    judged = None if clips is None else _judged(facts, clips)
    embedded = () if judged is None or backbone is None else _embedded(facts, judged, backbone, as_folder(cache))
    parts = [
        _result(facts),
        _confusions(facts),
        _breakdown(facts),
        _subjects(facts),
        *([_spread(facts)] if report.averaging == "episodes" else []),
        *embedded,
        _extremes(facts, judged),
        _provenance(facts),
    ]
    return page(report.title, _head(facts, parts), *parts, footer(), oracle=report.oracle)


@dataclass(frozen=True)
class _Facts:
    """A report and what several parts of the page ask of it."""

    report: Report

    @property
    def stamp(self) -> str | None:
        return ORACLE if self.report.oracle else None

    @cached_property
    def answers(self) -> pd.DataFrame:
        """One row an answer, with codes and whether it is right."""
        found = self.report.predictions
        place = {name: code for code, name in enumerate(self.report.classes)}
        truth = found["label"].map(place).to_numpy(np.int64)
        said = found["predicted"].map(place).to_numpy(np.int64)
        shares = found[[f"p_{name}" for name in self.report.classes]].to_numpy(np.float64)
        sure = shares[np.arange(len(shares)), truth] if len(shares) else np.zeros(0)
        keys = found[["clip", "dataset", "subject", "label"]]
        return keys.assign(truth=truth, said=said, right=truth == said, sure=sure)

    @cached_property
    def by_clip(self) -> pd.DataFrame:
        """One row a clip: how often it was judged, share right, probability of its true class."""
        grouped = self.answers.groupby("clip", sort=False, observed=True)
        return grouped.agg(
            dataset=("dataset", "first"),
            subject=("subject", "first"),
            label=("label", "first"),
            truth=("truth", "first"),
            answers=("right", "size"),
            right=("right", "mean"),
            sure=("sure", "mean"),
        )


# What a reader must know before any figure, by the rule of the choice.
RULES = {
    "fixed": "Honest: settings and epochs were fixed beforehand; the clips that are judged chose nothing.",
    "nested": "Honest: settings were chosen on inner folds of each support set, by subject; the clips that are judged "
    "chose nothing.",
    "oracle": "ORACLE: settings were chosen on the very clips that are judged. These figures measure how much that "
    "flatters; they are no result and must not be compared with honest ones.",
}


def headline(figures: Mapping[str, Any], name: str) -> Html:
    """A figure with its interval, for a cell."""
    bounds = figures.get(f"{name}_interval")
    value = joined(el("b", f"{figures[name]:.4f}"), stamped(ORACLE if figures.get("oracle") else None))
    return (
        value
        if bounds is None
        else joined(value, " ", el("span", f"[{bounds[0]:.4f}, {bounds[1]:.4f}]", class_="within"))
    )


# -- head and foot -----------------------------------------------------------------------------------------------------


def _head(facts: _Facts, parts: Sequence[Html]) -> Html:
    report, counts = facts.report, facts.report.counts
    badge, seeds = facts.stamp or "HONEST", len(report.per_seed)
    lead = (
        f"Model {report.model['name']}, method {report.method['name']}, protocol {report.protocol['name']}: "
        f"{counts['clips']:,} clips of {counts['subjects']:,} subjects in {counts['episodes']:,} "
        f"{_episode_word(report, counts['episodes'])}, {seeds} seed{'s' if seeds != 1 else ''}."
    )
    return el(
        "header",
        el("span", badge, class_="badge"),
        el("h1", report.title),
        el("p", lead, class_="lead"),
        el("p", RULES[report.selection["rule"]], class_="verdict"),
        *(el("p", note, class_="warning") for note in report.notes),
        contents(parts),
    )


def contents(parts: Sequence[Html]) -> Html:
    """Links to the sections of a page."""
    titles = [part.split("<h2>", 1)[1].split("</h2>", 1)[0].split("<span", 1)[0].strip() for part in parts]
    links = [el("li", el("a", Html(title), href=f"#{slug(title)}")) for title in titles]
    return el("nav", el("ul", links), aria_label="Contents")


def footer() -> Html:
    """Who made the page, and when."""
    from fsmer.version import __version__

    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return el("footer", f"Page made by fsmer {__version__} on {now}. It loads nothing and runs no script.")


def _episode_word(report: Report, count: int) -> str:
    word = "episode" if report.averaging == "episodes" else "fold"
    return word if count == 1 else f"{word}s"


# -- figures -----------------------------------------------------------------------------------------------------------


def _result(facts: _Facts) -> Html:
    report, stamp = facts.report, facts.stamp
    tiles = []
    for name in SHOWN:
        bounds = report.interval(name)
        words = "no interval" if bounds is None else f"95 % interval {bounds[0]:.4f} to {bounds[1]:.4f}"
        marks = [float(one[name]) for one in report.per_seed] if len(report.per_seed) > 1 else []
        tiles.append(
            el(
                "div",
                el("div", NAMES[name], stamped(stamp), class_="name"),
                el("div", f"{report.figures[name]:.4f}", class_="value"),
                el("div", words, class_="bounds"),
                interval_bar(
                    float(report.figures[name]),
                    bounds,
                    label=f"{NAMES[name]} {report.figures[name]:.4f} between 0 and 1, {words}",
                    points=marks,
                ),
                el("div", MEANINGS[name], class_="bounds"),
                class_="tile",
            )
        )
    chance = f" Guessing gives a UAR of {1 / len(report.classes):.4f} with {len(report.classes)} classes."
    extra: list[Html] = []
    if report.honest is not None and report.gap is not None:
        extra.append(_gap(report.figures, report.honest, report.gap))
    if len(report.per_seed) > 1:
        extra.append(_seeds(facts))
    if "chosen" in report.selection:
        extra.append(_chosen(report.selection))
    how = f"Figures: {report.how}.{chance}"
    return section("Result", el("div", tiles, class_="tiles"), el("p", how, class_="how"), *extra, stamp=stamp)


def stamped(stamp: str | None) -> Html | None:
    """The stamp beside a name."""
    return None if stamp is None else joined(" ", el("span", stamp, class_="stamp"))


def _gap(figures: Mapping[str, Any], honest: Mapping[str, Any], gap: Mapping[str, float]) -> Html:
    rows: list[list[Any]] = [
        ["chosen on the judged clips", *(headline(figures, name) for name in SHOWN)],
        ["honest, same run", *(headline(honest, name) for name in SHOWN)],
        ["gap", *(f"{gap[name]:+.4f}" for name in SHOWN)],
    ]
    return table("What looking at the test side gains", ["rule", *(NAMES[name] for name in SHOWN)], rows)


def _seeds(facts: _Facts) -> Html:
    rows: list[list[Any]] = [[one["seed"], *(f"{one[name]:.4f}" for name in SHOWN)] for one in facts.report.per_seed]
    array = np.array([[one[name] for name in SHOWN] for one in facts.report.per_seed], dtype=np.float64)
    rows.append([el("b", "mean"), *(el("b", f"{value:.4f}") for value in array.mean(axis=0))])
    rows.append(["standard deviation", *(f"{value:.4f}" for value in array.std(axis=0, ddof=1))])
    return table("Every seed", ["seed", *(NAMES[name] for name in SHOWN)], rows, stamp=facts.stamp)


def _chosen(selection: Mapping[str, Any]) -> Html:
    """How often each candidate was taken, and the whole list to unfold."""
    taken = Counter(_settings(one) for one in selection["chosen"])
    rows = [[name, f"{count:,}"] for name, count in taken.most_common()]
    return el(
        "details",
        el("summary", f"What was chosen, by {selection['by']}"),
        table("How often each was chosen", ["settings", "times"], rows),
        el("pre", _json(selection["chosen"]), tabindex="0"),
    )


def _settings(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in chosen.items() if key not in ("seed", "episode"))


# -- confusion ---------------------------------------------------------------------------------------------------------


def _confusions(facts: _Facts) -> Html:
    report = facts.report
    pictures = [confusion_table(report.confusion, report.classes, "All clips", stamp=facts.stamp)]
    names = list(report.per_dataset)
    if len(names) > 1:
        codes = facts.answers["dataset"].map({name: code for code, name in enumerate(names)}).to_numpy(np.int64)
        counts = confusion_matrix(
            facts.answers["truth"], facts.answers["said"], len(report.classes), groups=codes, n_groups=len(names)
        )
        pictures += [
            confusion_table(one, report.classes, name, stamp=facts.stamp)
            for one, name in zip(counts, names, strict=True)
        ]
    words = "Rows are the truth. Colour and percentage: share of the true class; below: number of answers"
    many = " over all seeds and episodes." if len(facts.answers) > len(facts.by_clip) else "."
    return section(
        "Confusion matrices",
        el("p", words + many, class_="note"),
        # Side by side where there is room for all their columns.
        el("div", pictures, class_="pictures", style=f"--least:{7 + 4 * len(report.classes)}rem"),
        stamp=facts.stamp,
    )


def confusion_table(
    confusion: NDArray[np.int64], classes: Sequence[str], caption: str, *, stamp: str | None = None
) -> Html:
    """A confusion matrix as a table whose cells are shaded."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    rows = [
        [
            name,
            *(
                el("td", el("b", f"{share:.0%}"), el("span", f"{count:,}"), class_="heat", style=f"--v:{share:.3f}")
                for share, count in zip(line.tolist(), row.tolist(), strict=True)
            ),
        ]
        for name, line, row in zip(classes, shares, confusion, strict=True)
    ]
    return table(caption, ["truth / said", *classes], rows, stamp=stamp, class_="confusion")


# -- by class, data set and subject ------------------------------------------------------------------------------------


def _breakdown(facts: _Facts) -> Html:
    report = facts.report
    per_class = table(
        "By class",
        ["class", "clips", "F1", "recall", "precision"],
        [
            [name, f"{row['clips']:,}", *(f"{row[key]:.4f}" for key in ("f1", "recall", "precision"))]
            for name, row in report.per_class.items()
        ],
        stamp=facts.stamp,
    )
    per_dataset = table(
        "By data set",
        ["data set", "clips", "subjects", *(NAMES[name] for name in SHOWN)],
        [
            [name, f"{row['clips']:,}", f"{row['subjects']:,}", *(headline(row, figure_name) for figure_name in SHOWN)]
            for name, row in report.per_dataset.items()
        ],
        stamp=facts.stamp,
    )
    note = el("p", "A class that a data set lacks counts as zero in its UF1 and UAR.", class_="note")
    return section("Classes and data sets", per_class, per_dataset, note, stamp=facts.stamp)


def _subjects(facts: _Facts) -> Html:
    people = facts.by_clip.groupby(["dataset", "subject"], sort=True, observed=True)
    found = people.agg(clips=("right", "size"), right=("right", "sum"), share=("right", "mean")).reset_index()
    classes = facts.report.classes
    by_class = facts.by_clip.groupby(["dataset", "subject", "label"], sort=True, observed=True)["right"].agg(
        ["sum", "size"]
    )
    worst = found.sort_values(["share", "clips"], ascending=[True, False], kind="stable")
    lookup = {key: (float(row[0]), int(row[1])) for key, row in zip(by_class.index, by_class.to_numpy(), strict=True)}
    rows = []
    for dataset, subject, clips, share in worst[["dataset", "subject", "clips", "share"]].head(MAX_SUBJECTS).to_numpy():
        cells = [lookup.get((dataset, subject, name)) for name in classes]
        rows.append(
            [
                subject or "(unknown)",
                dataset,
                f"{clips:,}",
                f"{share:.0%}",
                *("–" if cell is None else f"{_count(cell[0])} of {cell[1]}" for cell in cells),
            ]
        )
    parts: list[Html] = []
    if len(found) <= MAX_COLUMNS:
        drawn = found.sort_values(["dataset", "share", "clips"], ascending=[True, True, False], kind="stable")
        heights = np.stack([drawn["right"], drawn["clips"] - drawn["right"]], axis=1)
        key = el(
            "ul",
            [
                el("li", el("span", class_=f"swatch {name}"), f"clips taken {way}")
                for name, way in (("right", "rightly"), ("wrong", "wrongly"))
            ],
            class_="legend",
        )
        label = "Clips of each subject, rightly and wrongly classified"
        chart = columns_chart(drawn["subject"].tolist(), heights, groups=drawn["dataset"].tolist(), label=label)
        parts += [key, figure(chart, f"{label}, worst first within each data set.", stamp=facts.stamp)]
    else:
        parts.append(el("p", f"{len(found):,} subjects are too many to draw one by one.", class_="note"))
    cut = f" The {MAX_SUBJECTS} worst of {len(found):,} are listed." if len(found) > MAX_SUBJECTS else ""
    mean = " Several answers about a clip count as their mean." if len(facts.answers) > len(facts.by_clip) else ""
    head = ["subject", "data set", "clips", "right", *classes]
    caption = f"By subject, worst first; under each class: clips taken rightly of all.{cut}{mean}"
    return section(
        "Subjects", *parts, table(caption, head, rows, text=2, stamp=facts.stamp, tall=True), stamp=facts.stamp
    )


def _count(number: float) -> str:
    return f"{number:.0f}" if math.isclose(number, round(number), abs_tol=1e-9) else f"{number:.1f}"


def _spread(facts: _Facts) -> Html:
    # Seeds answer the same episodes: each is shown once, by its mean.
    by_episode = facts.report.episodes.groupby("episode", sort=True)
    episodes = by_episode.agg(name=("name", "first"), clips=("clips", "first"), **{n: (n, "mean") for n in SHOWN})
    worst = episodes.sort_values("uf1", kind="stable").head(MAX_EPISODES)
    label = f"UF1 of {len(episodes):,} episodes between 0 and 1"
    rows = [[row["name"], f"{row['clips']:,}", *(f"{row[name]:.4f}" for name in SHOWN)] for _, row in worst.iterrows()]
    return section(
        "Episodes",
        figure(histogram(episodes["uf1"], label=label), label, stamp=facts.stamp, class_="narrow"),
        el(
            "details",
            el("summary", f"The {len(worst):,} episodes with the lowest UF1"),
            table(
                "Lowest UF1 first", ["episode", "clips", *(NAMES[n] for n in SHOWN)], rows, stamp=facts.stamp, tall=True
            ),
        ),
        stamp=facts.stamp,
    )


# -- embeddings --------------------------------------------------------------------------------------------------------


def _judged(facts: _Facts, clips: ClipSet) -> ClipSet:
    """The clips of the report, in its order."""
    held = set(clips.ids.tolist())
    missing = next((name for name in facts.by_clip.index if name not in held), None)
    if missing is not None:
        raise DataError(
            f"the report judges clip {missing!r}, which the clips given lack; give the set that was evaluated."
        )
    return clips[clips.positions(facts.by_clip.index.tolist())]


def _embedded(
    facts: _Facts, judged: ClipSet, backbone: Backbone | str | os.PathLike[str], cache: Path | None
) -> tuple[Html, ...]:
    from fsmer.backbones import as_backbone, model_hash
    from fsmer.evaluation.embedding_cache import embed_cached

    model = as_backbone(backbone)
    rows = np.arange(len(judged))
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(facts.report.seed).choice(rows, MAX_POINTS, replace=False))
    tensor, _ = embed_cached(model, judged[rows], folder=cache)
    found = tensor.numpy().astype(np.float64)
    shown = facts.by_clip.iloc[rows]
    words = f"Embeddings of {len(rows):,} clips by {model.name} as it was given, before any fold trained it."
    parts: list[Html] = [el("p", words, class_="note")]
    if model_hash(model) not in facts.report.model["weights_hash"].split("+"):
        other = (
            f"These weights ({model_hash(model)}) are not those of the report "
            f"({facts.report.model['weights_hash']}): the map shows another network than the one that was judged."
        )
        parts.append(el("p", other, class_="warning"))
    return (_map(facts, found, shown, parts), *_domains(facts, found, shown))


def _map(facts: _Facts, found: NDArray[np.float64], shown: pd.DataFrame, parts: list[Html]) -> Html:
    classes, names = facts.report.classes, sorted(shown["dataset"].unique().tolist())
    truth = shown["truth"].to_numpy(np.int64)
    datasets = shown["dataset"].map({name: code for code, name in enumerate(names)}).to_numpy(np.int64)
    wrong = shown["right"].to_numpy(np.float64) < 0.5
    by_class, by_dataset = [], []
    for title, places, axes in projections(found, facts.report.seed):
        label = f"{title} of the embeddings, coloured by class; clips that were mostly taken wrongly are outlines"
        drawn = scatter(places, truth, hollow=wrong, label=label, axes=axes)
        by_class.append(figure(drawn, f"{title}, by class. Outlines: mostly taken wrongly.", stamp=facts.stamp))
        if len(names) > 1:
            label = f"{title} of the embeddings, coloured by data set"
            drawn = scatter(places, datasets, label=label, axes=axes)
            by_dataset.append(figure(drawn, f"{title}, by data set.", stamp=facts.stamp))
    parts += [legend(classes), el("div", by_class, class_="pictures")]
    if by_dataset:
        parts += [legend(names), el("div", by_dataset, class_="pictures")]
    return section("Embedding map", *parts, stamp=facts.stamp)


def projections(embeddings: NDArray[np.float64], seed: int) -> list[tuple[str, NDArray[np.float64], tuple[str, str]]]:
    """Maps of embeddings in two dimensions: name, places (N, 2) and words of the axes.

    Principal components always; t-SNE by scikit-learn (perplexity 30, or a third of the clips where they are few) from
    five clips on; UMAP where the package umap-learn is installed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = min(COMPONENTS, *embeddings.shape)
    centred = embeddings - embeddings.mean(axis=0)
    if not centred.any():
        return [("PCA", np.zeros((len(embeddings), 2)), ("all embeddings are alike", ""))]
    pca = PCA(count, random_state=seed).fit(centred)
    scores = pca.transform(centred)
    plane = np.zeros((len(scores), 2))
    plane[:, : min(2, count)] = scores[:, :2]
    shares = [*pca.explained_variance_ratio_, 0.0][:2]
    maps = [("PCA", plane, (f"axis 1 ({shares[0]:.0%} of the variance)", f"axis 2 ({shares[1]:.0%})"))]
    if len(scores) < 5:
        return maps
    perplexity = min(PERPLEXITY, (len(scores) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca" if count > 1 else "random", random_state=seed)
    maps.append((f"t-SNE (perplexity {perplexity:.0f})", tsne.fit_transform(scores).astype(np.float64), ("", "")))
    try:
        umap = import_module("umap").UMAP
    except (ImportError, AttributeError):  # not installed, or a folder of that name where Python looks
        return maps
    # A seed and several threads exclude each other.
    reducer = umap(n_neighbors=min(15, len(scores) - 1), random_state=seed, n_jobs=1)
    maps.append(("UMAP", reducer.fit_transform(scores).astype(np.float64), ("", "")))
    return maps


def _domains(facts: _Facts, found: NDArray[np.float64], shown: pd.DataFrame) -> tuple[Html, ...]:
    from fsmer.transfer.mmd import mmd

    held = {name: found[(shown["dataset"] == name).to_numpy()] for name in sorted(shown["dataset"].unique().tolist())}
    large = [name for name, rows in held.items() if len(rows) > 1]
    if len(large) < 2:
        return ()
    rows = []
    for first, second in combinations(large, 2):
        result = mmd(held[first], held[second], permutations=PERMUTATIONS, seed=facts.report.seed)
        sizes = f"{result.samples_a:,} and {result.samples_b:,}"
        rows.append(
            [f"{first} – {second}", sizes, f"{result.value:.4f}", f"{result.squared:.5f}", f"{result.p_value:.3f}"]
        )
    note = (
        "Maximum mean discrepancy between the embeddings of two data sets: RBF kernel at the median distance, unbiased "
        f"estimate, p-value by {PERMUTATIONS} random regroupings (not corrected for the number of pairs). "
        "Data sets differ in their mix of classes too, which counts as distance here."
    )
    head = ["data sets", "clips", "MMD", "squared", "p"]
    return (
        section(
            "Distance between data sets",
            table("MMD of the embeddings", head, rows, stamp=facts.stamp),
            el("p", note, class_="note"),
            stamp=facts.stamp,
        ),
    )


# -- single clips ------------------------------------------------------------------------------------------------------


def _extremes(facts: _Facts, judged: ClipSet | None) -> Html:
    ranked = facts.by_clip.sort_values("sure", kind="stable")
    worst = ranked[ranked["right"] < 0.5].head(EXTREMES)
    right = ranked[ranked["right"] >= 0.5].iloc[::-1]
    # Classes in turn: the surest clips are often all of one class, and alike.
    turn = right.groupby("truth", observed=True).cumcount()
    best = right.loc[turn.sort_values(kind="stable").index].head(EXTREMES)
    parts: list[Html] = []
    for title, chosen, none in (
        ("Worst: least probability on the true class", worst, "No clip was mostly taken for another class."),
        ("Best: most probability on the true class, classes in turn", best, "No clip was mostly taken rightly."),
    ):
        cards = [_card(facts, str(name), judged) for name in chosen.index]
        parts += [el("h3", title, stamped(facts.stamp)), el("div", cards, class_="cards") if cards else el("p", none)]
    return section("Worst and best clips", el("p", _media_words(judged), class_="note"), *parts, stamp=facts.stamp)


def _media_words(judged: ClipSet | None) -> str:
    if judged is None:
        return "No maps: the page was made without the clips."
    kinds = set(judged.specs)
    if kinds & {"flow", "flows"}:
        spec = judged.specs["flow" if "flow" in kinds else "flows"]
        zero = (
            " These maps are scaled channel by channel, which loses the zero; the median stands in for it."
            if spec.normalisation == "minmax"
            else ""
        )
        return (
            f"Grey: strain, darker where skin deforms more. Arrows: where skin moves, longest alike in every map.{zero}"
        )
    return (
        "No maps: these clips hold pictures of faces alone, and a page that may be passed on must not show people. "
        "Prepare flow beside the frames to see what moved."
    )


def _card(facts: _Facts, name: str, judged: ClipSet | None) -> Html:
    row = facts.by_clip.loc[name]
    answers = facts.report.predictions[facts.report.predictions["clip"] == name]
    said = answers["predicted"].value_counts(sort=True)
    means = {label: float(answers[f"p_{label}"].mean()) for label in facts.report.classes}
    often = "" if len(answers) == 1 else f" in {said.iloc[0]:,} of {len(answers):,} answers"
    bars = [
        el(
            "div",
            el("span", label + (" (true)" if label == row["label"] else "")),
            el("span", f"{share:.0%}", class_="n"),
            el("i", style=f"--v:{share:.3f}"),
            class_="probability",
        )
        for label, share in means.items()
        if not math.isnan(share)
    ]
    picture = None if judged is None else _clip_picture(judged[int(judged.positions([name])[0])])
    who = f"{row['dataset']}, subject {row['subject'] or 'unknown'}"
    words = el("p", "true class ", el("b", row["label"]), "; taken for ", el("b", said.index[0]), often)
    return el("article", picture, el("h4", name), el("p", who, class_="note"), words, *bars, class_="card")


def _clip_picture(clip: Clip) -> Html | None:
    """The clip's flow; None where it holds pictures of a face alone."""
    from fsmer.deploy.explain import flows_of

    kinds = [kind for kind in ("flow", "flows") if kind in clip.media]
    if not kinds:
        return None
    try:
        media = {kind: (clip.media[kind].spec, clip.read(kind)) for kind in kinds[:1]}
    except DataError as error:
        return el("p", f"This map cannot be shown: {error}", class_="note")
    title, flow = next(iter(flows_of(media)))
    return flow_picture(
        flow, label=f"{title} of clip {clip.id}, true class {clip.label}: strain with arrows of movement"
    )


# -- provenance --------------------------------------------------------------------------------------------------------


def _provenance(facts: _Facts) -> Html:
    settings = {"protocol": facts.report.protocol, "model": facts.report.model, "method": facts.report.method}
    return section(
        "Provenance",
        table("What it takes to repeat this", ["what", "value"], provenance_rows(facts.report), text=2, class_="words"),
        el("details", el("summary", "All settings"), el("pre", _json(settings), tabindex="0")),
    )


def provenance_rows(report: Report) -> list[list[Any]]:
    """Everything about how a report came to be, as rows of (what, value)."""
    from fsmer.data.spec import InputSpec

    model, protocol = report.model, report.protocol
    eats = "; ".join(InputSpec.from_dict(spec).describe() for spec in model.get("input_specs", ()))
    rows: list[list[Any]] = [
        ["protocol", joined(f"{protocol['name']} ", el("code", protocol["hash"]))],
        ["model", joined(f"{model['name']} ", el("code", model["weights_hash"]))],
        ["input", eats],
        ["method", report.method["name"]],
        ["parameters", ", ".join(f"{key}={value}" for key, value in report.method["params"].items())],
        ["seeds", ", ".join(str(one["seed"]) for one in report.per_seed)],
        ["seed of episodes and bootstrap", str(report.seed)],
        ["choice of settings", report.selection["rule"]],
    ]
    rows += [
        [key.replace("_", " "), value if isinstance(value, (str, int, float)) else el("code", json.dumps(value))]
        for key, value in report.to_dict().items()
        if key not in PLACED
    ]
    run = report.run
    rows += [[key, run[key]] for key in ("call", "started", "machine") if key in run]
    if "seconds" in run:
        taken = f" for what an earlier start had not done ({run['resumed']:,} episodes)" if run.get("resumed") else ""
        rows.append(["time", f"{_duration(run['seconds'])}{taken}"])
    rows += [
        [key, joined("hash ", el("code", value.removeprefix("hash ")))]
        for key, value in run.get("identity", {}).items()
        if key in HASHES
    ]
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())])
    return [row for row in rows if row[1] != ""]


def _duration(seconds: float) -> str:
    """Wall time as people say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, default=str)

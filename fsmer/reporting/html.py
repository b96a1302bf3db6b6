"""A report as one self-contained HTML page: figures, confusion, who and what went wrong, embeddings, provenance."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.backbones import Backbone, as_backbone, model_hash
from fsmer.data import ClipSet
from fsmer.data.shown_flow import flow_kind, flows_of
from fsmer.errors import DataError
from fsmer.evaluation.embedding_cache import as_folder, embed_cached
from fsmer.evaluation.metrics import confusion_matrix
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import ORACLE, SHOWN, by_class, by_dataset, by_seed, oracle_gap, provenance, shown
from fsmer.reporting.charts import columns_chart, flow_picture, histogram, legend, scatter
from fsmer.reporting.page import page
from fsmer.transfer.mmd import mmd

__all__ = ["confusion_picture", "report_page"]

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


def report_page(
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

    Raises
    ------
    DataError
        `clips` lacks a clip of the report, or a backbone is given without clips.
    SpecMismatchError
        The clips' media is not what the backbone expects.
    UnknownNameError
        No such backbone.

    Notes
    -----
    Pictures of faces are never put on the page, because pages are passed on and data sets of faces are not.
    """
    facts = _Facts(report)
    if backbone is not None and clips is None:
        raise DataError("a map of embeddings needs the clips that were evaluated; give clips= beside the backbone.")
    judged = None if clips is None else _judged(facts, clips)
    embedding = None if judged is None or backbone is None else _embedding(facts, judged, backbone, as_folder(cache))
    return page(
        "report.html.j2",
        report.title,
        report=report,
        oracle=report.oracle,
        stamp=ORACLE if report.oracle else None,
        shown=shown(report),
        gap=oracle_gap(report),
        seeds=by_seed(report),
        chosen=_chosen(report),
        pictures=_confusions(facts),
        several=len(facts.answers) > len(facts.by_clip),
        by_class=by_class(report),
        by_dataset=by_dataset(report),
        subjects=_subjects(facts),
        episodes=_episodes(report),
        clips=clips,
        embedding=embedding,
        permutations=PERMUTATIONS,
        flow=None if judged is None else judged.specs.get(flow_kind(judged.specs)),
        extremes=_extremes(facts, judged),
        provenance=provenance(report),
    )


@dataclass(frozen=True)
class _Facts:
    """A report and what several parts of the page ask of it."""

    report: Report

    @cached_property
    def answers(self) -> pd.DataFrame:
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
        first = {name: (name, "first") for name in ("dataset", "subject", "label", "truth")}
        return grouped.agg(**first, answers=("right", "size"), right=("right", "mean"), sure=("sure", "mean"))


def _chosen(report: Report) -> list[tuple[str, str]]:
    taken = Counter(
        ", ".join(f"{key}={value}" for key, value in one.items() if key not in ("seed", "episode"))
        for one in report.selection.get("chosen", ())
    )
    return [(name, f"{count:,}") for name, count in taken.most_common()]


def _confusions(facts: _Facts) -> list[dict[str, Any]]:
    report = facts.report
    pictures = [confusion_picture("All clips", report.confusion, report.classes)]
    names = list(report.per_dataset)
    if len(names) > 1:
        codes = facts.answers["dataset"].map({name: code for code, name in enumerate(names)}).to_numpy(np.int64)
        counts = confusion_matrix(
            facts.answers["truth"], facts.answers["said"], len(report.classes), groups=codes, n_groups=len(names)
        )
        pictures += [confusion_picture(name, one, report.classes) for name, one in zip(names, counts, strict=True)]
    return pictures


def confusion_picture(caption: str, confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix for a page: shares of the true class and counts, row by row."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cells = np.stack([shares, confusion], axis=2).tolist()
    rows = [(name, [(share, int(count)) for share, count in row]) for name, row in zip(classes, cells, strict=True)]
    return {"caption": caption, "classes": list(classes), "rows": rows}


def _subjects(facts: _Facts) -> dict[str, Any]:
    people = facts.by_clip.groupby(["dataset", "subject"], sort=True, observed=True)
    found = people.agg(clips=("right", "size"), right=("right", "sum"), share=("right", "mean")).reset_index()
    by_class = facts.by_clip.groupby(["dataset", "subject", "label"], sort=True, observed=True)["right"]
    lookup = by_class.agg(["sum", "size"]).apply(tuple, axis=1).to_dict()
    worst = found.sort_values(["share", "clips"], ascending=[True, False], kind="stable").head(MAX_SUBJECTS)
    rows = []
    for dataset, subject, clips, share in worst[["dataset", "subject", "clips", "share"]].to_numpy():
        cells = [lookup.get((dataset, subject, name)) for name in facts.report.classes]
        told = ("–" if cell is None else f"{_count(cell[0])} of {cell[1]:.0f}" for cell in cells)
        rows.append([subject or "(unknown)", dataset, f"{clips:,}", f"{share:.0%}", *told])
    label, chart = "Clips of each subject, rightly and wrongly classified", None
    if len(found) <= MAX_COLUMNS:
        drawn = found.sort_values(["dataset", "share", "clips"], ascending=[True, True, False], kind="stable")
        heights = np.stack([drawn["right"], drawn["clips"] - drawn["right"]], axis=1)
        chart = columns_chart(drawn["subject"].tolist(), heights, groups=drawn["dataset"].tolist(), label=label)
    cut = f" The {MAX_SUBJECTS} worst of {len(found):,} are listed." if len(found) > MAX_SUBJECTS else ""
    mean = " Several answers about a clip count as their mean." if len(facts.answers) > len(facts.by_clip) else ""
    caption = f"By subject, worst first; under each class: clips taken rightly of all.{cut}{mean}"
    return {"count": len(found), "label": label, "chart": chart, "caption": caption, "rows": rows}


def _count(number: float) -> str:
    return f"{number:.0f}" if math.isclose(number, round(number), abs_tol=1e-9) else f"{number:.1f}"


def _episodes(report: Report) -> dict[str, Any] | None:
    if report.averaging != "episodes":
        return None
    # Seeds answer the same episodes: each is shown once, by its mean.
    by_episode = report.episodes.groupby("episode", sort=True)
    episodes = by_episode.agg(name=("name", "first"), clips=("clips", "first"), **{n: (n, "mean") for n in SHOWN})
    worst = episodes.sort_values("uf1", kind="stable").head(MAX_EPISODES)
    label = f"UF1 of {len(episodes):,} episodes between 0 and 1"
    rows = [[row["name"], f"{row['clips']:,}", *(f"{row[name]:.4f}" for name in SHOWN)] for _, row in worst.iterrows()]
    return {"label": label, "chart": histogram(episodes["uf1"], label=label), "rows": rows}


def _judged(facts: _Facts, clips: ClipSet) -> ClipSet:
    held = set(clips.ids.tolist())
    missing = next((name for name in facts.by_clip.index if name not in held), None)
    if missing is not None:
        raise DataError(f"the report judges clip {missing!r}, which the clips given lack; give the set of the run.")
    return clips[clips.positions(facts.by_clip.index.tolist())]


def _embedding(
    facts: _Facts, judged: ClipSet, backbone: Backbone | str | os.PathLike[str], cache: Path | None
) -> dict[str, Any]:
    model = as_backbone(backbone)
    rows = np.arange(len(judged))
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(facts.report.seed).choice(rows, MAX_POINTS, replace=False))
    tensor, _ = embed_cached(model, judged[rows], folder=cache)
    found = tensor.numpy().astype(np.float64)
    points = facts.by_clip.iloc[rows]
    known, warning = facts.report.model["weights_hash"], ""
    if model_hash(model) not in known.split("+"):
        warning = (
            f"These weights ({model_hash(model)}) are not those of the report ({known}): the map shows another network "
            "than the one that was judged."
        )
    words = f"Embeddings of {len(rows):,} clips by {model.name} as it was given, before any fold trained it."
    distances = _distances(facts, found, points)
    return {"words": words, "warning": warning, "maps": _maps(facts, found, points), "distances": distances}


def _maps(facts: _Facts, found: NDArray[np.float64], points: pd.DataFrame) -> list[tuple[Any, list[Any]]]:
    classes, names = facts.report.classes, sorted(points["dataset"].unique().tolist())
    datasets = points["dataset"].map({name: code for code, name in enumerate(names)}).to_numpy(np.int64)
    wrong = points["right"].to_numpy(np.float64) < 0.5
    by_class, by_dataset = [], []
    for title, places, axes in projections(found, facts.report.seed):
        label = f"{title} of the embeddings, coloured by class; clips that were mostly taken wrongly are outlines"
        drawn = scatter(places, points["truth"], hollow=wrong, label=label, axes=axes)
        by_class.append((drawn, f"{title}, by class. Outlines: mostly taken wrongly."))
        drawn = scatter(places, datasets, label=f"{title} of the embeddings, coloured by data set", axes=axes)
        by_dataset.append((drawn, f"{title}, by data set."))
    maps = [(legend(classes), by_class), (legend(names), by_dataset)]
    return maps if len(names) > 1 else maps[:1]


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


def _distances(facts: _Facts, found: NDArray[np.float64], points: pd.DataFrame) -> list[list[str]]:
    """Maximum mean discrepancy of every two data sets with two clips or more."""
    held = {name: found[(points["dataset"] == name).to_numpy()] for name in sorted(points["dataset"].unique().tolist())}
    rows = []
    for first, second in combinations([name for name, own in held.items() if len(own) > 1], 2):
        result = mmd(held[first], held[second], permutations=PERMUTATIONS, seed=facts.report.seed)
        sizes = f"{result.samples_a:,} and {result.samples_b:,}"
        figures = (f"{result.value:.4f}", f"{result.squared:.5f}", f"{result.p_value:.3f}")
        rows.append([f"{first} – {second}", sizes, *figures])
    return rows


def _extremes(facts: _Facts, judged: ClipSet | None) -> list[tuple[str, str, list[dict[str, Any]]]]:
    ranked = facts.by_clip.sort_values("sure", kind="stable")
    worst = ranked[ranked["right"] < 0.5].head(EXTREMES)
    right = ranked[ranked["right"] >= 0.5].iloc[::-1]
    # Classes in turn: the surest clips are often all of one class, and alike.
    turn = right.groupby("truth", observed=True).cumcount()
    best = right.loc[turn.sort_values(kind="stable").index].head(EXTREMES)
    return [
        (title, none, [_card(facts, str(name), judged) for name in chosen.index])
        for title, chosen, none in (
            ("Worst: least probability on the true class", worst, "No clip was mostly taken for another class."),
            ("Best: most probability on the true class, classes in turn", best, "No clip was mostly taken rightly."),
        )
    ]


def _card(facts: _Facts, name: str, judged: ClipSet | None) -> dict[str, Any]:
    row = facts.by_clip.loc[name]
    answers = facts.report.predictions[facts.report.predictions["clip"] == name]
    said = answers["predicted"].value_counts(sort=True)
    means = [(label, float(answers[f"p_{label}"].mean())) for label in facts.report.classes]
    return {
        "name": name,
        **{key: row[key] for key in ("dataset", "subject", "label", "answers")},
        "said": said.index[0],
        "times": said.iloc[0],
        "shares": [(label, share) for label, share in means if not math.isnan(share)],
        **({"picture": None, "flaw": ""} if judged is None else _clip_picture(judged, name)),
    }


def _clip_picture(judged: ClipSet, name: str) -> dict[str, Any]:
    """The clip's flow, or why it cannot be shown; nothing where it holds pictures of a face alone."""
    clip = judged[int(judged.positions([name])[0])]
    kind = flow_kind(judged.specs)
    if kind not in clip.media:
        return {"picture": None, "flaw": ""}
    try:
        title, flow = next(iter(flows_of({kind: (clip.media[kind].spec, clip.read(kind))})))
    except DataError as error:
        return {"picture": None, "flaw": str(error)}
    label = f"{title} of clip {clip.id}, true class {clip.label}: strain with arrows of movement"
    return {"picture": flow_picture(flow, label=label), "flaw": ""}

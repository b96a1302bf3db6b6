"""Audit of results: folders that `fsmer.evaluate` wrote, and tables of predictions from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fsmer.auditing.findings import Audit, Findings, Table, check_identities, counts_of, either, number, of_dataset
from fsmer.data.schemes import canonical_dataset
from fsmer.episodic.protocol import Protocol
from fsmer.errors import DataError, FsmerError
from fsmer.evaluation.metrics import METRICS, confusion_matrix, score_confusion
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_file import altered_files, unsound_rows
from fsmer.plugins import METHODS, outside_origin
from fsmer.reporting.statistics import seed_summary

__all__ = ["Claim", "audit_predictions", "audit_report", "read_claims"]

ORACLE_WORDS = "These figures are ORACLE: something was chosen by looking at the test side"


@dataclass(frozen=True)
class Claim:
    """A stated figure as a fraction, and by how much rounding may have changed it."""

    value: float
    tolerance: float
    text: str


def audit_report(folder: Path, claimed: Mapping[str, Claim]) -> Audit:
    """Audit a folder that `fsmer.evaluate` wrote."""
    # As it is: what is wrong with the tables is what is looked for.
    report = Report.load(folder, check=False)
    out = Findings()
    table = report.predictions
    if table.empty:
        raise DataError(f"{folder} holds a report without any prediction; evaluate again.")
    pooled = report.averaging == "pooled"
    strange = sorted({*table["label"], *table["predicted"]} - set(report.classes))
    if strange:
        raise DataError(
            f"the predictions in {folder} name {', '.join(map(repr, strange))}, which the report does not list as a "
            "class; the files are of two runs, evaluate again."
        )
    out.looked_at("the checksums of the files")
    altered = altered_files(folder)
    if altered:
        out.add("altered-file", "serious", f"{either(altered)} changed after the run wrote it", altered)
    _check_selection(report, out)
    _check_isolation(report, out)
    _check_same_answers(table, out, pooled)
    check_identities(table, out)
    _check_completeness(report, out)
    _check_classes(table, report.classes, out, pooled)
    _check_probabilities(report, out)
    _check_protocol(report, out)
    figures = _recomputed(table, report.classes) if pooled else {}
    kind = report.protocol["settings"].get("kind")
    if pooled and kind in ("loso", "cde"):
        _check_spread_people(table, out)
    elif pooled:
        out.unchecked.append(
            f"which clips each fold learnt from: a report of a {kind} protocol lists only those that it judged"
        )
    own = {name: one.mean for name, one in seed_summary(report).items()}
    _check_figures(report, own, figures, out)
    _check_claims(claimed, figures or {name: {"mean over episodes": own[name]} for name in own}, out)
    leftovers = sorted(path.name for path in folder.glob(".parts-*"))
    if leftovers:
        message = "Beside the report lie parts of a run that did not finish, which the report does not count"
        out.add("unfinished-run", "note", message, leftovers)
    out.unchecked.append("the media, since a results folder holds none: audit the folder of clips too")
    counts = counts_of(table)
    counts |= {"folds" if pooled else "episodes": table["episode"].nunique(), "predictions": len(table)}
    counts |= {"seeds": table["seed"].nunique()} if "seed" in table else {}
    return out.result(folder, "report", counts, figures)


def audit_predictions(path: Path, given: Table, claimed: Mapping[str, Claim]) -> Audit:
    """Audit a table of predictions from elsewhere."""
    out = Findings()
    table = given.frame
    if "label" not in table:
        raise DataError(f"{path} has predictions but no column with the true labels; add one called label.")
    if "side" in table:
        judged = table["side"] == "test"
        if not judged.any():
            raise DataError(f"{path} has predictions, but none on the test side; give those of the test side.")
        table = table[judged].reset_index(drop=True)
    table = table.assign(dataset=table.get("dataset", ""), episode=table.get("fold", "0"))
    classes = tuple(sorted({*table["label"], *table["predicted"]}))
    if "oracle" in table:
        out.looked_at("whether a column says ORACLE")
        if table["oracle"].str.lower().isin(("true", "1")).any():
            out.add("oracle", "serious", f"{ORACLE_WORDS}, as their own column says")
    else:
        out.unchecked.append("what was chosen on the test side, of which a table of predictions does not tell")
    _check_same_answers(table, out, pooled=True)
    check_identities(table, out)
    several = table["episode"].nunique() > 1
    if several and "subject" in table:
        _check_spread_people(table, out)
    _check_classes(table, classes, out, pooled=several)
    figures = _recomputed(table, classes)
    _check_claims(claimed, figures, out)
    if not claimed:
        out.unchecked.append("which way a published figure was averaged, since none was stated (stated=, --stated)")
    folds = {"folds": table["episode"].nunique()} if several else {}
    counts = counts_of(table) | {"predictions": len(table)} | folds
    return out.result(path, "predictions", counts, figures)


def _check_selection(report: Report, out: Findings) -> None:
    out.looked_at("what was chosen on the test side")
    if not report.oracle:
        return
    gap = ""
    if report.honest is not None:
        gap = f": UF1 {report.uf1:.4f} against {report.honest['uf1']:.4f} of the same run with nothing chosen there"
    out.add("oracle", "serious", f"{ORACLE_WORDS}{gap}")


def _check_isolation(report: Report, out: Findings) -> None:
    out.looked_at("whether code from outside could remember one fold in the next")
    outside = report.run.get("from_outside")
    if outside is None:
        # A report that does not tell: a method that fsmer does not have under that name comes from outside.
        name = report.method["name"]
        own = name in METHODS and not outside_origin(METHODS, METHODS[name])
        outside = [] if own else [f"the method {name!r}"]
    if report.method.get("batched"):
        message = (
            "A method from outside fsmer declares that its episodes may be solved together (batched), and is trusted: "
            "what it keeps of one episode could answer another; evaluate without the declaration to exclude that"
        )
        out.add("not-isolated", "note", message, [f"the method {report.method['name']!r}"])
    elif outside and report.isolation == "none":
        message = (
            "Code from outside fsmer was fitted and asked without isolation, so what it remembers of the labels of one "
            "fold could answer the next; evaluate with isolate='process' (--isolate process) to exclude that"
        )
        out.add("not-isolated", "note", message, outside)


def _check_same_answers(table: pd.DataFrame, out: Findings, pooled: bool) -> None:
    out.looked_at("predictions given twice")
    keys = [name for name in ("seed", "episode", "dataset", "clip") if name in table]
    twice = table.loc[table.duplicated(keys, keep=False)].drop_duplicates(keys)["clip"]
    rest = "answered more than once in the same fold, and counted as often"
    out.each("duplicated-prediction", "serious", twice, "clip is", "clips are", rest)
    if pooled:
        once = table.drop_duplicates(keys)
        keys.remove("episode")
        spread = once.loc[once.duplicated(keys, keep=False)].drop_duplicates(keys)["clip"]
        rest = "judged in more than one fold, though folds that are pooled must divide the clips"
        out.each("judged-in-two-folds", "serious", spread, "clip is", "clips are", rest)


def _check_completeness(report: Report, out: Findings) -> None:
    out.looked_at("missing folds and predictions")
    table, counts = report.predictions, report.counts
    seeds = list(table.groupby("seed")) if "seed" in table else [(None, table)]
    told = {entry["seed"] for entry in report.per_seed}
    if "seed" in table and told != set(table["seed"]):
        gone = sorted(told ^ set(table["seed"]))
        out.add("missing-seed", "serious", "The report and its predictions name other seeds", gone)
    rows, wanted = len(report.episodes), counts["episodes"] * len(told)
    if rows != wanted:
        held = number(rows, "row", "rows")
        message = f"episodes.csv has {held}, but the folds and seeds of the report make {wanted:,}"
        out.add("missing-episode", "serious", message, count=abs(wanted - rows))
    listed = report.episodes[["episode", "name", "clips"]].drop_duplicates("episode")
    asked = listed[listed["clips"] > 0]
    for seed, part in seeds:
        of_seed = "" if seed is None else f" of seed {seed}"
        whole = f"of {len(listed):,} folds{of_seed}"
        gone = asked.loc[~asked["episode"].isin(part["episode"].unique()), "name"]
        out.each("missing-fold", "serious", gone, f"{whole} has", f"{whole} have", "no prediction")
        expected = part["episode"].value_counts()
        short = [
            f"{name}: {expected[episode]} of {clips}"
            for episode, name, clips in asked.itertuples(index=False)
            if episode in expected.index and expected[episode] != clips
        ]
        rest = "another number of predictions than the run gave"
        out.each("missing-prediction", "serious", short, f"{whole} has", f"{whole} have", rest)
    empty = listed[listed["clips"] <= 0]
    out.each("empty-fold", "warning", empty["name"], "fold judges", "folds judge", "no clip")
    clips = len(table.drop_duplicates(["dataset", "clip"]))
    if clips != counts["clips"]:
        told_of = number(counts["clips"], "clip", "clips")
        message = f"The report tells of {told_of}, but predictions are there of {clips:,}"
        out.add("missing-clip", "serious", message, count=abs(clips - counts["clips"]))


def _check_classes(table: pd.DataFrame, classes: Sequence[str], out: Findings, pooled: bool) -> None:
    out.looked_at("classes that nobody shows or learns")
    held = set(table["label"])
    absent = [name for name in classes if name not in held]
    if absent:
        whose = "its" if len(absent) == 1 else "their"
        message = f"No judged clip is {either(absent)}, so {whose} F1 and recall count as 0 in UF1 and UAR"
        out.add("class-absent", "warning", message, absent)
    if not pooled:
        return
    once = table.drop_duplicates(["episode", "dataset", "clip"])
    total = once["label"].value_counts()
    here = once.groupby(["episode", "label"]).size()
    lacking = [(fold, label) for (fold, label), count in here.items() if count == total[label]]
    if lacking and once["episode"].nunique() > 1:
        where = number(len({fold for fold, _ in lacking}), "fold", "folds")
        message = f"In {where} all clips of a class are on the test side, so nothing could teach it"
        out.add("class-not-taught", "warning", message, (f"{label!r} in fold {fold}" for fold, label in lacking))


def _check_probabilities(report: Report, out: Findings) -> None:
    columns = [f"p_{name}" for name in report.classes]
    if any(name not in report.predictions for name in columns):
        return
    out.looked_at("answers against their probabilities")
    unsound = report.predictions.loc[unsound_rows(report), "clip"]
    rest = "probabilities that are not from 0 to 1 with the sum 1"
    out.each("no-probability", "serious", unsound, "answer has", "answers have", rest)
    values = report.predictions[columns].to_numpy(dtype=np.float64)
    code = {name: place for place, name in enumerate(report.classes)}
    given = report.predictions["predicted"].map(code).to_numpy(dtype=np.int64)
    likeliest = np.nanmax(np.where(np.isnan(values).all(axis=1, keepdims=True), 0.0, values), axis=1)
    # Probabilities are written with six digits, so those of ties may differ in the last.
    wrong = ~(values[np.arange(len(values)), given] >= likeliest - 2e-6)
    rest = "not the class with the highest probability; the table was changed"
    clips = report.predictions.loc[wrong, "clip"]
    out.each("answer-against-probability", "serious", clips, "answer is", "answers are", rest)


def _check_protocol(report: Report, out: Findings) -> None:
    out.looked_at("the protocol's hash")
    settings = report.protocol["settings"]
    try:
        now = Protocol.from_dict(settings).hash
    except FsmerError as error:
        out.add("protocol-unknown", "warning", f"This version cannot make the report's protocol again: {error}")
        return
    if now != report.protocol["hash"]:
        message = f"The report's protocol has the hash {report.protocol['hash']}, but its settings give {now} today: "
        message += "they, a label scheme or the version changed since the run"
        out.add("protocol-changed", "warning", message)
    if settings.get("kind") in ("kshot", "source_target") and not settings["params"].get("subject_disjoint"):
        message = "Support and query clips of an episode may show the same person (subject_disjoint is off), so the "
        message += "figures are for people of whom some clips are known"
        out.add("support-and-query-share-people", "warning", message)
    if settings.get("kind") != "holdout":
        return
    judged = sorted(report.predictions["dataset"].unique())
    smic = {"smic", "smic-vis", "smic-nir"}
    parts = [
        {canonical_dataset(str(name)) for name in settings["params"].get(side) or judged} & smic
        for side in ("train", "test")
    ]
    if all(parts) and len(parts[0] | parts[1]) > 1:
        message = "The parts of SMIC show the same people, so people of the test side were learnt from, as the CDMER "
        message += "benchmark has it"
        words = f"{'+'.join(sorted(parts[0]))} and {'+'.join(sorted(parts[1]))}"
        out.add("subject-on-both-sides", "warning", message, [words])


def _check_spread_people(table: pd.DataFrame, out: Findings) -> None:
    """A subject that is judged in two folds is learnt from in both."""
    out.looked_at("subjects on both sides of a fold")
    folds = table.groupby(["dataset", "subject"], sort=True)["episode"].nunique()
    both = [f"{name}{of_dataset(dataset)} in {count} folds" for (dataset, name), count in folds.items() if count > 1]
    whole = f"of {len(folds):,} subjects"
    rest = "judged in more than one fold, with other clips of the same person on the training side"
    out.each("subject-on-both-sides", "serious", both, f"{whole} is", f"{whole} are", rest)


def _recomputed(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """UF1, UAR and accuracy in the ways that papers compute them; with several seeds their mean."""
    parts = [part for _, part in table.groupby("seed")] if "seed" in table else [table]
    each = [_ways(part, classes) for part in parts]
    return {
        metric: {
            way: float(np.mean([one[metric][way] for one in each]))
            for way in ways
            # A seed that lost all folds but one has no mean over folds.
            if all(way in one[metric] for one in each)
        }
        for metric, ways in each[0].items()
    }


def _ways(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    code = {name: place for place, name in enumerate(classes)}
    truth, answer = (table[name].map(code).to_numpy(dtype=np.int64) for name in ("label", "predicted"))
    folds, fold = np.unique(table["episode"].to_numpy(), return_inverse=True)
    by_fold = confusion_matrix(truth, answer, len(classes), groups=fold, n_groups=len(folds))
    pooled, single = score_confusion(by_fold.sum(axis=0)), score_confusion(by_fold)
    of_class = by_fold.sum(axis=0).sum(axis=1)
    weights = of_class / of_class.sum()
    ways = {
        "uf1": {"pooled": float(pooled.uf1), "pooled, classes weighted by size": float(pooled.f1 @ weights)},
        "uar": {"pooled": float(pooled.uar)},
        "acc": {"pooled": float(pooled.acc)},
    }
    if len(folds) > 1:
        for name, found in ways.items():
            found["mean over folds"] = float(getattr(single, name).mean())
        # scikit-learn's f1_score(average="macro") of a fold knows the classes of that fold alone.
        true = by_fold.any(axis=2)
        shown = by_fold.any(axis=1) | true
        own = "mean over folds, each over its own classes"
        ways["uf1"][own] = float(((single.f1 * shown).sum(axis=1) / shown.sum(axis=1)).mean())
        ways["uar"][own] = float(((single.recall * true).sum(axis=1) / true.sum(axis=1)).mean())
    return ways


def _check_figures(
    report: Report, own: Mapping[str, float], figures: Mapping[str, Mapping[str, float]], out: Findings
) -> None:
    out.looked_at("the figures against the predictions")
    names = report.classes
    found = report.predictions.groupby(["label", "predicted"]).size().unstack(fill_value=0)
    if not np.array_equal(found.reindex(index=names, columns=names, fill_value=0), report.confusion):
        out.add("figure-not-from-predictions", "serious", "The confusion matrix does not count the predictions")
    for metric in METRICS:
        written, right = float(report.figures[metric]), own[metric]
        if abs(written - right) <= 1e-6:
            continue
        check, says = "figure-not-from-predictions", f"is {written:.4f}, but its predictions give {right:.4f}"
        for way, value in figures.get(metric, {}).items():
            if way != "pooled" and abs(written - value) <= 1e-6:
                check = "averaged-over-folds"
                says = f"{written:.4f} is the {way}, not the figure of the pooled predictions, which is {right:.4f}"
                break
        out.add(check, "serious", f"The report's {metric} {says}")


def read_claims(stated: Mapping[str, float]) -> dict[str, Claim]:
    """Stated figures by metric; `DataError` for what is none."""
    claims = {}
    for name, given in stated.items():
        metric = str(name).lower()
        if metric not in ("uf1", "uar", "acc"):
            raise DataError(f"the stated figure {name!r} is not known; state uf1, uar or acc.")
        text = str(given).strip().rstrip("%")
        try:
            value = float(text)
        except ValueError as error:
            raise DataError(f"the stated {metric} {given!r} is no number; write it as 0.86 or 86.") from error
        if not 0 <= value <= 100:
            raise DataError(f"the stated {metric} {given!r} is out of range; write it as 0.86 or 86.")
        digits = len(text.partition(".")[2])
        scale = 100 if value > 1 else 1
        claims[metric] = Claim(value / scale, 0.500001 * 10.0**-digits / scale, str(given))
    return claims


def _check_claims(claimed: Mapping[str, Claim], figures: Mapping[str, Mapping[str, float]], out: Findings) -> None:
    for metric, claim in claimed.items():
        out.looked_at(f"the stated {metric}")
        ways = figures[metric]
        way, right = next(iter(ways.items()))
        fits = [name for name, value in ways.items() if abs(value - claim.value) <= claim.tolerance]
        stated = f"The stated {metric} {claim.text}"
        if way in fits:
            out.add("stated-figure", "note", f"{stated} is the {way} figure of these predictions")
        elif fits:
            check = "averaged-over-folds" if "folds" in fits[0] else "averaged-otherwise"
            message = f"{stated} is, to its digits, the figure {either(fits)}; {way} it is {right:.4f}"
            out.add(check, "serious", message)
        else:
            message = f"{stated} follows from these predictions in no known way; {way} it is {right:.4f}"
            known = (f"{value:.4f} {name}" for name, value in ways.items())
            out.add("figure-not-from-predictions", "serious", message, known)

"""What came out of an evaluation: figures with intervals, predictions by clip id and everything needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from fsmer.errors import DataError
from fsmer.evaluation.metrics import (
    METRICS,
    Scores,
    bootstrap_interval,
    confusion_matrix,
    mean_interval,
    score_confusion,
)
from fsmer.evaluation.predictions import (
    EPISODES_FILE,
    MARKDOWN_FILE,
    PICTURE_FILE,
    PREDICTIONS_FILE,
    REMEDY,
    REPORT_FILE,
    RUN_FILE,
    Predictions,
    Seed,
    _digest,
    run_of,
)
from fsmer.evaluation.run_folder import unfinished_words
from fsmer.io import (
    CHECKSUM,
    atomic_path,
    check_regular,
    check_writable,
    file_digest,
    json_digest,
    json_text,
    read_bytes,
    write_json,
    write_text,
)
from fsmer.probabilities import unsound_answers
from fsmer.schema import Count, Fraction, Names, checked
from fsmer.text import markdown, read_cells, write_csv
from fsmer.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from fsmer.backbones import Backbone
    from fsmer.data import ClipSet

__all__ = [
    "Report",
    "altered_files",
]

# 2: several seeds, selection, notes.
FORMAT_VERSION = 2

# On everything that was chosen by looking at the test clips.
ORACLE = "ORACLE"
TITLES = {"uf1": "UF1", "uar": "UAR", "acc": "Acc", "acc_merau": "Acc (MERAU eq. 14)"}
# The packages whose versions can change a figure.
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas")

FIGURES = (*METRICS, *(f"{name}_interval" for name in METRICS))

Figures = dict[str, Any]

# -- the files -------------------------------------------------------------------------------------------------------

Interval = tuple[float, float] | None


class _Scores(TypedDict):
    uf1: Fraction
    uar: Fraction
    acc: Fraction
    acc_merau: Fraction
    oracle: NotRequired[bool]


class _Intervals(_Scores):
    uf1_interval: Interval
    uar_interval: Interval
    acc_interval: Interval
    acc_merau_interval: Interval


class _OfDataset(_Intervals):
    clips: Count
    subjects: Count


class _OfClass(TypedDict):
    f1: Fraction
    recall: Fraction
    precision: Fraction
    clips: Count
    oracle: NotRequired[bool]


class _OfSeed(_Scores):
    seed: Seed


class _Settings(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    params: dict[str, Any]
    kind: NotRequired[str]


class _Protocol(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    title: str
    hash: str
    settings: _Settings


class _Model(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    weights_hash: str
    input_specs: NotRequired[list[dict[str, Any]]]


class _Method(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    params: dict[str, Any]


class _Selection(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    rule: Literal["fixed", "nested", "oracle"]
    by: NotRequired[str]
    chosen: NotRequired[list[dict[str, Any]]]


class _Counts(TypedDict):
    clips: Count
    subjects: Count
    episodes: Count
    predictions: Count


class _ReportFile(_Intervals):
    """What ``report.json`` holds."""

    format_version: Annotated[int, Ge(1), Le(FORMAT_VERSION)]
    averaging: Literal["pooled", "episodes"]
    per_dataset: dict[str, _OfDataset]
    per_class: dict[str, _OfClass]
    classes: Annotated[Names, Len(1)]
    confusion: list[list[Count]]
    protocol: _Protocol
    model: _Model
    method: _Method
    counts: _Counts
    seed: Seed
    versions: dict[str, str]
    # Format 1 had one seed and chose nothing.
    per_seed: NotRequired[Annotated[list[_OfSeed], Len(1)]]
    selection: NotRequired[_Selection]
    honest: NotRequired[_Intervals]
    notes: NotRequired[list[str]]
    preprocessing: NotRequired[dict[str, list[str]]]
    # Earlier versions told of it in run.json alone.
    isolation: NotRequired[Literal["none", "process"]]
    # Digests of the tables; earlier versions wrote none.
    files: NotRequired[dict[str, str]]


# Columns of the tables and how they are read: text as it stands, so that subject "006" stays what it is and a clip
# named "NA" is no missing value. Those of probabilities are named after the classes.
COLUMNS: dict[str, dict[str, Any]] = {
    PREDICTIONS_FILE: {"episode": np.int64, **dict.fromkeys(("clip", "dataset", "subject", "label", "predicted"), str)},
    EPISODES_FILE: {"episode": np.int64, "name": str, "clips": np.int64, **dict.fromkeys(METRICS, np.float64)},
}
MORE_COLUMNS: dict[str, Any] = {"seed": np.uint64, "oracle": bool}


@dataclass(frozen=True, eq=False)
class Report:
    """Result of one evaluation: data first, pictures second.

    Attributes
    ----------
    figures : dict
        ``uf1``, ``uar``, ``acc``, ``acc_merau`` and ``<name>_interval``, each (low, high) or ``None`` where nothing
        can be said. `averaging` says what they are. With several seeds they are means over these. Figures that were
        chosen on the test clips have ``oracle`` too, and show it wherever they are shown.
    averaging : {"pooled", "episodes"}
        ``"pooled"``: one figure from the predictions of all folds together, interval by bootstrap over subjects.
        ``"episodes"``: mean over episodes, interval 1.96 standard errors.
    per_dataset : dict
        Data set -> figures of its clips alone, with ``clips`` and ``subjects``.
    per_class : dict
        Class -> ``f1``, ``recall``, ``precision``, ``clips``.
    classes : tuple of str
    confusion : int array of shape (C, C)
        Rows are the truth; counts over all episodes and seeds.
    predictions : DataFrame
        ``episode, clip, dataset, subject, label, predicted, p_<class> ...``, one row a query clip and episode. With
        several seeds ``seed`` comes first, and every seed has its rows.
    episodes : DataFrame
        ``episode, name, clips, uf1, uar, acc, acc_merau``, one row an episode; ``seed`` first as above.
    protocol, model, method : dict
        Name, title, content hash and settings; name, weights hash and input; name and parameters.
    counts : dict
        ``clips`` (distinct clips judged), ``subjects``, ``episodes``, ``predictions``.
    seed : int
        Of the episodes and the bootstrap.
    versions : dict
        Versions of the packages that can change a figure.
    per_seed : list of dict
        ``seed`` (of the method) with its ``uf1``, ``uar``, ``acc``, ``acc_merau``; one entry even for one seed.
    selection : dict
        How epochs and parameters were chosen: ``rule`` (``"fixed"``, ``"nested"`` or ``"oracle"``) and, where something
        was chosen, ``by``, ``candidates`` and ``chosen`` for each seed and episode.
    honest : dict or None
        Of an oracle report, the figures that the method's own values give in the same run.
    notes : tuple of str
        What a reader of the figures should know, a sentence each.
    preprocessing : dict
        Data set -> hashes of the recipes that its judged clips were prepared with (see
        `fsmer.preprocess.PreprocessRecipe`); data sets whose clips state none are not in it.
    isolation : {"none", "process"}
        Whether every fold had a process of its own, see ``docs/honesty.md``.
    run : dict
        How and when an evaluation made it: ``call``, ``started`` (UTC), ``seconds``, ``machine``, ``isolation`` and
        ``from_outside`` (method and backbone whose code is not that of fsmer); where it was given a folder also
        ``resumed`` (episodes that an earlier start had finished), ``seeds`` and ``identity``, the hashes and settings
        of all that the answers depend on. Kept in ``run.json``, so that ``report.json`` is the same whenever it is
        made.
    folder : Path or None
        Where it was read from; ``None`` for a report that was just made.
    """

    figures: Figures
    averaging: str
    per_dataset: dict[str, Figures]
    per_class: dict[str, Figures]
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    predictions: pd.DataFrame = field(repr=False)
    episodes: pd.DataFrame = field(repr=False)
    protocol: Mapping[str, Any]
    model: Mapping[str, Any]
    method: Mapping[str, Any]
    counts: Mapping[str, int]
    seed: int
    versions: Mapping[str, str]
    per_seed: list[dict[str, Any]] = field(default_factory=list)
    selection: Mapping[str, Any] = field(default_factory=lambda: {"rule": "fixed"})
    honest: Figures | None = None
    notes: tuple[str, ...] = ()
    preprocessing: Mapping[str, list[str]] = field(default_factory=dict)
    isolation: str = "none"
    run: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def from_predictions(
        cls,
        clips: ClipSet,
        predictions: Predictions | Mapping[int, Predictions],
        *,
        codes: NDArray[np.int64],
        classes: Sequence[str],
        names: Sequence[str],
        among: NDArray[np.bool_] | None,
        averaging: str,
        seed: int,
        protocol: Mapping[str, Any],
        model: Mapping[str, Any],
        method: Mapping[str, Any],
        selection: Mapping[str, Any] | None = None,
        honest: Figures | None = None,
        notes: Sequence[str] = (),
    ) -> Report:
        """Compute all figures.

        Parameters
        ----------
        clips : ClipSet
            What `predictions` point into.
        predictions : Predictions, or mapping of seed to Predictions
            Several seeds answer the same questions, each in the same order.
        codes : int64 array of shape (N,)
            Class of every clip as an index into `classes`; only those of judged clips are read.
        classes : sequence of str
        names : sequence of str
            Name of each episode.
        among : bool array of shape (E, C) or None
            The classes that each episode is about; ``None``: all.
        averaging : {"pooled", "episodes"}
        seed : int
            Also seeds the bootstrap.
        protocol, model, method, selection, honest, notes
            See the attributes.
        """
        own = int(method["params"].get("seed", 0))
        runs = {own: predictions} if isinstance(predictions, Predictions) else dict(predictions)
        selection = dict(selection or {"rule": "fixed"})
        some = next(iter(runs.values()))
        rows, n_classes, n_episodes = some.clip, len(classes), len(names)
        truth = codes[rows]
        datasets, people = clips.dataset_codes(), clips.subject_codes()
        judged = np.zeros(len(clips), dtype=bool)
        judged[rows] = True
        stamp = {"oracle": True} if selection["rule"] == "oracle" else {}

        def figures(chosen: NDArray[np.bool_] | None) -> tuple[Figures, list[Scores], NDArray[np.int64]]:
            """Figures, the scores behind them seed by seed (an axis over episodes first, or none), and the counts."""

            def part(values: NDArray[Any]) -> NDArray[Any]:
                return values if chosen is None else values[chosen]

            def counted(said: Predictions, groups: NDArray[Any], n_groups: int) -> NDArray[np.int64]:
                found: NDArray[np.int64] = confusion_matrix(
                    part(truth), part(said.predicted), n_classes, groups=part(groups), n_groups=n_groups
                )
                return found

            by_episode = np.stack([counted(said, some.episode, n_episodes) for said in runs.values()])
            total = by_episode.sum(axis=(0, 1))
            if averaging == "episodes":
                # An episode without any query of a data set says nothing about it.
                asked = by_episode[0].any(axis=(1, 2))
                scores = [score_confusion(one[asked], None if among is None else among[asked]) for one in by_episode]
                # Episodes are what is drawn; the seeds of one are averaged before.
                each = {name: np.mean([getattr(one, name) for one in scores], axis=0) for name in METRICS}
                values: Figures = {name: float(each[name].mean()) for name in METRICS}
                values |= {f"{name}_interval": mean_interval(each[name]) for name in METRICS}
                return values | stamp, scores, total
            scores = [score_confusion(one.sum(axis=0)) for one in by_episode]
            values = {name: float(np.mean([getattr(one, name) for one in scores])) for name in METRICS}
            subject_names, subjects = np.unique(people[rows], return_inverse=True)
            by_subject = np.stack([counted(said, subjects, len(subject_names)) for said in runs.values()])
            there = by_subject.any(axis=(0, 2, 3))
            intervals = bootstrap_interval(by_subject[:, there], seed=seed)
            return values | {f"{name}_interval": intervals[name] for name in METRICS} | stamp, scores, total

        whole, scores, total = figures(None)
        per_seed = [
            {"seed": number} | {name: float(np.mean(getattr(one, name))) for name in METRICS} | stamp
            for number, one in zip(runs, scores, strict=True)
        ]
        per_dataset = {}
        for number, dataset in enumerate(clips.dataset_names):
            here = judged & (datasets == number)
            if here.any():
                values, _, _ = figures(datasets[rows] == number)
                per_dataset[dataset] = values | {"clips": int(here.sum()), "subjects": len(np.unique(people[here]))}
        per_class = {}
        for code, name in enumerate(classes):
            shown = {}
            for key in ("f1", "recall", "precision"):
                by_class = [getattr(one, key)[..., code] for one in scores]
                if averaging == "episodes" and among is not None:
                    by_class = [values[among[:, code]] for values in by_class]
                shown[key] = float(np.mean(by_class)) if np.size(by_class) else 0.0
            per_class[name] = shown | {"clips": int((judged & (codes == code)).sum())} | stamp
        return cls(
            figures=whole,
            averaging=averaging,
            per_dataset=per_dataset,
            per_class=per_class,
            classes=tuple(classes),
            confusion=total,
            predictions=_by_seed(
                {n: _predictions_table(clips, said, classes, truth).assign(**stamp) for n, said in runs.items()}
            ),
            episodes=_by_seed(
                {n: _episodes_table(said, truth, names, among, n_classes).assign(**stamp) for n, said in runs.items()}
            ),
            protocol=dict(protocol),
            model=dict(model),
            method=dict(method),
            counts={
                "clips": int(judged.sum()),
                "subjects": len(np.unique(people[judged])),
                "episodes": n_episodes,
                "predictions": sum(map(len, runs.values())),
            },
            seed=seed,
            versions=_versions(),
            per_seed=per_seed,
            selection=selection,
            honest=honest,
            notes=tuple(notes),
            preprocessing=_recipes(clips, judged),
        )

    @property
    def uf1(self) -> float:
        """Unweighted F1."""
        return float(self.figures["uf1"])

    @property
    def uar(self) -> float:
        """Unweighted average recall."""
        return float(self.figures["uar"])

    @property
    def acc(self) -> float:
        """Share of clips classified rightly."""
        return float(self.figures["acc"])

    def interval(self, name: str) -> tuple[float, float] | None:
        """95 % interval of ``"uf1"``, ``"uar"``, ``"acc"`` or ``"acc_merau"``; ``None`` where nothing can be said."""
        bounds = self.figures[f"{name}_interval"]
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    @property
    def oracle(self) -> bool:
        """Whether something was chosen on the test clips, so that the figures estimate nothing."""
        return self.selection["rule"] == "oracle"

    @property
    def gap(self) -> dict[str, float] | None:
        """Of an oracle report, how far its figures lie above the honest ones of the same run."""
        if self.honest is None:
            return None
        return {name: float(self.figures[name]) - float(self.honest[name]) for name in METRICS}

    @property
    def title(self) -> str:
        """Method, protocol and the parameters that it was run with."""
        stamp = f"{ORACLE}, chosen on the test clips: " if self.oracle else ""
        params = self.protocol["settings"]["params"]
        # As many episodes as there were: without labels there is one, whatever the protocol's own number.
        shown = params | ({"episodes": self.counts["episodes"]} if "episodes" in params else {})
        given = ", ".join(
            f"{key} {_words(value)}" for key, value in shown.items() if value is not None and value is not False
        )
        return f"{stamp}{self.method['name']} on {self.protocol['title']}" + (f" ({given})" if given else "")

    @property
    def how(self) -> str:
        """One sentence: what the figures and intervals are."""
        counts = self.counts
        seeds = f"mean over {len(self.per_seed)} seeds " if len(self.per_seed) > 1 else ""
        stamp = f"; {ORACLE}: parameters chosen on the test clips, no estimate of anything" if self.oracle else ""
        if self.averaging == "episodes":
            over = f"mean over {'seeds and ' if seeds else ''}{counts['episodes']:,} episodes"
            return f"{over}; interval: 95 % of that mean (1.96 standard errors){stamp}"
        folds = f"{counts['episodes']:,} folds" if counts["episodes"] > 1 else "one episode"
        sure = (
            f"95 % by bootstrap over {counts['subjects']:,} subjects"
            if counts["subjects"] > 1
            else "none, since all clips are of one subject"
        )
        return f"{seeds}from the predictions of {folds} pooled; interval: {sure}{stamp}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tables as plain values for JSON."""
        return {
            "format": "fsmer-report",
            "format_version": FORMAT_VERSION,
            **_plain(self.figures),
            "averaging": self.averaging,
            "how": self.how,
            "per_dataset": _plain(self.per_dataset),
            "per_class": _plain(self.per_class),
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "protocol": _plain(self.protocol),
            "model": _plain(self.model),
            "method": _plain(self.method),
            "counts": dict(self.counts),
            "seed": self.seed,
            "per_seed": _plain(self.per_seed),
            "selection": _plain(self.selection),
            **({} if self.honest is None else {"honest": _plain(self.honest), "gap": self.gap}),
            "notes": list(self.notes),
            "isolation": self.isolation,
            **({"preprocessing": _plain(self.preprocessing)} if self.preprocessing else {}),
            "versions": dict(self.versions),
        }

    def markdown(self) -> str:
        """The report as a Markdown page."""
        stamp = f"{ORACLE} " if self.oracle else ""
        lines = [
            f"# {markdown(self.title)}",
            "",
            f"Model {markdown(self.model['name'])}, {self.counts['clips']:,} clips of "
            f"{self.counts['subjects']:,} subjects; {self.how}.",
            "",
            "| | clips | UF1 | UAR | Acc |",
            "|---|---|---|---|---|",
        ]
        parts: dict[str, Figures] = {"all": self.figures | {"clips": self.counts["clips"]}}
        if len(self.per_dataset) > 1:
            parts |= self.per_dataset
        for name, figures in parts.items():
            cells = " | ".join(show_figure(figures, metric) for metric in ("uf1", "uar", "acc"))
            lines.append(f"| {markdown(name)} | {figures['clips']:,} | {cells} |")
        if self.honest is not None:
            honest, gap = self.honest, self.gap or {}
            cells = " | ".join(show_figure(honest, metric) for metric in ("uf1", "uar", "acc"))
            lines.append(f"| honest, in the same run | {self.counts['clips']:,} | {cells} |")
            cells = " | ".join(f"{gap[metric]:+.4f}" for metric in ("uf1", "uar", "acc"))
            lines.append(f"| gap | | {cells} |")
        if len(self.per_seed) > 1:
            lines += ["", "| seed | UF1 | UAR | Acc |", "|---|---|---|---|"]
            for row in self.per_seed:
                cells = " | ".join(f"{stamp}{row[metric]:.4f}" for metric in ("uf1", "uar", "acc"))
                lines.append(f"| {row['seed']} | {cells} |")
        keys = ("f1", "recall", "precision")
        lines += ["", f"| class | clips | {stamp}F1 | {stamp}recall | {stamp}precision |", "|---|---|---|---|---|"]
        lines += [
            f"| {markdown(name)} | {row['clips']:,} | " + " | ".join(f"{stamp}{row[key]:.4f}" for key in keys) + " |"
            for name, row in self.per_class.items()
        ]
        lines += ["", f"{stamp}Confusion (rows: truth, columns: prediction):", ""]
        lines.append(f"| | {' | '.join(map(markdown, self.classes))} |")
        lines.append("|---" * (len(self.classes) + 1) + "|")
        for name, counts in zip(self.classes, self.confusion.tolist(), strict=True):
            lines.append(f"| {markdown(name)} | {' | '.join(f'{count:,}' for count in counts)} |")
        settings = {
            "protocol": f"{self.protocol['name']} ({self.protocol['hash']})",
            "weights": f"{self.model['name']} ({self.model['weights_hash']})",
            "method": f"{self.method['name']} {json.dumps(_plain(self.method['params']))}",
            "seed": self.seed,
            "selection": self.selection["rule"],
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        }
        if self.preprocessing:
            settings["preprocessing"] = ", ".join(
                f"{name} recipe {' and '.join(hashes)}" for name, hashes in self.preprocessing.items()
            )
        lines += [""] if self.notes else []
        lines += [f"Note: {markdown(note)}" for note in self.notes]
        lines += ["", *(f"- {name}: {markdown(str(value))}" for name, value in settings.items()), ""]
        return "\n".join(lines)

    def __str__(self) -> str:
        cells = ", ".join(f"{TITLES[name]} {show_figure(self.figures, name)}" for name in ("uf1", "uar", "acc"))
        stamp = f"{ORACLE} " if self.oracle else ""
        return f"{stamp}{self.method['name']} on {self.protocol['name']}: {cells} ({self.how})"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.md``, ``predictions.csv``, ``episodes.csv`` and ``confusion.png``.

        Every file is whole or not there; ``report.json`` comes last, so where it is, the others are too. Beside them
        lies ``run.json`` where the report knows how it was made. In the tables, text that a spreadsheet would take for
        a formula has an apostrophe in front, which `load` takes away.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        from fsmer.drawing import confusion_figure, save_figure

        target = Path(folder)
        check_writable(target)
        for name, table in ((PREDICTIONS_FILE, self.predictions), (EPISODES_FILE, self.episodes)):
            with atomic_path(target / name) as temporary:
                write_csv(table, temporary)
        save_figure(confusion_figure(self.confusion, self.classes, title=self.title), target / PICTURE_FILE)
        write_text(target / MARKDOWN_FILE, self.markdown())
        files = {name: file_digest(target / name) for name in COLUMNS}
        text = json_text({**self.to_dict(), "files": files}, sealed=True)
        if self.run:
            # Names the report that it is about, so that one saved over it is not taken for it.
            write_json(target / RUN_FILE, {**_plain(self.run), "report": _digest(text)}, sealed=True)
        write_text(target / REPORT_FILE, text)
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, check: bool = True) -> Report:
        """Read what `save` wrote.

        Parameters
        ----------
        folder : path
        check : bool
            Whether to refuse what was altered after it was written, tables that the figures do not follow from, and
            probabilities that are none. Otherwise they are read as they are, for whoever looks for what is wrong with
            them (see `fsmer.audit`).

        Raises
        ------
        DataError
            The folder holds no report, an unfinished run, a broken report or one of a newer version.
        """
        path = Path(folder) / REPORT_FILE
        try:
            held = _content(path)
            version = held.get("format_version")
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise DataError(
                    f"{path} was written by a newer fsmer (report format {version}, this version reads up to "
                    f"{FORMAT_VERSION}); upgrade fsmer."
                )
            values: Any = checked(held, _ReportFile, path, what="a report", remedy=REMEDY)
            own = values["method"]["params"].get("seed")
            alone = {"seed": own if isinstance(own, int) else 0} | {name: values[name] for name in METRICS}
            values = {"per_seed": [alone], "selection": {"rule": "fixed"}, "notes": [], "preprocessing": {}} | values
            if contradiction := _contradiction(values):
                raise DataError(f"{path} cannot be read as a report ({contradiction}); {REMEDY}.")
            tables = [_read_table(path.with_name(name)) for name in COLUMNS]
        except OSError as error:
            name = Path(error.filename or path).name
            lack = f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
            raise DataError(
                unfinished_words(path.parent)
                or f"{folder} holds no whole report ({lack}); give a folder that an evaluation wrote."
            ) from error
        run = run_of(folder) or {}
        report = cls(
            figures={key: values[key] for key in (*FIGURES, "oracle") if key in values},
            averaging=values["averaging"],
            per_dataset=values["per_dataset"],
            per_class=values["per_class"],
            classes=tuple(values["classes"]),
            confusion=np.array(values["confusion"], dtype=np.int64),
            predictions=tables[0],
            episodes=tables[1],
            protocol=values["protocol"],
            model=values["model"],
            method=values["method"],
            counts=values["counts"],
            seed=values["seed"],
            versions=values["versions"],
            per_seed=values["per_seed"],
            selection=values["selection"],
            honest=values.get("honest"),
            notes=tuple(values["notes"]),
            preprocessing=values["preprocessing"],
            isolation=values.get("isolation", run.get("isolation", "none")),
            run=run,
            folder=path.parent,
        )
        if check:
            altered = [f"{name} was altered after it was written" for name in altered_files(folder) if name != RUN_FILE]
            if flaw := report.unsound or report._flaw() or "".join(altered[:1]):
                raise DataError(
                    f"{folder} holds a report and tables that do not belong together ({flaw}); {REMEDY} to make them "
                    "anew."
                )
        return report

    @property
    def unsound(self) -> str:
        """What of figures and probabilities cannot be one, in words; nothing where all can."""
        for name in METRICS:
            if not np.isfinite([self.figures[name], *(self.interval(name) or ())]).all():
                return f"{TITLES[name]} is no finite number"
        count = int(self.unsound_rows().sum())
        if count:
            return f"the probabilities of {count:,} answers are not from 0 to 1 with the sum 1"
        return ""

    def unsound_rows(self) -> NDArray[np.bool_]:
        """Rows of `predictions` whose probabilities are not from 0 to 1 with the sum 1, or lack the answer's."""
        columns = [f"p_{name}" for name in self.classes]
        if not set(columns) <= set(self.predictions):
            return np.zeros(len(self.predictions), dtype=bool)
        values = self.predictions[columns].to_numpy(dtype=np.float64)
        told = ~np.isnan(values)
        said = self.predictions["predicted"].map({name: code for code, name in enumerate(self.classes)})
        given = said.notna().to_numpy()
        answered = told[np.arange(len(values)), said.fillna(0).to_numpy(dtype=np.int64)]
        unsound: NDArray[np.bool_] = unsound_answers(np.where(told, values, 0.0)) | (given & ~answered)
        return unsound

    def _flaw(self) -> str:
        """Why the figures cannot be those of the tables, such as a table that was cut; nothing where they can."""
        import pandas as pd

        answers, episodes = self.predictions, self.episodes
        known = {"label": self.classes, "predicted": self.classes, "seed": [row["seed"] for row in self.per_seed]}
        for name, table, told in (
            (PREDICTIONS_FILE, answers, int(self.counts["predictions"])),
            (EPISODES_FILE, episodes, int(self.counts["episodes"]) * len(self.per_seed)),
        ):
            if len(table) != told:
                return f"{name} has {len(table):,} rows, but {REPORT_FILE} tells of {told:,}"
            if ("seed" in table) != (len(self.per_seed) > 1):
                return f"{REPORT_FILE} tells of {len(self.per_seed):,} seeds, but {name} of another number"
        keys = [name for name in ("seed", "episode") if name in answers]
        asked = episodes[episodes["clips"] > 0]
        if answers.groupby(keys).size().to_dict() != asked.set_index(keys)["clips"].to_dict():
            return f"{EPISODES_FILE} tells of other numbers of clips than {PREDICTIONS_FILE} has"
        codes = {}
        for name in (name for name in known if name in answers):
            codes[name] = pd.Index(list(known[name])).get_indexer(answers[name])
            if (codes[name] < 0).any():
                return f"{PREDICTIONS_FILE} has a {name} of which {REPORT_FILE} does not tell"
        by_seed = confusion_matrix(
            codes["label"],
            codes["predicted"],
            len(self.classes),
            groups=codes.get("seed", np.zeros(len(answers))),
            n_groups=len(self.per_seed),
        )
        if not np.array_equal(by_seed.sum(axis=0), self.confusion):
            return f"the confusion matrix of {REPORT_FILE} does not count the rows of {PREDICTIONS_FILE}"
        lacking = [f"p_{name}" for name in self.classes if f"p_{name}" not in answers]
        if lacking:
            return f"{PREDICTIONS_FILE} lacks the column {lacking[0]!r}"
        if not episodes["episode"].between(0, self.counts["episodes"] - 1).all():
            return f"{EPISODES_FILE} has an episode of which {REPORT_FILE} does not tell"
        if not ((episodes[list(METRICS)] >= 0) & (episodes[list(METRICS)] <= 1)).all(axis=None):
            return f"{EPISODES_FILE} has a figure that is not from 0 to 1"
        if answers.duplicated([*keys, "dataset", "clip"]).any():
            return f"{PREDICTIONS_FILE} has two answers for one clip of an episode"
        judged = len(answers.drop_duplicates(["dataset", "clip"]))
        if judged != self.counts["clips"]:
            told = self.counts["clips"]
            return f"{PREDICTIONS_FILE} has answers for {judged:,} clips, but {REPORT_FILE} tells of {told:,}"
        scores = score_confusion(by_seed)
        for name in METRICS:
            found = float(np.mean(asked[name] if self.averaging == "episodes" else getattr(scores, name)))
            if not abs(found - self.figures[name]) <= 1e-6:
                return f"{TITLES[name]} is {self.figures[name]:.4f} in {REPORT_FILE}, but {found:.4f} by the tables"
        return ""

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        clips: ClipSet | None = None,
        backbone: Backbone | str | os.PathLike[str] | None = None,
        cache: bool | str | os.PathLike[str] = True,
    ) -> str:
        """The report as one self-contained HTML page; also written to `path` where one is given.

        See `fsmer.reporting.report_page` for what `clips` and `backbone` add and what is refused.
        """
        from fsmer.reporting.html import report_page

        text = report_page(self, clips, backbone, cache=cache)
        if path is not None:
            write_text(path, text)
        return text


def altered_files(folder: str | os.PathLike[str]) -> list[str]:
    """Files of a report that are not as `Report.save` wrote them; those of earlier versions cannot be checked."""
    place, found = Path(folder), []
    files: dict[str, str] = {}
    for name in (REPORT_FILE, RUN_FILE):
        try:
            values = _content(place / name)
        except FileNotFoundError:
            continue
        except (OSError, DataError):
            found.append(name)
            continue
        # Format 1 had no checksums.
        sealed = CHECKSUM in values and values.get("format_version") != 1
        if sealed and values[CHECKSUM] != json_digest(values):
            found.append(name)
        if name == REPORT_FILE:
            files = values.get("files", {})
    return found + [name for name, digest in files.items() if name in COLUMNS and file_digest(place / name) != digest]


def _content(path: Path) -> dict[str, Any]:
    """A JSON table as it stands, altered or not.

    Raises
    ------
    OSError, DataError
        It cannot be read, or is no table.
    """
    from pydantic_core import from_json

    try:
        values = from_json(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a report: it is not valid JSON ({error}); {REMEDY}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} cannot be read as a report: it holds no table; {REMEDY}.")
    return values


def _contradiction(values: Mapping[str, Any]) -> str:
    """Why a report cannot be one, whatever its tables say; nothing where it can."""
    classes, confusion = values["classes"], values["confusion"]
    seeds = [row["seed"] for row in values["per_seed"]]
    if len(set(classes)) < len(classes) or len(set(seeds)) < len(seeds):
        return "a class or a seed stands twice"
    if set(values["per_class"]) != set(classes):
        return f"per_class has {', '.join(values['per_class'])} where the classes are {', '.join(classes)}"
    if {len(confusion), *map(len, confusion)} != {len(classes)}:
        return f"the confusion matrix is not one of {len(classes)} classes"
    return ""


def _read_table(path: Path) -> pd.DataFrame:
    """One of the two tables, each column as `COLUMNS` says and those of probabilities as numbers.

    Raises
    ------
    OSError, DataError
        It cannot be read, lacks a column, or a cell is none of its column.
    """
    import pandas as pd

    check_regular(path)
    try:
        header = pd.read_csv(path, nrows=0).columns
        lacking = [name for name in COLUMNS[path.name] if name not in header]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]!r}")
        kinds = (
            {name: np.float64 if name.startswith("p_") else str for name in header} | COLUMNS[path.name] | MORE_COLUMNS
        )
        numbers = {name: [""] for name in header if kinds[name] is np.float64}
        # A number such as 1e999 among whole ones would become any other with no more than a warning.
        with np.errstate(invalid="raise"):
            return read_cells(pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=numbers))
    except (ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table of a report ({reason}); {REMEDY}.") from error


def show_figure(figures: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, e.g. ``0.8421 [0.8390, 0.8452]``; one chosen on the test clips says so."""
    bounds = figures[f"{name}_interval"]
    stamp = f"{ORACLE} " if figures.get("oracle") else ""
    return f"{stamp}{figures[name]:.4f}" + ("" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]")


def _by_seed(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """One table; with several seeds, the seed comes first."""
    import pandas as pd

    if len(tables) == 1:
        return next(iter(tables.values()))
    for seed, table in tables.items():
        table.insert(0, "seed", seed)
    return pd.concat(list(tables.values()), ignore_index=True)


def _predictions_table(
    clips: ClipSet, predictions: Predictions, classes: Sequence[str], truth: NDArray[np.int64]
) -> pd.DataFrame:
    import pandas as pd

    names = np.array(classes, dtype=object)
    columns: dict[str, Any] = {
        "episode": predictions.episode,
        "clip": clips.ids[predictions.clip],
        "dataset": clips.datasets[predictions.clip],
        "subject": clips.subjects[predictions.clip],
        "label": names[truth],
        "predicted": names[predictions.predicted],
    }
    # Six digits are more than a probability means, and keep the file small.
    shown = np.round(predictions.probabilities.astype(np.float64), 6)
    columns |= {f"p_{name}": shown[:, code] for code, name in enumerate(classes)}
    return pd.DataFrame(columns)


def _episodes_table(
    predictions: Predictions,
    truth: NDArray[np.int64],
    names: Sequence[str],
    among: NDArray[np.bool_] | None,
    n_classes: int,
) -> pd.DataFrame:
    import pandas as pd

    by_episode = confusion_matrix(
        truth, predictions.predicted, n_classes, groups=predictions.episode, n_groups=len(names)
    )
    scores = score_confusion(by_episode, among)
    return pd.DataFrame(
        {
            "episode": np.arange(len(names)),
            "name": list(names),
            "clips": by_episode.sum(axis=(1, 2)),
            **{metric: getattr(scores, metric) for metric in METRICS},
        }
    )


def _versions() -> dict[str, str]:
    own = {"fsmer": __version__, "python": platform.python_version()}
    return own | {name: metadata.version(name) for name in PACKAGES}


def _recipes(clips: ClipSet, judged: NDArray[np.bool_]) -> dict[str, list[str]]:
    table = clips.table
    if "recipe" not in table.columns:
        return {}
    stated = table.loc[judged & table["recipe"].notna().to_numpy(bool), ["dataset", "recipe"]]
    found: dict[str, set[str]] = {}
    for dataset, recipe in zip(stated["dataset"].astype(str), stated["recipe"].astype(str), strict=True):
        if recipe:
            found.setdefault(dataset, set()).add(recipe)
    return {name: sorted(hashes) for name, hashes in sorted(found.items())}


def _words(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value

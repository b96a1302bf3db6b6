"""What came out of an evaluation: figures with intervals, predictions by clip id and everything needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer import __version__
from fsmer.errors import DataError
from fsmer.evaluation.metrics import (
    METRICS,
    Scores,
    bootstrap_interval,
    confusion_matrix,
    mean_interval,
    score_confusion,
)
from fsmer.io import atomic_path, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

    from fsmer.data import ClipSet

__all__ = ["Predictions", "Report"]

FORMAT_VERSION = 1
REPORT_FILE = "report.json"
PREDICTIONS_FILE = "predictions.csv"
EPISODES_FILE = "episodes.csv"
MARKDOWN_FILE = "report.md"
PICTURE_FILE = "confusion.png"

TITLES = {"uf1": "UF1", "uar": "UAR", "acc": "Acc", "acc_merau": "Acc (MERAU eq. 14)"}
# The packages whose versions can change a figure.
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """Every answer of a run, one row for each query clip of each episode.

    Attributes
    ----------
    episode : int32 array of shape (M,)
        Number of the episode.
    clip : int64 array of shape (M,)
        Row of the clip in the evaluated clip set.
    predicted : int16 array of shape (M,)
        Class code.
    probabilities : float32 array of shape (M, C)
        Not a number for classes that the episode is not about.
    """

    episode: NDArray[np.int32]
    clip: NDArray[np.int64]
    predicted: NDArray[np.int16]
    probabilities: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put parts, each holding whole episodes, one after the other."""
        names = ("episode", "clip", "predicted", "probabilities")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.clip)


@dataclass(frozen=True, eq=False)
class Report:
    """Result of one evaluation: data first, pictures second.

    Attributes
    ----------
    figures : dict
        ``uf1``, ``uar``, ``acc``, ``acc_merau`` and ``<name>_interval``, each (low, high) or ``None`` where nothing
        can be said. `averaging` says what they are.
    averaging : {"pooled", "episodes"}
        ``"pooled"``: one figure from the predictions of all folds together, interval by bootstrap over subjects.
        ``"episodes"``: mean over episodes, interval 1.96 standard errors.
    per_dataset : dict
        Data set -> figures of its clips alone, with ``clips`` and ``subjects``.
    per_class : dict
        Class -> ``f1``, ``recall``, ``precision``, ``clips``.
    classes : tuple of str
    confusion : int array of shape (C, C)
        Rows are the truth; counts over all episodes.
    predictions : DataFrame
        ``episode, clip, dataset, subject, label, predicted, p_<class> ...``, one row a query clip and episode.
    episodes : DataFrame
        ``episode, name, clips, uf1, uar, acc, acc_merau``, one row an episode.
    protocol, model, method : dict
        Name, title, content hash and settings; name, weights hash and input; name and parameters.
    counts : dict
        ``clips`` (distinct clips judged), ``subjects``, ``episodes``, ``predictions``.
    seed : int
    versions : dict
        Versions of the packages that can change a figure.
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

    @classmethod
    def from_predictions(
        cls,
        clips: ClipSet,
        predictions: Predictions,
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
    ) -> Report:
        """Compute all figures.

        Parameters
        ----------
        clips : ClipSet
            What `predictions` point into.
        predictions : Predictions
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
        protocol, model, method : dict
            See the attributes.
        """
        rows, n_classes, n_episodes = predictions.clip, len(classes), len(names)
        truth = codes[rows]
        datasets, people = clips.dataset_codes(), clips.subject_codes()
        judged = np.zeros(len(clips), dtype=bool)
        judged[rows] = True

        def figures(chosen: NDArray[np.bool_] | None) -> tuple[Figures, Scores, NDArray[np.int64]]:
            def part(values: NDArray[Any]) -> NDArray[Any]:
                return values if chosen is None else values[chosen]

            by_episode = confusion_matrix(
                part(truth),
                part(predictions.predicted),
                n_classes,
                groups=part(predictions.episode),
                n_groups=n_episodes,
            )
            total = by_episode.sum(axis=0)
            # An episode without any query of a data set says nothing about it.
            asked = by_episode.any(axis=(1, 2))
            if averaging == "episodes":
                scores = score_confusion(by_episode[asked], None if among is None else among[asked])
                values: Figures = {name: float(getattr(scores, name).mean()) for name in METRICS}
                values |= {f"{name}_interval": mean_interval(getattr(scores, name)) for name in METRICS}
                return values, scores, total
            scores = score_confusion(total)
            values = {name: float(getattr(scores, name)) for name in METRICS}
            subject_names, subjects = np.unique(part(people[rows]), return_inverse=True)
            by_subject = confusion_matrix(
                part(truth), part(predictions.predicted), n_classes, groups=subjects, n_groups=len(subject_names)
            )
            intervals = bootstrap_interval(by_subject, seed=seed)
            return values | {f"{name}_interval": intervals[name] for name in METRICS}, scores, total

        whole, scores, total = figures(None)
        per_dataset = {}
        for number, dataset in enumerate(clips.dataset_names):
            here = judged & (datasets == number)
            if here.any():
                values, _, _ = figures(datasets[rows] == number)
                per_dataset[dataset] = values | {"clips": int(here.sum()), "subjects": len(np.unique(people[here]))}
        per_class = {}
        for code, name in enumerate(classes):
            by_class = {key: getattr(scores, key)[..., code] for key in ("f1", "recall", "precision")}
            if averaging == "episodes" and among is not None:
                by_class = {key: values[among[:, code]] for key, values in by_class.items()}
            shown = {key: float(np.mean(values)) if np.size(values) else 0.0 for key, values in by_class.items()}
            per_class[name] = shown | {"clips": int((judged & (codes == code)).sum())}
        return cls(
            figures=whole,
            averaging=averaging,
            per_dataset=per_dataset,
            per_class=per_class,
            classes=tuple(classes),
            confusion=total,
            predictions=_predictions_table(clips, predictions, classes, truth),
            episodes=_episodes_table(predictions, truth, names, among, n_classes),
            protocol=dict(protocol),
            model=dict(model),
            method=dict(method),
            counts={
                "clips": int(judged.sum()),
                "subjects": len(np.unique(people[judged])),
                "episodes": n_episodes,
                "predictions": len(predictions),
            },
            seed=seed,
            versions=_versions(),
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
    def title(self) -> str:
        """Method, protocol and the parameters that it was run with."""
        params = self.protocol["settings"]["params"]
        given = ", ".join(f"{key} {_words(value)}" for key, value in params.items() if value not in (None, False))
        return f"{self.method['name']} on {self.protocol['title']}" + (f" ({given})" if given else "")

    @property
    def how(self) -> str:
        """One sentence: what the figures and intervals are."""
        counts = self.counts
        if self.averaging == "episodes":
            return f"mean over {counts['episodes']:,} episodes; interval: 95 % of that mean (1.96 standard errors)"
        folds = f"{counts['episodes']:,} folds" if counts["episodes"] > 1 else "one episode"
        sure = (
            f"95 % by bootstrap over {counts['subjects']:,} subjects"
            if counts["subjects"] > 1
            else "none, since all clips are of one subject"
        )
        return f"from the predictions of {folds} pooled; interval: {sure}"

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
            "versions": dict(self.versions),
        }

    def markdown(self) -> str:
        """The report as a Markdown page."""
        lines = [
            f"# {self.title}",
            "",
            f"Model `{self.model['name']}`, {self.counts['clips']:,} clips of {self.counts['subjects']:,} subjects; "
            f"{self.how}.",
            "",
            "| | clips | UF1 | UAR | Acc |",
            "|---|---|---|---|---|",
        ]
        parts: dict[str, Figures] = {"all": self.figures | {"clips": self.counts["clips"]}}
        if len(self.per_dataset) > 1:
            parts |= self.per_dataset
        for name, figures in parts.items():
            cells = " | ".join(show_figure(figures, metric) for metric in ("uf1", "uar", "acc"))
            lines.append(f"| {name} | {figures['clips']:,} | {cells} |")
        lines += ["", "| class | clips | F1 | recall | precision |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {row['clips']:,} | {row['f1']:.4f} | {row['recall']:.4f} | {row['precision']:.4f} |"
            for name, row in self.per_class.items()
        ]
        lines += ["", "Confusion (rows: truth, columns: prediction):", "", f"| | {' | '.join(self.classes)} |"]
        lines.append("|---" * (len(self.classes) + 1) + "|")
        for name, counts in zip(self.classes, self.confusion.tolist(), strict=True):
            lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
        settings = {
            "protocol": f"{self.protocol['name']} ({self.protocol['hash']})",
            "weights": f"{self.model['name']} ({self.model['weights_hash']})",
            "method": json.dumps(_plain(self.method["params"])),
            "seed": self.seed,
            "versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        }
        lines += ["", *(f"- {name}: {value}" for name, value in settings.items()), ""]
        return "\n".join(lines)

    def __str__(self) -> str:
        cells = ", ".join(f"{TITLES[name]} {show_figure(self.figures, name)}" for name in ("uf1", "uar", "acc"))
        return f"{self.method['name']} on {self.protocol['name']}: {cells} ({self.how})"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.md``, ``predictions.csv``, ``episodes.csv`` and ``confusion.png``.

        Every file is whole or not there; ``report.json`` comes last, so where it is, the others are too.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        from fsmer.evaluation.plots import confusion_figure, save_figure

        target = Path(folder)
        for name, table in ((PREDICTIONS_FILE, self.predictions), (EPISODES_FILE, self.episodes)):
            with atomic_path(target / name) as temporary:
                table.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
        save_figure(confusion_figure(self.confusion, self.classes, title=self.title), target / PICTURE_FILE)
        write_text(target / MARKDOWN_FILE, self.markdown())
        write_json(target / REPORT_FILE, self.to_dict())
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Report:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            The folder holds no report, a broken one or one of a newer version.
        """
        import pandas as pd

        path = Path(folder) / REPORT_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["format_version"]
            if version > FORMAT_VERSION:
                raise DataError(
                    f"{path} was written by a newer fsmer (report format {version}, this version reads up to "
                    f"{FORMAT_VERSION}); upgrade fsmer."
                )
            # As text, so that subject "006" stays what it is and a clip named "NA" is no missing value.
            text = dict.fromkeys(("clip", "dataset", "subject", "label", "predicted", "name"), str)
            options: dict[str, Any] = {"dtype": text, "keep_default_na": False, "na_values": {}}
            tables = []
            for name in (PREDICTIONS_FILE, EPISODES_FILE):
                header = pd.read_csv(path.parent / name, nrows=0).columns
                numbers = {column: [""] for column in header if column not in text}
                tables.append(pd.read_csv(path.parent / name, **(options | {"na_values": numbers})))
            return cls(
                figures={key: _bounds(values[key]) for metric in METRICS for key in (metric, f"{metric}_interval")},
                averaging=values["averaging"],
                per_dataset={
                    name: {k: _bounds(v) for k, v in row.items()} for name, row in values["per_dataset"].items()
                },
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
            )
        except OSError as error:
            raise DataError(
                f"{folder} holds no whole report ({error}); give a folder that an evaluation wrote."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the report in {folder} cannot be read ({error}); evaluate again.") from error


def show_figure(figures: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, e.g. ``0.8421 [0.8390, 0.8452]``."""
    bounds = figures[f"{name}_interval"]
    return f"{figures[name]:.4f}" + ("" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]")


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


def _bounds(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

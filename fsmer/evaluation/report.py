"""A report: figures with intervals, predictions by clip id and everything needed to repeat the evaluation."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.drawing import confusion_figure, save_figure
from fsmer.errors import DataError
from fsmer.evaluation import predictions as files
from fsmer.evaluation import report_file
from fsmer.evaluation.metrics import METRICS
from fsmer.evaluation.predictions import Predictions, run_of, text_digest
from fsmer.evaluation.report_display import report_figure, report_html
from fsmer.evaluation.report_figures import Figures, report_figures
from fsmer.evaluation.report_file import COLUMNS, FORMAT_VERSION, altered_files
from fsmer.evaluation.report_tables import NAMES, ORACLE, plain, report_markdown, show_figure, shown
from fsmer.evaluation.run_folder import unfinished_words
from fsmer.io import atomic_path, check_writable, file_digest, json_text, write_json, write_text
from fsmer.text import one_line, shortened, write_csv
from fsmer.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]

# The packages whose versions can change a figure.
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas")
# The keys of `Report.figures`.
FIGURES = (*METRICS, *(f"{name}_interval" for name in METRICS), "oracle")


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
    metrics : dict
        Metric from outside fsmer -> the plugin that registered it; its figures are where ``uf1`` is.
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

    Examples
    --------
    >>> import fsmer
    >>> report = fsmer.evaluate("loso", "facs-flow", "protonet", clips=fsmer.synthetic_clips(n=24, subjects=4))
    >>> 0 <= report.uf1 <= 1 and 0 <= report.uar <= 1 and 0 <= report.acc <= 1
    True
    >>> len(report.interval("uf1")), report.oracle, report.gap
    (2, False, None)
    >>> report.title
    'protonet on leave one subject out, over all data sets of the clips'
    >>> report.how.split(";")[0].split(",")[0]
    'from the predictions of 4 folds pooled'
    >>> report.markdown().splitlines()[0]
    '# protonet on leave one subject out, over all data sets of the clips'
    >>> report.to_dict()["classes"], report.unsound
    (['negative', 'positive', 'surprise'], '')
    >>> folder = report.save("my-report")
    >>> fsmer.Report.load(folder).uf1 == report.uf1
    True
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
    metrics: Mapping[str, str] = field(default_factory=dict)
    isolation: str = "none"
    run: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def from_predictions(
        cls,
        clips: ClipSet,
        predictions: Predictions | Mapping[int, Predictions],
        *,
        seed: int,
        protocol: Mapping[str, Any],
        model: Mapping[str, Any],
        method: Mapping[str, Any],
        selection: Mapping[str, Any] | None = None,
        honest: Figures | None = None,
        notes: Sequence[str] = (),
        **asked: Any,
    ) -> Report:
        """Compute all figures.

        Parameters
        ----------
        clips : ClipSet
            What `predictions` point into.
        predictions : Predictions, or mapping of int to Predictions
            Several seeds answer the same questions, each in the same order.
        seed : int
            Seed of the episodes and the bootstrap.
        protocol, model, method : mapping
            See the attributes.
        selection : mapping, optional
            See the attributes; default a fixed choice.
        honest : dict, optional
            See the attributes.
        notes : sequence of str, default ()
            See the attributes.
        **asked : object
            ``codes``, ``classes``, ``names``, ``among`` and ``averaging``, as for
            `fsmer.evaluation.report_figures.report_figures`.

        Returns
        -------
        Report
            With all figures.

        Examples
        --------
        >>> import numpy as np
        >>> import fsmer
        >>> from fsmer.evaluation.predictions import Predictions
        >>> clips = fsmer.synthetic_clips(n=12, subjects=4)
        >>> codes = clips.codes()
        >>> answers = Predictions(
        ...     episode=np.zeros(12, np.int32),
        ...     clip=np.arange(12),
        ...     predicted=codes.astype(np.int16),
        ...     probabilities=np.eye(3, dtype=np.float32)[codes],
        ... )
        >>> report = fsmer.Report.from_predictions(
        ...     clips, answers, seed=0, protocol={}, model={}, method={"params": {}}, codes=codes,
        ...     classes=clips.classes, names=["all"], among=None, averaging="pooled",
        ... )
        >>> report.acc
        1.0
        """
        own = int(method["params"].get("seed", 0))
        runs = {own: predictions} if isinstance(predictions, Predictions) else dict(predictions)
        selection = dict(selection or {"rule": "fixed"})
        computed = report_figures(clips, runs, seed=seed, oracle=selection["rule"] == "oracle", **asked)
        versions = {"fsmer": __version__, "python": platform.python_version()}
        return cls(
            **computed,
            protocol=dict(protocol),
            model=dict(model),
            method=dict(method),
            seed=seed,
            versions=versions | {name: metadata.version(name) for name in PACKAGES},
            selection=selection,
            honest=honest,
            notes=tuple(notes),
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
        """95 % interval of a metric.

        Parameters
        ----------
        name : str
            ``"uf1"`` or another metric.

        Returns
        -------
        tuple of float, or None
            Its ends; None where nothing can be said.
        """
        bounds = self.figures[f"{name}_interval"]
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    @property
    def oracle(self) -> bool:
        """Whether something was chosen on the test clips, so that the figures estimate nothing."""
        return self.selection["rule"] == "oracle"

    @property
    def transductive(self) -> bool:
        """Whether the method looked at all query clips of an episode together.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
        >>> fsmer.evaluate("loso", "facs-flow", "laplacian_shot", clips=clips).transductive
        True
        """
        return bool(self.method.get("transductive"))

    def stamped(self, name: str) -> str:
        """A name for tables and pictures that says when the method is transductive.

        Parameters
        ----------
        name : str
            Of the method or the report.

        Returns
        -------
        str
            The name, with "(transductive)" behind it where that holds.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
        >>> fsmer.evaluate("loso", "facs-flow", "cosine", clips=clips).stamped("cosine")
        'cosine'
        """
        return f"{name} (transductive)" if self.transductive else name

    @property
    def gap(self) -> dict[str, float] | None:
        """Of an oracle report, how far its figures lie above the honest ones of the same run."""
        if self.honest is None:
            return None
        return {name: float(self.figures[name]) - float(self.honest[name]) for name in (*METRICS, *self.metrics)}

    @property
    def title(self) -> str:
        """Method, protocol and the parameters that it was run with."""
        stamp = f"{ORACLE}, chosen on the test clips: " if self.oracle else ""
        params = self.protocol["settings"]["params"]
        # As many episodes as there were: without labels there is one, whatever the protocol's own number.
        shown = params | ({"episodes": self.counts["episodes"]} if "episodes" in params else {})
        given = ", ".join(
            f"{key} {'+'.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
            for key, value in shown.items()
            if value is not None and value is not False
        )
        return f"{stamp}{self.stamped(self.method['name'])} on {self.protocol['title']}" + (
            f" ({given})" if given else ""
        )

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
        """Everything but the tables as plain values for JSON.

        Returns
        -------
        dict
            What ``report.json`` holds.
        """
        return {
            "format": "fsmer-report",
            "format_version": FORMAT_VERSION,
            **plain(self.figures),
            "averaging": self.averaging,
            "how": self.how,
            "per_dataset": plain(self.per_dataset),
            "per_class": plain(self.per_class),
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "protocol": plain(self.protocol),
            "model": plain(self.model),
            "method": plain(self.method),
            "counts": dict(self.counts),
            "seed": self.seed,
            "per_seed": plain(self.per_seed),
            "selection": plain(self.selection),
            **({} if self.honest is None else {"honest": plain(self.honest), "gap": self.gap}),
            "notes": list(self.notes),
            "isolation": self.isolation,
            **({"preprocessing": plain(self.preprocessing)} if self.preprocessing else {}),
            **({"metrics": dict(self.metrics)} if self.metrics else {}),
            "versions": dict(self.versions),
        }

    def markdown(self) -> str:
        """The report as a Markdown page.

        Returns
        -------
        str
            What ``report.md`` holds.
        """
        return report_markdown(self)

    def __str__(self) -> str:
        cells = ", ".join(f"{NAMES.get(name, name)} {show_figure(self.figures, name)}" for name in shown(self))
        stamp = f"{ORACLE} " if self.oracle else ""
        return f"{stamp}{self.stamped(self.method['name'])} on {self.protocol['name']}: {cells} ({self.how})"

    def __repr__(self) -> str:
        return f"Report({shortened(one_line(str(self)), 400)})"

    def _repr_html_(self) -> str:
        return report_html(self)

    def plot(self) -> Figure:
        """A matplotlib figure: the confusion matrix beside the F1 of each class with its 95 % interval.

        Returns
        -------
        Figure
            Not shown and not saved.

        Examples
        --------
        >>> import fsmer
        >>> report = fsmer.evaluate("loso", "facs-flow", "protonet", clips=fsmer.synthetic_clips(n=24, subjects=4))
        >>> report.plot().savefig("report.png")
        """
        return report_figure(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.md``, ``predictions.csv``, ``episodes.csv`` and ``confusion.png``.

        Every file is whole or not there; ``report.json`` comes last, so where it is, the others are too. Beside them
        lies ``run.json`` where the report knows how it was made. In the tables, text that a spreadsheet would take for
        a formula has an apostrophe in front, which `load` takes away.

        Parameters
        ----------
        folder : path
            Folder to write.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        target = Path(folder)
        check_writable(target)
        for name, table in ((files.PREDICTIONS_FILE, self.predictions), (files.EPISODES_FILE, self.episodes)):
            with atomic_path(target / name) as temporary:
                write_csv(table, temporary)
        save_figure(confusion_figure(self.confusion, self.classes, title=self.title), target / files.PICTURE_FILE)
        write_text(target / files.MARKDOWN_FILE, self.markdown())
        digests = {name: file_digest(target / name) for name in COLUMNS}
        text = json_text({**self.to_dict(), "files": digests}, sealed=True)
        if self.run:
            # Names the report that it is about, so that one saved over it is not taken for it.
            write_json(target / files.RUN_FILE, {**plain(self.run), "report": text_digest(text)}, sealed=True)
        write_text(target / files.REPORT_FILE, text)
        return target

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, check: bool = True) -> Report:
        """Read what `save` wrote.

        Parameters
        ----------
        folder : path
            Folder to read.
        check : bool, default True
            Whether to refuse what was altered after it was written, tables that the figures do not follow from, and
            probabilities that are none. Otherwise they are read as they are, for whoever looks for what is wrong with
            them (see `fsmer.audit`).

        Returns
        -------
        Report
            The report as it was saved.

        Raises
        ------
        DataError
            The folder holds no report, an unfinished run, a broken report or one of a newer version.
        """
        place = Path(folder)
        try:
            values, (predictions, episodes) = report_file.read_report(place)
        except OSError as error:
            name = Path(error.filename or files.REPORT_FILE).name
            lack = f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
            raise DataError(
                unfinished_words(place)
                or f"{folder} holds no whole report ({lack}); give a folder that an evaluation wrote."
            ) from error
        run = run_of(folder) or {}
        others = [key for name in values["metrics"] for key in (name, f"{name}_interval")]
        kept = ("averaging", "per_dataset", "per_class", "protocol", "model", "method", "counts", "seed", "versions")
        report = cls(
            **{name: values[name] for name in (*kept, "per_seed", "selection", "preprocessing", "metrics")},
            figures={
                key: tuple(value) if isinstance(value := values[key], list) else value
                for key in (*FIGURES, *others)
                if key in values
            },
            classes=tuple(values["classes"]),
            confusion=np.array(values["confusion"], dtype=np.int64),
            predictions=predictions,
            episodes=episodes,
            honest=values.get("honest"),
            notes=tuple(values["notes"]),
            isolation=values.get("isolation", run.get("isolation", "none")),
            run=run,
            folder=place,
        )
        if check:
            altered = next((name for name in altered_files(folder) if name != files.RUN_FILE), "")
            altered = altered and f"{altered} was altered after it was written"
            if flaw := report.unsound or report_file.contradicting_tables(report) or altered:
                raise DataError(f"{folder} holds a report and tables of different runs ({flaw}); {files.REMEDY}.")
        return report

    @property
    def unsound(self) -> str:
        """What of figures and probabilities cannot be one, in words; nothing where all can."""
        return report_file.unsound_values(self)

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        clips: ClipSet | None = None,
        backbone: Backbone | str | os.PathLike[str] | None = None,
        cache: bool | str | os.PathLike[str] = True,
    ) -> str:
        """The report as one self-contained HTML page.

        Parameters
        ----------
        path : path, optional
            File to write the page to.
        clips : ClipSet, optional
            The clips of the evaluation, for pictures of them; see `fsmer.reporting.html.report_page`.
        backbone : Backbone, str or path, optional
            The network, for a map of its embeddings of `clips`.
        cache : bool or path, default True
            Where embeddings are found again, see `fsmer.evaluate`.

        Returns
        -------
        str
            The page.

        Examples
        --------
        >>> import fsmer
        >>> report = fsmer.evaluate("loso", "facs-flow", "protonet", clips=fsmer.synthetic_clips(n=24, subjects=4))
        >>> page = report.to_html("report.html")
        >>> page[:15]
        '<!doctype html>'
        """
        from fsmer.reporting.html import report_page

        text = report_page(self, clips, backbone, cache=cache)
        if path is not None:
            write_text(path, text)
        return text

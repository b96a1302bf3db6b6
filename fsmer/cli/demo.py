"""The library in one run and without any data: two synthetic domains, few labels, all methods side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsmer.drawing import flow_figure, save_figure
from fsmer.evaluation.evaluate import evaluate
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import show_figure
from fsmer.evaluation.setup import Progress
from fsmer.io import check_writable, write_json, write_text
from fsmer.reporting.plots import methods_figure
from fsmer.text import markdown

if TYPE_CHECKING:
    from fsmer.data import ClipSet
    from fsmer.transfer import Recognizer

__all__ = ["DemoResult", "run_demo"]

SHOWN = 6  # query clips in the picture


@dataclass(frozen=True)
class DemoResult:
    """Reports of all methods over the same episodes, answers of the saved recognizer, and what was written where."""

    source: str
    target: str
    reports: dict[str, Report]
    # Labelled clips that the recognizer learnt from, new clips that it was asked about, and how many are right.
    support: int
    asked: int
    right: int
    example: str
    files: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "target": self.target,
            "methods": {name: report.to_dict() for name, report in self.reports.items()},
            "recognizer": {"support": self.support, "asked": self.asked, "right": self.right},
            "files": {name: str(path) for name, path in self.files.items()},
        }

    def markdown(self) -> str:
        some = next(iter(self.reports.values()))
        lines = [
            f"# 5-shot on the synthetic domain {markdown(self.target)}, source {markdown(self.source)}\n",
            f"Model {markdown(some.model['name'])}, {some.counts['clips']} clips, seed {some.seed}; {some.how}.\n",
            "| method | UF1 | UAR | Acc |\n|---|---|---|---|",
        ]
        for name, report in sorted(self.reports.items(), key=lambda item: -item[1].uf1):
            cells = " | ".join(show_figure(report.figures, metric) for metric in ("uf1", "uar", "acc"))
            lines.append(f"| {markdown(report.stamped(name))} | {cells} |")
        lines += ["", f"Saved recognizer: {self.right} of {self.asked} new clips right; {markdown(self.example)}.", ""]
        return "\n".join(lines)


def run_demo(out: Path, model: str, *, seed: int, episodes: int, progress: Progress) -> DemoResult:
    """Compare all methods on synthetic clips, then learn, save and ask one recognizer; `out` gets five files."""
    from fsmer.backbones import load_model
    from fsmer.episodic import load_protocol
    from fsmer.transfer import adapt, list_methods, load_method

    names = {"table": "table.md", "methods": "methods.png", "clips": "clips.png", "figures": "demo.json"}
    files = {key: out / name for key, name in (names | {"recognizer": "recognizer"}).items()}
    check_writable(out)
    backbone = load_model(model)
    protocol = load_protocol("synthetic-source-target", episodes=episodes, seed=seed)
    clips = protocol.make_clips(specs=backbone.input_specs)
    reports = {}
    for one in list_methods():
        if load_method(one.name).keeps_backbone:  # training the network anew for every episode takes hours

            def named(stage: str, done: int, total: int, method: str = one.name) -> None:
                progress(f"{method}: {stage}", done, total)

            reports[one.name] = evaluate(protocol, backbone, one.name, clips=clips, progress=named)
    episode = protocol.split(clips)[0]
    source = None if episode.source is None else clips[episode.source]
    recognizer = adapt(backbone, clips[episode.support], classes=episode.classes, source=source)
    recognizer.save(files["recognizer"])
    asked = clips[episode.query]
    right = int((recognizer.predict(asked) == asked.labels.astype(str)).sum())
    picture, example = _answers(recognizer, asked)
    save_figure(picture, files["clips"])
    title = f"5-shot on the synthetic domain {asked.dataset_names[0]!r}, {episodes} episodes"
    save_figure(methods_figure(reports, title=title), files["methods"])
    domains = ("none" if source is None else source.dataset_names[0], asked.dataset_names[0])
    result = DemoResult(*domains, reports, len(episode.support), len(asked), right, example, files)
    write_text(files["table"], result.markdown())
    write_json(files["figures"], result.to_dict())
    return result


def _answers(recognizer: Recognizer, asked: ClipSet) -> tuple[Any, str]:
    codes = asked.codes(tuple(map(str, recognizer.classes_)))
    # The first clips of every class in turn.
    order = np.argsort(np.concatenate([np.arange((codes == code).sum()) for code in np.unique(codes)]), kind="stable")
    shown = asked[np.argsort(codes, kind="stable")[order][:SHOWN]]
    probabilities = recognizer.predict_proba(shown)
    said = recognizer.classes_[probabilities.argmax(axis=1)]
    shares = zip(shown.labels, said, probabilities.max(axis=1), strict=True)
    titles = [f"is {label}\nsaid {answer} {share:.0%}" for label, answer, share in shares]
    words = f"{shown.ids[0]}, which is {shown.labels[0]}: {said[0]!s} with {probabilities[0].max():.0%}"
    spec = shown.specs[recognizer.backbone.input_specs[0].kind]
    return flow_figure(shown.media(spec.kind), titles=titles, normalisation=spec.normalisation), words

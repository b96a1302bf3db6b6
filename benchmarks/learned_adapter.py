"""A learned adapter beside `cosine` on drawn tasks: ``python -m benchmarks.learned_adapter --weights DIR``.

Both methods get the same clips and the same knowledge of the classes: named by their action units, which `facs-flow`
reads as a description, or by numbers, which it does not. Wrong labels are drawn for the same tasks again.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fsmer
from benchmarks.adapter_network import Learned
from fsmer.backbones import Backbone, model_hash
from fsmer.data import ArrayStore, ClipSet
from fsmer.episodic import DrawnTasks
from fsmer.transfer import SourceModel
from fsmer.version import __version__

__all__ = ["COLUMNS", "compared", "main"]

COLUMNS = (
    "name",
    "label",
    "tasks",
    "shots",
    "classes",
    "wrong_labels",
    "uf1",
    "cosine",
    "difference",
    "difference_low",
    "difference_high",
    "episodes",
    "command",
    "seeds",
    "versions",
    "weights",
    "date",
    "commit",
    "note",
)


def compared(
    protocol: str, method: Any, backbone: Backbone, clips: ClipSet, shots: int, described: bool, episodes: int
) -> dict[str, Any]:
    """One row: the method and `cosine` on the episodes of a protocol, with the interval of the paired difference."""
    chosen = fsmer.load_protocol(protocol, shot=shots, episodes=episodes)
    learned, cosine = (fsmer.evaluate(chosen, backbone, one, clips=clips) for one in (method, "cosine"))
    found = fsmer.paired_comparison(learned, cosine, names=("learned", "cosine")).differences["uf1"]
    low, high = found.interval or (float("nan"), float("nan"))
    both = {"uf1": found.a, "cosine": found.b, "difference": found.difference}
    return _row(protocol, shots, described, 0.0, episodes, **both, difference_low=low, difference_high=high)


def unnamed(clips: ClipSet) -> ClipSet:
    """The same clips with classes that no name describes."""
    places = {name: f"class {number:03d}" for number, name in enumerate(clips.classes)}
    table = clips.table.assign(label=[places[name] for name in clips.labels])
    return ClipSet.from_table(table, media={"flow": ArrayStore(clips.media("flow"), clips.specs["flow"])})


def mislabelled(method: Any, backbone: Backbone, shots: int, episodes: int) -> list[dict[str, Any]]:
    """Rows with and without wrong labels on novel sets of action units: mean UF1 of tasks, and paired intervals."""
    rows, tasks = [], DrawnTasks(way=5, shot=shots, domains=("kiosk",), family="novel", pool=40, seed=34)
    with torch.inference_mode():
        maps = torch.from_numpy(tasks.pool_maps).split(256)
        embeddings = torch.cat([backbone(part) for part in maps])
    directions = SourceModel(backbone).class_directions([one.name for one in tasks.sets])
    for described in (False, True):
        for share in (0.0, 0.1):
            same = DrawnTasks(
                way=5, shot=shots, domains=("kiosk",), family="novel", pool=40, seed=34, wrong_labels=share
            )
            drawn = same.rows(0, episodes)
            figures = []
            for one in (method, fsmer.load_method("cosine")):
                answers = one.solve(
                    embeddings, drawn.support, drawn.support_codes, drawn.query, way=5,
                    prior=directions if described else None, classes=drawn.classes,
                )  # fmt: skip
                called = torch.cat([scores.argmax(dim=-1) for _, scores in answers]).numpy()
                figures.append(_macro_f1(called, drawn.query_codes, 5))
            apart = figures[0] - figures[1]
            half = 1.96 * apart.std(ddof=1) / np.sqrt(episodes)
            both = {"uf1": figures[0].mean(), "cosine": figures[1].mean(), "difference": apart.mean()}
            bounds = {"difference_low": apart.mean() - half, "difference_high": apart.mean() + half}
            rows.append(_row("drawn-novel-units", shots, described, share, episodes, **both, **bounds))
    return rows


def latencies(method: Any, backbone: Backbone) -> Iterable[str]:
    """Milliseconds of one adaptation and of one answer on embeddings, as text; the machine should be idle."""
    torch.set_num_threads(1)
    support, codes = torch.randn(1, 25, backbone.embed_dim) / 14, torch.arange(5).repeat(5)[None]
    head = method.fit_head(support, codes, 5)
    for what, call in (
        ("adaptation to 25 clips", lambda: method.fit_head(support, codes, 5)),
        ("answer for a clip", lambda: head.logits(support[:, :1])),
    ):
        taken = []
        for _ in range(50):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
        yield f"{what}: {1000 * min(taken):.2f} ms"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="folder that benchmarks.adapter_training made")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--out", type=Path, default=Path("docs/results/learned_adapter.csv"))
    given = parser.parse_args()
    backbone = fsmer.load_model("facs-flow")
    method = Learned(given.weights)
    rows: list[dict[str, Any]] = []
    for name in ("novel-units-5way", "new-camera"):
        source = fsmer.load_protocol(name).synthetic[0]
        clips = fsmer.synthetic_clips(source.domain, source.clips, seed=source.seed, classes=source.classes())
        for described, held in ((False, unnamed(clips)), (True, clips)):
            if name == "new-camera" and not described:
                continue  # the protocol asks for its classes by name
            for shots in given.shots:
                rows.append(compared(name, method, backbone, held, shots, described, given.episodes))
                print(_line(rows[-1]), flush=True)
    for row in mislabelled(method, backbone, 5, given.episodes):
        rows.append(row)
        print(_line(row), flush=True)
    print(*latencies(method, backbone), sep="\n")
    with open(given.out, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        versions = f"fsmer {__version__}, torch {torch.__version__.split('+')[0]}, numpy {np.__version__}"
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        for row in rows:
            name = f"{row['tasks']}-{row['shots']}-{row['classes'].replace(' ', '-')}"
            name += "-wrong" if row["wrong_labels"] else ""
            same = {
                "name": name,
                "command": "python -m benchmarks.learned_adapter --weights WEIGHTS",
                "seeds": 0,
                "date": date,
            }
            same |= {
                "label": f"{row['tasks']}, {row['shots']} shots, {row['classes']}",
                "versions": versions,
                "weights": model_hash(backbone),
            }
            writer.writerow({key: _short(value) for key, value in (same | row).items()})


def _row(
    tasks: str, shots: int, described: bool, wrong_labels: float, episodes: int, **figures: float
) -> dict[str, Any]:
    classes = "described" if described else "not described"
    settings = {"tasks": tasks, "shots": shots, "classes": classes, "wrong_labels": wrong_labels}
    return {**settings, **figures, "episodes": episodes}


def _macro_f1(called: NDArray[np.int64], truth: NDArray[np.int64], way: int) -> NDArray[np.float64]:
    marks = np.arange(way)[:, None, None]
    asked, given = truth == marks, called == marks
    return (2 * (asked & given).sum(-1) / np.maximum(asked.sum(-1) + given.sum(-1), 1)).mean(axis=0)


def _short(value: Any) -> Any:
    return f"{value:.3f}".replace("0.", ".", 1) if isinstance(value, float) else value


def _line(row: dict[str, Any]) -> str:
    return "  ".join(str(_short(value)) for value in row.values())


if __name__ == "__main__":
    main()

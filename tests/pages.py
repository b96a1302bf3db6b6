"""What tests of HTML pages share: a strict reader, reports with chosen answers, and a browser where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fsmer.data import ClipSet
from fsmer.evaluation import Report
from fsmer.evaluation.predictions import Predictions

VOID = {"meta", "link", "br", "img"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass
class Node:
    """An element of a page."""

    name: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def find(self, name: str, **wanted: str) -> list[Node]:
        """All elements of that name (and class_=, id=, ...) in it, in order."""
        keys = {key.rstrip("_").replace("_", "-"): value for key, value in wanted.items()}
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if child.name == name and all(
                    value in child.attributes.get(key, "").split()
                    if key == "class"
                    else child.attributes.get(key) == value
                    for key, value in keys.items()
                ):
                    found.append(child)
                found += child.find(name, **wanted)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Node:
    """The page as a tree; every element must end where it should."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].name}> never ends"
    return reader.open[0]


def tables(root: Node) -> dict[str, list[list[str]]]:
    """Caption -> rows of cell texts, the heading row first."""
    return {
        table.find("caption")[0].text: [
            [cell.text for cell in row.children if isinstance(cell, Node)] for row in table.find("tr")
        ]
        for table in root.find("table")
    }


def report_of(
    clips: ClipSet,
    said: NDArray[np.int64] | Mapping[int, NDArray[np.int64]],
    probabilities: NDArray[np.float32] | None = None,
    *,
    classes: Sequence[str] | None = None,
    episodes: int = 1,
    protocol: str = "loso",
    method: str = "cosine",
    weights: str = "1" * 16,
    **more: Any,
) -> Report:
    """A report of these answers: the clips in order, `episodes` times over, or so for each of several seeds."""
    names = tuple(classes or clips.classes)
    runs = dict(said) if isinstance(said, Mapping) else {0: said}
    answers = {}
    for seed, codes in runs.items():
        shares = probabilities
        if shares is None:
            shares = np.full((len(codes), len(names)), 0.1, np.float32)
            shares[np.arange(len(codes)), codes] = 1.0
            shares /= shares.sum(axis=1, keepdims=True)
        episode = np.repeat(np.arange(episodes), len(clips)).astype(np.int32)
        answers[seed] = Predictions(episode, np.tile(np.arange(len(clips)), episodes), codes.astype(np.int16), shares)
    return Report.from_predictions(
        clips,
        answers if len(answers) > 1 else answers[next(iter(answers))],
        codes=clips.codes(names),
        classes=names,
        names=[f"episode {number}" for number in range(episodes)],
        among=None,
        averaging="episodes" if episodes > 1 else "pooled",
        seed=3,
        protocol={
            "name": protocol,
            "title": f"protocol {protocol}",
            "hash": (protocol * 16)[:16],
            "settings": {"kind": protocol, "params": {"shot": 5}},
        },
        model={"name": "facs-flow", "weights_hash": weights},
        method={"name": method, "params": {"steps": 200}},
        **more,
    )


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser by playwright; the test is skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with driver.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = os.environ.get("FSMER_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None and not os.path.exists(own):
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path, and FSMER_BROWSER names none")
        started = playwright.chromium.launch(executable_path=path)
        try:
            yield started
        finally:
            started.close()

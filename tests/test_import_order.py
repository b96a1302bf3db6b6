"""Imports go down the floors that docs/architecture.md lists, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Page:
    """What the architecture page says: the floor of each folder or file, and (file, file) pairs that may be late."""

    floors: Mapping[str, int]
    jobs: Mapping[str, str]
    late: frozenset[tuple[str, str]]

    @classmethod
    def read(cls, path: Path) -> Page:
        rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in path.open() if line[0] == "|"]
        floors = [row for row in rows if row[0].isdecimal()]
        late = frozenset(
            (row[0].strip("`"), row[1].strip("`")) for row in rows if all(re.fullmatch(r"`.+\.py`", c) for c in row[:2])
        )
        names = {row[1].strip("`/"): row for row in floors}
        assert len(names) == len(floors), "a folder or file has two rows"
        return cls({name: int(row[0]) for name, row in names.items()}, {n: r[2] for n, r in names.items()}, late)


def imports_of(tree: ast.AST, package: str, late: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules named by imports below `tree`, and whether the import is in a function; type-checking blocks aside."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield from ((f"{module}.{alias.name}", late) for alias in node.names)
        yield from imports_of(node, package, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports_between_files(root: Path) -> dict[str, dict[str, bool]]:
    """File -> files of the package that it imports, with whether every import of it is late; paths below `root`."""
    files = {}
    for path in root.rglob("*.py"):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, dict[str, bool]] = {}
    for module, path in files.items():
        edges = found.setdefault(path.relative_to(root).as_posix(), {})
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, late in imports_of(ast.parse(path.read_text(encoding="utf-8")), package):
            # The longest beginning of the name that is a module; the rest is an attribute of it.
            parts = name.split(".")
            known = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            target = files.get(next((one for one in known if one in files), ""))
            if target not in (None, path):
                place = target.relative_to(root).as_posix()
                edges[place] = edges.get(place, True) and late
    return found


def faults_of(root: Path, page: Page) -> list[str]:
    """One sentence for each import that the page does not allow, for each circle, and for each file without a floor."""
    imports, faults = imports_between_files(root), []
    for file in sorted(imports):
        here = file.split("/")[0]
        if here not in page.floors:
            faults.append(f"{file} is on no floor; add {here} to the table of floors.")
    for file, edges in sorted(imports.items()):
        for other, late in sorted(edges.items()):
            here, there = file.split("/")[0], other.split("/")[0]
            if here == there or not {here, there} <= page.floors.keys() or (late and (file, other) in page.late):
                continue
            if page.floors[there] >= page.floors[here]:
                faults.append(
                    f"{file} (floor {page.floors[here]}) imports {other} (floor {page.floors[there]}), but only what "
                    "stands on a lower floor may be imported; move one of the two, or hand it in as an argument."
                )
    allowed = {file: [o for o in edges if (file, o) not in page.late] for file, edges in imports.items()}
    faults += [f"imports go in a circle: {' -> '.join(circle)}; break it at one place." for circle in circles(allowed)]
    faults += [
        f"{file} no longer imports {other}; take it out of the table of late imports."
        for file, other in sorted(page.late)
        if other not in imports.get(file, {})
    ]
    return faults


def circles(edges: Mapping[str, list[str]]) -> list[list[str]]:
    """Circles of a graph, each as nodes with the first one repeated at the end; one for each way back found."""
    found, path, done = [], [], set()

    def visit(node: str) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            path.append(node)
            for other in edges.get(node, []):
                visit(other)
            done.add(path.pop())

    for node in sorted(edges):
        visit(node)
    return found


def test_every_import_goes_down_the_floors_of_the_architecture_page(repository: Path) -> None:
    page = Page.read(repository / "docs" / "architecture.md")
    assert len(page.floors) > 30
    assert len(page.late) == 2
    assert not (faults := faults_of(repository / "fsmer", page)), "\n".join(faults)


def test_every_row_of_the_table_of_floors_is_there(repository: Path) -> None:
    page = Page.read(repository / "docs" / "architecture.md")
    missing = [name for name in page.floors if not (repository / "fsmer" / name).exists()]
    assert all("none yet" in page.jobs[name] for name in missing), missing


def test_files_that_the_page_names_are_there(repository: Path) -> None:
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", text) if "<" not in name}
    page = Page.read(repository / "docs" / "architecture.md")
    absent = {name for name, job in page.jobs.items() if "none yet" in job}
    places = (repository / "fsmer", repository)
    gone = [n for n in sorted(named) if n.strip("/") not in absent and not any((p / n).exists() for p in places)]
    assert not gone


PAGE = """# A small package
| floor | folder or file | one job |
|---|---|---|
| 2 | `upper/` | uses |
| 1 | `lower/` | is used |
| 1 | `other/` | beside it |
| 0 | `ground.py` | below all |

| file | imports late | why |
|---|---|---|
| `lower/plain.py` | `upper/page.py` | shown |
"""

FILES = {
    "ground.py": "",
    "lower/__init__.py": "from small.lower.plain import shown",
    "lower/plain.py": "import small.ground\ndef shown():\n    from small.upper.page import Page\n    return Page",
    "other/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from small.upper import page",
    "upper/__init__.py": "",
    "upper/page.py": "from ..lower import plain\nfrom small.ground import x\nclass Page: pass",
}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({}, []),
        ({"ground.py": "import small.lower.plain"}, ["ground.py (floor 0)", "lower/plain.py (floor 1)"]),
        (
            {"ground.py": "def f():\n    from small.upper import page"},
            ["ground.py (floor 0)", "upper/page.py (floor 2)"],
        ),
        (
            {"other/__init__.py": "from ..lower import shown"},
            ["other/__init__.py (floor 1)", "lower/__init__.py (floor 1)"],
        ),
        (
            {"lower/plain.py": "from small.upper.page import Page"},
            ["lower/plain.py (floor 1)", "upper/page.py (floor 2)"],
        ),
        ({"new.py": ""}, ["new.py is on no floor"]),
        (
            {"upper/a.py": "import small.upper.b", "upper/b.py": "class A:\n  def f(self):\n    from . import a"},
            ["upper/a.py -> upper/b.py -> upper/a.py"],
        ),
        ({"upper/page.py": "from small.upper import x", "upper/__init__.py": "from .page import x"}, ["circle"]),
        ({"lower/plain.py": ""}, ["lower/plain.py no longer imports upper/page.py"]),
    ],
    ids=["fine", "up", "up-late", "sideways", "named-but-not-late", "no-floor", "late-circle", "init-circle", "stale"],
)
def test_a_wrong_import_is_one_sentence_with_both_files_and_floors(
    changes: dict[str, str], facts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text(PAGE)
    for name, text in (FILES | changes).items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    faults = faults_of(tmp_path / "small", Page.read(tmp_path / "page.md"))
    # An import upwards closes a circle, too, where the other file reaches back.
    named = [fault for fault in faults if all(fact in fault for fact in facts)]
    assert len(named) == 1 if facts else not faults, faults

"""The pages of the documentation can be reached, their links lead somewhere, and they name nothing of one machine.

`make docs` builds the pages and checks cross-references; these tests read the sources alone.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

# Pages that the build makes: the reference of the public names, and copies of the notebooks.
GENERATED = re.compile(r"api/(fsmer\..+\.rst|names\.md)|notebooks/.+\.ipynb")
FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,}|:{3,})(?P<rest>.*)$")
LINK = re.compile(r"!?\[(?:[^\]\\]|\\.)*\]\(\s*<?(?P<target>[^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"(?:src|href)=\"(?P<target>[^\"]+)\"")
CARD_LINK = re.compile(r"^:link:\s*(?P<target>\S+)\s*$", re.MULTILINE)
OUTSIDE = ("http", "https", "mailto")
# Folders that exist on single machines, and the folder of data beside the checkout, which may not be redistributed.
OF_ONE_MACHINE = re.compile(
    r"(?<![\w.~$\-/])/(?:work|tmp|home|root|Users|mnt|opt)/\w|[A-Z]:\\Users|(?:\.\./|\b)shared/"
)


def pages(root: Path) -> list[Path]:
    """Every page that somebody wrote, the README included."""
    docs = root / "docs"
    written = (
        path for path in sorted(docs.rglob("*.md")) if not GENERATED.fullmatch(path.relative_to(docs).as_posix())
    )
    return [root / "README.md", *written]


def prose(text: str) -> str:
    """Markdown without the blocks and spans of code, in which a link is none; directives keep their content."""
    kept, closing = [], ""
    for line in text.splitlines():
        fence = FENCE.match(line.strip())
        if closing:
            closing = "" if line.strip() == closing else closing
        elif fence and fence["fence"][0] != ":" and not fence["rest"].strip().startswith("{"):
            closing = fence["fence"]
        else:
            kept.append(line)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", "\n".join(kept))


def links(text: str) -> list[str]:
    plain = prose(text)
    return [found["target"] for pattern in (LINK, HTML_LINK) for found in pattern.finditer(plain)]


def toctree_entries(text: str) -> Iterator[str]:
    """Names of pages, or patterns of them, in the tables of contents of one page."""
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.strip() and not line.startswith(":"):
                titled = re.fullmatch(r".+<(.+)>", line.strip())
                yield titled[1] if titled else line.strip()


def reached_pages(docs: Path) -> set[str]:
    """Pages below `docs`, without suffix, that lead from the index by tables of contents."""
    known = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    reached, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        if page in reached or page not in known:
            continue
        reached.add(page)
        folder = Path(page).parent
        for entry in toctree_entries((docs / f"{page}.md").read_text(encoding="utf-8")):
            place = entry.lstrip("/") if entry.startswith("/") else (folder / entry).as_posix()
            waiting += [name for name in known if re.fullmatch(re.escape(place).replace(r"\*", "[^/]*"), name)]
    return reached


def test_every_page_is_in_a_table_of_contents(repository: Path) -> None:
    docs = repository / "docs"
    written = {path.relative_to(docs).with_suffix("").as_posix() for path in pages(repository)[1:]}
    assert len(written) > 20
    assert written - reached_pages(docs) == set()


def test_tables_of_contents_name_pages_that_exist(repository: Path) -> None:
    docs = repository / "docs"
    for page in pages(repository)[1:]:
        for entry in toctree_entries(page.read_text(encoding="utf-8")):
            start = docs if entry.startswith("/") else page.parent
            exists = "*" in entry or (start / f"{entry.lstrip('/')}.md").is_file()
            assert exists, f"{page.relative_to(repository)} lists {entry}, which is no page"


def test_relative_links_lead_to_files(repository: Path) -> None:
    count = 0
    for page in pages(repository):
        text = page.read_text(encoding="utf-8")
        for target in links(text):
            address = urlsplit(target)
            if address.scheme or not address.path:
                continue
            count += 1
            place = (page.parent / address.path).resolve()
            inside = place.is_relative_to(repository) and not address.path.startswith("/")
            assert inside, f"{page.relative_to(repository)} links to {target}, outside the repository"
            generated = place.is_relative_to(repository / "docs") and GENERATED.fullmatch(
                place.relative_to(repository / "docs").as_posix()
            )
            source = repository / "notebooks" / place.name if place.suffix == ".ipynb" else place
            assert source.exists() or (generated and source == place), f"{page.relative_to(repository)}: {target}"
        for found in CARD_LINK.finditer(text):
            if "://" not in found["target"]:
                place = page.parent / f"{found['target']}.md"
                assert place.is_file(), f"{page.relative_to(repository)}: the card leads to {found['target']}"
    assert count > 5


def test_links_to_other_sites_are_whole_addresses(repository: Path) -> None:
    for page in pages(repository):
        for target in links(page.read_text(encoding="utf-8")):
            address = urlsplit(target)
            if address.scheme:
                where = f"{page.relative_to(repository)}: {target}"
                assert address.scheme in OUTSIDE, where
                assert address.scheme == "mailto" or re.fullmatch(r"[\w-]+(\.[\w-]+)+", address.netloc), where


def test_no_page_names_files_of_one_machine(repository: Path) -> None:
    notebooks = sorted((repository / "notebooks").glob("*.ipynb"))
    assert notebooks
    for page in [*pages(repository), *notebooks]:
        found = OF_ONE_MACHINE.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.relative_to(repository)}: {found[0]}"


@pytest.mark.parametrize(
    "text", ["see /work/x", "in `/tmp/run`", "of ../shared/data", "at /home/me/clips", r"C:\Users\me"]
)
def test_a_path_of_one_machine_is_found(text: str) -> None:
    assert OF_ONE_MACHINE.search(text)


@pytest.mark.parametrize(
    "text", ["`docs/work/x`", "https://host.org/work/x", "a shared folder", "path/to/tmp/x", "~/tmp/x"]
)
def test_other_paths_are_none_of_one_machine(text: str) -> None:
    assert OF_ONE_MACHINE.search(text) is None


def test_links_in_code_are_none() -> None:
    text = (
        '[a](b.md)\n```python\nx[0](c.md)\n```\n`[d](e.md)` ![f](g.png)\n:::{note}\n[h](i.md)\n:::\n<img src="j.png">'
    )
    assert links(text) == ["b.md", "g.png", "i.md", "j.png"]


def test_every_module_of_public_names_has_a_group_in_the_reference(repository: Path) -> None:
    import fsmer

    tree = ast.parse((repository / "docs" / "conf.py").read_text(encoding="utf-8"))
    (titles,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TITLES"
    )
    assert set(titles) == set(fsmer._MODULES) - {"fsmer.errors"}


def test_notebooks_have_a_title_for_the_table_of_contents(repository: Path) -> None:
    for notebook in (repository / "notebooks").glob("*.ipynb"):
        first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
        assert first["cell_type"] == "markdown", notebook.name
        assert "".join(first["source"]).startswith("# "), notebook.name

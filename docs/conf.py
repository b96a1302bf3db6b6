"""The documentation site: ``make docs`` builds it from the pages of this folder, docstrings and notebooks."""

from __future__ import annotations

import pydoc
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# The sources that stand beside these pages, whatever version is installed.
sys.path.insert(0, str(ROOT))

import fsmer  # noqa: E402

project, author = "fsmer", "The fsmer authors"
version = release = fsmer.__version__
language = "en"

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
# `names.md` is a part of `api/index.md`.
exclude_patterns = ["_build", "api/names.md"]
nitpicky = True
# In docstrings, `name` links to the page of a public name.
default_role = "autolink"
# Quotes become typographic; dashes stay, since options such as --model have them.
smartquotes_action = "qe"

# Pages and notebooks. Notebooks are run by the tests; here they show the outputs that are stored in them.
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# The reference of the public names.
autosummary_generate = ["api/names.md"]
# Types stand in the documentation of the parameters; in signatures they would be spelled out to their last alias.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "undoc-members": False}
numpydoc_show_class_members = False
maximum_signature_line_length = 80

html_theme = "pydata_sphinx_theme"
html_title = html_short_title = "fsmer"
html_static_path = ["_static"]
html_css_files = ["fsmer.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {
    "header_links_before_dropdown": 6,
    "logo": {"text": "fsmer"},
    "navbar_persistent": ["search-button"],
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "show_prev_next": True,
}
# Pages in folders list their neighbours; those beside the index have none.
html_sidebars = {"*": [], "*/*": ["sidebar-nav-bs"]}
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# Titles of the groups in the reference, for the modules as `fsmer/__init__.py` lists them.
TITLES = {
    "fsmer.data": "Clips",
    "fsmer.synthetic": "Synthetic clips",
    "fsmer.datasets": "Data sets on disk",
    "fsmer.preprocess": "Recordings",
    "fsmer.deploy.prepare_models": "Recordings",
    "fsmer.deploy.recording": "Recordings",
    "fsmer.episodic": "Episodes and protocols",
    "fsmer.backbones": "Backbones",
    "fsmer.transfer": "Methods and recognizers",
    "fsmer.meta": "Training on episodes",
    "fsmer.evaluation": "Evaluation",
    "fsmer.deploy.explain": "Explanations",
    "fsmer.reporting.compare": "Comparison of reports",
    "fsmer.reporting.statistics": "Comparison of reports",
    "fsmer.reporting.ranking": "Comparison of reports",
    "fsmer.auditing": "Audits",
    "fsmer.published": "Published tables",
}
# Files of the root and the pages that include them.
ROOT_PAGES = {"CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "SECURITY": "security-policy"}
# What somebody writes who adds a part from outside: its base class, and the call that makes it known.
ADDITIONS = {
    "fsmer.backbones": ["register_backbone"],
    "fsmer.transfer": ["Method", "register_method"],
    "fsmer.episodic": ["Protocol", "register_protocol"],
    "fsmer.datasets": ["Adapter", "register_dataset"],
    "fsmer.data": ["register_input_kind"],
    "fsmer.evaluation": ["register_metric"],
    "fsmer.plugins": ["import_plugin"],
}


def reference() -> dict[str, list[str]]:
    """Title -> dotted names of every page of the reference."""
    groups: dict[str, list[str]] = {}
    for module, names in fsmer._MODULES.items():
        if module != "fsmer.errors":
            groups.setdefault(TITLES[module], []).extend(f"fsmer.{name}" for name in names.split())
    groups["Additions from outside"] = [f"{module}.{name}" for module, names in ADDITIONS.items() for name in names]
    for title, module in (("Contract checks", "fsmer.testing"), ("Errors", "fsmer.errors")):
        groups[title] = [f"{module}.{name}" for name in import_module(module).__all__]
    return groups


def write_reference() -> None:
    """Write the list from which autosummary makes one page a name, without what an earlier build left."""
    for page in (DOCS / "api").glob("*.rst"):
        page.unlink()
    lines = []
    for title, names in reference().items():
        lines += [f"## {title}", "", "```{eval-rst}", ".. autosummary::", "   :toctree: .", "   :nosignatures:", ""]
        lines += [*(f"   ~{name}" for name in names), "```", ""]
    (DOCS / "api" / "names.md").write_text("\n".join(lines), encoding="utf-8")


def copy_notebooks() -> None:
    """Put the notebooks of the repository beside the page that lists them."""
    folder = DOCS / "notebooks"
    for copy in folder.glob("*.ipynb"):
        copy.unlink()
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copyfile(notebook, folder / notebook.name)


def link_by_object(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, shown: nodes.TextElement
) -> nodes.Element | None:
    """Links of docstrings: to the page of the named object, or text where the object has none.

    A docstring names an object by the module that defines it, as in `fsmer.deploy.explain.explain`; its page bears the
    public name. Parameters stand between the same quotes. Roles other than that of docstrings stay checked.
    """
    if node["reftype"] != "obj":
        return None
    target = node["reftarget"]
    named = pydoc.locate(target) if "." in target else None
    for public in (name for names in reference().values() for name in names):
        if named is pydoc.locate(public) if named is not None else public.rpartition(".")[2] == target:
            python = env.get_domain("py")
            return python.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, shown)
    return shown


class LinksToRootPages(SphinxPostTransform):
    """Links to pages in the root of the repository lead to the pages of the site that include them."""

    # Before MyST looks for their targets among the pages of this folder.
    default_priority = 8

    def run(self, **_: Any) -> None:
        for link in self.document.findall(addnodes.pending_xref):
            page = ROOT_PAGES.get(Path(link["reftarget"]).name.removesuffix(".md"))
            if link["reftype"] == "myst" and page:
                link["refdomain"], link["reftarget"] = "doc", page
                link.setdefault("reftargetid", None)


class Drawings(SphinxPostTransform):
    """SVG drawings of the class "diagram" become part of the page and take its colours; others may scroll sideways."""

    # Before Sphinx collects the pictures that it copies.
    default_priority = 5
    formats = ("html",)

    def run(self, **_: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            if not image["uri"].endswith(".svg") or "://" in image["uri"]:
                continue
            svg = (DOCS / image["uri"]).read_text(encoding="utf-8")
            start = svg.index("<svg")
            if 'class="diagram"' in svg[start : svg.index(">", start)]:
                image.replace_self(nodes.raw("", svg[start:], format="html"))
            else:
                image.replace_self(nodes.container("", image.deepcopy(), classes=["wide-drawing"]))


def write_math(translator: Any, node: nodes.Element) -> None:
    """Equations as MathML, which browsers show by themselves; MathJax would be fetched from another server."""
    block = isinstance(node, nodes.math_block)
    markup = convert(node.astext(), display="block" if block else "inline")
    # An underscore in text needs its backslash in LaTeX alone.
    markup = markup.replace("\\_", "_")
    # Bars that no \left and \right surround are as high as a letter, as in LaTeX.
    for bar in ("&#x02016;", "&#x0007C;", "|"):
        markup = markup.replace(f"<mo>{bar}</mo>", f'<mo stretchy="false">{bar}</mo>')
    # Names of functions keep apart from the letters beside them.
    markup = re.sub(r"<mi>(log|ln|exp|sin|cos)</mi>", r'<mo lspace="0.17em" rspace="0.1em">\1</mo>', markup)
    if "\\" in markup:
        logging.getLogger(__name__).warning(
            "an equation has a command that cannot be shown: %s", node.astext(), location=node
        )
    if block:
        number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
        markup = f"{translator.starttag(node, 'div', CLASS='equation')}{markup}{number}</div>"
    translator.body.append(markup)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Make the generated sources before Sphinx lists the pages."""
    write_reference()
    copy_notebooks()
    app.connect("missing-reference", link_by_object)
    app.add_post_transform(LinksToRootPages)
    app.add_post_transform(Drawings)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))

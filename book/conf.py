"""Settings of Sphinx for the book; `python -m book.build` gathers the pages and calls it."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

project = "Face-recognition losses, derived and reproduced"
author = copyright = "the reprolib authors"
html_title = project
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "book.equations",
]

# The notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
# A notebook's levels of headings are its own.
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "code"
python_use_unqualified_type_names = True

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = html_show_sourcelink = False
# The search would fetch each page that it finds for a line of its text, which a browser refuses to pages on a disk.
html_show_search_summary = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "default", "monokai"

# MathJax, with its fonts, comes from a package and is copied into the book: a page asks no other server.
mathjax_path = "mathjax/tex-chtml-full.js"
mathjax3_config = {
    "options": {
        "ignoreHtmlClass": "tex2jax_ignore|mathjax_ignore|document",
        "processHtmlClass": "tex2jax_process|mathjax_process|math|output_area",
    },
}


def mathjax_folder() -> Path:
    """Folder of the package's MathJax."""
    package = metadata.distribution("django-static-mathjax")
    return Path(str(package.locate_file("mathjax/static/mathjax/es5")))


def plain_text(text: str) -> str:
    """A paragraph of a docstring in which bars, stars and trailing underscores outside of code mean themselves."""
    parts = re.split(r"(``.+?``|:\w+:`.+?`|`.+?`|(?<!\S)\*\w+\*(?!\w))", text, flags=re.DOTALL)
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"([|*`])", r"\\\1", re.sub(r"(?<=\w)_(?!\w)", r"\\_", parts[at]))
        if at and re.match(r"\w", parts[at]):
            parts[at] = rf"\ {parts[at]}"  # the s of `Trial`s
    return "".join(parts)


def paragraph(block: list[str]) -> list[str]:
    """A paragraph of a docstring: what is laid out in columns or by indenting stays as it is, lists get their space."""
    first = block[0]
    if re.match(r"\s*(Args|Raises|Returns|Yields|Note|Example)s?:$", first):
        return plain_text("\n".join(block)).split("\n")
    lists = [bool(re.match(r"\s*- ", line)) for line in block]
    columns = any(re.search(r"\S {3,}\S", line) for line in block)
    deeper = any(len(line) - len(line.lstrip()) > len(first) - len(first.lstrip()) for line in block)
    if columns or (deeper and not any(lists)):
        return ["::", "", *(f"    {line}" for line in block)]
    lines = plain_text("\n".join(block)).split("\n")
    if any(lists[1:]) and not lists[0]:
        lines.insert(lists.index(True), "")
    return lines


EQUATIONS: dict[str, dict[str, list[str]]] = yaml.safe_load((HERE / "equations.yaml").read_text(encoding="utf-8"))


def derived(name: str) -> list[str]:
    """The line that says where the formulas of an object are derived; its numbers become links."""
    found = EQUATIONS.get(name, {})
    places = [f"notebook {notebook} " + ", ".join(f"({tag})" for tag in tags) for notebook, tags in found.items()]
    return [f"Derived in {'; '.join(places)}.", ""] if places else []


def read_docstring(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are written to be read as they are; here they become what Sphinx reads."""
    blocks = "\n".join(lines).strip("\n").split("\n\n")
    lines[:] = [line for block in blocks for line in [*paragraph(block.strip("\n").split("\n")), ""]]
    lines += derived(name)


def setup(app: object) -> None:
    # Before napoleon, which writes markup of its own.
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # type: ignore[attr-defined]

"""Numbered equations as places that can be linked to, and links to them and to notebooks wherever they are named.

An equation with `\\tag{5.4}` gets an anchor. In text, `(5.4)` is a link to it: in a notebook to the equation of that
page, elsewhere to that of a notebook that the same paragraph names. "notebook 03" is a link in text and docstrings.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

TAG = re.compile(r"\\tag\{(\d+[a-z]?\.\d+)\}")
NAMED = re.compile(
    r"(?<![\w\]])\((?P<tag>\d{1,2}[a-z]?\.\d{1,2})\)|(?P<notebook>\b[Nn]otebook (?P<number>\d\d[a-z]?))\b"
)
NOTEBOOK = re.compile(r"\b[Nn]otebook (\d\d[a-z]?)\b")
# What is no running text.
CLOSED = (nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.title)


def number_of(document: str) -> str:
    """ "05" of `notebooks/05_arcface`, "06b" of `notebooks/06b_pairs`, empty for other pages."""
    found = re.match(r"notebooks/(\d\d[a-z]?)_", document)
    return found.group(1) if found else ""


def anchor_equations(app: Sphinx, document: nodes.document) -> None:
    """Put an anchor at each numbered equation of a page and remember it."""
    page = app.env.docname
    found = app.env.equations[page] = {}  # type: ignore[attr-defined]
    for block in list(document.findall(nodes.math_block)):
        if (tag := TAG.search(block.astext())) is None:
            continue
        anchor = f"eq-{tag.group(1).replace('.', '-')}"
        if tag.group(1) not in found:
            found[tag.group(1)] = anchor
            block.parent.insert(block.parent.index(block), nodes.target("", "", ids=[anchor]))
        # Sphinx would put a display of several lines into an environment in which no number may stand.
        text = block.astext()
        block["no-wrap"] = block["nowrap"] = True
        block.children = []
        block += nodes.Text(f"\\[{text.strip()}\\]")


def forget(app: Sphinx, env: Any, page: str) -> None:
    app.env.equations.pop(page, None)  # type: ignore[attr-defined]


def link_names(app: Sphinx, document: nodes.document, page: str) -> None:
    """Make links of the equations and notebooks that the text of a page names."""
    equations: dict[str, dict[str, str]] = app.env.equations  # type: ignore[attr-defined]
    notebooks = {number_of(name): name for name in sorted(app.env.found_docs) if number_of(name)}

    def target(match: re.Match[str], paragraph: str) -> tuple[str, str] | None:
        if match["notebook"]:
            place = notebooks.get(match["number"])
            return (place, "") if place and place != page else None
        # Elsewhere the notebook must be named in the same paragraph: (1.5) may be a number.
        guesses = [page] if number_of(page) else []
        guesses += [notebooks.get(name, "") for name in NOTEBOOK.findall(paragraph)]
        for place in guesses:
            if anchor := equations.get(place, {}).get(match["tag"]):
                return place, anchor
        return None

    for node in list(document.findall(nodes.Text)):
        if any(isinstance(above, CLOSED) for above in ancestors(node)):
            continue
        text, done, parts = str(node), 0, []
        for match in NAMED.finditer(text):
            if found := target(match, node.parent.astext()):
                place, anchor = found
                address = "" if place == page else app.builder.get_relative_uri(page, place)
                parts += [nodes.Text(text[done : match.start()])]
                parts += [nodes.reference("", match.group(), internal=True, refuri=f"{address}#{anchor}".rstrip("#"))]
                done = match.end()
        if parts:
            node.parent.replace(node, [*parts, nodes.Text(text[done:])])


def ancestors(node: nodes.Node) -> Any:
    """All that a node stands in."""
    while (node := node.parent) is not None:
        yield node


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", lambda app: vars(app.env).setdefault("equations", {}))
    app.connect("doctree-read", anchor_equations)
    app.connect("env-purge-doc", forget)
    app.connect("doctree-resolved", link_names)
    return {"parallel_read_safe": False, "parallel_write_safe": True}

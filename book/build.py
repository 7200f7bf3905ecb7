"""Builds the book: notebooks with their committed outputs, claims, findings, explorers and the API as a static site.

    python -m book.build [--output build/book] [--strict]

No notebook is run and nothing is fetched. What is made from other files of the repository is written to
`<output>/source` and turned into `<output>/html` by Sphinx. --strict: a warning is an error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

import reprolib
from book.conf import mathjax_folder
from book.exercises import answerable
from reprolib.experiment import report
from reprolib.experiment.record import TableView, number, table_view
from reprolib.experiment.reference import Document, read_record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

PROFILES = ("full", "standard")
STATIC = ("book.css", "formulas.js", "explorers.js", "expression.js", "answers.js")
# Reading: words a minute, and minutes to follow a numbered equation with a pencil.
WORDS_A_MINUTE, MINUTES_AN_EQUATION = 200, 2
ROOMS = {
    "losses": "Losses",
    "theory": "Theory",
    "data": "Data",
    "evaluation": "Evaluation",
    "experiment": "Experiment",
    "": "Models, training, figures",
}


def escaped(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~&])", r"\\\1", text)


def table(view: TableView) -> str:
    """A table of text as Markdown."""
    return TableView("", view.columns, tuple(tuple(map(escaped, row)) for row in view.rows)).markdown()


def records() -> dict[str, Document]:
    """The committed record of each notebook, of profile `full` where there is one."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files = [ROOT / "reference" / profile / f"{path.stem}.json" for profile in PROFILES]
        if file := next((file for file in files if file.exists()), None):
            found[path.stem] = {**read_record(file), "committed": True}
    return found


def title_of(notebook: nbformat.NotebookNode, name: str) -> str:
    """ "05 · ArcFace: an additive angular margin", whether the notebook's heading has the number or not."""
    heading = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown").partition("\n")[0]
    words = re.sub(r"^#\s*(\d+b?\s*·\s*)?", "", heading)
    return f"{name.partition('_')[0]} · {words}"


def reading_minutes(notebook: nbformat.NotebookNode) -> int:
    """Minutes to read the text and to follow its numbered equations, in steps of five."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    minutes = len(text.split()) / WORDS_A_MINUTE + MINUTES_AN_EQUATION * len(re.findall(r"\\tag\{", text))
    return 5 * math.ceil(minutes / 5)


def repository() -> str:
    """ "owner/name" on GitHub: BOOK_REPOSITORY, the workflow's GITHUB_REPOSITORY, or the remote; empty without."""
    for variable in ("BOOK_REPOSITORY", "GITHUB_REPOSITORY"):
        if os.environ.get(variable):
            return os.environ[variable]
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(\.git)?$", found.strip())
    return match.group(1) if match else ""


def badges(name: str) -> str:
    """Links that open a notebook in Colab and Binder; empty where the repository's address is not known."""
    if not (place := repository()):
        return ""
    colab = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{place}/main?urlpath=lab/tree/notebooks/{name}.ipynb"
    links = [("Colab", colab), ("Binder", binder)]
    return " ".join(f'<a class="badge" href="{address}"><span>open in</span> {host}</a>' for host, address in links)


def with_answers(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with a line to type an answer into below each stub that a page can grade."""
    lines = {place: [one.line() for one in exercises] for place, exercises in answerable(notebook).items()}
    cells = []
    for place, cell in enumerate(notebook.cells):
        cells.append(cell)
        if place in lines:
            cells.append(nbformat.v4.new_markdown_cell("\n".join(lines[place])))
    if lines:
        scripts = [f'<script src="../_static/{name}.js"></script>' for name in ("expression", "answers")]
        cells.append(nbformat.v4.new_markdown_cell("\n".join(scripts)))
    notebook.cells = cells
    return notebook


def shown(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook as a page: its title with the number, badges below it, solutions folded with their outputs."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    rest = first.source.partition("\n")[2]
    minutes = f"about {reading_minutes(notebook)} minutes with a pencil"
    line = f'<p class="opening">{badges(name)} {minutes}</p>'
    first.source = f"# {title_of(notebook, name)}\n\n{line}\n{rest}"
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            cell.metadata["tags"] = [tag for tag in tags if tag != "hide-input"] + ["hide-cell"]
        # An id of a cell would be one more kind of place; front ends fold by this key, the book by the tag.
        cell.metadata.pop("jupyter", None)
    return notebook


def reading_order(notebooks: dict[str, nbformat.NotebookNode], found: dict[str, Document]) -> str:
    """The notebooks as a table: what to read, how long it takes, how long it runs."""
    rows = []
    for name, notebook in notebooks.items():
        made = found.get(name)
        runs = f"{math.ceil(made['seconds'] / 60)} min at `{made['profile']}`" if made else "–"
        title = escaped(title_of(notebook, name)).replace("$", "")
        rows.append(f"| [{title}](notebooks/{name}.ipynb) | {reading_minutes(notebook)} min | {runs} |")
    return "\n".join(["| notebook | to read | to run |", "|---|---|---|", *rows])


def one_claim(claim: Mapping[str, Any]) -> list[str]:
    """A claim as a short paragraph and what stands behind it: it reads on a narrow screen, where a table does not."""
    source = ", ".join(filter(None, (claim["paper"], claim["source"])))
    lines = [f"**{escaped(claim['id'])}, {claim['verdict']}.** {escaped(claim['statement'])} *({escaped(source)})*", ""]
    seeds = f" ({len(claim['seeds'])} seeds)" if claim["seeds"] else ""
    parts = [("criterion", claim["criterion"]), ("paper", number(claim["paper_value"]))]
    parts += [("here", f"{report.outcome(claim)}{seeds}"), ("power", claim.get("power", ""))]
    return [*lines, *(f"- {name}: {escaped(text)}" for name, text in parts if text not in ("", "–")), ""]


def claims_page(found: dict[str, Document], part: str) -> str:
    """Claims or findings, notebook by notebook, with criterion, the paper's value, what came out and the verdict."""
    titles = {
        "claims": "What the papers claim, and what came out here",
        "findings": "What the notebooks found beyond the papers",
    }
    lines = [f"# {titles[part]}", ""]
    if part == "claims":
        lines += [
            "A claim is one clause of a paper. Its criterion was written down before the run; `reproduced`: the 95 % "
            "interval of the paired difference lies on the paper's side of 0; `contradicted`: it lies on the other "
            "side, or leaves out a third of the paper's relative effect; `inconclusive`: neither.",
            "",
        ]
    for name, document in found.items():
        if document[part]:
            lines += [f"## {name}", "", f"Profile `{document['profile']}`.", ""]
            lines += [line for claim in document[part] for line in one_claim(claim)]
    return "\n".join(lines)


def checks_page(found: dict[str, Document]) -> str:
    """All checks with what was measured and what is allowed, and the tables of the notebooks."""
    lines = ["# Checks and tables of the record", ""]
    for name, document in found.items():
        lines += [f"## {name}", ""]
        if document["checks"]:
            lines += [table(report.checks_table(document["checks"])), ""]
        for one in document["tables"]:
            lines += [f"### {escaped(one['title'])}", "", table(table_view(one)), ""]
    return "\n".join(lines)


def modules(room: str) -> Iterator[str]:
    """The public modules of a room of the library, or those that stand alone."""
    folder = Path(reprolib.__file__).parent / room
    prefix = f"reprolib.{room}." if room else "reprolib."
    for module in pkgutil.iter_modules([str(folder)]):
        if not module.name.startswith("_") and not module.ispkg:
            yield prefix + module.name


def api_page(room: str, title: str) -> str:
    """The docstrings of a room."""
    lines = [f"# {title}", ""]
    if room:
        lines += ["```{eval-rst}", f".. automodule:: reprolib.{room}", "   :no-members:", "```", ""]
    for name in modules(room):
        lines += [f"## {name.removeprefix('reprolib.')}", "", "```{eval-rst}", f".. automodule:: {name}"]
        lines += ["   :members:", "   :show-inheritance:", "```", ""]
    return "\n".join(lines)


def citation_page() -> str:
    """How to cite the suite, from CITATION.cff."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join("{" + author["name"] + "}" for author in cited["authors"])
    entry = ["@software{reprolib,", f"  title = {{{cited['title']}}},", f"  author = {{{authors}}},"]
    entry += [f"  version = {{{cited['version']}}},", "}"]
    text = ["# How to cite", "", cited["message"], "", "```bibtex", *entry, "```", ""]
    return "\n".join([*text, f"License: {cited['license']}. The same as a file: `CITATION.cff` of the repository.", ""])


def gather(source: Path) -> None:
    """Write all pages to `source`, which is emptied first."""
    shutil.rmtree(source, ignore_errors=True)
    (source / "notebooks").mkdir(parents=True)
    (source / "api").mkdir()
    found = records()
    notebooks = {path.stem: nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    parts = {
        "READING_ORDER": reading_order(notebooks, found),
        "NOTEBOOKS": "\n".join(f"notebooks/{n}" for n in notebooks),
    }
    parts["API"] = "\n".join(f"api/{room or 'single'}" for room in ROOMS)
    for name, notebook in notebooks.items():
        nbformat.write(shown(with_answers(notebook), name), source / "notebooks" / f"{name}.ipynb")
    for path in HERE.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for name, made in parts.items():
            text = text.replace(f"<!-- {name} -->", made)
        (source / path.name).write_text(text, encoding="utf-8")
    pages = {part: claims_page(found, part) for part in ("claims", "findings")}
    pages |= {"checks": checks_page(found), "citation": citation_page()}
    pages |= {f"api/{room or 'single'}": api_page(room, title) for room, title in ROOMS.items()}
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "reference" / "gallery", source / "gallery")


def gather_static(folder: Path) -> None:
    """Scripts, styles, scores and MathJax with its fonts: all that a page asks for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in STATIC:
        shutil.copy(HERE / name, folder)
    scores = json.loads((ROOT / "reference" / "scores.json").read_text(encoding="utf-8"))
    # A script and not a file to be fetched: it works from a folder on the reader's disk, too.
    (folder / "scores.js").write_text(f"const SCORES = {json.dumps(scores)};\n", encoding="utf-8")
    shutil.copytree(ROOT / "reference" / "gallery", folder / "gallery")
    (folder / "report.html").write_text(report.html_report(list(records().values())), encoding="utf-8")
    package = mathjax_folder()
    (folder / "mathjax").mkdir()
    shutil.copy(package / "tex-chtml-full.js", folder / "mathjax")
    shutil.copytree(package / "output" / "chtml" / "fonts", folder / "mathjax" / "output" / "chtml" / "fonts")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of Sphinx."""
    parser = argparse.ArgumentParser(prog="book.build", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "book", metavar="FOLDER")
    parser.add_argument("--strict", action="store_true", help="a warning is an error")
    chosen = parser.parse_args(arguments)
    output = chosen.output.resolve()
    gather(output / "source")
    gather_static(output / "static")
    from sphinx.cmd.build import main as sphinx

    options = ["-b", "html", "-c", str(HERE), "-d", str(output / "doctrees"), "-q", "-E"]
    options += ["-D", f"html_static_path={output / 'static'}", *(["-W", "--keep-going"] if chosen.strict else [])]
    status = sphinx([*options, str(output / "source"), str(output / "html")])
    if status == 0:
        print(f"the book is {output / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())

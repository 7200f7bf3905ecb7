"""The notebooks as they are committed: executed in order, small, readable anywhere, and worth comparing."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from reprolib.experiment.parameters import PROFILES, declared_parameters, load_profile, profile_parameters

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MEGABYTE = 2**20
LONGEST_CODE_CELL = 25
COMPARED_CELLS = 3
LONGEST_FORMULA = 80
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:home|root|Users|work|tmp|var|opt|mnt)/|\b[A-Z]:\\")
PROGRESS = re.compile(r"\d+%\||\bit/s\b|\bs/it\b")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """All text that a cell shows, without its pictures."""
    shown = []
    for output in cell.outputs:
        shown.append(output.get("text", ""))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                shown.append(data if isinstance(data, str) else str(data))
    return shown


def test_every_notebook_has_a_smoke_profile_of_its_own():
    assert {path.stem for path in NOTEBOOKS} == set(load_profile("smoke")) - {"defaults"}
    assert NOTEBOOKS


@each
def test_valid_small_and_for_the_kernel_of_everyone(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert path.stat().st_size < MEGABYTE
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert "papermill" not in notebook.metadata
    assert not [cell for cell in notebook.cells if "papermill" in cell.metadata]
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


@each
def test_executed_from_top_to_bottom_without_an_error(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds


@each
def test_nothing_on_stderr_and_no_progress(path):
    for cell in code_cells(path):
        streams = {output.name for output in cell.outputs if output.output_type == "stream"}
        assert "stderr" not in streams, cell.source
        assert not [text for text in texts(cell) if PROGRESS.search(text)], cell.source
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        assert not [kind for kind in kinds if "widget" in kind], cell.source


@each
def test_no_path_of_a_machine(path):
    for cell in read(path).cells:
        for text in [cell.source, *(texts(cell) if cell.cell_type == "code" else [])]:
            assert not MACHINE_PATH.search(text), text[:300]


@each
def test_code_cells_are_short(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= LONGEST_CODE_CELL, cell.source


@each
def test_parameters_cell_holds_the_standard_profile(path):
    declared = declared_parameters(read(path))
    assert declared == profile_parameters(path.stem, "standard")
    assert declared["profile"] == "standard"
    kinds = {name: type(value) for name, value in declared.items()}
    for profile in PROFILES:
        values = profile_parameters(path.stem, profile)
        assert {name: type(value) for name, value in values.items()} == kinds, profile


@each
def test_every_parameter_is_used(path):
    rest = [cell for cell in code_cells(path) if "parameters" not in cell.metadata.get("tags", [])]
    names: Counter[str] = Counter()
    for cell in rest:
        for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE))):
            if isinstance(node, (ast.Name, ast.Attribute)):
                names[node.id if isinstance(node, ast.Name) else node.attr] += 1
    # These two are read by `experiment.start`.
    for name in set(declared_parameters(read(path))) - {"profile", "seeds"}:
        assert names[name], f"parameter {name!r} is not used"


@each
def test_nbval_has_something_to_compare(path):
    tagged = [cell for cell in code_cells(path) if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(tagged) >= COMPARED_CELLS
    for cell in tagged:
        # nbval compares nothing for a cell without an execution count.
        assert cell.execution_count is not None
        assert any(text.strip() for text in texts(cell)), cell.source


@each
def test_a_notebook_begins_and_ends_its_record(path):
    sources = [cell.source for cell in code_cells(path)]
    starts = [source for source in sources if f'experiment.start("{path.stem}", globals())' in source]
    assert len(starts) == 1
    assert "run.finish()" in sources[-1]


def bodies(path: Path) -> Iterator[tuple[str, str]]:
    """Name and body of each function and class of a page that is longer than a formula; no exercises.

    Its name, arguments and docstring do not tell a helper from another.
    """
    for cell in code_cells(path):
        if not {"exercise", "solution"} & set(cell.metadata.get("tags", [])):
            for node in ast.parse(re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE)).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                    if len(text := "\n".join(map(ast.unparse, body))) > LONGEST_FORMULA:
                        yield node.name, text


def test_no_notebook_defines_a_helper_that_another_defines():
    homes: dict[str, dict[str, str]] = {}
    for path in NOTEBOOKS:
        for name, body in bodies(path):
            homes.setdefault(body, {})[path.stem] = name
    assert [found for found in homes.values() if len(found) > 1] == []


def test_the_pattern_of_machine_paths_finds_them_and_not_addresses():
    for text in ("/home/a/x", "in '/root/x'", "/tmp/tmpabc/a", r"C:\Users\a", "(/opt/data/a)"):
        assert MACHINE_PATH.search(text), text
    for text in ("https://site.org/home/x", "data/work/x", "and/or", "a/tmp/b", "../work/x", "1/root/2"):
        assert not MACHINE_PATH.search(text), text


def unkeyed(source: str) -> list[str]:
    """Cached functions that read the tuned values themselves: an edit of the table would not change their key."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not any(
            "run.cached" in ast.unparse(d) for d in node.decorator_list
        ):
            continue
        text = ast.unparse(node)
        runs = re.search(r"arenas\.(numbers_run|lfw_run)\(", text)
        if "arenas.tuned(" in text or (runs and "hyper" not in text):
            found.append(node.name)
    return found


@each
def test_cached_runs_are_given_the_tuned_values(path):
    assert not [name for cell in code_cells(path) for name in unkeyed(cell.source)]


def test_a_cached_run_that_reads_the_tuned_values_is_seen():
    run = "@run.cached\ndef one(seed):\n    return arenas.numbers_run('softmax', seed=seed{})"
    assert unkeyed(run.format("")) == ["one"] and unkeyed(run.format(", hyper=hyper")) == []
    assert unkeyed("@run.cached(name='x')\ndef two(seed):\n    return arenas.tuned('lfw', 'softmax')") == ["two"]
    assert unkeyed("def three(seed):\n    return arenas.tuned('lfw', 'softmax')") == []

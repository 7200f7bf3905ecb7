"""Equations that the library's docstrings name exist in the notebooks."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@cache
def numbered() -> dict[str, set[str]]:
    """The numbers of the equations of each notebook."""
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        found[path.stem.partition("_")[0]] = set(re.findall(r"\\tag\{(\d+b?\.\d+)\}", "\n".join(cells)))
    return found


def test_every_equation_that_a_docstring_names_is_in_its_notebook():
    tags, named = numbered(), 0
    for path in (ROOT / "reprolib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                for notebook, equations in re.findall(r"[Nn]otebook (\d\db?) ((?:\(\d+b?\.\d+\)(?:, )?)+)", text):
                    for tag in re.findall(r"\d+b?\.\d+", equations):
                        assert tag in tags[notebook], f"{path.name}: notebook {notebook} has no equation ({tag})"
                        named += 1
    assert named >= 10


TABLE = yaml.safe_load((ROOT / "book" / "equations.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLE)
def test_every_object_of_the_table_and_each_of_its_equations_exists(name):
    module, _, attribute = name.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    # the book documents an object where it is defined
    assert (thing.__module__, bool(thing.__doc__)) == (module, True)
    for notebook, equations in TABLE[name].items():
        assert equations and set(equations) <= numbered()[notebook]


def test_the_table_leads_to_every_notebook_of_a_paper():
    named = {notebook for places in TABLE.values() for notebook in places}
    assert named >= {"00", "01", "02", "03", "04", "05", "06", "06b", "08"}
    library = [(file, "losses." + file.stem) for file in (ROOT / "reprolib" / "losses").glob("margin*.py")]
    for path, module in library:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name not in ("Margin", "NoMargin", "MarginSoftmax"):
                assert f"reprolib.{module}.{node.name}" in TABLE

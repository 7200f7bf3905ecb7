"""Equations that the library's docstrings name exist in the notebooks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]


def test_every_equation_that_a_docstring_names_is_in_its_notebook():
    tags: dict[str, set[str]] = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        tags.setdefault(path.stem[:2], set()).update(re.findall(r"\\tag\{(\d+\.\d+)\}", "\n".join(cells)))
    named = 0
    for path in (ROOT / "reprolib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split())
                for notebook, equations in re.findall(r"[Nn]otebook (\d\d) ((?:\(\d+\.\d+\)(?:, )?)+)", text):
                    for tag in re.findall(r"\d+\.\d+", equations):
                        assert tag in tags[notebook], f"{path.name}: notebook {notebook} has no equation ({tag})"
                        named += 1
    assert named >= 10

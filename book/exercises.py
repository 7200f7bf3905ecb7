"""Exercises whose answer is a formula or a number: what their page needs in order to grade it without Python.

The check of an exercise, `grade.expect("5.10", ...)`, is run here with what it stands on and nothing else of its
notebook: imports, functions, constants. An exercise whose arguments or results are not plain numbers, or whose check
needs a run, is left to `grade` in JupyterLab.
"""

from __future__ import annotations

import ast
import dis
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import CodeType, SimpleNamespace
from typing import Any

import nbformat
import torch

from reprolib.experiment.exercises import Expected, Grade, shown_case


@dataclass(frozen=True)
class Case:
    """Arguments, the right values there, and the words for the arguments."""

    given: list[float]
    values: list[float]
    shown: str


@dataclass(frozen=True)
class Exercise:
    """An exercise as its page gets it."""

    id: str
    arguments: list[str]
    cases: list[Case]
    tolerance: float

    def line(self) -> str:
        """The place on the page where an answer is typed."""
        return f'<div class="answer" data-exercise="{html.escape(json.dumps(asdict(self)))}"></div>'


class NeedsARun(Exception):
    """A check that stands on something which only a run has."""


class NoRun(SimpleNamespace):
    """What stands in for a notebook's `run`: it grades, and has nothing else."""

    def __getattr__(self, name: str) -> Any:
        raise NeedsARun(name)


def names(code: CodeType, operations: Sequence[str]) -> set[str]:
    """Names of a module's level that a piece of code loads or stores, its functions included."""
    found = {one.argval for one in dis.get_instructions(code) if one.opname in operations}
    return found.union(*(names(part, operations) for part in code.co_consts if isinstance(part, CodeType)))


class Statements:
    """The statements of a notebook's code cells in their order, each with the names that it binds and needs."""

    def __init__(self, notebook: nbformat.NotebookNode) -> None:
        cells = [ast.parse(cell.source).body for cell in notebook.cells if cell.cell_type == "code"]
        self.trees = [statement for cell in cells for statement in cell]
        self.codes = [compile(ast.Module([tree], []), "notebook", "exec") for tree in self.trees]
        self.binds = [names(code, ["STORE_NAME"]) for code in self.codes]
        self.needs = [names(code, ["LOAD_NAME", "LOAD_GLOBAL"]) for code in self.codes]

    def run(self, last: int) -> Grade:
        """Run one statement and, before it, the last binding of each name that it stands on."""
        chosen, waiting = {last}, [(name, last) for name in self.needs[last]]
        while waiting:
            name, before = waiting.pop()
            place = next((at for at in reversed(range(before)) if name in self.binds[at]), None)
            if place is not None and name != "run" and place not in chosen:
                chosen.add(place)
                waiting += [(other, place) for other in self.needs[place]]
                # a function finds its names when it is called
                waiting += [(other, last) for other in self.needs[place] if other != name]
        grade = Grade()
        space: dict[str, Any] = {"run": NoRun(grade=grade), "grade": grade}
        for at in sorted(chosen):
            exec(self.codes[at], space)
        return grade


def is_call(node: ast.AST, function: str) -> bool:
    """Whether this is a call of `grade` or `grade.expect` with an exercise's id."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == function and isinstance(node.args[0], ast.Constant)


def stubs(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, list[str], int]]:
    """Id, names of the arguments and place of the cell of each exercise to fill in."""
    for place, cell in enumerate(notebook.cells):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        functions: dict[str, list[str]] = {}
        for statement in ast.parse(cell.source).body:
            if isinstance(statement, ast.FunctionDef):  # a cell with two exercises binds the same name twice
                functions[statement.name] = [one.arg for one in statement.args.args]
            elif isinstance(statement, ast.Expr) and is_call(call := statement.value, "grade"):
                yield call.args[0].value, functions.get(ast.unparse(call.args[1]), []), place


def plain(value: Any) -> float | None:
    """A number as a page can have it, None for what is none."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def probes(check: Expected) -> list[Case] | None:
    """The right values of each case, None if something is not a number."""
    found = []
    for number, case in enumerate(check.cases or [()], 1):
        given = [plain(value) for value in case]
        if None in given:
            return None
        right = check.right(*case) if check.cases else check.right
        values = [plain(value) for value in (right if isinstance(right, (list, tuple)) else [right])]
        if None in values:
            return None
        found.append(Case(given, values, shown_case(given, number) if check.cases else ""))
    return found


def answerable(notebook: nbformat.NotebookNode) -> dict[int, list[Exercise]]:
    """The exercises that a page can grade, by the place of the cell with their stub."""
    statements = Statements(notebook)
    checks = {
        tree.value.args[0].value: at
        for at, tree in enumerate(statements.trees)
        if isinstance(tree, ast.Expr) and is_call(tree.value, "grade.expect")
    }
    found: dict[int, list[Exercise]] = {}
    for id, arguments, place in stubs(notebook):
        if id not in checks:
            continue
        try:
            check = statements.run(checks[id]).checks[id]
        except NeedsARun:
            continue
        if isinstance(check, Expected) and (cases := probes(check)) is not None:
            found.setdefault(place, []).append(Exercise(id, arguments, cases, check.tolerance))
    return found

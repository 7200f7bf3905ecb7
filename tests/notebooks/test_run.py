"""Every notebook, run by the runner at profile smoke: its record is complete and repeatable."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from reprolib.experiment.kernel import kernel_manager_class
from reprolib.experiment.parameters import profile_parameters
from reprolib.experiment.paths import UsageError, results_folder
from reprolib.experiment.record import VERDICTS
from reprolib.experiment.runner import run_notebooks

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# By this id the top conftest.py has them follow the cells of the notebook, in the same worker.
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

TOP = {"notebook", "profile", "parameters", "environment", "seconds", "checks", "claims", "findings", "tables"}
CHECK = {"id", "statement", "source", "kind", "measured", "tolerance", "passed", "detail"}
CLAIM = {"id", "paper", "statement", "source", "criterion", "paper_value", "measured", "seeds", "verdict"}
TABLE = {"id", "title", "columns", "rows"}


def run(path: Path, results: Path) -> dict[str, Any]:
    (outcome,) = run_notebooks([path.stem], "smoke", results=results)
    assert outcome.status == "run", outcome.message
    return json.loads((results / "smoke" / f"{path.stem}.json").read_text(encoding="utf-8"))


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """The places at which two records differ, with both values: the whole records would fill the screen."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [text for key in first for text in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [
            text
            for k, pair in enumerate(zip(first, second, strict=True))
            for text in differences(*pair, f"{place}/{k}")
        ]
    return [] if first == second else [f"{place}: {first!r} != {second!r}"]


def check_schema(document: dict[str, Any], name: str) -> None:
    assert set(document) == TOP
    assert document["notebook"] == name
    assert document["profile"] == "smoke"
    assert document["parameters"] == profile_parameters(name, "smoke")
    assert document["seconds"] > 0
    assert all(math.isfinite(number) for number in numbers(document))
    for part, keys in (("checks", CHECK), ("claims", CLAIM), ("findings", CLAIM), ("tables", TABLE)):
        entries = document[part]
        assert all(set(entry) == keys for entry in entries), part
        assert len({entry["id"] for entry in entries}) == len(entries), part
    for check in document["checks"]:
        assert check["passed"] is True, check
        assert isinstance(check["measured"], float), check
        assert check["tolerance"] > 0, check
    for claim in (*document["claims"], *document["findings"]):
        assert claim["verdict"] in VERDICTS, claim
        assert claim["measured"], claim
        finding = claim in document["findings"]
        assert bool(claim["paper"]) != finding, claim
        texts = (claim[key] for key in ("paper", "statement", "source", "criterion")[finding:])
        assert all(isinstance(text, str) and text for text in texts), claim
    for table in document["tables"]:
        assert table["rows"], table["id"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"]), table["id"]


def check_exercises(executed: Path) -> None:
    """Stubs are not answered yet, and for every one of them there is a solution that is graded right."""
    graded: dict[str, list[str]] = {"exercise": [], "solution": []}
    for cell in nbformat.read(executed, as_version=4).cells:
        for tag in graded.keys() & set(cell.metadata.get("tags", [])):
            told = "".join(output.get("text", "") for output in cell.outputs).splitlines()
            calls = re.findall(r"^grade\(\"(.+?)\"", cell.source, flags=re.MULTILINE)
            assert calls, cell.source
            expected = ["not answered yet"] * len(calls) if tag == "exercise" else ["right"] * len(calls)
            assert [line.partition(" (")[0] for line in told] == [
                f"{id}: {verdict}" for id, verdict in zip(calls, expected, strict=True)
            ], cell.source
            graded[tag] += calls
    assert sorted(graded["exercise"]) == sorted(graded["solution"])


@each
def test_record_is_complete_and_the_same_from_another_folder_with_an_empty_cache(path, tmp_path, monkeypatch):
    # nbval ran the cells a moment ago, if notebooks are collected: then this is the second run, else the first of two.
    recorded = results_folder() / "smoke" / f"{path.stem}.json"
    first = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else run(path, tmp_path / "first")
    check_schema(first, path.stem)
    assert first["checks"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / "cache"))
    second = run(path, tmp_path / "second")
    check_exercises(tmp_path / "second" / "smoke" / path.name)
    for document in (first, second):
        del document["seconds"], document["environment"]
    assert differences(first, second) == []
    # A notebook writes nothing into the folder that it happens to run in.
    assert list(elsewhere.iterdir()) == []


@each
def test_an_unknown_parameter_is_refused(path, tmp_path):
    with pytest.raises(UsageError, match=rf"unknown parameter 'nosuch' of {path.stem}"):
        run_notebooks([path.stem], "smoke", {"nosuch": 1}, results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_unknown_parameter_is_refused_by_a_bare_papermill(tmp_path, monkeypatch):
    # One for all: the setup cell of each notebook is the same call of experiment.start.
    monkeypatch.setenv("REPROLIB_RESULTS", str(tmp_path / "results"))
    kernel = kernel_manager_class({"REPROLIB_RESULTS": str(tmp_path / "results")})
    options = {"kernel_name": "python3", "language": "python", "kernel_manager_class": kernel}
    # A copy, because papermill reads braces in a path as fields.
    copy = shutil.copy(NOTEBOOKS[0], tmp_path / NOTEBOOKS[0].name)
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'nosuch'"):
        papermill.execute_notebook(copy, None, parameters={"nosuch": 1}, progress_bar=False, **options)
    assert not (tmp_path / "results").exists()


def executed(path: Path, *cells: tuple[str, str, str]) -> Path:
    """A notebook of code cells (tag, source, what it printed)."""
    made = []
    for tag, source, printed in cells:
        output = nbformat.v4.new_output("stream", name="stdout", text=printed)
        made.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}, outputs=[output]))
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


STUB = ("exercise", 'def yours(x):\n    raise NotImplementedError\n\n\ngrade("5.1", yours)', "5.1: not answered yet\n")
SOLUTION = ("solution", 'grade("5.1", lambda x: x)', "5.1: right (largest difference 0e+00)\n")


def test_exercises_with_their_solutions_pass(tmp_path):
    check_exercises(executed(tmp_path / "x.ipynb", STUB, SOLUTION))


@pytest.mark.parametrize(
    "cells",
    [
        (STUB,),
        (SOLUTION,),
        (STUB, (*SOLUTION[:2], "5.1: not right yet: largest difference 1, allowed 1e-09\n")),
        (STUB, (*SOLUTION[:2], "5.1: not answered yet\n")),
        (STUB, (*SOLUTION[:2], "")),
        ((*STUB[:2], SOLUTION[2]), SOLUTION),
        (STUB, ("solution", "yours = None", ""), SOLUTION),
    ],
    ids=["no-solution", "no-stub", "wrong", "unanswered", "silent", "stub-solved", "ungraded"],
)
def test_an_exercise_that_is_not_solved_fails(tmp_path, cells):
    with pytest.raises(AssertionError):
        check_exercises(executed(tmp_path / "x.ipynb", *cells))

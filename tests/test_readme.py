"""The numbers in the README are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table
from reprolib.experiment import report

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = sorted((ROOT / "reference" / "standard").glob("*.json"))
LARGE = sorted((ROOT / "reference" / "full").glob("*.json"))


def test_the_table_of_notebooks_is_the_one_that_the_report_makes():
    records, large = ([json.loads(path.read_text(encoding="utf-8")) for path in paths] for paths in (RECORDS, LARGE))
    assert report.with_counts(README, records, large) == README
    made = report.markdown_report(report.load_records("standard", committed=True))
    assert made == (ROOT / "reference" / "standard" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_checks_and_verdicts_of_each_notebook(path):
    cells = [len(json.loads(path.read_text(encoding="utf-8"))["checks"])]
    for profile in ("standard", "full"):
        large = path.parents[1] / profile / path.name
        claims = json.loads(large.read_text(encoding="utf-8"))["claims"] if large.exists() else None
        verdicts = [claim["verdict"] for claim in claims or ()]
        kinds = ("reproduced", "contradicted", "inconclusive")
        cells.append("–" if claims is None else " / ".join(str(verdicts.count(kind)) for kind in kinds))
    (line,) = [line for line in README.splitlines() if line.startswith(f"| [`{path.stem}`]")]
    assert line.endswith("| " + " | ".join(map(str, cells)) + " |")


def test_measured_numbers():
    folder = ROOT / "reference" / "bench"
    made = table.markdown(folder)
    if table.BEGIN in README:
        assert made in README
    for row in table.rows(folder):
        assert row in README

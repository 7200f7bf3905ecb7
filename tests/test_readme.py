"""The numbers in the README are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = sorted((ROOT / "reference" / "standard").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_checks_and_verdicts_of_each_notebook(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    verdicts = [claim["verdict"] for claim in record["claims"]]
    counts = " / ".join(str(verdicts.count(kind)) for kind in ("reproduced", "contradicted", "inconclusive"))
    (line,) = [line for line in README.splitlines() if line.startswith(f"| [`{path.stem}`]")]
    assert line.endswith(f"| {len(record['checks'])} | {counts} |")


def test_measured_numbers():
    folder = ROOT / "reference" / "bench"
    made = table.markdown(folder)
    if table.BEGIN in README:
        assert made in README
    for row in table.rows(folder):
        assert row in README

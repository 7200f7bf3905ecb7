"""Every test that the table of faults names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_in_the_table_of_faults_exists():
    text = (ROOT / "book" / "faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", text)
    assert len(named) >= 20
    for module, test in named:
        source = (ROOT / "tests" / "experiment" / f"{module}.py").read_text(encoding="utf-8")
        assert f"\ndef {test}(" in source, f"{module}::{test}"

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reprolib.experiment import record as record_module
from reprolib.experiment.claims import Claim
from reprolib.experiment.record import (
    Record,
    TableView,
    checks_view,
    claims_view,
    dumps,
    number,
    plain,
    table_view,
)


class Estimate(float):
    """As in `reprolib.evaluation`: a float with its interval."""

    low, high, level, count, method = 0.9, 0.99, 0.95, 100, "exact"


def check(id="01.one", measured=3e-16, passed=True, detail=None):
    return SimpleNamespace(
        id=id,
        statement="a = a < b & c",
        source="eq. (1)",
        kind="identity",
        measured=measured,
        tolerance=1e-12,
        passed=passed,
        detail=detail or {"draws": 3},
    )


def claim(id="C-1", **changes):
    texts = {"paper": "Paper", "statement": "x is large", "source": "Table 1", "criterion": "x above 1"}
    return Claim(id, **{**texts, **changes})


def test_plain_gives_json_data():
    value = {
        "tensor": torch.tensor([1, 2]),
        "scalar": torch.tensor(0.5, dtype=torch.float64),
        "array": np.array([[1.5]]),
        "numpy": (np.float64(2.0), np.int64(3), np.bool_(True)),
        "rest": [None, "a", False],
    }
    expected = {
        "tensor": [1, 2],
        "scalar": 0.5,
        "array": [[1.5]],
        "numpy": [2.0, 3, True],
        "rest": [None, "a", False],
    }
    assert plain(value, "x") == expected
    assert json.loads(dumps(plain(value, "x"))) == expected


def test_an_estimate_keeps_its_interval():
    assert plain(Estimate(0.95), "x") == {"value": 0.95, "low": 0.9, "high": 0.99, "level": 0.95}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, [1.0, -math.inf], {"a": torch.tensor(math.nan)}, np.float32("nan")]
)
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"accuracy.* must be finite"):
        plain(value, "accuracy")
    with pytest.raises(ValueError):
        dumps({"x": math.nan})


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, b"x"])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError, match="accuracy"):
        plain(value, "accuracy")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98765, "0.9877"),
        (12.0, "12"),
        (1234.56, "1235"),
        (3.2e-9, "3.2e-09"),
        (0.0, "0"),
        (7, "7"),
        (1e9, "1.0e+09"),
        (None, "–"),
        (True, "yes"),
        ("text", "text"),
        ({"value": 0.95, "low": 0.9, "high": 0.99, "level": 0.95}, "0.95 [0.9, 0.99]"),
        ({"a": 1, "b": 0.5}, "a 1, b 0.5"),
        ([1, 2.5], "1, 2.5"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_a_check_is_recorded_with_its_detail():
    record = Record()
    record.add_check(check(detail={"random": 0.1, "extremal": math.inf, "list": [math.nan, 1]}))
    (stored,) = record.document()["checks"]
    assert stored == {
        "id": "01.one",
        "statement": "a = a < b & c",
        "source": "eq. (1)",
        "kind": "identity",
        "measured": 3e-16,
        "tolerance": 1e-12,
        "passed": True,
        "detail": {"random": 0.1, "extremal": None, "list": [None, 1]},
    }


def test_a_failed_check_keeps_the_record_from_being_finished():
    record = Record()
    record.add_check(check(measured=math.inf, passed=False))
    assert record.document()["checks"][0]["measured"] is None
    assert "check '01.one' did not pass" in record.unfinished()
    assert "not finite" in repr(checks_view(record.document()["checks"]))


def test_duplicate_ids_raise():
    record = Record()
    record.add_check(check())
    record.add_claim(claim())
    record.add_table("t", "T", ["a"], [[1]])
    with pytest.raises(ValueError, match=r"check '01.one' is already"):
        record.add_check(check())
    with pytest.raises(ValueError, match="claim 'C-1' is already"):
        record.add_claim(claim())
    with pytest.raises(ValueError, match="table 't' is already"):
        record.add_table("t", "T", ["a"], [[1]])
    assert [len(part) for part in record.document().values()] == [1, 1, 0, 1]


def test_a_cell_that_runs_again_may_use_its_ids_again(monkeypatch):
    record = Record()
    monkeypatch.setattr(record_module, "running_cell", lambda: ("cell-a", 1))
    record.add_check(check(measured=1e-15))
    with pytest.raises(ValueError, match="already"):
        record.add_check(check())
    monkeypatch.setattr(record_module, "running_cell", lambda: ("cell-a", 2))
    record.add_check(check(measured=2e-15))
    assert record.checks["01.one"]["measured"] == 2e-15
    monkeypatch.setattr(record_module, "running_cell", lambda: ("cell-b", 3))
    with pytest.raises(ValueError, match="already"):
        record.add_check(check())


def test_an_unjudged_claim_keeps_the_record_from_being_finished():
    record = Record()
    record.add_claim(claim())
    assert "claim 'C-1' was declared but not judged" in record.unfinished()
    record.claims["C-1"].judge({"x": 2.0}, [0], holds=True)
    assert record.unfinished() is None


def test_a_table_needs_rows_of_its_width():
    record = Record()
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        record.add_table("t", "T", ["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="finite"):
        record.add_table("t", "T", ["a"], [[math.nan]])
    record.add_table("t", "T", ["a", "b"], [[np.float64(0.5), None]])
    assert record.document()["tables"] == [{"id": "t", "title": "T", "columns": ["a", "b"], "rows": [[0.5, None]]}]
    assert repr(table_view(record.tables["t"])) == "T\na    b\n---  -\n0.5  –"


def test_views_escape_html_and_can_leave_out_what_differs_between_machines():
    checks = [plain(vars(check()), "x")]
    shown = checks_view(checks)
    assert "a = a &lt; b &amp; c" in shown._repr_html_()
    assert "3e-16" in repr(shown)
    stable = checks_view(checks, measured=False)
    assert "3e-16" not in repr(stable) + stable._repr_html_()
    assert repr(stable).endswith("passed")
    open_claim = claims_view([claim().document()])
    assert "not judged yet" in repr(open_claim)


def test_markdown_keeps_its_columns_when_a_cell_has_a_bar():
    view = TableView("T", ("a", "b"), (("|x|", "1"),))
    assert view.markdown() == "| a | b |\n| --- | --- |\n| \\|x\\| | 1 |"

"""The reader's record beside the committed one, claim by claim."""

from __future__ import annotations

import copy
import json

import pytest
from test_report import commit, document

from reprolib.experiment.paths import UsageError
from reprolib.experiment.reference import (
    DIFFERS,
    MISSING,
    NEW,
    SAME,
    against_reference,
    compare,
    comparison_view,
    load_reference,
)


def changed(**verdicts):
    made = copy.deepcopy(document())
    for claim in (*made["claims"], *made["findings"]):
        claim["verdict"] = verdicts.get(claim["id"].replace("-", ""), claim["verdict"])
    return made


def test_equal_verdicts_are_as_in_the_reference_whatever_the_numbers():
    here = changed()
    here["claims"][0]["measured"] = {"x": 3.25}
    comparison = compare(here, document())
    assert [pair.result for pair in comparison.claims.values()] == [SAME] * 4
    assert str(comparison) == "4 of 4 claims as in the reference"
    assert comparison_view([comparison]).rows[0] == ("F-0", "x 3.25", "x 2.5", "reproduced", "reproduced", SAME)


def test_other_verdicts_new_and_missing_claims_and_checks_are_named():
    here = changed(F0="contradicted", FF1="inconclusive")
    here["claims"][1]["id"] = "F-9"
    here["checks"].append({**here["checks"][0], "id": "90.two"})
    here["parameters"]["steps"] = 9
    comparison = compare(here, document())
    found = {id: pair.result for id, pair in comparison.claims.items()}
    assert found == {"F-0": DIFFERS, "F-9": NEW, "F-2": SAME, "FF-1": DIFFERS, "F-1": MISSING}
    assert str(comparison) == (
        "1 of 5 claims as in the reference; 2 differ (F-0, FF-1); 1 not in the reference (F-9); "
        "1 only in the reference (F-1); 1 checks not in the reference; with another steps"
    )
    rows = comparison_view([comparison]).rows
    assert [row[0] for row in rows] == ["F-0", "F-9", "F-2", "FF-1", "F-1"]
    assert rows[1][2:] == ("–", "reproduced", "–", NEW)
    assert rows[4][1:4] == ("–", "x 2.5", "–")


def test_records_of_two_notebooks_are_not_compared():
    with pytest.raises(ValueError, match="got '90_fixture' and '91_other'"):
        compare(document(), document("91_other"))


def test_a_record_stands_beside_the_committed_one(suite):
    assert load_reference("90_fixture", "standard") is None
    assert against_reference(document()) is None
    commit(suite, document())
    assert load_reference("90_fixture", "standard") == document()
    assert str(against_reference(changed(F0="contradicted"))) == "3 of 4 claims as in the reference; 1 differ (F-0)"


@pytest.mark.parametrize("content", ["{", "[]", "3", json.dumps({"notebook": "x"})])
def test_a_damaged_reference_is_named(suite, content):
    commit(suite, document())
    path = suite.root / "reference" / "standard" / "90_fixture.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"record 90_fixture.json (cannot be read|has no)"):
        load_reference("90_fixture", "standard")

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from reprolib.experiment.paths import UsageError
from reprolib.experiment.report import (
    changed_parameters,
    html_report,
    list_claims,
    load_records,
    markdown_report,
    outcome,
    overview,
    used_up,
    with_counts,
    write_report,
)

PARAMETERS = {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3}


def document(notebook="90_fixture", profile="standard", **parameters):
    check = {"id": "90.one", "statement": "one", "source": "(1)", "kind": "bound"}
    claim = {"paper": "Fixture 2020", "source": "Table 1", "criterion": "x above 1"}
    claim |= {"paper_value": 3.0, "seeds": [0]}
    verdicts = ("reproduced", "reproduced", "inconclusive")
    return {
        "notebook": notebook,
        "profile": profile,
        "parameters": {**PARAMETERS, "profile": profile, **parameters},
        "seconds": 12.4,
        "environment": {"device": "cpu"},
        "checks": [{**check, "measured": 2e-10, "tolerance": 1e-9, "passed": True}],
        "claims": [
            {**claim, "id": f"F-{n}", "statement": f"claim {n}", "measured": {"x": 2.5}, "verdict": verdict}
            for n, verdict in enumerate(verdicts)
        ],
        "findings": [
            {**claim, "id": "FF-1", "paper": "", "statement": "more", "measured": {"x": 1.0}, "verdict": "contradicted"}
        ],
        "tables": [{"id": "t", "title": "A table", "columns": ["a"], "rows": [[0.25]]}],
    }


def commit(suite, content):
    path = suite.root / "reference" / content["profile"] / f"{content['notebook']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write(suite, content, profile="standard", name="90_fixture"):
    path = suite.results / profile / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_overview_counts_and_marks_changed_parameters(suite):
    write(suite, document())
    write(suite, document("91_other", steps=9), name="91_other")
    records = load_records("standard")
    assert changed_parameters(document(steps=9)) == {"steps": 9}
    assert changed_parameters(document()) == {}
    records[1]["notebook"] = "90_fixture"
    view = overview(records)
    columns = "notebook, checks passed, reproduced, contradicted, inconclusive, findings, as in the reference, seconds"
    assert (view.title, view.columns) == ("Profile standard", (*columns.split(", "), "device"))
    assert view.rows == (
        ("90_fixture", "1", "2", "0", "1", "1", "–", "12", "cpu"),
        ("90_fixture *", "1", "2", "0", "1", "1", "–", "12", "cpu"),
        ("all", "2", "4", "0", "2", "2", "", "25", ""),
    )


def test_the_committed_record_stands_in_and_beside(suite):
    commit(suite, document())
    (only,) = load_records("standard")
    assert only["committed"] is True
    assert overview([only]).rows[0][6] == "committed"
    changed = document()
    changed["claims"][2] |= {"verdict": "reproduced", "measured": {"x": 9.0}}
    write(suite, changed)
    commit(suite, document("91_other"))
    own, other = load_records("standard")
    assert (own["committed"], other["committed"]) == (False, True)
    assert overview([own, other]).rows[0][6] == "3 of 4"
    text = markdown_report([own])
    assert "3 of 4 claims as in the reference; 1 differ (F-2)." in text
    assert "| F-2 | x 9 | x 2.5 | reproduced | inconclusive | differs |" in text
    assert "Beside the reference" not in markdown_report([other])
    listed = list_claims([own], paper="fixture").splitlines()
    assert "  as in the reference: reproduced, x 2.5" in listed
    assert "  differs: inconclusive, x 2.5" in listed


def test_report_holds_claims_tables_and_checks(suite):
    write(suite, document(steps=9))
    path = write_report(load_records("standard"))
    assert path == suite.results / "standard" / "report.md"
    text = path.read_text(encoding="utf-8")
    assert text == markdown_report(load_records("standard"))
    parts = (
        "# Report, profile standard",
        "## 90_fixture",
        "| F-2 |",
        "### Findings",
        "| FF-1 |",
        "### A table",
        "| 0.25 |",
        "| 90.one |",
    )
    for part in parts:
        assert part in text
    assert "Parameters that differ from the profile: steps = 9." in text


def test_the_report_says_what_was_easy_and_what_was_not(suite):
    write(suite, document(steps=9))
    text = markdown_report(load_records("standard"))
    parts = ("## Scope", "## Method", "## Results, paper by paper", "Of 3 claims: 2 reproduced, 0 contradicted")
    for part in (*parts, "| Fixture 2020 | 2 | 0 | 1 |", "### What came out as the papers say", "## Environment"):
        assert part in text
    assert "### What came out otherwise" not in text  # the contradicted one is a finding
    easy, hard = text.split("### What came out as the papers say")[1].split("### What these runs cannot decide")
    assert ("| F-0 |" in easy, "| F-2 |" in easy, "| F-2 |" in hard.split("##")[0]) == (True, False, True)
    assert "| 90.one | one | (1) | bound | 2e-10 | 1e-09 | 0 % | passed |" in text


def test_a_claim_shows_the_difference_with_its_interval_first():
    estimate = {"value": 1.5, "low": 1.0, "high": 2.0, "level": 0.95}
    measured = {"reason": "because", "detectable": 0.3, "n": 5, "difference": estimate, "ours": 2.5, "base": 1.0}
    assert outcome({"measured": measured}) == "ours 2.5, base 1, difference 1.5 [1, 2]"
    assert outcome({"measured": {"reason": "not run here"}}) == "reason not run here"
    assert outcome({"measured": {"x": [1, 2]}}) == "x 1, 2"


def test_what_a_check_used_up_of_what_is_allowed():
    def share(kind, measured, tolerance):
        return used_up({"kind": kind, "measured": measured, "tolerance": tolerance})

    assert share("identity", 5e-13, 1e-12) == share("gradient", 5e-8, 1e-7) == share("bound", -5e-10, 1e-9) == 0.5
    assert share("bound", 3.0, 1e-9) == 0
    assert share("counterexample", 0.4, 0.1) == 0.25
    assert share("identity", None, 1e-12) == share("counterexample", -1.0, 0.1) == math.inf


def test_html_report_is_one_page_with_everything_escaped(suite):
    changed = document()
    changed["claims"][0]["statement"] = "a < b & <script>c</script>"
    write(suite, changed)
    text = html_report(load_records("standard"))
    assert "a &lt; b &amp; &lt;script&gt;c&lt;/script&gt;" in text
    for outside in ("<script", "<link", "http", "src="):
        assert outside not in text
    parser = HTMLParser()
    opened: list[str] = []

    def start(tag, attributes):
        if tag != "meta":
            opened.append(tag)

    def end(tag):
        assert opened.pop() == tag

    parser.handle_starttag, parser.handle_endtag = start, end
    parser.feed(text)
    assert opened == []
    places = re.findall(r'href="#(\w+)"', text)
    assert len(places) >= 6 and all(f'id="{place}"' in text for place in places)
    assert "F-2" in text and "90.one" in text and "A table" in text


def test_counts_in_a_readme_are_brought_up_to_date():
    line = "| [`90_fixture`](notebooks/90_fixture.ipynb) | a | fixture | {} | {} | {} |\n"
    before = f"x\n{line.format(7, '1 / 1 / 1', '9 / 9 / 9')}y\n"
    after = with_counts(before, [document()])
    assert after == f"x\n{line.format(1, '2 / 0 / 1', '–')}y\n"
    assert with_counts(after, [document()]) == after
    other = {**document("91_other"), "claims": []}
    assert with_counts(before, [document()], [other]) == after
    large = {**document(), "claims": document()["claims"][:1]}
    assert with_counts(after, [document()], [other, large]) == f"x\n{line.format(1, '2 / 0 / 1', '1 / 0 / 0')}y\n"
    for wrong in ("x\n", before + before):
        with pytest.raises(UsageError, match="README must have one line for 90_fixture, got"):
            with_counts(wrong, [document()])


def test_without_a_profile_the_one_with_records_is_shown(suite, monkeypatch):
    write(suite, document())
    assert load_records()[0]["profile"] == "standard"
    monkeypatch.setenv("REPROLIB_DEVICE", "cuda")
    assert load_records()[0]["profile"] == "standard"
    write(suite, document(profile="full"), "full")
    assert load_records()[0]["profile"] == "full"
    assert load_records("standard")[0]["profile"] == "standard"


@pytest.mark.parametrize("content", ["{", "[]", "3", json.dumps({"notebook": "x"})])
def test_a_record_that_cannot_be_read_is_named(suite, content):
    write(suite, content)
    with pytest.raises(UsageError, match=r"record 90_fixture.json") as caught:
        load_records("standard")
    assert "\n" not in str(caught.value)


def test_no_record_and_no_profile_are_refused(suite):
    with pytest.raises(UsageError, match="no record of profile 'smoke'"):
        load_records("smoke")
    with pytest.raises(UsageError, match="no record of profile 'standard'"):
        load_records()
    with pytest.raises(UsageError, match="unknown profile 'nosuch'"):
        load_records("nosuch")


def test_claims_are_listed_and_filtered_by_paper(suite):
    text = list_claims([document()], paper="fixture")
    assert text.splitlines()[:4] == [
        "F-0: reproduced",
        "  Fixture 2020, Table 1: claim 0",
        "  criterion: x above 1",
        "  paper: 3; here: x 2.5 (1 seeds)",
    ]
    assert text.splitlines()[-1] == "2 reproduced, 0 contradicted, 1 inconclusive"
    everything = list_claims([document()])
    assert "  finding, Table 1: more" in everything.splitlines()
    assert everything.splitlines()[-1] == "2 reproduced, 1 contradicted, 1 inconclusive"
    with pytest.raises(UsageError, match="no claim of paper 'nosuch'; papers are: Fixture 2020"):
        list_claims([document()], paper="nosuch")
    with pytest.raises(UsageError, match="no claim; papers are: none"):
        list_claims([{**document(), "claims": [], "findings": []}])

"""Claims are read from one file with one clear error, and judged by their rule."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from reprolib import evaluation
from reprolib.experiment.claims import Claim, load_claims
from reprolib.experiment.paths import UsageError

TEXTS = {"paper": "Paper", "statement": "x is large", "source": "Table 1", "criterion": "x above 1"}


class Estimate(float):
    """As in `reprolib.evaluation`: a float with its interval."""

    low, high, level, count, method = 0.9, 0.99, 0.95, 100, "exact"


def entry(rule="superiority", **changes):
    rules = {
        "superiority": {"better": "lower"},
        "equivalence": {"margin": 1.0},
        "trend": {"direction": "rising"},
        "statement": {},
    }
    made = {**TEXTS, "rule": rule, "paper_value": 0.5, **rules.get(rule, {}), **changes}
    return {key: value for key, value in made.items() if value is not ...}


def write(suite, content):
    path = suite.path.parent / "claims" / "90.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), "utf-8")


def claim(id="C-1", rule="statement", **changes):
    return Claim(id, **TEXTS, rule=rule, **changes)


def decided(decide, **changes):
    return claim(decide=decide, **changes)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_all_claims_of_a_notebook_in_its_order(suite):
    assert load_claims("90_fixture") == []
    finding = {key: value for key, value in entry("statement").items() if key != "paper"}
    full = entry(paper_effect=0.3, min_seeds=5, power="10 pairs see 0.1", relative=False, train_test_ratio=0.25)
    write(suite, {"claims": {"B-1": full, "A-1": entry("trend")}, "findings": {"F-1": finding}})
    b, a, f = load_claims("90_fixture")
    assert [one.id for one in (b, a, f)] == ["B-1", "A-1", "F-1"]
    assert [one.finding for one in (b, a, f)] == [False, False, True]
    assert b.settings == {"better": "lower", "relative": False, "train_test_ratio": 0.25}
    assert (b.paper_effect, b.min_seeds, b.power) == (0.3, 5, "10 pairs see 0.1")
    assert a.settings == {"direction": "rising", "statistic": "slope"}
    assert (f.paper, f.settings) == ("", {})
    assert f.document() == {**TEXTS, "paper": "", "id": "F-1", "paper_value": 0.5} | {
        "measured": None,
        "seeds": [],
        "verdict": None,
    }
    assert b.shown_power() == "10 pairs see 0.1; the paper's effect is 0.3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("claims: [", "90.yaml is not valid YAML"),
        ("", "90.yaml must be a mapping with the keys 'claims' and 'findings' and no other"),
        ({"claim": {}}, "90.yaml must be a mapping with the keys"),
        ({"claims": ["C-1"]}, r"claims of 90.yaml must be a mapping from ids to entries, got \['C-1'\]"),
        ({"claims": {"C-1": "x"}}, "claim 'C-1' of 90.yaml must be a mapping, got 'x'"),
        ({"claims": {1: entry()}}, "the id of claim 1 of 90.yaml must be a text"),
        ("claims: {C-1: {}, C-1: {}}", "90.yaml is not valid YAML: key 'C-1' is given twice"),
        (
            {"claims": {"C-1": entry()}, "findings": {"C-1": entry(paper=...)}},
            "finding 'C-1' of 90.yaml has an id that is used twice",
        ),
        ({"claims": {"C-1": entry(better=..., beter="lower")}}, "claim 'C-1' of 90.yaml has the unknown key 'beter'"),
        ({"claims": {"C-1": entry("statement", better="lower")}}, "the unknown key 'better'; allowed are statement"),
        ({"claims": {"C-1": entry(better=...)}}, "claim 'C-1' of 90.yaml has no 'better'"),
        ({"claims": {"C-1": entry("equivalence", margin=...)}}, "claim 'C-1' of 90.yaml has no 'margin'"),
        ({"claims": {"C-1": entry(criterion=...)}}, "claim 'C-1' of 90.yaml has no 'criterion'"),
        ({"claims": {"C-1": entry(paper=...)}}, "claim 'C-1' of 90.yaml has no 'paper'"),
        ({"claims": {"C-1": entry(paper=" ")}}, "paper of claim 'C-1' of 90.yaml must name a paper"),
        ({"findings": {"F-1": entry()}}, "paper of finding 'F-1' of 90.yaml must be empty"),
        ({"claims": {"C-1": entry("anova")}}, "rule of claim 'C-1' of 90.yaml must be one of superiority, equivalence"),
        ({"claims": {"C-1": entry(rule=3)}}, "rule of claim 'C-1' of 90.yaml must be a text, got 3"),
        ({"claims": {"C-1": entry(better="smaller")}}, "better of claim 'C-1' of 90.yaml must be one of lower, higher"),
        ({"claims": {"C-1": entry(statement="")}}, "statement of claim 'C-1' of 90.yaml must not be empty"),
        ({"claims": {"C-1": entry(statement=1)}}, "statement of claim 'C-1' of 90.yaml must be a text, got 1"),
        ({"claims": {"C-1": entry(min_seeds=2.5)}}, "min_seeds of claim 'C-1' of 90.yaml must be a whole number"),
        ({"claims": {"C-1": entry(min_seeds=True)}}, "min_seeds of claim 'C-1' of 90.yaml must be a whole number"),
        ({"claims": {"C-1": entry(min_seeds=-1)}}, "min_seeds of claim 'C-1' of 90.yaml must be at least 0"),
        ({"claims": {"C-1": entry("equivalence", margin=0)}}, "margin of claim 'C-1' of 90.yaml must be a finite"),
        ({"claims": {"C-1": entry(paper_effect="30 %")}}, "paper_effect of claim 'C-1' of 90.yaml must be a"),
        ({"claims": {"C-1": entry(relative="yes")}}, "relative of claim 'C-1' of 90.yaml must be a truth value"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(suite, content, message):
    write(suite, content)
    with pytest.raises(UsageError, match=message) as caught:
        load_claims("90_fixture")
    assert "\n" not in str(caught.value)


# --- statements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "min_seeds", "seeds", "verdict"),
    [
        (True, 1, [0], "reproduced"),
        (False, 1, [0], "contradicted"),
        (None, 1, [0], "inconclusive"),
        (True, 3, [0, 1], "inconclusive"),
        (False, 3, [0, 1], "inconclusive"),
        (True, 3, [0, 0, 0], "inconclusive"),
        (True, 3, range(3), "reproduced"),
        (True, 0, [], "reproduced"),
        (np.bool_(False), 1, [0], "contradicted"),
        (torch.tensor(True), 1, [0], "reproduced"),
    ],
)
def test_verdicts_of_what_the_notebook_computes(answer, min_seeds, seeds, verdict):
    for judged, options in (
        (decided(lambda measured: answer, min_seeds=min_seeds), {}),
        (claim(min_seeds=min_seeds), {"holds": answer}),
    ):
        assert judged.judge({"x": 2.0}, seeds, **options) == verdict
        assert judged.document()["verdict"] == verdict
        short = answer is not None and len(set(seeds)) < min_seeds
        assert ("reason" in judged.measured) == short


def test_the_criterion_sees_the_interval_of_an_estimate():
    judged = decided(lambda measured: measured["x"].low > 0.8)
    assert judged.judge({"x": Estimate(0.95)}, [0]) == "reproduced"
    assert judged.document()["measured"] == {"x": {"value": 0.95, "low": 0.9, "high": 0.99, "level": 0.95}}


def test_what_does_not_fit_a_statement_is_refused():
    with pytest.raises(TypeError, match="must be True, False or None, got 1"):
        decided(lambda measured: 1).judge({"x": 1}, [0])
    with pytest.raises(TypeError, match="must be True, False or None, got 'yes'"):
        claim().judge({"x": 1}, holds="yes")
    for judged, options in ((decided(lambda measured: True), {}), (claim(), {"holds": True})):
        with pytest.raises(ValueError, match="dictionary of what was measured"):
            judged.judge({}, [0], **options)
    with pytest.raises(ValueError, match="finite"):
        claim().judge({"x": math.nan}, holds=True)
    with pytest.raises(ValueError, match="with holds=True, False or None"):
        claim().judge({"x": 1})
    with pytest.raises(ValueError, match="with what was measured alone"):
        decided(lambda measured: True).judge({"x": 1}, holds=True)
    with pytest.raises(ValueError, match="is a statement: it takes holds"):
        claim().judge({"x": 1}, ours=[1.0, 2.0], base=[1.0, 2.0])


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the decision rule: the paired t-interval of gains, and what the rule was asked."""
    made = []

    def decide(ours, base=None, *, better="lower", **options):
        made.append({"ours": ours, "base": base, "better": better, **options})
        gain = np.asarray(ours) - (0 if base is None else np.asarray(base))
        half = stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain)
        low, high = gain.mean() - half, gain.mean() + half
        sign = 1 if better == "higher" else -1
        sides = sorted((sign * low, sign * high))
        verdict = "reproduced" if sides[0] > 0 else "contradicted" if sides[1] < 0 else "inconclusive"
        difference = Estimate(gain.mean())
        difference.low, difference.high = float(low), float(high)
        relative = Estimate(0.25) if options["relative"] else None
        return SimpleNamespace(verdict=verdict, difference=difference, relative=relative, n=len(gain))

    monkeypatch.setattr(evaluation, "decide", decide, raising=False)
    return made


def ruled(rule, **settings):
    defaults = {
        "superiority": {"better": "lower", "relative": True, "train_test_ratio": None},
        "equivalence": {"margin": 1.0, "train_test_ratio": None},
        "trend": {"direction": "rising", "statistic": "slope"},
    }
    names = {name: settings.pop(name) for name in ("min_seeds", "paper_effect") if name in settings}
    return claim(rule=rule, settings={**defaults[rule], **settings}, **names)


def test_superiority_hands_pairs_to_the_rule_and_keeps_its_numbers(calls):
    judged = ruled("superiority", paper_effect=0.3, train_test_ratio=0.25)
    ours, base = [3.0, 2.0, 2.5], [4.0, 3.1, 3.6]
    assert judged.judge({"rate": 0.1}, [5, 6, 7], ours=ours, base=torch.tensor(base)) == "reproduced"
    (asked,) = calls
    assert asked["ours"].tolist() == ours
    assert np.allclose(asked["base"], base)
    del asked["ours"], asked["base"]
    assert asked == {
        "better": "lower",
        "kind": "superiority",
        "relative": True,
        "train_test_ratio": 0.25,
        "paper_effect": 0.3,
    }
    measured = judged.document()["measured"]
    assert measured["rate"] == 0.1
    assert measured["ours"] == 2.5
    assert measured["base"] == pytest.approx(10.7 / 3)
    assert measured["difference"]["value"] == pytest.approx(-3.2 / 3)
    assert measured["difference"]["low"] < measured["difference"]["value"] < measured["difference"]["high"] < 0
    assert measured["relative"]["value"] == 0.25
    assert measured["n"] == 3
    assert judged.seeds == [5, 6, 7]
    assert judged.judge(seeds=[0, 1, 2], ours=base, base=ours) == "contradicted"
    assert judged.judge(seeds=[0, 1, 2], ours=[1.0, 2.0, 3.0], base=[2.0, 2.0, 2.0]) == "inconclusive"


def test_equivalence_has_a_margin(calls):
    ruled("equivalence", margin=0.5).judge(ours=[1.0, 2.0], base=[1.0, 2.1])
    assert (calls[0]["kind"], calls[0]["margin"], calls[0]["relative"]) == ("equivalence", 0.5, False)


def test_a_trend_is_the_slope_of_each_seed(calls):
    rows = [[1.0, 3.0, 5.1], [0.0, 2.2, 4.0], [2.0, 3.9, 6.0]]
    swept = [1, 2, 4]
    judged = ruled("trend")
    assert judged.judge(ours=rows, swept=swept, seeds=range(3)) == "reproduced"
    slopes = [np.polyfit(swept, row, 1)[0] for row in rows]
    assert np.allclose(calls[0]["ours"], slopes)
    assert (calls[0]["base"], calls[0]["better"]) == (None, "higher")
    assert judged.measured["slope"] == pytest.approx(np.mean(slopes))
    assert ruled("trend", direction="falling").judge(ours=rows, swept=swept) == "contradicted"
    assert calls[1]["better"] == "lower"


def test_a_trend_by_rank(calls):
    rows = [[1.0, 3.0, 2.0, 9.0], [5.0, 5.0, 6.0, 6.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    swept = [1, 10, 100, 1000]
    ruled("trend", statistic="rank").judge(ours=rows, swept=swept)
    expected = [*(stats.spearmanr(row, swept).statistic for row in rows[:3]), 0.0]
    assert np.allclose(calls[0]["ours"], expected)


@pytest.mark.parametrize("rule", ["superiority", "equivalence", "trend"])
@pytest.mark.parametrize(("count", "min_seeds", "needed"), [(1, 0, 2), (2, 5, 5), (4, 5, 5)])
def test_too_few_seeds_are_inconclusive_and_never_an_exception(calls, rule, count, min_seeds, needed):
    judged = ruled(rule, min_seeds=min_seeds)
    values = {"ours": [[1.0, 2.0]] * count, "swept": [0, 1]}
    if rule != "trend":
        values = {"ours": [1.0] * count, "base": [2.0] * count}
    assert judged.judge(seeds=range(count), **values) == "inconclusive"
    assert judged.measured["reason"] == f"{count} pairs, {needed} are needed"
    assert calls == []


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        ("superiority", {"ours": [1.0, 2.0], "base": [1.0]}, "compares pairs, got 2 and 1 values"),
        ("superiority", {"ours": [1.0, 2.0]}, "base of claim 'C-1' must have one number each, got None"),
        ("superiority", {"ours": [1.0, math.nan], "base": [1.0, 2.0]}, "ours of claim 'C-1' must be finite"),
        ("superiority", {"ours": ["a", "b"], "base": [1.0, 2.0]}, "must have one number each"),
        ("superiority", {"ours": [], "base": []}, "must have one number each"),
        ("superiority", {"ours": [1, 2], "base": [1, 2], "seeds": [0]}, "one value a seed, got 2 for 1 seeds"),
        ("superiority", {"holds": True}, "is decided by rule 'superiority': it takes ours"),
        ("trend", {"ours": [1.0, 2.0], "swept": [0, 1]}, "one row a seed and one column a swept value"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [0, 1, 2]}, "swept of claim 'C-1' must be 2 values, not all equal"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [1, 1]}, "swept of claim 'C-1' must be 2 values, not all equal"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [0, 1], "base": [1.0]}, "is a trend"),
    ],
)
def test_values_that_do_not_fit_the_rule_are_refused(calls, rule, values, message):
    judged = ruled(rule)
    with pytest.raises(ValueError, match=message):
        judged.judge({"x": 1.0}, **values)
    assert judged.verdict is None


@pytest.mark.parametrize("rule", [{"rule": "superiority", "better": "lower"}, {"rule": "equivalence", "margin": 1.0}])
def test_what_was_not_run_stays_open_for_a_reason(suite, rule):
    write(suite, {"claims": {"C-1": entry(**rule)}})
    (one,) = load_claims("90_fixture")
    assert one.judge({"reason": "not run at this profile"}) == "inconclusive"
    assert one.measured == {"reason": "not run at this profile"} and one.seeds == []
    with pytest.raises(ValueError, match="ours of claim 'C-1'"):
        one.judge()

"""Claims are read from one file with one clear error, and judged by their rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

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
        "trend": {"direction": "rising", "statistic": "slope"},
        "statement": {},
    }
    made = {**TEXTS, "rule": rule, "paper_value": 0.5, **rules.get(rule, {}), **changes}
    return {key: value for key, value in made.items() if value is not ...}


def write(suite, content):
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    suite.claims.write_text(text, encoding="utf-8")


def claim(id="C-1", rule="statement", **changes):
    return Claim(id, **TEXTS, rule=rule, **changes)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_all_claims_of_a_notebook_in_its_order(suite):
    suite.claims.unlink()
    assert load_claims("90_fixture") == []
    finding = {key: value for key, value in entry("statement").items() if key != "paper"}
    full = entry(paper_effect=0.3, min_seeds=5, power="10 pairs see 0.1", relative=False, train_test_ratio=0.25)
    write(suite, {"claims": {"B-1": full, "A-1": entry("trend", statistic=...)}, "findings": {"F-1": finding}})
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
        ({"claims": {"C-1": entry(rule=3)}}, "rule of claim 'C-1' of 90.yaml must be one of .*, got 3"),
        ({"claims": {"C-1": entry(better="smaller")}}, "claim 'C-1' of 90.yaml: better must be one of 'lower'"),
        ({"claims": {"C-1": entry(statement="")}}, "statement of claim 'C-1' of 90.yaml must not be empty"),
        ({"claims": {"C-1": entry(statement=1)}}, "statement of claim 'C-1' of 90.yaml must be of type str, got 1"),
        ({"claims": {"C-1": entry(min_seeds=2.5)}}, "min_seeds of claim 'C-1' of 90.yaml must be of type int"),
        ({"claims": {"C-1": entry(min_seeds=True)}}, "min_seeds of claim 'C-1' of 90.yaml must be of type int"),
        ({"claims": {"C-1": entry(min_seeds=-1)}}, "min_seeds of claim 'C-1' of 90.yaml must not be negative"),
        ({"claims": {"C-1": entry("equivalence", margin=0)}}, "claim 'C-1' of 90.yaml: margin must be a finite"),
        (
            {"claims": {"C-1": entry(paper_effect=30)}},
            "claim 'C-1' of 90.yaml: paper_effect must be a share",
        ),
        ({"claims": {"C-1": entry("equivalence", paper_effect=0.3)}}, "of 90.yaml has the unknown key 'paper_effect'"),
        (
            {"claims": {"C-1": entry(train_test_ratio=-1)}},
            "train_test_ratio of claim 'C-1' of 90.yaml must not be negative",
        ),
        (
            {"claims": {"C-1": entry("trend", statistic="rank")}},
            "statistic must be one of .*, got 'rank'",
        ),
        ({"claims": {"C-1": entry("trend", direction="up")}}, "direction must be one of 'rising', 'falling', got 'up'"),
        (
            {"claims": {"C-1": entry(paper_effect="30 %")}},
            "paper_effect of claim 'C-1' of 90.yaml must be of type float, got '30 %'",
        ),
        (
            {"claims": {"C-1": entry(relative="yes")}},
            "relative of claim 'C-1' of 90.yaml must be of type bool, got 'yes'",
        ),
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
    judged = claim(min_seeds=min_seeds)
    assert judged.judge({"x": 2.0}, seeds, holds=answer) == verdict
    assert judged.document()["verdict"] == verdict
    short = answer is not None and len(set(seeds)) < min_seeds
    assert ("reason" in judged.measured) == short


def test_an_estimate_keeps_its_interval():
    judged = claim()
    assert judged.judge({"x": Estimate(0.95)}, [0], holds=True) == "reproduced"
    assert judged.document()["measured"] == {"x": {"value": 0.95, "low": 0.9, "high": 0.99, "level": 0.95}}


def test_what_does_not_fit_a_statement_is_refused():
    for answer in (1, "yes"):
        with pytest.raises(TypeError, match=f"must be True, False or None, got {answer!r}"):
            claim().judge({"x": 1}, holds=answer)
    with pytest.raises(ValueError, match="dictionary of what was measured"):
        claim().judge({}, [0], holds=True)
    with pytest.raises(ValueError, match="finite"):
        claim().judge({"x": math.nan}, holds=True)
    with pytest.raises(ValueError, match="must be judged with holds, got none of them"):
        claim().judge({"x": 1})
    with pytest.raises(ValueError, match="of rule 'statement' must be judged with holds, got ours, base"):
        claim().judge({"x": 1}, ours=[1.0, 2.0], base=[1.0, 2.0])


# --- rules ------------------------------------------------------------------------------------------------------------


def ruled(rule, **settings):
    defaults = {
        "superiority": {"better": "lower"},
        "equivalence": {"margin": 1.0},
        "trend": {"direction": "rising", "statistic": "slope"},
    }
    names = {name: settings.pop(name) for name in ("min_seeds", "paper_effect") if name in settings}
    return claim(rule=rule, settings={**defaults[rule], **settings}, **names)


def t_interval(values):
    """The two-sided 95 % Student interval of the mean."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {"value": np.mean(values), "low": np.mean(values) - half, "high": np.mean(values) + half, "level": 0.95}


def test_superiority_is_decided_by_pairs_and_keeps_their_numbers():
    judged = ruled("superiority", paper_effect=0.3)
    ours, base = [3.0, 2.0, 2.5], [4.0, 3.1, 3.6]
    assert judged.judge({"rate": 0.1}, [5, 6, 7], ours=ours, base=torch.tensor(base)) == "reproduced"
    measured = judged.document()["measured"]
    difference = t_interval(np.subtract(ours, base))
    assert {key: measured.pop(key) for key in ("rate", "ours", "n")} == {"rate": 0.1, "ours": 2.5, "n": 3}
    assert measured.pop("base") == pytest.approx(10.7 / 3)
    assert measured.pop("difference") == pytest.approx(difference, rel=1e-6)
    assert measured.pop("relative")["value"] == pytest.approx(1 - 7.5 / 10.7)
    assert "lies on the paper's side of 0" in measured.pop("reason")
    # an effect of this size is reproduced with a power of 80 %
    t, s = stats.t.ppf(0.975, 2), np.std(np.subtract(ours, base), ddof=1)
    assert stats.nct.sf(t, 2, measured.pop("detectable") / s * 3**0.5) == pytest.approx(0.8, abs=1e-3)
    assert measured == {}
    assert judged.seeds == [5, 6, 7]
    assert judged.judge(seeds=[0, 1, 2], ours=base, base=ours) == "contradicted"
    assert judged.judge(seeds=[0, 1, 2], ours=[1.0, 2.0, 3.0], base=[2.0, 2.0, 2.0]) == "inconclusive"
    assert ruled("superiority", better="higher").judge(ours=base, base=ours) == "reproduced"


def test_overlapping_training_sets_and_absolute_effects_reach_the_rule():
    values = {"ours": [3.0, 2.0, 2.5], "base": [4.0, 3.1, 3.6]}
    # half width t s / sqrt(3) = 0.143 against a difference of 1.07; with n_test/n_train = 100 it is 2.5
    assert ruled("superiority", train_test_ratio=100).judge(**values) == "inconclusive"
    assert ruled("equivalence", margin=2, train_test_ratio=100).judge(**values) == "inconclusive"
    absolute = ruled("superiority", relative=False, paper_effect=30.0)
    assert absolute.judge(**values) == "reproduced"
    assert "though the effect is at most 1.21, below a third of the paper's 30" in absolute.measured["reason"]
    assert "relative" not in absolute.measured


def test_equivalence_has_a_margin():
    values = {"ours": [1.0, 2.0, 3.0, 4.0], "base": [1.0, 2.1, 3.0, 4.1]}
    judged = ruled("equivalence", margin=0.5)
    assert judged.judge(**values) == "reproduced"
    assert judged.measured["reason"].endswith("lies within the margin of +-0.5")
    assert "relative" not in judged.measured
    assert ruled("equivalence", margin=0.05).judge(**values) == "inconclusive"


@pytest.mark.parametrize("convert", [np.array, torch.tensor, list])
def test_a_trend_is_the_slope_of_each_seed(convert):
    rows = [[1.0, 3.0, 5.1], [0.0, 2.2, 4.0], [2.0, 3.9, 6.0]]
    swept = [1, 2, 4]
    judged = ruled("trend")
    assert judged.judge(ours=convert(rows), swept=swept, seeds=range(3)) == "reproduced"
    assert judged.measured["slope"] == pytest.approx(
        t_interval([np.polyfit(swept, row, 1)[0] for row in rows]), rel=1e-5
    )
    assert (judged.measured["n"], "difference" in judged.measured) == (3, False)
    assert ruled("trend", direction="falling").judge(ours=rows, swept=swept) == "contradicted"
    assert ruled("trend", train_test_ratio=1e4).judge(ours=rows, swept=swept) == "inconclusive"


def test_a_trend_by_rank():
    rows = [[1.0, 3.0, 2.0, 9.0], [5.0, 5.0, 6.0, 6.0], [4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    swept = [1, 10, 100, 1000]
    judged = ruled("trend", statistic="spearman")
    assert judged.judge(ours=rows, swept=swept) == "inconclusive"
    expected = [*(stats.spearmanr(row, swept).statistic for row in rows[:3]), 0.0]
    assert judged.measured["spearman"] == pytest.approx(t_interval(expected))


@pytest.mark.parametrize("rule", ["superiority", "equivalence", "trend"])
@pytest.mark.parametrize(
    ("count", "min_seeds", "reason"),
    [
        (1, 0, "a single difference: no interval"),
        (3, 0, "3 equal differences, without a spread to judge by: no interval"),
        (8, 9, "8 seeds, 9 are needed"),
    ],
)
def test_too_few_seeds_are_inconclusive_and_never_an_exception(rule, count, min_seeds, reason):
    judged = ruled(rule, min_seeds=min_seeds)
    values = {"ours": [[1.0, 2.0]] * count, "swept": [0, 1]}
    if rule != "trend":
        values = {"ours": [1.5] * count, "base": [2.0] * count}
    assert judged.judge(seeds=range(count), **values) == "inconclusive"
    assert judged.measured["reason"] == reason


@pytest.mark.parametrize("rule", ["superiority", "equivalence", "trend"])
@pytest.mark.parametrize("name", ["not run", "reason"])
def test_a_claim_whose_runs_are_not_made_says_why(rule, name):
    judged = ruled(rule)
    assert judged.judge({name: "needs a larger set"}) == "inconclusive"
    assert (judged.measured, judged.seeds) == ({name: "needs a larger set"}, [])
    for silent in ({}, {"x": 1.0}):
        with pytest.raises(ValueError, match=r"must be judged with ours and .*, got none of them"):
            ruled(rule).judge(silent)
    with pytest.raises(ValueError, match=r"must be judged with ours and .*, got ours"):
        ruled(rule).judge({name: "text"}, ours=[1.0, 2.0])


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        ("superiority", {"ours": [1.0, 2.0], "base": [1.0]}, "'C-1': ours and base must be paired, got 2 and 1 values"),
        (
            "superiority",
            {"ours": [1.0, 2.0]},
            "of rule 'superiority' must be judged with ours and base, got ours",
        ),
        ("superiority", {"ours": [1.0, math.nan], "base": [1.0, 2.0]}, "'C-1': ours must be finite"),
        ("superiority", {"ours": ["a", "b"], "base": [1.0, 2.0]}, "'C-1': ours must be numbers"),
        ("superiority", {"ours": [[1.0], [1.0, 2.0]], "base": [1.0, 2.0]}, "claim 'C-1': "),
        ("superiority", {"ours": [], "base": []}, "must hold one value a seed"),
        ("superiority", {"ours": [1, 2], "base": [1, 2], "seeds": [0]}, "one value a seed, got 2 for 1 seeds"),
        ("superiority", {"holds": True}, "must be judged with ours and base, got holds"),
        ("superiority", {"ours": [1, 2], "base": [1, 2], "holds": True}, "got ours, base, holds"),
        ("superiority", {}, "must be judged with ours and base, got none of them"),
        ("trend", {"ours": [1.0, 2.0], "swept": [0, 1]}, r"must have shape \(seeds, 2\)"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [0, 1, 2]}, r"must have shape \(seeds, 3\)"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [1, 1]}, "swept must hold at least two different values"),
        ("trend", {"ours": [[1.0, 2.0]], "swept": [0, 1], "base": [1.0]}, "with ours and swept, got ours, swept, base"),
    ],
)
def test_values_that_do_not_fit_the_rule_are_refused(rule, values, message):
    judged = ruled(rule)
    with pytest.raises(ValueError, match=message):
        judged.judge({"x": 1.0}, **values)
    assert judged.verdict is None

"""The decision rule: verdicts by pencil, intervals by their definition, size and power by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from reprolib.evaluation import decide, detectable_effect, power, power_table, trends

RUNS = 1000
SIGMAS = 4 / RUNS**0.5  # four standard errors of a rate's standard deviation


def test_a_paired_difference_by_pencil():
    # differences -1, -3, -2: mean -2, s.d. 1, half width 4.303/sqrt(3) = 2.484
    found = decide([4.0, 3.0, 5.0], [5.0, 6.0, 7.0], better="lower")
    assert found.verdict == "inconclusive" and found.n == 3
    assert (found.difference.low, found.difference.high) == pytest.approx((-4.484, 0.484), abs=1e-3)
    # a fourth and fifth seed: half width 2.776 * 0.7071/sqrt(5) = 0.878
    found = decide([4.0, 3, 5, 4, 4], [5.0, 6, 7, 6, 6], better="lower")
    assert found.verdict == "reproduced" and found.difference.high == pytest.approx(-2 + 0.878, abs=1e-3)
    assert "paper's side" in found.reason
    assert decide([4.0, 3, 5, 4, 4], [5.0, 6, 7, 6, 6], better="higher").verdict == "contradicted"
    assert decide([-1.0, -3, -2, -2, -2], better="lower").difference == found.difference


def test_overlapping_training_sets_by_pencil():
    # ten folds of nine training parts: c^2 = 1/10 + 1/9, the half width grows by sqrt(0.2111/0.1) = 1.453
    values = np.random.default_rng(0).normal(1, 1, 10)
    plain, corrected = (decide(values, better="higher", train_test_ratio=ratio) for ratio in (None, 1 / 9))
    half = stats.t.isf(0.025, 9) * values.std(ddof=1) * (1 / 10 + 1 / 9) ** 0.5
    assert corrected.difference.high - values.mean() == pytest.approx(half, rel=1e-12)
    assert (corrected.difference.high - corrected.difference.low) / (
        plain.difference.high - plain.difference.low
    ) == pytest.approx((19 / 9) ** 0.5, rel=1e-12)


def test_fieller_by_a_textbook():
    # Efron and Tibshirani, An Introduction to the Bootstrap (1993), the eight patients of the hormone patch:
    # ratio -0.071, 90 % limits by Fieller's method -0.249 and 0.170
    old_less_placebo = [8406, 2342, 8187, 8459, 4795, 3516, 4796, 10238]
    new_less_old = [-1200, 2601, -2705, 1982, -1290, 351, -638, -2719]
    found = decide(new_less_old, old_less_placebo, better="lower", level=0.9).relative
    assert (1 - found, 1 - found.high, 1 - found.low) == pytest.approx((-0.071, -0.249, 0.170), abs=5e-4)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.sampled_from([None, 0.25]))
def test_fieller_by_its_definition(seed, n, ratio):
    generator = np.random.default_rng(seed)
    base = generator.normal(10, 1, n)
    ours = 0.7 * base + generator.normal(0, 1, n)
    found = decide(ours, base, better="lower", train_test_ratio=ratio)
    c = (1 / n + (ratio or 0)) ** 0.5

    def excess(r):  # |t| of ours - r base against its critical value
        rest = ours - r * base
        return abs(rest.mean()) / (rest.std(ddof=1) * c) - stats.t.isf(0.025, n - 1)

    centre = ours.mean() / base.mean()
    for end, far in ((1 - found.relative.high, centre - 50), (1 - found.relative.low, centre + 50)):
        if excess(far) > 0:
            assert end == pytest.approx(optimize.brentq(excess, *sorted((centre, far))), abs=1e-9)
    # the relative effect and the difference never disagree on the side of 0
    for end, other in ((found.relative.low, -found.difference.high), (found.relative.high, -found.difference.low)):
        assert np.sign(end) == np.sign(other)


def test_the_papers_effect_contradicts():
    generator = np.random.default_rng(1)
    base = generator.normal(10, 0.5, 12)
    ours = base + generator.normal(0, 0.2, 12)
    found = decide(ours, base, better="lower", paper_effect=0.3)
    assert found.relative.high < 0.1 and found.difference.low < 0 < found.difference.high
    assert found.verdict == "contradicted" and "third of the paper's 0.3" in found.reason
    within = 2.97 * found.relative.high
    assert decide(ours, base, better="lower", paper_effect=within).verdict == "inconclusive"
    # a small effect on the paper's side is the paper's sentence, and is called small
    found = decide(base * 0.97, base, better="lower", paper_effect=0.3)
    assert found.verdict == "reproduced" and "third" in found.reason
    # absolute effects of statistics against 0
    flat = generator.normal(0, 0.05, 10)
    assert decide(flat, better="higher", paper_effect=0.6, relative=False).verdict == "contradicted"
    # higher is better: ours/base - 1
    assert decide(1.5 * base, base, better="higher").relative == pytest.approx(0.5)


def test_equivalence_by_pencil():
    differences = np.array([0.2, -0.1, 0.1, 0.0, -0.2, 0.3])
    half = stats.t.isf(0.025, 5) * differences.std(ddof=1) / 6**0.5
    high = differences.mean() + half
    for margin, verdict in ((high * 1.001, "reproduced"), (high * 0.999, "inconclusive")):
        assert decide(differences, kind="equivalence", margin=margin).verdict == verdict
    assert decide(differences + 5, kind="equivalence", margin=1.0).verdict == "contradicted"
    assert decide(differences - 5, kind="equivalence", margin=1.0).verdict == "contradicted"


def test_one_seed_and_equal_differences():
    for n, verdict in ((1, "inconclusive"), (2, "inconclusive"), (5, "inconclusive"), (6, "reproduced")):
        # 2 * 2^-5 = 0.0625 > 0.05 >= 2 * 2^-6
        found = decide([0.3] * n, [0.1 + 0.3] * n, better="lower")
        assert found.verdict == verdict and found.detectable is None and found.n == n
        assert found.difference == pytest.approx(-0.1) and found.difference.bounded == (n == 6)
    # rounding is not a spread: 0.1 k + 0.2 - 0.1 k
    assert decide(np.arange(4) / 10 + 0.2, np.arange(4) / 10, better="higher").verdict == "inconclusive"
    assert decide([0.0] * 8, better="higher").verdict == "inconclusive"
    assert decide([0.0] * 8, kind="equivalence", margin=0.01).verdict == "reproduced"
    assert decide([0.5] * 8, better="higher", train_test_ratio=0.1).verdict == "inconclusive"


@pytest.mark.parametrize("n", [3, 5, 10, 20])
@pytest.mark.parametrize("ratio", [None, 1 / 9])
def test_size_and_power_by_simulation(n, ratio):
    generator = np.random.default_rng(n)
    effect = 0.8
    # normal differences of s.d. 1, equally correlated so that var(mean) = 1/n + ratio in units of E[s^2]
    shared = (ratio or 0.0) ** 0.5 * generator.normal(size=(RUNS, 1))
    noise = generator.normal(size=(RUNS, n)) + shared
    for truth in (0.0, effect, -effect):
        rule = {"paper_effect": effect, "train_test_ratio": ratio}
        found = [decide(row + truth, better="higher", relative=False, **rule).verdict for row in noise]
        expected = power(truth, n, **rule)
        for verdict, probability in expected.items():
            error = max((probability * (1 - probability)) ** 0.5, 0.02) * SIGMAS
            assert found.count(verdict) / RUNS == pytest.approx(probability, abs=error), (truth, verdict)
        assert sum(expected.values()) == pytest.approx(1)
        if truth <= 0:
            # a claim without an effect is reproduced in 2.5 % at most
            assert expected["reproduced"] <= 0.025 + 1e-6


@pytest.mark.parametrize("n", [3, 10])
def test_equivalence_by_simulation(n):
    noise = np.random.default_rng(n).normal(size=(RUNS, n))
    margin = 2.0
    for truth in (0.0, 1.0, margin, 5.0):
        found = [decide(row + truth, kind="equivalence", margin=margin).verdict for row in noise]
        for verdict, probability in power(truth, n, kind="equivalence", margin=margin).items():
            error = max((probability * (1 - probability)) ** 0.5, 0.02) * SIGMAS
            assert found.count(verdict) / RUNS == pytest.approx(probability, abs=error), (truth, verdict)
    assert power(margin, n, kind="equivalence", margin=margin)["reproduced"] <= 0.025 + 1e-6


def test_fieller_covers():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(RUNS):
        base = generator.normal(5, 1, 5)
        ours = 0.7 * base + generator.normal(0, 0.5, 5)
        relative = decide(ours, base, better="lower").relative
        covered += relative is None or relative.low <= 0.3 <= relative.high
    assert covered / RUNS == pytest.approx(0.95, abs=0.22 * SIGMAS)


def test_power_is_the_noncentral_t_and_detectable_effects_have_it():
    for n in (2, 3, 7, 20):
        tail = stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, 0.9 * n**0.5)
        assert power(0.9, n)["reproduced"] == pytest.approx(tail, abs=1e-7)
        for kind in ("superiority", "equivalence"):
            effect = detectable_effect(n, kind=kind, train_test_ratio=0.25)
            options = {"margin": effect} if kind == "equivalence" else {}
            truth = 0.0 if kind == "equivalence" else effect
            reached = power(truth, n, kind=kind, train_test_ratio=0.25, **options)["reproduced"]
            assert reached == pytest.approx(0.8, abs=1e-6)
    values = np.random.default_rng(0).normal(size=8)
    assert decide(values, better="higher").detectable == pytest.approx(values.std(ddof=1) * detectable_effect(8))


def test_the_power_table():
    rows = power_table(1.5)
    assert [row["n"] for row in rows[::3]] == list(range(3, 21)) and len(rows) == 54
    sizes = [row["reproduced"] for row in rows if row["effect"] == "none"]
    assert sizes == pytest.approx([0.025] * 18, abs=1e-6)
    powers = [row["reproduced"] for row in rows if row["effect"] == "the paper's"]
    assert powers == sorted(powers) and powers[0] < 0.5 and powers[-1] > 0.99
    assert all(row["reproduced"] < 0.025 for row in rows if row["effect"] == "opposite")


def test_trends():
    swept = [0.1, 0.2, 0.4, 0.8]
    values = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 1], [1, 3, 2, 9]])
    found = trends(values, swept)
    assert found[:3].tolist() == [1, -1, 0] and found[3] == pytest.approx(stats.spearmanr(swept, values[3])[0])
    slopes = trends(values, swept, statistic="slope")
    assert slopes == pytest.approx([stats.linregress(swept, row).slope for row in values])
    # perfect in each of six seeds: the sign test decides
    assert decide(trends(np.tile(values[0], (6, 1)), swept), better="higher", relative=False).verdict == "reproduced"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (([1.0, 2], [1.0]), {"better": "lower"}, ValueError, "paired, got 2 and 1"),
        (([],), {"better": "lower"}, ValueError, "one value a seed"),
        (([1.0, np.nan],), {"better": "lower"}, ValueError, "ours must be finite"),
        ((["a", "b"],), {"better": "lower"}, TypeError, "ours must be numbers"),
        (([1.0, 2],), {}, ValueError, "better must be one of 'lower', 'higher'"),
        (([1.0, 2],), {"better": "up"}, ValueError, "better must be one of"),
        (([1.0, 2],), {"kind": "equal"}, ValueError, "kind must be one of"),
        (([1.0, 2],), {"kind": "equivalence"}, ValueError, "margin must be given"),
        (([1.0, 2],), {"better": "lower", "margin": 1.0}, ValueError, "margin must be given for equivalence"),
        (([1.0, 2],), {"kind": "equivalence", "margin": -1.0}, ValueError, "margin must be a finite number"),
        (([1.0, 2],), {"better": "lower", "paper_effect": 0.3}, ValueError, "with a base or relative=False"),
        (([1.0, 2], [1.0, 3]), {"better": "lower", "paper_effect": 30}, ValueError, "share of at most 1"),
        (([1.0, 2], [1.0, 3]), {"better": "lower", "train_test_ratio": 0}, ValueError, "train_test_ratio must be"),
        (([1.0, 2],), {"better": "lower", "level": 95}, ValueError, "level"),
    ],
)
def test_wrong_input_is_named(arguments, options, error, words):
    with pytest.raises(error, match=words):
        decide(*arguments, **options)


def test_wrong_input_of_the_others_is_named():
    with pytest.raises(ValueError, match="n must be an integer >= 2"):
        power(1.0, 1)
    with pytest.raises(ValueError, match="effect must be"):
        power(np.nan, 5)
    with pytest.raises(ValueError, match=r"shape \(seeds, 2\)"):
        trends(np.ones((3, 4)), [1, 2])
    with pytest.raises(ValueError, match="two different"):
        trends(np.ones((3, 2)), [1, 1])
    with pytest.raises(ValueError, match="finite"):
        trends(np.full((3, 2), np.nan), [1, 2])

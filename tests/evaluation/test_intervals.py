"""Estimates and intervals against scipy's own."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reprolib.evaluation import Estimate, clopper_pearson, mean_estimate, mean_sd, proportion, wilson


@given(st.integers(1, 400), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_proportion_intervals_match_scipy(trials, data, level):
    hits = data.draw(st.integers(0, trials))
    reference = stats.binomtest(hits, trials)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = reference.proportion_ci(level, method=method)
        assert np.allclose(ours(hits, trials, level), (expected.low, expected.high), atol=1e-12)
        assert ours(hits, trials, level)[0] <= hits / trials <= ours(hits, trials, level)[1]


def test_wilson_by_pencil():
    # 8 of 10 with z = 1.96: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


def test_intervals_are_vectorised():
    low, high = wilson(np.arange(11), 10)
    assert low.shape == high.shape == (11,)
    assert [wilson(k, 10) for k in range(11)] == list(zip(low, high, strict=True))
    low, high = clopper_pearson(np.arange(11), 10)
    assert (np.diff(low) > 0).all() and (np.diff(high) > 0).all()


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
@pytest.mark.parametrize("wrong", [(-1, 5), (6, 5), (0, 0), (float("nan"), 5)])
def test_intervals_refuse_impossible_counts(interval, wrong):
    with pytest.raises(ValueError):
        interval(*wrong)
    with pytest.raises(ValueError, match="level"):
        interval(1, 2, 1.0)


def test_mean_estimate_is_student_t():
    values = [0.98, 0.97, 0.99, 0.95]
    estimate = mean_estimate(values, over="folds")
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-14)
    assert "Student t over 4 folds" in estimate.method
    with pytest.raises(ValueError, match="non-empty"):
        mean_estimate([])
    with pytest.raises(ValueError, match=r"finite numbers in \[0, 1\]"):
        mean_estimate([0.5, 1.5], low=0, high=1)
    with pytest.raises(ValueError, match="finite"):
        mean_estimate([0.5, float("nan")])


def test_one_value_is_shown_without_an_interval():
    # a run of one seed ends with its number, and with a claim that cannot be decided, not with an exception
    estimate = mean_estimate([0.953], over="seeds")
    assert estimate == 0.953 and (estimate.low, estimate.high) == (-np.inf, np.inf)
    assert not estimate.bounded and not estimate.supported and estimate.count == 1
    assert estimate.text(1, percent=True) == "95.3 (no interval)*"
    document = json.loads(json.dumps(estimate.as_dict(), allow_nan=False))
    assert document["low"] is None and document["high"] is None and document["value"] == 0.953
    assert pickle.loads(pickle.dumps(estimate)).as_dict() == estimate.as_dict()


def test_the_interval_of_a_mean_stays_in_its_range():
    estimate = mean_estimate([0.99, 0.9, 1.0], low=0, high=1)
    assert estimate.high == 1 and estimate.low < 0.96
    # the mean of equal floats may be rounded off their value
    assert mean_estimate([0.1] * 3) == 0.1 and mean_estimate([0.1] * 3).high == 0.1


def test_estimate_is_a_float_with_its_interval():
    estimate = proportion(9, 10, note="made up", supported=False)
    assert estimate == 0.9 and estimate + 1 == 1.9 and type(estimate + 1) is float
    assert estimate.count == 10 and estimate.level == 0.95 and not estimate.supported
    assert estimate.method == "Wilson, made up"
    assert json.loads(json.dumps(estimate)) == 0.9 and f"{estimate:.2f}" == "0.90" and str(estimate) == "0.9"
    assert json.loads(json.dumps(estimate.as_dict()))["low"] == estimate.low
    assert "Wilson" in repr(estimate) and "not supported" in repr(estimate)
    assert estimate.text(1, percent=True) == f"90.0 [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]*"
    for twin in (copy.copy(estimate), copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        assert twin.as_dict() == estimate.as_dict()


@pytest.mark.parametrize("wrong", [(float("nan"), 0, 1), (0.5, float("-inf"), 1), (0.5, 0.6, 1), (0.5, 0, 0.4)])
def test_estimate_refuses_nonsense(wrong):
    with pytest.raises(ValueError):
        Estimate(*wrong, count=1, method="none")
    with pytest.raises(ValueError, match="level"):
        Estimate(0.5, 0, 1, level=95, count=1, method="none")


def test_mean_sd_is_of_the_sample():
    assert mean_sd([1.0, 2.0, 6.0]) == "3.0 ± 2.6"
    assert mean_sd(np.array([0.5, 0.7]), 3) == "0.600 ± 0.141"
    assert mean_sd([4.26]) == "4.3"
    for wrong in ([], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="one number a seed"):
            mean_sd(wrong)

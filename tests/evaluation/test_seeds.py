"""Mean ± s.d. and the paired test against their formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reprolib.evaluation import mean_sd, paired_test


def test_mean_sd_is_of_the_sample():
    assert mean_sd([1.0, 2.0, 6.0]) == "3.0 ± 2.6"
    assert mean_sd(np.array([0.5, 0.7]), 3) == "0.600 ± 0.141"
    assert mean_sd([4.26]) == "4.3"


def test_paired_test_by_hand():
    found = paired_test([3.0, 5.0, 8.0], [2.0, 3.0, 5.0])
    # differences 1, 2, 3: mean 2, s.d. 1, t = 2 sqrt 3 with two degrees of freedom
    assert found["difference"] == 2.0
    assert found["standard error"] == pytest.approx(1 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert found["p"] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found["p"] == pytest.approx(float(stats.ttest_rel([3, 5, 8], [2, 3, 5]).pvalue))
    swapped = paired_test([2.0, 3.0, 5.0], [3.0, 5.0, 8.0], "less")
    assert swapped["difference"] == -2.0 and swapped["p"] == pytest.approx(found["p"] / 2)
    assert paired_test([2.0, 3.0, 5.0], [3.0, 5.0, 8.0], "greater")["p"] == pytest.approx(1 - found["p"] / 2)


@pytest.mark.parametrize(("first", "second"), [([1.0], [0.0]), ([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0], [1.0, 2.0])])
def test_nothing_to_test_has_p_one(first, second):
    found = paired_test(first, second)
    assert (found["standard error"], found["p"]) == (0.0, 1.0)
    assert found["difference"] == first[0] - second[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_sd([]),
        lambda: mean_sd([[1.0], [2.0]]),
        lambda: paired_test([1.0], [1.0, 2.0]),
        lambda: paired_test([], []),
        lambda: paired_test([1.0, 2.0], [1.0, 3.0], "lower"),
    ],
)
def test_wrong_arguments(call):
    with pytest.raises(ValueError):
        call()

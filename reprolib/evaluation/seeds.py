"""Numbers that come one a seed (or split): their mean ± s.d. as text, and the paired test of two lists of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from .._checks import check_choice


def mean_sd(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard deviation (n - 1) over seeds; of one seed the value alone."""
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"values must be one number a seed, got shape {numbers.shape}")
    spread = f" ± {numbers.std(ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.{digits}f}{spread}"


def paired_test(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, alternative: str = "two-sided"
) -> dict[str, float]:
    """Mean of first - second, one pair a seed, its standard error, and the p value of Student's paired t test.

    ``alternative`` is "two-sided", "less" or "greater". Where nothing can be tested (one pair, or all differences
    equal) the standard error is 0 and p is 1. Raises ValueError for lists of unequal length.
    """
    check_choice(alternative, "alternative", ("two-sided", "less", "greater"))
    difference = np.subtract(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    if difference.ndim != 1 or difference.size == 0 or len(first) != len(second):
        raise ValueError(f"first and second must be lists of one length, got {len(first)} and {len(second)}")
    count, p = len(difference), 1.0
    error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if error > 0:
        p = float(stats.ttest_1samp(difference, 0.0, alternative=alternative).pvalue)
    return {"difference": float(difference.mean()), "standard error": error, "p": p}

"""A measured number that carries its confidence interval, and the intervals used in this suite.

All intervals here take their trials as independent. Pairs that share an image or a person are not, so for all-pairs
scores the true uncertainty is larger than these say: see `bootstrap_people`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats


class Estimate(float):
    """A float with a confidence interval `[low, high]` of confidence `level`.

    `count` is the number of trials behind the number, `method` says in words how the interval was made, and
    `supported` is False where the data are too few for the number to mean much (for a rate at a false accept
    rate x: fewer than 10 / x impostor scores). A number without an interval (one seed) has the bounds -inf and
    inf, which exclude nothing; they are None in `as_dict`. Arithmetic gives plain floats.

    Raises ValueError if the value is not finite, a bound is NaN or infinite alone, or `low <= value <= high` does not
    hold.
    """

    low: float
    high: float
    level: float
    count: int
    method: str
    supported: bool

    def __new__(
        cls,
        value: float,
        low: float,
        high: float,
        *,
        level: float = 0.95,
        count: int,
        method: str,
        supported: bool = True,
    ) -> Estimate:
        self = super().__new__(cls, value)
        if not np.isfinite(value) or not (np.isfinite([low, high]).all() or (low == -np.inf and high == np.inf)):
            raise ValueError(f"an estimate must be finite, got {float(value)} in [{low}, {high}]")
        if not low <= value <= high:
            raise ValueError(f"an estimate must lie in its interval, got {float(value)} in [{low}, {high}]")
        self.low, self.high, self.level = float(low), float(high), checked_level(level)
        self.count, self.method, self.supported = int(count), str(method), bool(supported)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple, dict[str, Any]]:
        rest = {key: getattr(self, key) for key in ("level", "count", "method", "supported")}
        return (float(self), self.low, self.high), rest

    def __repr__(self) -> str:
        note = "" if self.supported else ", not supported by the data"
        interval = f"[{self.low:.6g}, {self.high:.6g}]"
        return f"Estimate({float(self)!r} in {interval}, {self.method}, n={self.count}{note})"

    __str__ = float.__repr__

    def text(self, digits: int = 2, percent: bool = False) -> str:
        """For tables: `99.53 [99.32, 99.68]`, times 100 if `percent`, with a `*` if not supported."""
        factor = 100 if percent else 1
        value, low, high = (f"{factor * x:.{digits}f}" for x in (float(self), self.low, self.high))
        interval = f"[{low}, {high}]" if self.bounded else "(no interval)"
        return f"{value} {interval}" + ("" if self.supported else "*")

    @property
    def bounded(self) -> bool:
        """Whether the interval has two finite ends."""
        return bool(np.isfinite([self.low, self.high]).all())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: `value, low, high, level, count, method, supported`."""
        low, high = (bound if np.isfinite(bound) else None for bound in (self.low, self.high))
        rest = {key: getattr(self, key) for key in ("level", "count", "method", "supported")}
        return {"value": float(self), "low": low, "high": high, **rest}


def checked_level(level: float) -> float:
    """`level` if it is a confidence in (0, 1), else ValueError."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return float(level)


def _checked_trials(successes: Any, trials: int) -> np.ndarray:
    successes = np.asarray(successes, dtype=np.float64)
    if not trials >= 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not ((successes >= 0) & (successes <= trials)).all():
        raise ValueError(f"successes must lie in 0..{trials}, got {successes}")
    return successes


def wilson(successes: Any, trials: int, level: float = 0.95) -> tuple[Any, Any]:
    """Wilson score interval of a proportion (Wilson 1927); vectorised over `successes`.

    Never of zero width, and covers well also near 0 and 1, where the textbook p +- z sqrt(p(1-p)/n) fails.
    """
    successes = _checked_trials(successes, trials)
    z = stats.norm.isf((1 - checked_level(level)) / 2)
    rate = successes / trials
    # centre = (p + z^2/2n) / (1 + z^2/n);  half = z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * np.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    # at 0 and n successes the bound is exactly 0 and 1; rounding must not push the rate out of its interval
    low = np.where(successes == 0, 0.0, np.minimum(np.maximum(centre - half, 0.0), rate))
    high = np.where(successes == trials, 1.0, np.maximum(np.minimum(centre + half, 1.0), rate))
    return low[()], high[()]


def clopper_pearson(successes: Any, trials: int, level: float = 0.95) -> tuple[Any, Any]:
    """Clopper-Pearson ("exact", conservative) interval of a proportion (1934); vectorised."""
    successes = _checked_trials(successes, trials)
    tail = (1 - checked_level(level)) / 2
    failures = trials - successes
    # low: P(X >= k | p = low) = tail;  high: P(X <= k | p = high) = tail; both are beta quantiles
    low = np.where(successes == 0, 0.0, stats.beta.ppf(tail, np.maximum(successes, 1e-12), failures + 1))
    high = np.where(failures == 0, 1.0, stats.beta.isf(tail, successes + 1, np.maximum(failures, 1e-12)))
    return low[()], high[()]


def proportion(successes: int, trials: int, *, level: float = 0.95, note: str = "", supported: bool = True) -> Estimate:
    """`successes / trials` with its Wilson interval; `note` is added to the method."""
    low, high = wilson(successes, trials, level)
    method = f"Wilson, {note}" if note else "Wilson"
    return Estimate(successes / trials, low, high, level=level, count=trials, method=method, supported=supported)


def logit_interval(rate: float, half: float) -> tuple[float, float]:
    """Interval of a rate in (0, 1) of half width `half` to first order, taken on the logit so that it stays there."""
    # d logit(p)/dp = 1 / (p (1 - p))
    logit, half = np.log(rate / (1 - rate)), half / (rate * (1 - rate))
    return min(special.expit(logit - half), rate), max(special.expit(logit + half), rate)


def student_half_width(standard_error: float, groups: int, level: float = 0.95) -> float:
    """Half the width of Student's t interval with `groups - 1` degrees of freedom."""
    if groups < 2:
        raise ValueError(f"an interval over groups needs at least 2 of them, got {groups}")
    return float(stats.t.isf((1 - checked_level(level)) / 2, groups - 1) * standard_error)


def mean_estimate(
    values: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    over: str = "values",
    low: float = -np.inf,
    high: float = np.inf,
) -> Estimate:
    """Mean of independent `values` (folds, seeds, splits) with Student's t interval, s.d. with ddof = 1.

    `over` names what the values are, for the method; the interval is cut to [`low`, `high`], which the values
    must not leave. One value is its own mean, without an interval and not `supported`, so that a run of one seed
    can be shown. Raises ValueError for no value, or one that is NaN, infinite or outside.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{over} must be a non-empty vector, got shape {values.shape}")
    if not (np.isfinite(values) & (values >= low) & (values <= high)).all():
        raise ValueError(f"{over} must be finite numbers in [{low:g}, {high:g}], got {values.tolist()}")
    count = len(values)
    if count == 1:
        return Estimate(values[0], -np.inf, np.inf, level=level, count=1, method="a single value", supported=False)
    mean, deviation = mean_and_deviation(values)
    half = student_half_width(deviation / count**0.5, count, level)
    method = f"Student t over {count} {over}"
    return Estimate(mean, max(mean - half, low), min(mean + half, high), level=level, count=count, method=method)


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Mean and s.d. (ddof = 1) of at least two values; equal values have that mean and exactly 0."""
    if values.min() == values.max():
        # the mean of equal floats may be rounded off their value
        return float(values[0]), 0.0
    return float(values.mean()), float(values.std(ddof=1))


def clustered_mean(
    means: np.ndarray, counts: np.ndarray, *, level: float, over: str, low: float, high: float
) -> Estimate:
    """Mean over all samples from the `means` and `counts` (C,) of clusters, with Student's t over the clusters."""
    total, groups = int(counts.sum()), len(counts)
    mean = min(max(float((counts * means).sum() / total), low), high)
    # se^2 = C/(C-1) sum_c (n_c (mean_c - mean))^2 / N^2
    error = (groups / (groups - 1) * float(((counts * (means - mean)) ** 2).sum())) ** 0.5 / total
    half = student_half_width(error, groups, level)
    method = f"Student t over {groups} {over} as clusters"
    return Estimate(mean, max(mean - half, low), min(mean + half, high), level=level, count=total, method=method)


def mean_sd(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard deviation (n - 1) over seeds; of one seed the value alone."""
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"values must be one number a seed, got shape {numbers.shape}")
    spread = f" ± {numbers.std(ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.{digits}f}{spread}"

"""One decision rule for every claim, and what it can see: verdicts from paired differences over seeds or splits.

The differences `ours - base`, one a seed or split, have a mean D, an s.d. s (ddof = 1) and the interval

    D +- t_{n-1} s c,  c^2 = 1/n  or, where training sets overlap,  c^2 = 1/n + n_test/n_train   (Nadeau, Bengio 2003).

The correction is exact for normal differences that are all equally correlated, rho = n_test / (n_test + n_train).

- superiority: *reproduced* if the interval lies on the paper's side of 0, so that a claim without any effect is
  reproduced with probability (1 - level)/2 at most; *contradicted* if it lies on the other side, or else excludes a
  third of the paper's effect; *inconclusive* otherwise.
- equivalence: *reproduced* if the interval lies within +- margin. With the 95 % interval this is the two one-sided
  tests procedure (Schuirmann 1987) at 2.5 % each. *Contradicted* if it lies wholly outside, else *inconclusive*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from .._checks import check_choice, check_count, check_number
from .intervals import Estimate, checked_level, mean_and_deviation

KINDS = ("superiority", "equivalence")
_THIRD = 1 / 3  # the useful share of the paper's effect
_POWER = 0.8
# nodes and weights on (0, 1), denser towards both ends, where quantiles run off: u = v^2 (3 - 2 v)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(500)
_SHARES, _WEIGHTS = (0.5 + _NODES / 2) ** 2 * (2 - _NODES), _WEIGHTS * 0.75 * (1 - _NODES**2)


@dataclass(frozen=True)
class Decision:
    """What `decide` found.

    `verdict` is reproduced, contradicted or inconclusive, `reason` says why in one sentence. `difference` is the
    mean of ours - base, `relative` the share by which the paper's side gains (1 - ours/base where lower is better,
    ours/base - 1 where higher is), None where it is undefined or was not asked for. `detectable` is, in the units of
    `difference` and with the s.d. found, the smallest effect that is reproduced with a power of 80 %; for
    equivalence the smallest margin within which a true difference of 0 is. None without a spread to judge by.
    """

    verdict: str
    reason: str
    difference: Estimate
    relative: Estimate | None
    n: int
    level: float
    detectable: float | None


def decide(
    ours: Sequence[float] | np.ndarray,
    base: Sequence[float] | np.ndarray | None = None,
    *,
    better: str | None = None,
    kind: str = "superiority",
    margin: float | None = None,
    paper_effect: float | None = None,
    relative: bool = True,
    train_test_ratio: float | None = None,
    level: float = 0.95,
) -> Decision:
    """The verdict on a claim from `ours` (n,) and `base` (n,), paired: entry i of both is the same seed or split.

    Without `base`, `ours` are differences or statistics that are compared with 0 (see `trends`). `better` is the
    paper's side, "lower" or "higher"; superiority needs it. Equivalence needs `margin` > 0, in the units of `ours`.
    `paper_effect` > 0 is the paper's share (0.3: an error rate falls by 30 %), or, with `relative=False`, its
    difference in the units of `ours`. `train_test_ratio` is n_test / n_train where training sets overlap.

    `relative` in the result has Fieller's interval (1954): all ratios R for which the t test of ours - R base does
    not reject. It is exact for normal pairs, allows ours = 0, and agrees with the difference by construction: it
    excludes 0 if and only if the interval of the difference does, which no delta or logarithmic interval promises.
    Where it is not bounded (base not told from 0) or base is not positive, `relative` is None.

    Differences that are all equal have no spread for a t test. With independent runs the sign test still speaks: n
    equal differences on one side of any value have probability 2^-n if that value is the median, so that from
    2 * 2^-n <= 1 - level on (n >= 6 at 95 %) the interval is the value itself; below that, with overlapping training
    sets, and for a single difference there is no interval, and the verdict is "inconclusive".

    Raises ValueError for shapes, NaN, infinity or options that do not fit together, TypeError for other kinds.
    """
    ours, base = _values(ours, "ours"), None if base is None else _values(base, "base")
    if base is not None and base.shape != ours.shape:
        raise ValueError(f"ours and base must be paired, got {len(ours)} and {len(base)} values")
    _check_options(better, kind, margin, paper_effect, relative, base is not None, train_test_ratio)
    level, n = checked_level(level), len(ours)
    differences = ours if base is None else ours - base
    scale = np.abs(ours).max() if base is None else max(np.abs(ours).max(), np.abs(base).max())
    if np.ptp(differences) <= 8 * np.finfo(np.float64).eps * scale:
        differences = np.full(n, np.median(differences))  # a spread of rounding errors is none
    difference = _interval(differences, train_test_ratio, level)
    if not difference.bounded:
        return Decision("inconclusive", f"{difference.method}: no interval", difference, None, n, level, None)
    gain = None
    if base is not None and relative:
        gain = _relative(ours, base, better or "lower", train_test_ratio, level)
    spread = mean_and_deviation(differences)[1]
    detectable = spread * detectable_effect(n, kind=kind, train_test_ratio=train_test_ratio, level=level)
    if kind == "equivalence":
        verdict, reason = _equivalence(difference, margin)
    else:
        verdict, reason = _superiority(difference, gain, better, paper_effect, relative)
    return Decision(verdict, reason, difference, gain, n, level, detectable if spread > 0 else None)


def _values(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}")
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must hold one value a seed or split, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array.astype(np.float64)


def _check_options(
    better: str | None,
    kind: str,
    margin: float | None,
    paper_effect: float | None,
    relative: bool,
    based: bool,
    train_test_ratio: float | None,
) -> None:
    check_choice(kind, "kind", KINDS)
    if better is not None or kind == "superiority":
        check_choice(better or "", "better", ("lower", "higher"))
    if (margin is None) == (kind == "equivalence"):
        raise ValueError(f"margin must be given for equivalence and only there, got {margin} for {kind}")
    if margin is not None:
        check_number(margin, "margin")
    if paper_effect is not None:
        check_number(paper_effect, "paper_effect")
        if kind == "equivalence" or (relative and not based):
            raise ValueError(
                "paper_effect must come with superiority, and with a base or relative=False, "
                f"got {paper_effect} for {kind}{'' if based else ' without base'}"
            )
        if relative and better == "lower" and paper_effect > 1:
            raise ValueError(f"paper_effect must be a share of at most 1 where lower is better, got {paper_effect}")
    if train_test_ratio is not None:
        check_number(train_test_ratio, "train_test_ratio")


def _half_factor(n: int, train_test_ratio: float | None, level: float) -> tuple[float, float]:
    """(t, c): the interval's half width is t c s."""
    return float(stats.t.isf((1 - level) / 2, n - 1)), (1 / n + (train_test_ratio or 0.0)) ** 0.5


def _interval(differences: np.ndarray, train_test_ratio: float | None, level: float) -> Estimate:
    n = len(differences)
    low, high, mean, deviation = -np.inf, np.inf, float(differences[0]), 0.0
    if n > 1:
        mean, deviation = mean_and_deviation(differences)
    if n == 1:
        method = "a single difference"
    elif deviation > 0:
        t, c = _half_factor(n, train_test_ratio, level)
        low, high = mean - t * c * deviation, mean + t * c * deviation
        method = f"Student t over {n} paired differences"
        if train_test_ratio is not None:
            method += f", Nadeau-Bengio with n_test/n_train = {train_test_ratio:g}"
    elif train_test_ratio is None and 2 * 0.5**n <= 1 - level:
        low, high, method = mean, mean, f"sign test, {n} equal differences"
    else:
        method = f"{n} equal differences, without a spread to judge by"
    return Estimate(mean, low, high, level=level, count=n, method=method, supported=bool(np.isfinite(low)))


def _relative(
    ours: np.ndarray, base: np.ndarray, better: str, train_test_ratio: float | None, level: float
) -> Estimate | None:
    """1 - R or R - 1 with R = mean(ours)/mean(base) and Fieller's interval; None where it is not bounded."""
    n = len(ours)
    t, c = _half_factor(n, train_test_ratio, level)
    a, b = float(ours.mean()), float(base.mean())
    (s_aa, s_ab), (_, s_bb) = np.cov(ours, base) * (t * c) ** 2
    # (a - R b)^2 <= t^2 c^2 s^2(ours - R base):  A R^2 - 2 B R + C <= 0
    square, middle, constant = b * b - s_bb, a * b - s_ab, a * a - s_aa
    if b <= 0 or square <= 0:
        return None
    root = max(middle * middle - square * constant, 0.0) ** 0.5
    ratio, low, high = a / b, (middle - root) / square, (middle + root) / square
    low, high = min(low, ratio), max(high, ratio)
    ends = (1 - ratio, 1 - high, 1 - low) if better == "lower" else (ratio - 1, low - 1, high - 1)
    return Estimate(*ends, level=level, count=n, method=f"Fieller over {n} pairs")


def _superiority(
    difference: Estimate, gain: Estimate | None, better: str | None, paper_effect: float | None, relative: bool
) -> tuple[str, str]:
    # both ends as gains: positive on the paper's side
    low, high = difference.low, difference.high
    if better == "lower":
        low, high = -high, -low
    shown = f"the {difference.level:.0%} interval of the difference, [{difference.low:.4g}, {difference.high:.4g}],"
    most = (gain.high if gain is not None else None) if relative else high
    small = None
    if paper_effect is not None and most is not None and most < paper_effect * _THIRD:
        small = f"the effect is at most {most:.3g}, below a third of the paper's {paper_effect:.3g}"
    if low > 0:
        return "reproduced", f"{shown} lies on the paper's side of 0" + (f", though {small}" if small else "")
    if high < 0:
        return "contradicted", f"{shown} lies on the other side of 0 than the paper's"
    if small:
        return "contradicted", f"{shown} holds 0, and {small}"
    undefined = paper_effect is not None and most is None
    return "inconclusive", f"{shown} holds 0" + (", and the relative effect is undefined" if undefined else "")


def _equivalence(difference: Estimate, margin: float | None) -> tuple[str, str]:
    bound, low, high = float(margin or 0.0), difference.low, difference.high
    shown = f"the {difference.level:.0%} interval of the difference, [{low:.4g}, {high:.4g}],"
    if -bound < low and high < bound:
        return "reproduced", f"{shown} lies within the margin of +-{bound:g}"
    if low > bound or high < -bound:
        return "contradicted", f"{shown} lies outside the margin of +-{bound:g}"
    return "inconclusive", f"{shown} reaches over the margin of +-{bound:g}"


def power(
    effect: float,
    n: int,
    *,
    kind: str = "superiority",
    margin: float | None = None,
    paper_effect: float | None = None,
    train_test_ratio: float | None = None,
    level: float = 0.95,
) -> dict[str, float]:
    """Probability of each verdict of `decide` if the true difference is `effect`, for normal differences.

    `effect` (positive on the paper's side), `margin` and `paper_effect` (here a difference, `relative=False`) are in
    units of the s.d. of the paired differences; `n` >= 2 seeds or splits. For superiority P(reproduced) is a tail of
    the noncentral t, P(T_{n-1}(effect / c) > t); all are the integral of P(D | s) over the distribution of s.
    """
    n = _several(n)
    better = "higher" if kind == "superiority" else None
    _check_options(better, kind, margin, paper_effect, False, False, train_test_ratio)
    check_number(effect, "effect", low=-np.inf)
    t, c = _half_factor(n, train_test_ratio, checked_level(level))

    # the s.d. found, on the nodes of a quadrature over its distribution: s^2 (n - 1) is chi-squared
    half = t * c * np.sqrt(stats.chi2.ppf(_SHARES, n - 1) / (n - 1))

    def below(bound: np.ndarray) -> np.ndarray:  # P(D < bound)
        return special.ndtr((bound - effect) / c)

    if margin is not None:
        reproduced = np.maximum(below(margin - half) - below(half - margin), 0)
        contradicted = 1 - below(margin + half) + below(-margin - half)
    else:
        reproduced = 1 - below(half)
        contradicted = below(-half if paper_effect is None else np.minimum(paper_effect * _THIRD - half, half))
    yes, no = (min(float(_WEIGHTS @ chance), 1.0) for chance in (reproduced, contradicted))
    return {"reproduced": yes, "contradicted": no, "inconclusive": max(1 - yes - no, 0.0)}


def _several(n: int) -> int:
    check_count(n, "n", low=2)
    return int(n)


def power_table(
    paper_effect: float, counts: Iterable[int] = range(3, 21), *, train_test_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Rows `n, effect, reproduced, contradicted, inconclusive` of the superiority rule at the 95 % level.

    For each n of `counts` a true effect of 0, of the paper's size and of the opposite sign; `paper_effect` is in
    units of the s.d. of the paired differences. The row of 0 is the size of the test.
    """
    rule = {"paper_effect": paper_effect, "train_test_ratio": train_test_ratio}
    truths = {"none": 0.0, "the paper's": paper_effect, "opposite": -paper_effect}
    return [
        {"n": n, "effect": name, **power(effect, n, **rule)}  # type: ignore[arg-type]
        for n in counts
        for name, effect in truths.items()
    ]


@lru_cache(maxsize=256)
def detectable_effect(
    n: int, *, kind: str = "superiority", train_test_ratio: float | None = None, level: float = 0.95
) -> float:
    """The smallest true effect that is reproduced with a power of 80 %, in s.d. of the paired differences.

    For equivalence the smallest margin within which a true difference of 0 is. `n` >= 2.
    """
    n = _several(n)
    check_choice(kind, "kind", KINDS)
    t, c = _half_factor(n, train_test_ratio, checked_level(level))
    if kind == "superiority":

        def short(effect: float) -> float:
            return float(stats.nct.sf(t, n - 1, effect / c)) - _POWER
    else:

        def short(effect: float) -> float:
            options = {"train_test_ratio": train_test_ratio, "level": level}
            return power(0.0, n, kind=kind, margin=effect, **options)["reproduced"] - _POWER  # type: ignore[arg-type]

    # D + t c s is below the 95 % points of its parts added: an effect that is surely seen
    surely = c * (2 + t * float(stats.chi2.isf(0.05, n - 1) / (n - 1)) ** 0.5)
    return float(optimize.brentq(short, c / 1000, 2 * surely, xtol=1e-10))


def trends(values: np.ndarray, swept: Sequence[float] | np.ndarray, *, statistic: str = "spearman") -> np.ndarray:
    """One statistic a seed (n,) of how `values` (n, K) go with the K `swept` values, to be decided against 0.

    "spearman": the rank correlation, ties at their mean rank, 0 for a seed whose values are all equal; "slope": the
    least-squares slope, in units of `values` per unit of `swept`. A claim "grows with" is then
    `decide(trends(values, swept), better="higher", relative=False)`: no step has to be monotone.

    Raises ValueError for shapes, NaN, infinity, an unknown statistic, or fewer than two different swept values.
    """
    check_choice(statistic, "statistic", ("spearman", "slope"))
    x, table = _values(swept, "swept"), np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table) or table.shape[1] != len(x):
        raise ValueError(f"values must have shape (seeds, {len(x)}), one column a swept value, got {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("values must be finite, got NaN or infinity")
    if x.min() == x.max():
        raise ValueError(f"swept must hold at least two different values, got {x.tolist()}")
    if statistic == "spearman":
        x, table = stats.rankdata(x), stats.rankdata(table, axis=1)
    x, table = x - x.mean(), table - table.mean(axis=1, keepdims=True)
    slopes = table @ x / (x @ x)
    if statistic == "slope":
        return slopes
    spread = ((table * table).sum(axis=1) / (x @ x)) ** 0.5
    # rho = slope of the ranks * sd(x)/sd(y)
    return np.divide(slopes, spread, out=np.zeros_like(slopes), where=spread > 0)

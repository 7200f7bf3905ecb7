"""Verification over all thresholds: TAR at a fixed FAR, equal error rate, area under the curve.

With G genuine and I impostor scores, higher meaning more similar (FaceNet, equations 4 to 6):

    TAR(t) = accepted genuine / G,  FAR(t) = accepted impostor / I,  FRR(t) = 1 - TAR(t)

Nothing here uses a grid of thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .._checks import Array, check_count, far_values, float_array
from .intervals import Estimate, checked_level, clopper_pearson, logit_interval, proportion

_BOOTSTRAP_CELLS = 1024


def _score_pair(genuine: Array, impostor: Array) -> tuple[np.ndarray, np.ndarray]:
    return float_array(genuine, "genuine", 1), float_array(impostor, "impostor", 1)


def allowed_false_accepts(far: np.ndarray, impostors: int) -> np.ndarray:
    """floor(far * impostors), where a product within rounding of an integer counts as that integer.

    0.29 * 100 is 28.999999999999996 in floating point; the caller means 29.
    """
    product = np.asarray(far, dtype=np.float64) * impostors
    nearest = np.rint(product)
    # far carries half a unit in its own last place, the product another; 4 of them are far below one score
    slack = 4 * np.finfo(far.dtype).eps * np.maximum(product, 1)
    return np.where(np.abs(product - nearest) <= slack, nearest, np.floor(product)).astype(np.int64)


def _largest(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The (rank + 1)-th largest score for each rank; -infinity where rank >= len(scores).

    Partial selection, largest rank first, each next one inside the slice that the last one left: O(n) time
    and memory, against O(n log n) for the full ROC curve.
    """
    found = np.full(len(ranks), -np.inf)
    for index in np.argsort(-ranks, kind="stable"):
        rank = int(ranks[index])
        if rank < len(scores):
            cut = len(scores) - 1 - rank
            scores = np.partition(scores, cut)[cut:]
            found[index] = scores[0]
    return found


def threshold_at_far(impostor: Array, far: float | Sequence[float] | np.ndarray) -> Any:
    """The lowest t at which "accept iff score > t" accepts at most a share `far` of the `impostor` scores.

    t is the (floor(far * I) + 1)-th largest impostor score; -infinity (accept all) where far allows all of
    them. A sequence of `far` gives a list.
    """
    impostor = float_array(impostor, "impostor", 1)
    rates, scalar = far_values(far)
    thresholds = _largest(impostor, allowed_false_accepts(rates, len(impostor))).tolist()
    return thresholds[0] if scalar else thresholds


def tar_at_far(
    genuine: Array, impostor: Array, far: float | Sequence[float] | np.ndarray, *, level: float = 0.95
) -> Any:
    """TAR at FAR = `far`: the largest TAR(t) over all thresholds with FAR(t) <= far (conservative rule).

    `genuine` (G,), `impostor` (I,), `far` in (0, 1]: an `Estimate`; a sequence of `far` gives a list of them.
    Acceptance is strict, score > t, with t the (floor(far * I) + 1)-th largest impostor score: a genuine
    score that ties with t is rejected. No interpolation between thresholds: an interpolated FAR was never
    reached by any threshold.

    Wilson interval on the G genuine scores with the threshold held fixed. `supported` is False where
    far * I < 10: the threshold then rests on fewer than ten impostors.
    """
    genuine, impostor = _score_pair(genuine, impostor)
    rates, scalar = far_values(far)
    thresholds = _largest(impostor, allowed_false_accepts(rates, len(impostor)))
    results = rates_above(genuine, thresholds, rates, len(genuine), len(impostor), level)
    return results[0] if scalar else results


def rates_above(
    found: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    fars: np.ndarray,
    trials: int,
    impostors: int,
    level: float,
) -> list[Estimate]:
    """Share of `trials` with a score in `found` above the threshold of each FAR, set on `impostors` scores."""
    # compared in float64: the threshold is not rounded to the dtype of the scores
    hits = [int(np.count_nonzero(found > np.array([threshold], dtype=np.float64))) for threshold in thresholds]
    return [
        proportion(hit, trials, level=level, note="threshold held fixed", supported=is_supported(far, impostors))
        for hit, far in zip(hits, fars, strict=True)
    ]


def is_supported(far: float, impostors: int) -> bool:
    """Whether far * impostors >= 10: fewer than ten impostors above a threshold do not fix it."""
    return bool(allowed_false_accepts(far_values(far)[0], impostors)[0] >= 10)


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The exact steps of a ROC curve: accepting `score >= thresholds[i]` gives `far[i]` and `tar[i]`.

    One entry for each distinct score, from the highest down, after a first entry (threshold +infinity) that
    accepts nothing. Both rates are non-decreasing and end at 1.
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


def _accept_counts(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores from the highest down, and how many genuine and impostor scores are >= each."""
    scores = np.sort(np.concatenate((genuine, impostor)))
    starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    thresholds = scores[starts]
    # only the rarer kind is looked up; the other kind is what is left of all scores
    rare = min(genuine, impostor, key=len).astype(scores.dtype, copy=False)
    at = np.bincount(np.searchsorted(thresholds, rare), minlength=len(thresholds))
    rare_in = np.cumsum(at[::-1])
    other_in = (len(scores) - starts)[::-1] - rare_in
    accepted = (rare_in, other_in) if len(genuine) <= len(impostor) else (other_in, rare_in)
    return thresholds[::-1], *accepted


def roc_curve(genuine: Array, impostor: Array) -> RocCurve:
    """All steps of the ROC curve of `genuine` (G,) and `impostor` (I,) scores, none dropped; O(n log n)."""
    genuine, impostor = _score_pair(genuine, impostor)
    thresholds, genuine_in, impostor_in = _accept_counts(genuine, impostor)
    return RocCurve(
        far=np.concatenate(([0.0], impostor_in / len(impostor))),
        tar=np.concatenate(([0.0], genuine_in / len(genuine))),
        thresholds=np.concatenate(([np.inf], thresholds.astype(np.float64))),
    )


def crossing(genuine_in: np.ndarray, impostor_in: np.ndarray) -> np.ndarray:
    """FAR = FRR on the line through the points (FAR, TAR), by row; both run from 0 to 1 on the last axis."""
    gap = impostor_in + genuine_in - 1
    after = np.argmax(gap >= 0, axis=-1)[..., None]
    before = after - 1  # exists, as the gap starts at -1
    gap_after, gap_before = np.take_along_axis(gap, after, -1), np.take_along_axis(gap, before, -1)
    far_after, far_before = (np.take_along_axis(impostor_in, place, -1) for place in (after, before))
    share = gap_before / (gap_before - gap_after)
    return (far_before + share * (far_after - far_before))[..., 0]


def equal_error_rate(
    genuine: Array, impostor: Array, *, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> Estimate:
    """The error rate at which FAR = FRR, linearly interpolated between neighbouring steps of the ROC curve.

    `genuine` (G,), `impostor` (I,). If all scores tie, the two steps are "accept none" and "accept all": 0.5.

    The interval is the percentile bootstrap: `replicates` times, genuine and impostor scores are drawn again
    with replacement, from a generator with `seed`. With more than 1024 distinct scores the replicates see
    1024 of them, spaced over ten standard errors either side of the crossing; the estimate itself uses all.
    If the replicates do not differ (scores apart, or all alike), Clopper-Pearson on min(G, I) trials takes
    over. `supported` is False where fewer than ten errors of either kind stand behind the rate.
    """
    genuine, impostor = _score_pair(genuine, impostor)
    check_count(replicates, "replicates")
    _, genuine_in, impostor_in = _accept_counts(genuine, impostor)
    genuine_in, impostor_in = np.concatenate(([0], genuine_in)), np.concatenate(([0], impostor_in))
    sizes = len(genuine), len(impostor)
    value = float(crossing(genuine_in / sizes[0], impostor_in / sizes[1]))

    if len(genuine_in) > _BOOTSTRAP_CELLS:
        gap = impostor_in / sizes[1] + genuine_in / sizes[0] - 1
        reach = 10 * (value * (1 - value) * (1 / sizes[0] + 1 / sizes[1])) ** 0.5 + 10 / min(sizes)
        window = np.searchsorted(gap, np.linspace(-reach, reach, _BOOTSTRAP_CELLS))
        kept = np.unique(np.concatenate(([0], np.minimum(window, len(gap) - 1), [len(gap) - 1])))
        genuine_in, impostor_in = genuine_in[kept], impostor_in[kept]
    generator = np.random.default_rng(seed)
    resampled = []
    for accepted, size in zip((genuine_in, impostor_in), sizes, strict=True):
        drawn = generator.multinomial(size, np.diff(accepted) / size, size=replicates)
        resampled.append(np.pad(np.cumsum(drawn, axis=1), ((0, 0), (1, 0))) / size)
    rates = crossing(*resampled)
    tail = (1 - checked_level(level)) / 2
    low, high = np.quantile(rates, (tail, 1 - tail))
    method = f"percentile bootstrap of the scores, {replicates} replicates, seed {seed}"
    if low == high:
        low, high = clopper_pearson(min(value, 1.0) * min(sizes), min(sizes), level)
        method = f"Clopper-Pearson on {min(sizes)} trials (the bootstrap does not vary)"
    low, high, supported = min(low, value), max(high, value), value * min(sizes) >= 10
    return Estimate(value, low, high, level=level, count=sum(sizes), method=method, supported=supported)


def roc_auc(genuine: Array, impostor: Array, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve: P(genuine > impostor) + P(genuine = impostor) / 2, one random score of each.

    Exactly the Mann-Whitney statistic U / (G I), ties counted half. The interval has DeLong's variance
    (DeLong, DeLong and Clarke-Pearson 1988), taken on the logit of the area so that it stays in (0, 1). Where
    that variance is zero or undefined (scores apart or all alike, a single score), Clopper-Pearson on
    min(G, I) disjoint pairs.
    """
    genuine, impostor = _score_pair(genuine, impostor)
    common = np.result_type(genuine, impostor)
    genuine, impostor = (np.sort(scores.astype(common, copy=False)) for scores in (genuine, impostor))
    sizes = len(genuine), len(impostor)
    # placement of each score among the other kind, ties half: V_g = P(impostor < g), V_i = P(genuine > i)
    twice = np.searchsorted(impostor, genuine, "left") + np.searchsorted(impostor, genuine, "right")
    placed_genuine = twice / (2 * sizes[1])
    twice_other = np.searchsorted(genuine, impostor, "left") + np.searchsorted(genuine, impostor, "right")
    placed_impostor = 1 - twice_other / (2 * sizes[0])
    value = int(twice.sum()) / (2 * sizes[0] * sizes[1])
    variance = 0.0
    if min(sizes) > 1:
        # var(AUC) = var(V_g)/G + var(V_i)/I
        variance = float(placed_genuine.var(ddof=1) / sizes[0] + placed_impostor.var(ddof=1) / sizes[1])
    if variance > 0 and 0 < value < 1:
        half = stats.norm.isf((1 - checked_level(level)) / 2) * variance**0.5
        low, high = logit_interval(value, half)
        method = "DeLong variance on the logit"
    else:
        low, high = clopper_pearson(value * min(sizes), min(sizes), level)
        method = f"Clopper-Pearson on {min(sizes)} disjoint pairs (DeLong's variance is zero)"
    return Estimate(value, low, high, level=level, count=sum(sizes), method=method)

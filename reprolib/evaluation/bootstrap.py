"""Intervals for the scores of all pairs of a set: a bootstrap over people.

Pairs share images and people: n people give n (n - 1) / 2 pairs of people, but only n independent draws, and an
interval that counts pairs is too narrow. Here people are drawn with replacement; w_a is how often person a is drawn:

    genuine pair of person a: weight w_a;  impostor pair of persons a, b: weight w_a w_b

A copy of a person is never compared with another copy of the same person, which would be a pair of equal images.

A score has a part of each person and a part of the pair of people. The product weight gets the first right, for
Var w = 1, but counts the variance of the second three times, E[w_a^2 w_b^2] - 1 = 3 (Owen, 2007, for this "pigeonhole
bootstrap"). So that part is measured alone, by weights 0 or 2 drawn for each pair of people, and subtracted twice:

    Var = Var(people drawn) - 2 Var(pairs of people drawn),  at least a third of the first

which is in expectation the variance of a mean over pairs that share members (the sum over such pairs of the products
of their deviations: Fafchamps and Gubert, 2007). Every replicate is exact over all thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .._checks import Array, check_count, far_values, float_array, label_array
from .features import pair_blocks, unit_array
from .intervals import Estimate, clopper_pearson, logit_interval, student_half_width
from .roc import allowed_false_accepts, crossing


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """`scores` (n,) of pairs, higher = more similar, and the person on either side, `first` and `second` (n,)."""

    scores: np.ndarray
    first: np.ndarray
    second: np.ndarray


def scored_pairs(features: Array, labels: Array) -> ScoredPairs:
    """Cosines of all N (N - 1) / 2 pairs of rows of `features` (N, d), with the people in `labels` (N,) of both.

    In float32, or float64 for float64 features.
    """
    unit = unit_array(features)
    people = np.unique(label_array(labels, "labels", len(unit)), return_inverse=True)[1].astype(np.int32)
    return ScoredPairs(*(np.concatenate(column) for column in zip(*pair_blocks(unit, people), strict=True)))


def far_name(far: float) -> str:
    """How a FAR is written in names: 1e-3, 2.5e-1."""
    return np.format_float_scientific(far, trim="-", exp_digits=1)


class _Sorted:
    """The pairs from the highest score down, and where the score changes: what no draw changes."""

    def __init__(self, scores: np.ndarray, first: np.ndarray, second: np.ndarray, cell: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        scores, self.first, self.second, self.cell = scores[order], first[order], second[order], cell[order]
        self.same = self.first == self.second
        self.ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        self.steps = scores[self.ends]

    def statistics(self, weight: np.ndarray, fars: np.ndarray, thresholds: np.ndarray) -> np.ndarray | None:
        """EER, AUC, TAR at each FAR, FAR above each threshold, where the i-th pair of these counts `weight[i]` times.

        None if no genuine or no impostor pair counts.
        """
        genuine, both = (
            np.append(0, np.cumsum(counts, dtype=np.int64)[self.ends]) for counts in (weight * self.same, weight)
        )
        impostor = both - genuine
        sizes = genuine[-1], impostor[-1]
        if not all(sizes):
            return None
        eer = crossing(genuine / sizes[0], impostor / sizes[1])
        # the area under the straight lines between the steps, ties half
        auc = np.diff(impostor) @ (genuine[1:] + genuine[:-1]) / (2 * sizes[0] * sizes[1])
        last = np.searchsorted(impostor, allowed_false_accepts(fars, int(sizes[1])), "right") - 1
        above = len(self.steps) - np.searchsorted(self.steps[::-1], thresholds, "right")
        return np.concatenate(([eer, auc], genuine[last] / sizes[0], impostor[above] / sizes[1]))


def bootstrap_people(
    pairs: ScoredPairs,
    other: ScoredPairs | None = None,
    *,
    fars: Sequence[float] = (),
    thresholds: Sequence[float] = (),
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """`EER`, `AUC`, `TAR@FAR` for each of `fars` and `FAR@SCORE` for each of `thresholds`, over people drawn again.

    The values are those of `equal_error_rate`, `roc_auc` and `tar_at_far` for the pairs as they are. With `other`, the
    same pairs scored by another embedding, every entry is the difference pairs - other, both judged on the same draws.

    The variance is that of this module, from `draws` replicates of a generator with `seed`; the interval is Student's
    with (people - 1) degrees of freedom, for a rate on its logit so that it stays in (0, 1). A rate of 0 or 1, or that
    no draw changes, has Clopper-Pearson's on as many trials as there are people.

    Raises ValueError for shapes, NaN, fewer than two people, one kind of pair only, `other` with other pairs, a FAR
    outside (0, 1]; TypeError for wrong dtypes.
    """
    check_count(draws, "draws", low=2)
    rates = far_values(list(fars))[0] if len(fars) else np.empty(0)
    limits = float_array(np.asarray(thresholds, dtype=np.float64), "thresholds", 1) if len(thresholds) else np.empty(0)
    names = ["EER", "AUC", *(f"TAR@{far_name(far)}" for far in rates), *(f"FAR@{limit:g}" for limit in limits)]

    scores = [float_array(one.scores, "scores", 1) for one in (pairs, other) if one is not None]
    if other is not None and not all(
        np.array_equal(mine, theirs)
        for mine, theirs in ((pairs.first, other.first), (pairs.second, other.second), map(np.shape, scores))
    ):
        raise ValueError("other must score the same pairs, got pairs of other people")
    size = len(scores[0])
    sides = label_array(pairs.first, "first", size), label_array(pairs.second, "second", size)
    people, index = np.unique(np.concatenate(sides), return_inverse=True)
    first, second = index[:size].astype(np.int32), index[size:].astype(np.int32)
    same = first == second
    if same.all() or not same.any():
        raise ValueError(f"pairs must be genuine and impostor, got {int(same.sum())} genuine of {size}")
    met, cell = np.unique(
        np.minimum(first, second).astype(np.int64) * len(people) + np.maximum(first, second), return_inverse=True
    )
    judged = [_Sorted(values, first, second, cell.astype(np.int32)) for values in scores]
    generator = np.random.default_rng(seed)

    def measured(weigh: Callable[[_Sorted], np.ndarray]) -> np.ndarray | None:
        each = [one.statistics(weigh(one), rates, limits) for one in judged]
        return each[0] if other is None or each[0] is None else each[0] - each[1]

    def people_drawn() -> Callable[[_Sorted], np.ndarray]:
        times = np.bincount(generator.integers(0, len(people), len(people)), minlength=len(people)).astype(np.int32)
        return lambda one: times[one.first] * np.where(one.same, 1, times[one.second])

    def pairs_drawn() -> Callable[[_Sorted], np.ndarray]:
        times = 2 * generator.integers(0, 2, len(met), dtype=np.int32)
        return lambda one: np.where(one.same, 1, times[one.cell])

    def variance(draw: Callable[[], Callable[[_Sorted], np.ndarray]]) -> np.ndarray:
        rows: list[np.ndarray] = []
        while len(rows) < draws:
            # few people: a draw without a genuine or an impostor pair measures nothing and is drawn again
            if (row := measured(draw())) is not None:
                rows.append(row)
        return np.var(rows, axis=0, ddof=1)

    values = measured(lambda one: np.ones(size, np.int32))
    assert values is not None  # both kinds are there
    by_people = variance(people_drawn)
    deviations = np.sqrt(np.maximum(by_people - 2 * variance(pairs_drawn), by_people / 3))
    method = f"bootstrap over {len(people)} people, {draws} draws, seed {seed}"
    return {
        name: _estimate(float(value), float(deviation), len(people), size, level, method, rate=other is None)
        for name, value, deviation in zip(names, values, deviations, strict=True)
    }


def _estimate(
    value: float, deviation: float, people: int, count: int, level: float, method: str, *, rate: bool
) -> Estimate:
    half = student_half_width(deviation, people, level)
    if not rate:
        low, high = value - half, value + half
    elif 0 < value < 1 and deviation > 0:
        low, high = logit_interval(value, half)
    else:
        low, high = clopper_pearson(min(max(value, 0.0), 1.0) * people, people, level)
        method = f"Clopper-Pearson on {people} people"
    return Estimate(value, low, high, level=level, count=count, method=method)

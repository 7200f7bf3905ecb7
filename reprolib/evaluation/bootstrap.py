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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats

from .._checks import Array, check_count, far_values, feature_rows, float_array, label_array, row_tensor, unit_rows
from .intervals import Estimate, checked_level, clopper_pearson
from .roc import allowed_false_accepts


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """`scores` (n,) of pairs, higher = more similar, and the person on either side, `first` and `second` (n,)."""

    scores: np.ndarray
    first: np.ndarray
    second: np.ndarray


@torch.no_grad()
def scored_pairs(features: Array, labels: Array) -> ScoredPairs:
    """Cosines of all N (N - 1) / 2 pairs of rows of `features` (N, d), with the people in `labels` (N,) of both.

    Float32 (float64 for float64 features); 12 bytes a pair and up, 20 for float64.
    """
    rows = row_tensor(feature_rows(features, "features"))
    rows = rows.to("cpu", torch.float64 if rows.dtype == torch.float64 else torch.float32)
    unit = unit_rows(rows, "features").numpy()
    people = np.unique(label_array(labels, "labels", len(unit)), return_inverse=True)[1].astype(np.int32)
    size = len(unit)
    scores = np.empty(size * (size - 1) // 2, dtype=unit.dtype)
    first, second = np.empty(len(scores), dtype=np.int32), np.empty(len(scores), dtype=np.int32)
    end = 0
    for row in range(size - 1):
        part = slice(end, end + size - 1 - row)
        scores[part] = unit[row + 1 :] @ unit[row]
        first[part], second[part] = people[row], people[row + 1 :]
        end = part.stop
    return ScoredPairs(scores, first, second)


class _Sorted:
    """Scores from the highest down with their people, and what no replicate changes: where the kinds interleave."""

    def __init__(self, scores: np.ndarray, first: np.ndarray, second: np.ndarray, cell: np.ndarray) -> None:
        same = first == second
        order = [np.flatnonzero(kind)[np.argsort(-scores[kind], kind="stable")] for kind in (same, ~same)]
        self.genuine, self.impostor = (scores[part] for part in order)
        self.person = first[order[0]]
        self.first, self.second, self.cell = first[order[1]], second[order[1]], cell[order[1]]
        self.steps = np.unique(scores)[::-1]
        # numbers of impostor scores above, and at or above, each genuine score
        ascending = self.impostor[::-1]
        self.above = len(ascending) - np.searchsorted(ascending, self.genuine, "right")
        self.reached = len(ascending) - np.searchsorted(ascending, self.genuine, "left")

    def statistics(
        self, genuine_weight: np.ndarray, impostor_weight: np.ndarray, fars: np.ndarray, thresholds: np.ndarray
    ) -> list[float]:
        """EER, AUC, TAR at each FAR, FAR at each threshold, with integer weights in sorted order."""
        accepted = [np.concatenate(([0], np.cumsum(w, dtype=np.int64))) for w in (genuine_weight, impostor_weight)]
        genuine, impostor = accepted
        sizes = genuine[-1], impostor[-1]
        # AUC = P(genuine > impostor) + P(tie)/2
        beaten = 2 * sizes[1] - impostor[self.above] - impostor[self.reached]
        auc = float(genuine_weight.astype(np.float64) @ beaten / (2.0 * sizes[0] * sizes[1]))
        # lowest impostor score above which at most far * total weight is accepted; acceptance is strict
        cut = np.searchsorted(impostor[1:], allowed_false_accepts(fars, int(sizes[1])), side="right")
        limits = np.where(
            cut < len(self.impostor), self.impostor[np.minimum(cut, len(self.impostor) - 1)].astype(np.float64), -np.inf
        )
        tars = genuine[_above(self.genuine, limits)] / sizes[0]
        rates = impostor[_above(self.impostor, thresholds)] / sizes[1]
        return [self._equal_error_rate(genuine, impostor), auc, *tars.tolist(), *rates.tolist()]

    def _equal_error_rate(self, genuine: np.ndarray, impostor: np.ndarray) -> float:
        """FAR = FRR by linear interpolation between the two neighbouring steps of the weighted ROC curve."""

        def step(index: int) -> tuple[float, float]:  # FAR and FAR + TAR - 1, accepting all scores >= steps[index]
            if index < 0:
                return 0.0, -1.0
            i, g = (len(x) - np.searchsorted(x[::-1], self.steps[index], "left") for x in (self.impostor, self.genuine))
            far = impostor[i] / impostor[-1]
            return far, far + genuine[g] / genuine[-1] - 1

        before, after = -1, len(self.steps) - 1  # FAR + TAR - 1 never falls: < 0 before, >= 0 after
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (before, middle) if step(middle)[1] >= 0 else (middle, after)
        (far_before, gap_before), (far_after, gap_after) = step(before), step(after)
        return far_before + gap_before / (gap_before - gap_after) * (far_after - far_before)


def _above(descending: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of the scores exceed each threshold."""
    return len(descending) - np.searchsorted(descending[::-1].astype(np.float64, copy=False), thresholds, "right")


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
    """`eer`, `auc`, `tar@FAR` for each of `fars` and `far@SCORE` for each of `thresholds`, over people drawn again.

    The values are those of `equal_error_rate`, `roc_auc` and `tar_at_far` for the pairs as they are. With `other`, the
    same pairs scored by another embedding, every entry is the difference pairs - other, both judged on the same draws.

    The variance is that of this module, from `draws` replicates of a generator with `seed`; the interval is Student's
    with (people - 1) degrees of freedom, for a rate on its logit so that it stays in (0, 1). A rate of 0 or 1, or that
    no draw changes, has Clopper-Pearson's on as many trials as there are people.

    Raises ValueError for shapes, NaN, fewer than two people, one kind of pair only, `other` with other pairs, a FAR
    outside (0, 1]; TypeError for wrong dtypes.
    """
    check_count(draws, "draws")
    level = checked_level(level)
    rates = far_values(list(fars))[0] if len(fars) else np.empty(0)
    limits = float_array(np.asarray(thresholds, dtype=np.float64), "thresholds", 1) if len(thresholds) else np.empty(0)
    judged, people, cells = _prepared(pairs, other)
    names = ["eer", "auc", *(f"tar@{far:g}" for far in rates), *(f"far@{limit:g}" for limit in limits)]
    signs = (1, -1)[: len(judged)]

    def measured(weights: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        each = [s.statistics(*pair, rates, limits) for s, pair in zip(judged, weights, strict=True)]
        return np.asarray(signs) @ np.asarray(each)

    ones = [(np.ones(len(s.genuine), np.int32), np.ones(len(s.impostor), np.int32)) for s in judged]
    values = measured(ones)
    generator = np.random.default_rng(seed)
    by_people: list[np.ndarray] = []
    by_pairs: list[np.ndarray] = []
    while len(by_people) < draws:
        times = np.bincount(generator.integers(0, people, people), minlength=people).astype(np.int32)
        weights = [(times[s.person], times[s.first] * times[s.second]) for s in judged]
        # few people: a draw without a genuine or an impostor pair measures nothing and is drawn again
        if weights[0][0].any() and weights[0][1].any():
            by_people.append(measured(weights))
    while len(by_pairs) < draws:
        times = 2 * generator.integers(0, 2, cells, dtype=np.int32)
        weights = [(own[0], times[s.cell]) for s, own in zip(judged, ones, strict=True)]
        if weights[0][1].any():
            by_pairs.append(measured(weights))
    drawn, paired = (np.var(rows, axis=0, ddof=1) if draws > 1 else 0 * values for rows in (by_people, by_pairs))
    deviations = np.sqrt(np.maximum(drawn - 2 * paired, drawn / 3))
    method = f"bootstrap over {people} people, {draws} draws, seed {seed}"
    count = len(pairs.scores)
    return {
        name: _estimate(float(value), float(deviation), people, count, level, method, rate=other is None)
        for name, value, deviation in zip(names, values, deviations, strict=True)
    }


def _prepared(pairs: ScoredPairs, other: ScoredPairs | None) -> tuple[list[_Sorted], int, int]:
    """Sorted scores of one or two embeddings, the number of people and that of pairs of different people."""
    scores = float_array(pairs.scores, "scores", 1)
    sides = [label_array(side, name, len(scores)) for side, name in ((pairs.first, "first"), (pairs.second, "second"))]
    names, index = np.unique(np.concatenate(sides), return_inverse=True)
    first, second = index[: len(scores)].astype(np.int32), index[len(scores) :].astype(np.int32)
    same = first == second
    if same.all() or not same.any():
        raise ValueError(f"pairs must be genuine and impostor, got {int(same.sum())} genuine of {len(same)}")
    low, high = np.minimum(first, second).astype(np.int64), np.maximum(first, second)
    met, cell = np.unique(low * len(names) + high, return_inverse=True)
    judged = [_Sorted(scores, first, second, cell.astype(np.int32))]
    if other is not None:
        for side, name in ((other.first, "first"), (other.second, "second")):
            if not np.array_equal(np.asarray(side), np.asarray(getattr(pairs, name))):
                raise ValueError(f"other must score the same pairs, got different people in {name}")
        second_scores = float_array(other.scores, "scores of other", 1)
        if len(second_scores) != len(scores):
            raise ValueError(f"scores of other must have {len(scores)} entries, got {len(second_scores)}")
        judged.append(_Sorted(second_scores, first, second, cell.astype(np.int32)))
    return judged, len(names), len(met)


def _estimate(
    value: float, deviation: float, people: int, count: int, level: float, method: str, *, rate: bool
) -> Estimate:
    reach = float(stats.t.isf((1 - level) / 2, people - 1)) * deviation
    if not rate:
        return Estimate(value, value - reach, value + reach, level=level, count=count, method=method)
    if not 0 < value < 1 or deviation == 0:
        low, high = clopper_pearson(min(max(value, 0.0), 1.0) * people, people, level)
        return Estimate(value, low, high, level=level, count=count, method=f"Clopper-Pearson on {people} people")
    # d logit(p)/dp = 1 / (p (1 - p))
    logit, reach = special.logit(value), reach / (value * (1 - value))
    low, high = special.expit(logit - reach), special.expit(logit + reach)
    return Estimate(value, min(low, value), max(high, value), level=level, count=count, method=method)

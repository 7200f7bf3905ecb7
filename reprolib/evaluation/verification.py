"""Pair verification with cross-validated thresholds: LFW view 2 and the benchmarks scored like it.

A pair has a score (higher means more similar) and is genuine (same person) or impostor. CFP-FP, AgeDB-30,
CALFW, CPLFW and YTF use the same scorer. The rates at a fixed false accept rate are in `roc.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import Array, check_choice, check_count, float_array, label_array, same_array
from .intervals import Estimate, clopper_pearson, mean_and_deviation, mean_estimate

CONVENTIONS = ("exact", "sphereface", "facenet")


@dataclass(frozen=True)
class VerificationResult:
    """k-fold accuracy, with the accuracy and the threshold (on the scores' own scale) of each fold."""

    accuracy: Estimate
    standard_error: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    convention: str


def fold_ids(folds: Any, pairs: int) -> np.ndarray:
    """Fold of each pair, numbered from 0: k contiguous blocks, or the ids given in ascending order."""
    if np.ndim(folds) == 0:
        count = folds.item() if hasattr(folds, "item") else folds
        check_count(count, "folds", low=2)
        if pairs % count:
            raise ValueError(f"folds must divide the {pairs} pairs, got {count}")
        return np.repeat(np.arange(count), pairs // count)
    ids = np.unique(label_array(folds, "folds", pairs), return_inverse=True)[1]
    if ids.max() < 1:
        raise ValueError("folds must name at least 2 different folds, got 1")
    return ids


def exact_threshold(scores: Array, same: Array) -> float:
    """The threshold t that maximises the accuracy of "genuine iff score > t" over all real t.

    Accuracy changes only where t passes a score, so the candidates are the midpoints between neighbouring
    distinct scores, one value just below all scores (accept all) and the highest score (reject all). If
    several reach the maximum, the middle one in order is taken (the lower of the two middle ones if their
    number is even): it is always a maximiser itself, and does not depend on the order of the pairs.
    """
    scores = float_array(scores, "scores", 1).astype(np.float64, copy=False)
    same = same_array(same, len(scores))
    order = np.argsort(scores, kind="stable")
    return _middle_maximiser(scores[order], same[order])


def _middle_maximiser(scores: np.ndarray, same: np.ndarray) -> float:
    """`exact_threshold` for scores in ascending order."""
    rejected_genuine = np.concatenate(([0], np.cumsum(same)))
    rejected = np.arange(len(scores) + 1)
    # correct(i) = impostors among the i lowest + genuine among the others
    correct = (rejected - rejected_genuine) + (rejected_genuine[-1] - rejected_genuine)
    correct[1:-1][scores[1:] == scores[:-1]] = -1  # a threshold cannot part equal scores
    best = np.flatnonzero(correct == correct.max())
    cut = best[(len(best) - 1) // 2]
    if cut == 0:
        return float(np.nextafter(scores[0], -np.inf))
    if cut == len(scores):
        return float(scores[-1])
    lower, upper = scores[cut - 1], scores[cut]
    middle = lower / 2 + upper / 2
    # between neighbouring floats the midpoint may round to the upper score, which must stay accepted
    return float(middle if lower <= middle < upper else lower)


def verification_accuracy(
    scores: Array, same: Array, folds: Any, *, convention: str = "exact", level: float = 0.95
) -> VerificationResult:
    """Mean k-fold accuracy of "genuine iff score > t", each fold judged with the best t of the other folds.

    `scores` (n,) higher = more similar, or (k, n) where row f holds the scores to use when fold f is judged
    (features centred on the training folds: `centred_cosines`). `same` (n,) bool. `folds` an int k (k contiguous
    folds of n/k pairs, as in LFW's pairs.txt, where people of different folds are disjoint) or (n,) integer fold
    ids; row f belongs to the f-th lowest id. LFW view 2 (Huang et al., 2007): `standard_error` is s.d. / sqrt(k)
    with ddof = 1 as in that report (numpy's default ddof = 0, which popular code reports, is smaller by
    sqrt((k-1)/k)). CFP-FP (10 folds of 350 + 350 frontal-profile pairs; Sengupta et al., 2016) and AgeDB-30 (10
    folds of 300 + 300 pairs 30 years apart; Moschoglou et al., 2017), CALFW and CPLFW are scored by this very
    call: `verification_accuracy(scores, same, 10)` with the pairs stored fold by fold.

    `convention` chooses the threshold on the training folds:
    - "exact": over all real thresholds; see `exact_threshold` for the tie rule.
    - "sphereface": cosine scores, grid -1, -0.9999, ..., 1, the mean of all maximisers; both sides strict, so
      a score equal to the threshold is wrong for either kind of pair (Liu et al., SphereFace's released
      evaluation).
    - "facenet": cosine scores, turned into squared distances 2 - 2 cos; grid 0, 0.01, ..., 3.99, the first
      maximiser; genuine iff distance < t (Schroff et al. as in the facenet and insightface releases). The
      thresholds are returned as the cosine 1 - t/2.

    The interval is Student's t over the folds, cut to [0, 1]; if all folds agree exactly, Clopper-Pearson on
    the pooled pairs. `accuracy.supported` is False if a fold lacks genuine or impostor pairs, the sign of
    pairs that are not stored fold by fold.

    Raises ValueError for shapes, NaN, folds that do not divide n, training folds with one kind of pair only,
    an unknown convention, or scores outside [-1, 1] where cosines are needed; TypeError for wrong dtypes.
    """
    table = float_array(scores, "scores", 2 if np.ndim(scores) == 2 else 1).astype(np.float64, copy=False)
    same = same_array(same, table.shape[-1])
    ids = fold_ids(folds, len(same))
    if table.ndim == 2 and len(table) != ids.max() + 1:
        raise ValueError(f"scores must have one row for each of the {ids.max() + 1} folds, got shape {table.shape}")
    check_choice(convention, "convention", CONVENTIONS)
    if convention != "exact" and np.abs(table).max() > 1 + 1e-6:
        raise ValueError(f"convention {convention!r} needs cosines in [-1, 1], got {np.abs(table).max()}")
    if convention == "facenet":
        table = 2 * table - 2  # s = -d^2, so that "d^2 < t" reads "s > -t" and a tie is rejected

    table = table.reshape(-1, len(same))
    orders = np.argsort(table, axis=-1, kind="stable")
    accuracies, thresholds = [], []
    for fold, test in enumerate(held_out(ids, same)):
        row = min(fold, len(table) - 1)
        order = orders[row][~test[orders[row]]]
        threshold = _threshold(table[row][order], same[order], convention)
        scores = table[row][test]
        right = (scores > threshold) == same[test]
        if convention == "sphereface":
            right &= scores != threshold
        accuracies.append(float(right.mean()))
        thresholds.append(1 + threshold / 2 if convention == "facenet" else threshold)
    return summarise_folds(accuracies, thresholds, ids, same, convention, level)


def _threshold(scores: np.ndarray, same: np.ndarray, convention: str) -> float:
    """The threshold chosen on training pairs with `scores` in ascending order."""
    if convention == "exact":
        return _middle_maximiser(scores, same)
    strict = convention == "sphereface"
    grid = np.arange(-10000, 10001) / 10000 if strict else -np.arange(0, 4, 0.01)
    genuine, impostor = scores[same], scores[~same]
    # genuine > t, and impostor < t or, where a tie is right, <= t
    correct = len(genuine) - np.searchsorted(genuine, grid, side="right")
    correct += np.searchsorted(impostor, grid, side="left" if strict else "right")
    best = grid[correct == correct.max()]
    return float(best.mean() if strict else best[0])


def held_out(ids: np.ndarray, same: np.ndarray) -> Iterator[np.ndarray]:
    """Mask of the pairs of each fold; ValueError where the other folds hold only one kind of pair."""
    for fold in range(ids.max() + 1):
        test = ids == fold
        if same[~test].all() or not same[~test].any():
            raise ValueError(f"without fold {fold} only one kind of pair is left to learn from")
        yield test


def summarise_folds(
    accuracies: list[float], thresholds: list[float], ids: np.ndarray, same: np.ndarray, convention: str, level: float
) -> VerificationResult:
    """Mean, standard error and interval of the fold accuracies, as `verification_accuracy` states them."""
    pairs, genuine = np.bincount(ids), np.bincount(ids, weights=same)
    mean, deviation = mean_and_deviation(np.array(accuracies))
    standard_error = deviation / len(accuracies) ** 0.5
    if deviation > 0:
        over = mean_estimate(accuracies, level=level, over="folds", low=0.0, high=1.0)
        low, high, method = over.low, over.high, over.method
    else:
        low, high = clopper_pearson(mean * len(ids), len(ids), level)
        method = "Clopper-Pearson on the pooled pairs (all folds agree)"
    supported = bool(((genuine > 0) & (genuine < pairs)).all())
    estimate = Estimate(mean, low, high, level=level, count=len(ids), method=method, supported=supported)
    return VerificationResult(estimate, standard_error, tuple(accuracies), tuple(thresholds), convention)

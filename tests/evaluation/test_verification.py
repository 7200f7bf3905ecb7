"""k-fold verification accuracy: pencil, brute force over all thresholds, the two published conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reprolib.evaluation import exact_threshold, verification_accuracy

# fold 0 | fold 1; G genuine, I impostor: 0.9 G, 0.6 I, 0.4 G | 0.8 G, 0.5 I, 0.45 I
PENCIL_SCORES = np.array([0.9, 0.6, 0.4, 0.8, 0.5, 0.45])
PENCIL_SAME = np.array([True, False, True, True, False, False])


def lfw_like(generator, shift, per_fold=600, folds=10):
    same = np.tile(np.repeat([True, False], per_fold // 2), folds)
    scores = generator.normal(0.0, 0.1, len(same)) + np.where(same, shift, 0.0)
    return np.clip(scores, -1, 1), same


def all_thresholds(scores):
    distinct = np.unique(scores)
    return np.concatenate(([distinct[0] - 1], (distinct[1:] + distinct[:-1]) / 2, [distinct[-1] + 1]))


def accuracy_at(scores, same, threshold):
    return float(np.mean((scores > threshold) == same))


def test_six_pairs_by_pencil():
    # fold 0 with the threshold of fold 1 (0.65, between 0.5 and 0.8): 0.4 G is wrong, 2/3 right.
    # fold 1 with that of fold 0: just below 0.4 and 0.75 both have 2/3; the lower is taken: 1/3 right.
    result = verification_accuracy(PENCIL_SCORES, PENCIL_SAME, 2)
    assert result.fold_accuracies == pytest.approx((2 / 3, 1 / 3), abs=1e-15)
    assert result.fold_thresholds == pytest.approx((0.65, 0.4), abs=1e-15)
    assert result.fold_thresholds[1] < 0.4
    assert result.accuracy == pytest.approx(0.5)
    # s.d. with ddof = 1 of (2/3, 1/3) is 1/(3 sqrt 2); over sqrt 2: 1/6
    assert result.standard_error == pytest.approx(1 / 6)
    assert result.accuracy.low == 0 and result.accuracy.high == 1 and "Student t" in result.accuracy.method


def test_perfect_scores():
    scores, same = np.tile([0.9, 0.8, 0.2, 0.1], 5), np.tile([1, 1, 0, 0], 5)
    for convention in ("exact", "sphereface", "facenet"):
        result = verification_accuracy(scores, same, 5, convention=convention)
        assert result.accuracy == 1 and result.standard_error == 0
        # 20 right of 20: the exact lower bound is 0.025^(1/20), not 1
        assert result.accuracy.low == pytest.approx(0.025**0.05)
        assert result.accuracy.high == 1 and "Clopper-Pearson" in result.accuracy.method
    result = verification_accuracy(scores, same, 5)
    assert result.fold_thresholds == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("per_fold", [700, 600])
def test_cfp_fp_and_agedb_30_are_the_same_call(per_fold):
    # ten folds of 350 + 350 and of 300 + 300, one pair of each fold on the wrong side of the gap
    same = np.tile(np.repeat([True, False], per_fold // 2), 10)
    scores = np.where(same, 0.8, 0.2)
    scores[::per_fold] = 0.1
    result = verification_accuracy(scores, same, 10)
    assert result.accuracy == pytest.approx(1 - 1 / per_fold, abs=1e-15) and result.accuracy.supported
    assert result.fold_thresholds == pytest.approx([0.5] * 10) and result.standard_error == 0


def test_equal_scores_are_a_coin():
    same = np.tile([True, False], 10)
    for value in (0.0, 0.3):
        for convention in ("exact", "facenet"):
            assert verification_accuracy(np.full(20, value), same, 5, convention=convention).accuracy == 0.5
    assert verification_accuracy(np.full(20, 0.3), same, 5, convention="sphereface").accuracy == 0.5
    # at 0 all other grid values are maximisers, and their mean is 0: there all pairs tie, and all are wrong
    assert verification_accuracy(np.zeros(20), same, 5, convention="sphereface").accuracy == 0


@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=4, max_size=14).filter(
        lambda pairs: any(same for _, same in pairs) and not all(same for _, same in pairs)
    )
)
def test_exact_threshold_against_every_threshold(pairs):
    scores, same = np.array([p[0] / 4 for p in pairs]), np.array([p[1] for p in pairs])
    candidates = all_thresholds(scores)
    accuracies = np.array([accuracy_at(scores, same, t) for t in candidates])
    maximisers = candidates[accuracies == accuracies.max()]
    chosen = exact_threshold(scores, same)
    assert accuracy_at(scores, same, chosen) == accuracies.max()
    # the middle maximiser: it cuts the scores at the same place
    middle = maximisers[(len(maximisers) - 1) // 2]
    assert ((scores > chosen) == (scores > middle)).all()


def test_folds_against_a_plain_loop():
    generator = np.random.default_rng(1)
    scores, same = lfw_like(generator, 0.15, per_fold=20)
    scores = scores.round(2)  # with ties
    result = verification_accuracy(scores, same, 10)
    for fold in range(10):
        test = np.zeros(len(scores), dtype=bool)
        test[fold * 20 : fold * 20 + 20] = True
        candidates = all_thresholds(scores[~test])
        right = np.array([accuracy_at(scores[~test], same[~test], t) for t in candidates])
        best = candidates[right == right.max()]
        threshold = best[(len(best) - 1) // 2]
        assert result.fold_thresholds[fold] == pytest.approx(threshold, abs=1e-15)
        assert result.fold_accuracies[fold] == accuracy_at(scores[test], same[test], threshold)
    expected = stats.t.interval(0.95, 9, result.accuracy, stats.sem(result.fold_accuracies))
    assert (result.accuracy.low, result.accuracy.high) == pytest.approx(expected)
    assert result.standard_error == pytest.approx(stats.sem(result.fold_accuracies))


@pytest.mark.parametrize("convention", ["sphereface", "facenet"])
def test_published_conventions_against_a_plain_loop(convention):
    generator = np.random.default_rng(2)
    scores, same = lfw_like(generator, 0.2, per_fold=20, folds=3)
    scores = scores.round(3)
    result = verification_accuracy(scores, same, 3, convention=convention)
    distance = 2 - 2 * scores
    for fold in range(3):
        test = np.arange(60) // 20 == fold

        def right(t, part):
            if convention == "sphereface":
                return (scores[part & same] > t).sum() + (scores[part & ~same] < t).sum()
            return (distance[part & same] < t).sum() + (distance[part & ~same] >= t).sum()

        grid = np.linspace(-10000, 10000, 20001) / 10000 if convention == "sphereface" else np.arange(0, 4, 0.01)
        counts = np.array([right(t, ~test) for t in grid])
        best = grid[counts == counts.max()]
        t = best.mean() if convention == "sphereface" else best[0]
        assert result.fold_accuracies[fold] == right(t, test) / 20
        assert result.fold_thresholds[fold] == pytest.approx(t if convention == "sphereface" else 1 - t / 2)


def test_cosine_and_squared_distance_agree_exactly():
    generator = np.random.default_rng(3)
    _, same = lfw_like(generator, 0.0, per_fold=40)
    a = generator.normal(size=(len(same), 8))
    b = np.where(same[:, None], a + generator.normal(size=a.shape), generator.normal(size=a.shape))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosine = verification_accuracy((a * b).sum(1), same, 10)
    distance = verification_accuracy(-((a - b) ** 2).sum(1), same, 10)
    assert cosine.fold_accuracies == distance.fold_accuracies
    assert 0.7 < cosine.accuracy < 0.99
    # cos = 1 - d^2 / 2, so the thresholds correspond too
    assert np.allclose(cosine.fold_thresholds, 1 + np.array(distance.fold_thresholds) / 2, atol=1e-14)


def test_conventions_differ_by_the_pairs_between_their_thresholds():
    generator = np.random.default_rng(4)
    largest = 0
    for shift in (0.1, 0.3, 0.6):
        scores, same = lfw_like(generator, shift)
        assert len(np.unique(scores)) == len(scores)
        first = verification_accuracy(scores, same, 10, convention="sphereface")
        second = verification_accuracy(scores, same, 10, convention="facenet")
        for fold in range(10):
            ends = sorted((first.fold_thresholds[fold], second.fold_thresholds[fold]))
            part = scores[fold * 600 : fold * 600 + 600]
            between = ((part >= ends[0] - 1e-9) & (part <= ends[1] + 1e-9)).sum()
            difference = abs(first.fold_accuracies[fold] - second.fold_accuracies[fold]) * 600
            assert difference <= between + 1e-6
            if shift == 0.6:  # 99.8 %, the accuracy of today's nets on LFW
                assert difference < 1 + 1e-6
            largest = max(largest, difference)
    # on hard data the flat maximum lets the two conventions move apart by many pairs
    assert largest > 1.5


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_order_of_pairs_within_folds_is_irrelevant(random):
    generator = np.random.default_rng(random.randrange(2**32))
    scores, same = lfw_like(generator, 0.1, per_fold=8, folds=4)
    scores = scores.round(2)
    ids = np.repeat([7, -3, 5, 100], 8)
    base = verification_accuracy(scores, same, ids)
    order = generator.permutation(len(scores))
    moved = verification_accuracy(scores[order], same[order], ids[order])
    assert moved == base
    # contiguous folds in a different naming give the same set of folds
    assert sorted(base.fold_accuracies) == sorted(verification_accuracy(scores, same, 4).fold_accuracies)
    # doubling is exact in floating point and keeps every midpoint
    assert verification_accuracy(2 * scores, same, ids).fold_accuracies == base.fold_accuracies


def test_input_kinds_agree():
    generator = np.random.default_rng(5)
    scores, same = lfw_like(generator, 0.2, per_fold=20)
    scores = scores.astype(np.float32)
    base = verification_accuracy(scores, same, 10)
    for values, flags in (
        (torch.from_numpy(scores), torch.from_numpy(same)),
        (torch.from_numpy(scores).requires_grad_(), same.astype(np.int64)),
        (scores.astype(np.float64), torch.from_numpy(same).long()),
    ):
        assert verification_accuracy(values, flags, 10) == base
    half = torch.from_numpy(scores).to(torch.bfloat16)
    assert verification_accuracy(half, same, 10) == verification_accuracy(half.double(), same, 10)
    assert verification_accuracy(scores, same, torch.tensor(10)) == base


def test_neighbouring_floats_are_still_parted():
    # the midpoint of two neighbours rounds to the even one: once the lower, once the upper
    first = 0.5
    second = np.nextafter(first, 1)
    for low, high in ((first, second), (second, np.nextafter(second, 1))):
        result = verification_accuracy(np.array([low, high] * 4), np.array([False, True] * 4), 4)
        assert result.accuracy == 1
    assert exact_threshold(np.array([-1e308, 1e308]), np.array([0, 1])) == 0


def test_unbalanced_folds_are_marked():
    scores, same = np.linspace(0, 1, 8), np.array([0, 1] * 4)
    assert verification_accuracy(scores, same, 4).accuracy.supported
    ids = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    assert verification_accuracy(scores, np.array([0, 0, 0, 1, 1, 0, 1, 0]), ids).accuracy.supported is False


@pytest.mark.parametrize(
    ("scores", "same", "folds", "error", "words"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], 3, ValueError, "divide"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], 1, ValueError, "folds must be an integer >= 2"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], 2.0, TypeError, "folds"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], True, TypeError, "folds"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], [0, 0, 0, 0], ValueError, "2 different folds"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], [0, 1, 0], ValueError, "4 entries"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], TypeError, "integers"),
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 2, ValueError, "without fold 0"),
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], 2, ValueError, "genuine and impostor"),
        ([0.1, 0.2, 0.3, 0.4], [0, 2, 0, 1], 2, ValueError, "only 0"),
        ([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 1.0], 2, TypeError, "same"),
        ([0.1, 0.2, 0.3, 0.4], [0, 1, 0], 2, ValueError, "shape"),
        ([0.1, float("nan"), 0.3, 0.4], [0, 1, 0, 1], 2, ValueError, "NaN"),
        ([0.1, float("inf"), 0.3, 0.4], [0, 1, 0, 1], 2, ValueError, "infinite"),
        ([1, 0, 1, 0], [0, 1, 0, 1], 2, TypeError, "floating"),
        ([[0.1, 0.2], [0.3, 0.4]], [0, 1, 0, 1], 2, ValueError, "shape"),
        ([[[0.1, 0.2], [0.3, 0.4]]], [0, 1, 0, 1], 2, ValueError, "axes"),
    ],
)
def test_wrong_input_is_named(scores, same, folds, error, words):
    with pytest.raises(error, match=words):
        verification_accuracy(np.array(scores), np.array(same), folds)


def test_wrong_convention_is_named():
    with pytest.raises(ValueError, match="'exact', 'sphereface', 'facenet'"):
        verification_accuracy(PENCIL_SCORES, PENCIL_SAME, 2, convention="best")
    with pytest.raises(ValueError, match="cosines"):
        verification_accuracy(10 * PENCIL_SCORES, PENCIL_SAME, 2, convention="facenet")
